"""Trading accuracy for variety: strategies that give part of a ranked list to exploration.

Three *classic* strategies replace the last ``int(k * ratio)`` places of a list:

- ``genre``: random films from positions .5N-.8N of the N ranked candidates that carry a genre the user has rated fewer
  than twice. The classic code counts genres over the profile, so a genre never rated is in no counter and is missed.
- ``mid-rank``: random films from those positions.
- ``popular``: the most popular films outside the profile.

``int(10 * .05)`` is 0: a short list gets no exploration at a low ratio. The *repaired* variants (``-repaired``)
give every list at least one pick at a ratio above 0, and count genres never rated as new.

A further strategy joins :data:`STRATEGIES` with the signature of :class:`Strategy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.blend import candidates
from recsys_utils.interfaces import InputError, Scores, child_seed
from recsys_utils.metrics import genre_matrix

MID_RANK = (0.5, 0.8)  # the stretch of the ranking that classic exploration draws from
FEW_RATINGS = 2  # a genre with fewer ratings than this is new to the user


class Lists(NamedTuple):
    """(B, k) int32 item positions, -1 after the end of a short list, and (B, k) bool marking the exploration picks."""

    items: NDArray[np.int32]
    exploration: NDArray[np.bool_]


@dataclass(frozen=True)
class Catalogue:
    """What strategies know of the films.

    Parameters
    ----------
    genres : (I, G) csr, 1 where the film has the genre
    genre_names : its G columns
    popularity : (I,) number of training ratings
    """

    genres: csr_matrix
    genre_names: list[str]
    popularity: NDArray[np.int64]

    @classmethod
    def of(cls, items: pd.DataFrame, popularity: NDArray[np.int64]) -> Catalogue:
        """From the item table (column ``genres``: a list each) and the number of training ratings of each film."""
        return cls(*genre_matrix(items["genres"].tolist()), popularity)


@dataclass(frozen=True)
class Ranking:
    """Candidates of B users, best first.

    Parameters
    ----------
    users : (B,) user ids; they seed the random picks, so a list does not depend on who else is in the block
    profiles : (B, I) csr ratings
    order : (B, I) int32 candidates by falling score, ties to the lower position, then -1
    size : (B,) int64 number of candidates, N
    """

    users: Sequence[str]
    profiles: csr_matrix
    order: NDArray[np.int32]
    size: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Scores, profiles: csr_matrix, users: Sequence[str]) -> Ranking:
        """Rank the catalogue minus the profile. The full order costs O(I log I) time and 12 I bytes a user.

        >>> profiles = csr_matrix([[0.0, 5.0, 0.0, 0.0]])
        >>> Ranking.of(np.array([[1, 9, 3, 1]], np.float32), profiles, ["a"]).order.tolist()
        [[2, 0, 3, -1]]
        """
        free = candidates(profiles)
        order = np.argsort(np.where(free, -scores, np.inf), axis=1, kind="stable").astype(np.int32)
        size = free.sum(axis=1)
        order[np.arange(scores.shape[1]) >= size[:, None]] = -1
        return cls(users, profiles, order, size)

    def top(self, k: int) -> NDArray[np.int32]:
        """(B, k) the first k places, padded with -1 when k exceeds the catalogue."""
        head = self.order[:, :k]
        return np.pad(head, ((0, 0), (0, k - head.shape[1])), constant_values=-1)

    def between(self, low: float, high: float) -> NDArray[np.bool_]:
        """(B, I) True for the films at places int(low N) to int(high N) of the ranking, the first included."""
        place = np.arange(self.order.shape[1])
        inside = (place >= (self.size * low).astype(int)[:, None]) & (place < (self.size * high).astype(int)[:, None])
        row, column = np.nonzero(inside)
        found = np.zeros(self.order.shape, bool)
        found[row, self.order[row, column]] = True
        return found


class Strategy(Protocol):
    """From a ranking to lists of length k; ``ratio`` in [0, 1] is how far the strategy may depart from the ranking."""

    def __call__(self, ranking: Ranking, ratio: float, *, k: int, catalogue: Catalogue, seed: int) -> Lists: ...


def variant(strategy: str, ratio: float) -> str:
    """The name of a strategy at a ratio in metrics.csv.

    >>> variant("genre-repaired", 0.15)
    'diversity=genre-repaired;ratio=0.15'
    """
    return f"diversity={strategy};ratio={ratio:g}"


def places(k: int, ratio: float, *, repaired: bool = False) -> int:
    """How many of k places go to exploration: int(k ratio); repaired: at least one when ratio > 0.

    >>> places(10, 0.05), places(10, 0.05, repaired=True), places(10, 0.25), places(10, 0, repaired=True)
    (0, 1, 2, 0)
    """
    return max(int(k * ratio), int(repaired and ratio > 0))


def rerank(ranking: Ranking, strategy: str, ratio: float, *, k: int = 10, catalogue: Catalogue, seed: int = 0) -> Lists:
    """Lists of length k under a strategy of :data:`STRATEGIES`; ``strategy="none"`` is the plain ranking.

    Random picks depend on ``seed``, the user's id and the film's position only.

    Raises
    ------
    InputError : the strategy is unknown, or the ratio is outside [0, 1].

    Examples
    --------
    >>> films = Catalogue(csr_matrix(np.ones((6, 1))), ["Drama"], np.array([9, 1, 1, 1, 8, 2]))
    >>> ranking = Ranking.of(np.array([[6, 5, 4, 3, 2, 1]], np.float32), csr_matrix((1, 6)), ["a"])
    >>> lists = rerank(ranking, "popular", 0.5, k=4, catalogue=films)
    >>> lists.items.tolist(), lists.exploration.tolist()
    ([[0, 1, 4, 5]], [[False, False, True, True]])
    """
    if strategy not in STRATEGIES:
        raise InputError(f"There is no diversity strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}.")
    if not 0 <= ratio <= 1:
        raise InputError(f"The diversity ratio is a share of the list, from 0 to 1; got {ratio:g}.")
    return STRATEGIES[strategy](ranking, ratio, k=k, catalogue=catalogue, seed=seed)


# ---- the strategies


def _none(ranking: Ranking, ratio: float, *, k: int, catalogue: Catalogue, seed: int) -> Lists:
    top = ranking.top(k)
    return Lists(top, np.zeros(top.shape, bool))


def _genre(ranking: Ranking, ratio: float, *, k: int, catalogue: Catalogue, seed: int, repaired: bool) -> Lists:
    counts = (~candidates(ranking.profiles)).astype(np.float32) @ catalogue.genres
    new_genre = (counts < FEW_RATINGS) & ((counts > 0) | repaired)
    has_new_genre = (catalogue.genres @ new_genre.T.astype(np.float32)).T > 0
    eligible = ranking.between(*MID_RANK) & has_new_genre
    return _replace_last(ranking, k, places(k, ratio, repaired=repaired), eligible, _dice(ranking, seed))


def _mid_rank(ranking: Ranking, ratio: float, *, k: int, catalogue: Catalogue, seed: int, repaired: bool) -> Lists:
    eligible = ranking.between(*MID_RANK)
    return _replace_last(ranking, k, places(k, ratio, repaired=repaired), eligible, _dice(ranking, seed))


def _popular(ranking: Ranking, ratio: float, *, k: int, catalogue: Catalogue, seed: int, repaired: bool) -> Lists:
    order = np.argsort(-catalogue.popularity, kind="stable")
    place = np.empty(len(order), np.uint64)
    place[order] = np.arange(len(order), dtype=np.uint64)
    eligible = candidates(ranking.profiles)
    priority = np.broadcast_to(place, eligible.shape)
    return _replace_last(ranking, k, places(k, ratio, repaired=repaired), eligible, priority)


STRATEGIES: dict[str, Strategy] = {"none": _none}
for _name, _strategy in (("genre", _genre), ("mid-rank", _mid_rank), ("popular", _popular)):
    STRATEGIES[_name] = partial(_strategy, repaired=False)
    STRATEGIES[f"{_name}-repaired"] = partial(_strategy, repaired=True)


def _replace_last(ranking: Ranking, k: int, m: int, eligible: NDArray[np.bool_], priority: NDArray[np.uint64]) -> Lists:
    """Give the last m of k places to the eligible films of lowest priority that the places before do not hold.

    Where fewer than m films are eligible the ranking keeps its films, and the picks stand at the very end.
    """
    top = ranking.top(k)
    m = min(m, k)
    if m == 0:
        return Lists(top, np.zeros(top.shape, bool))
    kept, window = top[:, : k - m], top[:, k - m :]
    free = eligible.copy()
    row, column = np.nonzero(kept >= 0)
    free[row, kept[row, column]] = False
    key = np.where(free, priority, np.iinfo(np.uint64).max)
    picks = np.argsort(key, axis=1, kind="stable")[:, :m].astype(np.int32)
    picks[~np.take_along_axis(free, picks, axis=1)] = -1
    picks = np.pad(picks, ((0, 0), (0, m - picks.shape[1])), constant_values=-1)
    n_picks = (picks >= 0).sum(axis=1, keepdims=True)
    stays = (window >= 0) & ~(window[:, :, None] == picks[:, None, :]).any(axis=2)
    stays &= np.cumsum(stays, axis=1) <= m - n_picks
    both = np.hstack([window, picks])
    used = np.hstack([stays, picks >= 0])
    slot = np.argsort(~used, axis=1, kind="stable")[:, :m]
    tail = np.where(np.take_along_axis(used, slot, axis=1), np.take_along_axis(both, slot, axis=1), -1)
    explored = (slot >= m) & (tail >= 0)
    return Lists(np.hstack([kept, tail]).astype(np.int32), np.hstack([np.zeros(kept.shape, bool), explored]))


def _dice(ranking: Ranking, seed: int) -> NDArray[np.uint64]:
    """(B, I) random priorities: a hash (splitmix64, Steele et al. 2014) of seed and user id, and of the film."""
    user = np.array([child_seed(seed, "diversity", name) for name in ranking.users]).astype(np.uint64)
    film = np.arange(ranking.order.shape[1]).astype(np.uint64)
    z = (user[:, None] << np.uint64(32)) | film
    z = z * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
