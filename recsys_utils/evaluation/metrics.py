"""What a list of films, or a predicted rating, is worth: every metric of the study, vectorised over users.

Lists are (B, k) int32 arrays of item positions, best first; -1 pads a list that ran out of candidates. Sparse matrices
are users x items; a stored entry counts whatever its value. A metric that is undefined for a user (nothing relevant,
an empty profile) is NaN: means leave that user out and say how many are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import Scores
from recsys_utils.data.interactions import Interactions, item_counts

Lists = NDArray[np.int32]
PerUser = NDArray[np.float64]

RANKING = ("ndcg", "recall", "map", "mrr", "hit")


# ---- from scores to lists


def top_k(
    scores: Scores, profiles: csr_matrix, k: int, candidates: NDArray[np.bool_] | None = None,
    order: NDArray[np.int_] | None = None,
) -> Lists:  # fmt: skip
    """The k best films of every user outside the profile; ties go to the lower item index, or as ``order`` says.

    Parameters
    ----------
    scores : (B, I) float; -inf marks a film that is never recommended
    profiles : csr (B, I); what a user has rated is not recommended again
    k : length of the lists, >= 1
    candidates : (I,) bool, the films that may be recommended; default all
    order : (I,) a permutation of the films; of equal scores the one that comes first in it wins

    Returns
    -------
    (B, k) int32; -1 fills the end of a list when fewer than k candidates are left.

    Raises
    ------
    ValueError : shapes differ, or the score of a candidate is NaN (a defect of the model, never a low score).

    >>> top_k(np.array([[0.5, 0.9, 0.5, 0.1]], np.float32), csr_matrix([[0, 1, 0, 0]]), k=4)
    array([[ 0,  2,  3, -1]], dtype=int32)
    """
    if scores.shape != profiles.shape:
        raise ValueError(f"scores are {scores.shape}, profiles {profiles.shape}")
    if candidates is None:
        candidates = np.ones(scores.shape[1], np.bool_)
    order = np.arange(scores.shape[1]) if order is None else np.asarray(order, np.int64)
    lists = np.full((scores.shape[0], k), -1, np.int32)
    bad = _fill_top_k(scores, profiles.indptr, profiles.indices, candidates, order, lists)
    if bad >= 0:
        raise ValueError(f"the scores of row {bad} hold NaN; a model must give a number or -inf")
    return lists


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fill_top_k(scores, indptr, indices, candidates, order, lists):  # type: ignore[no-untyped-def]
    """Insertion into k sorted places; returns the first row with NaN, or -1."""
    n_items, k = scores.shape[1], lists.shape[1]
    seen = np.zeros(n_items, np.bool_)
    best = np.empty(k, scores.dtype)
    for row in range(scores.shape[0]):
        profile = indices[indptr[row] : indptr[row + 1]]
        seen[profile] = True
        best[:] = -np.inf
        for item in order:
            score = scores[row, item]
            # "not better than the last place" comes first: it settles nearly every film. NaN passes it.
            if score <= best[k - 1] or seen[item] or not candidates[item]:
                continue
            if np.isnan(score):
                return row
            place = k - 1
            while place > 0 and score > best[place - 1]:
                best[place] = best[place - 1]
                lists[row, place] = lists[row, place - 1]
                place -= 1
            best[place] = score
            lists[row, place] = item
        seen[profile] = False
    return -1


# ---- accuracy of a list


def ranking_metrics(lists: Lists, relevant: csr_matrix, *, k: int = 10) -> dict[str, PerUser]:
    r"""Accuracy of every user's first k films, with rel_r = 1 if the film at rank r is relevant and R relevant films.

    - ndcg@k = sum_r rel_r / log2(r + 1), divided by the same sum for min(k, R) hits at the top
      (Järvelin & Kekäläinen 2002, binary gain)
    - recall@k = hits / R; the denominator is R, so with R > k it can't reach 1
    - map@k = sum_r rel_r * precision@r, divided by min(k, R)
    - mrr@k = 1 / rank of the first hit, 0 without one among the k
    - hit@k = 1 if there is a hit, else 0

    Parameters
    ----------
    lists : (B, >= 1) int32; shorter than k is allowed and judged as if padded
    relevant : csr (B, I)

    Returns
    -------
    dict of (B,) float64 in [0, 1], keys ``ndcg@k`` ...; NaN where nothing is relevant.

    >>> found = ranking_metrics(np.array([[2, 0, 1]], np.int32), csr_matrix([[1, 0, 0, 1]]), k=3)
    >>> {name: round(float(value[0]), 3) for name, value in found.items()}
    {'ndcg@3': 0.387, 'recall@3': 0.5, 'map@3': 0.25, 'mrr@3': 0.5, 'hit@3': 1.0}
    """
    if lists.shape[0] != relevant.shape[0]:
        raise ValueError(f"{lists.shape[0]} lists for {relevant.shape[0]} rows of relevant films")
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[np.nan], np.cumsum(discount)])  # by number of relevant films
    values = _judge(lists[:, :k], relevant.indptr, relevant.indices, relevant.shape[1], discount, ideal)
    return {f"{name}@{k}": values[:, column].copy() for column, name in enumerate(RANKING)}


@njit(cache=True)  # type: ignore[untyped-decorator]
def _judge(lists, indptr, indices, n_items, discount, ideal):  # type: ignore[no-untyped-def]
    n_users, length = lists.shape
    k = len(discount)
    values = np.full((n_users, 5), np.nan)
    relevant = np.zeros(n_items, np.bool_)
    for row in range(n_users):
        films = indices[indptr[row] : indptr[row + 1]]
        if len(films) == 0:
            continue
        relevant[films] = True
        gain, precisions, first, hits = 0.0, 0.0, 0.0, 0
        for place in range(length):
            item = lists[row, place]
            if item >= 0 and relevant[item]:
                hits += 1
                gain += discount[place]
                precisions += hits / (place + 1)
                if hits == 1:
                    first = 1 / (place + 1)
        best = min(k, len(films))
        values[row, 0] = gain / ideal[best]
        values[row, 1] = hits / len(films)
        values[row, 2] = precisions / best
        values[row, 3] = first
        values[row, 4] = 1.0 if hits else 0.0
        relevant[films] = False
    return values


# ---- two lists side by side


def agreement(lists: Lists, others: Lists, *, p: float = 0.9) -> dict[str, PerUser]:
    r"""How alike two lists of each user are, X_d being the number of films that both have among their first d of k.

    - overlap@k = X_k / k
    - rbo@k = p^k X_k / k + (1 - p) / p * sum_d p^d X_d / d, rank-biased overlap extrapolated from depth k
      (Webber, Moffat & Zobel 2010, eq. 32): differences near the top weigh more; 1 for the same order, 0 for no film
      in common

    Parameters
    ----------
    lists, others : (B, k) int32; a place that is padded agrees with nothing
    p : in (0, 1), the chance that a reader goes on from one place to the next

    Returns
    -------
    dict of (B,) float64 in [0, 1].

    >>> agreement(np.array([[0, 1]], np.int32), np.array([[1, 0]], np.int32))
    {'overlap@2': array([1.]), 'rbo@2': array([0.9])}
    """
    k = lists.shape[1]
    same = (lists[:, :, None] == others[:, None, :]) & (lists >= 0)[:, :, None]
    share = np.stack([same[:, :d, :d].sum(axis=(1, 2)) / d for d in range(1, k + 1)], axis=1)
    weight = p ** np.arange(1, k + 1)
    return {f"overlap@{k}": share[:, -1], f"rbo@{k}": weight[-1] * share[:, -1] + (1 - p) / p * (share @ weight)}


# ---- what else a list does


@dataclass(frozen=True)
class ItemTraits:
    """What the metrics beyond accuracy know about the films, counted on the training part only.

    Parameters
    ----------
    counts : (I,) int64, training ratings of each film
    users : number of users with a training rating
    genres : (I, G) float64, 1 where the film has the genre
    spaces : further item vectors, csr (I, D), by name; each gives an ``ild_<name>@k``
    """

    counts: NDArray[np.int64]
    users: int
    genres: NDArray[np.float64]
    spaces: Mapping[str, csr_matrix] = field(default_factory=dict)

    @classmethod
    def of(
        cls, train: Interactions, genres: Iterable[Sequence[str]], spaces: Mapping[str, csr_matrix] | None = None
    ) -> ItemTraits:
        """Count ``train``; ``genres`` gives each film's genre names in catalogue order."""
        users = int(np.unique(train.user).size)
        kinds = genre_matrix(list(genres))[0].toarray().astype(float)
        return cls(item_counts(train.user_item), users, kinds, spaces or {})

    @property
    def share(self) -> NDArray[np.float64]:
        """(I,) share of the training users who rated the film; an unrated film counts as rated by one user."""
        return np.maximum(self.counts, 1) / self.users


