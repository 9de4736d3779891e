"""Phase space and decays: how a mass becomes particles with exactly its four-momentum.

Four-momenta are (px, py, pz, E) in GeV. Masses and lifetimes: Particle Data Group, Review of Particle Physics (2024).
"""

from __future__ import annotations

import math

import numpy as np

MASS = {
    **{11: 0.000511, 13: 0.105658, 15: 1.77693, 12: 0.0, 14: 0.0, 16: 0.0, 22: 0.0},
    **{111: 0.134977, 211: 0.139570, 321: 0.493677, 130: 0.497611, 2212: 0.938272, 2112: 0.939565},
    **{411: 1.86966, 421: 1.86484, 431: 1.96835},
}
CHARGE = {11: -1, 13: -1, 15: -1, 211: 1, 321: 1, 2212: 1, 411: 1, 431: 1}  # of the particle; 0 if not listed
C_TAU_MM = {15: 0.08703, 411: 0.3098, 421: 0.1230, 431: 0.1511}

# τ⁻ → products with ν_τ (16) first: (mode of the record, share, products). Modes: 1 e, 2 µ, 3 one-prong, 4 ρ,
# 5 three-prong, 6 other. Shares: PDG branching fractions, kaons counted as pions, what remains under "other".
TAU_DECAYS = (
    (1, 0.178, (16, 11, -12)),
    (2, 0.174, (16, 13, -14)),
    (3, 0.115, (16, -211)),
    (4, 0.255, (16, -211, 111)),
    (5, 0.098, (16, -211, 211, -211)),
    (5, 0.048, (16, -211, 211, -211, 111)),
    (6, 0.132, (16, -211, 111, 111)),
)
# Charmed hadrons of charm quarks: PDG -> (share, hadronic decays, kaon of the semileptonic decay). Shares: neutrino
# production at high energy (E531: N. Ushida et al., Phys. Lett. B 206 (1988) 380), Λc counted with the D⁺s.
CHARM_HADRONS = {
    421: (0.60, ((-321, 211), (-321, 211, 111), (-321, 211, 211, -211), (130, 211, -211)), -321),
    411: (0.26, ((-321, 211, 211), (-321, 211, 211, 111), (130, 211, 111), (130, 211, 211, -211)), 130),
    431: (0.14, ((321, -321, 211), (211, 211, -211), (321, -321, 211, 111)), 130),
}


def antiparticle(pdg: int) -> int:
    return pdg if pdg in (22, 111, 130) else -pdg


def charge_of(pdg: int) -> int:
    return CHARGE.get(abs(pdg), 0) * (1 if pdg > 0 else -1)


def boosted(momenta: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Four-momenta (..., 4) of the rest frame of ``frame`` (4,), seen where that has this four-momentum."""
    mass = math.sqrt(max(frame[3] ** 2 - frame[0] ** 2 - frame[1] ** 2 - frame[2] ** 2, 1e-18))
    along = momenta[..., :3] @ frame[:3]
    energy = (frame[3] * momenta[..., 3] + along) / mass
    factor = (along / (frame[3] + mass) + momenta[..., 3]) / mass
    return np.concatenate([momenta[..., :3] + factor[..., None] * frame[:3], energy[..., None]], axis=-1)


def two_body(mass: float, one: float, two: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Isotropic decay at rest; four-momenta of both."""
    p = breakup_momentum(mass, one, two)
    cosine, phi = rng.uniform(-1, 1), rng.uniform(0, 2 * math.pi)
    sine = math.sqrt(1 - cosine * cosine)
    vector = p * np.array([sine * math.cos(phi), sine * math.sin(phi), cosine])
    return np.append(vector, math.hypot(p, one)), np.append(-vector, math.hypot(p, two))


def breakup_momentum(mass: float, one: float, two: float) -> float:
    return math.sqrt(max((mass**2 - (one + two) ** 2) * (mass**2 - (one - two) ** 2), 0.0)) / (2 * mass)


def phase_space(mass: float, masses: list[float], rng: np.random.Generator) -> np.ndarray:
    """Four-momenta (n, 4), at rest in sum, uniform in phase space (F. James, CERN 68-15, section 3).

    Raises:
        ValueError: the products are heavier than ``mass``.
    """
    n, free = len(masses), mass - sum(masses)
    if free < 0 or n < 2:
        raise ValueError(f"a mass of {mass:.4f} GeV cannot decay into masses {masses}")
    below = np.cumsum(masses)
    for _ in range(1000):
        inner = np.concatenate([[0.0], np.sort(rng.uniform(size=n - 2)), [1.0]]) * free + below
        inner[0] = masses[0]
        weight = most = 1.0
        for k in range(1, n):
            weight *= breakup_momentum(inner[k], inner[k - 1], masses[k])
            most *= breakup_momentum(free + below[k], below[k - 1], masses[k])
        if n == 2 or weight > rng.uniform() * most:
            break
    momenta = np.zeros((n, 4))
    momenta[0, 3] = masses[0]
    for k in range(1, n):
        group, last = two_body(inner[k], inner[k - 1], masses[k], rng)
        momenta[:k] = boosted(momenta[:k], group) if k > 1 else group
        momenta[k] = last
    return momenta


def decay(parent: np.ndarray, products: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Four-momenta (n, 4) of the products of a particle with the four-momentum ``parent``."""
    mass = math.sqrt(parent[3] ** 2 - parent[:3] @ parent[:3])
    return boosted(phase_space(mass, [MASS[abs(p)] for p in products], rng), parent)


def tau_products(mode: int, tau: int, rng: np.random.Generator) -> tuple[int, ...]:
    """PDG of the products of a τ (``tau`` = ±15) that decays in ``mode``."""
    options = [(share, products) for m, share, products in TAU_DECAYS if m == mode]
    shares = np.array([s for s, _ in options])
    products = options[rng.choice(len(options), p=shares / shares.sum())][1]
    return products if tau > 0 else tuple(antiparticle(p) for p in products)


def charm_products(hadron: int, kind: int, rng: np.random.Generator) -> tuple[int, ...]:
    """PDG of the products of a charmed hadron; ``kind`` 1 → e, 2 → µ, 3 → hadrons."""
    _, hadronic, kaon = CHARM_HADRONS[abs(hadron)]
    if kind == 3:
        products = hadronic[rng.integers(len(hadronic))]
    else:
        lepton = 11 if kind == 1 else 13
        products = (kaon, -lepton, lepton + 1)
    return products if hadron > 0 else tuple(antiparticle(p) for p in products)
