"""Tables of your own: ratings of anything by anyone, on any scale, and what is known about the rated items.

Columns are found by their usual names or named in parameters; what can't be used is left out and counted. The rating
scale is read from the data. Nothing is decided silently: :class:`OwnData` carries a sentence for each decision.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recsys_utils.base import ITEM, RATING, TIMESTAMP, USER, InputError, Scale, counted
from recsys_utils.data.catalogue import LISTS
from recsys_utils.data.fetch import REGISTRY, UNREADABLE, Dataset, Fetched, digest_of

Say = Callable[[str], None]

PREFIX = "own_"
"""Goes before every user id of a person's own table."""

FEWEST_RATINGS, FEWEST_USERS, FEWEST_EACH = 1000, 40, 15
"""A study needs so many ratings, and this many users with so many each: below, folds run empty."""

_THING = r"(item|movie|film|product|track|song|artist|album|book|game|anime|recipe|joke|business|article|course|place)"
NAMES = {  # lower case, letters and digits only
    USER: r"uid|(user|customer|member|reviewer|listener|reader|viewer|player|account|person)(id|name)?",
    ITEM: rf"i?id|isbn|asin|sku|{_THING}(id)?",
    RATING: rf"{_THING}?ratings?|score|stars|value|vote|grade|overall",
    TIMESTAMP: r"time(stamp)?|ts|date(time)?|when|ratedat|createdat|unixreviewtime",
    "title": rf"name|{_THING}?title|{_THING}name",
    "year": r"(release)?year|releasedate|yearofpublication",
    "genres": r"genres?|category|categories",
    "keywords": r"keywords?|tags?",
    "directors": r"directors?",
    "actors": r"actors?|cast",
    "writers": r"(book)?authors?|writers?",
    "overview": r"overview|description|plot|summary|synopsis|text",
    "imdb_id": r"imdbid",
    "tmdb_id": r"tmdbid",
}
_IDS = ("imdb_id", "tmdb_id")
_RATINGS, _FACTS = (USER, ITEM, RATING, TIMESTAMP), (ITEM, "title", "year", *LISTS, "overview", *_IDS)
_LIMIT = 4 << 30  # bytes of a table, unpacked
_LONGEST = 1000  # characters of an id
_DISCRETE = 25  # at most so many different ratings are a scale of steps
_LARGEST = 1e6  # beyond, a number is no rating
_LATE = 0.01  # share of unreadable times up to which their rows are left out; beyond, the study does without times
_EPOCHS = ((1e17, 10**9), (1e14, 10**6), (1e11, 10**3), (0.0, 1))  # from this median on, units a second


@dataclass(frozen=True)
class OwnData:
    """What was read: the study's tables, the scale, and a sentence on each thing that was done.

    Attributes
    ----------
    ratings : user_id (with prefix), item_id, rating float32, timestamp int64 (seconds; 0 where there is no time)
    items : item_id, title, year, and what else is known; every rated item has a row
    hashes : SHA-256 of each file, by its name
    """

    ratings: pd.DataFrame
    items: pd.DataFrame
    scale: Scale
    has_time: bool
    notes: tuple[str, ...]
    hashes: Mapping[str, str]


