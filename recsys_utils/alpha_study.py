"""How much to trust collaborative scores at each profile size: weight curves tuned and tested on different users.

A *signal* is what gets the weight alpha: a collaborative model mixed with content, or, as a control, the same model
mixed with popularity (``popularity+<cf>``). Curves, settings and choices come from validation users; test users only
judge. The models are fitted on neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_utils.blend import (
    CURVES,
    AlphaCurve,
    Blend,
    alpha_surface,
    candidates,
    liked_counts,
    normalise,
    tunable_curves,
)
from recsys_utils.content import ContentModel
from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import USER, Recommender
from recsys_utils.protocols import (
    Mask,
    check_tuning,
    fold_users,
    profile_size_cases,
    rank_and_measure,
    validation_mask,
    warm_split,
)
from recsys_utils.significance import Bootstrap, metric_rows

Floats = NDArray[np.float64]
Positions = NDArray[np.int_]
Settings = Mapping[str, Sequence[Recommender]]  # collaborative model -> unfitted candidates
Measured = dict[int, tuple[Positions, dict[str, Floats]]]  # size -> its users, and per signal (B, A) ndcg
Weights = Mapping[str, Floats]  # signal -> alphas
Curves = Mapping[str, AlphaCurve]
Part = Literal["validation", "test"]
Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]

NDCG = "ndcg@10"
FROM_SIZE, TO_SIZE = 1, 30  # contrasts average over these sizes; choices over all from 1 on, for they serve everyone
WITH_POPULARITY = "popularity+"
CLASSIC = ("svd", "knn")  # the collaborative models of the classic hybrid
SERIES = ["order", "model", "cf", "curve"]
CURVE_NAMES = (*CURVES, "learned")
BLOCK_SCORES = 20_000_000  # scores of one model held at a time, 80 MB


@dataclass(frozen=True)
class Parts:
    """The recommenders a blend is made of, fitted on the same ratings."""

    content: ContentModel
    popularity: Recommender
    cf: Mapping[str, Recommender]

    def surfaces(self, profiles: csr_matrix, relevant: csr_matrix, weights: Weights) -> dict[str, Floats]:
        """(B, A) ndcg@10 of each signal at its weights, and (B, 1) of ``popularity``; NaN where nothing is relevant.

        A profile with no liked film has popularity's value everywhere: every curve falls back to it.
        """
        step = max(1, BLOCK_SCORES // profiles.shape[1])
        blocks = [
            self._block(profiles[start : start + step], relevant[start : start + step], weights)
            for start in range(0, profiles.shape[0], step)
        ]
        return {signal: np.concatenate([block[signal] for block in blocks]) for signal in blocks[0]}

    def _block(self, profiles: csr_matrix, relevant: csr_matrix, weights: Weights) -> dict[str, Floats]:
        content = self.content.scores(profiles)
        popular = normalise(self.popularity.scores(profiles), candidates(profiles))
        cf = {name: model.scores(profiles) for name, model in self.cf.items()}
        fallback = liked_counts(profiles, self.content.liked) == 0
        found = {"popularity": alpha_surface(content, popular, profiles, relevant, [1.0])}
        for signal, alphas in weights.items():
            name = signal.removeprefix(WITH_POPULARITY)
            values = alpha_surface(content if name == signal else popular, cf[name], profiles, relevant, alphas)
            found[signal] = np.where(fallback[:, None], found["popularity"], values)
        return found


# ---- tuning on validation users


def _grid(step: float) -> Floats:
    """Weights from 0 to 1, rounded so that .95 is written as such."""
    return np.round(np.linspace(0.0, 1.0, round(1 / step) + 1), 6)


def tune_curves(surface: Floats, sizes: Positions, alphas: Floats) -> dict[str, AlphaCurve]:
    """The fixed curves as they are, linear and sigmoid at their best declared parameters, and ``learned``.

    ``learned`` takes the best alpha at every size (ties: the lower); the others are judged by :func:`curve_value`.

    Parameters
    ----------
    surface : (S, A) mean ndcg of validation users
    sizes : (S,) increasing profile sizes
    alphas : (A,) increasing
    """
    tuned = dict(CURVES)
    for name, declared in tunable_curves().items():
        tuned[name] = max(declared, key=lambda curve: curve_value(curve, surface, sizes, alphas))
    best = alphas[np.argmax(surface, axis=1)]
    return tuned | {"learned": AlphaCurve("learned", tuple(sizes.tolist()), tuple(best.tolist()))}


def curve_value(curve: AlphaCurve, surface: Floats, sizes: Positions, alphas: Floats) -> float:
    """Mean over all sizes from 1 on, equal weights, of the surface at the grid's alpha nearest to the curve's."""
    counted = sizes >= FROM_SIZE
    nearest = np.abs(curve(sizes[counted])[:, None] - alphas).argmin(axis=1)
    return float(surface[counted, nearest].mean())


def surface_of(sums: pd.DataFrame, order: str, signal: str) -> tuple[Floats, Positions, Floats]:
    """Mean ndcg (S, A) of one signal over the sizes >= 1, its sizes and alphas; ``sums`` as in :class:`AlphaStudy`."""
    rows = sums[(sums["order"] == order) & (sums["signal"] == signal) & (sums["n"] >= 1)]
    pooled = rows.groupby(["n", "alpha"])[["sum", "users"]].sum()
    means = (pooled["sum"] / pooled["users"]).reset_index(name=NDCG)
    grid = means.pivot_table(index="n", columns="alpha", values=NDCG)
    return grid.to_numpy(), grid.index.to_numpy(), grid.columns.to_numpy(dtype=float)


# ---- users whose profiles are cut (profile-size)


@dataclass(frozen=True)
class AlphaStudy:
    """What :func:`study_alpha` measured.

    users : user_id, order, n, model, cf, curve, ndcg@10 of the test users. model = popularity, content, blend or a
        collaborative model by itself; curve = that of content + cf, or ``with-popularity``: popularity + cf, weights
        learned
    test, validation : fold, order, signal, n, alpha, sum, users; ndcg@10 summed over the fold's users
    settings : fold, cf, candidate (position), ndcg@10 on validation users, chosen
    """

    users: pd.DataFrame
    test: pd.DataFrame
    validation: pd.DataFrame
    settings: pd.DataFrame

    @cached_property
    def _series(self) -> dict[Any, pd.DataFrame]:
        """Per (order, model, cf, curve) a table of users x sizes."""
        wide = self.users.pivot_table(index=[*SERIES, USER], columns="n", values=NDCG)
        return {key: part.reset_index(level=list(range(len(SERIES))), drop=True) for key, part in wide.groupby(SERIES)}

    def matrix(
        self, ids: NDArray[np.object_], model: str, cf: str = "", curve: str = "", *, order: str = "random",
        sizes: tuple[int, int] = (FROM_SIZE, TO_SIZE),
    ) -> Floats:  # fmt: skip
        """(U, S) test ndcg@10 of one series for the users ``ids``, NaN where a user lacks the size.

        ``sizes`` are the first and last wanted; what all users lack is left out.
        """
        table = self._series[order, model, cf, curve]
        n = table.columns.to_numpy(dtype=int)
        wanted = n[(n >= sizes[0]) & (n <= sizes[1])]
        return table.reindex(index=ids, columns=wanted).to_numpy(dtype=float)

    def metric_rows(self, ids: NDArray[np.object_], bootstrap: Bootstrap) -> pd.DataFrame:
        """Rows of metrics.csv: every series at every n, and averaged over n = 1..30 with equal weights."""
        parts = []
        for order, model, cf, curve in self._series:
            table = self._series[order, model, cf, curve]
            values = table.reindex(index=ids).to_numpy(dtype=float)
            has_size = np.isfinite(values).any(axis=0)
            found = dict(zip(table.columns[has_size], bootstrap.means(values[:, has_size]), strict=True))
            segments = {f"n={n}": estimate for n, estimate in found.items()}
            segments[f"n={FROM_SIZE}-{TO_SIZE}"] = bootstrap.average(self.matrix(ids, model, cf, curve, order=order))
            weight = "learned;with=popularity" if curve == "with-popularity" else curve
            variant = f"order={order}" + (f";alpha={weight};cf={cf}" if cf else "")
            for segment, estimate in segments.items():
                names = {"protocol": "profile-size", "model": model, "variant": variant, "segment": segment}
                parts.append(metric_rows({NDCG: estimate}, **names))
        return pd.concat(parts, ignore_index=True)

    def pairs(self, order: str = "random") -> list[tuple[str, AlphaCurve, float]]:
        """Every declared (cf, curve) with its validation ndcg@10, mean over folds and sizes from 1 on; best first."""
        found = []
        for cf in self.settings["cf"].unique():
            grid = surface_of(self.validation, order, cf)
            found += [(cf, curve, curve_value(curve, *grid)) for curve in tune_curves(*grid).values()]
        return sorted(found, key=lambda pair: -pair[2])

    def best_candidate(self, cf: str) -> int:
        """The position of the candidate setting with the highest validation mean over the folds."""
        means = self.settings[self.settings["cf"] == cf].groupby("candidate")[NDCG].mean()
        return int(means.index[int(np.argmax(means))])


def study_alpha(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, *, content: Mapping[int, ContentModel],
    popularity: Recommender, settings: Settings, sizes: Sequence[int], alpha_step: float, jobs: int = 1,
) -> AlphaStudy:  # fmt: skip
    """Run the profile-size protocol for every collaborative model, curve and baseline, one task per user fold.

    Random orders are averaged per user; curves are tuned for each kind of order (random, time) by itself.

    Parameters
    ----------
    splits, users : see ``protocols``
    content : per user fold, so that its fields can be chosen without the fold's users
    settings : unfitted candidates per collaborative model; the fold takes the one best on its validation users (by
        itself, all sizes from 1 on, first random order)
    sizes : profile sizes; at 0 all get popularity
    alpha_step : grid of weights from 0 to 1
    """
    alphas = _grid(alpha_step)
    task = delayed(_study_fold)
    found = Parallel(n_jobs=jobs)(
        task(data, splits, users, fold, content[fold], popularity, settings, sizes, alphas)
        for fold in sorted(users["fold"].unique())
    )
    return AlphaStudy(*(pd.concat(tables, ignore_index=True) for tables in zip(*found, strict=True)))


def _study_fold(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, fold: int, content: ContentModel,
    popularity: Recommender, settings: Settings, sizes: Sequence[int], alphas: Floats,
) -> Tables:  # fmt: skip
    """The four tables of :class:`AlphaStudy` for one fold."""
    train = data.of_users(fold_users(users, fold).fit)
    parts = Parts(deepcopy(content).fit(train), deepcopy(popularity).fit(train), {})

    def measure(
        parts: Parts, part: Part, orders: Sequence[str], grid: Weights, curves: Mapping[str, Curves] | None = None
    ) -> Measured:
        """Surfaces at the grid, then at exactly what the curves ask for; means over the orders, whose users agree."""
        found: Measured = {}
        for order in orders:
            for case in profile_size_cases(data, splits, users, fold, order=order, sizes=sizes, part=part):
                n = case.n or 0
                asked = {s: [curve(n) for curve in curves[s].values()] if curves else [] for s in grid}
                weights = {s: np.append(grid[s], asked[s]) for s in grid}
                sums = found.setdefault(n, (case.users, {}))[1]
                for signal, values in parts.surfaces(case.profiles, case.relevant, weights).items():
                    sums[signal] = sums.get(signal, 0.0) + values / len(orders)
        return found

    randoms = [str(c).removeprefix("position_") for c in splits if str(c).startswith("position_random_")]
    cf, tried = {}, []
    for name, models in settings.items():
        fitted = [deepcopy(model).fit(train) for model in models]
        values = []
        for model in fitted:
            alone = measure(replace(parts, cf={name: model}), "validation", randoms[:1], {name: np.ones(1)})
            values.append(_mean(alone, name))
        best = int(np.argmax(values))
        cf[name] = fitted[best]
        tried += [(fold, name, candidate, value, candidate == best) for candidate, value in enumerate(values)]
    parts = replace(parts, cf=cf)

    grid = {signal: alphas for name in cf for signal in (name, WITH_POPULARITY + name)}
    test, sums, validation = [], [], []
    for order, names in {"random": randoms, "time": ["time"]}.items():
        tuning = _sums(measure(parts, "validation", names, grid), grid).assign(fold=fold, order=order)
        curves = {signal: tune_curves(*surface_of(tuning, order, signal)) for signal in grid}
        measured = measure(parts, "test", names, grid, curves)
        for n, (who, surfaces) in measured.items():
            test.append(_test_rows(data.users[who], surfaces, len(alphas)).assign(order=order, n=n))
        sums.append(_sums(measured, grid).assign(fold=fold, order=order))
        validation.append(tuning)
    return (
        pd.concat(test, ignore_index=True),
        pd.concat(sums, ignore_index=True),
        pd.concat(validation, ignore_index=True),
        pd.DataFrame(tried, columns=["fold", "cf", "candidate", NDCG, "chosen"]),
    )


def _mean(measured: Measured, signal: str) -> float:
    """Mean over all sizes from 1 on of a signal's only column."""
    means = [np.nanmean(surfaces[signal]) for n, (_, surfaces) in measured.items() if n >= FROM_SIZE]
    return float(np.mean(means))


