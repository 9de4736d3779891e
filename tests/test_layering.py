"""Who may import whom: read from the sources, and, for what import brings along, from a fresh interpreter."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Part of nufm -> parts it may import, itself and the bare package included. A dotted name stands for itself
# only.
ARROWS = {
    "machine": {"machine"},  # what the machine offers; standard library only
    "data": {"data", "simulation"},  # simulation only inside functions: see LAZY
    "simulation": {"simulation", "data.cache", "data.detector", "machine"},  # both of data without torch
    "ops": {"ops"},
    "models": {"models", "ops", "data.event", "data.images", "data.prediction", "data.prompts", "data.streams"},
    "metrics": {"metrics"},
    "methods": {"methods", "models", "ops", "data", "metrics"},
    "display": {"display", "data"},
    "checkpoint": {"checkpoint", "models", "data"},
    "evaluation": {"evaluation", "models", "ops", "data", "metrics", "display", "checkpoint"},
    "report": {"report", "methods", "models", "data", "metrics", "display", "checkpoint"},
    "token_report": {"token_report", "methods", "models", "data", "checkpoint"},
    "event_report": {"event_report", "methods", "models", "data", "display", "checkpoint"},
    "running": {"running", "machine", "ops.dispatch"},
    # One command of scripts/ per file: they bring the parts together.
    "commands": {
        *("commands", "cli", "running", "methods", "report", "evaluation", "checkpoint", "models", "data", "metrics"),
        *("token_report", "event_report", "display", "ops.dispatch", "machine"),
    },
    "cli": {"cli", "running", "ops.dispatch"},
}
LAZY = {("data", "simulation")}  # allowed inside a function only: it compiles

# Compiled packages -> the only folder that may import them.
COMPILED = {"triton", "spconv", "flash_attn", "torch_scatter"}
BACKENDS = "ops.backends"

# Part -> packages that must not appear in it at all.
FORBIDDEN = {
    "machine": {"torch", "lightning", "numpy"},
    "simulation": {"torch", "lightning", "torchmetrics", "matplotlib", "plotly"},
    "ops": {"lightning", "torchmetrics", "h5py"},
    "models": {"lightning", "torchmetrics", "h5py"},
    "display": {"lightning"},
    "data": {"matplotlib", "plotly"},
}
DRAWING = {"matplotlib", "plotly"}  # in display only

# Packages that a declared dependency requires itself.
COMES_WITH = {
    **{"yaml": "lightning", "filelock": "torch", "scipy": "scikit-learn"},
    **{"PIL": "matplotlib", "jinja2": "torch", "tokenizers": "transformers"},
}
IMPORT_NAMES = {"scikit-learn": "sklearn", "huggingface-hub": "huggingface_hub"}


@dataclass(frozen=True)
class Import:
    """``name`` is imported by the file of module ``by``; ``top`` unless inside a function or
    TYPE_CHECKING.
    """

    by: str
    name: str
    top: bool


def imports(source: str, module: str) -> list[Import]:
    found = []

    def walk(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x
                package = module.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            found.append(Import(module, base, top))
            # "from nufm import data" names a module too
            found.extend(Import(module, f"{base}.{a.name}", top) for a in node.names if base == "nufm")
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            walk(child, top and not inside and not typing_only)

    walk(ast.parse(source), True)
    return found


def violations(source: str, module: str, declared: set[str]) -> list[str]:
    """What a file of nufm must not import, in words."""
    part = module.removeprefix("nufm.").split(".")[0] if module != "nufm" else "nufm"
    bad = []
    for item in imports(source, module):
        root = item.name.split(".")[0]
        if root == "nufm":
            target = item.name.removeprefix("nufm").lstrip(".")
            if part == "nufm":
                if item.top:
                    bad.append(f"nufm/__init__.py imports {item.name} at its top: importing nufm must stay light")
            elif target and part not in ARROWS:
                bad.append(f"{module}: part '{part}' of nufm has no place in the layering yet")
            elif target and not any(target == a or target.startswith(a + ".") for a in ARROWS[part]):
                bad.append(f"{module} imports {item.name}: {part} may import {sorted(ARROWS[part])}")
            elif item.top and (part, target.split(".")[0]) in LAZY:
                bad.append(f"{module} imports {item.name} at its top: only inside a function")
        elif root in COMPILED:
            if not module.startswith(f"nufm.{BACKENDS}"):
                bad.append(f"{module} imports {root}: only nufm/ops/backends may")
            elif item.top and module == f"nufm.{BACKENDS}":
                bad.append(f"{module} imports {root} at its top: it must import without it")
        elif root in FORBIDDEN.get(part, ()):
            bad.append(f"{module} imports {root}: not in {part}")
        elif root in DRAWING and part != "display":
            bad.append(f"{module} imports {root}: only display draws")
        elif root not in sys.stdlib_module_names and root not in declared and root != "__future__":
            bad.append(f"{module} imports {root}: not among the dependencies in pyproject.toml")
    return bad


def declared_packages() -> set[str]:
    """Import names of the core dependencies (not of the extras)."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S).group(1)
    names = {
        re.split(r"[\[><=; ]", line.strip().strip('",'))[0] for line in block.splitlines() if line.strip()
    }
    found = {IMPORT_NAMES.get(name, name) for name in names}
    return found | {name for name, by in COMES_WITH.items() if by in names}


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_forbidden_arrow():
    files = sorted((REPOSITORY / "nufm").rglob("*.py"))
    assert len(files) > 20
    declared = declared_packages()
    bad = [v for f in files for v in violations(f.read_text(), module_of(f), declared)]
    assert not bad, "\n".join(bad)


