"""Seconds a sweep and peak memory of the latent trait model on generated ratings of growing size.

python benchmarks/latent_traits.py [--ratings N] [--sweeps N] [--factors K]
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from typing import Any

import numpy as np

from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import Scale, child_rng
from recsys_utils.latent_traits import LatentTraits

NOISE = 0.8  # planted standard deviation
FULL = (162_541, 59_047, 25_000_095)  # users, items, ratings of MovieLens 25M


def planted(ratings: int, seed: int = 0, traits: int = 8) -> Interactions:
    """Ratings with MovieLens 25M's proportions, long-tailed on both sides, from traits and biases plus noise."""
    rng = child_rng(seed, "bench", ratings)
    users, items = (max(50, int(n * (ratings / FULL[2]) ** 0.5)) for n in FULL[:2])
    if ratings >= FULL[2]:
        users, items = FULL[:2]
    user = np.empty(0, np.int64)
    pairs = user
    while len(pairs) < ratings:  # a pair drawn twice counts once
        more = int(1.3 * (ratings - len(pairs))) + 1000
        row, column = (n * rng.random(more) ** p for n, p in ((users, 1.5), (items, 3.0)))
        pairs = np.unique(np.concatenate([pairs, row.astype(np.int64) * items + column.astype(np.int64)]))
    pairs = np.sort(rng.permutation(pairs)[:ratings])
    user, item = (part.astype(np.int32) for part in np.divmod(pairs, items))
    del pairs
    theta, beta = (rng.standard_normal((n, traits), np.float32) * np.float32(0.45) for n in (users, items))
    own, other = (np.float32(s) * rng.standard_normal(n, np.float32) for s, n in ((0.35, users), (0.45, items)))
    rating = np.empty(ratings, np.float32)
    for start in range(0, ratings, 1 << 20):
        part = slice(start, start + (1 << 20))
        u, m = user[part], item[part]
        rating[part] = 3.5 + own[u] + other[m] + np.einsum("nk,nk->n", theta[u], beta[m])
        rating[part] += np.float32(NOISE) * rng.standard_normal(len(u), np.float32)
    names = [np.arange(n).astype(object) for n in (users, items)]
    stamps = np.broadcast_to(np.int64(0), ratings)  # no memory for times that nobody asks for
    return Interactions(*names, user, item, rating, stamps, Scale(-10, 17))


def run(seconds: float = 60.0, n_factors: int = 20, start: int = 100_000, sweeps: int = 3) -> list[dict[str, Any]]:
    """A row a size, doubled until the next one would pass ``seconds``: seconds a sweep, peak MB, noise found."""
    LatentTraits(n_factors=2, sweeps=1, held_out=0).fit(planted(2000))  # compiles
    rows, begun, size = [], time.perf_counter(), start
    while True:
        rows.append(measure(planted(size), n_factors, sweeps))
        spent = time.perf_counter() - begun
        if spent * 3 > seconds or size >= FULL[2]:
            return rows
        size = min(2 * size, FULL[2])


def measure(data: Interactions, n_factors: int, sweeps: int) -> dict[str, Any]:
    model = LatentTraits(n_factors=n_factors, sweeps=sweeps, held_out=0)
    data.user_item  # noqa: B018 - the matrix is the input, not the fit
    begun = time.perf_counter()
    replace(model, sweeps=1).fit(data)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    model.fit(data)
    whole = time.perf_counter() - begun
    return {
        "ratings": len(data), "users": data.shape[0], "items": data.shape[1], "factors": n_factors, "sweeps": sweeps,
        "seconds_fit": round(whole, 2), "seconds_sweep": round((whole - first) / max(1, sweeps - 1), 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "noise_planted": NOISE, "noise_found": round(float(np.sqrt(model.noise)), 4),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratings", type=int, default=0, help="one size instead of growing ones")
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--factors", type=int, default=20)
    asked = parser.parse_args()
    found = (
        [measure(planted(asked.ratings), asked.factors, asked.sweeps)]
        if asked.ratings
        else run(n_factors=asked.factors, sweeps=asked.sweeps)
    )
    for row in found:
        print(row)
