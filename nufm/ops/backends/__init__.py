"""Implementations of the ops beside the torch reference; the only folder that imports compiled packages.

Each module offers ``IMPLEMENTATIONS`` and ``unavailable()`` (see :mod:`nufm.ops.dispatch`) and raises
ImportError where its package is missing.
"""

from __future__ import annotations

import torch

LEAST_CAPABILITY = (8, 0)  # of NVIDIA GPUs: the first with bfloat16 products, the least that kernels are compiled for


def tf32_allowed() -> bool:
    """Whether torch computes its own products of float32 in TF32."""
    matmul = torch.backends.cuda.matmul
    # torch >= 2.9 has a second switch, and raises if the older is asked for after the newer was set.
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def capability_refusal(device: torch.device) -> str | None:
    """Why kernels for recent GPUs do not run on this one; None if they do."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    found = torch.cuda.get_device_capability(device)
    return None if found >= LEAST_CAPABILITY else f"needs compute capability 8.0, found {found[0]}.{found[1]}"
