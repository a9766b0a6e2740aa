"""Collaborative filters behind the profile interface: popularity, Surprise's SVD and KNN, item KNN and EASE.

SVD and KNN are Surprise's, fitted by :mod:`fast_grid` to the same numbers; what is learned about items is frozen and
any row of ratings is folded in, so that new users, cut profiles and trained users are treated alike. The module also
holds the nested estimate of the rating error, whose winners Surprise itself refits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pandas as pd
import surprise
from joblib import Parallel, delayed
from numba import njit
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import csc_matrix, csr_matrix, issparse

from recsys_utils.base import MOST_RATED, InputError, Recommender, Scale, Scores, child_seed
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.models import fast_grid
from recsys_utils.models.fast_grid import SHRINKAGE

SURPRISE_MATRICES = 5  # that its pearson_baseline fills: counts, products, two squares, similarities
PRIOR = 20  # ratings whose penalty an SVD user pays beyond those of the profile
DENSE_BYTES = 3_600_000_000  # the most that dense matrices of all pairs may take: EASE on 15,000 items

State = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
Binarise = Literal["any", "liked"]


class _Model:
    """What the models share: arrays in and out, and ratings as clipped scores.

    Dataclass fields with ``init`` are settings; the others are learned arrays or CSR matrices.
    """

    name: ClassVar[str]
    bounds: NDArray[np.float64]  # lo, hi, liked of the training scale

    def state(self) -> State:
        """Settings and learned arrays, all plain numpy arrays (no pickles), for :meth:`from_state`."""
        state: State = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if issparse(value):
                parts = {"data": value.data, "indices": value.indices, "indptr": value.indptr, "shape": value.shape}
                state |= {f"{f.name}.{part}": np.asarray(array) for part, array in parts.items()}
            else:
                state[f.name] = np.asarray(value)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Self:
        """A fitted model from what :meth:`state` returned."""
        own = fields(cls)  # type: ignore[arg-type]
        model = cls(**{f.name: state[f.name].item() for f in own if f.init})
        for f in own:
            if not f.init and f.name in state:
                setattr(model, f.name, state[f.name])
            elif not f.init:
                data, indices, indptr, shape = (state[f"{f.name}.{p}"] for p in ("data", "indices", "indptr", "shape"))
                setattr(model, f.name, csr_matrix((data, indices, indptr), shape=tuple(shape.tolist())))
        return model

    def _keep_scale(self, train: Interactions) -> None:
        self.bounds = np.array([train.scale.lo, train.scale.hi, train.scale.liked])

    def _binarised(self, matrix: csr_matrix, which: Binarise) -> csr_matrix:
        """1 for every rating, or for every like only."""
        ones = np.ones_like(matrix.data) if which == "any" else (matrix.data >= self.bounds[2])
        binary = csr_matrix((ones.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        binary.eliminate_zeros()
        return binary


class _RatingModel(_Model, ABC):
    @abstractmethod
    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 predicted ratings, not clipped, so that lists order what lies beyond the scale."""

    def ratings(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 predicted ratings: the scores clipped to the scale of the training data."""
        scores = self.scores(profiles)
        return np.clip(scores, self.bounds[0], self.bounds[1], out=scores)


def _checked(profiles: csr_matrix, n_items: int) -> csr_matrix:
    """Profiles with sorted indices; the kernels trust their shape."""
    if profiles.shape[1] != n_items:
        raise ValueError(f"profiles have {profiles.shape[1]} columns, the model knows {n_items} items")
    return profiles if profiles.has_sorted_indices else profiles.sorted_indices()


def _row_of(matrix: csr_matrix) -> NDArray[np.int64]:
    """The row of each stored entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _row_means(matrix: csr_matrix, empty: float) -> Floats:
    counts = np.diff(matrix.indptr)
    sums = np.bincount(_row_of(matrix), weights=matrix.data, minlength=matrix.shape[0])
    return np.where(counts > 0, sums / np.maximum(counts, 1), empty)


def most_rated(train: Interactions, n: int) -> NDArray[np.intp]:
    """Places, in order, of the n items with the most ratings, ties to the lower place."""
    return np.sort(np.argsort(-item_counts(train.user_item), kind="stable")[:n])


def fits_dense(n: int, matrices: int) -> bool:
    """Whether so many dense float64 matrices of n x n stay within 3.6 GB."""
    return 8 * matrices * n**2 <= DENSE_BYTES


def refuse_dense(what: str, n: int, matrices: int, advice: str) -> None:
    """Stop before a fit that would be killed for want of memory.

    Raises
    ------
    InputError : so many dense float64 matrices of n x n don't fit.
    """
    if not fits_dense(n, matrices):
        need, most = 8 * matrices * n**2 / 1e9, int((DENSE_BYTES / 8 / matrices) ** 0.5)
        raise InputError(f"{what}: {n:,} x {n:,} would need about {need:.0f} GB; at most {most:,} are taken. {advice}")


@dataclass
class Popularity(_Model):
    """Score = number of training ratings of the item, the same for everyone.

    >>> import pandas as pd; from recsys_utils.base import Scale
    >>> frame = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "rating": [5, 3, 4]})
    >>> data = Interactions.from_frame(frame, scale=Scale(1, 5))
    >>> Popularity().fit(data).scores(data.user_item).tolist()
    [[2.0, 1.0], [2.0, 1.0]]
    """

    name: ClassVar[str] = "popularity"
    counts: NDArray[np.float32] = field(init=False, repr=False, compare=False)
    bounds: Floats = field(init=False, repr=False, compare=False)

    def fit(self, train: Interactions) -> Self:
        self._keep_scale(train)
        self.counts = np.bincount(train.item, minlength=len(train.items)).astype(np.float32)
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 counts."""
        return np.tile(self.counts, (_checked(profiles, len(self.counts)).shape[0], 1))


def surprise_trainset(train: Interactions) -> surprise.Trainset:
    """Surprise's view of the ratings, rows sorted by user and item.

    Raw ids are the positions in ``train.users`` and ``train.items``; inner ids keep their order, so that Surprise
    resolves ties among neighbours to the lower position. Users and items without ratings are unknown to it.
    """
    by_user, by_item = train.user_item, train.user_item.tocsc()
    users, items = (np.flatnonzero(np.diff(m.indptr)) for m in (by_user, by_item))

    def lists(matrix: csr_matrix | csc_matrix, major: NDArray[np.int_], minor: NDArray[np.int_]) -> dict[int, Any]:
        inner = np.searchsorted(minor, matrix.indices).tolist()
        values, ends = matrix.data.tolist(), matrix.indptr.tolist()
        return {
            x: list(zip(inner[ends[m] : ends[m + 1]], values[ends[m] : ends[m + 1]], strict=True))
            for x, m in enumerate(major.tolist())
        }

    return surprise.Trainset(
        lists(by_user, users, items), lists(by_item, items, users), len(users), len(items), by_user.nnz,
        (train.scale.lo, train.scale.hi), {u: x for x, u in enumerate(users.tolist())},
        {i: x for x, i in enumerate(items.tolist())},
    )  # fmt: skip


@dataclass
class SVD(_RatingModel):
    """Surprise's SVD (Funk's matrix factorisation with biases) with its item side frozen.

    A profile of n ratings is folded in by ridge regression:
    ``min over (b, p) of sum_i (r_i - mu - b_i - b - p.q_i)^2 + reg (n + 20) (b^2 + |p|^2)``; Surprise's gradient steps
    pay the penalty once per rating, hence the n, and few steps leave users of few ratings near 0, hence the 20
    (``PRIOR``, chosen on validation users of ML-100K: less error up to 30 ratings, at most .002 more at 100). An empty
    profile scores ``mu + b_i``. On scales more than 20 points wide
    ratings are divided first, so that the scale spans 4 (``Scale.svd_unit``). Paper: Koren, Bell, Volinsky,
    "Matrix factorization techniques for recommender systems", Computer 42 (2009).

    Parameters
    ----------
    n_factors, n_epochs, lr, reg, seed : as in Surprise (n_factors, n_epochs, lr_all, reg_all > 0, random_state)
    """

    name: ClassVar[str] = "svd"
    n_factors: int = 100
    n_epochs: int = 20
    lr: float = 0.005
    reg: float = 0.02
    seed: int = 0
    mean: Floats = field(init=False, repr=False, compare=False)
    item_bias: Floats = field(init=False, repr=False, compare=False)
    item_factors: Floats = field(init=False, repr=False, compare=False)
    bounds: Floats = field(init=False, repr=False, compare=False)

    def arguments(self) -> dict[str, Any]:
        """The settings by Surprise's names."""
        return {
            "n_factors": self.n_factors, "n_epochs": self.n_epochs, "lr_all": self.lr, "reg_all": self.reg,
            "random_state": self.seed,
        }  # fmt: skip

    def algorithm(self) -> surprise.SVD:
        """Surprise's own model with these settings, not fitted."""
        return surprise.SVD(**self.arguments())

    def fit(self, train: Interactions) -> Self:
        self._keep_scale(train)
        train, _ = fast_grid.in_svd_units(train)
        _, _, item_bias, _, item_factors = next(fast_grid.svd_fits(train, [self]))
        self.mean = np.asarray(train.user_item.data.mean(dtype=np.float64))
        self.item_bias, self.item_factors = item_bias.copy(), item_factors.copy()
        return self

    @property
    def unit(self) -> float:
        """Rating points in which the mean, biases and factors are: 1 but on wide scales."""
        return Scale(*self.bounds[:2].tolist()).svd_unit

    def fold_in(self, profiles: csr_matrix) -> Floats:
        """(users, 1 + n_factors): bias and factors of each profile, zeros for an empty one."""
        profiles = _checked(profiles, len(self.item_bias))
        residual = profiles.data / self.unit - self.mean - self.item_bias[profiles.indices]
        design = np.column_stack([np.ones(len(self.item_bias)), self.item_factors])
        folded: Floats = _ridge_rows(profiles.indptr, profiles.indices, residual, design, self.reg, PRIOR)
        return folded

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 predicted ratings, not clipped."""
        weights = self.fold_in(profiles).astype(np.float32)
        design = np.vstack([np.ones(len(self.item_bias)), self.item_factors.T]).astype(np.float32)
        scores: Scores = weights @ design
        scores += (self.mean + self.item_bias).astype(np.float32)
        scores *= np.float32(self.unit)
        return scores


@njit(cache=True)
def _ridge_rows(indptr, items, target, design, reg, prior):  # type: ignore[no-untyped-def]
    """Row-wise ridge of target on design[items], penalty reg (n + prior), by the smaller of two equivalent systems."""
    width = design.shape[1]
    out = np.zeros((len(indptr) - 1, width))
    for row in range(len(indptr) - 1):
        start, end = indptr[row], indptr[row + 1]
        n = end - start
        if n == 0:
            continue
        x, y = design[items[start:end]], target[start:end]
        if n < width:
            gram = x @ x.T
            for d in range(n):
                gram[d, d] += reg * (n + prior)
            out[row] = x.T @ np.linalg.solve(gram, y)
        else:
            gram = x.T @ x
            for d in range(width):
                gram[d, d] += reg * (n + prior)
            out[row] = np.linalg.solve(gram, x.T @ y)
    return out


@dataclass
class KNN(_RatingModel):
    """Surprise's KNNWithMeans or KNNBaseline, user- or item-based, for any profile.

    ``score(u, i) = base(u, i) + sum_N sim r' / sum_N sim``, N = the k nearest neighbours with positive similarity that
    rated i (user-based) or that u rated (item-based), r' = their ratings less their own base; base = mean of u (or of
    i), or ``mu + b_u + b_i``. For users of the training data and items they have not rated this equals Surprise's
    prediction to float32 precision: a profile's similarities and its ``b_u`` follow from the frozen item side by
    Surprise's own formulas. Ties among neighbours go to the lower position. Empty profile: the base alone, with the
    overall mean for the mean of u. Paper: Koren, "Factor in the neighbors", TKDD 4 (2010).

    Parameters
    ----------
    kind : the formula for base
    k : neighbours used at most
    similarity : ``pearson_baseline`` (shrinkage 100, baselines by alternating least squares), ``msd`` or ``cosine``
    user_based : False = item-based
    min_support : common ratings below which a similarity is 0

    User-based models keep the training matrix, item-based ones a dense items x items float64 matrix
    (float32 would turn close similarities into ties).
    """

    name: ClassVar[str] = "knn"
    kind: Literal["KNNWithMeans", "KNNBaseline"] = "KNNWithMeans"
    k: int = 40
    similarity: Literal["pearson_baseline", "msd", "cosine"] = "pearson_baseline"
    user_based: bool = True
    min_support: int = 3
    mean: Floats = field(init=False, repr=False, compare=False)
    item_bias: Floats = field(init=False, repr=False, compare=False)
    item_mean: Floats = field(init=False, repr=False, compare=False)
    user_bias: Floats = field(init=False, repr=False, compare=False)
    train: csr_matrix = field(init=False, repr=False, compare=False)
    item_similarity: Floats = field(init=False, repr=False, compare=False)
    bounds: Floats = field(init=False, repr=False, compare=False)

    def arguments(self) -> dict[str, Any]:
        """The settings by Surprise's names."""
        options = {"name": self.similarity, "user_based": self.user_based, "min_support": self.min_support}
        return {"k": self.k, "sim_options": options, "verbose": False}

    def algorithm(self) -> surprise.KNNWithMeans | surprise.KNNBaseline:
        """Surprise's own model with these settings, not fitted."""
        return getattr(surprise, self.kind)(**self.arguments())

    def compared(self, shape: tuple[int, int]) -> int:
        """How many users or items are compared with each other."""
        return shape[0] if self.user_based else shape[1]

    def servable(self, shape: tuple[int, int]) -> bool:
        """Whether its similarities fit into memory: those over users are never held, those over items are dense."""
        return self.user_based or fits_dense(shape[1], 1)

    def fit(self, train: Interactions) -> Self:
        self._keep_scale(train)
        if self.user_based:
            # only the baselines need training; a profile's similarities are computed when it arrives
            self.train = train.user_item
            self.item_similarity = np.zeros((0, 0))
        else:
            refuse_dense("KNN over items", len(train.items), 1, "Compare users instead (user_based: true).")
            self.train = csr_matrix((0, len(train.items)), dtype=np.float32)
            similar = fast_grid.similarities(train, self.similarity, user_based=False, min_support=self.min_support)
            self.item_similarity = np.maximum(similar, 0, out=similar)  # only positive ones are used
        user_bias, self.item_bias = fast_grid.baselines(train)
        self.user_bias = user_bias if self.user_based else np.zeros(0)
        self.mean = np.asarray(train.user_item.data.mean(dtype=np.float64))
        self.item_mean = _row_means(train.user_item.T.tocsr(), float(self.mean))
        self.__dict__.pop("_frozen", None)
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 predicted ratings, not clipped."""
        profiles = _checked(profiles, len(self.item_bias))
        values = profiles.data.astype(np.float64)
        partial = values - (self.mean + self.item_bias[profiles.indices])
        row = _row_of(profiles)
        total = np.bincount(row, weights=partial, minlength=profiles.shape[0]).astype(np.float64)
        bias = total / (fast_grid.REG_USER + np.diff(profiles.indptr))
        residual = values - (self.mean + self.item_bias[profiles.indices] + bias[row])
        if self.user_based:
            return self._user_based(profiles, residual, bias)
        if self.kind == "KNNBaseline":
            deviation, user_base, item_base = residual, self.mean + bias, self.item_bias
        else:
            deviation, item_base = values - self.item_mean[profiles.indices], self.item_mean
            user_base = np.zeros(profiles.shape[0])
        scores: Scores = _item_neighbours(
            profiles.indptr, profiles.indices, deviation, self.item_similarity, user_base, item_base, self.k
        )
        return scores

    def _user_based(self, profiles: csr_matrix, residual: Floats, bias: Floats) -> Scores:
        columns, compared, deviation = self._frozen
        values = residual if self.similarity == "pearson_baseline" else profiles.data.astype(np.float64)
        if self.kind == "KNNBaseline":
            user_base, item_base = self.mean + bias, self.item_bias
        else:
            user_base, item_base = _row_means(profiles, float(self.mean)), np.zeros(len(self.item_bias))
        code = {"cosine": 0, "msd": 1, "pearson_baseline": 2}[self.similarity]
        support = max(2, self.min_support) if self.similarity == "pearson_baseline" else self.min_support
        scores: Scores = _user_neighbours(
            profiles.indptr, profiles.indices, values, columns.indptr, columns.indices, compared,
            self.train.indptr, self.train.indices, deviation, user_base, item_base, self.k, code, support,
        )  # fmt: skip
        if self.kind == "KNNWithMeans":
            scores[:, np.diff(columns.indptr) == 0] = self.mean  # as Surprise does for items it does not know
        return scores

    @cached_property
    def _frozen(self) -> tuple[csc_matrix, Floats, Floats]:
        """Training columns, the values similarities compare (column order), and deviations from base (row order)."""
        train, row = self.train, _row_of(self.train)
        residual = train.data - ((self.mean + self.item_bias[train.indices]) + self.user_bias[row])
        compared = residual if self.similarity == "pearson_baseline" else train.data.astype(np.float64)
        deviation = residual if self.kind == "KNNBaseline" else train.data - _row_means(train, 0.0)[row]
        columns = csr_matrix((compared, train.indices, train.indptr), shape=train.shape).tocsc()
        return columns, columns.data, deviation


@njit(cache=True)
def _user_neighbours(  # type: ignore[no-untyped-def]
    p_indptr, p_items, p_values, c_indptr, c_users, c_values, t_indptr, t_items, t_deviation,
    user_base, item_base, k, similarity, min_support,
):  # fmt: skip
    """Profiles against the raters of their items, then neighbours from the nearest on hand their ratings out.

    Walking the neighbours in the order of similarity replaces a heap per item: an item takes the first k it meets.
    """
    n_users, n_items = len(t_indptr) - 1, len(item_base)
    out = np.empty((len(p_indptr) - 1, n_items), np.float32)
    common, product = np.empty(n_users, np.int64), np.empty(n_users)
    own_square, their_square = np.empty(n_users), np.empty(n_users)
    taken, weighted, weight = np.empty(n_items, np.int64), np.empty(n_items), np.empty(n_items)
    for row in range(len(p_indptr) - 1):
        common[:], product[:], own_square[:], their_square[:] = 0, 0.0, 0.0, 0.0
        for e in range(p_indptr[row], p_indptr[row + 1]):
            value = p_values[e]
            for c in range(c_indptr[p_items[e]], c_indptr[p_items[e] + 1]):
                v, theirs = c_users[c], c_values[c]
                common[v] += 1
                product[v] += value * theirs
                own_square[v] += value * value
                their_square[v] += theirs * theirs
        near = np.flatnonzero(common >= max(1, min_support))
        sim = np.zeros(len(near))
        for x in range(len(near)):
            v = near[x]
            if similarity == 1:
                difference = own_square[v] + their_square[v] - 2 * product[v]
                sim[x] = 1 / (difference / common[v] + 1)
                continue
            norm = np.sqrt(own_square[v] * their_square[v])
            if norm > 0:
                sim[x] = product[v] / norm
            if similarity == 2:
                sim[x] *= (common[v] - 1) / (common[v] - 1 + SHRINKAGE)
        taken[:], weighted[:], weight[:] = 0, 0.0, 0.0
        for x in np.argsort(-sim, kind="mergesort"):
            if sim[x] <= 0:
                break
            for e in range(t_indptr[near[x]], t_indptr[near[x] + 1]):
                i = t_items[e]
                if taken[i] < k:
                    taken[i] += 1
                    weighted[i] += sim[x] * t_deviation[e]
                    weight[i] += sim[x]
        for i in range(n_items):
            out[row, i] = user_base[row] + item_base[i] + (weighted[i] / weight[i] if weight[i] > 0 else 0.0)
    return out


@njit(cache=True)
def _item_neighbours(indptr, items, deviation, similarity, user_base, item_base, k):  # type: ignore[no-untyped-def]
    """For every item the k most similar items of the profile, in a heap whose root is the neighbour to drop next."""
    n_items = len(item_base)
    out = np.empty((len(indptr) - 1, n_items), np.float32)
    sims, entry = np.empty(k), np.empty(k, np.int64)
    sums, weights = np.empty(n_items), np.empty(n_items)
    for row in range(len(indptr) - 1):
        start, end = indptr[row], indptr[row + 1]
        if end - start <= k:  # all are neighbours: add up whole rows of the symmetric matrix
            sums[:], weights[:] = 0.0, 0.0
            for e in range(start, end):
                near = similarity[items[e]]
                for i in range(n_items):
                    sums[i] += near[i] * deviation[e]
                    weights[i] += near[i]
            for i in range(n_items):
                out[row, i] = user_base[row] + item_base[i] + (sums[i] / weights[i] if weights[i] > 0 else 0.0)
            continue
        for i in range(n_items):
            size = 0
            for e in range(start, end):
                sim = similarity[i, items[e]]
                if sim <= 0 or (size == k and sim <= sims[0]):
                    continue
                if size < k:
                    place = size
                    size += 1
                    while place > 0 and sim <= sims[(place - 1) // 2]:  # later entries of equal similarity drop first
                        parent = (place - 1) // 2
                        sims[place], entry[place] = sims[parent], entry[parent]
                        place = parent
                else:
                    place = 0
                    while 2 * place + 1 < size:
                        child = 2 * place + 1
                        if child + 1 < size and (
                            sims[child + 1] < sims[child]
                            or (sims[child + 1] == sims[child] and entry[child + 1] > entry[child])
                        ):
                            child += 1
                        if sims[child] >= sim:
                            break
                        sims[place], entry[place] = sims[child], entry[child]
                        place = child
                sims[place], entry[place] = sim, e
            weighted = weight = 0.0
            for n in range(size):
                weighted += sims[n] * deviation[entry[n]]
                weight += sims[n]
            out[row, i] = user_base[row] + item_base[i] + (weighted / weight if weight > 0 else 0.0)
    return out


@dataclass
class ItemKNN(_Model):
    """Neighbours by shrunk cosine over who rated what: ``score(u, i) = sum over rated j of s(i, j)``.

    ``s(i, j) = x_i.x_j / (|x_i| |x_j| + shrink)`` on binary columns, kept for the k items most similar to i.

    Parameters
    ----------
    k, shrink : neighbours per item; damping of similarities with little support, in ratings
    binarise : count any rating, or likes only, in training and in profiles
    most_rated : items that are compared; others score 0, as those without a rating do
    """

    name: ClassVar[str] = "item_knn"
    k: int = 100
    shrink: float = 10.0
    binarise: Binarise = "any"
    most_rated: int = MOST_RATED
    similarity: csr_matrix = field(init=False, repr=False, compare=False)
    bounds: Floats = field(init=False, repr=False, compare=False)

    def fit(self, train: Interactions) -> Self:
        self._keep_scale(train)
        x = self._binarised(train.user_item, self.binarise)
        x.data *= np.isin(x.indices, most_rated(train, self.most_rated))
        x.eliminate_zeros()
        norm = np.sqrt(item_counts(x).astype(np.float64))
        together = (x.T @ x).tocsr()
        columns: list[NDArray[np.int32]] = []
        values: list[NDArray[np.float32]] = []
        for i in range(together.shape[0]):
            part = slice(together.indptr[i], together.indptr[i + 1])
            other = together.indices[part]
            sim = np.where(other == i, 0.0, together.data[part] / (norm[i] * norm[other] + self.shrink))
            best = np.lexsort((other, -sim))[: self.k]
            best = best[sim[best] > 0]
            columns.append(other[best])
            values.append(sim[best].astype(np.float32))
        indptr = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
        neighbours = csr_matrix((np.concatenate(values), np.concatenate(columns), indptr), shape=together.shape)
        self.similarity = neighbours.T.tocsr()
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 sums of similarity; 0 where no neighbour is rated."""
        binary = self._binarised(_checked(profiles, self.similarity.shape[0]), self.binarise)
        scores: Scores = (binary @ self.similarity).toarray()
        return scores


