"""V2, the latent trait model: every user and every item has traits that are known only up to a distribution.

Ratings follow ``r = mu + theta_u . beta_m + b_u + b_m + noise``; all of it has a normal prior whose variances are
learned from the ratings themselves. The posterior is approximated by one normal distribution per user and one per item,
so a prediction comes with a deviation, and an item that three people rated is treated as what it is: hardly known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd

from recsys_utils.collaborative import Floats, _checked, _RatingModel, _row_of
from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import Scores, check_memory, child_rng, child_seed

Moments = NDArray[np.float32]

_PAIRS = 2**16  # predictions at pairs made at once
_DAMPING = 5.0  # ratings added to each count in the biases that the ascent starts from
_PATIENCE = 4  # sweeps without a gain on the held-out ratings after which a trial ends
_LEAST = 1e-8  # of a prior variance: what evidence has ruled out stays finite


@dataclass
class Side:
    """The posterior of all users, or of all items: normal, with a full covariance within a row and none between rows.

    Parameters
    ----------
    mean : (n, K + 1) float64, the K traits and the bias
    moment : (n, (K + 1)(K + 2) / 2) float32, ``E[x x']`` of a row, lower triangle row by row
    """

    mean: Floats
    moment: Moments

    @classmethod
    def empty(cls, rows: int, width: int) -> Side:
        return cls(np.zeros((rows, width)), np.zeros((rows, width * (width + 1) // 2), np.float32))

    def features(self, *, weighted: bool) -> NDArray[np.float32]:
        """Rows whose products between the sides are ``E[(theta . beta + b_u + b_m)^2]``; one side is ``weighted``.

        A symmetric product counts what stands off the diagonal twice.
        """
        k = self.mean.shape[1] - 1
        end = k * (k + 1) // 2
        traits, bias = self.mean[:, :k], self.mean[:, k:]
        square, cross, bias_square = self.moment[:, :end], self.moment[:, end:-1], self.moment[:, -1:]
        one = np.ones_like(bias)
        parts: list[NDArray[Any]]
        if weighted:
            twice = np.where(np.isin(np.arange(end), _diagonal(k)), 1.0, 2.0)
            parts = [square * twice, 2 * cross, 2 * traits, 2 * bias, bias_square, one]
        else:
            parts = [square, traits, cross, bias, one, bias_square]
        return np.hstack(parts).astype(np.float32)


def _diagonal(width: int) -> NDArray[np.intp]:
    """Places of the diagonal in a packed lower triangle."""
    order = np.arange(width)
    return order * (order + 3) // 2


def memory_estimate(users: int, items: int, ratings: int, n_factors: int) -> float:
    """Bytes that a fit holds at its peak, besides the ratings that were passed in.

    Ratings by user and by item (4 + 4 bytes each) and, per row, mean (8 bytes) and moments (4 bytes).

    >>> f"{memory_estimate(162_541, 59_047, 25_000_095, 20) / 2**30:.2f} GB"
    '0.60 GB'
    """
    width = n_factors + 1
    return ratings * 16.0 + (users + items) * (width * (width + 1) / 2 * 4 + width * 8)


@dataclass
class LatentTraits(_RatingModel):
    r"""Variational matrix factorisation with learned priors: ``r ~ N(mu + theta_u . beta_m + b_u + b_m, noise)``.

    ``theta_uk ~ N(0, user_prior_k)``, ``beta_mk ~ N(0, item_prior_k)``, biases likewise. ``q = prod_u q(theta_u, b_u)
    prod_m q(beta_m, b_m)``, each factor normal with a full covariance, fitted by coordinate ascent on the evidence
    lower bound (exact, kept in ``elbo``; it never falls). Prior variances, noise and mu maximise the same bound, which
    shrinks the variances of traits that the ratings do not support towards 0 (automatic relevance determination).
    Carried to its end that may prune more than is good for new ratings, so the number of sweeps is the one with the
    best predictive likelihood of ratings held out of the training part; the final fit uses all of it.

    Traits are turned (which changes no prediction) so that their second moments are diagonal and equal on both sides,
    in decreasing order. A profile is folded in by the exact conditional of its row, item posteriors fixed; an empty
    one gets the prior. Papers: Lim & Teh, "Variational Bayesian approach to movie rating prediction", KDD Cup 2007;
    Nakajima & Sugiyama, "Theoretical analysis of Bayesian matrix factorization", JMLR 12 (2011), on the pruning.

    Parameters
    ----------
    n_factors : K, at most; fewer if the matrix is smaller
    sweeps : at most; one updates every user, every item and the priors
    held_out : share of the ratings on which the number of sweeps is chosen, 0-0.5; 0 = all sweeps
    taste : share of the ratings' variance that the traits are given to begin with, > 0
    learned : learn the variances; False keeps those of the beginning (to show what it costs)
    biased : with b_u, b_m and mu; False leaves them out (to show what it costs)
    seed : of the held-out ratings and of the truncated SVD it starts from

    Raises
    ------
    InputError : the fit needs more memory than is free (:func:`memory_estimate`).

    >>> rng = np.random.default_rng(0)
    >>> from recsys_utils.interfaces import Scale; import pandas as pd
    >>> frame = pd.DataFrame([(f"u{u}", f"i{i}", 1 + (u + i) % 5) for u in range(9) for i in range(9) if u != i],
    ...                      columns=["user_id", "item_id", "rating"])
    >>> data = Interactions.from_frame(frame, scale=Scale(1, 5))
    >>> model = LatentTraits(n_factors=2, held_out=0).fit(data)
    >>> model.ratings(data.user_item).shape, bool((model.deviation(data.user_item) > 0).all())
    ((9, 9), True)
    """

    name: ClassVar[str] = "latent_traits"
    n_factors: int = 30
    sweeps: int = 20
    held_out: float = 0.05
    taste: float = 0.25
    learned: bool = True
    biased: bool = True
    seed: int = 0
    mean: Floats = field(init=False, repr=False, compare=False)
    noise: Floats = field(init=False, repr=False, compare=False)  # variance
    user_prior: Floats = field(init=False, repr=False, compare=False)  # (K + 1,) variances, the bias last
    item_prior: Floats = field(init=False, repr=False, compare=False)
    item_mean: Floats = field(init=False, repr=False, compare=False)
    item_moment: Moments = field(init=False, repr=False, compare=False)
    elbo: Floats = field(init=False, repr=False, compare=False)  # (sweeps,) nats, of the final fit
    likelihood: Floats = field(init=False, repr=False, compare=False)  # (sweeps,) nats a held-out rating
    bounds: Floats = field(init=False, repr=False, compare=False)

    def fit(self, train: Interactions) -> Self:
        need = memory_estimate(*train.shape, len(train), self.n_factors)
        what = f"Latent traits with {self.n_factors} factors on {len(train):,} ratings"
        check_memory(need, what, "Ask for fewer factors, or keep the users with most ratings.")
        self._keep_scale(train)
        self.likelihood = self.trial(train) if self.held_out > 0 else np.zeros(0)
        self._ascend(train.user_item, int(np.argmax(self.likelihood)) + 1 if self.held_out > 0 else self.sweeps)
        return self

    def trial(self, train: Interactions) -> Floats:
        """Log density of the held-out ratings, nats each, after each sweep over the others.

        It ends before ``sweeps`` when the last few have not gained anything. The maximum compares settings.
        """
        self._keep_scale(train)
        away = child_rng(self.seed, "held out").random(len(train)) < self.held_out
        return self._ascend(train.where(~away).user_item, self.sweeps, train.where(away))

    def _ascend(self, rated: csr_matrix, sweeps: int, held: Interactions | None = None) -> Floats:
        """Coordinate ascent; returns the mean log density of the held-out ratings after each sweep."""
        columns = rated.T.tocsr()
        sides = self._start(rated, columns)
        priors = self.user_prior, self.item_prior
        elbo, found = [], []
        for _ in range(sweeps):
            mean, noise = float(self.mean), float(self.noise)
            entropy = np.zeros(2)
            for own, other, matrix in ((0, 1, rated), (1, 0, columns)):
                squared, residual, entropy[own] = _update(
                    matrix.indptr, matrix.indices, matrix.data, mean, sides[other].mean, sides[other].moment,
                    1 / priors[own], noise, sides[own].mean, sides[own].moment,
                )  # fmt: skip
            elbo.append(self._learn(rated, columns, sides, squared, residual, entropy.sum()))
            if held is not None:
                expected, spread = self._at(*sides, held.user, held.item)
                found.append(float(_log_density(held.rating, expected, spread).mean()))
                if len(found) - np.argmax(found) > _PATIENCE:
                    break
        self._turn(rated, columns, sides)
        self.item_mean, self.item_moment, self.elbo = sides[1].mean, sides[1].moment, np.array(elbo)
        return np.array(found)

    def _start(self, rated: csr_matrix, columns: csr_matrix) -> tuple[Side, Side]:
        """Priors to begin with, and items from the truncated SVD of what damped means leave unexplained."""
        n_users, n_items = rated.shape
        width = max(1, min(self.n_factors, n_users - 1, n_items - 1)) + 1
        variance = max(float(np.var(rated.data, dtype=np.float64)), _LEAST)
        self.mean = np.asarray(np.mean(rated.data, dtype=np.float64) if self.biased else 0.0)
        self.noise = np.asarray(variance / 2)
        self.user_prior = np.full(width, np.sqrt(self.taste * variance / (width - 1)))
        self.user_prior[-1] = variance / 5 if self.biased else _LEAST * variance
        self.item_prior = self.user_prior.copy()
        users, items = Side.empty(n_users, width), Side.empty(n_items, width)
        residual = csr_matrix((rated.data - float(self.mean), rated.indices, rated.indptr), shape=rated.shape)
        if self.biased:
            items.mean[:, -1] = residual.sum(axis=0) / (_DAMPING + np.diff(columns.indptr))
            residual.data -= items.mean[residual.indices, -1].astype(np.float32)
            own = np.asarray(residual.sum(axis=1)).ravel() / (_DAMPING + np.diff(rated.indptr))
            residual.data -= own[_row_of(residual)].astype(np.float32)
        _, size, right = randomized_svd(residual, width - 1, n_iter=4, random_state=child_seed(self.seed, "svd"))
        items.mean[:, :-1] = right.T * np.sqrt(size)
        row, column = np.tril_indices(width)
        items.moment[:] = items.mean[:, row] * items.mean[:, column]
        items.moment[:, _diagonal(width)] += 0.1 * self.item_prior
        return users, items

    def _learn(
        self, rated: csr_matrix, columns: csr_matrix, sides: tuple[Side, Side], squared: float, residual: float,
        entropy: float,
    ) -> float:  # fmt: skip
        """Mean, noise and prior variances that maximise the evidence lower bound, and the bound there.

        ``squared`` and ``residual`` are the sums over ratings of E[(r - prediction)^2] and of r - E[prediction].
        """
        n = rated.nnz
        if self.biased:
            self.mean = self.mean + residual / n
            squared -= residual**2 / n
        self.noise = np.asarray(squared / n)
        bound = -n / 2 * (np.log(2 * np.pi * squared / n) + 1) + entropy / 2
        for prior, side, matrix in zip((self.user_prior, self.item_prior), sides, (rated, columns), strict=True):
            known = np.diff(matrix.indptr) > 0  # rows without ratings stay at the prior and tell nothing about it
            second = side.moment[:, _diagonal(len(prior))][known].mean(axis=0, dtype=np.float64)
            if self.learned:
                free = slice(None) if self.biased else slice(-1)
                prior[free] = np.maximum(second, _LEAST * float(self.noise))[free]
            bound -= known.sum() / 2 * np.sum(np.log(prior) + second / prior - 1)
        return float(bound)

    def _turn(self, rated: csr_matrix, columns: csr_matrix, sides: tuple[Side, Side]) -> None:
        """Turn the traits so that both sides' second moments are the same diagonal, decreasing.

        With theta' = R theta and beta' = R^-T beta no prediction changes, and of all such R this one has the largest
        bound: a positive matrix's log determinant is at most the sum of the logs on its diagonal (Hadamard).
        """
        users, items = sides
        k = len(self.user_prior) - 1
        row, column = np.tril_indices(k + 1)
        inner = slice(k * (k + 1) // 2)
        second = []
        for side, matrix in ((users, rated), (items, columns)):
            packed = side.moment[np.diff(matrix.indptr) > 0, inner].mean(axis=0, dtype=np.float64)
            second.append(_unpacked(packed[None], k)[0])
        root = np.linalg.cholesky(second[0] + _LEAST * np.trace(second[0]) / k * np.eye(k))
        size, axes = np.linalg.eigh(root.T @ second[1] @ root)
        size, axes = np.maximum(size[::-1], _LEAST * size[-1]), axes[:, ::-1]
        turn = np.eye(k + 1)
        turn[:k, :k] = (size**-0.25)[:, None] * (axes.T @ root.T)
        farthest = np.abs(items.mean[:, :k] @ turn[:k, :k].T).argmax(axis=0)
        turn[:k] *= np.where((items.mean @ turn.T)[farthest, np.arange(k)] < 0, -1, 1)[:, None]
        items.mean = items.mean @ turn.T
        for start in range(0, len(items.mean), 4096):
            block = slice(start, start + 4096)
            items.moment[block] = (turn @ _unpacked(items.moment[block], k + 1) @ turn.T)[:, row, column]
        self.user_prior[:k] = self.item_prior[:k] = np.sqrt(size)

    # ---- predictions

    @property
    def _items(self) -> Side:
        return Side(self.item_mean, self.item_moment)

    def fold_in(self, profiles: csr_matrix) -> Side:
        """The posterior of each profile, items fixed; the prior for an empty one."""
        profiles = _checked(profiles, len(self.item_mean))
        users = Side.empty(profiles.shape[0], len(self.user_prior))
        _update(
            profiles.indptr, profiles.indices, profiles.data, float(self.mean), self.item_mean, self.item_moment,
            1 / self.user_prior, float(self.noise), users.mean, users.moment,
        )  # fmt: skip
        return users

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 expected ratings, not clipped."""
        users = self.fold_in(profiles)
        return self._centred(users) + np.float32(self.mean)

    def _centred(self, users: Side) -> Scores:
        weights = np.hstack([users.mean, np.ones((len(users.mean), 1))]).astype(np.float32)
        design = np.hstack([self.item_mean[:, :-1], np.ones((len(self.item_mean), 1)), self.item_mean[:, -1:]])
        return np.asarray(weights @ design.T.astype(np.float32))

    def deviation(self, profiles: csr_matrix, *, noise: bool = True) -> Scores:
        """(users, items) float32 standard deviation of a rating; without ``noise``, of its expectation.

        ``noise + sum_kl (V_kl m_k m_l + W_kl t_k t_l + V_kl W_kl) + var b_u + var b_m`` and the covariances of biases
        and traits; V and W are the covariances of theta and beta, t and m their means.
        """
        users = self.fold_in(profiles)
        square = users.features(weighted=True) @ self._items.features(weighted=False).T
        variance = np.maximum(square - self._centred(users) ** 2, 0) + np.float32(self.noise if noise else 0)
        return np.asarray(np.sqrt(variance))

    def at(self, profiles: csr_matrix, row: NDArray[Any], item: NDArray[Any]) -> tuple[Floats, Floats]:
        """Expected ratings (N,), not clipped, and their predictive standard deviations at places of the matrix."""
        mean, variance = self._at(self.fold_in(profiles), self._items, row, item)
        return mean, np.sqrt(variance)

    def truncated_deviation(self, profiles: csr_matrix, row: NDArray[Any], item: NDArray[Any]) -> Floats:
        """The deviation of :meth:`at` without products of variances, biases and covariances: shorter, too narrow."""
        users, items = self.fold_in(profiles), self._items
        inner = _diagonal(len(self.user_prior))[:-1]
        u, m = (side.mean[at, :-1] ** 2 for side, at in ((users, row), (items, item)))
        v, w = (side.moment[at][:, inner] for side, at in ((users, row), (items, item)))
        return np.asarray(np.sqrt(float(self.noise) + ((v - u) * m + u * (w - m)).sum(axis=1)))

    def _at(self, users: Side, items: Side, row: NDArray[Any], item: NDArray[Any]) -> tuple[Floats, Floats]:
        one, other = users.features(weighted=True), items.features(weighted=False)
        mean, square = np.empty(len(row)), np.empty(len(row))
        for start in range(0, len(row), _PAIRS):
            part = slice(start, start + _PAIRS)
            u, m = users.mean[row[part]], items.mean[item[part]]
            mean[part] = np.einsum("nk,nk->n", u[:, :-1], m[:, :-1]) + u[:, -1] + m[:, -1]
            square[part] = np.einsum("np,np->n", one[row[part]], other[item[part]])
        return mean + float(self.mean), np.maximum(square - mean**2, 0) + float(self.noise)

    def leave_one_out(self, profiles: csr_matrix, stored: NDArray[np.int_]) -> tuple[Floats, Floats]:
        """Expectation and standard deviation of stored ratings, each from its row without it.

        ``stored`` are places in ``profiles.data``. The item side stays as it was fitted: if it was fitted on these
        ratings, it knows a little of each. Cost: one fold-in a rating.
        """
        profiles = _checked(profiles, len(self.item_mean))
        mean, deviation = np.empty(len(stored)), np.empty(len(stored))
        for start in range(0, len(stored), 1024):
            places = stored[start : start + 1024]
            row = np.searchsorted(profiles.indptr, places, side="right") - 1
            rest = profiles[row]
            out = rest.indptr[:-1] + places - profiles.indptr[row]
            items, left = rest.indices[out], np.delete(np.arange(rest.nnz), out)
            indptr = rest.indptr - np.arange(len(rest.indptr))
            rest = csr_matrix((rest.data[left], rest.indices[left], indptr), shape=rest.shape)
            mean[start : start + 1024], deviation[start : start + 1024] = self.at(rest, np.arange(len(row)), items)
        return mean, deviation


def _log_density(rating: NDArray[np.float32], mean: Floats, variance: Floats) -> Floats:
    return np.asarray(-0.5 * (np.log(2 * np.pi * variance) + (rating - mean) ** 2 / variance))


def _unpacked(packed: NDArray[np.floating[Any]], width: int) -> Floats:
    """(n, width, width) symmetric matrices from their packed lower triangles."""
    row, column = np.tril_indices(width)
    full = np.empty((len(packed), width, width))
    full[:, row, column] = full[:, column, row] = packed
    return full


@njit(cache=True)
def _precision(squares, traits, n, prior, noise, matrix):  # type: ignore[no-untyped-def]
    """Fill (d, d) with the posterior precision of one row from its sums over ratings (see :func:`_collect`)."""
    last = len(traits) - 1
    place = 0
    for i in range(last):
        for k in range(i + 1):
            matrix[i, k] = matrix[k, i] = squares[place] / noise
            place += 1
        matrix[last, i] = matrix[i, last] = traits[i] / noise
    matrix[last, last] = n / noise
    for i in range(last + 1):
        matrix[i, i] += prior[i]


@njit(cache=True)
def _collect(items, values, centre, other, moment, squares, traits, target):  # type: ignore[no-untyped-def]
    """Sums over one row's ratings, x = (traits, bias) of the other side; returns that of E[(r - mu - bias)^2].

    squares : packed sum of E[x x']; traits : (d,) sum of E[traits], the last place unused; target : (d,) sum of
    E[(r - mu - bias) (traits, 1)].
    """
    d = other.shape[1]
    base = d * (d - 1) // 2
    squares[:], traits[:], target[:] = 0.0, 0.0, 0.0
    total = 0.0
    for e in range(len(items)):
        item, value = items[e], values[e] - centre
        for p in range(len(squares)):
            squares[p] += moment[item, p]
        for k in range(d - 1):
            traits[k] += other[item, k]
            target[k] += value * other[item, k]
        target[d - 1] += value - other[item, d - 1]
        total += value * (value - 2 * other[item, d - 1])
    for k in range(d - 1):
        target[k] -= squares[base + k]
    return total + squares[base + d - 1]


@njit(cache=True)
def _update(  # type: ignore[no-untyped-def]
    indptr, items, values, centre, other, moment, prior, noise, own_mean, own_moment
):
    """New posteriors of all rows of one side; own_mean and own_moment are overwritten. ``prior``: (d,) precisions.

    Returns the sums of E[(r - prediction)^2], of r - E[prediction] and of the log determinants (rated rows only).
    """
    d = other.shape[1]
    squares, traits, target, matrix = np.empty(d * (d + 1) // 2), np.empty(d), np.empty(d), np.empty((d, d))
    squared = residual = log_dets = 0.0
    for row in range(len(indptr) - 1):
        part = slice(indptr[row], indptr[row + 1])
        n = indptr[row + 1] - indptr[row]
        total = _collect(items[part], values[part], centre, other, moment, squares, traits, target)
        _precision(squares, traits, n, prior, noise, matrix)
        covariance = np.linalg.inv(matrix)
        mean = covariance @ target / noise
        own_mean[row] = mean
        place = 0
        explained = 0.0
        for i in range(d):
            for k in range(i + 1):
                second = covariance[i, k] + mean[i] * mean[k]
                own_moment[row, place] = second
                explained += (1.0 if i == k else 2.0) * second * matrix[i, k]
                place += 1
            explained -= second * prior[i]  # the last second is that on the diagonal
        if n > 0:
            squared += total - 2 * mean @ target + noise * explained
            log_dets -= np.linalg.slogdet(matrix)[1]
            residual += target[d - 1] - traits[: d - 1] @ mean[: d - 1] - n * mean[d - 1]
    return squared, residual, log_dets
