"""The same film in different sources: by id where there is one, else by title and year, else by a person's decision."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rapidfuzz import fuzz, process

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
        near = process.extract(normalise(title), self.by_name.keys(), scorer=fuzz.ratio, limit=n, score_cutoff=60)
        numbers = dict.fromkeys(self.by_name[name][0] for name, *_ in near)
        return [self.titles[i] + (f" ({self.years[i]})" if self.years[i] else "") for i in numbers]


# ---- one catalogue against another

with Path(__file__).with_name("reviewed_titles.csv").open(encoding="utf-8", newline="") as _rows:
    REVIEWED: Mapping[str, str] = dict(list(csv.reader(_rows))[1:])
"""IMDb ids of films that changed their name or year between editions, by ML-100K's name; each was looked up."""

MOVIE_IDS = Path(__file__).with_name("ml_100k_movie_ids.csv")
CERTAIN = 0.85
"""From this confidence on a match counts; below it a person has to confirm it."""

Claim = tuple[float, int, int, str]  # confidence, number of our film, number of theirs, method


@dataclass(frozen=True)
class Crosswalk:
    """Films of one catalogue and their counterparts in another.

    Attributes
    ----------
    table : item_id, movieId, imdb_id, tmdb_id, method, confidence (0-1), one row per film in the catalogue's order;
        missing where no counterpart is certain. No two films share a movieId but those that are one film twice.
    doubles : item_id, double_of: films that are in the catalogue twice, and the first id of each
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
    decided, ours, theirs = decisions or {}, films.to_dict("records"), _Theirs(others)
    claims: list[Claim] = []
    for number, film in enumerate(ours):
        answers = decided.get(film[ITEM], {})
        yes = [(theirs.by_id[ITEM][movie], 1.0, "decision") for movie, answer in answers.items() if answer]
        found = yes or theirs.candidates(film)
        claims += [(sure, number, j, how) for j, sure, how in found if answers.get(theirs.rows[j][ITEM], True)]
    twins = doubles(films)
    chosen, doubtful = _settle(claims, films[ITEM].replace(dict(twins.to_numpy())).tolist())
    rows = []
    for number, film in enumerate(ours):
        sure, _, j, how = chosen.get(number, (0.0, number, -1, ""))
        other = theirs.rows[j] if j >= 0 else {}
        rows.append((film[ITEM], *(other.get(name) for name in (ITEM, "imdb_id", "tmdb_id")), how, sure))
    table = pd.DataFrame(rows, columns=[ITEM, "movieId", "imdb_id", "tmdb_id", "method", "confidence"])
    unseen = sorted(set(range(len(ours))) - chosen.keys() - {number for _, number, *_ in doubtful})
    doubtful += [(0.0, number, j, "alike") for number in unseen for j in theirs.alike(ours[number])]
    review = []
    for sure, number, j, how in sorted(doubtful, key=lambda claim: (claim[1], -claim[0], claim[2])):
        film, other = ours[number], theirs.rows[j]
        answer = {True: "yes", False: "no", None: ""}[decided.get(film[ITEM], {}).get(other[ITEM])]
        shown = [record[name] for record in (film, other) for name in (ITEM, "title", "year")]
        review.append((*shown, how, sure, answer))
    columns = [ITEM, "title", "year", "movieId", "their_title", "their_year", "method", "confidence", "decision"]
    strings = dict.fromkeys(["movieId", "imdb_id", "tmdb_id"], "string")
    return Crosswalk(table.astype(strings), twins.reset_index(drop=True), pd.DataFrame(review, columns=columns))


def _settle(claims: list[Claim], owners: list[str]) -> tuple[dict[int, Claim], list[Claim]]:
    """Give each film the surest claim that has no rival; the claims left open, of films that got none.

    ``owners`` is the id of each film, or of the film it is a double of.
    """
    taken: dict[int, str] = {}
    chosen: dict[int, Claim] = {}
    doubtful = []
    for claim in sorted(claims, key=lambda claim: (-claim[0], claim[1])):
        sure, number, j, _ = claim
        if number in chosen:
            continue
        # claims as sure: of this film to another one, or of another film to that one
        rivals = any(
            s == sure and (other != j if mine == number else other == j and owners[mine] != owners[number])
            for s, mine, other, _ in claims
        )
        if sure < CERTAIN or rivals or taken.get(j, owners[number]) != owners[number]:
            doubtful.append(claim)
        else:
            taken[j], chosen[number] = owners[number], claim
    return chosen, [claim for claim in doubtful if claim[1] not in chosen]


class _Theirs:
    """The other catalogue, to be looked up by id and by name."""

    def __init__(self, others: pd.DataFrame) -> None:
        self.rows: list[dict[Any, Any]] = others.to_dict("records")
        self.by_id: dict[str, dict[str, int]] = {
            name: {row[name]: j for j, row in enumerate(self.rows) if isinstance(row.get(name), str)}
            for name in (ITEM, "imdb_id", "tmdb_id")
        }
        self.index = TitleIndex.of(others)

    def candidates(self, film: Mapping[Any, Any]) -> list[tuple[int, float, str]]:
        """(number, confidence, method) of what may be this film; ids and reviewed names leave no other candidate."""
        for name in ("imdb_id", "tmdb_id"):
            if (j := self.by_id[name].get(str(film.get(name)))) is not None:
                return [(j, 1.0, name)]
        if pd.isna(film["year"]):
            return []
        title, year = film["title"], int(film["year"])
        if (known := REVIEWED.get(f"{title} ({year})")) is not None:
            j = self.by_id["imdb_id"].get(known)
            return [] if j is None else [(j, 0.99, "reviewed")]
        best: dict[int, tuple[float, str]] = {}
        for name in names(title):
            for j in self._near(self.index.by_name.get(name, []), year):
                theirs, off = self.index.titles[j], self.index.years[j] != year
                aka = not (name in _main(title) and name in _main(theirs))
                # with another year an article may be all that tells two films apart: The Fear (1995), Fear (1996)
                doubt = 0.05 * aka + (0.2 + 0.1 * (article(title) != article(theirs)) if off else 0.1)
                how = ("aka" if aka else "title") + "+year" + "±1" * off
                best[j] = max(best.get(j, (0.0, "")), (round(1.05 - doubt, 2), how))
        return [(j, sure, how) for j, (sure, how) in best.items()]

    def _near(self, numbers: Iterable[int], year: int) -> list[int]:
        """Those of the same or a neighbouring year."""
        return [j for j in numbers if self.index.years[j] in (year - 1, year, year + 1)]

    def alike(self, film: Mapping[Any, Any]) -> list[int]:
        """Up to three films of the same or a neighbouring year whose title looks like this one."""
        if pd.isna(film["year"]):
            return []
        near = {j: normalise(self.index.titles[j]) for j in self._near(range(len(self.rows)), int(film["year"]))}
        found = process.extract(normalise(film["title"]), near, scorer=fuzz.ratio, limit=3, score_cutoff=75)
        return [j for _, _, j in found]


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


def movie_ids(crosswalk: Crosswalk | None) -> dict[str, str]:
    """movieId of the later editions by item_id of ML-100K: by a crosswalk, else the published one to latest-small."""
    if crosswalk is not None:
        table = crosswalk.table.dropna(subset="movieId")
    else:
        table = read_csv(MOVIE_IDS, MOVIE_IDS.name, [ITEM, "movie_id"]).rename(columns={"movie_id": "movieId"})
    return dict(zip(table[ITEM], table["movieId"], strict=True))


def read_review(path: Path, films: pd.DataFrame, others: pd.DataFrame) -> dict[str, dict[str, bool]]:
    """Decisions from a review table a person has filled in: ``decision`` is yes, no or empty.

    A row may be added: item_id, movieId and decision are enough.

    Raises
    ------
    InputError : no such table, a column or film that isn't there, another word, two yes for one film.
    """
    table = read_csv(path, str(path), [ITEM, "movieId", "decision"])
    table["decision"] = table["decision"].str.strip().str.casefold()
    allowed = {ITEM: set(films[ITEM]), "movieId": set(others[ITEM]), "decision": {"yes", "no"}}
    decided: dict[str, dict[str, bool]] = defaultdict(dict)
    for line, row in zip(table.index + 2, table.to_dict("records"), strict=True):
        if not row["decision"]:
            continue
        for name, known in allowed.items():
            if row[name] not in known:
                raise InputError(f"{path}, line {line}: {name} can't be {row[name]!r}.")
        answers = decided[row[ITEM]]
        answers[row["movieId"]] = row["decision"] == "yes"
        if sum(answers.values()) > 1:
            raise InputError(f"{path}, line {line}: film {row[ITEM]} is two films; keep one yes.")
    return dict(decided)
