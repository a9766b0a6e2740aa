"""A person's own ratings: what is understood, and what each mistake is told."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given as given_some
from hypothesis import strategies as st

from recsys_utils.base import InputError, Scale
from recsys_utils.data.titles import normalise, split_year
from recsys_utils.personal import own_ratings
from recsys_utils.personal.own_table import parse_scale

ITEMS = pd.DataFrame(
    {
        "item_id": ["1", "2", "12", "13", "14", "15"],
        "title": ["Toy Story", "GoldenEye", "Usual Suspects, The", "Sabrina", "Sabrina", "Good, the Bad"],
        "year": pd.array([1995, 1995, 1995, 1954, 1995, 1966], dtype="Int64"),
    }
)
SCALE = Scale(1, 5)


@pytest.fixture
def given(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(content: str | bytes) -> Path:
        path = tmp_path / "mine.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(read: own_ratings.OwnRatings) -> list[tuple[str, float]]:
    return list(read.frame.itertuples(index=False, name=None))


@pytest.mark.parametrize(
    "content",
    [
        "item_id,rating\n12,5\n1,3.5\n",
        "\ufeffitem_id,rating\r\n12,5\r\n1,3.5\r\n",
        "Rating;Item_ID;note\n5;12;x\n3.5;1;\n",
        "item_id\trating\n12\t5\n\n1\t3.5\n",
        'title,year,rating\nThe Usual Suspects,1995,5\n"Toy Story",1996,3.5\n',
        'title,year,rating\n"Usual Suspects, The",,5\ntoy story,,3.5\n',
        "title,rating\nusual suspects,5\nToy Story,3.5\n",
    ],
)
def test_the_same_ratings_in_many_spellings(given, content: str) -> None:  # type: ignore[no-untyped-def]
    read = own_ratings.read(given(content), ITEMS, SCALE)
    assert rows(read) == [("12", 5.0), ("1", 3.5)]
    assert read.unmatched == ()
    assert read.profile(ITEMS["item_id"].tolist()).toarray().tolist() == [[3.5, 0, 5, 0, 0, 0]]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"item_id,rating\n2,4\n")))
    assert rows(own_ratings.read("-", ITEMS, SCALE)) == [("2", 4.0)]


def test_titles_without_a_film_are_reported_with_suggestions(given) -> None:  # type: ignore[no-untyped-def]
    read = own_ratings.read(given("title,year,rating\nToy Stori,1995,4\nSabrina,,2\nGoldenEye,1995,4\n"), ITEMS, SCALE)
    assert rows(read) == [("2", 4.0)]
    assert read.unmatched == (
        "Toy Stori (1995) (did you mean Toy Story (1995)?)",
        "Sabrina (say which year: 1954, 1995)",
    )
    assert read.report.startswith("1 rating matched")
    assert "Toy Story (1995)" in read.report


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("item_id,rating\n", "holds no ratings"),
        ("item_id,stars\n1,4\n", "lacks the column rating.*found item_id,stars"),
        ("name,rating\nToy Story,4\n", r"lacks the column item_id \(or title\).*found name,rating"),
        ("item_id,rating\n1,4\n2,6\n", "line 3: the rating 6 lies outside the scale 1-5"),
        ("item_id,rating\n1,0\n2,\n", "holds no rated film"),
        ("item_id,rating\n1,nan\n", "line 2: the rating nan lies outside"),
        ("item_id,rating\n1,good\n", "line 2: the rating 'good' is not a number"),
        ("item_id,rating\n1,4\n99,4\n98,4\n", "2 film.* not in the catalogue: item_id 99; 98"),
        ("title,year,rating\nNo Such Film,1995,4\n", "No title of .* names a film.*No Such Film"),
        ("title,year,rating\nToy Story,95er,4\n", "line 2: the year '95er' is not a year"),
        ("title,year,rating\nGood, the Bad,1966,4\n", "line 2, has 4 field.*double quotes"),
        ("item_id,rating\n1,4\n2,3\n1,5\n", r"1 \(item_id 1\) twice, in lines 2 and 4"),
        ("title,year,rating\nToy Story,1995,4\ntoy story,,5\n", "toy story .* twice, in lines 2 and 3"),
        (b"PK\x03\x04\xff\xfe\x00", "not UTF-8 text"),
        (b"item_id,rating\n1,\x004\n", "binary file"),
        ('item_id,rating\n"1,4\n', "is not CSV"),
    ],
)
def test_each_mistake_gets_one_paragraph(given, content: str | bytes, says: str) -> None:  # type: ignore[no-untyped-def]
    path = given(content)
    with pytest.raises(InputError, match=says) as error:
        own_ratings.read(path, ITEMS, SCALE)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        own_ratings.read(tmp_path / "none.csv", ITEMS, SCALE)
    with pytest.raises(InputError, match="can't be read"):
        own_ratings.read(tmp_path, ITEMS, SCALE)


def test_a_film_under_two_ids_goes_to_the_first(given) -> None:  # type: ignore[no-untyped-def]
    """Some catalogues list a film twice with the same title and year; the reader must not call that ambiguous."""
    items = pd.DataFrame(
        {"item_id": ["246", "268"], "title": "Chasing Amy", "year": pd.array([1997, 1997], dtype="Int64")}
    )
    read = own_ratings.read(given("title,year,rating\nChasing Amy,1997,4\n"), items, SCALE)
    assert (rows(read), read.unmatched) == ([("246", 4.0)], ())


# ---- the same three films in every kind of file

FILMS = pd.DataFrame(
    {
        "item_id": ["10", "20", "30", "40"],
        "title": ["Usual Suspects, The", "Fargo", "Heat", "Dark City"],
        "year": pd.array([1995, 1996, 1995, 1998], dtype="Int64"),
        "imdb_id": ["tt0114814", "tt0116282", "tt0113277", "tt0118929"],
        "tmdb_id": ["629", "275", "949", None],
    }
)
IMDB = (
    "Const,Your Rating,Date Rated,Title,{more}URL,Title Type,IMDb Rating,Runtime (mins),Year,Genres,Num Votes,"
    "Release Date,Directors\n"
    "tt0114814,10,2020-01-01,Die üblichen Verdächtigen,{m}https://x/,{film},8.5,106,1995,Crime,1,1995-08-16,B. Singer\n"
    "tt0116282,1,,Fargo,{m}https://x/,{film},8.1,98,,Crime,1,,\n"
    "tt2802850,9,2020-01-02,Fargo,{m}https://x/,{series},8.9,53,2014,Crime,1,2014-04-15,\n"
)
OLD_IMDB = (
    '"position","const","created","modified","description","Title","Title type","Directors","{you} rated","IMDb Rating"'
    ',"Runtime (mins)","Year","Genres","Num. Votes","Release Date (month/day/year)","URL"\n'
    '"1","tt0114814","Sun May 12 00:00:00 2013","","","The Usual Suspects","Feature Film","B. Singer","10","8.7",'
    '"106","1995","crime","1","1995-01-25","http://x/"\n'
    '"2","tt0116282","Sun May 12 00:00:00 2013","","","Fargo","Feature Film","Coen","1","8.2","98","1996","","","",""\n'
    '"3","tt2802850","Sun May 12 00:00:00 2013","","","Fargo","TV Series","","9","9","53","2014","","","",""\n'
)
LETTERBOXD = "Date,Name,Year,Letterboxd URI,Rating\n2021-05-02,The Usual Suspects,1995,https://boxd.it/1,5\n" + (
    "2021-05-03,Fargo,1996,https://boxd.it/2,0.5\n"
)
DIARY = (
    "Date,Name,Year,Letterboxd URI,Rating,Rewatch,Tags,Watched Date\n"
    "2021-05-02,The Usual Suspects,1995,https://boxd.it/a,3,,,2021-05-01\n"
    "2021-06-02,The Usual Suspects,1995,https://boxd.it/b,5,Yes,,2021-06-01\n"
    "2021-05-03,Fargo,,https://boxd.it/c,0.5,,,2021-05-03\n"
)
REVIEWS = (
    "Date,Name,Year,Letterboxd URI,Rating,Rewatch,Review,Tags,Watched Date\n"
    '2021-05-02,The Usual Suspects,1995,https://boxd.it/a,5,,"Two lines,\nand a ""quote""",,2021-05-01\n'
    "2021-05-03,Fargo,1996,https://boxd.it/c,0.5,,,,2021-05-03\n"
)
TMDB = (
    "TMDb ID,IMDb ID,Type,Name,Release Date,Season Number,Episode Number,Rating,Your Rating,Date Rated\n"
    "629,tt0114814,movie,The Usual Suspects,1995-07-19T00:00:00Z,,,8.2,10,2022-09-20T00:00:00Z\n"
    "275,,movie,Fargo,1996-03-08T00:00:00Z,,,7.9,0.5,2022-09-20T00:00:00Z\n"
    "275,tt2802850,tv,Fargo,2014-04-15T00:00:00Z,,,8.3,9,2022-09-20T00:00:00Z\n"
)
SIMKL = (
    "SIMKL_ID,Title,Type,Year,Watchlist,LastEpWatched,WatchedDate,Rating,Memo,TVDB,TMDB,IMDB\n"
    "1,The Usual Suspects,movie,1995,completed,,2020-01-01,10,,,629,tt0114814\n"
    "2,Fargo,movie,1996,completed,,2020-01-01,1,,,275,\n3,Fargo,tv,2014,completed,s1e1,,9,,,,tt2802850\n"
)
MOVIELENS = (
    "movie_id,imdb_id,tmdb_id,rating,average_rating,title\n"
    '50,0114814,629,5.0,4.2,"Usual Suspects, The (1995)"\n608,0116282,275,0.5,4.1,Fargo (1996)\n'
)
NETFLIX = (
    "Profile Name,Title Name,Rating Type,Star Value,Thumbs Value,Device Model,Event Utc Ts,Region View Date\n"
    "Me,The Usual Suspects,thumb,,3,TV,2020-01-01 10:00:00,\nMe,Fargo,star,1,,TV,2016-01-01 10:00:00,\n"
    "Me,Fargo: Season 1: The Crocodile's Dilemma,thumb,,2,TV,2020-01-01 10:00:00,\n"
)


