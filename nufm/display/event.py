"""Event displays as pictures (matplotlib).

Shape legend: N points (voxels). Lengths are in cm from the centre of the detector, energies in MeV.

Figures are made without pyplot, so drawing leaves no global state and needs no screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nufm.data.event import Event
from nufm.display.colours import Panel, PCAColours, energy_colours, event_panels, pca_colours, rgb_panel
from nufm.display.geometry import Geometry, geometry, headline, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PCAColours", "Panel", "compare_panels", "draw_event", "event_panels", "pca_colours"]

INK, FAINT = "#222222", "#e4e4e4"
DPI = 150
VIEW = (18.0, -58.0)  # elevation and azimuth of the 3D views in degrees
PLANES = {0: (1, 2), 1: (0, 2), 2: (0, 1)}  # axis that a projection drops -> the axes across and up


def draw_event(
    event: Event,
    path: str | Path,
    colours: Mapping[str, np.ndarray] | None = None,
    panels: Sequence[Panel] | None = None,
    simulated: bool | None = None,
    title: str | None = None,
) -> Path:
    """Draw an event: energy in 3D and in three projections, then every other colouring in 3D and in one
    projection.

    Where points hide each other in a projection, the most energetic or the rarest class is in front.

    Args:
        event: as read; its lattice is drawn, not the coordinates that transforms set.
        path: PNG (or any format that matplotlib writes).
        colours: further colourings, title -> (N, 3) in [0, 1], such as ``pca_colours(features)``.
        panels: what to draw; by default energy, the truth that the event carries, and ``colours``.
        simulated: add "simulated by nufm" to the title; None asks the event's file.
        title: first line of the title, the event's name by default.

    Returns:
        The path.
    """
    space = geometry(event)
    panels = list(event_panels(event, colours) if panels is None else panels)
    name, line = title or short_name(event), headline(event, simulated)
    if len(event) == 0 or not panels:
        return save(draw_nothing(Sheet([4], name, line)), path)
    first, others = panels[0], panels[1:]
    sheet = Sheet([4, len(others), len(others)] if others else [4], name, line, panels)
    draw_3d(sheet.axes(0, 0, projection="3d"), first, space)
    for column, drop in enumerate((1, 0, 2), start=1):
        ax = sheet.axes(0, column)
        draw_2d(ax, first, event, space, drop)
        if column == 3:
            colour_bar(ax, first)
    for column, panel in enumerate(others):
        draw_3d(sheet.axes(1, column, projection="3d"), panel, space)
        ax = sheet.axes(2, column)
        draw_2d(ax, panel, event, space, thinnest(event, space))
        colour_bar(ax, panel)
        draw_legend(ax, panel)
    return save(sheet.figure, path)


def compare_panels(
    event: Event,
    colours: Mapping[str, np.ndarray],
    path: str | Path,
    simulated: bool | None = None,
    title: str | None = None,
) -> Path:
    """The same event under several colourings side by side, each in 3D and in the projection that hides
    least.

    Args:
        event: as read, or with the points that the colours belong to selected.
        colours: title -> (N, 3) in [0, 1], e.g. features of the untrained and of the pretrained encoder.
        path: PNG to write.
        simulated: add "simulated by nufm" to the title; None asks the event's file.
        title: first line of the title, the event's name by default.
    """
    space = geometry(event)
    panels = [rgb_panel(event, name, rgb) for name, rgb in colours.items()]
    name = title or f"{short_name(event)}: first three principal components of the features"
    sheet = Sheet([max(len(panels), 2)] * 2, name, headline(event, simulated), cell=5.4)
    if len(event) == 0 or not panels:
        return save(draw_nothing(sheet), path)
    for column, panel in enumerate(panels):
        draw_3d(sheet.axes(0, column, projection="3d"), panel, space)
        draw_2d(sheet.axes(1, column), panel, event, space, thinnest(event, space))
    return save(sheet.figure, path)


class Sheet:
    """A figure whose rows are cut into different numbers of columns, with a heading above and legends
    below."""

    def __init__(
        self,
        columns: Sequence[int],
        title: str,
        line: str,
        panels: Sequence[Panel] = (),
        cell: float = 4.2,
        named_rows: bool = False,
    ) -> None:
        from matplotlib.figure import Figure

        lines = max((-(-len(p.names) // 2) for p in panels), default=0)
        width, below = cell * max(columns) + 0.6, 0.75 + 0.2 * lines
        above = 1.75 if named_rows else 1.25  # each row has a line of text above its titles
        height = 0.98 * cell * len(columns) + above - 0.25 + below
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        heading = {"ha": "center", "va": "center", "color": INK}
        self.figure.text(0.5, 1 - 0.32 / height, title, fontsize=17, fontweight="bold", **heading)
        self.figure.text(0.5, 1 - 0.68 / height, line, fontsize=13, **heading)
        rows = self.figure.add_gridspec(
            len(columns), 1, left=0.75 / width, right=1 - 1.0 / width, top=1 - above / height, bottom=below
            / height, hspace=0.42 if named_rows else 0.26,
        )  # fmt: skip
        self.cells = [
            rows[i].subgridspec(1, n, wspace=0.34 if n > 3 else 0.26) for i, n in enumerate(columns)
        ]

    def axes(self, row: int, column: int, **options: object) -> Axes:
        return self.figure.add_subplot(self.cells[row][0, column], **options)


def thinnest(event: Event, space: Geometry) -> int:
    """The axis along which the event is smallest: the projection along it hides least."""
    low, high = space.core(event.energy)
    return int(np.argmin(high - low))


def draw_nothing(sheet: Sheet) -> Figure:
    """Says that the event is empty."""
    grey = "#777777"
    sheet.figure.text(
        0.5, 0.45, "this event has no voxels", ha="center", va="center", fontsize=24, color=grey
    )
    return sheet.figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def drawing_order(panel: Panel) -> np.ndarray:
    """Order of drawing, last on top: rising energy, or falling frequency of the class."""
    front = panel.values if panel.front is None else panel.front
    if front is not None:
        return np.argsort(front, kind="stable")
    if panel.code is not None:
        count = np.bincount(panel.code)[panel.code]
        return np.lexsort((-count, ~points_behind(panel)))
    return np.arange(len(panel.rgb))


def points_behind(panel: Panel) -> np.ndarray:
    """bool (N,) points that are drawn small and behind the others."""
    if panel.code is None:
        return np.zeros(len(panel.rgb), dtype=bool)
    return np.isin(panel.code, panel.behind)


def draw_3d(ax: Axes, panel: Panel, space: Geometry) -> None:
    """Points in 3D at true proportions, z up."""
    size, behind = np.clip(9000 / len(panel.rgb), 1.2, 9.0), points_behind(panel)
    style = {"marker": "o", "linewidths": 0, "depthshade": False, "rasterized": True}
    if behind.any():
        ax.computed_zorder = False  # by depth, what is in front would hide what matters
        ax.scatter(*space.position[behind].T, c=panel.rgb[behind], s=0.5 * size, zorder=1, **style)
        size = 2.0 * size
    ax.scatter(*space.position[~behind].T, c=panel.rgb[~behind], s=size, zorder=2, **style)
    ax.set(
        xlim=(space.low[0], space.high[0]),
        ylim=(space.low[1], space.high[1]),
        zlim=(space.low[2], space.high[2]),
    )
    ax.set_box_aspect(space.high - space.low, zoom=1.12)
    ax.view_init(*VIEW)
    ax.set_title(panel.title, fontsize=13, fontweight="bold", color=INK, y=1.04)
    for axis, index in ((ax.xaxis, 0), (ax.yaxis, 1), (ax.zaxis, 2)):
        axis.set_pane_color((1, 1, 1, 0))
        axis.line.set_color("#888888")
        axis._axinfo["grid"].update(color=FAINT, linewidth=0.6)
        axis.set_major_locator(_ticks(4))
        axis.set_tick_params(labelsize=8, pad=-1, colors=INK)
        axis.set_label_text(space.label(index), fontsize=9, color=INK)
        axis.labelpad = -3


def draw_2d(ax: Axes, panel: Panel, event: Event, space: Geometry, drop: int) -> None:
    """Projection along axis ``drop`` of the region with nearly all energy, scales equal, voxels square."""
    across, up = PLANES[drop]
    voxel = frame_2d(ax, space, drop, *space.core(event.energy))
    order = drawing_order(panel)
    x, y = space.position[order][:, [across, up]].T
    # A voxel at its true size, or as large as a dot must be to be seen.
    points = max(voxel, 1.7)
    # Single mistakes among a thousand points must be seen.
    size = np.where(points_behind(panel)[order] | (not panel.behind), points, max(points, 2.6)) ** 2
    ax.scatter(x, y, c=panel.rgb[order], s=size, marker="s", linewidths=0, rasterized=True)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    outside = int(((x < left) | (x > right) | (y < bottom) | (y > top)).sum())
    if outside:
        note = f"{outside:,} voxels outside view"
        ax.text(0.98, 0.98, note, transform=ax.transAxes, ha="right", va="top", fontsize=9, color="#777777")


def frame_2d(ax: Axes, space: Geometry, drop: int, low: np.ndarray, high: np.ndarray) -> float:
    """Axes for a projection along axis ``drop`` of the region from ``low`` to ``high`` (3,) in cm, scales equal.

    Returns:
        Edge of a voxel in the picture, in points (1/72 inch).
    """
    across, up = PLANES[drop]
    box = ax.get_position()
    width, height = box.width * ax.figure.get_figwidth(), box.height * ax.figure.get_figheight()
    cm_per_inch = max((high[across] - low[across]) / width, (high[up] - low[up]) / height)
    for axis, inches, limits in ((across, width, ax.set_xlim), (up, height, ax.set_ylim)):
        middle, half = (low[axis] + high[axis]) / 2, cm_per_inch * inches / 2
        limits(middle - half, middle + half)
    ax.set_xlabel(space.label(across), fontsize=10.5, color=INK)
    ax.set_ylabel(space.label(up), fontsize=10.5, color=INK, labelpad=1)
    ax.tick_params(labelsize=9, colors=INK)
    ax.xaxis.set_major_locator(_ticks(5))
    ax.yaxis.set_major_locator(_ticks(5))
    ax.grid(color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ax.spines.values():
        side.set_color("#888888")
    return space.pitch[across] / cm_per_inch * 72


def _ticks(n: int):
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(n, steps=[1, 2, 5, 10])


def colour_bar(ax: Axes, panel: Panel, width: float = 0.05, gap: float = 0.05) -> None:
    """Colour bar beside an axes, if the panel shows a quantity; ``width`` and ``gap`` in widths of the axes."""
    if panel.values is None:
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    mappable = ScalarMappable(LogNorm(*panel.limits), energy_colours())
    bar = ax.figure.colorbar(mappable, cax=ax.inset_axes([1 + gap, 0.0, width, 1.0]), extend="both")
    bar.set_label(panel.label, fontsize=11, color=INK)
    narrow = panel.limits[1] < 300 * panel.limits[0]  # else the numbers would be on top of each other
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=10, colors=INK)


def draw_legend(ax: Axes, panel: Panel) -> None:
    """Names of the classes below an axes, if the panel shows classes."""
    if panel.code is None or not panel.names:
        return
    from matplotlib.lines import Line2D

    style = {
        "linestyle": "none",
        "marker": "s",
        "markersize": 8,
        "markeredgecolor": "#888888",
        "markeredgewidth": 0.4,
    }
    marks = [
        Line2D([], [], markerfacecolor=c, label=n, **style)
        for n, c in zip(panel.names, panel.colours, strict=True)
    ]
    ax.legend(
        handles=marks, loc="upper left", bbox_to_anchor=(-0.16, -0.125), ncols=2, fontsize=10, frameon=False,
        columnspacing=0.8, handletextpad=0.1, labelspacing=0.25,
    )  # fmt: skip
