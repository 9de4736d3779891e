"""What the tests of evaluations share: hand-made events, and models whose answers are known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nufm.checkpoint import Pretrained
from nufm.data.event import Event, PointBatch
from nufm.data.prediction import PointPrediction
from nufm.data.tasks import TASKS
from nufm.data.transforms import LogEnergy, NormalizeCoord, Transform

GRID = 0.0015035


def an_event(name: str, n: int, seed: int = 0, **labels: np.ndarray | None) -> Event:
    """``n`` voxels in distinct places, with all labels drawn at random (some points unknown), or those given."""
    rng = np.random.default_rng([seed, n])
    cell = rng.choice(40**3, n, replace=False)
    voxel = np.stack(np.unravel_index(cell, (40, 40, 40)), 1).astype(np.int32) + 300
    particle = rng.integers(-1, 4, n)
    drawn = {
        "motif": rng.integers(-1, 5, n),
        "pid": np.where(particle < 0, 5, particle),
        "particle": particle,
        "interaction": rng.integers(-1, 2, n),
        "momentum": np.where(particle < 0, -1.0, 0.2 + 0.1 * particle).astype(np.float32),
    }
    energy = rng.uniform(0.2, 3.0, n).astype(np.float32)
    return Event(voxel=voxel, energy=energy, name=f"{name}.h5#{seed}", **(drawn | labels))


class Noise(nn.Module):
    """Probabilities that depend on the point's input alone: neither on batch mates nor on the order."""

    def __init__(self, n_classes: int, instances: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, n_classes, generator=generator) * 40)
        self.instances = instances

    def predict(self, batch: PointBatch) -> PointPrediction:
        probability = torch.sin(batch.feat.double() @ self.weight.double()).mul(2).softmax(1).float()
        confidence, label = probability.max(1)
        if not self.instances:
            return PointPrediction(label, confidence, probability)
        instance = torch.where(label == probability.shape[1] - 1, -1, label)
        return PointPrediction(label, confidence, None, instance)


class Told(nn.Module):
    """Predicts what it was told of each event, by name."""

    def __init__(self, answers: dict[str, dict[str, Tensor]]) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.answers = answers

    def predict(self, batch: PointBatch) -> PointPrediction:
        own = [self.answers[name] for name in batch.names]
        fields = {k: torch.cat([torch.as_tensor(a[k]) for a in own]) for k in own[0]}
        return PointPrediction(**fields)


def pretrained(
    model: nn.Module, task: str | None, transforms: tuple[Transform, ...] = (NormalizeCoord(383.5), LogEnergy()),
    classes: dict[str, list[str]] | None = None,
) -> Pretrained:  # fmt: skip
    if classes is None:
        classes = {TASKS[task].label: list(TASKS[task].classes)} if task else {}
    return Pretrained(model, transforms, GRID, task, classes, source="a model")
