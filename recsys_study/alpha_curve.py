"""How much to trust collaborative scores at each profile size: weight curves tuned and tested on different users.

A *signal* is what gets the weight alpha: a collaborative model mixed with content, or, as a control, the same model
mixed with popularity (``popularity+<cf>``). ``mixture`` is one more collaborative model: popularity, item KNN and EASE
with weights by profile size. Settings, curves, weights and choices come from validation users; test users only judge.
The models are fitted on neither.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.ensemble import HistGradientBoostingRegressor

from recsys_study.grid_search import parameters
from recsys_utils.base import USER, Recommender, Scores, child_seed
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import metrics, protocols
from recsys_utils.evaluation.protocols import VALIDATION_PARTS, Case, Mask, rank_and_measure
from recsys_utils.evaluation.significance import Bootstrap, Estimate, metric_rows
from recsys_utils.models.content import ContentModel
from recsys_utils.ranking import blend
from recsys_utils.ranking.blend import CURVES, NORMALISATIONS, AlphaCurve, Blend, Mixture

Floats = NDArray[np.float64]
Positions = NDArray[np.int_]
Settings = Mapping[str, Sequence[Recommender]]  # collaborative model -> unfitted candidates
Models = Mapping[str, Recommender]
Part = Literal["validation", "test"]
Key = tuple[str, str, str, str]  # order, model, cf, curve
Name = TypeVar("Name", bound=Hashable)

NDCG = "ndcg@10"
FROM_SIZE, TO_SIZE = 1, 30  # contrasts average over these sizes; choices over all from 1 on, for they serve everyone
WITH_POPULARITY = "popularity+"
CLASSIC = ("svd", "knn")  # the collaborative models of the classic hybrid; their first setting is the classic one
MIXED = ("popularity", "item_knn", "ease")
MIXTURE, LONG = "mixture", 20  # short profiles have popularity and item KNN, so EASE's setting is the best from 20 on
WEIGHTS = blend.simplex(len(MIXED), 0.1)
SMOOTH = 0.01 * np.abs(WEIGHTS[:, None] - WEIGHTS).sum(axis=2)  # ndcg that a change of all the weight must gain
SIMPLER = 0.003  # ndcg by which a mixture must beat a single model to be worth its weights
CLOSE, CLOSE_SIZES = "random_0", (3, 10, 30)  # order and sizes of the comparisons that need ranks or boosting
SHORTLIST = 100  # films that boosting orders
BY_PLACE = ("rank", "reciprocal rank")  # normalisations that sort, once for both
BLOCK_SCORES = 8_000_000  # scores of one model held at a time, 32 MB: there are two dozen of them


class Signal(NamedTuple):
    """Which scores are weighted, and how at each size."""

    parts: tuple[str, ...]
    weights: Callable[[int], Floats]  # n -> (W, P), W the same at every n


def pair(left: str, right: str, alphas: Floats, curves: Iterable[AlphaCurve] = ()) -> Signal:
    """(1 - alpha) left + alpha right at each of ``alphas``, then at exactly what each curve asks for."""

    def weights(n: int) -> Floats:
        asked = np.append(alphas, [curve(n) for curve in curves])
        return np.column_stack([1 - asked, asked])

    return Signal((left, right), weights)


def alone(model: str) -> Signal:
    return Signal((model,), lambda n: np.ones((1, 1)))


class Arrays(dict[str, Scores]):
    """The scores of each model for a block of profiles, computed when first asked for.

    Content stays as it is, a mixture weighs what its parts have here, all others are min-max normalised;
    ``<model>|<rule>`` is what :func:`blend.normalise_by` makes of that, ``<model>|place`` its :func:`blend.places`.
    """

    def __init__(self, models: Models, profiles: csr_matrix) -> None:
        self.models, self.profiles, self.mask = models, profiles, blend.candidates(profiles)

    def __missing__(self, name: str) -> Scores:
        name_of, _, rule = name.partition("|")
        if rule == "place":
            self[name] = blend.places(self[name_of], self.mask)
        elif rule in BY_PLACE:
            self[name] = blend.from_places(rule, self[f"{name_of}|place"], self.mask)
        elif rule:
            self[name] = blend.normalise_by(rule, self[name_of], self.mask)
        if rule:
            return self[name]
        model = self.models[name]
        first = self._name(model)
        if first != name:
            self[name] = self[first]
        elif isinstance(model, Mixture):
            parts = [self[self._name(part)] for part in model.parts.values()]
            self[name] = blend.weighted(parts, model.weights_at(np.diff(self.profiles.indptr)))
        elif name == "content":
            self[name] = model.scores(self.profiles)
        else:
            self[name] = blend.normalise(model.scores(self.profiles), self.mask)
        return self[name]

    def _name(self, model: Recommender) -> str:
        """The first name of a model, so that what goes by several names is scored once."""
        return next(name for name, other in self.models.items() if other is model)


def surfaces(
    models: Models, signals: Mapping[Name, Signal], profiles: csr_matrix, relevant: csr_matrix, liked: float,
    n: int = 0, order: Positions | None = None,
) -> dict[Name, Floats]:  # fmt: skip
    """(B, W) ndcg@10 of each signal under its weights at n; NaN where nothing is relevant.

    A profile with no liked film has popularity's value everywhere: every curve falls back to it.
    """
    blocks = []
    for block in protocols.user_blocks(profiles.shape, cells=BLOCK_SCORES):
        rows, wanted = profiles[block], relevant[block]
        arrays = Arrays(models, rows)
        popular = blend.ndcg_surface([arrays["popularity"]], rows, wanted, np.ones((1, 1)), order=order)
        fallback = blend.liked_counts(rows, liked)[:, None] == 0
        blocks.append(
            {
                name: np.where(
                    fallback,
                    popular,
                    blend.ndcg_surface([arrays[p] for p in parts], rows, wanted, weights(n), order=order),
                )
                for name, (parts, weights) in signals.items()
            }
        )
    return {name: np.concatenate([block[name] for block in blocks]) for name in signals}


# ---- tuning on validation users


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
    for name, declared in blend.tunable_curves().items():
        tuned[name] = max(declared, key=lambda curve: curve_value(curve, surface, sizes, alphas))
    rising = alphas[blend.best_path(surface, blend.never_down(len(alphas)))]
    tuned["isotonic"] = AlphaCurve("isotonic", tuple(sizes.tolist()), tuple(rising.tolist()))
    return tuned | {"learned": learned}


def _at(curve: AlphaCurve, sizes: Positions, alphas: Floats) -> Positions:
    """(S,) the grid's place nearest to the curve at each size."""
    nearest: Positions = np.abs(curve(sizes)[:, None] - alphas).argmin(axis=1)
    return nearest


