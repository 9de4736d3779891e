"""Batches: which events, in which order, on which process, with which random numbers."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from pilarnet_files import make_event, write_file

from nufm.data import hub, transforms
from nufm.data.datamodule import PointDataModule
from nufm.data.event import PointBatch
from nufm.data.loader import BatchLoader, EvalBatches, EventDataset, TrainBatches
from nufm.data.views import MultiView, ViewBatch


@pytest.fixture
def root(tmp_path) -> Path:
    for s, (split, n) in enumerate((("train", 23), ("val", 7), ("test", 5))):
        for k in range(2):
            events = [make_event(100 * s + 50 * k + i, 20 + i) for i in range(n // 2 if k else n - n // 2)]
            write_file(tmp_path / "data" / split / f"part{k}.h5", events)
    return tmp_path / "data"


def module(root, **changes) -> PointDataModule:
    return PointDataModule(**{"root": str(root), "min_points": 0, "batch_size": 4, "seed": 5} | changes)


def names(loader) -> list[list[str]]:
    return [["/".join(Path(n).parts[-2:]) for n in batch.names] for batch in loader]


def same(a, b) -> bool:
    """Equal down to the last bit, whatever the nesting."""
    if isinstance(a, ViewBatch):
        return same(a.globals_, b.globals_) and same(a.locals_, b.locals_)
    tensors = ("coord", "grid", "feat", "offsets", "seeds")
    equal = all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors) and a.names == b.names
    return equal and (a.origin is None) == (b.origin is None) and a.labels.keys() == b.labels.keys()


# ---- order


def test_training_order():
    batches = TrainBatches(23, 4, seed=1)
    assert len(batches) == 5
    epochs = []
    for epoch in range(8):
        batches.set_epoch(epoch)
        keys = [key for batch in batches for key in batch]
        assert {e for e, _ in keys} == {epoch} and len(keys) == 20
        events = [i for _, i in keys]
        assert len(set(events)) == 20 and set(events) <= set(range(23))  # 3 events wait for another epoch
        epochs.append(events)
    assert epochs[0] != epochs[1] != epochs[2]
    assert set().union(*epochs) == set(range(23))
    again = TrainBatches(23, 4, seed=1)
    again.set_epoch(2)
    assert [i for batch in again for _, i in batch] == epochs[2]
    assert [i for batch in TrainBatches(23, 4, seed=2) for _, i in batch] != epochs[0]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch_of_one(world):
    alone = list(TrainBatches(23, 8, seed=1))
    shares = [list(TrainBatches(23, 8, 1, rank, world)) for rank in range(world)]
    for k, batch in enumerate(alone):
        assert [key for share in shares for key in share[k]] == batch
        assert all(len(share[k]) == 8 // world for share in shares)


def test_start_in_the_middle_once():
    whole = TrainBatches(23, 4, seed=1)
    whole.set_epoch(3)
    expected = list(whole)
    part = TrainBatches(23, 4, seed=1)
    part.set_position(3, 2)
    part.set_epoch(3)  # as a trainer does at the start of the resumed epoch
    assert list(part) == expected[2:] and len(part) == 5
    part.set_epoch(4)
    assert len(list(part)) == 5


def test_order_does_not_share_the_random_numbers_of_a_sample():
    """NumPy pads seeds with zeros, so [seed, epoch] alone would be the stream of event 0."""
    order = [i for batch in TrainBatches(64, 64, seed=9) for _, i in batch]
    assert order != np.random.default_rng([9, 0, 0]).permutation(64).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 17])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_event_once(n, batch_size, world):
    if n < world:
        with pytest.raises(ValueError, match=f"{n} events cannot be evaluated on {world} processes"):
            EvalBatches(n, batch_size, 0, world)
        return
    shares = [list(EvalBatches(n, batch_size, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1  # or collective operations would hang
    assert all(len(batch) > 0 for share in shares for batch in share)
    assert sorted(i for share in shares for batch in share for _, i in batch) == list(range(n))
    assert max(len(batch) for share in shares for batch in share) <= -(-batch_size // world) + 1


def test_impossible_batches():
    with pytest.raises(ValueError, match="batch_size is 6 events over 4 processes, expected a multiple of 4"):
        TrainBatches(100, 6, 0, 0, 4)
    with pytest.raises(ValueError, match="7 training events are fewer than one batch of 8; lower batch_size"):
        TrainBatches(7, 8, 0)


# ---- samples


class Draw(transforms.Transform):
    """Puts a random number where a test can read it."""

    def __call__(self, event, rng):
        return event.replace(feat=np.full((len(event), 1), rng.random(), np.float32), columns=("log_energy",))


def test_randomness_is_of_seed_epoch_and_event(root):
    data = module(root)
    dataset = EventDataset(data.reader("train"), [transforms.NormalizeCoord(), Draw()], seed=5)

    def draw(key, of=dataset):
        return float(of[key].feat[0, 0])

    values = {(e, i): draw((e, i)) for e in range(3) for i in range(5)}
    assert len(set(values.values())) == 15
    assert draw((2, 3)) == values[2, 3] and draw(3) == values[0, 3]
    other = EventDataset(data.reader("train"), [transforms.NormalizeCoord(), Draw()], seed=6)
    assert draw((2, 3), other) != values[2, 3]
    assert dataset[(0, 1)].seed != dataset[(1, 1)].seed


@pytest.mark.parametrize("views", [None, MultiView(n_local=2)])
def test_workers_change_nothing(root, views):
    alone, shared = (module(root, views=views, num_workers=n).train_dataloader() for n in (0, 2))
    for epoch in range(2):  # the workers live on in the second epoch, and must learn that it is another one
        alone.sampler.set_epoch(epoch)
        shared.sampler.set_epoch(epoch)
        pairs = list(zip(alone, shared, strict=True))
        assert len(pairs) == 5 and all(same(a, b) for a, b in pairs)
        if epoch == 0:
            first = pairs[0][0]
    assert not same(first, pairs[0][0])


def test_starting_a_loader_leaves_the_global_random_numbers_alone(root):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(iter(module(root).train_dataloader()))
    assert torch.equal(torch.rand(3), expected)


# ---- module


def test_loaders(root):
    data = module(root, views=MultiView(n_local=3))
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 5 and all(isinstance(b, ViewBatch) and b.n_events == 4 for b in batches)
    assert all(not b.globals_.labels and b.globals_.origin is not None for b in batches)

    for loader, split, n in ((data.val_dataloader(), "val", 7), (data.test_dataloader(), "test", 5)):
        batches = list(loader)
        assert all(isinstance(b, PointBatch) for b in batches)
        assert [name for batch in names(batches) for name in batch] == [
            f"{split}/part{k}.h5#{i}" for k in range(2) for i in range(n // 2 if k else n - n // 2)
        ]
        assert set(batches[0].labels) == {"motif", "pid", "particle", "interaction", "momentum"}
        assert all(same(a, b) for a, b in zip(batches, loader, strict=True)), "evaluation must repeat itself"

    plain = module(root)
    assert isinstance(next(iter(plain.train_dataloader())), PointBatch)
    assert len(next(iter(plain.train_dataloader())).labels) == 5


def test_lattice_turns_with_the_points_or_stays_as_published(root):
    """Half a turn about z: augmented cells are mirrored in x and y, the published ones are those of the file."""
    turn = [transforms.RandomRotate("z", p=1.0, max_angle=0.0), transforms.RandomFlip(("x", "y"), p=1.0)]
    plain, turned, published = (
        next(iter(module(root, augment=augment, lattice=lattice, batch_size=2).train_dataloader()))
        for augment, lattice in (([], "augmented"), (turn, "augmented"), (turn, "original"))
    )
    assert torch.equal(turned.coord, published.coord) and torch.equal(turned.feat, published.feat)
    assert torch.equal(published.grid, plain.grid) and not torch.equal(turned.grid, plain.grid)
    with pytest.raises(ValueError, match="lattice is 'turned'"):
        module(root, lattice="turned")


def test_evaluation_is_not_augmented(root):
    data = module(root, augment=[transforms.RandomFlip(p=1.0)])
    train, plain = data.train_dataset()[3], data.eval_dataset("train")[3]
    np.testing.assert_array_equal(train.coord, -plain.coord)
    np.testing.assert_array_equal(plain.coord, transforms.NormalizeCoord()(plain, None).coord)


def test_probe_events(root):
    data = module(root, views=MultiView())
    loader = data.probe_dataloader("test", n_events=3, batch_size=2)
    assert names(loader) == [["test/part0.h5#0", "test/part0.h5#1"], ["test/part0.h5#2"]]
    assert sum(len(b.names) for b in data.probe_dataloader("val")) == 7
    assert "motif" in next(iter(data.probe_dataloader("train", 1))).labels


def test_limits(root):
    data = module(root, max_events=6, max_eval_events=3)
    assert [len(data.reader(s)) for s in ("train", "val", "test")] == [6, 3, 3]
    assert data.reader("train").name(5).endswith("part0.h5#5")
    drawn = module(root, max_events=6, subset_seed=1)
    assert len(drawn.reader("train")) == 6
    assert not drawn.reader("train").name(5).endswith("part0.h5#5")


def test_single_file_and_named_splits(root):
    file = root / "train" / "part0.h5"
    data = module(file)
    assert len(data.reader("train")) == 12 and data.val_dataloader() == []
    with pytest.raises(ValueError, match=r"part0\.h5' has no split 'test'.*--data.splits '\{test: "):
        data.test_dataloader()
    named = module(str(root / "train" / "*.h5"), splits={"val": str(root / "test")})
    assert len(named.reader("train")) == 23 and len(named.reader("val")) == 5
    relative = module(root, splits={"val": "test/part0.h5"})
    assert len(relative.reader("val")) == 3
    folder = module(root / "train")
    assert len(folder.reader("train")) == 23 and not folder.has_split("val")


def test_mistakes_are_explained(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        module(tmp_path / "nowhere").setup("fit")
    with pytest.raises(ValueError, match=r"none of its 23 events has 1024 points; lower min_points"):
        module(root, min_points=1024).setup("fit")
    with pytest.raises(
        ValueError, match=r"GridSample has size 0\.002, but the encoder's lattice grid_size 0\.001"
    ):
        module(root, transforms=[transforms.NormalizeCoord(), transforms.GridSample(0.002)])
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        module(root, batch_size=0)
    with pytest.raises(ValueError, match=r"splits names \['dev'"):
        module(root, splits={"dev": "x"})
    with pytest.raises(ValueError, match="augment is for whole events"):
        module(root, views=MultiView(), augment=[transforms.RandomFlip()])
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        module(root).reader("dev")
    with pytest.raises(ValueError, match="23 training events are fewer than one batch of 48"):
        module(root, batch_size=48).train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_event_stops_the_training_and_is_named(root, num_workers):
    with h5py.File(root / "train" / "part1.h5", "a") as f:
        flat = f["point"][4]
        flat[3] = -1
        f["point"][4] = flat
    with pytest.raises(ValueError, match=r"part1\.h5#4: field 'point' row 0, column 3 \(energy\): found -1"):
        list(module(root, num_workers=num_workers).probe_dataloader("train"))


def test_events_below_the_minimum_are_reported(root, caplog):
    with caplog.at_level(logging.INFO, logger="nufm"):
        module(root, min_points=25).setup("fit")
    assert "23 events, 13 of them used, 10 below the minimum of 25 points" in caplog.text


def test_hub_root(root, monkeypatch):
    """The client is replaced: what would be asked of the Hub, and that other processes do not ask it."""
    import huggingface_hub

    calls = []

    def snapshot(repo, **options):
        calls.append((repo, options))
        return str(root)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    data = module("hf://DeepLearnPhysics/PILArNet-M@abc")
    data.setup("fit")  # as on a process that did not prepare the data
    assert calls[-1][0] == "DeepLearnPhysics/PILArNet-M" and calls[-1][1]["local_files_only"]
    data.prepare_data()
    _, options = calls[-1]
    assert (
        options["repo_type"] == "dataset" and options["revision"] == "abc" and not options["local_files_only"]
    )
    assert {"train/*.h5", "val/*.npy"} <= set(options["allow_patterns"])
    assert len(data.reader("test")) == 5
    for wrong in ("hf://PILArNet-M", "hf://a/b/c", "hf:///x"):
        with pytest.raises(ValueError, match="expected hf://owner/name"):
            hub.download(wrong)


def test_loader_refuses_a_changed_order(root):
    loader = module(root).train_dataloader()
    state = loader.state_dict()
    loader.load_state_dict(state)
    changed = module(root, batch_size=2, max_events=20).train_dataloader()
    with pytest.raises(ValueError, match=r"cannot resume: .*n_events was 23, is 20, batch_size was 4, is 2"):
        changed.load_state_dict(state)
    assert isinstance(loader, BatchLoader)


def test_simulated_root(root, monkeypatch):
    """The simulation is replaced: what it would be asked for, and when."""
    import nufm.simulation.dataset

    calls = []

    def ensure(n_events, seed, workers):
        calls.append((n_events, seed, workers))
        return root

    monkeypatch.setattr(nufm.simulation.dataset, "ensure_dataset", ensure)
    data = PointDataModule(
        min_points=0, n_train=23, n_val=7, n_test=5, simulation_seed=8, simulation_workers=2
    )
    assert calls == []  # building the module makes nothing
    data.prepare_data()
    assert calls == [({"train": 23, "val": 7, "test": 5}, 8, 2)]
    assert [len(data.reader(s)) for s in ("train", "val", "test")] == [23, 7, 5]
    assert len(calls) == 1


def test_command_line(tmp_path):
    """Every setting is a typed flag, and YAML names transforms by import path."""
    from jsonargparse import ArgumentParser

    config = tmp_path / "data.yaml"
    config.write_text("""
