"""A class for every point: encoder, decoder, linear layer (Panda's semantic model, arXiv 2512.01324).

Shape legend: N_s points of stage s, C_s channels of the encoder's stages, D_s channels of the decoder's, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from nufm.data.event import PointBatch
from nufm.data.prediction import PointPrediction
from nufm.models.layers import LayerNorm
from nufm.models.ptv3 import Block, PointTransformerV3, Stage, init_weights, upcast
from nufm.ops.pool import take


class SemanticModel(nn.Module):
    """A network that maps a batch to logits (N, K); subclasses define ``forward`` and set ``n_classes``."""

    kind: ClassVar[str] = "semantic"  # of the tasks it can be trained for
    n_classes: int

    @abstractmethod
    def forward(self, batch: PointBatch) -> Tensor:
        """Logits (N, K)."""

    def predict(self, batch: PointBatch) -> PointPrediction:
        """Most probable class of every point, its probability, and all probabilities."""
        probability = self(batch).float().softmax(1)
        confidence, label = probability.max(1)
        return PointPrediction(label, confidence, probability)

    def head_layers(self) -> list[list[nn.Module]]:
        """What features pass one after the other behind the encoder, the block last in each list."""
        return []


class Unpooling(nn.Module):
    """Coarse features to the points they were pooled from, added to those points' own: (N_{s+1}, Ci), (N_s, C_s) ->
    (N_s, Co).
    """

    def __init__(self, in_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(in_channels, channels), LayerNorm(channels))
        self.proj_skip = nn.Sequential(nn.Linear(skip_channels, channels), LayerNorm(channels))

    def forward(self, coarse: Tensor, fine: Tensor, child: Stage) -> Tensor:
        return gelu(self.proj_skip(fine)) + take(gelu(self.proj(coarse)), child.members)


class Decoder(nn.Module):
    """From the coarsest stage of Point Transformer V3 back to the points, stage by stage.

    The defaults are those of Panda: 16,334,464 parameters. A stage uses the neighbours and windows of the encoder's
    stage of that resolution, and as many of its curves as the encoder has made.

    Args:
        encoder_channels: C_s of the encoder, finest first.
        depths: blocks of each decoder stage, finest first; one stage less than the encoder.
        channels: D_s.
        heads: attention heads of each stage.
        mlp_ratio: hidden channels of the MLPs over D_s.
        drop_path: per-point probability of dropping a branch: rises linearly from 0 over all blocks counted from the
            finest stage, and falls within each stage, as published.
        layer_scale: initial factor of the branches. The released semantic runs started new blocks at 0.

    Raises:
        ValueError: lengths of depths, channels and heads that do not go with the encoder, channels that are no multiple
            of the heads.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int] = (48, 96, 192, 384, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        channels: Sequence[int] = (64, 96, 192, 384),
        heads: Sequence[int] = (4, 6, 12, 24),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.3,
        layer_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "encoder_channels": list(encoder_channels),
            "depths": list(depths),
            "channels": list(channels),
            "heads": list(heads),
            "mlp_ratio": mlp_ratio,
            "drop_path": drop_path,
            "layer_scale": layer_scale,
        }
        n = len(encoder_channels) - 1
        if not n == len(depths) == len(channels) == len(heads):
            raise ValueError(
                f"the decoder of an encoder with {n + 1} stages needs {n} depths, channels and heads, "
                f"found {len(depths)}, {len(channels)} and {len(heads)}"
            )
        for c, h in zip(channels, heads, strict=True):
            if h < 1 or c % h:
                raise ValueError(f"channels must be multiples of heads, found {c} channels and {h} heads")
        self.encoder_channels, self.depths, self.channels = tuple(encoder_channels), tuple(depths), tuple(channels)
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        self.dec = nn.ModuleDict()
        for s in range(n):
            below = channels[s + 1] if s + 1 < n else encoder_channels[-1]
            stage = nn.ModuleDict({"up": Unpooling(below, encoder_channels[s], channels[s])})
            own = rates[sum(depths[:s]) : sum(depths[: s + 1])][::-1]
            for i, rate in enumerate(own):
                stage[f"block{i}"] = Block(channels[s], heads[s], mlp_ratio, rate, layer_scale)
            self.dec[f"dec{s}"] = stage
        self.apply(init_weights)

    def forward(self, stages: Sequence[Stage]) -> Tensor:
        """(N, D_0) features of the points from the encoder's stages."""
        x = stages[-1].feat
        for s in range(len(stages) - 2, -1, -1):
            modules, geometry = self.dec[f"dec{s}"], stages[s].geometry
            x = modules["up"](x, stages[s].feat, stages[s + 1])
            for i in range(self.depths[s]):
                x = modules[f"block{i}"](x, geometry, i % len(geometry.windows))
        return x

    def layers(self) -> list[list[nn.Module]]:
        """What features pass one after the other, each block with the unpooling before it, the block last."""
        layers: list[list[nn.Module]] = []
        for s in range(len(self.depths) - 1, -1, -1):
            modules = self.dec[f"dec{s}"]
            blocks: list[list[nn.Module]] = [[modules[f"block{i}"]] for i in range(self.depths[s])]
            layers += [[modules["up"], *blocks[0]], *blocks[1:]] if blocks else [[modules["up"]]]
        return layers


class Segmenter(SemanticModel):
    """Point Transformer V3 with a decoder, or with none, and a linear layer for the classes.

    Panda's semantic model has 107,093,573 parameters (its encoder without a mask token). Without a decoder the linear
    layer reads the encoder's features of all stages (1232 channels at paper size): a linear probe.

    Args:
        encoder: whose features are classified.
        decoder: None reads the features as they are.
        n_classes: K.

    Raises:
        ValueError: a decoder that was made for another encoder.
    """

    def __init__(self, encoder: PointTransformerV3, decoder: Decoder | None = None, n_classes: int = 5) -> None:
        super().__init__()
        if decoder is not None and decoder.encoder_channels != encoder.channels:
            raise ValueError(
                f"the decoder's encoder_channels are {list(decoder.encoder_channels)}, the encoder has "
                f"{list(encoder.channels)}; make them equal"
            )
        self.encoder, self.decoder, self.n_classes = encoder, decoder, n_classes
        self.head = nn.Linear(sum(encoder.channels) if decoder is None else decoder.channels[0], n_classes)
        init_weights(self.head)

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments, for exports."""
        return {"encoder": self.encoder, "decoder": self.decoder, "n_classes": self.n_classes}

    def forward(self, batch: PointBatch) -> Tensor:
        stages = self.encoder(batch)
        return self.head(upcast(stages) if self.decoder is None else self.decoder(stages))

    def without_decoder(self) -> Segmenter:
        """The same encoder with a new linear layer on its features."""
        return Segmenter(self.encoder, None, self.n_classes)

    def head_layers(self) -> list[list[nn.Module]]:
        return [] if self.decoder is None else self.decoder.layers()
