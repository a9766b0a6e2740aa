"""Surprise's SVD and KNN behind the profile interface, fitted by :mod:`grid_kernels` to the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import surprise
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix

from recsys_utils.base import Floats, Scale, Scores
from recsys_utils.data.interactions import Interactions
from recsys_utils.models import grid_kernels
from recsys_utils.models.grid_kernels import SHRINKAGE
from recsys_utils.models.rankers import RatingModel, checked, fits_dense, refuse_dense, row_means, row_of

SURPRISE_MATRICES = 5  # that its pearson_baseline fills: counts, products, two squares, similarities
PRIOR = 20  # ratings whose penalty an SVD user pays beyond those of the profile


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
class SVD(RatingModel):
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
        self.keep_scale(train)
        train, _ = grid_kernels.in_svd_units(train)
        _, _, item_bias, _, item_factors = next(grid_kernels.svd_fits(train, [self]))
        self.mean = np.asarray(train.user_item.data.mean(dtype=np.float64))
        self.item_bias, self.item_factors = item_bias.copy(), item_factors.copy()
        return self

    @property
    def unit(self) -> float:
        """Rating points in which the mean, biases and factors are: 1 but on wide scales."""
        return Scale(*self.bounds[:2].tolist()).svd_unit

    def fold_in(self, profiles: csr_matrix) -> Floats:
        """(users, 1 + n_factors): bias and factors of each profile, zeros for an empty one."""
        profiles = checked(profiles, len(self.item_bias))
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
class KNN(RatingModel):
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
        self.keep_scale(train)
        if self.user_based:
            # only the baselines need training; a profile's similarities are computed when it arrives
            self.train = train.user_item
            self.item_similarity = np.zeros((0, 0))
        else:
            refuse_dense("KNN over items", len(train.items), 1, "Compare users instead (user_based: true).")
            self.train = csr_matrix((0, len(train.items)), dtype=np.float32)
            similar = grid_kernels.similarities(train, self.similarity, user_based=False, min_support=self.min_support)
            self.item_similarity = np.maximum(similar, 0, out=similar)  # only positive ones are used
        user_bias, self.item_bias = grid_kernels.baselines(train)
        self.user_bias = user_bias if self.user_based else np.zeros(0)
        self.mean = np.asarray(train.user_item.data.mean(dtype=np.float64))
        self.item_mean = row_means(train.user_item.T.tocsr(), float(self.mean))
        self.__dict__.pop("_frozen", None)
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 predicted ratings, not clipped."""
        profiles = checked(profiles, len(self.item_bias))
        values = profiles.data.astype(np.float64)
        partial = values - (self.mean + self.item_bias[profiles.indices])
        row = row_of(profiles)
        total = np.bincount(row, weights=partial, minlength=profiles.shape[0]).astype(np.float64)
        bias = total / (grid_kernels.REG_USER + np.diff(profiles.indptr))
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
            user_base, item_base = row_means(profiles, float(self.mean)), np.zeros(len(self.item_bias))
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
        train, row = self.train, row_of(self.train)
        residual = train.data - ((self.mean + self.item_bias[train.indices]) + self.user_bias[row])
        compared = residual if self.similarity == "pearson_baseline" else train.data.astype(np.float64)
        deviation = residual if self.kind == "KNNBaseline" else train.data - row_means(train, 0.0)[row]
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


SurpriseModel = SVD | KNN


def fits_surprise(option: SurpriseModel, shape: tuple[int, int]) -> bool:
    """Whether Surprise can fit a setting on users x items without running out of memory."""
    return isinstance(option, SVD) or fits_dense(option.compared(shape), SURPRISE_MATRICES)


def predict_by_surprise(train: Interactions, test: Interactions, option: SurpriseModel) -> Floats:
    """(N_test,) float64: Surprise's own predictions, clipped to the scale, after fitting on ``train``.

    Raises
    ------
    InputError : a KNN whose five dense matrices of all pairs don't fit.
    """
    if isinstance(option, KNN):
        refuse_dense("Surprise's KNN", option.compared(train.shape), SURPRISE_MATRICES, "Use grid_kernels.predictions.")
    train, unit = grid_kernels.in_svd_units(train) if isinstance(option, SVD) else (train, 1.0)
    algorithm = option.algorithm().fit(surprise_trainset(train))
    pairs = zip(test.user.tolist(), test.item.tolist(), strict=True)
    return unit * np.array([algorithm.predict(user, item).est for user, item in pairs])
