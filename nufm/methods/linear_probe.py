"""Linear probe: how much of the truth can be read off frozen features with one linear layer.

Protocol of Panda (DeepLearnPhysics/Panda, notebooks/base.ipynb): softmax regression per point, AdamW, unweighted
cross-entropy, macro-F1 over all points of all held-out events. Train and test never share an event:
:func:`choose_events` refuses it, within one split and across splits.

The features of a paper-size encoder are 1232 numbers a point: 1000 events of 3,400 points are 17 GB in float32. So
:func:`collect` can keep them in float16 in an unnamed file (:class:`DiskRows`) in place of the memory.

Shape legend: N points, C feature width, K classes.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from nufm.data.datamodule import PointDataModule
from nufm.data.event import MOTIF_NAMES, PointBatch
from nufm.data.loader import BatchLoader
from nufm.metrics.confusion import ConfusionScores
from nufm.ops.neighbors import neighbor_map

Features = Callable[[PointBatch], Tensor]


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is fitted. Published: AdamW 1e-3, 65 536 points a batch, 5 epochs over about 1000 events.

    Attributes:
        epochs: passes over the points.
        batch_size: points in a batch.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        schedule: of the learning rate: falling to 0 along a cosine, or constant.
        standardise: features minus the fitted points' mean, over their spread; false: features as they are.
    """

    epochs: int = 5
    batch_size: int = 65536
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    standardise: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe: {name} is {getattr(self, name)}, expected at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"probe: learning_rate is {self.learning_rate}, expected a positive number")


@dataclass(frozen=True)
class EventChoice:
    """Events of a split: the first ones, in file order or shuffled.

    Attributes:
        split: train, val or test.
        events: how many; null = all that there are.
    """

    split: Literal["train", "val", "test"]
    events: int | None = 1000

    def __post_init__(self) -> None:
        if self.events is not None and self.events < 1:
            raise ValueError(f"events is {self.events}, expected a positive number, or null for all of '{self.split}'")


def choose_events(
    data: PointDataModule, fit: EventChoice, score: EventChoice, shuffle: int | None = None
) -> tuple[list[int], list[int]]:
    """Indices, in their splits, of the events to fit on and of those to score: never the same event.

    Of one split, the events to score are the ones that come next after those to fit on.

    Args:
        data: where the splits are.
        fit, score: which events; where there are fewer, all that are left.
        shuffle: seed of the order in which events are taken; None = file order.

    Raises:
        ValueError: nothing is left to score, or an event (a row of a file, under whatever path) is in both.
    """

    def order(split: str) -> list[int]:
        count = len(data.reader(split))
        return list(range(count)) if shuffle is None else np.random.default_rng(shuffle).permutation(count).tolist()

    fitted, scored = order(fit.split)[: fit.events], order(score.split)
    if score.split == fit.split:
        scored = scored[len(fitted) :]
    scored = scored[: score.events]
    if not scored:
        raise ValueError(
            f"all {len(fitted)} events of split '{fit.split}' are fitted on, none is left to score; use fewer "
            "(fit.events), or score another split (score.split)"
        )
    names = {event_identity(data.reader(fit.split).name(i)) for i in fitted}
    shared = [name for i in scored if event_identity(name := data.reader(score.split).name(i)) in names]
    if shared:
        raise ValueError(
            f"{len(shared)} events would be both fitted on and scored, the first {shared[0]}: splits "
            f"'{fit.split}' and '{score.split}' hold the same files; give them different ones (data.splits), or name "
            "one split for both, of which different events are taken"
        )
    return fitted, scored


def event_identity(name: str) -> str:
    """``file#row`` with the file's real path: the same for all names of an event."""
    file, _, row = name.rpartition("#")
    return f"{Path(file).resolve()}#{row}"


def chosen_batches(data: PointDataModule, split: str, events: Sequence[int], batch_size: int) -> BatchLoader:
    """The events numbered ``events`` of a split, un-augmented, with labels, in that order."""
    batches = [[(0, e) for e in events[i : i + batch_size]] for i in range(0, len(events), batch_size)]
    collate = functools.partial(PointBatch.from_events, grid_size=data.grid_size)
    return BatchLoader(data.eval_dataset(split), batches, collate, data.num_workers)


def encoder_features(encoder: nn.Module) -> Features:
    """What ``encoder.point_features`` says of each point (N, C), in evaluation mode."""

    def features(batch: PointBatch) -> Tensor:
        was_training = encoder.training
        encoder.eval()
        try:
            return encoder.point_features(batch).float()
        finally:
            encoder.train(was_training)

    return features


