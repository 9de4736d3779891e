"""What benchmarks/ops.py measures: every op at the shapes of three models, and at growing numbers of voxels.

Shape legend: N points, C channels, H heads of 16 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from flops import attention_flops, conv_flops, n_pairs
from samples import Points, about
from torch import Tensor

from nufm.ops.attention import Windows, window_layout, windowed_attention
from nufm.ops.kernel_map import KernelMap, strided_map, submanifold_map
from nufm.ops.neighbors import nearest
from nufm.ops.points import ball_query, k_nearest
from nufm.ops.pool import pool_cells, segment_reduce
from nufm.ops.sampling import centrality_nms, farthest_points
from nufm.ops.serialize import CURVES, event_code, serialize
from nufm.ops.sparse_conv import sparse_conv

PANDA_CHANNELS, PANDA_HEADS, WINDOW = (48, 96, 192, 384, 512), (3, 6, 12, 24, 32), 256
URESNET_CHANNELS = (32, 64, 96, 128, 160)  # F = 32, depth 5 (DeepLearnPhysics/spine, uresnet configuration)
# FASERCal: calorimeter voxels per patch, one step or two; and the hadron calorimeter's. (kernel = stride, Ci, Co)
PATCHES = {
    "12×12×10, 1 → 384": ((12, 12, 10), 1, 384),
    "6×6×5, 1 → 384": ((6, 6, 5), 1, 384),
    "4×4×2, 1 → 96 (first of two)": ((4, 4, 2), 1, 96),
    "3×3×5, 96 → 384 (second of two)": ((3, 3, 5), 96, 384),
}
# Tokens of PoLAr-MAE (arXiv 2502.02558): at most 512 balls of 5 voxels, 32 points each, overlap 0.72.
RADIUS, CAP, SAMPLES, OVERLAP, NEIGHBOURS = 5.0, 32, 512, 0.72, 16


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        op: row of the dispatch table (or a name of its own for what is not dispatched).
        name: what is done, the same at every N of a series.
        points: N.
        call: the forward.
        inputs: tensors that get a gradient; none means that there is no backward.
        flops, flops_backward: arithmetic that the case needs.
        reads: bytes of lists and constants that a forward must read beside ``inputs``.
    """

    op: str
    name: str
    points: int
    call: Callable[[], Tensor | tuple[Tensor, ...]]
    inputs: tuple[Tensor, ...] = ()
    flops: int = 0
    flops_backward: int = 0
    reads: int = 0


@dataclass(frozen=True)
class Setting:
    """Where and in which precision cases compute."""

    device: torch.device
    dtype: torch.dtype

    def random(self, *shape: int, gradient: bool = True) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype).requires_grad_(gradient)


Build = Callable[[], Case]


def conv(
    setting: Setting, name: str, points: int, pairs: KernelMap, kernel: tuple[int, int, int], ci: int, co: int
) -> Case:
    """Convolution over the pairs of a map, which is there already. One channel is raw energy: no gradient."""
    feat = setting.random(pairs.n_source, ci, gradient=ci > 1)
    # Tap by tap in memory, as the modules of nufm keep their weights.
    weight = (setting.random(*kernel, co, ci, gradient=False) * (27 * ci) ** -0.5).permute(3, 0, 1, 2, 4)
    weight.requires_grad_(True)
    flops = conv_flops(pairs, ci, co)
    inputs = (feat, weight) if ci > 1 else (weight,)
    reads = 8 * n_pairs(pairs) + (0 if ci > 1 else feat.nbytes)
    return Case(
        "sparse_conv", name, points, lambda: sparse_conv(feat, pairs, weight), inputs, flops, flops * len(inputs), reads
    )


def submanifold(setting: Setting, level: Points, ci: int, co: int, name: str = "") -> Case:
    pairs = submanifold_map(level.grid, level.offsets)
    return conv(setting, name or f"submanifold 3³, {ci} → {co}", len(level), pairs, (3, 3, 3), ci, co)


def strided(setting: Setting, level: Points, kernel: tuple[int, int, int], ci: int, co: int, name: str) -> Case:
    pairs = strided_map(level.grid, level.offsets, kernel).map
    return conv(setting, name, len(level), pairs, kernel, ci, co)


def transposed(setting: Setting, level: Points, ci: int, co: int, name: str = "") -> Case:
    pairs = strided_map(level.grid, level.offsets, 2).map.transposed
    return conv(setting, name or f"transposed 2³, {ci} → {co}", len(level), pairs, (2, 2, 2), ci, co)


def attention(setting: Setting, level: Points, heads: int, name: str = "", bias: bool = False) -> Case:
    """Self attention in windows of 256 points along a Hilbert curve."""
    windows = Windows.of_layout(window_layout(level.offsets, WINDOW))
    windows = windows.of_points(serialize(level.grid, level.offsets, ["hilbert"])[0][0])
    q, k, v = (setting.random(len(level), heads, 16) for _ in range(3))
    added = setting.random(heads, windows.cuts.n_pairs) if bias else None
    flops = attention_flops(windows, heads, 16)
    return Case(
        "windowed_attention",
        name or f"attention, {heads} heads of 16",
        len(level),
        lambda: windowed_attention(q, k, v, windows, 0.25, added),
        (q, k, v) if added is None else (q, k, v, added),
        flops,
        2 * flops,
        8 * (len(level) + len(windows.key_rows)),
    )


