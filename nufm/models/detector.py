"""Panda Detector: a fixed number of queries per event, each of which becomes a particle (or interaction) or nothing.

Panda (Young & Terao, arXiv 2512.01324): set prediction as in DETR (arXiv 2005.12872) and Mask2Former (arXiv
2112.01527), with a soft bias instead of a hard mask in the cross attention. Names of parameters under ``decoder`` are
those of the released weights.

Shape legend: N points, N' things (points that the stuff head lets through), B events, Q queries, D width, H heads,
C classes, S pairs of a query and a thing of its event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from nufm.data.event import PointBatch
from nufm.data.prediction import PointPrediction
from nufm.models.instances import InstanceRules, find_instances
from nufm.models.layers import LayerNorm
from nufm.models.ptv3 import PointTransformerV3, init_weights, upcast
from nufm.ops.attention import Windows, windowed_attention
from nufm.ops.pool import take
from nufm.ops.serialize import event_index
from nufm.ops.tiles import Tiles

Positions = Literal["queries_and_keys", "queries"]
MaskFrom = Literal["last", "before_last_update"]


@dataclass(frozen=True, eq=False)
class QueryPrediction:
    """What the queries say after a block.

    Attributes:
        class_logits: float32 (B, Q, C+1), the last column for "no object".
        mask_logits: float32 (N', Q), of each thing for the queries of its event.
        momentum: float32 (B, Q) natural logarithm of the momentum in GeV/c; None without that head.
    """

    class_logits: Tensor
    mask_logits: Tensor
    momentum: Tensor | None


@dataclass(frozen=True, eq=False)
class Detections:
    """Result of a :class:`Detector`.

    Attributes:
        blocks: one :class:`QueryPrediction` per block; the last is the result, the others are for deep supervision.
        stuff_logits: float32 (N,), positive where a point is likelier to belong to no instance.
        things: int64 (N',) the points that are not stuff, by prediction, in training too.
        offsets: int64 (B+1,) events of the points.
        thing_offsets: int64 (B+1,) events of the things.
    """

    blocks: tuple[QueryPrediction, ...]
    stuff_logits: Tensor
    things: Tensor
    offsets: Tensor
    thing_offsets: Tensor


class TwoLayers(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, hidden)
        self.fc2 = nn.Linear(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


@dataclass(frozen=True, eq=False)
class Meeting:
    """Who meets whom; the same for all blocks of a forward pass.

    Attributes:
        things: the queries of each event with its things.
        queries: the queries of each event with one another.
        tiles: the things, cut for products with the queries of their event.
        pairs: int64 (N' Q,) for each thing and query their place among the S pairs of ``things``.
    """

    things: Windows
    queries: Windows
    tiles: Tiles
    pairs: Tensor

    @classmethod
    def of(cls, offsets: Tensor, n_queries: int) -> Meeting:
        n_events, n_things = len(offsets) - 1, int(offsets[-1])
        boundaries = torch.arange(n_events + 1, device=offsets.device) * n_queries
        event = event_index(offsets, n_things)
        # The pairs of a window lie query by query.
        place = torch.arange(n_things, device=offsets.device) - offsets[event] + n_queries * offsets[event]
        query = torch.arange(n_queries, device=offsets.device)
        pairs = place[:, None] + query * offsets.diff()[event][:, None]
        return cls(
            Windows.of_boundaries(boundaries, offsets),
            Windows.of_boundaries(boundaries),
            Tiles.of_offsets(offsets),
            pairs.flatten(),
        )


class SelfAttention(nn.Module):
    """Among the queries of an event.

    Args:
        width, heads: D and H, D a multiple of H.
        positions: whether the learned positions are added to the input of the keys too.
    """

    def __init__(self, width: int, heads: int, positions: Positions) -> None:
        super().__init__()
        self.heads, self.positions = heads, positions
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, position: Tensor, windows: Windows) -> Tensor:
        q, width = self.q(x + position), x.shape[1]
        if self.positions == "queries":
            k, v = self.kv(x).chunk(2, 1)
        else:
            k = nn.functional.linear(x + position, self.kv.weight[:width], self.kv.bias[:width])
            v = nn.functional.linear(x, self.kv.weight[width:], self.kv.bias[width:])
        return self.proj(attend(q, k, v, windows, self.heads))


class CrossAttention(nn.Module):
    """Of the queries of an event to its things."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows, bias: Tensor) -> Tensor:
        return self.proj(attend(self.q_proj(q), self.k_proj(k), self.v_proj(v), windows, self.heads, bias))


def attend(q: Tensor, k: Tensor, v: Tensor, windows: Windows, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention (rows, D) with a bias float32 (S,) that all heads share."""
    q, k, v = (x.unflatten(1, (heads, -1)) for x in (q, k, v))
    bias = None if bias is None else bias.expand(heads, -1)
    return windowed_attention(q, k, v, windows, q.shape[2] ** -0.5, bias).flatten(1)


class DetectorBlock(nn.Module):
    """Cross attention to the things, self attention among the queries, MLP; each added to its input."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, positions: Positions) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.norm_kv = LayerNorm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.self_attn = SelfAttention(width, heads, positions)
        self.mlp = TwoLayers(width, int(mlp_ratio * width), width)
        self.mask_mlp = TwoLayers(width, width, width)

    def forward(
        self, q: Tensor, q_position: Tensor, kv: Tensor, k_position: Tensor, mask_logits: Tensor, meeting: Meeting
    ) -> Tensor:
        """The queries (B Q, D) after this block, ``kv`` (N', D) being the things after ``norm_kv``."""
        with torch.no_grad():  # the mask steers where a query looks; it is learnt from the mask loss alone
            bias = torch.empty_like(mask_logits).flatten()
            bias[meeting.pairs] = (mask_logits.sigmoid() + 1e-6).log().flatten()
        q = q + self.cross_attn(self.norm1(q) + q_position, kv + k_position, kv, meeting.things, bias)
        q = q + self.self_attn(self.norm2(q), q_position, meeting.queries)
        return q + self.mlp(self.norm3(q))

    def masks(self, q: Tensor, kv: Tensor, meeting: Meeting) -> Tensor:
        """Mask logits (N', Q), in full precision: they are sums of D products that decide which points belong."""
        with torch.autocast(q.device.type, enabled=False):
            dtype = self.mask_mlp.fc1.weight.dtype
            directions = self.mask_mlp(q.to(dtype)).unflatten(0, (meeting.tiles.event.n, -1))
            return meeting.tiles.products(kv.to(dtype), directions)


class SetDecoder(nn.Module):
    """Point features to :class:`Detections`; arguments as in :class:`Detector`.

    Args:
        in_channels: width of the point features.
    """

    def __init__(
        self,
        in_channels: int,
        n_queries: int,
        n_classes: int,
        width: int,
        heads: int,
        depth: int,
        mlp_ratio: float,
        two_layer_projections: bool,
        positions: Positions,
        mask_from: MaskFrom,
        momentum: bool,
        stuff_threshold: float,
    ) -> None:
        super().__init__()
        self.mask_from, self.stuff_threshold = mask_from, stuff_threshold

        def projection(channels: int, out_channels: int) -> nn.Module:
            if two_layer_projections:
                return TwoLayers(channels, width, out_channels)
            return nn.Linear(channels, out_channels)

        self.query_feat = nn.Embedding(n_queries, width)
        self.query_embed = nn.Embedding(n_queries, width)
        self.pos_emb = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.stuff_head = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU(), nn.Linear(width, 1))
        self.full_point_proj = projection(in_channels, width)
        self.blocks = nn.ModuleList(DetectorBlock(width, heads, mlp_ratio, positions) for _ in range(depth))
        self.final_norm = LayerNorm(width)
        self.cls_pred = projection(width, n_classes + 1)
        self.momentum_pred = projection(width, 1) if momentum else None
        self.apply(init_weights)

    def forward(self, feat: Tensor, coord: Tensor, offsets: Tensor) -> Detections:
        """Detect.

        Args:
            feat: float (N, C_in).
            coord: float (N, 3) coordinates the encoder saw.
            offsets: int64 (B+1,).
        """
        stuff_logits = self.stuff_head(feat).squeeze(1).float()
        is_thing = stuff_logits.detach().sigmoid() < self.stuff_threshold
        things = is_thing.nonzero().flatten()
        passed = offsets.new_zeros(len(feat) + 1)
        passed[1:] = is_thing.cumsum(0)
        thing_offsets = passed[offsets]
        n_queries, n_events = len(self.query_feat.weight), len(offsets) - 1
        meeting = Meeting.of(thing_offsets, n_queries)

        points = self.full_point_proj(take(feat, things))
        with torch.autocast(coord.device.type, enabled=False):  # bfloat16 could not tell neighbouring voxels apart
            position = self.pos_emb(coord[things].to(self.pos_emb[0].weight.dtype))
        q = self.query_feat.weight.repeat(n_events, 1)
        q_position = self.query_embed.weight.repeat(n_events, 1)
        predictions = []
        for block in self.blocks:
            kv = block.norm_kv(points)
            mask_logits = block.masks(q, kv, meeting)
            q = block(q, q_position, kv, position, mask_logits, meeting)
            if block is self.blocks[-1] and self.mask_from == "last":
                mask_logits = block.masks(q, kv, meeting)
            predictions.append(self.predict_queries(q, mask_logits, n_events))
        return Detections(tuple(predictions), stuff_logits, things, offsets, thing_offsets)

    def predict_queries(self, q: Tensor, mask_logits: Tensor, n_events: int) -> QueryPrediction:
        q = self.final_norm(q)
        classes = self.cls_pred(q).float().unflatten(0, (n_events, -1))
        momentum = None if self.momentum_pred is None else self.momentum_pred(q).float().view(n_events, -1)
        return QueryPrediction(classes, mask_logits.float(), momentum)


class Detector(nn.Module):
    """Encoder and set-prediction head: PointBatch -> :class:`Detections`, or instances of points with ``predict``.

    The defaults are Panda's particle detector: with Panda's encoder, built with ``mask_token=False``, 95,164,040
    parameters. Its interaction detector has ``n_queries=12, n_classes=2, stuff_class=0,
    two_layer_projections=False``: 95,021,188.

    An event's result does not depend on its batch mates. An event without a thing gets queries that saw no point.

    Args:
        encoder: its features, all stages carried up to the points, are the input of the head.
        n_queries: Q, the most instances that an event can have.
        n_classes: C; "no object" comes on top.
        stuff_class: class of the points that belong to no instance.
        width: D.
        heads: attention heads, 16 channels each as published.
        depth: blocks.
        mlp_ratio: hidden channels of the blocks' MLPs over D.
        two_layer_projections: points and classes are projected by two layers with GELU between; else by one.
        positions: whether in the self attention among queries their learned positions are added to the inputs of
            ``queries_and_keys``, or of ``queries`` only, as in the published code of the time of the paper.
        mask_from: ``last``: the masks of the result come from the queries after the last block, as the classes do.
            ``before_last_update``: from the queries before it, as in the released model. The masks of the other
            blocks are in both cases those that steered their attention.
        momentum: also predict each instance's momentum.
        stuff_threshold: points of at least this probability of being stuff are left out of the masks.
        mask_threshold, score_threshold, min_points: see :class:`nufm.models.instances.InstanceRules`.

    Raises:
        ValueError: no queries, a stuff class that is not among the classes, a width that is no multiple of the heads,
            or an unknown option.
    """

    kind: ClassVar[str] = "panoptic"  # of the tasks it can be trained for

    def __init__(
        self,
        encoder: PointTransformerV3,
        n_queries: int = 32,
        n_classes: int = 6,
        stuff_class: int = 5,
        width: int = 256,
        heads: int = 16,
        depth: int = 3,
        mlp_ratio: float = 4.0,
        two_layer_projections: bool = True,
        positions: Positions = "queries_and_keys",
        mask_from: MaskFrom = "last",
        momentum: bool = False,
        stuff_threshold: float = 0.5,
        mask_threshold: float = 0.5,
        score_threshold: float = 0.5,
        min_points: int = 2,
    ) -> None:
        super().__init__()
        # What an export writes down to build the same detector again.
        self.arguments = {
            "encoder": encoder,
            "n_queries": n_queries,
            "n_classes": n_classes,
            "stuff_class": stuff_class,
            "width": width,
            "heads": heads,
            "depth": depth,
            "mlp_ratio": mlp_ratio,
            "two_layer_projections": two_layer_projections,
            "positions": positions,
            "mask_from": mask_from,
            "momentum": momentum,
            "stuff_threshold": stuff_threshold,
            "mask_threshold": mask_threshold,
            "score_threshold": score_threshold,
            "min_points": min_points,
        }
        for name, value in (("n_queries", n_queries), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if not 0 <= stuff_class < n_classes:
            raise ValueError(f"stuff_class must be one of the {n_classes} classes, found {stuff_class}")
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, found {width} and {heads}")
        if positions not in ("queries_and_keys", "queries"):
            raise ValueError(f"positions must be 'queries_and_keys' or 'queries', found '{positions}'")
        if mask_from not in ("last", "before_last_update"):
            raise ValueError(f"mask_from must be 'last' or 'before_last_update', found '{mask_from}'")
        self.n_classes, self.stuff_class = n_classes, stuff_class
        self.rules = InstanceRules(mask_threshold, score_threshold, min_points)
        self.encoder = encoder
        self.decoder = SetDecoder(
            sum(encoder.channels),
            n_queries,
            n_classes,
            width,
            heads,
            depth,
            mlp_ratio,
            two_layer_projections,
            positions,
            mask_from,
            momentum,
            stuff_threshold,
        )

    def forward(self, batch: PointBatch) -> Detections:
        return self.decoder(upcast(self.encoder(batch)), batch.coord, batch.offsets)

    def head_layers(self) -> list[list[nn.Module]]:
        """What features pass one after the other behind the encoder, the block last in each list."""
        d = self.decoder
        first: list[nn.Module] = [d.query_feat, d.query_embed, d.pos_emb, d.full_point_proj, d.blocks[0]]
        return [first, *([block] for block in d.blocks[1:])]

    @torch.no_grad()
    def predict(self, batch: PointBatch) -> PointPrediction:
        """Instances, classes and, with that head, momenta of the points of ``batch``."""
        return self.interpret(self(batch))

    @torch.no_grad()
    def interpret(self, found: Detections) -> PointPrediction:
        """Instances of points from the queries.

        Stuff has its class, its probability as confidence, and no instance. A thing that no instance covers has label
        -1 and confidence 0.
        """
        last, stuff = found.blocks[-1], found.stuff_logits.sigmoid()
        instances = find_instances(
            last.class_logits, last.mask_logits, found.thing_offsets, self.stuff_class, self.rules
        )
        n, things = len(stuff), found.things
        momentum = None
        if last.momentum is not None:
            # One more column for points without an instance.
            of_query = nn.functional.pad(last.momentum.exp(), (0, 1), value=torch.nan)
            event = event_index(found.thing_offsets, len(things))
            query = torch.where(instances.query < 0, of_query.shape[1] - 1, instances.query)
            momentum = stuff.new_full((n,), torch.nan).index_put_((things,), of_query[event, query])
        return PointPrediction(
            label=things.new_full((n,), self.stuff_class).index_put_((things,), instances.label),
            confidence=stuff.index_put((things,), instances.confidence),
            probability=self.class_probability(found),
            instance=things.new_full((n,), -1).index_put_((things,), instances.instance),
            momentum=momentum,
        )

    @torch.no_grad()
    def class_probability(self, found: Detections) -> Tensor:
        """float32 (N, C): the class of each point, whatever its instance.

        Of a thing: softmax over the classes of logsumexp over the queries of mask logit + class logit (as published),
        times the probability that it is a thing; the stuff class has the rest. Stuff points have no mask, so their
        small share of the other classes follows the classes of their event's queries.
        """
        last, stuff = found.blocks[-1], found.stuff_logits.sigmoid()
        classes = last.class_logits[..., :-1]  # (B, Q, C), without "no object"
        probability = classes.logsumexp(1).softmax(1)[event_index(found.offsets, len(stuff))]
        of_event = classes[event_index(found.thing_offsets, len(found.things))]
        of_things = (last.mask_logits[:, :, None] + of_event).logsumexp(1).softmax(1)
        probability = probability.index_put((found.things,), of_things) * (1 - stuff)[:, None]
        probability[:, self.stuff_class] += stuff
        return probability
