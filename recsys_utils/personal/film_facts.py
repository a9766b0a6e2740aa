"""What others know about films: tables that a person has fetched (TMDB, Kaggle, IMDb's TSVs), and TMDB's API.

A file is known by its columns, not by its name; .csv, .tsv, .gz and .zip are read. Rows are filtered to the films at
hand while they stream in, so IMDb's files, some of tens of millions of rows, need little memory.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import gzip
import io
import json
import os
import re
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, cast

import httpx
import pandas as pd
import polars as pl
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from recsys_utils.base import InputError
from recsys_utils.data.catalogue import LISTS, Facts, Source
from recsys_utils.data.fetch import UNREADABLE

_BLOCK = 1 << 25
_CAST = 10  # of a film's credits in billing order; a later name says little about it
TMDB_TERMS = (
    "TMDB's terms: non-commercial, attribution, no copy older than six months; Kaggle editions add their own",
    "This product uses the TMDB API but is not endorsed or certified by TMDB.",
)
_IMDB = (
    "IMDb non-commercial datasets: personal and non-commercial use, no republication",
    "Information courtesy of IMDb (https://www.imdb.com). Used with permission.",
)


def read(paths: Sequence[Path], known: pd.DataFrame) -> dict[Path, list[Facts]]:
    """What files say about films, by file; IMDb's files belong together and speak at the place of the first of them.

    Parameters
    ----------
    known : imdb_id, tmdb_id of the films at hand, missing where unknown; all else is skipped

    Raises
    ------
    InputError : a file that isn't there, can't be read, or has columns of no known source.
    """
    tmdb, imdb = set(known["tmdb_id"].dropna()), set(known["imdb_id"].dropna())
    told: dict[Path, list[Facts]] = {path: [] for path in paths}
    tables: dict[str, tuple[Path, pl.DataFrame]] = {}
    names: list[Path] = []
    for path in paths:
        if not path.is_file():
            raise InputError(f"dataset.catalogue: there is no file {path}.")
        try:
            for columns, blocks in _tables(path):
                if "nconst" in columns and "tconst" not in columns:
                    names.append(path)  # read last: only people of the films at hand are kept
                elif "tconst" in columns:
                    tables[_imdb_kind(columns, path)] = (path, _keep(blocks, "tconst", imdb))
                elif one := _tmdb(columns, blocks, tmdb, path):
                    told[path].append(one)
        except (*UNREADABLE, ValueError, pl.exceptions.PolarsError) as error:
            why = " ".join(str(error).split("\n\n")[0].split())
            raise InputError(f"dataset.catalogue: {path} can't be read ({why}).") from None
    spoken = {*names, *(path for path, _ in tables.values()), *(path for path in paths if told[path])}
    for path in paths:
        if path not in spoken:
            raise InputError(
                f"dataset.catalogue: {path} has no table of a known source; known are the files of TMDB 5000 and of "
                "The Movies Dataset (id or movie_id with genres, keywords, overview, cast or crew) and IMDb's TSVs."
            )
    if tables:
        told[next(path for path, _ in tables.values())].append(_imdb(tables, names))
    return told


def _tables(path: Path) -> Iterator[tuple[list[str], Iterator[pl.DataFrame]]]:
    """The tables in a file (several in a zip): their columns and their rows, block by block, every field a string."""
    if not zipfile.is_zipfile(path):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield _blocks(cast(IO[bytes], stream))
        return
    with zipfile.ZipFile(path) as bundle:
        for member in bundle.infolist():
            if member.filename.endswith((".csv", ".tsv")):
                with bundle.open(member) as stream:
                    yield _blocks(stream)


def _blocks(stream: IO[bytes]) -> tuple[list[str], Iterator[pl.DataFrame]]:
    header = stream.readline(1 << 16).decode("utf-8-sig")
    tab = "\t" in header
    columns = [c.strip().strip('"') for c in header.split("\t" if tab else ",")]

    def parse(text: bytes) -> pl.DataFrame:
        if tab:  # IMDb quotes nothing, and a title may hold a lone quotation mark
            return pl.read_csv(
                text, has_header=False, new_columns=columns, separator="\t", quote_char=None, infer_schema=False,
                null_values="\\N",
            )  # fmt: skip
        rows = pd.read_csv(io.BytesIO(text), names=columns, dtype=str, keep_default_na=False, on_bad_lines="skip")
        return pl.from_pandas(rows)

    def pieces() -> Iterator[pl.DataFrame]:
        if not tab:  # a quoted field may hold line ends: such a file is read in one piece, and they are small
            yield parse(stream.read())
            return
        while block := stream.read(_BLOCK):
            yield parse(block + stream.readline())

    return columns, pieces()


def _keep(blocks: Iterable[pl.DataFrame], key: str, wanted: set[str]) -> pl.DataFrame:
    """The rows whose key is wanted."""
    return pl.concat([block.filter(pl.col(key).is_in(list(wanted))) for block in blocks])


# ---- TMDB and Kaggle


def _tmdb(columns: list[str], blocks: Iterator[pl.DataFrame], wanted: set[str], path: Path) -> Facts | None:
    """A table of TMDB 5000 (movies, credits) or The Movies Dataset (metadata, keywords, credits); None for others."""
    key = "movie_id" if "movie_id" in columns else "id"
    fields = list(film_fields(dict.fromkeys(columns, "")))
    if key not in columns or not fields:
        return None
    rows = _keep(blocks, key, wanted)
    table = pd.DataFrame([{"tmdb_id": row[key]} | film_fields(row) for row in rows.iter_rows(named=True)])
    source = Source(f"tmdb ({path.name})", *TMDB_TERMS, snapshot=_snapshot(path))
    return Facts(source, table.reindex(columns=["tmdb_id", *fields]), key="tmdb_id", ordered=True)


def film_fields(row: Mapping[str, str | None]) -> dict[str, list[str] | str]:
    """The catalogue's fields of one film from columns as TMDB and Kaggle write them; what has no column is left out.

    >>> film_fields({"genres": '[{"id": 16, "name": "Animation"}]', "overview": None})
    {'genres': ['Animation'], 'overview': ''}
    """
    told = {field: read(row[column] or "") for field, (column, read) in _FIELDS.items() if column in row}
    return {field.split("/")[0]: value for field, value in told.items()}


def _records(text: str) -> list[dict[str, Any]]:
    """A list of objects in JSON (TMDB 5000) or as a Python literal (The Movies Dataset); empty if it is neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return [r for r in found if isinstance(r, dict)] if isinstance(found, list) else []
    return []