data:
  root: /d
  transforms:
    - class_path: nufm.data.transforms.NormalizeCoord
    - class_path: nufm.data.transforms.LogEnergy
      init_args: {epsilon: 0.13}
  views:
    n_local: 4
    local_scale: [0.2, 0.3]
    shared: []
    local_augment:
      - class_path: nufm.data.transforms.RandomFlip
        init_args: {axes: [y], p: 0.25}
""")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(PointDataModule, "data")
    parsed = parser.parse_args(
        ["--config", str(config), "--data.batch_size", "12", "--data.views.n_global", "3"]
    )
    again = parser.parse_string(parser.dump(parsed))  # the resolved run is always saved, so it must read back
    for settings in (parsed, again):
        build = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
        data = build(settings).data
        assert data.batch_size == 12 and data.transforms[1] == transforms.LogEnergy(epsilon=0.13)
        flip = transforms.RandomFlip(axes=("y",), p=0.25)
        assert data.views == MultiView(3, 4, local_scale=(0.2, 0.3), shared=[], local_augment=[flip])
    for wrong in (["--data.batch_sizes", "3"], ["--data.batch_size", "many"], ["--data.views.n_loca", "3"],
                  ["--data.transforms", "[{class_path: nufm.data.transforms.RandomFlop}]"]):  # fmt: skip
        with pytest.raises(Exception, match=wrong[0].split(".")[1][:5]):
            parser.parse_args(wrong)
