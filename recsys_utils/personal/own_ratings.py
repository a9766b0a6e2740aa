"""A person's own ratings: from an export of a rating site or a plain table to a row of ratings over the catalogue.

Files are csv, json, JSON lines, or these in a zip or gzip file; they are recognised by their columns, never by name.
:data:`LAYOUTS` says what each column means.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, RATING, TIMESTAMP, Floats, InputError, Scale, counted
from recsys_utils.data.fetch import UNREADABLE
from recsys_utils.data.titles import REVIEWED, TitleIndex, article, normalise, split_year
from recsys_utils.personal.own_table import content, decoded, listed

Row = tuple[str, dict[str, str]]  # where in the file, and its cells by column

FORMATS = (
    "item_id,rating or title,year,rating (imdb_id, tmdb_id or movieId name a film as well), or an export of IMDb, "
    "Letterboxd, Trakt, Netflix, MovieLens, TMDB or Simkl"
)
THUMBS = Scale(1, 3)  # Netflix: down, up (a like), two up (the best)
_NAMES = ("item", "imdb", "tmdb", "movielens", "title")  # meanings that can name a film on their own
_SUGGESTED = 10  # unmatched titles that get a suggestion; comparing titles is slow
_LIMIT = 100 << 20  # bytes of a file, or of a file in a zip
_LONGEST = 200  # characters of a cell that are used
_MOST = 100_000  # rows
# films whose MovieLens ids are known: a catalogue uses these ids (1M and later) when it agrees; ML-100K's does not
_MOVIELENS = {"2": "Jumanji", "10": "GoldenEye", "150": "Apollo 13", "296": "Pulp Fiction", "356": "Forrest Gump",
              "480": "Jurassic Park", "2571": "The Matrix"}  # fmt: skip


class Layout(NamedTuple):
    """A kind of file: columns that identify it, what its columns mean ("a|b": the first that is filled), its scale.

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
_IDS = "imdb=imdb|imdb_id|imdbid, tmdb=tmdb|tmdb_id|tmdbid, title=title, year=year, type=type, "
PLAIN = _layout(
    "table", "", "item=item_id, imdb=tconst|imdb_id|imdbid|imdb, tmdb=tmdb_id|tmdbid|tmdb, movielens=movieid, "
    "title=title, year=year, rating=rating, date=timestamp|rated_at|created_at|date, person=userid|user_id",
)  # fmt: skip
LAYOUTS = (
    _layout("IMDb export", "const, your rating", _IMDB + "rating=your rating, date=date rated", Scale(1, 10)),
    _layout("IMDb export (before 2018)", "const, you rated", _IMDB + "rating=you rated, date=created", Scale(1, 10)),
    _layout("Letterboxd export", "letterboxd uri, name", "title=name, year=year, rating=rating, "
            "date=watched date|date", Scale(0.5, 5), views=True),
    _layout("Letterboxd import", "title, rating10", _IDS + "rating=rating10, date=watcheddate", Scale(1, 10)),
    _layout("Letterboxd import", "title, rating, watcheddate, rewatch", _IDS + "rating=rating, date=watcheddate",
            Scale(0.5, 5)),
    _layout("MovieLens export", "movie_id, imdb_id, tmdb_id, rating, average_rating", "movielens=movie_id, "
            "imdb=imdb_id, tmdb=tmdb_id, title=title, rating=rating", Scale(0.5, 5)),
    _layout("TMDB export", "tmdb id, your rating", "tmdb=tmdb id, imdb=imdb id, title=name, year=release date, "
            "type=type, rating=your rating, date=date rated", Scale(0.5, 10)),
    _layout("TMDB list", "vote_average, rating", "tmdb=id, title=title|name, original=original_title, "
            "year=release_date, type=media_type, rating=rating", Scale(0.5, 10)),
    _layout("Simkl export", "simkl_id, rating", _IDS + "rating=rating, date=watcheddate", Scale(1, 10)),
    _layout("Simkl export", "simkl, user_rating", _IDS + "rating=user_rating, date=user_rated_at", Scale(1, 10)),
    _layout("Trakt ratings", "trakt_rating, rating", _IDS + "rating=rating, date=rated_at", Scale(1, 10)),
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
    r"stagione|show|^tv$|anime|game|spiel|jeu|jogo|juego|gioco|podcast|trailer|hook|bumper|promo|recap|teaser|music|"
    r"special|シリーズ|エピソード|ゲーム|剧集|电视|電視|시리즈|에피소드|сериал|эпизод|игра",
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
    """A row of a file: the names it gives a film (imdb, tmdb, title ... -> text), and its rating.

    ``rating`` is on ``scale``, None = seen; ``when`` seconds since 1970, 0 = unknown. Matching fills in ``item``, the
    film's item_id, ``by`` what it was found, or the ``reason`` why it wasn't.
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
        """The title, else an id."""
        numbered = f"movieId {self.names['movielens']}" if self.names["movielens"] else ""
        return self.names["title"] or self.names["imdb"] or self.names["tmdb"] or self.names["item"] or numbered

    @property
    def shown(self) -> str:
        return f"{self.title} ({self.year})" if self.year else self.title


@dataclass(frozen=True)
class OwnRatings:
    """What was read from a file.

    Attributes
    ----------
    frame : item_id, rating float32 on the data set's scale; one row per film, in the file's order
    unmatched : one line of text per title that names no film of the catalogue, or more than one
    raw : aligned with frame: item_id, raw (the value in the file), lo, hi (its scale), timestamp (seconds, 0 =
        unknown), matched_by (item_id, imdb, tmdb, movielens or title)
    views : films seen and not rated; in a profile they count as ``view_rating``: the person's mean, or the lowest like
        where there are no ratings
    source : the kind of file, and its scale
    scale : of all the ratings, where they have a single one
    total : films of the file, rated or seen
    notes : sentences on what else a person should know
    """

    frame: pd.DataFrame
    unmatched: tuple[str, ...]
    raw: pd.DataFrame = field(default_factory=pd.DataFrame)
    views: tuple[str, ...] = ()
    view_rating: float = 0.0
    source: str = ""
    scale: Scale | None = None
    total: int = 0
    notes: tuple[str, ...] = ()

    @property
    def matched(self) -> float:
        """Share of the file's films that are films of the catalogue, 0-1."""
        return (len(self.frame) + len(self.views)) / max(1, self.total)

    @property
    def report(self) -> str:
        """One paragraph: how many ratings count, on which scale, and which titles don't."""
        views = f" and {counted(len(self.views), 'view')}" if self.views else ""
        text = f"{counted(len(self.frame), 'rating')}{views} matched the catalogue"
        text += f" ({self.matched:.1%} of {self.total}; {self.source})."
        if self.unmatched:
            text += f" Left out: {counted(len(self.unmatched), 'title')} not matched, {listed(self.unmatched)}."
        return " ".join([text, *self.notes])

    def profile(self, items: Sequence[str]) -> csr_matrix:
        """(1, I) float32 ratings over the catalogue ``items``, as every recommender takes them."""
        columns = pd.Index(items).get_indexer(pd.Index([*self.frame[ITEM], *self.views]))
        values = np.r_[self.frame[RATING].to_numpy(np.float32), np.full(len(self.views), self.view_rating, np.float32)]
        rows = np.zeros(len(columns), np.int32)
        return csr_matrix((values, (rows, columns)), shape=(1, len(items)), dtype=np.float32)


def read(
    source: str | Path, items: pd.DataFrame, scale: Scale, *, source_scale: Scale | None = None
) -> OwnRatings:  # fmt: skip
    """Read a person's ratings from a file, or from standard input ("-").

    UTF-8, UTF-16 or Latin-1; comma, semicolon or tab; further columns are ignored; the year may be empty. Series,
    episodes and games are left out. Of several ratings of a film the latest counts; where nothing says which that is
    (a plain table without dates) they are refused.

    A rating v on the source's scale [a, b] becomes lo + (v - a) (hi - lo) / (b - a).

    Parameters
    ----------
    items : the catalogue, with item_id, title and year; imdb_id and tmdb_id where known
    scale : the rating scale of the data the models were fitted on
    source_scale : of the file, for tables that don't state it, or to overrule what the layout says

    Raises
    ------
    InputError : no such file, not a table, a missing column, no rows, a rating that is no number or off the scale, an
        unknown item_id, a film rated twice, several people's ratings, an ambiguous scale, or no title that matches.

    >>> import tempfile
    >>> items = pd.DataFrame({"item_id": ["7"], "title": ["Usual Suspects, The"], "year": [1995]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "mine.csv"
    ...     _ = path.write_text("title,year,rating\\nThe Usual Suspects,1996,5\\n", encoding="utf-8")
    ...     read(path, items, Scale(1, 5)).frame.to_numpy().tolist()
    [['7', 5.0]]
    """
    name = "standard input" if str(source) == "-" else str(source)
    layout, entries, notes = _load(content(source, name, _LIMIT), name, source_scale or scale, source_scale is not None)
    highest = max((e.rating for e in entries if e.rating is not None), default=np.inf)
    if layout.scale is None and source_scale is None and scale.hi >= 9 and highest <= 5:
        raise InputError(
            f"The ratings of {name} end at {highest:g} while these data use {scale.lo:g}-{scale.hi:g}: they may be "
            f"stars or points. Say which: --scale 0.5-5, or --scale {scale.lo:g}-{scale.hi:g}."
        )
    _match(entries, items, name)
    open_ones = list(dict.fromkeys(f"{e.shown}{e.reason}" for e in entries if not e.item))
    found = [e for e in entries if e.item]
    if not found:
        raise InputError(f"No title of {name} names a film of the catalogue: {listed(open_ones)}.")
    kept, twice = _latest(found, name, strict=layout is PLAIN)
    if twice:
        notes.append(f"Rated more than once, so that the latest rating counts: {listed(twice)}.")
    rated = [e for e in kept if e.rating is not None]
    raw = pd.DataFrame(
        [(e.item, e.rating, e.scale.lo, e.scale.hi, int(e.when), e.by) for e in rated],
        columns=[ITEM, "raw", "lo", "hi", TIMESTAMP, "matched_by"],
    )
    values, mapping = _mapped(rated, scale)
    view_rating = float(values.mean()) if rated else scale.liked
    views = tuple(str(e.item) for e in kept if e.rating is None)
    if views:
        why = "your mean rating" if rated else "the lowest like"
        notes.append(f"Films seen without a rating count as {view_rating:.2g}, {why}.")
    frame = pd.DataFrame({ITEM: raw[ITEM], RATING: values.astype(np.float32)})
    used = {e.scale for e in rated}
    one = used.pop() if len(used) == 1 and THUMBS not in used else None
    kind, total = f"{layout.name}, {mapping}", len(kept) + len(open_ones)
    return OwnRatings(frame, tuple(open_ones), raw, views, view_rating, kind, one, total, tuple(notes))


# ---- from bytes to rows


def _load(found: bytes, name: str, scale: Scale, overruled: bool) -> tuple[Layout, list[Entry], list[str]]:
    """The kind of a file, its films, and sentences on what was left out; of a zip, those of all files understood.

    ``scale`` is that of a plain table's ratings, or when ``overruled`` of every table's.

    >>> table = b"Title,Date\\nDark: Season 1: Secrets,1/5/20\\nHeat,1/6/20\\n"
    >>> layout, entries, notes = _load(table, "x", Scale(1, 5), False)
    >>> layout.name, [entry.shown for entry in entries], notes
    ('Netflix viewing history', ['Heat'], ['Left out: 1 of series, episodes or games.'])
    """
    sheets, problem = [], InputError("")
    for inner, part in _unpacked(found, name) if found.startswith(b"PK\x03\x04") else [(name, found)]:
        try:
            sheets.append(_sheet(part, inner, scale, overruled))
        except InputError as error:
            problem = error
    known = [sheet for sheet in sheets if sheet[0] is not PLAIN] or sheets[:1]
    if not known:
        raise problem
    layouts, entries, notes = zip(*known, strict=True)
    layout = next((one for one in layouts if "rating" in one.columns), layouts[0])
    return layout, [e for part in entries for e in part], [n for part in notes for n in part]


def _unpacked(found: bytes, name: str) -> list[tuple[str, bytes]]:
    """Tables of a zip. A list of films to watch has the columns of one of films watched, so there the name decides."""
    parts = []
    try:
        with zipfile.ZipFile(io.BytesIO(found)) as bundle:
            for info in bundle.infolist():
                path = PurePosixPath(info.filename)
                aside = {"deleted", "orphaned", "likes", "lists"} & {p.lower() for p in path.parts[:-1]}
                if path.suffix.lower() not in (".csv", ".json") or aside or "watchlist" in path.name.lower():
                    continue
                if info.file_size > _LIMIT:
                    raise InputError(f"{name}: {path.name} would unpack to {info.file_size:,} bytes; not read.")
                parts.append((f"{name}:{path}", bundle.read(info)))
    except (*UNREADABLE, ValueError) as error:
        raise InputError(f"{name} is not UTF-8 text, and can't be read as a zip archive either ({error}).") from None
    if not parts:
        raise InputError(f"{name} is a zip without a table of ratings (csv or json) in it; expected {FORMATS}.")
    return parts


def _sheet(found: bytes, name: str, scale: Scale, overruled: bool) -> tuple[Layout, list[Entry], list[str]]:
    text, notes = decoded(found, name, f"lines with {FORMATS}")
    header, rows = _json(text, name) if text.lstrip()[:1] in ("[", "{") else _csv(text, name)
    present, shown = set(header), ",".join(header)[:300]
    fits = (k for k in LAYOUTS if k.needs <= present and not (k.exact and k.needs != present))
    layout = next(fits, PLAIN)
    naming = {c for meaning in _NAMES for c in PLAIN.columns[meaning].split("|")}
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
    return layout, kept, notes


def _csv(text: str, name: str) -> tuple[list[str], list[Row]]:
    """The header in lower case, and the non-empty rows with their line numbers; empty cells at the end don't matter."""
    text = text.strip("\r\n ")  # not tabs: they may hold an empty last field
    hint = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)  # Excel's
    first = text.splitlines()[0]
    separator = hint[1] if hint else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, [cell.strip() for cell in row]))
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}, is not CSV: {error}.") from None
    rows = rows[1:] if hint else rows
    if not rows:
        raise InputError(f"{name} is empty; expected a CSV with {FORMATS}.")
    header = [" ".join(cell.split()).lower() for cell in rows[0][1]]
    if "const" in header:  # the oldest exports of IMDb name the person: "someone rated"
        header = ["you rated" if cell.endswith(" rated") and cell != "date rated" else cell for cell in header]
    n = len(header)
    for line, row in rows[1:]:
        if any(row[n:]):
            raise InputError(
                f"{name}, line {line}, has {counted(len(row), 'field')} where the header has {n} "
                f"({','.join(header)[:300]}); put titles that hold a comma in double quotes."
            )
    return header, [(f"line {line}", dict(zip(header, row + [""] * n, strict=False))) for line, row in rows[1:]]


