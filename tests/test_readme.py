"""What the README says is so: its commands, paths and links exist, its numbers come from
benchmarks/results.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from nufm.commands.finetune import FinetuneCLI
from nufm.commands.pretrain import PretrainCLI

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
RESULTS = REPOSITORY / "benchmarks" / "results"

INSTALL_AND_RUN = "python -m pip install -e . && python scripts/pretrain.py"
INSTALL_AND_TEST = 'python -m pip install -e ".[dev]" && python -m pytest'

# A table or a paragraph of numbers is copied from a generated file, which the comment before it names:
#     <!-- benchmarks/results/NAME.md -->
#     | … |
#     <!-- end -->
COPIED = re.compile(r"<!-- (benchmarks/results/[\w./-]+) -->\n(.*?)\n<!-- end -->", re.S)


def fenced() -> list[str]:
    """Lines inside fenced blocks."""
    return [
        line
        for block in re.findall(r"^```\w*\n(.*?)^```", README, re.M | re.S)
        for line in block.splitlines()
    ]


@pytest.mark.parametrize("command", [INSTALL_AND_RUN, INSTALL_AND_TEST])
def test_the_two_commands_stand_alone(command):
    assert fenced().count(command) == 1


def test_ci_runs_the_readme_test_command():
    script = (REPOSITORY / ".ci" / "run").read_text()
    for part in INSTALL_AND_TEST.split(" && "):
        assert part in script, f".ci/run does not run {part!r}"
    assert "ruff check" in script


def test_scripts_configs_and_folders_exist():
    found = set(re.findall(r"\b((?:scripts|configs|nufm|benchmarks|tests)/[\w./-]+)", README))
    assert {"scripts/pretrain.py", "configs/pretrain/panda.yaml"} <= found
    missing = [path for path in found if not (REPOSITORY / path.rstrip(".")).exists()]
    assert not missing, f"README names {sorted(missing)}"


@pytest.mark.parametrize(("script", "cli", "least"), [("pretrain", PretrainCLI, 2), ("finetune", FinetuneCLI, 4)])
def test_commands_of_runs_parse(monkeypatch, script, cli, least):
    """Every command of a run that names no file of the reader's own."""
    monkeypatch.chdir(REPOSITORY)
    commands = [
        line.split("#")[0].split("&&")[-1].strip() for line in fenced() if f"scripts/{script}.py" in line
    ]
    tried = 0
    for command in commands:
        words = [w for w in shlex.split(command.replace("\\", "")) if w != "srun"]
        flags = words[words.index(f"scripts/{script}.py") + 1 :]
        if "--ckpt_path" in flags or any(w.startswith(("<", "$", "runs/")) for w in flags):
            continue
        cli(flags, build=False)
        tried += 1
    assert tried >= least


def test_links_inside_resolve():
    headings = {
        _anchor(h) for h in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", README, flags=re.S), re.M)
    }
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", README):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        if path:
            assert (REPOSITORY / path).exists(), f"[{text}]({target}) leads nowhere"
        else:
            assert anchor in headings, f"[{text}]({target}) names no heading"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pictures_exist():
    for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"", README):
        path = target[0] or target[1]
        if not path.startswith("http"):
            assert (REPOSITORY / path).is_file(), path


def test_numbers_are_those_of_the_results():
    copies = COPIED.findall(README)
    assert copies, "the README shows no measured numbers"
    for name, text in copies:
        path = REPOSITORY / name
        assert path.is_file(), f"README copies {name}, which is not there"
        assert text.strip() == path.read_text().strip(), f"README differs from {name}: copy it again"


def test_no_measured_table_without_a_source():
    """A table row with a measured number (one with decimals, or ±) belongs to a generated table."""
    rest = COPIED.sub("", README)
    rows = [line for line in rest.splitlines() if line.startswith("|") and re.search(r"\d\.\d|±", line)]
    rows = [
        row for row in rows if not re.search(r"published|3\.1\d", row)
    ]  # versions of Python; others' numbers
    assert not rows, f"numbers without a source: {rows}"


def test_results_say_where_they_come_from():
    files = sorted(RESULTS.glob("*.json"))
    assert files, "benchmarks/results holds no results"
    for path in files:
        content = json.loads(path.read_text())
        missing = {"commit", "hardware", "seed", "data"} - set(content)
        assert not missing, f"{path.name} does not say its {sorted(missing)}"
        data = content["data"]
        assert data in ("simulated by nufm", "PILArNet-M") or data.startswith("genuine"), (
            f"{path.name}: data is {data!r}; say 'simulated by nufm', 'PILArNet-M' or 'genuine …'"
        )
