"""The sparse ResNet against dense convolutions, and the published parameter counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from unusual_weights import unusual

from nufm.models.sparse_resnet import SparseResNet, make_levels

# youngsm/sparse-conv-benchmarks, results/h200/results.csv
PUBLISHED_PARAMETERS = {"small": 1_467_216, "medium": 10_567_200, "large": 61_061_952}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    with torch.device("meta"):
        model = SparseResNet.named(name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_PARAMETERS[name]


def test_unknown_name():
    with pytest.raises(ValueError, match="small, medium, large"):
        SparseResNet.named("huge")


def points(edge=8, share=0.3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    grid = (torch.rand(edge, edge, edge, generator=generator) < share).nonzero()
    return grid, torch.randn(len(grid), 1, generator=generator, dtype=dtype)


def dense_conv(volume, weight, mask, stride=1):
    """Convolution of a dense (1, C, X, Y, Z) volume, zero where ``mask`` (X, Y, Z) has no point."""
    kernel = weight.permute(0, 4, 1, 2, 3)  # (Co, kx, ky, kz, Ci) -> (Co, Ci, kx, ky, kz)
    return F.conv3d(volume, kernel, stride=stride, padding=1) * mask


def dense_block(block, volume, mask):
    def norm(conv, x):
        scale = conv.norm.weight / (conv.norm.running_var + conv.norm.eps).sqrt()
        shift = conv.norm.bias - conv.norm.running_mean * scale
        return (x * scale[:, None, None, None] + shift[:, None, None, None]) * mask

    y = norm(block.first, dense_conv(volume, block.first.conv.weight, mask)).relu()
    return (norm(block.second, dense_conv(y, block.second.conv.weight, mask)) + volume).relu()


def test_equals_dense_convolutions():
    """Two stages in evaluation, with batch-norm statistics that are not the initial ones."""
    torch.manual_seed(1)
    model = unusual(SparseResNet(1, (4, 6), 1).double()).eval()
    grid, feat = points()
    found = model(feat, make_levels(grid, torch.tensor([0, len(grid)]), 2))

    volume = torch.zeros(1, 1, 8, 8, 8, dtype=torch.float64)
    x, y, z = grid.t()
    volume[0, 0, x, y, z] = feat[:, 0]
    mask = torch.zeros(8, 8, 8, dtype=torch.float64)
    mask[x, y, z] = 1
    coarse_mask = F.max_pool3d(mask[None, None], 2)[0, 0]

    def conv_norm_relu(conv, x, mask, stride=1):
        y = dense_conv(x, conv.conv.weight, mask, stride)
        y = F.batch_norm(y, conv.norm.running_mean, conv.norm.running_var, conv.norm.weight, conv.norm.bias)
        return y.relu() * mask

    fine = dense_block(model.stages[0][0], conv_norm_relu(model.stem, volume, mask), mask)
    torch.testing.assert_close(found[0], fine[0, :, x, y, z].t())
    coarse = dense_block(model.stages[1][0], conv_norm_relu(model.down[0], fine, coarse_mask, 2), coarse_mask)
    x, y, z = coarse_mask.nonzero().t()
    torch.testing.assert_close(found[1], coarse[0, :, x, y, z].t())


def test_gradients_reach_every_parameter_also_in_bfloat16():
    torch.manual_seed(0)
    model = SparseResNet(1, (4, 8), 1)
    grid, feat = points(dtype=torch.float32)
    levels = make_levels(grid, torch.tensor([0, 0, len(grid)]), 2)  # an empty event before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(feat, levels)[-1]
    assert out.dtype == torch.bfloat16
    (out.float() ** 2).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_levels_must_fit():
    grid, feat = points(edge=4, dtype=torch.float32)
    with pytest.raises(ValueError, match="4 stages, found 2 levels"):
        SparseResNet()(feat, make_levels(grid, torch.tensor([0, len(grid)]), 2))
