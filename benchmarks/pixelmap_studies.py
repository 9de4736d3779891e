"""How do small classifiers of pixel maps bear what they were not trained on, do they know how sure they are, and what
is an explanation worth?

    python benchmarks/pixelmap_studies.py --runs FOLDER --workers 2     # of runs of benchmarks/pixelmap_classifiers.py
    python benchmarks/pixelmap_studies.py --runs FOLDER --models CNN VLM --seeds 0 --max_events 200
    python benchmarks/pixelmap_studies.py --runs FOLDER --finished      # the tables of the studies that are there

The studies of scripts/study.py on the runs of benchmarks/pixelmap_classifiers.py, on the same test events and with the
same random numbers for all models: coarser pixels, noise, dead pixels and columns, a view missing, gain errors,
calibration with a temperature, what covering a region costs; of the image-text model also examples in the question,
other words of it, and ranks of the adapters. Of this, half resolution, the words and the examples are in arXiv
2509.08461, the rest is not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pixelmap_classifiers import MODELS, run_name
from record import RESULTS, provenance, save

from nufm.evaluation.tables import percent, table
from nufm.machine import available_cores
from nufm.running.folder import write_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "pixelmap_studies"
LEVELS = {
    "resolution": [2, 4],
    "noise": [0.05, 0.1, 0.2, 0.5],
    "dead_pixels": [0.05, 0.1, 0.2, 0.5],
    "missing_view": [1, 2, 3],
    "gain": [-0.2, -0.1, 0.1, 0.2],
}
HEADS = {
    "resolution": "coarser pixels",
    "noise": "noise",
    "dead_pixels": "dead",
    "missing_view": "missing",
    "gain": "wrong gain",
}
ALL = (*LEVELS, "calibration", "faithfulness")
OF_WORDS = ("lora_rank", "few_shot", "prompt")  # of the image-text model, first seed
COVERED = 100  # events of the studies that cover regions, which take 40 passes an event
TALKS = "VLM"
# What the JSON of all studies leaves out: events one by one, and where on which machine things were.
OF_THE_MACHINE = ("per_event", "environment", "trained", "checkpoint", "runs_in", "kept_in")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    first = [model for model in MODELS if "student" not in model]
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=first, help="all but students")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings that are studied")
    parser.add_argument("--runs", type=Path, default=Path("runs/pixelmap_classifiers"), help="folder of all runs")
    parser.add_argument("--max_events", type=int, default=200, help="test events of each study")
    parser.add_argument("--workers", type=int, default=available_cores(), help="studies at a time, each on one core")
    parser.add_argument("--finished", action="store_true", help="study nothing: write the tables of what is there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = options.runs.resolve()
    chosen = {(m, s): runs / run_name(m, s) for m in options.models for s in options.seeds}
    chosen = {key: run for key, run in chosen.items() if (run / "export" / "config.json").is_file()}
    if not chosen:
        raise SystemExit(f"no run in {runs} is finished: python benchmarks/pixelmap_classifiers.py --runs {runs}")
    jobs = jobs_of(chosen, options.max_events)
    if not options.finished:
        run_all(jobs, options.workers)
    write(chosen, jobs, options.max_events, options.out)


Job = tuple[tuple[str, int], str]  # model and seed, study


def jobs_of(chosen: Mapping[tuple[str, int], Path], max_events: int) -> dict[Job, list[str]]:
    """Flags of every study of every run, those that take longest first."""
    jobs = {}
    for key, run in sorted(chosen.items(), key=lambda item: item[0][0] != TALKS):
        first = key[1] == min(s for m, s in chosen if m == key[0])
        for name in (*(OF_WORDS if first and key[0] == TALKS else ()), *reversed(ALL)):
            if name == "faithfulness" and not first:
                continue
            n = min(max_events, COVERED) if name == "faithfulness" else max_events
            flags = [name, "--checkpoint", str(run), "--max_events", str(n), "--threads", "1"]
            if name in LEVELS:
                flags += ["--levels", json.dumps(LEVELS[name])]
            jobs[key, name] = flags
    return jobs


def record_of(flags: Sequence[str]) -> Path:
    return Path(flags[2]) / "studies" / f"{flags[0]}.flags.json"


def done(flags: Sequence[str]) -> bool:
    """Whether a study was made with these flags, of the weights that are there."""
    record, result = record_of(flags), Path(flags[2]) / "studies" / f"{flags[0]}.json"
    weights = Path(flags[2]) / "export" / "config.json"
    return (
        record.is_file()
        and json.loads(record.read_text()) == list(flags)
        and result.stat().st_mtime >= weights.stat().st_mtime
    )


def run_all(jobs: Mapping[Job, list[str]], workers: int) -> None:
    """Make what is not there, each study in a process of its own."""
    todo = {key: flags for key, flags in jobs.items() if not done(flags)}

    def make(flags: Sequence[str]) -> None:
        folder = Path(flags[2]) / "studies"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{flags[0]}.log"
        command = [sys.executable, str(REPOSITORY / "scripts" / "study.py"), *flags]
        with open(log, "w") as out:
            ran = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        if ran.returncode:
            raise SystemExit(f"{' '.join(flags[:3])} failed, see {log}:\n{log.read_text()[-2000:]}")
        write_atomic(record_of(flags), json.dumps(flags) + "\n")

    with ThreadPoolExecutor(workers) as pool:
        futures = {key: pool.submit(make, flags) for key, flags in todo.items()}
        try:
            for number, (((model, seed), name), future) in enumerate(futures.items(), 1):
                future.result()
                print(f"{number} of {len(todo)}: {model}, seed {seed}: {name}", flush=True)
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise


# ---------------------------------------------------------------------------------------- tables


def write(chosen: Mapping[tuple[str, int], Path], jobs: Mapping[Job, list[str]], max_events: int, out: Path) -> None:
    """Tables, pictures and JSON of finished studies."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for ((model, _), name), flags in jobs.items():
        if done(flags):
            result = json.loads((Path(flags[2]) / "studies" / f"{name}.json").read_text())
            kept = {k: v for k, v in result.items() if k not in OF_THE_MACHINE}
            for row in kept["rows"] if isinstance(kept.get("rows"), list) else ():
                if "examples" in row:  # names of events begin with the path of their file
                    row["examples"] = [Path(example).name for example in row["examples"]]
            found.setdefault(name, {}).setdefault(model, []).append(kept | {"data": "simulated by nufm"})
    if not found:
        raise SystemExit("no study is finished")
    report = {
        **provenance(),
        "seed": sorted({seed for _, seed in chosen}),
        "data": "simulated by nufm",
        "max_events": max_events,
        "levels": LEVELS,
        "studies": found,
    }
    talking = {name: Path(f[2]) / "studies" for ((m, _), name), f in jobs.items() if m == TALKS and done(f)}
    save(out, NAME, report, markdown(report, talking))
    draw(report, out)
    for name in ("faithfulness", "lora_rank"):
        if name in talking:
            shutil.copyfile(talking[name] / f"{name}.png", out / f"{NAME}_{name}.png")


