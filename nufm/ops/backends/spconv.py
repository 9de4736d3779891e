"""Sparse convolution by spconv 2.3 (https://github.com/traveller59/spconv): its implicit GEMM on our kernel maps.

Shape legend: N rows read, M rows written, K taps, Ci and Co channels.

The convolution itself is ``spconv.pytorch.functional.implicit_gemm``; it knows no coordinates, only tables. They are
built here from the :class:`~nufm.ops.kernel_map.KernelMap`, once per map, so that spconv computes the same result rows
over the same pairs as every other backend. (spconv's own construction needs the coordinates, returns strided results
in an order of its own, and its strided convolution with kernel > stride adds result cells that hold no point.) What
the function expects, read from spconv 2.3.8 (``pytorch/ops.py``: ``get_indice_pairs_implicit_gemm``,
``csrc/sparse/indices.py``, and the kernels in cumm 0.7.11, ``conv/kernel.py``):

    pair_fwd        int32 (K, M) row that result m reads through tap t, -1 = none
    pair_bwd        int32 (K, N) result that row n goes to through tap t: the same of the transposed map
    mask            int32 (rows, 1), read as uint32: bit t is set where the row has a partner in tap t, *sorted*: a tile
                    takes consecutive masks, and skips the taps that are in none of them
    mask_argsort    int32 (rows,) the row that each sorted mask belongs to
    masks           [[0xffffffff]]: one group of taps, all 32 bits
    filters         (Co, K, Ci), "KRSC": our layout; taps in row-major order of the kernel axes, tap t of result c
                    looking at ``c * stride - padding + t``: our order

``is_subm`` is always False. True would save filling the results with zeros, but derives the masks of the input
gradient by reversing bits, which needs a map that is its own mirror image; a table of neighbours need not be one.
A bias is added outside: the fused form is for inference, and asserts in 2.3.8's CPU build.

Limits. CUDA GPUs only: on a CPU, spconv has no backward, and gives wrong rows with more than one thread. At most 32
taps (bits of a mask). float32 and float16: there is no bfloat16 kernel, and under autocast spconv's own layers run
in float16. A tuner times kernels at the first call of every channel count and may take one that accumulates in
float16 (2.3.8 ignores ``fp32_accum``), so results of two processes differ in rounding. float32 runs in TF32 where
torch's own products do. Differentiable once.

Builds on PyPI: 2.3.8 as spconv-cu114, -cu118, -cu121, -cu124, -cu126 for Python 3.9 to 3.13; spconv-cu120 ends with
2.3.6 and Python 3.11; ``spconv`` alone is the build for CPUs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import spconv.constants as constants
import torch
from spconv.cppconstants import CPU_ONLY_BUILD
from spconv.pytorch.functional import implicit_gemm
from spconv.tools import CUDAKernelTimer
from torch import Tensor

from nufm.ops.backends import tf32_allowed
from nufm.ops.dispatch import Implementation
from nufm.ops.kernel_map import KernelMap
from nufm.ops.sparse_conv import differentiable

MAX_TAPS = 32  # bits of a mask. 2.3.8 has kernels for several words, but looks up tuned ones without telling them apart
MAX_BYTES = 2**31 - 1  # spconv addresses rows by byte offsets of 32 bits
ALL_TAPS = (np.array([0xFFFFFFFF], dtype=np.uint32),)


class Tables(NamedTuple):
    """One direction of a map.

    Attributes:
        partner: int32 (K, rows), -1 = none.
        mask: int32 (rows, 1) bit t = has a partner in tap t; ascending.
        order: int32 (rows,) row of each mask.
    """

    partner: Tensor
    mask: Tensor
    order: Tensor


def tables(pairs: KernelMap) -> Tables:
    """The tables by which the result rows of ``pairs`` are computed (those of ``pairs.transposed``: the gradient).

    ``pairs`` has at most 32 taps and a table.
    """
    partner = pairs.table.t().contiguous()
    bits = torch.arange(pairs.taps, dtype=torch.int32, device=partner.device)[:, None]
    mask = ((partner >= 0).int() << bits).sum(0, dtype=torch.int32)  # bit 31 makes it negative: read as uint32
    mask, order = torch.sort(mask, stable=True)
    return Tables(partner, mask[:, None], order.int())


def run(feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap) -> Tensor:
    """As :func:`nufm.ops.sparse_conv.differentiable`, differentiable once."""
    if not (feat.numel() and weight.numel() and pairs.n_target):
        return differentiable(feat, weight, bias, pairs)  # nothing to launch: spconv asserts on empty tensors
    train = torch.is_grad_enabled() and (feat.requires_grad or weight.requires_grad)
    forward = pairs.once(tables)
    backward = pairs.transposed.once(tables) if train else None
    constants.SPCONV_ALLOW_TF32 = tf32_allowed()  # read by spconv at each call, also of its backward
    with torch.cuda.device_of(feat):  # spconv launches on the current device
        out = implicit_gemm(
            feat.contiguous(),
            weight.contiguous(),
            forward.partner,
            backward.partner if backward else forward.partner.new_empty(0),
            [forward.mask],
            [backward.mask] if backward else [],
            [forward.order],
            [backward.order] if backward else [],
            pairs.n_target,
            list(ALL_TAPS),
            train,
            False,  # is_subm
            CUDAKernelTimer(False),
            True,  # fp32_accum
        )
    return out if bias is None else out + bias


def refuses(feat: Tensor, weight: Tensor, bias: Tensor | None, pairs: KernelMap) -> str | None:
    """Why spconv cannot take these arguments."""
    if feat.device.type != "cuda":
        return "tensors are on the CPU, where spconv has no backward and gives wrong rows with more than one thread"
    if feat.dtype not in (torch.float32, torch.float16):
        return f"spconv has kernels for float32 and float16, found {feat.dtype}"
    if pairs.taps > MAX_TAPS:
        return f"the kernel has {pairs.taps} taps, spconv's masks hold {MAX_TAPS}"
    rows, channels = max(pairs.n_source, pairs.n_target), max(weight.shape[0], weight.shape[2])
    if rows * channels * feat.element_size() >= MAX_BYTES:
        return f"{rows} rows of {channels} channels exceed the {MAX_BYTES} bytes that spconv can address"
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        return "spconv picks its kernels by timing them, which is not deterministic"
    if pairs.table is None:
        return "points share a cell, so a result reads several rows through one tap"
    train = torch.is_grad_enabled() and (feat.requires_grad or weight.requires_grad)
    if train and pairs.transposed.table is None:
        return "a row goes to several results through one tap (points share a cell), which has no table of gradients"
    return None


def unavailable() -> str | None:
    """Why spconv can run nothing on this machine."""
    if CPU_ONLY_BUILD:
        return "this is spconv's build for CPUs, without implicit GEMM; pip install spconv-cu126 (or for your CUDA)"
    if torch.version.hip is not None:
        return "spconv runs on NVIDIA GPUs only"
    if not torch.cuda.is_available():
        return "spconv needs a CUDA GPU, and torch sees none"
    return None


IMPLEMENTATIONS = {
    "sparse_conv": Implementation(
        run,
        refuses,
        "float32 and float16 on CUDA, at most 32 taps, distinct cells, not in deterministic mode; differentiable once",
    )
}
