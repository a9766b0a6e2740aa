"""Splits add up and respect time, cases hold what their protocol says, tables pair up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import metrics, protocols
from recsys_utils.evaluation.significance import Bootstrap

SIZES = [0, 1, 3, 10, 30]


def made(n_users: int = 60, n_items: int = 80, seed: int = 5) -> Interactions:
    """Users with 12 to 70 ratings of a long-tailed catalogue, with many equal time stamps."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        films = rng.choice(
            n_items, rng.integers(12, 70), replace=False, p=(w := 1 / np.arange(3, n_items + 3)) / w.sum()
        )
        stamps = 1_000_000 + rng.integers(0, 40, len(films)) * 60
        rows.append(pd.DataFrame({"user_id": f"u_{user}", "item_id": [f"i{f}" for f in films], "timestamp": stamps}))
    frame = pd.concat(rows, ignore_index=True)
    frame["rating"] = rng.integers(1, 6, len(frame))
    return Interactions.from_frame(frame, scale=Scale(1, 5), items=[f"i{i}" for i in range(n_items)])


DATA = made()
SPLITS, USERS, FOLDS = protocols.make_splits(DATA, seed=11)
ORDERS = ["time", "random_0"]


def test_a_panel_is_drawn_by_id_and_seed_alone() -> None:
    """Everybody where there are few; else so many, the same in whatever order the users stand."""
    assert protocols.draw_panel(DATA.users, 60, seed=1).all()
    drawn = set(DATA.users[protocols.draw_panel(DATA.users, 20, seed=1)])
    assert len(drawn) == 20
    assert set(DATA.users[::-1][protocols.draw_panel(DATA.users[::-1], 20, seed=1)]) == drawn
    assert set(DATA.users[protocols.draw_panel(DATA.users, 20, seed=2)]) != drawn


def pairs(matrix) -> set[tuple[int, int]]:
    return set(zip(*map(np.ndarray.tolist, matrix.nonzero()), strict=True))


# ---- splits


def test_splits_do_not_depend_on_the_order_of_rows():
    order = np.random.default_rng(1).permutation(len(DATA))
    shuffled = Interactions.from_frame(
        DATA.to_frame().iloc[order].reset_index(drop=True), scale=DATA.scale, items=DATA.items, users=DATA.users
    )
    splits, users, folds = protocols.make_splits(shuffled, seed=11)
    pd.testing.assert_frame_equal(splits, SPLITS.iloc[order].reset_index(drop=True))
    pd.testing.assert_frame_equal(users, USERS)
    pd.testing.assert_frame_equal(folds, FOLDS)


def test_another_seed_gives_other_splits():
    splits, users, _ = protocols.make_splits(DATA, seed=12)
    for column in ("rating_fold", "stratified_0", "position_random_0"):
        assert (splits[column] != SPLITS[column]).mean() > 0.2, column
    assert (users["fold"] != USERS["fold"]).mean() > 0.5
    assert (SPLITS["position_random_0"] != SPLITS["position_random_1"]).mean() > 0.5


def test_folds_are_balanced():
    for fold in (SPLITS["rating_fold"], USERS["fold"], USERS["part"], FOLDS["fold"]):
        sizes = fold.value_counts()
        assert len(sizes) == 5
        assert sizes.max() - sizes.min() <= 1


def test_positions_are_each_users_ranks_and_time_comes_first():
    frame = DATA.to_frame().join(SPLITS)
    for _, part in frame.groupby("user_id"):
        for order in ORDERS:
            assert sorted(part[f"position_{order}"]) == list(range(len(part)))
        assert part.sort_values("position_time")["timestamp"].is_monotonic_increasing


def test_random_orders_of_two_users_are_unrelated():
    """Else the films that open every profile would be the same ones."""
    first = np.bincount(DATA.item[SPLITS["position_random_0"] < 5], minlength=len(DATA.items))
    # 300 draws; the most drawn film has a share below .06 of them in any user's list of at least 12
    assert first.max() < 60 * 5 / 6
    film = np.flatnonzero(DATA.item == np.bincount(DATA.item).argmax())
    relative = SPLITS["position_random_0"].to_numpy()[film] / np.bincount(DATA.user)[DATA.user[film]]
    assert relative.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / len(film)))


