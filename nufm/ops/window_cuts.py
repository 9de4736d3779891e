"""Where queries and keys are cut into windows, and what batched attention makes of it.

Shape legend: W windows, P places of queries, R places of keys, S pairs of a query and a key of the same window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

STEP = 32  # windows are computed together if their lengths agree after rounding up to a multiple of this


class Bucket(NamedTuple):
    """Windows of about one size, computed together: ``len(members)`` times ``queries`` x ``keys`` slots."""

    members: Tensor  # int64, the windows
    queries: int
    keys: int
    mask: Tensor | None  # bool (windows, 1, 1, keys), False for slots that only pad; None if there are none


@dataclass(frozen=True, eq=False)
class Buckets:
    """Windows that have queries and keys, padded only to the longest window of about their size.

    Attributes:
        parts: their slots lie end to end, bucket by bucket, window by window.
        queries: int64, the place in each query slot, the window's first place in slots that only pad; None if the
            slots are the places.
        keys: int64, the place in each key slot, likewise.
        slot_of_query: int64 (P,) the slot of each query place, 0 where it has none; None if ``queries`` is.
        pads: int64, query slots that only pad; None if there are none.
        lost: int64, query places without a slot: their windows have no keys. None if there are none.
    """

    parts: tuple[Bucket, ...]
    queries: Tensor | None
    keys: Tensor | None
    slot_of_query: Tensor | None
    pads: Tensor | None
    lost: Tensor | None


@dataclass(frozen=True, eq=False)
class Cuts:
    """Where queries and keys are cut into windows, and what follows from that alone.

    Attributes:
        queries: int64 (W+1,) from 0 to P.
        keys: int64 (W+1,) from 0 to R.
        tables: what backends make of them for themselves, by the name they give it.
    """

    queries: Tensor
    keys: Tensor
    tables: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def lengths(self) -> Tensor:
        """int64 (2, W): queries and keys of each window."""
        return torch.stack([self.queries.diff(), self.keys.diff()])

    @cached_property
    def host_lengths(self) -> Tensor:
        """``lengths`` on the host: the one copy for all that decides shapes."""
        return self.lengths.cpu()

    @cached_property
    def n_places(self) -> tuple[int, int]:
        """P and R."""
        return tuple(self.host_lengths.sum(1).tolist())

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Most queries and most keys in a window."""
        return tuple(self.host_lengths.amax(1).tolist()) if self.host_lengths.numel() else (0, 0)

    @cached_property
    def pair_offsets(self) -> Tensor:
        """int64 (W+1,): where the query-key pairs of each window begin, the last is their number S."""
        return torch.cat([self.queries.new_zeros(1), self.lengths.prod(0).cumsum(0)])

    @cached_property
    def n_pairs(self) -> int:
        return int(self.host_lengths.prod(0).sum())

    @cached_property
    def buckets(self) -> Buckets:
        lengths, device = self.host_lengths.tolist(), self.queries.device
        groups: dict[tuple[int, int], list[int]] = {}
        for w, (n_queries, n_keys) in enumerate(zip(*lengths, strict=True)):
            if n_queries and n_keys:
                groups.setdefault((_rounded(n_queries), _rounded(n_keys)), []).append(w)
        ordered = [groups[shape] for shape in sorted(groups)]
        members = [w for group in ordered for w in group]
        used = set(members)
        parts, places, pads, padded, n_slots = [], ([], []), [], [False, False], 0
        for group in ordered:
            chosen = torch.tensor(group, device=device)
            longest, masks = [], []
            for side, boundaries in enumerate((self.queries, self.keys)):
                sizes = {lengths[side][w] for w in group}
                longest.append(max(sizes))
                place = torch.arange(longest[side], device=device)
                begin = boundaries[chosen][:, None]
                if len(sizes) == 1:
                    masks.append(None)
                else:
                    padded[side] = True
                    masks.append(place < self.lengths[side, chosen][:, None])
                    place = torch.where(masks[side], place, 0)
                places[side].append((begin + place).flatten())
            if masks[0] is not None:
                pads.append(n_slots + (~masks[0]).flatten().nonzero().flatten())
            n_slots += len(group) * longest[0]
            parts.append(Bucket(chosen, *longest, None if masks[1] is None else masks[1][:, None, None]))

        in_order = members == sorted(members)
        dropped = [sum(n for w, n in enumerate(sizes) if n and w not in used) for sizes in lengths]
        are_places = [in_order and not padded[side] and not dropped[side] for side in (0, 1)]
        queries, keys = (None if are_places[side] else torch.cat(places[side]) for side in (0, 1))
        pads = torch.cat(pads) if pads else None
        slot_of_query = lost = None
        if queries is not None:
            slots, holds = torch.arange(n_slots, device=device), queries
            if pads is not None:
                real = torch.ones(n_slots, dtype=torch.bool, device=device).index_fill_(0, pads, False)
                slots, holds = slots[real], queries[real]
            slot_of_query = torch.zeros(sum(lengths[0]), dtype=torch.int64, device=device)
            slot_of_query[holds] = slots
            if dropped[0]:
                lost = (self.lengths[1] == 0).repeat_interleave(self.lengths[0]).nonzero().flatten()
        return Buckets(tuple(parts), queries, keys, slot_of_query, pads, lost)


def _rounded(n: int) -> int:
    """``n`` rounded up to a multiple of 32, or if that is more of an eighth of the power of two below.

    At most 1/8 of the slots of long windows only pad, and the number of buckets grows with the logarithm of the
    lengths.
    """
    step = max(STEP, 1 << max(n.bit_length() - 4, 0))
    return -(-n // step) * step
