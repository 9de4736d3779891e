"""Interactive event display: one HTML file that opens without a network (plotly).

Shape legend: N points (voxels). Lengths in cm from the detector's centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nufm.data.event import MOTIF_NAMES, PID_NAMES, Event
from nufm.display.colours import Panel, energy_colours, event_panels
from nufm.display.geometry import geometry, headline, short_name

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def write_html(
    event: Event,
    path: str | Path,
    colours: Mapping[str, np.ndarray] | None = None,
    panels: Sequence[Panel] | None = None,
    simulated: bool | None = None,
    title: str | None = None,
    hover: Sequence[str] | None = None,
) -> Path:
    """Write an event that can be turned, zoomed and asked: a button for each colouring, a legend that hides
    classes, and at each voxel its index, energy and truth.

    Args:
        event: as read.
        path: HTML file; plotly's code (about 5 MB) is inside it.
        colours: further colourings, title -> (N, 3) in [0, 1].
        panels: what the buttons offer; by default energy, the truth that the event carries, and ``colours``.
        simulated: add "simulated by nufm" to the title; None asks the event's file.
        title: first line of the title, the event's name by default.
        hover: (N) what is said at each voxel after its truth.
    """
    figure = html_figure(event, colours, panels, simulated, title, hover)
    return save_page(figure, path, title or short_name(event))


def save_page(figure: Figure, path: str | Path, name: str) -> Path:
    """Write a figure as a page that fills the window and needs no network; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"displaylogo": False, "responsive": True, "scrollZoom": True}
    page = figure.to_html(
        include_plotlyjs=True, include_mathjax=False, config=options, default_height="100vh"
    )
    path.write_text(
        page.replace("<head>", f"<head><title>{escape(name)}</title><style>body {{ margin: 0 }}</style>", 1),
        encoding="utf-8",
    )
    return path


def html_figure(
    event: Event,
    colours: Mapping[str, np.ndarray] | None = None,
    panels: Sequence[Panel] | None = None,
    simulated: bool | None = None,
    title: str | None = None,
    hover: Sequence[str] | None = None,
) -> Figure:
    """The plotly figure of :func:`write_html`."""
    import plotly.graph_objects as go

    space = geometry(event)
    panels = list(event_panels(event, colours) if panels is None else panels)
    lines = _hover(event) if hover is None else [a + b for a, b in zip(_hover(event), hover, strict=True)]
    text, size = np.array(lines, dtype=object), float(np.clip(12000 / max(len(event), 1), 1.5, 3.0))
    figure, owner = go.Figure(), []
    for number, panel in enumerate(panels):
        for trace in traces_of(panel, space.position, text, size):
            figure.add_trace(go.Scatter3d(**trace, visible=number == 0))
            owner.append(number)
    buttons = [
        {"label": panel.title, "method": "restyle", "args": [{"visible": [o == number for o in owner]}]}
        for number, panel in enumerate(panels)
    ]
    heading = (
        f"<b>{escape(title or short_name(event))}</b><br><sup>{escape(headline(event, simulated))}</sup>"
    )
    if len(event) == 0:
        note = {"text": "this event has no voxels", "font": {"size": 24, "color": "#777777"}}
        figure.add_annotation(xref="paper", yref="paper", x=0.5, y=0.5, showarrow=False, **note)
    pale = {"backgroundcolor": "white", "gridcolor": "#dddddd", "zerolinecolor": "#dddddd"}
    scene = {
        "aspectmode": "data",
        "camera": {"eye": {"x": 0.95, "y": -1.75, "z": 0.7}, "center": {"z": -0.08}},
    }
    for i, name in enumerate("xyz"):
        bounds = [float(space.low[i]), float(space.high[i])]
        scene[f"{name}axis"] = {
            "title": {"text": space.label(i)},
            "range": bounds,
            "showspikes": False,
            **pale,
        }
    place = {"x": 0.5, "xanchor": "center", "y": 1.0, "yanchor": "bottom"}
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "bgcolor": "#f4f4f4", **place}
    figure.update_layout(
        title={
            "text": heading,
            "x": 0.5,
            "xanchor": "center",
            "y": 0.97,
            "yanchor": "top",
            "font": {"size": 20},
        },
        scene=scene,
        legend={"itemsizing": "constant", "x": 0.01, "y": 0.85, "font": {"size": 14}},
        margin={"l": 0, "r": 0, "t": 110, "b": 0},
        paper_bgcolor="white",
        font={"family": "Helvetica, Arial, sans-serif", "color": "#222222"},
        uirevision="keep",  # a turned event stays turned when the colouring changes
        updatemenus=[menu] if len(panels) > 1 and len(event) else [],
    )
    return figure


