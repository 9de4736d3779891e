"""Compilation of this package's inner loops, cached on disk.

As :mod:`nufm.simulation.compiled`, with the files of this package in the fingerprint: Numba looks at the file of a
function only, not at those of the functions that it copies into its machine code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numba
from numba.core import config

FILES = ("compiled", "deposits", "geometry", "material", "profiles", "readout", "showers", "../rng")


def _folder() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for name in FILES:
        digest.update((here / f"{name}.py").read_bytes())
    user = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nufm"
    base = config.CACHE_DIR or (here / "__pycache__" if os.access(here, os.W_OK) else user)
    return str(Path(base) / f"fasercal-{digest.hexdigest()[:12]}")


_FOLDER = _folder()


def compiled(function: Callable, entry: bool = False) -> Callable:
    """Compile on first call, keep the machine code on disk, release the GIL while running; IEEE division.

    Only an ``entry`` can be called from Python: the others go without wrappers, which takes less time to compile.
    """
    options = {} if entry else {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    before = config.CACHE_DIR
    config.CACHE_DIR = _FOLDER
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    finally:
        config.CACHE_DIR = before


def entry(function: Callable) -> Callable:
    """A compiled function that Python calls."""
    return compiled(function, entry=True)
