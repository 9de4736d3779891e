"""The table and pictures in the README, taken from a finished default run.

    python scripts/pretrain.py && python benchmarks/tiny_panda.py runs/tiny-panda/<time>
"""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import sys
from datetime import datetime
from pathlib import Path

from record import RESULTS

from nufm.checkpoint import from_pretrained
from nufm.report import markdown


def main(run: Path) -> None:
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
        "data": "simulated by nufm",
        "seed": 0,
        "steps": export.extra["steps"],
        "encoder_parameters": sum(p.numel() for p in export.encoder.parameters()),
        "training_events_per_s_median": statistics.median(float(row["events_per_s"]) for row in rows),
        "seconds_from_run_folder_to_report": (run / "report.json").stat().st_mtime - started,
        **report,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tiny_panda.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "tiny_panda.md").write_text(markdown(report))
    for picture in ("features.png", "event.png", "training.png"):
        shutil.copy(run / "pictures" / picture, RESULTS / f"tiny_panda_{picture}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
