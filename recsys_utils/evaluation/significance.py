"""How sure a number is: user-clustered bootstrap, paired differences, simultaneous bands, verdicts.

The user is the unit: ratings of one user depend on each other, so users are resampled and every statistic is a ratio of
sums of per-user values (Owen & Eckles 2012). All intervals are two-sided 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recsys_utils.base import child_rng

Values = NDArray[np.float64]
Verdict = Literal["tie", "better", "slightly better", "worse", "slightly worse", "not worse", "undecided"]

MARGIN = 0.01  # ndcg: the loss nobody would notice
RESAMPLES = 10_000
_BLOCK = 256  # resamples made and multiplied at once; a fixed part of the random stream
_KEEP = 2**28  # bytes of resampling counts worth keeping; beyond it they are made anew for every call


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    ``n`` users (or lists) it rests on, ``se`` its standard error, ``lower`` its one-sided 95 % lower bound, ``p`` the
    two-sided p value of "the truth is 0" (meaningful for differences; NaN where no resamples were drawn), ``least`` and
    ``most`` the ends of what the value can become by leaving out a single user (NaN where that was not measured).

    >>> estimate = Estimate(value=0.2131, ci_low=0.2009, ci_high=0.2252, n=943)
    >>> f"{estimate}, shorter: {estimate:.2f}"
    '0.213 [0.201, 0.225], shorter: 0.21 [0.20, 0.23]'
    """

    value: float
    ci_low: float
    ci_high: float
    n: int
    se: float = float("nan")
    lower: float = float("nan")
    p: float = float("nan")
    least: float = float("nan")
    most: float = float("nan")

    def __format__(self, spec: str) -> str:
        low, value, high = (format(x, spec or ".3f") for x in (self.ci_low, self.value, self.ci_high))
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)

    def scaled(self, factor: float) -> Estimate:
        """The estimate in other units: a positive factor times everything but n and p."""
        names = ("value", "ci_low", "ci_high", "se", "lower", "least", "most")
        return replace(self, **{name: factor * getattr(self, name) for name in names})

    def evidence(self, metric: str) -> dict[str, Any]:
        """The row of a finding: metric, value, ci_low, ci_high, n."""
        return {
            "metric": metric, "value": self.value, "ci_low": self.ci_low, "ci_high": self.ci_high, "n": self.n
        }  # fmt: skip


