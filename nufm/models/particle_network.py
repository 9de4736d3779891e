"""Which particle is it: one crop per particle, alone or among the others of its event.

Features of a crop are the mean of its latents. Hand-crafted numbers (``nufm.data.particles.COLUMNS``) may be added to
them through a small network; ``context`` blocks let the particles of an event see each other (talk of F. Cufino, NPML
2026; public code saulam/faserDL). There the numbers enter the SuperFGD network as one more token instead, and context
blocks have dropout 0.1.

Shape legend: B particles, K classes, C channels, E hand-crafted numbers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nufm.data.prediction import StreamPrediction
from nufm.data.streams import StreamBatch
from nufm.models.layers import LayerNorm
from nufm.models.stream_blocks import EPSILON, Block, init_xavier
from nufm.models.stream_encoder import StreamEncoder
from nufm.ops.attention import Windows

# Of the 31 numbers of a particle: the 16 that say neither where it is nor where it goes, as published for single
# particles of PILArNet; ``nufm.data.particles.SHAPE_COLUMNS`` names them, and a test compares.
SHAPE = (*range(3, 15), *range(21, 25))
NUMBERS = 31
LABEL = "particle"


class ParticleNetwork(nn.Module):
    """Classes of particles.

    Args:
        encoder: of one stream of voxels, in windows.
        n_classes: K.
        extra: hand-crafted numbers that are added: ``none``, the 16 of the ``shape``, or ``all`` 31.
        context: blocks among the particles of an event; 0: each stands alone.
        heads: of these blocks.
        dropout: in front of the last layer.
        extra_dropout: of what the numbers add.

    Raises:
        ValueError: an option that is not one of these.
    """

    kind = "event"

    def __init__(
        self,
        encoder: StreamEncoder,
        n_classes: int,
        extra: Literal["none", "shape", "all"] = "none",
        context: int = 0,
        heads: int = 12,
        dropout: float = 0.0,
        extra_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if extra not in ("none", "shape", "all"):
            raise ValueError(f"extra is '{extra}', expected 'none', 'shape' or 'all'")
        if n_classes < 2 or context < 0:
            raise ValueError(f"n_classes is {n_classes} and context {context}, expected at least 2 and 0")
        self.arguments: dict[str, Any] = {
            "encoder": encoder,
            "n_classes": n_classes,
            "extra": extra,
            "context": context,
            "heads": heads,
            "dropout": dropout,
            "extra_dropout": extra_dropout,
        }
        channels = encoder.channels
        self.encoder, self.extra = encoder, extra
        self.n_classes = {LABEL: n_classes}
        self.numbers = None
        if extra != "none":
            width = NUMBERS if extra == "all" else len(SHAPE)
            self.numbers = nn.Sequential(
                LayerNorm(width),
                nn.Linear(width, channels),
                nn.GELU(),
                nn.Linear(channels, channels),
                nn.Dropout(extra_dropout),
            )
            self.numbers.apply(init_xavier)
        self.context = nn.ModuleList(Block(channels, heads) for _ in range(context))
        self.context_norms = nn.ModuleList(LayerNorm(channels, eps=EPSILON) for _ in range(2 if context else 0))
        self.head = nn.Sequential(LayerNorm(channels, eps=EPSILON), nn.Dropout(dropout), nn.Linear(channels, n_classes))
        nn.init.trunc_normal_(self.head[-1].weight, std=2e-5)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, batch: StreamBatch) -> dict[str, Tensor]:
        """``particle``: float32 logits (B, K). A particle without hits has features 0.

        Raises:
            ValueError: the numbers are missing.
        """
        x = self.encoder.event_features(batch)
        if self.numbers is not None:
            x = x + self.numbers(self._numbers(batch).to(x.dtype))
        if self.context:
            # Without groups every event stands alone (see StreamBatch), and so does its particle.
            groups = torch.arange(len(x) + 1, device=x.device) if batch.groups is None else batch.groups
            windows = Windows.of_boundaries(groups)
            x = self.context_norms[0](x)
            for block in self.context:
                x = block(x, windows)
            x = self.context_norms[1](x)
        return {LABEL: self.head(x).float()}

    def _numbers(self, batch: StreamBatch) -> Tensor:
        if batch.extra is None or batch.extra.shape[1] != NUMBERS:
            found = "none" if batch.extra is None else batch.extra.shape[1]
            raise ValueError(
                f"{batch.names[0]} …: the network takes hand-crafted numbers (extra '{self.extra}'), expected "
                f"{NUMBERS} for each particle, found {found}; use data of nufm.data.particles, or network.extra none"
            )
        return batch.extra[:, list(SHAPE)] if self.extra == "shape" else batch.extra

    @property
    def sees_groups(self) -> bool:
        """Whether what is said of a particle depends on the others of its group."""
        return len(self.context) > 0

    def predict(self, batch: StreamBatch) -> StreamPrediction:
        """Probabilities of the classes."""
        return StreamPrediction({LABEL: self(batch)[LABEL].softmax(1)}, {})

    def head_layers(self) -> list[list[nn.Module]]:
        """What features pass behind the encoder, first to last."""
        layers: list[list[nn.Module]] = [*([block] for block in self.context), [self.head]]
        if self.context:
            layers[0].insert(0, self.context_norms[0])
            layers[-1].insert(0, self.context_norms[1])
        if self.numbers is not None:
            layers[0].insert(0, self.numbers)
        return layers
