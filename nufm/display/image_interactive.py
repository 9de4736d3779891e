"""Interactive display of an event as pixel maps: one HTML file that opens without a network (plotly).

Shape legend: H rows, W columns of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nufm.data.images import VIEWS, ImageEvent
from nufm.display.colours import energy_colours
from nufm.display.geometry import short_name
from nufm.display.images import ACROSS, close_up, edges, image_limits, image_line, image_truth, view_title
from nufm.display.interactive import save_page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def write_image_html(
    event: ImageEvent,
    path: str | Path,
    simulated: bool | None = None,
    title: str | None = None,
    said: Sequence[str] = (),
) -> Path:
    """Write an event whose views can be zoomed and asked: row, column, place and energy at each pixel. The z axes of
    the views move together; it opens closer to the charge, a double click shows the whole maps.

    Args:
        event: as read, its energies in MeV or grey values.
        path: HTML file; plotly's code (about 5 MB) is inside it.
        simulated: add "simulated by nufm" to the title; None asks the event's file.
        title: first line of the title, the event's name by default.
        said: what a model says of it, lines below the truth.
    """
    return save_page(image_figure(event, simulated, title, said), path, title or short_name(event))


def write_image_page(
    events: Sequence[ImageEvent],
    said: Sequence[Sequence[str]],
    path: str | Path,
    title: str,
    simulated: bool | None = None,
) -> Path:
    """Write several events into one page, one below the other.

    Args:
        events: as read.
        said: of each event, lines below its truth.
        path: HTML file.
        title: of the page.
        simulated: as in :func:`write_image_html`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, (event, lines) in enumerate(zip(events, said, strict=True)):
        figure = image_figure(event, simulated, None, lines)
        options = {"displaylogo": False, "responsive": True}
        parts.append(
            figure.to_html(
                full_html=False, include_plotlyjs=number == 0, include_mathjax=False, config=options,
                default_height="640px",
            )
        )  # fmt: skip
    head = f"<head><meta charset='utf-8'><title>{escape(title)}</title></head>"
    path.write_text(f"<html>{head}<body>{''.join(parts)}</body></html>", encoding="utf-8")
    return path


def image_figure(
    event: ImageEvent, simulated: bool | None = None, title: str | None = None, said: Sequence[str] = ()
) -> Figure:
    """The plotly figure of :func:`write_image_html`."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=1, cols=2, subplot_titles=[view_title(event, view) for view in VIEWS], horizontal_spacing=0.09
    )
    unit = "cm" if event.pitch else "pixels"
    places = [(e[1:] + e[:-1]) / 2 for e in (edges(event, 0), edges(event, 1))]
    low, high = np.log10(image_limits(event))
    rows, columns = close_up(event)
    for number, view in enumerate(VIEWS, 1):
        shown = event.views.get(view)
        if shown is not None and len(shown):
            figure.add_trace(_heat(event, view, places, (low, high), number == 2), row=1, col=number)
        else:
            words = "no charge" if view in event.views else "not read out"
            note = {"text": words, "font": {"size": 22, "color": "#777777"}, "showarrow": False}
            of = {f"{axis}ref": f"{axis}{'' if number == 1 else number} domain" for axis in "xy"}
            figure.add_annotation(x=0.5, y=0.5, **of, **note)
            figure.add_trace(go.Scatter(x=[], y=[], showlegend=False), row=1, col=number)
        z_range = [float(edges(event, 1)[columns.start]), float(edges(event, 1)[columns.stop])]
        y_range = [float(edges(event, 0)[rows.start]), float(edges(event, 0)[rows.stop])]
        grid = {"gridcolor": "#eeeeee", "zeroline": False}
        figure.update_xaxes(title=f"z ({unit})", range=z_range, matches="x", row=1, col=number, **grid)
        # z and the transverse coordinate have the same scale: angles are true.
        anchor = {"scaleanchor": f"x{number if number > 1 else ''}", "scaleratio": 1, "constrain": "domain"}
        figure.update_yaxes(title=f"{ACROSS[view]} ({unit})", range=y_range, row=1, col=number, **anchor, **grid)
    lines = [image_line(event, simulated), image_truth(event), *said]
    words = "<br>".join(f"<sup>{escape(line)}</sup>" for line in lines if line)
    heading = f"<b>{escape(title or short_name(event))}</b><br>{words}"
    figure.update_layout(
        title={"text": heading, "x": 0.5, "xanchor": "center", "y": 0.975, "yanchor": "top", "font": {"size": 20}},
        margin={"l": 70, "r": 20, "t": 110 + 24 * len([line for line in lines if line]), "b": 60},
        paper_bgcolor="white",
        plot_bgcolor="white",
        dragmode="zoom",
        font={"family": "Helvetica, Arial, sans-serif", "color": "#222222"},
        uirevision="keep",
    )
    return figure


def _heat(
    event: ImageEvent, view: str, places: Sequence[np.ndarray], limits: tuple[float, float], bar: bool
) -> object:
    """The pixels of a view, of the rows and columns between which there are any."""
    import plotly.graph_objects as go

    pixel, energy = event.views[view].pixel, event.views[view].energy
    (top, left), (bottom, right) = pixel.min(0), pixel.max(0)
    value = np.full((bottom - top + 1, right - left + 1), np.nan, dtype=np.float32)
    kept = energy > 0
    at = (pixel - (top, left))[kept]
    value[at[:, 0], at[:, 1]] = energy[kept]
    table = energy_colours()(np.linspace(0, 1, 17))[:, :3]
    scale = [[i / 16, "#" + "".join(f"{round(255 * c):02x}" for c in rgb)] for i, rgb in enumerate(table)]
    ticks = np.outer(10.0 ** np.arange(-6, 7), (1, 2, 5)).ravel()
    ticks = ticks[(ticks >= 10 ** limits[0]) & (ticks <= 10 ** limits[1])]
    unit = "MeV" if event.unit == "MeV" else "grey"
    return go.Heatmap(
        x=places[1][left : right + 1].astype(np.float32),
        y=places[0][top : bottom + 1].astype(np.float32),
        z=np.log10(value),
        customdata=value,
        zmin=limits[0],
        zmax=limits[1],
        colorscale=scale,
        showscale=bar,
        colorbar={"title": {"text": f"energy of a pixel ({unit})", "side": "right"}, "len": 0.8, "thickness": 18,
                  "tickvals": np.log10(ticks).tolist(), "ticktext": [f"{t:g}" for t in ticks]},
        hovertemplate=f"z %{{x:.2f}}, {ACROSS[view]} %{{y:.2f}}<br>%{{customdata:.3g}} {unit}<extra></extra>",
        hoverongaps=False,
        name=view,
    )  # fmt: skip
