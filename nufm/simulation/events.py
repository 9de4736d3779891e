"""What an event starts with: vertices of several particles, and single particles on top.

The semantics are those of DeepLearnPhysics/DLPGenerator ("ParticleBomb"): a recipe holds several generators;
each makes a number of interactions, uniform in a range; an interaction has a vertex, uniform in the box, a
time, uniform in a range, and a number of particles, uniform in a range; species are drawn with probabilities
proportional to their weights among those below the maximum of their range, after the minima are filled;
energies are uniform in a range, directions isotropic. A generator with several particles per vertex is called
MPV, one with a single particle per vertex MPR.

``PILARNET_LIKE`` is a stand-in: the generator card of PILArNet-M is not public. Known are the box (768 voxels
of 3 mm a side), the mixture of MPV and MPR and single-particle samples (arXiv 2512.01324), and kinetic
energies of 50 to 1000 MeV (protons 50 to 400 MeV; arXiv 2006.01993 and its data release). Multiplicities are
ours, chosen so that class shares, voxels per event and the share of events with at least 1024 voxels come
near the published ones.

Shape legend: P primaries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nufm.simulation.transport import Primaries


@dataclass(frozen=True)
class Species:
    """One entry of a generator.

    Attributes:
        pdg: PDG numbers, one of which is drawn with equal probability.
        kinetic: lowest and highest kinetic energy in MeV.
        weight: relative probability.
        number: least and most particles of this entry at a vertex.
    """

    pdg: tuple[int, ...]
    kinetic: tuple[float, float] = (50.0, 1000.0)
    weight: float = 1.0
    number: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Generator:
    """A kind of interaction.

    Attributes:
        name: used in messages.
        species: what may come out of the vertex.
        interactions: least and most vertices of this kind in an event.
        particles: least and most particles at a vertex.
        time: earliest and latest time in ns.

    Raises:
        ValueError: a range that is empty or negative, weights that are not positive, or more particles asked
            for than the species allow.
    """

    name: str
    species: tuple[Species, ...]
    interactions: tuple[int, int] = (1, 1)
    particles: tuple[int, int] = (1, 1)
    time: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        where = f"generator '{self.name}'"
        ranges = [("interactions", self.interactions, 0), ("particles", self.particles, 1)]
        ranges += [(f"number of {s.pdg}", s.number, 0) for s in self.species]
        ranges += [(f"kinetic of {s.pdg}", s.kinetic, 0.0) for s in self.species]
        for name, (low, high), least in ranges:
            if not least <= low <= high:
                raise ValueError(f"{where}: {name} is ({low}, {high}), expected {least} <= low <= high")
        if not self.time[0] <= self.time[1]:
            raise ValueError(f"{where}: time is {self.time}, expected low <= high")
        if not self.species or any(not s.weight > 0 or not s.pdg for s in self.species):
            raise ValueError(
                f"{where}: expected at least one species, each with PDG numbers and a weight > 0"
            )
        least, most = (sum(s.number[k] for s in self.species) for k in (0, 1))
        if self.particles[1] > most or self.particles[0] < least:
            raise ValueError(
                f"{where}: particles is {self.particles}, but the species allow {least} to {most}"
            )


@dataclass(frozen=True)
class Recipe:
    """Everything drawn before the transport.

    Attributes:
        generators: each adds its interactions to the event.
        margin: vertices keep this distance in mm from the faces of the box.
    """

    generators: tuple[Generator, ...]
    margin: float = 0.0


PILARNET_LIKE = Recipe(
    generators=(
        Generator(
            name="multi-particle vertex",
            interactions=(0, 2),
            particles=(1, 6),
            species=(
                Species(pdg=(11, -11, 13, -13), weight=2.5, number=(0, 1)),
                Species(pdg=(211, -211), number=(0, 2)),
                Species(pdg=(22, 111), number=(0, 2)),
                Species(pdg=(2212,), kinetic=(50.0, 400.0), number=(0, 4)),
            ),
        ),
        Generator(
            name="overlaid singles",
            interactions=(0, 7),
            particles=(1, 1),
            species=(
                Species(pdg=(13, -13), weight=5.0),
                Species(pdg=(11, -11)),
                Species(pdg=(22,), weight=0.75),
                Species(pdg=(211, -211)),
                Species(pdg=(2212,), kinetic=(50.0, 400.0)),
            ),
        ),
    ),
)


def generate(recipe: Recipe, half_size: np.ndarray, rng: np.random.Generator) -> tuple[Primaries, np.ndarray]:
    """Draw the primaries of one event.

    Args:
        recipe: what to draw.
        half_size: (3,) mm, half the edges of the box, which is centred on the origin.
        rng: the event's random stream.

    Returns:
        primaries, and int32 (P,) the interaction each belongs to, 0..n-1.

    Raises:
        ValueError: the margin leaves no room for a vertex.
    """
    room = np.asarray(half_size, dtype=np.float64) - recipe.margin
    if (room <= 0).any():
        raise ValueError(f"recipe: a margin of {recipe.margin} mm leaves no room in a box of ±{half_size} mm")
    pdg, kinetic, position, time, interaction = [], [], [], [], []
    n_interactions = 0
    for generator in recipe.generators:
        for _ in range(rng.integers(generator.interactions[0], generator.interactions[1] + 1)):
            vertex = rng.uniform(-room, room)
            moment = rng.uniform(*generator.time)
            for species in _draw_species(generator, rng):
                pdg.append(int(rng.choice(species.pdg)))
                kinetic.append(rng.uniform(*species.kinetic))
                position.append(vertex)
                time.append(moment)
                interaction.append(n_interactions)
            n_interactions += 1
    n = len(pdg)
    cosine = rng.uniform(-1.0, 1.0, n)
    azimuth = rng.uniform(0.0, 2.0 * np.pi, n)
    sine = np.sqrt(1.0 - cosine**2)
    primaries = Primaries(
        pdg=np.array(pdg, dtype=np.int32),
        kinetic=np.array(kinetic, dtype=np.float64),
        position=np.array(position, dtype=np.float64).reshape(n, 3),
        direction=np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine], axis=1),
        time=np.array(time, dtype=np.float64),
    )
    return primaries, np.array(interaction, dtype=np.int32)


def _draw_species(generator: Generator, rng: np.random.Generator) -> list[Species]:
    """The species of one vertex: the minima first, then by weight among those below their maxima."""
    species = generator.species
    count = [s.number[0] for s in species]
    drawn = [s for s in species for _ in range(s.number[0])]
    total = int(rng.integers(generator.particles[0], generator.particles[1] + 1))
    while len(drawn) < total:
        weight = np.array([s.weight if count[i] < s.number[1] else 0.0 for i, s in enumerate(species)])
        i = int(rng.choice(len(species), p=weight / weight.sum()))
        count[i] += 1
        drawn.append(species[i])
    return drawn
