"""Triton kernels, for GPUs that PyTorch and Triton support: NVIDIA's from compute capability 8.0 on, AMD's (compiled
for gfx942), Intel's (never compiled).

No kernel uses atomic additions, so that all results are repeatable bit for bit. Sums are accumulated in float32.
With ``TRITON_INTERPRET=1`` set before the first import the kernels also run on CPU tensors, slowly, where triton
is forced (``NUFM_BACKEND=triton``): the tests do this. ``python -m nufm.ops.backends.triton`` compiles all of
them for several GPUs on a machine that has none.
"""

from __future__ import annotations

from nufm.ops.backends.triton import attention, conv, curves, neighbors, segments
from nufm.ops.backends.triton.device import on_its_device, unavailable

_ALL = {
    **attention.IMPLEMENTATIONS,
    **conv.IMPLEMENTATIONS,
    **curves.IMPLEMENTATIONS,
    **neighbors.IMPLEMENTATIONS,
    **segments.IMPLEMENTATIONS,
}
IMPLEMENTATIONS = {op: on_its_device(implementation) for op, implementation in _ALL.items()}

__all__ = ["IMPLEMENTATIONS", "unavailable"]
