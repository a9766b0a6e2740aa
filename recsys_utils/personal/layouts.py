"""Files in which people hold their ratings: from bytes to rows that name a film and say what was thought of it.

Exports of IMDb, Letterboxd, Trakt, Netflix, MovieLens, TMDB and Simkl, or a plain table, are told apart by their
columns, never by the name of the file. :data:`LAYOUTS` says what each column means.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from recsys_utils.base import ITEM, RATING, InputError, Scale, counted
from recsys_utils.data.fetch import UNREADABLE
from recsys_utils.data.titles import split_year

Rows = list[tuple[str, dict[str, str]]]  # where in the file, and its cells by column

FORMATS = (
    "item_id,rating or title,year,rating (imdb_id, tmdb_id or movieId name a film as well), or an export of IMDb, "
    "Letterboxd, Trakt, Netflix, MovieLens, TMDB or Simkl"
)
THUMBS = Scale(1, 3)  # Netflix: down, up (a like), two up (the best)
_NAMES = ("item", "imdb", "tmdb", "movielens", "title")  # meanings that can name a film on their own
_SHOWN = 5
_LIMIT = 100 << 20  # bytes of a file, or of a file in a zip
_LONGEST = 1000  # characters of a cell that is used
_MOST = 100_000  # rows


class Layout(NamedTuple):
    """A kind of file: columns that give it away, what its columns mean ("a|b": the first that is filled), its scale.

    ``scale`` None = that of the data set, unless the person names another. ``views``: a row without a rating was seen.
    """

    name: str
    needs: frozenset[str]
    columns: Mapping[str, str]
    scale: Scale | None = None
    views: bool = False
    exact: bool = False  # no further columns


def _layout(name: str, needs: str, columns: str, *rest: Any, **more: Any) -> Layout:
    meant = dict(pair.split("=", 1) for pair in columns.split(", "))
    return Layout(name, frozenset(needs.split(", ")), meant, *rest, **more)


_IMDB = "imdb=const, title=title, original=original title, year=year, type=title type, "
_IDS = "imdb=imdb|imdb_id, tmdb=tmdb|tmdb_id, title=title, year=year, type=type, "
PLAIN = _layout(
    "table", "", "item=item_id, imdb=tconst|imdb_id|imdbid|imdb, tmdb=tmdb_id|tmdbid|tmdb, movielens=movieid, "
    "title=title, year=year, rating=rating, date=timestamp|rated_at|created_at|date, person=userid|user_id",
)  # fmt: skip
LAYOUTS = (
    _layout("IMDb export", "const, your rating", _IMDB + "rating=your rating, date=date rated", Scale(1, 10)),
    _layout("IMDb export (before 2018)", "const, you rated", _IMDB + "rating=you rated, date=created", Scale(1, 10)),
    _layout("Letterboxd export", "letterboxd uri, name", "title=name, year=year, rating=rating, "
            "date=watched date|date", Scale(0.5, 5), views=True),
    _layout("MovieLens export", "movie_id, imdb_id, tmdb_id, rating, average_rating", "movielens=movie_id, "
            "imdb=imdb_id, tmdb=tmdb_id, title=title, rating=rating", Scale(0.5, 5)),
    _layout("TMDB export", "tmdb id, your rating", "tmdb=tmdb id, imdb=imdb id, title=name, year=release date, "
            "type=type, rating=your rating, date=date rated", Scale(0.5, 10)),
    _layout("TMDB list", "vote_average, rating", "tmdb=id, title=title|name, original=original_title, "
            "year=release_date, type=media_type, rating=rating", Scale(0.5, 10)),
    _layout("Simkl export", "simkl_id, rating", _IDS + "rating=rating, date=watcheddate", Scale(1, 10)),
    _layout("Simkl export", "simkl, user_rating", _IDS + "rating=user_rating, date=user_rated_at", Scale(1, 10)),
    _layout("Trakt ratings", "trakt, rating", _IDS + "rating=rating, date=rated_at", Scale(1, 10)),
    _layout("Trakt history", "trakt, watched_at", _IDS + "date=watched_at", views=True),
    _layout("Trakt history", "trakt, last_watched_at", _IDS + "date=last_watched_at", views=True),
    _layout("Netflix ratings", "title name, thumbs value", "title=title name, rating=star value, "
            "thumbs=thumbs value, date=event utc ts, person=profile name", Scale(1, 5)),
    _layout("Netflix viewing activity", "title, start time, supplemental video type", "title=title, "
            "date=start time, type=supplemental video type, person=profile name", views=True),
    _layout("Netflix viewing history", "title, date", "title=title, date=date", views=True, exact=True),
)  # fmt: skip

# title types in the languages in which sites export them; what names a film is a film whatever else it says (tvMovie)
_FILM = re.compile(r"movie|film|pel[ií]cula|elokuva|映画|电影|電影|영화|кино", re.IGNORECASE)
_NO_FILM = re.compile(
    r"s[eé]rie|serial|sorozat|sarja|dizi|[eé]pi[sz][oó]d|folge|avsnitt|afsnit|odcinek|season|staffel|temporada|saison|"
    r"stagione|show|^tv$|anime|game|spiel|jeu|jogo|juego|gioco|podcast|trailer|hook|bumper|promo|recap|teaser|"
    r"シリーズ|エピソード|ゲーム|剧集|电视|電視|시리즈|에피소드|сериал|эпизод|игра",
    re.IGNORECASE,
)
# "Dark: Season 1: Secrets": a part of a series, named between two colons
_EPISODE = re.compile(
    r":\s*(?:limited series|mini-?series|(?:season|series|part|volume|book|chapter|collection|staffel|teil|temporada|"
    r"parte|saison|partie|stagione|seizoen|sezon|säsong|sæson)\b[^:]*):",
    re.IGNORECASE,
)


@dataclass
class Entry:
    """A row of a file: the names it gives a film (imdb, tmdb, title ... -> text), and what was thought of it.

    ``rating`` is on ``scale``, None = seen; ``when`` seconds since 1970, 0 = unknown. The reader of the entry fills in
    ``item``, the film's item_id, ``by`` what it was found, or the ``reason`` why it wasn't.
    """

    where: str
    names: dict[str, str]
    year: int | None
    rating: float | None
    scale: Scale
    when: float
    item: str | None = None
    by: str = ""
    reason: str = ""

    @property
    def title(self) -> str:
        """The title, else the id that stands for it."""
        numbered = f"movieId {self.names['movielens']}" if self.names["movielens"] else ""
        return self.names["title"] or self.names["imdb"] or self.names["tmdb"] or numbered

    @property
    def shown(self) -> str:
        return f"{self.title} ({self.year})" if self.year else self.title

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What identifies the film in a review file: imdb_id, tmdb_id, title, year."""
        return self.names["imdb"], self.names["tmdb"], self.title, str(self.year or "")


