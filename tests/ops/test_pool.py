"""Pooling and reductions against dictionaries and loops in plain Python."""

import itertools

import pytest
import torch

from nufm.ops.pool import Segments, pool_cells, segment_reduce, take


@pytest.mark.parametrize("counts", [[60], [50, 0, 1, 20], [0, 0], []])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pool_cells_against_dictionary(random_events, counts, stride):
    grid, offsets = random_events(counts, extent=7, unique=False)
    pooling = pool_cells(grid, offsets, stride)
    members = {}
    for b, (lo, hi) in enumerate(itertools.pairwise(offsets.tolist())):
        for i in range(lo, hi):
            members.setdefault((b, *(c // stride for c in grid[i].tolist())), []).append(i)
    cells = sorted(members)
    assert pooling.grid.tolist() == [list(cell[1:]) for cell in cells]
    assert pooling.offsets.diff().tolist() == [sum(c[0] == b for c in cells) for b in range(len(counts))]
    inverse = {i: m for m, cell in enumerate(cells) for i in members[cell]}
    assert pooling.inverse.tolist() == [inverse[i] for i in range(len(grid))]
    # The lists that came from the sort of the cells are those that the index alone would give.
    alone = Segments(pooling.inverse, len(cells))
    for name in ("order", "counts", "starts"):
        assert torch.equal(getattr(pooling.segments, name), getattr(alone, name))
    assert pooling.segments.counts.tolist() == [len(members[cell]) for cell in cells]


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_segment_reduce_against_loop(reduce):
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 9, (40,), generator=generator)
    index[index == 4] = 5  # one group without rows
    x = torch.randn(40, 3, generator=generator) - 2  # negative maxima, unlike the 0 of an empty group
    expected = torch.zeros(9, 3)
    for g in range(9):
        rows = x[index == g]
        if len(rows):
            expected[g] = {"sum": rows.sum(0), "mean": rows.mean(0), "max": rows.amax(0)}[reduce]
    torch.testing.assert_close(segment_reduce(x, index, 9, reduce), expected)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_segment_reduce_gradients(reduce):
    index = torch.tensor([3, 0, 3, 1, 1, 3])
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: segment_reduce(x, index, 5, reduce), x)
    assert torch.autograd.gradgradcheck(lambda x: segment_reduce(x, index, 5, reduce), x)


def test_equal_maxima_share_the_gradient():
    x = torch.tensor([[1.0], [1.0], [0.0]], requires_grad=True)
    segment_reduce(x, torch.tensor([0, 0, 0]), 1, "max").backward()
    assert x.grad.flatten().tolist() == [0.5, 0.5, 0.0]


def test_means_of_16_bit_numbers_do_not_overflow():
    """The sum of these float16 numbers does, and a group of 3,000 rows is not a number of bfloat16."""
    index = torch.zeros(3000, dtype=torch.int64)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.full((3000, 1), 512.0, dtype=dtype, requires_grad=True)
        out = segment_reduce(x, index, 1, "mean")
        out.backward(torch.full_like(out, 3000.0))
        assert out.item() == 512
        torch.testing.assert_close(x.grad, torch.ones_like(x), rtol=4e-3, atol=0)


def test_nan_propagates_in_its_group_only():
    x = torch.tensor([[1.0], [float("nan")], [2.0]])
    for reduce in ("sum", "mean", "max"):
        out = segment_reduce(x, torch.tensor([1, 1, 0]), 2, reduce)
        assert out[1].isnan() and out[0] == 2


def test_the_mask_of_maxima_in_blocks(monkeypatch):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    index = torch.arange(50) % 7
    grads = []
    for rows in (2**14, 3):
        monkeypatch.setattr("nufm.ops.pool.ROWS_PER_BLOCK", rows)
        leaf = x.clone().requires_grad_()
        segment_reduce(leaf, index, 7, "max").square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads) and grads[0].count_nonzero() == 14


def test_take_is_indexing_with_its_gradient():
    index = torch.tensor([2, 2, 0, 1, 2])
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(take(x, index), x[index])
    assert torch.autograd.gradcheck(lambda x: take(x, index), x)
    assert torch.autograd.gradgradcheck(lambda x: take(x, index), x)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_no_rows(reduce):
    x, index = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    assert segment_reduce(x, index, 0, reduce).shape == (0, 3)
    out = segment_reduce(x, index, 2, reduce)
    assert torch.equal(out, torch.zeros(2, 3))
    out.sum().backward()
    assert x.grad.shape == (0, 3)
    assert take(torch.zeros(2, 3), index).shape == (0, 3)


def test_refusals():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="unknown reduction 'min'"):
        segment_reduce(x, torch.tensor([0, 1]), 2, "min")
    with pytest.raises(ValueError, match=r"torch\.int64 \(2, 3\)"):
        segment_reduce(x.long(), torch.tensor([0, 1]), 2, "sum")
    with pytest.raises(ValueError, match=r"int64 \(2,\)"):
        segment_reduce(x, torch.tensor([0, 1, 1]), 2, "sum")
    with pytest.raises(ValueError, match="stride"):
        pool_cells(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0, 1]), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ties_are_counted_in_full(dtype):
    """bfloat16 counts to 256 only: 1,000 equal maxima must share one gradient of 1."""
    x = torch.zeros(1000, 1, dtype=dtype, requires_grad=True)
    segment_reduce(x, torch.zeros(1000, dtype=torch.int64), 1, "max").sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 1 / 1000))
