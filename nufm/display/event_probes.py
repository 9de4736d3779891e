"""Picture of the probes of whole events: flavour and vertex, one bar for each kind of features (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nufm.display.plots import BARS, DPI, INK, plain_axes, save


def draw_event_probes(report: Mapping, path: str | Path) -> Path:
    """Bars: area under the ROC curve per flavour and their mean, and the mean distance of the vertex; whiskers are
    standard deviations over the seeds.

    Args:
        report: as ``report.json`` of a pretraining on events of several sub-detectors.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    rows, groups = list(report["scores"].values()), ["macro", *report["classes"]]
    figure = Figure(figsize=(13.5, 5.0), dpi=DPI, facecolor="white")
    flavour = figure.add_axes((0.055, 0.11, 0.655, 0.62))
    vertex = figure.add_axes((0.775, 0.11, 0.21, 0.62))
    width = 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = np.array([np.nan if v is None else v for v in (row["macro_auc"], *row["auc"])])
        x = np.arange(len(groups)) + (i - (len(rows) - 1) / 2) * width
        colour = BARS[i % len(BARS)]
        flavour.bar(x, values, 0.92 * width, color=colour, label=row["label"], zorder=2)
        style = {"fmt": "none", "ecolor": INK, "elinewidth": 1.3, "capsize": 3, "zorder": 4}
        flavour.errorbar(x[:1], values[:1], [row["macro_auc_std"]], **style)
        for place, value in zip(x, values, strict=True):
            if np.isfinite(value):
                flavour.text(place, value + 0.012, f"{value:.2f}", ha="center", va="bottom", fontsize=8, color=INK)
        if row["vertex_mean"] is not None:
            vertex.bar(i, row["vertex_mean"], 0.75, color=colour, zorder=2)
            vertex.errorbar([i], [row["vertex_mean"]], [row["vertex_mean_std"]], **style)
            high = row["vertex_mean"] + row["vertex_mean_std"]
            vertex.text(i, high, f"{row['vertex_mean']:.0f}", ha="center", va="bottom", fontsize=9, color=INK)
    flavour.axhline(0.5, color=INK, linewidth=0.9, linestyle=":", zorder=3)
    flavour.set_xticks(range(len(groups)), groups, fontsize=11)
    flavour.set_ylim(0.4, 1.06)
    flavour.set_ylabel("area under the ROC curve", fontsize=11, color=INK)
    flavour.set_title("flavour, one against the rest (dotted: chance)", fontsize=11, color=INK)
    flavour.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.08), ncols=len(rows), fontsize=11, frameon=False)
    vertex.axhline(report["mean_vertex"], color=INK, linewidth=0.9, linestyle=":", zorder=3)
    vertex.set_xticks([])
    vertex.set_ylabel("mean distance (mm)", fontsize=11, color=INK)
    vertex.set_title("vertex (dotted: always the mean)", fontsize=11, color=INK)
    for ax in (flavour, vertex):
        plain_axes(ax)
    note = "   (simulated by nufm)" if report.get("simulated") else ""
    figure.text(0.5, 0.945, f"{report['task']}{note}", ha="center", fontsize=13, fontweight="bold")
    return save(figure, path)
