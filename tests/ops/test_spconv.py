"""The spconv adapter: its tables against loops over the pairs, and its calls against a stand-in of spconv's function.

The stand-in computes what spconv's kernels compute (spconv 2.3.8 and cumm 0.7.11: pytorch/ops.py, conv/kernel.py), tile
by tile of consecutive sorted masks, so that a wrong mask, order, table, layout or flag changes its result. Where spconv
is installed its own pair lists are compared, and where there is a GPU as well, results and gradients.
"""

import gc
import importlib
import sys
import weakref
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nufm.ops import dispatch
from nufm.ops.kernel_map import KernelMap, kernel_map, strided_map, submanifold_map
from nufm.ops.neighbors import neighbor_map
from nufm.ops.sparse_conv import differentiable, sparse_conv

ADAPTER = "nufm.ops.backends.spconv"
TILE = 4  # rows per tile of the stand-in
CALLS = []  # of the stand-in: (partners of the forward pass, partners of the backward pass or None)


def tiles(mask, order):
    """(taps that any row of the tile has, rows) of each tile: masks are read in place, rows through the order."""
    bits = mask.flatten().tolist()
    for start in range(0, len(bits), TILE):
        union = 0
        for word in bits[start : start + TILE]:
            union |= word & 0xFFFFFFFF
        yield [t for t in range(32) if union >> t & 1], order[start : start + TILE].long()


def gathered(values, partner, rows, tap):
    """The rows of ``values`` that ``rows`` have in ``tap``, zeros where there is none."""
    index = partner[tap, rows].long()
    return torch.where(index[:, None] >= 0, values[index.clamp(min=0)], values.new_zeros(()))


class ImplicitGemm(Function):
    """Arguments and results of spconv.pytorch.functional.SparseImplicitGemmFunction, ``is_subm`` False."""

    @staticmethod
    def forward(ctx, feat, weight, fwd, bwd, mask_fwd, mask_bwd, order_fwd, order_bwd, rows, masks, train, subm,
                timer, fp32_accum, bias=None):  # fmt: skip
        assert not subm and bias is None and timer.enable is False and fp32_accum is True
        assert feat.is_contiguous() and weight.is_contiguous() and fwd.is_contiguous() and bwd.is_contiguous()
        assert feat.dtype == weight.dtype and weight.shape[2] == feat.shape[1]
        assert [(m.dtype, m.shape, m.item()) for m in masks] == [(np.uint32, (1,), 2**32 - 1)]
        directions = [(fwd, mask_fwd, order_fwd, rows), (bwd, mask_bwd, order_bwd, len(feat))]
        assert train or (bwd.numel() == 0 and mask_bwd == [] and order_bwd == [])
        for partner, mask, order, length in directions[: 2 if train else 1]:
            assert partner.dtype == mask[0].dtype == order[0].dtype == torch.int32
            assert partner.shape == (weight.shape[1], length) and mask[0].shape == (length, 1)
            assert order[0].shape == (length,) and len(mask) == len(order) == 1
        CALLS.append((fwd, bwd if train else None))
        out = feat.new_zeros(rows, len(weight))
        unions = list(tiles(mask_fwd[0], order_fwd[0]))
        for taps, at in unions:
            for t in taps:
                out[at] += gathered(feat, fwd, at, t) @ weight[:, t].t()
        ctx.save_for_backward(feat, weight, fwd, bwd)
        ctx.unions = unions if train else None
        ctx.mask_bwd, ctx.order_bwd = mask_bwd, order_bwd
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        assert ctx.unions is not None, "you must do bwd with net.train()"
        feat, weight, fwd, bwd = ctx.saved_tensors
        to_feat, to_weight = torch.zeros_like(feat), torch.zeros_like(weight)
        for taps, at in tiles(ctx.mask_bwd[0], ctx.order_bwd[0]):
            for t in taps:
                to_feat[at] += gathered(grad, bwd, at, t) @ weight[:, t]
        for taps, at in ctx.unions:
            for t in taps:
                to_weight[:, t] += grad[at].t() @ gathered(feat, fwd, at, t)
        return to_feat, to_weight, *[None] * 13


