"""Sparse UResNet: the supervised segmentation network of liquid-argon events.

Dominé, Terao, arXiv 1903.05663; layers as in DeepLearnPhysics/spine (model/cnn/uresnet_layers.py, blocks.py): a
residual U-Net of sparse convolutions on the voxel lattice, whose widths grow linearly, F·(1 … D).

    input    conv 3³, 1 → F
    encoder  level l = 0 … D-1: R blocks at (l+1)F; then, but at the deepest, norm, act, conv 2³ of stride 2
    decoder  level l = D-2 … 0: norm, act, transposed conv 2³ to (l+1)F; beside it the encoder's; R blocks, the first of
             which halves the width
    output   norm, act, linear F → K
    block    norm, act, conv 3³, norm, act, conv 3³; plus the input

Shape legend: N_l points of level l, F filters, D levels, R blocks per level, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, leaky_relu

from nufm.data.event import PointBatch
from nufm.models.layers import SparseConv
from nufm.models.segmenter import SemanticModel
from nufm.ops.kernel_map import KernelMap, strided_map, submanifold_map


class NormAct(nn.Module):
    """Batch normalisation (ε 1e-4) and leaky ReLU (slope 0.33), (N, C) -> (N, C)."""

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        # A module of its own, so that --trainer.sync_batchnorm can put a synchronised one in its place.
        self.norm = nn.BatchNorm1d(channels, eps=1e-4, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if isinstance(norm, nn.BatchNorm1d) and len(x) == 1:
            # One point has no variance: the running statistics take its place, where PyTorch would refuse it.
            x = batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            x = norm(x)
        return leaky_relu(x, 0.33, inplace=True)


class Residual(nn.Module):
    """Two pre-activated convolutions added to their input, (N, Ci) -> (N, Co)."""

    def __init__(self, in_channels: int, channels: int, momentum: float) -> None:
        super().__init__()
        same = in_channels == channels
        self.skip = nn.Identity() if same else nn.Linear(in_channels, channels, bias=False)
        self.first_norm, self.first = NormAct(in_channels, momentum), SparseConv(in_channels, channels)
        self.second_norm, self.second = NormAct(channels, momentum), SparseConv(channels, channels)

    def forward(self, x: Tensor, pairs: KernelMap) -> Tensor:
        y = self.first(self.first_norm(x), pairs)
        return self.skip(x) + self.second(self.second_norm(y), pairs)


class UResNet(SemanticModel):
    """Residual U-Net on voxels: batch -> logits (N, K). The defaults are those of SPINE: 10,956,229 parameters.

    Convolutions on the lattice are translation-equivariant: coordinates are no input, only the columns named.

    Args:
        columns: input columns of the batch; published is the voxel energy in MeV alone, as
            ``nufm.data.transforms.RawEnergy`` makes it.
        filters: F.
        depth: D; the coarsest cells are 2^(D-1) voxels wide.
        repetitions: R.
        n_classes: K.
        norm_momentum: share of a batch in the running statistics of the norms. With the published 0.01 a training of
            few hundred steps is evaluated with statistics that still hold much of their start, 0 and 1.
    """

    def __init__(
        self,
        columns: Sequence[str] = ("energy",),
        filters: int = 32,
        depth: int = 5,
        repetitions: int = 2,
        n_classes: int = 5,
        norm_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if not columns or min(filters, depth, repetitions, n_classes) < 1:
            raise ValueError(
                f"columns {tuple(columns)}, filters {filters}, depth {depth}, repetitions {repetitions}, n_classes "
                f"{n_classes}: expected at least one of each"
            )
        self.arguments: dict[str, Any] = {
            "columns": list(columns),
            "filters": filters,
            "depth": depth,
            "repetitions": repetitions,
            "n_classes": n_classes,
            "norm_momentum": norm_momentum,
        }
        self.columns, self.depth, self.n_classes = tuple(columns), depth, n_classes
        width = [filters * (level + 1) for level in range(depth)]
        self.input = SparseConv(len(columns), filters)
        self.encoder_blocks = nn.ModuleList(_blocks(w, w, repetitions, norm_momentum) for w in width)
        self.down_norms = nn.ModuleList(NormAct(w, norm_momentum) for w in width[:-1])
        self.downs = nn.ModuleList(SparseConv(a, b, 2) for a, b in itertools.pairwise(width))
        self.up_norms = nn.ModuleList(NormAct(w, norm_momentum) for w in width[1:])
        self.ups = nn.ModuleList(SparseConv(b, a, 2) for a, b in itertools.pairwise(width))
        self.decoder_blocks = nn.ModuleList(_blocks(2 * w, w, repetitions, norm_momentum) for w in width[:-1])
        self.output_norm = NormAct(filters, norm_momentum)
        self.output = nn.Linear(filters, n_classes)

    def forward(self, batch: PointBatch) -> Tensor:
        """Logits (N, K) of a batch.

        Raises:
            ValueError: the batch lacks a column.
        """
        if missing := [c for c in self.columns if c not in batch.columns]:
            raise ValueError(
                f"the network reads the columns {self.columns}, the batch has {batch.columns}, without {missing}; "
                "the voxel energy in MeV is made by the transform nufm.data.transforms.RawEnergy"
            )
        x = batch.feat[:, [batch.columns.index(c) for c in self.columns]]
        grid, offsets = batch.grid, batch.offsets
        around = [submanifold_map(grid, offsets)]
        down: list[KernelMap] = []
        x, skips = self.input(x, around[0]), []
        for level in range(self.depth):
            for block in self.encoder_blocks[level]:
                x = block(x, around[level])
            if level < self.depth - 1:
                skips.append(x)
                coarse = strided_map(grid, offsets, 2)
                grid, offsets = coarse.grid, coarse.offsets
                down.append(coarse.map)
                around.append(submanifold_map(grid, offsets))
                x = self.downs[level](self.down_norms[level](x), coarse.map)
        for level in range(self.depth - 2, -1, -1):
            x = self.ups[level](self.up_norms[level](x), down[level].transposed)
            x = torch.cat([skips[level], x], dim=1)
            for block in self.decoder_blocks[level]:
                x = block(x, around[level])
        return self.output(self.output_norm(x))


def _blocks(in_channels: int, channels: int, repetitions: int, momentum: float) -> nn.ModuleList:
    widths = [in_channels, *[channels] * (repetitions - 1)]
    return nn.ModuleList(Residual(width, channels, momentum) for width in widths)