def film(title: str, year: int, imdb: str, tmdb: int, **more: object) -> dict[str, object]:
    return {"title": title, "year": year, "ids": {"trakt": tmdb, "simkl": tmdb, "imdb": imdb, "tmdb": tmdb}} | more


SUSPECTS, FARGO = film("The Usual Suspects", 1995, "tt0114814", 629, rating=8.2), film("Fargo", 1996, "tt0116282", 275)
SHOW = film("Fargo", 2014, "tt2802850", 60622)
TRAKT = [
    {"rated_at": "2020-01-01T09:10:11.000Z", "rating": 10, "type": "movie", "movie": SUSPECTS},
    {"rated_at": "2020-01-01T09:10:11.000Z", "rating": 1, "type": "movie", "movie": FARGO},
    {"rated_at": "2020-01-01T09:10:11.000Z", "rating": 9, "type": "show", "show": SHOW},
    {"rated_at": "2020-01-01T09:10:11.000Z", "rating": 9, "type": "episode", "episode": {"title": "x"}, "show": SHOW},
]
SIMKL_JSON = {
    "movies": [
        {"user_rated_at": "2020-01-01T00:00:00Z", "user_rating": 10, "status": "completed", "movie": SUSPECTS},
        {"user_rating": None, "status": "plantowatch", "movie": film("Heat", 1995, "tt0113277", 949)},
    ],
    "shows": [{"user_rating": 9, "show": SHOW}],
    "anime": [{"user_rating": 1, "anime_type": "movie", "show": FARGO}],
}
TMDB_JSON = {
    "page": 1,
    "results": [
        {"id": 629, "title": "The Usual Suspects", "release_date": "1995-07-19", "vote_average": 8.2, "rating": 10.0},
        {"id": 275, "title": "Fargo", "release_date": "1996-03-08", "vote_average": 7.9, "rating": 0.5},
    ],
}