class Sheet(NamedTuple):
    """What a file holds: its kind, its rows, and sentences on what was left out."""

    layout: Layout
    entries: list[Entry]
    notes: list[str]


def load(content: bytes, name: str, scale: Scale, overruled: bool = False) -> Sheet:
    """Read a csv or json file, or every file in a zip that is understood.

    Parameters
    ----------
    name : of the file, for messages
    scale : of the ratings of a plain table; of every table when ``overruled``

    Raises
    ------
    InputError : not a table of ratings, see :func:`recsys_utils.personal.own_ratings.read`.

    >>> sheet = load(b"Title,Date\\nDark: Season 1: Secrets,1/5/20\\nHeat,1/6/20\\n", "history", Scale(1, 5))
    >>> sheet.layout.name, [entry.shown for entry in sheet.entries], sheet.notes
    ('Netflix viewing history', ['Heat'], ['Left out: 1 of series, episodes or games.'])
    """
    if not content.startswith(b"PK\x03\x04"):
        return _sheet(content, name, scale, overruled)
    sheets, problem = [], InputError(f"{name} is a zip without ratings.")
    for inner, part in _unpacked(content, name):
        try:
            sheets.append(_sheet(part, f"{name}:{inner}", scale, overruled))
        except InputError as error:
            problem = error
    known = [sheet for sheet in sheets if sheet.layout is not PLAIN] or sheets[:1]
    if not known:
        raise problem
    layout = next((sheet.layout for sheet in known if "rating" in sheet.layout.columns), known[0].layout)
    return Sheet(layout, [e for sheet in known for e in sheet.entries], [n for sheet in known for n in sheet.notes])