def genre_matrix(genres: Sequence[Sequence[str]]) -> tuple[csr_matrix, list[str]]:
    """(I, G) float32 csr, 1 where the film has the genre, and the names of the columns in alphabetical order.

    >>> matrix, names = genre_matrix([["Comedy", "Action"], [], ["Comedy"]])
    >>> matrix.toarray().tolist(), names
    ([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]], ['Action', 'Comedy'])
    """
    names = sorted({name for film in genres for name in film})
    column = {name: place for place, name in enumerate(names)}
    pairs = [(row, column[name]) for row, film in enumerate(genres) for name in set(film)]
    rows, columns = zip(*pairs, strict=True) if pairs else ((), ())
    return csr_matrix((np.ones(len(pairs), np.float32), (rows, columns)), shape=(len(genres), len(names))), names


def list_metrics(
    lists: Lists, traits: ItemTraits, *, profiles: csr_matrix, relevant: csr_matrix, k: int = 10, alpha: float = 0.01
) -> dict[str, PerUser]:
    """Novelty, diversity, serendipity, popularity lift and calibration of every user's first k films.

    - novelty@k = mean of -log2(share of training users who rated the film) (Vargas & Castells 2011), bits
    - ild@k = mean over pairs of 1 - cosine of the genre vectors; a film without genres is at distance 1 from all;
      ild_<space>@k the same in another item space
    - serendipity@k = films that are relevant and not among the user's k most popular unrated ones, divided by k
    - popularity_lift@k = mean share of the list / mean share of the profile - 1 (Abdollahpouri 2019), per user
    - calibration_error@k = KL(p || (1 - alpha) q + alpha p), natural log, p and q the genre mixes of profile and list,
      each film spread evenly over its genres (Steck 2018); 0 is calibrated, -ln(alpha) the worst

    Parameters
    ----------
    lists : (B, >= 1) int32
    profiles, relevant : csr (B, I)
    alpha : smoothing of the calibration error, in (0, 1)

    Returns
    -------
    dict of (B,) float64. NaN: an empty list; fewer than two films (ild); nothing relevant (serendipity); an empty
    profile (popularity_lift); a profile without genres (calibration_error).
    """
    n_items = len(traits.counts)
    lists = lists[:, :k]
    chosen = _members(lists, n_items)
    rated = pattern(profiles)
    length, known = chosen.getnnz(axis=1), rated.getnnz(axis=1)
    popular = top_k(np.broadcast_to(traits.counts.astype(np.float32), profiles.shape), profiles, k)
    expected = chosen.multiply(_members(popular, n_items))
    surprises = (chosen - expected).multiply(pattern(relevant)).sum(axis=1)
    found = {
        "novelty": _divide(chosen @ -np.log2(traits.share), length),
        "ild": _mean_distance(chosen, csr_matrix(traits.genres)),
        "serendipity": np.where(relevant.getnnz(axis=1) > 0, np.asarray(surprises).ravel() / k, np.nan),
        "popularity_lift": _divide(_divide(chosen @ traits.share, length), _divide(rated @ traits.share, known)) - 1,
        "calibration_error": _calibration_error(rated, chosen, traits.genres, alpha),
    }
    found |= {f"ild_{name}": _mean_distance(chosen, space) for name, space in traits.spaces.items()}
    return {f"{name}@{k}": value for name, value in found.items()}


