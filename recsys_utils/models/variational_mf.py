"""Variational matrix factorization: every user and every item has latent factors that are known up to a distribution.

Ratings follow ``r = mu + theta_u . beta_m + b_u + b_m + noise``; factors and biases have normal priors whose variances
are learned from the ratings. The posterior is approximated by one normal distribution per user and one per item, so a
prediction comes with a standard deviation, and an item with three ratings stays uncertain. Options: noise that differs
between users and items, ratings as ordered categories, and mini-batches of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice, repeat
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.special import digamma, gammaln, ndtr
from sklearn.utils.extmath import randomized_svd

from recsys_utils.base import Floats, InputError, Scores, check_memory, child_rng, child_seed
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.rankers import RatingModel, checked
from recsys_utils.models.variational_kernels import cut_sums, update_rows

Moments = NDArray[np.float32]
Counts = NDArray[np.int64]
Batch = tuple[Any, csr_matrix, csr_matrix, float]  # user rows, their ratings by user and by item, step of the items

_PAIRS = 2**16  # predictions at pairs made at once
_ROWS = 2**12  # items whose second moments are turned at once; all of them in double precision outweigh the ratings
_DAMPING = 5.0  # ratings added to each count in the biases that the ascent starts from
_PATIENCE = 4  # sweeps without a gain on the held-out ratings after which a trial ends
_LEAST = 1e-8  # of a prior variance: what evidence has ruled out stays finite
_SHAPES = 1.5, 1e6  # of the prior of relative precisions: below 1 an unknown row's noise would have no mean
MOST_LEVELS = 20  # distinct ratings at most that are taken as ordered categories
_FAR = 1e9  # the outer cut points, finite so that 0 * _FAR = 0
_ROUNDS = 50  # at most, of a fold-in without a closed form
_DELAY, _FORGETTING = 1.0, 0.6  # tau and kappa: batch t, from 0, moves the items by (t + tau)^-kappa


@dataclass
class Side:
    """The posterior of all users, or of all items: normal, with a full covariance within a row and none between rows.

    Parameters
    ----------
    prior : (K + 1,) prior variances of the factors and the bias
    mean : (n, K + 1) float64, the K factors and the bias
    moment : (n, (K + 1)(K + 2) / 2) float32, second moments ``E[x x']`` of a row, lower triangle row by row
    precision : (n, 2) float64, ``E[a]`` and ``E[1 / a]`` of the row's relative precision; ones if noise doesn't vary
    shape : of the prior of relative precisions; 0 if noise doesn't vary
    counts : (n,) ratings of each row in the training part
    sums : (n, ...) float32 sums over ratings (see :func:`update_rows`) that outlive a mini-batch; empty without batches
    """

    prior: Floats
    mean: Floats
    moment: Moments
    precision: Floats
    shape: float = 0.0
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    sums: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    @classmethod
    def empty(cls, counts: NDArray[Any], prior: Floats, shape: float) -> Self:
        n, width = len(counts), len(prior)
        moment = np.zeros((n, width * (width + 1) // 2), np.float32)
        return cls(prior, np.zeros((n, width)), moment, np.ones((n, 2)), float(shape), counts.astype(np.int64))

    @property
    def posterior(self) -> tuple[Floats, Moments, Floats]:
        return self.mean, self.moment, self.precision

    def part(self, rows: NDArray[np.intp] | slice) -> Side:
        names = ("mean", "moment", "precision", "counts")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def known(self) -> NDArray[np.bool_]:
        """Rows that say something about the priors: with ratings, and visited by a batch."""
        return (self.counts > 0) & (self.moment[:, -1] > 0)

    def features(self, *, weighted: bool) -> NDArray[np.float32]:
        """Rows whose products between the sides are ``E[(theta . beta + b_u + b_m)^2]``; one side is ``weighted``.

        A symmetric product counts what is off the diagonal twice.
        """
        k = len(self.prior) - 1
        end = k * (k + 1) // 2
        factors, bias = np.split(self.mean, [k], axis=1)
        square, cross, bias_square = np.split(self.moment, [end, end + k], axis=1)
        parts: list[NDArray[Any]] = [square, factors, cross, bias, np.ones_like(bias), bias_square]
        if weighted:
            twice = np.full(end, 2, np.float32)
            twice[_diagonal(k)] = 1
            parts = [square * twice, 2 * cross, 2 * factors, 2 * bias, bias_square, np.ones_like(bias)]
        return np.hstack(parts, dtype=np.float32, casting="same_kind")


def _diagonal(width: int) -> NDArray[np.intp]:
    """Positions of the diagonal in a packed lower triangle."""
    order = np.arange(width)
    return order * (order + 3) // 2


def memory_estimate(users: int, items: int, ratings: int, n_factors: int) -> float:
    """Bytes that a fit holds at its peak, besides the ratings that were passed in.

    Ratings by user and by item (4 + 4 bytes each) and, per row, mean and precision (8 bytes) and second moments (4).

    >>> f"{memory_estimate(162_541, 59_047, 25_000_095, 20) / 2**30:.2f} GB"
    '0.60 GB'
    """
    width = n_factors + 1
    return ratings * 16.0 + (users + items) * (width * (width + 1) / 2 * 4 + (width + 2) * 8)


@dataclass
class VariationalMF(RatingModel):
    r"""Variational matrix factorization with learned priors: ``r ~ N(mu + theta_u . beta_m + b_u + b_m, noise_um)``.

    ``theta_uk ~ N(0, user_prior_k)``, ``beta_mk ~ N(0, item_prior_k)``, biases likewise. ``q = prod_u q(theta_u, b_u)
    prod_m q(beta_m, b_m)``, each factor normal with a full covariance, fitted by coordinate ascent on the evidence
    lower bound (exact, kept in ``elbo``; it never falls). Prior variances, noise and mu maximise the same bound, which
    shrinks the variances of factors that the ratings do not support towards 0 (automatic relevance determination).
    Carried to its end that may prune more than is good for new ratings, so the number of sweeps is the one with the
    best predictive likelihood of ratings held out of the training part; the final fit uses all of it.

    *Noise* that varies has the variance ``noise / (a_u g_m)`` with relative precisions ``a_u ~ Gamma(s, s)``,
    ``g_m ~ Gamma(t, t)``, mean 1, whose posteriors are gamma too and whose shapes maximise the bound. Careless users
    and divisive items then weigh less and get wider intervals; the predictive variance holds
    ``noise E[1 / a_u] E[1 / g_m]``.

    *Ordinal* (ordered probit): a rating is the l-th of L values if ``z ~ N(f, noise / (a_u g_m))`` lies between the cut
    points l - 1 and l. q(z) is that normal truncated to the range, its mean replaces the rating, and the cuts
    maximise the bound. Location and unit of z are free: mu stays the ratings' mean and the noise half their variance,
    but for the factors that relative precisions hand over. Expectation and deviation are those of the
    :meth:`probabilities`, on the rating scale.

    *Mini-batches*: ``batch_users`` at a time are updated as above; the sums over ratings that make an item's posterior
    then move towards those of the batch, scaled to all its ratings, by ``(t + 1)^-.6`` for an item with its usual share
    of the batch. ``elbo`` is an estimate then. It pays with many users and few passes: on 2.5 million generated ratings
    an epoch in batches of 5,000 users cost 1.8 sweeps and gained as much held-out likelihood as three, the second as
    much as five. On small data it ends a little below the full ascent (.005 nats per rating on ML-100K).

    Factors are rotated (which changes no prediction) so that their second moments are diagonal and equal on both sides,
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
    factor_share : share of the ratings' variance that the factors are given to begin with, > 0
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
    factor_share: float = 0.25
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
    path: Floats = field(init=False, repr=False, compare=False)  # (sweeps,) nats per held-out rating
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
        what = f"{self.n_factors} latent factors on {len(train):,} ratings"
        check_memory(need, what, "Use fewer factors, or keep the users with most ratings.")
        self.keep_scale(train)
        if self._ordinal and self.batch_users:
            raise InputError("Ordinal ratings are not fitted in mini-batches; set batch_users to 0.")
        if self._ordinal and (levels := len(np.unique(train.rating))) > MOST_LEVELS:
            raise InputError(
                f"The ratings take {levels} values; as ordered categories at most {MOST_LEVELS} are fitted. "
                'Use likelihood="gaussian".'
            )

    @property
    def _ordinal(self) -> bool:
        return self.likelihood == "ordinal"

    def _ascend(self, rated: csr_matrix, sweeps: int, held: Interactions | None = None) -> Floats:
        """The ascent; returns the mean log density of the held-out ratings after each sweep."""
        users, items = self._start(rated)
        rated = self._coded(rated)
        columns = rated.T.tocsr()  # after the start, which needs memory of its own
        n = -(-rated.shape[0] // self.batch_users) if self.batch_users else 1
        batches = self._batches(rated, n) if self.batch_users else repeat((slice(None), rated, columns, 1.0))
        elbo, found = [], []
        for _ in range(sweeps):
            elbo.append(self._sweep(islice(batches, n), n, columns, users, items))
            if held is not None:
                found.append(
                    float(self._log_density(held.rating, *self._at(users, items, held.user, held.item)).mean())
                )
                if len(found) - np.argmax(found) > _PATIENCE:
                    break
        self.shapes = np.array([users.shape, items.shape])
        self._turn(users, items)
        self.item_mean, self.item_moment, self.item_precision = items.posterior
        self.elbo = np.array(elbo)
        return np.array(found)

    def _batches(self, rated: csr_matrix, n: int) -> Iterator[Batch]:
        """Endless mini-batches, n an epoch: user rows, their ratings by user and by item, the step of the items."""
        rng = child_rng(self.seed, "batches")
        for seen in count():
            if seen % n == 0:
                order = np.array_split(rng.permutation(rated.shape[0]), n)
            part = rated[order[seen % n]]
            yield order[seen % n], part, part.T.tocsr(), (seen + _DELAY) ** -_FORGETTING

    def _sweep(self, batches: Iterator[Batch], n: int, columns: csr_matrix, users: Side, items: Side) -> float:
        """Update all users batch by batch, the items and priors after each batch; returns the bound."""
        entropy = bound = 0.0
        for rows, by_user, by_item, step in batches:
            own = users.part(rows)
            entropy += self._update(by_user, own, items)[-1]
            users.mean[rows], users.moment[rows], users.precision[rows] = own.posterior
            sums = self._update(by_item, items, own, step=step, batches=n)
            units = self._rescale(users, items)
            sums[:4] /= units.prod()
            items.sums /= np.float32(units[0])  # they are weighted by the precisions of users
            bound = self._learn_noise(sums, columns, users, items) + (entropy + sums[-1]) / 2
            bound += sum(self._learn_prior(side) for side in (users, items))
        return float(bound)

    def _update(
        self, ratings: csr_matrix, own: Side, other: Side, *, rounds: int = 1, step: float = 1.0, batches: int = 1
    ) -> Floats:
        """New posteriors of the rows of one side, given the other; returns the sums of :func:`update_rows`."""
        centre = 0.0 if self._ordinal else float(self.mean)
        rows, settings = (ratings.indptr, ratings.indices, ratings.data), (own.shape, rounds, step, batches)
        found: Floats = update_rows(
            rows, centre, self._edges(), 1 / own.prior, float(self.noise), own.posterior, other.posterior, settings,
            (own.counts, own.sums),
        )  # fmt: skip
        return found

    def _edges(self) -> Floats:
        """(L + 1,) bounds of the levels around mu; none if gaussian."""
        return np.concatenate([[-_FAR], self.cuts - float(self.mean), [_FAR]]) if self._ordinal else np.empty(0)

    def _coded(self, rated: csr_matrix) -> csr_matrix:
        """Ordinal ratings as positions among the levels, to the nearest one."""
        if not self._ordinal:
            return rated
        return csr_matrix((self._position(rated.data).astype(np.float32), rated.indices, rated.indptr), rated.shape)

    def _position(self, rating: NDArray[Any]) -> NDArray[np.intp]:
        return np.searchsorted((self.levels[1:] + self.levels[:-1]) / 2, rating)

    def _start(self, rated: csr_matrix) -> tuple[Side, Side]:
        """Priors to begin with, and items from the truncated SVD of what damped means leave unexplained."""
        width = max(1, min(self.n_factors, *(size - 1 for size in rated.shape))) + 1
        variance = max(float(np.var(rated.data, dtype=np.float64)), _LEAST)
        self.mean = np.asarray(np.mean(rated.data, dtype=np.float64))
        self.noise = np.asarray(variance / 2)
        self.levels = np.unique(rated.data).astype(np.float64) if self._ordinal else np.empty(0)
        self.cuts = (self.levels[1:] + self.levels[:-1]) / 2
        self.user_prior = np.full(width, np.sqrt(self.factor_share * variance / (width - 1)))
        self.user_prior[-1] = variance / 5
        self.item_prior = self.user_prior.copy()
        shape, counts = 5.0 if self.varied_noise else 0.0, np.bincount(rated.indices, minlength=rated.shape[1])
        users = Side.empty(np.diff(rated.indptr), self.user_prior, shape)
        items = Side.empty(counts, self.item_prior, shape)
        if self.batch_users:
            items.sums = np.zeros((len(counts), items.moment.shape[1] + 2 * width + 1), np.float32)
        # in double precision: in single, which kernel of the BLAS a processor takes shows in the sixth digit of the fit
        off = rated.data.astype(np.float64) - float(self.mean)
        residual = csr_matrix((off, rated.indices, rated.indptr), shape=rated.shape)
        items.mean[:, -1] = residual.sum(axis=0) / (_DAMPING + items.counts)
        residual.data -= items.mean[residual.indices, -1]
        own = np.asarray(residual.sum(axis=1)).ravel() / (_DAMPING + users.counts)
        residual.data -= np.repeat(own, users.counts)
        _, size, right = randomized_svd(residual, width - 1, n_iter=4, random_state=child_seed(self.seed, "svd"))
        items.mean[:, :-1] = right.T * np.sqrt(size)
        for place, (i, j) in enumerate(zip(*np.tril_indices(width), strict=True)):
            items.moment[:, place] = items.mean[:, i] * items.mean[:, j]
        items.moment[:, _diagonal(width)] += 0.1 * self.item_prior
        return users, items

    def _rescale(self, *sides: Side) -> Floats:
        """Make the relative precisions of each side 1 on average; returns what they were.

        The noise takes the factors, so no rating's variance changes and the priors, with mean 1, gain most. Without
        this step the ascent would take hundreds of sweeps to settle what is noise and what precision.
        """
        units = np.array([side.precision[side.known, 0].mean() for side in sides])
        for side, unit in zip(sides, units, strict=True):
            side.precision[side.known] *= [1 / unit, unit]
        self.noise = np.asarray(self.noise / units.prod())
        return units

    def _learn_noise(self, sums: Floats, columns: csr_matrix, users: Side, items: Side) -> float:
        """Mean and noise (or cut points) that maximise the bound; returns what the bound owes to the ratings."""
        squared, residual, weight, spread, n, _ = sums
        if self._ordinal:
            return float(self._recut(columns, users, items) - spread / (2 * float(self.noise)))
        self.mean = self.mean + residual / weight
        squared -= residual**2 / weight
        self.noise = np.asarray(squared / n)
        return float(-n / 2 * (np.log(2 * np.pi * squared / n) + 1))

    def _learn_prior(self, side: Side) -> float:
        """Prior variances and shape that maximise the bound; returns what the bound owes to them."""
        known, prior = side.known, side.prior
        second = side.moment[:, _diagonal(len(prior))][known].mean(axis=0, dtype=np.float64)
        prior[:] = np.maximum(second, _LEAST * float(self.noise))
        bound = -known.sum() / 2 * np.sum(np.log(prior) + second / prior - 1)
        if self.varied_noise:
            mean, counts = side.precision[known, 0], side.counts[known]
            side.shape, owed = _gammas(mean, counts, side.shape, latent=self._ordinal)
            bound += owed
        return float(bound)

    def _recut(self, columns: csr_matrix, users: Side, items: Side) -> float:
        """A Newton step of the cut points up the bound, concave in them; returns what the bound owes to the ratings."""

        rows = columns.indptr, columns.indices, columns.data

        def likelihood() -> Any:
            return cut_sums(rows, self._edges(), items.posterior, users.posterior, float(self.noise))

        before, (value, slope, bend) = self.cuts, likelihood()
        step = np.linalg.solve(bend - _LEAST * np.eye(len(slope)), -slope)
        for halvings in range(20):
            self.cuts = before + step / 2**halvings
            if (np.diff(self.cuts) > 0).all() and (reached := likelihood()[0]) >= value:
                return float(reached)
        self.cuts = before
        return float(value)

    def _turn(self, users: Side, items: Side) -> None:
        """Rotate the factors so that both sides' second moments are the same diagonal, decreasing.

        With theta' = R theta and beta' = R^-T beta no prediction changes, and of all such R this one has the largest
        bound: a positive matrix's log determinant is at most the sum of the logs on its diagonal (Hadamard).
        """
        k = len(users.prior) - 1
        row, column = np.tril_indices(k + 1)
        second = []
        for side in (users, items):
            total = side.moment[:, : k * (k + 1) // 2].sum(axis=0, dtype=np.float64, where=side.known[:, None])
            second.append(_unpacked(total[None] / side.known.sum(), k)[0])
        root = np.linalg.cholesky(second[0] + _LEAST * np.trace(second[0]) / k * np.eye(k))
        size, axes = np.linalg.eigh(root.T @ second[1] @ root)
        size, axes = np.maximum(size[::-1], _LEAST * size[-1]), axes[:, ::-1]
        turn = np.eye(k + 1)
        turn[:k, :k] = (size**-0.25)[:, None] * (axes.T @ root.T)
        farthest = np.abs(items.mean[:, :k] @ turn[:k, :k].T).argmax(axis=0)
        turn[:k] *= np.where((items.mean @ turn.T)[farthest, np.arange(k)] < 0, -1, 1)[:, None]
        items.mean = items.mean @ turn.T
        for start in range(0, len(items.mean), _ROWS):
            full = _unpacked(items.moment[start : start + _ROWS], k + 1)
            items.moment[start : start + _ROWS] = (turn @ full @ turn.T)[:, row, column]
        self.user_prior[:k] = self.item_prior[:k] = np.sqrt(size)

    # ---- predictions

    @property
    def _items(self) -> Side:
        return Side(self.item_prior, self.item_mean, self.item_moment, self.item_precision)

    def fold_in(self, profiles: csr_matrix) -> Side:
        """The posterior of each profile, items fixed; the prior for an empty one."""
        profiles = self._coded(checked(profiles, len(self.item_mean)))
        users = Side.empty(np.diff(profiles.indptr), self.user_prior, self.shapes[0])
        self._update(profiles, users, self._items, rounds=_ROUNDS)
        return users

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 expected ratings, not clipped (ordinal ones lie on the scale)."""
        users = self.fold_in(profiles)
        mean = self._centred(users) + np.float32(self.mean)
        return self._observed(mean, self._spread(users, noise=True))[0] if self._ordinal else mean

    def deviation(self, profiles: csr_matrix, *, noise: bool = True) -> Scores:
        """(users, items) float32 standard deviation of a rating; without ``noise``, of its expectation.

        ``noise + sum_kl (V_kl m_k m_l + W_kl t_k t_l + V_kl W_kl) + var b_u + var b_m`` and the covariances of biases
        and factors; V and W are the covariances of theta and beta, t and m their means. Of an ordinal expectation it is
        that of the latent.
        """
        users = self.fold_in(profiles)
        variance = self._spread(users, noise=noise)
        return self._observed(self._centred(users) + np.float32(self.mean), variance)[1] if noise else np.sqrt(variance)

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

    def at(self, profiles: csr_matrix, row: NDArray[Any], item: NDArray[Any]) -> tuple[Floats, Floats]:
        """Expected ratings (N,), not clipped, and their predictive standard deviations for pairs (row, item)."""
        return self._observed(*self._at(self.fold_in(profiles), self._items, row, item))

    def probabilities(self, profiles: csr_matrix, row: NDArray[Any], item: NDArray[Any]) -> Floats:
        """(N, L) probabilities of the ``levels`` for pairs (row, item), uncertainty of all factors included.

        ``P(r = l) = Phi((c_l - f) / s) - Phi((c_(l-1) - f) / s)``, s the predictive deviation of the latent.

        Raises
        ------
        InputError : the model takes ratings as numbers.
        """
        if not self._ordinal:
            raise InputError('Probabilities of ratings need likelihood="ordinal"; this model was fitted as gaussian.')
        return self._chances(*self._at(self.fold_in(profiles), self._items, row, item))

    def _chances(self, mean: Floats, variance: Floats) -> Floats:
        below = ndtr((self.cuts - mean[:, None]) / np.sqrt(variance)[:, None])
        return np.diff(below, axis=1, prepend=0, append=1)

    def _observed(self, mean: NDArray[Any], variance: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Expectation and deviation of ratings, from those of their latents if they are ordinal."""
        deviation = np.sqrt(variance)
        if not self._ordinal:
            return mean, deviation
        low, high = float(self.levels[0]), float(self.levels[-1])
        first, second = np.full_like(mean, low), np.zeros_like(mean)  # E[r], E[(r - low)^2] built up level by level
        for lower, upper, cut in zip(self.levels[:-1], self.levels[1:], self.cuts, strict=True):
            above = ndtr((mean - mean.dtype.type(cut)) / deviation)
            first += mean.dtype.type(upper - lower) * above
            second += mean.dtype.type((upper - low) ** 2 - (lower - low) ** 2) * above
        return np.clip(first, low, high), np.sqrt(np.maximum(second - (first - mean.dtype.type(low)) ** 2, _LEAST))

    def _log_density(self, rating: NDArray[np.float32], mean: Floats, variance: Floats) -> Floats:
        if not self._ordinal:
            return np.asarray(-0.5 * (np.log(2 * np.pi * variance) + (rating - mean) ** 2 / variance))
        chances = self._chances(mean, variance)
        return np.log(np.maximum(chances[np.arange(len(rating)), self._position(rating)], 1e-12))

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
        for start in range(0, len(row), _PAIRS):
            part = slice(start, start + _PAIRS)
            u, m = users.mean[row[part]], items.mean[item[part]]
            mean[part] = np.einsum("nk,nk->n", u[:, :-1], m[:, :-1]) + u[:, -1] + m[:, -1]
            square[part] = np.einsum("np,np->n", one[row[part]], other[item[part]])
        noise = float(self.noise) * users.precision[row, 1] * items.precision[item, 1]
        return mean + float(self.mean), np.maximum(square - mean**2, 0) + noise


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


def _unpacked(packed: NDArray[np.floating[Any]], width: int) -> Floats:
    """(n, width, width) symmetric matrices from their packed lower triangles."""
    row, column = np.tril_indices(width)
    full = np.empty((len(packed), width, width))
    full[:, row, column] = full[:, column, row] = packed
    return full
