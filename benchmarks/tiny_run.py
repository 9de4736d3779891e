"""The table and pictures in the README, taken from a finished small run.

    python scripts/pretrain.py
    python benchmarks/tiny_run.py runs/tiny-panda/<time>
    python scripts/pretrain.py --config configs/tiny/polarmae.yaml
    python benchmarks/tiny_run.py runs/tiny-polarmae/<time>

The results are named after the configuration: tiny_panda, tiny_polarmae.
"""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import sys
from datetime import datetime
from pathlib import Path

import yaml
from record import RESULTS

from nufm.checkpoint import from_pretrained
from nufm.report import markdown

PICTURES = ("features.png", "event.png", "training.png", "reconstruction.png", "tokens.png")


def main(run: Path) -> None:
    name = run.resolve().parent.name.replace("-", "_")
    report, git, machine = (json.loads((run / f"{n}.json").read_text()) for n in ("report", "git", "environment"))
    with open(run / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("events_per_s")]
    started = datetime.strptime(machine["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    export = from_pretrained(run)
    result = {
        "commit": git["commit"],
        "uncommitted_changes": git["dirty"],
        "hardware": f"{machine['cpu_cores']} cores of {machine['processor']}",
        "threads": machine["torch_threads"],
        "python": machine["python"],
        "packages": machine["packages"],
        "data": "simulated by nufm" if report["simulated"] else "PILArNet-M",
        "seed": yaml.safe_load((run / "config.yaml").read_text())["seed_everything"],
        "steps": export.extra["steps"],
        "encoder_parameters": sum(p.numel() for p in export.encoder.parameters()),
        "training_events_per_s_median": statistics.median(float(row["events_per_s"]) for row in rows),
        "seconds_from_run_folder_to_report": (run / "report.json").stat().st_mtime - started,
        **report,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown(report))
    for picture in PICTURES:  # those that the method has
        if (run / "pictures" / picture).is_file():
            shutil.copy(run / "pictures" / picture, RESULTS / f"{name}_{picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
