"""Blending: the curves are the definitions, fusion is bounded and monotone, the fast surface equals the slow way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from recsys_study.ndcg_surface import ndcg_surface
from recsys_study.weights import best_path, never_down, simplex, tunable_curves
from recsys_utils.base import InputError, Recommender, Scale, Scores
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.content import ContentModel
from recsys_utils.models.rankers import EASE, ItemKNN, Popularity
from recsys_utils.ranking.hybrid import (
    CURVES,
    FLATTEST,
    AlphaCurve,
    Hybrid,
    WeightedEnsemble,
    candidates,
    expected,
    liked_counts,
    linear,
    normalise,
    ranked,
    sigmoid,
    weighted,
)

finite = st.floats(-100, 100, width=32)
unit = st.floats(0, 1, width=32)
ALL = np.ones(6, dtype=bool)


def fuse(content: Scores, cf: Scores, alpha: float, mask: np.ndarray) -> Scores:
    """The classic blend of two blocks of scores."""
    return weighted([content, normalise(cf, mask)], np.array([1 - alpha, alpha]))


class Fixed:
    """A recommender that gives every profile the same scores."""

    def __init__(self, name: str, scores: list[float]) -> None:
        self.name = name
        self.row = self.rated = np.array(scores, np.float32)

    def fit(self, train: Interactions) -> Fixed:
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        return np.tile(self.row, (profiles.shape[0], 1))


# ---- curves


def test_classic_and_step_are_their_definitions() -> None:
    for n in range(120):
        classic = 0.0 if n < 5 else 0.3 * (n - 5) / 15 if n < 20 else 0.7
        step = 0.0 if n < 5 else 0.3 if n < 20 else 0.7
        assert CURVES["classic"](n) == pytest.approx(classic, abs=1e-12)
        assert CURVES["step"](n) == pytest.approx(step, abs=1e-12)


def test_linear_and_sigmoid_by_hand() -> None:
    assert linear(0.2, 0.8, 10)([0, 5, 10, 99]).tolist() == pytest.approx([0.2, 0.5, 0.8, 0.8])
    curve = sigmoid(0.2, 0.8, 10, 2.0)
    assert curve(10) == pytest.approx((0.2 + 0.8) / 2)
    assert curve(12) == pytest.approx(0.2 + 0.6 / (1 + np.exp(-1)))
    assert curve(1000) == pytest.approx(0.8, abs=1e-4)


def test_every_declared_curve_grows_within_bounds() -> None:
    declared = [c for curves in tunable_curves().values() for c in curves]
    assert len(declared) > 50
    for curve in [*CURVES.values(), *declared]:
        alphas = curve(np.arange(200))
        assert alphas.min() >= 0
        assert alphas.max() <= 1
        assert (np.diff(alphas) >= 0).all(), curve


def test_a_curve_survives_json_and_refuses_nonsense() -> None:
    curve = CURVES["classic"]
    assert AlphaCurve.from_json(curve.to_json()) == curve
    for sizes, alphas in [((3, 1), (0.0, 1.0)), ((1,), (0.0, 1.0)), ((), ()), ((1,), (1.5,))]:
        with pytest.raises(InputError, match="Curve 'odd'"):
            AlphaCurve("odd", sizes, alphas)


# ---- normalise and fuse


@given(arrays(np.float32, (3, 6), elements=finite), arrays(bool, (3, 6)))
def test_normalised_candidates_fill_the_unit_interval(scores: Scores, mask: np.ndarray) -> None:
    scaled = normalise(scores, mask)
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    for row, keep, out in zip(scores, mask, scaled, strict=True):
        if keep.any() and np.ptp(row[keep]) > 0:
            assert (out[keep].min(), out[keep].max()) == (0, 1)
            assert (np.diff(out[keep][np.argsort(row[keep])]) >= 0).all()  # order is kept
        else:
            assert (out == 0.5).all()


@given(arrays(np.float32, 6, elements=st.integers(-50, 50)), st.floats(0.25, 8), st.floats(-20, 20))
def test_normalising_undoes_affine_maps(scores: Scores, factor: float, shift: float) -> None:
    mapped = (scores * factor + shift).astype(np.float32)
    np.testing.assert_allclose(normalise(mapped[None], ALL), normalise(scores[None], ALL), atol=1e-4)


@given(arrays(np.float32, (2, 6), elements=unit), arrays(np.float32, (2, 6), elements=finite), st.floats(0, 1))
def test_fusion_is_bounded_by_its_parts(content: Scores, cf: Scores, alpha: float) -> None:
    fused = fuse(content, cf, alpha, ALL)
    parts = np.stack([content, normalise(cf, ALL)])
    assert (fused >= parts.min(axis=0) - 1e-6).all()
    assert (fused <= parts.max(axis=0) + 1e-6).all()


@given(arrays(np.float32, (1, 6), elements=unit), arrays(np.float32, (1, 6), elements=unit), st.floats(0, 1), unit)
def test_fusion_grows_with_each_part(content: Scores, cf: Scores, alpha: float, more: float) -> None:
    anchored = np.concatenate([cf, [[-1, 2]]], axis=1).astype(np.float32)  # fixes min and max
    padded = np.concatenate([content, [[0, 0]]], axis=1).astype(np.float32)
    mask = np.ones(8, dtype=bool)
    base = fuse(padded, anchored, alpha, mask)
    for part in ("content", "cf"):
        raised_content, raised_cf = padded.copy(), anchored.copy()
        (raised_content if part == "content" else raised_cf)[0, 0] += more
        assert fuse(raised_content, raised_cf, alpha, mask)[0, 0] >= base[0, 0]


@given(arrays(np.float32, (2, 6), elements=unit), arrays(np.float32, (2, 6), elements=finite))
def test_the_ends_of_alpha_are_the_parts(content: Scores, cf: Scores) -> None:
    np.testing.assert_array_equal(fuse(content, cf, 0.0, ALL), content)
    np.testing.assert_array_equal(fuse(content, cf, 1.0, ALL), normalise(cf, ALL))


# ---- the blend as a recommender


def test_blend_by_hand_and_fallback_where_nothing_is_liked() -> None:
    films = pd.DataFrame({"item_id": list("abcdefgh"), "genres": [["War"]] * 4 + [["Love"]] * 4})
    rated = {"likes": [(i, 4) for i in range(5)] + [(7, 2)], "dislikes": [(0, 1)]}
    frame = pd.DataFrame(
        [(u, films["item_id"][i], r) for u, rows in rated.items() for i, r in rows],
        columns=["user_id", "item_id", "rating"],
    )
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=films["item_id"], users=["likes", "dislikes", "new"])
    cf = Fixed("cf", [9, 9, 9, 9, 9, 2, 4, -9])  # only films 5 and 6 are candidates of the first user
    popularity = Fixed("popularity", [0, 1, 2, 3, 4, 5, 6, 8])
    curve = AlphaCurve("half", (0,), (0.5,))
    model = Hybrid(ContentModel(films, ["genres"]), cf, curve, popularity).fit(data)
    assert isinstance(model, Recommender)
    scores = model.scores(data.user_item)
    # likes: 4 War films and 1 Love film of equal ratings -> cosine with Love 1 / sqrt(4^2 + 1^2); cf of 5, 6 -> 0, 1
    love = 1 / np.sqrt(17)
    np.testing.assert_allclose(scores[0, 5:7], [0.5 * love + 0, 0.5 * love + 0.5], atol=1e-6)
    assert scores[0, 7] == pytest.approx(0.5 * love)  # off the list, cut off at 0
    np.testing.assert_allclose(scores[1, 1:], (np.array([1, 2, 3, 4, 5, 6, 8]) - 1) / 7, atol=1e-6)
    np.testing.assert_allclose(scores[2], popularity.row / 8, atol=1e-6)
    parts = model.components(data.user_item)
    assert parts.fallback.tolist() == [False, True, True]
    assert parts.alpha.tolist() == [0.5] * 3


def cold_blend(ratings: Interactions, curve: AlphaCurve) -> Hybrid:
    """Content and EASE for 15 films of two genres; the last three have lost their ratings."""
    films = pd.DataFrame({"item_id": ratings.items, "genres": [["War"] if i % 2 else ["Love"] for i in range(15)]})
    return Hybrid(ContentModel(films), EASE(reg=5.0), curve, Popularity()).fit(ratings.where(ratings.item < 12))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_items_without_ratings_come_in_the_order_of_content(ratings: Interactions, alpha: float) -> None:
    model = cold_blend(ratings, AlphaCurve("constant", (0,), (alpha,)))
    profiles = ratings.where(ratings.item < 12).user_item
    parts, scores = model.components(profiles), model.scores(profiles)
    plain = normalise(model.cf.scores(profiles), candidates(profiles))
    # for rated items nothing changes, to the bit
    np.testing.assert_array_equal(model.new, np.arange(15) >= 12)
    np.testing.assert_array_equal(parts.cf[:, :12], plain[:, :12])
    # second opinion: numpy's straight line from a user's content scores to the collaborative ones of the rated items
    counts, liked = np.bincount(ratings.item, minlength=15)[:12], ~parts.fallback
    slopes = []
    for content, cf, found in zip(parts.content[liked], plain[liked, :12], parts.cf[liked, 12:], strict=True):
        slope = np.polyfit(content[:12].astype(float), cf, 1)[0] if np.ptp(content[:12]) > 0 else 0.0
        level = min(cf.mean(), cf[counts <= np.quantile(counts, 0.1)].mean())
        line = level + max(slope, FLATTEST) * (content[12:] - content[:12].mean())
        if line.min() >= 0 and line.max() <= 1:
            np.testing.assert_allclose(found, line, atol=1e-6)
            slopes.append(slope)
        assert 0 <= found.min() <= found.max() <= 1
    assert len(slopes) > 5
    assert min(slopes) < 0 < max(slopes)  # also for those whom content misjudges
    # 12 and 14 are Love, 13 is War: whatever content prefers for a user comes first, in the blend too
    for made in (parts.cf, scores):
        order = np.argsort(-made[liked, 12:], axis=1, kind="stable")
        np.testing.assert_array_equal(order, np.argsort(-parts.content[liked, 12:], axis=1, kind="stable"))


def test_what_is_expected_of_unrated_items_stays_within_the_scale_in_order() -> None:
    content = np.array([[0.0, 0.1, 0.2, 0.9, 1.0], [0.3, 0.3, 0.3, 0.0, 0.7]], np.float32)
    cf = np.array([[0.0, 0.5, 1.0, 0, 0], [0.2, 0.8, 0.5, 0, 0]], np.float32)
    known = np.arange(5) < 3
    found = expected(content, cf, known, known)
    # first row: the line rises by 5, and would reach 5; the steepest that ends at 1 instead
    np.testing.assert_allclose(found[0], 0.5 + 0.5 / 0.9 * np.array([0.8, 0.9]), atol=1e-6)
    # second row: content says nothing about the rated items
    np.testing.assert_allclose(found[1], 0.5 + FLATTEST * np.array([-0.3, 0.4]), atol=1e-6)


def test_without_metadata_items_without_ratings_keep_the_scores_of_the_model(ratings: Interactions) -> None:
    films = pd.DataFrame({"item_id": ratings.items})
    known = ratings.where(ratings.item < 12)
    model = Hybrid(ContentModel(films, []), EASE(reg=5.0), CURVES["classic"], Popularity()).fit(known)
    assert not model.new.any()
    np.testing.assert_array_equal(
        model.components(known.user_item).cf, normalise(model.cf.scores(known.user_item), candidates(known.user_item))
    )
    assert cold_blend(ratings, CURVES["classic"]).fit(ratings).new.sum() == 0  # fitted again, all are rated


def test_liked_counts_skip_empty_rows() -> None:
    profiles = csr_matrix(np.array([[0, 0, 0], [4, 3, 5], [0, 2, 0]], np.float32))
    assert liked_counts(profiles, 4).tolist() == [0, 2, 0]


# ---- the surface


def slow_ndcg(scores: np.ndarray, seen: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """Sort by (-score, position), drop what is seen, add up the discounts of the hits."""
    order = [i for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)) if not seen[i]][:k]
    gain = sum(1 / np.log2(rank + 2) for rank, i in enumerate(order) if relevant[i])
    return gain / sum(1 / np.log2(rank + 2) for rank in range(min(k, int(relevant.sum()))))


@pytest.mark.parametrize("levels", [3, 1000])
def test_surface_equals_sorting_every_blend(levels: int) -> None:
    rng = np.random.default_rng(levels)  # three levels: nearly everything is tied
    content = (rng.integers(0, levels, (12, 40)) / levels).astype(np.float32)
    cf = rng.integers(0, levels, (12, 40)).astype(np.float32)
    seen = rng.random((12, 40)) < 0.2
    relevant = (rng.random((12, 40)) < 0.15) & ~seen
    relevant[0], relevant[1] = False, ~seen[1]
    seen[2, 5:], relevant[2] = True, False  # five candidates for a list of ten
    relevant[2, 3] = True
    profiles, target = csr_matrix(seen.astype(np.float32)), csr_matrix(relevant.astype(np.float32))
    alphas = [0.0, 0.28, 0.5, 1.0]
    weights = np.column_stack([1 - np.array(alphas), alphas])
    surface = ndcg_surface([content, normalise(cf, candidates(profiles))], profiles, target, weights)
    assert np.isnan(surface[0]).all()
    assert (surface[1] == 1).all()
    for a, alpha in enumerate(alphas):
        fused = fuse(content, cf, alpha, candidates(profiles))
        expected = [slow_ndcg(fused[u], seen[u], relevant[u], 10) for u in range(1, 12)]
        np.testing.assert_allclose(surface[1:, a], expected, atol=1e-12)


@pytest.mark.parametrize("weights", [simplex(3, 0.25), 2 * simplex(3, 0.5), np.array([[1.5, -1.0, 0.5], [1, 0, 0]])])
def test_surface_leaves_out_only_what_no_weighting_lists(weights: np.ndarray) -> None:
    """Most films score low by all parts, as those do that nobody rates; some weightings are no averages."""
    rng = np.random.default_rng(3)
    parts = [np.where(rng.random((8, 400)) < 0.1, rng.random((8, 400)), 0.01).astype(np.float32) for _ in range(3)]
    parts[1][3] = parts[1][3] - 2  # negative scores
    parts[0][4] = parts[1][4] = parts[2][4] = 0.5  # all tied
    seen, relevant = rng.random((8, 400)) < 0.05, np.zeros((8, 400), bool)
    relevant[parts[2] > 0.7], relevant[4, 50:70] = True, True
    relevant &= ~seen
    surface = ndcg_surface(parts, csr_matrix(seen.astype(np.float32)), csr_matrix(relevant.astype(np.float32)), weights)
    for w, row in enumerate(weights):
        fused = weighted(parts, row)
        expected = [slow_ndcg(fused[u], seen[u], relevant[u], 10) for u in range(8)]
        np.testing.assert_allclose(surface[:, w], expected, atol=1e-12)


def test_the_best_path_beats_every_other() -> None:
    rng = np.random.default_rng(0)
    surface, cost = rng.random((4, 3)), rng.random((3, 3))
    every = [np.array(path) for path in np.ndindex(3, 3, 3, 3)]

    def value(path: np.ndarray) -> float:
        return float(surface[np.arange(4), path].sum() - cost[path[:-1], path[1:]].sum())

    assert value(best_path(surface, cost)) == max(value(path) for path in every)
    rising = [path for path in every if (np.diff(path) >= 0).all()]
    best = max(rising, key=lambda path: surface[np.arange(4), path].sum())
    assert best_path(surface, never_down(3)).tolist() == best.tolist()
    assert best_path(np.zeros((2, 3)), np.zeros((3, 3))).tolist() == [0, 0]  # ties: the lower


def test_simplex_holds_each_weighting_once() -> None:
    weights = simplex(3, 0.25)
    assert len(weights) == len(np.unique(weights, axis=0)) == 15  # (4 + 2 over 2)
    assert (weights.sum(axis=1) == 1).all()


# ---- ensembles


@pytest.fixture(scope="module")
def ratings() -> Interactions:
    rng = np.random.default_rng(8)
    user, item = np.nonzero(rng.random((40, 15)) < np.linspace(0.8, 0.2, 15))
    frame = pd.DataFrame({"user_id": user.astype(str), "item_id": [f"i{i:02d}" for i in item]})
    frame["rating"] = rng.integers(1, 6, len(frame))
    return Interactions.from_frame(frame, scale=Scale(1, 5))


def ensemble(train: Interactions) -> WeightedEnsemble:
    weights = {"popularity": [1.0, 0.2], "item_knn": [0.0, 0.3], "ease": [0.0, 0.5]}
    return WeightedEnsemble(
        {"popularity": Popularity(), "item_knn": ItemKNN(k=5), "ease": EASE(reg=5.0)}, [0, 4], weights
    ).fit(train)


def test_an_ensemble_is_the_sum_of_its_portions(ratings: Interactions) -> None:
    model, profiles = ensemble(ratings), ratings.user_item
    portions, scores = model.portions(profiles), model.scores(profiles)
    np.testing.assert_array_equal(sum(portions.values()), scores)
    assert scores.min() >= 0
    assert scores.max() <= 1 + 1e-6
    ease = normalise(model.parts["ease"].scores(profiles), candidates(profiles))
    full = np.diff(profiles.indptr) >= 4
    np.testing.assert_allclose(portions["ease"][full], 0.5 * ease[full], atol=1e-6)
    nobody = csr_matrix((1, 15), dtype=np.float32)
    np.testing.assert_array_equal(
        model.scores(nobody), normalise(model.parts["popularity"].scores(nobody), candidates(nobody))
    )
    assert model.weights_at([2])[0] == pytest.approx([0.6, 0.15, 0.25])  # halfway


def test_an_ensemble_comes_back_from_its_arrays_and_from_json(ratings: Interactions) -> None:
    model = ensemble(ratings)
    again = WeightedEnsemble.from_state(model.state())
    np.testing.assert_array_equal(again.scores(ratings.user_item), model.scores(ratings.user_item))
    parts = {"popularity": {}, "item_knn": {"k": 5}, "ease": {"reg": 5.0}}
    described = {"parts": parts, "sizes": [0, 4], "weights": model.weights}
    told = WeightedEnsemble.from_json(described).fit(ratings)
    np.testing.assert_array_equal(told.scores(ratings.user_item), model.scores(ratings.user_item))


def test_an_ensemble_in_a_hybrid_is_not_normalised_again(ratings: Interactions) -> None:
    films = pd.DataFrame({"item_id": ratings.items, "genres": [["War"] if i % 2 else ["Love"] for i in range(15)]})
    model = ensemble(ratings)
    blended = Hybrid(
        ContentModel(films).fit(ratings), model, AlphaCurve("half", (0,), (0.5,)), Popularity().fit(ratings)
    )
    parts = blended.components(ratings.user_item)
    np.testing.assert_array_equal(parts.cf, model.scores(ratings.user_item))


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [([1], {"popularity": [0.5]}), ([2, 1], {"popularity": [1.0, 1.0]}), ([1], {"popularity": [1.0, 0.0]})],
)
def test_weights_that_add_up_to_no_whole_are_refused(sizes: list[int], weights: dict[str, list[float]]) -> None:
    with pytest.raises(InputError, match="add up to 1"):
        WeightedEnsemble({"popularity": Popularity()}, sizes, weights)


def test_candidates_are_what_the_profile_lacks() -> None:
    profiles = csr_matrix(np.array([[0, 5, 0], [0, 0, 0]], np.float32))
    assert candidates(profiles).tolist() == [[True, False, True], [True, True, True]]


def test_ranked_is_a_stable_sort() -> None:
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((40, 300)).astype(np.float32).round(1)  # many ties
    scores[:, :4] = [0.0, -0.0, 1e-38, -1e-38]
    mask = rng.random(scores.shape) < 0.9
    expected = np.argsort(np.where(mask, -scores, np.inf), axis=1, kind="stable")
    assert np.array_equal(ranked(scores, mask), expected)
