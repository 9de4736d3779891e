"""Semantic segmentation: losses against second derivations, rates and frozen parts of every regime, a fit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from models.test_ptv3 import make_batch

from nufm.methods.finetuning import rates
from nufm.methods.segmentation import Segmentation, lovasz_softmax
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.segmenter import Decoder, Segmenter
from nufm.models.uresnet import UResNet

CHANNELS = (16, 32)


def network(decoder=True, n_classes=5, **encoder):
    settings = dict(depths=(2, 1), channels=CHANNELS, heads=(1, 2), window=32, mask_token=False, layer_scale=1.0)
    made = PointTransformerV3(**(settings | encoder))
    return Segmenter(made, Decoder(CHANNELS, (2,), (16,), (2,), layer_scale=1.0) if decoder else None, n_classes)


def jaccard_loss(wrong, truth):
    """1 - |truth and right| / |truth or wrong| for a class whose truth is the set ``truth``."""
    missed = wrong & truth
    return 1 - (truth & ~missed).sum() / (truth | wrong).sum()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_lovasz_is_the_piecewise_linear_extension(n):
    """Eq. 8-9 of arXiv 1705.08790: the sum over sorted errors of (set loss with the point - without it) × error."""
    generator = torch.Generator().manual_seed(n)
    probability = torch.rand(n, 3, generator=generator, dtype=torch.float64).softmax(1)
    target = torch.randint(0, 3, (n,), generator=generator)
    losses = []
    for c in target.unique().tolist():
        truth = target == c
        error = torch.where(truth, 1 - probability[:, c], probability[:, c])
        total, wrong = 0.0, torch.zeros(n, dtype=torch.bool)
        for i in error.argsort(descending=True).tolist():
            before = jaccard_loss(wrong, truth)
            wrong[i] = True
            total += error[i] * (jaccard_loss(wrong, truth) - before)
        losses.append(total)
    torch.testing.assert_close(lovasz_softmax(probability, target), torch.stack(losses).mean())


def test_lovasz_of_certain_predictions_is_the_jaccard_loss():
    for labels in itertools.product(range(2), repeat=3):
        for guesses in itertools.product(range(2), repeat=3):
            target, guess = torch.tensor(labels), torch.tensor(guesses)
            expected = [
                1 - ((guess == c) & (target == c)).sum() / ((guess == c) | (target == c)).sum()
                for c in target.unique().tolist()
            ]
            found = lovasz_softmax(F.one_hot(guess, 2).float(), target)
            torch.testing.assert_close(found, torch.stack(expected).mean())


def test_balanced_classes_weigh_the_same():
    method = Segmentation(network(), class_weights="balanced", regime="scratch", lovasz_weight=0.0)
    logits = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0] * 70 + [1] * 15 + [3] * 5)
    per_class = torch.stack([F.cross_entropy(logits[target == c], target[target == c]) for c in (0, 1, 3)])
    torch.testing.assert_close(method.loss(logits, target)["cross_entropy"], per_class.mean())


def test_points_without_a_class_do_not_count():
    method = Segmentation(network(), regime="scratch")
    logits, target = torch.randn(6, 5), torch.tensor([0, -1, 2, -1, 4, 1])
    kept = target >= 0
    for name, value in method.loss(logits, target).items():
        torch.testing.assert_close(value, method.loss(logits[kept], target[kept])[name])
    logits.requires_grad_()
    nothing = method.loss(logits, torch.full((6,), -1))
    assert all(v == 0 for v in nothing.values())
    nothing["cross_entropy"].backward()
    assert (logits.grad == 0).all()


# ---- learning rates


def share_of(net, found, name):
    return found[dict(net.named_parameters())[name]]


def test_published_rates_of_panda():
    """panda.md §4.1: decoder exponents 7 (dec0.block0) … 0 (dec3.block1), encoder 0.05 × 0.9^(20-j+8), the rest 1."""
    with torch.device("meta"):
        net = Segmenter(PointTransformerV3(mask_token=False), Decoder())
    found = rates(net, 0.05, 0.9, "as_published")
    assert share_of(net, found, "decoder.dec.dec0.block0.attn.qkv.weight") == pytest.approx(0.9**7)
    assert share_of(net, found, "decoder.dec.dec0.block1.attn.qkv.weight") == pytest.approx(0.9**6)
    assert share_of(net, found, "decoder.dec.dec3.block1.mlp.0.fc1.bias") == 1
    assert share_of(net, found, "encoder.enc.enc0.block0.norm1.0.weight") * 2.6e-3 == pytest.approx(6.8e-6, rel=0.01)
    assert share_of(net, found, "encoder.enc.enc4.block2.norm1.0.weight") * 2.6e-3 == pytest.approx(5.6e-5, rel=0.01)
    for full in (
        "encoder.embedding.stem.linear.weight",
        "encoder.enc.enc2.down.proj.weight",
        "decoder.dec.dec1.up.proj.0.weight",
        "head.weight",
    ):
        assert share_of(net, found, full) == 1


def test_rates_by_depth_never_rise_towards_the_input():
    net = network()
    found = rates(net, 0.5, 0.8, "by_depth")
    layers = [*net.encoder.layers(), *net.head_layers(), [net.head]]
    in_order = [{found[p] for module in layer for p in module.parameters()} for layer in layers]
    assert all(len(share) == 1 for share in in_order)
    shares = [share.pop() for share in in_order]
    assert shares == sorted(shares)
    assert shares[-2:] == [1, 1] and shares[-3] == pytest.approx(0.8) and shares[-4] == pytest.approx(0.5 * 0.8**2)
    assert shares[0] == pytest.approx(0.5 * 0.8 ** (2 + 3)), "two layers behind the encoder, three blocks after it"


def test_networks_without_an_encoder_learn_at_one_rate():
    net = UResNet(filters=2, depth=2)
    assert set(rates(net, 0.1, 0.5, "by_depth").values()) == {1.0}


# ---- regimes


@pytest.mark.parametrize(("regime", "decoder"), [("lin", False), ("dec", True)])
def test_a_frozen_encoder_stays_as_it_is_and_in_evaluation(regime, decoder):
    method = Segmentation(network(drop_path=0.5), regime=regime)
    assert (method.network.decoder is not None) == decoder
    method.train()
    assert method.network.head.training and not any(m.training for m in method.network.encoder.modules())
    assert not any(p.requires_grad for p in method.network.encoder.parameters())
    trained = {n.split(".")[0] for n, p in method.network.named_parameters() if p.requires_grad}
    assert trained == {"head"} | ({"decoder"} if decoder else set())


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: network(False), {"regime": "full"}, "Segmenter was built without one"),
        (lambda: UResNet(filters=2, depth=2), {"regime": "full"}, "UResNet has none: use 'scratch'"),
        (lambda: network(n_classes=4), {"regime": "scratch"}, "n_classes is 4, the task 'motif' has 5 classes"),
        (lambda: network(), {"regime": "scratch", "task": "particle"}, "is panoptic"),
        (lambda: network(), {"regime": "scratch", "task": "motiv"}, "unknown task 'motiv'"),
    ],
)
def test_refusals(make, options, words):
    with pytest.raises(ValueError, match=words):
        Segmentation(make(), **options)


def test_pretrained_weights_arrive_and_misfits_are_named():
    torch.manual_seed(3)
    pretrained = network(mask_token=True).encoder
    method = Segmentation(network(), regime="full")
    method.load_encoder(pretrained)
    batch = make_batch([40])
    ours, theirs = method.network.encoder.eval()(batch), pretrained.eval()(batch)
    assert all(torch.equal(a.feat, b.feat) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(ValueError, match=r"tensors differ: .*enc\.enc0\.block1"):
        method.load_encoder(network(depths=(1, 1)).encoder)
    with pytest.raises(ValueError, match="leave --pretrained out"):
        Segmentation(network(), regime="scratch").load_encoder(pretrained)


def test_fits_two_events():
    """Labels that only the neighbourhood tells: enough steps bring the loss down and the classes right."""
    torch.manual_seed(0)
    batch = make_batch([60, 60])
    target = (batch.coord[:, 0] > batch.coord[:, 0].median()).long()
    batch = batch.replace(labels={"motif": target})
    method = Segmentation(network(drop_path=0.0), regime="scratch", lovasz_weight=0.5)
    optimizer = torch.optim.AdamW(method.network.parameters(), lr=3e-3)
    for _ in range(40):
        parts = method.loss(method.network(batch), target)
        loss = parts["cross_entropy"] + 0.5 * parts["lovasz"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.isfinite(float(loss))
    assert (method.network.eval().predict(batch).label == target).float().mean() > 0.95
