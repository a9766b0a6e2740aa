"""V1 against its peers: what a query costs, what opening and preparing cost, and how that grows with the ratings.

    python -m benchmarks.neighbours [--largest SHARE]      from the project's folder

The ratings are generated in MovieLens 25M's shape and parts of it; each measurement has a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import surprise
from numba import njit
from scipy.sparse import csr_matrix

from recsys_utils.interfaces import Scale
from recsys_utils.neighbours import Neighbours

ML_25M = (162_541, 59_047, 25_000_095)  # users, films, ratings as published
SCALE = Scale(0.5, 5)
PROFILE = 35  # ratings of a person who asks
ASKED = 200  # people who ask


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
    share = rng.permutation((np.arange(items) + 60.0) ** -1.35)
    tastes, traits = (rng.standard_normal((n, 4)) * 0.35 for n in (users, items))
    bias = 0.4 * rng.standard_normal(users), 0.5 * rng.standard_normal(items)
    item, code = _draw(counts, share, *bias, tastes, traits, rng)
    return np.repeat(np.arange(users, dtype=np.int32), counts), item, (code + 1) / np.float32(2)


def write(folder: Path, shape: Sequence[int]) -> None:
    """ratings.parquet as ingest writes it, and profiles.npz: people outside it with 35 ratings each."""
    users, items, ratings = shape
    user, item, rating = generate(users + ASKED, items, ratings + ASKED * ratings // users)
    known = user < users
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(place[known]), pa.array(ids(kind, size))).cast(pa.string())
        for kind, place, size in (("u", user, users), ("i", item, items))
    ]
    table = pa.table([*columns, pa.array(rating[known])], names=["user_id", "item_id", "rating"])
    pq.write_table(table, folder / "ratings.parquet", row_group_size=2**20, compression="zstd")
    starts = np.searchsorted(user, np.arange(users, users + ASKED))
    rows = [np.arange(s, s + PROFILE) for s in starts if s + PROFILE <= len(user) and user[s] == user[s + PROFILE - 1]]
    np.savez(folder / "profiles.npz", item=item[rows], rating=rating[rows])


def ids(kind: str, n: int) -> list[str]:
    return [f"{kind}{place}" for place in range(n)]


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


@contextmanager
def watched(found: dict[str, float], name: str) -> Iterator[None]:
    """Seconds, CPU seconds and the largest anonymous memory (every 10 ms) of what happens inside."""
    peak, done = [memory_mb()[0]], threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            peak.append(memory_mb()[0])

    thread = threading.Thread(target=look)
    thread.start()
    started, cpu = time.perf_counter(), time.process_time()
    yield
    found |= {f"{name}_s": time.perf_counter() - started, f"{name}_cpu_s": time.process_time() - cpu}
    done.set()
    thread.join()
    found[f"{name}_anonymous_mb"] = max(peak)


def ask(query: Callable[[Any], Any], asked: Sequence[Any]) -> dict[str, float]:
    """Milliseconds a query, after one that is not counted."""
    query(asked[0])
    took = []
    for one in asked:
        started = time.perf_counter()
        query(one)
        took.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.quantile(took, [0.5, 0.99])
    anonymous, mapped = memory_mb()
    return {"p50_ms": p50, "p99_ms": p99, "worst_ms": max(took), "anonymous_mb": anonymous, "mapped_mb": mapped}


# ---- the measurements, each in a process of its own


def prepare_neighbours(folder: Path, shape: Sequence[int]) -> dict[str, float]:
    found: dict[str, float] = {}
    few = pd.DataFrame({"user_id": ["u0"], "item_id": ["i0"], "rating": [3.0]})
    few.to_parquet(folder / "few.parquet")
    Neighbours().prepare(folder / "few.parquet", ["u0"], ["i0"], SCALE, folder / "few")  # loads the compiled kernels
    with watched(found, "prepare"):
        names = ids("u", shape[0]), ids("i", shape[1])
        Neighbours().prepare(folder / "ratings.parquet", *names, SCALE, folder / "store")
    return found


def ask_neighbours(folder: Path, shape: Sequence[int]) -> dict[str, float]:
    asked, found = profiles(folder, shape[1]), {}
    found["empty_process_mb"] = memory_mb()[0]
    started = time.perf_counter()
    model = Neighbours.open(folder / "store")
    found["open_ms"] = 1e3 * (time.perf_counter() - started)
    return found | ask(model.predict, asked)


def brute_force(folder: Path, shape: Sequence[int]) -> dict[str, float]:
    """The same query by scipy's sparse products, and how far apart the answers are."""
    found: dict[str, float] = {}
    with watched(found, "prepare"):
        frame = pd.read_parquet(folder / "ratings.parquet")
        place = [pd.Index(ids(*pair)).get_indexer(frame[c]) for c, pair in
                 (("user_id", ("u", shape[0])), ("item_id", ("i", shape[1])))]  # fmt: skip
        by_user = csr_matrix((frame["rating"], place), shape=shape[:2], dtype=np.float64)
        del frame, place
        by_item = by_user.tocsc()
        means = by_user.sum(axis=1).A1 / np.maximum(np.diff(by_user.indptr), 1)

    def query(profile: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        part, x = by_item[:, profile.indices], profile.data.astype(np.float64)
        rated = part.copy()
        rated.data = np.ones_like(rated.data)
        squared = part.copy()
        squared.data **= 2
        n, sx, sxx, sy, sxy = rated @ np.ones(len(x)), rated @ x, rated @ x**2, part @ np.ones(len(x)), part @ x
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * (squared @ np.ones(len(x))) - sy**2))
        r = np.where((n >= 5) & np.isfinite(r), np.round(r, 9), 0)
        best = np.lexsort((np.arange(len(r)), -n, -r))[:50]
        best = best[r[best] > 0]
        votes = by_user[best]
        who = np.repeat(np.arange(len(best)), np.diff(votes.indptr))
        sums = [
            np.bincount(votes.indices, weights=w, minlength=shape[1])
            for w in (r[best][who] * (votes.data - means[best][who]), r[best][who])
        ]
        counts = np.bincount(votes.indices, minlength=shape[1])
        with np.errstate(invalid="ignore"):
            return best, np.where(counts >= 3, x.mean() + sums[0] / sums[1], np.nan)

    asked, model = profiles(folder, shape[1]), Neighbours.open(folder / "store")
    found |= ask(query, asked[:20])
    for profile in asked[:5]:
        best, predicted = query(profile)
        found["same_neighbours"] = found.get("same_neighbours", 0) + np.array_equal(best, model.nearest(profile).user)
        apart = np.nanmax(np.abs(predicted - model.predict(profile)[0][0]), initial=0)
        found["largest_difference"] = max(found.get("largest_difference", 0.0), float(apart))
    return found | corrcoef_agrees(by_user, asked[0], model)


