"""Grid search of SVD and KNN: the nested estimate of the rating error, whose winners Surprise itself refits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, ClassVar, Literal, Self, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study import figures
from recsys_study.findings import Contrast
from recsys_utils.base import MOST_RATED, Floats, Recommender, Scores, child_seed
from recsys_utils.data.interactions import Interactions
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
)  # fmt: skip
from recsys_utils.evaluation.significance import Bootstrap, Estimate
from recsys_utils.models import grid_kernels
from recsys_utils.models.rankers import Model, Popularity
from recsys_utils.models.surprise_models import SurpriseModel, fits_surprise, predict_by_surprise

Sums = dict[str, Floats]  # per-user sums of metrics.error_sums
RELEVANCE: tuple[Literal["liked", "any"], ...] = ("liked", "any")
PER_USER = ["ndcg@10", "recall@10", "map@10", "mrr@10", "hit@10", "novelty@10"]
# MovieLens 100K. Surprise's README, "Benchmarks": five random folds of its own, default settings
PUBLISHED_ERRORS = {"SVD, default": 0.934, "k-NN Baseline, default": 0.931}
# the table of the recommenders benchmark: one random 75/25 split of its own, any test rating relevant
PUBLISHED_NDCG = {"BiVAE (published)": 0.4751, "SAR (published)": 0.382, "SVD (published)": 0.096}
M = TypeVar("M", bound=Model)


def settings(model: type[M], grid: Mapping[str, Sequence[Any]]) -> list[M]:
    """Unfitted models for all combinations of a grid, the last parameter changing fastest.

    >>> from recsys_utils.models.rankers import EASE
    >>> [(s.reg, s.binarise) for s in settings(EASE, {"reg": [100, 500], "binarise": ["any"]})]
    [(100, 'any'), (500, 'any')]
    """
    return [model(**dict(zip(grid, values, strict=True))) for values in product(*grid.values())]


def parameters(model: Model) -> dict[str, Any]:
    """The settings of a model as plain values, ready for JSON and for its constructor; a usual cap is left out."""
    found = {f.name: getattr(model, f.name) for f in fields(model) if f.init}  # type: ignore[arg-type]
    return {name: value for name, value in found.items() if (name, value) != ("most_rated", MOST_RATED)}


def setting_text(model: Model) -> str:
    """The settings of a model on one line, without the seed.

    >>> from recsys_utils.models.rankers import EASE
    >>> setting_text(EASE(reg=100))
    'reg=100, binarise=any'
    """
    return ", ".join(f"{name}={value}" for name, value in parameters(model).items() if name != "seed")


@dataclass(frozen=True)
class Nested:
    """What :func:`nested_rating_error` found.

    predictions : (N, names) float64, aligned with the ratings
    searched : a row per outer fold, name and option: fold, name, place (in the list), setting (text), inner rmse and
        mae (NaN if there was no choice), chosen
    agreement : a row per outer fold and name predicted by Surprise: fold, name, largest (difference from
        :mod:`grid_kernels`, rating points)
    chosen : (fold, name) -> the option that predicted the fold
    overall : name -> the option with the least inner RMSE, averaged over the outer folds: the choice on all data
    """

    predictions: pd.DataFrame
    searched: pd.DataFrame
    agreement: pd.DataFrame
    chosen: dict[tuple[int, str], SurpriseModel]
    overall: dict[str, SurpriseModel]


def nested_rating_error(
    data: Interactions, fold: NDArray[np.int8], options: Mapping[str, Sequence[SurpriseModel]], *, folds: int,
    seed: int, tried: int | None = None, by_surprise: Collection[str] = (), jobs: int = 1,
) -> Nested:  # fmt: skip
    """Out-of-fold rating predictions whose settings were chosen without the fold they predict.

    Every outer fold picks, per name, the option with the least inner RMSE within its own training part (mean over
    shuffled inner folds, by :mod:`grid_kernels`), refits it there and predicts the held-out ratings, clipped to
    the scale. A single option needs no choice. Ties go to the option listed first.

    Parameters
    ----------
    fold : (N,) outer fold of each rating
    options : name -> candidate settings
    folds : inner folds a training part is cut into
    tried : how many of them are held out in turn, default all; many folds of which few are tried train on nearly as
        much as the refit does, which matters, since the best setting changes with the number of ratings
    seed : of the inner folds, one child per outer fold
    by_surprise : names whose winners Surprise itself refits and predicts (where its matrices fit into memory), the
        others are predicted by :mod:`grid_kernels`
    jobs : processes; results don't depend on it
    """
    outer = np.unique(fold).tolist()
    pairs = (
        pair
        for f in outer
        for pair in grid_kernels.shuffled_folds(data.where(fold != f), folds, child_seed(seed, "inner", f))[:tried]
    )
    listed = [option for name in options if len(options[name]) > 1 for option in options[name]]
    inner = (
        grid_kernels.errors(pairs, listed, jobs=jobs).reshape(len(outer), tried or folds, len(listed), 2).mean(axis=1)
    )
    places = [(f, name, place) for f in outer for name in options for place in range(len(options[name]))]
    searched = pd.DataFrame(places, columns=["fold", "name", "place"])
    searched["setting"] = [setting_text(options[name][place]) for _, name, place in places]
    choice = np.array([len(options[name]) > 1 for _, name, _ in places])
    searched.loc[choice, ["rmse", "mae"]] = inner.reshape(-1, 2)
    loss = searched["rmse"].fillna(0)
    searched["chosen"] = searched.index.isin(loss.groupby([searched["fold"], searched["name"]]).idxmin())
    chosen = {(f, n): options[n][p] for (f, n, p), won in zip(places, searched["chosen"], strict=True) if won}
    mean = loss.groupby([searched["name"], searched["place"]]).mean()
    held_out = Parallel(n_jobs=jobs)(
        delayed(_held_out)(data.where(fold != f), data.where(fold == f), option, name in by_surprise)
        for (f, name), option in chosen.items()
    )
    predictions = pd.DataFrame(np.nan, index=range(len(data)), columns=list(options))
    agreement = []
    for (f, name), (values, largest) in zip(chosen, held_out, strict=True):
        predictions.loc[fold == f, name] = values
        agreement += [(f, name, largest)] if largest is not None else []
    return Nested(
        predictions, searched, pd.DataFrame(agreement, columns=["fold", "name", "largest"]), chosen,
        {name: options[name][int(mean[name].argmin())] for name in options},
    )  # fmt: skip


def _held_out(
    train: Interactions, test: Interactions, option: SurpriseModel, by_surprise: bool
) -> tuple[Floats, float | None]:
    """Predictions, and their largest difference from grid_kernels's if they are Surprise's own."""
    fast = grid_kernels.predictions(train, test, [option])[0]
    if not by_surprise or not fits_surprise(option, train.shape):
        return fast, None
    own = predict_by_surprise(train, test, option)
    return own, float(np.abs(own - fast).max())


# ---- rating error


def mean_errors(nested: Nested, options: Mapping[str, Sequence[SurpriseModel]], name: str) -> pd.DataFrame:
    """One row per setting of a name: its parameters and the inner RMSE and MAE, averaged over the outer folds."""
    found = nested.searched.query("name == @name").groupby("place")[["rmse", "mae"]].mean()
    return pd.DataFrame([parameters(o) for o in options[name]]).drop(columns="seed", errors="ignore").join(found)


def user_errors(data: Interactions, predictions: pd.DataFrame) -> dict[str, Sums]:
    """Per-user error sums of each column of predictions, aligned with ``data``."""
    named = zip(map(str, predictions), predictions.to_numpy(np.float64).T, strict=True)
    return {name: metrics.error_sums(data.user, data.rating, values, len(data.users)) for name, values in named}


def error_rows(sums: Mapping[str, Sums], boot: Bootstrap, protocol: str) -> pd.DataFrame:
    """Rows of metrics.csv; the names of ``sums`` are a model and a variant."""
    rows = []
    for name, each in sums.items():
        model, variant = name.split()
        rows.append(summarise_errors(each, boot, protocol=protocol, model=model, variant=variant))
    return pd.concat(rows)


def rmse_saved(boot: Bootstrap, sums: Mapping[str, Sums], before: str, after: str) -> Estimate:
    """RMSE before less RMSE after, on the same ratings."""
    return boot.rmse_difference(sums[before]["squared"], sums[after]["squared"], sums[before]["count"])


def at_edge(chosen: Model, grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """Parameters whose chosen value is the first or last of several in the grid."""
    spans = {name: (min(values), max(values)) for name, values in grid.items() if len(values) > 1}
    return [name for name, span in spans.items() if getattr(chosen, name) in span]


def start_values(
    data: Interactions, fold: NDArray[np.int8], nested: Nested, seeds: Sequence[int], *, jobs: int = 1
) -> pd.DataFrame:
    """RMSE by fold and over all folds of the tuned KNN and of the tuned SVD from several start values."""
    drawn = nested.predictions[["knn tuned", "svd tuned"]].copy()
    chosen: dict[int, Any] = {f: option for (f, name), option in nested.chosen.items() if name == "svd tuned"}
    again = Parallel(n_jobs=jobs)(
        delayed(grid_kernels.predictions)(
            data.where(fold != f), data.where(fold == f), [replace(chosen[f], seed=s) for s in seeds]
        )
        for f in range(fold.max() + 1)
    )
    for number in range(len(seeds)):
        for f, values in enumerate(again):
            drawn.loc[fold == f, f"svd, start {number + 2}"] = values[number]
    squared = drawn.sub(data.rating.astype(float), axis=0) ** 2
    by_fold = pd.concat([squared.groupby(fold).mean(), squared.mean().to_frame("all").T]) ** 0.5
    return by_fold.rename_axis("fold").reset_index()


# ---- ranking


@dataclass
class Average:
    """Mean of the scores of several models on one scale, such as SVD and KNN."""

    name: ClassVar[str] = "average"
    models: Sequence[Recommender]

    def fit(self, train: Interactions) -> Self:
        for model in self.models:
            model.fit(train)
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32."""
        scores: Scores = np.mean([model.scores(profiles) for model in self.models], axis=0)
        return scores