def curve_value(curve: AlphaCurve, surface: Floats, sizes: Positions, alphas: Floats) -> float:
    """Mean over the sizes, equal weights, of the surface at the grid's alpha nearest to the curve's."""
    return float(surface[np.arange(len(sizes)), _at(curve, sizes, alphas)].mean())


def tune_mixture(values: Floats, sizes: Sequence[int]) -> dict[str, Any]:
    """``sizes`` and ``weights`` of a :class:`Mixture`: the smooth path of best weights through the sizes.

    Parameters
    ----------
    values : (U, S, W) ndcg of validation users under each of ``WEIGHTS``
    """
    surface, known = surface_of(values, sizes)
    path = WEIGHTS[blend.best_path(surface, SMOOTH)]
    return {"sizes": known.tolist(), "weights": {part: path[:, p].tolist() for p, part in enumerate(MIXED)}}


def crossfit_mixture(values: Floats, sizes: Sequence[int]) -> Floats:
    """(U, S) ndcg of the mixture for each fifth of the validation users, its weights tuned on the other four."""
    fitted = np.full(values.shape[:2], np.nan)
    part = np.arange(len(values)) % VALIDATION_PARTS
    for p in range(VALIDATION_PARTS):
        surface, known = surface_of(values[part != p], sizes)
        at = np.isin(sizes, known)
        fitted[np.ix_(part == p, at)] = values[part == p][:, at][
            :, np.arange(len(known)), blend.best_path(surface, SMOOTH)
        ]
    return fitted


def best_setting(tried: pd.DataFrame, cf: str, since: int = FROM_SIZE) -> int:
    """The candidate of a model with the highest validation mean, equal weights, over sizes (and folds) from ``since``.

    Where no profile is that long, the longest there are decide. ``tried`` as ``AlphaStudy.settings``.
    """
    own = tried[tried["cf"] == cf]
    means = own[own["n"] >= min(since, own["n"].max())].groupby("candidate")[NDCG].mean()
    return int(means.index[int(np.argmax(means))])


