"""Tables, contrasts and figures of the alpha curve, from what ``alpha_curve`` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from recsys_study import weights as rules
from recsys_study.alpha_curve import CHOSEN, SHIPPED, AlphaStudy, Series
from recsys_study.figures import look
from recsys_study.findings import Contrast
from recsys_study.weights import ENSEMBLE, NDCG, Floats
from recsys_utils.evaluation.significance import MARGIN, Bootstrap, Estimate, minimum_detectable_difference, verdict
from recsys_utils.ranking.hybrid import CURVES

ALL = 10**9  # no largest size
CLASSIC_THRESHOLD = 5  # ratings from which the classic curve gives cf weight
NEAR = 0.003  # ndcg@10 within which a weight is as good as the best
LEARNED = ("blend", CHOSEN, "learned")
COMPARED = {  # id: (label, series, what it is compared with); order is added
    "learned-classic": ("learned weights instead of the classic curve", LEARNED, ("blend", CHOSEN, "classic")),
    "content-popularity-partner": (
        "content instead of popularity as partner", LEARNED, ("blend", CHOSEN, "with-popularity")
    ),
    "content-none": ("with content instead of without", LEARNED, (CHOSEN,)),
    "learned-popularity": ("hybrid with learned weights instead of popularity", LEARNED, ("popularity",)),
    "shipped-popularity": ("what ships instead of popularity", ("blend", SHIPPED, SHIPPED), ("popularity",)),
    "shipped-learned": ("what ships instead of all parts", ("blend", SHIPPED, SHIPPED), LEARNED),
    "alone-classic": (
        "collaborative scores alone instead of the classic curve", (CHOSEN,), ("blend", CHOSEN, "classic")
    ),
    "likes-ratings": (
        "popularity by likes instead of by ratings", ("popularity",), ("popularity", "", "counts=any")
    ),
    "ensemble-ease": ("ensemble instead of EASE", ("blend", ENSEMBLE, "learned"), ("blend", "ease", "learned")),
    "classic-svd-popularity": (
        "classic hybrid with SVD instead of popularity", ("blend", "svd", "classic;settings=classic"), ("popularity",)
    ),
    "classic-knn-popularity": (
        "classic hybrid with KNN instead of popularity", ("blend", "knn", "classic;settings=classic"), ("popularity",)
    ),
    "content-popularity": ("content alone instead of popularity", ("content",), ("popularity",)),
}  # fmt: skip
PRIMARY = ("learned-classic", "content-popularity-partner")
LINES = {  # of the figure of curves: label -> series
    "popularity": ("popularity",), "content alone": ("content",), "chosen model alone": (CHOSEN,),
    "learned weights": LEARNED, "popularity + chosen model": ("blend", CHOSEN, "with-popularity"),
    "classic, SVD": ("blend", "svd", "classic"), "classic, KNN": ("blend", "knn", "classic"),
}  # fmt: skip
LOOKS = {
    "popularity": look("popularity"), "content alone": look("content"), "learned weights": look("blend"),
    "chosen model alone": look("mixture") | {"linestyle": "--"},
    "classic, SVD": look("svd"), "classic, KNN": look("knn"),
    "popularity + chosen model": look("other") | {"linestyle": ":"},
}  # fmt: skip
Key = tuple[str, ...]  # of a series, without its order


def known(study: AlphaStudy, key: Key, order: str = "random") -> bool:
    return Series(order, *key) in study.series


def orders(study: AlphaStudy) -> list[str]:
    return list(study.mixed)


# ---- tables


def validation_table(study: AlphaStudy) -> pd.DataFrame:
    """Validation ndcg@10, mean over sizes from 1 on, of every collaborative model (rows) and curve."""
    pairs = [
        (cf, curve.name, value) for cf, curve, value in rules.ranked_pairs(study.validated(), study.sizes, study.alphas)
    ]
    table = pd.DataFrame(pairs, columns=["cf", "curve", NDCG]).pivot_table(index="cf", columns="curve", values=NDCG)
    return table.sort_values("learned", ascending=False).reset_index().rename_axis(columns=None).round(4)


def weight_table(settings: Mapping[str, Any]) -> pd.DataFrame:
    """The ensemble's weights, one row per part and one column per profile size."""
    table = pd.DataFrame(settings["weights"]).T
    table.columns = pd.Index([f"n={n}" for n in settings["sizes"]])
    return table.rename_axis("model").reset_index()


