from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from recsys_study.grid_search import nested_rating_error, parameters, setting_text, settings
from recsys_utils.base import InputError, RatingPredictor, Recommender, Scale
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.models import rankers, surprise_models
from recsys_utils.models.rankers import EASE, ItemKNN, Popularity
from recsys_utils.models.surprise_models import KNN, SVD, predict_by_surprise

KNN_SETTINGS = [
    KNN(kind=kind, similarity=similarity, user_based=user_based, k=7, min_support=support)
    for kind in ("KNNWithMeans", "KNNBaseline")
    for user_based in (True, False)
    for similarity, support in (("pearson_baseline", 1), ("msd", 2), ("cosine", 3))
]
MODELS = [
    Popularity(),
    SVD(n_factors=8, n_epochs=60, lr=0.02, reg=0.02),
    *KNN_SETTINGS,
    ItemKNN(k=5, shrink=1),
    EASE(reg=1),
    EASE(reg=1, binarise="liked"),
]


def label(model: Recommender) -> str:
    return "-".join(str(v) for v in [model.name, *parameters(model).values()])


def random_ratings(users: int = 40, items: int = 30, density: float = 0.3, seed: int = 0) -> Interactions:
    """Whole stars, so that many similarities tie; one item and one user nobody rated (with)."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=(users, 2)) @ rng.normal(size=(2, items)) + 3.2
    stars = np.clip(np.rint(taste + rng.normal(scale=0.7, size=taste.shape)), 1, 5)
    rated = rng.random(taste.shape) < density
    rated[3, :] = rated[:, 4] = False
    user, item = np.nonzero(rated)
    shuffle = rng.permutation(len(user))
    user, item = user[shuffle].astype(np.int32), item[shuffle].astype(np.int32)
    names = (np.array([f"{x}{n}" for n in range(size)], dtype=object) for x, size in (("u", users), ("i", items)))
    rating = stars[user, item].astype(np.float32)
    return Interactions(*names, user, item, rating, np.zeros(len(user), np.int64), Scale(1, 5))


@pytest.fixture(scope="module")
def ratings() -> Interactions:
    return random_ratings()


def checkerboard(size: int = 20) -> tuple[Interactions, Interactions]:
    """Users and items of two colours: own colour 5, one of each user's left out; three of the other colour 1."""
    rows = []
    for u in range(size):
        own = [i for i in range(size) if (u + i) % 2 == 0]
        other = [i for i in range(size) if (u + i) % 2 == 1]
        held_out = own[(u // 2) % len(own)]
        rows += [(f"u{u}", f"i{i}", 5, i == held_out) for i in own]
        rows += [(f"u{u}", f"i{other[(u // 2 + step) % len(other)]}", 1, False) for step in (1, 4, 6)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "test"])
    data = Interactions.from_frame(frame, scale=Scale(1, 5))
    test = frame["test"].to_numpy()
    return data.where(~test), data.where(test)


@pytest.mark.parametrize("model", MODELS, ids=label)
class TestEveryModel:
    def test_interface(self, model, ratings):
        scores = replace(model).fit(ratings).scores(ratings.user_item)
        assert isinstance(model, Recommender)
        assert scores.shape == ratings.shape
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()

    def test_same_result_twice(self, model, ratings):
        first, second = (replace(model).fit(ratings).scores(ratings.user_item) for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def test_order_of_input_rows_does_not_matter(self, model, ratings):
        mixed = np.random.default_rng(1).permutation(len(ratings))
        columns = {n: getattr(ratings, n)[mixed] for n in ("user", "item", "rating", "timestamp")}
        first, second = (
            replace(model).fit(d).scores(ratings.user_item) for d in (ratings, replace(ratings, **columns))
        )
        np.testing.assert_array_equal(first, second)

    def test_a_block_scores_like_its_rows(self, model, ratings):
        fitted, profiles = replace(model).fit(ratings), ratings.user_item
        one_by_one = np.vstack([fitted.scores(profiles[row]) for row in range(profiles.shape[0])])
        np.testing.assert_allclose(fitted.scores(profiles), one_by_one, rtol=0, atol=2e-6)

    def test_profiles_are_left_as_they_were(self, model, ratings):
        profiles = ratings.user_item.copy()
        replace(model).fit(ratings).scores(profiles)
        assert (profiles != ratings.user_item).nnz == 0

    def test_empty_profiles_score_alike(self, model, ratings):
        scores = replace(model).fit(ratings).scores(csr_matrix((2, ratings.shape[1]), dtype=np.float32))
        assert np.isfinite(scores).all()
        np.testing.assert_array_equal(scores[0], scores[1])

    def test_state_round_trip(self, model, ratings, tmp_path):
        fitted = replace(model).fit(ratings)
        np.savez(tmp_path / "model.npz", **fitted.state())
        with np.load(tmp_path / "model.npz", allow_pickle=False) as state:
            restored = type(model).from_state(dict(state))
        np.testing.assert_array_equal(restored.scores(ratings.user_item), fitted.scores(ratings.user_item))
        assert parameters(restored) == parameters(model)

    def test_refit_forgets_the_old_data(self, model, ratings):
        other = random_ratings(seed=5)
        again = replace(model).fit(other)
        again.scores(other.user_item)
        np.testing.assert_array_equal(
            again.fit(ratings).scores(ratings.user_item), replace(model).fit(ratings).scores(ratings.user_item)
        )

    def test_wrong_catalogue_is_refused(self, model, ratings):
        with pytest.raises(ValueError, match="29 columns"):
            replace(model).fit(ratings).scores(ratings.user_item[:, :-1])

    def test_ratings_are_clipped_scores(self, model, ratings):
        fitted = replace(model).fit(ratings)
        if not isinstance(fitted, RatingPredictor):
            assert model.name in {"popularity", "item_knn", "ease"}
            return
        scores = fitted.scores(ratings.user_item)
        np.testing.assert_array_equal(fitted.ratings(ratings.user_item), np.clip(scores, 1, 5))


@pytest.mark.parametrize("model", MODELS[1:], ids=label)  # popularity knows no taste
def test_held_out_square_of_the_checkerboard_ranks_first(model):
    train, test = checkerboard()
    if isinstance(model, KNN) and model.similarity in {"msd", "cosine"}:
        # both are positive even for opposite tastes (msd 1 / (16 + 1)); the nearest must fill the neighbourhood
        model = replace(model, k=3)
    if isinstance(model, ItemKNN | EASE):
        model = replace(model, binarise="liked")  # who rated what tells nothing here, likes do
    scores = replace(model).fit(train).scores(train.user_item)
    scores[train.user_item.nonzero()] = -np.inf
    held_out = test.item[np.argsort(test.user)]
    np.testing.assert_array_equal(scores.argmax(axis=1), held_out)


def test_popularity_counts_likes_or_ratings(ratings):
    for which, counted in (("liked", ratings.rating >= ratings.scale.liked), ("any", ratings.rating > -1)):
        model = Popularity(which).fit(ratings)
        np.testing.assert_array_equal(
            model.scores(ratings.user_item[:1])[0], np.bincount(ratings.item[counted], minlength=30)
        )
        np.testing.assert_array_equal(model.rated, np.bincount(ratings.item, minlength=30))


@pytest.mark.parametrize("model", KNN_SETTINGS, ids=label)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_knn_equals_surprise_for_trained_users(model, scale):
    ratings = random_ratings(60, 40)
    ratings = replace(ratings, rating=ratings.rating * np.float32(scale), scale=Scale(scale, 5 * scale))
    user, item = np.nonzero(ratings.user_item.toarray() == 0)
    known = np.isin(user, ratings.user)  # Surprise can't serve users without ratings
    unrated = replace(
        ratings, user=user[known].astype(np.int32), item=item[known].astype(np.int32),
        rating=np.zeros(known.sum(), np.float32), timestamp=np.zeros(known.sum(), np.int64),
    )  # fmt: skip
    theirs = predict_by_surprise(ratings, unrated, model)
    ours = replace(model).fit(ratings).ratings(ratings.user_item)[unrated.user, unrated.item]
    assert len(np.unique(theirs)) > 500
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


class TestSvd:
    def test_fold_in_solves_the_stated_ridge_problem(self, ratings):
        """Minimise |y - A w|^2 + c |w|^2 = least squares on A over sqrt(c) I, y over 0, with c = reg (n + 20)."""
        for n_factors in (3, 25):  # fewer and more unknowns than most users have ratings: both branches
            model = SVD(n_factors=n_factors, reg=0.05).fit(ratings)
            folded = model.fold_in(ratings.user_item)
            for user in (0, 3, 11):
                row = ratings.user_item[user]
                a = np.column_stack([np.ones(row.nnz), model.item_factors[row.indices]])
                y = row.data - model.mean - model.item_bias[row.indices]
                stacked = np.vstack([a, np.sqrt(0.05 * (row.nnz + 20)) * np.eye(n_factors + 1)])
                expected = np.linalg.lstsq(stacked, np.concatenate([y, np.zeros(n_factors + 1)]))[0] if row.nnz else 0
                np.testing.assert_allclose(folded[user], expected, atol=1e-10)

    def test_scores_are_the_formula(self, ratings):
        model = SVD(n_factors=4).fit(ratings)
        folded = model.fold_in(ratings.user_item)
        expected = model.mean + model.item_bias + folded[:, :1] + folded[:, 1:] @ model.item_factors.T
        np.testing.assert_allclose(model.scores(ratings.user_item), expected, atol=1e-5)

    def test_empty_profile_scores_mean_and_item_bias(self, ratings):
        model = SVD(n_factors=4).fit(ratings)
        scores = model.scores(csr_matrix((1, 30), dtype=np.float32))
        np.testing.assert_allclose(scores[0], model.mean + model.item_bias, atol=1e-6)
        assert model.item_bias[4] == 0  # nobody rated it

    def test_the_prior_helps_users_of_few_ratings_and_hardly_costs_the_others(self, monkeypatch):
        """Planted factors and noise of 1 rating point: ratings of newcomers from n of theirs, with and without it."""
        rng = np.random.default_rng(11)
        taste, traits = rng.standard_normal((2, 400, 3)) * 0.4
        truth = 3.5 + rng.standard_normal((400, 1)) * 0.4 + taste @ traits[:120].T
        seen = (truth + rng.standard_normal(truth.shape)).clip(1, 5).astype(np.float32)
        user, item = np.nonzero(rng.random((300, 120)) < 0.3)
        ids = [np.array([str(i) for i in range(n)], dtype=object) for n in (300, 120)]
        known = Interactions(
            *ids,
            user.astype(np.int32),
            item.astype(np.int32),
            seen[user, item],
            np.zeros(len(user), np.int64),
            Scale(1, 5),
        )
        model = SVD(n_factors=10, n_epochs=30, lr=0.01, reg=0.1).fit(known)
        error = {}
        for n in (3, 60):
            profiles = csr_matrix(np.where(np.arange(120) < n, seen[300:], 0).astype(np.float32))
            for prior in (0, surprise_models.PRIOR):
                monkeypatch.setattr(surprise_models, "PRIOR", prior)
                error[n, prior > 0] = np.sqrt(np.square(model.ratings(profiles) - seen[300:])[:, 60:].mean())
        assert error[3, True] < error[3, False] - 0.02
        assert error[60, True] < error[60, False] + 0.005

    def test_fold_in_is_close_to_surprise_for_trained_users(self, monkeypatch):
        """Training has converged here, so the second half leaves out the prior, which weighs much at 17 ratings."""
        ratings = random_ratings(200, 60)
        model = SVD(n_factors=5, n_epochs=200, lr=0.02, reg=0.1)
        theirs = predict_by_surprise(ratings, ratings, model)
        ours = replace(model).fit(ratings).ratings(ratings.user_item)[ratings.user, ratings.item]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99
        monkeypatch.setattr(surprise_models, "PRIOR", 0)
        ours = replace(model).fit(ratings).ratings(ratings.user_item)[ratings.user, ratings.item]
        assert np.abs(ours - theirs).mean() < 0.1


class TestItemKnn:
    def test_hand_derived_similarity(self):
        """Users {x, y}, {x, y, z}, {x}: x.y = 2, |x|^2 = 3, |y|^2 = 2, |z|^2 = 1."""
        frame = pd.DataFrame({"user_id": list("aabbbc"), "item_id": list("xyxyzx"), "rating": [5, 1, 3, 4, 2, 5]})
        model = ItemKNN(k=2, shrink=1).fit(Interactions.from_frame(frame, scale=Scale(1, 5)))
        scores = model.scores(csr_matrix([[4.0, 0, 0]], dtype=np.float32))
        np.testing.assert_allclose(scores, [[0, 2 / (np.sqrt(6) + 1), 1 / (np.sqrt(3) + 1)]], rtol=1e-6)

    def test_k_keeps_the_nearest_of_each_target(self, ratings):
        full, cut = (ItemKNN(k=k, shrink=2).fit(ratings).similarity.toarray() for k in (30, 3))
        for target in range(30):
            nearest = np.lexsort((np.arange(30), -full[:, target]))[:3]
            kept = np.flatnonzero(cut[:, target])
            assert set(kept) == {j for j in nearest if full[j, target] > 0}
            np.testing.assert_array_equal(cut[kept, target], full[kept, target])

    def test_likes_only(self, ratings):
        liked = replace(ratings.where(ratings.rating >= 4))
        np.testing.assert_array_equal(
            ItemKNN(binarise="liked").fit(ratings).scores(ratings.user_item),
            ItemKNN(binarise="any").fit(liked).scores(liked.user_item),
        )


class TestEase:
    @pytest.mark.parametrize("binarise", ["any", "liked"])
    def test_textbook_formula(self, ratings, binarise):
        """Column j of B solves min |x_j - X b|^2 + reg |b|^2 under b_j = 0: a ridge without column j."""
        dense = ratings.user_item.toarray()
        x = (dense > 0 if binarise == "any" else dense >= 4).astype(float)
        weights = EASE(reg=2.0, binarise=binarise).fit(ratings).weights
        np.testing.assert_array_equal(np.diag(weights), 0)
        for j in (0, 4, 17):
            others = np.delete(np.arange(30), j)
            part = x[:, others]
            expected = np.linalg.solve(part.T @ part + 2.0 * np.eye(29), part.T @ x[:, j])
            np.testing.assert_allclose(weights[others, j], expected, atol=1e-6)

    @pytest.mark.parametrize("users", [20, 80])
    def test_fewer_users_than_items_or_more(self, users):
        """Two ways to the same inverse: users x users (Woodbury) for 20 users of 30 items, else items x items."""
        data = random_ratings(users)
        x = (data.user_item.toarray() > 0).astype(float)
        p = np.linalg.inv(x.T @ x + 2.0 * np.eye(30))
        expected = -p / np.diag(p)
        np.fill_diagonal(expected, 0)
        np.testing.assert_allclose(EASE(reg=2.0).fit(data).weights, expected, atol=1e-6)

    def test_large_catalogue_is_refused_with_advice(self, ratings):
        many = np.array([f"i{n}" for n in range(15_001)], dtype=object)
        with pytest.raises(InputError, match=r"15,001 x 15,001 would need about 4 GB; at most 15,000.*ItemKNN"):
            EASE(most_rated=20_000).fit(replace(ratings, items=many))

    @pytest.mark.parametrize("model", [EASE(most_rated=12), ItemKNN(k=5, most_rated=12)])
    def test_a_capped_catalogue_compares_the_most_rated_items_only(self, ratings, model):
        """It scores them as a catalogue of nothing else would; the others get 0, like items without a rating."""
        counts = item_counts(ratings.user_item)
        top = np.sort(np.lexsort((np.arange(30), -counts))[:12])
        capped = replace(model).fit(ratings)
        scores = capped.scores(ratings.user_item)
        alone = ratings.where(np.isin(ratings.item, top))
        np.testing.assert_allclose(scores[:, top], replace(model).fit(alone).scores(alone.user_item)[:, top], atol=1e-6)
        assert not np.delete(scores, top, axis=1).any()
        again = type(model).from_state(capped.state())
        np.testing.assert_array_equal(again.scores(ratings.user_item), scores)
        assert parameters(model)["most_rated"] == 12
        assert "most_rated" not in setting_text(type(model)())


class TestGrid:
    OPTIONS = settings(SVD, {"n_factors": [2, 4], "n_epochs": [5], "lr": [0.01], "reg": [0.02, 0.1]})

    def test_jobs_do_not_change_results(self, ratings):
        fold = (np.arange(len(ratings)) % 3).astype(np.int8)
        options = {"svd": self.OPTIONS, "knn": [KNN(k=5), KNN(k=7)], "classic": [KNN()]}
        by = {"folds": 2, "seed": 1, "by_surprise": {"svd", "knn"}}
        one, two = (nested_rating_error(ratings, fold, options, **by, jobs=jobs) for jobs in (1, 2))
        pd.testing.assert_frame_equal(one.agreement, two.agreement)
        pd.testing.assert_frame_equal(one.predictions, two.predictions)
        pd.testing.assert_frame_equal(one.searched, two.searched)
        assert one.chosen == two.chosen
        assert one.overall == two.overall

    def test_nested_predictions_come_from_a_model_that_never_saw_the_fold(self, ratings):
        """Canary: changing the ratings of a fold must not change any prediction or choice for that fold."""
        fold = (np.arange(len(ratings)) % 3).astype(np.int8)
        spoilt = replace(ratings, rating=np.where(fold == 0, 6 - ratings.rating, ratings.rating).astype(np.float32))
        options = {"tuned": self.OPTIONS}
        before, after = (nested_rating_error(d, fold, options, folds=2, seed=1) for d in (ratings, spoilt))
        held_out = fold == 0
        np.testing.assert_array_equal(before.predictions[held_out], after.predictions[held_out])
        assert not np.array_equal(before.predictions[~held_out], after.predictions[~held_out])
        assert before.chosen[0, "tuned"] == after.chosen[0, "tuned"]
        inner = [n.searched.query("fold == 0")["rmse"].to_numpy() for n in (before, after)]
        np.testing.assert_array_equal(*inner)

    def test_every_rating_is_predicted_once_by_the_best_setting(self, ratings):
        fold = (np.arange(len(ratings)) % 3).astype(np.int8)
        nested = nested_rating_error(ratings, fold, {"tuned": self.OPTIONS}, folds=2, seed=1, by_surprise=["tuned"])
        inner = nested.searched["rmse"].to_numpy().reshape(3, len(self.OPTIONS))  # a row an outer fold
        assert nested.chosen == {(f, "tuned"): self.OPTIONS[inner[f].argmin()] for f in range(3)}
        assert nested.overall == {"tuned": self.OPTIONS[inner.mean(axis=0).argmin()]}
        for f in range(3):
            expected = predict_by_surprise(
                ratings.where(fold != f), ratings.where(fold == f), nested.chosen[f, "tuned"]
            )
            np.testing.assert_array_equal(nested.predictions["tuned"][fold == f], expected)

    def test_the_winners_are_checked_against_surprise(self, ratings):
        fold = (np.arange(len(ratings)) % 3).astype(np.int8)
        options = {"svd": self.OPTIONS, "knn": [KNN(k=5), KNN(k=7)], "classic": [KNN()]}
        nested = nested_rating_error(ratings, fold, options, folds=2, seed=1, by_surprise=["svd", "knn"])
        assert nested.agreement[["fold", "name"]].to_numpy().tolist() == [
            [f, n] for f in range(3) for n in ("svd", "knn")
        ]
        assert nested.agreement["largest"].max() < 1e-9

    def test_what_surprise_could_not_hold_is_refused_or_predicted_without_it(self, ratings, monkeypatch):
        """40 users: five matrices of 40 x 40 doubles take 64,000 bytes."""
        monkeypatch.setattr(rankers, "DENSE_BYTES", 63_999)
        with pytest.raises(InputError, match=r"Surprise's KNN: 40 x 40 .* at most 39"):
            predict_by_surprise(ratings, ratings, KNN())
        nested = nested_rating_error(
            ratings,
            (np.arange(len(ratings)) % 3).astype(np.int8),
            {"knn": [KNN()]},
            folds=2,
            seed=1,
            by_surprise=["knn"],
        )
        assert nested.agreement.empty
        assert nested.predictions.notna().all(axis=None)
