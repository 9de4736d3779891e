"""Layers that several networks share. Shape legend: N input points, M output points, Ci and Co channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nufm.ops.kernel_map import KernelMap
from nufm.ops.sparse_conv import sparse_conv


class SparseConv(nn.Module):
    """Convolution over the pairs of a kernel map, (N, Ci) -> (M, Co).

    Args:
        in_channels, channels: Ci and Co.
        kernel_size: taps along each axis.
        bias: add a learned bias, which starts at 0.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int = 3, bias: bool = False) -> None:
        super().__init__()
        # Shape (Co, k, k, k, Ci) as in spconv, but tap by tap in memory, as the products read it.
        weight = torch.empty(*(kernel_size,) * 3, in_channels, channels).permute(4, 0, 1, 2, 3)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He et al., arXiv 1502.01852, for all taps."""
        nn.init.normal_(self.weight, std=(2 / self.weight[0].numel()) ** 0.5)

    def forward(self, x: Tensor, pairs: KernelMap) -> Tensor:
        """In autocast's dtype where autocast is on, else in that of the weights."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return sparse_conv(x.to(dtype), pairs, self.weight.to(dtype), bias)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the precision of its weights, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class MLP(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


def drop_rows(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al., arXiv 1603.09382) row by row: in training a row of (N, C) is 0 with probability
    ``rate``, and the others are scaled so that the mean stays."""
    if not training or rate == 0:
        return branch
    keep = 1 - rate
    return branch * (torch.rand(len(branch), 1, device=branch.device) < keep).to(branch.dtype).div_(keep)