def _sums(measured: Measured, grid: Weights) -> pd.DataFrame:
    """signal, n, alpha, sum, users over the grid's columns."""
    rows = []
    for n, (_, surfaces) in measured.items():
        for signal, alphas in grid.items():
            values = surfaces[signal][:, : len(alphas)]
            known = int(np.isfinite(values[:, 0]).sum())
            rows += [(signal, n, a, total, known) for a, total in zip(alphas, np.nansum(values, axis=0), strict=True)]
    return pd.DataFrame(rows, columns=["signal", "n", "alpha", "sum", "users"])


def _test_rows(ids: NDArray[np.object_], surfaces: Mapping[str, Floats], grid_size: int) -> pd.DataFrame:
    """Rows of one size: each baseline, each model by itself, each curve. Users with nothing relevant are left out.

    Columns of a surface: the grid, whose ends are the other part alone and the model alone, then ``CURVE_NAMES``.
    """
    values = {("popularity", "", ""): surfaces["popularity"][:, 0]}
    for signal, surface in surfaces.items():
        curves = dict(zip(CURVE_NAMES, surface[:, grid_size:].T, strict=False))
        if signal.startswith(WITH_POPULARITY):
            values["blend", signal.removeprefix(WITH_POPULARITY), "with-popularity"] = curves["learned"]
        elif signal != "popularity":
            values["content", "", ""] = surface[:, 0]
            values[signal, "", ""] = surface[:, grid_size - 1]
            values |= {("blend", signal, curve): value for curve, value in curves.items()}
    labels = np.repeat(np.array(list(values), dtype=object), len(ids), axis=0)
    rows = pd.DataFrame(labels, columns=SERIES[1:]).assign(
        **{USER: np.tile(ids, len(values)), NDCG: np.concatenate(list(values.values()))}
    )
    return rows.dropna()