def zipped(**members: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in members.items():
            bundle.writestr(name.replace("__", "/").replace("_csv", ".csv"), text)
    return stream.getvalue()


def imdb(film: str = "movie", series: str = "tvSeries", original: bool = False) -> str:
    more = ("Original Title,", "Something,") if original else ("", "")
    return IMDB.format(more=more[0], m=more[1], film=film, series=series)


EXPORTS = {
    "IMDb export": [
        imdb(), imdb("Film", "Serie TV", original=True), imdb("Spielfilm", "Fernsehserie"), imdb("Película", "Serie"),
        imdb("映画", "テレビシリーズ"), imdb("Téléfilm", "Série télévisée"), imdb("tvMovie", "tvMiniSeries"),
        imdb("Movie", "Video Game"), "\ufeff" + imdb().replace("\n", "\r\n"), imdb().encode("utf-16"),
        imdb().encode("utf-16-le"), imdb().encode("latin-1"),
    ],
    "IMDb export (before 2018)": [OLD_IMDB.format(you="You"), OLD_IMDB.format(you="someone")],
    "Letterboxd export": [LETTERBOXD, DIARY, REVIEWS, zipped(ratings_csv=LETTERBOXD, diary_csv=DIARY,
        watchlist_csv=LETTERBOXD.replace(",5\n", ",2\n"), deleted__ratings_csv=LETTERBOXD.replace(",5\n", ",1\n"),
        profile_csv="Date Joined,Username\n2020-01-01,x\n")],
    "TMDB export": [TMDB], "TMDB list": [json.dumps(TMDB_JSON)], "MovieLens export": [MOVIELENS],
    "Simkl export": [SIMKL, json.dumps(SIMKL_JSON)], "Trakt ratings": [json.dumps(TRAKT), "\ufeff" + json.dumps(TRAKT)],
    "Netflix ratings": [NETFLIX],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "content"), [(kind, c) for kind, contents in EXPORTS.items() for c in contents])
