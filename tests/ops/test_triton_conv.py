"""The Triton convolution against the torch reference in float64; interpreted on a CPU, compiled on a GPU."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")

from nufm.ops.backends.triton import conv, conv_plan
from nufm.ops.dispatch import BackendError, use_backend, used
from nufm.ops.kernel_map import KernelMap, strided_map, submanifold_map
from nufm.ops.sparse_conv import differentiable, sparse_conv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Largest error as a share of the largest value. The reference gets the rounded inputs and sums are made in float32:
# what is left is the order of the sum, and the rounding of the result to 11 or 8 bits.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}

MAPS = {
    "submanifold 3": lambda grid, offsets: submanifold_map(grid, offsets),
    "submanifold 5": lambda grid, offsets: submanifold_map(grid, offsets, 5),
    "strided 2": lambda grid, offsets: strided_map(grid, offsets, 2).map,
    "strided 2 up": lambda grid, offsets: strided_map(grid, offsets, 2).map.transposed,
    "kernel 3 stride 2": lambda grid, offsets: strided_map(grid, offsets, 3, 2).map,
    "patch 4x4x2": lambda grid, offsets: strided_map(grid, offsets, (4, 4, 2)).map,
    "patch 4x5x4": lambda grid, offsets: strided_map(grid, offsets, (4, 5, 4)).map,
    "patch 4x5x4 up": lambda grid, offsets: strided_map(grid, offsets, (4, 5, 4)).map.transposed,
}


@pytest.fixture(autouse=True)
def _full_precision():
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def make_map(random_events):
    def make(kind, counts=(22, 0, 9), unique=True, extent=5):
        grid, offsets = random_events(counts, extent if unique else 3, unique=unique)
        return MAPS[kind](grid.to(DEVICE), offsets.to(DEVICE))

    return make


def tensors(pairs, channels_in, channels_out, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (pairs.n_source, channels_in), (channels_out, pairs.taps, channels_in), (channels_out,)
    feat, weight, bias = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)
    cotangent = torch.randn(pairs.n_target, channels_out, generator=generator).to(DEVICE, dtype)
    return (feat, weight, bias), cotangent


def run(inputs, pairs, backend="triton"):
    feat, weight, bias = inputs
    with use_backend(backend):
        return sparse_conv(feat, pairs, weight.unflatten(1, pairs.edges or (pairs.taps, 1, 1)), bias)


def leaves(inputs, dtype=None):
    return tuple(x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs)


def column_by_row(a, b, dtype):
    out = np.zeros((len(a), b.shape[1]), dtype)
    for k in range(a.shape[1]):
        out += a[:, k : k + 1] * b[k]
    return out


def assert_near(found, wanted, dtype, factor=1.0):
    assert found.dtype == dtype and found.shape == wanted.shape
    if found.numel():
        error, scale = (found.double() - wanted).abs().max(), wanted.abs().max()
        assert error <= factor * TOLERANCE[dtype] * scale + 1e-12, f"{error} of {scale}"


def check(pairs, channels_in, channels_out, dtype=torch.float32):
    """Forward and the three gradients."""
    inputs, cotangent = tensors(pairs, channels_in, channels_out, dtype)
    mine, theirs = leaves(inputs), leaves(inputs, torch.float64)
    out, wanted = run(mine, pairs), differentiable(*theirs, pairs)
    assert_near(out, wanted, dtype)
    found = torch.autograd.grad(out, mine, cotangent)
    for a, b in zip(found, torch.autograd.grad(wanted, theirs, cotangent.double()), strict=True):
        assert_near(a, b, dtype)


@pytest.mark.parametrize("unique", [True, False], ids=["", "cells shared"])
@pytest.mark.parametrize("kind", MAPS)
def test_every_map(make_map, kind, unique):
    many_taps = "submanifold 5" in kind or "4x5x4" in kind  # more than a mask has bits
    counts, channels = ((6, 0, 3), (3, 16)) if many_taps else ((14, 0, 5), (16, 20))
    check(make_map(kind, counts, unique), *channels)


@pytest.mark.parametrize("channels", [(1, 16), (48, 48), (33, 1), (3, 70)], ids=str)
def test_every_width(make_map, channels):
    check(make_map("strided 2", counts=(9, 0, 4), extent=3), *channels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["submanifold 3", "kernel 3 stride 2", "patch 4x5x4"])
def test_half_precision(make_map, kind, dtype):
    check(make_map(kind, counts=(9, 0, 4)), 1 if "patch" in kind else 48, 16, dtype)


@pytest.mark.parametrize("counts", [(), (0,), (0, 0), (1,), (0, 1, 0, 1)], ids=str)
@pytest.mark.parametrize("kind", ["submanifold 3", "strided 2", "strided 2 up", "patch 4x5x4"])
def test_hardly_any_points(make_map, kind, counts):
    check(make_map(kind, counts), 1 if "patch" in kind else 5, 7)


def test_derivatives_of_second_order(make_map):
    for kind in ("submanifold 3", "strided 2"):
        pairs = make_map(kind, counts=(10, 0, 3), extent=3)
        inputs, cotangent = tensors(pairs, 5, 6)
        (to_feat, to_weight, _), _ = tensors(pairs, 5, 6, seed=1)
        results = []
        for make, dtype in ((run, torch.float32), (differentiable, torch.float64)):
            feat, weight, bias, grad = leaves((*inputs, cotangent), dtype)
            out = make((feat, weight, bias), pairs) if make is run else make(feat, weight, bias, pairs)
            first = torch.autograd.grad(out, (feat, weight), grad, create_graph=True)
            total = (first[0] * to_feat).sum() + (first[1] * to_weight).sum()
            results.append(torch.autograd.grad(total, (feat, weight, grad)))
        for found, wanted in zip(*results, strict=True):
            assert_near(found, wanted, torch.float32, factor=2)


@pytest.mark.parametrize("missing", ["feat", "weight", "bias", "no bias"])
def test_gradients_that_are_not_asked_for(make_map, missing):
    pairs = make_map("submanifold 3", counts=(8,), extent=3)
    inputs, cotangent = tensors(pairs, 4, 5)
    inputs = dict(zip(("feat", "weight", "bias"), inputs, strict=True))
    asked = {name: x.requires_grad_(name != missing) for name, x in inputs.items() if missing != f"no {name}"}
    args = asked["feat"], asked["weight"], asked.get("bias")
    needed = [x for x in asked.values() if x.requires_grad]
    found = torch.autograd.grad(run(args, pairs), needed, cotangent)
    wanted = torch.autograd.grad(differentiable(*args, pairs), needed, cotangent)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_rows_and_weights_in_any_memory_order(make_map):
    pairs = make_map("strided 2")
    (feat, weight, bias), _ = tensors(pairs, 16, 20)
    wanted = run((feat, weight, bias), pairs)
    assert torch.equal(run((feat.t().contiguous().t(), weight, bias), pairs), wanted)
    assert torch.equal(run((feat, weight.permute(2, 1, 0).contiguous().permute(2, 1, 0), bias), pairs), wanted)
    # The gradient of a sum is one number in memory.
    mine = leaves((feat, weight, bias))
    sums = torch.autograd.grad(run(mine, pairs).sum(), mine)
    ones = torch.autograd.grad(run(mine, pairs), mine, torch.ones_like(wanted))
    assert all(torch.equal(a, b) for a, b in zip(sums, ones, strict=True))


@pytest.mark.parametrize("kind", ["submanifold 3", "patch 4x4x2"])
def test_repeatable(make_map, kind):
    """Bit for bit, from the map on."""
    inputs, cotangent = tensors(make_map(kind, unique=False), 5, 20)
    results = []
    for _ in range(2):
        mine = leaves(inputs)
        out = run(mine, make_map(kind, unique=False))
        results.append((out, *torch.autograd.grad(out, mine, cotangent)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["submanifold 3", "strided 2", "patch 4x5x4"])
def test_independent_of_batch_mates(random_events, monkeypatch, kind):
    """Bit for bit, though the rows of the event are in other tiles and places then."""
    if DEVICE == "cpu":
        # The BLAS that the interpreter calls rounds a row by its place in the matrix; tensor cores do not.
        monkeypatch.setattr(np, "matmul", column_by_row)
    # In the last event points share cells, so that the map of all has no mirror image; that of one alone has.
    sizes = ((70, 6, True), (20, 6, True), (9, 2, False))
    grids = [random_events([n], extent, seed=n, unique=unique)[0].to(DEVICE) for n, extent, unique in sizes]
    maps = [MAPS[kind](grid, torch.tensor([0, len(grid)], device=DEVICE)) for grid in grids]
    together = MAPS[kind](torch.cat(grids), torch.tensor([0, 70, 90, 99], device=DEVICE))
    (feat, weight, bias), cotangent = tensors(together, *((1, 24) if "patch" in kind else (16, 24)))

    def forward_backward(pairs, x, cotangent):
        x = x.detach().requires_grad_()
        out = run((x, weight, bias), pairs)
        return out, *torch.autograd.grad(out, x, cotangent)

    written = slice(maps[0].n_target, maps[0].n_target + maps[1].n_target)
    out, to_feat = forward_backward(together, feat, cotangent)
    alone, to_feat_alone = forward_backward(maps[1], feat[70:90], cotangent[written])
    assert torch.equal(alone, out[written])
    assert torch.equal(to_feat_alone, to_feat[70:90])


def test_nan_stays_with_those_who_read_it(make_map):
    pairs = make_map("submanifold 3", counts=(30, 30))
    (feat, weight, bias), _ = tensors(pairs, 16, 16)
    feat[3] = float("nan")
    assert torch.equal(run((feat, weight, bias), pairs).isnan(), differentiable(feat, weight, bias, pairs).isnan())


# ---- plans ----


def pairs_of(plan: conv_plan.TilePlan, taps: int, n_target: int):
    """(read, written, tap) of all that the kernel would multiply."""
    entry, lane = (plan.index >= 0).nonzero(as_tuple=True)
    tile = torch.searchsorted(plan.first, entry, right=True) - 1
    row = plan.order[tile * plan.rows + lane]
    if plan.extra is not None:
        row = torch.cat([torch.arange(n_target, device=row.device), plan.extra.index])[row]
    tap = plan.tap[entry].long()
    tap = taps - 1 - tap if plan.mirrored else tap
    return sorted(zip(plan.index[entry, lane].tolist(), row.tolist(), tap.tolist(), strict=True))


@pytest.mark.parametrize("long", [False, True], ids=["64 rows", "128 rows"])
@pytest.mark.parametrize("unique", [True, False], ids=["", "cells shared"])
@pytest.mark.parametrize("kind", MAPS)
def test_tiles_hold_each_pair_once(make_map, monkeypatch, kind, unique, long):
    monkeypatch.setattr(conv_plan, "LONG_TILE_FROM", 0 if long else 2**14)
    pairs = make_map(kind, counts=(60, 0, 40, 55) if unique else (60, 0, 40), unique=unique)
    plan = conv_plan.tile_plan(pairs)
    for side, tiles in ((pairs, plan), (pairs.transposed, conv_plan.tile_plan(pairs.transposed, plan))):
        listed = list(zip(side.source.tolist(), side.target.tolist(), side.tap.tolist(), strict=True))
        if side.identity is not None:
            listed += [(i, i, side.identity) for i in range(side.n_target)]
        assert pairs_of(tiles, side.taps, side.n_target) == sorted(listed)
        assert sorted(tiles.order.tolist()) == list(range(len(tiles.order)))
        lengths = tiles.first.diff()[tiles.tiles.long()]
        assert (lengths.diff() <= 0).all() and sorted(tiles.tiles.tolist()) == list(range(len(tiles.tiles)))
        same_tile = torch.repeat_interleave(tiles.first.diff()).diff() == 0
        assert (tiles.tap.diff()[same_tile] > 0).all(), "the order of a sum is that of the taps"
    shared = conv_plan.tile_plan(pairs.transposed).index is plan.index
    assert shared == (unique and "submanifold" in kind)


def test_a_map_that_only_looks_symmetric_gets_its_own_plan():
    """Opposite taps have equally many pairs, but not the same ones."""
    source, target = torch.tensor([0, 1], device=DEVICE), torch.tensor([1, 2], device=DEVICE)
    pairs = KernelMap(source, target, (1, 0, 1), 3, 3, identity=1)
    plan = conv_plan.tile_plan(pairs)
    assert conv_plan.tile_plan(pairs.transposed, plan).index is not plan.index
    check(pairs, 4, 4)


def test_long_tiles(make_map, monkeypatch):
    monkeypatch.setattr(conv_plan, "LONG_TILE_FROM", 0)
    check(make_map("submanifold 3", counts=(70, 62), extent=9), 16, 16)


def test_rows_with_similar_taps_share_tiles(random_events):
    """Tracks along the axes: at most the taps of one direction, where neighbours in the packed order use all."""
    lines = []
    for start in range(60):
        line = torch.full((30, 3), 4 * start)
        line[:, start % 3] = torch.arange(30) + 4 * start
        lines.append(line)
    grid = torch.cat(lines)[torch.randperm(1800, generator=torch.Generator().manual_seed(0))]
    pairs = submanifold_map(grid, torch.tensor([0, len(grid)]))
    plan = conv_plan.tile_plan(pairs)
    # 3 x 10 tiles of 64 rows; those of the middles use 3 taps, and a few hold the ends or two directions.
    assert len(plan.tap) <= 3.6 * len(plan.tiles)


@pytest.mark.parametrize("most", [1, 8, 2**20])
def test_weight_gradient_of_any_pieces(make_map, monkeypatch, most):
    pairs = make_map("submanifold 3", counts=(9, 2), extent=3)
    monkeypatch.setattr(conv, "_cut", lambda pairs, *_: conv_plan.pieces(pairs, most))
    check(pairs, 20, 17)
    made = conv_plan.pieces(pairs, most)
    assert made.single == (most > 9)
    assert ((made.end - made.begin) <= most).all() and set(made.tap.tolist()) == set(range(27))


def test_pieces_fit_into_the_workspace():
    """Wide layers and many taps: no more pieces than the workspace holds, or none at all."""
    source = torch.arange(20_000, device=DEVICE)
    pairs = KernelMap(source, source, (20_000 // 27,) * 26 + (20_000 - 26 * (20_000 // 27),), 20_000, 20_000)
    for size in (48 * 48, 512 * 512, 2048 * 2048):
        cut = conv._cut(pairs, max(1, size // 2**14), size, 64)
        assert cut.single or len(cut.tap) * size * 4 <= conv.WORKSPACE_BYTES


@pytest.mark.parametrize(("channels", "columns", "depth"), [(1, 16, 16), (48, 64, 64), (96, 128, 32), (192, 64, 64),
                                                            (384, 128, 64), (512, 128, 64)])  # fmt: skip
def test_blocks_waste_little(channels, columns, depth):
    """The cases that the module's docstring names, and what every GPU of interest can hold."""
    blocks = conv._convolve_blocks(128, 10_000, channels, channels, 2, "ieee")
    assert (blocks.columns, blocks.depth) == (columns, depth)
    for itemsize, precision in ((2, "ieee"), (4, "tf32"), (4, "ieee")):
        for rows, tiles in ((64, 1), (64, 300), (128, 10_000)):
            forward = conv._convolve_blocks(rows, tiles, channels, channels, itemsize, precision)
            for blocks in (forward, conv._gradient_blocks(channels, channels, itemsize, precision)):
                stage = (blocks.rows + blocks.columns) * blocks.depth * itemsize
                assert stage * blocks.stages <= conv.SHARED_BYTES and min(blocks[:3]) >= 16


