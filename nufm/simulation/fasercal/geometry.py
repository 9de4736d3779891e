"""The detector as the shower code sees it: slabs of matter one behind the other, with a grid of cells each.

Positions are in mm from the detector's origin, z along the beam. Between slabs is air without effect.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nufm.data.detector import StreamDetector, load_stream_detector
from nufm.simulation.fasercal.compiled import compiled
from nufm.simulation.fasercal.material import Mixture, mixture

CAL3D, ECAL, AHCAL, SPECTROMETER = range(4)


class World(NamedTuple):
    """Slabs in the order of z. S slabs, K = 4 kinds (CAL3D, ECAL, AHCAL, SPECTROMETER).

    Attributes:
        low, high: float64 (S, 3) corners, mm.
        kind: int64 (S,).
        module: int64 (S,) module within the kind.
        cells: int64 (K, 3) cells per axis of a slab.
        pitch: float64 (K, 3) mm.
        medium: K mixtures.
    """

    low: np.ndarray
    high: np.ndarray
    kind: np.ndarray
    module: np.ndarray
    cells: np.ndarray
    pitch: np.ndarray
    medium: tuple[Mixture, Mixture, Mixture, Mixture]


@lru_cache
def world_of(detector: str = "fasercal") -> World:
    """The slabs of a detector with the streams cal3d, ecal, ahcal and muon.

    Raises:
        ValueError: a stream is missing, or has no material.
    """
    geometry: StreamDetector = load_stream_detector(detector)
    try:
        cal, ahcal = geometry.voxels["cal3d"], geometry.voxels["ahcal"]
        ecal, muon = geometry.matrices["ecal"], geometry.tracks["muon"]
    except KeyError as error:
        raise ValueError(f"detector '{detector}' has no stream {error}, which this simulation fills") from error
    for name, stream in (("cal3d", cal), ("ahcal", ahcal), ("ecal", ecal), ("muon", muon)):
        if not stream.material:
            raise ValueError(f"detector '{detector}', stream '{name}': no material, expected mm per layer by substance")
    low, high, kind, module = [], [], [], []
    for m in range(cal.modules):
        corner = np.array(cal.low_mm) + np.array([0.0, 0.0, m * cal.module_pitch_mm])
        low.append(corner)
        high.append(corner + np.array(cal.lattice) * cal.pitch_mm)
        kind.append(CAL3D)
        module.append(m)
    low += [np.array(ecal.low_mm), np.array(ahcal.low_mm), np.array(muon.low_mm)]
    high += [
        low[-3] + (ecal.shape[0] * ecal.pitch_mm[0], ecal.shape[1] * ecal.pitch_mm[1], ecal.depth_mm),
        low[-2] + np.array(ahcal.lattice) * ahcal.pitch_mm,
        np.array(muon.high_mm),
    ]
    cells = [cal.lattice, (*ecal.shape, 1), ahcal.lattice, (1, 1, 1)]
    pitch = [cal.pitch_mm, (*ecal.pitch_mm, ecal.depth_mm), ahcal.pitch_mm, tuple(high[-1] - low[-1])]
    return World(
        np.array(low, dtype=np.float64),
        np.array(high, dtype=np.float64),
        np.array([*kind, ECAL, AHCAL, SPECTROMETER], dtype=np.int64),
        np.array([*module, 0, 0, 0], dtype=np.int64),
        np.array(cells, dtype=np.int64),
        np.array(pitch, dtype=np.float64),
        tuple(mixture(s.material) for s in (cal, ecal, ahcal, muon)),
    )


@compiled
def crossings(world, place, direction, slab, enter, leave):
    """Slabs that the ray place + s·direction, s > 0, crosses, in order: fills ``slab``, ``enter``, ``leave`` (S,) with
    slab numbers and path lengths (mm), returns how many."""
    n = 0
    for k in range(len(world.kind)):
        i = k if direction[2] >= 0 else len(world.kind) - 1 - k
        first, last = 0.0, 1e9
        for axis in range(3):
            if direction[axis] == 0.0:
                if place[axis] < world.low[i, axis] or place[axis] >= world.high[i, axis]:
                    last = -1.0
                continue
            a = (world.low[i, axis] - place[axis]) / direction[axis]
            b = (world.high[i, axis] - place[axis]) / direction[axis]
            first, last = max(first, min(a, b)), min(last, max(a, b))
        if last > first:
            slab[n], enter[n], leave[n] = i, first, last
            n += 1
    return n
