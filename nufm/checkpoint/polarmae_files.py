"""Released PoLAr-MAE and Point-MAE weights as files: reading them, and telling what they hold.

The format is that of DeepLearnPhysics/PoLAr-MAE at 2fd3b80: Lightning dictionaries with ``state_dict``,
``hyper_parameters`` (nested ``class_path`` and ``init_args``) and ``datamodule_hyper_parameters``. Both are read as
data: nothing that they name is imported. What they do not say is what the public constructors default to; a file
without any is taken for the published configurations (configs/polarmae.yml, pointmae.yml, part_segmentation_*.yml).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from nufm.checkpoint.weights import read_pickled, some

Kind = Literal["PoLAr-MAE", "Point-MAE", "segmenter", "encoder"]
STEM = "encoder.tokenizer.embedding.first_conv.0.weight"
VOXEL = 1 / (384 * math.sqrt(3))  # edge of a voxel in the published coordinates
BLOCK = r"(blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp\.fc[12])|norm)\.(\w+)"
CONVS = r"(first|second)_conv\.(\d\.\w+)"
HEAD = {"conv1": 0, "bn1": 1, "conv2": 4, "bn2": 5, "conv3": 7}

# Published name -> ours, in nufm.methods.masked_points.MaskedPoints or nufm.models.token_segmenter.TokenSegmenter.
RENAMED = tuple(
    (re.compile(published), ours)
    for published, ours in (
        (rf"encoder\.tokenizer\.embedding\.{CONVS}", r"encoder.embedding.\1.\2"),
        (r"encoder\.pos_embed\.pos_enc\.(\d\.\w+)", r"encoder.position.\1"),
        (rf"encoder\.transformer\.{BLOCK}", r"encoder.transformer.\1.\2"),
        (rf"decoder\.transformer\.{BLOCK}", r"decoder.\1.\2"),
        (r"mask_token", r"mask_token"),
        (r"increase_dim\.(\w+)", r"point_head.\1"),
        (rf"equivariant_patch_encoder\.{CONVS}", r"order_encoder.\1.\2"),
        (r"equivariant_patch_encoder\.position_encoder\.time_embed\.1\.(\w+)", r"order_encoder.slot_code.\1"),
        (r"energy_decoder\.(\w+)", r"energy_head.\1"),
        *((rf"upsampler\.mlp_convs\.{i}\.(\w+)", rf"upsampler.{3 * i}.\1") for i in (0, 1)),
        *((rf"upsampler\.mlp_bns\.{i}\.(\w+)", rf"upsampler.{3 * i + 1}.\1") for i in (0, 1)),
        *((rf"seg_head\.{part}\.(\w+)", rf"head.{i}.\1") for part, i in HEAD.items()),
    )
)
# No part of the function: weights of the loss, counters of metrics, a table that the public forward does not hand on.
USELESS = re.compile(r"loss_func\.weight|(train|val)_\w+\.\w+|encoder\.relative_position_bias\.bias_table")
READ = {"state_dict", "hyper_parameters", "datamodule_hyper_parameters", "epoch", "global_step"}


@dataclass(frozen=True)
class Released:
    """One released file.

    Attributes:
        kind: what its names say it is.
        tensors: under our names and in our shapes; those of the encoder begin with ``encoder.``.
        left_out: tensors and fields of the file that are no part of the function.
        settings: ``hyper_parameters``; None if not stored.
        selection: how the events of its training were read; None if not stored.
        steps: of its training; None if not stored.
        path: the file.
    """

    kind: Kind
    tensors: dict[str, Tensor]
    left_out: list[str]
    settings: dict[str, Any] | None
    selection: dict[str, Any] | None
    steps: int | None
    path: Path

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def depth(self, prefix: str) -> int:
        """Number of the blocks that names beginning with ``prefix`` tell of."""
        return len({k.split(".")[1] for k in self.part(prefix) if k.startswith("blocks.")})

    def shape(self, name: str, n_dimensions: int) -> tuple[int, ...]:
        """Shape of a tensor that sizes are read off.

        Raises:
            ValueError: it is missing, has another number of dimensions, or one of length 0.
        """
        if name not in self.tensors:
            raise ValueError(f"{self.path}: missing: {name}; are these weights of PoLAr-MAE?")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != n_dimensions or 0 in shape:
            raise ValueError(f"{self.path}: tensor '{name}' has shape {shape}, expected {n_dimensions} lengths over 0")
        return shape


def read_released(path: str | Path) -> Released:
    """Read a released file.

    Args:
        path: a Lightning ``.ckpt``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: pickled code, a damaged file, no network of PoLAr-MAE in it, or tensors of an unknown purpose.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content = read_pickled(
        path, "where you trust it, load it and save its 'state_dict' alone: torch.save({'state_dict': …}, path)"
    )
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: has no field 'state_dict', expected the Lightning dictionary of a released file")
    if STEM not in state:
        found = some(sorted(str(k) for k in state), 4) or "no tensors"
        raise ValueError(
            f"{path}: not released weights of PoLAr-MAE or Point-MAE, which have a tensor '{STEM}'; found {found}. A "
            "checkpoint of a run of nufm is for resuming; python scripts/export.py makes an export of it in its "
            "RUN/checkpoints"
        )
    tensors: dict[str, Tensor] = {}
    unknown, left_out = [], sorted({str(k) for k in content} - READ)
    for name, tensor in state.items():
        ours = _renamed(str(name))
        if isinstance(tensor, Tensor) and ours is not None:
            tensors[ours] = _reshaped(tensor)
        elif USELESS.fullmatch(str(name)):
            left_out.append(str(name))
        else:
            unknown.append(str(name))
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} tensors of an unknown purpose: {some(sorted(unknown))}; expected those of "
            "DeepLearnPhysics/PoLAr-MAE at 2fd3b80 (pretraining, or segmentation without a transformer decoder)"
        )
    segmenter = "head.7.weight" in tensors
    if all(name.startswith("encoder.") for name in tensors):
        kind: Kind = "encoder"
    else:
        kind = "segmenter" if segmenter else "PoLAr-MAE" if "energy_head.weight" in tensors else "Point-MAE"
    settings = _mapping(content.get("hyper_parameters"), "hyper_parameters", path)
    data = _mapping(content.get("datamodule_hyper_parameters"), "datamodule_hyper_parameters", path)
    selection = None if data is None else _mapping(data.get("dataset_kwargs"), "dataset_kwargs", path)
    steps = content.get("global_step")
    return Released(kind, tensors, left_out, settings, selection, steps if type(steps) is int else None, path)


