"""Rankers, and what all models share: popularity, item KNN and EASE.

What is learned about items is frozen and any row of ratings is scored, so that new users, cut profiles and trained
users are treated alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import csr_matrix, issparse

from recsys_utils.base import MOST_RATED, Floats, InputError, Scores
from recsys_utils.data.interactions import Interactions, item_counts

DENSE_BYTES = 3_600_000_000  # the most that dense matrices of all pairs may take: EASE on 15,000 items

State = dict[str, NDArray[Any]]
Binarise = Literal["any", "liked"]


class Model:
    """What the models share: arrays in and out, and ratings as clipped scores.

    Dataclass fields with ``init`` are settings; the others are learned arrays or CSR matrices.
    """

    name: ClassVar[str]
    bounds: NDArray[np.float64]  # lo, hi, liked of the training scale

    def state(self) -> State:
        """Settings and learned arrays, all plain numpy arrays (no pickles), for :meth:`from_state`."""
        state: State = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if issparse(value):
                parts = {"data": value.data, "indices": value.indices, "indptr": value.indptr, "shape": value.shape}
                state |= {f"{f.name}.{part}": np.asarray(array) for part, array in parts.items()}
            else:
                state[f.name] = np.asarray(value)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Self:
        """A fitted model from what :meth:`state` returned."""
        own = fields(cls)  # type: ignore[arg-type]
        model = cls(**{f.name: state[f.name].item() for f in own if f.init})
        for f in own:
            if not f.init and f.name in state:
                setattr(model, f.name, state[f.name])
            elif not f.init:
                data, indices, indptr, shape = (state[f"{f.name}.{p}"] for p in ("data", "indices", "indptr", "shape"))
                setattr(model, f.name, csr_matrix((data, indices, indptr), shape=tuple(shape.tolist())))
        return model

    def keep_scale(self, train: Interactions) -> None:
        self.bounds = np.array([train.scale.lo, train.scale.hi, train.scale.liked])

    def binarised(self, matrix: csr_matrix, which: Binarise) -> csr_matrix:
        """1 for every rating, or for every like only."""
        ones = np.ones_like(matrix.data) if which == "any" else (matrix.data >= self.bounds[2])
        binary = csr_matrix((ones.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
        binary.eliminate_zeros()
        return binary


class RatingModel(Model, ABC):
    @abstractmethod
    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 predicted ratings, not clipped, so that lists order what lies beyond the scale."""

    def ratings(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 predicted ratings: the scores clipped to the scale of the training data."""
        scores = self.scores(profiles)
        return np.clip(scores, self.bounds[0], self.bounds[1], out=scores)


def checked(profiles: csr_matrix, n_items: int) -> csr_matrix:
    """Profiles with sorted indices; the kernels trust their shape."""
    if profiles.shape[1] != n_items:
        raise ValueError(f"profiles have {profiles.shape[1]} columns, the model knows {n_items} items")
    return profiles if profiles.has_sorted_indices else profiles.sorted_indices()


def row_of(matrix: csr_matrix) -> NDArray[np.int64]:
    """The row of each stored entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def row_means(matrix: csr_matrix, empty: float) -> Floats:
    counts = np.diff(matrix.indptr)
    sums = np.bincount(row_of(matrix), weights=matrix.data, minlength=matrix.shape[0])
    return np.where(counts > 0, sums / np.maximum(counts, 1), empty)


def most_rated(train: Interactions, n: int) -> NDArray[np.intp]:
    """Places, in order, of the n items with the most ratings, ties to the lower place."""
    return np.sort(np.argsort(-item_counts(train.user_item), kind="stable")[:n])


def fits_dense(n: int, matrices: int) -> bool:
    """Whether so many dense float64 matrices of n x n stay within 3.6 GB."""
    return 8 * matrices * n**2 <= DENSE_BYTES


def refuse_dense(what: str, n: int, matrices: int, advice: str) -> None:
    """Stop before a fit that would be killed for want of memory.

    Raises
    ------
    InputError : so many dense float64 matrices of n x n don't fit.
    """
    if not fits_dense(n, matrices):
        need, most = 8 * matrices * n**2 / 1e9, int((DENSE_BYTES / 8 / matrices) ** 0.5)
        raise InputError(f"{what}: {n:,} x {n:,} would need about {need:.0f} GB; at most {most:,} are taken. {advice}")


@dataclass
class Popularity(Model):
    """Score = number of training likes of the item, the same for everyone.

    Parameters
    ----------
    binarise : count likes, or any rating: a weaker baseline where likes are relevant, since disliked items count too

    >>> import pandas as pd; from recsys_utils.base import Scale
    >>> frame = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "rating": [5, 3, 4]})
    >>> data = Interactions.from_frame(frame, scale=Scale(1, 5))
    >>> [Popularity(which).fit(data).scores(data.user_item[0]).tolist() for which in ("liked", "any")]
    [[[2.0, 0.0]], [[2.0, 1.0]]]
    """

    name: ClassVar[str] = "popularity"
    binarise: Binarise = "liked"
    counts: NDArray[np.float32] = field(init=False, repr=False, compare=False)
    rated: NDArray[np.float32] = field(init=False, repr=False, compare=False)  # training ratings of each item
    bounds: Floats = field(init=False, repr=False, compare=False)

    def fit(self, train: Interactions) -> Self:
        self.keep_scale(train)
        self.counts, self.rated = (
            item_counts(self.binarised(train.user_item, which)).astype(np.float32) for which in (self.binarise, "any")
        )
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 counts."""
        return np.tile(self.counts, (checked(profiles, len(self.counts)).shape[0], 1))


@dataclass
class ItemKNN(Model):
    """Neighbours by shrunk cosine over who rated what: ``score(u, i) = sum over rated j of s(i, j)``.

    ``s(i, j) = x_i.x_j / (|x_i| |x_j| + shrink)`` on binary columns, kept for the k items most similar to i.

    Parameters
    ----------
    k, shrink : neighbours per item; damping of similarities with little support, in ratings
    binarise : count any rating, or likes only, in training and in profiles
    most_rated : items that are compared; others score 0, as those without a rating do
    """

    name: ClassVar[str] = "item_knn"
    k: int = 100
    shrink: float = 10.0
    binarise: Binarise = "any"
    most_rated: int = MOST_RATED
    similarity: csr_matrix = field(init=False, repr=False, compare=False)
    bounds: Floats = field(init=False, repr=False, compare=False)

    def fit(self, train: Interactions) -> Self:
        self.keep_scale(train)
        x = self.binarised(train.user_item, self.binarise)
        x.data *= np.isin(x.indices, most_rated(train, self.most_rated))
        x.eliminate_zeros()
        norm = np.sqrt(item_counts(x).astype(np.float64))
        together = (x.T @ x).tocsr()
        columns: list[NDArray[np.int32]] = []
        values: list[NDArray[np.float32]] = []
        for i in range(together.shape[0]):
            part = slice(together.indptr[i], together.indptr[i + 1])
            other = together.indices[part]
            sim = np.where(other == i, 0.0, together.data[part] / (norm[i] * norm[other] + self.shrink))
            best = np.lexsort((other, -sim))[: self.k]
            best = best[sim[best] > 0]
            columns.append(other[best])
            values.append(sim[best].astype(np.float32))
        indptr = np.concatenate([[0], np.cumsum([len(c) for c in columns])])
        neighbours = csr_matrix((np.concatenate(values), np.concatenate(columns), indptr), shape=together.shape)
        self.similarity = neighbours.T.tocsr()
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32 sums of similarity; 0 where no neighbour is rated."""
        binary = self.binarised(checked(profiles, self.similarity.shape[0]), self.binarise)
        scores: Scores = (binary @ self.similarity).toarray()
        return scores


def _inverse(matrix: Floats) -> Floats:
    """Upper triangle of the inverse of a symmetric positive definite matrix, 0 below: a third of the cost of inv.

    Its memory is used for the result.
    """
    factor, _ = lapack.dpotrf(matrix.T, overwrite_a=True)
    upper: Floats = np.triu(lapack.dpotri(factor, overwrite_c=True)[0])
    return upper


@dataclass
class EASE(Model):
    """Linear item-to-item regression in closed form: ``B = I - P diag(1 / P_jj)``, ``P = (X'X + reg I)^-1``.

    ``scores = X B`` on binary profiles. Paper: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019.

    Parameters
    ----------
    reg : ridge penalty on B
    binarise : count any rating, or likes only, in training and in profiles
    most_rated : items in B, at most 15,000 (it is dense: 8 bytes x items^2 while fitting, twice); others score 0, as
        those without a rating do

    Raises
    ------
    InputError : B would be larger than that.
    """

    name: ClassVar[str] = "ease"
    reg: float = 500.0
    binarise: Binarise = "any"
    most_rated: int = MOST_RATED
    precision: NDArray[np.float32] = field(init=False, repr=False, compare=False)  # upper triangle of P: P is symmetric
    kept: NDArray[np.intp] = field(init=False, repr=False, compare=False)  # places of the items in B
    n_items: NDArray[np.int_] = field(init=False, repr=False, compare=False)
    bounds: Floats = field(init=False, repr=False, compare=False)

    def fit(self, train: Interactions) -> Self:
        self.kept, self.n_items = most_rated(train, self.most_rated), np.asarray(len(train.items))
        n_items = len(self.kept)
        refuse_dense("EASE", n_items, 2, "Ask for fewer of the items rated most (most_rated), or use ItemKNN.")
        self.keep_scale(train)
        x = self.binarised(train.user_item, self.binarise)[:, self.kept].astype(np.float64)
        x = x[np.diff(x.indptr) > 0]
        if 1.3 * x.shape[0] < n_items:
            # P = (I - X' (X X' + reg I)^-1 X) / reg (Woodbury): the smaller inverse, several times faster
            inner = _inverse((x @ x.T).toarray() + self.reg * np.eye(x.shape[0]))
            inner += np.triu(inner, 1).T
            inverse = x.T @ (x.T @ inner).T / -self.reg
            inverse[np.diag_indices(n_items)] += 1 / self.reg
        else:
            inverse = _inverse((x.T @ x).toarray() + self.reg * np.eye(n_items))
        self.precision = inverse[np.triu_indices(n_items)].astype(np.float32)
        self.__dict__.pop("weights", None)
        return self

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """B, a row and a column an item of ``kept``, made from P so that an export holds half as many numbers."""
        n_items = int((np.sqrt(8 * len(self.precision) + 1) - 1) / 2)
        weights = np.zeros((n_items, n_items), np.float32)
        weights[np.triu_indices(n_items)] = self.precision
        weights += np.triu(weights, 1).T
        weights /= -np.diag(weights)
        np.fill_diagonal(weights, 0)
        return weights

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) float32; 0 for an empty profile."""
        binary = self.binarised(checked(profiles, int(self.n_items)), self.binarise)
        scores = np.zeros(binary.shape, np.float32)
        scores[:, self.kept] = binary[:, self.kept] @ self.weights
        return scores
