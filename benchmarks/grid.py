"""The grid searches of fast_grid beside Surprise's GridSearchCV, in one run on the same folds.

    python benchmarks/grid.py [--jobs 1 2] [--folds 3] [--json FILE]

Reads the ratings that ingest left in data/processed/ml-100k. Surprise runs twice: as its users run it, with each fold's
rows in random order (its KFold shuffles them), and with rows sorted by user and item, which makes it faster by itself.
It tries every setting, or, for KNN, whose whole grid takes it a quarter of an hour, one setting of each similarity,
scaled up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import surprise
from surprise.model_selection import GridSearchCV

from recsys_utils import fast_grid
from recsys_utils.collaborative import KNN, SVD, RatingModel, predict_by_surprise, settings, surprise_trainset
from recsys_utils.interactions import Interactions
from recsys_utils.stage import Stage

SVD_GRID = {"n_factors": [50, 100, 150], "n_epochs": [20, 30], "lr": [0.005, 0.01], "reg": [0.02, 0.1]}
KNN_GRID = {
    "kind": ["KNNWithMeans", "KNNBaseline"], "similarity": ["pearson_baseline", "msd", "cosine"],
    "user_based": [True, False], "k": [20, 40, 80], "min_support": [1, 3, 5],
}  # fmt: skip


class Folds:
    """fast_grid's folds as a cross-validation iterator of Surprise."""

    def __init__(self, pairs: Sequence[fast_grid.Pair], shuffled: bool) -> None:
        self.pairs, self.shuffled = pairs, shuffled

    def get_n_folds(self) -> int:
        return len(self.pairs)

    def split(self, data: surprise.Dataset) -> Iterator[tuple[surprise.Trainset, list[tuple[int, int, float]]]]:
        for train, test in self.pairs:
            rows = zip(test.user.tolist(), test.item.tolist(), test.rating.tolist(), strict=True)
            if not self.shuffled:
                yield surprise_trainset(train), list(rows)
                continue
            order = np.random.default_rng(0).permutation(len(train))
            columns = (train.user, train.item, train.rating.astype(float), np.zeros(len(train)))
            raw = list(zip(*(column[order].tolist() for column in columns), strict=True))
            yield data.construct_trainset(raw), list(rows)


def by_surprise(
    pairs: Sequence[fast_grid.Pair], options: Sequence[RatingModel], jobs: int, shuffled: bool
) -> np.ndarray:
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
    search.fit(surprise.Dataset.load_from_df(none, surprise.Reader(rating_scale=scale)))
    asked = [option.arguments() for option in options]
    found = dict(
        zip(map(repr, map(_sorted, search.cv_results["params"])), search.cv_results["mean_test_rmse"], strict=True)
    )
    return np.array([found[repr(_sorted(arguments))] for arguments in asked])


def _sorted(arguments: dict[str, Any]) -> list[Any]:
    return sorted((k, sorted(v.items()) if isinstance(v, dict) else v) for k, v in arguments.items())


def measured(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float, float]:
    """What ``work`` returns; wall seconds; CPU seconds with children's; peak MB of the process tree above the start."""
    tree, peak, done = psutil.Process(), [0], threading.Event()

    def memory() -> int:
        total = 0
        for process in (tree, *tree.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], memory())

    before, watcher = memory(), threading.Thread(target=watch, daemon=True)
    watcher.start()
    start, used = time.perf_counter(), _cpu()
    value = work()
    seconds, cpu = time.perf_counter() - start, _cpu() - used
    done.set()
    watcher.join()
    return value, seconds, cpu, max(0, peak[0] - before) / 1e6


def _cpu() -> float:
    """CPU seconds of this process and of the workers that have ended or still run."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    alive = [p.cpu_times() for p in psutil.Process().children(recursive=True)]
    return sum(u.ru_utime + u.ru_stime for u in own) + sum(t.user + t.system for t in alive)


def run(data: Interactions, *, folds: int = 3, jobs: int = 1, seed: int = 1) -> list[dict[str, Any]]:
    """A row a grid and order of Surprise's rows: seconds and CPU seconds of both, ratios, peak MB, agreement.

    Parameters
    ----------
    jobs : processes of either
    seed : of the folds

    ``largest_rmse_difference`` is over the settings Surprise tried (with shuffled rows its SVD starts elsewhere),
    ``largest_prediction_difference`` over one fold of the best setting, same rows, in rating points. The kernels are
    compiled before the clock starts.
    """
    pairs = fast_grid.shuffled_folds(data, folds, seed)
    rows = []
    for name, options in (("svd", settings(SVD, SVD_GRID)), ("knn", settings(KNN, KNN_GRID))):
        tried: list[RatingModel] = list(options)
        if name == "knn":
            tried = [o for o in options if (o.kind, o.k, o.min_support) == ("KNNBaseline", 40, 3)]
        fast_grid.errors(pairs, [options[0], options[-1]], jobs=jobs)
        ours, seconds, cpu, mb = measured(lambda o=options: fast_grid.errors(pairs, o, jobs=jobs)[..., 0].mean(axis=0))
        share = len(options) / len(tried)
        same = np.array([ours[options.index(option)] for option in tried])
        best = tried[int(same.argmin())]
        gap = np.abs(fast_grid.predictions(*pairs[0], [best])[0] - predict_by_surprise(*pairs[0], best)).max()
        for shuffled in (True, False):
            found, *cost = measured(lambda o=tried, s=shuffled: by_surprise(pairs, o, jobs, s))
            rows.append(
                {
                    "grid": name, "settings": len(options), "tried_by_surprise": len(tried), "folds": folds,
                    "jobs": jobs, "surprise_rows": "shuffled" if shuffled else "sorted",
                    "seconds": seconds, "surprise_seconds": share * cost[0], "ratio": share * cost[0] / seconds,
                    "cpu_seconds": cpu, "surprise_cpu_seconds": share * cost[1], "cpu_ratio": share * cost[1] / cpu,
                    "peak_mb": mb, "surprise_peak_mb": cost[2],
                    "best_setting_equal": bool(same.argmin() == found.argmin()),
                    "largest_rmse_difference": float(np.abs(same - found).max()),
                    "largest_prediction_difference": float(gap),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = Stage("03_cf_grid_search", workspace="data/processed/ml-100k").interactions()
    rows = [row for jobs in arguments.jobs for row in run(data, folds=arguments.folds, jobs=jobs)]
    for row in rows:
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
