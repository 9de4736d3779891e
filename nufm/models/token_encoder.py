"""Transformer on volumetric tokens: the encoder of Point-MAE and PoLAr-MAE (Young et al., arXiv 2502.02558).

A small PointNet makes one vector of the points of each token; a plain transformer lets the tokens of an event see each
other. Sizes and names are those of DeepLearnPhysics/PoLAr-MAE (configs/polarmae.yml).

In evaluation an event's features do not depend on the other events of its batch. ``norm="batch_global"`` gives that up,
``padding="as_published"`` lets empty slots count, each to repeat a habit of the published code; released weights need
both.

Shape legend: T tokens, V tokens that are encoded, P slots, N points, B events, C channels, H heads, D channels of a
head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nufm.data.event import PointBatch
from nufm.models.layers import MLP, LayerNorm, drop_rows
from nufm.models.tokens import Tokenizer, Tokens
from nufm.ops.attention import Windows, windowed_attention
from nufm.ops.points import k_nearest
from nufm.ops.pool import segment_reduce, take

Norm = Literal["token", "batch_global"]
Padding = Literal["left_out", "as_published"]
Reach = Literal["all", "near"]

INNER = (128, 256, 512)  # channels of the mini-PointNet
NEIGHBOURS = 5  # tokens that a point takes its features from


# ---------------------------------------------------------------------- points -> tokens


class PackedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of packed rows (P, C); a batch of fewer than two rows takes the running values.

    The running variance is torch's unbiased one; the published code keeps the biased one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class MiniPointNet(nn.Module):
    """One vector for the points of each token (PointNet, Qi et al., arXiv 1612.00593, in small).

    Args:
        in_channels: columns of a point.
        channels: C of the result.
        max_points: slots of a full token.
        slot_code: add a learned code of the slot's number to each point, so that the order of the points is known.
        padding: ``left_out``: only points count. ``as_published``: where a token has fewer than ``max_points`` points,
            the empty slots take part in both maxima with what the norms' biases make of nothing.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        max_points: int,
        slot_code: bool = False,
        padding: Padding = "left_out",
    ) -> None:
        super().__init__()
        a, b, c = INNER
        self.first = nn.Sequential(
            nn.Linear(in_channels, a, bias=False), PackedBatchNorm(a), nn.ReLU(), nn.Linear(a, b)
        )
        self.second = nn.Sequential(
            nn.Linear(2 * b, c, bias=False), PackedBatchNorm(c), nn.ReLU(), nn.Linear(c, channels)
        )
        self.slot_code = nn.Linear(b, b) if slot_code else None
        self.max_points, self.padding = max_points, padding

    def forward(self, points: Tensor, tokens: Tokens) -> Tensor:
        """(P, in_channels) points in the slots of ``tokens`` to (T, channels)."""
        with torch.autocast(points.device.type, enabled=False):
            return self._forward(points.to(self.first[0].weight.dtype), tokens)

    def _forward(self, points: Tensor, tokens: Tokens) -> Tensor:
        segments, n = tokens.segments, len(tokens)
        code = self._codes() if self.slot_code is not None else None
        local = self.first(points)
        if code is not None:
            local = local + take(code, tokens.slot)
        whole = segment_reduce(local, segments, n, "max")
        if self.padding == "as_published":
            empty = self.first[3](self.first[1].bias.relu()).expand(self.max_points + 1, -1)
            if code is not None:
                # The most that slots k, k+1, … reach.
                empty = empty + torch.cat([code.flip(0).cummax(0).values.flip(0), code[-1:]])
            whole = self._with_empty(whole, empty, tokens)
        # The first map of (whole, local), whose half for the whole is the same for all points of a token.
        for_whole, for_local = self.second[0].weight.split(INNER[1], dim=1)
        feat = local @ for_local.T + take(whole @ for_whole.T, segments)
        result = segment_reduce(self.second[1:](feat), segments, n, "max")
        if self.padding == "as_published":
            empty = self.second[3](self.second[1].bias.relu()).expand(self.max_points + 1, -1)
            result = self._with_empty(result, empty, tokens)
        return result

    def _with_empty(self, pooled: Tensor, empty: Tensor, tokens: Tokens) -> Tensor:
        """The larger of ``pooled`` (T, C) and what the empty slots hold, ``empty[k]`` for a token of k points."""
        counts = tokens.counts
        return torch.where((counts < self.max_points)[:, None], torch.maximum(pooled, take(empty, counts)), pooled)

    def _codes(self) -> Tensor:
        """(max_points, b) a learned map of sines and cosines of each slot's number, as for the time in diffusion."""
        half = INNER[1] // 2
        weight = self.slot_code.weight
        number = torch.arange(self.max_points, device=weight.device, dtype=weight.dtype)
        rate = torch.exp(torch.arange(half, device=weight.device, dtype=weight.dtype) * -(math.log(10000) / (half - 1)))
        angle = number[:, None] * rate
        return self.slot_code(torch.cat([angle.sin(), angle.cos()], dim=1)).relu()


