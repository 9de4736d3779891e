"""Kernel maps: which row a convolution reads through which tap of its kernel for which result.

They depend on coordinates only; one is made per resolution level and shared by the convolutions of the level.

Shape legend: N points, M coarse points, B events, K taps, P pairs (row that is read, row that is written).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from nufm.ops.neighbors import cell_keys, neighbor_pairs
from nufm.ops.pool import Segments, pool_cells
from nufm.ops.serialize import event_index

PAIRS_PER_GROUP = 2**20  # products of more pairs than this are not held at a time
T = TypeVar("T")


class Batch(NamedTuple):
    """Taps with equally many pairs, ``first, first + step, ...``: one batched matrix product."""

    first: int
    step: int
    taps: int
    pairs: int  # of each tap

    @property
    def slice(self) -> slice:
        return slice(self.first, self.first + (self.taps - 1) * self.step + 1, self.step)


class TapGroup(NamedTuple):
    """Taps whose products are held and summed together.

    Attributes:
        source: int64 (P',) rows that are read, batch by batch, tap by tap.
        tap: int64 (P',) tap of each pair.
        by_target: rows that are written.
        batches: lengths of the batches add up to P'.
    """

    source: Tensor
    tap: Tensor
    by_target: Segments
    batches: tuple[Batch, ...]


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Pair lists of a convolution.

    Attributes:
        source: int64 (P,) row that is read, grouped by tap, without the pairs of ``identity``.
        target: int64 (P,) row that is written.
        counts: number of pairs of each of the K taps (0 for ``identity``).
        n_source: number of rows that can be read.
        n_target: number of rows that are written.
        identity: the tap through which every row reads itself, or None.
        edges: of the kernel, whose taps are counted along its last axis first; None if not known.
    """

    source: Tensor
    target: Tensor
    counts: tuple[int, ...]
    n_source: int
    n_target: int
    identity: int | None = None
    edges: tuple[int, int, int] | None = None
    _derived: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def taps(self) -> int:
        return len(self.counts)

    @cached_property
    def transposed(self) -> KernelMap:
        """The map of the adjoint: what was read is written. Of a strided map: the way back up."""
        # No link back to this map: a cycle would keep the lists of every batch until garbage is collected.
        return KernelMap(
            self.target, self.source, self.counts, self.n_target, self.n_source, self.identity, self.edges
        )

    @cached_property
    def tap(self) -> Tensor:
        """int64 (P,) tap of each pair."""
        taps = torch.arange(self.taps, device=self.source.device)
        counts = torch.tensor(self.counts, device=self.source.device)
        return taps.repeat_interleave(counts, output_size=len(self.source))

    @cached_property
    def groups(self) -> tuple[TapGroup, ...]:
        """The taps in groups of about ``PAIRS_PER_GROUP`` pairs, so that products of all pairs are never held."""
        groups: list[TapGroup] = []
        batches: list[Batch] = []
        held = 0
        for batch in [*self._batches(), None]:
            if batches and (batch is None or held + batch.taps * batch.pairs > PAIRS_PER_GROUP):
                groups.append(self._group(tuple(batches)))
                batches, held = [], 0
            if batch is not None:
                batches.append(batch)
                held += batch.taps * batch.pairs
        return tuple(groups)

    def _batches(self) -> Iterator[Batch]:
        # Opposite taps of a submanifold map have the same pairs, once from either side. Two small products at once
        # keep two cores busy: twice as fast as one after the other.
        for tap in range((self.taps + 1) // 2):
            mirrored = self.taps - 1 - tap
            if tap < mirrored and self.counts[tap] == self.counts[mirrored] > 0:
                yield Batch(tap, mirrored - tap, 2, self.counts[tap])
                continue
            for single in dict.fromkeys((tap, mirrored)):
                if self.counts[single] > 0:
                    yield Batch(single, 1, 1, self.counts[single])

    def _group(self, batches: tuple[Batch, ...]) -> TapGroup:
        source, target = self.source.split(self.counts), self.target.split(self.counts)
        taps = [tap for batch in batches for tap in range(self.taps)[batch.slice]]
        counts = torch.tensor([self.counts[tap] for tap in taps], device=self.source.device)
        return TapGroup(
            source=torch.cat([source[tap] for tap in taps]),
            tap=torch.tensor(taps, device=self.source.device).repeat_interleave(counts),
            by_target=Segments(torch.cat([target[tap] for tap in taps]), self.n_target),
            batches=batches,
        )

    @cached_property
    def table(self) -> Tensor | None:
        """int32 (n_target, K) row that each result reads through each tap, -1 = none.

        None where a result reads several rows through one tap (points that share a cell), or for more than 2^31
        rows.
        """
        if max(self.n_source, self.n_target) > torch.iinfo(torch.int32).max:
            return None
        table = torch.full((self.n_target, self.taps), -1, dtype=torch.int32, device=self.source.device)
        if self.identity is not None:
            table[:, self.identity] = torch.arange(self.n_target, dtype=torch.int32, device=table.device)
        source = self.source.int()
        table[self.target, self.tap] = source
        return table if torch.equal(table[self.target, self.tap], source) else None

    def once(self, make: Callable[[KernelMap], T]) -> T:
        """``make(self)``, computed at the first call: lists that a backend derives and all its layers share."""
        if make not in self._derived:
            self._derived[make] = make(self)
        return self._derived[make]


def submanifold_map(grid: Tensor, offsets: Tensor, kernel_size: int = 3) -> KernelMap:
    """Every point reads the occupied cells around it.

    Args:
        grid: int64 (N, 3), >= 0.
        offsets: int64 (B+1,).
        kernel_size: odd edge k of the kernel; tap t looks at the cell
            ``grid + (t // k^2, t // k % k, t % k) - k // 2``. For points that share a cell see
            :func:`nufm.ops.neighbors.neighbor_map`.

    Raises:
        ValueError: as :func:`nufm.ops.neighbors.neighbor_pairs`.
    """
    source, target, counts = neighbor_pairs(grid, offsets, kernel_size)
    return KernelMap(source, target, counts, len(grid), len(grid), len(counts) // 2, (kernel_size,) * 3)


def kernel_map(neighbors: Tensor) -> KernelMap:
    """The map of a table of neighbours.

    Args:
        neighbors: int64 (N, K), -1 = none, the centre tap being the point itself
            (:func:`nufm.ops.neighbors.neighbor_map`).

    Raises:
        ValueError: not int64 (N, odd K), or a centre tap that is not the point itself.
    """
    if neighbors.dim() != 2 or neighbors.shape[1] % 2 == 0 or neighbors.dtype != torch.int64:
        raise ValueError(
            f"'neighbors' must be int64 (N, K) with odd K, found {tuple(neighbors.shape)} {neighbors.dtype}"
        )
    n, taps = neighbors.shape
    table = neighbors.t()
    if not torch.equal(table[taps // 2], torch.arange(n, device=table.device)):
        raise ValueError("the centre tap of 'neighbors' must be each point itself")
    used = table >= 0
    used[taps // 2] = False
    return KernelMap(
        table[used], used.nonzero()[:, 1], tuple(used.sum(1).tolist()), n, n, identity=taps // 2
    )


@dataclass(frozen=True, eq=False)
class Downsampling:
    """Coarse cells and the map that writes to them.

    Attributes:
        map: from the N points to the M coarse cells; ``map.transposed`` leads back up.
        grid: int64 (M, 3) coarse cells, sorted by (event, x, y, z).
        offsets: int64 (B+1,) from 0 to M.
    """

    map: KernelMap
    grid: Tensor
    offsets: Tensor


def strided_map(
    grid: Tensor, offsets: Tensor, kernel_size: int | Sequence[int] = 2, stride: int | Sequence[int] | None = None
) -> Downsampling:
    """Every coarse cell reads the points under the kernel; coarse cells are those with a point, ``grid // stride``.

    Kernel = stride is the patch convolution (12 x 12 x 10, say): every point is read once. Tap t = (i, j, l) of a
    coarse cell c looks at ``c * stride + (i, j, l) - (k - 1) // 2`` if the kernel k is larger than the stride, at
    ``c * stride + (i, j, l)`` else. All points of a cell are read, also those that share it.

    Args:
        grid: int64 (N, 3), >= 0.
        offsets: int64 (B+1,).
        kernel_size: edge of the kernel, or its three edges.
        stride: edge of a coarse cell in cells, or its three edges; None = kernel size.

    Raises:
        ValueError: sizes below 1, a kernel smaller than the stride, or as :func:`nufm.ops.neighbors.cell_keys`.
    """
    kernel = _edges("kernel_size", kernel_size)
    step = kernel if stride is None else _edges("stride", stride)
    if any(k < s for k, s in zip(kernel, step, strict=True)):
        raise ValueError(f"a kernel of {kernel} with stride {step} would leave points out; enlarge the kernel")
    device = grid.device
    pooling = pool_cells(torch.div(grid, grid.new_tensor(step), rounding_mode="floor"), offsets, stride=1)
    n, m = len(grid), len(pooling.grid)
    if kernel == step:
        place = grid - pooling.grid[pooling.inverse] * grid.new_tensor(step)
        tap = (place[:, 0] * kernel[1] + place[:, 1]) * kernel[2] + place[:, 2]
        taps = kernel[0] * kernel[1] * kernel[2]
        order = torch.argsort(tap, stable=True)
        counts = torch.bincount(tap, minlength=taps)
        return Downsampling(
            KernelMap(order, pooling.inverse[order], tuple(counts.tolist()), n, m, edges=kernel),
            pooling.grid,
            pooling.offsets,
        )

    # Coarse cells are found by their key; one empty cell lies behind every row, plane and event.
    keys, (stride_event, stride_x, stride_y) = cell_keys(pooling.grid, pooling.offsets, pad=1)
    event = event_index(offsets, n) * stride_event
    most = pooling.grid.amax(0) + 1 if m else grid.new_zeros(3)
    axes = []  # of each: (k, N) whether a coarse cell sees the point at a place of its kernel, and the key's part
    for axis, (k, s, stride_key) in enumerate(zip(kernel, step, (stride_x, stride_y, 1), strict=True)):
        # c * stride + place - low = x
        place = torch.arange(k, device=device)[:, None] - ((k - 1) // 2 if k > s else 0)
        shifted = grid[:, axis] - place
        coarse = torch.div(shifted, s, rounding_mode="floor")
        axes.append(((coarse * s == shifted) & (coarse >= 0) & (coarse < most[axis]), coarse * stride_key))
    sources, targets, counts = [], [], []
    for places in itertools.product(*(range(k) for k in kernel)):
        (x_fits, x_key), (y_fits, y_key), (z_fits, z_key) = (
            (fits[place], part[place]) for (fits, part), place in zip(axes, places, strict=True)
        )
        looked = (x_fits & y_fits & z_fits).nonzero()[:, 0]
        key = (event + x_key + y_key + z_key)[looked]
        place = torch.searchsorted(keys, key).clamp_(max=max(m - 1, 0))
        found = keys[place] == key
        sources.append(looked[found])
        targets.append(place[found])
        counts.append(len(sources[-1]))
    pairs = KernelMap(torch.cat(sources), torch.cat(targets), tuple(counts), n, m, edges=kernel)
    return Downsampling(pairs, pooling.grid, pooling.offsets)


def _edges(name: str, value: int | Sequence[int]) -> tuple[int, int, int]:
    edges = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(edges) != 3 or not all(isinstance(edge, int) and edge >= 1 for edge in edges):
        raise ValueError(f"{name} must be one or three integers >= 1, found {value}")
    return edges
