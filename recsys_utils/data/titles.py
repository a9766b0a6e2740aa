"""The same film in different sources: by id where there is one, else by title and year, else by a person's decision."""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recsys_utils.base import ITEM, InputError

# articles as MovieLens puts them behind a comma; in front of a title only those that are hardly ever a word of it
_LEADING_ARTICLES = ["the", "a", "an", "le", "la", "les", "el", "los", "las", "il", "der", "das"]
_ARTICLES = [*_LEADING_ARTICLES, "l'", "un", "une", "lo", "i", "gli", "una", "die", "ein", "eine", "de", "het", "den",
             "det", "en", "ett", "o", "os", "um", "uma"]  # fmt: skip
_BEHIND_COMMA = re.compile(rf"^(.*?),\s*({'|'.join(_ARTICLES)})$", re.IGNORECASE)
_LEADING = re.compile(rf"^(?:{'|'.join(_LEADING_ARTICLES)})\s+(?=\S)")
_BRACKETS = re.compile(r"\s*\(([^()]*)\)")
_ROMAN = {
    n: str(i)
    for i, n in enumerate(["ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii", "xiii"], start=2)
}
_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")


def read_csv(source: Path | io.BytesIO, name: str, columns: list[str]) -> pd.DataFrame:
    """A quoted CSV with a header, every field a string; InputError when a column is missing or a row is torn."""
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError, csv.Error) as error:  # pandas' parser errors and wrong encodings are ValueErrors
        raise InputError(f"{name} can't be read as CSV: {' '.join(str(error).split())}") from None
    if missing := [c for c in columns if c not in table]:
        raise InputError(f"{name} has no column {', '.join(missing)}; found {', '.join(map(str, table))}.")
    return table[columns]


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
    """A comparable form: no accents, case, punctuation or leading article; ``&`` reads and, Roman numbers are numbers.

    >>> normalise("Misérables, Les"), normalise("Romeo & Juliet"), normalise("Rocky II"), normalise("X-Men")
    ('miserables', 'romeo and juliet', 'rocky 2', 'x men')
    """
    text = title.strip()
    behind = _BEHIND_COMMA.match(text)
    if behind:
        text = behind.group(1)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = text.replace("&", " and ").casefold()
    text = re.sub(r"['’`]", "", text)
    text = re.sub(r"[^\w]+", " ", text).strip()
    first, *more = (_LEADING.sub("", text) or text).split(" ")  # a first word such as X or V is no number
    return " ".join([first, *(_ROMAN.get(word, word) for word in more)])


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
        self.by_name: dict[str, list[int]] = defaultdict(list)
        for number, title in enumerate(self.titles):
            for name in names(title):
                self.by_name[name].append(number)

    @classmethod
    def of(cls, films: pd.DataFrame) -> TitleIndex:
        """From columns title and year; a film's number is its row."""
        return cls(films["title"].tolist(), [None if pd.isna(y) else int(y) for y in films["year"]])

    def find(self, title: str, year: int | None) -> list[int]:
        """The films of that name, best year first: the exact year, else a year off by one, else one without a year.

        Sources date a film by production, premiere or local release, hence the tolerance of one year. With no year
        given every film of the name is returned, in catalogue order; an empty list means no such film. The full title
        counts before an AKA in brackets.
        """
        for name in names(title):
            numbers = self.by_name.get(name, [])
            if year is None and numbers:
                return numbers
            for accept in ({year}, {year and year - 1, year and year + 1}, {None}):
                hits = [n for n in numbers if self.years[n] in accept]
                if hits:
                    return hits
        return []

    def close(self, title: str, n: int = 3) -> list[str]:
        """Up to n catalogue titles that look like this one, most alike first."""
        near = difflib.get_close_matches(normalise(title), list(self.by_name), n=n, cutoff=0.6)
        numbers = dict.fromkeys(self.by_name[name][0] for name in near)
        return [self.titles[i] + (f" ({self.years[i]})" if self.years[i] else "") for i in numbers]


# ---- one catalogue against another

