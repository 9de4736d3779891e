"""Colours of the hits of an event of several sub-detectors: energy, truth, and whatever a model says of each hit.

Shape legend: N hits of a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nufm.data.streams import CATEGORY_NAMES, HIERARCHY_NAMES, Hits, StreamEvent
from nufm.display.colours import Panel, class_panel, energies_panel, energy_limits, rgb_of
from nufm.display.stream_geometry import unit_of

FOR, AGAINST = "#c43c00", "#0050a0"  # saliency
GHOST_NAMES = ("real", "ghost", "unmatched")
GHOST_COLOURS = ("#0072b2", "#e69f00", "#009e73")
SHARE_NOTE = "shade: share along the line of sight"
HIERARCHY_COLOURS = ("#56b4e9", "#009e73", "#882255")  # background, primary, secondary
CATEGORY_COLOURS = ("#0072b2", "#e69f00", "#d55e00")  # electromagnetic, muonic, hadronic
NO_LABEL = "ghost or no label"


@dataclass(frozen=True)
class StreamPanel:
    """One way to colour an event: ``panels``, stream -> colours of its hits, for the streams that have them."""

    title: str
    panels: Mapping[str, Panel]


@dataclass(frozen=True)
class Explanation:
    """What a model says of an event.

    Attributes:
        lines: further lines of the heading.
        panels: further colourings of the hits.
        vertex: (3,) mm, where it sees the interaction; None if it does not say.
    """

    lines: tuple[str, ...] = ()
    panels: tuple[StreamPanel, ...] = ()
    vertex: np.ndarray | None = None


def stream_panels(event: StreamEvent) -> list[StreamPanel]:
    """Energy, and the truth that the hits carry."""
    truths = [
        StreamPanel(f"{title} (truth)", panels)
        for title, make in (
            ("particle category", category_panel),
            ("hierarchy", hierarchy_panel),
            ("ghosts", ghost_panel),
        )
        if (panels := {s: p for s, h in event.voxels.items() if (p := make(h)) is not None})
    ]
    return [energy_panels(event), *truths]


def energy_panels(event: StreamEvent) -> StreamPanel:
    """Energies (or charges, where the detector's are not MeV) of all voxel streams, on one scale."""
    everything = np.concatenate([np.zeros(0), *(h.charge for h in event.voxels.values())])
    limits, unit = energy_limits(everything), unit_of(event)
    panels = {s: charge_panel(h.charge, limits, unit) for s, h in event.voxels.items()}
    return StreamPanel("energy" if unit == "MeV" else "charge", panels)


def charge_panel(charge: np.ndarray, limits: tuple[float, float], unit: str) -> Panel:
    """Charges (N,) on a logarithmic scale between ``limits``: energies, where their unit is MeV."""
    panel = energies_panel(charge, limits)
    return panel if unit == "MeV" else replace(panel, title="charge", label=f"charge of a voxel ({unit})")


def category_panel(hits: Hits) -> Panel | None:
    """The kind of particle with the largest share of each hit; None without truth."""
    if hits.category is None:
        return None
    return share_panel("particle category (truth)", hits.category, CATEGORY_NAMES, CATEGORY_COLOURS)


def hierarchy_panel(hits: Hits) -> Panel | None:
    """The generation with the largest share of each hit; None without truth."""
    if hits.hierarchy is None:
        return None
    return share_panel("hierarchy (truth)", hits.hierarchy, HIERARCHY_NAMES, HIERARCHY_COLOURS)


def saliency_panel(values: np.ndarray, target: str) -> Panel:
    """Charge × gradient (N,) of a class: orange speaks for it, blue against it, pale grey for neither.

    The scale is linear, and ends where two values in a hundred are larger.
    """
    values = np.asarray(values, dtype=np.float64)
    limit = max(float(np.percentile(np.abs(values), 98)) if len(values) else 0.0, 1e-12)
    share = np.clip(np.abs(values) / limit, 0, 1)[:, None]
    ends = np.where(values[:, None] > 0, rgb_of(FOR), rgb_of(AGAINST))
    middle = np.array(rgb_of("#dedede"))
    rgb = np.clip(middle + (ends - middle) * share**0.7, 0, 1)
    return Panel(f"saliency for {target}", rgb, front=np.abs(values))


def share_panel(title: str, shares: np.ndarray, names: tuple[str, ...], colours: tuple[str, ...]) -> Panel:
    """Soft shares (N, K), coloured by the largest; rows of 0 or NaN have no label, and are drawn behind."""
    shares = np.nan_to_num(np.asarray(shares, dtype=np.float64))
    label = np.where(shares.sum(1) > 0, shares.argmax(1), len(names)) if len(shares) else np.zeros(0, int)
    return _last_behind(class_panel(title, label, (*names, NO_LABEL), (*colours, "#d8d8d8")), NO_LABEL)


def ghost_panel(hits: Hits) -> Panel | None:
    """Which hits are ghosts of the projections; None without truth.

    A ghost is where real hits are in each view, so in a projection one of the two would hide the other.
    """
    if hits.ghost is None:
        return None
    panel = class_panel("ghosts (truth)", hits.ghost.astype(int), GHOST_NAMES, GHOST_COLOURS)
    return replace(panel, share=(hits.ghost == 1).astype(float))


def _last_behind(panel: Panel, name: str) -> Panel:
    behind = tuple(row for row, words in enumerate(panel.names) if words.startswith(name))
    return replace(panel, behind=behind)

