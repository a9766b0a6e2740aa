"""What diversity costs: every strategy at every strength, on the same rankings and users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study.figures import intervals
from recsys_study.findings import Contrast
from recsys_utils.base import USER, Recommender
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import Case, check_tuning, measure, rank_and_measure, user_blocks
from recsys_utils.evaluation.significance import Bootstrap, Estimate, jackknife, metric_rows
from recsys_utils.ranking import rerank
from recsys_utils.ranking.hybrid import AlphaCurve, Hybrid
from recsys_utils.ranking.rerank import CLASSIC, EXPOSURE, STRATEGIES, ItemFacts, Lists, Ranking, variant

NDCG = "ndcg@10"
OUTSIDE = "outside_top3@10"
PLAIN = ("none", 0.0)
Floats = NDArray[np.float64]
Setting = tuple[str, float]  # strategy, ratio or lambda
Choice = Mapping[str, Any]  # a blend's settings, see ``recommend.hybrid_from``
DIVERSITY = {  # metric: name, unit, sign of what is better
    "ild@10": ("genre distance within a list", "", 1), "coverage@10": ("catalogue coverage", "", 1),
    "gini@10": ("Gini index of exposure", "", -1), "novelty@10": ("novelty", "bits", 1),
    "serendipity@10": ("serendipity", "", 1), "calibration_error@10": ("calibration error", "nats", -1),
}  # fmt: skip
REPORTED = (NDCG, *DIVERSITY, "ild_tfidf@10", "popularity_lift@10")
OF_GENRES = ("ild@10", "calibration_error@10")  # undefined in a catalogue without genres
SPARE = 1.25  # a target that is just reached on one slice is just missed on the next: ask for more when choosing
NAMES = {
    "genre": "random items of genres new to the user", "mid-rank": "random items from the middle of the ranking",
    "popular": "popular items", "mmr": "maximal marginal relevance over genres", "xquad": "xQuAD over genres",
    "calibration": "calibration to the profile's genres", "dpp": "a determinantal point process over genres",
    "discount": "a discount for popularity", EXPOSURE: "a last slot for the item least shown",
}  # fmt: skip
_OF_ALL = {  # of all lists together, and without each
    "coverage@10": (metrics.coverage, metrics.coverage_without_each),
    "gini@10": (metrics.gini, metrics.gini_without_each),
}
_ENDS = {"": "value", " low": "ci_low", " high": "ci_high"}  # of an estimate, by the end of a column's name


def setting_name(strategy: str, ratio: float) -> str:
    """What a setting is called in texts.

    >>> setting_name("dpp", 0.12), setting_name("popular-repaired", 0.1)
    ('a determinantal point process over genres (weight 0.12)', 'popular items (repaired, ratio 0.1)')
    """
    if strategy == "none":
        return "the plain ranking"
    kind = "ratio" if strategy in CLASSIC else "weight"
    repaired = "repaired, " * strategy.endswith("-repaired")
    return f"{NAMES[strategy.removesuffix('-repaired')]} ({repaired}{kind} {ratio:g})"


def settings(ratios: Sequence[float], lambdas: Mapping[str, Sequence[float]], *, genres: bool) -> list[Setting]:
    """Every classic strategy at every ratio, every re-ranking strategy at its weights; without genres fewer."""
    strengths = dict.fromkeys(CLASSIC, ratios) | dict(lambdas)
    found = [(strategy, strength) for strategy, values in strengths.items() for strength in values]
    return [setting for setting in found if genres or setting[0] not in rerank.GENRE_BASED]


class Goal(NamedTuple):
    """What a strategy should reach; ``share`` of the target is 1 where (value, value of the plain ranking) just do."""

    name: str
    metric: str
    share: Callable[[float, float], float]


GOALS = (
    Goal("calibration error -20%", "calibration_error@10", lambda value, plain: (value / plain - 1) / -0.2),
    Goal("genre distance within a list +0.03", "ild@10", lambda value, plain: (value - plain) / 0.03),
    Goal("catalogue coverage of at least 0.3", "coverage@10", lambda value, _: value / 0.3),
)


@dataclass(frozen=True)
class Study:
    """Lists of every setting and their metrics.

    Parameters
    ----------
    case : the test
    lists : by (strategy, ratio); the plain ranking under :data:`PLAIN`
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
        return {s: f | {name: float(self.of_all(name, s)[0]) for name in _OF_ALL} for s, f in found.items()}

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

        If none reaches that much, the one that gets furthest. ``servable`` leaves out what works in batches only.
        """
        ndcg, share = self.within(max_loss), self.shares[goal]
        eligible = [setting for setting in ndcg if not servable or setting[0] in STRATEGIES]
        return max(eligible, key=lambda setting: (min(share[setting], SPARE), ndcg[setting]))

    def choose(self, max_loss: float) -> Setting:
        """What to serve: the setting that reaches ``SPARE`` x the target of most goals, if of more than plain lists.

        Ties: the one with most ndcg. None loses more than ``max_loss``; what works in batches only is not served.
        """
        ndcg = self.within(max_loss)
        reached = {setting: sum(share[setting] >= SPARE for share in self.shares.values()) for setting in ndcg}
        best = max((s for s in ndcg if s[0] in STRATEGIES), key=lambda setting: (reached[setting], ndcg[setting]))
        return best if reached[best] > reached[PLAIN] else PLAIN

    # ---- with intervals

    def estimates(self, setting: Setting, *, less_plain: bool = False) -> dict[str, Estimate]:
        """Every metric of a setting, or its gain over the plain ranking, paired by user.

        Bootstrap over users; jackknife for coverage and Gini.
        """
        values = self.values[setting].drop(columns=USER)
        of_all = {name: self.of_all(name, setting) for name in _OF_ALL}
        if less_plain:
            values = values - self.values[PLAIN].drop(columns=USER)
            of_all = {name: found - self.of_all(name, PLAIN) for name, found in of_all.items()}
        bounds = (-float(less_plain), 1.0)
        return self.means(values) | {name: jackknife(f[0], f[1:], bounds) for name, f in of_all.items()}

    def means(self, values: pd.DataFrame) -> dict[str, Estimate]:
        """Mean of each column over users, NaN left out."""
        return dict(zip(map(str, values), self.boot.means(values.to_numpy(np.float64)), strict=True))

    def of_all(self, name: str, setting: Setting) -> Floats:
        """(1 + B,) coverage or Gini of all lists, and without each user's."""
        whole, without = _OF_ALL[name]
        lists, n_items = self.lists[setting].items, self.case.relevant.shape[1]
        return np.append(whole(lists, n_items), without(lists, n_items))

    def cost(self, setting: Setting) -> Estimate:
        """ndcg relative to that of the plain ranking, less 1: -.02 is "2 % lost"."""
        return self.boot.relative_difference(*(self.values[s][NDCG].to_numpy() for s in (setting, PLAIN)))

    def improvement(self, metric: str, setting: Setting) -> Estimate:
        """By how much a metric gets better than that of the plain ranking."""
        pair = (setting, PLAIN)[:: DIVERSITY[metric][2]]
        return self.boot.difference(*(self.values[s][metric].to_numpy() for s in pair))

    def reached(self, goal: Goal, setting: Setting, max_loss: float) -> dict[str, Any]:
        """A row of a table: how much of a goal's target a setting reaches, and its change of ndcg with interval."""
        share, loss = self.shares[goal][setting], self.cost(setting)
        outcome = "missed" if share < 1 else "reached" if loss.value >= -max_loss else "reached, over budget"
        row = {"goal": goal.name, "strategy": setting_name(*setting), "share of the target": share}
        return row | loss.evidence("ndcg@10, relative") | {"outcome": outcome}

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per setting: gains over the plain ranking with intervals, ndcg relative.

        ``picks`` per list, the share of them that is ``relevant``, and that of the plain items that they displace.
        """
        rows = []
        for setting, (items, picked) in self.lists.items():
            plain = self.lists[PLAIN].items
            row = {
                "strategy": setting[0], "ratio": setting[1], "picks": float(picked.sum(axis=1).mean()),
                "relevant": self._relevant(items, picked),
                "displaced": self._relevant(plain, Lists.of(plain, items).exploration),
            }  # fmt: skip
            found = self.estimates(setting, less_plain=True) | {NDCG: self.cost(setting)}
            known = [name for name in (NDCG, *DIVERSITY) if name in found]
            rows.append(row | {name + end: getattr(found[name], at) for name in known for end, at in _ENDS.items()})
        return pd.DataFrame(rows)

    def rows(self) -> pd.DataFrame:
        """The rows of metrics.csv."""
        found = {s: {name: e for name, e in self.estimates(s).items() if name in REPORTED} for s in self.lists}
        return pd.concat([self.named(e, s) for s, e in found.items()], ignore_index=True)

    def named(self, estimates: Mapping[str, Estimate], setting: Setting, segment: str = "all") -> pd.DataFrame:
        name = f"{variant(*setting)};relevance={self.relevance}"
        return metric_rows(estimates, protocol=self.protocol, model="blend", variant=name, segment=segment)

    def _relevant(self, items: metrics.Lists, where: NDArray[np.bool_]) -> float:
        """Share of the items at some slots that are relevant, over the users who have relevant items."""
        liked = self.case.relevant[np.arange(len(items))[:, None], items].toarray() != 0
        judged = where & (self.case.relevant.getnnz(axis=1) > 0)[:, None]
        return float(pd.Series(liked[judged]).mean())


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
    facts = ItemFacts.of(items, traits.counts)
    wanted = dict.fromkeys([PLAIN, *settings])
    shown = {setting: np.zeros(len(items), np.int64) for setting in wanted}
    parts: dict[Setting, list[Lists]] = {setting: [] for setting in wanted}
    for block in user_blocks(case.profiles.shape):
        profiles, users = case.profiles[block], list(case.user_ids[block])
        ranking = Ranking.of(model.scores(profiles), profiles, users)
        for setting, found in parts.items():
            if setting[0] == EXPOSURE:
                found.append(rerank.exposure_slot(ranking, setting[1], shown[setting], k=k))
            else:
                found.append(rerank.rerank(ranking, *setting, k=k, facts=facts, seed=seed))
    lists = {setting: Lists(*map(np.concatenate, zip(*found, strict=True))) for setting, found in parts.items()}
    profile_mix, unknown = facts.profile_mix(case.profiles), [] if facts.genres.nnz else [*OF_GENRES, OUTSIDE]
    values = {}
    for setting, (listed, _) in lists.items():
        table = measure(listed, case, k, traits=traits)
        table[OUTSIDE] = outside_share(listed, facts.mix, profile_mix)
        values[setting] = table.drop(columns=unknown)
    return Study(case, lists, values, boot, protocol)


def outside_share(lists: metrics.Lists, mix: Floats, wanted: Floats, top: int = 3) -> metrics.PerUser:
    """(B,) share of a list's genre mix in genres outside the ``top`` of the profile; NaN where either has no genres.

    Parameters
    ----------
    lists : (B, k)
    mix : (I, G) each item spread over its genres
    wanted : (B, G) genre mix of the profiles

    >>> outside_share(np.array([[0, 1]]), np.eye(4), np.array([[0.1, 0.5, 0.2, 0.2]]))
    array([0.5])
    """
    outside = np.ones(wanted.shape)
    np.put_along_axis(outside, np.argsort(-wanted, axis=1, kind="stable")[:, :top], 0, axis=1)
    given = np.where((lists >= 0)[:, :, None], mix[lists], 0).sum(axis=1)
    mass = np.where(wanted.any(axis=1), given.sum(axis=1), 0)
    return np.asarray((given * outside).sum(axis=1) / np.where(mass > 0, mass, np.nan))


def tastes(case: Case, facts: ItemFacts) -> dict[str, NDArray[np.object_]]:
    """Thirds of the users by the entropy of their profile's genre mix, and by the mean popularity of its items.

    ``genre-taste`` narrow, middle, broad (left out without genres); ``popularity-taste`` niche, middle, mainstream.
    Ties are split by the users' order.
    """
    mix = facts.profile_mix(case.profiles)
    entropy = -(mix * np.log(np.where(mix > 0, mix, 1))).sum(axis=1)
    fame = (metrics.pattern(case.profiles) @ facts.popularity) / np.maximum(case.profiles.getnnz(axis=1), 1)
    names = {"genre-taste": (entropy, ("narrow", "middle", "broad"))} if facts.genres.nnz else {}
    names["popularity-taste"] = (fame, ("niche", "middle", "mainstream"))
    position = {name: np.argsort(np.argsort(value, kind="stable")) for name, (value, _) in names.items()}
    return {name: np.array(words, object)[position[name] * 3 // len(fame)] for name, (_, words) in names.items()}


def by_taste(found: Study, groups: Mapping[str, NDArray[np.object_]], settings: Sequence[Setting]) -> pd.DataFrame:
    """Metric rows of the plain ranking and of settings within each group of users of :func:`tastes`.

    ``change``, ``change low``, ``change high``: the metric less that of the plain ranking, paired by user.
    """
    known = [m for m in (NDCG, OUTSIDE, *OF_GENRES, "novelty@10") if m in found.values[PLAIN]]
    segments = [(f"{name}={v}", group == v) for name, group in groups.items() for v in np.unique(group)]
    tables = []
    for (segment, inside), setting in product(segments, dict.fromkeys((PLAIN, *settings))):
        mine, plain = (found.values[s].loc[inside, known].reindex(range(len(inside))) for s in (setting, PLAIN))
        gains = found.means(mine - plain)
        changes = {f"change{end}": [getattr(gains[m], at) for m in known] for end, at in _ENDS.items()}
        rows = found.named(found.means(mine), setting, segment=segment)
        tables.append(rows.assign(strategy=setting[0], **changes))
    return pd.concat(tables, ignore_index=True)


class Trial(NamedTuple):
    """One protocol: the bases tried, (ndcg@10 on the inner slice, choice), best first; the inner and the test part."""

    tried: list[tuple[float, dict[str, Any]]]
    tuning: Study
    test: Study


def tune_base(
    choice: Choice, settings: Sequence[Choice], alphas: Sequence[float], case: Case, build: Callable[[Choice], Hybrid]
) -> list[tuple[float, dict[str, Any]]]:
    """The blend that ranks best on ``case``: the given one or its content with EASE; then its weights or constant ones.

    Parameters
    ----------
    choice : what ``build`` makes a blend of
    settings : of EASE, to try with the weights of ``choice``
    alphas : constant weights, to try with the best setting

    Returns
    -------
    (ndcg@10 on ``case``, choice) of all that was tried, the best first
    """

    def judged(blend: Hybrid, option: Choice) -> tuple[float, dict[str, Any], Hybrid]:
        return float(rank_and_measure(blend, case)[NDCG].mean()), dict(option), blend

    options = [choice, *({**choice, "cf": "ease", "settings": dict(s)} for s in settings)]
    tried = [judged(build(option).fit(case.train), option) for option in options]
    _, best, blend = max(tried, key=lambda trial: trial[0])
    for curve in (AlphaCurve("constant", (0,), (float(alpha),)) for alpha in alphas):
        blend.curve = curve
        tried.append(judged(blend, {**best, "curve": curve.to_json()}))
    return sorted(((value, option) for value, option, _ in tried), key=lambda pair: -pair[0])


def run_trial(
    choice: Choice, inner: Case, outer: Case, *, base_settings: Sequence[Choice], base_alphas: Sequence[float],
    build: Callable[[Choice], Hybrid], seed: int, **common: Any,
) -> Trial:  # fmt: skip
    """Choose a base on ``inner`` (:func:`tune_base`) and measure all settings there and on ``outer``.

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
    return Trial(tried, tuning, test)