def optimum_table(study: AlphaStudy, boot: Bootstrap) -> pd.DataFrame:
    """Per order, model and size the best weight on test users with its interval, and the weights within ``NEAR``."""
    rows, alphas = [], study.alphas

    def best_weights(means: Floats) -> Floats:
        best: Floats = alphas[means.reshape(*means.shape[:-1], -1, len(alphas)).argmax(axis=-1)]
        return best

    for (order, cf), values in study.test.items():
        surface, sizes = rules.surface_of(values, study.sizes)
        flat = values[:, np.isin(study.sizes, sizes)].reshape(len(values), -1)
        for row, (n, e) in enumerate(zip(sizes, boot.statistics(flat, best_weights), strict=True)):
            within = alphas[surface[row] >= surface[row].max() - NEAR]
            users = int(np.isfinite(values[:, list(study.sizes).index(n), 0]).sum())
            rows.append(
                [order, cf, n, e.value, e.ci_low, e.ci_high, within.min(), within.max(), surface[row].max(), users]
            )
    columns = ["order", "signal", "n", "best_alpha", "ci_low", "ci_high", "within_low", "within_high", NDCG, "users"]
    return pd.DataFrame(rows, columns=columns)


def differences(study: AlphaStudy, boot: Bootstrap) -> dict[tuple[str, str], Estimate]:
    """Every declared difference of test users, averaged over n = 1..30, by id and order."""
    return {
        (id, order): boot.average(study.matrix(*a, order=order) - study.matrix(*b, order=order))
        for id, (_, a, b) in COMPARED.items()
        for order in orders(study)
        if known(study, a) and known(study, b) and (id != "content-none" or len(study.alphas) > 1)
    }


def difference_table(found: Mapping[tuple[str, str], Estimate]) -> pd.DataFrame:
    rows = [
        [COMPARED[id][0], order, e.value, e.ci_low, e.ci_high, e.p, e.n, verdict(e), minimum_detectable_difference(e)]
        for (id, order), e in found.items()
    ]
    columns = ["contrast", "order", "difference", "ci_low", "ci_high", "p", "users", "verdict", "detectable"]
    return pd.DataFrame(rows, columns=columns).round(4)


def contrasts(found: Mapping[tuple[str, str], Estimate]) -> list[Contrast]:
    """The differences as contrasts; ids end in ``-time`` in time order, the primary ones are of random order."""
    return [
        Contrast.from_estimate(
            id + ("" if order == "random" else f"-{order}"), COMPARED[id][0], e,
            of=f"{NDCG}, profiles of 1 to 30 ratings, {order} order", primary=order == "random" and id in PRIMARY,
        )
        for (id, order), e in found.items()
    ]  # fmt: skip


def band_table(study: AlphaStudy, boot: Bootstrap, ids: Sequence[str]) -> pd.DataFrame:
    """The differences size by size, with bands that hold for all sizes at once."""
    rows = []
    for id in ids:
        _, a, b = COMPARED[id]
        for order in orders(study) if known(study, a) and known(study, b) else ():
            both = [study.matrix(*key, order=order, sizes=(1, ALL)) for key in (a, b)]
            for n, e in zip(study.sizes_of(order, (1, ALL)), boot.simultaneous_band(both[0] - both[1]), strict=True):
                rows.append([COMPARED[id][0], order, n, e.value, e.ci_low, e.ci_high, e.lower > -MARGIN, e.n])
    return pd.DataFrame(
        rows, columns=["contrast", "order", "n", "difference", "ci_low", "ci_high", "not worse", "users"]
    )


