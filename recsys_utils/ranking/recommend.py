"""From a profile to a list a person can read: the ladder of strategies, and a plain reason for every film.

The ladder: a profile with no liked film gets popularity; then the weight alpha of the collaborative score, which grows
with the profile, names the rung. Reasons are read off exact contributions, never guessed: which rated film adds most to
the score, and which metadata it shares with the film recommended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, RANK, SCORE, USER, InputError, Recommender, Scale, Scores, counted
from recsys_utils.models import neighbours
from recsys_utils.models.content import ContentModel
from recsys_utils.models.neighbours import OPAQUE
from recsys_utils.personal.own_ratings import OwnRatings
from recsys_utils.ranking.blend import COLLABORATIVE, AlphaCurve, Blend, Components, Mixture
from recsys_utils.ranking.rerank import FEW_RATINGS, ItemFacts, Lists, Ranking, rerank

COLUMNS = [
    USER, RANK, ITEM, "title", SCORE, "alpha", "strategy", "reason", "is_exploration", "content_score", "cf_score",
    "tmdb_id", "imdb_id",
]  # fmt: skip
MODELS: dict[str, Any] = COLLABORATIVE | {m.name: m for m in (ContentModel, Mixture)}
FALLBACK = "popularity_fallback"
ME = "me"  # the user id of a person who gives a file of ratings
BLOCK = 1024  # users scored at a time, so that memory stays at a few dense blocks
SHOWN_TOKENS = 3  # shared metadata named in one reason
SHOWN_FILMS = 3  # rated films named per part of a score
NOUNS = {"genre": "genre", "keyword": "subject", "director": "director", "actor": "actor", "writer": "writer"}


def rung(alpha: float, fallback: bool) -> str:
    """The name of the strategy that ranks a list.

    >>> [rung(a, False) for a in (0.0, 0.49, 0.5)], rung(0.7, True)
    (['content_based', 'hybrid_content_heavy', 'hybrid_collaborative_heavy'], 'popularity_fallback')
    """
    if fallback:
        return FALLBACK
    if alpha == 0:
        return "content_based"
    return "hybrid_content_heavy" if alpha < 0.5 else "hybrid_collaborative_heavy"


@dataclass(frozen=True)
class Ladder:
    """A fitted blend with its films and, at wish, a diversity strategy.

    Parameters
    ----------
    blend : fitted; its popularity part scores films by their number of training ratings
    items : (I rows) columns item_id, title, year, genres, tmdb_id, imdb_id in the order the blend knows
    exploration, ratio : a strategy of ``diversity.STRATEGIES`` and its ratio or lambda
    seed : of the random picks
    noun : what the items are called in a reason
    """

    blend: Blend
    items: pd.DataFrame
    exploration: str = "none"
    ratio: float = 0.0
    seed: int = 0
    noun: str = "film"

    @cached_property
    def catalogue(self) -> ItemFacts:
        nobody = csr_matrix((1, len(self.items)), dtype=np.float32)
        counts = self.blend.popularity.scores(nobody)[0].astype(np.int64)
        return ItemFacts.of(self.items, counts)

    @cached_property
    def titles(self) -> list[str]:
        """Title and, where known, year: 'Fargo (1996)'."""
        pairs = zip(self.items["title"], self.items["year"], strict=True)
        return [str(title) if pd.isna(year) else f"{title} ({int(year)})" for title, year in pairs]

    def rank(self, profiles: csr_matrix, users: Sequence[str], n: int = 10) -> tuple[Lists, Scores, Components]:
        """Lists of up to n films outside each profile, with all scores and what they are made of.

        Popularity's own lists stay as they are: the strength of variety was chosen for lists that follow a taste.
        """
        components = self.blend.components(profiles)
        scores = self.blend.scores(profiles, components)
        ranking = Ranking.of(scores, profiles, users)
        lists = rerank(ranking, self.exploration, self.ratio, k=n, facts=self.catalogue, seed=self.seed)
        lists.items[components.fallback] = ranking.top(n)[components.fallback]
        lists.exploration[components.fallback] = False
        return lists, scores, components

    def recommend(
        self, profiles: csr_matrix, users: Sequence[str], n: int = 10, *, explain: bool = False
    ) -> pd.DataFrame:  # fmt: skip
        """One row a recommended film, users in the given order, columns :data:`COLUMNS`.

        ``score`` = (1 - alpha) content_score + alpha cf_score, except in a popularity_fallback list, where it is the
        normalised popularity and alpha is 0; variety moves places, not scores. A user whose profile leaves fewer than
        n films gets those. ``explain`` adds a column ``contributions``: the score split over its parts and the rated
        films that add most to each.

        Raises
        ------
        InputError : n < 1.
        """
        if n < 1:
            raise InputError(f"A list holds at least one film; got n = {n}.")
        n = min(n, len(self.items))
        blocks = [slice(start, start + BLOCK) for start in range(0, max(1, len(users)), BLOCK)]
        return pd.concat([self._block(profiles[b], users[b], n, explain) for b in blocks], ignore_index=True)

    def _block(self, profiles: csr_matrix, users: Sequence[str], n: int, explain: bool) -> pd.DataFrame:
        lists, scores, components = self.rank(profiles, users, n)
        row, place = np.nonzero(lists.items >= 0)
        item, explored = lists.items[row, place], lists.exploration[row, place]
        alpha = np.where(components.fallback, 0.0, components.alpha)
        base = [rung(a, f) for a, f in zip(alpha, components.fallback, strict=True)]
        films = self.items.iloc[item]
        frame = pd.DataFrame(
            {
                USER: np.asarray(users, dtype=object)[row], RANK: place + 1, ITEM: films[ITEM].to_numpy(),
                "title": [self.titles[i] for i in item], SCORE: scores[row, item], "alpha": alpha[row],
                "strategy": [f"exploration:{self.exploration}" if e else base[r]
                             for r, e in zip(row, explored, strict=True)],
                "is_exploration": explored, "content_score": components.content[row, item],
                "cf_score": components.cf[row, item],
                "tmdb_id": films["tmdb_id"].to_numpy(), "imdb_id": films["imdb_id"].to_numpy(),
            }
        )  # fmt: skip
        reasons: list[str] = []
        contributions: list[str] = []
        for r, (films_of, picks) in enumerate(zip(lists.items, lists.exploration, strict=True)):
            listed = films_of >= 0
            why = Reasons(
                self, profiles[r], components.content[r], components.cf[r], float(alpha[r]), base[r] == FALLBACK
            )
            reasons += why.sentences(films_of[listed], picks[listed])
            if explain:
                contributions += why.contributions(films_of[listed])
        frame = frame.assign(reason=reasons)[COLUMNS]
        return frame.assign(contributions=contributions) if explain else frame

    @property
    def cf_models(self) -> Mapping[str, Recommender]:
        """The collaborative models behind ``blend.cf``, by name."""
        cf = self.blend.cf
        return cf.parts if isinstance(cf, Mixture) else {cf.name: cf}

    @cached_property
    def linear(self) -> set[str]:
        """The collaborative models whose score of a profile is the sum of the scores of its ratings taken singly.

        EASE and item KNN without normalisation are; tested on a made-up profile, not assumed.
        """
        n = min(5, len(self.items))
        top = np.argsort(-self.catalogue.popularity, kind="stable")[:n]
        ratings = np.full(n, self.blend.content.liked, np.float32)
        probe = csr_matrix((ratings, (np.zeros(n, int), top)), shape=(1, len(self.items)))
        return {
            name
            for name, model in self.cf_models.items()
            if np.allclose(singly(model, probe).sum(axis=0), model.scores(probe)[0], atol=1e-4)
        }


def blend_from(choice: Mapping[str, Any], items: pd.DataFrame, has_billing_order: bool) -> Blend:
    """The blend, not yet fitted, that 06_alpha_curve chose and wrote to default.json.

    Parameters
    ----------
    choice : ``cf`` (a model's name), ``settings`` of it, ``curve``, and the ``content`` model's fields, cast and
        max_features
    """
    content = ContentModel(items, has_billing_order=has_billing_order, **choice["content"])
    cf = collaborative_from(choice["cf"], choice["settings"])
    return Blend(content, cf, AlphaCurve.from_json(choice["curve"]), MODELS["popularity"]())


def collaborative_from(name: str, settings: Mapping[str, Any]) -> Recommender:
    """A collaborative model, not yet fitted, from what 06_alpha_curve says of it."""
    model: Recommender = Mixture.from_json(settings) if name == Mixture.name else COLLABORATIVE[name](**settings)
    return model


def describe(choice: Mapping[str, Any]) -> str:
    """The collaborative part of a default.json in words.

    >>> describe({"cf": "mixture", "settings": {"parts": {"popularity": {}, "ease": {"reg": 5.0}}}})
    'mixture of popularity, ease (reg 5.0)'
    """
    if choice["cf"] == Mixture.name:
        parts = choice["settings"]["parts"].items()
        return "mixture of " + ", ".join(describe({"cf": name, "settings": own}) for name, own in parts)
    settings = ", ".join(f"{key} {value}" for key, value in choice["settings"].items() if key != "seed")
    return f"{choice['cf']} ({settings})" if settings else str(choice["cf"])


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
            f"{mean:.2f} your mean {predicted - mean:+.2f} by {counted(votes, 'neighbour')}"
            for predicted, votes in zip(films["predicted"], films["votes"], strict=True)
        ]
    return films, f"Films listed have {rule}. Predictions are on the scale {shown.lo:g}-{shown.hi:g}."


def singly(model: Recommender, profile: csr_matrix) -> Scores:
    """(n, I) scores of the n one-rating profiles that a profile (1, I) is made of."""
    n = profile.nnz
    return model.scores(csr_matrix((profile.data, profile.indices, np.arange(n + 1)), shape=(n, profile.shape[1])))


@dataclass(frozen=True)
class Reasons:
    """Why films were chosen for one user.

    Parameters
    ----------
    ladder : that chose them
    profile : (1, I) the user's ratings
    content, cf : (I,) the user's scores
    alpha, fallback : weight of ``cf``; whether the list is popularity's
    """

    ladder: Ladder
    profile: csr_matrix
    content: NDArray[np.float32]
    cf: NDArray[np.float32]
    alpha: float
    fallback: bool

    def sentences(self, items: NDArray[np.int32], explored: NDArray[np.bool_]) -> list[str]:
        """A sentence for each of n films."""
        if self.fallback:
            content, cf, popular = None, None, np.zeros(len(items), np.float32)
        else:
            parts = self.cf_parts(items)
            content, cf = self.content_by_film(items), self.cf_by_film(items, parts)
            popular = parts.get("popularity", (np.zeros(len(items), np.float32), None))[0]
        texts = []
        for column, (item, is_pick) in enumerate(zip(items.tolist(), explored.tolist(), strict=True)):
            if content is None:
                fits = f"{self._nothing_liked()} This is a popular {self.ladder.noun}: {self._raters(item)}."
            else:
                by_film = content[:, column], None if cf is None else cf[:, column]
                fits = self._blended(item, *by_film, float(popular[column]))
            texts.append(self._exploration(item, items[:column], fits) if is_pick else fits)
        return texts

    def contributions(self, items: NDArray[np.int32]) -> list[str]:
        """For each of n films: the parts of its score, each with the rated films that add most to it in percent."""
        if self.fallback:
            return ["popularity"] * len(items)
        content = (1 - self.alpha) * self.content[items], self.content_by_film(items)
        parts = {"content": content, **self.cf_parts(items)}
        return [
            " + ".join(f"{values[n]:.3f} {name}{self._films(shares, n)}" for name, (values, shares) in parts.items())
            for n in range(len(items))
        ]

    def _films(self, shares: Scores | None, column: int) -> str:
        """' (Fargo (1996) 31 %, ...)': the largest shares of a part, "" where there are none."""
        if shares is None:
            return ""
        own = shares[:, column]
        top = [place for place in np.argsort(-own, kind="stable")[:SHOWN_FILMS] if own[place] > 0]
        listed = ", ".join(f"{self._film(place)} {own[place] / own.sum():.0%}" for place in top)
        return f" ({listed})" if listed else ""

    def content_by_film(self, items: NDArray[np.int32]) -> Scores:
        """(R, n) share of each of R rated films in the content scores of n films; each column adds up to its score."""
        model = self.ladder.blend.content
        likes = np.where(self.profile.data >= model.liked, self.profile.data, 0).astype(np.float32)
        rated = model.vectors[self.profile.indices]
        length = float(np.linalg.norm(rated.T @ likes)) or 1.0
        shares: Scores = (rated @ model.vectors[items].T).toarray() * (likes[:, None] / length)
        return shares

    def cf_by_film(
        self, items: NDArray[np.int32], parts: dict[str, tuple[Scores, Scores | None]] | None = None
    ) -> Scores | None:  # fmt: skip
        """(R, n) share of each rating in what the linear collaborative models add; None where none is linear.

        Of a single model before normalising; of a mixture in parts of the score, popularity left out. ``parts``, what
        :meth:`cf_parts` gives, spares computing it again.
        """
        known = [(adds, shares) for adds, shares in (parts or self.cf_parts(items)).values() if shares is not None]
        if not isinstance(self.ladder.blend.cf, Mixture):
            return known[0][1] if known else None
        scale = [np.divide(adds, sums, where=sums > 0, out=np.zeros_like(adds))
                 for adds, sums in ((adds, shares.sum(axis=0)) for adds, shares in known)]  # fmt: skip
        return sum(shares * each for (_, shares), each in zip(known, scale, strict=True)) if known else None

    def cf_parts(self, items: NDArray[np.int32]) -> dict[str, tuple[Scores, Scores | None]]:
        """What each collaborative model adds to the scores of n films, and (R, n) the share of each rating in its own
        score before normalising, None where that is no sum over ratings.

        To films that nobody has rated all of it comes from ``content regression``, see :class:`Blend`.
        """
        ladder = self.ladder
        new = ladder.blend.new[items]
        if isinstance(ladder.blend.cf, Mixture):
            adds = {name: self.alpha * part[0, items] for name, part in ladder.blend.cf.portions(self.profile).items()}
        else:
            adds = {"collaborative": self.alpha * self.cf[items]}
        shares = [
            singly(model, self.profile)[:, items] if name in ladder.linear else None
            for name, model in ladder.cf_models.items()
        ]
        known = [(values * ~new, share) for values, share in zip(adds.values(), shares, strict=True)]
        inferred = {"content regression": (self.alpha * self.cf[items] * new, None)} if new.any() else {}
        return dict(zip(adds, known, strict=True)) | inferred

    def _blended(
        self, item: int, content: NDArray[np.float32], cf: NDArray[np.float32] | None, popular: float
    ) -> str:  # fmt: skip
        by_content, by_cf = (1 - self.alpha) * self.content[item], self.alpha * self.cf[item]
        if max(by_content, by_cf) == 0:
            return f"Nothing known links it to the {self.ladder.noun}s you liked; it fills the list."
        film = int(content.argmax())
        if self.ladder.blend.new[item]:
            shared = self._shared(film, item)
            like = (
                f": it shares {shared} with {self._film(film)}, which you rated {self._rating(film)}" if shared else ""
            )
            return f"Nobody has rated it yet; its score is what its kind has for you{like}."
        if by_content >= by_cf:
            return f"Shares {self._shared(film, item)} with {self._film(film)}, which you rated {self._rating(film)}."
        if popular > by_cf / 2:
            return f"Counts most that it is popular: {self._raters(item)}."
        if cf is None or cf.max() <= 0:
            place, n = self._cf_place(item)
            return f"By the pattern of your {self.profile.nnz} ratings it is number {place} of {n} {self.ladder.noun}s."
        film = int(cf.argmax())
        shared = self._shared(film, item)
        also = f"; it also shares {shared} with that {self.ladder.noun}" if shared else ""
        if self.profile.data[film] >= self.ladder.blend.content.liked:
            return f"Your rating of {self._rating(film)} for {self._film(film)} counts most towards it{also}."
        return f"That you know {self._film(film)}, which you rated {self._rating(film)}, counts most towards it{also}."

    def _exploration(self, item: int, above: NDArray[np.int32], fits: str) -> str:
        """Why a film stands in the list that the plain ranking would not show, after the films ``above``.

        ``fits`` says why it scores well, which matters to the strategies that re-rank the best.
        """
        strategy, mix = self.ladder.exploration, self.ladder.catalogue.mix
        if strategy in ("mmr", "dpp"):
            lengths = np.linalg.norm(mix[above], axis=1) * np.linalg.norm(mix[item])
            like = float((mix[above] @ mix[item] / np.where(lengths > 0, lengths, 1)).max(initial=0))
            return f"For variety: the {self.ladder.noun} above it nearest in genre is {like:.0%} like it. {fits}"
        if strategy in ("xquad", "calibration") and mix[item].any():
            mine = self.ladder.catalogue.profile_mix(self.profile)[0]
            here = mix[above].sum(axis=0) / max(mix[above].sum(), 1)
            genre = int(np.where(mix[item] > 0, mine - here, -np.inf).argmax())
            shares = f"{mine[genre]:.0%} of what you rated and {here[genre]:.0%} of the list above"
            return f"For variety: {self.ladder.catalogue.genre_names[genre]} is {shares}. {fits}"
        if strategy == "discount":
            return f"For variety, a less known {self.ladder.noun}: {self._raters(item)}. {fits}"
        if strategy.startswith("genre"):
            genres, names = self.ladder.catalogue.genres, self.ladder.catalogue.genre_names
            rated = np.asarray(genres[self.profile.indices].sum(axis=0)).ravel()
            new = [names[g] for g in genres[item].indices if rated[g] < FEW_RATINGS]
            rare = f"of which you have rated fewer than {FEW_RATINGS} {self.ladder.noun}s"
            return f"For variety: {_listed('genre', new)}, {rare}."
        if strategy.startswith("mid-rank"):
            return "For variety: drawn at random from the middle of your ranking."
        if strategy.startswith("popular"):
            return f"For variety, a popular {self.ladder.noun}: {self._raters(item)}."
        return f"For variety ({strategy})."

    def _nothing_liked(self) -> str:
        return "None of your ratings is a like." if self.profile.nnz else f"You have rated no {self.ladder.noun} yet."

    def _raters(self, item: int) -> str:
        popularity = self.ladder.catalogue.popularity
        place = int((popularity > popularity[item]).sum()) + 1
        return f"{popularity[item]} people rated it, place {place} of {len(popularity)}"

    def _cf_place(self, item: int) -> tuple[int, int]:
        others = np.delete(self.cf, self.profile.indices)
        return int((others > self.cf[item]).sum()) + 1, len(others)

    def _film(self, place: int) -> str:
        return self.ladder.titles[int(self.profile.indices[place])]

    def _rating(self, place: int) -> str:
        return f"{self.profile.data[place]:.3g}"

    def _shared(self, place: int, item: int) -> str:
        """The strongest metadata that a rated film and film ``item`` share, in words; "" for none."""
        model = self.ladder.blend.content
        both = model.vectors[self.profile.indices[place]].multiply(model.vectors[item]).tocsr()
        strongest = both.indices[np.lexsort([both.indices, -both.data])][:SHOWN_TOKENS]
        return in_words([str(model.tokens[t]) for t in strongest])


def in_words(tokens: Sequence[str]) -> str:
    """Typed tokens as a phrase; ids that are no names are counted.

    >>> in_words(["director:Joel_Coen", "genre:Crime", "actor:m.01", "genre:Drama", "actor:m.02"])
    'its director Joel Coen, the genres Crime and Drama and 2 actors'
    """
    kinds: dict[str, list[str]] = {}
    for token in tokens:
        kind, _, name = token.partition(":")
        kinds.setdefault(kind, []).append(name.replace("_", " "))
    return _and([_listed(kind, names) for kind, names in kinds.items()])


def _listed(kind: str, names: list[str]) -> str:
    noun = NOUNS.get(kind, kind)
    if kind == "overview":
        return "the words " + _and([f"“{name}”" for name in names])
    known = [name for name in names if not OPAQUE.fullmatch(name)]
    if kind == "director" and len(names) == 1:
        return " ".join(["its director", *known])
    if len(known) < len(names):
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" if len(names) == 1 else f"{len(names)} {noun}s"
    return f"the {noun}{'s' if len(names) > 1 else ''} {_and(known)}"


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