def _members(lists: Lists, n_items: int) -> csr_matrix:
    """csr (B, I) of 1 where the film is in the list."""
    filled = lists >= 0
    indptr = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    return csr_matrix((np.ones(indptr[-1]), lists[filled], indptr), shape=(len(lists), n_items))


def pattern(matrix: csr_matrix) -> csr_matrix:
    """The same stored places, each with a 1: a rating of 0 is a rating."""
    return csr_matrix((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)


def _divide(numerator: NDArray[np.float64], denominator: NDArray[np.generic]) -> PerUser:
    """Quotient, NaN where the denominator is 0."""
    whole = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=whole, where=denominator != 0)
    return whole


def _mean_distance(chosen: csr_matrix, vectors: csr_matrix) -> PerUser:
    """Mean of 1 - cosine over the pairs of each row's films.

    With unit vectors v the sum of v_i . v_j over pairs is (|sum v|^2 - sum |v|^2) / 2, so no pair is ever formed.
    """
    norm = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
    has_vector = norm > 0
    unit = vectors.multiply(1 / np.where(has_vector, norm, 1)[:, None]).tocsr()
    total = chosen @ unit
    similar = np.asarray(total.multiply(total).sum(axis=1)).ravel() - chosen @ has_vector.astype(np.float64)
    size = chosen.getnnz(axis=1)
    return 1 - _divide(similar, size * (size - 1))


