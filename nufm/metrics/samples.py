"""Scores that need every sample: states that grow by batches and ranks and are joined before anything is computed.

A rank or a median of values cannot be had from sums; the order in which the samples are joined does not matter to
either.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class SampleMetric(Metric):
    """Base of metrics whose states are all the samples seen.

    Args:
        shapes: state -> (dtype, shape behind the samples).
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, **shapes: tuple[torch.dtype, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes
        for name in shapes:
            self.add_state(name, [], dist_reduce_fx="cat")

    def keep(self, **values: Tensor) -> None:
        """Append one tensor (n, ...) to every state."""
        for name, value in values.items():
            getattr(self, name).append(value.detach().to(self.shapes[name][0]))

    def samples(self, name: str) -> Tensor:
        """All samples of a state, (n, ...)."""
        value = getattr(self, name)
        if isinstance(value, list) and not value:
            dtype, shape = self.shapes[name]
            return torch.zeros(0, *shape, dtype=dtype, device=self.device)
        return dim_zero_cat(value)