# ---- tables and contrasts


def base_table(trials: Mapping[str, Trial], choice: Choice) -> pd.DataFrame:
    """The bases tried, by protocol, the best first; ``of 06``: the blend that is served."""
    return pd.DataFrame(
        {"protocol": name, "model": option["cf"], "setting": str(option["settings"]),
         "weights": option["curve"]["name"], "ndcg@10, inner": value, "of 06": option == choice}
        for name, trial in trials.items() for value, option in trial.tried
    )  # fmt: skip


def knee_table(trials: Mapping[str, Trial], max_loss: float) -> pd.DataFrame:
    """By protocol and goal the knee that the inner slice names, measured on the test part; see :meth:`Study.reached`.

    Where it works in batches only, what can be served to one person has a row of its own.
    """
    rows = []
    for (name, (_, tuning, test)), goal in product(trials.items(), GOALS):
        names = (tuning.knee(goal, max_loss, servable=alone) for alone in (False, True) if goal in tuning.shares)
        for knee in dict.fromkeys(names):
            row = {"protocol": name, "to one person": knee[0] in STRATEGIES, "knee": knee}
            rows.append(row | test.reached(goal, knee, max_loss))
    return pd.DataFrame(rows)


def judged_setting(tuning: Study, max_loss: float) -> Setting:
    """What the primary contrast is about: what is served or, if that is the plain ranking, the first goal's knee."""
    served = tuning.choose(max_loss)
    return served if served != PLAIN else tuning.knee(next(iter(tuning.shares)), max_loss)


