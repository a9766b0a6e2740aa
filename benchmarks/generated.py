"""Ratings of MovieLens' shape, in any size, for the benchmarks that need no real ones."""

from __future__ import annotations

import numpy as np
from numba import njit

from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions

ML_25M = (162_541, 59_047, 25_000_095)  # users, films, ratings as published
SCALE = Scale(0.5, 5)


@njit(cache=True)
def _draw(counts, share, user_bias, item_bias, tastes, traits, rng):
    """Films without repetition per user, odds by ``share``; codes 0-9 of half stars from a planted low-rank truth."""
    total = counts.sum()
    item, code = np.empty(total, np.int32), np.empty(total, np.uint8)
    edges, stamp, e = np.cumsum(share), np.full(len(share), -1), 0
    for u in range(len(counts)):
        drawn = 0
        while drawn < counts[u]:
            i = min(np.searchsorted(edges, rng.random() * edges[-1]), len(share) - 1)
            if stamp[i] == u:
                continue
            stamp[i] = u
            truth = 3.5 + user_bias[u] + item_bias[i] + np.dot(tastes[u], traits[i]) + 0.7 * rng.standard_normal()
            item[e], code[e] = i, min(max(round(2 * truth), 1), 10) - 1
            e, drawn = e + 1, drawn + 1
    return item, code


def generate(users: int, items: int, ratings: int, seed: int = 25) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """user, item, rating of MovieLens' shape: long-tailed popularity and activity, at least 20 ratings a user."""
    rng = np.random.default_rng(seed)
    extra = rng.lognormal(sigma=1.35, size=users)
    counts = 20 + np.minimum(extra * (ratings - 20 * users) / extra.sum(), items // 4).astype(np.int64)
    short = ratings - counts.sum()
    counts += short // users
    counts[: short % users] += 1
    if counts.max() > items // 2:
        raise ValueError(f"a user would rate {counts.max()} of {items} films; give more films or fewer ratings")
    share = rng.permutation((np.arange(items) + 60.0) ** -1.35)
    tastes, traits = (rng.standard_normal((n, 4)) * 0.35 for n in (users, items))
    bias = 0.4 * rng.standard_normal(users), 0.5 * rng.standard_normal(items)
    item, code = _draw(counts, share, *bias, tastes, traits, rng)
    return np.repeat(np.arange(users, dtype=np.int32), counts), item, (code + 1) / np.float32(2)


def movielens_like(users: int, items: int, ratings: int) -> Interactions:
    """:func:`generate` as the study's matrix, without time stamps."""
    user, item, rating = generate(users, items, ratings)
    names = [np.array([f"{kind}{n}" for n in range(size)], dtype=object) for kind, size in (("u", users), ("i", items))]
    return Interactions(*names, user, item, rating, np.zeros(len(user), np.int64), SCALE)
