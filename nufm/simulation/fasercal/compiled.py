"""Compilation of this package's inner loops."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nufm.simulation.compiled import compiler

FILES = ("compiled", "deposits", "geometry", "material", "profiles", "readout", "showers", "../rng")

compiled = compiler("fasercal", Path(__file__).parent, FILES)
entry = partial(compiled, entry=True)  # a compiled function that Python calls
