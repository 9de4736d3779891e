"""Point Transformer V3, encoder only, as used by Sonata and Panda.

Wu et al., "Point Transformer V3: Simpler, Faster, Stronger", arXiv 2312.10035; Wu et al., "Sonata", arXiv
2503.16429; Young & Terao, "Panda", arXiv 2512.01324. Names of parameters are those of the released Panda
weights.

Shape legend: N_s points of stage s, C_s channels, H heads, B events, K curves.

An event's features do not depend on the other events of its batch: windows have a fixed size, lattice cells
and curves belong to the event, and everything that follows acts on points or within events. In evaluation the
result is deterministic. ``shuffle_orders="always"``, ``depth_bits=None`` and
``window_rule="shrink_to_smallest"`` give up these properties, each to repeat a habit of the published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nufm.data.event import PointBatch
from nufm.models.layers import MLP, LayerNorm, SparseConv, drop_rows
from nufm.ops.attention import Windows, window_layout, windowed_attention
from nufm.ops.kernel_map import KernelMap, submanifold_map
from nufm.ops.pool import Segments, pool_cells, segment_reduce, take
from nufm.ops.serialize import CURVES, Depth, serialize


@dataclass(frozen=True, eq=False)
class Geometry:
    """What depends on coordinates only: computed once per stage and shared by its blocks.

    Attributes:
        neighbors: pair lists of the 3x3x3 convolution.
        windows: attention windows along each curve in use.
    """

    neighbors: KernelMap
    windows: tuple[Windows, ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """Result of one stage.

    Attributes:
        feat: float (N_s, C_s).
        coord: float (N_s, 3), mean of the pooled points' coordinates.
        grid: int64 (N_s, 3) lattice cells; a cell is twice as wide as in the stage before.
        offsets: int64 (B+1,) from 0 to N_s.
        members: which points of the stage before make up each point; None at stage 0.
        geometry: neighbours and windows, which a decoder uses again.
    """

    feat: Tensor
    coord: Tensor
    grid: Tensor
    offsets: Tensor
    members: Segments | None
    geometry: Geometry

    @property
    def inverse(self) -> Tensor | None:
        """int64 (N_{s-1},) pooled point of each point of the stage before; None at stage 0."""
        return None if self.members is None else self.members.index


def stage_geometry(
    grid: Tensor, offsets: Tensor, curves: Sequence[str], depth: Depth, window: int
) -> Geometry:
    """Neighbours, windows and curve orders of one stage (see :class:`Geometry`)."""
    windows = Windows.of_layout(window_layout(offsets, window))
    order, _ = serialize(grid, offsets, curves, depth)
    return Geometry(
        neighbors=submanifold_map(grid, offsets),
        windows=tuple(windows.of_points(o) for o in order),
    )


class LayerScale(nn.Module):
    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SubmanifoldConv(SparseConv):
    """3x3x3 submanifold convolution with bias, (N, C) -> (N, C)."""

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__(channels, channels, kernel_size, bias=True)

    def reset_parameters(self) -> None:
        """Nothing: the network draws all its weights at once (:func:`init_weights`)."""


class Attention(nn.Module):
    """Multi-head attention within the windows of one curve."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, geometry: Geometry, curve: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)  # (N, H, D) each
        out = windowed_attention(q, k, v, geometry.windows[curve], self.scale)
        return self.proj(out.flatten(1))


