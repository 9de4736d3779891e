"""Arithmetic that a model needs: two FLOP per multiply-add of its matrix products, whatever a backend adds to it.

Padding, recomputation and gathering do not count, nor do norms, activations and the optimiser. A backward pass has
one product for the gradient of the input and one for that of the weights: twice the forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nufm.models.ptv3 import Attention, SubmanifoldConv
from nufm.ops.attention import Windows
from nufm.ops.kernel_map import KernelMap


def n_pairs(pairs: KernelMap) -> int:
    """Rows read by all results of a convolution together, their own included."""
    return len(pairs.source) + (0 if pairs.identity is None else pairs.n_target)


def conv_flops(pairs: KernelMap, in_channels: int, channels: int) -> int:
    """Forward of a sparse convolution."""
    return 2 * n_pairs(pairs) * in_channels * channels


def attention_flops(windows: Windows, heads: int, width: int) -> int:
    """Forward of windowed attention with ``width`` channels per head: the scores, and their sums of values."""
    return 4 * windows.cuts.n_pairs * heads * width


class Count:
    """Model FLOPs so far, of ``linear`` layers, ``convolution`` and ``attention``."""

    def __init__(self) -> None:
        self.parts = {"linear": 0, "convolution": 0, "attention": 0}

    @property
    def flops(self) -> int:
        return sum(self.parts.values())

    def clear(self) -> None:
        self.parts = dict.fromkeys(self.parts, 0)


@contextmanager
def counting(root: nn.Module) -> Iterator[Count]:
    """Count the linear layers, convolutions and attentions in ``root`` that run inside the block.

    A module that runs with gradients counts three times: its backward is taken to follow.
    """
    count = Count()

    def add(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if isinstance(module, nn.Linear):
            part, flops = "linear", 2 * args[0].numel() * module.out_features
        elif isinstance(module, SubmanifoldConv):
            channels, in_channels = module.weight.shape[0], module.weight.shape[4]
            part, flops = "convolution", conv_flops(args[1], in_channels, channels)
        else:
            x, geometry, curve = args
            width = x.shape[1] // module.heads
            part, flops = "attention", attention_flops(geometry.windows[curve], module.heads, width)
        count.parts[part] += flops * (3 if torch.is_grad_enabled() else 1)

    counted = (nn.Linear, SubmanifoldConv, Attention)
    hooks = [m.register_forward_hook(add) for m in root.modules() if isinstance(m, counted)]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()
