"""Trading accuracy for diversity: strategies that give part of a ranked list to exploration, or re-rank its head.

Three *classic* strategies replace the last ``int(k * ratio)`` slots of a list of k items:

- ``genre``: random items from positions .5N-.8N of the N ranked candidates with a genre the user has rated fewer than
  twice. The classic code counts genres over the profile, so it misses genres that the user never rated.
- ``mid-rank``: random items from those positions.
- ``popular``: the most popular items outside the profile.

``int(10 * .05)`` is 0: a short list gets no exploration at a low ratio. The *repaired* variants (``-repaired``)
give every list at least one pick at a ratio above 0, and count genres never rated as new.

The *re-rankers* choose the list from the :data:`POOL` best items, slot by slot, each time the item i with the largest

    (1 - lambda) relevance(i) + lambda value(i | items chosen so far)

where relevance is the score, min-max scaled over the pool, and value is that of the rule:

- ``mmr``: minus the largest genre cosine to a chosen item (Carbonell & Goldstein 1998)
- ``xquad``: sum over genres g of p(g | profile) p(g | i) prod over chosen j of (1 - p(g | j)) (Santos et al. 2010;
  Vargas et al. 2011 for genres)
- ``calibration``: minus KL(p || q~) of the profile's genre mix p from that of the list with i, smoothed with .01
  (Steck 2018), by his greedy algorithm
- ``dpp``: log of the factor by which i raises the determinant of the chosen items' similarity matrix: the greedy
  maximum a posteriori of a determinantal point process (Chen et al. 2018)
- ``discount``: minus log(1 + popularity), divided by its maximum

An item counts as exploration where the plain ranking does not list it. A new strategy joins :data:`STRATEGIES` with
the signature of :class:`Strategy`. :func:`exposure_slot` is not among them: it depends on what other users were shown,
so it works for batches only.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import InputError, Scores, child_seed
from recsys_utils.evaluation.metrics import genre_matrix, pattern
from recsys_utils.ranking.hybrid import candidates, normalise, ranked

Floats = NDArray[np.float64]
Items = NDArray[np.int32]

MID_RANK = (0.5, 0.8)  # the part of the ranking that classic exploration draws from
FEW_RATINGS = 2  # a genre with fewer ratings than this is new to the user
POOL = 100  # best items of a ranking that re-rankers choose from
SMOOTHING = 0.01  # share of the profile's genre mix in that of the list, so that no genre has a share of 0
SAME_GENRES = 0.9  # similarity of two items of the same genres in ``dpp``; at 1 the second could never be listed
TINY = 1e-12
LAST = np.uint64(2**64 - 1)  # priority of what can't be picked


class Lists(NamedTuple):
    """(B, k) int32 item positions, -1 after the end of a short list; (B, k) True where the plain ranking lacks them."""

    items: Items
    exploration: NDArray[np.bool_]

    @classmethod
    def of(cls, items: Items, plain: Items) -> Lists:
        """Compare lists with the plain ones, (B, k) each."""
        return cls(items, (items >= 0) & ~(items[:, :, None] == plain[:, None, :]).any(axis=2))


@dataclass(frozen=True)
class ItemFacts:
    """What strategies know about the items.

    Parameters
    ----------
    genres : (I, G) csr, 1 where the item has the genre
    popularity : (I,) number of training ratings
    """

    genres: csr_matrix
    popularity: NDArray[np.int64]

    @classmethod
    def of(cls, items: pd.DataFrame, popularity: NDArray[np.int64]) -> ItemFacts:
        """From the item table (column ``genres``: a list each) and the number of training ratings of each."""
        return cls(genre_matrix(items["genres"].tolist())[0], popularity)

    @cached_property
    def mix(self) -> Floats:
        """(I, G) each item spread evenly over its genres; a row of zeros without any."""
        genres = self.genres.toarray().astype(np.float64)
        return np.asarray(genres / np.maximum(genres.sum(axis=1, keepdims=True), 1))

    def profile_mix(self, profiles: csr_matrix) -> Floats:
        """(B, G) mean genre mix of the rated items that have genres; a row of zeros without any."""
        total = np.asarray(pattern(profiles) @ self.mix)
        return np.asarray(total / np.maximum(total.sum(axis=1, keepdims=True), 1))


@dataclass(frozen=True)
class Ranking:
    """Candidates of B users, best first.

    Parameters
    ----------
    users : (B,) user ids; they seed the random picks, so a list does not depend on who else is in the block
    profiles : (B, I) csr ratings
    order : (B, I) int32 candidates by falling score, ties to the lower position, then -1
    size : (B,) int64 number of candidates, N
    relevance : (B, <= POOL) float64, scores of the first positions, min-max scaled over them; .5 where all are equal
    """

    users: Sequence[str]
    profiles: csr_matrix
    order: Items
    size: NDArray[np.int64]
    relevance: Floats

    @classmethod
    def of(cls, scores: Scores, profiles: csr_matrix, users: Sequence[str]) -> Ranking:
        """Rank the catalogue minus the profile. The full order costs O(I log I) time and 12 I bytes a user.

        >>> profiles = csr_matrix([[0.0, 5.0, 0.0, 0.0]])
        >>> Ranking.of(np.array([[1, 9, 3, 1]], np.float32), profiles, ["a"]).order.tolist()
        [[2, 0, 3, -1]]
        """
        free = candidates(profiles)
        order = ranked(scores, free).astype(np.int32)
        size = free.sum(axis=1)
        order[np.arange(scores.shape[1]) >= size[:, None]] = -1
        head = order[:, :POOL]
        relevance = normalise(np.take_along_axis(scores, head, axis=1), head >= 0).astype(np.float64)
        return cls(users, profiles, order, size, relevance)

    def top(self, k: int) -> Items:
        """(B, k) the first k positions, padded with -1 when k exceeds the facts."""
        head = self.order[:, :k]
        return np.pad(head, ((0, 0), (0, k - head.shape[1])), constant_values=-1)

    @cached_property
    def middle(self) -> NDArray[np.bool_]:
        """(B, I) True for the items at positions int(low N) to int(high N) of :data:`MID_RANK`, the first included."""
        low, high = ((self.size * share).astype(int)[:, None] for share in MID_RANK)
        position = np.arange(self.order.shape[1])
        row, column = np.nonzero((low <= position) & (position < high))
        found = np.zeros(self.order.shape, bool)
        found[row, self.order[row, column]] = True
        return found


class Strategy(Protocol):
    """From a ranking to (B, k) items.

    ``ratio`` in [0, 1] is how far the strategy may depart from the ranking: the share of the slots (classic) or the
    weight lambda (re-rankers).
    """

    def __call__(self, ranking: Ranking, ratio: float, *, k: int, facts: ItemFacts, seed: int) -> Items: ...


def variant(strategy: str, ratio: float) -> str:
    """The name of a strategy at a ratio in metrics.csv.

    >>> variant("genre-repaired", 0.15), variant("mmr", 0.3)
    ('diversity=genre-repaired;ratio=0.15', 'diversity=mmr;lambda=0.3')
    """
    return f"diversity={strategy};{'lambda' if strategy in (*RULES, EXPOSURE) else 'ratio'}={ratio:g}"


def slots(k: int, ratio: float, *, repaired: bool = False) -> int:
    """How many of k slots go to exploration: int(k ratio); repaired: at least one when ratio > 0.

    >>> slots(10, 0.05), slots(10, 0.05, repaired=True), slots(10, 0.25), slots(10, 0, repaired=True)
    (0, 1, 2, 0)
    """
    return max(int(k * ratio), int(repaired and ratio > 0))


def rerank(ranking: Ranking, strategy: str, ratio: float, *, k: int = 10, facts: ItemFacts, seed: int = 0) -> Lists:
    """Lists of length k under a strategy of :data:`STRATEGIES`; ``strategy="none"`` is the plain ranking.

    Random picks depend on ``seed``, the user's id and the item's index only.

    Raises
    ------
    InputError : the strategy is unknown, or the ratio is outside [0, 1].

    Examples
    --------
    >>> facts = ItemFacts(csr_matrix(np.ones((6, 1))), np.array([9, 1, 1, 1, 8, 2]))
    >>> ranking = Ranking.of(np.array([[6, 5, 4, 3, 2, 1]], np.float32), csr_matrix((1, 6)), ["a"])
    >>> lists = rerank(ranking, "popular", 0.5, k=4, facts=facts)
    >>> lists.items.tolist(), lists.exploration.tolist()
    ([[0, 1, 4, 5]], [[False, False, True, True]])
    """
    if strategy not in STRATEGIES:
        raise InputError(f"There is no diversity strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}.")
    if not 0 <= ratio <= 1:
        raise InputError(f"The diversity ratio is a share or a weight, from 0 to 1; got {ratio:g}.")
    return Lists.of(STRATEGIES[strategy](ranking, ratio, k=k, facts=facts, seed=seed), ranking.top(k))


# ---- classic strategies


def _none(ranking: Ranking, ratio: float, *, k: int, facts: ItemFacts, seed: int) -> Items:
    return ranking.top(k)


def _classic(ranking: Ranking, ratio: float, *, k: int, facts: ItemFacts, seed: int, name: str) -> Items:
    """The last slots go to eligible items in a random order, or by popularity."""
    repaired = name.endswith("-repaired")
    if name.startswith("popular"):
        eligible = candidates(ranking.profiles)
        priority = np.argsort(np.argsort(-facts.popularity, kind="stable")).astype(np.uint64)
    else:
        eligible = ranking.middle
        priority = _dice(tuple(ranking.users), len(facts.popularity), seed)
    if name.startswith("genre"):
        counts = (pattern(ranking.profiles) @ facts.genres).toarray()
        new_genre = (counts < FEW_RATINGS) & ((counts > 0) | repaired)
        eligible = eligible & ((facts.genres @ new_genre.T.astype(np.float32)).T > 0)
    key = np.where(eligible, priority, LAST)
    return _replace_last(ranking.top(k), slots(k, ratio, repaired=repaired), key)


def _replace_last(top: Items, m: int, key: NDArray[np.uint64]) -> Items:
    """Give the last m slots to the items of lowest key that the slots before do not hold; none with key LAST.

    Where fewer than m items are eligible the ranking keeps its items, and the picks are at the very end.
    """
    if m == 0:
        return top
    lists, start = top.copy(), top.shape[1] - m
    row, column = np.nonzero(top[:, :start] >= 0)
    key[row, top[row, column]] = LAST
    first = np.argpartition(key, range(min(m, key.shape[1])), axis=1)[:, :m]
    for mine, picks, keys in zip(lists[:, start:], first.tolist(), np.take_along_axis(key, first, axis=1), strict=True):
        picks = picks[: np.count_nonzero(keys < LAST)]
        stays = [item for item in mine.tolist() if item >= 0 and item not in picks][: m - len(picks)]
        mine[:] = [*stays, *picks, *[-1] * m][:m]
    return lists


@lru_cache(maxsize=1)  # the random strategies share it
def _dice(users: tuple[str, ...], n_items: int, seed: int) -> NDArray[np.uint64]:
    """(B, I) random priorities: a hash (splitmix64, Steele et al. 2014) of seed, user id and item."""
    user = np.array([child_seed(seed, "diversity", name) for name in users]).astype(np.uint64)
    z = ((user[:, None] << np.uint64(32)) | np.arange(n_items).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


# ---- re-rankers


Rule = Callable[[Floats, Floats, Floats], Generator[Floats, NDArray[np.intp], None]]
"""Of the M best items of B users: (B, M, G) genre mixes, the profiles' (B, G), (B, M) log(1 + popularity) in [0, 1].