class Choice(NamedTuple):
    """What the rule picks, and the validation gain of the mixture that it judged."""

    cf: str
    curve: AlphaCurve
    gain: Estimate


def ranked_pairs(
    validation: Mapping[str, Floats], sizes: Sequence[int], alphas: Floats
) -> list[tuple[str, AlphaCurve, float]]:
    """Every declared (cf, curve) with its validation ndcg@10, mean over sizes from 1 on; best first."""
    found = []
    for cf in validation:
        if not cf.startswith(WITH_POPULARITY):
            surface, known = surface_of(validation[cf], sizes)
            curves = tune_curves(surface, known, alphas).values()
            found += [(cf, curve, curve_value(curve, surface, known, alphas)) for curve in curves]
    return sorted(found, key=lambda pair: -pair[2])


def choose(
    validation: Mapping[str, Floats], mixed: Floats, sizes: Sequence[int], alphas: Floats, boot: Bootstrap
) -> Choice:
    """The rule for the default, on validation users alone.

    The (model, curve) with the highest mean over sizes from 1 on; the mixture, which has more weights to fit, takes
    part only if, cross-fitted, it gains more than ``SIMPLER`` on the best single model and the interval excludes 0.

    Parameters
    ----------
    validation : signal -> (U, S, A) ndcg, NaN where a user lacks the size or is no validation user
    mixed : (U, S, W) ndcg under each of ``WEIGHTS``
    """
    pairs = ranked_pairs(validation, sizes, alphas)
    cf, curve, _ = next(found for found in pairs if found[0] != MIXTURE)
    known = surface_of(validation[cf], sizes)[1]
    at = np.isin(sizes, known)
    single = validation[cf][:, at][:, np.arange(len(known)), _at(curve, known, alphas)]
    gains = crossfit_mixture(mixed, sizes)[:, at] - single
    gain = boot.average(gains[:, np.isfinite(gains).any(axis=0)])
    if gain.value > SIMPLER and gain.ci_low > 0:
        cf, curve, _ = next(found for found in pairs if found[0] == MIXTURE)
    return Choice(cf, curve, gain)


# ---- users whose profiles are cut (profile-size)


