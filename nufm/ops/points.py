"""Who is near whom in space: the k nearest keys of each query, and the keys inside a ball.

The searches are exact for any distribution of points. They compare squared distances in double precision; see
:mod:`nufm.ops.cells` for what that means for ties on a lattice. Coordinates carry no gradient here.

Shape legend: N keys, M queries, B events, k neighbours, K = cap, P pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nufm.ops import dispatch
from nufm.ops.cells import Cells, check_pair, chunk_sizes, columns, square_distance
from nufm.ops.serialize import event_index

SAMPLE = 64  # times k: keys looked at to shrink a ball; its cells are some 30 times larger than the ball itself


def k_nearest(query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest keys of each query within the same event.

    Args:
        query: float32 or float64 (M, 3).
        query_offsets: int64 (B+1,).
        key: (N, 3) of the same dtype.
        key_offsets: int64 (B+1,), the same B.
        k: number of neighbours; a key at the place of the query (the query itself, where both are one) counts.

    Returns:
        ``index`` int64 (M, k), rows of ``key`` by rising (distance, row), so that the lowest row wins a tie; -1 after
        the last key of the event. ``distance`` (M, k) in the dtype of ``query``, Euclid; infinite where the index
        is -1.

    Raises:
        ValueError: k < 1, wrong shapes or dtypes, unequal numbers of events, or a coordinate that is not finite.
    """
    check_pair(query, query_offsets, key, key_offsets)
    if k < 1:
        raise ValueError(f"the number of neighbours k must be >= 1, found {k}")
    return dispatch.run("k_nearest", _k_nearest, query, query_offsets, key, key_offsets, k)


