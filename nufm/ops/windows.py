"""Windows: which rows of packed tensors attend to which, told once per resolution level.

Shape legend: N points, W windows, B events, P places of queries, R places of keys, Nq rows of queries, Nk rows of keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from nufm.ops.pool import Segments
from nufm.ops.serialize import event_index
from nufm.ops.window_cuts import Cuts


class WindowLayout(NamedTuple):
    """How the serialized points of a batch are cut into windows.

    Attributes:
        gather: int64 (R,) serialized position of each key place.
        query_boundaries: int64 (W+1,) from 0 to N: the points of window w whose results are read.
        key_boundaries: int64 (W+1,) from 0 to R: the places of window w that are attended to.
    """

    gather: Tensor
    query_boundaries: Tensor
    key_boundaries: Tensor


def window_layout(offsets: Tensor, window: int) -> WindowLayout:
    """Cut each event into windows of ``window`` points, whatever the other events are.

    An event of at most ``window`` points is one window of its own length. A longer one has only full windows: the free
    places of its last window are taken by the last points of the window before. They are attended to a second time,
    but only their first result is used, so that each point is a query once. (The packing of Point Transformer V3 with
    variable-length attention.)

    Args:
        offsets: int64 (B+1,) from 0 to N; events of no points are legal and have no window.
        window: largest number of points in a window.

    Returns:
        :class:`WindowLayout`. Example: window 4, events of 6 and 3 points: gather 0 1 2 3 | 4 5 2 3 | 6 7 8.

    Raises:
        ValueError: window below 1, or offsets that are not int64 (B+1,).
    """
    if window < 1:
        raise ValueError(f"the window must be >= 1, found {window}")
    if offsets.dim() != 1 or len(offsets) < 1 or offsets.dtype != torch.int64:
        raise ValueError(f"offsets must be int64 (B+1,), found {offsets.dtype} {tuple(offsets.shape)}")
    zero = offsets.new_zeros(1)
    counts = offsets.diff()
    n_windows = (counts + window - 1) // window
    filled = torch.where(counts > window, n_windows * window, counts)
    starts = torch.cat([zero, filled.cumsum(0)])
    first_window = torch.cat([zero, n_windows.cumsum(0)])
    n_places, total = (int(x) for x in torch.stack([starts[-1], first_window[-1]]).tolist())

    event = event_index(starts, n_places)
    place = torch.arange(n_places, device=offsets.device) - starts[event]
    place = torch.where(place < counts[event], place, place - window)

    event_of_window = event_index(first_window, total)
    begin = (torch.arange(total, device=offsets.device) - first_window[event_of_window]) * window
    queries = (counts[event_of_window] - begin).clamp(max=window)
    keys = filled[event_of_window].clamp(max=window)
    return WindowLayout(
        offsets[event] + place, torch.cat([zero, queries.cumsum(0)]), torch.cat([zero, keys.cumsum(0)])
    )


@dataclass(frozen=True, eq=False)
class Exchange:
    """Rows to slots and back; each row that has a slot has one only, so both ways are a gather.

    Attributes:
        index: int64 (slots,) row of each slot.
        inverse: int64 (rows,) slot of each row.
        pads: int64, slots that hold no row, None if there are none: they are filled with 0.
        lost: int64, rows without a slot, None if there are none: they get 0.
    """

    index: Tensor
    inverse: Tensor
    pads: Tensor | None = None
    lost: Tensor | None = None

    def to_slots(self, x: Tensor) -> Tensor:
        """(rows, C) -> (slots, C)."""
        return _Move.apply(x, self, True)

    def to_rows(self, x: Tensor) -> Tensor:
        """(slots, C) -> (rows, C)."""
        return _Move.apply(x, self, False)


class _Move(Function):
    """The two directions are each other's transpose, hence each other's gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, exchange: Exchange, to_slots: bool) -> Tensor:
        ctx.exchange, ctx.to_slots = exchange, to_slots
        index, blank = (exchange.index, exchange.pads) if to_slots else (exchange.inverse, exchange.lost)
        out = x.index_select(0, index)
        return out if blank is None else out.index_fill_(0, blank, 0)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Move.apply(grad, ctx.exchange, not ctx.to_slots), None, None


class Packed(NamedTuple):
    """Windows that have queries and keys, end to end without padding: what variable-length kernels take.

    Attributes:
        queries: between rows and places, None if they are the same.
        keys: the row of each key place, None likewise.
        cu_queries, cu_keys: int32 (windows+1,), first place of each window and the number of places.
        max_queries, max_keys: lengths of the longest window.
    """

    queries: Exchange | None
    keys: Segments | None
    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int


