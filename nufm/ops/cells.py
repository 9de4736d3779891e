"""Which keys can lie within a distance of each query: one sorted list that serves every distance.

Keys are sorted by (event, z-order code) on a lattice finer than they need. Then a cubic cell of any power-of-two
size is one run of that list, so that each query can look through cells of its own size: a ball of radius r meets at
most two cells per axis once they are wider than 2 r, eight runs in all. Nothing depends on a typical density, and a
far outlier only makes its own cells large. The lattice has 2^20 cells per axis over the extent of all keys (fewer bits
where many events need them): keys that share a finest cell are all looked at by each query there, which costs their
number squared in time, not in memory.

Distances are compared squared and in double precision. On a lattice, whole numbers up to 2^24 in float32 or float64,
they are exact: equal distances are equal numbers, on any device. Scaled or shifted coordinates were rounded when they
were made, so that distances which were equal on the lattice may differ then; the results are those of the coordinates
as they are given.

Shape legend: N keys, M queries, B events, P pairs. Coordinates are columns, (3, N), for the sake of fast gathers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nufm.ops.serialize import check_packed, event_index

MAX_BITS = 62  # of a sorted code: the event number and three times the depth
MAX_DEPTH = 20
PAIRS_PER_CHUNK = 2**18  # on a CPU: what fits its caches
QUERIES_PER_BLOCK = 2**15
DEVICE_CHUNKS = 16  # times larger elsewhere, for fewer launches
SHORT = 64  # up to so many candidates of a query, its chunk mates need not be like it


def check_points(coord: Tensor, offsets: Tensor, name: str) -> None:
    """Refuse what is not finite floating-point rows with offsets from 0 to N.

    Raises:
        ValueError: names the argument and, for a coordinate that is NaN or infinite, the first such row.
    """
    check_packed(coord, offsets, name, dtype=None)
    if coord.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"'{name}' must be float32 or float64, found {coord.dtype}; convert it with .float()")
    if offsets.device != coord.device:
        raise ValueError(f"'{name}' is on {coord.device}, its offsets on {offsets.device}")
    finite = coord.isfinite().all(1)
    if not bool(finite.all()):
        row = int(finite.logical_not().nonzero()[0])
        raise ValueError(
            f"'{name}' must be finite, found {coord[row].tolist()} in row {row}; drop such points when reading"
        )


def check_pair(query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor) -> None:
    """Refuse queries and keys that do not belong together.

    Raises:
        ValueError: as :func:`check_points`, or unequal dtypes, devices or numbers of events.
    """
    check_points(query, query_offsets, "query")
    check_points(key, key_offsets, "key")
    if len(query_offsets) != len(key_offsets):
        raise ValueError(f"queries have {len(query_offsets) - 1} events, keys have {len(key_offsets) - 1}")
    if query.dtype != key.dtype or query.device != key.device:
        raise ValueError(
            f"queries are {query.dtype} on {query.device}, keys {key.dtype} on {key.device}; make them alike"
        )


def _spread(x: Tensor) -> Tensor:
    """Move bit i of a number below 2^21 to bit 3i."""
    x = (x | x << 32) & 0x1F00000000FFFF
    x = (x | x << 16) & 0x1F0000FF0000FF
    x = (x | x << 8) & 0x100F00F00F00F00F
    x = (x | x << 4) & 0x10C30C30C30C30C3
    return (x | x << 2) & 0x1249249249249249


def square_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of points (3, ...), added in a fixed order so that all devices round alike."""
    x, y, z = (a - b).square().unbind(0)
    return x + y + z