Yields the (B, M) values of the items as the next one; is sent the positions (B,) of the items chosen. What pads a pool
(-1) is never chosen.
"""


def _mmr(items: Floats, wanted: Floats, fame: Floats) -> Generator[Floats, NDArray[np.intp], None]:
    items, nearest = _unit(items), np.zeros(fame.shape)
    while True:
        chosen = yield -nearest
        nearest = np.maximum(nearest, _overlap(items, _at(items, chosen)))


def _xquad(items: Floats, wanted: Floats, fame: Floats) -> Generator[Floats, NDArray[np.intp], None]:
    while True:
        chosen = yield _overlap(items, wanted)
        wanted = wanted * (1 - _at(items, chosen))  # what is not covered yet


def _calibration(items: Floats, wanted: Floats, fame: Floats) -> Generator[Floats, NDArray[np.intp], None]:
    given, share = np.zeros_like(wanted), wanted[:, None, :]
    while True:
        mix = given[:, None, :] + items
        smooth = (1 - SMOOTHING) * (mix / np.maximum(mix.sum(axis=2, keepdims=True), 1)) + SMOOTHING * share
        # sum p log q~ is -KL but for sum p log p, which no choice changes
        chosen = yield _overlap(np.log(np.where(share > 0, smooth, 1)), wanted)
        given = given + _at(items, chosen)


def _dpp(items: Floats, wanted: Floats, fame: Floats) -> Generator[Floats, NDArray[np.intp], None]:
    items, left = _unit(items), np.ones(fame.shape)  # squared distance of each item from the span of the chosen ones
    factors: list[Floats] = []  # (B, M) rows of the Cholesky factor, one for each chosen item
    while True:
        chosen = yield np.log(np.maximum(left, TINY))
        similar = SAME_GENRES * _overlap(items, _at(items, chosen))
        np.put_along_axis(similar, chosen[:, None], 1, axis=1)
        for factor in factors:
            similar -= factor * _at(factor, chosen)[:, None]
        factors.append(similar / np.sqrt(np.maximum(_at(left, chosen), TINY))[:, None])
        left = left - factors[-1] ** 2


def _discount(items: Floats, wanted: Floats, fame: Floats) -> Generator[Floats, NDArray[np.intp], None]:
    while True:
        yield -fame


def _at(values: NDArray[Any], chosen: NDArray[np.intp]) -> NDArray[Any]:
    """The entry of each user's chosen item."""
    return values[np.arange(len(chosen)), chosen]


