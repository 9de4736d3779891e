"""Files of weights: what is checked before they are believed, and the importer of released Panda weights.

Nothing here unpickles objects: safetensors hold arrays only, and ``.pth`` files are read with
``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from nufm.models.ptv3 import PointTransformerV3

log = logging.getLogger(__name__)

# Argument of the published constructor -> ours (DeepLearnPhysics/Panda, panda/model_base.py).
PANDA_ARGUMENTS = {
    "in_channels": "in_channels",
    "enc_depths": "depths",
    "enc_channels": "channels",
    "enc_num_head": "heads",
    "enc_patch_size": "window",
    "order": "curves",
    "mlp_ratio": "mlp_ratio",
    "drop_path": "drop_path",
    "mask_token": "mask_token",
}
# Published arguments that change the function of the network, and the only value that ours computes.
PANDA_FIXED = {
    "qkv_bias": True,
    "pre_norm": True,
    "enable_rpe": False,
    "full_attention": False,
    "cpe_first_layer_only": False,
    "cpe_shared_weight": False,
    "embedding_act_layer": True,
}
STEM = "embedding.stem.linear.weight"


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as safetensors, it is truncated, damaged or another format ({error}); "
            "get it again"
        ) from error


def check_fit(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: object
) -> None:
    problems = []
    for what, names in (
        ("missing", wanted.keys() - found.keys()),
        ("unexpected", found.keys() - wanted.keys()),
    ):
        if names:
            problems.append(f"{what}: {some(sorted(names))}")
    wrong = [f"{k} {found[k]} instead of {wanted[k]}" for k in wanted if k in found and found[k] != wanted[k]]
    if wrong:
        problems.append(f"wrong shape: {some(wrong)}")
    if problems:
        raise ValueError(f"{where}: the tensors do not fit the encoder. " + "; ".join(problems))


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise ValueError(
            f"{where}: weights hold NaN or infinity: {some(bad)}; the training diverged before this"
        )


def some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def load_panda_pth(path: str | Path, branch: Literal["student", "teacher"] = "student") -> PointTransformerV3:
    """Encoder of released Panda weights, or of the public training code's checkpoints.

    The sizes are read off the tensors; a stored ``config`` supplies what tensors do not show and must
    agree with the rest. Decoders and heads are left out, which the log says. The released file itself was
    not at hand when this was
    written: it follows the public loader (DeepLearnPhysics/Panda, panda/model.py).

    Args:
        path: ``.pth`` (a dict with ``state_dict`` and perhaps ``config``, or a bare state dict),
            ``.safetensors``, or a folder with one ``.safetensors`` file and perhaps ``config.json``.
        branch: which encoder, where a pretraining checkpoint holds both. Published downstream runs take
            the student.

    Returns:
        The encoder in evaluation mode; deterministic, where published evaluation
        shuffles the curves at random.

    Raises:
        FileNotFoundError: no such file.
        ValueError: pickled code, missing tensors (listed), or an architecture that is not Panda's.
    """
    path = Path(path).expanduser()
    state, config = _read_panda(path)
    prefix = _panda_prefix(state, branch, path)
    ours = ("embedding.", "enc.")
    tensors = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    left_out = sorted(set(state) - {prefix + k for k in tensors if k.startswith(ours)})
    tensors = {k: v for k, v in tensors.items() if k.startswith(ours)}
    arguments = _panda_arguments(tensors, config, path)
    with torch.random.fork_rng(devices=[]):
        try:
            encoder = PointTransformerV3(**arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: no encoder can be built from {arguments}: {error}") from error
    wanted = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    surplus = sorted(tensors.keys() - wanted.keys())
    tensors = {k: v for k, v in tensors.items() if k in wanted}
    check_fit({k: tuple(v.shape) for k, v in tensors.items()}, wanted, path)
    check_finite(tensors, str(path))
    if left_out or surplus:
        log.info("%s: %d tensors not used: %s", path, len(left_out) + len(surplus), some(surplus + left_out))
    encoder.load_state_dict({k: v.float() for k, v in tensors.items()})
    return encoder.eval()


def _read_panda(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and constructor arguments (empty if not stored)."""
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise FileNotFoundError(f"{path}: expected one .safetensors file, found {len(files)}")
        config_file, path = path / "config.json", files[0]
        try:
            config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{config_file}: not valid JSON ({error}); get it again") from error
    else:
        config = {}
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensor_shapes(path)  # for its error messages
        return load_file(path), _panda_config(config)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, it holds pickled objects other than tensors and plain values, whose loading "
            "could run any "
            "code; take the safetensors mirror (DeepLearnPhysics/Panda-Base on the Hugging Face Hub) instead"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(
            f"{path}: cannot be read, it is truncated or damaged ({error}); get it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dict with 'state_dict'")
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ValueError(
            f"{path}: field 'state_dict' is a {type(state).__name__}, expected a dict of tensors"
        )
    state = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return state, _panda_config(content.get("config"))


