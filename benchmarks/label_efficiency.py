"""How many labels does a method need? Macro-F1 of motif segmentation against the number of labelled events.

    python benchmarks/label_efficiency.py                     # pretrains, then trains every method: 1.5 h on two cores
    python benchmarks/label_efficiency.py --pretrained RUN    # from the encoder of a run of scripts/pretrain.py
    python benchmarks/label_efficiency.py --paper /data/pilarnet_m --pretrained RUN    # the commands for a cluster

Methods: sparse UResNet and Point Transformer V3 from random weights; Panda's regimes lin, dec and full from one encoder
pretrained without labels. Every run sees the same number of events, however few of them are different, and is scored on
the same test events. Seed s fixes the initial weights, the order, and which events have labels: those of a smaller
budget are among those of a larger one. Runs that are finished are not repeated: a study that was stopped goes on, and
refuses runs that were made with other settings.

Learning rate, class weights and Lovász weight of the small networks were chosen with 10 labelled events of seed 0, on
the first 100 test events; the table is made on the other 100.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from record import RESULTS, provenance, save
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nufm.data.event import MOTIF_NAMES
from nufm.machine import available_cores
from nufm.running.folder import write_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs"
PUBLISHED = yaml.safe_load((REPOSITORY / "benchmarks" / "published.yaml").read_text())["panda"]["semantic"]

# Simulated events: 2000 without labels for the pretraining, from which the labelled ones are drawn; others to score.
EVENTS = {"n_train": 2000, "n_val": 100, "n_test": 200}
DATA = tuple(word for name, n in EVENTS.items() for word in (f"--data.{name}", str(n)))
SCORED = range(100, 200)  # test events that no setting was chosen on
PRETRAINING_STEPS = 1000
STEPS, BATCH = 300, 2


@dataclass(frozen=True)
class Method:
    """How a method is trained.

    Attributes:
        tiny, paper: configuration and flags.
        pretrained: starts from the pretrained encoder.
    """

    tiny: tuple[str, ...]
    paper: tuple[str, ...]
    pretrained: bool = False


def _tiny(regime: str, *flags: str) -> tuple[str, ...]:
    return ("--config", str(CONFIGS / "tiny" / "semantic.yaml"), "--model.regime", regime, *flags)


METHODS = {
    "UResNet": Method(
        ("--config", str(CONFIGS / "tiny" / "uresnet.yaml")),
        # Batch and length of the others, for the same 20 M event-samples; the baseline's own are 256 and 25 M.
        ("--config", "configs/baseline/uresnet.yaml", "--data.batch_size", "48", "--trainer.max_steps", "416660"),
    ),
    "PTv3 scratch": Method(
        _tiny("scratch", "--model.encoder_rate", "1.0"), ("--config", "configs/finetune/panda_scratch.yaml")
    ),
    "Panda lin": Method(
        _tiny("lin", "--model.learning_rate", "1e-2"),
        ("--config", "configs/finetune/panda_lin.yaml"),
        True,
    ),
    "Panda dec": Method(_tiny("dec"), ("--config", "configs/finetune/panda_dec.yaml"), True),
    "Panda full": Method(_tiny("full"), ("--config", "configs/finetune/panda_full.yaml"), True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", help="run of scripts/pretrain.py on the same events; default: one is made")
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 100, 500], help="numbers of labelled events")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/label_efficiency"), help="folder of all runs")
    parser.add_argument("--workers", type=int, default=available_cores(), help="runs at a time, each on one core")
    parser.add_argument("--paper", metavar="ROOT", help="print the commands of the study at paper size, one per line")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the table of the finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--job", nargs=3, metavar=("METHOD", "BUDGET", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.paper:
        print("\n".join(paper_commands(options.paper, options.pretrained or "RUN", options.seeds)))
        return
    if options.job:
        method, budget, seed = options.job
        one_run(method, int(budget), int(seed), options.runs, options.pretrained)
        return
    if max(options.budgets) > STEPS * BATCH:
        parser.error(f"a run sees {STEPS * BATCH} events, the budget {max(options.budgets)} is larger")
    pretrained = options.pretrained or pretrain(options.runs)
    jobs = [(m, k, s) for s in options.seeds for k in options.budgets for m in options.methods]
    if options.finished:
        jobs = [job for job in jobs if finished(job, options.runs, pretrained)]
    run_jobs(jobs, options.runs, pretrained, options.workers)
    write(jobs, options.runs, pretrained, options.out)


def paper_commands(root: str, pretrained: str, seeds: list[int]) -> list[str]:
    """Every run of the published study from one encoder, 20 M event-samples each: one line of a job array each.

    For an encoder pretrained on the same K events, pretrain with ``--data.max_events K`` and name it as ``pretrained``.
    """
    lines = []
    for seed in seeds:
        for budget in PUBLISHED["events"]:
            for name, method in METHODS.items():
                start = f" --pretrained {pretrained}" if method.pretrained else ""
                run = folder_name(name, budget, seed)
                lines.append(
                    f"python scripts/finetune.py {' '.join(method.paper)}{start} --data.root {root} "
                    f"--data.max_events {budget} --seed_everything {seed} --data.seed {seed} --run {run}"
                )
    return lines


def folder_name(method: str, budget: int, seed: int) -> str:
    return f"{method.replace(' ', '_')}-{budget}-{seed}"


def pretrain(runs: Path) -> str:
    """The encoder that the regimes start from, pretrained on all training events without their labels."""
    run = runs / "pretraining"
    if not (run / "export" / "config.json").is_file():
        flags = ["--run", str(run), "--trainer.max_steps", str(PRETRAINING_STEPS), "--report.enabled", "false", *DATA]
        subprocess.run([sys.executable, REPOSITORY / "scripts" / "pretrain.py", *flags], check=True)
    return str(run)


def settings(job: tuple[str, int, int], pretrained: str | None) -> dict:
    """What a run is made with: the flags of ``scripts/finetune.py``, but for its folder."""
    name, budget, seed = job
    method = METHODS[name]
    flags = [*method.tiny, *DATA, "--trainer.max_steps", str(STEPS), "--data.batch_size", str(BATCH)]
    flags += ["--data.max_events", str(budget), "--data.subset_seed", str(seed)]
    flags += ["--seed_everything", str(seed), "--data.seed", str(seed)]
    # The rate has fallen to nothing by the last step: there is no better checkpoint to look for.
    flags += ["--trainer.limit_val_batches", "0", "--evaluation.enabled", "false"]
    if method.pretrained:
        flags += ["--pretrained", str(pretrained)]
    configs = [yaml.safe_load(Path(f).read_text()) for f in flags if f.endswith(".yaml")]
    return {"flags": [f.replace(str(REPOSITORY), ".") for f in flags], "config": configs[0]}


def finished(job: tuple[str, int, int], runs: Path, pretrained: str) -> bool:
    """Whether a run has its scores.

    Raises:
        SystemExit: it was made with other settings than those of now.
    """
    folder = runs / folder_name(*job)
    record = folder / "settings.json"
    if record.is_file() and json.loads(record.read_text())["settings"] != settings(job, pretrained):
        raise SystemExit(f"{folder} was made with other settings (settings.json); remove it, or give another --runs")
    return (folder / "scores.json").is_file()


def run_jobs(jobs: list[tuple[str, int, int]], runs: Path, pretrained: str, workers: int) -> None:
    """Train and score; each run is a process of its own with one thread, its output in ``log.txt`` of its folder."""
    todo = [job for job in jobs if not finished(job, runs, pretrained)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(job: tuple[str, int, int]) -> int:
        folder = runs / folder_name(*job)
        folder.mkdir(parents=True, exist_ok=True)
        method, budget, seed = job
        command = [sys.executable, __file__, "--runs", str(runs), "--pretrained", pretrained]
        with open(folder / "log.txt", "w") as log:
            process = [*command, "--job", method, str(budget), str(seed)]
            return subprocess.run(process, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task("runs", total=len(todo))
        futures = {pool.submit(start, job): job for job in todo}
        for future in as_completed(futures):
            job = futures[future]
            if future.result():
                log = runs / folder_name(*job) / "log.txt"
                raise SystemExit(f"{' '.join(map(str, job))} failed, see {log}:\n{log.read_text()[-2000:]}")
            progress.advance(bar)
            if not console.is_terminal:
                print(f"{' '.join(map(str, job))}: {macro_f1(runs, job):.3f}", flush=True)


def one_run(name: str, budget: int, seed: int, runs: Path, pretrained: str | None) -> None:
    """Train as ``scripts/finetune.py`` does, score the export on the test events, write ``scores.json``."""
    from nufm.checkpoint import from_pretrained
    from nufm.commands.finetune import finetune
    from nufm.data.datamodule import PointDataModule
    from nufm.evaluation import evaluate

    job = (name, budget, seed)
    folder = runs / folder_name(*job)
    run = folder / "run"
    made = settings(job, pretrained)
    if not (run / "export" / "config.json").is_file():
        write_atomic(folder / "settings.json", json.dumps({"settings": made, **provenance()}, indent=1) + "\n")
        flags = [f.replace("./configs", str(CONFIGS)) for f in made["flags"]]
        flags += ["--run", str(run), "--threads", "1"]
        finetune([*flags, "--ckpt_path", "last"] if any((run / "checkpoints").glob("*.ckpt")) else flags)
    test = PointDataModule(**EVENTS).reader("test")
    found = evaluate(from_pretrained(run), [test[i] for i in SCORED])
    write_atomic(folder / "scores.json", json.dumps(found) + "\n")


def scores(runs: Path, job: tuple[str, int, int]) -> dict:
    return json.loads((runs / folder_name(*job) / "scores.json").read_text())


def macro_f1(runs: Path, job: tuple[str, int, int]) -> float:
    return scores(runs, job)["points"]["macro_f1"]


def write(jobs: list[tuple[str, int, int]], runs: Path, pretrained: str, out: Path) -> None:
    """Table, picture and JSON of the finished runs."""
    from nufm.checkpoint import from_pretrained
    from nufm.display.scores import score_curves

    points: dict[str, dict[int, list[dict]]] = {}
    for job in jobs:
        points.setdefault(job[0], {}).setdefault(job[1], []).append(scores(runs, job)["points"])
    seeds = {k: sorted({s for _, budget, s in jobs if budget == k}) for k in sorted({k for _, k, _ in jobs})}
    if len(jobs) != len(points) * sum(map(len, seeds.values())):
        raise SystemExit(f"{len(jobs)} runs are no table of methods × budgets with the same seeds: {jobs}")
    encoder = from_pretrained(pretrained)
    about = pretraining(Path(pretrained), encoder.extra)
    commits = {json.loads((runs / folder_name(*job) / "settings.json").read_text())["commit"] for job in jobs}
    report = {
        **provenance(),
        "seed": sorted({s for _, _, s in jobs}),
        "seeds_of_budgets": seeds,
        "data": "simulated by nufm",
        "steps": STEPS,
        "batch_size": BATCH,
        "commits_of_the_runs": sorted(commits),
        "events": EVENTS | {"scored": len(SCORED)},
        "pretraining": encoder.extra | {"about": about},
        "encoder_parameters": sum(p.numel() for p in encoder.encoder.parameters()),
        "classes": MOTIF_NAMES,
        "scores": {
            name: {k: [{"macro_f1": p["macro_f1"], "f1": p["f1"]} for p in found] for k, found in by_budget.items()}
            for name, by_budget in points.items()
        },
    }
    save(out, "label_efficiency", report, markdown(points, seeds, about))
    lines = {n: {k: [p["macro_f1"] for p in v] for k, v in by.items()} for n, by in points.items()}
    published = {
        name: {k: f1 / 100 for k, f1 in zip(PUBLISHED["events"], values, strict=True)}
        for name, values in PUBLISHED["mean_f1"].items()
    }
    score_curves(
        lines,
        out / "label_efficiency.png",
        published,
        title="Motif segmentation, macro-F1 over 5 classes",
        line=f"ours: small networks, {STEPS * BATCH} event-samples, simulated by nufm; published (arXiv 2512.01324): "
        "paper size, 20 M, PILArNet-M",
        published_note="published",
    )


def pretraining(run: Path, extra: dict) -> str:
    """How the encoder was pretrained, in words, as far as its run folder or its export tell."""
    steps = f"{extra['steps']:,} steps" if "steps" in extra else "an unknown number of steps"
    config = run / "config.yaml"
    if not config.is_file():
        return f"{steps}; data: {extra.get('data', 'unknown')}"
    settings = yaml.safe_load(config.read_text())
    data = settings["data"]["init_args"]
    events = data["max_events"] or data["n_train"]
    return f"{steps} of {data['batch_size']} events, {events:,} different ones, seed {settings['seed_everything']}"


def markdown(points: dict, seeds: dict[int, list[int]], pretraining: str) -> str:
    """Mean ± standard deviation over seeds, and the classes at the smallest budget; published numbers beside them."""
    budgets = list(seeds)
    budgets_of: dict[tuple[int, ...], list[str]] = {}
    for k, s in seeds.items():
        budgets_of.setdefault(tuple(s), []).append(f"{k:,}")
    which = [
        ", ".join(map(str, s)) + (f" ({', '.join(k)} events)" if len(budgets_of) > 1 else "")
        for s, k in budgets_of.items()
    ]
    nearest = dict(zip(PUBLISHED["events"], range(len(PUBLISHED["events"])), strict=True))
    head = ["method", *(f"{k:,} events" for k in budgets), *(f"published, {k:,}" for k in budgets if k in nearest)]
    rows = []
    for name, by_budget in points.items():
        cells = [_spread([p["macro_f1"] for p in by_budget[k]]) for k in budgets]
        cells += [f"{PUBLISHED['mean_f1'][name][nearest[k]]:.1f}" for k in budgets if k in nearest]
        rows.append([name, *cells])
    few = budgets[0]
    classes = [
        [name, *(_spread([p["f1"][c] or 0.0 for p in by_budget[few]]) for c in range(len(MOTIF_NAMES)))]
        for name, by_budget in points.items()
    ]
    return (
        f"{_table(head, rows)}\n"
        f"Macro-F1 × 100 over all voxels of {len(SCORED)} test events, mean ± standard deviation over seeds "
        f"{'; '.join(which)} (weights, order and choice of the labelled events); every run sees "
        f"{STEPS * BATCH} event-samples. One pretraining without labels: {pretraining}. Simulated by nufm; published: "
        "paper-size networks, 20 M event-samples, PILArNet-M.\n\n"
        f"By class, {few} labelled events:\n\n{_table(['method', *MOTIF_NAMES], classes)}"
    )


def _spread(values: list[float]) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
