"""Transported tracks of heavy particles against tables, and the contract of ``transport``."""

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from beams import (
    ARGON_WITHOUT_NUCLEI,
    TABLES,
    WIDE,
    balance,
    beam,
    children,
    last_directions,
    path_lengths,
    shoot,
    slab,
)

from nufm.simulation.medium import LIQUID_ARGON
from nufm.simulation.particles import ELECTRON_MASS, MUON_MASS, PROTON_MASS, Process
from nufm.simulation.stopping import K_HALF, Settings, max_transfer
from nufm.simulation.transport import Primaries, transport

MUON = np.genfromtxt(TABLES / "muon_liquid_argon.txt", names=True)[1:]
PROTON = np.genfromtxt(TABLES / "proton_argon.txt", names=True)
MM = 10 / LIQUID_ARGON.density  # g/cm2 -> mm


@pytest.mark.parametrize("kinetic", [100, 200, 400, 1000])
def test_muon_range(kinetic):
    """Mean path of 100 mu+ with straggling, delta rays and scattering: PDG liquid-argon CSDA range within 3
    %.

    One path scatters by about 3 %, the mean by 0.3 %.
    """
    out = shoot(-13, kinetic, 100, ARGON_WITHOUT_NUCLEI)
    expected = MUON["CSDARange"][MUON["T"] == kinetic][0] * MM
    assert path_lengths(out, 100).mean() == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("kinetic", [20, 50, 100, 200, 400])
def test_proton_range(kinetic):
    """NIST PSTAR CSDA range within 5 % (here 2 %), nuclear interactions switched off."""
    out = shoot(2212, kinetic, 60, ARGON_WITHOUT_NUCLEI)
    expected = np.interp(kinetic, PROTON["T"], PROTON["CSDARange"]) * MM
    assert path_lengths(out, 60).mean() == pytest.approx(expected, rel=0.02)


def test_range_straggling():
    """Bohr: variance of the range = int (d sigma^2/dx) / S^3 dT with d sigma^2/dx = xi T_max (1 -
    beta^2/2)."""
    n, kinetic = 400, 150.0
    path = path_lengths(shoot(2212, kinetic, n, ARGON_WITHOUT_NUCLEI), n)
    t = np.geomspace(1.0, kinetic, 4000)
    loss = np.interp(t, PROTON["T"], PROTON["dEdx"]) / MM
    gamma = 1 + t / PROTON_MASS
    beta2 = 1 - 1 / gamma**2
    growth = K_HALF * LIQUID_ARGON.z_over_a / MM / beta2 * max_transfer(PROTON_MASS, t) * (1 - beta2 / 2)
    integrand = growth / loss**3
    variance = np.sum(0.5 * (integrand[1:] + integrand[:-1]) * np.diff(t))
    assert path.std() == pytest.approx(np.sqrt(variance), rel=0.15)  # the estimate's own error is 3.5 %


def test_minimum_ionising_loss_and_landau_tail():
    """Energy lost in 3 cm by 270 MeV muons: the mean follows the PDG table, most lose less (Landau)."""
    n = 300
    out = shoot(13, 270.0, n, box=slab(30.0))
    assert out.kinetic_in - out.escaped == pytest.approx(n * 1.508 * 3 * LIQUID_ARGON.density, rel=0.03)
    own = out.step_track < n
    local = np.bincount(out.step_track[own], weights=out.step_energy[own], minlength=n)
    deltas = children(out, n, Process.IONISATION)
    lost = local + np.bincount(out.track_parent[deltas], weights=out.track_kinetic[deltas], minlength=n)
    assert lost.mean() == pytest.approx(1.508 * 3 * LIQUID_ARGON.density, rel=0.03)
    assert np.median(lost) < 0.96 * lost.mean()
    # most probable loss of the PDG review, eq. 34.12, for 3 cm at beta gamma = 3.3
    xi = K_HALF * LIQUID_ARGON.z_over_a * LIQUID_ARGON.density * 3
    gamma = 1 + 270 / MUON_MASS
    beta2 = 1 - 1 / gamma**2
    i = LIQUID_ARGON.mean_excitation * 1e-6
    probable = np.log(2 * ELECTRON_MASS * (gamma**2 - 1) / i) + np.log(xi / beta2 / i) + 0.2 - beta2 - 0.1935
    counts, edges = np.histogram(lost, bins=np.arange(4, 9, 0.3))
    peak = edges[np.argmax(np.convolve(counts, np.ones(3), "same"))] + 0.15
    assert peak == pytest.approx(xi / beta2 * probable, rel=0.06)


