"""Simulated FASERCal events as stream files, and as a data set in the user's cache.

The files have the layout of ``nufm/data/stream_files.py``. Event ``index`` of stream ``stream`` (train 0, val 1,
test 2) has its own random stream, SeedSequence(seed, (stream, index, attempt)): a file does not depend on the number of
workers, and splits share no event. Events with fewer than 20 voxels that are no ghosts are drawn again, as in the
published data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from nufm.data.detector import FOLDER
from nufm.simulation.dataset import PRODUCER, ensure_splits, fill_splits
from nufm.simulation.fasercal.deposits import Deposits, make_deposits
from nufm.simulation.fasercal.generator import Beam, generate
from nufm.simulation.fasercal.geometry import CAL3D, world_of
from nufm.simulation.fasercal.readout import Readout
from nufm.simulation.fasercal.truth import Simulated, detect, event_arrays, event_record
from nufm.simulation.fasercal.writer import write_events
from nufm.simulation.progress import SimulationProgress
from nufm.simulation.workers import in_order

_ATTEMPTS = 1000
_HERE = "nufm.simulation.fasercal.dataset"


@dataclass(frozen=True)
class FASERCalSpec:
    """Everything but the seed that decides what events look like.

    Attributes:
        detector: a file of ``nufm/data/detectors`` with the streams cal3d, ecal, ahcal and muon.
        beam: neutrinos and their interactions.
        readout: thresholds and the three views.
        min_voxels: events with fewer voxels that are no ghosts are drawn again; 0 keeps all.
    """

    detector: str = "fasercal"
    beam: Beam = field(default_factory=Beam)
    readout: Readout = field(default_factory=Readout)
    min_voxels: int = 20

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@lru_cache(maxsize=1)
def _work_space(detector: str) -> Deposits:
    return make_deposits(world_of(detector))


def simulate(spec: FASERCalSpec, seed: int, stream: int, index: int) -> Simulated:
    """One event; the same arguments give the same event, anywhere.

    Raises:
        ValueError: 1000 draws in a row gave fewer than ``min_voxels`` voxels.
    """
    world = world_of(spec.detector)
    inside = world.kind == CAL3D
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, index, attempt)))
        interaction = generate(spec.beam, world.low[inside], world.high[inside], rng)
        event = detect(interaction, world, _work_space(spec.detector), spec.detector, spec.readout, rng)
        real = int((event.ghost != 1).sum())
        if real >= spec.min_voxels:
            return event
    raise ValueError(
        f"event {index}: {_ATTEMPTS} draws in a row had fewer than min_voxels = {spec.min_voxels} voxels that are no "
        f"ghosts (the last one {real}); lower min_voxels"
    )


def simulate_event(spec: FASERCalSpec, seed: int, stream: int, index: int) -> dict[str, np.ndarray]:
    """The event with the fields of the public per-event files, see :func:`nufm.simulation.fasercal.truth.event_record`.
    """
    return event_record(simulate(spec, seed, stream, index), stream, index, spec.detector)


def simulate_arrays(spec: FASERCalSpec, seed: int, stream: int, index: int) -> dict[str, np.ndarray]:
    """The event as a record of a stream file (a small part of what ``simulate_event`` gives: no list of deposits)."""
    return event_arrays(simulate(spec, seed, stream, index))


# ---------------------------------------------------------------------- files


def simulate_file(
    path: str | Path,
    n_events: int,
    seed: int = 0,
    workers: int | None = None,
    spec: FASERCalSpec | None = None,
    stream: int = 0,
    first: int = 0,
    progress: SimulationProgress | None = None,
    overwrite: bool = False,
) -> Path:
    """Simulate events into one file; the file appears when it is complete, or not at all.

    Args:
        path: an HDF5 file (.h5 or .hdf5); its folder is made.
        n_events: how many.
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
    spec = spec or FASERCalSpec()
    for name, value, least in (("events", n_events, 1), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    attributes = {
        "detector": spec.detector,
        "producer": PRODUCER,
        "version": simulation_version(spec.detector),
        "spec": spec.to_json(),
        "seed": seed,
        "stream": stream,
        "first": first,
    }
    events = in_order(f"{_HERE}:simulate_arrays", (spec, seed, stream), range(first, first + n_events), workers)
    try:
        return write_events(path, events, attributes, progress, overwrite)
    finally:
        events.close()


def simulate_splits(
    folder: str | Path,
    n_events: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    spec: FASERCalSpec | None = None,
    progress: SimulationProgress | None = None,
) -> Path:
    """A data set ``folder/<split>/simulated_<number>.h5``; the folder appears when it is complete, or not at all.

    Args:
        folder: must not exist, or be empty.
        n_events: train, val, test -> number of events; a split of 0 events is left out.
        seed, workers, spec, progress: as for :func:`simulate_file`.

    Raises:
        ValueError: an unknown split, or an argument that cannot be meant.
        FileExistsError: the folder is there and not empty.
    """

    def simulate_one(path: Path, n: int, stream: int, first: int) -> None:
        simulate_file(path, n, seed, workers, spec, stream, first, progress)

    return fill_splits(folder, n_events, simulate_one, progress)


def ensure_dataset(
    n_events: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    spec: FASERCalSpec | None = None,
    show_progress: bool = True,
) -> Path:
    """The data set with these events from the cache; simulated first if it is not there.

    As :func:`nufm.simulation.dataset.ensure_dataset`: the folder's name comes from the specification, the seed, the
    numbers of events, the detector's file and the simulation's code; processes that ask at the same time wait for one.

    Args:
        n_events: train, val, test -> number of events.
        seed, workers, spec: as for :func:`simulate_file`.
        show_progress: on standard error.

    Returns:
        The folder, with ``train``, ``val`` and ``test`` in it.
    """
    spec = spec or FASERCalSpec()
    numbers = {split: int(n) for split, n in n_events.items() if n}
    key = json.dumps([spec.to_json(), seed, sorted(numbers.items()), simulation_version(spec.detector)])
    return ensure_splits(
        f"{spec.detector}-{hashlib.sha256(key.encode()).hexdigest()[:16]}",
        numbers,
        lambda folder, progress: simulate_splits(folder, numbers, seed, workers, spec, progress),
        show_progress,
    )


def simulation_version(detector: str = "fasercal") -> str:
    """Digest of the files that decide what events look like: this package's sources and the detector's description."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    sources = [p for p in here.glob("*.py") if p.stem not in ("__init__", "compiled", "writer")]
    sources += [here.parent / "rng.py", FOLDER / f"{detector}.yaml"]
    for source in sorted(sources):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
