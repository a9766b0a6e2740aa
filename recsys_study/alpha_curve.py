"""How much to trust collaborative scores at each profile size, measured on users whom models and weights have not seen.

The models are fitted on some users; validation users choose settings, curves, weights and parts (``weights``); test
users only measure. What gets the weight alpha is a collaborative model, mixed with content or (a control) popularity.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recsys_study import weights as rules
from recsys_study.grid_search import parameters
from recsys_study.ndcg_surface import ndcg_surface
from recsys_study.weights import ENSEMBLE, FROM_SIZE, NDCG, PARTS, TO_SIZE, WEIGHTS, Choice, Floats, Positions
from recsys_utils.base import USER, Recommender, Scores, child_seed
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import protocols
from recsys_utils.evaluation.significance import Bootstrap, metric_rows
from recsys_utils.models.content import ContentModel
from recsys_utils.models.rankers import Popularity
from recsys_utils.ranking.hybrid import (
    CURVES,
    AlphaCurve,
    WeightedEnsemble,
    candidates,
    liked_counts,
    normalise,
    weighted,
)

Settings = Mapping[str, Sequence[Recommender]]  # collaborative model -> unfitted candidates
Part = Literal["validation", "test"]
Name = TypeVar("Name", bound=Hashable)

CLASSIC = ("svd", "knn")  # the collaborative models of the classic hybrid; their first setting is the classic one
BOTH = "svd+knn"  # their mean
LONG = 20  # short profiles have popularity and item KNN, so the ensemble's EASE has the setting best from 20 ratings on
FIRST_ORDER = "random_0"  # settings are compared in one random order
BLOCK_SCORES = 8_000_000  # scores of one model held at a time, 32 MB: there are two dozen of them
RATINGS = "popularity of ratings"  # the weaker baseline, a second row
CHOSEN, SHIPPED = "chosen", "shipped"  # by each fold's own validation users; by all that it does not test


class Model(NamedTuple):
    """A fitted model of a fold: by name, or one of the candidates for that name."""

    name: str
    candidate: int | None = None


class Series(NamedTuple):
    """One line of the study: a model by itself (no curve), or ``model`` = blend of content and ``cf`` under a curve."""

    order: str
    model: str
    cf: str = ""
    curve: str = ""  # of alpha; ``with-popularity``: popularity instead of content, weights learned

    @property
    def variant(self) -> str:
        """As metrics.csv names it."""
        weight = {"with-popularity": "learned;with=popularity"}.get(self.curve, self.curve)
        return f"order={self.order}" + (f";alpha={weight};cf={self.cf}" if self.cf else f";{weight}" if weight else "")


class Mixed(NamedTuple):
    """What validation surfaces are known by: a partner (content or popularity) and the model that gets the weight."""

    partner: str
    cf: str


class Signal(NamedTuple):
    """Which scores are weighted, and how at each size."""

    parts: tuple[Model, ...]
    weights: Callable[[int], Floats]  # n -> (W, P), W the same at every n


def pair(left: str, right: str | Model, alphas: Floats, curves: Iterable[AlphaCurve] = ()) -> Signal:
    """(1 - alpha) left + alpha right at each of ``alphas``, then at exactly what each curve says."""

    def weights(n: int) -> Floats:
        wanted = np.append(alphas, [curve(n) for curve in curves])
        return np.column_stack([1 - wanted, wanted])

    return Signal((Model(left), Model(right) if isinstance(right, str) else right), weights)


def alone(model: Model) -> Signal:
    return Signal((model,), lambda n: np.ones((1, 1)))


class Arrays(dict[Model, Scores]):
    """The scores of each model for a block of profiles, computed when first needed.

    Content stays as it is, an ensemble weighs what its parts have here, all others are min-max normalised.
    """

    def __init__(self, models: Mapping[Model, Recommender], profiles: csr_matrix) -> None:
        self.models, self.profiles, self.mask = models, profiles, candidates(profiles)

    def __missing__(self, key: Model) -> Scores:
        model = self.models[key]
        first = next(name for name, other in self.models.items() if other is model)  # several names, scored once
        if first != key:
            self[key] = self[first]
        elif isinstance(model, WeightedEnsemble):
            names = {id(other): name for name, other in reversed(list(self.models.items()))}
            parts = [self[names[id(part)]] for part in model.parts.values()]
            self[key] = weighted(parts, model.weights_at(np.diff(self.profiles.indptr)))
        elif key.name == "content":
            self[key] = model.scores(self.profiles)
        else:
            self[key] = normalise(model.scores(self.profiles), self.mask)
        return self[key]


def surfaces(
    models: Mapping[Model, Recommender], signals: Mapping[Name, Signal], profiles: csr_matrix, relevant: csr_matrix,
    liked: float, n: int = 0, order: Positions | None = None,
) -> dict[Name, Floats]:  # fmt: skip
    """(B, W) ndcg@10 of each signal under its weights at n; NaN where nothing is relevant.

    A profile with no liked item has popularity's value everywhere: every curve falls back to it.
    """
    blocks = []
    for block in protocols.user_blocks(profiles.shape, cells=BLOCK_SCORES):
        rows, wanted = profiles[block], relevant[block]
        arrays = Arrays(models, rows)
        popular = ndcg_surface([arrays[Model("popularity")]], rows, wanted, np.ones((1, 1)), order=order)
        fallback = liked_counts(rows, liked)[:, None] == 0
        found = {
            name: ndcg_surface([arrays[p] for p in parts], rows, wanted, weights(n), order=order)
            for name, (parts, weights) in signals.items()
        }
        blocks.append({name: np.where(fallback, popular, values) for name, values in found.items()})
    return {name: np.concatenate([block[name] for block in blocks]) for name in signals}


# ---- users whose profiles are cut (profile-size)


@dataclass(frozen=True)
class Conditions:
    """What all folds share.

    splits, users : see ``protocols``
    settings : unfitted candidates per collaborative model, the classic one first for svd and knn; a fold takes the one
        best on its validation users
    sizes : profile sizes; at 0 all get popularity
    alpha_step : grid of weights from 0 to 1
    has_time, has_text : False leaves out the time order; content, so that every weight is 1
    """

    data: Interactions
    splits: pd.DataFrame
    users: pd.DataFrame
    settings: Settings
    sizes: Sequence[int]
    alpha_step: float
    seed: int
    has_time: bool = True
    has_text: bool = True

    @cached_property
    def grid(self) -> Floats:
        return rules.alpha_grid(self.alpha_step)

    @cached_property
    def alphas(self) -> Floats:
        """The weights of content + cf that are tried."""
        return self.grid if self.has_text else self.grid[-1:]

    @cached_property
    def orders(self) -> dict[str, list[str]]:
        """Kind of order -> the orders of the splits, averaged per user."""
        names = [str(c).removeprefix("position_") for c in self.splits if str(c).startswith("position_random_")]
        return {"random": names} | ({"time": ["time"]} if self.has_time else {})


@dataclass
class Fold:
    """The tables of one fold; rows = its validation or test users, in increasing order."""

    members: dict[Part, Positions]
    series: dict[Series, Floats] = field(default_factory=dict)
    test: dict[tuple[str, str], Floats] = field(default_factory=dict)
    validation: dict[tuple[str, Mixed], Floats] = field(default_factory=dict)
    mixed: dict[str, Floats] = field(default_factory=dict)
    settings: pd.DataFrame = field(default_factory=pd.DataFrame)
    pick: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AlphaStudy:
    """What :func:`study_alpha` measured; U users in the order of the data, S sizes, A alphas, NaN where one lacks it.

    series : (U, S) ndcg@10 of test users; cf or model ``chosen``: by each fold's own validation users; ``shipped``: by
        the rules for what ships, applied to the validation users of all folds but those that the fold tests
    test : (order, cf) -> (U, S, A) of content + cf
    validation : (order, pair) -> (U, S, A) of validation users
    mixed : order -> (U, S, W) validation ndcg@10 under each of ``WEIGHTS``
    settings : fold, cf, candidate (position), n, ndcg@10 on validation users, chosen
    picks : fold, cf, curve, gain, parts: what the rules picked for each fold
    """

    sizes: Sequence[int]
    alphas: Floats
    series: dict[Series, Floats]
    test: dict[tuple[str, str], Floats]
    validation: dict[tuple[str, Mixed], Floats]
    mixed: dict[str, Floats]
    settings: pd.DataFrame
    picks: pd.DataFrame

    def matrix(self, model: str, cf: str = "", curve: str = "", *, order: str = "random",
               sizes: tuple[int, int] = (FROM_SIZE, TO_SIZE)) -> Floats:  # fmt: skip
        """(U, S) test ndcg@10 of one series from the first to the last of ``sizes``, without sizes that nobody has."""
        values, n = self.series[Series(order, model, cf, curve)], np.asarray(self.sizes)
        kept: Floats = values[:, (n >= sizes[0]) & (n <= sizes[1]) & np.isfinite(values).any(axis=0)]
        return kept

    def sizes_of(self, order: str = "random", sizes: tuple[int, int] = (FROM_SIZE, TO_SIZE)) -> list[int]:
        """The sizes that the columns of :meth:`matrix` are for."""
        known = np.isfinite(self.series[Series(order, "popularity")])
        return [n for n, column in zip(self.sizes, known.T, strict=True) if column.any() and sizes[0] <= n <= sizes[1]]

    def validated(self, order: str = "random") -> dict[str, Floats]:
        """The validation surfaces of content + cf, by cf."""
        return by_cf(self.validation, order)

    def choose(self, boot: Bootstrap) -> Choice:
        """The rule for model and curve on the validation users of all folds."""
        return rules.choose(self.validated(), self.mixed["random"], self.sizes, self.alphas, boot)

    def settings_of(self, cf: str, settings: Settings, since: int = FROM_SIZE, parts: Sequence[str] = PARTS) -> Any:
        """What default.json says of a model: its setting best over the folds from size ``since`` on.

        Of an ensemble, the settings of its ``parts`` and the weights tuned on the validation users of all folds.
        """
        if cf != ENSEMBLE:
            return parameters(settings[cf][best_setting(self.settings, cf, since)])  # type: ignore[arg-type]
        own = {p: {} if p == "popularity" else self.settings_of(p, settings, LONG if p == "ease" else FROM_SIZE)
               for p in parts}  # fmt: skip
        return {"parts": own} | rules.tune_ensemble(self.mixed["random"], self.sizes, parts)

    def per_user(self, ids: NDArray[np.object_]) -> pd.DataFrame:
        """Long table user_id, order, model, cf, curve, n, ndcg@10 for later cuts."""
        tables = []
        for key, values in self.series.items():
            row, at = np.nonzero(np.isfinite(values))
            columns = {USER: ids[row], "n": np.asarray(self.sizes)[at], NDCG: values[row, at]}
            tables.append(pd.DataFrame(columns).assign(**key._asdict()))
        return pd.concat(tables, ignore_index=True)

    def metric_rows(self, boot: Bootstrap) -> pd.DataFrame:
        """Rows of metrics.csv: every series at every n, and averaged over n = 1..30 with equal weights."""
        parts = []
        for key, all_values in self.series.items():
            values = self.matrix(key.model, key.cf, key.curve, order=key.order, sizes=(0, max(self.sizes)))
            n = np.asarray(self.sizes)[np.isfinite(all_values).any(axis=0)]
            segments = dict(zip([f"n={size}" for size in n], boot.means(values), strict=True))
            segments[f"n={FROM_SIZE}-{TO_SIZE}"] = boot.average(values[:, (n >= FROM_SIZE) & (n <= TO_SIZE)])
            names = {"protocol": "profile-size", "model": key.model, "variant": key.variant}
            parts += [metric_rows({NDCG: e}, **names, segment=segment) for segment, e in segments.items()]
        return pd.concat(parts, ignore_index=True)


def study_alpha(shared: Conditions, content: Mapping[int, ContentModel], jobs: int = 1) -> AlphaStudy:
    """Run the profile-size protocol for every collaborative model, curve and baseline, one task per user fold.

    Random orders are averaged per user; curves and weights are tuned for each kind of order (random, time) by itself.

    Parameters
    ----------
    content : per user fold, so that its fields can be chosen without the fold's users
    """
    folds = sorted(shared.users["fold"].unique())
    found = Parallel(n_jobs=jobs)(delayed(_study_fold)(shared, fold, content[fold]) for fold in folds)

    def gather(name: str, part: Part) -> dict[Any, Floats]:
        whole: dict[Any, Floats] = {}
        for result in found:
            for key, values in getattr(result, name).items():
                full = whole.setdefault(key, np.full((len(shared.data.users), *values.shape[1:]), np.nan))
                full[result.members[part]] = values
        return whole

    study = AlphaStudy(
        shared.sizes, shared.alphas, gather("series", "test"), gather("test", "test"),
        gather("validation", "validation"), gather("mixed", "validation"),
        pd.concat([result.settings for result in found], ignore_index=True), pd.DataFrame([r.pick for r in found]),
    )  # fmt: skip
    served = Parallel(n_jobs=jobs)(delayed(_ship_fold)(shared, study, fold, content[fold]) for fold in folds)
    for kind in shared.orders:
        values = study.series[Series(kind, "blend", SHIPPED, SHIPPED)] = np.full_like(
            study.mixed[kind][:, :, 0], np.nan
        )
        for result, (_, by_kind) in zip(found, served, strict=True):
            values[result.members["test"]] = by_kind[kind]
    study.picks["parts"] = ["+".join(parts) for parts, _ in served]
    return study


def _ship_fold(
    shared: Conditions, study: AlphaStudy, fold: int, content: ContentModel
) -> tuple[list[str], dict[str, Floats]]:
    """The parts that ship by the users whom the fold does not test, and (test users, S) ndcg@10 of them by kind."""
    test = protocols.fold_users(shared.users, fold).test

    def of_others(values: Floats) -> Floats:
        return np.where(np.isin(np.arange(len(values)), test)[:, None, None], np.nan, values)

    validation = {key: of_others(values) for key, values in study.validation.items()}
    mixed, sizes = {kind: of_others(values) for kind, values in study.mixed.items()}, shared.sizes
    boot = Bootstrap(len(shared.data.users), child_seed(shared.seed, "ship", fold))
    choice = rules.choose(by_cf(validation, "random"), mixed["random"], sizes, shared.alphas, boot)
    kept, learned, losses = shipping_rule(choice, validation, mixed, None, sizes, shared.alphas, boot)
    tuned, _ = with_guards(choice.cf, kept, validation, mixed, sizes, boot)
    own = study.settings[study.settings["fold"] == fold]
    since = {"ease": LONG} if choice.cf == ENSEMBLE else {}
    best = {p: best_setting(own, p, since.get(p, FROM_SIZE)) for p in tuned["weights"] if p != "popularity"}
    bench = _Bench(replace(shared, settings={p: [shared.settings[p][c]] for p, c in best.items()}), fold, content)
    parts = {p: Model(p, 0 if p in best else None) for p in tuned["weights"]}
    bench.ensemble(SHIPPED, parts, tuned)
    signal = pair("content", SHIPPED, shared.alphas[:0], [rules.shipped_curve(learned, losses)])
    found = {kind: bench.measure("test", orders, {SHIPPED: signal})[SHIPPED][:, :, 0]
             for kind, orders in shared.orders.items()}  # fmt: skip
    return list(parts), found


class _Bench:
    """The fitted models of one fold, and their surfaces."""

    def __init__(self, shared: Conditions, fold: int, content: ContentModel) -> None:
        self.shared, self.fold = shared, fold
        users_of = protocols.fold_users(shared.users, fold)
        self.members: dict[Part, Positions] = {"validation": users_of.validation, "test": users_of.test}
        self.tie_order = protocols.tie_order(shared.data.items)
        self.models: dict[Model, Recommender] = {
            Model("content"): deepcopy(content), Model("popularity"): Popularity(), Model(RATINGS): Popularity("any")
        }  # fmt: skip
        for cf, tried in shared.settings.items():
            self.models |= {Model(cf, c): deepcopy(model) for c, model in enumerate(tried)}
        train = shared.data.of_users(users_of.fit)
        for model in self.models.values():
            model.fit(train)

    def ensemble(self, name: str, parts: Mapping[str, Model], tuned: Mapping[str, Any]) -> None:
        """Enter a weighted ensemble of fitted models under a name."""
        models = {part: self.models[key] for part, key in parts.items()}
        self.models[Model(name)] = WeightedEnsemble(models, tuned["sizes"], tuned["weights"])

    def measure(self, part: Part, orders: Sequence[str], signals: Mapping[Name, Signal]) -> dict[Name, Floats]:
        """(users of the part, S, W) per signal: means over the orders, whose users agree."""
        s, members = self.shared, self.members[part]
        shape = len(members), len(s.sizes)
        found = {name: np.full((*shape, len(weights(0))), np.nan) for name, (_, weights) in signals.items()}
        for order in orders:
            cases = protocols.profile_size_cases(
                s.data, s.splits, s.users, self.fold, order=order, sizes=s.sizes, part=part
            )
            for case in cases:
                at = np.searchsorted(members, case.users), list(s.sizes).index(case.n or 0)
                profiles, liked = (case.profiles, case.relevant), s.data.scale.liked
                new = surfaces(self.models, signals, *profiles, liked, case.n or 0, self.tie_order)
                for name, values in new.items():
                    found[name][at] = values / len(orders) + (0 if order == orders[0] else found[name][at])
        return found

    def pick_settings(self) -> pd.DataFrame:
        """Enter each model's best candidate under its own name; the rows of ``AlphaStudy.settings``."""
        candidates = {key: alone(key) for key in self.models if key.candidate is not None}
        tried = self.measure("validation", [FIRST_ORDER], candidates)
        rows = [
            (self.fold, key.name, key.candidate, int(n), float(value[0]))
            for key, values in tried.items()
            for value, n in zip(*rules.surface_of(values, self.shared.sizes), strict=True)
        ]
        table = pd.DataFrame(rows, columns=["fold", "cf", "candidate", "n", NDCG])
        best = {cf: best_setting(table, cf) for cf in self.shared.settings}
        self.models.update({Model(cf): self.models[Model(cf, c)] for cf, c in best.items()})
        return table.assign(chosen=table["candidate"] == table["cf"].map(best))


