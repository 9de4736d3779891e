"""Where a benchmark's numbers come from: commit, hardware, versions. Written beside every result."""

from __future__ import annotations

import json
from pathlib import Path

from nufm.running.folder import environment, git_state

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parents[1]


def provenance() -> dict:
    """Commit of the code, processor, cores, GPUs and versions."""
    git, _ = git_state(REPOSITORY)
    here = environment()
    keys = ("started", "python", "processor", "cpu_cores", "torch_threads", "gpus", "packages")
    return {"commit": git["commit"], "dirty": git.get("dirty"), **{k: here[k] for k in keys}}


def write_result(name: str, result: dict, table: str) -> None:
    """``results/NAME.json`` with provenance, and ``results/NAME.md`` with the table."""
    RESULTS.mkdir(exist_ok=True)
    content = {"provenance": provenance(), **result}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table)
