"""What all networks on pixel maps have in common: which events they take, and what they say of them.

Shape legend: B events, V = 2 views, C channels, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from nufm.data.images import VIEWS, ImageBatch
from nufm.data.prediction import StreamPrediction

LABEL = "interaction"


class ImageNetwork(nn.Module):
    """A network that maps pixel maps in [0, 1] to logits.

    Subclasses define ``event_features`` and set ``head``, or define ``forward`` and have no features of events.

    Networks that look at nothing but the maps see a missing view as an empty one, a map of 0: what they say of an event
    that has lost a view is what they would say had the view no charge. An image-text model is told in words that a view
    is missing, and may say something else.

    Args:
        n_classes: K.

    Raises:
        ValueError: fewer than two classes.
    """

    kind: ClassVar[str] = "event"  # of the tasks it can be trained for
    inputs: ClassVar[str] = "images"  # the kind of events it takes

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes is {n_classes}, expected at least 2")
        self.n_classes = {LABEL: n_classes}

    head: nn.Module

    @abstractmethod
    def event_features(self, batch: ImageBatch) -> Tensor:
        """(B, C): what the classes are told from."""

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """``interaction``: float32 logits (B, K)."""
        return {LABEL: self.head(self.event_features(batch)).float()}

    def predict(self, batch: ImageBatch) -> StreamPrediction:
        """Probabilities of the classes."""
        return StreamPrediction({LABEL: self(batch)[LABEL].softmax(1)}, {})

    def head_layers(self) -> list[list[nn.Module]]:
        """What features pass behind a pretrained encoder: these networks have none."""
        return []


def checked_image(batch: ImageBatch) -> Tensor:
    """``batch.image`` (B, V, H, W) with missing views blank.

    Raises:
        ValueError: another number of views.
    """
    image = batch.image
    if image.dim() != 4 or image.shape[1] != len(VIEWS):
        raise ValueError(
            f"{batch.names[0] if batch.names else 'batch'} …: image has shape {tuple(image.shape)}, expected "
            f"(B, {len(VIEWS)}, H, W): {', '.join(VIEWS)}"
        )
    return image * batch.present[:, :, None, None].to(image.dtype)
