"""Curves against published test vectors, bit loops in plain Python, and what defines a Hilbert curve."""

import itertools

import pytest
import torch

from nufm.ops.serialize import CURVES, curve_code, event_code, hilbert, quantize, serialize, z_order

# Codes of depth 11 from the released Point Transformer V3 serialization: cell -> z, z-trans, hilbert,
# hilbert-trans.
PUBLISHED = {
    (0, 0, 0): (0, 0, 0, 0),
    (1, 2, 3): (29, 43, 22, 50),
    (5, 1000, 37): (306808133, 613583043, 153569844, 498492196),
    (600, 601, 602): (941391370, 941391372, 672422431, 672422425),
    (1154, 0, 577): (4437835809, 2286157841, 7989587341, 3399970217),
    (1023, 1023, 1023): (1073741823, 1073741823, 766958445, 766958445),
}


def cube(depth):
    return torch.tensor(list(itertools.product(range(2**depth), repeat=3)))


@pytest.mark.parametrize("curve", CURVES)
def test_published_codes(curve):
    column = ("z", "z-trans", "hilbert", "hilbert-trans").index(curve)
    expected = [codes[column] for codes in PUBLISHED.values()]
    assert curve_code(torch.tensor(list(PUBLISHED)), curve, 11).tolist() == expected


def test_published_codes_with_event_number():
    offsets = torch.tensor([0, 0, 0, 0, 1])  # the point is in event 3
    codes = event_code(torch.tensor([[1, 2, 3]]), offsets, ("z", "z-trans", "hilbert", "hilbert-trans"), 11)
    assert codes.flatten().tolist() == [25769803805, 25769803819, 25769803798, 25769803826]


def test_hilbert_order_of_the_unit_cube():
    grid = cube(1)
    corners = ["".join(map(str, grid[i].tolist())) for i in hilbert(grid, 1).argsort()]
    assert corners == ["000", "001", "011", "010", "110", "111", "101", "100"]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_hilbert_fills_the_cube_by_unit_steps(depth):
    grid = cube(depth)
    code = hilbert(grid, depth)
    assert sorted(code.tolist()) == list(range(8**depth))
    steps = grid[code.argsort()].diff(dim=0).abs().sum(1)
    assert (steps == 1).all()


@pytest.mark.parametrize("depth", [3, 4, 5, 16])
def test_hilbert_of_small_cells_is_one_curve_at_any_depth(depth):
    """The skipped leading zero bits must only turn the axes: still a path of unit steps through the small
    cube.
    """
    grid = cube(3)
    code = hilbert(grid, depth)
    assert (grid[code.argsort()].diff(dim=0).abs().sum(1) == 1).all()


def test_hilbert_turns_the_axes_with_depth():
    grid = cube(3)
    assert not torch.equal(hilbert(grid, 3), hilbert(grid, 4))
    assert torch.equal(hilbert(grid, 3), hilbert(grid, 6))


@pytest.mark.parametrize("stages", [1, 3])
def test_pooled_cells_keep_the_curve(stages):
    """Dropping bits of the cell drops bits of the code: with one depth bit less per pooling, curves nest."""
    grid = torch.randint(0, 2**11, (300, 3))
    for curve in CURVES:
        coarse = curve_code(grid >> stages, curve, 16 - stages)
        assert torch.equal(coarse, curve_code(grid, curve, 16) >> 3 * stages)


def test_z_order_against_bit_loop():
    generator = torch.Generator().manual_seed(0)
    grid = torch.randint(0, 2**16, (50, 3), generator=generator)
    grid[0], grid[1] = 2**16 - 1, 0
    for cell, code in zip(grid.tolist(), z_order(grid, 16).tolist(), strict=True):
        expected = 0
        for bit in range(16):
            for axis, shift in zip(cell, (2, 1, 0), strict=True):
                expected |= (axis >> bit & 1) << 3 * bit + shift
        assert code == expected


def skilling(axes, depth):
    """The transform as its paper has it (AxestoTranspose), bit by bit; then the bits of the axes in turn."""
    axes = list(axes)
    bit = 1 << depth - 1
    while bit > 1:
        low = bit - 1
        for i in range(3):
            if axes[i] & bit:
                axes[0] ^= low
            else:
                swap = (axes[0] ^ axes[i]) & low
                axes[0] ^= swap
                axes[i] ^= swap
        bit >>= 1
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    invert, bit = 0, 1 << depth - 1
    while bit > 1:
        if axes[2] & bit:
            invert ^= bit - 1
        bit >>= 1
    axes = [axis ^ invert for axis in axes]
    return sum((axis >> level & 1) << 3 * level + 2 - i for i, axis in enumerate(axes) for level in range(depth))


@pytest.mark.parametrize("depth", range(1, 17))
def test_hilbert_against_the_transform_of_the_paper(depth):
    generator = torch.Generator().manual_seed(depth)
    for bits in range(1, depth + 1):  # leading zeros are skipped in threes
        grid = torch.randint(0, 2**bits, (6, 3), generator=generator)
        grid[0, 0] = 2**bits - 1
        for (x, y, z), code, swapped in zip(
            grid.tolist(), hilbert(grid, depth).tolist(), curve_code(grid, "hilbert-trans", depth).tolist(), strict=True
        ):
            assert code == skilling((x, y, z), depth) and swapped == skilling((y, x, z), depth)


def test_codes_in_blocks(monkeypatch):
    grid = torch.randint(0, 2**11, (300, 3), generator=torch.Generator().manual_seed(3))
    offsets = torch.tensor([0, 100, 300])
    whole = event_code(grid, offsets, CURVES)
    monkeypatch.setattr("nufm.ops.serialize.ROWS_PER_BLOCK", 7)
    assert torch.equal(event_code(grid, offsets, CURVES), whole)


