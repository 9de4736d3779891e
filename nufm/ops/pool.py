"""Pooling on the lattice, and sums, means and maxima over groups of rows.

Shape legend: N rows (points), n groups, M pooled points, B events, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag

from nufm.ops.neighbors import cell_keys
from nufm.ops.serialize import event_index


@dataclass(frozen=True, eq=False)
class Segments:
    """An index (N,) into n groups, with the lists that sums over its groups need, made when first used.

    A layer that gathers with the same index in every block should share one of these: the sum is the gradient
        of
    the gather, and sorting the index is most of its cost.

    Attributes:
        index: int64 (N,) group of each row, 0..n-1.
        n: number of groups.
    """

    index: Tensor
    n: int

    @cached_property
    def order(self) -> Tensor:
        """int64 (N,) rows sorted by group, stable: sums have a fixed order and are repeatable."""
        return torch.argsort(self.index, stable=True)

    @cached_property
    def counts(self) -> Tensor:
        """int64 (n,) rows of each group."""
        return torch.bincount(self.index, minlength=self.n)

    @cached_property
    def starts(self) -> Tensor:
        """int64 (n,) where each group begins in ``order``."""
        return self.counts.cumsum(0) - self.counts

    def sum(self, x: Tensor) -> Tensor:
        """(n, C) sums of the rows of ``x`` (N, C); not recorded by autograd."""
        if len(self.index) == 0 or self.n == 0 or x.shape[1] == 0:
            return x.new_zeros(self.n, x.shape[1])
        # The sum mode of embedding_bag is a gather and a sum per group: on a CPU several times faster than
        # index_add, and unlike it repeatable on a GPU.
        return embedding_bag(self.order, x, self.starts, mode="sum")


class _Take(Function):
    @staticmethod
    def forward(ctx, x: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return x.index_select(0, segments.index)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Sum.apply(grad, ctx.segments), None


class _Sum(Function):
    @staticmethod
    def forward(ctx, x: Tensor, segments: Segments) -> Tensor:
        ctx.segments = segments
        return segments.sum(x.contiguous())

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Take.apply(grad, ctx.segments), None


class _Max(Function):
    @staticmethod
    def forward(ctx, x: Tensor, segments: Segments) -> Tensor:
        index = segments.index[:, None].expand_as(x)
        out = x.new_zeros(segments.n, x.shape[1]).scatter_reduce_(0, index, x, "amax", include_self=False)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x == out.index_select(0, segments.index))
            ctx.segments = segments
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        (is_max,) = ctx.saved_tensors
        share = is_max.to(grad.dtype)
        ties = ctx.segments.sum(share).clamp_(min=1)
        return share * _Take.apply(grad / ties, ctx.segments), None


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
    if reduce == "sum":
        return _Sum.apply(x, segments)
    if reduce == "mean":
        return _Sum.apply(x, segments) / segments.counts.clamp(min=1)[:, None].to(x.dtype)
    if reduce == "max":
        return _Max.apply(x, segments)
    raise ValueError(f"unknown reduction '{reduce}', expected sum, mean or max")


@dataclass(frozen=True, eq=False)
class Pooling:
    """Which points share a coarse cell.

    Attributes:
        inverse: int64 (N,) pooled point of each point.
        grid: int64 (M, 3) coarse cells, sorted by (event, x, y, z).
        offsets: int64 (B+1,) from 0 to M.
    """

    inverse: Tensor
    grid: Tensor
    offsets: Tensor

    @cached_property
    def segments(self) -> Segments:
        return Segments(self.inverse, len(self.grid))


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
    inverse = torch.empty_like(order)
    inverse[order] = first.cumsum(0) - 1
    member = order[first]
    counts = torch.bincount(event_index(offsets, len(grid))[member], minlength=len(offsets) - 1)
    return Pooling(inverse, coarse[member], torch.cat([offsets.new_zeros(1), counts.cumsum(0)]))
