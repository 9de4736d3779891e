"""What a pretraining on events of several sub-detectors ends with: does the encoder know more than it did.

Flavour (area under the ROC curve, each class against the rest) and vertex (distance in mm) by linear probes on features
of whole events, for (a) sums and extents that need no network, (b) the same encoder untrained, (c) pretrained; as a
table and as pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from nufm.checkpoint import untrained_twin
from nufm.data.streams import FLAVOUR_NAMES
from nufm.methods.event_probe import encoded, event_summary, events_of, mean_vertex_error, probe, truth_of
from nufm.methods.event_reconstruction import reconstruction, relations

if TYPE_CHECKING:
    from lightning import LightningModule
    from torch import nn

    from nufm.data.stream_datamodule import StreamDataModule

ROWS = {
    "raw": "sums and extents, no network",
    "untrained": "encoder, untrained",
    "pretrained": "encoder, pretrained",
}
SIMULATED = "simulated by nufm"


def probe_events(
    encoder: nn.Module,
    data: StreamDataModule,
    n_events: int = 500,
    seeds: Sequence[int] = (0, 1, 2),
    compare: Sequence[str] = ("raw", "untrained"),
) -> dict:
    """Scores of an encoder's features of events, and of those it is compared with.

    Args:
        encoder: frozen, with ``event_features``; computes where its weights are.
        data: the events; its transforms must be the encoder's.
        n_events: training events to fit to, and as many test events to score.
        seeds: of the probes, and of the weights of the untrained encoders.
        compare: rows beside the encoder's: ``raw``, ``untrained``.

    Returns:
        What report.json holds, see :func:`markdown`.

    Raises:
        ValueError: events without flavour or vertex, or no events.
    """
    device = next(encoder.parameters()).device
    readers = {use: data.reader(split) for use, split in (("fit", "train"), ("score", "test"))}
    events = {use: events_of(reader, n_events) for use, reader in readers.items()}
    truth = {use: truth_of(found) for use, found in events.items()}

    def features(twin: nn.Module) -> list[np.ndarray]:
        training = twin.training
        twin.eval()
        try:
            return [
                encoded(twin.event_features, data.probe_dataloader(split, len(events[use])), device)
                for use, split in (("fit", "train"), ("score", "test"))
            ]
        finally:
            twin.train(training)

    def scores(sets: list[np.ndarray], seed: int) -> dict:
        return probe(sets[0], truth["fit"], sets[1], truth["score"], seed)

    found: dict[str, list[dict]] = {}
    if "raw" in compare:
        raw = [np.stack([event_summary(e) for e in events[use]]) for use in ("fit", "score")]
        found["raw"] = [scores(raw, seed) for seed in seeds]
    if "untrained" in compare:
        found["untrained"] = [scores(features(untrained_twin(encoder, seed)), seed) for seed in seeds]
    mine = features(encoder)
    found["pretrained"] = [scores(mine, seed) for seed in seeds]
    return {
        "task": "linear probes of whole events, on held-out events",
        "classes": list(FLAVOUR_NAMES),
        "events": {use: len(e) for use, e in events.items()},
        "support": np.bincount(truth["score"]["flavour"].clip(min=0), minlength=len(FLAVOUR_NAMES)).tolist(),
        "seeds": list(seeds),
        "mean_vertex": mean_vertex_error(truth["fit"]["vertex"], truth["score"]["vertex"]),
        "scores": {row: {"label": ROWS[row], "per_seed": s} | _summary(s) for row, s in found.items()},
    }


def _summary(per_seed: list[dict]) -> dict:
    """Mean and sample deviation over the seeds; None where a seed has no score."""
    summary: dict[str, object] = {}
    for name in ("macro_auc", "vertex_mean", "vertex_median"):
        values = [s[name] for s in per_seed]
        known = None not in values
        summary[name] = float(np.mean(values)) if known else None
        summary[f"{name}_std"] = float(np.std(values, ddof=1)) if known and len(values) > 1 else 0.0
    by_class = zip(*(s["auc"] for s in per_seed), strict=True)
    summary["auc"] = [None if None in values else float(np.mean(values)) for values in by_class]
    return summary


def _shown(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _cells(row: dict) -> list[str]:
    """A row of the table behind its label."""
    macro = f"{_shown(row['macro_auc'])} ± {row['macro_auc_std']:.3f}"
    vertex = f"{_shown(row['vertex_mean'], 0)} ± {row['vertex_mean_std']:.0f}"
    return [macro, *map(_shown, row["auc"]), vertex, _shown(row["vertex_median"], 0)]


def markdown(report: dict) -> str:
    """The table, and below it what the numbers are and where they come from."""
    head = ["features", "flavour macro AUC", *report["classes"], "vertex, mean (mm)", "median (mm)"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[row["label"], *_cells(row)] for row in report["scores"].values()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    events, seeds = report["events"], ", ".join(map(str, report["seeds"]))
    origin = f", {SIMULATED}" if report.get("simulated") else ""
    return (
        f"{table}\n\nAUC: one class against the rest, 0.5 is chance. Vertex: distance of the prediction; "
        f"{report['mean_vertex']:.0f} mm if the mean vertex is always said. Linear models on features of whole events, "
        f"fitted on {events['fit']} and scored on {events['score']} other events{origin}; mean ± standard deviation "
        f"over the seeds {seeds} (four fifths of the events to fit to, weights of the untrained encoder).\n"
    )


def print_table(report: dict, console: Console) -> None:
    """The table with a column for each kind of features: names of flavours are too long for columns of a terminal."""
    table = Table(title=report["task"] + (f" ({SIMULATED})" if report.get("simulated") else ""))
    table.add_column("")
    for row in report["scores"].values():
        table.add_column(row["label"], justify="right")
    names = ("flavour macro AUC", *(f"AUC {name}" for name in report["classes"]), "vertex, mean (mm)", "median (mm)")
    for name, *values in zip(names, *(_cells(row) for row in report["scores"].values()), strict=True):
        table.add_row(name, *values)
    console.print(table)


def write_event_report(
    module: LightningModule, data: StreamDataModule, run_dir: Path, n_events: int = 500
) -> dict:
    """Probes, pictures, ``report.json`` and ``report.md`` in the run folder; returns what report.json holds."""
    # Drawing needs matplotlib, which takes a second to import.
    from nufm.display.event_probes import draw_event_probes
    from nufm.display.geometry import is_simulated
    from nufm.display.plots import training_curves
    from nufm.display.stream_reconstruction import draw_reconstructed, draw_relations

    run_dir = Path(run_dir)
    report = probe_events(module.encoder, data, n_events)
    event = data.reader("test")[0]
    report["simulated"] = is_simulated(event)
    pictures = run_dir / "pictures"
    try:
        draw_reconstructed(reconstruction(module, event, data.transforms), pictures / "reconstruction.png")
        if module.hparams.relational > 0:
            draw_relations(relations(module, event, data.transforms), pictures / "relations.png")
    except ValueError as error:  # transforms that cannot be undone, say: no reason to lose the report
        Console(stderr=True).print(f"pictures of what the method says are left out: {error}", markup=False)
    draw_event_probes(report, pictures / "probe.png")
    if (run_dir / "metrics.csv").exists():
        title = "/".join(run_dir.resolve().parts[-2:]) + (f"   ·   {SIMULATED}" if report["simulated"] else "")
        training_curves(run_dir / "metrics.csv", pictures / "training.png", title)
    (run_dir / "report.json").write_text(json.dumps(report, indent=1))
    (run_dir / "report.md").write_text(markdown(report), encoding="utf-8")
    return report
