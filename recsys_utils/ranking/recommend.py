"""From a profile to a list that a person can read, with a reason for each item.

Fallback order: a profile with no liked item gets popularity; otherwise the weight alpha of the collaborative score,
which depends on the size of the profile, names the strategy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, RANK, SCORE, USER, InputError, Recommender, Scale, Scores
from recsys_utils.models import neighbours
from recsys_utils.models.content import ContentModel
from recsys_utils.models.neighbours import OPAQUE
from recsys_utils.models.rankers import Popularity
from recsys_utils.personal.own_ratings import OwnRatings
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
SHOWN = 3  # shared text fields, and rated items per part, that an explanation names
NOUNS = {"keyword": "subject", "overview": "word"}
DIVERSITY = {
    "mmr": "it differs in genre from the items above it", "dpp": "it differs in genre from the items above it",
    "xquad": "it covers more of the genres you rate", "calibration": "it brings the list closer to your mix of genres",
    "discount": "it is less known", "genre": "you have rarely rated its genre",
    "mid-rank": "it is drawn at random from the middle of your ranking", "popular": "it is popular",
}  # fmt: skip


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


# ---- reasons


class Part(NamedTuple):
    """What one model adds to the scores of n items, (n,), and the share of each of R rated items in the model's own
    score, (R, n); None where that is no sum over the rated items."""

    adds: Scores
    shares: Scores | None


@dataclass(frozen=True)
class Person:
    """A profile (1, I) with the scores (I,) that the hybrid gives it; ``fallback``: the list is popularity's."""

    profile: csr_matrix
    content: NDArray[np.float32]
    cf: NDArray[np.float32]
    alpha: float
    fallback: bool


