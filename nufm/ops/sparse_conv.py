"""Sparse convolution (submanifold: Graham et al., arXiv 1711.10275) on packed points.

Shape legend: N rows read, M rows written (N = M for a submanifold convolution), K taps, P pairs (row read, row
written) of the kernel map, Ci and Co channels.

    out[i] = bias + sum over pairs (j, i) of tap t:  W[:, t] . feat[j]

Points have few neighbours (a track of voxels fills a quarter of the 27 taps), so the reference computes only the
pairs: gather the rows that are read, grouped by tap, one matrix product per tap, then sum the products of each
result. Strided and transposed convolutions differ in the map only (:mod:`nufm.ops.kernel_map`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag

from nufm.ops import dispatch
from nufm.ops.kernel_map import KernelMap, kernel_map

# Up to this many input channels a result is a sum of rows of the weights, scaled by the inputs: no matrix products,
# whose number, one per tap (1440 for a patch of 12 x 12 x 10), would cost more than the arithmetic.
FEW_CHANNELS = 4


class Products(NamedTuple):
    """The two products of which a convolution and its derivatives of any order consist.

    ``convolve(feat (N, Ci), weight (Co, K, Ci), bias (Co,) | None, pairs) -> (M, Co)``;
    ``weight_gradient(grad (M, Co), feat (N, Ci), pairs) -> (Co, K, Ci)``.
    """

    convolve: Callable[[Tensor, Tensor, Tensor | None, KernelMap], Tensor]
    weight_gradient: Callable[[Tensor, Tensor, KernelMap], Tensor]


def convolve(feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap) -> Tensor:
    """The reference of :class:`Products`, without autograd."""
    if pairs.identity is not None:
        centre = weight[:, pairs.identity].t()
        out = feat @ centre if bias is None else torch.addmm(bias, feat, centre)
    elif bias is None:
        out = feat.new_zeros(pairs.n_target, weight.shape[0])
    else:
        out = bias.expand(pairs.n_target, -1).clone()
    few = feat.shape[1] <= FEW_CHANNELS
    table = weight.permute(1, 2, 0).reshape(-1, weight.shape[0]) if few and pairs.groups else None
    for taps, span, by_target in pairs.groups:
        rows = feat.index_select(0, pairs.source[span])
        if few:
            # (pairs, Ci) rows of the table, brought into the order of the results.
            index = (pairs.tap[span, None] * feat.shape[1] + torch.arange(feat.shape[1], device=feat.device))
            order = by_target.order
            out += embedding_bag(
                index[order].flatten(),
                table,
                by_target.starts * feat.shape[1],
                mode="sum",
                per_sample_weights=rows[order].flatten(),
            )
            continue
        product = rows.new_empty(len(rows), weight.shape[0])
        counts = pairs.counts[taps]
        for x, w, y in zip(rows.split(counts), weight[:, taps].unbind(1), product.split(counts), strict=True):
            if len(x):
                torch.mm(x, w.t(), out=y)
        out += by_target.sum(product)
    return out


def weight_gradient(grad: Tensor, feat: Tensor, pairs: KernelMap) -> Tensor:
    """The reference of :class:`Products`, without autograd."""
    out = feat.new_zeros(grad.shape[1], pairs.taps, feat.shape[1])
    if feat.shape[1] <= FEW_CHANNELS and len(pairs.source):
        # Pairs are grouped by tap: a bag of gradients per tap, scaled by the inputs.
        counts = torch.tensor(pairs.counts, device=feat.device)
        rows = feat.index_select(0, pairs.source)
        for channel, scale in enumerate(rows.unbind(1)):
            bags = embedding_bag(
                pairs.target, grad, counts.cumsum(0) - counts, mode="sum", per_sample_weights=scale.contiguous()
            )
            out[:, :, channel] = bags.t()
    else:
        for taps, span, _ in pairs.groups:
            rows, grads = feat.index_select(0, pairs.source[span]), grad.index_select(0, pairs.target[span])
            counts = pairs.counts[taps]
            for x, g, w in zip(rows.split(counts), grads.split(counts), out[:, taps].unbind(1), strict=True):
                if len(x):
                    torch.mm(g.t(), x, out=w)
    if pairs.identity is not None:
        torch.mm(grad.t(), feat, out=out[:, pairs.identity])
    return out


REFERENCE = Products(convolve, weight_gradient)


class _Convolve(Function):
    """(feat (N, Ci), weight (Co, K, Ci), bias) -> (M, Co). Differentiable any number of times."""

    @staticmethod
    def forward(ctx, feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap, products: Products):
        ctx.save_for_backward(feat, weight)
        ctx.pairs, ctx.products = pairs, products
        return products.convolve(feat, weight, bias, pairs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        feat, weight = ctx.saved_tensors
        grad_feat = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_feat = _Convolve.apply(grad, weight.permute(2, 1, 0), None, ctx.pairs.transposed, ctx.products)
        if ctx.needs_input_grad[1]:
            grad_weight = _WeightGradient.apply(grad, feat, ctx.pairs, ctx.products)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_feat, grad_weight, grad_bias, None, None


class _WeightGradient(Function):
    """(grad (M, Co), feat (N, Ci)) -> (Co, K, Ci): per tap, the sum of grad[target] x feat[source]."""

    @staticmethod
    def forward(ctx, grad: Tensor, feat: Tensor, pairs: KernelMap, products: Products):
        ctx.save_for_backward(grad, feat)
        ctx.pairs, ctx.products = pairs, products
        return products.weight_gradient(grad, feat, pairs)

    @staticmethod
    def backward(ctx, cotangent: Tensor):
        grad, feat = ctx.saved_tensors
        to_grad = to_feat = None
        if ctx.needs_input_grad[0]:
            to_grad = _Convolve.apply(feat, cotangent, None, ctx.pairs, ctx.products)
        if ctx.needs_input_grad[1]:
            to_feat = _Convolve.apply(grad, cotangent.permute(2, 1, 0), None, ctx.pairs.transposed, ctx.products)
        return to_grad, to_feat, None, None


def differentiable(
    feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap, products: Products = REFERENCE
) -> Tensor:
    """The convolution with derivatives of any order, made of two products."""
    return _Convolve.apply(feat, weight, bias, pairs, products)


def sparse_conv(feat: Tensor, pairs: KernelMap, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Cross-correlation (no flip) over the pairs of a kernel map.

    Args:
        feat: float (N, Ci).
        pairs: of :func:`~nufm.ops.kernel_map.submanifold_map`, of :func:`~nufm.ops.kernel_map.strided_map` (strided
            and patch convolutions), or its ``transposed`` (the way up).
        weight: float (Co, kx, ky, kz, Ci), kernel axes in the order of the grid columns. For a transposed map the
            taps are those of the way down: the adjoint of a strided convolution has ``weight.transpose(0, 4)``.
        bias: float (Co,) or None.

    Returns:
        float (M, Co) in the dtype of ``feat``. The reference and the Triton kernels are differentiable any number of
        times in ``feat``, ``weight`` and ``bias``.

    Raises:
        ValueError: shapes that do not fit together, or mixed dtypes.
    """
    if weight.dim() != 5 or weight[0, ..., 0].numel() != pairs.taps:
        raise ValueError(
            f"'weight' must be (Co, kx, ky, kz, Ci) with {pairs.taps} taps, found {tuple(weight.shape)}"
        )
    if feat.dim() != 2 or feat.shape != (pairs.n_source, weight.shape[4]):
        raise ValueError(f"'feat' must be {(pairs.n_source, weight.shape[4])}, found {tuple(feat.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"'bias' must be ({weight.shape[0]},), found {tuple(bias.shape)}")
    dtypes = {x.dtype for x in (feat, weight, bias) if x is not None}
    if len(dtypes) > 1 or not feat.is_floating_point():
        raise ValueError(
            f"'feat' is {feat.dtype} and 'weight' is {weight.dtype}; all must be of the same floating type"
        )
    with torch.autocast(feat.device.type, enabled=False):  # the caller's dtype is the dtype of the products
        return dispatch.run("sparse_conv", differentiable, feat, weight.flatten(1, 3), bias, pairs)


def submanifold_conv(
    feat: Tensor, neighbors: Tensor | KernelMap, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """:func:`sparse_conv` that also takes a table of neighbours; kernel index k//2 + 1 looks at the +1 neighbour.

    Args:
        neighbors: int64 (N, K) of :func:`nufm.ops.neighbors.neighbor_map`, or a map; make the latter once for all
            convolutions of a level.
    """
    pairs = neighbors if isinstance(neighbors, KernelMap) else kernel_map(neighbors)
    return sparse_conv(feat, pairs, weight, bias)
