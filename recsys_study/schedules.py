"""How often to train again: schedules, simulated on the same returning sessions.

A model that is made every R days serves ages 0 to R - 1, so a schedule's quality is the mean over these ages, not that
of its oldest model. Averaging over all ages is averaging over all days on which the schedule could have begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure

from recsys_study.figures import dodged
from recsys_study.findings import Contrast
from recsys_study.freshness import MIN_USERS, NDCG, scores_or_popular
from recsys_study.stage_files import METRIC_COLUMNS
from recsys_utils.base import USER, Recommender, counted
from recsys_utils.data.interactions import DAY, Interactions
from recsys_utils.evaluation.protocols import Timeline, rank_and_measure
from recsys_utils.evaluation.significance import MARGIN, Bootstrap, Estimate, metric_rows, verdict
from recsys_utils.models.rankers import Popularity

USUAL, DECLARED = 7, 28  # days: what other schedules are compared with; the primary contrast's


@dataclass(frozen=True)
class ScheduleStudy:
    """ndcg@10 of returning sessions under models of every age; nothing where the history is too short.

    Parameters
    ----------
    events : user_id, session, age (days), ndcg@10, stale (ndcg@10 with the user's profile of the day of training), one
        row per session and age
    schedules : days between two trainings, those the history is long enough for
    model : its name
    seed : of the bootstrap over users
    """

    events: pd.DataFrame
    schedules: tuple[int, ...]
    model: str
    seed: int

    @cached_property
    def values(self) -> pd.DataFrame:
        """Users x schedules: ndcg@10, the mean over the schedule's ages, then over a user's sessions."""
        return pd.DataFrame({days: self._under(days)[NDCG] for days in self.schedules})

    def _under(self, days: int) -> pd.DataFrame:
        """ndcg@10 and stale of each user under a schedule."""
        served = self.events[self.events["age"] < days].groupby([USER, "session"])[[NDCG, "stale"]].mean()
        return served.groupby(USER).mean()

    @cached_property
    def stale(self) -> Estimate:
        """Under the usual schedule the profiles of the day of training, less those of today."""
        served = self._under(self.usual)
        return self.bootstrap.difference(served["stale"].to_numpy(), served[NDCG].to_numpy())

    @cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(max(1, len(self.values)), self.seed)

    @property
    def usual(self) -> int:
        """The schedule that others are compared with."""
        return min(self.schedules, key=lambda days: abs(days - USUAL))

    @property
    def declared(self) -> int:
        """The schedule of the primary contrast: 28 days, or what comes nearest."""
        return min(self.gains, key=lambda days: abs(days - DECLARED))

    @cached_property
    def gains(self) -> dict[int, Estimate]:
        """ndcg@10 of each other schedule less that of the usual one."""
        usual = self.values[self.usual].to_numpy() if self.schedules else np.zeros(0)
        others = (days for days in self.schedules if days != self.usual)
        return {days: self.bootstrap.difference(self.values[days].to_numpy(), usual) for days in others}

    def contrasts(self) -> list[Contrast]:
        """Each schedule against the usual one, primary: 28 days or what comes nearest; and stale profiles."""
        if not self.gains:
            return []
        label = f"training every {self.usual} days: the user's profile of that day instead of today's"
        stale = Contrast.from_estimate("stale-profile", label, self.stale, of="ndcg@10, returning sessions")
        return [stale] + [
            Contrast.from_estimate(
                f"every-{days}", f"training every {counted(days, 'day')} instead of every {self.usual}", gain,
                of="ndcg@10, returning sessions, new ratings folded in", primary=days == self.declared,
            )
            for days, gain in self.gains.items()
        ]  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """The usual and the declared schedule, and the rarest one that is not shown to cost more than the margin."""
        if not self.gains:
            return {"measured": False}
        harmless = [days for days, gain in self.gains.items() if days > self.usual and gain.lower > -MARGIN]
        days = {"usual": self.usual, "declared": self.declared, "rarest": max(harmless, default=self.usual)}
        return {"measured": True, "users": len(self.values)} | days

    def table(self) -> pd.DataFrame:
        """days, value, ci_low, ci_high, n, verdict: the change from the usual schedule."""
        rows = [[d, e.value, e.ci_low, e.ci_high, e.n, verdict(e)] for d, e in self.gains.items()]
        return pd.DataFrame(rows, columns=["days", "value", "ci_low", "ci_high", "n", "verdict"])

    def metric_rows(self) -> pd.DataFrame:
        """The rows of metrics.csv: the level of every schedule."""
        levels = self.bootstrap.means(self.values.to_numpy()) if self.schedules else []
        found = {f"schedule={days};fold_in=yes": e for days, e in zip(self.schedules, levels, strict=True)}
        if found:
            found[f"schedule={self.usual};fold_in=no"] = self.bootstrap.mean(
                self._under(self.usual)["stale"].to_numpy()
            )
        rows = [
            metric_rows({NDCG: level}, protocol="ranking-time", model=self.model, segment="all",
                        variant=f"{variant};relevance=liked")
            for variant, level in found.items()
        ]  # fmt: skip
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=METRIC_COLUMNS)

    def figure(self) -> Figure | None:
        """ndcg@10 by age of the model, and the change by schedule."""
        if not self.gains:
            return None
        by_age = self.events.pivot_table(index=USER, columns="age", values=NDCG)
        means = self.bootstrap.means(by_age.to_numpy())
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6))
        left.plot(by_age.columns, [e.value for e in means], color="C0")
        left.fill_between(by_age.columns, [e.ci_low for e in means], [e.ci_high for e in means], color="C0", alpha=0.15)
        left.set(xlabel="age of the model, days", ylabel=NDCG, ylim=(0, None), title="Models of every age")
        dodged(right, self.table().assign(name="schedule"), "days", by="name", order=["schedule"], width=0)
        for level, dashes in ((0, "-"), (-MARGIN, "--")):
            right.axhline(level, color="0.4", linewidth=0.9, linestyle=dashes)
        right.set(xlabel="days between two trainings", ylabel=f"less training every {self.usual} days",
                  title="Schedules")  # fmt: skip
        return figure


def study_schedules(
    data: Interactions, model: Recommender, *, schedules: Sequence[int], step_days: int, warm_up_days: int,
    most_models: int, seed: int, jobs: int = 1,
) -> ScheduleStudy:  # fmt: skip
    """Test returning sessions under models of every age up to the rarest schedule's, new ratings folded in.

    All schedules are tested on the same sessions: those for which the oldest model had ``warm_up_days`` of history.

    Parameters
    ----------
    schedules : days between two trainings; multiples of ``step_days``, others are left out
    step_days : days between two models that are made
    most_models : at most this many are made; a long history is cut to the stretch with most returning users
    """
    timeline, began = Timeline(data), int(data.timestamp.min())
    returns = timeline.returns.assign(step=lambda t: (t["start"] - began) // (step_days * DAY))
    first = {days: -(-warm_up_days // step_days) + days // step_days for days in sorted(schedules)}
    kept = [days for days in first if days % step_days == 0 and days // step_days < most_models
            and returns.loc[returns["step"] >= first[days], "user"].nunique() >= MIN_USERS]  # fmt: skip
    if len(kept) < 2:
        return ScheduleStudy(pd.DataFrame(columns=[USER, "session", "age", NDCG, "stale"]), (), model.name, seed)
    ages = max(kept) // step_days
    late = returns[returns["step"] >= first[max(kept)]]
    begin, end = int(late["step"].min()), int(late["step"].max())
    users = late.groupby("step")["user"].nunique().reindex(range(begin, end + 1), fill_value=0)
    length = min(len(users), most_models - ages + 1)
    start = begin + int(np.convolve(users, np.ones(length), "valid").argmax())
    tested = late[late["step"].between(start, start + length - 1)]

    def of_one_model(made: int) -> pd.DataFrame:
        rows = tested[tested["step"].between(made, made + ages - 1)]
        if rows.empty:
            return pd.DataFrame()
        case = timeline.case(rows, began + made * step_days * DAY)
        popular, fitted = Popularity().fit(case.train), deepcopy(model).fit(case.train)
        found, stale = (
            rank_and_measure(scores_or_popular(fitted, popular, profiles), case)[[USER, NDCG]]
            for profiles in (case.profiles, case.train.user_item[case.users])
        )
        return found.assign(
            stale=stale[NDCG], session=rows["session"].to_numpy(), age=(rows["step"].to_numpy() - made) * step_days
        )

    tables = Parallel(n_jobs=jobs)(delayed(of_one_model)(made) for made in range(start - ages + 1, start + length))
    return ScheduleStudy(pd.concat(tables, ignore_index=True), tuple(kept), model.name, seed)
