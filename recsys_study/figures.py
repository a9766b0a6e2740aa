"""One theme, one colour and marker per model, tables as notebooks show them, and the few plots the notebooks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recsys_study.findings import MODELS, significant

_PETROFF = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]
_PETROFF += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]
_LOOKS = {  # model: (colour, marker); colour is always backed by the marker or a label
    "popularity": (_PETROFF[3], "s"), "content": (_PETROFF[1], "^"), "svd": (_PETROFF[2], "v"),
    "knn": (_PETROFF[4], "D"), "item_knn": (_PETROFF[5], "P"), "ease": (_PETROFF[0], "o"),
    "mixture": (_PETROFF[9], "*"), "blend": (_PETROFF[6], "X"), "latent_traits": (_PETROFF[7], "h"),
    "bayesian_fm": (_PETROFF[8], "p"), "ladder": (_PETROFF[6], "X"), "neighbours": ("#1b3a57", "<"),
    "item mean + offset": ("#5f7f2f", ">"), "user mean": ("#c08497", "d"),
}  # fmt: skip
_SHARED = ("stage", "protocol", "model", "variant", "segment", "metric", "n")  # of metric rows, shown once if constant
_PLAIN = ("year",)  # whole numbers that are names
_ROWS = 60  # of a table that are shown
_TABLE = Path(__file__).with_name("templates") / "table.html.j2"


def theme() -> None:
    """Apply the house theme: light grid, no top/right spines, sizes legible in print, tables by :func:`table_html`."""
    if (shell := get_ipython()) is not None:
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, table_html)
    mpl.rcParams.update(
        {
            "figure.dpi": 110, "savefig.dpi": 160, "figure.figsize": (7.2, 4.0), "figure.constrained_layout.use": True,
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
            "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 11, "axes.labelsize": 10,
            "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.frameon": False, "legend.fontsize": 9,
            "axes.prop_cycle": cycler(color=_PETROFF), "image.cmap": "cividis",
            "svg.hashsalt": "recsys", "font.family": "DejaVu Sans",
        }
    )  # fmt: skip


def table_html(frame: pd.DataFrame) -> str:
    """A table as notebooks show it: numbers as their column needs, text to the left, one header row, no repetition.

    In rows with an interval, value, ci_low and ci_high become one column; what all rows share is the caption.

    >>> "0.910 [0.895, 0.926]" in table_html(pd.DataFrame({"value": [0.91], "ci_low": [0.895], "ci_high": [0.9256]}))
    True
    """
    numbered = pd.api.types.is_integer_dtype(frame.index) and frame.index.name is None
    shown = frame if numbered else frame.reset_index().rename(columns={"index": ""})
    captions = [f"The first {_ROWS} of {len(frame):,} rows."] if len(frame) > _ROWS else []
    if {"ci_low", "ci_high"} <= set(shown):
        shown, shared = _with_intervals(shown)
        captions += [f"All rows: {shared}"] if shared else []
    shown = shown.loc[:, [not empty for empty in shown.isin(["", None]).where(shown.notna(), True).all()]]
    cells = [_cells(shown.iloc[:_ROWS, place]) for place in range(shown.shape[1])]
    columns = [
        {"name": name, "text": not all(cell[:1] in "+-0123456789" for cell in column)}
        for name, column in zip(shown.columns, cells, strict=True)
    ]
    template = jinja2.Template(_TABLE.read_text(encoding="utf-8"), autoescape=True, trim_blocks=True)
    rows = list(zip(*cells, strict=True))
    return str(template.render(caption=" ".join(captions), columns=columns, rows=rows))


def _with_intervals(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Rows whose interval is in the column of its value, and in words what all of them share."""
    value = "value" if "value" in rows else rows.columns[list(rows.columns).index("ci_low") - 1]
    half = ((rows["ci_high"] - rows["ci_low"]) / 2).replace(0, np.nan).median()
    places = int(np.clip(np.ceil(-np.log10(half)) + 1, 0, 4)) if half > 0 else 4
    texts = [
        f"{v:z,.{places}f} [{low:z,.{places}f}, {high:z,.{places}f}]" if high > low else _text(v)
        for v, low, high in zip(rows[value], rows["ci_low"], rows["ci_high"], strict=True)
    ]
    merged = rows.assign(**{value: texts}).drop(columns=["ci_low", "ci_high"])
    constant = [name for name in _SHARED if name in merged and len(merged) > 1 and len(set(merged[name])) == 1]
    shared = ", ".join(f"{name} {_text(merged[name].iloc[0])}" for name in constant)
    return merged.drop(columns=constant), shared


