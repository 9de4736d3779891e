"""Files of weights: what is checked before they are believed.

Nothing here unpickles objects: safetensors hold arrays only, and ``.pth`` files are read with
``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # what weights may be stored in


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
        raise ValueError(f"{where}: the tensors do not fit the model. " + "; ".join(problems))


def check_types(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: object) -> None:
    """Refuse tensors that are no weights: another kind of number than the model's, sparse, or without content."""
    for name, tensor in tensors.items():
        own = wanted[name].dtype
        expected = FLOATING if own.is_floating_point else (own,)
        if tensor.dtype not in expected:
            raise ValueError(
                f"{where}: tensor '{name}' is {_short(tensor.dtype)}, expected {' or '.join(map(_short, expected))}"
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{where}: tensor '{name}' is sparse or has no content, expected a dense one")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def read_pickled(path: Path, instead: str) -> Any:
    """Content of a file that ``torch.save`` wrote, if it holds tensors and plain values only.

    Args:
        path: an existing file.
        instead: what to use if it must be refused, for the message.

    Raises:
        ValueError: it holds objects whose loading could run code, or it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines() or [""]
        said = next((line.strip() for line in reason if "GLOBAL" in line or "Unsupported" in line), reason[-1].strip())
        raise ValueError(
            f"{path}: refused, it holds pickled objects other than tensors and plain values, whose loading could run "
            f"any code ({said:.200}); {instead}"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read, it is truncated or damaged ({error}); get it again") from error


def built_empty(cls: Callable[..., Model], arguments: Mapping[str, Any], path: Path) -> Model:
    """A model without memory: the tensors of a stranger's file can ask for any size."""
    with torch.device("meta"):
        try:
            return cls(**arguments)
        except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
            raise ValueError(f"{path}: {cls.__name__} cannot be built from {dict(arguments)}: {error}") from error
