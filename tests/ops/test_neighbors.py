"""Neighbour maps against a dictionary of cells, nearest points against all distances."""

import itertools

import pytest
import torch

from nufm.ops.neighbors import nearest, neighbor_map


def loop_neighbors(grid, offsets, kernel_size):
    """The definition, point by point."""
    radius = kernel_size // 2
    steps = list(itertools.product(range(-radius, radius + 1), repeat=3))
    table = []
    for lo, hi in itertools.pairwise(offsets.tolist()):
        cells = {}
        for i in range(lo, hi):
            cells.setdefault(tuple(grid[i].tolist()), i)
        for i in range(lo, hi):
            cell = grid[i].tolist()
            row = [cells.get(tuple(c + d for c, d in zip(cell, step, strict=True)), -1) for step in steps]
            row[len(steps) // 2] = i
            table.append(row)
    return torch.tensor(table).reshape(-1, kernel_size**3)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("counts", [[40], [60, 0, 1, 30], [0, 0], []])
def test_neighbor_map_against_dictionary(random_events, kernel_size, unique, counts):
    grid, offsets = random_events(counts, extent=5, unique=unique)
    found = neighbor_map(grid, offsets, kernel_size)
    assert torch.equal(found, loop_neighbors(grid, offsets, kernel_size))
    assert found.dtype == torch.int64


def test_neighbors_of_a_far_lattice_do_not_overflow():
    """Cells near 2^20 give keys of about 2^62, beyond 32 bits by far."""
    grid = torch.tensor([[0, 0, 0], [2**20 - 2] * 3, [2**20 - 2, 2**20 - 2, 2**20 - 3]])
    found = neighbor_map(grid, torch.tensor([0, 3]))
    assert found[1, 12] == 2 and found[2, 14] == 1
    assert (found >= 0).sum() == 5


def test_neighbor_map_refusals():
    grid, offsets = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="odd"):
        neighbor_map(grid, offsets, 2)
    with pytest.raises(ValueError, match="64-bit key"):
        neighbor_map(grid + 2**21, offsets)
    with pytest.raises(ValueError, match=">= 0"):
        neighbor_map(grid - 1, offsets)
    with pytest.raises(ValueError, match=r"torch\.float32"):
        neighbor_map(grid.float(), offsets)


def brute_nearest(query, query_offsets, key, key_offsets, max_distance):
    result = torch.full((len(query),), -1)
    for b in range(len(query_offsets) - 1):
        q, k = slice(query_offsets[b], query_offsets[b + 1]), slice(key_offsets[b], key_offsets[b + 1])
        if len(query[q]) and len(key[k]):
            best, row = torch.cdist(
                query[q].double(), key[k].double(), compute_mode="donot_use_mm_for_euclid_dist"
            ).min(1)
            result[q] = torch.where(best < max_distance, row + key_offsets[b], -1)
    return result


@pytest.mark.parametrize("max_distance", [0.1, 0.3, 3.0, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_against_all_distances(max_distance, dtype):
    generator = torch.Generator().manual_seed(3)
    query_offsets = torch.tensor([0, 200, 200, 230, 231, 400])
    key_offsets = torch.tensor([0, 150, 151, 151, 190, 400])
    query = torch.randn(400, 3, generator=generator, dtype=dtype)
    key = torch.randn(400, 3, generator=generator, dtype=dtype)
    expected = brute_nearest(query, query_offsets, key, key_offsets, max_distance)
    assert (expected >= 0).any() and (expected < 0).any()
    assert torch.equal(nearest(query, query_offsets, key, key_offsets, max_distance), expected)


def test_nearest_in_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    query, key = torch.rand(100, 3, generator=generator), torch.rand(120, 3, generator=generator)
    offsets_q, offsets_k = torch.tensor([0, 60, 100]), torch.tensor([0, 70, 120])
    whole = nearest(query, offsets_q, key, offsets_k, 0.3)
    monkeypatch.setattr("nufm.ops.cells.PAIRS_PER_CHUNK", 37)
    assert torch.equal(nearest(query, offsets_q, key, offsets_k, 0.3), whole)


def test_nearest_ties_and_limit():
    one = torch.tensor([0, 1])
    key = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [1.0, 0, 0]])
    query = torch.zeros(1, 3)
    assert nearest(query, one, key, torch.tensor([0, 3]), 2.0).tolist() == [0]
    assert nearest(query, one, key, torch.tensor([0, 3]), 1.0).tolist() == [-1]  # strictly closer
    assert nearest(query, one, query, one, 1e-6).tolist() == [0]  # extent zero


def test_nearest_without_points():
    none, some = torch.zeros(0, 3), torch.zeros(2, 3)
    assert nearest(none, torch.tensor([0, 0]), some, torch.tensor([0, 2]), 1.0).shape == (0,)
    assert nearest(some, torch.tensor([0, 2]), none, torch.tensor([0, 0]), 1.0).tolist() == [-1, -1]
    assert nearest(none, torch.tensor([0]), none, torch.tensor([0]), 1.0).shape == (0,)
    with pytest.raises(ValueError, match="1 events, keys have 2"):
        nearest(some, torch.tensor([0, 2]), some, torch.tensor([0, 1, 2]), 1.0)
