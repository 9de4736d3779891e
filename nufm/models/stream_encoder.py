"""Encoder of events of several sub-detectors: sparse ViT and Perceiver-IO (the FASERCal model).

Alonso-Monsalve et al., "Towards foundation-style models for energy-frontier heterogeneous neutrino detectors via
self-supervised pre-training", arXiv 2604.07037; sizes and details from the talk of F. Cufino (NPML 2026) and, where
that is silent, the public code saulam/faserDL.

    voxel calorimeter -> patches -> blocks within each module  -> tokens ┐
                                                               -> summaries ── latents
    second calorimeter -> patches -> blocks                    -> tokens ┤        ↑ cross attention, self attention
                                                               -> summaries ──    │ (latent_depth times)
    matrix of energies -> one token                                      ┼────────┘
    tracks -> attention -> one token                                     ┘

Latents begin as the summaries, one or two for each module with hits; so an event of one module costs a tenth of one of
ten. A stream that is missing adds nothing. An event without a hit in any calorimeter has no latents; its features are
0.

Tokens are packed: nothing is padded, and a row of attention without keys is 0, not NaN. An event's features do not
depend on its batch mates, nor on the order of its hits or tracks.

Shape legend: B events, T tokens, L latents, C channels, F features of a track.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nufm.data.streams import MatrixBatch, StreamBatch, TrackBatch
from nufm.models.layers import LayerNorm
from nufm.models.patches import Patches, PatchStack
from nufm.models.stream_blocks import EPSILON, Block, gathered, init_xavier
from nufm.ops.attention import Windows
from nufm.ops.pool import segment_reduce


class Latents(NamedTuple):
    """Latents of a batch: float (L, C) and int64 (B+1,) offsets of the events."""

    feat: Tensor
    offsets: Tensor

    @property
    def event(self) -> Tensor:
        """int64 (L,) event of each latent."""
        number = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return number.repeat_interleave(self.offsets.diff(), output_size=len(self.feat))


class MatrixToken(nn.Module):
    """One token of a dense matrix of energies: a linear map of its ``cells``, and a vector for the source.

    Args:
        stream: name of the stream.
        cells: of the matrix.
        channels: C.
    """

    def __init__(self, stream: str, cells: int = 25, channels: int = 384) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {"stream": stream, "cells": cells, "channels": channels}
        self.stream, self.channels = stream, channels
        self.linear = nn.Linear(cells, channels)
        self.source_token = nn.Embedding(1, channels)
        init_xavier(self.linear)
        nn.init.normal_(self.source_token.weight, std=0.02)

    def forward(self, values: Tensor) -> Tensor:
        """(n, cells) to (n, C)."""
        return self.linear(values.to(self.linear.weight.dtype)) + self.source_token.weight


class TrackToken(nn.Module):
    """One token of all tracks of an event: a query made of their number looks at them; without tracks it stands for
    itself.

    Args:
        stream: name of the stream.
        features: F.
        channels, heads, mlp_ratio: of the block that looks.
    """

    def __init__(
        self, stream: str, features: int = 5, channels: int = 384, heads: int = 12, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            **{"stream": stream, "features": features, "channels": channels, "heads": heads, "mlp_ratio": mlp_ratio}
        }
        self.stream, self.channels, self.features = stream, channels, features
        self.track, self.count = nn.Linear(features, channels), nn.Linear(1, channels)
        self.block = Block(channels, heads, mlp_ratio, cross=True)
        self.presence_token = nn.Embedding(2, channels)  # no track, some
        self.source_token = nn.Embedding(1, channels)
        for module in (self.track, self.count):
            init_xavier(module)
        for module in (self.presence_token, self.source_token):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, feat: Tensor, offsets: Tensor) -> Tensor:
        """(T, F) tracks of n events to (n, C)."""
        counts = offsets.diff()
        some = counts > 0
        query = self.count(counts[:, None].to(self.count.weight.dtype))
        seen = self.block(
            query,
            Windows.of_boundaries(torch.arange(len(query) + 1, device=offsets.device), offsets),
            self.track(feat.to(self.track.weight.dtype)),
        )
        token = torch.where(some[:, None], seen, query.to(seen.dtype))
        return token + self.presence_token(some.long()) + self.source_token.weight


class StreamEncoder(nn.Module):
    """Encoder: StreamBatch -> latents.

    Args:
        calorimeter: the voxels, module by module.
        tail: a second calorimeter behind it, as one module; None if there is none.
        matrix: a dense matrix of energies; None if there is none.
        tracks: fitted tracks; None if there are none.
        latent_depth: times that the latents look at all tokens, and then at each other.
        heads, mlp_ratio: of these blocks.
        drop_path: probability that a row loses a branch in the last block, rising linearly from 0 over the stacks (side
            by side) and the latent blocks; cross attention has half of it, the first none.
        summaries: what decides how many summaries a group has while patches are hidden: the ``visible`` patches, or all
            of them (``as_published``, which tells how full a hidden part is).

    Raises:
        ValueError: parts of different widths, or an unknown option.
    """

    inputs = "streams"

    def __init__(
        self,
        calorimeter: PatchStack,
        tail: PatchStack | None = None,
        matrix: MatrixToken | None = None,
        tracks: TrackToken | None = None,
        latent_depth: int = 4,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        summaries: Literal["visible", "as_published"] = "visible",
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "calorimeter": calorimeter,
            "tail": tail,
            "matrix": matrix,
            "tracks": tracks,
            "latent_depth": latent_depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "drop_path": drop_path,
            "summaries": summaries,
        }
        channels = calorimeter.channels
        for name, part in (("tail", tail), ("matrix", matrix), ("tracks", tracks)):
            if part is not None and part.channels != channels:
                raise ValueError(f"{name} has {part.channels} channels, the calorimeter {channels}; make them equal")
        if summaries not in ("visible", "as_published"):
            raise ValueError(f"summaries is '{summaries}', expected 'visible' or 'as_published'")
        if latent_depth < 1:
            raise ValueError(f"latent_depth is {latent_depth}, expected at least 1")
        self.calorimeter, self.tail, self.matrix, self.tracks = calorimeter, tail, matrix, tracks
        self.channels, self.gate = channels, summaries
        self.token_norm = LayerNorm(channels, eps=EPSILON)
        self.looks = nn.ModuleList(Block(channels, heads, mlp_ratio, cross=True) for _ in range(latent_depth))
        self.blocks = nn.ModuleList(Block(channels, heads, mlp_ratio) for _ in range(latent_depth))
        self.norm = LayerNorm(channels, eps=EPSILON)
        self._set_drop_path(drop_path)

    def _set_drop_path(self, rate: float) -> None:
        deepest = max(len(stack.blocks) for stack in self.stacks)
        rates = torch.linspace(0, rate, deepest + 2 * len(self.blocks), device="cpu").tolist()
        for stack in self.stacks:
            for block, share in zip(stack.blocks, rates, strict=False):
                block.drop_path = share
        for i, (look, block) in enumerate(zip(self.looks, self.blocks, strict=True)):
            look.drop_path = 0.5 * rates[deepest + 2 * i] if i else 0.0
            block.drop_path = rates[deepest + 2 * i + 1]
        if self.tracks is not None:
            self.tracks.block.drop_path = 0.5 * rates[deepest // 2]

    @property
    def stacks(self) -> tuple[PatchStack, ...]:
        """The calorimeters."""
        return (self.calorimeter,) if self.tail is None else (self.calorimeter, self.tail)

    def patches(self, batch: StreamBatch) -> dict[str, Patches]:
        """The patches with hits of each calorimeter."""
        return {stack.stream: stack.patches(batch) for stack in self.stacks}

    def forward(self, batch: StreamBatch) -> Latents:
        """Latents of whole events."""
        return self.encode(batch, self.patches(batch))

    def encode(
        self,
        batch: StreamBatch,
        patches: Mapping[str, Patches],
        keep: Mapping[str, Tensor] | None = None,
        keep_matrix: Tensor | None = None,
        keep_tracks: Tensor | None = None,
    ) -> Latents:
        """Latents of what is visible; what is not costs nothing and cannot leak.

        Args:
            batch: B events.
            patches: of the calorimeters, all of them.
            keep: stream -> bool (T,), the visible ones; None = all.
            keep_matrix, keep_tracks: bool (B,), where the token of that stream is visible; None = everywhere.
        """
        tokens, events, summaries, of_summary = [], [], [], []
        for stack in self.stacks:
            mine = patches[stack.stream]
            number = None
            if keep is not None and stack.stream in keep:
                every, mine = mine, mine.select(keep[stack.stream])
                number = stack.summaries_of(_of_groups(every, mine, stack)) if self.gate == "as_published" else None
            found = stack(batch.voxels[stack.stream].charge, mine, number)
            tokens.append(found.tokens)
            events.append(found.token_event)
            summaries.append(found.summaries)
            of_summary.append(found.summary_event)
        for token, made in (
            (self.matrix, lambda: self._matrix_token(batch, keep_matrix)),
            (self.tracks, lambda: self._track_token(batch, keep_tracks)),
        ):
            if token is not None:
                row, event = made()
                tokens.append(row)
                events.append(event)
        n = batch.n_events
        dtype = summaries[0].dtype
        context, token_offsets, _ = gathered([t.to(dtype) for t in tokens], events, n)
        latents, offsets, _ = gathered(summaries, of_summary, n)
        context = self.token_norm(context)
        across, within = Windows.of_boundaries(offsets, token_offsets), Windows.of_boundaries(offsets)
        for look, block in zip(self.looks, self.blocks, strict=True):
            latents = block(look(latents, across, context), within)
        return Latents(self.norm(latents), offsets)

    def _matrix_token(self, batch: StreamBatch, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        stream: MatrixBatch = _stream(batch.matrices, self.matrix.stream, batch)
        there = stream.present if keep is None else stream.present & keep
        return self.matrix(stream.values[there]), there.nonzero()[:, 0]

    def _track_token(self, batch: StreamBatch, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        stream: TrackBatch = _stream(batch.tracks, self.tracks.stream, batch)
        there = stream.present if keep is None else stream.present & keep
        if stream.feat.shape[1] != self.tracks.features:
            raise ValueError(
                f"{batch.names[:1]} …: stream '{self.tracks.stream}' has tracks of {stream.feat.shape[1]} features, "
                f"the network was built for {self.tracks.features}"
            )
        counts = stream.offsets.diff()
        feat = stream.feat[there.repeat_interleave(counts, output_size=len(stream.feat))]
        offsets = torch.cat([counts.new_zeros(1), counts[there].cumsum(0)])
        return self.tracks(feat, offsets), there.nonzero()[:, 0]

    def event_features(self, batch: StreamBatch) -> Tensor:
        """(B, C): mean of each event's latents, 0 for an event without."""
        latents = self(batch)
        return segment_reduce(latents.feat, latents.event, batch.n_events, "mean")

    def layers(self) -> list[list[nn.Module]]:
        """What an event passes, for learning rates that fall with depth: embeddings and learned vectors, the blocks of
        the stacks side by side, latent blocks one after the other, the last norm. The block of the tracks goes with the
        middle of the stacks."""
        first: list[nn.Module] = [] if self.matrix is None else [self.matrix]
        if self.tracks is not None:
            first += [module for module in self.tracks.children() if module is not self.tracks.block]
        for stack in self.stacks:
            first += [
                m for m in (stack.cls_token, stack.place_token, stack.group_token, stack.embedding) if m is not None
            ]
        deepest = max(len(stack.blocks) for stack in self.stacks)
        side_by_side = [[s.blocks[i] for s in self.stacks if i < len(s.blocks)] for i in range(deepest)]
        if self.tracks is not None and side_by_side:
            side_by_side[deepest // 2].insert(0, self.tracks.block)
        latent = [[part] for pair in zip(self.looks, self.blocks, strict=True) for part in pair]
        latent[0].insert(0, self.token_norm)
        return [first, *side_by_side, *latent, [self.norm]]


def _of_groups(every: Patches, visible: Patches, stack: PatchStack) -> Patches:
    """All patches of those groups that have a visible one: their numbers of patches decide, as published."""
    key = every.event * stack.n_groups + every.group
    return every.select(torch.isin(key, visible.event * stack.n_groups + visible.group))


def _stream(streams: Mapping[str, Any], name: str, batch: StreamBatch) -> Any:
    if name not in streams:
        raise ValueError(
            f"{batch.names[:1]} …: the network reads the stream '{name}', events of '{batch.detector}' have "
            f"{', '.join(streams) or 'none of its kind'}"
        )
    return streams[name]
