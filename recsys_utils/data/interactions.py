"""Ratings as one users x items matrix with fixed orders of users and items."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import parquet as pq
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, RATING, TIMESTAMP, USER, InputError, Scale, counted


def natural_order(ids: Iterable[str]) -> list[str]:
    """Sort ids so that embedded numbers count as numbers.

    >>> natural_order(["ml_10", "ml_9", "b"])
    ['b', 'ml_9', 'ml_10']
    """

    def key(text: str) -> list[tuple[int, int, str]]:
        return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in re.split(r"(\d+)", text) if p]

    return sorted(ids, key=lambda text: (key(text), text))


Origin = tuple[str, int, NDArray[np.bool_]]
"""Folder and version (time of change) of the interactions.parquet that was read, and which of its rows are kept."""


@dataclass(frozen=True)
class Interactions:
    """Ratings of U users for I items; row ``u`` of ``user_item`` belongs to ``users[u]``.

    Parameters
    ----------
    users, items : (U,), (I,) arrays of str. ``items`` is the whole catalogue, rated or not;
        its order breaks score ties.
    user, item : (N,) int32 positions in ``users`` and ``items``
    rating : (N,) float32 on ``scale``
    timestamp : (N,) int64, seconds since 1970; all 0 where the data have none
    scale : the rating scale

    A pair (user, item) occurs once. Subsets (:meth:`where`) keep users and items, so matrices of a training and a test
    part always align.

    >>> frame = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "rating": [5, 3, 4]})
    >>> Interactions.from_frame(frame, scale=Scale(1, 5)).user_item.toarray().tolist()
    [[5.0, 3.0], [4.0, 0.0]]
    """

    users: NDArray[np.object_]
    items: NDArray[np.object_]
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]
    scale: Scale
    origin: Origin | None = field(default=None, init=False, compare=False)  # lost when a column is replaced

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        scale: Scale,
        items: Iterable[str] | None = None,
        users: Iterable[str] | None = None,
    ) -> Interactions:
        """Build from columns user_id, item_id, rating[, timestamp]; row order is kept.

        Raises
        ------
        InputError : a column is missing, a pair occurs twice, a rating is off the scale, an id is unknown.
        """
        if missing := [c for c in (USER, ITEM, RATING) if c not in frame]:
            raise InputError(f"Ratings have no column {', '.join(missing)}; found {', '.join(map(str, frame))}.")
        user_ids = np.asarray(natural_order(set(frame[USER])) if users is None else list(users), dtype=object)
        item_ids = np.asarray(natural_order(set(frame[ITEM])) if items is None else list(items), dtype=object)
        user, item = _positions(user_ids, frame[USER]), _positions(item_ids, frame[ITEM])
        for name, index in ((USER, user), (ITEM, item)):
            if (index < 0).any():
                bad = frame[name].to_numpy()[index < 0]
                raise InputError(f"Unknown: {counted(len(set(bad)), 'value')} of {name}, the first is {bad[0]!r}.")
        rating = frame[RATING].to_numpy(dtype=np.float32)
        off = ~((rating >= scale.lo) & (rating <= scale.hi))
        if off.any():
            row = int(np.flatnonzero(off)[0])
            raise InputError(
                f"These lie outside the scale {scale.lo:g}-{scale.hi:g}: {counted(int(off.sum()), 'rating')}; "
                f"the first is {rating[row]:g} by {frame[USER].iloc[row]!r} for {frame[ITEM].iloc[row]!r}."
            )
        pairs = np.sort(user.astype(np.int64) * len(item_ids) + item)
        if (pairs[1:] == pairs[:-1]).any():
            raise InputError("Some user rated the same item twice; keep one rating per pair (say, the latest).")
        stamp = frame[TIMESTAMP].to_numpy(dtype=np.int64) if TIMESTAMP in frame else np.zeros(len(frame), np.int64)
        return cls(user_ids, item_ids, user, item, rating, stamp, scale)

    def __len__(self) -> int:
        return len(self.rating)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.users), len(self.items)

    @cached_property
    def user_item(self) -> csr_matrix:
        """(U, I) float32 ratings, sorted indices. Stored entries are ratings, even a stored 0."""
        matrix = csr_matrix((self.rating, (self.user, self.item)), shape=self.shape, dtype=np.float32)
        matrix.sort_indices()
        return matrix

    @cached_property
    def liked_item(self) -> csr_matrix:
        """(U, I) float32, 1 where the rating is a like."""
        keep = self.rating >= self.scale.liked
        ones = np.ones(int(keep.sum()), np.float32)
        return csr_matrix((ones, (self.user[keep], self.item[keep])), shape=self.shape, dtype=np.float32)

    def where(self, mask: NDArray[np.bool_]) -> Interactions:
        """The ratings for which ``mask`` (N,) holds, with unchanged users and items."""
        if len(mask) != len(self):
            raise ValueError(f"mask has {len(mask)} entries for {len(self)} ratings")
        columns = {n: getattr(self, n)[mask] for n in ("user", "item", "rating", "timestamp")}
        if self.origin is None:
            return replace(self, **columns)
        folder, version, rows = self.origin
        kept = rows.copy()
        kept[kept] = mask
        return _from_files(replace(self, **columns), (folder, version, kept))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the place where the ratings can be read instead of the ratings, if they came from files."""
        if self.origin is not None:
            folder, version, kept = self.origin
            return _read_part, (folder, version, np.packbits(kept))
        return Interactions, tuple(getattr(self, column.name) for column in fields(self) if column.init)

    def of_users(self, rows: NDArray[np.int_]) -> Interactions:
        """Only the ratings of the users at positions ``rows``; the other rows stay, empty."""
        return self.where(np.isin(self.user, rows))

    def alone(self, users: NDArray[np.bool_]) -> Interactions:
        """Only the users under the mask (U,), with no rows for the others."""
        kept, place = self.where(users[self.user]), np.cumsum(users) - 1
        return replace(kept, users=self.users[users], user=place[kept.user].astype(np.int32))

    def to_frame(self) -> pd.DataFrame:
        """Columns user_id, item_id, rating, timestamp in stored order."""
        return pd.DataFrame(
            {USER: self.users[self.user], ITEM: self.items[self.item], RATING: self.rating, TIMESTAMP: self.timestamp}
        )


