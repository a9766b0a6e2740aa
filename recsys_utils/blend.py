"""Content and collaborative scores in one: the weight curves, the blend, and its evaluation over a grid of weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Self

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from recsys_utils.content import ContentModel
from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import InputError, Recommender, Scores


@dataclass(frozen=True)
class AlphaCurve:
    """Weight of the collaborative score by profile size: straight between the given sizes, constant outside.

    Parameters
    ----------
    name : as in ``alpha=<name>`` of metrics.csv
    sizes : increasing numbers of ratings in the profile
    alphas : weights in [0, 1], one per size

    >>> CURVES["classic"]([0, 4, 5, 10, 19, 20, 500]).round(3).tolist()
    [0.0, 0.0, 0.0, 0.1, 0.28, 0.7, 0.7]
    >>> CURVES["step"]([4, 5, 19, 20]).tolist()
    [0.0, 0.3, 0.3, 0.7]
    """

    name: str
    sizes: tuple[int, ...]
    alphas: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.alphas) or not self.sizes or any(np.diff(self.sizes) <= 0):
            raise InputError(f"Curve {self.name!r} needs one alpha per size, sizes increasing; got {self}.")
        if not all(0.0 <= a <= 1.0 for a in self.alphas):
            raise InputError(f"Curve {self.name!r} needs alphas in [0, 1]; got {self.alphas}.")

    def __call__(self, n: ArrayLike) -> NDArray[np.float64]:
        """Alphas for profiles of ``n`` ratings, any shape."""
        weights: NDArray[np.float64] = np.interp(np.asarray(n, dtype=float), self.sizes, self.alphas)
        return weights

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "sizes": list(self.sizes), "alphas": list(self.alphas)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(value["name"], tuple(value["sizes"]), tuple(value["alphas"]))


def linear(low: float, high: float, full: int) -> AlphaCurve:
    """From ``low`` at n = 0 straight to ``high`` at n = ``full`` ratings."""
    return AlphaCurve("linear", (0, full), (low, high))


def sigmoid(low: float, high: float, middle: int, width: float) -> AlphaCurve:
    """low + (high - low) / (1 + exp(-(n - middle) / width)), tabulated at every n up to where it is flat."""
    n = np.arange(int(middle + 10 * width) + 1)
    alphas = low + (high - low) / (1.0 + np.exp(-(n - middle) / width))
    return AlphaCurve("sigmoid", tuple(n.tolist()), tuple(alphas.tolist()))


# n is a whole number, so the classic jump at 20 ratings is a steep piece between 19 and 20.
CURVES: dict[str, AlphaCurve] = {
    "classic": AlphaCurve("classic", (5, 19, 20), (0.0, 0.3 * 14 / 15, 0.7)),
    "step": AlphaCurve("step", (4, 5, 19, 20), (0.0, 0.3, 0.3, 0.7)),
    "linear": linear(0.0, 0.7, 20),
    "sigmoid": sigmoid(0.0, 0.7, 12, 3.0),
}


def tunable_curves() -> dict[str, list[AlphaCurve]]:
    """The declared candidates of the curves that validation users tune."""
    ends = [(low, high) for low, high in product((0.0, 0.3, 0.6, 0.9), (0.7, 0.85, 1.0)) if low < high]
    return {
        "linear": [linear(*end, full) for end, full in product(ends, (10, 20, 50))],
        "sigmoid": [sigmoid(*end, middle, width) for end, middle, width in product(ends, (5, 10, 20), (1.5, 4.0))],
    }


def candidates(profiles: csr_matrix) -> NDArray[np.bool_]:
    """(B, I) True where the profile has no rating: the films a list may hold."""
    mask = np.ones(profiles.shape, dtype=bool)
    mask[np.repeat(np.arange(profiles.shape[0]), np.diff(profiles.indptr)), profiles.indices] = False
    return mask


def normalise(scores: Scores, candidates: NDArray[np.bool_]) -> Scores:
    """Min-max each row over its candidates: (s - min) / (max - min), .5 where all are equal.

    Other films go through the same map and are cut off at 0 and 1.

    Parameters
    ----------
    scores : (B, I) finite float32
    candidates : (B, I) or (I,) bool

    >>> normalise(np.array([[1, 3, 2], [4, 4, 9]], np.float32), np.array([True, True, False])).tolist()
    [[0.0, 1.0, 0.5], [0.5, 0.5, 0.5]]
    """
    mask = np.broadcast_to(candidates, scores.shape)
    low = np.min(scores, axis=1, where=mask, initial=np.inf, keepdims=True)
    high = np.max(scores, axis=1, where=mask, initial=-np.inf, keepdims=True)
    flat = ~(high > low)
    low, high = np.where(flat, np.float32(0), low), np.where(flat, np.float32(1), high)
    scaled: Scores = np.where(flat, np.float32(0.5), (np.clip(scores, low, high) - low) / (high - low))
    return scaled


def blend(content: Scores, cf: Scores, alpha: ArrayLike, candidates: NDArray[np.bool_]) -> Scores:
    """(1 - alpha) content + alpha cf, with ``content`` as it is and ``cf`` min-max normalised over the candidates.

    Parameters
    ----------
    content : (B, I) float32 in [0, 1]
    cf : (B, I) float32, any scale
    alpha : scalar or (B,), in [0, 1]
    candidates : (B, I) or (I,) bool, see :func:`normalise`
    """
    weight = np.asarray(alpha, dtype=np.float64).reshape(-1, 1)
    fused: Scores = (1.0 - weight).astype(np.float32) * content + weight.astype(np.float32) * normalise(cf, candidates)
    return fused


class Components(NamedTuple):
    """The parts of a blended score, all with one row a profile."""

    content: Scores
    cf: Scores  # normalised to [0, 1]
    alpha: NDArray[np.float64]  # (B,)
    fallback: NDArray[np.bool_]  # (B,) nothing liked: the list is popularity's


class Blend:
    """Content and one collaborative model, weighted by the number n of all ratings in the profile.

    score = (1 - alpha(n)) content + alpha(n) cf; a profile with no liked film gets the popularity scores, normalised,
    whatever the curve. (Burke 2002, Hybrid recommender systems: a weighted hybrid that switches.)

    Parameters
    ----------
    content, cf, popularity : recommenders, fitted by :meth:`fit` or before
    curve : alpha by n
    """

    name = "blend"

    def __init__(self, content: ContentModel, cf: Recommender, curve: AlphaCurve, popularity: Recommender) -> None:
        self.content = content
        self.cf = cf
        self.curve = curve
        self.popularity = popularity

    def fit(self, train: Interactions) -> Self:
        for part in (self.content, self.cf, self.popularity):
            part.fit(train)
        return self

    def components(self, profiles: csr_matrix) -> Components:
        """What the scores are made of, for reasons and for the exported columns."""
        cf = normalise(self.cf.scores(profiles), candidates(profiles))
        nothing_liked = liked_counts(profiles, self.content.liked) == 0
        return Components(self.content.scores(profiles), cf, self.curve(np.diff(profiles.indptr)), nothing_liked)

    def scores(self, profiles: csr_matrix, parts: Components | None = None) -> Scores:
        """(B, I) ratings -> (B, I) float32 in [0, 1]; ``parts``, where already computed, spares doing so again."""
        content, cf, alpha, fallback = parts or self.components(profiles)
        weight = alpha[:, None]
        fused: Scores = (1.0 - weight).astype(np.float32) * content + weight.astype(np.float32) * cf
        if fallback.any():
            rows = profiles[fallback]
            fused[fallback] = normalise(self.popularity.scores(rows), candidates(rows))
        return fused


def liked_counts(profiles: csr_matrix, liked: float) -> NDArray[np.int64]:
    """(B,) number of ratings >= ``liked`` in each profile."""
    before = np.concatenate([[0], np.cumsum(profiles.data >= liked)])
    counts: NDArray[np.int64] = np.diff(before[profiles.indptr])
    return counts


def alpha_surface(
    content: Scores, cf: Scores, profiles: csr_matrix, relevant: csr_matrix, alphas: Iterable[float], k: int = 10
) -> NDArray[np.float64]:
    """ndcg@k of the blend for every profile and every alpha, without building any blended matrix.

    Equal to :func:`blend`, top k without the profile's films (ties to the lower index), ndcg; NaN where nothing is
    relevant. About 1.5 ns per score and alpha.

    Parameters
    ----------
    content, cf : (B, I) float32; ``cf`` on any scale, it is min-max normalised over the candidates here
    profiles, relevant : (B, I)
    alphas : A weights in [0, 1]

    Returns
    -------
    (B, A) float64
    """
    weights = np.asarray(list(alphas), dtype=np.float64)
    scaled = normalise(cf, candidates(profiles))
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    surface: NDArray[np.float64] = _surface(
        np.ascontiguousarray(content, dtype=np.float32), scaled, profiles.indptr, profiles.indices, relevant.indptr,
        relevant.indices, (1.0 - weights).astype(np.float32), weights.astype(np.float32), discounts,
    )  # fmt: skip
    return surface


@njit(cache=True)
def _surface(content, cf, seen_ptr, seen, relevant_ptr, relevant, content_weights, cf_weights, discounts):  # type: ignore[no-untyped-def]
    rows, n_items = content.shape
    k = len(discounts)
    out = np.full((rows, len(cf_weights)), np.nan)
    mine = np.empty(n_items, np.float32)
    theirs = np.empty(n_items, np.float32)
    hit = np.empty(n_items, np.bool_)
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
        m = 0  # candidates side by side, so that the loop over alphas reads memory in order
        for i in range(n_items):
            if not is_seen[i]:
                mine[m] = content[u, i]
                theirs[m] = cf[u, i]
                hit[m] = is_relevant[i]
                m += 1
        ideal = discounts[: min(k, n_relevant)].sum()
        for a in range(len(cf_weights)):
            content_weight = content_weights[a]
            cf_weight = cf_weights[a]
            filled = 0
            for i in range(m):
                score = content_weight * mine[i] + cf_weight * theirs[i]
                if filled == k and score <= best[k - 1]:
                    continue
                j = filled if filled < k else k - 1
                while j > 0 and best[j - 1] < score:
                    best[j] = best[j - 1]
                    place[j] = place[j - 1]
                    j -= 1
                best[j] = score
                place[j] = i
                filled = min(filled + 1, k)
            gain = 0.0
            for j in range(filled):
                if hit[place[j]]:
                    gain += discounts[j]
            out[u, a] = gain / ideal
    return out
