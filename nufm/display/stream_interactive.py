"""Interactive display of an event of several sub-detectors: one HTML file that opens without a network (plotly).

Shape legend: N hits of a stream. Lengths in cm from the origin of the detector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nufm.data.detector import StreamDetector, load_stream_detector
from nufm.data.streams import CATEGORY_NAMES, HIERARCHY_NAMES, StreamEvent
from nufm.display.geometry import short_name
from nufm.display.interactive import save_page, traces_of
from nufm.display.stream_geometry import (
    Box,
    around,
    boxes,
    gev,
    hit_positions,
    start_of,
    stream_line,
    title_of,
    track_path,
    truth_line,
    unit_of,
)
from nufm.display.stream_panels import GHOST_NAMES, Explanation, StreamPanel, stream_panels
from nufm.display.streams import TRACKS, VERTEX, close_up

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ORDER = [2, 0, 1]  # the beam along the first axis of the picture, y up


def write_stream_html(
    event: StreamEvent,
    path: str | Path,
    panels: Sequence[StreamPanel] | None = None,
    simulated: bool | None = None,
    title: str | None = None,
    hover: Mapping[str, Sequence[str]] | None = None,
    said: Explanation | None = None,
) -> Path:
    """Write an event that can be turned, zoomed and asked: outlines of the sub-detectors, hits with a button for each
    colouring, towers as boxes, fitted tracks and the true vertex.

    Args:
        event: as read: charge in MeV.
        path: HTML file; plotly's code (about 5 MB) is inside it.
        panels: what the buttons offer; by default energy and the truth that the event carries.
        simulated: add "simulated by nufm" to the title; None asks the event's file.
        title: first line of the title, the event's name by default.
        hover: stream -> (N) what is said at each hit after its truth.
        said: what a model says of it: below the truth in the heading, behind the other colourings, a cross at its
            vertex.
    """
    figure = stream_figure(event, panels, simulated, title, hover, said)
    return save_page(figure, path, title or short_name(event))


def stream_figure(
    event: StreamEvent,
    panels: Sequence[StreamPanel] | None = None,
    simulated: bool | None = None,
    title: str | None = None,
    hover: Mapping[str, Sequence[str]] | None = None,
    said: Explanation | None = None,
) -> Figure:
    """The plotly figure of :func:`write_stream_html`."""
    import plotly.graph_objects as go

    detector = load_stream_detector(event.detector)
    said = said or Explanation()
    panels = [*(stream_panels(event) if panels is None else panels), *said.panels]
    figure, owner = go.Figure(), []
    places = {
        "true vertex": (event.truth.get("vertex"), "circle-open"),
        "predicted vertex": (said.vertex, "diamond-open"),
    }
    parts = (_outlines(boxes(detector)), _towers(event, detector), _tracks(event, detector), _vertices(places))
    for trace in chain(*parts):
        figure.add_trace(trace)
        owner.append(None)
    size = float(np.clip(12000 / max(event.n_hits, 1), 1.8, 3.5))
    for number, panel in enumerate(panels):
        first = True
        for stream, colours in panel.panels.items():
            text = np.array(_hover(event, stream, (hover or {}).get(stream)), dtype=object)
            place = hit_positions(event, stream)[:, ORDER]
            for trace in traces_of(colours, place, text, size):
                if "colorbar" in trace["marker"] and not first:
                    del trace["marker"]["colorbar"]
                first = False
                if "colorscale" in trace["marker"]:
                    trace["marker"]["size"] = size * _swelling(trace["marker"])
                if trace["showlegend"] and len(panel.panels) > 1:
                    trace["name"] = f"{title_of(stream)}: {trace['name']}"
                figure.add_trace(go.Scatter3d(**trace, visible=number == 0))
                owner.append(number)
    buttons = [
        {"label": panel.title, "method": "restyle", "args": [{"visible": [o in (None, number) for o in owner]}]}
        for number, panel in enumerate(panels)
    ]
    lines = [stream_line(event, simulated), truth_line(event), *said.lines]
    words = "<br>".join(f"<sup>{escape(line)}</sup>" for line in lines if line)
    # Of a detector of one stream, the part with the hits: a particle is a tenth of its crop.
    one = next(iter(detector.voxels), None) if len(detector.streams) == 1 else None
    bounds = around(boxes(detector)) if one is None else close_up(event, one)
    _lay_out(figure, detector, bounds, f"<b>{escape(title or short_name(event))}</b><br>{words}", buttons)
    if event.n_hits == 0:
        note = {"text": "no voxel was hit", "font": {"size": 24, "color": "#777777"}}
        figure.add_annotation(xref="paper", yref="paper", x=0.5, y=0.35, showarrow=False, **note)
    return figure


def _swelling(marker: Mapping) -> np.ndarray:
    """Sizes by energy: the many hits of little energy around a shower would hide its core."""
    low, high = marker["cmin"], marker["cmax"]
    return (0.5 + 1.2 * np.clip((marker["color"] - low) / max(high - low, 1e-9), 0, 1)).round(2)


def _lay_out(
    figure: Figure,
    detector: StreamDetector,
    bounds: tuple[np.ndarray, np.ndarray],
    heading: str,
    buttons: list[dict],
) -> None:
    low, high = bounds
    room = 0.005 * float((high - low).max())
    pale = {"backgroundcolor": "white", "gridcolor": "#e8e8e8", "zerolinecolor": "#e8e8e8", "showspikes": False}
    axes = {
        f"{name}axis": {
            "title": {"text": f"{detector.axes[axis]} (cm)"},
            "range": [float(low[axis] - room), float(high[axis] + room)],
            **pale,
        }
        for name, axis in zip("xyz", ORDER, strict=True)
    }
    several = len(detector.streams) > 1
    eye = {"x": -0.45, "y": -1.55, "z": 0.75} if several else {"x": 0.95, "y": -1.75, "z": 0.7}
    place = {"x": 0.5, "xanchor": "center", "y": 1.0, "yanchor": "bottom"}
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "bgcolor": "#f4f4f4", **place}
    figure.update_layout(
        title={"text": heading, "x": 0.5, "xanchor": "center", "y": 0.975, "yanchor": "top", "font": {"size": 20}},
        scene={"aspectmode": "data", "camera": {"eye": eye, "center": {"x": -0.7 if several else 0}}, **axes},
        legend={"itemsizing": "constant", "x": 0.01, "y": 0.85, "font": {"size": 14}},
        margin={"l": 0, "r": 0, "t": 150, "b": 0},
        paper_bgcolor="white",
        font={"family": "Helvetica, Arial, sans-serif", "color": "#222222"},
        uirevision="keep",
        updatemenus=[menu] if len(buttons) > 1 else [],
    )


def _lines(points: Sequence[np.ndarray], name: str, legend: bool = False, **line: object) -> object:
    """One trace of several pieces of line, each (K, 3) in the detector's axes."""
    import plotly.graph_objects as go

    gap = np.full((1, 3), np.nan)
    x, y, z = np.concatenate([np.concatenate([p, gap]) for p in points])[:, ORDER].T.astype(np.float32)
    return go.Scatter3d(x=x, y=y, z=z, mode="lines", name=name, showlegend=legend, line=line, hoverinfo="skip")


