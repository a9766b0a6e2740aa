"""Does variational MF pass its checks, and what causes the failure modes of its classic form?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr

from recsys_study.latent_factors import BUCKETS, Fits, LastFifth, deciles, far_off
from recsys_study.stage_files import Population
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import Case, warm_split
from recsys_utils.models.variational_mf import VariationalMF

OBSERVED = 1000  # users whose lists are searched for failure modes
LONG = 50  # sweeps of the fit that nothing stops
LIMITS = {  # of the checks' values, passed up to and including the limit
    "a: largest fall of the bound, relative": 1e-6,
    "a: gain of the last sweep, relative": 1e-3,
    "b: share of expected ratings outside the scale": 0.01,
    "b: mean error, share of the scale": 0.01,
    "c: slope of actual on left-out prediction, distance from 1": 0.1,
    "c: the same for ratings of held-out folds": 0.1,
    "d: obscure items among the 100 highest mean predictions, relative to the catalogue": 1.0,
    "e: rank correlation of factor norm and ratings, distance from 1": 0.5,
    "f: change of a prediction on a scale up to 10": 0.01,
    "g: coverage, largest distance from nominal, rating-cv5": 0.015,
    "g: coverage, largest distance from nominal, last fifth, conformal": 0.015,
    "g: segments whose coverage is off by more than 5 points": 0.0,
    "g: rank correlation of error and predicted deviation, distance from 1": 0.1,
    "h: first factor in two folds, distance of |correlation| from 1": 0.2,
}


def effective(model: VariationalMF) -> float:
    """Effective number of factors: the exponential of the entropy of their variances."""
    part = model.user_prior[:-1] * model.item_prior[:-1]
    return float(np.exp(-(part / part.sum()) @ np.log(part / part.sum())))


def warning_signs(model: VariationalMF, case: Case, obscure: int, shift: float = 0.0) -> dict[str, float]:
    """Signs that the model has failed, in lists of ten and in the predictions behind them.

    above scale, obscure, disliked: shares of the lists' places whose prediction lies above the scale, whose item has
    fewer than ``obscure`` ratings, whose item's mean rating is in the lower half; deviation, error of the expectation:
    medians of the predictive standard deviation and of the part that more ratings would remove. ``shift`` is added to
    every prediction.
    """
    some, counts = case.profiles[:OBSERVED], item_counts(case.train.user_item)
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


@dataclass(frozen=True)
class Diagnosis:
    """What the checks look at, fitted on the training part of the last fifth (of a panel: the panel's ratings alone).

    model, long : stopped as the held-out ratings say, and after ``LONG`` sweeps; ``scaled`` on a scale up to 10
    left_out : known ratings and their prediction from the rest of their row
    items : training ratings, mean prediction and norm of the factors, of every item
    """

    case: Case
    model: VariationalMF
    long: VariationalMF
    wide: Interactions
    scaled: VariationalMF
    left_out: pd.DataFrame
    items: pd.DataFrame

    @classmethod
    def of(cls, everyone: Population, last: LastFifth, left_out: int, rng: np.random.Generator) -> Self:
        """``left_out`` known ratings, drawn by ``rng``, are predicted without themselves."""
        case, model = last.case, last.model
        if not everyone.tested.all():
            alone = everyone.splits["last20"].to_numpy()[everyone.tested_ratings]
            case = warm_split(everyone.tested_alone, alone)
            model = replace(last.model).fit(case.train)
        known = last.case.train.user_item
        drawn = np.sort(rng.permutation(known.nnz)[:left_out])
        predicted, _ = last.model.leave_one_out(known, drawn)
        scale, average = case.train.scale, last.model.scores(last.case.profiles[:OBSERVED]).mean(axis=0)
        unit = 10 / scale.hi
        wide = replace(case.train, rating=case.train.rating * np.float32(unit), scale=Scale(scale.lo * unit, 10))
        norms = np.linalg.norm(last.model.item_mean[:, :-1], axis=1)
        return cls(
            case, model, replace(model, sweeps=LONG).fit(case.train), wide, replace(model).fit(wide),
            pd.DataFrame({"predicted": predicted, "known": known.data[drawn]}),
            pd.DataFrame({"ratings": item_counts(known), "average": average, "norm": norms}),
        )  # fmt: skip

    def drift(self) -> float:
        """The largest change of a prediction by the unit of the scale, to the digits that single precision has."""
        few, unit = self.case.profiles[:200], np.float32(10 / self.case.train.scale.hi)
        return round(float(np.abs(self.scaled.scores(few * unit) / unit - self.model.scores(few)).max()), 5)


def checks(fits: Fits, diagnosis: Diagnosis, misses: tuple[float, float], segments: pd.DataFrame) -> pd.DataFrame:
    """check, value, limit, passed; ``misses`` of coverage on random folds and, conformal, on the last fifth."""
    long, items, data, full = diagnosis.long, diagnosis.items, fits.data, fits.full
    steps, width = np.diff(long.elbo), data.scale.hi - data.scale.lo
    slope = np.polyfit(diagnosis.left_out["predicted"], diagnosis.left_out["known"], 1)[0]
    obscure, highest = items["ratings"] < BUCKETS[0], np.argsort(-items["average"].to_numpy(), kind="stable")[:100]
    _, tenths = deciles(data.rating, full.table)
    values = [
        max(0, -steps.min()) / abs(long.elbo[-1]),
        abs(steps[-1] / long.elbo[-1]),
        ((full.mean < data.scale.lo) | (full.mean > data.scale.hi)).mean(),
        abs((data.rating - full.mean).mean()) / width,
        abs(slope - 1),
        abs(np.polyfit(full.mean, data.rating, 1)[0] - 1),
        obscure[highest].mean() / max(obscure.mean(), 1e-9),
        1 - spearmanr(items["norm"], items["ratings"]).statistic,
        diagnosis.drift(),
        *misses,
        far_off(segments),
        1 - spearmanr(tenths["predicted"], tenths["actual"]).statistic,
        1 - agreement(full.models, items["ratings"].to_numpy())[0],
    ]
    table = pd.DataFrame({"check": list(LIMITS), "value": np.array(values, float), "limit": list(LIMITS.values())})
    return table.assign(passed=table["value"] <= table["limit"])


def agreement(models: Sequence[VariationalMF], ratings: NDArray[np.int64]) -> list[float]:
    """|correlation| of the leading factors of often rated items between the models of two folds."""
    often = ratings >= np.quantile(ratings, 0.75)
    one, two = (model.item_mean[often] for model in models[:2])
    return [abs(np.corrcoef(one[:, k], two[:, k])[0, 1]) for k in range(min(5, one.shape[1], two.shape[1]) - 1)]


def failure_modes(diagnosis: Diagnosis) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Signs of failure as built and without each remedy; and for each sign the cause that raises it most."""
    wide, narrow = diagnosis.wide, diagnosis.case.train
    every_second = np.arange(len(wide)) % 2 == 1
    rating = np.where(every_second, narrow.rating, wide.rating).astype(np.float32)
    mixed = replace(wide, rating=rating, scale=Scale(narrow.scale.lo, 10))
    biases, shrinkage = {"biased": False}, {"factor_share": 50.0, "learned": False}
    without: dict[str, tuple[Interactions, dict[str, Any], float]] = {
        "as built": (wide, {}, 0.0),
        "no biases": (wide, biases, 0.0),
        "no shrinkage": (wide, shrinkage, 0.0),
        "neither": (wide, biases | shrinkage, 0.0),
        "mixed scales": (mixed, {}, 0.0),
        "mean counted twice": (wide, biases, float(wide.rating.mean())),
    }
    found = {}
    for cause, (train, settings, shift) in without.items():
        case = replace(diagnosis.case, train=train, profiles=train.user_item[diagnosis.case.users])
        found[cause] = warning_signs(replace(diagnosis.model, **settings).fit(train), case, BUCKETS[0], shift)
    signs = pd.DataFrame(found).T
    rest = signs.iloc[1:]
    causes = pd.DataFrame({"cause": rest.idxmax(), "with the remedy": signs.iloc[0], "without": rest.max()})
    return signs.rename_axis("model").reset_index(), causes.rename_axis("sign").reset_index()


def factor_ends(diagnosis: Diagnosis, model: VariationalMF, titles: NDArray[np.object_]) -> pd.DataFrame:
    """The leading factors with the often rated items at their ends."""
    ratings, rows = diagnosis.items["ratings"], []
    pool = np.flatnonzero(ratings >= min(50, np.quantile(ratings, 0.9)))
    for k in range(min(5, model.item_mean.shape[1] - 1)):
        order = pool[np.argsort(model.item_mean[pool, k], kind="stable")]
        ends = ["; ".join(titles[order[side]]) for side in (slice(None, 4), slice(-1, -5, -1))]
        rows.append((k + 1, float(model.user_prior[k] * model.item_prior[k]), *ends))
    return pd.DataFrame(rows, columns=["factor", "variance", "at one end", "at the other"])


def facts(table: pd.DataFrame, causes: pd.DataFrame, shares: pd.DataFrame, diagnosis: Diagnosis) -> dict[str, Any]:
    """Levels and counts of the finding."""
    noise = 10 / diagnosis.case.train.scale.hi * float(np.sqrt(diagnosis.model.noise))
    return {
        "checks": len(table), "passed": int(table["passed"].sum()),
        "failed": table.loc[~table["passed"], "check"].tolist(),
        "outside": table["value"].iloc[2], "obscure_share": shares.iloc[0, 0],
        "obscure_catalogue": shares.loc["catalogue"].iloc[0], "causes": causes.set_index("sign")["cause"].to_dict(),
        "signs": len(causes), "signs_raised": int((causes["without"] > causes["with the remedy"]).sum()),
        "noise_on_ten": noise, "effective_factors": effective(diagnosis.model),
        "effective_factors_long": effective(diagnosis.long),
    }  # fmt: skip


def bound_figure(diagnosis: Diagnosis, trials: pd.DataFrame) -> Figure:
    """The bound by sweep where nothing stops the ascent, and the likelihood of held-out ratings that stops it."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5))
    left.plot(np.arange(1, LONG + 1), diagnosis.long.elbo, marker=".")
    left.set(xlabel="sweep", ylabel="ELBO (nats)", title="Training: the bound")
    right.xaxis.get_major_locator().set_params(integer=True)
    for k, path in trials.groupby("n_factors"):
        right.plot(path["sweep"], path["likelihood"], marker=".", label=f"{k}")
    right.set(xlabel="sweep", ylabel="log density per rating (nats)", title="Held-out ratings")
    if len(trials):
        right.legend(title="factors at most")
    return fig


def diagnosis_figure(diagnosis: Diagnosis) -> Figure:
    """Checks (c), (d) and (e): left-out ratings, predictions and factor norms by number of ratings."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.7))
    known, items = diagnosis.left_out, diagnosis.items
    groups = known.groupby(pd.qcut(known["predicted"], 12, labels=False, duplicates="drop")).mean()
    left.plot(groups["predicted"], groups["known"], marker="o")
    left.axline((float(known["predicted"].mean()),) * 2, slope=1, color="C8", linestyle=":")
    left.set(xlabel="predicted (rating points)", ylabel="actual mean (rating points)", title="(c) left-out ratings")
    for ax, column, title in ((middle, "average", "(d) mean prediction"), (right, "norm", "(e) norm of the factors")):
        ax.scatter(items["ratings"] + 1, items[column], s=5, alpha=0.4)
        ax.set(xscale="log", xlabel="training ratings + 1", title=title)
    return fig