def _inverse(matrix: Floats) -> Floats:
    """Upper triangle of the inverse of a symmetric positive definite matrix, 0 below: a third of the cost of inv.

    Its memory is used for the result.
    """
    factor, _ = lapack.dpotrf(matrix.T, overwrite_a=True)
    upper: Floats = np.triu(lapack.dpotri(factor, overwrite_c=True)[0])
    return upper


@dataclass
class EASE(_Model):
    """Linear item-to-item regression in closed form: ``B = I - P diag(1 / P_jj)``, ``P = (X'X + reg I)^-1``.

    ``scores = X B`` on binary profiles. Paper: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019.

    Parameters
    ----------
    reg : ridge penalty on B
    binarise : count any rating, or likes only, in training and in profiles
    most_rated : items in B, at most 15,000 (it is dense: 8 bytes x items^2 while fitting, twice); others score 0, as
        those without a rating do

    Raises
    ------
    InputError : B would be larger than that.
    """

    name: ClassVar[str] = "ease"
    reg: float = 500.0
    binarise: Binarise = "any"
    most_rated: int = MOST_RATED
    precision: NDArray[np.float32] = field(init=False, repr=False, compare=False)  # upper triangle of P: P is symmetric
    kept: NDArray[np.intp] = field(init=False, repr=False, compare=False)  # places of the items in B
    n_items: NDArray[np.int_] = field(init=False, repr=False, compare=False)
    bounds: Floats = field(init=False, repr=False, compare=False)

    def fit(self, train: Interactions) -> Self:
        self.kept, self.n_items = most_rated(train, self.most_rated), np.asarray(len(train.items))
        n_items = len(self.kept)
        refuse_dense("EASE", n_items, 2, "Ask for fewer of the items rated most (most_rated), or use ItemKNN.")
        self._keep_scale(train)
        x = self._binarised(train.user_item, self.binarise)[:, self.kept].astype(np.float64)
        x = x[np.diff(x.indptr) > 0]
        if 1.3 * x.shape[0] < n_items:
            # P = (I - X' (X X' + reg I)^-1 X) / reg (Woodbury): the smaller inverse, several times faster
            inner = _inverse((x @ x.T).toarray() + self.reg * np.eye(x.shape[0]))
            inner += np.triu(inner, 1).T
            inverse = x.T @ (x.T @ inner).T / -self.reg
            inverse[np.diag_indices(n_items)] += 1 / self.reg
        else:
            inverse = _inverse((x.T @ x).toarray() + self.reg * np.eye(n_items))
        self.precision = inverse[np.triu_indices(n_items)].astype(np.float32)
        self.__dict__.pop("weights", None)
        return self

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """B, a row and a column an item of ``kept``, made from P so that an export holds half as many numbers."""
        n_items = int((np.sqrt(8 * len(self.precision) + 1) - 1) / 2)
        weights = np.zeros((n_items, n_items), np.float32)
        weights[np.triu_indices(n_items)] = self.precision
        weights += np.triu(weights, 1).T
        weights /= -np.diag(weights)
        np.fill_diagonal(weights, 0)
        return weights

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32; 0 for an empty profile."""
        binary = self._binarised(_checked(profiles, int(self.n_items)), self.binarise)
        scores = np.zeros(binary.shape, np.float32)
        scores[:, self.kept] = binary[:, self.kept] @ self.weights
        return scores


@dataclass
class Average:
    """Mean of the scores of several models on one scale, such as SVD and KNN."""

    name: ClassVar[str] = "average"
    models: Sequence[Recommender]

    def fit(self, train: Interactions) -> Self:
        for model in self.models:
            model.fit(train)
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32."""
        scores: Scores = np.mean([model.scores(profiles) for model in self.models], axis=0)
        return scores


