"""V2, the latent trait model: every user and every item has traits that are known only up to a distribution.

Ratings follow ``r = mu + theta_u . beta_m + b_u + b_m + noise``; all of it has a normal prior whose variances are
learned from the ratings themselves. The posterior is approximated by one normal distribution per user and one per item,
so a prediction comes with a deviation, and an item that three people rated is treated as what it is: hardly known.
Options: noise that differs between users and items, ratings as ordered categories, and mini-batches of users.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import erfc
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.special import digamma, gammaln, ndtr
from sklearn.utils.extmath import randomized_svd

from recsys_utils.base import InputError, Scores, check_memory, child_rng, child_seed
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.models.collaborative import Floats, _checked, _RatingModel

Moments = NDArray[np.float32]

_PAIRS = 2**16  # predictions at pairs made at once
_ROWS = 2**12  # users or items whose moments are made at once; all of them in double precision outweigh the ratings
_DAMPING = 5.0  # ratings added to each count in the biases that the ascent starts from
_PATIENCE = 4  # sweeps without a gain on the held-out ratings after which a trial ends
_LEAST = 1e-8  # of a prior variance: what evidence has ruled out stays finite
_SHAPES = 1.5, 1e6  # of the prior of relative precisions: below 1 an unknown row's noise would have no mean
MOST_LEVELS = 20  # distinct ratings at most that are taken as ordered categories
_FAR = 1e9  # the outer cut points, finite so that 0 * _FAR = 0
_INNER, _ENOUGH = 50, 1e-5  # rounds at most, and the change that ends them, of a fold-in without a closed form
_DELAY, _FORGETTING = 1.0, 0.6  # tau and kappa: batch t, from 0, moves the items by (t + tau)^-kappa


@dataclass
class Side:
    """The posterior of all users, or of all items: normal, with a full covariance within a row and none between rows.

    Parameters
    ----------
    mean : (n, K + 1) float64, the K traits and the bias
    moment : (n, (K + 1)(K + 2) / 2) float32, ``E[x x']`` of a row, lower triangle row by row
    precision : (n, 2) float64, ``E[a]`` and ``E[1 / a]`` of the row's relative precision; ones if noise doesn't vary
    """

    mean: Floats
    moment: Moments
    precision: Floats

    @classmethod
    def empty(cls, rows: int, width: int) -> Side:
        moment = np.zeros((rows, width * (width + 1) // 2), np.float32)
        return cls(np.zeros((rows, width)), moment, np.ones((rows, 2)))

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
            twice = np.where(np.isin(np.arange(end), _diagonal(k)), np.float32(1), np.float32(2))
            parts = [square * twice, 2 * cross, 2 * traits, 2 * bias, bias_square, one]
        else:
            parts = [square, traits, cross, bias, one, bias_square]
        return np.hstack(parts, dtype=np.float32, casting="same_kind")


def _diagonal(width: int) -> NDArray[np.intp]:
    """Places of the diagonal in a packed lower triangle."""
    order = np.arange(width)
    return order * (order + 3) // 2


def memory_estimate(users: int, items: int, ratings: int, n_factors: int) -> float:
    """Bytes that a fit holds at its peak, besides the ratings that were passed in.

    Ratings by user and by item (4 + 4 bytes each) and, per row, mean and precision (8 bytes) and moments (4 bytes).

    >>> f"{memory_estimate(162_541, 59_047, 25_000_095, 20) / 2**30:.2f} GB"
    '0.60 GB'
    """
    width = n_factors + 1
    return ratings * 16.0 + (users + items) * (width * (width + 1) / 2 * 4 + (width + 2) * 8)


@dataclass
class VariationalMF(_RatingModel):
    r"""Variational matrix factorisation with learned priors: ``r ~ N(mu + theta_u . beta_m + b_u + b_m, noise_um)``.

    ``theta_uk ~ N(0, user_prior_k)``, ``beta_mk ~ N(0, item_prior_k)``, biases likewise. ``q = prod_u q(theta_u, b_u)
    prod_m q(beta_m, b_m)``, each factor normal with a full covariance, fitted by coordinate ascent on the evidence
    lower bound (exact, kept in ``elbo``; it never falls). Prior variances, noise and mu maximise the same bound, which
    shrinks the variances of traits that the ratings do not support towards 0 (automatic relevance determination).
    Carried to its end that may prune more than is good for new ratings, so the number of sweeps is the one with the
    best predictive likelihood of ratings held out of the training part; the final fit uses all of it.

    *Noise* that varies has the variance ``noise / (a_u g_m)`` with relative precisions ``a_u ~ Gamma(s, s)``,
    ``g_m ~ Gamma(t, t)``, mean 1, whose posteriors are gamma too and whose shapes maximise the bound. Careless users
    and divisive items then weigh less and get wider intervals; the predictive variance holds
    ``noise E[1 / a_u] E[1 / g_m]``.

    *Ordinal* (ordered probit): a rating is the l-th of L values if ``z ~ N(f, noise / (a_u g_m))`` lies between the cut
    points l - 1 and l. q(z) is that normal truncated to the range, its mean stands in for the rating, and the cuts
    maximise the bound. Location and unit of z are free: mu stays the ratings' mean and the noise half their variance,
    but for the factors that relative precisions hand over. Expectation and deviation are those of the
    :meth:`probabilities`, on the rating scale.

    *Mini-batches*: ``batch_users`` at a time are updated as above; the sums over ratings that make an item's posterior
    then move towards those of the batch, scaled to all its ratings, by ``(t + 1)^-.6`` for an item with its usual share
    of the batch. ``elbo`` is an estimate then. It pays with many users and few passes: on 2.5 million generated ratings
    an epoch in batches of 5,000 users cost 1.8 sweeps and was worth three (held-out likelihood), the second was worth
    more than five. On small data it ends a little below the full ascent (.005 nats a rating on ML-100K).

    Traits are turned (which changes no prediction) so that their second moments are diagonal and equal on both sides,
    in decreasing order. A profile is folded in by the exact conditional of its row, item posteriors fixed (in rounds to
    convergence if its precision or latents are unknown, too); an empty one gets the prior. Papers: Lim & Teh,
    "Variational Bayesian approach to movie rating prediction", KDD Cup 2007; Nakajima & Sugiyama, "Theoretical analysis
    of Bayesian matrix factorization", JMLR 12 (2011), on the pruning; Lakshminarayanan, Bouchard & Archambeau, "Robust
    Bayesian matrix factorisation", AISTATS 2011, on the noise; Albert & Chib, "Bayesian analysis of binary and
    polychotomous response data", JASA 88 (1993), on the latents; Hoffman, Blei, Wang & Paisley, "Stochastic variational
    inference", JMLR 14 (2013), on the batches.

    Parameters
    ----------
    n_factors : K, at most; fewer if the matrix is smaller
    sweeps : at most; one updates every user, every item and the priors
    held_out : share of the ratings on which the number of sweeps is chosen, 0-0.5; 0 = all sweeps
    taste : share of the ratings' variance that the traits are given to begin with, > 0
    learned : learn the variances; False keeps those of the beginning (to show what it costs)
    biased : with b_u, b_m and mu; False leaves them out (to show what it costs)
    varied_noise : every user and item has a noise of its own; False gives all the same
    likelihood : of ratings as numbers, or as ordered categories ("ordinal", at most 20 values)
    batch_users : users in a mini-batch; 0 = every step takes all
    seed : of the held-out ratings, of the truncated SVD it starts from and of the batches

    Raises
    ------
    InputError : the fit needs more memory than is free (:func:`memory_estimate`), ordinal ratings take more than 20
        values, or ordinal ratings are to be fitted in mini-batches.

    >>> rng = np.random.default_rng(0)
    >>> from recsys_utils.base import Scale; import pandas as pd
    >>> frame = pd.DataFrame([(f"u{u}", f"i{i}", 1 + (u + i) % 5) for u in range(9) for i in range(9) if u != i],
    ...                      columns=["user_id", "item_id", "rating"])
    >>> data = Interactions.from_frame(frame, scale=Scale(1, 5))
    >>> model = VariationalMF(n_factors=2, held_out=0).fit(data)
    >>> model.ratings(data.user_item).shape, bool((model.deviation(data.user_item) > 0).all())
    ((9, 9), True)
    >>> model = VariationalMF(n_factors=2, held_out=0, likelihood="ordinal").fit(data)
    >>> model.probabilities(data.user_item, data.user[:3], data.item[:3]).shape
    (3, 5)
    """

    name: ClassVar[str] = "latent_traits"
    n_factors: int = 30
    sweeps: int = 20
    held_out: float = 0.05
    taste: float = 0.25
    learned: bool = True
    biased: bool = True
    varied_noise: bool = True
    likelihood: Literal["gaussian", "ordinal"] = "gaussian"
    batch_users: int = 0
    seed: int = 0
    mean: Floats = field(init=False, repr=False, compare=False)
    noise: Floats = field(init=False, repr=False, compare=False)  # variance
    user_prior: Floats = field(init=False, repr=False, compare=False)  # (K + 1,) variances, the bias last
    item_prior: Floats = field(init=False, repr=False, compare=False)
    shapes: Floats = field(init=False, repr=False, compare=False)  # of users' and items' relative precision; 0 = all 1
    levels: Floats = field(init=False, repr=False, compare=False)  # (L,) ratings as categories; none if gaussian
    cuts: Floats = field(init=False, repr=False, compare=False)  # (L - 1,) between them
    item_mean: Floats = field(init=False, repr=False, compare=False)
    item_moment: Moments = field(init=False, repr=False, compare=False)
    item_precision: Floats = field(init=False, repr=False, compare=False)  # (items, 2), see Side
    elbo: Floats = field(init=False, repr=False, compare=False)  # (sweeps,) nats, of the final fit
    path: Floats = field(init=False, repr=False, compare=False)  # (sweeps,) nats a held-out rating
    bounds: Floats = field(init=False, repr=False, compare=False)

    def fit(self, train: Interactions) -> Self:
        self._check(train)
        self.path = self.trial(train) if self.held_out > 0 else np.zeros(0)
        self._ascend(train.user_item, int(np.argmax(self.path)) + 1 if self.held_out > 0 else self.sweeps)
        return self

    def trial(self, train: Interactions) -> Floats:
        """Log density (ordinal: log probability) of the held-out ratings, nats each, after each sweep over the others.

        It ends before ``sweeps`` when the last few have not gained anything. The maximum compares settings.
        """
        self._check(train)
        away = child_rng(self.seed, "held out").random(len(train)) < self.held_out
        return self._ascend(train.where(~away).user_item, self.sweeps, train.where(away))

    def _check(self, train: Interactions) -> None:
        need = memory_estimate(*train.shape, len(train), self.n_factors)
        what = f"Latent traits with {self.n_factors} factors on {len(train):,} ratings"
        check_memory(need, what, "Ask for fewer factors, or keep the users with most ratings.")
        self._keep_scale(train)
        if self.likelihood == "ordinal":
            if self.batch_users:
                raise InputError("Ordinal ratings are not fitted in mini-batches; set batch_users to 0.")
            if (levels := len(np.unique(train.rating))) > MOST_LEVELS:
                raise InputError(
                    f"The ratings take {levels} values; as ordered categories at most {MOST_LEVELS} are fitted. "
                    'Use likelihood="gaussian".'
                )

    def _ascend(self, rated: csr_matrix, sweeps: int, held: Interactions | None = None) -> Floats:
        """The ascent; returns the mean log density of the held-out ratings after each sweep."""
        sides = self._start(rated)
        rated = self._coded(rated)
        columns = rated.T.tocsr()  # after the start, which needs memory of its own
        sweep = _Batches(self, rated).epoch if self.batch_users else self._sweep
        elbo, found = [], []
        for _ in range(sweeps):
            elbo.append(sweep(rated, columns, sides))
            if held is not None:
                found.append(float(self._log_density(held.rating, *self._at(*sides, held.user, held.item)).mean()))
                if len(found) - np.argmax(found) > _PATIENCE:
                    break
        self._turn(rated, columns, sides)
        self.item_mean, self.item_moment, self.elbo = sides[1].mean, sides[1].moment, np.array(elbo)
        self.item_precision = sides[1].precision
        return np.array(found)

    def _sweep(self, rated: csr_matrix, columns: csr_matrix, sides: tuple[Side, Side]) -> float:
        entropy = self._update(0, rated, *sides).entropy
        sums = self._update(1, columns, *sides[::-1])
        units = self._rescale(rated, columns, sides)
        return self._learn(rated, columns, sides, sums.per(units.prod()), entropy + sums.entropy)

    def _update(
        self, which: int, matrix: csr_matrix, own: Side, other: Side, rounds: int = 1, memory: _Memory | None = None
    ) -> _Sums:
        """New posteriors of the users (``which`` = 0) or items (1), given the ``other`` side."""
        memory = memory or _Memory.none(matrix)
        return _Sums(*_update(
            matrix.indptr, matrix.indices, matrix.data, *self._centred_edges(), other.mean, other.moment,
            other.precision[:, 0].copy(), 1 / (self.user_prior, self.item_prior)[which], float(self.noise),
            self.shapes[which], rounds, own.mean, own.moment, own.precision, memory.counts, memory.sums, memory.step,
            memory.batches,
        ))  # fmt: skip

    def _centred_edges(self) -> tuple[float, Floats]:
        """What is taken off the values, and the bounds (L + 1,) of the levels around mu; none if gaussian."""
        if self.likelihood == "gaussian":
            return float(self.mean), np.empty(0)
        return 0.0, np.concatenate([[-_FAR], self.cuts - float(self.mean), [_FAR]])

    def _coded(self, rated: csr_matrix) -> csr_matrix:
        """Ordinal ratings as places among the levels, to the nearest one."""
        if self.likelihood == "gaussian":
            return rated
        return csr_matrix((self._places(rated.data).astype(np.float32), rated.indices, rated.indptr), rated.shape)

    def _places(self, rating: NDArray[Any]) -> NDArray[np.intp]:
        return np.searchsorted((self.levels[1:] + self.levels[:-1]) / 2, rating)

    def _start(self, rated: csr_matrix) -> tuple[Side, Side]:
        """Priors to begin with, and items from the truncated SVD of what damped means leave unexplained."""
        n_users, n_items = rated.shape
        width = max(1, min(self.n_factors, n_users - 1, n_items - 1)) + 1
        variance = max(float(np.var(rated.data, dtype=np.float64)), _LEAST)
        self.mean = np.asarray(np.mean(rated.data, dtype=np.float64) if self.biased else 0.0)
        self.noise = np.asarray(variance / 2)
        self.shapes = np.full(2, 5.0 if self.varied_noise else 0.0)
        self.levels = np.unique(rated.data).astype(np.float64) if self.likelihood == "ordinal" else np.empty(0)
        self.cuts = (self.levels[1:] + self.levels[:-1]) / 2
        self.user_prior = np.full(width, np.sqrt(self.taste * variance / (width - 1)))
        self.user_prior[-1] = variance / 5 if self.biased else _LEAST * variance
        self.item_prior = self.user_prior.copy()
        users, items = Side.empty(n_users, width), Side.empty(n_items, width)
        # in double precision: in single, which kernel of the BLAS a processor takes shows in the sixth digit of the fit
        off = rated.data.astype(np.float64) - float(self.mean)
        residual = csr_matrix((off, rated.indices, rated.indptr), shape=rated.shape)
        if self.biased:
            items.mean[:, -1] = residual.sum(axis=0) / (_DAMPING + item_counts(rated))
            for rows in _blocks(rated.nnz, _PAIRS):
                residual.data[rows] -= items.mean[residual.indices[rows], -1]
            own = np.asarray(residual.sum(axis=1)).ravel() / (_DAMPING + np.diff(rated.indptr))
            for rows in _blocks(rated.nnz, _PAIRS):
                row = np.searchsorted(rated.indptr, np.arange(rows.start, rows.stop), side="right") - 1
                residual.data[rows] -= own[row]
        _, size, right = randomized_svd(residual, width - 1, n_iter=4, random_state=child_seed(self.seed, "svd"))
        items.mean[:, :-1] = right.T * np.sqrt(size)
        row, column = np.tril_indices(width)
        for block in _blocks(n_items, _ROWS):
            items.moment[block] = items.mean[block][:, row] * items.mean[block][:, column]
        items.moment[:, _diagonal(width)] += 0.1 * self.item_prior
        return users, items

    def _rescale(self, rated: csr_matrix, columns: csr_matrix, sides: tuple[Side, Side]) -> Floats:
        """Make the relative precisions of each side 1 on average; returns what they were.

        The noise takes the factors, so no rating's variance changes and the priors, with mean 1, gain most. Without
        this step the ascent would take hundreds of sweeps to settle what is noise and what precision.
        """
        units = np.ones(2)
        if self.varied_noise:
            for which, (side, known) in enumerate(zip(sides, _known(rated, columns, sides), strict=True)):
                units[which] = side.precision[known, 0].mean()
                side.precision[known] *= [1 / units[which], units[which]]
        self.noise = np.asarray(self.noise / units.prod())
        return units

    def _learn(
        self, rated: csr_matrix, columns: csr_matrix, sides: tuple[Side, Side], sums: _Sums, entropy: float
    ) -> float:
        """Mean, noise (or cut points), shapes and prior variances that maximise the bound, and the bound there."""
        n = sums.ratings
        bound = entropy / 2
        if self.likelihood == "ordinal":
            bound += self._recut(columns, sides) - sums.spread / (2 * float(self.noise))
        else:
            squared = sums.squared
            if self.biased:
                self.mean = self.mean + sums.residual / sums.weight
                squared -= sums.residual**2 / sums.weight
            self.noise = np.asarray(squared / n)
            bound -= n / 2 * (np.log(2 * np.pi * squared / n) + 1)
        for which, (side, known) in enumerate(zip(sides, _known(rated, columns, sides), strict=True)):
            counts, prior = np.diff((rated, columns)[which].indptr), (self.user_prior, self.item_prior)[which]
            second = side.moment[:, _diagonal(len(prior))][known].mean(axis=0, dtype=np.float64)
            if self.learned:
                free = slice(None) if self.biased else slice(-1)
                prior[free] = np.maximum(second, _LEAST * float(self.noise))[free]
            bound -= known.sum() / 2 * np.sum(np.log(prior) + second / prior - 1)
            if self.varied_noise:
                self.shapes[which], part = _gammas(
                    side.precision[known, 0], counts[known], self.shapes[which], latent=self.likelihood == "ordinal"
                )
                bound += part
        return float(bound)

    def _recut(self, columns: csr_matrix, sides: tuple[Side, Side]) -> float:
        """A Newton step of the cut points up the bound, concave in them; returns what the bound owes to the ratings."""

        def likelihood() -> tuple[float, Floats, Floats]:
            return _cut_sums(  # type: ignore[no-any-return]
                columns.indptr, columns.indices, columns.data, self._centred_edges()[1], sides[1].mean,
                sides[1].precision[:, 0].copy(), sides[0].mean, sides[0].precision[:, 0].copy(), float(self.noise),
            )  # fmt: skip

        before, (value, slope, bend) = self.cuts, likelihood()
        step = np.linalg.solve(bend - _LEAST * np.eye(len(slope)), -slope)
        for halvings in range(20):
            self.cuts = before + step / 2**halvings
            if (np.diff(self.cuts) > 0).all() and (reached := likelihood()[0]) >= value:
                return reached
        self.cuts = before
        return value

    def _turn(self, rated: csr_matrix, columns: csr_matrix, sides: tuple[Side, Side]) -> None:
        """Turn the traits so that both sides' second moments are the same diagonal, decreasing.

        With theta' = R theta and beta' = R^-T beta no prediction changes, and of all such R this one has the largest
        bound: a positive matrix's log determinant is at most the sum of the logs on its diagonal (Hadamard).
        """
        items = sides[1]
        k = len(self.user_prior) - 1
        row, column = np.tril_indices(k + 1)
        inner = slice(k * (k + 1) // 2)
        second = []
        for side, known in zip(sides, _known(rated, columns, sides), strict=True):
            total = np.zeros(inner.stop)
            for rows in _blocks(len(known), _ROWS):
                total += side.moment[rows, inner][known[rows]].sum(axis=0, dtype=np.float64)
            second.append(_unpacked(total[None] / known.sum(), k)[0])
        root = np.linalg.cholesky(second[0] + _LEAST * np.trace(second[0]) / k * np.eye(k))
        size, axes = np.linalg.eigh(root.T @ second[1] @ root)
        size, axes = np.maximum(size[::-1], _LEAST * size[-1]), axes[:, ::-1]
        turn = np.eye(k + 1)
        turn[:k, :k] = (size**-0.25)[:, None] * (axes.T @ root.T)
        farthest = np.abs(items.mean[:, :k] @ turn[:k, :k].T).argmax(axis=0)
        turn[:k] *= np.where((items.mean @ turn.T)[farthest, np.arange(k)] < 0, -1, 1)[:, None]
        items.mean = items.mean @ turn.T
        for block in _blocks(len(items.mean), _ROWS):
            items.moment[block] = (turn @ _unpacked(items.moment[block], k + 1) @ turn.T)[:, row, column]
        self.user_prior[:k] = self.item_prior[:k] = np.sqrt(size)

    # ---- predictions

    @property
    def _items(self) -> Side:
        return Side(self.item_mean, self.item_moment, self.item_precision)

    def fold_in(self, profiles: csr_matrix) -> Side:
        """The posterior of each profile, items fixed; the prior for an empty one."""
        profiles = self._coded(_checked(profiles, len(self.item_mean)))
        users = Side.empty(profiles.shape[0], len(self.user_prior))
        closed = self.likelihood == "gaussian" and not self.varied_noise
        self._update(0, profiles, users, self._items, 1 if closed else _INNER)
        return users

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 expected ratings, not clipped (ordinal ones lie on the scale)."""
        users = self.fold_in(profiles)
        mean = self._centred(users) + np.float32(self.mean)
        return self._observed(mean, self._spread(users, noise=True))[0] if self.likelihood == "ordinal" else mean

    def _centred(self, users: Side) -> Scores:
        weights = np.hstack([users.mean, np.ones((len(users.mean), 1))]).astype(np.float32)
        design = np.hstack([self.item_mean[:, :-1], np.ones((len(self.item_mean), 1)), self.item_mean[:, -1:]])
        return np.asarray(weights @ design.T.astype(np.float32))

    def _spread(self, users: Side, *, noise: bool) -> Scores:
        """(users, items) float32 variance of the rating (ordinal: the latent), or of its expectation."""
        square = users.features(weighted=True) @ self._items.features(weighted=False).T
        variance = np.maximum(square - self._centred(users) ** 2, 0)
        if noise:
            one, other = (side.precision[:, 1].astype(np.float32) for side in (users, self._items))
            variance += np.float32(self.noise) * one[:, None] * other
        return np.asarray(variance)

    def deviation(self, profiles: csr_matrix, *, noise: bool = True) -> Scores:
        """(users, items) float32 standard deviation of a rating; without ``noise``, of its expectation.

        ``noise + sum_kl (V_kl m_k m_l + W_kl t_k t_l + V_kl W_kl) + var b_u + var b_m`` and the covariances of biases
        and traits; V and W are the covariances of theta and beta, t and m their means. The deviation of an ordinal
        expectation is that of its latent times its slope.
        """
        users = self.fold_in(profiles)
        variance = self._spread(users, noise=noise)
        if self.likelihood == "gaussian":
            return np.asarray(np.sqrt(variance))
        mean = self._centred(users) + np.float32(self.mean)
        if noise:
            return self._observed(mean, variance)[1]
        whole = np.sqrt(self._spread(users, noise=True))
        slope = np.zeros_like(mean)
        for gap, cut in zip(np.diff(self.levels), self.cuts, strict=True):
            slope += np.float32(gap) * np.exp(-(((np.float32(cut) - mean) / whole) ** 2) / 2)
        return np.asarray(np.sqrt(variance / (2 * np.pi)) * slope / whole, dtype=np.float32)

    def at(self, profiles: csr_matrix, row: NDArray[Any], item: NDArray[Any]) -> tuple[Floats, Floats]:
        """Expected ratings (N,), not clipped, and their predictive standard deviations at places of the matrix."""
        return self._observed(*self._at(self.fold_in(profiles), self._items, row, item))

    def probabilities(self, profiles: csr_matrix, row: NDArray[Any], item: NDArray[Any]) -> Floats:
        """(N, L) probabilities of the ``levels`` at places of the matrix, uncertainty of all traits included.

        ``P(r = l) = Phi((c_l - f) / s) - Phi((c_(l-1) - f) / s)``, s the predictive deviation of the latent.

        Raises
        ------
        InputError : the model takes ratings as numbers.
        """
        if self.likelihood == "gaussian":
            raise InputError('Probabilities of ratings need likelihood="ordinal"; this model was fitted as gaussian.')
        mean, variance = self._at(self.fold_in(profiles), self._items, row, item)
        return self._chances(mean, variance)

    def _chances(self, mean: Floats, variance: Floats) -> Floats:
        below = ndtr((self.cuts - mean[:, None]) / np.sqrt(variance)[:, None])
        return np.diff(below, axis=1, prepend=0, append=1)

    def _observed(self, mean: NDArray[Any], variance: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Expectation and deviation of ratings, from those of their latents if they are ordinal."""
        deviation = np.sqrt(variance)
        if self.likelihood == "gaussian":
            return mean, deviation
        low, high = float(self.levels[0]), float(self.levels[-1])
        first, second = np.full_like(mean, low), np.zeros_like(mean)  # E[r], E[(r - low)^2] built up level by level
        for lower, upper, cut in zip(self.levels[:-1], self.levels[1:], self.cuts, strict=True):
            above = ndtr((mean - mean.dtype.type(cut)) / deviation)
            first += mean.dtype.type(upper - lower) * above
            second += mean.dtype.type((upper - low) ** 2 - (lower - low) ** 2) * above
        return np.clip(first, low, high), np.sqrt(np.maximum(second - (first - mean.dtype.type(low)) ** 2, _LEAST))

    def _log_density(self, rating: NDArray[np.float32], mean: Floats, variance: Floats) -> Floats:
        if self.likelihood == "gaussian":
            return np.asarray(-0.5 * (np.log(2 * np.pi * variance) + (rating - mean) ** 2 / variance))
        chances = self._chances(mean, variance)
        return np.log(np.maximum(chances[np.arange(len(rating)), self._places(rating)], 1e-12))

    def truncated_deviation(self, profiles: csr_matrix, row: NDArray[Any], item: NDArray[Any]) -> Floats:
        """The deviation of :meth:`at` without products of variances, biases and covariances: shorter, too narrow.

        Of ordinal ratings it is that of the latents.
        """
        users, items = self.fold_in(profiles), self._items
        inner = _diagonal(len(self.user_prior))[:-1]
        u, m = (side.mean[at, :-1] ** 2 for side, at in ((users, row), (items, item)))
        v, w = (side.moment[at][:, inner] for side, at in ((users, row), (items, item)))
        noise = float(self.noise) * users.precision[row, 1] * items.precision[item, 1]
        return np.asarray(np.sqrt(noise + ((v - u) * m + u * (w - m)).sum(axis=1)))

    def _at(self, users: Side, items: Side, row: NDArray[Any], item: NDArray[Any]) -> tuple[Floats, Floats]:
        """Expectation and variance of ratings (ordinal: of their latents)."""
        one, other = users.features(weighted=True), items.features(weighted=False)
        mean, square = np.empty(len(row)), np.empty(len(row))
        for part in _blocks(len(row), _PAIRS):
            u, m = users.mean[row[part]], items.mean[item[part]]
            mean[part] = np.einsum("nk,nk->n", u[:, :-1], m[:, :-1]) + u[:, -1] + m[:, -1]
            square[part] = np.einsum("np,np->n", one[row[part]], other[item[part]])
        noise = float(self.noise) * users.precision[row, 1] * items.precision[item, 1]
        return mean + float(self.mean), np.maximum(square - mean**2, 0) + noise

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


@dataclass
class _Sums:
    """What an update of one side says about all ratings, w being the relative precision of a rating."""

    squared: float  # sum of w E[(r - prediction)^2]
    residual: float  # sum of w (r - E[prediction])
    entropy: float  # sum of the log determinants of the covariances of rated rows
    weight: float  # sum of w
    spread: float  # sum of w var(prediction); of ordinal ratings only
    ratings: float  # how many there are; in the first batches those of items not yet seen are missing

    def per(self, unit: float) -> _Sums:
        """The sums for w in a new unit."""
        return replace(
            self, squared=self.squared / unit, residual=self.residual / unit, weight=self.weight / unit,
            spread=self.spread / unit,
        )  # fmt: skip


@dataclass
class _Memory:
    """Sums over ratings (see :func:`_collect`) that outlive a mini-batch; empty without batches.

    ``counts`` are the ratings of each row in all, ``step`` what a batch with the usual share of them is given of the
    sums, ``batches`` the number of batches in an epoch.
    """

    counts: NDArray[np.int64]
    sums: NDArray[np.float32]
    step: float = 1.0
    batches: int = 1

    @classmethod
    def none(cls, matrix: csr_matrix) -> _Memory:
        return cls(np.diff(matrix.indptr).astype(np.int64), np.empty((0, 0), np.float32))


class _Batches:
    """Epochs over mini-batches of users, and what the items remember between batches."""

    def __init__(self, model: VariationalMF, rated: csr_matrix) -> None:
        self.model, self.rng, self.seen = model, child_rng(model.seed, "batches"), 0
        width = len(model.user_prior)
        counts = np.bincount(rated.indices, minlength=rated.shape[1]).astype(np.int64)
        sums = np.zeros((rated.shape[1], width * (width + 1) // 2 + 2 * width + 1), np.float32)
        self.memory = _Memory(counts, sums, batches=-(-rated.shape[0] // model.batch_users))

    def epoch(self, rated: csr_matrix, columns: csr_matrix, sides: tuple[Side, Side]) -> float:
        users, items = sides
        entropy = bound = 0.0
        for rows in np.array_split(self.rng.permutation(rated.shape[0]), self.memory.batches):
            part, own = rated[rows], Side(users.mean[rows], users.moment[rows], users.precision[rows])
            entropy += self.model._update(0, part, own, items).entropy
            users.mean[rows], users.moment[rows], users.precision[rows] = own.mean, own.moment, own.precision
            self.memory.step = (self.seen + _DELAY) ** -_FORGETTING
            sums = self.model._update(1, part.T.tocsr(), items, own, memory=self.memory)
            units = self.model._rescale(rated, columns, sides)
            self.memory.sums /= np.float32(units[0])  # they are weighted by the precisions of users
            bound = self.model._learn(rated, columns, sides, sums.per(units.prod()), entropy + sums.entropy)
            self.seen += 1
        return bound


def _known(rated: csr_matrix, columns: csr_matrix, sides: tuple[Side, Side]) -> list[NDArray[np.bool_]]:
    """Rows that tell something about the priors: neither those without ratings nor, still empty, of batches to come."""
    return [
        (np.diff(matrix.indptr) > 0) & (side.moment[:, -1] > 0)
        for side, matrix in zip(sides, (rated, columns), strict=True)
    ]


def _gammas(mean: Floats, counts: NDArray[Any], shape: float, *, latent: bool) -> tuple[float, float]:
    """The shape of the prior of relative precisions that maximises the bound, and what the bound owes to them.

    ``mean`` are those of their posteriors, gamma with shape ``shape + counts / 2``. In the ``latent`` form the part of
    the means is in the likelihood already.
    """
    after = shape + counts / 2
    log = digamma(after) - np.log(after / mean)
    gap = float(np.mean(mean - log)) - 1  # log(s) - digamma(s) at the best s; falls from infinity to 0
    low, high = _SHAPES
    if np.log(low) - digamma(low) <= gap:
        best = low
    elif np.log(high) - digamma(high) >= gap:
        best = high
    else:
        best = float(brentq(lambda s: np.log(s) - digamma(s) - gap, low, high))
    bound = len(mean) * (best * np.log(best) - gammaln(best)) + np.sum((best - 1) * log - best * mean)
    bound += np.sum(after - np.log(after / mean) + gammaln(after) + (1 - after) * digamma(after))
    return best, float(bound + np.sum(counts / 2 * (log - np.log(mean) if latent else log)))


def _blocks(total: int, size: int) -> list[slice]:
    """Entries or rows in parts, so that what is computed for each takes no memory to speak of."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _unpacked(packed: NDArray[np.floating[Any]], width: int) -> Floats:
    """(n, width, width) symmetric matrices from their packed lower triangles."""
    row, column = np.tril_indices(width)
    full = np.empty((len(packed), width, width))
    full[:, row, column] = full[:, column, row] = packed
    return full


@njit(cache=True)
def _precision(squares, traits, prior, noise, matrix):  # type: ignore[no-untyped-def]
    """Fill (d, d) with the posterior precision of one row from its sums over ratings (see :func:`_collect`)."""
    last = len(traits) - 1
    place = 0
    for i in range(last):
        for k in range(i + 1):
            matrix[i, k] = matrix[k, i] = squares[place] / noise
            place += 1
        matrix[last, i] = matrix[i, last] = traits[i] / noise
    matrix[last, last] = traits[last] / noise
    for i in range(last + 1):
        matrix[i, i] += prior[i]


@njit(cache=True)
def _collect(items, other, moment, weights, squares, traits):  # type: ignore[no-untyped-def]
    """Weighted sums over one row's ratings, x = (traits, bias) of the other side.

    squares : packed sum of w E[x x']; traits : (d,) sum of w E[traits], and of w in the last place.
    """
    d = other.shape[1]
    squares[:], traits[:] = 0.0, 0.0
    for item in items:
        weight = weights[item]
        for p in range(len(squares)):
            squares[p] += weight * moment[item, p]
        for k in range(d - 1):
            traits[k] += weight * other[item, k]
        traits[d - 1] += weight


@njit(cache=True)
def _aim(items, values, centre, other, weights, squares, target):  # type: ignore[no-untyped-def]
    """Fill target with (d,) sums of w E[(r - mu - bias) (traits, 1)]; returns that of w E[(r - mu - bias)^2]."""
    d = other.shape[1]
    base = d * (d - 1) // 2
    target[:] = 0.0
    total = 0.0
    for e in range(len(items)):
        item, value = items[e], values[e] - centre
        weight = weights[item]
        for k in range(d - 1):
            target[k] += weight * value * other[item, k]
        target[d - 1] += weight * (value - other[item, d - 1])
        total += weight * (value * (value - 2 * other[item, d - 1]))
    for k in range(d - 1):
        target[k] -= squares[base + k]
    return total + squares[base + d - 1]


@njit(cache=True)
def _expected(own, other):  # type: ignore[no-untyped-def]
    """theta . beta + b_u + b_m of one pair's means."""
    last = len(own) - 1
    total = own[last] + other[last]
    for k in range(last):
        total += own[k] * other[k]
    return total


@njit(cache=True)
def _between(low, high):  # type: ignore[no-untyped-def]
    """Of a standard normal: its chance to lie between two bounds, and its densities there divided by that."""
    left, right = (-high, -low) if low > 0 else (low, high)  # in the left tail no digits are lost
    chance = max(0.5 * (erfc(-right / np.sqrt(2.0)) - erfc(-left / np.sqrt(2.0))), 1e-300)
    scale = 1 / (np.sqrt(2 * np.pi) * chance)
    return chance, scale * np.exp(-low * low / 2), scale * np.exp(-high * high / 2)


@njit(cache=True)
def _latents(items, levels, edges, own, other, weights, noise, latent):  # type: ignore[no-untyped-def]
    """Fill latent (n,) with the means of truncated normals; returns the sum of w times their variances."""
    total = 0.0
    for e in range(len(items)):
        item, level = items[e], int(levels[e])
        mean, deviation = _expected(own, other[item]), np.sqrt(noise / weights[item])
        low, high = (edges[level] - mean) / deviation, (edges[level + 1] - mean) / deviation
        _, at_low, at_high = _between(low, high)
        shift = at_low - at_high
        latent[e] = mean + deviation * shift
        total += noise * (1 + low * at_low - high * at_high - shift * shift)
    return total


@njit(cache=True)
def _cut_sums(indptr, items, levels, edges, own, own_weights, other, weights, noise):  # type: ignore[no-untyped-def]
    """Sum of the log probabilities of levels at the means, its gradient and Hessian in the inner edges."""
    last = len(edges) - 1
    value, slope, bend = 0.0, np.zeros(last + 1), np.zeros((last + 1, last + 1))
    for row in range(len(indptr) - 1):
        for e in range(indptr[row], indptr[row + 1]):
            item, low = items[e], int(levels[e])
            mean, precision = _expected(own[row], other[item]), own_weights[row] * weights[item] / noise
            root = np.sqrt(precision)
            left, right = (edges[low] - mean) * root, (edges[low + 1] - mean) * root
            chance, at_left, at_right = _between(left, right)
            value += np.log(chance)
            slope[low] -= root * at_left
            slope[low + 1] += root * at_right
            bend[low, low] += precision * (left * at_left - at_left**2)
            bend[low + 1, low + 1] -= precision * (right * at_right + at_right**2)
            bend[low, low + 1] += precision * at_left * at_right
            bend[low + 1, low] += precision * at_left * at_right
    return value, slope[1:last].copy(), bend[1:last, 1:last].copy()


@njit(cache=True)
def _update(  # type: ignore[no-untyped-def]
    indptr, items, values, centre, edges, other, moment, weights, prior, noise, shape, rounds, own, own_moment,
    own_precision, counts, memory, step, batches
):  # fmt: skip
    """New posteriors of all rows of one side; the three ``own`` are overwritten. ``prior``: (d,) precisions.

    ``edges`` make values places of levels, ``shape`` > 0 updates relative precisions, and ``memory`` is mixed with the
    sums of the batch: a row with c times its usual share of ratings moves by ``1 - (1 - step)^c``, one that is seen for
    the first time takes what it gets. Returns the numbers of :class:`_Sums`.
    """
    d = other.shape[1]
    size = d * (d + 1) // 2
    sums, matrix, longest = np.empty(size + 2 * d + 1), np.empty((d, d)), 0
    squares, traits, target = sums[:size], sums[size : size + d], sums[size + d : size + 2 * d]
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    latent = np.empty(longest if len(edges) > 0 else 0)
    covariance = np.linalg.inv(np.eye(d))  # of the layout that inv returns
    all_squared = all_residual = log_dets = all_weight = all_spread = ratings = 0.0
    for row in range(len(indptr) - 1):
        part = slice(indptr[row], indptr[row + 1])
        n, count = indptr[row + 1] - indptr[row], counts[row]
        if len(memory) > 0 and n == 0 and count > 0 and memory[row, size + d - 1] == 0:
            continue  # no batch so far had it: it stays where the ascent began
        _collect(items[part], other, moment, weights, squares, traits)
        within = squared = 0.0
        for turn in range(rounds):
            row_noise = noise / own_precision[row, 0]
            if len(edges) > 0:
                within = _latents(items[part], values[part], edges, own[row], other, weights, row_noise, latent)
                sums[-1] = _aim(items[part], latent, centre, other, weights, squares, target)
            elif turn == 0:
                sums[-1] = _aim(items[part], values[part], centre, other, weights, squares, target)
            if len(memory) > 0:
                if n > 0:
                    first = memory[row, size + d - 1] == 0
                    move = 1.0 if first else 1 - (1 - step) ** (n / count * batches)
                    for p in range(len(sums)):
                        memory[row, p] += move * (count / n * sums[p] - memory[row, p])
                sums[:] = memory[row]
            if turn == 0 or shape > 0:
                _precision(squares, traits, prior, row_noise, matrix)
                covariance = np.linalg.inv(matrix)
            mean = covariance @ target / row_noise
            change = np.abs(mean - own[row]).max()
            own[row] = mean
            place = 0
            explained = 0.0
            for i in range(d):
                for k in range(i + 1):
                    second = covariance[i, k] + mean[i] * mean[k]
                    own_moment[row, place] = second
                    explained += (1.0 if i == k else 2.0) * second * matrix[i, k]
                    place += 1
                explained -= second * prior[i]  # the last second is that on the diagonal
            squared = sums[-1] - 2 * mean @ target + row_noise * explained
            if shape > 0:
                after = shape + count / 2
                weight = after / (shape + max(squared + within, 0.0) / (2 * noise))
                change = max(change, abs(weight - own_precision[row, 0]))
                own_precision[row, 0], own_precision[row, 1] = weight, after / (after - 1) / weight
            if count == 0 or change < _ENOUGH:
                break
        if count > 0:
            weight = own_precision[row, 0]
            all_squared += weight * squared
            all_residual += weight * (target[d - 1] - traits[: d - 1] @ mean[: d - 1] - traits[d - 1] * mean[d - 1])
            all_weight += weight * traits[d - 1]
            ratings += count
            log_dets -= np.linalg.slogdet(matrix)[1]
            if len(edges) > 0:
                error = 0.0
                for e in range(n):
                    item = items[indptr[row] + e]
                    error += weights[item] * (latent[e] - _expected(mean, other[item])) ** 2
                all_spread += weight * (squared - error)
    return all_squared, all_residual, log_dets, all_weight, all_spread, ratings