@dataclass(frozen=True)
class Split:
    """A test of rankings: settings are chosen on ``tuning`` (rating predictors: on ``validation``)."""

    protocol: str
    test: str
    tuning: Case
    validation: Interactions
    case: Case


def ranking_splits(data: Interactions, splits: pd.DataFrame, stratified: int) -> list[Split]:
    """ranking-last20, then as many random splits of ranking-stratified."""
    runs = [("ranking-last20", "last20", "position_time")]
    runs += [("ranking-stratified", f"stratified_{s}", f"position_random_{s}") for s in range(stratified)]
    found = []
    for protocol, test, order in runs:
        ordered = protocol == "ranking-last20"
        mask = validation_mask(data, splits[test], splits[order])
        tuning = warm_split(data, mask, hidden=splits[test], time_ordered=ordered)
        case = warm_split(data, splits[test], time_ordered=ordered)
        check_tuning(tuning, case)
        found.append(Split(protocol, test, tuning, data.where(mask), case))
    return found


def _lists(option: Any, case: Case) -> metrics.Lists:
    return rank_lists(replace(option).fit(case.train), case)


def _losses(option: Any, case: Case) -> list[float]:
    lists = _lists(option, case)
    return [1 - float(measure(lists, case, relevance=r)["ndcg@10"].mean()) for r in RELEVANCE]


