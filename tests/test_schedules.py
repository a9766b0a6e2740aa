"""Schedules: means over ages by hand, the planted loss found, nothing found where nothing was planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from audiences import World, generate_world

from recsys_study.schedules import ScheduleStudy, study_schedules
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation.significance import MARGIN
from recsys_utils.models.rankers import EASE

SMALL = World(users=150, items=400, days=130, seed=5)
SETTINGS = {"schedules": [7, 14, 28], "step_days": 7, "warm_up_days": 20, "most_models": 40, "seed": 2}


def study_of(world: World, **settings: object) -> ScheduleStudy:
    data = Interactions.from_frame(generate_world(world), scale=Scale(1, 5))
    return study_schedules(data, EASE(reg=50, binarise="liked"), **SETTINGS | settings)


@pytest.fixture(scope="module")
def still() -> ScheduleStudy:
    return study_of(SMALL)


def test_a_schedule_is_the_mean_over_its_ages() -> None:
    ages = {0: 0.5, 1: 0.3, 2: 0.1, 3: 0.1}
    rows = [("u", 1, age, value) for age, value in ages.items()] + [("v", 1, age, 1.0) for age in ages]
    events = pd.DataFrame(rows, columns=["user_id", "session", "age", "ndcg@10"]).assign(stale=0.0)
    found = ScheduleStudy(events, (1, 2, 4), "ease", 1)
    assert found.values.loc["u"].tolist() == pytest.approx([0.5, 0.4, 0.25])
    assert found.usual == 4
    assert found.gains[1].value == pytest.approx(0.125)


def test_every_session_meets_every_age_once(still: ScheduleStudy) -> None:
    by_session = still.events.groupby(["user_id", "session"])["age"].agg(lambda ages: sorted(ages.tolist()))
    assert by_session.map(lambda ages: ages == [0, 7, 14, 21]).all()


def test_nothing_planted_nothing_found(still: ScheduleStudy) -> None:
    for gain in still.gains.values():
        assert gain.ci_low <= 0 <= gain.ci_high or abs(gain.value) < MARGIN


def test_items_that_arrive_fast_make_rare_training_lose() -> None:
    """What no model of an age can know is the planted share of new items, averaged over the schedule's ages."""
    world = replace(SMALL, vogue_days=30.0)
    found = study_of(world)
    assert found.gains[28].value < found.gains[14].value < 0
    fresh = found.values[7].mean()
    planted = np.mean([world.unknown(age) for age in (0, 7, 14, 21)]) * fresh
    assert found.gains[28].value == pytest.approx(-planted, abs=0.5 * planted)
    assert found.facts()["rarest"] == 7


def test_a_long_history_is_cut_to_the_stretch_with_most_returns(still: ScheduleStudy) -> None:
    few = study_of(SMALL, most_models=8)
    assert 0 < len(few.events) < len(still.events)
    assert few.events.groupby(["user_id", "session"]).size().eq(4).all()


def test_schedules_beyond_the_history_or_off_the_grid_are_left_out() -> None:
    assert study_of(SMALL, schedules=[7, 10, 14, 700]).schedules == (7, 14)
    assert study_of(SMALL, schedules=[7, 700]).facts() == {"measured": False}


def test_tastes_that_change_make_stale_profiles_lose_but_not_rare_training(still: ScheduleStudy) -> None:
    found = study_of(replace(SMALL, taste_days=20.0))
    assert found.stale.value < still.stale.value - 0.005
    assert found.gains[28].value > -MARGIN


def test_rows_and_contrasts(still: ScheduleStudy) -> None:
    rows = still.metric_rows().set_index("variant")
    assert rows.loc["schedule=28;fold_in=yes;relevance=liked", "value"] == pytest.approx(still.values[28].mean())
    contrasts = {contrast.id: contrast for contrast in still.contrasts()}
    assert set(contrasts) == {"stale-profile", "every-14", "every-28"}
    assert [id for id, contrast in contrasts.items() if contrast.primary] == ["every-28"]
    assert still.figure() is not None
