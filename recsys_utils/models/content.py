"""Content models: what a film's metadata alone can say about who will like it.

Metadata become typed tokens (``genre:Sci-Fi``, ``director:m.0bxtg``), tokens become TF-IDF vectors, and a profile is
the weighted mean of the vectors of its liked films. Fitting uses no rating: a film without any can be scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from recsys_utils.base import ITEM, InputError, Scores
from recsys_utils.data.interactions import Interactions, item_counts

PREFIX = {
    "genres": "genre", "keywords": "keyword", "directors": "director", "actors": "actor", "writers": "writer",
    "overview": "overview",
}  # fmt: skip
FIELDS = tuple(PREFIX)
TOP_CAST = 3
SMALL_CORPUS = 100  # films; below it a term seen once is kept, since few are seen twice

Cast = Literal["all", "none"]


def soup(
    items: pd.DataFrame, fields: Sequence[str] = FIELDS, cast: Cast = "all", has_billing_order: bool = False
) -> list[list[str]]:
    """Each film's metadata as typed tokens, in the order of ``fields``; each token once.

    Names of several words are joined (``actor:Uma_Thurman``), so that no other film shares half a name. An overview
    stays one token, ``overview:`` and its text, which :func:`analyse` cuts into words.

    Parameters
    ----------
    items : one row a film; a column of names per field, and ``overview``, a text. A field that is no column is skipped.
    cast : "none" leaves actors out. "all" takes the first three where ``has_billing_order``, for those are the leads;
        without an order any three would be arbitrary, so all are taken.

    Raises
    ------
    InputError : an unknown field or cast.

    >>> film = pd.DataFrame({"genres": [["War"]], "actors": [["Uma Thurman", "B", "C", "D"]], "overview": ["A quest."]})
    >>> soup(film, ["genres", "actors", "overview"], has_billing_order=True)
    [['genre:War', 'actor:Uma_Thurman', 'actor:B', 'actor:C', 'overview:A quest.']]
    """
    unknown = [f for f in fields if f not in PREFIX]
    if unknown:
        raise InputError(f"Unknown metadata: {', '.join(unknown)}; known are {', '.join(FIELDS)}.")
    if cast not in ("all", "none"):
        raise InputError(f"cast must be 'all' or 'none'; got {cast!r}.")
    documents: list[list[str]] = [[] for _ in range(len(items))]
    for field in fields:
        if field not in items or (field == "actors" and cast == "none"):
            continue
        limit = TOP_CAST if field == "actors" and has_billing_order else None
        for document, value in zip(documents, items[field], strict=True):
            if field == "overview":
                document.extend([f"overview:{value}"] if value else [])
            else:
                names = dict.fromkeys("_".join(str(name).split()) for name in value)
                document.extend(f"{PREFIX[field]}:{name}" for name in list(names)[:limit])
    return documents


def field_variants(items: pd.DataFrame, fields: Sequence[str] = FIELDS) -> dict[str, list[str]]:
    """The soups an ablation compares: all fields, each alone, genres with one other, all but one.

    Fields no film has are left out; a soup that stands under an earlier name is not repeated.

    >>> films = pd.DataFrame({"genres": [["War"]], "directors": [["A"]], "writers": [[]]})
    >>> field_variants(films)
    {'all': ['genres', 'directors'], 'genres': ['genres'], 'directors': ['directors']}
    """
    present = [f for f in fields if f in items and items[f].map(len).gt(0).any()]
    variants = {"all": present} | {f: [f] for f in present}
    variants |= {f"genres+{f}": ["genres", f] for f in present if f != "genres"}
    variants |= {f"without_{f}": [other for other in present if other != f] for f in present}
    kept: dict[str, list[str]] = {}
    for name, chosen in variants.items():
        if chosen and chosen not in kept.values():
            kept[name] = chosen
    return kept


@cache
def _words() -> Any:
    return CountVectorizer(stop_words="english", ngram_range=(1, 2)).build_analyzer()


def analyse(document: Sequence[str]) -> Iterator[str]:
    """Terms of one film: typed tokens whole, an overview as 1-2-grams without English stop words.

    A usual tokeniser would split ``director:m.0bxtg`` and ``Sci-Fi``, and join the last genre to the first actor.

    >>> list(analyse(["director:m.0bxtg", "overview:The lost island"]))
    ['director:m.0bxtg', 'overview:lost', 'overview:island', 'overview:lost island']
    """
    for token in document:
        kind, _, text = token.partition(":")
        if kind == "overview":
            yield from (f"overview:{term}" for term in _words()(text))
        else:
            yield token


class Tfidf:
    """TF-IDF vectors of typed tokens: tf * (1 + ln((1 + N) / (1 + df))), rows scaled to length 1.

    The ``max_features`` terms most frequent in the corpus, among those in at least 2 films and at most 80 % of them;
    of equally frequent ones the first in alphabetical order. (TfidfVectorizer's own limit sorts them unstably, so that
    the vocabulary would depend on the processor.) In fewer than 100 films, and where nothing would be left, one film is
    enough.

    Parameters
    ----------
    max_features : size of the vocabulary
    """

    def __init__(self, max_features: int = 5000) -> None:
        self.max_features = max_features
        self.tokens: NDArray[np.str_]
        self.vectors: csr_matrix

    def fit(self, documents: Sequence[Sequence[str]]) -> Self:
        """Learn the vocabulary; leaves ``tokens`` (T,) str and ``vectors`` (I, T) float32, sorted indices.

        Raises
        ------
        InputError : no film has any term.
        """
        if not any(True for d in documents for _ in analyse(d)):
            raise InputError(f"None of the {len(documents)} films has any of the chosen metadata; choose other fields.")
        attempts = [(2, 0.8), (1, 0.8), (1, 1.0)]
        for min_df, max_df in attempts[len(documents) < SMALL_CORPUS :]:
            vectorizer = CountVectorizer(analyzer=analyse, min_df=min_df, max_df=max_df, dtype=np.float32)
            try:
                counts = csr_matrix(vectorizer.fit_transform(documents))
                break
            except ValueError:  # scikit-learn's way to say that pruning left no term
                if max_df == 1.0:
                    raise
        frequency = counts.sum(axis=0, dtype=np.float64).A1  # of terms in alphabetical order
        kept = np.sort(np.argsort(-frequency, kind="stable")[: self.max_features])
        self.vectors = csr_matrix(TfidfTransformer(norm="l2").fit_transform(counts[:, kept]), dtype=np.float32)
        self.vectors.sort_indices()
        self.tokens = np.asarray(vectorizer.get_feature_names_out()[kept], dtype=np.str_)
        return self


class ContentModel:
    """Cosine between a film and the rating-weighted mean of the films a profile likes.

    p_u = sum_i r_ui x_i / sum_i r_ui over ratings r_ui >= liked;  score(u, j) = p_u . x_j / |p_u|  (0 with no like)

    in [0, 1], since the vectors have no negative entry. (Pazzani & Billsus 2007, Content-based recommendation systems.)

    Parameters
    ----------
    items : catalogue, one row a film in the order of ``Interactions.items``, see :func:`soup`
    fields, cast, has_billing_order : see :func:`soup`; without fields, for items of which nothing is known, all score 0
    max_features : see :class:`Tfidf`

    >>> from recsys_utils.base import Scale
    >>> films = pd.DataFrame({"item_id": ["a", "b", "c"], "genres": [["War"], ["War"], ["Love"]]})
    >>> ratings = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "rating": [5]})
    >>> data = Interactions.from_frame(ratings, scale=Scale(1, 5), items=films["item_id"])
    >>> model = ContentModel(films, fields=["genres"]).fit(data)
    >>> model.scores(data.user_item).tolist(), model.explain(data.user_item, 1)
    ([[1.0, 1.0, 0.0]], [('genre:War', 1.0)])
    """

    name = "content"

    def __init__(
        self, items: pd.DataFrame, fields: Sequence[str] = FIELDS, cast: Cast = "all", has_billing_order: bool = False,
        max_features: int = 5000,
    ) -> None:  # fmt: skip
        self.item_ids = items[ITEM].to_numpy(dtype=np.str_)
        self.tokens, self.vectors = np.array(["nothing:known"]), csr_matrix((len(items), 1), dtype=np.float32)
        if fields:
            tfidf = Tfidf(max_features).fit(soup(items, fields, cast, has_billing_order))
            self.tokens, self.vectors = tfidf.tokens, tfidf.vectors
        self.liked = np.inf

    def fit(self, train: Interactions) -> Self:
        """Take from ``train`` only what counts as a like; its ratings are not used."""
        _check_alignment(self.item_ids, train)
        self.liked = train.scale.liked
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(B, I) ratings -> (B, I) float32 cosines in [0, 1]; a row of zeros where no film is liked."""
        # a dense profile side: nearly every film shares a genre with every profile, so little of the product is 0
        cosines: Scores = np.ascontiguousarray((self.vectors @ self._directions(profiles).toarray().T).T)
        return cosines

    def explain(self, profile: csr_matrix, item: int) -> list[tuple[str, float]]:
        """What the profile (1, I) and film ``item`` share, as (typed token, weight), heaviest first.

        The weights add up to the film's score.
        """
        shared = self._directions(profile).multiply(self.vectors[item]).tocsr()
        return _heaviest_first(self.tokens[shared.indices], shared.data)

    def explain_by_film(self, profile: csr_matrix, item: int) -> list[tuple[int, float]]:
        """Which liked films make the score: (film's position, weight), heaviest first; the weights add up to it."""
        likes = self._likes(profile)
        length = np.sqrt((likes @ self.vectors).power(2).sum())
        weights = likes.data * (self.vectors[likes.indices] @ self.vectors[item].T).toarray().ravel() / (length or 1.0)
        return _heaviest_first(likes.indices, weights)

    def nearest(self, item: int, k: int = 5) -> list[tuple[int, float]]:
        """The ``k`` films most like film ``item``: (position, cosine), ties to the lower position."""
        cosine = (self.vectors @ self.vectors[item].T).toarray().ravel()
        cosine[item] = -1.0
        return [(int(j), float(cosine[j])) for j in np.argsort(-cosine, kind="stable")[:k]]

    def _likes(self, profiles: csr_matrix) -> csr_matrix:
        keep = profiles.data >= self.liked
        before = np.concatenate([[0], np.cumsum(keep)])
        parts = (profiles.data[keep], profiles.indices[keep], before[profiles.indptr])
        return csr_matrix(parts, shape=profiles.shape, dtype=np.float32)

    def _directions(self, profiles: csr_matrix) -> csr_matrix:
        """Profile vectors of length 1; the mean's denominator cancels."""
        return csr_matrix(normalize(self._likes(profiles) @ self.vectors, norm="l2"))

    def state(self) -> dict[str, np.ndarray]:
        """The model as plain arrays."""
        return {
            "item_ids": self.item_ids, "tokens": self.tokens, "liked": np.array(self.liked), "data": self.vectors.data,
            "indices": self.vectors.indices, "indptr": self.vectors.indptr,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Self:
        """The model that :meth:`state` described."""
        model = cls.__new__(cls)
        model.item_ids, model.tokens, model.liked = state["item_ids"], state["tokens"], float(state["liked"])
        shape = (len(model.item_ids), len(model.tokens))
        model.vectors = csr_matrix((state["data"], state["indices"], state["indptr"]), shape=shape)
        return model


class GenreRidge:
    """Per-user ridge regression from genres to likes: the baseline a content model must beat on films without ratings.

    w_u = argmin_w sum_j (y_uj - mean_j y_uj - x_j . w)^2 + reg |w|^2  over the films j that ``train`` knows, y_uj = 1
    for a like and 0 else, x_j the centred genre indicators; score(u, j) = x_j . w_u.
    In closed form, for all users at once: Y X (X'X + reg I)^-1 X'.

    Parameters
    ----------
    items : catalogue with columns item_id and genres
    reg : penalty, in films
    """

    name = "genre_ridge"

    def __init__(self, items: pd.DataFrame, reg: float = 10.0) -> None:
        self.item_ids = items[ITEM].to_numpy(dtype=np.str_)
        self.genres = CountVectorizer(analyzer=analyse).fit_transform(soup(items, ["genres"])).toarray().astype(float)
        self.reg = reg
        self.liked = np.inf

    def fit(self, train: Interactions) -> Self:
        """Centre and invert over the films with a rating in ``train``; withheld films have none."""
        _check_alignment(self.item_ids, train)
        self.liked = train.scale.liked
        known = item_counts(train.user_item) > 0
        x = self.genres - self.genres[known].mean(axis=0)
        self.known_features = np.where(known[:, None], x, 0.0)
        gram = self.known_features.T @ self.known_features + self.reg * np.eye(x.shape[1])
        self.to_scores = np.linalg.solve(gram, x.T)
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        """(B, I) ratings -> (B, I) float32; a row of zeros where no known film is liked."""
        likes = csr_matrix((profiles.data >= self.liked, profiles.indices, profiles.indptr), shape=profiles.shape)
        scores: Scores = ((likes @ self.known_features) @ self.to_scores).astype(np.float32)
        return scores


def _check_alignment(item_ids: NDArray[np.str_], train: Interactions) -> None:
    if not np.array_equal(item_ids, train.items.astype(np.str_)):
        raise ValueError("items and train.items must list the same films in the same order")


def _heaviest_first(keys: NDArray[Any], weights: NDArray[np.float32]) -> list[tuple[Any, float]]:
    pairs = [(key.item(), float(weight)) for key, weight in zip(keys, weights, strict=True) if weight > 0]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
