"""Bayesian factorization machines (myFM), the accuracy reference: how low the rating error can be brought.

``z ~ N(w0 + sum_j w_j x_j + sum_{j<l} <v_j, v_l> x_j x_l, noise)`` over the features x of a rating, sampled by Gibbs.
The rating is z, or (*ordinal*) the step of the scale between whose cut points z falls. A reference and not a
recommender of the study: the samples belong to the users they were drawn for, so nothing is folded in or served.
"""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack, identity
from scipy.special import ndtr
from sklearn.preprocessing import OneHotEncoder, normalize

from recsys_utils.base import Floats, InputError, child_seed
from recsys_utils.data.interactions import DAY, Interactions
from recsys_utils.evaluation.metrics import pattern
from recsys_utils.models import grid_kernels

INSTALL = 'pip install "myfm==0.4.0" "setuptools>=77,<81"'
FEATURES = ("time", "implicit", "moment")
STRETCHES = 10  # into which each user's history is cut
NEAR = 30.0  # seconds in which the weight of a user's other ratings falls by e; 10 to 60 do as well
DAMPING = 3.0  # ratings of no deviation that are added to those of a moment


def myfm() -> Any:
    """The library, which only the accuracy table needs.

    Raises
    ------
    InputError : it is not installed, or can't be imported (it needs a setuptools that still has pkg_resources).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources announces its end
            import myfm as library
    except ImportError as error:
        raise InputError(f"Bayesian factorization machines need the library myfm ({error}): {INSTALL}") from None
    return library


@dataclass(frozen=True)
class BayesianFM:
    """Rating predictions of a factorization machine with a posterior: users' and items' ids, and optional features.

    - *time*: the calendar day of the rating, one of those in the training part, and in which tenth of the user's
      history it lies (:func:`stretch`): when others were rated, not how
    - *implicit*: the items that the user rated, and the users who rated the item, in the training part, each set
      divided by the root of its size (Koren's SVD++ and its mirror image)
    - *moment*: how far the user's other training ratings lie from ``mu + b_u + b_m``, mostly those given within a
      minute (:func:`moment`)

    Every group of features has normal priors of its own with learned means and variances. Ratings are standardised, so
    that the priors fit any scale. Papers: Rendle, "Factorization machines with libFM", ACM TIST 3 (2012); Rendle,
    Zhang, Koren, "On the difficulty of evaluating baselines", arXiv 1905.01395 (2019); of ordinal ratings: Albert,
    Chib, "Bayesian analysis of binary and polychotomous response data", JASA 88 (1993).

    Parameters
    ----------
    features : of :data:`FEATURES`
    ordinal : a rating is a step of the scale, not a number; cut points between those of the training part are learned
    rank : length of v
    sweeps : Gibbs sweeps of a chain; the samples after the first ``burn_in`` are averaged
    chains : independent ones, all of whose samples are averaged: one keeps near the mode it has found
    seed : of the chains
    """

    name: ClassVar[str] = "bayesian_fm"
    features: tuple[str, ...] = ()
    ordinal: bool = False
    rank: int = 10
    sweeps: int = 130
    burn_in: int = 30
    chains: int = 3
    seed: int = 0

    def predict(self, train: Interactions, targets: Interactions) -> tuple[Floats, Floats]:
        """Predictive mean (not clipped) and standard deviation at the pairs of ``targets``, (N,) rating points each.

        Of ``targets`` users, items and times are read, never ratings. Cost on ML-100K: .03 to .06 s a sweep, .07 if
        ordinal.

        Raises
        ------
        InputError : myfm is missing.
        """
        library, parts = myfm(), (train, targets)
        (x, x_targets), sizes = _columns(train, targets, self.features)
        sides = _sides(train, "implicit" in self.features)
        for n, side in zip(train.shape, sides, strict=True):
            sizes += [n, side.shape[1] - n] if side.shape[1] > n else [n]
        blocks, blocks_targets = (
            [library.RelationBlock(place, side) for place, side in zip((d.user, d.item), sides, strict=True)]
            for d in parts
        )
        levels, step = np.unique(train.rating.astype(np.float64), return_inverse=True)
        mean, unit = float(train.rating.mean(dtype=np.float64)), float(train.rating.std(dtype=np.float64)) or 1.0
        moments = np.zeros((2, len(targets)))  # of the rating: sums over samples of its mean and mean square

        def collect(sweep: int, sample: Any, learned: Any, _: Any) -> tuple[bool, None]:
            if sweep >= self.burn_in:
                score = sample.predict_score(x_targets, blocks_targets)
                if self.ordinal:
                    moments[:] += step_moments(score, np.asarray(sample.cutpoints[0]), levels)
                else:
                    score = mean + unit * score
                    moments[:] += score, score**2 + unit**2 / learned.alpha
            return False, None

        kind = library.MyFMOrderedProbit if self.ordinal else library.MyFMRegressor
        target = step if self.ordinal else (train.rating - mean) / unit
        for number in range(self.chains):
            chain = kind(rank=self.rank, random_seed=child_seed(self.seed, "chain", number) % 2**31)
            with redirect_stderr(io.StringIO()):  # its progress bar
                chain.fit(
                    x, target, X_rel=blocks, n_iter=self.sweeps, n_kept_samples=1, group_shapes=sizes, callback=collect
                )
        first, second = moments / (self.chains * (self.sweeps - self.burn_in))
        return first, np.sqrt(second - first**2)


def step_moments(score: Floats, cuts: Floats, levels: Floats) -> tuple[Floats, Floats]:
    """Mean and mean square, (N,) each, of ratings that are step k if ``cuts[k - 1] < z < cuts[k]``, z ~ N(score, 1).

    >>> [m.round(3).tolist() for m in step_moments(np.array([0.0, 9.0]), np.array([-1.0, 1.0]), np.array([1.0, 2, 5]))]
    [[2.317, 5.0], [6.856, 25.0]]
    """
    above = ndtr(score[:, None] - cuts)  # chance of a step above k
    return levels[0] + above @ np.diff(levels), levels[0] ** 2 + above @ np.diff(levels**2)


def _sides(train: Interactions, implicit: bool) -> list[csr_matrix]:
    """What is known of each user and of each item: the id; if ``implicit``, also its row of ``train``."""
    ids = [identity(n, format="csr") for n in train.shape]
    rated = pattern(train.user_item)
    joined = [normalize(rated), normalize(rated.T.tocsr())]  # rows of length 1: n equal entries of 1 / root(n)
    return [hstack(both, format="csr") for both in zip(ids, joined, strict=True)] if implicit else ids


def _columns(
    train: Interactions, targets: Interactions, features: tuple[str, ...]
) -> tuple[list[csr_matrix], list[int]]:  # fmt: skip
    """Features of the ratings of the training part and of the targets, and the sizes of their groups."""
    columns = [[csr_matrix((len(d), 0)) for d in (train, targets)]]
    if "time" in features:
        for kind in ([d.timestamp // DAY for d in (train, targets)], stretch(train, targets)):
            encoder = OneHotEncoder(handle_unknown="ignore").fit(kind[0][:, None])
            columns.append([encoder.transform(values[:, None]) for values in kind])
    if "moment" in features:
        near = moment(train, targets)
        columns.append([csr_matrix(values[:, None] / (near[0].std() or 1.0)) for values in near])
    return [hstack(part, format="csr") for part in zip(*columns, strict=True)], [c[0].shape[1] for c in columns[1:]]


def stretch(train: Interactions, targets: Interactions) -> list[NDArray[np.int64]]:
    """In which of :data:`STRETCHES` parts of the user's history each rating of both parts lies, from 0.

    By the share of the user's training ratings that were given earlier, those of the same second not counted. What
    comes after all of them lies in the last part, what a user without any gives in the first.
    """
    first, span = train.timestamp.min(), np.int64(np.ptp(train.timestamp) + 3)
    at = [
        d.user * span + (d.timestamp - first + 1).clip(0, span - 1) for d in (train, targets)
    ]  # user by user, in time
    known, parts = np.sort(at[0]), []
    for user, place in zip((train.user, targets.user), at, strict=True):
        start, end = (np.searchsorted(known, (user + n) * span) for n in (0, 1))
        earlier = np.searchsorted(known, place) - start
        parts.append(np.minimum(STRETCHES * earlier // np.maximum(end - start, 1), STRETCHES - 1))
    return parts


def moment(train: Interactions, targets: Interactions) -> tuple[Floats, Floats]:
    """The mood of the moment at each rating of ``train`` and of ``targets``, from the user's *other* training ratings.

    ``sum_j f_j (r_j - mu - b_u - b_j) / (sum_j f_j + DAMPING)``, ``f_j = exp(-|t - t_j| / NEAR)``, biases fitted on the
    training part; 0 where nothing is near. Random folds tell much by it, since people rate in sittings and a site shows
    lists of like items; of ratings to come it tells nothing.
    """
    user_bias, item_bias = grid_kernels.baselines(train)
    off = train.rating - train.rating.mean(dtype=np.float64) - user_bias[train.user] - item_bias[train.item]
    user, time = np.r_[train.user, targets.user], np.r_[train.timestamp, targets.timestamp]
    known = np.zeros((2, len(user)))  # deviations and their number: nothing is known of what is targets
    known[:, : len(train)] = off, np.ones(len(train))
    order = np.lexsort((time, user))
    user, time, known = user[order], time[order], known[:, order]
    sums = np.zeros_like(known)
    for lag in range(1, len(user)):
        apart = time[lag:] - time[:-lag]
        near = (user[lag:] == user[:-lag]) & (apart < 10 * NEAR)
        if not near.any():
            break
        fade = np.where(near, np.exp(-np.abs(apart) / NEAR), 0.0)
        sums[:, lag:] += fade * known[:, :-lag]
        sums[:, :-lag] += fade * known[:, lag:]
    found = np.empty(len(user))
    found[order] = sums[0] / (sums[1] + DAMPING)
    return found[: len(train)], found[len(train) :]
