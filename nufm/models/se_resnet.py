"""Siamese SE-ResNet: one convolutional branch per view, their features side by side, more residual blocks.

arXiv 2509.08461, §3 (the baseline "CNN"), in the style of the DUNE CVN (Phys. Rev. D 102 (2020) 092003, an SE-ResNet-34
with one branch per view); squeeze and excitation: Hu et al., arXiv 1709.01507; pre-activation: He et al., arXiv
1603.05027.

    branch  conv 7×7 of stride 2, max pooling 3×3 of stride 2, the first stages (one view, C_0 … C_{m-1} channels)
    both    channels of the branches side by side; the stages that are left
    head    norm, ReLU, mean over all pixels, linear to the classes
    stage   R_s blocks, the first of stride 2 (not in the first stage)
    block   norm, ReLU, conv 3×3, norm, ReLU, conv 3×3, squeeze and excitation; plus the input, through a 1×1
            convolution where shapes change

The paper gives 21.7 M parameters, but neither how many blocks are where, nor whether the branches share weights. Here
stages have the blocks and channels of ResNet-34, branches have weights of their own (the views differ: one is along the
drift) and are joined after the first stage, and every block has squeeze and excitation with reduction 16: 21,748,219
parameters (21,521,391 with shared weights).

Shape legend: B events, V = 2 views, H rows, W columns, C_s channels of stage s, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from nufm.data.images import VIEWS, ImageBatch
from nufm.models.image_network import ImageNetwork, checked_image


class SqueezeExcite(nn.Module):
    """Channels weighted by a function of their means, (B, C, h, w) -> (B, C, h, w); arXiv 1709.01507, eq. 2-4."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.sigmoid(self.excite(relu(self.squeeze(x.mean((2, 3))))))
        return x * weight[:, :, None, None]


class Block(nn.Module):
    """Two pre-activated 3×3 convolutions with squeeze and excitation, added to their input:
    (B, Ci, h, w) -> (B, Co, h/stride, w/stride), rounded up."""

    def __init__(self, in_channels: int, channels: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.attention = SqueezeExcite(channels, reduction)
        same = in_channels == channels and stride == 1
        self.skip = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.norm1(x))
        skip = x if self.skip is None else self.skip(y)
        y = self.conv2(relu(self.norm2(self.conv1(y))))
        return skip + self.attention(y)


class SiameseSEResNet(ImageNetwork):
    """Logits of an event from its two views. The defaults have the published size.

    Maps may have any size; a map of less than 32 × 32 pixels ends as one pixel.

    Args:
        n_classes: K.
        channels: C_s.
        blocks: R_s, residual blocks of each stage.
        joined_after: m, stages of each branch before the two are put side by side; the rest sees both.
        shared: whether the branches have the same weights (not stated in the paper).
        reduction: channels over hidden channels of squeeze and excitation.

    Raises:
        ValueError: lengths of channels and blocks that differ, a stage without blocks or channels, no stage before or
            none after the branches are joined.
    """

    def __init__(
        self,
        n_classes: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (3, 4, 6, 3),
        joined_after: int = 1,
        shared: bool = False,
        reduction: int = 16,
    ) -> None:
        super().__init__(n_classes)
        if len(channels) != len(blocks) or min(*channels, *blocks, reduction) < 1:
            raise ValueError(
                f"channels {list(channels)}, blocks {list(blocks)}, reduction {reduction}: expected one number of "
                "channels and of blocks per stage, all at least 1"
            )
        if not 1 <= joined_after < len(channels):
            raise ValueError(f"joined_after is {joined_after}, expected 1 … {len(channels) - 1}, stages on both sides")
        self.arguments = {
            "n_classes": n_classes,
            "channels": list(channels),
            "blocks": list(blocks),
            "joined_after": joined_after,
            "shared": shared,
            "reduction": reduction,
        }
        alone = channels[:joined_after], blocks[:joined_after]
        self.branches = nn.ModuleList(_branch(*alone, reduction) for _ in range(1 if shared else len(VIEWS)))
        width, trunk = len(VIEWS) * channels[joined_after - 1], []
        for c, n in zip(channels[joined_after:], blocks[joined_after:], strict=True):
            trunk += _stage(width, c, n, 2, reduction)
            width = c
        self.trunk, self.norm = nn.Sequential(*trunk), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, n_classes)
        self.apply(_init)

    def event_features(self, batch: ImageBatch) -> Tensor:
        image = checked_image(batch)
        branches = [self.branches[i % len(self.branches)] for i in range(len(VIEWS))]
        # Memory order of pixels with their channels together: twice as fast on CPUs.
        x = torch.cat(
            [
                branch(image[:, i : i + 1].contiguous(memory_format=torch.channels_last))
                for i, branch in enumerate(branches)
            ],
            dim=1,
        )
        return relu(self.norm(self.trunk(x))).mean((2, 3))


def _branch(channels: Sequence[int], blocks: Sequence[int], reduction: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, channels[0], 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
    width = channels[0]
    for s, (c, n) in enumerate(zip(channels, blocks, strict=True)):
        layers += _stage(width, c, n, 2 if s else 1, reduction)
        width = c
    return nn.Sequential(*layers)


def _stage(in_channels: int, channels: int, blocks: int, stride: int, reduction: int) -> list[nn.Module]:
    first = Block(in_channels, channels, stride, reduction)
    return [first, *(Block(channels, channels, 1, reduction) for _ in range(blocks - 1))]


def _init(module: nn.Module) -> None:
    """He et al., arXiv 1502.01852, for convolutions."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
