"""What the convolution kernels need to know of a kernel map: made once per map, on its device, by torch.

Shape legend: N rows read, M rows written, K taps, P pairs, R rows of a tile, T tiles, E entries (tile, tap in use).

A tile lists only the taps that one of its rows reads through, and rows that read through the same taps are put into the
same tile (the idea of the mask sort of spconv 2, github.com/traveller59/spconv). The rows are sorted by their taps
as bits of a number, the rarest tap first, in the order of a Gray code, in which neighbouring numbers differ by one
bit: the few rows with a rare tap share tiles, and all others are spared it. Integer arithmetic only: plans are
repeatable.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nufm.ops.kernel_map import KernelMap
from nufm.ops.pool import Segments

MASK_BITS = 62
# A tile of 128 rows reads the weights half as often as one of 64; one of 64 leaves fewer taps that few of its rows
# use, and small levels need the larger number of tiles to fill a GPU.
LONG_TILE_FROM = 2**14


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Lists of an implicit matrix product, tile by tile.

    Attributes:
        rows: R.
        order: int64 (M',) row that is written, tile by tile; R in each tile but the last.
        tiles: int32 (T,) tiles, those with the most taps first: the long ones must not start last.
        first: int64 (T+1,) where the entries of a tile begin.
        tap: int32 (E,) tap of an entry, ascending within a tile: the order of the sum that makes a result.
        index: int32 (E, R) row that is read, -1 = none.
        mirrored: the taps count from the end: weights K-1-tap belong to ``tap``.
        extra: where a result reads several rows through one tap (points that share a cell), it is the sum of several
            rows of the product: the result to which each of the rows M, M+1, ... is to be added. None = no such result.
    """

    rows: int
    order: Tensor
    tiles: Tensor
    first: Tensor
    tap: Tensor
    index: Tensor
    mirrored: bool
    extra: Segments | None = None

    @property
    def entries(self) -> int:
        return len(self.tap)


