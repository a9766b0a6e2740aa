"""What a catalogue filter keeps, and what training on the kept items does to lists and ratings.

A filter is a mask over the catalogue, by name. Testing a filtered data set on itself hides the cost: what it drops is
neither missed nor mispredicted. So every filter is evaluated three times: on all test ratings; on those of the kept
items (the flattering number); and, on these same ones, against a model trained on everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study.findings import Contrast
from recsys_utils.base import ITEM
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.evaluation.metrics import error_sums
from recsys_utils.evaluation.protocols import (
    Case,
    Mask,
    align,
    rank_and_measure,
    summarise_errors,
    warm_split,
)
from recsys_utils.evaluation.significance import Bootstrap, metric_rows
from recsys_utils.models.content import FIELDS
from recsys_utils.models.rankers import EASE
from recsys_utils.models.surprise_models import SVD, predict_by_surprise

Floats = NDArray[np.float64]
Key = tuple[str, str]  # filter trained on, filter tested on

NDCG = "ndcg@10"
NONE, ALL = "none", "all"
WARN_LOSS = 0.4  # share of the ratings; what loses more is another data set
MOST_RATINGS = 2_000_000  # beyond that fitting a model for every filter takes hours
REPORTED = pd.DataFrame(
    {"filter": ["classic hybrid, as reported"], "items": [250], "ratings": [1389], "share_of_ratings": [0.01389]}
)
"""What the classic hybrid reported of its catalogue of 250 popular films."""


def filters(
    data: Interactions, test: Mask, items: pd.DataFrame, *, top: int, rating: float, votes: int, count: int,
    later: pd.DataFrame | None = None,
) -> dict[str, Mask]:  # fmt: skip
    """The filters that a data set allows, as masks over its catalogue; ``none`` keeps everything.

    Popularity and means leave out the ratings under ``test``, which must not decide what they are tested with. IMDb's
    numbers are today's: no such filter could have been applied when the ratings were made.

    Parameters
    ----------
    items : the catalogue in the order of ``data.items``
    top : films of a catalogue of the most popular; at most a quarter of all
    rating : least mean on IMDb's scale of 1-10, mapped linearly to that of the data for their own means
    votes, count : least votes on IMDb, least ratings outside ``test``
    later : the films of a later edition with their imdb_votes, for what it holds and for the join by id
    """
    train, scale = data.where(~test), data.scale
    counts = item_counts(train.user_item)
    means = np.bincount(train.item, train.rating, len(counts)) / np.maximum(counts, 1)
    top = min(top, max(1, len(items) // 4))
    least = scale.lo + (rating - 1) / 9 * (scale.hi - scale.lo)
    good, known = f"mean-{least:.3g}", f"count-{count}"
    found = {NONE: np.ones(len(items), np.bool_), f"most-rated-{top}": largest(counts, top)}
    found |= {good: means >= least, known: counts >= count}
    found[f"{good}+{known}"] = found[good] & found[known]
    found["with-metadata"] = items[[f for f in FIELDS if f != "genres"]].map(len).any(axis=1).to_numpy()
    if later is not None:
        found["mapped"] = items["movie_id"].notna().to_numpy()
    their_votes = items["imdb_votes"].fillna(0).to_numpy(np.int64)
    good, known = f"imdb-rating-{rating:g}", f"imdb-votes-{votes}"
    found |= {good: items["imdb_rating"].fillna(0).to_numpy(float) >= rating, known: their_votes >= votes}
    found |= {f"{good}+votes-{votes}": found[good] & found[known], f"imdb-most-voted-{top}": largest(their_votes, top)}
    if later is not None:
        popular = later[ITEM][largest(later["imdb_votes"].fillna(0).to_numpy(np.int64), top)]
        found[f"imdb-most-voted-{top}-joined-by-id"] = items[ITEM].isin(popular).to_numpy()
    return {name: mask for name, mask in found.items() if mask.any()}


def largest(counts: NDArray[np.int64], n: int) -> Mask:
    """(I,) bool: the n films with the highest counts above 0, ties to the lower index.

    >>> largest(np.array([0, 5, 2, 5]), 2).tolist()
    [False, True, False, True]
    """
    mask = np.zeros(len(counts), np.bool_)
    mask[np.argsort(-counts, kind="stable")[:n]] = True
    return mask & (counts > 0)


def kept(data: Interactions, masks: Mapping[str, Mask]) -> pd.DataFrame:
    """What each filter keeps: films, ratings, users with a rating left, and of the long tail.

    The long tail is the ratings of all films but the most rated fifth.
    """
    tail = ~largest(item_counts(data.user_item), len(data.items) // 5)[data.item]
    rows = [
        (name, int(mask.sum()), int(row.sum()), row.mean(), np.unique(data.user[row]).size, row[tail].mean())
        for name, mask in masks.items()
        for row in [mask[data.item]]
    ]
    columns = ["filter", "items", "ratings", "share_of_ratings", "users", "share_of_tail_ratings"]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class FilterStudy:
    """Per-user results by (filter trained on, filter tested on), rows in the order of ``data.users``.

    ndcg : (U,) of EASE's lists, which show kept films only; NaN where nothing relevant is left to find
    errors : sums of SVD's errors, see ``metrics.error_sums``
    """

    ndcg: dict[Key, Floats]
    errors: dict[Key, dict[str, Floats]]

    def rows(self, boot: Bootstrap) -> pd.DataFrame:
        """The rows of metrics.csv; columns ``filter`` and ``judged`` say which of a filter's three numbers each is."""
        parts = []
        for key, values in self.ndcg.items():
            variant = f"filter={key[0]};tested={key[1]}"
            ranking = metric_rows({NDCG: boot.mean(values)}, protocol="ranking-last20", model="ease",
                                  variant=f"{variant};relevance=liked")  # fmt: skip
            errors = summarise_errors(self.errors[key], boot, protocol="rating-last20", model="svd", variant=variant)
            name, judged = (key[0], "all test ratings") if key[1] == ALL else (key[1], "kept only")
            judged += ", trained on all" * (key[0] != name)
            parts.append(pd.concat([ranking, errors]).assign(filter=name, judged=judged))
        return pd.concat(parts, ignore_index=True)

    @property
    def usual(self) -> str:
        """The filter that decides: the most rated items."""
        return next(name for name, _ in self.ndcg if name.startswith("most-rated"))

    def contrasts(self, boot: Bootstrap) -> list[Contrast]:
        """The primary contrast (the most rated items instead of all, on everything users liked later) and the rest."""
        top, of = self.usual, "ndcg@10 of EASE (ranking-last20)"
        names = dict.fromkeys(name for name, _ in self.ndcg if name not in (NONE, top))
        training = boot.difference(self.ndcg[top, top], self.ndcg[NONE, top])
        rows = [
            Contrast.from_estimate(
                "most-rated" if name == top else name, f"trained on {name} instead of all items",
                boot.difference(self.ndcg[name, ALL], self.ndcg[NONE, ALL]), of=of, primary=name == top,
            )
            for name in (top, *names)
        ]  # fmt: skip
        kept = f"{of}, kept items only"
        return [*rows, Contrast.from_estimate("training", f"trained on {top} instead of all", training, of=kept)]

    def facts(self, boot: Bootstrap, shares: pd.DataFrame) -> dict[str, Any]:
        """Levels by name: ndcg@10 and RMSE without the deciding filter and with it, and what it keeps."""
        top = self.usual
        keys = {"none": (NONE, ALL), "filtered": (top, ALL), "kept_only": (top, top), "kept_unfiltered": (NONE, top)}
        rmse = {key: boot.rmse(sums["squared"], sums["count"]).value for key, sums in self.errors.items()}
        share = shares.set_index("filter").loc[top].to_dict()
        return {
            "filter": top, "items": int(share["items"]), "share_of_ratings": share["share_of_ratings"],
            "share_of_tail_ratings": share["share_of_tail_ratings"],
            **{f"ndcg_{name}": boot.mean(self.ndcg[key]).value for name, key in keys.items()},
            **{f"rmse_{name}": rmse[key] for name, key in keys.items()},
        }  # fmt: skip