@pytest.fixture
def adapter(monkeypatch):
    """The adapter, imported on top of the stand-in."""
    contents = {
        "spconv": {},
        "spconv.cppconstants": {"CPU_ONLY_BUILD": False},
        "spconv.constants": {"SPCONV_ALLOW_TF32": False},
        "spconv.pytorch": {},
        "spconv.pytorch.functional": {"implicit_gemm": ImplicitGemm.apply},
        "spconv.tools": {"CUDAKernelTimer": lambda enable: SimpleNamespace(enable=enable)},
    }
    with monkeypatch.context() as patch:
        for name, values in contents.items():
            module = ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, ADAPTER, raising=False)
        CALLS.clear()
        yield importlib.import_module(ADAPTER)
        sys.modules.pop(ADAPTER, None)
        vars(sys.modules["nufm.ops.backends"]).pop("spconv", None)


def one_sided(pairs, seed=0):
    """A submanifold map without some of its pairs: i reads j does not imply that j reads i."""
    keep = torch.rand(len(pairs.source), generator=torch.Generator().manual_seed(seed)) < 0.6
    counts = torch.bincount(pairs.tap[keep], minlength=pairs.taps)
    n = pairs.n_source
    return KernelMap(pairs.source[keep], pairs.target[keep], tuple(counts.tolist()), n, n, pairs.identity)


def maps(random_events):
    grid, offsets = random_events([60, 0, 1, 40], extent=5)
    return {
        "submanifold 3": submanifold_map(grid, offsets),
        "submanifold 1": submanifold_map(grid, offsets, 1),
        "one-sided": one_sided(submanifold_map(grid, offsets)),
        "strided 2": strided_map(grid, offsets).map,
        "strided 3, stride 2": strided_map(grid, offsets, 3, 2).map,
        "32 taps": strided_map(grid, offsets, (2, 4, 4)).map,
        "up 2": strided_map(grid, offsets).map.transposed,
        "up 3, stride 2": strided_map(grid, offsets, 3, 2).map.transposed,
        "table of neighbours": kernel_map(neighbor_map(grid, offsets)),
    }


NAMES = ("submanifold 3", "submanifold 1", "one-sided", "strided 2", "strided 3, stride 2", "32 taps", "up 2",
         "up 3, stride 2", "table of neighbours")  # fmt: skip