@dataclass(frozen=True, eq=False)
class Cells:
    """Keys in the order of (event, z-order code).

    Attributes:
        point: float64 (3, N), sorted.
        row: int64 (N,), the packed row of each.
        code: int64 (N,), ascending; equal codes in the order of rows.
        low: float64 (3, 1), the corner of the lattice.
        scale: float64 scalar, cells per unit of length.
        depth: bits per axis.
    """

    point: Tensor
    row: Tensor
    code: Tensor
    low: Tensor
    scale: Tensor
    depth: int

    @classmethod
    def build(cls, key: Tensor, offsets: Tensor) -> Cells:
        """Sort N >= 1 keys (N, 3) of the events ``offsets`` (B+1,)."""
        depth = min((MAX_BITS - (len(offsets) - 1).bit_length()) // 3, MAX_DEPTH)
        point = columns(key)
        low, high = torch.aminmax(point, dim=1, keepdim=True)
        scale = (2**depth - 1) / (high - low).amax().clamp(min=1e-300)
        unsorted = cls(point, offsets, offsets, low, scale, depth)
        code, row = torch.sort(unsorted.encode(point, event_index(offsets, len(key))), stable=True)
        return cls(point[:, row], row, code, low, scale, depth)

    def cell(self, point: Tensor) -> Tensor:
        """int64 (3, M) finest cell of points (3, M); monotonic in each coordinate, also beyond the keys."""
        return ((point - self.low) * self.scale).clamp_(0, 2**self.depth - 1).long()

    def encode(self, point: Tensor, event: Tensor) -> Tensor:
        """int64 (M,) code of points (3, M) of the events ``event`` (M,)."""
        x, y, z = _spread(self.cell(point)).unbind(0)
        return event << 3 * self.depth | x << 2 | y << 1 | z

    def first_copies(self, k: int) -> Cells:
        """The same without keys that have k others of lower row in exactly their place.

        None of those is among the k nearest of any query, and an event with thousands of points in one place would
        otherwise cost their number squared.
        """
        place = torch.arange(len(self.row), device=self.row.device)
        is_copy = torch.zeros_like(self.row, dtype=torch.bool)
        is_copy[1:] = (self.code.diff() == 0) & (self.point.diff() == 0).all(0)
        first = place.masked_fill(is_copy, 0).cummax(0).values
        kept = (place - first < k).nonzero()[:, 0]
        return replace(self, point=self.point[:, kept], row=self.row[kept], code=self.code[kept])

    def runs(self, query: Tensor, event: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Runs of the sorted keys with all of those near each query, and some more.

        Args:
            query: float64 (3, M).
            event: int64 (M,).
            limit: float64 (M,), the largest squared distance that counts.

        Returns:
            int64 (M, 8) first place and int64 (M, 8) number of keys of each run; runs do not overlap.
        """
        # The margin covers the rounding of query -+ reach and of the distances, also of squares that underflow.
        reach = limit.sqrt() * (1 + 1e-12) + query.abs().amax(0) * 1e-14 + 1e-150
        low, high = self.cell(query - reach), self.cell(query + reach)
        level = torch.frexp((high - low).amax(0).double()).exponent.long()  # cells of 2^level > high - low
        low, high = low >> level, high >> level
        first, wanted = (event << 3 * self.depth)[:, None], torch.ones((), dtype=torch.bool, device=event.device)
        for axis in range(3):
            code = _spread(torch.stack([low[axis], high[axis]], 1) << level[:, None]) << 2 - axis
            first = (first[:, :, None] + code[:, None]).flatten(1)
            two = (high[axis] > low[axis])[:, None]
            wanted = (wanted[..., None] & torch.cat([torch.ones_like(two), two], 1)[:, None]).flatten(1)
        start = torch.searchsorted(self.code, first)
        stop = torch.searchsorted(self.code, first + (1 << 3 * level)[:, None])
        return start, (stop - start) * wanted

    def pairs(
        self, query: Tensor, start: Tensor, count: Tensor, limit: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Go through the runs of :meth:`runs` and keep what is near, in chunks of bounded size.

        Queries with about equally long runs share a chunk, so that it may be padded to the longest of them.

        Args:
            query: float64 (3, M).
            start, count: int64 (M, 8).
            limit: float64 (M,), the largest squared distance that counts.

        Yields:
            ``part`` int64 (m,) the queries of the chunk, in any order; ``rank`` int64 (P,) which of them each pair
            belongs to; ``row`` int64 (P,) packed row of its key; ``square`` float64 (P,) its distance squared.
            Sorted by (rank, row).
        """
        total = count.sum(1)
        octave = torch.frexp((total - 1).clamp(min=SHORT - 1).double()).exponent.long()  # total <= 2^octave
        octave, order = torch.sort(octave, stable=True)
        chunk = (1 << octave).cumsum(0) // chunk_sizes(query.device)[0]
        is_cut = (octave.diff() != 0) | (chunk.diff() != 0)
        for lo, hi in itertools.pairwise([0, *(is_cut.nonzero()[:, 0] + 1).tolist(), len(order)]):
            part = order[lo:hi]
            length = count[part].flatten()
            shift = start[part].flatten() - (length.cumsum(0) - length)
            place = shift.repeat_interleave(length)
            place += torch.arange(len(place), device=place.device)
            rank = torch.arange(len(part), device=place.device).repeat_interleave(total[part], output_size=len(place))
            asked = query[:, part]
            square = torch.zeros((), dtype=torch.float64, device=place.device)
            for axis in range(3):
                step = self.point[axis].index_select(0, place) - asked[axis].index_select(0, rank)
                square = square + step.square_()
            near = (square <= limit[part].index_select(0, rank)).nonzero()[:, 0]
            rank, row, square = rank[near], self.row[place[near]], square[near]
            code, sequence = torch.sort(rank << 40 | row)  # a chunk has fewer than 2^20 queries
            yield part, rank, code - (rank << 40), square[sequence]


def chunk_sizes(device: torch.device) -> tuple[int, int]:
    """Pairs per chunk and queries per block: what bounds the memory of a search beside its result."""
    factor = 1 if device.type == "cpu" else DEVICE_CHUNKS
    return factor * PAIRS_PER_CHUNK, factor * QUERIES_PER_BLOCK


def columns(coord: Tensor) -> Tensor:
    """float64 (3, N) of coordinates (N, 3), without a gradient."""
    return coord.detach().double().T.contiguous()
