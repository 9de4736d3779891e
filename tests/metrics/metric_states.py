"""What ranks do before they compute."""

from __future__ import annotations

from torchmetrics import Metric


def add_states(metric: Metric, other: Metric) -> None:
    """Add the states of ``other`` to those of ``metric``: the reduction "sum" of two ranks."""
    for name, reduction in metric._reductions.items():
        assert reduction.__name__ == "dim_zero_sum", name
        setattr(metric, name, getattr(metric, name) + getattr(other, name))
