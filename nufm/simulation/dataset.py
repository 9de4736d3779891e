"""Simulated events as files in the PILArNet-M layout, and as a data set in the user's cache.

A file is HDF5 with one row per event in each of three data sets of variable length: ``point`` (float32, 8
columns), ``cluster`` (int64, 6 columns) and ``cluster_extra`` (float32, 5 columns), whose columns
:class:`nufm.simulation.truth.Truth` describes, plus ``<file>_points.npy`` with the number of points of each
event. Its attributes say that nufm simulated it, from which specification and seed.

Event ``index`` of stream ``stream`` (train 0, val 1, test 2) has its own random stream, SeedSequence(seed,
(stream, index, attempt)): a file does not depend on the number of workers, and splits share no event.
PILArNet-M is used with at least 1024 points per event, before any energy cut. Readers apply that selection;
so that the number of events asked for is the number used, the simulation applies it too (``min_points``): an
event that is smaller is drawn again (next ``attempt``). With ``min_points=0`` every event is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from nufm.data.cache import cached, new_folder
from nufm.simulation.events import PILARNET_LIKE, Recipe, generate
from nufm.simulation.medium import LIQUID_ARGON, Medium
from nufm.simulation.progress import SimulationProgress
from nufm.simulation.transport import Settings, transport
from nufm.simulation.truth import LabelRules, Truth, make_truth
from nufm.simulation.voxels import Lattice, Recombination
from nufm.simulation.workers import in_order

STREAMS = {"train": 0, "val": 1, "test": 2}
PRODUCER = "simulated by nufm"
EVENTS_PER_FILE = 10_000
_ATTEMPTS = 1000


@dataclass(frozen=True)
class SimulationSpec:
    """Everything but the seed that decides what events look like.

    Attributes:
        recipe: the primaries.
        medium: fills the box.
        lattice: voxels; their box is the box of the transport.
        magnetic_field: tesla, uniform.
        settings: cuts and steps of the transport.
        rules: thresholds of the labels.
        recombination: for the number of electrons.
        min_points: events with fewer voxels are drawn again; 0 keeps all.
    """

    recipe: Recipe = PILARNET_LIKE
    medium: Medium = LIQUID_ARGON
    lattice: Lattice = field(default_factory=Lattice)
    magnetic_field: tuple[float, float, float] = (0.0, 0.0, 0.0)
    settings: Settings = field(default_factory=Settings)
    rules: LabelRules = field(default_factory=LabelRules)
    recombination: Recombination = field(default_factory=Recombination)
    min_points: int = 1024

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def simulate_event(spec: SimulationSpec, seed: int, stream: int, index: int) -> Truth:
    """One event; the same arguments give the same event, anywhere.

    Raises:
        ValueError: 1000 draws in a row gave fewer than ``min_points`` voxels.
    """
    high = spec.lattice.high
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, index, attempt)))
        primaries, interaction = generate(spec.recipe, high, rng)
        transported = transport(
            primaries,
            spec.medium,
            (-high, high),
            int(rng.integers(2**62)),
            spec.magnetic_field,
            spec.settings,
        )
        truth = make_truth(
            transported, interaction, spec.lattice, spec.medium.density, spec.rules, spec.recombination
        )
        if len(truth) >= spec.min_points:
            return truth
    raise ValueError(
        f"event {index}: {_ATTEMPTS} draws in a row had fewer than min_points = {spec.min_points} voxels "
        f"(the last one {len(truth)}); lower min_points, or give the recipe more particles"
    )


def simulate_file(
    path: str | Path,
    n_events: int,
    seed: int = 0,
    workers: int | None = None,
    spec: SimulationSpec | None = None,
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
        workers: processes; None = one per core. The file is the same for any number.
        spec: what to simulate; None = the PILArNet-like default.
        stream: of random numbers, see the head of this file.
        first: index of the first event in the stream.
        progress: shows events per second and the time left; None = silent.
        overwrite: replace an existing file.

    Raises:
        ValueError: an argument that cannot be meant.
        FileExistsError: the file is there, and ``overwrite`` is not set.
    """
    path, spec = Path(path).expanduser(), spec or SimulationSpec()
    if path.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"{path}: expected a name that ends in .h5 or .hdf5")
    for name, value, least in (("events", n_events, 0), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; choose another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    indices = range(first, first + n_events)
    events = in_order("nufm.simulation.dataset:simulate_event", (spec, seed, stream), indices, workers)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    counts_path = path.with_name(f"{path.stem}_points.npy")
    counts_temporary = temporary.with_name(temporary.name + ".npy")
    try:
        counts = _write(temporary, n_events, events, spec, seed, stream, first, progress)
        np.save(counts_temporary, counts)
        os.replace(counts_temporary, counts_path)
        os.replace(temporary, path)
    finally:
        events.close()
        temporary.unlink(missing_ok=True)
        counts_temporary.unlink(missing_ok=True)
    return path


def _write(
    path: Path,
    n_events: int,
    events: Iterator[Truth],
    spec: SimulationSpec,
    seed: int,
    stream: int,
    first: int,
    progress: SimulationProgress | None,
) -> np.ndarray:
    """Writes the events as they come; returns int64 (n_events,) points of each."""
    counts = np.zeros(n_events, dtype=np.int64)
    with h5py.File(
        path, "w", libver="latest"
    ) as file:  # so that readers may open it in SWMR mode, as published
        file.attrs["producer"] = PRODUCER
        file.attrs["version"] = simulation_version()
        file.attrs["spec"] = spec.to_json()
        file.attrs["seed"] = seed
        file.attrs["stream"] = stream
        file.attrs["first"] = first
        point = file.create_dataset("point", (n_events,), dtype=h5py.vlen_dtype(np.float32))
        cluster = file.create_dataset("cluster", (n_events,), dtype=h5py.vlen_dtype(np.int64))
        extra = file.create_dataset("cluster_extra", (n_events,), dtype=h5py.vlen_dtype(np.float32))
        for i, truth in enumerate(events):
            point[i] = truth.point.ravel()
            cluster[i] = truth.cluster.ravel()
            extra[i] = truth.cluster_extra.ravel()
            counts[i] = len(truth)
            if progress is not None:
                progress.advance()
    return counts


def simulate_splits(
    folder: str | Path,
    n_events: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    spec: SimulationSpec | None = None,
    progress: SimulationProgress | None = None,
) -> Path:
    """A data set ``folder/<split>/simulated_<number>.h5``; the folder appears when it is complete, or not at
    all.

    Args:
        folder: must not exist, or be empty.
        n_events: train, val, test -> number of events; a split of 0 events is left out.
        seed, workers, spec, progress: as for :func:`simulate_file`.

    Raises:
        ValueError: an unknown split, or an argument that cannot be meant.
        FileExistsError: the folder is there and not empty.
    """

    def simulate(path: Path, n: int, stream: int, first: int) -> None:
        simulate_file(path, n, seed, workers, spec, stream, first, progress)

    return fill_splits(folder, n_events, simulate, progress)


def fill_splits(
    folder: str | Path,
    n_events: Mapping[str, int],
    simulate: Callable[[Path, int, int, int], object],
    progress: SimulationProgress | None = None,
) -> Path:
    """What data sets of all detectors share: splits, each in files of at most ``EVENTS_PER_FILE`` events.

    Args:
        folder, n_events, progress: as for :func:`simulate_splits`.
        simulate: makes a file: path, number of events, stream of the split, index of its first event.
    """
    if unknown := set(n_events) - set(STREAMS):
        raise ValueError(f"unknown split {sorted(unknown)}, expected some of {', '.join(STREAMS)}")
    if not any(n_events.values()) or any(n < 0 for n in n_events.values()):
        raise ValueError(f"events per split are {dict(n_events)}, expected numbers >= 0 and at least one event")
    with new_folder(folder) as temporary:
        for split, total in n_events.items():
            for number, first in enumerate(range(0, total, EVENTS_PER_FILE)):
                if progress is not None:
                    progress.describe(f"simulating {split}")
                path = temporary / split / f"simulated_{number:05d}.h5"
                simulate(path, min(EVENTS_PER_FILE, total - first), STREAMS[split], first)
    return Path(folder).expanduser()


def ensure_dataset(
    n_events: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    spec: SimulationSpec | None = None,
    show_progress: bool = True,
) -> Path:
    """The data set with these events from the cache; simulated first if it is not there.

    The cache is ``$NUFM_CACHE`` or the user's cache folder (:func:`nufm.data.cache.cache_folder`); the
    folder's name comes from the specification, the seed, the numbers of events and the simulation's code, so
    a change of any of these is another data set. Processes that ask at the same time wait for the one that
    simulates. A folder is complete or absent.

    Args:
        n_events: train, val, test -> number of events.
        seed, workers, spec: as for :func:`simulate_file`.
        show_progress: on standard error.

    Returns:
        The folder, with ``train``, ``val`` and ``test`` in it.
    """
    spec = spec or SimulationSpec()
    numbers = {split: int(n) for split, n in n_events.items() if n}
    key = json.dumps([spec.to_json(), seed, sorted(numbers.items()), simulation_version()])
    return ensure_splits(
        hashlib.sha256(key.encode()).hexdigest()[:16],
        numbers,
        lambda folder, progress: simulate_splits(folder, numbers, seed, workers, spec, progress),
        show_progress,
    )


def ensure_splits(
    name: str,
    numbers: Mapping[str, int],
    simulate: Callable[[Path, SimulationProgress | None], object],
    show_progress: bool,
) -> Path:
    """The data set of a name from the cache; ``simulate(folder, progress)`` makes it first if it is not there."""

    def make(folder: Path) -> None:
        progress = SimulationProgress(sum(numbers.values())) if show_progress else None
        try:
            if progress is not None:
                progress.start(f"simulating into {folder}")
            simulate(folder, progress)
        finally:
            if progress is not None:
                progress.stop()

    return cached(name, make)


def simulation_version() -> str:
    """Digest of the source files that decide what events look like.

    A change of the code is a change of the events, and nobody has to remember to raise a number.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        if source.stem not in ("__init__", "command", "compiled", "progress", "workers"):
            digest.update(source.name.encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
