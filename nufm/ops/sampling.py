"""Which points stand for an event: farthest-point sampling and centrality-based suppression.

Both give exactly what their sequential definitions give, for all events of a batch at once. Distances are compared
squared and in double precision, see :mod:`nufm.ops.cells`; no gradient flows.

Shape legend: N points, B events, S samples, P pairs, G blocks of W points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nufm.ops import dispatch
from nufm.ops.cells import Cells, check_points, columns, square_distance
from nufm.ops.points import ball_lists
from nufm.ops.serialize import event_index

BLOCK = 64  # points


def farthest_points(
    coord: Tensor,
    offsets: Tensor,
    count: int | Tensor | None = None,
    ratio: float | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Farthest-point sampling of each event (Eldar et al., IEEE Trans. Image Process. 6, 1305, 1997).

    The first sample is ``start``; each further one is the point, not yet taken, farthest from its nearest sample;
    the lowest row wins a tie. By this definition S samples of an event of N points cost S * N distances. Here the
    points lie in blocks along a space-filling curve, and a block is passed over while its box is farther from the
    new sample than all of its points are from their nearest ones (as in Han et al., "QuickFPS", IEEE TCAD, 2023):
    only the boxes are met S times.

    Args:
        coord: float32 or float64 (N, 3).
        offsets: int64 (B+1,).
        count: samples per event, one number or int64 (B,); an event with fewer points gives all of them.
        ratio: instead of ``count``, the share of each event's points, rounded up; 0..1.
        start: int64 (B,) packed row of the first sample of each event, by default its first row; the entry of an
            empty event is not read.

    Returns:
        ``rows`` int64 (S,), event by event in the order of sampling, none twice; ``offsets`` int64 (B+1,) of them.

    Raises:
        ValueError: both or neither of ``count`` and ``ratio``, or out of their ranges; a start outside of its event;
            wrong shapes or dtypes; a coordinate that is not finite.
    """
    check_points(coord, offsets, "coord")
    n_points = offsets.diff()
    if (count is None) == (ratio is None):
        raise ValueError(f"give either a count or a ratio of samples, found count={count} and ratio={ratio}")
    if ratio is not None:
        if not 0 <= ratio <= 1:
            raise ValueError(f"the ratio of samples must be in 0..1, found {ratio}")
        wanted = (n_points.double() * ratio).ceil().long()
    else:
        wanted = torch.as_tensor(count, device=offsets.device)
        if wanted.dtype != torch.int64 or wanted.shape not in ((), n_points.shape) or bool((wanted < 0).any()):
            raise ValueError(f"'count' must be an int or int64 ({len(n_points)},), >= 0, found {count}")
    if start is None:
        start = offsets[:-1]
    elif start.shape != n_points.shape or start.dtype != torch.int64 or start.device != offsets.device:
        raise ValueError(f"'start' must be int64 ({len(n_points)},) on {offsets.device}, found {start}")
    elif bool(((n_points > 0) & ((start < offsets[:-1]) | (start >= offsets[1:]))).any()):
        raise ValueError(f"'start' must be packed rows inside of their events, found {start} for offsets {offsets}")
    counts = torch.minimum(wanted.expand_as(n_points), n_points)
    return dispatch.run("farthest_points", _farthest_points, coord, offsets, counts, start)


