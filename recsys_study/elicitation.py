"""What should a new user be asked first? Strategies that choose questions, and simulated newcomers who answer them.

A *question* shows one item; the user rates it, or does not know it, which costs the question and tells nothing. A
strategy is an order of questions: the same for everybody, or adapted to the answers so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import entr
from sklearn.cluster import KMeans

from recsys_study.figures import dodged
from recsys_study.findings import Contrast
from recsys_utils.base import USER, RatingPredictor, Recommender, child_rng, child_seed
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.evaluation.metrics import error_sums, pattern
from recsys_utils.evaluation.protocols import Case, align, profile_size_cases, rank_and_measure
from recsys_utils.evaluation.significance import Bootstrap, Estimate, verdict
from recsys_utils.models.variational_mf import VariationalMF

NDCG, RMSE, POPULARITY = "ndcg@10", "rmse", "popularity"
ADAPTIVE, KNOWN = "adaptive", "likely known"  # the strategies of :class:`Adaptive`, with and without ``learn``
SHOWN = 0.5  # share of a newcomer's ratings that is not hidden
LEVELS = 10  # a finer rating scale is cut into this many bins before entropies are taken
GROUPS = 8  # clusters of items for the strategy `groups`
CANDIDATES = 250  # best-known items that adaptive questions choose among
FLOOR = 1e-4  # of a probability: linear updates may leave [0, 1]
Floats = NDArray[np.float64]
Questions = NDArray[np.int32]
Measured = Mapping[Any, pd.DataFrame]  # by (strategy, number of questions): a row per user
Gains = Mapping[tuple[str, int, str], Estimate]  # over popularity, by (strategy, number of questions, metric)


# ---- the same questions for everybody


def question_orders(train: Interactions, length: int, seed: int, factors: Floats | None = None) -> dict[str, Questions]:
    """The first ``length`` questions of every strategy that gives everybody the same questions, by name.

    With n_i the users who rated item i, U all users, p_v the share of value v among the ratings of i:

    - ``random``; ``popularity``: n_i
    - ``entropy0``: entropy of (not rated, v1, v2, ...) with weight .5 for "not rated" and 1 for the others
    - ``helf``: harmonic mean of log n_i / log U and H_i / log L; H_i is the entropy of p, L the number of values
    - ``popularity x entropy``: log n_i * H_i
    - ``groups`` (with ``factors`` (I, K)): the most popular item of each of 8 clusters of items in turn

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
    log_n, entropy = np.log(np.maximum(n, 1)), entr(values / np.maximum(n, 1)[:, None]).sum(axis=1)
    popular, spread = log_n / np.log(max(n_users, 2)), entropy / np.log(max(values.shape[1], 2))
    worth = {
        "random": child_rng(seed, "random questions").random(n_items),
        POPULARITY: n,
        "entropy0": 0.5 * entr(1 - n / n_users) + entr(values / n_users).sum(axis=1),
        "helf": 2 * popular * spread / np.maximum(popular + spread, 1e-12),
        "popularity x entropy": log_n * entropy,
    }
    orders = {name: _best_first(value) for name, value in worth.items()}
    if factors is not None:
        groups = KMeans(min(GROUPS, n_items), n_init=4, random_state=child_seed(seed, "groups")).fit_predict(factors)
        known = orders[POPULARITY]
        turn = pd.Series(known).groupby(groups[known]).cumcount()  # how many items of the same cluster come before
        orders["groups"] = known[np.argsort(turn, kind="stable")]
    return {name: order[:length] for name, order in orders.items()}


def _value_counts(train: Interactions) -> Floats:
    """(I, L) how many users gave each item each value of the scale."""
    values, level = np.unique(train.rating, return_inverse=True)
    if len(values) > LEVELS:
        share = (train.rating - train.scale.lo) / (train.scale.hi - train.scale.lo)
        level = np.minimum(share * LEVELS, LEVELS - 1).astype(np.int64)
    counts = np.zeros((train.shape[1], min(len(values), LEVELS)))
    np.add.at(counts, (train.item, level), 1)
    return counts


