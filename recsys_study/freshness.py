"""What age costs: models of some days ago, lists made before the last ratings, users whom no model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study.figures import differences
from recsys_study.findings import Contrast, plain
from recsys_study.stage_files import METRIC_COLUMNS
from recsys_utils.base import USER, Recommender, Scale, Scores, child_rng, counted
from recsys_utils.data.interactions import DAY, Interactions
from recsys_utils.data.synthetic import World, generate_world
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.protocols import (
    Case,
    Timeline,
    measure,
    profile_size_cases,
    rank_and_measure,
    rank_lists,
    summarise,
    target_size,
    tie_order,
)
from recsys_utils.evaluation.significance import MARGIN, Bootstrap, Estimate, minimum_detectable_difference, verdict
from recsys_utils.models.rankers import EASE, Popularity
from recsys_utils.models.surprise_models import KNN, SVD, SurpriseModel, predict_by_surprise

NDCG = "ndcg@10"
FRESH, STALE = "a fresh model", "stale profile"
HARMLESS = ("tie", "not worse", "better")
MIN_USERS = 20  # an age is studied if this many users came back late enough in the history
THINNED = ("users", "ratings")


def judged(estimate: Estimate) -> dict[str, Any]:
    """The columns of a table of differences: value, ci_low, ci_high, n, p, mdd, verdict."""
    row = {name: getattr(estimate, name) for name in ("value", "ci_low", "ci_high", "n", "p")}
    return row | {"mdd": minimum_detectable_difference(estimate), "verdict": verdict(estimate)}


def _contrast(row: Any, id: str, label: str, of: str, *, unit: str = NDCG, primary: bool = False) -> Contrast:
    """From a row of a table of differences."""
    value, low, high, p = (plain(row[name]) for name in ("value", "ci_low", "ci_high", "p"))
    return Contrast(id, label, of, unit, value, low, high, int(row["n"]), MARGIN, p, row["verdict"], primary)


def _longest_harmless(rows: pd.DataFrame, column: str) -> int:
    """The largest value of a column (rising) up to which no row is worse or undecided; 0 if the first is."""
    safe = rows["verdict"].isin(HARMLESS).cumprod() > 0
    return int(rows.loc[safe, column].max()) if safe.any() else 0


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

        ``against`` a fresh model; from 2 days on also fresh ones of its size (fewer users, fewer ratings). Rows *stale
        profile*: the old model with the user's profile of that day, less the same with today's profile.
        """
        rows = []
        for age in self.ages:
            old, stale = age_variant(age), age_variant(age, fold_in=False)
            pairs = {FRESH: (old, age_variant(0)), STALE: (stale, old)}
            for thinned in THINNED if age > 1 else ():
                pairs[f"{FRESH}, fewer {thinned}"] = old, age_variant(0, thinned=thinned, size_of=age)
            rows += [{"age": age, "against": n} | judged(self.difference(*p)) for n, p in pairs.items()]
        return pd.DataFrame(rows)

    def longest_safe_age(self) -> int:
        """The largest age up to which no age may cost more than the margin; 0 if already the smallest may."""
        return _longest_harmless(self.losses[self.losses["against"] == FRESH], "age")

    @property
    def primary_age(self) -> int:
        """30 days, or the largest age below that the history has."""
        return max((age for age in self.ages if age <= 30), default=min(self.ages))

    def contrasts(self) -> list[Contrast]:
        """Every age against fresh; at the primary age also the controls of equal size and the stale profile."""
        of, found = "ndcg@10, returning sessions", []
        for row in self.losses.to_dict("records"):
            age, against = row["age"], row["against"]
            old, primary = f"a model {counted(age, 'day')} old", age == self.primary_age
            if against == FRESH:
                found.append(_contrast(row, f"age-{age}", f"{old} instead of a fresh one", of, primary=primary))
            elif against == STALE and primary:
                label = f"{old} with the user's profile of that day instead of today's"
                found.append(_contrast(row, "stale-profile", label, of))
            elif primary:
                thinned = against.rpartition(" ")[2]
                label = f"{old} instead of a fresh one of its size (fewer {thinned})"
                found.append(_contrast(row, f"fewer-{thinned}", label, of))
        return found

    def facts(self) -> dict[str, Any]:
        return {
            "age": self.primary_age, "safe_age": self.longest_safe_age(), "users": len(self.values),
            "fresh_ndcg": self.values[age_variant(0)].mean(), "refits": self.refits,
            "sessions": int((self.events["variant"] == age_variant(0)).sum()),
        }  # fmt: skip

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
) -> AgeStudy | None:  # fmt: skip
    """Rank for returning sessions (``protocols.Timeline``) with models made some days before the last refit.

    The fresh model (age 0) is made every ``refit_days`` and serves the sessions that begin before the next one. A model
    of age a knows what was known a days earlier. All variants are tested on the same sessions: those for which the
    oldest model had ``warm_up_days`` of history. An age that leaves fewer than ``MIN_USERS`` users is left out. A
    profile from which the model can't rank gets the popular items of the same training part.

    Parameters
    ----------
    model : unfitted
    ages : days >= 1
    max_refits : at most this many refits, those with most returning users, to bound the cost of long histories
    seed : of thinning and bootstrap

    Returns None if not even one age leaves enough users.
    """
    timeline, began = Timeline(data), int(data.timestamp.min())
    returns = timeline.returns.assign(day=lambda t: (t["start"] - began) // (refit_days * DAY) * refit_days)
    users = {a: returns.loc[returns["day"] >= a + warm_up_days, "user"].nunique() for a in sorted(ages)}
    kept = [age for age, n in users.items() if n >= MIN_USERS]
    if not kept:
        return None
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


def studies(data: Interactions, models: Sequence[Recommender], **settings: Any) -> list[AgeStudy]:
    """:func:`study_ages` of each model that the history is long enough for."""
    found = (study_ages(data, model, **settings) for model in models)
    return [study for study in found if study is not None]


def age_losses(found: Sequence[AgeStudy]) -> pd.DataFrame:
    return _together([study.losses.assign(model=study.model) for study in found], ["age", "against", "model"])


def age_rows(found: Sequence[AgeStudy]) -> pd.DataFrame:
    """The rows of metrics.csv."""
    return _together([study.metric_rows() for study in found], METRIC_COLUMNS)


def age_values(found: Sequence[AgeStudy]) -> pd.DataFrame:
    """user_id, variant, value, model: ndcg@10 by user and variant."""
    tables = [study.values.reset_index().melt(USER).assign(model=study.model) for study in found]
    return _together(tables, [USER, "variant", "value", "model"])


def _together(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


def age_contrasts(found: Sequence[AgeStudy]) -> list[Contrast]:
    """Of the first model; none where the history is too short."""
    return found[0].contrasts() if found else []


def age_facts(found: Sequence[AgeStudy]) -> dict[str, Any]:
    return {"measured": bool(found)} | (found[0].facts() if found else {})


WORLDS = {
    "nothing changes": World(), "tastes change": World(taste_days=60), "items arrive, slow": World(vogue_days=500),
    "items arrive, fast": World(vogue_days=40),
}  # fmt: skip


def known_truth(jobs: int = 1) -> pd.DataFrame:
    """The losses of :class:`AgeStudy` on generated audiences; ``planted``: the true loss of an old model against fresh.

    ``safe_age`` is the one found, ``planted_safe_age`` the true one.
    """
    tables = []
    for name, world in WORLDS.items():
        audience = Interactions.from_frame(generate_world(world), scale=Scale(1, 5))
        found = study_ages(
            audience, EASE(reg=50.0, binarise="liked"), ages=[1, 7, 30, 60], refit_days=7, warm_up_days=14,
            max_refits=10, seed=world.seed, jobs=jobs,
        )  # fmt: skip
        assert found is not None
        fresh = found.values[age_variant(0)].mean()
        planted = [-world.unknown(age) * fresh if against == FRESH else np.nan
                   for age, against in found.losses[["age", "against"]].to_numpy()]  # fmt: skip
        true_age = max((age for age in found.ages if world.unknown(age) * fresh < MARGIN), default=0)
        tables.append(found.losses.assign(world=name, planted=planted, safe_age=found.longest_safe_age(),
                                          planted_safe_age=true_age))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


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
    user_id, n, new, list, ndcg@10, fresh (ndcg@10 of a new list), overlap@10, rbo@10. ``list`` is *ten*, what is left
    of ten cached items once those rated since are removed, or *refilled* from a longer cached ranking.
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
            row, rank = np.nonzero((cached := metrics.top_k(scores, then, 10, order=order)) >= 0)
            ten = np.full_like(scores, -np.inf)
            ten[row, cached[row, rank]] = scores[row, cached[row, rank]]
            for name, values in {"ten": ten, "refilled": scores}.items():
                found = measure(lists := rank_lists(values, case), case)[[USER, NDCG]]
                found = found.assign(n=n, new=new, list=name, fresh=fresh)
                tables.append(found.assign(**metrics.agreement(lists, now)))
    return pd.concat(tables, ignore_index=True)


def cache_losses(
    table: pd.DataFrame, bootstrap: Bootstrap, ids: NDArray[np.object_], value: str = "lost"
) -> pd.DataFrame:
    """ndcg@10 of cached less fresh lists (or the mean of a column) by list, new ratings and profile size.

    Columns: list, new, size (n, or "all": equal weights for the sizes above that number of new ratings), then
    :func:`judged`.
    """
    rows = []
    for (name, new), part in table.assign(lost=table[NDCG] - table["fresh"]).groupby(["list", "new"]):
        wide = part.pivot_table(index=USER, columns="n", values=value).reindex(ids)
        found = {"all": bootstrap.average(wide.to_numpy())}
        found |= dict(zip(wide.columns, bootstrap.means(wide.to_numpy()), strict=True))
        rows += [{"list": name, "new": new, "size": size} | judged(estimate) for size, estimate in found.items()]
    return pd.DataFrame(rows)


def cache_table(tables: dict[str, pd.DataFrame], bootstrap: Bootstrap, ids: NDArray[np.object_]) -> pd.DataFrame:
    """:func:`cache_losses` by order of ratings and metric: the change of ndcg@10, overlap and rank-biased overlap."""
    values = {NDCG: "lost", "overlap@10": "overlap@10", "rbo@10": "rbo@10"}
    return pd.concat(
        [cache_losses(t, bootstrap, ids, v).assign(order=o, metric=m) for o, t in tables.items()
         for m, v in values.items()], ignore_index=True,
    )  # fmt: skip


def agreement_rows(cached: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of metrics.csv: overlap and rank-biased overlap of cached and new lists."""
    rows = cached[cached["metric"] != NDCG].assign(protocol="profile-size", model=model)
    rows["variant"] = "order=" + rows["order"] + ";list=" + rows["list"] + ";new=" + rows["new"].astype(str)
    rows["segment"] = "n=" + rows["size"].astype(str)
    return rows[["protocol", "model", "variant", "segment", "metric", "value", "ci_low", "ci_high", "n"]]


def cache_contrasts(cached: pd.DataFrame) -> list[Contrast]:
    """The cached ten against a new list, by ratings since; primary: first order, 5 ratings or the most below."""
    rows = cached[(cached["metric"] == NDCG) & (cached["size"] == "all") & (cached["list"] == "ten")]
    main = rows["order"].iloc[0]
    declared = max((new for new in rows["new"] if new <= 5), default=rows["new"].min())
    return [
        _contrast(
            row, f"cached-{row['new']}{'' if row['order'] == main else '-' + row['order']}",
            f"ten items cached {counted(row['new'], 'rating')} ago instead of new ones",
            f"ndcg@10, {row['order']} order", primary=(row["order"], row["new"]) == (main, declared),
        )
        for row in rows.to_dict("records")
    ]  # fmt: skip


def cache_facts(cached: pd.DataFrame) -> dict[str, Any]:
    """How many new ratings a cached list bears at the margin, the least over the orders of ratings."""
    overall = cached[cached["size"] == "all"]
    lost = overall[overall["metric"] == NDCG].sort_values("new")
    bears = {str(name): [_longest_harmless(rows, "new") for _, rows in part.groupby("order")]
             for name, part in lost.groupby("list")}  # fmt: skip
    new = int(next(contrast.id.removeprefix("cached-") for contrast in cache_contrasts(cached) if contrast.primary))
    overlap = overall.query("metric == 'overlap@10' and list == 'ten' and new == @new")["value"].iloc[0]
    least = {f"bears_{name}": min(numbers) for name, numbers in bears.items()}
    return least | {"new": new, "overlap": overlap, "depends_on_order": len(set(bears["ten"])) > 1}


# ---- users whom no model was trained on


def reachable(data: Interactions, sizes: Sequence[int]) -> list[int]:
    """The profile sizes that enough users have outside their target; the largest such size if none is."""
    n = np.bincount(data.user, minlength=len(data.users))
    longest = n - target_size(n)
    return [size for size in sizes if (longest >= size).sum() >= MIN_USERS] or [int(np.sort(longest)[-MIN_USERS])]


def trained_users(
    data: Interactions, test: NDArray[np.bool_], models: Sequence[SurpriseModel], bootstrap: Bootstrap
) -> pd.DataFrame:
    """Folding in a trained user's row against Surprise's own predictions, on held-out ratings."""
    rows, held_out = [], data.where(test)
    for model in models:
        predicted = served_and_own(data, test, model)
        own, served = (
            metrics.error_sums(held_out.user, held_out.rating, predicted[way].to_numpy(np.float32), len(data.users))
            for way in ("own", "served")
        )
        saved = bootstrap.rmse_difference(own["squared"], served["squared"], own["count"])
        rms = float(np.sqrt(np.square(predicted["own"] - predicted["served"]).mean()))
        row = {"model": model.name, "rms difference": rms, "correlation": predicted.corr().iloc[0, 1]}
        rows.append(row | judged(saved))
    return pd.DataFrame(rows)


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
        wanted = replace(case.train, user=case.users[targets.row], item=targets.col)
        retrained = predict_by_surprise(case.train, wanted, base).astype(np.float32)
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


def fold_in_contrasts(losses: pd.DataFrame, trained: pd.DataFrame) -> list[Contrast]:
    """Folding in against training again, by model and profile size; and for trained users against Surprise."""
    units = {"rmse": "rating points", NDCG: NDCG}
    found = [
        _contrast(row, f"{row['model']}-{row['size']}", f"{row['model']}: folding in instead of training again",
                  f"{row['metric']}, {row['size']} ratings", unit=units[row["metric"]])
        for row in losses.to_dict("records")
    ]  # fmt: skip
    return found + [
        _contrast(row, f"{row['model']}-trained", f"{row['model']}: folding in instead of Surprise's own prediction",
                  "rmse, trained users", unit="rating points")
        for row in trained.to_dict("records")
    ]  # fmt: skip


# ---- figures


def truth_figure(truth: pd.DataFrame) -> Figure:
    """Losses on the generated audiences; dotted: planted."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), sharey=True)
    titles = {FRESH: "old model less fresh", STALE: "stale profile less today's"}
    for ax, (against, title) in zip(axes, titles.items(), strict=True):
        differences(ax, truth[truth["against"] == against], "age", by="world", margin=MARGIN)
        ax.set(title=title, xlabel="age of the model, days")
    for _, line in truth[truth["against"] == FRESH].groupby("world"):
        if line["planted"].any():
            axes[0].plot(range(len(line)), line["planted"], color="0.3", linestyle=":", linewidth=1.2)
    axes[0].set_ylabel("change in ndcg@10")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def age_figure(losses: pd.DataFrame) -> Figure | None:
    """Losses by age against fresh models, fresh ones of equal size, and of stale profiles; None without any."""
    if losses.empty:
        return None
    main = losses["model"].iloc[0]
    mine = losses[losses["model"] == main].assign(against=lambda t: t["against"].str.replace(f"{FRESH}, ", ""))
    panels = [
        ("old less fresh", losses[losses["against"] == FRESH], "model"),
        ("old less fresh of its size", mine[mine["against"].str.startswith("fewer")], "against"),
        ("stale profile less today's", mine[mine["against"] == STALE], "model"),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.9), sharey=True)
    for ax, (title, rows, by) in zip(axes, panels, strict=True):
        if len(rows):
            differences(ax, rows, "age", by=by, margin=MARGIN, styled=by == "model")
            ax.legend(loc="lower left")
        ax.set(title=title, xlabel="age of the model, days")
    axes[0].set_ylabel("change in ndcg@10")
    return figure


def cache_figure(cached: pd.DataFrame) -> Figure:
    """What cached lists lose, and how far they agree with new ones (first order of ratings)."""
    overall = cached[cached["size"] == "all"]
    lost = overall[overall["metric"] == NDCG]
    alike = overall[(overall["metric"] != NDCG) & (overall["order"] == overall["order"].iloc[0])]
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8))
    differences(
        axes[0], lost.assign(name=lost["list"] + ", " + lost["order"] + " order"), "new", by="name", margin=MARGIN
    )
    differences(axes[1], alike.assign(name=alike["list"] + ", " + alike["metric"]), "new", by="name")
    for ax, label in zip(axes, ("change in ndcg@10", "agreement with a new list"), strict=True):
        ax.set(ylabel=label, xlabel="ratings since the list was made")
        ax.legend(loc="lower left")
    return figure


def fold_in_figure(losses: pd.DataFrame) -> Figure:
    """What folding in gains over training again, by metric; below 0 folding in is worse."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6))
    for ax, (metric, part) in zip(axes, losses.groupby("metric", sort=False), strict=True):
        differences(ax, part, "size", by="model", margin=MARGIN, styled=True)
        ax.set(
            xlabel="ratings of the new user", ylabel=f"{'less' if metric == 'rmse' else 'more'} {metric} by folding in"
        )
        ax.legend()
    return figure
