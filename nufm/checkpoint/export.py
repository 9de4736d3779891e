"""Encoders on disk: weights together with everything needed to use them.

An export is a folder of two files:

    model.safetensors   the weights
    config.json         class and constructor arguments of the encoder, the transforms that events go
                        through before it, edge of a lattice cell, classes, units, provenance

Loading an export runs no code from it: ``config.json`` may only name encoders defined in ``nufm.models`` and
transforms defined in ``nufm.data.transforms``, with arguments that are numbers, strings, booleans, null,
or lists of these; safetensors holds nothing but arrays. Anything else is refused, and so are weights that
do not fit.

Released Panda weights (Young & Terao, arXiv 2512.01324; DeepLearnPhysics/Panda) are read by
``load_panda_pth``.

Shape legend: N points of an event, C feature width.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nufm
from nufm.checkpoint.weights import check_finite, check_fit, load_panda_pth, sha256, tensor_shapes
from nufm.data.event import Event, PointBatch
from nufm.data.transforms import Compose, Transform, compose, event_transforms
from nufm.models.ptv3 import upcast

FORMAT, FORMAT_VERSION = "nufm-encoder", 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
ENCODERS, TRANSFORMS = "nufm.models", "nufm.data.transforms"
HUB = "hf://"


@dataclass(frozen=True)
class Pretrained:
    """An encoder and how to use it.

    Attributes:
        encoder: in evaluation mode.
        transforms: what an event goes through, in order, before packing.
        grid_size: edge of a lattice cell, for ``PointBatch.from_events``.
        classes: label -> names of its classes, in order.
        units: quantity -> unit.
        extra: provenance: anything the exporter wrote down, as JSON.
        source: where it was loaded from.
    """

    encoder: nn.Module
    transforms: tuple[Transform, ...]
    grid_size: float
    classes: dict[str, list[str]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    def batch(self, events: Sequence[Event]) -> PointBatch:
        """The events as the encoder takes them. An event's seed fixes what its transforms draw at random."""
        ready = [compose(self.transforms, event, np.random.default_rng(event.seed)) for event in events]
        return PointBatch.from_events(ready, self.grid_size)

    @torch.no_grad()
    def features(self, event: Event) -> np.ndarray:
        """Features of every voxel of one event: all stages carried up to the voxels, in evaluation mode.

        A voxel that the transforms dropped (another one is in its lattice cell) gets the features of the
        nearest one kept.

        Returns:
            float32 (N, C), rows in the order of ``event``.
        """
        # Row numbers travel in place of a label: transforms may drop and reorder points.
        numbered = event.replace(particle=np.arange(len(event)))
        numbered = compose(self.transforms, numbered, np.random.default_rng(event.seed))
        batch = PointBatch.from_events([numbered], self.grid_size)
        device = next(self.encoder.parameters()).device
        was_training = self.encoder.training
        self.encoder.eval()
        try:
            kept = upcast(self.encoder(batch.to(device))).float().cpu().numpy()
        finally:
            self.encoder.train(was_training)
        row = np.full(len(event), -1)
        row[numbered.particle] = np.arange(len(kept))
        position, dropped = event.voxel.astype(np.float32), np.flatnonzero(row < 0)
        for start in range(0, len(dropped), 256):
            index = dropped[start : start + 256]
            distance = np.square(position[index, None] - position[None, numbered.particle]).sum(-1)
            row[index] = distance.argmin(1)
        return kept[row]

    def untrained(self, seed: int = 0) -> Pretrained:
        """The same architecture with fresh random weights; the global random state is left alone."""
        twin = untrained_twin(self.encoder, seed)
        return dataclasses.replace(self, encoder=twin, source=f"untrained, seed {seed}")


