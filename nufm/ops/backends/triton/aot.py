"""Compiling kernels for GPUs that are not there."""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Specimen:
    """A kernel with the types of its arguments.

    Attributes:
        kernel: the ``@triton.jit`` function.
        signature: type of each argument in order: ``*fp32``, ``*bf16``, ``*i64``, ``i32``, ``fp32``; constexprs are
            left out.
        constexprs: value of each ``tl.constexpr`` argument.
        options: ``num_warps``, ``num_stages``.
    """

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        types = ",".join(sorted(set(self.signature.values())))
        return f"{self.kernel.__name__}({types}; {self.constexprs})"


def compile_for(specimen: Specimen, target: str) -> dict[str, Any]:
    """Compile for one of :data:`TARGETS`; returns the intermediate and final code by name (``ptx``, ``hsaco`` ...)."""
    signature = {**specimen.signature, **{name: "constexpr" for name in specimen.constexprs}}
    order = specimen.kernel.arg_names
    source = ASTSource(
        fn=specimen.kernel,
        signature={name: signature[name] for name in order},
        constexprs={(order.index(name),): value for name, value in specimen.constexprs.items()},
    )
    return triton.compile(source, target=TARGETS[target], options=specimen.options).asm
