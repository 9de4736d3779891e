"""Objects as JSON and back: an import path and plain arguments, from two packages of nufm and no others.

    {"class_path": "nufm.models.segmenter.Segmenter",
     "init_args": {"encoder": {"class_path": "nufm.models.ptv3.PointTransformerV3", "init_args": {}}, "n_classes": 5}}

A file that comes from a stranger may only name models defined in ``nufm.models`` and transforms defined in
``nufm.data.transforms``, ``nufm.data.stream_transforms`` or ``nufm.data.image_transforms``, with arguments that are
numbers, strings, booleans, null, lists of these, or, for a model, further models. Everything else is refused before
anything is imported or built.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import nufm
from nufm.data.transforms import Transform

MODELS, TRANSFORMS = "nufm.models", "nufm.data.transforms"
# Where the classes of each kind may be defined: models also in modules below.
PLACES = {
    MODELS: (MODELS,),
    TRANSFORMS: (TRANSFORMS, "nufm.data.stream_transforms", "nufm.data.image_transforms"),
}
BLOCKS = ("depths", "depth", "repetitions")  # arguments that say how much is built
MAX_DEPTH = 4  # models inside models: a file must not recurse without end


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """Constructor arguments that a model keeps.

    Raises:
        ValueError: it keeps none.
    """
    found = getattr(model, "arguments", None)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{type(model).__name__} does not keep its constructor arguments in an attribute 'arguments'; "
            "pass them as save_pretrained(..., arguments={...})"
        )
    return dict(found)


def describe_model(model: nn.Module, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model as ``class_path`` and ``init_args``; models among its arguments likewise.

    Raises:
        ValueError: it could not be built again from that.
    """
    arguments = arguments_of(model) if arguments is None else arguments
    return _describe(model, arguments, MODELS)


def describe_transform(transform: Transform) -> dict[str, Any]:
    """A transform as ``class_path`` and ``init_args``.

    Raises:
        ValueError: it could not be built again from that.
    """
    if not dataclasses.is_dataclass(transform):
        raise ValueError(
            f"transform {transform!r} is not a dataclass; only those of {_places(TRANSFORMS)} can be exported"
        )
    fields = {f.name: getattr(transform, f.name) for f in dataclasses.fields(transform)}
    return _describe(transform, fields, TRANSFORMS)


def _describe(thing: object, arguments: Mapping[str, Any], package: str) -> dict[str, Any]:
    """Checked as it will be when it is read."""
    path = f"{type(thing).__module__}.{type(thing).__qualname__}"
    cls = allowed_class(path, package, "export")
    if isinstance(arguments, Mapping) and package == MODELS:
        arguments = {k: describe_model(v) if isinstance(v, nn.Module) else v for k, v in arguments.items()}
    check_arguments(cls, arguments, package, "export")
    return {"class_path": path, "init_args": json.loads(json.dumps(arguments, allow_nan=False))}


def build(entry: object, package: str, where: object, depth: int = 0) -> Any:
    """The object that ``{"class_path": ..., "init_args": {...}}`` describes.

    Args:
        entry: as read from a file.
        package: ``MODELS`` or ``TRANSFORMS``: what the object must be.
        where: the file, for messages.

    Raises:
        ValueError: it asks for something that is not allowed, or cannot be built.
    """
    if not is_description(entry):
        raise ValueError(f"{where}: {entry!r:.200} is not of the form {{'class_path': ..., 'init_args': {{...}}}}")
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: models inside models, more than {MAX_DEPTH} deep")
    cls = allowed_class(entry["class_path"], package, where)
    check_arguments(cls, entry["init_args"], package, where)
    arguments = {}
    for name, value in entry["init_args"].items():
        if isinstance(value, dict):
            value = build(value, package, where, depth + 1)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        # AttributeError: an argument that is a model of the wrong kind
        raise ValueError(
            f"{where}: {entry['class_path']} cannot be built from {entry['init_args']}: {error}"
        ) from error


def check_size(entry: object, n_tensors: int, where: object) -> None:
    """Refuse a description with more blocks than its file has tensors: a number in it could keep us building for days.

    Raises:
        ValueError: there are more.
    """
    blocks = _blocks(entry, 0)
    if blocks > n_tensors:
        raise ValueError(
            f"{where}: the arguments {', '.join(BLOCKS)} ask for {blocks} blocks, expected at most one for each of the "
            f"{n_tensors} tensors of the weights"
        )


def _blocks(entry: object, depth: int) -> int:
    """Blocks that a description asks for: the sum of a list (a stage has a tensor even without blocks), the product of
    single numbers; models inside it too.
    """
    arguments = entry.get("init_args") if isinstance(entry, dict) else None
    if not isinstance(arguments, dict) or depth > MAX_DEPTH:  # refused by whoever builds it
        return 0
    total, product = sum(_blocks(value, depth + 1) for value in arguments.values()), 1
    for name in BLOCKS:
        value = arguments.get(name)
        if isinstance(value, (list, tuple)):
            total += sum(max(n, 1) for n in value if type(n) is int)
        elif type(value) is int:
            product *= max(value, 1)
    return total + (product if product > 1 else 0)


def rebuilt(model: nn.Module) -> nn.Module:
    """The same architecture with fresh weights, drawn from torch's CPU generator; models inside it too."""
    arguments = {k: rebuilt(v) if isinstance(v, nn.Module) else v for k, v in arguments_of(model).items()}
    with torch.device("cpu"):
        return type(model)(**arguments)


def is_description(entry: object) -> bool:
    return isinstance(entry, dict) and set(entry) == {"class_path", "init_args"}


def allowed_class(path: object, package: str, where: object) -> type:
    """The class of an import path, if a place of ``package`` defines it: what its modules only import is refused."""
    kind = nn.Module if package == MODELS else Transform
    pattern = rf"({'|'.join(map(re.escape, PLACES[package]))})(\.[a-z]\w*)*\.[A-Z]\w*"
    if not isinstance(path, str) or not re.fullmatch(pattern, path, re.ASCII):
        raise ValueError(f"{where}: class_path {path!r:.200} is not allowed; expected a class in {_places(package)}")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{where}: there is no class {path} in this nufm {nufm.__version__}; was the file written by a newer one?"
        ) from error
    if not isinstance(cls, type) or not issubclass(cls, kind) or cls.__module__ != module:
        raise ValueError(
            f"{where}: class_path {path!r} is not allowed; expected a {kind.__name__} defined in {_places(package)}"
        )
    return cls


def _places(package: str) -> str:
    return " or ".join(PLACES[package])


def check_arguments(cls: type, arguments: object, package: str, where: object) -> None:
    """Refuse arguments that ``cls`` does not have, and values that are not plain."""
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{where}: arguments of {cls.__name__} are a {type(arguments).__name__}, expected names and values"
        )
    known = list(inspect.signature(cls).parameters)
    for name, value in arguments.items():
        if name not in known:
            raise ValueError(f"{where}: {cls.__name__} has no argument {name!r}; it has {', '.join(known)}")
        if package == MODELS and is_description(value):
            continue
        items = value if isinstance(value, (list, tuple)) else [value]
        if not all(item is None or type(item) in (bool, int, float, str) for item in items):
            models = ", and descriptions of models" if package == MODELS else ""
            raise ValueError(
                f"{where}: argument '{name}' of {cls.__name__} is {value!r:.200}; allowed are numbers, "
                f"strings, booleans, null, lists of these{models}"
            )