# ---- users with their whole history (warm)

WARM_EDGES = (20, 50, 100, 200)  # ratings in the profile at which the learned weight may change


def rank_warm(
    data: Interactions, test: Mask, position: Positions, *, content: ContentModel, popularity: Recommender,
    settings: Settings, alpha_step: float, relevance: Literal["liked", "any"] = "liked",
) -> pd.DataFrame:  # fmt: skip
    """Per-user ranking metrics of the classic blends and of the one tuned on an inner split of the training part.

    Settings, the collaborative model and its weights are chosen on each user's last fifth of the training ratings;
    then all is fitted again on the whole training part.

    Parameters
    ----------
    test, position : (N,) the test ratings, and the order whose last fifth tunes
    relevance : which test ratings count

    Returns
    -------
    user_id, cf, curve, then a column per metric
    """
    alphas = _grid(alpha_step)
    inner = warm_split(data, validation_mask(data, test, position), hidden=test)
    outer = warm_split(data, test)
    check_tuning(inner, outer)
    wanted = inner.relevant if relevance == "liked" else inner.relevant_any

    tuning = Parts(deepcopy(content).fit(inner.train), deepcopy(popularity).fit(inner.train), {})
    fitted = {name: [deepcopy(model).fit(inner.train) for model in models] for name, models in settings.items()}
    best = {}
    for name, models in fitted.items():
        alone = [rank_and_measure(model, inner, relevance=relevance)[NDCG].mean() for model in models]
        best[name] = int(np.argmax(alone))
    tuning = replace(tuning, cf={name: models[best[name]] for name, models in fitted.items()})
    cf, learned = tune_warm(
        tuning.surfaces(inner.profiles, wanted, dict.fromkeys(fitted, alphas)), inner.profiles, alphas
    )

    metadata, popular = deepcopy(content).fit(outer.train), deepcopy(popularity).fit(outer.train)
    final = {name: deepcopy(settings[name][best[name]]).fit(outer.train) for name in (*CLASSIC, cf)}
    tables = []
    for name, curve in [*((name, CURVES["classic"]) for name in CLASSIC), (cf, learned)]:
        table = rank_and_measure(Blend(metadata, final[name], curve, popular), outer, relevance=relevance)
        tables.append(table.assign(cf=name, curve=curve.name))
    return pd.concat(tables, ignore_index=True)


