"""Pictures of masked and relational pretraining on events of several sub-detectors (matplotlib): what a model saw, what
it says was hidden, and what was; what it says of the hits that it saw, beside the truth.

Shape legend: N hits of a stream, K voxels of its hidden patches. Lengths in cm, energies in MeV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nufm.data.detector import load_stream_detector
from nufm.data.stream_reconstruction import StreamReconstruction, StreamRelations
from nufm.data.streams import CATEGORY_NAMES, HIERARCHY_NAMES, StreamEvent
from nufm.display.colours import Panel, class_panel, energy_limits
from nufm.display.event import INK, colour_bar
from nufm.display.geometry import short_name
from nufm.display.plots import save
from nufm.display.reconstruction import log_correlation
from nufm.display.stream_geometry import around, boxes, gev, hit_positions, stream_line, title_of, truth_line, unit_of
from nufm.display.stream_panels import (
    CATEGORY_COLOURS,
    GHOST_COLOURS,
    GHOST_NAMES,
    HIERARCHY_COLOURS,
    category_panel,
    charge_panel,
    ghost_panel,
    hierarchy_panel,
    share_panel,
)
from nufm.display.streams import (
    GREY,
    LEFT,
    RIGHT,
    WIDTH,
    Page,
    close_up,
    draw_hits,
    draw_names,
    draw_outlines,
    draw_vertices,
    frame,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEEN = "#cfcfcf"
MODEL = "#d55e00"
VIEWS = (("from above", 2, 0), ("from the side", 2, 1))
BETWEEN = 0.62
PREDICTED = "predicted: the likeliest voxels of the hidden patches, as many as were hit"


class Layer(NamedTuple):
    """Voxels in a view: where they are in cm (n, 3), and their colours."""

    position: np.ndarray
    panel: Panel


class Cell(NamedTuple):
    """A part of a row: a stream and view, its place in inches, and the corners (3,), (3,) of what is seen."""

    stream: str
    view: str
    across: int
    up: int
    left: float
    scale: float
    low: np.ndarray
    high: np.ndarray


# ---------------------------------------------------------------------- masked


def draw_reconstructed(
    found: StreamReconstruction, path: str | Path, simulated: bool | None = None, title: str | None = None
) -> Path:
    """Draw what was visible, what was predicted, and the truth, of every voxel stream from above and from the side; and
    below it how good the predictions are.

    Of the voxels of the hidden patches those are drawn that the model holds likeliest to be hit, as many as there are
    to be found, coloured by the charge that it predicts. Visible hits are grey there.

    Args:
        found: what the model says.
        path: PNG (or any format that matplotlib writes).
        simulated: add "simulated by nufm" to the heading; None asks the event's file.
        title: first line of the heading, the event's name by default.

    Returns:
        The path.
    """
    event = found.event
    cells, tall = _cells(event, list(load_stream_detector(event.detector).voxels))
    lines = [stream_line(event, simulated), truth_line(event), hidden_line(found)]
    page = Page(title or f"{short_name(event)}: hidden and reconstructed", lines, [*[(tall, 0.75)] * 3, (2.9, 1.2)])
    charges = np.concatenate([np.zeros(0), *(h.charge for h in event.voxels.values())])
    limits = energy_limits(charges)
    for row, (words, make) in enumerate(
        (("visible to the model", _visible), (PREDICTED, _predicted), ("truth", _true))
    ):
        page.text(row, LEFT, words, 0.28, fontsize=13, fontweight="bold")
        for cell in cells:
            layers = make(found, cell.stream, limits) if cell.stream in found.voxels else []
            ax = _draw(page, row, cell, event, layers, row == 2)
        colour_bar(ax, _charge(found, charges, limits), width=0.07, gap=0.06)
    _quality(page, 3, found)
    return save(page.figure, path)


def _visible(found: StreamReconstruction, stream: str, limits: tuple[float, float]) -> list[Layer]:
    shown, hits = found.voxels[stream].shown, found.event.voxels[stream]
    return [Layer(hit_positions(found.event, stream)[shown], _charge(found, hits.charge[shown], limits))]


def _predicted(found: StreamReconstruction, stream: str, limits: tuple[float, float]) -> list[Layer]:
    hidden = found.voxels[stream]
    rows = hidden.likeliest()
    shape = load_stream_detector(found.event.detector).voxels[stream]
    place = shape.position(hidden.index[rows], hidden.module[rows]) / 10
    return [_seen(found, stream), Layer(place, _charge(found, hidden.charge[rows], limits))]


def _true(found: StreamReconstruction, stream: str, limits: tuple[float, float]) -> list[Layer]:
    target, hits = found.voxels[stream].target, found.event.voxels[stream]
    place = hit_positions(found.event, stream)[target]
    return [_seen(found, stream), Layer(place, _charge(found, hits.charge[target], limits))]


def _charge(found: StreamReconstruction, charge: np.ndarray, limits: tuple[float, float]) -> Panel:
    return charge_panel(charge, limits, unit_of(found.event))


def _seen(found: StreamReconstruction, stream: str) -> Layer:
    return _grey(hit_positions(found.event, stream)[found.voxels[stream].shown])


def _grey(place: np.ndarray) -> Layer:
    return Layer(place, class_panel("seen", np.zeros(len(place), dtype=int), ("seen",), (SEEN,)))


def hidden_line(found: StreamReconstruction) -> str:
    """How much was hidden."""
    parts = []
    for stream, hidden in found.voxels.items():
        n = int((~hidden.shown).sum())
        parts.append(f"{title_of(stream)}: {n:,} of {len(hidden.shown):,} hits hidden")
    detector = load_stream_detector(found.event.detector)
    for kind, names in ((found.matrices, detector.matrices), (found.tracks, detector.tracks)):
        parts += [f"{title_of(s)} {'hidden' if s in kind else 'visible'}" for s in names]
    return "   ·   ".join(parts)


def occupancy_curve(found: StreamReconstruction, stream: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Occupancy in the hidden patches, by threshold: share of empty voxels and share of hit ones above it, both (t,),
    and the area under the curve; NaN where nothing is hidden."""
    from sklearn.metrics import roc_auc_score, roc_curve  # imported here: slow to import

    hidden, (hit, _) = found.voxels[stream], hit_voxels(found, stream)
    if hit.all() or not hit.any():
        return np.zeros(0), np.zeros(0), float("nan")
    wrong, right, _ = roc_curve(hit, hidden.occupancy)
    return wrong, right, float(roc_auc_score(hit, hidden.occupancy))


