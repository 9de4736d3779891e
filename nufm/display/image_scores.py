"""Pictures of how well events are told apart: efficiency and purity, background rejection (matplotlib).

Shape legend: B events, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nufm.display.event_scores import roc_points
from nufm.display.plots import DPI, FAINT, GREY, INK, LINES, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 1e4  # of the background rejection's axis


def efficiency_purity(confusion: np.ndarray, classes: Sequence[str], path: str | Path, title: str = "") -> Path:
    """Draw what becomes of the events of each class (efficiency), and what the events taken for a class are (purity).

    Args:
        confusion: int (K, K) counts, rows are the truth.
        classes: K names.
        path: PNG to write.
        title: heading.

    Raises:
        ValueError: not a matrix of counts for these classes.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    counts, n = np.asarray(confusion, dtype=np.float64), len(classes)
    if counts.shape != (n, n) or not np.isfinite(counts).all() or (counts.size and counts.min() < 0):
        raise ValueError(f"confusion has shape {counts.shape}, expected counts {(n, n)} for {tuple(classes)}")
    side, left, gap, right, top, bottom = 1.3, 1.5, 1.9, 0.3, 1.15, 0.95
    width, height = left + 2 * side * n + gap + right, top + side * n + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    paper = LinearSegmentedColormap.from_list("paper", ["#f4f6f8", LINES[0]])
    parts = (("efficiency", 1, "per cent of each row: of the true class"),
             ("purity", 0, "per cent of each column: of the predicted class"))  # fmt: skip
    for number, (name, axis, words) in enumerate(parts):
        total = counts.sum(axis, keepdims=True)
        share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
        box = ((left + number * (side * n + gap)) / width, bottom / height, side * n / width, side * n / height)
        ax = figure.add_axes(box)
        ax.imshow(np.nan_to_num(share), cmap=paper, vmin=0, vmax=1)
        for row, column in np.ndindex(n, n):
            value = share[row, column]
            ink = "white" if value > 0.55 else INK
            bold = "bold" if row == column else "normal"
            text = "–" if np.isnan(value) else f"{100 * value:.1f}"
            ax.text(column, row - 0.08, text, ha="center", va="center", fontsize=13, color=ink, fontweight=bold)
            small = {"ha": "center", "va": "center", "fontsize": 9, "color": ink}
            ax.text(column, row + 0.22, f"{int(counts[row, column]):,}", **small)
        ax.set_xticks(range(n), classes, fontsize=11.5)
        ax.set_yticks(range(n), classes, fontsize=11.5)
        ax.set_xlabel("prediction", fontsize=12, color=INK)
        ax.set_ylabel("truth", fontsize=12, color=INK)
        ax.set_title(f"{name}\n{words}", fontsize=11, color=INK)
        ax.tick_params(length=0, colors=INK)
        for edge in ax.spines.values():
            edge.set_visible(False)
    total = counts.sum()
    line = f"{100 * np.trace(counts) / total:.1f} % of {int(total):,} events right" if total else "no events"
    heading = {"ha": "center", "va": "center", "color": INK}
    figure.text(0.5, 1 - 0.27 / height, title or "efficiency and purity", fontsize=14, fontweight="bold", **heading)
    figure.text(0.5, 1 - 0.53 / height, line, fontsize=10.5, **heading)
    return save(figure, path)