@dataclass(frozen=True, eq=False)
class Windows:
    """Queries and keys that meet in attention; made once per level and shared by its blocks.

    Window w holds the query places query_boundaries[w]:query_boundaries[w+1] and the key places
    key_boundaries[w]:key_boundaries[w+1]. Each row of q stands in exactly one query place; a row of k and v may stand
    in several windows or in none.

    Attributes:
        query_boundaries: int64 (W+1,) from 0 to P = Nq.
        key_boundaries: int64 (W+1,) from 0 to R.
        query_rows: int64 (P,) the row of q in each place; None if the places are the rows.
        key_rows: int64 (R,) the row of k and v in each place; None if the places are the rows.
        n_queries: Nq.
        n_keys: Nk.
        most_places: no row of k and v stands in more places than this, where that is known; None if not.
        cuts: made of the boundaries, shared by windows that differ in their rows only (:meth:`of_points`).

    Raises:
        ValueError: dtypes or shapes that are not these.
    """

    query_boundaries: Tensor
    key_boundaries: Tensor
    query_rows: Tensor | None
    key_rows: Tensor | None
    n_queries: int
    n_keys: int
    most_places: int | None = None
    cuts: Cuts | None = None

    def __post_init__(self) -> None:
        for name in ("query_boundaries", "key_boundaries", "query_rows", "key_rows"):
            value = getattr(self, name)
            if value is None:
                continue
            if value.dtype != torch.int64 or value.dim() != 1 or (name.endswith("boundaries") and len(value) == 0):
                raise ValueError(f"{name} must be int64 of one dimension, found {value.dtype} {tuple(value.shape)}")
        if len(self.query_boundaries) != len(self.key_boundaries):
            raise ValueError(
                f"query_boundaries tell of {len(self.query_boundaries) - 1} windows, key_boundaries of "
                f"{len(self.key_boundaries) - 1}; a window without keys needs an entry too"
            )
        if self.query_rows is not None and len(self.query_rows) != self.n_queries:
            raise ValueError(
                f"each of the {self.n_queries} queries must stand in one place, found {len(self.query_rows)} places"
            )
        if self.cuts is None:
            object.__setattr__(self, "cuts", Cuts(self.query_boundaries, self.key_boundaries))
            n_queries, n_places = self.cuts.n_places
            expected = self.n_keys if self.key_rows is None else len(self.key_rows)
            if (n_queries, n_places) != (self.n_queries, expected):
                raise ValueError(
                    f"the boundaries tell of {n_queries} places of queries and {n_places} of keys, "
                    f"expected {self.n_queries} and {expected}"
                )

    @classmethod
    def of_boundaries(cls, queries: Tensor, keys: Tensor | None = None) -> Windows:
        """Windows of consecutive rows: self attention within ``queries``, or cross attention to ``keys``.

        Args:
            queries: int64 (W+1,) from 0 to Nq, for example the offsets of events.
            keys: int64 (W+1,) from 0 to Nk; None for ``queries``.
        """
        keys = queries if keys is None else keys
        ends = [int(x[-1]) if x.dim() == 1 and len(x) else 0 for x in (queries, keys)]
        return cls(queries, keys, None, None, *ends)

    @classmethod
    def of_layout(cls, layout: WindowLayout) -> Windows:
        """Windows of serialized points, rows in serialized order."""
        cuts = Cuts(layout.query_boundaries, layout.key_boundaries)
        n = cuts.n_places[0]
        return cls(layout.query_boundaries, layout.key_boundaries, None, layout.gather, n, n, 2, cuts)

    def of_points(self, points: Tensor) -> Windows:
        """The same windows for rows in the order of the points.

        Args:
            points: int64 (N,) the point in each of the present rows, of queries and keys alike.
        """
        query_rows, key_rows = (points if x is None else points[x] for x in (self.query_rows, self.key_rows))
        return replace(self, query_rows=query_rows, key_rows=key_rows)

    @cached_property
    def query_places(self) -> Tensor | None:
        """int64 (Nq,) the place of each row of q; None if the places are the rows."""
        if self.query_rows is None:
            return None
        places = torch.empty_like(self.query_rows)
        places[self.query_rows] = torch.arange(self.n_queries, device=places.device)
        return places

    @cached_property
    def keys(self) -> Segments | None:
        """The row of k and v in each key place, None if the places are the rows."""
        return None if self.key_rows is None else Segments(self.key_rows, self.n_keys, self.most_places)

    @cached_property
    def query_slots(self) -> Exchange | None:
        """Rows of q and the query slots of the buckets, None if they are the same."""
        buckets = self.cuts.buckets
        if buckets.queries is None:
            return None if self.query_rows is None else Exchange(self.query_rows, self.query_places)
        if self.query_rows is None:
            return Exchange(buckets.queries, buckets.slot_of_query, buckets.pads, buckets.lost)
        lost = None if buckets.lost is None else self.query_rows[buckets.lost]
        return Exchange(
            self.query_rows[buckets.queries], buckets.slot_of_query[self.query_places], buckets.pads, lost
        )

    @cached_property
    def key_slots(self) -> Segments | None:
        """The row of k and v in each key slot of the buckets, None if they are the same."""
        places = self.cuts.buckets.keys
        if places is None:
            return self.keys
        return Segments(places if self.key_rows is None else self.key_rows[places], self.n_keys)

    @cached_property
    def packed(self) -> Packed:
        """For variable-length kernels, which need not bear with windows that lack queries or keys."""
        host = self.cuts.host_lengths
        used = (host > 0).all(0)
        longest = host[:, used].amax(1).tolist() if bool(used.any()) else [0, 0]
        if bool(used.all()):
            queries = None if self.query_rows is None else Exchange(self.query_rows, self.query_places)
            boundaries = (x.to(torch.int32) for x in (self.query_boundaries, self.key_boundaries))
            return Packed(queries, self.keys, *boundaries, *longest)
        used = used.to(self.query_boundaries.device)
        lengths = self.cuts.lengths
        query_kept, key_kept = (used.repeat_interleave(n) for n in lengths)
        index, lost = query_kept.nonzero().flatten(), (~query_kept).nonzero().flatten()
        inverse = (query_kept.cumsum(0) - 1).clamp(min=0)
        if self.query_rows is not None:
            index, lost, inverse = self.query_rows[index], self.query_rows[lost], inverse[self.query_places]
        keys = key_kept.nonzero().flatten()
        keys = keys if self.key_rows is None else self.key_rows[keys]
        cu = torch.nn.functional.pad(lengths[:, used].cumsum(1), (1, 0)).to(torch.int32)
        return Packed(Exchange(index, inverse, None, lost), Segments(keys, self.n_keys), cu[0], cu[1], *longest)
