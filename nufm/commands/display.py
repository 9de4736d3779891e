"""``scripts/display.py``: draw an event, as it is and as a model sees it.

What opens checkpoints and makes tokens is imported when it is asked for: an event alone is drawn seconds sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nufm.data.event import Event
from nufm.data.images import ImageEvent
from nufm.data.streams import StreamEvent
from nufm.data.tokens import EventTokens
from nufm.display.command import display
from nufm.display.stream_panels import Explanation

if TYPE_CHECKING:
    from nufm.checkpoint import Pretrained


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/display.py`` with these flags, those of the process by default; returns the exit code."""
    return display(load, tokenize, explain, arguments)


def load(source: str) -> Pretrained:
    """The checkpoint that ``--checkpoint`` names."""
    from nufm.checkpoint import from_pretrained

    return from_pretrained(source)


def tokenize(event: Event, size: str | None, encoder: Pretrained | None) -> EventTokens:
    """The tokens that ``--tokens`` names."""
    from nufm.methods.event_tokens import tokens_named

    return tokens_named(event, size, encoder)


def explain(event: StreamEvent | ImageEvent, encoder: Pretrained) -> Explanation:
    """What ``--checkpoint`` says of an event of several sub-detectors, and which hits it owes that to; of pixel maps,
    their class, and why if it can say."""
    from nufm.checkpoint.kinds import check_event

    check_event(event, encoder.inputs, encoder.source)
    if isinstance(event, ImageEvent):
        from nufm.evaluation.event_scores import check_model
        from nufm.evaluation.image_scores import said_of

        check_model(encoder)
        return Explanation(lines=said_of(encoder, [event], next(iter(encoder.model.n_classes)))[0].lines)
    from nufm.evaluation.interpretation import explained

    return explained(encoder, event)
