"""LightningDataModule for events of several sub-detectors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from nufm.data.cache import cache_folder
from nufm.data.datamodule import SIMULATED, EventDataModule
from nufm.data.loader import EventDataset, Key
from nufm.data.particle_files import ensure_particles
from nufm.data.stream_files import StreamReader
from nufm.data.stream_transforms import StandardizeStreams, fit_standardize
from nufm.data.streams import StreamBatch, StreamEvent
from nufm.data.transforms import Transform

log = logging.getLogger(__name__)

FIT_SHARE, FIT_LEAST, FIT_MOST = 0.1, 500, 2000  # of the training events; a share of 10 % as in the public code


class StreamDataModule(EventDataModule):
    """Events in stream files (``nufm.data.stream_files``) as :class:`StreamBatch`.

    Training drops the last, incomplete batch of an epoch; evaluation drops nothing, and sees every event once however
    many processes there are. The order of training depends on ``seed`` and the epoch alone, and continues after a
    resume with exactly the batches that were left.

    Args:
        root: ``simulated`` (simulate into the cache, once), a folder with ``train``, ``val`` and ``test`` folders of
            stream files, or a stream file or glob (training only, unless ``splits`` names the others).
        sample: what to simulate if ``root`` is ``simulated``: ``fasercal``, neutrino interactions; ``superfgd``, single
            particles in scintillator cubes; ``pilarnet_particles``, the particles of PILArNet-like events.
        splits: split name -> file, folder or glob, relative to ``root`` if that is a folder; for other layouts.
        transforms: applied to every event, in every split; they travel with the weights. None = StandardizeStreams with
            the numbers of the first tenth of the training events (at least 500, at most 2000, whatever ``max_events``).
        augment: applied before them to training events, whose charges are still in MeV.
        together: a sample is a group of events (``group`` in the file), such as the particles of one interaction, and
            ``batch_size`` and ``max_events`` count groups; else an event.
        batch_size: events per optimiser step over ALL processes; each takes an equal share.
        num_workers: loader processes per training process.
        seed: fixes the order and all augmentations.
        min_voxels: events with fewer hits that are not ghosts in the first voxel stream are left out. Simulated and
            published FASERCal events have at least 20 anyway.
        origin_mm: centre of 3DCal in the frame of the vertices of npz files.
        max_events: use this many training events; None = all.
        subset_seed: draw them at random with this seed; None = the first ones.
        max_eval_events: use this many validation and this many test events, the first ones; None = all.
        n_train: events to simulate for training, if ``root`` is ``simulated``.
        n_val: events to simulate for validation.
        n_test: events to simulate for testing.
        simulation_seed: seed of the simulation.
        simulation_workers: processes that simulate; None = one per core.

    Raises:
        ValueError: an argument that cannot be meant, or files that are not what they should be.
    """

    def __init__(
        self,
        root: str = SIMULATED,
        sample: Literal["fasercal", "superfgd", "pilarnet_particles"] = "fasercal",
        splits: dict[str, str] | None = None,
        transforms: list[Transform] | None = None,
        augment: list[Transform] | None = None,
        together: bool = False,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        min_voxels: int = 0,
        origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
        max_events: int | None = None,
        subset_seed: int | None = None,
        max_eval_events: int | None = None,
        n_train: int = 2000,
        n_val: int = 200,
        n_test: int = 400,
        simulation_seed: int = 0,
        simulation_workers: int | None = None,
    ) -> None:
        super().__init__(
            root,
            splits,
            batch_size,
            num_workers,
            seed,
            max_events,
            subset_seed,
            max_eval_events,
            {"train": n_train, "val": n_val, "test": n_test},
            simulation_seed,
            simulation_workers,
        )
        self.sample, self.together = sample, together
        self.augment = list(augment or [])
        self.min_voxels, self.origin_mm = min_voxels, origin_mm
        self._transforms = None if transforms is None else list(transforms)

    # ---- events

    def simulate(self) -> Path:
        if self.sample != "fasercal":
            return ensure_particles(self.sample, self.n_simulated, self.simulation_seed, self.simulation_workers)
        from nufm.simulation.fasercal.dataset import ensure_dataset  # imported here: it brings Numba

        return ensure_dataset(self.n_simulated, seed=self.simulation_seed, workers=self.simulation_workers)

    def open(self, split: str, max_events: int | None, subset_seed: int | None) -> StreamReader:
        reader = StreamReader(
            self.split_path(split), self.min_voxels, max_events, subset_seed, self.origin_mm, self.together
        )
        if len(reader) == 0:
            raise ValueError(
                f"{self.split_path(split)}: none of its {reader.n_total} events has {self.min_voxels} hits; lower "
                "min_voxels"
            )
        return reader

    # ---- transforms

    @property
    def transforms(self) -> list[Transform]:
        """What every event goes through; fitted when first asked for, if they were not given."""
        if self._transforms is None:
            self._transforms = [self._fitted()]
        return self._transforms

    @transforms.setter
    def transforms(self, transforms: list[Transform]) -> None:
        self._transforms = list(transforms)

    def prepare_data(self) -> None:
        super().prepare_data()
        _ = self.transforms  # before other processes ask for them

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        _ = self.transforms

    def _fitted(self) -> StandardizeStreams:
        """Numbers of the first training events, from the cache if they were made of the same files."""
        if not self.has_split("train"):
            raise ValueError(
                f"root '{self.root}' has no training events to standardise by; give the transforms "
                "(--data.transforms), such as those of the weights that are used"
            )
        reader = self.open("train", None, None)
        count = min(len(reader), max(FIT_LEAST, min(FIT_MOST, int(FIT_SHARE * len(reader)))))
        stats = [(str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns) for p in reader.files]
        key = json.dumps([stats, count, self.min_voxels, 1])  # the last: raise it when fit_standardize changes
        kept = cache_folder() / "statistics" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        if kept.is_file():
            try:
                return StandardizeStreams(**json.loads(kept.read_text()))
            except (OSError, ValueError, TypeError) as error:
                log.warning("%s: numbers cannot be read (%s), making them again", kept, error)
        log.info("standardising by the first %d of %d training events", count, len(reader))
        fitted = fit_standardize(reader[i] for i in range(count))
        reader.close()
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(dataclasses.asdict(fitted)))
            os.replace(temporary, kept)
        except OSError as error:
            log.warning("%s: numbers cannot be kept (%s); set NUFM_CACHE to a writable folder", kept, error)
        return fitted

    # ---- batches

    def train_dataset(self) -> EventDataset | GroupDataset:
        """Training samples as the training sees them: augmented, then transformed."""
        return self._dataset("train", [*self.augment, *self.transforms])

    def eval_dataset(self, split: str = "val") -> EventDataset | GroupDataset:
        """Un-augmented samples of a split, with their truth."""
        return self._dataset(split, self.transforms)

    def _dataset(self, split: str, transforms: list[Transform]) -> EventDataset | GroupDataset:
        reader = self.reader(split)
        events = EventDataset(reader, transforms, seed=self.seed)
        return GroupDataset(events, reader.group) if self.together else events

    def collate(self, training: bool) -> Callable[[list], StreamBatch]:
        return pack_groups if self.together else StreamBatch.from_events


class GroupDataset:
    """Groups of consecutive events as samples.

    Args:
        events: single events.
        group: int64 (len(events),) events with equal numbers belong together.
    """

    def __init__(self, events: EventDataset, group: np.ndarray) -> None:
        self.events = events
        self.first = np.flatnonzero(np.diff(group, prepend=group[:1] - 1, append=group[-1:] + 1))

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, key: int | Key) -> list[StreamEvent]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return [self.events[epoch, event] for event in range(self.first[index], self.first[index + 1])]


def pack_groups(samples: list[list[StreamEvent]]) -> StreamBatch:
    """A batch of groups of events."""
    return StreamBatch.from_events([event for group in samples for event in group], [len(group) for group in samples])