def contrasts(trial: Trial, max_loss: float) -> list[Contrast]:
    """The declared contrast, what it costs, and what the knee of each goal costs."""
    tuning, test = trial.tuning, trial.test
    setting = judged_setting(tuning, max_loss)
    metric = GOALS[0].metric if GOALS[0] in test.shares else "novelty@10"
    aim, unit, sign = DIVERSITY[metric]
    label = "{} instead of the plain ranking"
    of = aim + ", sign turned so that more is better" * (sign < 0)
    knees = {f"cost-{goal.metric.partition('@')[0]}": tuning.knee(goal, max_loss) for goal in tuning.shares}
    costs = {"cost": setting, **knees}
    main = label.format(setting_name(*setting)), test.improvement(metric, setting)
    return [Contrast.from_estimate("served-plain", *main, of=of, unit=unit, primary=True)] + [
        Contrast.from_estimate(id, label.format(setting_name(*s)), test.cost(s), of="ndcg@10, relative",
                               unit="share of ndcg@10", margin=max_loss)
        for id, s in costs.items()
    ]  # fmt: skip


def served_facts(trials: Mapping[str, Trial], protocol: str, max_loss: float) -> dict[str, Any]:
    """What is served and what it reaches, what the other protocol would serve, and what the plain ranking scores."""
    _, tuning, test = trials[protocol]
    served, others = tuning.choose(max_loss), [t.tuning.choose(max_loss) for p, t in trials.items() if p != protocol]
    return {
        "served": served[0], "weight": served[1], "plain_ndcg": test.points[PLAIN][NDCG], "max_loss": max_loss,
        "goals": len(test.shares), "same_elsewhere": others[0] == served,
        "name": setting_name(*served).partition(" (")[0], "elsewhere": setting_name(*others[0]),
        "reached": sum(shares[served] >= 1 for shares in test.shares.values()),
    }  # fmt: skip


