"""Files about films: known by their columns, filtered to the films at hand, read in their own dialects."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_utils.base import InputError
from recsys_utils.data.catalogue import merge
from recsys_utils.personal import film_facts as providers

KNOWN = pd.DataFrame({"imdb_id": ["tt0114709", "tt0076759", None], "tmdb_id": ["862", "11", None]}, dtype="string")
WORDS = [{"id": 1, "name": "jealousy"}, {"id": 2, "name": "boy's toy"}, {"id": 3, "name": "jealousy"}]


def write(path: Path, columns: list[str], *rows: list[str]) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def told(path: Path) -> dict[str, object]:
    [facts] = providers.read([path], KNOWN)[path]
    return facts.table.set_index("tmdb_id").loc["862"].to_dict()


def test_json_and_python_literals_say_the_same(tmp_path: Path) -> None:
    overview = 'A "cowboy"\ndoll, jealous.'
    columns = ["budget", "id", "keywords", "genres", "overview"]
    five = write(
        tmp_path / "a.csv", columns, ["1", "862", json.dumps(WORDS), '[{"id": 16, "name": "Animation"}]', overview]
    )
    kaggle = write(
        tmp_path / "b.csv", columns, ["1", "862", repr(WORDS), "[{'id': 16, 'name': 'Animation'}]", overview]
    )
    assert told(five) == told(kaggle)
    assert told(five) == {"keywords": ["jealousy", "boy's toy"], "genres": ["Animation"], "overview": overview}


def test_cast_in_billing_order_and_crew_by_trade(tmp_path: Path) -> None:
    cast = [{"name": "Tim Allen", "order": 1}, {"name": "Tom Hanks", "order": 0}, {"name": "", "order": 2}]
    crew = [{"name": "John Lasseter", "job": "Director"}, {"name": "Joss Whedon", "department": "Writing"}]
    path = write(tmp_path / "c.csv", ["movie_id", "cast", "crew"], ["862", json.dumps(cast), json.dumps(crew)])
    assert told(path) == {
        "actors": ["Tom Hanks", "Tim Allen"],
        "directors": ["John Lasseter"],
        "writers": ["Joss Whedon"],
    }
    [facts] = providers.read([path], KNOWN)[path]
    assert facts.ordered
    assert "not endorsed or certified by TMDB" in facts.source.attribution
    assert not facts.source.may_redistribute


@given(
    st.text(max_size=60) | st.sampled_from(["[" * 5000, "[{'a': 1", '[1, "x", null]', "{}", "None", "[{'name': 7}]"])
)
def test_a_field_that_is_no_list_of_objects_is_empty_or_names(text: str) -> None:
    names = providers._named(providers._records(text))
    assert all(isinstance(name, str) and name for name in names)


def imdb(folder: Path) -> list[Path]:
    """IMDb's dialect: tab, no quoting, \\N for nothing, a lone quotation mark in a title."""
    files = {
        "title.basics.tsv": "tconst\ttitleType\tprimaryTitle\tgenres\n"
        'tt0114709\tmovie\tToy "Story\tAnimation,Comedy\n'
        "tt0000001\tshort\tCarmencita\tShort\ntt0076759\tmovie\tStar Wars\t\\N\n",
        "title.crew.tsv": "tconst\tdirectors\twriters\ntt0114709\tnm1\tnm2,nm9\ntt0076759\tnm3\t\\N\n",
        "title.principals.tsv": "tconst\tordering\tnconst\tcategory\ntt0114709\t10\tnm6\tactor\n"
        "tt0114709\t2\tnm4\tactor\ntt0114709\t3\tnm1\tdirector\ntt0114709\t1\tnm5\tactress\n",
        "title.ratings.tsv": "tconst\taverageRating\tnumVotes\ntt0114709\t8.3\t1000000\ntt0000001\t5.7\t1\n",
        "name.basics.tsv": "nconst\tprimaryName\n"
        "nm1\tJohn Lasseter\nnm2\tPete Docter\nnm4\tTom Hanks\nnm5\tAnnie Potts\n",
    }
    for name, text in files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode(), mtime=1_600_000_000))
    return [folder / f"{name}.gz" for name in files]


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
def test_imdb_files_speak_together_whatever_the_size_of_a_block(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, block: int
) -> None:
    monkeypatch.setattr(providers, "_BLOCK", block)
    paths = imdb(tmp_path)
    got = providers.read(paths, KNOWN)
    [facts] = got[paths[0]]
    assert [got[p] for p in paths[1:]] == [[], [], [], []]
    film = facts.table.set_index("imdb_id").loc["tt0114709"]
    assert film["genres"] == ["Animation", "Comedy"]
    assert (film["directors"], film["writers"]) == (["John Lasseter"], ["Pete Docter", "nm9"])  # nm9 has no name
    assert film["actors"] == ["Annie Potts", "Tom Hanks", "nm6"]  # by ordering as a number; the director is no actor
    assert (film["imdb_rating"], film["imdb_votes"]) == (8.3, 1_000_000)
    assert set(facts.table["imdb_id"]) == {"tt0114709", "tt0076759"}
    assert facts.source.snapshot == "2020-09-13"  # 1,600,000,000 s after 1970
    films = pd.DataFrame({"item_id": ["1"], "title": ["Toy Story"], "year": [1995], "imdb_id": ["tt0114709"]})
    merged = merge(films, [facts])
    assert merged.items["actors"].tolist() == [film["actors"]]
    assert merged.has_billing_order


