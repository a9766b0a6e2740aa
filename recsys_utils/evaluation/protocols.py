"""Who is tested on what: the splits, and the loops that evaluate models under each protocol.

Columns of ``splits`` (one row a rating, aligned with the interactions):

- ``rating_fold`` int8: fold of the rating-cv5 protocol
- ``last20`` bool: test part of rating-last20 and ranking-last20
- ``stratified_<s>`` bool: test part of ranking-stratified, seed s
- ``position_time``, ``position_random_<s>`` int32: place of the rating in the user's order; profile-size profiles are
  prefixes of it, the target is its tail (:func:`target_size`)
- ``u1_test`` bool: test part of rating-u1, the official split; only where the archive has it

Columns of ``users``: user_id, ``fold`` int8 (profile-size test fold), ``part`` int8 (0-4; the users of other folds with
``part == fold`` are the validation users of that fold). Columns of ``item_folds``: item_id, ``fold`` int8 (cold-item).

Whatever the protocol, a :class:`Case` is what a model is tested on. It can't be built from leaking parts: the guards
(``check_*``) raise :class:`LeakError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, USER, Recommender, Scores, child_seed, counted
from recsys_utils.data.interactions import Interactions, item_counts, sessions
from recsys_utils.evaluation import metrics
from recsys_utils.evaluation.significance import Bootstrap, jackknife, metric_rows

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]

VALIDATION_PARTS = 5
_TIES = 1  # seed of the order in which equal scores are ranked
_CELLS = 2**24  # scores held at once: 64 MB of float32, and never more than 4,000 users


def seeded_hash(ids: NDArray[np.object_], seed: int) -> NDArray[np.uint64]:
    """A pseudo-random number per id that depends on the id and the seed alone, not on its place in a table."""
    values: NDArray[np.uint64] = pd.util.hash_array(np.asarray(ids, dtype=object), hash_key=f"{seed:016d}"[-16:])
    return values


def target_size(n: NDArray[np.int_]) -> NDArray[np.int_]:
    """Ratings reserved as the fixed target of a user with n ratings: half of them, at least 10.

    >>> target_size(np.array([20, 21, 101])).tolist()
    [10, 10, 50]
    """
    return np.maximum(10, n // 2)


def _rank_within(user: NDArray[np.int32], *keys: NDArray[np.generic]) -> NDArray[np.int32]:
    """Rank of each row among its user's rows, ordered by keys[0], ties by keys[1] and so on."""
    order = np.lexsort([*reversed(keys), user])
    counts = np.bincount(user)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(user), np.int32)
    rank[order] = np.arange(len(user)) - starts[user[order]]
    return rank


