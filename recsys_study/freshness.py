"""What age costs: models of some days ago, lists made before the last ratings, users whom no model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import USER, Recommender, Scores, child_rng
from recsys_utils.data.interactions import DAY, Interactions
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import (
    Case,
    Timeline,
    measure,
    profile_size_cases,
    rank_and_measure,
    rank_lists,
    summarise,
    tie_order,
)
from recsys_utils.evaluation.significance import Bootstrap, Estimate, minimum_detectable_difference, verdict
from recsys_utils.models.rankers import Popularity
from recsys_utils.models.surprise_models import KNN, SVD, SurpriseModel, predict_by_surprise

NDCG = "ndcg@10"
FRESH = "a fresh model"
MIN_USERS = 20  # an age is studied if this many users came back late enough in the history
THINNED = ("users", "ratings")


class TooShort(ValueError):
    """The history is too short, or too few users came back, for the question."""


def judged(estimate: Estimate) -> dict[str, Any]:
    """The columns of a table of differences: value, ci_low, ci_high, n, mdd, verdict."""
    row = {name: getattr(estimate, name) for name in ("value", "ci_low", "ci_high", "n")}
    return row | {"mdd": minimum_detectable_difference(estimate), "verdict": verdict(estimate)}


def _scores(model: Recommender, popularity: Popularity, profiles: csr_matrix) -> Scores:
    """The model's scores; popularity for a profile it has nothing to say about."""
    scores = model.scores(profiles)
    silent = ~scores.any(axis=1)
    scores[silent] = popularity.scores(profiles[silent])
    return scores


# ---- models of some age


def age_variant(age: int, *, fold_in: bool = True, thinned: str = "", size_of: int = 0) -> str:
    """A model's name: its age in days, whether today's profile is folded in, how it was made as small as an old one.

    >>> age_variant(30), age_variant(0, thinned="users", size_of=30)
    ('age=30;fold_in=yes', 'age=0;fold_in=yes;thinned=users;size_of=30')
    """
    name = f"age={age};fold_in={'yes' if fold_in else 'no'}"
    return name + f";thinned={thinned};size_of={size_of}" if thinned else name


@dataclass(frozen=True)
class AgeStudy:
    """What :func:`study_ages` measured.

    Parameters
    ----------
    model : its name
    events : a row per returning session and variant: user_id, variant, ndcg@10, ratings (size of the training part),
        unknown (the user's row was still empty when the model was made)
    ages : days, those the history is long enough for
    refits : how often the fresh model was made
    seed : of the bootstrap over users
    """

    model: str
    events: pd.DataFrame
    ages: tuple[int, ...]
    refits: int
    seed: int

    @cached_property
    def values(self) -> pd.DataFrame:
        """Users x variants: ndcg@10, the mean over a user's sessions."""
        return self.events.pivot_table(index=USER, columns="variant", values=NDCG)

    @cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(len(self.values), seed=self.seed)

    def difference(self, a: str, b: str) -> Estimate:
        """ndcg@10 of variant a less that of b at the same sessions."""
        return self.bootstrap.difference(self.values[a].to_numpy(), self.values[b].to_numpy())

    @cached_property
    def losses(self) -> pd.DataFrame:
        """Columns age, against, then :func:`judged`: an old model, today's profile folded in, less other models.

        ``against`` a fresh model; from 2 days on fresh ones of its size (fewer users, fewer ratings). Rows *row of
        then* are the other way round: the old model with the user's row of then, less folding in today's profile.
        """
        rows = []
        for age in self.ages:
            old, stale = age_variant(age), age_variant(age, fold_in=False)
            pairs = {FRESH: (old, age_variant(0)), "row of then": (stale, old)}
            pairs |= (
                {}
                if age <= 1
                else {f"{FRESH}, fewer {t}": (old, age_variant(0, thinned=t, size_of=age)) for t in THINNED}
            )
            rows += [{"age": age, "against": n} | judged(self.difference(*p)) for n, p in pairs.items()]
        return pd.DataFrame(rows)

    def longest_safe_age(self) -> int:
        """The largest age up to which no age may cost more than the margin; 0 if already the smallest may."""
        losses = self.losses[self.losses["against"] == FRESH]
        safe = losses["verdict"].isin(["tie", "not worse", "better"]).cumprod() > 0
        return int(losses.loc[safe, "age"].max()) if safe.any() else 0

    def metric_rows(self) -> pd.DataFrame:
        """The rows of metrics.csv."""
        tables = [
            summarise(part[[USER, NDCG]], self.bootstrap, users=self.values.index, protocol="ranking-time",
                      model=self.model, variant=f"{variant};relevance=liked")
            for variant, part in self.events.groupby("variant")
        ]  # fmt: skip
        return pd.concat(tables, ignore_index=True)


