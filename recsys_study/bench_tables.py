"""What benchmarks/ measured (``benchmarks/measure.py`` describes the file), as tables to print and to publish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

COLUMNS = {
    "task": "task", "size": "size", "who": "who", "seconds": "seconds", "cpu_seconds": "CPU s",
    "anonymous_mb": "private MB", "mapped_mb": "file MB", "ratio": "x", "cpu_ratio": "x CPU", "same": "same",
}  # fmt: skip
TITLES = {
    "grid": "SVD grid search", "knn": "KNN grid search", "neighbours": "Neighbours of one profile (V1)",
    "latent_traits": "Latent traits (V2)", "evaluate": "Ranking metrics", "ingest": "Reading ratings",
    "pipeline": "The whole chain",
}  # fmt: skip


def summary(bench: dict[str, Any]) -> pd.DataFrame:
    """A row a benchmark: our part and the fastest peer at the largest size at which both ran.

    Of several tasks the one counts whose answers were compared.
    """
    rows = pd.DataFrame(bench["rows"]).reindex(
        columns=["benchmark", "task", "size", "unit", "who", "peer", "seconds", "same"]
    )
    lines = []
    for name, part in rows.dropna(subset=["seconds"]).groupby("benchmark", sort=False):
        peers = part[part["peer"].eq(True)]
        peers = peers[peers["same"].notna()] if peers["same"].notna().any() else peers
        for peer in peers.sort_values(["size", "seconds"], ascending=[False, True], kind="stable").head(1).itertuples():
            alike = part[(part["task"] == peer.task) & (part["size"] == peer.size) & part["peer"].eq(False)]
            same = {"True": "yes", "False": "NO"}.get(str(peer.same), "not compared")
            lines.append([
                TITLES.get(str(name), str(name)), f"{peer.task}, {peer.size:,} {peer.unit}", alike["who"].iloc[0],
                _digits(alike["seconds"].iloc[0]), peer.who, _digits(peer.seconds), same,
            ])  # fmt: skip
    return pd.DataFrame(
        lines, columns=["what", "task", "ours", "seconds", "fastest peer", "its seconds", "same answers"]
    )


def tables(bench: dict[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and rows of each benchmark, as text; nothing where nothing was measured or compared."""
    for name, part in pd.DataFrame(bench["rows"]).groupby("benchmark", sort=False):
        shown = part.reindex(columns=list(COLUMNS)).astype(object)
        shown["same"] = [{True: "yes", False: "NO"}.get(same, "") for same in shown["same"]]
        shown["size"] = [f"{size:,} {unit}" for size, unit in zip(part["size"], part["unit"], strict=True)]
        for column in list(COLUMNS)[3:-1]:
            shown[column] = [_digits(value) for value in shown[column]]
        shown.loc[part["seconds"].isna(), "seconds"] = "not installed"
        yield str(name), shown.rename(columns=COLUMNS)


def _digits(value: Any) -> str:
    """
    >>> _digits(0.00012345), _digits(4.2), _digits(12345.6), _digits(None)
    ('0.000123', '4.2', '12,346', '')
    """
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):.12f}".rstrip("0").rstrip(".")