def choose(
    splits: Sequence[Split], predictors: Mapping[str, Sequence[SurpriseModel]], rankers: Mapping[str, Sequence[Any]],
    *, jobs: int = 1,
) -> tuple[dict[tuple[str, str, str], Any], pd.DataFrame]:  # fmt: skip
    """The best setting by split, relevance and model, and the same as a table.

    Rating predictors are chosen by RMSE, as in the classic design, rankers by ndcg@10; ties go to the first.
    """
    flat = [(model, o) for model, options in (*predictors.items(), *rankers.items()) for o in options]
    pairs = [(split.tuning.train, split.validation) for split in splits]
    by_error = grid_kernels.errors(pairs, [o for options in predictors.values() for o in options], jobs=jobs)
    tried = [(o, split.tuning) for split in splits for options in rankers.values() for o in options]
    by_list = Parallel(n_jobs=jobs)(delayed(_losses)(o, case) for o, case in tried)
    losses = [by_error[:, :, :1].repeat(2, axis=2), np.reshape(by_list, (len(splits), -1, 2))]
    loss = np.concatenate(losses, axis=1)
    best, rows = dict[tuple[str, str, str], Any](), []
    for (s, split), (r, relevance), model in product(enumerate(splits), enumerate(RELEVANCE), [*predictors, *rankers]):
        own = [place for place, (name, _) in enumerate(flat) if name == model]
        won = own[loss[s, own, r].argmin()]
        best[split.test, relevance, model] = flat[won][1]
        rows.append((split.test, relevance, model, setting_text(flat[won][1]), loss[s, won, r]))
    return best, pd.DataFrame(rows, columns=["test", "relevance", "model", "setting", "inner loss"])