class Bootstrap:
    """Percentile bootstrap over users.

    The resamples depend on ``n_users`` and ``seed`` only, so any two statistics of the same users are paired, whichever
    process computes them.

    Parameters
    ----------
    n_users : U, rows of every array passed in; a user without a value carries NaN and is left out
    seed : of the resamples
    resamples : R

    >>> boot = Bootstrap(4, seed=1)
    >>> print(boot.mean(np.array([0.0, 1.0, 1.0, np.nan])))
    0.667 [0.000, 1.000]
    """

    def __init__(self, n_users: int, seed: int, resamples: int = RESAMPLES) -> None:
        if n_users < 1 or resamples < 1:
            raise ValueError(f"a bootstrap needs users and resamples; got {n_users} and {resamples}")
        self.n_users, self.seed, self.resamples = n_users, seed, resamples

    # ---- statistics

    def mean(self, values: Values) -> Estimate:
        """Mean of per-user values (U,), users with NaN left out."""
        return self.means(_column(values))[0]

    def means(self, values: Values) -> list[Estimate]:
        """Mean of each column of (U, M), all on the same resamples."""
        point, draws, without = self._means(values)
        columns = zip(point, draws.T, _known(values), without.T, strict=True)
        return [_estimate(*each) for each in columns]

    def average(self, values: Values) -> Estimate:
        """Mean over the columns' means, each column with the same weight however many users have it.

        This is "averaged over profile sizes": (U, M), NaN where a user lacks the size.
        """
        point, draws, without = self._means(values)
        n = int((~np.isnan(values)).any(axis=1).sum())
        return _estimate(point.mean(), draws.mean(axis=1), n, without.mean(axis=1))

    def ratio(self, numerator: Values, denominator: Values) -> Estimate:
        """Sum of the numerators / sum of the denominators, (U,) each; users with NaN in either are left out.

        MAE is ``ratio(absolute, count)``, the share of ratings inside an interval ``ratio(inside, count)``.
        """
        point, draws, without = self._ratio(numerator, denominator)
        return _estimate(point, draws, _sharing(numerator, denominator), without)

    def rmse(self, squared: Values, count: Values) -> Estimate:
        """Root of the ratio of per-user squared-error sums to rating counts; ``n`` counts users with ratings."""
        point, draws, without = self._ratio(squared, count)
        return _estimate(np.sqrt(point), np.sqrt(draws), int((count > 0).sum()), np.sqrt(without))

    def statistics(self, values: Values, of: Callable[[Values], Values]) -> list[Estimate]:
        """Statistics of the columns' means: ``of`` maps means (..., M) of (U, M) values to (..., K) numbers.

        "The weight at which the mean is highest" is ``of=lambda means: weights[means.argmax(axis=-1)][..., None]``.
        """
        point, draws, _ = self._means(values)
        n = int((~np.isnan(values)).any(axis=1).sum())
        return [_estimate(value, column, n) for value, column in zip(of(point), of(draws).T, strict=True)]

    # ---- comparisons

    def difference(self, a: Values, b: Values) -> Estimate:
        """Mean of a - b over the users who have both."""
        return self.mean(a - b)

    def relative_difference(self, a: Values, b: Values) -> Estimate:
        """mean(a) / mean(b) - 1 over the users who have both: "2 % of ndcg lost" is -0.02."""
        point, draws, without = self._ratio(a, b)
        return _estimate(point - 1, draws - 1, _sharing(a, b), without - 1)

    def rmse_difference(self, squared_a: Values, squared_b: Values, count: Values) -> Estimate:
        """RMSE of a - RMSE of b on the same ratings; negative if a errs less."""
        (point_a, *arrays_a), (point_b, *arrays_b) = self._ratio(squared_a, count), self._ratio(squared_b, count)
        draws, without = (np.sqrt(a) - np.sqrt(b) for a, b in zip(arrays_a, arrays_b, strict=True))
        return _estimate(np.sqrt(point_a) - np.sqrt(point_b), draws, int((count > 0).sum()), without)

    def simultaneous_band(self, values: Values) -> list[Estimate]:
        """Means of the columns of (U, M) with intervals that hold for all columns at once (max-t).

        Each interval is value +- q se with q the 95 % quantile of the largest |draw - value| / se over the columns;
        ``lower`` uses the one-sided quantile. A column that does not vary keeps its point.
        """
        point, draws, _ = self._means(values)
        se = np.nanstd(draws, axis=0, ddof=1)
        varies = se > 0
        t = np.nan_to_num((draws[:, varies] - point[varies]) / se[varies])
        two_sided = np.quantile(np.abs(t).max(axis=1, initial=0), 0.95)
        one_sided = np.quantile(t.max(axis=1, initial=0), 0.95)
        return [
            Estimate(float(v), float(v - two_sided * s), float(v + two_sided * s), int(n), float(s),
                     float(v - one_sided * s), _p_value(column))
            for v, s, n, column in zip(point, se, _known(values), draws.T, strict=True)
        ]  # fmt: skip

    # ---- resampling

    def _means(self, values: Values) -> tuple[Values, Values, Values]:
        """(M,) means, (R, M) resampled means and (U, M) means without each user, of (U, M)."""
        known = ~np.isnan(values)
        if not known.any(axis=0).all():
            raise ValueError(f"column {int(np.argmin(known.any(axis=0)))} has no user with a value")
        filled = np.where(known, values, 0.0)
        with np.errstate(invalid="ignore"):  # a resample without any of the column's users: NaN, left out later
            draws = self._sums(filled) / self._sums(known.astype(np.float64))
        total, n = filled.sum(axis=0), known.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):  # without the only user: NaN
            return total / n, draws, (total - filled) / (n - known)

    def _ratio(self, numerator: Values, denominator: Values) -> tuple[float, Values, Values]:
        sums = np.column_stack([numerator, denominator]).astype(np.float64)
        sums[np.isnan(sums).any(axis=1)] = 0
        total = sums.sum(axis=0)
        if total[1] == 0:
            raise ValueError("the denominators sum to 0: no user has a value")
        drawn = self._sums(sums)
        rest = total - sums
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(total[0] / total[1]), drawn[:, 0] / drawn[:, 1], rest[:, 0] / rest[:, 1]

    def _sums(self, values: Values) -> Values:
        """(R, M) weighted column sums of (U, M); weights are how often each user was drawn."""
        if len(values) != self.n_users:
            raise ValueError(f"{len(values)} rows for a bootstrap over {self.n_users} users; align the table first")
        return np.concatenate([counts.astype(np.float64) @ values for counts in self._blocks()])

    def _blocks(self) -> Iterator[NDArray[np.uint8]]:
        if self.resamples * self.n_users <= _KEEP:
            return iter(self._kept)
        return self._draw()

    @cached_property
    def _kept(self) -> list[NDArray[np.uint8]]:
        return list(self._draw())

    def _draw(self) -> Iterator[NDArray[np.uint8]]:
        """How often each user stands in each resample, (<= _BLOCK, U) at a time.

        uint8 is enough: a count is Poisson(1) to all intents, and 255 of them has probability 1e-500.
        """
        for start in range(0, self.resamples, _BLOCK):
            size = min(_BLOCK, self.resamples - start)
            rng = child_rng(self.seed, "bootstrap", self.n_users, start)
            drawn = rng.integers(self.n_users, size=(size, self.n_users), dtype=np.int64)
            drawn += np.arange(size)[:, None] * self.n_users
            counts = np.bincount(drawn.ravel(), minlength=size * self.n_users)
            yield counts.astype(np.uint8).reshape(size, self.n_users)


