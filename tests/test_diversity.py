"""Lists under the diversity strategies, derived by hand on a ranking that can be read off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from recsys_utils.base import InputError
from recsys_utils.evaluation.metrics import genre_matrix, top_k
from recsys_utils.ranking.rerank import CLASSIC, STRATEGIES, ItemFacts, Lists, Ranking, rerank, slots

K = 10
RANDOM = [s for s in STRATEGIES if s.startswith(("genre", "mid-rank"))]


def toy(rated: list[int], genres: list[list[str]] | None = None) -> tuple[Ranking, ItemFacts]:
    """One user, films ranked by position: film 0 first; popularity grows with the position, so the last is on top."""
    n = 20 + len(rated)
    scores = -np.arange(n, dtype=np.float32)[None, :]
    profile = csr_matrix((np.full(len(rated), 4.0), ([0] * len(rated), rated)), shape=(1, n), dtype=np.float32)
    names = genres or [["Drama"]] * n
    return Ranking.of(scores, profile, ["ml_1"]), ItemFacts(genre_matrix(names)[0], np.arange(n))


def one(lists: Lists) -> tuple[list[int], list[bool]]:
    return lists.items[0].tolist(), lists.exploration[0].tolist()


def test_the_plain_ranking_leaves_out_the_profile_and_breaks_ties_by_position() -> None:
    ranking = Ranking.of(np.array([[2, 7, 2, 9]], np.float32), csr_matrix([[0, 0, 0, 5.0]]), ["a"])
    assert ranking.order.tolist() == [[1, 0, 2, -1]]
    assert ranking.size.tolist() == [3]


def test_the_plain_ranking_is_the_one_the_metrics_judge() -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (30, 25)).astype(np.float32)  # many ties
    profiles = csr_matrix(rng.random((30, 25)) < 0.5, dtype=np.float32)
    ranking = Ranking.of(scores, profiles, [str(u) for u in range(30)])
    assert (ranking.top(K) == top_k(scores, profiles, K)).all()


def test_a_stored_rating_of_zero_is_a_rating() -> None:
    profile = csr_matrix((np.zeros(1), ([0], [1])), shape=(1, 3))
    assert Ranking.of(np.array([[1, 3, 2]], np.float32), profile, ["a"]).order.tolist() == [[2, 0, -1]]


def test_popular_fills_the_last_places_with_the_most_rated_films() -> None:
    # 21 films, 20 of them candidates (0-19), the most rated is 20, which is in the profile; int(10 * .2) = 2 places
    ranking, films = toy([20])
    found, explored = one(rerank(ranking, "popular", 0.2, k=K, facts=films))
    assert found == [0, 1, 2, 3, 4, 5, 6, 7, 19, 18]
    assert explored == [False] * 8 + [True] * 2


def test_popular_takes_no_film_the_places_before_hold() -> None:
    scores = np.array([[6, 5, 4, 3, 2, 1]], np.float32)
    films = ItemFacts(csr_matrix(np.ones((6, 1))), np.array([9, 8, 7, 0, 0, 1]))
    # films 0 and 1 are kept, so the most rated free films are 2 (7 ratings) and 5 (1)
    lists = rerank(Ranking.of(scores, csr_matrix((1, 6)), ["a"]), "popular", 0.5, k=4, facts=films)
    assert one(lists) == ([0, 1, 2, 5], [False, False, False, True])  # the plain list has film 2 as well


@pytest.mark.parametrize("seed", range(20))
def test_mid_rank_draws_from_places_half_to_four_fifths(seed: int) -> None:
    ranking, films = toy([])
    found, explored = one(rerank(ranking, "mid-rank", 0.2, k=K, facts=films, seed=seed))
    # N = 20: places 10-15, and film = place
    assert found[:8] == list(range(8))
    assert set(found[8:]) <= {10, 11, 12, 13, 14, 15}
    assert explored == [False] * 8 + [True] * 2


def test_mid_rank_reaches_every_film_of_the_stretch_about_equally_often() -> None:
    films = toy([])[1]
    scores = np.tile(-np.arange(20, dtype=np.float32), (3000, 1))
    many = Ranking.of(scores, csr_matrix((3000, 20)), [f"u{u}" for u in range(3000)])
    drawn = rerank(many, "mid-rank", 0.1, k=K, facts=films, seed=1).items[:, -1]
    counts = np.bincount(drawn, minlength=20)[10:16]
    assert counts.sum() == 3000
    assert np.abs(counts - 500).max() < 5 * np.sqrt(3000 * 1 / 6 * 5 / 6)  # 5 standard deviations of a binomial


def test_genre_draws_films_with_a_genre_rated_once_and_the_repaired_variant_also_genres_never_rated() -> None:
    # profile: films 20, 21 (Drama twice, War once); the stretch is films 10-15
    genres = [["Drama"]] * 20 + [["Drama", "War"], ["Drama"]]
    genres[11], genres[14] = ["War"], ["Western"]
    ranking, films = toy([20, 21], genres)
    classic = one(rerank(ranking, "genre", 0.2, k=K, facts=films))
    # War was rated once: film 11. Western never: in no counter, so missed. One pick where two places were meant:
    # the ranking keeps place 9.
    assert classic == ([*range(9), 11], [False] * 9 + [True])
    found, explored = one(rerank(ranking, "genre-repaired", 0.2, k=K, facts=films))
    assert (set(found[8:]), explored) == ({11, 14}, [False] * 8 + [True] * 2)


def test_an_empty_profile_has_no_counted_genre_but_every_genre_is_new() -> None:
    ranking, films = toy([])
    assert not rerank(ranking, "genre", 0.3, k=K, facts=films).exploration.any()
    assert rerank(ranking, "genre-repaired", 0.3, k=K, facts=films).exploration.sum() == 3


@pytest.mark.parametrize("strategy", RANDOM)
def test_a_list_does_not_depend_on_the_other_users_of_the_block(strategy: str) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((6, 60)).astype(np.float32)
    profiles = csr_matrix(rng.random((6, 60)) < 0.2, dtype=np.float32)
    films = ItemFacts(genre_matrix([["ABCDE"[i % 5]] for i in range(60)])[0], np.arange(60))
    users = [f"u{u}" for u in range(6)]
    together = rerank(Ranking.of(scores, profiles, users), strategy, 0.3, k=K, facts=films, seed=4)
    order = [3, 0, 5]
    apart = Ranking.of(scores[order], profiles[order], [users[u] for u in order])
    assert (rerank(apart, strategy, 0.3, k=K, facts=films, seed=4).items == together.items[order]).all()
    other_seed = rerank(Ranking.of(scores, profiles, users), strategy, 0.3, k=K, facts=films, seed=5)
    assert (other_seed.items != together.items).any()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_strategy_keeps_what_a_list_must_be(data: st.DataObject) -> None:
    n_items = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(1, 12))
    ratio = data.draw(st.floats(0, 1))
    strategy = data.draw(st.sampled_from(list(STRATEGIES)))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    profiles = csr_matrix(rng.random((3, n_items)) < rng.random(), dtype=np.float32)
    scores = rng.integers(0, 5, (3, n_items)).astype(np.float32)
    films = ItemFacts(genre_matrix([list("ABCD"[: rng.integers(0, 5)]) for _ in range(n_items)])[0], np.arange(n_items))
    ranking = Ranking.of(scores, profiles, ["a", "b", "c"])
    lists = rerank(ranking, strategy, ratio, k=k, facts=films, seed=1)
    changed = slots(k, ratio, repaired=strategy.endswith("repaired")) if strategy in CLASSIC else k
    assert lists.items.shape == lists.exploration.shape == (3, k)
    for row in range(3):
        films_of = lists.items[row][lists.items[row] >= 0].tolist()
        assert len(films_of) == min(k, n_items - profiles[row].nnz)  # the length is kept
        assert (lists.items[row][len(films_of) :] == -1).all()
        assert len(set(films_of)) == len(films_of)
        assert not set(films_of) & set(profiles[row].indices.tolist())
        assert (lists.items[row, : k - changed] == ranking.top(k)[row, : k - changed]).all()
        assert not lists.exploration[row, : k - changed].any()
        assert not lists.exploration[row][lists.items[row] < 0].any()


def test_an_unknown_strategy_or_ratio_is_refused() -> None:
    ranking, films = toy([])
    with pytest.raises(InputError, match="bubble"):
        rerank(ranking, "bubble", 0.1, facts=films)
    with pytest.raises(InputError, match="ratio"):
        rerank(ranking, "genre", 1.5, facts=films)
