"""Pictures of scores: confusion matrices, reliability, scores by class and by number of labels (matplotlib).

Shape legend: C classes, M bins of confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nufm.display.plots import BARS, DPI, FAINT, GREY, INK, LINES, plain_axes, save

BLUE, RED = "#0072b2", "#d55e00"


def confusion_matrix(
    confusion: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    title: str = "",
    noun: str = "voxels",
) -> Path:
    """Draw a confusion matrix: in each cell the share of its row in per cent and the count.

    Args:
        confusion: int (C, C) counts, rows are the truth, or (C, C+1) with predictions of no class in the last
            column, as ``PanopticScores`` has it.
        classes: C names.
        path: PNG to write.
        title: heading.
        noun: what is counted.

    Raises:
        ValueError: not a matrix of counts for these classes.
    """
    from matplotlib.figure import Figure

    counts, n = np.asarray(confusion), len(classes)
    if counts.ndim != 2 or counts.shape not in ((n, n), (n, n + 1)):
        raise ValueError(f"confusion has shape {counts.shape}, expected {(n, n)} or {(n, n + 1)} for {tuple(classes)}")
    if counts.size and (not np.isfinite(counts).all() or counts.min() < 0):
        raise ValueError("confusion holds a negative or undefined entry, expected counts, rows the truth")
    columns = [*classes, "no class"][: counts.shape[1]]
    true = counts.sum(1)
    share = np.divide(counts, true[:, None], out=np.zeros(counts.shape), where=true[:, None] > 0)
    side = 1.05 if n > 3 else 1.35
    left, right, top, bottom = 1.8, 0.35, 1.05, 1.0
    width, height = side * len(columns), side * n
    size = (left + width + right, top + height + bottom)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    ax = figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))
    ax.imshow(share, cmap=_paper_to(BLUE), vmin=0, vmax=1, aspect="auto")
    for row in range(n):
        for column in range(len(columns)):
            value = share[row, column]
            ink = "white" if value > 0.55 else INK
            if true[row] == 0:
                words = "–"
            elif counts[row, column] == 0:
                words, ink = "0", "#9a9a9a"
            else:
                words = f"{_percent(value)} %"
                ax.text(column, row + 0.2, _count(counts[row, column]), ha="center", va="center", fontsize=9, color=ink)
            at = row - 0.1 if words.endswith("%") else row
            bold = "bold" if row == column else "normal"
            ax.text(column, at, words, ha="center", va="center", fontsize=12.5, color=ink, fontweight=bold)
    ax.set_xticks(range(len(columns)), columns, fontsize=11.5)
    ax.set_yticks(range(n), [f"{name}\n{_count(c)}" for name, c in zip(classes, true, strict=True)], fontsize=11.5)
    ax.set_xlabel("prediction", fontsize=12.5, color=INK, labelpad=6)
    ax.set_ylabel(f"truth ({noun})", fontsize=12.5, color=INK)
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="both", length=0, colors=INK)
    for edge in ax.spines.values():
        edge.set_visible(False)
    total = counts.sum()
    right_share = f"{100 * np.trace(counts[:, :n]) / total:.2f} % of {_count(total)} {noun} right" if total else "empty"
    _heading(figure, title or "confusion matrix", f"{right_share}; per cent of each row")
    return save(figure, path)


def reliability_diagram(scores: Mapping, path: str | Path, title: str = "", noun: str = "voxels") -> Path:
    """Draw how often predictions of each confidence are right, and how many there are.

    Above the diagonal the model is too cautious, below it too sure.

    Args:
        scores: of :class:`nufm.metrics.Calibration`: ``bin_edges`` (M+1,), ``bin_count``, ``bin_confidence`` and
            ``bin_accuracy`` (M,), ``expected_error``; optionally ``maximum_error``, ``brier`` and ``nll``.
        path: PNG to write.
        title: heading.
        noun: what is counted.

    Raises:
        ValueError: the bins do not fit together.
    """
    from matplotlib.figure import Figure

    edges, count, confidence, accuracy = (
        np.asarray(scores[name], dtype=np.float64)
        for name in ("bin_edges", "bin_count", "bin_confidence", "bin_accuracy")
    )
    if not len(edges) - 1 == len(count) == len(confidence) == len(accuracy):
        raise ValueError(
            f"bins: {len(edges)} edges for {len(count)} counts, {len(confidence)} confidences and {len(accuracy)} "
            "accuracies, expected one edge more than bins"
        )
    figure = Figure(figsize=(6.0, 7.4), dpi=DPI, facecolor="white")
    upper = figure.add_axes((0.14, 0.33, 0.82, 0.55))
    lower = figure.add_axes((0.14, 0.09, 0.82, 0.19))
    filled, width, middle = count > 0, np.diff(edges), (edges[1:] + edges[:-1]) / 2
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="calibrated", zorder=1)
    style = {"color": BLUE, "alpha": 0.28, "label": "right in the bin", "zorder": 2}
    upper.bar(middle[filled], accuracy[filled], 0.94 * width[filled], **style)
    upper.vlines(
        confidence[filled], accuracy[filled], confidence[filled], color=RED, linewidth=2.2, label="gap", zorder=3
    )
    upper.plot(
        confidence[filled], accuracy[filled], color=BLUE, marker="o", markersize=5, linewidth=1.6, zorder=4,
        label="right, at the mean confidence",
    )  # fmt: skip
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.set_ylabel(f"fraction of {noun} right", fontsize=12, color=INK)
    upper.legend(fontsize=10, frameon=False, loc="upper left")
    lower.bar(middle, count, 0.94 * width, color=GREY, zorder=2)
    lower.set(xlim=(0, 1))
    if filled.any():
        lower.set_yscale("log")
        lower.set_ylim(0.5 if count[filled].min() < 10 else count[filled].min() / 3, 3 * count.max())
    lower.set_ylabel(noun, fontsize=12, color=INK)
    lower.set_xlabel("confidence", fontsize=12, color=INK)
    for ax in (upper, lower):
        plain_axes(ax)
    names = {"expected_error": "expected error", "maximum_error": "maximum", "brier": "Brier", "nll": "NLL"}
    values = {words: float(scores[name]) for name, words in names.items() if name in scores}
    said = ", ".join(f"{words} {value:.3f}" for words, value in values.items() if np.isfinite(value))
    _heading(figure, title or "reliability", said or "no points")
    return save(figure, path)


def per_class_bars(
    scores: Mapping[str, Sequence[float]],
    classes: Sequence[str],
    path: str | Path,
    title: str = "",
    line: str = "",
) -> Path:
    """Draw scores of each class and their mean beside each other, such as precision, recall and F1.

    Args:
        scores: name -> (C,) values in [0, 1], NaN where not defined; the mean leaves NaN out.
        classes: C names.
        path: PNG to write.
        title, line: first and second line of the heading.

    Raises:
        ValueError: a score has not one value for each class.
    """
    from matplotlib.figure import Figure

    groups = [*classes, "mean"]
    figure = Figure(figsize=(1.35 * len(groups) + 1.6, 4.8), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0.09, 0.12, 0.89, 0.62))
    width = 0.8 / max(len(scores), 1)
    palette = (BARS[1], BARS[5], BARS[2], BARS[3], BARS[4])
    for i, (name, values) in enumerate(scores.items()):
        values = 100 * np.asarray(values, dtype=np.float64)
        if values.shape != (len(classes),):
            raise ValueError(f"score '{name}' has shape {values.shape}, expected {(len(classes),)}: one for each class")
        known = np.isfinite(values)
        heights = np.append(values, values[known].mean() if known.any() else np.nan)
        x = np.arange(len(groups)) + (i - (len(scores) - 1) / 2) * width
        ax.bar(x, np.nan_to_num(heights), 0.92 * width, color=palette[i % len(palette)], label=name, zorder=2)
        for at, value in zip(x, heights, strict=True):
            words = f"{value:.0f}" if np.isfinite(value) else "–"
            ax.text(at, np.nan_to_num(value) + 1, words, ha="center", va="bottom", fontsize=9, color=INK)
    ax.axvline(len(classes) - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(groups)), groups, fontsize=12)
    ax.get_xticklabels()[-1].set_fontweight("bold")
    ax.set(xlim=(-0.5, len(groups) - 0.5), ylim=(0, 108), yticks=range(0, 101, 20))
    ax.set_ylabel("score (%)", fontsize=12, color=INK)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(scores) or 1, fontsize=11, frameon=False)
    plain_axes(ax)
    _heading(figure, title or "scores by class", line)
    return save(figure, path)


def score_curves(
    lines: Mapping[str, Mapping[float, Sequence[float]]],
    path: str | Path,
    published: Mapping[str, Mapping[float, float]] | None = None,
    title: str = "",
    line: str = "",
    score: str = "macro-F1",
    published_note: str = "published",
) -> Path:
    """Draw a score against the number of labelled events, one line for each method.

    A line joins the means over seeds, dots are the seeds and the band is their standard deviation (n - 1). What
    is published is dashed, in the colour of the method of the same name.

    Args:
        lines: method -> number of labelled events (> 0) -> score in [0, 1] of each seed.
        path: PNG to write.
        published: method -> number of labelled events -> score in [0, 1]; drawn dashed.
        title, line: first and second line of the heading.
        score: name of the score.
        published_note: what the dashed lines are.

    Raises:
        ValueError: a number of events is not positive, or a budget has no score.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    published = published or {}
    figure = Figure(figsize=(9.4, 5.9), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0.085, 0.115, 0.645, 0.75))
    names = [*lines, *(name for name in published if name not in lines)]
    palette = (*LINES, "#332288", "#999933", "#882255")
    colour = {name: palette[i % len(palette)] for i, name in enumerate(names)}
    budgets: list[float] = []
    for name, points in lines.items():
        x = np.array(sorted(points), dtype=np.float64)
        empty = [n for n in x if len(points[n]) == 0]
        if (len(x) and x[0] <= 0) or empty:
            where = f"no score at {empty[0]:g} events" if empty else f"a budget of {x[0]:g} events"
            raise ValueError(f"score_curves: '{name}' has {where}; expected numbers above 0, each with a score")
        budgets += x.tolist()
        seeds = [100 * np.asarray(points[n], dtype=np.float64) for n in x]
        mean = np.array([s.mean() for s in seeds])
        spread = np.array([s.std(ddof=1) if len(s) > 1 else 0.0 for s in seeds])
        if (spread > 0).any():
            ax.fill_between(x, mean - spread, mean + spread, color=colour[name], alpha=0.16, linewidth=0, zorder=2)
        ax.plot(x, mean, color=colour[name], linewidth=2.2, marker="o", markersize=5.5, zorder=4)
        for n, values in zip(x, seeds, strict=True):
            if len(values) > 1:
                dots = {"color": "white", "edgecolors": colour[name], "linewidths": 0.8, "zorder": 5}
                ax.scatter(np.full(len(values), n), values, s=11, **dots)
    for name, points in published.items():
        x = np.array(sorted(points), dtype=np.float64)
        if len(x) and x[0] <= 0:
            raise ValueError(f"score_curves: published '{name}' has a budget of {x[0]:g} events, expected above 0")
        budgets += x.tolist()
        style = {"linestyle": (0, (4, 2)), "linewidth": 1.5, "marker": "D", "markersize": 4, "alpha": 0.75}
        ax.plot(x, [100 * points[n] for n in x], color=colour[name], zorder=3, **style)
    if budgets:
        ax.set_xscale("log")
        ax.set_xlim(min(budgets) / 1.5, max(budgets) * 1.5)
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if max(budgets) > 200 * min(budgets) else (1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.text(0.5, 0.5, "no scores", transform=ax.transAxes, ha="center", fontsize=16, color="#777777")
    ax.set_xlabel("labelled events", fontsize=12, color=INK)
    ax.set_ylabel(f"{score} (%)", fontsize=12, color=INK)
    ax.grid(axis="x", color=FAINT, linewidth=0.7)
    plain_axes(ax)
    marks = [
        Line2D([], [], color=colour[n], linewidth=2.4, marker="o" if n in lines else "D", markersize=5, label=n,
               linestyle="-" if n in lines else (0, (4, 2)))
        for n in names
    ]  # fmt: skip
    if lines:
        marks.append(Line2D([], [], color=INK, linewidth=2, marker="o", markersize=5, label="here: mean, dots seeds"))
    if published:
        style = {"linestyle": (0, (4, 2)), "linewidth": 1.5, "marker": "D", "markersize": 4}
        marks.append(Line2D([], [], color=INK, label=published_note, **style))
    if marks:
        figure.legend(handles=marks, loc="upper left", bbox_to_anchor=(0.74, 0.87), fontsize=10.5, frameon=False)
    _heading(figure, title or "label efficiency", line)
    return save(figure, path)


def _heading(figure, title: str, line: str) -> None:
    height = figure.get_figheight()
    style = {"ha": "center", "va": "center", "color": INK}
    figure.text(0.5, 1 - 0.28 / height, title, fontsize=14, fontweight="bold", **style)
    figure.text(0.5, 1 - 0.58 / height, line, fontsize=10.5, **style)


def _paper_to(colour: str):
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("paper", ["#f4f6f8", colour])


def _percent(value: float) -> str:
    """Two digits that matter near 0 and 1, where classes are rare or nearly perfect."""
    value = 100 * value
    return f"{value:.1f}" if value >= 0.1 else "<0.1"


def _count(value: float) -> str:
    """1,234,567 as 1.23 M: a cell has no room for more."""
    value = int(value)
    for size, unit in ((10**9, "G"), (10**6, "M")):
        if value >= size:
            return f"{value / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{value:,}"
