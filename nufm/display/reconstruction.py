"""Pictures of masked modelling: what a model saw of an event, what it says was hidden, and what was.

Shape legend: N points (voxels), M hidden tokens, K points of a full token, P slots of hidden tokens. Lengths are in cm
from the detector's centre, energies in MeV.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nufm.data.tokens import EventReconstruction
from nufm.display.colours import Panel, energy_panel, energy_rgb
from nufm.display.event import INK, Sheet, colour_bar, draw_nothing, frame_2d, save, thinnest
from nufm.display.geometry import Geometry, geometry, headline, position_cm, short_name
from nufm.display.tokens import (
    CLOSE_UP,
    busiest,
    draw_balls,
    draw_centres,
    draw_dots,
    draw_outline,
    inside_box,
    row_name,
    third_line,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEEN = "#cfcfcf"  # what the model saw, where something else matters
MODEL, SWAPPED, GREY = "#d55e00", "#56b4e9", "#777777"
LEAST = 3  # points of a token whose shape can be right or wrong


class Layer(NamedTuple):
    """Points of a panel: where they are in cm (n, 3), and their colours (n, 3), or one."""

    position: np.ndarray
    rgb: np.ndarray | str


def draw_reconstruction(
    found: EventReconstruction, path: str | Path, simulated: bool | None = None, title: str | None = None
) -> Path:
    """Draw what was visible, what was predicted, and the truth: the whole event, a close-up where most was hidden, and
    how good the predictions are.

    Points are coloured by energy, on one scale. In the panels of hidden points the visible ones are grey. With energy
    infilling, a further panel has the predicted energies at the true points.

    Args:
        found: what the model says.
        path: PNG (or any format that matplotlib writes).
        simulated: add "simulated by nufm" to the title; None asks the event's file.
        title: first line of the title, the event's name by default.

    Returns:
        The path.
    """
    event = found.tokens.event
    name = title or f"{short_name(event)}: reconstruction of hidden tokens"
    line = headline(event, simulated)
    if len(event) == 0:
        return save(draw_nothing(Sheet([4], name, line)), path)
    space, energies = geometry(event), energy_panel(event)
    panels = _panels(found, space, energies)
    sheet = Sheet([len(panels), len(panels), 3], name, line, cell=4.6, named_rows=True)
    third_line(sheet, hidden_text(found))
    drop, radii = thinnest(event, space), found.tokens.radius * space.pitch
    centre = position_cm(event, found.tokens.centre[found.hidden])
    rows = np.unique(found.rows)
    low, high = busiest(space.position[rows] if len(rows) else space.position, centre, CLOSE_UP * radii)
    shown = inside_box(centre, low, high)
    for column, (label, layers) in enumerate(panels.items()):
        whole, near = sheet.axes(0, column), sheet.axes(1, column)
        whole.set_title(label, fontsize=12, fontweight="bold", color=INK)
        _draw(whole, layers, space, drop, *space.core(event.energy))
        draw_outline(whole, low, high, drop)
        _draw(near, [_cut(layer, low, high) for layer in layers], space, drop, low, high)
        draw_balls(near, centre[shown], radii, GREY, drop, linewidths=0.8)
        if column == 0:
            draw_centres(near, centre[shown], drop)
            edge = high[0] - low[0]
            text = f"close-up of {edge:.3g} cm where most was hidden   ·   circles: balls of the hidden tokens"
            row_name(near, f"{text}   ·   grey: not hidden")
    colour_bar(whole, energies)
    colour_bar(near, energies)
    _distances(sheet.axes(2, 0), found)
    if found.energy is not None:
        _energies(sheet.axes(2, 1), *nearest_energies(found), "nearest predicted point")
    if found.infilled is not None:
        _energies(sheet.axes(2, 2), event.energy[found.rows], found.infilled, "infilled at the true point")
    return save(sheet.figure, path)


def hidden_text(found: EventReconstruction) -> str:
    """How much was hidden."""
    tokens, hidden = found.tokens, found.hidden
    inside, seen = tokens.within(hidden), tokens.within(~hidden)
    text = f"{int(hidden.sum()):,} of {len(tokens):,} tokens hidden, {int(inside.sum()):,} voxels in them"
    both = int((inside & seen).sum())
    return text + (f", of which {both:,} are in a visible token too" if both else "")


def token_distance(found: EventReconstruction, shift: int = 0) -> np.ndarray:
    """How far the prediction for each hidden token is from the truth, in voxels, positions only.

    Mean distance of a true point to the nearest predicted one, averaged with that of a predicted point to the nearest
    true one. NaN for tokens of fewer than three points: whatever is near their centre is right.

    Args:
        found: what the model says.
        shift: judge instead what was predicted for the hidden token so many places further on (from the last one on to
            the first), carried over to the own centre.

    Returns:
        float (M,).
    """
    tokens, counts = found.tokens, found.counts
    centre = tokens.centre[found.hidden]
    local = np.roll(found.position - centre[:, None], -shift, axis=0)
    true = tokens.event.voxel[found.rows].astype(np.float64)
    ends = np.cumsum(counts)
    distance = np.full(len(counts), np.nan)
    for i in np.flatnonzero(counts >= LEAST):
        p, q = local[i, : counts[i]] + centre[i], true[ends[i] - counts[i] : ends[i]]
        square = np.square(q[:, None] - p[None]).sum(2)
        distance[i] = (np.sqrt(square.min(0)).mean() + np.sqrt(square.min(1)).mean()) / 2
    return distance


def nearest_energies(found: EventReconstruction) -> tuple[np.ndarray, np.ndarray]:
    """True energy in each slot of the hidden tokens, and that of the nearest point predicted for the same token, (P,)
    each, in MeV.
    """
    event, counts, rows = found.tokens.event, found.counts, found.rows
    token, true = np.repeat(np.arange(len(counts)), counts), event.voxel[rows]
    square = np.square(true[:, None] - found.position[token]).sum(2)  # (P, K)
    square[~found.valid[token]] = np.inf
    predicted = found.energy[token, square.argmin(1)] if len(rows) else np.zeros(0)
    return event.energy[rows].astype(np.float64), predicted


def log_correlation(true: np.ndarray, predicted: np.ndarray, floor: float = 1e-3) -> float:
    """Correlation of the logarithms of energies in MeV, those below ``floor`` taken as that; NaN where one of them does
    not vary."""
    a, b = (np.log(np.maximum(e, floor)) for e in (true, predicted))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


# ---------------------------------------------------------------------- panels


def _panels(found: EventReconstruction, space: Geometry, scale: Panel) -> dict[str, list[Layer]]:
    """Title -> layers, the lowest first."""
    event, tokens = found.tokens.event, found.tokens
    seen, inside = tokens.within(~found.hidden), tokens.within(found.hidden)
    grey = Layer(space.position[seen], SEEN)
    predicted = position_cm(event, found.position[found.valid])
    at_predicted = MODEL if found.energy is None else energy_rgb(found.energy[found.valid], scale.limits)
    panels = {
        "visible to the model": [_by_energy(space.position[seen], event.energy[seen], scale)],
        "predicted points": [grey, Layer(predicted, at_predicted)],
        "truth": [Layer(space.position, SEEN), _by_energy(space.position[inside], event.energy[inside], scale)],
    }
    if found.infilled is not None:
        panels["energy infilled at true points"] = [
            grey,
            _by_energy(space.position[found.rows], found.infilled, scale),
        ]
    return panels


def _by_energy(position: np.ndarray, energy: np.ndarray, scale: Panel) -> Layer:
    """The most energetic in front."""
    order = np.argsort(energy, kind="stable")
    return Layer(position[order], energy_rgb(energy[order], scale.limits))


def _cut(layer: Layer, low: np.ndarray, high: np.ndarray) -> Layer:
    rows = inside_box(layer.position, low, high)
    return Layer(layer.position[rows], layer.rgb if isinstance(layer.rgb, str) else layer.rgb[rows])


def _draw(ax: Axes, layers: list[Layer], space: Geometry, drop: int, low: np.ndarray, high: np.ndarray) -> None:
    voxel = frame_2d(ax, space, drop, low, high)
    for height, layer in enumerate(layers):
        draw_dots(ax, layer.position, layer.rgb, drop, voxel, zorder=2 + 0.1 * height)


# ---------------------------------------------------------------------- how good


def _distances(ax: Axes, found: EventReconstruction) -> None:
    """Distances of the predictions, beside those of the predictions for other tokens."""
    own = token_distance(found)
    other = token_distance(found, shift=max(1, len(own) // 2))
    judged = np.isfinite(own)
    ax.set_xlabel("distance of predicted and true points (voxels)", fontsize=10.5, color=INK)
    ax.set_ylabel("hidden tokens", fontsize=10.5, color=INK)
    ax.set_title("shape of a token", fontsize=12, fontweight="bold", color=INK)
    if judged.any():
        bins = np.linspace(0, float(np.nanmax([own, other])) * 1.02, 25)
        for values, colour, label in (
            (own, MODEL, "its own prediction"),
            (other, SWAPPED, "that of another hidden token"),
        ):
            values = values[judged]
            label = f"{label}: median {np.median(values):.2f}"
            ax.hist(values, bins, histtype="step", color=colour, linewidth=1.8, label=label)
        ax.legend(fontsize=9.5, frameon=False, loc="upper left")
        ax.set_ylim(0, 1.3 * ax.get_ylim()[1])
    note = f"{int((~judged).sum()):,} tokens of one or two points left out"
    ax.text(0.98, 0.83, note, transform=ax.transAxes, ha="right", va="top", fontsize=9, color=GREY)
    _open(ax)


def _energies(ax: Axes, true: np.ndarray, predicted: np.ndarray, what: str) -> None:
    """Predicted against true energy."""
    ax.set_title(f"energy: {what}", fontsize=12, fontweight="bold", color=INK)
    ax.set(xlabel="true energy of a hidden voxel (MeV)", ylabel="predicted energy (MeV)", xscale="log", yscale="log")
    if len(true):
        low, high = np.percentile(true, [0, 99.8])
        low, high = 0.7 * max(low, 1e-3), 1.5 * high
        ax.plot([low, high], [low, high], color=GREY, linewidth=1.0, zorder=1)
        inside = np.clip(predicted, low, high)
        ax.scatter(true, inside, s=5, color=MODEL, alpha=min(1.0, 300 / len(true)) * 0.6 + 0.05, linewidths=0)
        words = f"correlation of the logarithms {log_correlation(true, predicted):.2f}"
        ax.text(0.03, 0.96, words, transform=ax.transAxes, ha="left", va="top", fontsize=10.5, color=INK)
        ax.set(xlim=(low, high), ylim=(low, high))
    _open(ax)


def _open(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