def hit_voxels(found: StreamReconstruction, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """bool (K,) the voxels of the hidden patches that are to be found, and float64 (K,) their true charge in MeV, 0 in
    the others."""
    hidden, hits = found.voxels[stream], found.event.voxels[stream]
    shape = load_stream_detector(found.event.detector).voxels[stream]
    lattice = (shape.modules, *shape.lattice)
    charge = np.full(int(np.prod(lattice)), np.nan)
    charge[np.ravel_multi_index((hits.module, *hits.index.T), lattice)[hidden.target]] = hits.charge[hidden.target]
    own = charge[np.ravel_multi_index((hidden.module, *hidden.index.T), lattice)]
    return np.isfinite(own), np.nan_to_num(own)


def _quality(page: Page, row: int, found: StreamReconstruction) -> None:
    """Occupancy and charge in the hidden patches; matrix and tracks if they were hidden."""
    from matplotlib.ticker import MaxNLocator

    page.text(row, LEFT, "in the hidden patches of this event", 0.45, fontsize=13, fontweight="bold")
    height = page.spans[row][1] - 0.2
    ax = page.axes(row, LEFT, height, height)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=":")
    colours = ("#0072b2", "#d55e00")
    for stream, colour in zip(found.voxels, colours, strict=False):
        wrong, right, auc = occupancy_curve(found, stream)
        if len(wrong):
            ax.plot(wrong, right, color=colour, linewidth=2, label=f"{title_of(stream)}: AUC {auc:.3f}")
    ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="share of empty voxels above a threshold", ylabel="share of hit voxels")
    ax.set_title("is a voxel hit?", fontsize=11.5, fontweight="bold", color=INK)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=10, frameon=False, loc="lower right")
    left = LEFT + height + 1.0
    for stream, colour in zip(found.voxels, colours, strict=False):
        _charges(page.axes(row, left, height, height), found, stream, colour)
        left += height + 1.0
    detector = load_stream_detector(found.event.detector)
    if detector.matrices or detector.tracks:
        _rest(page.axes(row, left - 0.1, WIDTH - left - 0.3, height), found)


