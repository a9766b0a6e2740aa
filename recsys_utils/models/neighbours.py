"""User KNN (Pearson): a profile against every user, by the correlation over the items that both rated.

Ratings are kept twice in memory-mapped arrays of one integer each, by user and by item, so that 25 million of them take
200 MB of disk, open in milliseconds and need no matrix of similarities.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, RANK, RATING, USER, Floats, InputError, Scale, Scores, check_memory
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.rankers import RatingModel, checked, row_means

Integers = NDArray[np.int64]
Places = NDArray[np.int32] | Integers
New = Callable[[str, tuple[int, ...], Any], NDArray[Any]]

STEPS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001)  # grids that ratings may lie on; the finest rounds
SIMILARITY_STEP = 1e-9  # similarities are compared as multiples of it, so that the neighbour set is defined
BLOCK = 4096  # users whose sums are kept at a time: 64 bytes each stay in a core's own cache
CELLS = 2**24  # predictions held at once: 64 MB, and as much for their votes
# what IMDb >= 7.0 and >= 10,000 votes let pass of ML-100K's films (title.ratings of November 2017)
RATING_SHARE, VOTES_SHARE = 0.42, 0.53
OPAQUE = re.compile(r"[mg]\.[0-9a-z_]+")  # a Freebase id: says that two films share a person, not who it is


class Packed(NamedTuple):
    """What the kernels read; see the attributes of :class:`Neighbours`."""

    rows: NDArray[Any]
    row_starts: Integers
    columns: NDArray[Any]
    column_starts: Integers
    user_mean: Floats
    user_sd: Floats
    grid: Floats


class Nearest(NamedTuple):
    """The neighbours of a profile, best first: positions of users, similarities in steps of 1e-9, items in common."""

    user: Integers
    key: Integers
    overlap: Integers

    @property
    def similarity(self) -> Floats:
        return np.asarray(self.key * SIMILARITY_STEP, np.float64)


@dataclass
class Neighbours(RatingModel):
    r"""User-based neighbours of any profile.

    ``prediction(i) = m + sum_v s_v (r_vi - m_v) / sum_v s_v`` over the v among the k nearest users who rated i, m and
    m_v the overall means of the profile and of v. ``s`` is Pearson's correlation over the items in common; only
    positive ones count. Neighbours are ordered by s (rounded to 1e-9), items in common, position of the user. A
    training row that equals the profile is left out: it has no vote on an item outside the profile.
    Paper: Herlocker, Konstan, Borchers, Riedl, "An algorithmic framework for performing collaborative filtering",
    SIGIR 1999.

    Parameters
    ----------
    k : neighbours, whether they rated an item or not
    min_overlap : items in common that a similarity needs
    shrinkage : similarities are multiplied by overlap / (overlap + shrinkage)
    form : ``overlap``: means and deviations over the items in common; ``overall``: those of all ratings of each user,
        ``s = mean over the items in common of (x - m) (y - m_v) / (sd sd_v)``, which is not bounded by 1
    min_votes : neighbours who rated an item, below which there is no prediction

    Attributes
    ----------
    rows, columns : (N,) one unsigned integer per rating, grouped by user (by item): position of the item (the user),
        ascending within its group, shifted left by ``grid[3]`` bits, plus ``(rating - lo) / step``
    row_starts, column_starts : (U + 1,), (I + 1,) int64
    user_mean, user_sd, item_mean : (U,), (U,), (I,) float64, rating points; NaN without ratings
    grid : lo, step, mean of all ratings, bits

    >>> frame = pd.DataFrame([(u, i, r) for u, row in zip("abc", ([1, 3, 5, 4], [2, 3, 4, 3], [5, 3, 1, 2]))
    ...                       for i, r in zip("wxyz", row)], columns=["user_id", "item_id", "rating"])
    >>> model = Neighbours(min_overlap=3, min_votes=1).fit(Interactions.from_frame(frame, scale=Scale(1, 5)))
    >>> profile = csr_matrix([[2, 3, 5, 0]], dtype=np.float32)
    >>> model.nearest(profile).user.tolist(), model.ratings(profile).round(2).tolist()
    ([0, 1], [[1.71, 3.21, 4.71, 3.71]])
    """

    name: ClassVar[str] = "neighbours"
    k: int = 50
    min_overlap: int = 5
    shrinkage: float = 0.0
    form: Literal["overlap", "overall"] = "overlap"
    min_votes: int = 3
    rows: NDArray[Any] = field(init=False, repr=False, compare=False)
    row_starts: Integers = field(init=False, repr=False, compare=False)
    columns: NDArray[Any] = field(init=False, repr=False, compare=False)
    column_starts: Integers = field(init=False, repr=False, compare=False)
    user_mean: Floats = field(init=False, repr=False, compare=False)
    user_sd: Floats = field(init=False, repr=False, compare=False)
    item_mean: Floats = field(init=False, repr=False, compare=False)
    grid: Floats = field(init=False, repr=False, compare=False)
    bounds: Floats = field(init=False, repr=False, compare=False)

    # ---- building and keeping the arrays

    def fit(self, train: Interactions) -> Self:
        # two copies of the ratings, and their positions while they are sorted
        needed, remedy = 24 * len(train) + 32 * sum(train.shape), "Build the store on disk (Neighbours.prepare)."
        check_memory(needed, f"Neighbours among {len(train):,} ratings", remedy)
        self.keep_scale(train)
        self._pack(train.user, train.item, train.rating, train.shape, lambda _, shape, dtype: np.empty(shape, dtype))
        return self

    def prepare(
        self, ratings: Path, users: Sequence[str], items: Sequence[str], scale: Scale, folder: Path
    ) -> Self:  # fmt: skip
        """Build a store in ``folder`` from a parquet file of ratings and open it; the arrays are mapped, never copied.

        Parameters
        ----------
        ratings : columns user_id, item_id, rating, one row per pair
        users, items : all ids, in the order that breaks ties
        """
        import pyarrow.parquet as pq

        file = pq.ParquetFile(ratings, read_dictionary=[USER, ITEM])
        n = file.metadata.num_rows
        positions = {name: np.empty(n, np.int32) for name in (USER, ITEM)}
        value = np.empty(n, np.float32)
        known = {USER: pd.Index(users), ITEM: pd.Index(items)}
        start = 0
        for batch in file.iter_batches(columns=[USER, ITEM, RATING]):
            rows = slice(start, start + len(batch))
            for name, ids in known.items():
                column = batch.column(name)
                place = ids.get_indexer(column.dictionary.to_pandas()).astype(np.int32)
                if (place < 0).any():
                    raise InputError(f"{ratings} holds a {name} that is not in the list of all of them.")
                positions[name][rows] = place[column.indices.to_numpy()]
            value[rows] = batch.column(RATING).to_numpy()
            start = rows.stop
        folder.mkdir(parents=True, exist_ok=True)
        self.bounds = np.array([scale.lo, scale.hi, scale.liked])

        def mapped(name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
            return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)

        self._pack(positions[USER], positions[ITEM], value, (len(users), len(items)), mapped)
        return self.save(folder, but=("rows", "columns"))

    def _pack(
        self, user: NDArray[np.int32], item: NDArray[np.int32], rating: NDArray[np.float32], shape: tuple[int, int],
        new: New,
    ) -> None:  # fmt: skip
        lo = self.bounds[0]
        levels = pd.unique(rating).astype(np.float64) - lo
        step = next((s for s in STEPS if np.allclose(levels / s, np.rint(levels / s), atol=1e-3)), STEPS[-1])
        bits = max(1, round(levels.max(initial=0) / step).bit_length())
        dtype = np.uint32 if bits + max(shape).bit_length() <= 32 else np.uint64
        self.row_starts, self.column_starts = (
            np.concatenate([[0], np.cumsum(_count(major, size))])
            for major, size in zip((user, item), shape, strict=True)
        )
        self.rows, self.columns = (new(name, rating.shape, dtype) for name in ("rows", "columns"))
        _by_user(user, item, rating, self.row_starts[:-1].copy(), self.rows, lo, step, bits)
        # users then ascend within an item, and after the second turn items within a user
        _transpose(self.rows, self.row_starts, self.column_starts[:-1].copy(), self.columns, bits)
        _transpose(self.columns, self.column_starts, self.row_starts[:-1].copy(), self.rows, bits)
        mean, _ = _moments(self.columns, self.column_starts, bits)
        user_mean, user_sd = _moments(self.rows, self.row_starts, bits)
        self.item_mean, self.user_mean, self.user_sd = lo + step * mean, lo + step * user_mean, step * user_sd
        overall = float(np.nansum(self.item_mean * self.item_counts) / max(1, len(rating)))
        self.grid = np.array([lo, step, overall, bits])

    def save(self, folder: Path, but: tuple[str, ...] = ()) -> Self:
        """Write the store to ``folder``, one .npy a setting or array (``but`` those there already), and open it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in self.state().items():
            if name not in but:
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        return self.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """A store that :meth:`save` or :meth:`prepare` wrote, its large arrays mapped rather than read.

        Raises
        ------
        InputError : no such store.
        """
        try:
            return cls.from_state({p.stem: np.asarray(np.load(p, mmap_mode="r")) for p in sorted(folder.glob("*.npy"))})
        except KeyError as error:
            raise InputError(f"{folder} holds no store of neighbours ({error} is missing); prepare it again.") from None

    @property
    def item_counts(self) -> Integers:
        """(I,) ratings of each item."""
        return np.diff(self.column_starts)

    def under(self, rules: Neighbours) -> Self:
        """The same ratings under the settings of another instance; nothing is copied."""
        other = copy(self)
        for f in fields(self):
            if f.init:
                setattr(other, f.name, getattr(rules, f.name))
        return other

    # ---- predictions

    @property
    def values(self) -> NDArray[np.float32]:
        """(N,) every rating of the store."""
        lo, step, _, bits = self.grid
        return np.asarray(lo + step * (self.rows & ((1 << int(bits)) - 1)), np.float32)

    def nearest(self, profile: csr_matrix) -> Nearest:
        """The neighbours of one profile (1, I)."""
        _, items, x = self._query(profile)
        room = Nearest(*(np.empty(self.k, np.int64) for _ in range(3)))
        found = _nearest(items, x, self._packed, *self._rules, room)
        return Nearest(room.user[:found], room.key[:found], room.overlap[:found])

    def predict(self, profiles: csr_matrix) -> tuple[Scores, NDArray[np.int32]]:
        """(users, items) float32 predictions, NaN where fewer than ``min_votes`` neighbours rated the item, and votes.

        Predictions are not clipped. The number of votes says how far a prediction may be trusted.
        """
        predicted, votes = np.empty(profiles.shape, np.float32), np.empty(profiles.shape, np.int32)
        _predict(*self._query(profiles), self._packed, *self._rules, self.k, self.min_votes, predicted, votes)
        return predicted, votes

    def ratings(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 on the scale; the profile's mean where there is no prediction (empty: that of all)."""
        predicted, _ = self.predict(profiles)
        own = row_means(profiles, self.grid[2]).astype(np.float32)
        return np.clip(np.where(np.isnan(predicted), own[:, None], predicted), self.bounds[0], self.bounds[1])

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 predictions; -inf where there is none, so that such an item is never recommended."""
        return np.nan_to_num(self.predict(profiles)[0], copy=False, nan=-np.inf)

    def _query(self, profiles: csr_matrix) -> tuple[Integers, NDArray[np.int32], Floats]:
        profiles = checked(profiles, len(self.item_mean))
        x = (profiles.data.astype(np.float64) - self.grid[0]) / self.grid[1]
        return profiles.indptr.astype(np.int64), profiles.indices.astype(np.int32), x

    @property
    def _packed(self) -> Packed:
        return Packed(*(getattr(self, name) for name in Packed._fields))

    @property
    def _rules(self) -> tuple[int, float, bool]:
        return self.min_overlap, float(self.shrinkage), self.form == "overall"


@njit(cache=True)  # type: ignore[untyped-decorator]
def _count(major, size):  # type: ignore[no-untyped-def]
    """numpy's bincount without its copy of the positions as 64-bit integers."""
    counts = np.zeros(size, np.int64)
    for place in major:
        counts[place] += 1
    return counts


@njit(cache=True)  # type: ignore[untyped-decorator]
def _by_user(user, item, rating, next_place, rows, lo, step, bits):  # type: ignore[no-untyped-def]
    for e in range(len(user)):
        rows[next_place[user[e]]] = (np.int64(item[e]) << bits) | np.int64(np.rint((rating[e] - lo) / step))
        next_place[user[e]] += 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _transpose(packed, starts, next_place, out, bits):  # type: ignore[no-untyped-def]
    """The same ratings grouped by what was the minor position; the major one ascends within each group."""
    low = (1 << bits) - 1
    for major in range(len(starts) - 1):
        for e in range(starts[major], starts[major + 1]):
            entry = np.int64(packed[e])
            minor = entry >> bits
            out[next_place[minor]] = (major << bits) | (entry & low)
            next_place[minor] += 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _moments(packed, starts, bits):  # type: ignore[no-untyped-def]
    """Mean and standard deviation of the codes of each group; integer sums are exact."""
    n_groups = len(starts) - 1
    mean, deviation = np.full(n_groups, np.nan), np.full(n_groups, np.nan)
    low = (1 << bits) - 1
    for g in range(n_groups):
        n, total, square = starts[g + 1] - starts[g], 0, 0
        for e in range(starts[g], starts[g + 1]):
            code = np.int64(packed[e]) & low
            total += code
            square += code * code
        if n:
            mean[g] = total / n
            deviation[g] = np.sqrt(n * square - total * total) / n
    return mean, deviation


@njit(cache=True)  # type: ignore[untyped-decorator]
def _nearest(items, x, packed, min_overlap, shrinkage, overall, room):  # type: ignore[no-untyped-def]
    """Fill ``room`` (user, key, overlap), best first; returns how many were found.

    Users are passed in blocks, and each item's column only once, since its users ascend: the sums of a block (n, x, y,
    xy, xx, yy, in steps of the grid; exact for ratings on it) never leave the cache.
    """
    lo, step, bits = packed.grid[0], packed.grid[1], np.int64(packed.grid[3])
    low = (np.int64(1) << bits) - 1
    users, keys, overlaps = room
    n_users, n_own, last, found = len(packed.row_starts) - 1, len(items), len(users) - 1, 0
    place, end = packed.column_starts[items], packed.column_starts[items + 1]
    own_mean, own_variance, least = 0.0, 0.0, 0.0
    if n_own:
        own_mean, own_variance = x.mean(), x.var()
    block = min(BLOCK, n_users)
    sums = np.zeros((block, 8))  # 64 bytes a user: one line of the cache
    for first in range(0, n_users, block):
        beyond = (first + block) << bits
        for c in range(n_own):
            value, e = x[c], place[c]
            while e < end[c]:
                entry = np.int64(packed.columns[e])
                if entry >= beyond:
                    break
                u, y = np.uint64((entry >> bits) - first), np.float64(entry & low)  # unsigned: no test for u < 0
                sums[u, 0] += 1
                sums[u, 1] += value
                sums[u, 2] += y
                sums[u, 3] += value * y
                sums[u, 4] += value * value
                sums[u, 5] += y * y
                e += 1
            place[c] = e
        for user in range(first, min(first + block, n_users)):
            u = np.uint64(user - first)
            n = sums[u, 0]
            if n < min_overlap:
                continue
            sx, sy, sxy, sxx, syy = sums[u, 1], sums[u, 2], sums[u, 3], sums[u, 4], sums[u, 5]
            if overall:
                mean = (packed.user_mean[user] - lo) / step
                covariance = (sxy - mean * sx - own_mean * sy + n * own_mean * mean) / n
                variances = own_variance * (packed.user_sd[user] / step) ** 2
            else:
                covariance, own = n * sxy - sx * sy, n * sxx - sx * sx
                # a profile off the grid leaves rounding errors where its variance is 0
                variances = own * (n * syy - sy * sy) if own > 1e-9 * n * sxx else 0.0
            if shrinkage > 0:
                covariance *= n / (n + shrinkage)
            # nearly all end here, before the root and the division
            if covariance <= 0 or variances <= 0 or covariance * covariance < least * variances:
                continue
            same = n == n_own and sxx - 2 * sxy + syy < 1e-9
            if same and packed.row_starts[user + 1] - packed.row_starts[user] == n_own:
                continue
            key = np.int64(np.rint(covariance / np.sqrt(variances) / SIMILARITY_STEP))
            if key == 0 or (found > last and (key, n) <= (keys[last], overlaps[last])):
                continue
            spot = min(found, last)
            while spot > 0 and (key, n) > (keys[spot - 1], overlaps[spot - 1]):
                keys[spot], overlaps[spot], users[spot] = keys[spot - 1], overlaps[spot - 1], users[spot - 1]
                spot -= 1
            keys[spot], overlaps[spot], users[spot] = key, np.int64(n), user
            found = min(found + 1, last + 1)
            if found > last:
                least = ((keys[last] - 1) * SIMILARITY_STEP) ** 2
        sums[:] = 0
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _predict(  # type: ignore[no-untyped-def]
    starts, items, x, packed, min_overlap, shrinkage, overall, k, min_votes, predicted, votes
):  # fmt: skip
    """The neighbours' weighted deviations from their means, profile by profile."""
    lo, step, bits = packed.grid[0], packed.grid[1], np.int64(packed.grid[3])
    low = (np.int64(1) << bits) - 1
    room = Nearest(np.empty(k, np.int64), np.empty(k, np.int64), np.empty(k, np.int64))
    sums = np.zeros((predicted.shape[1], 2))
    predicted[:] = np.nan
    votes[:] = 0
    for row in range(len(starts) - 1):
        own = slice(starts[row], starts[row + 1])
        found = _nearest(items[own], x[own], packed, min_overlap, shrinkage, overall, room)
        for spot in range(found):
            user, similarity = room.user[spot], room.key[spot] * SIMILARITY_STEP
            for e in range(packed.row_starts[user], packed.row_starts[user + 1]):
                entry = np.int64(packed.rows[e])
                item = entry >> bits
                sums[item, 0] += similarity * (lo + step * (entry & low) - packed.user_mean[user])
                sums[item, 1] += similarity
                votes[row, item] += 1
        for user in room.user[:found]:
            for e in range(packed.row_starts[user], packed.row_starts[user + 1]):
                item = np.int64(packed.rows[e]) >> bits
                if votes[row, item] >= min_votes and sums[item, 1] > 0:
                    predicted[row, item] = lo + step * x[own].mean() + sums[item, 0] / sums[item, 1]
                sums[item] = 0  # for the next profile, and the mark of an item that is done


# ---- predictions and lists


def predict_pairs(
    model: Neighbours, profiles: csr_matrix, row: Places, item: Places
) -> tuple[Floats, NDArray[np.int32]]:  # fmt: skip
    """Predictions (NaN: none) and votes for the pairs (row of ``profiles``, item), a block of profiles at a time."""
    who, place = np.unique(row, return_inverse=True)
    predicted, votes = np.full(len(row), np.nan), np.zeros(len(row), np.int32)
    step = max(1, CELLS // profiles.shape[1])
    for first in range(0, len(who), step):
        mine = np.flatnonzero((place >= first) & (place < first + step))
        values, counts = model.predict(profiles[who[first : first + step]])
        predicted[mine], votes[mine] = (array[place[mine] - first, item[mine]] for array in (values, counts))
    return predicted, votes


def item_mean_and_offset(train: Interactions, profiles: csr_matrix, row: Places, item: Places) -> Floats:
    """Baseline for pairs (row of ``profiles``, item): the item's mean plus the user's mean distance from such means."""
    counts, sums = (np.bincount(train.item, weights, len(train.items)) for weights in (None, train.rating))
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), float(train.rating.mean()))
    distance = csr_matrix((profiles.data - mean[profiles.indices], profiles.indices, profiles.indptr), profiles.shape)
    return np.clip(mean[item] + row_means(distance, 0.0)[row], train.scale.lo, train.scale.hi)