def _best_first(worth: Floats) -> Questions:
    return np.argsort(-worth, kind="stable").astype(np.int32)


# ---- questions that follow the answers


@dataclass(frozen=True)
class Adaptive:
    """Questions that follow the answers so far: the chance that an item is known, times what its rating would tell.

    The item factors of a latent factor model are taken as known: user factors x ~ N(0, diag(prior)), and a rating of
    item m is d_m . x plus noise. With S the covariance of x after the answers so far, a rating of m lowers the variance
    of all predictions, weighted by w (shares of the ratings), by ``sum_j w_j (d_j' S d_m)^2 / (d_m' S d_m + noise)``.

    Whether m is known is guessed from which items were known before: with p and C mean and covariance of "has rated"
    over users, knowing whether m was (y_m) moves p to ``p + C_m (y_m - p_m) / C_mm`` and C to ``C - C_m C_m' / C_mm``.
    Neither depends on what the ratings were. Paper: Rubens, Elahi, Sugiyama & Kaplan, "Active learning in recommender
    systems", Recommender Systems Handbook, 2015.

    Parameters
    ----------
    items : (C,) int32, the items to choose among, best known first
    design : (C, K + 1), d_m: factors, and 1 for the user's bias
    know, together : (C,), (C, C), mean and covariance of whether a user can answer
    target : (K + 1, K + 1), sum_j w_j d_j d_j' over all items
    prior : (K + 1,) variances of user factors and bias; ``noise`` : variance of a rating
    """

    items: Questions
    design: Floats
    know: Floats
    together: Floats
    target: Floats
    prior: Floats
    noise: float

    @classmethod
    def of(cls, train: Interactions, factors: Floats, prior: Floats, noise: float, answerable: float = 1.0) -> Self:
        """From a latent factor model: ``factors`` (I, K), ``prior`` (K + 1,) with the bias last.

        ``answerable`` is the share of a user's ratings that questions can reach: less than 1 in a simulation that hides
        ratings at random, which also lowers how often two items are known together.
        """
        n = item_counts(train.user_item).astype(np.float64)
        design = np.column_stack([factors, np.ones(len(n))])
        items = _best_first(n)[:CANDIDATES]
        target = design.T @ (design * (n / n.sum())[:, None])
        rated = pattern(train.user_item)[:, items].toarray().astype(np.float64)
        know = answerable * rated.mean(axis=0)
        together = answerable**2 * np.cov(rated.T, bias=True)
        np.fill_diagonal(together, know * (1 - know) + 1e-3)
        return cls(items, design[items], know, together, target, prior, float(noise))

    def ask(self, known: csr_matrix, length: int, *, learn: bool = True) -> Questions:
        """(B, min(length, C)) questions for users who know the stored items of ``known`` (B, I).

        Without ``learn`` the most probably known item comes next, whatever its rating would tell. All users get their
        next question at once; memory is about 8 B C (length + 2 K) bytes.
        """
        can, users = pattern(known)[:, self.items].toarray(), np.arange(known.shape[0])
        chance, reduction = np.tile(self.know, (len(users), 1)), np.ones(1)
        spread = np.tile(np.diag(self.prior), (len(users), 1, 1))  # S
        asked = np.empty((len(users), min(length, len(self.items))), np.int32)
        taken = np.zeros(can.shape, np.bool_)
        factors: list[Floats] = []  # (B, C) rows of the Cholesky factor of ``together``, one for each question
        for question in range(asked.shape[1]):
            if learn:
                seen = self.design @ spread
                variance = (seen * self.design).sum(axis=2) + self.noise
                reduction = ((seen @ self.target) * seen).sum(axis=2) / variance
            best = np.where(taken, -np.inf, np.maximum(chance, FLOOR) * reduction).argmax(axis=1)
            asked[:, question], taken[users, best] = best, True
            column = self.together[best] - sum(row * row[users, best][:, None] for row in factors)
            surprise = (can[users, best] - chance[users, best]) / column[users, best]
            factors.append(column / np.sqrt(column[users, best])[:, None])
            chance = chance + column * surprise[:, None]
            moved = np.einsum("bij,bj->bi", spread, self.design[best])
            gain = can[users, best] / (self.noise + (moved * self.design[best]).sum(axis=1))  # 0 without an answer
            spread = spread - gain[:, None, None] * moved[:, :, None] * moved[:, None, :]
        return self.items[asked]


