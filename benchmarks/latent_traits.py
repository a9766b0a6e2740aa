"""Variational MF: a sweep over generated ratings next to an epoch of Surprise's SVD with as many factors.

Another model and another algorithm, so only time is compared; the noise that is found is shown next to the planted.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise

import numpy as np
import surprise

from benchmarks.measure import Contender, Row, compare
from recsys_utils.base import Scale, child_rng
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.surprise_models import surprise_trainset
from recsys_utils.models.variational_mf import VariationalMF

NOISE = 0.8  # planted standard deviation
FULL = (162_541, 59_047, 25_000_095)  # users, items, ratings of MovieLens 25M
FACTORS, SWEEPS = 20, 3
LARGEST_FOR_SURPRISE = 2_000_000  # its lists of Python objects take a hundred bytes a rating, twice


def pairs(users: int, items: int, ratings: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs, (ratings,) int32 each, sorted, long-tailed on both sides.

    They are drawn for some users at a time: drawing all at once took more memory than the fit that is measured.
    """
    user, item = (np.empty(ratings, np.int32) for _ in range(2))
    blocks = max(1, ratings >> 18)
    edges = np.unique((users * (np.arange(blocks + 1) / blocks) ** 1.5).astype(int))
    ends = np.rint(ratings * (edges / users) ** (1 / 1.5)).astype(int)
    for (low, start), (high, end) in pairwise(zip(edges, ends, strict=True)):
        found = np.empty(0, np.int64)
        while len(found) < end - start:  # a pair drawn twice counts once
            more = int(1.3 * (end - start - len(found))) + 1000
            row = users * rng.uniform((low / users) ** (1 / 1.5), (high / users) ** (1 / 1.5), more) ** 1.5
            column = (items * rng.random(more) ** 3.0).astype(np.int64)
            drawn = np.clip(row, low, high - 1).astype(np.int64) * items + column
            found = np.unique(np.concatenate([found, drawn]))
        user[start:end], item[start:end] = np.divmod(np.sort(rng.permutation(found)[: end - start]), items)
    return user, item


def planted(ratings: int, seed: int = 0, traits: int = 8) -> Interactions:
    """Ratings with MovieLens 25M's proportions, long-tailed on both sides, from traits and biases plus noise."""
    rng = child_rng(seed, "bench", ratings)
    users, items = (max(50, int(n * (ratings / FULL[2]) ** 0.5)) for n in FULL[:2])
    if ratings >= FULL[2]:
        users, items = FULL[:2]
    user, item = pairs(users, items, ratings, rng)
    theta, beta = (rng.standard_normal((n, traits), np.float32) * np.float32(0.45) for n in (users, items))
    own, other = (np.float32(s) * rng.standard_normal(n, np.float32) for s, n in ((0.35, users), (0.45, items)))
    rating = np.empty(ratings, np.float32)
    for start in range(0, ratings, 1 << 18):
        part = slice(start, start + (1 << 18))
        u, m = user[part], item[part]
        rating[part] = 3.5 + own[u] + other[m] + np.einsum("nk,nk->n", theta[u], beta[m])
        rating[part] += np.float32(NOISE) * rng.standard_normal(len(u), np.float32)
    names = [np.arange(n).astype(object) for n in (users, items)]
    stamps = np.broadcast_to(np.int64(0), ratings)  # no memory for times that nobody asks for
    return Interactions(*names, user, item, rating, stamps, Scale(-10, 17))


def by_traits(ratings: int) -> Generator[None, None, float]:
    VariationalMF(n_factors=2, sweeps=1, held_out=0).fit(planted(2000))  # loads the compiled kernels
    data = planted(ratings)
    data.user_item  # noqa: B018 - the matrix is the input, not the fit
    yield
    return float(np.sqrt(VariationalMF(n_factors=FACTORS, sweeps=SWEEPS, held_out=0).fit(data).noise))


def by_surprise(ratings: int) -> Generator[None, None, None]:
    train = surprise_trainset(planted(ratings))
    yield
    surprise.SVD(n_factors=FACTORS, n_epochs=SWEEPS, random_state=0).fit(train)


def found_noise(noise: float) -> Row:
    return {"compared": f"noise found {noise:.3f}, planted {NOISE}, after {SWEEPS} sweeps"}


def run(*, full: bool = False, ratings: Sequence[int] | None = None) -> list[Row]:
    """Rows from 100,000 to 1.6 million ratings, with ``full`` from 1/16 of MovieLens 25M to the whole."""
    if ratings is None:
        largest = FULL[2] if full else 1_600_000
        ratings = [largest // 2**step for step in range(4, -1, -1)]
    rows = []
    for size in ratings:
        peer = Contender(
            f"Surprise SVD, an epoch of {FACTORS} factors", by_surprise, (size,), calls=SWEEPS,
            note="another model: time alone is compared",
        )  # fmt: skip
        rows += compare(
            {"benchmark": "latent_traits", "task": f"a sweep, {FACTORS} factors", "size": size, "unit": "ratings"},
            [
                Contender("VariationalMF.fit", by_traits, (size,), calls=SWEEPS, extra=found_noise),
                *([peer] if size <= LARGEST_FOR_SURPRISE else []),
            ],
        )
    return rows
