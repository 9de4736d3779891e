"""Nearest points, balls, farthest points and C-NMS against loops, all distances and SciPy's k-d tree."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from nufm.ops import cells, points, sampling
from nufm.ops.points import ball_lists, ball_query, k_nearest
from nufm.ops.sampling import centrality_nms, farthest_points

COUNTS = [(1,), (), (0, 0), (40, 0, 1, 7, 90), (1, 1, 2), (300,), (5, 0, 120, 0, 0, 33)]
KINDS = ["gauss", "lattice", "duplicates", "outliers", "line", "place"]
DTYPES = [torch.float32, torch.float64]


def cloud(kind, counts, seed=0, dtype=torch.float32):
    """Coordinates (N, 3) and offsets of events with ``counts`` points of one kind."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(counts)
    if kind == "gauss":
        coord = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    elif kind == "lattice":  # many equal distances
        coord = torch.randint(0, 7, (n, 3), generator=generator).double() + 700
    elif kind == "duplicates":
        coord = torch.randint(0, 2, (n, 3), generator=generator).double()
    elif kind == "outliers":
        coord = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        coord[torch.rand(n, generator=generator) < 0.05] *= 1e4
    elif kind == "line":  # along one axis, in random order
        coord = torch.zeros(n, 3, dtype=torch.float64)
        coord[:, 1] = torch.randperm(n, generator=generator)
    else:  # all in one place
        coord = torch.full((n, 3), 3.5, dtype=torch.float64)
    return coord.to(dtype), torch.tensor([0, *itertools.accumulate(counts)])


def square_distances(query, key):
    return (query.double()[:, None] - key.double()).square().sum(2)


def spans(*offsets):
    return zip(*(map(lambda pair: slice(*pair), itertools.pairwise(o.tolist())) for o in offsets), strict=True)


def all_nearest(query, query_offsets, key, key_offsets, k):
    """All distances, sorted by (distance, row)."""
    index, distance = torch.full((len(query), k), -1), query.new_full((len(query), k), math.inf)
    for q, s in spans(query_offsets, key_offsets):
        squares, rows = square_distances(query[q], key[s]).sort(dim=1, stable=True)
        n = min(k, rows.shape[1])
        index[q, :n], distance[q, :n] = rows[:, :n] + s.start, squares[:, :n].sqrt().to(query.dtype)
    return index, distance


def all_in_ball(query, query_offsets, key, key_offsets, radius):
    """List of lists of rows."""
    lists = []
    for q, s in spans(query_offsets, key_offsets):
        near = square_distances(query[q], key[s]) < radius * radius
        lists += [(row.nonzero()[:, 0] + s.start).tolist() for row in near]
    return lists


def sequential_farthest(coord, n, start=0):
    """The definition, sample by sample."""
    taken = []
    nearest = torch.full((len(coord),), math.inf, dtype=torch.float64)
    for _ in range(min(n, len(coord))):
        taken.append(start)
        nearest = torch.minimum(nearest, square_distances(coord[start : start + 1], coord)[0])
        best = [(-float(nearest[i]), i) for i in range(len(coord)) if i not in taken]
        start = min(best)[1] if best else -1
    return taken


def sequential_nms(coord, reach, cap=None):
    """The greedy definition, point by point, on lists of neighbours cut at ``cap``."""
    lists = [row.nonzero()[:cap, 0].tolist() for row in square_distances(coord, coord) < reach * reach]
    is_open, centres = [True] * len(coord), []
    for i in sorted(range(len(coord)), key=lambda i: (-len(lists[i]), i)):
        if is_open[i]:
            centres.append(i)
            for j in lists[i]:
                is_open[j] = False
    return centres


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_k_nearest_against_all_distances(kind, dtype):
    for seed, counts in enumerate(COUNTS):
        key, key_offsets = cloud(kind, counts, seed, dtype)
        query, query_offsets = cloud(kind, counts[::-1], seed + 100, dtype)
        for k in (1, 3, 16, 60):
            for q, qo in ((key, key_offsets), (query, query_offsets)):
                index, distance = k_nearest(q, qo, key, key_offsets, k)
                expected_index, expected_distance = all_nearest(q, qo, key, key_offsets, k)
                assert torch.equal(index, expected_index)
                assert torch.equal(distance, expected_distance)
                assert index.dtype == torch.int64 and distance.dtype == dtype


