"""What should a new user be asked first? Simulated newcomers answer every strategy's questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study.figures import dodged
from recsys_study.findings import Contrast
from recsys_utils.base import USER, RatingPredictor, Recommender, child_seed
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation.metrics import error_sums
from recsys_utils.evaluation.protocols import Case, align, profile_size_cases, rank_and_measure
from recsys_utils.evaluation.significance import Bootstrap, Estimate, verdict
from recsys_utils.models.variational_mf import VariationalMF
from recsys_utils.ranking.elicitation import Adaptive, Questions, question_orders

NDCG, RMSE, POPULARITY = "ndcg@10", "rmse", "popularity"
ADAPTIVE, KNOWN = "adaptive", "likely known"  # the strategies of :class:`Adaptive`, with and without ``learn``
SHOWN = 0.5  # share of a newcomer's ratings that is not hidden
Floats = NDArray[np.float64]
Gains = Mapping[tuple[str, int, str], Estimate]  # over popularity, by (strategy, number of questions, metric)


# ---- simulation


def answered(case: Case, questions: Questions) -> Case:
    """The case with its profiles cut to the items of ``questions``, (q,) for all users or (B, q), that they hold.

    An item that a user has not rated counts as unknown. Ratings of the target are in no profile, so never answers.
    """
    rows = np.broadcast_to(questions, (len(case.users), questions.shape[-1]))
    user, item = np.nonzero(rows >= 0)[0], rows[rows >= 0]
    shown = csr_matrix((np.ones(len(item), np.float32), (user, item)), shape=case.profiles.shape)
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
    model = VariationalMF(n_factors=n_factors, seed=child_seed(seed, "traits", fold)).fit(case.train)
    factors, length = model.item_mean[:, :-1], min(max(counts), data.shape[1])
    orders = question_orders(case.train, length, child_seed(seed, "orders", fold), factors)
    adaptive = Adaptive.of(case.train, factors, model.user_prior, float(model.noise), SHOWN)
    orders |= {ADAPTIVE: adaptive.ask(case.profiles, length), KNOWN: adaptive.ask(case.profiles, length, learn=False)}
    return simulate(case, orders, counts, model, ranker.fit(case.train))


# ---- results


def elicitation_curves(per_user: pd.DataFrame, users: Sequence[str], boot: Bootstrap) -> pd.DataFrame:
    """Answers, rmse and ndcg@10 by strategy and number of questions, each with its interval over ``users``."""
    rows = []
    for (strategy, questions), part in per_user.groupby(["strategy", "questions"], sort=False):
        table = align(part, users)
        estimates = {
            "answers": boot.mean(table["answers"].to_numpy(np.float64)),
            RMSE: boot.rmse(*table[["squared", "count"]].fillna(0).to_numpy(np.float64).T),
            NDCG: boot.mean(table[NDCG].to_numpy(np.float64)),
        }
        rows += [{"strategy": strategy, "questions": questions} | e.evidence(m) for m, e in estimates.items()]
    return pd.DataFrame(rows)


def metric_rows(curves: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics.csv."""
    rows = curves[curves["metric"] != "answers"]
    model = np.where(rows["metric"] == RMSE, "latent_traits", "blend")
    variant, segment = "questions=" + rows["strategy"], "q=" + rows["questions"].astype(str)
    rows = rows.assign(protocol="profile-size", model=model, variant=variant, segment=segment)
    return rows.drop(columns=["strategy", "questions"])


def gains(per_user: pd.DataFrame, users: Sequence[str], boot: Bootstrap) -> Gains:
    """Gains over questions about the most popular items; more is better, for rmse it is what is saved."""
    found: dict[tuple[str, int, str], Estimate] = {}
    for questions in sorted(per_user["questions"].unique().tolist()):
        rows = per_user[per_user["questions"] == questions]
        tables = {str(name): align(part, users) for name, part in rows.groupby("strategy", sort=False)}
        popular = tables.pop(POPULARITY)
        for strategy, ours in tables.items():
            columns = popular["squared"], ours["squared"], ours["count"]
            found[strategy, questions, RMSE] = boot.rmse_difference(*(c.fillna(0).to_numpy(float) for c in columns))
            found[strategy, questions, NDCG] = boot.difference(ours[NDCG].to_numpy(), popular[NDCG].to_numpy())
    return found


def questions_needed(per_user: pd.DataFrame, users: Sequence[str], boot: Bootstrap) -> pd.DataFrame:
    """Questions after which each strategy reaches what popular items reach at the end, by rmse and by ndcg@10."""
    at = np.unique(per_user["questions"]).astype(np.float64)
    rows = []
    for metric in (RMSE, NDCG):
        sums = {str(name): _sums(part, users, metric) for name, part in per_user.groupby("strategy", sort=False)}
        level, weight = (matrix[:, -1] for matrix in sums.pop(POPULARITY))
        found = {strategy: boot.first_reaching(*pair, at, level, weight) for strategy, pair in sums.items()}
        rows += [{"strategy": strategy} | needed.evidence(metric) for strategy, needed in found.items()]
    return pd.DataFrame(rows)


def _sums(part: pd.DataFrame, users: Sequence[str], metric: str) -> tuple[Floats, Floats]:
    """(U, M) numerators and denominators of a curve that falls when things get better."""
    by = [align(rows, users) for _, rows in part.groupby("questions")]
    if metric == RMSE:
        squared, count = (np.column_stack([t[column].fillna(0) for t in by]) for column in ("squared", "count"))
        return squared, count
    values = np.column_stack([t[metric] for t in by])
    return -np.nan_to_num(values), (~np.isnan(values)).astype(np.float64)


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


def facts(curves: pd.DataFrame, needed: pd.DataFrame, questions: int) -> dict[str, Any]:
    """How many questions are answered, and how many reach what popular items reach at the end."""
    by_error = needed[needed["metric"] == RMSE].sort_values("value", kind="stable").iloc[0]
    answers = curves[curves["metric"] == "answers"].set_index(["strategy", "questions"])["value"]
    names = {"answered_popularity": POPULARITY, "answered_adaptive": ADAPTIVE, "answered_known": KNOWN}
    return {name: answers[strategy, questions] for name, strategy in names.items()} | {
        "questions": questions, "most": curves["questions"].max(), "fewest_by_error": by_error["strategy"],
        "needed_by_error": by_error["value"],
    }  # fmt: skip


def shipped_strategy(orders: Mapping[str, Questions], gained: Gains, questions: int) -> str:
    """Of the strategies with the same questions for everybody the one that ranks best, if better than popularity."""
    gain = {s: gained[s, questions, NDCG] for s in orders if s != POPULARITY and (s, questions, NDCG) in gained}
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
