"""Neutrino interactions: conservation laws, kinematics, classes; decays against two-body and three-body formulas."""

import math
from collections import Counter

import numpy as np
import pytest

from nufm.simulation.fasercal.decays import (
    C_TAU_MM,
    CHARM_HADRONS,
    MASS,
    TAU_DECAYS,
    antiparticle,
    boosted,
    charge_of,
    charm_products,
    decay,
    phase_space,
    tau_products,
)
from nufm.simulation.fasercal.generator import FERMI_MOMENTUM, NATURAL, NATURAL_CHARM, NUCLEON, Beam, generate
from nufm.simulation.fasercal.geometry import CAL3D, world_of
from nufm.simulation.fasercal.truth import flavour_of, momenta, origin


def interactions(n, beam=None, seed=0):
    world = world_of()
    inside = world.kind == CAL3D
    rng = np.random.default_rng(seed)
    return [generate(beam or Beam(), world.low[inside], world.high[inside], rng) for _ in range(n)]


@pytest.fixture(scope="module")
def balanced():
    return interactions(1500)


def mass_of(p):
    return math.sqrt(max(p[..., 3] ** 2 - p[..., 0] ** 2 - p[..., 1] ** 2 - p[..., 2] ** 2, 0.0))


def test_four_momentum_is_conserved(balanced):
    """Neutrino + nucleon = particles of the interaction = stable particles after all decays."""
    for event in balanced:
        p = event.particles
        incoming = np.array([0.0, 0.0, event.energy, event.energy]) + event.target
        assert mass_of(event.target) == pytest.approx(NUCLEON)
        first = sum(m for m, mother in zip(p.momentum, p.mother, strict=True) if mother < 0)
        last = sum(m for m, decayed in zip(p.momentum, p.decayed, strict=True) if not decayed)
        assert np.allclose(first, incoming, atol=1e-6 * event.energy)
        assert np.allclose(last, incoming, atol=1e-6 * event.energy)
        for pdg, momentum in zip(p.pdg, p.momentum, strict=True):
            assert mass_of(momentum) == pytest.approx(MASS[abs(pdg)], abs=1e-5 * max(momentum[3], 1.0))


def test_charge_is_conserved(balanced):
    for event in balanced:
        p = event.particles
        target = 1 if event.nucleon == 2212 else 0
        assert sum(charge_of(pdg) for pdg, m in zip(p.pdg, p.mother, strict=True) if m < 0) == target
        assert sum(charge_of(pdg) for pdg, d in zip(p.pdg, p.decayed, strict=True) if not d) == target


def test_lepton_kinematics_are_those_of_x_and_y(balanced):
    """Q² = −(k − k')² = 2 M E x y and E' = (1 − y) E, from the four-momenta alone."""
    for event in balanced[:300]:
        k = np.array([0.0, 0.0, event.energy, event.energy])
        lepton = event.particles.momentum[event.lepton]
        q = k - lepton
        q2 = q[:3] @ q[:3] - q[3] ** 2
        assert q2 == pytest.approx(2 * NUCLEON * event.energy * event.x * event.y, rel=1e-5, abs=1e-5)
        assert lepton[3] == pytest.approx((1 - event.y) * event.energy)
        w2 = NUCLEON**2 + 2 * (event.target[3] * q[3] - event.target[:3] @ q[:3]) - q2
        assert event.w == pytest.approx(math.sqrt(w2), rel=1e-4)
        charged = abs(event.particles.pdg[event.lepton]) in (11, 13, 15)
        assert charged == event.is_cc


def test_classes_are_equally_frequent(balanced):
    flavours = np.bincount([flavour_of(e) for e in balanced], minlength=6)
    assert flavours.min() > 250 - 5 * math.sqrt(250) and flavours.max() < 250 + 5 * math.sqrt(250)
    charm = np.bincount([e.charm for e in balanced if e.is_cc], minlength=4) / sum(e.is_cc for e in balanced)
    assert np.allclose(charm, 0.25, atol=0.06)
    assert all(e.charm == 0 for e in balanced if not e.is_cc)
    anti = np.mean([e.neutrino < 0 for e in balanced])
    assert anti == pytest.approx(0.35, abs=0.06)


def test_natural_mix():
    events = interactions(1500, Beam(mix="natural"), seed=3)
    flavours = np.bincount([flavour_of(e) for e in events], minlength=6) / len(events)
    assert np.allclose(flavours, NATURAL, atol=0.05) and flavours[2:5].sum() < 0.02
    charm = np.mean([e.charm > 0 for e in events if e.is_cc])
    assert charm == pytest.approx(1 - NATURAL_CHARM[0], abs=0.04)


