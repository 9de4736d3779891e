"""Which pretraining tells most? Point-MAE, PoLAr-MAE and Panda beside untrained encoders and raw inputs.

    python benchmarks/ssl_methods.py                    # pretrains each for 15 min of one core, then probes them
    python benchmarks/ssl_methods.py --minutes 60
    python benchmarks/ssl_methods.py --finished         # the table of the runs that are there

Matched: the events (the same 2000 simulated ones, without labels), their preparation (coordinates, log energy;
low-energy deposits stay in), the encoders' size (1.55 and 1.57 million parameters), and the processor time of the
training. How many steps a method gets is measured: a few steps of each are timed first. Every run is one process on one
core.

Scored on other events, with frozen encoders: a linear layer for the 5 motif classes of every voxel, as
``scripts/probe.py`` fits it; and PoLAr-MAE's protocol, support vector machines for the 4 classes on tokens of 5 voxels
(arXiv 2502.02558), where a token of an encoder of points is the mean over its points. Runs that are finished are not
repeated, a run that was stopped begins anew; runs that were made with other settings are refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Callback
from record import RESULTS, provenance, save
from rich.console import Console

from nufm.machine import available_cores
from nufm.running.folder import write_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs" / "tiny"
PUBLISHED = yaml.safe_load((REPOSITORY / "benchmarks" / "published.yaml").read_text())["polarmae"]["svm"]

EVENTS = {"n_train": 2000, "n_val": 100, "n_test": 200}
# The same inputs for all. Voxels lie in the centres of the lattice cells.
TRANSFORMS = [
    {"class_path": "nufm.data.transforms.NormalizeCoord", "init_args": {"centre": 383.5}},
    {"class_path": "nufm.data.transforms.LogEnergy", "init_args": {"epsilon": 0.13}},
]
SHARED = (
    *(word for name, n in EVENTS.items() for word in (f"--data.{name}", str(n))),
    "--data.transforms",
    json.dumps(TRANSFORMS),
    "--report.enabled",
    "false",
    "--trainer.callbacks",
    "null",
)
FIT, SCORE = 100, 100  # events of the probes
WARMUP, TIMED = 4, 12  # steps that are timed to learn what a step costs


@dataclass(frozen=True)
class Method:
    """How a method is pretrained.

    Attributes:
        flags: configuration, and what differs from it.
        untrained: name of the row of its encoder without training.
    """

    flags: tuple[str, ...]
    untrained: str


METHODS = {
    "Point-MAE": Method(
        ("--config", str(CONFIGS / "polarmae.yaml"), "--model.energy_infilling", "false"), "token encoder, untrained"
    ),
    "PoLAr-MAE": Method(("--config", str(CONFIGS / "polarmae.yaml")), "token encoder, untrained"),
    "Panda": Method(("--config", str(CONFIGS / "panda.yaml")), "Point Transformer V3, untrained"),
}


class Clock(Callback):
    """Processor time of the steps after the first few."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.process_time())

    @property
    def seconds_per_step(self) -> float:
        return (self.ends[-1] - self.ends[WARMUP - 1]) / (len(self.ends) - WARMUP)


# ---------------------------------------------------------------------------------------- training


def one_run(name: str, folder: Path, seconds: float, seed: int) -> None:
    """Time a few steps, then train for as many as ``seconds`` of processor time allow; ``training.json`` beside it."""
    run = folder / "run"
    if not (folder / "steps.json").is_file():
        shutil.rmtree(folder / "timing", ignore_errors=True)
        clock = train(name, folder / "timing", WARMUP + TIMED, seed)
        steps = max(1, round(seconds / clock.seconds_per_step))
        write_atomic(folder / "steps.json", json.dumps({"steps": steps, "timed": clock.seconds_per_step}) + "\n")
    steps = json.loads((folder / "steps.json").read_text())["steps"]
    shutil.rmtree(run, ignore_errors=True)  # of a run that was stopped: its processor time is not known
    began = time.process_time()
    clock = train(name, run, steps, seed)
    about = {
        **provenance(),
        "steps": steps,
        "seconds_per_step": clock.seconds_per_step,
        "processor_seconds": time.process_time() - began,
    }
    write_atomic(folder / "training.json", json.dumps(about, indent=1) + "\n")