def read(
    ratings: Path, items: Path | None = None, *, columns: Mapping[str, str] | None = None, scale: str = "",
    liked: float | None = None, zeros: str = "auto",
) -> OwnData:  # fmt: skip
    """Read a table of ratings and, if there is one, of the items (csv, tsv, ``::`` or parquet; plain or gzipped).

    Rows without an id or a number as rating are left out; of several ratings of a pair the latest counts, without
    times the last. A rating of 0 is taken for "not rated" when it is out of proportion on a scale of steps: more than
    ten times, or less than a fiftieth, as frequent as the lowest rating above it.

    Parameters
    ----------
    columns : for unusual names, this study's name of a column -> the table's ("" = there is none)
    scale : its ends, such as 0-10; "" reads them off the data
    liked : lowest rating that counts as a like; None: three quarters up the scale
    zeros : what a 0 means: "auto" = by the rule above, "rating", or "none"

    Raises
    ------
    InputError : a file that can't be read, columns that are missing or ambiguous, hardly any usable row, ratings off
        the scale or all equal, or too few of them for any protocol.
    """
    if unknown := (columns or {}).keys() - NAMES.keys():
        raise InputError(f"dataset.columns: {', '.join(sorted(unknown))} is none of {', '.join(NAMES)}.")
    notes: list[str] = []
    table = _table(ratings, "dataset.ratings", columns or {}, _RATINGS, notes.append)
    frame, ends = _scaled(_usable(table, ratings.name, notes.append), scale, zeros, ratings.name, notes.append)
    seconds = _seconds(table[TIMESTAMP][frame.index], notes.append) if TIMESTAMP in table else None
    frame = frame.assign(**{TIMESTAMP: 0 if seconds is None else seconds}).dropna()
    latest = frame.sort_values(TIMESTAMP, kind="stable").drop_duplicates([USER, ITEM], keep="last").sort_index()
    _count(frame, latest, ratings.name, notes.append)
    has_time = bool(latest[TIMESTAMP].min() < latest[TIMESTAMP].max())
    notes += [] if has_time else ["There is no usable time: nothing here is ordered by it."]
    facts = _table(items, "dataset.items", columns or {}, _FACTS, notes.append) if items else pd.DataFrame({ITEM: []})
    known = _items(facts.astype(str), latest[ITEM], notes.append)
    scale_found = Scale(ends[0], ends[1], liked)
    if not latest[RATING].ge(scale_found.liked).any():
        raise InputError(f"{ratings.name}: no rating is a like ({scale_found.liked:g} or more); set dataset.liked.")
    kept = latest.assign(**{USER: PREFIX + latest[USER]}).astype({RATING: np.float32, TIMESTAMP: np.int64})
    hashes = {path.name: digest_of(path, "sha256") for path in (ratings, items) if path}
    return OwnData(kept.reset_index(drop=True), known, scale_found, has_time, tuple(notes), hashes)


# ---- from bytes to columns


def _table(path: Path, key: str, named: Mapping[str, str], roles: Sequence[str], say: Say) -> pd.DataFrame:
    """The columns of a file that are known by ``roles``, as stripped text."""
    name = f"{key}: {path.name}"
    found = content(path, name, _LIMIT)
    if found.startswith(b"PK\x03\x04"):
        raise InputError(f"{name} is a zip; give a csv, tsv or parquet table, plain or .gz.")
    found = _as_csv(found, name) if found.startswith(b"PAR1") else found
    text, told = decoded(found, name, "a header and a line per rating: user, item, rating and, if known, the time")
    for note in told:
        say(note)
    rows = _rows(text.lstrip(), name)
    header = [str(cell).strip() for cell in rows.iloc[0]]
    if roles is _RATINGS and len(header) in (3, 4) and all(re.fullmatch(r"-?[\d.]+", cell) for cell in header):
        header = list(_RATINGS[: len(header)])
        say(f"{name} has no header: its columns are taken for {', '.join(header)}.")
    else:
        rows = rows.iloc[1:].reset_index(drop=True)
    places = {role: _place(role, header, named, roles is _RATINGS, name) for role in roles}
    return pd.DataFrame({role: rows.iloc[:, n].str.strip() for role, n in places.items() if n is not None})


def _as_csv(parquet: bytes, name: str) -> bytes:
    def text(value: Any) -> Any:
        return "|".join(map(str, value)) if isinstance(value, (list, np.ndarray)) else value

    try:
        return pd.read_parquet(io.BytesIO(parquet)).map(text).convert_dtypes().to_csv(index=False).encode()
    except (OSError, ValueError, TypeError, LookupError) as error:  # pyarrow's errors are among these
        raise InputError(f"{name} can't be read ({' '.join(str(error).split())[:300]}).") from None


