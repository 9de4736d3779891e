"""Batches of events with several streams: order, augmentation before standardisation, and the numbers of the latter."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from stream_records import make_record, without, write

from nufm.data import stream_datamodule
from nufm.data.loader import BatchLoader
from nufm.data.stream_datamodule import GroupDataset, StreamDataModule
from nufm.data.stream_transforms import CommonGain, StandardizeStreams, fasercal_augmentation, fit_standardize
from nufm.data.streams import StreamBatch

SPLITS = {"train": 23, "val": 7, "test": 5}


@pytest.fixture
def root(tmp_path) -> Path:
    for s, (split, n) in enumerate(SPLITS.items()):
        records = [make_record(100 * s + i, hits=10 + i, group=i // 3) for i in range(n)]
        if split == "val":
            records[2] = without(without(records[2], "ahcal"), "muon")
        write(tmp_path / "data" / split / "part.h5", records)
    return tmp_path / "data"


def module(root, **changes) -> StreamDataModule:
    return StreamDataModule(**{"root": str(root), "batch_size": 4, "seed": 5} | changes)


def same(a: StreamBatch, b: StreamBatch) -> bool:
    """Equal down to the last bit."""
    tensors = [(a.seeds, b.seeds)]
    for stream in a.voxels:
        pairs = [(getattr(batch.voxels[stream], f) for batch in (a, b)) for f in ("index", "charge", "offsets")]
        tensors += [tuple(pair) for pair in pairs]
    tensors += [(a.matrices[s].values, b.matrices[s].values) for s in a.matrices]
    tensors += [(a.tracks[s].feat, b.tracks[s].feat) for s in a.tracks]
    return a.names == b.names and all(torch.equal(x, y) for x, y in tensors)


def epoch(data: StreamDataModule, number: int = 0) -> list[StreamBatch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


# ---- batches


def test_loaders(root):
    data = module(root)
    data.setup("fit")
    assert isinstance(data.train_dataloader(), BatchLoader) and len(data.train_dataloader()) == 5
    training = epoch(data)
    assert all(isinstance(b, StreamBatch) and len(b) == 4 and b.groups is None for b in training)
    seen = [name for b in training for name in b.names]
    assert len(set(seen)) == 20 and seen != sorted(seen)
    assert [b.names for b in epoch(data)] == [b.names for b in training] != [b.names for b in epoch(data, 1)]
    validation = list(data.val_dataloader())
    assert [len(b) for b in validation] == [4, 3]  # nothing is dropped, in order
    names = [n for b in validation for n in b.names]
    assert names == [f"{root}/val/part.h5#{i}" for i in range(7)]
    assert validation[0].tracks["muon"].present.tolist() == [True, True, False, True]
    assert validation[0].voxels["ahcal"].offsets.diff().tolist() == [7, 7, 0, 7]
    assert set(validation[0].voxels["cal3d"].labels) == {"ghost", "hierarchy", "category"}
    assert validation[0].truth["flavour"].tolist() == [(100 + i) % 6 for i in range(4)]
    assert sum(len(b) for b in data.test_dataloader()) == 5
    first = next(iter(data.probe_dataloader("test", n_events=3, batch_size=8)))
    assert len(first) == 3 and first.to("cpu").names == first.names


def test_augmentations_come_before_the_standardisation(root):
    """A common gain g then z(g·q): undone, the charges are g times the raw ones; evaluation sees the raw ones."""
    data = module(root, augment=[CommonGain(0.3)])
    raw = {data.reader("train").name(i): data.reader("train")[i] for i in range(23)}
    standard = data.transforms[0]
    gains = []
    for batch in epoch(data):
        for i, name in enumerate(batch.names):
            low, high = batch.voxels["cal3d"].offsets[i : i + 2].tolist()
            charge = standard.inverse("cal3d", batch.voxels["cal3d"].charge[low:high].numpy())
            ratio = charge / raw[name].voxels["cal3d"].charge
            assert np.ptp(ratio) < 1e-3
            gains.append(ratio.mean())
    assert np.std(gains) > 0.1
    assert not all(same(a, b) for a, b in zip(epoch(data), epoch(data, 1), strict=True))
    assert all(same(a, b) for a, b in zip(epoch(data), epoch(data), strict=True))
    first = next(iter(data.val_dataloader()))
    low, high = first.voxels["cal3d"].offsets[:2].tolist()
    charge = standard.inverse("cal3d", first.voxels["cal3d"].charge[low:high].numpy())
    assert np.allclose(charge, data.reader("val")[0].voxels["cal3d"].charge, rtol=1e-4)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch_of_one(root, world, monkeypatch):
    data = module(root, augment=fasercal_augmentation())
    alone, evaluation = epoch(data), [n for b in data.test_dataloader() for n in b.names]
    shares, parts = [], []
    for rank in range(world):
        monkeypatch.setattr(data, "_process", lambda rank=rank: (rank, world))
        shares.append(epoch(data))
        parts += [n for b in data.test_dataloader() for n in b.names]
    for k, batch in enumerate(alone):
        assert [n for share in shares for n in share[k].names] == list(batch.names)
        charges = torch.cat([share[k].voxels["cal3d"].charge for share in shares])
        assert torch.equal(charges, batch.voxels["cal3d"].charge)
    assert sorted(parts) == sorted(evaluation) and len(parts) == 5


def test_label_budgets_are_nested_and_keep_the_numbers(root):
    everything, few = module(root), module(root, max_events=8, subset_seed=1)
    assert len(few.reader("train")) == 8 and few.transforms == everything.transforms
    more = module(root, max_events=12, subset_seed=1).reader("train")
    assert {few.reader("train").name(i) for i in range(8)} < {more.name(i) for i in range(12)}
    assert len(module(root, max_eval_events=3).reader("test")) == 3
    with pytest.raises(ValueError, match="3 training events are fewer than one batch of 4"):
        module(root, max_events=3).train_dataloader()


class Recorder(LightningModule):
    """Notes the events and a number that augmentations change; stops where it is told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple] = []
        self.stop_after = stop_after

    def training_step(self, batch: StreamBatch, batch_idx: int) -> torch.Tensor:
        value = batch.voxels["cal3d"].charge.sum() + batch.tracks["muon"].feat.sum()
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
    def run(model: Recorder, **options) -> list[tuple]:
        settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        trainer = Trainer(max_epochs=2, limit_val_batches=0, enable_model_summary=False, **settings)
        trainer.fit(model, datamodule=module(root, augment=fasercal_augmentation()), **options)
        return model.seen

    whole = run(Recorder())
    assert len(whole) == 10
    stopped = Recorder(stop_after)
    stopped.path = tmp_path / "stopped.ckpt"
    assert run(stopped)[:stop_after] == whole[:stop_after]
    assert run(Recorder(), ckpt_path=stopped.path) == whole[stop_after:]