def triples(pairs):
    """{(row read, row written, tap)}"""
    found = set(zip(pairs.source.tolist(), pairs.target.tolist(), pairs.tap.tolist(), strict=True))
    if pairs.identity is not None:
        found |= {(i, i, pairs.identity) for i in range(pairs.n_target)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_tables_against_loops_over_the_pairs(adapter, random_events, name):
    pairs = maps(random_events)[name]
    found = adapter.tables(pairs)
    partner = [[-1] * pairs.n_target for _ in range(pairs.taps)]
    masks = [0] * pairs.n_target
    for source, target, tap in triples(pairs):
        partner[tap][target] = source
        masks[target] |= 1 << tap
    assert found.partner.tolist() == partner
    assert sorted(found.order.tolist()) == list(range(pairs.n_target))
    # Row of each mask; a mask is the uint32 of the same bits.
    assert [word & 0xFFFFFFFF for word in found.mask.flatten().tolist()] == [masks[i] for i in found.order.tolist()]
    assert (found.mask.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("biased", [True, False])
def test_results_and_gradients(adapter, random_events, name, biased):
    pairs = maps(random_events)[name]
    generator = torch.Generator().manual_seed(1)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    feat, weight, bias = leaf(pairs.n_source, 5), leaf(7, pairs.taps, 5), leaf(7) if biased else None
    leaves = [x for x in (feat, weight, bias) if x is not None]
    out, expected = adapter.run(feat, weight, bias, pairs), differentiable(feat, weight, bias, pairs)
    assert len(CALLS) == 1
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad(out, leaves, cotangent)
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_layouts_that_are_not_contiguous(adapter, random_events):
    """Weights of a model may be a view; spconv reads memory as if it were (Co, K, Ci) and (N, Ci) without gaps."""
    pairs = maps(random_events)["strided 3, stride 2"]
    feat = torch.randn(4, pairs.n_source, dtype=torch.float64).t().requires_grad_()
    weight = torch.randn(4, 27, 6, dtype=torch.float64).transpose(0, 2).requires_grad_()
    found, wanted = adapter.run(feat, weight, None, pairs), differentiable(feat, weight, None, pairs)
    torch.testing.assert_close(found, wanted)
    found, wanted = (torch.autograd.grad(x.square().sum(), (feat, weight)) for x in (found, wanted))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_gradient_of_one_input_only(adapter, random_events, needs):
    pairs = maps(random_events)["one-sided"]
    feat, weight = torch.randn(pairs.n_source, 3), torch.randn(4, 27, 3)
    leaf = [x.requires_grad_() for x, needed in zip((feat, weight), needs, strict=True) if needed]
    (found,) = torch.autograd.grad(adapter.run(feat, weight, None, pairs).square().sum(), leaf)
    (wanted,) = torch.autograd.grad(differentiable(feat, weight, None, pairs).square().sum(), leaf)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_tables_are_made_once_for_all_layers(adapter, random_events):
    pairs = maps(random_events)["strided 2"]
    x = torch.randn(pairs.n_source, 3, requires_grad=True)
    for channels in (4, 6):
        adapter.run(x, torch.randn(channels, 8, 3), None, pairs)
    (first, first_back), (second, second_back) = CALLS
    assert first.data_ptr() == second.data_ptr() and first_back.data_ptr() == second_back.data_ptr()
    # The way up reads what the way down derived for its gradient.
    adapter.run(torch.randn(pairs.n_target, 3), torch.randn(4, 8, 3), None, pairs.transposed)
    assert CALLS[2][0].data_ptr() == first_back.data_ptr()


def test_without_gradients_no_tables_of_gradients(adapter, random_events):
    pairs = maps(random_events)["submanifold 3"]
    feat, weight = torch.randn(pairs.n_source, 3), torch.randn(4, 27, 3, requires_grad=True)
    with torch.no_grad():
        out = adapter.run(feat, weight, None, pairs)
    assert CALLS[0][1] is None and "transposed" not in vars(pairs)
    torch.testing.assert_close(out, differentiable(feat, weight, None, pairs).detach(), rtol=1e-4, atol=1e-4)


def test_tables_are_freed_with_the_batch(adapter, random_events):
    pairs = maps(random_events)["submanifold 3"]
    adapter.run(torch.randn(pairs.n_source, 3, requires_grad=True), torch.randn(4, 27, 3), None, pairs).sum().backward()
    held = [weakref.ref(pairs.once(adapter.tables).partner), weakref.ref(pairs.transposed.once(adapter.tables).mask)]
    CALLS.clear()
    gc.disable()
    try:
        del pairs
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("counts", [[], [0], [0, 0], [1], [1, 0, 1]])
def test_hardly_any_points(adapter, random_events, counts):
    grid, offsets = random_events(counts, extent=3)
    down = strided_map(grid, offsets).map
    for pairs in (submanifold_map(grid, offsets), down, down.transposed):
        feat = torch.randn(pairs.n_source, 4, requires_grad=True)
        weight = torch.randn(6, pairs.taps, 4, requires_grad=True)
        bias = torch.randn(6, requires_grad=True)
        out, expected = adapter.run(feat, weight, bias, pairs), differentiable(feat, weight, bias, pairs)
        torch.testing.assert_close(out, expected)
        found = torch.autograd.grad(out.square().sum(), (feat, weight, bias))
        for a, b in zip(found, torch.autograd.grad(expected.square().sum(), (feat, weight, bias)), strict=True):
            torch.testing.assert_close(a, b)
    assert len(CALLS) == (3 if sum(counts) else 0)  # empty tensors never reach spconv


def test_a_nan_stays_where_it_is_read(adapter):
    """Rows without a partner must not read row -1 or row 0 by accident."""
    grid, offsets = torch.tensor([[0, 0, 0], [5, 5, 5], [5, 5, 6]]), torch.tensor([0, 3])
    feat = torch.ones(3, 2)
    feat[0] = torch.nan
    out = adapter.run(feat, torch.ones(4, 27, 2), None, submanifold_map(grid, offsets))
    assert out.isnan().all(1).tolist() == [True, False, False]
    assert out[1:].eq(4).all()


def on_gpu(dtype=torch.float32, requires_grad=False):
    """As much of a CUDA tensor as the conditions look at."""
    size = torch.empty(0, dtype=dtype).element_size()
    return SimpleNamespace(
        device=torch.device("cuda"), dtype=dtype, requires_grad=requires_grad, element_size=lambda: size
    )


def test_refusals(adapter, random_events):
    grid, offsets = random_events([50], extent=4)
    pairs, weight = submanifold_map(grid, offsets), torch.zeros(16, 27, 16)
    assert adapter.refuses(on_gpu(), weight, None, pairs) is None
    assert adapter.refuses(on_gpu(torch.float16, requires_grad=True), weight, None, pairs) is None
    assert "CPU" in adapter.refuses(torch.zeros(50, 16), weight, None, pairs)
    for dtype in (torch.bfloat16, torch.float64):
        assert str(dtype) in adapter.refuses(on_gpu(dtype), weight, None, pairs)
    five = submanifold_map(grid, offsets, 5)
    assert "125 taps" in adapter.refuses(on_gpu(), torch.zeros(16, 125, 16), None, five)
    patch = strided_map(grid, offsets, (2, 4, 4)).map
    assert adapter.refuses(on_gpu(), torch.zeros(16, 32, 16), None, patch) is None
    # Byte offsets of 32 bits: 2^25 rows of 16 channels are 2 GiB in float32 and half of it in float16.
    many = SimpleNamespace(taps=27, n_source=2**25, n_target=1, table=0)
    assert "bytes" in adapter.refuses(on_gpu(), weight.detach(), None, many)
    assert adapter.refuses(on_gpu(torch.float16), weight.detach(), None, many) is None
    torch.use_deterministic_algorithms(True)
    try:
        assert "deterministic" in adapter.refuses(on_gpu(), weight, None, pairs)
    finally:
        torch.use_deterministic_algorithms(False)


def test_points_that_share_a_cell(adapter, random_events):
    grid, offsets = random_events([50], extent=2, unique=False)
    down = strided_map(grid, offsets, 1, 1).map
    assert "share a cell" in adapter.refuses(on_gpu(), torch.zeros(16, 1, 16), None, down)
    # The way up reads one row per tap, but its gradient sums several.
    up = down.transposed
    assert adapter.refuses(on_gpu(), torch.zeros(16, 1, 16), None, up) is None
    assert "gradient" in adapter.refuses(on_gpu(requires_grad=True), torch.zeros(16, 1, 16), None, up)
    with torch.no_grad():
        assert adapter.refuses(on_gpu(requires_grad=True), torch.zeros(16, 1, 16), None, up) is None
    feat, weight = torch.randn(up.n_source, 3), torch.randn(4, 1, 3)
    torch.testing.assert_close(adapter.run(feat, weight, None, up), differentiable(feat, weight, None, up))


def test_where_nothing_can_run(adapter, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA GPU" in adapter.unavailable()
    monkeypatch.setattr(adapter, "CPU_ONLY_BUILD", True)
    assert "build for CPUs" in adapter.unavailable()


def test_on_a_cpu_a_forced_spconv_is_an_error_and_auto_goes_on(random_events):
    """With no package, its CPU build, no GPU, or tensors on the CPU."""
    grid, offsets = random_events([20], extent=4)
    feat, weight = torch.randn(20, 4), torch.randn(6, 3, 3, 3, 4)
    pairs = submanifold_map(grid, offsets)
    with dispatch.use_backend("spconv"), pytest.raises(dispatch.BackendError, match=r"spconv: .*(pip install|CPU|GPU)"):
        sparse_conv(feat, pairs, weight)
    with dispatch.use_backend("spconv,torch"):
        found = sparse_conv(feat, pairs, weight)
    assert torch.equal(found, differentiable(feat, weight.flatten(1, 3), None, pairs))


# What spconv 2.3.8 returned (get_indice_pairs, Native, CPU build): (row read, result, tap), strided results by their
# coordinates. Of a submanifold convolution it lists half of the taps: (i, j, t) stands for (j, i, 26 - t) as well.


def test_taps_are_spconvs_submanifold():
    grid, offsets = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [2, 2, 2]]), torch.tensor([0, 4])
    listed = {(0, 2, 4), (1, 2, 5), (0, 1, 12)}
    mirrored = {(j, i, 26 - t) for i, j, t in listed}
    assert triples(submanifold_map(grid, offsets)) == listed | mirrored | {(i, i, 13) for i in range(4)}


def test_taps_are_spconvs_strided():
    """Kernel 3, stride 2, padding 1 adds the cells (1, 0, 0) and (0, 0, 1), which hold no point: we leave them out."""
    listed = {
        (2, (1, 0, 0), 4), (1, (0, 0, 1), 12), (0, (0, 0, 0), 13), (3, (1, 1, 1), 13), (1, (0, 0, 0), 14),
        (2, (0, 0, 0), 22),
    }  # fmt: skip
    grid, offsets = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [2, 2, 2]]), torch.tensor([0, 4])
    down = strided_map(grid, offsets, 3, 2)
    cells = [tuple(cell) for cell in down.grid.tolist()]
    assert {(i, cells[j], t) for i, j, t in triples(down.map)} == {x for x in listed if x[1] in cells}
    assert cells == [(0, 0, 0), (1, 1, 1)]

    listed = {(0, (0, 0, 0), 0), (3, (1, 1, 1), 0), (1, (0, 0, 0), 1), (2, (0, 1, 1), 5)}
    down = strided_map(torch.tensor([[0, 0, 0], [0, 0, 1], [1, 2, 3], [2, 2, 2]]), offsets, 2)
    cells = [tuple(cell) for cell in down.grid.tolist()]
    assert {(i, cells[j], t) for i, j, t in triples(down.map)} == listed