def _rows(text: str, name: str) -> pd.DataFrame:
    """All cells as text; the first line decides the separator."""
    first = text.split("\n", 1)[0]
    separator = next((s for s in ("::", "\t", ";", "|") if first.count(s) > 1), "," if "," in first else "\t")
    if separator == "::":  # the parser's separators are single characters
        separator, text = "\x1f", text.replace("::", "\x1f")
    try:
        return pd.read_csv(
            io.StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False, skipinitialspace=True
        ).fillna("")
    except (ValueError, OverflowError) as error:  # pandas' parser errors are ValueErrors
        why = " ".join(str(error).split())[:300]
        raise InputError(f"{name} is no table ({why}); put text that holds the separator in double quotes.") from None


def _place(role: str, header: list[str], named: Mapping[str, str], of_ratings: bool, name: str) -> int | None:
    """Where a role's column stands: as named, else the study's own name, else an id, else the only other alias."""
    plain = [re.sub(r"[\W_]", "", column).lower() for column in header]
    hits = [n for n, column in enumerate(plain) if re.fullmatch(NAMES[role], column)]
    exact = [n for n in hits if plain[n] == role.replace("_", "")]
    proper = [n for n in hits if plain[n] != "id"]
    found = exact or [n for n in proper if plain[n].endswith("id")] or proper or hits
    if role in named and (of_ratings or named[role] in header or not named[role]):
        found = [n for n, column in enumerate(header) if column == named[role] != ""]
    if len(found) > 1 or (not found and (role == ITEM or (of_ratings and role != TIMESTAMP))):
        problem = f"has {'several columns that' if found else 'no column that'} may be the {role}"
        raise InputError(
            f"{name} {problem}; it has: {', '.join(header)[:300]}. Name it: --set dataset.columns='{{{role}: NAME}}'."
        )
    return found[0] if found else None


# ---- ratings


def _usable(table: pd.DataFrame, name: str, say: Say) -> pd.DataFrame:
    """user_id, item_id, rating float64 of the rows that have all three."""
    numbers = pd.to_numeric(table[RATING].str.replace(",", ".", regex=False), errors="coerce").astype(np.float64)
    bad_ids = ~(table[USER].str.len().between(1, _LONGEST) & table[ITEM].str.len().between(1, _LONGEST))
    no_rating = ~bad_ids & ~(numbers.abs() <= _LARGEST)
    lost, example = bad_ids | no_rating, table[RATING][no_rating].iloc[:1].str[:40].tolist()
    told = f"{counted(int(bad_ids.sum()), 'row')} without user or item" if bad_ids.any() else ""
    if example:
        told += f"{' and ' * bool(told)}{int(no_rating.sum()):,} without a number as rating, such as {example[0]!r}"
    if table.empty or lost.mean() > 0.5:
        raise InputError(f"{name}: most of its {len(table):,} rows can't be used: {told or 'it has only a header'}.")
    if told:
        say(f"Left out: {told}.")
    return table.loc[~lost, [USER, ITEM]].assign(**{RATING: numbers[~lost]})