def test_an_unknown_mix_is_refused():
    with pytest.raises(ValueError, match="mix is 'flat', expected 'balanced' or 'natural'"):
        Beam(mix="flat")


def test_energies_are_tens_of_gev_to_tev(balanced):
    energy = np.array([e.energy for e in balanced])
    assert energy.min() > 20 and energy.max() < 4000 and 400 < np.median(energy) < 800
    y = np.array([e.y for e in balanced if e.neutrino > 0 and abs(e.neutrino) != 16])
    anti = np.array([e.y for e in balanced if e.neutrino < 0 and abs(e.neutrino) != 16])
    assert y.mean() > anti.mean() + 0.03  # (1 − y)² pulls antineutrinos to small y


def test_multiplicity_grows_with_ln_w2_and_jets_are_collimated(balanced):
    ln_w2, charged, pt = [], [], []
    for event in balanced:
        p = event.particles
        if event.charm:
            continue
        hadrons = [i for i, m in enumerate(p.mother) if m < 0 and i != event.lepton]
        ln_w2.append(2 * math.log(event.w))
        charged.append(sum(charge_of(p.pdg[i]) != 0 for i in hadrons))
        system = sum(p.momentum[i] for i in hadrons)
        axis = system[:3] / np.linalg.norm(system[:3])
        for i in hadrons:
            if p.momentum[i][3] > 20.0:  # slow ones are not part of the jet
                along = p.momentum[i][:3] @ axis
                pt.append(math.sqrt(max(p.momentum[i][:3] @ p.momentum[i][:3] - along**2, 0.0)))
    slope, offset = np.polyfit(ln_w2, charged, 1)
    assert slope == pytest.approx(1.43, abs=0.35)  # Zieminska et al. 1983
    assert offset + slope * 5.0 == pytest.approx(-0.05 + 1.43 * 5.0, abs=1.2)
    assert 0.2 < np.median(pt) < 1.0 and np.quantile(pt, 0.99) < 6.0


def test_vertices_fill_the_modules(balanced):
    world = world_of()
    vertex = np.array([e.vertex for e in balanced])
    low, high = world.low[:10] + 10, world.high[:10] - 10
    inside = ((vertex[:, None] >= low) & (vertex[:, None] <= high)).all(-1)
    assert (inside.sum(1) == 1).all() and inside.sum(0).min() > 80
    assert abs(vertex.mean(0)[:2]).max() < 15 and vertex[:, :2].std() == pytest.approx(460 / math.sqrt(12), rel=0.05)


def test_momenta_of_the_truth(balanced):
    """p_vis + neutrinos = all; the lepton of ντ is the visible part of its τ, of NC nothing; jet + lepton = visible."""
    for event in balanced[:400]:
        p, vectors = event.particles, momenta(event)
        neutrinos = np.zeros(3)
        for pdg, momentum, decayed in zip(p.pdg, p.momentum, p.decayed, strict=True):
            neutrinos += momentum[:3] if abs(pdg) in (12, 14, 16) and not decayed else 0.0
        total = np.array([0, 0, event.energy]) + event.target[:3]
        assert np.allclose(vectors["visible"] + neutrinos, total, atol=1e-6 * event.energy)
        assert np.allclose(vectors["jet"] + vectors["lepton"], vectors["visible"])
        outgoing = p.momentum[event.lepton][:3]
        if not event.is_cc:
            assert not vectors["lepton"].any()
        elif event.tau_mode:
            assert np.linalg.norm(vectors["lepton"]) < np.linalg.norm(outgoing)
            assert np.array_equal(vectors["tau"], vectors["lepton"])
        else:
            assert np.allclose(vectors["lepton"], outgoing)
        assert all(p.mother[origin(p.mother, i)] == -1 for i in range(len(p.pdg)))


def test_tau_and_charm_decays(balanced):
    modes = Counter(e.tau_mode for e in balanced if flavour_of(e) == 4)
    shares = Counter()
    for mode, share, products in TAU_DECAYS:
        assert sum(map(charge_of, products)) == -1
        shares[mode] += share
    assert sum(shares.values()) == pytest.approx(1.0)
    for mode in (3, 4, 5, 6):
        expected = shares[mode] / sum(shares[m] for m in (3, 4, 5, 6))
        assert modes[mode] / sum(modes.values()) == pytest.approx(expected, abs=0.12)
    for event in balanced:
        p = event.particles
        products = [p.pdg[i] for i, m in enumerate(p.mother) if m == event.charm_row and event.charm]
        leptons = {abs(pdg) for pdg in products} & {11, 13}
        assert leptons == {0: set(), 1: {11}, 2: {13}, 3: set()}[event.charm]
        if event.tau_mode in (1, 2):
            daughters = {abs(p.pdg[i]) for i, m in enumerate(p.mother) if m == event.lepton}
            assert {1: 11, 2: 13}[event.tau_mode] in daughters


