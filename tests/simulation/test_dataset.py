"""Files and data sets: layout, determinism, the cache, and what happens when two ask at once."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from nufm.data.pilarnet import PILArNetReader
from nufm.simulation import dataset
from nufm.simulation.command import simulate
from nufm.simulation.dataset import SimulationSpec, ensure_dataset, simulate_event, simulate_file
from nufm.simulation.events import Generator, Recipe, Species
from nufm.simulation.voxels import Lattice

ROOT = Path(__file__).parents[2]
_SOFT = (50.0, 200.0)
SMALL = SimulationSpec(
    recipe=Recipe(
        (
            Generator(
                name="small",
                species=(Species((13, -13), _SOFT), Species((11,), _SOFT), Species((211,), _SOFT)),
                interactions=(1, 2),
                particles=(1, 3),
            ),
        )
    ),
    lattice=Lattice((256, 256, 256)),
    min_points=100,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return simulate_file(tmp_path_factory.mktemp("one") / "events.h5", 12, 5, 1, SMALL)


def test_layout_as_published(file):
    """Read with what the description of the layout says, and nothing of ours."""
    counts = np.load(file.with_name("events_points.npy"))
    with h5py.File(file, "r", libver="latest", swmr=True) as f:
        assert set(f) == {"point", "cluster", "cluster_extra"}
        assert len(counts) == 12 and all(len(f[name]) == 12 for name in f)
        for i in range(12):
            point, cluster = f["point"][i].reshape(-1, 8), f["cluster"][i].reshape(-1, 6)
            extra = f["cluster_extra"][i].reshape(-1, 5)
            assert point.dtype == extra.dtype == np.float32 and cluster.dtype == np.int64
            assert cluster[:, 0].sum() == len(point) == counts[i] and len(extra) == len(cluster)
            assert cluster[0, 1:].tolist() == [-1, -1, -1, 4, -1] and (extra[0] == -1).all()
            assert (cluster[1:, 0] > 0).all() and (cluster[1:, 1:4] >= 0).all()
            assert np.isin(cluster[1:, 4], (0, 1, 2, 3)).all() and np.isin(cluster[1:, 5], range(6)).all()
            assert np.array_equal(cluster[1:, 1], np.arange(len(cluster) - 1))
            assert np.isin(cluster[1:, 2], cluster[1:, 1]).all()  # a group is named by one of its fragments
            for group in np.unique(cluster[1:, 2]):  # the head's PID and momentum stand in every row
                rows = np.flatnonzero(cluster[:, 2] == group)
                assert len(np.unique(cluster[rows, 3])) == len(np.unique(cluster[rows, 5])) == 1
                assert (extra[rows] == extra[rows[0]]).all()
            voxel = point[:, :3]
            assert np.array_equal(voxel, np.rint(voxel)) and voxel.min() >= 0 and voxel.max() < 256
            assert len(np.unique(voxel, axis=0)) == len(voxel)
            assert (point[:, 3] >= 0.00999).all() and np.array_equal(point[:, 3], point[:, 4])
            assert (point[:, 6] > 0).all() and (point[:, 7] > 0).all() and np.isfinite(point).all()
        assert f.attrs["producer"] == "simulated by nufm" and f.attrs["seed"] == 5
        assert json.loads(f.attrs["spec"])["lattice"]["size"] == [256, 256, 256]
    assert sorted(p.name for p in file.parent.iterdir()) == ["events.h5", "events_points.npy"]


def test_our_reader_reads_it(file):
    reader = PILArNetReader(file, energy_threshold=0.0, min_points=0)
    assert len(reader) == 12
    event = reader[3]
    truth = simulate_event(SMALL, 5, 0, 3)
    assert np.array_equal(event.voxel, truth.point[:, :3]) and np.array_equal(event.energy, truth.point[:, 3])
    assert np.array_equal(event.motif, np.repeat(truth.cluster[:, 4], truth.cluster[:, 0]))


@pytest.mark.parametrize("workers", [2, 3])
def test_same_file_for_any_number_of_workers(file, tmp_path, workers):
    other = simulate_file(tmp_path / "w.h5", 12, 5, workers, SMALL)
    assert other.read_bytes() == file.read_bytes()
    assert (tmp_path / "w_points.npy").read_bytes() == file.with_name("events_points.npy").read_bytes()


def test_a_later_part_continues_the_stream(file, tmp_path):
    part = simulate_file(tmp_path / "part.h5", 3, 5, 1, SMALL, first=9)
    with h5py.File(file) as whole, h5py.File(part) as end:
        for i in range(3):
            assert np.array_equal(whole["point"][9 + i], end["point"][i])


def test_seeds_and_streams_differ():
    events = [
        simulate_event(SMALL, seed, stream, 0).point for seed, stream in ((0, 0), (0, 1), (0, 2), (1, 0))
    ]
    assert len({e.tobytes() for e in events}) == 4


def test_min_points_draws_again(file):
    smallest = np.load(file.with_name("events_points.npy")).min()
    assert smallest >= 100
    free = dataclasses.replace(SMALL, min_points=0)
    sizes = [len(simulate_event(free, 5, 0, i)) for i in range(30)]
    assert min(sizes) < 100  # the selection has something to do
    i = next(i for i, n in enumerate(sizes) if n >= 100)  # and leaves alone what passes
    assert np.array_equal(simulate_event(SMALL, 5, 0, i).point, simulate_event(free, 5, 0, i).point)
    with pytest.raises(ValueError, match="lower min_points"):
        original, dataset._ATTEMPTS = dataset._ATTEMPTS, 3
        try:
            simulate_event(dataclasses.replace(SMALL, min_points=10**6), 0, 0, 0)
        finally:
            dataset._ATTEMPTS = original


def test_events_without_points(tmp_path):
    nothing = Recipe((Generator("none", (Species((13,)),), interactions=(0, 0)),))
    spec = dataclasses.replace(SMALL, recipe=nothing, min_points=0)
    path = simulate_file(tmp_path / "empty.h5", 2, 0, 1, spec)
    reader = PILArNetReader(path, min_points=0)
    assert len(reader) == 2 and len(reader[0]) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_leaves_nothing_behind(tmp_path, workers, monkeypatch):
    bad = dataclasses.replace(SMALL, recipe=Recipe((Generator("odd", (Species((999,)),)),)))
    with pytest.raises(ValueError, match="999"):
        simulate_file(tmp_path / "x.h5", 20, 0, workers, bad)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_kept(file):
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="there already"):
        simulate_file(file, 1, 0, 1, SMALL)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"path": "x.txt"}, "h5"),
        ({"n_events": -1}, "events"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
    ],
)
def test_arguments_that_cannot_be_meant(tmp_path, change, message):
    arguments = {"path": "x.h5", "n_events": 1, "seed": 0, "workers": 1} | change
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        simulate_file(spec=SMALL, **arguments)


# ---- data sets in the cache


def test_ensure_makes_once_and_reuses(tmp_path, monkeypatch):
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path))
    numbers = {"train": 3, "val": 2, "test": 0}
    folder = ensure_dataset(numbers, 1, 1, SMALL, show_progress=False)
    assert folder.is_relative_to(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["train", "val"]
    assert len(PILArNetReader(folder / "train", min_points=0)) == 3
    train, val = (h5py.File(next((folder / s).glob("*.h5"))) for s in ("train", "val"))
    assert not np.array_equal(train["point"][0], val["point"][0])
    train.close(), val.close()

    monkeypatch.setattr(dataset, "simulate_file", lambda *a, **k: pytest.fail("simulated again"))
    assert ensure_dataset(numbers, 1, 1, SMALL, show_progress=False) == folder
    monkeypatch.undo()
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path))
    assert ensure_dataset(numbers, 2, 1, SMALL, show_progress=False) != folder
    monkeypatch.setattr(dataset, "simulation_version", lambda: "another")
    assert ensure_dataset(numbers, 1, 1, SMALL, show_progress=False) != folder


def test_a_broken_run_leaves_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path))
    original = dataset.simulate_event

    def fails_later(spec, seed, stream, index):
        if stream == 1:
            raise RuntimeError("power cut")
        return original(spec, seed, stream, index)

    monkeypatch.setattr(dataset, "simulate_event", fails_later)
    with pytest.raises(RuntimeError, match="power cut"):
        ensure_dataset({"train": 1, "val": 1}, 0, 1, SMALL, show_progress=False)
    assert [p for p in (tmp_path / "simulated").iterdir() if p.is_dir()] == []
    monkeypatch.setattr(dataset, "simulate_event", original)
    assert ensure_dataset({"train": 1, "val": 1}, 0, 1, SMALL, show_progress=False).is_dir()


RACER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_dataset import SMALL
from nufm.simulation import dataset
original = dataset.simulate_splits
def counted(*args, **kwargs):
    print("simulating", flush=True)
    return original(*args, **kwargs)
dataset.simulate_splits = counted
print(dataset.ensure_dataset({{"train": 4}}, 3, 1, SMALL, show_progress=False))
"""


