"""The accuracy table: how far each model, up to a stacked blend, brings the error of rating predictions down.

Every model gets the test ratings as NaN, so no reported rating can be used before it is predicted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from recsys_study import figures
from recsys_study.bayesian_fm import FEATURES, BayesianFM
from recsys_study.findings import Contrast
from recsys_study.latent_factors import inside
from recsys_utils.base import Floats, InputError, child_seed
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import check_train, summarise_errors
from recsys_utils.evaluation.significance import Bootstrap, Estimate, metric_rows
from recsys_utils.models import grid_kernels
from recsys_utils.models.surprise_models import KNN, SVD
from recsys_utils.models.variational_mf import VariationalMF

Model = SVD | KNN | VariationalMF | BayesianFM

BLEND, EARLIER_BLEND, MOMENT = "blend", "blend without moment", "FM ids+time+implicit+ordinal+moment"
KNOWN = ("FM ids", "FM ids+time")  # left out of the blends: another model knows all that these know
SEEDS = "03_cf_grid_search"  # whose seeds the table has
INNER_FOLDS = 10  # a training part is cut into so many folds; the first is predicted for the weights of the blend
PENALTIES = np.logspace(-1, 3, 9)  # of the blend's ridge, whose leave-one-out error chooses
U1_SIZES = (100_000, 20_000)  # ratings in all and in u1.test


@dataclass(frozen=True)
class Step:
    """A fold, or a run from new start values: fit on ``train``, predict ``targets`` (the test part) with every model.

    Raises
    ------
    LeakError : the two parts share a rating.
    """

    train: Interactions
    targets: Interactions
    models: Mapping[str, Model]

    def __post_init__(self) -> None:
        check_train(self.train, np.arange(len(self.train.users)), self.targets.user_item)


def single_models(svd: SVD, knn: KNN, *, has_time: bool, seed: int) -> dict[str, Model]:
    """The single models in order; only SVD's and KNN's settings are tuned. Every chain has a seed of its own."""
    kinds = ("time", "implicit", "ordinal", "moment") if has_time else ("implicit", "ordinal")
    models: dict[str, Model] = {"KNN": knn, "SVD": svd, "variational MF": VariationalMF(seed=child_seed(seed, "V2"))}
    for known in (kinds[:n] for n in range(len(kinds) + 1)):
        models["+".join(("FM ids", *known))] = BayesianFM(
            tuple(k for k in known if k in FEATURES), ordinal="ordinal" in known, seed=child_seed(seed, "fm", *known)
        )
    return models


def u1_steps(
    data: Interactions, splits: pd.DataFrame, svd: Sequence[SVD], knn: Sequence[KNN], *, folds: tuple[int, int],
    seeds: int, seed: int, jobs: int,
) -> list[Step]:  # fmt: skip
    """rating-u1: a step for each of ``seeds`` start values; ``svd`` and ``knn`` are chosen from inside u1.base.

    ``folds``: parts that u1.base is cut into, and how many of them are held out in turn.

    Raises
    ------
    InputError : the ratings are not those of the official zip, which alone has this split.
    """
    test = np.asarray(splits.get("u1_test", np.zeros(len(data))), np.bool_)
    if (len(data), test.sum()) != U1_SIZES:
        raise InputError(
            f"rating-u1 needs the {U1_SIZES[0]:,} ratings of the official zip, {U1_SIZES[1]:,} of them in u1.test; "
            f"here are {len(data):,} with {test.sum():,}. The mirror has no u1: get ml-100k.zip from GroupLens "
            "(https://grouplens.org/datasets/movielens/100k/) and add --set dataset.archive=ml-100k.zip, without "
            "dataset.store and dataset.merge_doubles."
        )
    train, targets = data.where(~test), data.where(test)
    inner = grid_kernels.shuffled_folds(train, folds[0], child_seed(seed, "u1"))[: folds[1]]
    best = [int(grid_kernels.errors(inner, o, jobs=jobs)[..., 0].mean(axis=0).argmin()) for o in (svd, knn)]
    starts = [child_seed(seed, "u1", number) for number in range(seeds)]
    singles = [single_models(replace(svd[best[0]], seed=s), knn[best[1]], has_time=True, seed=s) for s in starts]
    return [Step(train, targets, models) for models in singles]


def fold_steps(
    data: Interactions, fold: NDArray[np.int8], svd: Sequence[SVD], knn: Sequence[KNN], *, has_time: bool, seed: int
) -> list[Step]:
    """rating-cv5: a step for each fold, with the settings of SVD and KNN that the nested search chose there."""
    found = []
    for f in np.unique(fold).tolist():
        models = single_models(svd[f], knn[f], has_time=has_time, seed=child_seed(seed, SEEDS, "ladder", f))
        found.append(Step(data.where(fold != f), data.where(fold == f), models))
    return found


def predict_all(steps: Sequence[Step], *, seed: int, jobs: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions of every model for every step, and of ridge blends of all models but :data:`KNOWN`, with and without
    the one that uses same-minute ratings.

    Blends are stacked on cross-fitted predictions inside each training part: a random tenth of it is predicted by
    models that were fitted on the rest, weights are fitted on these predictions, and the same models, refitted on the
    whole training part, are weighted so. No test rating is used.

    Returns
    -------
    One row per test rating: step, user (position), rating, per model its mean (not clipped) and ``<model>, deviation``
    (NaN where it has none); and one row per step and blend: intercept, penalty, weights, and ``<model>, seconds``.
    """
    tasks, tuning = [], []
    for number, step in enumerate(steps):
        tasks += [(number, name, False, step.train, step.targets) for name in step.models]
        fit, held = grid_kernels.shuffled_folds(step.train, INNER_FOLDS, child_seed(seed, "stack", number))[0]
        tasks += [(number, name, True, fit, held) for name in step.models if name not in KNOWN]
        tuning.append(held.rating)
    found = Parallel(n_jobs=jobs)(
        delayed(_predicted)(steps[n].models[name], train, _unseen(targets)) for n, name, _, train, targets in tasks
    )
    made = {task[:3]: columns for task, columns in zip(tasks, found, strict=True)}
    tables, weights = [], []
    for number, step in enumerate(steps):
        scale, spent = step.train.scale, {f"{name}, seconds": made[number, name, False][2] for name in step.models}
        table = pd.DataFrame({"step": number, "user": step.targets.user, "rating": step.targets.rating})
        for name in step.models:
            table[name], table[f"{name}, deviation"], _ = made[number, name, False]
        for blend in [EARLIER_BLEND, BLEND] if MOMENT in step.models else [BLEND]:
            out = (*KNOWN, MOMENT) if blend == EARLIER_BLEND else KNOWN
            members = [name for name in step.models if name not in out]
            inner = np.column_stack([made[number, name, True][0] for name in members]).clip(scale.lo, scale.hi)
            ridge = RidgeCV(PENALTIES).fit(inner, tuning[number])
            table[blend] = ridge.predict(table[members].to_numpy().clip(scale.lo, scale.hi))
            fitted = {"step": number, "blend": blend, "intercept": ridge.intercept_, "penalty": ridge.alpha_}
            weights.append(fitted | dict(zip(members, ridge.coef_, strict=True)) | spent)
        tables.append(table)
    return pd.concat(tables, ignore_index=True), pd.DataFrame(weights)


