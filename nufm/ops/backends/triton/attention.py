"""Windowed attention that reads queries, keys and values where they lie.

Shape legend: Nq rows of queries, Nk rows of keys, P = Nq places of queries, R places of keys, W windows, T tiles,
H heads, D channels per head of queries and keys, DV of values, S pairs.

Softmax over blocks of keys with running maximum and sum (Milakov & Gimelshein, "Online normalizer calculation for
softmax", arXiv 1805.02867); the backward pass computes the weights again from the saved logarithm of the sum (Dao et
al., "FlashAttention", arXiv 2205.14135, section 3). One program owns a tile of queries, or of keys, of one window: no
two programs write to the same place, so that results are repeatable. Products are of the dtype of the inputs, all
sums, maxima and exponentials of float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nufm.ops.backends.triton.aot import Specimen
from nufm.ops.backends.triton.attention_kernels import SIZES, forward_kernel, key_grad_kernel, query_grad_kernel
from nufm.ops.backends.triton.device import device_refusal, float32_precision, float_refusal
from nufm.ops.dispatch import Implementation, preference, use_backend
from nufm.ops.window_cuts import Cuts
from nufm.ops.windows import Windows

MAX_WIDTH = 128


class Shape(NamedTuple):
    """Edges of the tiles of queries and keys, and how they are computed."""

    queries: int
    keys: int
    warps: int
    stages: int

    @classmethod
    def of(cls, cuts: Cuts, width: int, itemsize: int, exact: bool, backward: bool, with_bias: bool) -> Shape:
        """Tiles that the registers of a compute capability 9.0 hold, no longer than the longest window asks for.

        Args:
            width: most channels per head.
            itemsize: bytes of a channel.
            exact: products of float32, which have no tensor cores: their operands lie in registers.
        """
        if exact:
            queries, keys = (16 if width > 64 and backward else 32), 32
        else:
            queries = 128 if width * itemsize <= 128 and not (backward or with_bias) else 64
            keys = 32 if with_bias else 64
            if width * itemsize > 256:  # wide TF32: tiles twice as long need more than 99 KiB of shared memory
                queries = keys = 32
        queries, keys = (
            max(16, min(edge, triton.next_power_of_2(n))) for edge, n in zip((queries, keys), cuts.longest, strict=True)
        )
        return cls(queries, keys, 8 if width > (32 if exact else 64) else 4, 2)

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def _tiles(cuts: Cuts, side: int, edge: int) -> tuple[Tensor, Tensor]:
    """Window and first place, within it, of each tile of queries (side 0) or keys (side 1); the longest loops first."""
    made = cuts.tables.get(("tiles", side, edge))
    if made is None:
        lengths = cuts.lengths[side]
        counts = (lengths + edge - 1) // edge
        total = int(((cuts.host_lengths[side] + edge - 1) // edge).sum())
        window = torch.arange(len(lengths), device=lengths.device).repeat_interleave(counts, output_size=total)
        first = (torch.arange(total, device=lengths.device) - (counts.cumsum(0) - counts)[window]) * edge
        order = torch.argsort(cuts.lengths[1 - side][window], descending=True, stable=True)
        made = cuts.tables["tiles", side, edge] = window[order].int(), first[order].int()
    return made


def _block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _last_is_dense(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


class _Attention(Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None):
        q, k, v = (_last_is_dense(x) for x in (q, k, v))
        bias = bias if bias is None else bias.contiguous()
        n, heads, _ = q.shape
        out = q.new_empty(n, heads, v.shape[2])
        lse = torch.empty(heads, n, dtype=torch.float32, device=q.device)
        ctx.windows, ctx.scale, ctx.precision, ctx.asked = windows, scale, float32_precision(q), preference()
        ctx.save_for_backward(q, k, v, bias, out, lse)
        shape, edges = _edges(ctx, q, v, bias, backward=False)
        tiles = _tiles(windows.cuts, 0, shape.queries)
        grid = (len(tiles[0]) * heads,)
        forward_kernel[grid](q, k, v, bias, out, lse, *_lists(ctx, bias), *tiles, *_numbers(ctx, q, k, v), **edges)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, k, v, bias, out, lse = ctx.saved_tensors
        windows, grad = ctx.windows, grad.contiguous()
        heads, width, value_width = q.shape[1], q.shape[2], v.shape[2]
        shape, edges = _edges(ctx, q, v, bias, backward=True)
        lists, numbers = _lists(ctx, bias), _numbers(ctx, q, k, v)
        delta = torch.empty_like(lse)
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dbias = torch.empty_like(bias) if ctx.needs_input_grad[5] else None
        tiles = _tiles(windows.cuts, 0, shape.queries)
        query_grad_kernel[(len(tiles[0]) * heads,)](
            q, k, v, bias, out, grad, lse, delta, dq, dbias, *lists, *tiles, *numbers, **edges
        )
        # One row for each place of a key, of both gradients: a row of k that stands in several is summed afterwards.
        n_places = len(k) if windows.key_rows is None else len(windows.key_rows)
        both = k.new_empty(n_places, heads * (width + value_width))
        tiles = _tiles(windows.cuts, 1, shape.keys)
        key_grad_kernel[(len(tiles[0]) * heads,)](
            q, k, v, bias, grad, lse, delta, both, both[:, heads * width :], *lists, *tiles, *numbers, **edges
        )
        if windows.keys is not None:
            with use_backend(*ctx.asked):  # the threads of autograd do not see the caller's
                both = windows.keys.sum(both)
        dk, dv = both.split([heads * width, heads * value_width], 1)
        return dq, dk.unflatten(1, (heads, width)), dv.unflatten(1, (heads, value_width)), None, None, dbias


def _edges(ctx, q: Tensor, v: Tensor, bias: Tensor | None, backward: bool) -> tuple[Shape, dict[str, int | str]]:
    width, value_width = q.shape[2], v.shape[2]
    exact = q.dtype == torch.float32 and ctx.precision == "ieee"
    shape = Shape.of(ctx.windows.cuts, max(width, value_width), q.element_size(), exact, backward, bias is not None)
    return shape, {
        "D": width,
        "DV": value_width,
        "BLOCK_D": _block(width),
        "BLOCK_DV": _block(value_width),
        "BLOCK_M": shape.queries,
        "BLOCK_N": shape.keys,
        "PRECISION": ctx.precision,
        **shape.options,
    }


def _lists(ctx, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    windows = ctx.windows
    pairs = None if bias is None else windows.cuts.pair_offsets
    return windows.query_rows, windows.key_rows, windows.query_boundaries, windows.key_boundaries, pairs


def _numbers(ctx, q: Tensor, k: Tensor, v: Tensor) -> tuple[int | float, ...]:
    strides = (s for x in (q, k, v) for s in x.stride()[:2])
    return q.shape[1], len(q), ctx.windows.cuts.n_pairs, ctx.scale, *strides


def _refuses(q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None) -> str | None:
    widest = max(q.shape[2], v.shape[2])
    if widest > MAX_WIDTH:
        return f"up to {MAX_WIDTH} channels per head, found {widest}"
    tiles = max(windows.cuts.n_places) // 16 + len(windows.query_boundaries)  # at most: none is shorter than 16
    if tiles * q.shape[1] >= 2**31:
        return f"{tiles} tiles of {q.shape[1]} heads exceed the 2^31 programs of a launch"
    tensors = (q, k, v) if bias is None else (q, k, v, bias)
    return float_refusal(q, k, v) or device_refusal(*tensors, windows.query_boundaries)


def _attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None) -> Tensor:
    return _Attention.apply(q, k, v, windows, scale, bias)


IMPLEMENTATIONS = {
    "windowed_attention": Implementation(
        _attention, _refuses, f"GPU tensors of float32, bfloat16, float16; up to {MAX_WIDTH} channels per head"
    )
}


def specimens() -> list[Specimen]:
    long = ("query_rows", "key_rows", "query_boundaries", "key_boundaries", "pair_offsets")
    types = {name: "*i64" for name in long}
    types |= {"tile_window": "*i32", "tile_first": "*i32", "lse": "*fp32", "delta": "*fp32"}
    types |= {name: "i32" for name in (*SIZES, "heads", "q_row", "q_head", "k_row", "k_head", "v_row", "v_head")}
    types["scale"] = "fp32"
    made = []
    cases = (
        ("*bf16", "ieee", 16, False),
        ("*bf16", "ieee", 16, True),
        ("*bf16", "ieee", 128, False),
        ("*fp16", "ieee", 16, False),
        ("*fp32", "ieee", 16, False),
        ("*fp32", "tf32", 64, False),
        ("*fp32", "tf32", 128, False),
    )
    cuts = Cuts(torch.tensor([0, 256]), torch.tensor([0, 256]))
    for data, precision, width, with_bias in cases:
        types |= {name: data for name in ("q", "k", "v", "out", "grad", "dq", "dk", "dv", "bias", "dbias")}
        for kernel in (forward_kernel, query_grad_kernel, key_grad_kernel):
            exact = data == "*fp32" and precision == "ieee"
            itemsize = 4 if data == "*fp32" else 2
            shape = Shape.of(cuts, width, itemsize, exact, kernel is not forward_kernel, with_bias)
            constants = {"D": width, "DV": width, "BLOCK_D": _block(width), "BLOCK_DV": _block(width)}
            constants |= {"BLOCK_M": shape.queries, "BLOCK_N": shape.keys, "PRECISION": precision}
            if not with_bias:
                constants |= {name: None for name in ("bias", "dbias", "pair_offsets")}
            names = [name for name in kernel.arg_names if name not in constants]
            constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
            attrs = {n: [["tt.divisibility", 16]] for n in names if n not in SIZES and n != "scale"}
            made.append(Specimen(kernel, {n: types[n] for n in names}, constants, shape.options, attrs))
    return made
