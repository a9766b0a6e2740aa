"""The tables a run starts from: links for sets without, doubles, sources in order."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_datasets import LATER, OFFICIAL, Site, pack, site, tiny  # noqa: F401 - fixtures

from recsys_study import ingest
from recsys_utils.base import InputError
from recsys_utils.data import catalogue
from recsys_utils.data.fetch import Dataset, Fetched, fetch, find_dataset
from recsys_utils.data.titles import doubles
from recsys_utils.personal import film_facts as providers

THREE = {
    "movies.csv": 'movieId,title,genres\n1,Jumanji (1995),War\n73,"Misérables, Les (1995)",Drama\n',
    "links.csv": "movieId,imdbId,tmdbId\n1,0113497,8844\n73,0113828,4415\n",
    "tags.csv": "userId,movieId,tag,timestamp\n1,73,prison,1\n1,1,jungle,1\n",
}


@pytest.fixture
def fetched(tiny: Dataset, tmp_path: Path) -> Fetched:  # noqa: F811
    return fetch("ml-100k", archive=pack(tmp_path / "a.zip", OFFICIAL), raw=tmp_path / "raw")


@pytest.fixture
def links(tmp_path: Path) -> Path:
    return pack(tmp_path / "links.zip", {name: text.encode() for name, text in THREE.items()}, "small/")


def test_links_of_a_later_edition_go_through_the_crosswalk(fetched: Fetched, links: Path) -> None:
    """Film 1 here is Les Misérables (73 there); film 1 there is Jumanji. A join by id would have made it that."""
    got = ingest.build(fetched, links=links)
    assert got.items["imdb_id"].fillna("-").tolist() == ["tt0113828", "-", "-"]
    assert got.items["tmdb_id"].fillna("-").tolist() == ["4415", "-", "-"]
    assert got.items["keywords"].tolist() == [["prison"], [], []]
    assert got.crosswalk is not None
    assert got.crosswalk.table["movieId"].fillna("-").tolist() == ["73", "-", "-"]
    catalogue.check(got.ratings, got.items, fetched.dataset.scale, "ml_")
    meta = got.meta(fetched)
    assert [s["name"] for s in meta["sources"]] == ["links", "tags"]
    assert "links.zip" in meta["attribution"][0]
    assert ingest.build(fetched).crosswalk is None


def test_sources_are_asked_in_the_order_given(fetched: Fetched, links: Path, tmp_path: Path) -> None:
    words = tmp_path / "keywords.csv"
    words.write_text("id,keywords\n4415,\"[{'id': 1, 'name': 'france'}]\"\n", encoding="utf-8")
    first = ingest.build(fetched, links=links, sources=[str(words), "tags"])
    assert first.items["keywords"].tolist()[0] == ["france"]
    assert ingest.build(fetched, links=links, sources=["tags", str(words)]).items["keywords"].tolist()[0] == ["prison"]
    assert ingest.build(fetched, links=links, sources=[]).items["keywords"].tolist()[0] == []


def test_the_api_is_asked_where_it_is_named_at_its_place(
    fetched: Fetched, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def film(self: providers.TmdbApi, number: str) -> providers.Film:
        asked.append(number)
        return {"keywords": ["bread"], "overview": "A loaf."}

    monkeypatch.setattr(providers.TmdbApi, "film", film)
    monkeypatch.delenv(providers.TMDB_TOKEN, raising=False)
    assert ingest.build(fetched, links=links).items["overview"].tolist() == ["", "", ""], "only where it is named"
    with pytest.raises(InputError, match=providers.TMDB_TOKEN):
        ingest.build(fetched, links=links, sources=["tags", "tmdb"], interim=tmp_path)
    monkeypatch.setenv(providers.TMDB_TOKEN, "abc")
    got = ingest.build(fetched, links=links, sources=["tags", "tmdb"], interim=tmp_path)
    assert asked == ["4415"], "only films of the data set, by the id of the right film"
    assert got.items[["keywords", "overview"]].iloc[0].tolist() == [["prison"], "A loaf."]
    meta = got.meta(fetched)
    assert meta["notes"][-1] == providers.TMDB_NOTICE
    assert meta["attribution"][-1] == "This product uses the TMDB API but is not endorsed or certified by TMDB."
    [terms] = [s for s in meta["sources"] if s["name"] == "tmdb"]
    assert terms["snapshot"]
    assert not terms["may_redistribute"]
    first = ingest.build(fetched, links=links, sources=["tmdb", "tags"], interim=tmp_path)
    assert first.items["keywords"].tolist()[0] == ["bread"]


def test_films_and_their_counterparts_carry_imdbs_numbers(fetched: Fetched, links: Path, tmp_path: Path) -> None:
    rated = tmp_path / "title.ratings.tsv"
    rated.write_text("tconst\taverageRating\tnumVotes\ntt0113828\t7.5\t9000\ntt0113497\t7.1\t400000\n")
    got = ingest.build(fetched, links=links, sources=[str(rated)])
    assert got.items["movie_id"].fillna("-").tolist() == ["73", "-", "-"]
    assert got.items["imdb_rating"].fillna(0).tolist() == [7.5, 0, 0]
    assert got.items["imdb_votes"].fillna(0).tolist() == [9000, 0, 0]
    assert got.later is not None
    assert dict(zip(got.later["item_id"], got.later["imdb_votes"], strict=True)) == {"1": 400_000, "73": 9000}
    catalogue.check(got.ratings, got.items, fetched.dataset.scale, "ml_")


def test_a_decision_overrules_the_match(fetched: Fetched, links: Path, tmp_path: Path) -> None:
    review = tmp_path / "review.csv"
    review.write_text("item_id,movieId,decision\n1,73,no\n10,1,yes\n")
    got = ingest.build(fetched, links=links, review=review)
    assert got.items["imdb_id"].fillna("-").tolist() == ["-", "-", "tt0113497"]


def test_what_cannot_be_is_refused(fetched: Fetched, links: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.review needs dataset\.links"):
        ingest.build(fetched, review=tmp_path / "r.csv")
    with pytest.raises(InputError, match=r"dataset\.links: .* has no folder with links\.csv"):
        ingest.build(fetched, links=pack(tmp_path / "b.zip", OFFICIAL))
    (tmp_path / "c.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="can't be read as a zip archive"):
        ingest.build(fetched, links=tmp_path / "c.zip")
    own = fetch("ml-latest", archive=pack(tmp_path / "l.zip", LATER, ""), raw=tmp_path)
    with pytest.raises(InputError, match="has its own links"):
        ingest.build(own, links=links)


def test_later_sets_share_one_id_space(tmp_path: Path, links: Path) -> None:
    bare = {name: LATER[name] for name in ("ratings.csv", "movies.csv")}
    own = fetch("ml-latest", archive=pack(tmp_path / "l.zip", bare, ""), raw=tmp_path)
    got = ingest.build(own, links=links)
    assert got.items["movie_id"].tolist() == got.items["item_id"].tolist()
    assert got.items["imdb_id"].fillna("-").tolist() == ["tt0113497", "-"]  # by id: movieId 1 is movieId 1
    assert got.crosswalk is None


def test_one_film_for_two_ids_and_the_later_rating() -> None:
    films = pd.DataFrame({"item_id": ["246", "1", "268"], "title": ["Chasing Amy", "A", "Chasing Amy"], "year": 1997})
    rows = [
        ("u", "246", 3.0, 5),
        ("u", "268", 4.0, 9),
        ("v", "268", 1.0, 2),
        ("v", "1", 2.0, 1),
        ("w", "246", 5.0, 9),
        ("w", "268", 2.0, 8),
    ]
    ratings = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    kept, left, [done] = ingest.merge_twins(ratings, films)
    assert list(kept.itertuples(index=False, name=None)) == [
        ("u", "246", 4.0, 9),  # the later of two
        ("v", "246", 1.0, 2),
        ("v", "1", 2.0, 1),
        ("w", "246", 5.0, 9),
    ]
    assert left["item_id"].tolist() == ["246", "1"]
    assert "3 ratings moved" in done
    assert "2 gave way" in done


def test_ml_100k_has_eighteen_doubles(shared_data: Path, tmp_path: Path) -> None:
    layout = find_dataset("ml-100k").layouts["official zip"]
    with zipfile.ZipFile(shared_data / "ml-100k.zip") as bundle:
        films = layout.films({name: bundle.read(f"ml-100k/{name}") for name in layout.members})
    assert len(doubles(films)) == 18


def test_a_share_is_for_generated_data() -> None:
    smaller = ingest.build(fetch("smoke", raw=Path("unused")), share=0.5)
    assert smaller.truth is not None
    assert smaller.ratings["user_id"].nunique() == smaller.truth.size.users == 100
    assert "share of 0.5" in smaller.notes[0]
    with pytest.raises(InputError, match=r"dataset\.share = 0\.5: ml-1m is not generated"):
        ingest.build(Fetched(find_dataset("ml-1m"), None, None, "nowhere"), share=0.5)


def kin(shift: int) -> pd.DataFrame:
    """Forty films of two kinds; each director makes one kind, if facts are of the right films (shift 0)."""
    rng = np.random.default_rng(4)
    kind = rng.integers(2, size=40)
    crew = [[f"d{k}{n % 3}"] for n, k in enumerate(kind)]
    genres = [["War", "Drama"] if k else ["Comedy"] for k in kind]
    return pd.DataFrame({"genres": genres, "directors": [crew[(n + shift) % 40] for n in range(40)]})


def test_facts_of_the_right_films_follow_their_genres_and_others_do_not() -> None:
    right, wrong = (ingest.alike(kin(shift), np.random.default_rng(0)) for shift in (0, 1))
    assert right["cosine"].item() == pytest.approx(1)
    assert right["p"].tolist() == [1 / 200], "no deal of 199 reaches it"
    assert wrong["p"].item() > 0.05
    assert right["pairs"].item() == wrong["pairs"].item() > 100


def test_facts_that_no_two_films_share_tell_nothing() -> None:
    films = pd.DataFrame(
        {"genres": [["War"], ["War"], []], "directors": [["a"], ["b"], ["a"]], "writers": [[], [], []]}
    )
    assert ingest.alike(films, np.random.default_rng(0)).empty