# ---- grids and the nested rating error

M = TypeVar("M", bound=_Model)
RatingModel = SVD | KNN


def settings(model: type[M], grid: Mapping[str, Sequence[Any]]) -> list[M]:
    """Unfitted models for all combinations of a grid, the last parameter changing fastest.

    >>> [(s.reg, s.binarise) for s in settings(EASE, {"reg": [100, 500], "binarise": ["any"]})]
    [(100, 'any'), (500, 'any')]
    """
    return [model(**dict(zip(grid, values, strict=True))) for values in product(*grid.values())]


def parameters(model: _Model) -> dict[str, Any]:
    """The settings of a model as plain values, ready for JSON and for its constructor; a usual cap is left out."""
    found = {f.name: getattr(model, f.name) for f in fields(model) if f.init}  # type: ignore[arg-type]
    return {name: value for name, value in found.items() if (name, value) != ("most_rated", MOST_RATED)}


def setting_text(model: _Model) -> str:
    """The settings of a model on one line, without the seed.

    >>> setting_text(EASE(reg=100))
    'reg=100, binarise=any'
    """
    return ", ".join(f"{name}={value}" for name, value in parameters(model).items() if name != "seed")


@dataclass(frozen=True)
class Nested:
    """What :func:`nested_rating_error` found.

    predictions : (N, names) float64, aligned with the ratings
    searched : a row per outer fold, name and option: fold, name, place (in the list), setting (text), inner rmse and
        mae (NaN if there was no choice), chosen
    agreement : a row per outer fold and name predicted by Surprise: fold, name, largest (difference from
        :mod:`fast_grid`, rating points)
    chosen : (fold, name) -> the option that predicted the fold
    overall : name -> the option with the least inner RMSE, averaged over the outer folds: the choice on all data
    """

    predictions: pd.DataFrame
    searched: pd.DataFrame
    agreement: pd.DataFrame
    chosen: dict[tuple[int, str], RatingModel]
    overall: dict[str, RatingModel]


