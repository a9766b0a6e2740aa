"""The catalogue: joining films with facts, and the checks the tables have to pass."""

from __future__ import annotations

import pandas as pd
import pytest

from recsys_utils import catalogue
from recsys_utils.interfaces import InputError, Scale


def films() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": ["10", "9", "1"],
            "title": ["Ten", "Nine", "One"],
            "year": pd.array([1990, None, 1991], dtype="Int64"),
            "genres": [["War"], [], ["Film-Noir", "Drama"]],
        }
    )


def facts(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["item_id", "relation", "entity"])


GRAPH = facts(
    ("9", "film.film.actor", "m.b"),
    ("9", "film.film.actor", "m.a"),
    ("9", "film.film.actor", "m.a"),  # said twice: one token
    ("9", "film.film.award_won", "m.prize"),  # not part of the soup
    ("9", "film.actor.film", "m.c"),  # an inverse relation: not a fact about this film
    ("1", "film.film.subjects", "m.s"),
    ("1", "film.film.written_by", "m.w"),
    ("77", "film.film.actor", "m.z"),  # a film the catalogue does not hold
)


def ratings(**changes: object) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"user_id": ["ml_1", "ml_2"], "item_id": ["10", "9"], "rating": [4.0, 5.0], "timestamp": [3, 4]}
    )
    return frame.assign(**changes).astype({"rating": "float32"})


def test_rows_come_in_natural_order_with_all_columns() -> None:
    items = catalogue.build(films(), GRAPH)
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
    items = catalogue.build(films(), None)
    assert items["actors"].tolist() == [[], [], []]
    assert items["genres"].tolist() == [["Film-Noir", "Drama"], [], ["War"]]


def test_what_the_films_bring_is_kept() -> None:
    rich = films().assign(overview=["a", "b", "c"], actors=[["x"], [], ["y"]], imdb_id=["tt1", None, "tt2"])
    items = catalogue.build(rich, None)
    assert items["overview"].tolist() == ["c", "b", "a"]
    assert items["actors"].tolist() == [["y"], [], ["x"]]
    assert items["imdb_id"].fillna("-").tolist() == ["tt2", "-", "tt1"]


def test_an_id_stands_for_one_film() -> None:
    twice = pd.concat([films(), films().head(1)])
    with pytest.raises(InputError, match="'10' stands for two films"):
        catalogue.build(twice, None)


def test_coverage_counts_films_and_weighs_ratings() -> None:
    items = catalogue.build(films(), GRAPH)
    table = catalogue.coverage(items, ratings()).set_index("field")
    assert table.loc["actors", ["films", "share_of_ratings"]].tolist() == [1, 1 / 2]  # film 9: one of two ratings
    assert table.loc["genres", "share_of_films"] == 2 / 3
    assert table.loc["year", "films"] == 2


def test_good_tables_pass() -> None:
    catalogue.check(ratings(), catalogue.build(films(), GRAPH), Scale(1, 5), "ml_")


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
    items = catalogue.build(films(), GRAPH)
    with pytest.raises(InputError, match=says):
        catalogue.check(table, items, Scale(1, 5), "ml_")


def test_bad_items_are_named() -> None:
    items = catalogue.build(films(), GRAPH)
    with pytest.raises(InputError, match="natural order"):
        catalogue.check(ratings(), items.iloc[::-1], Scale(1, 5), "ml_")
    with pytest.raises(InputError, match="genres"):
        catalogue.check(ratings(), items.assign(genres="War"), Scale(1, 5), "ml_")
    with pytest.raises(InputError, match="year"):
        catalogue.check(ratings(), items.assign(year=pd.array([1, 2, 3], dtype="Int64")), Scale(1, 5), "ml_")
