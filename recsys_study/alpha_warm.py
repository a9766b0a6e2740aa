"""The hybrid for users with their whole history, and for items that nobody has rated."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_study import weights as rules
from recsys_study.alpha_curve import (
    CLASSIC,
    LONG,
    AlphaStudy,
    Model,
    Name,
    Settings,
    Signal,
    pair,
    shipping_rule,
    surfaces,
    with_guards,
)
from recsys_study.findings import Contrast
from recsys_study.weights import ENSEMBLE, FROM_SIZE, NDCG, PARTS, WEIGHTS, Choice, Floats, Positions
from recsys_utils.base import USER, Recommender
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import protocols
from recsys_utils.evaluation.protocols import Mask, rank_and_measure
from recsys_utils.evaluation.significance import Bootstrap, metric_rows
from recsys_utils.models.content import ContentModel, GenreRidge
from recsys_utils.models.rankers import Popularity
from recsys_utils.ranking.hybrid import CURVES, AlphaCurve, Hybrid, WeightedEnsemble
from recsys_utils.ranking.recommend import hybrid_from


class Warm(NamedTuple):
    """Whole histories: ``table`` of per-user metrics (user_id, cf, curve, metrics; curve ``alone``: no content), and on
    the inner split (U, W) ndcg@10 under each of ``WEIGHTS`` and (U, A) of content + ensemble, NaN for other users."""

    table: pd.DataFrame
    mixed: Floats
    content: Floats


def rank_warm(
    data: Interactions, test: Mask, position: Positions, *, content: ContentModel,
    settings: Settings, alpha_step: float, relevance: Literal["liked", "any"] = "liked",
) -> Warm:  # fmt: skip
    """The classic hybrids, a blend tuned on an inner split of the training part, and EASE alone, for whole histories.

    Settings (also of EASE), ensemble, collaborative model and weights are chosen on the last fifth of each user's
    training ratings; then all is fitted again on the whole training part. SVD and KNN keep the classic setting.

    Parameters
    ----------
    test, position : (N,) the test ratings, and the order whose last fifth tunes
    relevance : which test ratings count
    """
    inner, outer = protocols.tuning_and_test(data, test, position)
    protocols.check_tuning(inner, outer)
    wanted = inner.relevant if relevance == "liked" else inner.relevant_any
    tuning, final = _tuned_settings(inner, content, settings, relevance)

    def measure(signals: Mapping[Name, Signal]) -> dict[Name, Floats]:
        order = protocols.tie_order(data.items)
        return surfaces(tuning, signals, inner.profiles, wanted, data.scale.liked, order=order)

    alphas, n = rules.alpha_grid(alpha_step), np.diff(inner.profiles.indptr)
    mixed = measure({"mixed": Signal(tuple(map(Model, PARTS)), lambda n: WEIGHTS)})["mixed"]
    sizes, path, _ = rules.tune_ranges(mixed, n)
    weights = {part: WEIGHTS[path, p].tolist() for p, part in enumerate(PARTS)}
    tuning[Model(ENSEMBLE)] = WeightedEnsemble({part: tuning[Model(part)] for part in PARTS}, sizes, weights)
    final[ENSEMBLE] = WeightedEnsemble({p: final.get(p, Popularity()) for p in PARTS}, sizes, weights)
    learned, reached = {}, {ENSEMBLE: -rules.SIMPLER}
    found = measure({name: pair("content", name, alphas) for name in (*PARTS[1:], ENSEMBLE)})
    for cf, values in found.items():
        _, path, value = rules.tune_ranges(values, n)
        learned[cf] = AlphaCurve("learned", tuple(sizes), tuple(alphas[path].tolist()))
        reached[cf] = reached.get(cf, 0.0) + value
    best = max(reached, key=lambda cf: reached[cf])
    tables = []
    for cf, curve in [*((name, CURVES["classic"]) for name in CLASSIC), (best, learned[best])]:
        hybrid = Hybrid(deepcopy(content), final[cf], curve, Popularity()).fit(outer.train)
        tables.append(rank_and_measure(hybrid, outer, relevance=relevance).assign(cf=cf, curve=curve.name))
    ease = rank_and_measure(final["ease"].fit(outer.train), outer, relevance=relevance)
    tables.append(ease.assign(cf="ease", curve="alone"))
    whole = [np.full((len(data.users), values.shape[1]), np.nan) for values in (mixed, found[ENSEMBLE])]
    for full, values in zip(whole, (mixed, found[ENSEMBLE]), strict=True):
        full[inner.users] = values
    return Warm(pd.concat(tables, ignore_index=True), *whole)


def _tuned_settings(
    inner: protocols.Case, content: ContentModel, settings: Settings, relevance: Any
) -> tuple[dict[Model, Recommender], dict[str, Recommender]]:
    """The models fitted on the inner split with their best settings, and unfitted ones with these settings."""
    tuning: dict[Model, Recommender] = {
        Model("content"): deepcopy(content).fit(inner.train), Model("popularity"): Popularity().fit(inner.train)
    }  # fmt: skip
    final: dict[str, Recommender] = {name: deepcopy(settings[name][0]) for name in CLASSIC}
    for name in PARTS[1:]:
        fitted = [deepcopy(model).fit(inner.train) for model in settings[name]]
        best = int(np.argmax([rank_and_measure(model, inner, relevance=relevance)[NDCG].mean() for model in fitted]))
        tuning[Model(name)], final[name] = fitted[best], deepcopy(settings[name][best])
    return tuning, final


def warm_rows(warm: pd.DataFrame, users: NDArray[np.object_], boot: Bootstrap) -> pd.DataFrame:
    """Rows of metrics.csv from the tables of several runs (columns protocol, relevance)."""
    blends = warm[warm["curve"] != "alone"]
    groups = blends.assign(blend=np.where(blends["curve"] == "learned", "tuned", blends["cf"]))
    rows = []
    for (protocol, relevance, curve, _), part in groups.groupby(["protocol", "relevance", "curve", "blend"]):
        variant = f"alpha={curve};cf={'+'.join(sorted(part['cf'].unique()))};relevance={relevance}"
        values = part.drop(columns=["cf", "curve", "protocol", "relevance", "blend"])
        named = {"protocol": f"ranking-{protocol}", "model": "blend", "variant": variant}
        rows.append(protocols.summarise(values, boot, users=users, **named))
    return pd.concat(rows, ignore_index=True)


def over_ease(warm: pd.DataFrame, users: NDArray[np.object_], boot: Bootstrap) -> dict[str, Any]:
    """By protocol, ndcg@10 of the tuned blend minus EASE alone."""
    return {
        str(protocol): boot.difference(*(
            protocols.align(part[part["curve"] == kind], users)[NDCG].to_numpy() for kind in ("learned", "alone")
        ))
        for protocol, part in warm.groupby("protocol")
    }  # fmt: skip


# ---- items that nobody has rated


def as_json(study: AlphaStudy, choice: Choice, settings: Settings, text: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen model and curve as ``hybrid_from`` reads them, with the text fields of ``text``."""
    content = {key: text[key] for key in ("fields", "cast", "max_features")}
    own = study.settings_of(choice.cf, settings)
    return {"cf": choice.cf, "settings": own, "curve": choice.curve.to_json(), "content": content}