def _json(text: str, name: str) -> tuple[list[str], list[Row]]:
    """The entries of a list, of all lists in an object ({"movies": [...], "shows": [...]}), or one entry per line."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as problem:
        try:
            document = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise InputError(f"{name} is not JSON: {problem}.") from None
    lists = {"": document} if isinstance(document, list) else document
    rows = [
        _flat(record, kind.removesuffix("s"))
        for kind, records in lists.items() if isinstance(records, list)
        for record in records if isinstance(record, dict)
    ]  # fmt: skip
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, [(f"entry {n}", row) for n, row in enumerate(rows, 1)]


def _flat(record: Mapping[str, Any], kind: str) -> dict[str, str]:
    """An entry's own keys with its film's title, year and ids; "type" says when it is about a series."""
    kind = next((key for key in ("movie", "show", "episode", "season") if isinstance(record.get(key), dict)), kind)
    about = record.get(kind, record)
    about = about if isinstance(about, dict) else record
    ids = about.get("ids")
    found = {k: about.get(k) for k in ("title", "year") if k in about} | (ids if isinstance(ids, dict) else {})
    if kind:
        found["type"] = "movie" if record.get("anime_type") == "movie" else kind
    scalars = {k: "" if v is None else v for k, v in (found | dict(record)).items()}
    return {k.lower(): str(v).strip() for k, v in scalars.items() if isinstance(v, (str, int, float))}


# ---- from rows to entries


def _is_series(row: Mapping[str, str]) -> bool:
    kind, title = row.get("type", "")[:_LONGEST], row.get("title", "")[:_LONGEST]
    return bool(_EPISODE.search(title) or (_NO_FILM.search(kind) and not _FILM.search(kind)))


def _entry(where: str, row: dict[str, str], name: str, layout: Layout, scale: Scale, overruled: bool) -> Entry:
    row = {meaning: " ".join(cell[:_LONGEST].split()) for meaning, cell in row.items()}
    title, year_text = row.get("title", ""), row.get("year", "")
    found = re.match(r"(\d{4})(?!\d)", year_text)
    year = int(found[1]) if found else None
    if layout is PLAIN and year_text and not re.fullmatch(r"\d{4}(?:\.0)?", year_text):
        raise InputError(f"{name}, {where}: the year {year_text!r} is not a year such as 1995; or leave it empty.")
    if year is None:
        title, year = split_year(title)  # MovieLens: "Toy Story (1995)"
    used = scale if overruled or layout.scale is None else layout.scale
    given = row.get("rating", "")
    if row.get("thumbs") and given in ("", "0"):
        given, used = row["thumbs"], THUMBS
    whose = "of these data" if layout.scale is None else f"of {layout.name}"
    rating = _rating(given, f"{name}, {where}", used, whose)
    names = {meaning: row.get(meaning, "") for meaning in (*_NAMES, "original")} | {"title": title}
    return Entry(where, names, year, rating, used, _when(row.get("date", "")))


def _rating(text: str, where: str, scale: Scale, whose: str) -> float | None:
    """The number, or None where the film is not rated: empty, "-", a 0 or less below a scale of positive numbers."""
    if text.lower() in ("", "-", "none", "null"):
        return None
    try:
        value = float(re.sub(rf"\s*/\s*{scale.hi:g}$", "", text).replace(",", "."))
    except ValueError:
        raise InputError(f"{where}: the rating {text[:40]!r} is not a number; use {scale.lo:g}-{scale.hi:g}.") from None
    if value in (0, -1, -2) and scale.lo > 0:  # Netflix: -1 and -2 are ratings taken back
        return None
    if not scale.lo <= value <= scale.hi:
        raise InputError(
            f"{where}: the rating {text} lies outside the scale {scale.lo:g}-{scale.hi:g} {whose}. If the file uses "
            "another scale, name it: --scale 1-10 (or 0.5-5, ...); its ratings are then mapped."
        )
    return value


def _when(text: str) -> float:
    """Seconds since 1970 of an ISO date, a number of seconds or milliseconds, or IMDb's old form; 0 for others."""
    if re.fullmatch(r"\d{9,14}(?:\.\d+)?", text):
        return float(text) / (1000 if float(text) > 1e11 else 1)
    for parse in (datetime.fromisoformat, lambda t: datetime.strptime(t, "%a %b %d %H:%M:%S %Y")):
        try:
            moment = parse(text.removesuffix(" UTC"))
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return 0.0


