"""Metrics against derivations by hand, independent implementations and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import log, log2, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.metrics import (
    average_precision_score,
    label_ranking_average_precision_score,
    mean_absolute_error,
    mean_squared_error,
    ndcg_score,
    recall_score,
)
from sklearn.metrics.pairwise import cosine_distances

from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.metrics import ItemTraits, list_metrics, ranking_metrics, top_k


def lists_of(*rows: list[int]) -> metrics.Lists:
    return np.array(rows, np.int32)


def one(rows: list[list[int]], n_items: int) -> csr_matrix:
    """Sparse rows with a 1 at the given films."""
    dense = np.zeros((len(rows), n_items), np.float32)
    for user, films in enumerate(rows):
        dense[user, films] = 1
    return csr_matrix(dense)


@st.composite
def problems(draw):
    """Scores with many ties, profiles and disjoint relevant films of a few users."""
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(2, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.integers(0, draw(st.integers(1, 50)), (n_users, n_items)).astype(np.float32)
    role = rng.choice(3, (n_users, n_items), p=[0.5, 0.2, 0.3])
    return scores, csr_matrix(role == 1), csr_matrix(role == 2), draw(st.integers(1, 12))


# ---- lists


@given(problems())
def test_top_k_is_a_stable_sort_of_what_the_user_has_not_rated(problem):
    scores, profiles, _, k = problem
    found = top_k(scores, profiles, k)
    for user, row in enumerate(scores):
        free = np.flatnonzero(profiles[user].toarray()[0] == 0)
        best = free[np.argsort(-row[free], kind="stable")][:k]
        assert found[user].tolist() == [*best, *[-1] * (k - len(best))]


def test_top_k_leaves_out_minus_infinity_and_films_that_are_no_candidates():
    scores = np.array([[-np.inf, 3, 2, 1], [0, -5, -np.inf, 9]], np.float32)
    candidates = np.array([True, True, True, False])
    assert top_k(scores, csr_matrix((2, 4)), 3, candidates).tolist() == [[1, 2, -1], [0, 1, -1]]


def test_top_k_counts_a_stored_rating_of_zero_as_rated():
    rated = csr_matrix((np.zeros(1, np.float32), ([0], [1])), shape=(1, 3))
    assert top_k(np.array([[1, 9, 2]], np.float32), rated, 3).tolist() == [[2, 0, -1]]


def test_top_k_refuses_nan_and_wrong_shapes():
    scores = np.array([[1, 2], [3, np.nan]], np.float32)
    with pytest.raises(ValueError, match="row 1 hold NaN"):
        top_k(scores, csr_matrix((2, 2)), 1)
    with pytest.raises(ValueError, match="profiles"):
        top_k(scores, csr_matrix((2, 3)), 1)


# ---- accuracy


def test_ranking_metrics_by_hand():
    # films 4 and 7 and one more outside the list are relevant; hits at ranks 2 and 3 of k = 4
    found = ranking_metrics(lists_of([1, 4, 7, 0]), one([[4, 7, 9]], 10), k=4)
    expected = {
        "ndcg@4": (1 / log2(3) + 1 / log2(4)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4)),
        "recall@4": 2 / 3,
        "map@4": (1 / 2 + 2 / 3) / 3,
        "mrr@4": 1 / 2,
        "hit@4": 1.0,
    }
    assert {name: value[0] for name, value in found.items()} == pytest.approx(expected, abs=1e-15)


def test_ideal_and_average_precision_stop_at_k():
    # five relevant films, k = 2, both places hit: perfect but for recall, whose denominator is all five
    found = ranking_metrics(lists_of([0, 1]), one([[0, 1, 2, 3, 4]], 6), k=2)
    assert [found[f"{name}@2"][0] for name in ("ndcg", "map", "recall")] == pytest.approx([1, 1, 2 / 5])


def test_limits_perfect_none_and_nothing_relevant():
    relevant = one([[0, 1], [5], []], 6)
    found = ranking_metrics(lists_of([0, 1, 2], [0, 1, 2], [0, 1, 2]), relevant, k=3)
    for name, (perfect, miss, undefined) in found.items():
        assert (perfect, miss) == (1, 0), name
        assert np.isnan(undefined), name


def test_a_short_list_is_judged_as_padded():
    relevant = one([[3, 1]], 5)
    short, padded = (ranking_metrics(rows, relevant, k=5) for rows in (lists_of([3]), lists_of([3, -1, -1, -1, -1])))
    assert short == padded
    assert short["ndcg@5"][0] == pytest.approx(1 / (1 + 1 / log2(3)))


def test_lists_and_relevant_films_must_have_the_same_users():
    with pytest.raises(ValueError, match="2 lists for 1 rows"):
        ranking_metrics(lists_of([0], [1]), one([[0]], 2))


def test_ndcg_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    scores = rng.permuted(np.tile(np.arange(60, dtype=np.float32), (200, 1)), axis=1)  # no ties: sklearn averages them
    relevant = rng.random((200, 60)) < rng.choice([0.03, 0.1, 0.6], (200, 1))
    relevant[:, 0] |= ~relevant.any(axis=1)
    for k in (1, 5, 10):
        ours = ranking_metrics(top_k(scores, csr_matrix((200, 60)), k), csr_matrix(relevant), k=k)[f"ndcg@{k}"]
        theirs = [ndcg_score(relevant[[user]], scores[[user]], k=k) for user in range(200)]
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_the_other_metrics_agree_with_scikit_learn():
    """Recall and hits from the top 10 as a set; mrr and map from rankings cut where definitions agree."""
    rng = np.random.default_rng(2)
    scores = rng.permuted(np.tile(np.arange(60, dtype=np.float32), (200, 1)), axis=1)
    relevant = rng.random((200, 60)) < rng.choice([0.03, 0.1, 0.6], (200, 1))
    relevant[:, 0] |= ~relevant.any(axis=1)
    lists = top_k(scores, csr_matrix((200, 60)), 10)
    ours = ranking_metrics(lists, csr_matrix(relevant), k=10)
    shown = np.zeros((200, 60), bool)
    np.put_along_axis(shown, lists.astype(np.intp), True, axis=1)
    for user in range(200):
        truth, top = relevant[user], lists[user].astype(np.intp)
        assert ours["recall@10"][user] == pytest.approx(recall_score(truth, shown[user]), abs=1e-9)
        hits = int(truth[top].sum())
        assert ours["hit@10"][user] == (hits > 0)
        if hits:
            first = np.zeros(10, bool)
            first[np.argmax(truth[top])] = True  # reciprocal rank = label ranking precision of the first hit alone
            reciprocal = label_ranking_average_precision_score(first[None], scores[user, top][None])
            assert ours["mrr@10"][user] == pytest.approx(reciprocal, abs=1e-9)
            precision = average_precision_score(truth[top], scores[user, top])  # over the hits, not min(k, relevant)
            assert ours["map@10"][user] == pytest.approx(precision * hits / min(10, truth.sum()), abs=1e-9)


def slow_metrics(ranked: list[int], relevant: set[int], k: int) -> dict[str, float]:
    """Written from the definitions, set by set, sharing nothing with the module."""
    ranks = [rank for rank, film in enumerate(ranked[:k], start=1) if film in relevant]
    ideal = range(1, min(k, len(relevant)) + 1)
    return {
        f"ndcg@{k}": sum(1 / log2(r + 1) for r in ranks) / sum(1 / log2(r + 1) for r in ideal),
        f"recall@{k}": len(ranks) / len(relevant),
        f"map@{k}": sum(len(relevant & set(ranked[:r])) / r for r in ranks) / min(k, len(relevant)),
        f"mrr@{k}": 1 / ranks[0] if ranks else 0.0,
        f"hit@{k}": float(bool(ranks)),
    }


@given(problems())
def test_ranking_metrics_agree_with_a_slow_twin_and_stay_in_range(problem):
    scores, profiles, relevant, k = problem
    lists = top_k(scores, profiles, k)
    found = ranking_metrics(lists, relevant, k=k)
    for user in range(len(scores)):
        films = set(relevant[user].indices.tolist())
        got = {name: value[user] for name, value in found.items()}
        if not films:
            assert np.isnan(list(got.values())).all()
            continue
        assert got == pytest.approx(slow_metrics([f for f in lists[user].tolist() if f >= 0], films, k), abs=1e-12)
        assert all(0 <= value <= 1 + 1e-12 for value in got.values())


@given(problems())
def test_moving_a_hit_up_never_hurts(problem):
    scores, profiles, relevant, k = problem
    lists = top_k(scores, profiles, k)
    better = lists.copy()
    for user in range(len(lists)):
        wanted = np.isin(lists[user], relevant[user].indices)
        better[user] = np.concatenate([lists[user][wanted], lists[user][~wanted]])
    before, after = ranking_metrics(lists, relevant, k=k), ranking_metrics(better, relevant, k=k)
    for name in before:
        assert (np.nan_to_num(after[name]) >= np.nan_to_num(before[name]) - 1e-12).all(), name


# ---- beyond accuracy

DRAMA, COMEDY = ["Drama"], ["Comedy"]
GENRES = [DRAMA, COMEDY, ["Comedy", "Drama"], []]
TRAITS = ItemTraits(np.array([4, 2, 1, 0]), users=8, genres=metrics.genre_matrix(GENRES)[0].toarray())


def of_list(films: list[int], *, profile: Sequence[int] = (), relevant: Sequence[int] = ()) -> dict[str, float]:
    """The metrics of one list among the four films above."""
    found = list_metrics(
        lists_of(films), TRAITS, profiles=one([[*profile]], 4), relevant=one([[*relevant]], 4), k=len(films)
    )
    return {name.partition("@")[0]: value[0] for name, value in found.items()}


def test_novelty_by_hand():
    # shares 4/8 and 1/8; the unrated film counts as rated by one of the eight
    assert of_list([0, 2])["novelty"] == pytest.approx((-log2(4 / 8) - log2(1 / 8)) / 2)
    assert of_list([3])["novelty"] == pytest.approx(-log2(1 / 8))


def test_intra_list_distance_by_hand():
    # Drama and Comedy share nothing; Drama and Comedy+Drama have cosine 1 / (1 * sqrt 2)
    assert of_list([0, 1])["ild"] == pytest.approx(1)
    assert of_list([0, 1, 2])["ild"] == pytest.approx((1 + 2 * (1 - 1 / sqrt(2))) / 3)
    assert of_list([0, 3])["ild"] == pytest.approx(1), "a film without genres is far from all"
    assert np.isnan(of_list([0, -1])["ild"]), "one film makes no pair"


def test_intra_list_distance_agrees_with_scikit_learn_in_any_space():
    rng = np.random.default_rng(2)
    vectors = csr_matrix(rng.random((40, 12)) * (rng.random((40, 12)) < 0.3))
    traits = ItemTraits(np.ones(40, np.int64), 1, np.ones((40, 1)), spaces={"tfidf": vectors})
    lists = np.array([rng.choice(40, 10, replace=False) for _ in range(30)], np.int32)
    found = list_metrics(lists, traits, profiles=csr_matrix((30, 40)), relevant=csr_matrix((30, 40)))
    apart = cosine_distances(vectors.toarray())
    expected = [np.mean([apart[i, j] for i, j in combinations(row, 2)]) for row in lists]
    np.testing.assert_allclose(found["ild_tfidf@10"], expected, atol=1e-9)
    np.testing.assert_allclose(found["ild@10"], 0, atol=1e-12)


def test_serendipity_counts_relevant_films_that_popularity_would_not_have_shown():
    # popularity shows 0 and 1; of the relevant films 1 and 2 only 2 is a surprise, one of k = 2 places
    assert of_list([1, 2], relevant=[1, 2])["serendipity"] == pytest.approx(1 / 2)
    # with 0 rated, popularity shows 1 and 2: no surprise is left
    assert of_list([1, 2], profile=[0], relevant=[1, 2])["serendipity"] == 0
    assert np.isnan(of_list([1, 2])["serendipity"]), "nothing relevant"


def test_popularity_lift_by_hand():
    # list: (4/8 + 2/8) / 2 = 3/8; profile: 1/8
    assert of_list([0, 1], profile=[2])["popularity_lift"] == pytest.approx((3 / 8) / (1 / 8) - 1)
    assert np.isnan(of_list([0, 1])["popularity_lift"]), "an empty profile"


def test_calibration_error_by_hand():
    # profile: Drama and Comedy+Drama, so p = (1/4 Comedy, 3/4 Drama); list: Comedy alone, q = (1, 0)
    a = 0.01
    expected = 1 / 4 * log((1 / 4) / ((1 - a) + a / 4)) + 3 / 4 * log((3 / 4) / (a * 3 / 4))
    assert of_list([1], profile=[0, 2])["calibration_error"] == pytest.approx(expected)


def test_calibration_error_limits():
    assert of_list([0], profile=[0, 3])["calibration_error"] == pytest.approx(0), "films without genres don't count"
    assert of_list([1], profile=[0])["calibration_error"] == pytest.approx(-log(0.01)), "no genre in common"
    assert of_list([3], profile=[0])["calibration_error"] == pytest.approx(-log(0.01)), "a list without genres"
    assert np.isnan(of_list([0], profile=[3])["calibration_error"])


def test_an_empty_list_has_no_value():
    found = of_list([-1, -1], profile=[0])
    assert all(np.isnan(found[name]) for name in ("novelty", "ild", "popularity_lift", "calibration_error"))


def test_traits_count_the_training_part_only():
    nobody = np.array(["a", "b", "c"], dtype=object)  # c has no rating
    films = np.array(["x", "y"], dtype=object)
    train = Interactions(
        nobody, films, np.array([0, 1], np.int32), np.array([1, 1], np.int32), np.array([3, 4], np.float32),
        np.zeros(2, np.int64), Scale(1, 5),
    )  # fmt: skip
    traits = ItemTraits.of(train, [DRAMA, COMEDY])
    assert traits.counts.tolist() == [0, 2]
    assert traits.share.tolist() == [1 / 2, 2 / 2]


# ---- sets of lists


def test_coverage_and_gini_by_hand():
    lists = lists_of([0, 1], [0, 2], [0, -1])  # exposures 3, 1, 1, 0, 0
    assert metrics.coverage(lists, 5) == 3 / 5
    # sum over ascending x = 0, 0, 1, 1, 3 of (2i - 6) x = 0 + 0 + 0 + 2 + 12, over I sum x = 5 * 5
    assert metrics.gini(lists, 5) == pytest.approx(14 / 25)


def slow_gini(exposure: np.ndarray) -> float:
    """Half the relative mean absolute difference, over all pairs."""
    return float(np.abs(exposure[:, None] - exposure[None, :]).mean() / (2 * exposure.mean()))


@given(problems())
def test_gini_is_half_the_relative_mean_difference(problem):
    scores, profiles, _, k = problem
    lists = top_k(scores, profiles, k)
    shown = metrics.exposure(lists, scores.shape[1])
    if not shown.any():
        assert np.isnan(metrics.gini(lists, scores.shape[1]))
        return
    assert metrics.gini(lists, scores.shape[1]) == pytest.approx(slow_gini(shown), abs=1e-12)


@given(problems())
def test_leaving_out_each_list_equals_doing_so(problem):
    scores, profiles, _, k = problem
    lists, n_items = top_k(scores, profiles, k), scores.shape[1]
    without = [np.delete(lists, user, axis=0) for user in range(len(lists))]
    np.testing.assert_allclose(
        metrics.coverage_without_each(lists, n_items), [metrics.coverage(rest, n_items) for rest in without]
    )
    np.testing.assert_allclose(
        metrics.gini_without_each(lists, n_items), [metrics.gini(rest, n_items) for rest in without], atol=1e-12
    )


# ---- rating error


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_rating_errors_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 5, 40)
    truth, predicted = rng.integers(1, 6, 40).astype(np.float32), rng.uniform(1, 5, 40).astype(np.float32)
    sums = metrics.error_sums(user, truth, predicted, n_users=7)
    assert metrics.rmse(sums) == pytest.approx(mean_squared_error(truth, predicted) ** 0.5, rel=1e-6)
    assert metrics.mae(sums) == pytest.approx(mean_absolute_error(truth, predicted), rel=1e-6)
    assert sums["count"].tolist() == np.bincount(user, minlength=7).tolist()


def test_a_missing_prediction_is_an_error():
    with pytest.raises(ValueError, match="1 of 2"):
        metrics.error_sums(np.array([0, 0]), np.array([1.0, 2.0]), np.array([1.0, np.nan]), 1)
