"""What an event is: flavour, charm, momenta and vertex, from the latents of an encoder of several sub-detectors.

The heads of the FASERCal model (arXiv 2604.07037; talk of F. Cufino, NPML 2026; where it is silent the public code
saulam/faserDL): light ones on an event's mean latent, or one learned query for each task that looks at the latents.

Momenta are predicted as four numbers (z_T, a, b, z_z), with scales k, µ, σ from the training events:

    p_T = k_T (exp(µ_T + σ_T z_T) - 1)     (cos φ, sin φ) = (a, b)/‖(a, b)‖     p_z = k_z (exp(µ_z + σ_z z_z) - 1)

Shape legend: B events, L latents, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nufm.data.prediction import StreamPrediction
from nufm.data.streams import CHARM_NAMES, FLAVOUR_NAMES, StreamBatch
from nufm.models.layers import LayerNorm
from nufm.models.stream_blocks import EPSILON, Block
from nufm.models.stream_encoder import StreamEncoder
from nufm.ops.attention import Windows
from nufm.ops.pool import segment_reduce

N_CLASSES = {"flavour": len(FLAVOUR_NAMES), "charm": len(CHARM_NAMES)}
MOMENTA = ("visible", "jet")
WIDTHS = {**N_CLASSES, "visible": 4, "jet": 4, "vertex": 3}  # task -> numbers that its head gives
MOST = 12.0  # largest exponent: p up to 1.6e5 k, so that no prediction overflows
DIRECTION = 1e-2  # ‖(a, b)‖ below which it is no direction: its gradient would have no bound at the start


class EventNetwork(nn.Module):
    """Encoder and heads.

    An event without hits has features of 0, and the prediction that the heads give for them.

    Args:
        encoder: gives the latents.
        heads: ``mean``: norm, dropout and a linear layer for each task, on the mean of the event's latents (11,925
            parameters at the published size); ``query``: on that mean plus what a learned query of the task finds
            among the latents, times γ (LayerScale, Touvron et al., arXiv 2103.17239), which starts at 1e-4.
        tasks: what is predicted, some of flavour, charm, visible, jet, vertex.
        dropout: probability that a channel in front of a head is dropped.
        momentum_scaling: k, µ, σ of p_T and of p_z in GeV/c, 6 numbers for visible and 6 for jet; None: not known yet,
            to be set with ``set_scaling``.
        vertex_scaling: mean (3) and standard deviation (3) of the vertex in mm.

    Raises:
        ValueError: an unknown task or kind of heads, or scales of the wrong number.
    """

    kind = "event"

    def __init__(
        self,
        encoder: StreamEncoder,
        heads: Literal["mean", "query"] = "mean",
        tasks: Sequence[str] = tuple(WIDTHS),
        dropout: float = 0.1,
        momentum_scaling: Sequence[float] | None = None,
        vertex_scaling: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if heads not in ("mean", "query"):
            raise ValueError(f"heads is '{heads}', expected 'mean' or 'query'")
        if not tasks or set(tasks) - set(WIDTHS) or len(set(tasks)) != len(tasks):
            raise ValueError(f"tasks are {list(tasks)}, expected some of {', '.join(WIDTHS)}, each once")
        self.encoder, self.pooling, self.dropout = encoder, heads, dropout
        self.tasks = tuple(t for t in WIDTHS if t in tasks)
        c = encoder.channels
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(LayerNorm(c, eps=EPSILON), nn.Dropout(dropout), nn.Linear(c, WIDTHS[task]))
                for task in self.tasks
            }
        )
        for head in self.heads.values():
            nn.init.trunc_normal_(head[2].weight, std=2e-5)
            nn.init.zeros_(head[2].bias)
        self.queries = TaskQueries(len(self.tasks), c, encoder.arguments["heads"]) if heads == "query" else None
        # Buffers: they go with the weights, and a resumed run finds them in its checkpoint.
        self.register_buffer("momentum_scaling", torch.tensor([1.0, 0.0, 1.0]).repeat(len(MOMENTA), 2, 1))
        self.register_buffer("vertex_scaling", torch.tensor([[0.0], [1.0]]).repeat(1, 3))
        self.scaled = momentum_scaling is not None and vertex_scaling is not None
        if self.scaled:
            self.set_scaling(momentum_scaling, vertex_scaling)

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments, for exports."""
        return {
            "encoder": self.encoder,
            "heads": self.pooling,
            "tasks": list(self.tasks),
            "dropout": self.dropout,
            "momentum_scaling": self.momentum_scaling.flatten().tolist(),
            "vertex_scaling": self.vertex_scaling.flatten().tolist(),
        }

    @property
    def n_classes(self) -> dict[str, int]:
        """Label -> number of classes that are predicted."""
        return {task: n for task, n in N_CLASSES.items() if task in self.tasks}

    def set_scaling(self, momentum: Sequence[float] | Tensor, vertex: Sequence[float] | Tensor) -> None:
        """Sets the scales, see the arguments of the class.

        Raises:
            ValueError: not 12 and 6 finite numbers, or a k, σ or standard deviation that is not positive.
        """
        momentum, vertex = (
            torch.as_tensor(v, dtype=torch.float32, device=self.vertex_scaling.device).flatten()
            for v in (momentum, vertex)
        )
        if len(momentum) != 12 or len(vertex) != 6:
            raise ValueError(
                f"momentum_scaling has {len(momentum)} numbers and vertex_scaling {len(vertex)}, expected 12 (k, µ, σ "
                "of p_T and of p_z, of visible and jet) and 6 (mean and standard deviation on each axis)"
            )
        momentum, vertex = momentum.view(2, 2, 3), vertex.view(2, 3)
        if not momentum.is_meta:
            positive = torch.cat([momentum[..., 0].flatten(), momentum[..., 2].flatten(), vertex[1]])
            if not bool(momentum.isfinite().all() & vertex.isfinite().all() & (positive > 0).all()):
                raise ValueError(
                    f"momentum_scaling {momentum.flatten().tolist()} and vertex_scaling {vertex.flatten().tolist()}: "
                    "expected finite numbers, and k, σ and the standard deviations above 0"
                )
        self.momentum_scaling.copy_(momentum)
        self.vertex_scaling.copy_(vertex)

    def forward(self, batch: StreamBatch) -> dict[str, Tensor]:
        """What the heads give: task -> float32 (B, numbers); logits, (z_T, a, b, z_z), or the vertex as z-scores."""
        latents = self.encoder(batch)
        pooled = segment_reduce(latents.feat, latents.event, batch.n_events, "mean")
        features = [pooled] * len(self.tasks)
        if self.queries is not None:
            features = (pooled[:, None] + self.queries(latents.feat, latents.offsets)).unbind(1)
        return {task: self.heads[task](x).float() for task, x in zip(self.tasks, features, strict=True)}

    def momentum(self, found: Tensor, task: str) -> Tensor:
        """(B, 3) GeV/c from the four numbers (B, 4) of a task, visible or jet."""
        (k_t, mu_t, sigma_t), (k_z, mu_z, sigma_z) = self.momentum_scaling[MOMENTA.index(task)]
        p_t = k_t * torch.expm1((mu_t + sigma_t * found[:, 0]).clamp(0, MOST))
        p_z = k_z * torch.expm1((mu_z + sigma_z * found[:, 3]).clamp(0, MOST))
        return torch.cat([p_t[:, None] * direction(found[:, 1:3]), p_z[:, None]], dim=1)

    def vertex(self, found: Tensor) -> Tensor:
        """(B, 3) mm from z-scores (B, 3)."""
        return self.vertex_scaling[0] + self.vertex_scaling[1] * found

    def predict(self, batch: StreamBatch) -> StreamPrediction:
        """Probabilities of flavour and charm; visible, jet and lepton momentum and missing p_T in GeV/c, vertex in mm:
        those of the tasks, and what follows from them."""
        found = self(batch)
        probability = {label: found[label].softmax(1) for label in self.n_classes}
        value = {task: self.momentum(found[task], task) for task in MOMENTA if task in found}
        if "visible" in value:
            if "jet" in value:
                value["lepton"] = value["visible"] - value["jet"]
            value["missing_pt"] = value["visible"][:, :2].norm(dim=1)
        if "vertex" in found:
            value["vertex"] = self.vertex(found["vertex"])
        return StreamPrediction(probability, value)

    def head_layers(self) -> list[list[nn.Module]]:
        """What features pass behind the encoder: one layer, as in the published learning rates."""
        return [[self.heads] if self.queries is None else [self.queries, self.heads]]