def _charges(ax: Axes, found: StreamReconstruction, stream: str, colour: str) -> None:
    """Predicted against true charge, at the voxels that are hit."""
    hit, true = hit_voxels(found, stream)
    true, predicted = true[hit], found.voxels[stream].charge[hit]
    ax.set_title(f"{title_of(stream)}: charge where there is a hit", fontsize=11.5, fontweight="bold", color=INK)
    unit = unit_of(found.event)
    ax.set(xlabel=f"true ({unit})", ylabel=f"predicted ({unit})", xscale="log", yscale="log")
    if not (true > 0).any():
        ax.text(0.5, 0.5, "nothing hidden", transform=ax.transAxes, ha="center", fontsize=12, color=GREY)
        return
    low, high = np.percentile(true[true > 0], [0.5, 99.8])
    low, high = 0.7 * low, 1.5 * high
    ax.plot([low, high], [low, high], color=GREY, linewidth=1.0, zorder=1)
    style = {"s": 5, "color": colour, "alpha": min(1.0, 300 / len(true)) * 0.6 + 0.05, "linewidths": 0}
    ax.scatter(np.clip(true, low, high), np.clip(predicted, low, high), **style)
    words = f"correlation of the logarithms {log_correlation(true, predicted):.2f}"
    ax.text(0.03, 0.96, words, transform=ax.transAxes, ha="left", va="top", fontsize=10, color=INK)
    ax.set(xlim=(low, high), ylim=(low, high))


def _rest(ax: Axes, found: StreamReconstruction) -> None:
    """Matrix and tracks in words."""
    ax.set_axis_off()
    lines: list[str] = []
    for stream, values in found.matrices.items():
        true = found.event.matrices[stream]
        lines += [f"{title_of(stream)} hidden:", f"  sum {gev(float(values.sum()))} MeV, true {gev(float(true.sum()))}"]
        at, where = (np.unravel_index(int(v.argmax()), v.shape) for v in (values, true))
        lines += [f"  largest in tower {at[0]} {at[1]}, true {where[0]} {where[1]}", ""]
    for stream, (sure, mean) in found.tracks.items():
        rows = found.event.tracks[stream]
        lines += [f"{title_of(stream)} hidden:", f"  a track with {100 * sure:.0f} %, true {len(rows)}"]
        if len(rows):
            true = np.linalg.norm(rows[:, 1:4].mean(0))
            lines.append(f"  mean |p| {gev(float(np.linalg.norm(mean[1:4])))} GeV/c, true {gev(float(true))}")
    words = "\n".join(lines) or "matrix and tracks\nwere visible"
    ax.text(0.0, 0.98, words, transform=ax.transAxes, va="top", fontsize=11, color=INK, linespacing=1.6)


# ---------------------------------------------------------------------- relational


def draw_relations(
    found: StreamRelations, path: str | Path, simulated: bool | None = None, title: str | None = None
) -> Path:
    """Draw what a model says of the hits that it saw: particle category, hierarchy and ghosts, prediction above truth,
    from above and from the side. A cell of a view has the class of most hits behind each other there (of ghosts: their
    share), so that prediction and truth can be compared. Hits without truth are pale.

    Args:
        found: what the model says.
        path: PNG (or any format that matplotlib writes).
        simulated: add "simulated by nufm" to the heading; None asks the event's file.
        title: first line of the heading, the event's name by default.

    Returns:
        The path.
    """
    event = found.event
    cells, tall = _cells(event, [found.stream])
    rows = _relation_rows(found)
    n, shown = len(found.shown), int(found.shown.sum())
    note = f"{title_of(found.stream)}: {shown:,} of {n:,} hits visible to the model and judged"
    lines = [stream_line(event, simulated), truth_line(event), note]
    page = Page(title or f"{short_name(event)}: what each hit is", lines, [(tall, 0.95)] * len(rows))
    place = hit_positions(event, found.stream)[found.shown]
    for row, (words, panel) in enumerate(rows):
        page.text(row, LEFT, words, 0.32, fontsize=13, fontweight="bold")
        draw_names(page, row, panel)
        for cell in cells:
            _draw(page, row, cell, event, [Layer(place, panel)], row == len(rows) - 1, merge=True)
    return save(page.figure, path)


