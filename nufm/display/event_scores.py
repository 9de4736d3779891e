"""Pictures of the scores of whole events: ROC curves of classes, reconstructed against true quantities (matplotlib).

Shape legend: B events, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nufm.display.plots import DPI, FAINT, GREY, INK, LINES, save

DOTS = 4000  # events in a panel of dots, the first ones: more would make one blot


def roc_curves(
    score: np.ndarray, target: np.ndarray, classes: Sequence[str], auc: Sequence[float | None], path: str | Path,
    title: str = "",
) -> Path:  # fmt: skip
    """Draw efficiency against the share of other events let through, one line for each class against the rest.

    Args:
        score: float (B, K) of every class.
        target: int (B,) true class.
        classes: K names.
        auc: K areas under the curves, None where there is none.
        path: PNG to write.
        title: heading.

    Raises:
        ValueError: the scores are not those of these classes.
    """
    from matplotlib.figure import Figure

    if score.shape != (len(target), len(classes)) or len(auc) != len(classes):
        raise ValueError(
            f"score has shape {score.shape}, expected {(len(target), len(classes))}, and {len(auc)} areas for "
            f"{len(classes)} classes"
        )
    figure = Figure(figsize=(6.4, 6.6), dpi=DPI, facecolor="white")
    ax = figure.add_axes((0.12, 0.09, 0.85, 0.8))
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.1, label="by chance  50.0")
    for c, (name, area) in enumerate(zip(classes, auc, strict=True)):
        if area is not None:
            x, y = roc_points(score[:, c], target == c)
            ax.plot(x, y, color=LINES[c % len(LINES)], linewidth=1.9, label=f"{name}  {100 * area:.1f}")
    ax.set(xlim=(-0.01, 1), ylim=(0, 1.01))
    ax.set_xlabel("other events let through", fontsize=12, color=INK)
    ax.set_ylabel("events of the class found", fontsize=12, color=INK)
    ax.legend(loc="lower right", fontsize=10.5, frameon=False, title="class, AUC (%)", title_fontsize=10.5)
    _frame(ax)
    _heading(figure, title or "ROC", "each class against the rest")
    return save(figure, path)


def roc_points(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of negatives and of positives above each threshold, from (0, 0) to (1, 1); equal scores are one step."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    found, wrong = np.cumsum(positive[order])[ends], np.cumsum(~positive[order])[ends]
    return np.append(0, wrong / max(wrong[-1], 1)), np.append(0, found / max(found[-1], 1))


def reconstructed(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path, unit: str = "GeV/c", title: str = "",
    notes: Mapping[str, str] | None = None, logarithmic: bool = True, group: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Draw reconstructed against true values, a dot for each event; on the line they are equal.

    Args:
        panels: what it is -> (predicted, true) float (B,) each. Where the axes are logarithmic, events with a value
            that is not above 0 are left out.
        path: PNG to write.
        unit: of the values.
        title: heading.
        notes: what it is -> a line below its name.
        logarithmic: axes.
        group: int (B,) of each event, by which it is coloured, -1 none; of panels with as many events.
        names: of the groups.

    Raises:
        ValueError: a panel with as many predictions as truths is expected.
    """
    from matplotlib.figure import Figure

    n = len(panels)
    width, height = 3.9 * n + 0.4, 4.95 if len(names) else 4.55
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for i, (name, (found, true)) in enumerate(panels.items()):
        if found.shape != true.shape or found.ndim != 1:
            raise ValueError(f"'{name}' has {found.shape} predictions for {true.shape} truths, expected (B,) of both")
        ax = figure.add_axes(((0.75 + 3.9 * i) / width, (height - 4.0) / height, 3.0 / width, 2.75 / height))
        shown = np.isfinite(found) & np.isfinite(true)
        if logarithmic:
            shown &= (found > 0) & (true > 0)
        rows = np.flatnonzero(shown)[:DOTS]
        size = 9 if len(rows) < 1000 else 4
        if group is not None and len(group) == len(true) and len(names):
            for c, label in enumerate(names):
                own = rows[group[rows] == c]
                style = {"color": LINES[c % len(LINES)], "s": size, "alpha": 0.6, "linewidths": 0, "label": label}
                ax.scatter(true[own], found[own], **style)
        else:
            ax.scatter(true[rows], found[rows], color=LINES[0], s=size, alpha=0.5, linewidths=0)
        low, high = _range(np.concatenate([true[rows], found[rows]]), logarithmic)
        ax.plot([low, high], [low, high], color=INK, linewidth=1.0, linestyle="--")
        if logarithmic:
            ax.set(xscale="log", yscale="log")
        ax.set(xlim=(low, high), ylim=(low, high))
        ax.set_xlabel(f"true ({unit})", fontsize=11, color=INK)
        if i == 0:
            ax.set_ylabel(f"reconstructed ({unit})", fontsize=11, color=INK)
        note = (notes or {}).get(name, "")
        ax.set_title(f"{name}\n{note}" if note else name, fontsize=11, color=INK)
        _frame(ax)
        if i == 0 and len(names):
            figure.legend(*ax.get_legend_handles_labels(), loc="lower center", ncols=len(names), fontsize=10,
                          frameon=False, markerscale=2.5, columnspacing=1.2, handletextpad=0.2)  # fmt: skip
    _heading(figure, title or "reconstructed against true", "")
    return save(figure, path)


def _range(values: np.ndarray, logarithmic: bool) -> tuple[float, float]:
    """A range that holds nearly all values: a few wild predictions must not make the others a point."""
    if len(values) == 0:
        return (1.0, 10.0) if logarithmic else (0.0, 1.0)
    low, high = np.quantile(values, (0.002, 0.998))
    if logarithmic:
        return max(low, high * 1e-3) / 1.3, high * 1.3
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _frame(ax) -> None:
    ax.grid(color=FAINT, linewidth=0.7, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _heading(figure, title: str, line: str) -> None:
    height, style = figure.get_figheight(), {"ha": "center", "va": "center", "color": INK}
    figure.text(0.5, 1 - 0.26 / height, title, fontsize=13.5, fontweight="bold", **style)
    figure.text(0.5, 1 - 0.52 / height, line, fontsize=10.5, **style)
