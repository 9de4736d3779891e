"""Bits of space-filling curves: z-order codes, and Hilbert codes from them.

The Hilbert code is Skilling's transform (J. Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707, 381, 2004)
as a finite automaton: one level of the transform maps three bits to three bits and turns the axes for the levels below,
and there are only 48 ways in which they can be turned.

Shape legend: N cells. Arguments are not checked here (:mod:`nufm.ops.serialize` does).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LAST_AXIS = 0o1111111111111111  # the bits of z in a z-order code


def z_code(grid: Tensor) -> Tensor:
    """(N,) from (N, 3): bit i of x, y, z becomes bit 3i + 2, 3i + 1, 3i; coordinates are below 2^16."""
    x = grid
    x = (x | x << 16) & 0xFF0000FF
    x = (x | x << 8) & 0xF00F00F00F
    x = (x | x << 4) & 0xC30C30C30C3
    x = (x | x << 2) & 0x249249249249
    return x[:, 0] << 2 | x[:, 1] << 1 | x[:, 2]


def exchange_xy(code: Tensor) -> Tensor:
    """Z-order code of (y, x, z) from that of (x, y, z)."""
    return (code & LAST_AXIS << 2) >> 1 | (code & LAST_AXIS << 1) << 1 | code & LAST_AXIS


def _skilling_level(state: tuple, octant: int) -> tuple[int, tuple]:
    """One level of Skilling's transform: octant -> 3 bits of the code, and the state for the level below.

    A state holds how the levels above have turned the axes, as (axis, is inverted) for each of the three, and the
    last bit of their code.
    """
    axes, last = list(state[0]), state[1]
    bits = [(octant >> (2 - axis) & 1) ^ inverted for axis, inverted in axes]
    code = 0
    for bit in bits:  # Gray code to binary
        last ^= bit
        code = code << 1 | last
    for i, bit in enumerate(bits):
        # Where the bit is set, the lower bits of axis 0 are inverted; elsewhere exchanged with those of axis i.
        if bit:
            axes[0] = (axes[0][0], 1 - axes[0][1])
        else:
            axes[0], axes[i] = axes[i], axes[0]
    return code, (tuple(axes), last)


@cache
def _hilbert_table(device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """Three levels of the Hilbert curve at a time.

    Returns:
        int64 (states * 512,): place ``state | 9 bits of z-order code`` holds ``next state | 9 bits of Hilbert code``,
        states being multiples of 512; and the states after 0, 1 and 2 levels of zeros, which only turn the axes.
    """
    states = [(((0, 0), (1, 0), (2, 0)), 0)]
    code, below = [], []
    for state in states:  # grows until no new state appears
        for octant in range(8):
            bits, following = _skilling_level(state, octant)
            if following not in states:
                states.append(following)
            code.append(bits)
            below.append(states.index(following))
    with torch.device("cpu"):  # whatever default device is set: the table is kept
        code, below, cells = torch.tensor(code), torch.tensor(below), torch.arange(512)
        state, found = torch.arange(len(states))[:, None], torch.zeros(1, dtype=torch.int64)
    for shift in (6, 3, 0):
        place = state * 8 + (cells >> shift & 7)
        found, state = found << 3 | code[place], below[place]
    once = int(below[0])
    return (state << 9 | found).flatten().to(device), (0, once << 9, int(below[once * 8]) << 9)


def hilbert_code(code: Tensor, depth: int, bits: int) -> Tensor:
    """Hilbert code from the z-order code ``code`` (N,) of cells whose coordinates have no more than ``bits`` bits."""
    table, starts = _hilbert_table(code.device)
    state, found = starts[depth % 3], 0
    for shift in range(9 * ((bits - 1) // 3), -1, -9):
        entry = table[(code >> shift & 511) + state]
        low = entry & 511
        state, found = entry - low, low + found * 512
    return found
