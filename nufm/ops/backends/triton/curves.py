"""Z-order and Hilbert codes.

Shape legend: N points, K curves.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from nufm.ops.backends.triton.aot import Specimen
from nufm.ops.backends.triton.device import device_refusal
from nufm.ops.dispatch import Implementation
from nufm.ops.serialize import CURVES

BLOCK = 256
MAX_CURVES = 15  # two bits of an int32 for each


@triton.jit
def _spread(x):
    """Move bit i of a number below 2^16 to bit 3i."""
    x = (x | (x << 16)) & 0xFF0000FF
    x = (x | (x << 8)) & 0xF00F00F00F
    x = (x | (x << 4)) & 0xC30C30C30C3
    return (x | (x << 2)) & 0x249249249249


@triton.jit(do_not_specialize=["n", "kinds", "depth"])
def _curve_kernel(
    grid,  # *i64 (N, 3)
    event,  # *i64 (N,), read if HAS_EVENT
    out,  # *i64 (K, N)
    n,  # i64
    kinds,  # i32: two bits per curve, an index into CURVES
    depth,  # i32
    HAS_EVENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    curve = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    x = tl.load(grid + row * 3, mask=inside, other=0)
    y = tl.load(grid + row * 3 + 1, mask=inside, other=0)
    z = tl.load(grid + row * 3 + 2, mask=inside, other=0)
    kind = (kinds >> (2 * curve)) & 3
    swapped = (kind & 1) == 1
    x, y = tl.where(swapped, y, x), tl.where(swapped, x, y)
    # Skilling's transform from coordinates to the transposed Hilbert code: where bit ``level`` of an axis is set,
    # invert the lower bits of x; elsewhere exchange them with those of the axis. A z-order takes no level.
    turned = kind >= 2
    levels = tl.where(turned, depth - 1, 0)
    for step in range(levels):
        level = depth - 1 - step
        low = (1 << level) - 1
        x = tl.where(((x >> level) & 1) == 1, x ^ low, x)
        swap = (x ^ y) & low
        is_set = ((y >> level) & 1) == 1
        x = x ^ tl.where(is_set, low, swap)
        y = y ^ tl.where(is_set, 0, swap)
        swap = (x ^ z) & low
        is_set = ((z >> level) & 1) == 1
        x = x ^ tl.where(is_set, low, swap)
        z = z ^ tl.where(is_set, 0, swap)
    code = (_spread(x) << 2) | (_spread(y) << 1) | _spread(z)
    binary = code  # from Gray code
    binary = binary ^ (binary >> 1)
    binary = binary ^ (binary >> 2)
    binary = binary ^ (binary >> 4)
    binary = binary ^ (binary >> 8)
    binary = binary ^ (binary >> 16)
    binary = binary ^ (binary >> 32)
    code = tl.where(turned, binary, code)
    if HAS_EVENT:
        code = code | (tl.load(event + row, mask=inside, other=0) << (3 * depth))
    tl.store(out + curve.to(tl.int64) * n + row, code, mask=inside)


def _curve_codes(
    grid: Tensor, event: Tensor | None, curves: Sequence[str], depth: int, bits: int
) -> Tensor:
    """(K, N) codes; as the reference, whatever ``bits`` of the coordinates are in use."""
    grid = grid.contiguous()
    out = grid.new_empty(len(curves), len(grid))
    if out.numel():
        kinds = sum(CURVES.index(curve) << 2 * k for k, curve in enumerate(curves))
        _curve_kernel[(triton.cdiv(len(grid), BLOCK), len(curves))](
            grid,
            grid if event is None else event.contiguous(),
            out,
            len(grid),
            kinds,
            depth,
            HAS_EVENT=event is not None,
            BLOCK=BLOCK,
        )
    return out


def _refuses(grid: Tensor, event: Tensor | None, curves: Sequence[str], depth: int, bits: int) -> str | None:
    if len(curves) > MAX_CURVES:
        return f"at most {MAX_CURVES} curves at once, found {len(curves)}"
    return device_refusal(grid) if event is None else device_refusal(grid, event)


IMPLEMENTATIONS = {"curve_code": Implementation(_curve_codes, _refuses, f"GPU tensors, up to {MAX_CURVES} curves")}


def specimens() -> list[Specimen]:
    signature = {"grid": "*i64", "event": "*i64", "out": "*i64", "n": "i32", "kinds": "i32", "depth": "i32"}
    return [
        Specimen(_curve_kernel, {**signature, "n": n}, {"HAS_EVENT": has_event, "BLOCK": BLOCK})
        for has_event in (True, False)
        for n in ("i32", "i64")
    ]