def _scaled(
    frame: pd.DataFrame, given: str, zeros: str, name: str, say: Say
) -> tuple[pd.DataFrame, tuple[float, float]]:  # fmt: skip
    """The rows that hold ratings, and the ends of their scale."""
    scale, why = parse_scale(given) if given else None, "as dataset.zeros says"
    counts = frame[RATING].value_counts().sort_index()
    if 0.0 in counts.index:
        n, above = int(counts[0.0]), int(counts[counts.index > 0].iloc[:1].sum())
        if zeros == "auto" and scale:
            zeros, why = "none" if scale.lo > 0 else "rating", "as dataset.scale says"
        elif zeros == "auto":
            steps = len(counts) <= _DISCRETE and counts.index[0] == 0
            zeros = "none" if steps and not above / 50 <= n <= above * 10 else "rating"
            why = f"{above:,} are {counts.index[counts.index > 0].min():g}; dataset.zeros overrules"
        say(f"Of value 0: {counted(n, 'rating')}, counting as {'such' if zeros == 'rating' else 'not rated'} ({why}).")
        frame = frame if zeros == "rating" else frame[frame[RATING] != 0]
    values = np.unique(frame[RATING])
    if scale is None and len(values) < 2:
        raise InputError(f"{name}: all ratings are {values.tolist()}; without likes and dislikes there is no study.")
    low, high = (scale.lo, scale.hi) if scale else (float(values[0]), float(values[-1]))
    on = frame[RATING].between(low, high)
    if on.mean() < 0.95:
        raise InputError(f"{name}: {1 - on.mean():.0%} of the ratings lie outside dataset.scale {low:g}-{high:g}.")
    if not on.all():
        say(f"Left out: {counted(int((~on).sum()), 'rating')} off the scale.")
    steps = f"in steps of {np.diff(values).min():g}" if 1 < len(values) <= _DISCRETE else f"{len(values):,} values"
    source = "as given" if scale else "read from the data; dataset.scale overrules"
    upper = float((frame[RATING] > (low + high) / 2).mean())
    odd = f" Only {upper:.2%} lie in its upper half: are the highest mistakes?" if upper < 0.01 else ""
    say(f"The rating scale is {low:g} to {high:g}, {steps} ({source}).{odd}")
    if (unit := Scale(low, high).svd_unit) != 1:
        say(f"SVD learns from ratings divided by {unit:g}, since its settings are laid out for scales of four points.")
    return frame[on], (low, high)


def _seconds(text: pd.Series, say: Say) -> pd.Series | None:
    """Seconds since 1970, NaN for the few rows that have none, or None when there is no telling the time."""
    numbers = pd.to_numeric(text, errors="coerce").astype(np.float64)
    seconds = numbers // next(unit for least, unit in _EPOCHS if not numbers.abs().median() < least)
    if numbers.notna().mean() <= 0.5:
        dates = pd.to_datetime(text, errors="coerce", format="ISO8601", utc=True)
        seconds = ((dates - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)).astype(np.float64)
    seconds = seconds.where(seconds.between(0, 2**40))
    lost = int(seconds.isna().sum())
    if lost:
        fate = "these rows are left out" if lost <= _LATE * len(text) else "the study does without times"
        say(f"Neither seconds since 1970 nor a date such as 2019-04-03: {counted(lost, 'time')}; {fate}.")
    return seconds if lost <= _LATE * len(text) else None


def _count(frame: pd.DataFrame, latest: pd.DataFrame, name: str, say: Say) -> None:
    """Say what a reader should know of users and items; InputError where no protocol could be run."""
    if twice := len(frame) - len(latest):
        say(f"Of the same user and item: {counted(twice, 'earlier rating')}; the latest counts, or the last row.")
    by_user = latest.groupby(USER)[RATING]
    enough = int((by_user.size() >= FEWEST_EACH).sum())
    if enough < FEWEST_USERS or len(latest) < FEWEST_RATINGS:
        raise InputError(
            f"{name} has {len(latest):,} usable ratings, and {enough} users with {FEWEST_EACH} or more; the study "
            f"needs {FEWEST_RATINGS:,} and {FEWEST_USERS}, or its folds run empty."
        )
    constant = int(((by_user.size() > 1) & (by_user.min() == by_user.max())).sum())
    single = int((latest[ITEM].value_counts() == 1).sum())
    say(f"{counted(constant, 'user')} with ratings all alike and {counted(single, 'item')} with one rating: kept.")


# ---- items