def _column(values: Values) -> Values:
    if np.ndim(values) != 1:
        raise ValueError(f"one value per user expected, got {np.shape(values)}; means() and average() take columns")
    return np.asarray(values, np.float64)[:, None]


def _known(values: Values) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.sum(~np.isnan(values), axis=0, dtype=np.int64)
    return counts


def _sharing(a: Values, b: Values) -> int:
    return int(np.count_nonzero(~np.isnan(a + b)))


def _p_value(draws: Values) -> float:
    """Twice the smaller share of resamples on one side of 0, with one added so that it is never 0."""
    draws = draws[~np.isnan(draws)]
    beyond = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return float(min(1.0, 2 * (beyond + 1) / (len(draws) + 1)))


def _estimate(value: float, draws: Values, n: int, without: Values | None = None) -> Estimate:
    low, lower, high = np.nanquantile(draws, [0.025, 0.05, 0.975])
    finite = np.zeros(0) if without is None else without[np.isfinite(without)]
    ends = (float(finite.min()), float(finite.max())) if len(finite) else ()
    se = float(np.nanstd(draws, ddof=1))
    return Estimate(float(value), float(low), float(high), int(n), se, float(lower), _p_value(draws), *ends)


# ---- judging


def minimum_detectable_difference(difference: Estimate) -> float:
    """The true difference a study with this standard error finds in 80 % of cases at two-sided 5 %: (1.96 + .84) se.

    >>> round(minimum_detectable_difference(Estimate(0, -0.02, 0.02, 100, se=0.01)), 3)
    0.028
    """
    return (1.96 + 0.84) * difference.se