def untrained_twin(encoder: nn.Module, seed: int) -> nn.Module:
    """The same architecture with fresh weights, in evaluation mode, on the same device.

    The weights are drawn on the CPU, so that a seed means the same everywhere; the global random states, of the
    GPUs too, are left alone.

    Raises:
        ValueError: the encoder does not keep its constructor arguments.
    """
    arguments = _arguments(encoder, None)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPUs too, which fork_rng does not undo here (forking all of them
        # would start CUDA where it is not used); the weights need the CPU's generator only.
        torch.default_generator.manual_seed(seed)
        twin = type(encoder)(**arguments).eval()
    return twin.to(next(encoder.parameters()).device)


# ---- writing ------------------------------------------------------------


def save_pretrained(
    folder: str | Path,
    encoder: nn.Module,
    *,
    transforms: Sequence[Transform],
    grid_size: float,
    classes: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Write an encoder with its preprocessing, classes and units.

    Args:
        folder: made if it is not there; an export in it is replaced.
        encoder: of a class defined in ``nufm.models``.
        transforms: applied to an event before packing (not the augmentations of training).
        grid_size: edge of a lattice cell in the units of the transformed coordinates.
        classes: label -> names of its classes.
        units: quantity -> unit, e.g. energy: MeV.
        extra: provenance (data set, commit, step, student or teacher, scores), anything JSON can hold.
        arguments: constructor arguments of the encoder; by default its attribute ``arguments``.

    Returns:
        The folder.

    Raises:
        ValueError: something that could not be loaded again, or weights that are not finite.
    """
    folder = Path(folder)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in encoder.state_dict().items()}
    check_finite(tensors, "encoder")
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "nufm_version": nufm.__version__,
        "encoder": _description(encoder, _arguments(encoder, arguments), ENCODERS),
        "transforms": [_description(t, _fields(t), TRANSFORMS) for t in _flatten(transforms)],
        "grid_size": float(grid_size),
        "classes": {k: list(v) for k, v in (classes or {}).items()},
        "units": dict(units or {}),
        "extra": dict(extra or {}),
        "weights": {"file": WEIGHTS, "parameters": sum(p.numel() for p in encoder.parameters())},
    }
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: cannot be written as JSON: {error}; use plain numbers, strings and lists"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.{os.getpid()}.tmp"
    save_file(tensors, partial, metadata={"format": "pt"})
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o666 & ~umask)  # safetensors makes files that only their owner can read
    config["weights"]["sha256"] = sha256(partial)
    # The old config goes first and the new one comes last: a folder with a config is a complete export.
    (folder / CONFIG).unlink(missing_ok=True)
    os.replace(partial, folder / WEIGHTS)
    partial = folder / f".{CONFIG}.{os.getpid()}.tmp"
    partial.write_text(json.dumps(config, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG)
    return folder


def _arguments(encoder: nn.Module, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    found = getattr(encoder, "arguments", None) if arguments is None else arguments
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{type(encoder).__name__} does not keep its constructor arguments in an attribute 'arguments'; "
            "pass them as save_pretrained(..., arguments={...})"
        )
    return dict(found)


def _fields(transform: Transform) -> dict[str, Any]:
    if not dataclasses.is_dataclass(transform):
        raise ValueError(
            f"transform {transform!r} is not a dataclass; only those of {TRANSFORMS} can be exported"
        )
    return {f.name: getattr(transform, f.name) for f in dataclasses.fields(transform)}


def _flatten(transforms: Sequence[Transform]) -> list[Transform]:
    flat: list[Transform] = []
    for transform in transforms:
        flat.extend(_flatten(transform.transforms) if isinstance(transform, Compose) else [transform])
    return flat


def _description(thing: object, arguments: Mapping[str, Any], package: str) -> dict[str, Any]:
    """``class_path`` and ``init_args``, checked as they will be when they are read."""
    path = f"{type(thing).__module__}.{type(thing).__qualname__}"
    cls = _allowed_class(path, package, "export")
    _check_arguments(cls, arguments, "export")
    plain = json.loads(json.dumps(arguments, allow_nan=False))
    return {"class_path": path, "init_args": plain}


# ---- reading ------------------------------------------------------------


def from_pretrained(source: str | Path, map_location: torch.device | str = "cpu") -> Pretrained:
    """Load an export.

    Args:
        source: an export folder; a run folder, of which ``export/`` is taken; ``hf://owner/name`` (or
            ``owner/name`` if there is no such folder), optionally with ``@revision``, downloaded from the
            Hugging Face Hub (not tested against the Hub itself: tests run without a network); or released
            Panda weights, a ``.pth`` file, which come with the published preprocessing.
        map_location: device of the encoder.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: it is not an export, it is damaged, or it asks for something that is not allowed.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".pth":
        encoder = load_panda_pth(path).to(map_location)
        extra = {"imported": "released Panda weights", "file": path.name}
        return Pretrained(encoder, tuple(event_transforms()), 0.001, extra=extra, source=str(path))
    folder = _folder(source)
    config = _read_config(folder / CONFIG)
    encoder = _build_encoder(config, folder)
    transforms = tuple(_build(entry, TRANSFORMS, folder / CONFIG) for entry in config["transforms"])
    return Pretrained(
        encoder=encoder.to(map_location).eval(),
        transforms=transforms,
        grid_size=config["grid_size"],
        classes=config["classes"],
        units=config["units"],
        extra=config["extra"],
        source=str(source),
    )


def _folder(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.is_file() and path.name in (WEIGHTS, CONFIG):
        path = path.parent
    if path.is_file():
        raise ValueError(
            f"{path}: not an export; give the export folder or the run folder (a Lightning .ckpt is for "
            "resuming only)"
        )
    if path.is_dir():
        for folder in (path, path / "export"):
            if (folder / CONFIG).is_file():
                return folder
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"{path}: neither an export ({WEIGHTS}, {CONFIG}) nor a run with an export/ in it, found "
            f"{found}; a run writes its export when it ends"
        )
    name = str(source)
    if name.startswith(HUB) or re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        return _download(name.removeprefix(HUB), explicit=name.startswith(HUB))
    raise FileNotFoundError(
        f"{path}: no such file or folder; expected an export folder, a run folder or hf://owner/name"
    )


def _download(name: str, explicit: bool) -> Path:
    """Export folder of a model on the Hugging Face Hub: the two files, nothing else."""
    from huggingface_hub import snapshot_download  # imported here: it is slow to import and rarely needed

    name, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=["*.safetensors", CONFIG])
        )
    except Exception as error:  # "no network" and "no such model" are errors of several libraries
        here = "" if explicit else f"there is no folder '{name}' here, and "
        raise FileNotFoundError(
            f"{here}the model '{name}' could not be downloaded from the Hugging Face Hub: {error}"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an export holds {WEIGHTS} and {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not valid JSON, it is truncated or damaged ({error}); get it again"
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"{path}: field 'format' is {found!r}, expected '{FORMAT}'; released Panda weights are read by "
            "nufm.checkpoint.load_panda_pth"
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: field 'format_version' is {config.get('format_version')!r}, this nufm "
            f"{nufm.__version__} reads {FORMAT_VERSION}; written by nufm {config.get('nufm_version')!r}, "
            "install that one"
        )
    expected = {
        **{"encoder": dict, "transforms": list, "grid_size": float},
        **{"classes": dict, "units": dict, "extra": dict, "weights": dict},
    }
    for name, kind in expected.items():
        if not isinstance(config.get(name), kind):
            raise ValueError(f"{path}: field '{name}' is {config.get(name)!r}, expected a {kind.__name__}")
    if not 0 < config["grid_size"] < float("inf"):
        raise ValueError(f"{path}: field 'grid_size' is {config['grid_size']}, expected a positive number")
    return config


def _build_encoder(config: dict[str, Any], folder: Path) -> nn.Module:
    """Encoder with the weights of ``model.safetensors``, which must fit exactly."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an export holds {WEIGHTS} and {CONFIG}")
    found = tensor_shapes(path)
    with torch.device("meta"):  # first without memory: a config can ask for any size
        wanted = {
            k: tuple(v.shape)
            for k, v in _build(config["encoder"], ENCODERS, folder / CONFIG).state_dict().items()
        }
    check_fit(found, wanted, path)
    digest = sha256(path)
    if config["weights"].get("sha256") != digest:
        raise ValueError(
            f"{path}: SHA-256 is {digest[:16]}…, {CONFIG} says "
            f"{str(config['weights'].get('sha256'))[:16]}…; the weights are damaged or belong to another "
            "export, get both files again"
        )
    # Initial weights are drawn only to be replaced: loading must not shift anyone's random numbers.
    with torch.random.fork_rng(devices=[]):
        encoder = _build(config["encoder"], ENCODERS, folder / CONFIG)
    tensors = load_file(path)
    check_finite(tensors, str(path))
    encoder.load_state_dict(tensors, assign=True)
    return encoder.requires_grad_(True)


def _build(entry: object, package: str, where: Path) -> Any:
    """The object that ``{"class_path": ..., "init_args": {...}}`` describes."""
    if not isinstance(entry, dict) or set(entry) != {"class_path", "init_args"}:
        raise ValueError(
            f"{where}: {entry!r:.200} is not of the form {{'class_path': ..., 'init_args': {{...}}}}"
        )
    cls = _allowed_class(entry["class_path"], package, where)
    _check_arguments(cls, entry["init_args"], where)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["init_args"].items()}
    try:
        return cls(**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f"{where}: {entry['class_path']} cannot be built from {arguments}: {error}"
        ) from error


def _allowed_class(path: object, package: str, where: object) -> type:
    """The class of an import path, if ``package`` defines it: what its modules only import is refused."""
    kind = nn.Module if package == ENCODERS else Transform
    pattern = rf"{re.escape(package)}(\.[a-z]\w*)*\.[A-Z]\w*"
    if not isinstance(path, str) or not re.fullmatch(pattern, path, re.ASCII):
        raise ValueError(f"{where}: class_path {path!r:.200} is not allowed; expected a class in {package}")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{where}: there is no class {path} in this nufm {nufm.__version__}; was the file written by a "
            "newer one?"
        ) from error
    if not isinstance(cls, type) or not issubclass(cls, kind) or cls.__module__ != module:
        raise ValueError(
            f"{where}: class_path {path!r} is not allowed; expected a {kind.__name__} defined in {package}"
        )
    return cls


def _check_arguments(cls: type, arguments: object, where: object) -> None:
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{where}: arguments of {cls.__name__} are a {type(arguments).__name__}, expected names and "
            "values"
        )
    known = list(inspect.signature(cls).parameters)
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(f"{where}: {cls.__name__} has no argument {name!r}; it has {', '.join(known)}")
        items = value if isinstance(value, (list, tuple)) else [value]
        if not all(item is None or type(item) in (bool, int, float, str) for item in items):
            raise ValueError(
                f"{where}: argument '{name}' of {cls.__name__} is {value!r:.200}; allowed are numbers, "
                "strings, booleans, null, and lists of these"
            )