def test_serialize_sorts_within_events_and_inverts():
    generator = torch.Generator().manual_seed(1)
    offsets = torch.tensor([0, 40, 40, 41, 100])
    grid = torch.randint(0, 6, (100, 3), generator=generator)  # few cells: many ties
    order, inverse = serialize(grid, offsets, CURVES)
    for k, curve in enumerate(CURVES):
        code = curve_code(grid, curve).tolist()
        expected = []
        for lo, hi in itertools.pairwise(offsets.tolist()):
            expected += sorted(range(lo, hi), key=lambda i, code=code: (code[i], i))
        assert order[k].tolist() == expected
        assert order[k][inverse[k]].tolist() == list(range(100))


def test_order_of_an_event_does_not_depend_on_the_batch_unless_asked():
    generator = torch.Generator().manual_seed(2)
    small = torch.randint(0, 100, (50, 3), generator=generator)
    large = torch.randint(0, 2000, (50, 3), generator=generator)
    both, offsets = torch.cat([small, large]), torch.tensor([0, 50, 100])
    alone = torch.tensor([0, 50])
    fixed = serialize(both, offsets, CURVES)[0][:, :50]
    assert torch.equal(fixed, serialize(small, alone, CURVES)[0])
    published = serialize(both, offsets, CURVES, depth=None)[0][:, :50]
    assert not torch.equal(published, serialize(small, alone, CURVES, depth=None)[0])


@pytest.mark.parametrize("extents", [[1, 2, 3, 5, 8], [700, 90], [32, 31, 1, 0, 63], [40000]])
def test_depth_of_each_event_is_the_published_one_of_that_event_alone(extents):
    """Orders of a batch with ``event`` are those of its events one by one with the batch's depth (None)."""
    generator = torch.Generator().manual_seed(sum(extents))
    grids = [torch.randint(0, n, (60, 3), generator=generator) if n else torch.zeros(0, 3).long() for n in extents]
    grids = [torch.unique(g, dim=0) for g in grids]
    offsets = torch.tensor([0, *itertools.accumulate(len(g) for g in grids)])
    order, inverse = serialize(torch.cat(grids), offsets, CURVES, "event")
    for b, grid in enumerate(grids):
        alone, _ = serialize(grid, torch.tensor([0, len(grid)]), CURVES, None)
        assert torch.equal(order[:, offsets[b] : offsets[b + 1]] - offsets[b], alone)
    assert torch.equal(order.gather(1, inverse), torch.arange(len(inverse[0])).expand_as(inverse))


def test_published_depth_counts_one_more_than_the_largest_coordinate():
    """int(grid.max() + 1).bit_length(): 4 bits for a largest coordinate of 7."""
    grid = torch.tensor([[7, 3, 1], [0, 6, 2]])
    found = event_code(grid, torch.tensor([0, 2]), ["hilbert"], None)
    assert torch.equal(found, event_code(grid, torch.tensor([0, 2]), ["hilbert"], 4))
    assert not torch.equal(found, event_code(grid, torch.tensor([0, 2]), ["hilbert"], 3))


def test_quantize_counts_from_each_events_minimum():
    coord = torch.tensor([[-0.35, 0.0, 5.0], [0.05, 0.19, 5.3], [7.0, 7.0, 7.0]])
    grid = quantize(coord, torch.tensor([0, 2, 2, 3]), 0.1)
    assert grid.tolist() == [[0, 0, 0], [4, 1, 3], [0, 0, 0]]
    assert grid.dtype == torch.int64


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]])
def test_no_points(offsets):
    grid, offsets = torch.zeros(0, 3, dtype=torch.int64), torch.tensor(offsets)
    order, inverse = serialize(grid, offsets, CURVES)
    assert order.shape == inverse.shape == (4, 0)
    assert serialize(grid, offsets, ["z"], depth=None)[0].shape == (1, 0)
    assert quantize(torch.zeros(0, 3), offsets, 0.1).shape == (0, 3)


def test_refusals():
    grid, offsets = torch.tensor([[0, 0, 16]]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"coordinate 16.*depth 4 ends at 15"):
        serialize(grid, offsets, ["z"], depth=4)
    with pytest.raises(ValueError, match="depth of a curve"):
        hilbert(grid, 17)
    with pytest.raises(ValueError, match=">= 0, found -1"):
        z_order(grid - 17)
    with pytest.raises(ValueError, match="unknown curve 'peano'"):
        curve_code(grid, "peano")
    with pytest.raises(ValueError, match=r"torch\.int32"):
        serialize(grid.int(), offsets, ["z"])
    with pytest.raises(ValueError, match="offsets of 'grid' end at 2"):
        serialize(grid, torch.tensor([0, 2]), ["z"])
    with pytest.raises(ValueError, match="63-bit key"):
        serialize(
            grid, torch.cat([torch.zeros(2**15, dtype=torch.int64), torch.ones(1, dtype=torch.int64)]), ["z"]
        )
    with pytest.raises(ValueError, match="floating point"):
        quantize(grid, offsets, 0.1)
    with pytest.raises(ValueError, match="must be > 0"):
        quantize(grid.float(), offsets, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_coordinates_without_a_cell_are_refused(value):
    with pytest.raises(ValueError, match="row 1 of 'coord'"):
        quantize(torch.tensor([[0.0, 0, 0], [1, value, 2]]), torch.tensor([0, 2]), 0.5)


@pytest.mark.parametrize("offsets", [[1, 2], [0, 3, 2], [0, -1, 2]])
def test_offsets_that_fall_are_refused(offsets):
    with pytest.raises(ValueError, match="begin at 0 and never fall"):
        serialize(torch.zeros(2, 3, dtype=torch.int64), torch.tensor(offsets), ("z",))
