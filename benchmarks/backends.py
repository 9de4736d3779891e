"""Calls with a backend forced, and which of them run on this machine."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from measure import Call, settled

from nufm.ops import dispatch
from nufm.ops.dispatch import BackendError, use_backend


def present(backend: str) -> bool:
    """Whether a backend can run anything on this machine."""
    module = dispatch.load(backend)
    return not isinstance(module, str) and module.unavailable() is None


def guarded(call: Call, backend: str) -> Call:
    """The call with backends forced."""

    def run() -> object:
        with use_backend(*backend.split(",")):
            return call()

    return run


def runnable(calls: Mapping[str, Call], device: torch.device) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of the calls that run, and why the others do not: an unattended run goes on whatever a backend does."""
    expected, failed = {}, {}
    for name, call in calls.items():
        if name == "triton" and device.type == "cpu":
            failed[name] = "no GPU (its interpreter, for tests, says nothing about time)"
            continue
        try:
            expected[name] = settled(call, device)
        except BackendError as error:
            failed[name] = str(error).partition(", but ")[2].partition(". Append")[0].removeprefix(f"{name}: ")
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return expected, failed


@contextmanager
def listed(errors: list[str]) -> Iterator[None]:
    """What goes wrong inside is printed and listed, and stops nothing."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        errors.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
