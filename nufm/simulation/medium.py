"""Media: what a uniform block of matter is to a particle.

A medium is data. ``LIQUID_ARGON`` and ``PLASTIC_SCINTILLATOR`` are given; any other is a :class:`Medium`
with its own numbers, built of elements whose photoelectric data are listed here.

Sources: Particle Data Group, atomic and nuclear properties of materials (density, I, Sternheimer parameters,
radiation and nuclear lengths); R. M. Sternheimer, M. J. Berger, S. M. Seltzer, At. Data Nucl. Data Tables 30
(1984) 261.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Photoelectric cross section per atom: Z -> (K edge in MeV, c0, c1, c2, c3) with
# ln(sigma / barn) = sum_i c_i ln(E / MeV)^i for max(K edge, 10 keV) < E < 0.8 MeV, within about 5 %.
# Our own fit to the subshell photo-ionisation cross sections of L. Kissel as tabulated by xraylib 4
# (T. Schoonjans et al., Spectrochim. Acta B 66 (2011) 776).
PHOTOELECTRIC: dict[int, tuple[float, float, float, float, float]] = {
    1: (0.00001, -20.1837, -2.3317, 0.3673, 0.03868),
    2: (0.00002, -16.3422, -2.3316, 0.3622, 0.03849),
    3: (0.00005, -14.1643, -2.3288, 0.3603, 0.03886),
    5: (0.00019, -11.5580, -2.3217, 0.3584, 0.03977),
    6: (0.00028, -10.6462, -2.3170, 0.3583, 0.04033),
    7: (0.00040, -9.8810, -2.3132, 0.3579, 0.04085),
    8: (0.00053, -9.2225, -2.3102, 0.3570, 0.04128),
    9: (0.00069, -8.6450, -2.3093, 0.3551, 0.04154),
    10: (0.00087, -8.1312, -2.3093, 0.3526, 0.04168),
    11: (0.00107, -7.6658, -2.3123, 0.3488, 0.04166),
    12: (0.00130, -7.2393, -2.3127, 0.3460, 0.04172),
    13: (0.00156, -6.8494, -2.3124, 0.3435, 0.04179),
    14: (0.00184, -6.4884, -2.3125, 0.3407, 0.04179),
    17: (0.00282, -5.5500, -2.3100, 0.3336, 0.04192),
    18: (0.00321, -5.2764, -2.3097, 0.3311, 0.04191),
    20: (0.00404, -4.7695, -2.3055, 0.3278, 0.04211),
    22: (0.00497, -4.3143, -2.3010, 0.3247, 0.04233),
    26: (0.00711, -3.5238, -2.2926, 0.3185, 0.04263),
    29: (0.00898, -3.0134, -2.2904, 0.3115, 0.04241),
    32: (0.01110, -2.5425, -2.2592, 0.3219, 0.04497),
    36: (0.01433, -1.9788, -2.2111, 0.3405, 0.04922),
    53: (0.03317, -0.1569, -2.0539, 0.4001, 0.06542),
    54: (0.03456, -0.0693, -2.0445, 0.4039, 0.06647),
    55: (0.03598, 0.0158, -2.0377, 0.4064, 0.06736),
    74: (0.06953, 1.3807, -1.9348, 0.4270, 0.07815),
    82: (0.08800, 1.8459, -1.9167, 0.4100, 0.07659),
    83: (0.09053, 1.9010, -1.9151, 0.4066, 0.07586),
}


@dataclass(frozen=True)
class Element:
    """One element of a medium.

    Attributes:
        z: atomic number, one of ``PHOTOELECTRIC``.
        a: atomic weight in g/mol.
        fraction: share of the medium's mass.
        first_level: first excited nuclear level in MeV (threshold of inelastic neutron scattering); 0 for
            hydrogen.
    """

    z: int
    a: float
    fraction: float
    first_level: float


@dataclass(frozen=True)
class Medium:
    """A uniform medium.

    Attributes:
        name: shown in messages and tables.
        density: g/cm3.
        elements: constituents; the mass fractions add up to 1.
        mean_excitation: I in eV.
        sternheimer: (a, k, x0, x1, C) of the density effect; C positive as in the PDG tables.
        radiation_length: X0 in mm.
        critical_energy: of electrons, MeV (informative: the transport derives its own).
        moliere_radius: mm (informative).
        nuclear_collision_length: of nucleons, elastic and inelastic, mm.
        nuclear_interaction_length: of nucleons, inelastic, mm.
        pion_interaction_length: mm.
        muon_minus_lifetime: mean life of a mu- bound to the medium's dominant nucleus, ns.
        neutron_capture_energy: energy of the gamma cascade of a thermal capture, MeV.
        neutron_capture_spread: rms distance per axis between where a neutron falls below the tracking energy
            and where it is captured, mm.
        neutron_capture_time: mean time of that capture, ns.

    Raises:
        ValueError: fractions that do not add up to 1, an element without photoelectric data, a number <= 0.
    """

    name: str
    density: float
    elements: tuple[Element, ...]
    mean_excitation: float
    sternheimer: tuple[float, float, float, float, float]
    radiation_length: float
    critical_energy: float
    moliere_radius: float
    nuclear_collision_length: float
    nuclear_interaction_length: float
    pion_interaction_length: float
    muon_minus_lifetime: float
    neutron_capture_energy: float
    neutron_capture_spread: float
    neutron_capture_time: float

    def __post_init__(self) -> None:
        if not self.elements:
            raise ValueError(f"medium '{self.name}': no elements given")
        total = math.fsum(e.fraction for e in self.elements)
        if abs(total - 1.0) > 1e-3:
            raise ValueError(f"medium '{self.name}': the mass fractions add up to {total:.5f}, expected 1")
        for e in self.elements:
            if e.z not in PHOTOELECTRIC:
                raise ValueError(
                    f"medium '{self.name}': no photoelectric data for Z = {e.z}; "
                    f"known are {sorted(PHOTOELECTRIC)}; "
                    "add a row to nufm.simulation.medium.PHOTOELECTRIC"
                )
        for field in (
            "density",
            "mean_excitation",
            "radiation_length",
            "nuclear_interaction_length",
            "pion_interaction_length",
            "muon_minus_lifetime",
        ):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"medium '{self.name}': field '{field}' is {value}, expected a number > 0")
        if not 0 < self.nuclear_collision_length < self.nuclear_interaction_length:
            raise ValueError(
                f"medium '{self.name}': the collision length {self.nuclear_collision_length} mm must lie "
                f"between 0 and the interaction length {self.nuclear_interaction_length} mm "
                "(it counts elastic scattering as well)"
            )

    @property
    def z_over_a(self) -> float:
        """Electrons per nucleon mass, mol/g."""
        return math.fsum(e.fraction * e.z / e.a for e in self.elements)


# PDG atomic and nuclear properties, "liquid argon". mu- lifetime: T. Suzuki, D. F. Measday, J. P. Roalsvig,
# Phys. Rev. C 35 (1987) 2212 (natural argon 537 +- 32 ns) and later measurements to 616 ns. Neutron capture:
# 40Ar(n,gamma)41Ar, Q = 6.099 MeV; the spread stands for the slow diffusion through the 57 keV
# anti-resonance.
LIQUID_ARGON = Medium(
    name="liquid argon",
    density=1.396,
    elements=(Element(z=18, a=39.948, fraction=1.0, first_level=1.461),),
    mean_excitation=188.0,
    sternheimer=(0.19559, 3.0, 0.2, 3.0, 5.2146),
    radiation_length=140.0,
    critical_energy=32.84,
    moliere_radius=90.4,
    nuclear_collision_length=542.0,
    nuclear_interaction_length=857.0,
    pion_interaction_length=1067.0,
    muon_minus_lifetime=570.0,
    neutron_capture_energy=6.099,
    neutron_capture_spread=400.0,
    neutron_capture_time=350e3,
)

# PDG, "polyvinyltoluene" (plastic scintillator). mu- lifetime on carbon: Suzuki et al. 1987. Neutron capture
# on hydrogen, 2.224 MeV.
PLASTIC_SCINTILLATOR = Medium(
    name="plastic scintillator (polyvinyltoluene)",
    density=1.032,
    elements=(
        Element(z=1, a=1.00794, fraction=0.085, first_level=0.0),
        Element(z=6, a=12.0107, fraction=0.915, first_level=4.439),
    ),
    mean_excitation=64.7,
    sternheimer=(0.16101, 3.2393, 0.1464, 2.4855, 3.1997),
    radiation_length=425.4,
    critical_energy=94.11,
    moliere_radius=96.0,
    nuclear_collision_length=555.0,
    nuclear_interaction_length=788.0,
    pion_interaction_length=1100.0,
    muon_minus_lifetime=2026.3,
    neutron_capture_energy=2.224,
    neutron_capture_spread=40.0,
    neutron_capture_time=200e3,
)