# ---- simulation


def answered(case: Case, questions: Questions) -> Case:
    """The case with its profiles cut to the items of ``questions``, (q,) for all users or (B, q).

    An item that a user has not rated counts as unknown. Ratings of the target are in no profile, so never answers.
    """
    items = np.broadcast_to(questions, (len(case.users), questions.shape[-1]))
    users = np.repeat(np.arange(len(items)), items.shape[1])
    shown = csr_matrix((np.ones(items.size, np.float32), (users, items.ravel())), shape=case.profiles.shape)
    return replace(case, profiles=case.profiles.multiply(shown).tocsr(), n=None)


def simulate(
    case: Case, orders: Mapping[str, Questions], counts: Sequence[int], predictor: RatingPredictor, ranker: Recommender
) -> pd.DataFrame:
    """Rating error and ranking after new users' answers, by strategy and number of questions.

    Parameters
    ----------
    case : new users with all they can answer in their profiles (``profile_size_cases(..., sizes=[None])``)
    orders : questions by strategy, (q,) or (B, q) each
    counts : numbers of questions after which to measure
    predictor, ranker : fitted on the case's training part; the first is judged by rating error, the second by ranking

    Returns
    -------
    user_id, strategy, questions, answers, squared, absolute, count (error sums over the target), ndcg@10
    """
    rows, targets = [], case.relevant_any.tocoo()
    for strategy, order in orders.items():
        for questions in counts:
            now = answered(case, order[..., :questions])
            predicted = predictor.ratings(now.profiles)[targets.row, targets.col]
            sums = error_sums(targets.row, targets.data, predicted, len(case.users))
            table = rank_and_measure(ranker, now)[[USER, NDCG]].assign(strategy=strategy, questions=questions)
            rows.append(table.assign(answers=np.diff(now.profiles.indptr), **sums))
    return pd.concat(rows, ignore_index=True)