def good_films(
    model: Neighbours, items: pd.DataFrame, rating: float = 7.0, votes: int = 10_000
) -> tuple[NDArray[np.bool_], str]:  # fmt: skip
    """(I,) items well rated by many, and a phrase on whose ratings these are.

    IMDb's rating and votes where the catalogue has the columns imdb_rating and imdb_votes; else the data set's own mean
    and number of ratings, with cuts that let pass the shares that IMDb's let pass of ML-100K's films.
    """
    if "imdb_rating" in items and items["imdb_rating"].notna().any():
        known = items["imdb_rating"].notna().mean()
        passed = (items["imdb_rating"] >= rating) & (items["imdb_votes"] >= votes)
        said = (
            f"a rating of at least {rating:g} and at least {votes:,} votes at IMDb (known for {known:.0%} of the items)"
        )
        return passed.fillna(False).to_numpy(np.bool_), said
    counts, mean = model.item_counts, np.nan_to_num(model.item_mean, nan=-np.inf)
    least, low = np.quantile(counts, 1 - VOTES_SHARE), np.quantile(mean[counts > 0], 1 - RATING_SHARE)
    said = f"a mean of at least {low:.2f} and at least {least:.0f} ratings in these data (IMDb's are not at hand)"
    return (mean >= low) & (counts >= max(1, least)), said