def verdict(difference: Estimate, margin: float = MARGIN) -> Verdict:
    """What an interval of a difference (higher is better) allows to say, the first that holds:

    *tie*: the interval lies within +-margin (even if it excludes 0: sure, but of no consequence); *better*, *worse*: it
    lies beyond the margin; *slightly better*, *slightly worse*: it excludes 0; *not worse*: the one-sided lower bound
    is above -margin; else *undecided*.

    >>> verdict(Estimate(0.02, 0.011, 0.03, 943, lower=0.012)), verdict(Estimate(0.0, -0.004, 0.004, 943, lower=-0.003))
    ('better', 'tie')
    >>> verdict(Estimate(0.02, 0.005, 0.03, 943, lower=0.007)), verdict(Estimate(-0.01, -0.03, 0.01, 943, lower=-0.02))
    ('slightly better', 'undecided')
    """
    if -margin <= difference.ci_low and difference.ci_high <= margin:
        return "tie"
    if difference.ci_low > 0:
        return "better" if difference.ci_low > margin else "slightly better"
    if difference.ci_high < 0:
        return "worse" if difference.ci_high < -margin else "slightly worse"
    return "not worse" if difference.lower > -margin else "undecided"


def without_one_user(difference: Estimate, margin: float = MARGIN) -> set[Verdict]:
    """The verdicts that leaving out a single user can give: the interval moves with the value.

    >>> sorted(without_one_user(Estimate(0.012, 0.0101, 0.02, 50, lower=0.0105, least=0.005, most=0.012)))
    ['better', 'slightly better']
    """
    moves = [end - difference.value for end in (difference.least, difference.most) if np.isfinite(end)]
    names = ("value", "ci_low", "ci_high", "lower")
    shifted = [replace(difference, **{n: getattr(difference, n) + move for n in names}) for move in moves]
    return {verdict(each, margin) for each in (difference, *shifted)}


def holm(p_values: ArrayLike) -> Values:
    """Holm's (1979) step-down adjusted p values of a family of tests, in the order given.

    >>> [float(p) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def p_text(p: float, tests: int = 1) -> str:
    """A bootstrap p value, or Holm's correction of one for so many tests, as it stands in a text.

    Of R resamples none is beyond 0 at p = 2 / (R + 1): all that is known then is that p is no larger.

    >>> p_text(0.0312), p_text(0.0002), p_text(0.0028, tests=14)
    ('0.031', '<= 0.0002', '<= 0.0028')
    """
    floor = tests * 2 / (RESAMPLES + 1)
    return f"{'<= ' * (p < 1.001 * floor)}{p:.2g}"


def jackknife(value: float, without_each: Values, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Interval value +- 1.96 se from the statistic without each user in turn, clipped to ``bounds``.

    se^2 = (U - 1) / U * sum (s_u - mean s)^2 (Efron & Stein 1981). For coverage and Gini, which resampling with
    replacement biases, since it repeats lists. The interval holds for this number of lists; for coverage it is rather
    too wide. For a paired difference pass the differences of both arguments and bounds (-1, 1).

    >>> print(jackknife(0.5, np.array([0.4, 0.5, 0.6])))
    0.500 [0.274, 0.726]
    """
    n = len(without_each)
    if n < 2:
        raise ValueError(f"a jackknife needs at least two users, got {n}")
    se = float(np.sqrt((n - 1) / n * np.square(without_each - without_each.mean()).sum()))
    low, high, lower = np.clip([value - 1.96 * se, value + 1.96 * se, value - 1.645 * se], *bounds)
    return Estimate(float(value), float(low), float(high), n, se, float(lower))


def metric_rows(
    estimates: Mapping[str, Estimate], *, protocol: str, model: str, variant: str = "", segment: str = "all"
) -> pd.DataFrame:
    """The rows of metrics.csv for estimates by metric name (all its columns but stage).

    >>> rows = metric_rows({"ndcg@10": Estimate(0.2, 0.1, 0.3, 9)}, protocol="ranking-last20", model="ease")
    >>> print(rows.to_csv(index=False).strip())
    protocol,model,variant,segment,metric,value,ci_low,ci_high,n
    ranking-last20,ease,,all,ndcg@10,0.2,0.1,0.3,9
    """
    names = {"protocol": protocol, "model": model, "variant": variant, "segment": segment}
    return pd.DataFrame([names | estimate.evidence(metric) for metric, estimate in estimates.items()])