def test_last20_is_a_fifth_and_stratified_a_quarter():
    n = np.bincount(DATA.user)
    assert (np.bincount(DATA.user, SPLITS["last20"]) == np.maximum(5, n // 5)).all()
    assert (np.bincount(DATA.user, SPLITS["stratified_0"]) == n - np.round(0.75 * n)).all()


def test_a_user_who_would_keep_too_little_has_no_last20():
    data = made(3)
    keep = (data.user != 0) | (np.cumsum(data.user == 0) <= 9)  # nine ratings: five for the test would leave four
    few = data.where(keep)
    splits, *_ = protocols.make_splits(few, seed=1)
    assert not splits["last20"][few.user == 0].any()
    assert protocols.warm_split(few, splits["last20"]).users.tolist() == [1, 2]


# ---- cases


def test_rating_folds_test_every_rating_once():
    sizes = SPLITS["rating_fold"].value_counts().sort_index()
    assert sizes.index.tolist() == [0, 1, 2, 3, 4]
    assert sizes.sum() == len(DATA)
    assert sizes.max() - sizes.min() <= 1


def test_a_warm_case_adds_up():
    case = protocols.warm_split(DATA, SPLITS["last20"], time_ordered=True)
    assert (case.profiles + case.relevant_any != DATA.user_item[case.users]).nnz == 0
    assert pairs(case.relevant) == pairs(case.relevant_any >= 4)
    assert len(case.train) == len(DATA) - SPLITS["last20"].sum()
    assert case.user_ids.tolist() == DATA.users.tolist()


def test_tuning_inside_a_warm_training_part_never_sees_the_test():
    test = SPLITS["last20"].to_numpy()
    inner = protocols.validation_mask(DATA, test, SPLITS["position_time"])
    assert not (inner & test).any()
    left = np.bincount(DATA.user, ~test)
    expected = np.where(left - np.maximum(5, left // 5) >= 5, np.maximum(5, left // 5), 0)
    assert (np.bincount(DATA.user, inner) == expected).all()
    case = protocols.warm_split(DATA, inner, hidden=test, time_ordered=True)
    assert len(case.train) == len(DATA) - test.sum() - inner.sum()
    protocols.check_tuning(case, protocols.warm_split(DATA, test))


def test_fold_users_part_all_users_and_test_each_once():
    folds = [protocols.fold_users(USERS, fold) for fold in range(5)]
    for fold in folds:
        everybody = np.concatenate([fold.fit, fold.validation, fold.test])
        assert sorted(everybody) == list(range(len(DATA.users)))
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(len(DATA.users)))


@pytest.mark.parametrize("order", ORDERS)
def test_profiles_grow_as_nested_prefixes_before_a_fixed_target(order):
    cases = list(protocols.profile_size_cases(DATA, SPLITS, USERS, 2, order=order, sizes=SIZES))
    assert [case.n for case in cases] == SIZES
    n = np.bincount(DATA.user)
    place = dict(
        zip(zip(DATA.user.tolist(), DATA.item.tolist(), strict=True), SPLITS[f"position_{order}"], strict=True)
    )
    for case in cases:
        assert (case.profiles.getnnz(axis=1) == case.n).all()
        assert set(case.users) == {
            u for u in protocols.fold_users(USERS, 2).test if n[u] - max(10, n[u] // 2) >= case.n
        }
        for row, user in enumerate(case.users):
            assert {place[user, film] for film in case.profiles[row].indices} == set(range(case.n))
            size = max(10, n[user] // 2)
            assert {place[user, film] for film in case.relevant_any[row].indices} == set(range(n[user] - size, n[user]))
        assert not np.isin(case.train.user, case.users).any()


def test_validation_users_are_neither_fitted_nor_reported():
    reported = next(protocols.profile_size_cases(DATA, SPLITS, USERS, 1, order="time", sizes=[3]))
    tuned = next(protocols.profile_size_cases(DATA, SPLITS, USERS, 1, order="time", sizes=[3], part="validation"))
    assert not set(tuned.users) & set(reported.users)
    assert not np.isin(tuned.train.user, tuned.users).any()
    protocols.check_tuning(tuned, reported)


def test_sizes_nobody_has_are_skipped():
    assert [c.n for c in protocols.profile_size_cases(DATA, SPLITS, USERS, 0, order="time", sizes=[1, 1000])] == [1]


def test_cold_items_are_ranked_among_themselves():
    case = protocols.cold_item_case(DATA, FOLDS, 3, hidden=1)
    number = FOLDS["fold"].to_numpy()
    assert set(number[case.train.item]) == set(number[case.profiles.indices]) == {0, 2, 4}
    assert set(number[case.relevant_any.indices]) == {3}
    lists = protocols.rank_lists(np.random.default_rng(1).random(case.profiles.shape, np.float32), case)
    assert set(number[lists.ravel()]) == {3}
    assert sum(protocols.cold_item_case(DATA, FOLDS, f).relevant_any.nnz for f in range(5)) == len(DATA)


# ---- measuring


class Popularity:
    name = "popularity"

    def fit(self, train: Interactions) -> Popularity:
        self.counts = np.bincount(train.item, minlength=len(train.items)).astype(np.float32)
        return self

    def scores(self, profiles):
        return np.tile(self.counts, (profiles.shape[0], 1))


CASE = protocols.warm_split(DATA, SPLITS["last20"])


def test_a_model_scored_in_blocks_ranks_as_at_once(monkeypatch):
    model = Popularity().fit(CASE.train)
    at_once = protocols.rank_lists(model.scores(CASE.profiles), CASE)
    monkeypatch.setattr(protocols, "_CELLS", 7 * len(DATA.items))
    np.testing.assert_array_equal(protocols.rank_lists(model, CASE), at_once)


def test_an_oracle_is_perfect_and_relevance_can_be_widened():
    oracle = CASE.relevant_any.toarray()
    found = protocols.rank_and_measure(oracle, CASE)
    assert found["ndcg@10"].dropna().eq(1).all()
    assert found["ndcg@10"].isna().sum() == (CASE.relevant.getnnz(axis=1) == 0).sum()
    assert protocols.rank_and_measure(oracle, CASE, relevance="any")["hit@10"].eq(1).all()


def test_summaries_name_every_metric_and_count_their_users():
    traits = metrics.ItemTraits.of(CASE.train, [["Drama"]] * len(DATA.items))
    per_user = protocols.rank_and_measure(Popularity().fit(CASE.train), CASE, traits=traits)
    rows = protocols.summarise(
        per_user, Bootstrap(len(DATA.users), 1), users=DATA.users, protocol="ranking-last20", model="popularity"
    ).set_index("metric")
    assert set(rows.index) == {
        "ndcg@10", "recall@10", "map@10", "mrr@10", "hit@10", "novelty@10", "ild@10", "serendipity@10",
        "popularity_lift@10", "calibration_error@10",
    }  # fmt: skip
    assert rows.loc["serendipity@10", "value"] == 0, "popularity can't surprise"
    assert rows.loc["ndcg@10", "n"] == per_user["ndcg@10"].notna().sum()
    assert rows["value"].between(rows["ci_low"] - 1e-9, rows["ci_high"] + 1e-9).all()


def test_alignment_averages_seeds_within_a_user_and_marks_the_absent():
    table = pd.DataFrame({"user_id": ["b", "a", "b"], "ndcg@10": [0.2, 0.5, 0.4], "map@10": [np.nan, 1.0, 0.3]})
    aligned = protocols.align(table, ["a", "b", "c"])
    np.testing.assert_allclose(aligned["ndcg@10"], [0.5, (0.2 + 0.4) / 2, np.nan])
    np.testing.assert_allclose(aligned["map@10"], [1.0, 0.3, np.nan])


def test_a_metric_no_user_has_gives_no_row():
    table = pd.DataFrame({"user_id": ["a", "b"], "ndcg@10": [0.2, 0.4], "popularity_lift@10": [np.nan, np.nan]})
    rows = protocols.summarise(table, Bootstrap(2, 1), users=["a", "b"], protocol="p", model="m")
    assert rows["metric"].tolist() == ["ndcg@10"]


def test_lists_and_errors_are_summarised():
    lists = np.array([[0, 1], [2, 3]], np.int32)
    rows = protocols.summarise_lists(lists, 8, protocol="p", model="m").set_index("metric")
    assert rows.loc["coverage@2", ["value", "n"]].tolist() == [4 / 8, 2]
    assert rows.loc["gini@2", "value"] == metrics.gini(lists, 8)
    sums = metrics.error_sums(np.array([0, 0, 1]), np.array([4.0, 4.0, 4.0]), np.array([3.0, 5.0, 4.0]), 2)
    rows = protocols.summarise_errors(sums, Bootstrap(2, 1), protocol="p", model="m").set_index("metric")
    assert rows["value"].to_dict() == pytest.approx({"rmse": np.sqrt(2 / 3), "mae": 2 / 3})