def nested_rating_error(
    data: Interactions, fold: NDArray[np.int8], options: Mapping[str, Sequence[RatingModel]], *, folds: int, seed: int,
    tried: int | None = None, by_surprise: Collection[str] = (), jobs: int = 1,
) -> Nested:  # fmt: skip
    """Out-of-fold rating predictions whose settings were chosen without the fold they predict.

    Every outer fold picks, per name, the option with the least inner RMSE within its own training part (mean over
    shuffled inner folds, by :mod:`fast_grid`), refits it there and predicts the held-out ratings, clipped to the scale.
    A single option needs no choice. Ties go to the option listed first.

    Parameters
    ----------
    fold : (N,) outer fold of each rating
    options : name -> candidate settings
    folds : inner folds a training part is cut into
    tried : how many of them are held out in turn, default all; many folds of which few are tried train on nearly as
        much as the refit does, which matters, since the best setting changes with the number of ratings
    seed : of the inner folds, one child per outer fold
    by_surprise : names whose winners Surprise itself refits and predicts (where its matrices fit into memory), the
        others are predicted by :mod:`fast_grid`
    jobs : processes; results don't depend on it
    """
    outer = np.unique(fold).tolist()
    pairs = (
        pair
        for f in outer
        for pair in fast_grid.shuffled_folds(data.where(fold != f), folds, child_seed(seed, "inner", f))[:tried]
    )
    listed = [option for name in options if len(options[name]) > 1 for option in options[name]]
    inner = fast_grid.errors(pairs, listed, jobs=jobs).reshape(len(outer), tried or folds, len(listed), 2).mean(axis=1)
    places = [(f, name, place) for f in outer for name in options for place in range(len(options[name]))]
    searched = pd.DataFrame(places, columns=["fold", "name", "place"])
    searched["setting"] = [setting_text(options[name][place]) for _, name, place in places]
    choice = np.array([len(options[name]) > 1 for _, name, _ in places])
    searched.loc[choice, ["rmse", "mae"]] = inner.reshape(-1, 2)
    loss = searched["rmse"].fillna(0)
    searched["chosen"] = searched.index.isin(loss.groupby([searched["fold"], searched["name"]]).idxmin())
    chosen = {(f, n): options[n][p] for (f, n, p), won in zip(places, searched["chosen"], strict=True) if won}
    mean = loss.groupby([searched["name"], searched["place"]]).mean()
    held_out = Parallel(n_jobs=jobs)(
        delayed(_held_out)(data.where(fold != f), data.where(fold == f), option, name in by_surprise)
        for (f, name), option in chosen.items()
    )
    predictions = pd.DataFrame(np.nan, index=range(len(data)), columns=list(options))
    agreement = []
    for (f, name), (values, largest) in zip(chosen, held_out, strict=True):
        predictions.loc[fold == f, name] = values
        agreement += [(f, name, largest)] if largest is not None else []
    return Nested(
        predictions, searched, pd.DataFrame(agreement, columns=["fold", "name", "largest"]), chosen,
        {name: options[name][int(mean[name].argmin())] for name in options},
    )  # fmt: skip


