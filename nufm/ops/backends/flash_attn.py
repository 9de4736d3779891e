"""Windowed attention by flash-attn (Dao, "FlashAttention-2", arXiv 2307.08691)."""

from __future__ import annotations

import torch
from flash_attn import flash_attn_varlen_func
from torch import Tensor

from nufm.ops.backends import varlen
from nufm.ops.dispatch import Implementation
from nufm.ops.windows import Windows


def unavailable() -> str | None:
    """Why flash-attn cannot run on this machine; None if it can."""
    return None if torch.cuda.is_available() else "no CUDA GPU"


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, scale: float
) -> Tensor:
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_q,
        cu_k,
        max_q,
        max_k,
        softmax_scale=scale,
        # Its faster backward pass adds with atomics: the last bits differ from run to run.
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None) -> Tensor:
    return varlen.attend(_kernel, q, k, v, windows, scale)


def _refuses(q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None) -> str | None:
    return varlen.refusal(q, k, v, windows, bias) or varlen.device_refusal(q)


IMPLEMENTATIONS = {
    "windowed_attention": Implementation(
        _attention,
        _refuses,
        f"CUDA tensors of float16, bfloat16; no bias; a multiple of 8 up to {varlen.MAX_WIDTH} channels per head",
    )
}
