"""Particles the transport knows: codes, masses, charges, lifetimes.

The compiled code works with a small integer code per species; users and files see PDG numbers. Masses and
lifetimes: Particle Data Group, Review of Particle Physics (Phys. Rev. D 110, 030001, 2024).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

# NumPy integers, because Numba compiles a function again for every plain integer constant it is called with.
GAMMA, ELECTRON, POSITRON, MUON_MINUS, MUON_PLUS, PION_MINUS = (np.int64(code) for code in range(6))
PION_PLUS, PION_ZERO, KAON_MINUS, KAON_PLUS, PROTON, NEUTRON = (np.int64(code) for code in range(6, 12))

PDG = np.array([22, 11, -11, 13, -13, -211, 211, 111, -321, 321, 2212, 2112], dtype=np.int32)
CHARGE = np.array([0, -1, 1, -1, 1, -1, 1, 0, -1, 1, 1, 0], dtype=np.float64)

ELECTRON_MASS = 0.51099895  # MeV
MUON_MASS = 105.6583755
PION_MASS = 139.57039
PION_ZERO_MASS = 134.9768
KAON_MASS = 493.677
PROTON_MASS = 938.27208816
NEUTRON_MASS = 939.56542052
MASS = np.array(
    [
        *(0.0, ELECTRON_MASS, ELECTRON_MASS, MUON_MASS, MUON_MASS, PION_MASS, PION_MASS, PION_ZERO_MASS),
        *(KAON_MASS, KAON_MASS, PROTON_MASS, NEUTRON_MASS),
    ]
)

MUON_LIFETIME = 2196.9811  # ns, free
PION_LIFETIME = 26.033
KAON_LIFETIME = 12.380
LIGHT_SPEED = 299.792458  # mm/ns


class Process(IntEnum):
    """What created a track.

    ``NEUTRON`` covers everything a neutron below the cascade energy makes: recoil protons, gammas of
    inelastic scattering and of its capture. ``CAPTURE`` is the nuclear absorption of a stopped mu-, pi- or
    K-.
    """

    PRIMARY = 0
    IONISATION = 1
    BREMSSTRAHLUNG = 2
    CONVERSION = 3
    COMPTON = 4
    PHOTOELECTRIC = 5
    DECAY = 6
    CAPTURE = 7
    HADRON_INELASTIC = 8
    NEUTRON = 9
    ANNIHILATION = 10


def codes_of(pdg: np.ndarray) -> np.ndarray:
    """Species codes (P,) of PDG numbers (P,).

    Raises:
        ValueError: a PDG number the transport does not know.
    """
    table = {int(number): code for code, number in enumerate(PDG)}
    codes = np.empty(len(pdg), dtype=np.int64)
    for i, number in enumerate(pdg):
        if int(number) not in table:
            raise ValueError(
                f"primary {i}: the transport does not know PDG {int(number)}; known are {sorted(table)} "
                "(photon 22, e 11, mu 13, pi 211 and 111, K 321, proton 2212, neutron 2112)"
            )
        codes[i] = table[int(number)]
    return codes
