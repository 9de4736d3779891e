"""Sparse convolution (submanifold: Graham et al., arXiv 1711.10275) on packed points.

Shape legend: N rows read, M rows written (N = M for a submanifold convolution), K taps, P pairs (row read, row
written) of the kernel map, Ci and Co channels.

    out[i] = bias + sum over pairs (j, i) of tap t:  W[:, t] . feat[j]

Points have few neighbours (a track of voxels fills a quarter of the 27 taps), so the reference computes only the
pairs: gather the rows that are read, grouped by tap, one matrix product per tap, then sum the products of each
result. Strided and transposed convolutions differ in the map only (:mod:`nufm.ops.kernel_map`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import embedding_bag

from nufm.ops.dispatch import preference, run, use_backend
from nufm.ops.kernel_map import KernelMap, TapGroup, kernel_map

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
    if feat.dtype.itemsize < 4:  # the sum over taps is rounded once, as kernels do it
        bias = bias if bias is None else bias.float()
        return convolve(feat.float(), weight.float(), bias, pairs).to(feat.dtype)
    weight = _matrices(weight)
    if pairs.identity is not None:
        centre = weight[pairs.identity].t()
        out = feat @ centre if bias is None else torch.addmm(bias, feat, centre)
    elif bias is None:
        out = feat.new_zeros(pairs.n_target, weight.shape[1])
    else:
        out = bias.expand(pairs.n_target, -1).clone()
    if feat.shape[1] <= FEW_CHANNELS:
        return _add_scaled_rows(out, feat, weight, pairs)
    for group in pairs.groups:
        rows = feat.index_select(0, group.source)
        product = rows.new_empty(len(rows), weight.shape[1])
        for batch, x, y in _batches(group, rows, product):
            torch.bmm(x, weight[batch.slice].transpose(1, 2), out=y)
        out += group.by_target.sum(product)
    return out


def weight_gradient(grad: Tensor, feat: Tensor, pairs: KernelMap) -> Tensor:
    """The reference of :class:`Products`, without autograd."""
    if feat.dtype.itemsize < 4:
        return weight_gradient(grad.float(), feat.float(), pairs).to(feat.dtype)
    # (K, Ci, Co): one matrix after the other, as the models keep their weights. What no product fills is set to zero.
    out = feat.new_empty(pairs.taps, feat.shape[1], grad.shape[1])
    for tap, count in enumerate(pairs.counts):
        if count == 0 and tap != pairs.identity:
            out[tap].zero_()
    if feat.shape[1] <= FEW_CHANNELS:
        _sum_scaled_gradients(out, grad, feat, pairs)
    else:
        for group in pairs.groups:
            rows, grads = feat.index_select(0, group.source), grad.index_select(0, group.by_target.index)
            for batch, x, g in _batches(group, rows, grads):
                torch.bmm(x.transpose(1, 2), g, out=out[batch.slice])
    if pairs.identity is not None:
        torch.mm(feat.t(), grad, out=out[pairs.identity])
    return out.permute(2, 0, 1)


def _matrices(weight: Tensor) -> Tensor:
    """(Co, K, Ci) -> (K, Co, Ci), each tap's matrix in one piece: rows far apart in memory halve the speed."""
    weight = weight.transpose(0, 1)
    rows, columns = weight.shape[1:]
    is_dense = weight.stride()[1:] in ((columns, 1), (1, rows))
    return weight if is_dense else weight.contiguous()


def _batches(group: TapGroup, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Each batch of a group with its rows (P', C) of the tensors, as (taps, pairs, C)."""
    sizes = [batch.taps * batch.pairs for batch in group.batches]
    for batch, *parts in zip(group.batches, *(x.split(sizes) for x in tensors), strict=True):
        yield batch, *(x.view(batch.taps, batch.pairs, -1) for x in parts)


def _add_scaled_rows(out: Tensor, feat: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
    channels = feat.shape[1]
    table = weight.transpose(1, 2).reshape(-1, weight.shape[1])  # (K Ci, Co)
    for group in pairs.groups:
        order = group.by_target.order
        rows = group.tap[order, None] * channels + torch.arange(channels, device=feat.device)
        scale = feat.index_select(0, group.source[order])
        starts = group.by_target.starts * channels
        out += embedding_bag(rows.flatten(), table, starts, mode="sum", per_sample_weights=scale.flatten())
    return out


def _sum_scaled_gradients(out: Tensor, grad: Tensor, feat: Tensor, pairs: KernelMap) -> None:
    if len(pairs.source) == 0:
        return
    counts = torch.tensor(pairs.counts, device=feat.device)
    starts = counts.cumsum(0) - counts
    for channel, scale in enumerate(feat.index_select(0, pairs.source).t().contiguous()):
        out[:, channel] = embedding_bag(pairs.target, grad, starts, mode="sum", per_sample_weights=scale)


REFERENCE = Products(convolve, weight_gradient)


class _Convolve(Function):
    """(feat (N, Ci), weight (Co, K, Ci), bias) -> (M, Co). Differentiable any number of times."""

    @staticmethod
    def forward(ctx, feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap, products: Products):
        ctx.save_for_backward(feat, weight)
        ctx.pairs, ctx.products, ctx.asked = pairs, products, preference()
        return products.convolve(feat, weight, bias, pairs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        feat, weight = ctx.saved_tensors
        grad_feat = grad_weight = grad_bias = None
        with use_backend(*ctx.asked):  # the sums within; autograd's threads know nothing of a forced backend
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
        ctx.pairs, ctx.products, ctx.asked = pairs, products, preference()
        return products.weight_gradient(grad, feat, pairs)

    @staticmethod
    def backward(ctx, cotangent: Tensor):
        grad, feat = ctx.saved_tensors
        to_grad = to_feat = None
        with use_backend(*ctx.asked):
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
    edges = tuple(weight.shape[1:4])
    if weight.dim() != 5 or math.prod(edges) != pairs.taps or pairs.edges not in (None, edges):
        wanted = f"{pairs.taps} taps" if pairs.edges is None else f"a kernel of {pairs.edges}, {pairs.taps} taps"
        raise ValueError(f"'weight' must be (Co, kx, ky, kz, Ci) with {wanted}; found {tuple(weight.shape)}")
    if feat.dim() != 2 or feat.shape != (pairs.n_source, weight.shape[4]):
        raise ValueError(f"'feat' must be {(pairs.n_source, weight.shape[4])}, found {tuple(feat.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"'bias' must be ({weight.shape[0]},), found {tuple(bias.shape)}")
    dtypes = {x.dtype for x in (feat, weight, bias) if x is not None}
    if len(dtypes) > 1 or not feat.is_floating_point():
        given = {"feat": feat, "weight": weight} | ({} if bias is None else {"bias": bias})
        found = ", ".join(f"'{name}' is {x.dtype}" for name, x in given.items())
        raise ValueError(f"{found}; all must be of the same floating type (under autocast, cast them yourself)")
    with torch.autocast(feat.device.type, enabled=False):  # the caller's dtype is the dtype of the products
        return run("sparse_conv", differentiable, feat, weight.flatten(1, 3), bias, pairs)


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
