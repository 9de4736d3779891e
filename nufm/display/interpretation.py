"""Pictures of what a model of events with several streams looks at (matplotlib): scores without each sub-detector, hits
that move its answer, events in its latent space.

Shape legend: n events, N hits, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nufm.data.detector import load_stream_detector
from nufm.data.streams import StreamEvent
from nufm.display.colours import INSTANCE_COLOURS, Panel, energies_panel, energy_limits
from nufm.display.plots import DPI, GREY, INK, plain_axes, save
from nufm.display.stream_geometry import boxes, hit_positions, stream_text, title_of, unit_of
from nufm.display.stream_panels import AGAINST, FOR, saliency_panel
from nufm.display.streams import close_up, draw_hits, draw_outlines, draw_vertices, frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EVERYTHING = "everything"
# Of flavours: νµ, νe, three ντ of neighbouring hues, NC; other classes take the next ones.
FLAVOURS = ("#e69f00", "#0072b2", "#cc79a7", "#882255", "#d55e00", "#7f7f7f")


# ---------------------------------------------------------------------- ablation


def draw_ablation(found: Mapping[str, Any], path: str | Path, title: str = "") -> Path:
    """Draw the scores with everything and without each stream: AUC of each class, coloured by how it changed, and the
    vertex.

    Args:
        found: of ``nufm.evaluation.interpret.ablation``.
        path: PNG to write.
        title: heading.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    rows, classes = list(found["rows"]), ["macro", *found["classes"]]
    table = np.array([[_number(r["macro"]), *map(_number, r["auc"])] for r in found["rows"].values()])
    change = table - table[0]
    vertex = [r.get("vertex_median") for r in found["rows"].values()]
    some = any(v is not None for v in vertex)
    cell, left, top = 1.18, 2.5, 1.5
    wide, tall = cell * len(classes), 0.62 * len(rows)
    size = (left + wide + (3.9 if some else 0.5), top + tall + 0.75)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    ax = figure.add_axes((left / size[0], 0.75 / size[1], wide / size[0], tall / size[1]))
    worst = max(float(np.nanmax(np.abs(change), initial=0.0)), 0.05)
    colours = LinearSegmentedColormap.from_list("change", [FOR, "#ffffff", AGAINST])
    ax.imshow(np.nan_to_num(change), cmap=colours, vmin=-1.6 * worst, vmax=1.6 * worst, aspect="auto")
    for i, row in enumerate(found["rows"].values()):
        for j in range(len(classes)):
            words = "–" if np.isnan(table[i, j]) else f"{table[i, j]:.3f}"
            ax.text(j, i - (0.13 if i else 0), words, ha="center", va="center", fontsize=12, color=INK)
            if i and np.isfinite(change[i, j]):
                error = row.get("macro_change_error")
                spread = f" ± {error:.3f}" if j == 0 and error is not None else ""
                ax.text(j, i + 0.24, f"{change[i, j]:+.3f}{spread}", ha="center", va="center", fontsize=8.5, color=INK)
    names = [EVERYTHING, *(f"without {title_of(r)}" for r in rows[1:])]
    filled = ["", *(f"\nin {100 * found['filled'][r]:.0f} % of events" for r in rows[1:])]
    ax.set_yticks(range(len(rows)), [a + b for a, b in zip(names, filled, strict=True)], fontsize=10.5)
    support = [f"\n{n:,}" for n in found["support"]]
    ax.set_xticks(range(len(classes)), [c + s for c, s in zip(classes, ["", *support], strict=True)], fontsize=10.5)
    ax.xaxis.tick_top()
    _white_grid(ax, len(rows), len(classes))
    what = f"{found['label']}: AUC of each class against the rest; below it the change"
    figure.text(left / size[0], 0.3 / size[1], what, fontsize=10, color=GREY)
    if some:
        beside = figure.add_axes(((left + wide + 0.5) / size[0], 0.75 / size[1], 2.9 / size[0], tall / size[1]))
        _vertex_bars(beside, list(found["rows"].values()))
    figure.text(0.5, 1 - 0.32 / size[1], title or "ablation", ha="center", fontsize=14, fontweight="bold", color=INK)
    return save(figure, path)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _white_grid(ax: Axes, rows: int, columns: int) -> None:
    ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="#cccccc", linewidth=1)
    ax.tick_params(which="both", length=0, colors=INK)
    for edge in ax.spines.values():
        edge.set_visible(False)


