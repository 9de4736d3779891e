"""Models on disk: weights together with everything needed to use them.

An export is a folder of two files:

    model.safetensors   the weights
    config.json         class and constructor arguments of the model (an encoder, or a network with an encoder in it),
                        kind of events it takes, task, transforms that events go through before it, how they are
                        selected, edge of a lattice cell, classes, units, provenance

Loading an export runs no code from it (see ``nufm.checkpoint.describe``); safetensors holds nothing but arrays.
Anything else is refused, and so are weights that do not fit. Version 1 of the format held encoders only and is
still read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nufm
from nufm.checkpoint.adapters import on_base
from nufm.checkpoint.compatible import flatten
from nufm.checkpoint.describe import MODELS, TRANSFORMS, build, check_size, describe_model, describe_transform
from nufm.checkpoint.files import CONFIG, LIGHTNING, MARK, WEIGHTS, find_export, hub_name
from nufm.checkpoint.kinds import INPUTS, WORDS, inputs_named, inputs_of
from nufm.checkpoint.panda import load_panda
from nufm.checkpoint.polarmae import load_polarmae
from nufm.checkpoint.pretrained import ENERGY_THRESHOLD, Pretrained
from nufm.checkpoint.sizes import parameter_count
from nufm.checkpoint.weights import check_finite, check_fit, check_types, sha256, tensor_shapes
from nufm.data.tasks import KNOWN_TASKS, task_named
from nufm.data.transforms import Transform

FORMAT, FORMAT_VERSION = "nufm-model", 2
FIRST_FORMAT = "nufm-encoder"  # of version 1


# ---- writing ------------------------------------------------------------


def save_pretrained(
    folder: str | Path,
    model: nn.Module,
    *,
    transforms: Sequence[Transform],
    grid_size: float | None = None,
    task: str | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    selection: Mapping[str, float] | None = None,
    extra: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model with its preprocessing, task, classes and units.

    Args:
        folder: made if it is not there; an export in it is replaced.
        model: of a class defined in ``nufm.models``.
        transforms: applied to an event before packing (not the augmentations of training).
        grid_size: edge of a lattice cell in the units of the transformed coordinates; None for models of events with
            several streams, whose lattices are the detector's, and of pixel maps.
        task: what the model predicts, a name of ``nufm.data.tasks.TASKS`` or ``EVENT_TASKS``; None for an encoder.
        classes: label -> names of its classes; those of the task are added if they are not given.
        units: quantity -> unit, e.g. energy: MeV.
        selection: how events of points were read: ``energy_threshold`` in MeV (default 0.13).
        extra: provenance (data set, commit, step, student or teacher, scores), anything JSON can hold.
        arguments: constructor arguments of the model; by default its attribute ``arguments``.

    Returns:
        The folder.

    Raises:
        ValueError: something that could not be loaded again, a task that the model does not fit, or weights that
            are not finite.
    """
    folder = Path(folder)
    inputs = inputs_of(model)
    _check_grid(model, grid_size, str(folder))
    selection = {**({"energy_threshold": ENERGY_THRESHOLD} if inputs == "points" else {}), **(selection or {})}
    _check_selection(selection, str(folder))
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    check_finite(tensors, type(model).__name__)
    named = {k: list(v) for k, v in (classes or {}).items()}
    if task is not None:
        named = predicted_classes(model, task) | named
        _check_task(model, task, named, str(folder))
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "nufm_version": nufm.__version__,
        "model": describe_model(model, arguments),
        "inputs": inputs,
        "task": task,
        "transforms": [describe_transform(t) for t in flatten(transforms)],
        "grid_size": None if grid_size is None else float(grid_size),
        "selection": {name: float(value) for name, value in selection.items()},
        "classes": named,
        "units": dict(units or {}),
        "extra": dict(extra or {}),
        "weights": {"file": WEIGHTS, "parameters": parameter_count(model)},
    }
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: cannot be written as JSON: {error}; use plain numbers, strings and lists"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.{os.getpid()}.tmp"
    # One entry: safetensors writes several in any order, and the same export would have another SHA-256 each time.
    save_file(tensors, partial, metadata={MARK: nufm.__version__})
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