def packed_indices(grid, offsets):
    """int32 (N, 4) of spconv: event, then the grid columns."""
    event = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
    return torch.cat([event[:, None], grid], 1).int()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (2, 2), (3, 2), (4, 2), (3, 3)])
def test_pairs_against_an_installed_spconv(random_events, kernel, stride):
    """On the CPU, by any build: the pair lists of its Native algorithm."""
    pytest.importorskip("spconv.pytorch")
    from spconv.core import ConvAlgo
    from spconv.pytorch.ops import get_indice_pairs

    grid, offsets = random_events([60, 40], extent=6)
    padding = (kernel - 1) // 2 if kernel > stride else 0
    cells, lists, counts = get_indice_pairs(
        packed_indices(grid, offsets), 2, [6] * 3, ConvAlgo.Native, [kernel] * 3, [stride] * 3, [padding] * 3,
        [1] * 3, [0] * 3, stride == 1,
    )  # fmt: skip
    listed = {
        (lists[0, t, i].item(), lists[1, t, i].item(), t) for t in range(kernel**3) for i in range(int(counts[t]))
    }
    if stride == 1:
        last = kernel**3 - 1
        listed |= {(j, i, last - t) for i, j, t in listed} | {(i, i, last // 2) for i in range(len(grid))}
        assert triples(submanifold_map(grid, offsets, kernel)) == listed
        return
    down = strided_map(grid, offsets, kernel, stride)
    ours = {tuple(cell): i for i, cell in enumerate(packed_indices(down.grid, down.offsets).tolist())}
    rows = [ours.get(tuple(cell)) for cell in cells.tolist()]
    assert len(ours) == sum(row is not None for row in rows)
    assert triples(down.map) == {(i, rows[j], t) for i, j, t in listed if rows[j] is not None}


@pytest.fixture
def installed():
    module = dispatch.load("spconv")
    reason = module if isinstance(module, str) else module.unavailable()
    if reason:
        pytest.skip(reason)
    return module


# float32: sums of up to 27 x 32 products in another order. float16: spconv may accumulate in float16.
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.float16: (2e-2, 2e-2)}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_reference_on_a_gpu(installed, random_events, dtype, name):
    made = maps(random_events)[name]
    pairs = KernelMap(made.source.cuda(), made.target.cuda(), made.counts, made.n_source, made.n_target, made.identity)
    generator = torch.Generator().manual_seed(2)
    rtol, atol = TOLERANCE[dtype]

    def drawn(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to("cuda", dtype)

    for ci, co in ((32, 16), (1, 16), (5, 7)):
        # Results of order one.
        values = drawn(made.n_source, ci), drawn(co, made.taps, ci, scale=(made.taps * ci) ** -0.5), drawn(co)
        leaves = [x.clone().requires_grad_() for x in values]
        exact = [x.double().requires_grad_() for x in values]
        assert installed.refuses(*leaves, pairs) is None
        out, expected = installed.run(*leaves, pairs), differentiable(*exact, pairs)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=atol)
        cotangent = drawn(*out.shape)
        found = torch.autograd.grad(out, leaves, cotangent)
        wanted = torch.autograd.grad(expected, exact, cotangent.double())
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol * max(b.abs().max().item(), 1.0))


