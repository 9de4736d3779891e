"""Every Triton kernel compiles for GPUs that are not here; none needs one to be read."""

import os
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

import nufm.ops.backends.triton as package
from nufm.ops.backends.triton import aot

# What the final code must name: plain sm_90 or with the architecture's own features (sm_90a).
NAMES = {"sm_80": r"sm_80", "sm_90": r"sm_90a?", "sm_100": r"sm_100[af]?", "gfx942": r"gfx942"}
MODULES = [
    entry.name
    for entry in pkgutil.iter_modules(package.__path__)
    if "def specimens(" in (Path(package.__path__[0]) / f"{entry.name}.py").read_text()
]


def python(tmp_path, *arguments):
    """Run without a GPU in sight and with the interpreter off: Triton decides at import."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], env=environment, capture_output=True, text=True, timeout=3600
    )


def test_the_modules_with_kernels_are_found():
    assert {"segments", "curves", "neighbors"} <= set(MODULES) == set(aot.modules())


@pytest.mark.parametrize(
    "module", [m if m == "curves" else pytest.param(m, marks=pytest.mark.slow) for m in MODULES]
)
def test_every_kernel_compiles_for_every_target(module, tmp_path):
    result = python(tmp_path, "-m", package.__name__, "--module", module)
    rows = [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]
    failed = [row for row in rows if row[2].startswith("FAILED")]
    assert result.returncode == 0 and not failed, f"{failed[:5]} {result.stderr[-2000:]}"
    assert len(rows) == len(aot.TARGETS) * len(aot.modules()[module].specimens())
    skipped = set()
    for target, specimen, state, _ in rows:
        if state.startswith("skipped"):
            skipped.add(f"{target} {state}")
        else:
            assert re.fullmatch(f"ok {NAMES[target]}", state), f"{specimen} for {target}: {state}"
    if skipped:
        assert aot.VERSION < (3, 3) or all("linker" in reason for reason in skipped), skipped
        pytest.skip("; ".join(sorted(skipped)))


def test_a_kernel_that_does_not_compile_fails_the_command(tmp_path):
    """A specimen with a pointer where an integer belongs."""
    broken = (
        "import sys, dataclasses\n"
        "from nufm.ops.backends.triton import aot, curves\n"
        "good = curves.specimens()[0]\n"
        "bad = dataclasses.replace(good, signature={**good.signature, 'depth': '*i32'})\n"
        "curves.specimens = lambda: [bad]\n"
        "sys.exit(aot.main(['--module', 'curves', '--target', 'sm_80']))\n"
    )
    result = python(tmp_path, "-c", broken)
    assert result.returncode == 1 and "FAILED" in result.stdout and "1 failed" in result.stdout


def test_nothing_is_compiled_under_the_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert aot.main([]) == 1
    assert "unset" in capsys.readouterr().err


def test_importing_the_kernels_needs_no_gpu(tmp_path):
    listing = (
        "import torch\n"
        "from nufm.ops.backends.triton import IMPLEMENTATIONS, aot, unavailable\n"
        "assert not torch.cuda.is_available()\n"
        "assert all(m.specimens() for m in aot.modules().values())\n"
        "print(unavailable())\n"
        "print(*sorted(IMPLEMENTATIONS))\n"
    )
    result = python(tmp_path, "-c", listing)
    assert result.returncode == 0, result.stderr
    assert "no GPU" in result.stdout and "segment_sum" in result.stdout


def test_every_kernel_has_a_specimen():
    """Kernels that others call are compiled with those."""
    jitted = {}
    for entry in pkgutil.iter_modules(package.__path__):
        if entry.name not in ("__main__", "device"):  # the one of device.py is never launched
            module = import_module(f"{package.__name__}.{entry.name}")
            jitted |= {name: obj for name, obj in vars(module).items() if is_jitted(obj)}
    called = {name: function(obj).__code__.co_names for name, obj in jitted.items()}
    helpers = {name for name in jitted for other, names in called.items() if other != name and name in names}
    specimens = {name: module.specimens() for name, module in aot.modules().items()}
    assert all(specimens.values())
    covered = {function(s.kernel).__name__ for found in specimens.values() for s in found}
    assert covered | helpers == set(jitted)


def is_jitted(obj):
    return type(obj).__name__ in ("JITFunction", "InterpretedFunction", "Autotuner", "Heuristics")


def function(obj):
    """The Python function under the decorators."""
    while hasattr(obj, "fn"):
        obj = obj.fn
    return obj