class TaskQueries(nn.Module):
    """One learned query for each task that looks at an event's latents.

    Args:
        tasks: how many.
        channels, heads: C and attention heads.
    """

    def __init__(self, tasks: int, channels: int, heads: int) -> None:
        super().__init__()
        self.query_token = nn.Embedding(tasks, channels)
        nn.init.normal_(self.query_token.weight, std=0.02)
        self.block = Block(channels, heads, cross=True)
        self.gamma = nn.Parameter(torch.full((tasks, channels), 1e-4))

    def forward(self, feat: Tensor, offsets: Tensor) -> Tensor:
        """(L, C) latents with offsets (B+1,) to (B, tasks, C); 0 for an event without latents."""
        n, tasks = len(offsets) - 1, len(self.gamma)
        rows = self.query_token.weight.repeat(n, 1).to(feat.dtype)
        windows = Windows.of_boundaries(torch.arange(n + 1, device=offsets.device) * tasks, offsets)
        found = self.block(rows, windows, feat).view(n, tasks, -1)
        return self.gamma * found * (offsets.diff() > 0)[:, None, None]


def direction(vector: Tensor) -> Tensor:
    """(B, 2) of unit length; shorter where ``vector`` is hardly longer than ``DIRECTION``."""
    return vector / (vector.square().sum(1, keepdim=True) + DIRECTION**2).sqrt()


def scaled_log(p: Tensor, scaling: Tensor) -> Tensor:
    """z with p = k (exp(µ + σ z) - 1), for p (B,) of at least 0; less counts as 0.

    Args:
        p: GeV/c.
        scaling: (3,) k, µ, σ.
    """
    k, mu, sigma = scaling
    return ((p.clamp(min=0) / k).log1p().clamp(max=MOST) - mu) / sigma