# ---- from entries to films


def _number(text: object) -> int | None:
    """The number in an IMDb or TMDB id: tt0114709, 0114709, 114709.0 or an address that holds the first."""
    found = re.search(r"\btt(\d{1,12})\b", str(text)) or re.fullmatch(r"(\d{1,12})(?:\.0)?", str(text))
    return int(found[1]) if found else None


def _match(entries: Sequence[Entry], items: pd.DataFrame, name: str) -> None:
    """Fill in the film of each entry: by id, else by title and year unless an id objects."""
    films, index = items[ITEM].astype(str).tolist(), TitleIndex.of(items)
    reviewed = {(normalise(t), y): _number(i) for title, i in REVIEWED.items() for t, y in [split_year(title)]}
    ids = {kind: items.get(f"{kind}_id", pd.Series(index=items.index)) for kind in ("imdb", "tmdb")}
    known = {kind: [_number(v) for v in column] for kind, column in ids.items()}
    names = zip(known["imdb"], index.titles, index.years, strict=True)
    known["imdb"] = [number or reviewed.get((normalise(title), year)) for number, title, year in names]
    rows: dict[tuple[str, Any], int] = {}
    columns: dict[str, Sequence[Any]] = {"item": films, **known}
    for kind, column in columns.items():
        rows |= {(kind, i): n for n, i in reversed(list(enumerate(column))) if i}
    unknown = [e.names["item"] for e in entries if e.names["item"] and ("item", e.names["item"]) not in rows]
    if unknown:
        raise InputError(
            f"{name} names {counted(len(unknown), 'film')} not in the catalogue: item_id {listed(unknown)}. "
            f"The catalogue has {len(items):,} films, for example {', '.join(films[:3])}."
        )
    there = {title: index.titles[rows["item", i]] for i, title in _MOVIELENS.items() if ("item", i) in rows}
    movielens = len(there) > 1 and all(normalise(a) == normalise(b) for a, b in there.items())
    for e in entries:
        numbers = {kind: _number(e.names[kind]) for kind in known}
        numbers["imdb"] = numbers["imdb"] or reviewed.get((normalise(e.names["title"]), e.year))
        by_movielens = rows.get(("item", e.names["movielens"])) if movielens else None
        hits = {"item_id": rows.get(("item", e.names["item"])), "movielens": by_movielens}
        hits |= {kind: rows.get((kind, number)) for kind, number in numbers.items()}
        row, e.by = next(((n, by) for by, n in hits.items() if n is not None), (None, "title"))
        if row is None:
            row, e.reason = _by_title(e, index, known, numbers)
        if row is not None:
            e.item = films[row]
        elif e.names["movielens"] and not e.names["title"]:
            e.reason = " (this catalogue does not use MovieLens' movieIds: give imdb_id, tmdb_id or title)"
    for e in [e for e in entries if e.item is None and e.names["title"] and not e.reason][:_SUGGESTED]:
        near = index.close(e.names["title"], n=2)
        e.reason = f" (did you mean {' or '.join(near)}?)" if near else ""


