"""Curve kernel against the torch reference, bit for bit."""

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from nufm.ops.dispatch import BackendError, use_backend, used
from nufm.ops.serialize import CURVES, curve_code, event_code, hilbert, serialize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("depth", [1, 2, 7, 15, 16])
def test_equals_the_reference_bit_for_bit(depth):
    generator = torch.Generator().manual_seed(depth)
    grid = torch.randint(0, 2**depth, (300, 3), generator=generator).to(DEVICE)
    grid[0], grid[1] = 0, 2**depth - 1
    for curve in CURVES:
        with use_backend("torch"):
            expected = curve_code(grid, curve, depth)
        with use_backend("triton"):
            assert torch.equal(curve_code(grid, curve, depth), expected)
    assert "triton" in used()["curve_code"]


@pytest.mark.parametrize("depth", [9, 11, 14, 16, None])
def test_small_cells_of_a_deep_curve_with_event_numbers(depth):
    """The reference skips leading zero bits, which turn the axes; the kernel takes them one by one."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.randint(0, 2**9, (100, 3), generator=generator).to(DEVICE)
    offsets = torch.tensor([0, 0, 40, 40, 41, 100], device=DEVICE)
    curves = ("hilbert", "z-trans", "hilbert-trans", "z", "hilbert")
    with use_backend("torch"):
        expected = event_code(grid, offsets, curves, depth)
    with use_backend("triton"):
        found = event_code(grid, offsets, curves, depth)
    assert torch.equal(found, expected)
    assert found.shape == (5, 100)


def test_the_largest_key_uses_63_bits():
    grid = torch.full((1, 3), 2**16 - 1, device=DEVICE)
    offsets = torch.tensor([0] * (2**15 - 1) + [1], device=DEVICE)
    with use_backend("triton"):
        (code,) = event_code(grid, offsets, ["z"]).flatten().tolist()
    assert code == (2**15 - 2) * 2**48 + 2**48 - 1


def test_hilbert_kernel_fills_the_cube_by_unit_steps():
    grid = torch.tensor(list(itertools.product(range(8), repeat=3)), device=DEVICE)
    with use_backend("triton"):
        code = hilbert(grid, 3)
    assert sorted(code.tolist()) == list(range(512))
    assert (grid[code.argsort()].diff(dim=0).abs().sum(1) == 1).all()


@pytest.mark.parametrize("curves", [CURVES, ()])
def test_no_points_and_no_curves(curves):
    offsets = torch.tensor([0, 0, 0], device=DEVICE)
    with use_backend("triton"):
        order, inverse = serialize(torch.zeros(0, 3, dtype=torch.int64, device=DEVICE), offsets, curves)
        assert order.shape == inverse.shape == (len(curves), 0)
        some = event_code(torch.zeros(2, 3, dtype=torch.int64, device=DEVICE), torch.tensor([0, 2], device=DEVICE), ())
    assert some.shape == (0, 2)


def test_too_many_curves_are_refused():
    grid, offsets = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE), torch.tensor([0, 2], device=DEVICE)
    with use_backend("triton"), pytest.raises(BackendError, match="at most 15 curves"):
        event_code(grid, offsets, ["z"] * 16)
