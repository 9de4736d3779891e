"""scripts/simulate.py --detector fasercal, and what it writes is what the reader of stream files reads."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from nufm.data.detector import load_stream_detector
from nufm.data.stream_convert import to_hdf5, to_npz
from nufm.data.stream_files import StreamReader, event_from_record
from nufm.simulation.command import simulate
from nufm.simulation.fasercal.dataset import FASERCalSpec, simulate_arrays, simulate_event


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated") / "d"
    arguments = ["--detector", "fasercal", "--out", str(out), "--splits", "train=6,test=2", "--workers", "1"]
    simulate([*arguments, "--mix", "natural", "--seed", "3"])
    return out


def test_events_are_whole(folder):
    geometry = load_stream_detector("fasercal")
    reader = StreamReader(folder / "train")
    assert len(reader) == 6 and reader.producer == "simulated by nufm"
    for event in reader:
        assert set(event.voxels) == {"cal3d", "ahcal"} and set(event.matrices) == {"ecal"}
        assert set(event.tracks) == {"muon"} and event.tracks["muon"].shape[1] == 5
        hits = event.voxels["cal3d"]
        real = hits.ghost == 0
        assert (hits.ghost != 1).sum() >= 20 and (hits.charge > 0).all()
        for shares in (hits.hierarchy, hits.category):
            assert np.allclose(shares[real].sum(1), 1, atol=2e-3) and (shares[hits.ghost == 1] == 0).all()
        truth = event.truth
        assert {"flavour", "charm", "visible", "jet", "lepton", "vertex", "neutrino_energy"} <= set(truth)
        charged = int(truth["flavour"]) != 5
        assert np.allclose(truth["lepton"], (truth["visible"] - truth["jet"]) * charged, atol=1e-2)
        stream = geometry.voxels["cal3d"]
        inside = truth["vertex"] - np.array(stream.low_mm)
        assert (inside >= 0).all() and (inside <= np.array([480, 480, 9 * stream.module_pitch_mm + 220])).all()
        assert np.linalg.norm(truth["visible"]) < truth["neutrino_energy"] + 2


def test_file_says_what_was_simulated(folder):
    with h5py.File(next((folder / "test").glob("*.h5"))) as file:
        assert json.loads(file.attrs["spec"])["beam"]["mix"] == "natural"
        assert (file.attrs["seed"], file.attrs["stream"], file.attrs["detector"]) == (3, 2, "fasercal")


def test_simulated_events_convert_there_and_back(folder, tmp_path):
    to_npz(folder / "test", tmp_path / "npz")
    to_hdf5(tmp_path / "npz", tmp_path / "back.h5")
    for a, b in zip(StreamReader(folder / "test"), StreamReader(tmp_path / "back.h5"), strict=True):
        assert np.array_equal(a.voxels["cal3d"].index, b.voxels["cal3d"].index)
        assert np.allclose(a.voxels["cal3d"].category, b.voxels["cal3d"].category, atol=1e-3)
        assert np.allclose(a.tracks["muon"], b.tracks["muon"]) and a.truth["flavour"] == b.truth["flavour"]
        assert np.allclose(a.truth["vertex"], b.truth["vertex"], atol=1e-2)


def test_both_forms_of_an_event_agree(tmp_path):
    """The npz form has the deposits and their links, the HDF5 form the soft labels: two derivations of the same."""
    spec = FASERCalSpec()
    for index in range(12):
        np.savez(tmp_path / "a.npz", **simulate_event(spec, 1, 0, index))
        a = StreamReader(tmp_path / "a.npz")[0]
        b = event_from_record(simulate_arrays(spec, 1, 0, index), "fasercal", "b")
        assert a.voxels.keys() == b.voxels.keys() and a.truth.keys() == b.truth.keys()
        for stream, hits in a.voxels.items():
            other = b.voxels[stream]
            order = [np.lexsort((*h.index.T, h.module)) for h in (hits, other)]
            for name in ("index", "module", "charge", "ghost", "hierarchy", "category"):
                one, two = getattr(hits, name), getattr(other, name)
                assert (one is None) == (two is None)
                assert one is None or np.allclose(one[order[0]], two[order[1]], atol=2e-3), (index, stream, name)
        assert np.allclose(a.matrices["ecal"], b.matrices["ecal"])
        assert np.allclose(a.tracks["muon"], b.tracks["muon"])
        for name, value in a.truth.items():
            assert np.allclose(value, b.truth[name], rtol=1e-4, atol=1e-2), (index, name)


def test_command_writes_a_file(tmp_path, capsys):
    simulate(["--detector", "fasercal", "--events", "2", "--out", str(tmp_path / "a.h5"), "--workers", "1"])
    assert "2 events simulated by nufm" in capsys.readouterr().out
    assert len(StreamReader(tmp_path / "a.h5")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detector", "fasercal", "--medium", "liquid-argon"], "--medium means nothing with --detector fasercal"),
        (["--detector", "fasercal", "--min-points", "3"], "--min-points means nothing with --detector fasercal"),
        (["--mix", "natural"], "--mix means nothing with --detector pilarnet"),
        (["--detector", "atlas"], "atlas"),
        (["--detector", "fasercal", "--events", "0"], "events is 0"),
    ],
)
def test_command_explains_mistakes(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        simulate(["--events", "1", "--out", str(tmp_path / "x.h5"), *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
