"""Simulated neutrino interactions in the pixel detector as files, and as a data set in the user's cache.

A file has the layout of PILArNet-M (:mod:`nufm.simulation.dataset`: ``point``, ``cluster``, ``cluster_extra`` and
``<file>_points.npy``) on the lattice of ``nufm/data/detectors/pixel_lartpc.yaml``, and what each event is, one row per
event: ``truth/<name>`` with the names, shapes and units of ``nufm.data.images.TRUTH``. Event ``index`` of stream
``stream`` (train 0, val 1, test 2) has its own random stream: a file does not depend on the number of workers, and
splits share no event.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from nufm.data.detector import FOLDER
from nufm.simulation import dataset
from nufm.simulation.dataset import PRODUCER, ensure_splits, fill_splits
from nufm.simulation.pixelmaps.event import DETECTOR, PixelEvent, PixelSpec
from nufm.simulation.progress import SimulationProgress
from nufm.simulation.workers import in_order

_EVENT = "nufm.simulation.pixelmaps.event:simulate_event"
# As nufm.data.images.TRUTH, which a process that simulates must not import: it brings torch. A test compares them.
TRUTH = {
    "interaction": ((), np.int64, ""),
    "mode": ((), np.int64, ""),
    "neutrino_energy": ((), np.float32, "GeV"),
    "inelasticity": ((), np.float32, ""),
    "lepton": ((3,), np.float32, "GeV/c"),
    "vertex": ((3,), np.float32, "mm"),
}


def simulate_file(
    path: str | Path,
    n_events: int,
    seed: int = 0,
    workers: int | None = None,
    spec: PixelSpec | None = None,
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
        spec: what to simulate; None = the default.
        stream: of random numbers, see the head of this file.
        first: index of the first event in the stream.
        progress: shows events per second and the time left; None = silent.
        overwrite: replace an existing file.

    Raises:
        ValueError: an argument that cannot be meant.
        FileExistsError: the file is there, and ``overwrite`` is not set.
    """
    path, spec = Path(path).expanduser(), spec or PixelSpec()
    if path.suffix not in (".h5", ".hdf5"):
        raise ValueError(f"{path}: expected a name that ends in .h5 or .hdf5")
    for name, value, least in (("events", n_events, 0), ("seed", seed, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; choose another name, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    events = in_order(_EVENT, (spec, seed, stream), range(first, first + n_events), workers)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    counts_temporary = temporary.with_name(temporary.name + ".npy")
    attributes = {
        "detector": DETECTOR,
        "producer": PRODUCER,
        "version": simulation_version(),
        "spec": spec.to_json(),
        "seed": seed,
        "stream": stream,
        "first": first,
    }
    try:
        counts = _write(temporary, n_events, events, attributes, progress)
        np.save(counts_temporary, counts)
        os.replace(counts_temporary, path.with_name(f"{path.stem}_points.npy"))
        os.replace(temporary, path)
    finally:
        events.close()
        temporary.unlink(missing_ok=True)
        counts_temporary.unlink(missing_ok=True)
    return path


def _write(
    path: Path,
    n_events: int,
    events: Iterator[PixelEvent],
    attributes: Mapping[str, object],
    progress: SimulationProgress | None,
) -> np.ndarray:
    """Writes the events as they come; returns int64 (n_events,) points of each."""
    counts = np.zeros(n_events, dtype=np.int64)
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs.update(attributes)
        voxels = {
            name: file.create_dataset(name, (n_events,), dtype=h5py.vlen_dtype(kind))
            for name, kind in (("point", np.float32), ("cluster", np.int64), ("cluster_extra", np.float32))
        }
        truth = {name: np.zeros((n_events, *shape), dtype=kind) for name, (shape, kind, _) in TRUTH.items()}
        for i, event in enumerate(events):
            for name, table in voxels.items():
                table[i] = getattr(event.truth, name).ravel()
            for name, value in event.labels().items():
                truth[name][i] = value
            counts[i] = len(event)
            if progress is not None:
                progress.advance()
        for name, value in truth.items():
            file[f"truth/{name}"] = value
            file[f"truth/{name}"].attrs["unit"] = TRUTH[name][2]
    return counts


def simulate_splits(
    folder: str | Path,
    n_events: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    spec: PixelSpec | None = None,
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

    def simulate(path: Path, n: int, stream: int, first: int) -> None:
        simulate_file(path, n, seed, workers, spec, stream, first, progress)

    return fill_splits(folder, n_events, simulate, progress)


def ensure_dataset(
    n_events: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    spec: PixelSpec | None = None,
    show_progress: bool = True,
) -> Path:
    """The data set with these events from the cache; simulated first if it is not there.

    As :func:`nufm.simulation.dataset.ensure_dataset`: the folder's name comes from the specification, the seed, the
    numbers of events and the simulation's code; processes that ask at the same time wait for the one that simulates.

    Args:
        n_events: train, val, test -> number of events.
        seed, workers, spec: as for :func:`simulate_file`.
        show_progress: on standard error.

    Returns:
        The folder, with ``train``, ``val`` and ``test`` in it.
    """
    spec = spec or PixelSpec()
    numbers = {split: int(n) for split, n in n_events.items() if n}
    key = json.dumps([spec.to_json(), seed, sorted(numbers.items()), simulation_version()])
    return ensure_splits(
        f"{DETECTOR}-{hashlib.sha256(key.encode()).hexdigest()[:16]}",
        numbers,
        lambda folder, progress: simulate_splits(folder, numbers, seed, workers, spec, progress),
        show_progress,
    )


def simulation_version() -> str:
    """Digest of the files that decide what events look like: the transport's, those of the final states, and the
    detector's description."""
    digest = hashlib.sha256(dataset.simulation_version().encode())
    here = Path(__file__).parent
    sources = [here / "generator.py", here / "event.py", *(here.parent / "fasercal" / f for f in _SHARED)]
    for source in (*sources, FOLDER / f"{DETECTOR}.yaml"):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


_SHARED = ("decays.py", "generator.py")
