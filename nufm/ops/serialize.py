"""Lattice cells and space-filling curves: the order in which attention reads the points of an event.

Shape legend: N points, B events, K curves. ``offsets`` (B+1,) int64 runs from 0 to N (``cu_seqlens``).

The z-order and Hilbert codes follow Point Transformer V3 (Wu et al., arXiv 2312.10035, section 4.1); the
Hilbert code is Skilling's transform (J. Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707, 381,
2004). A Hilbert curve depends on its depth (each further level turns the axes), therefore ``depth`` is a
fixed number of bits by default: chosen per batch, as in the published code, an event's order would depend on
its batch mates. Chosen per event it is what the published code does with that event alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from nufm.ops.curves import exchange_xy, hilbert_code, z_code
from nufm.ops.dispatch import run

CURVES = ("z", "z-trans", "hilbert", "hilbert-trans")
Depth = int | None | Literal["event"]
ROWS_PER_BLOCK = 2**14
MAX_DEPTH = 16  # 3 x 16 bits of code leave 15 bits of an int64 key for the event number


def check_packed(
    rows: Tensor, offsets: Tensor, name: str = "grid", dtype: torch.dtype | None = torch.int64
) -> None:
    """Refuse arguments that are not N packed rows with three columns and (B+1,) offsets.

    Raises:
        ValueError: names the argument, what was found and what is expected.
    """
    if rows.dim() != 2 or rows.shape[1] != 3 or (dtype is not None and rows.dtype != dtype):
        wanted = "three columns" if dtype is None else f"(N, 3) {dtype}"
        raise ValueError(f"'{name}' must be {wanted}, found shape {tuple(rows.shape)} {rows.dtype}")
    if offsets.dim() != 1 or len(offsets) < 1 or offsets.dtype != torch.int64:
        raise ValueError(
            f"offsets of '{name}' must be int64 (B+1,) from 0 to N, "
            f"found shape {tuple(offsets.shape)} {offsets.dtype}"
        )
    if offsets.device.type != "cpu":
        return  # a look at the values would wait for the device
    if int(offsets[-1]) != len(rows):
        raise ValueError(f"offsets of '{name}' end at {int(offsets[-1])}, but there are {len(rows)} rows")
    if int(offsets[0]) != 0 or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets of '{name}' must begin at 0 and never fall, found {offsets.tolist()[:10]} …")


def event_index(offsets: Tensor, n: int) -> Tensor:
    """int64 (N,): the event of each of the ``n`` packed rows."""
    events = torch.arange(len(offsets) - 1, device=offsets.device)
    return events.repeat_interleave(offsets.diff(), output_size=n)


def quantize(coord: Tensor, offsets: Tensor, size: float) -> Tensor:
    """Lattice cell of each point, counted from the event's own minimum.

    Args:
        coord: float (N, 3).
        offsets: int64 (B+1,).
        size: edge of a cell in the units of ``coord``.

    Returns:
        int64 (N, 3), ``floor(coord / size)`` minus its minimum over the event.

    Raises:
        ValueError: ``coord`` is not a floating (N, 3) tensor of finite numbers, or ``size`` is not positive.
    """
    check_packed(coord, offsets, "coord", dtype=None)
    if not coord.is_floating_point():
        raise ValueError(
            f"'coord' must be floating point, found {coord.dtype}; lattice indices need no quantize"
        )
    if not size > 0:
        raise ValueError(f"the cell edge must be > 0, found {size}")
    cell = torch.floor(coord / size)
    # NaN fails the comparison too. Beyond 2^53 neighbouring cells could not be told apart.
    if not bool((cell.abs() < 2**53).all()):
        row = int((~(cell.abs() < 2**53)).any(1).nonzero()[0])
        raise ValueError(f"row {row} of 'coord' is {coord[row].tolist()}: not finite, or too far for cells of {size}")
    cell = cell.long()
    event = event_index(offsets, len(coord))[:, None].expand(-1, 3)
    low = cell.new_zeros(len(offsets) - 1, 3).scatter_reduce(0, event, cell, "amin", include_self=False)
    return cell - low.gather(0, event)


def bit_length(grid: Tensor) -> int:
    """Bits needed for the largest coordinate of ``grid`` (N, 3); 1 for an empty one.

    Raises:
        ValueError: a coordinate is negative.
    """
    if grid.numel() == 0:
        return 1
    low, high = torch.stack(torch.aminmax(grid)).tolist()  # one copy from the device for both
    if low < 0:
        raise ValueError(
            f"lattice coordinates must be >= 0, found {low}; subtract each event's own minimum first"
        )
    return max(1, high.bit_length())


def _checked_bits(grid: Tensor, depth: int) -> int:
    if grid.dim() != 2 or grid.shape[1] != 3 or grid.dtype != torch.int64:
        raise ValueError(f"'grid' must be (N, 3) torch.int64, found shape {tuple(grid.shape)} {grid.dtype}")
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"the depth of a curve must be 1..{MAX_DEPTH} bits per axis, found {depth}")
    bits = bit_length(grid)
    if bits > depth:
        raise ValueError(
            f"a lattice cell has coordinate {int(grid.max())}, "
            f"but a curve of depth {depth} ends at {2**depth - 1}; "
            f"use a larger depth (up to {MAX_DEPTH}) or a coarser grid size"
        )
    return bits


def z_order(grid: Tensor, depth: int = MAX_DEPTH) -> Tensor:
    """Z-order (Morton) code: bit i of x, y, z becomes bit 3i+2, 3i+1, 3i.

    Args:
        grid: int64 (N, 3), 0 <= coordinate < 2^depth.
        depth: bits per axis, at most 16 (it only limits the coordinates: the code does not depend on it).

    Returns:
        int64 (N,).

    Raises:
        ValueError: wrong shape or dtype, a negative coordinate or one that exceeds the depth.
    """
    return curve_code(grid, "z", depth)


def hilbert(grid: Tensor, depth: int = MAX_DEPTH) -> Tensor:
    """Hilbert code: consecutive codes are face neighbours.

    Args:
        grid: int64 (N, 3), 0 <= coordinate < 2^depth.
        depth: bits per axis, at most 16.

    Returns:
        int64 (N,). The corners of the unit cube (depth 1) come in the order 000 001 011 010 110 111 101 100.

    Raises:
        ValueError: wrong shape or dtype, a negative coordinate or one that exceeds the depth.
    """
    return curve_code(grid, "hilbert", depth)


def curve_code(grid: Tensor, curve: str, depth: int = MAX_DEPTH) -> Tensor:
    """Code of each cell along a named curve; ``-trans`` exchanges x and y first.

    Args:
        grid: int64 (N, 3), 0 <= coordinate < 2^depth.
        curve: ``z``, ``z-trans``, ``hilbert`` or ``hilbert-trans``.
        depth: bits per axis, at most 16.

    Returns:
        int64 (N,), below 2^(3 depth).

    Raises:
        ValueError: an unknown curve, or as :func:`hilbert`.
    """
    _check_curves([curve])
    return run("curve_code", _curve_codes, grid, None, (curve,), depth, _checked_bits(grid, depth))[0]


def _check_curves(curves: Sequence[str]) -> None:
    for curve in curves:
        if curve not in CURVES:
            raise ValueError(f"unknown curve '{curve}', expected one of {', '.join(CURVES)}")


def _curve_codes(
    grid: Tensor, event: Tensor | None, curves: Sequence[str], depth: int, bits: int
) -> Tensor:
    """(K, N) codes along K curves, with the ``event`` (N,) of each point in front if given.

    No coordinate needs more than ``bits`` bits.
    """
    codes = grid.new_empty(len(curves), len(grid))
    # A Hilbert code takes some thirty passes over the rows: in blocks that stay in the cache of a CPU.
    rows = ROWS_PER_BLOCK if grid.device.type == "cpu" else max(1, len(grid))
    for start in range(0, len(grid), rows):
        block = slice(start, start + rows)
        along_z = z_code(grid[block])
        z_codes = {False: along_z, True: exchange_xy(along_z)}
        prefix = None if event is None else event[block] << 3 * depth
        for out, curve in zip(codes[:, block], curves, strict=True):
            code = z_codes[curve.endswith("-trans")]
            if curve.startswith("hilbert"):
                code = hilbert_code(code, depth, bits)
            if prefix is None:
                out.copy_(code)
            else:
                torch.add(code, prefix, out=out)
    return codes


def event_code(grid: Tensor, offsets: Tensor, curves: Sequence[str], depth: Depth = MAX_DEPTH) -> Tensor:
    """Codes with the event number in front: ``event << 3 depth | code``.

    Args:
        grid: int64 (N, 3), 0 <= coordinate < 2^depth.
        offsets: int64 (B+1,).
        curves: K names of curves.
        depth: bits per axis; None takes the bit length of the largest coordinate + 1 of the whole batch, as
            published; ``event`` that of each event (codes then differ from the curves of that depth, orders do not).

    Returns:
        int64 (K, N).

    Raises:
        ValueError: bad shapes, an unknown curve, coordinates that exceed the depth, or more events than fit
            in a key.
    """
    check_packed(grid, offsets)
    own, depth = depth == "event", MAX_DEPTH if depth == "event" else depth
    if depth is None:
        depth = min(bit_length(grid + 1), MAX_DEPTH)
    bits = _checked_bits(grid, depth)
    n_events = len(offsets) - 1
    if 3 * depth + n_events.bit_length() > 63:
        raise ValueError(
            f"{n_events} events and a curve of depth {depth} exceed a 63-bit key; "
            "use a smaller depth or batch"
        )
    _check_curves(curves)
    event = event_index(offsets, len(grid))
    if not own:
        return run("curve_code", _curve_codes, grid, event, tuple(curves), depth, bits)
    codes = []
    for curve in curves:
        cells = grid
        if curve.startswith("hilbert"):
            cells = _turned(grid[:, [1, 0, 2]] if curve.endswith("-trans") else grid, event, len(offsets) - 1)
            curve = "hilbert"
        codes.append(run("curve_code", _curve_codes, cells, event, (curve,), depth, bits))
    return torch.cat(codes)


def _turned(grid: Tensor, event: Tensor, n_events: int) -> Tensor:
    """The axes of each event so exchanged that a Hilbert curve of full depth visits its cells in the order of the curve
    whose depth is the bit length of the event's largest coordinate + 1.

    Each level above the highest bit in use exchanges x and y, then x and z, and nothing else.
    """
    if len(grid) == 0:
        return grid
    highest = grid.new_zeros(n_events).scatter_reduce(0, event, grid.amax(1), "amax")
    powers = 2 ** torch.arange(MAX_DEPTH + 1, device=grid.device)
    depth = (highest[:, None] + 1 >= powers).sum(1).clamp(max=MAX_DEPTH)
    axis = torch.arange(3, device=grid.device) + ((MAX_DEPTH - depth) % 3)[event, None]
    return grid.gather(1, axis % 3)


def serialize(
    grid: Tensor, offsets: Tensor, curves: Sequence[str], depth: Depth = MAX_DEPTH
) -> tuple[Tensor, Tensor]:
    """Orders of the points along each curve, event by event.

    Args:
        grid: int64 (N, 3), 0 <= coordinate < 2^depth.
        offsets: int64 (B+1,).
        curves: K names of curves.
        depth: bits per axis, see :func:`event_code`.

    Returns:
        ``order`` (K, N): ``order[k, j]`` is the point at place j of curve k; events keep their rows, points
        that share a cell keep their packed order. ``inverse`` (K, N): the place of each point, ``order[k,
        inverse[k, i]] = i``.

    Raises:
        ValueError: as :func:`event_code`.
    """
    order = torch.argsort(event_code(grid, offsets, curves, depth), dim=1, stable=True)
    place = torch.arange(len(grid), device=grid.device).expand_as(order)
    return order, torch.empty_like(order).scatter_(1, order, place)
