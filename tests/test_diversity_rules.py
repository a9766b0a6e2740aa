"""Re-ranking strategies against slow versions that score whole lists from their definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import InputError
from recsys_utils.evaluation.metrics import ItemTraits, list_metrics
from recsys_utils.ranking.rerank import (
    POOL,
    RULES,
    SAME_GENRES,
    ItemFacts,
    Ranking,
    exposure_slot,
    rerank,
    variant,
)

Value = Callable[[list[int]], float]  # of a whole list


def case(seed: int, n_items: int = 14, n_genres: int = 4) -> tuple[Ranking, ItemFacts]:
    """Three users; some films without genres, one user without ratings, scores without ties."""
    rng = np.random.default_rng(seed)
    genres = csr_matrix((rng.random((n_items, n_genres)) < 0.4).astype(np.float32))
    popularity = rng.integers(0, 50, n_items)
    rated = rng.random((3, n_items)) < 0.3
    rated[2] = False
    profiles = csr_matrix(rated * 4.0, dtype=np.float32)
    scores = np.stack([rng.permutation(n_items) for _ in range(3)]).astype(np.float32)
    films = ItemFacts(genres, popularity)
    return Ranking.of(scores, profiles, ["a", "b", "c"]), films


def vectors(films: ItemFacts) -> NDArray[np.float64]:
    return films.genres.toarray().astype(float)


def cosine(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(x @ y / np.sqrt((x @ x) * (y @ y))) if x.any() and y.any() else 0.0


def mmr(films: ItemFacts, rated: NDArray[np.int32]) -> Value:
    g = vectors(films)
    return lambda chosen: -max((cosine(g[chosen[-1]], g[j]) for j in chosen[:-1]), default=0.0)


def xquad(films: ItemFacts, rated: NDArray[np.int32]) -> Value:
    """Share of the profile's genres that a list covers; its growth is what a film adds."""
    spread = vectors(films) / np.maximum(vectors(films).sum(axis=1, keepdims=True), 1)
    wanted = spread[rated].sum(axis=0)
    wanted /= max(wanted.sum(), 1)

    def covered(chosen: list[int]) -> float:
        return float(wanted @ (1 - np.prod(1 - spread[chosen], axis=0))) if chosen else 0.0

    return lambda chosen: covered(chosen) - covered(chosen[:-1])


def calibration(films: ItemFacts, rated: NDArray[np.int32]) -> Value:
    """Minus the metric itself."""
    n = len(films.popularity)
    profile = csr_matrix((np.ones(len(rated)), (np.zeros(len(rated), int), rated)), shape=(1, n))
    traits = ItemTraits(films.popularity, 3, vectors(films))

    def error(chosen: list[int]) -> float:
        found = list_metrics(np.array([chosen], np.int32), traits, profiles=profile, relevant=profile)
        return float(np.nan_to_num(found["calibration_error@10"][0]))

    return lambda chosen: -error(chosen)


def dpp(films: ItemFacts, rated: NDArray[np.int32]) -> Value:
    g = vectors(films)
    similar = np.array([[SAME_GENRES * cosine(x, y) for y in g] for x in g])
    np.fill_diagonal(similar, 1)

    def log_det(chosen: list[int]) -> float:
        return float(np.linalg.slogdet(similar[np.ix_(chosen, chosen)])[1]) if chosen else 0.0

    return lambda chosen: log_det(chosen) - log_det(chosen[:-1])


def discount(films: ItemFacts, rated: NDArray[np.int32]) -> Value:
    return lambda chosen: -float(np.log(1 + films.popularity[chosen[-1]]) / np.log(1 + films.popularity.max()))


SLOW = {"mmr": mmr, "xquad": xquad, "calibration": calibration, "dpp": dpp, "discount": discount}


def by_definition(
    ranking: Ranking, row: int, value: Value, weight: float, k: int, scores: dict[int, float]
) -> list[int]:
    chosen: list[int] = []
    pool = [int(i) for i in ranking.order[row, :POOL] if i >= 0]
    low, high = min(scores[i] for i in pool), max(scores[i] for i in pool)
    while pool and len(chosen) < k:
        gains = [(1 - weight) * (scores[i] - low) / (high - low) + weight * value([*chosen, i]) for i in pool]
        best = next(n for n, gain in enumerate(gains) if gain > max(gains) - 1e-9)  # ties: the better place
        chosen.append(pool.pop(best))
    return chosen


