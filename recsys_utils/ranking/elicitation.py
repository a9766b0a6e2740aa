"""V3, preference elicitation: which items to ask a new user about, and what each question is worth.

A *question* shows one item; the user rates it, or does not know it (which costs the question and tells nothing). A
strategy is an order of questions - the same for everybody, or adapted to what was answered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans

from recsys_utils.base import (
    ITEM,
    RATING,
    USER,
    InputError,
    RatingPredictor,
    Recommender,
    Scale,
    child_rng,
    child_seed,
)
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.evaluation.metrics import error_sums, pattern
from recsys_utils.evaluation.protocols import Case, align, profile_size_cases, rank_and_measure
from recsys_utils.evaluation.significance import Bootstrap, Estimate
from recsys_utils.models.variational_mf import VariationalMF

Floats = NDArray[np.float64]
Asked = NDArray[np.int32]

ADAPTIVE, KNOWN = "adaptive", "likely known"  # the strategies of :class:`Adaptive`
LEVELS = 10  # a finer rating scale is cut into this many bins before entropies are taken
GROUPS = 8  # clusters of items for the strategy `groups`
_CANDIDATES = 250  # items best known to users that adaptive questions choose among
_ASKABLE = 0.5  # half of each newcomer's ratings is hidden at random
_FLOOR = 1e-4  # of a probability: linear updates may leave [0, 1]
_WEIGHT_OF_MISSING = 0.5  # of "not rated" in entropy0 (Rashid et al. 2008)


def question_orders(train: Interactions, length: int, seed: int, traits: Floats | None = None) -> dict[str, Asked]:
    """The first ``length`` questions of every strategy that asks everybody the same, by name.

    With n_i the users who rated item i, U all users, p_v the share of value v among the ratings of i:

    - ``random``; ``popularity``: n_i
    - ``entropy0``: entropy of (not rated, v1, v2, ...) with weight .5 for "not rated" and 1 for the others
    - ``helf``: harmonic mean of log n_i / log U and H_i / log L; H_i is the entropy of p, L the number of values
    - ``popularity x entropy``: log n_i * H_i
    - ``groups`` (with ``traits`` (I, K)): the most popular item of each of 8 clusters of items in turn

    Ties go to the lower item index. Papers: Rashid, Karypis & Riedl, "Learning preferences of new users in recommender
    systems: an information theoretic approach", SIGKDD Explorations 10(2), 2008; Chang, Harper & Terveen, "Using groups
    of items for preference elicitation", CSCW 2015 (there users choose among groups; here groups spread the questions).

    >>> from recsys_utils.base import Scale
    >>> frame = pd.DataFrame([("a", "x", 1), ("b", "x", 5), ("a", "y", 3), ("b", "y", 3), ("c", "y", 3), ("c", "z", 1)],
    ...                      columns=["user_id", "item_id", "rating"])
    >>> orders = question_orders(Interactions.from_frame(frame, scale=Scale(1, 5)), 3, seed=0)
    >>> orders["popularity"].tolist(), orders["helf"].tolist()  # everybody agrees about y: nothing to learn from it
    ([1, 0, 2], [0, 1, 2])
    """
    n_users, n_items = train.shape
    n = item_counts(train.user_item).astype(np.float64)
    values = _value_counts(train)
    entropy = _entropy(values / np.maximum(n, 1)[:, None])
    with_missing = np.column_stack([n_users - n, values]) / n_users
    popular, spread = np.log(np.maximum(n, 1)) / np.log(max(n_users, 2)), entropy / np.log(max(values.shape[1], 2))
    worth = {
        "random": child_rng(seed, "random questions").random(n_items),
        "popularity": n,
        "entropy0": _entropy(with_missing, _WEIGHT_OF_MISSING),
        "helf": 2 * popular * spread / np.maximum(popular + spread, 1e-12),
        "popularity x entropy": np.log(np.maximum(n, 1)) * entropy,
    }
    orders = {name: _best_first(value)[:length] for name, value in worth.items()}
    if traits is not None:
        groups = KMeans(min(GROUPS, n_items), n_init=4, random_state=child_seed(seed, "groups")).fit_predict(traits)
        by_popularity = _best_first(n)
        turn = np.empty(n_items, np.int64)  # how many items of the own group are more popular
        for group in range(GROUPS):
            members = by_popularity[groups[by_popularity] == group]
            turn[members] = np.arange(len(members))
        orders["groups"] = np.lexsort([np.arange(n_items), -n, turn]).astype(np.int32)[:length]
    return orders


def _value_counts(train: Interactions) -> Floats:
    """(I, L) how many users gave each item each value of the scale."""
    values, level = np.unique(train.rating, return_inverse=True)
    if len(values) > LEVELS:
        level = np.minimum((train.rating - train.scale.lo) / (train.scale.hi - train.scale.lo) * LEVELS, LEVELS - 1)
    shape = train.shape[1], min(len(values), LEVELS)
    counts = csr_matrix((np.ones(len(train)), (train.item, level.astype(np.int64))), shape=shape)
    return np.asarray(counts.todense())


def _entropy(share: Floats, first: float = 1.0) -> Floats:
    """-sum_v w_v p_v log p_v of each row, w = ``first`` for the first column and 1 for the others."""
    terms = share * np.log(share, where=share > 0, out=np.zeros_like(share))
    terms[:, 0] *= first
    return np.asarray(-terms.sum(axis=1))


def _best_first(worth: Floats) -> Asked:
    return np.lexsort([np.arange(len(worth)), -worth]).astype(np.int32)


@dataclass(frozen=True)
class Adaptive:
    """Questions that follow from the answers so far: what is probably known, times what a model would learn from it.

    Of a latent trait model the item side is taken as known: user traits x ~ N(0, diag(prior)), a rating of item m tells
    d_m . x plus noise. With S the covariance of x after the answers so far, a rating of m lowers the variance of all
    predictions, weighted by w (shares of the ratings), by ``sum_j w_j (d_j' S d_m)^2 / (d_m' S d_m + noise)``.

    Whether m is known is guessed from which items were known before: with p and C mean and covariance of "has rated"
    over users, knowing whether m was (y_m) moves p to ``p + C_m (y_m - p_m) / C_mm`` and C to ``C - C_m C_m' / C_mm``.
    Neither depends on what the ratings were. Paper: Rubens, Elahi, Sugiyama & Kaplan, "Active learning in recommender
    systems", Recommender Systems Handbook, 2015.

    Parameters
    ----------
    items : (C,) int32, the items that may be asked, best known first
    design : (C, K + 1), d_m: traits and 1 for the user's bias
    know, together : (C,), (C, C), mean and covariance of whether a user can answer
    target : (K + 1, K + 1), sum_j w_j d_j d_j' over all items
    prior : (K + 1,) variances of user traits and bias; ``noise`` : variance of a rating
    """

    items: Asked
    design: Floats
    know: Floats
    together: Floats
    target: Floats
    prior: Floats
    noise: float

    @classmethod
    def of(cls, train: Interactions, item_traits: Floats, prior: Floats, noise: float, answerable: float = 1.0) -> Self:
        """From a latent trait model: ``item_traits`` (I, K), ``prior`` (K + 1,) with the bias last.

        ``answerable`` is the share of what a user rated that can be asked for: less than 1 in a simulation that hides
        ratings at random, which thins what is rated together accordingly.
        """
        n = item_counts(train.user_item).astype(np.float64)
        design = np.column_stack([item_traits, np.ones(len(n))])
        items = _best_first(n)[:_CANDIDATES]
        target = design.T @ (design * (n / n.sum())[:, None])
        rated = pattern(train.user_item)[:, items].toarray().astype(np.float64)
        know = answerable * rated.mean(axis=0)
        together = answerable**2 * np.cov(rated.T, bias=True)
        together[np.diag_indices_from(together)] = know * (1 - know)
        together += 1e-3 * np.eye(len(items))
        return cls(items, design[items], know, together, target, prior, float(noise))

    def ask(self, known: csr_matrix, length: int, *, learn: bool = True) -> Asked:
        """(B, length) questions for users who know the stored items of ``known`` (B, I); -1 beyond the last.

        Without ``learn`` they ask what is most probably known, whatever it tells.
        """
        place = np.full(known.shape[1], -1, np.int64)
        place[self.items] = np.arange(len(self.items))
        asked = np.full((known.shape[0], min(length, len(self.items))), -1, np.int32)
        _ask(
            known.indptr, known.indices, place, self.design, self.know, self.together, self.target, self.prior,
            self.noise, learn, asked,
        )  # fmt: skip
        return np.where(asked >= 0, self.items[asked], -1).astype(np.int32)


@njit(cache=True)
def _ask(indptr, indices, place, design, know, together, target, prior, noise, learn, asked):  # type: ignore[no-untyped-def]
    count, width = design.shape
    reduction = np.ones(count)
    for user in range(asked.shape[0]):
        can = np.zeros(count, np.bool_)
        for at in indices[indptr[user] : indptr[user + 1]]:
            if place[at] >= 0:
                can[place[at]] = True
        spread, chance, joint = np.diag(prior), know.copy(), together.copy()
        open_ = np.ones(count, np.bool_)
        stale = learn
        for q in range(asked.shape[1]):
            if stale:  # only an answer changes what is known of the traits
                gain = spread @ target @ spread
                for m in range(count):
                    own, all_ = noise, 0.0
                    for i in range(width):
                        for j in range(width):
                            product = design[m, i] * design[m, j]
                            own += product * spread[i, j]
                            all_ += product * gain[i, j]
                    reduction[m] = all_ / own
                stale = False
            best, worth = -1, 0.0
            for m in range(count):
                if open_[m] and (best < 0 or max(chance[m], _FLOOR) * reduction[m] > worth):
                    best, worth = m, max(chance[m], _FLOOR) * reduction[m]
            open_[best] = False
            asked[user, q] = best
            column = joint[best].copy()
            chance += column * ((1.0 if can[best] else 0.0) - chance[best]) / column[best]
            for i in range(count):
                joint[i] -= column * (column[i] / column[best])
            joint[best, best] = 1.0  # it is not asked again; keeps the division defined
            if can[best]:
                moved = spread @ design[best]
                spread -= np.outer(moved, moved) / (noise + design[best] @ moved)
                stale = learn


# ---- simulation


def answered(case: Case, asked: Asked) -> Case:
    """The case with its profiles cut to the items among ``asked``, (q,) for all or (B, q), that they hold.

    Who has not rated an item does not know it. Ratings of the target can't be asked for: no profile of a case has them.
    """
    rows = np.broadcast_to(asked, (len(case.users), asked.shape[-1]))
    user, item = np.nonzero(rows >= 0)[0], rows[rows >= 0]
    shown = csr_matrix((np.ones(len(item), np.float32), (user, item)), shape=case.profiles.shape)
    return replace(case, profiles=case.profiles.multiply(shown).tocsr(), n=None)


def simulate(
    case: Case, orders: Mapping[str, Asked], counts: Sequence[int], predictor: RatingPredictor, ranker: Recommender
) -> pd.DataFrame:
    """What new users' answers are worth, by strategy and number of questions.

    Parameters
    ----------
    case : new users with all they can answer in their profiles (``profile_size_cases(..., sizes=[None])``)
    orders : questions by strategy, (q,) or (B, q) each
    counts : numbers of questions after which to look
    predictor, ranker : fitted on the case's training part; the first is judged by rating error, the second by ranking

    Returns
    -------
    user_id, strategy, questions, answers, squared, absolute, count (error sums over the target), ndcg@10
    """
    rows, targets = [], case.relevant_any.tocoo()
    for strategy, asked in orders.items():
        for questions in counts:
            now = answered(case, asked[..., :questions])
            predicted = predictor.ratings(now.profiles)[targets.row, targets.col]
            sums = error_sums(targets.row, targets.data, predicted, len(case.users))
            table = rank_and_measure(ranker, now)[[USER, "ndcg@10"]].assign(strategy=strategy, questions=questions)
            rows.append(table.assign(answers=np.diff(now.profiles.indptr), **sums))
    return pd.concat(rows, ignore_index=True)


def simulate_folds(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, ranker: Recommender, counts: Sequence[int],
    n_factors: int, *, seed: int, jobs: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """:func:`simulate` for every strategy, the test users of every fold as newcomers; a random half is hidden."""
    task = delayed(_simulate_fold)
    found: list[pd.DataFrame] = Parallel(n_jobs=jobs)(
        task(data, splits, users, fold, ranker, counts, n_factors, seed) for fold in sorted(users["fold"].unique())
    )
    return pd.concat(found, ignore_index=True)


def _simulate_fold(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, fold: int, ranker: Recommender,
    counts: Sequence[int], n_factors: int, seed: int,
) -> pd.DataFrame:  # fmt: skip
    (case,) = profile_size_cases(data, splits, users, fold, order="random_0", sizes=[None])
    traits = VariationalMF(n_factors=n_factors, seed=child_seed(seed, "traits", fold)).fit(case.train)
    length = min(max(counts), data.shape[1])
    orders = question_orders(case.train, length, child_seed(seed, "orders", fold), traits.item_mean[:, :-1])
    adaptive = Adaptive.of(case.train, traits.item_mean[:, :-1], traits.user_prior, float(traits.noise), _ASKABLE)
    orders |= {ADAPTIVE: adaptive.ask(case.profiles, length), KNOWN: adaptive.ask(case.profiles, length, learn=False)}
    return simulate(case, orders, counts, traits, ranker.fit(case.train))


# ---- what the notebook shows


def elicitation_curves(per_user: pd.DataFrame, users: Sequence[str], boot: Bootstrap) -> pd.DataFrame:
    """Answers, rmse and ndcg@10 by strategy and number of questions, each with its interval over ``users``."""
    rows = []
    for (strategy, questions), part in per_user.groupby(["strategy", "questions"], sort=False):
        table = align(part, users)
        estimates = {
            "answers": boot.mean(table["answers"].to_numpy(np.float64)),
            "rmse": boot.rmse(*table[["squared", "count"]].fillna(0).to_numpy(np.float64).T),
            "ndcg@10": boot.mean(table["ndcg@10"].to_numpy(np.float64)),
        }
        rows += [{"strategy": strategy, "questions": questions} | e.evidence(m) for m, e in estimates.items()]
    return pd.DataFrame(rows)


def questions_needed(per_user: pd.DataFrame, users: Sequence[str], boot: Bootstrap) -> pd.DataFrame:
    """Questions after which each strategy reaches what ``popularity`` reaches at the end, by rmse and by ndcg@10."""
    at = np.unique(per_user["questions"])
    rows = []
    for metric in ("rmse", "ndcg@10"):
        sums = {name: _sums(part, users, metric) for name, part in per_user.groupby("strategy", sort=False)}
        level, weight = (matrix[:, -1] for matrix in sums["popularity"])
        for strategy, (curve, weights) in sums.items():
            if strategy != "popularity":
                found = boot.first_reaching(curve, weights, at.astype(np.float64), level, weight)
                rows.append({"strategy": strategy} | found.evidence(metric))
    return pd.DataFrame(rows)


def gains(per_user: pd.DataFrame, users: Sequence[str], boot: Bootstrap) -> dict[tuple[str, int, str], Estimate]:
    """Gains over ``popularity`` by (strategy, questions, metric); higher is better, for rmse too."""
    found: dict[tuple[str, int, str], Estimate] = {}
    for questions in sorted(per_user["questions"].unique().tolist()):
        rows = per_user[per_user["questions"] == questions]
        tables = {name: align(part, users) for name, part in rows.groupby("strategy", sort=False)}
        theirs = tables.pop("popularity")
        for strategy, ours in tables.items():
            squared_ours, squared_theirs, count = (
                column.fillna(0).to_numpy(np.float64) for column in (ours["squared"], theirs["squared"], ours["count"])
            )
            ndcg = (table["ndcg@10"].to_numpy(np.float64) for table in (ours, theirs))
            found[str(strategy), questions, "rmse"] = boot.rmse_difference(squared_theirs, squared_ours, count)
            found[str(strategy), questions, "ndcg@10"] = boot.difference(*ndcg)
    return found


def _sums(part: pd.DataFrame, users: Sequence[str], metric: str) -> tuple[Floats, Floats]:
    """(U, M) numerators and denominators of a curve that falls when things get better."""
    by = [align(rows, users) for _, rows in part.groupby("questions")]
    if metric == "rmse":
        return tuple(np.column_stack([t[c].fillna(0) for t in by]) for c in ("squared", "count"))  # type: ignore[return-value]
    values = np.column_stack([t[metric] for t in by])
    return -np.nan_to_num(values), (~np.isnan(values)).astype(np.float64)


# ---- a person answers


def interview(questions: pd.DataFrame, scale: Scale, out: Path, ask: Callable[[str], str]) -> int:
    """Ask about the items of ``questions`` (item_id, title, year) in turn; every answer is in ``out`` at once.

    An empty answer means "I don't know it", ``q`` ends. What ``out`` already holds is kept and not asked again, so an
    interview can be taken up later. The file (item_id,title,year,rating) is one that ``own_ratings.read`` takes.

    Returns
    -------
    the number of ratings in ``out``

    Raises
    ------
    InputError : ``out`` holds something else.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"{out} can't be written: name a file in a folder that exists.")
    columns = [ITEM, "title", "year", RATING]
    given = pd.DataFrame(columns=columns, dtype=object)
    if out.exists():
        try:
            given = pd.read_csv(out, dtype=str, keep_default_na=False)
        except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError):
            raise InputError(f"{out} is no table of an earlier interview; name another file.") from None
        if list(given.columns) != columns:
            raise InputError(
                f"{out} holds {', '.join(given.columns)}, not answers of an earlier interview; name another."
            )
    left = questions[~questions[ITEM].isin(given[ITEM])]
    for number, row in enumerate(left.to_dict("records"), start=1):
        year = "" if pd.isna(row["year"]) else f" ({row['year']})"
        rating = _rating(f"{number}/{len(left)}  {row['title']}{year}", scale, ask)
        if rating is None:
            break
        if rating != "":
            answer = [row[ITEM], row["title"], "" if pd.isna(row["year"]) else str(row["year"]), rating]
            given = pd.concat([given, pd.DataFrame([answer], columns=columns)], ignore_index=True)
            fresh = out.with_name(f".{out.name}.tmp")
            given.to_csv(fresh, index=False, lineterminator="\n", encoding="utf-8")
            os.replace(fresh, out)
    return len(given)


def _rating(question: str, scale: Scale, ask: Callable[[str], str]) -> str | None:
    """The answer to one question: a rating on the scale, "" for not known, None for enough."""
    while True:
        text = ask(f"{question}: {scale.lo:g} to {scale.hi:g}, Enter = don't know it, q = enough: ").strip()
        if text in ("", "q"):
            return None if text == "q" else ""
        with contextlib.suppress(ValueError):
            if scale.lo <= float(text) <= scale.hi:
                return text
