"""Views against their rules (Panda, arXiv 2512.01324), with crops re-derived by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nufm.data.event import Event
from nufm.data.transforms import CenterShift, EnergyJitter, RandomFlip, compose, event_transforms
from nufm.data.views import MultiView, collate_views, nearest_points

PLAIN = dict(shared=[], global_augment=[], local_augment=[])


def event(n: int, seed: int = 0, spread: int = 100) -> Event:
    """n points on distinct voxels, their number in the event hidden in the energy."""
    rng = np.random.default_rng(seed)
    code = rng.choice(spread**3, n, replace=False)
    voxel = np.stack([code // spread**2, code // spread % spread, code % spread], 1).astype(np.int32) + 300
    raw = Event(voxel, 1.0 + np.arange(n, dtype=np.float32), motif=np.zeros(n, np.int64), name=f"made#{seed}")
    return compose(event_transforms(), raw, rng)


def rows(view: Event) -> list[int]:
    return [int(e) - 1 for e in view.energy]


def brute_force_centres(coord: np.ndarray, crop: list[int]) -> set[int]:
    """Points whose len(crop) nearest points may be the crop: sorted distances, ties allowed."""
    centres = set()
    inside = np.zeros(len(coord), bool)
    inside[crop] = True
    for i, centre in enumerate(coord.astype(np.float64)):
        distance = ((coord - centre) ** 2).sum(1)
        if inside.all() or distance[inside].max() <= distance[~inside].min() + 1e-9:
            centres.add(i)
    return centres


@pytest.mark.parametrize("size", [1, 2, 37, 299, 300, 500])
def test_nearest_points(size):
    coord = event(300, spread=8).coord  # a dense cube: many ties
    centre = coord[17]
    got = nearest_points(coord, centre, size)
    distance = [float(np.dot(c - centre, c - centre)) for c in coord]
    want = sorted(sorted(range(300), key=lambda i: (distance[i], i))[:size])
    assert got.tolist() == want


@pytest.mark.parametrize("n", [7, 60, 250])
def test_crops_and_centres(n):
    """Every view is a ball around an allowed centre, and its size in the allowed range."""
    source, rng = event(n), np.random.default_rng(1)
    for _ in range(6):
        views = MultiView(n_global=2, n_local=6, **PLAIN)(source, rng)
        assert len(views.globals_) == 2 and len(views.locals_) == 6
        for group, (low, high) in ((views.globals_, (0.4, 1.0)), (views.locals_, (0.1, 0.4))):
            for view in group:
                assert max(1, math.floor(low * n)) <= len(view) <= max(1, math.floor(high * n))
                np.testing.assert_array_equal(view.coord, source.coord[rows(view)])
        principal = set(rows(views.globals_[0]))
        assert brute_force_centres(source.coord, rows(views.globals_[0]))
        assert brute_force_centres(source.coord, rows(views.globals_[1])) & principal

        covered: set[int] = set()
        for view in views.locals_:
            if principal <= covered:
                covered = set()
            assert brute_force_centres(source.coord, rows(view)) & (principal - covered)
            covered |= set(rows(view))


def test_local_centres_spread_over_the_principal_view():
    """Two far clusters: once a local has covered one of them, the next must be centred in the other."""
    a, b = event(100, 0, spread=6), event(100, 1, spread=6)
    voxel = np.concatenate([a.voxel, b.voxel + 300])
    raw = Event(voxel, 1.0 + np.arange(200, dtype=np.float32))
    source = compose(event_transforms(), raw, np.random.default_rng(0))
    view = MultiView(n_global=1, n_local=4, global_scale=(1, 1), local_scale=(0.5, 0.5), **PLAIN)
    rng = np.random.default_rng(2)
    starts = []
    for _ in range(40):
        sides = [{row // 100 for row in rows(local)} for local in view(source, rng).locals_]
        assert all(len(side) == 1 for side in sides)
        sides = [side.pop() for side in sides]
        assert sides[0] != sides[1] and sides[2] != sides[3]  # the count starts again when all are covered
        starts.append((sides[0], sides[2]))
    assert len(set(starts)) == 4


def test_locals_may_leave_the_principal_view():
    source, rng = event(400), np.random.default_rng(3)
    view = MultiView(n_global=1, n_local=6, global_scale=(0.4, 0.4), local_scale=(0.3, 0.4), **PLAIN)
    outside = 0
    for _ in range(10):
        views = view(source, rng)
        outside += sum(bool(set(rows(v)) - set(rows(views.globals_[0]))) for v in views.locals_)
    assert outside > 10


def test_sizes_are_uniform_and_capped():
    source, rng = event(1000), np.random.default_rng(4)
    view = MultiView(n_global=2, n_local=2, max_points=500, **PLAIN)
    samples = [view(source, rng) for _ in range(400)]
    for group, low, high in (("globals_", 200, 500), ("locals_", 50, 200)):
        for k in range(2):
            sizes = np.array([len(getattr(s, group)[k]) for s in samples])
            assert low <= sizes.min() < low + 0.03 * (high - low) and high * 0.985 < sizes.max() <= high
            # uniform: mean (a+b)/2 and variance (b-a)²/12
            assert sizes.mean() == pytest.approx((low + high) / 2, abs=5 * (high - low) / math.sqrt(12 * 400))
            assert sizes.var() == pytest.approx((high - low) ** 2 / 12, rel=0.2)
    first, second = ([len(s.globals_[k]) for s in samples] for k in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_principal_centre_is_uniform():
    source = event(8)
    rng = np.random.default_rng(5)
    view = MultiView(
        n_global=1, n_local=0, global_scale=(0.13, 0.13), **PLAIN
    )  # one point: the centre itself
    counts = np.bincount([rows(view(source, rng).globals_[0])[0] for _ in range(1600)], minlength=8)
    assert np.all(np.abs(counts - 200) < 5 * math.sqrt(200 * 7 / 8))


def test_energy_is_jittered_once_and_only_in_globals():
    source = event(500)
    view = MultiView(
        global_scale=(0.9, 1.0), shared=[EnergyJitter(p=1.0)], global_augment=[], local_augment=[]
    )
    views = view(source, np.random.default_rng(6))
    first, second = ({r: y for r, y in zip(rows(v), v.feat[:, 0], strict=True)} for v in views.globals_)
    common = first.keys() & second.keys()
    assert len(common) > 300 and all(first[r] == second[r] for r in common)
    assert sum(first[r] != source.feat[r, 0] for r in first) > 0.9 * len(first)
    for local in views.locals_:
        np.testing.assert_array_equal(local.feat, source.feat[rows(local)])


def test_published_augmentation():
    """Centred, rotated, flipped, jittered: distances change no more than the jitter; origin stays."""
    source = event(300)
    views = MultiView()(source, np.random.default_rng(7))
    for view in (*views.globals_, *views.locals_):
        np.testing.assert_array_equal(view.origin, source.coord[rows(view)])
        original = source.coord[rows(view)].astype(np.float64)
        original -= (original.max(0) + original.min(0)) / 2
        np.testing.assert_allclose(
            np.linalg.norm(view.coord, axis=1), np.linalg.norm(original, axis=1), atol=2e-3
        )
        assert 0 < np.abs(np.linalg.norm(view.coord, axis=1) - np.linalg.norm(original, axis=1)).mean() < 5e-4
    assert not np.allclose(views.globals_[0].coord[:5], views.globals_[1].coord[:5])


def test_each_view_has_its_own_randomness_and_carries_no_labels():
    views = MultiView()(event(200), np.random.default_rng(8))
    everything = (*views.globals_, *views.locals_)
    assert len({v.seed for v in everything}) == 8 and all(0 <= v.seed < 2**63 for v in everything)
    assert all(v.motif is None and v.name == "made#0" for v in everything)


def test_local_augment_is_separate():
    view = MultiView(global_augment=[CenterShift()], local_augment=[RandomFlip(p=1.0)], shared=[])
    views = view(event(100), np.random.default_rng(9))
    for v in views.globals_:
        np.testing.assert_allclose(v.coord.max(0), -v.coord.min(0), atol=1e-6)
    for v in views.locals_:
        np.testing.assert_array_equal(v.coord, -v.origin)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_tiny_events(n):
    views = MultiView()(event(n), np.random.default_rng(10))
    assert all(len(v) == min(n, 1) or 1 <= len(v) <= n for v in (*views.globals_, *views.locals_))
    batch = collate_views([views, MultiView()(event(50), np.random.default_rng(0))], 0.001)
    assert batch.n_events == 2 and batch.globals_.n_events == 4 and batch.locals_.n_events == 12


def test_same_generator_same_views():
    one, two = (MultiView()(event(200), np.random.default_rng(11)) for _ in range(2))
    for a, b in zip((*one.globals_, *one.locals_), (*two.globals_, *two.locals_), strict=True):
        np.testing.assert_array_equal(a.coord, b.coord)
        np.testing.assert_array_equal(a.feat, b.feat)
        assert a.seed == b.seed


def test_batch_is_event_major_and_moves():
    sources = [event(100 + 10 * k, k) for k in range(3)]
    views = [MultiView(n_local=3)(s, np.random.default_rng(k)) for k, s in enumerate(sources)]
    batch = collate_views(views, 0.001)
    assert (batch.n_events, batch.n_global, batch.n_local) == (3, 2, 3)
    assert batch.names == ("made#0", "made#1", "made#2")
    assert batch.globals_.names == ("made#0", "made#0", "made#1", "made#1", "made#2", "made#2")
    flat = [v for s in views for v in s.locals_]
    for k, part in enumerate(batch.locals_.split()):
        np.testing.assert_array_equal(part.coord, flat[k].coord)
        np.testing.assert_array_equal(part.origin, flat[k].origin)
        assert int(part.seeds[0]) == flat[k].seed
    assert batch.globals_.columns == ("x", "y", "z", "log_energy") and not batch.globals_.labels
    moved = batch.to("meta")
    assert moved.locals_.coord.device.type == "meta" and moved.globals_.offsets.device.type == "meta"
    assert (moved.n_global, moved.n_local) == (2, 3)
    if torch.cuda.is_available():
        assert batch.pin_memory().globals_.coord.is_pinned()


def test_without_locals():
    view = MultiView(n_local=0)
    batch = collate_views([view(event(30, k), np.random.default_rng(k)) for k in range(2)], 0.001)
    assert batch.n_events == 2 and batch.locals_.n_events == 0 and len(batch.locals_) == 0


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="n_global = 0"):
        MultiView(n_global=0)
    with pytest.raises(ValueError, match=r"local_scale = \(0.5, 0.2\)"):
        MultiView(local_scale=(0.5, 0.2))
    with pytest.raises(ValueError, match="x#1: 'coord' or 'feat' is not set; apply the event transforms"):
        MultiView()(
            Event(np.zeros((1, 3), np.int32), np.ones(1, np.float32), name="x#1"), np.random.default_rng(0)
        )
