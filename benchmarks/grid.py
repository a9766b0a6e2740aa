"""The SVD grid of grid_kernels (24 settings x 3 folds) beside Surprise's GridSearchCV on the same folds.

Both search twice: with rows sorted by user and item, as the study has them, and with shuffled rows, as Surprise's own
KFold leaves them, which costs Surprise more. By default it tries one pair of lr and reg for each number of factors and
epochs, which is what its time depends on, and its time is scaled up.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import surprise
from scipy.sparse import csr_matrix
from surprise.model_selection import GridSearchCV

from benchmarks.generated import movielens_like
from benchmarks.measure import Contender, Row, compare
from recsys_study.grid_search import settings
from recsys_utils.base import project_root
from recsys_utils.data.interactions import Interactions, read_interactions
from recsys_utils.models import grid_kernels
from recsys_utils.models.surprise_models import KNN, SVD, SurpriseModel, predict_by_surprise, surprise_trainset

GRID = {"n_factors": [50, 100, 150], "n_epochs": [20, 30], "lr": [0.005, 0.01], "reg": [0.02, 0.1]}
SHAPE = (943, 1682, 100_000)  # users, films, ratings of MovieLens 100K
DOUBLINGS = 4
LIMIT = 1e-6  # rating points between predictions
Verdict = tuple[bool, str]


class Folds:
    """grid_kernels's folds as a cross-validation iterator of Surprise."""

    def __init__(self, pairs: Sequence[grid_kernels.Pair], shuffled: bool) -> None:
        self.pairs, self.shuffled = pairs, shuffled

    def get_n_folds(self) -> int:
        return len(self.pairs)

    def split(self, data: surprise.Dataset) -> Iterator[tuple[surprise.Trainset, list[tuple[int, int, float]]]]:
        for train, test in self.pairs:
            rows = zip(test.user.tolist(), test.item.tolist(), test.rating.tolist(), strict=True)
            if not self.shuffled:
                yield surprise_trainset(train), list(rows)
                continue
            columns = (train.user, train.item, train.rating.astype(float), np.zeros(len(train)))
            raw = list(zip(*(column.tolist() for column in columns), strict=True))
            yield data.construct_trainset(raw), list(rows)


def as_stored(train: Interactions, test: Interactions) -> grid_kernels.Pair:
    """The pair with users, items and each user's ratings in the order in which the training rows are stored.

    That is the order of Surprise's own cross-validation, from which its SVD starts with other values.
    """
    numbers = []
    for index, total in zip((train.user, train.item), train.shape, strict=True):
        first = np.full(total, len(train))
        first[index[::-1]] = np.arange(len(train))[::-1]  # of several assignments the last one holds
        numbers.append(np.argsort(np.argsort(first, kind="stable")).astype(np.int32))
    stored, other = (replace(d, user=numbers[0][d.user], item=numbers[1][d.item]) for d in (train, test))
    order = np.argsort(stored.user, kind="stable")
    ends = np.cumsum(np.bincount(stored.user, minlength=train.shape[0]))
    rows = (train.rating[order], stored.item[order], np.r_[0, ends])
    stored.__dict__["user_item"] = csr_matrix(rows, shape=train.shape)  # the cached one sorts each user's items
    return stored, other


def by_fast_grid(
    pairs: Sequence[grid_kernels.Pair], options: Sequence[SurpriseModel], jobs: int, shuffled: bool
) -> Generator[None, None, np.ndarray]:
    """Mean RMSE of each option; the kernels are compiled before the clock starts."""
    small = pairs[0][0].where(np.arange(len(pairs[0][0])) < 200)
    grid_kernels.errors([(small, small)], [replace(o, n_epochs=1) if isinstance(o, SVD) else o for o in options])
    yield
    parts = [as_stored(*pair) for pair in pairs] if shuffled else pairs
    return grid_kernels.errors(parts, options, jobs=jobs)[..., 0].mean(axis=0)