def study_ages(
    data: Interactions, model: Recommender, *, ages: Sequence[int], refit_days: int, warm_up_days: int,
    max_refits: int, seed: int, jobs: int = 1,
) -> AgeStudy:  # fmt: skip
    """Rank for returning sessions (``protocols.Timeline``) with models made some days before the last refit.

    The fresh model (age 0) is made every ``refit_days`` and serves the sessions that begin before the next one. A model
    of age a knows what was known a days earlier. All variants meet the same sessions: those for which the oldest model
    had ``warm_up_days`` of history. An age that leaves fewer than ``MIN_USERS`` users is left out. A profile that tells
    the model nothing gets the popular items of the same training part.

    Parameters
    ----------
    model : unfitted
    ages : days >= 1
    max_refits : at most so many refits, those with most returning users, to bound the cost of long histories
    seed : of thinning and bootstrap

    Raises
    ------
    TooShort : not even one age leaves enough users.
    """
    timeline, began = Timeline(data), int(data.timestamp.min())
    returns = timeline.returns.assign(day=lambda t: (t["start"] - began) // (refit_days * DAY) * refit_days)
    users = {a: returns.loc[returns["day"] >= a + warm_up_days, "user"].nunique() for a in sorted(ages)}
    kept = [age for age, n in users.items() if n >= MIN_USERS]
    if not kept:
        raise TooShort(f"fewer than {MIN_USERS} users came back after more than {min(ages) + warm_up_days} days")
    users_at = returns[returns["day"] >= max(kept) + warm_up_days].groupby("day")["user"].nunique()
    days = sorted(users_at.nlargest(max_refits).index)
    tables = Parallel(n_jobs=jobs)(
        delayed(_at_refit)(timeline, returns[returns["day"] == day], began + int(day) * DAY, model, kept, seed)
        for day in days
    )
    return AgeStudy(model.name, pd.concat(tables, ignore_index=True), tuple(kept), len(days), seed)


def _at_refit(
    timeline: Timeline, returns: pd.DataFrame, moment: int, model: Recommender, ages: Sequence[int], seed: int
) -> pd.DataFrame:
    """The events of :class:`AgeStudy` between one refit and the next."""
    case = timeline.case(returns, moment)
    tables = []

    def record(train: Interactions, variants: dict[str, csr_matrix]) -> None:
        popular, fitted = Popularity().fit(train), deepcopy(model).fit(train)
        for name, profiles in variants.items():
            found = rank_and_measure(_scores(fitted, popular, profiles), case)[[USER, NDCG]]
            unknown = np.diff(profiles.indptr) == 0
            tables.append(found.assign(variant=name, ratings=len(train), unknown=unknown))

    record(case.train, {age_variant(0): case.profiles})
    for age in ages:
        old = timeline.before(moment - age * DAY)
        then = old.user_item[case.users]
        record(old, {age_variant(age): case.profiles, age_variant(age, fold_in=False): then})
        if age <= 1:  # a day's ratings are too few for their number to matter
            continue
        rng = child_rng(seed, "thinned", moment, age)
        by_user = np.argsort(rng.permutation(len(case.train.users))[case.train.user], kind="stable")
        for thinned, order in zip(THINNED, (by_user, rng.permutation(len(case.train))), strict=True):
            smaller = case.train.where(np.isin(np.arange(len(case.train)), order[: len(old)]))
            record(smaller, {age_variant(0, thinned=thinned, size_of=age): case.profiles})
    return pd.concat(tables)


# ---- lists made before the last ratings


def study_caching(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, model: Recommender, *, order: str,
    sizes: Sequence[int], new_ratings: Sequence[int], jobs: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """Lists made some ratings ago against lists of now, for users the model was not trained on (profile-size).

    Parameters
    ----------
    order : "time" or "random_<s>", in which profiles grow
    sizes : ratings in the profile now
    new_ratings : how many of them the cached list does not know; it knows at least one

    Returns
    -------
    user_id, n, new, list, ndcg@10, fresh (ndcg@10 of the list of now), overlap@10, rbo@10. ``list`` is *ten*, what is
    left of ten cached items once those rated since are taken out, or *refilled* from a longer cached ranking.
    """
    wanted = sorted({*sizes, *(n - new for n in sizes for new in new_ratings if new < n)})
    folds = [
        {case.n or 0: case for case in profile_size_cases(data, splits, users, fold, order=order, sizes=wanted)}
        for fold in sorted(users["fold"].unique())
    ]
    tables = Parallel(n_jobs=jobs)(delayed(_cached)(cases, model, sizes, new_ratings) for cases in folds if cases)
    found: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return found


def _cached(
    cases: dict[int, Case], model: Recommender, sizes: Sequence[int], new_ratings: Sequence[int]
) -> pd.DataFrame:
    """The rows of one fold's users, by profile size."""
    train = next(iter(cases.values())).train
    popular, fitted = Popularity().fit(train), deepcopy(model).fit(train)
    tables, order = [], tie_order(train.items)
    for n, case in ((n, cases[n]) for n in sizes if n in cases):
        now = rank_lists(_scores(fitted, popular, case.profiles), case)
        fresh = measure(now, case)[NDCG]
        for past, new in ((cases[n - new], new) for new in new_ratings if new < n):
            then = past.profiles[np.searchsorted(past.users, case.users)]
            scores = _scores(fitted, popular, then)
            row, place = np.nonzero((cached := metrics.top_k(scores, then, 10, order=order)) >= 0)
            ten = np.full_like(scores, -np.inf)
            ten[row, cached[row, place]] = scores[row, cached[row, place]]
            for name, values in {"ten": ten, "refilled": scores}.items():
                found = measure(lists := rank_lists(values, case), case)[[USER, NDCG]]
                found = found.assign(n=n, new=new, list=name, fresh=fresh)
                tables.append(found.assign(**metrics.agreement(lists, now)))
    return pd.concat(tables, ignore_index=True)


def cache_losses(
    table: pd.DataFrame, bootstrap: Bootstrap, ids: NDArray[np.object_], value: str = "lost"
) -> pd.DataFrame:
    """ndcg@10 of cached less fresh lists (or the mean of a column) by list, new ratings and profile size.

    Columns: list, new, size (n, or "all": equal weights for the sizes that have so many new ratings), then
    :func:`judged`.
    """
    rows = []
    for (name, new), part in table.assign(lost=table[NDCG] - table["fresh"]).groupby(["list", "new"]):
        wide = part.pivot_table(index=USER, columns="n", values=value).reindex(ids)
        found = {"all": bootstrap.average(wide.to_numpy())}
        found |= dict(zip(wide.columns, bootstrap.means(wide.to_numpy()), strict=True))
        rows += [{"list": name, "new": new, "size": size} | judged(estimate) for size, estimate in found.items()]
    return pd.DataFrame(rows)


# ---- users whom no model was trained on


def served_and_own(data: Interactions, test: NDArray[np.bool_], model: SurpriseModel) -> pd.DataFrame:
    """Predictions for held-out ratings (N_test,): ``own`` by Surprise, ``served`` by folding the user's row in."""
    train, held_out = data.where(~test), data.where(test)
    served = deepcopy(model).fit(train).ratings(train.user_item)[held_out.user, held_out.item]
    return pd.DataFrame({"own": predict_by_surprise(train, held_out, model), "served": served})


def study_fold_in(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, models: Sequence[Recommender], *,
    sizes: Sequence[int], folds: int, order: str = "random_0", jobs: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """Serving users the model has never seen, against training it again with the same n ratings of each of them.

    Parameters
    ----------
    sizes : ratings in the profile, n
    folds : user folds to measure on

    Returns
    -------
    user_id, model, n, metric, folded, retrained, count. metric = rmse: sums of squared errors over the ``count``
    ratings of the fixed target; or ndcg@10. A retrained SVD predicts as Surprise does; for the others a trained user's
    prediction is that of the folded-in row.
    """
    tables = Parallel(n_jobs=jobs)(
        delayed(_fold_in)(list(profile_size_cases(data, splits, users, fold, order=order, sizes=sizes)), model)
        for fold in sorted(users["fold"].unique())[:folds]
        for model in models
    )
    found: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return found


def _fold_in(cases: Sequence[Case], model: Recommender) -> pd.DataFrame:
    base = deepcopy(model).fit(cases[0].train)
    tables = []
    for case in cases:
        grown = replace(case, train=_joined(case.train, case.users, case.profiles), new_users=False)
        if isinstance(base, SVD | KNN):
            values = _squared_errors(base, grown)
        else:
            both = [rank_and_measure(fitted, grown)[NDCG] for fitted in (base, deepcopy(model).fit(grown.train))]
            values = pd.DataFrame({"metric": NDCG, "folded": both[0], "retrained": both[1], "count": 1.0})
        tables.append(values.assign(model=model.name, n=case.n, **{USER: case.user_ids}).dropna())
    return pd.concat(tables, ignore_index=True)


def _joined(train: Interactions, users: NDArray[np.intp], rows: csr_matrix) -> Interactions:
    """The training ratings and these rows of ``users``, without time stamps."""
    new = rows.tocoo()
    user, item = np.r_[train.user, users[new.row]].astype(np.int32), np.r_[train.item, new.col].astype(np.int32)
    rating = np.r_[train.rating, new.data].astype(np.float32)
    return replace(train, user=user, item=item, rating=rating, timestamp=np.zeros(len(user), np.int64))


def _squared_errors(base: SurpriseModel, case: Case) -> pd.DataFrame:
    """Per user the squared errors on the target, by the fitted ``base`` and by the same trained on the case."""
    targets = case.relevant_any.tocoo()
    folded = base.ratings(case.profiles)[targets.row, targets.col]
    if isinstance(base, SVD):
        asked = replace(case.train, user=case.users[targets.row], item=targets.col)
        retrained = predict_by_surprise(case.train, asked, base).astype(np.float32)
    else:
        retrained = deepcopy(base).fit(case.train).ratings(case.profiles)[targets.row, targets.col]
    sums = [metrics.error_sums(targets.row, targets.data, p, len(case.users)) for p in (folded, retrained)]
    columns = {"folded": sums[0]["squared"], "retrained": sums[1]["squared"], "count": sums[0]["count"]}
    return pd.DataFrame({"metric": "rmse"} | columns)


def fold_in_losses(table: pd.DataFrame, bootstrap: Bootstrap, ids: NDArray[np.object_]) -> pd.DataFrame:
    """What folding in loses: columns model, size (of the profile), metric (rmse or ndcg@10), then :func:`judged`.

    Below 0 folding in is worse: RMSE of the retrained model less that of the folded-in rows, or ndcg@10 of the
    folded-in rows less that of the retrained model.
    """
    rows = []
    for (model, size, metric), part in table.groupby(["model", "n", "metric"], sort=False):
        folded, retrained, count = part.set_index(USER).reindex(ids)[["folded", "retrained", "count"]].to_numpy().T
        errors = bootstrap.rmse_difference(retrained, folded, count) if metric == "rmse" else None
        rows.append(
            {"model": model, "size": size, "metric": metric} | judged(errors or bootstrap.difference(folded, retrained))
        )
    return pd.DataFrame(rows)
