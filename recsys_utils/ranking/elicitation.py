"""Preference elicitation: which items to ask a new user about.

A *question* shows one item; the user rates it, or does not know it, which costs the question and tells nothing. A
strategy is an order of questions: the same for everybody, or adapted to the answers so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans

from recsys_utils.base import child_rng, child_seed
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.evaluation.metrics import pattern

Floats = NDArray[np.float64]
Questions = NDArray[np.int32]

LEVELS = 10  # a finer rating scale is cut into this many bins before entropies are taken
GROUPS = 8  # clusters of items for the strategy `groups`
_CANDIDATES = 250  # best-known items that adaptive questions choose among
_FLOOR = 1e-4  # of a probability: linear updates may leave [0, 1]


def question_orders(train: Interactions, length: int, seed: int, factors: Floats | None = None) -> dict[str, Questions]:
    """The first ``length`` questions of every strategy that gives everybody the same questions, by name.

    With n_i the users who rated item i, U all users, p_v the share of value v among the ratings of i:

    - ``random``; ``popularity``: n_i
    - ``entropy0``: entropy of (not rated, v1, v2, ...) with weight .5 for "not rated" and 1 for the others
    - ``helf``: harmonic mean of log n_i / log U and H_i / log L; H_i is the entropy of p, L the number of values
    - ``popularity x entropy``: log n_i * H_i
    - ``groups`` (with ``factors`` (I, K)): the most popular item of each of 8 clusters of items in turn

    Ties go to the lower item index. Papers: Rashid, Karypis & Riedl, "Learning preferences of new users in recommender
    systems: an information theoretic approach", SIGKDD Explorations 10(2), 2008; Chang, Harper & Terveen, "Using groups
    of items for preference elicitation", CSCW 2015 (there users choose among groups; here groups spread the questions).

    >>> from recsys_utils.base import Scale
    >>> frame = pd.DataFrame([("a", "x", 1), ("b", "x", 5), ("a", "y", 3), ("b", "y", 3), ("c", "y", 3), ("c", "z", 1)],
    ...                      columns=["user_id", "item_id", "rating"])
    >>> orders = question_orders(Interactions.from_frame(frame, scale=Scale(1, 5)), 3, seed=0)
    >>> orders["popularity"].tolist(), orders["helf"].tolist()  # everybody agrees about y: nothing to learn from it
    ([1, 0, 2], [0, 1, 2])
    """
    n_users, n_items = train.shape
    n = item_counts(train.user_item).astype(np.float64)
    values = _value_counts(train)
    entropy = _entropy(values / np.maximum(n, 1)[:, None])
    with_missing = np.column_stack([n_users - n, values]) / n_users
    popular, spread = np.log(np.maximum(n, 1)) / np.log(max(n_users, 2)), entropy / np.log(max(values.shape[1], 2))
    worth = {
        "random": child_rng(seed, "random questions").random(n_items),
        "popularity": n,
        "entropy0": _entropy(with_missing, first=0.5),
        "helf": 2 * popular * spread / np.maximum(popular + spread, 1e-12),
        "popularity x entropy": np.log(np.maximum(n, 1)) * entropy,
    }
    orders = {name: _best_first(value)[:length] for name, value in worth.items()}
    if factors is not None:
        groups = KMeans(min(GROUPS, n_items), n_init=4, random_state=child_seed(seed, "groups")).fit_predict(factors)
        by_popularity = _best_first(n)
        turn = np.empty(n_items, np.int64)  # how many items of the same cluster are more popular
        turn[by_popularity] = pd.Series(by_popularity).groupby(groups[by_popularity]).cumcount()
        orders["groups"] = np.lexsort([np.arange(n_items), -n, turn]).astype(np.int32)[:length]
    return orders


def _value_counts(train: Interactions) -> Floats:
    """(I, L) how many users gave each item each value of the scale."""
    values, level = np.unique(train.rating, return_inverse=True)
    if len(values) > LEVELS:
        level = np.minimum((train.rating - train.scale.lo) / (train.scale.hi - train.scale.lo) * LEVELS, LEVELS - 1)
    shape = train.shape[1], min(len(values), LEVELS)
    return np.asarray(csr_matrix((np.ones(len(train)), (train.item, level.astype(np.int64))), shape=shape).todense())


def _entropy(share: Floats, first: float = 1.0) -> Floats:
    """-sum_v w_v p_v log p_v of each row, w = ``first`` for the first column and 1 for the others."""
    terms = share * np.log(share, where=share > 0, out=np.zeros_like(share))
    terms[:, 0] *= first
    return np.asarray(-terms.sum(axis=1))


def _best_first(worth: Floats) -> Questions:
    return np.lexsort([np.arange(len(worth)), -worth]).astype(np.int32)


@dataclass(frozen=True)
class Adaptive:
    """Questions that follow the answers so far: the chance that an item is known, times what its rating would tell.

    The item factors of a latent factor model are taken as known: user factors x ~ N(0, diag(prior)), and a rating of
    item m is d_m . x plus noise. With S the covariance of x after the answers so far, a rating of m lowers the variance
    of all predictions, weighted by w (shares of the ratings), by ``sum_j w_j (d_j' S d_m)^2 / (d_m' S d_m + noise)``.

    Whether m is known is guessed from which items were known before: with p and C mean and covariance of "has rated"
    over users, knowing whether m was (y_m) moves p to ``p + C_m (y_m - p_m) / C_mm`` and C to ``C - C_m C_m' / C_mm``.
    Neither depends on what the ratings were. Paper: Rubens, Elahi, Sugiyama & Kaplan, "Active learning in recommender
    systems", Recommender Systems Handbook, 2015.

    Parameters
    ----------
    items : (C,) int32, the items to choose among, best known first
    design : (C, K + 1), d_m: factors, and 1 for the user's bias
    know, together : (C,), (C, C), mean and covariance of whether a user can answer
    target : (K + 1, K + 1), sum_j w_j d_j d_j' over all items
    prior : (K + 1,) variances of user factors and bias; ``noise`` : variance of a rating
    """

    items: Questions
    design: Floats
    know: Floats
    together: Floats
    target: Floats
    prior: Floats
    noise: float

    @classmethod
    def of(cls, train: Interactions, factors: Floats, prior: Floats, noise: float, answerable: float = 1.0) -> Self:
        """From a latent factor model: ``factors`` (I, K), ``prior`` (K + 1,) with the bias last.

        ``answerable`` is the share of a user's ratings that questions can reach: less than 1 in a simulation that hides
        ratings at random, which also lowers how often two items are known together.
        """
        n = item_counts(train.user_item).astype(np.float64)
        design = np.column_stack([factors, np.ones(len(n))])
        items = _best_first(n)[:_CANDIDATES]
        target = design.T @ (design * (n / n.sum())[:, None])
        rated = pattern(train.user_item)[:, items].toarray().astype(np.float64)
        know = answerable * rated.mean(axis=0)
        together = answerable**2 * np.cov(rated.T, bias=True)
        np.fill_diagonal(together, know * (1 - know) + 1e-3)
        return cls(items, design[items], know, together, target, prior, float(noise))

    def ask(self, known: csr_matrix, length: int, *, learn: bool = True) -> Questions:
        """(B, length) questions for users who know the stored items of ``known`` (B, I); -1 beyond the last.

        Without ``learn`` the most probably known item comes next, whatever its rating would tell.
        """
        position = np.full(known.shape[1], -1, np.int64)
        position[self.items] = np.arange(len(self.items))
        asked = np.full((known.shape[0], min(length, len(self.items))), -1, np.int32)
        _ask(
            known.indptr, known.indices, position, self.design, self.know, self.together, self.target, self.prior,
            self.noise, learn, asked,
        )  # fmt: skip
        return np.where(asked >= 0, self.items[asked], -1).astype(np.int32)


@njit(cache=True)
def _ask(indptr, indices, position, design, know, together, target, prior, noise, learn, asked):  # type: ignore[no-untyped-def]
    count, width = design.shape
    reduction = np.ones(count)
    for user in range(asked.shape[0]):
        can = np.zeros(count, np.bool_)
        for at in indices[indptr[user] : indptr[user + 1]]:
            if position[at] >= 0:
                can[position[at]] = True
        spread, chance, joint = np.diag(prior), know.copy(), together.copy()
        open_ = np.ones(count, np.bool_)
        stale = learn
        for q in range(asked.shape[1]):
            if stale:  # only an answer changes what is known of the user's factors
                gain = spread @ target @ spread
                for m in range(count):
                    own, all_ = noise, 0.0
                    for i in range(width):
                        for j in range(width):
                            product = design[m, i] * design[m, j]
                            own += product * spread[i, j]
                            all_ += product * gain[i, j]
                    reduction[m] = all_ / own
                stale = False
            best, worth = -1, 0.0
            for m in range(count):
                if open_[m] and (best < 0 or max(chance[m], _FLOOR) * reduction[m] > worth):
                    best, worth = m, max(chance[m], _FLOOR) * reduction[m]
            open_[best] = False
            asked[user, q] = best
            column = joint[best].copy()
            chance += column * ((1.0 if can[best] else 0.0) - chance[best]) / column[best]
            for i in range(count):
                joint[i] -= column * (column[i] / column[best])
            joint[best, best] = 1.0  # never chosen again; keeps the division defined
            if can[best]:
                moved = spread @ design[best]
                spread -= np.outer(moved, moved) / (noise + design[best] @ moved)
                stale = learn
