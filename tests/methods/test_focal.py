"""Focal loss and weights of classes against second derivations; what PoLAr-MAE's fine-tuning freezes and how it is
driven."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from models.test_ptv3 import make_batch

from nufm.methods.segmentation import Segmentation, balanced_weights, focal_loss
from nufm.models.token_encoder import TokenEncoder
from nufm.models.token_segmenter import LinearTokenSegmenter, TokenSegmenter
from nufm.models.tokens import Tokenizer

COUNTS = (1_926_651_899, 2_038_240_940, 34_083_197, 92_015_482)  # points of the published training set, without LED


def network(**encoder: object) -> TokenSegmenter:
    settings = {"channels": 16, "depth": 2, "heads": 2, "feature_blocks": (0, 1), "drop_path": 0.5} | encoder
    return TokenSegmenter(TokenEncoder(Tokenizer(radius=0.04, max_points=8), **settings), 4, hidden=12)


def method(**options: object) -> Segmentation:
    return Segmentation(network(), **{"task": "motif4", "regime": "scratch", "lovasz_weight": 0.0} | options)


def points(n: int = 50, k: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, k, generator=generator) * 3, torch.randint(0, k, (n,), generator=generator)


@pytest.mark.parametrize("n", [1, 2, 50])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_focal_loss_point_by_point(n, gamma):
    """Eq. 5 of arXiv 1708.02002, -α_t (1 - p_t)^γ log p_t, in Python floats; the mean over the points."""
    logits, target = points(n)
    alpha = [2.1, 2.0, 120.0, 44.5]
    total = 0.0
    for row, c in zip(logits.tolist(), target.tolist(), strict=True):
        odds = [math.exp(v) for v in row]
        p = odds[c] / sum(odds)
        total += -alpha[c] * (1 - p) ** gamma * math.log(p)
    found = focal_loss(logits, target, gamma, torch.tensor(alpha))
    assert float(found) == pytest.approx(total / n, rel=1e-4)


def test_gamma_0_is_the_cross_entropy():
    logits, target = points()
    torch.testing.assert_close(focal_loss(logits, target, 0.0), F.cross_entropy(logits, target))
    for found in (method(), method(class_weights="balanced")):
        weight = balanced_weights(target, 4) if found.class_weights == "balanced" else None
        torch.testing.assert_close(
            found.loss(logits, target)["cross_entropy"], F.cross_entropy(logits, target, weight)
        )


def test_published_form_of_the_loss():
    """DeepLearnPhysics/PoLAr-MAE divides by the points with a class, and not by the sum of their weights: the loss of a
    point does not depend on which other classes the batch has."""
    alpha = [sum(COUNTS) / n for n in COUNTS]
    assert alpha == pytest.approx([2.123, 2.007, 120.03, 44.46], rel=1e-3)  # table of the sheet
    found = method(focal_gamma=2.0, class_weights=alpha)
    logits, target = points(40)
    target[::7] = -1
    one_by_one = [found.loss(logits[i : i + 1], target[i : i + 1])["focal"] for i in range(40) if target[i] >= 0]
    torch.testing.assert_close(found.loss(logits, target)["focal"], torch.stack(one_by_one).mean())


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradients_are_finite_where_the_model_is_certain(gamma):
    logits = torch.tensor([[200.0, 0, 0, 0], [-200.0, 0, 0, 0], [1e-4, 0, 0, 0]], requires_grad=True)
    focal_loss(logits, torch.zeros(3, dtype=torch.int64), gamma).backward()
    assert logits.grad.isfinite().all() and logits.grad[0].abs().max() < 1e-12 and logits.grad[1, 0] < -0.2


def test_focal_loss_gradient():
    logits, target = points(6)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, target, 2.0, weight), logits.double().requires_grad_())


def test_weights_of_a_batch_balance_the_classes_that_occur():
    target = torch.tensor([0] * 70 + [1] * 15 + [3] * 5)
    weight = balanced_weights(target, 4)
    assert weight[target].sum() == pytest.approx(90)
    assert (weight * torch.bincount(target, minlength=4))[[0, 1, 3]].tolist() == pytest.approx([30, 30, 30])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"focal_gamma": -1.0}, "focal_gamma is -1.0, expected 0"),
        ({"focal_gamma": 0.5}, "focal_gamma is 0.5, expected 0"),
        ({"focal_gamma": math.nan}, "focal_gamma is nan"),
        ({"class_weights": [1.0, 2.0]}, "expected one positive number for each of shower, track, Michel, delta"),
        ({"class_weights": [1.0, 2.0, 0.0, 1.0]}, "expected one positive number"),
        ({"class_weights": [1.0, 2.0, math.inf, 1.0]}, "expected one positive number"),
        ({"class_weights": "inverse"}, "class_weights is 'inverse', expected 'none', 'balanced' or a number"),
        ({"task": "motif"}, "n_classes is 4, the task 'motif' has 5 classes"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        method(**options)


def test_no_point_of_a_class_is_no_loss():
    """An event of low-energy deposits alone, and one without points; connected to the weights for the other ranks."""
    found = method(focal_gamma=2.0)
    for n in (0, 5):
        logits = torch.randn(n, 4, requires_grad=True)
        target, _ = found.task.targets({"motif": torch.full((n,), 4)})
        parts = found.loss(logits, target)
        assert parts.keys() == {"focal", "lovasz"} and all(v == 0 for v in parts.values())
        parts["focal"].backward()


def test_weights_of_the_classes_are_not_part_of_the_model():
    found = method(class_weights=[1.0, 2.0, 3.0, 4.0])
    assert found.alpha.tolist() == [1, 2, 3, 4]
    assert all(k.startswith(("network.", "scores.")) for k in found.state_dict())


# ---- regimes on tokens


def trained(found: Segmentation) -> tuple[dict, dict]:
    """State of the network before and after three steps in training mode."""
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in found.network.state_dict().items()}
    batch = make_batch([60, 40])
    batch = batch.replace(labels={"motif": (batch.coord[:, 0] > 0).long()})
    optimizer = torch.optim.AdamW([p for p in found.parameters() if p.requires_grad], lr=1e-2)
    found.train()
    for _ in range(3):
        loss = sum(found.loss(found.network(batch), found.task.targets(batch.labels)[0]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, found.network.state_dict()


@pytest.mark.parametrize("regime", ["dec", "full", "lin", "scratch"])
def test_a_frozen_encoder_does_not_move_nor_do_its_batch_norms(regime):
    """The published fine-tuning freezes the weights alone: running means and variances of the tokens' norms go on."""
    found = method(regime=regime, focal_gamma=2.0)
    assert isinstance(found.network, LinearTokenSegmenter if regime == "lin" else TokenSegmenter)
    assert found.network.encoder.training == (regime in ("full", "scratch")), "a Trainer begins with the modes it finds"
    before, after = trained(found)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    inside = {k for k in moved if k.startswith("encoder.")}
    assert moved - inside, "what is behind the encoder learns"
    if regime in ("dec", "lin"):
        assert not inside
        assert not any(m.training for m in found.network.encoder.modules())
    else:
        assert {"encoder.embedding.first.1.running_mean", "encoder.transformer.blocks.0.mlp.fc1.weight"} <= inside
    if regime != "lin":
        assert {"upsampler.1.running_mean", "head.5.running_var"} <= moved


