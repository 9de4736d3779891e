"""Volumetric tokens against brute force and hand-made events, and what must hold for any event."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from token_events import batch_of, walk
from torch import Tensor

from nufm.data.event import Event, PointBatch
from nufm.data.transforms import LogEnergy, NormalizeCoord, compose
from nufm.models.tokens import VOXEL, Tokenizer, Tokens


def sets_of(tokens: Tokens) -> list[frozenset[int]]:
    return [frozenset(m.tolist()) for m in tokens.members.split(tokens.counts.tolist())]


PLAIN = {"radius": 5.0, "max_points": 10_000}


@pytest.mark.parametrize("overlap", [0.5, 0.72, 1.0])
def test_centres_keep_their_distance_and_leave_no_seed_alone(overlap: float) -> None:
    """Self-tests (a) and (b): centres are 2 r f apart, every seed is one or closer than that to one."""
    coords = [walk(1, 700), walk(2, 300)]
    tokens = Tokenizer(**PLAIN, overlap=overlap)(batch_of(coords))
    reach = 2 * 5.0 * overlap
    for centre, points in zip(tokens.centre.split(tokens.offsets.diff().tolist()), coords, strict=True):
        between = torch.cdist(centre.double(), centre.double(), compute_mode="donot_use_mm_for_euclid_dist")
        between.fill_diagonal_(torch.inf)
        assert float(between.min()) >= reach * (1 - 1e-12)
        nearest = torch.cdist(points.double(), centre.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        assert float(nearest.max()) < reach


def test_coverage_is_the_share_of_points_in_a_ball_and_no_point_is_in_two_where_balls_are_apart() -> None:
    """Self-tests (c) and (d), against all distances."""
    coords = [walk(3, 500), walk(4, 200)]
    batch = batch_of(coords)
    for overlap in (0.5, 0.72, 1.0):
        tokenizer = Tokenizer(**PLAIN, overlap=overlap)
        tokens, expected, most = tokenizer(batch), [], 0
        for centre, points in zip(tokens.centre.split(tokens.offsets.diff().tolist()), coords, strict=True):
            inside = (torch.cdist(points.double(), centre.double()) < 5.0).sum(1)
            expected.append(float((inside > 0).double().mean()))
            most = max(most, int(inside.max()))
        assert tokenizer.coverage(batch).tolist() == pytest.approx(expected)
        if overlap == 0.5:
            assert expected == [1.0, 1.0]
        else:
            assert max(expected) < 1  # the test must be able to see an uncovered point
        assert (most == 1) == (overlap == 1.0)


def test_members_are_the_points_of_the_ball_and_local_coordinates_are_in_radii() -> None:
    coords = [walk(5, 300), walk(6, 150)]
    batch = batch_of(coords)
    tokens = Tokenizer(**PLAIN)(batch)
    first = 0
    for event, points in enumerate(coords):
        for token in range(int(tokens.offsets[event]), int(tokens.offsets[event + 1])):
            members = tokens.members[tokens.starts[token] : tokens.starts[token + 1]]
            inside = (points.double() - tokens.centre[token].double()).square().sum(1) < 25.0
            assert set(members.tolist()) == set((first + inside.nonzero()[:, 0]).tolist())
        first += len(points)
    owner = torch.repeat_interleave(torch.arange(len(tokens)), tokens.counts)
    torch.testing.assert_close(tokens.points[:, :3] * 5 + tokens.centre[owner], batch.coord[tokens.members])
    assert torch.equal(tokens.points[:, 3], batch.feat[tokens.members, 3])
    assert torch.equal(tokens.event[owner], batch.event_index[tokens.members])


def greedy(points: Tensor, reach: float) -> list[int]:
    """The definition of C-NMS, one point after the other; ties go to the first in coordinate order."""
    near = (points[:, None].double() - points[None].double()).square().sum(2) < reach**2
    order = sorted(range(len(points)), key=lambda i: (-int(near[i].sum()), *points[i].tolist()))
    removed, kept = set(), []
    for i in order:
        if i not in removed:
            kept.append(i)
            removed |= set(near[i].nonzero()[:, 0].tolist())
    return kept


def test_centres_equal_the_sequential_definition() -> None:
    points = walk(7, 400)
    tokens = Tokenizer(**PLAIN)(batch_of([points]))
    expected = points[greedy(points, 2 * 5.0 * 0.72)]
    assert torch.equal(tokens.centre, expected)


def test_order_of_the_points_does_not_matter() -> None:
    points, energy = walk(8, 600), torch.randn(600)
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    for changes in ({}, {"max_points": 8}, {"seeds": 100, "max_points": 8}):
        tokenizer = Tokenizer(**PLAIN | changes)
        a = tokenizer(batch_of([points], [energy]))
        b = tokenizer(batch_of([points[shuffled]], [energy[shuffled]]))
        for name in ("centre", "starts", "points"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(a.members, shuffled[b.members])
    as_given = Tokenizer(**PLAIN, order="as_given")
    a, b = as_given(batch_of([points])), as_given(batch_of([points[shuffled]]))
    assert not (len(a) == len(b) and torch.equal(a.centre, b.centre))  # as published: it does


def test_tokens_do_not_depend_on_batch_mates() -> None:
    coords = [walk(9, 300), walk(10, 40), walk(11, 500)]
    tokenizer = Tokenizer(radius=5.0, max_points=12)
    together = tokenizer(batch_of(coords))
    for event, points in enumerate(coords):
        alone = tokenizer(batch_of([points]))
        part = together.select(together.event == event)
        assert torch.equal(part.centre, alone.centre)
        assert torch.equal(part.starts, alone.starts)
        assert torch.equal(part.offsets.diff()[event : event + 1], alone.offsets.diff())


def test_a_fuller_ball_keeps_farthest_or_most_energetic_points() -> None:
    """A straight line: farthest points begin at one end, then the other, then the middle."""
    line = torch.stack([torch.arange(-4.0, 5), torch.zeros(9), torch.zeros(9)], 1)
    energy = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5])
    batch = batch_of([line], [energy])
    one = {"radius": 9.0, "overlap": 1.0}
    by_place = Tokenizer(**one, max_points=3)(batch)
    assert len(by_place) == 1
    assert line[by_place.members, 0].tolist() == [-4.0, 4.0, 0.0]
    by_energy = Tokenizer(**one, max_points=3, reduction="energy")(batch)
    assert by_energy.points[:, 3].tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert sets_of(Tokenizer(**one, max_points=9)(batch)) == [frozenset(range(9))]


def test_mean_centres_and_farthest_point_seeds() -> None:
    points = walk(12, 500)
    tokens = Tokenizer(radius=8.0, max_points=16, seeds=40, centre="mean")(batch_of([points]))
    for centre, members in zip(tokens.centre, sets_of(tokens), strict=True):
        torch.testing.assert_close(centre, points[sorted(members)].mean(0))
    every_seed = Tokenizer(radius=8.0, max_points=16, seeds=40, overlap=None)(batch_of([points]))
    assert len(every_seed) == 40


def test_caps_take_the_first_in_the_order_of_the_batch() -> None:
    """Published caps: the first so many rows, not the nearest."""
    points = walk(13, 200)
    tokens = Tokenizer(radius=5.0, max_points=100, ball_cap=4, neighbour_cap=50, order="as_given")(batch_of([points]))
    for centre, members in zip(tokens.centre, sets_of(tokens), strict=True):
        inside = ((points - centre).square().sum(1) < 25).nonzero()[:, 0].tolist()
        assert members == frozenset(inside[:4])


def test_no_silent_limit_on_the_number_of_tokens() -> None:
    coords = [walk(14, 900), walk(15, 30)]
    batch, everything = batch_of(coords), Tokenizer(**PLAIN)(batch_of(coords))
    counts = everything.offsets.diff()
    assert int(everything.left_out.sum()) == 0
    limit = int(counts[0]) - 3
    with pytest.raises(ValueError, match=rf"made#0: found {int(counts[0])} tokens.*max_tokens = {limit}"):
        Tokenizer(**PLAIN, max_tokens=limit)(batch)
    tokenizer = Tokenizer(**PLAIN, max_tokens=limit, beyond="truncate")
    with pytest.warns(UserWarning, match=f"made#0: 3 of its {int(counts[0])} tokens are left out"):
        fewer = tokenizer(batch)
    assert fewer.left_out.tolist() == [3, 0]
    assert fewer.offsets.diff().tolist() == [limit, int(counts[1])]
    assert torch.equal(fewer.centre[:limit], everything.centre[:limit])  # the most central ones stay
    assert tokenizer.n_left_out == 3


def test_empty_event_lone_point_and_duplicates() -> None:
    nothing, lone = torch.zeros(0, 3), torch.tensor([[7.0, 8.0, 9.0]])
    twice = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [30.0, 0.0, 0.0]])
    tokens = Tokenizer(**PLAIN)(batch_of([nothing, lone, twice, nothing]))
    assert tokens.offsets.tolist() == [0, 0, 1, 3, 3]
    assert sets_of(tokens) == [frozenset({0}), frozenset({1, 2}), frozenset({3})]
    none = Tokenizer(**PLAIN)(batch_of([nothing]))
    assert len(none) == 0 and none.points.shape == (0, 4)
    assert len(none.select(torch.zeros(0, dtype=torch.bool))) == 0


def test_select_keeps_the_chosen_tokens() -> None:
    tokens = Tokenizer(**PLAIN)(batch_of([walk(16, 300), walk(17, 100)]))
    chosen = torch.rand(len(tokens), generator=torch.Generator().manual_seed(1)) < 0.4
    part = tokens.select(chosen)
    assert torch.equal(part.centre, tokens.centre[chosen])
    assert sets_of(part) == [s for s, c in zip(sets_of(tokens), chosen.tolist(), strict=True) if c]
    assert part.offsets.diff().tolist() == [int(chosen[tokens.event == e].sum()) for e in range(2)]
    assert torch.equal(part.slot, torch.cat([torch.arange(int(n)) for n in part.counts]))


def test_nan_is_refused_and_so_are_settings_that_cannot_be_meant() -> None:
    bad = walk(18, 10)
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match="must be finite"):
        Tokenizer(**PLAIN)(batch_of([bad]))
    for changes, message in (
        ({"radius": 0.0}, "radius is 0.0"),
        ({"max_points": -1}, "max_points is -1"),
        ({"overlap": 0.0}, "overlap is 0.0"),
        ({"beyond": "ignore"}, "beyond is 'ignore'"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokenizer(**PLAIN | changes)
    with pytest.raises(ValueError, match=r"no tokenizer preset '3'.*2.5, 5, 25"):
        Tokenizer.preset("3")
    assert Tokenizer.preset(2.5).arguments == Tokenizer.preset("2.5").arguments


@pytest.mark.parametrize(("voxels", "points", "overlap"), [("2.5", 16, 0.73), ("5", 32, 0.72), ("25", 128, 0.72)])
def test_presets_on_a_detector_event(voxels: str, points: int, overlap: float) -> None:
    rng = np.random.default_rng(0)
    voxel = np.unique(np.concatenate([rng.integers(-1, 2, (800, 3)).cumsum(0) + s for s in (200, 400, 500)]), axis=0)
    event = Event(voxel=voxel.astype(np.int32), energy=rng.exponential(1.0, len(voxel)).astype(np.float32))
    event = compose([NormalizeCoord(), LogEnergy(0.13)], event, rng)
    batch = PointBatch.from_events([event], 1.5e-3)
    tokenizer = Tokenizer.preset(voxels)
    tokens = tokenizer(batch)
    assert tokenizer.radius == pytest.approx(float(voxels) * VOXEL, rel=2e-4) and tokenizer.overlap == overlap
    assert int(tokens.counts.max()) <= points == tokenizer.max_points
    assert 0.5 < float(tokenizer.coverage(batch)) <= 1
    # Only "mean" centres may see a member from farther than a radius.
    reach = float(tokens.points[:, :3].norm(dim=1).max())
    assert reach < 1 or voxels == "25"


@pytest.mark.parametrize("voxels", ["2.5", "5"])
def test_tokens_do_not_depend_on_where_in_the_detector_they_lie(voxels: str) -> None:
    """With the radius of a whole voxel, points on the surface are in or out by rounding: see ``HAIR``."""
    voxel = walk(20, 800).int().numpy() + 300
    energy = np.ones(len(voxel), np.float32)

    def tokens(shift: int) -> list[frozenset[int]]:
        event = Event(voxel=voxel + np.int32(shift), energy=energy)
        event = compose([NormalizeCoord(), LogEnergy(0.13)], event, np.random.default_rng(0))
        return sets_of(Tokenizer.preset(voxels, max_points=1000)(PointBatch.from_events([event], 1.5e-3)))

    assert tokens(0) == tokens(37) == tokens(-211)