def test_every_export_gives_the_same_ratings(given, kind: str, content: str | bytes) -> None:  # type: ignore[no-untyped-def]
    """The best and the worst rating of each source's scale are 5 and 1 here; the series, game or show is left out."""
    read = own_ratings.read(given(content), FILMS, SCALE)
    assert rows(read) == [("10", 5.0), ("20", 1.0)]
    assert (read.matched, read.unmatched) == (1.0, ())
    assert read.source.startswith(f"{kind}, ")
    assert "2 ratings matched the catalogue (100.0% of 2" in read.report


@pytest.mark.parametrize("name", ["tconst", "imdb_id", "imdbId", "tmdb_id", "movieId", "title"])
def test_a_plain_table_names_films_by_any_id(given, name: str) -> None:  # type: ignore[no-untyped-def]
    films = FILMS.assign(item_id=["296", "356", "2", "9"], title=["Pulp Fiction", "Forrest Gump", "Jumanji", "Heat"])
    ids = {"tmdb_id": ["629", "275.0"], "movieId": ["296", "356"], "title": ["Pulp Fiction", "forrest gump"]}
    one, other = ids.get(name, ["0114814", "https://www.imdb.com/title/tt0116282/"])
    read = own_ratings.read(given(f"{name},rating,note\n{one},5,x\n{other},2.5,\n"), films, SCALE)
    assert rows(read) == [("296", 5.0), ("356", 2.5)]


def test_a_movieid_is_only_used_where_the_catalogue_is_under_movieids(given) -> None:  # type: ignore[no-untyped-def]
    """ML-100K counts its films otherwise: its 2 is GoldenEye, where movieId 2 is Jumanji."""
    with pytest.raises(InputError, match="does not use MovieLens' movieIds"):
        own_ratings.read(given("movieId,rating\n2,5\n"), ITEMS, SCALE)


def test_an_id_says_more_than_a_title(given) -> None:  # type: ignore[no-untyped-def]
    """The series Fargo has another id than the film; no id at all leaves it to title and year."""
    read = own_ratings.read(
        given("imdb_id,title,year,rating\ntt2802850,Fargo,1996,5\n,Heat,1995,4\ntt0118929,x,1901,3\n"), FILMS, SCALE
    )
    assert rows(read) == [("30", 4.0), ("40", 3.0)]
    assert read.raw["matched_by"].tolist() == ["title", "imdb"]
    assert read.unmatched == ("Fargo (1996) (did you mean Fargo (1996)?)",)


