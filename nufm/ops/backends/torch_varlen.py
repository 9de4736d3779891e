"""Windowed attention by PyTorch's own variable-length attention (torch >= 2.10), which brings FlashAttention along."""

from __future__ import annotations

from inspect import signature

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from nufm.ops.backends import varlen
from nufm.ops.dispatch import Implementation
from nufm.ops.windows import Windows

TAKES_SCALE = "scale" in signature(varlen_attn).parameters  # the first versions know D^-0.5 only


def unavailable() -> str | None:
    """Why variable-length attention cannot run on this machine; None if it can."""
    return None if torch.cuda.is_available() else "no CUDA GPU"


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
) -> Tensor:
    more = {"scale": scale} if TAKES_SCALE else {}
    return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, **more)


def _attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None) -> Tensor:
    return varlen.attend(_kernel, q, k, v, windows, scale)


def _refuses(q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None) -> str | None:
    if not scale > 0:
        return f"needs a positive scale, found {scale}"
    if not TAKES_SCALE and scale != q.shape[2] ** -0.5:
        return f"torch {torch.__version__} knows the scale D^-0.5 = {q.shape[2] ** -0.5} only, found {scale}"
    return varlen.refusal(q, k, v, windows, bias) or varlen.device_refusal(q)


IMPLEMENTATIONS = {
    "windowed_attention": Implementation(
        _attention,
        _refuses,
        f"CUDA tensors of float16, bfloat16; no bias; a multiple of 8 up to {varlen.MAX_WIDTH} channels per head",
    )
}
