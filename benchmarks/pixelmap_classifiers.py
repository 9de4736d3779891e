"""How well do small CNN, ViT, image-text model and sparse network tell νµ CC, νe CC and NC apart in pixel maps?

    python benchmarks/pixelmap_classifiers.py --runs FOLDER --workers 2
    python benchmarks/pixelmap_classifiers.py --runs FOLDER --models CNN ViT --seeds 0
    python benchmarks/pixelmap_classifiers.py --runs FOLDER --finished     # the tables of the runs that are there

Tables 1 and 2 of arXiv 2509.08461 in small: the runs of configs/tiny/pixelmap_*.yaml, each from several seeds, which
fix initial weights and order; every run is scored on the same test events, at the resolution of its training and with
pixels of twice the edge. A student, a smaller CNN, learns from labels and the answers of a teacher of each kind (its
seed 0), and, to compare with, from labels alone. Boosted trees on 20 numbers of each event are the reference for what
needs no network. Time and memory are those of one event at a time, measured after the trainings, of the first seed of
each model. What is finished is not repeated: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from record import RESULTS, provenance, save
from study import SETTINGS, Job, finished, run_jobs

from nufm.data.images import INTERACTION_NAMES, VIEWS, ImageEvent
from nufm.machine import available_cores
from nufm.running.folder import write_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs" / "tiny"
PUBLISHED = yaml.safe_load((REPOSITORY / "benchmarks" / "published.yaml").read_text())["pixelmaps"]
EVENTS = {"n_train": 2000, "n_val": 400, "n_test": 1000}  # simulated
BASE = "tiny_mllama"  # of the image-text model: random weights, in the folder of the runs
SCORES, PROBABILITIES, COSTS = "pixelmap_scores.json", "pixelmap_probability.npz", "pixelmap_cost.json"
TREES, MAJORITY = "boosted trees on 20 numbers", "always the largest class"
NOMINAL, HALF, LARGER = "nominal", "half", "half, picture made larger"
LOADING = threading.Lock()  # transformers changes defaults of torch while it loads
TIMED, THREADS = 8, 1  # events that take turns when a model is timed, and threads


@dataclass(frozen=True)
class Model:
    """A row of the tables.

    Attributes:
        config: of ``configs/tiny``.
        flags: on top of the configuration; ``{runs}`` is the folder of all runs.
        teacher: model whose run of seed 0 it learns from.
        seeds: at most so many: what is slow has fewer.
    """

    config: str
    flags: tuple[str, ...] = ()
    teacher: str | None = None
    seeds: int = 99


MODELS = {
    "VLM": Model("pixelmap_vlm", ("--model.network.base", "{runs}/" + BASE), seeds=2),
    "ViT": Model("pixelmap_vit"),
    "CNN": Model("pixelmap_cnn"),
    "sparse": Model("pixelmap_sparse"),
    "student, labels alone": Model("pixelmap_cnn", ("--model.network.channels", "[8, 16, 32, 64]")),
    "student of the VLM": Model("pixelmap_distillation", teacher="VLM", seeds=2),
    "student of the ViT": Model("pixelmap_distillation", teacher="ViT", seeds=2),
    "student of the CNN": Model("pixelmap_distillation", teacher="CNN", seeds=2),
}
ALONE = "student, labels alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--runs", type=Path, default=Path("runs/pixelmap_classifiers"), help="folder of all runs")
    parser.add_argument("--workers", type=int, default=available_cores(), help="runs at a time, each on one core")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the tables of the finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = options.runs.resolve()
    jobs, names = jobs_of(options.models, options.seeds, runs)
    if options.finished:
        names = {key: name for key, name in names.items() if finished(runs / name, jobs[name])}
    else:
        prepare(options.models, runs)
        run_jobs(jobs, runs, options.workers, REPOSITORY / "scripts")
    write(names, runs, options.out, options.workers)


def run_name(model: str, seed: int) -> str:
    return f"{model.lower().replace(', ', '-').replace(' ', '-')}-{seed}"


def jobs_of(
    models: Sequence[str], seeds: Sequence[int], runs: Path
) -> tuple[dict[str, Job], dict[tuple[str, int], str]]:
    """All runs by name, teachers first, and the names of those that are rows: (model, seed) -> name."""
    names = {(m, s): run_name(m, s) for m in models for s in seeds[: MODELS[m].seeds]}
    teachers = {(MODELS[m].teacher, 0) for m, _ in names if MODELS[m].teacher}
    # The slow ones first, so that none of them runs alone at the end; those that learn from others last.
    order = sorted({*names, *teachers}, key=lambda key: (bool(MODELS[key[0]].teacher), [*MODELS].index(key[0]), key[1]))
    return {run_name(*key): training(*key, runs) for key in order}, names


def training(model: str, seed: int, runs: Path) -> Job:
    """The run of a model and a seed."""
    of = MODELS[model]
    flags = [word for name, count in EVENTS.items() for word in (f"--data.{name}", str(count))]
    flags += ["--seed_everything", str(seed), "--data.seed", str(seed), "--evaluation.enabled", "false"]
    flags += [flag.format(runs=runs) for flag in of.flags]
    after = (run_name(of.teacher, 0),) if of.teacher else ()
    flags += [word for name in after for word in ("--model.teacher", str(runs / name))]
    config = (CONFIGS / f"{of.config}.yaml").relative_to(REPOSITORY).as_posix()
    return Job(("finetune.py", "--config", config, *flags), "export/config.json", after)


def prepare(models: Sequence[str], runs: Path) -> None:
    """The base of the image-text model, of random weights."""
    needed = {*models, *(MODELS[m].teacher for m in models)}
    if "VLM" in needed and not (runs / BASE / "config.json").is_file():
        command = [sys.executable, str(REPOSITORY / "scripts" / "make_tiny_vlm.py"), "--out", str(runs / BASE)]
        subprocess.run(command, check=True, cwd=REPOSITORY)


# ---------------------------------------------------------------------------------------- scores


def test_events(split: str = "test") -> Sequence[ImageEvent]:
    """The events of a split that all runs share."""
    from nufm.data.image_datamodule import ImageDataModule

    data = ImageDataModule(**EVENTS)
    data.prepare_data()
    return data.open(split, None, None)


def resolutions() -> list:
    """Pixels as in the training, and of twice the edge: with the energy of a block shared by as many pixels as before,
    or shown by all of them, as when a picture is made larger."""
    from nufm.data.image_transforms import Coarse
    from nufm.evaluation.robustness import Level

    return [
        Level(NOMINAL, 1, NOMINAL),
        Level(HALF, 2, HALF, image=(Coarse(2),)),
        Level(LARGER, 2, LARGER, image=(Coarse(2, share=False),)),
    ]


def scored(run: Path, events: Sequence[ImageEvent] | None = None) -> dict[str, Any]:
    """Scores of a run at each resolution, on the test events if none are given; kept beside it, with the probabilities.
    """
    from nufm.checkpoint import from_pretrained
    from nufm.checkpoint.sizes import parameter_count
    from nufm.evaluation.robustness import sweep

    of = made_of(run) | {"events": EVENTS, "levels": [repr(level) for level in resolutions()]}
    if (run / PROBABILITIES).is_file() and (known := kept(run / SCORES, of)) is not None:
        return known
    with LOADING:
        model = from_pretrained(run)
    result = sweep(model, test_events() if events is None else events, resolutions(), batch_size=16, progress=False)
    found = {
        "levels": {level["series"]: with_matrix(level, p, result["target"])
                   for level, p in zip(result["levels"], result["probability"], strict=True)},
        "support": result["support"],
        "parameters": parameter_count(model.model),
        "trainable_parameters": sum(p.numel() for p in model.model.parameters() if p.requires_grad),
        "steps": model.extra.get("steps"),
    }  # fmt: skip
    names = [level["series"] for level in result["levels"]]
    np.savez(run / PROBABILITIES, target=result["target"], **dict(zip(names, result["probability"], strict=True)))
    write_atomic(run / SCORES, json.dumps({"made_of": of, **found}) + "\n")
    return found


def made_of(run: Path) -> dict[str, Any]:
    """Which export numbers are of: its configuration, where the digest of its weights and its temperature stand."""
    return {"export": hashlib.sha256((run / "export" / "config.json").read_bytes()).hexdigest()}


def kept(path: Path, of: Mapping[str, Any]) -> dict[str, Any] | None:
    """Numbers that were kept, if they are there and were made of just this."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return found if found.pop("made_of", None) == of else None