def _k_nearest(query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    index = torch.full((len(query), k), -1, dtype=torch.int64, device=query.device)
    distance = query.new_full((len(query), k), math.inf)
    if len(query) == 0 or len(key) == 0:
        return index, distance
    cells = Cells.build(key, key_offsets).first_copies(k)
    point, event = columns(query), event_index(query_offsets, len(query))
    code = cells.encode(point, event)
    # Neighbours in z-order one after the other: they find their keys in the same lines of memory.
    for rows in torch.argsort(code).split(chunk_sizes(query.device)[1]):
        asked, event_m = point[:, rows], event[rows]
        limit = _upper_bound(cells, asked, code[rows], event_m, k)
        limit, start, count = _shrink(cells, asked, event_m, limit, k)
        for part, rank, row, square in cells.pairs(asked, start, count, limit):
            found = torch.bincount(rank, minlength=len(part))
            column = torch.arange(len(rank), device=rank.device) - (found.cumsum(0) - found)[rank]
            width = max(int(found.max()), k)
            squares = square.new_full((len(part), width), math.inf)
            squares[rank, column] = square
            candidates = index.new_full((len(part), width), -1)
            candidates[rank, column] = row
            squares, sequence = squares.sort(dim=1, stable=True)  # candidates come in rising order of rows
            index[rows[part]] = candidates.gather(1, sequence[:, :k])
            distance[rows[part]] = squares[:, :k].sqrt().to(distance.dtype)
    return index, distance


def _upper_bound(cells: Cells, query: Tensor, code: Tensor, event: Tensor, k: int) -> Tensor:
    """float64 (M,): a squared distance within which each query has k keys (or all of its event).

    The keys around the query's place on the z-order curve are near it, mostly.
    """
    window = torch.arange(2 * k + 2, device=query.device)
    first = torch.searchsorted(cells.code, event << 3 * cells.depth)
    last = torch.searchsorted(cells.code, (event + 1) << 3 * cells.depth)
    n_part = max(1, chunk_sizes(query.device)[0] // len(window))
    limit = []
    for lo in range(0, len(code), n_part):
        part = slice(lo, lo + n_part)
        place = torch.searchsorted(cells.code, code[part]) - len(window) // 2
        place = torch.maximum(torch.minimum(place, last[part] - len(window)), first[part])[:, None] + window
        square = _square_distance_at(cells, query[:, part], place.clamp(max=len(cells.row) - 1))
        square = square.masked_fill_(place >= last[part][:, None], math.inf)
        limit.append(_kth_smallest(square, k))
    return torch.cat(limit)


def _shrink(cells: Cells, query: Tensor, event: Tensor, limit: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower the bounds of queries whose ball holds far more than k keys; also returns the runs of all.

    That happens where the curve jumps between the query and its neighbours, and far from everything. The k-th
    nearest of a sample of the keys in the ball is a bound as well; repeated until it no longer halves the work.
    """
    start, count = cells.runs(query, event, limit)
    n_sample = SAMPLE * k
    spots = (torch.arange(n_sample, device=query.device) + 0.5) / n_sample
    total = count.sum(1)
    heavy = (total > 4 * n_sample).nonzero()[:, 0]
    while len(heavy):
        for part in heavy.split(max(1, chunk_sizes(query.device)[0] // n_sample)):
            stop = count[part].cumsum(1)
            spot = (spots * stop[:, -1:]).long()
            run = torch.searchsorted(stop, spot, right=True)
            place = spot + (start[part] - (stop - count[part])).gather(1, run)
            square = _square_distance_at(cells, query[:, part], place)
            limit[part] = torch.minimum(limit[part], _kth_smallest(square, k))
        start[heavy], count[heavy] = cells.runs(query[:, heavy], event[heavy], limit[heavy])
        before, after = total[heavy], count[heavy].sum(1)
        total[heavy] = after
        heavy = heavy[(after > 4 * n_sample) & (2 * after < before)]
    return limit, start, count


def _kth_smallest(x: Tensor, k: int) -> Tensor:
    """(M,) of (M, W); ``kthvalue`` is refused on a GPU where deterministic algorithms are asked for."""
    return x.topk(k, dim=1, largest=False, sorted=False).values.amax(1)


def _square_distance_at(cells: Cells, query: Tensor, place: Tensor) -> Tensor:
    """float64 (M, W): squared distances of queries (3, M) from the sorted keys at ``place`` (M, W)."""
    keys = torch.stack([column.index_select(0, place.flatten()) for column in cells.point])
    return square_distance(keys.view(3, *place.shape), query[:, :, None])


def ball_query(
    query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, radius: float, cap: int
) -> tuple[Tensor, Tensor]:
    """Up to ``cap`` keys strictly closer than ``radius`` to each query within the same event.

    Of more than ``cap`` the first in packed order are taken, not the nearest, as the ball queries of PointNet++ (Qi
    et al., arXiv 1706.02413) and PyTorch3D do and PoLAr-MAE (arXiv 2502.02558) with them: a dense ball is then
    sampled along the order of the file.

    Args:
        query: float32 or float64 (M, 3).
        query_offsets: int64 (B+1,).
        key: (N, 3) of the same dtype.
        key_offsets: int64 (B+1,), the same B.
        radius: in the units of the coordinates. Squared distance < radius^2 counts, hence radius 0 finds nothing.
        cap: largest number of keys per query.

    Returns:
        ``index`` int64 (M, cap), rows of ``key`` in rising order, -1 after the last; ``count`` int64 (M,), how many
        keys there are inside the ball, also beyond the cap.

    Raises:
        ValueError: a negative radius, cap < 1, wrong shapes or dtypes, unequal numbers of events, or a coordinate
            that is not finite.
    """
    if cap < 1:
        raise ValueError(f"the cap of a ball query must be >= 1, found {cap}; ball_lists has no cap")
    _check_ball(query, query_offsets, key, key_offsets, radius)
    return dispatch.run("ball_query", _ball_query, query, query_offsets, key, key_offsets, radius, cap)


def _ball_query(
    query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, radius: float, cap: int
) -> tuple[Tensor, Tensor]:
    index = torch.full((len(query), cap), -1, dtype=torch.int64, device=query.device)
    count = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    for rows, found, rank, row in _balls(query, query_offsets, key, key_offsets, radius):
        count[rows] = found
        column = torch.arange(len(rank), device=rank.device) - (found.cumsum(0) - found)[rank]
        kept = (column < cap).nonzero()[:, 0]
        index[rows[rank[kept]], column[kept]] = row[kept]
    return index, count


def ball_lists(
    query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """All keys strictly closer than ``radius`` to each query within the same event, as one packed list.

    Args:
        query, query_offsets, key, key_offsets, radius: as for :func:`ball_query`.

    Returns:
        ``index`` int64 (P,), rows of ``key``, query by query and in rising order; ``starts`` int64 (M+1,) from 0 to
        P, the list of query i is ``index[starts[i]:starts[i + 1]]``.

    Raises:
        ValueError: as :func:`ball_query`.
    """
    _check_ball(query, query_offsets, key, key_offsets, radius)
    chunks = list(_balls(query, query_offsets, key, key_offsets, radius))
    starts = torch.zeros(len(query) + 1, dtype=torch.int64, device=query.device)
    for rows, found, _, _ in chunks:
        starts[rows + 1] = found
    starts = starts.cumsum(0)
    index = starts.new_empty(sum(len(row) for _, _, _, row in chunks))
    while chunks:  # each is freed once it is copied
        rows, found, rank, row = chunks.pop()
        shift = starts[rows] - (found.cumsum(0) - found)
        index[shift[rank] + torch.arange(len(row), device=row.device)] = row
    return index, starts


def _check_ball(query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, radius: float) -> None:
    check_pair(query, query_offsets, key, key_offsets)
    if not radius >= 0:
        raise ValueError(f"the radius of a ball must be >= 0, found {radius}")


def _balls(query: Tensor, query_offsets: Tensor, key: Tensor, key_offsets: Tensor, radius: float):
    """Yield (rows of queries (m,), keys found by each (m,), query rank of each pair (P,), key row of each (P,))."""
    if len(query) == 0 or len(key) == 0:
        return
    cells = Cells.build(key, key_offsets)
    point, event = columns(query), event_index(query_offsets, len(query))
    largest = math.nextafter(radius * radius, -1.0)  # strictly closer
    for rows in torch.argsort(cells.encode(point, event)).split(chunk_sizes(query.device)[1]):
        limit = point.new_full((len(rows),), largest)
        start, count = cells.runs(point[:, rows], event[rows], limit.clamp(min=0))
        for part, rank, row, _ in cells.pairs(point[:, rows], start, count, limit):
            yield rows[part], torch.bincount(rank, minlength=len(part)), rank, row
