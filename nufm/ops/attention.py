"""Attention within windows of consecutive points along a curve.

Shape legend: N points, Np points after filling up windows, W windows, B events, H heads, D channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nufm.ops.pool import Segments, take
from nufm.ops.serialize import event_index

BUCKET = 32  # short windows are padded to a multiple of this and computed together


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """How the serialized points of a batch are cut into windows.

    Attributes:
        gather: int64 (Np,) serialized position of each row of the windows.
        scatter: int64 (N,) row that holds the result of each serialized position.
        boundaries: int64 (W+1,) from 0 to Np; window w holds the rows boundaries[w]:boundaries[w+1].
    """

    gather: Tensor
    scatter: Tensor
    boundaries: Tensor


def window_layout(offsets: Tensor, window: int) -> WindowLayout:
    """Cut each event into windows of ``window`` points, whatever the other events are.

    An event of at most ``window`` points is one window of its own length. A longer one has only full windows:
    the free places of its last window are taken by the last points of the previous window. They attend, and
    are attended to, a second time, but only their first result is used. (The packing of Point Transformer V3
    with variable-length attention.)

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
    counts = offsets.diff()
    n = int(offsets[-1])
    n_windows = (counts + window - 1) // window
    filled = torch.where(counts > window, n_windows * window, counts)
    starts = torch.cat([offsets.new_zeros(1), filled.cumsum(0)])

    event = event_index(starts, int(starts[-1]))
    place = torch.arange(len(event), device=offsets.device) - starts[event]
    place = torch.where(place < counts[event], place, place - window)
    gather = offsets[event] + place

    event = event_index(offsets, n)
    scatter = torch.arange(n, device=offsets.device) + (starts[:-1] - offsets[:-1])[event]

    lengths = torch.minimum(filled, torch.full_like(filled, window)).repeat_interleave(n_windows)
    return WindowLayout(gather, scatter, torch.cat([offsets.new_zeros(1), lengths.cumsum(0)]))