def _items(facts: pd.DataFrame, rated: pd.Series, say: Say) -> pd.DataFrame:
    """The columns of the catalogue for every item of either table."""
    known = facts[facts[ITEM].str.len().between(1, _LONGEST)].drop_duplicates(ITEM)
    absent = sorted(set(rated) - set(known[ITEM]))
    if len(facts):
        dropped = f"; {len(facts) - len(known):,} of its rows repeat an item or name none" * (len(facts) > len(known))
        say(f"The table of items names {len(known):,}; it lacks {counted(len(absent), 'rated item')}{dropped}.")
    items = pd.concat([known, pd.DataFrame({ITEM: absent}, dtype=object)], ignore_index=True).fillna("")
    items["title"] = items["title"].where(items["title"] != "", items[ITEM]) if "title" in items else items[ITEM]
    years = (
        items["year"].str.extract(r"(\d{4})")[0].astype(float) if "year" in items else pd.Series(np.nan, items.index)
    )
    items["year"] = years.where(years.between(1870, 2100)).astype("Int64")
    for column in (c for c in LISTS if c in items):
        separator = next((s for s in "|;," if items[column].str.contains(s, regex=False).any()), "|")
        words = items[column].str.strip("[](){}").str.split(separator, regex=False)
        items[column] = [[w for part in row if (w := part.strip(" '\""))] for row in words]
    return items.assign(**{column: items[column].replace("", None) for column in _IDS if column in items})


def of_own(name: str, own: OwnData) -> Fetched:
    """A data set made of a person's own tables; InputError when its name is one of the registry's."""
    if name in REGISTRY:
        raise InputError(
            f"dataset.name: {name} is a published data set; call yours something else, or drop dataset.ratings."
        )
    terms = "Your own data: nothing is known here about who may see them."
    dataset = Dataset(name, PREFIX, own.scale, terms, may_redistribute=False, cite="", has_time=own.has_time)
    return Fetched(dataset, None, None, "own table", own.notes, own)


# ---- from bytes to text, for all files that people give

_SHOWN = 5  # names in a list


def content(source: str | Path, name: str, limit: int) -> bytes:
    """The bytes of a file or of standard input ("-"), gunzipped; InputError when unreadable or above ``limit``."""
    try:
        if str(source) == "-":
            found = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(source).expanduser().open("rb") as stream:
                found = stream.read(limit + 1)
        if found.startswith(b"\x1f\x8b"):
            found = gzip.GzipFile(fileobj=io.BytesIO(found)).read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"There is no file {name}; check the path.") from None
    except (*UNREADABLE, ValueError) as error:
        raise InputError(f"{name} can't be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(found) > limit:
        raise InputError(f"{name} is larger than {limit >> 20} MB, the most that is read.")
    if found.startswith(b"PK\x03\x04") and b"xl/workbook.xml" in found:
        raise InputError(f"{name} is an Excel workbook; save the sheet as CSV and give that.")
    return found


def decoded(content: bytes, name: str, expected: str) -> tuple[str, list[str]]:
    """Text in UTF-8, UTF-16 or, where it can be neither, Latin-1, and a note in that case; InputError for no text."""
    encoding, notes = "utf-8-sig", []
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif content.count(0) * 3 > len(content):  # every other byte of Latin text in UTF-16
        encoding = "utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        notes = [f"{name} is not UTF-8 and was read as Latin-1."]
    if "\0" in text or (notes and re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)):
        raise InputError(f"{name} is a binary file, no text in UTF-8; expected {expected}.")
    if not text.strip():
        raise InputError(f"{name} is empty; expected {expected}.")
    return text, notes


def parse_scale(text: str) -> Scale:
    """A scale as a person writes it.

    >>> parse_scale("1-10").hi, parse_scale("0.5-5").lo, parse_scale("-10-10").lo
    (10.0, 0.5, -10.0)
    """
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    found = re.fullmatch(rf"\s*\[?{number}(?:-|to|\.\.|,){number}\]?\s*", text)
    if not found:
        raise InputError(f"{text[:40]!r} is not a rating scale; write its ends, such as 1-10 or 0.5-5.")
    return Scale(float(found[1]), float(found[2]))


def listed(texts: Sequence[str]) -> str:
    """The first few texts, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
