"""Surprise's SVD and KNN for whole grids at once: the same numbers in a fraction of the time.

- SVD: the same start values, order of ratings and arithmetic, so biases and factors equal Surprise's bit for bit.
  Epochs are prefixes of each other, so one fit serves every ``n_epochs``; four settings advance together, because the
  sums of their dot products, which must be taken in Surprise's order, then don't wait for each other.
- KNN: similarities are summed in Surprise's order, a row at a time (no matrix of all pairs is ever held), and serve
  every k, ``min_support`` and kind; ties among neighbours go to the earlier one, as ``heapq.nlargest`` has it.

"Surprise's numbers" are those of its models fitted on ``surprise_models.surprise_trainset``, which sorts the ratings.
Its estimates go through BLAS, whose dot products differ in the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import Parallel, delayed
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix

from recsys_utils.base import Floats, Scale, child_rng
from recsys_utils.data.interactions import Interactions

if TYPE_CHECKING:
    from recsys_utils.models.surprise_models import KNN, SVD

TOGETHER = 4  # settings of SVD that advance together: the doubles in a vector of most processors
SHRINKAGE = 100  # Surprise's default for pearson_baseline
REG_ITEM, REG_USER, BASELINE_EPOCHS = 10, 15, 10  # Surprise's defaults for alternating least squares
SIMILARITIES = ("cosine", "msd", "pearson_baseline")

Pair = tuple[Interactions, Interactions]  # training part, test part


# ---- grids


def shuffled_folds(data: Interactions, folds: int, seed: int) -> list[Pair]:
    """Training and test part of each of ``folds`` folds over the ratings, drawn by ``seed`` whatever their order."""
    fold = np.empty(len(data), np.int64)
    fold[np.lexsort((data.item, data.user))] = child_rng(seed, "folds").permutation(len(data)) % folds
    return [(data.where(fold != f), data.where(fold == f)) for f in range(folds)]


def errors(pairs: Iterable[Pair], options: Sequence[Any], *, jobs: int = 1) -> Floats:
    """(pairs, options, 2) RMSE and MAE of every setting on every test part.

    Parameters
    ----------
    options : unfitted ``SVD`` and ``KNN`` models
    jobs : threads, unless joblib was told otherwise (the kernels let go of Python's lock, and a process takes longer to
        start than many a grid); a task is a pair and the settings that share their work, so results don't depend on it
    """
    shared = batches(options)
    found = Parallel(n_jobs=jobs, prefer="threads")(
        delayed(_errors)(train, test, [options[place] for place in places])
        for train, test in pairs
        for places in shared
    )
    table = np.empty((len(found) // max(1, len(shared)), len(options), 2))
    for number, values in enumerate(found):
        table[number // len(shared), shared[number % len(shared)]] = values
    return table


def _errors(train: Interactions, test: Interactions, options: Sequence[Any]) -> Floats:
    error = predictions(train, test, options) - test.rating
    return np.column_stack([np.sqrt(np.mean(error**2, axis=1)), np.abs(error).mean(axis=1)])


def batches(options: Sequence[Any]) -> list[list[int]]:
    """Positions of the options that share their work, a list for each batch.

    SVD: up to four pairs of (lr, reg) with the same factors and seed, in any number of epochs; KNN: one similarity,
    over users or over items.
    """
    groups: dict[Any, dict[Any, list[int]]] = {}
    for place, option in enumerate(options):
        svd = option.name == "svd"
        group = (option.n_factors, option.seed) if svd else (option.similarity, option.user_based)
        member = (option.lr, option.reg) if svd else ()
        groups.setdefault(group, {}).setdefault(member, []).append(place)
    found = []
    for members in groups.values():
        lists = list(members.values())
        for start in range(0, len(lists), TOGETHER):
            found.append([place for places in lists[start : start + TOGETHER] for place in places])
    return found


def predictions(train: Interactions, test: Interactions, options: Sequence[Any]) -> Floats:
    """(options, N_test) float64 predicted ratings, clipped to the scale; users and items may be new."""
    out = np.empty((len(options), len(test)))
    for places in batches(options):
        batch = [options[place] for place in places]
        svd = batch[0].name == "svd"
        out[places] = _svd_predictions(train, test, batch) if svd else _knn_predictions(train, test, batch)
    return np.clip(out, train.scale.lo, train.scale.hi, out=out)


# ---- SVD


def in_svd_units(train: Interactions) -> tuple[Interactions, float]:
    """The ratings as SVD takes them, and its unit (``Scale.svd_unit``), by which its predictions are multiplied."""
    scale, unit = train.scale, train.scale.svd_unit
    if unit == 1:
        return train, unit
    return replace(train, rating=train.rating / np.float32(unit), scale=Scale(scale.lo / unit, scale.hi / unit)), unit


def svd_fits(train: Interactions, options: Sequence[SVD]) -> Iterator[tuple[int, Floats, Floats, Floats, Floats]]:
    """What one batch of settings learns: for each option its place, b_u (U,), b_i (I,), p_u (U, F) and q_i (I, F).

    Users and items without ratings have zeros, which is how Surprise predicts them. The arrays belong to the fit,
    which goes on: use or copy them before asking for the next.
    """
    matrix = train.user_item
    ratings = matrix.data.astype(np.float64)
    members = list(dict.fromkeys((o.lr, o.reg) for o in options))
    lr, reg = (tuple(map(float, values)) for values in zip(*members, strict=True))
    still = (0.0,) * len(members)
    rng = np.random.RandomState(options[0].seed)
    biases, factors = [], []
    for counts in (np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=matrix.shape[1])):
        start = np.zeros((len(counts), options[0].n_factors))
        start[counts > 0] = rng.normal(0, 0.1, size=(np.count_nonzero(counts), options[0].n_factors))
        biases.append(np.zeros((len(counts), len(members))))
        factors.append(np.repeat(start[:, :, None], len(members), axis=2))
    done, mean = 0, ratings.mean()
    for epochs in sorted({o.n_epochs for o in options}):
        _descend(matrix.indptr, matrix.indices, ratings, mean, lr, reg, still, epochs - done, *biases, *factors)
        done = epochs
        for place, option in enumerate(options):
            if option.n_epochs == epochs:
                m = members.index((option.lr, option.reg))
                traits = factors[0][:, :, m], factors[1][:, :, m]
                yield place, biases[0][:, m], biases[1][:, m], *traits


def _svd_predictions(train: Interactions, test: Interactions, options: Sequence[SVD]) -> Floats:
    out = np.empty((len(options), len(test)))
    train, unit = in_svd_units(train)
    mean = train.user_item.data.mean(dtype=np.float64)
    for place, user_bias, item_bias, user_factors, item_factors in svd_fits(train, options):
        dots = _products(user_factors, item_factors, test.user, test.item)
        out[place] = ((mean + user_bias[test.user]) + item_bias[test.item]) + dots
    return out * unit


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _descend(indptr, items, ratings, mean, lr, reg, still, epochs, user_bias, item_bias, p, q):  # type: ignore[no-untyped-def]
    """Stochastic gradient descent in place; arrays are (users or items[, factors], settings).

    ``lr``, ``reg`` and ``still`` (zeros) are tuples, so that a version is compiled for each number of settings.
    """
    dots = np.zeros(len(lr))
    for _ in range(epochs):
        for u in range(len(indptr) - 1):
            start, end = indptr[u], indptr[u + 1]
            if start < end:  # a step of length 0, for its dot products
                i = items[start]
                _step(p[u], q[i], q[i], user_bias[u], item_bias[i], dots, mean, mean, still, still)  # type: ignore[call-arg]
            for e in range(start, end):
                i, after = items[e], items[min(e + 1, end - 1)]
                _step(p[u], q[i], q[after], user_bias[u], item_bias[i], dots, ratings[e], mean, lr, reg)  # type: ignore[call-arg]


@intrinsic  # type: ignore[untyped-decorator]
def _step(_, mine, its, following, own, other, dots, rating, mean, lr, reg):  # type: ignore[no-untyped-def]
    """Descend by one rating, in place, and take the dot products for the user's next one on the way.

    error = rating - (mean + own + other + dots); the biases ``own`` and ``other``: b += lr (error - reg b). For every
    factor, from the first to the last: a, b = a + lr (error b - reg a), b + lr (error a - reg b), where a and b are
    rows of the (factors, settings) blocks ``mine`` and ``its``; the new dots are the sum of a * rows of ``following``.
    The settings are the lanes of a vector: each keeps Surprise's order of arithmetic, and all move in one instruction.
    Spelled for LLVM, since numba vectorises loops only, and the loop here is a sum that has to keep its order.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        lanes = ir.VectorType(ir.DoubleType(), lr.count)
        given = zip(signature.args[:6], arguments[:6], strict=True)
        arrays = [context.make_array(kind)(context, builder, value) for kind, value in given]
        blocks = [builder.bitcast(array.data, lanes.as_pointer()) for array in arrays]

        def vector(numbers):  # type: ignore[no-untyped-def]
            filled = ir.Constant(lanes, ir.Undefined)
            for lane, number in enumerate(numbers):
                filled = builder.insert_element(filled, number, ir.Constant(ir.IntType(32), lane))
            return filled

        known, constant = (vector([number] * lr.count) for number in arguments[6:8])
        rate, penalty = (vector(cgutils.unpack_tuple(builder, numbers)) for numbers in arguments[8:])
        user, item, dot = (builder.load(block, align=8) for block in blocks[3:])
        wrong = builder.fsub(known, builder.fadd(builder.fadd(builder.fadd(constant, user), item), dot))

        def moved(x, toward):  # type: ignore[no-untyped-def]
            return builder.fadd(x, builder.fmul(rate, builder.fsub(toward, builder.fmul(penalty, x))))

        builder.store(moved(user, wrong), blocks[3], align=8)
        builder.store(moved(item, wrong), blocks[4], align=8)
        total = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * lr.count))
        with cgutils.for_range(builder, builder.extract_value(arrays[0].shape, 0)) as loop:
            at = [builder.gep(block, [loop.index]) for block in blocks[:3]]
            a, b, c = (builder.load(row, align=8) for row in at)
            new = moved(a, builder.fmul(wrong, b))
            builder.store(new, at[0], align=8)
            builder.store(moved(b, builder.fmul(wrong, a)), at[1], align=8)
            builder.store(builder.fadd(builder.load(total), builder.fmul(c, new)), total)
        builder.store(builder.load(total), blocks[5], align=8)
        return context.get_dummy_value()

    return types.void(mine, its, following, own, other, dots, rating, mean, lr, reg), generate


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _products(p, q, users, items):  # type: ignore[no-untyped-def]
    """Dot product of the two rows of every pair."""
    out = np.empty(len(users))
    for n in range(len(users)):
        total = 0.0
        for f in range(p.shape[1]):
            total += q[items[n], f] * p[users[n], f]
        out[n] = total
    return out


