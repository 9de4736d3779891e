"""LightningDataModule for pixel maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from nufm.data.datamodule import SIMULATED, SPLITS, EventDataModule
from nufm.data.image_files import ImageReader, find_images, image_kind
from nufm.data.image_transforms import Brightness, Coarse, Rebin
from nufm.data.images import ImageBatch, Unit
from nufm.data.loader import EventDataset
from nufm.data.pixelmaps import SIZE, Centre, ensure_maps
from nufm.data.transforms import Transform


class ImageDataModule(EventDataModule):
    """Events as pixel maps (``nufm.data.image_files``), in batches of :class:`ImageBatch`.

    Training drops the last, incomplete batch of an epoch; evaluation drops nothing, and sees every event once however
    many processes there are. The order of training depends on ``seed`` and the epoch alone, and continues after a
    resume with exactly the batches that were left.

    Args:
        root: ``simulated`` (simulate into the cache, once), a folder with ``train``, ``val`` and ``test`` folders of
            files, or a file, folder or glob (training only, unless ``splits`` names the others). Files are pixel maps,
            or 3D events in the PILArNet-M layout, whose maps are made once and kept in the cache.
        splits: split name -> file, folder or glob, relative to ``root`` if that is a folder; for other layouts.
        transforms: applied to every event, in every split; they travel with the weights. None = Brightness().
        augment: applied before them to training events, whose energies are still in MeV.
        batch_size: events per optimiser step over ALL processes; each takes an equal share.
        num_workers: loader processes per training process.
        seed: fixes the order and all augmentations.
        size: pixels per edge of the maps before the transforms, others are refused; None = what the files have, maps
            that are not square too (of 3D events 512).
        centre: what the maps of 3D events are centred on, see :func:`nufm.data.pixelmaps.centre_of`.
        detector: of 3D events whose file does not say; None = pilarnet.
        labels: label as in dense files and tables -> name of its class, where they are named otherwise.
        unit: of the values of dense files that do not say.
        pitch: mm per pixel of dense files and pictures that do not say.
        max_events: use this many training events; None = all.
        subset_seed: draw them at random with this seed; None = the first ones.
        max_eval_events: use this many validation and this many test events, the first ones; None = all.
        mix: shares of the classes of simulated events, see ``nufm.simulation.pixelmaps.event.MIXES``.
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
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        size: int | None = SIZE,
        centre: Centre = "vertex",
        detector: str | None = None,
        labels: dict[str, str] | None = None,
        unit: Unit | None = None,
        pitch: float | None = None,
        max_events: int | None = None,
        subset_seed: int | None = None,
        max_eval_events: int | None = None,
        mix: Literal["published", "balanced"] = "published",
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
        if size is not None and size < 1:
            raise ValueError(f"size is {size}, expected 1 or more pixels per edge")
        self.size, self.centre, self.detector = size, centre, detector
        self.labels, self.unit, self.pitch, self.mix = labels, unit, pitch, mix
        self.transforms = [Brightness()] if transforms is None else list(transforms)
        self.augment = list(augment or [])
        check_order(self.transforms, self.augment)

    # ---- events

    def simulate(self) -> Path:
        from nufm.simulation.pixelmaps.dataset import ensure_dataset  # imported here: they bring Numba
        from nufm.simulation.pixelmaps.event import PixelSpec

        spec = PixelSpec(mix=self.mix)
        return ensure_dataset(self.n_simulated, self.simulation_seed, self.simulation_workers, spec)

    def prepare_data(self) -> None:
        super().prepare_data()
        for split in SPLITS:
            if self.has_split(split):
                self._maps(split)

    def _maps(self, split: str) -> Path:
        """Where the maps of a split are; those of 3D events are made if they are not there."""
        path = self.split_path(split)
        files = find_images(path)
        if any(image_kind(file) != "volume" for file in files):  # a mixture is the reader's to refuse
            return path
        return ensure_maps(files, self.size or SIZE, self.centre, self.detector)

    def open(self, split: str, max_events: int | None, subset_seed: int | None) -> ImageReader:
        reader = self.open_files(self._maps(split), max_events, subset_seed)
        if len(reader) == 0:
            raise ValueError(f"{self.split_path(split)}: there are no events")
        return reader

    def open_files(
        self, paths: str | Path, max_events: int | None = None, subset_seed: int | None = None
    ) -> ImageReader:
        """Files that are no split of ``root``, read as those of the splits are: same size, labels, unit, pitch.

        Raises:
            FileNotFoundError: ``paths`` names nothing.
            ValueError: they are not what they should be.
        """
        said = {"labels": self.labels, "unit": self.unit, "pitch": self.pitch}
        return ImageReader(paths, max_events, subset_seed, self.size, self.centre, self.detector, **said)

    def described(self) -> dict[str, Any]:
        """How the maps of the training events are, for an export: size, centre and detector as arguments of this data
        module, shape, pitch and unit as found."""
        reader = self.reader("train")
        found = {"shape": list(reader.shape), "pitch": float(reader.pitch), "unit": reader.unit}
        return {"size": self.size, "centre": self.centre, "detector": self.detector, **found}

    # ---- batches

    def train_dataset(self) -> EventDataset:
        """Training samples as the training sees them: augmented, then transformed."""
        return EventDataset(self.reader("train"), [*self.augment, *self.transforms], seed=self.seed)

    def collate(self, training: bool) -> Callable[[list], ImageBatch]:
        return ImageBatch.from_events


def check_order(transforms: list[Transform], augment: list[Transform] = ()) -> None:
    """Refuses transforms that do not end in brightness.

    Raises:
        ValueError: there is no Brightness, it is among the augmentations, or energies are summed up after it.
    """
    kinds = [type(t) for t in transforms]
    if any(isinstance(t, Brightness) for t in augment):
        raise ValueError("augment has Brightness, expected it in transforms: evaluation needs it, too")
    if kinds.count(Brightness) != 1:
        raise ValueError(
            f"transforms are {', '.join(k.__name__ for k in kinds) or 'none'}, expected one Brightness among them: "
            "networks take images in [0, 1]; add nufm.data.image_transforms.Brightness"
        )
    for kind in kinds[kinds.index(Brightness) :]:
        if kind in (Rebin, Coarse):
            raise ValueError(f"{kind.__name__} sums energies up, expected it before Brightness; change their order")
