"""Submanifold sparse convolution (Graham et al., arXiv 1711.10275) on packed points.

Shape legend: N points, K = k^3 taps, P = neighbour pairs (point, tap) without the centre tap, Ci and Co
channels.

    out[i] = bias + sum_t  W[:, t] . feat[neighbor(i, t)]        (missing neighbours contribute nothing)

Points have few neighbours (a track of voxels fills a quarter of the 27 taps), so we compute only the pairs:
gather the neighbour rows grouped by tap, one matrix product per tap, then sum the products of each point. The
lists that this needs depend on coordinates only: :func:`kernel_map` makes them once per resolution level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd import Function

from nufm.ops.neighbors import neighbor_pairs
from nufm.ops.pool import Segments


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Pair lists of a neighbour map, computed once per level and shared by its convolutions.

    Attributes:
        source: int64 (P,) row that is read, grouped by tap, without the centre tap.
        target: int64 (P,) row that is written.
        counts: number of pairs of each of the K taps (0 for the centre).
        n: number of points.
    """

    source: Tensor
    target: Tensor
    counts: tuple[int, ...]
    n: int

    @cached_property
    def by_target(self) -> Segments:
        return Segments(self.target, self.n)

    @cached_property
    def transposed(self) -> KernelMap:
        """The map of the adjoint: what was read is written."""
        # No link back to this map: a cycle would keep the lists of every batch until garbage is collected.
        return KernelMap(self.target, self.source, self.counts, self.n)

    @property
    def taps(self) -> int:
        return len(self.counts)


def kernel_map_of(grid: Tensor, offsets: Tensor, kernel_size: int = 3) -> KernelMap:
    """Pair lists straight from the lattice: ``kernel_map(neighbor_map(...))`` without the (N, K) table
    between.
    """
    source, target, counts = neighbor_pairs(grid, offsets, kernel_size)
    return KernelMap(source, target, counts, len(grid))


def kernel_map(neighbors: Tensor) -> KernelMap:
    """Pair lists of a neighbour map.

    Args:
        neighbors: int64 (N, K), -1 = none, the centre tap being the point itself (:func:`neighbor_map`).

    Raises:
        ValueError: not int64 (N, odd K), or a centre tap that is not the point itself.
    """
    if neighbors.dim() != 2 or neighbors.shape[1] % 2 == 0 or neighbors.dtype != torch.int64:
        raise ValueError(
            f"'neighbors' must be int64 (N, K) with odd K, found {tuple(neighbors.shape)} {neighbors.dtype}"
        )
    n, taps = neighbors.shape
    table = neighbors.t()
    if not torch.equal(table[taps // 2], torch.arange(n, device=table.device)):
        raise ValueError("the centre tap of 'neighbors' must be each point itself")
    used = table >= 0
    used[taps // 2] = False
    source = table[used]
    target = used.nonzero()[:, 1]
    return KernelMap(source, target, tuple(used.sum(1).tolist()), n)


def _pair_products(feat: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
    """(N, Co): the sum over all taps, with weight (Co, K, Ci)."""
    centre = pairs.taps // 2
    out = feat @ weight[:, centre].t()
    if len(pairs.source) == 0:
        return out
    rows = feat.index_select(0, pairs.source)
    product = rows.new_empty(len(rows), weight.shape[0])
    for x, w, y in zip(rows.split(pairs.counts), weight.unbind(1), product.split(pairs.counts), strict=True):
        if len(x):
            torch.mm(x, w.t(), out=y)
    return out.add_(pairs.by_target.sum(product))


class _Convolve(Function):
    """(feat (N, Ci), weight (Co, K, Ci)) -> (N, Co). Differentiable any number of times."""

    @staticmethod
    def forward(ctx, feat: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
        ctx.save_for_backward(feat, weight)
        ctx.pairs = pairs
        return _pair_products(feat, weight, pairs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        feat, weight = ctx.saved_tensors
        grad_feat = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_feat = _Convolve.apply(grad, weight.permute(2, 1, 0), ctx.pairs.transposed)
        if ctx.needs_input_grad[1]:
            grad_weight = _WeightGradient.apply(grad, feat, ctx.pairs)
        return grad_feat, grad_weight, None


class _WeightGradient(Function):
    """(grad (N, Co), feat (N, Ci)) -> (Co, K, Ci): per tap, the sum of grad[target] x feat[source]."""

    @staticmethod
    def forward(ctx, grad: Tensor, feat: Tensor, pairs: KernelMap) -> Tensor:
        ctx.save_for_backward(grad, feat)
        ctx.pairs = pairs
        out = feat.new_empty(grad.shape[1], pairs.taps, feat.shape[1])
        rows, grads = feat.index_select(0, pairs.source), grad.index_select(0, pairs.target)
        for x, g, w in zip(rows.split(pairs.counts), grads.split(pairs.counts), out.unbind(1), strict=True):
            if len(x):
                torch.mm(g.t(), x, out=w)
            else:
                w.zero_()
        torch.mm(grad.t(), feat, out=out[:, pairs.taps // 2])
        return out

    @staticmethod
    def backward(ctx, cotangent: Tensor):
        grad, feat = ctx.saved_tensors
        to_grad = to_feat = None
        if ctx.needs_input_grad[0]:
            to_grad = _Convolve.apply(feat, cotangent, ctx.pairs)
        if ctx.needs_input_grad[1]:
            to_feat = _Convolve.apply(grad, cotangent.permute(2, 1, 0), ctx.pairs.transposed)
        return to_grad, to_feat, None


def submanifold_conv(
    feat: Tensor, neighbors: Tensor | KernelMap, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Cross-correlation (no flip) over the occupied cells; kernel index k//2 + 1 looks at the +1 neighbour.

    Args:
        feat: float (N, Ci).
        neighbors: int64 (N, K) of :func:`neighbor_map`, or its :func:`kernel_map`; make the latter once
            for all convolutions of a level.
        weight: float (Co, k, k, k, Ci), kernel axes in the order of the grid columns.
        bias: float (Co,) or None.

    Returns:
        float (N, Co). Differentiable twice and more in ``feat``, ``weight`` and ``bias``.

    Raises:
        ValueError: shapes that do not fit together, or mixed dtypes.
    """
    pairs = neighbors if isinstance(neighbors, KernelMap) else kernel_map(neighbors)
    if weight.dim() != 5 or weight[0, ..., 0].numel() != pairs.taps:
        raise ValueError(
            f"'weight' must be (Co, k, k, k, Ci) with {pairs.taps} taps, found {tuple(weight.shape)}"
        )
    if feat.dim() != 2 or feat.shape != (pairs.n, weight.shape[4]):
        raise ValueError(f"'feat' must be {(pairs.n, weight.shape[4])}, found {tuple(feat.shape)}")
    if feat.dtype != weight.dtype or not feat.is_floating_point():
        raise ValueError(
            f"'feat' is {feat.dtype} and 'weight' is {weight.dtype}; both must be the same floating type"
        )
    with torch.autocast(feat.device.type, enabled=False):  # the caller's dtype is the dtype of the products
        out = _Convolve.apply(feat, weight.flatten(1, 3), pairs)
    return out if bias is None else out + bias