def _farthest_points(coord: Tensor, offsets: Tensor, counts: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    device, n, n_events = coord.device, len(coord), len(counts)
    out_offsets = torch.cat([offsets.new_zeros(1), counts.cumsum(0)])
    rows = offsets.new_empty(int(out_offsets[-1]))
    if len(rows) == 0:
        return rows, out_offsets
    # Events with more samples come first, so that those still at work are a prefix at any time.
    counts, ranked = counts.sort(descending=True, stable=True)
    n_points = offsets.diff()[ranked]
    width = min(BLOCK, int(n_points.max()))
    n_blocks = (n_points + width - 1) // width
    last_block = n_blocks.cumsum(0)
    n_total = int(last_block[-1])
    event = torch.arange(n_events, device=device).repeat_interleave(n_blocks, output_size=n_total)  # of each block

    cells = Cells.build(coord, offsets)
    owner = torch.empty_like(ranked).scatter_(0, ranked, torch.arange(n_events, device=device))
    owner = owner[event_index(offsets, n)]  # of each sorted key: keys are sorted by event, as rows are
    first_slot = (last_block - n_blocks)[owner] * width - offsets[ranked][owner]
    slot = torch.arange(n, device=device) + first_slot
    point = cells.point.new_zeros(3, n_total * width)
    point[:, slot] = cells.point
    point = point.view(3, n_total, width)
    row = offsets.new_full((n_total * width,), n)
    row[slot] = cells.row
    row = row.view(n_total, width)
    slot = torch.empty_like(slot).scatter_(0, cells.row, slot)  # of each packed row
    is_point = row < n
    low = point.masked_fill(~is_point, math.inf).amin(2)
    high = point.masked_fill(~is_point, -math.inf).amax(2)
    # Squared distance to the nearest sample; -1 for what cannot be sampled (any more).
    nearest = torch.where(is_point, math.inf, -1.0).to(point.dtype)
    top, top_row = nearest.amax(1), row.amin(1)

    all_points, chosen = columns(coord), start[ranked]
    place = out_offsets[ranked]
    steps, blocks_of, working = counts.tolist(), [0, *last_block.tolist()], n_events
    for step in range(steps[0]):
        while steps[working - 1] <= step:
            working -= 1
        g = blocks_of[working]
        chosen = chosen[:working]
        rows[place[:working] + step] = chosen
        centre = all_points[:, chosen]
        at = centre[:, event[:g]]
        gap = torch.maximum(low[:, :g] - at, at - high[:, :g]).clamp_(min=0)
        touched = square_distance(gap, gap.new_zeros(3, 1)) < top[:g]
        taken = slot[chosen]
        nearest.view(-1)[taken] = -1
        touched[taken // width] = True
        touched = touched.nonzero()[:, 0]
        square = square_distance(point[:, touched], at[:, touched, None])
        square = torch.minimum(nearest[touched], square)
        best = square.amax(1)
        nearest[touched], top[touched] = square, best
        top_row[touched] = torch.where(square == best[:, None], row[touched], n).amin(1)
        best = top.new_full((working,), -1).scatter_reduce_(0, event[:g], top[:g], "amax")
        winner = torch.where(top[:g] == best[event[:g]], top_row[:g], n)
        chosen = chosen.new_full((working,), n).scatter_reduce_(0, event[:g], winner, "amin")
    return rows, out_offsets


def centrality_nms(
    coord: Tensor, offsets: Tensor, radius: float, overlap: float, cap: int | None = None
) -> tuple[Tensor, Tensor]:
    """Centrality-based non-maximum suppression: C-NMS of PoLAr-MAE (Young et al., arXiv 2502.02558).

    Picks centres of balls of ``radius`` that overlap little. The score of a point is the number of points, itself
    included, strictly closer than R = 2 * radius * overlap. Greedily, from the highest score down and with the lowest
    row first among equals, a point that is left becomes a centre and removes all points strictly closer than R.
    Centres are thus at least R apart, and every point is a centre or closer than R to one.

    Args:
        coord: float32 or float64 (N, 3), the candidates: all points of the events, or samples of them.
        offsets: int64 (B+1,).
        radius: of a token, in the units of the coordinates.
        overlap: factor f > 0 on the distance of two centres: 1 keeps balls apart, 0.5 lets a centre lie on the edge
            of another ball; 0.72 is published for 5 voxels.
        cap: None for the definition above. A number gives what the published code does with it: each point sees only
            the first ``cap`` points in packed order within R. Scores saturate there, and a centre removes no more
            than those it sees, so that centres may come closer than R in dense regions.

    Returns:
        ``rows`` int64 (S,) of the centres, event by event in the order of the greedy choice (the most central
        first, so that a cut keeps those); ``offsets`` int64 (B+1,) of them.

    Raises:
        ValueError: a radius, overlap or cap that is not positive, wrong shapes or dtypes, or a coordinate that is
            not finite.
    """
    check_points(coord, offsets, "coord")
    reach = 2 * radius * overlap
    if not (radius > 0 and overlap > 0 and math.isfinite(reach)):
        raise ValueError(f"radius and overlap must be positive and finite, found {radius} and {overlap}")
    if cap is not None and cap < 1:
        raise ValueError(f"the cap must be >= 1, or None for all neighbours, found {cap}")
    return dispatch.run("centrality_nms", _centrality_nms, coord, offsets, reach, cap)


def _centrality_nms(coord: Tensor, offsets: Tensor, reach: float, cap: int | None) -> tuple[Tensor, Tensor]:
    n = len(coord)
    seen, starts = ball_lists(coord, offsets, coord, offsets, reach)
    score = starts.diff()
    source = torch.arange(n, device=coord.device).repeat_interleave(score, output_size=len(seen))
    if cap is not None:
        is_first = torch.arange(len(seen), device=coord.device) - starts[source] < cap
        seen, source, score = seen[is_first], source[is_first], score.clamp(max=cap)
    event = event_index(offsets, n)
    order = torch.argsort(event * (n + 1) + n - score, stable=True)
    turn = torch.empty_like(order).scatter_(0, order, torch.arange(n, device=coord.device))
    # A point can only be removed by those whose turn comes earlier: what is left of the lists has no cycles.
    is_later = turn[seen] > turn[source]
    seen, score = seen[is_later], torch.bincount(source[is_later], minlength=n)
    del source, is_later
    starts = score.cumsum(0) - score

    def seen_by(points: Tensor) -> Tensor:
        length = score[points]
        shift = (starts[points] - (length.cumsum(0) - length)).repeat_interleave(length)
        return seen[shift + torch.arange(len(shift), device=shift.device)]

    # Rounds: all points whose earlier neighbours are removed become centres at once, which is the order of the
    # sequential choice wherever it matters. Each list is read once, when its point is decided.
    is_open = torch.ones(n, dtype=torch.bool, device=coord.device)
    is_centre = torch.zeros_like(is_open)
    waiting = torch.bincount(seen, minlength=n)  # for so many earlier neighbours
    ready = (waiting == 0).nonzero()[:, 0]
    while len(ready):
        is_centre[ready], is_open[ready] = True, False
        removed = seen_by(ready)
        removed = removed[is_open[removed]].unique()
        is_open[removed] = False
        released = seen_by(removed)
        waiting.scatter_add_(0, released, torch.full_like(released, -1))
        ready = released[is_open[released] & (waiting[released] == 0)].unique()
    rows = order[is_centre[order]]
    counts = torch.bincount(event[rows], minlength=len(offsets) - 1)
    return rows, torch.cat([offsets.new_zeros(1), counts.cumsum(0)])
