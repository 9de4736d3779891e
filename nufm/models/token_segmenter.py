"""A class for every point, from tokens: the semantic model of PoLAr-MAE (Young et al., arXiv 2502.02558).

Sizes and order of the concatenations are those of DeepLearnPhysics/PoLAr-MAE (configs/part_segmentation_*.yml).

    tokens -> encoder -> mean of three blocks ┬-> of each point's nearest tokens, and its position -> upsampler ┐
                                              └-> max and mean over the event ----------------------------------┴-> head

Shape legend: N points, B events, T tokens, C channels of the encoder, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nufm.data.event import PointBatch
from nufm.models.segmenter import SemanticModel
from nufm.models.token_encoder import PackedBatchNorm, TokenEncoder, init_linear
from nufm.ops.pool import segment_reduce, take


class TokenSegmenter(SemanticModel):
    """Token encoder, upsampling to the points, context of the event, head. The defaults have 22,858,628 parameters.

    In evaluation an event's logits do not depend on its batch mates (if the encoder's ``norm`` is ``token``). In
    training the norms of upsampler and head see all points of the batch.

    An event of fewer than five tokens is upsampled from those that it has; the published code counts its first token
    once more for each that is missing, at distance 0.

    Args:
        encoder: whose tokens are read.
        n_classes: K.
        hidden: channels of the head's first layer; the second has half as many.
        dropout: probability that an output of the head's first layer is dropped.
    """

    def __init__(self, encoder: TokenEncoder, n_classes: int = 4, hidden: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        self.encoder, self.n_classes, self.hidden, self.dropout = encoder, n_classes, hidden, dropout
        c = encoder.channels
        self.upsampler = nn.Sequential(
            nn.Linear(3 + c, c, bias=False), PackedBatchNorm(c), nn.ReLU(),
            nn.Linear(c, c, bias=False), PackedBatchNorm(c), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(3 * c, hidden, bias=False), PackedBatchNorm(hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden // 2, bias=False), PackedBatchNorm(hidden // 2), nn.ReLU(),
            nn.Linear(hidden // 2, n_classes),
        )  # fmt: skip

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments, for exports."""
        return {
            "encoder": self.encoder, "n_classes": self.n_classes, "hidden": self.hidden, "dropout": self.dropout
        }  # fmt: skip

    def forward(self, batch: PointBatch) -> Tensor:
        encoded = self.encoder(batch)
        tokens, feat = encoded.tokens, self.encoder.token_features(encoded)
        # The first layer of each part is a product with a concatenation, of which one piece is known per token, or per
        # event: there it is cheaper than at the points, which are many more. Interpolation and product commute.
        c = self.encoder.channels
        of_position, of_token = self.upsampler[0].weight.split((3, c), dim=1)
        near = self.encoder.interpolated(batch, tokens, F.linear(feat, of_token).float())
        with torch.autocast(feat.device.type, enabled=False):  # bfloat16 could not tell neighbouring voxels apart
            place = F.linear(batch.coord.to(of_position.dtype), of_position)
        x = self.upsampler[1:](place + near)
        context = [segment_reduce(feat, tokens.event, batch.n_events, how) for how in ("max", "mean")]  # (B, C) each
        of_point, of_event = self.head[0].weight.split((c, 2 * c), dim=1)
        x = F.linear(x, of_point) + take(F.linear(torch.cat(context, dim=1), of_event), batch.event_index)
        return self.head[1:](x)

    def without_decoder(self) -> LinearTokenSegmenter:
        """The same encoder with a new linear layer on its features of points."""
        return LinearTokenSegmenter(self.encoder, self.n_classes)

    def head_layers(self) -> list[list[nn.Module]]:
        up, head = self.upsampler, self.head
        return [[up[0], up[1]], [up[3], up[4]], [head[0], head[1]], [head[4], head[5]]]


class LinearTokenSegmenter(SemanticModel):
    """A linear layer on a token encoder's ``point_features``, the features of a point's nearest tokens.

    Args:
        encoder: whose features are read.
        n_classes: K.
    """

    def __init__(self, encoder: TokenEncoder, n_classes: int = 4) -> None:
        super().__init__()
        self.encoder, self.n_classes = encoder, n_classes
        self.head = nn.Linear(encoder.channels, n_classes)
        init_linear(self.head)

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments, for exports."""
        return {"encoder": self.encoder, "n_classes": self.n_classes}

    def forward(self, batch: PointBatch) -> Tensor:
        return self.head(self.encoder.point_features(batch))
