"""What filters keep, by hand on five films; and that neither a filter nor its verdict sees what it must not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from blind import check_blind

from recsys_study.catalogue_filters import (
    ALL,
    NDCG,
    NONE,
    REPORTED,
    FilterStudy,
    filters,
    kept,
    largest,
    study_filters,
)
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation.protocols import LeakError, Mask
from recsys_utils.evaluation.significance import Bootstrap
from recsys_utils.models.content import FIELDS
from recsys_utils.models.rankers import EASE
from recsys_utils.models.surprise_models import SVD

LIMITS = {"top": 250, "rating": 7.0, "votes": 10_000, "count": 3}


def interactions(rows: list[tuple[str, str, float]], items: list[str]) -> Interactions:
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    return Interactions.from_frame(frame, scale=Scale(1, 5), items=items)


def catalogue(n: int, **columns: object) -> pd.DataFrame:
    """n films without anything; ``columns`` fill some in."""
    films = pd.DataFrame({"item_id": [str(i) for i in range(n)]})
    for name in FIELDS:
        films[name] = pd.Series([[] for _ in range(n)])
    films["overview"] = ""
    films = films.assign(**{"movie_id": None, "imdb_rating": None, "imdb_votes": None} | columns)
    return films.astype({"movie_id": "string", "imdb_rating": "Float64", "imdb_votes": "Int64"})


@pytest.fixture(scope="module")
def five() -> Interactions:
    """Films 0-4 with 4, 3, 3, 1, 0 ratings and means 5, 3, 11/3, 5, none."""
    scores = {"0": [5, 5, 5, 5], "1": [3, 3, 3], "2": [3, 4, 4], "3": [5]}
    return interactions([(f"u{u}", i, r) for i, given in scores.items() for u, r in enumerate(given)], list("01234"))


NOTHING_TESTED = np.zeros(11, np.bool_)


def names_of(masks: dict[str, Mask], filter_: str) -> list[int]:
    return np.flatnonzero(masks[filter_]).tolist()


class TestFilters:
    def test_own_counts_and_means(self, five: Interactions) -> None:
        masks = filters(five, NOTHING_TESTED, catalogue(5), **LIMITS)
        assert list(masks) == [NONE, "most-rated-1", "mean-3.67", "count-3", "mean-3.67+count-3"]
        assert masks[NONE].all()
        assert names_of(masks, "most-rated-1") == [0]  # at most a quarter of five films
        assert names_of(masks, "mean-3.67") == [0, 2, 3]  # 1 + (7 - 1) / 9 * (5 - 1) = 11 / 3
        assert names_of(masks, "count-3") == [0, 1, 2]
        assert names_of(masks, "mean-3.67+count-3") == [0, 2]

    def test_what_is_known_of_films(self, five: Interactions) -> None:
        films = catalogue(
            5,
            movie_id=["9", None, "8", None, None],
            imdb_rating=[7.0, 8, None, 6.9, 9],
            imdb_votes=[10_000, 9999, 0, 50_000, None],
        )
        films["actors"] = [[], ["m.01"], [], [], []]
        films["genres"] = [[], [], ["War"], [], []]
        later = pd.DataFrame({"item_id": ["8", "3", "1"], "imdb_votes": pd.array([5, 900, None], "Int64")})
        masks = filters(five, NOTHING_TESTED, films, **LIMITS, later=later)
        assert names_of(masks, "with-metadata") == [1]
        assert names_of(masks, "mapped") == [0, 2]
        assert names_of(masks, "imdb-rating-7") == [0, 1, 4]
        assert names_of(masks, "imdb-votes-10000") == [0, 3]
        assert names_of(masks, "imdb-rating-7+votes-10000") == [0]
        assert names_of(masks, "imdb-most-voted-1") == [3]
        assert names_of(masks, "imdb-most-voted-1-joined-by-id") == [3], "movieId 3, taken for item 3"

    def test_ties_go_to_the_lower_index_and_nobody_is_popular_for_nothing(self) -> None:
        assert largest(np.array([2, 3, 3, 3, 0]), 2).tolist() == [False, True, True, False, False]
        assert largest(np.array([0, 1, 0]), 3).tolist() == [False, True, False]

    def test_canary_test_ratings_do_not_decide_who_is_kept(self, world: tuple[Interactions, Mask]) -> None:
        data, test = world

        def run(data: Interactions, test: Mask) -> np.ndarray:
            return np.stack(list(filters(data, test, catalogue(len(data.items)), **LIMITS).values())).astype(np.float32)

        check_blind(run, data, test)
        with pytest.raises(LeakError):
            check_blind(lambda data, test: run(data, np.zeros_like(test)), data, test)


def test_kept_counts_films_ratings_users_and_the_tail(five: Interactions) -> None:
    masks = {NONE: np.ones(5, np.bool_), "third": np.array([False, False, True, True, False])}
    table = kept(five, masks).set_index("filter")
    assert table.loc[NONE].tolist() == [5, 11, 1.0, 4, 1.0]
    # films 2 and 3: 3 + 1 of 11 ratings by users 0-2; the tail is all but film 0 (a fifth): 4 of its 3 + 3 + 1 ratings
    assert table.loc["third"].tolist() == [2, 4, 4 / 11, 3, 4 / 7]


def test_the_classic_run_lost_far_more_than_the_warning_allows() -> None:
    assert REPORTED["share_of_ratings"].item() == REPORTED["ratings"].item() / 100_000


@pytest.fixture(scope="module")
def world() -> tuple[Interactions, Mask]:
    """Two camps of 30 users; each likes its half of 24 films, and dislikes some of the other; a fifth is tested."""
    rng = np.random.default_rng(0)
    rows = []
    for u in range(60):
        own = rng.permutation([i for i in range(24) if i % 2 == u % 2])[:9]
        other = rng.permutation([i for i in range(24) if i % 2 != u % 2])[:3]
        rows += [(f"u{u:02d}", str(i), float(rng.integers(4, 6))) for i in own]
        rows += [(f"u{u:02d}", str(i), float(rng.integers(1, 3))) for i in other]
    data = interactions(rows, [str(i) for i in range(24)])
    return data, np.arange(len(data)) % 5 == 0


@pytest.fixture(scope="module")
def found(world: tuple[Interactions, Mask]) -> FilterStudy:
    data, test = world
    masks = {NONE: np.ones(24, np.bool_), "all-again": np.ones(24, np.bool_), "half": np.arange(24) < 12}
    masks["unrated"] = np.zeros(24, np.bool_)
    svd = SVD(n_factors=4, n_epochs=20, lr=0.02, reg=0.05, seed=1)
    return study_filters(data, test, masks, ease=EASE(reg=10.0, binarise="liked"), svd=svd, time_ordered=False)


class TestStudy:
    def test_filters_that_change_nothing_or_leave_nothing_are_not_fitted(self, found: FilterStudy) -> None:
        assert list(found.ndcg) == list(found.errors) == [(NONE, ALL), ("half", ALL), ("half", "half"), (NONE, "half")]

    def test_all_test_ratings_count_whatever_was_kept(
        self, found: FilterStudy, world: tuple[Interactions, Mask]
    ) -> None:
        data, test = world
        assert found.errors["half", ALL]["count"].sum() == found.errors[NONE, ALL]["count"].sum() == test.sum()
        tested_and_kept = (test & (data.item < 12)).sum()
        assert (
            found.errors["half", "half"]["count"].sum() == found.errors[NONE, "half"]["count"].sum() == tested_and_kept
        )

    def test_dropped_likes_are_missed_and_a_filtered_test_forgets_them(self, found: FilterStudy) -> None:
        whole, cut, flattering = (np.nanmean(found.ndcg[key]) for key in [(NONE, ALL), ("half", ALL), ("half", "half")])
        assert cut < whole
        assert cut < flattering
        assert np.isnan(found.ndcg["half", "half"]).sum() >= np.isnan(found.ndcg["half", ALL]).sum()

    def test_a_dropped_film_is_predicted_worse(self, found: FilterStudy) -> None:
        squared = {key: sums["squared"].sum() for key, sums in found.errors.items()}
        outside = squared["half", ALL] - squared["half", "half"], squared[NONE, ALL] - squared[NONE, "half"]
        assert outside[0] > outside[1]

    def test_rows_name_what_was_trained_and_tested(self, found: FilterStudy) -> None:
        rows = found.rows(Bootstrap(60, seed=1, resamples=200))
        ranked = rows[rows["metric"] == NDCG].set_index("variant")
        assert ranked[["filter", "judged"]].to_dict("index") == {
            "filter=none;tested=all;relevance=liked": {"filter": NONE, "judged": "all test ratings"},
            "filter=half;tested=all;relevance=liked": {"filter": "half", "judged": "all test ratings"},
            "filter=half;tested=half;relevance=liked": {"filter": "half", "judged": "kept only"},
            "filter=none;tested=half;relevance=liked": {"filter": "half", "judged": "kept only, trained on all"},
        }
        assert not rows.duplicated(["protocol", "model", "variant", "metric"]).any()
        assert set(rows["protocol"] + "/" + rows["model"]) == {"ranking-last20/ease", "rating-last20/svd"}

    def test_the_number_of_jobs_does_not_matter(self, found: FilterStudy, world: tuple[Interactions, Mask]) -> None:
        data, test = world
        masks = {NONE: np.ones(24, np.bool_), "half": np.arange(24) < 12}
        svd = SVD(n_factors=4, n_epochs=20, lr=0.02, reg=0.05, seed=1)
        again = study_filters(
            data, test, masks, ease=EASE(reg=10.0, binarise="liked"), svd=svd, time_ordered=False, jobs=2
        )
        for key, values in found.ndcg.items():
            np.testing.assert_array_equal(values, again.ndcg[key])
            np.testing.assert_array_equal(found.errors[key]["squared"], again.errors[key]["squared"])
