"""Several scores against the number of labelled events, side by side: one panel each (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nufm.display.plots import DPI, FAINT, INK, LINES, plain_axes, save

Lines = Mapping[str, Mapping[float, Sequence[float]]]


def budget_curves(panels: Mapping[str, tuple[Lines, bool]], path: str | Path, title: str = "") -> Path:
    """Draw scores against the number of labelled events, one panel for each score, one line for each method.

    A line joins the means over seeds, dots are the seeds.

    Args:
        panels: score -> (method -> number of labelled events (> 0) -> score of each seed, whether more is better).
        path: PNG to write.
        title: heading.

    Raises:
        ValueError: a number of events is not positive, or has no score.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(3.5 * max(1, len(panels)), 4.1), dpi=DPI, facecolor="white")
    axes = np.atleast_1d(figure.subplots(1, max(1, len(panels))))
    names = list(dict.fromkeys(name for lines, _ in panels.values() for name in lines))
    colour = {name: LINES[i % len(LINES)] for i, name in enumerate(names)}
    budgets = sorted({n for lines, _ in panels.values() for points in lines.values() for n in points})
    for ax, (score, (lines, more)) in zip(axes, panels.items(), strict=False):
        for name, points in lines.items():
            for n, values in points.items():
                if n <= 0 or len(values) == 0:
                    raise ValueError(
                        f"budget_curves: '{name}' has {len(values)} scores at {n:g} events; expected some, above 0"
                    )
            x = sorted(points)
            ax.plot(x, [np.mean(points[n]) for n in x], color=colour[name], linewidth=2, marker="o", label=name)
            for n in x:
                ax.scatter([n] * len(points[n]), points[n], s=12, color=colour[name], alpha=0.45, zorder=1)
        ax.set_title(f"{score}  {'↑' if more else '↓'} better", fontsize=11, color=INK)
        ax.set_xscale("log")
        ax.set_xticks(budgets)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("labelled events", fontsize=10, color=INK)
        ax.grid(color=FAINT, linewidth=0.7)
        plain_axes(ax)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, y=0.985)
    if names:
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="upper center", bbox_to_anchor=(0.5, 0.94), ncols=len(names), frameon=False)
    figure.subplots_adjust(left=0.055, right=0.99, bottom=0.14, top=0.78, wspace=0.24)
    return save(figure, path)
