"""Stream files of single particles in crops, made from simulated events or from public files, kept in the cache.

    superfgd              simulated by nufm, or the public sample (Zenodo 7347563)
    pilarnet_particles    particles of PILArNet-M files, simulated by nufm or public; of the voxels above an energy

Cutting out is done once: a training would read a whole event for every particle of it otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal

import h5py

from nufm.data import particles
from nufm.data.cache import cached, new_folder
from nufm.data.detector import FOLDER
from nufm.data.particles import VOLUME, pilarnet_records, read_scintillator, scintillator_files, scintillator_record
from nufm.data.pilarnet import PILArNetReader
from nufm.data.stream_files import event_from_record

Sample = Literal["superfgd", "pilarnet_particles"]
DETECTORS: dict[str, str] = {"superfgd": "superfgd", "pilarnet_particles": "pilarnet_crop"}
SPLITS = ("train", "val", "test")
ENERGY_THRESHOLD = 0.13  # MeV, of the voxels of PILArNet as in PILArNetReader


def ensure_particles(
    sample: Sample, n_events: Mapping[str, int], seed: int = 0, workers: int | None = None, show_progress: bool = True
) -> Path:
    """Simulated particles from the cache; simulated and cut out first if they are not there.

    Args:
        sample: ``superfgd``: as many particles as events; ``pilarnet_particles``: the particles of so many events.
        n_events: train, val, test -> number of events.
        seed: of the simulation.
        workers: processes that simulate; None = one per core.
        show_progress: on standard error.

    Returns:
        The folder, with ``train``, ``val`` and ``test`` in it.

    Raises:
        ValueError: an unknown sample.
    """
    _detector(sample)
    if sample == "superfgd":
        from nufm.simulation.superfgd.dataset import simulation_version
    else:
        from nufm.simulation.dataset import simulation_version
    numbers = {split: int(n) for split, n in n_events.items() if n}
    digest = hashlib.sha256(json.dumps([sample, seed, sorted(numbers.items()), simulation_version()]).encode())
    crops = (FOLDER / f"{name}.yaml" for name in (*DETECTORS.values(), VOLUME))
    for source in (particles.__file__, __file__, *crops):
        digest.update(Path(source).read_bytes())

    def make(folder: Path) -> None:
        with new_folder(folder) as temporary:
            simulate = _simulate_superfgd if sample == "superfgd" else _simulate_pilarnet
            simulate(temporary, numbers, seed, workers, show_progress)

    return cached(f"{sample}-{digest.hexdigest()[:16]}", make)


def _simulate_superfgd(folder: Path, numbers: Mapping[str, int], seed: int, workers: int | None, show: bool) -> None:
    from nufm.simulation.dataset import STREAMS  # imported here: they bring Numba
    from nufm.simulation.fasercal.writer import write_events
    from nufm.simulation.progress import SimulationProgress
    from nufm.simulation.superfgd.dataset import attributes, simulate_records
    from nufm.simulation.superfgd.event import SuperFGDSpec

    spec = SuperFGDSpec()
    progress = SimulationProgress(sum(numbers.values())) if show else None
    try:
        if progress is not None:
            progress.start("simulating particles in scintillator cubes")
        for split, n in numbers.items():
            stream = STREAMS[split]
            said = {**attributes(spec, seed, stream, 0), "detector": DETECTORS["superfgd"]}
            with closing(simulate_records(spec, seed, stream, range(n), workers)) as events:
                cut = (scintillator_record(event_from_record(e, VOLUME, f"{split} {i}")) for i, e in enumerate(events))
                write_events(folder / split / "particles.h5", cut, said, progress)
    finally:
        if progress is not None:
            progress.stop()


def _simulate_pilarnet(folder: Path, numbers: Mapping[str, int], seed: int, workers: int | None, show: bool) -> None:
    from nufm.simulation.dataset import ensure_dataset  # imported here: it brings Numba

    source = ensure_dataset(numbers, seed=seed, workers=workers, show_progress=show)
    for split in numbers:
        convert_particles("pilarnet_particles", source / split, folder / split / "particles.h5")


def convert_particles(
    sample: Sample,
    source: str | Path,
    out: str | Path,
    overwrite: bool = False,
    energy_threshold: float = ENERGY_THRESHOLD,
) -> Path:
    """Cut the particles of files out into one stream file.

    Args:
        sample: ``superfgd``: ``source`` is a folder of the public sample, training or testing, with one folder for each
            class; ``pilarnet_particles``: file, folder or glob of PILArNet-M files.
        source: see there.
        out: an HDF5 file.
        overwrite: replace an existing file.
        energy_threshold: of ``pilarnet_particles``: voxels with at most this energy in MeV are dropped before the
            voxels of a particle are counted. It is an attribute of the file.

    Raises:
        ValueError: files that are not what they should be, or without any particle.
        FileNotFoundError: the path names nothing.
        FileExistsError: ``out`` is there, and ``overwrite`` is not set.
    """
    from nufm.simulation.fasercal.writer import write_events  # imported here: only writing needs it

    said: dict[str, object] = {"detector": _detector(sample)}
    if sample == "superfgd":
        files = scintillator_files(source)
        records = (scintillator_record(read_scintillator(path, particle)) for path, particle in files)
        said["producer"] = f"cut out by nufm from {source}"
    else:
        reader = PILArNetReader(source, energy_threshold=energy_threshold, min_points=0)
        records = _pilarnet(reader)
        said["energy_threshold_mev"] = energy_threshold
        said["producer"] = _producer(reader.files[0])
    return write_events(out, _some(records, source), said, None, overwrite)


def _pilarnet(reader: PILArNetReader) -> Iterator[dict[str, object]]:
    for number, event in enumerate(reader):
        yield from pilarnet_records(event, number)


def _some(records: Iterator[dict[str, object]], source: str | Path) -> Iterator[dict[str, object]]:
    """The records, of which there must be one."""
    found = False
    for record in records:
        found = True
        yield record
    if not found:
        raise ValueError(f"{source}: no particle of the five classes with at least {particles.MIN_VOXELS} voxels")


def _producer(path: Path) -> str:
    """Who made the events: files that nufm simulated say so, and so do the particles that are cut out of them."""
    with h5py.File(path, "r") as file:
        return str(file.attrs.get("producer", f"cut out by nufm from {path.parent}"))


def _detector(sample: str) -> str:
    if sample not in DETECTORS:
        raise ValueError(f"sample is '{sample}', expected one of {', '.join(DETECTORS)}")
    return DETECTORS[sample]