def best_setting(tried: pd.DataFrame, cf: str, since: int = FROM_SIZE) -> int:
    """The candidate of a model with the highest validation mean, equal weights, over sizes (and folds) from ``since``.

    Where no profile is that long, the longest there are decide. ``tried`` as ``AlphaStudy.settings``.
    """
    own = tried[tried["cf"] == cf]
    means = own[own["n"] >= min(since, own["n"].max())].groupby("candidate")[NDCG].mean()
    return int(means.index[int(np.argmax(means))])


def _study_fold(shared: Conditions, fold: int, content: ContentModel) -> Fold:
    """Tune on validation users in each kind of order, choose model and curve, and measure test users."""
    bench = _Bench(shared, fold, content)
    picked = bench.pick_settings()
    long = Model("ease", best_setting(picked, "ease", LONG))
    bench.ensemble(BOTH, {cf: Model(cf) for cf in CLASSIC}, {"sizes": [1], "weights": {cf: [0.5] for cf in CLASSIC}})
    result = Fold(bench.members, settings=picked, pick={"fold": fold})
    parts = {name: Model(name) for name in PARTS} | {"ease": long}
    for kind, orders in shared.orders.items():
        surfaces_of: dict[Any, Floats] = bench.measure(
            "validation", orders,
            _pairs(list(shared.settings), shared) | {None: Signal(tuple(parts.values()), lambda n: WEIGHTS)},
        )  # fmt: skip
        result.mixed[kind] = surfaces_of.pop(None)
        bench.ensemble(ENSEMBLE, parts, rules.tune_ensemble(result.mixed[kind], shared.sizes))
        surfaces_of |= bench.measure("validation", orders, _pairs([ENSEMBLE], shared))
        result.validation.update({(kind, key): values for key, values in surfaces_of.items()})
    boot = Bootstrap(len(bench.members["validation"]), child_seed(shared.seed, "rule", fold))
    choice = rules.choose(by_cf(result.validation, "random"), result.mixed["random"], shared.sizes, shared.alphas, boot)
    result.pick.update(cf=choice.cf, curve=choice.curve.name, gain=choice.gain.value)
    for kind, orders in shared.orders.items():
        bench.ensemble(ENSEMBLE, parts, rules.tune_ensemble(result.mixed[kind], shared.sizes))
        _test(bench, result, kind, orders)
    return result


