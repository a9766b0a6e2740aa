from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import surprise
from surprise.model_selection import GridSearchCV

from benchmarks.grid import as_stored
from recsys_study.grid_search import settings
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.models import grid_kernels
from recsys_utils.models.surprise_models import KNN, SVD, predict_by_surprise, surprise_trainset
from tests.test_collaborative import random_ratings

SVD_GRID = settings(SVD, {"n_factors": [3, 10], "n_epochs": [7, 12], "lr": [0.005, 0.02], "reg": [0.02, 0.05, 0.1]})
KNN_GRID = settings(
    KNN,
    {
        "kind": ["KNNWithMeans", "KNNBaseline"], "k": [1, 3, 40], "similarity": ["pearson_baseline", "msd", "cosine"],
        "user_based": [True, False], "min_support": [1, 2, 5],
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> grid_kernels.Pair:
    """Whole stars (many tied similarities); user 0 has one training rating, user 1 none, item 2 none."""
    data = random_ratings(35, 25, density=0.4, seed=3)
    held_out = np.random.default_rng(4).random(len(data)) < 0.3
    held_out |= (data.user == 1) | (data.item == 2)
    held_out[data.user == 0] = True
    held_out[np.flatnonzero(data.user == 0)[0]] = False
    train, test = data.where(~held_out), data.where(held_out)
    assert {0, 1} <= set(test.user.tolist())
    assert 2 in test.item
    return train, test


class TestSvd:
    def test_learns_what_surprise_learns_bit_for_bit(self, parts):
        train, _ = parts
        for places in grid_kernels.batches(SVD_GRID):
            batch = [replace(SVD_GRID[place], seed=5) for place in places]
            for place, *ours in grid_kernels.svd_fits(train, batch):
                theirs = batch[place].algorithm().fit(surprise_trainset(train))
                for own, other, mine in zip(("bu", "bi", "pu", "qi"), [train.user, train.item] * 2, ours, strict=True):
                    np.testing.assert_array_equal(mine[np.unique(other)], getattr(theirs, own))
                    assert not mine[np.setdiff1d(np.arange(len(mine)), other)].any(), "unknown ones stay at zero"

    def test_learns_what_surprise_learns_from_rows_in_any_order(self, parts):
        train, test = parts
        order = np.random.default_rng(0).permutation(len(train))
        train = replace(train, user=train.user[order], item=train.item[order], rating=train.rating[order])
        frame = pd.DataFrame({"user": train.user, "item": train.item, "rating": train.rating.astype(float)})
        theirs_train = surprise.Dataset.load_from_df(frame, surprise.Reader(rating_scale=(1, 5))).build_full_trainset()
        rows = list(zip(test.user.tolist(), test.item.tolist(), strict=True))
        for mine, option in zip(grid_kernels.predictions(*as_stored(train, test), SVD_GRID), SVD_GRID, strict=True):
            theirs = option.algorithm().fit(theirs_train)
            np.testing.assert_allclose(mine, [theirs.predict(*row).est for row in rows], rtol=0, atol=1e-12)

    def test_predicts_what_surprise_predicts(self, parts):
        ours = grid_kernels.predictions(*parts, SVD_GRID)
        for mine, option in zip(ours, SVD_GRID, strict=True):
            np.testing.assert_allclose(mine, predict_by_surprise(*parts, option), rtol=0, atol=1e-12)

    def test_batches_hold_every_option_once_and_at_most_four_descents(self):
        options = [replace(option, seed=seed) for seed in (0, 1) for option in SVD_GRID] + KNN_GRID
        batches = grid_kernels.batches(options)
        assert sorted(place for places in batches for place in places) == list(range(len(options)))
        descents = [{(options[p].lr, options[p].reg) for p in b} for b in batches if options[b[0]].name == "svd"]
        assert [len(d) for d in descents] == [4, 2] * 4  # six pairs of lr and reg for each factors and seed
        assert len(batches) - len(descents) == 6  # three similarities, over users and over items


class TestKnn:
    @pytest.mark.parametrize("half_stars", [False, True])
    def test_predicts_what_surprise_predicts(self, parts, half_stars):
        """To the last bit: same sums in the same order, same neighbours where similarities tie."""
        if half_stars:
            scale = Scale(0.5, 2.5)
            parts = tuple(replace(part, rating=part.rating / 2, scale=scale) for part in parts)
        for ours, option in zip(grid_kernels.predictions(*parts, KNN_GRID), KNN_GRID, strict=True):
            np.testing.assert_array_equal(ours, predict_by_surprise(*parts, option), err_msg=str(option))

    def test_ties_go_to_the_earlier_neighbour(self):
        """Users b and c agree with a on x alike (msd 0) and differ on y; with k = 1 the first one counts."""
        users, items = (np.array(list(names), dtype=object) for names in ("abc", "xy"))
        user, item = np.array([0, 1, 2, 1, 2], np.int32), np.array([0, 0, 0, 1, 1], np.int32)
        stars = np.array([3, 3, 3, 5, 1], np.float32)
        train = Interactions(users, items, user, item, stars, np.zeros(5, np.int64), Scale(1, 5))
        test = Interactions(*(users, items), *np.array([[0], [1]], np.int32), *np.zeros((2, 1)), Scale(1, 5))
        (found,) = grid_kernels.predictions(train, test, [KNN(k=1, similarity="msd", min_support=1)])
        assert found == [3 + (5 - 4)]  # mean of a + what b gives y beyond b's own mean

    @pytest.mark.parametrize("similarity", grid_kernels.SIMILARITIES)
    @pytest.mark.parametrize("user_based", [True, False])
    @pytest.mark.parametrize("support", [1, 4])
    def test_similarities_are_surprises(self, parts, similarity, user_based, support):
        train, _ = parts
        ours = grid_kernels.similarities(train, similarity, user_based=user_based, min_support=support)
        option = KNN(similarity=similarity, user_based=user_based, min_support=support)
        theirs = option.algorithm().fit(surprise_trainset(train)).sim
        known = np.unique(train.user if user_based else train.item)
        np.testing.assert_array_equal(ours[np.ix_(known, known)], theirs)

    def test_baselines_are_surprises(self, parts):
        train, _ = parts
        user, item = grid_kernels.baselines(train)
        theirs = surprise.BaselineOnly(verbose=False).fit(surprise_trainset(train))
        np.testing.assert_array_equal(user[np.unique(train.user)], theirs.bu)
        np.testing.assert_array_equal(item[np.unique(train.item)], theirs.bi)


class TestErrors:
    def test_jobs_do_not_change_results(self, parts):
        pairs = grid_kernels.shuffled_folds(parts[0], 3, seed=1)
        options = [SVD_GRID[0], *KNN_GRID[5:8], SVD_GRID[-1]]
        np.testing.assert_array_equal(*(grid_kernels.errors(pairs, options, jobs=jobs) for jobs in (1, 2)))

    def test_errors_are_those_of_surprises_grid_search(self, parts):
        pairs = grid_kernels.shuffled_folds(parts[0], 3, seed=1)

        class Folds:
            def get_n_folds(self):
                return 3

            def split(self, _):
                for train, test in pairs:
                    yield surprise_trainset(train), list(zip(test.user, test.item, test.rating.tolist(), strict=True))

        ours = grid_kernels.errors(pairs, SVD_GRID).mean(axis=0)
        lists = {"n_factors": [3, 10], "n_epochs": [7, 12], "lr_all": [0.005, 0.02], "reg_all": [0.02, 0.05, 0.1]}
        search = GridSearchCV(surprise.SVD, lists | {"random_state": [0]}, measures=["rmse", "mae"], cv=Folds())
        search.fit(None)
        np.testing.assert_allclose(ours[:, 0], search.cv_results["mean_test_rmse"], rtol=1e-12)
        np.testing.assert_allclose(ours[:, 1], search.cv_results["mean_test_mae"], rtol=1e-12)
        assert SVD_GRID[ours[:, 0].argmin()].n_epochs == search.best_params["rmse"]["n_epochs"]

    def test_folds_part_the_ratings_whatever_their_order(self, parts):
        data = parts[0]
        mixed = np.random.default_rng(1).permutation(len(data))
        turned = replace(data, **{n: getattr(data, n)[mixed] for n in ("user", "item", "rating", "timestamp")})
        seen = np.zeros(data.shape, int)
        for (train, test), (_, other) in zip(
            *(grid_kernels.shuffled_folds(d, 4, 2) for d in (data, turned)), strict=True
        ):
            seen[test.user, test.item] += 1
            assert len(train) + len(test) == len(data)
            assert abs(len(test) - len(data) / 4) <= 1
            assert (test.user_item != other.user_item).nnz == 0
        np.testing.assert_array_equal(seen, data.user_item.toarray() > 0)
