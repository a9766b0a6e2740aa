"""What benchmarks/ measured (see ``benchmarks/measure.py``), as tables to print and to publish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

COLUMNS = {
    "task": "task", "size": "size", "who": "who", "seconds": "seconds", "cpu_seconds": "CPU s",
    "anonymous_mb": "private MB", "mapped_mb": "file MB", "ratio": "x", "cpu_ratio": "x CPU", "same": "same",
}  # fmt: skip
LEGEND = (
    "*x* is how many times as long a peer takes as the first row of the same task and size, *x CPU* the same of CPU "
    "seconds, which say more on a busy machine. *Private* is the peak of anonymous memory of the whole process, "
    "imports included; *file* that of pages of files, which the system can drop. *Same* says whether the answers "
    "agree; what was compared stands below. What takes less than a second is the fastest of up to five runs."
)


def tables(bench: dict[str, Any]) -> Iterator[tuple[str, pd.DataFrame, list[str]]]:
    """Of each benchmark: its name, its rows as text, and remarks on the largest size: what was compared, what lacks."""
    for name, part in pd.DataFrame(bench["rows"]).groupby("benchmark", sort=False):
        shown = part.reindex(columns=list(COLUMNS)).astype(object)
        shown["same"] = [{True: "yes", False: "NO"}.get(same, "") for same in shown["same"]]
        for column in list(COLUMNS)[3:-1]:
            shown[column] = [_digits(value) for value in shown[column]]
        shown["size"] = [f"{row.size_:,} {row.unit}" for row in part.rename(columns={"size": "size_"}).itertuples()]
        last = part.drop_duplicates(["task", "who"], keep="last").reindex(columns=["task", "who", "compared", "note"])
        remarks = [
            f"{row.who} ({row.task}): {'; '.join(text for text in (row.compared, row.note) if isinstance(text, str))}"
            for row in last.dropna(subset=["compared", "note"], how="all").itertuples()
        ]
        remarks += [
            f"CPU seconds grow as {g['who']} ({g['task']}): size^{g['exponent']:.2f}"
            for g in bench["growth"]
            if g["benchmark"] == name
        ]
        yield str(name), shown.rename(columns=COLUMNS), remarks


def _digits(value: Any) -> str:
    """
    >>> _digits(0.00012345), _digits(4.2), _digits(12345.6), _digits(None)
    ('0.000123', '4.2', '12,346', '')
    """
    if value is None or pd.isna(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):.12f}".rstrip("0").rstrip(".")


def machine_sentence(bench: dict[str, Any]) -> str:
    machine = bench["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, {machine['system']}, Python "
        f"{machine['python']}, {packages}; load at the start {machine['load_at_start']}."
    )