def _outlines(outlines: Sequence[Box]) -> Iterator[object]:
    for stream in dict.fromkeys(b.stream for b in outlines):
        pieces = []
        for box in (b for b in outlines if b.stream == stream):
            corner = np.array([[(box.low, box.high)[i >> a & 1][a] for a in range(3)] for i in range(8)])
            pieces += [corner[[i, i | 1 << a]] for i in range(8) for a in range(3) if not i >> a & 1]
        yield _lines(pieces, title_of(stream), color="#b4b4b4", width=1)


def _towers(event: StreamEvent, detector: StreamDetector) -> Iterator[object]:
    """A box for each tower with energy, the darker and fuller the more; all have the depth of the sub-detector."""
    import plotly.graph_objects as go

    for stream, values in event.matrices.items():
        shape, top = detector.matrices[stream], max(float(np.max(values, initial=0)), 1e-9)
        for i, j in np.argwhere(np.asarray(values) > 0.002 * top):
            share = float(values[i, j]) / top
            low = np.add(shape.low_mm, [i * shape.pitch_mm[0], j * shape.pitch_mm[1], 0])
            low, high = low / 10, np.add(low, [*shape.pitch_mm, shape.depth_mm]) / 10
            corner = np.array([[(low, high)[c >> a & 1][a] for a in range(3)] for c in range(8)])[:, ORDER]
            x, y, z = corner.T.astype(np.float32)
            text = f"{title_of(stream)} tower {i} {j}<br>{gev(float(values[i, j]))} MeV"
            yield go.Mesh3d(
                x=x, y=y, z=z, alphahull=0, color="#08519c", opacity=0.06 + 0.5 * share, flatshading=True,
                text=text, hovertemplate="%{text}<extra></extra>", showlegend=False,
            )  # fmt: skip


