"""The study's arithmetic on lists that can be judged by eye, and the rules that choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from recsys_study import diversity
from recsys_study.diversity import DIVERSITY, GOALS, NDCG, OUTSIDE, PLAIN, Setting, Study, study
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.data.synthetic import generate
from recsys_utils.evaluation.protocols import (
    Case,
    LeakError,
    make_splits,
    measure,
    rank_lists,
    tuning_and_test,
    warm_split,
)
from recsys_utils.evaluation.significance import Bootstrap
from recsys_utils.models.content import ContentModel
from recsys_utils.models.rankers import EASE, Popularity
from recsys_utils.ranking.hybrid import CURVES, AlphaCurve, Hybrid
from recsys_utils.ranking.rerank import ItemFacts

N_USERS, N_ITEMS, K = 12, 40, 10
SETTINGS = [("mid-rank", 0.05), ("mid-rank", 0.2), ("mmr", 0.3), ("exposure", 0.5), ("genre-repaired", 0.05)]


class Fixed:
    """Everyone's ranking is by falling position number."""

    name = "fixed"

    def fit(self, train: Interactions) -> Fixed:
        return self

    def scores(self, profiles: csr_matrix) -> np.ndarray:
        return np.tile(-np.arange(profiles.shape[1], dtype=np.float32), (profiles.shape[0], 1))


def films(n: int = N_ITEMS) -> pd.DataFrame:
    return pd.DataFrame(
        {"item_id": [str(i) for i in range(n)], "genres": [["Drama"] if i % 2 else ["War"] for i in range(n)]}
    )


@pytest.fixture(scope="module")
def case() -> Case:
    """Every user rated films 0 and 1 before and likes film 11 (place 9 of the ranking below) in the test part."""
    rows = [(u, i, 5.0) for u in range(N_USERS) for i in (0, 1, 11)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"]).astype({"user_id": str, "item_id": str})
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=[str(i) for i in range(N_ITEMS)])
    return warm_split(data, data.item == 11)


def studied(case: Case, items: pd.DataFrame | None = None) -> Study:
    boot = Bootstrap(N_USERS, seed=2, resamples=200)
    catalogue = films() if items is None else items
    return study(Fixed(), case, items=catalogue, settings=SETTINGS, seed=1, boot=boot, k=K, protocol="toy")


@pytest.fixture(scope="module")
def found(case: Case) -> Study:
    """The plain list is films 2-11 and its last place is the hit."""
    return studied(case)


def test_losing_the_hit_at_the_last_place_loses_all_of_ndcg(found: Study) -> None:
    # one relevant film at rank 10: ndcg = 1 / log2(11); ratio .2 replaces ranks 9 and 10 with films of places 19-29
    assert found.estimates(PLAIN)[NDCG].value == pytest.approx(1 / np.log2(11))
    assert found.estimates(("mid-rank", 0.2))[NDCG].value == 0
    assert found.cost(("mid-rank", 0.2)).value == -1
    assert found.estimates(("mid-rank", 0.2), less_plain=True)[NDCG].value == pytest.approx(-1 / np.log2(11))
    assert found.cost(("mid-rank", 0.05)).value == 0  # int(10 * .05) = 0 places


def test_coverage_gain_counts_films_over_all_lists(found: Study) -> None:
    lists = found.lists[("mid-rank", 0.2)].items
    assert found.estimates(PLAIN)["coverage@10"].value == 10 / N_ITEMS
    gain = found.estimates(("mid-rank", 0.2), less_plain=True)["coverage@10"]
    assert gain.value == pytest.approx((len(np.unique(lists)) - 10) / N_ITEMS)
    assert gain.ci_low <= gain.value <= gain.ci_high