def _panda_config(config: object) -> dict[str, Any]:
    """Constructor arguments of the encoder: at the top, or under ``backbone`` in models with heads."""
    if not isinstance(config, dict):
        return {}
    for key in ("backbone", "model"):
        if isinstance(config.get(key), dict):
            return _panda_config(config[key])
    return config


def _panda_prefix(state: Mapping[str, Tensor], branch: str, path: Path) -> str:
    prefixes = [k.removesuffix(STEM) for k in state if k.endswith(STEM)]
    if len(prefixes) > 1:
        prefixes = [p for p in prefixes if branch in p.split(".")]
    if len(prefixes) != 1:
        found = some(sorted(state)) or "no tensors"
        raise ValueError(
            f"{path}: expected one encoder with a tensor '…{STEM}', found {len(prefixes)}; tensors: {found}"
        )
    return prefixes[0]


def _panda_arguments(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Constructor arguments from the tensors, completed by the stored ones."""
    for name, value in PANDA_FIXED.items():
        if name in config and config[name] != value:
            raise ValueError(f"{path}: config has {name} = {config[name]!r}, only {value!r} can be imported")
    if any(s != 2 for s in config.get("stride", ())):
        raise ValueError(f"{path}: config has stride = {config['stride']!r}, only 2 can be imported")
    blocks: dict[int, int] = {}
    for key in tensors:
        if match := re.match(r"enc\.enc(\d+)\.block(\d+)\.", key):
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    stages = range(max(blocks, default=-1) + 1)
    try:
        channels = [len(tensors[f"enc.enc{s}.block0.norm1.0.weight"]) for s in stages]
        mlp_ratio = len(tensors["enc.enc0.block0.mlp.0.fc1.bias"]) / channels[0]
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{path}: missing: {error.args[0] if error.args else error}; is it a Panda encoder?"
        ) from error
    shown = {
        "in_channels": tensors[STEM].shape[1],
        "depths": [blocks.get(s, 0) for s in stages],
        "channels": channels,
        "mlp_ratio": mlp_ratio,
        "mask_token": "embedding.mask_token" in tensors,
    }
    stored = {ours: config[theirs] for theirs, ours in PANDA_ARGUMENTS.items() if theirs in config}
    if isinstance(stored.get("window"), (list, tuple)):
        if len(set(stored["window"])) != 1:
            raise ValueError(
                f"{path}: config has enc_patch_size = {stored['window']}, expected the same at every stage"
            )
        stored["window"] = stored["window"][0]
    if isinstance(stored.get("curves"), str):
        stored["curves"] = [stored["curves"]]
    # A mask token is needed in pretraining only: files with and without one go with either setting.
    stored.pop("mask_token", None)
    for name, value in shown.items():
        theirs = (
            list(stored[name]) if isinstance(stored.get(name), (list, tuple)) else stored.get(name, value)
        )
        if theirs != value:
            raise ValueError(f"{path}: config says {name} = {theirs}, the tensors {value}")
    # Published: 16 channels per head, windows of 256 points.
    return {"heads": [c // 16 for c in channels], "window": 256} | stored | shown
