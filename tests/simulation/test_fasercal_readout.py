"""Three views and the ghosts that follow from them: against dense sums, brute force and hand-made events."""

import numpy as np
import pytest

from nufm.simulation.fasercal.readout import Readout, amplitudes, candidates, keep, project, reconstruct

LATTICE = (12, 10, 8)
MODULES = 2


def flat(module, x, y, z):
    return ((np.asarray(module) * LATTICE[0] + x) * LATTICE[1] + y) * LATTICE[2] + z


def random_event(n, seed=0):
    rng = np.random.default_rng(seed)
    cell = rng.integers(0, MODULES * np.prod(LATTICE), n).astype(np.int32)
    return cell, rng.exponential(3.0, n).astype(np.float32)


def dense(cell, energy):
    volume = np.zeros(MODULES * np.prod(LATTICE))
    np.add.at(volume, cell, energy)
    return volume.reshape(MODULES, *LATTICE)


def hits_of(cells_energy, **rules):
    cell = np.array([flat(*c) for c, _ in cells_energy], dtype=np.int32)
    energy = np.array([e for _, e in cells_energy], dtype=np.float32)
    found, amplitude = reconstruct(cell, energy, MODULES, LATTICE, Readout(**rules))
    return {tuple(int(i) for i in row): a for row, a in zip(found, amplitude, strict=True)}


def test_projections_are_sums_over_one_axis():
    cell, energy = random_event(300)
    volume = dense(cell, energy)
    xz, yz, xy = project(cell, energy, MODULES, *LATTICE)
    assert np.allclose(xz, volume.sum(2).transpose(0, 2, 1))
    assert np.allclose(yz, volume.sum(1).transpose(0, 2, 1))
    assert np.allclose(xy, volume.sum(3))


def test_candidates_by_brute_force():
    xz, yz, xy = project(*random_event(60, 1), MODULES, *LATTICE)
    found = candidates(xz, yz, xy, 1.0)
    fires = (xz > 1.0).transpose(0, 2, 1)[:, :, None] & (yz > 1.0).transpose(0, 2, 1)[:, None] & (xy > 1.0)[..., None]
    assert np.array_equal(found, np.argwhere(fires)) and 0 < len(found) < fires.size


def test_every_deposit_is_a_candidate():
    cell, energy = random_event(200, 2)
    xz, yz, xy = project(cell, energy + 1.0, MODULES, *LATTICE)
    found = candidates(xz, yz, xy, 0.5)
    assert set(cell.tolist()) <= set(flat(*found.T).tolist())


def test_amplitudes_reproduce_the_views_and_never_fall_below_zero():
    """The more iterations, the closer to the views; the total is that of the views from the first iteration on."""
    views = project(*random_event(120, 3), MODULES, *LATTICE)
    found = candidates(*views, 0.0)
    off = []
    for iterations in (0, 3, 40, 400):
        amplitude = amplitudes(found, *views, iterations)
        assert (amplitude >= 0).all()
        again = project(flat(*found.T).astype(np.int32), amplitude, MODULES, *LATTICE)
        off.append(sum(np.abs(a - b).sum() for a, b in zip(views, again, strict=True)) / sum(v.sum() for v in views))
        if iterations:
            assert amplitude.sum() == pytest.approx(views[0].sum(), rel=0.01)
    assert off[0] > off[1] > off[2] > off[3] and off[3] < 0.02


def test_one_row_is_found_without_ghosts():
    """A track along z: its views are unambiguous, and every amplitude is the deposit."""
    track = [((0, 4, 5, z), 2.0 + 0.1 * z) for z in range(8)]
    found = hits_of(track)
    assert set(found) == {c for c, _ in track}
    for place, energy in track:
        assert found[place] == pytest.approx(energy, rel=1e-5)


def test_two_tracks_make_ghosts_where_xy_is_no_help():
    """Tracks at (2, 3) and (7, 8) through the module: XY tells them apart, unless (2, 8) and (7, 3) fire elsewhere."""
    real = [((0, x, y, z), 3.0) for x, y in ((2, 3), (7, 8)) for z in range(8)]
    assert set(hits_of(real)) == {c for c, _ in real}
    more = [*real, *(((0, x, y, z), 3.0) for x, y in ((2, 8), (7, 3)) for z in range(4))]
    found = hits_of(more, voxel_threshold=1e-3, iterations=2)
    ghosts = set(found) - {c for c, _ in more}
    assert ghosts == {(0, x, y, z) for x, y in ((2, 8), (7, 3)) for z in range(4, 8)}
    assert max(found[g] for g in ghosts) < min(found[c] for c, _ in real[4:8])  # less than where the track is
    assert not any(m == 1 for m, *_ in found)  # XY is read out per module


def test_isolated_voxels_are_removed():
    assert hits_of([((1, 3, 3, 3), 50.0)]) == {}
    pair = {(1, 3, 3, 3): 50.0, (1, 3, 3, 4): 0.9}
    assert set(hits_of(list(pair.items()))) == {(1, 3, 3, 4)}  # its neighbour has enough, itself is too little for that
    assert set(hits_of(list({**pair, (1, 3, 3, 4): 1.1}.items()))) == set(pair)
    # the last layer of a module is no neighbour of the first of the next
    apart = [((0, 3, 3, 7), 5.0), ((1, 3, 3, 0), 5.0)]
    assert hits_of(apart) == {}


def test_thresholds():
    line = [((0, 4, 4, z), e) for z, e in enumerate((3.0, 0.3, 3.0, 0.7, 3.0))]
    assert (0, 4, 4, 1) not in hits_of(line) and (0, 4, 4, 3) in hits_of(line)
    assert (0, 4, 4, 1) in hits_of(line, view_threshold=0.1, voxel_threshold=0.1)
    assert (0, 4, 4, 3) not in hits_of(line, voxel_threshold=1.0)


def test_neighbours_are_those_of_brute_force():
    rng = np.random.default_rng(5)
    found = np.argwhere(rng.uniform(size=(MODULES, *LATTICE)) < 0.2).astype(np.int32)
    amplitude = rng.exponential(0.8, len(found))
    kept = keep(found, amplitude, MODULES, *LATTICE, 0.2, 1.0)
    value = {tuple(f): a for f, a in zip(found.tolist(), amplitude, strict=True) if a >= 0.2}
    for (m, x, y, z), a, is_kept in zip(found.tolist(), amplitude, kept, strict=True):
        steps = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
        around = sum(value.get((m, x + i, y + j, z + k), 0.0) for i, j, k in steps)
        assert is_kept == (a >= 0.2 and around >= 1.0)
    assert 0 < kept.sum() < len(kept)


def test_no_deposits_no_hits():
    found, amplitude = reconstruct(np.zeros(0, np.int32), np.zeros(0, np.float32), MODULES, LATTICE, Readout())
    assert found.shape == (0, 4) and amplitude.shape == (0,)