def _vertex_bars(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    values = [_number(r.get("vertex_median")) for r in rows]
    colours = ["#b8b8b8" if i == 0 else "#56b4e9" for i in range(len(rows))]
    ax.barh(range(len(rows)), values, 0.7, color=colours, zorder=2)
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        error = row.get("vertex_change_error")
        words = f" {value:.0f}" + (f" ({row['vertex_change']:+.0f} ± {error:.0f})" if i and error is not None else "")
        ax.text(value, i, words, va="center", fontsize=10, color=INK)
    ax.set(xlim=(0, 1.75 * np.nanmax(values)), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    ax.set_title("median error of the vertex (mm)", fontsize=11, color=INK)
    plain_axes(ax)
    ax.grid(False)


# ---------------------------------------------------------------------- saliency


@dataclass(frozen=True)
class Explained:
    """An event, and charge × gradient of the logit of ``target``: stream -> (N,); ``caption`` says what is true and
    what is predicted; ``vertex`` (3,) mm is the predicted one."""

    event: StreamEvent
    target: str
    voxels: Mapping[str, np.ndarray]
    caption: str = ""
    vertex: np.ndarray | None = None


def draw_saliency(shown: Sequence[Explained], path: str | Path, title: str = "") -> Path:
    """Draw events in rows: the first voxel stream seen from above and from the side, energy and saliency, both summed
    along the line of sight.

    Args:
        shown: events of one detector.
        path: PNG to write.
        title: heading.
    """
    from matplotlib.figure import Figure

    width, left, between, tallest = 16.0, 0.75, 0.6, 2.2
    room = (width - left - 0.4 - between) / 2
    rows = []
    for item in shown:
        stream = next(iter(load_stream_detector(item.event.detector).voxels))
        low, high = close_up(item.event, stream)
        scale = min(room / (high - low)[2], tallest / (high - low)[:2].max())
        rows.append((item, stream, low, high, scale, 2 * scale * (high - low)[:2].max() + 1.45))
    height = 1.35 + sum(row[-1] for row in rows)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.text(0.5, 1 - 0.38 / height, title or "saliency", ha="center", fontsize=16, fontweight="bold", color=INK)
    _saliency_key(figure, height)
    top = height - 1.1
    for item, stream, low, high, scale, tall in rows:
        event, bottom = item.event, top - tall
        words = f"{item.caption}   ·   {stream_text(event, stream)}"
        figure.text(left / width, (top - 0.3) / height, words, fontsize=12.5, fontweight="bold", color=INK)
        for column, (words, make) in enumerate(_columns(item, stream).items()):
            for row, (across, up) in enumerate(((2, 0), (2, 1))):
                size = (high - low) * scale
                x = left + column * (room + between)
                y = bottom + 0.55 + (1 - row) * (size[:2].max() + 0.15)
                ax = figure.add_axes((x / width, y / height, size[across] / width, size[up] / height))
                _draw_view(ax, item, stream, make, low, high, across, up, scale)
                if row == 0:
                    ax.set_title(words, fontsize=11, color=INK, loc="left", pad=3)
                    ax.set_xlabel("")
                    ax.tick_params(labelbottom=False)
        top = bottom
    return save(figure, path)


def _columns(item: Explained, stream: str) -> dict[str, tuple[np.ndarray, Callable[[np.ndarray], Panel]]]:
    """Title -> values of the hits (N,), and how sums of them are coloured."""
    hits = item.event.voxels.get(stream)
    charge = np.zeros(0) if hits is None else hits.charge
    values = item.voxels.get(stream, np.zeros(len(charge)))
    return {
        "energy" if unit_of(item.event) == "MeV" else "charge": (
            charge,
            lambda sums: energies_panel(sums, energy_limits(sums)),
        ),
        f"saliency for {item.target}": (values, lambda sums: saliency_panel(sums, item.target)),
    }


def _draw_view(
    ax: Axes,
    item: Explained,
    stream: str,
    column: tuple[np.ndarray, Callable[[np.ndarray], Panel]],
    low: np.ndarray,
    high: np.ndarray,
    across: int,
    up: int,
    scale: float,
) -> None:
    """Sums along the line of sight: of hits behind each other, the one in front would say least of all of them."""
    detector, (values, make) = load_stream_detector(item.event.detector), column
    ax.set(xlim=(low[across], high[across]), ylim=(low[up], high[up]))
    draw_outlines(ax, [b for b in boxes(detector) if b.stream == stream], across, up)
    pitch = min(detector.voxels[stream].pitch_mm[a] for a in (across, up)) / 10
    place = hit_positions(item.event, stream)
    _, first, cell = np.unique(place[:, [across, up]].round(3), axis=0, return_index=True, return_inverse=True)
    sums = np.bincount(cell.ravel(), values, len(first))
    draw_hits(ax, place[first], make(sums), across, up, pitch * scale * 72)
    draw_vertices(ax, item.event, across, up, item.vertex)
    frame(ax, detector, across, up)


def _saliency_key(figure: Any, height: float) -> None:
    from matplotlib.lines import Line2D

    dots = {"linestyle": "none", "marker": "s", "markersize": 9}
    marks = [
        Line2D([], [], color=FOR, label="speaks for the class (sum along the line of sight)", **dots),
        Line2D([], [], color=AGAINST, label="against it", **dots),
        Line2D([], [], color="#dedede", label="neither", **dots),
        *(
            Line2D([], [], linestyle="none", marker=m, markersize=10, markerfacecolor="none", markeredgecolor="#00a0a0",
                   markeredgewidth=1.6, label=f"{words} vertex")
            for m, words in (("o", "true"), ("x", "predicted"))
        ),
    ]  # fmt: skip
    place = {"loc": "center", "bbox_to_anchor": (0.5, 1 - 0.85 / height), "ncols": len(marks)}
    figure.legend(handles=marks, fontsize=11, frameon=False, **place)


# ---------------------------------------------------------------------- latents


def draw_latents(
    maps: Mapping[str, np.ndarray],
    target: np.ndarray,
    classes: Sequence[str],
    path: str | Path,
    title: str = "",
    note: str = "",
) -> Path:
    """Draw events in two dimensions, coloured by class.

    Args:
        maps: name -> (n, 2).
        target: (n,) class of each event, -1 unknown.
        classes: K names.
        path: PNG to write.
        title: heading.
        note: a line below it.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(6.6 * max(len(maps), 1) + 0.4, 7.3), dpi=DPI, facecolor="white")
    colours = FLAVOURS if len(classes) <= len(FLAVOURS) else INSTANCE_COLOURS
    order = np.random.default_rng(0).permutation(len(target))  # else the last class would hide the others
    table = np.array([*(colours[c % len(colours)] for c in range(len(classes))), "#d0d0d0"])
    for column, (name, place) in enumerate(maps.items()):
        ax = figure.add_axes((0.03 + column / len(maps), 0.13, 1 / len(maps) - 0.05, 0.69))
        size = float(np.clip(9000 / max(len(target), 1), 5, 36))
        ax.scatter(*place[order].T, c=table[target[order]], s=size, linewidths=0, alpha=0.75, rasterized=True)
        for c in range(len(classes)):
            if (target == c).any():  # the middle of each class
                style = {"marker": "P", "s": 170, "edgecolors": "white", "linewidths": 1.6, "zorder": 3}
                ax.scatter(*np.median(place[target == c], axis=0), color=table[c], **style)
        low, high = np.percentile(place, [0.5, 99.5], axis=0) if len(place) else np.array([[0, 0], [1, 1]])
        room = 0.06 * np.maximum(high - low, 1e-9)
        ax.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=12.5, color=INK)
        for side in ax.spines.values():
            side.set_color("#b0b0b0")
    counts = np.bincount(target[target >= 0], minlength=len(classes))
    dots = {"linestyle": "none", "marker": "o", "markersize": 9}
    marks = [Line2D([], [], color=table[c], label=f"{n}  {counts[c]:,}", **dots) for c, n in enumerate(classes)]
    marks.append(Line2D([], [], color="#666666", label="median of a class", **dots | {"marker": "P", "markersize": 11}))
    figure.legend(handles=marks, loc="lower center", ncols=min(len(marks), 7), fontsize=11, frameon=False,
                  handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    figure.text(0.5, 0.955, title or "events in latent space", ha="center", fontsize=14, fontweight="bold", color=INK)
    figure.text(0.5, 0.91, note, ha="center", fontsize=11, color=INK)
    return save(figure, path)
