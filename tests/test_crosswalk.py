"""Titles that mean the same film, and titles that don't."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_utils.crosswalk import TitleIndex, names, normalise, split_year


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Usual Suspects, The", "The Usual Suspects"),
        ("Misérables, Les", "Les Misérables"),
        ("Misérables, Les", "les miserables"),
        ("Schindler's List", "Schindlers List"),
        ("Star Trek: The Wrath of Khan", "Star Trek - The Wrath of Khan"),
        ("Romeo & Juliet", "Romeo and Juliet"),
        ("M*A*S*H", "m a s h"),
        ("Amélie", "AMÉLIE"),  # composed and decomposed accents
    ],
)
def test_spellings_of_one_title_agree(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), [("Alien", "Aliens"), ("Batman", "Batman Returns"), ("Die Hard", "Hard")])
def test_different_titles_stay_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_more_than_articles(title: str) -> None:
    """The normal form holds no upper case, no punctuation and no outer blanks."""
    form = normalise(title)
    assert form == form.strip()
    assert all(c.isalnum() or c in " _" for c in form)


def test_split_year() -> None:
    assert split_year("2001: A Space Odyssey (1968)") == ("2001: A Space Odyssey", 1968)
    assert split_year("unknown") == ("unknown", None)
    assert split_year("Seven (Se7en) (1995)") == ("Seven (Se7en)", 1995)
    assert split_year("Land Before Time III (1995) (V)") == ("Land Before Time III", 1995)


def test_an_aka_in_brackets_is_a_name_too() -> None:
    assert names("Seven (a.k.a. Se7en)") == ["seven a k a se7en", "seven", "se7en"]


@pytest.fixture
def index() -> TitleIndex:
    titles = ["Heat", "Sabrina", "Sabrina", "City of Lost Children, The (Cité des enfants perdus, La)", "unknown"]
    return TitleIndex(titles, [1995, 1954, 1995, 1995, None])


def test_the_year_decides_between_namesakes(index: TitleIndex) -> None:
    assert index.find("Sabrina", 1995) == [2]
    assert index.find("Sabrina", 1954) == [1]
    assert index.find("Sabrina", 1955) == [1]  # sources differ by a year
    assert index.find("Sabrina", 1956) == []
    assert index.find("Sabrina", None) == [1, 2]


def test_aka_and_foreign_title_find_the_film(index: TitleIndex) -> None:
    assert index.find("La cite des enfants perdus", 1995) == [3]
    assert index.find("The City of Lost Children", 1996) == [3]
    assert index.find("City of Lost Children (some note)", 1995) == [3]


def test_a_film_without_year_matches_by_name(index: TitleIndex) -> None:
    assert index.find("Unknown", 2011) == [4]


def test_close_titles_are_suggested_with_their_year(index: TitleIndex) -> None:
    assert index.close("Sabrinna")[0].startswith("Sabrina (")
    assert index.close("zzzzzz") == []
    assert index.find("Sabrinna", 1995) == []


def test_rows_must_align() -> None:
    with pytest.raises(ValueError, match="2 titles for 1 years"):
        TitleIndex(["a", "b"], [1990])
