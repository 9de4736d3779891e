"""The performance targets in one table, from the results of the three benchmarks of speed; nothing is measured here.

    python benchmarks/performance.py      # after ops.py, sparse_resnet.py and pretrain_step.py, on a CPU, a GPU or both

A target that a result of a GPU and one of a CPU both tell of takes the GPU's.
"""

from __future__ import annotations

import json

import pretrain_step
import sparse_resnet
from measure import table
from op_report import targets as op_targets
from record import RESULTS

SOURCES = {"ops": op_targets, "sparse_resnet": sparse_resnet.targets, "pretrain_step": pretrain_step.targets}
HEAD = ("where", "what", "target", "found", "state")


def merged(reports: dict[tuple[str, str], dict]) -> list[list[str]]:
    """Rows of all targets: for each the first report of ``reports`` (by script and device) that has measured it."""
    rows = []
    for name, targets in SOURCES.items():
        found = [targets(report) for (script, _), report in reports.items() if script == name]
        for candidates in zip(*found, strict=True):
            rows.append(next((row for row in candidates if row[-1] != "not measured"), candidates[0]))
    return sorted(rows, key=lambda row: ("CPU", "any", "GPU").index(row[0]))


def origin(name: str, device: str, report: dict) -> str:
    """Where one report was measured."""
    file = f"{name}_cpu.md" if device == "cpu" else f"{name}.md"
    rate = f"{report['machine']['flop_per_s'] / 1e9:,.0f} GFLOP/s at its start"
    commit = report["commit"][:7]
    where = f"{report['hardware']}, {rate}, seed {report['seed']}, commit {commit}"
    return f"[{name}.py](benchmarks/results/{file}): {where}"


def main() -> None:
    paths = {("cuda", name): RESULTS / f"{name}.json" for name in SOURCES}
    paths |= {("cpu", name): RESULTS / f"{name}_cpu.json" for name in SOURCES}
    reports = {(name, device): json.loads(path.read_text()) for (device, name), path in paths.items() if path.exists()}
    if not reports:
        raise SystemExit(f"no results in {RESULTS}; run ops.py, sparse_resnet.py and pretrain_step.py first")
    rows = merged(reports)
    text = "\n".join(table(HEAD, rows))
    origins = "; ".join(origin(name, device, report) for (name, device), report in reports.items())
    (RESULTS / "performance.md").write_text(f"{text}\n\nEvents are simulated by nufm but the genuine one. {origins}.\n")
    first = next(iter(reports.values()))
    content = {key: first[key] for key in ("commit", "hardware", "seed", "data")}
    content |= {"commits": {f"{name} ({device})": report["commit"] for (name, device), report in reports.items()}}
    content |= {"targets": rows}
    (RESULTS / "performance.json").write_text(json.dumps(content, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
