"""Blending: the curves are the definitions, fusion is bounded and monotone, the fast surface equals the slow way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_matrix

from recsys_utils.blend import (
    CURVES,
    AlphaCurve,
    Blend,
    alpha_surface,
    blend,
    candidates,
    liked_counts,
    linear,
    normalise,
    sigmoid,
    tunable_curves,
)  # fmt: skip
from recsys_utils.content import ContentModel
from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import InputError, Recommender, Scale, Scores

finite = st.floats(-100, 100, width=32)
unit = st.floats(0, 1, width=32)
ALL = np.ones(6, dtype=bool)


class Fixed:
    """A recommender that gives every profile the same scores."""

    def __init__(self, name: str, scores: list[float]) -> None:
        self.name = name
        self.row = np.array(scores, np.float32)

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
    fused = blend(content, cf, alpha, ALL)
    parts = np.stack([content, normalise(cf, ALL)])
    assert (fused >= parts.min(axis=0) - 1e-6).all()
    assert (fused <= parts.max(axis=0) + 1e-6).all()


@given(arrays(np.float32, (1, 6), elements=unit), arrays(np.float32, (1, 6), elements=unit), st.floats(0, 1), unit)
def test_fusion_grows_with_each_part(content: Scores, cf: Scores, alpha: float, more: float) -> None:
    anchored = np.concatenate([cf, [[-1, 2]]], axis=1).astype(np.float32)  # fixes min and max
    padded = np.concatenate([content, [[0, 0]]], axis=1).astype(np.float32)
    mask = np.ones(8, dtype=bool)
    base = blend(padded, anchored, alpha, mask)
    for part in ("content", "cf"):
        raised_content, raised_cf = padded.copy(), anchored.copy()
        (raised_content if part == "content" else raised_cf)[0, 0] += more
        assert blend(raised_content, raised_cf, alpha, mask)[0, 0] >= base[0, 0]


@given(arrays(np.float32, (2, 6), elements=unit), arrays(np.float32, (2, 6), elements=finite))
def test_the_ends_of_alpha_are_the_parts(content: Scores, cf: Scores) -> None:
    np.testing.assert_array_equal(blend(content, cf, 0.0, ALL), content)
    np.testing.assert_array_equal(blend(content, cf, 1.0, ALL), normalise(cf, ALL))


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
    model = Blend(ContentModel(films, ["genres"]), cf, curve, popularity).fit(data)
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
    surface = alpha_surface(content, cf, profiles, target, alphas)
    assert np.isnan(surface[0]).all()
    assert (surface[1] == 1).all()
    for a, alpha in enumerate(alphas):
        fused = blend(content, cf, alpha, candidates(profiles))
        expected = [slow_ndcg(fused[u], seen[u], relevant[u], 10) for u in range(1, 12)]
        np.testing.assert_allclose(surface[1:, a], expected, atol=1e-12)


def test_candidates_are_what_the_profile_lacks() -> None:
    profiles = csr_matrix(np.array([[0, 5, 0], [0, 0, 0]], np.float32))
    assert candidates(profiles).tolist() == [[True, False, True], [True, True, True]]
