"""Sparse ResNet encoder: a stem, then stages of residual blocks with a strided convolution between them.

The network of a public comparison of sparse-convolution libraries (youngsm/sparse-conv-benchmarks,
src/spconv_bench/networks/spec.py): a supervised convolutional encoder for voxels of a liquid-argon detector.

    stem     conv 3³ submanifold, norm, ReLU
    stage 0  blocks
    stage s  conv 3³ of stride 2, norm, ReLU; blocks
    block    conv 3³, norm, ReLU, conv 3³, norm; plus the input; ReLU

A strided convolution writes to the coarse cells that hold a point (``grid // 2``), as MinkowskiEngine and WarpConvNet
do. spconv's regular convolution also writes to empty cells beside them.

Shape legend: N_s points of stage s, C_s channels, B events.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import relu

from nufm.models.layers import SparseConv
from nufm.ops.kernel_map import KernelMap, strided_map, submanifold_map

# Name -> channels of the stages, blocks in each. 1.47, 10.6 and 61.1 million parameters.
SPECS: dict[str, tuple[tuple[int, ...], int]] = {
    "small": ((16, 32, 64, 128), 1),
    "medium": ((32, 64, 128, 256), 2),
    "large": ((64, 128, 256, 512), 3),
}


@dataclass(frozen=True, eq=False)
class Level:
    """What the convolutions of a stage need to know of the coordinates.

    Attributes:
        down: map from the points of the stage before; None at stage 0.
        around: map of the submanifold convolutions.
        grid: int64 (N_s, 3).
        offsets: int64 (B+1,) from 0 to N_s.
    """

    down: KernelMap | None
    around: KernelMap
    grid: Tensor
    offsets: Tensor


def make_levels(grid: Tensor, offsets: Tensor, stages: int) -> list[Level]:
    """Kernel maps of every stage.

    Args:
        grid: int64 (N, 3), >= 0.
        offsets: int64 (B+1,) from 0 to N.
        stages: how many; each is twice as coarse as the one before.

    Raises:
        ValueError: as :func:`nufm.ops.kernel_map.submanifold_map`.
    """
    levels = [Level(None, submanifold_map(grid, offsets), grid, offsets)]
    for _ in range(stages - 1):
        coarse = strided_map(levels[-1].grid, levels[-1].offsets, kernel_size=3, stride=2)
        levels.append(Level(coarse.map, submanifold_map(coarse.grid, coarse.offsets), coarse.grid, coarse.offsets))
    return levels


class ConvNorm(nn.Module):
    """3³ convolution without bias and batch normalisation, (N, Ci) -> (M, Co)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = SparseConv(in_channels, channels)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, pairs: KernelMap) -> Tensor:
        return self.norm(self.conv(x, pairs))


class Block(nn.Module):
    """Two convolutions added to their input, (N, C) -> (N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, channels)
        self.second = ConvNorm(channels, channels)

    def forward(self, x: Tensor, pairs: KernelMap) -> Tensor:
        y = relu(self.first(x, pairs), inplace=True)
        return relu(self.second(y, pairs).add_(x), inplace=True)


class SparseResNet(nn.Module):
    """Features of every stage, finest first.

    Args:
        in_channels: columns of the input features (1: energy).
        channels: C_s of the stages.
        blocks: residual blocks in each stage.
    """

    def __init__(self, in_channels: int = 1, channels: Sequence[int] = (32, 64, 128, 256), blocks: int = 2) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.stem = ConvNorm(in_channels, channels[0])
        self.down = nn.ModuleList(ConvNorm(a, b) for a, b in itertools.pairwise(channels))
        self.stages = nn.ModuleList(nn.ModuleList(Block(c) for _ in range(blocks)) for c in channels)

    @classmethod
    def named(cls, name: str, in_channels: int = 1) -> SparseResNet:
        """The ``small``, ``medium`` or ``large`` network of :data:`SPECS`."""
        if name not in SPECS:
            raise ValueError(f"unknown network '{name}', expected one of {', '.join(SPECS)}")
        channels, blocks = SPECS[name]
        return cls(in_channels, channels, blocks)

    def forward(self, feat: Tensor, levels: Sequence[Level]) -> list[Tensor]:
        """Encode packed points.

        Args:
            feat: float (N, in_channels).
            levels: of :func:`make_levels` with as many stages as the network has.

        Returns:
            One (N_s, C_s) per stage, in autocast's dtype where autocast is on.

        Raises:
            ValueError: a number of levels that is not the number of stages.
        """
        if len(levels) != len(self.stages):
            raise ValueError(f"the network has {len(self.stages)} stages, found {len(levels)} levels")
        x = relu(self.stem(feat, levels[0].around), inplace=True)
        results = []
        for s, (level, blocks) in enumerate(zip(levels, self.stages, strict=True)):
            if level.down is not None:
                x = relu(self.down[s - 1](x, level.down), inplace=True)
            for block in blocks:
                x = block(x, level.around)
            results.append(x)
        return results