REVIEWED: Mapping[str, str] = {
    "3 Ninjas: High Noon At Mega Mountain (1998)": "tt0118539",
    "Aladdin (1992)": "tt0103639",
    "Aparajito (1956)": "tt0048956",
    "Blue Angel, The (Blaue Engel, Der) (1930)": "tt0020697",
    "Boys (1996)": "tt0115742",
    "Boys, Les (1997)": "tt0118764",
    "A Chef in Love (1996)": "tt0117050",
    "Children of the Corn: The Gathering (1996)": "tt0115885",
    "Close Shave, A (1995)": "tt0112691",
    "Duoluo tianshi (1995)": "tt0112913",
    "Emma (1996)": "tt0116191",
    "Empire Strikes Back, The (1980)": "tt0080684",
    "Faust (1994)": "tt0109781",
    "Fear, The (1995)": "tt0113043",
    "Grand Day Out, A (1992)": "tt0104361",
    "Harlem (1993)": "tt0107079",
    "Interview with the Vampire (1994)": "tt0110148",
    "Jackie Chan's First Strike (1996)": "tt0116704",
    "Lashou shentan (1992)": "tt0104684",
    "Line King: Al Hirschfeld, The (1996)": "tt0116886",
    "Magnificent Seven, The (1954)": "tt0054047",
    "Men With Guns (1997)": "tt0119657",
    "New York Cop (1996)": "tt0117169",
    "Quest, The (1996)": "tt0117420",
    "Return of the Jedi (1983)": "tt0086190",
    "Robert A. Heinlein's The Puppet Masters (1994)": "tt0111003",
    "Star Trek: The Wrath of Khan (1982)": "tt0084726",
    "Star Wars (1977)": "tt0076759",
    "Stephen King's The Langoliers (1995)": "tt0112040",
    "Two or Three Things I Know About Her (1966)": "tt0060304",
    "U.S. Marshalls (1998)": "tt0120873",
    "Up in Smoke (1978)": "tt0078446",
    "William Shakespeare's Romeo and Juliet (1996)": "tt0117509",
    "Wrong Trousers, The (1993)": "tt0108598",
    "Á köldum klaka (Cold Fever) (1994)": "tt0109028",
}
"""Films that changed their name or year between editions, by the name ML-100K gives them; each was looked up."""

CERTAIN = 0.85
"""From this confidence on a match counts; below it a person has to say yes."""

_SHOWN = (ITEM, "title", "year")
_REVIEW_COLUMNS = [ITEM, "title", "year", "movieId", "their_title", "their_year", "method", "confidence", "decision"]


@dataclass(frozen=True)
class Crosswalk:
    """Films of one catalogue and their counterparts in another.

    Attributes
    ----------
    table : item_id, movieId, imdb_id, tmdb_id, method, confidence (0-1), one row a film in the catalogue's order;
        missing where no counterpart is certain. No two films share a movieId but those that are one film twice.
    doubles : item_id, double_of: films that stand in the catalogue twice, and the first id of each
    review : what a person should look at, as a table to fill in (:func:`read_review`)
    """

    table: pd.DataFrame
    doubles: pd.DataFrame
    review: pd.DataFrame


def doubles(films: pd.DataFrame) -> pd.DataFrame:
    """item_id, double_of for films whose title and year occurred before, in the order of ``films``.

    >>> films = pd.DataFrame({"item_id": ["1", "2", "3"], "title": ["Heat", "Big", "Heat"], "year": [1995, 1988, 1995]})
    >>> doubles(films)
      item_id double_of
    2       3         1
    """
    key = films["title"].map(normalise) + " " + films["year"].astype("string").fillna("")
    first = films[ITEM].groupby(key).transform("first")
    again = films[ITEM] != first
    return pd.DataFrame({ITEM: films[ITEM][again], "double_of": first[again]})