def train(name: str, run: Path, steps: int, seed: int) -> Clock:
    """One pretraining, as ``scripts/pretrain.py`` does it."""
    from nufm.cli import fit
    from nufm.commands.pretrain import PretrainCLI, export

    flags = [*METHODS[name].flags, *SHARED, "--trainer.max_steps", str(steps), "--seed_everything", str(seed)]
    cli = PretrainCLI([*flags, "--data.seed", str(seed), "--run", str(run), "--threads", "1"])
    clock = Clock()
    cli.trainer.callbacks.append(clock)
    fit(cli, Console(stderr=True))
    export(cli)
    return clock


def run_all(folders: dict[str, Path], seconds: float, seed: int, workers: int) -> None:
    """Every method that has not been trained yet, each in a process of its own on one core."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(item: tuple[str, Path]) -> None:
        name, folder = item
        if (folder / "training.json").is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--job", name, str(folder), str(seconds), str(seed)]
        with open(folder / "log.txt", "w") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode:
                said = (folder / "log.txt").read_text()[-2000:]
                raise SystemExit(f"{name} failed, see {folder / 'log.txt'}:\n{said}")
        print(f"{name}: trained", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(start, folders.items()))


# ---------------------------------------------------------------------------------------- scores


def measure(folders: dict[str, Path], seeds: list[int]) -> dict[str, dict]:
    """Voxel table and token table of all rows."""
    from nufm.checkpoint import from_pretrained, untrained_twin
    from nufm.data.datamodule import PointDataModule
    from nufm.methods.linear_probe import EventChoice, ProbeSettings
    from nufm.methods.token_probe import raw_token_features, token_features, token_tables
    from nufm.models.tokens import Tokenizer
    from nufm.report import probe_tables

    models = {name: from_pretrained(folder / "run") for name, folder in folders.items()}
    first = next(iter(models.values()))
    data = PointDataModule(**EVENTS, transforms=list(first.transforms), grid_size=first.grid_size, batch_size=8)
    data.prepare_data()
    fit, score = EventChoice("train", FIT), EventChoice("test", SCORE)
    settings = ProbeSettings(epochs=10, batch_size=4096, learning_rate=0.01)
    rows: dict[str, dict] = {}
    own = (getattr(model.encoder, "tokenizer", None) for model in models.values())
    tokenizer = next((t for t in own if t is not None), Tokenizer.preset("5"))  # so that token encoders keep theirs
    features: dict[str, list] = {"raw inputs": [raw_token_features]}
    for name, model in models.items():
        untrained = METHODS[name].untrained
        compare = [row for row, key in (("raw", "raw inputs"), ("untrained", untrained)) if key not in rows]
        table = probe_tables(model.encoder, data, fit, score, ("motif",), settings, seeds, compare=compare)["motif"]
        for row, key in (("raw", "raw inputs"), ("untrained", untrained), ("pretrained", name)):
            if row in table["scores"]:
                rows[key] = table["scores"][row] | {"label": key}
        if untrained not in features:
            twins = [untrained_twin(model.encoder, seed) for seed in seeds]
            features[untrained] = [token_features(twin, tokenizer) for twin in twins]
        features[name] = [token_features(model.encoder, tokenizer)]
    order = ["raw inputs", *dict.fromkeys(m.untrained for m in METHODS.values()), *METHODS]
    rows = {name: rows[name] for name in order if name in rows}
    features = {name: features[name] for name in order if name in features}
    tokens = token_tables(features, tokenizer, data, fit, score)
    voxels = table | {"scores": rows, "simulated": True}
    return {"voxels": voxels, "tokens": tokens}


def trainings(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What every training cost."""
    from nufm.checkpoint import from_pretrained

    found = {}
    for name, folder in folders.items():
        about = json.loads((folder / "training.json").read_text())
        batch = yaml.safe_load((folder / "run" / "config.yaml").read_text())["data"]["init_args"]["batch_size"]
        encoder = from_pretrained(folder / "run").encoder
        found[name] = {
            "encoder_parameters": sum(p.numel() for p in encoder.parameters()),
            "steps": about["steps"],
            "events_seen": about["steps"] * batch,
            "processor_minutes": about["processor_seconds"] / 60,
            "commit": about["commit"],
        }
    return found


