"""One theme, one colour and marker per model, and the few plots the notebooks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from IPython import get_ipython
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PETROFF = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]
_PETROFF += ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]
_LOOKS = {
    # model: (colour, marker); colour is always backed by the marker or a label
    "popularity": (_PETROFF[3], "s"),
    "content": (_PETROFF[1], "^"),
    "svd": (_PETROFF[2], "v"),
    "knn": (_PETROFF[4], "D"),
    "item_knn": (_PETROFF[5], "P"),
    "ease": (_PETROFF[0], "o"),
    "mixture": (_PETROFF[9], "*"),
    "blend": (_PETROFF[6], "X"),
    "latent_traits": (_PETROFF[7], "h"),
    "bayesian_fm": (_PETROFF[8], "p"),
    "ladder": (_PETROFF[6], "X"),
    "neighbours": ("#1b3a57", "<"),
    "item mean + offset": ("#5f7f2f", ">"),
    "user mean": ("#c08497", "d"),
}
_SHARED = ("stage", "protocol", "model", "variant", "segment", "metric", "n")  # of metric rows, said once if constant
_PLAIN = ("year",)  # whole numbers that are names
ASIDE = "aside"  # key of the metadata that marks an output of :func:`aside`


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
    """A table as notebooks show it: numbers as their column needs, one header row, and nothing that repeats.

    In rows with an interval, value, ci_low and ci_high become one column, and what all rows share is said once above.

    >>> "0.910 [0.895, 0.926]" in table_html(pd.DataFrame({"value": [0.91], "ci_low": [0.895], "ci_high": [0.9256]}))
    True
    """
    shown = frame if frame.index.name is None and frame.index.nlevels == 1 else frame.reset_index()
    counts_rows = shown is not frame or pd.api.types.is_integer_dtype(frame.index)
    shown, shared = shown.rename_axis(columns=None), ""
    if {"ci_low", "ci_high"} <= set(shown):
        shown, shared = _with_intervals(shown)
    shown = shown.loc[:, [not empty for empty in shown.isin(["", None]).where(shown.notna(), True).all()]]
    text = pd.DataFrame({place: _told(shown.iloc[:, place]) for place in range(shown.shape[1])}, index=shown.index)
    text.columns = shown.columns
    with pd.option_context("display.max_colwidth", None):
        html = text.to_html(index=not counts_rows, border=0, max_rows=60, na_rep="")
    return html.replace("<thead>", f"<caption>{escape(shared)}</caption><thead>", 1) if shared else html


def _with_intervals(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Rows whose interval stands in the column of its value, and in words what all of them share."""
    value = "value" if "value" in rows else rows.columns[list(rows.columns).index("ci_low") - 1]
    half = ((rows["ci_high"] - rows["ci_low"]) / 2).replace(0, np.nan).median()
    places = int(np.clip(np.ceil(-np.log10(half)) + 1, 0, 4)) if half > 0 else 4
    told = [
        f"{v:z,.{places}f} [{low:z,.{places}f}, {high:z,.{places}f}]" if high > low else _text(v)
        for v, low, high in zip(rows[value], rows["ci_low"], rows["ci_high"], strict=True)
    ]
    merged = rows.assign(**{value: told}).drop(columns=["ci_low", "ci_high"])
    constant = [name for name in _SHARED if name in merged and len(merged) > 1 and len(set(merged[name])) == 1]
    shared = ", ".join(f"{name} {_told(merged[name]).iloc[0]}" for name in constant)
    return merged.drop(columns=constant), shared and f"All rows: {shared}"


def _told(column: pd.Series) -> pd.Series:
    """The cells of a column as text: as many decimals as the column needs, four at most.

    >>> _told(pd.Series([0.044, -0.0])).tolist(), _told(pd.Series([1234, 5])).tolist()
    (['0.044', '0.000'], ['1,234', '5'])
    >>> _told(pd.Series([0.123456, 2.0])).tolist(), _told(pd.Series([1995], name="year")).tolist()
    (['0.1235', '2.0000'], ['1995'])
    """
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) or column.name in _PLAIN:
        return column.map(_text)
    numbers = column.dropna().astype(float)
    sizes = numbers.abs()[numbers != 0]
    if len(sizes) and sizes.min() < 1 and sizes.max() >= 100:  # a column of unlike quantities
        return column.map(_text)
    most = 4 if numbers.abs().max() < 100 else 1
    places = next((p for p in range(most) if np.allclose(numbers, numbers.round(p), rtol=0, atol=1e-9)), most)
    return column.map(lambda v: "" if pd.isna(v) else f"{v:.0e}" if 0 < abs(v) < 5e-5 else f"{v:z,.{places}f}")


def _text(cell: Any) -> str:
    """
    >>> _text("a"), _text(None), _text(0.5), _text(100000), _text(["x", "y"])
    ('a', '', '0.5000', '100,000', 'x, y')
    """
    if isinstance(cell, float):
        return "" if np.isnan(cell) else _number(cell)
    if isinstance(cell, (list, tuple, np.ndarray)):
        return ", ".join(map(str, cell))
    if isinstance(cell, int) and not isinstance(cell, bool) and abs(cell) >= 10_000:
        return f"{cell:,}"
    return "" if cell is None or cell is pd.NA else str(cell)


def _number(value: float) -> str:
    """
    >>> _number(0.910094), _number(2.4e-7), _number(0.0), _number(1234.5), _number(943.0)
    ('0.9101', '2.4e-07', '0.0000', '1,234.5', '943')
    """
    if abs(value) >= 10 and value == int(value):
        return f"{value:,.0f}"
    if 0 < abs(value) < 5e-5:
        return f"{value:.1e}"
    return f"{value:z.4f}" if abs(value) < 100 else f"{value:,.1f}"


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


def aside(text: str) -> None:
    """Say why a section has nothing to show in this run; of a section with nothing else the site keeps this only."""
    display(Markdown(text), metadata={ASIDE: True})


def counted(n: int, noun: str) -> str:
    """
    >>> counted(1, "day"), counted(7, "day")
    ('1 day', '7 days')
    """
    return f"{n:,} {noun}{'s' * (n != 1)}"


def lines(
    ax: Axes, frame: pd.DataFrame, x: str, *, by: str, value: str = "value", low: str = "ci_low", high: str = "ci_high",
    styled: bool = True,
) -> None:  # fmt: skip
    """One line with its band per level of ``by``; ``styled`` uses the models' own colours and markers."""
    for name, part in frame.groupby(by, sort=False):
        part = part.sort_values(x)
        style = look(str(name)) if styled else {"marker": "o"}
        (line,) = ax.plot(part[x], part[value], label=str(name), markersize=4.5, linewidth=1.6, **style)
        ax.fill_between(part[x], part[low], part[high], color=line.get_color(), alpha=0.15, linewidth=0)


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


def differences(
    ax: Axes, frame: pd.DataFrame, x: str, *, by: str, margin: float | None = None, styled: bool = False
) -> None:
    """:func:`lines` at evenly spaced places for the values of x; with a margin also 0 and the margin below it."""
    ticks = sorted(frame[x].unique())
    lines(ax, frame.assign(place=frame[x].map(ticks.index)), "place", by=by, styled=styled)
    ax.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
    if not styled:
        for line, marker in zip(ax.get_lines(), "osD^vP", strict=False):
            line.set_marker(marker)
    if margin is not None:
        ax.axhline(0, color="0.4", linewidth=0.9)
        ax.axhline(-margin, color="0.4", linewidth=0.9, linestyle="--")


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
