"""The energy book of every event closes, and its ``released`` is what the list of tracks says it must be."""

import numpy as np
import pytest
from beams import balance, shoot

from nufm.simulation.hadronic import CAPTURE_SEPARATION, SEPARATION
from nufm.simulation.medium import LIQUID_ARGON, PLASTIC_SCINTILLATOR
from nufm.simulation.particles import ELECTRON_MASS, MUON_MASS, PION_MASS, PION_ZERO_MASS, Process
from nufm.simulation.transport import Primaries, transport

BOX = (np.full(3, -1152.0), np.full(3, 1152.0))


@pytest.mark.parametrize("medium", [LIQUID_ARGON, PLASTIC_SCINTILLATOR])
@pytest.mark.parametrize("field", [(0.0, 0.0, 0.0), (0.3, 1.0, -0.5)])
def test_mixed_events_close(medium, field):
    rng = np.random.default_rng(7)
    for seed in range(40):
        n = int(rng.integers(1, 9))
        direction = rng.normal(size=(n, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        pdg = rng.choice([13, -13, 211, -211, 111, 321, -321, 11, -11, 22, 2212, 2112], size=n)
        kinetic = rng.choice([0.0, 1.0, 1.0, 1.0], size=n) * rng.uniform(0.01, 800, n)
        start = Primaries(pdg, kinetic, rng.uniform(-1300, 1300, (n, 3)), direction, np.zeros(n))
        out = transport(start, medium, BOX, seed, field)
        scale = out.kinetic_in + abs(out.released) + 1.0
        assert abs(balance(out)) < 1e-12 * scale * np.sqrt(len(out.step_energy) + 10), (seed, pdg, kinetic)
        assert out.deposited >= 0 and out.escaped >= 0


MASS = {211: PION_MASS, -211: PION_MASS, 111: PION_ZERO_MASS}
NUCLEONS = (2112, 2212)


def released_from_tracks(out) -> float:
    """Second derivation of ``released`` for events in argon that nothing leaves, from parents and children
    alone."""
    total = 0.0
    children: dict[int, list[int]] = {}
    for row, parent in enumerate(out.track_parent):
        children.setdefault(int(parent), []).append(row)
    for row, pdg in enumerate(out.track_pdg):
        own = children.get(row, [])
        process = {int(out.track_process[c]) for c in own}
        made = [int(out.track_pdg[c]) for c in own if out.track_process[c] != Process.IONISATION]
        nucleons = sum(p in NUCLEONS for p in made)
        pions = sum(MASS.get(p, 0.0) for p in made)
        if pdg == 22 and Process.CONVERSION in process:
            total -= 2 * ELECTRON_MASS
        elif pdg == -11 and Process.ANNIHILATION in process:
            total += 2 * ELECTRON_MASS
        elif Process.DECAY in process:
            total += {13: MUON_MASS - ELECTRON_MASS, 211: PION_MASS - MUON_MASS, 111: PION_ZERO_MASS}[
                abs(pdg)
            ]
        elif Process.CAPTURE in process and pdg == 13:
            total += MUON_MASS - CAPTURE_SEPARATION * nucleons
        elif Process.CAPTURE in process and pdg == -211:
            total += PION_MASS - SEPARATION * nucleons
        elif Process.HADRON_INELASTIC in process:
            came = 1 if pdg in NUCLEONS else 0
            total += MASS.get(int(pdg), 0.0) - pions - SEPARATION * (nucleons - came)
        elif pdg == 2112:
            total += LIQUID_ARGON.neutron_capture_energy
    return total


@pytest.mark.parametrize(
    "pdg, kinetic", [(22, 400.0), (13, 60.0), (-13, 60.0), (211, 250.0), (-211, 150.0), (2212, 400.0)]
)
def test_released_energy_recounted(pdg, kinetic):
    for seed in range(4):
        out = shoot(pdg, kinetic, 3, seed=seed)
        assert out.released == pytest.approx(released_from_tracks(out), abs=1e-6)