def test_delta_rays_follow_their_spectrum():
    """N(> T) = xi [1/T - 1/T_max - beta^2/T_max ln(T_max/T)] per length (PDG review eq. 34.8), Poisson
    errors."""
    n, kinetic, length = 400, 1000.0, 100.0
    out = shoot(13, kinetic, n, box=slab(length))
    energy = out.track_kinetic[children(out, n, Process.IONISATION)]
    gamma = 1 + kinetic / MUON_MASS
    beta2 = 1 - 1 / gamma**2
    largest = max_transfer(MUON_MASS, np.array([kinetic]))[0]
    xi = K_HALF * LIQUID_ARGON.z_over_a * LIQUID_ARGON.density * (length + 0.0) / 10 / beta2
    for cut in (0.15, 1.0, 10.0):
        expected = n * xi * (1 / cut - 1 / largest - beta2 / largest * np.log(largest / cut))
        assert abs((energy > cut).sum() - expected) < 4 * np.sqrt(expected) + 0.03 * expected
    assert energy.max() <= largest


@pytest.mark.parametrize("steps", [1.5, 0.3])
def test_multiple_scattering(steps):
    """Highland's angle behind half a radiation length (PDG review eq. 34.16), whatever the step length."""
    n, kinetic, length = 500, 3000.0, 70.0
    out = shoot(13, kinetic, n, box=slab(length), settings=Settings(step_max=steps))
    way = last_directions(out, n)
    angles = np.arctan(np.concatenate([way[:, 0], way[:, 1]]) / np.tile(way[:, 2], 2))
    pv = kinetic * (kinetic + 2 * MUON_MASS) / (kinetic + MUON_MASS)
    x = length / LIQUID_ARGON.radiation_length
    highland = 13.6 / pv * np.sqrt(x) * (1 + 0.038 * np.log(x))
    assert angles.std() == pytest.approx(highland, rel=0.11)  # 1000 angles: 2.2 % per standard deviation
    assert abs(angles.mean()) < 4 * highland / np.sqrt(2 * n)


@pytest.mark.parametrize("pdg, sign", [(-13, 1.0), (13, -1.0), (2212, 1.0)])
def test_curvature_in_a_magnetic_field(pdg, sign):
    """p = 0.3 B R: sagitta of a track in vacuum-like argon, positive charges turning as F = q v x B asks."""
    thin = dataclasses.replace(
        ARGON_WITHOUT_NUCLEI, name="thin", density=1.396e-6, radiation_length=1e9, mean_excitation=188.0
    )
    field = 1.5
    out = shoot(pdg, 800.0, 1, thin, box=slab(300.0), field=(0.0, field, 0.0))
    mass = MUON_MASS if abs(pdg) == 13 else PROTON_MASS
    momentum = np.sqrt(800 * (800 + 2 * mass))
    radius = momentum / (0.299792458 * field)  # mm for MeV/c and tesla
    end = out.step_end[out.step_track == 0][-1]
    # v along +z, B along +y: v x B points to -x
    expected = -sign * (radius - np.sqrt(radius**2 - float(end[2]) ** 2))
    assert end[0] == pytest.approx(expected, rel=2e-3)
    assert abs(end[1]) < 1e-3 * abs(end[0]) + 0.05


