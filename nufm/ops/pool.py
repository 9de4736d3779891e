"""Pooling on the lattice, and sums, means and maxima over groups of rows.

Shape legend: N rows (points), n groups, M pooled points, B events, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag

from nufm.ops.dispatch import preference, run, use_backend
from nufm.ops.neighbors import cell_keys
from nufm.ops.serialize import ROWS_PER_BLOCK


@dataclass(frozen=True, eq=False)
class Segments:
    """An index (N,) into n groups, with the lists that sums over its groups need, made when first used.

    A layer that gathers with the same index in every block should share one of these: the sum is the gradient of
    the gather, and sorting the index is most of its cost.

    Attributes:
        index: int64 (N,) group of each row, 0..n-1.
        n: number of groups.
        longest: no group has more rows than this, where that is known beforehand (spares kernels a pass for long
            groups); None if not known.
    """

    index: Tensor
    n: int
    longest: int | None = None

    @classmethod
    def ordered(cls, index: Tensor, n: int, order: Tensor, longest: int | None = None) -> Segments:
        """Segments whose stable ``order`` is known already, so that nothing is sorted again."""
        segments = cls(index, n, longest)
        segments.__dict__["order"] = order  # where cached_property keeps its value
        return segments

    @cached_property
    def order(self) -> Tensor:
        """int64 (N,) rows sorted by group, stable: sums have a fixed order and are repeatable."""
        return torch.argsort(self.index, stable=True)

    @cached_property
    def counts(self) -> Tensor:
        """int64 (n,) rows of each group."""
        # Not bincount, which waits for the device to learn the largest index.
        return self.index.new_zeros(self.n).scatter_add_(0, self.index, torch.ones_like(self.index))

    @cached_property
    def starts(self) -> Tensor:
        """int64 (n,) where each group begins in ``order``."""
        return self.counts.cumsum(0) - self.counts

    @torch.no_grad()
    def sum(self, x: Tensor, mean: bool = False) -> Tensor:
        """(n, C) sums (or means) of the rows of ``x`` (N, C), 0 without rows; not recorded by autograd."""
        if len(self.index) == 0 or self.n == 0 or x.shape[1] == 0:
            return x.new_zeros(self.n, x.shape[1])
        return run("segment_sum", _segment_sum, x, self, mean)


def _segment_sum(x: Tensor, segments: Segments, mean: bool) -> Tensor:
    # embedding_bag is a gather and a sum per group: on a CPU several times faster than index_add, and unlike it
    # repeatable on a GPU. It accumulates in float32, but rounds the sum before it divides: float16 would overflow.
    wide = x.float() if mean and x.dtype.itemsize == 2 else x
    return embedding_bag(segments.order, wide, segments.starts, mode="mean" if mean else "sum").to(x.dtype)


class _Take(Function):
    @staticmethod
    def forward(ctx, x: Tensor, segments: Segments) -> Tensor:
        ctx.segments, ctx.asked = segments, preference()
        return x.index_select(0, segments.index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        with use_backend(*ctx.asked):  # the threads of autograd do not see the caller's
            return _Sum.apply(grad, ctx.segments, False), None


class _Sum(Function):
    @staticmethod
    def forward(ctx, x: Tensor, segments: Segments, mean: bool) -> Tensor:
        ctx.segments, ctx.mean, ctx.asked = segments, mean, preference()
        return segments.sum(x.contiguous(), mean)

    @staticmethod
    def backward(ctx, grad: Tensor):
        with use_backend(*ctx.asked):
            if ctx.mean:
                grad = (grad / ctx.segments.counts.clamp(min=1)[:, None]).to(grad.dtype)
            return _Take.apply(grad, ctx.segments), None, None


def _is_max(x: Tensor, out: Tensor, index: Tensor) -> Tensor:
    """bool (N, C): ``x == out[index]``, on a CPU in blocks: fresh pages for (N, C) numbers cost more than they do."""
    is_max = torch.empty_like(x, dtype=torch.bool)
    rows = ROWS_PER_BLOCK if x.device.type == "cpu" else max(1, len(x))
    for block, group, result in zip(x.split(rows), index.split(rows), is_max.split(rows), strict=True):
        torch.eq(block, out.index_select(0, group), out=result)
    return is_max


class _Max(Function):
    @staticmethod
    def forward(ctx, x: Tensor, segments: Segments, maximum: Callable[[Tensor, Segments], Tensor]) -> Tensor:
        out = maximum(x, segments)
        ctx.segments, ctx.asked = segments, preference()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_is_max(x, out, segments.index))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        (is_max,) = ctx.saved_tensors
        with use_backend(*ctx.asked):
            # Not in half precision, which cannot count far.
            counted = grad.dtype if grad.dtype.itemsize > 2 else torch.float32
            ties = ctx.segments.sum(is_max.to(counted)).clamp_(min=1)
            return _Take.apply((grad / ties).to(grad.dtype), ctx.segments).mul_(is_max), None, None


def _amax(x: Tensor, segments: Segments) -> Tensor:
    index = segments.index[:, None].expand_as(x)
    return x.new_zeros(segments.n, x.shape[1]).scatter_reduce_(0, index, x, "amax", include_self=False)


def segment_max(
    x: Tensor, segments: Segments, maximum: Callable[[Tensor, Segments], Tensor] = _amax
) -> Tensor:
    """The reference of the op ``segment_max``, with any other function for the maxima themselves.

    Args:
        x: float (N, C).
        segments: groups of the rows.
        maximum: (x, segments) -> (n, C), 0 without rows and NaN where a row is; not differentiated.
    """
    return _Max.apply(x, segments, maximum)


def take(x: Tensor, index: Tensor | Segments) -> Tensor:
    """Rows of ``x`` (n, C) at ``index`` (N,): ``x[index]`` with a fast and repeatable gradient.

    This is un-pooling when ``index`` is the ``inverse`` of a :class:`Pooling`.

    Returns:
        (N, C). Differentiable any number of times.
    """
    segments = index if isinstance(index, Segments) else Segments(index, len(x))
    if x.dim() != 2 or len(x) != segments.n:
        raise ValueError(f"'x' must be ({segments.n}, C), found {tuple(x.shape)}")
    return _Take.apply(x, segments)


def segment_reduce(
    x: Tensor, index: Tensor | Segments, n: int, reduce: Literal["sum", "mean", "max"]
) -> Tensor:
    """Reduce the rows of each group; groups without rows give 0.

    Args:
        x: float (N, C).
        index: int64 (N,) group of each row in any order, or shared :class:`Segments`.
        n: number of groups.
        reduce: ``sum``, ``mean`` or ``max``; equal maxima share the gradient.

    Returns:
        float (n, C). Differentiable twice in ``x``.

    Raises:
        ValueError: wrong shapes or dtypes, or an unknown reduction.
    """
    segments = index if isinstance(index, Segments) else Segments(index, n)
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"'x' must be floating point (N, C), found {x.dtype} {tuple(x.shape)}")
    if segments.index.dtype != torch.int64 or segments.index.shape != (len(x),) or segments.n != n:
        raise ValueError(
            f"'index' must be int64 ({len(x)},) with {n} groups, "
            f"found {segments.index.dtype} {tuple(segments.index.shape)} with {segments.n}"
        )
    if reduce in ("sum", "mean"):
        return _Sum.apply(x, segments, reduce == "mean")
    if reduce == "max":
        if len(x) == 0 or n == 0 or x.shape[1] == 0:
            return segment_max(x, segments)
        return run("segment_max", segment_max, x.contiguous(), segments)
    raise ValueError(f"unknown reduction '{reduce}', expected sum, mean or max")


@dataclass(frozen=True, eq=False)
class Pooling:
    """Which points share a coarse cell.

    Attributes:
        segments: the M pooled points as groups of the N points.
        grid: int64 (M, 3) coarse cells, sorted by (event, x, y, z).
        offsets: int64 (B+1,) from 0 to M.
    """

    segments: Segments
    grid: Tensor
    offsets: Tensor

    @property
    def inverse(self) -> Tensor:
        """int64 (N,) pooled point of each point."""
        return self.segments.index


def pool_cells(grid: Tensor, offsets: Tensor, stride: int = 2) -> Pooling:
    """Merge the points of each event whose cells agree after division by ``stride``.

    Args:
        grid: int64 (N, 3), >= 0.
        offsets: int64 (B+1,).
        stride: edge of a coarse cell in cells.

    Returns:
        :class:`Pooling`.

    Raises:
        ValueError: stride below 1, or as :func:`nufm.ops.neighbors.cell_keys`.
    """
    if stride < 1:
        raise ValueError(f"the pooling stride must be >= 1, found {stride}")
    coarse = torch.div(grid, stride, rounding_mode="floor")
    keys, _ = cell_keys(coarse, offsets)
    keys, order = torch.sort(keys, stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    passed = first.new_zeros(len(first) + 1, dtype=torch.int64)  # pooled points before each place of the order
    torch.cumsum(first, 0, out=passed[1:])
    inverse = torch.empty_like(order).scatter_(0, order, passed[1:] - 1)
    pooled = coarse[order[first]]
    # An event keeps its rows in the order, so its pooled points end where its rows end.
    return Pooling(Segments.ordered(inverse, len(pooled), order), pooled, passed[offsets])
