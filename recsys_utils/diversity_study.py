"""What variety costs: every diversity strategy at every ratio, on the same rankings and users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from recsys_utils import metrics
from recsys_utils.diversity import STRATEGIES, Catalogue, Lists, Ranking, rerank, variant
from recsys_utils.interfaces import Scores
from recsys_utils.protocols import Case, measure
from recsys_utils.significance import Bootstrap, Estimate, jackknife, metric_rows

NDCG = "ndcg@10"
PLAIN = ("none", 0.0)
Setting = tuple[str, float]  # strategy, ratio
GAINS = {
    "coverage@10": "catalogue coverage", "gini@10": "Gini index (lower is fairer)",
    "ild@10": "genre distance within a list", "novelty@10": "novelty, bits",
}  # fmt: skip
_LOOKS = {"genre": ("C0", "o"), "mid-rank": ("C1", "s"), "popular": ("C2", "^")}


@dataclass(frozen=True)
class Study:
    """Lists of every setting and what they are worth.

    Parameters
    ----------
    case : the test
    lists : by (strategy, ratio); the plain ranking stands under :data:`PLAIN`
    values : per-user metrics by setting, see ``protocols.measure``
    boot : resamples of the users
    """

    case: Case
    lists: dict[Setting, Lists]
    values: dict[Setting, pd.DataFrame]
    boot: Bootstrap

    def estimates(self, setting: Setting) -> dict[str, Estimate]:
        """Every metric of a setting: bootstrap over users, jackknife for coverage and Gini."""
        table = self.values[setting].drop(columns="user_id")
        found = {str(name): mean for name, mean in zip(table, self.boot.means(table.to_numpy()), strict=True)}
        for name in ("coverage", "gini"):
            value, without = self._of_all(name, setting)
            found[f"{name}@10"] = jackknife(value, without)
        return found

    def gain(self, metric: str, setting: Setting) -> Estimate:
        """A metric less that of the plain ranking, paired by user."""
        name = metric.removesuffix("@10")
        if name in ("coverage", "gini"):
            (value, without), (plain, plain_without) = self._of_all(name, setting), self._of_all(name, PLAIN)
            return jackknife(value - plain, without - plain_without, bounds=(-1, 1))
        return self.boot.difference(self.values[setting][metric].to_numpy(), self.values[PLAIN][metric].to_numpy())

    def relative_gain(self, metric: str, setting: Setting) -> Estimate:
        """A per-user metric relative to that of the plain ranking, less 1: -.02 is "2 % lost"."""
        mine, plain = self.values[setting][metric].to_numpy(), self.values[PLAIN][metric].to_numpy()
        return self.boot.relative_difference(mine, plain)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row per setting: gains over the plain ranking with intervals, ndcg relative.

        ``picks`` a list, and which share of them is ``relevant``, against the share of the plain films they displace.
        """
        rows = []
        for setting, (items, picked) in self.lists.items():
            places = np.arange(items.shape[1])
            displaced = places >= items.shape[1] - picked.sum(axis=1)[:, None]
            row = {
                "strategy": setting[0], "ratio": setting[1], "picks": float(picked.sum(axis=1).mean()),
                "relevant": self._relevant(items, picked),
                "displaced": self._relevant(self.lists[PLAIN].items, displaced),
            }  # fmt: skip
            gains = {NDCG: self.relative_gain(NDCG, setting)}
            gains |= {name: self.gain(name, setting) for name in GAINS}
            for name, gain in gains.items():
                row |= {name: gain.value, f"{name} low": gain.ci_low, f"{name} high": gain.ci_high}
            rows.append(row)
        return pd.DataFrame(rows)

    def choose(self, max_loss: float) -> Setting:
        """The largest gain in coverage among settings that lose at most ``max_loss`` of ndcg (relative); else plain."""
        table = self.summary
        allowed = table[(table[NDCG] >= -max_loss) & (table["coverage@10"] > 0)]
        if allowed.empty:
            return PLAIN
        best = allowed.sort_values(["coverage@10", "ratio"], ascending=[False, True], kind="stable").iloc[0]
        return str(best["strategy"]), float(best["ratio"])

    def rows(self, *, protocol: str, model: str, relevance: str) -> pd.DataFrame:
        """The rows of metrics.csv."""
        tables = [
            metric_rows(
                self.estimates(s), protocol=protocol, model=model, variant=f"{variant(*s)};relevance={relevance}"
            )
            for s in self.lists
        ]
        return pd.concat(tables, ignore_index=True)

    def _relevant(self, items: metrics.Lists, where: NDArray[np.bool_]) -> float:
        """Share of the films at some places that are relevant, over the users who have relevant films."""
        row, place = np.nonzero(where & (items >= 0) & (self.case.relevant.getnnz(axis=1) > 0)[:, None])
        if row.size == 0:
            return float("nan")
        return float((np.asarray(self.case.relevant[row, items[row, place]]) != 0).mean())

    def _of_all(self, name: str, setting: Setting) -> tuple[float, metrics.PerUser]:
        """Coverage or Gini of all lists, and without each."""
        whole, without = {
            "coverage": (metrics.coverage, metrics.coverage_without_each),
            "gini": (metrics.gini, metrics.gini_without_each),
        }[name]
        lists, n_items = self.lists[setting].items, self.case.relevant.shape[1]
        return whole(lists, n_items), without(lists, n_items)


