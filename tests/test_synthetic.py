"""The generated data: what was planted is what is found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from surprise import SVD, Dataset, Reader
from surprise.model_selection import cross_validate

from recsys_utils.base import InputError, Scale
from recsys_utils.data import catalogue
from recsys_utils.data.interactions import Interactions, item_counts, sessions
from recsys_utils.data.synthetic import SCALE_25M, SMOKE, Size, Synthetic, generate


@pytest.fixture(scope="module")
def data() -> Synthetic:
    return generate()


@pytest.fixture(scope="module")
def ratings(data: Synthetic) -> Interactions:
    return Interactions.from_frame(data.ratings, scale=Scale(1, 5), items=data.items["item_id"].tolist())


def test_the_same_every_time(data: Synthetic) -> None:
    again = generate()
    pd.testing.assert_frame_equal(data.ratings, again.ratings)
    pd.testing.assert_frame_equal(data.items, again.items)
    assert np.array_equal(data.item_factors, again.item_factors)


def test_passes_the_checks_of_real_data(data: Synthetic) -> None:
    catalogue.check(data.ratings, catalogue.merge(data.items).items, Scale(1, 5), "smoke_")
    assert data.items["title"].is_unique
    assert abs(len(data.ratings) - SMOKE.ratings) < 0.02 * SMOKE.ratings
    assert data.ratings.groupby("user_id").size().min() == SMOKE.min_ratings
    assert set(data.ratings["rating"]) == {1, 2, 3, 4, 5}


def test_every_text_field_is_filled_and_cast_has_an_order(data: Synthetic) -> None:
    for field in [*catalogue.LISTS, "overview"]:
        assert data.items[field].map(len).min() > 0, field
    assert any(cast != sorted(cast) for cast in data.items["actors"])


def test_noise_is_the_planted_noise(data: Synthetic, ratings: Interactions) -> None:
    """Far from the ends of the scale a rating is the expected one + N(0, noise^2) + rounding, uniform: 1/12."""
    expected = data.expected_at(ratings.user, ratings.item)
    inside = (expected > 2) & (expected < 4)
    residual = (ratings.rating - expected)[inside]
    assert residual.std() == pytest.approx(np.sqrt(SMOKE.noise**2 + 1 / 12), rel=0.05)
    assert abs(residual.mean()) < 3 * residual.std() / np.sqrt(inside.sum()) + 0.02


def test_large_data_have_the_published_shape_and_the_planted_noise() -> None:
    """Exact counts; half the ratings on a twentieth of the films; residuals have the planted deviation inside."""
    size = SCALE_25M.part(0.002)
    data = generate(size)
    ratings = Interactions.from_frame(data.ratings, scale=Scale(0.5, 5), items=data.items["item_id"].tolist())
    assert (len(ratings), *ratings.shape) == (50_000, 325, 2641) == (size.ratings, size.users, size.items)
    assert set(data.ratings["rating"]) <= {step / 2 for step in range(1, 11)}
    per_item, per_user = np.sort(item_counts(ratings.user_item))[::-1], np.bincount(ratings.user)
    assert per_item.min() >= 1  # every film is rated, as in the published set
    assert per_user.min() >= size.min_ratings
    assert np.median(per_user) < per_user.mean() < per_user.max() / 5
    assert per_item[: size.items // 10].sum() > len(ratings) / 2
    expected = data.expected_at(ratings.user, ratings.item)
    inside = (expected > 2) & (expected < 3.5)
    assert (ratings.rating - expected)[inside].std() == pytest.approx(size.error, rel=0.03)
    pd.testing.assert_frame_equal(generate(size).ratings, data.ratings)


def test_taste_has_the_planted_size(data: Synthetic) -> None:
    """Var(p . q) = taste^2 for p ~ N(0, taste^2/K I) and q with unit variance per factor."""
    taste = data.user_factors @ data.item_factors.T
    assert taste.std() == pytest.approx(SMOKE.taste, rel=0.15)


def test_content_carries_the_planted_share_of_the_factors() -> None:
    """A ridge from content to factors predicts unseen films up to content_share, and not at all where that is 0."""

    def explained(share: float) -> float:
        data = generate(Size(users=20, items=1500, ratings=400, content_share=share))
        words = [[f"{f}:{w}" for f in catalogue.LISTS for w in row[f]] for _, row in data.items.iterrows()]
        design = pd.DataFrame([dict.fromkeys(w, 1.0) for w in words]).fillna(0).to_numpy()
        known, new = slice(0, 1200), slice(1200, None)
        model = Ridge(alpha=3).fit(design[known], data.item_factors[known])
        return float(model.score(design[new], data.item_factors[new]))

    assert 0.6 < explained(0.9) < 0.9
    assert explained(0.0) < 0.05


def test_collaborative_filtering_recovers_taste(data: Synthetic, ratings: Interactions) -> None:
    """An SVD comes closer to the truth than the biases alone can, and not below the noise."""
    table = Dataset.load_from_df(data.ratings[["user_id", "item_id", "rating"]], Reader(rating_scale=(1, 5)))
    model = SVD(n_factors=10, n_epochs=60, lr_all=0.01, reg_all=0.05, random_state=0)
    svd = cross_validate(model, table, ["rmse"], cv=3)["test_rmse"].mean()
    matrix = ratings.user_item.toarray()
    rated = matrix > 0
    expected = data.expected_at(*np.indices(matrix.shape).reshape(2, -1)).reshape(matrix.shape)
    biases = np.clip(expected - data.user_factors @ data.item_factors.T, 1, 5)
    floor = np.sqrt(((np.clip(expected, 1, 5) - matrix)[rated] ** 2).mean())
    without_taste = np.sqrt(((biases - matrix)[rated] ** 2).mean())
    assert floor < svd < 0.85 * without_taste


def test_appeal_and_taste_decide_what_is_seen(data: Synthetic, ratings: Interactions) -> None:
    counts = item_counts(ratings.user_item)
    assert np.corrcoef(data.appeal, np.log1p(counts))[0, 1] > 0.8
    top_tenth = np.sort(counts)[::-1][: len(counts) // 10].sum() / counts.sum()
    assert top_tenth > 0.2  # a uniform choice would give 0.1
    taste = data.user_factors @ data.item_factors.T
    rated = ratings.user_item.toarray() > 0
    assert taste[rated].mean() > taste[~rated].mean() + 0.2


def test_time_is_like_a_site(data: Synthetic, ratings: Interactions) -> None:
    visit = sessions(ratings)
    visits = pd.Series(visit).groupby(ratings.user).max() + 1
    assert 0.4 < (visits == 1).mean() < 0.9
    assert data.ratings.duplicated(["user_id", "timestamp"]).any()
    first = pd.Series(ratings.timestamp).groupby(ratings.user).rank(method="first") <= 5
    popular = item_counts(ratings.user_item)[ratings.item]
    assert popular[first].mean() > 1.2 * popular[~first].mean()


def test_size_is_a_parameter() -> None:
    data = generate(Size(users=1500, items=400, ratings=60_000))
    assert data.items["title"].is_unique
    assert data.ratings["user_id"].nunique() == 1500
    assert abs(len(data.ratings) - 60_000) < 0.02 * 60_000


@pytest.mark.parametrize("size", [Size(ratings=3_999), Size(ratings=30_000)])
def test_impossible_sizes_are_refused(size: Size) -> None:
    """200 users x 20 = 4,000 at least; 0.6 x 200 x 150 = 18,000 at most."""
    with pytest.raises(InputError, match="4000-18000"):
        generate(size)


def test_truth_tables_rebuild_the_expected_ratings(data: Synthetic) -> None:
    users, items, meta = data.truth()
    p, q = np.stack(users["factors"].tolist()), np.stack(items["factors"].tolist())
    rebuilt = meta["mean"] + users["bias"].to_numpy()[:, None] + items["bias"].to_numpy() + p @ q.T
    assert np.allclose(rebuilt.ravel(), data.expected_at(*np.indices(rebuilt.shape).reshape(2, -1)))
