"""Voxelisation against brute force: thousands of points along each step."""

import numpy as np
import pytest
from hand_made import DENSITY, LATTICE, Sketch
from scipy.spatial import cKDTree

from nufm.simulation.voxels import Lattice, Recombination, voxelise


def run(start, end, energy, lattice=LATTICE, track=None, time=None, recombination=None):
    n = len(energy)
    return voxelise(
        np.zeros(n, dtype=int) if track is None else track,
        np.asarray(start, float),
        np.asarray(end, float),
        np.asarray(energy, float),
        np.zeros(n) if time is None else time,
        lattice,
        DENSITY,
        recombination or Recombination(),
    )


def sampled(start, end, energy, lattice, n=20_000):
    """Energy by voxel from n equidistant points of each step, and what is outside."""
    total, outside = {}, 0.0
    for a, b, e in zip(start, end, energy, strict=True):
        t = (np.arange(n) + 0.5) / n
        points = (a + t[:, None] * (b - a) + lattice.high) / lattice.pitch
        cells = np.floor(points).astype(int)
        inside = ((cells >= 0) & (cells < lattice.size)).all(1)
        outside += e * (~inside).mean()
        for cell, count in zip(*np.unique(cells[inside], axis=0, return_counts=True), strict=True):
            total[tuple(cell)] = total.get(tuple(cell), 0.0) + e * count / n
    return total, outside


def test_random_steps_match_fine_sampling():
    rng = np.random.default_rng(0)
    lattice = Lattice(size=(9, 7, 8), pitch=2.5)
    start = rng.uniform(
        -14, 14, (60, 3)
    )  # the box ends at 11.25, 8.75, 10: many steps leave or never enter it
    end = start + rng.normal(size=(60, 3)) * rng.choice([0.3, 3, 12], size=(60, 1))
    end[:9, :] = np.where(np.arange(3) == np.arange(9)[:, None] % 3, end[:9], start[:9])  # along one axis
    energy = rng.uniform(0.1, 3, 60)
    deposits = run(start, end, energy, lattice)
    expected, outside = sampled(start, end, energy, lattice)
    found = {tuple(c): e for c, e in zip(deposits.coordinates(lattice), deposits.energy, strict=True)}
    for cell in set(expected) | set(found):
        assert found.get(cell, 0.0) == pytest.approx(expected.get(cell, 0.0), abs=2e-3), cell
    assert deposits.outside == pytest.approx(outside, abs=1e-2)
    assert deposits.energy.sum() + deposits.outside == pytest.approx(energy.sum(), rel=1e-13)


def test_diagonal_step_splits_by_length():
    """From the middle of voxel (1, 1, 0) to that of (3, 1, 0): a quarter, a half, a quarter."""
    sketch = Sketch()
    sketch.step(sketch.track(13), (1.5, 1.5, 0.5), (3.5, 1.5, 0.5), 4.0)
    tr = sketch.transported()
    deposits = run(tr.step_start, tr.step_end, tr.step_energy)
    found = {tuple(c): e for c, e in zip(deposits.coordinates(LATTICE), deposits.energy, strict=True)}
    assert found == pytest.approx({(1, 1, 0): 1.0, (2, 1, 0): 2.0, (3, 1, 0): 1.0})
    # through the corner of (1, 1) to (2, 2): halves, and nothing in the voxels that share the edge only
    deposits = run([[-94.5, -94.5, -94.5]], [[-91.5, -91.5, -94.5]], [2.0])
    found = {tuple(c): e for c, e in zip(deposits.coordinates(LATTICE), deposits.energy, strict=True)}
    assert found == pytest.approx({(0, 0, 0): 1.0, (1, 1, 0): 1.0})