def _named(records: Iterable[dict[str, Any]]) -> list[str]:
    names = (str(r.get("name") or "").strip() for r in records)
    return list(dict.fromkeys(n for n in names if n))


def _cast(text: str) -> list[str]:
    return _named(sorted(_records(text), key=lambda r: r["order"] if isinstance(r.get("order"), int) else _CAST))[
        :_CAST
    ]


def _crew(*departments: str) -> Callable[[str], list[str]]:
    return lambda text: sorted(
        _named(r for r in _records(text) if {r.get("job"), r.get("department")} & set(departments))
    )


def _list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# field of the catalogue -> column of the file, and how to read it; the simplified credits name fields otherwise
_FIELDS: dict[str, tuple[str, Callable[[str], list[str] | str]]] = {
    "genres": ("genres", lambda text: _named(_records(text))),
    "keywords": ("keywords", lambda text: _named(_records(text))),
    "overview": ("overview", str.strip),
    "actors": ("cast", _cast),
    "directors": ("crew", _crew("Director")),
    "writers": ("crew", _crew("Writing")),
    "actors/simple": ("top_cast", _list),
    "directors/simple": ("director", _list),
}


# ---- IMDb


def _imdb_kind(columns: list[str], path: Path) -> str:
    kinds = {"directors": "crew", "nconst": "principals", "primaryTitle": "basics", "averageRating": "ratings"}
    for column, kind in kinds.items():
        if column in columns:
            return kind
    raise InputError(f"dataset.catalogue: {path} has tconst and {', '.join(columns[1:6])}; no file of IMDb has these.")