def cold_items(
    data: Interactions, folds: pd.DataFrame, chosen: Mapping[str, Any], items: pd.DataFrame, text: Mapping[str, Any],
    has_billing_order: bool,
) -> pd.DataFrame:  # fmt: skip
    """Per user and item fold, metrics of the withheld items' order: hybrid, content, cf alone, ridge on genres.

    The text fields of a fold are those chosen on the other items. Empty where there is no text.
    """
    tables = []
    for fold in sorted(folds["fold"].unique()) if chosen["content"]["fields"] else ():
        case = protocols.cold_item_case(data, folds, fold)
        fields = chosen["content"] | {"fields": text["by_item_fold"][str(fold)]}
        hybrid = hybrid_from({**chosen, "content": fields}, items, has_billing_order).fit(case.train)
        models: dict[str, Recommender] = {"hybrid": hybrid, "content": hybrid.content, "cf": hybrid.cf}
        if items["genres"].map(len).any():
            models["genre-ridge"] = GenreRidge(items).fit(case.train)
        tables += [rank_and_measure(model, case).assign(model=name) for name, model in models.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["model", USER])


def cold_rows(cold: pd.DataFrame, users: NDArray[np.object_], boot: Bootstrap, choice: Choice) -> pd.DataFrame:
    """The hybrid's rows of metrics.csv."""
    own = cold[cold["model"] == "hybrid"].drop(columns="model")
    variant = f"alpha={choice.curve.name};cf={choice.cf};relevance=liked"
    named = {"protocol": "cold-item", "model": "blend", "variant": variant}
    return protocols.summarise(own, boot, users=users, **named) if len(own) else pd.DataFrame()


