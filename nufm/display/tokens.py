"""Pictures of volumetric tokens: which points of an event belong together, and which belong to none.

Shape legend: N points (voxels), T tokens, P slots (points in tokens). Lengths are in cm from the detector's centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nufm.data.tokens import EventTokens
from nufm.display.colours import INSTANCE_COLOURS, Panel, rgb_of
from nufm.display.event import INK, PLANES, Sheet, draw_3d, draw_nothing, frame_2d, save, thinnest
from nufm.display.geometry import Geometry, geometry, headline, position_cm, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = INSTANCE_COLOURS[:8]
NOT_KEPT, MISSED = "#c4c4c4", "#6e6e6e"
CLOSE_UP = 5.0  # radii of a token from the middle of the close-up to its sides


def draw_tokens(
    tokens: EventTokens, path: str | Path, simulated: bool | None = None, title: str | None = None
) -> Path:
    """Draw an event with its points coloured by token: the whole event, and a close-up of its busiest region with the
    balls and their centres.

    Neighbouring tokens have different colours, which mean nothing else; a point of several tokens has the colour of the
    nearest centre. Grey points are in none, and no model of these tokens sees them.

    Args:
        tokens: of the event.
        path: PNG (or any format that matplotlib writes).
        simulated: add "simulated by nufm" to the title; None asks the event's file.
        title: first line of the title, the event's name by default.

    Returns:
        The path.
    """
    event = tokens.event
    sheet = Sheet(
        [3, 3],
        title or f"{short_name(event)}: tokens",
        headline(event, simulated),
        [Panel("", np.zeros((0, 3)), names=("",) * 2)],
        cell=5.0,
        named_rows=True,
    )
    if len(event) == 0:
        return save(draw_nothing(sheet), path)
    space, panel, colour = geometry(event), token_panel(tokens), token_colours(tokens)
    drop = thinnest(event, space)
    draw_3d(sheet.axes(0, 0, projection="3d"), panel, space)
    whole = sheet.axes(0, 1)
    voxel = frame_2d(whole, space, drop, *space.core(event.energy))
    draw_dots(whole, space.position, panel.rgb, drop, voxel)
    third_line(sheet, f"{token_text(tokens, space)}   ·   {coverage_text(tokens)}")
    histogram(sheet.axes(0, 2), tokens)
    centre = position_cm(event, tokens.centre)
    low, high = busiest(space.position, centre, CLOSE_UP * tokens.radius * space.pitch)
    draw_outline(whole, low, high, drop)
    shown = inside_box(centre, low, high)
    near = np.flatnonzero(inside_box(space.position, low, high))
    near = near[np.argsort(tokens.times[near] > 0, kind="stable")]  # what is in no token behind the others
    for column, across in enumerate((1, 0, 2)):
        ax = sheet.axes(1, column)
        voxel = frame_2d(ax, space, across, low, high)
        draw_dots(ax, space.position[near], panel.rgb[near], across, voxel)
        draw_balls(ax, centre[shown], tokens.radius * space.pitch, [COLOURS[c] for c in colour[shown]], across)
        draw_centres(ax, centre[shown], across)
        if column == 0:
            row_name(ax, close_up_text(low, high, len(near), int(shown.sum())))
    _figure_legend(sheet, tokens)
    return save(sheet.figure, path)


def token_panel(tokens: EventTokens) -> Panel:
    """Points coloured by the token with the nearest centre among those they are in; grey in none."""
    owner = nearest_token(tokens)
    table = np.array([rgb_of(c) for c in (*COLOURS, NOT_KEPT, MISSED)])
    code = np.where(tokens.in_ball, len(COLOURS), len(COLOURS) + 1)
    code[owner >= 0] = token_colours(tokens)[owner[owner >= 0]]
    return Panel("tokens", table[code])


def token_hover(tokens: EventTokens) -> list[str]:
    """What is said at each point: its nearest token, and in how many others it is."""
    counts = tokens.counts
    lines = []
    for owner, times, inside in zip(nearest_token(tokens), tokens.times, tokens.in_ball, strict=True):
        if owner < 0:
            lines.append(f"<br>in {'a ball, but not in its token' if inside else 'no token'}")
        else:
            others = f", and in {times - 1} more" if times > 1 else ""
            lines.append(f"<br>token {owner} of {counts[owner]} points{others}")
    return lines


def nearest_token(tokens: EventTokens) -> np.ndarray:
    """int (N,) the token with the nearest centre among those that each point is in; -1 in none."""
    token, row = tokens.token, tokens.members
    distance = np.square(tokens.event.voxel[row] - tokens.centre[token]).sum(1)
    order = np.lexsort((token, distance, row))
    owner = np.full(len(tokens.event), -1)
    owner[row[order[::-1]]] = token[order[::-1]]  # of equal rows the last assignment, the nearest, stays
    return owner


def token_colours(tokens: EventTokens, reach: float = 3.0) -> np.ndarray:
    """int (T,) numbers of colours: tokens closer than ``reach`` radii differ, where there are colours enough; else a
    token gets the colour whose nearest bearer is farthest.
    """
    centre, limit = tokens.centre, (reach * tokens.radius) ** 2
    colour, used = np.zeros(len(tokens), dtype=int), np.zeros(len(COLOURS))
    for i in range(len(tokens)):
        square = np.square(centre[:i] - centre[i]).sum(1)
        nearest = np.full(len(COLOURS), np.inf)
        np.minimum.at(nearest, colour[:i], square)
        free = nearest > limit
        # Among the free ones the one used least, so that all colours occur.
        colour[i] = np.where(free, used, np.inf).argmin() if free.any() else nearest.argmax()
        used[colour[i]] += 1
    return colour


def busiest(position: np.ndarray, centre: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,), (3,) of the box that holds most points, of those in whose middle a centre is.

    Args:
        position: (N, 3) points.
        centre: (T, 3); without any the points themselves.
        half: (3,) half the edges of the box.
    """
    from sklearn.neighbors import KDTree  # imported here: slow to import

    middles = centre if len(centre) else position
    tree = KDTree(position / half, metric="chebyshev")
    middle = middles[int(np.argmax(tree.query_radius(middles / half, 1.0, count_only=True)))]
    return middle - half, middle + half


