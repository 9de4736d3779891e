"""How many parameters a model has and how many bytes its weights take, also where they are packed into 4 bit.

A packed weight is bytes, two numbers in each; what it was is in its ``quant_state`` (bitsandbytes), with the numbers
that it takes to be unpacked: maxima of blocks, which double quantisation packs once more, and tables of values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn


def parameter_count(model: nn.Module | nn.Parameter) -> int:
    """Parameters of a model, or of one parameter: the same number whatever they are packed into."""
    parameters = [model] if isinstance(model, nn.Parameter) else model.parameters()
    return sum(math.prod(state.shape) if (state := _state(p)) is not None else p.numel() for p in parameters)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, and of what packed weights need to be unpacked; what is shared counts once."""
    tensors: dict[tuple, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for part in (tensor, *_beside(tensor)):
            # Views of other lengths may begin at one place; empty and meta tensors lie nowhere.
            place = part.data_ptr() if not part.is_meta else 0
            tensors[(part.device, place, part.numel()) if place else (id(part),)] = part
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _state(tensor: Tensor) -> object | None:
    return getattr(tensor, "quant_state", None)


def _beside(tensor: Tensor) -> Iterator[Tensor]:
    """What stands beside a packed weight."""
    state = _state(tensor)
    while state is not None:
        yield from (t for t in (state.absmax, state.code, state.offset) if isinstance(t, Tensor))
        state = state.state2
