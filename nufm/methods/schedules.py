"""Learning-rate schedules as functions of the progress, and who is spared weight decay; several methods share them.

No scheduler has a state that a resumed run, or one made longer, would have to agree with.
"""

from __future__ import annotations

import math

from torch import nn


def one_cycle(t: float, warmup: float) -> tuple[float, float]:
    """Learning rate as a share of its peak, and the β₁ that is cycled with it, at progress ``t`` in [0, 1].

    Cosine from 1/10 to 1 over the warm-up, cosine to 1/10⁴ over the rest; β₁ from 0.95 to 0.85 and back (Smith, Topin,
    arXiv 1708.07120).
    """
    if t < warmup:
        return cosine((0.1, 1.0), t / warmup), cosine((0.95, 0.85), t / warmup)
    rest = (t - warmup) / max(1e-9, 1 - warmup)
    return cosine((1.0, 1e-4), rest), cosine((0.85, 0.95), rest)


def warmup_cosine(t: float, warmup: float, floor: float) -> float:
    """Learning rate as a share of its peak at progress ``t`` in [0, 1]: straight from ``floor`` to 1 over the warm-up,
    half a cosine back to ``floor`` over the rest (Loshchilov, Hutter, arXiv 1608.03983)."""
    if t < warmup:
        return between((floor, 1.0), t / warmup)
    return cosine((1.0, floor), (t - warmup) / max(1e-9, 1 - warmup))


def between(ends: tuple[float, float], share: float) -> float:
    """Straight from the first to the second."""
    return ends[0] + (ends[1] - ends[0]) * share


def cosine(ends: tuple[float, float], share: float) -> float:
    """Half a cosine from the first to the second."""
    return ends[1] + (ends[0] - ends[1]) * 0.5 * (1 + math.cos(math.pi * share))


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on a parameter: not on biases, norms, LayerScale, tokens and other vectors."""
    spared = parameter.ndim == 1 or any(word in name for word in ("bias", "norm", "gamma", "token"))
    return not spared
