"""Segment kernels against the torch reference: compiled where there is a GPU, interpreted elsewhere."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton

from nufm.ops.backends.triton.segments import slice_length
from nufm.ops.dispatch import BackendError, use_backend, used
from nufm.ops.pool import Segments, segment_reduce, take

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# float32: a different order of the same sum. 16 bit: one rounding of the result.
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-3, 1e-3), torch.bfloat16: (1e-2, 1e-2)}


@pytest.fixture(autouse=True)
def an_interpreter_that_sums_in_32_bit(request):
    """That of Triton 3.2 adds int32 up in int64, and stores 8 bytes where 4 belong: the tie count of the next group."""
    old = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3)
    if old and DEVICE == "cpu" and ("max" in request.node.name or "nan" in request.node.name):
        pytest.skip("Triton's interpreter before 3.3 stores sums of int32 as int64")


def grouped(sizes):
    """Index of shuffled rows into groups of these sizes."""
    index = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return index[torch.randperm(len(index), generator=torch.Generator().manual_seed(1))]


# Slices have 64 rows here. Long groups that begin inside a slice, on its first row, fill exactly one slice (a short
# one by definition), follow each other, leave the last slice short, or are all there is.
CASES = {
    "short": [3, 0, 1, 5, 0, 2],
    "long": [70, 0, 250, 3, 64, 65, 1],
    "aligned": [64, 128, 64, 129, 0],
    "one": [200],
    "single rows": [1] * 70,
}


def both(x, index, n, reduce, cotangent):
    """(result, gradient) of the kernels and of the reference."""
    results = []
    for backend in ("triton", "torch"):
        leaf = x.clone().requires_grad_()
        with use_backend(backend):
            out = segment_reduce(leaf, index, n, reduce)
        out.backward(cotangent)
        results += [(out.detach(), leaf.grad)]
    return results


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case, reduce):
    sizes = CASES[case]
    index = grouped(sizes).to(DEVICE)
    assert slice_length(len(index)) == 64
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(len(index), 5, generator=generator) * 2).round().to(DEVICE) - 3  # ties, and maxima below 0
    cotangent = torch.randn(len(sizes), 5, generator=generator).to(DEVICE)
    found, expected = both(x, index, len(sizes), reduce, cotangent)
    rtol, atol = TOLERANCE[torch.float32]
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    assert "triton" in used()["segment_max" if reduce == "max" else "segment_sum"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("channels", [1, 130])
def test_16_bit_numbers_and_widths(dtype, reduce, channels):
    index = grouped([2, 70, 0, 9]).to(DEVICE)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(index), channels, generator=generator).to(DEVICE, dtype)
    cotangent = torch.randn(4, channels, generator=generator).to(DEVICE, dtype)
    found, expected = both(x, index, 4, reduce, cotangent)
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    assert found[0].dtype == found[1].dtype == dtype


def test_sums_of_16_bit_numbers_are_accumulated_in_32_bit():
    """In bfloat16, 256 + 1 = 256; and the sum of these float16 numbers overflows, their mean does not."""
    index = torch.zeros(400, dtype=torch.int64, device=DEVICE)
    with use_backend("triton"):
        ones = torch.ones(400, 1, dtype=torch.bfloat16, device=DEVICE)
        assert segment_reduce(ones, index, 1, "sum").item() == 400
        large = torch.full((400, 1), 3e4, dtype=torch.float16, device=DEVICE)
        assert segment_reduce(large, index, 1, "mean").item() == 30000


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
@pytest.mark.parametrize("sizes", [[3, 2], [100, 2]])
def test_nan_and_infinity_propagate_in_their_group_only(reduce, sizes):
    index = grouped(sizes).to(DEVICE)
    x = torch.ones(len(index), 3, device=DEVICE)
    members = (index == 0).nonzero()[:, 0]
    x[members[1], 0], x[members[2], 1], x[:, 2] = float("nan"), float("inf"), float("-inf")
    found, expected = both(x, index, 2, reduce, torch.ones(2, 3, device=DEVICE))
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[0][0, 0].isnan() and torch.isfinite(found[0][1, :2]).all()


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_second_derivative(reduce):
    """The gradient in x of |gradient|^2 has the same value by both: float64 for gradgradcheck is not for kernels."""
    index = grouped([4, 1, 0, 3]).to(DEVICE)
    values = torch.randn(8, 2, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    results = []
    for backend in ("triton", "torch"):
        x = values.clone().requires_grad_()
        with use_backend(backend):
            out = segment_reduce(x, index, 4, reduce)
            (first,) = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        results.append(second)
    assert results[0].abs().max() > 0
    torch.testing.assert_close(*results)


def test_the_gradient_of_take_is_the_kernels_sum():
    index = grouped([2, 0, 68]).to(DEVICE)
    x = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    cotangent = torch.randn(len(index), 4, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    with use_backend("triton"):
        take(x, index).backward(cotangent)
    torch.testing.assert_close(x.grad, torch.zeros_like(x).index_add(0, index, cotangent))


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_results_are_repeatable_and_a_known_longest_group_changes_nothing(reduce):
    index = grouped([60, 20, 64]).to(DEVICE)
    x = torch.randn(len(index), 3, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    with use_backend("triton"):
        runs = [segment_reduce(x, index, 3, reduce) for _ in range(2)]
        runs.append(segment_reduce(x, Segments(index, 3, longest=64), 3, reduce))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_no_rows_and_no_groups(reduce):
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    with use_backend("triton"):
        x = torch.zeros(0, 3, device=DEVICE, requires_grad=True)
        assert segment_reduce(x, none, 0, reduce).shape == (0, 3)
        out = segment_reduce(x, none, 2, reduce)
        out.sum().backward()
        assert torch.equal(out, torch.zeros(2, 3, device=DEVICE)) and x.grad.shape == (0, 3)
        assert segment_reduce(torch.zeros(4, 0, device=DEVICE), none.new_zeros(4), 1, reduce).shape == (1, 0)


def test_double_precision_is_refused():
    x = torch.zeros(2, 1, dtype=torch.float64, device=DEVICE)
    index = torch.tensor([0, 0], device=DEVICE)
    for reduce in ("sum", "max"):
        with use_backend("triton"), pytest.raises(BackendError, match=r"found torch\.float64"):
            segment_reduce(x, index, 1, reduce)
        with use_backend("triton", "torch"):
            assert segment_reduce(x, index, 1, reduce).item() == 0


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_than_the_current_gpu():
    x = torch.ones(100, 3, device="cuda:1", requires_grad=True)
    index = torch.zeros(100, dtype=torch.int64, device="cuda:1")
    with torch.cuda.device(0), use_backend("triton"):
        out = segment_reduce(x, index, 1, "max")
        out.sum().backward()
    assert out.tolist() == [[1.0] * 3]
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.01))


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 40 * 2**30,
    reason="needs a GPU of 40 GiB",
)
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_more_numbers_than_32_bits_count(reduce):
    n, channels = 2**25 + 7, 64
    index = torch.arange(n, device="cuda") // 2**20
    x = torch.zeros(n, channels, dtype=torch.bfloat16, device="cuda")
    x[-1] = 1
    x.requires_grad_()
    groups = int(index[-1]) + 1
    with use_backend("triton"):
        out = segment_reduce(x, index, groups, reduce)
        out.backward(torch.ones_like(out))
    assert (out[-1] == 1).all() and out[:-1].count_nonzero() == 0
    assert (x.grad[-1] == 1).all()
    assert (x.grad[-2] == (1 if reduce == "sum" else 0)).all()
