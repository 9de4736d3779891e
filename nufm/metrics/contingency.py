"""How the instances of truth and prediction share the points of each event: the table behind all their scores.

Shape legend: N points, B events, I true and J predicted instances of all events together, K pairs that share
points.

The table is sparse: of I x J pairs only those that share a point are listed. Instances are numbered over all
events of a batch, so one pass serves every event and no pair joins two events.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Scores are added up as integers in this unit, not as floats: integers give the same sum in any order, so
# neither the cut into batches nor the number of ranks changes a bit of a mean. A rounding of 2^-37 = 7e-12 per
# instance or event is the price, and 2^27 = 134 million of them fit.
UNIT = 2**36


@dataclass(frozen=True)
class Contingency:
    """Pairs of instances that share points, sorted by true, then by predicted instance.

    Attributes:
        true, pred: int64 (K,) number of the true instance, 0..I-1, and of the predicted one, 0..J-1.
        count: int64 (K,) points they share, >= 1.
        event: int64 (K,) event they lie in.
    """

    true: Tensor
    pred: Tensor
    count: Tensor
    event: Tensor


def number_instances(instance: Tensor, event: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Number the instances of all events from 0, sorted by event, then by id.

    Args:
        instance: int64 (N,) ids, any values; equal ids in different events are different instances.
        event: int64 (N,) event of each point.
        counted: bool (N,) points to look at.

    Returns:
        int64 (N,) number of each point's instance, -1 where not counted; int64 (I,) event of each instance.
    """
    number = torch.full_like(instance, -1)
    # Ids are made dense first: event * (largest id + 1) could leave the range of int64.
    ids, dense = torch.unique(instance[counted], return_inverse=True)
    width = max(len(ids), 1)
    keys, number[counted] = torch.unique(event[counted] * width + dense, return_inverse=True)
    return number, keys // width


def contingency(true: Tensor, pred: Tensor, n_pred: int, event: Tensor) -> Contingency:
    """Count the points that instances share.

    Args:
        true, pred: int64 (N,) numbers from :func:`number_instances`; a point with a -1 is not counted.
        n_pred: J.
        event: int64 (N,) event of each point.
    """
    both = (true >= 0) & (pred >= 0)
    width = max(n_pred, 1)
    keys, pair, count = torch.unique(
        true[both] * width + pred[both], return_inverse=True, return_counts=True
    )
    pair_event = torch.zeros_like(keys)
    pair_event[pair] = event[both]  # all points of a pair agree
    return Contingency(keys // width, keys % width, count, pair_event)


def sizes(number: Tensor, n: int) -> Tensor:
    """int64 (n,) points of each instance."""
    return torch.bincount(number[number >= 0], minlength=n)


def largest(values: Tensor, group: Tensor, n: int) -> Tensor:
    """(n,) largest of the values >= 0 of each group, 0 for a group without any."""
    return values.new_zeros(n).scatter_reduce(0, group, values, "amax")


def check_points(metric: str, fields: dict[str, Tensor], offsets: Tensor) -> dict[str, Tensor]:
    """The integer fields (N,) as int64, checked against each other and against ``offsets`` (B+1,).

    Raises:
        ValueError: a dtype is not an integer, a shape is not (N,), a value is below -1, or the offsets do not
            rise from 0 to N.
    """
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or len(offsets) < 1:
        raise ValueError(
            f"{metric}: offsets must be int64 (B+1,), found {offsets.dtype} {tuple(offsets.shape)}; "
            "pass the offsets of the PointBatch"
        )
    n = int(offsets[-1])
    if int(offsets[0]) != 0 or bool((offsets.diff() < 0).any()):
        raise ValueError(f"{metric}: offsets must rise from 0 to N, found {offsets.tolist()[:8]}")
    for name, value in fields.items():
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"{metric}: {name} has dtype {value.dtype}, expected integers, -1 for none")
        if value.shape != (n,):
            raise ValueError(
                f"{metric}: {name} has shape {tuple(value.shape)}, expected ({n},): one value for each point "
                "up to the last of the offsets"
            )
        if bool((value < -1).any()):
            raise ValueError(
                f"{metric}: {name} holds {int(value.min())}, expected values >= 0, or -1 for none"
            )
    return {name: value.long() for name, value in fields.items()}


def event_index(offsets: Tensor) -> Tensor:
    """int64 (N,) event of each point, from offsets (B+1,)."""
    index = torch.arange(len(offsets) - 1, device=offsets.device)
    return index.repeat_interleave(offsets.diff())


def from_units(total: Tensor, unit: int = UNIT) -> Tensor:
    """Float64 value of a sum kept as integer; float32 on Apple's GPU, which has no float64."""
    return total.to(torch.float32 if total.device.type == "mps" else torch.float64) / unit
