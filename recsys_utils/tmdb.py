"""Film facts from TMDB's API, with the user's own key: polite to the service, resumable, kept no longer than allowed.

The token is read from the environment and goes into the request's header, nowhere else: no parameter, message, cache
or log holds it. What is fetched lies in one SQLite file, a row a film, written as it arrives; so an interrupted run
goes on where it was.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from recsys_utils.catalogue import LISTS, Facts, Source
from recsys_utils.interfaces import InputError
from recsys_utils.providers import TMDB_TERMS, film_fields

TOKEN = "TMDB_BEARER_TOKEN"
URL = "https://api.themoviedb.org/3"
KEEP = datetime.timedelta(days=180)  # the terms: no copy older than six months
PER_SECOND = 20
TRIES = 5
LONGEST_PAUSE = 120.0  # seconds; a service that asks for more is as good as away
GIVE_UP = 3  # films in a row that could not be had: the service is away, the others would fail too
NOTICE = (
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


def token() -> str:
    """The bearer token from the environment.

    Raises
    ------
    InputError : there is none, or what there is can't be one; the message does not show it.
    """
    found = os.environ.get(TOKEN, "").strip()
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", found):
        raise InputError(
            f"dataset.catalogue names tmdb, which needs an API read access token: the environment variable {TOKEN} "
            f"{'holds characters no token has' if found else 'is not set'}. TMDB gives tokens away "
            "(https://www.themoviedb.org/settings/api); or take tmdb off the list."
        )
    return found


@dataclass
class Api:
    """TMDB's film details, at most ``PER_SECOND`` requests a second, tried again when that can help.

    Parameters
    ----------
    token : sent as a bearer token, to ``url`` only: redirections are not followed
    sleep, clock : in seconds; tests bring their own
    """

    token: str = field(repr=False)
    url: str = URL
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
            raise InputError(f"TMDB refuses the token in {TOKEN} (HTTP {status}); is it the API read access token?")
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


def facts(
    numbers: Iterable[str], cache: Path, api: Api, *, today: datetime.date | None = None,
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
    missing: list[str] = []
    why, failed = "", 0
    with contextlib.closing(_open(cache, today - KEEP)) as store:
        have = {number for (number,) in store.execute("SELECT tmdb_id FROM film")}
        due = [n for n in asked if n not in have]
        for place, number in enumerate(due):
            if failed == GIVE_UP:
                missing += due[place:]
                break
            try:
                row = (number, today.isoformat(), json.dumps(api.film(number)))
            except Unavailable as error:
                missing, why, failed = [*missing, number], str(error), failed + 1
                continue
            failed = 0
            with store:
                store.execute("INSERT OR REPLACE INTO film VALUES (?, ?, ?)", row)
            if (place + 1) % max(1, len(due) // 10) == 0:
                say(f"TMDB: {place + 1:,} of {len(due):,} films")
        rows = [row for row in store.execute("SELECT * FROM film") if row[0] in set(asked)]
    known = [{"tmdb_id": number} | json.loads(text) for number, _, text in rows if text != "null"]
    notes = [NOTICE]
    if missing:
        notes.append(
            f"Warning: TMDB could not be asked about {len(missing):,} of {len(asked):,} films (last: {why}); they keep "
            "what the other sources know. What arrived is cached; --force 01_ingest asks for the others."
        )
    source = Source("tmdb", *TMDB_TERMS, snapshot=min((day for _, day, _ in rows), default=""))
    table = pd.DataFrame(known).reindex(columns=["tmdb_id", *LISTS, "overview"])
    return Facts(source, table, key="tmdb_id", ordered=True), notes


def _open(path: Path, oldest: datetime.date) -> sqlite3.Connection:
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
