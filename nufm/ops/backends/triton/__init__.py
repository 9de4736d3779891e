"""Triton kernels, for any GPU that PyTorch and Triton support.

No kernel uses atomic additions, so that all results are repeatable bit for bit. Sums are accumulated in float32.
With ``TRITON_INTERPRET=1`` set before the first import the kernels also run on CPU tensors, slowly, where triton
is forced (``NUFM_BACKEND=triton``): the tests do this.
"""

from __future__ import annotations

from nufm.ops.backends.triton.device import unavailable

IMPLEMENTATIONS = {}

__all__ = ["IMPLEMENTATIONS", "unavailable"]
