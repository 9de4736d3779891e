"""The recipe: numbers, species and energies of what is drawn."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from nufm.simulation.events import PILARNET_LIKE, Generator, Recipe, Species, generate

HALF = np.array([1152.0, 600.0, 300.0])


def draw(recipe, n=400, seed=0):
    rng = np.random.default_rng(seed)
    return [generate(recipe, HALF, rng) for _ in range(n)]


def one(name="x", **kwargs):
    kwargs.setdefault("species", (Species(pdg=(13,)),))
    return Generator(name=name, **kwargs)


def test_pilarnet_like_ranges():
    vertex_rule, singles_rule = PILARNET_LIKE.generators
    kinds = {13: 0, 11: 0, 211: 1, 22: 2, 111: 2, 2212: 3}
    vertices, singles = [], []
    for primaries, interaction in draw(PILARNET_LIKE):
        assert interaction.tolist() == sorted(interaction.tolist())
        assert set(interaction.tolist()) == set(range(len(np.unique(interaction))))
        high = np.where(primaries.pdg == 2212, 400.0, 1000.0)
        assert ((primaries.kinetic >= 50) & (primaries.kinetic <= high)).all()
        assert (np.abs(primaries.position) <= HALF).all()
        for i in np.unique(interaction):
            mine = interaction == i
            assert np.ptp(primaries.position[mine], axis=0).max() == 0 and np.ptp(primaries.time[mine]) == 0
            count = np.bincount([kinds[abs(p)] for p in primaries.pdg[mine]], minlength=4)
            assert (count <= [1, 2, 2, 4]).all() and mine.sum() <= 6
        n = len(np.unique(interaction))
        several = sum((interaction == i).sum() > 1 for i in range(n))
        vertices.append(several)
        singles.append(n)
    assert max(vertices) == vertex_rule.interactions[1] and min(vertices) == 0
    assert max(singles) == vertex_rule.interactions[1] + singles_rule.interactions[1]


def test_species_follow_their_weights():
    species = (Species(pdg=(13, -13), weight=3.0), Species(pdg=(11,), weight=1.0))
    pdg = np.concatenate([p.pdg for p, _ in draw(Recipe((one(species=species),)), 2000)])
    assert (np.abs(pdg) == 13).mean() == pytest.approx(0.75, abs=0.03)  # 3 sigma
    assert (pdg[np.abs(pdg) == 13] > 0).mean() == pytest.approx(0.5, abs=0.04)


def test_minima_are_filled_and_maxima_kept():
    species = (Species(pdg=(13,), number=(1, 1)), Species(pdg=(2212,), weight=100.0, number=(0, 2)),
               Species(pdg=(211,), weight=0.01, number=(0, 3)))  # fmt: skip
    for primaries, _ in draw(Recipe((one(species=species, particles=(4, 5)),)), 100):
        count = [int((primaries.pdg == p).sum()) for p in (13, 2212, 211)]
        assert count[0] == 1 and count[1] <= 2 and sum(count) in (4, 5)


def test_directions_are_isotropic_and_energies_uniform():
    recipe = Recipe(
        (one(species=(Species(pdg=(13,), number=(0, 50)),), particles=(50, 50), time=(-5.0, 7.0)),)
    )
    drawn = [p for p, _ in draw(recipe, 60)]
    direction = np.concatenate([p.direction for p in drawn])
    for axis in range(3):  # each component of an isotropic unit vector is uniform
        assert stats.kstest(direction[:, axis], "uniform", (-1, 2)).pvalue > 1e-3
    kinetic = np.concatenate([p.kinetic for p in drawn])
    assert stats.kstest(kinetic, "uniform", (50, 950)).pvalue > 1e-3
    time = np.concatenate([p.time for p in drawn])
    assert time.min() > -5 and time.max() < 7 and np.ptp(time) > 10


def test_margin_and_empty_events():
    recipe = Recipe((one(interactions=(0, 1)),), margin=250.0)
    drawn = draw(recipe, 200)
    position = np.concatenate([p.position for p, _ in drawn])
    assert (np.abs(position) <= HALF - 250).all() and np.abs(position[:, 0]).max() > 700
    assert {len(i) for _, i in drawn} == {0, 1}
    with pytest.raises(ValueError, match="margin of 300"):
        generate(dataclasses.replace(recipe, margin=300.0), HALF, np.random.default_rng(0))


def test_same_stream_same_event():
    (a, i), (b, j) = (generate(PILARNET_LIKE, HALF, np.random.default_rng(5)) for _ in range(2))
    assert all(
        np.array_equal(getattr(a, f), getattr(b, f)) for f in ("pdg", "kinetic", "position", "direction")
    )
    assert np.array_equal(i, j)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"particles": (1, 9)}, "numbers|allow"),
        ({"particles": (0, 1)}, "particles"),
        ({"interactions": (3, 2)}, "interactions"),
        ({"species": ()}, "species"),
        ({"species": (Species(pdg=(13,), weight=0.0),)}, "weight"),
        ({"species": (Species(pdg=(13,), kinetic=(-1.0, 5.0)),)}, "kinetic"),
        ({"time": (1.0, 0.0)}, "time"),
    ],
)
def test_generators_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        one(**change)
