"""Who is next to whom: neighbour maps on the lattice and nearest points in space.

Shape legend: N points, M query points, B events, U occupied cells, K = kernel_size^3 taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nufm.ops.dispatch import run
from nufm.ops.points import k_nearest
from nufm.ops.serialize import check_packed, event_index

MAX_KEY = 2**62  # keys of cells are int64; one bit is left for the search beyond the last cell


def cell_keys(grid: Tensor, offsets: Tensor, pad: int = 0) -> tuple[Tensor, tuple[int, int, int]]:
    """One integer per point that sorts as (event, x, y, z).

    Args:
        grid: int64 (N, 3), >= 0.
        offsets: int64 (B+1,).
        pad: empty cells kept free after the largest coordinate, so that a step of up to ``pad`` cells along
            any axis never lands on an occupied cell of another row, plane or event.

    Returns:
        int64 (N,) keys, and the strides (of one event, of x, of y); z has stride 1.

    Raises:
        ValueError: wrong shapes or dtypes, negative coordinates, or a lattice too large for 64-bit keys.
    """
    check_packed(grid, offsets)
    if len(grid) == 0:
        return grid.new_zeros(0), (1, 1, 1)
    low, high = torch.stack(torch.aminmax(grid, dim=0)).tolist()  # one copy from the device for both
    if min(low) < 0:
        raise ValueError(
            f"lattice coordinates must be >= 0, found {min(low)}; subtract each event's own minimum first"
        )
    nx, ny, nz = (h + 1 + pad for h in high)
    if (len(offsets) - 1) * nx * ny * nz > MAX_KEY:
        raise ValueError(
            f"{len(offsets) - 1} events of {nx} x {ny} x {nz} cells exceed a 64-bit key; "
            "use a coarser grid size"
        )
    x, y, z = grid.unbind(1)
    event = event_index(offsets, len(grid))
    return ((event * nx + x) * ny + y) * nz + z, (nx * ny * nz, ny * nz, nz)


def neighbor_map(grid: Tensor, offsets: Tensor, kernel_size: int = 3) -> Tensor:
    """Index of the neighbour of each point at each tap of a cubic kernel.

    Args:
        grid: int64 (N, 3), >= 0.
        offsets: int64 (B+1,); neighbours never belong to another event.
        kernel_size: odd edge k of the kernel.

    Returns:
        int64 (N, k^3), -1 where the cell is empty. Tap t looks at the cell
        ``grid + (t // k^2, t // k % k, t % k) - k // 2`` (C order of the grid columns). Where several points
        share a cell, the centre tap is each point itself and the other taps, of all who look into that cell,
        are its point of lowest packed index.

    Raises:
        ValueError: an even kernel size, or as :func:`cell_keys`.
    """
    source, target, counts = neighbor_pairs(grid, offsets, kernel_size)
    taps = torch.arange(len(counts), device=grid.device)
    tap = taps.repeat_interleave(torch.tensor(counts, device=grid.device), output_size=len(source))
    table = grid.new_full((len(grid), len(counts)), -1)
    table[:, len(counts) // 2] = torch.arange(len(grid), device=grid.device)
    table[target, tap] = source
    return table


def neighbor_pairs(
    grid: Tensor, offsets: Tensor, kernel_size: int = 3
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """The entries of :func:`neighbor_map` as a list, tap by tap, without the centre tap.

    Args:
        grid, offsets, kernel_size: as for :func:`neighbor_map`.

    Returns:
        ``source`` int64 (P,), the neighbour; ``target`` int64 (P,), the point that looks at it; and the
        number of pairs of each of the k^3 taps (0 for the centre).

    Raises:
        ValueError: an even kernel size, or as :func:`cell_keys`.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"the kernel size must be odd and positive, found {kernel_size}")
    keys, (_, *strides) = cell_keys(grid, offsets, pad=kernel_size // 2)
    keys, order = torch.sort(keys, stable=True)
    if kernel_size == 1 or len(keys) == 0:
        return order[:0], order[:0], (0,) * kernel_size**3
    return run("neighbor_pairs", _neighbor_pairs, keys, order, tuple(strides), kernel_size)


def _neighbor_pairs(
    keys: Tensor, order: Tensor, strides: tuple[int, int], kernel_size: int
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """:func:`neighbor_pairs` from the sorted keys of the points (N,), their rows (N,) and the strides of x and y.

    The pairs of a tap come in the order of their targets in ``order``.
    """
    radius, taps = kernel_size // 2, kernel_size**3
    stride_x, stride_y = strides
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    cells = keys[first]
    has_duplicates = len(cells) < len(keys)
    if has_duplicates:
        cell_start = first.nonzero()[:, 0]
        cell_count = torch.cat([cell_start, cell_start.new_tensor([len(keys)])]).diff()

    def points(looking: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(source, target) points of cells ``looking`` that see the cells ``seen``."""
        if not has_duplicates:
            return order[seen], order[looking]
        # All points of a cell look, only the first of a cell is seen (the sort is stable: the lowest index).
        count = cell_count[looking]
        pair = torch.arange(len(looking), device=keys.device).repeat_interleave(count)
        rank = torch.arange(len(pair), device=keys.device) - (count.cumsum(0) - count)[pair]
        return order[cell_start[seen]][pair], order[cell_start[looking][pair] + rank]

    # Tap t of a cell is tap K-1-t of the neighbour, so half of the taps suffice. The cells of one column
    # (along z) are consecutive keys, so that one search per column suffices.
    pairs = {}
    index = torch.arange(len(cells), device=keys.device)
    padded = torch.cat([cells, cells.new_full((1,), torch.iinfo(torch.int64).max)])
    for column in range(kernel_size**2 // 2, kernel_size**2):
        dx, dy = column // kernel_size - radius, column % kernel_size - radius
        low = 1 if dx == dy == 0 else -radius
        key = cells + (dx * stride_x + dy * stride_y + low)
        place = index + 1 if dx == dy == 0 else torch.searchsorted(cells, key)
        for dz in range(low, radius + 1):
            hit = padded[place] == key
            looking = hit.nonzero()[:, 0]
            seen = place[looking]
            tap = column * kernel_size + dz + radius
            pairs[tap] = points(looking, seen)
            pairs[taps - 1 - tap] = points(seen, looking)
            place, key = place + hit, key + 1
    pairs[taps // 2] = index[:0], index[:0]
    source, target = zip(*(pairs[tap] for tap in range(taps)), strict=True)
    return torch.cat(source), torch.cat(target), tuple(len(s) for s in source)


def nearest(
    query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, max_distance: float
) -> Tensor:
    """The nearest key of each query within the same event.

    Args:
        query: float (M, 3).
        query_offsets: int64 (B+1,).
        key: float (N, 3).
        key_offsets: int64 (B+1,), the same B.
        max_distance: only keys strictly closer than this count (Euclid, not squared); may be infinite.

    Returns:
        int64 (M,) row of ``key``, -1 where none is close enough; the lowest row among equally near ones.

    Raises:
        ValueError: wrong shapes, a different number of events, or a coordinate that is not finite.
    """
    # In double precision, so that the limit is compared with what the search compares.
    index, distance = k_nearest(query.double(), query_offsets, key.double(), key_offsets, 1)
    return torch.where(distance < max_distance, index, -1)[:, 0]
