"""Naming the same film across sources by title and year."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

# articles as MovieLens puts them behind a comma; in front of a title only those that are hardly ever a word of it
_LEADING_ARTICLES = ["the", "a", "an", "le", "la", "les", "el", "los", "las", "il", "der", "das"]
_ARTICLES = [*_LEADING_ARTICLES, "l'", "un", "une", "lo", "i", "gli", "una", "die", "ein", "eine", "de", "het", "den",
             "det", "en", "ett", "o", "os", "um", "uma"]  # fmt: skip
_BEHIND_COMMA = re.compile(rf"^(.*?),\s*({'|'.join(_ARTICLES)})$", re.IGNORECASE)
_LEADING = re.compile(rf"^(?:{'|'.join(_LEADING_ARTICLES)})\s+(?=\S)")
_BRACKETS = re.compile(r"\s*\(([^()]*)\)")
_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")


def split_year(title: str) -> tuple[str, int | None]:
    """Separate a trailing ``(1995)`` from a title; a marker behind it such as ``(V)`` goes too.

    >>> split_year("Toy Story (1995)"), split_year("Brazil"), split_year("Time of the Great Giving (1995) (V)")
    (('Toy Story', 1995), ('Brazil', None), ('Time of the Great Giving', 1995))
    """
    title = re.sub(r"\s*\((?:V|TV|VG)\)\s*$", "", title.strip())
    found = _YEAR.search(title)
    return (title[: found.start()].strip(), int(found.group(1))) if found else (title, None)


def imdb_id(text: str) -> str | None:
    """The form tt0114709 of an IMDb number, however it is written; None when there is none.

    >>> imdb_id("114709"), imdb_id("tt0114709"), imdb_id("https://www.imdb.com/title/tt10872600/"), imdb_id("")
    ('tt0114709', 'tt0114709', 'tt10872600', None)
    """
    found = re.search(r"(?:^|tt)(\d+)", text.strip())
    return f"tt{int(found.group(1)):07d}" if found else None


def normalise(title: str) -> str:
    """A comparable form: no accents, case, punctuation or leading article; ``&`` reads and.

    >>> normalise("Misérables, Les"), normalise("Les Miserables"), normalise("Romeo & Juliet")
    ('miserables', 'miserables', 'romeo and juliet')
    """
    text = title.strip()
    behind = _BEHIND_COMMA.match(text)
    if behind:
        text = behind.group(1)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = text.replace("&", " and ").casefold()
    text = re.sub(r"['’`]", "", text)
    text = re.sub(r"[^\w]+", " ", text).strip()
    return _LEADING.sub("", text) or text


def names(title: str) -> list[str]:
    """Every normalised name a title carries: itself, without its brackets, and each bracket (an AKA) alone.

    >>> names("City of Lost Children, The (Cité des enfants perdus, La)")[1:]
    ['city of lost children', 'cite des enfants perdus']
    """
    bare = _BRACKETS.sub("", title).strip()
    akas = [re.sub(r"^a\.?k\.?a\.?\s+", "", b, flags=re.IGNORECASE) for b in _BRACKETS.findall(title)]
    found = [normalise(n) for n in (title, bare, *akas)]
    return list(dict.fromkeys(n for n in found if n))


class TitleIndex:
    """Look films up by title and year.

    Parameters
    ----------
    titles, years : row-aligned; a year may be None. The position in them is a film's number.

    >>> index = TitleIndex(["Heat", "Sabrina", "Sabrina", "Usual Suspects, The"], [1995, 1954, 1995, 1995])
    >>> index.find("The Usual Suspects", 1995), index.find("sabrina", 1955), index.find("Sabrina", None)
    ([3], [1], [1, 2])
    """

    def __init__(self, titles: Sequence[str], years: Iterable[int | None]) -> None:
        self.titles = list(titles)
        self.years = list(years)
        if len(self.titles) != len(self.years):
            raise ValueError(f"{len(self.titles)} titles for {len(self.years)} years")
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for number, title in enumerate(self.titles):
            for name in names(title):
                self._by_name[name].append(number)

    def find(self, title: str, year: int | None) -> list[int]:
        """The films of that name, best year first: the exact year, else a year off by one, else one without a year.

        Sources date a film by production, premiere or local release, hence the tolerance of one year. With no year
        given every film of the name is returned, in catalogue order; an empty list means no such film. The full title
        counts before an AKA in brackets.
        """
        for name in names(title):
            numbers = self._by_name.get(name, [])
            if year is None and numbers:
                return numbers
            for accept in ({year}, {year and year - 1, year and year + 1}, {None}):
                hits = [n for n in numbers if self.years[n] in accept]
                if hits:
                    return hits
        return []

    def close(self, title: str, n: int = 3) -> list[str]:
        """Up to n catalogue titles that look like this one, most alike first."""
        near = difflib.get_close_matches(normalise(title), list(self._by_name), n=n, cutoff=0.6)
        numbers = dict.fromkeys(self._by_name[name][0] for name in near)
        return [self.titles[i] + (f" ({self.years[i]})" if self.years[i] else "") for i in numbers]