def match(
    films: pd.DataFrame, others: pd.DataFrame, decisions: Mapping[str, Mapping[str, bool]] | None = None
) -> Crosswalk:
    """Find each film of a catalogue in another one, one to one.

    In this order: a person's decision, IMDb or TMDB id, ``REVIEWED``, title and year (confidence .95; by an AKA .9; a
    year off by one .85; less when both, or when the article differs too). The surer claim gets the film. Two
    candidates that are equally sure are no match but a conflict.

    Parameters
    ----------
    films, others : item_id, title, year, and imdb_id, tmdb_id where known; the item_id of ``others`` is the movieId
    decisions : item_id -> movieId -> whether it is that film, from :func:`read_review`

    >>> old = pd.DataFrame({"item_id": ["1", "50"], "title": ["Toy Story", "Star Wars"], "year": [1995, 1977]})
    >>> new = pd.DataFrame({"item_id": ["1", "260"], "title": ["Toy Story", "Star Wars: Episode IV - A New Hope"],
    ...                     "year": [1995, 1977], "imdb_id": ["tt0114709", "tt0076759"], "tmdb_id": ["862", "11"]})
    >>> match(old, new).table[["item_id", "movieId", "method"]].to_numpy().tolist()
    [['1', '1', 'title+year'], ['50', '260', 'reviewed']]
    """
    decisions = decisions or {}
    twins = doubles(films)
    first_id = dict(zip(twins[ITEM], twins["double_of"], strict=True))
    theirs = _Theirs(others)
    owners = [first_id.get(film, film) for film in films[ITEM]]
    claims: list[tuple[float, int, int, str]] = []
    ours: list[dict[str, Any]] = _records(films)
    for number, film in enumerate(ours):
        said = decisions.get(film[ITEM], {})
        yes = [theirs.by_movie[m] for m, answer in said.items() if answer]
        found = [(j, 1.0, "decision") for j in yes] or list(theirs.candidates(film))
        claims += [(sure, number, j, how) for j, sure, how in found if said.get(theirs.rows[j][ITEM], True)]
    taken: dict[int, str] = {}
    chosen: dict[int, tuple[float, int, str]] = {}
    open_: list[tuple[float, int, int, str]] = []
    for sure, number, j, how in sorted(claims, key=lambda claim: (-claim[0], claim[1])):
        owner = owners[number]
        if number in chosen:
            continue
        # claims as sure: of this film to another one, or of another film to that one
        rivals = any(
            s == sure and (other != j if mine == number else other == j and owners[mine] != owner)
            for s, mine, other, _ in claims
        )
        if sure < CERTAIN or rivals or taken.get(j, owner) != owner:
            open_.append((sure, number, j, how))
            continue
        taken[j] = owner
        chosen[number] = (sure, j, how)
    rows = []
    for number, film in enumerate(ours):
        sure, j, how = chosen.get(number, (0.0, -1, ""))
        other = theirs.rows[j] if j >= 0 else {}
        ids = {name: other.get(name) for name in ("imdb_id", "tmdb_id")}
        rows.append({ITEM: film[ITEM], "movieId": other.get(ITEM), **ids, "method": how, "confidence": sure})
    table = pd.DataFrame(rows).astype(dict.fromkeys(["movieId", "imdb_id", "tmdb_id"], "string"))
    asked = [(number, j, how, sure) for sure, number, j, how in open_ if number not in chosen]
    settled = {*chosen, *(number for number, *_ in asked)}
    asked += [(i, j, "alike", 0.0) for i in range(len(ours)) if i not in settled for j in theirs.alike(ours[i])]
    lines = []
    for number, j, how, sure in sorted(asked, key=lambda a: (a[0], -a[3], a[1])):
        film, other = ours[number], theirs.rows[j]
        told = decisions.get(film[ITEM], {}).get(other[ITEM])
        answer = "" if told is None else "yes" if told else "no"
        lines.append((*(film[c] for c in _SHOWN), *(other[c] for c in _SHOWN), how, sure, answer))
    return Crosswalk(table, twins.reset_index(drop=True), pd.DataFrame(lines, columns=_REVIEW_COLUMNS))


class _Theirs:
    """The other catalogue, to be looked up by id and by name."""

    def __init__(self, others: pd.DataFrame) -> None:
        self.rows = _records(others)
        self.by_movie = {row[ITEM]: j for j, row in enumerate(self.rows)}
        self.by_id: dict[str, dict[str, int]] = {
            name: {row[name]: j for j, row in enumerate(self.rows) if isinstance(row.get(name), str)}
            for name in ("imdb_id", "tmdb_id")
        }
        self.index = TitleIndex.of(others)

    def candidates(self, film: Mapping[str, Any]) -> Iterator[tuple[int, float, str]]:
        """(position, confidence, method) of what may be this film; ids and reviewed names leave no other candidate."""
        for name in ("imdb_id", "tmdb_id"):
            j = self.by_id[name].get(str(film.get(name)))
            if j is not None:
                yield j, 1.0, name
                return
        if pd.isna(film["year"]):
            return
        title, year = film["title"], int(film["year"])
        if (known := REVIEWED.get(f"{title} ({year})")) is not None:
            if known in self.by_id["imdb_id"]:
                yield self.by_id["imdb_id"][known], 0.99, "reviewed"
            return
        best: dict[int, tuple[float, str]] = {}
        for name in names(title):
            for j in self._near(self.index.by_name.get(name, []), year):
                theirs, off = self.index.titles[j], self.index.years[j] != year
                aka = not (name in _main(title) and name in _main(theirs))
                # with another year an article may be all that tells two films apart: The Fear (1995), Fear (1996)
                doubt = 0.05 * aka + (0.2 + 0.1 * (article(title) != article(theirs)) if off else 0.1)
                how = ("aka" if aka else "title") + "+year" + "±1" * off
                best[j] = max(best.get(j, (0.0, "")), (round(1.05 - doubt, 2), how))
        yield from ((j, *claim) for j, claim in best.items())

    def _near(self, numbers: Iterable[int], year: int) -> Iterator[int]:
        """Those of the same or a neighbouring year."""
        years = self.index.years
        return (j for j in numbers if (theirs := years[j]) is not None and abs(theirs - year) <= 1)

    def alike(self, film: Mapping[str, Any]) -> list[int]:
        """Up to three films of the same or a neighbouring year whose title looks like this one."""
        if pd.isna(film["year"]):
            return []
        near = {normalise(self.index.titles[j]): j for j in self._near(range(len(self.rows)), int(film["year"]))}
        return [near[name] for name in difflib.get_close_matches(normalise(film["title"]), near, n=3, cutoff=0.75)]


