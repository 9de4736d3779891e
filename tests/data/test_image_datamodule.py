"""Files of pixel maps as batches: splits, transforms, order, resume, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_events import image_event, random_volume, write_volume
from lightning import LightningModule, Trainer

from nufm.data.image_datamodule import ImageDataModule, check_order
from nufm.data.image_hdf5 import write_maps
from nufm.data.image_png import write_png_folder
from nufm.data.image_transforms import Brightness, Coarse, FlipTransverse, Rebin, ShiftPixels, Window
from nufm.data.images import VIEWS, ImageBatch
from nufm.data.tasks import task_named

SIZES = {"train": 10, "val": 5, "test": 3}


@pytest.fixture
def root(tmp_path) -> Path:
    """Splits of sparse files; event i of the whole has neutrino energy i."""
    first = 0
    for split, n in SIZES.items():
        events = [image_event(first + i) for i in range(n)]
        events = [
            e.replace(truth={**e.truth, "neutrino_energy": np.float32(first + i)}) for i, e in enumerate(events)
        ]
        write_maps(tmp_path / "set" / split / "maps.h5", events, {"producer": "by hand"})
        first += n
    return tmp_path / "set"


def module(root: Path, **arguments: object) -> ImageDataModule:
    return ImageDataModule(str(root), **{"size": 16, "batch_size": 4, **arguments})


def seen(loader) -> list[int]:
    return [int(e) for batch in loader for e in batch.truth["neutrino_energy"]]


def test_batches_are_the_transformed_events(root):
    data = module(root, transforms=[Rebin(2), Brightness(full=20.0)])
    data.prepare_data(), data.setup("fit")
    batches = list(data.val_dataloader())
    assert all(isinstance(b, ImageBatch) for b in batches) and sum(map(len, batches)) == 5
    image = torch.cat([b.image for b in batches])
    assert image.shape == (5, 2, 8, 8) and image.dtype == torch.float32 and 0 < image.max() <= 1
    for row in range(5):
        dense = np.stack([image_event(10 + row).image(v) for v in VIEWS]).astype(np.float64)
        expected = np.log1p(dense.reshape(2, 8, 2, 8, 2).sum((2, 4))) / np.log(21)
        assert image[row].numpy() == pytest.approx(np.minimum(expected, 1), abs=1e-6)
    assert batches[0].pitch == 10.0 and batches[0].names[0].endswith("val/maps.h5#0")
    targets = task_named("pixelmaps").targets(batches[0].truth, batches[0].names)
    assert targets["interaction"].tolist() == [
        int(image_event(10 + i).truth["interaction"]) for i in range(len(batches[0]))
    ]


def test_splits_and_order(root):
    data = module(root)
    assert seen(data.val_dataloader()) == list(range(10, 15)) and seen(data.test_dataloader()) == [15, 16, 17]
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        epochs.append(seen(loader))
    assert all(len(e) == len(set(e)) == 8 and set(e) < set(range(10)) for e in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert seen(module(root).train_dataloader()) == epochs[0] != seen(module(root, seed=1).train_dataloader())
    assert len(module(root, max_events=4).reader("train")) == 4
    assert len(module(root, max_eval_events=2).reader("val")) == 2


def test_augmentation_is_for_training_alone_and_depends_on_the_epoch(root):
    augment = [FlipTransverse(), ShiftPixels(2)]
    plain, data = module(root, batch_size=10), module(root, batch_size=10, augment=augment)
    by_number = []
    for epoch in (0, 1, 0):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        by_number.append(batch.image[batch.truth["neutrino_energy"].argsort()])
    first, second, again = by_number
    assert (first == again).all() and not (first == second).all()
    (batch,) = plain.train_dataloader()
    assert not (batch.image[batch.truth["neutrino_energy"].argsort()] == first).all()
    for one, other in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        assert (one.image == other.image).all()


def test_workers_change_nothing(root):
    """The same batches from a process of its own, started afresh."""
    arguments = {"augment": [FlipTransverse(), ShiftPixels(2)], "seed": 5}
    here = [b.image for b in module(root, **arguments).train_dataloader()]
    loader = module(root, **arguments, num_workers=1).train_dataloader()
    loader.loader.multiprocessing_context = "spawn"
    there = [b.image for b in loader]
    assert len(here) == len(there) == 2 and all((a == b).all() for a, b in zip(here, there, strict=True))


def test_pictures_and_arrays_by_the_same_module(root, tmp_path):
    """The same grey events as PNG with a table and as HDF5 make the same batches."""
    events = [image_event(i, unit="grey") for i in range(6)]
    write_maps(tmp_path / "a" / "train" / "maps.h5", events)
    write_png_folder(tmp_path / "b" / "train", events)
    (one,), (other,) = (module(tmp_path / n, batch_size=6).train_dataloader() for n in "ab")
    assert (one.image == other.image).all() and one.unit == other.unit == "grey" and one.image.max() <= 1
    assert (one.truth["interaction"] == other.truth["interaction"]).all()
    (alone,) = module(tmp_path / "b" / "train", batch_size=6).train_dataloader()  # a folder without splits
    assert (alone.image == one.image).all()
    splits = {"val": "b/train", "test": "a/train/*.h5"}
    named = ImageDataModule(str(tmp_path), splits=splits, size=16)
    assert len(named.reader("val")) == len(named.reader("test")) == 6


def volumes(root: Path, n: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        events = [random_volume(rng, 500, (400, 400, 1400)) for _ in range(n)]
        truth = {"interaction": np.arange(n) % 3, "vertex": rng.uniform(-500, 500, (n, 3))}
        write_volume(root / split / "simulated_00000.h5", events, truth, "pixel_lartpc")
    return root


def test_3d_events_are_projected_once(tmp_path, monkeypatch):
    root = volumes(tmp_path / "set")
    data = ImageDataModule(str(root), size=64, batch_size=3)
    data.prepare_data()
    made = sorted((tmp_path / "cache" / "simulated").glob("pixelmaps-*/maps_00000.h5"))
    assert len(made) == 2  # train and val
    monkeypatch.setattr("nufm.data.pixelmaps.VolumeFile.event", None)  # nothing is projected again
    batch = next(iter(ImageDataModule(str(root), size=64, batch_size=3).train_dataloader()))
    assert batch.image.shape == (3, 2, 64, 64) and "#" in batch.names[0] and batch.pitch == 5.0
    assert ImageDataModule(str(root), size=64).reader("val").files[0] in made


@pytest.mark.slow
def test_simulated_events(tmp_path):
    """The default: simulated, projected, read; the vertex is in the middle of the map."""
    data = ImageDataModule(n_train=4, n_val=3, n_test=0, batch_size=2, simulation_workers=1, mix="balanced")
    data.prepare_data(), data.setup("fit")
    (first, second) = data.train_dataloader()
    assert first.image.shape == (2, 2, 512, 512) and first.image.max() <= 1 and second.present.all()
    reader = data.reader("train")
    assert reader.producer == "simulated by nufm" and not data.has_split("test")
    for event in reader:
        near = [event.image(v)[236:277, 236:277].sum() for v in VIEWS]
        assert event.truth["interaction"] == 2 or min(near) > 0  # a charged lepton begins within 10 cm
        z = [np.bincount(event.views[v].pixel[:, 1], event.views[v].energy, 512) for v in VIEWS]
        inside = [event.views[v].energy.sum() for v in VIEWS]
        assert abs(inside[0] - inside[1]) < 0.05 * max(inside) and np.corrcoef(*z)[0, 1] > 0.95  # both share z


class Recorder(LightningModule):
    """Notes the events and a number that augmentations change; stops where it is told to."""

    def __init__(self, stop_after: int | None = None, path: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple] = []
        self.stop_after, self.path = stop_after, path

    def training_step(self, batch: ImageBatch, batch_idx: int) -> torch.Tensor:
        value = batch.image[:, :, ::2].sum() + batch.image[:, :, :, ::3].sum()
        self.seen.append((self.current_epoch, batch_idx, batch.names, float(value)))
        return self.weight * value

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        if len(self.seen) == self.stop_after:
            self.trainer.save_checkpoint(self.path)
            self.trainer.should_stop = True

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("stop_after", [3, 5, 7])  # in the first epoch of 5 batches, at its end, in the second
def test_a_resumed_run_sees_the_batches_that_were_left(root, tmp_path, stop_after):
    def run(model: Recorder, **options: object) -> list[tuple]:
        settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        trainer = Trainer(max_epochs=2, limit_val_batches=0, enable_model_summary=False, **settings)
        data = module(root, batch_size=2, augment=[FlipTransverse(), ShiftPixels(3)])
        trainer.fit(model, datamodule=data, **options)
        return model.seen

    whole = run(Recorder())
    assert len(whole) == 10 and len({value for *_, value in whole}) == 10
    stopped = Recorder(stop_after, tmp_path / "stopped.ckpt")
    assert run(stopped)[:stop_after] == whole[:stop_after]
    assert run(Recorder(), ckpt_path=stopped.path) == whole[stop_after:]


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("transforms", "augment", "words"),
    [
        ([], [], "transforms are none, expected one Brightness"),
        ([Rebin(2)], [], "transforms are Rebin, expected one Brightness"),
        ([Brightness(), Brightness()], [], "transforms are Brightness, Brightness, expected one"),
        ([Brightness(), Rebin(2)], [], "Rebin sums energies up, expected it before Brightness"),
        ([Brightness(), Window(8), Coarse(2)], [], "Coarse sums energies up"),
        ([Brightness()], [Brightness()], "augment has Brightness"),
    ],
)
def test_transforms_that_do_not_end_in_brightness(transforms, augment, words):
    with pytest.raises(ValueError, match=words):
        ImageDataModule(transforms=transforms, augment=augment)


def test_transforms_in_any_other_order():
    check_order([Window(64), Coarse(2), Rebin(2), Brightness(), FlipTransverse(p=1)], [ShiftPixels()])


def test_refused_arguments_and_files(root, tmp_path):
    with pytest.raises(ValueError, match="size is 0, expected 1 or more pixels per edge"):
        ImageDataModule(size=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        ImageDataModule(batch_size=0)
    with pytest.raises(ValueError, match=r"maps of 16 × 16 pixels, expected 512 × 512; .*--data\.size 16"):
        ImageDataModule(str(root)).setup("fit")
    assert ImageDataModule(str(root), size=None).reader("val").shape == (16, 16)
    with pytest.raises(FileNotFoundError, match="not there"):
        ImageDataModule(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(ValueError, match=r"Rebin|blocks of 3 × 3"):
        next(iter(module(root, transforms=[Rebin(3), Brightness()]).val_dataloader()))
    write_maps(tmp_path / "plain" / "train" / "a.h5", [image_event(1).replace(truth={})] * 4)
    (batch,) = module(tmp_path / "plain").train_dataloader()
    with pytest.raises(ValueError, match=r"a\.h5#.*the task 'pixelmaps' needs the truth 'interaction', found \[\]"):
        task_named("pixelmaps").targets(batch.truth, batch.names)
