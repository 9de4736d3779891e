"""The command line of ``scripts/evaluate.py``: any trained model on any labelled events."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markdown import Markdown

from nufm.checkpoint import Pretrained
from nufm.commands.inputs import (
    check_labels,
    command_parser,
    data_module_of,
    default_folder,
    main,
    opened,
    provenance,
)
from nufm.data.datamodule import EventDataModule, PointDataModule
from nufm.data.image_files import ImageReader
from nufm.data.pilarnet import PILArNetReader
from nufm.data.stream_files import StreamReader
from nufm.evaluation.event_scores import check_model
from nufm.evaluation.report import write_evaluation
from nufm.evaluation.scores import task_of
from nufm.evaluation.tables import summary

USAGE = "python scripts/evaluate.py --checkpoint RUN_OR_EXPORT [--split SPLIT | --events FILE] [--KEY VALUE ...]"

DESCRIPTION = """\
Score a trained model on labelled events: tables, confusion matrices, calibration, and a page of event displays, truth
beside prediction, of the best and the worst events. A model of whole events of several sub-detectors is also asked what
it looks at: scores without each sub-detector, hits that move its answer, a map of its latent space. A classifier of
pixel maps is timed: milliseconds and memory of one event.

  python scripts/evaluate.py --checkpoint RUN
      the test events of a run of scripts/finetune.py
  python scripts/evaluate.py --checkpoint RUN --split val --max_events 100
      the first 100 validation events
  python scripts/evaluate.py --checkpoint RUN --events tests/data/pilarnet_m_event.h5 --data.min_points 0
      a file, a folder of files, or a glob
  python scripts/evaluate.py --checkpoint panda_semantic.pth --data.root /data/pilarnet_m
      other weights, other data

Writes scores.json, events.csv, report.md, events.html and pictures into --out."""


@dataclass
class EvaluateOptions:
    """What is scored.

    Attributes:
        checkpoint: run folder of scripts/finetune.py, export folder, hf://owner/name, or released weights (Panda .pth,
            PoLAr-MAE or Point-MAE .ckpt).
        base: of an image-text model, whose checkpoint holds adapters alone: folder of the base they were trained on, if
            it is no longer where it was.
        split: which events of data.root.
        events: HDF5 file, folder or glob in place of a split.
        max_events: score the first ones only; null = all.
        examples: how many of the best and of the worst events to draw; of events of several sub-detectors, of how many
            to draw the hits that move the answer; of pixel maps, how many of those that are wrong.
        interpret: of models of events of several sub-detectors: also write what they look at (scores without each
            sub-detector and the like), which takes several times as long as the scores.
        cost: of models of pixel maps: also measure time and memory of one event.
        device: auto, cpu, cuda, ...
        threads: CPU threads; null = OMP_NUM_THREADS, else all cores.
        out: folder of the results; null = evaluation/<split or file>/ in the run folder, else in
            runs/evaluation/<checkpoint>/.
    """

    checkpoint: str
    base: str | None = None
    split: Literal["train", "val", "test"] = "test"
    events: str | None = None
    max_events: int | None = None
    examples: int = 3
    interpret: bool = True
    cost: bool = True
    device: str = "auto"
    threads: int | None = None
    out: str | None = None


def evaluate(args: Sequence[str] | None = None) -> None:
    """Run ``scripts/evaluate.py`` with these flags (None: those of the process)."""
    main(run, args)


def parser(data: type[EventDataModule] = PointDataModule) -> ArgumentParser:
    return command_parser(USAGE, EvaluateOptions, data)


def run(args: Sequence[str]) -> dict:
    """Parse, score, write; returns what scores.json holds.

    Raises:
        ValueError, OSError: a setting, file or checkpoint that cannot be used.
    """
    began = opened(functools.partial(parser, data_module_of(args)), args, DESCRIPTION, check)
    options, pretrained, data = began.options, began.pretrained, began.data
    events = open_events(pretrained, data, options)
    where = Path(options.events).stem.replace("*", "_") if options.events else options.split
    out = Path(options.out) if options.out else default_folder(options.checkpoint, "evaluation") / where
    origin = provenance(pretrained, data, {where: events})
    found = write_evaluation(
        pretrained,
        events,
        out,
        batch_size=data.batch_size,
        examples=options.examples,
        provenance=origin,
        interpret=options.interpret,
        cost=options.cost,
    )
    (out / "config.yaml").write_text(began.config)
    Console().print(Markdown(summary(found)))
    pictures = ", ".join(sorted(path.name for path in out.glob("*.png")))
    page = out / "events.html"
    drawn = f"Event displays: {page}." if page.is_file() else f"Pictures beside them: {pictures}."
    print(f"\nTables: {out / 'report.md'}. {drawn}")
    return found


def check(options: EvaluateOptions) -> None:
    if options.examples < 0:
        raise ValueError(f"examples is {options.examples}, expected at least 0")


def open_events(
    pretrained: Pretrained, data: EventDataModule, options: EvaluateOptions
) -> PILArNetReader | StreamReader | ImageReader:
    """The events to score.

    Raises:
        ValueError: an export without a task or with other classes, a split without files, files without the labels,
            or no event at all.
        FileNotFoundError: ``events`` names nothing.
    """
    if pretrained.inputs != "points":
        check_model(pretrained)  # refuses an encoder without a task, before any file is looked for
        if options.events is None:
            return data.open(options.split, options.max_events, None)
        if pretrained.inputs == "images":
            return data.open_files(options.events, options.max_events)
        return StreamReader(options.events, data.min_voxels, options.max_events, origin_mm=data.origin_mm)
    task = task_of(pretrained)
    reader = PILArNetReader(
        options.events or data.split_path(options.split),
        energy_threshold=data.energy_threshold,
        min_points=data.min_points,
        max_events=options.max_events,
    )
    if len(reader) == 0:
        raise ValueError(
            f"{reader.files[0]}: none of its {reader.n_total} events has {data.min_points} points before the energy "
            "cut; lower --data.min_points"
        )
    check_labels(reader, [task.label], "use files that have it; a model of another task can be scored on these")
    return reader
