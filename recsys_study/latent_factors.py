"""What the notebook on latent traits asks in one call: out-of-fold predictions, intervals, rankings, warning signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.stats import norm

from recsys_utils.base import Floats, Scores
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import Case
from recsys_utils.evaluation.significance import Bootstrap, metric_rows
from recsys_utils.models.variational_mf import VariationalMF

LEVELS = (0.5, 0.8, 0.95)
SPREADS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1)  # deviations the ordinal probabilities choose among, relative
WATCHED = 1000  # users in whose lists the warning signs are looked for


@dataclass(frozen=True)
class OutOfFold:
    """Predictions for every rating by a model that was fitted without it.

    table : a row a predicted rating, in the order of the data: mean (not clipped), deviation, truncated (deviation
        without the product and bias terms)
    chances : (N, L) probabilities of the values that occur in the data by ordinal models; (N, 0) by others
    models : the fitted model of each fold, in order of the folds
    trials : fold, n_factors, sweep, likelihood (nats a held-out rating)
    """

    table: pd.DataFrame
    chances: Floats
    models: list[VariationalMF]
    trials: pd.DataFrame


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

    The trials are a row a sweep: n_factors, sweep, likelihood. A single option that holds nothing out needs none.
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


# ---- intervals


def coverage_rows(
    data: Interactions, inside: dict[str, NDArray[np.bool_]], boot: Bootstrap, *, protocol: str, variant: str = "",
    segment: str = "all",
) -> pd.DataFrame:  # fmt: skip
    """Metric rows of the share of ratings for which each mask (N,) holds, or of the mean of (N,) values, over users."""
    count = np.bincount(data.user, minlength=len(data.users)).astype(np.float64)
    estimates = {
        name: boot.ratio(np.bincount(data.user, mask, len(data.users)).astype(np.float64), count)
        for name, mask in inside.items()
    }
    return metric_rows(estimates, protocol=protocol, model=VariationalMF.name, variant=variant, segment=segment)


def inside(
    rating: NDArray[np.float32], mean: Floats, deviation: Floats, factors: Sequence[float] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Which ratings lie in mean +- factor * deviation, by metric name; normal factors unless given."""
    z = np.abs(rating - mean) / deviation
    width = factors or [norm.ppf(0.5 + level / 2) for level in LEVELS]
    return {f"interval_coverage@{level:.0%}"[:-1]: z <= w for level, w in zip(LEVELS, width, strict=True)}


def log_density(rating: NDArray[np.float32], mean: Floats, deviation: Floats) -> Floats:
    """(N,) of ratings under normal predictions, nats."""
    return np.asarray(norm.logpdf(rating, mean, deviation))


def deciles(rating: NDArray[np.float32], table: pd.DataFrame) -> tuple[NDArray[np.intp], pd.DataFrame]:
    """The tenth (from 0, the surest) of each prediction by its deviation, and per tenth the deviation and the RMSE."""
    tenth = pd.qcut(table["deviation"], 10, labels=False, duplicates="drop").to_numpy()
    squared = pd.Series((rating - table["mean"].to_numpy()) ** 2).groupby(tenth)
    predicted = table["deviation"].groupby(tenth).mean()
    return tenth, pd.DataFrame({"predicted": predicted, "actual": np.sqrt(squared.mean())})


def segment_coverage(
    data: Interactions, table: pd.DataFrame, segments: dict[str, NDArray[np.bool_]], boot: Bootstrap, *,
    protocol: str, variant: str = "", least: int = 1000,
) -> pd.DataFrame:  # fmt: skip
    """:func:`coverage_rows` by segment (masks by name) and for the tenths of the ratings most and least sure.

    Segments of fewer than ``least`` ratings are left out.
    """
    tenth, _ = deciles(data.rating, table)
    segments = segments | {"sureness=most": tenth == 0, "sureness=least": tenth == tenth.max()}
    hits = inside(data.rating, table["mean"].to_numpy(), table["deviation"].to_numpy())
    parts = [
        coverage_rows(
            data.where(mask), {metric: hit[mask] for metric, hit in hits.items()}, boot, protocol=protocol,
            variant=variant, segment=segment,
        )
        for segment, mask in segments.items() if mask.sum() >= least
    ]  # fmt: skip
    return pd.concat(parts) if parts else coverage_rows(data, hits, boot, protocol=protocol).iloc[:0]


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
    """Ordered-probit probabilities (N, L) of the L values that occur, and the place of each rating among them.

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
    """What probabilities of ratings are worth.

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


# ---- lists


@dataclass
class Ranked:
    """A model that ranks by ``mean + z * deviation`` of the expected rating, noise left out.

    z < 0 is the cautious lower bound, z > 0 the curious upper one; None draws z for every place from a standard normal
    (Thompson sampling, each item by itself). Use an instance once: the draws go on from block to block.
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


def warning_signs(model: VariationalMF, case: Case, obscure: int, shift: float = 0.0) -> dict[str, float]:
    """The signs that a latent trait model has gone wrong, in lists of ten and in the predictions behind them.

    above scale, obscure, disliked: shares of the lists' places whose prediction lies above the scale, whose item has
    fewer than ``obscure`` ratings, whose item's mean rating is in the lower half; deviation, error of the expectation:
    medians of the predictive standard deviation and of the part that more ratings would remove. ``shift`` is added to
    every prediction.
    """
    some, counts = case.profiles[:WATCHED], item_counts(case.train.user_item)
    scores = model.scores(some) + np.float32(shift)
    lists = metrics.top_k(scores, some, 10)
    row, place = np.nonzero(lists >= 0)
    items = lists[row, place]
    total = np.bincount(case.train.item, case.train.rating, len(counts))
    average = np.divide(total, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    return {
        "above scale": float((scores[row, items] > case.train.scale.hi).mean()),
        "obscure": float((counts[items] < obscure).mean()),
        "disliked": float((average[items] < np.median(average[counts > 0])).mean()),
        "deviation": float(np.median(model.deviation(some))),
        "error of the expectation": float(np.median(model.deviation(some, noise=False))),
    }
