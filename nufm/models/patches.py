"""Patches of a lattice: hits -> tokens, and the transformer that works within a module or a window.

A token exists where a patch has a hit. As patches do not overlap, a strided convolution over the lattice is a sum over
the hits of each patch, W[place in the patch] · charge: nothing dense is ever made.

The stack is the "intra-module" part of the FASERCal model (Alonso-Monsalve et al., arXiv 2604.07037; talk of F. Cufino,
NPML 2026; public code saulam/faserDL): tokens of a module see each other and a few summary tokens (CLS), and no other
module. For other detectors a module is a window of patches.

Shape legend: N hits, T patches with hits (tokens), K modules or windows with tokens ("groups"), B events, P voxels of a
patch, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nufm.data.streams import HitBatch, StreamBatch
from nufm.models.layers import LayerNorm
from nufm.models.stream_blocks import EPSILON, Block, gathered, sincos3d
from nufm.ops.attention import Windows

Positions = Literal["learned", "sincos"]
GroupCode = Literal["learned", "sincos", "source"]


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches of a stream that have hits, event after event, group after group, by place in the group.

    Attributes:
        event: int64 (T,) event of each patch.
        module: int64 (T,) module.
        cell: int64 (T, 3) the patch in the module's grid of patches.
        group: int64 (T,) number of its module or window in the detector.
        place: int64 (T,) number of the patch within its group.
        offsets: int64 (B+1,) patches of each event.
        hit_rows: int64 (N,) rows of the stream's hits, patch after patch, within a patch by voxel.
        hit_patch: int64 (N,) patch of each of them.
        slot: int64 (N,) voxel of each within its patch, 0..P-1, last axis fastest.
    """

    event: Tensor
    module: Tensor
    cell: Tensor
    group: Tensor
    place: Tensor
    offsets: Tensor
    hit_rows: Tensor
    hit_patch: Tensor
    slot: Tensor

    def __len__(self) -> int:
        return len(self.event)

    @property
    def n_events(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def hit_offsets(self) -> Tensor:
        """int64 (T+1,) hits of each patch."""
        counts = self.hit_patch.new_zeros(len(self)).scatter_add_(0, self.hit_patch, torch.ones_like(self.hit_patch))
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    @cached_property
    def occupied(self) -> tuple[Tensor, Tensor, Tensor]:
        """Groups with patches: int64 (T,) which of them a patch is in, (K,) event, (K,) number of the group."""
        if len(self) == 0:
            return self.event, self.event, self.group
        change = (self.event.diff() != 0) | (self.group.diff() != 0)
        first = torch.cat([change.new_ones(1), change])
        return first.cumsum(0) - 1, self.event[first], self.group[first]

    def select(self, keep: Tensor) -> Patches:
        """The patches where ``keep`` bool (T,) is true, with their hits."""
        number = keep.cumsum(0) - 1
        hits = keep[self.hit_patch]
        counts = self.offsets.new_zeros(self.n_events).scatter_add_(0, self.event, keep.long())
        return replace(
            self,
            event=self.event[keep],
            module=self.module[keep],
            cell=self.cell[keep],
            group=self.group[keep],
            place=self.place[keep],
            offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            hit_rows=self.hit_rows[hits],
            hit_patch=number[self.hit_patch[hits]],
            slot=self.slot[hits],
        )


class StackOutput(NamedTuple):
    """Tokens (T, C) of a stack with their events int64 (T,), and summaries (S, C), the CLS tokens, with theirs (S,)."""

    tokens: Tensor
    token_event: Tensor
    summaries: Tensor
    summary_event: Tensor


class PatchEmbedding(nn.Module):
    """Charges of the hits of a patch -> (T, C): a strided convolution without a lattice.

    Args:
        patch: voxels of a patch per axis.
        channels: C.
        stage: None: one step, the sum of W[place in the patch] · charge over its hits, and a bias. Three edges: two
            steps, first over sub-cells of these edges, to 96 channels without a bias, a norm and GELU where a sub-cell
            has hits, then over the sub-cells of the patch (the public code's form of the 12 × 12 × 10 patches).

    Raises:
        ValueError: edges that do not divide the patch.
    """

    def __init__(self, patch: Sequence[int], channels: int, stage: Sequence[int] | None = None) -> None:
        super().__init__()
        self.patch = tuple(patch)
        self.stage = None if stage is None else tuple(stage)
        self.bias = nn.Parameter(torch.zeros(channels))
        if self.stage is None:
            self.weight = nn.Parameter(torch.empty(math.prod(self.patch), channels))
            nn.init.xavier_uniform_(self.weight)
            return
        if len(self.stage) != 3 or any(s < 1 or p % s for p, s in zip(self.patch, self.stage, strict=True)):
            raise ValueError(f"stage is {list(self.stage)}, expected edges that divide the patch {list(self.patch)}")
        inner = 96
        self.fine = nn.Parameter(torch.empty(math.prod(self.stage), inner))
        self.norm = LayerNorm(inner, eps=EPSILON)
        self.coarse = nn.Parameter(torch.empty(math.prod(self.patch) // math.prod(self.stage), inner, channels))
        nn.init.xavier_uniform_(self.fine)
        nn.init.xavier_uniform_(self.coarse.data.view(-1, channels))

    def forward(self, charge: Tensor, patches: Patches) -> Tensor:
        """(N,) charges in the order of ``patches.hit_rows``."""
        with torch.autocast(charge.device.type, enabled=False):  # sums of hundreds of charges
            charge = charge.to(self.bias.dtype)
            if self.stage is None:
                return weighted_sums(self.weight, patches.slot, charge, patches.hit_offsets) + self.bias
            return self._two_stages(charge, patches)

    def _two_stages(self, charge: Tensor, patches: Patches) -> Tensor:
        voxel = unravel(patches.slot, self.patch)
        edges = torch.tensor(self.stage, device=voxel.device)
        cells = [p // s for p, s in zip(self.patch, self.stage, strict=True)]
        cell = ravel(voxel // edges, cells)
        found, of_hit = torch.unique(patches.hit_patch * len(self.coarse) + cell, return_inverse=True)
        order = torch.argsort(of_hit, stable=True)
        counts = torch.bincount(of_hit, minlength=len(found))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        inside = ravel(voxel % edges, self.stage)
        fine = F.gelu(self.norm(weighted_sums(self.fine, inside[order], charge[order], offsets)))
        # Sub-cells of the same place in their patches share a matrix: one product for each place.
        place = found % len(self.coarse)
        by_place = torch.argsort(place, stable=True)
        counts = torch.bincount(place, minlength=len(self.coarse)).tolist()
        rows = fine[by_place].split(counts)
        made = torch.cat([x @ w for x, w in zip(rows, self.coarse.unbind(0), strict=True)])
        patch = (found // len(self.coarse))[by_place]
        return self.bias + made.new_zeros(len(patches), made.shape[1]).index_add(0, patch, made)


def weighted_sums(weight: Tensor, index: Tensor, factor: Tensor, offsets: Tensor) -> Tensor:
    """(T, C): the sum of weight[index] · factor over rows offsets[t]:offsets[t+1]; 0 for none."""
    if len(index) == 0:
        return weight[:0].sum() + weight.new_zeros(len(offsets) - 1, weight.shape[1])
    return F.embedding_bag(index, weight, offsets, mode="sum", per_sample_weights=factor, include_last_offset=True)


def ravel(index: Tensor, shape: Sequence[int]) -> Tensor:
    """Number of the cell (…, 3) in a lattice of ``shape``, last axis fastest."""
    return (index[..., 0] * shape[1] + index[..., 1]) * shape[2] + index[..., 2]


def unravel(number: Tensor, shape: Sequence[int]) -> Tensor:
    """The cell (…, 3) of a number."""
    rest = number // shape[2]
    return torch.stack([rest // shape[1], rest % shape[1], number % shape[2]], dim=-1)


class PatchStack(nn.Module):
    """Patch tokens of one stream, and blocks within each module or window.

    Args:
        stream: name of the stream of voxels.
        lattice: voxels of a module per axis.
        patch: voxels of a patch per axis; they divide the lattice.
        modules: of the stream.
        window: patches of a window per axis, where a module is cut into windows; None: a module is one.
        channels, depth, heads, mlp_ratio: of the blocks.
        cls_tokens: summaries of a group at most. One stands for up to 1/cls_tokens of the group's patches: a group of v
            patches has ceil(v · cls_tokens / patches of a group) of them.
        positions: of a patch within its group: ``learned`` (talk) or frozen sines and cosines (``sincos``, public
            code).
        group_code: what tells the groups apart: ``learned`` vectors (modules) or ``sincos`` of the window's place,
            added to tokens and summaries behind the blocks; ``source``: one learned vector for the whole stream, added
            to tokens before the blocks and to summaries behind them.
        stage: edges of the sub-cells of a two-step embedding, None for one step: see :class:`PatchEmbedding`.

    Raises:
        ValueError: patches that do not divide the lattice, windows that do not divide the grid of patches.
    """

    def __init__(
        self,
        stream: str,
        lattice: Sequence[int],
        patch: Sequence[int],
        modules: int = 1,
        window: Sequence[int] | None = None,
        channels: int = 384,
        depth: int = 4,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        cls_tokens: int = 2,
        positions: Positions = "learned",
        group_code: GroupCode = "learned",
        stage: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if len(lattice) != 3 or len(patch) != 3 or any(p < 1 or n % p for n, p in zip(lattice, patch, strict=True)):
            raise ValueError(f"patch {list(patch)} does not divide the lattice {list(lattice)} of '{stream}'")
        grid = tuple(n // p for n, p in zip(lattice, patch, strict=True))
        window = grid if window is None else tuple(window)
        if len(window) != 3 or any(w < 1 or n % w for n, w in zip(grid, window, strict=True)):
            raise ValueError(f"window {list(window)} does not divide the {list(grid)} patches of '{stream}'")
        for name, value, choices in (
            ("positions", positions, ("learned", "sincos")),
            ("group_code", group_code, ("learned", "sincos", "source")),
        ):
            if value not in choices:
                raise ValueError(f"{name} is '{value}', expected one of {', '.join(choices)}")
        if not 1 <= cls_tokens <= math.prod(window):
            raise ValueError(f"cls_tokens is {cls_tokens}, expected 1 … {math.prod(window)} (patches of a group)")
        self.arguments: dict[str, Any] = {
            "stream": stream,
            "lattice": list(lattice),
            "patch": list(patch),
            "modules": modules,
            "window": list(window),
            "channels": channels,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "cls_tokens": cls_tokens,
            "positions": positions,
            "group_code": group_code,
            "stage": None if stage is None else list(stage),
        }
        self.stream, self.lattice, self.patch, self.modules = stream, tuple(lattice), tuple(patch), modules
        self.grid, self.window, self.channels = grid, window, channels
        self.windows_per_module = tuple(n // w for n, w in zip(grid, window, strict=True))
        self.n_groups = modules * math.prod(self.windows_per_module)
        self.positions, self.group_code, self.n_cls = positions, group_code, cls_tokens
        self.embedding = PatchEmbedding(patch, channels, stage)
        # Learned vectors are called tokens: weight decay spares them by that name.
        self.cls_token = _vectors(cls_tokens, channels)
        self.place_token = self.group_token = None
        if positions == "learned":
            self.place_token = _vectors(math.prod(window), channels)
        else:
            self.register_buffer("place_code", sincos3d(window, channels), persistent=False)
        if group_code != "sincos":
            self.group_token = _vectors(1 if group_code == "source" else self.n_groups, channels)
        else:
            code = sincos3d((self.windows_per_module[0] * modules, *self.windows_per_module[1:]), channels)
            self.register_buffer("group_place_code", code, persistent=False)
        self.blocks = nn.ModuleList(Block(channels, heads, mlp_ratio) for _ in range(depth))

    @property
    def patch_size(self) -> int:
        """P, voxels of a patch."""
        return math.prod(self.patch)

    @property
    def group_size(self) -> int:
        """Patches of a group."""
        return math.prod(self.window)

    def patches(self, batch: StreamBatch) -> Patches:
        """The patches of a batch that have hits.

        Raises:
            ValueError: the batch has no such stream, or a hit beyond the lattice.
        """
        if self.stream not in batch.voxels:
            raise ValueError(
                f"{batch.names[:1]} …: the network reads the stream '{self.stream}', events of '{batch.detector}' have "
                f"{', '.join(batch.voxels) or 'no voxels'}"
            )
        return self.patches_of(batch.voxels[self.stream], batch.names)

    @torch.no_grad()
    def patches_of(self, hits: HitBatch, names: Sequence[str] = ()) -> Patches:
        """The patches of hits; ``names`` of the events are for messages."""
        device = hits.index.device
        limit = torch.tensor([self.modules, *self.lattice], device=device)
        at = torch.cat([hits.module[:, None], hits.index], dim=1)
        outside = ((at < 0) | (at >= limit)).any(1)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            where = names[int(hits.event[row])] if names else f"event {int(hits.event[row])}"
            raise ValueError(
                f"{where}: stream '{self.stream}', hit {row} lies in module {int(at[row, 0])}, voxel "
                f"{at[row, 1:].tolist()}; the network was built for {self.modules} modules of "
                f"{list(self.lattice)} voxels"
            )
        edges, window = torch.tensor(self.patch, device=device), torch.tensor(self.window, device=device)
        cell = hits.index // edges
        group = hits.module * math.prod(self.windows_per_module) + ravel(cell // window, self.windows_per_module)
        place = ravel(cell % window, self.window)
        key = (hits.event * self.n_groups + group) * self.group_size + place
        slot = ravel(hits.index % edges, self.patch)
        rows = torch.argsort(key * self.patch_size + slot, stable=True)
        found, of_hit = torch.unique_consecutive(key[rows], return_inverse=True)
        place, group = found % self.group_size, found // self.group_size % self.n_groups
        event = found // (self.group_size * self.n_groups)
        module, of_module = group // math.prod(self.windows_per_module), group % math.prod(self.windows_per_module)
        counts = hits.offsets.new_zeros(hits.n_events).scatter_add_(0, event, torch.ones_like(event))
        return Patches(
            event=event,
            module=module,
            cell=unravel(of_module, self.windows_per_module) * window + unravel(place, self.window),
            group=group,
            place=place,
            offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            hit_rows=rows,
            hit_patch=of_hit,
            slot=slot[rows],
        )

    def summaries_of(self, patches: Patches) -> Tensor:
        """int64 (K,) how many summaries each group with patches has."""
        index, event, _ = patches.occupied
        counts = event.new_zeros(len(event)).scatter_add_(0, index, torch.ones_like(index))
        return (-(-counts * self.n_cls // self.group_size)).clamp(max=self.n_cls)

    def forward(self, charge: Tensor, patches: Patches, n_summaries: Tensor | None = None) -> StackOutput:
        """Tokens and summaries of patches that see their own group only.

        Args:
            charge: float (N,) of all hits of the stream, in the order of the batch.
            patches: those that are there.
            n_summaries: int64 (K,) summaries of each group with patches; None: as many as the patches ask for.
        """
        index, event, group = patches.occupied
        x = self.embedding(charge[patches.hit_rows], patches)
        x = x + (self.place_code if self.place_token is None else self.place_token.weight)[patches.place]
        if self.group_code == "source":
            x = x + self.group_token.weight
        n_summaries = self.summaries_of(patches) if n_summaries is None else n_summaries
        of_summary = torch.arange(len(event), device=event.device).repeat_interleave(n_summaries)
        number = torch.arange(len(of_summary), device=event.device)
        number = number - (n_summaries.cumsum(0) - n_summaries)[of_summary]
        rows, offsets, place = gathered([self.cls_token(number).to(x.dtype), x], [of_summary, index], len(event))
        windows = Windows.of_boundaries(offsets)
        for block in self.blocks:
            rows = block(rows, windows)
        rows = rows[place]
        summaries, tokens = rows[: len(number)], rows[len(number) :]
        if self.group_code == "source":
            summaries = summaries + self.group_token.weight
        else:
            code = self.group_place_code if self.group_token is None else self.group_token.weight
            summaries, tokens = summaries + code[group[of_summary]], tokens + code[patches.group]
        return StackOutput(tokens, patches.event, summaries, event[of_summary])


def _vectors(n: int, channels: int) -> nn.Embedding:
    """n learned vectors, normal of width 0.02."""
    table = nn.Embedding(n, channels)
    nn.init.normal_(table.weight, std=0.02)
    return table