def with_matrix(level: Mapping[str, Any], probability: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """The scores of a level with its confusion matrix, rows the truth."""
    n = len(INTERACTION_NAMES)
    counts = np.bincount(target * n + probability.argmax(1), minlength=n * n).reshape(n, n)
    return {**level, "confusion": counts.tolist()}


def cost(run: Path, events: Sequence[ImageEvent]) -> dict[str, Any]:
    """Time and memory of one event at a time; kept beside the run."""
    import torch

    from nufm.checkpoint import from_pretrained
    from nufm.evaluation.cost import cost_per_event

    of = made_of(run) | {"events": TIMED, "threads": THREADS, "hardware": provenance()["hardware"]}
    if (known := kept(run / COSTS, of)) is not None:
        return known
    torch.set_num_threads(THREADS)
    found = cost_per_event(from_pretrained(run), [events[i] for i in range(TIMED)])
    write_atomic(run / COSTS, json.dumps({"made_of": of, **found}) + "\n")
    return found


# ---------------------------------------------------------------------------------------- without a network


def numbers_of(event: ImageEvent) -> np.ndarray:
    """float64 (20,): ten numbers of each view. Energy, pixels with charge, energy of the brightest one; mean place of
    the charge along z, its spread across and along z, width and length along its own axes; shares of it upstream of the
    middle and in a disc about it. All 0 for a view without charge."""
    found = []
    for view in VIEWS:
        pixels = event.views.get(view)
        energy = np.zeros(0) if pixels is None else np.maximum(pixels.energy.astype(np.float64), 0)
        total = energy.sum()
        if total <= 0:
            found += [0.0] * 10
            continue
        place = pixels.pixel - np.array(event.shape) / 2  # row, column from the middle, which is the vertex
        weight = energy / total
        mean = weight @ place
        off = place - mean
        covariance = (weight[:, None] * off).T @ off
        width, length = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0))
        near = np.hypot(*place.T) < event.shape[0] / 16
        found += [total, len(energy), energy.max(), mean[1], *np.sqrt(covariance.diagonal()), width, length]
        found += [weight[place[:, 1] < 0].sum(), weight[near].sum()]
    return np.array(found)


