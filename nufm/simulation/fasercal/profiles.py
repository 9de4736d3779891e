"""Shapes of showers: where along and around its axis a shower leaves its energy.

Electromagnetic: gamma distribution in depth (E. Longo, I. Sestili, Nucl. Instrum. Meth. 128 (1975) 283) with the means,
fluctuations and radial profile of G. Grindhammer, S. Peters, hep-ex/0001020, appendix A (homogeneous media; their
corrections for sampling, a few per cent of a radiation length, are left out). Hadronic: the hadronic term of
R. K. Bock, T. Hansl-Kozanecka, T. P. Shah, Nucl. Instrum. Meth. 186 (1981) 533.

Units: energies in MeV unless said, depths in radiation lengths X0 or interaction lengths λ, radii in Molière radii.
"""

from __future__ import annotations

import math

from nufm.simulation.fasercal.compiled import compiled
from nufm.simulation.rng import gauss

LN_Y_LEAST = 1.8  # the parametrisation ends at about 0.1 GeV; below, showers keep the shape of that energy
RADIUS_MOST = 5.0  # Molière radii; the tail ∝ 1/r³ would not end by itself


@compiled
def gamma_cdf(a, x):
    """Regularised incomplete gamma function P(a, x), by its series or its continued fraction (Abramowitz & Stegun
    6.5.29, 6.5.31)."""
    if x <= 0.0:
        return 0.0
    front = math.exp(-x + a * math.log(x) - math.lgamma(a))
    if x < a + 1.0:
        term = total = 1.0 / a
        n = a
        for _ in range(300):
            n += 1.0
            term *= x / n
            total += term
            if term < total * 1e-9:
                break
        return total * front
    b = x + 1.0 - a
    c, d = 1e300, 1.0 / b
    h = d
    for i in range(1, 300):
        an = -i * (i - a)
        b += 2.0
        d = 1.0 / (an * d + b)
        c = b + an / c
        h *= d * c
        if abs(d * c - 1.0) < 1e-9:
            break
    return 1.0 - front * h


@compiled
def electromagnetic_shape(state, energy, critical_energy, z):
    """(depth of the maximum T in X0, shape α, mean α) of one shower of an electron; fluctuates."""
    ln_y = max(math.log(energy / critical_energy), LN_Y_LEAST)
    mean_t = math.log(max(ln_y - 0.812, 0.5))
    mean_a = math.log(0.81 + (0.458 + 2.26 / z) * ln_y)
    sigma_t, sigma_a = min(1.0 / (1.26 * ln_y - 1.4), 0.5), min(1.0 / (0.86 * ln_y - 0.58), 0.5)
    rho = 0.705 - 0.023 * ln_y
    one, two = gauss(state) * math.sqrt((1.0 + rho) / 2.0), gauss(state) * math.sqrt((1.0 - rho) / 2.0)
    t = math.exp(mean_t + sigma_t * (one + two))
    a = math.exp(mean_a + sigma_a * (one - two))
    return t, max(a, 1.1), max(math.exp(mean_a), 1.1)


@compiled
def electromagnetic_radii(tau, gev, z):
    """(core radius, tail radius, share of the core) at depth ``tau`` = t/⟨t⟩ of a shower of ``gev`` GeV."""
    ln_e = math.log(max(gev, 0.1))
    core = max(0.0251 + 0.00319 * ln_e + (0.1162 - 0.000381 * z) * tau, 0.01)
    late = math.exp(min((0.3585 + 0.0421 * ln_e) * (tau - 0.645), 5.0))
    tail = (0.659 - 0.00309 * z) * (math.exp(-2.59 * (tau - 0.645)) + late)
    p1, p2, p3 = 2.632 - 0.00094 * z, 0.401 + 0.00187 * z, 1.313 - 0.0686 * ln_e
    argument = (p2 - tau) / p3
    share = p1 * math.exp(argument - math.exp(argument))
    return core, tail, min(max(share, 0.0), 1.0)


@compiled
def radius(u, scale, most):
    """Radius of the profile 2 r R²/(r²+R²)² that ends at ``most``; u uniform in (0, 1), R = ``scale``."""
    v = u * most * most / (most * most + scale * scale)
    return scale * math.sqrt(v / (1.0 - v))


@compiled
def hadronic_shape(gev):
    """(shape, rate per λ) of the depth of a hadronic shower's hadronic energy (Bock et al.), from its start."""
    ln_e = math.log(max(gev, 1.0))
    return 0.6165 + 0.3183 * ln_e, max(0.9099 - 0.0237 * ln_e, 0.5)


@compiled
def electromagnetic_fraction(state, gev, baryon):
    """Share of a hadron's energy that goes into π⁰: 1 − (E/E₀)^(k−1), k = 0.82, E₀ = 1 GeV (pions) or 2.6 GeV (baryons)
    (T. A. Gabriel et al., Nucl. Instrum. Meth. A 338 (1994) 336), with fluctuations that shrink slowly with energy."""
    scale = 2.6 if baryon else 1.0
    if gev <= scale:
        return 0.0
    mean = 1.0 - (gev / scale) ** -0.18
    return min(max(mean + gauss(state) * 0.25 * math.sqrt(mean) / (1.0 + 0.2 * math.log(gev)), 0.0), 0.95)


@compiled
def nuclear_share(state, gev):
    """What the hadronic part of a shower (GeV) yields, relative to its mean: binding energy and recoils of nuclei
    fluctuate by about 45 %/√E, most of the resolution of hadron calorimeters (R. Wigmans, Calorimetry, ch. 4)."""
    return min(max(1.0 + 0.45 / math.sqrt(max(gev, 0.3)) * gauss(state), 0.2), 1.8)
