"""Who is tested on what: the splits, and the loops that evaluate models under each protocol.

Columns of ``splits`` (one row a rating, aligned with the interactions):

- ``rating_fold`` int8: fold of the rating-cv5 protocol
- ``last20`` bool: test part of rating-last20 and ranking-last20
- ``stratified_<s>`` bool: test part of ranking-stratified, seed s
- ``position_time``, ``position_random_<s>`` int32: place of the rating in the user's order; profile-size profiles are
  prefixes of it, the target is its tail (:func:`target_size`)

Columns of ``users``: user_id, ``fold`` int8 (profile-size test fold), ``part`` int8 (0-4; the users of other folds with
``part == fold`` are the validation users of that fold). Columns of ``item_folds``: item_id, ``fold`` int8 (cold-item).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import ITEM, USER, child_seed

VALIDATION_PARTS = 5


def seeded_hash(ids: NDArray[np.object_], seed: int) -> NDArray[np.uint64]:
    """A pseudo-random number per id that depends on the id and the seed alone, not on its place in a table."""
    values: NDArray[np.uint64] = pd.util.hash_array(np.asarray(ids, dtype=object), hash_key=f"{seed:016d}"[-16:])
    return values


def target_size(n: NDArray[np.int_]) -> NDArray[np.int_]:
    """Ratings reserved as the fixed target of a user with n ratings: half of them, at least 10.

    >>> target_size(np.array([20, 21, 101])).tolist()
    [10, 10, 50]
    """
    return np.maximum(10, n // 2)


def _rank_within(user: NDArray[np.int32], *keys: NDArray[np.generic]) -> NDArray[np.int32]:
    """Rank of each row among its user's rows, ordered by keys[0], ties by keys[1] and so on."""
    order = np.lexsort([*reversed(keys), user])
    counts = np.bincount(user)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(user), np.int32)
    rank[order] = np.arange(len(user)) - starts[user[order]]
    return rank


def _balanced_folds(hashes: NDArray[np.uint64], folds: int) -> NDArray[np.int8]:
    fold = np.empty(len(hashes), np.int8)
    fold[np.argsort(hashes, kind="stable")] = np.arange(len(hashes)) % folds
    return fold


def make_splits(
    data: Interactions, *, seed: int, rating_folds: int = 5, user_folds: int = 5, item_folds: int = 5,
    random_orders: int = 5, stratified_seeds: int = 5,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """The splits of all protocols, made once per run: tables ``splits``, ``users``, ``item_folds`` (module docstring).

    Every choice is a seeded hash of ids, so the order of the input rows does not matter.
    """

    def pair_hash(name: str, number: int = 0) -> NDArray[np.uint64]:
        by_user = seeded_hash(data.users, child_seed(seed, name, number, "user"))[data.user]
        by_item = seeded_hash(data.items, child_seed(seed, name, number, "item"))[data.item]
        mixed = (by_user ^ (by_item + np.uint64(0x9E3779B97F4A7C15) + (by_user << np.uint64(6)))) * np.uint64(
            0xBF58476D1CE4E5B9
        )
        return mixed ^ (mixed >> np.uint64(31))

    counts = np.bincount(data.user, minlength=len(data.users))
    n = counts[data.user]
    splits = pd.DataFrame({"rating_fold": _balanced_folds(pair_hash("rating_fold"), rating_folds)})
    time = _rank_within(data.user, data.timestamp, pair_hash("time_ties"))
    last = np.maximum(5, n // 5)
    splits["last20"] = (time >= n - last) & (n - last >= 5)
    for s in range(stratified_seeds):
        place = _rank_within(data.user, pair_hash("stratified", s))
        splits[f"stratified_{s}"] = place >= np.round(0.75 * n)
    splits["position_time"] = time
    for s in range(random_orders):
        splits[f"position_random_{s}"] = _rank_within(data.user, pair_hash("random_order", s))
    users = pd.DataFrame(
        {
            USER: data.users,
            "fold": _balanced_folds(seeded_hash(data.users, child_seed(seed, "user_fold")), user_folds),
            "part": _balanced_folds(seeded_hash(data.users, child_seed(seed, "user_part")), VALIDATION_PARTS),
        }
    )
    item_hash = seeded_hash(data.items, child_seed(seed, "item_fold"))
    folds = pd.DataFrame({ITEM: data.items, "fold": _balanced_folds(item_hash, item_folds)})
    return splits, users, folds
