"""What variety costs: every diversity strategy at every ratio, on the same rankings and users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from recsys_utils import metrics
from recsys_utils.diversity import STRATEGIES, Catalogue, Ranking, rerank, variant
from recsys_utils.interfaces import Scores
from recsys_utils.protocols import Case, measure
from recsys_utils.significance import Bootstrap, Estimate, jackknife, metric_rows

NDCG = "ndcg@10"
PLAIN = ("none", 0.0)
Setting = tuple[str, float]  # strategy, ratio


@dataclass(frozen=True)
class Study:
    """Lists of every setting and what they are worth.

    Parameters
    ----------
    lists : (B, k) item positions by (strategy, ratio); the plain ranking stands under :data:`PLAIN`
    explored : mean number of exploration picks a list, by setting
    values : per-user metrics by setting, see ``protocols.measure``
    n_items : size of the catalogue
    boot : resamples of the users
    """

    lists: dict[Setting, metrics.Lists]
    explored: dict[Setting, float]
    values: dict[Setting, pd.DataFrame]
    n_items: int
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
        """A row per setting but the plain one: gains with intervals, ndcg relative, in the order of the settings."""
        rows = []
        for setting in self.lists:
            row = {"strategy": setting[0], "ratio": setting[1], "picks a list": self.explored[setting]}
            gains = {NDCG: self.relative_gain(NDCG, setting)}
            gains |= {name: self.gain(name, setting) for name in ("coverage@10", "gini@10", "ild@10", "novelty@10")}
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

    def _of_all(self, name: str, setting: Setting) -> tuple[float, metrics.PerUser]:
        """Coverage or Gini of all lists, and without each."""
        whole, without = {
            "coverage": (metrics.coverage, metrics.coverage_without_each),
            "gini": (metrics.gini, metrics.gini_without_each),
        }[name]
        lists = self.lists[setting]
        return whole(lists, self.n_items), without(lists, self.n_items)


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
    return Study(
        {setting: found.items for setting, found in reranked.items()},
        {setting: float(found.exploration.sum(axis=1).mean()) for setting, found in reranked.items()},
        {setting: measure(found.items, case, k, traits=traits) for setting, found in reranked.items()},
        len(items),
        boot,
    )