def test_k_nearest_of_a_large_event_against_a_tree():
    """A cloud, a track, and far outliers, in one event; queries elsewhere too."""
    rng = np.random.default_rng(0)
    track = np.linspace(0, 500, 2000)[:, None] * [0.6, 0.8, 0.0] + rng.normal(scale=0.3, size=(2000, 3))
    far = rng.normal(size=(20, 3)) * 1e4
    key = np.concatenate([rng.normal(size=(2000, 3)) * 5, track, far])
    query = np.concatenate([key, rng.uniform(-600, 600, size=(1000, 3))])
    expected, rows = cKDTree(key).query(query, k=9)
    index, distance = k_nearest(
        torch.tensor(query), torch.tensor([0, len(query)]), torch.tensor(key), torch.tensor([0, len(key)]), 9
    )
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(index.numpy(), rows)  # no ties among random numbers


@pytest.mark.parametrize("kind", ["gauss", "outliers", "place"])
def test_searches_in_small_chunks(kind, monkeypatch):
    """So small that all loops over blocks, chunks and samples turn several times."""
    for module, name, value in (
        (cells, "PAIRS_PER_CHUNK", 512),
        (cells, "QUERIES_PER_BLOCK", 50),
        (points, "SAMPLE", 2),
    ):
        monkeypatch.setattr(module, name, value)
    key, offsets = cloud(kind, (90, 0, 130), 1)
    for k in (2, 30):
        index, distance = k_nearest(key, offsets, key, offsets, k)
        expected_index, expected_distance = all_nearest(key, offsets, key, offsets, k)
        assert torch.equal(index, expected_index) and torch.equal(distance, expected_distance)
    index, starts = ball_lists(key, offsets, key, offsets, 1.0)
    lists = [index[a:b].tolist() for a, b in itertools.pairwise(starts.tolist())]
    assert lists == all_in_ball(key, offsets, key, offsets, 1.0)


@pytest.mark.parametrize("case", ["outliers at 1e4", "a cloud 1000 times denser"])
def test_nearest_looks_at_few_candidates(case, monkeypatch):
    """Neither far points nor uneven density make the search look at everything (6 * 10^7 pairs here)."""
    generator = torch.Generator().manual_seed(1)
    coord = torch.randn(20000, 3, generator=generator, dtype=torch.float64)
    if case == "outliers at 1e4":
        coord[torch.randperm(20000, generator=generator)[:30]] *= 1e4
    else:
        coord[:10000] *= 1e-3
    looked_at = 0
    pairs = cells.Cells.pairs

    def counting(self, query, start, count, limit):
        nonlocal looked_at
        looked_at += int(count.sum())
        return pairs(self, query, start, count, limit)

    monkeypatch.setattr(cells.Cells, "pairs", counting)
    query = coord[::7]
    k_nearest(query, torch.tensor([0, len(query)]), coord, torch.tensor([0, 20000]), 8)
    assert looked_at < len(query) * len(coord) / 10


def test_thousands_of_points_in_one_place():
    """Would take minutes if each looked at all the others."""
    coord = torch.full((50000, 3), 0.1)
    coord[::100, 2] = 0.2
    index, distance = k_nearest(coord, torch.tensor([0, 50000]), coord, torch.tensor([0, 50000]), 3)
    assert bool((distance == 0).all())
    expected = torch.tensor([1, 2, 3]).repeat(50000, 1)
    expected[::100] = torch.tensor([0, 100, 200])
    assert torch.equal(index, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [0.0, 1.0, 2.5, math.inf])
def test_balls_against_all_distances(kind, radius):
    for seed, counts in enumerate(COUNTS):
        key, key_offsets = cloud(kind, counts, seed)
        query, query_offsets = cloud(kind, counts[::-1], seed + 100)
        for q, qo in ((key, key_offsets), (query, query_offsets)):
            expected = all_in_ball(q, qo, key, key_offsets, radius)
            index, starts = ball_lists(q, qo, key, key_offsets, radius)
            assert [index[a:b].tolist() for a, b in itertools.pairwise(starts.tolist())] == expected
            for cap in (1, 4, 200):
                index, count = ball_query(q, qo, key, key_offsets, radius, cap)
                assert index.shape == (len(q), cap) and index.dtype == count.dtype == torch.int64
                assert count.tolist() == [len(rows) for rows in expected]
                assert index.tolist() == [(rows + [-1] * cap)[:cap] for rows in expected]


def test_ball_is_open_and_takes_the_first_rows():
    key = torch.tensor([[3.0, 4, 0], [0, 0, 2], [0, 0, 1], [0, 0, 0]])
    one = torch.tensor([0, 1])
    index, count = ball_query(key[3:], one, key, torch.tensor([0, 4]), 5.0, 2)
    assert index.tolist() == [[1, 2]] and count.tolist() == [3]  # 5 is not inside; rows 1 and 2, not the nearest


