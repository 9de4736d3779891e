"""Strided, transposed and patch convolutions against torch's dense ones on the same voxels."""

import pytest
import torch
from torch.nn.functional import conv3d, conv_transpose3d, pad

from nufm.ops import kernel_map
from nufm.ops.kernel_map import KernelMap, strided_map, submanifold_map
from nufm.ops.sparse_conv import sparse_conv, submanifold_conv

SIZES = [  # kernel, stride
    (2, 2),
    (3, 2),
    (3, 3),
    (4, 2),
    (3, 1),
    ((4, 4, 2), (4, 4, 2)),
    ((12, 12, 10), (12, 12, 10)),
    ((3, 2, 5), (1, 2, 3)),
]


def leaf(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def edges(size):
    return (size,) * 3 if isinstance(size, int) else size


def padding(kernel, stride):
    """Cells before and behind a volume of 24 cells, such that the kernel at coarse cell 0 begins where ours does."""
    low = [(k - 1) // 2 if k > s else 0 for k, s in zip(kernel, stride, strict=True)]
    return [cells for lo, k in zip(reversed(low), reversed(kernel), strict=True) for cells in (lo, k)]


def volumes(grid, offsets, feat, size=24):
    """Dense volumes; points that share a cell add up."""
    event = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    volume = feat.new_zeros(len(offsets) - 1, size, size, size, feat.shape[1])
    return volume.index_put((event, *grid.unbind(1)), feat, accumulate=True).permute(0, 4, 1, 2, 3)


def read(dense, grid, offsets):
    event = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    x, y, z = grid.unbind(1)
    return dense[event, :, x, y, z]


@pytest.mark.parametrize(("kernel", "stride"), SIZES)
@pytest.mark.parametrize("channels", [(1, 5), (6, 4)])
@pytest.mark.parametrize("unique", [True, False])
def test_strided_convolution_against_dense(random_events, kernel, stride, channels, unique):
    grid, offsets = random_events([60, 0, 1, 37], extent=8, unique=unique)
    grid = grid * torch.tensor([2, 3, 1])
    down = strided_map(grid, offsets, kernel, stride)
    n_in, n_out = channels
    feat, weight, bias = leaf(len(grid), n_in), leaf(n_out, *edges(kernel), n_in, seed=1), leaf(n_out, seed=2)
    out = sparse_conv(feat, down.map, weight, bias)
    volume = pad(volumes(grid, offsets, feat), padding(edges(kernel), edges(stride)))
    dense = conv3d(volume, weight.permute(0, 4, 1, 2, 3), bias, stride=edges(stride))
    expected = read(dense, down.grid, down.offsets)
    torch.testing.assert_close(out, expected)
    cotangent = leaf(*out.shape, seed=3).detach()
    found = torch.autograd.grad(out, (feat, weight, bias), cotangent)
    wanted = torch.autograd.grad(expected, (feat, weight, bias), cotangent)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_coarse_cells_are_those_with_a_point(random_events):
    grid, offsets = random_events([60, 0, 37], extent=9)
    down = strided_map(grid, offsets, 3, 2)
    for b in range(3):
        cells = {tuple(c) for c in (grid[offsets[b] : offsets[b + 1]] // 2).tolist()}
        found = [tuple(c) for c in down.grid[down.offsets[b] : down.offsets[b + 1]].tolist()]
        assert found == sorted(cells)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2)])
def test_transposed_convolution_against_dense(random_events, kernel, stride):
    grid, offsets = random_events([60, 0, 1, 37], extent=8)
    down = strided_map(grid, offsets, kernel, stride)
    feat, weight = leaf(len(down.grid), 6), leaf(3, kernel, kernel, kernel, 6, seed=1)
    out = sparse_conv(feat, down.map.transposed, weight)
    dense = conv_transpose3d(
        volumes(down.grid, down.offsets, feat, size=8), weight.permute(4, 0, 1, 2, 3), stride=stride
    )
    low = (kernel - 1) // 2 if kernel > stride else 0
    expected = read(dense[..., low:, low:, low:], grid, offsets)
    torch.testing.assert_close(out, expected)
    cotangent = leaf(*out.shape, seed=3).detach()
    found = torch.autograd.grad(out, (feat, weight), cotangent)
    wanted = torch.autograd.grad(expected, (feat, weight), cotangent)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("channels", [(2, 3), (5, 3)])
def test_second_derivatives(random_events, channels):
    grid, offsets = random_events([9], extent=4)
    pairs = strided_map(grid, offsets, 2).map
    feat, weight = leaf(9, channels[0]), leaf(channels[1], 2, 2, 2, channels[0], seed=1)
    assert torch.autograd.gradgradcheck(lambda f, w: sparse_conv(f, pairs, w), (feat, weight))


@pytest.mark.parametrize("channels", [1, 6])
def test_many_small_groups_give_the_same(random_events, monkeypatch, channels):
    """A large event is computed in groups of taps."""
    grid, offsets = random_events([90, 30], extent=6)
    feat, weight = leaf(120, channels), leaf(4, 3, 3, 3, channels, seed=1)
    whole = submanifold_conv(feat, submanifold_map(grid, offsets), weight)
    monkeypatch.setattr(kernel_map, "PAIRS_PER_GROUP", 50)
    pairs = submanifold_map(grid, offsets)
    parts = submanifold_conv(feat, pairs, weight)
    assert len(pairs.groups) > 5
    torch.testing.assert_close(parts, whole)
    for a, b in zip(
        torch.autograd.grad(parts.square().sum(), (feat, weight)),
        torch.autograd.grad(whole.square().sum(), (feat, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("counts", [[0], [1], [1, 0, 1], []])
@pytest.mark.parametrize("stride", [2, 3])
def test_hardly_any_points(random_events, counts, stride):
    grid, offsets = random_events(counts, extent=3)
    down = strided_map(grid, offsets, 3, stride)
    assert len(down.grid) == len(grid) and torch.equal(down.offsets, offsets)
    feat, weight = torch.randn(len(grid), 4, requires_grad=True), torch.randn(6, 3, 3, 3, 4, requires_grad=True)
    out = sparse_conv(feat, down.map, weight)
    assert out.shape == (len(grid), 6)
    sparse_conv(out, down.map.transposed, weight.transpose(0, 4)).sum().backward()
    assert feat.grad.shape == feat.shape and weight.grad.shape == weight.shape


def test_memory_layout_of_the_weights_does_not_matter(random_events):
    grid, offsets = random_events([50], extent=5)
    pairs = submanifold_map(grid, offsets)
    feat, weight = leaf(50, 6), leaf(8, 3, 3, 3, 6, seed=1)
    plain = sparse_conv(feat, pairs, weight)
    for axes, back in (((1, 2, 3, 0, 4), (3, 0, 1, 2, 4)), ((4, 1, 2, 3, 0), (4, 1, 2, 3, 0))):
        moved = weight.permute(axes).contiguous().permute(back)
        torch.testing.assert_close(sparse_conv(feat, pairs, moved), plain)


def test_table(random_events):
    grid, offsets = random_events([40, 20], extent=5)
    pairs = submanifold_map(grid, offsets)
    table = pairs.table
    assert table.dtype == torch.int32 and torch.equal(table[:, 13], torch.arange(60, dtype=torch.int32))
    assert torch.equal(pairs.transposed.table, table.flip(1))
    doubled = torch.cat([grid[:40], grid[:40]])
    assert submanifold_map(doubled, torch.tensor([0, 80])).transposed.table is None
    assert strided_map(doubled, torch.tensor([0, 80]), 2).map.table is None


def test_once_is_computed_once_and_freed():
    pairs = KernelMap(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), (0,), 1, 1, 0)
    calls = []

    def make(pairs):
        calls.append(pairs.taps)
        return object()

    assert pairs.once(make) is pairs.once(make) and calls == [1]


def test_refusals(random_events):
    grid, offsets = random_events([10], extent=4)
    with pytest.raises(ValueError, match="leave points out"):
        strided_map(grid, offsets, 2, 3)
    with pytest.raises(ValueError, match="one or three"):
        strided_map(grid, offsets, (2, 2))
    with pytest.raises(ValueError, match="one or three"):
        strided_map(grid, offsets, 0)
    pairs = strided_map(grid, offsets, 2).map
    with pytest.raises(ValueError, match=r"\(10, 4\), found \(9, 4\)"):
        sparse_conv(torch.randn(9, 4), pairs, torch.randn(3, 2, 2, 2, 4))
    with pytest.raises(ValueError, match="'bias' must be"):
        sparse_conv(torch.randn(10, 4), pairs, torch.randn(3, 2, 2, 2, 4), torch.randn(4))


def test_kernel_axes_in_another_order_are_refused():
    """As many taps, but each would be read at another place."""
    pairs = strided_map(torch.tensor([[11, 0, 0]]), torch.tensor([0, 1]), (12, 12, 10)).map
    with pytest.raises(ValueError, match=r"kernel of \(12, 12, 10\)"):
        sparse_conv(torch.ones(1, 1), pairs, torch.zeros(1, 10, 12, 12, 1))
    with pytest.raises(ValueError, match=r"kernel of \(12, 12, 10\)"):
        sparse_conv(torch.ones(1, 1), pairs.transposed, torch.zeros(1, 1440, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype):
    """Products of two taps that overflow float16, and cancel."""
    grid, offsets = torch.tensor([[0, 0, 0], [0, 0, 1]]), torch.tensor([0, 2])
    feat, weight = torch.full((2, 8), 200.0, dtype=dtype), torch.zeros(1, 3, 3, 3, 8, dtype=dtype)
    weight[0, 1, 1, 1], weight[0, 1, 1, 0], weight[0, 1, 1, 2] = 100, -100, -100
    out = submanifold_conv(feat, submanifold_map(grid, offsets), weight)
    assert out.dtype == dtype and torch.equal(out, torch.zeros_like(out))