# ---- scales


def test_ratings_are_mapped_and_the_originals_kept(given) -> None:  # type: ignore[no-untyped-def]
    """1-10 on 1-5: 1 + (7 - 1) * 4 / 9."""
    read = own_ratings.read(given(imdb().replace("tt0116282,1,", "tt0116282,7,")), FILMS, SCALE)
    assert rows(read)[1][1] == pytest.approx(1 + 6 * 4 / 9)
    assert read.raw[["raw", "lo", "hi"]].to_numpy().tolist() == [[10, 1, 10], [7, 1, 10]]
    assert read.raw["timestamp"].tolist() == [1577836800, 0]  # 2020-01-01 UTC; the other has no date
    assert "scale 1-10 mapped onto 1-5" in read.report
    assert "Left out: 1 of series, episodes or games." in read.report


def test_thumbs_are_dislike_like_and_best(given) -> None:  # type: ignore[no-untyped-def]
    read = own_ratings.read(given(NETFLIX.replace(",,3,", ",,2,").replace("star,1,", "thumb,,1")), FILMS, SCALE)
    assert rows(read) == [("10", SCALE.liked), ("20", SCALE.lo)]


def test_a_table_on_another_scale_is_refused_until_the_scale_is_named(given) -> None:  # type: ignore[no-untyped-def]
    table = given("title,year,rating\nHeat,1995,8\nFargo,1996,3\n")
    with pytest.raises(InputError, match=r"lies outside the scale 1-5 of these data.*--scale 1-10"):
        own_ratings.read(table, FILMS, SCALE)
    read = own_ratings.read(table, FILMS, SCALE, source_scale=parse_scale("1-10"))
    assert rows(read) == [("30", pytest.approx(1 + 7 * 4 / 9)), ("20", pytest.approx(1 + 2 * 4 / 9))]


def test_stars_are_not_taken_for_points(given) -> None:  # type: ignore[no-untyped-def]
    table = given("title,year,rating\nHeat,1995,4.5\nFargo,1996,3\n")
    with pytest.raises(InputError, match=r"end at 4\.5 .* 1-10: they may be stars or points.*--scale 0.5-5"):
        own_ratings.read(table, FILMS, Scale(1, 10))
    read = own_ratings.read(table, FILMS, Scale(1, 10), source_scale=Scale(0.5, 5))
    assert rows(read)[0][1] == pytest.approx(1 + 4 * 9 / 4.5)
    assert len(own_ratings.read(given(LETTERBOXD), FILMS, Scale(1, 10)).frame) == 2  # its scale is known


@pytest.mark.parametrize("text", ["", "ten", "5-1", "1-1", "1-10-5", "-"])
def test_a_scale_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="scale"):
        parse_scale(text)


# ---- views, duplicates, people


@pytest.mark.parametrize(
    "content",
    [
        'Title,Date\n"Heat","1/5/20"\n"Fargo","1/6/20"\n"Fargo: Season 1: The Heap","1/6/20"\n',
        "Profile Name,Start Time,Duration,Attributes,Title,Supplemental Video Type,Device Type,Bookmark,"
        "Latest Bookmark,Country\nMe,2020-01-05 20:00:00,02:50:00,,Heat,,TV,,,US\n"
        "Me,2020-01-06 20:00:00,01:38:00,,Fargo,,TV,,,US\n"
        "Me,2020-01-06 20:00:00,00:01:00,,Dark City,TRAILER,TV,,,US\n",
        "Date,Name,Year,Letterboxd URI\n2020-01-05,Heat,1995,https://boxd.it/1\n2020-01-05,Fargo,1996,https://b/2\n",
        json.dumps([{"watched_at": "2020-01-05T00:00:00Z", "movie": film("Heat", 1995, "tt0113277", 1)},
                    {"watched_at": "2020-01-05T00:00:00Z", "type": "movie", "movie": FARGO}]),
        json.dumps([{"plays": 1, "last_watched_at": "2020-01-05T00:00:00Z", "movie": film("Heat", 1995, "", 949)},
                    {"plays": 1, "last_watched_at": "2020-01-05T00:00:00Z", "movie": FARGO}]),
    ],
)  # fmt: skip
def test_views_are_implicit(given, content: str) -> None:  # type: ignore[no-untyped-def]
    read = own_ratings.read(given(content), FILMS, SCALE)
    assert (len(read.frame), read.views) == (0, ("30", "20"))
    assert read.profile(FILMS["item_id"].tolist()).toarray().tolist() == [[0, 4, 4, 0]]
    assert "0 ratings and 2 views matched" in read.report
    assert "count as 4, the lowest like" in read.report