def trees(train: Sequence[ImageEvent], events: Sequence[ImageEvent]) -> dict[str, Any]:
    """Gradient-boosted trees (200, otherwise scikit-learn's defaults) on :func:`numbers_of` the maps that the networks
    see, before brightness; scored as they are."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before scikit-learn is there: its threads spin on a busy machine
    from sklearn.ensemble import HistGradientBoostingClassifier

    from nufm.data.image_transforms import Rebin
    from nufm.data.transforms import compose
    from nufm.evaluation.robustness import scores_of

    rng = np.random.default_rng(0)  # Rebin and Coarse draw nothing

    def table(chosen: Sequence[ImageEvent], image: tuple) -> np.ndarray:
        return np.stack([numbers_of(compose((Rebin(4), *image), chosen[i], rng)) for i in range(len(chosen))])

    def classes(chosen: Sequence[ImageEvent]) -> np.ndarray:
        return np.array([int(chosen[i].truth["interaction"]) for i in range(len(chosen))])

    model = HistGradientBoostingClassifier(max_iter=200, random_state=0).fit(table(train, ()), classes(train))
    target, levels = classes(events), {}
    for level in resolutions():
        probability = model.predict_proba(table(events, level.image))
        levels[level.series] = with_matrix(scores_of(probability, target), probability, target)
    return {"levels": levels, "support": np.bincount(target, minlength=len(INTERACTION_NAMES)).tolist()}


# ---------------------------------------------------------------------------------------- tables


def write(names: Mapping[tuple[str, int], str], runs: Path, out: Path, workers: int = 1) -> None:
    """Tables, pictures and JSON of finished runs, ``workers`` of which are scored at a time."""
    import torch

    if not names:
        raise SystemExit(f"no run in {runs} is finished")
    events = test_events()
    torch.set_num_threads(THREADS)
    found: dict[str, list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(workers) as pool:  # torch computes without Python's lock; each has a reader of its own
        scores = pool.map(lambda name: scored(runs / name), names.values())
        for (model, _), name, one in zip(names, names.values(), scores, strict=True):
            found.setdefault(model, []).append(one)
            print(f"{name}: accuracy {one['levels'][NOMINAL]['accuracy']:.3f}", flush=True)
    commits = {json.loads((runs / name / SETTINGS).read_text())["commit"] for name in names.values()}
    first = {model: next(name for (m, _), name in names.items() if m == model) for model in found}
    costs = {model: cost(runs / name, events) for model, name in first.items()}
    # Students learnt from seed 0, whichever seeds are rows of the tables.
    named = {MODELS[model].teacher for model in found} - {None}
    folders = {teacher: runs / run_name(teacher, 0) for teacher in MODELS if teacher in named}
    folders = {teacher: run for teacher, run in folders.items() if (run / "export" / "config.json").is_file()}
    teachers = {teacher: scored(run) | {"ms": cost(run, events)["ms"]} for teacher, run in folders.items()}
    baseline = trees(test_events("train"), events)
    report = {
        **provenance(),
        "seed": sorted({seed for _, seed in names}),
        "data": "simulated by nufm",
        "events": EVENTS,
        "runs": {model: [seed for m, seed in names if m == model] for model in found},
        "commits_of_the_runs": sorted(commits),
        "scores": found,
        "teachers": teachers,
        "trees": baseline,
        "cost": costs,
        "published": PUBLISHED,
    }
    save(out, "pixelmap_classifiers", report, markdown(report))
    draw(report, {model: runs / name for model, name in first.items()}, events, out)


def draw(report: Mapping[str, Any], runs: Mapping[str, Path], events: Sequence[ImageEvent], out: Path) -> None:
    """ROC and rejection curves of all models, efficiency and purity of the best, example events with what the model
    says that talks."""
    from nufm.checkpoint import from_pretrained
    from nufm.display.image_scores import compared_rejection, compared_roc, efficiency_purity
    from nufm.display.images import draw_examples
    from nufm.evaluation.image_scores import example_rows, said_of

    of = f"{sum(report['trees']['support']):,} test events, simulated by nufm"
    kept = {model: np.load(run / PROBABILITIES) for model, run in runs.items()}
    scores, target = {model: arrays[NOMINAL] for model, arrays in kept.items()}, next(iter(kept.values()))["target"]
    stem = "pixelmap_classifiers"
    compared_roc(scores, target, INTERACTION_NAMES, out / f"{stem}_roc.png", f"pixel maps: {of}")
    compared_rejection(scores, target, INTERACTION_NAMES, out / f"{stem}_rejection.png", f"pixel maps: {of}")
    best = max(runs, key=lambda model: mean(report["scores"][model], NOMINAL, "accuracy"))
    counts = np.sum([run["levels"][NOMINAL]["confusion"] for run in report["scores"][best]], axis=0)
    title = f"{best}, {len(report['scores'][best])} seeds: simulated by nufm"
    efficiency_purity(counts, INTERACTION_NAMES, out / f"{stem}_confusion.png", title)
    talking = "VLM" if "VLM" in runs else best
    p = scores[talking]
    rows = [
        {"interaction": INTERACTION_NAMES[t], "interaction_found": INTERACTION_NAMES[k], "interaction_found_p": p[i, k]}
        for i, (t, k) in enumerate(zip(target, p.argmax(1), strict=True))
    ]
    chosen = example_rows(rows, "interaction", INTERACTION_NAMES, 2)
    shown, heads = [events[row] for row, _ in chosen], [head for _, head in chosen]
    said = said_of(from_pretrained(runs[talking]), shown, "interaction")
    draw_examples(shown, said, out / f"{stem}_events.png", f"what the {talking} says", of, heads)


def mean(runs: Sequence[Mapping[str, Any]], level: str, key: str) -> float:
    return float(np.mean([run["levels"][level][key] for run in runs]))


def spread(runs: Sequence[Mapping[str, Any]], level: str, key: str, place: int | None = None) -> str:
    values = [run["levels"][level][key] if place is None else run["levels"][level][key][place] for run in runs]
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


KEYS = ("accuracy", "macro_precision", "macro_recall", "macro_auc")
HEAD = ["accuracy", "precision", "recall", "AUC"]


def markdown(report: Mapping[str, Any]) -> str:
    """Tables 1 and 2 and the AUC of each class, published numbers below ours; what the numbers are."""
    found, costs, test = report["scores"], report["cost"], report["trees"]["support"]
    reference = {TREES: [report["trees"]]}
    largest = f"{max(test) / sum(test):.3f}"
    rows = [
        [model, *(spread(runs, NOMINAL, key) for key in KEYS), amount(runs[0]["trainable_parameters"]),
         short(1e3 * costs[model]["memory_gb"]) if costs[model]["memory_gb"] is not None else "–",
         short(costs[model]["ms"])]
        for model, runs in found.items()
    ]  # fmt: skip
    rows += [[name, *(spread(runs, NOMINAL, key) for key in KEYS), "–", "–", "–"] for name, runs in reference.items()]
    rows.append([MAJORITY, largest, "–", f"{1 / len(test):.3f}", "0.500", "–", "–", "–"])
    for model, kind in PUBLISHED["models"].items():
        scores = PUBLISHED["nominal"][model]
        cells = [f"{scores[key]:.2f}" for key in ("accuracy", "precision", "recall", "auc")]
        cells += [amount(kind["trainable_parameters"]), short(1e3 * kind["memory_gb"]), short(kind["ms"])]
        rows.append([f"published, {model}", *cells])
    head = ["nominal resolution", *HEAD, "trainable parameters", "memory (MB)", "ms per event"]
    text = [table(head, rows), half_table(found | reference), class_table(found | reference)]
    if rows := distilled(found, costs, report["teachers"]):
        text.append(table(["student / teacher (its seed 0)", "accuracy", "kept", "parameters", "ms per event"], rows))
    seeds = ", ".join(f"{model}: {len(s)}" for model, s in report["runs"].items())
    sizes = f"{EVENTS['n_train']:,} to train, {EVENTS['n_val']} to choose the checkpoint, {sum(test):,} to test"
    text.append(
        f"Mean ± standard deviation over seeds {', '.join(map(str, report['seed']))} of weights and order ({seeds}). "
        f"Events simulated by nufm, {sizes}; maps of 128 × 128 pixels of 20 mm (published: 512 × 512 of 5 mm), pixels "
        "of 40 mm at half resolution. The score of one run has a statistical error of about "
        f"{np.sqrt(0.25 / sum(test)):.3f}; a class that is never predicted does not enter the precision. Networks are "
        "tiny (those of configs/tiny); the image-text model stands on random weights, nothing of the published "
        "one's knowledge is in it: its row shows that the path learns, not how good a large one would be. Time and "
        f"memory are of one event at a time ({report['hardware']}, {THREADS} thread{'s' * (THREADS > 1)}; memory: "
        "growth of the resident memory of a fresh process, about 15 MB of it for any model), the published ones of "
        "large models on GPUs. Published: other simulation, 190,000 events; not like for like.\n"
    )
    return "\n".join(text)


def half_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Table 2, and the other way in which a coarser picture may come to a network."""
    larger = ("accuracy", "macro_auc")
    rows = [
        [model, *(spread(runs, HALF, key) for key in KEYS), *(spread(runs, LARGER, key) for key in larger)]
        for model, runs in found.items()
    ]
    for model, scores in PUBLISHED["half_resolution"].items():
        rows.append([f"published, {model}", *(f"{scores[k]:.2f}" for k in ("accuracy", "precision", "recall", "auc")),
                     "–", "–"])  # fmt: skip
    head = ["half resolution: energy shared", *HEAD, "picture made larger: accuracy", "AUC"]
    return table(head, rows)


