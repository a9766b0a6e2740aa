"""The KNN grid of grid_kernels (108 settings x 3 folds) beside Surprise's GridSearchCV on the same folds.

By default Surprise tries one setting for each similarity, over users and over items, and its time is scaled up: the
whole grid takes it a quarter of an hour on MovieLens 100K, and k and min_support hardly change it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.grid import grid_rows, ratings, sizes
from benchmarks.measure import Row
from recsys_study.grid_search import settings
from recsys_utils.models.surprise_models import KNN, SurpriseModel

GRID = {
    "kind": ["KNNWithMeans", "KNNBaseline"], "similarity": ["pearson_baseline", "msd", "cosine"],
    "user_based": [True, False], "k": [20, 40, 80], "min_support": [1, 3, 5],
}  # fmt: skip


def run(*, full: bool = False, shares: Sequence[float] | None = None, folds: int = 3) -> list[Row]:
    """Rows of the KNN grid; by default up to half of the users, with ``full`` all of them."""
    options: list[SurpriseModel] = list(settings(KNN, GRID))
    tried = [o for o in options if (o.kind, o.k, o.min_support) == ("KNNBaseline", 40, 3)]
    shares = (sizes() if full else sizes(5)[:-1]) if shares is None else shares
    return [row for share in shares for row in grid_rows("knn", "KNN", ratings(share), options, tried, folds)]