def _test(bench: _Bench, result: Fold, kind: str, orders: Sequence[str]) -> None:
    """Measure the test users of a fold in one kind of order under every curve tuned for it."""
    s = bench.shared
    curves = {
        key: rules.tune_curves(*rules.surface_of(values, s.sizes), s.alphas if key.partner == "content" else s.grid)
        for (order, key), values in result.validation.items() if order == kind
    }  # fmt: skip
    signals: dict[Any, Signal] = {
        key: pair("content", key.cf, s.alphas, by_name.values())
        if key.partner == "content"
        else pair("popularity", key.cf, s.alphas[:0], [by_name["learned"]])
        for key, by_name in curves.items()
    }
    signals |= {cf: pair("content", Model(cf, 0), s.alphas[:0], [CURVES["classic"]]) for cf in CLASSIC}
    signals |= {name: alone(Model(name)) for name in ("popularity", RATINGS, BOTH)}
    tested = bench.measure("test", orders, signals)
    result.test.update({(kind, cf): tested[Mixed("content", cf)][:, :, : len(s.alphas)]
                        for cf in (*s.settings, ENSEMBLE)})  # fmt: skip
    result.series.update(_series(kind, tested, curves, len(s.alphas), result.pick["cf"]))


def by_cf(validation: Mapping[tuple[str, Mixed], Floats], order: str) -> dict[str, Floats]:
    """The validation surfaces of content + cf in one order, by cf."""
    return {key.cf: values for (o, key), values in validation.items() if o == order and key.partner == "content"}


