"""Conversion of stream files: both directions, nothing half written, differences named."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from pilarnet_files import make_event, write_file
from stream_records import make_record, npz_fields, without, write

from nufm.commands.convert import main
from nufm.data.pilarnet import find_files
from nufm.data.stream_convert import to_hdf5, to_npz
from nufm.data.stream_datamodule import StreamDataModule
from nufm.data.stream_files import StreamReader
from nufm.data.streams import StreamEvent
from nufm.display.geometry import is_simulated


def same(a: StreamEvent, b: StreamEvent) -> bool:
    """The same event; momenta and positions to float32."""
    assert a.voxels.keys() == b.voxels.keys() and a.matrices.keys() == b.matrices.keys()
    assert a.tracks.keys() == b.tracks.keys() and a.truth.keys() == b.truth.keys()
    for stream, hits in a.voxels.items():
        for name in ("index", "module", "charge", "ghost", "hierarchy", "category"):
            one, other = getattr(hits, name), getattr(b.voxels[stream], name)
            assert (one is None) == (other is None)
            assert one is None or np.allclose(one, other, atol=1e-6), (stream, name)
    pairs = [(side[k], other[k]) for side, other in ((a.matrices, b.matrices), (a.tracks, b.tracks)) for k in side]
    assert all(np.array_equal(x, y) for x, y in pairs)
    return all(np.allclose(v, b.truth[k], atol=2e-5, equal_nan=True) for k, v in a.truth.items())


def test_there_and_back(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for i in range(7):
        np.savez_compressed(source / f"e{i}.npz", **npz_fields(make_record(i, hits=5 * i, ahcal=i, tracks=i % 3)))
    seen = []
    assert to_hdf5(source, tmp_path / "a.h5", (1.0, 2.0, 3.0), lambda: seen.append(1)) == len(seen) == 7
    first, made = StreamReader(source, origin_mm=(1.0, 2.0, 3.0)), StreamReader(tmp_path / "a.h5")
    assert all(same(a, b) for a, b in zip(first, made, strict=True))
    assert to_npz(tmp_path / "a.h5", tmp_path / "back", (1.0, 2.0, 3.0)) == 7
    again = StreamReader(tmp_path / "back", origin_mm=(1.0, 2.0, 3.0))
    assert again.files[3].name == "run_7_event_3.npz"
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_missing_streams_and_unknown_truth(tmp_path):
    one, other = npz_fields(make_record(0)), npz_fields(make_record(1))
    np.savez(tmp_path / "a.npz", **{k: v for k, v in one.items() if k not in ("ecal_hits", "is_cc", "run_number")})
    np.savez(tmp_path / "b.npz", **{k: v for k, v in other.items() if k not in ("muspec_info", "primary_vertex")})
    to_hdf5([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5") as file:
        assert "particle" not in file["truth"] and file["truth/flavour"][:].tolist() == [-1, 1]
    a, b = StreamReader(tmp_path / "c.h5")
    assert "ecal" not in a.matrices and "muon" in a.tracks and "ecal" in b.matrices and "muon" not in b.tracks
    assert np.isfinite(a.truth["vertex"]).all() and np.isnan(b.truth["vertex"]).all()


def test_producer_goes_along(tmp_path):
    path = write(tmp_path / "a.h5", [make_record(0)])
    with h5py.File(path, "r+") as file:
        file.attrs["producer"] = "simulated by nufm"
    to_npz(path, tmp_path / "npz")
    assert StreamReader(tmp_path / "npz").producer == "simulated by nufm"
    to_hdf5(tmp_path / "npz", tmp_path / "b.h5")
    assert StreamReader(tmp_path / "b.h5").producer == "simulated by nufm"
    assert all(is_simulated(StreamReader(tmp_path / name)[0]) for name in ("a.h5", "npz", "b.h5"))
    np.savez(tmp_path / "c.npz", **npz_fields(make_record(0)))
    to_hdf5(tmp_path / "c.npz", tmp_path / "c.h5")
    assert not any(is_simulated(StreamReader(tmp_path / name)[0]) for name in ("c.npz", "c.h5"))


def test_what_it_refuses(tmp_path):
    path = write(tmp_path / "a.h5", [make_record(0), make_record(6)])
    with pytest.raises(FileExistsError, match="is there already"):
        to_hdf5(path, path)
    with pytest.raises(FileExistsError, match="not empty"):
        to_npz(path, tmp_path)
    twice = write(tmp_path / "twice.h5", [make_record(0), make_record(0)])
    with pytest.raises(ValueError, match="a second event 0 of run 7"):
        to_npz(twice, tmp_path / "npz")
    other = write(tmp_path / "other.h5", [{"extra": np.zeros(3, np.float32)}], detector="superfgd")
    with pytest.raises(ValueError, match="npz layout is for 'fasercal' only"):
        to_npz(other, tmp_path / "npz")
    np.savez(tmp_path / "x.npz", **npz_fields(make_record(0)))
    np.savez(tmp_path / "y.npz", **{k: v for k, v in npz_fields(make_record(1)).items() if k != "true_hits"})
    with pytest.raises(ValueError, match=r"y\.npz: stream 'cal3d' has the labels \['ghost'\], expected \['category'"):
        to_hdf5([tmp_path / "x.npz", tmp_path / "y.npz"], tmp_path / "z.h5")
    bad = npz_fields(make_record(2))
    bad["ecal_hits"] = bad["ecal_hits"][:4]
    np.savez(tmp_path / "y.npz", **bad)
    with pytest.raises(ValueError, match=r"y\.npz: stream 'ecal'"):
        to_hdf5([tmp_path / "x.npz", tmp_path / "y.npz"], tmp_path / "z.h5")
    assert not (tmp_path / "z.h5").exists() and not (tmp_path / "npz").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_command(tmp_path, capsys):
    write(tmp_path / "a.h5", [without(make_record(i), "muon") for i in range(3)])
    main([str(tmp_path / "a.h5"), "--out", str(tmp_path / "npz"), "--origin", "1", "0", "-2"])
    assert capsys.readouterr().out == f"3 events in {tmp_path / 'npz'}\n"
    main([str(tmp_path / "npz"), "--out", str(tmp_path / "b.h5"), "--origin", "1", "0", "-2"])
    assert all(
        same(x, y) for x, y in zip(StreamReader(tmp_path / "a.h5"), StreamReader(tmp_path / "b.h5"), strict=True)
    )
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing"), "--out", str(tmp_path / "c.h5")])
    assert "nothing is not there" in capsys.readouterr().err


def test_command_cuts_particles_out(tmp_path, capsys):
    write_file(tmp_path / "points.h5", [make_event(seed, 400) for seed in range(2)])
    arguments = [str(tmp_path / "points.h5"), "--particles", "pilarnet_particles", "--out", str(tmp_path / "p.h5")]
    main(arguments)
    reader = StreamReader(tmp_path / "p.h5")
    assert capsys.readouterr().out == f"{len(reader)} particles in {tmp_path / 'p.h5'}\n"
    assert reader.detector == "pilarnet_crop" and set(reader.group.tolist()) == {0, 1}
    for wrong, message in ((arguments, "is there already"), ([*arguments, "more"], "takes one file")):
        with pytest.raises(SystemExit):
            main(wrong if wrong is arguments else ["more", *arguments])
        assert message in capsys.readouterr().err
    main([*arguments[:-1], str(tmp_path / "high.h5"), "--energy-threshold", "0.5"])
    assert min(float(e.voxels["voxels"].charge.min()) for e in StreamReader(tmp_path / "high.h5")) > 0.5
    arguments[-1] = str(tmp_path / "q.h5")
    for wrong, message in (
        ([*arguments, "--splits", "train=0.5,val=0.5"], "--particles does not share out"),
        ([*arguments, "--particles", "superfgd", "--energy-threshold", "0.1"], "not for 'superfgd'"),
        ([arguments[0], *arguments[3:], "--energy-threshold", "0.1"], "events keep all their voxels"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert message in capsys.readouterr().err and not (tmp_path / "q.h5").exists()


def test_events_are_shared_out(tmp_path, capsys):
    write(tmp_path / "a.h5", [make_record(i, group=i // 2) for i in range(20)])
    arguments = [str(tmp_path / "a.h5"), "--splits", "train=0.7,val=0.1,test=0.2", "--out"]
    main([*arguments, str(tmp_path / "d")])
    assert capsys.readouterr().out == f"20 events in {tmp_path / 'd'}\n"
    source, found = StreamReader(tmp_path / "a.h5"), {}
    for split, count in (("train", 14), ("val", 2), ("test", 4)):
        reader = StreamReader(tmp_path / "d" / split)
        found[split] = [int(reader.record(i)["identity/event"]) for i in range(len(reader))]
        assert len(reader) == count and all(same(e, source[n]) for e, n in zip(reader, found[split], strict=True))
        assert all(n ^ 1 in found[split] for n in found[split])  # both events of a group
    assert sorted(n for numbers in found.values() for n in numbers) == list(range(20))
    assert found["train"] != list(range(14))
    assert StreamDataModule(root=str(tmp_path / "d"), batch_size=2).has_split("test")
    for extra, message in (
        (["--splits", "train=0.7,val=0.1"], "sum to 1"),
        (["--splits", "train=0.99,val=0.01"], "leave none for val"),
        (["--splits", "train=1,trial=0"], "trial=0"),
        (["--splits", "train=half"], "train=half"),
        (["--out", str(tmp_path / "d")], "not empty"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, str(tmp_path / "e"), *extra])
        assert message in capsys.readouterr().err and not (tmp_path / "e").exists()


def test_files_of_single_events_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1, 0):
        (tmp_path / f"run_1_event_{number}.npz").touch()
    found = find_files(tmp_path, (".npz",))
    assert [path.stem.rsplit("_", 1)[1] for path in found] == ["0", "1", "2", "10"]