# ---------------------------------------------------------------------- tokens -> tokens


class GlobalNorm(nn.Module):
    """Mean and spread over all tokens and channels of the whole batch, two numbers; then scale and shift per channel.

    The "masked layer norm" of the published code. An event's features depend on its batch mates with it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return standardised(x.to(self.weight.dtype), "batch_global") * self.weight + self.bias


def standardised(x: Tensor, norm: Norm) -> Tensor:
    """(T, C) without mean and with spread 1: of each token, or of the batch."""
    if norm == "token":
        return F.layer_norm(x, x.shape[-1:])
    if x.numel() == 0:
        return x
    centred = x - x.mean()
    return centred / ((centred.square().mean() + 1e-13).sqrt() + 1e-13)


def distance_bias(place: Tensor, offsets: Tensor, heads: int) -> Tensor:
    """(H, S) what is added to the scores of the pairs of tokens of an event: -2 · 4^-h times their distance for head h,
    0 for the last head.

    Linear biases (ALiBi, Press et al., arXiv 2108.12409), here in space. With coordinates alone, neighbouring tokens
    look alike until thousands of steps have taught the network to tell them apart; so each head has a reach of its own.

    Args:
        place: float (T, 3) positions in units of the distance that counts, the radius of a token.
        offsets: int64 (B+1,) tokens of each event.
        heads: H, at least 2: a single head would be the last.
    """
    slopes = place.new_tensor([2.0 * 4.0**-h for h in range(heads - 1)] + [0.0])
    counts = offsets.diff()
    per_query = counts.repeat_interleave(counts)  # pairs of each query: the tokens of its event
    query = torch.arange(len(place), device=place.device).repeat_interleave(per_query)
    first = (offsets[:-1].repeat_interleave(counts) - (per_query.cumsum(0) - per_query)).repeat_interleave(per_query)
    key = torch.arange(len(query), device=place.device) + first
    distance = (place.index_select(0, query) - place.index_select(0, key)).square().sum(1).sqrt()
    return -slopes[:, None] * distance


class TokenAttention(nn.Module):
    """Attention among the tokens of an event.

    Args:
        channels, heads: C and H.
        dropout: probability that a weight is dropped, in training only.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout, self.scale = heads, dropout, (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, windows: Windows, bias: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)  # (T, H, D) each
        out = windowed_attention(q, k, v, windows, self.scale, bias, self.dropout if self.training else 0.0)
        return self.proj(out.flatten(1))


class TokenBlock(nn.Module):
    """Attention and MLP, each added to its input after a norm in front of it."""

    def __init__(
        self, channels: int, heads: int, mlp_ratio: float, drop_path: float, attention_dropout: float, norm: Norm
    ) -> None:
        super().__init__()
        make = LayerNorm if norm == "token" else GlobalNorm
        self.drop_path = drop_path
        self.norm1 = make(channels)
        self.attn = TokenAttention(channels, heads, attention_dropout)
        self.norm2 = make(channels)
        self.mlp = MLP(channels, int(mlp_ratio * channels))

    def forward(self, x: Tensor, windows: Windows, bias: Tensor | None) -> Tensor:
        x = x + drop_rows(self.attn(self.norm1(x), windows, bias), self.drop_path, self.training)
        return x + drop_rows(self.mlp(self.norm2(x)), self.drop_path, self.training)