@dataclass(frozen=True)
class Explainer:
    """Reasons for the lists of a fitted hybrid.

    Parameters
    ----------
    titles : of the items, as reasons name them
    exploration : the re-ranking strategy
    """

    hybrid: Hybrid
    facts: ItemFacts
    titles: Sequence[str]
    exploration: str

    @property
    def cf_models(self) -> Mapping[str, Recommender]:
        cf = self.hybrid.cf
        return cf.parts if isinstance(cf, WeightedEnsemble) else {cf.name: cf}

    @cached_property
    def additive(self) -> set[str]:
        """The collaborative models whose score of a profile is the sum of the scores of its ratings taken singly.

        EASE and item KNN without normalisation are; tested on a made-up profile, not assumed.
        """
        top = np.argsort(-self.facts.popularity, kind="stable")[:5]
        ratings = np.full(len(top), self.hybrid.content.liked, np.float32)
        probe = csr_matrix((ratings, (np.zeros(len(top), int), top)), shape=(1, len(self.titles)))
        return {
            name
            for name, model in self.cf_models.items()
            if np.allclose(singly(model, probe).sum(axis=0), model.scores(probe)[0], atol=1e-4)
        }

    def parts(self, person: Person, items: NDArray[np.int32]) -> dict[str, Part]:
        """The parts of the scores of n items by name; they add up to the scores.

        An item without ratings has ``content regression`` instead of collaborative parts, see :class:`Hybrid`.
        """
        content, profile = self.hybrid.content, person.profile
        likes = np.where(profile.data >= content.liked, profile.data, 0).astype(np.float32)
        rated = content.vectors[profile.indices]
        length = float(np.linalg.norm(rated.T @ likes)) or 1.0
        shares = (rated @ content.vectors[items].T).toarray() * (likes[:, None] / length)
        found = {"content": Part((1 - person.alpha) * person.content[items], shares)}
        new, cf = self.hybrid.new[items], self.hybrid.cf
        portions = (
            {name: portion[0, items] for name, portion in cf.portions(profile).items()}
            if isinstance(cf, WeightedEnsemble)
            else {cf.name: person.cf[items]}
        )
        for name, model in self.cf_models.items():
            by_item = singly(model, profile)[:, items] if name in self.additive else None
            found[name] = Part(person.alpha * portions[name] * ~new, by_item)
        if new.any():
            found["content regression"] = Part(person.alpha * person.cf[items] * new, shares)
        return found

    def contributions(self, person: Person, items: NDArray[np.int32]) -> list[str]:
        """For each of n items the parts of its score, each with the rated items that add most to it, in percent."""
        if person.fallback:
            return ["popularity"] * len(items)

        def most(shares: Scores | None, column: int) -> str:
            own = np.zeros(0) if shares is None else shares[:, column]
            top = [row for row in np.argsort(-own, kind="stable")[:SHOWN] if own[row] > 0]
            names = [f"{self.titles[person.profile.indices[row]]} {own[row] / own.sum():.0%}" for row in top]
            return f" ({', '.join(names)})" if names else ""

        parts = self.parts(person, items).items()
        return [
            " + ".join(f"{part.adds[n]:.3f} {name}{most(part.shares, n)}" for name, part in parts)
            for n in range(len(items))
        ]

    def reasons(self, person: Person, items: NDArray[np.int32], explored: NDArray[np.bool_]) -> list[str]:
        """A sentence for each of n items; ``explored`` marks those that the re-ranking strategy brought in."""
        if person.fallback:
            return [f"Too little is known of your taste yet; this is popular: {self._likes(item)}." for item in items]
        parts, texts = self.parts(person, items), []
        for n, (item, is_pick) in enumerate(zip(items.tolist(), explored.tolist(), strict=True)):
            text = self._fits(person, item, {name: self._column(part, n) for name, part in parts.items()})
            why = DIVERSITY.get(self.exploration.removesuffix("-repaired"), self.exploration)
            texts.append(f"For diversity: {why}. {text}" if is_pick else text)
        return texts

    @staticmethod
    def _column(part: Part, n: int) -> tuple[float, Scores | None]:
        return float(part.adds[n]), None if part.shares is None else part.shares[:, n]

    def _fits(self, person: Person, item: int, parts: Mapping[str, tuple[float, Scores | None]]) -> str:
        """What the largest part of an item's score says of it."""
        name, (adds, shares) = max(parts.items(), key=lambda part: part[1][0])
        if name == "popularity" and adds > 0:
            return f"It is popular: {self._likes(item)}."
        if adds <= 0 or (shares is not None and shares.max(initial=0) <= 0 and name.startswith("content")):
            return "Nothing known links it to what you liked; it fills the list."
        others = np.delete(person.cf, person.profile.indices)
        position = f"position {(others > person.cf[item]).sum() + 1:,} of {len(others):,}"
        if shares is None or shares.max(initial=0) <= 0:
            return f"Recommended by people with similar ratings ({position})."
        row = int(shares.argmax())
        source, rating = person.profile.indices[row], f"{person.profile.data[row]:.3g}"
        rated = f"{self.titles[source]}, which you rated {rating}"
        if not name.startswith("content"):
            return f"Recommended by people with similar ratings ({position}), most of all because of {rated}."
        shared = f"shares {self._shared(source, item)} with {rated}"
        if self.hybrid.new[item]:
            return f"No one has rated it yet; it matches the genres and people you like: it {shared}."
        return f"It {shared}."

    def _likes(self, item: int) -> str:
        likes = self.hybrid.popularity.counts
        return f"liked by {likes[item]:,.0f} people (position {(likes > likes[item]).sum() + 1:,} of {len(likes):,})"

    def _shared(self, source: int, item: int) -> str:
        model = self.hybrid.content
        both = model.vectors[source].multiply(model.vectors[item]).tocsr()
        strongest = both.indices[np.lexsort([both.indices, -both.data])][:SHOWN]
        return in_words([str(model.tokens[t]) for t in strongest])


def singly(model: Recommender, profile: csr_matrix) -> Scores:
    """(n, I) scores of the n one-rating profiles that a profile (1, I) is made of."""
    n = profile.nnz
    return model.scores(csr_matrix((profile.data, profile.indices, np.arange(n + 1)), shape=(n, profile.shape[1])))


def in_words(tokens: Sequence[str]) -> str:
    """Typed tokens as a phrase; ids that are no names are counted.

    >>> in_words(["director:Joel_Coen", "genre:Crime", "actor:m.01", "genre:Drama", "actor:m.02"])
    'the director Joel Coen and the genres Crime, Drama and 2 actors'
    """
    kinds: dict[str, list[str]] = {}
    for token in tokens:
        kind, _, name = token.partition(":")
        kinds.setdefault(NOUNS.get(kind, kind), []).append(name.replace("_", " "))
    parts = []
    for kind, names in kinds.items():
        known, noun = [name for name in names if not OPAQUE.fullmatch(name)], kind + "s" * (len(names) > 1)
        counted = f"{len(names)} {noun}" if len(names) > 1 else f"the {noun}"
        parts.append(f"the {noun} {', '.join(known)}" if len(known) == len(names) else counted)
    return " and ".join(parts)


def full_titles(items: pd.DataFrame) -> list[str]:
    """Title and, where known, year: 'Fargo (1996)'."""
    pairs = zip(items["title"], items["year"], strict=True)
    return [str(title) if pd.isna(year) else f"{title} ({int(year)})" for title, year in pairs]


# ---- lists


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
