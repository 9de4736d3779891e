"""The HTML display: complete, offline, with every voxel and every colouring."""

from __future__ import annotations

import base64
import json
import re

import numpy as np

from nufm.display.interactive import html_figure, write_html


def plot_data(page: str) -> tuple[list, dict]:
    """Traces and layout as the browser gets them."""
    start = re.search(r"Plotly\.newPlot\(\s*\"[\w-]+\",\s*", page).end()
    decoder = json.JSONDecoder()
    traces, end = decoder.raw_decode(page, start)
    layout, _ = decoder.raw_decode(page, re.compile(r",\s*").match(page, end).end())
    return traces, layout


def array(value) -> np.ndarray:
    """Plotly writes numbers as lists or as typed binary, according to its version."""
    if isinstance(value, dict):
        kind = {"f4": np.float32, "f8": np.float64, "i2": np.int16, "i4": np.int32}[value["dtype"]]
        return np.frombuffer(base64.b64decode(value["bdata"]), dtype=kind)
    return np.array(value)


def test_page(genuine, tmp_path) -> None:
    rgb = np.random.default_rng(0).random((len(genuine), 3))
    path = write_html(genuine, tmp_path / "new" / "event.html", {"pretrained features": rgb}, simulated=True)
    page = path.read_text(encoding="utf-8")
    # Offline: plotly itself is inside, and no script or style comes from elsewhere.
    assert len(page) > 2_000_000 and not re.search(r"<(script|link)[^>]+(src|href)=", page)
    traces, layout = plot_data(page)

    titles = ["energy", "motif (truth)", "particle type (truth)", "particle (truth)", "pretrained features"]
    buttons = layout["updatemenus"][0]["buttons"]
    assert [b["label"] for b in buttons] == titles
    positions = np.sort((genuine.voxel[:, 0] - 384.0) * 0.3 + 0.15)
    for number, button in enumerate(buttons):
        shown = [t for t, visible in zip(traces, button["args"][0]["visible"], strict=True) if visible]
        x = np.concatenate([array(t["x"]) for t in shown])
        np.testing.assert_allclose(np.sort(x), positions, atol=1e-4)  # each colouring has all voxels, once
        assert all(t["visible"] == (number == 0) for t in shown)  # the page opens with the energy
        assert sum(len(t["text"]) for t in shown) == len(genuine)

    energy, last = traces[0], traces[-1]
    np.testing.assert_allclose(10 ** array(energy["marker"]["color"]), genuine.energy, rtol=1e-3)
    assert energy["marker"]["colorbar"]["title"]["text"] == "energy of a voxel (MeV)"
    assert last["marker"]["color"][5] == "#" + "".join(f"{round(v * 255):02x}" for v in rgb[5])
    v = genuine.voxel[0]
    assert (
        energy["text"][0] == f"voxel {v[0]} {v[1]} {v[2]}<br>{genuine.energy[0]:.3g} MeV<br>LED<br>PID none"
    )
    tracks = next(t for t in traces if t["name"].startswith("track"))
    assert tracks["marker"]["color"] == "#e69f00" and len(tracks["text"]) == (genuine.motif == 1).sum()
    assert "1,390 voxels" in layout["title"]["text"] and "simulated by nufm" in layout["title"]["text"]
    assert layout["scene"]["aspectmode"] == "data"
    assert layout["scene"]["xaxis"]["title"]["text"] == "x (cm)"


def test_names_are_text_not_markup(genuine, tmp_path) -> None:
    page = write_html(genuine, tmp_path / "a.html", title="<script>alert(1)</script>").read_text(
        encoding="utf-8"
    )
    assert "<script>alert(1)" not in page


def test_bare_empty_and_single(genuine, empty, single) -> None:
    assert html_figure(empty).layout.annotations[0].text == "this event has no voxels"
    assert len(html_figure(single).data) == 4
    bare = html_figure(genuine.replace(motif=None, pid=None, particle=None, interaction=None))
    assert len(bare.data) == 1 and not bare.layout.updatemenus
    assert len(bare.data[0].x) == len(genuine)


def test_particles_beyond_the_legend_keep_their_colours(genuine) -> None:
    figure = html_figure(genuine.replace(particle=np.arange(len(genuine)) // 20))
    more = next(t for t in figure.data if t.name.startswith("60 more"))
    assert len(more.x) == 1190 and len(set(more.marker.color)) > 5 and "#ffffff" not in more.marker.color