def class_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One-vs-rest AUC of each class at both resolutions."""
    rows = [
        [model, *(spread(runs, level, "auc", c) for level in (NOMINAL, HALF) for c in range(len(INTERACTION_NAMES)))]
        for model, runs in found.items()
    ]
    for model in PUBLISHED["models"]:
        values = [v for level in ("nominal", "half_resolution") for v in PUBLISHED[level][model]["class_auc"]]
        rows.append([f"published, {model}", *(f"{v:.2f}" for v in values)])
    return table(["AUC", *INTERACTION_NAMES, *(f"{name}, half" for name in INTERACTION_NAMES)], rows)


def distilled(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    costs: Mapping[str, Mapping[str, Any]],
    teachers: Mapping[str, Mapping[str, Any]],
) -> list:
    """What is left of each teacher in its student, student / teacher (the very run that the student learnt from); first
    the same network without a teacher."""
    rows = []
    for model, runs in found.items():
        teacher = MODELS[model].teacher
        if model == ALONE:
            alone = [spread(runs, NOMINAL, "accuracy"), "–", amount(runs[0]["parameters"]), short(costs[model]["ms"])]
            rows.insert(0, [model, *alone])
        if teacher not in teachers:
            continue
        first = teachers[teacher]
        ours, theirs = mean(runs, NOMINAL, "accuracy"), first["levels"][NOMINAL]["accuracy"]
        rows.append([
            model, f"{spread(runs, NOMINAL, 'accuracy')} / {theirs:.3f}", f"{100 * ours / theirs:.0f} %",
            f"{amount(runs[0]['parameters'])} / {amount(first['parameters'])}",
            f"{short(costs[model]['ms'])} / {short(first['ms'])}",
        ])  # fmt: skip
    return rows if len(rows) > 1 else []


def amount(count: int) -> str:
    """1,234,567 as 1.23 M."""
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