def rank_models(
    splits: Sequence[Split], best: Mapping[tuple[str, str, str], Any], classic: Mapping[str, SurpriseModel],
    genres: pd.Series, boot: Bootstrap, *, jobs: int = 1,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Per-user values and rows of metrics.csv: tuned and classic models, popularity, and the average of SVD and KNN.

    Coverage and Gini are those of a protocol's first split, since they depend on the number of lists.
    """
    entries: list[tuple[Split, Literal["liked", "any"], str, str, Any]] = []
    for split in splits:
        for r in RELEVANCE if split.protocol == "ranking-stratified" else RELEVANCE[:1]:
            chosen = {model: o for (test, relevance, model), o in best.items() if (test, relevance) == (split.test, r)}
            entries += [(split, r, model, f"relevance={r}", o) for model, o in chosen.items()]
            entries += [(split, r, model, f"relevance={r};settings=classic", o) for model, o in classic.items()]
            entries.append((split, r, "popularity", f"relevance={r}", Popularity()))
            entries.append((split, r, "popularity", f"relevance={r};counts=any", Popularity("any")))
    both = Average([best[splits[0].test, "liked", model] for model in ("svd", "knn")])
    entries.append((splits[0], "liked", "svd+knn", "relevance=liked", both))
    distinct = {(split.test, repr(o)): (o, split.case) for split, *_, o in entries}
    ranked = Parallel(n_jobs=jobs)(delayed(_lists)(*each) for each in distinct.values())
    lists = dict(zip(distinct, ranked, strict=True))
    traits = {split.test: metrics.ItemTraits.of(split.case.train, genres) for split in splits}
    parts, first = [], dict[tuple[str, str, str], metrics.Lists]()
    for split, r, model, variant, o in entries:
        found = lists[split.test, repr(o)]
        first.setdefault((split.protocol, model, variant), found)
        values = measure(found, split.case, traits=traits[split.test], relevance=r)[["user_id", *PER_USER]]
        parts.append(values.assign(protocol=split.protocol, model=model, variant=variant))
    per_user, rows = pd.concat(parts, ignore_index=True), []
    data = splits[0].case.train
    for (protocol, model, variant), found in first.items():
        key = {"protocol": protocol, "model": model, "variant": variant}
        table = per_user[(per_user[list(key)] == list(key.values())).all(axis=1)]
        rows.append(summarise(table, boot, users=data.users, **key))
        rows.append(summarise_lists(found, len(data.items), **key))
    return per_user, pd.concat(rows)


def last_errors(split: Split, data: Interactions, splits: pd.DataFrame, models: Mapping[str, Any]) -> dict[str, Sums]:
    """Per-user error sums of rating-last20, the average of the two tuned models last."""
    last = data.where(splits[split.test].to_numpy())
    found = grid_kernels.predictions(split.case.train, last, list(models.values()))
    predictions = pd.DataFrame(dict(zip(models, found, strict=True)))
    predictions["svd+knn average"] = (predictions["svd tuned"] + predictions["knn tuned"]) / 2
    return user_errors(last, predictions)


def ndcg_of(per_user: pd.DataFrame, users: NDArray[Any], model: str) -> Floats:
    """(U,) ndcg@10 of a tuned model on ranking-last20, likes are relevant; NaN without a value."""
    kept = per_user.query("model == @model and variant == 'relevance=liked' and protocol == 'ranking-last20'")
    values: Floats = align(kept[["user_id", "ndcg@10"]], users)["ndcg@10"].to_numpy()
    return values


def ranking_contrasts(boot: Bootstrap, ndcg: Mapping[str, Floats]) -> list[Contrast]:
    """Every model against popularity, EASE against SVD, SVD against KNN, and their average against the better."""
    ahead = max(("svd", "knn"), key=lambda model: np.nanmean(ndcg[model]))
    pairs = [(f"{m}-popularity", m, "popularity") for m in ("svd", "knn", "item_knn", "ease")]
    pairs += [("ease-svd", "ease", "svd"), ("svd-knn", "svd", "knn"), ("average", "svd+knn", ahead)]
    return [
        Contrast.from_estimate(
            id.replace("_", "-"), f"{a} instead of {b}", boot.difference(ndcg[a], ndcg[b]),
            of="ndcg@10, ranking-last20, likes are relevant",
        )
        for id, a, b in pairs
    ]  # fmt: skip


def beside_published(ranking: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """ndcg@10 and MAP of ranking-stratified with any rating relevant, and published ndcg@10 of the same data set."""
    ours = ranking.query("protocol == 'ranking-stratified' and variant == 'relevance=any'")
    ours = ours[ours["metric"].isin(["ndcg@10", "map@10"])]
    ours = ours.pivot_table(index="model", columns="metric", values=["value", "ci_low", "ci_high"])
    names: list[Any] = ours.columns.to_flat_index().tolist()
    ours.columns = pd.Index([m if kind == "value" else f"{m} {kind}" for kind, m in names])
    theirs = pd.Series(PUBLISHED_NDCG if dataset == "ml-100k" else {}, name="ndcg@10", dtype=float)
    both = pd.concat([ours.reset_index(), theirs.rename_axis("model").reset_index()])
    columns = ["model", "ndcg@10", "ndcg@10 ci_low", "ndcg@10 ci_high", "map@10"]
    return both.sort_values("ndcg@10", ascending=False)[columns]


# ---- figures


def grid_maps(svd: pd.DataFrame, knn: pd.DataFrame) -> Figure:
    """Inner RMSE of every setting."""
    side = np.where(knn["user_based"], ", users", ", items")
    knn = knn.assign(
        neighbours=knn["kind"].str.removeprefix("KNN") + side,
        support=knn["similarity"] + ", " + knn["min_support"].astype(str),
    )
    maps = [
        svd.pivot_table(index=["lr", "reg"], columns=["n_factors", "n_epochs"], values="rmse"),
        knn.pivot_table(index="support", columns=["neighbours", "k"], values="rmse"),
    ]
    fig, axes = plt.subplots(2, 1, figsize=(8.4, 7.2), gridspec_kw={"height_ratios": [4, 9]})
    for ax, table in zip(axes, maps, strict=True):
        colours = {"cmap": "cividis_r", "cbar_kws": {"label": "RMSE (rating points)"}}
        sns.heatmap(table, ax=ax, annot=True, fmt=".3f", annot_kws={"size": 7.5}, **colours)
        ax.tick_params(axis="y", rotation=0)
    axes[0].set(xlabel="factors - epochs", ylabel="learning rate - penalty", title=f"SVD, {len(svd)} settings")
    axes[1].set(xlabel="base, neighbours - k", ylabel="similarity, least support", title=f"KNN, {len(knn)} settings")
    return fig


def error_figure(errors: pd.DataFrame, dataset: str) -> Figure:
    """RMSE of every model with intervals, and the published values of the same data set."""
    shown = errors.query("metric == 'rmse'").assign(label=lambda t: t["model"] + ", " + t["variant"])
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    figures.intervals(ax, shown.sort_values("value"), label="label", model="model")
    if dataset == "ml-100k":
        for (label, value), line in zip(PUBLISHED_ERRORS.items(), (":", "--"), strict=True):
            ax.axvline(value, color="C8", linestyle=line, label=f"published: {label} {value:.3f}")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    ax.set(xlabel="RMSE (rating points), 95 % interval over users")
    return fig


def two_tracks(ranking: pd.DataFrame, errors: pd.DataFrame) -> Figure:
    """ndcg@10 against RMSE; models that predict no rating are bands."""
    lists = ranking.query("protocol == 'ranking-last20' and metric == 'ndcg@10'").copy()
    lists["settings"] = np.where(lists["variant"].str.endswith("classic"), "classic", "tuned")
    lists.loc[lists["model"] == "svd+knn", "settings"] = "average"
    rmse = errors.query("metric == 'rmse'").rename(columns={"variant": "settings"})
    both = lists.merge(rmse, on=["model", "settings"], suffixes=("", "_rmse"))
    fig, ax = plt.subplots(figsize=(7.6, 4.2))
    box = {"facecolor": "white", "alpha": 0.85, "lw": 0, "pad": 1}
    beside: dict[str, Any] = {"textcoords": "offset points", "zorder": 6, "bbox": box}
    for _, row in both.iterrows():
        x = [[row.value_rmse - row.ci_low_rmse], [row.ci_high_rmse - row.value_rmse]]
        y = [[row.value - row.ci_low], [row.ci_high - row.value]]
        style: dict[str, Any] = {"capsize": 2, "linestyle": "none", "markersize": 7} | figures.look(row.model)
        ax.errorbar(row.value_rmse, row.value, xerr=x, yerr=y, **style)
        ax.annotate(f"{row.model}, {row.settings}", (row.value_rmse, row.value), xytext=(7, 8), **beside)
    corner: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "xytext": (0, 4)}
    for _, row in lists[~lists["model"].isin(both["model"])].iterrows():
        colour = figures.look(row.model)["color"]
        ax.axhline(row.value, color=colour, linewidth=1.6)
        ax.axhspan(row.ci_low, row.ci_high, color=colour, alpha=0.15, linewidth=0)
        ax.annotate(f"{row.model} (no rating prediction)", (1, row.value), **corner, **beside)
    ax.set(xlabel="RMSE, rating-cv5 (rating points; left is better)", ylabel="ndcg@10, ranking-last20", ylim=(0, None))
    return fig
