"""The Triton kernels against the torch reference: interpreted on a CPU, compiled on a GPU.

Tolerances: float32 1e-5 of the largest value (other order of the sums); float16 and bfloat16 against the reference in
float64 on the same rounded inputs, 4 units in the last place of the largest value (products and weights are rounded
to half precision once each, results once more).
"""

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from nufm.ops.attention import Windows, attention_reference, window_layout, windowed_attention
from nufm.ops.backends.triton.attention import IMPLEMENTATIONS
from nufm.ops.dispatch import BackendError, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4 * 2**-10, torch.bfloat16: 4 * 2**-7}


def offsets_of(counts):
    return torch.tensor([0, *itertools.accumulate(counts)], device=DEVICE)


def layout(counts, window):
    """Windows with borrowed keys, points in another order than the curve's."""
    windows = Windows.of_layout(window_layout(offsets_of(counts), window))
    return windows.of_points(torch.randperm(sum(counts), device=DEVICE))


def cross(queries, keys):
    return Windows.of_boundaries(offsets_of(queries), offsets_of(keys))


def shared_keys():
    """Keys in several windows or in none, a window without keys, one without queries."""
    queries, keys = offsets_of([3, 5, 2, 0, 18]), offsets_of([6, 0, 40, 4, 3])
    rows = torch.randint(0, 20, (53,), device=DEVICE)
    return Windows(queries, keys, torch.randperm(28, device=DEVICE), rows, 28, 25)


CASES = {
    "layout": lambda: layout([20, 3, 0, 1, 9], 8),
    "longer than a tile": lambda: layout([90, 7], 80),
    "self": lambda: cross([20, 1, 0, 5], [20, 1, 0, 5]),
    "latents": lambda: cross([4, 4, 4], [130, 1, 33]),
    "missing streams": lambda: cross([3, 5, 2], [6, 0, 9]),
    "shared keys": shared_keys,
}


def inputs_of(windows, heads, width, value_width, dtype, with_bias):
    torch.manual_seed(0)
    shapes = [(windows.n_queries, heads, width), (windows.n_keys, heads, width), (windows.n_keys, heads, value_width)]
    shapes += [(heads, windows.cuts.n_pairs)] if with_bias else []
    return [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def both_ways(attend, inputs, windows, cotangent, scale=0.3):
    bias = inputs[3] if len(inputs) > 3 else None
    out = attend(*inputs[:3], windows, scale, bias)
    return [out, *torch.autograd.grad(out, inputs, cotangent.to(out.dtype))]


def compare(windows, heads=2, width=16, value_width=16, dtype=torch.float32, with_bias=False):
    inputs = inputs_of(windows, heads, width, value_width, dtype, with_bias)
    cotangent = torch.randn(windows.n_queries, heads, value_width, device=DEVICE).to(dtype)
    with use_backend("triton"):
        found = both_ways(windowed_attention, inputs, windows, cotangent)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = both_ways(attention_reference, exact, windows, cotangent)
    for name, a, b in zip(("out", "dq", "dk", "dv", "dbias"), found, wanted, strict=False):
        assert a.dtype == dtype and a.shape == b.shape
        largest = float(b.detach().abs().max())
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=TOLERANCE[dtype] * max(1.0, largest), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("case", CASES)
def test_against_reference(case, with_bias):
    torch.manual_seed(1)
    compare(CASES[case](), with_bias=with_bias)


@pytest.mark.parametrize("width, value_width", [(24, 24), (5, 5), (32, 8), (128, 128)])
def test_any_width(width, value_width):
    compare(cross([5, 18], [19, 4]), heads=1, width=width, value_width=value_width)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_half_precision(dtype, with_bias):
    compare(layout([20, 4], 16), dtype=dtype, with_bias=with_bias)


def test_strided_views_of_one_projection():
    windows = layout([20, 5], 8)
    qkv = torch.randn(25, 3, 2, 16, device=DEVICE, requires_grad=True)
    cotangent = torch.randn(25, 2, 16, device=DEVICE)
    results = []
    for backend in ("triton", "torch"):
        with use_backend(backend):
            out = windowed_attention(*qkv.unbind(1), windows, 0.25)
            results.append((out, *torch.autograd.grad(out, qkv, cotangent)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_repeatable_bit_for_bit():
    torch.manual_seed(2)
    windows = shared_keys()
    inputs = inputs_of(windows, 2, 16, 16, torch.float32, True)
    cotangent = torch.randn(28, 2, 16, device=DEVICE)
    with use_backend("triton"):
        runs = [both_ways(windowed_attention, inputs, windows, cotangent) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_events_do_not_see_each_other():
    q = torch.randn(16, 2, 16, device=DEVICE)
    q[5:12] = float("nan")
    with use_backend("triton"):
        out = windowed_attention(q, q, q, offsets_of([5, 7, 4]), 0.5)
    assert out[5:12].isnan().all() and not out[:5].isnan().any() and not out[12:].isnan().any()


def test_large_logits_and_pairs_left_out():
    """The running maximum keeps exponentials finite; a bias of -inf, even for a whole tile of keys, gives weight 0."""
    windows = cross([3], [150])
    q, k = 60 * torch.randn(3, 1, 16, device=DEVICE), torch.randn(150, 1, 16, device=DEVICE)
    bias = torch.zeros(1, 450, device=DEVICE)
    bias.view(3, 150)[:, :140] = float("-inf")
    with use_backend("triton"):
        out = windowed_attention(q, k, k, windows, 1.0, bias)
    last = torch.tensor([0, 10], device=DEVICE)
    expected = attention_reference(q, k[140:], k[140:], Windows.of_boundaries(offsets_of([3]), last), 1.0, None)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


def test_nothing_to_do():
    q = torch.randn(3, 2, 16, device=DEVICE, requires_grad=True)
    with use_backend("triton"):
        out = windowed_attention(q, q[:0], q[:0], cross([3], [0]), 1.0)
        empty = windowed_attention(q[:0], q[:0], q[:0], offsets_of([]), 1.0)
    assert (out == 0).all() and empty.shape == (0, 2, 16)
    out.sum().backward()
    assert (q.grad == 0).all()


def test_refusals():
    wide = torch.randn(4, 1, 160, device=DEVICE)
    with use_backend("triton"), pytest.raises(BackendError, match="128 channels per head, found 160"):
        windowed_attention(wide, wide, wide, offsets_of([4]), 1.0)
    double = torch.randn(4, 1, 16, device=DEVICE, dtype=torch.float64)
    with use_backend("triton"), pytest.raises(BackendError, match="float64"):
        windowed_attention(double, double, double, offsets_of([4]), 1.0)
    refuses = IMPLEMENTATIONS["windowed_attention"].refuses
    if DEVICE == "cpu":  # never taken unasked: the interpreter is slow
        x = double.float()
        assert "GPU" in refuses(x, x, x, Windows.of_boundaries(offsets_of([4])), 1.0, None)