def _overlap(items: Floats, other: Floats) -> Floats:
    """(B, M) inner products of (B, M, G) with (B, G)."""
    return np.asarray(np.einsum("bmg,bg->bm", items, other))


def _unit(items: Floats) -> Floats:
    norm = np.sqrt(np.square(items).sum(axis=2, keepdims=True))
    return np.asarray(items / np.where(norm > 0, norm, 1))


RULES: dict[str, Rule] = {"mmr": _mmr, "xquad": _xquad, "calibration": _calibration, "dpp": _dpp, "discount": _discount}
EXPOSURE = "exposure"  # the strategy of exposure_slot
GENRE_BASED = ("genre", "genre-repaired", "mmr", "xquad", "calibration", "dpp")  # need a catalogue with genres


def _greedy(ranking: Ranking, ratio: float, *, k: int, facts: ItemFacts, seed: int, rule: Rule) -> Items:
    """Slot by slot the best item of the pool, ties by the ranking; items after the pool keep their order."""
    pool = ranking.order[:, : ranking.relevance.shape[1]]
    fame = np.log1p(facts.popularity) / max(np.log1p(facts.popularity.max()), 1.0)
    values = rule(facts.mix[pool], facts.profile_mix(ranking.profiles), fame[pool])
    value, free, lists = next(values), pool >= 0, ranking.top(k).copy()
    for slot in range(min(k, pool.shape[1])):
        gain = (1 - ratio) * ranking.relevance + ratio * value
        chosen = np.where(free, gain, -np.inf).argmax(axis=1)
        lists[:, slot] = np.where(_at(free, chosen), _at(pool, chosen), -1)
        np.put_along_axis(free, chosen[:, None], False, axis=1)
        value = values.send(chosen)
    return lists


