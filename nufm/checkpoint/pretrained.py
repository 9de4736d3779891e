"""A model and how to use it: what comes out of :func:`nufm.checkpoint.from_pretrained`.

Models of points say something of every voxel, models of events with several streams and of pixel maps something of the
whole event.

Shape legend: N voxels of an event, C classes or channels, B events.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from nufm.checkpoint.describe import rebuilt
from nufm.checkpoint.kinds import Inputs, check_event, inputs_of
from nufm.checkpoint.maps import open_maps, warn_of_other_maps
from nufm.checkpoint.temperature import calibrated
from nufm.data.event import Event, PointBatch
from nufm.data.images import ImageBatch, ImageEvent
from nufm.data.pilarnet import PILArNetReader
from nufm.data.prediction import EventPrediction, PointPrediction, StreamEventPrediction
from nufm.data.stream_files import StreamReader
from nufm.data.streams import StreamBatch, StreamEvent
from nufm.data.tasks import EventTask, Task, task_named
from nufm.data.transforms import Transform, compose

ENERGY_THRESHOLD = 0.13  # MeV, of Panda's runs: for exports that do not say
AnyEvent = Event | StreamEvent | ImageEvent
Events = str | Path | Sequence[Event] | Sequence[StreamEvent] | Sequence[ImageEvent]


@dataclass(frozen=True)
class Pretrained:
    """A model, its preprocessing, its classes.

    Attributes:
        model: in evaluation mode: an encoder, or a network with an attribute ``encoder`` and a method ``predict``.
        transforms: what an event goes through, in order, before packing.
        grid_size: edge of a lattice cell, for ``PointBatch.from_events``; None for models of events that are no points.
        task: what the model predicts, a name of ``nufm.data.tasks.TASKS`` or ``EVENT_TASKS``; None for an encoder.
        classes: label -> names of its classes, in order.
        units: quantity -> unit.
        selection: how events of points are read before the transforms: ``energy_threshold`` in MeV.
        extra: provenance: anything the exporter wrote down, as JSON; ``temperature``: label -> T that its predicted
            probabilities are calibrated with (``nufm.checkpoint.temperature``).
        source: where it was loaded from.
        base: of an image-text model: where its base was said to be; None: where the export says.
    """

    model: nn.Module
    transforms: tuple[Transform, ...]
    grid_size: float | None = None
    task: str | None = None
    classes: dict[str, list[str]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    selection: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    base: str | None = None

    @property
    def encoder(self) -> nn.Module:
        """The model, or the encoder in it."""
        return getattr(self.model, "encoder", self.model)

    @property
    def inputs(self) -> Inputs:
        """Which kind of events the model takes."""
        return inputs_of(self.model)

    @property
    def of_streams(self) -> bool:
        """Whether the model takes events with several streams."""
        return self.inputs == "streams"

    @property
    def energy_threshold(self) -> float:
        """Voxels with at most this energy in MeV are dropped when a file is read."""
        return float(self.selection.get("energy_threshold", ENERGY_THRESHOLD))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that the model predicts of points.

        Raises:
            ValueError: the export has no task, or one of whole events, whose ``classes`` are those of several labels.
        """
        task = self._task()
        if isinstance(task, EventTask):
            raise ValueError(f"{self.source}: the task '{task.name}' is one of whole events: see its 'classes'")
        return tuple(self.classes.get(task.label, task.classes))

    def batch(
        self, events: Sequence[AnyEvent], groups: Sequence[int] | None = None
    ) -> PointBatch | StreamBatch | ImageBatch:
        """The events as the model takes them. An event's seed fixes what its transforms draw at random.

        Args:
            events: at least one.
            groups: numbers of consecutive events with several streams that belong together; None: each stands alone.
        """
        inputs = self.inputs
        for event in events:
            check_event(event, inputs, self.source or type(self.model).__name__)
        ready = [_transformed(e, self.transforms) for e in events]
        if inputs == "streams":
            return StreamBatch.from_events(ready, groups)
        if inputs == "images":
            return ImageBatch.from_events(ready)
        return PointBatch.from_events(ready, self.grid_size)

    @torch.no_grad()
    def features(self, event: AnyEvent) -> np.ndarray:
        """Features of every voxel of one event, in evaluation mode: what the encoder's ``point_features`` gives; of an
        event with several streams or of pixel maps, its ``event_features``.

        A voxel that the transforms dropped (another one is in its lattice cell) gets the features of the
        nearest one kept.

        Returns:
            float32 (N, C), rows in the order of ``event``; (C,) of an event that is no points.

        Raises:
            ValueError: the model has no encoder, or is for other events.
        """
        if self.inputs != "points":
            # An encoder of points in a network of pixel maps knows nothing of events.
            owner = next((part for part in (self.encoder, self.model) if hasattr(part, "event_features")), None)
            if owner is None:
                raise ValueError(
                    f"{self.source}: a {type(self.model).__name__} has no features of events to show; use predict()"
                )
            with _evaluating(owner):
                batch = self.batch([event]).to(_device(owner))
                return owner.event_features(batch)[0].float().cpu().numpy()
        if not isinstance(event, Event):
            raise ValueError(
                f"features() takes one Event, found a {type(event).__name__}; read events with PILArNetReader(file)[i]"
            )
        batch, kept = self._numbered([event])
        if not hasattr(self.encoder, "point_features"):
            raise ValueError(
                f"{self.source}: a {type(self.encoder).__name__} has no features of points to show; use predict(), or "
                "an export with an encoder in it"
            )
        with _evaluating(self.encoder):
            found = self.encoder.point_features(batch.to(_device(self.encoder))).float().cpu().numpy()
        return found[_nearest_kept(event, kept[0])]

    def predict(
        self, source: Events, batch_size: int = 8, progress: bool = True
    ) -> list[EventPrediction] | list[StreamEventPrediction]:
        """Predictions for every voxel of every event; or, of a model of events with several streams or of pixel maps,
        for every event.

        Args:
            source: HDF5 file, folder or glob in the PILArNet-M layout, read with the export's own selection; of stream
                files (``nufm.data.stream_files``); of pixel maps (``nufm.data.image_files``); or a list of events,
                taken as they are.
            batch_size: events at a time. What is predicted for an event does not depend on it: weights whose norms go
                over the whole batch (released PoLAr-MAE) get one event at a time.
            progress: show a bar on the terminal while there is more than one batch.

        Returns:
            One per event, in order. Rows are those of the event as it was read (after the energy cut); a voxel that
            the transforms dropped has the prediction of the nearest one kept, and label -1 with confidence 0 where they
            dropped the whole event.

        Raises:
            ValueError: the export has no task (an encoder alone), or the events are not what they should be.
            FileNotFoundError: the path names nothing.
        """
        return list(self.predict_each(source, batch_size, progress))

    def predict_each(
        self, source: Events, batch_size: int = 8, progress: bool = True
    ) -> Iterator[EventPrediction] | Iterator[StreamEventPrediction]:
        """:meth:`predict` event by event, for files whose predictions do not fit into memory."""
        self._task()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if isinstance(source, (str, Path)):
            if self.inputs == "streams":
                source = StreamReader(source)
            elif self.inputs == "images":
                source = open_maps(source, self.extra)
            else:
                source = PILArNetReader(source, energy_threshold=self.energy_threshold, min_points=0)
        if self.inputs == "images":
            warn_of_other_maps(source, self.extra, self.source)
        if getattr(self.encoder, "sees_batch_mates", False):
            batch_size = 1
        groups = getattr(source, "group", None) if getattr(self.model, "sees_groups", False) else None
        batches = _whole_groups(len(source), batch_size, groups)
        return self._predict_batches(source, batches, progress and len(batches) > 1)

    def _predict_batches(
        self, source: Sequence[Event], batches: Iterable[list[int]], progress: bool
    ) -> Iterator[EventPrediction] | Iterator[StreamEventPrediction]:
        with _bar(progress) as bar:
            task, start = bar.add_task("events", total=len(source)), 0
            for sizes in batches:
                events = [source[i] for i in range(start, start + sum(sizes))]
                points = self.inputs == "points"
                yield from self._predict(events) if points else self._predict_events(events, sizes)
                bar.advance(task, len(events))
                start += len(events)

    @torch.no_grad()
    def _predict(self, events: list[Event]) -> list[EventPrediction]:
        batch, kept = self._numbered(events)
        with _evaluating(self.model):
            found = self.model.predict(batch.to(_device(self.model)))
        arrays = {f.name: _array(getattr(found, f.name)) for f in dataclasses.fields(PointPrediction)}
        predictions, begin = [], 0
        for event, rows in zip(events, kept, strict=True):
            own = {k: None if v is None else v[begin : begin + len(rows)] for k, v in arrays.items()}
            if len(rows) or not len(event):
                nearest = _nearest_kept(event, rows)
                own = {k: None if v is None else v[nearest] for k, v in own.items()}
            else:
                own = {k: None if v is None else _unknown(k, v, len(event)) for k, v in own.items()}
            begin += len(rows)
            predictions.append(EventPrediction(event.name, self.class_names, event.voxel, event.energy, **own))
        return predictions

    @torch.no_grad()
    def _predict_events(
        self, events: list[StreamEvent] | list[ImageEvent], groups: Sequence[int]
    ) -> list[StreamEventPrediction]:
        with _evaluating(self.model):
            found = self.model.predict(self.batch(events, groups).to(_device(self.model)))
        probability, value = (
            {k: v.float().cpu().numpy() for k, v in part.items()} for part in (found.probability, found.value)
        )
        probability = calibrated(probability, self.extra)
        classes = {label: tuple(self.classes[label]) for label in probability}
        return [
            StreamEventPrediction(
                event.name, classes, {k: v[i] for k, v in probability.items()}, {k: v[i] for k, v in value.items()}
            )
            for i, event in enumerate(events)
        ]

    def _numbered(self, events: Sequence[Event]) -> tuple[PointBatch, list[np.ndarray]]:
        """The batch, and for each event the rows, as it was read, that the transforms kept, in their order."""
        # Row numbers travel in place of a label: transforms may drop and reorder points.
        ready = [_transformed(e.replace(particle=np.arange(len(e))), self.transforms) for e in events]
        return PointBatch.from_events(ready, self.grid_size), [e.particle for e in ready]

    def _task(self) -> Task | EventTask:
        if self.task is None or not hasattr(self.model, "predict"):
            raise ValueError(
                f"{self.source or 'this export'} holds an encoder ({type(self.model).__name__}), which predicts no "
                "classes: fine-tune it first (python scripts/finetune.py), and predict with that run; or take its "
                "features(event)"
            )
        return task_named(self.task)

    def untrained(self, seed: int = 0) -> Pretrained:
        """The same architecture with fresh random weights; the global random state is left alone."""
        return dataclasses.replace(
            self, model=untrained_twin(self.model, seed), source=f"untrained, seed {seed}"
        )