def study(
    scores: Scores, case: Case, items: pd.DataFrame, ratios: Sequence[float], *, seed: int, boot: Bootstrap, k: int = 10
) -> Study:
    """Every strategy at every ratio above 0 on one ranking, and the plain ranking.

    Parameters
    ----------
    scores : (B, I) of the users of ``case``
    items : catalogue in the order of the scores' columns, with its genres
    ratios : shares of the list given to exploration
    seed : of the random picks
    """
    traits = metrics.ItemTraits.of(case.train, items["genres"])
    catalogue = Catalogue.of(items, traits.counts)
    ranking = Ranking.of(scores, case.profiles, list(case.user_ids))
    settings = [PLAIN, *((s, r) for s in STRATEGIES if s != PLAIN[0] for r in ratios if r > 0)]
    reranked = {setting: rerank(ranking, *setting, k=k, catalogue=catalogue, seed=seed) for setting in settings}
    values = {setting: measure(found.items, case, k, traits=traits) for setting, found in reranked.items()}
    return Study(case, reranked, values, boot)


def plot_tradeoff(summary: pd.DataFrame, max_loss: float) -> Figure:
    """ndcg against what is gained, a line per strategy; large open markers are classic, small filled ones repaired.

    Parameters
    ----------
    summary : of a :class:`Study`
    max_loss : where to draw the budget, as a share of ndcg
    """
    figure, axes = plt.subplots(2, 2, figsize=(7.6, 6.2), sharey=True)
    for ax, (metric, label) in zip(axes.flat, GAINS.items(), strict=True):
        for strategy, (colour, marker) in _LOOKS.items():
            for repaired in (False, True):
                part = summary[summary["strategy"] == strategy + "-repaired" * repaired].drop_duplicates(NDCG)
                x, y, low, high = part[metric], *(100 * part[NDCG + end] for end in ("", " low", " high"))
                ax.errorbar(
                    x, y, xerr=[x - part[f"{metric} low"], part[f"{metric} high"] - x], yerr=[y - low, high - y],
                    color=colour, marker=marker, markersize=4 if repaired else 8, elinewidth=0.7, linewidth=1.1,
                    markerfacecolor=colour if repaired else "none", linestyle="-" if repaired else ":",
                    label=strategy + ", repaired" * repaired,
                )  # fmt: skip
        ax.axhline(-100 * max_loss, color="0.4", linewidth=0.9, linestyle="--")
        ax.plot(0, 0, marker="*", color="black", markersize=11, linestyle="none", zorder=5)
        ax.set_xlabel(f"change in {label}")
        ax.locator_params(axis="x", nbins=6)
    axes[0, 0].annotate("plain ranking", (0, 0), xytext=(9, 4), textcoords="offset points", fontsize=9)
    axes[0, 1].text(
        0.02, -100 * max_loss, "budget", transform=axes[0, 1].get_yaxis_transform(), va="bottom", fontsize=9
    )
    figure.supylabel("change in ndcg@10, %", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
