"""No result of a model depends on the backend: the same encoder, forward and backward, through each that is there."""

import math

import pytest
import torch

from nufm.data.event import PointBatch, offsets_from_counts
from nufm.models.ptv3 import PointTransformerV3
from nufm.ops import dispatch
from nufm.ops.dispatch import BACKENDS, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = dict(depths=(1, 1), channels=(16, 48), heads=(1, 3), window=16, layer_scale=1.0)
# Share of the largest value. Ours compute in float32 with sums in another order; attention of the packages knows half
# precision only, to which the model then rounds (float16: 11 bits).
TOLERANCE = {"triton": 2e-5, "torch_scatter": 2e-5, "spconv": 2e-5, "flash_attn": 2e-2, "torch_varlen": 2e-2}


def make_batch(counts=(24, 0, 1, 9)):
    coords = []
    for n in counts:
        generator = torch.Generator().manual_seed(n)
        walk = torch.randint(-1, 2, (6 * n + 8, 3), generator=generator).cumsum(0)
        cells = torch.unique(walk, dim=0)
        coords.append(cells[torch.randperm(len(cells), generator=generator)[:n]])
    grid = torch.cat([c - c.amin(0) if len(c) else c for c in coords])
    coord = torch.cat(coords).float() * 0.01
    feat = torch.cat([coord, torch.sin(1000 * coord.sum(1, keepdim=True))], 1)
    batch = PointBatch(coord, grid, feat, offsets_from_counts(torch.tensor([len(c) for c in coords])))
    return batch.to(DEVICE)


def forward_backward(model, batch):
    """Features of all stages, then the gradient of each parameter."""
    model.zero_grad()
    stages = model(batch)
    generator = torch.Generator().manual_seed(0)
    total = sum((s.feat * torch.randn(s.feat.shape, generator=generator).to(s.feat)).sum() for s in stages)
    total.backward()
    results = {f"stage {i}": s.feat.detach().double() for i, s in enumerate(stages)}
    grids = [s.grid for s in stages]
    return grids, results | {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_encoder(backend, monkeypatch):
    module = dispatch.load(backend)
    missing = module if isinstance(module, str) else module.unavailable()
    if missing is not None:
        pytest.skip(f"{backend}: {missing}")
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    model = PointTransformerV3(**TINY).to(DEVICE).eval()
    for name, p in model.named_parameters():
        if p.dim() > 1:  # large enough that every branch matters
            torch.nn.init.normal_(p, std=1 / math.sqrt(p[0].numel() / (9 if "cpe.0" in name else 1)))
    batch = make_batch()
    with use_backend("torch"):
        grids, wanted = forward_backward(model, batch)
    half = DEVICE == "cuda" and backend in ("flash_attn", "torch_varlen")
    monkeypatch.setattr(dispatch, "_used", {})
    with use_backend(backend, "torch"), torch.autocast(DEVICE, torch.float16, enabled=half):
        found_grids, found = forward_backward(model, batch)
    assert any(backend in names for names in dispatch.used().values()), f"{backend} has run no op"
    assert all(torch.equal(a, b) for a, b in zip(grids, found_grids, strict=True))
    assert found.keys() == wanted.keys()
    # Gradients of biases before a mean vanish in exact arithmetic: errors are a share of the largest gradient of all.
    largest = max(x.abs().max() for name, x in wanted.items() if not name.startswith("stage"))
    for name, x in wanted.items():
        scale = x.abs().max() if name.startswith("stage") else torch.maximum(x.abs().max(), 1e-2 * largest)
        error = (found[name] - x).abs().max()
        assert error <= TOLERANCE[backend] * scale, f"{name}: {error} of {scale}"
