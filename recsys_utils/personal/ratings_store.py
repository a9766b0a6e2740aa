"""A store of real people's ratings in an SQL database, and their merge with a data set's.

One table, ``ratings(user_id, movie_id, rating, created_at)``, movie_id being TMDB's. SQLite needs nothing; PostgreSQL
(and what speaks its protocol, such as Supabase) the driver of the extra ``postgres``. A URL's password enters no
message, no note and no file of a run: parameters name an environment variable instead (``env:RECSYS_STORE_URL``).
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sqlalchemy as sql
from sqlalchemy.engine import URL

from recsys_utils.base import ITEM, RATING, TIMESTAMP, USER, InputError, Scale, counted
from recsys_utils.personal.own_table import parse_scale

PREFIX = "real_"
"""Goes before every user id of the store; a data set's users carry another one, so no id can stand for two people."""

_QUERY = sql.text("SELECT user_id, movie_id, rating, created_at FROM ratings")
_SECONDS = 5  # to wait for a connection
_FAILURES = (sql.exc.SQLAlchemyError, ImportError, OSError, ValueError)


class Unreachable(InputError):
    """There is no store at the other end: it is down, refuses the login, or has no such table."""


class Merged(NamedTuple):
    """Ratings of the data set and the store together, a sentence on what happened, and what meta.json says of it."""

    ratings: pd.DataFrame
    note: str
    meta: dict[str, Any]


def store_url(text: str, root: Path | None = None) -> URL:
    """The URL in ``text``, or in the environment variable it names as ``env:NAME``.

    ``postgres://`` and ``postgresql://`` use the driver psycopg; a relative SQLite path counts from ``root``.

    Raises
    ------
    InputError : the variable is not set, or no database URL; the text is not repeated, for it may hold a password.

    >>> store_url("postgres://me:secret@db.example.org/films").render_as_string()
    'postgresql+psycopg://me:***@db.example.org/films'
    """
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        text = os.environ.get(name, "")
        if not text:
            raise Unreachable(f"The ratings store is to be found in the environment variable {name}, which is not set.")
    try:
        url = sql.make_url(re.sub(r"^postgres(?:ql)?://", "postgresql+psycopg://", text))
    except _FAILURES:
        raise InputError(
            "The ratings store's address is no database URL; examples are sqlite:///data/ratings.db and "
            "postgresql://USER:PASSWORD@HOST/DATABASE."
        ) from None
    if root is not None and url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        url = url.set(database=str(root / url.database))
    return url


def read(url: URL) -> pd.DataFrame:
    """All ratings of a store: user_id str, movie_id int64, rating float64, timestamp int64 (0 = no date).

    One row a user and film, the latest; rows sorted by user and film, so the result doesn't depend on their order.

    Raises
    ------
    Unreachable : names the store without its password, and the database's reason.
    InputError : a row that is no rating.
    """
    try:
        found = _rows(url)
    except _FAILURES as error:
        raise Unreachable(f"The ratings store {_shown(url)} can't be read: {_reason(error, url)}.") from None
    numbers = found[["movie_id", RATING]].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    bad = numbers.isna().any(axis=1) | found[USER].isna() | (numbers["movie_id"] % 1 != 0) | np.isinf(numbers[RATING])
    if bad.any():
        shown = found.loc[bad, ["movie_id", RATING]].iloc[0].tolist()
        raise InputError(
            f"The ratings store {_shown(url)} holds {counted(int(bad.sum()), 'bad row')}; the first has "
            f"movie_id {shown[0]!r} and rating {shown[1]!r}. Each row needs a user_id, a whole movie_id and a number."
        )
    dates = pd.to_datetime(found.pop("created_at"), utc=True, errors="coerce", format="ISO8601")
    seconds = (dates - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)
    table = found.astype({USER: str}).assign(**numbers, **{TIMESTAMP: seconds.fillna(0).clip(lower=0)})
    table = table.astype({"movie_id": np.int64, TIMESTAMP: np.int64})
    table = table.sort_values([USER, "movie_id", TIMESTAMP, RATING], kind="stable")
    return table.drop_duplicates([USER, "movie_id"], keep="last", ignore_index=True)


