"""What a masked calorimeter model says of single events, in MeV and on the lattice, for displays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from nufm.data.stream_reconstruction import HiddenVoxels, StreamReconstruction, StreamRelations, standardized_by
from nufm.data.streams import StreamBatch, StreamEvent
from nufm.data.transforms import Transform, compose
from nufm.methods.masked_calorimeter import Masked, MaskedCalorimeter
from nufm.models.patches import Patches, PatchStack, unravel
from nufm.models.stream_decoder import RELATIONAL


@torch.no_grad()
def reconstruction(
    model: MaskedCalorimeter, event: StreamEvent, transforms: Sequence[Transform]
) -> StreamReconstruction:
    """What the model, in evaluation mode, says of what is hidden of an event; the event's seed says what that is.

    Args:
        model: computes where its weights are.
        event: as read.
        transforms: what the model's events go through, without augmentations.

    Raises:
        ValueError: transforms that do not standardise, or that drop hits; a prediction that is not finite.
    """
    batch, standard = _packed(model, event, transforms), standardized_by(transforms)
    with _evaluating(model):
        masked = model.hide(batch)
        voxels = {
            stack.stream: _hidden(model, masked, stack, batch, event, standard.inverse)
            for stack in model.encoder.stacks
            if stack.stream in event.voxels
        }
        matrices, tracks, first = {}, {}, torch.zeros(1, dtype=torch.int64, device=batch.device)
        if model.encoder.matrix is not None and not bool(masked.keep_matrix):
            name = model.encoder.matrix.stream
            if name in event.matrices:
                found = standard.inverse(name, _array(model.decoder.matrix(masked.memory, first)[0]))
                matrices[name] = found.reshape(event.matrices[name].shape).astype(np.float32)
        if model.encoder.tracks is not None and not bool(masked.keep_tracks):
            name = model.encoder.tracks.stream
            if name in event.tracks:
                logit, mean = model.decoder.tracks(masked.memory, first)
                raw = [_raw(standard, f"{name}.{c}", v) for c, v in zip(COLUMNS, _array(mean[0]), strict=False)]
                tracks[name] = (float(logit.sigmoid()), np.array(raw, dtype=np.float32))
    return StreamReconstruction(event, voxels, matrices, tracks)


@torch.no_grad()
def relations(model: MaskedCalorimeter, event: StreamEvent, transforms: Sequence[Transform]) -> StreamRelations:
    """What the model, in evaluation mode, says of the hits that it is shown in the relational pass.

    Raises:
        ValueError: transforms that drop hits.
    """
    batch, stack = _packed(model, event, transforms), model.encoder.calorimeter
    name, n = stack.stream, len(event.voxels.get(stack.stream, ()))
    with _evaluating(model):
        masked = model.hide(batch, relational=True)
        patches = masked.patches[name].select(masked.keep[name])
        decoded = model.decoder.decode_patches(masked.memory, name, patches)
        said = model.decoder.patches[name](decoded, patches.hit_patch, patches.slot, tuple(RELATIONAL))
    rows = _array(patches.hit_rows)
    shown = np.zeros(n, dtype=bool)
    shown[rows] = True
    found = {"ghost": said["ghost"].sigmoid()}
    found |= {label: said[label].softmax(1) for label in ("hierarchy", "category")}
    spread = {}
    for label, values in found.items():
        spread[label] = np.full((n, *values.shape[1:]), np.nan, dtype=np.float32)
        spread[label][rows] = _array(values)
    return StreamRelations(event, name, shown, **spread)


COLUMNS = ("charge", "px", "py", "pz")


def _hidden(
    model: MaskedCalorimeter, masked: Masked, stack: PatchStack, batch: StreamBatch, event: StreamEvent, inverse: object
) -> HiddenVoxels:
    """All voxels of the hidden patches of one stream."""
    name, n = stack.stream, len(event.voxels[stack.stream])
    hidden: Patches = masked.patches[name].select(~masked.keep[name])
    m, p = len(hidden), stack.patch_size
    patch = torch.arange(m, device=batch.device).repeat_interleave(p)
    slot = torch.arange(p, device=batch.device).repeat(m)
    decoded = model.decoder.decode_patches(masked.memory, name, hidden)
    said = model.decoder.patches[name](decoded, patch, slot, ("occupancy", "charge"))
    index = hidden.cell[patch] * torch.tensor(stack.patch, device=batch.device) + unravel(slot, stack.patch)
    shown, target = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    rows = _array(hidden.hit_rows)
    shown[rows] = False
    target[rows] = _array(model.to_reconstruct(batch, name))[rows]
    return HiddenVoxels(
        shown,
        target,
        _array(index),
        _array(hidden.module[patch]),
        _array(said["occupancy"].sigmoid()),
        inverse(name, _array(said["charge"])),
    )


def _raw(standard: object, name: str, value: float) -> float:
    """In the unit of the column; one that is not standardised is in it already."""
    return float(standard.inverse(name, value)) if name in standard.names else float(value)


def _packed(model: nn.Module, event: StreamEvent, transforms: Sequence[Transform]) -> StreamBatch:
    ready = compose(transforms, event, np.random.default_rng(event.seed))
    for stream, hits in event.voxels.items():
        if not np.array_equal(ready.voxels[stream].index, hits.index):
            raise ValueError(
                f"{event.name}: the transforms drop or move hits of '{stream}', expected all of them where they were; "
                "give what changes them as 'augment'"
            )
    return StreamBatch.from_events([ready]).to(next(model.parameters()).device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
