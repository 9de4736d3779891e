"""The command line of ``scripts/probe.py``: what linear models can read off frozen features of points and tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from nufm.checkpoint import Pretrained
from nufm.commands.inputs import check_labels, command_parser, default_folder, main, opened, provenance
from nufm.data.datamodule import PointDataModule
from nufm.methods.linear_probe import EventChoice, ProbeSettings
from nufm.methods.token_probe import COMPONENTS, MAX_TOKENS, SVM_C
from nufm.models.tokens import Tokenizer
from nufm.report import class_table, markdown, print_table, probe_tables
from nufm.token_report import print_token_table, token_markdown, token_probe_tables

USAGE = "python scripts/probe.py --checkpoint RUN_OR_EXPORT [--config FILE] [--KEY VALUE ...]"

DESCRIPTION = """\
Linear probe: freeze an encoder, fit a linear model to its features, and score it on other events.

  python scripts/probe.py --checkpoint runs/tiny-panda/20260101-120000
      motif and PID on the run's own events, beside the untrained encoder and the raw inputs
  python scripts/probe.py --checkpoint panda_base.pth --config configs/probe/panda.yaml --data.root /data/pilarnet_m
      the published protocol
  python scripts/probe.py --checkpoint RUN --tasks '[motif]' --compare '[]' --probe.epochs 10
      one task, this encoder alone, longer
  python scripts/probe.py --checkpoint RUN --tasks '[token_svm,token_classes,token_pairs,token_vertex]'
      the four token probes: what is known of whole balls of points, for any encoder
  python scripts/probe.py --checkpoint RUN --config configs/probe/polarmae.yaml --data.root /data/pilarnet_m
      PoLAr-MAE's published protocol

