"""Where the parts of an event of several sub-detectors are, in cm, and what is said about it in words.

Shape legend: N hits of a stream, K points of a path. Lengths are in cm from the detector's origin, energies in MeV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nufm.data.detector import StreamDetector, TrackStream, load_stream_detector
from nufm.data.particles import PARTICLE_NAMES
from nufm.data.streams import CHARM_NAMES, FLAVOUR_NAMES, StreamEvent
from nufm.display.geometry import energy_text, is_simulated

TITLES = {"cal3d": "3DCal", "ecal": "ECAL", "ahcal": "AHCAL", "muon": "muon spectrometer", "voxels": "volume"}
GEV_PER_TESLA_METRE = 0.299792458  # p = 0.3 B R
STEP_MM = 50.0


@dataclass(frozen=True)
class Box:
    """Outline of a sub-detector, or of one of its modules: corners ``low`` and ``high`` (3,)."""

    stream: str
    low: np.ndarray
    high: np.ndarray


def title_of(stream: str) -> str:
    return TITLES.get(stream, stream)


def unit_of(event: StreamEvent) -> str:
    """Unit of the charge of a hit."""
    return load_stream_detector(event.detector).units.get("charge", "MeV")


def amount_text(event: StreamEvent, amount: float) -> str:
    """A sum of charges, with a readable unit."""
    unit = unit_of(event)
    return energy_text(amount) if unit == "MeV" else f"{amount:,.0f} {unit}"


def hit_positions(event: StreamEvent, stream: str) -> np.ndarray:
    """float64 (N, 3) centres of the voxels that were hit; none if the stream is missing."""
    hits = event.voxels.get(stream)
    if hits is None:
        return np.zeros((0, 3))
    return load_stream_detector(event.detector).voxels[stream].position(hits.index, hits.module) / 10


def boxes(detector: StreamDetector) -> list[Box]:
    """Outlines of all sub-detectors, module by module, in the order of the streams."""
    found = []
    for stream, shape in detector.voxels.items():
        for module in range(shape.modules):
            low = np.add(shape.low_mm, [0, 0, module * shape.module_pitch_mm])
            found.append(Box(stream, low / 10, (low + np.multiply(shape.lattice, shape.pitch_mm)) / 10))
    for stream, shape in detector.matrices.items():
        low = np.array(shape.low_mm)
        size = np.array([*np.multiply(shape.shape, shape.pitch_mm), shape.depth_mm])
        found.append(Box(stream, low / 10, (low + size) / 10))
    for stream, shape in detector.tracks.items():
        found.append(Box(stream, np.array(shape.low_mm) / 10, np.array(shape.high_mm) / 10))
    return found


def around(outlines: list[Box]) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,), (3,) of the box around all of ``outlines``."""
    return np.min([b.low for b in outlines], axis=0), np.max([b.high for b in outlines], axis=0)


def along_beam(detector: StreamDetector) -> list[str]:
    """The streams, the most upstream first."""
    front = {stream: around([b for b in boxes(detector) if b.stream == stream])[0][2] for stream in detector.streams}
    return sorted(front, key=front.__getitem__)


def start_of(event: StreamEvent) -> np.ndarray:
    """Where fitted tracks, which have a direction but no place, are drawn from: the true vertex (3,); else the middle
    of the most upstream hits; else the origin."""
    vertex = event.truth.get("vertex")
    if vertex is not None and np.isfinite(vertex).all():
        return np.asarray(vertex, dtype=np.float64) / 10
    place = np.concatenate([np.zeros((0, 3)), *(hit_positions(event, stream) for stream in event.voxels)])
    if len(place) == 0:
        return np.zeros(3)
    return np.median(place[place[:, 2] <= np.percentile(place[:, 2], 2)], axis=0)