def token_text(tokens: EventTokens, space: Geometry) -> str:
    """How many tokens, and how large."""
    text = f"{len(tokens):,} tokens of radius {tokens.radius:.3g} voxels ({tokens.radius * space.pitch[0]:.2g} cm)"
    return text + (f", {tokens.left_out:,} left out" if tokens.left_out else "")


def coverage_text(tokens: EventTokens) -> str:
    """How many points are in tokens."""
    n, times = max(len(tokens.event), 1), tokens.times
    missed, not_kept = int((~tokens.in_ball).sum()), int((tokens.in_ball & (times == 0)).sum())
    text = f"{100 * tokens.in_ball.sum() / n:.1f} % of voxels in a ball ({missed:,} in none)"
    if not_kept:
        text += f", {100 * not_kept / n:.1f} % in a ball but not among its {tokens.max_points} points"
    return text


def close_up_text(low: np.ndarray, high: np.ndarray, n_points: int, n_tokens: int) -> str:
    """Size of the close-up, and what is in it."""
    size = " × ".join(f"{edge:.3g}" for edge in high - low)
    return f"close-up of {size} cm: {n_points:,} voxels, {n_tokens:,} centres"


def inside_box(position: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """bool (N,) points (N, 3) in the box with the corners ``low`` and ``high`` (3,)."""
    return ((position >= low) & (position <= high)).all(1)


def draw_dots(
    ax: Axes, position: np.ndarray, rgb: np.ndarray | str, drop: int, voxel: float, zorder: float = 2, marker: str = "s"
) -> None:
    """Points at the size of a voxel, or as large as a dot must be to be seen."""
    x, y = position[:, PLANES[drop]].T
    ax.scatter(x, y, c=rgb, s=max(voxel, 1.7) ** 2, marker=marker, linewidths=0, rasterized=True, zorder=zorder)


def draw_balls(
    ax: Axes, centre: np.ndarray, radii: np.ndarray, colours: Sequence[str] | str, drop: int, **style: object
) -> None:
    """Outlines of balls."""
    from matplotlib.collections import EllipseCollection

    plane = list(PLANES[drop])
    width, height = 2 * radii[plane]
    style = {"linewidths": 1.2, "alpha": 0.9, "zorder": 3, **style}
    at = centre[:, plane]
    size = np.ones(len(at))
    ax.add_collection(
        EllipseCollection(
            width * size, height * size, 0 * size, units="xy", offsets=at, offset_transform=ax.transData,
            facecolors="none", edgecolors=colours, **style,
        )
    )  # fmt: skip


def draw_centres(ax: Axes, centre: np.ndarray, drop: int) -> None:
    """A cross at each centre (T, 3) in cm."""
    ax.scatter(*centre[:, PLANES[drop]].T, marker="+", s=38, c=INK, linewidths=1.1, zorder=4)


def draw_outline(ax: Axes, low: np.ndarray, high: np.ndarray, drop: int) -> None:
    """Outline of the close-up."""
    from matplotlib.patches import Rectangle

    plane = list(PLANES[drop])
    ax.add_patch(Rectangle(low[plane], *(high - low)[plane], fill=False, edgecolor=INK, linewidth=1.0, zorder=5))


def third_line(sheet: Sheet, text: str) -> None:
    """A line below the two of the heading."""
    figure = sheet.figure
    figure.text(0.5, 1 - 1.0 / figure.get_figheight(), text, ha="center", va="center", fontsize=13, color=INK)


def row_name(ax: Axes, text: str) -> None:
    """What a row of axes shows, above the first of them."""
    ax.text(0, 1.07, text, transform=ax.transAxes, fontsize=12, color=INK, fontweight="bold")


def histogram(ax: Axes, tokens: EventTokens) -> None:
    """Points per token."""
    counts = tokens.counts
    step = max(1, tokens.max_points // 32)
    ax.hist(counts, np.arange(0.5, tokens.max_points + 0.5 + step, step), color="#0072b2")
    ax.set_xlabel("points in a token", fontsize=10.5, color=INK)
    ax.set_ylabel("tokens", fontsize=10.5, color=INK)
    if len(counts):
        full = int((counts == tokens.max_points).sum())
        words = f"mean {counts.mean():.1f}\nof one point: {int((counts == 1).sum()):,}\nfull: {full:,}"
        ax.text(0.97, 0.96, words, transform=ax.transAxes, ha="right", va="top", fontsize=10.5, color=INK)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _figure_legend(sheet: Sheet, tokens: EventTokens) -> None:
    from matplotlib.lines import Line2D

    square = {"linestyle": "none", "marker": "s", "markersize": 9, "markeredgecolor": "#888888", "markeredgewidth": 0.4}
    marks = [
        Line2D([], [], markerfacecolor=COLOURS[0], label="in a token (neighbours differ in colour)", **square),
        Line2D([], [], linestyle="none", marker="+", markersize=9, color=INK, label="centre"),
        Line2D([], [], linestyle="none", marker="o", markersize=12, markerfacecolor="none", color=COLOURS[0],
               label="ball"),
    ]  # fmt: skip
    if (tokens.in_ball & (tokens.times == 0)).any():
        marks.append(Line2D([], [], markerfacecolor=NOT_KEPT, label="in a ball, not kept", **square))
    if (~tokens.in_ball).any():
        marks.append(Line2D([], [], markerfacecolor=MISSED, label="in no ball", **square))
    sheet.figure.legend(
        handles=marks, loc="lower center", ncols=len(marks), fontsize=11, frameon=False,
        bbox_to_anchor=(0.5, 0.05 / sheet.figure.get_figheight()),
    )  # fmt: skip
