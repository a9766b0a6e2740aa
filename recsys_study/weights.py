"""How weights and parts are chosen: curves, ensembles and what ships, on validation users alone.

A *surface* holds ndcg@10 by profile size and weight. Choices are tuned on one part of the validation users and measured
on the other in turn (cross-fitted), so that more weights to fit are no advantage by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_utils.evaluation.protocols import VALIDATION_PARTS
from recsys_utils.evaluation.significance import MARGIN, Bootstrap, Estimate, Verdict, verdict
from recsys_utils.ranking.hybrid import CURVES, AlphaCurve, linear, sigmoid

Floats = NDArray[np.float64]
Positions = NDArray[np.int_]


def simplex(parts: int, step: float) -> Floats:
    """(W, parts) all weights that are multiples of ``step`` and add up to 1, in lexical order.

    >>> simplex(2, 0.5).tolist()
    [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    steps = round(1 / step)
    return np.array([w for w in product(range(steps + 1), repeat=parts) if sum(w) == steps]) / steps


NDCG = "ndcg@10"
FROM_SIZE, TO_SIZE = 1, 30  # contrasts average over these sizes; choices over all from 1 on, for they serve everyone
PARTS = ("popularity", "item_knn", "ease")
ENSEMBLE = "mixture"  # as metrics.csv calls the weighted ensemble of popularity, item KNN and EASE
WEIGHTS = simplex(len(PARTS), 0.1)
SMOOTH = 0.01 * np.abs(WEIGHTS[:, None] - WEIGHTS).sum(axis=2)  # ndcg that a change of all the weight must gain
SIMPLER = 0.003  # ndcg by which an ensemble must beat a single model to be worth its weights
SEGMENTS = {"n=1-5": (1, 5), "n=8-30": (8, 30), "n>=50": (50, 10**9)}  # declared; whole histories and cold items apart
WHOLE, COLD = "whole histories", "cold items"
WARM_EDGES = (20, 50, 100, 200)  # ratings in the profile at which weights of whole histories may change


def alpha_grid(step: float) -> Floats:
    """Weights from 0 to 1, rounded so that .95 is written as such."""
    return np.round(np.linspace(0.0, 1.0, round(1 / step) + 1), 6)


def surface_of(values: Floats, sizes: Sequence[int]) -> tuple[Floats, Positions]:
    """(S, W) means over users and the sizes they belong to: those from 1 on that somebody has.

    Parameters
    ----------
    values : (U, all sizes, W) ndcg, NaN where a user lacks the size
    """
    counts = np.isfinite(values[:, :, 0]).sum(axis=0)
    kept = np.flatnonzero((np.asarray(sizes) >= FROM_SIZE) & (counts > 0))
    return np.nansum(values[:, kept], axis=0) / counts[kept, None], np.asarray(sizes)[kept]


# ---- curves


def tunable_curves() -> dict[str, list[AlphaCurve]]:
    """The declared candidates of the curves that validation users tune."""
    ends = [(low, high) for low, high in product((0.0, 0.3, 0.6, 0.9), (0.7, 0.85, 1.0)) if low < high]
    return {
        "linear": [linear(*end, full) for end, full in product(ends, (10, 20, 50))],
        "sigmoid": [sigmoid(*end, middle, width) for end, middle, width in product(ends, (5, 10, 20), (1.5, 4.0))],
    }


def best_path(surface: Floats, cost: Floats) -> NDArray[np.int_]:
    """The column to take in each row: the highest sum of ``surface`` less what changing columns costs.

    Solved exactly by dynamic programming (Viterbi); ties go to the lower column. A cost of 0 takes every row's best,
    an infinite cost of going down the best path that never falls (isotonic), a cost per distance a smooth one.

    Parameters
    ----------
    surface : (S, A), a row a profile size in increasing order
    cost : (A, A), of going from one column to another in the next row

    >>> best_path(np.array([[0.2, 0.1], [0.0, 0.5], [0.3, 0.2]]), np.zeros((2, 2))).tolist()
    [0, 1, 0]
    >>> best_path(np.array([[0.2, 0.1], [0.0, 0.5], [0.3, 0.2]]), never_down(2)).tolist()
    [0, 1, 1]
    """
    value, origins = surface[0], []
    for row in surface[1:]:
        reached = value[:, None] - cost
        origins.append(reached.argmax(axis=0))
        value = row + reached.max(axis=0)
    path = [int(value.argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return np.array(path[::-1])


def never_down(size: int) -> Floats:
    """(A, A) costs that forbid a lower column in the next row."""
    return np.where(np.tri(size, k=-1, dtype=bool), np.inf, 0.0)


def tune_curves(surface: Floats, sizes: Positions, alphas: Floats) -> dict[str, AlphaCurve]:
    """The fixed curves as they are and four fitted ones: linear, sigmoid, isotonic and ``learned``.

    ``linear`` and ``sigmoid`` take their best declared parameters (:func:`curve_value`), ``isotonic`` is the best curve
    that never falls, ``learned`` takes the best alpha at every size (ties: the lower) and is all there is if alphas
    leave no choice.

    Parameters
    ----------
    surface : (S, A) mean ndcg of validation users
    sizes : (S,) increasing profile sizes
    alphas : (A,) increasing
    """
    learned = AlphaCurve("learned", tuple(sizes.tolist()), tuple(alphas[surface.argmax(axis=1)].tolist()))
    if len(alphas) == 1:
        return {"learned": learned}
    tuned = dict(CURVES)
    for name, declared in tunable_curves().items():
        tuned[name] = max(declared, key=lambda curve: curve_value(curve, surface, sizes, alphas))
    rising = alphas[best_path(surface, never_down(len(alphas)))]
    tuned["isotonic"] = AlphaCurve("isotonic", tuple(sizes.tolist()), tuple(rising.tolist()))
    return tuned | {"learned": learned}


def columns_at(curve: AlphaCurve, sizes: Positions, alphas: Floats) -> Positions:
    """(S,) the grid's column nearest to the curve at each size."""
    nearest: Positions = np.abs(curve(sizes)[:, None] - alphas).argmin(axis=1)
    return nearest


def curve_value(curve: AlphaCurve, surface: Floats, sizes: Positions, alphas: Floats) -> float:
    """Mean over the sizes, equal weights, of the surface at the grid's alpha nearest to the curve's."""
    return float(surface[np.arange(len(sizes)), columns_at(curve, sizes, alphas)].mean())


def tune_ranges(values: Floats, n: Positions) -> tuple[list[int], Positions, float]:
    """The best column in each of the five ranges of profile sizes that ``WARM_EDGES`` bound, and what it reaches.

    A range without users takes the column best overall.

    Parameters
    ----------
    values : (U, W) ndcg, NaN for users to leave out
    n : (U,) ratings in each profile

    Returns
    -------
    sizes on both sides of every edge, the column for each of them, mean ndcg
    """
    bins = np.searchsorted(WARM_EDGES, n, side="right")
    best = np.full(len(WARM_EDGES) + 1, np.nanmean(values, axis=0).argmax())
    for b in np.unique(bins[np.isfinite(values[:, 0])]):
        best[b] = np.nanmean(values[bins == b], axis=0).argmax()
    reached = float(np.nanmean(np.take_along_axis(values, best[bins][:, None], axis=1)))
    sizes = [size for edge in WARM_EDGES for size in (edge - 1, edge)]
    return sizes, np.array([b for both in pairwise(best) for b in both]), reached


# ---- the weighted ensemble


def columns_of(parts: Sequence[str]) -> Positions:
    """The rows of ``WEIGHTS`` that give weight to no other part than these."""
    others = [p for p, part in enumerate(PARTS) if part not in parts]
    return np.flatnonzero(WEIGHTS[:, others].sum(axis=1) == 0)


def path_of(values: Floats, sizes: Sequence[int], parts: Sequence[str] = PARTS) -> tuple[Positions, Positions]:
    """The known sizes, and at each the row of ``WEIGHTS`` on the smooth path of best weights of some parts.

    Parameters
    ----------
    values : (U, S, W) ndcg of validation users under each of ``WEIGHTS``
    """
    columns = columns_of(parts)
    surface, known = surface_of(values[:, :, columns], sizes)
    return known, columns[best_path(surface, SMOOTH[np.ix_(columns, columns)])]


def tune_ensemble(values: Floats, sizes: Sequence[int], parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """``sizes`` and ``weights`` of an ensemble of some parts on :func:`path_of`."""
    known, path = path_of(values, sizes, parts)
    weights = {part: WEIGHTS[path, PARTS.index(part)].tolist() for part in parts}
    return {"sizes": known.tolist(), "weights": weights}


def on_path(values: Floats, sizes: Sequence[int], known: Positions, path: Positions) -> Floats:
    """(U, S) ndcg under the weights of a path; NaN at sizes that are not known."""
    found, at = np.full(values.shape[:2], np.nan), np.isin(sizes, known)
    found[:, at] = values[:, at][:, np.arange(len(known)), path]
    return found


def crossfit(values: Floats, sizes: Sequence[int], cost: Floats) -> Floats:
    """(U, S) ndcg of each fifth of the validation users at the path of columns that is best for the other four.

    Parameters
    ----------
    values : (U, S, W) ndcg; cost : (W, W) of changing columns between neighbouring sizes
    """
    fitted = np.full(values.shape[:2], np.nan)
    part = np.arange(len(values)) % VALIDATION_PARTS
    for p in range(VALIDATION_PARTS):
        surface, known = surface_of(values[part != p], sizes)
        at, path = np.isin(sizes, known), best_path(surface, cost)
        fitted[np.ix_(part == p, at)] = values[part == p][:, at][:, np.arange(len(known)), path]
    return fitted


def crossfit_ensemble(values: Floats, sizes: Sequence[int], parts: Sequence[str] = PARTS) -> Floats:
    """:func:`crossfit` of the weights of some parts."""
    columns = columns_of(parts)
    return crossfit(values[:, :, columns], sizes, SMOOTH[np.ix_(columns, columns)])


# ---- the study's choice among models and curves


class Choice(NamedTuple):
    """What the rule picks, and the validation gain of the ensemble that it rests on."""

    cf: str
    curve: AlphaCurve
    gain: Estimate


def ranked_pairs(
    validation: Mapping[str, Floats], sizes: Sequence[int], alphas: Floats
) -> list[tuple[str, AlphaCurve, float]]:
    """Every declared (cf, curve) with its validation ndcg@10, mean over sizes from 1 on; best first."""
    found = []
    for cf, values in validation.items():
        surface, known = surface_of(values, sizes)
        curves = tune_curves(surface, known, alphas).values()
        found += [(cf, curve, curve_value(curve, surface, known, alphas)) for curve in curves]
    return sorted(found, key=lambda pair: -pair[2])


def choose(
    validation: Mapping[str, Floats], mixed: Floats, sizes: Sequence[int], alphas: Floats, boot: Bootstrap
) -> Choice:
    """The pair of a model and a curve with the highest validation mean over sizes from 1 on.

    The ensemble, which has more weights to fit, takes part only if, cross-fitted, it gains more than ``SIMPLER`` on the
    best single model and the interval excludes 0.

    Parameters
    ----------
    validation : cf -> (U, S, A) ndcg of content + cf, NaN where a user lacks the size or is no validation user
    mixed : (U, S, W) ndcg under each of ``WEIGHTS``
    """
    pairs = ranked_pairs(validation, sizes, alphas)
    cf, curve, _ = next(found for found in pairs if found[0] != ENSEMBLE)
    known = surface_of(validation[cf], sizes)[1]
    at = np.isin(sizes, known)
    single = validation[cf][:, at][:, np.arange(len(known)), columns_at(curve, known, alphas)]
    gains = crossfit_ensemble(mixed, sizes)[:, at] - single
    gain = boot.average(gains[:, np.isfinite(gains).any(axis=0)])
    if gain.value > SIMPLER and gain.ci_low > 0:
        cf, curve, _ = next(found for found in pairs if found[0] == ENSEMBLE)
    return Choice(cf, curve, gain)


# ---- what ships


@dataclass(frozen=True)
class Loss:
    """What leaving a part out costs in a segment: ndcg@10 without it minus with it, on validation users."""

    part: str
    segment: str
    difference: Estimate
    order: str = "random"
    step: int = 0  # of the elimination

    @property
    def earns(self) -> bool:
        """Whether leaving the part out is worse by more than the margin: the whole interval lies below it."""
        return self.difference.ci_high < -MARGIN

    def row(self) -> dict[str, Any]:
        e = self.difference
        return {
            "step": self.step, "part": self.part, "order": self.order, "segment": self.segment, "difference": e.value,
            "ci_low": e.ci_low, "ci_high": e.ci_high, "n": e.n, "verdict": verdict(e), "earns": self.earns,
        }  # fmt: skip


def segment_losses(
    part: str, without: Floats, full: Floats, sizes: Sequence[int], boot: Bootstrap, order: str = "random"
) -> list[Loss]:
    """The losses in the declared ranges of profile sizes; a range that nobody has is left out. Both (U, S)."""
    n, found = np.asarray(sizes), []
    for segment, (low, high) in SEGMENTS.items():
        some = (n >= low) & (n <= high)
        change = without[:, some] - full[:, some]
        change = change[:, np.isfinite(change).any(axis=0)]
        if change.size:
            found.append(Loss(part, segment, boot.average(change), order))
    return found


def eliminate(
    mixed: Mapping[str, Floats], whole: Floats | None, sizes: Sequence[int], boot: Bootstrap
) -> tuple[tuple[str, ...], list[Loss]]:
    """The parts of the ensemble that earn their place, by backward elimination, and every loss that was looked at.

    In each step the part whose loss is smallest in its worst segment goes, unless leaving it out is worse by more than
    the margin in some segment and order; so of two parts that stand in for each other one stays. Weights are those of
    random order, cross-fitted there.

    Parameters
    ----------
    mixed : order -> (U, S, W) validation ndcg under each of ``WEIGHTS``, cut profiles
    whole : (U, W) likewise for whole histories, or None
    """

    def fitted(order: str, parts: Sequence[str]) -> Floats:
        if order == "random":
            return crossfit_ensemble(mixed[order], sizes, parts)
        return on_path(mixed[order], sizes, *path_of(mixed["random"], sizes, parts))

    kept: tuple[str, ...] = PARTS
    looked: list[Loss] = []
    while len(kept) > 1:
        losses: dict[str, list[Loss]] = {}
        for part in kept:
            rest = tuple(other for other in kept if other != part)
            losses[part] = [loss for order in mixed for loss in segment_losses(
                part, fitted(order, rest), fitted(order, kept), sizes, boot, order
            )]  # fmt: skip
            if whole is not None:
                both = [crossfit_ensemble(whole[:, None], [FROM_SIZE], some)[:, 0] for some in (rest, kept)]
                losses[part].append(Loss(part, WHOLE, boot.difference(*both)))
        step = 1 + len(PARTS) - len(kept)
        looked += [replace(loss, step=step) for found in losses.values() for loss in found]
        spare = [part for part in kept if not any(loss.earns for loss in losses[part])]
        if not spare:
            break
        least = max(spare, key=lambda part: min(loss.difference.value for loss in losses[part]))
        kept = tuple(part for part in kept if part != least)
    return kept, looked


def content_losses(
    values: Mapping[str, Floats], sizes: Sequence[int], alphas: Floats, boot: Bootstrap
) -> tuple[AlphaCurve, list[Loss]]:
    """The curve learned in random order, and what leaving content out costs under it, in every order.

    ``values`` : order -> (U, S, A) validation ndcg of content + cf; the last alpha leaves content out
    """
    surface, known = surface_of(values["random"], sizes)
    learned = tune_curves(surface, known, alphas)["learned"]
    losses: list[Loss] = []
    for order, surfaces in values.items() if len(alphas) > 1 else ():
        if order == "random":
            full = crossfit(surfaces, sizes, np.zeros((len(alphas), len(alphas))))
        else:
            full = on_path(surfaces, sizes, known, columns_at(learned, known, alphas))
        alone = np.where(np.isnan(full), np.nan, surfaces[:, :, -1])
        losses += segment_losses("content", alone, full, sizes, boot, order)
    return learned, losses


def shipped_curve(learned: AlphaCurve, losses: Sequence[Loss]) -> AlphaCurve:
    """The learned curve at the sizes where content earns its place; alpha = 1, no content, at the others.

    >>> learned = AlphaCurve("learned", (1, 5, 8, 30), (0.5, 0.6, 0.7, 0.8))
    >>> earns = Loss("content", "n=1-5", Estimate(-0.03, -0.04, -0.02, 100))
    >>> shipped_curve(learned, [earns]).alphas
    (0.5, 0.6, 1.0, 1.0)
    """
    earned = {loss.segment for loss in losses if loss.part == "content" and loss.earns}
    ranges = [SEGMENTS[name] for name in SEGMENTS if name in earned or (name == "n>=50" and WHOLE in earned)]
    inside = [any(low <= n <= high for low, high in ranges) for n in learned.sizes]
    alphas = tuple(a if kept else 1.0 for a, kept in zip(learned.alphas, inside, strict=True))
    return AlphaCurve("shipped", learned.sizes, alphas)


def loss_table(losses: Sequence[Loss]) -> pd.DataFrame:
    """One row per part and segment that the rule looked at."""
    return pd.DataFrame([loss.row() for loss in losses])


class Guard(NamedTuple):
    """What would ship less popularity of likes, in one segment and order: ndcg@10 of validation users."""

    order: str
    segment: str
    difference: Estimate

    @property
    def verdict(self) -> Verdict:
        return verdict(self.difference)

    @property
    def passes(self) -> bool:
        """Whether it is not shown to be worse: the interval reaches 0."""
        return self.difference.ci_high >= 0


def against_popularity(
    served: Mapping[str, Floats], popular: Mapping[str, Floats], sizes: Sequence[int], boot: Bootstrap
) -> list[Guard]:
    """The guard in every order and declared range of sizes; ``served``, ``popular``: (U, S) ndcg@10 by order."""
    n, found = np.asarray(sizes), []
    for order, values in served.items():
        for segment, (low, high) in SEGMENTS.items():
            change = (values - popular[order])[:, (n >= low) & (n <= high)]
            change = change[:, np.isfinite(change).any(axis=0)]
            if change.size:
                found.append(Guard(order, segment, boot.average(change)))
    return found


def guarded(tuned: Mapping[str, Any], guards: Sequence[Guard]) -> dict[str, Any]:
    """``sizes`` and ``weights`` of an ensemble that is popularity alone in every range where a guard does not pass.

    >>> worse = Guard("time", "n=1-5", Estimate(-0.02, -0.03, -0.01, 50, lower=-0.03))
    >>> guarded({"sizes": [1, 5, 8], "weights": {"ease": [1.0, 1.0, 1.0]}}, [worse])["weights"]
    {'ease': [0.0, 0.0, 1.0], 'popularity': [1.0, 1.0, 0.0]}
    """
    failed = [SEGMENTS[guard.segment] for guard in guards if not guard.passes]
    if not failed:
        return dict(tuned)
    popular = [any(low <= n <= high for low, high in failed) for n in tuned["sizes"]]
    weights = {"popularity": [0.0] * len(popular)} | dict(tuned["weights"])
    order = [*tuned["weights"], *(["popularity"] if "popularity" not in tuned["weights"] else [])]
    return {"sizes": list(tuned["sizes"]), "weights": {
        part: [float(part == "popularity") if p else w for p, w in zip(popular, weights[part], strict=True)]
        for part in order
    }}  # fmt: skip


def guard_table(guards: Sequence[Guard]) -> pd.DataFrame:
    rows = [[g.order, g.segment, g.difference.value, g.difference.ci_low, g.difference.ci_high, g.difference.n,
             g.verdict, g.passes] for g in guards]  # fmt: skip
    columns = ["order", "segment", "difference", "ci_low", "ci_high", "n", "verdict", "passes"]
    return pd.DataFrame(rows, columns=columns)
