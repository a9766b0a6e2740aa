"""V1 against peers: how long a query takes, what opening and preparing cost, and how that grows with the ratings."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit
from scipy.sparse import csr_matrix

from recsys_utils.interfaces import Scale
from recsys_utils.neighbours import Neighbours

ML_25M = (162_541, 59_047, 25_000_095)  # users, films, ratings as published
SCALE = Scale(0.5, 5)
PROFILE = 35


@njit(cache=True)
def _draw(counts, share, user_bias, item_bias, tastes, traits, seed):
    """Films without repetition per user, odds by ``share``; codes 0-9 of half stars from a planted low-rank truth."""
    np.random.seed(seed)
    total = counts.sum()
    item, code = np.empty(total, np.int32), np.empty(total, np.uint8)
    edges, stamp, e = np.cumsum(share), np.full(len(share), -1), 0
    for u in range(len(counts)):
        drawn = 0
        while drawn < counts[u]:
            i = min(np.searchsorted(edges, np.random.random() * edges[-1]), len(share) - 1)
            if stamp[i] == u:
                continue
            stamp[i] = u
            truth = 3.5 + user_bias[u] + item_bias[i] + np.dot(tastes[u], traits[i]) + 0.7 * np.random.randn()
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
    share = rng.permutation((np.arange(items) + 60.0) ** -1.35)
    planted = [rng.standard_normal((n, 4)) * 0.35 for n in (users, items)]
    item, code = _draw(
        counts, share, 0.4 * rng.standard_normal(users), 0.5 * rng.standard_normal(items), *planted, seed
    )  # fmt: skip
    return np.repeat(np.arange(users, dtype=np.int32), counts), item, (code + 1) / np.float32(2)


def write(folder: Path, users: int, items: int, ratings: int) -> None:
    """ratings.parquet as ingest writes it, and profiles.npz: people outside it with 35 ratings each."""
    user, item, rating = generate(users + 200, items, ratings + 200 * ratings // users)
    known = user < users
    ids = [pa.array([f"{kind}{n}" for n in range(size)]) for kind, size in (("u", users), ("i", items))]
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(place[known]), names).cast(pa.string())
        for place, names in zip((user, item), ids, strict=True)
    ]
    table = pa.table([*columns, pa.array(rating[known])], names=["user_id", "item_id", "rating"])
    pq.write_table(table, folder / "ratings.parquet", row_group_size=2**20, compression="zstd")
    new = np.flatnonzero(~known)
    starts = np.searchsorted(user[new], np.arange(users, users + 200))
    rows = [
        new[s : s + PROFILE] for s in starts if s + PROFILE <= len(new) and user[new[s]] == user[new[s + PROFILE - 1]]
    ]
    np.savez(folder / "profiles.npz", item=item[rows], rating=rating[rows])


def profiles(folder: Path, items: int) -> list[csr_matrix]:
    with np.load(folder / "profiles.npz") as saved:
        made = [
            csr_matrix((r, i, [0, len(i)]), shape=(1, items), dtype=np.float32)
            for i, r in zip(saved["item"], saved["rating"], strict=True)
        ]
    for profile in made:
        profile.sort_indices()
    return made


def memory_mb() -> tuple[float, float]:
    """Anonymous memory and mapped file pages of this process."""
    info = psutil.Process().memory_info()
    return (info.rss - info.shared) / 1e6, info.shared / 1e6


def quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {"p50_ms": p50, "p99_ms": p99, "worst_ms": max(seconds) * 1e3}


def timed(query: Any, asked: list[Any]) -> list[float]:
    took = []
    for one in asked:
        started = time.perf_counter()
        query(one)
        took.append(time.perf_counter() - started)
    return took
