"""Counter-based random numbers: a value is a pure function of (key, counter).

A stream that belongs to an event gives the same numbers whatever the event is batched with, on whichever rank or
device, without a generator per event. Shape legend: N values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(constant: int) -> int:
    """A 64-bit constant as the int64 with the same bits (torch has no uint64 arithmetic)."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 (torch shifts the sign in)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64 finaliser (Steele, Lea, Flood, OOPSLA 2014, variant 13 of Stafford): int64 (N,) to int64 (N,)."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def counter_uniform(key: Tensor, counter: Tensor) -> Tensor:
    """Uniform float64 in (0, 1) for every pair of int64 key and counter (broadcast together)."""
    return (_shift_right(mix(mix(key) + counter), 11).to(torch.float64) + 0.5) * 2.0**-53


def counter_normal(key: Tensor, counter: Tensor) -> Tensor:
    """Standard normal float64 for every pair of int64 key and counter (inverse of the normal distribution)."""
    return torch.special.ndtri(counter_uniform(key, counter))