def tune_warm(surfaces: Mapping[str, Floats], profiles: csr_matrix, alphas: Floats) -> tuple[str, AlphaCurve]:
    """The collaborative model and the weights by profile size that rank best.

    The weight is free in each of the five ranges of sizes that ``WARM_EDGES`` bound; a range without users takes the
    weight best overall.

    Parameters
    ----------
    surfaces : (U, A) ndcg per model
    profiles : (U, I)
    alphas : (A,)
    """
    bins = np.searchsorted(WARM_EDGES, np.diff(profiles.indptr), side="right")
    found: dict[str, tuple[float, AlphaCurve]] = {}
    for name in sorted(set(surfaces) - {"popularity"}):
        surface = surfaces[name]
        best = np.full(len(WARM_EDGES) + 1, np.nanmean(surface, axis=0).argmax())
        for b in np.unique(bins[np.isfinite(surface[:, 0])]):
            best[b] = np.nanmean(surface[bins == b], axis=0).argmax()
        value = float(np.nanmean(np.take_along_axis(surface, best[bins][:, None], axis=1)))
        sizes = tuple(n for edge in WARM_EDGES for n in (edge - 1, edge))
        weights = tuple(float(alphas[b]) for pair in pairwise(best) for b in pair)
        found[name] = value, AlphaCurve("learned", sizes, weights)
    cf = max(found, key=lambda name: found[name][0])
    return cf, found[cf][1]
