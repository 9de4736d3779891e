"""Losses of the masked and the relational pretraining on calorimeters, and the weights that balance them.

Formulas of the FASERCal model (talk of F. Cufino, NPML 2026; public code saulam/faserDL, spring 2026).

Shape legend: M patches that are predicted, P voxels of a patch, N hits in them, S voxels that a loss looks at, K
classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nufm.ops.random import counter_uniform


class VoxelTargets(NamedTuple):
    """The voxels that reconstruction looks at: all that are filled, and some empty ones.

    Attributes:
        patch: int64 (S,) patch of each, 0..M-1; ascending.
        slot: int64 (S,) voxel within its patch.
        filled: bool (S,).
        charge: float (S,) standardised charge, that of no charge where nothing is.
    """

    patch: Tensor
    slot: Tensor
    filled: Tensor
    charge: Tensor


def voxel_targets(
    patch: Tensor,
    slot: Tensor,
    charge: Tensor,
    event: Tensor,
    edges: tuple[int, int, int],
    seeds: Tensor,
    first: int,
    zero: float,
    reach: int = 2,
    share: float = 0.5,
) -> VoxelTargets:
    """Filled voxels of the patches, all empty ones within ``reach`` of them in the same patch, and random others.

    The random ones are drawn with replacement, uniformly in an event's patches, and those that hit a filled voxel are
    dropped; so a patch whose hits are no target still has some.

    Args:
        patch, slot: int64 (N,) of the hits that are targets.
        charge: float (N,) their standardised charge.
        event: int64 (M,) event of each patch, ascending.
        edges: voxels along the axes of a patch, the last running fastest in a slot.
        seeds: int64 (B,) of the events' own random streams.
        first: counter in these streams that the draws begin at.
        zero: standardised charge of an empty voxel.
        reach: voxels along each axis (2: a cube of 5³).
        share: drawn empty voxels over the filled ones of an event; of an event without filled ones, one per patch.
    """
    m, p = len(event), math.prod(edges)
    filled = torch.zeros(m, p, dtype=torch.bool, device=event.device)
    filled[patch, slot] = True
    value = torch.full((m, p), float(zero), device=event.device)
    value[patch, slot] = charge.float()
    looked = filled.clone()
    if m:
        near = filled.view(m, *edges)
        for axis in (1, 2, 3):  # what is within a cube is within reach along one axis after the other
            grown, n = near.clone(), near.shape[axis]
            for step in range(1, min(reach, n - 1) + 1):
                grown.narrow(axis, step, n - step).logical_or_(near.narrow(axis, 0, n - step))
                grown.narrow(axis, 0, n - step).logical_or_(near.narrow(axis, step, n - step))
            near = grown
        looked |= near.view(m, p)
        row, column = _drawn_voxels(event, event[patch], seeds, first, p, share)
        looked[row, column] = True
    row, column = looked.nonzero(as_tuple=True)
    return VoxelTargets(row, column, filled[row, column], value[row, column])


def _drawn_voxels(
    event: Tensor, event_of_hit: Tensor, seeds: Tensor, first: int, n_voxels: int, share: float
) -> tuple[Tensor, Tensor]:
    """Patch and voxel of the draws; those of an event depend on its own seed, hits and patches alone."""
    n = len(seeds)
    patches, hits = (torch.bincount(x, minlength=n) for x in (event, event_of_hit))
    draws = torch.where(hits > 0, (share * hits).ceil().long(), patches)
    draws = torch.where(patches > 0, draws, 0)
    owner = torch.arange(n, device=event.device).repeat_interleave(draws)
    count = torch.arange(len(owner), device=event.device) - (draws.cumsum(0) - draws)[owner]
    u = counter_uniform(seeds[owner], first + count)
    cell = (u * (patches[owner] * n_voxels)).long()  # below patches · n_voxels, since u < 1
    before = patches.cumsum(0) - patches
    return before[owner] + cell // n_voxels, cell % n_voxels


# ---------------------------------------------------------------------- terms


def smoothed(target: Tensor, smoothing: float) -> Tensor:
    """Targets in [0, 1] moved towards 1/2 (Szegedy et al., arXiv 1512.00567, for two classes)."""
    return target * (1 - smoothing) + 0.5 * smoothing


def focal_occupancy(logit: Tensor, filled: Tensor, gamma: float = 1.5, smoothing: float = 0.02) -> Tensor:
    """Mean of (1 - p_t)^γ · BCE (Lin et al., arXiv 1708.02002), the targets of the cross-entropy smoothed.

    Args:
        logit: float (S,) that a voxel is filled.
        filled: bool (S,).
    """
    target = filled.to(logit.dtype)
    wrong = torch.sigmoid(torch.where(filled, -logit, logit))  # 1 - p_t
    entropy = F.binary_cross_entropy_with_logits(logit, smoothed(target, smoothing), reduction="none")
    return _mean(wrong.pow(gamma) * entropy)


def charge_loss(
    predicted: Tensor, charge: Tensor, filled: Tensor, zero: float, scale: Tensor | None = None, strength: float = 1.0
) -> Tensor:
    """Smooth-L1 (β = 1) of standardised charges, filled voxels weighted by 1 + λ √(q/q₀), empty ones by 1.

    q is the charge above that of an empty voxel, in standardised units, and q₀ the 75th percentile of it in the batch:
    the published weights, whose unit of q is not stated.

    Args:
        predicted, charge: float (S,).
        filled: bool (S,).
        zero: standardised charge of an empty voxel.
        scale: q₀, scalar; None = that of these voxels.
        strength: λ.
    """
    weight = torch.ones_like(charge)
    if bool(filled.any()):
        q = (charge[filled] - zero).clamp(min=0)
        scale = torch.quantile(q[:MAX_QUANTILE], 0.75) if scale is None else scale
        weight[filled] += strength * (q / scale.clamp(min=1e-6)).sqrt()
    wrong = F.smooth_l1_loss(predicted.to(charge.dtype), charge, reduction="none")
    return (weight * wrong).sum() / weight.sum().clamp(min=1)


MAX_QUANTILE = 1 << 24  # torch.quantile takes no more


def ghost_loss(logit: Tensor, ghost: Tensor, smoothing: float = 0.02) -> Tensor:
    """Binary cross-entropy that a hit is a ghost. logit: float (S,); ghost: bool (S,)."""
    return _mean(
        F.binary_cross_entropy_with_logits(logit, smoothed(ghost.to(logit.dtype), smoothing), reduction="none")
    )


def soft_cross_entropy(
    logits: Tensor, shares: Tensor, smoothing: float = 0.02, confidence_penalty: float = 1e-3
) -> Tensor:
    """Cross-entropy to soft shares, minus a little of the prediction's entropy (Pereyra et al., arXiv 1701.06548).

    Args:
        logits: float (S, K).
        shares: float (S, K), rows that sum to 1; rows of 0 have no label and do not count.
        smoothing: share that is spread over all classes.
        confidence_penalty: on the negative entropy.
    """
    known = shares.sum(1) > 0
    logits, shares = logits[known], shares[known].to(logits.dtype)
    target = shares * (1 - smoothing) + smoothing / shares.shape[1]
    log_p = logits.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    return _mean(-(target * log_p).sum(1) - confidence_penalty * entropy)


def _mean(values: Tensor) -> Tensor:
    """Mean, or a zero that is still part of the graph."""
    return values.mean() if len(values) else values.sum()


# ---------------------------------------------------------------------- weights


class BoundedWeights(nn.Module):
    """Weights of loss terms by homoscedastic uncertainty (Kendall, Gal, Cipolla, arXiv 1705.07115), between bounds.

    w = w_min + (w_max - w_min) σ(u); total = Σ w L - ½ ln w, so that a term with loss L tends to w = 1 / 2L, and no
    term can be switched off or take over.

    Args:
        terms: name -> (weight at the beginning, largest weight).
        least: w_min.

    Raises:
        ValueError: a beginning that is not between the bounds.
    """

    def __init__(self, terms: Mapping[str, tuple[float, float]], least: float = 0.01) -> None:
        super().__init__()
        self.names, self.least = tuple(terms), least
        for name, (start, most) in terms.items():
            if not least < start < most:
                raise ValueError(f"the weight of '{name}' begins at {start}, expected between {least} and {most}")
        shares = [(start - least) / (most - least) for start, most in terms.values()]
        self.u = nn.Parameter(torch.tensor([math.log(s / (1 - s)) for s in shares]))
        self.register_buffer("most", torch.tensor([float(most) for _, most in terms.values()]))

    def weights(self) -> dict[str, Tensor]:
        w = self.least + (self.most - self.least) * torch.sigmoid(self.u)
        return dict(zip(self.names, w, strict=True))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Σ w L - ½ ln w over the terms that are there; 0 without any."""
        w = self.weights()
        total = self.u.sum() * 0  # terms that are left out have a gradient of 0, not none: processes wait for it
        for name, loss in losses.items():
            total = total + w[name] * loss - 0.5 * w[name].log()
        return total
