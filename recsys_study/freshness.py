"""What age costs: lists made before the last ratings, users whom no model was trained on (models: ``schedules``).

Both end in a table of differences: what is compared, then :data:`JUDGED`; below 0 age costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study.figures import dodged, look
from recsys_study.findings import Contrast, plain, settled
from recsys_utils.base import USER, Recommender, Scores, counted
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import metrics, protocols
from recsys_utils.evaluation.protocols import Case, measure, profile_size_cases, rank_and_measure, rank_lists
from recsys_utils.evaluation.significance import MARGIN, Bootstrap, Estimate, minimum_detectable_difference
from recsys_utils.models.rankers import Popularity
from recsys_utils.models.surprise_models import SVD, SurpriseModel, predict_by_surprise

NDCG = "ndcg@10"
HARMLESS = ("tie", "not worse", "slightly better", "better")
MIN_USERS = 20  # with fewer, a size or a schedule is not studied
JUDGED = ("value", "ci_low", "ci_high", "n", "p", "least", "most", "mdd", "verdict")


def judged(estimate: Estimate) -> dict[str, Any]:
    """The columns :data:`JUDGED` of a table of differences."""
    row = {name: getattr(estimate, name) for name in JUDGED[:7]}
    return row | {"mdd": minimum_detectable_difference(estimate), "verdict": settled(estimate)}


def _contrast(row: Any, id: str, label: str, of: str, *, unit: str = NDCG, primary: bool = False) -> Contrast:
    """From a row of a table of differences."""
    value, low, high, _, p, least, most = (plain(row[name]) for name in JUDGED[:7])
    n, judged_as = int(row["n"]), row["verdict"]
    return Contrast(id, label, of, unit, value, low, high, n, MARGIN, p, judged_as, primary, least, most)


def _declared(values: Iterable[int], most: int) -> int:
    """The value of a primary contrast: the largest up to ``most``, or the smallest if all are above."""
    return max((value for value in values if value <= most), default=min(values))


def _longest_harmless(rows: pd.DataFrame, column: str) -> int:
    """The largest value of a column up to which no row is worse or undecided; 0 if the first is."""
    rows = rows.sort_values(column)
    return int(max(rows.loc[rows["verdict"].isin(HARMLESS).cumprod() > 0, column], default=0))


def scores_or_popular(model: Recommender, popularity: Popularity, profiles: csr_matrix) -> Scores:
    """The model's scores; popularity for a profile it has nothing to say about."""
    scores = model.scores(profiles)
    silent = ~scores.any(axis=1)
    scores[silent] = popularity.scores(profiles[silent])
    return scores


# ---- lists made before the last ratings


