"""Displays of events of several sub-detectors as pictures (matplotlib).

The whole detector from above and from the side, the energy along the beam, then each sub-detector in its own panel, and
the hits of the first voxel stream in three projections under each colouring: energy, and truth where there is any.

Shape legend: N hits of a stream. Lengths are in cm from the origin of the detector, energies in MeV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nufm.data.detector import StreamDetector, load_stream_detector
from nufm.data.streams import StreamEvent
from nufm.display.colours import Panel, rgb_of
from nufm.display.event import DPI, FAINT, INK, colour_bar, drawing_order, points_behind, save
from nufm.display.geometry import short_name
from nufm.display.stream_geometry import (
    Box,
    around,
    boxes,
    gev,
    hit_positions,
    start_of,
    stream_line,
    stream_text,
    title_of,
    track_path,
    truth_line,
)
from nufm.display.stream_panels import GHOST_COLOURS, SHARE_NOTE, Explanation, StreamPanel, energy_panels, stream_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VIEWS = {"from above": (2, 0), "from the side": (2, 1), "along the beam": (0, 1)}  # axes across and up
EDGE, GREY = "#8a8a8a", "#777777"
VERTEX = "#00a0a0"
TRACKS = {-1: "#882255", 0: "#6b4c2a", 1: "#009e73"}  # by the sign of the charge
WIDTH, LEFT, RIGHT, BETWEEN = 16.0, 0.8, 1.15, 0.75  # inches


def draw_stream_event(
    event: StreamEvent,
    path: str | Path,
    panels: Sequence[StreamPanel] | None = None,
    simulated: bool | None = None,
    title: str | None = None,
    said: Explanation | None = None,
) -> Path:
    """Draw an event of several sub-detectors.

    Where hits hide each other, the most energetic or the rarest class is in front. Fitted tracks have no place: they
    are drawn from the true vertex, or from the most upstream hits where it is not known.

    Args:
        event: as read: charge in MeV.
        path: PNG (or any format that matplotlib writes).
        panels: colourings of the first voxel stream; by default energy and the truth that the event carries.
        simulated: add "simulated by nufm" to the heading; None asks the event's file.
        title: first line of the heading, the event's name by default.
        said: what a model says of it: below the truth in the heading, behind the other colourings, a cross at its
            vertex.

    Returns:
        The path.
    """
    detector = load_stream_detector(event.detector)
    said = said or Explanation()
    panels = [*(stream_panels(event) if panels is None else panels), *said.panels]
    energies = energy_panels(event)
    main = next(iter(detector.voxels))
    rows = [p for p in panels if main in p.panels and len(event.voxels[main])]
    low, high = close_up(event, main)
    several = len(detector.streams) > 1
    above = [(2.5, 0.55), (2.5, 0.1), (1.0, 0.12), (2.3, 1.0)] if several else [(3.6, 0.3)]
    tall = projection_scale(low, high) * (high - low)[:2].max()
    lines = [stream_line(event, simulated), truth_line(event), *said.lines]
    page = Page(title or short_name(event), lines, [*above, *((tall, 1.0) for _ in rows)])
    if several:
        draw_whole(page, event, detector, energies, said.vertex)
    draw_parts(page, len(above) - 1, event, detector, energies)
    for number, panel in enumerate(rows, len(above)):
        draw_projections(page, number, event, main, panel, low, high, said.vertex)
    return save(page.figure, path)


class Page:
    """A figure of rows of given heights, each with a gap above it, in inches; the heading is above them."""

    def __init__(self, title: str, lines: Sequence[str], rows: Sequence[tuple[float, float]]) -> None:
        from matplotlib.figure import Figure

        lines = [line for line in lines if line]
        heading = 0.75 + 0.32 * len(lines)
        self.height = heading + sum(height + gap for height, gap in rows) + 0.7
        self.figure = Figure(figsize=(WIDTH, self.height), dpi=DPI, facecolor="white")
        style = {"ha": "center", "va": "center", "color": INK}
        self.figure.text(0.5, 1 - 0.36 / self.height, title, fontsize=17, fontweight="bold", **style)
        for number, line in enumerate(lines):
            self.figure.text(0.5, 1 - (0.74 + 0.32 * number) / self.height, line, fontsize=12.5, **style)
        self.spans, below = [], self.height - heading
        for height, gap in rows:
            below -= gap + height
            self.spans.append((below, height))

    def axes(self, row: int, left: float, width: float, height: float | None = None, **options: object) -> Axes:
        """Axes of a row, ``left`` and ``width`` in inches; from the bottom of the row up, if not of its height."""
        bottom, full = self.spans[row]
        box = (left / WIDTH, bottom / self.height, width / WIDTH, (height or full) / self.height)
        return self.figure.add_axes(box, **options)

    def text(self, row: int, left: float, words: str, above: float = 0.3, **style: object) -> None:
        """Words above a row."""
        bottom, height = self.spans[row]
        self.figure.text(left / WIDTH, (bottom + height + above) / self.height, words, color=INK, **style)


# ---------------------------------------------------------------------- the whole detector


def draw_whole(
    page: Page, event: StreamEvent, detector: StreamDetector, energies: StreamPanel, vertex: np.ndarray | None = None
) -> None:
    """Rows 0 to 2: everything from above and from the side, and the energy along the beam."""
    outlines = boxes(detector)
    low, high = around(outlines)
    width = WIDTH - LEFT - RIGHT
    scale = width / (high[2] - low[2] + 8)
    for row, (view, (across, up)) in enumerate(list(VIEWS.items())[:2]):
        ax = page.axes(row, LEFT, width)
        half = page.spans[row][1] / scale / 2
        middle = (low[up] + high[up]) / 2
        ax.set(xlim=(low[2] - 4, high[2] + 4), ylim=(middle - half, middle + half))
        draw_outlines(ax, outlines, across, up)
        draw_towers(ax, event, detector, across, up)
        for stream, panel in energies.panels.items():
            pitch = min(detector.voxels[stream].pitch_mm[a] for a in (across, up)) / 10
            draw_hits(ax, hit_positions(event, stream), panel, across, up, pitch * scale * 72)
        draw_tracks(ax, event, detector, across, up, labels=row == 0)
        draw_vertices(ax, event, across, up, vertex)
        frame(ax, detector, across, up)
        ax.tick_params(labelbottom=False)
        ax.set_xlabel("")
        note = {"transform": ax.transAxes, "fontsize": 10.5, "color": GREY}
        ax.text(0.995, 0.04, f"seen {view}", ha="right", style="italic", **note)
        if row == 0:
            words = ["circle: true vertex"] if "vertex" in event.truth else []
            if any(map(len, event.tracks.values())):
                words.append("dashed: fitted track, drawn back to the " + ("vertex" if words else "first hits"))
            if vertex is not None:
                words.append("cross: predicted vertex")
            ax.text(0.005, 0.04, "   ·   ".join(words), **note)
            _stream_names(ax, event, detector, outlines)
            colour_bar(ax, next(iter(energies.panels.values()), Panel("", np.zeros((0, 3)))), width=0.009, gap=0.012)
    _profile(page.axes(2, LEFT, width), event, detector, (low[2] - 4, high[2] + 4))


def draw_outlines(ax: Axes, outlines: Sequence[Box], across: int, up: int) -> None:
    from matplotlib.patches import Rectangle

    for box in outlines:
        size = box.high - box.low
        ax.add_patch(
            Rectangle((box.low[across], box.low[up]), size[across], size[up], fill=False, edgecolor=EDGE, linewidth=0.7)
        )


def draw_towers(ax: Axes, event: StreamEvent, detector: StreamDetector, across: int, up: int) -> None:
    """Sums of the rows of towers of each matrix, the darker the more energy."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for stream, values in event.matrices.items():
        shape = detector.matrices[stream]
        sums, pitch = values.sum(1 - up), shape.pitch_mm[up] / 10
        for number, value in enumerate(sums / max(float(sums.max()), 1e-9)):
            corner = (shape.low_mm[across] / 10, shape.low_mm[up] / 10 + number * pitch)
            colour = colormaps["Blues"](0.85 * max(float(value), 0.0))
            ax.add_patch(
                Rectangle(corner, shape.depth_mm / 10, pitch, facecolor=colour, edgecolor=EDGE, linewidth=0.4, zorder=1)
            )