class Bucket(NamedTuple):
    """Windows of about one size, computed together: ``windows`` times ``queries`` x ``keys`` slots."""

    windows: int
    queries: int
    keys: int
    mask: Tensor | None  # bool (windows, 1, 1, keys), False for slots that only pad; None if there are none


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows sorted into buckets for batched attention, computed once per level and shared by its blocks.

    Attributes:
        buckets: their slots lie end to end, bucket by bucket, window by window.
        queries: the row in each query slot, or None if the slots are the rows.
        keys: the row in each key slot, or None likewise. Slots that only pad a window hold its first row.
        result: the query slot that holds the result of each row, or None likewise.
        n_rows: number of rows.
    """

    buckets: tuple[Bucket, ...]
    queries: Segments | None
    keys: Segments | None
    result: Segments | None
    n_rows: int

    @classmethod
    def from_boundaries(cls, boundaries: Tensor, window: int, read: Tensor | None = None) -> Windows:
        """Buckets of the windows ``boundaries`` (W+1,), padded to multiples of 32 rows or to ``window``.

        Args:
            boundaries: int64 (W+1,) from 0 to Np.
            window: largest number of rows in a window.
            read: int64 (W,) how many results of each window, counted from its first row, are read at all. The
                others are not computed: their values are arbitrary. None reads all.

        Raises:
            ValueError: a window longer than ``window``.
        """
        lengths = boundaries.diff()
        read = lengths if read is None else read
        sizes = torch.stack([lengths, read])
        padded = ((sizes + BUCKET - 1) // BUCKET * BUCKET).clamp(max=window)
        # One copy to the host for all that decides shapes.
        host_lengths, host_read, host_keys, host_queries = torch.cat([sizes, padded]).tolist()
        if max(host_lengths, default=0) > window:
            raise ValueError(f"a window has {max(host_lengths)} points, more than {window}")
        shapes = list(zip(host_queries, host_keys, strict=True))
        n_rows = sum(host_lengths)
        if len(set(shapes)) == 1 and host_read == host_queries == host_keys == host_lengths:
            bucket = Bucket(len(shapes), *shapes[0], None)
            return cls((bucket,), None, None, None, n_rows)

        buckets, query_rows, key_rows = [], [], []
        result = torch.zeros(n_rows, dtype=torch.int64, device=boundaries.device)
        n_slots = 0
        for n_queries, n_keys in sorted(set(shapes)):
            if n_queries == 0:
                continue
            chosen = [w for w, shape in enumerate(shapes) if shape == (n_queries, n_keys)]
            windows = torch.tensor(chosen, device=boundaries.device)[:, None]
            place = torch.arange(n_keys, device=boundaries.device)
            is_key, is_query = place < lengths[windows], place[:n_queries] < read[windows]
            key_rows.append((boundaries[windows] + torch.where(is_key, place, 0)).flatten())
            rows = boundaries[windows] + torch.where(is_query, place[:n_queries], 0)
            slots = torch.arange(n_slots, n_slots + rows.numel(), device=boundaries.device).view_as(rows)
            result[rows[is_query]] = slots[is_query]
            query_rows.append(rows.flatten())
            n_slots += rows.numel()
            is_full = all(host_lengths[w] == n_keys for w in chosen)
            buckets.append(Bucket(len(chosen), n_queries, n_keys, None if is_full else is_key[:, None, None]))
        empty = result[:0]
        return cls(
            buckets=tuple(buckets),
            queries=Segments(torch.cat([empty, *query_rows]), n_rows),
            keys=Segments(torch.cat([empty, *key_rows]), n_rows),
            result=Segments(result, n_slots),
            n_rows=n_rows,
        )

    @classmethod
    def from_layout(cls, layout: WindowLayout, window: int) -> Windows:
        """Buckets in which the second result of a point that fills up a window is not computed."""
        lengths = layout.boundaries.diff()
        window_of_row = event_index(layout.boundaries, len(layout.gather))
        read = torch.bincount(window_of_row[layout.scatter], minlength=len(lengths))
        return cls.from_boundaries(layout.boundaries, window, read)

    def of_points(self, points: Tensor, rows: Tensor) -> Windows:
        """The same windows for q, k, v in the order of the points: no gathering before, no scattering after.

        Args:
            points: int64 (Np,) the point in each row.
            rows: int64 (N,) the row that holds the result of each point.
        """
        return Windows(
            buckets=self.buckets,
            queries=Segments(points if self.queries is None else points[self.queries.index], len(rows)),
            keys=Segments(points if self.keys is None else points[self.keys.index], len(rows)),
            result=Segments(rows, self.n_rows)
            if self.result is None
            else Segments(self.result.index[rows], self.result.n),
            n_rows=len(rows),
        )


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor | Windows, window: int, scale: float
) -> Tensor:
    """Softmax attention of every row over the rows of its own window: softmax(scale q kᵀ) v.

    Args:
        q, k, v: float (Np, H, D).
        boundaries: int64 (W+1,) from 0 to Np, or the :class:`Windows` made of it; make the latter once for
            all blocks of a level. (Windows :meth:`Windows.of_points` take and give N rows in place of Np.)
        window: largest number of rows in a window.
        scale: factor of the products, usually D^-0.5.

    Returns:
        (Np, H, D) in the dtype of ``q``. Differentiable once (PyTorch's fused attention has no second
        derivative).

    Raises:
        ValueError: shapes or dtypes of q, k, v that differ, or boundaries that do not end at Np.
    """
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            f"q, k, v must be (Np, H, D), found {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"q, k, v must have one floating dtype, found {q.dtype}, {k.dtype}, {v.dtype}")
    windows = boundaries
    if not isinstance(windows, Windows):
        windows = Windows.from_boundaries(boundaries, window)
    n, heads, width = q.shape
    if windows.n_rows != n:
        raise ValueError(f"the windows hold {windows.n_rows} rows, q has {n}")
    if n == 0:
        return q + k + v  # empty, and differentiable in all three

    def gather(x: Tensor, rows: Segments | None) -> Tensor:
        return x if rows is None else take(x.flatten(1), rows).unflatten(1, (heads, width))

    q, k, v = gather(q, windows.queries), gather(k, windows.keys), gather(v, windows.keys)
    q_parts = q.split([b.windows * b.queries for b in windows.buckets])
    k_parts, v_parts = (x.split([b.windows * b.keys for b in windows.buckets]) for x in (k, v))
    results = []
    for bucket, *parts in zip(windows.buckets, q_parts, k_parts, v_parts, strict=True):
        # (windows, heads, queries or keys, width)
        parts = [x.unflatten(0, (bucket.windows, -1)).transpose(1, 2) for x in parts]
        result = scaled_dot_product_attention(*parts, attn_mask=bucket.mask, scale=scale)
        results.append(result.transpose(1, 2).flatten(0, 1))
    return gather(torch.cat(results), windows.result)
