"""Models on disk: exports of nufm, and released weights of others."""

from nufm.checkpoint.compatible import check_compatible
from nufm.checkpoint.export import Pretrained, from_pretrained, save_pretrained, untrained_twin
from nufm.checkpoint.weights import load_panda_pth

__all__ = [
    "Pretrained",
    "check_compatible",
    "from_pretrained",
    "load_panda_pth",
    "save_pretrained",
    "untrained_twin",
]
