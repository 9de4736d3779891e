"""Simulated particles in scintillator cubes as stream files of the whole volume (``nufm/data/stream_files.py``).

Event ``index`` of stream ``stream`` (train 0, val 1, test 2) has its own random stream, so that a file does not depend
on the number of workers, and splits share no event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from nufm.simulation import dataset
from nufm.simulation.dataset import PRODUCER
from nufm.simulation.fasercal.writer import write_events
from nufm.simulation.progress import SimulationProgress
from nufm.simulation.superfgd.event import DETECTOR, SuperFGDSpec, simulate_event
from nufm.simulation.workers import in_order

_HERE = "nufm.simulation.superfgd.dataset"


def simulate_record(spec: SuperFGDSpec, seed: int, stream: int, index: int) -> dict[str, object]:
    """The event as a record of a stream file."""
    return simulate_event(spec, seed, stream, index).record()


def simulate_records(
    spec: SuperFGDSpec, seed: int, stream: int, indices: Sequence[int], workers: int | None = None
) -> Iterator[dict[str, object]]:
    """The events ``indices`` of a stream, in order, by ``workers`` processes (None: one per core); closing the
    generator ends them early."""
    return in_order(f"{_HERE}:simulate_record", (spec, seed, stream), indices, workers)


def attributes(spec: SuperFGDSpec, seed: int, stream: int, first: int) -> dict[str, object]:
    """What a file of simulated events says of itself."""
    return {
        "detector": DETECTOR,
        "producer": PRODUCER,
        "version": simulation_version(),
        "spec": spec.to_json(),
        "seed": seed,
        "stream": stream,
        "first": first,
    }


def simulate_file(
    path: str | Path,
    n_events: int,
    seed: int = 0,
    workers: int | None = None,
    spec: SuperFGDSpec | None = None,
    stream: int = 0,
    first: int = 0,
    progress: SimulationProgress | None = None,
    overwrite: bool = False,
) -> Path:
    """Simulate events into one file; the file appears when it is complete, or not at all.

    Args:
        path: an HDF5 file (.h5 or .hdf5); its folder is made.
        n_events: how many; classes take turns.
        seed: of the simulation, >= 0.
        workers: processes; None = one per core. The file's content is the same for any number.
        spec: what to simulate; None = the default.
        stream: of random numbers, see the head of this file.
        first: index of the first event in the stream.
        progress: shows events per second and the time left; None = silent.
        overwrite: replace an existing file.

    Raises:
        ValueError: an argument that cannot be meant.
        FileExistsError: the file is there, and ``overwrite`` is not set.
    """
    spec = spec or SuperFGDSpec()
    for name, value, least in (("events", n_events, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    records = simulate_records(spec, seed, stream, range(first, first + n_events), workers)
    try:
        return write_events(path, records, attributes(spec, seed, stream, first), progress, overwrite)
    finally:
        records.close()


def simulation_version() -> str:
    """Digest of the source files that decide what events look like: the transport's and this package's."""
    digest = hashlib.sha256(dataset.simulation_version().encode())
    digest.update((Path(__file__).parent / "event.py").read_bytes())
    return digest.hexdigest()[:12]
