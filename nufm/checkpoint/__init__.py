"""Models on disk: exports of nufm, and released weights of others."""

from nufm.checkpoint.card import model_card
from nufm.checkpoint.compatible import check_compatible
from nufm.checkpoint.export import from_pretrained, save_pretrained
from nufm.checkpoint.panda import load_panda, load_panda_pth
from nufm.checkpoint.polarmae import load_polarmae, load_polarmae_pretraining
from nufm.checkpoint.predictions import load_predictions, save_predictions
from nufm.checkpoint.pretrained import Pretrained, untrained_twin

__all__ = [
    "Pretrained",
    "check_compatible",
    "from_pretrained",
    "load_panda",
    "load_panda_pth",
    "load_polarmae",
    "load_polarmae_pretraining",
    "load_predictions",
    "model_card",
    "save_predictions",
    "save_pretrained",
    "untrained_twin",
]
