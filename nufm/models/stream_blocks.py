"""Transformer blocks on packed rows that look at themselves or at others, and codes of places on a lattice.

Shape legend: N rows, K rows that are looked at, W windows, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nufm.models.layers import MLP, LayerNorm, drop_rows
from nufm.ops.attention import Windows, windowed_attention

EPSILON = 1e-6  # of all layer norms, as in the public code


class Block(nn.Module):
    """Attention and MLP, each added to its input after a norm in front of it (pre-norm, GELU).

    Args:
        channels, heads: C and H; C a multiple of H.
        mlp_ratio: hidden channels of the MLP over C.
        cross: look at other rows, which have a norm of their own; otherwise at the own ones.

    Attributes:
        drop_path: probability that a row loses a branch, in training; set by the network that the block is in.

    Raises:
        ValueError: channels that are no multiple of the heads.
    """

    def __init__(self, channels: int, heads: int, mlp_ratio: float = 4.0, cross: bool = False) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"channels must be a multiple of heads, found {channels} channels and {heads} heads")
        self.heads, self.scale, self.drop_path = heads, (channels // heads) ** -0.5, 0.0
        self.norm1 = LayerNorm(channels, eps=EPSILON)
        self.context_norm = LayerNorm(channels, eps=EPSILON) if cross else None
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = LayerNorm(channels, eps=EPSILON)
        self.mlp = MLP(channels, int(mlp_ratio * channels))
        self.apply(init_xavier)

    def forward(self, x: Tensor, windows: Windows, context: Tensor | None = None) -> Tensor:
        """(N, C) to (N, C): the queries and keys that ``windows`` names see each other. A row whose window has no keys
        gets nothing from attention.

        Args:
            x: (N, C).
            windows: of the rows of ``x``, and of those of ``context`` where there is one.
            context: (K, C) rows that are looked at, of a block that was made for it.
        """
        mine = self.norm1(x)
        seen = mine if context is None else self.context_norm(context)
        q = self.query(mine).unflatten(1, (self.heads, -1))
        k, v = self.key_value(seen).unflatten(1, (2, self.heads, -1)).unbind(1)
        found = self.proj(windowed_attention(q, k, v, windows, self.scale).flatten(1))
        x = x + drop_rows(found, self.drop_path, self.training)
        return x + drop_rows(self.mlp(self.norm2(x)), self.drop_path, self.training)


def init_xavier(module: nn.Module) -> None:
    """Uniform weights (Glorot, Bengio, AISTATS 2010) and zero biases, as in MAE (He et al., arXiv 2111.06377)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos3d(shape: Sequence[int], channels: int) -> Tensor:
    """float32 (n, C) sines and cosines of the places of a lattice, last axis fastest: a third of the channels for each
    axis, wavelengths from 2π to 10⁴ · 2π (Vaswani et al., arXiv 1706.03762, section 3.5).

    Raises:
        ValueError: channels that are no multiple of 6.
    """
    if channels % 6:
        raise ValueError(f"sine and cosine codes in three dimensions need a multiple of 6 channels, found {channels}")
    rate = 10000.0 ** -(torch.arange(channels // 6, dtype=torch.float64, device="cpu") / (channels // 6))
    axes = [torch.arange(n, dtype=torch.float64, device="cpu")[:, None] * rate for n in shape]
    codes = torch.meshgrid(*[torch.arange(n, device="cpu") for n in shape], indexing="ij")
    parts = []
    for angle, place in zip(axes, codes, strict=True):
        here = angle[place.flatten()]
        parts += [here.sin(), here.cos()]
    return torch.cat(parts, dim=1).float()


def gathered(parts: Sequence[Tensor], keys: Sequence[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of several kinds, brought together group by group; within a group in the order of the kinds and rows.

    Args:
        parts: (N_i, C) each.
        keys: int64 (N_i,) each, the group of every row, 0..n-1.
        n: groups.

    Returns:
        (N, C) rows, int64 (n+1,) offsets of the groups, int64 (N,) the place of each row of the concatenated parts.
    """
    key = torch.cat(list(keys))
    order = torch.argsort(key, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    counts = key.new_zeros(n).scatter_add_(0, key, torch.ones_like(key))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return torch.cat(list(parts))[order], offsets, place
