"""Neighbour maps by binary search in the sorted cells.

Shape legend: N points, K = kernel_size^3 taps, P pairs, G blocks of points.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from nufm.ops.backends.triton.aot import Specimen
from nufm.ops.backends.triton.device import device_refusal
from nufm.ops.dispatch import Implementation

BLOCK = 128
MAX_POINTS = 2**31 - BLOCK  # places in the order are kept as int32


@triton.jit(do_not_specialize=["n"])
def _cells_kernel(
    keys,  # *i64 (N,) ascending
    cell,  # *i64 (N,) rank of each key among the different ones
    cells,  # *i64 (N,) out: the different keys; the rest is left
    start,  # *i32 (N,) out: where each of them begins in keys
    n,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    key = tl.load(keys + place, mask=inside, other=0)
    before = tl.load(keys + place - 1, mask=inside & (place > 0), other=-1)
    first = inside & (key != before)
    rank = tl.load(cell + place, mask=inside, other=0)
    tl.store(cells + rank, key, mask=first)
    tl.store(start + rank, place.to(tl.int32), mask=first)


# Lattice sizes differ from batch to batch: nothing is compiled anew for strides that happen to be 1 or even.
@triton.jit(do_not_specialize=["n", "stride_x", "stride_y", "steps"])
def _search_kernel(
    keys,  # *i64 (N,) ascending
    cells,  # *i64 (N,) the different keys, as many as n_cells says
    start,  # *i32 (N,) where each of them begins in keys
    n_cells,  # *i64 (1,)
    seen,  # *i32 (K, N) out: place in keys of the neighbour, -1 for none
    counts,  # *i32 (K, G) out: neighbours found per tap and block
    n,
    stride_x,
    stride_y,
    steps,  # i32: 2^steps > N
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    blocks = tl.num_programs(0)
    column = tl.program_id(1)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    radius: tl.constexpr = SIZE // 2
    dx = (column // SIZE - radius).to(tl.int64)
    dy = (column % SIZE - radius).to(tl.int64)
    # The cells of a column (along z) are consecutive keys: one search for the lowest, then step by step.
    key = tl.load(keys + place, mask=inside, other=0) + dx * stride_x + dy * stride_y - radius
    end = tl.load(n_cells)
    low = tl.zeros([BLOCK], tl.int64)
    high = low + end
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = low < high
        below = open_ & (tl.load(cells + middle, mask=open_ & inside, other=0) < key)
        low = tl.where(below, middle + 1, low)
        high = tl.where(open_ & (below == 0), middle, high)
    for dz in range(SIZE):
        tap = column * SIZE + dz
        known = inside & (low < end)
        hit = known & (tl.load(cells + low, mask=known, other=0) == key)
        found = tl.load(start + low, mask=hit, other=-1)
        low += hit.to(tl.int64)
        key += 1
        pair = hit & (tap != SIZE * SIZE * SIZE // 2)
        at = tap.to(tl.int64)
        tl.store(seen + at * n + place, tl.where(pair, found, -1), mask=inside)
        tl.store(counts + at * blocks + block, tl.sum(pair.to(tl.int32), 0))


@triton.jit(do_not_specialize=["n"])
def _list_kernel(
    seen,  # *i32 (K, N)
    ends,  # *i64 (K, G): pairs up to and with each tap and block
    order,  # *i64 (N,) row of each place
    source,  # *i64 (P,) out
    target,  # *i64 (P,) out
    n,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    tap = tl.program_id(1).to(tl.int64)
    place = block * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    found = tl.load(seen + tap * n + place, mask=inside, other=-1)
    pair = found >= 0
    rank = tl.cumsum(pair.to(tl.int32), 0)
    total = tl.sum(pair.to(tl.int32), 0)
    at = tl.load(ends + tap * tl.num_programs(0) + block) - total + rank - 1
    tl.store(source + at, tl.load(order + found, mask=pair, other=0), mask=pair)
    tl.store(target + at, tl.load(order + place, mask=pair, other=0), mask=pair)


def _neighbor_pairs(
    keys: Tensor, order: Tensor, strides: tuple[int, int], kernel_size: int
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    n, taps = len(keys), kernel_size**3
    blocks = triton.cdiv(n, BLOCK)
    cell = torch.zeros_like(keys)
    torch.cumsum(keys[1:] != keys[:-1], 0, out=cell[1:])
    cells, start = torch.empty_like(keys), torch.empty_like(keys, dtype=torch.int32)
    _cells_kernel[(blocks,)](keys, cell, cells, start, n, BLOCK=BLOCK)
    seen = torch.empty(taps, n, dtype=torch.int32, device=keys.device)
    counts = torch.empty(taps, blocks, dtype=torch.int32, device=keys.device)
    _search_kernel[(blocks, kernel_size**2)](
        keys, cells, start, cell[-1:] + 1, seen, counts, n, *strides, n.bit_length(), SIZE=kernel_size, BLOCK=BLOCK
    )
    ends = counts.flatten().cumsum(0).view(taps, blocks)
    totals = [0, *ends[:, -1].tolist()]  # the one wait for the device
    source, target = order.new_empty(totals[-1]), order.new_empty(totals[-1])
    if totals[-1]:
        _list_kernel[(blocks, taps)](seen, ends, order, source, target, n, BLOCK=BLOCK)
    return source, target, tuple(b - a for a, b in itertools.pairwise(totals))


def _refuses(keys: Tensor, order: Tensor, strides: tuple[int, int], kernel_size: int) -> str | None:
    if len(keys) > MAX_POINTS:
        return f"up to {MAX_POINTS} points, found {len(keys)}"
    if kernel_size**3 >= 2**16:
        return f"a kernel of {kernel_size}^3 taps exceeds the 65535 rows of a launch"
    return device_refusal(keys, order)


IMPLEMENTATIONS = {"neighbor_pairs": Implementation(_neighbor_pairs, _refuses, "GPU tensors")}


def specimens() -> list[Specimen]:
    types = {"keys": "*i64", "cell": "*i64", "cells": "*i64", "start": "*i32", "n_cells": "*i64", "seen": "*i32"}
    types |= {"counts": "*i32", "ends": "*i64", "order": "*i64", "source": "*i64", "target": "*i64"}
    types |= {"n": "i32", "stride_x": "i64", "stride_y": "i32", "steps": "i32"}
    size = {"BLOCK": BLOCK}
    return [
        _specimen(_cells_kernel, types, size),
        *(_specimen(_search_kernel, types, {"SIZE": k, **size}) for k in (3, 5)),
        _specimen(_list_kernel, types, size),
    ]


def _specimen(kernel, types: dict[str, str], constants: dict[str, int]) -> Specimen:
    return Specimen(kernel, {name: types[name] for name in kernel.arg_names if name in types}, constants)
