"""What a pretraining run ends with: does the encoder know more than it did, in numbers and pictures.

Macro-F1 of a linear probe for the 5 motif classes on held-out events, for (a) raw inputs, (b) the same encoder
untrained, (c) pretrained, over several probe seeds; an event display; the same event coloured by the first three
principal components of its features, untrained beside pretrained.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nufm.checkpoint import untrained_twin
from nufm.data.event import MOTIF_NAMES
from nufm.methods.linear_probe import (
    Features,
    ProbeSettings,
    collect,
    encoder_features,
    fit_probe,
    raw_features,
    score_probe,
)

if TYPE_CHECKING:
    from lightning import LightningModule

    from nufm.data.datamodule import PointDataModule

ROWS = {
    "raw": "raw inputs (energy, neighbour counts)",
    "untrained": "same encoder, untrained",
    "pretrained": "same encoder, pretrained",
}


def probe_table(
    module: LightningModule,
    datamodule: PointDataModule,
    n_events: int,
    settings: ProbeSettings,
    seeds: tuple[int, ...] = (0, 1, 2),
    label: str = "motif",
) -> dict:
    """Scores of (a), (b), (c) for every seed. A seed fixes the probe's start and order and the untrained weights."""
    device = module.device
    scores: dict[str, list[dict]] = {row: [] for row in ROWS}

    def score(row: str, features: Features, seeds: tuple[int, ...]) -> None:
        sets = {
            split: collect(features, datamodule.probe_dataloader(split, n_events), label, device)
            for split in ("train", "test")
        }
        for seed in seeds:
            probe = fit_probe(*sets["train"], len(MOTIF_NAMES), settings, seed)
            found = score_probe(probe, *sets["test"])
            f1 = [None if f.isnan() else float(f) for f in found["f1"]]
            scores[row].append({"macro_f1": float(found["macro_f1"]), "f1": f1})

    jobs = [("raw", raw_features, seeds), ("pretrained", encoder_features(module.encoder), seeds)]
    for seed in seeds:
        twin = untrained_twin(module.encoder, seed)
        jobs.append(("untrained", encoder_features(twin), (seed,)))
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"linear probe: {n_events} + {n_events} events, {len(seeds)} seeds")
    for job in track(jobs, description="linear probe", console=console, transient=True):
        score(*job)
    return {
        "task": f"{len(MOTIF_NAMES)}-class {label}, linear probe, macro-F1 on held-out events",
        "classes": list(MOTIF_NAMES),
        "events": {s: min(n_events, len(datamodule.reader(s))) for s in ("train", "test")},
        "probe": dataclasses.asdict(settings) | {"seeds": list(seeds)},
        "scores": {row: {"label": ROWS[row], "per_seed": scores[row]} | _summary(scores[row]) for row in ROWS},
    }


def _summary(per_seed: list[dict]) -> dict:
    macro = np.array([s["macro_f1"] for s in per_seed])
    by_class = zip(*(s["f1"] for s in per_seed), strict=True)
    return {
        "macro_f1_mean": float(macro.mean()),
        "macro_f1_std": float(macro.std(ddof=1)) if len(macro) > 1 else 0.0,
        # None: a class that neither truth nor prediction has
        "f1_mean": [None if None in f1 else float(np.mean(f1)) for f1 in by_class],
    }


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

    run_dir = Path(run_dir)
    report = probe_table(module, datamodule, n_events, settings or ProbeSettings())
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
    score_bars(report, pictures / "probe.png")
    if (run_dir / "metrics.csv").exists():
        title = "/".join(run_dir.resolve().parts[-2:]) + ("   ·   simulated by nufm" if simulated["train"] else "")
        training_curves(run_dir / "metrics.csv", pictures / "training.png", title)
    (run_dir / "report.json").write_text(json.dumps(report, indent=1))
    (run_dir / "report.md").write_text(markdown(report))
    return report
