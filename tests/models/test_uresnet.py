"""The sparse UResNet: parameter sums of its configuration, dense convolutions as the second derivation, edges."""

from __future__ import annotations

import pytest
import torch
from models.test_sparse_resnet import dense_conv
from torch.nn import functional as F
from unusual_weights import unusual

from nufm.data.event import PointBatch, offsets_from_counts
from nufm.models.uresnet import UResNet


def batch_of(grids, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    grid = torch.cat(grids)
    energy = torch.rand(len(grid), 1, generator=generator, dtype=dtype) + 0.1
    feat = torch.cat([grid.to(dtype), energy], 1)
    offsets = offsets_from_counts(torch.tensor([len(g) for g in grids]))
    return PointBatch(grid.to(dtype), grid, feat, offsets, columns=("x", "y", "z", "energy"))


def some_cells(edge=8, share=0.3, seed=0):
    return (torch.rand(edge, edge, edge, generator=torch.Generator().manual_seed(seed)) < share).nonzero()


@pytest.mark.parametrize(
    ("filters", "depth", "count"),
    [(32, 5, 10_956_229), (16, 5, 2_741_477), (32, 6, 18_940_101), (32, 7, 30_102_149)],
)
def test_parameter_counts(filters, depth, count):
    with torch.device("meta"):
        model = UResNet(filters=filters, depth=depth)
    assert sum(p.numel() for p in model.parameters()) == count


def test_parts_of_the_count():
    """Encoder 6,415,584 (with the input convolution), decoder 4,540,416, output 229 (with its norm)."""
    with torch.device("meta"):
        model = UResNet()

    def count(*modules):
        return sum(p.numel() for m in modules for p in m.parameters())

    assert count(model.input, model.encoder_blocks, model.down_norms, model.downs) == 6_415_584
    assert count(model.up_norms, model.ups, model.decoder_blocks) == 4_540_416
    assert count(model.output_norm, model.output) == 229


def test_equals_dense_convolutions():
    """Three levels in evaluation against conv3d and conv_transpose3d, the encoder's features first in the skips."""
    torch.manual_seed(1)
    model = unusual(UResNet(filters=3, depth=3, repetitions=2, n_classes=4).double()).eval()
    grid = some_cells()
    grid = torch.cat([grid, torch.tensor([[0, 0, 0], [7, 7, 7]])]).unique(dim=0)
    batch = batch_of([grid])
    masks = [torch.zeros(8, 8, 8, dtype=torch.float64)]
    masks[0][tuple(grid.T)] = 1
    for _ in range(2):
        masks.append(F.max_pool3d(masks[-1][None], 2)[0])

    def norm_act(norm, x, mask):
        norm = norm.norm
        scale = norm.weight / (norm.running_var + 1e-4).sqrt()
        y = x * scale[:, None, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None, None]
        return F.leaky_relu(y, 0.33) * mask

    def block(b, x, mask):
        y = dense_conv(norm_act(b.first_norm, x, mask), b.first.weight, mask)
        y = dense_conv(norm_act(b.second_norm, y, mask), b.second.weight, mask)
        if isinstance(b.skip, torch.nn.Linear):
            x = torch.einsum("oi,nixyz->noxyz", b.skip.weight, x)
        return x + y

    x = torch.zeros(1, 1, 8, 8, 8, dtype=torch.float64)
    x[0, 0][tuple(grid.T)] = batch.feat[:, 3]
    x, skips = dense_conv(x, model.input.weight, masks[0]), []
    for level in range(3):
        for b in model.encoder_blocks[level]:
            x = block(b, x, masks[level])
        if level < 2:
            skips.append(x)
            kernel = model.downs[level].weight.permute(0, 4, 1, 2, 3)
            x = F.conv3d(norm_act(model.down_norms[level], x, masks[level]), kernel, stride=2) * masks[level + 1]
    for level in (1, 0):
        kernel = model.ups[level].weight.permute(4, 0, 1, 2, 3)  # (Ci, Co, kx, ky, kz)
        x = F.conv_transpose3d(norm_act(model.up_norms[level], x, masks[level + 1]), kernel, stride=2) * masks[level]
        x = torch.cat([skips[level], x], 1)
        for b in model.decoder_blocks[level]:
            x = block(b, x, masks[level])
    x = norm_act(model.output_norm, x, masks[0])
    expected = model.output(x[0][:, grid[:, 0], grid[:, 1], grid[:, 2]].T)
    torch.testing.assert_close(model(batch), expected)


def test_batch_mates_do_not_matter_in_evaluation():
    model = unusual(UResNet(filters=4, depth=3).double()).eval()
    grids = [some_cells(seed=s, share=0.2) for s in range(3)]
    batch = batch_of(grids)
    together = model(batch)
    for b, one in enumerate(batch.split()):
        torch.testing.assert_close(model(one), together[batch.offsets[b] : batch.offsets[b + 1]])


def test_translation_by_the_coarsest_cell():
    model = unusual(UResNet(filters=4, depth=3).double()).eval()
    grid = some_cells()
    batch = batch_of([grid])
    moved = batch.replace(grid=grid + torch.tensor([4, 8, 12]))
    torch.testing.assert_close(model(moved), model(batch))


@pytest.mark.parametrize("grids", [[(0, 3)], [(1, 3)], [(0, 3), (1, 3), (2, 3)]])
def test_small_and_empty_events_also_in_training(grids):
    """One voxel has no variance to normalise with."""
    model = UResNet(filters=4, depth=3, n_classes=2).double().train()
    batch = batch_of([torch.arange(n * 3).view(n, 3) for n, _ in grids])
    logits = model(batch)
    assert logits.shape == (sum(n for n, _ in grids), 2) and logits.isfinite().all()
    logits.sum().backward()


def test_synchronised_norms_keep_the_activations():
    """PyTorch puts other modules in the place of batch norms (trainer.sync_batchnorm): nothing else may go."""
    model = unusual(UResNet(filters=4, depth=2).double()).eval()
    batch = batch_of([some_cells()])
    before = model(batch)
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in converted.modules())
    torch.testing.assert_close(converted(batch), before)


def test_gradients_reach_every_parameter():
    model = UResNet(filters=4, depth=3)
    model(batch_of([some_cells()], dtype=torch.float32)).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_missing_column_is_named():
    batch = batch_of([some_cells()])
    with pytest.raises(ValueError, match=r"\['energy'\].*RawEnergy"):
        UResNet(filters=4)(batch.replace(columns=("x", "y", "z", "log_energy")))
    with pytest.raises(ValueError, match="at least one"):
        UResNet(depth=0)