def parse_scale(text: str) -> Scale:
    """A scale as a person writes it.

    >>> parse_scale("1-10").hi, parse_scale("0.5-5").lo
    (10.0, 0.5)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:-|to|\.\.)\s*(\d+(?:\.\d+)?)\s*", text)
    if not found:
        raise InputError(f"{text[:40]!r} is not a rating scale; write its ends, such as 1-10 or 0.5-5.")
    return Scale(float(found[1]), float(found[2]))


# ---- from bytes to rows


def content(source: str | Path, name: str) -> bytes:
    """The bytes of a file or of standard input ("-"); refuses what is absent, empty or far too large."""
    try:
        if str(source) == "-":
            found = sys.stdin.buffer.read(_LIMIT + 1)
        else:
            with Path(source).expanduser().open("rb") as stream:
                found = stream.read(_LIMIT + 1)
    except FileNotFoundError:
        raise InputError(f"There is no ratings file {name}; give a CSV with {FORMATS}.") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"The ratings file {name} can't be read: {why}.") from None
    if len(found) > _LIMIT:
        raise InputError(f"{name} is larger than {_LIMIT >> 20} MB; that is not one person's ratings.")
    if not found.strip():
        raise InputError(f"{name} is empty; expected a CSV with {FORMATS}.")
    return found


def _unpacked(content: bytes, name: str) -> list[tuple[str, bytes]]:
    """Tables of a zip. A list of films to watch has the columns of one of films watched, so there the name decides."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            parts = []
            for info in bundle.infolist():
                path = PurePosixPath(info.filename)
                aside = {"deleted", "orphaned", "likes", "lists"} & {p.lower() for p in path.parts[:-1]}
                if path.suffix.lower() not in (".csv", ".json") or aside or "watchlist" in path.name.lower():
                    continue
                if info.file_size > _LIMIT:
                    raise InputError(f"{name}: {path.name} would unpack to {info.file_size:,} bytes; not read.")
                parts.append((str(path), bundle.read(info)))
    except (*UNREADABLE, ValueError) as error:
        raise InputError(f"{name} is not UTF-8 text, and can't be read as a zip archive either ({error}).") from None
    if not parts:
        raise InputError(f"{name} is a zip without a table of ratings (csv or json) in it; expected {FORMATS}.")
    return parts


def decoded(content: bytes, name: str, expected: str = f"lines with {FORMATS}") -> tuple[str, list[str]]:
    """Text in UTF-8, UTF-16 or, where it can be neither, Latin-1, and a note in that case; InputError for no text."""
    encoding, notes = "utf-8-sig", []
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif content.count(0) * 3 > len(content):  # every other byte of Latin text in UTF-16
        encoding = "utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig" or re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", content):
            byte = f"byte {error.start} is 0x{content[error.start]:02x}"
            raise InputError(f"{name} is not UTF-8 text ({byte}); save it as a CSV in UTF-8.") from None
        text = content.decode("cp1252", errors="replace")
        notes.append(f"{name} is not UTF-8 and was read as Latin-1.")
    if "\0" in text:
        raise InputError(f"{name} is not a CSV but a binary file; expected {expected}.")
    if not text.strip():
        raise InputError(f"{name} is empty; expected {expected}.")
    return text, notes


def _sheet(content: bytes, name: str, scale: Scale, overruled: bool) -> Sheet:
    text, notes = decoded(content, name)
    header, rows = _json(text, name) if text.lstrip()[:1] in ("[", "{") else csv_rows(text, name)
    present, shown = set(header), ",".join(header)[:300]
    fits = (k for k in LAYOUTS if k.needs <= present and not (k.exact and k.needs != present))
    layout = next(fits, PLAIN)
    naming = {c for meaning, cs in PLAIN.columns.items() if meaning in _NAMES for c in cs.split("|")}
    if layout is PLAIN and not (RATING in present and naming & present):
        lacks = RATING if RATING not in present else f"{ITEM} (or title)"
        raise InputError(f"{name} lacks the column {lacks}: expected {FORMATS}; found {shown}.")
    if not rows:
        raise InputError(f"{name} holds no ratings, only the header {shown}; add a line per film.")
    if len(rows) > _MOST:
        raise InputError(f"{name} has {len(rows):,} rows; that is not one person's ratings (at most {_MOST:,}).")
    meant = [
        (where, {m: next((row[c] for c in cs.split("|") if row.get(c)), "") for m, cs in layout.columns.items()})
        for where, row in rows
    ]
    people = sorted({row["person"][:40] for _, row in meant if row.get("person")})
    if len(people) > 1:
        raise InputError(f"{name} holds ratings of {len(people)} people ({listed(people)}); keep the rows of one.")
    films = [_entry(where, row, name, layout, scale, overruled) for where, row in meant if not _is_series(row)]
    kept = [e for e in films if e.rating is not None or layout.views]
    if not kept:
        raise InputError(f"{name} ({layout.name}) holds no rated film in {counted(len(rows), 'row')}.")
    if layout.name == "Letterboxd export" and RATING not in present:
        notes.append("Without ratings these count as films watched (a watchlist has the same columns).")
    if len(films) < len(meant):
        notes.append(f"Left out: {len(meant) - len(films)} of series, episodes or games.")
    if len(kept) < len(films):
        notes.append(f"Left out: {counted(len(films) - len(kept), 'film')} without a rating.")
    return Sheet(layout, kept, notes)


