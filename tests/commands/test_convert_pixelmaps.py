"""``scripts/convert.py --pixelmaps``: from any kind of file to HDF5 or PNG, and what it refuses."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from image_events import image_event, random_volume, write_volume

from nufm.commands.convert import main
from nufm.data.image_files import ImageReader
from nufm.data.image_hdf5 import write_maps
from nufm.data.image_transforms import Brightness
from nufm.data.images import VIEWS


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path / "cache"))


def convert(*arguments: object) -> None:
    main([str(a) for a in arguments])


def test_from_maps_to_pictures_and_back(tmp_path, capsys):
    events = [image_event(i) for i in range(5)]
    events[2] = events[2].without("yz")
    write_maps(tmp_path / "maps.h5", events, {"producer": "by hand"})
    convert(tmp_path / "maps.h5", "--pixelmaps", "--out", tmp_path / "png")
    assert "5 events of 16 × 16 pixels (5 mm, MeV) in" in capsys.readouterr().out
    convert(tmp_path / "png", "--pixelmaps", "--out", tmp_path / "again.h5")
    assert "5 events of 16 × 16 pixels (5 mm, grey)" in capsys.readouterr().out
    again = ImageReader(tmp_path / "again.h5")
    assert again.producer == "by hand" and [set(e.views) for e in again][2] == {"xz"}
    for event, read in zip(events, again, strict=True):
        assert read.truth["interaction"] == event.truth["interaction"]
        for view in VIEWS:
            assert (np.rint(Brightness().values(event.image(view)) * 255) == read.image(view)).all()


def test_3d_events_to_maps(tmp_path):
    volume = random_volume(np.random.default_rng(0), 100, (60, 60, 60))
    path = write_volume(tmp_path / "a.h5", [volume], {"interaction": np.array([1])})
    out = tmp_path / "maps.h5"
    convert(path, "--pixelmaps", "--size", 128, "--centre", "charge", "--detector", "pixel_lartpc", "--out", out)
    reader = ImageReader(out)
    assert reader.shape == (128, 128) and reader.pitch == 5.0 and reader[0].truth == {"interaction": 1}
    assert all(v.energy.sum() == pytest.approx(volume[1].sum(), rel=1e-5) for v in reader[0].views.values())


def test_labels_unit_and_splits(tmp_path):
    images = np.stack([[image_event(s).image(v) for v in VIEWS] for s in range(20)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = images, ["sig", "bkg"] * 10
    said = ("--labels", "sig=nue CC,bkg=NC", "--unit", "MeV", "--pitch", 3, "--splits", "train=0.8,val=0.1,test=0.1")
    convert(tmp_path / "a.h5", "--pixelmaps", *said, "--out", tmp_path / "set")
    readers = {split: ImageReader(tmp_path / "set" / split) for split in ("train", "val", "test")}
    assert {split: len(reader) for split, reader in readers.items()} == {"train": 16, "val": 2, "test": 2}
    found = [e.image("xz").sum() for reader in readers.values() for e in reader]
    assert sorted(found) == pytest.approx(sorted(images[:, 0].sum((1, 2)))) and readers["val"].pitch == 3
    labels = np.concatenate([reader.truths()["interaction"] for reader in readers.values()])
    assert sorted(labels) == [1] * 10 + [2] * 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "8"], "--size is for pixel maps: add --pixelmaps"),
        (["--labels", "a=NC"], "--labels is for pixel maps: add --pixelmaps"),
        (["--pixelmaps", "--labels", "NC"], "found 'NC', expected e.g."),
        (["--pixelmaps", "--labels", "a=tau"], "labels: label 'a' stands for 'tau', expected a class; known classes"),
        (["--pixelmaps", "--size", "8"], "maps of 16 × 16 pixels, expected 8 × 8"),
        (["--pixelmaps", "--particles", "superfgd"], "--pixelmaps has no particles"),
        (["--pixelmaps", "--splits", "train=0.5,val=0.2"], "expected positive numbers that sum to 1"),
        (["--pixelmaps", "--splits", "train=0.95,val=0.05"], "2 events leave none for val"),
    ],
)
def test_refused(tmp_path, capsys, arguments, words):
    write_maps(tmp_path / "maps.h5", [image_event(1), image_event(2)])
    with pytest.raises(SystemExit):
        convert(tmp_path / "maps.h5", "--out", tmp_path / "out", *arguments)
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()
