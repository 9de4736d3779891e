"""Where the energy of an event is collected: deposits in the voxel calorimeter, cells of the others.

A deposit is what one particle of the generator leaves in one voxel in one way: hierarchy (0 background, 1 primary, 2
secondary) and category (0 electromagnetic, 1 muonic, 2 hadronic), see ``truth.py``. Energy is the visible one, in MeV.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nufm.simulation.fasercal.compiled import compiled, entry
from nufm.simulation.fasercal.geometry import AHCAL, CAL3D, ECAL, SPECTROMETER, World

BACKGROUND, PRIMARY, SECONDARY = range(3)
EM, MUONIC, HADRONIC = range(3)
CAPACITY = 3_000_000  # deposits of one event; some 10⁴ to 10⁵ are usual


class Deposits(NamedTuple):
    """What an event leaves; work space that is used again for the next one.

    Attributes:
        count: int64 (2,) deposits of the voxel calorimeter; those that found no room.
        cell: int32 (CAPACITY,) flat voxel ((module·nx + x)·ny + y)·nz + z.
        particle: int32 (CAPACITY,) row of the particle it goes back to.
        label: int8 (CAPACITY,) hierarchy · 3 + category.
        energy: float32 (CAPACITY,) MeV.
        row: int32 (voxels · 9,) deposit of this voxel and label made last.
        ecal, ahcal: float64, MeV per cell.
    """

    count: np.ndarray
    cell: np.ndarray
    particle: np.ndarray
    label: np.ndarray
    energy: np.ndarray
    row: np.ndarray
    ecal: np.ndarray
    ahcal: np.ndarray


def make_deposits(world: World) -> Deposits:
    """Empty work space for a detector."""
    voxels = int((world.kind == CAL3D).sum() * world.cells[CAL3D].prod())
    return Deposits(
        np.zeros(2, np.int64),
        np.zeros(CAPACITY, np.int32),
        np.zeros(CAPACITY, np.int32),
        np.zeros(CAPACITY, np.int8),
        np.zeros(CAPACITY, np.float32),
        np.full(voxels * 9, -1, np.int32),
        np.zeros(tuple(world.cells[ECAL])),
        np.zeros(tuple(world.cells[AHCAL])),
    )


@entry
def clear(deposits):
    deposits.row[:] = -1
    deposits.count[:] = 0
    deposits.ecal[:] = 0.0
    deposits.ahcal[:] = 0.0


@compiled
def add(world, deposits, slab, x, y, z, energy, first, particle, label):
    """Visible energy at a place (mm) of a slab; nothing if the place is outside. ``first``: the first deposit of this
    particle, older ones in the same voxel are another particle's."""
    kind = world.kind[slab]
    if kind == SPECTROMETER:
        return
    pitch, cells = world.pitch[kind], world.cells[kind]
    i = math.floor((x - world.low[slab, 0]) / pitch[0])
    j = math.floor((y - world.low[slab, 1]) / pitch[1])
    k = math.floor((z - world.low[slab, 2]) / pitch[2])
    if i < 0 or j < 0 or k < 0 or i >= cells[0] or j >= cells[1] or k >= cells[2]:
        return
    if kind == ECAL:
        deposits.ecal[i, j, k] += energy
    elif kind == AHCAL:
        deposits.ahcal[i, j, k] += energy
    else:
        cell = ((world.module[slab] * cells[0] + i) * cells[1] + j) * cells[2] + k
        row = deposits.row[cell * 9 + label]
        if row >= first:
            deposits.energy[row] += energy
            return
        row = deposits.count[0]
        if row >= len(deposits.cell):
            deposits.count[1] += 1
            return
        deposits.count[0] += 1
        deposits.row[cell * 9 + label] = row
        deposits.cell[row], deposits.particle[row], deposits.label[row] = cell, particle, label
        deposits.energy[row] = energy


@compiled
def add_anywhere(world, deposits, x, y, z, energy, first, particle, label):
    """The same at a place whose slab is not known."""
    for slab in range(len(world.kind)):
        if world.low[slab, 2] <= z < world.high[slab, 2]:
            add(world, deposits, slab, x, y, z, energy, first, particle, label)
            return
