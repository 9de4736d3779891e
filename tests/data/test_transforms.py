"""Each transform against values worked out by hand or a second derivation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nufm.data import transforms as T
from nufm.data.event import Event, PointBatch
from nufm.data.pilarnet import PILArNetReader

ANY = np.random.default_rng(0)


def cloud(n: int = 200, seed: int = 0) -> Event:
    rng = np.random.default_rng(seed)
    voxel = rng.integers(0, 768, (n, 3)).astype(np.int32)
    energy = rng.uniform(0.2, 5, n).astype(np.float32)
    event = Event(voxel=voxel, energy=energy, motif=rng.integers(0, 5, n))
    return T.compose([T.NormalizeCoord(), T.LogEnergy()], event, rng)


def test_normalise_coord():
    voxel = np.array([[384, 384, 384], [0, 768, 385], [767, 0, 383]], dtype=np.int32)
    coord = T.NormalizeCoord()(Event(voxel, np.ones(3, np.float32)), ANY).coord
    assert coord.dtype == np.float32
    # 384 voxels are half an edge; half a diagonal is one unit, so half an edge is 1/√3 and a voxel 1.50352e-3
    np.testing.assert_allclose(coord[0], 0)
    np.testing.assert_allclose(coord[1], [-0.57735, 0.57735, 1.50352e-3], rtol=1e-5)
    assert np.linalg.norm(coord, axis=1).max() < 1


@pytest.mark.parametrize(
    ("epsilon", "table"),  # tables of the papers' public code: Panda (0.01) and PoLAr-MAE (0.13)
    [
        (0.01, {0: -1, 0.13: -0.3056, 0.5: 0.0345, 1: 0.2143, 2: 0.3953, 5: 0.6356, 20: 1}),
        (0.13, {0: -1, 0.13: -0.7251, 0.5: -0.374, 1: -0.1423, 2: 0.1091, 20: 1}),
    ],
)
def test_log_energy(epsilon, table):
    energy = np.array(list(table), dtype=np.float32)
    event = T.LogEnergy(epsilon=epsilon)(Event(np.zeros((len(energy), 3), np.int32), energy), ANY)
    assert event.columns == ("log_energy",) and event.feat.dtype == np.float32
    np.testing.assert_allclose(event.feat[:, 0], list(table.values()), atol=5.1e-5)


def test_log_energy_is_not_clipped():
    event = T.LogEnergy()(Event(np.zeros((1, 3), np.int32), np.array([100], np.float32)), ANY)
    assert event.feat[0, 0] == pytest.approx(
        2 * math.log10(100.01 / 0.01) / math.log10(20.01 / 0.01) - 1, abs=1e-6
    )


@pytest.mark.parametrize("epsilon", [0.01, 0.13])
def test_inverses(epsilon):
    rng = np.random.default_rng(3)
    energy = np.concatenate([[0, 1e-4, 0.13, 20, 300], 10 ** rng.uniform(-3, 3, 500)]).astype(np.float32)
    voxel = rng.integers(0, 768, (len(energy), 3)).astype(np.int32)
    scale, centre = T.LogEnergy(epsilon), T.NormalizeCoord(383.5)
    event = T.compose([centre, scale], Event(voxel, energy), ANY)
    # feat is float32, one part in 10^7 of a unit that is 1.6 to 1.1 decades
    np.testing.assert_allclose(scale.inverse(event.feat[:, 0]), energy, rtol=1e-6, atol=1e-6 * epsilon)
    np.testing.assert_allclose(centre.inverse(event.coord), voxel, atol=1e-4)
    # by hand: -1 is nothing, 1 is E_max, and halfway in the logarithm is sqrt(ε (E_max + ε)) - ε
    np.testing.assert_allclose(
        scale.inverse(np.array([-1.0, 1.0, 0.0])), [0, 20, math.sqrt(epsilon * (20 + epsilon)) - epsilon], atol=1e-12
    )
    assert scale.inverse(np.array([-1.5]))[0] < 0  # a prediction may lie below what an energy can be
    raw = T.RawEnergy()
    np.testing.assert_array_equal(raw.inverse(raw(event, ANY).feat[:, 0]), energy)


def test_grid_sample_loses_nothing_of_a_genuine_event():
    event = PILArNetReader(Path(__file__).parent / "pilarnet_m_event.h5")[0]
    event = T.NormalizeCoord()(event, ANY)
    sampled = T.GridSample(0.001)(event, np.random.default_rng(1))
    np.testing.assert_array_equal(sampled.voxel, event.voxel)


def test_grid_sample_keeps_one_of_each_cell():
    event = cloud(3000)
    sampled = T.GridSample(0.1)(event, np.random.default_rng(0))
    cells = {tuple(c) for c in np.floor(event.coord / np.float32(0.1)).astype(int)}
    kept = [tuple(c) for c in np.floor(sampled.coord / np.float32(0.1)).astype(int)]
    assert len(kept) == len(set(kept)) == len(cells) < 2000 and set(kept) == cells
    # points keep their order and all their fields
    position = {tuple(v): i for i, v in enumerate(event.voxel)}
    rows = [position[tuple(v)] for v in sampled.voxel]
    assert rows == sorted(rows)
    np.testing.assert_array_equal(sampled.motif, event.motif[rows])


def test_grid_sample_chooses_evenly():
    voxel = np.array([[5, 5, 5]] * 4 + [[100, 5, 5]], dtype=np.int32)
    event = Event(voxel, np.arange(1, 6, dtype=np.float32))
    event = T.NormalizeCoord()(event, ANY)
    rng = np.random.default_rng(0)
    counts = np.zeros(6)
    for _ in range(2000):
        kept = T.GridSample(0.001)(event, rng).energy
        assert len(kept) == 2 and kept[1] == 5
        counts[int(kept[0])] += 1
    assert np.all(np.abs(counts[1:5] - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75))


def test_grid_sample_refuses_absurd_cells():
    with pytest.raises(ValueError, match="is 'size' in the units of 'coord'"):
        T.GridSample(1e-9)(cloud(), ANY)


def test_without_led_drops_what_the_truth_calls_so():
    event = cloud(200).replace(name="a.h5#7")
    found = T.WithoutLED()(event, ANY)
    keep = [i for i in range(200) if event.motif[i] != 4]
    assert 0 < len(keep) < 200 and len(found) == len(keep)
    np.testing.assert_array_equal(found.voxel, event.voxel[keep])
    np.testing.assert_array_equal(found.feat, event.feat[keep])
    np.testing.assert_array_equal(found.motif, event.motif[keep])
    ignored = event.replace(motif=np.where(event.motif == 0, -1, event.motif))
    assert len(T.WithoutLED()(ignored, ANY)) == len(keep), "points of unknown class stay"
    assert len(T.WithoutLED()(event.replace(motif=np.full(200, 4)), ANY)) == 0
    with pytest.raises(ValueError, match=r"a\.h5#7: WithoutLED .* field 'motif' is missing; use labelled events"):
        T.WithoutLED()(event.replace(motif=None), ANY)


def test_without_led_on_a_genuine_event():
    """Row 0 of a PILArNet-M event is its low-energy bin: 22 % of the points of the set, and all of that class."""
    event = PILArNetReader(Path(__file__).parent / "pilarnet_m_event.h5", energy_threshold=0.0, min_points=0)[0]
    found = T.WithoutLED()(event, ANY)
    low = (event.motif == 4).sum()
    assert len(found) == len(event) - low and 0.02 < low / len(event) < 0.6
    assert set(np.unique(found.motif)) <= {0, 1, 2, 3}


def test_energy_jitter():
    event = cloud(20000)
    rng = np.random.default_rng(3)
    changed = [T.EnergyJitter(sigma=0.05, clip=0.05, p=0.8)(event, rng) for _ in range(60)]
    untouched = [np.array_equal(e.feat, event.feat) for e in changed]
    assert 3 <= sum(untouched) <= 24  # 12 expected, sigma 3.1
    factor = (
        next(e for e, same in zip(changed, untouched, strict=True) if not same).feat[:, 0] / event.feat[:, 0]
    )
    factor = factor[np.abs(event.feat[:, 0]) > 0.05].astype(np.float64)
    assert factor.min() >= 0.95 - 1e-5 and factor.max() <= 1.05 + 1e-5
    # a standard normal clipped at ±1 has P(|z| >= 1) = 0.3173 and variance 0.5161
    assert np.mean(np.abs(factor - 1) > 0.05 - 1e-6) == pytest.approx(0.3173, abs=0.02)
    assert factor.std() == pytest.approx(0.05 * math.sqrt(0.5161), rel=0.03)
    np.testing.assert_array_equal(changed[0].coord, event.coord)


def test_centre_shift():
    event = cloud()
    shifted = T.CenterShift()(event, ANY).coord
    np.testing.assert_allclose(shifted.max(0), -shifted.min(0), atol=1e-6)
    np.testing.assert_allclose(shifted[1:] - shifted[:-1], event.coord[1:] - event.coord[:-1], atol=1e-6)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotation(axis):
    event, fixed = cloud(), "xyz".index(axis)
    rng = np.random.default_rng(5)
    angles = []
    for _ in range(400):
        moved = T.RandomRotate(axis, p=1.0)(event, rng).coord
        np.testing.assert_array_equal(moved[:, fixed], event.coord[:, fixed])
        np.testing.assert_allclose(
            np.linalg.norm(moved, axis=1), np.linalg.norm(event.coord, axis=1), rtol=1e-5
        )
        a, b = (fixed + 1) % 3, (fixed + 2) % 3
        turned = np.angle((moved[:, a] + 1j * moved[:, b]) / (event.coord[:, a] + 1j * event.coord[:, b]))
        np.testing.assert_allclose(np.exp(1j * turned), np.exp(1j * turned[0]), atol=1e-3)
        angles.append(turned[0])
    # uniform on ±π: the mean direction of 400 angles has length about 1/√400, its variance is π²/3
    assert abs(np.exp(1j * np.array(angles)).mean()) < 0.15
    assert np.var(angles) == pytest.approx(math.pi**2 / 3, rel=0.12)
    small = [T.RandomRotate(axis, p=1.0, max_angle=0.1)(event, rng).coord for _ in range(20)]
    assert max(np.abs(m - event.coord).max() for m in small) < 0.1
    still = [np.array_equal(T.RandomRotate(axis, p=0.8)(event, rng).coord, event.coord) for _ in range(400)]
    assert np.mean(still) == pytest.approx(0.2, abs=0.08)


def test_rotation_is_right_handed():
    """A quarter turn about z takes x to y; the axes follow cyclically."""

    class Quarter:
        def random(self):
            return 0.0

        def uniform(self, low, high):
            return math.pi / 2

    x, y, z = np.eye(3, dtype=np.float32)
    for axis, start, end in (("z", x, y), ("x", y, z), ("y", z, x)):
        np.testing.assert_allclose(T.RandomRotate(axis).move(start[None], Quarter())[0], end, atol=1e-6)


def test_flip():
    event, rng = cloud(), np.random.default_rng(6)
    signs = []
    for _ in range(500):
        ratio = T.RandomFlip()(event, rng).coord / event.coord
        ratio = ratio[np.isfinite(ratio).all(1)]
        assert np.array_equal(ratio, np.broadcast_to(ratio[0], ratio.shape)) and set(np.abs(ratio[0])) == {1}
        signs.append(ratio[0])
    signs = np.array(signs)
    assert np.all(np.abs(signs.mean(0)) < 0.2)
    assert np.all(np.abs(np.corrcoef(signs.T) - np.eye(3)) < 0.2)
    only_y = T.RandomFlip(axes=("y",), p=1.0)(event, rng).coord
    np.testing.assert_array_equal(only_y, event.coord * [1, -1, 1])


def test_raw_energy():
    event = cloud()
    raw = T.RawEnergy()(event, ANY)
    assert raw.columns == ("energy",) and raw.feat.dtype == np.float32
    np.testing.assert_array_equal(raw.feat[:, 0], event.energy)


def test_cube_symmetries_are_the_48_and_equally_frequent():
    """Each image of one point with three different coordinates names one symmetry."""
    event, rng = cloud(5), np.random.default_rng(3)
    start = np.array([0.1, 0.2, 0.3], np.float32)
    event = event.replace(coord=np.vstack([start, event.coord[1:]]))
    images = [T.CubeSymmetry()(event, rng).coord for _ in range(4800)]
    found, counts = np.unique(np.round(np.array([c[0] for c in images]), 3), axis=0, return_counts=True)
    assert len(found) == 48 and counts.min() > 60 and counts.max() < 145  # 100 ± 10 each
    for coord in images[:20]:  # distances between points stay
        np.testing.assert_allclose(
            np.linalg.norm(coord[1:] - coord[0], axis=1), np.linalg.norm(event.coord[1:] - start, axis=1), rtol=1e-5
        )
    assert T.CubeSymmetry(p=0.0)(event, rng).coord is event.coord


def test_cube_symmetries_keep_the_lattice_and_rotations_do_not():
    """Points in different cells stay in different cells, at cells of one voxel."""
    rng = np.random.default_rng(0)
    voxel = np.unique(rng.integers(300, 314, (3000, 3)), axis=0).astype(np.int32)
    event = T.NormalizeCoord(centre=383.5)(Event(voxel, np.ones(len(voxel), np.float32)), rng)
    event = T.LogEnergy()(event, rng)

    def cells(e):
        return len(np.unique(PointBatch.from_events([e], 0.0015035).grid.numpy(), axis=0))

    assert all(cells(T.CubeSymmetry()(event, rng)) == len(voxel) for _ in range(48))
    assert min(cells(T.RandomRotate("z", p=1.0)(event, rng)) for _ in range(10)) < 0.95 * len(voxel)


def test_coord_jitter():
    event = cloud(50000)
    noise = T.CoordJitter(sigma=0.00025, clip=0.001)(event, np.random.default_rng(7)).coord - event.coord
    assert np.abs(noise).max() <= 0.001 + 1e-7
    np.testing.assert_allclose(noise.std(0), 0.00025, rtol=0.02)
    tight = T.CoordJitter(sigma=1.0, clip=0.001)(event, np.random.default_rng(7)).coord - event.coord
    assert np.abs(tight).max() <= 0.001 + 1e-7


def test_compose_equals_one_by_one():
    """Runs of coordinate transforms are applied together, with the random numbers of single application."""
    chain = [T.CenterShift(), T.RandomRotate("z"), T.EnergyJitter(), T.RandomFlip(), T.CoordJitter()]
    one, event = np.random.default_rng(8), cloud()
    for transform in chain:
        event = transform(event, one)
    together = T.Compose(tuple(chain))(cloud(), np.random.default_rng(8))
    np.testing.assert_array_equal(together.coord, event.coord)
    np.testing.assert_array_equal(together.feat, event.feat)


def test_same_generator_same_event_and_input_untouched():
    event = cloud()
    coord, feat = event.coord.copy(), event.feat.copy()
    chain = [T.EnergyJitter(p=1.0), *T.view_augmentation(), T.GridSample(0.05)]
    first, second = (T.compose(chain, event, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first.coord, second.coord)
    np.testing.assert_array_equal(first.feat, second.feat)
    np.testing.assert_array_equal(event.coord, coord)
    np.testing.assert_array_equal(event.feat, feat)
    assert not np.array_equal(first.coord, T.compose(chain, event, np.random.default_rng(10)).coord)


@pytest.mark.parametrize("n", [0, 1])
def test_no_point_and_one_point(n):
    event = Event(np.full((n, 3), 7, np.int32), np.ones(n, np.float32))
    chain = [*T.event_transforms(), T.EnergyJitter(p=1.0), *T.view_augmentation()]
    out = T.compose(chain, event, np.random.default_rng(0))
    assert out.coord.shape == (n, 3) and out.feat.shape == (n, 1)
    batch = PointBatch.from_events([out, out], 0.001)
    assert batch.feat.shape == (2 * n, 4) and batch.offsets.tolist() == [0, n, 2 * n]


def test_input_columns_follow_moved_coordinates():
    event = T.compose(T.view_augmentation(), cloud(), np.random.default_rng(0))
    batch = PointBatch.from_events([event], 0.001)
    np.testing.assert_array_equal(batch.feat[:, :3], event.coord)
    assert batch.columns == ("x", "y", "z", "log_energy")


def test_wrong_order_is_explained():
    raw = Event(np.zeros((1, 3), np.int32), np.ones(1, np.float32), name="f.h5#3")
    for transform in (T.GridSample(), T.CenterShift(), T.RandomFlip()):
        with pytest.raises(ValueError, match=r"f\.h5#3: .* needs 'coord'; put NormalizeCoord before it"):
            transform(raw, ANY)
        with pytest.raises(ValueError, match="put NormalizeCoord before it"):
            T.compose([transform], raw, ANY)
    with pytest.raises(ValueError, match=r"needs the column .log_energy.*put LogEnergy before it"):
        T.EnergyJitter()(raw, ANY)