def _imdb(tables: dict[str, tuple[Path, pl.DataFrame]], names: list[Path]) -> Facts:
    """genres from title.basics, directors and writers from title.crew, actors in billing order from title.principals.

    People go by name where name.basics is given, by nconst otherwise. title.ratings adds imdb_rating and imdb_votes,
    which are no content: today's votes would leak the future into an offline test.
    """
    people: dict[str, list[tuple[str, list[str]]]] = {}
    table = pd.DataFrame({"imdb_id": sorted({t for _, rows in tables.values() for t in rows["tconst"].to_list()})})
    if "basics" in tables:
        rows = tables["basics"][1]
        genres = {t: _list(g or "") for t, g in zip(rows["tconst"], rows["genres"], strict=True)}
        table["genres"] = table["imdb_id"].map(genres)
    if "crew" in tables:
        rows = tables["crew"][1]
        for column in ("directors", "writers"):
            people[column] = [(t, _list(p or "")) for t, p in zip(rows["tconst"], rows[column], strict=True)]
    if "principals" in tables:
        rows = tables["principals"][1].filter(pl.col("category").is_in(["actor", "actress"]))
        rows = rows.with_columns(pl.col("ordering").cast(pl.Int32)).sort("tconst", "ordering")
        billed = rows.group_by("tconst", maintain_order=True).agg(pl.col("nconst").head(_CAST))
        people["actors"] = [(t, list(p)) for t, p in zip(billed["tconst"], billed["nconst"], strict=True)]
    if "ratings" in tables:
        rows = tables["ratings"][1]
        for column, theirs in (("imdb_rating", "averageRating"), ("imdb_votes", "numVotes")):
            values = rows[theirs].cast(pl.Float64, strict=False)
            table[column] = table["imdb_id"].map(dict(zip(rows["tconst"], values, strict=True)))
    wanted = {p for pairs in people.values() for _, members in pairs for p in members}
    called: dict[str, str] = {}
    for path in names:
        for _, blocks in _tables(path):
            rows = _keep(blocks, "nconst", wanted)
            called |= dict(zip(rows["nconst"].to_list(), rows["primaryName"].to_list(), strict=True))
    for column, pairs in people.items():
        table[column] = table["imdb_id"].map({t: [called.get(p) or p for p in members] for t, members in pairs})
    dates = [_snapshot(path) for path, _ in tables.values()]
    return Facts(Source("imdb", *_IMDB, snapshot=max(dates)), table, key="imdb_id", ordered=True)