@pytest.mark.gpu
def test_the_public_function_runs_spconv(installed, random_events):
    grid, offsets = random_events([200, 0, 100], extent=8)
    pairs = submanifold_map(grid.cuda(), offsets.cuda())
    feat, weight = torch.randn(300, 16, device="cuda"), torch.randn(32, 3, 3, 3, 16, device="cuda")
    with dispatch.use_backend("spconv"):
        out = sparse_conv(feat, pairs, weight)
        with torch.autocast("cuda", dtype=torch.float16):
            assert sparse_conv(feat, pairs, weight).dtype == torch.float32
    assert "spconv" in dispatch.used()["sparse_conv"]
    with dispatch.use_backend("torch"):
        torch.testing.assert_close(out, sparse_conv(feat, pairs, weight), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 2)])
def test_tables_against_spconvs_own(installed, random_events, kernel, stride):
    """Partners and masks of its own construction; its rows of a strided map are brought into our order."""
    from spconv.core import ConvAlgo
    from spconv.pytorch.ops import get_indice_pairs_implicit_gemm

    grid, offsets = random_events([300, 200], extent=10)
    result = get_indice_pairs_implicit_gemm(
        packed_indices(grid, offsets).cuda(), 2, [10] * 3, ConvAlgo.MaskImplicitGemm, [kernel] * 3, [stride] * 3,
        [kernel // 2 if stride == 1 else 0] * 3, [1] * 3, [0] * 3, stride == 1,
    )  # fmt: skip
    cells, forward, backward, mask, order, masks = (result[i] for i in (0, 2, 3, 4, 6, 8))
    assert [(m.dtype, m.tolist()) for m in masks] == [(np.uint32, [2**32 - 1])]
    if stride == 1:
        pairs, row = submanifold_map(grid.cuda(), offsets.cuda()), torch.arange(len(grid), device="cuda")
    else:
        down = strided_map(grid.cuda(), offsets.cuda(), kernel, stride)
        pairs = down.map
        ours = {tuple(c): i for i, c in enumerate(packed_indices(down.grid.cpu(), down.offsets.cpu()).tolist())}
        row = torch.tensor([ours[tuple(c)] for c in cells.tolist()], device="cuda")
    found, back = installed.tables(pairs), installed.tables(pairs.transposed)
    assert torch.equal(found.partner[:, row], forward)
    assert torch.equal(back.partner, torch.where(backward < 0, backward, row.int()[backward.clamp(min=0).long()]))
    assert torch.equal(found.mask, mask[0].view_as(found.mask))
    by_row = torch.empty_like(found.mask)
    by_row[found.order.long()] = found.mask
    assert torch.equal(by_row[row][order[0].long()], mask[0].view_as(found.mask))