def study_filters(
    data: Interactions, test: Mask, masks: Mapping[str, Mask], *, ease: EASE, svd: SVD, time_ordered: bool,
    jobs: int = 1,
) -> FilterStudy:  # fmt: skip
    """Fit on the films each filter keeps and judge as the module says; a filter that changes nothing is left out.

    Parameters
    ----------
    test : (N,) test ratings of ranking-last20 and rating-last20
    ease, svd : unfitted, with declared settings, the same for every filter
    """
    case, rated = warm_split(data, test, time_ordered=time_ordered), data.where(test)
    cut = {name: mask for name, mask in masks.items() if not mask.all()}
    names = [NONE, *(n for n, mask in cut.items() if _only(case.relevant, mask).nnz and mask[case.train.item].any())]
    tested = {name: [ALL, name] if name != NONE else [ALL, *names[1:]] for name in names}
    task = delayed(_judged)
    found: dict[Key, tuple[Floats, dict[str, Floats]]] = {}
    for some in Parallel(n_jobs=jobs)(task(case, rated, masks, name, tested[name], ease, svd) for name in names):
        found |= some
    order = [key for name in names for key in [(name, ALL), *([(name, name), (NONE, name)] if name != NONE else [])]]
    return FilterStudy({key: found[key][0] for key in order}, {key: found[key][1] for key in order})


