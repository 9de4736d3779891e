"""Compiling kernels for GPUs that are not there: ``python -m nufm.ops.backends.triton --help``."""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# NVIDIA compute capabilities 8.0 (A100), 9.0 (H100, H200), 10.0 (B200) and AMD gfx942 (MI300).
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


@dataclass(frozen=True)
class Specimen:
    """A kernel with the types of its arguments.

    Attributes:
        kernel: the ``@triton.jit`` function.
        signature: type of each argument in order: ``*fp32``, ``*bf16``, ``*i64``, ``i32``, ``fp32``; constexprs are
            left out.
        constexprs: value of each ``tl.constexpr`` argument (and None for pointers that a call leaves out).
        options: ``num_warps``, ``num_stages``.
        attrs: argument -> what Triton may assume of it, in place of the default: that pointers are multiples of 16
            bytes, as those of torch are, and integers anything.
    """

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)
    attrs: dict[str, list] = field(default_factory=dict)

    @property
    def name(self) -> str:
        types = ",".join(sorted(set(self.signature.values())))
        return f"{self.kernel.__name__}({types}; {self.constexprs})"


def compile_for(specimen: Specimen, target: str) -> dict[str, Any]:
    """Compile for one of :data:`TARGETS`; returns the intermediate and final code by name (``ptx``, ``hsaco`` ...)."""
    order = specimen.kernel.arg_names
    if VERSION < (3, 3):  # without alignments, which Triton 3.2 describes in a class of its own
        types = {name: specimen.signature[name] for name in order if name in specimen.signature}
        source = ASTSource(specimen.kernel, types, specimen.constexprs)
        return triton.compile(source, target=TARGETS[target], options=specimen.options).asm
    signature = {**specimen.signature, **{name: "constexpr" for name in specimen.constexprs}}
    aligned = {name: [["tt.divisibility", 16]] for name, kind in specimen.signature.items() if kind.startswith("*")}
    source = ASTSource(
        fn=specimen.kernel,
        signature={name: signature[name] for name in order},
        constexprs={(order.index(name),): value for name, value in specimen.constexprs.items()},
        attrs={(order.index(name),): value for name, value in {**aligned, **specimen.attrs}.items()},
    )
    return triton.compile(source, target=TARGETS[target], options=specimen.options).asm


def modules() -> dict[str, ModuleType]:
    """Name -> module of this package, for those that have kernels to compile."""
    package = __name__.rpartition(".")[0]
    found = {}
    for entry in pkgutil.iter_modules(import_module(package).__path__):
        if entry.name != "__main__":
            module = import_module(f"{package}.{entry.name}")
            if hasattr(module, "specimens"):
                found[entry.name] = module
    return found


def emitted_for(asm: dict[str, Any]) -> str:
    """The GPU that compiled code names itself: ``sm_90a``, ``gfx942``."""
    if "ptx" in asm:
        return re.search(r"^\.target (\w+)", asm["ptx"], re.MULTILINE)[1]
    return re.search(r'^\s*\.amdgcn_target ".*?(gfx\w+)', asm["amdgcn"], re.MULTILINE)[1]


def unknown(target: str) -> str | None:
    """Why the installed Triton cannot compile for one of :data:`TARGETS`; None if it can."""
    if target == "sm_100" and VERSION < (3, 3):
        return "needs triton 3.3"
    backend = {"cuda": "nvidia", "hip": "amd"}[TARGETS[target].backend]
    if backend not in triton.backends.backends:
        return f"this build of triton has no {backend} compiler"
    # Earlier versions call the linker of a ROCm installation, later ones bring their own.
    find_linker = getattr(triton.backends.backends[backend].compiler, "path_to_rocm_lld", None)
    try:
        if find_linker is not None:
            find_linker()
    except Exception as error:  # plain Exception is what it raises
        return str(error)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile and print a line per kernel and target; returns 1 if any failed."""
    parser = argparse.ArgumentParser(
        prog="python -m nufm.ops.backends.triton", description="Compile every Triton kernel ahead of time."
    )
    parser.add_argument("--module", help="only this module of the package")
    parser.add_argument("--kernel", help="only kernels whose name contains this")
    parser.add_argument("--target", choices=TARGETS, nargs="*", default=list(TARGETS), help="default: all")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("0", ""):
        print("TRITON_INTERPRET is set: there is nothing to compile; unset it", file=sys.stderr)
        return 1
    failed = 0
    selected = {name: m for name, m in modules().items() if options.module in (None, name)}
    for name, module in selected.items():
        for specimen in module.specimens():
            if options.kernel is not None and options.kernel not in specimen.kernel.__name__:
                continue
            for target in options.target:
                start = time.perf_counter()
                reason = unknown(target)
                try:
                    state = f"skipped: {reason}" if reason else f"ok {emitted_for(compile_for(specimen, target))}"
                except Exception as error:  # whatever a compiler raises is what is to be printed
                    failed += 1
                    state = f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                print(f"{target}\t{name}.{specimen.name}\t{state}\t{time.perf_counter() - start:.2f} s", flush=True)
    print(f"triton {triton.__version__}: {failed} failed" if failed else f"triton {triton.__version__}: all compiled")
    return int(failed > 0)
