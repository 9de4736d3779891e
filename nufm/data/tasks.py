"""What can be learnt from labels: which label, which classes, and what counts as an instance.

Shape legend: N points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nufm.data.event import MOTIF_NAMES, PID_NAMES, POINT_LABELS


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


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task '{name}', expected one of {', '.join(TASKS)}")
    return TASKS[name]