@pytest.mark.parametrize("strategy", list(RULES))
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), weight=st.sampled_from([0.03, 0.21, 0.47, 0.83]))
def test_each_rule_is_its_definition(strategy: str, seed: int, weight: float) -> None:
    ranking, films = case(seed)
    found = rerank(ranking, strategy, weight, k=6, facts=films).items
    for row in range(3):
        rated = ranking.profiles[row].indices
        # the worth of the pool as the ranking knows it, back on any scale
        scores = {int(i): float(w) for i, w in zip(ranking.order[row], ranking.relevance[row], strict=False) if i >= 0}
        expected = by_definition(ranking, row, SLOW[strategy](films, rated), weight, 6, scores)
        assert found[row][: len(expected)].tolist() == expected
        assert (found[row][len(expected) :] == -1).all()


@pytest.mark.parametrize("strategy", list(RULES))
def test_without_weight_it_is_the_plain_ranking_and_nothing_is_exploration(strategy: str) -> None:
    ranking, films = case(1)
    lists = rerank(ranking, strategy, 0.0, k=6, facts=films)
    assert (lists.items == ranking.top(6)).all()
    assert not lists.exploration.any()


def test_exploration_marks_films_that_the_plain_list_lacks() -> None:
    # films 0 and 1 share a genre, film 2 has another: with weight .9 film 2 comes second
    films = ItemFacts(csr_matrix([[1.0, 0], [1, 0], [0, 1]]), np.array([3, 2, 1]))
    ranking = Ranking.of(np.array([[3, 2, 1]], np.float32), csr_matrix((1, 3)), ["u"])
    lists = rerank(ranking, "mmr", 0.9, k=2, facts=films)
    assert lists.items.tolist() == [[0, 2]]
    assert lists.exploration.tolist() == [[False, True]]
    # all three fit: another order, but no film that the plain list lacks
    assert not rerank(ranking, "mmr", 0.9, k=3, facts=films).exploration.any()


def test_a_list_longer_than_the_pool_ends_as_the_ranking_does() -> None:
    rng = np.random.default_rng(4)
    n = POOL + 20
    films = ItemFacts(csr_matrix(rng.random((n, 5)) < 0.4, dtype=np.float32), rng.integers(0, 99, n))
    ranking = Ranking.of(rng.random((2, n)).astype(np.float32), csr_matrix((2, n)), ["a", "b"])
    found = rerank(ranking, "dpp", 0.5, k=n, facts=films).items
    assert (found[:, POOL:] == ranking.top(n)[:, POOL:]).all()
    assert (np.sort(found, axis=1) == np.arange(n)).all()


@pytest.mark.parametrize("strategy", list(RULES))
def test_a_catalogue_without_genres_gives_lists_all_the_same(strategy: str) -> None:
    ranking, films = case(3)
    bare = ItemFacts(csr_matrix((14, 0), dtype=np.float32), films.popularity)
    found = rerank(ranking, strategy, 0.5, k=5, facts=bare).items
    if strategy != "discount":
        assert (found == ranking.top(5)).all()


def test_exposure_by_hand() -> None:
    # three users with the same ranking 0, 1, 2, 3; lists of 2; worth 1, 2/3, 1/3, 0; lambda = .5
    ranking = Ranking.of(np.tile(np.array([3, 2, 1, 0], np.float32), (3, 1)), csr_matrix((3, 4)), ["a", "b", "c"])
    shown = np.zeros(4, np.int64)
    lists = exposure_slot(ranking, 0.5, shown, k=2)
    # a: films 1, 2, 3 are unshown, so film 1 (2/3 + 1). b: film 1 has 2/3 + 1/2 < film 2 with 1/3 + 1.
    # c: film 1 2/3 + 1/2, film 2 1/3 + 1/2, film 3 0 + 1: film 1 again
    assert lists.items.tolist() == [[0, 1], [0, 2], [0, 1]]
    assert lists.exploration.tolist() == [[False, False], [False, True], [False, False]]
    assert shown.tolist() == [3, 2, 1, 0]


def test_exposure_goes_on_where_the_last_block_ended() -> None:
    rng = np.random.default_rng(6)
    scores = rng.random((8, 30)).astype(np.float32)
    profiles = csr_matrix(rng.random((8, 30)) < 0.2, dtype=np.float32)
    users = [f"u{u}" for u in range(8)]
    whole = exposure_slot(Ranking.of(scores, profiles, users), 0.4, np.zeros(30, np.int64), k=5).items
    shown = np.zeros(30, np.int64)
    parts = [
        exposure_slot(Ranking.of(scores[b], profiles[b], users[b]), 0.4, shown, k=5).items
        for b in (slice(0, 3), slice(3, 8))
    ]
    assert (np.concatenate(parts) == whole).all()
    assert (shown == np.bincount(whole.ravel(), minlength=30)).all()


def test_exposure_depends_on_the_other_users_so_it_can_not_be_served() -> None:
    ranking, films = case(1)
    with pytest.raises(InputError, match="no diversity strategy 'exposure'"):
        rerank(ranking, "exposure", 0.1, facts=films)
    assert variant("exposure", 0.1) == "diversity=exposure;lambda=0.1"