def track_path(shape: TrackStream, row: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """A fitted track: float64 (2, 3) straight from ``start`` to the spectrometer, and (K, 3) bent in its field.

    A unit charge in a field of B tesla follows a circle of p = 0.3 B R, with p in GeV/c and R in m (PDG, Review of
    Particle Physics, section 35.12).

    Returns:
        None for a track that does not fly along the beam, or whose features do not name its momentum.
    """
    named = dict(zip(shape.features, map(float, row), strict=True))
    if not {"px", "py", "pz"} <= set(named) or named["pz"] <= 0:
        return None
    momentum = np.array([named["px"], named["py"], named["pz"]])
    place = np.asarray(start, dtype=np.float64) * 10
    place = place + momentum / momentum[2] * (shape.low_mm[2] - place[2])
    straight, bent = np.stack([start, place / 10]), [place / 10]
    strength, field = np.linalg.norm(momentum), np.array(shape.field_tesla)
    direction, charge = momentum / strength, named.get("charge", 0.0)
    while place[2] < shape.high_mm[2] and direction[2] > 0.05 and len(bent) < 1000:
        turn = charge * GEV_PER_TESLA_METRE * np.cross(direction, field) / strength * STEP_MM / 1000
        direction = (direction + turn) / np.linalg.norm(direction + turn)
        place = place + direction * min(STEP_MM, (shape.high_mm[2] - place[2]) / direction[2])
        bent.append(place / 10)
    return straight, np.array(bent)


# ---------------------------------------------------------------------- in words


def stream_line(event: StreamEvent, simulated: bool | None = None) -> str:
    """Detector, what is in each stream, and where the event comes from."""
    detector = load_stream_detector(event.detector)
    parts = [f"detector {event.detector}", *(stream_text(event, stream) for stream in along_beam(detector))]
    if is_simulated(event) if simulated is None else simulated:
        parts.append("simulated by nufm")
    return "   ·   ".join(parts)


def stream_text(event: StreamEvent, stream: str) -> str:
    """A stream's title, and what is in it."""
    name = title_of(stream)
    if stream in event.voxels:
        hits = event.voxels[stream]
        return f"{name} {_count(len(hits), 'hit')}, {amount_text(event, float(hits.charge.sum()))}"
    if stream in event.matrices:
        return f"{name} {energy_text(float(event.matrices[stream].sum()))}"
    if stream in event.tracks:
        return f"{name} {_count(len(event.tracks[stream]), 'track')}"
    return f"{name} not read out"


def truth_line(event: StreamEvent) -> str:
    """What is known of the interaction; empty if nothing is."""
    truth, parts = event.truth, []
    for name, names in (
        ("flavour", FLAVOUR_NAMES),
        ("charm", CHARM_NAMES),
        ("particle", PARTICLE_NAMES.get(event.detector, ())),
    ):
        if name in truth and 0 <= int(truth[name]) < len(names):
            parts.append(names[int(truth[name])])
    if np.isfinite(energy := float(truth.get("neutrino_energy", np.nan))):
        parts.append(f"Eν {gev(energy)} GeV")
    for name, word in (("lepton", "lepton"), ("jet", "jet")):
        p = np.asarray(truth.get(name, np.nan), dtype=np.float64)
        if np.isfinite(p).all() and p.any():
            parts.append(f"p({word}) {gev(float(np.linalg.norm(p)))} GeV/c")
    visible = np.asarray(truth.get("visible", np.nan), dtype=np.float64)
    if np.isfinite(visible).all():
        parts.append(f"missing pT {gev(float(np.hypot(*visible[:2])))} GeV/c")
    vertex = np.asarray(truth.get("vertex", np.nan), dtype=np.float64)
    if np.isfinite(vertex).all():
        parts.append("vertex ({:.1f}, {:.1f}, {:.1f}) cm".format(*(vertex / 10)))
    return "truth: " + "   ·   ".join(parts) if parts else ""


def gev(value: float) -> str:
    """Three digits, no exponent."""
    if abs(value) < 1e-3:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