def raw_features(batch: PointBatch) -> Tensor:
    """What is known without a network, (N, 3): energy as the model sees it, occupied cells in the 3³ and 5³ around."""
    counts = [(neighbor_map(batch.grid, batch.offsets, k) >= 0).sum(1) - 1 for k in (3, 5)]
    return torch.cat([batch.feat[:, 3:4], torch.stack(counts, 1).to(batch.feat.dtype)], dim=1)


class DiskRows:
    """Rows appended to an unnamed file in the temporary folder (``TMPDIR``), read back as a tensor that the system
    pages in: what fits into memory is read from there, what does not, from disk. The file is gone with the tensor,
    or with the process.

    Kept in float16, whose relative rounding of 5e-4 is far below the spread of a feature.
    """

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="nufm-features-")
        self.shape = (0, 0)

    def append(self, rows: Tensor) -> None:
        """Add float rows (n, C).

        Raises:
            ValueError: a value is not finite, or too large for float16.
            OSError: the disk is full.
        """
        half = rows.half()
        if not bool(torch.isfinite(half).all()):
            raise ValueError(
                f"features reach {float(rows.abs().max()):.3g}, float16 ends at 65504; keep them in memory instead "
                "(storage: memory)"
            )
        try:
            half.numpy().tofile(self.file)
        except OSError as error:
            size = self.shape[0] * self.shape[1] * 2 / 1e9
            raise OSError(
                f"features cannot be kept in {tempfile.gettempdir()} after {size:.1f} GB ({error}); name a folder on "
                "a larger disk with the variable TMPDIR, or use fewer events"
            ) from error
        self.shape = (self.shape[0] + len(half), half.shape[1])

    def tensor(self) -> Tensor:
        """float16 (N, C), backed by the file."""
        if 0 in self.shape:
            return torch.zeros(self.shape, dtype=torch.float16)
        self.file.flush()
        # copy on write: torch warns about arrays that cannot be written, although nothing writes here
        return torch.from_numpy(np.memmap(self.file, np.float16, "c", shape=self.shape))


