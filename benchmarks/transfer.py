"""Does an encoder that neutrino interactions in FASERCal pretrained help to name single particles in other detectors?

    python benchmarks/transfer.py --pretrained RUN              # RUN: of configs/tiny/fasercal_relational.yaml
    python benchmarks/transfer.py --pretrained RUN --tasks superfgd pilarnet_single pilarnet_multi
    python benchmarks/transfer.py --pretrained RUN --finished   # the tables of the runs that are there

Without --pretrained, RUN is that of benchmarks/fasercal_pretraining.py. The same training from random weights (with
rates of its own: no layer-wise decay, which is made for weights that are worth keeping), from the blocks of the encoder
(MAE+Rel: what the talk reuses), and from its patch embedding too (what the public code reuses). With ``--numbers``,
each again with the 31 hand-crafted numbers that the public code gives its networks, so that their share shows; boosted
trees on these numbers alone are always beside them. A seed fixes the initial weights of what is new, the order, and
which particles have labels. No checkpoint is chosen; every run is scored on the same test particles.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from record import RESULTS, provenance, save
from study import SETTINGS, Job, finished, run_jobs

from nufm.data.particles import PARTICLE_NAMES
from nufm.machine import available_cores
from nufm.running.folder import write_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = yaml.safe_load((REPOSITORY / "benchmarks" / "published.yaml").read_text())
PRETRAINED = Path("runs/fasercal_pretraining/relational")

# Simulated events, steps, samples of a step (events of several particles in pilarnet_multi).
TASKS = {
    "superfgd": {"events": {"n_train": 4000, "n_val": 100, "n_test": 1000}, "steps": 300, "batch": 64},
    "pilarnet_single": {"events": {"n_train": 600, "n_val": 20, "n_test": 150}, "steps": 300, "batch": 64},
    "pilarnet_multi": {"events": {"n_train": 600, "n_val": 20, "n_test": 150}, "steps": 300, "batch": 4},
}
LABELS = {"superfgd": "superfgd", "pilarnet_single": "pilarnet_crop", "pilarnet_multi": "pilarnet_crop"}
METHODS = {  # name -> flags; None stands for the pretrained run
    "Scratch": ("--model.regime", "scratch", "--model.layer_decay", "1.0"),
    "MAE+Rel": ("--model.reuse", "talk", "--pretrained", None),
    "MAE+Rel, patch embedding too": ("--model.reuse", "code", "--pretrained", None),
}
NUMBERS = ", numbers"
TREES = "boosted trees on the numbers alone"
SCORES = "particle_scores.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", type=Path, default=PRETRAINED, help="run of scripts/pretrain.py")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["superfgd"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings on labels")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--numbers", action="store_true", help="also with the hand-crafted numbers")
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"), help="folder of all runs")
    parser.add_argument("--workers", type=int, default=available_cores(), help="runs at a time, each on one core")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the tables of the finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    needed = any(None in METHODS[m] for m in options.methods) and not options.finished
    if needed and not (options.pretrained / "export" / "config.json").is_file():
        raise SystemExit(
            f"{options.pretrained} is no finished run of scripts/pretrain.py; make one (configs/tiny/fasercal_mae.yaml,"
            " then fasercal_relational.yaml --pretrained THAT_RUN), or run benchmarks/fasercal_pretraining.py first"
        )
    methods = [m + add for m in options.methods for add in ("", NUMBERS)[: 1 + options.numbers]]
    names = {(t, m, s): run_name(t, m, s) for t in options.tasks for m in methods for s in options.seeds}
    jobs = {name: training(options.pretrained, *key) for key, name in names.items()}
    if options.finished:
        names = {key: name for key, name in names.items() if finished(options.runs / name, jobs[name])}
    else:
        run_jobs(jobs, options.runs, options.workers, REPOSITORY / "scripts")
    write(names, options.runs, options.out, options.pretrained)


def run_name(task: str, method: str, seed: int) -> str:
    short = method.replace(", patch embedding too", "-embedding").replace(NUMBERS, "-numbers").replace("+", "_")
    return f"{task}-{short.lower()}-{seed}"


def training(pretrained: Path, task: str, method: str, seed: int) -> Job:
    """A training on labels."""
    size = TASKS[task]
    flags = [word for n, count in size["events"].items() for word in (f"--data.{n}", str(count))]
    flags += ["--trainer.max_steps", str(size["steps"]), "--data.batch_size", str(size["batch"])]
    flags += ["--seed_everything", str(seed), "--data.seed", str(seed)]
    flags += ["--trainer.limit_val_batches", "0", "--evaluation.enabled", "false"]
    flags += [str(pretrained) if flag is None else flag for flag in METHODS[method.removesuffix(NUMBERS)]]
    if method.endswith(NUMBERS):
        flags += ["--model.network.extra", "all"]
    config = str(REPOSITORY / "configs" / "tiny" / f"{task}.yaml")
    return Job(("finetune.py", "--config", config, *flags), "export/config.json")


# ---------------------------------------------------------------------------------------- scores


def test_events(task: str):
    """The data module of a task, with the sizes of this study."""
    from nufm.data.stream_datamodule import StreamDataModule

    sample = "superfgd" if task == "superfgd" else "pilarnet_particles"
    together = task == "pilarnet_multi"
    return StreamDataModule(
        sample=sample, together=together, batch_size=8 if together else 128, **TASKS[task]["events"]
    )


def scored(run: Path, task: str) -> dict:
    """Accuracy, certainty AUC and confusion of a run on the test particles; kept beside it."""
    import torch

    from nufm.checkpoint import from_pretrained
    from nufm.metrics import CertaintyAUC, ConfusionScores

    path = run / SCORES
    if path.is_file() and path.stat().st_mtime >= (run / "export" / "config.json").stat().st_mtime:
        return json.loads(path.read_text())
    model, data = from_pretrained(run), test_events(task)
    data.transforms = list(model.transforms)
    confusion, certainty = ConfusionScores(len(PARTICLE_NAMES[LABELS[task]])), CertaintyAUC()
    with torch.no_grad():
        for batch in data.test_dataloader():
            probability = model.model.predict(batch).probability["particle"]
            confusion.update(probability.argmax(1), batch.truth["particle"])
            certainty.update(probability, batch.truth["particle"])
    found = result(confusion, float(certainty.compute()))
    write_atomic(path, json.dumps(found) + "\n")
    return found


def result(confusion, certainty: float) -> dict:
    """What a table shows of a classifier."""
    scores = confusion.compute()
    counts = scores["confusion"].tolist()
    return {
        "accuracy": float(scores["accuracy"]),
        "mean_recall": float(scores["macro_recall"]),
        "certainty_auc": certainty,
        "confusion": counts,
    }


def trees(task: str, seed: int) -> dict:
    """Gradient-boosted trees (150, otherwise scikit-learn's defaults) on the hand-crafted numbers of the particles."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before scikit-learn is there: its threads spin on a busy machine
    import torch
    from sklearn.ensemble import HistGradientBoostingClassifier

    from nufm.metrics import CertaintyAUC, ConfusionScores

    data = test_events(task)
    sets = []
    for split in ("train", "test"):
        events = [data.reader(split).record(i) for i in range(len(data.reader(split)))]
        sets.append((np.stack([e["extra"] for e in events]), np.array([int(e["truth/particle"]) for e in events])))
    (x, y), (x_test, y_test) = sets
    model = HistGradientBoostingClassifier(max_iter=150, random_state=seed).fit(x, y)
    probability = torch.from_numpy(model.predict_proba(x_test))
    confusion, certainty = ConfusionScores(len(PARTICLE_NAMES[LABELS[task]])), CertaintyAUC()
    confusion.update(probability.argmax(1), torch.from_numpy(y_test))
    certainty.update(probability, torch.from_numpy(y_test))
    return result(confusion, float(certainty.compute()))


def write(names: dict[tuple[str, str, int], str], runs: Path, out: Path, pretrained: Path) -> None:
    """Tables, pictures and JSON of finished runs."""
    from nufm.display.scores import confusion_matrix

    if not names:
        raise SystemExit(f"no run in {runs} is finished")
    found: dict[str, dict[str, list[dict]]] = {}
    for (task, method, _), name in names.items():
        found.setdefault(task, {}).setdefault(method, []).append(scored(runs / name, task))
    for task, methods in found.items():
        methods[TREES] = [trees(task, seed=0)]
    commits = {json.loads((runs / name / SETTINGS).read_text())["commit"] for name in names.values()}
    report = {
        **provenance(),
        "seed": sorted({s for *_, s in names}),
        "data": "simulated by nufm",
        "tasks": {task: TASKS[task] for task in found},
        "pretrained": steps_of(pretrained),
        "commits_of_the_runs": sorted(commits),
        "scores": found,
        "published": {key: PUBLISHED[key] for key in ("superfgd", "pilarnet_particles")},
    }
    save(out, "transfer", report, markdown(found, report["seed"], report["pretrained"]))
    for task, methods in found.items():
        best = max((m for m in methods if m != TREES), key=lambda m: _mean(methods[m], "accuracy"))
        counts = np.sum([one["confusion"] for one in methods[best]], axis=0)
        title = f"{task}, {best}: simulated by nufm"
        confusion_matrix(counts, PARTICLE_NAMES[LABELS[task]], out / f"transfer_{task}.png", title, "particles")


def steps_of(pretrained: Path) -> dict:
    """What the pretrained run was; empty where it is not there any more."""
    path = pretrained / "export" / "config.json"
    extra = json.loads(path.read_text()).get("extra", {}) if path.is_file() else {}
    return {key: extra[key] for key in ("method", "steps", "commit", "pretrained") if key in extra}


def _mean(runs: Sequence[dict], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _spread(runs: Sequence[dict], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def _recalls(confusion: Sequence[Sequence[float]]) -> list[str]:
    counts = np.asarray(confusion, dtype=float)
    return [f"{value:.3f}" for value in counts.diagonal() / counts.sum(1)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown(found: dict[str, dict[str, list[dict]]], seeds: Sequence[int], pretrained: dict) -> str:
    """A table for each task, published numbers below ours; a confusion matrix; what the numbers are."""
    text = []
    for task, methods in found.items():
        classes = PARTICLE_NAMES[LABELS[task]]
        rows = []
        for method, runs in methods.items():
            counts = np.sum([run["confusion"] for run in runs], axis=0)
            rows.append([method, *(_spread(runs, k) for k in ("accuracy", "mean_recall", "certainty_auc"))])
            rows[-1] += _recalls(counts)
        rows += published_rows(task, len(classes))
        text.append(_table([task, "accuracy", "mean recall", "certainty AUC", *classes], rows))
    if "superfgd" in found:
        best = max((m for m in found["superfgd"] if m != TREES), key=lambda m: _mean(found["superfgd"][m], "accuracy"))
        classes = PARTICLE_NAMES["superfgd"]
        counts = np.sum([run["confusion"] for run in found["superfgd"][best]], axis=0)
        shares = counts / counts.sum(1, keepdims=True)
        theirs = PUBLISHED["superfgd"]["confusion"]["MAE+Rel"]
        rows = [
            [f"true {name}", *(f"{a:.3f} ({b:.3f})" for a, b in zip(shares[i], theirs[i], strict=True))]
            for i, name in enumerate(classes)
        ]
        text.append(_table([f"superfgd, {best} (published, MAE+Rel)", *classes], rows))
    sizes = "; ".join(
        f"{task}: {TASKS[task]['events']['n_train']:,} events to train, {TASKS[task]['events']['n_test']:,} to test, "
        f"{TASKS[task]['steps']} steps of {TASKS[task]['batch']}"
        for task in found
    )
    told = f" ({pretrained['steps']:,} steps in its last phase)" if "steps" in pretrained else ""
    text.append(
        f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))} (weights, order). Particles simulated by "
        f"nufm; {sizes}. Encoders of 96 channels and two blocks, one pretraining, seed 0{told}, simulated by nufm. "
        "Certainty AUC: how well predictive entropy tells right from wrong (Koh et al. 2023; their 'AUROC'). Classes: "
        "recall. 'Numbers': the 31 hand-crafted numbers of the public code beside the voxels. Published: networks of "
        "23 M transferred parameters on other simulations with far more labels, numbers always included; not like for "
        "like.\n"
    )
    return "\n".join(text)


def published_rows(task: str, n_classes: int) -> list[list[str]]:
    if task == "superfgd":
        rows = []
        for method, confusion in PUBLISHED["superfgd"]["confusion"].items():
            recall = np.asarray(confusion).diagonal()  # rows are rounded: they add up to 1 within 0.001
            rows.append([f"published, {method}", "–", f"{recall.mean():.3f}", "–", *(f"{r:.3f}" for r in recall)])
        return rows
    column = 0 if task == "pilarnet_single" else 2
    return [
        [f"published, {method}", *("–" if v is None else f"{v:.3f}" for v in (row[column],)), "–",
         *("–" if v is None else f"{v:.3f}" for v in (row[column + 1],)), *["–"] * n_classes]
        for method, row in PUBLISHED["pilarnet_particles"]["methods"].items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
