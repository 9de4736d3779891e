"""Kernels of the sparse convolution; :mod:`nufm.ops.backends.triton.conv` launches them and says which is for what.

Shape legend: N rows read, M rows written (M' of a product, :class:`~nufm.ops.backends.triton.conv_plan.TilePlan`), K
taps, P pairs, T tiles, E entries, Ci and Co channels. Rows are counted in 64 bits: N Ci may exceed 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nufm.ops.backends.triton.device import interpreting

# The interpreter multiplies the bits of bfloat16 as if they were integers; products of float32 are the same, exact.
WIDEN = tl.constexpr(interpreting())


@triton.jit
def add_product(total, a, b, PRECISION: tl.constexpr):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit(do_not_specialize=["n_rows"])
def convolve_kernel(
    feat,  # (N, Ci) contiguous
    weight,  # (Co, K, Ci) in any order
    bias,  # (Co,) or None
    out,  # (M', Co)
    order,  # *i64 (M',)
    tiles,  # *i32 (T,)
    first,  # *i64 (T+1,)
    entry_tap,  # *i32 (E,)
    index,  # *i32 (E, ROWS)
    n_rows,
    in_channels,
    out_channels,
    weight_out,  # strides of the weights
    weight_tap,
    weight_in,
    last_tap,  # K - 1
    MIRRORED: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    tile = tl.load(tiles + tl.program_id(0))
    begin = tl.load(first + tile)
    entries = (tl.load(first + tile + 1) - begin).to(tl.int32)
    lane = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < out_channels
    depth = tl.arange(0, DEPTH)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    # One loop instead of two, so that loads of the next tap overlap with products of this one; and what says which
    # rows to load is itself loaded a step ahead, or the pipeline would spend half of its stages on it.
    steps = tl.cdiv(in_channels, DEPTH)
    source = tl.load(index + begin * ROWS + lane, mask=lane < entries * ROWS, other=-1)
    tap = tl.load(entry_tap + begin, mask=entries > 0, other=0)
    for i in range(entries * steps):
        channel = (i % steps) * DEPTH + depth
        is_channel = channel < in_channels
        matrix_tap = tap
        if MIRRORED:
            matrix_tap = last_tap - tap
        rows = tl.load(
            feat + source.to(tl.int64)[:, None] * in_channels + channel[None, :],
            mask=(source >= 0)[:, None] & is_channel[None, :],
            other=0.0,
        )
        matrix = tl.load(
            weight + matrix_tap * weight_tap + channel[:, None] * weight_in + column[None, :] * weight_out,
            mask=is_channel[:, None] & is_column[None, :],
            other=0.0,
        )
        total = add_product(total, rows, matrix, PRECISION)
        entry = begin + tl.minimum((i + 1) // steps, entries - 1)
        source = tl.load(index + entry * ROWS + lane)
        tap = tl.load(entry_tap + entry)
    if bias is not None:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    place = tile.to(tl.int64) * ROWS + lane
    is_row = place < n_rows
    row = tl.load(order + place, mask=is_row, other=0)
    at = out + row[:, None] * out_channels + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def scaled_rows_kernel(
    feat,  # (N, Ci) contiguous
    weight,  # (K, Ci, Co) contiguous
    bias,  # (Co,) or None
    out,  # (M, Co)
    first,  # *i64 (M+1,)
    pair_source,  # *i64 (P,)
    pair_tap,  # *i32 (P,)
    in_channels,
    out_channels,
    TERMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    result = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < out_channels
    begin = tl.load(first + result)
    terms = ((tl.load(first + result + 1) - begin) * in_channels).to(tl.int32)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, terms, TERMS):
        term = start + tl.arange(0, TERMS)
        is_term = term < terms
        pair = begin + term // in_channels
        channel = term % in_channels
        source = tl.load(pair_source + pair, mask=is_term, other=0)
        tap = tl.load(pair_tap + pair, mask=is_term, other=0)
        scale = tl.load(feat + source * in_channels + channel, mask=is_term, other=0.0).to(tl.float32)
        rows = tl.load(
            weight + (tap * in_channels + channel)[:, None] * out_channels + column[None, :],
            mask=is_term[:, None] & is_column[None, :],
            other=0.0,
        )
        total += tl.sum(scale[:, None] * rows.to(tl.float32), 0)
    if bias is not None:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + result * out_channels + column, total.to(out.dtype.element_ty), mask=is_column)


@triton.jit
def weight_gradient_kernel(
    grad,  # (M, Co) contiguous
    feat,  # (N, Ci) contiguous
    out,  # (Co, K, Ci), or *fp32 (pieces, Co, Ci) if SHARES
    target,  # *i64 (P,)
    source,  # *i64 (P,)
    piece_tap,  # *i32 (pieces,)
    piece_begin,  # *i64 (pieces,)
    piece_end,  # *i64 (pieces,)
    n_taps,
    identity,  # tap of which pair i is (i, i), or -1
    in_channels,
    out_channels,
    SHARES: tl.constexpr,
    PRECISION: tl.constexpr,
    OUTS: tl.constexpr,
    INS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    piece = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(in_channels, INS)
    o = (tl.program_id(1) // blocks) * OUTS + tl.arange(0, OUTS)
    i = (tl.program_id(1) % blocks) * INS + tl.arange(0, INS)
    is_o = o < out_channels
    is_i = i < in_channels
    tap = tl.load(piece_tap + piece)
    begin = tl.load(piece_begin + piece)
    pairs = (tl.load(piece_end + piece) - begin).to(tl.int32)
    total = tl.zeros([OUTS, INS], tl.float32)
    place = tl.arange(0, PAIRS)
    listed = tl.where(tap == identity, tl.zeros_like(place), place + 1) > 0
    written = tl.load(target + begin + place, mask=listed & (place < pairs), other=0)
    read = tl.load(source + begin + place, mask=listed & (place < pairs), other=0)
    for start in range(0, pairs, PAIRS):
        is_pair = start + place < pairs
        written = tl.where(listed, written, begin + start + place)
        read = tl.where(listed, read, begin + start + place)
        left = tl.load(
            grad + o[:, None] + written[None, :] * out_channels, mask=is_o[:, None] & is_pair[None, :], other=0.0
        )
        right = tl.load(
            feat + read[:, None] * in_channels + i[None, :], mask=is_pair[:, None] & is_i[None, :], other=0.0
        )
        total = add_product(total, left, right, PRECISION)
        following = start + PAIRS + place
        written = tl.load(target + begin + following, mask=listed & (following < pairs), other=0)
        read = tl.load(source + begin + following, mask=listed & (following < pairs), other=0)
    if SHARES:
        line = (piece * out_channels + o)[:, None]
    else:
        line = (o.to(tl.int64) * n_taps + tap)[:, None]
    at = out + line * in_channels + i[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=is_o[:, None] & is_i[None, :])


@triton.jit
def sum_pieces_kernel(
    shares,  # *fp32 (pieces, Co, Ci)
    out,  # (Co, K, Ci)
    first,  # *i32 (K+1,)
    n_taps,
    in_channels,
    size,  # Co Ci
    BLOCK: tl.constexpr,
):
    tap = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    total = tl.zeros([BLOCK], tl.float32)
    begin = tl.load(first + tap)
    for i in range(tl.load(first + tap + 1) - begin):
        total += tl.load(shares + (begin + i).to(tl.int64) * size + place, mask=inside, other=0.0)
    line = (place // in_channels).to(tl.int64) * n_taps + tap
    tl.store(out + line * in_channels + place % in_channels, total.to(out.dtype.element_ty), mask=inside)
