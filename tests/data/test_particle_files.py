"""Files of single particles: simulated into the cache, cut out of public files, read by the common data module."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from nufm.data import particle_files
from nufm.data.detector import FOLDER
from nufm.data.particle_files import convert_particles, ensure_particles
from nufm.data.particles import PARTICLE_NAMES, pilarnet_records
from nufm.data.pilarnet import PILArNetReader
from nufm.data.stream_datamodule import StreamDataModule
from nufm.data.stream_files import StreamReader
from nufm.simulation.superfgd.dataset import simulate_file
from nufm.simulation.superfgd.event import SuperFGDSpec, simulate_event

GENUINE = Path(__file__).parent / "pilarnet_m_event.h5"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_simulated_particles_are_those_of_the_simulation(cache):
    folder = ensure_particles("superfgd", {"train": 6, "val": 0, "test": 4}, seed=5, workers=1, show_progress=False)
    assert sorted(p.name for p in folder.iterdir()) == ["test", "train"]
    with h5py.File(folder / "train" / "particles.h5") as file:
        assert file.attrs["producer"] == "simulated by nufm" and file.attrs["detector"] == "superfgd"
    reader = StreamReader(folder / "test")
    assert len(reader) == 4
    for i, event in enumerate(reader):
        volume = simulate_event(SuperFGDSpec(), 5, 2, i)
        hits = event.voxels["voxels"]
        order = np.lexsort(volume.index.T[::-1])
        inside = np.ptp(volume.index, axis=0) < 120
        assert event.truth["particle"] == i % 4
        if inside.all():
            shift = volume.index[order][0] - hits.index[0]
            assert np.array_equal(hits.index + shift, volume.index[order])
            assert np.array_equal(hits.charge, volume.charge[order])


def test_the_cache_is_used_again_and_not_for_others(cache):
    numbers = {"train": 2}
    folder = ensure_particles("superfgd", numbers, workers=1, show_progress=False)
    made = (folder / "train" / "particles.h5").stat().st_mtime_ns
    assert ensure_particles("superfgd", numbers, workers=1, show_progress=False) == folder
    assert (folder / "train" / "particles.h5").stat().st_mtime_ns == made
    assert ensure_particles("superfgd", numbers, seed=1, workers=1, show_progress=False) != folder
    with pytest.raises(ValueError, match="'muons', expected one of superfgd"):
        ensure_particles("muons", numbers)


@pytest.mark.parametrize("name", ["superfgd", "superfgd_volume", "pilarnet_crop"])
def test_another_crop_is_another_folder(cache, monkeypatch, name):
    """Particles that were cut out of or into a lattice are not those of another."""
    folder = ensure_particles("superfgd", {"train": 1}, workers=1, show_progress=False)
    changed = shutil.copytree(FOLDER, cache / "detectors")
    monkeypatch.setattr(particle_files, "FOLDER", changed)
    assert ensure_particles("superfgd", {"train": 1}, workers=1, show_progress=False) == folder
    with open(changed / f"{name}.yaml", "a") as file:
        file.write("# another one\n")
    assert ensure_particles("superfgd", {"train": 1}, workers=1, show_progress=False) != folder


def test_a_file_does_not_depend_on_the_workers(tmp_path):
    """Event 9 of two processes is that of one; a job has eight events."""
    for workers in (1, 2):
        simulate_file(tmp_path / f"{workers}.h5", 10, seed=2, workers=workers)
    one, two = (StreamReader(tmp_path / f"{w}.h5") for w in (1, 2))
    assert one.detector == "superfgd_volume" and len(one) == 10
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.voxels["voxels"].index, b.voxels["voxels"].index)
        assert np.array_equal(a.voxels["voxels"].charge, b.voxels["voxels"].charge)
        assert np.linalg.norm(a.truth["visible"]) < 1.51
    with pytest.raises(ValueError, match="events is 0"):
        simulate_file(tmp_path / "none.h5", 0)


def test_particles_of_pilarnet(tmp_path):
    path = convert_particles("pilarnet_particles", GENUINE, tmp_path / "particles.h5")
    reader = StreamReader(path)
    expected = pilarnet_records(PILArNetReader(GENUINE)[0], 0)
    assert len(reader) == len(expected) and reader.detector == "pilarnet_crop" and not reader.group.any()
    for event, record in zip(reader, expected, strict=True):
        assert np.array_equal(event.voxels["voxels"].index, record["hits/voxels/index"])
        assert np.array_equal(event.extra, record["extra"])
    with pytest.raises(FileExistsError):
        convert_particles("pilarnet_particles", GENUINE, path)


@pytest.mark.parametrize("threshold", [0.0, 0.13, 1.0])
def test_voxels_below_the_threshold_are_no_voxels_of_a_particle(tmp_path, threshold):
    """Counted from the columns of the file: particles of the five classes with five voxels above it."""
    with h5py.File(GENUINE) as file:
        energy = file["point"][0].reshape(-1, 8)[:, 3]
        cluster = file["cluster"][0].reshape(-1, 6).astype(int)
    keep = energy > threshold
    particle = np.repeat(cluster[:, 2], cluster[:, 0])[keep]
    pid = np.repeat(cluster[:, 5], cluster[:, 0])[keep]
    sizes = [(particle == p).sum() for p in np.unique(particle[(particle >= 0) & (pid >= 0) & (pid < 5)])]
    path = convert_particles("pilarnet_particles", GENUINE, tmp_path / "p.h5", energy_threshold=threshold)
    reader = StreamReader(path)
    assert len(reader) == sum(size >= 5 for size in sizes)
    assert min(float(e.voxels["voxels"].charge.min()) for e in reader) > threshold
    with h5py.File(path) as file:
        assert file.attrs["energy_threshold_mev"] == threshold


def test_particles_of_an_event_come_together(tmp_path):
    path = convert_particles("pilarnet_particles", GENUINE, tmp_path / "train" / "particles.h5")
    n = len(StreamReader(path))
    data = StreamDataModule(str(tmp_path), together=True, batch_size=1)
    batch = next(iter(data.train_dataloader()))
    assert batch.groups.tolist() == [0, n] and batch.extra.shape == (n, 31)
    single = StreamDataModule(str(tmp_path), batch_size=2)
    batch = next(iter(single.train_dataloader()))
    assert batch.groups is None and batch.n_events == 2


def test_public_sample(tmp_path):
    for number, name in enumerate(PARTICLE_NAMES["superfgd"]):
        folder = tmp_path / "training" / name
        folder.mkdir(parents=True)
        hits = np.array([[5.0, 5.0, 5.0 + 10 * i, 20.0 + number] for i in range(4)])
        torch.save({"reco_hits": hits}, folder / "event0.pt")
    reader = StreamReader(convert_particles("superfgd", tmp_path / "training", tmp_path / "train.h5"))
    assert [int(e.truth["particle"]) for e in reader] == [0, 1, 2, 3]
    assert [float(e.voxels["voxels"].charge[0]) for e in reader] == [20, 21, 22, 23]
    with pytest.raises(FileNotFoundError, match="proton"):
        convert_particles("superfgd", tmp_path, tmp_path / "other.h5")


def test_nothing_to_cut_out(tmp_path):
    """A file whose particles are all of no known class leaves no file behind."""
    with h5py.File(GENUINE) as old, h5py.File(tmp_path / "none.h5", "w") as new:
        for name in old:
            old.copy(name, new)
        cluster = new["cluster"][0].reshape(-1, 6)
        cluster[:, 5] = 5
        new["cluster"][0] = cluster.ravel()
    with pytest.raises(ValueError, match="no particle of the five classes"):
        convert_particles("pilarnet_particles", tmp_path / "none.h5", tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()
