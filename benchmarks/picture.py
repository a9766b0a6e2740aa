"""How cost grows with the input, as a figure."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from recsys_study import figures


def growth_figure(bench: dict[str, Any]) -> Figure:
    """CPU seconds by size on logarithmic axes, a panel a task, a colour and marker a contender, exponents fitted."""
    figures.theme()
    grown: dict[tuple[str, str], dict[str, float]] = {}
    for g in bench["growth"]:
        grown.setdefault((g["benchmark"], g["task"]), {})[g["who"]] = g["exponent"]
    rows = pd.DataFrame(bench["rows"])
    height = (len(grown) + 1) // 2
    figure, axes = plt.subplots(height, 2, figsize=(10, 3.3 * height), squeeze=False)
    for ax, ((name, task), exponents) in zip(axes.flat, grown.items(), strict=False):
        part = rows[(rows["benchmark"] == name) & (rows["task"] == task)]
        for (who, exponent), marker in zip(exponents.items(), "osD^vP", strict=False):
            points = part[part["who"] == who]
            ax.loglog(points["size"], points["cpu_seconds"], marker=marker, label=f"{who}: $n^{{{exponent:.2f}}}$")
        low, high = ax.get_ylim()
        middle = (low * high) ** 0.5
        low, high = min(low, middle / 10**0.5), max(high, middle * 10**0.5)  # a decade at least: noise must look small
        ax.set(title=f"{name}: {task}", xlabel=str(part["unit"].iloc[0]), ylabel="CPU seconds")
        ax.set_ylim(low, high * (high / low) ** (0.16 * len(exponents)))  # room for the legend
        sizes = sorted(part["size"].unique())
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_locator(LogLocator(numticks=8))
        ax.legend(loc="upper left", fontsize=8)
    for ax in axes.flat[len(grown) :]:
        ax.set_visible(False)
    return figure
