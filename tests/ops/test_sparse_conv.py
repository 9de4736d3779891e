"""Submanifold convolution against torch's dense conv3d on the same voxels."""

import gc
import weakref

import pytest
import torch
from torch.nn.functional import conv3d

from nufm.ops.kernel_map import kernel_map, submanifold_map
from nufm.ops.neighbors import neighbor_map
from nufm.ops.sparse_conv import submanifold_conv


def dense_conv(grid, offsets, feat, weight, bias):
    """Each event in a dense zero-padded volume; only its occupied cells are read back."""
    size, kernel = int(grid.max()) + 1, weight.shape[1]
    out = []
    for b in range(len(offsets) - 1):
        rows = slice(offsets[b], offsets[b + 1])
        x, y, z = grid[rows].unbind(1)
        volume = feat.new_zeros(feat.shape[1], size, size, size)
        volume[:, x, y, z] = feat[rows].t()
        dense = conv3d(volume[None], weight.permute(0, 4, 1, 2, 3), bias, padding=kernel // 2)[0]
        out.append(dense[:, x, y, z].t())
    return torch.cat(out)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("counts", [[80], [100, 0, 1, 37]])
def test_against_dense_convolution(random_events, kernel_size, counts):
    grid, offsets = random_events(counts, extent=6)
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    feat, bias = leaf(len(grid), 5), leaf(7)
    weight = leaf(7, kernel_size, kernel_size, kernel_size, 5)
    out = submanifold_conv(feat, neighbor_map(grid, offsets, kernel_size), weight, bias)
    expected = dense_conv(grid, offsets, feat, weight, bias)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(out, (feat, weight, bias), cotangent)
    wanted = torch.autograd.grad(expected, (feat, weight, bias), cotangent)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_kernel_axes_follow_the_grid_columns():
    """Two points, one step along x: kernel index 2 looks at the +1 neighbour, index 0 at the -1 neighbour."""
    grid, offsets = torch.tensor([[0, 0, 0], [1, 0, 0]]), torch.tensor([0, 2])
    feat = torch.tensor([[10.0], [100.0]])
    for axes, expected in (((2, 1, 1), [100.0, 0.0]), ((0, 1, 1), [0.0, 10.0]), ((1, 1, 2), [0.0, 0.0])):
        weight = torch.zeros(1, 3, 3, 3, 1)
        weight[(0, *axes)] = 1
        assert submanifold_conv(feat, neighbor_map(grid, offsets), weight).flatten().tolist() == expected


@pytest.mark.parametrize("unique", [True, False])
def test_gradients_of_first_and_second_order(random_events, unique):
    grid, offsets = random_events([9, 0, 5], extent=2 if unique else 3, unique=False)
    if unique:
        grid, offsets = random_events([7, 0, 5], extent=2)
    neighbors = neighbor_map(grid, offsets)
    feat = torch.randn(len(grid), 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    for inputs in ((feat, weight, bias), (feat, weight.detach(), bias), (feat.detach(), weight, bias)):
        assert torch.autograd.gradcheck(lambda f, w, b: submanifold_conv(f, neighbors, w, b), inputs)
    assert torch.autograd.gradgradcheck(lambda f, w: submanifold_conv(f, neighbors, w), (feat, weight))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_duplicates_follow_the_rule(random_events, kernel_size):
    """Against the sum over the table, which states the rule: own row at the centre, lowest row elsewhere."""
    grid, offsets = random_events([50, 30], extent=3, unique=False)
    neighbors = neighbor_map(grid, offsets, kernel_size)
    feat = torch.randn(80, 4, dtype=torch.float64)
    weight = torch.randn(6, kernel_size, kernel_size, kernel_size, 4, dtype=torch.float64)
    rows = torch.cat([feat, feat.new_zeros(1, 4)])[neighbors]  # index -1 is the row of zeros
    expected = torch.einsum("nkc,okc->no", rows, weight.flatten(1, 3))
    torch.testing.assert_close(submanifold_conv(feat, neighbors, weight), expected)
    torch.testing.assert_close(
        submanifold_conv(feat, submanifold_map(grid, offsets, kernel_size), weight), expected
    )


@pytest.mark.parametrize("counts", [[0], [1], [1, 0, 1], []])
def test_hardly_any_points(random_events, counts):
    grid, offsets = random_events(counts, extent=3)
    feat = torch.randn(len(grid), 4, requires_grad=True)
    weight, bias = torch.randn(6, 3, 3, 3, 4, requires_grad=True), torch.randn(6)
    out = submanifold_conv(feat, submanifold_map(grid, offsets), weight, bias)
    torch.testing.assert_close(out, feat @ weight[:, 1, 1, 1].t() + bias)
    out.sum().backward()
    assert feat.grad.shape == feat.shape and weight.grad.shape == weight.shape


def test_autocast_does_not_change_the_convolution(random_events):
    grid, offsets = random_events([40], extent=4)
    feat, weight = torch.randn(40, 4), torch.randn(6, 3, 3, 3, 4, requires_grad=True)
    plain = submanifold_conv(feat, neighbor_map(grid, offsets), weight)
    (wanted,) = torch.autograd.grad(plain.sum(), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = submanifold_conv(feat, neighbor_map(grid, offsets), weight)
        (found,) = torch.autograd.grad(out.sum(), weight)
    assert torch.equal(out, plain) and torch.equal(found, wanted)


def test_pair_lists_are_freed_with_the_batch(random_events):
    """Without waiting for the garbage collector: they are as large as the activations."""
    grid, offsets = random_events([40], extent=4)
    pairs = submanifold_map(grid, offsets)
    lists = weakref.ref(pairs.source)
    feat = torch.randn(40, 4, requires_grad=True)
    gc.disable()
    try:
        submanifold_conv(feat, pairs, torch.randn(6, 3, 3, 3, 4, requires_grad=True)).sum().backward()
        del pairs
        assert lists() is None
    finally:
        gc.enable()


def test_refusals(random_events):
    grid, offsets = random_events([10], extent=4)
    neighbors, feat, weight = neighbor_map(grid, offsets), torch.randn(10, 4), torch.randn(6, 3, 3, 3, 4)
    with pytest.raises(ValueError, match=r"\(10, 4\), found \(10, 3\)"):
        submanifold_conv(feat[:, :3], neighbors, weight)
    with pytest.raises(ValueError, match="27 taps"):
        submanifold_conv(feat, neighbors, torch.randn(6, 5, 5, 5, 4))
    with pytest.raises(ValueError, match=r"torch\.float64"):
        submanifold_conv(feat.double(), neighbors, weight)
    with pytest.raises(ValueError, match="odd K"):
        kernel_map(neighbors[:, :8])
    with pytest.raises(ValueError, match="centre tap"):
        kernel_map(neighbors.flip(0))
