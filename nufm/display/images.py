"""Events as pixel maps, drawn: both views, what is true of them, what a model says (matplotlib).

The beam goes to the right, row 0 of a map is at the bottom. Lengths are in cm from the centre of the map, or in pixels
where the pitch is not known.

Shape legend: H rows, W columns of a map.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nufm.data.images import INTERACTION_NAMES, MODE_NAMES, VIEWS, ImageEvent
from nufm.display.colours import energy_colours, energy_limits
from nufm.display.geometry import energy_text, is_simulated, short_name
from nufm.display.plots import DPI, INK, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = {"xz": "x", "yz": "y"}  # the coordinate of the rows
SHARE = 0.98  # of the charge that a close-up shows: neutrons leave single pixels metres away
LEAST = 48  # pixels: the least that a close-up shows of each axis
ROWS_OF_TEXT = 9  # in an example, beside its views
DIM = "#777777"


@dataclass(frozen=True)
class Said:
    """What a model says of an event.

    Attributes:
        lines: one or more lines of text.
        right: whether its class is the true one; None where there is no truth.
    """

    lines: tuple[str, ...]
    right: bool | None = None


def draw_image_event(
    event: ImageEvent,
    path: str | Path,
    simulated: bool | None = None,
    title: str | None = None,
    said: Sequence[str] = (),
) -> Path:
    """Draw an event: each view whole, and closer where its charge is.

    Args:
        event: as read, its energies in MeV or grey values.
        path: PNG to write.
        simulated: add "simulated by nufm" to the heading; None asks the event's file.
        title: first line of the heading, the event's name by default.
        said: what a model says of it, lines below the truth.
    """
    from matplotlib.figure import Figure

    lines = [line for line in (image_line(event, simulated), image_truth(event), *said) if line]
    above = 0.62 + 0.3 * len(lines)
    height = 9.6 + above
    figure = Figure(figsize=(11.4, height), dpi=DPI, facecolor="white")
    centre = {"ha": "center", "va": "center", "color": INK}
    figure.text(0.5, 1 - 0.3 / height, title or short_name(event), fontsize=16, fontweight="bold", **centre)
    for i, line in enumerate(lines):
        figure.text(0.5, 1 - (0.64 + 0.3 * i) / height, line, fontsize=12, **centre)
    limits = image_limits(event)
    for column, view in enumerate(VIEWS):
        for row, window in enumerate((None, close_up(event))):
            box = ((0.85 + 5.3 * column) / 11.4, (5.35 - 4.75 * row) / height, 4.2 / 11.4, 3.9 / height)
            ax = figure.add_axes(box)
            drawn = draw_view(ax, event, view, limits, window)
            words = f"{view.upper()}, closer" if row and view in event.views else view_title(event, view)
            ax.set_title(words, fontsize=12, color=INK)
            if column and drawn is not None:
                _colour_bar(figure, ax, drawn, event)
    return save(figure, path)


def draw_examples(
    events: Sequence[ImageEvent],
    said: Sequence[Said],
    path: str | Path,
    title: str = "",
    line: str = "",
    heads: Sequence[str] = (),
) -> Path:
    """Draw several events, one below the other: both views closer, and beside them truth, prediction and explanation.

    Args:
        events: as read.
        said: of each event.
        path: PNG to write.
        title: heading.
        line: below it, such as that the events are simulated by nufm.
        heads: of each event, why it is shown.

    Raises:
        ValueError: as many ``said`` (and ``heads``, if any) as events are expected, and at least one.
    """
    from matplotlib.figure import Figure

    if not events or len(said) != len(events) or (heads and len(heads) != len(events)):
        raise ValueError(
            f"{len(events)} events with {len(said)} predictions and {len(heads)} headings, expected as many, not none"
        )
    row_height, above, width = 3.35, 0.95, 13.4
    height = row_height * len(events) + above + 0.1
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    centre = {"ha": "center", "va": "center", "color": INK}
    figure.text(0.5, 1 - 0.3 / height, title or "example events", fontsize=16, fontweight="bold", **centre)
    figure.text(0.5, 1 - 0.64 / height, line, fontsize=11.5, **centre)
    for i, (event, words) in enumerate(zip(events, said, strict=True)):
        bottom = height - above - row_height * (i + 1)
        limits, window = image_limits(event), close_up(event)
        for column, view in enumerate(VIEWS):
            box = ((0.75 + 4.0 * column) / width, (bottom + 0.6) / height, 3.05 / width, 2.4 / height)
            ax = figure.add_axes(box)
            draw_view(ax, event, view, limits, window, small=True)
            ax.set_title(view_title(event, view), fontsize=9.5, color=INK, pad=3)
        left, top = 8.45 / width, (bottom + row_height - 0.3) / height
        colour = {True: "#00734f", False: "#b03000", None: INK}[words.right]
        head = {"ha": "left", "va": "top", "fontsize": 11, "fontweight": "bold", "color": colour}
        figure.text(left, top, (heads[i] if heads else short_name(event)), **head)
        rows = [f"{short_name(event)}" if heads else "", image_truth(event), *words.lines]
        wrapped = [piece for row in rows if row for piece in textwrap.wrap(row, 62)]
        if len(wrapped) > ROWS_OF_TEXT:
            wrapped = [*wrapped[: ROWS_OF_TEXT - 1], f"{wrapped[ROWS_OF_TEXT - 1]} …"]
        text = {"ha": "left", "va": "top", "fontsize": 10, "color": INK, "linespacing": 1.45}
        figure.text(left, top - 0.28 / height, "\n".join(wrapped), **text)
    return save(figure, path)


def draw_view(
    ax: Axes,
    event: ImageEvent,
    view: str,
    limits: tuple[float, float],
    window: tuple[slice, slice] | None = None,
    small: bool = False,
) -> object | None:
    """Draw one view, or the rows and columns ``window`` of it; returns what a colour bar belongs to."""
    from matplotlib.colors import LogNorm

    rows, columns = window or (slice(0, event.shape[0]), slice(0, event.shape[1]))
    low, high = edges(event, 0), edges(event, 1)
    extent = (high[columns.start], high[columns.stop], low[rows.start], low[rows.stop])
    drawn = None
    if event.views.get(view) is not None and len(event.views[view]):
        image = event.image(view)[rows, columns].astype(np.float64)
        shown = np.ma.masked_less_equal(image, 0)
        norm = LogNorm(*limits, clip=True)
        # Pixels must not be mixed: one that fires alone would fade into the paper.
        options = {"cmap": energy_colours(), "norm": norm, "interpolation": "nearest", "interpolation_stage": "data"}
        drawn = ax.imshow(shown, origin="lower", extent=extent, aspect="equal", **options)
    else:
        ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
        words = "no charge" if view in event.views else "not read out"
        ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", fontsize=13, color=DIM)
    unit = "cm" if event.pitch else "pixels"
    ax.set_xlabel(f"z ({unit})", fontsize=9 if small else 11, color=INK, labelpad=2)
    ax.set_ylabel(f"{ACROSS[view]} ({unit})", fontsize=9 if small else 11, color=INK, labelpad=2)
    ax.tick_params(colors=INK, labelsize=8 if small else 10)
    return drawn


def edges(event: ImageEvent, axis: int) -> np.ndarray:
    """float64 (H+1,) or (W+1,): edges of the rows or columns, in cm from the centre of the map, or in pixels."""
    n = event.shape[axis]
    return (np.arange(n + 1) - n / 2) * event.pitch / 10 if event.pitch else np.arange(n + 1, dtype=np.float64)


def close_up(event: ImageEvent) -> tuple[slice, slice]:
    """Rows and columns with nearly all the charge of the event, the same in both views; the whole map if it is empty.

    Both sides are equally long, at least ``LEAST`` pixels where the map has as many.
    """
    centre, half = np.array(event.shape) / 2, LEAST / 2
    low, high = centre.copy(), centre.copy()
    seen = [view for view in event.views.values() if view.energy.sum() > 0]
    if not seen:
        return slice(0, event.shape[0]), slice(0, event.shape[1])
    first, last = np.full(2, np.inf), np.full(2, -np.inf)
    for view in seen:
        energy = np.maximum(view.energy, 0).astype(np.float64)
        for axis in range(2):
            order = np.argsort(view.pixel[:, axis], kind="stable")
            share = np.cumsum(energy[order]) / energy.sum()
            place = view.pixel[order, axis]
            at = np.searchsorted(share, [(1 - SHARE) / 2, (1 + SHARE) / 2])
            begin, end = place[np.minimum(at, len(place) - 1)]
            first[axis], last[axis] = min(first[axis], begin), max(last[axis], end + 1)
    low, high = first, last
    half = max(float((high - low).max()) / 2 * 1.12, half)
    middle = (low + high) / 2
    window = []
    for axis in range(2):
        n = event.shape[axis]
        size = int(min(np.ceil(2 * half), n))
        start = int(np.clip(np.floor(middle[axis] - size / 2), 0, n - size))
        window.append(slice(start, start + size))
    return window[0], window[1]


def image_limits(event: ImageEvent) -> tuple[float, float]:
    """Ends of the colour scale, the same for both views."""
    energies = [view.energy for view in event.views.values()]
    return energy_limits(np.concatenate(energies) if energies else np.zeros(0))


def image_line(event: ImageEvent, simulated: bool | None = None) -> str:
    """Size of the maps, pixels with charge, and where the event comes from."""
    pixels = f"{event.shape[0]} × {event.shape[1]} pixels" + (f" of {event.pitch:g} mm" if event.pitch else "")
    parts = [pixels, f"{event.n_pixels:,} with charge"]
    if is_simulated(event) if simulated is None else simulated:
        parts.append("simulated by nufm")
    return "   ·   ".join(parts)


def image_truth(event: ImageEvent) -> str:
    """The truth that an event carries, in words; empty if it has none."""
    truth, parts = event.truth, []
    if (kind := int(truth.get("interaction", -1))) >= 0:
        parts.append(INTERACTION_NAMES[kind])
    if (mode := int(truth.get("mode", -1))) >= 0:
        parts.append(MODE_NAMES[mode])
    if np.isfinite(energy := float(truth.get("neutrino_energy", np.nan))):
        parts.append(f"neutrino {energy:.2f} GeV")
    if np.isfinite(y := float(truth.get("inelasticity", np.nan))):
        parts.append(f"y {y:.2f}")
    lepton = np.asarray(truth.get("lepton", np.full(3, np.nan)), dtype=np.float64)
    if np.isfinite(lepton).all() and np.any(lepton):
        size = float(np.linalg.norm(lepton))
        angle = np.degrees(np.arccos(np.clip(lepton[2] / size, -1, 1)))
        parts.append(f"lepton {size:.2f} GeV/c at {angle:.0f}°")
    return f"truth: {', '.join(parts)}" if parts else ""


def view_title(event: ImageEvent, view: str) -> str:
    """Name of a view and what is in it."""
    if view not in event.views:
        return f"{view.upper()}: not read out"
    total = float(event.views[view].energy.sum())
    words = energy_text(total) if event.unit == "MeV" else f"grey values {total:,.0f}"
    n = len(event.views[view])
    return f"{view.upper()}: {n:,} pixel{'s' * (n != 1)}, {words}"


def _colour_bar(figure: object, ax: Axes, drawn: object, event: ImageEvent) -> None:
    box = ax.get_position()
    own = figure.add_axes((box.x1 + 0.012, box.y0, 0.014, box.height))
    low, high = drawn.get_clim()
    ticks = np.outer(10.0 ** np.arange(-6, 7), (1, 2, 5)).ravel()
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    bar = figure.colorbar(drawn, cax=own)
    bar.ax.minorticks_off()
    bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    bar.set_label("energy of a pixel (MeV)" if event.unit == "MeV" else "grey value", fontsize=10, color=INK)
    bar.outline.set_visible(False)