def _snapshot(path: Path) -> str:
    """The date a zip or gzip file says it was made on, as an ISO date; "" where it says none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as bundle:
            newest = max((i.date_time for i in bundle.infolist()), default=(1980, 1, 1))
        return "" if newest[0] <= 1980 else datetime.date(*newest[:3]).isoformat()
    with path.open("rb") as stream:
        start = stream.read(8)
    seconds = int.from_bytes(start[4:], "little") if start[:2] == b"\x1f\x8b" else 0
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat() if seconds else ""


# ---- TMDB's API: polite to the service, resumable, kept no longer than allowed

TMDB_TOKEN = "TMDB_BEARER_TOKEN"
TMDB_URL = "https://api.themoviedb.org/3"
KEEP = datetime.timedelta(days=180)  # the terms: no copy older than six months
PER_SECOND = 20
TRIES = 5
LONGEST_PAUSE = 120.0  # seconds; a service that asks for more is as good as away
GIVE_UP = 3  # films in a row that could not be had: the service is away, the others would fail too
TMDB_NOTICE = (
    f"{TMDB_TERMS[1]} Its terms allow non-commercial use with this attribution, no copy older than six months (the "
    "cache drops such entries by itself; delete runs made from them too), and restrict use for machine learning: see "
    "https://www.themoviedb.org/api-terms-of-use before results leave your desk."
)

Film = dict[str, Any]


class Unavailable(Exception):
    """A film could not be had; whether another try is worth it, and after how many seconds if it says so."""

    def __init__(self, what: str, again: bool = True, after: float | None = None) -> None:
        super().__init__(what)
        self.again, self.after = again, after


def tmdb_token() -> str:
    """The bearer token from the environment; it goes into the request's header, no parameter, message, cache or log.

    Raises
    ------
    InputError : there is none, or what there is can't be one; the message does not show it.
    """
    found = os.environ.get(TMDB_TOKEN, "").strip()
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", found):
        raise InputError(
            "dataset.catalogue names tmdb, which needs an API read access token: the environment variable "
            f"{TMDB_TOKEN} {'holds characters no token has' if found else 'is not set'}. TMDB gives tokens away "
            "(https://www.themoviedb.org/settings/api); or take tmdb off the list."
        )
    return found


@dataclass
class TmdbApi:
    """TMDB's film details, at most ``PER_SECOND`` requests a second, tried again when that can help.

    Parameters
    ----------
    token : sent as a bearer token, to ``url`` only: redirections are not followed
    sleep, clock : in seconds; tests bring their own
    """

    token: str = field(repr=False)
    url: str = TMDB_URL
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    timeout: float = 15.0

    def __post_init__(self) -> None:
        self._next = self.clock()
        self._client = httpx.Client(headers={"Authorization": f"Bearer {self.token}"}, timeout=self.timeout)

    def film(self, number: str) -> Film | None:
        """The catalogue's fields of a film, or None where TMDB knows no such film.

        Raises
        ------
        Unavailable : not after ``TRIES`` attempts (429 with its Retry-After, 5xx, time-outs, broken answers).
        InputError : the token is refused.
        """
        worth = retry_if_exception(lambda error: isinstance(error, Unavailable) and error.again)
        tries = Retrying(retry=worth, stop=stop_after_attempt(TRIES), wait=_pause, sleep=self.sleep, reraise=True)
        return tries(self._ask, number)

    def _ask(self, number: str) -> Film | None:
        if (early := self._next - self.clock()) > 0:
            self.sleep(early)
        self._next = self.clock() + 1 / PER_SECOND
        try:
            answer = self._client.get(f"{self.url}/movie/{number}", params={"append_to_response": "credits,keywords"})
        except httpx.RequestError as error:
            raise Unavailable(type(error).__name__) from None
        status = answer.status_code
        if status == 404:
            return None
        if status in (401, 403):
            raise InputError(
                f"TMDB refuses the token in {TMDB_TOKEN} (HTTP {status}); is it the API read access token?"
            )
        if status != 200:
            after = _seconds(answer.headers.get("Retry-After", ""))
            passing = (status == 429 or status >= 500) and (after or 0) <= LONGEST_PAUSE
            raise Unavailable(f"HTTP {status}", passing, after)
        try:
            return _reduced(answer.json())
        except (ValueError, AttributeError, TypeError):
            raise Unavailable("an answer that is no film in JSON") from None


def _pause(state: RetryCallState) -> float:
    """What the service asks for, else .5, 1, 2 ... seconds."""
    after = getattr(state.outcome and state.outcome.exception(), "after", None)
    return wait_exponential(multiplier=0.5, max=8)(state) if after is None else float(after)


def _seconds(text: str) -> float | None:
    """A Retry-After header in seconds: a number, or a date; None where it says nothing."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _reduced(answer: dict[str, Any]) -> Film:
    """What the catalogue has a field for, read as from TMDB's own tables."""
    parts = {"genres": answer.get("genres")} | (answer.get("keywords") or {}) | (answer.get("credits") or {})
    return film_fields({name: json.dumps(part) for name, part in parts.items()} | {"overview": answer.get("overview")})


