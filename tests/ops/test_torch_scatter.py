"""The torch-scatter adapter: against the reference where the package is, else on a stand-in with its documented API."""

import importlib
import sys
import types

import pytest
import torch

from nufm.ops import dispatch
from nufm.ops.dispatch import BackendError, choose, use_backend, used
from nufm.ops.pool import Segments, segment_reduce

# Groups out of order, with equal maxima, one without rows, one of a single row.
INDEX = torch.tensor([3, 0, 3, 1, 1, 3, 5, 0, 3])


def loop_segment_csr(src, indptr, out=None, reduce="sum"):
    """``torch_scatter.segment_csr`` as documented: rows indptr[i]:indptr[i+1] of sorted ``src``; 0 for no rows."""
    assert out is None and indptr[0] == 0 and indptr[-1] == len(src)
    result = src.new_zeros(len(indptr) - 1, *src.shape[1:])
    for i, (lo, hi) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)):
        if hi > lo:
            rows = src[lo:hi]
            if reduce == "max":  # comparison by >, as its kernels do: a NaN never wins
                best = torch.full_like(rows[0], float("-inf"))
                for row in rows:
                    best = torch.where(row > best, row, best)
                result[i] = best
            else:
                result[i] = {"sum": rows.sum(0), "mean": rows.mean(0)}[reduce]
    return result


@pytest.fixture(params=["stand-in", "package"])
def adapter(request, monkeypatch):
    """Load the adapter anew, on the stand-in or on the installed package, and forget it afterwards."""
    name = "nufm.ops.backends.torch_scatter"
    if request.param == "package":
        pytest.importorskip("torch_scatter", reason="torch-scatter is not installed")
    else:
        module = types.ModuleType("torch_scatter")
        module.segment_csr = loop_segment_csr
        monkeypatch.setitem(sys.modules, "torch_scatter", module)
    forget()
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)
    forget()


def forget():
    dispatch.load.cache_clear()
    dispatch._unavailable.cache_clear()


def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_equals_the_reference_forward_and_backward(adapter, reduce, dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-4, 4, (len(INDEX), 3), generator=generator).to(device(), dtype)  # many equal maxima
    weight = torch.randn(7, 3, generator=generator).to(device(), dtype)
    results = []
    for backend in ("torch_scatter", "torch"):
        x = values.clone().requires_grad_()
        with use_backend(backend):
            out = segment_reduce(x, INDEX.to(device()), 7, reduce)
        (out * weight).sum().backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(*results)
    assert "torch_scatter" in used()["segment_max" if reduce == "max" else "segment_sum"]


def test_second_derivatives(adapter):
    x = torch.randn(len(INDEX), 2, dtype=torch.float64, requires_grad=True, device=device())
    index = INDEX.to(device())
    with use_backend("torch_scatter"):
        for reduce in ("mean", "max"):
            assert torch.autograd.gradgradcheck(lambda x, reduce=reduce: segment_reduce(x, index, 7, reduce), x)


def test_a_nan_is_not_lost_in_a_maximum(adapter):
    x = torch.tensor([[1.0], [float("nan")], [3.0]], device=device())
    with use_backend("torch_scatter"):
        out = segment_reduce(x, torch.tensor([0, 0, 1], device=device()), 2, "max")
    assert out[0].isnan() and out[1] == 3


def test_refusals(adapter):
    segments = Segments(INDEX, 7)
    x = torch.zeros(len(INDEX), 2)
    assert choose("segment_sum", x, segments, False) == "torch"  # auto on a CPU
    with use_backend("torch_scatter"), pytest.raises(BackendError, match=r"sums torch\.bfloat16 in torch\.bfloat16"):
        segment_reduce(x.bfloat16(), INDEX, 7, "sum")
    with use_backend("torch_scatter"):
        assert segment_reduce(x.bfloat16(), INDEX, 7, "max").dtype == torch.bfloat16
