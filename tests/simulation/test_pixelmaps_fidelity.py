"""The numbers and the report of benchmarks/pixelmap_fidelity.py, on events counted by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate

from nufm.simulation.pixelmaps.event import PixelEvent
from nufm.simulation.pixelmaps.generator import Interaction
from nufm.simulation.truth import Truth

ROOT = Path(__file__).parents[2]


def _benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as when it is run as a script: it imports its neighbour
    path = ROOT / "benchmarks" / "pixelmap_fidelity.py"
    spec = importlib.util.spec_from_file_location("pixelmap_fidelity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fidelity = _benchmark()


def hand_made(voxels, energy, below: float = 0.0) -> PixelEvent:
    """Muon neutrino of 2 GeV, lepton of 1.5 GeV, vertex in the middle of voxel (200, 200, 700)."""
    point = np.zeros((len(voxels), 8), dtype=np.float32)
    point[:, :3], point[:, 3] = np.reshape(voxels, (-1, 3)), energy
    interaction = Interaction(
        pdg=np.array([13, 2212]),
        momentum=np.array([[0.0, 0.0, 1.4963, 1.5], [0.0, 0.0, 0.5, 1.06]]),
        neutrino=14,
        energy=2.0,
        is_cc=True,
        mode=0,
        nucleon=2112,
        target=np.array([0.0, 0.0, 0.0, 0.939565]),
        q2=0.1,
        w=0.938272,
    )
    truth = Truth(point, np.array([[len(point), -1, -1, -1, 4, -1]]), np.full((1, 5), -1.0), below, 0.0)
    return PixelEvent(truth, interaction, 0, np.array([2.5, 2.5, 2.5]))


def test_numbers_of_an_event_counted_by_hand() -> None:
    # three voxels in one pixel of XZ, two in one of YZ, one just outside of the maps (256 columns downstream)
    voxels = [[200, 200, 700], [200, 201, 700], [200, 202, 700], [201, 202, 700], [200, 200, 956]]
    found = fidelity.numbers(hand_made(voxels, [1.0, 2.0, 3.0, 4.0, 10.0], below=5.0))
    assert found["voxels"] == 5
    assert (found["pixels of XZ"], found["pixels of YZ"]) == (2, 3)
    assert found["visible energy, MeV"] == 20
    assert found["visible energy / neutrino energy"] == pytest.approx(0.01)
    assert found["charge inside the maps, share"] == pytest.approx(0.5)
    assert found["charge below the threshold, share"] == pytest.approx(0.2)
    assert found["inelasticity"] == pytest.approx(0.25)
    # far to one side in x: out of the map XZ, inside the map YZ
    aside = fidelity.numbers(hand_made([[200, 200, 700], [200 - 257, 200, 701]], [1.0, 3.0]))
    assert (aside["pixels of XZ"], aside["pixels of YZ"]) == (1, 2)
    assert aside["charge inside the maps, share"] == pytest.approx((1 / 4 + 1) / 2)
    last = fidelity.numbers(hand_made([[200, 200, 955], [-56 + 0, 200, 700]], [1.0, 3.0]))
    assert last["charge inside the maps, share"] == 1.0  # the map's first row and last column


def test_an_event_without_charge_has_numbers() -> None:
    found = fidelity.numbers(hand_made(np.zeros((0, 3)), []))
    assert found["voxels"] == found["pixels of XZ"] == 0
    assert np.isfinite(list(found.values())).all()


def test_y_at_rest_is_the_share_of_energy() -> None:
    """On a nucleon at rest y is the inelasticity, and the neutrino has the energy it has."""
    energy, y = fidelity.at_rest(hand_made([[200, 200, 700]], [1.0]).interaction)
    assert energy == pytest.approx(2.0, rel=1e-3)
    assert y == pytest.approx(0.25, rel=1e-6)


def test_the_density_of_y_is_a_mean_over_x() -> None:
    """Brute force: x drawn, kinematics asked one by one."""
    rng = np.random.default_rng(0)
    n, energy = 400_000, 5.0
    x = np.where(rng.uniform(size=n) < 0.75, rng.beta(1.5, 4.0, n), rng.beta(1.0, 8.0, n))
    for y in (0.3, 0.6, 0.97):
        q2 = 2 * fidelity.NUCLEON * energy * x * y
        w2 = fidelity.NUCLEON**2 + 2 * fidelity.NUCLEON * energy * y - q2
        allowed = (w2 > 1.6**2) & (q2 <= 4 * energy**2 * (1 - y))
        expected = (1 + 0.2 * (1 - y) ** 2) * allowed.mean()
        assert fidelity.density_of_y(np.array([y]), energy)[0] == pytest.approx(expected, abs=0.005)


def test_expected_y_is_normalised() -> None:
    drawn, y, grid, expected, p_value = fidelity.kinematics(seed=2, n=150)
    assert len(drawn) == 150
    assert 0 < len(y) < 150
    assert integrate.trapezoid(expected, grid) == pytest.approx(1.0, abs=0.02)
    assert 1e-4 < p_value <= 1


def test_the_report_in_small(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--events", "24", "--out", str(tmp_path)])
    full, speed = fidelity.kinematics, fidelity.speed
    monkeypatch.setattr(fidelity, "kinematics", lambda seed: full(seed, 60))
    monkeypatch.setattr(fidelity, "speed", lambda spec, seed: speed(spec, seed, 4))
    fidelity.main()
    text = (tmp_path / "pixelmap_fidelity.md").read_text()
    assert "simulated by nufm (24 events, seed 0)" in text
    assert "| νµ CC | νe CC | NC |" in text
    report = json.loads((tmp_path / "pixelmap_fidelity.json").read_text())
    assert report["data"] == "simulated by nufm"
    assert sum(report["modes"]["νµ CC"]) == pytest.approx(1.0)
    assert (tmp_path / "pixelmap_fidelity.png").stat().st_size > 10_000
