"""nufm: self-supervised pretraining on neutrino-detector data.

Importing the package is light: it compiles nothing and needs no optional package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from nufm.checkpoint import Pretrained

__version__ = "0.1.0"


def from_pretrained(
    source: str | Path, map_location: torch.device | str = "cpu", base: str | Path | None = None
) -> Pretrained:
    """Load an export, a run, or released weights (Panda, PoLAr-MAE, Point-MAE): see
    :func:`nufm.checkpoint.from_pretrained`."""
    from nufm.checkpoint import from_pretrained as load  # imported here: it brings the models

    return load(source, map_location, base)
