"""What benchmarks/ measured (``benchmarks/measure.py`` describes the file), as tables to print and to publish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from recsys_study.findings import significant

COLUMNS = {
    "task": "task", "size": "size", "who": "who", "seconds": "seconds", "cpu_seconds": "CPU s",
    "anonymous_mb": "private MB", "mapped_mb": "file MB", "ratio": "x", "cpu_ratio": "x CPU", "same": "same",
}  # fmt: skip
TITLES = {
    "grid": "SVD grid search", "knn": "KNN grid search", "neighbours": "Neighbours of one profile (user KNN)",
    "latent_traits": "Variational matrix factorization", "evaluate": "Ranking metrics", "ingest": "Reading ratings",
    "pipeline": "The whole chain",
}  # fmt: skip
SUMMARY = ["what", "task", "ours", "seconds", "fastest peer", "its seconds", "same answers"]


def summary(bench: dict[str, Any]) -> pd.DataFrame:
    """One row per benchmark: our part and the fastest peer at the largest size at which both ran.

    Tasks whose answers were compared come first.
    """
    columns = ["benchmark", "task", "size", "unit", "who", "peer", "seconds", "same"]
    rows = pd.DataFrame(bench["rows"]).reindex(columns=columns).dropna(subset="seconds")
    peers = rows[rows["peer"].eq(True)].assign(compared=lambda peer: peer["same"].notna())
    order = {"compared": False, "size": False, "seconds": True}
    peers = peers.sort_values(list(order), ascending=list(order.values()), kind="stable").drop_duplicates("benchmark")
    ours = rows[rows["peer"].eq(False)].drop_duplicates(["benchmark", "task", "size"]).drop(columns=["unit", "same"])
    both = ours.merge(peers, on=["benchmark", "task", "size"], suffixes=("", " peer"))
    both["task"] = [f"{row.task}, {row.size:,} {row.unit}" for row in both.itertuples(index=False)]
    for seconds in ("seconds", "seconds peer"):
        both[seconds] = both[seconds].map(significant)
    both["what"] = both["benchmark"].map(lambda name: TITLES.get(name, name))
    both["same"] = both["same"].map(_same).replace("", "not compared")
    return both[["what", "task", "who", "seconds", "who peer", "seconds peer", "same"]].set_axis(SUMMARY, axis=1)


def tables(bench: dict[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and rows of each benchmark, as text; nothing where nothing was measured or compared."""
    for name, part in pd.DataFrame(bench["rows"]).groupby("benchmark", sort=False):
        shown = part.reindex(columns=list(COLUMNS)).astype(object)
        shown["same"] = [_same(same) for same in shown["same"]]
        shown["size"] = [f"{size:,} {unit}" for size, unit in zip(part["size"], part["unit"], strict=True)]
        for column in list(COLUMNS)[3:-1]:
            shown[column] = [significant(value) for value in shown[column]]
        shown.loc[part["seconds"].isna(), "seconds"] = "not installed"
        yield str(name), shown.rename(columns=COLUMNS)


def _same(same: Any) -> str:
    return {True: "yes", False: "NO"}.get(same, "")