def test_time_of_flight():
    """A 2 GeV proton crosses 30 cm at 0.95 c, losing little."""
    out = shoot(2212, 2000.0, 1, ARGON_WITHOUT_NUCLEI, box=slab(300.0))
    beta = np.sqrt(1 - 1 / (1 + 2000 / PROTON_MASS) ** 2)
    last = np.flatnonzero(out.step_track == 0)[-1]
    assert out.step_time[last] == pytest.approx(out.step_start[last, 2] / (299.792458 * beta), rel=0.003)


def mixed(seed: int) -> Primaries:
    rng = np.random.default_rng(seed)
    pdg = rng.choice([13, -13, 211, -211, 111, 11, 22, 2212, 2112], size=6)
    direction = rng.normal(size=(6, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return Primaries(pdg, rng.uniform(30, 400, 6), rng.uniform(-500, 500, (6, 3)), direction, np.zeros(6))


BOX = (np.full(3, -1152.0), np.full(3, 1152.0))


def test_same_seed_same_arrays_whatever_ran_before():
    first = transport(mixed(0), LIQUID_ARGON, BOX, seed=42)
    transport(mixed(1), LIQUID_ARGON, BOX, seed=1)
    again = transport(mixed(0), LIQUID_ARGON, BOX, seed=42)
    other = transport(mixed(0), LIQUID_ARGON, BOX, seed=43)
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, name), err_msg=name)
    assert len(other.step_energy) != len(first.step_energy)


def test_threads_do_not_disturb_each_other():
    """The compiled part runs without the GIL; every event has its own stream."""
    serial = [transport(mixed(k), LIQUID_ARGON, BOX, seed=k) for k in range(12)]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda k: transport(mixed(k), LIQUID_ARGON, BOX, seed=k), range(12)))
    for one, other in zip(serial, threaded, strict=True):
        np.testing.assert_array_equal(one.step_energy, other.step_energy)
        np.testing.assert_array_equal(one.track_pdg, other.track_pdg)


def test_growing_arrays_give_the_same_event(monkeypatch):
    """An event that overflows its first arrays is run again with longer ones: same event as with room from
    the start."""
    roomy = transport(mixed(3), LIQUID_ARGON, BOX, seed=9)
    monkeypatch.setattr("nufm.simulation.transport._first_capacity", lambda primaries: 7)
    tight = transport(mixed(3), LIQUID_ARGON, BOX, seed=9)
    assert len(roomy.track_pdg) > 100
    for name, value in vars(roomy).items():
        np.testing.assert_array_equal(value, getattr(tight, name), err_msg=name)


def test_form_of_the_result():
    out = transport(mixed(2), LIQUID_ARGON, BOX, seed=5)
    tracks, steps = len(out.track_pdg), len(out.step_energy)
    assert out.step_track.dtype == np.int32 and out.step_energy.dtype == np.float32
    assert out.track_process.dtype == np.int8 and out.track_parent.dtype == np.int32
    assert out.step_start.shape == out.step_end.shape == (steps, 3)
    assert out.track_position.shape == out.track_direction.shape == (tracks, 3)
    np.testing.assert_array_equal(out.track_pdg[:6], mixed(2).pdg)
    assert (out.track_parent[:6] == -1).all() and (out.track_parent[6:] >= 0).all()
    assert (out.track_parent < np.arange(tracks)).all()
    assert (out.step_energy > 0).all() and out.step_track.max() < tracks
    assert out.step_energy.astype(np.float64).sum() == pytest.approx(out.deposited, rel=1e-5)
    np.testing.assert_allclose(np.linalg.norm(out.track_direction, axis=1), 1, atol=1e-9)
    inside = (out.step_start >= -1152.01) & (out.step_end <= 1152.01)
    assert inside.all()
    assert np.linalg.norm(out.step_end - out.step_start, axis=1).max() < 1.51


def test_no_primaries():
    none = Primaries(np.empty(0, int), np.empty(0), np.empty((0, 3)), np.empty((0, 3)), np.empty(0))
    out = transport(none, LIQUID_ARGON, BOX, seed=0)
    assert len(out.step_energy) == len(out.track_pdg) == 0
    assert out.kinetic_in == out.released == out.deposited == out.escaped == 0


