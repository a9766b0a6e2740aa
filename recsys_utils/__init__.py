"""A small library for recommenders that rank items for rows of ratings, and for judging them.

A user is a row of ratings: models are fitted on a users x items matrix and map rows of ratings to scores over the
catalogue. A protocol splits ratings into a case (training part, profiles, targets); metrics are per user; intervals
come from a bootstrap over users, and a verdict compares a difference with a margin that is named in advance.

>>> from recsys_utils import EASE, Bootstrap, Interactions, Popularity, Scale, generate, make_splits, rank_and_measure
>>> from recsys_utils import verdict, warm_split
>>> data = Interactions.from_frame(generate().ratings, scale=Scale(1, 5))
>>> splits, users, item_folds = make_splits(data, seed=1)
>>> case = warm_split(data, splits["last20"], time_ordered=True)
>>> models = EASE(reg=100), Popularity()
>>> ease, popular = (rank_and_measure(model.fit(case.train), case)["ndcg@10"] for model in models)
>>> difference = Bootstrap(len(ease), seed=1).mean((ease - popular).to_numpy())
>>> verdict(difference, margin=0.01)
'better'

Modules, imports going downwards only: ``base`` (columns, scale, seeds), ``data`` (rating data and facts about items),
``personal`` (people's own files), ``evaluation`` (protocols, metrics, significance), ``models``, ``ranking`` (hybrids,
re-ranking, the exported bundle). What a first notebook needs can be imported from here; it is loaded when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_utils.base import InputError, Scale
    from recsys_utils.data.interactions import Interactions
    from recsys_utils.data.synthetic import generate
    from recsys_utils.evaluation.metrics import coverage, gini, list_metrics, mae, ranking_metrics, rmse
    from recsys_utils.evaluation.protocols import (
        cold_item_case,
        make_splits,
        profile_size_cases,
        rank_and_measure,
        rank_lists,
        warm_split,
    )
    from recsys_utils.evaluation.significance import MARGIN, Bootstrap, verdict
    from recsys_utils.models.content import ContentModel
    from recsys_utils.models.neighbours import Neighbours
    from recsys_utils.models.rankers import EASE, ItemKNN, Popularity
    from recsys_utils.models.surprise_models import KNN, SVD
    from recsys_utils.models.variational_mf import VariationalMF
    from recsys_utils.ranking.bundle import Bundle
    from recsys_utils.ranking.hybrid import AlphaCurve, Hybrid
    from recsys_utils.ranking.rerank import rerank

__all__ = [
    "EASE", "KNN", "MARGIN", "SVD", "AlphaCurve", "Bootstrap", "Bundle", "ContentModel", "Hybrid", "InputError",
    "Interactions", "ItemKNN", "Neighbours", "Popularity", "Scale", "VariationalMF", "cold_item_case", "coverage",
    "generate", "gini", "list_metrics", "mae", "make_splits", "profile_size_cases", "rank_and_measure",
    "rank_lists", "ranking_metrics", "rerank", "rmse", "verdict", "warm_split",
]  # fmt: skip

_HOMES = {
    "base": "InputError Scale",
    "data.interactions": "Interactions",
    "data.synthetic": "generate",
    "evaluation.metrics": "coverage gini list_metrics mae ranking_metrics rmse",
    "evaluation.protocols": "cold_item_case make_splits profile_size_cases rank_and_measure rank_lists warm_split",
    "evaluation.significance": "MARGIN Bootstrap verdict",
    "models.content": "ContentModel",
    "models.neighbours": "Neighbours",
    "models.rankers": "EASE ItemKNN Popularity",
    "models.surprise_models": "KNN SVD",
    "models.variational_mf": "VariationalMF",
    "ranking.hybrid": "AlphaCurve Hybrid",
    "ranking.bundle": "Bundle",
    "ranking.rerank": "rerank",
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names.split():
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