@dataclass(frozen=True)
class AlphaStudy:
    """What :func:`study_alpha` measured; U users in the order of the data, S sizes, A alphas, NaN where one lacks it.

    series : (order, model, cf, curve) -> (U, S) ndcg@10 of test users. model = popularity, content, blend or a
        collaborative model by itself; curve = that of content + cf, ``with-popularity`` (popularity + cf, learned
        weights), ``norm=<rule>`` (learned weights); cf = ``chosen``: what the rule picked on the validation users of
        the fold
    test, validation : (order, signal) -> (U, S, A)
    mixed : order -> (U, S, W) validation ndcg@10 under each of ``WEIGHTS``
    settings : fold, cf, candidate (position), n, ndcg@10 on validation users, chosen
    picks : fold, cf, curve: what the rule picked in each fold
    """

    sizes: Sequence[int]
    alphas: Floats
    series: dict[Key, Floats]
    test: dict[tuple[str, str], Floats]
    validation: dict[tuple[str, str], Floats]
    mixed: dict[str, Floats]
    settings: pd.DataFrame
    picks: pd.DataFrame

    def matrix(
        self, model: str, cf: str = "", curve: str = "", *, order: str = "random",
        sizes: tuple[int, int] = (FROM_SIZE, TO_SIZE),
    ) -> Floats:  # fmt: skip
        """(U, S) test ndcg@10 of one series from the first to the last of ``sizes``, without sizes that nobody has."""
        values = self.series[order, model, cf, curve]
        n = np.asarray(self.sizes)
        kept: Floats = values[:, (n >= sizes[0]) & (n <= sizes[1]) & np.isfinite(values).any(axis=0)]
        return kept

    def sizes_of(self, order: str = "random", sizes: tuple[int, int] = (FROM_SIZE, TO_SIZE)) -> list[int]:
        """The sizes that the columns of :meth:`matrix` stand for."""
        known = np.isfinite(self.series[order, "popularity", "", ""])
        return [n for n, column in zip(self.sizes, known.T, strict=True) if column.any() and sizes[0] <= n <= sizes[1]]

    def validated(self, order: str = "random") -> dict[str, Floats]:
        """The validation surfaces of one order, by signal."""
        return {signal: values for (o, signal), values in self.validation.items() if o == order}

    def choose(self, boot: Bootstrap) -> Choice:
        """The rule on the validation users of all folds: what later stages serve."""
        return choose(self.validated(), self.mixed["random"], self.sizes, self.alphas, boot)

    def settings_of(self, cf: str, settings: Settings, since: int = FROM_SIZE) -> dict[str, Any]:
        """What default.json says of a model: its setting best over the folds from size ``since`` on.

        Of a mixture, its parts' settings and the weights tuned on the validation users of all folds.
        """
        if cf == MIXTURE:
            parts = {part: self.settings_of(part, settings) for part in MIXED[1:-1]}
            parts = {"popularity": {}} | parts | {"ease": self.settings_of("ease", settings, LONG)}
            return {"parts": parts} | tune_mixture(self.mixed["random"], self.sizes)
        return parameters(settings[cf][best_setting(self.settings, cf, since)])  # type: ignore[arg-type]

    def per_user(self, ids: NDArray[np.object_]) -> pd.DataFrame:
        """Long table user_id, order, model, cf, curve, n, ndcg@10 for later cuts."""
        tables = []
        for key, values in self.series.items():
            row, at = np.nonzero(np.isfinite(values))
            names = dict(zip(("order", "model", "cf", "curve"), key, strict=True))
            columns = {USER: ids[row], "n": np.asarray(self.sizes)[at], NDCG: values[row, at]}
            tables.append(pd.DataFrame(columns).assign(**names))
        return pd.concat(tables, ignore_index=True)

    def metric_rows(self, boot: Bootstrap) -> pd.DataFrame:
        """Rows of metrics.csv: every series at every n, and averaged over n = 1..30 with equal weights."""
        parts = []
        for order, model, cf, curve in self.series:
            values = self.matrix(model, cf, curve, order=order, sizes=(0, max(self.sizes)))
            n = np.asarray(self.sizes)[np.isfinite(self.series[order, model, cf, curve]).any(axis=0)]
            segments = dict(zip([f"n={size}" for size in n], boot.means(values), strict=True))
            if order in ("random", "time"):
                segments[f"n={FROM_SIZE}-{TO_SIZE}"] = boot.average(values[:, (n >= FROM_SIZE) & (n <= TO_SIZE)])
            names = {"protocol": "profile-size", "model": model, "variant": _variant(order, cf, curve)}
            parts += [metric_rows({NDCG: e}, **names, segment=segment) for segment, e in segments.items()]
        return pd.concat(parts, ignore_index=True)


def _variant(order: str, cf: str, curve: str) -> str:
    weight = {"with-popularity": "learned;with=popularity"}.get(curve, curve)
    weight = f"learned;{weight}" if weight.startswith("norm=") else weight
    return f"order={order}" + (f";alpha={weight};cf={cf}" if cf else f";{curve}" if curve else "")


class FoldResult(NamedTuple):
    """The tables of one fold, rows = its validation or test users."""

    members: dict[Part, Positions]
    series: dict[Key, Floats]
    test: dict[tuple[str, str], Floats]
    validation: dict[tuple[str, str], Floats]
    mixed: dict[str, Floats]
    settings: pd.DataFrame
    pick: dict[str, Any]


def study_alpha(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, *, content: Mapping[int, ContentModel],
    popularity: Recommender, settings: Settings, sizes: Sequence[int], alpha_step: float, seed: int,
    has_time: bool = True, has_text: bool = True, jobs: int = 1,
) -> AlphaStudy:  # fmt: skip
    """Run the profile-size protocol for every collaborative model, curve and baseline, one task per user fold.

    Random orders are averaged per user; curves and weights are tuned for each kind of order (random, time) by itself.

    Parameters
    ----------
    splits, users : see ``protocols``
    content : per user fold, so that its fields can be chosen without the fold's users
    settings : unfitted candidates per collaborative model, the classic one first for svd and knn; the fold takes the
        one best on its validation users (by itself, all sizes from 1 on, first random order)
    sizes : profile sizes; at 0 all get popularity
    alpha_step : grid of weights from 0 to 1
    seed : of boosting and of the rule's intervals
    has_time, has_text : False leaves out the time order; content, so that every weight is 1
    """
    alphas = alpha_grid(alpha_step)
    found = Parallel(n_jobs=jobs)(
        delayed(_study_fold)(
            data, splits, users, fold, content[fold], popularity, settings, sizes, alphas, seed, has_time, has_text
        )
        for fold in sorted(users["fold"].unique())
    )

    def gather(name: str, part: Part) -> dict[Any, Floats]:
        whole: dict[Any, Floats] = {}
        for result in found:
            for key, values in getattr(result, name).items():
                full = whole.setdefault(key, np.full((len(data.users), *values.shape[1:]), np.nan))
                full[result.members[part]] = values
        return whole

    return AlphaStudy(
        sizes, alphas if has_text else alphas[-1:], gather("series", "test"), gather("test", "test"),
        gather("validation", "validation"), gather("mixed", "validation"),
        pd.concat([result.settings for result in found], ignore_index=True), pd.DataFrame([r.pick for r in found]),
    )  # fmt: skip


