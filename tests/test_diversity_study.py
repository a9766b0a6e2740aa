"""The study's arithmetic on lists that can be judged by eye, and the rule that decides what ships."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recsys_utils.diversity import STRATEGIES
from recsys_utils.diversity_study import NDCG, PLAIN, Study, plot_tradeoff, study
from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import Scale
from recsys_utils.protocols import Case, warm_split
from recsys_utils.significance import Bootstrap

N_USERS, N_ITEMS, K = 12, 40, 10
RATIOS = [0.0, 0.05, 0.2]


@pytest.fixture(scope="module")
def case() -> Case:
    """Every user rated films 0 and 1 before and likes film 11 (place 9 of the ranking below) in the test part."""
    rows = [(u, i, 5.0) for u in range(N_USERS) for i in (0, 1, 11)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"]).astype({"user_id": str, "item_id": str})
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=[str(i) for i in range(N_ITEMS)])
    return warm_split(data, data.item == 11)


@pytest.fixture(scope="module")
def found(case: Case) -> Study:
    """Everyone's ranking is 2, 3, 4 ... so the plain list is films 2-11 and its last place is the hit."""
    scores = np.tile(-np.arange(N_ITEMS, dtype=np.float32), (N_USERS, 1))
    items = pd.DataFrame(
        {"item_id": case.train.items, "genres": [["Drama"] if i % 2 else ["War"] for i in range(N_ITEMS)]}
    )
    return study(scores, case, items, RATIOS, seed=1, boot=Bootstrap(N_USERS, seed=2, resamples=200), k=K)


def test_every_setting_stands_beside_the_plain_ranking(found: Study) -> None:
    assert set(found.lists) == {PLAIN} | {(s, r) for s in STRATEGIES if s != "none" for r in (0.05, 0.2)}
    assert (found.lists[PLAIN].items == np.arange(2, 12)).all()


def test_losing_the_hit_at_the_last_place_loses_all_of_ndcg(found: Study) -> None:
    # one relevant film at rank 10: ndcg = 1 / log2(11); ratio .2 replaces ranks 9 and 10 with films of places 19-29
    assert found.estimates(PLAIN)[NDCG].value == pytest.approx(1 / np.log2(11))
    assert found.estimates(("mid-rank", 0.2))[NDCG].value == 0
    assert found.relative_gain(NDCG, ("mid-rank", 0.2)).value == -1
    assert found.gain(NDCG, ("mid-rank", 0.2)).value == pytest.approx(-1 / np.log2(11))
    assert found.relative_gain(NDCG, ("mid-rank", 0.05)).value == 0  # int(10 * .05) = 0 places


def test_coverage_gain_counts_films_over_all_lists(found: Study) -> None:
    lists = found.lists[("mid-rank", 0.2)].items
    assert found.estimates(PLAIN)["coverage@10"].value == 10 / N_ITEMS
    gain = found.gain("coverage@10", ("mid-rank", 0.2))
    assert gain.value == pytest.approx((len(np.unique(lists)) - 10) / N_ITEMS)
    assert gain.ci_low <= gain.value <= gain.ci_high


def test_summary_tells_picks_from_the_films_they_displace(found: Study) -> None:
    row = found.summary.set_index(["strategy", "ratio"]).loc[("mid-rank", 0.2)]
    # two picks, none of them film 11; they displace films 10 and 11, of which one is the hit
    assert (row["picks"], row["relevant"], row["displaced"]) == (2.0, 0.0, 0.5)
    assert np.isnan(found.summary.set_index(["strategy", "ratio"]).loc[("mid-rank", 0.05), "relevant"])


def test_rows_have_one_key_each_and_intervals_around_their_values(found: Study) -> None:
    rows = found.rows(protocol="ranking-last20", model="blend", relevance="liked")
    assert not rows.duplicated(["variant", "metric"]).any()
    assert "diversity=genre-repaired;ratio=0.05;relevance=liked" in set(rows["variant"])
    assert ((rows["ci_low"] <= rows["value"] + 1e-12) & (rows["value"] <= rows["ci_high"] + 1e-12)).all()


def with_summary(found: Study, rows: list[tuple[str, float, float, float]]) -> Study:
    changed = replace(found)
    changed.__dict__["summary"] = pd.DataFrame(rows, columns=["strategy", "ratio", NDCG, "coverage@10"])
    return changed


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a", 0.1, -0.01, 0.2), ("b", 0.1, -0.03, 0.9)], ("a", 0.1)),  # b is over the budget
        ([("a", 0.1, -0.02, 0.2), ("b", 0.1, -0.01, 0.3)], ("b", 0.1)),  # the budget itself is allowed; b adds more
        ([("a", 0.1, 0.0, 0.0), ("b", 0.1, 0.01, -0.1)], PLAIN),  # nothing adds coverage
        ([("a", 0.2, 0.0, 0.3), ("b", 0.1, 0.0, 0.3)], ("b", 0.1)),  # a tie goes to the smaller ratio
        ([], PLAIN),
    ],
)
def test_the_rule(found: Study, rows: list[tuple[str, float, float, float]], expected: tuple[str, float]) -> None:
    assert with_summary(found, rows).choose(0.02) == expected


def test_the_same_seed_gives_the_same_study(found: Study, case: Case) -> None:
    scores = np.tile(-np.arange(N_ITEMS, dtype=np.float32), (N_USERS, 1))
    items = pd.DataFrame(
        {"item_id": case.train.items, "genres": [["Drama"] if i % 2 else ["War"] for i in range(N_ITEMS)]}
    )
    again = study(scores, case, items, RATIOS, seed=1, boot=Bootstrap(N_USERS, seed=2, resamples=200), k=K)
    pd.testing.assert_frame_equal(again.summary, found.summary)


def test_the_figure_has_a_panel_per_gain(found: Study) -> None:
    figure = plot_tradeoff(found.summary, 0.02)
    assert [ax.get_xlabel().startswith("change in ") for ax in figure.axes] == [True] * 4