def rejection_points(score: np.ndarray, signal: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background rejection against signal efficiency, for each threshold on a score.

    Args:
        score: float (B,), the larger the more like the signal.
        signal, background: bool (B,); other events do not count.

    Returns:
        Efficiency ε_S and rejection 1 / ε_B, float64 (n,) each, where any background is left: a threshold that lets
        none through has no finite rejection.
    """
    used = signal | background
    if not signal.any() or not background.any():
        return np.zeros(0), np.zeros(0)
    let_through, found = roc_points(score[used], signal[used])
    kept = let_through > 0
    return found[kept], 1 / let_through[kept]


def rejection_curves(
    score: np.ndarray, target: np.ndarray, classes: Sequence[str], path: str | Path, title: str = ""
) -> Path:
    """Draw background rejection against signal efficiency: a panel for each class as signal, a line for each other one
    as background and one for all of them together.

    Args:
        score: float (B, K) of every class.
        target: int (B,) true class.
        classes: K names.
        path: PNG to write.
        title: heading.

    Raises:
        ValueError: the scores are not those of these classes.
    """
    from matplotlib.figure import Figure

    if score.shape != (len(target), len(classes)):
        raise ValueError(f"score has shape {score.shape}, expected {(len(target), len(classes))}")
    n = len(classes)
    width, height = 4.3 * n + 0.5, 5.0
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for c, name in enumerate(classes):
        ax = figure.add_axes(((0.8 + 4.3 * c) / width, 0.13, 3.4 / width, 0.65))
        by_chance = np.linspace(0.01, 1, 100)
        ax.plot(by_chance, 1 / by_chance, color=GREY, linestyle="--", linewidth=1.1, label="by chance")
        top = 10.0
        others = [(classes[o], target == o, LINES[o % len(LINES)], 1.6) for o in range(n) if o != c]
        for words, background, colour, line in [*others, ("all others", (target != c) & (target >= 0), INK, 2.0)]:
            x, y = rejection_points(score[:, c], target == c, background)
            if len(x):
                ax.plot(x, y, color=colour, linewidth=line, drawstyle="steps-pre", label=words)
                top = max(top, float(y.max()))
        ax.set(yscale="log", xlim=(0, 1.01), ylim=(1, min(top * 1.5, MOST)))
        ax.set_title(f"signal {name}", fontsize=12, color=INK)
        ax.set_xlabel("signal efficiency", fontsize=11.5, color=INK)
        if c == 0:
            ax.set_ylabel("background rejection, 1 / efficiency", fontsize=11.5, color=INK)
        ax.legend(fontsize=9.5, frameon=False, loc="lower left", title="background", title_fontsize=9.5)
        ax.grid(color=FAINT, linewidth=0.7)
        ax.tick_params(colors=INK)
        for edge in ("top", "right"):
            ax.spines[edge].set_visible(False)
    heading = {"ha": "center", "va": "center", "color": INK}
    figure.text(0.5, 1 - 0.27 / height, title or "background rejection", fontsize=14, fontweight="bold", **heading)
    figure.text(0.5, 1 - 0.55 / height, "by the probability of the signal's class", fontsize=10.5, **heading)
    return save(figure, path)


def compared_roc(
    scores: Mapping[str, np.ndarray], target: np.ndarray, classes: Sequence[str], path: str | Path, title: str = ""
) -> Path:
    """Draw the ROC curves of several models: a panel for each class against the rest, a line for each model.

    Args:
        scores: model -> float (B, K) of every class.
        target: int (B,) true class.
        classes: K names.
        path: PNG to write.
        title: heading.

    Raises:
        ValueError: the scores are not those of these classes and events.
    """

    def curves(ax: Axes, c: int, draw: Callable[[str, np.ndarray, np.ndarray], None]) -> None:
        ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.1)
        for model, score in scores.items():
            draw(model, *roc_points(score[:, c], target == c))
        ax.set(xlim=(-0.01, 1), ylim=(0, 1.01))
        ax.set_xlabel("other events let through", fontsize=11.5, color=INK)
        ax.set_title(f"{classes[c]} against the rest", fontsize=12, color=INK)

    return _compared(scores, target, classes, path, title or "ROC", "events of the class found", curves)


def compared_rejection(
    scores: Mapping[str, np.ndarray], target: np.ndarray, classes: Sequence[str], path: str | Path, title: str = ""
) -> Path:
    """Draw background rejection against signal efficiency of several models: a panel for each class against the rest,
    a line for each model. Arguments and errors are those of :func:`compared_roc`."""

    def curves(ax: Axes, c: int, draw: Callable[[str, np.ndarray, np.ndarray], None]) -> None:
        by_chance = np.linspace(0.01, 1, 100)
        ax.plot(by_chance, 1 / by_chance, color=GREY, linestyle="--", linewidth=1.1)
        for model, score in scores.items():
            draw(model, *rejection_points(score[:, c], target == c, (target != c) & (target >= 0)))
        ax.set(yscale="log", xlim=(0, 1.01), ylim=(1, max(10.0, min(len(target), MOST))))
        ax.set_xlabel("signal efficiency", fontsize=11.5, color=INK)
        ax.set_title(f"signal {classes[c]}", fontsize=12, color=INK)

    words = "background rejection, 1 / efficiency"
    return _compared(scores, target, classes, path, title or "background rejection", words, curves)


def _compared(
    scores: Mapping[str, np.ndarray], target: np.ndarray, classes: Sequence[str], path: str | Path, title: str,
    up: str, curves: Callable[[Axes, int, Callable[[str, np.ndarray, np.ndarray], None]], None],
) -> Path:  # fmt: skip
    from matplotlib.figure import Figure

    for model, score in scores.items():
        if score.shape != (len(target), len(classes)):
            raise ValueError(f"{model}: score has shape {score.shape}, expected {(len(target), len(classes))}")
    n, palette = len(classes), (*LINES, INK, "#882255")
    width, height = 4.3 * n + 0.5, 5.3
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    colours = {model: palette[i % len(palette)] for i, model in enumerate(scores)}
    for c in range(n):
        ax = figure.add_axes(((0.8 + 4.3 * c) / width, 0.21, 3.4 / width, 0.62))

        def draw(model: str, x: np.ndarray, y: np.ndarray, ax: Axes = ax) -> None:
            ax.plot(x, y, color=colours[model], linewidth=1.7, label=model)

        curves(ax, c, draw)
        if c == 0:
            ax.set_ylabel(up, fontsize=11.5, color=INK)
            lines, labels = ax.get_legend_handles_labels()
        ax.grid(color=FAINT, linewidth=0.7)
        ax.tick_params(colors=INK)
        for edge in ("top", "right"):
            ax.spines[edge].set_visible(False)
    figure.legend(lines, labels, loc="lower center", ncols=min(len(labels), 6), fontsize=10.5, frameon=False)
    heading = {"ha": "center", "va": "center", "color": INK}
    figure.text(0.5, 1 - 0.3 / height, title, fontsize=14, fontweight="bold", **heading)
    return save(figure, path)