# ---- KNN


def baselines(train: Interactions) -> tuple[Floats, Floats]:
    """Surprise's b_u (U,) and b_i (I,) by alternating least squares, 0 without ratings."""
    by_user, by_item = train.user_item, train.user_item.tocsc()
    user, item = np.zeros(train.shape[0]), np.zeros(train.shape[1])
    mean = by_user.data.mean(dtype=np.float64)
    for _ in range(BASELINE_EPOCHS):
        _alternate(by_item.indptr, by_item.indices, by_item.data, mean, REG_ITEM, user, item)
        _alternate(by_user.indptr, by_user.indices, by_user.data, mean, REG_USER, item, user)
    return user, item


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _alternate(indptr, indices, ratings, mean, reg, other, out):  # type: ignore[no-untyped-def]
    for x in range(len(out)):
        total = 0.0
        for e in range(indptr[x], indptr[x + 1]):
            total += np.float64(ratings[e]) - mean - other[indices[e]]
        out[x] = total / (reg + (indptr[x + 1] - indptr[x]))


class _Sides:
    """Ratings from the side whose similarities are asked (x: users if ``user_based``, else items)."""

    def __init__(self, train: Interactions, similarity: str, user_based: bool) -> None:
        matrix = train.user_item if user_based else train.user_item.T.tocsr()
        user, item = baselines(train)
        self.own, self.other = (user, item) if user_based else (item, user)
        self.matrix, self.ratings = matrix, matrix.data.astype(np.float64)
        self.row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        self.mean = float(self.ratings.mean())
        # sums over other, then own, as Surprise's similarity has it; its predictions add them the other way round
        residual = self.ratings - ((self.mean + self.other[matrix.indices]) + self.own[self.row])
        self.values = residual if similarity == "pearson_baseline" else self.ratings
        self.columns = self.by_column(self.values)
        self.rows = matrix.indptr, matrix.indices, self.values

    def by_column(self, values: Floats) -> csc_matrix:
        """Values of the ratings, in the order of the columns."""
        return csr_matrix((values, self.matrix.indices, self.matrix.indptr), shape=self.matrix.shape).tocsc()

    def base(self, kind: str, x: NDArray[np.int32], y: NDArray[np.int32], user_based: bool) -> Floats:
        """What each pair is predicted without neighbours."""
        if kind == "KNNBaseline":
            user, item = (self.own[x], self.other[y]) if user_based else (self.other[y], self.own[x])
            return (self.mean + user) + item
        known = (np.diff(self.matrix.indptr)[x] > 0) & (np.diff(self.columns.indptr)[y] > 0)
        return np.where(known, self.means[x], self.mean)

    @cached_property
    def means(self) -> Floats:
        ends = self.matrix.indptr
        return np.array([self.ratings[a:b].mean() if b > a else 0.0 for a, b in pairwise(ends)])

    def deviations(self, kind: str) -> Floats:
        """Ratings less their own base, in the order of the columns."""
        means = self.means[self.row]
        base = means if kind == "KNNWithMeans" else (self.mean + self.own[self.row]) + self.other[self.matrix.indices]
        deviations: Floats = self.by_column(self.ratings - base).data
        return deviations


