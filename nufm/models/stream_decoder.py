"""Decoder of the FASERCal model: what is in a patch, in the matrix and in the tracks, from the latents alone.

Talk of F. Cufino, NPML 2026; details from the public code saulam/faserDL (spring 2026), which this file describes anew.

    latents -> linear ───────────────┐ keys
    query of a patch: learned vector ┴-> cross attention -> coefficients of separable bases -> 8 numbers per voxel
                      + place + module                                                         -> heads

It never sees the tokens of the encoder: what it says must have passed the latents. Queries do not see each other, so
what is said of a patch does not depend on which others are asked for. That a patch is occupied is given to it; which of
its voxels are is not.

Shape legend: B events, L latents, Q queries, M patches, S voxels of them that are asked for, P voxels of a patch, D
channels of the decoder, H channels of a voxel, R rank, n edge of a patch, k modes along it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nufm.models.layers import LayerNorm
from nufm.models.patches import Patches, PatchStack
from nufm.models.stream_blocks import EPSILON, Block, init_xavier, sincos3d
from nufm.models.stream_encoder import Latents, StreamEncoder
from nufm.ops.attention import Windows


def cosine_modes(n: int, k: int, rank: int) -> Tensor:
    """float32 (R, n, k): orthonormal cosines of the second kind (Ahmed, Natarajan, Rao, IEEE Trans. Comput. C-23 (1974)
    90), the lowest k for the first rank, the next k for the second, and so on around, so that no rank begins as a copy
    of another.

    Raises:
        ValueError: more modes than places.
    """
    if not 1 <= k <= n:
        raise ValueError(f"{k} modes along an edge of {n} voxels, expected 1 … {n}")
    mode = torch.arange(rank * k, dtype=torch.float64, device="cpu").view(rank, 1, k) % n
    place = torch.arange(n, dtype=torch.float64, device="cpu")[:, None]
    wave = torch.cos(math.pi / n * (place + 0.5) * mode)
    return (wave * torch.where(mode == 0, math.sqrt(1 / n), math.sqrt(2 / n))).float()


class VoxelBases(nn.Module):
    """D numbers of a patch -> H numbers for each of its voxels: Σ_r Σ_ijl c_hrijl X_ri(x) Y_rj(y) Z_rl(z).

    A dense map to the P voxels of a patch of the calorimeter would have ten times the parameters of the whole decoder,
    and know nothing of which voxels are neighbours.

    Args:
        channels: D.
        edges: voxels of a patch per axis.
        modes: learnable functions per axis, which start as cosines.
        hidden: H.
        rank: R.
    """

    def __init__(
        self, channels: int, edges: Sequence[int], modes: Sequence[int], hidden: int = 8, rank: int = 2
    ) -> None:
        super().__init__()
        self.edges, self.modes, self.hidden, self.rank = tuple(edges), tuple(modes), hidden, rank
        self.bases = nn.ParameterList(
            nn.Parameter(cosine_modes(n, k, rank)) for n, k in zip(self.edges, self.modes, strict=True)
        )
        terms = rank * math.prod(self.modes)
        self.coefficients = nn.Linear(channels, hidden * terms)
        # A query is normed: with this the coefficients have a variance of 1 / RK.
        nn.init.normal_(self.coefficients.weight, std=(channels * terms) ** -0.5)
        nn.init.zeros_(self.coefficients.bias)
        self.norm = LayerNorm(hidden, eps=EPSILON)

    def forward(self, x: Tensor, patch: Tensor, slot: Tensor) -> Tensor:
        """(S, H) normed: the voxels ``slot`` (S,) of the patches ``patch`` (S,), rows of ``x`` (M, D)."""
        return self.norm(self.dense(x)[patch, :, slot])

    def dense(self, x: Tensor) -> Tensor:
        """(M, D) to (M, H, P), voxels with the last axis fastest, not normed."""
        # One product with all functions of three axes: more multiplications than axis after axis, but no numbers in
        # between that would have to be written and turned around, which takes longer on any machine.
        made = self.coefficients(x).unflatten(1, (self.hidden, -1)).flatten(0, 1)
        return (made @ self.functions().to(made.dtype)).view(len(x), self.hidden, math.prod(self.edges))

    def functions(self) -> Tensor:
        """(RK, P): the products of the functions of the axes, at every voxel."""
        x, y, z = self.bases
        return torch.einsum("rxi,ryj,rzk->rijkxyz", x, y, z).flatten(4).flatten(0, 3)

    def overlap(self, between: float = 0.1) -> Tensor:
        """Scalar: how far the functions of an axis are from orthonormal, squared, summed over axes and ranks; those of
        different ranks count ``between`` times."""
        total = self.bases[0].sum() * 0
        for basis in self.bases:
            product = torch.einsum("rni,snj->rsij", basis, basis)
            wrong = product.diagonal(dim1=0, dim2=1).permute(2, 0, 1) - torch.eye(basis.shape[2], device=basis.device)
            total = total + wrong.square().sum()
            apart = torch.triu(basis.new_ones(self.rank, self.rank), diagonal=1)[..., None, None]
            total = total + between * (product * apart).square().sum()
        return total


class PatchDecoder(nn.Module):
    """Queries for the patches of one stream, and what is said of their voxels.

    Args:
        stack: of the encoder, whose patches these are.
        channels: D.
        modes, hidden: of the voxel bases.
        heads: name -> numbers per voxel.
        rank: of the voxel bases.
    """

    def __init__(
        self,
        stack: PatchStack,
        channels: int,
        modes: Sequence[int],
        hidden: int,
        heads: Mapping[str, int],
        rank: int = 2,
    ) -> None:
        super().__init__()
        self.grid = stack.grid
        self.query_token = _vector(1, channels)
        # Of patches of several modules the module must be said; of one, the query says the stream.
        self.module_token = _vector(stack.modules, channels) if stack.modules > 1 else None
        thirds = channels // 6 * 6
        code = torch.zeros(math.prod(stack.grid), channels)
        code[:, :thirds] = sincos3d(stack.grid, thirds)
        self.register_buffer("place_code", code, persistent=False)
        self.voxels = VoxelBases(channels, stack.patch, modes, hidden, rank)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, n) for name, n in heads.items()})
        self.heads.apply(init_xavier)

    def queries(self, patches: Patches) -> Tensor:
        """(M, D), one for each patch."""
        x, y, z = patches.cell.unbind(1)
        query = self.query_token.weight + self.place_code[(x * self.grid[1] + y) * self.grid[2] + z]
        return query if self.module_token is None else query + self.module_token(patches.module)

    def forward(self, x: Tensor, patch: Tensor, slot: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """What the heads ``names`` say, (S,) of one number, else (S, numbers), in float32.

        Args:
            x: (M, D) decoded queries.
            patch, slot: int64 (S,) the voxels.
        """
        voxel = self.voxels(x, patch, slot)
        return {name: self.heads[name](voxel).float().squeeze(1) for name in names}


class Memory(NamedTuple):
    """Latents as the decoder sees them: (L, D), and int64 (B+1,) offsets of the events."""

    feat: Tensor
    offsets: Tensor


RECONSTRUCTION = {"occupancy": 1, "charge": 1}
RELATIONAL = {"ghost": 1, "hierarchy": 3, "category": 3}  # of the first calorimeter


class StreamDecoder(nn.Module):
    """Decoder for a :class:`nufm.models.stream_encoder.StreamEncoder`; all its streams share the same blocks.

    Base size: 2.33 M parameters with an encoder of 384 channels.

    Args:
        encoder: whose latents it reads, and whose patches it speaks of. Not kept.
        channels, heads, mlp_ratio: of its blocks.
        depth: cross-attention blocks.
        modes, hidden: of the voxels of the calorimeter.
        tail_modes, tail_hidden: of those of the second calorimeter.
        rank: of both.
        track_targets: numbers of a track whose mean over the tracks is predicted, the first ones.
    """

    def __init__(
        self,
        encoder: StreamEncoder,
        channels: int = 256,
        heads: int = 8,
        depth: int = 2,
        mlp_ratio: float = 4.0,
        modes: Sequence[int] = (5, 5, 6),
        hidden: int = 8,
        tail_modes: Sequence[int] = (2, 2, 3),
        tail_hidden: int = 4,
        rank: int = 2,
        track_targets: int = 4,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(encoder.channels, channels)
        self.blocks = nn.ModuleList(Block(channels, heads, mlp_ratio, cross=True) for _ in range(depth))
        self.norm = LayerNorm(channels, eps=EPSILON)
        self.track_targets = track_targets
        self.patches = nn.ModuleDict()
        for stack, of_axis, wide, said in (
            (encoder.calorimeter, modes, hidden, RECONSTRUCTION | RELATIONAL),
            (encoder.tail, tail_modes, tail_hidden, RECONSTRUCTION),
        ):
            if stack is not None:
                self.patches[stack.stream] = PatchDecoder(stack, channels, of_axis, wide, said, rank)
        self.matrix_query = self.matrix_head = self.track_query = self.track_head = None
        if encoder.matrix is not None:
            self.matrix_query = _vector(1, channels)
            self.matrix_head = nn.Linear(channels, encoder.matrix.linear.in_features)
        if encoder.tracks is not None:
            self.track_query = _vector(1, channels)
            self.track_head = nn.Linear(channels, 1 + track_targets)
        for module in (self.project, self.matrix_head, self.track_head):
            if module is not None:
                init_xavier(module)

    def relational_heads(self) -> list[nn.Module]:
        """What only the relational objective trains."""
        first = next(iter(self.patches.values()))
        return [first.heads[name] for name in RELATIONAL]

    def memory(self, latents: Latents) -> Memory:
        return Memory(self.project(latents.feat), latents.offsets)

    def decode_patches(self, memory: Memory, stream: str, patches: Patches) -> Tensor:
        """(M, D) decoded queries for these patches, which are in the order of their events."""
        return self._decode(memory, self.patches[stream].queries(patches), patches.offsets)

    def matrix(self, memory: Memory, events: Tensor) -> Tensor:
        """float32 (n, cells) of the events, int64 (n,) ascending."""
        return self.matrix_head(self._of_events(memory, self.matrix_query.weight, events)).float()

    def tracks(self, memory: Memory, events: Tensor) -> tuple[Tensor, Tensor]:
        """Of the events, int64 (n,) ascending: float32 (n,) logit that there is a track, and (n, track_targets) means
        over the tracks."""
        found = self.track_head(self._of_events(memory, self.track_query.weight, events)).float()
        return found[:, 0], found[:, 1:]

    def _of_events(self, memory: Memory, query: Tensor, events: Tensor) -> Tensor:
        counts = torch.zeros_like(memory.offsets[1:]).scatter_add_(0, events, torch.ones_like(events))
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return self._decode(memory, query.expand(len(events), -1), offsets)

    def _decode(self, memory: Memory, x: Tensor, offsets: Tensor) -> Tensor:
        windows = Windows.of_boundaries(offsets, memory.offsets)
        x = x.to(memory.feat.dtype)
        for block in self.blocks:
            x = block(x, windows, memory.feat)
        return self.norm(x)


def _vector(n: int, channels: int) -> nn.Embedding:
    table = nn.Embedding(n, channels)
    nn.init.normal_(table.weight, std=0.02)
    return table
