"""Softmax attention within windows of packed rows: self and cross attention, with and without a bias.

Shape legend: Nq rows of queries, Nk rows of keys, W windows, H heads, D channels per head of queries and keys, Dv of
values, S pairs of a query and a key of the same window.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nufm.ops import dispatch
from nufm.ops.pool import take
from nufm.ops.window_cuts import Bucket, Cuts
from nufm.ops.windows import WindowLayout, Windows, window_layout

__all__ = ["WindowLayout", "Windows", "window_layout", "windowed_attention"]


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: Windows | Tensor,
    scale: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of every query over the keys of its own window: softmax(scale q kᵀ + bias) v.

    Args:
        q: float (Nq, H, D).
        k: float (Nk, H, D).
        v: float (Nk, H, Dv).
        windows: who meets whom; make it once for all blocks of a level. Boundaries, int64 (W+1,) from 0 to Nq = Nk,
            mean self attention within windows of consecutive rows.
        scale: factor of the products, usually D^-0.5.
        bias: float (H, S), in the dtype of ``q`` or float32, added to the products: window after window, within a
            window query after query in the order of their places. -inf leaves a pair out; each query must keep a key.
        dropout: probability that a weight is 0, the others scaled so that the mean stays. For training only: the
            caller gives 0 otherwise. No kernel offers it: the reference runs it on any device.

    Returns:
        (Nq, H, Dv) in the dtype of ``q``; 0 for queries whose window has no keys. Differentiable once in q, k, v and
        bias (PyTorch's fused attention has no second derivative).

    Raises:
        ValueError: shapes or dtypes that are not these, or that do not fit the windows.
    """
    if q.dim() != 3 or k.dim() != 3 or v.dim() != 3 or q.shape[1:] != k.shape[1:] or k.shape[:2] != v.shape[:2]:
        raise ValueError(
            "q, k, v must be (Nq, H, D), (Nk, H, D), (Nk, H, Dv), "
            f"found {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k, v must have one floating dtype, found {q.dtype}, {k.dtype}, {v.dtype}")
    if not isinstance(windows, Windows):
        windows = Windows.of_boundaries(windows)
    if (windows.n_queries, windows.n_keys) != (len(q), len(k)):
        raise ValueError(
            f"the windows hold {windows.n_queries} queries and {windows.n_keys} keys, found {len(q)} and {len(k)}"
        )
    if bias is not None:
        if bias.shape != (q.shape[1], windows.cuts.n_pairs):
            raise ValueError(
                f"'bias' must be (H, S) = ({q.shape[1]}, {windows.cuts.n_pairs}), one value for each pair of a query "
                f"and a key of the same window, found {tuple(bias.shape)}"
            )
        if bias.dtype not in (q.dtype, torch.float32):
            raise ValueError(f"'bias' must be {q.dtype} like q, or float32, found {bias.dtype}")
    if windows.cuts.n_pairs == 0:  # no query has a key: 0, and still differentiable in all of them
        inputs = (q, k, v) if bias is None else (q, k, v, bias)
        return q.new_zeros(len(q), q.shape[1], v.shape[2]) + sum(x[:0].sum().to(q.dtype) for x in inputs)
    with torch.autocast(q.device.type, enabled=False):  # the caller's dtype is that of the products and of the result
        if dropout:
            return dispatch.run("attention_dropout", attention_reference, q, k, v, windows, scale, bias, dropout)
        return dispatch.run("windowed_attention", attention_reference, q, k, v, windows, scale, bias)


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Attention by ``scaled_dot_product_attention``, windows of about one size at a time."""
    parts = windows.cuts.buckets.parts
    slots, key_slots, heads = windows.query_slots, windows.key_slots, q.shape[1]
    if slots is not None:
        q = slots.to_slots(q.flatten(1)).unflatten(1, (heads, -1))
    if key_slots is not None:
        k, v = (take(x.flatten(1), key_slots).unflatten(1, (heads, -1)) for x in (k, v))
    q_parts = q.split([len(b.members) * b.queries for b in parts])
    k_parts, v_parts = (x.split([len(b.members) * b.keys for b in parts]) for x in (k, v))
    results = []
    for bucket, *qkv in zip(parts, q_parts, k_parts, v_parts, strict=True):
        mask = bucket.mask if bias is None else _bucket_bias(bias.to(q.dtype), bucket, windows.cuts)
        # (windows, heads, queries or keys, channels)
        qkv = [x.unflatten(0, (len(bucket.members), -1)).transpose(1, 2) for x in qkv]
        result = scaled_dot_product_attention(*qkv, attn_mask=mask, dropout_p=dropout, scale=scale)
        results.append(result.transpose(1, 2).flatten(0, 1))
    out = results[0] if len(results) == 1 else torch.cat(results)
    return out if slots is None else slots.to_rows(out.flatten(1)).unflatten(1, (heads, -1))


def _bucket_bias(bias: Tensor, bucket: Bucket, cuts: Cuts) -> Tensor:
    """(windows, H, queries, keys) the bias of a bucket, -inf for key slots that only pad; one head stands for all if
    they share one bias by ``expand``."""
    n_queries, n_keys = cuts.lengths[:, bucket.members, None, None]
    query, key = (torch.arange(n, device=bias.device) for n in (bucket.queries, bucket.keys))
    query = torch.minimum(query[:, None], n_queries - 1)
    pair = cuts.pair_offsets[bucket.members, None, None] + query * n_keys + torch.minimum(key, n_keys - 1)
    if bias.stride(0) == 0 and not bias.requires_grad:
        bias = bias[:1]
    values = bias.index_select(1, pair.flatten()).unflatten(1, pair.shape).transpose(0, 1)
    return values if bucket.mask is None else values.masked_fill(~bucket.mask, float("-inf"))
