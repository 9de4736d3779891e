"""What the packages for attention over packed sequences have in common: rows in, places through, rows out.

Shape legend: Nq rows of queries, Nk rows of keys, H heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nufm.ops.backends import capability_refusal
from nufm.ops.dispatch import Implementation
from nufm.ops.pool import take
from nufm.ops.windows import Windows

HALF = (torch.float16, torch.bfloat16)
MAX_WIDTH = 256

# (q, k, v, first places of the windows of queries, of keys, longest window of queries, of keys, scale) -> out
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float], Tensor]


def attend(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float) -> Tensor:
    """Attention (Nq, H, D) by a kernel that takes windows end to end; 0 for queries without keys.

    Rows are brought to their places and back by gathers whose gradients are repeatable. Windows without queries or
    without keys are not shown to the kernel: what packages make of them differs.
    """
    heads, packed = q.shape[1], windows.packed
    if packed.queries is not None:
        q = packed.queries.to_slots(q.flatten(1)).unflatten(1, (heads, -1))
    if packed.keys is not None:
        k, v = (take(x.flatten(1), packed.keys).unflatten(1, (heads, -1)) for x in (k, v))
    sequences = (packed.cu_queries, packed.cu_keys, packed.max_queries, packed.max_keys)
    out = kernel(q, k, v, *sequences, scale)
    return out if packed.queries is None else packed.queries.to_rows(out.flatten(1)).unflatten(1, (heads, -1))


def unavailable() -> str | None:
    """Why FlashAttention cannot run on this machine; None if it can."""
    return None if torch.cuda.is_available() else "no CUDA GPU"


def implementations(kernel: Kernel, refuses: Callable[..., str | None]) -> dict[str, Implementation]:
    """The op by a kernel; ``refuses`` says what is particular to its package, on top of :func:`refusal`."""

    def run(q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None) -> Tensor:
        return attend(kernel, q, k, v, windows, scale)

    def why_not(
        q: Tensor, k: Tensor, v: Tensor, windows: Windows, scale: float, bias: Tensor | None
    ) -> str | None:
        return refuses(q, scale) or refusal(q, k, v, windows, bias) or device_refusal(q)

    conditions = f"CUDA tensors of float16, bfloat16; no bias; a multiple of 8 up to {MAX_WIDTH} channels per head"
    return {"windowed_attention": Implementation(run, why_not, conditions)}


def refusal(q: Tensor, k: Tensor, v: Tensor, windows: Windows, bias: Tensor | None) -> str | None:
    """Why FlashAttention does not take these arguments; None if it does."""
    if bias is not None:
        return "takes no bias"
    if q.dtype not in HALF:
        return f"needs float16 or bfloat16, found {q.dtype}"
    width = q.shape[2]
    if v.shape[2] != width:
        return f"needs values as wide as queries, found {v.shape[2]} and {width} channels per head"
    if width % 8 or width > MAX_WIDTH:
        return f"needs a multiple of 8 up to {MAX_WIDTH} channels per head, found {width}"
    devices = {x.device for x in (q, k, v, windows.query_boundaries)}
    if len(devices) > 1:
        return f"tensors on different devices: {', '.join(sorted(map(str, devices)))}"
    places = max(windows.cuts.n_places)
    if places >= 2**31:
        return f"counts places in int32, found {places}"
    return None


def device_refusal(x: Tensor) -> str | None:
    """Why FlashAttention does not run where ``x`` is; None if it does."""
    if x.device.type != "cuda":
        return f"needs tensors on a CUDA GPU, found {x.device}"
    return capability_refusal(x.device)