def fits_surprise(option: RatingModel, shape: tuple[int, int]) -> bool:
    """Whether Surprise can fit a setting on users x items without running out of memory."""
    return isinstance(option, SVD) or fits_dense(option.compared(shape), SURPRISE_MATRICES)


def _held_out(
    train: Interactions, test: Interactions, option: RatingModel, by_surprise: bool
) -> tuple[Floats, float | None]:
    """Predictions, and their largest difference from fast_grid's if they are Surprise's own."""
    fast = fast_grid.predictions(train, test, [option])[0]
    if not by_surprise or not fits_surprise(option, train.shape):
        return fast, None
    own = predict_by_surprise(train, test, option)
    return own, float(np.abs(own - fast).max())


def predict_by_surprise(train: Interactions, test: Interactions, option: RatingModel) -> Floats:
    """(N_test,) float64: Surprise's own predictions, clipped to the scale, after fitting on ``train``.

    Raises
    ------
    InputError : a KNN whose five dense matrices of all pairs don't fit.
    """
    if isinstance(option, KNN):
        refuse_dense("Surprise's KNN", option.compared(train.shape), SURPRISE_MATRICES, "Use fast_grid.predictions.")
    train, unit = fast_grid.in_svd_units(train) if isinstance(option, SVD) else (train, 1.0)
    algorithm = option.algorithm().fit(surprise_trainset(train))
    pairs = zip(test.user.tolist(), test.item.tolist(), strict=True)
    return unit * np.array([algorithm.predict(user, item).est for user, item in pairs])
