"""What can be learnt from labels: of points (which label, which classes, what counts as an instance), and of whole
events (which classes, which quantities).

Shape legend: N points, B events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nufm.data.event import MOTIF_NAMES, PID_NAMES, POINT_LABELS
from nufm.data.images import INTERACTION_NAMES
from nufm.data.particles import PARTICLE_NAMES
from nufm.data.streams import CHARM_NAMES, FLAVOUR_NAMES, TRUTH


@dataclass(frozen=True)
class Task:
    """A supervised task on points.

    Attributes:
        name: as configurations name it.
        kind: ``semantic``: a class for every point; ``panoptic``: instances with a class each, and stuff, points that
            belong to none.
        label: label of ``PointBatch.labels`` that the classes are made from.
        classes: their names.
        instance: label that holds the instance ids; None for a semantic task.
        stuff: class of the points that belong to no instance; None for a semantic task.
        ignored: values of the label that are no class of the task: neither learnt nor scored.
    """

    name: str
    kind: Literal["semantic", "panoptic"]
    label: str
    classes: tuple[str, ...]
    instance: str | None = None
    stuff: int | None = None
    ignored: tuple[int, ...] = ()

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Label -> names of its classes."""
        return {self.label: self.classes}

    def fits(self, n_classes: object) -> bool:
        """Whether a network that says this of its classes can learn the task."""
        return n_classes == self.n_classes

    def described(self) -> str:
        """The classes, for messages."""
        return ", ".join(self.classes)

    def targets(self, labels: Mapping[str, Tensor], names: tuple[str, ...] = ()) -> tuple[Tensor, Tensor | None]:
        """Class and instance of every point.

        Args:
            labels: of a batch, int64 (N,) each.
            names: of the events, for the message.

        Returns:
            int64 (N,) classes, -1 where the truth does not say or the task ignores it; int64 (N,) instance ids, -1
            none, or None.

        Raises:
            ValueError: the events carry no such label, or hold a class that is not on the list.
        """
        for needed in (self.label, self.instance):
            if needed is not None and needed not in labels:
                where = f"{names[0]}: " if names else ""
                if not set(POINT_LABELS) & set(labels):
                    why = "these events are unlabelled, as those of files with 'point' alone: use files with 'cluster'"
                elif needed == "pid":
                    why = "files of PILArNet-M v1 have no PID: use v2 or v3, or another task"
                else:
                    why = "give the events that label, or use another task"
                raise ValueError(
                    f"{where}the task '{self.name}' needs the label '{needed}', found {sorted(labels)}; {why}"
                )
        truth = labels[self.label]
        for value in self.ignored:
            truth = torch.where(truth == value, -1, truth)
        if self.label == self.instance:  # interactions: a point belongs to one or does not
            truth = (truth >= 0).to(torch.int64)
        if len(truth) and truth.device.type == "cpu" and int(truth.max()) >= len(self.classes):
            where = f"{names[0]}{' …' if len(names) > 1 else ''}: " if names else ""
            raise ValueError(
                f"{where}label '{self.label}' holds class {int(truth.max())}, the task '{self.name}' has "
                f"{len(self.classes)}: {', '.join(self.classes)}"
            )
        return truth, None if self.instance is None else labels[self.instance]


# Panda (arXiv 2512.01324; configurations of DeepLearnPhysics/pimm): the stuff of the particle detector are points of no
# known particle (LED, and kaons, which share their class), that of the interaction detector points of no interaction.
# PoLAr-MAE (arXiv 2502.02558) has the first four motifs; the transform WithoutLED keeps the others out of its events.
TASKS = {
    task.name: task
    for task in (
        Task("motif", "semantic", "motif", MOTIF_NAMES),
        Task("pid", "semantic", "pid", PID_NAMES),
        Task("particle", "panoptic", "pid", PID_NAMES, "particle", PID_NAMES.index("none")),
        Task("interaction", "panoptic", "interaction", ("background", "interaction"), "interaction", 0),
        Task("motif4", "semantic", "motif", MOTIF_NAMES[:4], ignored=(MOTIF_NAMES.index("LED"),)),
    )
}


