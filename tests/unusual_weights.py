"""Weights that are not the initial ones."""

from __future__ import annotations

import torch
from torch import nn


def unusual(model: nn.Module) -> nn.Module:
    """Every parameter and running value drawn anew: at their initial values many mistakes cannot be seen."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.dim() < 2 else 0.1))
    return model
