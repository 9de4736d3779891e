"""Neighbour kernels against the torch reference: the same pairs in the same order."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from nufm.ops.backends.triton.neighbors import BLOCK
from nufm.ops.dispatch import use_backend, used
from nufm.ops.neighbors import neighbor_map, neighbor_pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_same(grid, offsets, kernel_size):
    grid, offsets = grid.to(DEVICE), offsets.to(DEVICE)
    with use_backend("torch"):
        source, target, counts = neighbor_pairs(grid, offsets, kernel_size)
    with use_backend("triton"):
        found = neighbor_pairs(grid, offsets, kernel_size)
    assert torch.equal(found[0], source) and torch.equal(found[1], target)
    assert found[2] == counts
    return len(source)


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("counts", [[60], [30, 0, 1, 20], [0, 0], []])
def test_equals_the_reference(random_events, counts, unique):
    grid, offsets = random_events(counts, extent=5, unique=unique)
    pairs = assert_same(grid, offsets, 3)
    assert (pairs > 0) == (sum(counts) > 0)
    if sum(counts):
        assert "triton" in used()["neighbor_pairs"]


@pytest.mark.parametrize("kernel_size", [1, 5])
def test_other_kernels(random_events, kernel_size):
    assert_same(*random_events([20, 11], extent=4, unique=False), kernel_size)


def test_more_than_one_block_of_points(random_events):
    grid, offsets = random_events([BLOCK + 3], extent=7)
    assert assert_same(grid, offsets, 3) > BLOCK


def test_points_without_neighbors():
    grid = torch.tensor([[0, 0, 0], [9, 9, 9], [0, 9, 0]])
    assert assert_same(grid, torch.tensor([0, 3]), 3) == 0
    assert assert_same(grid[:1], torch.tensor([0, 1]), 3) == 0


def test_all_points_in_one_cell():
    grid = torch.tensor([[2, 2, 2]]).repeat(6, 1)
    assert assert_same(grid, torch.tensor([0, 6]), 3) == 0
    assert assert_same(torch.cat([grid, grid[:2] + 1]), torch.tensor([0, 8]), 3) == 8


def test_keys_beyond_32_bits():
    """Cells near 2^20 give keys of about 2^62."""
    grid = torch.tensor([[0, 0, 0], [2**20 - 2] * 3, [2**20 - 2, 2**20 - 2, 2**20 - 3]])
    offsets = torch.tensor([0, 3])
    assert assert_same(grid, offsets, 3) == 2
    with use_backend("triton"):
        found = neighbor_map(grid.to(DEVICE), offsets.to(DEVICE))
    assert found[1, 12] == 2 and found[2, 14] == 1 and (found >= 0).sum() == 5