def shipping_rule(
    choice: Choice, validation: Mapping[tuple[str, Mixed], Floats], mixed: Mapping[str, Floats], whole: Floats | None,
    sizes: Sequence[int], alphas: Floats, boot: Bootstrap,
) -> tuple[tuple[str, ...], AlphaCurve, list[rules.Loss]]:  # fmt: skip
    """The parts of the chosen model that earn their place, the learned curve of content, and the losses behind both."""
    kept, losses = ((choice.cf,), []) if choice.cf != ENSEMBLE else rules.eliminate(mixed, whole, sizes, boot)
    cf = kept[0] if len(kept) == 1 and kept[0] != "popularity" else choice.cf
    curve, more = rules.content_losses({o: by_cf(validation, o)[cf] for o in mixed}, sizes, alphas, boot)
    return kept, curve, [*losses, *more]


def with_guards(
    cf: str, kept: Sequence[str], validation: Mapping[tuple[str, Mixed], Floats], mixed: Mapping[str, Floats],
    sizes: Sequence[int], boot: Bootstrap,
) -> tuple[dict[str, Any], list[rules.Guard]]:  # fmt: skip
    """The weights by profile size of what ships, popularity alone where the rest is shown to be worse.

    Judged without content, in every order, under the weights of random order; the guards come with the result.
    """
    popular = PARTS.index("popularity")
    if cf in PARTS or cf == ENSEMBLE:
        known, path = rules.path_of(mixed["random"], sizes, kept)
        served = {order: rules.on_path(values, sizes, known, path) for order, values in mixed.items()}
        tuned = rules.tune_ensemble(mixed["random"], sizes, kept)
    else:
        served = {order: by_cf(validation, order)[cf][:, :, -1] for order in mixed}
        known = rules.surface_of(mixed["random"], sizes)[1]
        tuned = {"sizes": known.tolist(), "weights": {cf: [1.0] * len(known)}}
    alone = int(np.flatnonzero(WEIGHTS[:, popular] == 1)[0])
    guards = rules.against_popularity(served, {o: values[:, :, alone] for o, values in mixed.items()}, sizes, boot)
    return rules.guarded(tuned, guards), guards


