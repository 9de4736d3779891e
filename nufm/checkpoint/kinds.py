"""Which kind of events a model takes: points, several streams, or pixel maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import nn

from nufm.data.event import Event
from nufm.data.images import ImageEvent
from nufm.data.streams import StreamEvent

Inputs = Literal["points", "streams", "images"]
INPUTS: tuple[Inputs, ...] = get_args(Inputs)
EVENTS: dict[Inputs, type] = {"points": Event, "streams": StreamEvent, "images": ImageEvent}
# What such events are called in messages, and who reads them.
WORDS: dict[Inputs, tuple[str, str]] = {
    "points": ("points", "nufm.data.pilarnet.PILArNetReader"),
    "streams": ("events with several streams", "nufm.data.stream_files.StreamReader"),
    "images": ("pixel maps", "nufm.data.image_files.ImageReader"),
}


def inputs_of(model: nn.Module) -> Inputs:
    """What a model says that it takes, or what its encoder says; points of one that says nothing.

    The model comes first: a network of pixel maps may have an encoder of points in it.

    Raises:
        ValueError: it says something that is no kind of events.
    """
    for part in (model, getattr(model, "encoder", None)):
        said = getattr(part, "inputs", None)
        if said is not None:
            if said not in INPUTS:
                raise ValueError(f"{type(part).__name__}.inputs is {said!r}, expected one of {', '.join(INPUTS)}")
            return said
    return "points"


def inputs_named(config: Mapping[str, Any]) -> Inputs:
    """The kind of events that an export's ``config.json`` names. One from before there were pixel maps does not: models
    of points have a lattice, those of several streams do not."""
    return config.get("inputs") or ("streams" if config.get("grid_size", 0) is None else "points")


def check_event(event: object, inputs: Inputs, where: str) -> None:
    """Refuse an event of another kind than a model takes.

    Raises:
        ValueError: it is one.
    """
    if not isinstance(event, EVENTS[inputs]):
        words, reader = WORDS[inputs]
        raise ValueError(
            f"{where}: the model takes {words}, found a {type(event).__name__}; read them with {reader}"
        )
