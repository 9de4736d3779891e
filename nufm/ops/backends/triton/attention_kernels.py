"""Kernels of windowed attention.

Shape legend: Nq rows of queries, Nk rows of keys, P = Nq places of queries, R places of keys, W windows, T tiles,
H heads, D channels per head of queries and keys, DV of values, S pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nufm.ops.backends.triton.device import interpreting

LOG2E = tl.constexpr(1.4426950408889634)
# The interpreter multiplies the bits of bfloat16 as if they were integers; products of float32 are the same, exact.
WIDEN = tl.constexpr(interpreting())
SIZES = ["n_places", "n_pairs"]  # differ from batch to batch: nothing is compiled anew for some of their values


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _owner(heads):
    """Tile and head of this program. Heads of one tile run side by side: their channels share lines of the cache."""
    program = tl.program_id(0)
    return program // heads, (program % heads).to(tl.int64)


@triton.jit
def _extent(boundaries, window):
    """First place of a window, int64, and how many it has, int32."""
    begin = tl.load(boundaries + window)
    return begin, (tl.load(boundaries + window + 1) - begin).to(tl.int32)


@triton.jit
def _rows_of(rows, place, is_real):
    if rows is not None:
        place = tl.load(rows + place, mask=is_real, other=0)
    return place


@triton.jit
def _load(x, row, is_real, stride_row, offset, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(rows, BLOCK) channels of one head, 0 beyond WIDTH and for rows that are not real."""
    channel = tl.arange(0, BLOCK)
    mask = is_real[:, None] & (channel < WIDTH)[None, :]
    return tl.load((x + offset + row * stride_row)[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _store(x, value, row, is_real, stride_row, offset, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    channel = tl.arange(0, BLOCK)
    mask = is_real[:, None] & (channel < WIDTH)[None, :]
    tl.store((x + offset + row * stride_row)[:, None] + channel[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q,  # (Nq, H, D), strides below, last one 1; likewise k and v
    k,  # (Nk, H, D)
    v,  # (Nk, H, DV)
    bias,  # (H, S) or None
    out,  # (Nq, H, DV)
    lse,  # *fp32 (H, P) logarithm, to base 2, of the sum of exponentials; 0 where there are no keys
    query_rows,  # *i64 (P,) or None
    key_rows,  # *i64 (R,) or None
    query_boundaries,  # *i64 (W+1,)
    key_boundaries,  # *i64 (W+1,)
    pair_offsets,  # *i64 (W+1,) or None
    tile_window,  # *i32 (T,)
    tile_first,  # *i32 (T,) first query of the tile, counted within its window
    heads,
    n_places,
    n_pairs,
    scale,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, head = _owner(heads)
    window = tl.load(tile_window + tile).to(tl.int64)
    query_begin, n_queries = _extent(query_boundaries, window)
    key_begin, n_keys = _extent(key_boundaries, window)
    i = tl.load(tile_first + tile) + tl.arange(0, BLOCK_M)
    is_query = i < n_queries
    place = query_begin + i
    row = _rows_of(query_rows, place, is_query)
    queries = _load(q, row, is_query, q_row, head * q_head, D, BLOCK_D)

    if bias is not None:
        pair = head * n_pairs + tl.load(pair_offsets + window) + i.to(tl.int64) * n_keys
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for first in range(0, n_keys, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        is_key = j < n_keys
        key_row = _rows_of(key_rows, key_begin + j, is_key)
        keys = _load(k, key_row, is_key, k_row, head * k_head, D, BLOCK_D)
        logits = _dot(queries, tl.trans(keys), PRECISION) * (scale * LOG2E)
        if bias is not None:
            mask = is_query[:, None] & is_key[None, :]
            logits += tl.load((bias + pair)[:, None] + j[None, :], mask=mask, other=0.0).to(tl.float32) * LOG2E
        logits = tl.where(is_key[None, :], logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        # Where a bias of -inf has left out all keys so far, -inf - -inf would be NaN.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(logits - finite[:, None])
        shrink = tl.exp2(highest - finite)
        values = _load(v, key_row, is_key, v_row, head * v_head, DV, BLOCK_DV)
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None] + _dot(weights.to(values.dtype), values, PRECISION)
        highest = higher

    has_none = total == 0
    total = tl.where(has_none, 1.0, total)
    _store(out, mixed / total[:, None], row, is_query, heads * DV, head * DV, DV, BLOCK_DV)
    logarithm = tl.where(has_none, 0.0, highest + tl.log2(total))
    tl.store(lse + head * n_places + place, logarithm, mask=is_query)


@triton.jit(do_not_specialize=SIZES)
def query_grad_kernel(
    q,
    k,
    v,
    bias,
    out,
    grad,  # (Nq, H, DV) contiguous, like out
    lse,
    delta,  # *fp32 (H, P) out: sum of grad * out over the channels
    dq,  # (Nq, H, D) out
    dbias,  # (H, S) out, or None
    query_rows,
    key_rows,
    query_boundaries,
    key_boundaries,
    pair_offsets,
    tile_window,
    tile_first,
    heads,
    n_places,
    n_pairs,
    scale,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, head = _owner(heads)
    window = tl.load(tile_window + tile).to(tl.int64)
    query_begin, n_queries = _extent(query_boundaries, window)
    key_begin, n_keys = _extent(key_boundaries, window)
    i = tl.load(tile_first + tile) + tl.arange(0, BLOCK_M)
    is_query = i < n_queries
    place = query_begin + i
    row = _rows_of(query_rows, place, is_query)
    queries = _load(q, row, is_query, q_row, head * q_head, D, BLOCK_D)
    grads = _load(grad, row, is_query, heads * DV, head * DV, DV, BLOCK_DV)
    outs = _load(out, row, is_query, heads * DV, head * DV, DV, BLOCK_DV)
    inner = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + head * n_places + place, inner, mask=is_query)
    logarithm = tl.load(lse + head * n_places + place, mask=is_query, other=0.0)

    if bias is not None:
        pair = head * n_pairs + tl.load(pair_offsets + window) + i.to(tl.int64) * n_keys
    dqueries = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(0, n_keys, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        is_key = j < n_keys
        key_row = _rows_of(key_rows, key_begin + j, is_key)
        keys = _load(k, key_row, is_key, k_row, head * k_head, D, BLOCK_D)
        values = _load(v, key_row, is_key, v_row, head * v_head, DV, BLOCK_DV)
        mask = is_query[:, None] & is_key[None, :]
        logits = _dot(queries, tl.trans(keys), PRECISION) * (scale * LOG2E)
        if bias is not None:
            logits += tl.load((bias + pair)[:, None] + j[None, :], mask=mask, other=0.0).to(tl.float32) * LOG2E
        weights = tl.where(mask, tl.exp2(logits - logarithm[:, None]), 0.0)
        dweights = _dot(grads, tl.trans(values), PRECISION)
        dlogits = weights * (dweights - inner[:, None])
        if dbias is not None:
            tl.store((dbias + pair)[:, None] + j[None, :], dlogits.to(dbias.dtype.element_ty), mask=mask)
        dqueries += _dot(dlogits.to(keys.dtype), keys, PRECISION)
    _store(dq, dqueries * scale, row, is_query, heads * D, head * D, D, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def key_grad_kernel(
    q,
    k,
    v,
    bias,
    grad,  # (Nq, H, DV) contiguous
    lse,
    delta,
    dk,  # out, for each place: row r and head h begin at r (H D + H DV) + h D
    dv,  # out, likewise with h DV
    query_rows,
    key_rows,
    query_boundaries,
    key_boundaries,
    pair_offsets,
    tile_window,
    tile_first,  # *i32 (T,) first key of the tile, counted within its window
    heads,
    n_places,
    n_pairs,
    scale,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile, head = _owner(heads)
    window = tl.load(tile_window + tile).to(tl.int64)
    query_begin, n_queries = _extent(query_boundaries, window)
    key_begin, n_keys = _extent(key_boundaries, window)
    j = tl.load(tile_first + tile) + tl.arange(0, BLOCK_N)
    is_key = j < n_keys
    key_place = key_begin + j
    key_row = _rows_of(key_rows, key_place, is_key)
    keys = _load(k, key_row, is_key, k_row, head * k_head, D, BLOCK_D)
    values = _load(v, key_row, is_key, v_row, head * v_head, DV, BLOCK_DV)

    dkeys = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dvalues = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    for first in range(0, n_queries, BLOCK_M):
        i = first + tl.arange(0, BLOCK_M)
        is_query = i < n_queries
        place = query_begin + i
        row = _rows_of(query_rows, place, is_query)
        queries = _load(q, row, is_query, q_row, head * q_head, D, BLOCK_D)
        grads = _load(grad, row, is_query, heads * DV, head * DV, DV, BLOCK_DV)
        logarithm = tl.load(lse + head * n_places + place, mask=is_query, other=0.0)
        inner = tl.load(delta + head * n_places + place, mask=is_query, other=0.0)
        mask = is_key[:, None] & is_query[None, :]
        logits = _dot(keys, tl.trans(queries), PRECISION) * (scale * LOG2E)
        if bias is not None:
            pair = head * n_pairs + tl.load(pair_offsets + window) + i.to(tl.int64) * n_keys
            logits += tl.load((bias + pair)[None, :] + j[:, None], mask=mask, other=0.0).to(tl.float32) * LOG2E
        weights = tl.where(mask, tl.exp2(logits - logarithm[None, :]), 0.0)
        dvalues += _dot(weights.to(grads.dtype), grads, PRECISION)
        dweights = _dot(values, tl.trans(grads), PRECISION)
        dlogits = weights * (dweights - inner[None, :])
        dkeys += _dot(dlogits.to(queries.dtype), queries, PRECISION)
    stride = heads * (D + DV)
    _store(dk, dkeys * scale, key_place, is_key, stride, head * D, D, BLOCK_D)
    _store(dv, dvalues, key_place, is_key, stride, head * DV, DV, BLOCK_DV)
