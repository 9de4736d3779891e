"""Losses of pretraining on calorimeters against brute force, numpy and torch's own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss

from nufm.methods.calorimeter_losses import (
    BoundedWeights,
    charge_loss,
    focal_occupancy,
    ghost_loss,
    soft_cross_entropy,
    voxel_targets,
)

EDGES = (4, 3, 5)


def targets(patch: list[int], slot: list[int], event: list[int], seeds: list[int], **changes: object):
    charge = torch.arange(len(patch), dtype=torch.float32) + 1
    return voxel_targets(
        torch.tensor(patch, dtype=torch.int64),
        torch.tensor(slot, dtype=torch.int64),
        charge,
        torch.tensor(event, dtype=torch.int64),
        EDGES,
        torch.tensor(seeds),
        first=0,
        **{"zero": -2.0} | changes,
    )


@pytest.mark.parametrize("reach", [1, 2])
def test_border_is_every_empty_voxel_near_a_filled_one_in_its_patch(reach: int):
    rng = np.random.default_rng(0)
    cells = {(p, tuple(rng.integers(0, EDGES))) for p in (0, 2, 3) for _ in range(3)}
    cells = sorted((p, int(np.ravel_multi_index(c, EDGES))) for p, c in cells)
    found = targets([c[0] for c in cells], [c[1] for c in cells], [0, 0, 1, 1], [5, 6], reach=reach, share=0)
    expected = set()
    for p, slot in cells:
        here = np.array(np.unravel_index(slot, EDGES))
        for step in itertools.product(range(-reach, reach + 1), repeat=3):
            there = here + step
            if ((there >= 0) & (there < EDGES)).all():
                expected.add((p, int(np.ravel_multi_index(there, EDGES))))
    looked = list(zip(found.patch.tolist(), found.slot.tolist(), strict=True))
    assert len(looked) == len(set(looked)) and set(looked) == expected
    assert {c for c, filled in zip(looked, found.filled.tolist(), strict=True) if filled} == set(cells)
    for place, filled, charge in zip(looked, found.filled.tolist(), found.charge.tolist(), strict=True):
        assert charge == (cells.index(place) + 1 if filled else -2.0)


def test_drawn_voxels_are_few_empty_and_the_events_own():
    patch, slot = [0] * 10 + [1] * 10, [*range(10), *range(10)]
    found = targets(patch, slot, [0, 1, 1], [5, 6], reach=0, share=0.5)
    drawn = ~found.filled
    assert 0 < int(drawn.sum()) <= 10  # five each, with replacement
    alone = targets([0] * 10, [*range(10)], [0, 0], [6], reach=0, share=0.5)  # the second event alone
    mine = found.patch > 0
    for a, b in zip((found.patch[mine] - 1, found.slot[mine]), (alone.patch, alone.slot), strict=True):
        assert torch.equal(a, b)
    other = targets(patch, slot, [0, 1, 1], [7, 6], reach=0, share=0.5)
    assert not torch.equal(other.slot[other.patch == 0], found.slot[found.patch == 0])


def test_drawn_voxels_are_uniform():
    """1,500 draws in 2 patches of 60 voxels, none of them filled: each is hit as often as chance has it."""
    events = 750
    found = voxel_targets(
        *(torch.zeros(0, dtype=torch.int64),) * 2, torch.zeros(0), torch.arange(events).repeat_interleave(2), EDGES,
        torch.arange(events), first=3, zero=0.0,
    )  # fmt: skip
    counts = torch.bincount(found.patch % 2 * 60 + found.slot, minlength=120).double()
    assert 1400 < counts.sum() <= 1500  # a patch each, or one of them twice
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi2 < 119 + 4 * (2 * 119) ** 0.5


def test_targets_of_nothing():
    found = targets([], [], [], [5, 6])
    assert [len(x) for x in found] == [0, 0, 0, 0]


# ---------------------------------------------------------------------- terms


def test_focal_occupancy_equals_its_definition():
    """Mean of (1 - p_t)^γ · BCE(p, t(1-s) + s/2), p_t of the hard target."""
    rng = np.random.default_rng(1)
    logit, filled = rng.normal(size=50) * 3, rng.random(50) < 0.3
    p = 1 / (1 + np.exp(-logit))
    soft = filled * 0.98 + 0.01
    entropy = -(soft * np.log(p) + (1 - soft) * np.log(1 - p))
    expected = (np.where(filled, 1 - p, p) ** 1.5 * entropy).mean()
    found = focal_occupancy(torch.from_numpy(logit), torch.from_numpy(filled))
    assert float(found) == pytest.approx(expected, rel=1e-9)
    plain = focal_occupancy(torch.from_numpy(logit), torch.from_numpy(filled), gamma=0, smoothing=0)
    assert float(plain) == pytest.approx(log_loss(filled, p), rel=1e-9)


def test_charge_loss_equals_its_definition():
    rng = np.random.default_rng(2)
    predicted, charge, filled = rng.normal(size=40), rng.normal(size=40) + 2, np.arange(40) % 3 == 0
    charge[~filled] = -1.5
    apart = np.abs(predicted - charge)
    wrong = np.where(apart < 1, 0.5 * apart**2, apart - 0.5)
    q = np.clip(charge[filled] + 1.5, 0, None)
    weight = np.ones(40)
    weight[filled] += np.sqrt(q / np.quantile(q, 0.75))
    found = charge_loss(*(torch.from_numpy(x) for x in (predicted, charge, filled)), zero=-1.5)
    assert float(found) == pytest.approx((weight * wrong).sum() / weight.sum(), rel=1e-6)


@pytest.mark.parametrize("empty", [focal_occupancy, ghost_loss])
def test_nothing_to_look_at_costs_nothing_and_can_be_differentiated(empty):
    logit = torch.zeros(0, requires_grad=True)
    loss = empty(logit, torch.zeros(0, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0 and logit.grad is not None
    none = torch.zeros(0)
    assert float(charge_loss(none, none, none.bool(), 0.0)) == 0
    assert float(soft_cross_entropy(torch.zeros(4, 3), torch.zeros(4, 3))) == 0  # ghosts only


def test_soft_cross_entropy_is_torchs_on_labelled_rows():
    torch.manual_seed(0)
    logits, shares = torch.randn(9, 3), torch.rand(9, 3).softmax(1)
    shares[::4] = 0
    known = shares.sum(1) > 0
    expected = F.cross_entropy(logits[known], shares[known], label_smoothing=0.02)
    found = soft_cross_entropy(logits, shares, confidence_penalty=0)
    torch.testing.assert_close(found, expected)
    penalised = soft_cross_entropy(logits, shares, confidence_penalty=1.0)
    entropy = torch.distributions.Categorical(logits=logits[known]).entropy().mean()
    torch.testing.assert_close(penalised, expected - entropy)


def test_ghost_loss_is_cross_entropy_with_smoothed_targets():
    logit, ghost = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, False, True])
    p = torch.sigmoid(logit).numpy()
    soft = np.array([0.99, 0.01, 0.99])
    expected = -(soft * np.log(p) + (1 - soft) * np.log(1 - p)).mean()
    assert float(ghost_loss(logit, ghost)) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------- weights


def test_weights_begin_where_they_are_told_to():
    weights = BoundedWeights({"a": (1.0, 5.0), "b": (0.02, 0.05)})
    found = {k: float(v.detach()) for k, v in weights.weights().items()}
    assert found == pytest.approx({"a": 1.0, "b": 0.02}, rel=1e-5)
    losses = {"a": torch.tensor(0.3), "b": torch.tensor(2.0)}
    expected = 0.3 - 0.5 * np.log(1.0) + 0.04 - 0.5 * np.log(0.02)
    assert float(weights(losses).detach()) == pytest.approx(expected, rel=1e-5)
    assert float(weights({"b": torch.tensor(2.0)}).detach()) == pytest.approx(0.04 - 0.5 * np.log(0.02), rel=1e-5)
    with pytest.raises(ValueError, match="begins at"):
        BoundedWeights({"a": (5.0, 5.0)})


@pytest.mark.parametrize(("loss", "expected"), [(0.25, 2.0), (5.0, 0.1), (0.001, 5.0), (1000.0, 0.01)])
def test_weights_tend_to_half_the_inverse_loss_within_bounds(loss: float, expected: float):
    weights = BoundedWeights({"a": (1.0, 5.0)})
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        weights({"a": torch.tensor(loss)}).backward()
        optimizer.step()
    assert float(weights.weights()["a"].detach()) == pytest.approx(expected, rel=0.03, abs=3e-3)