class Block(nn.Module):
    """Convolutional position encoding, attention, MLP; each added to its input.

    Args:
        channels, heads: C and H, C a multiple of H.
        mlp_ratio: hidden channels of the MLP over C.
        drop_path: probability that a point loses a branch (attention or MLP, drawn separately, per point).
        layer_scale: initial factor of the branches.
    """

    def __init__(
        self, channels: int, heads: int, mlp_ratio: float, drop_path: float, layer_scale: float
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.cpe = nn.ModuleList(
            [SubmanifoldConv(channels), nn.Linear(channels, channels), LayerNorm(channels)]
        )
        self.norm1 = nn.Sequential(LayerNorm(channels))
        self.attn = Attention(channels, heads)
        self.ls1 = nn.Sequential(LayerScale(channels, layer_scale))
        self.norm2 = nn.Sequential(LayerNorm(channels))
        self.mlp = nn.Sequential(MLP(channels, int(mlp_ratio * channels)))
        self.ls2 = nn.Sequential(LayerScale(channels, layer_scale))

    def forward(self, x: Tensor, geometry: Geometry, curve: int) -> Tensor:
        x = x + self.position(x, geometry)
        x = x + self.drop(self.ls1(self.attn(self.norm1(x), geometry, curve)))
        return x + self.drop(self.ls2(self.mlp(self.norm2(x))))

    def position(self, x: Tensor, geometry: Geometry) -> Tensor:
        conv, linear, norm = self.cpe
        # Full precision: in half precision the sums over 27 neighbours overflow or turn to NaN in training
        # (known from Point Transformer V3).
        with torch.autocast(x.device.type, enabled=False):
            return norm(linear(conv(x.to(conv.weight.dtype), geometry.neighbors)))

    def drop(self, branch: Tensor) -> Tensor:
        return drop_rows(branch, self.drop_path, self.training)


class Embedding(nn.Module):
    """Linear, norm, GELU. Masked points get the mask token in place of the result."""

    def __init__(self, in_channels: int, channels: int, mask_token: bool) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"linear": nn.Linear(in_channels, channels), "norm": LayerNorm(channels)})
        # Not zero, as published: where all is masked a zero token stays zero up to the norms, whose gradient at zero is
        # the inverse of their epsilon. The first gradient was 1e5 times the later ones and spoilt Adam's moments.
        self.mask_token = nn.Parameter(torch.empty(1, channels)) if mask_token else None
        if mask_token:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, feat: Tensor, mask: Tensor | None) -> Tensor:
        linear = self.stem["linear"]
        # Full precision: bfloat16 coordinates could not tell neighbouring voxels apart.
        with torch.autocast(feat.device.type, enabled=False):
            x = nn.functional.gelu(self.stem["norm"](linear(feat.to(linear.weight.dtype))))
        if mask is None:
            return x
        if self.mask_token is None:
            raise ValueError(
                "a mask was given to an encoder without a mask token; build it with mask_token=True"
            )
        if mask.dtype != torch.bool or mask.shape != x.shape[:1]:
            raise ValueError(f"'mask' must be bool ({len(x)},), found {mask.dtype} {tuple(mask.shape)}")
        return torch.where(mask[:, None], self.mask_token, x)