def component(released: Released, name: str, class_name: str) -> dict[str, Any]:
    """Stored arguments of a part of the network; those of the published configuration if nothing is stored.

    Raises:
        ValueError: the part is of another class than ``class_name``, or not described at all.
    """
    if released.settings is None:
        return {"transformer_kwargs": {"add_pos_at_every_layer": True, "attn_drop_rate": 0.05, "drop_path_rate": 0.25}}
    entry = released.settings.get(name)
    if not isinstance(entry, Mapping) or str(entry.get("class_path")).rpartition(".")[2] != class_name:
        raise ValueError(f"{released.path}: hyper_parameters have {name} = {entry!r:.200}, expected a {class_name}")
    return _mapping(entry.get("init_args"), f"{name}.init_args", released.path) or {}


def given(found: Mapping[str, Any], name: str, default: Any) -> Any:
    """A stored setting, or ``default`` where it is absent or null."""
    value = found.get(name)
    return default if value is None else value


def nested(found: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Stored settings of a part; none where they are absent or null.

    Raises:
        ValueError: they are not names and values.
    """
    return _mapping(found.get(name), name, path) or {}


def choice(found: Mapping[str, Any], name: str, default: Any, allowed: Sequence[Any], path: Path) -> Any:
    """A stored setting, or the default of the public code; null is taken for absent.

    Raises:
        ValueError: it is none of ``allowed``.
    """
    value = given(found, name, default)
    if not any(type(value) is type(a) and value == a for a in allowed):
        raise ValueError(
            f"{path}: hyper_parameters have {name} = {value!r:.200}, only {' or '.join(map(repr, allowed))} can be "
            "imported"
        )
    return value


def positive(
    found: Mapping[str, Any], name: str, default: float, path: Path, whole: bool = False, zero: bool = False
) -> float:
    """A stored number, or the default of the public code; null is taken for absent.

    Raises:
        ValueError: it is not positive (0 is let in with ``zero``), or not ``whole``.
    """
    value = given(found, name, default)
    number = type(value) is int or (type(value) is float and not whole)
    if not number or not (0 <= value if zero else 0 < value) or value == math.inf:
        words = "a positive whole number" if whole else "0 or a positive number" if zero else "a positive number"
        raise ValueError(f"{path}: hyper_parameters have {name} = {value!r:.200}, expected {words}")
    return value


def refuse_others(found: Mapping[str, Any], known: set[str], where: str, path: Path) -> None:
    """Refuse settings that are not known: they may change the function."""
    others = sorted(str(k) for k in found.keys() - known)
    if others:
        raise ValueError(f"{path}: {where} has {some(others)}, expected some of {', '.join(sorted(known))}")


def _renamed(name: str) -> str | None:
    """Our name of a tensor; None if it is not known."""
    for pattern, ours in RENAMED:
        if match := pattern.fullmatch(name):
            return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", match.expand(ours)))
    return None


def _reshaped(tensor: Tensor) -> Tensor:
    """Convolutions over one point as linear maps (O, I, 1) -> (O, I), scales and shifts (1, 1, C) -> (C,)."""
    if tensor.dim() == 3 and tensor.shape[:2] == (1, 1):
        return tensor[0, 0]
    return tensor[..., 0] if tensor.dim() == 3 and tensor.shape[2] == 1 else tensor


def _mapping(value: object, name: str, path: Path) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{path}: field '{name}' is a {type(value).__name__}, expected names and values")
    return None if value is None else {str(k): v for k, v in value.items()}
