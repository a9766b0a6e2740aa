"""Intervals against closed forms and simulation, pairing, verdicts and adjustments by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.significance import (
    Bootstrap,
    Estimate,
    holm,
    jackknife,
    metric_rows,
    minimum_detectable_difference,
    verdict,
    without_one_user,
)

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def boot() -> Bootstrap:
    return Bootstrap(400, seed=3)


def close(a: Estimate, b: Estimate) -> bool:
    """Equal to the last digits, which may depend on how many columns were multiplied at once."""
    return np.allclose([a.value, a.ci_low, a.ci_high, a.se], [b.value, b.ci_low, b.ci_high, b.se], atol=1e-12)


# ---- the resamples


def test_resamples_depend_on_users_and_seed_alone():
    values = RNG(0).random(50)
    assert Bootstrap(50, 1).mean(values) == Bootstrap(50, 1).mean(values)
    assert Bootstrap(50, 1).mean(values).ci_low != Bootstrap(50, 2).mean(values).ci_low


def test_every_resample_draws_as_many_users_as_there_are():
    boot = Bootstrap(30, 1, resamples=1000)
    counts = np.concatenate(list(boot._blocks()))
    assert counts.shape == (1000, 30)
    assert (counts.sum(axis=1) == 30).all()
    # a user is drawn Binomial(30, 1/30) times: on average once, with variance 29/30; six standard errors of room
    assert counts.mean(axis=0) == pytest.approx(1, abs=6 * np.sqrt(29 / 30 / 1000))


def test_blocks_that_are_not_kept_are_the_kept_ones(monkeypatch):
    values = RNG(0).random(40)
    kept = Bootstrap(40, 1).mean(values)
    monkeypatch.setattr("recsys_utils.evaluation.significance._KEEP", 0)
    assert Bootstrap(40, 1).mean(values) == kept


# ---- statistics


def test_mean_matches_the_normal_interval_of_a_large_sample(boot):
    values = RNG(1).normal(5, 2, 400)
    found = boot.mean(values)
    se = values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.se == pytest.approx(se, rel=0.03)  # 10,000 draws know a standard deviation to about .7 %
    assert [found.ci_low, found.ci_high] == pytest.approx(
        [values.mean() - 1.96 * se, values.mean() + 1.96 * se], abs=0.1 * se
    )
    assert found.lower == pytest.approx(values.mean() - 1.645 * se, abs=0.1 * se)


def test_a_constant_has_no_width(boot):
    found = boot.mean(np.full(400, 0.3))
    assert [found.value, found.ci_low, found.ci_high, found.se] == pytest.approx([0.3, 0.3, 0.3, 0], abs=1e-12)


def test_users_without_a_value_are_left_out_and_not_counted(boot):
    values = RNG(2).random(400)
    values[100:] = np.nan
    found = boot.mean(values)
    assert found.n == 100
    assert found.value == pytest.approx(values[:100].mean())
    assert found.se == pytest.approx(values[:100].std() / 10, rel=0.1)


def test_columns_share_their_resamples(boot):
    values = RNG(3).random((400, 3))
    values[RNG(4).random((400, 3)) < 0.2] = np.nan
    for column, found in enumerate(boot.means(values)):
        assert close(found, boot.mean(values[:, column]))


def test_average_weighs_columns_alike_however_many_users_they_have(boot):
    values = np.full((400, 2), np.nan)
    values[:, 0], values[:10, 1] = 0.0, 1.0
    found = boot.average(values)
    assert (found.value, found.n) == (0.5, 400)


def test_ratio_weighs_users_by_their_ratings(boot):
    count = np.repeat([1.0, 9.0], 200)
    found = boot.ratio(count * np.repeat([1.0, 0.0], 200), count)
    assert found.value == pytest.approx(200 / (200 + 9 * 200))
    assert found.n == 400


def test_rmse_and_its_paired_difference(boot):
    count = RNG(5).integers(0, 20, 400).astype(float)
    squared = count * RNG(6).random(400)
    found = boot.rmse(squared, count)
    assert found.value == pytest.approx(np.sqrt(squared.sum() / count.sum()))
    assert found.n == (count > 0).sum()
    # four times the squared error is twice the RMSE in every resample, so the difference is the RMSE itself
    assert close(boot.rmse_difference(4 * squared, squared, count), found)


def test_differences_are_paired(boot):
    users = RNG(7).random(400)
    found = boot.difference(users + 0.01, users)
    assert [found.value, found.ci_low, found.ci_high] == pytest.approx([0.01] * 3)
    assert boot.difference(users, users).p == 1


def test_relative_difference_is_a_ratio_of_means(boot):
    base = RNG(8).random(400) + 0.1
    found = boot.relative_difference(0.98 * base, base)
    assert [found.value, found.ci_low, found.ci_high] == pytest.approx([-0.02] * 3)


def test_p_values_are_small_for_a_clear_difference_and_never_zero(boot):
    values = RNG(9).normal(0, 1, 400)
    assert boot.mean(values + 2).p == pytest.approx(2 / 10_001)
    assert boot.mean(values - values.mean()).p > 0.9


def test_simultaneous_bands_are_wider_than_pointwise_ones_and_equal_for_one_column(boot):
    values = RNG(10).normal(size=(400, 8))
    band, points = boot.simultaneous_band(values), boot.means(values)
    assert all(b.ci_high - b.ci_low > 1.2 * (p.ci_high - p.ci_low) for b, p in zip(band, points, strict=True))
    assert all(b.ci_low < b.lower < b.value for b in band)
    (alone,) = boot.simultaneous_band(values[:, :1])
    assert [alone.ci_low, alone.ci_high] == pytest.approx([points[0].ci_low, points[0].ci_high], abs=0.1 * alone.se)


def test_a_column_without_variation_keeps_its_point_in_the_band(boot):
    values = np.column_stack([np.zeros(400), RNG(11).random(400)])
    assert boot.simultaneous_band(values)[0].ci_high == 0


def test_wrong_tables_are_refused(boot):
    with pytest.raises(ValueError, match="align"):
        boot.mean(np.zeros(399))
    with pytest.raises(ValueError, match="one value per user"):
        boot.mean(np.zeros((400, 2)))
    with pytest.raises(ValueError, match="column 1 has no user"):
        boot.means(np.column_stack([np.zeros(400), np.full(400, np.nan)]))
    with pytest.raises(ValueError, match="denominators"):
        boot.ratio(np.zeros(400), np.zeros(400))


# ---- do the intervals cover?


def within_binomial_error(hits: int, trials: int) -> bool:
    """Could an interval that covers in 95 % of cases have done so ``hits`` times? (.1 % on either side)

    Two points of slack: a percentile interval of a few hundred skewed values is known to fall short by about one.
    """
    return binom.ppf(0.001, trials, 0.93) <= hits <= binom.ppf(0.999, trials, 0.96)


def test_the_mean_interval_covers_its_truth():
    hits = 0
    for trial in range(400):  # per-user values as ndcg has them: many zeros, a tail up to 1
        rng = RNG(trial)
        values = rng.beta(1, 3, 150) * (rng.random(150) < 0.6)
        found = Bootstrap(150, seed=trial, resamples=600).mean(values)
        hits += found.ci_low <= 0.6 / 4 <= found.ci_high
    assert within_binomial_error(hits, 400), hits


def test_the_rmse_interval_covers_where_ratings_cluster_and_an_interval_over_ratings_does_not():
    clustered = naive = 0
    for trial in range(400):
        rng = RNG(10_000 + trial)
        spread = rng.gamma(4, 0.25, 150)  # variance of a user's errors: mean 1, unlike between users
        count = rng.integers(5, 60, 150)
        squared = [s * rng.standard_normal(c) ** 2 for s, c in zip(spread, count, strict=True)]
        found = Bootstrap(150, seed=trial, resamples=600).rmse(
            np.array([x.sum() for x in squared]), count.astype(float)
        )
        clustered += found.ci_low <= 1 <= found.ci_high
        flat = np.concatenate(squared)
        naive += abs(flat.mean() - 1) <= 1.96 * flat.std() / np.sqrt(len(flat))
    assert within_binomial_error(clustered, 400), clustered
    assert naive < 0.9 * 400


def test_the_simultaneous_band_covers_all_columns_at_once():
    together = pointwise = 0
    truth = np.linspace(0.1, 0.5, 6)
    for trial in range(300):
        rng = RNG(20_000 + trial)
        values = truth + 0.5 * rng.standard_normal((150, 1)) + rng.standard_normal((150, 6))
        boot = Bootstrap(150, seed=trial, resamples=600)
        for estimates, name in ((boot.simultaneous_band(values), "band"), (boot.means(values), "points")):
            covered = all(e.ci_low <= t <= e.ci_high for e, t in zip(estimates, truth, strict=True))
            together += covered and name == "band"
            pointwise += covered and name == "points"
    assert within_binomial_error(together, 300), together
    assert pointwise < 0.9 * 300


def test_the_jackknife_covers_coverage_and_gini_at_the_same_number_of_lists():
    """Truth: the mean over many studies of as many users, whose tastes are drawn from one long-tailed catalogue."""
    n_items, n_users, studies = 300, 120, 300
    appeal = np.log(1 / np.arange(1, n_items + 1) ** 0.8)

    def study(seed: int) -> metrics.Lists:
        noise = RNG(30_000 + seed).gumbel(
            size=(n_users, n_items)
        )  # top 10 of appeal + Gumbel: draws without replacement
        return np.argpartition(-(appeal + noise), 10, axis=1)[:, :10].astype(np.int32)

    lists = [study(seed) for seed in range(studies)]
    for statistic, without_each in (
        (metrics.coverage, metrics.coverage_without_each),
        (metrics.gini, metrics.gini_without_each),
    ):
        values = np.array([statistic(each, n_items) for each in lists])
        intervals = [jackknife(v, without_each(each, n_items)) for v, each in zip(values, lists, strict=True)]
        hits = sum(i.ci_low <= values.mean() <= i.ci_high for i in intervals)
        # the jackknife's variance is known to err on the wide side (Efron & Stein 1981), never on the narrow one
        assert hits >= binom.ppf(0.001, studies, 0.94), (statistic.__name__, hits)
        assert np.mean([i.se for i in intervals]) < 2 * values.std()


# ---- judging


@pytest.mark.parametrize(
    ("low", "high", "lower", "expected"),
    [
        (-0.009, 0.009, -0.008, "tie"),
        (0.001, 0.009, 0.002, "tie"),  # sure to be more, sure to be of no consequence
        (0.011, 0.02, 0.012, "better"),
        (0.001, 0.02, 0.002, "slightly better"),
        (-0.02, -0.011, -0.018, "worse"),
        (-0.02, -0.001, -0.018, "slightly worse"),
        (-0.011, 0.02, -0.009, "not worse"),
        (-0.02, 0.02, -0.018, "undecided"),
    ],
)
def test_verdicts(low, high, lower, expected):
    assert verdict(Estimate((low + high) / 2, low, high, 943, lower=lower)) == expected


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(sorted), st.floats(0, 0.5))
def test_a_verdict_and_its_mirror_image_agree(limits, margin):
    low, value, high = limits
    there = verdict(Estimate(value, low, high, 9, lower=low), margin)
    back = verdict(Estimate(-value, -high, -low, 9, lower=-high), margin)
    mirror = {"better": "worse", "worse": "better", "tie": "tie"}
    assert mirror.get(there) == back if there in mirror else back not in mirror


def test_minimum_detectable_difference_is_found_in_four_of_five_studies():
    pilot = RNG(1).normal(0, 1, 200)
    pilot /= pilot.std()  # a pilot that has met the true spread, so that only the formula is on trial
    effect = minimum_detectable_difference(Bootstrap(200, 1).mean(pilot))
    studies = [RNG(seed).normal(effect, 1, 200) for seed in range(2000)]
    power = np.mean([abs(x.mean()) > 1.96 * x.std() / np.sqrt(200) for x in studies])
    assert power == pytest.approx(0.8, abs=0.04)  # four standard errors of a share of .8 among 2,000


def test_holm_by_hand():
    # ascending .01 .02 .03 .04 times 4 3 2 1 gives .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert holm([0.03]).tolist() == [0.03]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p_values):
    adjusted = holm(p_values)
    assert (adjusted >= np.array(p_values)).all()
    assert (adjusted <= np.minimum(1, len(p_values) * np.array(p_values)) + 1e-15).all()


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = RNG(1).random(50)
    found = jackknife(values.mean(), (values.sum() - values) / 49)
    assert found.se == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_the_jackknife_stays_in_bounds():
    assert jackknife(0.99, np.array([0.9, 1.0, 0.8])).ci_high == 1
    assert jackknife(0.0, np.array([0.1, -0.1]), bounds=(-1, 1)).ci_low < 0
    with pytest.raises(ValueError, match="at least two"):
        jackknife(0.5, np.array([0.5]))


# ---- writing down


def test_estimates_format_themselves():
    estimate = Estimate(0.2131, 0.2009, 0.2252, 943)
    assert str(estimate) == "0.213 [0.201, 0.225]"
    assert f"{estimate:+.1%}" == "+21.3% [+20.1%, +22.5%]"
    assert estimate.evidence("ndcg@10") == {
        "metric": "ndcg@10", "value": 0.2131, "ci_low": 0.2009, "ci_high": 0.2252, "n": 943
    }  # fmt: skip


def test_metric_rows_are_tidy():
    rows = metric_rows({"a": Estimate(1, 0, 2, 9), "b": Estimate(3, 2, 4, 8)}, protocol="p", model="m", segment="n=3")
    expected = pd.DataFrame(
        {
            "protocol": ["p", "p"], "model": ["m", "m"], "variant": ["", ""], "segment": ["n=3", "n=3"],
            "metric": ["a", "b"], "value": [1, 3], "ci_low": [0, 2], "ci_high": [2, 4], "n": [9, 8],
        }
    )  # fmt: skip
    pd.testing.assert_frame_equal(rows, expected)


def test_what_a_single_user_makes() -> None:
    """The ends of the value without one user, by hand, for means, averages, ratios and RMSE."""
    boot, values = Bootstrap(4, 1, 200), np.array([1.0, 2.0, np.nan, 9.0])
    kept = np.array([1.0, 2.0, 9.0])
    without = [np.delete(kept, u).mean() for u in range(3)]
    assert (boot.mean(values).least, boot.mean(values).most) == pytest.approx((min(without), max(without)))
    both = np.column_stack([[1.0, 2.0, 3.0, 9.0], [5.0, 5.0, 5.0, 5.0]])
    found = boot.average(both)
    assert (found.least, found.most) == pytest.approx(((2 + 5) / 2, (14 / 3 + 5) / 2))
    squared, count = np.array([4.0, 1.0, 1.0, 16.0]), np.array([1.0, 1.0, 1.0, 2.0])
    rest = [np.sqrt((22 - s) / (5 - c)) for s, c in zip(squared, count, strict=True)]
    assert (boot.rmse(squared, count).least, boot.rmse(squared, count).most) == pytest.approx((min(rest), max(rest)))


def test_a_verdict_that_turns_on_one_user() -> None:
    steady = Estimate(0.02, 0.015, 0.025, 50, lower=0.016, least=0.0195, most=0.0205)
    assert without_one_user(steady, 0.01) == {"better"}
    one = Estimate(0.02, 0.011, 0.03, 50, lower=0.012, least=0.002, most=0.02)
    assert without_one_user(one, 0.01) == {"better", "not worse"}
