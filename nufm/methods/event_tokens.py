"""Tokens of one event and what a model makes of them, turned back into voxels and MeV: for displays.

Shape legend: as in nufm.data.tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from nufm.data.event import Event, PointBatch
from nufm.data.tokens import EventReconstruction, EventTokens, voxel_energy, voxel_index
from nufm.data.transforms import LogEnergy, NormalizeCoord, Transform, compose
from nufm.models.tokens import VOXEL, Tokenizer, Tokens
from nufm.ops.points import ball_lists

if TYPE_CHECKING:
    from torch import nn

    from nufm.methods.masked_points import MaskedPoints


class Pretrained(Protocol):
    """What a loaded checkpoint offers: see ``nufm.checkpoint.Pretrained``."""

    encoder: nn.Module
    transforms: Sequence[Transform]
    grid_size: float
    source: str


@torch.no_grad()
def event_tokens(
    tokenizer: Tokenizer, event: Event, transforms: Sequence[Transform], grid_size: float
) -> EventTokens:
    """The tokens of an event.

    Args:
        tokenizer: in the units of the transformed coordinates.
        event: as read, or transformed already.
        transforms: what it goes through before packing; a point that they drop is in no token.
        grid_size: edge of a lattice cell, for packing.

    Raises:
        ValueError: coordinates that cannot be turned back into voxels, or as the tokenizer.
    """
    batch, kept = _packed(event, transforms, grid_size, "cpu")
    return _on_lattice(tokenizer, tokenizer(batch), batch, event, kept, transforms)


def tokens_named(event: Event, size: str | None, pretrained: Pretrained | None) -> EventTokens:
    """The tokens of an event, of a published size ("2.5", "5" or "25" voxels), or (None) as a loaded model makes them.

    Raises:
        ValueError: no such size, or a model without tokens.
    """
    if size is not None:
        return event_tokens(Tokenizer.preset(size), event, (NormalizeCoord(), LogEnergy()), VOXEL)
    tokenizer = getattr(pretrained.encoder, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            f"{pretrained.source}: a {type(pretrained.encoder).__name__} has no tokens of its own; name a size in "
            "voxels: 2.5, 5 or 25"
        )
    return event_tokens(tokenizer, event, pretrained.transforms, pretrained.grid_size)


@torch.no_grad()
def event_reconstruction(
    model: MaskedPoints, event: Event, transforms: Sequence[Transform], grid_size: float
) -> EventReconstruction:
    """What a model in evaluation mode says of the hidden tokens of an event; its seed says which are hidden.

    Args:
        model: computes where its weights are.
        event, transforms, grid_size: as :func:`event_tokens`.

    Raises:
        ValueError: as :func:`event_tokens`, or features that cannot be turned back into MeV.
    """
    batch, kept = _packed(event, transforms, grid_size, next(model.parameters()).device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        found = model.reconstruct(batch)
    finally:
        for module, training in modes.items():
            module.training = training
    tokenizer, hidden = model.encoder.tokenizer, found.hidden
    local = found.points.float()
    coord = hidden.centre[:, None] + tokenizer.radius * local[:, :, :3]
    return EventReconstruction(
        tokens=_on_lattice(tokenizer, found.tokens, batch, event, kept, transforms),
        hidden=_array(found.masked),
        position=voxel_index(_array(coord), transforms),
        energy=voxel_energy(_array(local[:, :, 3]), transforms) if local.shape[2] > 3 else None,
        infilled=None if found.energy is None else voxel_energy(_array(found.energy[:, 0].float()), transforms),
    )


def _packed(
    event: Event, transforms: Sequence[Transform], grid_size: float, device: torch.device | str
) -> tuple[PointBatch, np.ndarray]:
    """The event as a batch of one, and which of its rows the transforms kept, in their order."""
    # Row numbers travel in place of a label: transforms may drop and reorder points.
    ready = compose(transforms, event.replace(particle=np.arange(len(event))), np.random.default_rng(event.seed))
    return PointBatch.from_events([ready], grid_size).to(device), ready.particle


def _on_lattice(
    tokenizer: Tokenizer,
    tokens: Tokens,
    batch: PointBatch,
    event: Event,
    kept: np.ndarray,
    transforms: Sequence[Transform],
) -> EventTokens:
    coord = batch.coord.float()
    inside, _ = ball_lists(tokens.centre, tokens.offsets, coord, batch.offsets, tokenizer.radius)
    in_ball = np.zeros(len(event), dtype=bool)
    members = kept[_array(tokens.members)]
    in_ball[kept[_array(inside)]] = in_ball[members] = True  # the ball of a centre that is a mean was another one
    one = voxel_index(np.array([[0.0] * 3, [tokenizer.radius] * 3]), transforms)
    return EventTokens(
        event=event,
        centre=voxel_index(_array(tokens.centre), transforms),
        radius=float(one[1, 0] - one[0, 0]),
        members=members,
        starts=_array(tokens.starts),
        in_ball=in_ball,
        max_points=tokenizer.max_points,
        left_out=int(tokens.left_out.sum()),
    )


def _array(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()