def _unseen(targets: Interactions) -> Interactions:
    return replace(targets, rating=np.full(len(targets), np.nan, np.float32))


def _predicted(model: Model, train: Interactions, targets: Interactions) -> tuple[Floats, Floats, float]:
    """Mean, deviation (NaN where the model has none), and the seconds it took."""
    start = time.perf_counter()
    if isinstance(model, BayesianFM):
        mean, deviation = model.predict(train, targets)
    elif isinstance(model, VariationalMF):
        mean, deviation = replace(model).fit(train).at(train.user_item, targets.user, targets.item)
    else:
        mean, deviation = grid_kernels.predictions(train, targets, [model])[0], np.full(len(targets), np.nan)
    return mean, deviation, time.perf_counter() - start


def summarise_models(
    found: pd.DataFrame, steps: Sequence[Step], boot: Bootstrap, protocol: str
) -> tuple[pd.DataFrame, dict[tuple[str, str], Estimate], pd.DataFrame]:
    """Rows for metrics.csv (variant = model), the RMSE saved from one model to the next, and RMSE by step and model.

    Errors and interval coverage are over all steps together, their intervals over users. Of runs from several start
    values, which predict the same ratings, it is the mean over the runs' squared errors, and a user is resampled with
    all runs.
    """
    scale, models = steps[0].train.scale, steps[0].models
    user, rating = found["user"].to_numpy(), found["rating"].to_numpy()
    names = [n for n in models if n != MOMENT] + [n for n in (EARLIER_BLEND, MOMENT, BLEND) if n in found]
    clipped = found[names].clip(scale.lo, scale.hi)
    sums, rows = {}, []
    for name in names:
        model = models.get(name)
        labels = {"protocol": protocol, "model": model.name if model else "ladder", "variant": name}
        part = metrics.error_sums(user, rating, clipped[name].to_numpy(), boot.n_users)
        sums[name] = {key: np.where(part["count"] > 0, values, np.nan) for key, values in part.items()}
        rows.append(summarise_errors(sums[name], boot, **labels))
        if model and found[f"{name}, deviation"].notna().all():
            hits = inside(rating, found[name].to_numpy(), found[f"{name}, deviation"].to_numpy())
            held = {m: np.bincount(user, hit, boot.n_users).astype(float) for m, hit in hits.items()}
            rows.append(metric_rows({m: boot.ratio(n, sums[name]["count"]) for m, n in held.items()}, **labels))
    count = sums[BLEND]["count"]
    falls = {(a, b): boot.rmse_difference(sums[a]["squared"], sums[b]["squared"], count) for a, b in pairwise(sums)}
    by_step = (clipped.sub(rating, axis=0) ** 2).groupby(found["step"]).mean() ** 0.5
    return pd.concat(rows, ignore_index=True), falls, by_step


