"""Variational MF: out-of-fold predictions, intervals, the last fifth, lists under uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.stats import norm

from recsys_study import figures
from recsys_study.findings import Contrast
from recsys_study.stage_files import Population
from recsys_utils.base import USER, Floats, Scores
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import (
    Case,
    align,
    check_tuning,
    measure,
    rank_lists,
    summarise,
    summarise_errors,
    summarise_lists,
    validation_mask,
    warm_split,
)
from recsys_utils.evaluation.significance import Bootstrap, Estimate, metric_rows
from recsys_utils.models.rankers import Popularity
from recsys_utils.models.variational_mf import MOST_LEVELS, VariationalMF

Errors = dict[str, Floats]
Seeded = Callable[..., np.random.Generator]  # a generator of random numbers by name
LEVELS = (0.5, 0.8, 0.95)
SPREADS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1)  # deviations the ordinal probabilities choose among, relative
FAR = 0.05  # of a segment's coverage from the nominal level: worth a warning
BUCKETS = (10, 50, 150)  # training ratings; items below the first are obscure
RULES = {"mean": 0.0, "lower bound": -1.0, "upper bound": 1.0, "thompson": None}
LAST = "rating-last20"
LISTED = ["ndcg@10", "recall@10", "map@10", "mrr@10", "hit@10", "novelty@10"]


# ---- out-of-fold predictions


@dataclass(frozen=True)
class OutOfFold:
    """Predictions for every rating by a model that was fitted without it.

    table : one row per predicted rating, in the order of the data: mean (not clipped), deviation, truncated (deviation
        without the product and bias terms)
    chances : (N, L) probabilities of the values that occur in the data by ordinal models; (N, 0) by others
    models : the fitted model of each fold, in order of the folds
    trials : fold, n_factors, sweep, likelihood (nats per held-out rating)
    """

    table: pd.DataFrame
    chances: Floats
    models: list[VariationalMF]
    trials: pd.DataFrame

    @property
    def mean(self) -> Floats:
        return self.table["mean"].to_numpy()

    @property
    def deviation(self) -> Floats:
        return self.table["deviation"].to_numpy()


def out_of_fold(data: Interactions, fold: NDArray[np.int8], options: Sequence[VariationalMF], jobs: int) -> OutOfFold:
    """rating-cv5: in each training part the option with the best held-out likelihood is chosen and fitted.

    Ratings of a negative fold are in every training part and are not predicted.
    """
    folds = [int(f) for f in np.unique(fold) if f >= 0]
    done = Parallel(n_jobs=jobs)(delayed(_one_fold)(data, fold == f, options) for f in folds)
    found = np.full((len(data), done[0][1].shape[1]), np.nan)
    for f, (_, predicted, _) in zip(folds, done, strict=True):
        found[fold == f] = predicted
    found = found[fold >= 0]
    table = pd.DataFrame(found[:, :3], columns=["mean", "deviation", "truncated"])
    trials = pd.concat([trial.assign(fold=f) for f, (_, _, trial) in zip(folds, done, strict=True)], ignore_index=True)
    return OutOfFold(table, found[:, 3:], [model for model, _, _ in done], trials)


def _one_fold(
    data: Interactions, test: NDArray[np.bool_], options: Sequence[VariationalMF]
) -> tuple[VariationalMF, Floats, pd.DataFrame]:
    train, held = data.where(~test), data.where(test)
    model, trials = chosen(train, options)
    where = train.user_item, held.user, held.item
    columns = [*model.at(*where), model.truncated_deviation(*where)]
    if model.likelihood == "ordinal":
        values = np.unique(data.rating)
        chances = np.zeros((len(held), len(values)))  # 0 for what a training part lacks
        chances[:, np.searchsorted(values, model.levels)] = model.probabilities(*where)
        columns.append(chances)
    return model, np.column_stack(columns), trials


def chosen(train: Interactions, options: Sequence[VariationalMF]) -> tuple[VariationalMF, pd.DataFrame]:
    """The option and number of sweeps that predict held-out ratings best, fitted on all of ``train``; all trials.

    The trials have one row per sweep: n_factors, sweep, likelihood. A single option that holds nothing out needs none.
    """
    if [option.held_out for option in options] == [0]:
        return replace(options[0]).fit(train), pd.DataFrame(columns=["n_factors", "sweep", "likelihood"])
    paths = [option.trial(train) for option in options]
    best = int(np.argmax([path.max() for path in paths]))
    model = replace(options[best], sweeps=int(paths[best].argmax()) + 1, held_out=0).fit(train)
    trials = [
        pd.DataFrame({"n_factors": option.n_factors, "sweep": np.arange(1, len(path) + 1), "likelihood": path})
        for option, path in zip(options, paths, strict=True)
    ]
    return model, pd.concat(trials, ignore_index=True)


@dataclass(frozen=True)
class Fits:
    """Out-of-fold predictions of the tested users' ratings by several models.

    data, fold : of the tested users alone
    full : learned from everyone's ratings; ``alone`` from those of the tested users, as are the other variants
    one_noise : the same noise for every user and item
    ordinal : ratings as ordered categories; None where they take too many values
    """

    data: Interactions
    fold: NDArray[np.int8]
    full: OutOfFold
    alone: OutOfFold
    one_noise: OutOfFold
    ordinal: OutOfFold | None

    @classmethod
    def of(cls, everyone: Population, options: Sequence[VariationalMF], jobs: int) -> Self:
        data, fold = everyone.tested_alone, everyone.folds[everyone.tested_ratings]
        full = out_of_fold(everyone.data, everyone.folds, options, jobs)
        alone = full if everyone.tested.all() else out_of_fold(data, fold, options, jobs)
        one_noise = out_of_fold(data, fold, [replace(option, varied_noise=False) for option in options], jobs)
        ordinal = None
        if len(np.unique(data.rating)) <= MOST_LEVELS:
            ordinal = out_of_fold(data, fold, [replace(option, likelihood="ordinal") for option in options], jobs)
        return cls(data, fold, full, alone, one_noise, ordinal)

    def errors(self, fit: OutOfFold) -> Errors:
        """Sums of errors by user, predictions clipped to the scale."""
        return _errors(self.data, fit.mean)

    def error_rows(self, boot: Bootstrap) -> pd.DataFrame:
        """Metric rows of rmse and mae: of the model and of its ordinal variant."""
        fits = {"": self.full} | ({"likelihood=ordinal": self.ordinal} if self.ordinal else {})
        key = {"protocol": "rating-cv5", "model": VariationalMF.name}
        rows = [summarise_errors(self.errors(fit), boot, variant=variant, **key) for variant, fit in fits.items()]
        return pd.concat(rows)

    def gains(self, boot: Bootstrap) -> dict[str, Estimate]:
        """What noise of each user's and item's own gains, in RMSE and in log density (nats per rating)."""
        pair = [self.alone, self.one_noise]
        own, one = (self.errors(fit) for fit in pair)
        density = [norm.logpdf(self.data.rating, fit.mean, fit.deviation) for fit in pair]
        difference = np.bincount(self.data.user, density[0] - density[1], len(self.data.users)).astype(np.float64)
        return {
            "rmse": boot.rmse_difference(one["squared"], own["squared"], own["count"]),
            "log density": boot.ratio(difference, own["count"]),
        }


def _errors(data: Interactions, mean: Floats) -> Errors:
    return metrics.error_sums(data.user, data.rating, np.clip(mean, data.scale.lo, data.scale.hi), len(data.users))


def error_contrasts(fits: Fits, peers: Mapping[str, pd.DataFrame], boot: Bootstrap, margin: float) -> list[Contrast]:
    """RMSE that variational MF saves against each peer, whose sums of errors are by user; the first is primary.

    Raises
    ------
    ValueError : a peer was not tested on the same ratings.
    """
    ours, found = fits.errors(fits.full), list[Contrast]()
    for name, table in peers.items():
        theirs = table.set_index(USER).reindex(fits.data.users)
        if not np.array_equal(theirs["count"], ours["count"]):
            raise ValueError(f"{name} was tested on other ratings")
        gain = boot.rmse_difference(theirs["squared"].to_numpy(), ours["squared"], ours["count"])
        label, id = f"variational MF instead of {name}", "mf-" + name.removeprefix("tuned ").lower().replace(" ", "-")
        found.append(
            Contrast.from_estimate(
                id, label, gain, of="RMSE, random folds (rating-cv5)", unit="rating points", margin=margin,
                primary=not found,
            )
        )  # fmt: skip
    return found


# ---- intervals


def coverage_rows(
    data: Interactions, values: Mapping[str, NDArray[Any]], boot: Bootstrap, *, protocol: str, variant: str = "",
    segment: str = "all",
) -> pd.DataFrame:  # fmt: skip
    """Metric rows of the share of ratings for which each mask (N,) holds, or of the mean of (N,) values, over users."""
    count = np.bincount(data.user, minlength=len(data.users)).astype(np.float64)
    estimates = {
        name: boot.ratio(np.bincount(data.user, value, len(data.users)).astype(np.float64), count)
        for name, value in values.items()
    }
    return metric_rows(estimates, protocol=protocol, model=VariationalMF.name, variant=variant, segment=segment)


def inside(
    rating: NDArray[np.float32], mean: Floats, deviation: Floats, factors: Sequence[float] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Which ratings lie in mean +- factor * deviation, by metric name; normal factors unless given."""
    z = np.abs(rating - mean) / deviation
    width = factors or [norm.ppf(0.5 + level / 2) for level in LEVELS]
    return {f"interval_coverage@{level:.0%}"[:-1]: z <= w for level, w in zip(LEVELS, width, strict=True)}