@dataclass(frozen=True, eq=False)
class SegmentPlan:
    """The pairs of each result.

    Attributes:
        first: int64 (M+1,) where the pairs of a result begin.
        source: int64 (P,) row that is read, by result, taps ascending.
        tap: int32 (P,).
    """

    first: Tensor
    source: Tensor
    tap: Tensor


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pairs of one tap each, of similar number: the shares of a weight gradient.

    Attributes:
        tap: int32 (pieces,) ascending; every tap has one piece at least.
        begin, end: int64 (pieces,) pairs; of the identity tap, rows.
        first: int32 (K+1,) where the pieces of a tap begin.
    """

    tap: Tensor
    begin: Tensor
    end: Tensor
    first: Tensor

    @property
    def single(self) -> bool:
        """Whether no tap has several pieces."""
        return len(self.tap) == len(self.first) - 1


@dataclass(eq=False)
class Plans:
    """What has been made of a map so far; all convolutions of its level share it."""

    tiles: TilePlan | None = None
    segments: SegmentPlan | None = None
    pieces: dict[int, Pieces] = field(default_factory=dict)


def _nothing_yet(pairs: KernelMap) -> Plans:
    return Plans()


def tile_plan(pairs: KernelMap, opposite: TilePlan | None = None) -> TilePlan:
    """The tiles of a map.

    Args:
        opposite: plan of the map whose ``transposed`` is ``pairs``. It serves both where each pair has its mirror image
            (submanifold maps of points that do not share cells).
    """
    plans = pairs.once(_nothing_yet)
    if plans.tiles is None:
        if opposite is not None and _is_mirrored(pairs, opposite):
            plans.tiles = replace(opposite, mirrored=True)
        else:
            # In the order of a mirrored plan wherever there could be one: whether an event shares cells must not change
            # the rounding of the others.
            plans.tiles = _make_tiles(pairs, mirrored=opposite is not None and pairs.identity is not None)
    return plans.tiles


def segment_plan(pairs: KernelMap) -> SegmentPlan:
    """The pairs of a map by result."""
    plans = pairs.once(_nothing_yet)
    if plans.segments is None:
        source, target, tap = _pair_lists(pairs)
        order = torch.argsort(target * pairs.taps + tap, stable=True)
        counts = torch.bincount(target, minlength=pairs.n_target)
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        plans.segments = SegmentPlan(first, source[order], tap[order].int())
    return plans.segments


def pieces(pairs: KernelMap, most: int) -> Pieces:
    """The pairs of a map cut into pieces of one tap and at most ``most`` pairs each."""
    plans = pairs.once(_nothing_yet)
    if most not in plans.pieces:
        plans.pieces[most] = _make_pieces(pairs, most)
    return plans.pieces[most]


def _make_tiles(pairs: KernelMap, mirrored: bool) -> TilePlan:
    source, target, tap = _pair_lists(pairs)
    if mirrored:
        tap = pairs.taps - 1 - tap
    m = pairs.n_target
    plan = _tiles(source, target, tap, m, pairs.taps)
    if plan is None:
        row, extra = _spread(target, tap, m, pairs.taps)
        plan = _tiles(source, row, tap, m + len(extra), pairs.taps)
        assert plan is not None, "no row of the product reads twice through one tap"
        plan = replace(plan, extra=Segments(extra, m))
    return replace(plan, mirrored=mirrored)


def _pair_lists(pairs: KernelMap) -> tuple[Tensor, Tensor, Tensor]:
    """(source, target, tap) of all pairs, those of the identity among them; int64 (P,)."""
    device, tap = pairs.source.device, pairs.tap
    if pairs.identity is None:
        return pairs.source, pairs.target, tap
    own = torch.arange(pairs.n_target, device=device)
    return (
        torch.cat([pairs.source, own]),
        torch.cat([pairs.target, own]),
        torch.cat([tap, torch.full_like(own, pairs.identity)]),
    )


def _tiles(source: Tensor, target: Tensor, tap: Tensor, m: int, taps: int) -> TilePlan | None:
    """Plan of the pairs; None if a row reads several rows through one tap."""
    device = source.device
    rows = 128 if m >= LONG_TILE_FROM else 64
    tiles = -(-m // rows)
    order = _similar_rows(target, tap, m, taps)
    place = torch.empty_like(order)
    place[order] = torch.arange(m, device=device)
    place = place[target]
    slot, lane = place // rows * taps + tap, place % rows
    used = torch.zeros(tiles * taps, dtype=torch.bool, device=device)
    used[slot] = True
    entry = (used.cumsum(0) - 1)[slot]
    slots = used.nonzero()[:, 0]
    index = torch.full((len(slots), rows), -1, dtype=torch.int32, device=device)
    index[entry, lane] = source.int()
    if not torch.equal(index[entry, lane], source.int()):
        return None
    lengths = used.view(tiles, taps).sum(1)
    return TilePlan(
        rows=rows,
        order=order,
        tiles=torch.argsort(lengths, descending=True, stable=True).int(),
        first=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        tap=(slots % taps).int(),
        index=index,
        mirrored=False,
    )


def _similar_rows(target: Tensor, tap: Tensor, m: int, taps: int) -> Tensor:
    """int64 (M,) order of the rows in which neighbours read through similar taps."""
    # Bits from the rarest tap (the highest) to the most frequent; more taps than bits share them.
    rarity = torch.argsort(torch.bincount(tap, minlength=taps), stable=True)
    rank = torch.empty_like(rarity)
    rank[rarity] = torch.arange(taps, device=tap.device)
    width = -(-taps // MASK_BITS)
    bit = (taps - 1 - rank) // width
    row, bit = target, bit[tap]
    if width > 1:
        used = torch.zeros(m * MASK_BITS, dtype=torch.bool, device=tap.device)
        used[row * MASK_BITS + bit] = True
        used = used.nonzero()[:, 0]
        row, bit = used // MASK_BITS, used % MASK_BITS
    code = torch.zeros(m, dtype=torch.int64, device=tap.device).index_add_(0, row, 1 << bit)
    for shift in (1, 2, 4, 8, 16, 32):  # the place of this number in the reflected Gray code
        code = code ^ (code >> shift)
    if width == 1:
        return torch.argsort(code, stable=True)
    # Rows of a patch convolution's way up have a single tap: sharing a bit does not say that they share it.
    least = torch.full((m,), taps, device=tap.device).scatter_reduce_(0, target, rank[tap], "amin")
    order = torch.argsort(least, stable=True)
    return order[torch.argsort(code[order], stable=True)]


def _is_mirrored(pairs: KernelMap, opposite: TilePlan) -> bool:
    """Whether ``opposite``, taps reversed, is the plan of ``pairs``: for each pair (j, i) of tap t, (i, j) of K-1-t."""
    taps = pairs.taps
    if pairs.identity is None or 2 * pairs.identity + 1 != taps or pairs.counts != pairs.counts[::-1]:
        return False
    if opposite.extra is not None or opposite.mirrored:
        return False
    # No pair occurs twice and opposite taps have equally many: looking in one direction is enough.
    device, tap = pairs.source.device, pairs.tap
    place = torch.empty_like(opposite.order)
    place[opposite.order] = torch.arange(pairs.n_target, device=device)
    place = place[pairs.target]
    tile = torch.arange(len(opposite.tiles), device=device).repeat_interleave(
        opposite.first.diff(), output_size=opposite.entries
    )
    entries = torch.full((len(opposite.tiles) * taps,), -1, device=device)
    entries[tile * taps + opposite.tap] = torch.arange(opposite.entries, device=device)
    entry = entries[place // opposite.rows * taps + taps - 1 - tap]
    found = (entry >= 0) & (opposite.index[entry, place % opposite.rows] == pairs.source)
    return bool(found.all())


def _spread(target: Tensor, tap: Tensor, m: int, taps: int) -> tuple[Tensor, Tensor]:
    """Rows of a product in which no row reads twice through one tap.

    Returns:
        int64 (P,) row of the product of each pair, and int64 (M' - M,) the result to which row M + i is added: the
        first pair of each (result, tap) goes to the result itself, the others to rows behind.
    """
    slot = target * taps + tap
    ordered, order = torch.sort(slot, stable=True)
    place = torch.arange(len(slot), device=slot.device)
    begins = torch.ones_like(place, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    rank = torch.empty_like(place)
    rank[order] = place - torch.where(begins, place, 0).cummax(0).values
    later = rank > 0
    keys, inverse = torch.unique(rank[later] * m + target[later], return_inverse=True)
    row = target.clone()
    row[later] = m + inverse
    return row, keys % m


def _make_pieces(pairs: KernelMap, most: int) -> Pieces:
    taps, begins, ends, first = [], [], [], [0]
    start = 0
    for tap, count in enumerate(pairs.counts):
        origin, start = start, start + count
        if tap == pairs.identity:
            origin, count = 0, pairs.n_target
        pieces = max(1, -(-count // most))
        size = -(-count // pieces)
        for i in range(pieces):
            taps.append(tap)
            begins.append(origin + min(i * size, count))
            ends.append(origin + min((i + 1) * size, count))
        first.append(len(taps))
    # One copy to the device instead of four.
    lists = torch.tensor([*taps, *begins, *ends, *first]).to(pairs.source.device)
    tap, begin, end, first = lists.split([len(taps), len(taps), len(taps), len(first)])
    return Pieces(tap.int(), begin, end, first.int())