def test_edges_of_the_box():
    high = LATTICE.high[0]
    point = np.array([[high, 0.1, 0.1]])
    on_face = run(point, point, [1.0])
    assert on_face.coordinates(LATTICE).tolist() == [[63, 32, 32]] and on_face.outside == 0
    beyond = run(point + 1.0, point + 1.0, [1.0])
    assert len(beyond.index) == 0 and beyond.outside == 1.0
    leaving = run([[high - 3, 0.1, 0.1]], [[high + 9, 0.1, 0.1]], [4.0])
    assert leaving.energy == pytest.approx([1.0]) and leaving.outside == pytest.approx(3.0)
    low = run([[-high, 0.1, 0.1]], [[-high - 3, 0.1, 0.1]], [1.0])
    assert len(low.index) == 0 and low.outside == pytest.approx(1.0)
    inward = run([[high, 0.1, 0.1]], [[high - 3, 0.1, 0.1]], [1.0])
    assert inward.coordinates(LATTICE).tolist() == [[63, 32, 32]] and inward.outside == 0


def test_no_steps():
    nothing = run(np.zeros((0, 3)), np.zeros((0, 3)), [])
    assert len(nothing.index) == len(nothing.pairs) == len(nothing.track) == 0 and nothing.outside == 0


def test_neighbour_pairs_match_a_tree():
    rng = np.random.default_rng(1)
    points = rng.uniform(-30, 30, (800, 3))
    deposits = run(points, points, np.ones(800))
    cells = deposits.coordinates(LATTICE)
    expected = {tuple(sorted(p)) for p in cKDTree(cells).query_pairs(1.8)}
    found = [tuple(sorted(p)) for p in deposits.pairs.tolist()]
    assert len(found) == len(set(found)) and set(found) == expected


def test_deposits_by_track():
    rng = np.random.default_rng(2)
    points, track = rng.uniform(-5, 5, (300, 3)), rng.integers(0, 6, 300)
    energy = rng.uniform(0.1, 1, 300)
    deposits = run(points, points, energy, track=track)
    for v in range(len(deposits.index)):
        here = np.floor((points + LATTICE.high) / 3).astype(int)
        mine = (here == deposits.coordinates(LATTICE)[v]).all(1)
        expected = {t: energy[mine & (track == t)].sum() for t in set(track[mine].tolist())}
        found, d = {}, deposits.head[v]
        while d >= 0:
            assert deposits.track[d] not in found
            found[int(deposits.track[d])] = deposits.track_energy[d]
            d = deposits.next[d]
        assert found == pytest.approx(expected)


def test_time_length_and_charge():
    start, end = [[-1.0, 0.1, 0.1]] * 2, [[-0.5, 0.1, 0.1]] * 2
    deposits = run(start, end, [1.0, 3.0], time=np.array([10.0, 20.0]))
    assert deposits.time == pytest.approx([17.5]) and deposits.length == pytest.approx([0.1])
    # Modified box model by hand at dE/dx = 20 and 60 MeV/cm (ArgoNeuT, JINST 8 P08005: A 0.930, B 0.212)
    beta = 0.212 * np.array([20.0, 60.0]) / (1.396 * 0.5)
    survive = np.log(0.93 + beta) / beta
    assert deposits.electrons == pytest.approx([(np.array([1.0, 3.0]) * survive).sum() / 23.6e-6])
    none = run(start, end, [1.0, 3.0], recombination=Recombination(b=0.0))
    assert none.electrons == pytest.approx([4.0 / 23.6e-6])
    mip = run([[0.1, 0.1, 0.1]], [[1.1, 0.1, 0.1]], [0.21])  # 2.1 MeV/cm at 0.5 kV/cm: about 0.7 survive
    assert mip.electrons * 23.6e-6 / 0.21 == pytest.approx(0.71, abs=0.02)


@pytest.mark.parametrize(
    "size, pitch",
    [((0, 3, 3), 3.0), ((3, 3), 3.0), ((3, 3, 3), 0.0), ((3, 3, 3), -1.0), ((4000, 4000, 4000), 1.0)],
)
def test_lattices_that_cannot_be(size, pitch):
    with pytest.raises(ValueError, match="lattice"):
        Lattice(size, pitch)
