"""The study of variational MF: nothing leaks into a fold, intervals and ordinal sets cover, rules and signs by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from recsys_study.latent_factors import (
    LEVELS,
    Fits,
    LastFifth,
    Ranked,
    RankedLists,
    central_sets,
    chosen,
    conformal_factors,
    coverage_rows,
    deciles,
    error_contrasts,
    facts,
    inside,
    interval_figure,
    interval_rows,
    largest_miss,
    nominal,
    ordinal,
    out_of_fold,
    popularity_shares,
    ranking_figure,
    segment_rows,
)
from recsys_study.stage_files import Population
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.data.synthetic import Size, generate
from recsys_utils.evaluation.protocols import make_splits
from recsys_utils.evaluation.significance import Bootstrap
from recsys_utils.models.variational_mf import VariationalMF

OPTIONS = [VariationalMF(n_factors=k, sweeps=6, held_out=0.2) for k in (1, 3)]


@pytest.fixture(scope="module")
def data() -> Interactions:
    return Interactions.from_frame(generate(Size(users=60, items=50, ratings=1300)).ratings, scale=Scale(1, 5))


@pytest.fixture(scope="module")
def fold(data: Interactions) -> np.ndarray:
    return (np.arange(len(data)) * 7 % 3).astype(np.int8)


class TestOutOfFold:
    def test_a_fold_does_not_know_its_own_ratings(self, data, fold) -> None:
        """Canary: turn the ratings of fold 0 round; its predictions must stay, those of the other folds must not."""
        turned = replace(data, rating=np.where(fold == 0, 6 - data.rating, data.rating).astype(np.float32))
        one, other = (out_of_fold(d, fold, OPTIONS, 1).table for d in (data, turned))
        pd.testing.assert_frame_equal(one[fold == 0], other[fold == 0])
        assert not np.allclose(one.loc[fold == 1, "mean"], other.loc[fold == 1, "mean"])

    def test_untested_users_are_in_every_fit_and_in_no_test(self, data, fold) -> None:
        """Canary: a rating of a user who is not tested moves every prediction; none of that user is predicted."""
        tested = data.user >= 30
        some = np.where(tested, fold, -1)
        turned = replace(data, rating=np.where(tested, data.rating, 6 - data.rating).astype(np.float32))
        one, other = (out_of_fold(d, some, OPTIONS[:1], 1).table for d in (data, turned))
        assert len(one) == tested.sum()
        assert not np.isclose(one["mean"], other["mean"]).any()
        fixed = out_of_fold(data, some, [replace(OPTIONS[0], held_out=0)], 1)  # nothing to choose, so no trial
        assert fixed.trials.empty
        assert fixed.table.notna().all(axis=None)

    def test_jobs_change_nothing(self, data, fold) -> None:
        one, two = (out_of_fold(data, fold, OPTIONS, jobs) for jobs in (1, 2))
        pd.testing.assert_frame_equal(one.table, two.table)
        pd.testing.assert_frame_equal(one.trials, two.trials)

    def test_the_best_trial_is_fitted(self, data) -> None:
        model, trials = chosen(data, OPTIONS)
        best = trials.loc[trials["likelihood"].idxmax()]
        assert (model.n_factors, len(model.elbo)) == (best["n_factors"], best["sweep"])

    def test_the_truncated_deviation_is_smaller(self, data, fold) -> None:
        table = out_of_fold(data, fold, OPTIONS[:1], 1).table
        # not for every rating: covariances of bias and traits, which it leaves out as well, can be negative
        assert (table["truncated"] < table["deviation"]).mean() > 0.9

    def test_ordinal_models_give_probabilities_of_held_out_ratings(self, data, fold) -> None:
        assert out_of_fold(data, fold, OPTIONS[:1], 1).chances.shape == (len(data), 0)
        one = replace(data, rating=np.where((fold == 0) & (data.rating == 1), 2, data.rating).astype(np.float32))
        data = one.where((fold == 0) | (one.rating > 1) | (np.arange(len(one)) == np.flatnonzero(one.rating == 1)[0]))
        where = np.where(data.rating == 1, 0, 1 + np.arange(len(data)) % 2).astype(np.int8)  # fold 0 holds the only 1
        found = out_of_fold(data, where, [replace(OPTIONS[1], likelihood="ordinal")], 1)
        assert found.chances.sum(axis=1) == pytest.approx(np.ones(len(data)))
        assert found.chances[where == 0, 0] == 0  # nobody gave a 1 in the other folds
        assert found.table["mean"].to_numpy() == pytest.approx(found.chances @ np.unique(data.rating))


class TestIntervals:
    def test_tenths_from_the_surest_on(self) -> None:
        table = pd.DataFrame({"mean": np.zeros(100), "deviation": np.arange(1.0, 101)[::-1]})
        tenth, found = deciles(table["deviation"].to_numpy(np.float32), table)
        assert tenth[[0, 99]].tolist() == [9, 0]
        assert found["predicted"].iloc[0] == np.mean(np.arange(1, 11))
        assert found["actual"].iloc[0] == pytest.approx(np.sqrt(np.mean(np.arange(1, 11) ** 2)))

    def test_segments_are_covered_each_by_itself(self, data) -> None:
        rng = np.random.default_rng(5)
        table = pd.DataFrame({"mean": np.full(len(data), 3.0), "deviation": rng.uniform(0.5, 1.5, len(data))})
        boot = Bootstrap(len(data.users), 1, 50)
        rows = segment_rows(data, table, boot, protocol="p", variant="v", least=20)
        counts = np.bincount(data.user)[data.user]
        low = counts < np.quantile(counts, 1 / 3)
        hit = inside(data.rating, table["mean"].to_numpy(), table["deviation"].to_numpy())["interval_coverage@80"]
        at = rows[(rows["segment"] == "activity=low") & (rows["metric"] == "interval_coverage@80")]
        assert at["value"].item() == pytest.approx(hit[low].mean())
        assert nominal(at["metric"]).item() == 0.8
        assert segment_rows(data, table, boot, protocol="p", least=10**6).empty

    def test_normal_errors_are_covered_as_often_as_said(self) -> None:
        rng = np.random.default_rng(0)
        mean, deviation = rng.normal(3, 1, 20_000), rng.uniform(0.5, 2, 20_000)
        rating = (mean + deviation * rng.standard_normal(20_000)).astype(np.float32)
        for level, mask in zip(LEVELS, inside(rating, mean, deviation).values(), strict=True):
            assert mask.mean() == pytest.approx(level, abs=0.011)  # three standard errors at level .5: .0106

    def test_names_carry_the_level(self) -> None:
        one = np.ones(1)
        assert list(inside(one.astype(np.float32), one, one)) == [f"interval_coverage@{x}" for x in (50, 80, 95)]

    def test_conformal_widths_cover_what_they_were_made_from(self) -> None:
        rng = np.random.default_rng(1)
        rating, mean, deviation = rng.normal(3, 3, 999).astype(np.float32), np.full(999, 3.0), np.ones(999)
        widths = conformal_factors(rating, mean, deviation)
        assert widths == pytest.approx(3 * norm.ppf(0.5 + np.array(LEVELS) / 2), rel=0.15)  # errors are thrice as wide
        for level, mask in zip(LEVELS, inside(rating, mean, deviation, widths).values(), strict=True):
            assert level <= mask.mean() <= level + 2 / 999

    def test_coverage_is_a_ratio_over_ratings(self, data) -> None:
        mask = data.rating >= 3
        row = coverage_rows(data, {"x": mask}, Bootstrap(60, 1, 50), protocol="p").iloc[0]
        assert row["value"] == pytest.approx(mask.mean())
        assert row["ci_low"] < row["value"] < row["ci_high"]


class TestOrdinal:
    def test_probabilities_sum_to_one_and_reproduce_the_shares(self) -> None:
        rng = np.random.default_rng(2)
        mean = rng.normal(0, 1, 6000)
        rating = (1 + np.searchsorted([-1.0, 0.5], mean + rng.standard_normal(6000))).astype(np.float32)
        chances, place = ordinal(rating, mean, np.ones(6000), rng.integers(0, 3, 6000).astype(np.int8))
        assert chances.sum(axis=1) == pytest.approx(np.ones(6000))
        assert (place + 1 == rating).all()
        # the cut points that made the ratings are -1 and .5: P(r = 1 | mean 0) = Phi(-1) = .159
        assert np.interp(0, np.sort(mean), chances[np.argsort(mean), 0]) == pytest.approx(norm.cdf(-1), abs=0.02)
        assert chances.mean(axis=0) == pytest.approx(np.bincount(place) / 6000, abs=0.01)

    def test_a_rating_has_no_say_in_its_own_cut_points(self) -> None:
        rng = np.random.default_rng(3)
        mean, fold = rng.normal(0, 1, 600), np.arange(600) % 2
        rating = rng.integers(1, 4, 600).astype(np.float32)
        turned = np.where(fold == 0, 4 - rating, rating).astype(np.float32)
        one, other = (ordinal(r, mean, np.ones(600), fold.astype(np.int8))[0] for r in (rating, turned))
        assert (one[fold == 0] == other[fold == 0]).all()

    def test_central_sets_cover_what_was_drawn_from_the_probabilities(self) -> None:
        rng = np.random.default_rng(6)
        chances = rng.dirichlet([1, 2, 3, 2], 20_000)
        place = (rng.random((20_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
        sets = central_sets(chances, place, np.random.default_rng(1))
        for level, mask in zip(LEVELS, sets.inside.values(), strict=True):
            assert mask.mean() == pytest.approx(level, abs=0.011)
        assert sets.sizes == sorted(sets.sizes)
        assert sets.loss == pytest.approx(-np.log(chances[np.arange(20_000), place]))


class TestLists:
    def test_rules_order_by_the_spread(self, data) -> None:
        model = VariationalMF(n_factors=2, sweeps=5, held_out=0).fit(data)
        rng = np.random.default_rng(0)
        low, mid, high = (Ranked(model, z, rng).scores(data.user_item) for z in (-1.0, 0.0, 1.0))
        assert (mid == model.scores(data.user_item)).all()
        assert (low < mid).all()
        assert (mid < high).all()

    def test_thompson_draws_are_seeded_and_spread_as_the_expectation(self, data) -> None:
        model = VariationalMF(n_factors=2, sweeps=5, held_out=0).fit(data)
        one, two = (Ranked(model, None, np.random.default_rng(4)).scores(data.user_item) for _ in range(2))
        assert (one == two).all()
        z = (one - model.scores(data.user_item)) / model.deviation(data.user_item, noise=False)
        assert (z.mean(), z.std()) == pytest.approx((0, 1), abs=0.05)  # 3,000 draws: standard error .018

    def test_popularity_shares_by_hand(self) -> None:
        lists = np.array([[0, 1], [2, -1]], np.int32)  # items with 3, 10 and 60 ratings
        assert popularity_shares(lists, np.array([3, 10, 60]), [10, 50]).tolist() == [1 / 3, 1 / 3, 1 / 3]


@pytest.mark.parametrize("tested", ["everyone", "panel"])
def test_the_whole_study_of_everyone_and_of_a_panel(data, tested: str) -> None:
    """Untested users are learned from and in no row; every table and figure of the notebook is made."""
    splits, _, _ = make_splits(data, seed=1)
    some = np.arange(len(data.users)) < (60 if tested == "everyone" else 40)
    everyone, items = Population(data, splits, some), generate(Size(users=60, items=50, ratings=1300)).items
    fits, boot = Fits.of(everyone, OPTIONS, 1), Bootstrap(int(some.sum()), 1, 50)
    assert (fits.full is fits.alone) == (tested == "everyone")
    assert len(fits.full.table) == len(fits.data) == some[data.user].sum()
    peer = pd.DataFrame({"user_id": fits.data.users} | fits.errors(fits.one_noise))
    (contrast,) = error_contrasts(fits, {"tuned SVD": peer}, boot, 0.005)
    assert (contrast.id, contrast.primary) == ("mf-svd", True)
    if tested == "everyone":
        assert contrast.value == pytest.approx(fits.gains(boot)["rmse"].value, abs=1e-6)
    covered, _ = interval_rows(fits, boot, 1)
    segments = segment_rows(fits.data, fits.full.table, boot, protocol="p", least=20)
    last = LastFifth.of(everyone, OPTIONS, boot, time_ordered=True)
    rng = np.random.default_rng(1)
    lists = RankedLists.of(last.model, last.case, items["genres"], fits.data.users, boot, lambda *_: rng)
    assert lists.shares.sum(axis=1).to_numpy() == pytest.approx(np.ones(6))
    assert facts(fits, covered, segments, last, boot)["coverage_off"] == largest_miss(covered)
    shown = interval_figure(fits, segments), ranking_figure(lists, lists.contrasts(boot))
    assert [len(figure.axes) for figure in shown] == [2, 2]