def test_a_view_among_ratings_counts_as_the_mean_and_never_replaces_a_rating(given) -> None:  # type: ignore[no-untyped-def]
    watched = "Date,Name,Year,Letterboxd URI\n2022-01-01,Fargo,1996,u\n2022-01-01,Heat,1995,u\n"
    read = own_ratings.read(given(zipped(watched_csv=watched, ratings_csv=LETTERBOXD)), FILMS, Scale(0.5, 5))
    assert (dict(rows(read)), read.views) == ({"10": 5.0, "20": 0.5}, ("30",))
    assert read.profile(["30", "20", "10"]).toarray().tolist() == [[(5 + 0.5) / 2, 0.5, 5]]


def test_the_latest_of_several_ratings_counts(given) -> None:  # type: ignore[no-untyped-def]
    read = own_ratings.read(given(DIARY), FILMS, Scale(0.5, 5))
    assert rows(read)[0] == ("10", 5.0)
    assert "Rated more than once, so that the latest rating counts: The Usual Suspects (1995)." in read.report
    dated = "title,year,rating,timestamp\nHeat,1995,2,1600000000\nHeat,1995,4,1500000000\n"
    assert rows(own_ratings.read(given(dated), FILMS, SCALE)) == [("30", 2.0)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("userId,title,year,rating\n1,Heat,1995,4\n2,Fargo,1996,4\n", r"ratings of 2 people \(1; 2\)"),
        (imdb().replace("tt0114814,10", "tt0114814,11"), "line 2: the rating 11 .* 1-10 of IMDb export"),
        (imdb().replace(",10,", ",,").replace(",1,,", ",,,"), "holds no rated film in 3 rows"),
        ("[" * 100_000, "is not JSON"),
        ('{"movies": 3}', "lacks the column rating"),
        ("[1" + "0" * 5000 + "]", "is not JSON"),
        (zipped(readme="x"), "zip without a table of ratings"),
        (zipped(a_csv="a,b\n1,2\n"), "a.csv lacks the column rating"),
        (zipped(ratings_csv=LETTERBOXD)[:150], "can't be read as a zip"),
        ('""', "is empty"),
        (b"\xff\xfe", "is empty"),
        ("title,year,rating\n" + "x" * 10_000_000 + ",1995,4\n", "is not CSV: field larger"),
        ("x" * 10_000_000, "is not CSV: field larger"),
        (json.dumps([{"trakt": 1, "rating": 5, "title": "x" * 10_000_000}]), "No title"),
        ("title,year,rating\n" + "Heat,1995,4\n" * 100_001, "has 100,001 rows; that is not one person's"),
        ("title,year,rating\nHeat," + "9" * 900 + ",4\n", "is not a year"),
    ],
)  # fmt: skip
def test_other_mistakes_get_one_paragraph(given, content: str | bytes, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=says) as error:
        own_ratings.read(given(content), FILMS, SCALE)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2500