def start(x: float, direction: float, pdg: int = 13, kinetic: float = 300.0) -> Primaries:
    return Primaries(
        np.array([pdg]),
        np.array([kinetic]),
        np.array([[x, 0.0, 0.0]]),
        np.array([[direction, 0.0, 0.0]]),
        np.zeros(1),
    )


def test_start_outside_the_box():
    """Towards the box: flies to it in vacuum. Past it or away: escapes, with its row and no deposits."""
    towards = transport(start(-2000.0, 1.0), LIQUID_ARGON, BOX, seed=3)
    assert towards.deposited > 100
    assert towards.step_start[0, 0] == pytest.approx(-1152)
    gamma = 1 + 300 / MUON_MASS
    beta = np.sqrt(1 - 1 / gamma**2)
    assert towards.step_time[0] == pytest.approx(848 / (299.792458 * beta), rel=1e-4)
    away = transport(start(-2000.0, -1.0), LIQUID_ARGON, BOX, seed=3)
    assert away.deposited == 0 and away.escaped == 300 and len(away.track_pdg) == 1
    rest = transport(start(-2000.0, 1.0, kinetic=0.0), LIQUID_ARGON, BOX, seed=3)
    assert rest.deposited == 0 and len(rest.track_pdg) == 1


def test_start_on_the_wall_leaving():
    out = transport(start(1152.0, 1.0), LIQUID_ARGON, BOX, seed=3)
    assert out.escaped == 300 and out.deposited == 0


@pytest.mark.parametrize("pdg", [22, 11, -11, 13, -13, 211, -211, 111, 321, -321, 2212, 2112])
def test_start_at_rest(pdg):
    out = transport(start(0.0, 1.0, pdg, 0.0), LIQUID_ARGON, BOX, seed=8)
    assert abs(balance(out)) < 1e-9
    assert (out.deposited > 0) == (pdg not in (22, 11, 2212))


def test_unknown_particle_is_refused():
    with pytest.raises(ValueError, match=r"primary 0: .* does not know PDG 3122; known are \[-321, .*2212\]"):
        transport(start(0.0, 1.0, 3122), LIQUID_ARGON, BOX, seed=0)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("kinetic", np.array([np.nan]), "primary 0: field 'kinetic' is nan"),
        ("kinetic", np.array([-1.0]), "kinetic energy -1.0 MeV"),
        ("kinetic", np.array([2e5]), "in MeV"),
        ("kinetic", np.array([1.0, 2.0]), "shape"),
        ("direction", np.array([[1.0, 1.0, 0.0]]), "unit vector"),
        ("position", np.array([[np.inf, 0, 0]]), "primary 0: field 'position'"),
    ],
)
def test_bad_primaries_are_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(start(0.0, 1.0), **{field: value})


def test_bad_surroundings_are_refused():
    one = beam(13, 10.0, 1)
    with pytest.raises(ValueError, match="low < high"):
        transport(one, LIQUID_ARGON, (np.zeros(3), np.zeros(3)), seed=0)
    with pytest.raises(ValueError, match="tesla"):
        transport(one, LIQUID_ARGON, WIDE, seed=0, field=(0.0, np.nan, 0.0))
    with pytest.raises(ValueError, match=r"'collision_cut' 0\.2 MeV must be below"):
        Settings(collision_cut=0.2)
    with pytest.raises(ValueError, match="'step_max' is nan"):
        Settings(step_max=float("nan"))
    with pytest.raises(ValueError, match="seed"):
        transport(one, LIQUID_ARGON, WIDE, seed=-1)


def test_compiled_code_is_keyed_to_every_file_it_comes_from():
    """Stale machine code after an update would be silent: all modules that the compiled ones import must be
    listed."""
    import nufm.simulation.compiled as module

    folder = Path(module.__file__).parent
    found = set()
    for path in folder.glob("*.py"):
        text = path.read_text()
        if "@compiled" in text:
            found.add(path.stem)
            found.update(re.findall(r"from nufm\.simulation\.(\w+) import", text))
    assert found - {"compiled", "medium"} == set(module.FILES)