def traces_of(panel: Panel, position: np.ndarray, text: np.ndarray, size: float) -> list[dict]:
    """Arguments of the Scatter3d traces of one colouring: one in all, or one for each class."""

    def trace(rows: np.ndarray, name: str, colour: object, legend: bool, **marker: object) -> dict:
        x, y, z = position[rows].T.astype(np.float32)
        return {
            **{"x": x, "y": y, "z": z, "mode": "markers", "name": name, "showlegend": legend},
            **{"text": text[rows], "hovertemplate": "%{text}<extra></extra>"},
            "marker": {"size": size, "color": colour, "line": {"width": 0}, **marker},
        }

    rows = np.arange(len(position))
    if panel.values is not None:
        low, high = np.log10(panel.limits)
        ticks = np.outer(10.0 ** np.arange(-6, 7), (1, 2, 5)).ravel()
        ticks = ticks[(ticks >= panel.limits[0]) & (ticks <= panel.limits[1])]
        bar = {
            "title": {"text": panel.label, "side": "right"},
            "tickvals": np.log10(ticks).tolist(),
            "ticktext": [f"{t:g}" for t in ticks],
            "len": 0.75,
            "thickness": 18,
        }
        value = np.log10(np.maximum(panel.values, panel.limits[0] / 10)).astype(np.float32)
        scale = {"colorscale": _scale(), "cmin": low, "cmax": high, "colorbar": bar}
        return [trace(rows, panel.title, value, False, **scale)]

    def small(row: int) -> dict[str, float]:
        return {"size": 0.6 * size} if row in panel.behind else {}

    if panel.code is not None:
        # A legend entry that stands for several classes keeps the colour of each of its points.
        return [
            trace(at, name, colour if colour != "#ffffff" else _css(panel.rgb[at]), True, **small(c))
            for c, (name, colour) in enumerate(zip(panel.names, panel.colours, strict=True))
            if len(at := rows[panel.code == c])
        ]
    return [trace(rows, panel.title, _css(panel.rgb), False)]


def _scale() -> list[list]:
    table = energy_colours()(np.linspace(0, 1, 17))[:, :3]
    return [[i / 16, colour] for i, colour in enumerate(_css(table))]


def _css(rgb: np.ndarray) -> list[str]:
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.rint(np.asarray(rgb) * 255).astype(int)]


def _hover(event: Event) -> list[str]:
    """One text per point: voxel, energy, and the labels that the event carries."""

    def names(label: np.ndarray | None, table: Sequence[str]) -> list[str]:
        return [""] * len(event) if label is None else [f"<br>{table[c]}" if c >= 0 else "" for c in label]

    def instances(label: np.ndarray | None, what: str) -> list[str]:
        return [""] * len(event) if label is None else [f"<br>{what} {i}" if i >= 0 else "" for i in label]

    columns = (
        event.voxel.tolist(),
        event.energy.tolist(),
        names(event.motif, MOTIF_NAMES),
        names(event.pid, [f"PID {name}" for name in PID_NAMES]),
        instances(event.particle, "particle"),
        instances(event.interaction, "interaction"),
    )
    return [
        f"voxel {v[0]} {v[1]} {v[2]}<br>{e:.3g} MeV" + "".join(rest)
        for v, e, *rest in zip(*columns, strict=True)
    ]