def _support(similarity: str, min_support: int) -> int:
    """Common ratings that count as enough: Surprise's pearson_baseline needs two."""
    return max(2 if similarity == "pearson_baseline" else 1, min_support)


def similarities(train: Interactions, similarity: str, *, user_based: bool, min_support: int) -> Floats:
    """(n, n) similarities of all pairs of users or of items, 0 where unknown: 8 n^2 bytes."""
    sides = _Sides(train, similarity, user_based)
    n = sides.matrix.shape[0]
    out, common = np.zeros((n, n)), np.zeros(n, np.int64)
    support = _support(similarity, min_support)
    rows, columns, code = sides.rows, _arrays(sides.columns), SIMILARITIES.index(similarity)
    for x in np.flatnonzero(np.diff(sides.matrix.indptr)):
        _similar(x, rows, columns, code, out[x], common)
        out[x, common < support] = 0
    return out


def _arrays(columns: csc_matrix) -> tuple[Any, ...]:
    return columns.indptr, columns.indices, columns.data


def _knn_predictions(train: Interactions, test: Interactions, options: Sequence[KNN]) -> Floats:
    similarity, user_based = options[0].similarity, options[0].user_based
    sides = _Sides(train, similarity, user_based)
    x, y = (test.user, test.item) if user_based else (test.item, test.user)
    order = np.argsort(x, kind="stable")
    kinds = list(dict.fromkeys(o.kind for o in options))
    out = np.stack([sides.base(o.kind, x, y, user_based)[order] for o in options], axis=1)
    settings = [(kinds.index(o.kind), o.k, _support(similarity, o.min_support)) for o in options]
    _neighbours(
        x[order], y[order], sides.rows, _arrays(sides.columns), np.stack([sides.deviations(kind) for kind in kinds]),
        SIMILARITIES.index(similarity), np.array(settings), out,
    )  # fmt: skip
    found = np.empty((len(options), len(test)))
    found[:, order] = out.T
    return found


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _similar(x, rows, columns, similarity, sim, common):  # type: ignore[no-untyped-def]
    """Similarities of x to all, and the number of ratings in common; sums run over y upwards, as Surprise's do."""
    (x_ends, x_others, x_values), (y_ends, y_owns, y_values), n = rows, columns, len(sim)
    own_square, their_square = np.zeros(n), np.zeros(n)
    sim[:], common[:] = 0.0, 0
    for e in range(x_ends[x], x_ends[x + 1]):
        mine = x_values[e]
        for c in range(y_ends[x_others[e]], y_ends[x_others[e] + 1]):
            v, theirs = y_owns[c], y_values[c]
            common[v] += 1
            if similarity == 1:
                sim[v] += (mine - theirs) ** 2
            else:
                sim[v] += mine * theirs
                own_square[v] += mine**2
                their_square[v] += theirs**2
    for v in range(n):
        if similarity == 1 and common[v]:
            sim[v] = 1 / (sim[v] / common[v] + 1)
        elif similarity != 1:
            norm = np.sqrt(own_square[v] * their_square[v])
            sim[v] = sim[v] / norm if norm > 0 else 0.0
            if similarity == 2:
                sim[v] *= (common[v] - 1) / (common[v] - 1 + SHRINKAGE)
    sim[x], common[x] = 1.0, np.iinfo(np.int64).max  # Surprise's diagonal, whatever the support


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _neighbours(xs, ys, rows, columns, deviation, similarity, settings, out):  # type: ignore[no-untyped-def]
    """Adds to ``out`` (tests, options) what the neighbours say; tests are sorted by x."""
    y_ends, y_owns, _ = columns
    sim, common = np.empty(len(rows[0]) - 1), np.empty(len(rows[0]) - 1, np.int64)
    for t in range(len(xs)):
        if t == 0 or xs[t] != xs[t - 1]:
            _similar(xs[t], rows, columns, similarity, sim, common)
        start = y_ends[ys[t]]
        raters = y_owns[start : y_ends[ys[t] + 1]]
        near = sim[raters]
        order = np.argsort(-near, kind="mergesort")
        for o in range(len(settings)):
            kind, k, support = settings[o]
            taken, weight, weighted = 0, 0.0, 0.0
            for place in order:
                if near[place] <= 0 or taken == k:
                    break
                if common[raters[place]] >= support:
                    taken += 1
                    weight += near[place]
                    weighted += near[place] * deviation[kind, start + place]
            if weight > 0:
                out[t, o] += weighted / weight