@torch.no_grad()
def collect(
    features: Features,
    batches: Iterable[PointBatch],
    labels: Sequence[str],
    device: torch.device | str,
    storage: Literal["memory", "disk"] = "memory",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of all points, and their labels (-1: none).

    Args:
        features: what to probe.
        batches: whole events with labels, on the CPU.
        labels: names of the labels.
        device: where the features are computed.
        storage: ``memory``: float32; ``disk``: float16, see :class:`DiskRows`.

    Returns:
        Features (N, C) on the CPU, and name -> int64 (N,).

    Raises:
        ValueError: the events carry no such label, or a feature is not finite.
    """
    kept: list[Tensor] = []
    on_disk = DiskRows() if storage == "disk" else None
    truth: dict[str, list[Tensor]] = {name: [] for name in labels}
    for batch in batches:
        for name in labels:
            if name not in batch.labels:
                raise ValueError(f"{batch.names[:1]}: no '{name}' labels to probe; found {sorted(batch.labels)}")
            truth[name].append(batch.labels[name])
        feat = features(batch.to(device)).float().cpu()
        if not bool(torch.isfinite(feat).all()):
            raise ValueError(f"{batch.names[:1]} …: features are NaN or infinite; has the training diverged?")
        if on_disk is None:
            kept.append(feat)
        else:
            on_disk.append(feat)
    if not truth or not all(truth.values()):
        raise ValueError("no events to probe")
    return torch.cat(kept) if on_disk is None else on_disk.tensor(), {k: torch.cat(v) for k, v in truth.items()}


def moments(feat: Tensor, rows: Tensor, chunk: int = 65536) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,), float32, of these rows of ``feat``, piece by piece in float64.

    Pieces are joined as in Chan, Golub, LeVeque, Am. Stat. 37 (1983) 242.
    """
    count, mean, squares = 0, torch.zeros(feat.shape[1], dtype=torch.float64), 0.0
    for part in rows.split(chunk):
        x = feat[part].double()
        here = x.mean(0)
        delta, total = here - mean, count + len(x)
        squares = squares + (x - here).square_().sum(0) + delta.square() * (count * len(x) / total)
        mean, count = mean + delta * (len(x) / total), total
    return mean.float(), (squares / count).sqrt().float()


class LinearProbe(nn.Module):
    """Standardisation by the training points' mean and spread, then one linear layer."""

    def __init__(self, mean: Tensor, std: Tensor, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        # Not initialised here: a probe during a training must not draw from the training's random numbers.
        self.linear = torch.nn.utils.skip_init(nn.Linear, len(mean), n_classes)

    def forward(self, feat: Tensor) -> Tensor:
        return self.linear((feat - self.mean) / self.std)


def fit_probe(
    feat: Tensor,
    label: Tensor,
    n_classes: int,
    settings: ProbeSettings,
    seed: int,
    device: torch.device | str = "cpu",
    after_epoch: Callable[[LinearProbe], None] | None = None,
) -> LinearProbe:
    """Fit a probe; the seed fixes its start and the order of the points.

    Args:
        feat: features (N, C) on the CPU, of any float type; the probe computes in float32.
        label: int64 (N,); points with -1 are left out.
        n_classes: K.
        settings: how.
        seed: of a generator of its own; the global random state is left alone.
        device: where the probe is fitted, and stays.
        after_epoch: called with the probe after every epoch.

    Raises:
        ValueError: no point has a label.
    """
    labelled = torch.nonzero(label >= 0)[:, 0]
    if len(labelled) == 0:
        raise ValueError("no labelled points to fit a probe to")
    generator = torch.Generator().manual_seed(seed)
    if settings.standardise:
        mean, std = moments(feat, labelled)
    else:
        mean, std = torch.zeros(feat.shape[1]), torch.ones(feat.shape[1])
    probe = LinearProbe(mean, std.clamp(min=1e-6), n_classes)
    bound = feat.shape[1] ** -0.5
    with torch.no_grad():
        probe.linear.weight.uniform_(-bound, bound, generator=generator)
        probe.linear.bias.zero_()
    probe.to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(labelled) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for _ in range(settings.epochs):
        order = labelled[torch.randperm(len(labelled), generator=generator)]
        for rows in order.split(settings.batch_size):
            with torch.enable_grad():
                loss = F.cross_entropy(probe(feat[rows].to(device).float()), label[rows].to(device))
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            if settings.schedule == "cosine":
                schedule.step()
        if after_epoch is not None:
            after_epoch(probe)
    return probe.eval()


@torch.no_grad()
def score_probe(probe: LinearProbe, feat: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Per-class precision, recall, F1, their means and the confusion matrix, over all points with a label >= 0."""
    device = probe.mean.device
    scores = ConfusionScores(probe.linear.out_features)
    for rows in torch.arange(len(feat)).split(262144):
        scores.update(probe(feat[rows].to(device).float()).argmax(1).cpu(), label[rows])
    return scores.compute()


class OnlineProbe(Callback):
    """Probes the features while a method pretrains, on a few held-back labelled events; the same for all methods.

    The method offers ``encoder``; the data module offers ``probe_dataloader(split, n_events)``. Labels never reach
    the method.

    Args:
        every_n_steps: optimiser steps between two probes.
        n_events: validation events to fit on, and as many others to score on.
        settings: how the probe is fitted.
    """

    def __init__(self, every_n_steps: int = 1000, n_events: int = 250, settings: ProbeSettings | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.n_events = n_events
        self.settings = settings or ProbeSettings()
        self._last = -1

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Raises ValueError if there are no two validation events: now, and not at the first probe."""
        found = len(trainer.datamodule.reader("val"))
        if found < 2:
            raise ValueError(f"the online probe needs at least 2 events in the split 'val', found {found}")

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step == self._last:
            return
        self._last = step
        # Every rank computes the same score: no rank waits for another, and the value needs no reduction.
        # Fitted and scored on different events, both of val, which leaves test unseen.
        n = min(2 * self.n_events, len(trainer.datamodule.reader("val")))
        batches = list(trainer.datamodule.probe_dataloader("val", n))
        halves: tuple[list[PointBatch], list[PointBatch]] = ([], [])
        first = 0
        for batch in batches:
            cut = min(max(n // 2 - first, 0), batch.n_events)
            for half, events in zip(halves, (range(cut), range(cut, batch.n_events)), strict=True):
                if len(events):
                    half.append(batch.select(events))
            first += batch.n_events
        features = encoder_features(module.encoder)
        train, test = (collect(features, half, ["motif"], module.device) for half in halves)
        probe = fit_probe(train[0], train[1]["motif"], len(MOTIF_NAMES), self.settings, seed=0)
        score = score_probe(probe, test[0], test[1]["motif"])["macro_f1"]
        module.log("probe/macro_f1", score, rank_zero_only=True, prog_bar=True)
