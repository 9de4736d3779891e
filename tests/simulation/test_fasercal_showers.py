"""Materials, showers and tracks of FASERCal against the textbook: numbers of the PDG review and of Fabjan & Gianotti,
Rev. Mod. Phys. 75 (2003) 1243."""

import math

import numpy as np
import pytest
from scipy.special import gammainc

from nufm.simulation.fasercal.deposits import PRIMARY, SECONDARY, clear, make_deposits
from nufm.simulation.fasercal.geometry import AHCAL, CAL3D, ECAL, SPECTROMETER, World, world_of
from nufm.simulation.fasercal.material import mixture
from nufm.simulation.fasercal.profiles import electromagnetic_radii, gamma_cdf, radius
from nufm.simulation.fasercal.showers import CHARGED, ELECTRON, MUON, NEUTRAL, PHOTON, deposit_particles
from nufm.simulation.rng import seed_state

MASS = {ELECTRON: 0.511, PHOTON: 0.0, MUON: 105.66, CHARGED: 139.57, NEUTRAL: 939.57}
CATEGORY = {ELECTRON: 0, PHOTON: 0, MUON: 1, CHARGED: 2, NEUTRAL: 2}
FRONT = (5.0, 5.0, -1194.4)


def block(pitch=80.0, cells=100) -> World:
    """A cube of the voxel calorimeter's mixture so large that nothing leaves it."""
    world = world_of()
    half = 0.5 * pitch * cells
    low = np.array([[-half, -half, -half], [-half, -half, half + 100.0]])
    high = np.array([[half, half, half], [half, half, half + 200.0]])
    grid = world.cells.copy()
    grid[CAL3D] = cells
    pitches = world.pitch.copy()
    pitches[CAL3D] = pitch
    return World(low, high, np.array([CAL3D, SPECTROMETER]), np.zeros(2, np.int64), grid, pitches, world.medium)


class Beam:
    """Shoots particles, one at a time."""

    def __init__(self, world: World, seed: int = 1) -> None:
        self.world, self.work, self.state = world, make_deposits(world), seed_state(seed)

    def __call__(self, kind, gev, n=1, start=FRONT, direction=(0.0, 0.0, 1.0), generation=0):
        for _ in range(n):
            clear(self.work)
            exits, mass = np.zeros((1, 7)), MASS[kind]
            p = math.sqrt((gev * 1e3 + mass) ** 2 - mass**2)
            deposit_particles(
                self.world,
                self.work,
                self.state,
                np.array([kind]),
                np.array([CATEGORY[kind]]),
                np.array([mass]),
                p * np.array([direction]),
                np.array([start]),
                np.zeros((1, 3)),
                np.array([generation]),
                exits,
            )
            count = self.work.count[0]
            assert self.work.count[1] == 0
            yield (
                self.work.cell[:count].copy(),
                self.work.energy[:count].astype(float),
                self.work.label[:count].copy(),
                self.work.ecal.sum(),
                self.work.ahcal.sum(),
                exits[0],
            )


@pytest.fixture(scope="module")
def detector():
    return Beam(world_of())


@pytest.fixture(scope="module")
def large():
    return Beam(block())


