"""Augmentations of particles in crops: hits and hand-crafted numbers stay those of one and the same particle."""

from __future__ import annotations

import numpy as np
import pytest

from nufm.data.particle_transforms import ShiftParticle, TurnParticle
from nufm.data.particles import (
    COLUMNS,
    cluster_numbers,
    cut_out,
    scintillator_record,
    wall_numbers,
)
from nufm.data.stream_files import event_from_record
from nufm.data.streams import Hits, StreamEvent

SIZE, VOLUME = (120, 120, 120), (200, 200, 200)


def particle(seed: int = 0, middle: tuple[int, int, int] = (70, 110, 130)) -> StreamEvent:
    """A track of 40 cubes whose charge rises along it, in the volume."""
    rng = np.random.default_rng(seed)
    way = rng.normal(size=3)
    place = np.array(middle) + np.outer(np.linspace(-20, 20, 60), way / np.linalg.norm(way))
    index = np.unique(place.round().astype(np.int32), axis=0)
    charge = (1 + (index - index.min(0)) @ np.abs(way)).astype(np.float32)
    hits = Hits(index, np.zeros(len(index), np.int32), charge)
    return StreamEvent(voxels={"voxels": hits}, truth={"particle": np.array(1)}, detector="superfgd_volume")


def crop(seed: int = 0) -> StreamEvent:
    return event_from_record(scintillator_record(particle(seed)), "superfgd", "particle")


@pytest.mark.parametrize("seed", range(6))
def test_numbers_of_a_turned_particle_are_those_of_its_hits(seed):
    before = crop(seed)
    after = TurnParticle()(before, np.random.default_rng(seed))
    hits = after.voxels["voxels"]
    assert not np.array_equal(hits.index, before.voxels["voxels"].index)
    assert after.extra[:25] == pytest.approx(cluster_numbers(hits.index, hits.charge, SIZE, before.extra[11]), abs=1e-5)


def test_all_symmetries_of_the_cube_come_and_no_others():
    event = crop()
    found = {
        TurnParticle()(event, np.random.default_rng(s)).voxels["voxels"].index.tobytes() for s in range(1000)
    }
    assert len(found) == 48


def test_axes_that_are_not_named_stay():
    event = crop().replace(detector="pilarnet_crop", extra=None)
    found = {
        TurnParticle((0, 1))(event, np.random.default_rng(s)).voxels["voxels"].index.tobytes() for s in range(200)
    }
    assert len(found) == 8
    for s in range(5):
        turned = TurnParticle((0, 1))(event, np.random.default_rng(s)).voxels["voxels"].index
        assert np.array_equal(turned[:, 2], event.voxels["voxels"].index[:, 2])
    with pytest.raises(ValueError, match=r"\[168, 168, 180\] voxels; name axes of equal length"):
        TurnParticle()(event, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(6))
def test_a_shifted_particle_is_one_cut_out_elsewhere(seed):
    """Numbers after the shift are those of a crop whose origin lies as far on the other side."""
    volume, before = particle(seed), crop(seed)
    origin = cut_out(volume.voxels["voxels"].index, volume.voxels["voxels"].charge, SIZE, VOLUME).origin
    after = ShiftParticle()(before, np.random.default_rng(seed))
    hits = after.voxels["voxels"]
    shift = hits.index[0] - before.voxels["voxels"].index[0]
    assert (hits.index - before.voxels["voxels"].index == shift).all() and (np.abs(shift) <= 6).all() and shift.any()
    assert after.extra[:25] == pytest.approx(cluster_numbers(hits.index, hits.charge, SIZE, before.extra[11]), abs=1e-5)
    assert after.extra[25:] == pytest.approx(wall_numbers(origin - shift, SIZE, VOLUME), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_a_crop_at_the_wall_of_the_volume_stays_there(seed):
    """A particle in the corner: its crop starts at the walls, and none could be cut out beyond them."""
    volume = particle(seed, middle=(25, 25, 175))
    before = event_from_record(scintillator_record(volume), "superfgd", "particle")
    assert before.extra[25:].tolist() == [0, 1, 0, 1, 1, 0]
    after = ShiftParticle()(before, np.random.default_rng(seed))
    shift = after.voxels["voxels"].index[0] - before.voxels["voxels"].index[0]
    assert shift.any()
    expected = np.array([0, 0, 80]) - shift
    assert after.extra[25:] == pytest.approx(wall_numbers(expected.clip(0, 80), SIZE, VOLUME), abs=1e-6)


def test_hits_at_the_edge_are_counted_after_a_shift():
    """A plane of hits in the last voxels but one: at the edge only if it moved there."""
    index = np.array([[118, y, z] for y in range(50, 54) for z in range(50, 55)] + [[100, 50, 50]], np.int32)
    hits = Hits(index, np.zeros(len(index), np.int32), np.ones(len(index), np.float32))
    extra = np.concatenate([cluster_numbers(index, hits.charge, SIZE, 0.0), np.full(6, 0.5)]).astype(np.float32)
    event = crop().replace(voxels={"voxels": hits}, extra=extra)
    found = set()
    for seed in range(20):
        after = ShiftParticle()(event, np.random.default_rng(seed))
        there = after.voxels["voxels"].index[0, 0] == 119
        assert after.extra[COLUMNS["superfgd"].index("at_edge")] == pytest.approx(20 / 21 if there else 0.0)
        found.add(bool(there))
    assert found == {True, False}


def test_walls_turn_with_the_particle():
    columns = COLUMNS["superfgd"]
    before = crop()
    walls = [columns.index(f"wall_{side}_{axis}") for axis in "xyz" for side in ("low", "high")]
    for seed in range(8):
        after = TurnParticle()(before, np.random.default_rng(seed))
        # Each hit's distances to the six walls are the same set.
        for event in (before, after):
            index = event.voxels["voxels"].index
            low = event.extra[walls[0::2]] * 80 + index
            high = event.extra[walls[1::2]] * 80 + 119 - index
            distances = np.sort(np.concatenate([low, high], axis=1), axis=1)
            if event is before:
                expected = distances
        assert np.sort(distances, axis=0) == pytest.approx(np.sort(expected, axis=0), abs=1e-3)


def test_a_particle_at_the_wall_of_the_crop_stays_in_it():
    index = np.array([[0, 60, 119], [1, 60, 119]], np.int32)
    event = crop().replace(voxels={"voxels": Hits(index, np.zeros(2, np.int32), np.ones(2, np.float32))}, extra=None)
    for seed in range(30):
        moved = ShiftParticle()(event, np.random.default_rng(seed)).voxels["voxels"].index
        assert moved.min() >= 0 and moved.max() <= 119


def test_nothing_to_turn_or_shift():
    none = Hits(np.zeros((0, 3), np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    for event in (crop().replace(voxels={"voxels": none}), crop().replace(voxels={})):
        for transform in (TurnParticle(), ShiftParticle()):
            assert transform(event, np.random.default_rng(0)).voxels.keys() == event.voxels.keys()
    assert TurnParticle(p=0)(event, np.random.default_rng(0)) is event