def test_published_schedule():
    """Steps 0, 12,500 and 100,000 of configs/part_segmentation_*.yml: 8.6e-6, 1e-4, 8.6e-6; halfway down in between."""
    found = method(learning_rate=1e-4, schedule="warmup_cosine", warmup=0.125, rate_floor=0.086)
    found._trainer = SimpleNamespace(estimated_stepping_batches=100_000, global_step=0)
    rates = {}
    for step in (0, 6_250, 12_500, 56_250, 100_000):
        found._trainer.global_step = step
        rate, beta = found.rate_and_momentum()
        rates[step] = 1e-4 * rate
        assert beta == 0.9
    middle = (1e-4 + 8.6e-6) / 2
    expected = {0: 8.6e-6, 6_250: middle, 12_500: 1e-4, 56_250: middle, 100_000: 8.6e-6}
    assert rates == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("decay", ["weights", "all"])
def test_who_is_decayed(decay):
    found = method(learning_rate=1e-4, weight_decay=0.05, decay=decay, schedule="constant")
    groups = found.configure_optimizers().param_groups
    spared = sum(len(g["params"]) for g in groups if g["weight_decay"] == 0)
    assert sum(len(g["params"]) for g in groups) == len(list(found.network.parameters()))
    vectors = sum(p.ndim == 1 for p in found.network.parameters())
    assert spared == (vectors if decay == "weights" else 0)
