"""User KNN (Pearson): newcomers by profile size, known users rating by rating.

Where user KNN gives no prediction, the mean of the profile's own ratings is used instead, and the share of targets with
a prediction is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study import figures
from recsys_study.findings import Contrast
from recsys_study.grid_search import setting_text
from recsys_study.stage_files import Population
from recsys_utils.base import USER, Floats
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import (
    Case,
    align,
    check_tuning,
    profile_size_cases,
    rank_and_measure,
    summarise_errors,
    target_size,
)
from recsys_utils.evaluation.significance import Bootstrap, Estimate, metric_rows
from recsys_utils.models.neighbours import Neighbours, item_mean_and_offset, predict_pairs
from recsys_utils.models.rankers import Popularity

Positions = NDArray[np.int32]
Predicted = tuple[Floats, NDArray[Any]]  # NaN where there is no prediction, and votes
NDCG = "ndcg@10"
BASELINES = {
    "item mean + offset": "item_mean_and_offset", "item mean": "item_mean", "user mean": "user_mean",
}  # fmt: skip
KEYS, SUMS = ["model", "rows", "order", "n"], ["count", "squared", "absolute", "votes"]
TUNED_ON = 200  # users whose ratings choose settings inside a training part of rating-cv5


# ---- newcomers


@dataclass(frozen=True)
class Newcomers:
    """Who is tested as a newcomer, in which orders, with how many ratings (protocol profile-size).

    Parameters
    ----------
    users : fold, part in the order of ``data.users``; -1 leaves a user in every fit and out of every test
    orders : of the profiles; "time" last, where there is one
    have : profile size -> tested users with that many ratings besides their target; sizes that none has are left out
    primary : the size on which settings are chosen and that of the primary contrast
    constant : user ids of those who have every size
    """

    data: Interactions
    splits: pd.DataFrame
    users: pd.DataFrame
    orders: tuple[str, ...]
    have: Mapping[int, int]
    primary: int
    constant: NDArray[np.object_]

    @classmethod
    def of(
        cls, everyone: Population, users: pd.DataFrame, *, sizes: Sequence[int], tune_size: int, has_time: bool
    ) -> Self:
        """The primary size is ``tune_size``, or the largest below it that anybody has."""
        data, tested = everyone.data, everyone.tested
        n = np.bincount(data.user, minlength=len(users))
        longest = n - target_size(n)
        have = {size: count for size in sizes if (count := int((longest[tested] >= size).sum()))}
        if not have:
            raise ValueError(f"no user has {min(sizes)} ratings besides a target of ten; give smaller `sizes`")
        users = users.copy()
        users.loc[~tested, ["fold", "part"]] = -1
        seeds = range(everyone.splits.columns.str.startswith("position_random_").sum())
        orders = (*(f"random_{seed}" for seed in seeds), *(["time"] if has_time else []))
        primary = max([size for size in have if size <= tune_size], default=min(have))
        return cls(data, everyone.splits, users, orders, have, primary, data.users[tested & (longest >= max(have))])

    @property
    def ids(self) -> NDArray[np.object_]:
        """The users who are tested."""
        return self.data.users[self.users["fold"].to_numpy() >= 0]

    @property
    def kinds(self) -> list[str]:
        """Orders as they are reported: the seeds of the random one are added up."""
        return list(dict.fromkeys(_kind(order) for order in self.orders))

    @property
    def folds(self) -> range:
        return range(int(self.users["fold"].max()) + 1)

    def cases(
        self, fold: int, order: str, sizes: Sequence[int], part: Literal["validation", "test"] = "test"
    ) -> Iterator[Case]:
        return profile_size_cases(self.data, self.splits, self.users, fold, order=order, sizes=sizes, part=part)


def _kind(order: str) -> str:
    return order.partition("_")[0]


def validation_errors(newcomers: Newcomers, grid: Sequence[Neighbours], jobs: int) -> Floats:
    """(folds, settings) mean absolute error over all targets of the validation users; NaN where a fold has none."""
    task = delayed(_validation_errors)
    return np.array(Parallel(n_jobs=jobs)(task(newcomers, grid, fold) for fold in newcomers.folds))


def _validation_errors(newcomers: Newcomers, grid: Sequence[Neighbours], fold: int) -> Floats:
    order, found = newcomers.orders[0], np.full(len(grid), np.nan)
    for case in newcomers.cases(fold, order, [newcomers.primary], "validation"):
        for test in newcomers.cases(fold, order, [newcomers.primary]):
            check_tuning(case, test)
        store, (row, item, rating) = replace(grid[0]).fit(case.train), _targets(case)
        for place, rules in enumerate(grid):
            values, _ = predict_pairs(store.under(rules), case.profiles, row, item)
            found[place] = np.abs(rating - _filled(values, case, row)).mean()
    return found


def choose(
    grid: Sequence[Neighbours], errors: Floats, classic: Neighbours
) -> tuple[Neighbours, list[Neighbours], pd.DataFrame]:
    """The best setting over all folds, that of each fold (classic where nobody validates), and a table of them."""
    tuned = [grid[int(np.nanargmin(row))] if np.isfinite(row).any() else classic for row in errors]
    overall = grid[int(np.nanargmin(np.nanmean(errors, axis=0)))]
    names = [*(setting_text(setting) for setting in tuned), setting_text(overall)]
    best = [*np.nanmin(errors, axis=1), np.nanmin(np.nanmean(errors, axis=0))]
    folds = [*map(str, range(len(tuned))), "all"]
    return overall, tuned, pd.DataFrame({"fold": folds, "chosen": names, "validation MAE": best})


def _targets(case: Case) -> tuple[Positions, Positions, NDArray[np.float32]]:
    """Row, item and rating of each target."""
    found = case.relevant_any
    return np.repeat(np.arange(len(case.users), dtype=np.int32), np.diff(found.indptr)), found.indices, found.data


def _filled(values: Floats, case: Case, row: Positions) -> NDArray[Any]:
    return np.where(np.isnan(values), np.asarray(case.profiles.sum(axis=1)).ravel()[row] / case.n, values)


@dataclass(frozen=True)
class Results:
    """Errors and lists of the test users, by model (a setting's name, popularity or one of ``BASELINES``).

    errors : the ``KEYS`` (rows: "all" targets, or those "of" a setting: with a prediction), user_id, sums of ``SUMS``
    ranks : user_id, ndcg@10, model, order, n
    """

    newcomers: Newcomers
    errors: pd.DataFrame
    ranks: pd.DataFrame

    @cached_property
    def _by_key(self) -> dict[Any, pd.DataFrame]:
        users = self.newcomers.ids
        return {key: part.set_index(USER)[SUMS].reindex(users) for key, part in self.errors.groupby(KEYS)}

    def sums(self, model: str, rows: str, order: str, n: int) -> dict[str, Floats]:
        """Sums of errors by user (U,), NaN for users without such a profile."""
        found = self._by_key[model, rows, order, n]
        return {name: found[name].to_numpy() for name in SUMS}

    def ndcg(self, model: str, order: str, n: int) -> Floats:
        """(U,) ndcg@10, the mean over the seeds of an order."""
        part = self.ranks.query("model == @model and order == @order and n == @n")
        return align(part[[USER, NDCG]], self.newcomers.ids)[NDCG].to_numpy()

    def gain(self, boot: Bootstrap, order: str, n: int, targets: str = "predicted") -> Estimate:
        """MAE of the item's mean plus offset less that of tuned user KNN, on the same targets."""
        rows = targets.replace("predicted", "of tuned")
        ours, theirs = self.sums("tuned", rows, order, n), self.sums("item mean + offset", rows, order, n)
        if not np.nansum(ours["count"]):
            raise ValueError(
                f"user KNN predicts nothing from {n} ratings; give a larger `tune_size` or a smaller `min_overlap`"
            )
        return boot.ratio(theirs["absolute"] - ours["absolute"], ours["count"])

    def error_rows(self, boot: Bootstrap) -> pd.DataFrame:
        """rmse, mae, predicted_share and votes by profile size."""
        rows = []
        for order, n in ((o, n) for o in self.newcomers.kinds for n in self.newcomers.have):
            key = {"protocol": "profile-size", "segment": f"n={n}"}
            for name in ("tuned", "classic"):
                every, known = self.sums(name, "all", order, n), self.sums(name, f"of {name}", order, n)
                label = key | {"model": Neighbours.name, "variant": f"{name};order={order}"}
                rows.append(summarise_errors(every, boot, **label))
                count = np.nan_to_num(known["count"]) + 0 * every["count"]
                shares = {"predicted_share": boot.ratio(count, every["count"])}
                if np.nansum(known["count"]):
                    shares["votes"] = boot.ratio(known["votes"], known["count"])
                    predicted = label | {"variant": f"{label['variant']};targets=predicted"}
                    rows.append(summarise_errors(known, boot, **predicted))
                rows.append(metric_rows(shares, **label))
            for name, model in BASELINES.items():
                every = self.sums(name, "all", order, n)
                rows.append(summarise_errors(every, boot, **key, model=model, variant=f"order={order}"))
        return pd.concat(rows)

    def list_rows(self, boot: Bootstrap) -> pd.DataFrame:
        """ndcg@10 by profile size, of popularity and of tuned user KNN."""
        labels = {"popularity": ("popularity", ""), "tuned": (Neighbours.name, "tuned;")}
        return pd.concat(
            metric_rows({NDCG: boot.mean(self.ndcg(name, order, n))}, protocol="profile-size", model=model,
                        variant=f"{prefix}order={order}", segment=f"n={n}")
            for name, (model, prefix) in labels.items() for order in self.newcomers.kinds for n in self.newcomers.have
        )  # fmt: skip

    def settings(self, boot: Bootstrap, names: Sequence[str]) -> pd.DataFrame:
        """Each setting's MAE less that of the classic one, paired, over all targets at the primary size."""
        n, rows = self.newcomers.primary, []
        base = self.sums("classic", "all", "random", n)
        for name in names:
            other, known = self.sums(name, "all", "random", n), self.sums(name, f"of {name}", "random", n)
            change = boot.ratio(other["absolute"] - base["absolute"], base["count"])
            share = np.nansum(known["count"]) / np.nansum(other["count"])
            rows.append({"setting": name} | change.evidence("MAE - classic MAE") | {"predicted share": share})
        return pd.DataFrame(rows)

    def constant_cohort(self, model: str) -> pd.Series:
        """MAE by n over all targets of the users who have every size, random order."""
        of = self.errors.query("model == @model and rows == 'all' and order == 'random'")
        total = of[of[USER].isin(self.newcomers.constant)].groupby("n")[["absolute", "count"]].sum()
        return total["absolute"] / total["count"]

    def contrasts(self, boot: Bootstrap, margin: float) -> list[Contrast]:
        """User KNN against the item's mean plus offset by rating error, and against popularity by ranking."""
        n, largest = self.newcomers.primary, max(self.newcomers.have)
        compared = {
            "neighbours-item-mean": ("random", n, "predicted"), "all-targets": ("random", n, "all"),
            "largest-profile": ("random", largest, "all"), "time-order": ("time", n, "predicted"),
        }  # fmt: skip
        found = [
            Contrast.from_estimate(
                id, "user KNN instead of the item's mean plus the user's offset", self.gain(boot, order, size, what),
                of=f"MAE, profiles of {size} ratings, {order} order, {what} targets",
                unit="rating points", margin=margin, primary=id == "neighbours-item-mean",
            )
            for id, (order, size, what) in compared.items() if order in self.newcomers.kinds
        ]  # fmt: skip
        label, of = "lists of user KNN instead of popularity", "ndcg@10, profiles of {} ratings, random order"
        for size in self.newcomers.have:
            difference = boot.difference(*(self.ndcg(model, "random", size) for model in ("tuned", "popularity")))
            found.append(Contrast.from_estimate(f"lists-{size}", label, difference, of=of.format(size)))
        return found


def evaluate(
    newcomers: Newcomers, classic: Neighbours, tuned: Sequence[Neighbours], more: Mapping[str, Neighbours], jobs: int
) -> Results:
    """Test users under the classic settings and those tuned for their fold; at the primary size ``more`` as well."""
    task = delayed(_test_fold)
    done = Parallel(n_jobs=jobs)(task(newcomers, classic, tuned[f], more, f) for f in newcomers.folds)
    errors, ranks = (pd.concat(part, ignore_index=True) for part in zip(*done, strict=True))
    return Results(newcomers, errors.groupby([*KEYS, USER], sort=False)[SUMS].sum().reset_index(), ranks)


def _test_fold(
    newcomers: Newcomers, classic: Neighbours, tuned: Neighbours, more: Mapping[str, Neighbours], fold: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    errors, ranks = [], []
    for order in newcomers.orders:
        store: Neighbours | None = None
        for case in newcomers.cases(fold, order, list(newcomers.have)):
            if store is None:  # one training part for all sizes
                store, popularity = replace(classic).fit(case.train), Popularity().fit(case.train)
            extra = more if case.n == newcomers.primary and order != "time" else {}
            variants = {"classic": classic, "tuned": tuned, **extra}
            errors.append(_compare(case, store, variants).assign(order=_kind(order)))
            for name, model in (("popularity", popularity), ("tuned", store.under(tuned))):
                found = rank_and_measure(model.scores(case.profiles), case)[[USER, NDCG]]
                ranks.append(found.assign(model=name, order=_kind(order), n=case.n))
    return pd.concat(errors), pd.concat(ranks)


def _compare(case: Case, store: Neighbours, variants: Mapping[str, Neighbours]) -> pd.DataFrame:
    """Sums of errors per user: every model on all targets, pairs on what user KNN predicts."""
    row, item, rating = _targets(case)
    baseline = item_mean_and_offset(case.train, case.profiles, row, item)
    means = item_mean_and_offset(case.train, csr_matrix(case.profiles.shape), row, item)
    every, nothing = np.ones(len(rating), bool), np.full(len(rating), np.nan)
    parts = [(name, "all", every, v, nothing) for name, v in zip(BASELINES, (baseline, means, nothing), strict=True)]
    done: dict[str, Predicted] = {}
    for name, rules in variants.items():
        text = setting_text(rules)
        done[text] = values, votes = done.get(text) or predict_pairs(store.under(rules), case.profiles, row, item)
        known = ~np.isnan(values)
        parts += [(name, "all", every, values, votes), (name, f"of {name}", known, values, votes)]
        parts += [("item mean + offset", f"of {name}", known, baseline, nothing)]
    tables = []
    for name, rows, keep, values, votes in parts:
        sums = metrics.error_sums(row[keep], rating[keep], _filled(values, case, row)[keep], len(case.users))
        sums["votes"] = np.bincount(row[keep], votes[keep], len(case.users)).astype(np.float64)
        tables.append(pd.DataFrame({USER: case.user_ids, "model": name, "rows": rows, "n": case.n} | sums))
    return pd.concat(tables)


# ---- known users


@dataclass(frozen=True)
class KnownUsers:
    """rating-cv5: every rating predicted from the user's other ratings, which are in the fit as well.

    predictions : one row per rating: row, tuned and classic (NaN: none), their votes, ``BASELINES``
    chosen : the settings tuned inside each training part, as text
    """

    data: Interactions
    predictions: pd.DataFrame
    chosen: list[str]

    @cached_property
    def _known(self) -> dict[str, NDArray[np.bool_]]:
        return {name: self.predictions[name].notna().to_numpy() for name in ("tuned", "classic")}

    @cached_property
    def sums(self) -> dict[tuple[str, str], dict[str, Floats]]:
        """Sums of errors by user for each (model, variant); the user's mean replaces a missing prediction."""
        data, found, every = self.data, {}, np.ones(len(self.data), bool)
        offset, mean, own = BASELINES
        parts = [(name, keep) for name in self._known for keep in (every, self._known[name])]
        parts += [(offset, every), (offset, self._known["tuned"]), (mean, every), (own, every)]
        for name, keep in parts:
            values = self.predictions[name].fillna(self.predictions["user mean"]).to_numpy()[keep]
            labels = [name] * (name in self._known) + ["targets=predicted"] * (keep is not every)
            sums = metrics.error_sums(data.user[keep], data.rating[keep], values, len(data.users))
            found[BASELINES.get(name, Neighbours.name), ";".join(labels)] = sums
        return found

    def rows(self, boot: Bootstrap) -> pd.DataFrame:
        """rmse and mae of every model, predicted_share and votes of user KNN."""
        rows = [
            summarise_errors(sums, boot, protocol="rating-cv5", model=model, variant=variant)
            for (model, variant), sums in self.sums.items()
        ]
        user, n_users = self.data.user, len(self.data.users)
        total = np.bincount(user, minlength=n_users).astype(np.float64)
        for name, mask in self._known.items():
            weights = mask, mask * self.predictions[f"votes_{name}"]
            known, votes = (np.bincount(user, w, n_users).astype(np.float64) for w in weights)
            shares = {"predicted_share": boot.ratio(known, total), "votes": boot.ratio(votes, known)}
            rows.append(metric_rows(shares, protocol="rating-cv5", model=Neighbours.name, variant=name))
        return pd.concat(rows)

    def errors(self) -> pd.DataFrame:
        """user_id, model, variant and the sums of the tuned setting, one row per user."""
        key = {USER: self.data.users, "model": Neighbours.name, "variant": "tuned"}
        return pd.DataFrame(key | self.sums[Neighbours.name, "tuned"])


def predict_known(
    everyone: Population, classic: Neighbours, options: Sequence[Neighbours], shuffled: NDArray[np.int64], jobs: int
) -> KnownUsers:
    """Predict each fold of the tested users' ratings from all others, under classic settings and the best ``options``.

    Settings are chosen inside each training part, on a further fold of the first tested users of ``shuffled``.
    """
    data, fold = everyone.data, everyone.folds
    tuning = np.isin(data.user, shuffled[everyone.tested[shuffled]][:TUNED_ON])
    task, n = delayed(_known_fold), int(fold.max()) + 1
    done = Parallel(n_jobs=jobs)(task(data, fold == f, fold == (f + 1) % n, tuning, classic, options) for f in range(n))
    table = pd.concat([part for part, _ in done]).sort_values("row").reset_index(drop=True)
    return KnownUsers(everyone.tested_alone, table, sorted({text for _, text in done}))


def _known_fold(
    data: Interactions, test: NDArray[np.bool_], further: NDArray[np.bool_], tuning: NDArray[np.bool_],
    classic: Neighbours, options: Sequence[Neighbours],
) -> tuple[pd.DataFrame, str]:  # fmt: skip
    rules = {"classic": classic, "tuned": _tuned(data.where(~test & ~further), data.where(further & tuning), options)}
    train, targets = data.where(~test), data.where(test)
    store, profiles = replace(classic).fit(train), _rows(train, targets)
    found: dict[str, NDArray[Any]] = {"row": np.flatnonzero(test)}
    for name, setting in rules.items():
        values, votes = predict_pairs(store.under(setting), profiles, targets.user, targets.item)
        found |= {name: values.clip(data.scale.lo, data.scale.hi), f"votes_{name}": votes}
    for name, known in zip(BASELINES, (profiles, csr_matrix(train.shape)), strict=False):
        found[name] = item_mean_and_offset(train, known, targets.user, targets.item)
    return pd.DataFrame(found | {"user mean": _user_means(train)[targets.user]}), setting_text(rules["tuned"])


def _tuned(inner: Interactions, held: Interactions, options: Sequence[Neighbours]) -> Neighbours:
    """The option that predicts the held ratings best; the user's mean replaces a missing prediction."""
    store, own = replace(options[0]).fit(inner), _user_means(inner)[held.user]
    profiles = _rows(inner, held)
    tried = [predict_pairs(store.under(s), profiles, held.user, held.item)[0] for s in options]
    errors = [np.abs(np.where(np.isnan(p), own, p) - held.rating).mean() for p in tried]
    return options[int(np.argmin(errors))]


def _rows(train: Interactions, targets: Interactions) -> csr_matrix:
    """(U, I) the training ratings of the users who have targets; the others' rows are empty."""
    return train.of_users(np.unique(targets.user)).user_item


def _user_means(train: Interactions) -> Floats:
    """(U,) mean rating; that of all ratings for users without any."""
    n = np.bincount(train.user, minlength=len(train.users))
    sums = np.bincount(train.user, weights=train.rating, minlength=len(train.users))
    return np.where(n > 0, sums / np.maximum(n, 1), train.rating.mean())


# ---- tables and figures


def profile_table(rows: pd.DataFrame) -> pd.DataFrame:
    """MAE, share of targets predicted and votes by profile size, random order, one row per model."""
    shown = rows.query("metric in ['mae', 'predicted_share', 'votes'] and variant.str.contains('order=random')")
    names = (shown["model"] + " " + shown["variant"].str.replace(";?order=random", "", regex=True)).str.strip()
    n = shown["segment"].str.removeprefix("n=").astype(int)
    return shown.assign(model=names, n=n).pivot_table("value", ["metric", "model"], "n", sort=False).reset_index()


def profile_figure(results: Results, rows: pd.DataFrame) -> Figure:
    """Error, share of targets predicted and ndcg@10 by profile size; dotted: the users who have every size."""
    names = {
        "neighbours tuned;order=random": "user KNN, tuned", "neighbours classic;order=random": "user KNN, classic",
        "item_mean_and_offset order=random": "item mean + offset", "user_mean order=random": "user mean",
        "popularity order=random": "popularity",
    }  # fmt: skip
    looks = {name: figures.look("neighbours" if "KNN" in name else name) for name in names.values()}
    looks["user KNN, classic"] |= {"markerfacecolor": "white", "linestyle": "--"}
    shown = rows.assign(
        name=(rows["model"] + " " + rows["variant"]).map(names), n=rows["segment"].str.removeprefix("n=").astype(int)
    ).dropna(subset="name")
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.6))
    for ax, metric in zip(axes, ("mae", "predicted_share", NDCG), strict=True):
        figures.dodged(ax, shown[shown["metric"] == metric], "n", by="name", order=list(looks), width=0, looks=looks)
        ax.set(xlabel="ratings in the profile, n", xscale="log")
        ax.set_xticks(list(results.newcomers.have), map(str, results.newcomers.have))
        ax.minorticks_off()
        ax.legend()
    for name in list(looks)[:4]:
        cohort = results.constant_cohort(name.removeprefix("user KNN, "))
        axes[0].plot(cohort, color=looks[name]["color"], linestyle=":", linewidth=1.2)
    axes[0].set(ylabel="MAE (rating points), all targets")
    axes[1].set(ylabel="share of targets predicted", ylim=(0, 1))
    axes[2].set(ylabel=NDCG, ylim=(0, None))
    return fig


def settings_figure(settings: pd.DataFrame) -> Figure:
    """Change of the error when one setting at a time is moved away from the classic ones."""
    fig, axes = plt.subplots(1, 4, figsize=(11, 3.2), sharey=True, gridspec_kw={"width_ratios": [5, 4, 3, 2.2]})
    for ax, family in zip(axes, ("k=", "min_overlap=", "shrinkage=", ""), strict=True):
        part = settings[
            settings["setting"].str.startswith(family) if family else ~settings["setting"].str.contains("=")
        ]
        bars = [part["value"] - part["ci_low"], part["ci_high"] - part["value"]]
        ax.errorbar(range(len(part)), part["value"], bars, marker="o", capsize=3, linestyle="-" if family else "none")
        ax.axhline(0, color="0.5", linewidth=0.8)
        ax.set_xticks(range(len(part)), part["setting"].str.removeprefix(family))
        ax.set(xlabel=family.strip("=") or "form, all tuned", xlim=(-0.5, len(part) - 0.5))
    axes[0].set(ylabel="MAE less that of classic (rating points)")
    return fig