def test_a_file_that_is_far_too_large_is_not_read(given, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(own_ratings, "_LIMIT", 1 << 20)
    with pytest.raises(InputError, match="larger than 1 MB"):
        own_ratings.read(given(b"x" * (1 << 21)), FILMS, SCALE)
    with pytest.raises(InputError, match="unpack to 2,097,152 bytes"):
        own_ratings.read(given(zipped(ratings_csv="x" * (1 << 21))), FILMS, SCALE)


# ---- whatever the file


@given_some(st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-16")))
def test_random_bytes_are_told_what_is_wrong(content: bytes) -> None:
    with contextlib.suppress(InputError):
        read_bytes(content)


@given_some(st.sampled_from([zipped(ratings_csv=LETTERBOXD, diary_csv=DIARY), json.dumps(TRAKT).encode(),
                             imdb().encode(), imdb().encode("utf-16")]), st.data())  # fmt: skip
def test_damaged_exports_are_read_or_refused(content: bytes, data: st.DataObject) -> None:
    """Cut anywhere, and a few bytes overwritten."""
    damaged = bytearray(content[: data.draw(st.integers(1, len(content)))])
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        assert 0 <= read_bytes(bytes(damaged)).matched <= 1


CELLS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["tt0114814", "Heat", "1995", "4", "nan", "inf"]
)


@given_some(st.sampled_from([*own_ratings.LAYOUTS, own_ratings.PLAIN]), st.data())
def test_any_cells_under_known_columns_are_read_or_refused(layout: own_ratings.Layout, data: st.DataObject) -> None:
    header = sorted({*layout.needs, *(c.split("|")[0] for c in layout.columns.values())} - {""})
    table = data.draw(st.lists(st.lists(CELLS, min_size=len(header), max_size=len(header)), min_size=1, max_size=4))
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([header, *table])
    records = json.dumps([dict(zip(header, row, strict=True)) for row in table])
    for text in (stream.getvalue(), records):
        try:
            read = read_bytes(text.encode("utf-8", "surrogatepass"))
        except InputError:
            continue
        assert read.frame["rating"].between(SCALE.lo, SCALE.hi).all()
        assert set(read.frame["item_id"]) | set(read.views) <= set(FILMS["item_id"])


def read_bytes(content: bytes) -> own_ratings.OwnRatings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        return own_ratings.read("-", FILMS, SCALE)


# ---- titles as people's exports write them, against a catalogue with namesakes


def test_a_hundred_titles_name_the_right_film_or_none(given) -> None:  # type: ignore[no-untyped-def]
    """titles.csv: a title and year as written somewhere, and the film that is meant; empty where there is none.

    Rows without a written title are films of the catalogue that nobody names.
    """
    table = pd.read_csv(Path(__file__).with_name("titles.csv"), dtype=str, keep_default_na=False)
    films = table.loc[table["title"] != "", ["title", "year"]].drop_duplicates()
    items = films.assign(item_id=films["title"] + films["year"], year=films["year"].astype("Int64"))
    named = table[table["written"] != ""]
    assert len(named) >= 100
    found = []
    for title, year in zip(named["written"], named["written_year"], strict=True):
        try:
            line = f'title,year,rating\n"{title}",{year},4\n'
            found.append(own_ratings.read(given(line), items, SCALE).frame["item_id"].item())
        except InputError:
            found.append("")
    compared = named.assign(found=found, meant=named["title"] + named["year"])
    assert compared[compared["found"] != compared["meant"]].empty


# ---- real exports, which are not part of the repository


@pytest.fixture(scope="module")
def latest_small(shared_data: Path) -> pd.DataFrame:
    with zipfile.ZipFile(shared_data / "ml-latest-small.zip") as bundle:
        movies = pd.read_csv(bundle.open("ml-latest-small/movies.csv"), dtype=str)
        links = pd.read_csv(bundle.open("ml-latest-small/links.csv"), dtype=str)
    parts = [split_year(title) for title in movies["title"]]
    years = pd.array([year for _, year in parts], dtype="Int64")
    items = pd.DataFrame({"item_id": movies["movieId"], "title": [title for title, _ in parts], "year": years})
    return items.assign(imdb_id=links["imdbId"], tmdb_id=links["tmdbId"])


@pytest.mark.parametrize("name", ["imdb-1-ratings.csv", "imdb-2-ratings-converted.csv"])
def test_real_imdb_exports_match_by_id_and_by_title_alike(
    shared_data: Path, latest_small: pd.DataFrame, name: str
) -> None:
    """A film of the export exists in the catalogue when its IMDb id does; titles alone find 95 % of those."""
    file, blind = shared_data / "user-exports" / name, latest_small.drop(columns=["imdb_id", "tmdb_id"])
    table = pd.read_csv(file)
    numbers = set(latest_small["imdb_id"].astype(int))
    there = table["Const"].str[2:].astype(int).isin(numbers) & table["Title Type"].str.contains(
        "movie|short", case=False
    )
    by_id = own_ratings.read(file, latest_small, Scale(0.5, 5))
    assert int((by_id.raw["matched_by"] == "imdb").sum()) == int(there.sum())
    by_title = own_ratings.read(file, blind, Scale(0.5, 5))
    known = set(by_id.frame["item_id"])
    assert len(known & set(by_title.frame["item_id"])) >= 0.95 * len(known)


@pytest.mark.parametrize("name", ["letterboxd-1-ratings.csv", "letterboxd-2-ratings.csv"])
def test_real_letterboxd_exports_match(shared_data: Path, latest_small: pd.DataFrame, name: str) -> None:
    """Letterboxd gives no id, so a film exists when its title is that of the catalogue or IMDb's for the same film."""
    file = shared_data / "user-exports" / name
    own = own_ratings.read(file, latest_small, Scale(0.5, 5))
    imdb = pd.read_csv(shared_data / "imdb" / "latest-small-imdb-2019.csv.gz", dtype=str)
    there = {(normalise(title), year) for title, year in map(split_year, imdb["title"])}
    table = pd.read_csv(file)
    matched = set(zip(table["Name"], table["Year"], strict=True))
    missed = [
        shown for shown in own.unmatched
        for title, year in [split_year(shown.split(" (did you mean")[0].split(" (say which")[0])]
        if any((normalise(title), (year or 0) + off) in there for off in (-1, 0, 1))
    ]  # fmt: skip
    assert len(own.frame) + len(own.unmatched) == len(matched)
    assert len(own.frame) >= 0.95 * (len(own.frame) + len(missed))


def test_a_tab_separated_table_may_end_in_an_empty_field(tmp_path: Path) -> None:
    table = tmp_path / "tabs.tsv"
    table.write_text("title\trating\tyear\nHeat\t5\t1995\nFargo\t4\t\n", encoding="utf-8")
    assert sorted(own_ratings.read(table, FILMS, SCALE).frame["item_id"]) == ["20", "30"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sep=;\ntitle;year;rating\nHeat;1995;4,5\nFargo;1996;3;;\n", {"30": 4.5, "20": 3}),
        ("title,rating\nHeat (1995),4/5\nFargo (1990),2\nDark City,0\n", {"30": 4}),
        ("Title,Year,imdbID,Rating10\nx,,tt0113277,10\ny,,tt0116282,1\n", {"30": 5, "20": 1}),
        ('{"title": "Heat", "rating": 4}\n{"title": "Fargo", "rating": null}\n', {"30": 4}),
        ("title,rating,timestamp\nHeat,2,1500000000000\nHeat,4,1600000000000\n", {"30": 4}),
        (gzip.compress(b"title,rating\nHeat,4\n"), {"30": 4}),
        (json.dumps({"movies": [SUSPECTS | {"rating": 10}], "shows": [SHOW | {"rating": 1}]}), {"10": 5}),
        (NETFLIX.replace("star,1,", "star,-1,"), {"10": 5}),
        ("rated_at,type,title,trakt_rating,imdb_id,rating\n,movie,x,8,tt0113277,10\n,show,Fargo,8,,9\n", {"30": 5}),
    ],
)
def test_spellings_that_were_refused_or_misread(given, content: str | bytes, expected: dict[str, float]) -> None:  # type: ignore[no-untyped-def]
    assert dict(rows(own_ratings.read(given(content), FILMS, SCALE))) == expected


def test_a_workbook_is_named(given) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="Excel workbook"):
        own_ratings.read(given(zipped(xl__workbook__xml="x").replace(b"workbook/xml", b"workbook.xml")), FILMS, SCALE)
