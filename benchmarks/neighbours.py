"""User KNN next to scipy's sparse products, numpy.corrcoef and Surprise's KNN: the cost of preparing and of a query.

The ratings are generated in MovieLens 25M's shape. Surprise's nearest design has to know its user, so one of the
training users stands for the person who asks, and nothing is compared; it runs where its seven users x users matrices
take a tenth of a gigabyte (at 25 million ratings it would be 211 GB for one alone).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import surprise
from scipy.sparse import csr_matrix

from benchmarks.generated import ML_25M, SCALE, generate
from benchmarks.measure import Contender, Row, compare
from recsys_utils.models.neighbours import Neighbours

PROFILE = 35  # ratings of a person who asks
ASKED = 200  # people who ask
COMPARED = 5  # people whose answers are compared
LIMIT = 1e-6
Shape = Sequence[int]


def write(folder: Path, shape: Shape) -> None:
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


def store(folder: Path) -> Path:
    return min(folder.glob("store*"))


def read(folder: Path, shape: Shape) -> csr_matrix:
    """The ratings, users x films, as a person without this package would read them."""
    frame = pd.read_parquet(folder / "ratings.parquet")
    place = [pd.Index(ids(kind, n)).get_indexer(frame[c])
             for c, kind, n in (("user_id", "u", shape[0]), ("item_id", "i", shape[1]))]  # fmt: skip
    return csr_matrix((frame["rating"], place), shape=shape[:2], dtype=np.float64)


def timed(query: Callable[[csr_matrix], Any], asked: Sequence[csr_matrix]) -> list[float]:
    """Milliseconds of each query."""
    took = []
    for one in asked:
        started = time.perf_counter()
        query(one)
        took.append(1e3 * (time.perf_counter() - started))
    return took


# ---- contenders


def prepare_ours(folder: Path, shape: Shape) -> Generator[None, None, None]:
    few = pd.DataFrame({"user_id": ["u0"], "item_id": ["i0"], "rating": [3.0]})
    place = Path(tempfile.mkdtemp(dir=folder))
    few.to_parquet(place / "few.parquet")
    Neighbours().prepare(place / "few.parquet", ["u0"], ["i0"], SCALE, place / "few")  # loads the compiled kernels
    target = folder / f"store{len(list(folder.glob('store*')))}"
    yield
    Neighbours().prepare(folder / "ratings.parquet", ids("u", shape[0]), ids("i", shape[1]), SCALE, target)


def prepare_scipy(folder: Path, shape: Shape) -> Generator[None, None, None]:
    yield
    read(folder, shape).tocsc()


def prepare_surprise(folder: Path, shape: Shape) -> Generator[None, None, None]:
    yield
    fitted_surprise(folder)


def fitted_surprise(folder: Path) -> surprise.KNNWithMeans:
    options = {"name": "pearson", "user_based": True, "min_support": 5}
    data = surprise.Dataset.load_from_df(
        pd.read_parquet(folder / "ratings.parquet"), surprise.Reader(rating_scale=(0.5, 5))
    )
    return surprise.KNNWithMeans(k=50, min_k=3, sim_options=options, verbose=False).fit(data.build_full_trainset())


def open_ours(folder: Path, shape: Shape) -> Generator[None, None, None]:
    yield
    Neighbours.open(store(folder))


def ask_ours(folder: Path, shape: Shape) -> Generator[None, None, Row]:
    asked, model = profiles(folder, shape[1]), Neighbours.open(store(folder))
    model.predict(asked[0])
    yield
    took = timed(model.predict, asked)
    near = [model.nearest(profile) for profile in asked[:COMPARED]]
    return {
        "ms": took,
        "users": [n.user for n in near], "similarities": [n.similarity for n in near],
        "predictions": [model.predict(profile)[0][0] for profile in asked[:COMPARED]],
    }  # fmt: skip


def ask_scipy(folder: Path, shape: Shape) -> Generator[None, None, Row]:
    """Sums over common ratings as sparse products."""
    by_user = read(folder, shape)
    by_item = by_user.tocsc()
    means = by_user.sum(axis=1).A1 / np.maximum(np.diff(by_user.indptr), 1)

    def query(profile: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        part, x = by_item[:, profile.indices], profile.data.astype(np.float64)
        rated, squared = part.copy(), part.copy()
        rated.data = np.ones_like(rated.data)
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

    asked = profiles(folder, shape[1])[:20]
    query(asked[0])
    yield
    took = timed(query, asked)
    found = [query(profile) for profile in asked[:COMPARED]]
    return {"ms": took, "users": [f[0] for f in found], "predictions": [f[1] for f in found]}


def ask_corrcoef(folder: Path, shape: Shape) -> Generator[None, None, Row]:
    """One profile against every user by numpy.corrcoef."""
    by_user, profile = read(folder, shape), profiles(folder, shape[1])[0]
    yield
    started = time.perf_counter()
    part = by_user[:, profile.indices].tocsr()
    found = []
    for user in np.flatnonzero(np.diff(part.indptr) >= 5):
        row = slice(part.indptr[user], part.indptr[user + 1])
        x, y = profile.data[part.indices[row]], part.data[row]
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            found.append((-round(float(np.corrcoef(x, y)[0, 1]), 9), -len(y), int(user)))
    best = sorted(found)[:50]
    return {
        "ms": [1e3 * (time.perf_counter() - started)],
        "users": [np.array([u for _, _, u in best])], "similarities": [np.array([-s for s, _, _ in best])],
    }  # fmt: skip


def ask_surprise(folder: Path, shape: Shape) -> Generator[None, None, Row]:
    model, items = fitted_surprise(folder), ids("i", shape[1])
    yield
    return {"ms": timed(lambda user: [model.predict(user, item) for item in items], ids("u", 3))}


# ---- comparison


def quantiles(answer: Row) -> Row:
    p50, p99 = np.quantile(answer["ms"], [0.5, 0.99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "queries": len(answer["ms"])}


def agree(ours: Row, theirs: Row) -> tuple[bool, str]:
    n = len(theirs["users"])
    same = sum(np.array_equal(a, b) for a, b in zip(ours["users"], theirs["users"], strict=False))
    name = "predictions" if "predictions" in theirs else "similarities"
    pairs = list(zip(ours[name], theirs[name], strict=False))
    known = all(np.array_equal(np.isnan(a), np.isnan(b)) for a, b in pairs if len(a) == len(b))
    gap = max(float(np.nanmax(np.abs(a - b), initial=0)) if len(a) == len(b) else np.inf for a, b in pairs)
    return same == n and known and gap <= LIMIT, (
        f"neighbours identical for {same} of {n} profiles; {name} differ by at most {gap:.0e} (limit {LIMIT:.0e})"
    )


def run(*, full: bool = False, shares: Sequence[float] | None = None) -> list[Row]:
    """Rows of preparing, opening and asking, from 1/128 to 1/8 of MovieLens 25M; ``full``: from 1/16 to the whole."""
    if shares is None:
        shares = [2.0**step * (1 / 16 if full else 1 / 128) for step in range(5)]
    rows = []
    for share in shares:
        shape = [round(size * share) for size in ML_25M]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder, shape)
            rows += sized(folder, shape)
    return rows


def sized(folder: Path, shape: Shape) -> list[Row]:
    about = {"benchmark": "neighbours", "size": shape[2], "unit": "ratings"}
    where = (folder, shape)
    small = 7 * 8 * shape[0] ** 2 < 1e8
    known = "a training user asks: Surprise has to know its users"
    surprise_s = [
        [Contender("Surprise KNNWithMeans, fit", prepare_surprise, where)] if small else [],
        [Contender("Surprise KNNWithMeans, predict", ask_surprise, where, calls=3, note=known, extra=quantiles)]
        if small
        else [],
    ]
    n = len(profiles(folder, shape[1]))
    return [
        *compare(about | {"task": "prepare from parquet"}, [
            Contender("Neighbours.prepare", prepare_ours, where),
            Contender("pandas + scipy: read, CSR, CSC", prepare_scipy, where), *surprise_s[0],
        ]),
        *compare(about | {"task": "open"}, [Contender("Neighbours.open", open_ours, where)]),
        *compare(about | {"task": "predict all films from 35 ratings"}, [
            Contender("Neighbours.predict", ask_ours, where, calls=n, extra=quantiles),
            Contender("scipy, sparse products", ask_scipy, where, calls=20, check=agree, extra=quantiles),
            Contender("numpy.corrcoef, a user at a time", ask_corrcoef, where, check=agree, extra=quantiles),
            *surprise_s[1],
        ]),
    ]  # fmt: skip
