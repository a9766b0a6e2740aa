"""Nine ranking metrics of dense scores for 6,040 users and 3,706 films, beside a loop over users and two libraries.

The metrics: ndcg, recall, map, mrr, hit, novelty, ild, coverage and Gini at 10, profiles excluded (serendipity, lift
and calibration come with them). scikit-learn's ndcg_score and implicit's ranking_metrics_at_k give one and two of them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from benchmarks.measure import Contender, Row, closest, compare
from recsys_utils.evaluation import metrics

SHAPE = (6040, 3706)  # users and films of MovieLens 1M
K, KNOWN, RELEVANT, GENRES = 10, 130, 20, 18
LIMIT = 1e-12

Case = tuple[np.ndarray, csr_matrix, csr_matrix, metrics.ItemTraits]
Answer = Generator[None, None, dict[str, Any]]


def case(users: int, items: int) -> Case:
    """Scores without ties, profiles, films that are relevant and not in the profile, and what is known about films."""
    rng = np.random.default_rng(users)
    known, relevant = min(KNOWN, items // 4), min(RELEVANT, items // 8)
    chosen = np.argpartition(rng.random((users, items), np.float32), known + relevant, axis=1)[:, : known + relevant]
    profiles, targets = (
        csr_matrix(
            (np.ones(part.size, np.float32), np.sort(part, axis=1).ravel(), np.arange(users + 1) * part.shape[1]),
            shape=(users, items),
        )
        for part in (chosen[:, :known], chosen[:, known:])
    )
    scores = rng.permuted(np.tile(np.arange(items, dtype=np.float32), (users, 1)), axis=1)
    genres = (rng.random((items, GENRES)) < 0.1).astype(float)
    genres[np.arange(items), np.arange(items) % GENRES] = 1
    counts = np.bincount(profiles.indices, minlength=items)
    return scores, profiles, targets, metrics.ItemTraits(counts, users, genres)


def by_metrics(users: int, items: int) -> Answer:
    scores, profiles, targets, traits = case(users, items)
    small = case(20, items)
    nine(*small)
    yield
    return nine(scores, profiles, targets, traits)


def nine(scores: np.ndarray, profiles: csr_matrix, targets: csr_matrix, traits: metrics.ItemTraits) -> dict[str, Any]:
    lists = metrics.top_k(scores, profiles, K)
    found = metrics.ranking_metrics(lists, targets, k=K)
    found |= metrics.list_metrics(lists, traits, profiles=profiles, relevant=targets, k=K)
    items = scores.shape[1]
    found |= {f"coverage@{K}": metrics.coverage(lists, items), f"gini@{K}": metrics.gini(lists, items)}
    return found | {f"mean {name}": found[name].mean() for name in (f"ndcg@{K}", f"map@{K}")}


def by_loop(users: int, items: int) -> Answer:
    """Each user by numpy and plain Python, as metrics are usually written first."""
    scores, profiles, targets, traits = case(users, items)
    yield
    found: dict[str, Any] = {f"{n}@{K}": [] for n in ("ndcg", "recall", "map", "mrr", "hit", "novelty", "ild")}
    shown = np.zeros(items)
    norm = np.sqrt((traits.genres**2).sum(axis=1))
    for user in range(users):
        mine = scores[user].copy()
        mine[profiles[user].indices] = -np.inf
        best = np.argsort(-mine, kind="stable")[:K]
        shown[best] += 1
        relevant = set(targets[user].indices.tolist())
        hits = [item in relevant for item in best.tolist()]
        gains = [hit / np.log2(rank + 1) for rank, hit in enumerate(hits, 1)]
        ideal = sum(1 / np.log2(rank + 1) for rank in range(1, min(K, len(relevant)) + 1))
        precisions = [hit * sum(hits[:rank]) / rank for rank, hit in enumerate(hits, 1)]
        unit = traits.genres[best] / norm[best, None]
        cosine = unit @ unit.T
        values = (
            sum(gains) / ideal, sum(hits) / len(relevant), sum(precisions) / min(K, len(relevant)),
            max(hit / rank for rank, hit in enumerate(hits, 1)), float(any(hits)), -np.log2(traits.share[best]).mean(),
            1 - (cosine.sum() - np.trace(cosine)) / (K * (K - 1)),
        )  # fmt: skip
        for name, value in zip(found, values, strict=True):
            found[name].append(value)
    ordered = np.sort(shown)
    gini = ((2 * np.arange(1, items + 1) - items - 1) * ordered).sum() / (items * ordered.sum())
    return {n: np.array(v) for n, v in found.items()} | {f"coverage@{K}": (shown > 0).mean(), f"gini@{K}": gini}


def by_sklearn(users: int, items: int) -> Answer:
    from sklearn.metrics import ndcg_score

    scores, profiles, targets, _ = case(users, items)
    yield
    allowed = scores.copy()
    allowed[profiles.nonzero()] = -1
    return {f"mean ndcg@{K}": ndcg_score(targets.toarray(), allowed, k=K)}


def by_implicit(users: int, items: int) -> Answer:
    from implicit.evaluation import ranking_metrics_at_k

    scores, profiles, targets, _ = case(users, items)

    class Given:
        """A model whose scores are known; implicit asks it for lists, users in order."""

        def recommend(self, ids: np.ndarray, known: csr_matrix, N: int) -> tuple[np.ndarray, np.ndarray]:
            mine = scores[ids]
            mine[known.nonzero()] = -1
            best = np.argpartition(-mine, N, axis=1)[:, :N]
            order = np.take_along_axis(-mine, best, axis=1).argsort(axis=1)
            lists = np.take_along_axis(best, order, axis=1).astype(np.int32)
            return lists, np.take_along_axis(mine, lists, axis=1)

    yield
    found = ranking_metrics_at_k(Given(), profiles, targets, K=K, show_progress=False)
    return {f"mean {name}@{K}": found[name] for name in ("ndcg", "map")}


def run(*, full: bool = False, users: Sequence[int] | None = None) -> list[Row]:
    """Rows from 1/16 of the users to all; ``full`` makes no difference."""
    users = [SHAPE[0] // 2**step for step in range(4, -1, -1)] if users is None else users
    rows = []
    for number in users:
        size = (number, SHAPE[1])
        rows += compare(
            {"benchmark": "evaluate", "task": f"nine metrics over {SHAPE[1]:,} films", "size": number, "unit": "users"},
            [
                Contender("metrics, nine and three more", by_metrics, size),
                Contender("numpy, a user at a time", by_loop, size, check=closest("per user, nine metrics", LIMIT)),
                Contender("sklearn.ndcg_score (one of nine)", by_sklearn, size, check=closest("mean ndcg", LIMIT)),
                Contender(
                    "implicit.ranking_metrics_at_k (two of nine)", by_implicit, size, needs="implicit",
                    check=closest("mean ndcg and map", LIMIT),
                ),
            ],
        )  # fmt: skip
    return rows
