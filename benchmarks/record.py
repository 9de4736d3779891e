"""Where a benchmark's numbers come from: commit, hardware, versions. Written beside every result."""

from __future__ import annotations

import json
from pathlib import Path

from nufm.running.folder import environment, git_state

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parents[1]


def provenance() -> dict:
    """Commit of the code, hardware and versions."""
    git, _ = git_state(REPOSITORY)
    here = environment()
    hardware = [f"{here['cpu_cores']} cores of {here['processor']}", *(gpu["name"] for gpu in here["gpus"])]
    return {
        "commit": git["commit"],
        "uncommitted_changes": git.get("dirty"),
        "hardware": ", ".join(hardware),
        "threads": here["torch_threads"],
        "python": here["python"],
        "packages": here["packages"],
    }


def write_result(name: str, result: dict, table: str) -> None:
    """Write ``results/NAME.json`` (with provenance; ``result`` adds ``seed`` and ``data``) and ``results/NAME.md``."""
    save(RESULTS, name, {**provenance(), **result}, table)


def save(folder: Path, name: str, report: dict, text: str) -> None:
    """Write ``folder/NAME.json`` and ``folder/NAME.md``; ``report`` has its provenance already."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
