"""The study of user KNN: who is tested on what, and that nothing that is hidden decides anything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recsys_study import neighbours as study
from recsys_study.stage_files import Population
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.data.synthetic import Size, generate
from recsys_utils.evaluation.protocols import fold_users, make_splits
from recsys_utils.evaluation.significance import Bootstrap
from recsys_utils.models.neighbours import Neighbours

MADE = generate(Size(users=80, items=60, ratings=2200))
DATA = Interactions.from_frame(MADE.ratings, scale=Scale(1, 5), items=MADE.items["item_id"])
SPLITS, USERS, _ = make_splits(DATA, seed=5, random_orders=2, stratified_seeds=1)
CLASSIC = Neighbours(k=20, min_overlap=3, min_votes=1)
GRID = [CLASSIC, replace(CLASSIC, shrinkage=20.0)]


def population(data: Interactions = DATA, tested: np.ndarray | None = None) -> Population:
    return Population(data, SPLITS, np.ones(len(USERS), bool) if tested is None else tested)


def newcomers(everyone: Population | None = None, sizes: tuple[int, ...] = (5, 10, 500)) -> study.Newcomers:
    return study.Newcomers.of(everyone or population(), USERS, sizes=sizes, tune_size=8, has_time=True)


def turned_round(rows: np.ndarray) -> Interactions:
    """The same ratings, but those under ``rows`` are what their users did not think."""
    return replace(DATA, rating=np.where(rows, 6 - DATA.rating, DATA.rating).astype(np.float32))


def test_sizes_that_nobody_has_are_left_out_and_the_primary_one_is_not_above_the_wanted_one() -> None:
    found = newcomers()
    assert list(found.have) == [5, 10]
    assert found.primary == 5  # 10 is more than 8
    assert found.have[5] == len(USERS)  # everybody has 20 ratings or more, ten of them are the target
    assert found.orders == ("random_0", "random_1", "time")
    assert set(found.constant) == {u for u, n in zip(*np.unique(DATA.users[DATA.user], return_counts=True), strict=True)
                                   if n - max(10, n // 2) >= 10}  # fmt: skip
    with pytest.raises(ValueError, match="sizes"):
        newcomers(sizes=(500,))


def test_who_is_not_tested_is_in_every_fit() -> None:
    tested = np.arange(len(USERS)) % 2 == 0
    found = newcomers(population(tested=tested))
    for fold in range(5):
        parts = fold_users(found.users, fold)
        assert set(np.flatnonzero(~tested)) <= set(parts.fit)
    assert USERS["fold"].min() == 0  # the table that was passed in stays as it was


def test_test_users_have_no_say_in_the_settings() -> None:
    """Turned-round ratings of a fold's test users leave what its validation users choose as it was."""
    parts = fold_users(USERS, 0)
    before = study.validation_errors(newcomers(), GRID, jobs=1)
    after = study.validation_errors(newcomers(population(turned_round(np.isin(DATA.user, parts.test)))), GRID, jobs=1)
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.array_equal(before[1], after[1])  # they are in the fit of the other folds


def test_newcomers_are_tested_on_the_same_targets() -> None:
    people = newcomers()
    more = {"k=5": replace(CLASSIC, k=5)}
    found = study.evaluate(people, CLASSIC, [CLASSIC] * 5, more, jobs=1)
    every = found.sums("classic", "all", "random", 5)
    assert np.nansum(every["count"]) == sum(2 * max(10, n // 2) for n in np.bincount(DATA.user))  # two seeds
    np.testing.assert_array_equal(every["absolute"], found.sums("tuned", "all", "random", 5)["absolute"])
    some, known = (found.sums(m, "of tuned", "random", 5) for m in ("item mean + offset", "tuned"))
    np.testing.assert_array_equal(some["count"], known["count"])
    boot = Bootstrap(len(USERS), seed=1, resamples=200)
    by_hand = (np.nansum(some["absolute"]) - np.nansum(known["absolute"])) / np.nansum(known["count"])
    assert found.gain(boot, "random", 5).value == pytest.approx(by_hand)
    contrasts = {contrast.id: contrast for contrast in found.contrasts(boot, margin=0.01)}
    assert contrasts["neighbours-item-mean"].primary
    assert contrasts["neighbours-item-mean"].value == pytest.approx(by_hand, abs=1e-6)
    assert set(contrasts) == {
        "neighbours-item-mean",
        "all-targets",
        "largest-profile",
        "time-order",
        "lists-5",
        "lists-10",
    }
    rows = pd.concat([found.error_rows(boot), found.list_rows(boot)])
    assert len(study.profile_figure(found, rows).axes) == 3
    assert np.isfinite(rows[["value", "ci_low", "ci_high", "n"]].to_numpy(np.float64)).all()
    changes = found.settings(boot, ["tuned", "k=5"])
    assert changes["value"].iloc[0] == 0  # tuned is the classic setting here
    assert len(study.settings_figure(changes).axes) == 4


def test_a_hidden_fold_of_ratings_decides_neither_settings_nor_predictions() -> None:
    fold = SPLITS["rating_fold"].to_numpy()
    order = np.arange(len(USERS))
    before = study.predict_known(population(), CLASSIC, GRID, order, jobs=1)
    after = study.predict_known(population(turned_round(fold == 2)), CLASSIC, GRID, order, jobs=1)
    hidden = fold == 2
    pd.testing.assert_frame_equal(before.predictions[hidden], after.predictions[hidden])
    assert not before.predictions[~hidden].equals(after.predictions[~hidden])
    errors = before.sums["item_mean", ""]
    mean = [DATA.rating[~hidden & (DATA.item == i)].mean() for i in DATA.item[hidden]]
    expected = np.abs(np.array(mean) - DATA.rating[hidden]).sum()
    off = np.abs(before.predictions["item mean"].to_numpy() - DATA.rating)
    assert off[hidden].sum() == pytest.approx(expected, rel=1e-6)
    assert errors["absolute"].sum() == pytest.approx(off.sum())


def test_untested_users_are_in_every_fit_and_in_no_test() -> None:
    """Users without a fold are neighbours of the tested ones; their own ratings are not predicted."""
    tested, order = np.arange(len(DATA.users)) % 2 == 0, np.arange(len(DATA.users))
    every = study.predict_known(population(), CLASSIC, [CLASSIC], order, jobs=1).predictions
    some = study.predict_known(population(tested=tested), CLASSIC, [CLASSIC], order, jobs=1)
    assert some.data.users.tolist() == DATA.users[tested].tolist()
    assert some.predictions["row"].tolist() == np.flatnonzero(tested[DATA.user]).tolist()
    assert len(some.predictions) == len(some.data) < len(every)
    assert np.isfinite(some.predictions["user mean"]).all()
