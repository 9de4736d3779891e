"""Where nufm keeps what it can make again: simulated events, downloaded files, indices."""

from __future__ import annotations

import os
import sys
from pathlib import Path


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