def interval_rows(fits: Fits, boot: Bootstrap, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metric rows of coverage and log loss by form of the interval, and the mean size of the ordinal sets."""
    data = fits.data
    layer, place = ordinal(data.rating, fits.alone.mean, fits.alone.deviation, fits.fold)
    chances = {"interval=ordinal-layer": layer} | ({"interval=ordinal": fits.ordinal.chances} if fits.ordinal else {})
    sets = {form: central_sets(p, place, np.random.default_rng(seed)) for form, p in chances.items()}
    hits = {
        "": inside(data.rating, fits.full.mean, fits.full.deviation),
        "interval=truncated": inside(data.rating, fits.full.mean, fits.full.table["truncated"].to_numpy()),
    } | {form: found.inside for form, found in sets.items()}
    losses = {form: {"log_loss": found.loss} for form, found in sets.items()}
    parts: list[tuple[str, Any]] = [*hits.items(), *losses.items()]
    rows = pd.concat([coverage_rows(data, value, boot, protocol="rating-cv5", variant=form) for form, value in parts])
    sizes = pd.DataFrame({form: found.sizes for form, found in sets.items()}, index=[f"{q:.0%}" for q in LEVELS])
    return rows, sizes.T.rename_axis("interval").reset_index()


def largest_miss(rows: pd.DataFrame, variant: str = "") -> float:
    """The largest distance of a coverage from its nominal level, over the levels."""
    part = rows[(rows["variant"] == variant) & rows["metric"].str.startswith("interval_coverage@")]
    return float((part["value"] - nominal(part["metric"])).abs().max())


def deciles(rating: NDArray[np.float32], table: pd.DataFrame) -> tuple[NDArray[np.intp], pd.DataFrame]:
    """The tenth (from 0, the surest) of each prediction by its deviation, and per tenth the deviation and the RMSE."""
    tenth = pd.qcut(table["deviation"], 10, labels=False, duplicates="drop").to_numpy()
    squared = pd.Series((rating - table["mean"].to_numpy()) ** 2).groupby(tenth)
    predicted = table["deviation"].groupby(tenth).mean()
    return tenth, pd.DataFrame({"predicted": predicted, "actual": np.sqrt(squared.mean())})


def segment_rows(
    data: Interactions, table: pd.DataFrame, boot: Bootstrap, *, protocol: str, variant: str = "", least: int = 1000
) -> pd.DataFrame:
    """:func:`coverage_rows` by thirds of activity and popularity, and for the tenths most and least sure.

    Segments of fewer than ``least`` ratings are left out.
    """
    counts = {"activity": np.bincount(data.user)[data.user], "popularity": item_counts(data.user_item)[data.item]}
    third = {key: np.searchsorted(np.quantile(x, [1 / 3, 2 / 3]), x, side="right") for key, x in counts.items()}
    names = ("low", "middle", "high")
    segments = {f"{key}={names[t]}": x == t for key, x in third.items() for t in range(3)}
    tenth, _ = deciles(data.rating, table)
    segments |= {"sureness=most": tenth == 0, "sureness=least": tenth == tenth.max()}
    hits = inside(data.rating, table["mean"].to_numpy(), table["deviation"].to_numpy())
    key = {"protocol": protocol, "variant": variant}
    parts = [
        coverage_rows(data.where(mask), {metric: hit[mask] for metric, hit in hits.items()}, boot, segment=name, **key)
        for name, mask in segments.items() if mask.sum() >= least
    ]  # fmt: skip
    return pd.concat(parts) if parts else coverage_rows(data, hits, boot, protocol=protocol).iloc[:0]


def far_off(rows: pd.DataFrame) -> int:
    """How many coverages are more than five points from their nominal level."""
    return int(((rows["value"] - nominal(rows["metric"])).abs() > FAR).sum())


def one_noise_rows(fits: Fits, boot: Bootstrap) -> pd.DataFrame:
    """Metric rows of the variant with one noise: coverage by segment, errors, coverage in all."""
    data, fit = fits.data, fits.one_noise
    protocol, variant = "rating-cv5", "noise=one"
    hits = inside(data.rating, fit.mean, fit.deviation)
    return pd.concat([
        segment_rows(data, fit.table, boot, protocol=protocol, variant=variant),
        summarise_errors(fits.errors(fit), boot, model=VariationalMF.name, protocol=protocol, variant=variant),
        coverage_rows(data, hits, boot, protocol=protocol, variant=variant),
    ])  # fmt: skip


def nominal(metric: pd.Series) -> pd.Series:
    """The share that ``interval_coverage@80`` should be: .8."""
    return metric.str.rpartition("@")[2].astype(float) / 100


def conformal_factors(rating: NDArray[np.float32], mean: Floats, deviation: Floats) -> list[float]:
    """Half-widths, in deviations, that would have covered the share LEVELS of these ratings (split conformal)."""
    z = np.abs(rating - mean) / deviation
    ranks = [min(1.0, level * (len(z) + 1) / len(z)) for level in LEVELS]
    return [float(q) for q in np.quantile(z, ranks, method="inverted_cdf")]


def ordinal(
    rating: NDArray[np.float32], mean: Floats, deviation: Floats, fold: NDArray[np.int8]
) -> tuple[Floats, NDArray[np.intp]]:
    """Ordered-probit probabilities (N, L) of the L values that occur, and the position of each rating among them.

    ``P(r <= l) = Phi((c_l - mean) / (s deviation))``. Cut points and s are cross-fitted: on the ratings of the other
    folds c_l makes the mean probability equal to the share that occurs, and s is the one with the best likelihood.
    """
    values, place = np.unique(rating, return_inverse=True)
    below = np.column_stack([np.zeros((len(rating), len(values))), np.ones(len(rating))])
    for f in np.unique(fold):
        out, own = fold != f, fold == f
        fits = [_cuts(place[out], mean[out], s * deviation[out], len(values)) for s in SPREADS]
        cuts, s = max(zip(fits, SPREADS, strict=True), key=lambda fit: fit[0][1])
        below[own, 1:-1] = norm.cdf((cuts[0] - mean[own, None]) / (s * deviation[own, None]))
    return np.diff(below, axis=1), place


def _cuts(place: NDArray[np.intp], mean: Floats, spread: Floats, levels: int) -> tuple[Floats, float]:
    """Cut points that reproduce the shares of the levels, and the mean log likelihood there."""
    some = slice(None, None, max(1, len(place) // 20_000))
    place, mean, spread = place[some], mean[some], spread[some]
    far = float(np.ptp(mean) + 20 * spread.max())
    cuts = np.array(
        [
            brentq(
                lambda c, n=n: norm.cdf((c - mean) / spread).mean() - np.mean(place < n), mean[0] - far, mean[0] + far
            )
            for n in range(1, levels)
        ]
    )
    edges = np.concatenate([[-np.inf], cuts, [np.inf]])
    chance = norm.cdf((edges[place + 1] - mean) / spread) - norm.cdf((edges[place] - mean) / spread)
    return cuts, float(np.log(np.maximum(chance, 1e-12)).mean())


@dataclass(frozen=True)
class CentralSets:
    """How good probabilities of ratings are.

    inside : by metric name, (N,) whether a rating is in the central set of that probability
    sizes : mean number of ratings in the sets, by LEVELS
    loss : (N,) -log probability of what happened, nats
    """

    inside: dict[str, NDArray[np.bool_]]
    sizes: list[float]
    loss: Floats


def central_sets(chances: Floats, place: NDArray[np.intp], rng: np.random.Generator) -> CentralSets:
    """Sets by the probability integral transform, randomised within a rating so that they can hit any level.

    ``chances`` (N, L), ``place`` (N,) of what happened. Paper: Czado, Gneiting & Held, "Predictive model assessment for
    count data", Biometrics 65 (2009).

    >>> sets = central_sets(np.array([[0.1, 0.8, 0.1]]), np.array([1]), np.random.default_rng(0))
    >>> [round(size, 2) for size in sets.sizes], round(float(sets.loss[0]), 3)  # 80 % are the middle rating alone
    ([0.62, 1.0, 2.5], 0.223)
    """
    rows, upper = np.arange(len(place)), chances.cumsum(axis=1)
    transform = upper[rows, place] - rng.random(len(place)) * chances[rows, place]
    hits = {f"interval_coverage@{100 * q:g}": np.abs(transform - 0.5) < q / 2 for q in LEVELS}
    # how much of each rating's probability lies in the central part
    parts = [
        np.clip(upper, 0.5 - q / 2, 0.5 + q / 2) - np.clip(upper - chances, 0.5 - q / 2, 0.5 + q / 2) for q in LEVELS
    ]
    sizes = [float((part / np.maximum(chances, 1e-12)).sum(axis=1).mean()) for part in parts]
    return CentralSets(hits, sizes, -np.log(np.maximum(chances[rows, place], 1e-12)))


# ---- the last fifth


@dataclass(frozen=True)
class LastFifth:
    """The model fitted on all but the tested users' last fifth, and its intervals there.

    trials : n_factors, sweep, likelihood, of the choice of settings inside the training part
    rows : metric rows of coverage, as predicted and after a conformal step, and of the error
    """

    case: Case
    model: VariationalMF
    trials: pd.DataFrame
    rows: pd.DataFrame

    @classmethod
    def of(cls, everyone: Population, options: Sequence[VariationalMF], boot: Bootstrap, *, time_ordered: bool) -> Self:
        """Half-widths of the conformal step come from each user's slice before, by a model that saw neither."""
        data, alone, tested = everyone.data, everyone.tested_alone, everyone.tested_ratings
        hidden = everyone.splits["last20"].to_numpy() & tested
        before = validation_mask(data, hidden, everyone.splits["position_time"]) & tested
        case = warm_split(data, hidden, time_ordered=time_ordered)
        inner = warm_split(data, before, hidden=hidden, time_ordered=time_ordered)
        check_tuning(inner, case)
        earlier, _ = chosen(inner.train, options)
        model, trials = chosen(case.train, options)
        sliced, test = data.where(before), alone.where(hidden[tested])
        widths = conformal_factors(sliced.rating, *earlier.at(inner.train.user_item, sliced.user, sliced.item))
        rows = np.flatnonzero(everyone.tested)[test.user]
        mean, deviation = model.at(case.train.user_item, rows, test.item)
        hits = {"": None, "interval=conformal": widths}
        parts = [
            coverage_rows(test, inside(test.rating, mean, deviation, width), boot, protocol=LAST, variant=form)
            for form, width in hits.items()
        ]
        parts.append(summarise_errors(_errors(test, mean), boot, protocol=LAST, model=VariationalMF.name))
        return cls(case, model, trials, pd.concat(parts))


# ---- lists


@dataclass
class Ranked:
    """A model that ranks by ``mean + z * deviation`` of the expected rating, noise left out.

    z < 0 is the cautious lower bound, z > 0 the curious upper one; None draws z for every user and item from
    a standard normal (Thompson sampling, each item by itself). Use an instance once: the draws continue from block
    to block.
    """

    model: VariationalMF
    z: float | None
    rng: np.random.Generator
    name: str = VariationalMF.name

    def fit(self, train: Interactions) -> Self:
        self.model.fit(train)
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        spread = self.model.deviation(profiles, noise=False)
        z = self.rng.standard_normal(spread.shape, np.float32) if self.z is None else np.float32(self.z)
        return self.model.scores(profiles) + z * spread


def popularity_shares(lists: metrics.Lists, counts: NDArray[np.int64], edges: Sequence[int]) -> NDArray[np.float64]:
    """Share of the places that go to items with fewer than edges[0], edges[0] to edges[1] - 1, ... training ratings."""
    bucket = np.searchsorted(edges, counts[lists[lists >= 0]], side="right")
    return np.bincount(bucket, minlength=len(edges) + 1) / len(bucket)


@dataclass(frozen=True)
class RankedLists:
    """Lists of ten by each of ``RULES`` and by popularity, for the users of a case.

    rows : metric rows of the rules
    ndcg : (U,) ndcg@10 by rule
    shares : share of the places by training ratings of the item (``BUCKETS``), by rule and of the catalogue
    """

    rows: pd.DataFrame
    ndcg: dict[str, Floats]
    shares: pd.DataFrame

    @classmethod
    def of(
        cls,
        model: VariationalMF,
        case: Case,
        genres: pd.Series,
        users: NDArray[np.object_],
        boot: Bootstrap,
        rng: Seeded,
    ) -> Self:
        counts = item_counts(case.train.user_item)
        lists = {rule: rank_lists(Ranked(model, z, rng(rule)), case) for rule, z in RULES.items()}
        lists["popularity"] = rank_lists(Popularity().fit(case.train), case)
        traits = metrics.ItemTraits.of(case.train, genres)
        tables = {rule: measure(shown, case, traits=traits)[[USER, *LISTED]] for rule, shown in lists.items()}
        rows = []
        for rule in RULES:
            key = {"protocol": "ranking-last20", "model": Ranked.name, "variant": f"relevance=liked;rule={rule}"}
            rows.append(summarise(tables[rule], boot, users=users, **key))
            rows.append(summarise_lists(lists[rule], len(genres), **key))
        shares = {rule: popularity_shares(shown, counts, BUCKETS) for rule, shown in lists.items()}
        shares["catalogue"] = popularity_shares(np.arange(len(counts), dtype=np.int32), counts, BUCKETS)
        names = [f"< {BUCKETS[0]}", *(f"{a}-{b - 1}" for a, b in pairwise(BUCKETS)), f">= {BUCKETS[-1]}"]
        ndcg = {rule: align(table, users)["ndcg@10"].to_numpy() for rule, table in tables.items()}
        return cls(pd.concat(rows), ndcg, pd.DataFrame(shares, index=names).T)

    def contrasts(self, boot: Bootstrap) -> list[Contrast]:
        """Each rule against popularity."""
        return [
            Contrast.from_estimate(
                f"rank-{rule.replace(' ', '-')}", f"variational MF by {rule} instead of popularity",
                boot.difference(self.ndcg[rule], self.ndcg["popularity"]), of="ndcg@10, last fifth (ranking-last20)",
            )
            for rule in RULES
        ]  # fmt: skip


# ---- the finding and its figures


def facts(
    fits: Fits, covered: pd.DataFrame, segments: pd.DataFrame, last: LastFifth, boot: Bootstrap
) -> dict[str, Any]:
    """Levels and counts of the finding."""
    _, tenths = deciles(fits.data.rating, fits.full.table)
    gains = fits.gains(boot)
    return {
        "rmse": metrics.rmse(fits.errors(fits.full)), "rmse_gain_of_own_noise": gains["rmse"].value,
        "log_density_gain_of_own_noise": gains["log density"].value,
        "coverage": covered[covered["variant"] == ""].set_index("metric")["value"].to_dict(),
        "coverage_off": largest_miss(covered), "coverage_off_truncated": largest_miss(covered, "interval=truncated"),
        "coverage_off_last_fifth": largest_miss(last.rows),
        "coverage_off_conformal": largest_miss(last.rows, "interval=conformal"),
        "segments": len(segments), "segments_off": far_off(segments),
        "error_of_surest_tenth": tenths["actual"].iloc[0], "predicted_for_surest_tenth": tenths["predicted"].iloc[0],
        "error_of_least_sure_tenth": tenths["actual"].iloc[-1],
        "predicted_for_least_sure_tenth": tenths["predicted"].iloc[-1],
    }  # fmt: skip


def interval_figure(fits: Fits, segments: pd.DataFrame) -> Figure:
    """Coverage by segment, and the error by predicted deviation with own noise and with one noise for all."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9), gridspec_kw={"width_ratios": [1.2, 1]})
    for shift, q, marker in zip((-0.18, 0, 0.18), LEVELS, "osD", strict=True):
        at = segments[nominal(segments["metric"]) == q]
        bars = [100 * (at["value"] - at["ci_low"]), 100 * (at["ci_high"] - at["value"])]
        positions = np.arange(len(at)) + shift
        left.errorbar(positions, 100 * (at["value"] - q), bars, fmt=marker, capsize=2, label=f"{q:.0%}")
    left.set_xticks(range(segments["segment"].nunique()), segments["segment"].unique())
    left.axhspan(-100 * FAR, 100 * FAR, color="C8", alpha=0.12, linewidth=0)
    left.axhline(0, color="C8", linewidth=1)
    left.tick_params(axis="x", rotation=35)
    left.set(ylabel="coverage - nominal (percentage points)", title="Intervals by segment")
    left.legend(title="level", ncols=3)
    for fit, label, marker in (
        (fits.full, "own noise, tenths of the ratings", "o"),
        (fits.one_noise, "one noise", "s"),
    ):
        _, tenths = deciles(fits.data.rating, fit.table)
        right.plot(tenths["predicted"], tenths["actual"], marker=marker, label=label)
    right.axline((float(fits.full.deviation.mean()),) * 2, slope=1, color="C8", linestyle=":", label="as predicted")
    right.set(xlabel="predicted deviation (rating points)", ylabel="RMSE (rating points)", title="Error by deviation")
    right.legend()
    return fig


def ranking_figure(lists: RankedLists, contrasts: Sequence[Contrast]) -> Figure:
    """What is listed, by popularity of the items; and ndcg@10 against popularity, by rule."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8))
    bottom = np.zeros(len(lists.shares))
    for bucket, colour in zip(lists.shares, ("#ffa90e", "#94a4a2", "#3f90da", "#832db6"), strict=True):
        width = 100 * lists.shares[bucket].to_numpy()
        left.barh(lists.shares.index, width, left=bottom, color=colour, label=bucket, edgecolor="white")
        bottom += width
    left.invert_yaxis()
    left.set(xlabel="share of the places (%)")
    left.legend(title="training ratings", ncols=4, loc="lower left", bbox_to_anchor=(-0.25, 1))
    table = pd.DataFrame([{"rule": rule} | vars(c) for rule, c in zip(RULES, contrasts, strict=True)])
    figures.intervals(right, table, label="rule")
    right.axvline(0, color="C8", linewidth=1)
    right.set(xlabel="ndcg@10 minus that of popularity, 95 % interval")
    return fig
