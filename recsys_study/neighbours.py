"""What the notebook on neighbours asks in one call: newcomers by profile size, known users rating by rating, own files.

Where neighbours give no prediction, the mean of the profile's own ratings stands in, and the share of targets with a
prediction is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study.grid_search import setting_text
from recsys_utils.base import ITEM, RATING, USER, Scores
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
from recsys_utils.models.neighbours import Neighbours, good_films, item_mean_and_offset, leave_one_out, predict_pairs
from recsys_utils.models.rankers import Popularity
from recsys_utils.personal.own_ratings import OwnRatings

Floats = NDArray[np.float64]
Places = NDArray[np.int32]
NDCG = "ndcg@10"
BASELINES = {
    "item mean + offset": "item_mean_and_offset", "item mean": "item_mean", "user mean": "user_mean",
}  # fmt: skip
KEYS, SUMS = ["model", "rows", "profiles", "n"], ["count", "squared", "absolute", "votes"]
TUNED_ON = 200  # users whose ratings choose settings inside a training part of rating-cv5


# ---- newcomers


@dataclass(frozen=True)
class Newcomers:
    """Who plays a newcomer, in which orders, with how many ratings (protocol profile-size).

    Parameters
    ----------
    users : fold, part in the order of ``data.users``; -1 leaves a user in every fit and out of every test
    orders : of the profiles; "time" stands last, where there is one
    have : profile size -> users who are asked and have so many ratings besides their target; none without any
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
        cls, data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, *, sizes: Sequence[int], tune_size: int,
        asked: NDArray[np.bool_], has_time: bool,
    ) -> Self:  # fmt: skip
        """Of the users under ``asked`` (U,); the primary size is ``tune_size``, or the largest below it anybody has."""
        n = np.bincount(data.user, minlength=len(users))
        longest = n - target_size(n)
        have = {size: count for size in sizes if (count := int((longest[asked] >= size).sum()))}
        if not have:
            raise ValueError(f"no user has {min(sizes)} ratings besides a target of ten; give smaller `sizes`")
        users = users.copy()
        users.loc[~asked, ["fold", "part"]] = -1
        random = [f"random_{seed}" for seed in range(splits.columns.str.startswith("position_random_").sum())]
        primary = max([size for size in have if size <= tune_size], default=min(have))
        orders = (*random, *(["time"] if has_time else []))
        return cls(data, splits, users, orders, have, primary, data.users[asked & (longest >= max(have))])

    @property
    def ids(self) -> NDArray[np.object_]:
        """The users who are tested."""
        return self.data.users[self.users["fold"].to_numpy() >= 0]

    @property
    def sizes(self) -> list[int]:
        return list(self.have)

    @property
    def kinds(self) -> list[str]:
        """Orders as they are reported: the seeds of the random one are added up."""
        return ["random", *self.orders[-1:]] if self.orders[-1] == "time" else ["random"]

    @property
    def folds(self) -> range:
        return range(int(self.users["fold"].max()) + 1)

    def cases(
        self, fold: int, order: str, sizes: Sequence[int], part: Literal["validation", "test"] = "test"
    ) -> Iterator[Case]:
        return profile_size_cases(self.data, self.splits, self.users, fold, order=order, sizes=sizes, part=part)


def validation_errors(newcomers: Newcomers, grid: Sequence[Neighbours], jobs: int) -> Floats:
    """(folds, settings) mean absolute error over all targets of the validation users; NaN where a fold has none."""
    task = delayed(_validation_errors)
    return np.array(Parallel(n_jobs=jobs)(task(newcomers, grid, fold) for fold in newcomers.folds))


def _validation_errors(newcomers: Newcomers, grid: Sequence[Neighbours], fold: int) -> Floats:
    order, found = newcomers.orders[0], np.full(len(grid), np.nan)
    for case in newcomers.cases(fold, order, [newcomers.primary], "validation"):
        for test in newcomers.cases(fold, order, [newcomers.primary]):
            check_tuning(case, test)
        store, (*_, rating) = replace(grid[0]).fit(case.train), _targets(case)
        for place, rules in enumerate(grid):
            found[place] = np.abs(rating - _filled(_predicted(store.under(rules), case)[0], case)).mean()
    return found


def _targets(case: Case) -> tuple[Places, Places, NDArray[np.float32]]:
    """Row, item and rating of each target."""
    found = case.relevant_any
    return np.repeat(np.arange(len(case.users), dtype=np.int32), np.diff(found.indptr)), found.indices, found.data


