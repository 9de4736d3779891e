"""LightningDataModules: where the events are, and how they become batches.

:class:`EventDataModule` has what does not depend on the kind of event: roots and splits, the order of training, shares
of processes, continuing after a stop. :class:`PointDataModule` is for point clouds in PILArNet-M files;
``nufm.data.stream_datamodule`` for events of several sub-detectors.
"""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule

from nufm.data.event import PointBatch
from nufm.data.hub import PREFIX, download
from nufm.data.loader import BatchLoader, EvalBatches, EventDataset, TrainBatches, resume_position
from nufm.data.pilarnet import PILArNetReader
from nufm.data.transforms import GridSample, Transform, event_transforms
from nufm.data.views import MultiView, ViewBatch, collate_views

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
SIMULATED = "simulated"


class EventDataModule(LightningDataModule, ABC):
    """Files of events as batches, whatever an event is.

    Training drops the last, incomplete batch of an epoch; evaluation drops nothing, and sees every event once however
    many processes there are. The order of training depends on ``seed`` and the epoch alone, and continues after a
    resume with exactly the batches that were left.

    A subclass says how events are simulated (``simulate``), opened (``open``) and packed (``collate``), and what
    training sees (``train_dataset``). The arguments are those of :class:`PointDataModule`.

    Raises:
        ValueError: an argument that cannot be meant.
    """

    def __init__(
        self,
        root: str,
        splits: dict[str, str] | None,
        batch_size: int,
        num_workers: int,
        seed: int,
        max_events: int | None,
        subset_seed: int | None,
        max_eval_events: int | None,
        n_simulated: dict[str, int],
        simulation_seed: int,
        simulation_workers: int | None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if unknown := set(splits or {}) - set(SPLITS):
            raise ValueError(f"splits names {sorted(unknown)}, expected some of {', '.join(SPLITS)}")
        self.root, self.splits = root, dict(splits or {})
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.max_events, self.subset_seed, self.max_eval_events = max_events, subset_seed, max_eval_events
        self.n_simulated = n_simulated
        self.simulation_seed, self.simulation_workers = simulation_seed, simulation_workers
        self._readers: dict[str, Any] = {}
        self._folder: Path | None = None

    # ---- what a kind of event has to say

    transforms: list[Transform]  # applied to every event; they travel with the weights

    @abstractmethod
    def simulate(self) -> Path:
        """Folder of the simulated data set with ``n_simulated`` events, made if it is not there."""

    @abstractmethod
    def open(self, split: str, max_events: int | None, subset_seed: int | None) -> Sequence:
        """A reader of the events of a split, none of which was transformed; never empty."""

    @abstractmethod
    def train_dataset(self) -> EventDataset:
        """Training samples as the training sees them."""

    @abstractmethod
    def collate(self, training: bool) -> Callable[[list], Any]:
        """What packs samples into a batch."""

    # ---- where the events are

    def prepare_data(self) -> None:
        """Simulates or downloads what is not there yet. Lightning calls it in one process per machine."""
        self._locate(make=True)

    def setup(self, stage: str | None = None) -> None:
        """Opens the training events, so that a fault in them shows before anything is built on them."""
        if stage in (None, "fit"):
            self.reader("train")

    def _locate(self, make: bool = False) -> Path:
        """Folder, file or glob that ``root`` stands for."""
        if self.root == SIMULATED:
            if make or self._folder is None:
                self._folder = self.simulate()
            return self._folder
        if self.root.startswith(PREFIX):
            if make or self._folder is None:
                self._folder = download(self.root, local_only=not make)
            return self._folder
        return Path(self.root).expanduser()

    def split_path(self, split: str) -> Path:
        """File, folder or glob of a split.

        Raises:
            ValueError: the split has no files.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split '{split}', expected one of {', '.join(SPLITS)}")
        root = self._locate()
        if split in self.splits:
            return root / self.splits[split] if root.is_dir() else Path(self.splits[split]).expanduser()
        if (root / split).is_dir():
            return root / split
        if split == "train" and not any((root / other).is_dir() for other in SPLITS):
            return root
        raise ValueError(
            f"root '{self.root}' has no split '{split}': expected a folder {root / split}; or name its "
            f"files with splits, e.g. --data.splits '{{{split}: /path/to/{split}/*.h5}}'"
        )

    def has_split(self, split: str) -> bool:
        """Whether the split has files, without opening them."""
        try:
            self.split_path(split)
        except ValueError:
            return False
        return True

    def reader(self, split: str) -> Any:
        """The events of a split, before any transform.

        Raises:
            ValueError: the split has no files, or none of its events may be used.
        """
        if split not in self._readers:
            training = split == "train"
            self._readers[split] = self.open(
                split, self.max_events if training else self.max_eval_events, self.subset_seed if training else None
            )
        return self._readers[split]

    # ---- batches

    def eval_dataset(self, split: str = "val") -> EventDataset:
        """Un-augmented events of a split, with their labels."""
        return EventDataset(self.reader(split), self.transforms, seed=self.seed)

    def train_dataloader(self) -> BatchLoader:
        if self.trainer is not None and self.trainer.overfit_batches:
            raise ValueError(
                "overfit_batches is not supported: use max_events (--data.max_events) for few training events"
            )
        dataset = self.train_dataset()
        batches = TrainBatches(len(dataset), self.batch_size, self.seed, *self._process())
        if self.trainer is not None:
            batches.set_position(*resume_position(self.trainer, len(batches)))
        return self._loader(dataset, batches, self.collate(training=True))

    def val_dataloader(self) -> BatchLoader | list:
        return self._eval_loader("val") if self.has_split("val") else []

    def test_dataloader(self) -> BatchLoader:
        return self._eval_loader("test")

    def probe_dataloader(
        self,
        split: str,
        n_events: int | None = None,
        batch_size: int | None = None,
        distributed: bool = False,
    ) -> BatchLoader:
        """Un-augmented, labelled batches of the first events of a split, in order.

        Args:
            split: train, val or test.
            n_events: how many; None, or more than there are, = all.
            batch_size: events per batch over all processes that share the work; None = ``batch_size``.
            distributed: share the events out among the processes; otherwise each process sees all of them.
        """
        return self._eval_loader(split, n_events, batch_size, distributed)

    def _eval_loader(
        self, split: str, n_events: int | None = None, batch_size: int | None = None, distributed: bool = True
    ) -> BatchLoader:
        dataset = self.eval_dataset(split)
        count = len(dataset) if n_events is None else min(n_events, len(dataset))
        rank, world = self._process() if distributed else (0, 1)
        batches = EvalBatches(count, batch_size or self.batch_size, rank, world)
        return self._loader(dataset, batches, self.collate(training=False))

    def _loader(
        self, dataset: EventDataset, batches: TrainBatches | EvalBatches, collate: Callable[[list], Any]
    ) -> BatchLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return BatchLoader(dataset, batches, collate, self.num_workers, pin_memory=on_gpu)

    def _process(self) -> tuple[int, int]:
        """Rank and number of the training processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # only CUDA copies from pinned memory in the background; elsewhere it may read too early
        return batch.to(device, non_blocking=device.type == "cuda")


class PointDataModule(EventDataModule):
    """Events in PILArNet-M files as packed batches.

    Training batches are :class:`ViewBatch` if ``views`` is set, else :class:`PointBatch`; validation and
    test batches are un-augmented :class:`PointBatch` with labels.

    Args:
        root: ``simulated`` (simulate into the cache, once), a folder with ``train``, ``val`` and ``test``
            folders of HDF5 files, an HDF5 file or glob (training only, unless ``splits`` names the others),
            or ``hf://owner/name`` (downloads; 168 GB for DeepLearnPhysics/PILArNet-M; untested without a
            network).
        splits: split name -> file, folder or glob, relative to ``root`` if that is a folder; for layouts
            other than ``root/<split>/*.h5``.
        transforms: applied to every event, in every split; they travel with the weights. None = as published:
            NormalizeCoord, LogEnergy, GridSample(``grid_size``).
        augment: applied after them to training events, for training without views.
        lattice: what the lattice cells of augmented events are made of: ``augmented`` coordinates, so that convolutions
            and curves turn with the points, or the ``original`` ones, as in the published fine-tuning.
        views: how training events are cut into views; None = whole events.
        grid_size: edge of a lattice cell of the encoder, in the units of the transformed coordinates.
        batch_size: events per optimiser step over ALL processes; each takes an equal share.
        num_workers: loader processes per training process.
        seed: fixes the order and all augmentations.
        energy_threshold: points with at most this energy in MeV are dropped.
        min_points: events with fewer points before the energy cut are left out.
        max_events: use this many training events; None = all.
        subset_seed: draw them at random with this seed; None = the first ones, as published.
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
        splits: dict[str, str] | None = None,
        transforms: list[Transform] | None = None,
        augment: list[Transform] | None = None,
        lattice: Literal["augmented", "original"] = "augmented",
        views: MultiView | None = None,
        grid_size: float = 0.001,
        batch_size: int = 48,
        num_workers: int = 0,
        seed: int = 0,
        energy_threshold: float = 0.13,
        min_points: int = 1024,
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
        if grid_size <= 0:
            raise ValueError(f"grid_size is {grid_size}, expected a positive length in the units of 'coord'")
        if augment and views is not None:
            raise ValueError(
                "augment is for whole events; with views, use views.global_augment and views.local_augment"
            )
        self.transforms = event_transforms(grid_size) if transforms is None else list(transforms)
        for transform in self.transforms:
            if isinstance(transform, GridSample) and transform.size != grid_size:
                raise ValueError(
                    f"GridSample has size {transform.size}, but the encoder's lattice grid_size {grid_size}: "
                    "points would share or skip cells; make them equal"
                )
        if lattice not in ("augmented", "original"):
            raise ValueError(f"lattice is '{lattice}', expected 'augmented' or 'original'")
        self.lattice = lattice
        self.augment, self.views, self.grid_size = list(augment or []), views, grid_size
        self.energy_threshold, self.min_points = energy_threshold, min_points

    def simulate(self) -> Path:
        from nufm.simulation.dataset import ensure_dataset  # imported here: it brings Numba

        return ensure_dataset(self.n_simulated, seed=self.simulation_seed, workers=self.simulation_workers)

    def open(self, split: str, max_events: int | None, subset_seed: int | None) -> PILArNetReader:
        reader = PILArNetReader(
            self.split_path(split),
            energy_threshold=self.energy_threshold,
            min_points=self.min_points,
            max_events=max_events,
            subset_seed=subset_seed,
        )
        if len(reader) == 0:
            raise ValueError(
                f"{self.split_path(split)}: none of its {reader.n_total} events has {self.min_points} "
                "points; lower min_points"
            )
        return reader

    def train_dataset(self) -> EventDataset:
        """Training samples as the training sees them: augmented, cut into views."""
        keep = self.lattice == "original" and self.views is None
        return EventDataset(self.reader("train"), self.transforms, self.augment, self.views, self.seed, keep)

    def collate(self, training: bool) -> Callable[[list], ViewBatch | PointBatch]:
        if training and self.views is not None:
            return functools.partial(collate_views, grid_size=self.grid_size)
        source = "origin" if training and self.lattice == "original" else "coord"
        return functools.partial(PointBatch.from_events, grid_size=self.grid_size, lattice=source)