# ---- numbers of the standardisation


def test_numbers_are_those_of_the_first_training_events(root, monkeypatch):
    monkeypatch.setattr(stream_datamodule, "FIT_LEAST", 6)
    data = module(root)
    assert data.transforms == [fit_standardize([data.reader("train")[i] for i in range(6)])]
    monkeypatch.setattr(stream_datamodule, "FIT_SHARE", 0.5)
    assert module(root).transforms == [fit_standardize([data.reader("train")[i] for i in range(11)])]
    monkeypatch.setattr(stream_datamodule, "FIT_MOST", 8)
    assert module(root).transforms == [fit_standardize([data.reader("train")[i] for i in range(8)])]


def test_numbers_are_kept_and_follow_the_files(root, tmp_path, monkeypatch, caplog):
    first = module(root).transforms
    monkeypatch.setattr(stream_datamodule, "fit_standardize", lambda events: pytest.fail("they are in the cache"))
    assert module(root).transforms == first and module(root, batch_size=2, max_events=5).transforms == first
    kept = list((tmp_path / "cache" / "statistics").iterdir())
    assert len(kept) == 1
    monkeypatch.undo()
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path / "cache"))
    write(root / "train" / "part.h5", [make_record(i, hits=3) for i in range(9)])
    assert module(root).transforms != first and len(list(kept[0].parent.iterdir())) == 2
    for path in kept[0].parent.iterdir():
        path.write_text("{")
    with caplog.at_level(logging.WARNING, logger="nufm"):
        assert isinstance(module(root).transforms[0], StandardizeStreams)
    assert "cannot be read" in caplog.text