def threshold_table(study: AlphaStudy, boot: Bootstrap) -> pd.DataFrame:
    """From which n on a model's mean stays above popularity's, with an interval; beyond the largest n: never."""
    rows = []
    for order in orders(study):
        steps = study.sizes_of(order, (1, ALL))
        grid = np.array([*steps, steps[-1] + 1], dtype=float)

        def first_above(means: Floats, steps: list[int] = steps, grid: Floats = grid) -> Floats:
            above = np.cumprod(means[..., ::-1] > 0, axis=-1).sum(axis=-1)  # how many of the largest sizes in a row
            found: Floats = grid[len(steps) - above][..., None]
            return found

        popular = study.matrix("popularity", order=order, sizes=(1, ALL))
        for name in (*dict.fromkeys(cf for _, cf in study.test), "content"):
            if known(study, (name,)):
                gain = study.matrix(name, order=order, sizes=(1, ALL)) - popular
                (e,) = boot.statistics(gain, first_above)
                rows.append([name, order, e.value, e.ci_low, e.ci_high, steps[-1]])
    return pd.DataFrame(rows, columns=["model", "order", "n", "ci_low", "ci_high", "largest_n"])


def start_contrasts(study: AlphaStudy, boot: Bootstrap) -> list[Contrast]:
    """Content against popularity below 5 ratings, in both orders."""
    found = []
    for order in orders(study) if known(study, ("content",)) else ():
        content, popular = (study.matrix(name, order=order, sizes=(1, 4)) for name in ("content", "popularity"))
        id = "content-start" + ("" if order == "random" else f"-{order}")
        of = f"{NDCG}, profiles of 1 to 4 ratings, {order} order"
        found.append(
            Contrast.from_estimate(id, "content alone instead of popularity", boot.average(content - popular), of=of)
        )
    return found


# ---- figures


def surface_figure(study: AlphaStudy) -> Figure | None:
    """Test ndcg@10 at every weight and size, relative to the best at that size, per order and model."""
    if len(study.alphas) < 2:
        return None
    rows, cfs = orders(study), list(dict.fromkeys(cf for _, cf in study.test))
    size = (11, 0.9 + 2.5 * len(rows))
    figure, axes = plt.subplots(len(rows), len(cfs), figsize=size, sharex=True, sharey=True, squeeze=False)
    step = study.alphas[1] - study.alphas[0]
    edges = np.append(study.alphas - step / 2, 1 + step / 2)
    for (order, cf), values in study.test.items():
        ax = axes[rows.index(order), cfs.index(cf)]
        surface, sizes = rules.surface_of(values, study.sizes)
        share = (surface / surface.max(axis=1, keepdims=True)).T
        mesh = ax.pcolormesh(np.arange(len(sizes) + 1) - 0.5, edges, share, vmin=0, vmax=1, rasterized=True)
        learned = rules.tune_curves(*rules.surface_of(study.validated(order)[cf], study.sizes), study.alphas)["learned"]
        x = np.arange(len(sizes))
        ax.plot(x, CURVES["classic"](sizes), color="white", marker="s", markersize=3.5, label="classic curve")
        ax.plot(x, learned(sizes), color="#bd1f01", marker="o", markersize=3.5, label="learned on validation users")
        ax.set_xticks(x, sizes, fontsize=7)
        ax.set_title(f"{cf}, {order} order", fontsize=9)
        ax.grid(visible=False)
    figure.supylabel("alpha, weight of the collaborative score", fontsize=10)
    figure.supxlabel("ratings in the profile, n", fontsize=10)
    figure.colorbar(mesh, ax=axes, label="ndcg@10 / best at this n", pad=0.01)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, facecolor="#b0b0b0", frameon=True)
    return figure


