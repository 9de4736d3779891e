"""Which implementation of an op runs: the torch reference, a Triton kernel or one of the classic packages.

The functions of :mod:`nufm.ops` check their arguments and then call :func:`run`, which takes the first backend of
:data:`PREFERENCE` that applies to the tensors at hand, or the reference that the function brings itself.
``NUFM_BACKEND`` or :func:`use_backend` force one:

    auto                    the default: the fastest that applies
    torch                   the reference everywhere
    triton                  Triton wherever it implements an op, an error where it then does not apply
    spconv,flash_attn       the first of the list that implements an op; ops that none implements: torch
    triton,torch            as above, but what does not apply falls back to the reference

``python -m nufm.ops`` prints what is active and why the rest is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

VARIABLE = "NUFM_BACKEND"
AUTO = ("auto",)
REFERENCE = "torch"

# Backend -> how it gets onto a machine. Each is a module of nufm.ops.backends with
#   IMPLEMENTATIONS: dict[str, Implementation]   op -> implementation
#   unavailable() -> str | None                  why nothing of it can run on this machine; None if it can
# whose import raises ImportError where its package is missing (nothing else is silent).
BACKENDS = {
    "triton": "comes with torch for Linux and a GPU; or: pip install triton",
    "spconv": "pip install spconv-cu126 (or the build for your CUDA)",
    "flash_attn": "pip install flash-attn",
    "torch_varlen": "comes with torch >= 2.10",
    "torch_scatter": "pip install torch-scatter",
}

# Op -> backends in the order of the speed we expect of them; the reference comes last in every row and applies always.
PREFERENCE: dict[str, tuple[str, ...]] = {
    "sparse_conv": ("triton", "spconv"),
    "windowed_attention": ("flash_attn", "torch_varlen", "triton"),
    "attention_dropout": (),
    "segment_sum": ("triton", "torch_scatter"),
    "segment_max": ("triton", "torch_scatter"),
    "curve_code": ("triton",),
    "neighbor_pairs": ("triton",),
    "k_nearest": (),
    "ball_query": (),
    "farthest_points": (),
    "centrality_nms": (),
}


class BackendError(RuntimeError):
    """A forced backend is missing or does not apply."""


@dataclass(frozen=True)
class Implementation:
    """One op on one backend.

    Attributes:
        run: same arguments and result as the reference.
        refuses: called with the arguments of ``run``: why they cannot be taken, or None if they can.
        conditions: the same in words, for the table of ``python -m nufm.ops``.
    """

    run: Callable[..., Any]
    refuses: Callable[..., str | None]
    conditions: str


_forced: ContextVar[tuple[str, ...] | None] = ContextVar("nufm_backend", default=None)
_used: dict[str, set[str]] = {}


def parse(names: str) -> tuple[str, ...]:
    """Backends named in ``NUFM_BACKEND``.

    Raises:
        ValueError: a name that is no backend.
    """
    listed = tuple(name.strip() for name in names.split(",") if name.strip()) or AUTO
    known = ("auto", REFERENCE, *BACKENDS)
    for name in listed:
        if name not in known or (name == "auto" and len(listed) > 1):
            raise ValueError(f"{VARIABLE}={names}: expected auto, or a list of {', '.join(known[1:])}; found '{name}'")
    return listed


@cache
def _environment(value: str) -> tuple[str, ...]:
    return parse(value)


def preference() -> tuple[str, ...]:
    """The backends asked for: by the innermost :func:`use_backend`, else by the environment, else ``("auto",)``."""
    forced = _forced.get()
    return _environment(os.environ.get(VARIABLE, "auto")) if forced is None else forced


@contextmanager
def use_backend(*names: str) -> Iterator[None]:
    """Force backends within a ``with`` block: ``with use_backend("torch"): ...``.

    Args:
        names: as in ``NUFM_BACKEND``, in order of preference.

    Raises:
        ValueError: a name that is no backend.
    """
    token = _forced.set(parse(",".join(names)))
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def load(backend: str) -> ModuleType | str:
    """The module of a backend, or why there is none."""
    try:
        return import_module(f"nufm.ops.backends.{backend}")
    except ImportError as error:
        return f"not installed ({error}); {BACKENDS[backend]}"


@cache
def _unavailable(backend: str) -> str | None:
    module = load(backend)
    return module if isinstance(module, str) else module.unavailable()


def refusal(backend: str, op: str, *args: Any) -> str | None:
    """Why ``backend`` does not run ``op`` with these arguments; None if it does."""
    reason = _unavailable(backend)
    if reason is None:
        reason = load(backend).IMPLEMENTATIONS[op].refuses(*args)
    return reason


def implements(backend: str, op: str) -> bool:
    return backend in PREFERENCE[op]


def choose(op: str, *args: Any) -> str:
    """Name of the backend that runs ``op`` with these arguments.

    Raises:
        BackendError: the backends that were asked for implement the op, but are missing or do not apply.
    """
    asked = preference()
    if asked == AUTO:
        return next((name for name in PREFERENCE[op] if refusal(name, op, *args) is None), REFERENCE)
    reasons = []
    for name in asked:
        if name == REFERENCE:
            return REFERENCE
        if implements(name, op):
            reason = refusal(name, op, *args)
            if reason is None:
                return name
            reasons.append(f"{name}: {reason}")
    if reasons:
        raise BackendError(
            f"{op} was asked of {','.join(asked)} ({VARIABLE} or use_backend), but {'; '.join(reasons)}. "
            f"Append ',torch' to the list to fall back to the reference, or use 'auto'"
        )
    return REFERENCE


def run(op: str, reference: Callable[..., Any], *args: Any) -> Any:
    """Run ``op``: on the backend that :func:`choose` names, or ``reference(*args)``."""
    name = choose(op, *args)
    _used.setdefault(op, set()).add(name)
    if name == REFERENCE:
        return reference(*args)
    return load(name).IMPLEMENTATIONS[op].run(*args)


def forget_used() -> None:
    """Let :func:`used` begin anew."""
    _used.clear()


def used() -> dict[str, tuple[str, ...]]:
    """Op -> backends that have run it in this process, or since :func:`forget_used`."""
    return {op: tuple(sorted(names)) for op, names in sorted(_used.items())}


def used_line() -> str:
    """What :func:`used` says, on one line for the log of a run."""
    by_backend: dict[str, list[str]] = {}
    for op, names in used().items():
        by_backend.setdefault("+".join(names), []).append(op)
    parts = [f"{backend}: {', '.join(ops)}" for backend, ops in sorted(by_backend.items())]
    return f"ops ({VARIABLE}={','.join(preference())}): " + ("; ".join(parts) or "none has run")


def table() -> list[tuple[str, str, str]]:
    """Rows of (op, backend, state) for every op and backend, in order of preference."""
    rows = []
    for op, names in PREFERENCE.items():
        for name in names:
            try:
                reason = _unavailable(name)
            except Exception as error:  # elsewhere it ends the run; here it is what was asked for
                reason = f"broken: {type(error).__name__}: {error}"
            if reason is None:
                reason = f"active for {load(name).IMPLEMENTATIONS[op].conditions}"
            rows.append((op, name, reason))
        rows.append((op, REFERENCE, "active for anything" if not names else "active for all else"))
    return rows