# ---- figures


def changes_by_taste(segments: pd.DataFrame, setting: Setting) -> Figure:
    """Changes by a setting against the plain ranking within the groups of :func:`by_taste`."""
    rows = segments[segments["variant"].str.startswith(variant(*setting) + ";")]
    rows = rows.assign(segment=rows["segment"].str.replace("-taste=", ": "))
    measured = [metric for metric in (OUTSIDE, "ild@10", NDCG, "novelty@10") if metric in set(rows["metric"])]
    figure, axes = plt.subplots(1, len(measured), figsize=(2.6 * len(measured), 2.9), sharey=True, squeeze=False)
    for ax, metric in zip(axes.flat, measured, strict=True):
        part = rows[rows["metric"] == metric]
        intervals(ax, part, label="segment", value="change", low="change low", high="change high")
        ax.locator_params(axis="x", nbins=3)
        ax.axvline(0, color="0.4", linewidth=0.9)
        ax.set_xlabel(f"change in {metric.removesuffix('@10').replace('outside_top3', 'share outside')}")
    return figure


def pareto(summary: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The settings that no other beats in ndcg without losing in ``metric``, by rising ndcg.

    >>> table = pd.DataFrame({NDCG: [0.0, -0.1, -0.2], "ild@10": [0.0, 0.2, 0.1]})
    >>> pareto(table, "ild@10").index.tolist()
    [1, 0]
    """
    better = DIVERSITY[metric][2] * summary[metric]
    order = summary.assign(gain=better).sort_values([NDCG, "gain"], ascending=False, kind="stable")
    ahead = order["gain"] > order["gain"].cummax().shift(fill_value=-np.inf)
    return order[ahead].iloc[::-1]


def tradeoff(summary: pd.DataFrame, max_loss: float, served: Setting) -> Figure:
    """ndcg against each kind of diversity: a line per strategy with intervals, the Pareto front behind them.

    Of the classic strategies the repaired form is drawn; what is served is ringed.
    """
    at = summary[(summary["strategy"] == served[0]) & np.isclose(summary["ratio"], served[1])]
    summary = summary[~(summary["strategy"] + "-repaired").isin(CLASSIC)]
    known = [metric for metric in DIVERSITY if metric in summary]
    rows = -(-len(known) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(8.2, 3.3 * rows), sharey=True, squeeze=False)
    for ax, metric in zip(axes.flat, known, strict=False):
        best = pareto(summary, metric)
        ax.plot(best[metric], best[NDCG], color="#ffd97a", linewidth=7, label="Pareto front")
        for (name, part), marker in zip(summary.groupby("strategy", sort=False), "*os^DvP<>X", strict=False):
            x, y = (np.abs(part[[f"{m} low", f"{m} high"]].T - part[m]) for m in (metric, NDCG))
            ax.errorbar(part[metric], part[NDCG], y, x, marker=marker, markersize=4.5, elinewidth=0.6, label=name)
        ax.plot(at[metric], at[NDCG], "o", markersize=15, fillstyle="none", color="black", label="served")
        ax.axhline(-max_loss, color="0.4", linewidth=0.9, linestyle="--", label="budget")
        name, unit, sign = DIVERSITY[metric]
        ax.set_xlabel(f"change in {name}{unit and ', ' + unit}{' (less is better)' * (sign < 0)}")
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.supylabel("change in ndcg@10", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