def test_blocks_of_users_change_nothing(found: Study, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_utils.evaluation.protocols._CELLS", 5 * N_ITEMS)  # five users at a time
    again = studied(case)
    for setting, lists in found.lists.items():
        assert (again.lists[setting].items == lists.items).all(), setting
        assert (again.lists[setting].exploration == lists.exploration).all()
    pd.testing.assert_frame_equal(again.summary, found.summary)


def test_summary_tells_picks_from_the_films_they_displace(found: Study) -> None:
    row = found.summary.set_index(["strategy", "ratio"]).loc[("mid-rank", 0.2)]
    # two picks, none of them film 11; they displace films 10 and 11, of which one is the hit
    assert (row["picks"], row["relevant"], row["displaced"]) == (2.0, 0.0, 0.5)
    assert np.isnan(found.summary.set_index(["strategy", "ratio"]).loc[("mid-rank", 0.05), "relevant"])


def test_rows_have_one_key_each_and_intervals_around_their_values(found: Study) -> None:
    rows = found.rows()
    assert not rows.duplicated(["variant", "metric"]).any()
    assert {"diversity=mmr;lambda=0.3;relevance=liked", "diversity=mid-rank;ratio=0.2;relevance=liked"} <= set(
        rows["variant"]
    )
    assert set(rows["protocol"]) == {"toy"}
    assert ((rows["ci_low"] <= rows["value"] + 1e-12) & (rows["value"] <= rows["ci_high"] + 1e-12)).all()
    assert set(found.judged_by("any").rows()["variant"].str.split(";").str[-1]) == {"relevance=any"}


def test_a_catalogue_without_genres_has_no_goal_of_genres(case: Case) -> None:
    bare = studied(case, films().assign(genres=[[] for _ in range(N_ITEMS)]))
    assert [goal.metric for goal in bare.shares] == ["coverage@10"]
    assert not {"ild@10", "calibration_error@10", OUTSIDE} & set(bare.rows()["metric"])
    assert list(
        diversity.tastes(case, ItemFacts.of(films().assign(genres=[[]] * N_ITEMS), np.zeros(N_ITEMS, int)))
    ) == ["popularity-taste"]
    diversity.tradeoff(bare.summary, 0.02, PLAIN)


def with_points(found: Study, rows: dict[Setting, tuple[float, float, float, float]]) -> Study:
    """ndcg, calibration error, genre distance, coverage by setting; the plain ranking has .5, 1.0, .6, .2."""
    names = (NDCG, *(goal.metric for goal in GOALS))
    changed = replace(found)
    rows = {PLAIN: (0.5, 1.0, 0.6, 0.2)} | rows
    changed.__dict__["points"] = {setting: dict(zip(names, row, strict=True)) for setting, row in rows.items()}
    return changed


# with SPARE = 1.25 the goals are: error <= .75, distance >= .6375, coverage >= .375; budget 2 %: ndcg >= .49
CALIBRATED, DISTANT = (0.495, 0.7, 0.6, 0.2), (0.497, 1.0, 0.7, 0.2)
BOTH, WIDE = (0.491, 0.7, 0.7, 0.2), (0.499, 1, 0.6, 0.5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({("mmr", 0.1): CALIBRATED, ("dpp", 0.1): DISTANT, ("xquad", 0.1): BOTH}, ("xquad", 0.1)),  # most goals
        ({("mmr", 0.1): CALIBRATED, ("dpp", 0.1): DISTANT}, ("dpp", 0.1)),  # as many: more ndcg
        ({("mmr", 0.1): CALIBRATED, ("xquad", 0.1): (0.489, 0.1, 0.9, 0.9)}, ("mmr", 0.1)),  # over the budget
        ({("exposure", 0.1): WIDE, ("mmr", 0.1): CALIBRATED}, ("mmr", 0.1)),  # only for batches
        ({("exposure", 0.1): WIDE}, PLAIN),
        ({("mmr", 0.1): (0.5, 0.78, 0.62, 0.3)}, PLAIN),  # reaches goals, but with nothing to spare
        ({}, PLAIN),
    ],
)
def test_what_is_served(
    found: Study, rows: dict[Setting, tuple[float, float, float, float]], expected: Setting
) -> None:
    assert diversity.SPARE == 1.25
    assert with_points(found, rows).choose(0.02) == expected


def test_the_knee_is_the_cheapest_setting_that_reaches_the_goal_or_else_the_furthest(found: Study) -> None:
    rows = {("mmr", 0.1): CALIBRATED, ("mmr", 0.2): (0.492, 0.3, 0.6, 0.2), ("exposure", 0.3): (0.499, 1, 0.62, 0.31)}
    some = with_points(found, rows)
    calibration, distance, coverage = GOALS
    assert some.knee(calibration, 0.02) == ("mmr", 0.1)  # .2 goes further at a higher price
    assert some.knee(coverage, 0.02) == ("exposure", 0.3)  # .31 is less than .375, but nothing comes nearer
    assert some.knee(distance, 0.02) == ("exposure", 0.3)
    assert some.knee(coverage, 0.02, servable=True) == PLAIN  # as good as any here, with most ndcg
    assert some.knee(coverage, 0.001) == PLAIN
    assert some.shares[calibration][("mmr", 0.1)] == pytest.approx(0.3 / 0.2)
    assert some.shares[distance][("exposure", 0.3)] == pytest.approx(0.02 / 0.03)