def by_surprise(
    pairs: Sequence[grid_kernels.Pair], options: Sequence[SurpriseModel], jobs: int, shuffled: bool
) -> Generator[None, None, np.ndarray]:
    """Mean RMSE of each option by GridSearchCV, which joblib spreads over settings and folds."""
    lists: dict[str, list[Any]] = {}
    for option in options:
        for name, value in option.arguments().items():
            if name != "sim_options" and value not in lists.setdefault(name, []):
                lists[name].append(value)
    if isinstance(options[0], KNN):
        lists["sim_options"] = {
            "name": sorted({o.similarity for o in options}), "user_based": sorted({o.user_based for o in options}),
            "min_support": sorted({o.min_support for o in options}),
        }  # fmt: skip
    search = GridSearchCV(
        type(options[0].algorithm()), lists, measures=["rmse", "mae"], cv=Folds(pairs, shuffled), n_jobs=jobs
    )
    scale = (pairs[0][0].scale.lo, pairs[0][0].scale.hi)
    none = pd.DataFrame({"user": [0], "item": [0], "rating": [scale[0]]})
    data = surprise.Dataset.load_from_df(none, surprise.Reader(rating_scale=scale))
    yield
    search.fit(data)
    results = search.cv_results
    found = {repr(_sorted(p)): e for p, e in zip(results["params"], results["mean_test_rmse"], strict=True)}
    return np.array([found[repr(_sorted(option.arguments()))] for option in options])


def _sorted(arguments: dict[str, Any]) -> list[Any]:
    return sorted((k, sorted(v.items()) if isinstance(v, dict) else v) for k, v in arguments.items())


def agreement(
    pair: grid_kernels.Pair, tried: Sequence[SurpriseModel], shuffled: bool, ours: np.ndarray, theirs: np.ndarray
) -> Verdict:
    """Whether the errors of the settings both tried and the best of them agree, and, rows sorted, its predictions."""
    best = tried[int(ours.argmin())]
    same = bool(ours.argmin() == theirs.argmin())
    gaps = {"their mean RMSE differ": float(np.abs(ours - theirs).max())}
    if not shuffled:
        found = grid_kernels.predictions(*pair, [best])[0] - predict_by_surprise(*pair, best)
        gaps["predictions of the best"] = float(np.abs(found).max())
    return max(gaps.values()) <= LIMIT and same, (
        f"{'same' if same else 'another'} best of {len(tried)} settings; "
        f"{', '.join(f'{what} by {gap:.0e}' for what, gap in gaps.items())} (limit {LIMIT:.0e})"
    )


def ratings(share: float) -> Interactions:
    """A share of the users of MovieLens 100K, where a run has ingested it; else of generated users of its shape."""
    folder = project_root() / "data/processed/ml-100k/01_ingest"
    data = read_interactions(folder) if folder.is_dir() else movielens_like(*SHAPE)
    return data.where(data.user < round(share * data.shape[0]))


def sizes(doublings: int = DOUBLINGS) -> list[float]:
    """Shares of the whole that double up to it."""
    return [2.0**-step for step in range(doublings, -1, -1)]


def run(*, full: bool = False, shares: Sequence[float] | None = None, folds: int = 3) -> list[Row]:
    """Rows of the SVD grid: one job at every size, with shuffled rows and with two jobs at the largest.

    With ``full`` Surprise tries every setting.
    """
    options: list[SurpriseModel] = list(settings(SVD, GRID))
    tried = options if full else [o for o in options if (o.lr, o.reg) == (GRID["lr"][0], GRID["reg"][0])]
    shares = sizes() if shares is None else shares
    rows = []
    for share in shares:
        for jobs, shuffled in product((1, 2), (False, True)) if share == shares[-1] else [(1, False)]:
            rows += grid_rows("grid", "SVD", ratings(share), options, tried, folds, jobs=jobs, shuffled=shuffled)
    return rows


def grid_rows(
    benchmark: str, model: str, data: Interactions, options: list[SurpriseModel], tried: list[SurpriseModel],
    folds: int, *, jobs: int = 1, shuffled: bool = False,
) -> list[Row]:  # fmt: skip
    """Rows of one grid at one size."""
    if shuffled:
        order = np.random.default_rng(0).permutation(len(data))
        columns = {name: getattr(data, name)[order] for name in ("user", "item", "rating", "timestamp")}
        data = replace(data, **columns)
    pairs = grid_kernels.shuffled_folds(data, folds, 1)
    both = [options.index(option) for option in tried]
    rows = f"{'shuffled' if shuffled else 'sorted'} rows"
    return compare(
        {
            "benchmark": benchmark, "size": len(data), "unit": "ratings",
            "task": f"{model}: {len(options)} settings x {folds} folds, {rows}, {jobs} job{'s' * (jobs > 1)}",
        },
        [
            Contender("grid_kernels.errors", by_fast_grid, (pairs, options, jobs, shuffled), jobs=jobs),
            Contender(
                "Surprise GridSearchCV", by_surprise, (pairs, tried, jobs, shuffled),
                share=len(tried) / len(options), jobs=jobs,
                check=lambda ours, theirs: agreement(pairs[0], tried, shuffled, ours[both], theirs),
            ),
        ],
    )  # fmt: skip