def _study_fold(
    data: Interactions, splits: pd.DataFrame, users: pd.DataFrame, fold: int, content: ContentModel,
    popularity: Recommender, settings: Settings, sizes: Sequence[int], grid: Floats, seed: int, has_time: bool,
    has_text: bool,
) -> FoldResult:  # fmt: skip
    alphas = grid if has_text else grid[-1:]
    users_of = protocols.fold_users(users, fold)
    members: dict[Part, Positions] = {"validation": users_of.validation, "test": users_of.test}
    train, order = data.of_users(users_of.fit), protocols.tie_order(data.items)
    models: dict[str, Recommender] = {"content": deepcopy(content), "popularity": deepcopy(popularity)}
    models |= {f"{cf}:{c}": deepcopy(m) for cf, tried in settings.items() for c, m in enumerate(tried)}
    for model in models.values():
        model.fit(train)

    def measure(
        part: Part, orders: Sequence[str], signals: Mapping[Name, Signal], sizes_tested: Sequence[int] = sizes
    ) -> dict[Name, Floats]:
        """(users of the part, S, W) per signal: means over the orders, whose users agree."""
        shape = len(members[part]), len(sizes)
        found = {name: np.full((*shape, len(weights(0))), np.nan) for name, (_, weights) in signals.items()}
        for profile_order in orders:
            asked: Any = {"order": profile_order, "sizes": sizes_tested, "part": part}
            for case in protocols.profile_size_cases(data, splits, users, fold, **asked):
                at = np.searchsorted(members[part], case.users), list(sizes).index(case.n or 0)
                new = surfaces(models, signals, case.profiles, case.relevant, data.scale.liked, case.n or 0, order)
                for name, values in new.items():
                    found[name][at] = values / len(orders) + (0 if profile_order == orders[0] else found[name][at])
        return found

    randoms = [str(c).removeprefix("position_") for c in splits if str(c).startswith("position_random_")]
    tried = measure("validation", [CLOSE], {name: alone(name) for name in models if ":" in name})
    picked = _pick_settings(models, tried, settings, sizes, fold)
    long = f"ease:{best_setting(picked, 'ease', LONG)}"
    models["ease:by-size"] = _by_size(models, {name: tried[name] for name in tried if name.startswith("ease:")}, sizes)
    models["svd+knn"] = Mixture({cf: models[cf] for cf in CLASSIC}, [1], {cf: [0.5] for cf in CLASSIC})

    close = [n for n in CLOSE_SIZES if n in sizes]
    cases = {
        part: list(protocols.profile_size_cases(data, splits, users, fold, order=CLOSE, sizes=close, part=part))
        for part in members
    }
    result = FoldResult(members, {}, {}, {}, {}, picked, {"fold": fold})
    for kind, orders in ({"random": randoms} | ({"time": ["time"]} if has_time else {})).items():
        signals = _pairs(list(settings), alphas, grid)
        tuning = measure("validation", orders, signals | {"mixed": Signal((*MIXED[:2], long), lambda n: WEIGHTS)})
        result.mixed[kind] = tuning.pop("mixed")
        parts = {name: models[name] for name in MIXED} | {"ease": models[long]}
        models[MIXTURE] = Mixture(parts, **tune_mixture(result.mixed[kind], sizes))
        tuning |= measure("validation", orders, _pairs([MIXTURE], alphas, grid))
        curves = {
            signal: tune_curves(*surface_of(values, sizes), alphas if signal in models else grid)
            for signal, values in tuning.items()
        }
        signals = {
            name: pair("content", name, alphas, by_name.values())
            if name in models
            else pair("popularity", name.removeprefix(WITH_POPULARITY), alphas[:0], [by_name["learned"]])
            for name, by_name in curves.items()
        }
        signals |= {f"{cf}:0": pair("content", f"{cf}:0", alphas[:0], [CURVES["classic"]]) for cf in CLASSIC}
        signals |= {name: alone(name) for name in ("popularity", "svd+knn", "ease:by-size")}
        tested = measure("test", orders, signals)
        if kind == "random":
            boot = Bootstrap(len(users_of.validation), child_seed(seed, "rule", fold))
            choice = choose(tuning, result.mixed[kind], sizes, alphas, boot)
            result.pick.update(cf=choice.cf, curve=choice.curve.name, gain=choice.gain.value)
            learned = {MIXTURE: pair("content", MIXTURE, alphas[:0], [curves[MIXTURE]["learned"]])}
            if has_text:
                result.series.update(_normalisations(measure, list(settings), sizes, close, alphas))
            one_order = measure("test", [CLOSE], learned, close)[MIXTURE]
            result.series[CLOSE, "blend", MIXTURE, "learned"] = one_order[:, :, 0]
            boosted = _ceiling(cases, models, data.scale.liked, child_seed(seed, "boosting", fold))
            result.series[CLOSE, "blend", "boosting", "ceiling"] = np.full((len(users_of.test), len(sizes)), np.nan)
            for n, (who, values) in boosted.items():
                at = np.searchsorted(users_of.test, who), list(sizes).index(n)
                result.series[CLOSE, "blend", "boosting", "ceiling"][at] = values
        result.validation.update({(kind, signal): values for signal, values in tuning.items()})
        result.test.update({(kind, cf): tested[cf][:, :, : len(alphas)] for cf in (*settings, MIXTURE)})
        result.series.update(_series(kind, tested, curves, len(alphas), choice.cf))
    return result