def tmdb_facts(
    numbers: Iterable[str], cache: Path, api: TmdbApi, *, today: datetime.date | None = None,
    say: Callable[[str], object] = print,
) -> tuple[Facts, list[str]]:  # fmt: skip
    """What TMDB says about films, from the cache or the service, and notes for the reader: the terms, what is missing.

    Films that can't be had are left out; after ``GIVE_UP`` in a row no other is asked for. What arrived stays cached.

    Parameters
    ----------
    numbers : TMDB ids
    cache : SQLite file; entries older than ``KEEP`` are dropped from it

    Raises
    ------
    InputError : no film has an id, the token is refused, the cache is no SQLite file.
    """
    asked = [n for n in dict.fromkeys(numbers) if n.isdecimal()]
    if not asked:
        raise InputError(
            "dataset.catalogue names tmdb, but no film has a TMDB id; dataset.links=FILE.zip (of ml-latest-small or "
            "later) adds them."
        )
    today = today or datetime.datetime.now(datetime.UTC).date()
    with contextlib.closing(_open_cache(cache, today - KEEP)) as store:
        missing, why = _fetch(asked, store, api, today, say)
        rows = [row for row in store.execute("SELECT * FROM film") if row[0] in set(asked)]
    known = [{"tmdb_id": number} | json.loads(text) for number, _, text in rows if text != "null"]
    notes = [TMDB_NOTICE]
    if missing:
        notes.append(
            f"Warning: TMDB could not be asked about {len(missing):,} of {len(asked):,} films (last: {why}); they keep "
            "what the other sources know. What arrived is cached; --force 01_ingest asks for the others."
        )
    source = Source("tmdb", *TMDB_TERMS, snapshot=min((day for _, day, _ in rows), default=""))
    table = pd.DataFrame(known).reindex(columns=["tmdb_id", *LISTS, "overview"])
    return Facts(source, table, key="tmdb_id", ordered=True), notes


def _fetch(
    numbers: Iterable[str], store: sqlite3.Connection, api: TmdbApi, today: datetime.date, say: Callable[[str], object]
) -> tuple[list[str], str]:
    """Add films to the cache; the numbers of those that could not be had, and why the last one could not."""
    have = {number for (number,) in store.execute("SELECT tmdb_id FROM film")}
    due = [n for n in numbers if n not in have]
    missing: list[str] = []
    why, failed = "", 0
    for done, number in enumerate(due):
        if failed == GIVE_UP:
            return [*missing, *due[done:]], why
        try:
            row = (number, today.isoformat(), json.dumps(api.film(number)))
        except Unavailable as error:
            missing, why, failed = [*missing, number], str(error), failed + 1
            continue
        failed = 0
        with store:
            store.execute("INSERT OR REPLACE INTO film VALUES (?, ?, ?)", row)
        if (done + 1) % max(1, len(due) // 10) == 0:
            say(f"TMDB: {done + 1:,} of {len(due):,} films")
    return missing, why


def _open_cache(path: Path, oldest: datetime.date) -> sqlite3.Connection:
    """The cache without what has expired; made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store = sqlite3.connect(path, timeout=60)
    try:
        store.execute("PRAGMA secure_delete = ON")  # what has expired is overwritten, not just forgotten
        with store:
            store.execute("CREATE TABLE IF NOT EXISTS film (tmdb_id TEXT PRIMARY KEY, fetched TEXT, fields TEXT)")
            store.execute("DELETE FROM film WHERE fetched < ?", (oldest.isoformat(),))
    except sqlite3.DatabaseError as error:
        store.close()
        raise InputError(f"The cache of TMDB {path} can't be used ({error}); delete it to fetch anew.") from None
    return store
