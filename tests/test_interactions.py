"""Ids, orders, matrices and the splits made from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_study.ingest import describe
from recsys_utils.base import InputError, Recommender, Scale, child_seed
from recsys_utils.data.interactions import DAY, Interactions, item_counts, natural_order, sessions
from recsys_utils.evaluation.protocols import make_splits, target_size

SCALE = Scale(1, 5)
IDS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=1, max_size=8, unique=True)


def frame(*rows: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"][: len(rows[0])])


def random_data(users: int = 30, items: int = 60, seed: int = 0) -> Interactions:
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{u}", str(i), float(rng.integers(1, 6)), int(rng.integers(0, 40)) * 3600)
        for u in range(users)
        for i in rng.choice(items, size=rng.integers(20, 50), replace=False)
    ]
    return Interactions.from_frame(frame(*rows), scale=SCALE)


class TestIds:
    def test_numbers_inside_ids_count_as_numbers(self) -> None:
        assert natural_order(["10", "9", "100", "1"]) == ["1", "9", "10", "100"]
        assert natural_order(["ml_10", "ml_9", "a_11"]) == ["a_11", "ml_9", "ml_10"]
        assert natural_order(["tt010", "tt9", "tt10"]) == ["tt9", "tt010", "tt10"]  # equal numbers: by text

    @given(IDS)
    def test_order_depends_on_the_ids_alone(self, ids: list[str]) -> None:
        ordered = natural_order(ids)
        assert sorted(ordered) == sorted(ids)
        assert natural_order(reversed(ids)) == ordered
        assert natural_order(ordered) == ordered

    @given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20, unique=True))
    def test_order_of_prefixed_numbers_is_numeric(self, numbers: list[int]) -> None:
        assert natural_order(f"ml_{n}" for n in numbers) == [f"ml_{n}" for n in sorted(numbers)]

    @given(IDS, IDS, st.randoms())
    def test_any_ids_survive_the_way_into_the_matrix_and_back(
        self, users: list[str], items: list[str], rnd: Any
    ) -> None:
        rows = [(u, i, float(1 + (a + b) % 5)) for a, u in enumerate(users) for b, i in enumerate(items)]
        rnd.shuffle(rows)
        data = Interactions.from_frame(frame(*rows), scale=SCALE)
        assert data.users.tolist() == natural_order(users)
        dense = data.user_item.toarray()
        where = {u: n for n, u in enumerate(data.users)}, {i: n for n, i in enumerate(data.items)}
        assert all(dense[where[0][u], where[1][i]] == r for u, i, r in rows)
        assert list(data.to_frame()[["user_id", "item_id", "rating"]].itertuples(index=False, name=None)) == rows


class TestFromFrame:
    def test_catalogue_keeps_its_order_and_its_unrated_films(self) -> None:
        data = Interactions.from_frame(frame(("a", "x", 5), ("b", "z", 3)), scale=SCALE, items=["z", "y", "x"])
        assert data.shape == (2, 3)
        assert data.user_item.toarray().tolist() == [[0, 0, 5], [3, 0, 0]]
        assert item_counts(data.user_item).tolist() == [1, 0, 1]
        assert data.liked_item.toarray().tolist() == [[0, 0, 1], [0, 0, 0]]

    @pytest.mark.parametrize(
        ("table", "says"),
        [
            (frame(("a", "x", 5)).drop(columns="rating"), "no column rating"),
            (frame(("a", "x", 6)), "outside the scale 1-5.*6 by 'a' for 'x'"),
            (frame(("a", "x", float("nan"))), "outside the scale"),
            (frame(("a", "x", 5), ("a", "x", 4)), "same item twice"),
            (frame(("a", "q", 5)), "Unknown: 1 value of item_id.*'q'"),
        ],
    )
    def test_what_can_be_wrong_is_said(self, table: pd.DataFrame, says: str) -> None:
        with pytest.raises(InputError, match=says):
            Interactions.from_frame(table, scale=SCALE, items=["x", "y"])

    def test_a_stored_zero_is_a_rating(self) -> None:
        data = Interactions.from_frame(frame(("a", "x", 0), ("a", "y", 2)), scale=Scale(0, 2))
        assert data.user_item.nnz == 2
        assert item_counts(data.user_item).tolist() == [1, 1]

    def test_subsets_keep_users_and_items(self) -> None:
        data = random_data()
        part = data.where(data.rating >= 4)
        assert part.shape == data.shape
        assert len(part) == (data.rating >= 4).sum()
        assert set(data.of_users(np.array([0, 2])).user) == {0, 2}
        with pytest.raises(ValueError, match="mask has 1 entries"):
            data.where(np.array([True]))


def test_some_users_alone_keep_their_ratings_and_no_other_row() -> None:
    data = random_data()
    few = np.arange(30) % 3 == 1
    alone = data.alone(few)
    assert alone.users.tolist() == data.users[few].tolist()
    assert (alone.user_item != data.user_item[few]).nnz == 0
    assert alone.items is data.items


def test_liked_is_three_quarters_up_the_scale() -> None:
    assert Scale(1, 5).liked == 1 + 0.75 * 4
    assert Scale(0, 10).liked == 0.75 * 10
    assert Scale(1, 5, liked_override=3.5).liked == 3.5
    with pytest.raises(InputError, match="lo < hi"):
        Scale(5, 5)


def test_child_seeds_do_not_depend_on_each_other() -> None:
    seeds = {child_seed(1, *path) for path in [("a",), ("b",), ("a", "b"), ("a", 1), ("ab",)]}
    assert len(seeds) == 5
    assert all(0 <= s < 2**32 for s in seeds)


def test_protocol_is_checked_by_shape_not_by_family() -> None:
    class Constant:
        name = "constant"

        def fit(self, train: Interactions) -> Constant:
            return self

        def scores(self, profiles: Any) -> Any:
            return np.zeros(profiles.shape, np.float32)

    assert isinstance(Constant(), Recommender)


class TestSessions:
    def test_a_pause_of_more_than_a_day_starts_a_visit(self) -> None:
        rows = [("a", "1", 3, 0), ("a", "2", 3, DAY), ("a", "3", 3, 2 * DAY + 1), ("b", "1", 3, 9 * DAY)]
        data = Interactions.from_frame(frame(*rows[::-1]), scale=SCALE)  # row order does not matter
        assert sessions(data).tolist() == [0, 1, 0, 0]

    def test_users_without_ratings_do_no_harm(self) -> None:
        data = Interactions.from_frame(frame(("b", "1", 3, 5)), scale=SCALE, users=["a", "b", "c"])
        assert sessions(data).tolist() == [0]

    def test_brute_force_agrees(self) -> None:
        data = random_data()
        got = sessions(data, gap=3600)
        for u in range(3):
            mine = np.flatnonzero(data.user == u)
            times = np.sort(data.timestamp[mine])
            expected = {t: int((np.diff(times[: np.searchsorted(times, t, "right")]) > 3600).sum()) for t in times}
            assert [expected[t] for t in data.timestamp[mine]] == got[mine].tolist()


def test_description_by_hand() -> None:
    """3 ratings of 2 x 3 pairs; likes are 5 and 4; a came back after two days, b came once."""
    rows = [("a", "x", 5, DAY), ("a", "y", 3, 3 * DAY), ("b", "x", 4, 2 * DAY)]
    facts = describe(Interactions.from_frame(frame(*rows), scale=SCALE, items=["x", "y", "z"]))
    assert facts["density"] == 3 / (2 * 3)
    assert facts["share_of_likes"] == 2 / 3
    assert facts["items_never_rated"] == 1
    assert facts["share_of_ratings_on_top_tenth"] == 2 / 3  # one film stands for the tenth of three
    assert facts["share_of_users_with_one_visit"] == 1 / 2
    assert facts["days_covered"] == 2
    assert facts["median_minutes_from_first_to_last_rating"] == (2 * 24 * 60 + 0) / 2
    undated = describe(Interactions.from_frame(frame(*rows, ("b", "z", 4, 0)), scale=SCALE, items=["x", "y", "z"]))
    assert {name: undated[name] for name in list(facts)[-4:]} == {name: facts[name] for name in list(facts)[-4:]}
    timeless = Interactions.from_frame(frame(("a", "x", 5)), scale=SCALE)
    assert "days_covered" not in describe(timeless)


class TestSplits:
    def test_rows_add_up_and_each_test_part_is_the_end_of_its_users_history(self) -> None:
        data = random_data()
        splits, users, films = make_splits(data, seed=1)
        assert (len(splits), len(users), len(films)) == (len(data), *data.shape)
        counts = np.bincount(data.user)
        tested = np.bincount(data.user, weights=splits["last20"])
        assert tested.tolist() == [max(5, n // 5) for n in counts]
        for u in range(data.shape[0]):
            mine = data.user == u
            late = splits["last20"].to_numpy() & mine
            assert data.timestamp[mine & ~late].max() <= data.timestamp[late].min()
            for column in ("position_time", "position_random_0"):
                assert sorted(splits.loc[mine, column]) == list(range(counts[u]))

    def test_folds_are_balanced_and_disjoint_by_design(self) -> None:
        splits, users, films = make_splits(random_data(), seed=1)
        for column in (splits["rating_fold"], users["fold"], users["part"], films["fold"]):
            sizes = column.value_counts()
            assert len(sizes) == 5
            assert sizes.max() - sizes.min() <= 1
        # a user's validation part must not follow from its test fold, or some folds had no validation users
        assert pd.crosstab(users["fold"], users["part"]).to_numpy().max() < 6

    def test_three_quarters_of_every_user_train_the_stratified_protocol(self) -> None:
        data = random_data()
        splits, _, _ = make_splits(data, seed=1)
        n = np.bincount(data.user)
        tested = np.bincount(data.user, weights=splits["stratified_0"])
        assert tested.tolist() == [k - round(0.75 * k) for k in n]
        assert (splits["stratified_0"] != splits["stratified_1"]).any()

    def test_the_order_of_the_rows_does_not_matter(self) -> None:
        data = random_data()
        order = np.random.default_rng(3).permutation(len(data))
        shuffled = Interactions.from_frame(data.to_frame().iloc[order], scale=SCALE)
        straight, users, films = make_splits(data, seed=1)
        mixed, users_again, films_again = make_splits(shuffled, seed=1)
        pd.testing.assert_frame_equal(straight.iloc[order].reset_index(drop=True), mixed)
        pd.testing.assert_frame_equal(users, users_again)
        pd.testing.assert_frame_equal(films, films_again)

    def test_the_seed_decides(self) -> None:
        data = random_data()
        one, two = make_splits(data, seed=1)[0], make_splits(data, seed=2)[0]
        assert (one["rating_fold"] != two["rating_fold"]).mean() > 0.5
        assert one["position_random_0"].ne(one["position_random_1"]).mean() > 0.5

    def test_target_is_half_but_at_least_ten(self) -> None:
        assert target_size(np.array([20, 30, 737])).tolist() == [max(10, 20 // 2), max(10, 30 // 2), 737 // 2]
