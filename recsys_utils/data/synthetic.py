"""MovieLens-like data whose true parameters are known, so that a study can be checked against them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from recsys_utils.base import ITEM, RATING, TIMESTAMP, USER, InputError, child_rng


def _words(text: str) -> list[str]:
    return text.split()


_BLOCK = 1024  # users drawn at a time: bounds the dense (users, items) block of the selection step
_PAIRS = 2**22  # ratings whose expectation is computed at a time
_PEOPLE = 300  # directors, actors and writers at most, each: they are drawn from a dense block of films and people
_GENRES = _words("Action Adventure Animation Children's Comedy Crime Drama Fantasy Film-Noir Horror Romance Sci-Fi")
_ADJECTIVES = _words("Quiet Broken Silver Distant Burning Hidden Last Crimson Empty Golden Restless Frozen Lonely Wild")
_NOUNS = _words("Harbour Garden Signal Winter Mirror Orchard Empire Letter Bridge Station Island Promise Engine River")
_THEMES = _words(
    "revenge heist friendship space robot war family school island detective music dream monster journey "
    "trial inheritance wedding circus submarine election village boxing memory prison kitchen storm twins "
    "treasure"
)
_FILLER = _words("a story about young old people who must find their way before the night ends and nothing stays same")
_START = 874_700_000  # autumn 1997, like the oldest MovieLens set
_SPAN = 215 * 86_400  # seconds over which users arrive


@dataclass(frozen=True)
class Size:
    """How much to generate, and how strong the signal is.

    Parameters
    ----------
    users, items, ratings : counts; ratings is the expected total, every user has at least ``min_ratings``
    factors : latent dimensions of taste
    content_share : share of the variance of the films' factors that genres, keywords and people carry, 0-1
    taste : standard deviation of the taste part of a rating, in rating points
    noise : standard deviation of the noise added before rounding, in rating points
    seed : the data set is a constant: its seed is part of its name, not of the run
    mean, step : of the ratings, in rating points; they lie on step, 2 step, ... 5
    fame, quality : rating points a film gains with a unit of appeal; standard deviation of the rest of its bias
    activity : standard deviation of the log of the number a user rates beyond the minimum
    published : popularity as in MovieLens 25M, every film rated, the total exact; in time linear in the ratings
    prefix : of the user ids
    """

    users: int = 200
    items: int = 150
    ratings: int = 6_000
    min_ratings: int = 20
    factors: int = 3
    content_share: float = 0.9
    taste: float = 1.0
    noise: float = 0.4
    seed: int = 1997
    mean: float = 3.1
    step: float = 1.0
    fame: float = 0.25
    quality: float = 0.2
    activity: float = 1.0
    published: bool = False
    prefix: str = "smoke_"

    def part(self, share: float) -> Self:
        """The same data at a share of the users and ratings, and its square root of the films.

        >>> SCALE_25M.part(0.01).users, SCALE_25M.part(0.01).items
        (1625, 5905)
        """
        users, ratings = round(self.users * share), round(self.ratings * share)
        return replace(self, users=users, items=round(self.items * share**0.5), ratings=ratings)

    @property
    def error(self) -> float:
        """RMSE of someone who knows the truth: the noise, and what rounding adds, ``step^2 / 12`` in variance."""
        return float(np.hypot(self.noise, self.step / np.sqrt(12)))


SMOKE = Size()
SCALE_25M = Size(
    users=162_541, items=59_047, ratings=25_000_095, factors=2, content_share=0.3, taste=0.5, noise=0.75, mean=3.0,
    step=0.5, fame=0.1, quality=0.35, activity=1.35, published=True, prefix="gen_",
)  # fmt: skip
"""MovieLens 25M as published in counts of users, films and ratings, and like it in their distribution."""


@dataclass(frozen=True)
class Synthetic:
    """Generated tables and the parameters they were drawn from.

    Attributes
    ----------
    ratings : user_id, item_id, rating (integers 1-5 as float32), timestamp int64; ordered by time
    items : the columns of items.parquet, in natural order of item_id
    user_bias, item_bias : (U,), (I,) float64, rating points
    user_factors, item_factors : (U, K), (I, K) float64
    appeal : (I,) float64, log odds that a film is seen whatever a user's taste
    size : the parameters
    """

    ratings: pd.DataFrame
    items: pd.DataFrame
    user_bias: NDArray[np.float64]
    item_bias: NDArray[np.float64]
    user_factors: NDArray[np.float64]
    item_factors: NDArray[np.float64]
    appeal: NDArray[np.float64]
    size: Size

    def expected_at(self, user: NDArray[np.integer], item: NDArray[np.integer]) -> NDArray[np.float64]:
        """(N,) rating before noise, rounding and clipping, ``mean + b_u + b_i + p_u . q_i``, by user and film."""
        found = self.size.mean + self.user_bias[user] + self.item_bias[item]
        for start in range(0, len(user), _PAIRS):
            u, i = user[start : start + _PAIRS], item[start : start + _PAIRS]
            found[start : start + _PAIRS] += (self.user_factors[u] * self.item_factors[i]).sum(axis=1)
        return np.asarray(found)

    def truth(self) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        """What estimates are compared with: a table per user, a table per film, the parameters."""
        users = pd.DataFrame({USER: _user_ids(self.size), "bias": self.user_bias, "factors": list(self.user_factors)})
        items = pd.DataFrame(
            {ITEM: self.items[ITEM], "bias": self.item_bias, "appeal": self.appeal, "factors": list(self.item_factors)}
        )
        return users, items, asdict(self.size) | {"error": self.size.error}


def generate(size: Size = SMOKE) -> Synthetic:
    """Draw a data set: films with content, users with taste, who sees what, what they think of it, and when.

    A film's factors are the sum of what its genres, keywords, directors, actors and writers stand for
    (``content_share`` of the variance) and a part of its own. A rating is
    ``mean + b_u + b_i + p_u . q_i + noise``, rounded and clipped to the scale. Whether a film is seen depends on its
    appeal (long-tailed) and on the user's taste for it, so unrated is not missing at random. Users come in
    sessions seconds apart, and begin with films everybody knows.

    Raises
    ------
    InputError : the counts contradict each other.

    >>> data = generate(Size(users=30, items=60, ratings=700))
    >>> int(data.ratings.groupby("user_id").size().min())
    20
    """
    if not size.min_ratings * size.users <= size.ratings <= 0.6 * size.items * size.users:
        raise InputError(
            f"{size.users} users with at least {size.min_ratings} ratings each and {size.items} films can't give "
            f"{size.ratings} ratings; ask for {size.min_ratings * size.users}-{int(0.6 * size.items * size.users)}."
        )
    items, content = _films(size)
    rng = child_rng(size.seed, "truth")
    own = rng.standard_normal(content.shape)
    item_factors = np.sqrt(size.content_share) * content + np.sqrt(1 - size.content_share) * own
    user_factors = rng.standard_normal((size.users, size.factors)) * size.taste / np.sqrt(size.factors)
    appeal = _published_appeal(size.items, rng) if size.published else 0.8 * rng.standard_normal(size.items)
    # popular films are better liked
    item_bias = size.fame * appeal + size.quality * rng.standard_normal(size.items)
    user_bias = 0.35 * rng.standard_normal(size.users)

    select = _published_selection if size.published else _selection
    seen_user, seen_item = select(size, appeal, user_factors, item_factors)
    made = Synthetic(pd.DataFrame(), items, user_bias, item_bias, user_factors, item_factors, appeal, size)
    rating = made.expected_at(seen_user, seen_item)
    rating += size.noise * child_rng(size.seed, "noise").standard_normal(len(rating))
    rating = size.step * np.clip(np.rint(rating / size.step), 1, round(5 / size.step))
    stamp = _times(size, seen_user, appeal[seen_item])
    order = np.argsort(stamp, kind="stable")
    ids = {USER: (_user_ids(size), seen_user), ITEM: (items[ITEM], seen_item)}
    columns = {name: pd.Series(known, dtype="str").array.take(place[order]) for name, (known, place) in ids.items()}
    columns |= {RATING: rating[order].astype(np.float32), TIMESTAMP: stamp[order]}
    return replace(made, ratings=pd.DataFrame(columns))


def _user_ids(size: Size) -> list[str]:
    return [f"{size.prefix}{i + 1}" for i in range(size.users)]


def _films(size: Size) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Films with titles, years, genres, keywords and people, and (I, K) factors their content stands for."""
    rng = child_rng(size.seed, "films")
    n = size.items
    # entity kind: how many exist, how many a film has (at least 1), weight of the kind in the film's factors
    kinds = {
        "genres": (_GENRES, 2, 1.5),
        "keywords": (_THEMES, 3, 0.8),
        "directors": ([f"Director {i + 1}" for i in range(min(max(6, n // 10), _PEOPLE))], 1, 1.2),
        "actors": ([f"Actor {i + 1}" for i in range(min(max(12, n // 3), _PEOPLE))], 4, 0.4),
        "writers": ([f"Writer {i + 1}" for i in range(min(max(8, n // 5), _PEOPLE))], 1, 0.4),
    }
    columns: dict[str, list[list[str]]] = {}
    content = np.zeros((n, size.factors))
    for kind, (names, per_film, weight) in kinds.items():
        meaning = rng.standard_normal((len(names), size.factors))
        # people and themes are long-tailed: a few are in many films
        share = 1 / np.arange(3, len(names) + 3)
        keys = np.log(share) + rng.gumbel(size=(n, len(names)))
        count = 1 + rng.binomial(per_film - 1, 0.7, size=n)
        chosen = [np.argsort(-keys[i])[: count[i]] for i in range(n)]
        columns[kind] = [[names[j] for j in row] for row in chosen]
        content += weight * np.array([meaning[row].mean(axis=0) * np.sqrt(len(row)) for row in chosen])
    content = (content - content.mean(axis=0)) / content.std(axis=0)
    years = rng.integers(1950, 1999, size=n)
    overviews = []
    for words in columns["keywords"]:
        text = [*rng.choice(_FILLER, size=6), *words, *rng.choice(_FILLER, size=4)]
        overviews.append(" ".join(text).capitalize() + ".")
    items = pd.DataFrame(
        {
            ITEM: [str(i + 1) for i in range(n)],
            "title": [_title(i) for i in range(n)],
            "year": pd.array(years, dtype="Int64"),
            **columns,
            "overview": overviews,
        }
    )
    return items, content


def _title(i: int) -> str:
    """A distinct title in MovieLens' style; every third has its article behind a comma."""
    round_, place = divmod(i, len(_ADJECTIVES) * len(_NOUNS))
    adjective, noun = divmod(place, len(_NOUNS))
    # walking along the diagonals keeps neighbours in the catalogue from sharing a word
    text = f"{_ADJECTIVES[(adjective + noun) % len(_ADJECTIVES)]} {_NOUNS[noun]}"
    if round_:
        text += f" {round_ + 1}"
    return f"{text}, The" if i % 3 == 0 else text


def _selection(
    size: Size, appeal: NDArray[np.float64], user_factors: NDArray[np.float64], item_factors: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Who saw what: each user draws films without replacement, odds = exp(appeal + taste) (Gumbel top-k)."""
    rng = child_rng(size.seed, "selection")
    extra = rng.lognormal(sigma=1.0, size=size.users)
    extra *= (size.ratings - size.min_ratings * size.users) / extra.sum()
    counts = np.minimum(size.min_ratings + np.rint(extra).astype(np.int64), int(0.8 * size.items))
    users, items = [], []
    for start in range(0, size.users, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, size.users))
        odds = appeal + user_factors[block] @ item_factors.T + rng.gumbel(size=(len(block), size.items))
        order = np.argsort(-odds, axis=1)
        for row, user in enumerate(block):
            users.append(np.full(counts[user], user))
            items.append(np.sort(order[row, : counts[user]]))
    return np.concatenate(users), np.concatenate(items)


def _published_appeal(items: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(I,) log odds whose ranks fall like 1 / rank from a flat top, and faster in the tail, in random order."""
    rank = rng.permutation(items)
    appeal = -np.log(rank + items / 600) - 6.5 * rank / items
    return np.asarray(appeal - appeal.mean())


def _published_selection(
    size: Size, appeal: NDArray[np.float64], user_factors: NDArray[np.float64], item_factors: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Like :func:`_selection` in time linear in the ratings; a first user for every film, and exactly ``ratings``."""
    rng = child_rng(size.seed, "selection")
    extra = rng.lognormal(sigma=size.activity, size=size.users)
    extra *= (size.ratings - size.min_ratings * size.users) / extra.sum()
    counts = size.min_ratings + np.minimum(extra, 0.5 * size.items).astype(np.int64)
    counts += (size.ratings - counts.sum()) // size.users
    counts[: size.ratings - counts.sum()] += 1
    items = _draw(counts, np.cumsum(np.exp(appeal)), user_factors, item_factors, rng)
    return np.repeat(np.arange(size.users), counts), items


@njit(cache=True)
def _draw(counts, edges, user_factors, item_factors, rng):  # type: ignore[no-untyped-def]
    """Films without repetition per user, the odds those of ``edges`` times 1 / (1 + exp(-2 taste))."""
    item, seen, place = np.empty(counts.sum(), np.int64), np.full(len(edges), -1), 0
    for u in range(len(counts)):
        end = place + counts[u]
        for i in range(u, len(edges), len(counts)):
            seen[i], item[place], place = u, i, place + 1
        while place < end:
            i = min(np.searchsorted(edges, rng.random() * edges[-1]), len(edges) - 1)
            if seen[i] != u and rng.random() * (1 + np.exp(-2 * np.dot(user_factors[u], item_factors[i]))) < 1:
                seen[i], item[place], place = u, i, place + 1
    return item


def _times(size: Size, user: NDArray[np.int64], appeal: NDArray[np.float64]) -> NDArray[np.int64]:
    """Seconds since 1970: users arrive over months, rate in sessions days apart, a rating every few seconds or at once.

    A user's first ratings tend to be well-known films, as on a site that shows those first.
    """
    rng = child_rng(size.seed, "times")
    arrival = _START + rng.integers(0, _SPAN, size=size.users)
    sessions = 1 + rng.poisson(0.4, size=size.users)
    order = np.lexsort((rng.gumbel(size=len(user)) - appeal, user))
    first = np.flatnonzero(np.r_[True, user[order][1:] != user[order][:-1]])
    number = np.arange(len(user)) - np.repeat(first, np.diff(np.r_[first, len(user)]))
    total = np.bincount(user, minlength=size.users)[user[order]]
    session = number * sessions[user[order]] // total
    step = rng.choice([0, 7, 20, 45], p=[0.35, 0.3, 0.25, 0.1], size=len(user))  # ties are common on such sites
    pause = np.zeros(len(user), np.int64)
    begins = (number > 0) & (session != np.r_[-1, session[:-1]])
    pause[begins] = 86_400 * rng.integers(2, 30, size=int(begins.sum()))
    elapsed = np.cumsum(step + pause)
    stamps = np.empty(len(user), np.int64)
    stamps[order] = arrival[user[order]] + elapsed - np.repeat(elapsed[first], np.diff(np.r_[first, len(user)]))
    return stamps
