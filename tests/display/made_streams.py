"""An event of a detector with several streams, made by hand: a shower, a muon, pions and ghosts from one vertex."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from nufm.data.detector import load_stream_detector
from nufm.data.streams import Hits, StreamEvent

VERTEX = np.array([23.0, -41.0, -420.0])  # mm


def made_event(seed: int = 0, truth: bool = True, name: str = "made") -> StreamEvent:
    """νµ CC: a muon through everything, an electromagnetic shower, five pions, a hadronic shower that goes on in the
    calorimeters downstream, and ghosts near the hits."""
    rng = np.random.default_rng(seed)
    detector = load_stream_detector("fasercal")
    places, energies, kinds, orders = [], [], [], []

    def add(place: np.ndarray, energy: np.ndarray, kind: int, order: int) -> None:
        places.append(place)
        energies.append(energy)
        kinds.append(np.full(len(place), kind))
        orders.append(np.full(len(place), order))

    def line(slope: tuple[float, float], length: float, kind: int, order: int, step: float = 5.0) -> None:
        z = np.arange(0.0, length, step)
        place = VERTEX + np.stack([slope[0] * z, slope[1] * z, z], axis=1) + rng.normal(0, 1.0, (len(z), 3))
        add(place, rng.gamma(4.0, 0.25, len(z)), kind, order)

    line((0.02, 0.015), 2700.0, 1, 1)
    for _ in range(5):
        line(tuple(rng.normal(0, 0.08, 2)), rng.exponential(500.0) + 60, 2, 1)
    depth = rng.gamma(4.0, 40.0, 9000)
    spread = rng.exponential(6.0 + 0.03 * depth)[:, None] * rng.normal(0, 1, (9000, 2))
    along = np.column_stack([-0.05 * depth + spread[:, 0], 0.06 * depth + spread[:, 1], depth])
    add(VERTEX + along, rng.exponential(1.2, 9000), 0, 1)
    depth = 700 + rng.gamma(2.5, 420.0, 7000)
    spread = rng.exponential(20.0 + 0.04 * (depth - 700))[:, None] * rng.normal(0, 1, (7000, 2))
    along = np.column_stack([0.05 * depth + spread[:, 0], -0.03 * depth + spread[:, 1], depth])
    add(VERTEX + along, rng.exponential(1.0, 7000), 2, 2)
    place, energy = np.concatenate(places), np.concatenate(energies)
    kind, order = np.concatenate(kinds), np.concatenate(orders)
    voxels = {}
    for stream, shape in detector.voxels.items():
        local = place - shape.low_mm
        period = shape.module_pitch_mm or np.inf
        module = np.floor(local[:, 2] / period).astype(int)
        if shape.modules > 1:
            local[:, 2] -= module * shape.module_pitch_mm
        index = np.floor(local / shape.pitch_mm).astype(int)
        inside = ((index >= 0) & (index < shape.lattice)).all(1) & (module >= 0) & (module < shape.modules)
        cell = np.column_stack([module, index])[inside]
        cells, inverse = np.unique(cell, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        charge = np.bincount(inverse, energy[inside], len(cells))
        shares = np.zeros((2, len(cells), 3))
        np.add.at(shares[0], (inverse, order[inside]), energy[inside])
        np.add.at(shares[1], (inverse, kind[inside]), energy[inside])
        shares /= charge[:, None]
        voxels[stream] = _hits(cells, charge, shares, shape.lattice, rng, truth and stream == "cal3d")
    ecal = detector.matrices["ecal"]
    inside = (place[:, 2] >= ecal.low_mm[2]) & (place[:, 2] < ecal.low_mm[2] + ecal.depth_mm)
    tower = np.floor((place[inside, :2] - ecal.low_mm[:2]) / ecal.pitch_mm).astype(int)
    fits = ((tower >= 0) & (tower < ecal.shape)).all(1)
    matrix = np.zeros(ecal.shape, np.float32)
    np.add.at(matrix, tuple(tower[fits].T), energy[inside][fits] * 4)
    facts = {
        "flavour": np.int64(0),
        "charm": np.int64(0),
        "visible": np.array([2.1, 0.4, 412.0], np.float32),
        "jet": np.array([-1.4, -1.2, 236.0], np.float32),
        "lepton": np.array([3.5, 1.6, 176.0], np.float32),
        "vertex": VERTEX.astype(np.float32),
        "neutrino_energy": np.float32(431.0),
    }
    return StreamEvent(
        voxels=voxels,
        matrices={"ecal": matrix},
        tracks={"muon": np.array([[-1.0, 3.4, 2.7, 171.0, 8.6]], np.float32)},
        truth=facts if truth else {},
        name=name,
        seed=seed,
    )


def _hits(
    cells: np.ndarray,
    charge: np.ndarray,
    shares: np.ndarray,
    lattice: tuple[int, ...],
    rng: np.random.Generator,
    truth: bool,
) -> Hits:
    """Hits of the cells (module, index); with truth also ghosts, as many as a third of the cells, near them."""
    ghost = np.zeros(len(cells), np.int8)
    if truth:
        near = cells[rng.integers(0, len(cells), len(cells) // 3)].copy()
        near[:, 1:3] += rng.integers(-6, 7, (len(near), 2))
        near = near[((near[:, 1:] >= 0) & (near[:, 1:] < lattice)).all(1)]
        near = np.unique(near, axis=0)
        near = near[~np.isin(near @ [10**6, 10**4, 100, 1], cells @ [10**6, 10**4, 100, 1])]
        cells = np.concatenate([cells, near])
        charge = np.concatenate([charge, rng.exponential(0.5, len(near))])
        ghost = np.concatenate([ghost, np.ones(len(near), np.int8)])
        shares = np.concatenate([shares, np.zeros((2, len(near), 3))], axis=1)
    labels = {"ghost": ghost, "hierarchy": shares[0], "category": shares[1]} if truth else {}
    floats = {k: v.astype(np.float32) if v.dtype != np.int8 else v for k, v in labels.items()}
    return Hits(cells[:, 1:].astype(np.int32), cells[:, 0].astype(np.int32), charge.astype(np.float32), **floats)


def empty_event() -> StreamEvent:
    """Everything read out, nothing in it."""
    none = Hits(np.zeros((0, 3), np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return StreamEvent(
        voxels={"cal3d": none, "ahcal": none},
        matrices={"ecal": np.zeros((5, 5), np.float32)},
        tracks={"muon": np.zeros((0, 5), np.float32)},
        name="empty",
    )


def one_hit() -> StreamEvent:
    """A single voxel, and nothing else read out."""
    hit = Hits(np.array([[10, 20, 5]], np.int32), np.array([3], np.int32), np.array([2.5], np.float32))
    return StreamEvent(voxels={"cal3d": hit}, name="one hit")


def write_events(path: Path, events: Sequence[StreamEvent]) -> Path:
    """An HDF5 file of these events, all with the same streams and truth."""
    with h5py.File(path, "w") as file:
        file.attrs.update(layout=1, detector="fasercal", producer="simulated by nufm", version="0", spec="{}", seed=0)
        for stream in events[0].voxels:
            hits = [e.voxels[stream] for e in events]
            for field in ("index", "module", "charge", "ghost", "hierarchy", "category"):
                if getattr(hits[0], field) is not None:
                    file[f"hits/{stream}/{field}"] = np.concatenate([getattr(h, field) for h in hits])
            file[f"hits/{stream}/offsets"] = np.cumsum([0, *map(len, hits)])
        for stream in events[0].matrices:
            file[f"matrices/{stream}"] = np.stack([e.matrices[stream] for e in events])
        for stream in events[0].tracks:
            file[f"tracks/{stream}/features"] = np.concatenate([e.tracks[stream] for e in events])
            file[f"tracks/{stream}/offsets"] = np.cumsum([0, *(len(e.tracks[stream]) for e in events)])
        for name in events[0].truth:
            file[f"truth/{name}"] = np.stack([e.truth[name] for e in events])
    return path
