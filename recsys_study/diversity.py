"""What variety costs: every diversity strategy at every strength, on the same rankings and users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from textwrap import fill
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import Recommender
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import Case, check_tuning, measure, rank_and_measure, user_blocks
from recsys_utils.evaluation.significance import Bootstrap, Estimate, jackknife, metric_rows
from recsys_utils.ranking.blend import AlphaCurve, Blend
from recsys_utils.ranking.rerank import (
    EXPOSURE,
    RULES,
    STRATEGIES,
    Catalogue,
    Lists,
    Ranking,
    exposure_slot,
    in_words,
    rerank,
    variant,
)

NDCG = "ndcg@10"
OUTSIDE = "outside_top3@10"
PLAIN = ("none", 0.0)
Floats = NDArray[np.float64]
Setting = tuple[str, float]  # strategy, ratio or lambda
VARIETY = {  # metric: axis label, whether less is better
    "ild@10": ("genre distance within a list", False), "coverage@10": ("catalogue coverage", False),
    "gini@10": ("Gini index of exposure", True), "novelty@10": ("novelty, bits", False),
    "serendipity@10": ("serendipity", False), "calibration_error@10": ("calibration error, nats", True),
}  # fmt: skip
REPORTED = (NDCG, *VARIETY, "ild_tfidf@10", "popularity_lift@10")
OF_GENRES = ("ild@10", "calibration_error@10")  # undefined in a catalogue without genres
SPARE = 1.25  # what is reached by a little on one slice is missed by a little on the next: ask for more when choosing
_OF_ALL = {  # of all lists together, and without each
    "coverage": (metrics.coverage, metrics.coverage_without_each), "gini": (metrics.gini, metrics.gini_without_each),
}  # fmt: skip
_ENDS = {"": "value", " low": "ci_low", " high": "ci_high"}  # of an estimate, by the end of a column's name
_TOLD = {"relative": "+.1%", "change": "+.3f", "level": ".3f"}  # how what is compared with a goal is written
_DRAWN = (*RULES, EXPOSURE, "genre-repaired", "mid-rank-repaired", "popular-repaired")
_LOOKS = {name: (f"C{place}", marker) for place, (name, marker) in enumerate(zip(_DRAWN, "os^DvP<>X", strict=True))}


def label(metric: str) -> str:
    """What a metric is called in a sentence.

    >>> label("calibration_error@10"), label("ild@10")
    ('calibration error', 'genre distance within a list')
    """
    return VARIETY[metric][0].partition(",")[0]


@dataclass(frozen=True)
class Goal:
    """What a strategy is asked to reach.

    Parameters
    ----------
    metric, target : e.g. calibration_error@10 and -.2
    kind : what is compared with the target: the metric relative to the plain ranking less 1, its difference, or itself
    """

    metric: str
    target: float
    kind: Literal["relative", "change", "level"]

    def __str__(self) -> str:
        """
        >>> str(Goal("calibration_error@10", -0.2, "relative")), str(Goal("coverage@10", 0.3, "level"))
        ('calibration error -20%', 'catalogue coverage of at least 0.3')
        """
        form = {"relative": "{:+.0%}", "change": "{:+g}", "level": "of at least {:g}"}[self.kind]
        return f"{label(self.metric)} {form.format(self.target)}"

    def share(self, value: float, plain: float) -> float:
        """How much of the target a metric reaches, 1 = just reached."""
        reached = {"relative": value / plain - 1 if plain else 0.0, "change": value - plain, "level": value}[self.kind]
        return reached / self.target


GOALS = (
    Goal("calibration_error@10", -0.2, "relative"), Goal("ild@10", 0.03, "change"), Goal("coverage@10", 0.3, "level"),
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Lists of every setting and what they are worth.

    Parameters
    ----------
    case : the test
    lists : by (strategy, ratio); the plain ranking stands under :data:`PLAIN`
    values : per-user metrics by setting, see ``protocols.measure``
    boot : resamples of the users
    protocol : name of the case in metrics.csv
    relevance : which test ratings count
    """

    case: Case
    lists: dict[Setting, Lists]
    values: dict[Setting, pd.DataFrame]
    boot: Bootstrap
    protocol: str = ""
    relevance: Literal["liked", "any"] = "liked"

    def judged_by(self, relevance: Literal["liked", "any"]) -> Study:
        """The same lists under another rule of relevance; only what depends on it: accuracy."""
        values = {s: measure(found.items, self.case, relevance=relevance) for s, found in self.lists.items()}
        return replace(self, values=values, relevance=relevance)

    @cached_property
    def points(self) -> dict[Setting, dict[str, float]]:
        """Every metric by setting, without intervals: enough to choose by."""
        found = {setting: dict(table.mean(numeric_only=True)) for setting, table in self.values.items()}
        return {s: f | {f"{name}@10": self._of_all(name, s)[0] for name in _OF_ALL} for s, f in found.items()}

    @cached_property
    def shares(self) -> dict[Goal, dict[Setting, float]]:
        """By goal whose metric the data have: how much of its target each setting reaches, 1 = just reached."""
        plain = self.points[PLAIN]
        goals = [goal for goal in GOALS if goal.metric in plain]
        return {g: {s: g.share(v[g.metric], plain[g.metric]) for s, v in self.points.items()} for g in goals}

    def within(self, max_loss: float) -> dict[Setting, float]:
        """ndcg of the settings that lose no more of it, relative to the plain ranking."""
        ndcg = {setting: values[NDCG] for setting, values in self.points.items()}
        return {setting: value for setting, value in ndcg.items() if value >= (1 - max_loss) * ndcg[PLAIN]}

    def knee(self, goal: Goal, max_loss: float, *, servable: bool = False) -> Setting:
        """The setting with most ndcg of those that reach ``SPARE`` x a goal's target at a loss of ``max_loss`` at most.

        If none reaches so much, the one that comes furthest. ``servable`` leaves out what works in batches only.
        """
        ndcg, share = self.within(max_loss), self.shares[goal]
        open_to = [setting for setting in ndcg if not servable or setting[0] in STRATEGIES]
        return max(open_to, key=lambda setting: (min(share[setting], SPARE), ndcg[setting]))

    def choose(self, max_loss: float) -> Setting:
        """What to serve: the setting that reaches ``SPARE`` x the target of most goals, if of more than plain lists do.

        Ties: the one with most ndcg. None loses more than ``max_loss``; what works in batches only can't be served.
        """
        ndcg = self.within(max_loss)
        reached = {setting: sum(share[setting] >= SPARE for share in self.shares.values()) for setting in ndcg}
        best = max((s for s in ndcg if s[0] in STRATEGIES), key=lambda setting: (reached[setting], ndcg[setting]))
        return best if reached[best] > reached[PLAIN] else PLAIN

    # ---- with intervals

    def estimates(self, setting: Setting) -> dict[str, Estimate]:
        """Every metric of a setting: bootstrap over users, jackknife for coverage and Gini."""
        found = self._means(self.values[setting].drop(columns="user_id"))
        return found | {f"{name}@10": jackknife(*self._of_all(name, setting)) for name in _OF_ALL}

    def gains(self, setting: Setting) -> dict[str, Estimate]:
        """Every metric less that of the plain ranking, paired by user."""
        mine, plain = (self.values[s].drop(columns="user_id") for s in (setting, PLAIN))
        found = self._means(mine - plain)
        for name in _OF_ALL:
            (value, without), (usual, usual_without) = self._of_all(name, setting), self._of_all(name, PLAIN)
            found[f"{name}@10"] = jackknife(value - usual, without - usual_without, bounds=(-1, 1))
        return found

    def _means(self, table: pd.DataFrame) -> dict[str, Estimate]:
        return dict(zip(map(str, table), self.boot.means(table.to_numpy(np.float64)), strict=True))

    def relative_gain(self, metric: str, setting: Setting) -> Estimate:
        """A per-user metric relative to that of the plain ranking, less 1: -.02 is "2 % lost"."""
        mine, plain = self.values[setting][metric].to_numpy(), self.values[PLAIN][metric].to_numpy()
        return self.boot.relative_difference(mine, plain)

    def progress(self, goal: Goal, setting: Setting) -> Estimate:
        """What is compared with a goal's target, with its interval."""
        if goal.kind == "relative":
            return self.relative_gain(goal.metric, setting)
        return (self.gains if goal.kind == "change" else self.estimates)(setting)[goal.metric]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row per setting: gains over the plain ranking with intervals, ndcg relative.

        ``picks`` a list, and which share of them is ``relevant``, against the share of the plain films they displace.
        """
        rows = []
        for setting, (items, picked) in self.lists.items():
            plain = self.lists[PLAIN].items
            displaced = ~(plain[:, :, None] == items[:, None, :]).any(axis=2)
            row = {
                "strategy": setting[0], "ratio": setting[1], "picks": float(picked.sum(axis=1).mean()),
                "relevant": self._relevant(items, picked), "displaced": self._relevant(plain, displaced),
            }  # fmt: skip
            found = self.gains(setting) | {NDCG: self.relative_gain(NDCG, setting)}
            known = [name for name in (NDCG, *VARIETY) if name in found]
            rows.append(row | {name + end: getattr(found[name], at) for name in known for end, at in _ENDS.items()})
        return pd.DataFrame(rows)

    def rows(self) -> pd.DataFrame:
        """The rows of metrics.csv."""
        found = {s: {name: e for name, e in self.estimates(s).items() if name in REPORTED} for s in self.lists}
        return pd.concat([self._named(e, s) for s, e in found.items()], ignore_index=True)

    def _named(self, estimates: Mapping[str, Estimate], setting: Setting, segment: str = "all") -> pd.DataFrame:
        name = f"{variant(*setting)};relevance={self.relevance}"
        return metric_rows(estimates, protocol=self.protocol, model="blend", variant=name, segment=segment)

    def _relevant(self, items: metrics.Lists, where: NDArray[np.bool_]) -> float:
        """Share of the films at some places that are relevant, over the users who have relevant films."""
        row, place = np.nonzero(where & (items >= 0) & (self.case.relevant.getnnz(axis=1) > 0)[:, None])
        if row.size == 0:
            return float("nan")
        return float((np.asarray(self.case.relevant[row, items[row, place]]) != 0).mean())

    def _of_all(self, name: str, setting: Setting) -> tuple[float, metrics.PerUser]:
        """Coverage or Gini of all lists, and without each."""
        whole, without = _OF_ALL[name]
        lists, n_items = self.lists[setting].items, self.case.relevant.shape[1]
        return whole(lists, n_items), without(lists, n_items)


def study(
    model: Recommender, case: Case, *, items: pd.DataFrame, settings: Iterable[Setting], seed: int, boot: Bootstrap,
    protocol: str = "", k: int = 10, spaces: Mapping[str, csr_matrix] | None = None,
) -> Study:  # fmt: skip
    """Every setting on one ranking, and the plain ranking; users are scored in blocks.

    Parameters
    ----------
    model : fitted on ``case.train``
    items : catalogue in the order of the scores' columns, with its genres
    settings : strategies with their ratio or lambda
    seed : of the random picks
    protocol : name of the case in metrics.csv
    spaces : further item vectors to measure the distance within a list in, see ``metrics.ItemTraits``
    """
    traits = metrics.ItemTraits.of(case.train, items["genres"], spaces)
    catalogue = Catalogue.of(items, traits.counts)
    wanted = dict.fromkeys([PLAIN, *settings])
    shown = {setting: np.zeros(len(items), np.int64) for setting in wanted}
    parts: dict[Setting, list[Lists]] = {setting: [] for setting in wanted}
    for block in user_blocks(case.profiles.shape):
        profiles, users = case.profiles[block], list(case.user_ids[block])
        ranking = Ranking.of(model.scores(profiles), profiles, users)
        for setting, found in parts.items():
            if setting[0] == EXPOSURE:
                found.append(exposure_slot(ranking, setting[1], shown[setting], k=k))
            else:
                found.append(rerank(ranking, *setting, k=k, catalogue=catalogue, seed=seed))
    lists = {setting: Lists(*map(np.concatenate, zip(*found, strict=True))) for setting, found in parts.items()}
    unknown = [] if catalogue.genre_names else list(OF_GENRES)
    measured = {s: measure(found.items, case, k, traits=traits).drop(columns=unknown) for s, found in lists.items()}
    if catalogue.genre_names:
        profile_mix = catalogue.profile_mix(case.profiles)
        for setting, table in measured.items():
            table[OUTSIDE] = outside_share(lists[setting].items, catalogue.mix, profile_mix)
    return Study(case, lists, measured, boot, protocol)


def outside_share(lists: metrics.Lists, mix: Floats, wanted: Floats, top: int = 3) -> metrics.PerUser:
    """(B,) share of a list's genre mix in genres outside the ``top`` of the profile; NaN where either has no genres.

    Parameters
    ----------
    lists : (B, k)
    mix : (I, G) each film spread over its genres
    wanted : (B, G) genre mix of the profiles

    >>> outside_share(np.array([[0, 1]]), np.eye(4), np.array([[0.1, 0.5, 0.2, 0.2]]))
    array([0.5])
    """
    outside = np.ones(wanted.shape)
    np.put_along_axis(outside, np.argsort(-wanted, axis=1, kind="stable")[:, :top], 0, axis=1)
    given = np.where((lists >= 0)[:, :, None], mix[lists], 0).sum(axis=1)
    mass = np.where(wanted.any(axis=1), given.sum(axis=1), 0)
    return np.asarray((given * outside).sum(axis=1) / np.where(mass > 0, mass, np.nan))


def tastes(case: Case, catalogue: Catalogue) -> dict[str, NDArray[np.object_]]:
    """Thirds of the users by the entropy of their profile's genre mix, and by the mean popularity of its films.

    ``genre-taste`` narrow, middle, broad (left out without genres); ``popularity-taste`` niche, middle, mainstream.
    Equal values are parted by the users' order.
    """
    mix = catalogue.profile_mix(case.profiles)
    entropy = -(mix * np.log(np.where(mix > 0, mix, 1))).sum(axis=1)
    fame = (metrics.pattern(case.profiles) @ catalogue.popularity) / np.maximum(case.profiles.getnnz(axis=1), 1)
    names = {"genre-taste": (entropy, ("narrow", "middle", "broad"))} if catalogue.genre_names else {}
    names["popularity-taste"] = (fame, ("niche", "middle", "mainstream"))
    place = {name: np.argsort(np.argsort(value, kind="stable")) for name, (value, _) in names.items()}
    return {name: np.array(words, object)[place[name] * 3 // len(fame)] for name, (_, words) in names.items()}


def by_taste(found: Study, groups: Mapping[str, NDArray[np.object_]], settings: Sequence[Setting]) -> pd.DataFrame:
    """Metric rows of the plain ranking and of settings within each group of users of :func:`tastes`.

    ``change``, ``change low``, ``change high``: the metric less that of the plain ranking, paired by user.
    """
    tables = []
    for segment, inside in ((f"{name}={v}", group == v) for name, group in groups.items() for v in np.unique(group)):
        values = {
            setting: found.values[setting][inside].reindex(range(len(inside)))
            for setting in dict.fromkeys((PLAIN, *settings))
        }
        part = replace(found, values=values)
        for setting, table in values.items():
            wanted = [m for m in (NDCG, OUTSIDE, *OF_GENRES, "novelty@10") if m in table]
            estimates, gains = part.estimates(setting), part.gains(setting)
            rows = found._named({m: estimates[m] for m in wanted}, setting, segment=segment)
            changes = {f"change{end}": [getattr(gains[m], at) for m in wanted] for end, at in _ENDS.items()}
            tables.append(rows.assign(strategy=setting[0], **changes))
    return pd.concat(tables, ignore_index=True)


def tune_base(
    choice: Mapping[str, Any], settings: Sequence[Mapping[str, Any]], alphas: Sequence[float], case: Case,
    build: Callable[[Mapping[str, Any]], Blend],
) -> list[tuple[float, dict[str, Any]]]:  # fmt: skip
    """The blend that ranks best on ``case``: the given one or its content with EASE; then its weights or constant ones.

    Parameters
    ----------
    choice : what ``build`` makes a blend of, see ``recommender.blend_from``
    settings : of EASE, to try with the weights of ``choice``
    alphas : constant weights, to try with the best setting

    Returns
    -------
    (ndcg@10 on ``case``, choice) of all that was tried, the best first
    """
    tried: list[tuple[float, dict[str, Any]]] = []

    def judge(blend: Blend, option: dict[str, Any]) -> bool:
        tried.append((float(rank_and_measure(blend, case)[NDCG].mean()), option))
        return tried[-1][0] == max(value for value, _ in tried)

    for option in [dict(choice), *({**choice, "cf": "ease", "settings": dict(s)} for s in settings)]:
        if judge(blend := build(option).fit(case.train), option):
            best = blend, option
    for alpha in alphas:
        best[0].curve = AlphaCurve("constant", (0,), (float(alpha),))
        judge(best[0], best[1] | {"curve": best[0].curve.to_json()})
    return sorted(tried, key=lambda pair: -pair[0])


def run_trial(
    choice: Mapping[str, Any], inner: Case, outer: Case, *, base_settings: Sequence[Mapping[str, Any]],
    base_alphas: Sequence[float], build: Callable[[Mapping[str, Any]], Blend], seed: int, **common: Any,
) -> tuple[list[tuple[float, dict[str, Any]]], Study, Study]:  # fmt: skip
    """One protocol: what was tried as the base (:func:`tune_base`), the study of the choosing slice and of the test.

    ``common`` are further arguments of :func:`study`.

    Raises
    ------
    LeakError : ``inner``, which chooses, holds targets of ``outer``, which is reported.
    """
    check_tuning(inner, outer)
    tried = tune_base(choice, base_settings, base_alphas, inner, build)
    tuning, test = (
        study(build(tried[0][1]).fit(case.train), case, seed=seed, boot=Bootstrap(len(case.users), seed=seed), **common)
        for case in (inner, outer)
    )  # fmt: skip
    return tried, tuning, test


def knee_table(trials: Mapping[str, tuple[Study, Study]], max_loss: float, noun: str = "film") -> pd.DataFrame:
    """By protocol and goal the knee that the choosing slice names, measured on the test part.

    Where it works in batches only, what can be served to one person has a row of its own.

    Parameters
    ----------
    trials : protocol -> studies of the choosing slice and of the test part

    Returns
    -------
    protocol, goal, strategy (in words), gain and loss (estimates), gain told, outcome, knee
    """
    rows = []
    for (name, (inner, found)), alone in product(trials.items(), (False, True)):
        for goal in inner.shares:
            if alone and inner.knee(goal, max_loss)[0] != EXPOSURE:
                continue
            knee = inner.knee(goal, max_loss, servable=alone)
            gain, loss = found.progress(goal, knee), found.relative_gain(NDCG, knee)
            reached = found.shares[goal][knee] >= 1
            outcome = "missed" if not reached else "reached" if loss.value >= -max_loss else "reached, over budget"
            rows.append(
                {"protocol": name, "goal": f"{goal}{' (to one person)' * alone}", "strategy": in_words(*knee, noun),
                 "gain": gain, "loss": loss, "gain told": format(gain, _TOLD[goal.kind]), "outcome": outcome,
                 "knee": knee}
            )  # fmt: skip
    return pd.DataFrame(rows)


def drawn(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of the plain ranking and of the strategies that the figure shows; of the classic ones the repaired."""
    return summary[summary["strategy"].isin((PLAIN[0], *_LOOKS))]


