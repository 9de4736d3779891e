"""Sums, means and maxima over groups of rows, in the stable order of the groups: no atomics, one fixed order.

Shape legend: N rows, n groups, C channels, S rows per slice.

Groups of at most S rows are reduced by one program each (a tile of groups x channels). The order of the rows is
also cut into slices of S rows. A longer group reaches beyond the slice in which it begins, so that a slice holds
at most two of them: the one that owns its first row and the one that leaves through its end. Each slice writes the
partial results of these two (``part`` 2c and 2c+1), and the slice in which a long group begins collects them. Nothing
needs to be known on the host but N, so that no launch waits for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from nufm.ops.backends.triton.aot import Specimen
from nufm.ops.backends.triton.device import device_refusal, float_refusal
from nufm.ops.dispatch import Implementation, preference, use_backend
from nufm.ops.pool import Segments, segment_reduce, take

SUM, MEAN, MAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TILE = 2048  # elements of a tile of groups x channels or rows x channels


@triton.jit
def _greater(value, ties, best, best_ties):
    """The larger of two (maximum, how many rows have it); NaN beats all."""
    wins = (value > best) | (value != value)
    even = value == best
    best_ties = tl.where(wins, ties, tl.where(even, best_ties + ties, best_ties))
    return tl.where(wins, value, best), best_ties


@triton.jit
def _tile_max(value, ties):
    """(R, C) -> (C,): maximum over the rows, NaN if there is one, and how many rows have it."""
    is_nan = value != value
    best = tl.max(tl.where(is_nan, float("-inf"), value), 0)
    count = tl.sum(tl.where(value == best[None, :], ties, 0), 0)
    return tl.where(tl.max(is_nan.to(tl.int32), 0) > 0, float("nan"), best), count


@triton.jit(do_not_specialize=["n", "slice_rows"])
def _short_kernel(
    x,  # (N, C)
    order,  # *i64 (N,)
    starts,  # *i64 (n,)
    counts,  # *i64 (n,)
    out,  # (n, C)
    ties,  # *i32 (n, C), written if OP is MAX
    n,
    channels,
    slice_rows,  # longer groups are left out
    OP: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = group < n
    start = tl.load(starts + group, mask=inside, other=0)
    count = tl.load(counts + group, mask=inside, other=0).to(tl.int32)
    mine = inside & (count <= slice_rows)
    count = tl.where(mine, count, 0)
    wanted = column[None, :] < channels
    total = tl.zeros([GROUPS, BLOCK_C], tl.float32)
    if OP == MAX:
        total = total - float("inf")
    tied = tl.zeros([GROUPS, BLOCK_C], tl.int32)
    for i in range(tl.max(count, 0)):
        present = i < count
        row = tl.load(order + start + i, mask=present, other=0)
        mask = present[:, None] & wanted
        if OP == MAX:
            value = tl.load(x + row[:, None] * channels + column[None, :], mask=mask, other=float("-inf"))
            total, tied = _greater(value.to(tl.float32), mask.to(tl.int32), total, tied)
        else:
            total += tl.load(x + row[:, None] * channels + column[None, :], mask=mask, other=0.0).to(tl.float32)
    at = group[:, None] * channels + column[None, :]
    mask = mine[:, None] & wanted
    if OP == MEAN:
        total = total / tl.maximum(count, 1)[:, None].to(tl.float32)
    if OP == MAX:
        total = tl.where(count[:, None] > 0, total, 0.0)
        tl.store(ties + at, tied, mask=mask)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _slice_rows_of(
    x, order, part, part_ties, slot, first, last, column, channels, OP: tl.constexpr, ROWS: tl.constexpr
):
    """Reduce the rows ``order[first:last]`` into line ``slot`` of ``part``."""
    wanted = column < channels
    total = tl.zeros_like(column).to(tl.float32)
    if OP == MAX:
        total = total - float("inf")
    tied = tl.zeros_like(column)
    for begin in range(first, last, ROWS):
        place = begin + tl.arange(0, ROWS)
        present = place < last
        row = tl.load(order + place, mask=present, other=0)
        mask = present[:, None] & wanted[None, :]
        if OP == MAX:
            value = tl.load(x + row[:, None] * channels + column[None, :], mask=mask, other=float("-inf"))
            best, count = _tile_max(value.to(tl.float32), mask.to(tl.int32))
            total, tied = _greater(best, count, total, tied)
        else:
            value = tl.load(x + row[:, None] * channels + column[None, :], mask=mask, other=0.0)
            total += tl.sum(value.to(tl.float32), 0)
    tl.store(part + slot * channels + column, total, mask=wanted)
    if OP == MAX:
        tl.store(part_ties + slot * channels + column, tied, mask=wanted)


@triton.jit(do_not_specialize=["n_rows", "slice_rows"])
def _slice_kernel(
    x,  # (N, C)
    order,  # *i64 (N,)
    index,  # *i64 (N,)
    starts,  # *i64 (n,)
    counts,  # *i64 (n,)
    part,  # *fp32 (2 slices, C)
    part_ties,  # *i32 (2 slices, C), written if OP is MAX
    n_rows,
    channels,
    slice_rows,
    OP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    piece = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = piece * slice_rows
    end = tl.minimum(begin + slice_rows, n_rows)
    owner = tl.load(index + tl.load(order + begin))
    leaver = tl.load(index + tl.load(order + end - 1))
    count = tl.load(counts + owner)
    if count > slice_rows:
        last = tl.minimum(tl.load(starts + owner) + count, end)
        _slice_rows_of(x, order, part, part_ties, 2 * piece, begin, last, column, channels, OP, ROWS)
    if leaver != owner:
        if tl.load(counts + leaver) > slice_rows:
            first = tl.load(starts + leaver)
            _slice_rows_of(x, order, part, part_ties, 2 * piece + 1, first, end, column, channels, OP, ROWS)


@triton.jit(do_not_specialize=["n_rows", "slice_rows"])
def _collect_kernel(
    order,  # *i64 (N,)
    index,  # *i64 (N,)
    starts,  # *i64 (n,)
    counts,  # *i64 (n,)
    part,  # *fp32 (2 slices, C)
    part_ties,  # *i32 (2 slices, C), read if OP is MAX
    out,  # (n, C)
    ties,  # *i32 (n, C), written if OP is MAX
    n_rows,
    channels,
    slice_rows,
    OP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    piece = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = piece * slice_rows
    end = tl.minimum(begin + slice_rows, n_rows)
    group = tl.load(index + tl.load(order + end - 1))
    start = tl.load(starts + group)
    count = tl.load(counts + group)
    if (count > slice_rows) & (start >= begin):  # a long group that begins here
        final = (start + count - 1) // slice_rows
        wanted = column < channels
        total = tl.zeros([BLOCK_C], tl.float32)
        if OP == MAX:
            total = total - float("inf")
        tied = tl.zeros([BLOCK_C], tl.int32)
        for step in range(piece, final + 1, ROWS):
            # The first part lies in the slot of those who leave, unless the group owns the slice from its first row.
            source = step + tl.arange(0, ROWS)
            leaves = (source == piece) & (start > begin)
            at = (2 * source + leaves.to(tl.int64))[:, None] * channels + column[None, :]
            mask = (source <= final)[:, None] & wanted[None, :]
            if OP == MAX:
                value = tl.load(part + at, mask=mask, other=float("-inf"))
                best, number = _tile_max(value, tl.load(part_ties + at, mask=mask, other=0))
                total, tied = _greater(best, number, total, tied)
            else:
                total += tl.sum(tl.load(part + at, mask=mask, other=0.0), 0)
        at = group * channels + column
        if OP == MEAN:
            total = total / count.to(tl.float32)
        if OP == MAX:
            tl.store(ties + at, tied, mask=wanted)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["n_rows"])
def _share_kernel(
    x,  # (N, C)
    index,  # *i64 (N,)
    best,  # (n, C) the maxima
    ties,  # *i32 (n, C) rows that have them
    grad,  # (n, C)
    out,  # (N, C)
    n_rows,
    channels,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = row < n_rows
    mask = inside[:, None] & (column < channels)[None, :]
    mine = row[:, None] * channels + column[None, :]
    group = tl.load(index + row, mask=inside, other=0)
    theirs = group[:, None] * channels + column[None, :]
    value = tl.load(x + mine, mask=mask, other=0.0)
    is_best = value == tl.load(best + theirs, mask=mask, other=0.0)
    number = tl.load(ties + theirs, mask=mask, other=1)
    share = tl.load(grad + theirs, mask=mask, other=0.0).to(tl.float32) / tl.maximum(number, 1).to(tl.float32)
    tl.store(out + mine, tl.where(is_best, share, 0.0).to(out.dtype.element_ty), mask=mask)


def _tiles(channels: int) -> tuple[int, int]:
    """Edges of a tile: rows (or groups) and channels."""
    block_c = max(16, min(128, triton.next_power_of_2(channels)))
    return TILE // block_c, block_c


def slice_length(n_rows: int) -> int:
    """Rows per slice, about sqrt(N) / 4: neither the rows of a short group nor the parts of a long one, read
    in tiles of 16 and more, then make a long loop.
    """
    return max(64, triton.next_power_of_2(round(n_rows**0.5)) // 4)


def _reduce(x: Tensor, segments: Segments, op: tl.constexpr) -> tuple[Tensor, Tensor | None]:
    """(n, C) results, and for maxima how many rows have them."""
    (n_rows, channels), n = x.shape, segments.n
    out = x.new_empty(n, channels)
    ties = torch.empty(n, channels, dtype=torch.int32, device=x.device) if op is MAX else None
    tile, block_c = _tiles(channels)
    columns = triton.cdiv(channels, block_c)
    rows_per_slice = slice_length(n_rows)
    lists = (segments.starts, segments.counts)
    _short_kernel[(triton.cdiv(n, tile), columns)](
        x, segments.order, *lists, out, ties, n, channels, rows_per_slice, OP=op.value, GROUPS=tile, BLOCK_C=block_c
    )
    longest = n_rows if segments.longest is None else segments.longest
    if min(longest, n_rows) > rows_per_slice:
        slices = triton.cdiv(n_rows, rows_per_slice)
        part = torch.empty(2 * slices, channels, dtype=torch.float32, device=x.device)
        part_ties = torch.empty_like(part, dtype=torch.int32) if op is MAX else None
        lists = (segments.order, segments.index, *lists)
        sizes = (n_rows, channels, rows_per_slice)
        blocks = {"OP": op.value, "ROWS": tile, "BLOCK_C": block_c}
        _slice_kernel[(slices, columns)](x, *lists, part, part_ties, *sizes, **blocks)
        _collect_kernel[(slices, columns)](*lists, part, part_ties, out, ties, *sizes, **blocks)
    return out, ties


def _segment_sum(x: Tensor, segments: Segments, mean: bool) -> Tensor:
    return _reduce(x.contiguous(), segments, MEAN if mean else SUM)[0]


class _Max(Function):
    @staticmethod
    def forward(ctx, x: Tensor, segments: Segments) -> Tensor:
        out, ties = _reduce(x, segments, MAX)
        ctx.save_for_backward(x, out, ties)
        ctx.segments, ctx.asked = segments, preference()
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        with use_backend(*ctx.asked):
            return _Share.apply(grad.contiguous(), *(t.detach() for t in ctx.saved_tensors), ctx.segments), None


class _Share(Function):
    """Gradient (n, C) of the maxima -> (N, C): rows that equal the maximum share it. Linear in the gradient."""

    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor, best: Tensor, ties: Tensor, segments: Segments) -> Tensor:
        ctx.save_for_backward(x, best, ties)
        ctx.segments, ctx.asked = segments, preference()
        out = torch.empty_like(x)
        rows, block_c = _tiles(x.shape[1])
        grid = (triton.cdiv(len(x), rows), triton.cdiv(x.shape[1], block_c))
        sizes = {"ROWS": rows, "BLOCK_C": block_c}
        _share_kernel[grid](x, segments.index, best, ties, grad, out, *x.shape, **sizes)
        return out

    @staticmethod
    def backward(ctx, cotangent: Tensor):
        x, best, ties = ctx.saved_tensors
        segments = ctx.segments
        with use_backend(*ctx.asked):
            share = (x == take(best, segments)) / take(ties, segments).clamp(min=1)
            share = share.to(cotangent.dtype)
            return segment_reduce(cotangent * share, segments, segments.n, "sum"), None, None, None, None


def _refuses(x: Tensor, segments: Segments, *_: bool) -> str | None:
    return device_refusal(x, segments.index) or float_refusal(x)


_CONDITIONS = "GPU tensors of float32, bfloat16, float16"
IMPLEMENTATIONS = {
    "segment_sum": Implementation(_segment_sum, _refuses, _CONDITIONS),
    "segment_max": Implementation(_Max.apply, _refuses, _CONDITIONS),
}


def specimens() -> list[Specimen]:
    made = []
    for data, op, channels in (
        *((data, op, 48) for data in ("*fp32", "*bf16", "*fp16") for op in (SUM, MAX)),
        ("*bf16", MEAN, 48),
        ("*fp32", MEAN, 3),
        ("*bf16", MAX, 512),
    ):
        rows, block_c = _tiles(channels)
        # What a sum does not touch is None, and so a constant.
        absent = {} if op is MAX else {"ties": None, "part_ties": None}
        made += [
            _specimen(_short_kernel, data, {"OP": op.value, "GROUPS": rows, "BLOCK_C": block_c, **absent}),
            _specimen(_collect_kernel, data, {"OP": op.value, "ROWS": rows, "BLOCK_C": block_c, **absent}),
        ]
        if op is not MEAN:  # the slices of a mean are those of a sum
            made.append(_specimen(_slice_kernel, data, {"OP": op.value, "ROWS": rows, "BLOCK_C": block_c, **absent}))
        if op is MAX:
            made.append(_specimen(_share_kernel, data, {"ROWS": rows, "BLOCK_C": block_c}))
    return made


def _specimen(kernel, data: str, constants: dict[str, int | None]) -> Specimen:
    types = {name: "*i64" for name in ("order", "index", "starts", "counts")}
    types |= {name: "*i32" for name in ("ties", "part_ties")} | {"part": "*fp32"}
    types |= {name: "i32" for name in ("n", "n_rows", "channels", "slice_rows")}
    types |= {name: data for name in ("x", "out", "best", "grad")}
    names = kernel.arg_names
    return Specimen(
        kernel,
        {name: types[name] for name in names if name in types and name not in constants},
        {name: value for name, value in constants.items() if name in names},
    )
