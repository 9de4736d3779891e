"""Compilation of inner loops, cached on disk.

Numba's cache looks at the file a function stands in, not at the files of the functions it calls and copies into its
machine code: after an update of ``hadronic.py`` alone the old cascade would live on inside the cache of
``transport.py``. The cache folder therefore carries a fingerprint of all files that take part.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numba
from numba.core import config

FILES = (
    *("charged", "electromagnetic", "hadronic", "neutrons", "particles", "rng"),
    *("stopping", "tracks", "transport"),
)


def compiler(name: str, here: Path, files: Sequence[str]) -> Callable[..., Callable]:
    """What compiles the functions of a package: on first call, releasing the GIL while they run, with IEEE division (no
    test for zero at each); the machine code is kept on disk.

    Args:
        name: of the cache folder.
        here: folder of the package.
        files: those that take part, without their suffix.

    Returns:
        ``compiled(function, entry=False)``: only an ``entry`` can be called from Python; the others go without the
        wrappers that would unpack their arguments, which took a third of the compile time.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for file in files:
        digest.update((here / f"{file}.py").read_bytes())
    user = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nufm"
    base = config.CACHE_DIR or (here / "__pycache__" if os.access(here, os.W_OK) else user)
    folder = str(Path(base) / f"{name}-{digest.hexdigest()[:12]}")

    def compiled(function: Callable, entry: bool = False) -> Callable:
        options = {} if entry else {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        before = config.CACHE_DIR
        config.CACHE_DIR = folder
        try:
            return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        finally:
            config.CACHE_DIR = before

    return compiled


compiled = compiler("transport", Path(__file__).parent, FILES)
