"""What a pretraining run ends with: does the encoder know more than it did, in numbers and pictures.

Macro-F1 of a linear probe for the 5 motif classes on held-out events, for (a) raw inputs, (b) the same encoder
untrained, (c) pretrained, over several probe seeds; an event display; the same event coloured by the first three
principal components of its features, untrained beside pretrained; and what else the method has to show of it.
``scripts/probe.py`` makes the same tables of any encoder, for more tasks.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nufm.checkpoint import untrained_twin
from nufm.data.event import MOTIF_NAMES, PID_NAMES
from nufm.data.tokens import EventReconstruction, EventTokens
from nufm.methods.linear_probe import (
    EventChoice,
    Features,
    ProbeSettings,
    choose_events,
    chosen_batches,
    collect,
    encoder_features,
    fit_probe,
    raw_features,
    score_probe,
)

if TYPE_CHECKING:
    from lightning import LightningModule
    from torch import nn

    from nufm.data.datamodule import PointDataModule

ROWS = {
    "raw": "raw inputs (energy, neighbour counts)",
    "untrained": "same encoder, untrained",
    "pretrained": "same encoder, pretrained",
}
CLASSES = {"motif": MOTIF_NAMES, "pid": PID_NAMES}  # labels that a probe can be fitted to


def probe_tables(
    encoder: nn.Module,
    data: PointDataModule,
    fit: EventChoice,
    score: EventChoice,
    labels: Sequence[str],
    settings: ProbeSettings,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    shuffle: int | None = None,
    compare: Sequence[str] = ("raw", "untrained"),
    storage: Literal["memory", "disk"] = "memory",
    batch_size: int | None = None,
) -> dict[str, dict]:
    """Scores of the encoder's features, and of those it is compared with, for every label and seed.

    A seed fixes the probe's start and order, and the weights of the untrained encoder.

    Args:
        encoder: frozen; computes where its weights are.
        data: the events; their transforms must be the encoder's.
        fit, score, shuffle: which events, see :func:`nufm.methods.linear_probe.choose_events`.
        labels: some of ``CLASSES``.
        settings: how a probe is fitted.
        seeds: of the probes.
        compare: rows beside the encoder's: ``raw`` inputs, the same encoder ``untrained``.
        storage: where the features wait for the probes, see :func:`nufm.methods.linear_probe.collect`.
        batch_size: events in a batch; None = that of ``data``. No score depends on it, but for weights with a norm over
            the batch (released PoLAr-MAE).

    Returns:
        label -> table, as ``markdown`` and ``print_table`` take it; a score is None (NaN) for a class that neither
        truth nor prediction has.

    Raises:
        ValueError: no such label in the files, no events, or an event in both sets.
    """
    device = next(encoder.parameters()).device
    events = dict(zip(("fit", "score"), choose_events(data, fit, score, shuffle), strict=True))
    splits = {"fit": fit.split, "score": score.split}
    scores: dict[str, dict[str, list[dict]]] = {
        label: {row: [] for row in ROWS if row in (*compare, "pretrained")} for label in labels
    }
    support = {}
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"linear probe: {len(events['fit'])} + {len(events['score'])} events, {len(seeds)} seeds")
    columns = (TextColumn("linear probe: {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for row, features, of_row in _rows(encoder, seeds, compare):
            start = time.perf_counter()
            sets = {}
            for use, chosen in events.items():
                batches = chosen_batches(data, splits[use], chosen, batch_size or data.batch_size)
                shown = _shown(batches, progress, f"features, {row}", len(chosen))
                sets[use] = collect(features, shown, labels, device, storage)
            support = {label: {use: _count(sets[use][1][label], label) for use in sets} for label in labels}
            for label in labels:
                if not sum(support[label]["score"]):
                    raise ValueError(f"no point of the {len(events['score'])} events to score has a '{label}' label")
            fits = [(label, seed) for label in labels for seed in of_row]
            for label, seed in _shown(fits, progress, f"probes, {row}", len(fits)):
                scores[label][row].append(_fit_and_score(sets, label, settings, seed, device))
            if not console.is_terminal:
                console.print(f"  {row}: {time.perf_counter() - start:.0f} s")
    used = {"train": len(events["fit"]), "test": len(events["score"])}
    return {
        label: {
            "task": f"{len(CLASSES[label])}-class {label}, linear probe, macro-F1 on held-out events",
            "classes": list(CLASSES[label]),
            "events": used,
            "splits": {"train": fit.split, "test": score.split, "shuffle": shuffle},
            "points": {"train": support[label]["fit"], "test": support[label]["score"]},
            "probe": dataclasses.asdict(settings) | {"seeds": list(seeds)},
            "scores": {
                row: {"label": ROWS[row], "per_seed": found} | _summary(found) for row, found in scores[label].items()
            },
        }
        for label in labels
    }


def _rows(
    encoder: nn.Module, seeds: Sequence[int], compare: Sequence[str]
) -> Iterator[tuple[str, Features, Sequence[int]]]:
    """Row, features, and the seeds to fit to them; an untrained encoder is made when its turn comes."""
    if "raw" in compare:
        yield "raw", raw_features, seeds
    yield "pretrained", encoder_features(encoder), seeds
    if "untrained" in compare:
        for seed in seeds:
            yield "untrained", encoder_features(untrained_twin(encoder, seed)), (seed,)


def _fit_and_score(sets: Mapping[str, tuple], label: str, settings: ProbeSettings, seed: int, device: object) -> dict:
    """Scores of one probe, as JSON holds them."""
    (feat, truth), (held_out, expected) = ((sets[use][0], sets[use][1][label]) for use in ("fit", "score"))
    by_epoch: list[float | None] = []

    def after_epoch(probe: torch.nn.Module) -> None:
        found.update(score_probe(probe, held_out, expected))
        by_epoch.append(_number(found["macro_f1"]))

    found: dict[str, torch.Tensor] = {}
    fit_probe(feat, truth, len(CLASSES[label]), settings, seed, device, after_epoch)
    names = ("macro_f1", "f1", "macro_precision", "precision", "macro_recall", "recall", "accuracy")
    return {
        "seed": seed,
        **{name: _number(found[name]) for name in names},
        "macro_f1_by_epoch": by_epoch,
        "confusion": found["confusion"].tolist(),
    }


def _number(value: torch.Tensor) -> float | list | None:
    """JSON has no NaN."""
    if value.dim():
        return [_number(v) for v in value]
    return None if value.isnan() else float(value)


def _count(label: torch.Tensor, name: str) -> list[int]:
    return torch.bincount(label[label >= 0], minlength=len(CLASSES[name])).tolist()


def _shown(items: Iterable, progress: Progress, what: str, total: int) -> Iterator:
    """``items``, with a bar that counts events (or items, where these are no batches)."""
    task = progress.add_task(what, total=total)
    for item in items:
        yield item
        progress.advance(task, getattr(item, "n_events", 1))
    progress.remove_task(task)


def _summary(per_seed: list[dict]) -> dict:
    """Mean over the seeds, and for the macro-F1 the sample deviation."""
    macro = np.array([s["macro_f1"] for s in per_seed], dtype=np.float64)
    summary = {
        "macro_f1_mean": float(macro.mean()),
        "macro_f1_std": float(macro.std(ddof=1)) if len(macro) > 1 else 0.0,
    }
    for name in ("f1", "precision", "recall"):
        if name in per_seed[0]:
            by_class = zip(*(s[name] for s in per_seed), strict=True)
            # None: a class that neither truth nor prediction has
            summary[f"{name}_mean"] = [None if None in seeds else float(np.mean(seeds)) for seeds in by_class]
    return summary


def _percent(f1: float | None) -> str:
    return "–" if f1 is None else f"{100 * f1:.1f}"


def markdown(report: dict) -> str:
    """The table as README and report.md show it, and below it what the numbers are and where they come from.

    F1 is in per cent. ``report`` is as in report.json; without ``events`` and ``probe`` there is the table only.
    """
    head = ["features", "macro-F1", *report["classes"]]
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    for row in report["scores"].values():
        macro = f"**{100 * row['macro_f1_mean']:.1f} ± {100 * row['macro_f1_std']:.1f}**"
        lines.append(" | ".join([row["label"], macro, *map(_percent, row["f1_mean"])]))
    table = "\n".join(f"| {line} |" for line in lines) + "\n"
    if "events" not in report or "probe" not in report:
        return table
    events, seeds = report["events"], report["probe"]["seeds"]
    origin = ", simulated by nufm" if report.get("simulated") else ""
    return (
        f"{table}\nF1 × 100 per point, mean ± standard deviation over {len(seeds)} probe seeds "
        f"({', '.join(map(str, seeds))}); fitted on {events['train']} and scored on {events['test']} other "
        f"events{origin}.\n"
    )


def class_table(report: dict, row: str = "pretrained") -> str:
    """Precision, recall and F1 (per cent, means over the seeds) of every class, for one row of the table."""
    found, points = report["scores"][row], report["points"]["test"]
    lines = [f"| {found['label']} | precision | recall | F1 | points |", "|---|---:|---:|---:|---:|"]
    for c, name in enumerate(report["classes"]):
        ratios = " | ".join(_percent(found[f"{score}_mean"][c]) for score in ("precision", "recall", "f1"))
        lines.append(f"| {name} | {ratios} | {points[c]:,} |")
    macro = []
    for score in ("precision", "recall", "f1"):
        seeds = [s[f"macro_{score}"] for s in found["per_seed"]]
        macro.append(_percent(None if None in seeds else float(np.mean(seeds))))
    lines.append(f"| **macro** | {' | '.join(f'**{m}**' for m in macro)} | {sum(points):,} |")
    return "\n".join(lines) + "\n"


def print_table(report: dict, console: Console) -> None:
    table = Table(title=report["task"] + (" (simulated by nufm)" if report.get("simulated") else ""))
    table.add_column("features")
    for name in ("macro-F1", *report["classes"]):
        table.add_column(name, justify="right")
    for row in report["scores"].values():
        macro = f"{100 * row['macro_f1_mean']:.1f} ± {100 * row['macro_f1_std']:.1f}"
        table.add_row(row["label"], macro, *map(_percent, row["f1_mean"]))
    console.print(table)


def write_report(
    module: LightningModule,
    datamodule: PointDataModule,
    run_dir: Path,
    n_events: int = 100,
    settings: ProbeSettings | None = None,
) -> dict:
    """Probe, pictures, ``report.json`` and ``report.md`` in the run folder; returns what report.json holds."""
    # Drawing needs matplotlib and plotly, which take a second to import: only when there is something to draw.
    from nufm.display.event import compare_panels, draw_event, pca_colours
    from nufm.display.geometry import is_simulated
    from nufm.display.plots import score_bars, training_curves
    from nufm.display.reconstruction import draw_reconstruction
    from nufm.display.tokens import draw_tokens

    draw = {EventTokens: draw_tokens, EventReconstruction: draw_reconstruction}
    run_dir = Path(run_dir)
    encoder, (fit, score) = module.encoder, (EventChoice(split, n_events) for split in ("train", "test"))
    report = probe_tables(encoder, datamodule, fit, score, ("motif",), settings or ProbeSettings())["motif"]
    # The files say so themselves: a data set that was simulated beforehand keeps the label.
    simulated = {split: is_simulated(datamodule.reader(split)[0]) for split in ("train", "test")}
    report["simulated"] = any(simulated.values())
    pictures = run_dir / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)

    event = datamodule.eval_dataset("test")[0]
    draw_event(event, pictures / "event.png")
    batch = next(iter(datamodule.probe_dataloader("test", 1))).select([0]).to(module.device)
    encoders = {"untrained": untrained_twin(module.encoder, 0), "pretrained": module.encoder}
    with torch.no_grad():
        colours = {name: pca_colours(encoder_features(e)(batch).cpu().numpy()) for name, e in encoders.items()}
    compare_panels(event, colours, pictures / "features.png")
    if hasattr(module, "examples"):  # what a method has to show of an event, besides the features of its encoder
        try:
            examples = module.examples(event, datamodule.transforms, datamodule.grid_size)
        except ValueError as error:  # transforms that cannot be undone, say: no reason to lose the report
            examples = {}
            Console(stderr=True).print(f"pictures of what the method says are left out: {error}", markup=False)
        for name, found in examples.items():
            draw[type(found)](found, pictures / f"{name}.png")
    score_bars(report, pictures / "probe.png")
    if (run_dir / "metrics.csv").exists():
        title = "/".join(run_dir.resolve().parts[-2:]) + ("   ·   simulated by nufm" if simulated["train"] else "")
        training_curves(run_dir / "metrics.csv", pictures / "training.png", title)
    (run_dir / "report.json").write_text(json.dumps(report, indent=1))
    (run_dir / "report.md").write_text(markdown(report))
    return report