def predicted_classes(model: nn.Module, task: str) -> dict[str, list[str]]:
    """Label -> names of its classes, of those labels of a task that a model predicts: of events some, of points one."""
    predicted = getattr(model, "n_classes", None)
    labels = task_named(task).labels
    return {k: list(v) for k, v in labels.items() if not isinstance(predicted, Mapping) or k in predicted}


def _check_task(model: nn.Module, task: str, classes: Mapping[str, Sequence[str]], where: str) -> None:
    """Refuse a task that the model cannot fulfil: no classes, another number of them, points where instances are
    asked for or the reverse, or another class that is stuff.
    """
    wanted = task_named(task)
    n_classes = getattr(model, "n_classes", None)
    if n_classes is None or not hasattr(model, "predict"):
        raise ValueError(
            f"{where}: the task is '{task}', but {type(model).__name__} predicts no classes; an encoder alone has none"
        )
    kind = getattr(model, "kind", None)
    if kind != wanted.kind:
        raise ValueError(
            f"{where}: the task '{task}' is {wanted.kind}, {type(model).__name__} is {kind}; expected one of "
            f"{', '.join(t.name for t in KNOWN_TASKS.values() if t.kind == kind)}"
        )
    # A model of points has the classes of its one label, a model of events those of each label that it predicts.
    predicted = n_classes if isinstance(n_classes, Mapping) else {next(iter(wanted.labels)): n_classes}
    for label, number in predicted.items():
        names = classes.get(label, wanted.labels.get(label, ()))
        if number != len(names):
            raise ValueError(
                f"{where}: the model has {number} classes, the task '{task}' {len(names)} ({', '.join(names)}); is it "
                "a model for another task?"
            )
    stuff = getattr(model, "stuff_class", None)
    if stuff != wanted.stuff:
        raise ValueError(
            f"{where}: stuff_class of the model is {stuff}, expected {wanted.stuff} "
            f"({names[wanted.stuff] if wanted.stuff is not None else 'none'}) for the task '{task}'"
        )


def _check_grid(model: nn.Module, grid_size: float | None, where: str) -> None:
    """Models of points are packed on a lattice of their own, others are not."""
    inputs = inputs_of(model)
    if (inputs == "points") != (grid_size is not None):
        raise ValueError(
            f"{where}: field 'grid_size' is {grid_size!r} for {type(model).__name__}, a model of {WORDS[inputs][0]}; "
            "expected a number for models of points and null for others"
        )


def _check_selection(selection: Mapping[str, Any], where: str) -> None:
    for name, value in selection.items():
        if name != "energy_threshold" or type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise ValueError(f"{where}: field 'selection' has {name} = {value!r}, expected energy_threshold in MeV")


# ---- reading ------------------------------------------------------------


def from_pretrained(
    source: str | Path, map_location: torch.device | str = "cpu", base: str | Path | None = None
) -> Pretrained:
    """Load an export, or released weights of Panda, PoLAr-MAE or Point-MAE.

    Args:
        source: an export folder; a run folder, of which ``export/`` is taken; released weights, which come with the
            published preprocessing and, if the model has a head, its task: of Panda, a ``.pth`` or ``.safetensors``
            file or a folder with one and perhaps ``config.json``, or of PoLAr-MAE and Point-MAE, a ``.ckpt`` file; or
            ``hf://owner/name`` (or ``owner/name`` if there is no such folder), optionally with ``@revision`` or
            ``/file.pth``, downloaded from the Hugging Face Hub: ``DeepLearnPhysics/Panda-Base``,
            ``…/Panda-Semantic``, ``…/Panda-Particle``, ``…/Panda-Interaction`` (not tested against the Hub itself:
            tests run without a network).
        map_location: device of the model.
        base: of an image-text model, whose export holds adapters alone: folder of the base, or its name on the Hub, if
            it is no longer where it was in the training.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: it is not an export, it is damaged, it asks for something that is not allowed, or its adapters were
            trained on another base.
    """
    place = find_export(source)
    if place.name != CONFIG:
        if base is not None:
            raise ValueError(f"{place}: released weights have no base; load them without 'base'")
        lightning = place.suffix == LIGHTNING
        loaded = load_polarmae(place) if lightning else load_panda(place, hub=hub_name(source))
        loaded.model.to(map_location)
        return loaded
    config = on_base(_read_config(place), base, place)
    model = _build_model(config, place.parent)
    transforms = tuple(build(entry, TRANSFORMS, place) for entry in config["transforms"])
    _check_grid(model, config["grid_size"], str(place))
    if (named := inputs_named(config)) != inputs_of(model):
        raise ValueError(
            f"{place}: field 'inputs' is {named!r}, but a {type(model).__name__} takes {inputs_of(model)}; expected "
            "the same of both"
        )
    if config["task"] is not None:
        _check_task(model, config["task"], config["classes"], str(place))
    return Pretrained(
        model=model.to(map_location).eval(),
        transforms=transforms,
        grid_size=config["grid_size"],
        task=config["task"],
        classes=config["classes"],
        units=config["units"],
        selection=config["selection"],
        extra=config["extra"],
        source=str(source),
        base=None if base is None else str(base),
    )