def rows_of(report: Mapping[str, Any], study: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Words of a level -> model -> its row from each seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for model, runs in report["studies"].get(study, {}).items():
        for run in runs:
            for row in run["levels"]:
                found.setdefault(row["words"], {}).setdefault(model, []).append(row)
    return found


def spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    around = f" ± {percent(float(np.std(known, ddof=1)), digits)}" if len(known) > 1 else ""
    return f"{percent(float(np.mean(known)), digits)}{around}"


def markdown(report: Mapping[str, Any], talking: Mapping[str, Path]) -> str:
    """Accuracy and AUC of all models at every level, calibration, covering; then what the image-text model's own
    studies say."""
    studies = report["studies"]
    models = [m for m in MODELS if any(m in by for by in studies.values())]
    text = []
    for score, words in (("accuracy", "Accuracy"), ("macro_auc", "Macro AUC")):
        rows, nominal = [], False
        for study in LEVELS:
            for level, by in rows_of(report, study).items():
                if level == "as they are":
                    if nominal:
                        continue
                    nominal, head = True, "**as they are**"
                else:
                    head = f"{HEADS[study]}: {level}"
                rows.append([head, *(spread([r.get(score) for r in by.get(m, ())]) for m in models)])
        if rows:
            text.append(table([f"{words} (%)", *models], rows))
    if "calibration" in studies:
        rows = []
        for model, runs in ((m, studies["calibration"].get(m)) for m in models):
            if runs:
                cells = [spread([r[side]["expected_error"] for r in runs]) for side in ("before", "after")]
                nll = [f"{np.mean([r[side]['nll'] for r in runs]):.3f}" for side in ("before", "after")]
                fitted = ", ".join(f"{r['fit']['temperature']:.2f}" for r in runs)
                rows.append([model, fitted, *cells, *nll, spread([r["before"]["accuracy"] for r in runs])])
        head = ["calibration", "T of each seed", "ECE (%)", "ECE with T", "NLL (nat)", "NLL with T", "accuracy (%)"]
        text.append(table(head, rows))
    if "faithfulness" in studies:
        rows = []
        for model, runs in ((m, studies["faithfulness"].get(m)) for m in models):
            for source in runs[0]["rows"] if runs else ():
                own = runs[0]["rows"][source]["all"]
                rows.append([f"{model}: {SOURCES[source]}", f"{own['events']:,}", percent(own["share"]), *_falls(own)])
        head = ["covered", "events", "charge (%)", "fall (%)", "fall, equal charge elsewhere", "difference", "p-value"]
        text.append(table(head, rows))
    text.append(note(report))
    for name in ("few_shot", "prompt", "lora_rank"):
        if name in talking:
            own = (talking[name] / f"{name}.md").read_text().replace("# ", f"## {TALKS}: ", 1)
            text.append(own.replace(f"![{name}]({name}.png)\n", "").rstrip() + "\n")
    return "\n".join(text)


SOURCES = {
    "cited": "what the explanation cites",
    "brightest": "the region with most charge",
    "strongest": "the region whose covering costs most",
}


def _falls(own: Mapping[str, Any]) -> list[str]:
    if not own["events"]:
        return ["–"] * 4
    cells = []
    for name in ("fall", "patch_fall", "difference"):
        error = own[f"{name}_error"]
        cells.append(f"{100 * own[name]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}"))
    return [*cells, "–" if own["p_value"] is None else f"{own['p_value']:.2g}"]


