"""Windowed attention by PyTorch's own variable-length attention (torch >= 2.10), which brings FlashAttention along."""

from __future__ import annotations

from inspect import signature

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from nufm.ops.backends import varlen

TAKES_SCALE = "scale" in signature(varlen_attn).parameters  # the first versions know D^-0.5 only


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
) -> Tensor:
    more = {"scale": scale} if TAKES_SCALE else {}
    return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, **more)


def _refuses(q: Tensor, scale: float) -> str | None:
    if not scale > 0:
        return f"needs a positive scale, found {scale}"
    if not TAKES_SCALE and scale != q.shape[2] ** -0.5:
        return f"torch {torch.__version__} knows the scale D^-0.5 = {q.shape[2] ** -0.5} only, found {scale}"
    return None


IMPLEMENTATIONS = varlen.implementations(_kernel, _refuses)
unavailable = varlen.unavailable