def layers(cell):
    """Layer 0..199 of voxels of the detector."""
    return cell % 20 + 20 * (cell // 46080)


def test_a_mixture_of_one_substance_is_that_substance():
    iron = mixture({"iron": 3.0})
    assert iron.radiation_length == pytest.approx(17.57) and iron.interaction_length == pytest.approx(167.7)
    assert iron.critical_energy == pytest.approx(21.68) and iron.mip_visible == 0.0
    assert iron.moliere_radius == pytest.approx(17.18, rel=0.02)  # PDG: 1.719 cm
    lead = mixture({"lead": 1.0})
    assert lead.moliere_radius == pytest.approx(16.02, rel=0.02)  # PDG: 1.602 cm


def test_mixtures_by_hand():
    """10 mm polystyrene (X0 413.1 mm) and 1 mm tungsten (3.504 mm): 11 mm are 0.3096 X0."""
    m = mixture({"polystyrene": 10.0, "tungsten": 1.0})
    assert m.radiation_length == pytest.approx(11 / (10 / 413.1 + 1 / 3.504))
    assert m.layer == 11.0 and m.mip_visible == pytest.approx(2.052 / (2.052 + 2.210), rel=1e-3)
    assert 0.5 < m.electron_visible / m.mip_visible < 0.8  # e/mip of tungsten with scintillator
    assert m.straggling * 11 == pytest.approx(0.0875, rel=0.01)  # ξ of 10 mm of polystyrene, MeV


@pytest.mark.parametrize("layer", [{"gold": 1.0}, {"iron": 0.0}, {"iron": float("nan")}])
def test_a_material_that_cannot_be_is_refused(layer):
    with pytest.raises(ValueError, match=r"expected thicknesses > 0 mm of polystyrene"):
        mixture(layer)


def test_the_world_is_the_detector():
    world = world_of()
    assert world.kind.tolist() == [CAL3D] * 10 + [ECAL, AHCAL, SPECTROMETER]
    assert (world.low[1:, 2] > world.high[:-1, 2]).all()  # one behind the other, with gaps
    assert world.low[0].tolist() == [-240, -240, -1194.5] and world.high[9, 2] == pytest.approx(1194.5)
    assert world.high[ECAL + 9].tolist() == [300, 300, 1620.5] and world.high[11, 2] == pytest.approx(2564.5)


@pytest.mark.parametrize("a", [0.6, 1.1, 3.0, 9.0])
def test_gamma_cdf_against_scipy(a):
    for x in (0.0, 1e-3, 0.5, 2.0, 8.0, 30.0):
        assert gamma_cdf.py_func(a, x) == pytest.approx(gammainc(a, x), abs=1e-8)


def test_radial_profile_integrates_to_its_median():
    """∫₀^R of 2 r R²/(r²+R²)² is one half; cut at r_max, u = 1 is r_max."""
    assert radius.py_func(0.5, 2.0, 1e6) == pytest.approx(2.0, rel=1e-6)
    assert radius.py_func(1.0 - 1e-12, 0.3, 5.0) == pytest.approx(5.0, rel=1e-6)
    core, tail, share = electromagnetic_radii.py_func(1.0, 10.0, 50.0)
    assert 0 < core < tail and 0 < share < 1


@pytest.mark.parametrize(("kind", "constant"), [(ELECTRON, -0.5), (PHOTON, 0.5)])
def test_shower_maximum_follows_ln_energy(detector, kind, constant):
    """PDG, eq. 34.36: t_max = ln(E/E_c) + C, C = −0.5 for electrons, +0.5 for photons; in radiation lengths."""
    medium = world_of().medium[CAL3D]
    offsets = []
    for gev in (5, 20, 100, 500):
        profile = np.zeros(200)
        for cell, energy, *_ in detector(kind, gev, 50 if gev == 500 else 200):
            np.add.at(profile, layers(cell), energy)
        depth = (np.arange(200) + 0.5) * 11.0 / medium.radiation_length
        near = slice(max(profile.argmax() - 9, 0), profile.argmax() + 10)
        curve = np.polyfit(depth[near], np.log(profile[near]), 2)  # a parabola through the maximum of the logarithm
        offsets.append(-0.5 * curve[1] / curve[0] - math.log(gev * 1e3 / medium.critical_energy))
    assert np.mean(offsets) == pytest.approx(constant, abs=0.3)
    assert np.ptp(offsets) < 0.6  # slope 1: the logarithm grows by 4.6


@pytest.mark.parametrize("gev", [10, 100])
def test_electromagnetic_containment(detector, gev):
    """98 % within 2.5 t_max (Fabjan & Gianotti, section 3), 90 % within one Molière radius, 95 % within two."""
    medium = world_of().medium[CAL3D]
    deep = near = far = total = 0.0
    length = 2.5 * (math.log(gev * 1e3 / medium.critical_energy) + 0.5) * medium.radiation_length
    for cell, energy, *_ in detector(ELECTRON, gev, 60):
        r = np.hypot((cell // 960 % 48 - 24) * 10.0, (cell // 20 % 48 - 24) * 10.0)  # from the axis at 5 mm
        total += energy.sum()
        deep += energy[layers(cell) * 11.0 < length].sum()
        near += energy[r < medium.moliere_radius].sum()
        far += energy[r < 2 * medium.moliere_radius].sum()
    assert deep / total == pytest.approx(0.98, abs=0.015)
    assert near / total == pytest.approx(0.90, abs=0.04)
    assert far / total == pytest.approx(0.95, abs=0.015)


def test_electron_energy_is_linear_and_resolution_falls(large):
    """Visible energy ∝ E within 2 % from 10 to 500 GeV; a resolution of about 10 %/√E."""
    medium = world_of().medium[CAL3D]
    for gev in (10, 50, 500):
        seen = [energy.sum() for _, energy, *_ in large(ELECTRON, gev, 60, start=(3.0, 3.0, -3900.0))]
        assert np.mean(seen) / (gev * 1e3 * medium.electron_visible) == pytest.approx(1.0, abs=0.02)
        assert np.std(seen) / np.mean(seen) * math.sqrt(gev) == pytest.approx(0.11, abs=0.04)


def test_hadron_energy_is_linear_within_a_few_per_cent(large):
    """The growing π⁰ share moves the response of pions by no more than e/h allows, if all energy is contained."""
    response, spread = [], []
    for gev in (10, 50, 150, 500):
        seen = [energy.sum() for _, energy, *_ in large(CHARGED, gev, 80, start=(3.0, 3.0, -3990.0))]
        response.append(np.mean(seen) / (gev * 1e3 * world_of().medium[CAL3D].electron_visible))
        spread.append(np.std(seen) / np.mean(seen))
    assert np.ptp(response) / np.mean(response) < 0.06
    assert 0.85 < response[0] < 1.0 and response[-1] > 0.9  # below electrons, closer to them at high energy
    # 45 %/√E of the nuclei's share and the π⁰ share's fluctuation
    assert spread[0] > spread[1] > spread[3] and spread[1] == pytest.approx(0.06, abs=0.02)


def test_hadrons_interact_after_an_interaction_length(large):
    """Depth of the first electromagnetic or secondary deposit of pions: exponential with λ_I (478 mm)."""
    depth = []
    for cell, _, label, *_ in large(CHARGED, 50, 200, start=(3.0, 3.0, -3990.0)):
        shower = label // 3 != PRIMARY
        depth.append(80.0 * (cell[shower] % 100).min() if shower.any() else 8000.0)
    assert np.mean(depth) == pytest.approx(world_of().medium[CAL3D].interaction_length, rel=0.2)


def test_more_pi0_at_higher_energy(large):
    shares = []
    for gev in (5, 50, 500):
        em = total = 0.0
        for _, energy, label, *_ in large(CHARGED, gev, 60, start=(3.0, 3.0, -3990.0)):
            em, total = em + energy[label % 3 == 0].sum(), total + energy.sum()
        shares.append(em / total)
    expected = [1 - gev**-0.18 for gev in (5, 50, 500)]  # Gabriel et al.
    assert np.allclose(shares, expected, atol=0.1) and shares[0] < shares[1] < shares[2]


def test_a_muon_leaves_a_minimum_ionising_track(detector):
    """One voxel per layer, most of them near 1.7 MeV (most probable loss in 10 mm of polystyrene, PDG), through all."""
    charges, lost = [], []
    for cell, energy, label, ecal, ahcal, exits in detector(MUON, 100, 40):
        own = label == PRIMARY * 3 + 1
        assert len(np.unique(layers(cell[own]))) == 200
        charges.append(energy[own])
        assert exits[2] == pytest.approx(2600.0) and exits[6] > 0
        lost.append(1e5 - exits[6])
        assert ecal > 20 and ahcal > 10
    charges = np.concatenate(charges)
    histogram, edges = np.histogram(charges, bins=60, range=(0, 6))
    assert edges[histogram.argmax()] + 0.05 == pytest.approx(1.75, abs=0.15)
    assert charges.mean() > np.median(charges) > edges[histogram.argmax()]  # a tail to high losses
    # 200 layers, 66 layers of lead, 40 of iron: 0.85 + 0.22 + 0.94 GeV of minimum ionisation, radiation on top
    assert 1.9e3 < np.median(lost) < 3.0e3


def test_a_slow_pion_stops(large):
    """A pion of 150 MeV ends where its energy is gone, and shows no more than it had."""
    medium = world_of().medium[CAL3D]
    stopped = []
    for cell, energy, *_ in large(CHARGED, 0.15, 60, start=(3.0, 3.0, -3990.0)):
        stopped.append((80.0 * (cell % 100).max(), energy.sum()))
    path, seen = np.array(stopped).T
    assert np.median(path) < 150.0 / medium.minimum_loss + 80
    assert seen.max() <= 150.0


def test_hierarchy_follows_the_generations(detector):
    def share(kind, hierarchy, generation=0):
        shots = detector(kind, 20, 20, generation=generation)
        seen = [(e[label // 3 == hierarchy].sum(), e.sum()) for _, e, label, *_ in shots]
        return np.sum(seen, 0)[0] / np.sum(seen, 0)[1]

    assert 0 < share(ELECTRON, PRIMARY) < 0.1  # an electron is itself for about a radiation length
    assert share(ELECTRON, PRIMARY, generation=1) == 0 and share(PHOTON, PRIMARY) == 0
    assert 0 < share(PHOTON, SECONDARY) < 0.2
    assert share(MUON, PRIMARY) > 0.8 and share(MUON, SECONDARY, generation=1) > 0.8
    assert share(NEUTRAL, PRIMARY) == 0 and share(NEUTRAL, SECONDARY) > 0.2


def test_what_leaves_one_calorimeter_goes_on_in_the_next(detector):
    """A pion that enters the last module deposits behind it; one that flies away from the beam reaches nothing."""
    back = [(ecal, ahcal) for *_, ecal, ahcal, _ in detector(CHARGED, 100, 20, start=(0.0, 0.0, 1100.0))]
    assert (np.array(back) > 0).any(1).all()
    sideways = detector(PHOTON, 50, 5, start=(0.0, 0.0, 0.0), direction=(0.0, 1.0, 0.0))
    assert all(ecal == ahcal == 0 for *_, ecal, ahcal, _ in sideways)
    for *_, ecal, ahcal, exits in detector(MUON, 100, 1, direction=(0.0, 0.0, -1.0), start=(0.0, 0.0, 1000.0)):
        assert ecal == ahcal == 0 and exits[6] == 0


def test_gaps_hold_nothing():
    """Energy along z is laid only where there is matter: between modules, 21 mm are air."""
    world = world_of()
    assert world.low[1, 2] - world.high[0, 2] == pytest.approx(21.0)
    depth = np.zeros(200)
    for cell, energy, *_ in Beam(world)(ELECTRON, 100, 40, start=(5.0, 5.0, world.low[1, 2] + 0.1)):
        np.add.at(depth, layers(cell), energy)
    # the profile does not jump at the gap before layer 40: it is a function of the depth in X0, not of the length
    assert depth[40] == pytest.approx(0.5 * (depth[38] + depth[42]), rel=0.05)