CLASSIC = ("genre", "genre-repaired", "mid-rank", "mid-rank-repaired", "popular", "popular-repaired")
STRATEGIES: dict[str, Strategy] = {"none": _none}
STRATEGIES |= {name: partial(_classic, name=name) for name in CLASSIC}  # ``ratio`` is a share of slots
STRATEGIES |= {name: partial(_greedy, rule=rule) for name, rule in RULES.items()}


def exposure_slot(ranking: Ranking, ratio: float, shown: NDArray[np.int64], *, k: int = 10) -> Lists:
    """Lists whose last slot goes to an item of the pool that few users before were shown. For batches only.

    The item i of the rest of the pool with the largest (1 - lambda) relevance(i) + lambda / (1 + shown(i)); users in
    the order of the ranking.

    Parameters
    ----------
    ratio : lambda, in [0, 1]
    shown : (I,) how many lists hold each item so far; updated here, so that blocks of users can follow each other

    >>> ranking = Ranking.of(np.array([[3, 2, 1, 0]] * 2, np.float32), csr_matrix((2, 4)), ["a", "b"])
    >>> exposure_slot(ranking, 0.9, np.zeros(4, np.int64), k=2).items.tolist()
    [[0, 1], [0, 2]]
    """
    lists, pools = ranking.top(k).copy(), ranking.order[:, : ranking.relevance.shape[1]]
    for mine, pool, relevance in zip(lists, pools, ranking.relevance, strict=True):
        shown[mine[: k - 1][mine[: k - 1] >= 0]] += 1
        rest = pool[k - 1 :][pool[k - 1 :] >= 0]
        if rest.size:
            gain = (1 - ratio) * relevance[k - 1 :][: rest.size] + ratio / (1 + shown[rest])
            mine[k - 1] = rest[gain.argmax()]
            shown[mine[k - 1]] += 1
    return Lists.of(lists, ranking.top(k))
