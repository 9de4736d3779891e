"""The small encoder that the tests of checkpoints write and read."""

from __future__ import annotations

from pathlib import Path

import torch

from nufm.models.ptv3 import PointTransformerV3

ARGUMENTS = {"depths": (1, 2), "channels": (16, 32), "heads": (1, 2), "window": 64, "layer_scale": 1.0}
GENUINE = Path(__file__).parents[1] / "data" / "pilarnet_m_event.h5"


def encoder(seed: int = 0, **changes: object) -> PointTransformerV3:
    """In evaluation mode, with weights of ``seed``."""
    torch.manual_seed(seed)
    return PointTransformerV3(**(ARGUMENTS | changes)).eval()