def test_share_outside_the_top_genres_by_hand() -> None:
    # genres a-e; the profile's top three are b, c, d; film 3 is half d, half e
    mix = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5]])
    wanted = np.array([[0.1, 0.4, 0.3, 0.2, 0.0], [0.0, 0, 0, 0, 0]])
    found = diversity.outside_share(np.array([[0, 1, 2, 3], [0, 1, -1, -1]], np.int32), mix, wanted)
    assert found[0] == pytest.approx((1 + 0 + 0.5) / 3)  # film 2 has no genre and does not count
    assert np.isnan(found[1])


def test_tastes_are_thirds_by_entropy_and_by_popularity() -> None:
    # user u rated films of u + 1 genres; film i was rated by 10 i others
    genres = [[g] for g in "abc"] * 3
    rated = [[0, 3, 6], [0, 1, 3], [6, 7, 8]]
    rows = [(f"u{u}", str(i), 5.0) for u, films_of in enumerate(rated) for i in films_of] + [
        (f"u{u}", "2", 5.0) for u in (0, 1)
    ]
    frame = pd.DataFrame([*rows, ("u2", "5", 5.0)], columns=["user_id", "item_id", "rating"])
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=[str(i) for i in range(9)])
    case = warm_split(data, np.r_[np.zeros(9, bool), np.ones(3, bool)])
    items = pd.DataFrame({"item_id": data.items, "genres": genres})
    found = diversity.tastes(case, ItemFacts.of(items, 10 * np.arange(9)))
    assert found["genre-taste"].tolist() == ["narrow", "middle", "broad"]
    assert found["popularity-taste"].tolist() == ["middle", "niche", "mainstream"]  # means 30, 13, 70


def test_segments_add_up_to_the_whole(found: Study) -> None:
    groups = {"half": np.array(["left", "right"], object)[np.arange(N_USERS) % 2]}
    rows = diversity.by_taste(found, groups, [("mmr", 0.3)])
    assert not rows.duplicated(["segment", "variant", "metric"]).any()
    whole = found.estimates(("mmr", 0.3))["ild@10"].value
    parts = rows[(rows["metric"] == "ild@10") & (rows["strategy"] == "mmr")]
    assert parts["value"].mean() == pytest.approx(whole)
    assert parts["change"].mean() == pytest.approx(found.estimates(("mmr", 0.3), less_plain=True)["ild@10"].value)
    assert (rows.loc[rows["strategy"] == "none", "change"] == 0).all()
    assert (parts["n"] == N_USERS / 2).all()


# ---- the base, and the guard