def _relation_rows(found: StreamRelations) -> list[tuple[str, Panel]]:
    """Titles and colours of the hits that the model saw: prediction, then truth where it is known."""
    if found.stream not in found.event.voxels:
        return []
    hits, shown = found.event.voxels[found.stream].select(found.shown), found.shown
    rows: list[tuple[str, Panel]] = []
    for words, name, names, colours, truth in (
        ("particle category", "category", CATEGORY_NAMES, CATEGORY_COLOURS, category_panel(hits)),
        ("hierarchy", "hierarchy", HIERARCHY_NAMES, HIERARCHY_COLOURS, hierarchy_panel(hits)),
    ):
        said, true = getattr(found, name)[shown], getattr(hits, name)
        score = "" if true is None else _right(said, true)
        # What is a ghost by the truth has no class to be right about.
        labelled = said if true is None else said * (true.sum(1) > 0)[:, None]
        rows.append((f"{words}: predicted{score}", share_panel(words, labelled, names, colours)))
        if truth is not None:
            rows.append((f"{words}: true", truth))
    sure = found.ghost[shown]
    panel = replace(class_panel("ghosts", (sure > 0.5).astype(int), GHOST_NAMES, GHOST_COLOURS), share=sure)
    rows.append((f"ghosts: predicted{_ghost_score(sure, hits.ghost)}", panel))
    if (true := ghost_panel(hits)) is not None:
        rows.append(("ghosts: true", true))
    return rows


def _right(said: np.ndarray, true: np.ndarray) -> str:
    """Share of the labelled hits whose largest share is predicted."""
    known = true.sum(1) > 0
    return f" ({100 * (said.argmax(1) == true.argmax(1))[known].mean():.0f} % right)" if known.any() else ""


def _ghost_score(sure: np.ndarray, ghost: np.ndarray | None) -> str:
    from sklearn.metrics import roc_auc_score  # imported here: slow to import

    if ghost is None or len(np.unique(ghost == 1)) < 2:
        return ""
    return f" (AUC {roc_auc_score(ghost == 1, sure):.3f})"


# ---------------------------------------------------------------------- views


def _cells(event: StreamEvent, streams: Sequence[str], tallest: float = 2.6) -> tuple[list[Cell], float]:
    """Views of the streams beside each other, and the height of the row: the first stream gets most of the width."""
    detector = load_stream_detector(event.detector)
    outlines = boxes(detector)
    room = WIDTH - LEFT - RIGHT - BETWEEN * (2 * len(streams) - 1)
    cells, left, tall = [], LEFT, 0.0
    for number, stream in enumerate(streams):
        low, high = close_up(event, stream) if number == 0 else around([b for b in outlines if b.stream == stream])
        size, rest = high - low, len(streams) - number - 1
        part = 1.0 if rest == 0 else 0.7 if number == 0 else 1 / (rest + 1)
        scale = min(room * part / 2 / size[2], tallest / size[:2].max())
        room -= 2 * size[2] * scale  # what a short stream leaves is for the others
        for view, across, up in VIEWS:
            cells.append(Cell(stream, view, across, up, left, scale, low, high))
            left += size[across] * scale + BETWEEN
        tall = max(tall, float(size[:2].max() * scale))
    return cells, tall


def _draw(
    page: Page, row: int, cell: Cell, event: StreamEvent, layers: Sequence[Layer], last: bool, merge: bool = False
) -> Axes:
    detector = load_stream_detector(event.detector)
    size = (cell.high - cell.low) * cell.scale
    ax = page.axes(row, cell.left, size[cell.across], size[cell.up])
    ax.set(xlim=(cell.low[cell.across], cell.high[cell.across]), ylim=(cell.low[cell.up], cell.high[cell.up]))
    draw_outlines(ax, [b for b in boxes(detector) if b.stream == cell.stream], cell.across, cell.up)
    pitch = min(detector.voxels[cell.stream].pitch_mm[a] for a in (cell.across, cell.up)) / 10
    for layer in layers:
        draw_hits(ax, layer.position, layer.panel, cell.across, cell.up, pitch * cell.scale * 72, merge)
    draw_vertices(ax, event, cell.across, cell.up)
    frame(ax, detector, cell.across, cell.up)
    ax.set_title(f"{title_of(cell.stream)} {cell.view}", fontsize=10, color=GREY, style="italic", loc="right", pad=3)
    if not last:
        ax.set_xlabel("")
    return ax