class TokenTransformer(nn.Module):
    """Blocks on packed tokens; a token's position is added before every block.

    Args:
        channels, depth, heads: C, number of blocks, H; C a multiple of H.
        mlp_ratio: hidden channels of the MLPs over C.
        drop_path: probability that a token loses a branch in the last block, rising linearly from 0 in the first.
        attention_dropout: probability that a weight of attention is dropped. In training only; the published code
            drops them in evaluation too.
        norm: ``token``: ordinary layer norm; ``batch_global``: as published.
        final_norm: a norm after the last block.
        unit: distance at which tokens count as near, in the units of the coordinates: attention falls with the
            distance over it, see :func:`distance_bias`. None: it does not, as published.

    Raises:
        ValueError: channels that are no multiple of the heads, or an unknown norm.
    """

    def __init__(
        self,
        channels: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.25,
        attention_dropout: float = 0.05,
        norm: Norm = "token",
        final_norm: bool = False,
        unit: float | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"channels must be a multiple of heads, found {channels} channels and {heads} heads")
        if norm not in ("token", "batch_global"):
            raise ValueError(f"norm must be 'token' or 'batch_global', found '{norm}'")
        self.heads, self.unit = heads, unit
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            TokenBlock(channels, heads, mlp_ratio, rate, attention_dropout, norm) for rate in rates
        )
        make = LayerNorm if norm == "token" else GlobalNorm
        self.norm = make(channels) if final_norm else nn.Identity()

    def forward(
        self, x: Tensor, position: Tensor, centre: Tensor, offsets: Tensor, keep: Sequence[int] = ()
    ) -> list[Tensor]:
        """Tokens (T, C) of events ``offsets`` (B+1,), with what is known of their positions.

        Args:
            x: (T, C).
            position: (T, C) embedding of each token's place, added before every block.
            centre: (T, 3) the places themselves.
            offsets: int64 (B+1,).
            keep: numbers of blocks.

        Returns:
            What leaves the blocks numbered ``keep``, and last what leaves the transformer, (T, C) each.
        """
        windows = Windows.of_boundaries(offsets)
        bias = None if self.unit is None else distance_bias(centre / self.unit, offsets, self.heads)
        kept = []
        for i, block in enumerate(self.blocks):
            x = block(x + position, windows, bias)
            if i in keep:
                kept.append(x)
        return [*kept, self.norm(x)]


class Encoded(NamedTuple):
    """What an encoder makes of a batch.

    Attributes:
        tokens: those that were encoded, V of them.
        feat: (V, C) of the last block.
        blocks: (V, C) of each block that ``feature_blocks`` names.
    """

    tokens: Tokens
    feat: Tensor
    blocks: list[Tensor]


