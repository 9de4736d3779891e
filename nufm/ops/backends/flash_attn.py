"""Windowed attention by flash-attn (Dao, "FlashAttention-2", arXiv 2307.08691)."""

from __future__ import annotations

import torch
from flash_attn import flash_attn_varlen_func
from torch import Tensor

from nufm.ops.backends import varlen


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


IMPLEMENTATIONS = varlen.implementations(_kernel, lambda q, scale: None)
unavailable = varlen.unavailable
