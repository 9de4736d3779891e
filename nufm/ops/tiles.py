"""Matrix products event by event on packed rows, without padding every event to the longest one.

Rows are cut into tiles of a fixed size that never cross events; only the last tile of an event has empty places. A
batch of events of any lengths is then one batched product.

Shape legend: N rows (points), B events, T tiles, C channels, Q and K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nufm.ops.pool import Segments, segment_reduce, take
from nufm.ops.serialize import event_index
from nufm.ops.windows import Exchange


@dataclass(frozen=True, eq=False)
class Tiles:
    """How the rows of a batch are cut into tiles; made once for all products of a level.

    Attributes:
        event: the event of each of the T tiles, as segments.
        slots: between rows and places in tiles.
        size: places of a tile.
    """

    event: Segments
    slots: Exchange
    size: int

    @classmethod
    def of_offsets(cls, offsets: Tensor, size: int = 128) -> Tiles:
        """Cut events at int64 (B+1,) ``offsets``; events without rows have no tile."""
        if size < 1:
            raise ValueError(f"the size of a tile must be >= 1, found {size}")
        counts = offsets.diff()
        first = torch.cat([offsets.new_zeros(1), ((counts + size - 1) // size).cumsum(0)])
        n_rows, n_tiles = torch.stack([offsets[-1], first[-1]]).tolist()
        event = event_index(offsets, n_rows)
        slot = torch.arange(n_rows, device=offsets.device) - offsets[event] + first[event] * size
        index = torch.full((n_tiles * size,), -1, dtype=torch.int64, device=offsets.device)
        index[slot] = torch.arange(n_rows, device=offsets.device)
        pads = (index < 0).nonzero().flatten()
        in_order = torch.arange(n_tiles, device=offsets.device)
        tile_event = Segments.ordered(event_index(first, n_tiles), len(counts), in_order)
        return cls(tile_event, Exchange(index.clamp(min=0), slot, pads), size)

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        """Products of each row with the rows of ``y`` of its own event.

        Args:
            x: float (N, C).
            y: float (B, Q, C).

        Returns:
            (N, Q). Differentiable in both.
        """
        own = take(y.flatten(1), self.event).unflatten(1, y.shape[1:])
        return self.slots.to_rows(torch.bmm(self._cut(x), own.transpose(1, 2)).flatten(0, 1))

    def sums(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum over the rows of each event of the outer products of ``x`` and ``y``.

        Args:
            x: float (N, Q).
            y: float (N, K).

        Returns:
            (B, Q, K), 0 for events without rows. Differentiable in both.
        """
        parts = torch.bmm(self._cut(x).transpose(1, 2), self._cut(y))
        return segment_reduce(parts.flatten(1), self.event, self.event.n, "sum").unflatten(1, parts.shape[1:])

    def _cut(self, x: Tensor) -> Tensor:
        return self.slots.to_slots(x).unflatten(0, (len(self.event.index), self.size))
