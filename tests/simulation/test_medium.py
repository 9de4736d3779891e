"""Media are data: the given ones agree with the PDG, a user's own works, a wrong one is refused."""

import dataclasses

import numpy as np
import pytest
from beams import balance, shoot

from nufm.simulation.medium import LIQUID_ARGON, PLASTIC_SCINTILLATOR, Element, Medium
from nufm.simulation.particles import MUON_MASS
from nufm.simulation.stopping import Settings, build_tables, heavy_loss

# PDG atomic and nuclear properties, "water (liquid)", with the I = 75 eV of the Sternheimer set
WATER = Medium(
    name="water",
    density=1.0,
    elements=(Element(1, 1.00794, 0.111894, 0.0), Element(8, 15.9994, 0.888106, 6.049)),
    mean_excitation=75.0,
    sternheimer=(0.09116, 3.4773, 0.2400, 2.8004, 3.5017),
    radiation_length=360.8,
    critical_energy=78.33,
    moliere_radius=97.7,
    nuclear_collision_length=585.0,
    nuclear_interaction_length=833.0,
    pion_interaction_length=1155.0,
    muon_minus_lifetime=1795.4,
    neutron_capture_energy=2.224,
    neutron_capture_spread=40.0,
    neutron_capture_time=200e3,
)


def test_electron_density_of_given_media():
    # PDG <Z/A>: argon 0.45059, polyvinyltoluene 0.54141
    assert LIQUID_ARGON.z_over_a == pytest.approx(0.45059, abs=2e-5)
    assert PLASTIC_SCINTILLATOR.z_over_a == pytest.approx(0.54141, abs=3e-4)


@pytest.mark.parametrize(
    "medium, minimum", [(LIQUID_ARGON, 1.508), (PLASTIC_SCINTILLATOR, 1.956), (WATER, 1.992)]
)
def test_minimum_ionisation(medium, minimum):
    """PDG tables: dE/dx of a minimum-ionising particle in MeV cm2/g."""
    loss = heavy_loss(medium, MUON_MASS, np.geomspace(50, 2000, 400)) * 10 / medium.density
    assert loss.min() == pytest.approx(minimum, rel=0.005)


def test_a_users_medium_runs():
    out = shoot(211, 300.0, 5, medium=WATER)
    assert out.deposited > 300
    assert abs(balance(out)) < 1e-9


def test_tables_are_finite_and_built_once():
    tables = build_tables(WATER, Settings())
    assert np.isfinite(tables.grid).all() and (tables.grid >= 0).all()
    assert build_tables(WATER, Settings()) is tables


@pytest.mark.parametrize(
    "change, words",
    [
        ({"elements": ()}, "no elements"),
        ({"elements": (Element(18, 39.948, 0.7, 1.461),)}, "add up to 0.7"),
        ({"elements": (Element(120, 300.0, 1.0, 1.0),)}, "no photoelectric data for Z = 120"),
        ({"density": -1.0}, "'density' is -1.0"),
        ({"radiation_length": float("nan")}, "'radiation_length' is nan"),
        ({"nuclear_collision_length": 2000.0}, "collision length"),
    ],
)
def test_bad_media_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(LIQUID_ARGON, **change)