def cohort(study: AlphaStudy) -> tuple[int, Floats]:
    """The largest size that half the users have, and (U, 1) 1 for those who have it, NaN for the others."""
    counts = np.isfinite(study.series[Series("random", "popularity")]).sum(axis=0)
    reach = max(n for n, count in zip(study.sizes, counts, strict=True) if count >= counts.max() / 2)
    has = np.isfinite(study.matrix("popularity", sizes=(reach, reach))).any(axis=1)
    return reach, np.where(has, 1.0, np.nan)[:, None]


def curves_figure(study: AlphaStudy, boot: Bootstrap) -> Figure:
    """ndcg@10 by profile size of the curves and baselines; below, what lies close to the learned curve."""
    rows = orders(study)
    lines = {label: key for label, key in LINES.items() if known(study, key)}
    near = [label for label in ("chosen model alone", "popularity + chosen model") if label in lines]
    reach, constant = cohort(study)
    layout: Any = [[order for order in rows for _ in range(2)], ["gap"] * 2 * len(rows)]
    figure: Figure
    figure, axes = plt.subplot_mosaic(layout, figsize=(2.2 + 3.5 * len(rows), 6.8), height_ratios=[2.4, 1])
    for order in rows:
        for label, key in lines.items():
            if label not in near:
                values = study.matrix(*key, order=order, sizes=(0, ALL))
                _band(axes[order], boot.simultaneous_band(values), study.sizes_of(order, (0, ALL)), label, LOOKS[label])
        axes[order].set(title=f"{order} order", ylabel=NDCG, ylim=(0, None))
    for label in near:
        gap = study.matrix(*lines[label], sizes=(0, reach)) - study.matrix(*LEARNED, sizes=(0, reach))
        _band(
            axes["gap"],
            boot.simultaneous_band(gap * constant),
            study.sizes_of("random", (0, reach)),
            label,
            LOOKS[label],
        )
    axes["gap"].axhspan(-MARGIN, MARGIN, color="0.9", zorder=0, label=f"within {MARGIN:g}")
    axes["gap"].set(title="Difference from learned weights (random order, the same users)", ylabel=NDCG)
    axes["gap"].set(xlabel="ratings in the profile, n (below: users)", ylim=(-2.5 * MARGIN, 2.5 * MARGIN))
    axes[rows[0]].legend(loc="upper left", fontsize=10)
    axes["gap"].legend(loc="lower center", ncols=3)
    return figure


def _band(ax: Any, band: Sequence[Estimate], sizes: Sequence[int], label: str, style: Mapping[str, Any]) -> None:
    x = range(len(band))
    ax.plot(x, [e.value for e in band], label=label, markersize=5, linewidth=1.8, **style)
    ax.fill_between(x, [e.ci_low for e in band], [e.ci_high for e in band], color=style["color"], alpha=0.15)
    ax.set_xticks(x, [f"{n}\n{e.n}" for n, e in zip(sizes, band, strict=True)], fontsize=8.5)


def start_figure(study: AlphaStudy, boot: Bootstrap) -> Figure:
    """ndcg@10 of each model by itself for profiles of up to ten ratings."""
    rows = orders(study)
    figure, axes = plt.subplots(1, len(rows), figsize=(4.8 * len(rows), 4.0), sharey=True, squeeze=False)
    names = ["popularity", *dict.fromkeys(cf for _, cf in study.test), "content"]
    for ax, order in zip(axes[0], rows, strict=True):
        for name in (name for name in names if known(study, (name,))):
            band = boot.simultaneous_band(study.matrix(name, order=order, sizes=(0, 10)))
            _band(ax, band, study.sizes_of(order, (0, 10)), name, look(name))
        before = sum(n < CLASSIC_THRESHOLD for n in study.sizes_of(order, (0, 10)))
        ax.axvline(before - 0.5, color="#777777", linewidth=0.8, linestyle=":")
        ax.set(title=f"{order} order", xlabel="ratings in the profile, n (below: users; dotted: the classic threshold)")
    axes[0, 0].set_ylabel(NDCG)
    axes[0, 0].legend(fontsize=8, ncols=2)
    return figure