@dataclass(frozen=True)
class EventTask:
    """A supervised task on whole events of a detector with several streams.

    Attributes:
        name: as configurations name it.
        labels: truth that is a class -> names of the classes.
        quantities: truth that is a number or a vector, see ``nufm.data.streams.TRUTH`` for their units.
    """

    name: str
    labels: Mapping[str, tuple[str, ...]]
    quantities: tuple[str, ...] = ()

    kind = "event"
    stuff = None

    @property
    def n_classes(self) -> dict[str, int]:
        return {label: len(names) for label, names in self.labels.items()}

    def fits(self, n_classes: object) -> bool:
        """Whether a network that says this of its classes can learn the task, or a part of it."""
        return isinstance(n_classes, Mapping) and n_classes.items() <= self.n_classes.items()

    def described(self) -> str:
        """The classes, for messages."""
        return "; ".join(f"{label}: {', '.join(names)}" for label, names in self.labels.items())

    def targets(
        self, truth: Mapping[str, Tensor], names: tuple[str, ...] = (), wanted: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """The truth that the task learns, checked.

        Args:
            truth: of a batch, (B, ...) each.
            names: of the events, for the message.
            wanted: some of ``labels`` and ``quantities``; None = all.

        Returns:
            name -> int64 (B,) classes, -1 unknown, or float (B, ...) quantities, NaN unknown.

        Raises:
            ValueError: the events carry no such truth, or hold a class that is not on the list.
        """
        where = f"{names[0]}{' …' if len(names) > 1 else ''}: " if names else ""
        found = {}
        for name in (*self.labels, *self.quantities) if wanted is None else wanted:
            if name not in truth:
                unit = f" ({TRUTH[name][2]})" if name in TRUTH and TRUTH[name][2] else ""
                other = ", or leave it out of network.tasks" if len(self.labels) + len(self.quantities) > 1 else ""
                raise ValueError(
                    f"{where}the task '{self.name}' needs the truth '{name}'{unit}, found {sorted(truth)}; use events "
                    f"with truth, such as simulated ones{other}"
                )
            found[name] = truth[name]
            known = len(self.labels.get(name, ()))
            if known and len(truth[name]) and truth[name].device.type == "cpu" and int(truth[name].max()) >= known:
                row = int(truth[name].argmax())
                raise ValueError(
                    f"{names[row] if names else 'event'}: truth '{name}' holds class {int(truth[name].max())}, the "
                    f"task '{self.name}' has {known}: {', '.join(self.labels[name])}"
                )
        return found


# FASERCal (talk of F. Cufino, NPML 2026): the lepton is learnt through what is visible and the jet, see
# ``nufm.methods.multitask``. Single particles of other detectors: ``nufm.data.particles``.
EVENT_TASKS = {
    task.name: task
    for task in (
        EventTask("fasercal", {"flavour": FLAVOUR_NAMES, "charm": CHARM_NAMES}, ("visible", "jet", "lepton", "vertex")),
        EventTask("superfgd", {"particle": PARTICLE_NAMES["superfgd"]}),
        EventTask("pilarnet_particles", {"particle": PARTICLE_NAMES["pilarnet_crop"]}),
        # Pixel maps (arXiv 2509.08461)
        EventTask("pixelmaps", {"interaction": INTERACTION_NAMES}),
    )
}
KNOWN_TASKS: dict[str, Task | EventTask] = {**TASKS, **EVENT_TASKS}


def task_named(name: str) -> Task | EventTask:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in KNOWN_TASKS:
        raise ValueError(f"unknown task '{name}', expected one of {', '.join(KNOWN_TASKS)}")
    return KNOWN_TASKS[name]
