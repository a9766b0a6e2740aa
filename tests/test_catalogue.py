"""The catalogue: joining films with facts, and the checks the tables have to pass."""

from __future__ import annotations

import pandas as pd
import pytest

from recsys_utils.base import InputError, Scale
from recsys_utils.data import catalogue
from recsys_utils.data.catalogue import Facts, Source, merge


def films() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": ["10", "9", "1"],
            "title": ["Ten", "Nine", "One"],
            "year": pd.array([1990, None, 1991], dtype="Int64"),
            "genres": [["War"], [], ["Film-Noir", "Drama"]],
        }
    )


GRAPH = Facts(
    Source("graph", "CC BY", "Freebase"),
    pd.DataFrame(
        {
            "item_id": ["9", "1", "77"],  # the last is a film the catalogue does not hold
            "actors": [["m.a", "m.b"], [], ["m.z"]],
            "keywords": [None, ["m.s"], None],
            "writers": [[], ["m.w"], []],
        }
    ),
)


def ratings(**changes: object) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"user_id": ["ml_1", "ml_2"], "item_id": ["10", "9"], "rating": [4.0, 5.0], "timestamp": [3, 4]}
    )
    return frame.assign(**changes).astype({"rating": "float32"})


def test_rows_come_in_natural_order_with_all_columns() -> None:
    items = merge(films(), [GRAPH]).items
    assert items.columns.tolist() == catalogue.COLUMNS
    assert items["item_id"].tolist() == ["1", "9", "10"]
    assert items["genres"].tolist() == [["Film-Noir", "Drama"], [], ["War"]]
    assert items["actors"].tolist() == [[], ["m.a", "m.b"], []]
    assert items["keywords"].tolist() == [["m.s"], [], []]
    assert items["writers"].tolist() == [["m.w"], [], []]
    assert items["directors"].tolist() == [[], [], []]
    assert items["overview"].tolist() == ["", "", ""]
    assert items["imdb_id"].isna().all()


def test_without_graph_only_genres_remain() -> None:
    items = merge(films()).items
    assert items["actors"].tolist() == [[], [], []]
    assert items["genres"].tolist() == [["Film-Noir", "Drama"], [], ["War"]]


def test_what_the_films_bring_is_kept() -> None:
    rich = films().assign(overview=["a", "b", "c"], actors=[["x"], [], ["y"]], imdb_id=["tt1", None, "tt2"])
    items = merge(rich).items
    assert items["overview"].tolist() == ["c", "b", "a"]
    assert items["actors"].tolist() == [["y"], [], ["x"]]
    assert items["imdb_id"].fillna("-").tolist() == ["tt2", "-", "tt1"]


def test_an_id_stands_for_one_film() -> None:
    twice = pd.concat([films(), films().head(1)])
    with pytest.raises(InputError, match="'10' occurs twice"):
        merge(twice)


def test_coverage_counts_films_and_weighs_ratings() -> None:
    items = merge(films(), [GRAPH]).items
    table = catalogue.coverage(items, ratings()).set_index("field")
    assert table.loc["actors", ["films", "share_of_ratings"]].tolist() == [1, 1 / 2]  # film 9: one of two ratings
    assert table.loc["genres", "share_of_films"] == 2 / 3
    assert table.loc["year", "films"] == 2


def test_good_tables_pass() -> None:
    catalogue.check(ratings(), merge(films(), [GRAPH]).items, Scale(1, 5), "ml_")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (ratings(rating=[4.0, 6.0]), r"ratings\.rating"),
        (ratings(user_id=["ml_1", "2"]), r"ratings\.user_id"),
        (ratings(item_id=["10", "11"]), r"ratings\.item_id.*'11'"),
        (ratings(user_id="ml_1", item_id="10"), "duplicate|unique"),
        (ratings(timestamp=[1, -1]), r"ratings\.timestamp"),
        (ratings().drop(columns="timestamp"), "timestamp"),
        (ratings(extra=1), "extra"),
    ],
)
def test_bad_ratings_are_named(table: pd.DataFrame, says: str) -> None:
    items = merge(films(), [GRAPH]).items
    with pytest.raises(InputError, match=says):
        catalogue.check(table, items, Scale(1, 5), "ml_")


def test_bad_items_are_named() -> None:
    items = merge(films(), [GRAPH]).items
    with pytest.raises(InputError, match="natural order"):
        catalogue.check(ratings(), items.iloc[::-1], Scale(1, 5), "ml_")
    with pytest.raises(InputError, match="genres"):
        catalogue.check(ratings(), items.assign(genres="War"), Scale(1, 5), "ml_")
    with pytest.raises(InputError, match="year"):
        catalogue.check(ratings(), items.assign(year=pd.array([1, 2, 3], dtype="Int64")), Scale(1, 5), "ml_")


def test_a_field_comes_whole_from_the_first_source_that_has_it() -> None:
    first = Facts(Source("ids", "", "Names"), pd.DataFrame({"item_id": ["9", "10"], "tmdb_id": ["99", None]}))
    tmdb = pd.DataFrame({"tmdb_id": ["99"], "genres": [["Comedy"]], "actors": [["Z"]], "overview": ["Nine lives."]})
    tmdb_facts = Facts(Source("tmdb", "", "TMDB"), tmdb, key="tmdb_id", ordered=True)
    unused = Facts(Source("unused", "", "Nobody"), pd.DataFrame({"item_id": ["1"], "genres": [["War"]]}))
    got = merge(films(), [first, tmdb_facts, GRAPH, unused])
    nine = got.items.set_index("item_id").loc["9"]
    assert (nine["genres"], nine["actors"], nine["overview"]) == (["Comedy"], ["Z"], "Nine lives.")
    assert merge(films(), [first, GRAPH, tmdb_facts]).items["actors"].tolist()[1] == ["m.a", "m.b"]
    assert got.origin.values.tolist() == [
        ["ids", "tmdb_id", 1],
        ["tmdb", "genres", 1],
        ["tmdb", "actors", 1],
        ["tmdb", "overview", 1],
        ["graph", "keywords", 1],
        ["graph", "writers", 1],
    ]
    assert got.meta()["attribution"] == ["Names", "TMDB", "Freebase"]  # who added nothing is not named
    assert got.has_billing_order
    assert not merge(films(), [GRAPH]).has_billing_order