def _calibration_error(rated: csr_matrix, chosen: csr_matrix, genres: NDArray[np.float64], alpha: float) -> PerUser:
    mix = genres / np.maximum(genres.sum(axis=1, keepdims=True), 1)
    wanted, given = rated @ mix, chosen @ mix
    weight = wanted.sum(axis=1)
    wanted /= np.where(weight > 0, weight, 1)[:, None]
    given /= np.maximum(given.sum(axis=1, keepdims=True), 1)  # films with a genre each bring a mass of 1
    smooth = (1 - alpha) * given + alpha * wanted
    terms = wanted * np.log(np.where(wanted > 0, wanted, 1) / np.where(wanted > 0, smooth, 1))
    return np.where((weight > 0) & (chosen.getnnz(axis=1) > 0), terms.sum(axis=1), np.nan)


# ---- a set of lists


def exposure(lists: Lists, n_items: int) -> NDArray[np.int64]:
    """(I,) in how many lists each film stands."""
    return np.bincount(lists[lists >= 0], minlength=n_items)


def coverage(lists: Lists, n_items: int) -> float:
    """Distinct films in all lists / films of the catalogue; grows with the number of lists, so compare at equal counts.

    >>> coverage(np.array([[0, 1], [0, -1]], np.int32), n_items=4)
    0.5
    """
    return float(np.count_nonzero(exposure(lists, n_items)) / n_items)


def gini(lists: Lists, n_items: int) -> float:
    """Gini index of exposure over the whole catalogue, films in no list included.

    G = sum_i (2 i - I - 1) x_(i) / (I sum x), exposures x ascending, i from 1: 0 if all films are shown equally often,
    (I - 1) / I if one film has it all. NaN without any list.

    >>> gini(np.array([[0], [0]], np.int32), n_items=4), gini(np.array([[0, 1], [2, 3]], np.int32), n_items=4)
    (0.75, 0.0)
    """
    shown = np.sort(exposure(lists, n_items))
    weight = 2 * np.arange(1, n_items + 1) - n_items - 1
    total = shown.sum()
    return float(weight @ shown / (n_items * total)) if total else float("nan")


def coverage_without_each(lists: Lists, n_items: int) -> PerUser:
    """(B,) coverage of the lists without list b, for the jackknife. A list must not name a film twice."""
    shown = exposure(lists, n_items)
    own = (lists >= 0) & (shown[lists] == 1)
    left: PerUser = (np.count_nonzero(shown) - own.sum(axis=1)) / n_items
    return left


def gini_without_each(lists: Lists, n_items: int) -> PerUser:
    """(B,) Gini index of the lists without list b, for the jackknife. A list must not name a film twice.

    Taking 1 from the first films of each level of the sorted exposures keeps them sorted, so only k weights change.
    """
    shown = np.sort(exposure(lists, n_items))
    weight = 2 * np.arange(1, n_items + 1) - n_items - 1
    level = np.where(lists >= 0, exposure(lists, n_items)[lists], 0)
    level.sort(axis=1)
    first = np.searchsorted(shown, level)
    same = level[:, :, None] == level[:, None, :]
    nth = np.tril(same, -1).sum(axis=2)  # place among the list's films of the same level
    lost = np.where(level > 0, weight[np.minimum(first + nth, n_items - 1)], 0).sum(axis=1)
    return _divide(weight @ shown - lost, n_items * (shown.sum() - (level > 0).sum(axis=1)))


# ---- rating error


def error_sums(
    user: NDArray[np.int32], truth: NDArray[np.float32], predicted: NDArray[np.float32], n_users: int
) -> dict[str, PerUser]:
    """Per-user sums from which RMSE and MAE are ratios: (U,) ``count``, ``squared``, ``absolute``.

    >>> sums = error_sums(np.array([0, 0, 2]), np.array([4.0, 2.0, 5.0]), np.array([3.0, 2.0, 3.0]), n_users=3)
    >>> sums["count"].tolist(), sums["squared"].tolist(), rmse(sums), mae(sums)
    ([2.0, 0.0, 1.0], [1.0, 0.0, 4.0], 1.2909944487358056, 1.0)
    """
    error = np.asarray(truth, np.float64) - predicted
    if np.isnan(error).any():
        raise ValueError(f"{int(np.isnan(error).sum())} of {len(error)} predictions or ratings are NaN")
    weights = {"count": np.ones(len(error)), "squared": error**2, "absolute": np.abs(error)}
    return {
        name: np.bincount(user, weights=weight, minlength=n_users).astype(np.float64)
        for name, weight in weights.items()
    }


def rmse(sums: Mapping[str, PerUser]) -> float:
    """sqrt(sum of squared errors / number of ratings) from :func:`error_sums`."""
    return float(np.sqrt(sums["squared"].sum() / sums["count"].sum()))


def mae(sums: Mapping[str, PerUser]) -> float:
    """Sum of absolute errors / number of ratings from :func:`error_sums`."""
    return float(sums["absolute"].sum() / sums["count"].sum())
