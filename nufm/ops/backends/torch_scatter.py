"""Segment reduction by torch-scatter (github.com/rusty1s/pytorch_scatter), forward only.

The gradients are those of :mod:`nufm.ops.pool`: torch-scatter gives the whole gradient of a maximum to one of the
rows that have it, ours is shared by all of them.

Shape legend: N rows, n groups, C channels.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch_scatter import segment_csr

from nufm.ops.dispatch import AUTO, Implementation, preference
from nufm.ops.pool import Segments, segment_max


def unavailable() -> str | None:
    return None


def _reduce(x: Tensor, segments: Segments, reduce: str) -> Tensor:
    ends = torch.cat([segments.starts, segments.starts.new_full((1,), len(x))])
    return segment_csr(x.index_select(0, segments.order), ends, reduce=reduce)


def _segment_sum(x: Tensor, segments: Segments, mean: bool) -> Tensor:
    return _reduce(x, segments, "mean" if mean else "sum")


def _maximum(x: Tensor, segments: Segments) -> Tensor:
    # torch-scatter takes the largest number beside a NaN; a diverged row must not vanish in a maximum.
    has_nan = _reduce(x.isnan().to(x.dtype), segments, "max") > 0
    return _reduce(x, segments, "max").masked_fill_(has_nan, float("nan"))


def _segment_max(x: Tensor, segments: Segments) -> Tensor:
    return segment_max(x, segments, _maximum)


def _refuses(x: Tensor, segments: Segments, *_: bool) -> str | None:
    if x.device != segments.index.device:
        return f"tensors on different devices: {x.device}, {segments.index.device}"
    if x.device.type == "cpu" and preference() == AUTO:
        return "on a CPU it must be forced: it needs a sorted copy of the rows, the reference does not"
    if x.device.type == "cuda" and not _built_for_cuda():
        return "torch-scatter was built without CUDA"
    return None if x.device.type in ("cpu", "cuda") else f"needs tensors on a CPU or a CUDA GPU, found {x.device}"


def _refuses_sum(x: Tensor, segments: Segments, *_: bool) -> str | None:
    if x.dtype in (torch.float16, torch.bfloat16):
        return f"sums {x.dtype} in {x.dtype}; ours accumulate in float32"
    return _refuses(x, segments)


@cache
def _built_for_cuda() -> bool:
    version = getattr(torch.ops.torch_scatter, "cuda_version", None)
    return version is None or version() >= 0


IMPLEMENTATIONS = {
    "segment_sum": Implementation(_segment_sum, _refuses_sum, "float32 and float64 on a GPU; on a CPU if forced"),
    "segment_max": Implementation(_segment_max, _refuses, "floating tensors on a GPU; on a CPU if forced"),
}