def test_given_transforms_are_taken(root):
    given = fit_standardize([module(root).reader("test")[0]])
    data = module(root, transforms=[given])
    assert data.transforms == [given]
    data.transforms = []
    raw = data.eval_dataset("val")[0].voxels["cal3d"].charge
    assert np.array_equal(raw, data.reader("val")[0].voxels["cal3d"].charge)


def test_no_training_events_to_standardise_by(root):
    only = root / "only"
    only.mkdir()
    (root / "test").rename(only / "test")
    with pytest.raises(ValueError, match="no training events to standardise by; give the transforms"):
        _ = module(only).transforms
    assert len(list(module(only, transforms=[]).test_dataloader())) == 2


# ---- groups


def test_groups_are_samples(root):
    data = module(root, together=True, batch_size=2)
    training = epoch(data)
    assert len(training) == 4  # 8 groups of three, the last of two
    for batch in training:
        assert len(batch.groups) == 3 and batch.groups[-1] == len(batch)
        numbers = [int(n.split("#")[1]) for n in batch.names]
        for low, high in zip(batch.groups[:-1].tolist(), batch.groups[1:].tolist(), strict=True):
            assert numbers[low:high] == [n for n in range(23) if n // 3 == numbers[low] // 3]
    assert [b.groups.tolist() for b in data.val_dataloader()] == [[0, 3, 6], [0, 1]]
    single = module(root).eval_dataset("val")[4]
    assert np.array_equal(data.eval_dataset("val")[1][1].voxels["cal3d"].charge, single.voxels["cal3d"].charge)


def test_a_budget_of_groups_keeps_them_whole(root):
    names = {}
    for count in (2, 4):
        reader = module(root, together=True, max_events=count, subset_seed=1, batch_size=1).reader("train")
        names[count] = {int(reader.name(i).split("#")[1]) for i in range(len(reader))}
        found = {n // 3 for n in names[count]}
        assert len(found) == count and names[count] == {n for n in range(23) if n // 3 in found}
    assert names[2] < names[4]
    first = module(root, together=True, max_eval_events=2)
    assert [b.groups.tolist() for b in first.val_dataloader()] == [[0, 3, 6]]


def test_group_numbers_need_not_count_up():
    assert GroupDataset(None, np.array([-7, -7, 0, 5, 5, 5])).first.tolist() == [0, 2, 3, 6]
    assert len(GroupDataset(None, np.array([4]))) == 1


def test_groups_that_files_do_not_name(root):
    write(root / "val" / "more.h5", [make_record(0)])
    with pytest.raises(ValueError, match="no data set 'group'"):
        module(root, together=True).reader("val")


# ---- what it refuses


def test_arguments_that_cannot_be_meant(root):
    with pytest.raises(ValueError, match="batch_size is 0"):
        module(root, batch_size=0)
    with pytest.raises(ValueError, match="splits names"):
        module(root, splits={"testing": "x"})
    with pytest.raises(ValueError, match="none of its 5 events has 1000 hits"):
        module(root, min_voxels=1000).reader("test")
    with pytest.raises(ValueError, match="has no split 'val'"):
        module(root / "train" / "part.h5").reader("val")


def test_minimum_of_hits(root):
    assert len(module(root, min_voxels=12).reader("train")) < 23