class GridPooling(nn.Module):
    """Linear, maximum over each coarse cell, norm, GELU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)
        self.norm = nn.Sequential(LayerNorm(channels))

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        return nn.functional.gelu(self.norm(segment_reduce(self.proj(x), segments, segments.n, "max")))


class PointTransformerV3(nn.Module):
    """Encoder: PointBatch -> one :class:`Stage` per resolution, finest first.

    The defaults are the encoder of Panda: 90,758,832 parameters, 21 blocks, head dimension 16.

    Args:
        in_channels: columns of ``batch.feat`` (x, y, z, log energy).
        depths: blocks of each stage; every stage but the first begins with a pooling of stride 2.
        channels: C_s of each stage.
        heads: attention heads of each stage.
        window: largest number of points in an attention window.
        curves: space-filling curves; block i of a stage uses curve i (mod K) of the stage's own shuffled
            list.
        mlp_ratio: hidden channels of the MLPs over C_s.
        drop_path: per-point probability of dropping a branch in the last block, rising linearly from 0 in the
            first.
        layer_scale: initial factor of the branches.
        mask_token: learn an embedding for masked points. It gets a gradient only in a pass with ``mask``:
            under DDP each step needs at least one such pass, or an encoder built with ``mask_token=False``.
        shuffle_orders: when the list of curves is shuffled: ``train``, ``always`` (as published, evaluation
            is then random), ``never``.
        depth_bits: bits per axis of the finest stage's lattice, one less for each further stage (so that
            pooled curves are the fine ones with a coarser pen). ``event`` takes for each event, at each stage,
            what the published code takes when it is alone in a batch; None takes it for the batch, as published.
        window_rule: ``fixed``: windows of ``window`` points for every event. ``shrink_to_smallest``: no
            window is longer than the smallest event of the batch at that stage, as the published code without
            flash-attention.

    Raises:
        ValueError: lengths of depths, channels and heads that differ, channels that are no multiple of the
            heads, a window without points, an unknown curve, or too few ``depth_bits`` for the number of stages.
    """

    def __init__(
        self,
        in_channels: int = 4,
        depths: Sequence[int] = (3, 3, 3, 9, 3),
        channels: Sequence[int] = (48, 96, 192, 384, 512),
        heads: Sequence[int] = (3, 6, 12, 24, 32),
        window: int = 256,
        curves: Sequence[str] = ("hilbert", "hilbert-trans", "z", "z-trans"),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.3,
        layer_scale: float = 1e-5,
        mask_token: bool = True,
        shuffle_orders: Literal["train", "always", "never"] = "train",
        depth_bits: int | Literal["event"] | None = 16,
        window_rule: Literal["fixed", "shrink_to_smallest"] = "fixed",
    ) -> None:
        super().__init__()
        # What an export writes down to build the same encoder again.
        self.arguments = {
            "in_channels": in_channels,
            "depths": list(depths),
            "channels": list(channels),
            "heads": list(heads),
            "window": window,
            "curves": list(curves),
            "mlp_ratio": mlp_ratio,
            "drop_path": drop_path,
            "layer_scale": layer_scale,
            "mask_token": mask_token,
            "shuffle_orders": shuffle_orders,
            "depth_bits": depth_bits,
            "window_rule": window_rule,
        }
        n_stages = len(depths)
        if not n_stages == len(channels) == len(heads) or n_stages == 0:
            raise ValueError(
                "depths, channels and heads need one entry per stage, "
                f"found {n_stages}, {len(channels)} and {len(heads)}"
            )
        for c, h in zip(channels, heads, strict=True):
            if h < 1 or c % h:
                raise ValueError(f"channels must be multiples of heads, found {c} channels and {h} heads")
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window must be a number of points, at least 1, found {window!r}")
        if not curves or set(curves) - set(CURVES):
            raise ValueError(f"curves must be among {', '.join(CURVES)}, found {tuple(curves)}")
        if shuffle_orders not in ("train", "always", "never"):
            raise ValueError(f"shuffle_orders must be 'train', 'always' or 'never', found '{shuffle_orders}'")
        if window_rule not in ("fixed", "shrink_to_smallest"):
            raise ValueError(f"window_rule must be 'fixed' or 'shrink_to_smallest', found '{window_rule}'")
        if isinstance(depth_bits, str) and depth_bits != "event":
            raise ValueError(f"depth_bits must be a number, 'event' or None, found '{depth_bits}'")
        if isinstance(depth_bits, int) and depth_bits < n_stages:
            raise ValueError(
                f"depth_bits must be at least the number of stages, {n_stages}, found {depth_bits}"
            )
        self.depths, self.channels = tuple(depths), tuple(channels)
        self.window, self.window_rule = window, window_rule
        self.curves, self.shuffle_orders, self.depth_bits = tuple(curves), shuffle_orders, depth_bits

        self.embedding = Embedding(in_channels, channels[0], mask_token)
        drop_rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.enc = nn.ModuleDict()
        for s in range(n_stages):
            stage = nn.ModuleDict()
            if s > 0:
                stage["down"] = GridPooling(channels[s - 1], channels[s])
            for i in range(depths[s]):
                stage[f"block{i}"] = Block(channels[s], heads[s], mlp_ratio, next(drop_rates), layer_scale)
            self.enc[f"enc{s}"] = stage
        self.apply(init_weights)

    def forward(self, batch: PointBatch, mask: Tensor | None = None) -> list[Stage]:
        """Encode a batch.

        Args:
            batch: N points with ``in_channels`` feature columns.
            mask: bool (N,), True where the embedding is replaced by the mask token; None for no masking.

        Returns:
            One :class:`Stage` per resolution, finest first; ``stages[0].feat`` has one row per point of
            ``batch``.

        Raises:
            ValueError: a wrong number of feature columns, a bad mask, or a lattice cell beyond
                ``depth_bits``.
        """
        in_channels = self.embedding.stem["linear"].in_features
        if batch.feat.dim() != 2 or batch.feat.shape[1] != in_channels:
            raise ValueError(
                f"the encoder expects {in_channels} feature columns, "
                f"the batch has {tuple(batch.feat.shape[1:])} {batch.columns}; "
                "the transforms must be those the encoder was built for"
            )
        x = self.embedding(batch.feat, mask)
        coord, grid, offsets, members = batch.coord, batch.grid, batch.offsets, None
        stages: list[Stage] = []
        for s, depth in enumerate(self.depths):
            modules = self.enc[f"enc{s}"]
            if s > 0:
                pooling = pool_cells(grid, offsets, stride=2)
                x = modules["down"](x, pooling.segments)
                coord = segment_reduce(coord, pooling.segments, len(pooling.grid), "mean")
                grid, offsets, members = pooling.grid, pooling.offsets, pooling.segments
            # With fewer blocks than curves only the first few of the shuffled list are needed.
            curves = self.stage_curves()[: max(depth, 1)]
            bits = self.depth_bits - s if isinstance(self.depth_bits, int) else self.depth_bits
            geometry = stage_geometry(grid, offsets, curves, bits, self.stage_window(offsets))
            for i in range(depth):
                x = modules[f"block{i}"](x, geometry, i % len(curves))
            stages.append(Stage(x, coord, grid, offsets, members, geometry))
        return stages

    def layers(self) -> list[list[nn.Module]]:
        """What the input passes one after the other: the embedding, then each block with the pooling before it, the
        block last in its list."""
        layers: list[list[nn.Module]] = [[self.embedding]]
        for stage, depth in zip(self.enc.values(), self.depths, strict=True):
            blocks: list[list[nn.Module]] = [[stage[f"block{i}"]] for i in range(depth)]
            if "down" in stage:
                blocks = [[stage["down"], *blocks[0]], *blocks[1:]] if blocks else [[stage["down"]]]
            layers += blocks
        return layers

    def stage_curves(self) -> list[str]:
        """The list of curves, shuffled by torch's CPU generator where ``shuffle_orders`` asks for it."""
        if self.shuffle_orders == "never" or (self.shuffle_orders == "train" and not self.training):
            return list(self.curves)
        return [self.curves[i] for i in torch.randperm(len(self.curves), device="cpu").tolist()]

    def point_features(self, batch: PointBatch) -> Tensor:
        """(N, sum of channels): all stages carried up to the points, what a probe reads."""
        return upcast(self(batch))

    def stage_window(self, offsets: Tensor) -> int:
        counts = offsets.diff()
        counts = counts[counts > 0]
        if self.window_rule == "fixed" or len(counts) == 0:
            return self.window
        return min(self.window, int(counts.min()))