def study_caching(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, model: Recommender, *, orders: Sequence[str],
    sizes: Sequence[int], new_ratings: Sequence[int], jobs: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """Lists made some ratings ago against lists of now, for users the model was not trained on (profile-size).

    Parameters
    ----------
    orders : "time" or "random_<s>", in which profiles grow
    sizes : ratings in the profile now
    new_ratings : how many of them the cached list does not know; it knows at least one

    Returns
    -------
    user_id, order ("time", "random"), n, new, list, ndcg@10 (less that of a new list), overlap@10, rbo@10. ``list`` is
    *ten*, what is left of ten cached items once those rated since are removed, or *refilled* from a longer ranking.
    """
    wanted = sorted({*sizes, *(n - new for n in sizes for new in new_ratings if new < n)})

    def one_fold(order: str, fold: int) -> pd.DataFrame:
        cases = {case.n: case for case in profile_size_cases(data, splits, users, fold, order=order, sizes=wanted)}
        train = next(iter(cases.values())).train
        popular, fitted, ties = Popularity().fit(train), deepcopy(model).fit(train), protocols.tie_order(train.items)
        tables = []
        for n, new in ((n, new) for n, new in product(sizes, new_ratings) if n in cases and new < n):
            case, past = cases[n], cases[n - new]
            now = rank_lists(scores_or_popular(fitted, popular, case.profiles), case)
            then = past.profiles[np.searchsorted(past.users, case.users)]
            scores = scores_or_popular(fitted, popular, then)
            row, rank = np.nonzero((cached := metrics.top_k(scores, then, 10, order=ties)) >= 0)
            ten = np.full_like(scores, -np.inf)
            ten[row, cached[row, rank]] = scores[row, cached[row, rank]]
            for name, values in {"ten": ten, "refilled": scores}.items():
                found = measure(lists := rank_lists(values, case), case)[[USER, NDCG]]
                found[NDCG] -= measure(now, case)[NDCG]
                tables.append(found.assign(n=n, new=new, list=name, **metrics.agreement(lists, now)))
        return pd.concat(tables).assign(order=order.partition("_")[0])

    tasks = product(orders, sorted(users["fold"].unique()))
    found: list[pd.DataFrame] = Parallel(n_jobs=jobs)(delayed(one_fold)(*task) for task in tasks)
    return pd.concat(found, ignore_index=True)


def cache_losses(table: pd.DataFrame, bootstrap: Bootstrap, ids: NDArray[np.object_]) -> pd.DataFrame:
    """Cached less new lists in ndcg@10, and their overlap and rank-biased overlap.

    Columns: order, list, new, metric, size (n, or "all": equal weights for the sizes above that number of new ratings),
    then :data:`JUDGED`.
    """
    rows = []
    for order, metric in product(table["order"].unique(), (NDCG, "overlap@10", "rbo@10")):
        for (name, new), part in table[table["order"] == order].groupby(["list", "new"]):
            wide = part.pivot_table(index=USER, columns="n", values=metric).reindex(ids)
            found = {"all": bootstrap.average(wide.to_numpy())}
            found |= dict(zip(wide.columns, bootstrap.means(wide.to_numpy()), strict=True))
            key = {"order": order, "list": name, "new": new, "metric": metric}
            rows += [key | {"size": size} | judged(estimate) for size, estimate in found.items()]
    return pd.DataFrame(rows)


def agreement_rows(cached: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of metrics.csv: overlap and rank-biased overlap of cached and new lists."""
    rows = cached[cached["metric"] != NDCG]
    variant = "order=" + rows["order"] + ";list=" + rows["list"] + ";new=" + rows["new"].astype(str)
    return rows.assign(protocol="profile-size", model=model, variant=variant, segment="n=" + rows["size"].astype(str))


def cache_contrasts(cached: pd.DataFrame) -> list[Contrast]:
    """The cached ten against a new list, by ratings since; primary: first order, 5 ratings or the most below."""
    rows = cached[(cached["metric"] == NDCG) & (cached["size"] == "all") & (cached["list"] == "ten")]
    declared = rows["order"].iloc[0], _declared(rows["new"], 5)
    return [
        _contrast(
            row, f"cached-{row['new']}{'' if row['order'] == declared[0] else '-' + row['order']}",
            f"ten items cached {counted(row['new'], 'rating')} ago instead of new ones",
            f"ndcg@10, {row['order']} order", primary=(row["order"], row["new"]) == declared,
        )
        for row in rows.to_dict("records")
    ]  # fmt: skip


def cache_facts(cached: pd.DataFrame) -> dict[str, Any]:
    """How many new ratings a cached list bears at the margin, the least over the orders of ratings."""
    overall = cached[cached["size"] == "all"]
    lost = overall[(overall["metric"] == NDCG) & (overall["list"] == "ten")].groupby("order")
    bears = {_longest_harmless(rows, "new") for _, rows in lost}
    return {"bears_ten": min(bears), "new": _declared(overall["new"], 5), "depends_on_order": len(bears) > 1}


# ---- users whom no model was trained on


def reachable(data: Interactions, sizes: Sequence[int]) -> list[int]:
    """The profile sizes that enough users have outside their target; the largest such size if none is."""
    n = np.bincount(data.user, minlength=len(data.users))
    longest = n - protocols.target_size(n)
    return [size for size in sizes if (longest >= size).sum() >= MIN_USERS] or [int(np.sort(longest)[-MIN_USERS])]


def trained_users(data: Interactions, test: NDArray[np.bool_], models: Sequence[SurpriseModel]) -> pd.DataFrame:
    """Like :func:`study_fold_in` with n = "trained": ratings held out of trained users; ``retrained`` is Surprise."""
    case = protocols.warm_split(data, test)
    fitted = [deepcopy(model).fit(case.train) for model in models]
    tables = [_squared_errors(m, case, by_surprise=True).assign(model=m.name, n="trained") for m in fitted]
    return pd.concat(tables, ignore_index=True)


def study_fold_in(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, models: Sequence[Recommender], *,
    sizes: Sequence[int], folds: int, jobs: int = 1,
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

    def one_fold(fold: int, model: Recommender) -> pd.DataFrame:
        cases = list(profile_size_cases(data, splits, users, fold, order="random_0", sizes=sizes))
        base, tables = deepcopy(model).fit(cases[0].train), []
        for case in cases:
            grown = replace(case, train=_joined(case.train, case.users, case.profiles), new_users=False)
            if isinstance(base, SurpriseModel):
                values = _squared_errors(base, grown, by_surprise=isinstance(base, SVD))
            else:
                both = [rank_and_measure(fitted, grown)[NDCG] for fitted in (base, deepcopy(model).fit(grown.train))]
                columns = {"folded": both[0], "retrained": both[1], "count": 1.0}
                values = pd.DataFrame({USER: case.user_ids, "metric": NDCG} | columns)
            tables.append(values.assign(model=model.name, n=case.n).dropna())
        return pd.concat(tables)

    tasks = product(sorted(users["fold"].unique())[:folds], models)
    found: list[pd.DataFrame] = Parallel(n_jobs=jobs)(delayed(one_fold)(*task) for task in tasks)
    return pd.concat(found, ignore_index=True)


def _joined(train: Interactions, users: NDArray[np.intp], rows: csr_matrix) -> Interactions:
    """The training ratings and these rows of ``users``, without time stamps."""
    new = rows.tocoo()
    user, item = np.r_[train.user, users[new.row]].astype(np.int32), np.r_[train.item, new.col].astype(np.int32)
    rating = np.r_[train.rating, new.data].astype(np.float32)
    return replace(train, user=user, item=item, rating=rating, timestamp=np.zeros(len(user), np.int64))


def _squared_errors(base: SurpriseModel, case: Case, *, by_surprise: bool) -> pd.DataFrame:
    """Per user the errors on the target, by the fitted ``base`` and by the same trained on the case.

    ``by_surprise``: the latter's predictions are Surprise's own; KNN's are those of a folded-in row anyway.
    """
    targets = case.relevant_any.tocoo()
    if by_surprise:
        wanted = replace(case.train, user=case.users[targets.row], item=targets.col)
        retrained = predict_by_surprise(case.train, wanted, base).astype(np.float32)
    else:
        retrained = deepcopy(base).fit(case.train).ratings(case.profiles)[targets.row, targets.col]
    folded = base.ratings(case.profiles)[targets.row, targets.col]
    of = [metrics.error_sums(targets.row, targets.data, p, len(case.users)) for p in (folded, retrained)]
    columns = {"folded": of[0]["squared"], "retrained": of[1]["squared"], "count": of[0]["count"]}
    return pd.DataFrame({USER: case.user_ids, "metric": "rmse"} | columns)


def fold_in_losses(tables: Sequence[pd.DataFrame], bootstrap: Bootstrap, ids: NDArray[np.object_]) -> pd.DataFrame:
    """What folding in loses: columns model, size (of the profile), metric (rmse or ndcg@10), then :data:`JUDGED`.

    Below 0 folding in is worse: RMSE of the retrained model less that of the folded-in rows, or ndcg@10 of the
    folded-in rows less that of the retrained model.
    """
    rows = []
    for (model, size, metric), part in pd.concat(tables).groupby(["model", "n", "metric"], sort=False):
        folded, retrained, count = part.set_index(USER).reindex(ids)[["folded", "retrained", "count"]].to_numpy().T
        rmse = metric == "rmse"
        gain = bootstrap.rmse_difference(retrained, folded, count) if rmse else bootstrap.difference(folded, retrained)
        rows.append({"model": model, "size": size, "metric": metric} | judged(gain))
    return pd.DataFrame(rows)


def fold_in_contrasts(losses: pd.DataFrame) -> list[Contrast]:
    """Folding in against training again, by model and profile size; and for trained users against Surprise."""
    found, other = [], ("training again", "Surprise's own prediction")
    for row in losses.to_dict("records"):
        trained = row["size"] == "trained"
        label = f"{row['model']}: folding in instead of {other[trained]}"
        of = f"{row['metric']}, {'trained users' if trained else str(row['size']) + ' ratings'}"
        unit = "rating points" if row["metric"] == "rmse" else NDCG
        found.append(_contrast(row, f"{row['model']}-{row['size']}", label, of, unit=unit))
    return found


# ---- figures


def _panels(panels: Sequence[tuple[str, pd.DataFrame, str]], x: str, xlabel: str, ylabel: str = "") -> Figure:
    """Differences with their intervals; a panel has a title, rows and the column that names its lines."""
    panels = [panel for panel in panels if len(panel[1])]
    width = 1.2 + 3.2 * len(panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.9), squeeze=False, sharey=x == "age")
    for ax, (title, rows, by) in zip(axes.flat, panels, strict=True):
        ticks, lines = sorted(rows[x].unique()), list(rows[by].unique())
        rows = rows.assign(place=rows[x].map(ticks.index)).sort_values("place", kind="stable")
        looks = {line: look(line) for line in lines if by == "model"}
        dodged(ax, rows, "place", by=by, order=lines, width=0.3, looks=looks)
        for level in () if title.startswith("agreement") else (0, -MARGIN):
            ax.axhline(level, color="0.4", linewidth=0.9, linestyle="--" if level else "-")
        ax.set(title=title, xlabel=xlabel, xticks=range(len(ticks)), xticklabels=ticks)
        ax.legend()
    axes[0, 0].set_ylabel(ylabel)
    return figure


def cache_figure(cached: pd.DataFrame) -> Figure:
    """What cached lists lose, and how far they agree with new ones (first order of ratings)."""
    overall = cached[cached["size"] == "all"]
    lost, alike = overall[overall["metric"] == NDCG], overall[overall["metric"] != NDCG]
    alike = alike[alike["order"] == alike["order"].iloc[0]]
    panels = [
        ("change in ndcg@10", lost.assign(line=lost["list"] + ", " + lost["order"] + " order"), "line"),
        ("agreement with a new list", alike.assign(line=alike["list"] + ", " + alike["metric"]), "line"),
    ]
    return _panels(panels, "new", "ratings since the list was made")


def fold_in_figure(losses: pd.DataFrame) -> Figure:
    """What folding in gains over training again, by metric; below 0 folding in is worse."""
    panels = [
        (f"{'less' if metric == 'rmse' else 'more'} {metric} by folding in", rows, "model")
        for metric, rows in losses[losses["size"] != "trained"].groupby("metric", sort=False)
    ]
    return _panels(panels, "size", "ratings of the new user")
