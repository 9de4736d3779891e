"""Single particles in scintillator cubes, against formulae: light, ranges, curvature, neighbours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nufm.simulation.superfgd.event import (
    SPECIES,
    Light,
    SuperFGDSpec,
    electron_range_mm,
    quenched,
    read_out,
    shoot,
    simulate_event,
)
from nufm.simulation.transport import Transported
from nufm.simulation.voxels import Lattice

SPEC = SuperFGDSpec()
PLAIN = dataclasses.replace(SPEC, light=Light(birks=0.0, yield_per_mev=1e6, crosstalk=0.0, threshold=0.0))


def deposits(start: list, end: list, energy: list) -> Transported:
    """Hand-made steps of one track."""
    n = len(energy)
    none = np.zeros(0)
    return Transported(
        step_track=np.zeros(n, np.int32),
        step_start=np.array(start, np.float32).reshape(n, 3),
        step_end=np.array(end, np.float32).reshape(n, 3),
        step_energy=np.array(energy, np.float32),
        step_time=np.zeros(n, np.float32),
        **dict.fromkeys(("track_pdg", "track_parent", "track_process", "track_kinetic", "track_momentum"), none),
        **dict.fromkeys(("track_position", "track_direction", "track_time"), none),
        **{"kinetic_in": 0.0, "released": 0.0, "deposited": 0.0, "escaped": 0.0},
    )


def test_same_event_whatever_came_before():
    first = simulate_event(SPEC, 3, 0, 5)
    simulate_event(SPEC, 3, 0, 6)
    again = simulate_event(SPEC, 3, 0, 5)
    assert np.array_equal(first.index, again.index) and np.array_equal(first.charge, again.charge)
    other = simulate_event(SPEC, 3, 1, 5)
    assert not np.array_equal(first.momentum, other.momentum), "splits share no event"


def test_every_class_in_turn_and_hits_inside():
    for i in range(8):
        event = simulate_event(SPEC, 0, 0, i)
        assert event.particle == i % 4 and event.pdg in SPECIES[event.particle]
        assert 0.2 <= np.linalg.norm(event.momentum) <= 1.5
        assert len(event.index) >= SPEC.min_hits and (event.charge >= SPEC.light.threshold).all()
        assert ((event.index >= 0) & (event.index < 200)).all()
        assert len(np.unique(event.index, axis=0)) == len(event.index)


def test_quenching_is_birks_law():
    """A minimum-ionising 0.18 MeV/mm loses 2.2 %, a stopping proton of 5 MeV/mm 39 %."""
    light = quenched(np.array([1.8, 50.0]), np.array([10.0, 10.0]), 0.126)
    assert light == pytest.approx([1.8 / 1.02268, 50.0 / 1.63], rel=1e-4)


def test_charge_is_energy_without_quenching_and_crosstalk():
    event = deposits([[1, 1, 1], [-500, 0.5, 0.5]], [[1, 1, 1], [-480, 0.5, 0.5]], [2.0, 4.0])
    index, charge = read_out(PLAIN, event, np.random.default_rng(0))
    assert index.tolist() == [[50, 100, 100], [51, 100, 100], [100, 100, 100]]  # the step is split at the border
    assert charge / 1e6 == pytest.approx([2.0, 2.0, 2.0], rel=0.01)


def test_light_shared_with_neighbours_is_conserved():
    spec = dataclasses.replace(PLAIN, light=dataclasses.replace(PLAIN.light, crosstalk=0.05))
    index, charge = read_out(spec, deposits([[5, 5, 5]], [[5, 5, 5]], [3.0]), np.random.default_rng(0))
    share = charge / charge.sum()
    assert len(index) == 7 and charge.sum() / 1e6 == pytest.approx(3.0, rel=0.01)
    middle = (index == 100).all(1)
    assert share[middle] == pytest.approx([0.7], rel=0.01) and share[~middle] == pytest.approx([0.05] * 6, rel=0.01)
    assert (np.abs(index[~middle] - 100).sum(1) == 1).all(), "the six that share a face"


def test_light_at_the_wall_is_lost():
    spec = dataclasses.replace(PLAIN, light=dataclasses.replace(PLAIN.light, crosstalk=0.05))
    _, charge = read_out(spec, deposits([[-995, -995, -995]], [[-995, -995, -995]], [3.0]), np.random.default_rng(0))
    assert charge.sum() / 1e6 == pytest.approx(3.0 * (1 - 3 * 0.05), rel=0.01)


def test_cubes_below_the_threshold_are_not_seen():
    spec = dataclasses.replace(SPEC, light=Light(threshold=1e9))
    index, charge = read_out(spec, deposits([[5, 5, 5]], [[5, 5, 5]], [3.0]), np.random.default_rng(0))
    assert index.shape == (0, 3) and charge.shape == (0,)


def test_no_deposit_is_legal():
    index, charge = read_out(SPEC, deposits([], [], []), np.random.default_rng(0))
    assert index.shape == (0, 3) and charge.shape == (0,)


def test_electron_range_is_the_tabulated_one():
    """Practical range of 1 MeV electrons in light matter: 0.412 g/cm2 (Katz, Penfold 1952)."""
    assert electron_range_mm(np.array([1.0]), 1.032) == pytest.approx([4.12 / 1.032])


def test_proton_range():
    """CSDA range of protons in polyvinyltoluene, NIST PSTAR: 100 MeV 7.6 g/cm2, 200 MeV 25.5 g/cm2."""
    for kinetic, grams in ((100.0, 7.6), (200.0, 25.5)):
        momentum = np.sqrt(kinetic * (kinetic + 2 * 938.272))
        reach = []
        for seed in range(30):
            event = shoot(PLAIN, 2212, np.array([0.0, 0.0, momentum]), np.zeros(3), seed)
            mine = event.step_track == 0
            reach.append(np.linalg.norm(event.step_end[mine], axis=1).max())
        # Some scatter inelastically before they stop; the largest half does not.
        assert np.median(np.sort(reach)[15:]) / 10 * 1.032 == pytest.approx(grams, rel=0.05)


def test_minimum_ionising_muon_leaves_the_measured_light():
    """About 50 photoelectrons in a cube that a minimum-ionising muon crosses."""
    event = shoot(SPEC, 13, np.array([0.0, 0.0, 600.0]), np.array([5.0, 5.0, -900.0]), 1)
    index, charge = read_out(SPEC, event, np.random.default_rng(0))
    along = [charge[index[:, 2] == z].max() for z in range(15, 60)]
    assert 40 < np.median(along) < 60


def test_muon_bends_with_its_momentum():
    """Sagitta of a chord L: s = 0.3 B L² / (8 p), T, m, GeV/c; field and momentum at right angles."""
    spec = dataclasses.replace(SPEC, magnetic_field=(2.0, 0.0, 0.0))
    momentum, chord = 1.2, 0.5
    sagitta, bend = [], []
    for seed in range(40):
        event = shoot(spec, 13, np.array([0.0, 0.0, 1000 * momentum]), np.array([0.0, 0.0, -250.0]), seed)
        track = event.step_end[event.step_track == 0]
        at = [track[np.argmin(np.abs(track[:, 2] - z)), 1] for z in (-250.0, 0.0, 250.0)]
        bend.append(at[2])
        sagitta.append(abs((at[0] + at[2]) / 2 - at[1]) / 1000)
    # The mean momentum along the chord is less by half of what 0.5 m costs (about 0.1 GeV).
    expected = 0.3 * 2.0 * chord**2 / (8 * (momentum - 0.05))
    assert np.median(sagitta) == pytest.approx(expected, rel=0.1)
    other = shoot(spec, -13, np.array([0.0, 0.0, 1000 * momentum]), np.array([0.0, 0.0, -250.0]), 0)
    end = other.step_end[other.step_track == 0][-1, 1]
    assert np.sign(end) == -np.sign(np.median(bend)), "the other charge bends the other way"


def test_momenta_that_leave_nothing_end_with_a_message():
    spec = dataclasses.replace(SPEC, min_hits=10**6, lattice=Lattice((10, 10, 10), 10.0))
    with pytest.raises(ValueError, match="min_hits"):
        simulate_event(spec, 0, 0, 2)
    with pytest.raises(ValueError, match="momentum"):
        SuperFGDSpec(momentum=(3.0, 1.0))