PUBLISHED = pd.DataFrame(
    [
        ("rating-cv5", "SVD", 0.934, "Surprise, README, Benchmarks: 5 random folds, defaults"),
        ("rating-cv5", "k-NN Baseline", 0.931, "Surprise, README, Benchmarks: 5 random folds, defaults"),
        ("rating-cv5", "SVD++", 0.919, "Surprise, README, Benchmarks: 5 random folds, defaults"),
        ("rating-u1", "GLocal-K", 0.8889, "Han, Lim, Long, Burgstaller, Poon, CIKM 2021: ratings only"),
        ("rating-u1", "GHRS", 0.887, "Darban, Valipour, Expert Systems with Applications 2022: with demographics"),
    ],
    columns=["protocol", "variant", "value", "source"],
).assign(metric="rmse", model="published")
"""Others' errors on MovieLens 100K; folds of rating-cv5 are drawn anew by everyone, those of rating-u1 are files."""


def published(dataset: str) -> pd.DataFrame:
    return PUBLISHED if dataset == "ml-100k" else PUBLISHED.iloc[:0]


def accuracy_figure(rows: pd.DataFrame, dataset: str) -> Figure:
    """RMSE of every model with its interval, a panel per protocol, and published values without one."""
    protocols = rows["protocol"].unique()
    fig, axes = plt.subplots(len(protocols), 1, figsize=(7.6, 3.4 * len(protocols)), squeeze=False)
    theirs = published(dataset).assign(ci_low=lambda t: t["value"], ci_high=lambda t: t["value"])
    theirs["variant"] = "published: " + theirs["variant"]
    both = pd.concat([rows[rows["metric"] == "rmse"], theirs])
    for ax, protocol in zip(axes[:, 0], protocols, strict=True):
        figures.intervals(ax, both[both["protocol"] == protocol], label="variant", model="model")
        ax.set(title=protocol, xlabel="RMSE (rating points), 95 % interval over users")
    return fig


def saved_by_model(falls: Mapping[str, Mapping[tuple[str, str], Estimate]], margin: float) -> list[Contrast]:
    """A contrast for each model and protocol: the RMSE it saves over the one before it in the table."""
    return [
        Contrast.from_estimate(
            f"{protocol}-{number}", f"{after} instead of {before}", fall, of=f"RMSE, {protocol}", unit="rating points",
            margin=margin,
        )
        for protocol, pairs in falls.items()
        for number, ((before, after), fall) in enumerate(pairs.items(), 1)
    ]  # fmt: skip
