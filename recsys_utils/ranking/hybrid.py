"""The hybrid: content and collaborative scores in one, weighted by the size of the profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import InputError, Recommender, Scores
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.content import ContentModel
from recsys_utils.models.rankers import EASE, ItemKNN, Popularity, State
from recsys_utils.models.surprise_models import KNN, SVD

Floats = NDArray[np.float64]
FLATTEST = 0.001  # slope from content to an unrated item's cf: content orders such items for everyone
COLLABORATIVE: dict[str, Any] = {m.name: m for m in (Popularity, SVD, KNN, ItemKNN, EASE)}  # what needs no metadata


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
    "ramp": AlphaCurve("ramp", (5, 20), (0.0, 0.7)),  # the classic ends without the jump between them
    "step": AlphaCurve("step", (4, 5, 19, 20), (0.0, 0.3, 0.3, 0.7)),
    "linear": linear(0.0, 0.7, 20),
    "sigmoid": sigmoid(0.0, 0.7, 12, 3.0),
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
    scaled: Scores = _min_max(scores, np.broadcast_to(candidates, scores.shape))
    return scaled


@njit(cache=True)
def _min_max(scores, candidates):  # type: ignore[no-untyped-def]
    scaled = np.empty(scores.shape, np.float32)
    for u in range(len(scores)):
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for i in range(scores.shape[1]):
            if candidates[u, i]:
                low, high = min(low, scores[u, i]), max(high, scores[u, i])
        if not high > low:
            scaled[u] = 0.5
        else:
            for i in range(scores.shape[1]):
                scaled[u, i] = (min(max(scores[u, i], low), high) - low) / (high - low)
    return scaled


def ranked(scores: Scores, candidates: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(B, I) items of each row from the highest score down, ties to the lower index; no candidates last.

    A float32 and its index make one whole number, so that a plain sort of numbers is a stable one of scores, at half
    the cost.

    >>> ranked(np.array([[0, 4, 4]], np.float32), np.ones((1, 3), bool)).tolist()
    [[1, 2, 0]]
    """
    bits = (np.where(candidates, -np.asarray(scores, np.float32), np.float32(np.inf)) + np.float32(0)).view(np.int32)
    ascending = (bits ^ ((bits >> 31) & np.int32(2**31 - 1))).astype(np.int64)  # in the floats' order; + 0: no -0.0
    order: NDArray[np.int64] = np.sort(ascending << 32 | np.arange(scores.shape[1]), axis=1) & (2**32 - 1)
    return order


def weighted(parts: Sequence[Scores], weights: Floats) -> Scores:
    """sum_p weights[:, p] parts[p], added in the order given, in float32.

    Parameters
    ----------
    parts : P scores (B, I) float32
    weights : (B, P), or (P,) for all rows alike
    """
    columns = np.atleast_2d(weights).astype(np.float32).T[:, :, None]
    total: Scores = columns[0] * parts[0]
    for weight, scores in zip(columns[1:], parts[1:], strict=True):
        total += weight * scores
    return total


def scaled(model: Recommender, profiles: csr_matrix) -> Scores:
    """(B, I) scores on [0, 1]: those of a :class:`WeightedEnsemble` as they are, others min-max normalised."""
    scores = model.scores(profiles)
    return scores if isinstance(model, WeightedEnsemble) else normalise(scores, candidates(profiles))