def _by_title(
    e: Entry, index: TitleIndex, ids: Mapping[str, list[int | None]], numbers: Mapping[str, int | None]
) -> tuple[int | None, str]:  # fmt: skip
    """The catalogue row a title names, or None and why; a film whose known id is not the one given is another film."""
    for title in filter(None, (e.names["title"], e.names["original"])):
        found = [
            n for n in index.find(title, e.year)
            if all(number is None or ids[kind][n] in (None, number) for kind, number in numbers.items())
            # a year off by one is often a later release, but not of "Circle" when the other is "The Circle"
            and (e.year in (None, index.years[n]) or article(index.titles[n]) == article(title))
        ]  # fmt: skip
        if len({index.years[n] for n in found}) > 1:
            return None, f" (say which year: {', '.join(str(index.years[n]) for n in found)})"
        if found:  # some catalogues hold a film under two ids of the same title and year: the first one is used
            return found[0], ""
    return None, ""


def _latest(found: Iterable[Entry], name: str, strict: bool) -> tuple[list[Entry], list[str]]:
    """One entry per film in the file's order, and the films whose ratings differed; ``strict``: dates must tell."""
    last: dict[str, Entry] = {}
    twice: dict[str, str] = {}
    for e in found:
        item = str(e.item)
        before = last.setdefault(item, e)
        if strict and e is not before and e.when == before.when:
            lines = f"{before.where.replace('line', 'lines')} and {e.where.removeprefix('line ')}"
            raise InputError(f"{name} rates {e.shown} (item_id {item}) twice, in {lines}; keep one of them.")
        if None not in (e.rating, before.rating) and e.rating != before.rating:
            twice[item] = e.shown
        if (e.rating is not None, e.when) >= (before.rating is not None, before.when):
            last[item] = e
    return list(last.values()), list(twice.values())


def _mapped(rated: Sequence[Entry], scale: Scale) -> tuple[Floats, str]:
    """Ratings on the data set's scale, one per entry, and how they were mapped: 'scale 1-10 mapped onto 1-5'."""
    if not rated:
        return np.zeros(0), "no ratings"
    thumbs = (1, 2, 3), (scale.lo, scale.liked, scale.hi)
    ends = [thumbs if e.scale is THUMBS else ((e.scale.lo, e.scale.hi), (scale.lo, scale.hi)) for e in rated]
    values = np.array([np.interp(e.rating or 0.0, *knots) for e, knots in zip(rated, ends, strict=True)])
    target = f"{scale.lo:g}-{scale.hi:g}"
    used = list(dict.fromkeys("thumbs" if e.scale is THUMBS else f"{e.scale.lo:g}-{e.scale.hi:g}" for e in rated))
    return values, f"scale {' and '.join(used)}" + (f" mapped onto {target}" if used != [target] else "")