def note(report: Mapping[str, Any]) -> str:
    """What the numbers are."""
    whole = next((runs[0] for by in report["studies"].values() for runs in by.values() if "support" in runs[0]), None)
    support = ""
    if whole is not None:
        support = ", ".join(f"{n} {c}" for c, n in zip(whole["classes"], whole["support"], strict=True)) + "; "
    seeds = ", ".join(map(str, report["seed"]))
    return (
        f"At most {report['max_events']} test events, simulated by nufm ({support}covering: at most {COVERED}, first "
        f"seed); mean ± standard deviation over seeds {seeds} of the trainings, where there are several. One accuracy "
        f"has a statistical error of about {percent(float(np.sqrt(0.25 / report['max_events'])))} %, differences "
        "between levels less, since events and random numbers are the same for all levels and models. Energies are "
        "changed as they are read (pixels of 5 mm, 1 MeV is about what a minimum-ionising particle leaves in one), "
        "coarser pixels are made of those of the network (20 mm). Temperatures are fitted on the validation events. "
        "Tiny networks (those of configs/tiny); the image-text model stands on random weights: what examples in "
        "its question do says nothing of a large base.\n"
    )


PANELS = {
    "coarser, energy shared": ("resolution", "energy shared"),
    "coarser, picture made larger": ("resolution", "picture made larger"),
    "noise, what is above 3 σ": ("noise", "above 3 σ"),
    "noise, what is above 5 σ": ("noise", "above 5 σ"),
    "dead pixels": ("dead_pixels", "pixels"),
    "dead columns": ("dead_pixels", "columns"),
    "gain of all pixels": ("gain", "all pixels alike"),
    "gain of each pixel": ("gain", "each pixel its own"),
}


def draw(report: Mapping[str, Any], out: Path) -> None:
    """Accuracy against the strength of every harm, a line for each model."""
    from nufm.display.studies import Curves, study_curves

    panels = []
    for title, (study, series) in PANELS.items():
        lines, axis, largest = {}, "", None
        for model, runs in report["studies"].get(study, {}).items():
            axis, largest = runs[0]["axis"], max(runs[0]["support"]) / runs[0]["events"]
            values: dict[float, list[float]] = {}
            for run in runs:
                for row in run["levels"]:
                    if row["series"] in (series, "as they are") and row.get("accuracy") is not None:
                        values.setdefault(row["value"], []).append(row["accuracy"])
            lines[model] = [
                (x, float(np.mean(y)), float(np.std(y, ddof=1)) if len(y) > 1 else None) for x, y in values.items()
            ]
        if lines:
            panels.append(Curves(title, axis, lines, largest, study == "resolution"))
    if panels:
        title = "Accuracy of small classifiers of worse pixel maps, simulated by nufm"
        study_curves(panels, out / f"{NAME}.png", title)


if __name__ == "__main__":
    main()