def corrcoef_agrees(by_user: csr_matrix, profile: csr_matrix, model: Neighbours) -> dict[str, float]:
    """One profile against every user by numpy.corrcoef."""
    part = by_user[:, profile.indices].tocsr()
    found = []
    for user in np.flatnonzero(np.diff(part.indptr) >= 5):
        row = slice(part.indptr[user], part.indptr[user + 1])
        x, y = profile.data[part.indices[row]], part.data[row]
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            found.append((-round(float(np.corrcoef(x, y)[0, 1]), 9), -len(y), int(user)))
    best, nearest = sorted(found)[: model.k], model.nearest(profile)
    return {
        "same_as_corrcoef": float([u for _, _, u in best] == nearest.user.tolist()),
        "similarity_apart": float(np.abs(-np.array([s for s, _, _ in best]) - nearest.similarity).max()),
    }


def surprise_knn(folder: Path, shape: Sequence[int]) -> dict[str, float]:
    """Surprise's nearest design, which has to know its user: one of the training users stands for the new profile."""
    found: dict[str, float] = {}
    frame = pd.read_parquet(folder / "ratings.parquet")
    options = {"name": "pearson", "user_based": True, "min_support": 5}
    model = surprise.KNNWithMeans(k=50, min_k=3, sim_options=options, verbose=False)
    with watched(found, "prepare"):
        data = surprise.Dataset.load_from_df(frame, surprise.Reader(rating_scale=(0.5, 5)))
        model.fit(data.build_full_trainset())
    items = ids("i", shape[1])
    return found | ask(lambda user: [model.predict(user, item) for item in items], ids("u", 5))


def run(shares: Sequence[float] = (1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)) -> list[dict[str, Any]]:
    """A row per size and contender: users, films, ratings, prepare, open, quantiles of a query, memory, agreement.

    Surprise runs where its seven users x users matrices take at most half a gigabyte; more would take minutes.
    """
    rows: list[dict[str, Any]] = []
    for share in shares:
        shape = [round(size * share) for size in ML_25M]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            size = dict(zip(("users", "films", "ratings"), shape, strict=True)) | {"profile": PROFILE}
            size["load"] = round(psutil.getloadavg()[0], 1)
            write(folder, shape)
            rows.append({"what": "neighbours"} | size | apart(prepare_neighbours, folder, shape)
                        | apart(ask_neighbours, folder, shape))  # fmt: skip
            rows.append({"what": "scipy, brute force"} | size | apart(brute_force, folder, shape))
            if 7 * 8 * shape[0] ** 2 < 5e8:
                rows.append({"what": "Surprise KNNWithMeans"} | size | apart(surprise_knn, folder, shape))
    return rows


def apart(measure: Callable[..., dict[str, float]], folder: Path, shape: Sequence[int]) -> dict[str, float]:
    """The measurement in a new process, so that memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, folder, shape).result()


if __name__ == "__main__":
    largest = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    for row in run([s for s in (1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1) if s <= largest]):
        print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}, default=float))
