"""Files and data sets of the pixel detector, and the command that writes them."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from nufm.data.detector import load_detector
from nufm.data.images import TRUTH
from nufm.data.pilarnet import PILArNetReader
from nufm.simulation.command import simulate
from nufm.simulation.pixelmaps import dataset
from nufm.simulation.pixelmaps.dataset import ensure_dataset, simulate_file, simulate_splits
from nufm.simulation.pixelmaps.event import DETECTOR, LATTICE, PixelSpec, simulate_event


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return simulate_file(tmp_path_factory.mktemp("pixels") / "events.h5", 10, seed=4, workers=1)


def contents(path) -> dict[str, list]:
    with h5py.File(path) as handle:
        tables = {name: [row.tolist() for row in handle[name]] for name in ("point", "cluster", "cluster_extra")}
        return {**tables, **{name: np.asarray(handle["truth"][name]).tolist() for name in handle["truth"]}}


def test_truth_is_that_of_images(file) -> None:
    assert dataset.TRUTH == TRUTH
    with h5py.File(file) as handle:
        assert set(handle["truth"]) == set(TRUTH)
        for name, (shape, kind, unit) in TRUTH.items():
            assert handle[f"truth/{name}"].shape == (10, *shape)
            assert handle[f"truth/{name}"].dtype == kind
            assert handle[f"truth/{name}"].attrs["unit"] == unit


def test_the_lattice_is_that_of_the_detector() -> None:
    detector = load_detector(DETECTOR)
    assert detector.lattice == LATTICE.size
    assert detector.pitch_mm == (LATTICE.pitch,) * 3
    assert detector.extent_mm == (2000.0, 2000.0, 7000.0)
    np.testing.assert_allclose(detector.position(np.zeros((1, 3)))[0], -LATTICE.high)


def test_files_say_where_they_come_from(file) -> None:
    with h5py.File(file) as handle:
        found = dict(handle.attrs)
    assert found["producer"] == "simulated by nufm"
    assert (found["detector"], found["seed"], found["stream"], found["first"]) == (DETECTOR, 4, 0, 0)
    assert json.loads(found["spec"])["mix"] == "published"
    assert found["version"] == dataset.simulation_version()


def test_the_reader_of_pilarnet_m_reads_them(file) -> None:
    reader = PILArNetReader(file, min_points=0, detector=DETECTOR)
    assert len(reader) == 10
    for index in (0, 9):
        expected = simulate_event(PixelSpec(), 4, 0, index)
        event = reader[index]
        keep = expected.truth.point[:, 3] > reader.energy_threshold
        np.testing.assert_array_equal(event.voxel, expected.truth.point[keep, :3].astype(int))
        np.testing.assert_array_equal(event.energy, expected.truth.point[keep, 3])
    with h5py.File(file) as handle:
        np.testing.assert_allclose(handle["truth/vertex"][9], expected.vertex, atol=1e-3)
        assert handle["truth/interaction"][9] == expected.label


def test_files_do_not_depend_on_the_number_of_workers_or_their_cut(file, tmp_path) -> None:
    whole = contents(file)
    two = contents(simulate_file(tmp_path / "two.h5", 10, seed=4, workers=2))
    assert repr(two) == repr(whole)  # NaN and all
    tail = contents(simulate_file(tmp_path / "tail.h5", 3, seed=4, workers=1, first=7))
    assert tail["point"] == whole["point"][7:]
    assert tail["vertex"] == whole["vertex"][7:]


def test_seeds_and_splits_share_no_event(tmp_path) -> None:
    folder = simulate_splits(tmp_path / "set", {"train": 3, "val": 3, "test": 2}, seed=1, workers=1)
    assert sorted(p.name for p in folder.iterdir()) == ["test", "train", "val"]
    energies = [e for split in folder.iterdir() for e in contents(split / "simulated_00000.h5")["neutrino_energy"]]
    energies += contents(simulate_file(tmp_path / "other.h5", 3, seed=2, workers=1))["neutrino_energy"]
    assert len(set(energies)) == len(energies) == 11


def test_an_empty_file_is_legal(tmp_path) -> None:
    with h5py.File(simulate_file(tmp_path / "none.h5", 0, workers=1)) as handle:
        assert handle["point"].shape == (0,)
        assert handle["truth/lepton"].shape == (0, 3)


def test_data_sets_are_made_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path))
    first = ensure_dataset({"train": 2, "val": 1, "test": 0}, workers=1, show_progress=False)
    assert sorted(p.name for p in first.iterdir()) == ["train", "val"]
    assert first.name.startswith(DETECTOR)
    monkeypatch.setattr(dataset, "simulate_splits", None)  # a second simulation would fail
    assert ensure_dataset({"train": 2, "val": 1}, show_progress=False) == first
    with pytest.raises(TypeError):
        ensure_dataset({"train": 2, "val": 1}, spec=PixelSpec(mix="balanced"), show_progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.txt", 1), "ends in .h5"),
        (("a.h5", -1), "events is -1"),
        (("a.h5", 1, -1), "seed is -1"),
        (("a.h5", 1, 0, 0), "workers is 0"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(tmp_path, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_file(tmp_path / arguments[0], *arguments[1:])
    assert list(tmp_path.iterdir()) == []


def test_existing_files_stay(file) -> None:
    with pytest.raises(FileExistsError, match="is there already"):
        simulate_file(file, 1)


def test_the_command_writes_them(tmp_path, capsys) -> None:
    path = tmp_path / "events.h5"
    simulate(["--detector", "pixel_lartpc", "--events", "2", "--out", str(path), "--workers", "1", "--mix", "balanced"])
    assert "2 events simulated by nufm" in capsys.readouterr().out
    with h5py.File(path) as handle:
        assert json.loads(handle.attrs["spec"])["mix"] == "balanced"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "pixel_lartpc", "--pitch", "3"], "--pitch means nothing with --detector pixel_lartpc"),
        (["--detector", "pixel_lartpc", "--mix", "natural"], "none of --detector pixel_lartpc: published, balanced"),
        (["--detector", "fasercal", "--mix", "published"], "none of --detector fasercal: balanced, natural"),
        (["--mix", "balanced"], "--mix means nothing with --detector pilarnet"),
    ],
)
def test_options_of_other_detectors_are_refused(tmp_path, capsys, options, message) -> None:
    with pytest.raises(SystemExit):
        simulate([*options, "--events", "1", "--out", str(tmp_path / "a.h5")])
    assert message in capsys.readouterr().err