def front(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The settings that no other beats in ndcg without losing in ``metric``, by rising ndcg.

    >>> table = pd.DataFrame({NDCG: [0.0, -0.1, -0.2], "ild@10": [0.0, 0.2, 0.1]})
    >>> front(table, "ild@10").index.tolist()
    [1, 0]
    """
    sign = -1 if VARIETY[metric][1] else 1
    order = summary.assign(gain=sign * summary[metric]).sort_values([NDCG, "gain"], ascending=False, kind="stable")
    ahead = order["gain"] > order["gain"].cummax().shift(fill_value=-np.inf)
    return order[ahead].iloc[::-1]


def plot_tradeoff(summary: pd.DataFrame, max_loss: float) -> Figure:
    """ndcg against each kind of variety: a line per strategy with the intervals of its points, the front behind them.

    Parameters
    ----------
    summary : of a :class:`Study`
    max_loss : where to draw the budget, as a share of ndcg
    """
    summary = drawn(summary)
    known = [metric for metric in VARIETY if metric in summary]
    figure, axes = plt.subplots(
        -(-len(known) // 2), 2, figsize=(8.2, 3.3 * -(-len(known) // 2)), sharey=True, squeeze=False
    )
    for ax, metric in zip(axes.flat, known, strict=False):
        _panel(ax, summary, metric, max_loss)
    figure.supylabel("change in ndcg@10, %", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def plot_served(summary: pd.DataFrame, max_loss: float, served: Setting) -> Figure:
    """One panel of :func:`plot_tradeoff`, the goal that is served by (calibration; without genres novelty), the served
    setting ringed."""
    metric = next(metric for metric in ("calibration_error@10", "novelty@10") if metric in summary)
    figure, ax = plt.subplots(figsize=(7.6, 4.8))
    _panel(ax, drawn(summary), metric, max_loss)
    ax.set_ylabel("change in ndcg@10, %")
    at = summary[(summary["strategy"] == served[0]) & np.isclose(summary["ratio"], served[1])]
    x, y = (at[metric].iloc[0], 100 * at[NDCG].iloc[0]) if len(at) and served != PLAIN else (0.0, 0.0)
    ax.plot(x, y, "o", markersize=17, markerfacecolor="none", markeredgecolor="black", markeredgewidth=1.6, zorder=6)
    ax.annotate(
        fill(f"served: {in_words(*served)}", 30), (x, y), (0.02, 0.06), textcoords="axes fraction", zorder=7,
        bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0}, arrowprops={"arrowstyle": "-"},
    )  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _panel(ax: Axes, summary: pd.DataFrame, metric: str, max_loss: float) -> None:
    """ndcg against one kind of variety."""
    best = front(summary, metric)
    ax.plot(best[metric], 100 * best[NDCG], color="#ffd97a", linewidth=7, solid_capstyle="round", label="front")
    for strategy in summary["strategy"][summary["strategy"] != PLAIN[0]].unique():
        part, (colour, marker) = summary[summary["strategy"] == strategy], _LOOKS[strategy]
        x, y, low, high = part[metric], *(100 * part[NDCG + end] for end in ("", " low", " high"))
        ax.errorbar(
            x, y, xerr=[x - part[f"{metric} low"], part[f"{metric} high"] - x], yerr=[y - low, high - y],
            color=colour, marker=marker, markersize=4.5, elinewidth=0.6, linewidth=1.1, label=strategy,
        )  # fmt: skip
    ax.axhline(-100 * max_loss, color="0.4", linewidth=0.9, linestyle="--", label="budget")
    ax.plot(0, 0, marker="*", color="black", markersize=11, linestyle="none", zorder=5, label="plain ranking")
    ax.set_xlabel(f"change in {VARIETY[metric][0]}{' (less is better)' * VARIETY[metric][1]}")
    ax.locator_params(axis="x", nbins=6)
