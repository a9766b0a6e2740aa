"""Freshness: time in order, controls of the right size, and planted truth found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from audiences import World, generate_world

from recsys_study import freshness as freshness_study
from recsys_study.freshness import study_caching, study_fold_in
from recsys_study.schedules import study_schedules
from recsys_utils.base import Scale
from recsys_utils.data.interactions import DAY, Interactions, sessions
from recsys_utils.evaluation import protocols
from recsys_utils.evaluation.metrics import agreement
from recsys_utils.evaluation.protocols import Timeline
from recsys_utils.evaluation.significance import Bootstrap
from recsys_utils.models.rankers import EASE, Popularity
from recsys_utils.models.surprise_models import KNN, SVD, predict_by_surprise

SMALL = World(users=150, items=400, days=130, seed=5)


def of(world: World) -> Interactions:
    return Interactions.from_frame(generate_world(world), scale=Scale(1, 5))


@pytest.fixture(scope="module")
def audience() -> tuple[Interactions, pd.DataFrame, pd.DataFrame]:
    data = of(SMALL)
    splits, users, _ = protocols.make_splits(data, seed=3)
    return data, splits, users


class TestTimeline:
    @pytest.fixture
    def timeline(self) -> Timeline:
        """Ann comes on days 0, 5 and 9, Bob on days 4 and 6; Ann likes nothing on day 5."""
        rows = [("ann", "a", 5, 0), ("ann", "b", 2, 5), ("ann", "c", 2, 5.1), ("ann", "d", 5, 9), ("bob", "a", 4, 4),
                ("bob", "b", 5, 6), ("bob", "c", 1, 6.2)]  # fmt: skip
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
        return Timeline(Interactions.from_frame(frame.assign(timestamp=frame["timestamp"] * DAY), scale=Scale(1, 5)))

    def test_a_return_is_a_later_session_with_a_like(self, timeline):
        assert timeline.returns.to_numpy().tolist() == [[0, 2, 9 * DAY], [1, 1, 6 * DAY]]

    def test_a_session_is_known_once_it_is_over(self, timeline):
        # day 5.05 lies between Ann's two ratings of one session: neither is known yet
        assert [len(timeline.before(round(day * DAY))) for day in (0, 4.5, 5.05, 5.5, 6.1, 10)] == [0, 2, 2, 4, 4, 7]

    def test_the_profile_is_of_now_whatever_the_moment(self, timeline):
        case = timeline.case(timeline.returns, int(4.5 * DAY))
        assert case.users.tolist() == [0, 1]
        assert case.profiles.toarray().tolist() == [[5, 2, 2, 0], [4, 0, 0, 0]]
        assert case.relevant.toarray().tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
        assert case.relevant_any.toarray().tolist() == [[0, 0, 0, 5], [0, 5, 1, 0]]
        assert case.train.timestamp.max() == 4 * DAY

    def test_the_order_within_sessions_has_no_say(self, audience):
        """Canary: shuffling time stamps within sessions leaves every value of the study as it was."""
        data = audience[0]
        group = data.user.astype(np.int64) * 10_000 + sessions(data)
        rng = np.random.default_rng(4)
        spread = data.timestamp + rng.integers(0, 3600, len(data))  # a session takes an hour, refits may fall into it
        shuffled = spread.copy()
        for number in np.unique(group):
            rows = np.flatnonzero(group == number)
            shuffled[rows] = spread[rng.permutation(rows)]
        few = {"schedules": (7, 14), "step_days": 7, "warm_up_days": 20, "most_models": 4, "seed": 1}
        found = [study_schedules(replace(data, timestamp=t), Popularity(), **few).events for t in (spread, shuffled)]
        assert not np.array_equal(spread, shuffled)
        pd.testing.assert_frame_equal(*found)


class TestWorld:
    def test_the_share_of_new_items_is_the_planted_one(self):
        """Many items and few picks, so that what a user has rated already does not push the picks to newer items."""
        world = replace(SMALL, items=3000, per_visit=2, vogue_days=60.0)
        frame = generate_world(world)
        age = (frame["timestamp"] - frame["arrival"]) / DAY
        assert age.min() >= 0
        for days in (10, 30):
            assert (age < days).mean() == pytest.approx(world.unknown(days), abs=0.03)
        assert world.unknown(60) == pytest.approx(1 - np.exp(-1))
        assert World().unknown(60) == 0


SIZES = {"sizes": (10, 20), "new_ratings": (1, 5, 10)}


class TestCaching:
    def test_popularity_does_not_age_but_loses_what_was_rated(self, audience):
        """Its ranking is the same for everyone: refilled it is the list of now, unfilled it is the head of that."""
        table = study_caching(*audience, Popularity(), orders=["time"], **SIZES)
        refilled, ten = table.query("list == 'refilled'"), table.query("list == 'ten'")
        assert (refilled[["overlap@10", "rbo@10"]] > 1 - 1e-12).all(axis=None)
        assert refilled["ndcg@10"].abs().max() < 1e-12
        assert ten["ndcg@10"].max() < 1e-12
        assert ten["overlap@10"].mean() < 1
        assert set(zip(table["n"], table["new"], strict=True)) == {(10, 1), (10, 5), (20, 1), (20, 5), (20, 10)}

    def test_lists_drift_apart_with_every_rating(self, audience):
        data, _, users = audience
        table = study_caching(*audience, EASE(reg=50), orders=["random_0"], **SIZES)
        overlap = table.query("n == 20 and list == 'refilled'").groupby("new")["overlap@10"].mean()
        assert overlap.is_monotonic_decreasing
        ids = users["user_id"].to_numpy(dtype=object)
        losses = freshness_study.cache_losses(table, Bootstrap(len(ids), seed=1), ids).query("metric == 'ndcg@10'")
        row = losses.query("list == 'ten' and new == 5 and size == 20").iloc[0]
        part = table.query("list == 'ten' and new == 5 and n == 20")
        assert row["value"] == pytest.approx(part["ndcg@10"].mean())
        both = losses.query("list == 'ten' and new == 5 and size in (10, 20)")["value"].mean()
        assert losses.query("list == 'ten' and new == 5 and size == 'all'")["value"].item() == pytest.approx(both)
        assert len(data.users) == len(ids)


class TestAgreement:
    def test_by_hand(self):
        found = agreement(np.array([[0, 1, 2]], np.int32), np.array([[1, 0, 3]], np.int32), p=0.5)
        # X = 0, 2, 2 at depths 1, 2, 3; rbo = p^3 X_3 / 3 + (1 - p) / p * (p^2 X_2 / 2 + p^3 X_3 / 3)
        assert found["overlap@3"][0] == pytest.approx(2 / 3)
        assert found["rbo@3"][0] == pytest.approx(0.125 * 2 / 3 + 1 * (0.25 * 2 / 2 + 0.125 * 2 / 3))

    def test_limits(self):
        lists = np.array([[3, 1, 2], [0, 1, 2], [0, -1, -1], [-1, -1, -1]], np.int32)
        others = np.array([[3, 1, 2], [3, 4, 5], [0, -1, -1], [0, 1, 2]], np.int32)
        found = agreement(lists, others)
        assert found["overlap@3"].tolist() == pytest.approx([1, 0, 1 / 3, 0])  # padded places agree with nothing
        assert found["rbo@3"][[0, 1, 3]].tolist() == pytest.approx([1, 0, 0])


class TestFoldIn:
    MODELS = (SVD(n_factors=4, n_epochs=5, lr=0.01, reg=0.1), KNN(kind="KNNBaseline", user_based=False), EASE(reg=50))

    @pytest.fixture(scope="class")
    @staticmethod
    def table(audience) -> pd.DataFrame:
        return study_fold_in(*audience, TestFoldIn.MODELS, sizes=(3, 10), folds=1)

    def test_retrained_is_surprise_with_the_profiles_in_the_training_part(self, audience, table):
        data, splits, users = audience
        model = self.MODELS[0]
        fit, tested = (getattr(protocols.fold_users(users, 0), part) for part in ("fit", "test"))
        place = splits["position_random_0"].to_numpy()
        longest = np.bincount(data.user) - protocols.target_size(np.bincount(data.user))
        tested = tested[longest[tested] >= 3]
        mine = np.isin(data.user, tested)
        train = data.where(np.isin(data.user, fit) | (mine & (place < 3)))
        target = data.where(mine & (place >= longest[data.user]))
        error = np.square(target.rating - predict_by_surprise(train, target, model)).sum()
        assert table.query("model == 'svd' and n == 3")["retrained"].sum() == pytest.approx(error, rel=1e-5)

    def test_folding_in_costs_little_where_the_profile_is_long(self, audience, table):
        ids = audience[2]["user_id"].to_numpy(dtype=object)
        losses = freshness_study.fold_in_losses([table], Bootstrap(len(ids), seed=1), ids)
        assert losses[["model", "size", "metric"]].to_numpy().tolist() == [
            ["svd", 3, "rmse"], ["svd", 10, "rmse"], ["knn", 3, "rmse"], ["knn", 10, "rmse"],
            ["ease", 3, "ndcg@10"], ["ease", 10, "ndcg@10"],
        ]  # fmt: skip
        assert losses.query("size == 10")["value"].abs().max() < 0.05

    def test_a_knn_row_is_served_as_surprise_predicts(self, audience):
        data, splits, _ = audience
        test = splits["rating_fold"].to_numpy() == 0
        found = freshness_study.trained_users(data, test, self.MODELS[:2])
        apart = (found["folded"] - found["retrained"]).abs().groupby(found["model"]).max()
        assert apart["knn"] < 1e-4 < apart["svd"]