def by_user(cold: pd.DataFrame, users: NDArray[np.object_]) -> dict[str, Floats]:
    """(U,) ndcg@10 on withheld items by model."""
    means = {name: part.groupby(USER)[NDCG].mean() for name, part in cold.groupby("model", sort=False)}
    return {str(name): mean.reindex(users).to_numpy() for name, mean in means.items()}


def cold_contrasts(cold: pd.DataFrame, users: NDArray[np.object_], boot: Bootstrap) -> list[Contrast]:
    """The hybrid against its parts and the ridge, on items that nobody has rated."""
    values = by_user(cold, users)
    others = {"content": "content", "cf": "cf alone", "genre-ridge": "ridge on genres"}
    gains = {name: boot.difference(values["hybrid"], values[name]) for name in others if name in values}
    of = f"{NDCG} (cold-item)"
    return [Contrast.from_estimate(f"cold-{n}", f"hybrid instead of {others[n]}", e, of=of) for n, e in gains.items()]


# ---- what ships


class Shipping(NamedTuple):
    """The parts that earn their place, the curve of content, the losses and guards behind them, and default.json."""

    parts: tuple[str, ...]
    curve: AlphaCurve
    content_for: list[str]  # the segments in which content earns its place
    losses: list[rules.Loss]
    guards: list[rules.Guard]
    default: dict[str, Any]

    @property
    def popularity_for(self) -> list[str]:
        """The ranges of profile sizes that get popularity, because the parts are worse there in some order."""
        return list(dict.fromkeys(guard.segment for guard in self.guards if not guard.passes))

    def rows(self) -> pd.DataFrame:
        """Rows of metrics.csv on validation users: what leaving each part out changes, and the guards."""
        named = {"protocol": "profile-size", "model": "blend"}
        rows = {(f"order={x.order};without={x.part};step={x.step}", x.segment): x.difference for x in self.losses}
        rows |= {(f"order={g.order};instead=popularity", g.segment): g.difference for g in self.guards}
        return pd.concat(
            metric_rows({NDCG: e}, variant=f"{variant};users=validation", segment=segment.replace(" ", "-"), **named)
            for (variant, segment), e in rows.items()
        )


def ship(
    study: AlphaStudy, choice: Choice, chosen: Mapping[str, Any], settings: Settings, warm: Warm, cold: pd.DataFrame,
    users: NDArray[np.object_], boot: Bootstrap,
) -> Shipping:  # fmt: skip
    """Apply the rules for what ships to the validation users of all folds.

    ``weights.eliminate`` and ``shipped_curve`` decide about parts and content, ``with_guards`` about popularity.
    """
    validating = np.isfinite(study.mixed["random"][:, :, 0]).any(axis=1)
    ruled = shipping_rule(choice, study.validation, study.mixed, warm.mixed, study.sizes, study.alphas, boot)
    parts, learned, losses = ruled
    if len(study.alphas) > 1:
        tuned = rules.crossfit(warm.content[:, None], [FROM_SIZE], np.zeros((warm.content.shape[1],) * 2))[:, 0]
        losses = [*losses, rules.Loss("content", rules.WHOLE, boot.difference(warm.content[:, -1], tuned))]
    if len(cold):
        with_content, alone = (np.where(validating, by_user(cold, users)[name], np.nan) for name in ("hybrid", "cf"))
        losses.append(rules.Loss("content", rules.COLD, boot.difference(alone, with_content)))
    curve = rules.shipped_curve(learned, losses)
    content_for = list(dict.fromkeys(loss.segment for loss in losses if loss.part == "content" and loss.earns))
    weights, guards = with_guards(choice.cf, parts, study.validation, study.mixed, study.sizes, boot)
    own = {
        part: {} if part == "popularity" else
        study.settings_of(part, settings, LONG if choice.cf == ENSEMBLE and part == "ease" else FROM_SIZE)
        for part in weights["weights"]
    }  # fmt: skip
    alone_cf = len(own) == 1
    cf = next(iter(own)) if alone_cf else ENSEMBLE
    default = {
        "cf": cf, "settings": own[cf] if alone_cf else {"parts": own, **weights}, "curve": curve.to_json(),
        "content": dict(chosen["content"]) | ({} if content_for else {"fields": []}), "fallback": "popularity",
    }  # fmt: skip
    return Shipping(parts, curve, content_for, losses, guards, default)
