"""Released Panda weights as files: reading them, and telling what they hold.

The formats are those of the public loader (DeepLearnPhysics/Panda, panda/model.py): ``.pth`` files with ``state_dict``
and perhaps ``config``, or a bare state dict; the training code's checkpoints, whose names begin with ``module.`` or
``module.student.``; and the safetensors mirrors of the Hugging Face Hub with ``config.json``, whose heads have the
names of the successor code (particle-imaging-models).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from torch import Tensor

from nufm.checkpoint.weights import read_pickled, some, tensor_shapes

STEM = "embedding.stem.linear.weight"
BACKBONE = "backbone."
Kind = Literal["encoder", "segmenter", "detector"]
MIRRORS = "DeepLearnPhysics/Panda-Base, -Semantic, -Particle and -Interaction on the Hugging Face Hub"


@dataclass(frozen=True)
class Released:
    """One network of a released file, its names as the public code has them.

    Attributes:
        kind: what its names say it is.
        encoder: tensors of the encoder and, in a segmenter, its decoder, without a prefix: ``embedding.*``, ``enc.*``,
            ``dec.*``.
        head: the other tensors of the network: ``seg_head.*`` or ``decoder.*``.
        left_out: names of tensors that belong to neither, e.g. of another branch, or prototypes.
        config: constructor arguments of the network, those of its encoder under ``backbone``; empty if not stored.
        label: what the successor's names say that a detector finds: ``particle`` or ``interaction``; None if they
            do not.
        path: the file.
    """

    kind: Kind
    encoder: dict[str, Tensor]
    head: dict[str, Tensor]
    left_out: list[str]
    config: dict[str, Any]
    label: str | None
    path: Path

    @property
    def encoder_config(self) -> dict[str, Any]:
        inner = self.config.get("backbone")
        return inner if isinstance(inner, dict) else self.config


def read_released(path: str | Path, branch: Literal["student", "teacher"] = "student") -> Released:
    """Read a released file.

    Args:
        path: ``.pth``, ``.safetensors``, or a folder with one ``.safetensors`` file and perhaps ``config.json``.
        branch: which encoder, where a pretraining checkpoint holds both.

    Raises:
        FileNotFoundError: no such file.
        ValueError: pickled code, a damaged file, or no network of Panda in it.
    """
    path = Path(path).expanduser()
    state, config = _read(path)
    prefix = _prefix(state, branch, path)
    root = prefix.removesuffix(BACKBONE)
    encoder, head, left_out, labels = {}, {}, [], set()
    for name, tensor in state.items():
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and inner.startswith(("embedding.", "enc.", "dec.")):
            encoder[inner] = tensor
        elif name.startswith(root) and (renamed := _renamed(name.removeprefix(root), labels)) is not None:
            head[renamed] = tensor
        elif not name.endswith(".anneal_progress"):  # of the successor's training: no part of the function
            left_out.append(name)
    if len(labels) > 1:
        raise ValueError(
            f"{path}: the detector has heads for {' and '.join(sorted(labels))}; only one of them can be imported"
        )
    kind: Kind = "encoder"
    if "decoder.query_feat.weight" in head:
        kind = "detector"
    elif any(name.startswith("seg_head.") for name in head):
        kind = "segmenter"
    return Released(kind, encoder, head, sorted(left_out), config, next(iter(labels), None), path)


def shape_of(tensors: Mapping[str, Tensor], name: str, n_dimensions: int, path: Path) -> tuple[int, ...]:
    """Shape of a tensor that sizes are read off.

    Raises:
        ValueError: it is missing, has another number of dimensions, or one of length 0.
    """
    if name not in tensors:
        raise ValueError(f"{path}: missing: {name}; are these Panda weights?")
    shape = tuple(tensors[name].shape)
    if len(shape) != n_dimensions or 0 in shape:
        raise ValueError(f"{path}: tensor '{name}' has shape {shape}, expected {n_dimensions} lengths, none of them 0")
    return shape


def _renamed(name: str, labels: set[str]) -> str | None:
    """A head's name as the public code has it; None if it belongs to no head. ``labels`` gathers the successor's."""
    if name.endswith(".anneal_progress") or not name.startswith(("seg_head.", "decoder.")):
        return None
    if match := re.fullmatch(r"decoder\.(cls_pred|stuff_head)_by_label\.(\w+)\.(.+)", name):
        labels.add(match[2])
        return f"decoder.{match[1]}.{match[3]}"
    return name


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and constructor arguments (empty if not stored)."""
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise FileNotFoundError(f"{path}: expected one .safetensors file, found {len(files)}; name one of them")
        path = files[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensor_shapes(path)  # for its error messages
        config_file = path.with_name("config.json")
        try:
            config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{config_file}: not valid JSON ({error}); get it again") from error
        return load_file(path), _config(config)
    content = read_pickled(path, f"take the safetensors mirrors instead ({MIRRORS})")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dict with 'state_dict'")
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ValueError(f"{path}: field 'state_dict' is a {type(state).__name__}, expected a dict of tensors")
    state = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return state, _config(content.get("config"))


def _config(config: object) -> dict[str, Any]:
    """Constructor arguments of the network; some files keep them one level down, under ``model``."""
    if not isinstance(config, dict):
        return {}
    inner = config.get("model")
    return _config(inner) if isinstance(inner, dict) else config


def _prefix(state: Mapping[str, Tensor], branch: str, path: Path) -> str:
    """What stands before the names of the encoder."""
    prefixes = [k.removesuffix(STEM) for k in state if k.endswith(STEM)]
    if len(prefixes) > 1:
        prefixes = [p for p in prefixes if branch in p.split(".")]
    if len(prefixes) != 1:
        found = some(sorted(state)) or "no tensors"
        raise ValueError(
            f"{path}: expected one encoder with a tensor '…{STEM}', found {len(prefixes)}; tensors: {found}"
        )
    return prefixes[0]