def markdown(report: dict) -> str:
    """One table of all rows, and below it what the numbers are."""
    voxels, tokens, about = report["voxels"], report["tokens"], report["trainings"]
    svm = tokens["svm"]
    head = ["features", "encoder", "events seen", "voxels: macro-F1", *voxels["classes"], "tokens: SVM macro-F1",
            "published SVM", "pairs: ROC AUC", "vertex: av. precision"]  # fmt: skip
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, row in voxels["scores"].items():
        made = about.get(name)
        size = f"{made['encoder_parameters'] / 1e6:.2f} M" if made else ""
        seen = f"{made['events_seen']:,}" if made else ""
        published = PUBLISHED["macro_f1"].get(name)
        lines.append([
            name, size, seen,
            f"**{100 * row['macro_f1_mean']:.1f} ± {100 * row['macro_f1_std']:.1f}**",
            *(_percent(f1) for f1 in row["f1_mean"]),
            f"**{_percent(_mean(svm, name, 'macro_f1'))}**",
            f"{published:.1f}" if published else "",
            _percent(_mean(tokens["pairs"], name, "auc")),
            _percent(_mean(tokens["vertex"], name, "average_precision")),
        ])  # fmt: skip
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    minutes = [made["processor_minutes"] for made in about.values()]
    return (
        f"{table}\nF1, AUC and precision × 100. Small encoders, each trained for {min(minutes):.0f} to "
        f"{max(minutes):.0f} min of one core (seed {report['seed']}) on the same {EVENTS['n_train']:,} events without "
        f"labels; probes fitted on {FIT} events and scored on {SCORE} others, voxels: mean ± standard deviation over "
        f"probe seeds {', '.join(map(str, voxels['probe']['seeds']))}; {svm['tokens']['test']:,} tokens scored. "
        "Simulated by nufm, low-energy deposits kept (the SVM leaves them out). Published: paper size, PILArNet-M.\n"
    )


def _mean(table: dict, row: str, metric: str) -> float | None:
    """None where the events do not have what it takes, vertices for example."""
    return table["scores"][row]["mean"][metric] if row in table["scores"] else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def write(folders: dict[str, Path], seeds: list[int], seed: int, out: Path) -> None:
    from nufm.display.plots import score_bars

    report = {
        **provenance(), "seed": seed, "data": "simulated by nufm", "trainings": trainings(folders),
        **measure(folders, seeds),
    }  # fmt: skip
    text = markdown(report)
    print(text)
    save(out, "ssl_methods", report, text)
    task = "5 motif classes, linear layer on frozen features of every voxel"
    score_bars(report["voxels"] | {"task": task}, out / "ssl_methods.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="processor time of every training")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0, help="of the pretrainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of probes and untrained encoders")
    parser.add_argument("--runs", type=Path, default=Path("runs/ssl_methods"), help="folder of all runs")
    parser.add_argument("--workers", type=int, default=available_cores(), help="trainings at a time, each on one core")
    parser.add_argument("--finished", action="store_true", help="train nothing: the table of the finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--job", nargs=4, metavar=("METHOD", "FOLDER", "SECONDS", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        name, folder, seconds, seed = options.job
        one_run(name, Path(folder), float(seconds), int(seed))
        return
    folders = {name: options.runs / f"{name}-{options.seed}" for name in options.methods}
    if options.finished:
        folders = {name: folder for name, folder in folders.items() if (folder / "training.json").is_file()}
    else:
        check_settings(folders, options.minutes)
        run_all(folders, 60 * options.minutes, options.seed, options.workers)
    torch.set_num_threads(options.workers)
    write(folders, options.seeds, options.seed, options.out)


def check_settings(folders: dict[str, Path], minutes: float) -> None:
    """Runs of a study that was stopped go on; those that were made with other settings are refused."""
    for name, folder in folders.items():
        _, config, *changes = METHODS[name].flags
        settings = {"minutes": minutes, "config": Path(config).read_text(), "flags": [*changes, *SHARED]}
        path = folder / "settings.json"
        if path.is_file() and json.loads(path.read_text()) != settings:
            raise SystemExit(f"{folder} holds a run with other settings; remove it, or name another folder (--runs)")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    main()