def test_flight_lengths_are_beta_gamma_c_tau(balanced):
    ratio = {15: [], 4: []}
    for event in balanced:
        p = event.particles
        for row in {event.lepton if event.tau_mode else -1, event.charm_row} - {-1}:
            boost = np.linalg.norm(p.momentum[row][:3]) / MASS[abs(p.pdg[row])]
            length = np.linalg.norm(p.end[row] - p.start[row])
            ratio[15 if row == event.lepton else 4].append(length / (boost * C_TAU_MM[abs(p.pdg[row])]))
    for values in ratio.values():
        assert len(values) > 300 and np.mean(values) == pytest.approx(1.0, abs=4 / math.sqrt(len(values)))


def test_charmed_decays_conserve_charge():
    rng = np.random.default_rng(0)
    for hadron in CHARM_HADRONS:
        for kind in (1, 2, 3):
            for sign in (1, -1):
                products = charm_products(hadron * sign, kind, rng)
                assert sum(map(charge_of, products)) == charge_of(hadron * sign)
    assert {antiparticle(p) for p in (22, 111, 130, 211, 11)} == {22, 111, 130, -211, -11}
    assert tau_products(1, -15, rng) == (-16, -11, 12)


def test_two_body_decay():
    """τ → π ν at rest: |p| = (m_τ² − m_π²) / 2 m_τ; in flight the invariant mass stays."""
    rng = np.random.default_rng(1)
    at_rest = decay(np.array([0.0, 0.0, 0.0, MASS[15]]), (16, -211), rng)
    assert np.linalg.norm(at_rest[0, :3]) == pytest.approx((MASS[15] ** 2 - MASS[211] ** 2) / (2 * MASS[15]))
    moving = decay(np.array([10.0, -3.0, 400.0, math.sqrt(100 + 9 + 160000 + MASS[15] ** 2)]), (16, -211), rng)
    assert mass_of(moving.sum(0)) == pytest.approx(MASS[15], rel=1e-6)


def test_three_body_phase_space_is_flat_in_the_dalitz_plot():
    """Massless products: m₁₂² has the mean M²/3 and the variance M⁴/18 (density ∝ 1 − m²/M²); so have all pairs."""
    rng = np.random.default_rng(2)
    samples = np.array([phase_space(2.0, [0.0, 0.0, 0.0], rng) for _ in range(4000)])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pair = samples[:, i] + samples[:, j]
        squared = pair[:, 3] ** 2 - (pair[:, :3] ** 2).sum(1)
        assert squared.mean() == pytest.approx(4 / 3, rel=0.04)
        assert squared.var() == pytest.approx(16 / 18, rel=0.08)
    with pytest.raises(ValueError, match="cannot decay into masses"):
        phase_space(1.0, [0.6, 0.6], rng)


def test_boost_there_and_back():
    at_rest = np.array([[1.0, 2.0, 3.0, 5.0], [0.0, 0.0, -4.0, 4.0]])
    frame = np.array([3.0, -1.0, 50.0, 51.0])
    assert np.allclose(boosted(boosted(at_rest, frame), frame * (-1, -1, -1, 1)), at_rest)
    assert np.allclose(boosted(np.array([0.0, 0.0, 0.0, mass_of(frame)]), frame), frame)


def test_missing_transverse_momentum_tells_neutrinos(balanced):
    """Without neutrinos only the Fermi momentum is missing (sphere of radius k: ⟨p_T²⟩ = 2 k²/5); NC miss more."""
    missing = {True: [], False: []}
    for event in balanced:
        if not event.charm and not event.tau_mode:
            missing[event.is_cc].append(np.hypot(*momenta(event)["visible"][:2]))
    cc, nc = np.array(missing[True]), np.array(missing[False])
    assert 0 < cc.min() and cc.max() < FERMI_MOMENTUM
    assert (cc**2).mean() == pytest.approx(0.4 * FERMI_MOMENTUM**2, rel=0.15)
    assert np.median(nc) > 2.0
