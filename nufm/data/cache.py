"""Where nufm keeps what it can make again: simulated events, downloaded files, indices."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def cache_folder() -> Path:
    """``$NUFM_CACHE`` if set, else the folder ``nufm`` in the platform's user cache. It may not exist yet."""
    if chosen := os.environ.get("NUFM_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nufm"


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``folder`` if nothing goes wrong meanwhile: that is complete, or not there.

    Raises:
        FileExistsError: the folder is there and not empty.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already and not empty; choose another name, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
        if folder.exists():
            folder.rmdir()
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cached(name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``simulated/<name>`` of the cache; ``make(folder)`` makes it first if it is not there.

    Processes that ask at the same time wait for the one that makes it.
    """
    folder = cache_folder() / "simulated" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():  # else made by another process while this one waited
            make(folder)
    return folder