def _records(films: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in films.to_dict("records")]


def _main(title: str) -> set[str]:
    """The names that are the title itself, with and without its brackets; its others are AKAs."""
    return {normalise(title), normalise(_BRACKETS.sub("", title).strip())}


def article(title: str) -> str:
    """The article before a title or behind its comma, in lower case; "" for none.

    >>> article("Circle, The"), article("The Circle (Dayereh)"), article("Circle")
    ('the', 'the', '')
    """
    bare = _BRACKETS.sub("", title).strip().casefold()
    behind, leading = _BEHIND_COMMA.match(bare), _LEADING.match(bare)
    return behind.group(2) if behind else leading.group().strip() if leading else ""


def read_review(path: Path, films: pd.DataFrame, others: pd.DataFrame) -> dict[str, dict[str, bool]]:
    """Decisions from a review table a person has filled in: ``decision`` is yes, no or empty.

    A row may be added: item_id, movieId and decision are enough.

    Raises
    ------
    InputError : no such table, a column or film that isn't there, another word, two yes for one film.
    """
    table = read_csv(path, str(path), [ITEM, "movieId", "decision"])
    table["decision"] = table["decision"].str.strip().str.casefold()
    decided: dict[str, dict[str, bool]] = {}
    for line, row in enumerate(table.to_dict("records"), start=2):
        where = f"{path}, line {line}"
        if row["decision"] not in ("yes", "no", ""):
            raise InputError(f"{where}: decision is yes, no or empty; found {row['decision']!r}.")
        if not row["decision"]:
            continue
        for name, known in ((ITEM, films[ITEM]), ("movieId", others[ITEM])):
            if row[name] not in set(known):
                raise InputError(f"{where}: there is no film with {name} {row[name]!r}.")
        answers = decided.setdefault(row[ITEM], {})
        answers[row["movieId"]] = row["decision"] == "yes"
        if sum(answers.values()) > 1:
            raise InputError(f"{where}: film {row[ITEM]} is said to be two films; keep one yes.")
    return decided


def naive_join(table: pd.DataFrame, others: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """What joining item_id to movieId, as if they were one id space, does: fate, films, ratings, share_of_ratings.

    ``table`` is that of a :class:`Crosswalk`. A film without a counterpart that meets some film is on another film.
    """
    known = set(others[ITEM])
    fate = table[ITEM].isin(known).map({True: "another film", False: "no film"})
    fate = fate.where(table[ITEM] != table["movieId"].fillna(""), "the right film")
    counts = table[ITEM].map(ratings[ITEM].value_counts()).fillna(0).astype(int)
    grouped = (
        counts.groupby(fate).agg(["size", "sum"]).reindex(["the right film", "another film", "no film"], fill_value=0)
    )
    grouped.columns = ["films", "ratings"]
    return grouped.assign(share_of_ratings=grouped["ratings"] / max(len(ratings), 1)).rename_axis("fate").reset_index()


def naive_neighbours(
    films: pd.DataFrame, table: pd.DataFrame, others: pd.DataFrame, *, title: str = "Toy Story", n: int = 10
) -> tuple[pd.DataFrame, int]:
    """The films whose genres are most like those of ``title``: with the genres of the right film, and joined by id.

    Similarity is the cosine of genre vectors weighted by inverse document frequency; ties go to the earlier film. Where
    ``title`` has no counterpart the first film that has one is taken.

    Parameters
    ----------
    films : item_id, title, year
    table : that of a :class:`Crosswalk` from ``films`` to ``others``
    others : item_id, genres

    Returns a table of both lists (titles with years) and how many films they share.
    """
    genres = dict(zip(others[ITEM], others["genres"], strict=True))
    shown = [f"{t} ({y})" for t, y in zip(films["title"], films["year"], strict=True)]
    mapped = np.flatnonzero(table["movieId"].notna())
    film = next((i for i in mapped if films["title"].iloc[i] == title), mapped[0])
    lists = []
    for ids in (table["movieId"].fillna(""), table[ITEM]):
        sets = [set(genres.get(i, [])) for i in ids]
        names = sorted(set().union(*sets))
        flags = np.array([[name in has for name in names] for has in sets], float)
        weighted = flags * np.log((1 + len(flags)) / (1 + flags.sum(axis=0)))
        length = np.linalg.norm(weighted, axis=1)
        near = weighted @ weighted[film] / np.where(length > 0, length, 1)
        near[film] = -1
        lists.append([shown[i] for i in np.argsort(-near.round(9), kind="stable")[:n]])
    right, naive = lists
    frame = pd.DataFrame({"rank": range(1, len(right) + 1), f"like {shown[film]}": right, "joined by id": naive})
    return frame, len(set(right) & set(naive))
