"""Small beams for the transport tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from nufm.simulation.medium import LIQUID_ARGON, Medium
from nufm.simulation.transport import Primaries, Transported, transport

TABLES = Path(__file__).parent / "tables"
WIDE = (np.full(3, -1e5), np.full(3, 1e5))  # nothing leaves
# No nuclear interactions: ranges are those of the electronic stopping power alone.
ARGON_WITHOUT_NUCLEI = dataclasses.replace(
    LIQUID_ARGON,
    nuclear_collision_length=0.9e12,
    nuclear_interaction_length=1e12,
    pion_interaction_length=1e12,
)


def beam(pdg: int, kinetic: float, n: int) -> Primaries:
    """n equal particles from the origin along +z."""
    return Primaries(
        pdg=np.full(n, pdg),
        kinetic=np.full(n, float(kinetic)),
        position=np.zeros((n, 3)),
        direction=np.tile([0.0, 0.0, 1.0], (n, 1)),
        time=np.zeros(n),
    )


def slab(thickness: float) -> tuple[np.ndarray, np.ndarray]:
    """A layer from just before z = 0 to ``thickness`` mm, without sides."""
    return np.array([-1e5, -1e5, -1.0]), np.array([1e5, 1e5, thickness])


def shoot(
    pdg: int, kinetic: float, n: int, medium: Medium = LIQUID_ARGON, box=WIDE, seed: int = 1, **options
):
    return transport(beam(pdg, kinetic, n), medium, box, seed, **options)


def path_lengths(out: Transported, n: int) -> np.ndarray:
    """Length (n,) in mm of the first n tracks."""
    length = np.linalg.norm(out.step_end.astype(np.float64) - out.step_start, axis=1)
    own = out.step_track < n
    return np.bincount(out.step_track[own], weights=length[own], minlength=n)


def last_directions(out: Transported, n: int) -> np.ndarray:
    """Direction (n, 3) of the last step of the first n tracks."""
    own = np.flatnonzero(out.step_track < n)
    last = np.zeros(n, dtype=int)
    last[out.step_track[own]] = own
    way = out.step_end[last].astype(np.float64) - out.step_start[last]
    return way / np.linalg.norm(way, axis=1, keepdims=True)


def children(out: Transported, parents: int, process: int, pdg: int | None = None) -> np.ndarray:
    """Rows of the tracks made by ``process`` directly from the first ``parents`` tracks."""
    mask = (out.track_parent >= 0) & (out.track_parent < parents) & (out.track_process == process)
    if pdg is not None:
        mask &= out.track_pdg == pdg
    return np.flatnonzero(mask)


def balance(out: Transported) -> float:
    """Energy unaccounted for, MeV."""
    return out.kinetic_in + out.released - out.deposited - out.escaped