Writes report.md, report.json and pictures into --out. No event is both fitted on and scored."""


TOKEN = "token_"
Task = Literal["motif", "pid", "token_svm", "token_classes", "token_pairs", "token_vertex"]


@dataclass
class TokenOptions:
    """Which tokens the token probes are of.

    Attributes:
        balls: "own": those of the encoder, of 5 voxels if it has none; "2.5", "5", "25": of so many voxels. An encoder
            of other tokens is asked for its features of points, averaged over each ball.
        max_tokens: of the events to fit on and of those to score, the first so many tokens (published: 15,000).
    """

    balls: Literal["own", "2.5", "5", "25"] = "own"
    max_tokens: int = MAX_TOKENS


@dataclass
class ProbeOptions:
    """What is probed.

    Attributes:
        checkpoint: run folder, export folder, hf://owner/name, or released weights (Panda .pth, PoLAr-MAE or Point-MAE
            .ckpt).
        tasks: of points: motif (5 kinds of energy deposit), pid (6 particle types; files of PILArNet-M v1 have none).
            Of tokens: token_svm (which classes are in it: shower, track, Michel, delta; PoLAr-MAE's protocol),
            token_classes (share of each class), token_pairs (are two tokens of one particle), token_vertex (was a
            particle created in it).
        tokens: which tokens the token probes are of.
        fit: events that the probe is fitted on.
        score: events that it is scored on; of the same split, those that come next.
        shuffle: seed of the order in which events are taken from a split; null = file order.
        probe: how the probes of points are fitted; those of tokens have nothing to choose.
        seeds: of the probes of points (start and order), and of the untrained encoders.
        compare: rows beside this encoder: "raw" (inputs without a network), "untrained" (the same encoder with fresh
            weights); [] for neither.
        storage: where the features wait: "disk" in float16 in the temporary folder (TMPDIR; 2.5 kB a point at paper
            size, 8 GB for 1000 events), "memory" in float32.
        device: auto, cpu, cuda, ...
        threads: CPU threads; null = OMP_NUM_THREADS, else all cores.
        out: folder of the results; null = probe/ in the run folder, else runs/probe/<checkpoint>/.
    """

    checkpoint: str
    tasks: list[Task] = field(default_factory=lambda: ["motif", "pid"])
    tokens: TokenOptions = field(default_factory=TokenOptions)
    fit: EventChoice = field(default_factory=lambda: EventChoice("train"))
    score: EventChoice = field(default_factory=lambda: EventChoice("test"))
    shuffle: int | None = None
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    compare: list[Literal["raw", "untrained"]] = field(default_factory=lambda: ["raw", "untrained"])
    storage: Literal["disk", "memory"] = "disk"
    device: str = "auto"
    threads: int | None = None
    out: str | None = None


def probe(args: Sequence[str] | None = None) -> None:
    """Run ``scripts/probe.py`` with these flags (None: those of the process)."""
    main(run, args)


def parser() -> ArgumentParser:
    return command_parser(USAGE, ProbeOptions)


def run(args: Sequence[str]) -> dict:
    """Parse, probe, write; returns what report.json holds.

    Raises:
        ValueError, OSError: a setting, file or checkpoint that cannot be used.
    """
    began = opened(parser, args, DESCRIPTION, check)
    options = began.options
    found = probe_checkpoint(began.pretrained, began.data, options)
    out = Path(options.out) if options.out else default_folder(options.checkpoint, "probe")
    write(found, out, began.config)
    for table in found["tasks"].values():
        print_table(table, Console())
    for table in found["tokens"].values():
        print_token_table(table, Console())
    pictures = ", ".join(sorted(path.name for path in out.glob("*.png")))
    print(f"\nTables: {out / 'report.md'}." + (f" Pictures beside it: {pictures}." if pictures else ""))
    return found


def check(options: ProbeOptions) -> None:
    for name in ("tasks", "seeds"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name} is {values}, expected at least one, and none twice")
    if options.tokens.max_tokens < 2:
        raise ValueError(f"tokens.max_tokens is {options.tokens.max_tokens}, expected at least 2")


def probe_checkpoint(pretrained: Pretrained, data: PointDataModule, options: ProbeOptions | Namespace) -> dict:
    """Tables of all tasks, and where they come from.

    Raises:
        ValueError: the model has no encoder, a file lacks the labels, there are no events left, or an
            event would be both fitted on and scored.
    """
    from nufm.display.geometry import is_simulated  # brings the detector files, not needed before

    encoder = pretrained.encoder
    if not hasattr(encoder, "point_features"):
        raise ValueError(
            f"{pretrained.source}: a {type(encoder).__name__} has no encoder whose features could be probed, expected "
            "one of a pretraining, alone or in a segmenter or detector; score it with scripts/evaluate.py"
        )
    of_points = [task for task in options.tasks if not task.startswith(TOKEN)]
    of_tokens = [task.removeprefix(TOKEN) for task in options.tasks if task.startswith(TOKEN)]
    for split in (options.fit.split, options.score.split):
        remedy = "use files that have it, or leave the task out: --tasks '[motif]'"
        check_labels(data.reader(split), [*of_points, *(["particle"] if of_tokens else [])], remedy)
    start = time.perf_counter()
    chosen = {"shuffle": options.shuffle, "compare": options.compare}
    choices = encoder, data, options.fit, options.score
    tables: dict[str, dict] = {}
    token: dict[str, dict] = {}
    if of_points:
        tables = probe_tables(
            *choices, of_points, options.probe, options.seeds, storage=options.storage, **chosen
        )
    if of_tokens:
        balls, max_tokens = options.tokens.balls, options.tokens.max_tokens
        tokenizer = None if balls == "own" else Tokenizer.preset(balls)
        token = token_probe_tables(
            *choices, of_tokens, options.seeds, tokenizer=tokenizer, max_tokens=max_tokens, **chosen
        )
    splits = sorted({options.fit.split, options.score.split})
    simulated = any(is_simulated(data.reader(split)[0]) for split in splits)
    for table in (*tables.values(), *token.values()):
        table["simulated"] = simulated
    return {"tasks": tables, "tokens": token, "seconds": round(time.perf_counter() - start, 1)} | provenance(
        pretrained, data, {split: data.reader(split) for split in splits}
    )


def write(found: dict, folder: Path, config: str) -> None:
    """config.yaml, report.json, report.md and the pictures."""
    from nufm.display.plots import score_bars
    from nufm.display.scores import confusion_matrix

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    (folder / "report.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    parts = [f"# Linear probe of {found['checkpoint']}\n"]
    for task, table in found["tasks"].items():
        classes = "\n".join(class_table(table, row) for row in table["scores"])
        parts.append(f"## {task}\n\n{markdown(table)}\n{classes}\n![confusion](confusion_{task}.png)\n")
        score_bars(table, folder / f"scores_{task}.png")
        title = f"linear probe, {task}" + (", simulated by nufm" if table["simulated"] else "")
        confusion_matrix(mean_confusion(table), table["classes"], folder / f"confusion_{task}.png", title)
    for table in found["tokens"].values():
        parts.append(f"## Tokens: {table['task']}\n\n{token_markdown(table)}\n")
    if "svm" in found["tokens"]:
        score_bars(bars(found["tokens"]["svm"]), folder / "scores_token_svm.png")
    parts.append(settings(found))
    (folder / "report.md").write_text("\n".join(parts))


def settings(found: dict) -> str:
    """Where the events are from, and how the probes were fitted."""
    points, tokens = (next(iter(found[kind].values()), None) for kind in ("tasks", "tokens"))
    splits = (points or tokens)["splits"]
    root = found["data"]["root"]
    said = [f"Fitted on events of '{splits['train']}', scored on events of '{splits['test']}' of {root}."]
    if points:
        probe = points["probe"]
        said.append(
            f"Probes of points: {probe['epochs']} epochs of AdamW {probe['learning_rate']}, {probe['batch_size']:,} "
            "points a batch."
        )
    if tokens:
        made = tokens["tokenizer"]
        said.append(
            f"Tokens: balls of radius {made['radius']:.4g}, at most {made['max_points']} points in each; {COMPONENTS} "
            f"principal components; SVM with C = {SVM_C}; logistic regressions on whitened components."
        )
    return " ".join([*said, "All settings: config.yaml; all numbers: report.json.\n"])


def bars(table: dict) -> dict:
    """The table of the SVMs as the bars of probes take it."""
    names = [name for name in table["metrics"] if not name.startswith("macro_f1")]
    scores = {
        row: {
            "label": found["label"],
            "per_seed": [{"macro_f1": s["macro_f1"], "f1": [s[name] for name in names]} for s in found["per_seed"]],
        }
        for row, found in table["scores"].items()
    }
    return {"task": table["task"], "classes": names, "simulated": table["simulated"], "scores": scores}


def mean_confusion(table: dict) -> np.ndarray:
    """Confusion matrix (C, C) of the encoder's probes, mean over the seeds, rounded; rows are the truth."""
    return np.mean([seed["confusion"] for seed in table["scores"]["pretrained"]["per_seed"]], axis=0).round()