def test_nothing_imports_upwards_from_outside():
    """nufm imports neither scripts nor benchmarks nor tests; scripts only start what nufm offers."""
    outside = {"scripts", "benchmarks", "tests"}
    for path in (REPOSITORY / "nufm").rglob("*.py"):
        names = {i.name.split(".")[0] for i in imports(path.read_text(), module_of(path))}
        assert not names & outside, path
    for path in (REPOSITORY / "scripts").glob("*.py"):
        source = path.read_text()
        assert len(source.splitlines()) <= 20, (
            f"{path.name}: a script holds one call; the rest belongs in nufm"
        )
        compiled = {i.name.split(".")[0] for i in imports(source, path.stem)} & (
            COMPILED | {"torch", "lightning"}
        )
        assert not compiled, f"{path.name} imports {compiled}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nufm.data.reader", "from nufm.models.ptv3 import PointTransformerV3"),
        ("nufm.data.reader", "def f():\n    import nufm.models"),
        ("nufm.data.reader", "from nufm.simulation.dataset import ensure_dataset"),
        ("nufm.models.ptv3", "from nufm.data.transforms import Compose"),
        ("nufm.models.ptv3", "from ..methods import self_distillation"),
        ("nufm.models.ptv3", "from nufm import methods"),
        ("nufm.ops.pool", "from nufm.data.event import PointBatch"),
        ("nufm.ops.pool", "import spconv.pytorch"),
        ("nufm.ops.pool", "try:\n    import flash_attn\nexcept ImportError:\n    pass"),
        ("nufm.simulation.transport", "import torch"),
        ("nufm.simulation.dataset", "from nufm.data.event import Event"),
        ("nufm.methods.mae", "from nufm.cli import RunCLI"),
        ("nufm.methods.mae", "import matplotlib.pyplot as plt"),
        ("nufm.methods.mae", "import MinkowskiEngine"),
        ("nufm.running.folder", "from nufm.data.event import PointBatch"),
        ("nufm", "from nufm.data.event import Event"),
        ("nufm.utils", "from nufm.data.event import Event"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert violations(source, module, declared_packages()), f"{module}: {source!r} passed"


def test_allowed_imports_pass():
    allowed = {
        "nufm.models.ptv3": "from nufm.data.event import PointBatch\nfrom nufm.ops import pool\nimport torch",
        "nufm.ops.backends.attention": "import flash_attn",
        "nufm.data.datamodule": "def f():\n    from nufm.simulation.dataset import ensure_dataset",
        "nufm.cli": "from nufm.running.folder import config_name",
        "nufm": "def from_pretrained():\n    from nufm.checkpoint import from_pretrained",
        "nufm.commands.pretrain": "from nufm.report import write_report",
    }
    for module, source in allowed.items():
        assert violations(source, module, declared_packages()) == []


def fresh_import(statement: str) -> dict:
    """What importing brings along in a new interpreter: seconds beyond torch, and the packages loaded."""
    code = (
        "import json, sys, time\nimport torch\nstart = time.process_time()\n"
        f"{statement}\n"
        "seconds = time.process_time() - start\n"
        "print(json.dumps({'seconds': seconds, 'packages': sorted({m.split('.')[0] for m in sys.modules})}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_nufm_is_light():
    brought = fresh_import("import nufm")
    assert brought["seconds"] < 1.0
    assert not {"lightning", "numba", "matplotlib", "h5py", *COMPILED} & set(brought["packages"])


def test_encoders_need_no_trainer():
    """Using an encoder brings neither Lightning nor Numba nor the drawing libraries."""
    brought = fresh_import("import nufm.models.ptv3")
    assert brought["seconds"] < 1.0
    assert not {"lightning", "numba", "matplotlib", "plotly", *COMPILED} & set(brought["packages"])


def test_simulation_needs_no_torch():
    code = "import sys, nufm.simulation.dataset; assert 'torch' not in sys.modules; print('light')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "light", done.stderr
