"""Why an item is recommended: exact parts of its score, the rated items behind them, and one sentence read off both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import Recommender, Scores
from recsys_utils.models.neighbours import OPAQUE
from recsys_utils.ranking.hybrid import Hybrid, WeightedEnsemble
from recsys_utils.ranking.rerank import ItemFacts

SHOWN = 3  # shared text fields, and rated items per part, that an explanation names
NOUNS = {"keyword": "subject", "overview": "word"}
DIVERSITY = {
    "mmr": "it differs in genre from the items above it", "dpp": "it differs in genre from the items above it",
    "xquad": "it covers more of the genres you rate", "calibration": "it brings the list closer to your mix of genres",
    "discount": "it is less known", "genre": "you have rarely rated its genre",
    "mid-rank": "it is drawn at random from the middle of your ranking", "popular": "it is popular",
}  # fmt: skip


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