@pytest.fixture(scope="module")
def taste() -> Interactions:
    """Two camps of users and films; everyone rates 20 films, own camp 5, the other 2."""
    rng = np.random.default_rng(3)
    rows = [
        (f"u{u:02d}", str(i), 5.0 if i % 2 == u % 2 else 2.0)
        for u in range(60) for i in np.concatenate([rng.choice(np.arange(c, 40, 2), 10, replace=False) for c in (0, 1)])
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    return Interactions.from_frame(frame, scale=Scale(1, 5), items=[str(i) for i in range(40)])


CHOICE = {"cf": "ease", "settings": {"reg": 1e9}, "curve": CURVES["classic"].to_json()}


def build(option: Mapping[str, Any]) -> Hybrid:
    return Hybrid(
        ContentModel(films()), EASE(**option["settings"]), AlphaCurve.from_json(option["curve"]), Popularity()
    )


def thirds(data: Interactions) -> tuple[Case, Case]:
    place = np.arange(len(data)) % 20
    return warm_split(data, place % 5 == 0, hidden=place % 5 == 1), warm_split(data, place % 5 == 1)


def test_the_base_is_the_best_of_what_was_tried(taste: Interactions) -> None:
    inner, _ = thirds(taste)
    tried = diversity.tune_base(CHOICE, [{"reg": 5.0}], [0.5, 1.0], inner, build)
    assert len(tried) == 2 + 2
    assert [value for value, _ in tried] == sorted((value for value, _ in tried), reverse=True)
    for value, option in tried:
        again = measure(rank_lists(build(option).fit(inner.train), inner), inner)[NDCG].mean()
        assert again == pytest.approx(value), option
    assert diversity.tune_base(CHOICE, [], [], inner, build)[0][1] == CHOICE


def test_canary_strengths_tuned_on_the_test_part(taste: Interactions, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, outer = thirds(taste)
    common = {"base_settings": [], "base_alphas": [], "build": build, "items": films(), "settings": SETTINGS, "seed": 1}
    _, tuning, test = diversity.run_trial(CHOICE, inner, outer, **common)
    assert (tuning.case, test.case) == (inner, outer)
    with pytest.raises(LeakError, match="chosen on"):
        diversity.run_trial(CHOICE, outer, outer, **common)
    monkeypatch.setattr(diversity, "check_tuning", lambda *_: None)
    _, leaky, test = diversity.run_trial(CHOICE, outer, outer, **common)
    assert leaky.points == test.points  # without the guard the choice would see what is reported


def test_the_table_of_knees_gives_one_person_a_row_where_the_knee_is_for_batches(taste: Interactions) -> None:
    inner, outer = thirds(taste)
    common = {"base_settings": [], "base_alphas": [], "build": build, "items": films(), "settings": SETTINGS, "seed": 1}
    trial = diversity.run_trial(CHOICE, inner, outer, **common)
    table = diversity.knee_table({"there": trial}, 0.9)
    for goal in GOALS:
        rows, knee = table[table["goal"] == goal.name], trial.tuning.knee(goal, 0.9)
        assert rows["knee"].iloc[0] == knee
        assert rows["share of the target"].iloc[0] == trial.test.shares[goal][knee]
        assert rows["to one person"].tolist() == ([False, True] if knee[0] == "exposure" else [True])
    assert all(knee[0] != "exposure" for knee in table.loc[table["to one person"], "knee"])
    primary, cost, *_ = diversity.contrasts(trial, 0.9)
    assert (primary.primary, cost.margin) == (True, 0.9)
    assert primary.value == pytest.approx(
        -trial.test.estimates(diversity.judged_setting(trial.tuning, 0.9), less_plain=True)[GOALS[0].metric].value
    )


def test_strategies_move_what_they_aim_at_and_random_picks_are_liked_less() -> None:
    """On generated data the truth is known."""
    made = generate()
    data = Interactions.from_frame(made.ratings, scale=Scale(1, 5), items=made.items["item_id"])
    splits, _, _ = make_splits(data, seed=1, random_orders=1, stratified_seeds=1)
    _, case = tuning_and_test(data, splits["last20"], splits["position_time"], time_ordered=True)
    aims = {("mmr", 0.3): "ild@10", ("dpp", 0.2): "ild@10", ("xquad", 0.8): "calibration_error@10",
            ("calibration", 0.4): "calibration_error@10", ("discount", 0.4): "novelty@10",
            ("exposure", 0.9): "gini@10"}  # fmt: skip
    boot = Bootstrap(len(case.users), seed=2, resamples=500)
    model = EASE(reg=50.0).fit(case.train)
    found = study(model, case, items=made.items, settings=[*aims, ("mid-rank", 0.3)], seed=1, boot=boot)
    for setting, metric in aims.items():
        gain = found.estimates(setting, less_plain=True)[metric]
        assert DIVERSITY[metric][2] * gain.value > 0, setting
        assert gain.ci_low * gain.ci_high > 0, (setting, gain)
    row = found.summary.set_index(["strategy", "ratio"]).loc[("mid-rank", 0.3)]
    assert row["relevant"] < row["displaced"]


def test_the_front_holds_what_nothing_beats() -> None:
    rng = np.random.default_rng(9)
    table = pd.DataFrame(rng.random((40, 2)), columns=[NDCG, "gini@10"])  # less Gini is better
    beaten = [
        ((table[NDCG] >= row[NDCG]) & (table["gini@10"] <= row["gini@10"]) & (table.index != i)).any()
        for i, row in table.iterrows()
    ]
    assert sorted(diversity.pareto(table, "gini@10").index) == table.index[~np.array(beaten)].tolist()


def test_the_figure_has_a_panel_per_kind_of_diversity(found: Study) -> None:
    figure = diversity.tradeoff(found.summary, 0.02, ("mid-rank", 0.2))
    assert [ax.get_xlabel().startswith("change in ") for ax in figure.axes] == [True] * len(DIVERSITY)
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"Pareto front", "none", "mmr", "exposure", "genre-repaired", "served", "budget"}