def untrained_twin(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with fresh weights, in evaluation mode, on the same device.

    The weights are drawn on the CPU, so that a seed means the same everywhere; the global random states, of the
    GPUs too, are left alone.

    Raises:
        ValueError: the model, or one inside it, does not keep its constructor arguments.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPUs too, which fork_rng does not undo here (forking all of them
        # would start CUDA where it is not used); the weights need the CPU's generator only.
        torch.default_generator.manual_seed(seed)
        twin = rebuilt(model).eval()
    return twin.to(_device(model))


def _whole_groups(n: int, size: int, group: np.ndarray | None) -> list[list[int]]:
    """Batches of n events in order, as the sizes of the groups in them: as many events as ``size``, or the more that it
    takes to keep those together that have equal numbers in ``group`` (n,); None: each is a group of its own."""
    numbers = np.arange(n) if group is None else np.asarray(group)
    edges = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1, append=numbers[-1:] + 1))
    batches: list[list[int]] = []
    for many in np.diff(edges).tolist():
        if not batches or sum(batches[-1]) + many > size:
            batches.append([])
        batches[-1].append(many)
    return batches


def _transformed(event: Event, transforms: Sequence[Transform]) -> Event:
    return compose(transforms, event, np.random.default_rng(event.seed))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _array(values: torch.Tensor | None) -> np.ndarray | None:
    return None if values is None else values.cpu().numpy()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again (a frozen part of a model in training stays so)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _unknown(name: str, values: np.ndarray, n: int) -> np.ndarray:
    """What is said of ``n`` voxels of which nothing was kept: no class, no confidence, no instance, no momentum."""
    nothing = {"label": -1, "instance": -1, "momentum": np.nan}.get(name, 0)
    return np.full((n, *values.shape[1:]), nothing, dtype=values.dtype)


def _nearest_kept(event: Event, kept: np.ndarray) -> np.ndarray:
    """int64 (N,): for each voxel of ``event`` the place in ``kept`` of itself, else of the nearest voxel kept."""
    place = np.full(len(event), -1)
    place[kept] = np.arange(len(kept))
    dropped = np.flatnonzero(place < 0)
    if len(dropped):
        if len(kept) == 0:
            raise ValueError(f"{event.name}: the transforms drop all of its {len(event)} voxels")
        from sklearn.neighbors import KDTree  # imported here: slow to import, and seldom needed

        place[dropped] = KDTree(event.voxel[kept]).query(event.voxel[dropped], return_distance=False)[:, 0]
    return place


def _bar(shown: bool) -> Progress:
    """Progress on the terminal; nothing elsewhere."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
