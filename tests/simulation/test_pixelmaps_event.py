"""From final states to voxels in the pixel detector: drift, smearing, threshold, labels, the book of energy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import integrate, stats

from nufm.simulation.medium import LIQUID_ARGON
from nufm.simulation.pixelmaps import event as pixels
from nufm.simulation.pixelmaps.event import (
    LATTICE,
    PixelSpec,
    draw_class,
    primaries_of,
    read_out,
    simulate_event,
    smear,
    spill,
)
from nufm.simulation.pixelmaps.generator import generate
from nufm.simulation.transport import Primaries, transport
from nufm.simulation.truth import Truth

ALL = PixelSpec(threshold=0.0)


def cells_of(cell, energy, fragment=None, time=None) -> Truth:
    """Cells (C, 3) as the labelling gives them, sorted by fragment; fragment 0 is the low-energy row."""
    cell = np.atleast_2d(cell)
    fragment = np.ones(len(cell), dtype=int) if fragment is None else np.asarray(fragment)
    order = np.argsort(fragment, kind="stable")
    n = int(fragment.max(initial=0)) + 1
    point = np.zeros((len(cell), 8), dtype=np.float32)
    point[:, :3] = cell[order]
    point[:, 3] = point[:, 4] = np.asarray(energy)[order]
    point[:, 5] = 0.0 if time is None else np.asarray(time)[order]
    cluster = np.full((n, 6), -1, dtype=np.int64)
    cluster[:, 0] = np.bincount(fragment, minlength=n)
    cluster[0, 4] = 4
    cluster[1:, 1] = cluster[1:, 2] = np.arange(n - 1)
    cluster[1:, 3] = 0
    cluster[1:, 4] = np.arange(n - 1) % 4
    return Truth(point, cluster, np.full((n, 5), -1, dtype=np.float32), 0.0, 0.0)


def dense(truth: Truth, around, reach: int = 3) -> np.ndarray:
    """Energies of the voxels up to ``reach`` away from one."""
    block = np.zeros((2 * reach + 1,) * 3)
    index = truth.point[:, :3].astype(int) - around + reach
    block[tuple(index.T)] = truth.point[:, 4]
    return block


# ---------------------------------------------------------------------- drift and smearing


def test_spill_is_the_integral_of_the_gaussian_tail() -> None:
    for low, high, border, sigma in ((0, 5, 5, 0.39), (4, 5, 5, 0.27), (0, 1, 5, 1.2), (6, 7, 5, 1.0)):
        expected, _ = integrate.quad(lambda u, b=border, s=sigma: stats.norm.sf((b - u) / s), low, high, epsabs=1e-13)
        assert spill(float(low), float(high), float(border), sigma) == pytest.approx(expected / (high - low), abs=1e-10)
    # a long box loses σ/√(2π) of its length through one end
    assert spill(0.0, 5.0, 5.0, 0.39) == pytest.approx(0.39 / math.sqrt(2 * math.pi) / 5, rel=1e-6)
    assert spill(0.0, 5.0, 5.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("x", "drift"),
    [(-990.5, 0.0905), (-899.5, 0.0005), (-750.5, 0.1495), (-600.5, 0.2995), (-450.5, 0.1505), (-0.5, 0.2995),
     (0.5, 0.2995), (299.5, 0.0005), (449.5, 0.1495), (601.5, 0.2985), (850.5, 0.0495), (980.5, 0.0805)],
)  # fmt: skip
def test_charge_drifts_to_the_next_anode_and_spreads(x, drift) -> None:
    """Anodes at ±0.9 and ±0.3 m, cathodes at ±0.6 and 0: drift length in metres by hand; σ = 1.3 mm and 0.9 mm per
    metre. Shares of the 27 voxels by numerical integration of Gaussian × box."""
    cell = np.array([int((x + 1000) // 1), 200, 700])
    found = dense(smear(cells_of(cell, [100.0]), ALL), cell // (5, 1, 1), 1) / 100

    def share(low: float, high: float, edges: tuple[float, float], sigma: float) -> float:
        inside = lambda u: stats.norm.cdf((edges[1] - u) / sigma) - stats.norm.cdf((edges[0] - u) / sigma)  # noqa: E731
        places = [p for edge in edges for p in (edge - 6 * sigma, edge, edge + 6 * sigma) if low < p < high]
        return integrate.quad(inside, low, high, points=places or None, epsabs=1e-12)[0] / (high - low)

    along, across = 0.9 * drift, 1.3 * drift
    part = float(cell[0] % 5)
    px = [share(part, part + 1, (5.0 * k, 5.0 * k + 5), along) for k in (-1, 0, 1)]
    pt = [share(0.0, 5.0, (5.0 * k, 5.0 * k + 5), across) for k in (-1, 0, 1)]
    np.testing.assert_allclose(found, np.einsum("i,j,k->ijk", px, pt, pt), atol=2e-7)


def test_smearing_agrees_with_many_electrons() -> None:
    """Brute force: charges thrown one by one from a cell and shifted by Gaussians."""
    rng = np.random.default_rng(0)
    cell, n = np.array([1004, 17, 3]), 400_000  # x from 4 to 5 mm: 0.2955 m of drift
    place = (cell + rng.uniform(size=(n, 3))) * (1.0, 5.0, 5.0)
    place += rng.normal(size=(n, 3)) * np.array([0.9, 1.3, 1.3]) * 0.2955
    counted = np.zeros((3, 3, 3))
    np.add.at(counted, tuple((np.floor(place / 5).astype(int) - cell // (5, 1, 1) + 1).T), 1 / n)
    found = dense(smear(cells_of(cell, [1.0]), ALL), cell // (5, 1, 1), 1)
    np.testing.assert_allclose(found, counted, atol=5 * math.sqrt(0.1 / n))
    assert found[2, 1, 1] > 0.05  # not an empty statement


def test_without_diffusion_cells_fill_their_voxels() -> None:
    rng = np.random.default_rng(2)
    cell = np.stack([rng.integers(0, 40, 500), rng.integers(0, 4, 500), rng.integers(0, 4, 500)], axis=1)
    cell = np.unique(cell, axis=0)
    energy = rng.exponential(size=len(cell))
    out = smear(cells_of(cell, energy), dataclasses.replace(ALL, diffusion=(0.0, 0.0)))
    expected = np.zeros((8, 4, 4))
    np.add.at(expected, (cell[:, 0] // 5, cell[:, 1], cell[:, 2]), energy.astype(np.float32))
    found = np.zeros_like(expected)
    found[tuple(out.point[:, :3].astype(int).T)] = out.point[:, 4]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert out.outside == 0


def test_what_leaves_the_detector_is_counted() -> None:
    corner = np.array([0, 0, 0])
    out = smear(cells_of(corner, [1.0]), ALL)
    across = spill(0.0, 5.0, 5.0, 1.3e-3 * 99.5)
    inside = (1 - spill(4.0, 5.0, 5.0, 0.9e-3 * 99.5)) * (1 - across) ** 2
    assert out.point[:, 4].sum() == pytest.approx(inside, rel=1e-6)
    assert out.point[:, 4].sum() + out.outside + out.below_threshold == pytest.approx(1.0, abs=1e-6)


def test_the_threshold_takes_voxels_not_energy_from_the_book() -> None:
    cell = np.array([[1002, 10, 10], [1007, 10, 10]])
    everything = smear(cells_of(cell, [1.0, 0.05]), ALL)
    spec = PixelSpec(threshold=0.1)
    out = smear(cells_of(cell, [1.0, 0.05]), spec)
    assert len(out) == 1
    assert len(everything) > 10
    assert out.point[:, 4].min() >= 0.1
    assert out.point[:, 4].sum() + out.below_threshold == pytest.approx(1.05, abs=1e-6)


def test_labels_go_to_the_fragment_with_most_energy_and_empty_fragments_go() -> None:
    # one voxel from three fragments, another from the third alone; fragment 2 loses everywhere
    cell = np.array([[1001, 5, 5], [1002, 5, 5], [1003, 5, 5], [1022, 5, 5]])
    cells = cells_of(cell, [2.0, 1.0, 0.5, 3.0], fragment=[1, 2, 3, 3], time=[1.0, 2.0, 4.0, 8.0])
    cells.cluster[3, 2] = 1  # the third belongs to the group of the second, which goes
    out = smear(cells, PixelSpec(threshold=0.3, diffusion=(0.0, 0.0)))
    assert out.point[:, :3].tolist() == [[200, 5, 5], [204, 5, 5]]
    np.testing.assert_allclose(out.point[:, 4], [3.5, 3.0])
    np.testing.assert_allclose(out.point[:, 5], [(2.0 + 2.0 + 2.0) / 3.5, 8.0])  # mean time by energy
    assert out.cluster[:, 0].tolist() == [0, 1, 1]
    assert out.cluster[:, 1].tolist() == [-1, 0, 1]
    assert out.cluster[:, 2].tolist() == [-1, 0, 1]  # numbers of the first fragments of the groups
    assert out.cluster[1:, 4].tolist() == [0, 2]


def test_a_tie_goes_to_the_older_fragment() -> None:
    cell = np.array([[1001, 5, 5], [1002, 5, 5]])
    out = smear(cells_of(cell, [1.0, 1.0], fragment=[2, 1]), PixelSpec(diffusion=(0.0, 0.0)))
    assert out.cluster[:, 4].tolist() == [4, 0]


def test_no_energy_gives_an_empty_event() -> None:
    out = smear(cells_of(np.zeros((0, 3), dtype=int), np.zeros(0), np.zeros(0, dtype=int)), PixelSpec())
    assert out.point.shape == (0, 8)
    assert out.cluster.tolist() == [[0, -1, -1, -1, 4, -1]]


# ---------------------------------------------------------------------- whole events


def muon(start, direction, kinetic=1000.0) -> Primaries:
    direction = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    return Primaries(np.array([13]), np.array([kinetic]), np.array([start], dtype=float), direction[None], np.zeros(1))


def test_a_muon_leaves_a_line_of_known_density() -> None:
    """At 1 GeV it loses 2.1 MeV/cm (D. E. Groom et al., At. Data Nucl. Data Tables 78 (2001) 183): 1.05 MeV in 5 mm."""
    high = LATTICE.high
    per_column = []
    for seed in range(6):
        deposited = transport(muon((100.0, 52.5, -3000.0), (0, 0, 1)), LIQUID_ARGON, (-high, high), seed)
        truth = read_out(deposited, ALL)
        z = truth.point[:, 2].astype(int)
        assert truth.point[z < 100, 4].sum() < 0.1  # it starts at −3000 mm; some charge diffuses back
        near = (z >= 100) & (z < 200)
        per_column.append(np.bincount(z[near] - 100, truth.point[near, 4], minlength=100))
    assert np.mean(per_column) == pytest.approx(1.05, rel=0.08)
    first = truth.point[z == 100]
    assert first[first[:, 4].argmax(), :2].tolist() == [220, 210]  # (100 + 1000)/5, (52.5 + 1000)/5


def test_the_book_of_energy_closes() -> None:
    rng = np.random.default_rng(4)
    high = LATTICE.high
    for k in range(6):
        interaction = generate(3.0, (14, 12)[k % 2], k < 4, rng)
        primaries = primaries_of(interaction, rng.uniform(-high, high))
        deposited = transport(primaries, LIQUID_ARGON, (-high, high), k)
        spent = deposited.deposited + deposited.escaped
        assert deposited.kinetic_in + deposited.released == pytest.approx(spent, rel=1e-9)
        truth = read_out(deposited, PixelSpec())
        total = truth.point[:, 4].astype(float).sum() + truth.below_threshold + truth.outside
        assert total == pytest.approx(deposited.deposited, rel=1e-5)
        assert truth.cluster[:, 0].sum() == len(truth)


def test_primaries_carry_the_energy_of_the_final_state_but_its_neutrinos() -> None:
    rng = np.random.default_rng(9)
    for is_cc in (True, False):
        i = generate(5.0, 14, is_cc, rng)
        primaries = primaries_of(i, np.array([1.0, 2.0, 3.0]))
        assert len(primaries.pdg) == len(i.pdg) - (not is_cc)
        assert 14 not in primaries.pdg
        seen = i.momentum[0 if is_cc else 1 :]
        mass = np.sqrt(np.maximum(seen[:, 3] ** 2 - (seen[:, :3] ** 2).sum(1), 0))
        np.testing.assert_allclose(primaries.kinetic, (seen[:, 3] - mass) * 1000, atol=0.01)
        np.testing.assert_array_equal(primaries.position, np.tile([1.0, 2.0, 3.0], (len(seen), 1)))


def test_classes_have_their_shares() -> None:
    for mix, expected in (("published", (0.37, 0.37, 0.26)), ("balanced", (1 / 3, 1 / 3, 1 / 3))):
        drawn = [draw_class(PixelSpec(mix=mix), 3, 0, k) for k in range(4000)]
        counts = np.bincount([label for label, _ in drawn], minlength=3)
        assert stats.chisquare(counts, 4000 * np.array(expected)).pvalue > 1e-3
        flavours = np.array(drawn)
        assert set(flavours[flavours[:, 0] == 0, 1]) == {14}
        assert set(flavours[flavours[:, 0] == 1, 1]) == {12}
        neutral = flavours[flavours[:, 0] == 2, 1]
        assert stats.binomtest(int((neutral == 12).sum()), len(neutral)).pvalue > 1e-3


@pytest.fixture(scope="module")
def events() -> list[pixels.PixelEvent]:
    return [simulate_event(PixelSpec(), 7, 0, k) for k in range(150)]


def test_energies_and_vertices_are_uniform(events) -> None:
    energy = [e.interaction.energy for e in events]
    assert stats.kstest(energy, stats.uniform(0.2, 9.8).cdf).pvalue > 1e-3
    vertex = np.array([e.vertex for e in events]) / LATTICE.high
    for axis in range(3):
        assert stats.kstest(vertex[:, axis], stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_labels_tell_what_happened(events) -> None:
    for k, e in enumerate(events):
        labels = e.labels()
        assert (labels["interaction"], e.interaction.neutrino) == draw_class(PixelSpec(), 7, 0, k)
        assert e.interaction.is_cc == (labels["interaction"] != 2)
        lepton = labels["lepton"]
        if e.interaction.is_cc:
            assert abs(e.interaction.pdg[0]) == (13, 11)[labels["interaction"]]
            mass = (0.10566, 0.000511)[labels["interaction"]]
            energy = math.sqrt(float(lepton @ lepton) + mass**2)
            expected = (1 - labels["inelasticity"]) * labels["neutrino_energy"]
            assert energy == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
        else:
            assert np.isnan(lepton).all()


def test_events_begin_at_their_vertex(events) -> None:
    """A charged current has a charged lepton: charge within two voxels of the vertex."""
    near = []
    for e in events:
        if e.interaction.is_cc:
            centre = (e.truth.point[:, :3] + 0.5) * 5 - LATTICE.high
            near.append(np.linalg.norm(centre - e.vertex, axis=1).min())
    assert np.quantile(near, 0.95) < 10.0


def test_voxels_are_unique_and_above_threshold(events) -> None:
    for e in events[:40]:
        voxel = e.truth.point[:, :3]
        assert len(np.unique(voxel, axis=0)) == len(voxel) >= 10
        assert (voxel >= 0).all()
        assert (voxel < LATTICE.size).all()
        assert e.truth.point[:, 4].min() >= np.float32(0.1)


def test_the_same_arguments_give_the_same_event(events) -> None:
    again = simulate_event(PixelSpec(), 7, 0, 11)
    np.testing.assert_array_equal(again.truth.point, events[11].truth.point)
    np.testing.assert_array_equal(again.truth.cluster, events[11].truth.cluster)
    other = [simulate_event(PixelSpec(), *key).interaction.energy for key in ((8, 0, 11), (7, 1, 11), (7, 0, 12))]
    assert again.interaction.energy not in other


def test_small_events_are_drawn_again_in_the_same_class(events) -> None:
    small = [k for k, e in enumerate(events) if len(e) < 1000][:6]
    for k in small:
        larger = simulate_event(PixelSpec(min_points=1000), 7, 0, k)
        assert len(larger) >= 1000
        assert larger.label == events[k].label
    assert {events[k].label for k in small} >= {0, 2}


def test_events_that_cannot_be_large_enough_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(pixels, "_ATTEMPTS", 2)
    with pytest.raises(ValueError, match="2 draws in a row had fewer than min_points = 1000000"):
        simulate_event(PixelSpec(min_points=1_000_000), 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mix": "natural"}, "mix is 'natural', expected one of published, balanced"),
        ({"energy": (0.0, 1.0)}, "neutrino energies"),
        ({"energy": (3.0, 1.0)}, "neutrino energies"),
        ({"diffusion": (-1.0, 0.9)}, "diffusion"),
        ({"diffusion": (1.3, 9.0)}, "into the next voxel only"),
    ],
)
def test_specifications_that_cannot_be_meant_are_refused(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        PixelSpec(**change)
