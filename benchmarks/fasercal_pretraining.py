"""Does pretraining help the FASERCal model? Scratch, MAE and MAE+Rel, all tasks, at several numbers of labelled events.

    python benchmarks/fasercal_pretraining.py                # pretrains, then trains and scores: about 1 h on two cores
    python benchmarks/fasercal_pretraining.py --finished     # the tables of the runs that are there

One pretraining without labels on all training events (MAE), a second phase from it that takes truth of the simulation
(MAE+Rel); then the same multi-task training from random weights, from the first and from the second, as the talk
demands: same schedule, rates, events and order, only the initial weights differ. ``Scratch, own rates`` is the fairer
baseline: the same without the layer-wise decay of rates, which is made for weights that are worth keeping. A seed fixes
the initial weights of what is new, the order, and which events have labels: those of a smaller number are among those
of a larger one. Every run takes the same number of steps and is scored on the same test events; no checkpoint is
chosen. ``as published`` pretrains with ``single_tokens: hidden``: the muon's token is asked for only where it is
hidden.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml
from record import RESULTS, provenance, save
from study import SETTINGS, Job, finished, run_jobs

from nufm.machine import available_cores

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = yaml.safe_load((REPOSITORY / "benchmarks" / "published.yaml").read_text())["fasercal"]

EVENTS = {"n_train": 2000, "n_val": 100, "n_test": 600}
STEPS = {"MAE": 1200, "MAE+Rel": 300}
FINE_STEPS, BATCH = 300, 16
SCORES = "evaluation/test/scores.json"
# Start -> run that it comes from.
METHODS = {
    "Scratch": None,
    "Scratch, own rates": None,
    "MAE": "mae",
    "MAE+Rel": "relational",
    "MAE, as published": "mae-hidden",
    "MAE+Rel, as published": "relational-hidden",
}

# What the tables show: head, how to read it off the scores, digits, whether more is better.
Read = Callable[[dict], float]
COLUMNS: dict[str, tuple[Read, int, bool]] = {
    "flavour macro AUC": (lambda s: s["labels"]["flavour"]["macro_auc"], 3, True),
    "charm macro AUC": (lambda s: s["labels"]["charm"]["macro_auc"], 3, True),
    "vertex, median mm": (lambda s: s["vertex"]["all"]["median"], 0, False),
    "visible σ_MAD": (lambda s: s["quantities"]["visible"]["all"]["sigma_mad"], 3, False),
    "jet σ_MAD": (lambda s: s["quantities"]["jet"]["all"]["sigma_mad"], 3, False),
    "lepton σ_MAD": (lambda s: s["quantities"]["lepton"]["all"]["sigma_mad"], 3, False),
    "missing pT σ_MAD": (lambda s: s["quantities"]["missing_pt"]["all"]["sigma_mad"], 3, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="+", default=[100, 1000], help="numbers of labelled events")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings on labels")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/fasercal_pretraining"), help="folder of all runs")
    parser.add_argument("--workers", type=int, default=available_cores(), help="runs at a time, each on one core")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the tables of the finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.runs = options.runs.resolve()
    jobs = pretrainings(options.runs)
    names = {(m, k, s): run_name(m, k, s) for s in options.seeds for m in options.methods for k in options.budgets}
    jobs |= {name: fine_tuning(options.runs, *key) for key, name in names.items()}
    jobs = {name: jobs[name] for name in sorted(jobs, key=lambda name: _turn(name, jobs[name]))}
    if options.finished:
        names = {key: name for key, name in names.items() if finished(options.runs / name, jobs[name])}
    else:
        run_jobs(jobs, options.runs, options.workers, REPOSITORY / "scripts")
    write(names, options.runs, options.out)


def _turn(name: str, job: Job) -> tuple[int, bool]:
    """Runs that wait for nothing first, a pretraining before the others of its turn."""
    waits = 0 if not job.after else 2 if job.after[0].startswith("relational") else 1
    return waits, name not in METHODS.values()


def run_name(method: str, budget: int, seed: int) -> str:
    words = {", own rates": "-own", ", as published": "-hidden", "+": "_"}
    for old, new in words.items():
        method = method.replace(old, new)
    return f"{method.lower()}-{budget}-{seed}"


def _data() -> list[str]:
    return [word for name, n in EVENTS.items() for word in (f"--data.{name}", str(n))]


def pretrainings(runs: Path) -> dict[str, Job]:
    """The two phases, each also as published."""

    def job(method: str, config: str, *flags: str, after: tuple[str, ...] = ()) -> Job:
        steps = ("--trainer.max_steps", str(STEPS[method]), "--report.enabled", "false")
        command = ("pretrain.py", "--config", f"configs/tiny/{config}", *steps, *flags, *_data())
        return Job(command, "export/config.json", after)

    jobs = {}
    for variant, flags in (("", ()), ("-hidden", ("--model.single_tokens", "hidden"))):
        first = f"mae{variant}"
        jobs[first] = job("MAE", "fasercal_mae.yaml", *flags)
        start = ("--pretrained", str(runs / first))
        jobs[f"relational{variant}"] = job("MAE+Rel", "fasercal_relational.yaml", *start, *flags, after=(first,))
    return jobs


def fine_tuning(runs: Path, method: str, budget: int, seed: int) -> Job:
    """A training on labels, scored on the test events."""
    flags = ["--trainer.max_steps", str(FINE_STEPS), "--trainer.max_epochs", "-1", "--data.batch_size", str(BATCH)]
    flags += ["--data.max_events", str(budget), "--data.subset_seed", str(seed), "--data.seed", str(seed)]
    flags += ["--seed_everything", str(seed), "--trainer.limit_val_batches", "0"]
    start = METHODS[method]
    if start is None:
        flags += ["--model.regime", "scratch"]
    else:
        flags += ["--pretrained", str(runs / start)]
    if method == "Scratch, own rates":
        flags += ["--model.layer_decay", "1.0"]
    config = "configs/tiny/fasercal_multitask.yaml"
    return Job(("finetune.py", "--config", config, *flags, *_data()), SCORES, () if start is None else (start,))


def write(names: dict[tuple[str, int, int], str], runs: Path, out: Path) -> None:
    """Tables, picture and JSON of finished runs."""
    if not names:
        raise SystemExit(f"no run in {runs} is finished: python {Path(__file__).name} makes them")
    found = {key: json.loads((runs / name / SCORES).read_text()) for key, name in names.items()}
    methods = [m for m in METHODS if any(key[0] == m for key in found)]
    budgets = sorted({k for _, k, _ in found})
    folders = [runs / name for name in (*names.values(), *pretrainings(runs)) if (runs / name / SETTINGS).is_file()]
    report = {
        **provenance(),
        "seed": sorted({s for *_, s in found}),
        "data": "simulated by nufm",
        "events": EVENTS,
        "steps": STEPS | {"fine-tuning": FINE_STEPS, "batch": BATCH},
        "commits_of_the_runs": sorted({json.loads((f / SETTINGS).read_text())["commit"] for f in folders}),
        "scores": {m: {k: [_kept(found[m, k, s]) for *_, s in _of(found, m, k)] for k in budgets} for m in methods},
        "published": PUBLISHED,
    }
    save(out, "fasercal_pretraining", report, markdown(found, methods, budgets))
    draw(found, methods, budgets, out / "fasercal_pretraining.png")


def _of(found: dict, method: str, budget: int) -> list[tuple[str, int, int]]:
    return [key for key in found if key[:2] == (method, budget)]


def _kept(scores: dict) -> dict:
    """What the JSON keeps of the scores of a run."""
    flavour = scores["labels"]["flavour"]
    return {
        **{head: read(scores) for head, (read, _, _) in COLUMNS.items()},
        "flavour_auc": dict(zip(flavour["classes"], flavour["auc"], strict=True)),
        "flavour_recall": dict(zip(flavour["classes"], flavour["recall"], strict=True)),
        "flavour_confusion": flavour["confusion"],
        "vertex_mm": scores["vertex"],
    }


def _spread(values: Sequence[float | None], digits: int) -> str:
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    around = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{around}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown(found: dict, methods: Sequence[str], budgets: Sequence[int]) -> str:
    """All tasks at every number of labels, the flavours one by one, the published numbers."""
    text = []
    for k in budgets:
        rows = []
        for m in methods:
            scores = [found[key] for key in _of(found, m, k)]
            rows.append([m, *(_spread([read(s) for s in scores], digits) for read, digits, _ in COLUMNS.values())])
        text.append(_table([f"{k:,} labelled events", *COLUMNS], rows))
    most = budgets[-1]
    names = next(iter(found.values()))["labels"]["flavour"]["classes"]
    rows = []
    for m in methods:
        aucs = [found[key]["labels"]["flavour"]["auc"] for key in _of(found, m, most)]
        rows.append([m, *(_spread([auc[c] for auc in aucs], 3) for c in range(len(names)))])
    published = dict(zip(PUBLISHED["flavour_auc"]["classes"], range(len(names)), strict=True))
    for m in ("Scratch", "MAE", "MAE+Rel"):
        values = [PUBLISHED["flavour_auc"][m][published[name]] for name in names]
        rows.append([f"published, {m}", *("–" if v is None else f"{v:.3f}" for v in values)])
    text.append(_table([f"flavour AUC, {most:,} labels", *names], rows))
    about, seeds = PUBLISHED["labels"], sorted({s for *_, s in found})
    text.append(
        f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))} of the training on "
        f"labels (weights, order, choice of events); {EVENTS['n_test']:,} test events, simulated by nufm. One "
        f"pretraining of each phase, seed 0, on {EVENTS['n_train']:,} events: {STEPS['MAE']:,} steps (MAE) and "
        f"{STEPS['MAE+Rel']:,} more (MAE+Rel), then {FINE_STEPS} steps of {BATCH} on labels for every method. σ_MAD = "
        "1.4826 · median|r − median r| of the fractional residual r of the size of the vector. Published: networks of "
        "31.9 M parameters on another simulation, AUC with all labels; at 1,000 labels macro AUC about "
        f"{about['flavour_macro_auc']['Scratch'][1000]} → {about['flavour_macro_auc']['MAE+Rel'][1000]} (Scratch → "
        f"MAE+Rel), vertex {about['vertex_mm']['Scratch'][1000]} → {about['vertex_mm']['MAE+Rel'][1000]} mm, jet σ_MAD "
        f"{about['jet_sigma_mad']['Scratch'][1000]} → {about['jet_sigma_mad']['MAE+Rel'][1000]}.\n"
    )
    return "\n".join(text)


def draw(found: dict, methods: Sequence[str], budgets: Sequence[int], path: Path) -> None:
    """Four quantities against the number of labels."""
    from nufm.display.budgets import budget_curves

    panels = {}
    for head in ("flavour macro AUC", "charm macro AUC", "vertex, median mm", "jet σ_MAD"):
        read, _, more = COLUMNS[head]
        lines: dict[str, dict[float, list[float]]] = {m: {} for m in methods}
        for method, budget, seed in found:
            value = read(found[method, budget, seed])
            if value is not None:
                lines[method].setdefault(budget, []).append(value)
        panels[head] = (lines, more)
    budget_curves(panels, path, "FASERCal in small, simulated by nufm: the same training from different starts")


if __name__ == "__main__":
    main()