def _judged(
    case: Case, rated: Interactions, masks: Mapping[str, Mask], name: str, tested: list[str], ease: EASE, svd: SVD
) -> dict[Key, tuple[Floats, dict[str, Floats]]]:
    """Train on the films that a filter keeps and test on those that each of ``tested`` keeps; scores stay here."""
    mask, found, users = masks[name], {}, case.train.users
    train = case.train.where(mask[case.train.item])
    scores = deepcopy(ease).fit(train).scores(_only(case.profiles, mask))
    predicted: Any = predict_by_surprise(train, rated, svd)
    for other in tested:
        seen = masks[other] if other != ALL else np.ones(len(mask), np.bool_)
        asked = replace(case, relevant=_only(case.relevant, seen), relevant_any=_only(case.relevant_any, seen))
        shown = mask if other == ALL else seen
        table = rank_and_measure(np.where(shown, scores, -np.inf).astype(np.float32), asked)
        row = seen[rated.item]
        sums = error_sums(rated.user[row], rated.rating[row], predicted[row], len(users))
        found[name, other] = align(table, users)[NDCG].to_numpy(), sums
    return found


def _only(matrix: csr_matrix, mask: Mask) -> csr_matrix:
    """The stored entries of the kept columns; a rating of 0 is one."""
    keep = mask[matrix.indices]
    before = np.concatenate([[0], np.cumsum(keep)])
    return csr_matrix((matrix.data[keep], matrix.indices[keep], before[matrix.indptr]), shape=matrix.shape)


def filter_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per filter, one column per metric and test part."""
    some = rows[rows["metric"] != "mae"].assign(on=lambda r: r["metric"] + ", " + r["judged"])
    wide = some.pivot_table("value", "filter", "on").reindex(some["filter"].unique())
    return wide.reset_index().rename_axis(columns=None)


def filter_figure(shares: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """What each filter keeps (left), and ndcg@10 and RMSE under each filter with intervals (right)."""
    names = shares["filter"].tolist()
    size = (11, 1.3 + 0.45 * len(names))
    figure, (left, *others) = plt.subplots(1, 3, sharey=True, figsize=size, width_ratios=[1, 1.3, 1.3])
    left.barh(range(len(names)), 100 * shares["share_of_ratings"], color="C3", label="ratings")
    tail = 100 * shares["share_of_tail_ratings"]
    left.plot(tail, range(len(names)), "C2D", label="ratings of the long tail", clip_on=False)
    left.set(xlabel="% kept", xlim=(0, 100), yticks=range(len(names)), yticklabels=names)
    left.invert_yaxis()
    for ax, metric in zip(others, (NDCG, "rmse"), strict=True):
        of_metric = rows[rows["metric"] == metric]
        for place, (kind, part) in enumerate(of_metric.groupby("judged", sort=False)):
            y = [names.index(name) + 0.22 * (place - 1) for name in part["filter"]]
            spread = [part["value"] - part["ci_low"], part["ci_high"] - part["value"]]
            ax.errorbar(part["value"], y, xerr=spread, label=kind, fmt=["C0o", "C1^", "C4s"][place], capsize=2)
        ax.set_xlabel({NDCG: "ndcg@10 of EASE", "rmse": "RMSE of SVD, rating points"}[metric])
        ax.axvline(of_metric["value"].iloc[0], color="0.6", zorder=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left")
    figure.legend(*others[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, title="tested on")
    return figure