@pytest.mark.parametrize("block", [4, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_farthest_points_against_the_loop(kind, block, monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK", block)
    for seed, counts in enumerate(COUNTS):
        coord, offsets = cloud(kind, counts, seed, DTYPES[seed % 2])
        generator = torch.Generator().manual_seed(seed)
        first = [int(torch.randint(0, max(n, 1), (1,), generator=generator)) for n in counts]
        per_event = torch.randint(0, 40, (len(counts),), generator=generator)
        start = offsets[:-1] + torch.tensor(first, dtype=torch.int64)
        for arguments, n_samples, starts in (
            ({"count": 12}, [12] * len(counts), [0] * len(counts)),
            ({"count": per_event, "start": start}, per_event.tolist(), first),
            ({"ratio": 0.3}, [math.ceil(0.3 * n) for n in counts], [0] * len(counts)),
        ):
            rows, row_offsets = farthest_points(coord, offsets, **arguments)
            assert row_offsets.tolist() == [0, *itertools.accumulate(map(min, n_samples, counts))]
            for event, (s, r) in enumerate(spans(offsets, row_offsets)):
                expected = sequential_farthest(coord[s], n_samples[event], starts[event])
                assert (rows[r] - s.start).tolist() == expected


def test_farthest_points_of_all_are_a_permutation():
    coord, offsets = cloud("duplicates", (70, 0, 30))
    rows, row_offsets = farthest_points(coord, offsets, ratio=1.0)
    assert torch.equal(row_offsets, offsets) and torch.equal(rows.sort().values, torch.arange(100))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cap", [None, 1, 5, 1000])
def test_centrality_nms_against_the_greedy_loop(kind, cap):
    for seed, counts in enumerate(COUNTS):
        coord, offsets = cloud(kind, counts, seed, DTYPES[seed % 2])
        for radius, overlap in ((0.5, 0.72), (1.0, 0.5), (1.0, 1.0), (5.0, 0.72)):
            rows, row_offsets = centrality_nms(coord, offsets, radius, overlap, cap)
            assert len(row_offsets) == len(offsets) and row_offsets[-1] == len(rows)
            for s, r in spans(offsets, row_offsets):
                assert (rows[r] - s.start).tolist() == sequential_nms(coord[s], 2 * radius * overlap, cap)


def test_centres_are_apart_and_cover_all():
    coord, offsets = cloud("gauss", (2000,), seed=5)
    rows, _ = centrality_nms(coord, offsets, 0.2, 0.72)
    apart = square_distances(coord[rows], coord[rows]).fill_diagonal_(math.inf)
    assert 10 < len(rows) < 1500 and apart.min() >= 0.288**2
    assert square_distances(coord, coord[rows]).amin(1).max() < 0.288**2


def test_overlap_of_one_gives_disjoint_balls():
    coord, offsets = cloud("lattice", (300, 200))
    rows, row_offsets = centrality_nms(coord, offsets, 1.5, 1.0)
    _, count = ball_query(coord, offsets, coord[rows], row_offsets, 1.5, 4)
    assert count.max() == 1


@pytest.mark.parametrize("kind", ["gauss", "outliers"])
def test_order_of_points_and_batch_mates_do_not_matter(kind):
    """Without ties: the same points in another order, next to other events."""
    coord, one = cloud(kind, (200,), seed=7)
    other, _ = cloud("gauss", (50,), seed=8)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    batch, offsets = torch.cat([other * 1e3, coord[order], other]), torch.tensor([0, 50, 250, 300])

    def same(row):  # row of the batch -> row of the event alone; -1 stays
        return torch.where(row >= 0, order[(row - 50).clamp(0, 199)], -1)

    index, distance = k_nearest(coord, one, coord, one, 6)
    index_b, distance_b = k_nearest(batch, offsets, batch, offsets, 6)
    assert torch.equal(same(index_b[50:250]), index[order]) and torch.equal(distance_b[50:250], distance[order])

    starts = ball_lists(coord, one, coord, one, 0.7)[1]
    starts_b = ball_lists(batch, offsets, batch, offsets, 0.7)[1]
    assert torch.equal(starts_b.diff()[50:250], starts.diff()[order])

    first = torch.tensor([0, 50 + int((order == 3).nonzero()), 250])
    rows, _ = farthest_points(coord, one, count=30, start=torch.tensor([3]))
    rows_b, offsets_b = farthest_points(batch, offsets, count=30, start=first)
    assert torch.equal(same(rows_b[offsets_b[1] : offsets_b[2]]), rows)

    # Scores of C-NMS tie, so that only batch mates may change, not the order of points.
    batch = torch.cat([other * 1e3, coord, other])
    rows, _ = centrality_nms(coord, one, 0.5, 0.72)
    rows_b, offsets_b = centrality_nms(batch, offsets, 0.5, 0.72)
    assert torch.equal(rows_b[offsets_b[1] : offsets_b[2]] - 50, rows)


def test_equal_distances_on_a_lattice_tie_exactly():
    """The 30 cells at distance 3 of a lattice cell, in float32 far from the origin: the lowest rows win."""
    axis = torch.arange(760, 767)
    grid = torch.cartesian_prod(axis, axis, axis)
    grid = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(2))].float()
    centre, offsets = torch.full((1, 3), 763.0), torch.tensor([0, len(grid)])
    at_three = ((grid - centre).square().sum(1) == 9).nonzero()[:, 0]
    nearer = int(((grid - centre).square().sum(1) < 9).sum())
    index, distance = k_nearest(centre, torch.tensor([0, 1]), grid, offsets, nearer + 10)
    assert len(at_three) == 30
    assert torch.equal(index[0, nearer:], at_three[:10]) and bool((distance[0, nearer:] == 3).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_and_cpu_agree(kind):
    coord, offsets = cloud(kind, (400, 0, 1, 90))
    for call in (
        lambda x, o: k_nearest(x, o, x, o, 8),
        lambda x, o: ball_query(x, o, x, o, 1.0, 4),
        lambda x, o: ball_lists(x, o, x, o, 1.0),
        lambda x, o: farthest_points(x, o, count=20),
        lambda x, o: centrality_nms(x, o, 0.7, 0.72),
    ):
        for expected, found in zip(call(coord, offsets), call(coord.cuda(), offsets.cuda()), strict=True):
            assert torch.equal(found.cpu(), expected)


def test_no_gradient_flows():
    coord, offsets = cloud("gauss", (20,))
    coord.requires_grad_()
    assert not k_nearest(coord, offsets, coord, offsets, 2)[1].requires_grad
    assert len(farthest_points(coord, offsets, count=3)[0]) == 3
    assert len(centrality_nms(coord, offsets, 0.5, 0.72)[0]) > 0


def test_refusals():
    coord, offsets = cloud("gauss", (5, 4))
    bad = coord.clone()
    bad[6, 1] = math.nan
    for call in (
        lambda x: k_nearest(x, offsets, coord, offsets, 2),
        lambda x: k_nearest(coord, offsets, x, offsets, 2),
        lambda x: ball_query(coord, offsets, x, offsets, 1.0, 2),
        lambda x: farthest_points(x, offsets, count=2),
        lambda x: centrality_nms(x, offsets, 1.0, 0.5),
    ):
        with pytest.raises(ValueError, match="row 6"):
            call(bad)
        with pytest.raises(ValueError, match=r"torch\.int64|alike"):
            call(coord.long())
        with pytest.raises(ValueError, match="three columns"):
            call(coord[:, :2])
        with pytest.raises(ValueError, match="9, but there are 8"):
            call(coord[:8])
    with pytest.raises(ValueError, match="2 events, keys have 1"):
        k_nearest(coord, offsets, coord, torch.tensor([0, 9]), 2)
    with pytest.raises(ValueError, match="alike"):
        k_nearest(coord, offsets, coord.double(), offsets, 2)
    with pytest.raises(ValueError, match="k must be >= 1"):
        k_nearest(coord, offsets, coord, offsets, 0)
    with pytest.raises(ValueError, match="radius"):
        ball_query(coord, offsets, coord, offsets, -1.0, 2)
    with pytest.raises(ValueError, match="radius"):
        ball_lists(coord, offsets, coord, offsets, math.nan)
    with pytest.raises(ValueError, match="cap"):
        ball_query(coord, offsets, coord, offsets, 1.0, 0)
    with pytest.raises(ValueError, match="either"):
        farthest_points(coord, offsets)
    with pytest.raises(ValueError, match="either"):
        farthest_points(coord, offsets, count=2, ratio=0.5)
    with pytest.raises(ValueError, match="ratio"):
        farthest_points(coord, offsets, ratio=1.5)
    with pytest.raises(ValueError, match="count"):
        farthest_points(coord, offsets, count=-1)
    with pytest.raises(ValueError, match="count"):
        farthest_points(coord, offsets, count=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="inside of their events"):
        farthest_points(coord, offsets, count=2, start=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="positive"):
        centrality_nms(coord, offsets, 0.0, 0.72)
    with pytest.raises(ValueError, match="cap"):
        centrality_nms(coord, offsets, 1.0, 0.72, cap=0)
