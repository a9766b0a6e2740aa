"""Bayesian factorization machines: features by hand, planted tastes recovered, and nothing known of what is targets."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from blind import check_blind

from recsys_study import bayesian_fm
from recsys_study.bayesian_fm import DAMPING, NEAR, STRETCHES, BayesianFM, moment, step_moments, stretch
from recsys_utils.base import InputError, Scale
from recsys_utils.data.interactions import DAY, Interactions
from recsys_utils.data.synthetic import Size, generate
from recsys_utils.evaluation.protocols import LeakError
from recsys_utils.models import grid_kernels

SMALL = BayesianFM(("time", "implicit", "moment"), rank=3, sweeps=12, burn_in=4, chains=2, seed=1)


@pytest.fixture(scope="module")
def data() -> Interactions:
    return Interactions.from_frame(generate(Size(users=60, items=50, ratings=1300)).ratings, scale=Scale(1, 5))


@pytest.fixture
def installed() -> None:
    pytest.importorskip("pkg_resources", reason="myfm needs a setuptools below 81: the extra accuracy")
    pytest.importorskip("myfm", reason="the extra accuracy is not installed")


def tiny(times: list[int]) -> Interactions:
    frame = pd.DataFrame(
        {"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "rating": [5.0, 2.0, 3.0], "timestamp": times}
    )
    return Interactions.from_frame(frame, scale=Scale(1, 5))


def test_the_moment_is_a_faded_mean_of_the_users_other_ratings() -> None:
    train = tiny([1000, 1060, 1000])
    user, item = grid_kernels.baselines(train)
    off = train.rating - (5 + 2 + 3) / 3 - user[train.user] - item[train.item]
    fade = np.exp(-60 / NEAR)  # one other rating, a minute away
    known, targets = moment(train, train.where(np.array([True, False, True])))
    np.testing.assert_allclose(
        known, [fade * off[1] / (fade + DAMPING), fade * off[0] / (fade + DAMPING), 0], atol=1e-12
    )
    # what is targets at the same second as a training rating sees that one whole
    np.testing.assert_allclose(
        targets, [(off[0] + fade * off[1]) / (1 + fade + DAMPING), off[2] / (1 + DAMPING)], rtol=1e-6
    )


def test_implicit_features_are_the_training_part_and_nothing_else(data) -> None:
    train = data.where(np.arange(len(data)) % 4 > 0)
    users, items = bayesian_fm._sides(train, True)
    n_users, n_items = train.shape
    assert (users.shape, items.shape) == ((n_users, n_users + n_items), (n_items, n_items + n_users))
    seen = users[:, n_users:].toarray()
    np.testing.assert_array_equal(seen > 0, train.user_item.toarray() > 0)
    np.testing.assert_allclose((seen**2).sum(axis=1), 1)  # n entries of 1 / root(n)
    assert len(bayesian_fm._sides(train, False)) == 2


def test_a_day_that_was_not_trained_on_has_no_feature() -> None:
    train, targets = tiny([0, DAY, DAY]), tiny([0, DAY, 5 * DAY])
    (x, x_targets), sizes = bayesian_fm._columns(train, targets, ("time",))
    assert sizes == [2, 2]  # days, stretches
    assert x.toarray()[:, :2].tolist() == [[1, 0], [0, 1], [0, 1]]
    assert x_targets.toarray()[:, :2].tolist() == [[1, 0], [0, 1], [0, 0]]


def test_the_stretch_is_the_share_of_earlier_training_ratings() -> None:
    """User a rated at 1, 2, 2 and 9, user b at 5; of c nothing is known."""
    frame = pd.DataFrame({"user_id": list("aaaab"), "item_id": list("wxyzw"), "timestamp": [9, 2, 1, 2, 5]})
    frame["rating"] = [1.0, 2, 3, 4, 5]
    train = Interactions.from_frame(frame, scale=Scale(1, 5), users="abc")
    wanted = [("a", 0), ("a", 2), ("a", 3), ("a", 99), ("b", 5), ("b", 6), ("c", 5)]
    frame = pd.DataFrame(wanted, columns=["user_id", "timestamp"]).assign(item_id=[*"vwxyvwv"], rating=3.0)
    targets = Interactions.from_frame(frame, scale=Scale(1, 5), users="abc")
    known, found = stretch(train, targets)
    shares = [3 / 4, 1 / 4, 0, 1 / 4, 0], [0, 1 / 4, 3 / 4, 1, 0, 1, 0]
    assert known.tolist() == [int(STRETCHES * s) for s in shares[0]]
    assert found.tolist() == [min(int(STRETCHES * s), STRETCHES - 1) for s in shares[1]]
    turned = replace(train, rating=6 - train.rating)
    assert all((a == b).all() for a, b in zip(stretch(train, targets), stretch(turned, targets), strict=True))


def test_moments_of_a_step_are_those_of_its_draws() -> None:
    levels, cuts, score = np.array([1.0, 2.0, 5.0]), np.array([-0.5, 0.3]), np.array([-2.0, 0.1, 1.0])
    z = score[:, None] + np.random.default_rng(1).standard_normal((3, 200_000))
    drawn = levels[np.searchsorted(cuts, z)]
    mean, square = step_moments(score, cuts, levels)
    np.testing.assert_allclose(mean, drawn.mean(axis=1), atol=0.02)  # five standard errors
    np.testing.assert_allclose(square, (drawn**2).mean(axis=1), atol=0.12)


class TestChain:
    pytestmark = pytest.mark.usefixtures("installed")

    @pytest.mark.parametrize("ordinal", [False, True])
    def test_tastes_are_found_and_the_deviation_covers(self, data, ordinal) -> None:
        test = np.arange(len(data)) % 5 == 0
        train, targets = data.where(~test), data.where(test)
        mean, deviation = BayesianFM(ordinal=ordinal, rank=3, sweeps=60, seed=2).predict(train, targets)
        error = np.sqrt(np.mean((mean - targets.rating) ** 2))
        assert error < 0.97 * targets.rating.std()
        z = np.abs(mean - targets.rating) / deviation
        assert abs((z < 1.2816).mean() - 0.8) < 0.1  # 260 ratings: two standard errors are .05

    @pytest.mark.parametrize("ordinal", [False, True])
    def test_the_scale_does_not_matter(self, data, ordinal) -> None:
        ten = replace(data, rating=data.rating * np.float32(20), scale=Scale(20, 100))
        model = replace(SMALL, ordinal=ordinal)
        one, other = (model.predict(d.where(d.user > 5), d.where(d.user <= 5)) for d in (data, ten))
        np.testing.assert_allclose(20 * np.array(one), other, rtol=1e-4)

    def test_a_seed_gives_one_set_of_chains(self, data) -> None:
        one, two, other = (replace(SMALL, seed=s).predict(data, data.where(data.user < 3))[0] for s in (1, 1, 2))
        np.testing.assert_array_equal(one, two)
        assert not np.allclose(one, other)

    def test_chains_are_pooled(self, data, monkeypatch) -> None:
        """Mean of the chains' means; the variance holds what the means differ by."""
        monkeypatch.setattr(bayesian_fm, "child_seed", lambda seed, _, number: seed + number)
        targets = data.where(data.user < 3)
        singles = [replace(SMALL, chains=1, seed=s).predict(data, targets) for s in (1, 2)]
        mean, deviation = replace(SMALL, chains=2).predict(data, targets)
        means, deviations = (np.array(part) for part in zip(*singles, strict=True))
        np.testing.assert_allclose(mean, means.mean(axis=0))
        np.testing.assert_allclose(deviation**2, (deviations**2).mean(axis=0) + means.var(axis=0))

    def test_ordinal_predictions_never_leave_the_scale(self, data) -> None:
        mean, deviation = replace(SMALL, ordinal=True).predict(data.where(data.user > 5), data.where(data.user <= 5))
        assert ((mean > 1) & (mean < 5) & (deviation > 0) & (deviation < 2)).all()

    @pytest.mark.parametrize("ordinal", [False, True])
    def test_features_from_training_and_test_ratings_are_noticed(self, data, monkeypatch, ordinal) -> None:
        """Canary: the published recipe that builds implicit features from all pairs, test part included, must fail."""
        test = np.arange(len(data)) % 5 == 0
        targets = data.where(test).where(np.arange(test.sum()) < 40)
        real = bayesian_fm._sides

        def run(data: Interactions, test: np.ndarray) -> np.ndarray:
            return replace(SMALL, ordinal=ordinal).predict(data.where(~test), targets)[0]

        def leaking(everything: Interactions, test: np.ndarray) -> np.ndarray:
            monkeypatch.setattr(bayesian_fm, "_sides", lambda train, implicit: real(everything, implicit))
            return run(everything, test)

        check_blind(run, data, test)
        with pytest.raises(LeakError, match="nothing but test ratings"):
            check_blind(leaking, data, test)


def test_without_myfm_the_command_that_installs_it_is_named(monkeypatch, data) -> None:
    monkeypatch.setitem(sys.modules, "myfm", None)
    with pytest.raises(InputError, match=r'pip install "myfm==0\.4\.0" "setuptools>=77,<81"'):
        SMALL.predict(data, data)
