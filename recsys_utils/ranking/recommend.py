"""From a profile to a list that a person can read.

Fallback order: a profile with no liked item gets popularity; otherwise the weight alpha of the collaborative score,
which depends on the size of the profile, names the strategy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, RANK, SCORE, USER, InputError, Recommender, Scale, Scores
from recsys_utils.models import neighbours
from recsys_utils.models.content import ContentModel
from recsys_utils.models.rankers import Popularity
from recsys_utils.personal.own_ratings import OwnRatings
from recsys_utils.ranking.explain import Explainer, Person, full_titles
from recsys_utils.ranking.hybrid import COLLABORATIVE, AlphaCurve, Components, Hybrid, WeightedEnsemble
from recsys_utils.ranking.rerank import ItemFacts, Lists, Ranking, rerank

COLUMNS = [
    USER, RANK, ITEM, "title", SCORE, "alpha", "strategy", "reason", "is_exploration", "content_score", "cf_score",
    "tmdb_id", "imdb_id",
]  # fmt: skip
MODELS: dict[str, Any] = COLLABORATIVE | {m.name: m for m in (ContentModel, WeightedEnsemble)}
FALLBACK = "popularity_fallback"
ME = "me"  # the user id of a person who gives a file of ratings
BLOCK = 1024  # users scored at a time, so that memory stays at a few dense blocks


def strategy_of(alpha: float, fallback: bool) -> str:
    """The name of the strategy that ranks a list.

    >>> [strategy_of(a, False) for a in (0.0, 0.49, 0.5)], strategy_of(0.7, True)
    (['content_based', 'hybrid_content_heavy', 'hybrid_collaborative_heavy'], 'popularity_fallback')
    """
    if fallback:
        return FALLBACK
    if alpha == 0:
        return "content_based"
    return "hybrid_content_heavy" if alpha < 0.5 else "hybrid_collaborative_heavy"


@dataclass(frozen=True)
class HybridRecommender:
    """A fitted hybrid with its items and, at wish, a re-ranking strategy.

    Parameters
    ----------
    hybrid : fitted
    items : (I rows) columns item_id, title, year, genres, tmdb_id, imdb_id in the order the hybrid knows
    exploration, ratio : a strategy of ``rerank.STRATEGIES`` and its ratio or lambda
    seed : of the random picks
    """

    hybrid: Hybrid
    items: pd.DataFrame
    exploration: str = "none"
    ratio: float = 0.0
    seed: int = 0

    @cached_property
    def facts(self) -> ItemFacts:
        return ItemFacts.of(self.items, self.hybrid.popularity.rated.astype(np.int64))

    @cached_property
    def explainer(self) -> Explainer:
        return Explainer(self.hybrid, self.facts, full_titles(self.items), self.exploration)

    def rank(self, profiles: csr_matrix, users: Sequence[str], n: int = 10) -> tuple[Lists, Scores, Components]:
        """Lists of up to n items outside each profile, with all scores and what they are made of.

        Popularity's own lists stay as they are: the strength of re-ranking was chosen for lists that follow a taste.
        """
        components = self.hybrid.components(profiles)
        scores = self.hybrid.scores(profiles, components)
        ranking = Ranking.of(scores, profiles, users)
        lists = rerank(ranking, self.exploration, self.ratio, k=n, facts=self.facts, seed=self.seed)
        lists.items[components.fallback] = ranking.top(n)[components.fallback]
        lists.exploration[components.fallback] = False
        return lists, scores, components

    def recommend(
        self, profiles: csr_matrix, users: Sequence[str], n: int = 10, *, explain: bool = False
    ) -> pd.DataFrame:  # fmt: skip
        """One row per recommended item, users in the given order, columns :data:`COLUMNS`.

        ``score`` = (1 - alpha) content_score + alpha cf_score, except in a popularity_fallback list, where it is the
        normalised popularity and alpha is 0; re-ranking moves positions, not scores. A user whose profile leaves fewer
        than n items gets those. ``explain`` adds a column ``contributions``: the parts of the score and the rated items
        that add most to each.

        Raises
        ------
        InputError : n < 1.
        """
        if n < 1:
            raise InputError(f"A list holds at least one item; got n = {n}.")
        n = min(n, len(self.items))
        blocks = [slice(start, start + BLOCK) for start in range(0, max(1, len(users)), BLOCK)]
        return pd.concat([self._block(profiles[b], users[b], n, explain) for b in blocks], ignore_index=True)

    def _block(self, profiles: csr_matrix, users: Sequence[str], n: int, explain: bool) -> pd.DataFrame:
        lists, scores, (content, cf, alphas, fallback) = self.rank(profiles, users, n)
        row, position = np.nonzero(lists.items >= 0)
        item, explored = lists.items[row, position], lists.exploration[row, position]
        alpha = np.where(fallback, 0.0, alphas)
        base = np.array([strategy_of(a, f) for a, f in zip(alpha, fallback, strict=True)], dtype=object)
        reasons: list[str] = []
        contributions: list[str] = []
        for r, (listed, picks) in enumerate(zip(lists.items, lists.exploration, strict=True)):
            person = Person(profiles[r], content[r], cf[r], float(alpha[r]), bool(fallback[r]))
            mine = listed[listed >= 0]
            reasons += self.explainer.reasons(person, mine, picks[listed >= 0])
            contributions += self.explainer.contributions(person, mine) if explain else []
        frame = self.items.iloc[item][[ITEM, "tmdb_id", "imdb_id"]].reset_index(drop=True)
        frame = frame.assign(
            **{USER: np.asarray(users, dtype=object)[row], RANK: position + 1, SCORE: scores[row, item]},
            title=[self.explainer.titles[i] for i in item], alpha=alpha[row], reason=reasons, is_exploration=explored,
            strategy=np.where(explored, f"exploration:{self.exploration}", base[row]),
            content_score=content[row, item], cf_score=cf[row, item],
        )[COLUMNS]  # fmt: skip
        return frame.assign(contributions=contributions) if explain else frame


def hybrid_from(choice: Mapping[str, Any], items: pd.DataFrame, has_billing_order: bool) -> Hybrid:
    """The hybrid, not yet fitted, that 06_alpha_curve chose and wrote to default.json.

    Parameters
    ----------
    choice : ``cf`` (a model's name), ``settings`` of it, ``curve``, and the ``content`` model's fields, cast and
        max_features
    """
    content = ContentModel(items, has_billing_order=has_billing_order, **choice["content"])
    name, settings = choice["cf"], choice["settings"]
    cf: Recommender = (
        WeightedEnsemble.from_json(settings) if name == WeightedEnsemble.name else COLLABORATIVE[name](**settings)
    )
    return Hybrid(content, cf, AlphaCurve.from_json(choice["curve"]), Popularity())


def recommend_by_neighbours(
    model: neighbours.Neighbours, items: pd.DataFrame, scale: Scale, own: OwnRatings, n: int = 10, *,
    explain: bool = False,
) -> tuple[pd.DataFrame, str]:  # fmt: skip
    """Well-known films by user KNN, and what they have in common and are predicted on.

    Columns as in :func:`neighbours.recommend`; ``predicted`` is on the file's own scale where it has a single one.
    ``explain`` adds a column ``contributions``: the person's mean, and what the neighbours add to it.
    """
    eligible, rule = neighbours.good_films(model, items)
    profile = own.profile(items[ITEM].tolist())
    films = neighbours.recommend(model, profile, items, n, eligible)
    shown = own.scale or scale
    unit = (shown.hi - shown.lo) / (scale.hi - scale.lo)
    films["predicted"] = shown.lo + (films["predicted"] - scale.lo) * unit
    if explain:
        mean = shown.lo + (float(profile.data.mean(dtype=np.float64)) - scale.lo) * unit
        films["contributions"] = [
            f"{mean:.2f} your mean {predicted - mean:+.2f} by {votes} neighbours"
            for predicted, votes in zip(films["predicted"], films["votes"], strict=True)
        ]
    return films, f"Films listed have {rule}. Predictions are on the scale {shown.lo:g}-{shown.hi:g}."
