"""The faithfulness of explanations, drawn: falls of probability, and an event with what was covered (matplotlib)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nufm.data.explanations import Region
from nufm.data.images import VIEWS, ImageEvent
from nufm.display.images import close_up, draw_view, edges, image_limits
from nufm.display.plots import BARS, DPI, FAINT, INK, plain_axes, save

REGION, PATCH = BARS[2], BARS[1]


@dataclass(frozen=True)
class CoveredEvent:
    """An event to show, with what was covered of it.

    Attributes:
        event: as read.
        regions: those cited.
        patch: view -> bool (N,), pixels of a patch of equal charge; a frame is drawn around them.
        text: lines on it: what the model says, how far its probability fell.
    """

    event: ImageEvent
    regions: Sequence[Region]
    patch: Mapping[str, np.ndarray]
    text: Sequence[str]


def draw_faithfulness(
    rows: Mapping[str, Mapping[str, Any]], path: str | Path, title: str = "", shown: CoveredEvent | None = None
) -> Path:
    """Bars of the fall of the predicted class's probability, for regions and for patches of equal charge, with standard
    errors; below, an event with its region and a patch.

    Args:
        rows: what is covered -> numbers of ``nufm.evaluation.faithfulness.compared``; rows without events are left out.
        path: PNG to write.
        title: heading.
        shown: the event; None: bars alone.

    Raises:
        ValueError: no row has events.
    """
    from matplotlib.figure import Figure

    rows = {name: row for name, row in rows.items() if row["events"]}
    if not rows:
        raise ValueError("draw_faithfulness: no region was cited in any event, there is nothing to draw")
    below = 4.25 + 0.2 * len(_lines(shown)) if shown is not None else 0.0
    bars = 1.35 + 0.52 * len(rows)
    width, height = 9.6, bars + 0.5 + below
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.text(0.5, 1 - 0.27 / height, title, ha="center", va="center", fontsize=13, fontweight="bold", color=INK)
    box = (3.0 / width, (below + 0.6) / height, (width - 3.3) / width, (bars - 0.95) / height)
    _draw_bars(figure.add_axes(box), rows)
    if shown is not None:
        limits, window = image_limits(shown.event), close_up(shown.event)
        for column, view in enumerate(VIEWS):
            ax = figure.add_axes(((0.9 + 4.7 * column) / width, (below - 3.55) / height, 3.6 / width, 3.1 / height))
            draw_view(ax, shown.event, view, limits, window)
            _frame(ax, shown, view)
            ax.set_title(f"{view.upper()} view", fontsize=11, color=INK)
        words = "\n".join(_lines(shown))
        figure.text(
            0.08, (below - 4.05) / height, words, ha="left", va="top", fontsize=9.5, color=INK, linespacing=1.35
        )
    return save(figure, path)


def _draw_bars(ax: Any, rows: Mapping[str, Mapping[str, Any]]) -> None:
    place = np.arange(len(rows))[::-1]
    for offset, name, colour, words in (
        (0.19, "fall", REGION, "the region"),
        (-0.19, "patch_fall", PATCH, "patches of equal charge elsewhere"),
    ):
        value = np.array([100 * row[name] for row in rows.values()])
        error = np.array([100 * (row[f"{name}_error"] or 0.0) for row in rows.values()])
        ax.barh(place + offset, value, 0.36, color=colour, label=words, zorder=2)
        ax.errorbar(value, place + offset, xerr=error, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5, zorder=3)
    ax.set_yticks(place, [f"{name}  ({row['events']:,} events)" for name, row in rows.items()], fontsize=9.5)
    ax.set_xlabel("fall of the predicted class's probability (%)", fontsize=10, color=INK)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=9.5, frameon=False)
    plain_axes(ax)
    ax.grid(axis="x", color=FAINT, linewidth=0.8, zorder=0)
    ax.grid(axis="y", visible=False)


def _frame(ax: Any, shown: CoveredEvent, view: str) -> None:
    """Frames of the regions and of the patch, as far as the axes reach."""
    y, x = edges(shown.event, 0), edges(shown.event, 1)
    limits = ax.get_xlim(), ax.get_ylim()
    boxes = []
    for region in shown.regions:
        if region.view == view:
            _, rows, columns = region.slices(shown.event.shape)
            boxes.append((rows.start, rows.stop, columns.start, columns.stop, REGION))
    if view in shown.event.views and shown.patch[view].any():
        row, column = shown.event.views[view].pixel[shown.patch[view]].T
        boxes.append((row.min(), row.max() + 1, column.min(), column.max() + 1, PATCH))
    for bottom, top, left, right, colour in boxes:
        corners = np.clip([x[left], x[right]], *limits[0]), np.clip([y[bottom], y[top]], *limits[1])
        (x0, x1), (y0, y1) = corners
        ax.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linewidth=2.2, clip_on=False, zorder=5)
    ax.set(xlim=limits[0], ylim=limits[1])


def _lines(shown: CoveredEvent | None) -> list[str]:
    return [] if shown is None else [piece for line in shown.text for piece in textwrap.wrap(line, 118)]
