"""The command line of ``scripts/study.py``: studies of a trained classifier of pixel maps, with tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markdown import Markdown

from nufm.checkpoint.maps import warn_of_other_maps
from nufm.commands.inputs import Opened, command_parser, data_module, default_folder, main, opened, provenance
from nufm.commands.lora_ranks import RANKS, run_settings
from nufm.commands.studies import ROBUST, study_of
from nufm.data.images import ImageEvent
from nufm.display.geometry import is_simulated
from nufm.evaluation import robustness

Study = Literal[
    "resolution", "noise", "dead_pixels", "missing_view", "gain",
    "calibration", "faithfulness", "few_shot", "prompt", "lora_rank",
]  # fmt: skip
STUDIES: tuple[Study, ...] = get_args(Study)

USAGE = "python scripts/study.py NAME --checkpoint RUN_OR_EXPORT [--split SPLIT | --events FILE] [--KEY VALUE ...]"

DESCRIPTION = """\
One study of a trained classifier of pixel maps. Names:

  resolution    pixels of 2, 4 and 8 times the edge
  noise         noise on every pixel, with zero suppression
  dead_pixels   pixels, or whole columns, that read nothing
  missing_view  one view, or both, not read out
  gain          all energies wrong by a factor, or every pixel by its own
  calibration   is it right as often as it is sure; with a temperature fitted on validation events
  faithfulness  the most charge, and, of an image-text model, what its explanation cites, is covered up; patches of
                equal charge for comparison

Of image-text models alone:

  few_shot      the base without adapters, with and without one labelled example of each class in the question
  prompt        the question in other words than in training
  lora_rank     the run again, with adapters of rank 4, 8 and 16

  python scripts/study.py noise --checkpoint RUN
      on the test events of a run of scripts/finetune.py
  python scripts/study.py noise --checkpoint RUN --levels "[0.1, 0.3, 1.0]" --max_events 500
      other strengths, the first 500 events
  python scripts/study.py resolution --checkpoint RUN --events maps.h5
      a file or folder of pixel maps with labels
  python scripts/study.py calibration --checkpoint RUN --keep true
      and from now on the probabilities that the model predicts are calibrated
  python scripts/study.py lora_rank --checkpoint RUN --ranks "[1, 8]" --seeds "[0, 1]"

Writes NAME.json, NAME.md and NAME.png into studies/ of the run folder, and prints the table."""


@dataclass
class StudyOptions:
    """What is studied.

    Attributes:
        study: name of the study, see above; may stand alone, as the first word.
        checkpoint: run folder of scripts/finetune.py, export folder, or hf://owner/name.
        split: which events of data.root are scored.
        events: file, folder or glob of pixel maps in place of a split.
        max_events: score the first ones only; null = all.
        levels: strengths to look at, of resolution, noise, dead_pixels, missing_view and gain; null = the usual ones.
        suppression: of noise: pixels with at most so many σ read nothing, one series for each.
        seed: fixes the noise, and what else is drawn.
        fit_split: of calibration: the events that the temperature is fitted on.
        keep: of calibration: write the temperature into the export; from then on its predictions are calibrated.
        ranks: of lora_rank: ranks of the adapters.
        seeds: of lora_rank: one training of every rank for each of them.
        draws: of few_shot: sets of examples, from the training events.
        prompts: of prompt: templates by name or path; null = all that nufm has.
        patches: of faithfulness: patches of equal charge for each event.
        device: auto, cpu, cuda, ...
        threads: CPU threads; null = OMP_NUM_THREADS, else all cores.
        out: folder of the results; null = studies/ in the run folder, else runs/studies/<checkpoint>/.
    """

    study: Study
    checkpoint: str
    split: Literal["train", "val", "test"] = "test"
    events: str | None = None
    max_events: int | None = None
    levels: list[float] | None = None
    suppression: list[float] = field(default_factory=lambda: list(robustness.SUPPRESSION))
    seed: int = 0
    fit_split: Literal["train", "val"] = "val"
    keep: bool = False
    ranks: list[int] = field(default_factory=lambda: list(RANKS))
    seeds: list[int] = field(default_factory=lambda: [0])
    draws: int = 3
    prompts: list[str] | None = None
    patches: int = 4
    device: str = "auto"
    threads: int | None = None
    out: str | None = None


def study(args: Sequence[str] | None = None) -> None:
    """Run ``scripts/study.py`` with these flags (None: those of the process)."""
    main(run, args)


def parser() -> ArgumentParser:
    return command_parser(USAGE, StudyOptions, data_module("images"))


def run(args: Sequence[str]) -> dict[str, Any]:
    """Parse, study, write; returns what NAME.json holds.

    Raises:
        ValueError, OSError: a setting, file or checkpoint that cannot be used.
    """
    began = opened(parser, named_first(args), DESCRIPTION, check)
    options, name = began.options, began.options.study
    events = open_events(began)
    out = Path(options.out) if options.out else default_folder(options.checkpoint, "studies")
    done = study_of(name, began, events, out)
    found = {"study": name, "seed": options.seed, "simulated": is_simulated(events[0]), **done.found}
    where = Path(options.events).stem if options.events else options.split
    found |= provenance(began.pretrained, began.data, {where: events})
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    text = f"# {done.title}\n\n{done.markdown(found)}"
    (out / f"{name}.md").write_text(f"{text}\n![{name}]({name}.png)\n")
    done.draw(found, out / f"{name}.png", done.title + ("   (simulated by nufm)" if found["simulated"] else ""))
    (out / f"{name}.yaml").write_text(began.config)
    Console().print(Markdown(text))
    print(f"\nTable, numbers and picture: {out / name}.md, .json and .png")
    return found


def named_first(args: Sequence[str]) -> list[str]:
    """The name of the study, where it stands alone as the first word, as a flag.

    Raises:
        ValueError: it is no study.
    """
    if not args or args[0].startswith("-"):
        return list(args)
    if args[0] not in STUDIES:
        raise ValueError(f"unknown study '{args[0]}', expected one of {', '.join(STUDIES)}")
    return ["--study", *args]


def check(options: StudyOptions) -> None:
    """Refuse settings before a checkpoint is opened."""
    if options.levels is not None and options.study not in ROBUST:
        raise ValueError(f"levels are of {', '.join(ROBUST)}, and not of {options.study}; leave them out")
    if not options.suppression or min(options.suppression) < 0:
        raise ValueError(f"suppression is {options.suppression}, expected numbers of σ of at least 0")
    if options.study == "lora_rank":
        run_settings(options.checkpoint)
    if options.study in ROBUST:
        robustness.levels_of(robustness.study_named(options.study, options.suppression), options.levels)


def open_events(began: Opened) -> Sequence[ImageEvent]:
    """The events to score.

    Raises:
        ValueError: a split without files, or no event at all.
        FileNotFoundError: ``events`` names nothing.
    """
    options = began.options
    robustness.classified_label(began.pretrained)
    if options.events is None:
        return began.data.open(options.split, options.max_events, None)
    reader = began.data.open_files(options.events, options.max_events)
    warn_of_other_maps(reader, began.pretrained.extra, began.pretrained.source)
    return reader