class TokenEncoder(nn.Module):
    """Encoder: PointBatch -> features of tokens. The defaults have 21,837,568 parameters.

    Args:
        tokenizer: makes the tokens; None = balls of 5 voxels.
        in_channels: columns of ``batch.feat`` (x, y, z, log energy).
        channels, depth, heads, mlp_ratio, drop_path, attention_dropout, norm, final_norm: of the transformer.
        padding: see :class:`MiniPointNet`.
        reach: ``all``: attention knows no distance, as published; ``near``: most heads look near, see
            :func:`distance_bias`. Small runs need it: without, they do not learn context in hundreds of steps.
        feature_blocks: blocks (from 0) whose outputs, normalised, are averaged for what a point is told.

    Raises:
        ValueError: a block that there is not, or as :class:`TokenTransformer`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        in_channels: int = 4,
        channels: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.25,
        attention_dropout: float = 0.05,
        norm: Norm = "token",
        final_norm: bool = False,
        padding: Padding = "left_out",
        reach: Reach = "all",
        feature_blocks: Sequence[int] = (3, 7, 11),
    ) -> None:
        super().__init__()
        tokenizer = Tokenizer() if tokenizer is None else tokenizer
        for name, value, choices in (
            ("reach", reach, ("all", "near")),
            ("padding", padding, ("left_out", "as_published")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, found '{value}'")
        if reach == "near" and heads < 2:
            raise ValueError(f"reach 'near' needs at least 2 heads, of which one sees all, found {heads}")
        if not feature_blocks or not all(0 <= b < depth for b in feature_blocks):
            raise ValueError(f"feature_blocks are {list(feature_blocks)}, expected some of 0 … {depth - 1} (depth - 1)")
        self.arguments: dict[str, Any] = {
            "tokenizer": tokenizer,
            "in_channels": in_channels,
            "channels": channels,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "drop_path": drop_path,
            "attention_dropout": attention_dropout,
            "norm": norm,
            "final_norm": final_norm,
            "padding": padding,
            "reach": reach,
            "feature_blocks": list(feature_blocks),
        }
        self.tokenizer, self.in_channels, self.channels, self.norm = tokenizer, in_channels, channels, norm
        self.padding, self.feature_blocks = padding, tuple(sorted(feature_blocks))
        self.unit = tokenizer.radius if reach == "near" else None
        self.embedding = MiniPointNet(in_channels, channels, tokenizer.max_points, padding=padding)
        self.position = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, channels))
        self.transformer = TokenTransformer(
            channels, depth, heads, mlp_ratio, drop_path, attention_dropout, norm, final_norm, self.unit
        )
        self.transformer.apply(init_linear)

    @property
    def sees_batch_mates(self) -> bool:
        """Whether an event's features depend on the other events of its batch, as published."""
        return self.norm == "batch_global"

    def tokens(self, batch: PointBatch) -> Tokens:
        """The tokens of a batch.

        Raises:
            ValueError: a wrong number of feature columns, or as :meth:`nufm.models.tokens.Tokenizer.forward`.
        """
        if batch.feat.dim() != 2 or batch.feat.shape[1] != self.in_channels:
            raise ValueError(
                f"the encoder expects {self.in_channels} feature columns, the batch has {tuple(batch.feat.shape[1:])} "
                f"{batch.columns}; the transforms must be those the encoder was built for"
            )
        return self.tokenizer(batch)

    def positions(self, tokens: Tokens) -> Tensor:
        """(T, C) embedding of the tokens' places. In full precision: bfloat16 rounds a centre by half a voxel, and
        neighbouring tokens are seven voxels apart."""
        with torch.autocast(tokens.centre.device.type, enabled=False):
            return self.position(tokens.centre.to(self.position[0].weight.dtype))

    def encode(self, tokens: Tokens) -> Encoded:
        """Features of tokens that see each other and no others: give the visible ones only, and only they cost."""
        x = self.embedding(tokens.points, tokens)
        position = self.positions(tokens)
        *blocks, feat = self.transformer(x, position, tokens.centre, tokens.offsets, self.feature_blocks)
        return Encoded(tokens, feat, blocks)

    def forward(self, batch: PointBatch) -> Encoded:
        """All tokens of a batch."""
        return self.encode(self.tokens(batch))

    def point_features(self, batch: PointBatch) -> Tensor:
        """(N, C) features of every point, whether it is in a token or not: see :meth:`interpolated`."""
        encoded = self(batch)
        return self.interpolated(batch, encoded.tokens, self.token_features(encoded))

    def token_features(self, encoded: Encoded) -> Tensor:
        """(V, C): outputs of the ``feature_blocks``, each normalised without weights, averaged."""
        return torch.stack([standardised(x.float(), self.norm) for x in encoded.blocks]).mean(0)

    def interpolated(self, batch: PointBatch, tokens: Tokens, feat: Tensor) -> Tensor:
        """Token features (T, C) at the points, (N, C): mean of the nearest five, weighted by 1/(d² + ε) (PointNet++,
        arXiv 1706.02413, eq. 2). An event of fewer tokens takes those it has."""
        if len(batch) == 0:
            return feat.new_zeros(0, feat.shape[1]) + feat[:0].sum()
        with torch.no_grad():
            index, distance = k_nearest(
                batch.coord.float(), batch.offsets, tokens.centre, tokens.offsets, NEIGHBOURS
            )
            weight = 1 / (distance.square() + torch.finfo(torch.float32).eps)  # 0 where there is no neighbour
            weight = weight / weight.sum(1, keepdim=True)
        return F.embedding_bag(
            index.clamp(min=0), feat, mode="sum", per_sample_weights=weight.to(feat.dtype)
        )

    def layers(self) -> list[list[nn.Module]]:
        """What tokens pass one after the other: embedding and position, then each block, the final norm (if there is
        one) with the last."""
        *blocks, last = self.transformer.blocks
        return [[self.position, self.embedding], *[[block] for block in blocks], [self.transformer.norm, last]]


def init_linear(module: nn.Module) -> None:
    """Truncated normal of width 0.02 for linear weights, zero for their biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