# ---- limits ----


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: 4 GiB of rows, which the interpreter copies at each launch")
def test_offsets_beyond_32_bits():
    """Elements of ``feat`` from 2^31 on."""
    n, channels = 2**23 + 3, 256
    feat = torch.zeros(n, channels, dtype=torch.float16, device=DEVICE)
    feat[-1] = torch.arange(channels) / channels
    last = torch.tensor([n - 1], device=DEVICE)
    pairs = KernelMap(last, torch.tensor([1], device=DEVICE), (0, 1), n, 2)
    weight = torch.randn(16, 2, channels, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16)
    out = conv.PRODUCTS.convolve(feat, weight, None, pairs)
    assert_near(out[1], weight[:, 1].double() @ feat[-1].double(), torch.float16)
    grad = torch.ones(2, 16, dtype=torch.float16, device=DEVICE)
    found = conv.PRODUCTS.weight_gradient(grad, feat, pairs)
    assert torch.equal(found[:, 1], feat[-1].expand(16, -1)) and not found[:, 0].any()


def test_what_is_refused(make_map):
    pairs = make_map("submanifold 3")
    inputs, _ = tensors(pairs, 4, 4)
    with pytest.raises(BackendError, match="one dtype of float16, bfloat16, float32"):
        run(tuple(x.double() for x in inputs), pairs)
    run(inputs, pairs)
    assert "triton" in used()["sparse_conv"]
    huge = KernelMap(pairs.source, pairs.target, pairs.counts, 2**31, 5)
    assert "2147483647 rows" in conv.IMPLEMENTATIONS["sparse_conv"].refuses(*inputs, huge) or DEVICE == "cpu"
