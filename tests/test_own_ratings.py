"""A person's own ratings: what is understood, and what each mistake is told."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from recsys_utils import own_ratings
from recsys_utils.interfaces import InputError, Scale

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
    assert read.report.startswith("1 rating(s) matched")
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
        ("item_id,rating\n1,0\n", "line 2: the rating 0 lies outside the scale 1-5"),
        ("item_id,rating\n1,nan\n", "line 2: the rating nan lies outside"),
        ("item_id,rating\n1,good\n", "line 2: the rating 'good' is not a number"),
        ("item_id,rating\n1,\n", "line 2: the rating '' is not a number"),
        ("item_id,rating\n1,4\n99,4\n98,4\n", "2 film.* not in the catalogue: item_id 99; 98"),
        ("title,year,rating\nNo Such Film,1995,4\n", "No title of .* names a film.*No Such Film"),
        ("title,year,rating\nToy Story,95er,4\n", "line 2: the year '95er' is not a year"),
        ("title,year,rating\nGood, the Bad,1966,4\n", "line 2, has 4 field.*double quotes"),
        ("item_id,rating\n1,4\n2,3\n1,5\n", r"Toy Story \(item_id 1\) twice, in lines 2 and 4"),
        ("title,year,rating\nToy Story,1995,4\ntoy story,,5\n", "Toy Story .* twice, in lines 2 and 3"),
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
    with pytest.raises(InputError, match="no ratings file"):
        own_ratings.read(tmp_path / "none.csv", ITEMS, SCALE)
    with pytest.raises(InputError, match="can't be read"):
        own_ratings.read(tmp_path, ITEMS, SCALE)


def test_a_film_under_two_ids_goes_to_the_first() -> None:
    """Some catalogues list a film twice with the same title and year; the reader must not call that ambiguous."""
    items = pd.DataFrame(
        {"item_id": ["246", "268"], "title": "Chasing Amy", "year": pd.array([1997, 1997], dtype="Int64")}
    )
    unmatched: list[str] = []
    index = own_ratings.TitleIndex(items["title"].tolist(), [1997, 1997])
    found = own_ratings._by_title({"title": "Chasing Amy", "year": "1997"}, 2, "x", items, index, unmatched)
    assert (found, unmatched) == ("246", [])