def draw_hits(
    ax: Axes, position: np.ndarray, panel: Panel, across: int, up: int, points: float, merge: bool = False
) -> None:
    """Hits (N, 3) as squares of ``points`` (1/72 inch), or as large as a dot must be to be seen; with ``merge`` a cell
    has the class of most hits on its line of sight."""
    if panel.share is not None or (merge and panel.code is not None):
        first, rgb = merged(position[:, [across, up]], panel)
        x, y, size = *position[first][:, [across, up]].T, max(points, 1.7)
    else:
        order = drawing_order(panel)
        x, y = position[order][:, [across, up]].T
        rgb, size = panel.rgb[order], max(points, 1.7) * np.where(points_behind(panel), 0.8, 1.0)[order]
    ax.scatter(x, y, c=rgb, s=np.square(size), marker="s", linewidths=0, rasterized=True, zorder=2)


def merged(place: np.ndarray, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    """Cells of a projection: int (n,) a hit in each of them, and their colours (n, 3).

    Args:
        place: (N, 2) of the hits in the projection.
        panel: of the hits: the mean of its ``share``, else the commonest class, one that is ``behind`` only where
            there is no other.
    """
    if len(place) == 0:
        return np.zeros(0, dtype=int), np.zeros((0, 3))
    _, first, cell = np.unique(place.round(3), axis=0, return_index=True, return_inverse=True)
    cell = cell.ravel()
    if panel.share is not None:
        mean = np.bincount(cell, panel.share) / np.bincount(cell)
        low, high = (np.array(rgb_of(c)) for c in GHOST_COLOURS[:2])
        return first, low + mean[:, None] * (high - low)
    votes = np.zeros((len(first), len(panel.names)))
    np.add.at(votes, (cell, panel.code), np.where(points_behind(panel), 1e-6, 1.0))
    return first, np.array([rgb_of(c) for c in panel.colours])[votes.argmax(1)]


def draw_tracks(
    ax: Axes, event: StreamEvent, detector: StreamDetector, across: int, up: int, labels: bool = False
) -> None:
    """Fitted tracks: dashed to the spectrometer, solid in it; ``labels`` says charge and momentum at the end."""
    start = start_of(event)
    for stream, rows in event.tracks.items():
        shape = detector.tracks[stream]
        for plane in shape.planes_mm:
            edges = (shape.low_mm[up] / 10, shape.high_mm[up] / 10)
            ax.vlines(plane / 10, *edges, color="#c9c9c9", linewidth=0.6, zorder=0.5)
        for row in rows:
            path = track_path(shape, row, start)
            if path is None:
                continue
            named = dict(zip(shape.features, map(float, row), strict=True))
            charge = int(np.sign(named.get("charge", 0)))
            line = {"color": TRACKS[charge], "zorder": 3}
            ax.plot(*path[0][:, [across, up]].T, linestyle=(0, (4, 3)), linewidth=0.8, alpha=0.8, **line)
            ax.plot(*path[1][:, [across, up]].T, linewidth=1.8, **line)
            if labels:
                words = f"{_sign(charge)} {gev(float(np.linalg.norm([named['px'], named['py'], named['pz']])))} GeV/c"
                x, y = path[1][-1][[across, up]]
                at = {"xytext": (-2, 4), "textcoords": "offset points", "ha": "right", "fontsize": 10}
                ax.annotate(words, (x, y), color=TRACKS[charge], annotation_clip=True, **at)


def draw_vertices(
    ax: Axes, event: StreamEvent, across: int, up: int, predicted: np.ndarray | None = None
) -> None:
    """The true vertex as an open circle, so that hits below it are seen, and the predicted one (3,) mm as a cross."""
    for place, marker in ((event.truth.get("vertex"), "o"), (predicted, "x")):
        if place is not None and np.isfinite(place).all():
            x, y = np.asarray(place)[[across, up]] / 10
            style = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": VERTEX, "markeredgewidth": 1.6}
            ax.plot(x, y, marker=marker, zorder=4, **style)


def _stream_names(ax: Axes, event: StreamEvent, detector: StreamDetector, outlines: Sequence[Box]) -> None:
    """Above each sub-detector its name and what is in it."""
    for stream in detector.streams:
        low, high = around([b for b in outlines if b.stream == stream])
        name = title_of(stream)
        words = stream_text(event, stream).removeprefix(name).strip()
        at = {"ha": "center", "va": "bottom", "transform": ax.get_xaxis_transform()}
        ax.text((low[2] + high[2]) / 2, 1.14, name, fontsize=11.5, fontweight="bold", color=INK, **at)
        ax.text((low[2] + high[2]) / 2, 1.02, words.replace(", ", "\n") if "hit" not in words else words,
                fontsize=10.5, color=INK, **at)  # fmt: skip


def _profile(ax: Axes, event: StreamEvent, detector: StreamDetector, limits: tuple[float, float]) -> None:
    """Energy of each layer across the beam; a matrix has one, as deep as it is."""
    from matplotlib.ticker import LogLocator

    largest = 0.0
    for stream, hits in event.voxels.items():
        shape = detector.voxels[stream]
        layer = hits.module.astype(int) * shape.lattice[2] + hits.index[:, 2]
        sums = np.bincount(layer, hits.charge, shape.modules * shape.lattice[2])
        module, index = np.divmod(np.arange(len(sums)), shape.lattice[2])
        left = (shape.low_mm[2] + module * shape.module_pitch_mm + index * shape.pitch_mm[2]) / 10
        ax.bar(left, sums, shape.pitch_mm[2] / 10, align="edge", color="#c0562a", linewidth=0)
        largest = max(largest, float(sums.max(initial=0)))
    for stream, values in event.matrices.items():
        shape, total = detector.matrices[stream], float(values.sum())
        ax.bar(shape.low_mm[2] / 10, total, shape.depth_mm / 10, align="edge", color="#9ecae1", linewidth=0)
        words = f"{title_of(stream)}:\nall layers" if total > 0 else ""
        ax.text((shape.low_mm[2] + shape.depth_mm / 2) / 10, 0.05, words, ha="center", fontsize=8.5, color=INK,
                transform=ax.get_xaxis_transform())  # fmt: skip
        largest = max(largest, total)
    if largest > 0:
        ax.set_yscale("log")
        ax.set_ylim(min(max(largest / 3e4, 0.3), largest / 100), 3 * largest)
        ax.yaxis.set_major_locator(LogLocator(numticks=4))
    else:
        ax.set_yticks([])
    ax.set(xlim=limits)
    ax.set_xlabel("z (cm)", fontsize=10.5, color=INK)
    ax.set_ylabel("MeV\nin a layer", fontsize=10, color=INK)
    ax.yaxis.set_label_coords(-0.026, 0.5)
    ax.grid(color=FAINT, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, colors=INK)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


# ---------------------------------------------------------------------- each sub-detector


def draw_parts(page: Page, row: int, event: StreamEvent, detector: StreamDetector, energies: StreamPanel) -> None:
    """One row: the voxels in 3D, each matrix, further voxel streams along the beam, the tracks in numbers."""
    others = list(detector.voxels)[1:]
    beside = 3.1 * (len(detector.matrices) + len(others)) + 2.9 * len(detector.tracks)
    draw_3d(page.axes(row, 0.3, WIDTH - 0.9 - beside), event, detector, energies)
    left = WIDTH - beside - 0.1
    for stream in detector.matrices:
        draw_matrix(page.axes(row, left, 2.2, 2.2), event, detector, stream)
        left += 3.1
    for stream in others:
        ax = page.axes(row, left, 2.2, 2.2)
        draw_front(ax, event, detector, stream, energies)
        left += 3.1
    for stream in detector.tracks:
        draw_track_table(page.axes(row, left, 2.5, 2.2), event, detector, stream)
        left += 2.9


def draw_3d(ax: Axes, event: StreamEvent, detector: StreamDetector, energies: StreamPanel) -> None:
    """All voxel streams at true proportions, turned: z from left to right, y up, what is nearer in front; of a detector
    of one stream the part with the hits."""
    outlines = [b for b in boxes(detector) if b.stream in detector.voxels]
    if len(detector.streams) == 1:
        outlines = [Box(outlines[0].stream, *close_up(event, outlines[0].stream))]
    corners = np.concatenate([_corners(b)[:, None] for b in outlines], axis=1).reshape(8, -1, 3)
    for i, j in _EDGES:
        ends = turned(np.stack([corners[i], corners[j]]).reshape(-1, 3))[:, :2].reshape(2, -1, 2)
        ax.plot(ends[..., 0], ends[..., 1], color="#bdbdbd", linewidth=0.5, zorder=0)
    place = [hit_positions(event, stream) for stream in energies.panels] or [np.zeros((0, 3))]
    rgb = np.concatenate([np.zeros((0, 3)), *(p.rgb for p in energies.panels.values())])
    x, y, depth = turned(np.concatenate(place)).T
    order = np.argsort(-depth, kind="stable")
    size = float(np.clip(16000 / max(len(x), 1), 1.6, 6.0 if len(detector.streams) > 1 else 20.0))
    ax.scatter(x[order], y[order], c=rgb[order], s=size, linewidths=0, rasterized=True, zorder=2)
    low, high = (f(turned(corners.reshape(-1, 3))[:, :2], axis=0) for f in (np.min, np.max))
    room = 0.01 * (high - low).max()
    ax.set(xlim=(low[0] - room, high[0] + room), ylim=(low[1] - room, high[1] + room), aspect="equal", anchor="C")
    ax.set_axis_off()
    _title(ax, f"{' and '.join(title_of(s) for s in detector.voxels)} in 3D, z from left to right")


def turned(place: np.ndarray, azimuth: float = 28.0, elevation: float = 20.0) -> np.ndarray:
    """Places (N, 3) seen from the side of the beam, turned by angles in degrees: across, up, and how far away."""
    a, e = np.radians([azimuth, elevation])
    x, y, z = np.asarray(place, dtype=np.float64).T
    away = z * np.sin(a) + x * np.cos(a)
    up, depth = y * np.cos(e) + away * np.sin(e), away * np.cos(e) - y * np.sin(e)
    return np.stack([z * np.cos(a) - x * np.sin(a), up, depth], axis=1)


def _corners(box: Box) -> np.ndarray:
    """(8, 3), in binary order."""
    return np.array([[(box.low, box.high)[i >> a & 1][a] for a in range(3)] for i in range(8)])


_EDGES = [(i, j) for i in range(8) for j in range(i + 1, 8) if (i ^ j).bit_count() == 1]


def draw_matrix(ax: Axes, event: StreamEvent, detector: StreamDetector, stream: str) -> None:
    """Energies of the towers in MeV, seen along the beam."""
    from matplotlib import colormaps

    shape = detector.matrices[stream]
    x0, y0 = (v / 10 for v in shape.low_mm[:2])
    x1, y1 = x0 + shape.shape[0] * shape.pitch_mm[0] / 10, y0 + shape.shape[1] * shape.pitch_mm[1] / 10
    _title(ax, f"{title_of(stream)}: MeV in a tower")
    frame(ax, detector, 0, 1)
    ax.grid(False)
    ax.set(xlim=(x0, x1), ylim=(y0, y1))
    if stream not in event.matrices:
        return _nothing(ax, "not read out")
    values = np.asarray(event.matrices[stream], dtype=np.float64)
    top = max(float(values.max(initial=0)), 1e-9)
    ax.imshow(values.T, origin="lower", extent=(x0, x1, y0, y1), cmap=colormaps["Blues"], vmin=0, vmax=1.15 * top)
    for i in range(shape.shape[0]):
        for j in range(shape.shape[1]):
            place = (x0 + (i + 0.5) * shape.pitch_mm[0] / 10, y0 + (j + 0.5) * shape.pitch_mm[1] / 10)
            ink = "white" if values[i, j] > 0.6 * top else INK
            ax.text(*place, gev(values[i, j]), ha="center", va="center", fontsize=8.5, color=ink)
    return None


def draw_front(ax: Axes, event: StreamEvent, detector: StreamDetector, stream: str, energies: StreamPanel) -> None:
    """A voxel stream seen along the beam."""
    outline = [b for b in boxes(detector) if b.stream == stream]
    low, high = around(outline)
    _title(ax, f"{title_of(stream)} along the beam")
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    frame(ax, detector, 0, 1)
    if stream not in event.voxels:
        return _nothing(ax, "not read out")
    points = detector.voxels[stream].pitch_mm[0] / 10 / (high[0] - low[0]) * 2.2 * 72
    return draw_hits(ax, hit_positions(event, stream), energies.panels[stream], 0, 1, 0.92 * points)


def draw_track_table(ax: Axes, event: StreamEvent, detector: StreamDetector, stream: str) -> None:
    """Charge, momentum and what else was fitted, track by track."""
    ax.set_axis_off()
    _title(ax, f"{title_of(stream)}: fits")
    if stream not in event.tracks:
        return _nothing(ax, "not read out")
    rows, features = event.tracks[stream], detector.tracks[stream].features
    if len(rows) == 0:
        return _nothing(ax, "no track")
    heads = {"charge": "q", "chi2": "χ²"}
    for column, name in enumerate(features):
        place = 0.02 + 0.98 * (column + 0.7) / len(features)
        ax.text(place, 0.97, heads.get(name, name), ha="right", va="top", fontsize=10, fontweight="bold", color=INK)
        for number, row in enumerate(rows):
            value = float(row[column])
            words = _sign(int(np.sign(value))) if name == "charge" else gev(value)
            colour = TRACKS[int(np.sign(row[features.index("charge")]))] if "charge" in features else INK
            ax.text(place, 0.87 - 0.085 * number, words, ha="right", va="top", fontsize=10, color=colour)
    ax.text(1.0, 0.0, "momenta in GeV/c", ha="right", fontsize=9, color=GREY)
    return None


# ---------------------------------------------------------------------- projections of one stream


def close_up(event: StreamEvent, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,), (3,) of the modules that were hit; of the hits with a margin, in a stream of one module."""
    detector = load_stream_detector(event.detector)
    outlines = [b for b in boxes(detector) if b.stream == stream]
    hits = event.voxels.get(stream)
    if hits is None or len(hits) == 0:
        return around(outlines)
    if len(outlines) > 1:
        return around([outlines[m] for m in np.unique(hits.module)])
    place, pitch = hit_positions(event, stream), np.array(detector.voxels[stream].pitch_mm) / 10
    low, high = place.min(0) - 2 * pitch, place.max(0) + 2 * pitch
    half = np.maximum(high - low, 0.4 * (high - low).max()) / 2
    return (low + high) / 2 - half, (low + high) / 2 + half


def projection_scale(low: np.ndarray, high: np.ndarray, tallest: float = 2.8) -> float:
    """Inches per cm of three projections beside each other."""
    size = high - low
    room = WIDTH - LEFT - RIGHT - (len(VIEWS) - 1) * BETWEEN
    return min(room / (2 * size[2] + size[0]), tallest / size[:2].max())


def draw_projections(
    page: Page,
    row: int,
    event: StreamEvent,
    stream: str,
    colouring: StreamPanel,
    low: np.ndarray,
    high: np.ndarray,
    vertex: np.ndarray | None = None,
) -> None:
    """One row: the hits of a stream from above, from the side and along the beam, between the corners given."""
    detector, panel = load_stream_detector(event.detector), colouring.panels[stream]
    scale, size, left = projection_scale(low, high), high - low, LEFT
    place, outlines = hit_positions(event, stream), [b for b in boxes(detector) if b.stream == stream]
    page.text(row, LEFT, f"{title_of(stream)}: {colouring.title}", fontsize=13, fontweight="bold")
    draw_names(page, row, panel)
    for view, (across, up) in VIEWS.items():
        ax = page.axes(row, left, size[across] * scale, size[up] * scale)
        ax.set(xlim=(low[across], high[across]), ylim=(low[up], high[up]))
        draw_outlines(ax, outlines, across, up)
        pitch = min(detector.voxels[stream].pitch_mm[a] for a in (across, up)) / 10
        draw_hits(ax, place, panel, across, up, pitch * scale * 72)
        draw_vertices(ax, event, across, up, vertex)
        frame(ax, detector, across, up)
        ax.set_title(f"seen {view}", fontsize=10.5, color=GREY, style="italic", loc="right", pad=3)
        left += size[across] * scale + BETWEEN
    colour_bar(ax, panel, width=0.07, gap=0.06)


def draw_names(page: Page, row: int, panel: Panel) -> None:
    """Legend of the classes above a row, beside its title."""
    if panel.code is None or not panel.names:
        return
    from matplotlib.lines import Line2D

    style = {"linestyle": "none", "marker": "s", "markersize": 9, "markeredgecolor": "#888888", "markeredgewidth": 0.4}
    marks = [
        Line2D([], [], markerfacecolor=c, label=n, **style) for n, c in zip(panel.names, panel.colours, strict=True)
    ]
    if panel.share is not None:
        marks.append(Line2D([], [], linestyle="none", label=SHARE_NOTE))
    bottom, height = page.spans[row]
    page.figure.legend(
        handles=marks, loc="center left", ncols=len(marks), fontsize=11, frameon=False, columnspacing=1.4,
        handletextpad=0.1, bbox_to_anchor=((LEFT + 4.0) / WIDTH, (bottom + height + 0.38) / page.height),
    )  # fmt: skip


# ---------------------------------------------------------------------- small things


def frame(ax: Axes, detector: StreamDetector, across: int, up: int) -> None:
    """Names of the axes, and a pale frame and grid."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel(f"{detector.axes[across]} (cm)", fontsize=10.5, color=INK)
    ax.set_ylabel(f"{detector.axes[up]} (cm)", fontsize=10.5, color=INK, labelpad=1)
    ax.tick_params(labelsize=9, colors=INK)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.grid(color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    for side in ax.spines.values():
        side.set_color("#b0b0b0")


def _title(ax: Axes, words: str) -> None:
    ax.set_title(words, fontsize=12, fontweight="bold", color=INK)


def _nothing(ax: Axes, words: str) -> None:
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", fontsize=13, color=GREY)


def _sign(charge: int) -> str:
    return {-1: "−", 0: "?", 1: "+"}[charge]
