"""Compilation of the transport's inner loops, cached on disk.

Numba's cache looks at the file a function stands in, not at the files of the functions it calls and copies
into its machine code: after an update of ``hadronic.py`` alone the old cascade would live on inside the cache
of ``transport.py``. The cache folder therefore carries a fingerprint of all files that take part.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numba
from numba.core import config

FILES = (
    *("charged", "electromagnetic", "hadronic", "neutrons", "particles", "rng"),
    *("stopping", "tracks", "transport"),
)


def _cache_folder() -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256(numba.__version__.encode())
    for name in FILES:
        digest.update((here / f"{name}.py").read_bytes())
    base = config.CACHE_DIR or (here / "__pycache__" if os.access(here, os.W_OK) else _user_cache())
    return str(Path(base) / f"transport-{digest.hexdigest()[:12]}")


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nufm"


_FOLDER = _cache_folder()


def compiled(function: Callable, entry: bool = False) -> Callable:
    """Compile on first call, keep the machine code on disk, release the GIL while running.

    Only an ``entry`` can be called from Python: the others go without the wrappers that would unpack their
        arguments,
    which took a third of the compile time. Division is IEEE division (no test for zero at each).
    """
    options = {} if entry else {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    before = config.CACHE_DIR
    config.CACHE_DIR = _FOLDER
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    finally:
        config.CACHE_DIR = before
