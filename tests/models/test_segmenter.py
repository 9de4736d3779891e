"""Decoder and segmenter: published counts, a second derivation of the way up, invariances, edges."""

from __future__ import annotations

import pytest
import torch
from models.test_ptv3 import make_batch, plain_block, randomised, sub
from torch.nn.functional import gelu, layer_norm, linear

from nufm.models.ptv3 import PointTransformerV3, upcast
from nufm.models.segmenter import Decoder, Segmenter

ENCODER = dict(depths=(2, 1, 2), channels=(16, 32, 48), heads=(1, 2, 3), window=32, layer_scale=1.0, mask_token=False)
DECODER = dict(encoder_channels=(16, 32, 48), depths=(2, 1), channels=(16, 32), heads=(2, 2), layer_scale=1.0)


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    return randomised(Segmenter(PointTransformerV3(**ENCODER), Decoder(**DECODER), 5)).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_panda():
    """Decoder 16,334,464, by stage; with its head 16,334,789; the model 107,093,573; a linear layer 6,165."""
    with torch.device("meta"):
        encoder, decoder = PointTransformerV3(mask_token=False), Decoder()
        model, probe = Segmenter(encoder, decoder), Segmenter(encoder)
    by_stage = {name: count(stage) for name, stage in decoder.dec.items()}
    assert by_stage == {"dec0": 339_712, "dec1": 769_152, "dec2": 3_068_160, "dec3": 12_157_440}
    assert count(decoder) == 16_334_464
    assert count(decoder) + count(model.head) == 16_334_789
    assert count(model) == 107_093_573 and len(model.state_dict()) == 634
    assert count(probe.head) == 6_165


def test_drop_rates_rise_over_the_stages_and_fall_within():
    decoder = Decoder((8, 8, 8), (2, 3), (8, 8), (1, 1), drop_path=0.4)
    rates = [[decoder.dec[f"dec{s}"][f"block{i}"].drop_path for i in range(n)] for s, n in ((0, 2), (1, 3))]
    assert rates[0] == pytest.approx([0.1, 0.0]) and rates[1] == pytest.approx([0.4, 0.3, 0.2])


def test_decoder_against_plain_loops(segmenter):
    """Unpooling and blocks written a second time, with the encoder's lattice, curve and windows."""
    batch = make_batch([70])
    stages = segmenter.encoder(batch)
    state = segmenter.decoder.state_dict()
    x = stages[-1].feat
    for s in (1, 0):
        p = sub(state, f"dec.dec{s}.up.")
        fine, coarse = (
            gelu(
                layer_norm(
                    linear(y, p[f"{n}.0.weight"], p[f"{n}.0.bias"]),
                    (len(p[f"{n}.0.bias"]),),
                    p[f"{n}.1.weight"],
                    p[f"{n}.1.bias"],
                )
            )
            for y, n in ((stages[s].feat, "proj_skip"), (x, "proj"))
        )
        parents = stages[s].grid // 2
        cells = stages[s + 1].grid
        row = [(cells == parent).all(1).nonzero().item() for parent in parents]
        x = fine + coarse[row]
        curves = list(segmenter.encoder.curves)[: segmenter.encoder.depths[s]]
        for i in range(DECODER["depths"][s]):
            block = sub(state, f"dec.dec{s}.block{i}.")
            x = plain_block(
                block, x, stages[s].grid, stages[s].offsets, curves[i % len(curves)], 16 - s, DECODER["heads"][s], 32
            )
    torch.testing.assert_close(segmenter.decoder(stages), x, atol=2e-4, rtol=1e-4)


def test_prediction_is_the_softmax_of_the_logits(segmenter):
    batch = make_batch([40, 30])
    logits, found = segmenter(batch), segmenter.predict(batch)
    assert logits.shape == (70, 5) and torch.equal(found.label, logits.argmax(1))
    odds = (logits - logits.logsumexp(1, keepdim=True)).exp()
    torch.testing.assert_close(found.probability, odds)
    torch.testing.assert_close(found.confidence, odds.amax(1))
    assert found.instance is None


def test_batch_mates_do_not_matter(segmenter):
    batch = make_batch([50, 3, 90])
    together = segmenter(batch)
    for b, one in enumerate(batch.split()):
        rows = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
        torch.testing.assert_close(segmenter(one), together[rows], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("counts", [[0], [1], [0, 1, 0], [5, 0, 1]])
def test_small_and_empty_events(segmenter, counts):
    batch = make_batch(counts)
    segmenter.train()
    logits = segmenter(batch)
    assert logits.shape == (sum(counts), 5) and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in segmenter.parameters())


def test_every_parameter_receives_a_gradient(segmenter):
    segmenter(make_batch([60, 50])).square().sum().backward()
    assert not [n for n, p in segmenter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_layers_hold_every_parameter_once_but_the_head(segmenter):
    layers = [*segmenter.encoder.layers(), *segmenter.head_layers()]
    assert len(layers) == 1 + 5 + 3
    found = [p for layer in layers for module in layer for p in module.parameters()]
    assert len(found) == len(set(found))
    assert set(segmenter.parameters()) - set(found) == set(segmenter.head.parameters())


def test_without_a_decoder_the_features_are_read_as_they_are():
    model = Segmenter(PointTransformerV3(**ENCODER), None, 3).eval()
    batch = make_batch([30])
    torch.testing.assert_close(model(batch), model.head(upcast(model.encoder(batch))))
    assert model.head.in_features == 96 and model.head_layers() == []


def test_refusals():
    with pytest.raises(ValueError, match=r"encoder_channels are \[8, 16, 24\], the encoder has \[16, 32, 48\]"):
        Segmenter(PointTransformerV3(**ENCODER), Decoder((8, 16, 24), (1, 1), (8, 8), (1, 1)))
    with pytest.raises(ValueError, match="needs 2 depths"):
        Decoder((8, 16, 24), (1, 1, 1), (8, 8), (1, 1))
    with pytest.raises(ValueError, match="9 channels and 2 heads"):
        Decoder((8, 16), (1,), (9,), (2,))