def _predicted(model: Neighbours, case: Case) -> tuple[Floats, NDArray[np.int32]]:
    """For each target: prediction (NaN: none), votes."""
    row, item, _ = _targets(case)
    return predict_pairs(model, case.profiles, row, item)


def _filled(values: Floats, case: Case) -> NDArray[Any]:
    row, _, _ = _targets(case)
    return np.where(np.isnan(values), np.asarray(case.profiles.sum(axis=1)).ravel()[row] / case.n, values)


@dataclass(frozen=True)
class Judged:
    """What test users tell: by model (a setting's name, popularity or one of ``BASELINES``).

    errors : model, rows ("all" targets, or those "of" a setting: with a prediction), profiles ("random", "time"), n,
        user_id, and the sums of ``SUMS``
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
        of = self.ranks
        part = of[(of["model"] == model) & (of["n"] == n) & ((of["order"] == "time") == (order == "time"))]
        return align(part[[USER, NDCG]], self.newcomers.ids)[NDCG].to_numpy()

    def gain(self, boot: Bootstrap, order: str, n: int, targets: str = "of tuned") -> Estimate:
        """MAE of the item's mean plus offset less that of the tuned neighbours, on the same targets."""
        ours, theirs = self.sums("tuned", targets, order, n), self.sums("item mean + offset", targets, order, n)
        if not np.nansum(ours["count"]):
            raise ValueError(
                f"neighbours predict nothing from {n} ratings; give a larger `tune_size` or a smaller `min_overlap`"
            )
        return boot.ratio(theirs["absolute"] - ours["absolute"], ours["count"])

    def error_rows(self, boot: Bootstrap) -> pd.DataFrame:
        """rmse, mae, predicted_share and votes by profile size."""
        rows = []
        for order, n in ((o, n) for o in self.newcomers.kinds for n in self.newcomers.sizes):
            key = {"protocol": "profile-size", "segment": f"n={n}"}
            for name in ("tuned", "classic"):
                every, known = self.sums(name, "all", order, n), self.sums(name, f"of {name}", order, n)
                label = key | {"model": "neighbours", "variant": f"{name};order={order}"}
                rows.append(summarise_errors(every, boot, **label))
                share = {
                    "predicted_share": boot.ratio(np.nan_to_num(known["count"]) + 0 * every["count"], every["count"])
                }
                if np.nansum(known["count"]):
                    share["votes"] = boot.ratio(known["votes"], known["count"])
                    rows.append(summarise_errors(known, boot, **_on_predicted(label)))
                rows.append(metric_rows(share, **label))
            for name, model in BASELINES.items():
                every = self.sums(name, "all", order, n)
                rows.append(summarise_errors(every, boot, **key, model=model, variant=f"order={order}"))
        return pd.concat(rows)

    def list_rows(self, boot: Bootstrap) -> pd.DataFrame:
        """ndcg@10 by profile size, of popularity and of tuned neighbours."""
        labels = {"popularity": ("popularity", ""), "tuned": ("neighbours", "tuned;")}
        return pd.concat(
            metric_rows({NDCG: boot.mean(self.ndcg(name, order, n))}, protocol="profile-size", model=model,
                        variant=f"{prefix}order={order}", segment=f"n={n}")
            for name, (model, prefix) in labels.items() for order in self.newcomers.kinds for n in self.newcomers.sizes
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
        of = self.errors
        same = of[USER].isin(self.newcomers.constant) & (of["model"] == model) & (of["rows"] == "all")
        total = of[same & (of["profiles"] == "random")].groupby("n")[["absolute", "count"]].sum()
        return total["absolute"] / total["count"]


def _on_predicted(label: dict[str, str]) -> dict[str, str]:
    return label | {"variant": label["variant"] + ";targets=predicted"}


def judge(
    newcomers: Newcomers, classic: Neighbours, tuned: Sequence[Neighbours], more: Mapping[str, Neighbours],
    items: pd.DataFrame, *, imdb_rating: float, imdb_votes: int, jobs: int,
) -> Judged:  # fmt: skip
    """Test users under the classic settings and those tuned for their fold; at the primary size ``more`` as well.

    The lists there also come restricted to :func:`neighbours.good_films` (model "filtered").
    """
    task, good = delayed(_test_fold), (imdb_rating, imdb_votes)
    done = Parallel(n_jobs=jobs)(task(newcomers, classic, tuned[f], more, items, good, f) for f in newcomers.folds)
    errors, ranks = (pd.concat(part, ignore_index=True) for part in zip(*done, strict=True))
    errors["profiles"] = np.where(errors["order"] == "time", "time", "random")
    return Judged(newcomers, errors.groupby([*KEYS, USER], sort=False)[SUMS].sum().reset_index(), ranks)


def _test_fold(
    newcomers: Newcomers, classic: Neighbours, tuned: Neighbours, more: Mapping[str, Neighbours], items: pd.DataFrame,
    good: tuple[float, int], fold: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    errors, ranks = [], []
    for order in newcomers.orders:
        store: Neighbours | None = None
        for case in newcomers.cases(fold, order, newcomers.sizes):
            if store is None:  # one training part for all sizes
                store = replace(classic).fit(case.train)
                popularity = Popularity().fit(case.train)
            primary = case.n == newcomers.primary
            variants = {"classic": classic, "tuned": tuned, **(more if primary and order != "time" else {})}
            errors.append(_compare(case, store, variants).assign(order=order))
            scores: dict[str, Scores] = {
                name: model.scores(case.profiles)
                for name, model in (("popularity", popularity), ("tuned", store.under(tuned)))
            }
            if primary:
                scores["filtered"] = np.where(good_films(store, items, *good)[0], scores["tuned"], -np.inf)
            for name, values in scores.items():
                found = rank_and_measure(values, case)[[USER, NDCG]]
                ranks.append(found.assign(model=name, order=order, n=case.n))
    return pd.concat(errors), pd.concat(ranks)


def _compare(case: Case, store: Neighbours, variants: Mapping[str, Neighbours]) -> pd.DataFrame:
    """Sums of errors per user: every model on all targets, pairs on what neighbours predict."""
    row, item, rating = _targets(case)
    baseline = item_mean_and_offset(case.train, case.profiles, row, item)
    means = item_mean_and_offset(case.train, csr_matrix(case.profiles.shape), row, item)
    every, nothing = np.ones(len(rating), bool), np.full(len(rating), np.nan)
    answers, done = zip(BASELINES, (baseline, means, nothing), strict=True), {}
    judged = [(name, "all", every, values, nothing) for name, values in answers]
    for name, rules in variants.items():
        text = setting_text(rules)
        if text not in done:
            done[text] = _predicted(store.under(rules), case)
        values, votes = done[text]
        known = ~np.isnan(values)
        judged += [(name, "all", every, values, votes), (name, f"of {name}", known, values, votes)]
        judged += [("item mean + offset", f"of {name}", known, baseline, nothing)]
    parts = []
    for name, rows, keep, values, votes in judged:
        sums = metrics.error_sums(row[keep], rating[keep], _filled(values, case)[keep], len(case.users))
        sums["votes"] = np.bincount(row[keep], votes[keep], len(case.users)).astype(np.float64)
        parts.append(pd.DataFrame({USER: case.user_ids, "model": name, "rows": rows, "n": case.n} | sums))
    return pd.concat(parts)


# ---- known users


@dataclass(frozen=True)
class KnownUsers:
    """rating-cv5: every rating predicted from the user's other ratings, which are in the fit as well.

    predictions : a row a rating: row, tuned, votes_tuned, classic, votes_classic (NaN: no prediction) and ``BASELINES``
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
        """Sums of errors by user for each (model, variant); the user's mean stands in where nothing is predicted."""
        data, found, every = self.data, {}, np.ones(len(self.data), bool)
        judged = [("neighbours", name, keep) for name in self._known for keep in (every, self._known[name])]
        offset, mean, own = BASELINES
        judged += [("", offset, every), ("", offset, self._known["tuned"]), ("", mean, every), ("", own, every)]
        for model, name, keep in judged:
            values = self.predictions[name].fillna(self.predictions["user mean"]).to_numpy()[keep]
            parts = [name] * bool(model) + ["targets=predicted"] * (keep is not every)
            sums = metrics.error_sums(data.user[keep], data.rating[keep], values, len(data.users))
            found[model or BASELINES[name], ";".join(parts)] = sums
        return found

    def rows(self, boot: Bootstrap) -> pd.DataFrame:
        """rmse and mae of every model, predicted_share and votes of the neighbours."""
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
            rows.append(metric_rows(shares, protocol="rating-cv5", model="neighbours", variant=name))
        return pd.concat(rows)

    def errors(self) -> pd.DataFrame:
        """user_id, model, variant and the sums, a row a user and model."""
        return pd.concat(
            [
                pd.DataFrame({USER: self.data.users, "model": model, "variant": variant} | sums)
                for (model, variant), sums in self.sums.items()
            ],
            ignore_index=True,
        )


def predict_known(
    data: Interactions, fold: NDArray[np.int8], classic: Neighbours, options: Sequence[Neighbours],
    shuffled: NDArray[np.int64], jobs: int,
) -> KnownUsers:  # fmt: skip
    """Predict each fold of the ratings (N,) from the others, under classic settings and the best of ``options``.

    Ratings of a negative fold, all those of a user, are in every fit and are not predicted. Settings are chosen inside
    each training part, on a further fold of the first users of ``shuffled``.
    """
    tuning = np.isin(data.user, shuffled[:TUNED_ON])
    task, n = delayed(_known_fold), int(fold.max()) + 1
    done = Parallel(n_jobs=jobs)(task(data, fold == f, fold == (f + 1) % n, tuning, classic, options) for f in range(n))
    table = pd.concat([part for part, _ in done]).sort_values("row").reset_index(drop=True)
    predicted = np.bincount(data.user, fold >= 0, len(data.users)) > 0
    return KnownUsers(data if predicted.all() else data.alone(predicted), table, sorted({text for _, text in done}))


def _known_fold(
    data: Interactions, test: NDArray[np.bool_], further: NDArray[np.bool_], tuning: NDArray[np.bool_],
    classic: Neighbours, options: Sequence[Neighbours],
) -> tuple[pd.DataFrame, str]:  # fmt: skip
    rules = {"classic": classic, "tuned": _tuned(data.where(~test & ~further), data.where(further & tuning), options)}
    train, asked = data.where(~test), data.where(test)
    store, profiles = replace(classic).fit(train), _rows(train, asked)
    found: dict[str, NDArray[Any]] = {"row": np.flatnonzero(test)}
    for name, setting in rules.items():
        values, votes = predict_pairs(store.under(setting), profiles, asked.user, asked.item)
        found |= {name: values.clip(data.scale.lo, data.scale.hi), f"votes_{name}": votes}
    for name, known in zip(BASELINES, (profiles, csr_matrix(train.shape)), strict=False):
        found[name] = item_mean_and_offset(train, known, asked.user, asked.item)
    return pd.DataFrame(found | {"user mean": _user_means(train)[asked.user]}), setting_text(rules["tuned"])


def _tuned(inner: Interactions, held: Interactions, options: Sequence[Neighbours]) -> Neighbours:
    """The option that predicts the held ratings best; the user's mean stands in where it predicts nothing."""
    store, own = replace(options[0]).fit(inner), _user_means(inner)[held.user]
    profiles = _rows(inner, held)
    tried = [predict_pairs(store.under(s), profiles, held.user, held.item)[0] for s in options]
    errors = [np.abs(np.where(np.isnan(p), own, p) - held.rating).mean() for p in tried]
    return options[int(np.argmin(errors))]


def _rows(train: Interactions, asked: Interactions) -> csr_matrix:
    """(U, I) the training ratings of the users who are asked; the others' rows are empty."""
    return train.of_users(np.unique(asked.user)).user_item


def _user_means(train: Interactions) -> Floats:
    """(U,) mean rating; that of all ratings for users without any."""
    n = np.bincount(train.user, minlength=len(train.users))
    sums = np.bincount(train.user, weights=train.rating, minlength=len(train.users))
    return np.where(n > 0, sums / np.maximum(n, 1), train.rating.mean())


# ---- files of one's own


def judge_file(model: Neighbours, own: OwnRatings, items: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Each rating of a file from its others: how many have a prediction, and their MAE with its interval."""
    ids = items[ITEM].tolist()
    place = pd.Index(ids).get_indexer(pd.Index(own.frame[ITEM]))
    one = leave_one_out(model, own.profile(ids)).set_index("item").loc[place]
    each = one[one["predicted"].notna()]
    lo, hi, _ = model.bounds
    off = (each["predicted"].clip(lo, hi) - each[RATING]).abs().to_numpy(np.float64)
    mae = Bootstrap(max(1, len(off)), seed=seed).mean(off if len(off) else np.zeros(1))
    theirs = (own.raw["hi"].iloc[0] - own.raw["lo"].iloc[0]) / (hi - lo)
    what = {"ratings": len(one), "predicted share": len(each) / len(one), "votes": each["votes"].mean()}
    return what | mae.evidence("MAE") | {"MAE on the file's scale": mae.value * theirs}
