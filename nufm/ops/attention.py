"""Attention within windows of consecutive points along a curve.

Shape legend: N points, Np points after filling up windows, W windows, B events, H heads, D channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows grouped by length for batched attention, computed once per level and shared by its blocks.

    Attributes:
        slots: the row of each slot of the buckets, laid end to end (S,), or None if the rows already lie so.
            Slots that only pad a window repeat its first row and are never read.
        rows: the slot of each row (Np,), or None.
        buckets: per bucket, its number of windows, its length, and either None or a boolean mask
            (windows, 1, 1, length) of the slots that hold a point.
    """

    slots: Segments | None
    rows: Segments | None
    buckets: tuple[tuple[int, int, Tensor | None], ...]

    @classmethod
    def from_boundaries(cls, boundaries: Tensor, window: int) -> Windows:
        """Group the windows ``boundaries`` (W+1,): full ones, and shorter ones padded to multiples of 32.

        Raises:
            ValueError: a window longer than ``window``.
        """
        lengths = boundaries.diff()
        padded = ((lengths + BUCKET - 1) // BUCKET * BUCKET).clamp(max=window)
        padded = torch.where(lengths == window, window, padded)
        # One copy to the host for all that decides shapes.
        host_lengths, host_padded = torch.stack([lengths, padded]).tolist() if len(lengths) else ([], [])
        if host_lengths and max(host_lengths) > window:
            raise ValueError(f"a window has {max(host_lengths)} points, more than {window}")
        sizes = sorted(set(host_padded) - {0}, reverse=True)
        if len(sizes) == 1 and host_lengths == host_padded:
            return cls(None, None, ((len(host_lengths), sizes[0], None),))
        slots, rows = [], torch.zeros(int(boundaries[-1]), dtype=torch.int64, device=boundaries.device)
        buckets, n_slots = [], 0
        for size in sizes:
            chosen = (padded == size).nonzero()  # (n, 1)
            place = torch.arange(size, device=boundaries.device)
            is_point = place < lengths[chosen]
            row = boundaries[chosen] + torch.where(is_point, place, 0)
            slot = torch.arange(n_slots, n_slots + row.numel(), device=boundaries.device).view_as(row)
            rows[row[is_point]] = slot[is_point]
            ragged = any(n != size for n, p in zip(host_lengths, host_padded, strict=True) if p == size)
            buckets.append((len(chosen), size, is_point[:, None, None] if ragged else None))
            slots.append(row.flatten())
            n_slots += row.numel()
        slot_rows = torch.cat(slots) if slots else rows
        return cls(Segments(slot_rows, len(rows)), Segments(rows, n_slots), tuple(buckets))


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor | Windows, window: int, scale: float
) -> Tensor:
    """Softmax attention of every row over the rows of its own window: softmax(scale q kᵀ) v.

    Args:
        q, k, v: float (Np, H, D).
        boundaries: int64 (W+1,) from 0 to Np, or the :class:`Windows` made of it; make the latter once for
            all blocks of a level.
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
    if not isinstance(boundaries, Windows):
        boundaries = Windows.from_boundaries(boundaries, window)
    n, heads, width = q.shape
    held = (
        sum(w * size for w, size, _ in boundaries.buckets)
        if boundaries.rows is None
        else len(boundaries.rows.index)
    )
    if held != n:
        raise ValueError(f"the windows hold {held} rows, q has {n}")
    if n == 0:
        return q + k + v  # empty, and differentiable in all three
    if boundaries.slots is not None:
        q, k, v = (take(x.flatten(1), boundaries.slots).view(-1, heads, width) for x in (q, k, v))
    parts, start = [], 0
    for n_windows, size, mask in boundaries.buckets:
        end = start + n_windows * size
        # (windows, heads, size, width)
        bucket = (x[start:end].unflatten(0, (n_windows, size)).transpose(1, 2) for x in (q, k, v))
        part = scaled_dot_product_attention(*bucket, attn_mask=mask, scale=scale)
        parts.append(part.transpose(1, 2).flatten(0, 1))
        start = end
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out if boundaries.rows is None else take(out.flatten(1), boundaries.rows).view(-1, heads, width)
