"""Heads on top of encoder features. Shape legend: N points, C feature width, K prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class PrototypeHead(nn.Module):
    """Cosine similarities with learned prototypes (DINO, arXiv 2104.14294, §3.1; Sonata, arXiv 2503.16429).

    Linear - GELU - Linear - L2 normalisation - weight-normalised Linear without bias whose gain stays 1, so the
    output is a cosine in [-1, 1].

    Args:
        in_width: C, width of the features.
        hidden: width of the hidden layer.
        bottleneck: width in which features and prototypes are compared.
        prototypes: K.
    """

    def __init__(self, in_width: int, hidden: int = 4096, bottleneck: int = 256, prototypes: int = 4096) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_width, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.prototype = weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
        gain = self.prototype.parametrizations.weight.original0
        with torch.no_grad():
            gain.fill_(1.0)
        gain.requires_grad_(False)

    def forward(self, feat: Tensor) -> Tensor:
        """(N, C) features to (N, K) cosine similarities."""
        return self.prototype(F.normalize(self.mlp(feat), dim=-1, eps=1e-12))