def _tracks(event: StreamEvent, detector: StreamDetector) -> Iterator[object]:
    start = start_of(event)
    for stream, rows in event.tracks.items():
        shape = detector.tracks[stream]
        for number, row in enumerate(rows):
            if (path := track_path(shape, row, start)) is not None:
                named = dict(zip(shape.features, map(float, row), strict=True))
                p = float(np.linalg.norm([named["px"], named["py"], named["pz"]]))
                words = f"track {number}: {gev(p)} GeV/c, charge {named.get('charge', 0):+.0f}"
                colour = TRACKS[int(np.sign(named.get("charge", 0)))]
                yield _lines([path[0]], words, color=colour, width=2, dash="dash")
                yield _lines([path[1]], words, legend=True, color=colour, width=5)


def _vertices(places: Mapping[str, tuple[np.ndarray | None, str]]) -> Iterator[object]:
    """Marks at places in mm: name -> (3,) and symbol."""
    import plotly.graph_objects as go

    for name, (place, symbol) in places.items():
        if place is not None and np.isfinite(place).all():
            x, y, z = (np.asarray(place, dtype=np.float64) / 10)[ORDER]
            marker = {"size": 7, "symbol": symbol, "color": VERTEX, "line": {"width": 3, "color": VERTEX}}
            yield go.Scatter3d(x=[x], y=[y], z=[z], mode="markers", name=name, marker=marker)


def _hover(event: StreamEvent, stream: str, more: Sequence[str] | None) -> list[str]:
    """One text per hit: stream, module, voxel, energy, and the labels that it carries."""
    hits = event.voxels[stream]
    modules, unit = load_stream_detector(event.detector).voxels[stream].modules > 1, unit_of(event)

    def shares(value: np.ndarray | None, names: Sequence[str]) -> list[str]:
        if value is None:
            return [""] * len(hits)
        named = [", ".join(f"{100 * s:.0f} % {n}" for s, n in zip(row, names, strict=True) if s > 0) for row in value]
        return [f"<br>{words}" if words else "" for words in named]

    ghost = [""] * len(hits) if hits.ghost is None else [f"<br>{GHOST_NAMES[g]}" if g else "" for g in hits.ghost]
    columns = (ghost, shares(hits.category, CATEGORY_NAMES), shares(hits.hierarchy, HIERARCHY_NAMES))
    rest = ["".join(words) for words in zip(*columns, more or [""] * len(hits), strict=True)]
    return [
        f"{title_of(stream)}{f' module {m}' if modules else ''}, voxel {v[0]} {v[1]} {v[2]}<br>{q:.3g} {unit}{words}"
        for m, v, q, words in zip(hits.module, hits.index.tolist(), hits.charge, rest, strict=True)
    ]
