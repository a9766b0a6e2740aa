"""A person's own ratings: from a CSV to a row over the catalogue."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from recsys_utils.crosswalk import TitleIndex
from recsys_utils.interfaces import ITEM, RATING, InputError, Scale

FORMATS = "item_id,rating or title,year,rating"
_SHOWN = 5


@dataclass(frozen=True)
class OwnRatings:
    """What was understood of a file.

    Attributes
    ----------
    frame : item_id, rating float32; one row a film, in the file's order
    unmatched : a line of text per title that names no film of the catalogue, or more than one
    """

    frame: pd.DataFrame
    unmatched: tuple[str, ...]

    @property
    def report(self) -> str:
        """One paragraph: how many ratings count, and which titles don't."""
        text = f"{len(self.frame)} rating(s) matched a film of the catalogue."
        if self.unmatched:
            text += f" {len(self.unmatched)} title(s) did not and are left out: {_listed(self.unmatched)}."
        return text

    def profile(self, items: Sequence[str]) -> csr_matrix:
        """(1, I) float32 ratings over the catalogue ``items``, as every recommender takes them."""
        columns = pd.Index(items).get_indexer(pd.Index(self.frame[ITEM]))
        rows = np.zeros(len(columns), np.int32)
        return csr_matrix((self.frame[RATING], (rows, columns)), shape=(1, len(items)), dtype=np.float32)


def read(source: str | Path, items: pd.DataFrame, scale: Scale) -> OwnRatings:
    """Read ``item_id,rating`` or ``title,year,rating`` from a CSV file, or from standard input ("-").

    UTF-8 with or without a byte order mark; comma, semicolon or tab; further columns are ignored; the year may be
    empty.

    Parameters
    ----------
    items : the catalogue, with item_id, title and year
    scale : the rating scale of the data the models were fitted on

    Raises
    ------
    InputError : no such file, not a CSV, a missing column, no rows, a rating that is no number or off the scale, an
        unknown item_id, a film rated twice, or no title that matches.

    >>> import tempfile
    >>> items = pd.DataFrame({"item_id": ["7"], "title": ["Usual Suspects, The"], "year": [1995]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "mine.csv"
    ...     _ = path.write_text("title,year,rating\\nThe Usual Suspects,1996,5\\n", encoding="utf-8")
    ...     read(path, items, Scale(1, 5)).frame.to_numpy().tolist()
    [['7', 5.0]]
    """
    name = "standard input" if str(source) == "-" else str(source)
    header, rows = _rows(_text(source, name), name)
    if RATING not in header or (ITEM not in header and "title" not in header):
        lacks = RATING if RATING not in header else f"{ITEM} (or title)"
        raise InputError(f"{name} lacks the column {lacks}: expected {FORMATS}; found {','.join(header)}.")
    if not rows:
        raise InputError(f"{name} holds no ratings, only the header {','.join(header)}; add a line per film.")
    cells = [(line, dict(zip(header, row, strict=True))) for line, row in rows]
    ratings = [_rating(cell[RATING], line, name, scale) for line, cell in cells]
    unmatched: list[str] = []
    if ITEM in header:
        ids: list[str | None] = list(_by_id([cell[ITEM] for _, cell in cells], items, name))
    else:
        index = TitleIndex(items["title"].tolist(), [None if pd.isna(y) else int(y) for y in items["year"]])
        ids = [_by_title(cell, line, name, items, index, unmatched) for line, cell in cells]
    if not any(ids):
        raise InputError(f"No title of {name} names a film of the catalogue: {_listed(unmatched)}.")
    _refuse_twice([(line, i) for (line, _), i in zip(cells, ids, strict=True) if i], items, name)
    kept = [(i, r) for i, r in zip(ids, ratings, strict=True) if i]
    frame = pd.DataFrame(kept, columns=[ITEM, RATING]).astype({RATING: np.float32})
    return OwnRatings(frame, tuple(unmatched))


def _text(source: str | Path, name: str) -> str:
    try:
        content = sys.stdin.buffer.read() if str(source) == "-" else Path(source).expanduser().read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no ratings file {name}; give a CSV with {FORMATS}.") from None
    except OSError as error:
        raise InputError(f"The ratings file {name} can't be read: {error.strerror or error}.") from None
    if not content.strip():
        raise InputError(f"{name} is empty; expected a CSV with {FORMATS}.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (byte {error.start} is 0x{content[error.start]:02x}); save it as a CSV in UTF-8."
        ) from None
    if "\0" in text:
        raise InputError(f"{name} is not a CSV but a binary file; expected lines with {FORMATS}.")
    return text


def _rows(text: str, name: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header in lower case, and the non-empty rows with their line numbers."""
    first = text.lstrip().splitlines()[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text.strip(), newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, [cell.strip() for cell in row]))
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}, is not CSV: {error}.") from None
    header = [cell.lower() for cell in rows[0][1]]
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise InputError(
                f"{name}, line {line}, has {len(row)} field(s) where the header has {len(header)} "
                f"({','.join(header)}); put titles that hold a comma in double quotes."
            )
    return header, rows[1:]


def _rating(text: str, line: int, name: str, scale: Scale) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"{name}, line {line}: the rating {text!r} is not a number; use {scale.lo:g}-{scale.hi:g}."
        ) from None
    if not scale.lo <= value <= scale.hi:
        raise InputError(
            f"{name}, line {line}: the rating {text} lies outside the scale {scale.lo:g}-{scale.hi:g} of these data."
        )
    return value


def _by_id(ids: list[str], items: pd.DataFrame, name: str) -> list[str]:
    known = set(items[ITEM])
    unknown = [i for i in ids if i not in known]
    if unknown:
        raise InputError(
            f"{name} names {len(unknown)} film(s) that are not in the catalogue: item_id {_listed(unknown)}. "
            f"The catalogue has {len(known):,} films, for example {', '.join(items[ITEM].head(3))}."
        )
    return ids


def _by_title(
    cell: dict[str, str], line: int, name: str, items: pd.DataFrame, index: TitleIndex, unmatched: list[str]
) -> str | None:
    """The film a row names; a title without match, or with several films to choose from, goes to ``unmatched``."""
    year_text = cell.get("year", "")
    if year_text and not year_text.isdecimal():
        raise InputError(f"{name}, line {line}: the year {year_text!r} is not a year such as 1995; or leave it empty.")
    year = int(year_text) if year_text else None
    found = index.find(cell["title"], year)
    shown = f"{cell['title']} ({year})" if year else cell["title"]
    if len({index.years[n] for n in found}) > 1:
        unmatched.append(f"{shown} (say which year: {', '.join(str(index.years[n]) for n in found)})")
        return None
    if not found:
        near = index.close(cell["title"], n=2)
        unmatched.append(f"{shown} (did you mean {' or '.join(near)}?)" if near else shown)
        return None
    # some catalogues hold a film under two ids of the same title and year: the first one stands for it
    return str(items[ITEM].iloc[found[0]])


def _refuse_twice(rated: list[tuple[int, str]], items: pd.DataFrame, name: str) -> None:
    seen: dict[str, int] = {}
    for line, item in rated:
        if item in seen:
            title = items.loc[items[ITEM] == item, "title"].iloc[0]
            raise InputError(
                f"{name} rates {title} (item_id {item}) twice, in lines {seen[item]} and {line}; keep one of them."
            )
        seen[item] = line


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