def _pairs(cfs: Sequence[str], alphas: Floats, grid: Floats) -> dict[str, Signal]:
    return {WITH_POPULARITY + cf: pair("popularity", cf, grid) for cf in cfs} | {
        cf: pair("content", cf, alphas) for cf in cfs
    }


def _pick_settings(
    models: dict[str, Recommender], tried: Mapping[str, Floats], settings: Settings, sizes: Sequence[int], fold: int
) -> pd.DataFrame:
    """Enter each model's best candidate under its own name; the rows of ``AlphaStudy.settings``."""
    rows = [
        (fold, cf, c, int(n), float(value[0]))
        for cf, options in settings.items()
        for c in range(len(options))
        for value, n in zip(*surface_of(tried[f"{cf}:{c}"], sizes), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["fold", "cf", "candidate", "n", NDCG])
    best = {cf: best_setting(table, cf) for cf in settings}
    models.update({cf: models[f"{cf}:{c}"] for cf, c in best.items()})
    return table.assign(chosen=table["candidate"] == table["cf"].map(best))


def _by_size(models: Models, tried: Mapping[str, Floats], sizes: Sequence[int]) -> Mixture:
    """Of several candidates the one that is best on validation users, at every size anew."""
    known = surface_of(next(iter(tried.values())), sizes)[1]
    best = np.argmax([surface_of(values, sizes)[0][:, 0] for values in tried.values()], axis=0)
    weights = {name: (best == c).astype(float).tolist() for c, name in enumerate(tried)}
    return Mixture({name: models[name] for name in tried}, known.tolist(), weights)


def _series(
    kind: str, tested: Mapping[str, Floats], curves: Mapping[str, Mapping[str, AlphaCurve]], grid: int, chosen: str
) -> dict[Key, Floats]:
    """Each baseline, each model by itself, each curve, and those of the chosen model once more.

    Columns of a surface: the grid, whose ends are the other part alone and the model alone, then the curves.
    """
    found: dict[Key, Floats] = {
        (kind, name, "", ""): tested[name][:, :, 0] for name in ("popularity", "svd+knn")
    } | {(kind, "ease", "", "reg=by-size"): tested["ease:by-size"][:, :, 0]}  # fmt: skip
    for cf in CLASSIC if grid > 1 else ():
        found[kind, "blend", cf, "classic;settings=classic"] = tested[f"{cf}:0"][:, :, 0]
    for cf, by_name in ((cf, by_name) for cf, by_name in curves.items() if not cf.startswith(WITH_POPULARITY)):
        if grid > 1:
            found[kind, "content", "", ""] = tested[cf][:, :, 0]
        for name in (cf, "chosen") if cf == chosen else (cf,):
            found |= {(kind, "blend", name, curve): tested[cf][:, :, grid + c] for c, curve in enumerate(by_name)}
            found[kind, name, "", ""] = tested[cf][:, :, grid - 1]
            found[kind, "blend", name, "with-popularity"] = tested[WITH_POPULARITY + cf][:, :, 0]
    return found


# ---- comparisons at a few sizes, first random order: normalisations, and boosting as the ceiling


def _normalisations(
    measure: Callable[..., dict[tuple[str, str], Floats]], cfs: Sequence[str], sizes: Sequence[int],
    close: Sequence[int], alphas: Floats,
) -> dict[Key, Floats]:  # fmt: skip
    """Test series of content + cf under each rule, its weights learned, and under the rule best on validation."""
    parts = {
        (cf, rule): (f"content|{left}", f"{cf}|{right}")
        for cf, (rule, (left, right)) in product(cfs, NORMALISATIONS.items())
    }
    tuning = measure("validation", [CLOSE], {key: pair(*both, alphas) for key, both in parts.items()}, close)
    tables = {key: surface_of(values, sizes) for key, values in tuning.items()}
    curves = {key: tune_curves(*table, alphas)["learned"] for key, table in tables.items()}
    ask = {key: pair(*both, alphas[:0], [curves[key]]) for key, both in parts.items()}
    values = {key: v[:, :, 0] for key, v in measure("test", [CLOSE], ask, close).items()}
    reached = {key: curve_value(curve, *tables[key], alphas) for key, curve in curves.items()}
    best = {(cf, "chosen"): values[max((k for k in parts if k[0] == cf), key=lambda k: reached[k])] for cf in cfs}
    return {(CLOSE, "blend", cf, f"norm={rule}"): v for (cf, rule), v in (values | best).items()}


def _ceiling(
    cases: Mapping[Part, Sequence[Case]], models: Models, liked: float, seed: int
) -> dict[int, tuple[Positions, Floats]]:
    """Per size the test users and their ndcg@10 under gradient boosting that reorders the mixture's best films.

    Trained on validation users to tell liked target films from the others; features: every model's score and its rank
    within the shortlist, n, and what the profile looks like. It is no sum of parts, so it can't give exact reasons and
    is no candidate for the default; it shows how much a sum leaves on the table.
    """
    names = ["content", *(name for name in models if ":" not in name and name not in ("content", "svd+knn"))]

    def features(profiles: csr_matrix) -> tuple[NDArray[np.int32], Floats, Arrays]:
        arrays = Arrays(models, profiles)
        short = metrics.top_k(arrays[MIXTURE], profiles, min(SHORTLIST, profiles.shape[1]))
        scores = np.stack([np.take_along_axis(arrays[name], short, axis=1) for name in names], axis=2)
        places = scores.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        likes, popular = blend.liked_counts(profiles, liked), profiles @ arrays["popularity"][0]
        about = np.column_stack([profiles.getnnz(axis=1), profiles.sum(axis=1).A1, likes, popular])
        wide = np.repeat(about[:, None], short.shape[1], axis=1)
        return short, np.concatenate([scores, places, wide], axis=2).astype(np.float64), arrays

    rows, hits = [], []
    for case in cases["validation"]:
        for block in protocols.user_blocks(case.profiles.shape, cells=BLOCK_SCORES):
            short, x, _ = features(case.profiles[block])
            rows.append(x.reshape(-1, x.shape[2]))
            hits.append(np.take_along_axis(case.relevant[block].toarray() > 0, short, axis=1).ravel())
    booster = HistGradientBoostingRegressor(
        max_iter=80, max_leaf_nodes=15, min_samples_leaf=50, early_stopping=False, random_state=seed
    ).fit(np.concatenate(rows), np.concatenate(hits))
    found = {}
    for case in cases["test"]:
        order, values = protocols.tie_order(case.train.items), []
        for block in protocols.user_blocks(case.profiles.shape, cells=BLOCK_SCORES):
            profiles, relevant = case.profiles[block], case.relevant[block]
            short, x, arrays = features(profiles)
            scores = np.full(profiles.shape, -np.inf, np.float32)
            np.put_along_axis(scores, short, booster.predict(x.reshape(-1, x.shape[2])).reshape(short.shape), axis=1)
            nothing_liked = blend.liked_counts(profiles, liked)[:, None] == 0
            scores = np.where(nothing_liked, arrays["popularity"], scores)
            values.append(blend.ndcg_surface([scores], profiles, relevant, np.ones((1, 1)), order=order)[:, 0])
        found[case.n or 0] = case.users, np.concatenate(values)
    return found


# ---- users with their whole history (warm)

WARM_EDGES = (20, 50, 100, 200)  # ratings in the profile at which the learned weight may change


def rank_warm(
    data: Interactions, test: Mask, position: Positions, *, content: ContentModel, popularity: Recommender,
    settings: Settings, alpha_step: float, relevance: Literal["liked", "any"] = "liked",
) -> pd.DataFrame:  # fmt: skip
    """Per-user ranking metrics of the classic hybrids, a blend tuned on an inner split of the training part, and EASE.

    Settings (also of EASE, which stands there alone), mixture, collaborative model and weights are chosen on the last
    fifth of each user's training ratings; then all is fitted again on the whole training part. SVD and KNN keep their
    first setting, the classic one.

    Parameters
    ----------
    test, position : (N,) the test ratings, and the order whose last fifth tunes
    relevance : which test ratings count

    Returns
    -------
    user_id, cf, curve ("alone": no blend), then a column per metric
    """
    inner, outer = protocols.tuning_and_test(data, test, position)
    protocols.check_tuning(inner, outer)
    wanted = inner.relevant if relevance == "liked" else inner.relevant_any

    tuning: dict[str, Recommender] = {"content": deepcopy(content), "popularity": deepcopy(popularity)}
    final: dict[str, Recommender] = {name: deepcopy(settings[name][0]) for name in CLASSIC}
    for model in tuning.values():
        model.fit(inner.train)
    for name in MIXED[1:]:
        fitted = [deepcopy(model).fit(inner.train) for model in settings[name]]
        best = int(np.argmax([rank_and_measure(model, inner, relevance=relevance)[NDCG].mean() for model in fitted]))
        tuning[name], final[name] = fitted[best], deepcopy(settings[name][best])

    def measure(signals: Mapping[str, Signal]) -> dict[str, Floats]:
        return surfaces(
            tuning, signals, inner.profiles, wanted, data.scale.liked, order=protocols.tie_order(data.items)
        )

    alphas, n = alpha_grid(alpha_step), np.diff(inner.profiles.indptr)
    sizes, path, _ = tune_ranges(measure({"mixed": Signal(MIXED, lambda n: WEIGHTS)})["mixed"], n)
    mixed = {part: WEIGHTS[path, p].tolist() for p, part in enumerate(MIXED)}
    tuning[MIXTURE] = Mixture({part: tuning[part] for part in MIXED}, sizes, mixed)
    parts = {part: final[part] if part in final else deepcopy(popularity) for part in MIXED}
    final[MIXTURE] = Mixture(parts, sizes, mixed)
    learned, reached = {}, {MIXTURE: -SIMPLER}
    for cf, values in measure({name: pair("content", name, alphas) for name in (*MIXED[1:], MIXTURE)}).items():
        _, path, value = tune_ranges(values, n)
        learned[cf] = AlphaCurve("learned", tuple(sizes), tuple(alphas[path].tolist()))
        reached[cf] = reached.get(cf, 0.0) + value
    best_cf = max(reached, key=lambda cf: reached[cf])

    tables = []
    for cf, curve in [*((name, CURVES["classic"]) for name in CLASSIC), (best_cf, learned[best_cf])]:
        shipped = Blend(deepcopy(content), final[cf], curve, deepcopy(popularity)).fit(outer.train)
        tables.append(rank_and_measure(shipped, outer, relevance=relevance).assign(cf=cf, curve=curve.name))
    alone = rank_and_measure(final["ease"].fit(outer.train), outer, relevance=relevance)
    tables.append(alone.assign(cf="ease", curve="alone"))
    return pd.concat(tables, ignore_index=True)


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