def init_weights(module: nn.Module) -> None:
    """Truncated normal of width 0.02 for linear and convolution weights, zero for their biases."""
    if isinstance(module, (nn.Linear, SubmanifoldConv)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def upcast(stages: list[Stage], levels: int | None = None) -> Tensor:
    """Coarse features brought to finer points and set side by side, without parameters.

    Args:
        stages: result of :class:`PointTransformerV3`.
        levels: how many stages to climb from the coarsest; None climbs to the finest.

    Returns:
        (N_s, C_s + ... + C_last) with s = len(stages) - 1 - levels, finest channels first.

    Raises:
        ValueError: more levels than there are stages to climb.
    """
    top = len(stages) - 1
    levels = top if levels is None else levels
    if not 0 <= levels <= top:
        raise ValueError(f"levels must be 0..{top} for {len(stages)} stages, found {levels}")
    x = stages[top].feat
    for s in range(top, top - levels, -1):
        x = torch.cat([stages[s - 1].feat, take(x, stages[s].members)], dim=1)
    return x


def pool_mean(x: Tensor, stages: list[Stage], level: int) -> Tensor:
    """Carry a per-point quantity to a coarser stage, as the encoder does with coordinates.

    Each stage takes the mean over the members of a cell, therefore the result is a mean of means.

    Args:
        x: float (N_0, C).
        stages: result of :class:`PointTransformerV3`.
        level: the stage to carry to, 0 is the finest.

    Returns:
        float (N_level, C).

    Raises:
        ValueError: no such stage.
    """
    if not 0 <= level < len(stages):
        raise ValueError(f"level must be 0..{len(stages) - 1}, found {level}")
    for stage in stages[1 : level + 1]:
        x = segment_reduce(x, stage.members, len(stage.grid), "mean")
    return x