def _is_last_fifth(place: NDArray[np.int32], n: NDArray[np.int_]) -> Mask:
    """The last 20 % of n ratings, at least 5; none of a user who would keep fewer than 5."""
    last = np.maximum(5, n // 5)
    tail: Mask = (place >= n - last) & (n - last >= 5)
    return tail


def _balanced_folds(hashes: NDArray[np.uint64], folds: int) -> NDArray[np.int8]:
    fold = np.empty(len(hashes), np.int8)
    fold[np.argsort(hashes, kind="stable")] = np.arange(len(hashes)) % folds
    return fold


def make_splits(
    data: Interactions, *, seed: int, rating_folds: int = 5, user_folds: int = 5, item_folds: int = 5,
    random_orders: int = 5, stratified_seeds: int = 5,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """The splits of all protocols, made once per run: tables ``splits``, ``users``, ``item_folds`` (module docstring).

    Every choice is a seeded hash of ids, so the order of the input rows does not matter.
    """

    def pair_hash(name: str, number: int = 0) -> NDArray[np.uint64]:
        by_user = seeded_hash(data.users, child_seed(seed, name, number, "user"))[data.user]
        by_item = seeded_hash(data.items, child_seed(seed, name, number, "item"))[data.item]
        mixed = (by_user ^ (by_item + np.uint64(0x9E3779B97F4A7C15) + (by_user << np.uint64(6)))) * np.uint64(
            0xBF58476D1CE4E5B9
        )
        return mixed ^ (mixed >> np.uint64(31))

    counts = np.bincount(data.user, minlength=len(data.users))
    n = counts[data.user]
    splits = pd.DataFrame({"rating_fold": _balanced_folds(pair_hash("rating_fold"), rating_folds)})
    time = _rank_within(data.user, data.timestamp, pair_hash("time_ties"))
    splits["last20"] = _is_last_fifth(time, n)
    for s in range(stratified_seeds):
        place = _rank_within(data.user, pair_hash("stratified", s))
        splits[f"stratified_{s}"] = place >= np.round(0.75 * n)
    splits["position_time"] = time
    for s in range(random_orders):
        splits[f"position_random_{s}"] = _rank_within(data.user, pair_hash("random_order", s))
    users = pd.DataFrame(
        {
            USER: data.users,
            "fold": _balanced_folds(seeded_hash(data.users, child_seed(seed, "user_fold")), user_folds),
            "part": _balanced_folds(seeded_hash(data.users, child_seed(seed, "user_part")), VALIDATION_PARTS),
        }
    )
    item_hash = seeded_hash(data.items, child_seed(seed, "item_fold"))
    folds = pd.DataFrame({ITEM: data.items, "fold": _balanced_folds(item_hash, item_folds)})
    return splits, users, folds


def draw_panel(users: NDArray[np.object_], size: int, *, seed: int) -> Mask:
    """(U,) bool: the users a study looks at, all of them or ``size`` drawn by a seeded hash of their ids.

    >>> draw_panel(np.array(["a", "b", "c"], dtype=object), 2, seed=1).sum()
    np.int64(2)
    """
    mask = np.zeros(len(users), np.bool_)
    mask[np.argsort(seeded_hash(users, seed), kind="stable")[:size]] = True
    return mask


# ---- guards


class LeakError(AssertionError):
    """The evaluation would see what it must predict."""


def check_profiles(profiles: csr_matrix, targets: csr_matrix) -> None:
    """No target may be part of the profile it is to be predicted from; csr (B, I) each."""
    shared = metrics.pattern(profiles).multiply(metrics.pattern(targets)).nnz
    if shared:
        raise LeakError(f"in the profile of their own user: {counted(shared, 'target rating')}")


def check_train(train: Interactions, users: Rows, targets: csr_matrix) -> None:
    """No target may be among the ratings the model is fitted on."""
    shared = metrics.pattern(train.user_item[users]).multiply(metrics.pattern(targets)).nnz
    if shared:
        raise LeakError(f"in the training part: {counted(shared, 'target rating')}")


def check_new_users(train: Interactions, users: Rows) -> None:
    """Users who stand for newcomers may have no training rating at all."""
    seen = np.zeros(len(train.users), np.bool_)
    seen[train.user] = True
    known = np.sort(users[seen[users]])
    if known.size:
        raise LeakError(
            f"in the training part: {counted(known.size, 'test user')}, the first {train.users[known[0]]!r}"
        )


def check_new_items(train: Interactions, profiles: csr_matrix, candidates: Mask) -> None:
    """Films that stand for new ones may be rated neither in training nor in a profile."""
    rated = int(candidates[train.item].sum() + candidates[profiles.indices].sum())
    if rated:
        raise LeakError(f"in the training part or in profiles: {counted(rated, 'rating')} of withheld films")


def check_time_order(data: Interactions, profile: Mask, target: Mask) -> None:
    """No rating of a user's profile may be younger than a rating of the same user's target; (N,) masks, ties pass."""
    newest = np.full(len(data.users), np.iinfo(np.int64).min)
    oldest = np.full(len(data.users), np.iinfo(np.int64).max)
    np.maximum.at(newest, data.user[profile], data.timestamp[profile])
    np.minimum.at(oldest, data.user[target], data.timestamp[target])
    late = np.flatnonzero(newest > oldest)
    if late.size:
        raise LeakError(
            f"with profile ratings from after their first target: {counted(late.size, 'user')}, "
            f"the first is {data.users[late[0]]!r}"
        )


def check_cut(train: Interactions, moment: int) -> None:
    """A model of some moment (seconds since 1970) knows ratings from before it and no other."""
    late = int((train.timestamp >= moment).sum())
    if late:
        raise LeakError(f"not older than the moment the model is asked at: {counted(late, 'training rating')}")


def check_counts(train: Interactions, counts: NDArray[np.int64]) -> None:
    """Popularity must have been counted on the training part and nothing else; counts (I,)."""
    off = int(np.abs(counts - item_counts(train.user_item)).sum())
    if off:
        raise LeakError(f"film popularity differs from the training part's by {counted(off, 'rating')}")


def check_tuning(tuned_on: Case, reported: Case) -> None:
    """Parameters must have been chosen on other targets than those that are reported."""
    shared = np.intersect1d(tuned_on.target_pairs, reported.target_pairs).size
    if shared:
        raise LeakError(
            f"parameters were chosen on {shared} of the {reported.relevant_any.nnz} reported target ratings"
        )


# ---- cases


@dataclass(frozen=True)
class Case:
    """One test: fit on ``train``, rank for ``profiles``, look for ``relevant``.

    Parameters
    ----------
    train : all a model may be fitted on, and all that popularity may be counted on
    users : (B,) positions in ``train.users``
    profiles : csr (B, I) float32 ratings a model may know of each user at the time of ranking
    relevant : csr (B, I), the target films the user likes
    relevant_any : csr (B, I), all target films, liked or not
    n : number of ratings in every profile (profile-size), else None
    candidates : (I,) bool, the films to rank (cold-item), else None for all outside the profile
    new_users : the models must never have seen these users

    Raises
    ------
    LeakError : profile, training part and target overlap.
    """

    train: Interactions
    users: Rows
    profiles: csr_matrix
    relevant: csr_matrix
    relevant_any: csr_matrix
    n: int | None = None
    candidates: Mask | None = None
    new_users: bool = False

    def __post_init__(self) -> None:
        check_profiles(self.profiles, self.relevant_any)
        if self.new_users:  # who has no training rating has no target among them either
            check_new_users(self.train, self.users)
        else:
            check_train(self.train, self.users, self.relevant_any)
        if self.candidates is not None:
            check_new_items(self.train, self.profiles, self.candidates)

    @property
    def user_ids(self) -> NDArray[np.object_]:
        return self.train.users[self.users]

    @property
    def target_pairs(self) -> NDArray[np.int64]:
        """A number for each target rating that is the same in every case of the data set."""
        rows = np.repeat(self.users, np.diff(self.relevant_any.indptr)).astype(np.int64)
        pairs: NDArray[np.int64] = rows * self.relevant_any.shape[1] + self.relevant_any.indices
        return pairs


def _case(data: Interactions, train: Interactions, users: Rows, profile: Mask, target: Mask, **more: Any) -> Case:
    """Cut the rows of ``users`` out of the ratings under two (N,) masks."""
    targets = data.where(target)
    return Case(
        train=train, users=users, profiles=data.where(profile).user_item[users],
        relevant=targets.liked_item[users], relevant_any=targets.user_item[users], **more,
    )  # fmt: skip


def warm_split(
    data: Interactions, test: ArrayLike, *, hidden: ArrayLike | None = None, time_ordered: bool = False
) -> Case:
    """ranking-last20, ranking-stratified: the ratings under ``test`` (N,) are targets, the others profile and train.

    Users without a test rating are in ``train`` but not in the case. ``hidden`` (N,) ratings are left out altogether:
    tune on ``warm_split(data, validation_mask(...), hidden=test)``. ``time_ordered`` checks that no profile looks into
    the future: say so for last20.
    """
    target = np.asarray(test, np.bool_)
    profile = ~target if hidden is None else ~target & ~np.asarray(hidden, np.bool_)
    if time_ordered:
        check_time_order(data, profile, target)
    return _case(data, data.where(profile), np.unique(data.user[target]).astype(np.intp), profile, target)


def validation_mask(data: Interactions, test: ArrayLike, position: ArrayLike) -> Mask:
    """(N,) bool: of each user's ratings outside ``test``, the last fifth (at least 5) in the order of ``position``.

    For tuning inside a warm training part; ``position`` is ``position_time`` for last20, else a random one.
    """
    rest = np.flatnonzero(~np.asarray(test, np.bool_))
    place = _rank_within(data.user[rest], np.asarray(position)[rest])
    mask = np.zeros(len(data), np.bool_)
    mask[rest] = _is_last_fifth(place, np.bincount(data.user[rest], minlength=len(data.users))[data.user[rest]])
    return mask


def tuning_and_test(
    data: Interactions, test: ArrayLike, position: ArrayLike, *, time_ordered: bool = False
) -> tuple[Case, Case]:  # fmt: skip
    """The case to choose on, a slice of the training part with the test part hidden, and the case to report."""
    tuning = warm_split(data, validation_mask(data, test, position), hidden=test, time_ordered=time_ordered)
    return tuning, warm_split(data, test, time_ordered=time_ordered)


@dataclass(frozen=True)
class FoldUsers:
    """Positions of the users whom models are fitted (64 %), tuned (16 %) and reported on (20 %)."""

    fit: Rows
    validation: Rows
    test: Rows


def fold_users(users: pd.DataFrame, fold: int) -> FoldUsers:
    """The three parts of the users in one profile-size fold; every user is a test user in exactly one fold."""
    tested = users["fold"].to_numpy() == fold
    validating = ~tested & (users["part"].to_numpy() == fold % VALIDATION_PARTS)
    return FoldUsers(*(np.flatnonzero(part) for part in (~tested & ~validating, validating, tested)))


def profile_size_cases(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, fold: int, *, order: str,
    sizes: Sequence[int | None], part: Literal["validation", "test"] = "test",
) -> Iterator[Case]:  # fmt: skip
    """profile-size: one case per profile size n, of the users who have n ratings outside their fixed target.

    Parameters
    ----------
    order : "time" or "random_<s>", the column position_<order> of ``splits``
    sizes : profile sizes n; one that no user has is skipped; None = all ratings outside the target
    part : whom to test: validation users to make choices, test users to report

    Profiles are nested prefixes of the order; the target is its tail, the same for every n.
    """
    members = fold_users(users, fold)
    train = data.of_users(members.fit)
    rows: Rows = getattr(members, part)
    place = splits[f"position_{order}"].to_numpy()
    n = np.bincount(data.user, minlength=len(data.users))
    longest = n - target_size(n)
    mine = np.isin(data.user, rows)
    target = mine & (place >= longest[data.user]) & (longest[data.user] >= 0)
    if order == "time":
        check_time_order(data, mine & ~target, target)
    for size in sizes:
        have = rows[longest[rows] >= (size or 0)]
        if have.size:
            kept = mine & ~target if size is None else mine & (place < size) & ~target
            yield _case(data, train, have, kept, target, n=size, new_users=True)


def cold_item_case(data: Interactions, item_folds: pd.DataFrame, fold: int, *, hidden: int | None = None) -> Case:
    """cold-item: the films of ``fold`` are withheld from training and profiles; only they are ranked.

    ``hidden`` names a second fold that is left out altogether: tune for fold f on
    ``cold_item_case(data, item_folds, other, hidden=f)``.
    """
    number = item_folds["fold"].to_numpy()
    target = number[data.item] == fold
    profile = ~target if hidden is None else ~target & (number[data.item] != hidden)
    users = np.unique(data.user[target]).astype(np.intp)
    return _case(data, data.where(profile), users, profile, target, candidates=number == fold)


@dataclass(frozen=True)
class Timeline:
    """ranking-time: who came back when, and what was known at any moment.

    A session (``interactions.sessions``) is known once it is over. So no session is cut in two, and the order of
    ratings within a session, which time stamps hardly tell, has no say in any result.
    """

    data: Interactions

    @cached_property
    def session(self) -> NDArray[np.int32]:
        """(N,) number of the rating's session among its user's."""
        return sessions(self.data)

    @cached_property
    def _spans(self) -> pd.DataFrame:
        """A row per rating: start and end of its session."""
        times = pd.Series(self.data.timestamp).groupby([self.data.user, self.session])
        return pd.DataFrame({"start": times.transform("min"), "end": times.transform("max")})

    @cached_property
    def returns(self) -> pd.DataFrame:
        """user (position), session, start: every session after a user's first in which an item was liked."""
        table = pd.DataFrame({"user": self.data.user, "session": self.session, "start": self._spans["start"]})
        came_back = (self.session > 0) & (self.data.rating >= self.data.scale.liked)
        return table[came_back].drop_duplicates().sort_values(["user", "session"], ignore_index=True)

    def before(self, moment: int) -> Interactions:
        """The ratings of all sessions that were over before ``moment``, in seconds since 1970."""
        return self.data.where(self._spans["end"].to_numpy() < moment)

    def case(self, returns: pd.DataFrame, moment: int) -> Case:
        """Fit on what was known at ``moment``, rank for each of these ``returns`` (rows of :attr:`returns`).

        The profile holds all earlier sessions of the user, also those after ``moment``; the session is the target.

        Raises
        ------
        LeakError : a session began before ``moment``, or a profile looks beyond the start of its session.
        """
        train = self.before(moment)
        check_cut(train, int(returns["start"].min()))
        rated = pd.DataFrame({"user": self.data.user, "row": np.arange(len(self.data)), "of": self.session})
        pairs = returns.assign(event=np.arange(len(returns))).merge(rated, on="user").query("of <= session")
        rows, known = pairs["row"].to_numpy(), (pairs["of"] < pairs["session"]).to_numpy()
        # every return becomes a user of its own, so that the guard looks at each
        story = replace(
            self.data, users=self.data.users[returns["user"]], user=pairs["event"].to_numpy(np.int32),
            item=self.data.item[rows], rating=self.data.rating[rows], timestamp=self.data.timestamp[rows],
        )  # fmt: skip
        check_time_order(story, known, ~known)
        target = story.where(~known)
        users = returns["user"].to_numpy(np.intp)
        return Case(train, users, story.where(known).user_item, target.liked_item, target.user_item)


# ---- measuring


def user_blocks(shape: tuple[int, ...], cells: int = _CELLS) -> list[slice]:
    """Rows of (users, items) that are scored together, so that no more than ``cells`` scores are held at once."""
    n_users, n_items = shape
    step = max(1, min(4000, cells // n_items))
    return [slice(start, start + step) for start in range(0, n_users, step)]


def tie_order(items: NDArray[np.object_]) -> NDArray[np.int_]:
    """(I,) positions of the items in the order in which equal scores are ranked."""
    order: NDArray[np.int_] = np.argsort(seeded_hash(items, _TIES), kind="stable")
    return order


def rank_lists(model_or_scores: Recommender | Scores, case: Case, k: int = 10) -> metrics.Lists:
    """(B, k) lists for the users of a case, from a fitted model (scored in blocks of users) or from (B, I) scores.

    Ties are broken by a seeded hash of the item ids, not by their order: a catalogue numbered roughly by popularity (as
    ML-100K is) would otherwise lend popularity to a model that can't tell films apart.
    """
    order = tie_order(case.train.items)
    if isinstance(model_or_scores, np.ndarray):
        return metrics.top_k(model_or_scores, case.profiles, k, case.candidates, order)
    blocks = [case.profiles[block] for block in user_blocks(case.profiles.shape)]
    scored = ((block, model_or_scores.scores(block)) for block in blocks)
    return np.concatenate([metrics.top_k(scores, block, k, case.candidates, order) for block, scores in scored])


def measure(
    lists: metrics.Lists, case: Case, k: int = 10, *, traits: metrics.ItemTraits | None = None,
    relevance: Literal["liked", "any"] = "liked",
) -> pd.DataFrame:  # fmt: skip
    """Per-user metrics of given lists: user_id and a column per metric, NaN where a metric is undefined.

    ``traits`` adds the metrics beyond accuracy (not meant for cold items, which have no popularity).

    Raises
    ------
    LeakError : ``traits`` were not counted on the case's training part.
    """
    relevant = case.relevant if relevance == "liked" else case.relevant_any
    values = metrics.ranking_metrics(lists, relevant, k=k)
    if traits is not None:
        check_counts(case.train, traits.counts)
        values |= metrics.list_metrics(lists, traits, profiles=case.profiles, relevant=relevant, k=k)
    return pd.DataFrame({USER: case.user_ids} | values)


def rank_and_measure(
    model_or_scores: Recommender | Scores, case: Case, k: int = 10, *, traits: metrics.ItemTraits | None = None,
    relevance: Literal["liked", "any"] = "liked",
) -> pd.DataFrame:  # fmt: skip
    """:func:`measure` of :func:`rank_lists`: per-user metrics of a fitted model or of (B, I) scores."""
    return measure(rank_lists(model_or_scores, case, k), case, k, traits=traits, relevance=relevance)


def best_on_other_items(
    models: Mapping[str, Recommender], data: Interactions, item_folds: pd.DataFrame, fold: int
) -> str:  # fmt: skip
    """The name of the fitted model that ranks the items of the other folds best, those of ``fold`` hidden from all.

    What is chosen for the cold-item test of ``fold`` must not rest on ratings of its items. Ties: the first.
    """
    others = [other for other in sorted(item_folds["fold"].unique()) if other != fold]
    cases = [cold_item_case(data, item_folds, other, hidden=fold) for other in others]
    reached = {
        name: sum(rank_and_measure(model, case)["ndcg@10"].mean() for case in cases) for name, model in models.items()
    }
    return max(reached, key=lambda name: reached[name])


def align(per_user: pd.DataFrame, users: ArrayLike) -> pd.DataFrame:
    """One row per id in ``users``, in that order: the mean of a user's rows (say, over seeds), NaN for absent users.

    What makes tables of different models, folds and sizes pair up: bootstrap and differences take its columns.
    """
    return per_user.groupby(USER, sort=False).mean(numeric_only=True).reindex(np.asarray(users, dtype=object))


def summarise(
    per_user: pd.DataFrame, bootstrap: Bootstrap, *, users: ArrayLike, protocol: str, model: str, variant: str = "",
    segment: str = "all",
) -> pd.DataFrame:  # fmt: skip
    """Metric rows (value, interval, n) of a per-user table; a metric that no user has gives no row.

    ``users`` (U,) are the ids the bootstrap resamples, normally all of the data set; ``n`` counts those in the mean.
    """
    table = align(per_user, users).dropna(axis=1, how="all")
    estimates = dict(zip(table.columns, bootstrap.means(table.to_numpy(np.float64)), strict=True))
    return metric_rows(estimates, protocol=protocol, model=model, variant=variant, segment=segment)


def summarise_lists(
    lists: metrics.Lists, n_items: int, *, protocol: str, model: str, variant: str = "", segment: str = "all"
) -> pd.DataFrame:
    """Metric rows of coverage@k and gini@k with jackknife intervals; ``n`` is the number of lists they depend on."""
    k = lists.shape[1]
    estimates = {
        f"coverage@{k}": jackknife(metrics.coverage(lists, n_items), metrics.coverage_without_each(lists, n_items)),
        f"gini@{k}": jackknife(metrics.gini(lists, n_items), metrics.gini_without_each(lists, n_items)),
    }
    return metric_rows(estimates, protocol=protocol, model=model, variant=variant, segment=segment)


def summarise_errors(
    sums: dict[str, metrics.PerUser], bootstrap: Bootstrap, *, protocol: str, model: str, variant: str = "",
    segment: str = "all",
) -> pd.DataFrame:  # fmt: skip
    """Metric rows of rmse and mae from :func:`metrics.error_sums` over the bootstrap's users (folds added up)."""
    estimates = {
        "rmse": bootstrap.rmse(sums["squared"], sums["count"]),
        "mae": bootstrap.ratio(sums["absolute"], sums["count"]),
    }
    return metric_rows(estimates, protocol=protocol, model=model, variant=variant, segment=segment)