def _pairs(cfs: Sequence[str], shared: Conditions) -> dict[Any, Signal]:
    return {Mixed("popularity", cf): pair("popularity", cf, shared.grid) for cf in cfs} | {
        Mixed("content", cf): pair("content", cf, shared.alphas) for cf in cfs
    }


def _series(
    kind: str, tested: Mapping[Any, Floats], curves: Mapping[Mixed, Mapping[str, AlphaCurve]], grid: int, chosen: str
) -> dict[Series, Floats]:
    """Each baseline, each model by itself, each curve, and those of the chosen model once more.

    Columns of a surface: the grid, whose ends are the other part alone and the model alone, then the curves.
    """
    found = {Series(kind, name): tested[name][:, :, 0] for name in ("popularity", BOTH)}
    found[Series(kind, "popularity", "", "counts=any")] = tested[RATINGS][:, :, 0]
    for cf in CLASSIC if grid > 1 else ():
        found[Series(kind, "blend", cf, "classic;settings=classic")] = tested[cf][:, :, 0]
    for key, by_name in ((key, by_name) for key, by_name in curves.items() if key.partner == "content"):
        values, cf = tested[key], key.cf
        if grid > 1:
            found[Series(kind, "content")] = values[:, :, 0]
        for name in (cf, CHOSEN) if cf == chosen else (cf,):
            found |= {Series(kind, "blend", name, curve): values[:, :, grid + c] for c, curve in enumerate(by_name)}
            found[Series(kind, name)] = values[:, :, grid - 1]
            found[Series(kind, "blend", name, "with-popularity")] = tested[Mixed("popularity", cf)][:, :, 0]
    return found
