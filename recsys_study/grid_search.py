"""Grid search of SVD and KNN: the nested estimate of the rating error, whose winners Surprise itself refits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray

from recsys_utils.base import MOST_RATED, Floats, child_seed
from recsys_utils.data.interactions import Interactions
from recsys_utils.models import grid_kernels
from recsys_utils.models.rankers import Model
from recsys_utils.models.surprise_models import SurpriseModel, fits_surprise, predict_by_surprise

M = TypeVar("M", bound=Model)


def settings(model: type[M], grid: Mapping[str, Sequence[Any]]) -> list[M]:
    """Unfitted models for all combinations of a grid, the last parameter changing fastest.

    >>> from recsys_utils.models.rankers import EASE
    >>> [(s.reg, s.binarise) for s in settings(EASE, {"reg": [100, 500], "binarise": ["any"]})]
    [(100, 'any'), (500, 'any')]
    """
    return [model(**dict(zip(grid, values, strict=True))) for values in product(*grid.values())]


def parameters(model: Model) -> dict[str, Any]:
    """The settings of a model as plain values, ready for JSON and for its constructor; a usual cap is left out."""
    found = {f.name: getattr(model, f.name) for f in fields(model) if f.init}  # type: ignore[arg-type]
    return {name: value for name, value in found.items() if (name, value) != ("most_rated", MOST_RATED)}


def setting_text(model: Model) -> str:
    """The settings of a model on one line, without the seed.

    >>> from recsys_utils.models.rankers import EASE
    >>> setting_text(EASE(reg=100))
    'reg=100, binarise=any'
    """
    return ", ".join(f"{name}={value}" for name, value in parameters(model).items() if name != "seed")


@dataclass(frozen=True)
class Nested:
    """What :func:`nested_rating_error` found.

    predictions : (N, names) float64, aligned with the ratings
    searched : a row per outer fold, name and option: fold, name, place (in the list), setting (text), inner rmse and
        mae (NaN if there was no choice), chosen
    agreement : a row per outer fold and name predicted by Surprise: fold, name, largest (difference from
        :mod:`grid_kernels`, rating points)
    chosen : (fold, name) -> the option that predicted the fold
    overall : name -> the option with the least inner RMSE, averaged over the outer folds: the choice on all data
    """

    predictions: pd.DataFrame
    searched: pd.DataFrame
    agreement: pd.DataFrame
    chosen: dict[tuple[int, str], SurpriseModel]
    overall: dict[str, SurpriseModel]


def nested_rating_error(
    data: Interactions, fold: NDArray[np.int8], options: Mapping[str, Sequence[SurpriseModel]], *, folds: int,
    seed: int, tried: int | None = None, by_surprise: Collection[str] = (), jobs: int = 1,
) -> Nested:  # fmt: skip
    """Out-of-fold rating predictions whose settings were chosen without the fold they predict.

    Every outer fold picks, per name, the option with the least inner RMSE within its own training part (mean over
    shuffled inner folds, by :mod:`grid_kernels`), refits it there and predicts the held-out ratings, clipped to
    the scale. A single option needs no choice. Ties go to the option listed first.

    Parameters
    ----------
    fold : (N,) outer fold of each rating
    options : name -> candidate settings
    folds : inner folds a training part is cut into
    tried : how many of them are held out in turn, default all; many folds of which few are tried train on nearly as
        much as the refit does, which matters, since the best setting changes with the number of ratings
    seed : of the inner folds, one child per outer fold
    by_surprise : names whose winners Surprise itself refits and predicts (where its matrices fit into memory), the
        others are predicted by :mod:`grid_kernels`
    jobs : processes; results don't depend on it
    """
    outer = np.unique(fold).tolist()
    pairs = (
        pair
        for f in outer
        for pair in grid_kernels.shuffled_folds(data.where(fold != f), folds, child_seed(seed, "inner", f))[:tried]
    )
    listed = [option for name in options if len(options[name]) > 1 for option in options[name]]
    inner = (
        grid_kernels.errors(pairs, listed, jobs=jobs).reshape(len(outer), tried or folds, len(listed), 2).mean(axis=1)
    )
    places = [(f, name, place) for f in outer for name in options for place in range(len(options[name]))]
    searched = pd.DataFrame(places, columns=["fold", "name", "place"])
    searched["setting"] = [setting_text(options[name][place]) for _, name, place in places]
    choice = np.array([len(options[name]) > 1 for _, name, _ in places])
    searched.loc[choice, ["rmse", "mae"]] = inner.reshape(-1, 2)
    loss = searched["rmse"].fillna(0)
    searched["chosen"] = searched.index.isin(loss.groupby([searched["fold"], searched["name"]]).idxmin())
    chosen = {(f, n): options[n][p] for (f, n, p), won in zip(places, searched["chosen"], strict=True) if won}
    mean = loss.groupby([searched["name"], searched["place"]]).mean()
    held_out = Parallel(n_jobs=jobs)(
        delayed(_held_out)(data.where(fold != f), data.where(fold == f), option, name in by_surprise)
        for (f, name), option in chosen.items()
    )
    predictions = pd.DataFrame(np.nan, index=range(len(data)), columns=list(options))
    agreement = []
    for (f, name), (values, largest) in zip(chosen, held_out, strict=True):
        predictions.loc[fold == f, name] = values
        agreement += [(f, name, largest)] if largest is not None else []
    return Nested(
        predictions, searched, pd.DataFrame(agreement, columns=["fold", "name", "largest"]), chosen,
        {name: options[name][int(mean[name].argmin())] for name in options},
    )  # fmt: skip


def _held_out(
    train: Interactions, test: Interactions, option: SurpriseModel, by_surprise: bool
) -> tuple[Floats, float | None]:
    """Predictions, and their largest difference from grid_kernels's if they are Surprise's own."""
    fast = grid_kernels.predictions(train, test, [option])[0]
    if not by_surprise or not fits_surprise(option, train.shape):
        return fast, None
    own = predict_by_surprise(train, test, option)
    return own, float(np.abs(own - fast).max())