class WeightedEnsemble:
    """Several collaborative models in one: score = sum_p w_p(n) s_p, each s_p min-max normalised over the candidates.

    The weights add up to 1 at every number n of ratings in the profile, straight between the given sizes and constant
    outside. A score therefore lies in [0, 1] and splits exactly into what each model adds (:meth:`portions`).

    Parameters
    ----------
    parts : models by name, fitted by :meth:`fit` or before
    sizes : S increasing profile sizes
    weights : per part S weights

    >>> import pandas as pd; from recsys_utils.base import Scale
    >>> frame = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "rating": [5, 3, 4]})
    >>> data = Interactions.from_frame(frame, scale=Scale(1, 5))
    >>> mixture = WeightedEnsemble({"popularity": Popularity()}, [1], {"popularity": [1.0]}).fit(data)
    >>> mixture.scores(csr_matrix((1, 2), dtype=np.float32)).tolist()
    [[1.0, 0.0]]
    """

    name = "mixture"

    def __init__(
        self, parts: Mapping[str, Recommender], sizes: Sequence[int], weights: Mapping[str, Sequence[float]]
    ) -> None:
        self.parts, self.sizes = dict(parts), tuple(sizes)
        self.weights = {part: tuple(weights[part]) for part in parts}
        total = sum(np.array(w) for w in self.weights.values())
        if any(np.diff(self.sizes) <= 0) or np.shape(total) != (len(self.sizes),) or not np.allclose(total, 1):
            raise InputError(f"A mixture's weights must add up to 1 at each of its sizes; got {sizes} and {weights}.")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Not yet fitted, from ``parts`` (settings by model name), ``sizes`` and ``weights``."""
        parts = {part: COLLABORATIVE[part](**settings) for part, settings in value["parts"].items()}
        return cls(parts, value["sizes"], value["weights"])

    def fit(self, train: Interactions) -> Self:
        for part in self.parts.values():
            part.fit(train)
        return self

    def weights_at(self, n: ArrayLike) -> Floats:
        """(B, P) weights for profiles of n (B,) ratings."""
        return np.column_stack([np.interp(np.atleast_1d(n), self.sizes, w) for w in self.weights.values()])

    def portions(self, profiles: csr_matrix) -> dict[str, Scores]:
        """What each part adds to the scores, (B, I) float32 each; their sum, in this order, is the score."""
        weights = self.weights_at(np.diff(profiles.indptr)).astype(np.float32)
        return {part: weights[:, [p]] * scaled(model, profiles) for p, (part, model) in enumerate(self.parts.items())}

    def scores(self, profiles: csr_matrix) -> Scores:
        """(B, I) ratings -> (B, I) float32 in [0, 1]."""
        parts = [scaled(model, profiles) for model in self.parts.values()]
        return weighted(parts, self.weights_at(np.diff(profiles.indptr)))

    def state(self) -> State:
        """Plain arrays, those of a part under ``<part>.<name>``, for :meth:`from_state`."""
        state: State = {"parts": np.array(list(self.parts)), "sizes": np.array(self.sizes)}
        for part, model in self.parts.items():
            state[f"weight.{part}"] = np.array(self.weights[part])
            state |= {f"{part}.{key}": array for key, array in COLLABORATIVE[part].state(model).items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Self:
        names = [str(part) for part in state["parts"]]
        own = {
            part: {key.removeprefix(f"{part}."): v for key, v in state.items() if key.startswith(f"{part}.")}
            for part in names
        }
        parts = {part: COLLABORATIVE[part].from_state(arrays) for part, arrays in own.items()}
        return cls(parts, state["sizes"].tolist(), {part: state[f"weight.{part}"].tolist() for part in names})


class Components(NamedTuple):
    """The parts of a blended score, all with one row a profile."""

    content: Scores
    cf: Scores  # normalised to [0, 1]
    alpha: NDArray[np.float64]  # (B,)
    fallback: NDArray[np.bool_]  # (B,) the list is popularity's: nothing liked, or popularity has all the weight


class Hybrid:
    """Content and one collaborative model, weighted by the number n of all ratings in the profile.

    score = (1 - alpha(n)) content + alpha(n) cf; a profile with no liked film gets the popularity scores, normalised,
    whatever the curve. (Burke 2002, Hybrid recommender systems: a weighted hybrid that switches.)

    Collaborative models know nothing of an item that nobody has rated. Its cf is what a regression per user, from the
    content score to the cf of the rated items, expects of it, around the mean of the items rated least if that is below
    the mean of all, since an item without ratings is more like these. The slope is kept from falling below
    :data:`FLATTEST` and from leaving [0, 1]: so whatever alpha is, such items come in content's order, on the scale of
    the others, whose scores stay as they are.

    Parameters
    ----------
    content, cf, popularity : recommenders, fitted by :meth:`fit` or before
    curve : alpha by n
    """

    name = "blend"

    def __init__(self, content: ContentModel, cf: Recommender, curve: AlphaCurve, popularity: Popularity) -> None:
        self.content = content
        self.cf = cf
        self.curve = curve
        self.popularity = popularity

    def fit(self, train: Interactions) -> Self:
        for part in (self.content, self.cf, self.popularity):
            part.fit(train)
        for learned in ("new", "_rare"):
            self.__dict__.pop(learned, None)
        return self

    @cached_property
    def new(self) -> NDArray[np.bool_]:
        """(I,) True for items without any training rating, as far as anything is known about any item."""
        rated = self.popularity.rated
        return np.asarray((rated <= 0) & rated.any() & bool(self.content.vectors.nnz))

    @cached_property
    def _rare(self) -> NDArray[np.bool_]:
        """(I,) the tenth of the rated items with the fewest ratings."""
        rated = self.popularity.rated
        return ~self.new & (rated <= np.quantile(rated[~self.new], 0.1))

    def components(self, profiles: csr_matrix) -> Components:
        """What the scores are made of, for reasons and for the exported columns."""
        content, cf = self.content.scores(profiles), scaled(self.cf, profiles)
        if self.new.any():
            cf[:, self.new] = expected(content, cf, ~self.new, self._rare)
        n = np.diff(profiles.indptr)
        alpha, fallback = self.curve(n), liked_counts(profiles, self.content.liked) == 0
        if isinstance(self.cf, WeightedEnsemble) and "popularity" in self.cf.parts:
            own = self.cf.weights_at(n)[:, list(self.cf.parts).index("popularity")]
            fallback |= (alpha == 1) & (own == 1)
        return Components(content, cf, alpha, fallback)

    def scores(self, profiles: csr_matrix, parts: Components | None = None) -> Scores:
        """(B, I) ratings -> (B, I) float32 in [0, 1]; ``parts``, where already computed, spares doing so again."""
        content, cf, alpha, fallback = parts or self.components(profiles)
        fused = weighted([content, cf], np.column_stack([1.0 - alpha, alpha]))
        if fallback.any():
            rows = profiles[fallback]
            fused[fallback] = normalise(self.popularity.scores(rows), candidates(rows))
        return fused


def expected(content: Scores, cf: Scores, known: NDArray[np.bool_], rare: NDArray[np.bool_]) -> Scores:
    """The cf (B, new) that each row's content scores lead one to expect of the items that are not ``known``.

    ``min(mean cf, mean cf of rare) + slope (content - mean content)``, means over the known items, slope that of least
    squares over them, but at least :data:`FLATTEST` and at most what keeps all within [0, 1].

    Parameters
    ----------
    content, cf : (B, I) in [0, 1]
    known, rare : (I,)

    >>> content, cf = np.array([[0.0, 0.4, 0.1, 0.3]], np.float32), np.array([[0.2, 0.4, 0, 0]], np.float32)
    >>> known = np.array([True, True, False, False])
    >>> expected(content, cf, known, known).round(3).tolist()
    [[0.25, 0.3499999940395355]]
    """
    line = _lines(content, cf, known, rare)
    centre, level, slope = line[:, :1], line[:, 1:2], line[:, 2:]
    off = content[:, ~known] - centre
    above, below = (np.maximum(ends.max(axis=1, keepdims=True), 1e-9) for ends in (off, -off))
    steepest = np.minimum((1 - level) / above, level / below)
    found: Scores = (level + np.minimum(np.maximum(slope, FLATTEST), steepest) * off).clip(0, 1).astype(np.float32)
    return found


@njit(cache=True)
def _lines(content, cf, known, rare):  # type: ignore[no-untyped-def]
    """(B, 3) mean content, level and least-squares slope of :func:`expected`, in one pass."""
    found = np.empty((len(content), 3))
    n, n_rare = known.sum(), rare.sum()
    for u in range(len(content)):
        sum_x = sum_y = sum_xx = sum_xy = sum_rare = 0.0
        for i in range(len(known)):
            if known[i]:
                x, y = np.float64(content[u, i]), np.float64(cf[u, i])
                sum_x, sum_y, sum_xx, sum_xy = sum_x + x, sum_y + y, sum_xx + x * x, sum_xy + x * y
                if rare[i]:
                    sum_rare += y
        spread = sum_xx - sum_x * sum_x / n
        found[u, 0], found[u, 1] = sum_x / n, min(sum_y / n, sum_rare / n_rare)
        found[u, 2] = (sum_xy - sum_x * sum_y / n) / spread if spread > 1e-12 else 0.0
    return found


def liked_counts(profiles: csr_matrix, liked: float) -> NDArray[np.int64]:
    """(B,) number of ratings >= ``liked`` in each profile."""
    before = np.concatenate([[0], np.cumsum(profiles.data >= liked)])
    counts: NDArray[np.int64] = np.diff(before[profiles.indptr])
    return counts
