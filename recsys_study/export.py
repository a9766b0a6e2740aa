"""What ships: a list for every user, the bundle, and what the lists are like."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, RANK, USER, InputError, Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.significance import Bootstrap, jackknife
from recsys_utils.models.neighbours import Neighbours
from recsys_utils.personal.own_ratings import read
from recsys_utils.ranking.bundle import Bundle, write_bundle
from recsys_utils.ranking.hybrid import WeightedEnsemble
from recsys_utils.ranking.recommend import ME, HybridRecommender

SHOWN = ["rank", "title", "score", "alpha", "strategy", "reason"]


def lists_of(found: pd.DataFrame, data: Interactions, length: int) -> NDArray[np.int32]:
    """(U, length) item positions, -1 after the end of a short list, once the lists are what they must be.

    Raises
    ------
    ValueError : a list holds a rated item or one twice, lacks a reason, or is shorter than the catalogue allows.
    """
    user, item = (
        pd.Index(data.users).get_indexer(pd.Index(found[USER])),
        pd.Index(data.items).get_indexer(pd.Index(found[ITEM])),
    )
    lists = np.full((len(data.users), length), -1, np.int32)
    lists[user, found[RANK] - 1] = item
    unrated = len(data.items) - np.diff(data.user_item.indptr)
    if np.asarray(data.user_item[user, item]).any():
        raise ValueError("an item that the user has rated is recommended")
    if found.duplicated([USER, ITEM]).any() or found["reason"].eq("").any():
        raise ValueError("an item is listed twice or without a reason")
    if ((lists >= 0).sum(axis=1) < np.minimum(length, unrated)).any():
        raise ValueError("a list is shorter than the catalogue allows")
    return lists


def growing_profile(recommender: HybridRecommender, data: Interactions, length: int = 3) -> pd.DataFrame:
    """The lists of one user of middling activity whose profile holds the first 0, 1, 3, 10 and all ratings."""
    sizes = np.diff(data.user_item.indptr)
    mine = np.flatnonzero(data.user == np.argsort(sizes, kind="stable")[len(sizes) // 2])
    mine = mine[np.lexsort((data.item[mine], data.timestamp[mine]))]
    cuts = [n for n in (0, 1, 3, 10) if n < len(mine)] + [len(mine)]
    ratings, items = (np.concatenate([values[mine[:n]] for n in cuts]) for values in (data.rating, data.item))
    profiles = csr_matrix((ratings, items, np.cumsum([0, *cuts])), shape=(len(cuts), len(data.items)))
    profiles.sort_indices()
    found = recommender.recommend(profiles, [f"n={n}" for n in cuts], length)
    return found.rename(columns={USER: "profile"})[["profile", *SHOWN]]


def for_a_file(
    recommender: HybridRecommender, scale: Scale, file: Path, length: int = 10
) -> tuple[pd.DataFrame, str]:  # fmt: skip
    """The list for a person's file of ratings, and what was read of it."""
    given = read(file, recommender.items, scale)
    profile = given.profile(recommender.items[ITEM].tolist())
    return recommender.recommend(profile, [ME], length), given.report


def example_ratings(data: Interactions, items: pd.DataFrame) -> pd.DataFrame:
    """Six made-up ratings of the items that most users have rated."""
    known = np.argsort(-data.user_item.getnnz(axis=0), kind="stable")[:6]
    stars = np.resize([data.scale.hi, data.scale.hi, data.scale.lo, data.scale.liked], len(known))
    return items.loc[known, [ITEM, "title"]].assign(rating=stars)


def ship(
    folder: Path | None, recommender: HybridRecommender, data: Interactions, about: dict[str, Any],
    neighbours: Neighbours,
) -> pd.DataFrame:  # fmt: skip
    """Write the bundle (None: to a scratch folder), open it again and compare; returns the large files with their MB.

    Raises
    ------
    InputError : the opened bundle does not give the same scores and lists, bit for bit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder or Path(scratch, "bundle")
        write_bundle(folder, recommender, data.scale, about, neighbours)
        opened, block, users = Bundle.open(folder), data.user_item[:1000], list(data.users[:1000])
        same = (
            np.array_equal(opened.recommender.hybrid.scores(block), recommender.hybrid.scores(block))
            and opened.recommender.recommend(block, users).equals(recommender.recommend(block, users))
            and np.array_equal(opened.neighbours().scores(block[:9]), neighbours.scores(block[:9]))
        )
        if not same:
            raise InputError(f"The bundle {folder} does not give what the recommender gives. Export it again.")
        sizes = {f.relative_to(folder).as_posix(): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    return pd.DataFrame([(name, size / 1e6) for name, size in sizes.items() if size > 1e4], columns=["file", "MB"])


def list_table(
    lists: NDArray[np.int32], train: Interactions, data: Interactions, genres: pd.Series, boot: Bootstrap
) -> pd.DataFrame:  # fmt: skip
    """Beyond-accuracy metrics of the shipped lists and of the most popular items, one row per metric and kind."""
    k, traits = lists.shape[1], metrics.ItemTraits.of(train, genres)
    popularity = np.tile(traits.counts.astype(np.float32), (len(lists), 1))
    names = ["novelty", *(["ild", "calibration_error"] if genres.map(len).any() else [])]
    rows = []
    for kind, shown in (("shipped", lists), ("popular", metrics.top_k(popularity, data.user_item, k))):
        values = metrics.list_metrics(shown, traits, profiles=data.user_item, relevant=data.user_item, k=k)
        n = len(data.items)
        found = {name: boot.mean(values[f"{name}@{k}"]) for name in names}
        found["coverage"] = jackknife(metrics.coverage(shown, n), metrics.coverage_without_each(shown, n))
        found["gini"] = jackknife(metrics.gini(shown, n), metrics.gini_without_each(shown, n))
        rows += [[kind, f"{name}@{k}", e.value, e.ci_low, e.ci_high, e.n] for name, e in found.items()]
    return pd.DataFrame(rows, columns=["lists", "metric", "value", "ci_low", "ci_high", "n"])


def shipped(choice: Mapping[str, Any], diversity: str) -> dict[str, Any]:
    """What default.json ships, as facts: models, profile sizes that get popularity alone, content, re-ranking.

    >>> settings = {"parts": {"ease": {}, "popularity": {}}, "sizes": [1, 8]}
    >>> settings["weights"] = {"ease": [0.0, 1.0], "popularity": [1.0, 0.0]}
    >>> shipped({"cf": "mixture", "settings": settings, "content": {"fields": []}}, "mmr")
    {'models': ['ease'], 'popularity_at': [1], 'content': False, 'diversity': 'mmr'}
    """
    models, popular = [choice["cf"]], []
    if choice["cf"] == WeightedEnsemble.name:
        weights, sizes = choice["settings"]["weights"], choice["settings"]["sizes"]
        alone = [weight == 1 for weight in weights.get("popularity", [0] * len(sizes))]
        popular = [n for n, only in zip(sizes, alone, strict=True) if only]
        models = [part for part, own in weights.items()
                  if any(w > 0 and not only for w, only in zip(own, alone, strict=True))]  # fmt: skip
    content = bool(choice["content"]["fields"])
    return {"models": models, "popularity_at": popular, "content": content, "diversity": diversity}
