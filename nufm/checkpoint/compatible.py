"""Whether an export can be continued: the encoder it holds, and the events that encoder was made for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from nufm.data.transforms import Compose, Transform

if TYPE_CHECKING:
    from nufm.checkpoint.pretrained import Pretrained

# Arguments that shape the training and not the function: an encoder with other values takes the same weights.
TRAINING_ONLY = {"drop_path", "attention_dropout", "layer_scale", "mask_token", "shuffle_orders"}
ABSENT = "nothing"


def check_compatible(
    pretrained: Pretrained,
    encoder: nn.Module,
    transforms: Sequence[Transform],
    grid_size: float,
    energy_threshold: float | None = None,
) -> None:
    """Refuse an export whose encoder does not fit where it is to go on.

    Args:
        pretrained: what was loaded.
        encoder: the encoder that shall take its weights. What matters in training alone (drop path, LayerScale, mask
            token, shuffling of the curves) may differ.
        transforms: what the events of the new run go through before packing.
        grid_size: edge of a lattice cell of the new run.
        energy_threshold: in MeV, voxels with more are kept by the new run; None to leave it out of the comparison, as
            it is where the export does not state its own.

    Raises:
        ValueError: they differ: each difference is listed, with what the checkpoint has and what the run has.
    """
    differences = []
    theirs, ours = pretrained.encoder, encoder
    if type(theirs) is not type(ours):
        differences.append(_difference("encoder class", type(theirs).__name__, type(ours).__name__))
    else:
        differences += _compare(_arguments(theirs), _arguments(ours), "encoder")
    if pretrained.grid_size != grid_size:
        differences.append(_difference("grid_size", pretrained.grid_size, grid_size))
    stated = pretrained.selection.get("energy_threshold")
    if energy_threshold is not None and stated is not None and stated != energy_threshold:
        differences.append(_difference("energy_threshold in MeV", stated, energy_threshold))
    before, after = flatten(pretrained.transforms), flatten(transforms)
    for i in range(max(len(before), len(after))):
        a, b = (repr(side[i]) if i < len(side) else ABSENT for side in (before, after))
        if a != b:
            differences.append(_difference(f"transform {i + 1}", a, b))
    if differences:
        raise ValueError(
            f"{pretrained.source or 'the checkpoint'} does not fit this run:\n  "
            + "\n  ".join(differences)
            + "\nmake the run's settings those of the checkpoint (its config.json names them), or pretrain with these"
        )


def flatten(transforms: Sequence[Transform]) -> list[Transform]:
    """The transforms with every ``Compose`` taken apart."""
    flat: list[Transform] = []
    for transform in transforms:
        flat.extend(flatten(transform.transforms) if isinstance(transform, Compose) else [transform])
    return flat


def _arguments(encoder: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in getattr(encoder, "arguments", {}).items() if k not in TRAINING_ONLY}


def _compare(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> list[str]:
    found = []
    for name in sorted(theirs.keys() | ours.keys()):
        a, b = (_plain(side[name]) if name in side else ABSENT for side in (theirs, ours))
        if isinstance(a, nn.Module) and type(a) is type(b):  # a tokenizer
            found += _compare(_arguments(a), _arguments(b), f"{where} {name}")
        elif a != b and not _as_good_as_equal(a, b):
            found.append(_difference(f"{where} {name}", a, b))
    return found


def _as_good_as_equal(a: Any, b: Any) -> bool:
    """Lengths and shares that differ only in how many digits were written down, or by the hair that tokenizers take off
    their radius."""
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=2e-4)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _difference(what: str, found: object, expected: object) -> str:
    return f"{what}: found {found} in the checkpoint, expected {expected} as in this run"
