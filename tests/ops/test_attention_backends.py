"""Adapters of variable-length attention: their index logic with a stand-in, the packages where there is a GPU."""

import importlib
import itertools
import sys
from types import ModuleType

import pytest
import torch

from nufm.ops import dispatch
from nufm.ops.attention import Windows, attention_reference, window_layout, windowed_attention
from nufm.ops.backends import varlen

OP = "windowed_attention"


def offsets_of(counts):
    return torch.tensor([0, *itertools.accumulate(counts)])


def layout(counts, window):
    """Windows with borrowed keys, points in another order than the curve's."""
    return Windows.of_layout(window_layout(offsets_of(counts), window)).of_points(torch.randperm(sum(counts)))


def shared_keys():
    """Keys in several windows or in none, a window without keys, one without queries."""
    queries, keys = offsets_of([3, 5, 2, 0, 18]), offsets_of([6, 0, 40, 4, 3])
    return Windows(queries, keys, torch.randperm(28), torch.randint(0, 20, (53,)), 28, 25)


CASES = {
    "layout": lambda: layout([40, 3, 0, 1, 33], 16),
    "self": lambda: Windows.of_boundaries(offsets_of([20, 1, 5])),
    "empty events": lambda: Windows.of_boundaries(offsets_of([20, 0, 5])),
    "missing streams": lambda: Windows.of_boundaries(offsets_of([3, 5, 2]), offsets_of([6, 0, 9])),
    "shared keys": shared_keys,
}


def stand_in(q, k, v, cu_q, cu_k, max_q, max_k, scale):
    """What the packages compute, sequence by sequence; refuses what they leave undefined."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert cu_q[0] == cu_k[0] == 0 and cu_q[-1] == len(q) and cu_k[-1] == len(k) == len(v)
    lengths = cu_q.diff(), cu_k.diff()
    assert all((n > 0).all() for n in lengths)
    assert (max_q, max_k) == tuple(int(n.max()) for n in lengths)
    out = []
    for (a, b), (c, d) in zip(itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True):
        weights = torch.softmax(scale * torch.einsum("ihd,jhd->hij", q[a:b], k[c:d]), -1)
        out.append(torch.einsum("hij,jhd->ihd", weights, v[c:d]))
    return torch.cat(out)


def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p=0.0, softmax_scale=None, **more):
    """flash-attn's signature, and nothing else."""
    assert dropout_p == 0 and set(more) <= {"deterministic"}
    return stand_in(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale)


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None):
    """PyTorch's signature as far as the adapter may use it."""
    return stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale)


@pytest.fixture(params=["flash_attn", "torch_varlen"])
def adapter(request, monkeypatch):
    """The adapter's module, with a package in its place that has one function."""
    if request.param == "flash_attn":
        package, name, function = "flash_attn", "flash_attn_varlen_func", flash_attn_varlen_func
    else:
        package, name, function = "torch.nn.attention.varlen", "varlen_attn", varlen_attn
    module = ModuleType(package)
    setattr(module, name, function)
    monkeypatch.setitem(sys.modules, package, module)
    full = f"nufm.ops.backends.{request.param}"
    monkeypatch.delitem(sys.modules, full, raising=False)
    yield importlib.import_module(full)
    sys.modules.pop(full, None)


@pytest.mark.parametrize("case", CASES)
def test_rows_and_gradients_against_reference(adapter, case):
    torch.manual_seed(0)
    windows = CASES[case]()
    sizes = (windows.n_queries, windows.n_keys, windows.n_keys)
    inputs = [torch.randn(n, 2, 8, dtype=torch.float64, requires_grad=True) for n in sizes]
    cotangent = torch.randn(windows.n_queries, 2, 8, dtype=torch.float64)
    results = []
    for attend in (adapter.IMPLEMENTATIONS[OP].run, attention_reference):
        out = attend(*inputs, windows, 0.3, None)
        results.append([out, *torch.autograd.grad(out, inputs, cotangent)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted)


def test_queries_without_keys_get_zero_whatever_the_package_does(adapter):
    windows = Windows.of_boundaries(offsets_of([2, 3]), offsets_of([0, 4]))
    q, k = torch.randn(5, 2, 8, requires_grad=True), torch.randn(4, 2, 8)
    out = adapter.IMPLEMENTATIONS[OP].run(q, k, k, windows, 1.0, None)
    assert (out[:2] == 0).all() and (out[2:] != 0).all()
    out.sum().backward()
    assert (q.grad[:2] == 0).all()


def test_refusals(adapter):
    windows = Windows.of_boundaries(offsets_of([4]))
    refuses = adapter.IMPLEMENTATIONS[OP].refuses

    def reason(dtype=torch.float16, width=16, value_width=None, bias=None, scale=1.0):
        q = torch.randn(4, 2, width).to(dtype)
        v = q if value_width is None else q[:, :, :value_width]
        return refuses(q, q, v, windows, scale, bias)

    assert "bias" in reason(bias=torch.zeros(2, 16))
    assert "float32" in reason(torch.float32)
    assert "found 12" in reason(width=12)
    assert "found 264" in reason(width=264)
    assert "found 8 and 16" in reason(value_width=8)
    assert "CUDA" in reason()


def test_first_versions_of_torch_know_one_scale(monkeypatch):
    module = pytest.importorskip("nufm.ops.backends.torch_varlen", reason="this torch has no varlen_attn")
    windows, q = Windows.of_boundaries(offsets_of([4])), torch.randn(4, 2, 16).half()
    monkeypatch.setattr(module, "TAKES_SCALE", False)
    refuses = module.IMPLEMENTATIONS[OP].refuses
    assert "scale" in refuses(q, q, q, windows, 0.3, None)
    assert "CUDA" in refuses(q, q, q, windows, 0.25, None)
    monkeypatch.setattr(module, "TAKES_SCALE", True)
    assert "positive" in refuses(q, q, q, windows, -0.3, None)


def test_int32_places_are_refused_beyond_their_range():
    windows = Windows.of_boundaries(offsets_of([4]))
    windows.cuts.__dict__["n_places"] = (4, 2**31)
    q = torch.randn(4, 2, 16).half()
    assert "int32" in varlen.refusal(q, q, q, windows, None)


def test_packed_windows_are_made_once():
    windows = shared_keys()
    assert windows.packed is windows.packed
    assert windows.packed.cu_queries.tolist() == [0, 3, 5, 23]
    assert windows.packed.cu_keys.tolist() == [0, 6, 46, 49]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash_attn", "torch_varlen", "triton"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("case", CASES)
def test_package_on_gpu(backend, dtype, width, case):
    """Against the reference in float64 on the same rounded inputs: 4 units in the last place of the largest value."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    module = dispatch.load(backend)
    if isinstance(module, str):
        pytest.skip(f"{backend}: {module}")
    torch.manual_seed(0)
    with torch.device("cuda"):
        windows = CASES[case]()
        sizes = (windows.n_queries, windows.n_keys, windows.n_keys)
        inputs = [torch.randn(n, 2, width, dtype=dtype, requires_grad=True) for n in sizes]
        cotangent = torch.randn(windows.n_queries, 2, width, dtype=dtype)
    with dispatch.use_backend(backend):
        out = windowed_attention(*inputs, windows, width**-0.5)
    found = [out, *torch.autograd.grad(out, inputs, cotangent)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out = attention_reference(*exact, windows, width**-0.5, None)
    tolerance = 4 * torch.finfo(dtype).eps
    for a, b in zip(found, [out, *torch.autograd.grad(out, exact, cotangent.double())], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))