def test_two_processes_that_ask_at_once(tmp_path):
    environment = dict(os.environ, NUFM_CACHE=str(tmp_path))
    code = RACER.format(tests=str(Path(__file__).parent))
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(2)
    ]
    said = [racer.communicate(timeout=300)[0].split() for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    assert said[0][-1] == said[1][-1] and sum("simulating" in words for words in said) == 1
    assert len(PILArNetReader(Path(said[0][-1]) / "train", min_points=0)) == 4


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="not empty"):
        dataset.simulate_splits(tmp_path / "data", {"train": 1}, spec=SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


# ---- the command line


def test_command_writes_a_file(tmp_path, capsys):
    arguments = ["--events", "2", "--out", str(tmp_path / "a.h5"), "--workers", "1", "--min-points", "0"]
    simulate([*arguments, "--voxels", "64", "64", "64"])
    said = capsys.readouterr()
    assert "2 events simulated by nufm" in said.out and "2/2 events" in said.err
    assert len(PILArNetReader(tmp_path / "a.h5", min_points=0)) == 2
    with h5py.File(tmp_path / "a.h5") as file:
        assert json.loads(file.attrs["spec"])["medium"]["name"] == "liquid argon"


def test_command_writes_a_data_set_of_another_medium(tmp_path):
    arguments = ["--out", str(tmp_path / "d"), "--splits", "train=2,test=1", "--workers", "1"]
    arguments += ["--medium", "plastic-scintillator", "--field", "0", "0.5", "0", "--min-points", "0"]
    simulate([*arguments, "--voxels", "64", "64", "64", "--pitch", "10"])
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["test", "train"]
    with h5py.File(next((tmp_path / "d" / "test").glob("*.h5"))) as file:
        spec = json.loads(file.attrs["spec"])
        assert "plastic" in spec["medium"]["name"] and spec["magnetic_field"] == [0, 0.5, 0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "x.h5"], "--events"),
        (["--events", "1", "--splits", "train=1", "--out", "x"], "either"),
        (["--splits", "trian=1", "--out", "x"], "trian=1"),
        (["--splits", "train=many", "--out", "x"], "train=many"),
        (["--events", "1", "--out", "x.txt"], ".h5"),
        (["--events", "1", "--out", "x.h5", "--medium", "water"], "water"),
        (["--events", "1", "--out", "x.h5", "--voxels", "0", "3", "3"], "lattice"),
    ],
)
def test_command_explains_mistakes(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        simulate(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_is_reported(tmp_path, monkeypatch):
    from nufm.simulation import workers

    started = []
    original = workers._start

    def start():
        process = original()
        started.append(process)
        threading.Timer(0.2, process.kill).start()
        return process

    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(RuntimeError, match="ended unexpectedly"):
        simulate_file(tmp_path / "x.h5", 400, 0, 2, SMALL)
    assert list(tmp_path.iterdir()) == [] and all(p.poll() is not None for p in started)
