"""ndcg@k of many weightings of a few scores at once: the kernel behind the alpha study."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import Scores

Floats = NDArray[np.float64]


def ndcg_surface(
    parts: Sequence[Scores], profiles: csr_matrix, relevant: csr_matrix, weights: Floats, k: int = 10,
    order: NDArray[np.int_] | None = None,
) -> Floats:  # fmt: skip
    """ndcg@k of every profile under every weighting of the parts, without building any weighted matrix.

    Equal to ``hybrid.weighted``, top k without the profile's films (ties to the film first in ``order``, by default the
    lower index), ndcg; NaN where nothing is relevant. Where all weights are averages (none negative, sum 1) a film is
    left out if its largest part lies below the k-th largest of all films' smallest parts, which no weight can mend.

    Parameters
    ----------
    parts : P scores (B, I) float32, as they are to be weighted
    profiles, relevant : (B, I)
    weights : (W, P)

    Returns
    -------
    (B, W) float64
    """
    weights = np.asarray(weights, dtype=np.float32)
    averages = bool((weights >= 0).all() and np.allclose(weights.sum(axis=1), 1, atol=1e-6))
    surface: Floats = _surface(
        np.stack(parts), profiles.indptr, profiles.indices, relevant.indptr, relevant.indices, weights, averages,
        1.0 / np.log2(np.arange(2, k + 2)), np.arange(profiles.shape[1]) if order is None else order,
    )  # fmt: skip
    return surface


BLOCK = 64  # films that are compared with the list so far at once, as a processor does side by side


@njit(cache=True)
def _above(scores, bar):  # type: ignore[no-untyped-def]
    number: int = 0
    for i in range(len(scores)):
        number += int(scores[i] > bar)
    return number


@njit(cache=True)
def _enter(best, place, filled, value, i):  # type: ignore[no-untyped-def]
    """Put a value in its place in a falling list of at most as many as ``best`` holds; returns how many it has now."""
    j = filled if filled < len(best) else len(best) - 1
    while j > 0 and best[j - 1] < value:
        best[j] = best[j - 1]
        place[j] = place[j - 1]
        j -= 1
    best[j] = value
    place[j] = i
    return min(filled + 1, len(best))


@njit(cache=True)
def _surface(parts, seen_ptr, seen, relevant_ptr, relevant, weights, averages, discounts, order):  # type: ignore[no-untyped-def]
    n_parts, rows, n_items = parts.shape
    k = len(discounts)
    out = np.full((rows, len(weights)), np.nan)
    mine = np.empty((n_parts, n_items), np.float32)
    score = np.empty(n_items, np.float32)
    hit = np.empty(n_items, np.bool_)
    reach = np.empty(n_items, np.float32)
    best = np.empty(k, np.float32)
    place = np.empty(k, np.int64)
    for u in range(rows):
        n_relevant = relevant_ptr[u + 1] - relevant_ptr[u]
        if n_relevant == 0:
            continue
        is_seen = np.zeros(n_items, np.bool_)
        is_seen[seen[seen_ptr[u] : seen_ptr[u + 1]]] = True
        is_relevant = np.zeros(n_items, np.bool_)
        is_relevant[relevant[relevant_ptr[u] : relevant_ptr[u + 1]]] = True
        m = 0  # candidates side by side, so that the loops over them read memory in order
        filled = 0
        bar = np.float32(-np.inf)
        for i in order:
            if not is_seen[i]:
                least = most = parts[0, u, i]
                mine[0, m] = least
                for p in range(1, n_parts):
                    mine[p, m] = parts[p, u, i]
                    least, most = min(least, mine[p, m]), max(most, mine[p, m])
                hit[m] = is_relevant[i]
                reach[m] = most
                m += 1
                if averages and least > bar:
                    filled = _enter(best, place, filled, least, m)
                    if filled == k:
                        bar = best[k - 1]
        if averages and filled == k:  # k films stay above the bar under all weights: what never reaches it is left out
            bar -= np.float32(1e-5) * max(np.float32(1), abs(bar))
            kept = 0
            for i in range(m):
                if reach[i] >= bar:
                    for p in range(n_parts):
                        mine[p, kept] = mine[p, i]
                    hit[kept] = hit[i]
                    kept += 1
            m = kept
        ideal = discounts[: min(k, n_relevant)].sum()
        filled = 0
        for w in range(len(weights)):
            bar = np.float32(-np.inf)
            if filled == k:  # the list before this one bounds it: its films are as many, whatever they score now
                bar = np.float32(np.inf)
                for j in range(k):
                    value = weights[w, 0] * mine[0, place[j]]
                    for p in range(1, n_parts):
                        value += weights[w, p] * mine[p, place[j]]
                    bar = min(bar, value)
                bar = np.nextafter(bar, np.float32(-np.inf))
            weight = weights[w, 0]
            for i in range(m):
                score[i] = weight * mine[0, i]
            for p in range(1, n_parts):
                weight = weights[w, p]
                for i in range(m):
                    score[i] += weight * mine[p, i]
            filled = 0
            for start in range(0, m, BLOCK):
                block = score[start : min(start + BLOCK, m)]
                if _above(block, bar) == 0:
                    continue
                for i in range(len(block)):
                    if block[i] <= bar:
                        continue
                    filled = _enter(best, place, filled, block[i], start + i)
                    if filled == k:
                        bar = best[k - 1]
            gain = 0.0
            for j in range(filled):
                if hit[place[j]]:
                    gain += discounts[j]
            out[u, w] = gain / ideal
    return out
