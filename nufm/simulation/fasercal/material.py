"""Sampling calorimeters as uniform mixtures: what a layer of absorber and scintillator is to a particle.

A detector's file gives the thicknesses of one layer ({polystyrene: 10.0, tungsten: 1.0} in mm); everything else
follows from the constants of the pure substances. Mixing rules and the electron-to-MIP ratio: G. Grindhammer,
S. Peters, hep-ex/0001020, section 4 (H1 detailed in section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

SCATTERING_ENERGY = 21.2  # MeV, E_s = m_e c² sqrt(4π/α)
# Response to the electromagnetic part of a hadronic shower over that to the rest. Scintillator with iron, lead or
# tungsten: 1.0 to 1.3 (R. Wigmans, Calorimetry, 2nd ed., Oxford 2017, ch. 3); one value for all.
E_OVER_H = 1.1


@dataclass(frozen=True)
class Substance:
    """Particle Data Group, atomic and nuclear properties of materials.

    Attributes:
        density: g/cm³.
        z: atomic number; of a compound weighted by mass.
        z_over_a: mol/g.
        radiation_length, interaction_length: mm.
        critical_energy: of electrons, MeV.
        minimum_loss: of a minimum-ionising particle, MeV/mm.
        plasma_energy: eV.
        muon_critical_energy: MeV.
    """

    density: float
    z: float
    z_over_a: float
    radiation_length: float
    interaction_length: float
    critical_energy: float
    minimum_loss: float
    plasma_energy: float
    muon_critical_energy: float


SUBSTANCES = {
    "polystyrene": Substance(1.060, 5.61, 0.53768, 413.1, 770.7, 93.11, 0.2052, 21.75, 1.183e6),
    "tungsten": Substance(19.30, 74.0, 0.40252, 3.504, 99.46, 7.97, 2.210, 80.32, 1.50e5),
    "lead": Substance(11.35, 82.0, 0.39575, 5.612, 175.9, 7.43, 1.273, 61.07, 1.41e5),
    "iron": Substance(7.874, 26.0, 0.46557, 17.57, 167.7, 21.68, 1.143, 55.17, 3.47e5),
}
SCINTILLATOR = "polystyrene"


class Mixture(NamedTuple):
    """A uniform medium with the properties of a stack of layers; lengths in mm, energies in MeV.

    Attributes:
        radiation_length, interaction_length: mm.
        critical_energy: of electrons.
        moliere_radius: mm.
        z: effective atomic number (by mass).
        minimum_loss: of a minimum-ionising particle, MeV/mm.
        mip_visible: share of that loss in the scintillator.
        electron_visible: share of an electromagnetic shower's energy that is seen in the scintillator.
        hadron_visible: the same for the part of a hadronic shower that is not electromagnetic.
        straggling: ξ in the scintillator per mm of mixture at β = 1, MeV/mm.
        straggling_log: ln of 2 m_e c² / (ħω_p)² times 1 MeV, for the most probable loss.
        radiative: relative radiative loss of muons per mm, 1/mm.
        layer: thickness of one layer, mm.
    """

    radiation_length: float
    interaction_length: float
    critical_energy: float
    moliere_radius: float
    z: float
    minimum_loss: float
    mip_visible: float
    electron_visible: float
    hadron_visible: float
    straggling: float
    straggling_log: float
    radiative: float
    layer: float


def mixture(layer_mm: Mapping[str, float]) -> Mixture:
    """The medium of layers of ``substance -> thickness in mm``.

    With w_i the mass shares: 1/X0 = Σ w_i/X0_i, E_c = X0 Σ w_i E_c,i/X0_i, 1/R_M = (1/E_s) Σ w_i E_c,i/X0_i,
    Z = Σ w_i Z_i (Grindhammer & Peters). e/mip ≈ 1/(1 + 0.007 (Z_absorber − Z_scintillator)) for one absorber.

    Raises:
        ValueError: an unknown substance, or a thickness that is not positive.
    """
    for name, thickness in layer_mm.items():
        if name not in SUBSTANCES or not thickness > 0:
            raise ValueError(
                f"material {{{name}: {thickness}}}: expected thicknesses > 0 mm of {', '.join(SUBSTANCES)}"
            )
    parts = [(SUBSTANCES[name], thickness) for name, thickness in layer_mm.items()]
    depth = sum(d for _, d in parts)
    mass = sum(s.density * d for s, d in parts)
    inverse = sum(d / s.radiation_length for s, d in parts) / depth
    critical = sum(d / s.radiation_length * s.critical_energy for s, d in parts) / depth / inverse
    z = sum(s.z * s.density * d for s, d in parts) / mass
    loss = sum(s.minimum_loss * d for s, d in parts) / depth
    active, active_mm = SUBSTANCES[SCINTILLATOR], layer_mm.get(SCINTILLATOR, 0.0)
    mip = active.minimum_loss * active_mm / (loss * depth)
    absorbers = [(s, d) for s, d in parts if s is not active]
    absorber_mass = sum(s.density * d for s, d in absorbers)
    absorber_z = sum(s.z * s.density * d for s, d in absorbers) / absorber_mass if absorbers else active.z
    electron = mip / (1.0 + 0.007 * (absorber_z - active.z))
    return Mixture(
        radiation_length=1.0 / inverse,
        interaction_length=depth / sum(d / s.interaction_length for s, d in parts),
        critical_energy=critical,
        moliere_radius=SCATTERING_ENERGY / (inverse * critical),
        z=z,
        minimum_loss=loss,
        mip_visible=mip,
        electron_visible=electron,
        hadron_visible=electron / E_OVER_H,
        straggling=0.1535 * active.z_over_a * active.density * active_mm / depth / 10.0,
        straggling_log=math.log(2 * 0.51099895 / (active.plasma_energy * 1e-6) ** 2),
        radiative=sum(s.minimum_loss * d / s.muon_critical_energy for s, d in parts) / depth,
        layer=depth,
    )
