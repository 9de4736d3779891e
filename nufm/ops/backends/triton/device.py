"""Where the kernels can run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from nufm.ops.backends import capability_refusal, tf32_allowed
from nufm.ops.dispatch import AUTO, Implementation, preference

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def _probe(x):
    pass


def interpreting() -> bool:
    """True if Triton was imported with ``TRITON_INTERPRET=1``."""
    return not isinstance(_probe, triton.runtime.JITFunction)


def unavailable() -> str | None:
    """Why no kernel can run on this machine; None if they can."""
    if torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available()) or interpreting():
        return None
    return "no GPU (on a CPU only Triton's interpreter, TRITON_INTERPRET=1, runs the kernels)"


def on_its_device(implementation: Implementation) -> Implementation:
    """The same on whatever GPU its first argument lies: Triton launches on the current one. (Autograd makes the
    device of the forward pass the current one of a backward pass.)
    """

    def run(x: Tensor, *args: Any) -> Any:
        if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
            return implementation.run(x, *args)
        with torch.cuda.device(x.device):
            return implementation.run(x, *args)

    return replace(implementation, run=run)


def device_refusal(*tensors: Tensor) -> str | None:
    """Why the kernels cannot run where these tensors are; None if they can."""
    devices = {x.device for x in tensors}
    if len(devices) > 1:
        return f"tensors on different devices: {', '.join(map(str, devices))}"
    device = devices.pop()
    if device.type in ("cuda", "xpu"):
        return capability_refusal(device)
    if device.type == "cpu" and interpreting() and preference() != AUTO:
        return None
    return f"needs tensors on a GPU, found {device}"


def float_refusal(*tensors: Tensor) -> str | None:
    """Why the kernels cannot compute in the dtype of these tensors; None if they can."""
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) > 1 or dtypes.pop() not in FLOATS:
        found = ", ".join(sorted(str(x.dtype) for x in tensors))
        return f"needs one dtype of float16, bfloat16, float32; found {found}"
    return None


def float32_precision(x: Tensor) -> str:
    """How products of float32 are computed, for ``tl.dot``: as torch does its own matrix products."""
    if x.dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32" if tf32_allowed() else "ieee"