def csv_rows(text: str, name: str) -> tuple[list[str], Rows]:
    """The header in lower case, and the non-empty rows with their line numbers."""
    text = text.strip("\r\n ")  # not tabs: they may hold an empty last field
    first = text.splitlines()[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, [cell.strip() for cell in row]))
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}, is not CSV: {error}.") from None
    if not rows:
        raise InputError(f"{name} is empty; expected a CSV with {FORMATS}.")
    header = [" ".join(cell.split()).lower() for cell in rows[0][1]]
    if "const" in header:  # the oldest exports of IMDb name the person: "someone rated"
        header = ["you rated" if cell.endswith(" rated") and cell != "date rated" else cell for cell in header]
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise InputError(
                f"{name}, line {line}, has {counted(len(row), 'field')} where the header has {len(header)} "
                f"({','.join(header)[:300]}); put titles that hold a comma in double quotes."
            )
    return header, [(f"line {line}", dict(zip(header, row, strict=True))) for line, row in rows[1:]]


def _json(text: str, name: str) -> tuple[list[str], Rows]:
    """The entries of a list, or of all lists in an object ({"movies": [...], "shows": [...]})."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}.") from None
    lists = [document] if isinstance(document, list) else [v for v in document.values() if isinstance(v, list)]
    rows = [_flat(record) for records in lists for record in records if isinstance(record, dict)]
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, [(f"entry {n}", row) for n, row in enumerate(rows, 1)]


def _flat(record: Mapping[str, Any]) -> dict[str, str]:
    """An entry with its film's title, year and ids beside its own keys; "type" says when it is about a series."""
    found: dict[str, Any] = {}
    for key in ("movie", "show", "episode", "season"):
        about = record.get(key)
        if isinstance(about, dict):
            ids = about.get("ids")
            found = {k: about.get(k) for k in ("title", "year")} | (ids if isinstance(ids, dict) else {})
            found["type"] = "movie" if record.get("anime_type") == "movie" else key
            break
    found |= record
    return {k.lower(): str(v).strip() for k, v in found.items() if isinstance(v, (str, int, float))}


# ---- from rows to entries


def _is_series(row: Mapping[str, str]) -> bool:
    kind, title = row.get("type", "")[:_LONGEST], row.get("title", "")[:_LONGEST]
    return bool(_EPISODE.search(title) or (_NO_FILM.search(kind) and not _FILM.search(kind)))


def _entry(where: str, row: dict[str, str], name: str, layout: Layout, scale: Scale, overruled: bool) -> Entry:
    for meaning, cell in row.items():
        if len(cell) > _LONGEST:
            raise InputError(f"{name}, {where}: the {meaning} has {len(cell):,} characters; that is no list of films.")
    row = {meaning: " ".join(cell.split()) for meaning, cell in row.items()}
    title, year_text = row.get("title", ""), row.get("year", "")
    found = re.match(r"(\d{4})(?!\d)", year_text)
    year = int(found[1]) if found else None
    if layout is PLAIN and year_text and not re.fullmatch(r"\d{4}(?:\.0)?", year_text):
        raise InputError(f"{name}, {where}: the year {year_text!r} is not a year such as 1995; or leave it empty.")
    if year is None and "year" not in layout.columns:
        title, year = split_year(title)  # MovieLens: "Toy Story (1995)"
    used = scale if overruled or layout.scale is None else layout.scale
    given = row.get("rating", "")
    if row.get("thumbs") and given in ("", "0"):
        given, used = row["thumbs"], THUMBS
    if layout is not PLAIN and given in ("", "0", "0.0", "None"):
        rating = None
    else:
        whose = "of these data" if layout.scale is None else f"of {layout.name}s"
        rating = _rating(given, f"{name}, {where}", used, whose)
    names = {meaning: row.get(meaning, "") for meaning in (*_NAMES, "original")} | {"title": title}
    return Entry(where, names, year, rating, used, _when(row.get("date", "")))


def _rating(text: str, where: str, scale: Scale, whose: str) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise InputError(f"{where}: the rating {text[:40]!r} is not a number; use {scale.lo:g}-{scale.hi:g}.") from None
    if not scale.lo <= value <= scale.hi:
        raise InputError(
            f"{where}: the rating {text} lies outside the scale {scale.lo:g}-{scale.hi:g} {whose}. If the file uses "
            "another scale, name it: --scale 1-10 (or 0.5-5, ...); its ratings are then mapped."
        )
    return value


def _when(text: str) -> float:
    """Seconds since 1970 of an ISO date, a number of seconds, or an old IMDb date; 0 where it is none of them."""
    if re.fullmatch(r"\d{9,11}(?:\.\d+)?", text):
        return float(text)
    for parse in (datetime.fromisoformat, lambda t: datetime.strptime(t, "%a %b %d %H:%M:%S %Y")):
        try:
            moment = parse(text)
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return 0.0


def listed(texts: Sequence[str]) -> str:
    """The first few texts, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
