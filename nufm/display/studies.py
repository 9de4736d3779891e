"""Pictures of studies of pixel-map classifiers (matplotlib): scores against the strength of a harm, scores of a few
cases, reliability before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nufm.display.plots import BARS, DPI, FAINT, GREY, INK, LINES, plain_axes, save

Points = Sequence[tuple[float, float | None, float | None]]  # value, score in 0 … 1, its error


@dataclass(frozen=True)
class Curves:
    """A panel of :func:`study_curves`.

    Attributes:
        title: of the panel.
        axis: what the values are, with their unit.
        lines: name -> its points, in any order; a score that is not defined is left out.
        reference: score that a constant answer has, drawn as a dashed line; None: no line.
        doubling: the axis of values is logarithmic to the base of 2.
    """

    title: str
    axis: str
    lines: Mapping[str, Points]
    reference: float | None = None
    doubling: bool = False


def study_curves(
    panels: Sequence[Curves],
    path: str | Path,
    title: str = "",
    reference: str = "always the largest class",
    columns: int = 4,
) -> Path:
    """Draw scores in per cent against the strength of a harm, a line for each kind or model, with one standard error.

    Args:
        panels: at least one; a line has the same colour in all of them.
        path: PNG to write.
        title: heading.
        reference: what the dashed line is.
        columns: panels in a row, at most.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    names = list(dict.fromkeys(name for p in panels for name in p.lines))
    if not names:
        raise ValueError("study_curves: no lines to draw, expected at least one with a point")
    colour = {name: LINES[i % len(LINES)] for i, name in enumerate(names)}
    wide = min(len(panels), columns)
    tall = -(-len(panels) // wide)
    per_line = max(1, int(wide * 3.7 // (0.55 + 0.095 * max(map(len, names)))))
    above = 0.5 + 0.26 * -(-(len(names) + 1) // per_line)
    width, height = 3.7 * wide + 0.3, 3.35 * tall + above
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for index, panel in enumerate(panels):
        row, column = divmod(index, wide)
        corner = (0.72 + 3.7 * column) / width, (height - above - 3.35 * row - 2.72) / height
        ax = figure.add_axes((*corner, 3.0 / width, 2.4 / height))
        for name, points in panel.lines.items():
            known = sorted((x, y, e or 0.0) for x, y, e in points if y is not None)
            if not known:
                continue
            x, y, error = np.array(known).T
            style = {"color": colour[name], "linewidth": 1.8, "marker": "o", "markersize": 4, "capsize": 2.5}
            ax.errorbar(x, 100 * y, 100 * error, elinewidth=1.0, **style)
        if panel.reference is not None:
            ax.axhline(100 * panel.reference, color=GREY, linestyle="--", linewidth=1.1, zorder=1)
        if panel.doubling:
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted({x for points in panel.lines.values() for x, *_ in points}))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_title(panel.title, fontsize=11, color=INK)
        ax.set_xlabel(panel.axis, fontsize=9.5, color=INK)
        if column == 0:
            ax.set_ylabel("%", fontsize=10, color=INK)
        ax.grid(color=FAINT, linewidth=0.7)
        plain_axes(ax)
    handles = [_handle(colour[name], "-") for name in names]
    labels = list(names)
    if any(p.reference is not None for p in panels):
        handles.append(_handle(GREY, "--"))
        labels.append(reference)
    figure.text(0.5, 1 - 0.24 / height, title, ha="center", fontsize=13, fontweight="bold", color=INK)
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 1 - 0.36 / height), ncols=per_line,
                  frameon=False, fontsize=10)  # fmt: skip
    return save(figure, path)


def _handle(colour: str, line: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=line, linewidth=2, marker="o" if line == "-" else None, markersize=4)


@dataclass(frozen=True)
class Bars:
    """A panel of :func:`study_bars`.

    Attributes:
        title: of the panel.
        values: score in 0 … 1 of each case; None is not defined.
        errors: of them, None none.
        reference: score of a constant answer, drawn as a dashed line; None: no line.
    """

    title: str
    values: Sequence[float | None]
    errors: Sequence[float | None] = field(default=())
    reference: float | None = None


def study_bars(cases: Sequence[str], panels: Sequence[Bars], path: str | Path, title: str = "") -> Path:
    """Draw scores in per cent of a few cases side by side, a panel for each score.

    Args:
        cases: names, from the top; a line break is kept.
        panels: at least one.
        path: PNG to write.
        title: heading.

    Raises:
        ValueError: a panel with another number of scores than there are cases, or no case.
    """
    from matplotlib.figure import Figure

    if not cases or not panels:
        raise ValueError(f"study_bars: {len(cases)} cases and {len(panels)} panels, expected at least one of each")
    lines = max(len(part) for case in cases for part in case.split("\n"))
    left, each = 0.4 + 0.085 * lines, 3.3
    width, height = left + each * len(panels) + 0.2, 1.55 + 0.46 * len(cases)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for i, panel in enumerate(panels):
        if len(panel.values) != len(cases) or len(panel.errors) not in (0, len(cases)):
            raise ValueError(
                f"study_bars: '{panel.title}' has {len(panel.values)} scores and {len(panel.errors)} errors for "
                f"{len(cases)} cases"
            )
        box = ((left + each * i) / width, 0.5 / height, (each - 0.35) / width, (height - 1.35) / height)
        ax = figure.add_axes(box)
        value = np.array([np.nan if v is None else 100 * v for v in panel.values])
        error = np.array([0.0 if e is None else 100 * e for e in panel.errors or [None] * len(cases)])
        y = np.arange(len(cases))
        ax.barh(y, np.nan_to_num(value), 0.68, color=[BARS[0], *[BARS[1]] * (len(cases) - 1)], zorder=2)
        if panel.errors:
            style = {"fmt": "none", "ecolor": INK, "elinewidth": 1.2, "capsize": 3, "zorder": 3}
            some = error > 0
            ax.errorbar(np.nan_to_num(value)[some], y[some], xerr=error[some], **style)
        for row, (v, e) in enumerate(zip(value, error, strict=True)):
            words = "–" if np.isnan(v) else f"{v:.1f}"
            ax.text(np.nan_to_num(v) + e + 1.5, row, words, va="center", fontsize=9.5, color=INK)
        if panel.reference is not None:
            ax.axvline(100 * panel.reference, color=GREY, linestyle="--", linewidth=1.2, zorder=4)
        ax.set_yticks(y, cases if i == 0 else [""] * len(cases), fontsize=10)
        ax.set_ylim(len(cases) - 0.5, -0.5)
        ax.set_xlim(0, max(100.0, float(np.nanmax(value + error, initial=0))) + 12)
        ax.set_xticks(range(0, 101, 25))
        ax.set_title(panel.title, fontsize=11, color=INK)
        ax.grid(axis="x", color=FAINT, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(colors=INK, length=0)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
    figure.text(0.5, 1 - 0.3 / height, title, ha="center", fontsize=13, fontweight="bold", color=INK)
    if any(p.reference is not None for p in panels):
        figure.text(0.99, 0.06 / height, "dashed: always the largest class", ha="right", fontsize=9, color=GREY)
    return save(figure, path)


def reliability_pair(sides: Mapping[str, Mapping], path: str | Path, title: str = "") -> Path:
    """Draw how often events of a confidence are right, and how many have it, side by side for a model before and after.

    Args:
        sides: words -> ``bin_edges`` (M+1,), ``bin_count``, ``bin_confidence`` and ``bin_accuracy`` (M,), with None or
            NaN in empty bins, and ``expected_error``.
        path: PNG to write.
        title: heading.
    """
    from matplotlib.figure import Figure

    width, height = 4.3 * len(sides) + 0.3, 5.2
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    most = max(max(s["bin_count"]) for s in sides.values())
    for i, (words, s) in enumerate(sides.items()):
        left = (0.75 + 4.3 * i) / width
        ax = figure.add_axes((left, 1.55 / height, 3.4 / width, 2.75 / height))
        edges, count = np.asarray(s["bin_edges"], dtype=float), np.asarray(s["bin_count"], dtype=float)
        right = np.array([np.nan if v is None else v for v in s["bin_accuracy"]], dtype=float)
        sure = np.array([np.nan if v is None else v for v in s["bin_confidence"]], dtype=float)
        filled = count > 0
        middle, step = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        ax.bar(middle[filled], right[filled], step[filled] * 0.94, color=BARS[1], zorder=2, label="right")
        error = np.sqrt(right * (1 - right) / np.maximum(count, 1))
        style = {"fmt": "o", "color": INK, "markersize": 3.2, "elinewidth": 1, "zorder": 4}
        ax.errorbar(sure[filled], right[filled], error[filled], **style)
        ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, zorder=3)
        ax.set(xlim=(0, 1), ylim=(0, 1.02))
        ax.set_title(f"{words}: ECE {100 * s['expected_error']:.1f} %", fontsize=11.5, color=INK)
        if i == 0:
            ax.set_ylabel("share that is right", fontsize=11, color=INK)
        ax.tick_params(labelbottom=False)
        plain_axes(ax)
        below = figure.add_axes((left, 0.55 / height, 3.4 / width, 0.8 / height))
        below.bar(middle, count, step * 0.94, color=BARS[0], zorder=2)
        below.set(xlim=(0, 1), ylim=(0, 1.08 * most))
        below.set_xlabel("confidence", fontsize=11, color=INK)
        if i == 0:
            below.set_ylabel("events", fontsize=11, color=INK)
        plain_axes(below)
    figure.text(0.5, 1 - 0.32 / height, title, ha="center", fontsize=13, fontweight="bold", color=INK)
    return save(figure, path)
