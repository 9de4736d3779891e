"""The segmenter on tokens: published counts, a second derivation event by event, invariances, edges, exports."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from models.test_ptv3 import make_batch
from torch import Tensor, nn
from unusual_weights import unusual

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.data.event import Event, PointBatch
from nufm.data.transforms import LogEnergy, NormalizeCoord, WithoutLED
from nufm.models.token_encoder import TokenEncoder
from nufm.models.token_segmenter import LinearTokenSegmenter, TokenSegmenter
from nufm.models.tokens import Tokenizer

ENCODER = {"channels": 24, "depth": 3, "heads": 2, "feature_blocks": (0, 2), "drop_path": 0.0, "attention_dropout": 0.0}
RADIUS = 0.04  # make_batch has its points on a lattice of 0.01


def small(n_classes: int = 4, radius: float = RADIUS) -> TokenSegmenter:
    torch.manual_seed(0)
    encoder = TokenEncoder(Tokenizer(radius=radius, max_points=12), **ENCODER)
    return unusual(TokenSegmenter(encoder, n_classes, hidden=20)).eval()


@pytest.fixture
def segmenter() -> TokenSegmenter:
    return small()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_counts():
    """Sheet of the released model: upsampler 297,600, head 723,460, with the encoder 22,858,628; 18 tensors more."""
    with torch.device("meta"):
        model = TokenSegmenter(TokenEncoder())
        linear = model.without_decoder()
    assert count(model.upsampler) == 297_600
    assert count(model.head) == 723_460
    assert count(model.encoder) == 21_837_568
    assert count(model) == 22_858_628
    assert count(linear) - count(model.encoder) == 384 * 4 + 4
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if k.endswith("weight") and "encoder" not in k}
    assert shapes == {
        "upsampler.0.weight": (384, 387), "upsampler.1.weight": (384,),
        "upsampler.3.weight": (384, 384), "upsampler.4.weight": (384,),
        "head.0.weight": (512, 1152), "head.1.weight": (512,),
        "head.4.weight": (256, 512), "head.5.weight": (256,), "head.7.weight": (4, 256),
    }  # fmt: skip


def norm(x: Tensor, layer: nn.BatchNorm1d) -> Tensor:
    return (x - layer.running_mean) / (layer.running_var + 1e-5).sqrt() * layer.weight + layer.bias


def one_event(model: TokenSegmenter, batch: PointBatch) -> Tensor:
    """Logits of one event: concatenations written out as published, tokens searched by brute force."""
    encoded, coord = model.encoder(batch), batch.coord
    feat = model.encoder.token_features(encoded)
    square = (coord[:, None] - encoded.tokens.centre[None]).square().sum(2)
    near = square.argsort(1)[:, :5]
    weight = 1 / (square.gather(1, near) + torch.finfo(torch.float32).eps)
    interpolated = (feat[near] * (weight / weight.sum(1, keepdim=True))[..., None]).sum(1)
    up, head = model.upsampler, model.head
    x = torch.cat([coord, interpolated], 1)
    x = norm(x @ up[0].weight.T, up[1]).relu()
    x = norm(x @ up[3].weight.T, up[4]).relu()
    context = torch.cat([feat.amax(0), feat.mean(0)])
    x = torch.cat([x, context.expand(len(x), -1)], 1)
    x = norm(x @ head[0].weight.T, head[1]).relu()
    x = norm(x @ head[4].weight.T, head[5]).relu()
    return x @ head[7].weight.T + head[7].bias


def test_equals_the_published_form_written_out(segmenter):
    """Also where an event has fewer than five tokens, and one."""
    batch = make_batch([150, 40, 4, 1])
    # Off the lattice, where many tokens are equally near and either choice of five is right.
    coord = batch.coord + torch.rand(195, 3, generator=torch.Generator().manual_seed(3)) * 1e-3
    batch = batch.replace(coord=coord, feat=torch.cat([coord, batch.feat[:, 3:]], 1))
    counts = segmenter.encoder.tokens(batch).offsets.diff().tolist()
    assert counts[0] > 10 and min(counts) == 1 and any(1 < c < 5 for c in counts), counts
    found = segmenter(batch).split(batch.counts.tolist())
    for one, logits in zip(batch.split(), found, strict=True):
        torch.testing.assert_close(logits, one_event(segmenter, one), rtol=1e-4, atol=1e-4)


def test_batch_mates_do_not_matter(segmenter):
    batch = make_batch([50, 3, 90])
    together = segmenter(batch).split(batch.counts.tolist())
    for one, logits in zip(batch.split(), together, strict=True):
        torch.testing.assert_close(segmenter(one), logits, rtol=1e-4, atol=1e-5)


def test_the_order_of_points_does_not_matter(segmenter):
    batch = make_batch([80])
    order = torch.randperm(80, generator=torch.Generator().manual_seed(5))
    moved = batch.replace(coord=batch.coord[order], grid=batch.grid[order], feat=batch.feat[order])
    torch.testing.assert_close(segmenter(moved), segmenter(batch)[order], rtol=1e-4, atol=1e-5)


def test_the_context_is_that_of_the_event(segmenter):
    """Points far from a new track see it nevertheless, and only those of its event."""
    a, b = make_batch([60, 60]).split()
    far = a.coord + 10.0
    grown = PointBatch(
        torch.cat([a.coord, far]), torch.cat([a.grid, a.grid + 1000]),
        torch.cat([a.feat, torch.cat([far, a.feat[:, 3:]], 1)]), torch.tensor([0, 120]),
    )  # fmt: skip
    with torch.no_grad():
        segmenter.head[0].weight[:, :24] = 0  # of the points themselves
    assert segmenter(a).std(0).max() < 1e-6, "without it the points of an event cannot be told apart"
    assert (segmenter(grown)[:60] - segmenter(a)).abs().max() > 1e-3
    assert (segmenter(b)[0] - segmenter(a)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("counts", [[0], [1], [0, 1, 0], [5, 0, 1], [0, 0]])
@pytest.mark.parametrize("linear", [False, True])
def test_small_and_empty_events(segmenter, counts, linear):
    model = (segmenter.without_decoder() if linear else segmenter).train()
    batch = make_batch(counts) if sum(counts) else empty(len(counts))
    logits = model(batch)
    assert logits.shape == (sum(counts), 4) and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(v.isfinite().all() for v in model.state_dict().values())


def empty(n: int) -> PointBatch:
    return PointBatch(
        torch.zeros(0, 3), torch.zeros(0, 3).long(), torch.zeros(0, 4), torch.zeros(n + 1, dtype=torch.int64)
    )


def test_every_parameter_receives_a_gradient(segmenter):
    segmenter(make_batch([60, 50])).square().sum().backward()
    without = [n for n, p in segmenter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_layers_hold_every_parameter_once_but_the_last(segmenter):
    layers = [*segmenter.encoder.layers(), *segmenter.head_layers()]
    assert len(layers) == 1 + 3 + 4
    found = [p for layer in layers for module in layer for p in module.parameters()]
    assert len(found) == len(set(found))
    assert set(segmenter.parameters()) - set(found) == set(segmenter.head[7].parameters())


def test_a_linear_layer_reads_the_features_of_points(segmenter):
    model, batch = segmenter.without_decoder().eval(), make_batch([30, 10])
    assert isinstance(model, LinearTokenSegmenter) and model.encoder is segmenter.encoder
    expected = model.encoder.point_features(batch) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(batch), expected)
    assert model.head_layers() == []


def test_mixed_precision_stays_close(segmenter):
    batch = make_batch([60, 50])
    with torch.autocast("cpu", torch.bfloat16):
        rough = segmenter(batch)
    exact = segmenter(batch)
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_hidden_and_dropout_travel_with_an_export(tmp_path):
    """Weights, sizes and the removal of low-energy deposits: what comes back predicts the same."""
    model = small(radius=0.0075176)
    transforms = [NormalizeCoord(), LogEnergy(epsilon=0.13), WithoutLED()]
    folder = save_pretrained(tmp_path / "export", model, transforms=transforms, grid_size=0.0015, task="motif4")
    back = from_pretrained(folder)
    assert back.transforms == tuple(transforms) and back.class_names == ("shower", "track", "Michel", "delta")
    assert (back.model.hidden, back.model.dropout) == (20, 0.5)
    rng = np.random.default_rng(0)
    voxel = (300 + np.cumsum(rng.integers(0, 2, (200, 3)), 0)).astype(np.int32)
    motif = np.where(np.arange(200) % 4 == 3, 4, 1)
    event = Event(voxel, rng.uniform(0.2, 3, 200).astype(np.float32), motif=motif, name="a.h5#0")
    kept = motif != 4
    (found,) = back.predict([event])
    (alone,) = back.predict([event.select(kept)])
    batch = PointBatch.from_events([_through(transforms[:2], event.select(kept))], 0.0015)
    expected = model(batch).softmax(1).detach().numpy()
    np.testing.assert_allclose(found.probability[kept], expected, atol=1e-5)
    np.testing.assert_allclose(alone.probability, expected, atol=1e-5)
    assert len(found) == 200, "voxels that the transform dropped have the prediction of the nearest one kept"
    unlabelled = dataclasses.replace(event, motif=None)
    with pytest.raises(ValueError, match=r"a\.h5#0: WithoutLED drops .* field 'motif' is missing; use labelled events"):
        back.predict([unlabelled])


def _through(transforms: list, event: Event) -> Event:
    for transform in transforms:
        event = transform(event, np.random.default_rng(0))
    return event
