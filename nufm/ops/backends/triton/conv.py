"""Sparse convolution: implicit matrix products over the pairs of a kernel map.

Shape legend: N rows read, M rows written, K taps, P pairs, Ci and Co channels; the lists of a map (tiles, entries,
pieces) are made in :mod:`nufm.ops.backends.triton.conv_plan`.

- ``convolve_kernel``: a tile of results x output channels; one loop over (tap in use, block of input channels)
  gathers rows and multiplies them with the weights of the tap. The sum of a result runs over the taps in ascending
  order whatever tile the result is in: it depends on its own pairs only, not on batch mates.
- ``scaled_rows_kernel``: few input channels and many taps (patches of one channel): a result is a sum of rows of the
  weights, scaled by the inputs.
- ``weight_gradient_kernel``: a piece of the pairs of a tap x a block of the matrix; ``sum_pieces_kernel`` adds the
  pieces of a tap in order.

Choice of tiles, by reasoning and from compiled code (registers, shared memory), not by timing:

- 64 rows are what a warp group of Hopper multiplies at a time; 128 rows halve the traffic of the weights from L2
  but hold more rows that have no neighbour at a tap of the tile. See ``LONG_TILE_FROM``.
- Columns: every block gathers the rows again, at a cost like that of some 32 more columns, and masked columns of
  a block that reaches beyond Co are wasted products. The cheapest by this count: one block of 64 for 48 channels,
  of 128 for 96, three of 64 for 192, three of 128 for 384, four for 512. Levels with few rows take narrower
  blocks, so that every multiprocessor has one.
- The depth of a step likewise: 64 for 48, 192, 384 and 512 channels of 16 bits, three of 32 for 96; at most 32 in
  float32, 16 without TF32, where every operand of a thread costs a register.
- Stages of the pipeline: as many as fit into 96 KiB of shared memory (of the 163 KiB of compute capability 8.0,
  99 KiB of 8.6), at most 4, so that two programs can share a multiprocessor with larger memory. AMD GPUs have 64
  KiB and take 2.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from nufm.ops.backends.triton.aot import Specimen
from nufm.ops.backends.triton.conv_kernels import (
    convolve_kernel,
    scaled_rows_kernel,
    sum_pieces_kernel,
    weight_gradient_kernel,
)
from nufm.ops.backends.triton.conv_plan import MASK_BITS, Pieces, TilePlan, pieces, segment_plan, tile_plan
from nufm.ops.backends.triton.device import device_refusal, float32_precision, float_refusal
from nufm.ops.dispatch import Implementation
from nufm.ops.kernel_map import KernelMap
from nufm.ops.sparse_conv import FEW_CHANNELS, Products, differentiable

SHARED_BYTES = 96 * 2**10
PROGRAMS = 1024  # a weight gradient is cut into about as many: several for each of up to 150 multiprocessors
WORKSPACE_BYTES = 64 * 2**20
MULTIPROCESSORS = 128  # or so: below as many programs, blocks are made narrower
LARGEST_INT32 = 2**31 - 1


class Blocks(NamedTuple):
    """Edges of a block of a matrix product, and how a program is laid out."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


@cache
def _edge(size: int, edges: tuple[int, ...], overhead: int) -> int:
    """The block edge that covers ``size`` at least cost, where a block costs its edge and an overhead."""
    return min(edges, key=lambda edge: (triton.cdiv(size, edge) * (edge + overhead), edge))


def _edges(itemsize: int, precision: str) -> tuple[int, ...]:
    # Products without tensor cores hold their operands in registers.
    return (16, 32, 64) if itemsize == 4 and precision == "ieee" else (16, 32, 64, 128)