def merge_store(
    ratings: pd.DataFrame, items: pd.DataFrame, *, store: str, required: bool, scale: Scale, store_scale: str = "",
    root: Path | None = None,
) -> Merged:  # fmt: skip
    """The data set's ratings followed by those of the store, where one is named.

    Users of the store get :data:`PREFIX`. Where both have a rating of the same user and film (the table was merged
    before), the store's counts. Films whose TMDB id the catalogue lacks are left out and counted.

    Parameters
    ----------
    ratings : user_id, item_id, rating, timestamp
    items : item_id and tmdb_id
    store : a database URL, ``env:NAME``, or "" for none
    required : an unreachable store is an error; otherwise the note warns and the data set's ratings are used alone
    scale, store_scale : of the data set, and of the store as text such as 0.5-5 ("": the same); mapped linearly
    root : folder from which a relative SQLite path counts

    Raises
    ------
    InputError : an unreachable store that is required, a rating off its scale, rows that are no ratings.
    """
    if not store:
        return Merged(ratings, "", {})
    try:
        found = read(store_url(store, root))
    except Unreachable as error:
        if required:
            raise InputError(f"{error} It is required (dataset.store_required).") from None
        return Merged(ratings, f"Warning: {error} The data set's ratings are used alone.", {"reachable": False})
    values = _mapped(found[RATING], parse_scale(store_scale) if store_scale else scale, scale)
    films = items.dropna(subset="tmdb_id").drop_duplicates("tmdb_id")
    if required and films.empty:
        raise InputError(
            "The ratings store names films by TMDB id, and no film of the catalogue has one; dataset.links=FILE.zip "
            "(of ml-latest-small or later) adds them."
        )
    item = found["movie_id"].astype(str).map(dict(zip(films["tmdb_id"].astype(str), films[ITEM], strict=True)))
    real = found.assign(**{USER: PREFIX + found[USER], ITEM: item, RATING: values})[[USER, ITEM, RATING, TIMESTAMP]]
    real = real.dropna(subset=ITEM).astype(ratings.dtypes[real.columns].to_dict())
    both = pd.concat([ratings, real], ignore_index=True).drop_duplicates([USER, ITEM], keep="last", ignore_index=True)
    users, unknown = int(real[USER].nunique()), len(found) - len(real)
    note = f"The ratings store adds {counted(len(real), 'rating')} of {counted(users, 'user')}."
    if unknown:
        note += f" Left out: {counted(unknown, 'rating')} of films that the catalogue does not know by TMDB id."
    meta = {"users": users, "ratings": len(real), "ratings_of_unknown_films": unknown, "sha256": _sha256(found)}
    return Merged(both, note, {"reachable": True} | meta)


def _mapped(values: pd.Series, own: Scale, scale: Scale) -> pd.Series:
    """Ratings, mapped linearly from the store's scale to the data set's; InputError for one off its scale."""
    off = values[~values.between(own.lo, own.hi)]
    if len(off):
        raise InputError(
            f"The store's ratings outside the scale {own.lo:g}-{own.hi:g}: {len(off):,}, the first {off.iloc[0]:g}. "
            "If the store uses another scale, name it (dataset.store_scale: 0.5-5)."
        )
    return (scale.lo + (values - own.lo) * (scale.hi - scale.lo) / (own.hi - own.lo)).astype(np.float32)


def state(store: str, root: Path | None = None) -> str:
    """What a run that reads a store depends on: a digest of its ratings, or that they can't be read."""
    try:
        return _sha256(read(store_url(store, root)))
    except InputError:
        return "unreadable"


def _sha256(found: pd.DataFrame) -> str:
    return hashlib.sha256(found.to_csv(index=False).encode()).hexdigest()


def _rows(url: URL) -> pd.DataFrame:
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise FileNotFoundError("there is no such file")  # SQLite would make an empty one
    options = {"connect_timeout": _SECONDS} if url.get_backend_name() == "postgresql" else {}
    engine = sql.create_engine(url, connect_args=options, hide_parameters=True, poolclass=sql.NullPool)
    # untyped columns: stores made by others keep ids as numbers, UUIDs or text, and dates as text
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(_QUERY)]
    return pd.DataFrame(rows, columns=[USER, "movie_id", RATING, "created_at"])


def _shown(url: URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)  # a query may hold a password of its own


def _reason(error: Exception, url: URL) -> str:
    """The database's own words in one line, without the password."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    secrets = [url.render_as_string(hide_password=False), url.password, url.query.get("password")]
    for secret in (str(s) for s in secrets if s):
        text = text.replace(secret, "***")
    return text[:300].rstrip(".")