def recommend(
    model: Neighbours, profile: csr_matrix, items: pd.DataFrame, n: int = 10, eligible: NDArray[np.bool_] | None = None
) -> pd.DataFrame:
    """The n best predictions for one profile (1, I) outside it, ties to more votes, then the earlier item.

    Columns rank, item_id, title, predicted (clipped to the scale), votes and, as far as ``items`` knows them,
    imdb_rating, imdb_votes, year, runtime, genres, director, cast (text); ``eligible`` (I,) restricts the items.
    """
    predicted, votes = (array[0] for array in model.predict(profile))
    allowed = ~np.isnan(predicted) & (True if eligible is None else eligible)
    allowed[profile.indices] = False
    found = np.flatnonzero(allowed)
    best = found[np.lexsort((found, -votes[found], -predicted[found].round(6)))[:n]]
    films = items.iloc[best].reset_index(drop=True)
    listed = films[[ITEM, "title"]].assign(predicted=predicted[best].clip(*model.bounds[:2]), votes=votes[best])
    listed.insert(0, RANK, np.arange(1, len(best) + 1))
    for column in ("imdb_rating", "imdb_votes", "year", "runtime"):
        listed[column] = films.get(column)
    for column, source, most in (("genres", "genres", None), ("director", "directors", None), ("cast", "actors", 3)):
        listed[column] = [_names(row[:most]) for row in films[source]] if source in films else ""
    return listed


def _names(names: Sequence[str]) -> str:
    """Names in one cell; ids of a graph that name nobody are left out."""
    return ", ".join(str(name) for name in names if not OPAQUE.fullmatch(str(name)))