def _layout(rows: int, columns: int, depth: int, itemsize: int) -> Blocks:
    stages = max(2, min(4, SHARED_BYTES // ((rows + columns) * depth * itemsize)))
    return Blocks(rows, columns, depth, 8 if rows * columns > 2**13 else 4, 2 if torch.version.hip else stages)


def _convolve_blocks(
    rows: int, tiles: int, in_channels: int, out_channels: int, itemsize: int, precision: str
) -> Blocks:
    columns = _edge(out_channels, _edges(itemsize, precision), 32)
    while columns > 32 and tiles * triton.cdiv(out_channels, columns) < MULTIPROCESSORS:
        columns //= 2
    if itemsize == 4:
        depth = 16 if precision == "ieee" else _edge(in_channels, (16, 32), 8)
    else:
        depth = _edge(in_channels, (16, 32, 64), 16)
    return _layout(rows, columns, depth, itemsize)


def _gradient_blocks(in_channels: int, out_channels: int, itemsize: int, precision: str) -> Blocks:
    """``rows`` are output channels, ``columns`` input channels, ``depth`` pairs."""
    edges = _edges(itemsize, precision)
    depth = 16 if itemsize == 4 and precision == "ieee" else 128 // itemsize
    return _layout(_edge(out_channels, edges, 32), _edge(in_channels, edges, 32), depth, itemsize)


def _by_rows(in_channels: int, pairs: KernelMap) -> bool:
    """Whether a convolution is done by ``scaled_rows_kernel``: a tile would use nearly all of so many taps."""
    return in_channels <= FEW_CHANNELS and pairs.taps > MASK_BITS


def _convolve(feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap) -> Tensor:
    feat = feat.contiguous()
    (_, in_channels), out_channels, m = feat.shape, weight.shape[0], pairs.n_target
    if m == 0 or out_channels == 0:
        return feat.new_empty(m, out_channels)
    if _by_rows(in_channels, pairs):
        plan = segment_plan(pairs)
        out = feat.new_empty(m, out_channels)
        columns = min(128, max(16, triton.next_power_of_2(out_channels)))
        scaled_rows_kernel[(m, triton.cdiv(out_channels, columns))](
            feat, weight.permute(1, 2, 0).contiguous(), bias, out, plan.first, plan.source, plan.tap,
            in_channels, out_channels, TERMS=16, COLUMNS=columns,
        )  # fmt: skip
        return out
    plan = tile_plan(pairs)
    if plan.extra is None:
        return _convolve_tiles(feat, weight, bias, plan, feat.dtype)
    out = _convolve_tiles(feat, weight, None, plan, torch.float32)
    out = out[:m] + plan.extra.sum(out[m:])
    return (out if bias is None else out + bias).to(feat.dtype)


def _convolve_tiles(feat: Tensor, weight: Tensor, bias: Tensor | None, plan: TilePlan, dtype: torch.dtype) -> Tensor:
    in_channels, (out_channels, taps, _) = feat.shape[1], weight.shape
    precision = float32_precision(feat)
    blocks = _convolve_blocks(plan.rows, len(plan.tiles), in_channels, out_channels, feat.element_size(), precision)
    if feat.dtype == torch.float32:
        # The matrix units of Hopper read 32-bit operands along the sum only: an input gradient's permuted weights would
        # be turned around element by element in each program.
        weight = weight.contiguous()
    out = torch.empty(len(plan.order), out_channels, dtype=dtype, device=feat.device)
    convolve_kernel[(len(plan.tiles), triton.cdiv(out_channels, blocks.columns))](
        feat, weight, bias, out, plan.order, plan.tiles, plan.first, plan.tap, plan.index,
        len(out), in_channels, out_channels, *weight.stride(), taps - 1,
        MIRRORED=plan.mirrored, PRECISION=precision,
        ROWS=blocks.rows, COLUMNS=blocks.columns, DEPTH=blocks.depth, **blocks.options,
    )  # fmt: skip
    return out


def _weight_gradient(grad: Tensor, feat: Tensor, pairs: KernelMap) -> Tensor:
    grad, feat = grad.contiguous(), feat.contiguous()
    out_channels, in_channels, taps = grad.shape[1], feat.shape[1], pairs.taps
    out = feat.new_empty(out_channels, taps, in_channels)
    if len(pairs.source) == 0 and pairs.identity is None:
        return out.zero_()
    if out.numel() == 0:
        return out
    precision = float32_precision(feat)
    blocks = _gradient_blocks(in_channels, out_channels, feat.element_size(), precision)
    matrices = triton.cdiv(out_channels, blocks.rows) * triton.cdiv(in_channels, blocks.columns)
    cut = _cut(pairs, matrices, out_channels * in_channels, blocks.depth)
    n = len(cut.tap)
    shares = out
    if not cut.single:
        shares = torch.empty(n, out_channels, in_channels, dtype=torch.float32, device=feat.device)
    weight_gradient_kernel[(n, matrices)](
        grad, feat, shares, pairs.target, pairs.source, cut.tap, cut.begin, cut.end,
        taps, -1 if pairs.identity is None else pairs.identity, in_channels, out_channels,
        SHARES=not cut.single, PRECISION=precision,
        OUTS=blocks.rows, INS=blocks.columns, PAIRS=blocks.depth, **blocks.options,
    )  # fmt: skip
    if not cut.single:
        size = out_channels * in_channels
        sum_pieces_kernel[(taps, triton.cdiv(size, 1024))](shares, out, cut.first, taps, in_channels, size, BLOCK=1024)
    return out


def _cut(pairs: KernelMap, matrices: int, size: int, depth: int) -> Pieces:
    """Pieces of the pairs such that their programs fill a GPU and their matrices of ``size`` fit into the workspace."""
    total = sum(pairs.counts) + (0 if pairs.identity is None else pairs.n_target)
    room = WORKSPACE_BYTES // (4 * size) - pairs.taps
    most = max(total, 1)
    if room > 0:
        # No longer than the average tap: the identity tap has several times as many pairs as the others.
        used = max(1, sum(count > 0 for count in pairs.counts) + (pairs.identity is not None))
        most = max(min(total * matrices // PROGRAMS, total // used), triton.cdiv(total, room), 4 * depth)
    # Powers of two: layers of different widths share their pieces.
    return pieces(pairs, triton.next_power_of_2(most))


PRODUCTS = Products(_convolve, _weight_gradient)


def _sparse_conv(feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap) -> Tensor:
    if torch.is_grad_enabled() and feat.requires_grad and not _by_rows(weight.shape[0], pairs.transposed):
        # Here, where both maps are at hand: in most cases one plan serves both directions.
        tile_plan(pairs.transposed, None if _by_rows(feat.shape[1], pairs) else tile_plan(pairs))
    return differentiable(feat, weight, bias, pairs, PRODUCTS)


def _refuses(feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap) -> str | None:
    given = (feat, weight) if bias is None else (feat, weight, bias)
    reason = device_refusal(*given, pairs.source) or float_refusal(*given)
    if reason is None and max(pairs.n_source, pairs.n_target) > LARGEST_INT32:
        reason = f"at most {LARGEST_INT32} rows, found {pairs.n_source} and {pairs.n_target}"
    if reason is None and weight.numel() > LARGEST_INT32:
        reason = f"weights of at most {LARGEST_INT32} elements, found {weight.numel()}"
    return reason


IMPLEMENTATIONS = {
    "sparse_conv": Implementation(_sparse_conv, _refuses, "GPU tensors of float32, bfloat16, float16"),
}


def specimens() -> list[Specimen]:
    made = []
    # Widths of Panda whose blocks differ, and the fewest channels; float32 with and without TF32.
    for data, precision, rows, channels in (
        ("*bf16", "ieee", 64, 48),
        ("*bf16", "ieee", 128, 96),
        ("*bf16", "ieee", 128, 384),
        ("*fp16", "ieee", 64, 384),
        ("*fp32", "tf32", 64, 48),
        ("*fp32", "tf32", 128, 384),
        ("*fp32", "ieee", 128, 384),
        ("*bf16", "ieee", 64, 1),
    ):
        itemsize = 4 if data == "*fp32" else 2
        blocks = _convolve_blocks(rows, 1000, channels, channels, itemsize, precision)
        shape = {"PRECISION": precision, "ROWS": rows, "COLUMNS": blocks.columns, "DEPTH": blocks.depth}
        # Weights as they are, and the permuted ones of an input gradient, whose output channels lie side by side.
        made.append(_specimen(convolve_kernel, data, {"weight_in": 1, "MIRRORED": False, **shape}, blocks, channels))
        if channels > 48 and itemsize == 2:
            shape |= {"weight_out": 1, "bias": None}
            made.append(_specimen(convolve_kernel, data, {"MIRRORED": True, **shape}, blocks, channels))
        blocks = _gradient_blocks(channels, channels, itemsize, precision)
        shape = {"PRECISION": precision, "OUTS": blocks.rows, "INS": blocks.columns, "PAIRS": blocks.depth}
        made.append(_specimen(weight_gradient_kernel, data, {"SHARES": rows == 128, **shape}, blocks, channels))
    for data in ("*fp32", "*bf16", "*fp16"):
        made.append(_specimen(scaled_rows_kernel, data, {"in_channels": 1, "TERMS": 16, "COLUMNS": 128}, channels=96))
        made.append(_specimen(sum_pieces_kernel, data, {"BLOCK": 1024}, channels=48))
    return list({specimen.name: specimen for specimen in made}.values())  # widths share blocks


def _specimen(kernel, data: str, constants: dict, blocks: Blocks | None = None, channels: int = 1) -> Specimen:
    types = {name: data for name in ("feat", "weight", "bias", "grad", "out")} | {"shares": "*fp32"}
    types |= {name: "*i64" for name in ("order", "first", "target", "source", "piece_begin", "piece_end")}
    types |= {name: "*i32" for name in ("tiles", "entry_tap", "index", "pair_tap", "piece_tap")}
    types |= {"pair_source": "*i64"}
    if kernel is sum_pieces_kernel:
        types["first"] = "*i32"
    if constants.get("SHARES"):
        types["out"] = "*fp32"
    names = [name for name in kernel.arg_names if name not in constants]
    # What a launch finds out by itself: torch aligns tensors, and widths are multiples of 16 or they are not.
    aligned = [name for name in names if name in types]
    if channels % 16 == 0:
        aligned += [n for n in names if n in ("in_channels", "out_channels", "size") or n.startswith("weight_")]
    return Specimen(
        kernel,
        {name: types.get(name, "i32") for name in names},
        constants,
        {} if blocks is None else blocks.options,
        {name: [["tt.divisibility", 16]] for name in aligned},
    )