def test_a_zip_holds_several_tables(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as bundle:
        bundle.writestr("x/keywords.csv", "id,keywords\n862,\"[{'id': 1, 'name': 'toy'}]\"\n")
        bundle.writestr("x/credits.csv", 'id,top_cast,director\n862,"Tom Hanks, Tim Allen",John Lasseter\n')
        bundle.writestr("x/links.csv", "movieId,imdbId,tmdbId\n1,0114709,862\n")  # of no use here
    first, second = providers.read([tmp_path / "both.zip"], KNOWN)[tmp_path / "both.zip"]
    assert first.table["keywords"].tolist() == [["toy"]]
    assert second.table[["actors", "directors"]].to_numpy().tolist() == [
        [["Tom Hanks", "Tim Allen"], ["John Lasseter"]]
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"x,y\n1,2\n", "no table of a known source"),
        ("a.csv", b"", "no table of a known source"),
        ("a.tsv", b"tconst\tplot\ntt1\tx\n", "has tconst and plot; no file of IMDb has these"),
        ("a.gz", b"not gzip", "can't be read"),
        ("a.csv", b"\xff\xfe\x00", "can't be read"),
    ],
)
def test_a_file_that_says_nothing_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        providers.read([tmp_path / name], KNOWN)
    with pytest.raises(InputError, match="there is no file"):
        providers.read([tmp_path / "none.csv"], KNOWN)


def test_real_files_cover_what_is_known_about_them(shared_data: Path) -> None:
    """Shares stated in the notes on these copies: keywords.csv has 9,544 of latest-small's 9,734 TMDB ids."""
    with zipfile.ZipFile(shared_data / "ml-latest-small.zip") as bundle:
        links = pd.read_csv(bundle.open("ml-latest-small/links.csv"), dtype=str)
    known = pd.DataFrame({"imdb_id": "tt" + links["imdbId"], "tmdb_id": links["tmdbId"]})
    path = shared_data / "the-movies-dataset-partial.zip"
    tables = {frozenset(f.table) - {"tmdb_id"}: f.table for f in providers.read([path], known)[path]}
    assert known["tmdb_id"].isin(tables[frozenset({"keywords"})]["tmdb_id"]).sum() == 9_544
    ratings = shared_data / "imdb" / "title.ratings.tsv.gz"
    [facts] = providers.read([ratings], known)[ratings]
    assert len(facts.table) == 9_665