def _read_config(path: Path) -> dict[str, Any]:
    """``config.json``, checked; one of version 1 in the form of version 2."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not valid JSON, it is truncated or damaged ({error}); get it again"
        ) from error
    if not isinstance(config, dict) or config.get("format") not in (FORMAT, FIRST_FORMAT):
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path}: field 'format' is {found!r}, expected '{FORMAT}'")
    version = config.get("format_version")
    if version != (FORMAT_VERSION if config["format"] == FORMAT else 1):
        raise ValueError(
            f"{path}: field 'format_version' is {version!r}, this nufm {nufm.__version__} reads up to "
            f"{FORMAT_VERSION}; written by nufm {config.get('nufm_version')!r}, install that one"
        )
    if config["format"] == FIRST_FORMAT:
        config = {"model": config.get("encoder"), "task": None, "selection": {}, **config}
    expected = {
        **{"model": dict, "transforms": list, "grid_size": float | None, "selection": dict},
        **{"classes": dict, "units": dict, "extra": dict, "weights": dict},
    }
    for name, kind in expected.items():
        if name not in config or not isinstance(config[name], kind):
            wanted = getattr(kind, "__name__", "float or null")
            raise ValueError(f"{path}: field '{name}' is {config.get(name)!r}, expected a {wanted}")
    if config["grid_size"] is not None and not 0 < config["grid_size"] < float("inf"):
        raise ValueError(f"{path}: field 'grid_size' is {config['grid_size']}, expected a positive number")
    if config.get("inputs", "points") not in INPUTS:
        raise ValueError(f"{path}: field 'inputs' is {config['inputs']!r}, expected one of {', '.join(INPUTS)}")
    if config.get("task", "") not in (None, *KNOWN_TASKS):
        raise ValueError(
            f"{path}: field 'task' is {config.get('task')!r}, expected null or one of {', '.join(KNOWN_TASKS)}"
        )
    _check_selection(config["selection"], str(path))
    for label, names in config["classes"].items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: field 'classes' has {label} = {names!r:.200}, expected a list of names")
    return config


def _build_model(config: dict[str, Any], folder: Path) -> nn.Module:
    """Model with the weights of ``model.safetensors``, which must fit exactly."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an export holds {WEIGHTS} and {CONFIG}")
    found = tensor_shapes(path)
    check_size(config["model"], len(found), folder / CONFIG)
    with torch.device("meta"):  # first without memory: a config can ask for any size
        wanted = {k: tuple(v.shape) for k, v in build(config["model"], MODELS, folder / CONFIG).state_dict().items()}
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
        model = build(config["model"], MODELS, folder / CONFIG)
    tensors, own = load_file(path), model.state_dict()
    check_types(tensors, own, path)
    check_finite(tensors, str(path))
    # In the file's precision, but in the memory order the model chose: kernels read it so.
    laid_out = {k: torch.empty_like(own[k], dtype=v.dtype).copy_(v) for k, v in tensors.items()}
    model.load_state_dict(laid_out, assign=True)
    return model.requires_grad_(True)