def _positions(ids: NDArray[np.object_], column: pd.Series) -> NDArray[np.int32]:
    """(N,) positions of a column's values among the ids, -1 for an unknown one; distinct values are looked up once."""
    codes, values = pd.factorize(column, use_na_sentinel=False)
    found: NDArray[np.int32] = pd.Index(ids).get_indexer(pd.Index(values, dtype=object)).astype(np.int32)[codes]
    return found


def read_interactions(folder: Path) -> Interactions:
    """The ratings that 01_ingest wrote to ``folder``; parts of them travel between processes as that path and rows."""
    return _read(str(folder), _version(str(folder)))


def _version(folder: str) -> int:
    return Path(folder, "interactions.parquet").stat().st_mtime_ns


@lru_cache(maxsize=2)
def _read(folder: str, version: int) -> Interactions:
    if _version(folder) != version:
        raise RuntimeError(f"{folder} was replaced while tasks were under way; run the stage again")
    scale = Scale(**json.loads(Path(folder, "meta.json").read_text(encoding="utf-8"))["scale"])
    items, users = (
        pd.read_parquet(Path(folder, f"{name}.parquet"), columns=[column])[column].tolist()
        for name, column in (("items", ITEM), ("users", USER))
    )
    # ids stay numbers with a list of names: as text they would take most of the memory
    frame = pq.read_table(Path(folder, "interactions.parquet"), read_dictionary=[USER, ITEM]).to_pandas()
    data = Interactions.from_frame(frame, scale=scale, items=items, users=users)
    return _from_files(data, (folder, version, np.ones(len(data), np.bool_)))


def _from_files(data: Interactions, origin: Origin) -> Interactions:
    object.__setattr__(data, "origin", origin)
    return data


def _read_part(folder: str, version: int, kept: NDArray[np.uint8]) -> Interactions:
    everything = _read(folder, version)
    mask = np.unpackbits(kept, count=len(everything)).astype(bool)
    return everything if mask.all() else everything.where(mask)  # of 25 million ratings a copy takes half a gigabyte


def item_counts(matrix: csr_matrix) -> NDArray[np.int64]:
    """Number of stored ratings of each column of a users x items matrix."""
    return np.bincount(matrix.indices, minlength=matrix.shape[1]).astype(np.int64)


DAY = 86_400


def sessions(data: Interactions, gap: int = DAY) -> NDArray[np.int32]:
    """(N,) number of the visit, from 0, in which a user gave each rating; a pause longer than ``gap`` seconds ends one.

    >>> frame = pd.DataFrame({"user_id": "a", "item_id": ["x", "y", "z"], "rating": 3, "timestamp": [0, 9, DAY + 10]})
    >>> sessions(Interactions.from_frame(frame, scale=Scale(1, 5))).tolist()
    [0, 0, 1]
    """
    order = np.lexsort((data.timestamp, data.user))
    user, time = data.user[order], data.timestamp[order]
    begins = np.r_[False, (user[1:] == user[:-1]) & (np.diff(time) > gap)].astype(np.int32)
    total = np.cumsum(begins)
    starts = np.searchsorted(user, np.arange(len(data.users)))
    number = np.empty(len(data), np.int32)
    number[order] = total - total[np.minimum(starts, len(data) - 1)][user]
    return number
