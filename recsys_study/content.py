"""What metadata alone know: which text fields earn their place, for warm users and for items without ratings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix

from recsys_study.figures import intervals
from recsys_study.findings import Contrast
from recsys_utils.base import USER
from recsys_utils.data.interactions import Interactions, item_counts
from recsys_utils.evaluation.protocols import (
    best_on_other_items,
    cold_item_case,
    rank_and_measure,
    summarise,
    validation_mask,
    warm_split,
)
from recsys_utils.evaluation.significance import Bootstrap
from recsys_utils.models.content import FIELDS, ContentModel, GenreRidge

NDCG, WARM, COLD = "ndcg@10", "ranking-last20", "cold-item"
CHOSEN = "chosen"  # on the other item folds
BASELINES = {"genre_ridge": "ridge on genres", "fact_count": "most names known", "random": "random order"}


def corpus(items: pd.DataFrame, models: Mapping[str, ContentModel], fields: Sequence[str]) -> pd.DataFrame:
    """One row per text field: items that have it, values per item, different values, terms kept."""
    return pd.DataFrame(
        {
            "field": field,
            "items": int((items[field].map(len) > 0).sum()),
            "per item": round(float(items[field].map(len).mean()), 2) if field != "overview" else np.nan,
            "different": items[field].explode().nunique(),
            "terms kept": len(models[field].tokens) if field in models else 0,
        }
        for field in fields
    )


@dataclass
class FieldStudy:
    """Per-user results of every combination of text fields; nothing where the data have no text.

    ``tables``: (protocol, name of the fields or of a baseline) -> one row per test user. ``chosen``: the fields with
    the highest ndcg@10 on an inner split of the training ratings; per user fold and item fold likewise.
    """

    data: Interactions
    splits: pd.DataFrame
    item_folds: pd.DataFrame
    models: Mapping[str, ContentModel]
    tables: dict[tuple[str, str], pd.DataFrame]
    chosen: str = ""
    by_user_fold: Mapping[int, str] | None = None
    by_item_fold: dict[int, str] | None = None

    def inner(self, run: str, position: str, relevance: Any = "liked") -> pd.DataFrame:
        """ndcg@10 of each user (rows) and model (columns) on the last fifth of the training ratings of a split."""
        test = self.splits[run].to_numpy()
        case = warm_split(self.data, validation_mask(self.data, test, self.splits[position]), hidden=test)
        found = {name: rank_and_measure(model, case, relevance=relevance) for name, model in self.models.items()}
        return pd.DataFrame({name: table.set_index(USER)[NDCG] for name, table in found.items()})

    def by_split(self) -> dict[str, str]:
        """The fields chosen inside the training part of each warm split."""
        runs = [str(column) for column in self.splits if str(column).startswith("stratified_")]
        orders = {run: run.replace("stratified_", "position_random_") for run in runs}
        found = {run: str(self.inner(run, order, "any").mean().idxmax()) for run, order in orders.items()}
        return {"last20": self.chosen} | found

    def rows(self, boot: Bootstrap, by_split: Mapping[str, str]) -> pd.DataFrame:
        """The rows of metrics.csv: each combination of fields, the baselines, then the chosen fields."""
        users = self.data.users
        parts = []
        for (protocol, name), table in self.tables.items():
            named = {"model": name, "variant": "relevance=liked"} if name in BASELINES else {
                "model": "content", "variant": f"fields={name};relevance=liked"
            }  # fmt: skip
            parts.append(summarise(table, boot, users=users, protocol=protocol, **named))
        stratified = [
            rank_and_measure(self.models[name], warm_split(self.data, self.splits[run]), relevance="any")
            for run, name in by_split.items()
            if run != "last20"
        ]
        for protocol, relevance, some in (
            ("ranking-stratified", "any", stratified),
            (WARM, "liked", [self.tables[WARM, self.chosen]] if self.chosen else []),
        ):
            if some:
                named = {"protocol": protocol, "model": "content", "variant": f"relevance={relevance}"}
                parts.append(summarise(pd.concat(some), boot, users=users, **named))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def values(self, protocol: str, name: str) -> Any:
        """(U,) ndcg@10 by user, in the order of the data."""
        return self.tables[protocol, name].groupby(USER)[NDCG].mean().reindex(self.data.users).to_numpy()

    def contrasts(self, boot: Bootstrap) -> list[Contrast]:
        """The chosen fields against all fields (warm users) and against the baselines (cold items)."""
        pairs = {"chosen-all": (WARM, self.chosen, "all", "the chosen text fields instead of all")}
        for name, words in BASELINES.items():
            pairs[f"cold-{name.replace('_', '-')}"] = (COLD, CHOSEN, name, f"content instead of {words}")
        return [
            Contrast.from_estimate(
                id, label, boot.difference(self.values(protocol, a), self.values(protocol, b)),
                of=f"{NDCG} ({protocol})",
            )
            for id, (protocol, a, b, label) in pairs.items()
            if (protocol, b) in self.tables
        ]  # fmt: skip


def study_fields(
    data: Interactions, items: pd.DataFrame, splits: pd.DataFrame, users: pd.DataFrame, item_folds: pd.DataFrame,
    models: Mapping[str, ContentModel], *, rng: np.random.Generator,
) -> FieldStudy:  # fmt: skip
    """Measure every fitted model on warm users and cold items, choose by an inner split, and add the baselines.

    The reported ratings never take part in a choice: warm fields are chosen on the last fifth of the training ratings,
    per user fold without the fold's users; cold fields on the other item folds.
    """
    study = FieldStudy(data, splits, item_folds, models, {})
    if not models:
        return study
    warm = warm_split(data, splits["last20"].to_numpy(), time_ordered=True)
    inner = study.inner("last20", "position_time")
    study.chosen = str(inner.mean().idxmax())
    fold_of = users.set_index(USER)["fold"].reindex(inner.index)
    study.by_user_fold = {int(fold): str(inner[fold_of != fold].mean().idxmax()) for fold in sorted(fold_of.unique())}
    study.tables = {(WARM, name): rank_and_measure(model, warm) for name, model in models.items()}
    study.by_item_fold, cold = {}, dict[str, list[pd.DataFrame]]()
    for fold in sorted(item_folds["fold"].unique()):
        study.by_item_fold[int(fold)] = chosen = best_on_other_items(models, data, item_folds, fold)
        for name, table in _cold_fold(data, items, item_folds, fold, models, chosen, rng):
            cold.setdefault(name, []).append(table)
    study.tables |= {(COLD, name): pd.concat(tables, ignore_index=True) for name, tables in cold.items()}
    return study


def _cold_fold(
    data: Interactions, items: pd.DataFrame, item_folds: pd.DataFrame, fold: int, models: Mapping[str, ContentModel],
    chosen: str, rng: np.random.Generator,
) -> Iterator[tuple[str, pd.DataFrame]]:  # fmt: skip
    case = cold_item_case(data, item_folds, fold)
    found = {name: rank_and_measure(model, case) for name, model in models.items()}
    yield from found.items()
    yield CHOSEN, found[chosen]
    if items["genres"].map(len).any():
        yield "genre_ridge", rank_and_measure(GenreRidge(items).fit(case.train), case)
    names = [field for field in FIELDS if field in items and field not in ("genres", "overview")]
    known = items[names].map(len).sum(axis=1).to_numpy(np.float32)
    yield "fact_count", rank_and_measure(np.tile(known, (len(case.users), 1)), case)
    yield "random", rank_and_measure(rng.random(case.profiles.shape, dtype=np.float32), case)


def label(name: str) -> str:
    """
    >>> label("without_genres"), label("genres+actors"), label("fact_count")
    ('all but genres', 'genres + actors', 'most names known')
    """
    names = BASELINES | {"all": "all fields", CHOSEN: "chosen on other folds"}
    return names.get(name, name.replace("without_", "all but ").replace("+", " + "))


def ablation(rows: pd.DataFrame) -> pd.DataFrame:
    """ndcg@10 by protocol and text fields (or baseline), from the rows of metrics.csv."""
    if rows.empty:
        return rows
    some = rows[(rows["metric"] == NDCG) & rows["protocol"].isin([WARM, COLD])]
    fields = some["variant"].str.extract("fields=([^;]+)")[0].fillna(some["model"].where(some["model"] != "content"))
    some = some.assign(fields=fields).dropna(subset="fields")
    return some[["protocol", "fields", "value", "ci_low", "ci_high", "n"]]


def ablation_figure(table: pd.DataFrame, chosen: str) -> Figure | None:
    """ndcg@10 by text fields, warm users left and cold items right; the chosen fields in bold."""
    if table.empty:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 5.4), sharey=True)
    order = table.loc[table["protocol"] == COLD, "fields"].tolist()
    for ax, protocol, title in zip(axes, [WARM, COLD], ["Warm users", "Cold items"], strict=True):
        part = table[table["protocol"] == protocol].set_index("fields").reindex(order).reset_index()
        part["look"] = part["fields"].where(part["fields"].isin(list(BASELINES)), "content")
        intervals(ax, part, label="fields", model="look")
        ax.set(xlabel=NDCG, title=title)
        ax.set_xlim(left=0)
        ax.axhline(order.index(CHOSEN) - 0.5, color="#999999", linewidth=0.8)
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    axes[0].set_yticklabels([label(name) for name in order])
    axes[0].get_yticklabels()[order.index(chosen)].set_fontweight("bold")
    return figure


def nearest(study: FieldStudy, titles: Sequence[str], most: int = 6, k: int = 2) -> pd.DataFrame:
    """The nearest items of the most rated ones under all and under the chosen fields, with the tokens they share."""
    rows, data = [], study.data
    famous = np.argsort(-item_counts(data.user_item), kind="stable")[:most]
    for name in dict.fromkeys(["all", study.chosen] if study.chosen else []):
        model = study.models[name]
        for item in famous:
            one = csr_matrix(([data.scale.hi], ([0], [item])), shape=(1, len(titles)), dtype=np.float32)
            for other, cosine in model.nearest(item, k):
                shared = ", ".join(token for token, _ in model.explain(one, other)[:3])
                rows.append([label(name), titles[item], titles[other], round(cosine, 2), shared])
    return pd.DataFrame(rows, columns=["fields", "item", "nearest", "cosine", "shares most"])
