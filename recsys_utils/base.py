"""Names, contracts and seeds that every other module shares."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import numpy as np
import psutil
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from recsys_utils.data.interactions import Interactions

USER = "user_id"
ITEM = "item_id"
RATING = "rating"
TIMESTAMP = "timestamp"
RANK = "rank"
SCORE = "score"
SCOPE = "scope.json"  # of a stage: ratings fitted and users evaluated
MOST_RATED = 15_000  # items that models of all pairs of items compare unless told otherwise

Scores = NDArray[np.float32]
Floats = NDArray[np.float64]


class InputError(Exception):
    """What a person gave can't be used; the message says what, where, the value seen and the remedy.

    The command line prints the message as one paragraph and exits with status 2.
    """


def project_root(start: Path | None = None) -> Path:
    """The folder that holds params/ and recsys_utils/: $RECSYS_ROOT, or the first such parent of ``start``."""
    if "RECSYS_ROOT" in os.environ:
        return Path(os.environ["RECSYS_ROOT"]).resolve()
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "params").is_dir() and (folder / "recsys_utils").is_dir():
            return folder
    raise InputError(
        f"{here} is not inside the project (no parent has params/ and recsys_utils/); set RECSYS_ROOT to it."
    )


@dataclass(frozen=True)
class Scale:
    """The rating scale of a data set.

    ``liked`` is the lowest rating that counts as a like: ``lo + 0.75 (hi - lo)`` unless overridden.

    >>> Scale(1, 5).liked, Scale(0.5, 5).liked
    (4.0, 3.875)
    """

    lo: float
    hi: float
    liked_override: float | None = None

    def __post_init__(self) -> None:
        if not self.lo < self.hi:
            raise InputError(f"A rating scale needs lo < hi; got lo={self.lo}, hi={self.hi}.")

    @property
    def liked(self) -> float:
        if self.liked_override is not None:
            return float(self.liked_override)
        return self.lo + 0.75 * (self.hi - self.lo)

    @property
    def svd_unit(self) -> float:
        """Rating points that SVD counts as one: a quarter of a scale more than 20 points wide, else 1.

        On wide scales gradient descent with a step laid out for stars would overflow.

        >>> Scale(1, 5).svd_unit, Scale(1, 100).svd_unit
        (1.0, 24.75)
        """
        width = self.hi - self.lo
        return width / 4 if width > 20 else 1.0


@runtime_checkable
class Recommender(Protocol):
    """Anything that scores the catalogue for rows of ratings.

    Nothing is looked up by user name: the profile passed in is all the model may know about its user.
    """

    @property
    def name(self) -> str: ...

    def fit(self, train: Interactions) -> Self: ...

    def scores(self, profiles: csr_matrix) -> Scores:
        """(users, items) ratings, 0 stored = unrated absent -> (users, items) float32, higher is better."""
        ...


@runtime_checkable
class RatingPredictor(Recommender, Protocol):
    """A recommender whose output is also meaningful on the rating scale."""

    def ratings(self, profiles: csr_matrix) -> Scores:
        """(users, items) predicted ratings, clipped to the scale of the training data."""
        ...


def counted(n: int, noun: str) -> str:
    """
    >>> counted(1, "rating"), counted(1200, "rating")
    ('1 rating', '1,200 ratings')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def check_memory(needed: float, what: str, remedy: str) -> None:
    """Refuse what does not fit (bytes) instead of being killed.

    Raises
    ------
    InputError : says what needs how much, how much is free, and the remedy.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(f"{what} need {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. {remedy}")


def child_seed(root: int, *names: str | int) -> int:
    """Derive an independent 32-bit seed from a root seed and a path of names.

    The result depends on nothing but its arguments, so adding a consumer of randomness never shifts another one.

    >>> child_seed(7, "splits") == child_seed(7, "splits"), child_seed(7, "splits") == child_seed(8, "splits")
    (True, False)
    """
    text = "/".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def child_rng(root: int, *names: str | int) -> np.random.Generator:
    """A numpy generator seeded by :func:`child_seed`."""
    return np.random.default_rng(child_seed(root, *names))