def _cells(column: pd.Series) -> list[str]:
    """The cells of a column as text: four digits of the largest, whole numbers whole; of unlike sizes four of each.

    >>> _cells(pd.Series([0.044, -0.0])), _cells(pd.Series([1234, 5])), _cells(pd.Series([943, 0.063]))
    (['0.0440', '0.0000'], ['1,234', '5'], ['943', '0.063'])
    """
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) or column.name in _PLAIN:
        return [_text(cell) for cell in column]
    sizes = column[column.notna() & (column != 0)].abs().astype(float)
    if len(sizes) and (sizes.min() < 1e-4 or sizes.min() < 1 <= sizes.max() / 100):
        return [significant(cell, 4) for cell in column]
    whole = sizes.eq(sizes.round()).all()
    places = 0 if whole else int(np.clip(3 - np.floor(np.log10(sizes.max())), 0, 4))
    return ["" if pd.isna(cell) else f"{cell:z,.{places}f}" for cell in column]


def _text(cell: Any) -> str:
    """
    >>> _text("a"), _text(None), _text(0.5), _text(1995), _text(["x", "y"])
    ('a', '', '0.5', '1995', 'x, y')
    """
    if isinstance(cell, (list, tuple, np.ndarray)):
        return ", ".join(map(str, cell))
    if isinstance(cell, float) or (isinstance(cell, int) and cell >= 10_000):
        return significant(cell, 4)
    return "" if cell is None or cell is pd.NA else str(cell)


def look(model: str) -> dict[str, Any]:
    """Colour and marker of a model, the same in every figure."""
    colour, marker = _LOOKS.get(model, (_PETROFF[8], "."))
    return {"color": colour, "marker": marker}


def show(figure: Figure, caption: str, stem: Path | None) -> None:
    """Display a figure and its caption; with a stem also save stem.png and stem.svg."""
    if stem is not None:
        figure.savefig(stem.with_suffix(".png"), metadata={"Software": None})
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
    display(figure)
    plt.close(figure)
    markdown(f"*{caption}*")


def markdown(text: str) -> None:
    """Show a paragraph computed from the data."""
    display(Markdown(text))


def dodged(
    ax: Axes, frame: pd.DataFrame, x: str, *, by: str, order: Sequence[str], width: float,
    looks: Mapping[str, dict[str, Any]] | None = None,
) -> None:  # fmt: skip
    """A line with error bars per level of ``by``, side by side within ``width`` so that no interval hides another.

    The place of a level in ``order`` sets its offset and, unless ``looks`` has them, its colour and marker, so panels
    that lack a level still agree.
    """
    for name, part in frame.groupby(by, sort=False):
        place = order.index(str(name))
        shift = (place - (len(order) - 1) / 2) * width / len(order)
        style = {"color": _PETROFF[place % len(_PETROFF)], "marker": "osD^vP*X"[place % 8]}
        ax.errorbar(
            part[x] + shift, part["value"], [part["value"] - part["ci_low"], part["ci_high"] - part["value"]],
            label=str(name), markersize=4.5, linewidth=1.2, **(style | dict((looks or {}).get(str(name), {}))),
        )  # fmt: skip


def intervals(ax: Axes, frame: pd.DataFrame, *, label: str, value: str = "value", low: str = "ci_low",
              high: str = "ci_high", model: str | None = None) -> None:  # fmt: skip
    """Horizontal dots with intervals, first row on top; ``model`` names the column that sets colour and marker."""
    for row, (_, line) in enumerate(frame.iterrows()):
        style = look(str(line[model])) if model else {"color": _PETROFF[0], "marker": "o"}
        ax.errorbar(
            line[value], row, xerr=[[line[value] - line[low]], [line[high] - line[value]]], capsize=3, linestyle="none",
            markersize=6, **style,
        )  # fmt: skip
    ax.set_yticks(range(len(frame)), frame[label].astype(str))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)


def models_figure(models: pd.DataFrame) -> Figure:
    """Models under the two tracks, best first: a panel for rating error and one for ranking."""
    tracks = [rows for _, rows in models.groupby(["protocol", "metric"], sort=False)]
    heights = [len(rows) + 1 for rows in tracks]
    figure, axes = plt.subplots(len(tracks), 1, figsize=(7.2, 1 + 0.32 * sum(heights)), height_ratios=heights)
    for ax, rows in zip(np.atleast_1d(axes), tracks, strict=True):
        metric, protocol = rows.iloc[0][["metric", "protocol"]]
        ordered = rows.assign(name=rows["model"].map(MODELS)).sort_values("value", ascending=metric == "rmse")
        intervals(ax, ordered, label="name", model="model")
        ax.margins(y=0.15)
        ax.set_title(f"{metric} ({protocol}), {'lower' if metric == 'rmse' else 'higher'} is better")
    return figure