def pooling(setting: Setting, level: Points, channels: int, reduce: str, name: str = "") -> Case:
    """Features of the points of 2³ cells reduced to one."""
    segments = pool_cells(level.grid, level.offsets).segments
    x = setting.random(len(level), channels)
    return Case(
        {"max": "segment_max"}.get(reduce, "segment_sum"),
        name or f"pooling 2³, {reduce}, {channels} channels",
        len(level),
        lambda: segment_reduce(x, segments, segments.n, reduce),
        (x,),
        reads=8 * len(level),
    )


def codes(level: Points) -> Case:
    return Case(
        "curve_code",
        "codes of four curves",
        len(level),
        lambda: event_code(level.grid, level.offsets, CURVES),
        reads=level.grid.nbytes,
    )


def neighbours(level: Points) -> Case:
    return Case(
        "neighbor_pairs",
        "map of a submanifold 3³",
        len(level),
        lambda: submanifold_map(level.grid, level.offsets).source,
        reads=level.grid.nbytes,
    )


def coarse_map(level: Points) -> Case:
    return Case(
        "strided_map",
        "map of a strided 2³",
        len(level),
        lambda: strided_map(level.grid, level.offsets, 2).map.source,
        reads=level.grid.nbytes,
    )


def in_space(level: Points) -> Iterator[Build]:
    """Searches and samples among all voxels, the tokens of PoLAr-MAE."""
    x, offsets = level.grid.float(), level.offsets
    for op, name, call in (
        ("nearest", "nearest key within 2 voxels", lambda: nearest(x + 0.25, offsets, x, offsets, 2.0)),
        ("k_nearest", f"{NEIGHBOURS} nearest neighbours", lambda: k_nearest(x, offsets, x, offsets, NEIGHBOURS)),
        (
            "ball_query",
            f"ball query, radius {RADIUS:g}, cap {CAP}",
            lambda: ball_query(x, offsets, x, offsets, RADIUS, CAP),
        ),
        ("farthest_points", f"farthest points, {SAMPLES} per event", lambda: farthest_points(x, offsets, SAMPLES)),
        (
            "centrality_nms",
            f"C-NMS, radius {RADIUS:g}, overlap {OVERLAP:g}",
            lambda: centrality_nms(x, offsets, RADIUS, OVERLAP),
        ),
    ):
        yield lambda op=op, name=name, call=call: Case(op, name, len(level), call, reads=x.nbytes)


# ---------------------------------------------------------------------- the sections


def panda(setting: Setting, stages: list[Points]) -> Iterator[Build]:
    """The ops of Panda's encoder at its five stages."""
    for s, (level, c, h) in enumerate(zip(stages, PANDA_CHANNELS, PANDA_HEADS, strict=True)):
        yield lambda level=level, c=c, s=s: submanifold(setting, level, c, c, f"stage {s}: submanifold 3³, {c} → {c}")
        yield lambda level=level, h=h, s=s: attention(setting, level, h, f"stage {s}: attention, {h} heads of 16")
        if s == 2:  # Panda has none; others do (relative positions)
            yield lambda level=level, h=h: attention(setting, level, h, f"the same with a bias, {h} heads", bias=True)
        if s + 1 < len(stages):
            into = PANDA_CHANNELS[s + 1]
            yield lambda level=level, c=into, s=s: pooling(
                setting, level, c, "max", f"stage {s} → {s + 1}: pooling, max, {c} channels"
            )


def uresnet(setting: Setting, levels: list[Points]) -> Iterator[Build]:
    """The convolutions of a sparse UResNet: within a level, down and up."""
    widths = URESNET_CHANNELS
    for i, (level, c) in enumerate(zip(levels, widths, strict=True)):
        yield lambda level=level, c=c, i=i: submanifold(setting, level, c, c, f"level {i}: submanifold 3³, {c} → {c}")
        if i + 1 < len(levels):
            d = widths[i + 1]
            yield lambda level=level, c=c, d=d, i=i: strided(
                setting, level, (2, 2, 2), c, d, f"level {i} → {i + 1}: strided 2³, {c} → {d}"
            )
            yield lambda level=level, c=c, d=d, i=i: transposed(
                setting, level, d, c, f"level {i + 1} → {i}: transposed 2³, {d} → {c}"
            )


def fasercal(setting: Setting, level: Points) -> Iterator[Build]:
    """Patch convolutions. The second of two steps works on the cells of the first."""
    for name, (kernel, ci, co) in PATCHES.items():
        start = level
        if ci > 1:
            down = strided_map(level.grid, level.offsets, PATCHES["4×4×2, 1 → 96 (first of two)"][0])
            start = Points(down.grid, down.offsets)
        yield lambda start=start, kernel=kernel, ci=ci, co=co, name=name: strided(
            setting, start, kernel, ci, co, f"patch {name}"
        )


def growth(setting: Setting, n: int) -> Iterator[Build]:
    """Every op at about N voxels."""
    level = about(n).to(setting.device)
    yield lambda: submanifold(setting, level, 32, 32)
    yield lambda: strided(setting, level, (2, 2, 2), 32, 64, "strided 2³, 32 → 64")
    yield lambda: transposed(setting, level, 64, 32)
    yield lambda: strided(setting, level, (12, 12, 10), 1, 384, "patch 12×12×10, 1 → 384")
    yield lambda: attention(setting, level, 3)
    yield lambda: pooling(setting, level, 64, "max")
    yield lambda: pooling(setting, level, 64, "mean")
    yield lambda: codes(level)
    yield lambda: neighbours(level)
    yield lambda: coarse_map(level)
    yield from in_space(level)