def simulate_folds(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, ranker: Recommender, counts: Sequence[int],
    n_factors: int, *, seed: int, jobs: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """:func:`simulate` for every strategy; the test users of each fold are the newcomers, a random half is hidden."""

    def one(fold: int) -> pd.DataFrame:
        (case,) = profile_size_cases(data, splits, users, fold, order="random_0", sizes=[None])
        model = VariationalMF(n_factors=n_factors, seed=child_seed(seed, "traits", fold)).fit(case.train)
        factors, length = model.item_mean[:, :-1], min(max(counts), data.shape[1])
        orders = question_orders(case.train, length, child_seed(seed, "orders", fold), factors)
        adaptive = Adaptive.of(case.train, factors, model.user_prior, float(model.noise), SHOWN)
        orders[ADAPTIVE] = adaptive.ask(case.profiles, length)
        orders[KNOWN] = adaptive.ask(case.profiles, length, learn=False)
        return simulate(case, orders, counts, model, ranker.fit(case.train))

    found: list[pd.DataFrame] = Parallel(n_jobs=jobs)(delayed(one)(fold) for fold in sorted(users["fold"].unique()))
    return pd.concat(found, ignore_index=True)


# ---- results


def by_question(per_user: pd.DataFrame, users: Sequence[str]) -> Measured:
    """The table of :func:`simulate` by strategy and number of questions, with a row for each of ``users``."""
    groups = per_user.groupby(["strategy", "questions"], sort=False)
    return {key: align(part, users).fillna({"squared": 0, "count": 0}) for key, part in groups}


def elicitation_curves(measured: Measured, boot: Bootstrap) -> pd.DataFrame:
    """Answers, rmse and ndcg@10 by strategy and number of questions, each with its interval over users."""
    rows = []
    for (strategy, questions), table in measured.items():
        answers, squared, count, ndcg = table[["answers", "squared", "count", NDCG]].to_numpy(np.float64).T
        estimates = {"answers": boot.mean(answers), RMSE: boot.rmse(squared, count), NDCG: boot.mean(ndcg)}
        rows += [{"strategy": strategy, "questions": questions} | e.evidence(m) for m, e in estimates.items()]
    return pd.DataFrame(rows)


def metric_rows(curves: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics.csv."""
    rows = curves[curves["metric"] != "answers"]
    model = np.where(rows["metric"] == RMSE, "latent_traits", "blend")
    variant, segment = "questions=" + rows["strategy"], "q=" + rows["questions"].astype(str)
    return rows.assign(protocol="profile-size", model=model, variant=variant, segment=segment)


def gains(measured: Measured, boot: Bootstrap) -> Gains:
    """Gains over questions about the most popular items; more is better, for rmse it is what is saved."""
    found: dict[tuple[str, int, str], Estimate] = {}
    for (strategy, questions), ours in measured.items():
        if strategy != POPULARITY:
            popular = measured[POPULARITY, questions]
            errors = (column.to_numpy() for column in (popular["squared"], ours["squared"], ours["count"]))
            found[strategy, questions, RMSE] = boot.rmse_difference(*errors)
            found[strategy, questions, NDCG] = boot.difference(ours[NDCG].to_numpy(), popular[NDCG].to_numpy())
    return found


def contrasts(gained: Gains, questions: int) -> list[Contrast]:
    """The declared contrast, rating error by adaptive questions, and by ranking every strategy's."""
    after = {(s, m): gain for (s, q, m), gain in gained.items() if q == questions and (m == NDCG or s == ADAPTIVE)}
    return [
        Contrast.from_estimate(
            f"{strategy}-{metric.removesuffix('@10')}".replace(" ", "-"),
            f"{strategy} questions instead of those about the most popular items", gain,
            of=f"{metric} after {questions} questions", unit="rating points" if metric == RMSE else metric,
            primary=(strategy, metric) == (ADAPTIVE, RMSE),
        )
        for (strategy, metric), gain in sorted(after.items(), key=lambda pair: pair[0] != (ADAPTIVE, RMSE))
    ]  # fmt: skip


def shipped_strategy(orders: Mapping[str, Questions], gained: Gains, questions: int) -> str:
    """Of the strategies with the same questions for everybody the one that ranks best, if better than popularity."""
    gain = {s: gained[s, questions, NDCG] for s in orders if s != POPULARITY}
    better = [s for s in gain if verdict(gain[s]) == "better"]
    return max(better, key=lambda s: gain[s].value, default=POPULARITY)


def question_gains(curves: pd.DataFrame, gained: Gains) -> Figure:
    """Answers received, and what they gain over answers about popular items, by number of questions."""
    labels = {RMSE: "rating error saved (rating points)", NDCG: "ndcg@10 gained"}
    rows = [{"strategy": s, "questions": q, "panel": labels[m]} | e.evidence(m) for (s, q, m), e in gained.items()]
    answers = curves[curves["metric"] == "answers"].assign(panel="answers received")
    order, shown = list(dict.fromkeys(curves["strategy"])), pd.concat([answers, pd.DataFrame(rows)])
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.8))
    for ax, (panel, part) in zip(axes, shown[shown["questions"] > 0].groupby("panel", sort=False), strict=True):
        dodged(ax, part, "questions", by="strategy", order=order, width=0.1 * curves["questions"].max())
        ax.set(title=panel, xlabel="questions asked")
    for ax in axes[1:]:
        ax.axhline(0, color="0.4", linewidth=1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
