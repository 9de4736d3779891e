"""The reader against files written by hand, one genuine event, and every way a file can be wrong."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from pilarnet_files import make_event, write_file

import nufm.data.pilarnet as pilarnet
from nufm.data.pilarnet import PILArNetReader, find_files

HERE = Path(__file__).parent


def expected_labels(event: dict, threshold: float) -> dict[str, list]:
    """Labels point by point, by a loop over clusters: the join rule as the data card states it."""
    out = {
        k: [] for k in ("voxel", "energy", "motif", "pid", "particle", "interaction", "momentum", "vertex")
    }
    start = 0
    for cluster, extra in zip(event["clusters"], event["extra"], strict=True):
        for point in event["points"][start : start + cluster[0]]:
            if np.float32(point[3]) > threshold:
                out["voxel"].append(point[:3].astype(int))
                out["energy"].append(np.float32(point[3]))
                out["motif"].append(cluster[4])
                out["pid"].append(5 if cluster[5] == -1 else cluster[5])
                out["particle"].append(cluster[2])
                out["interaction"].append(cluster[3])
                out["momentum"].append(np.float32(extra[1]))
                out["vertex"].append(extra[2:5].astype(np.float32))
        start += cluster[0]
    for name in ("particle", "interaction"):
        ranks = {v: i for i, v in enumerate(sorted({v for v in out[name] if v >= 0}))}
        out[name] = [ranks.get(v, -1) for v in out[name]]
    return out


@pytest.mark.parametrize("version", [1, 2, 3])
def test_layouts(tmp_path, version):
    events = [make_event(s, n) for s, n in ((0, 60), (1, 200), (2, 5))]
    events[1]["points"][10:20, 3] = 0.13  # exactly at the cut: dropped, since the cut is strict
    path = write_file(tmp_path / "a.h5", events, version)
    reader = PILArNetReader(path, min_points=0)
    assert len(reader) == 3 and reader.cluster_columns == [5 if version == 1 else 6]
    for i, event in enumerate(events):
        # 0.13 is not a float32: the comparison must not promote the stored value past the cut
        want = expected_labels(event, np.float32(0.13))
        got = reader[i]
        assert got.name == f"{path}#{i}" and got.detector == "pilarnet"
        fields = ["voxel", "energy", "motif", "particle", "interaction"]
        if version == 1:
            assert got.pid is None and got.momentum is None and got.vertex is None
        else:
            fields += ["pid", "momentum", "vertex"]
        for field in fields:
            np.testing.assert_array_equal(getattr(got, field), np.array(want[field]), err_msg=field)
    assert len(reader[1]) == 190


def test_genuine_event():
    event = PILArNetReader(HERE / "pilarnet_m_event.h5")[0]
    truth = np.load(HERE / "pilarnet_m_event.npz")
    assert len(event) == 1390
    order = np.lexsort(event.voxel.T)  # voxels are unique, so their order is a common one
    other = np.lexsort(truth["voxel"].T)
    names = {"voxel": "voxel", "energy": "energy_mev", "motif": "motif", "pid": "pid", "particle": "particle"}
    for field, column in names.items():
        np.testing.assert_array_equal(getattr(event, field)[order], truth[column][other], err_msg=field)
    assert set(event.interaction[event.particle >= 0]) == {0}


def test_minimum_is_before_the_cut_and_counted(tmp_path, caplog):
    events = [make_event(0, 100), make_event(1, 99), make_event(2, 150)]
    events[2]["points"][:140, 3] = 0.01  # 10 points survive, still used
    path = write_file(tmp_path / "a.h5", events)
    with caplog.at_level(logging.INFO, logger="nufm"):
        reader = PILArNetReader(path, min_points=100)
    assert [len(e) for e in reader] == [100, 10]
    assert (reader.n_total, reader.n_below_minimum) == (3, 1)
    assert "3 events, 2 of them used, 1 below the minimum of 100 points" in caplog.text
    np.testing.assert_array_equal(reader.points_before_cut, [100, 150])
    assert PILArNetReader(path, min_points=0, energy_threshold=0.0)[2].energy.min() < 0.13


def test_no_event_passes_is_said(tmp_path, caplog):
    path = write_file(tmp_path / "a.h5", [make_event(0)])
    assert len(PILArNetReader(path)) == 0
    assert "lower min_points" in caplog.text


def test_empty_one_point_and_large_events(tmp_path):
    empty = {"points": np.zeros((0, 8)), "clusters": np.zeros((0, 6)), "extra": np.zeros((0, 6))}
    bin_only = empty | {"clusters": np.array([[0, 0, -1, -1, 4, -1]]), "extra": -np.ones((1, 6))}
    path = write_file(tmp_path / "a.h5", [empty, bin_only, make_event(3, 1), make_event(4, 60000)])
    for companion in (False, True):
        if companion:
            np.save(tmp_path / "a_points.npy", [0, 0, 1, 60000])
        reader = PILArNetReader(path, min_points=0)
        assert [len(e) for e in reader] == [0, 0, 1, 60000]
        assert reader[0].motif.shape == (0,) and reader[0].vertex.shape == (0, 3)
    default = PILArNetReader(path)
    assert len(default) == 1 and default.n_below_minimum == 3


def test_duplicate_voxels_are_kept(tmp_path):
    event = make_event(0, 50)
    event["points"][1, :3] = event["points"][0, :3]
    assert len(PILArNetReader(write_file(tmp_path / "a.h5", [event]), min_points=0)[0]) == 50


def test_several_files_in_sorted_order(tmp_path, monkeypatch):
    for name, seeds in (("b", (2, 3)), ("a", (0, 1)), ("c", (4,))):
        write_file(tmp_path / "set" / f"{name}.h5", [make_event(s, 20 + s) for s in seeds])
    (tmp_path / "set" / "notes.txt").write_text("not data")
    folder = tmp_path / "set"
    monkeypatch.chdir(tmp_path)
    mixed = [folder / "c.h5", folder / "b.h5", folder / "[ab].h5"]
    for paths in (folder, str(folder / "*.h5"), mixed, "set", "s*/*.h5"):
        reader = PILArNetReader(paths, min_points=0)
        assert [len(e) for e in reader] == [20, 21, 22, 23, 24]
        assert [Path(reader.name(i)).name for i in range(5)] == [
            "a.h5#0",
            "a.h5#1",
            "b.h5#0",
            "b.h5#1",
            "c.h5#0",
        ]
    assert reader[-1].name == reader[4].name
    with pytest.raises(IndexError):
        reader[5]


def test_subsets(tmp_path):
    sets = [[make_event(10 * k + i, 20 + 5 * i) for i in range(10)] for k in range(2)]
    paths = [write_file(tmp_path / f"{k}.h5", events) for k, events in enumerate(sets)]
    everything = PILArNetReader(paths, min_points=30)  # drops the first two of each file
    names = [everything.name(i) for i in range(len(everything))]
    first = PILArNetReader(paths, min_points=30, max_events=11)
    assert [first.name(i) for i in range(len(first))] == names[:11]

    drawn = {}
    for k in (5, 12):
        reader = PILArNetReader(paths, min_points=30, max_events=k, subset_seed=3)
        drawn[k] = [reader.name(i) for i in range(len(reader))]
        assert len(drawn[k]) == k and drawn[k] == [n for n in names if n in drawn[k]]
    assert set(drawn[5]) < set(drawn[12]) and drawn[5] != names[:5]
    again = PILArNetReader(paths, min_points=30, max_events=5, subset_seed=3)
    assert [again.name(i) for i in range(5)] == drawn[5]


def test_more_asked_for_than_there_is(tmp_path, caplog):
    path = write_file(tmp_path / "a.h5", [make_event(0)])
    assert len(PILArNetReader(path, min_points=0, max_events=7)) == 1
    assert "max_events is 7, but only 1" in caplog.text
    with pytest.raises(ValueError, match="max_events is 0"):
        PILArNetReader(path, max_events=0)


def test_cluster_width_is_told_from_the_sizes(tmp_path):
    """30 numbers may be 5 rows of 6 or 6 rows of 5."""
    for version, n_clusters in ((1, 6), (2, 5)):
        events = [make_event(s, 80, n_clusters - 1) for s in range(3)]
        path = write_file(tmp_path / f"{version}.h5", events, version)
        with h5py.File(path) as f:
            assert len(f["cluster"][0]) == 30
        assert PILArNetReader(path, min_points=0).cluster_columns == [5 if version == 1 else 6]


# ---- index of point counts


def count_reads(monkeypatch) -> list:
    calls = []
    original = pilarnet._flat
    monkeypatch.setattr(
        pilarnet, "_flat", lambda h, f, rows, p: calls.append(rows) or original(h, f, rows, p)
    )
    return calls


def test_index_is_cached_and_follows_the_file(tmp_path, monkeypatch):
    path = write_file(tmp_path / "data" / "a.h5", [make_event(s, 30 + s) for s in range(4)])
    calls = count_reads(monkeypatch)
    first = PILArNetReader(path, min_points=31)
    assert any(isinstance(rows, slice) for rows in calls)
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"], "nothing may be written beside the data"
    cached = list((tmp_path / "cache" / "index").glob("*.npy"))
    assert len(cached) == 1
    np.testing.assert_array_equal(np.load(cached[0]), [30, 31, 32, 33])

    calls.clear()
    again = PILArNetReader(path, min_points=31)
    assert not any(isinstance(rows, slice) for rows in calls), "the index was made again"
    assert len(first) == len(again) == 3

    write_file(path, [make_event(s, 50 + s) for s in range(6)])
    assert len(PILArNetReader(path, min_points=31)) == 6

    for old in (tmp_path / "cache" / "index").glob("*.npy"):
        old.write_bytes(b"broken")
    assert len(PILArNetReader(path, min_points=51)) == 5


def test_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUFM_CACHE", str(tmp_path / "file"))
    path = write_file(tmp_path / "a.h5", [make_event(0)])
    assert len(PILArNetReader(path, min_points=0)) == 1
    assert "index cannot be kept" in caplog.text and "NUFM_CACHE" in caplog.text


def test_companion_is_used(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a.h5", [make_event(s, 30 + s) for s in range(4)], companion=True)
    calls = count_reads(monkeypatch)
    assert len(PILArNetReader(path, min_points=32)) == 2
    assert not any(isinstance(rows, slice) for rows in calls)
    assert not (tmp_path / "cache").exists()


# ---- processes


def _energies(reader, queue):
    queue.put([float(e.energy.sum()) for e in reader])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reader_in_other_processes(tmp_path, method):
    reader = PILArNetReader(write_file(tmp_path / "a.h5", [make_event(s) for s in range(5)]), min_points=0)
    here = [float(e.energy.sum()) for e in reader]  # the files are open now
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [
        context.Process(target=_energies, args=(reader, queue)) for _ in range(1 if method == "spawn" else 2)
    ]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [here] * len(workers)
    for worker in workers:
        worker.join()
    assert [float(e.energy.sum()) for e in reader] == here


def test_pickle_holds_no_handle(tmp_path):
    reader = PILArNetReader(write_file(tmp_path / "a.h5", [make_event(0)]), min_points=0)
    reader[0]
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy[0].energy, reader[0].energy)


# ---- bad input: each message says where, what was found, what was expected, and a remedy


def test_missing_files(tmp_path):
    for path in (tmp_path / "no.h5", tmp_path / "no*.h5"):
        with pytest.raises(FileNotFoundError, match=r"no.*h5 is not there; give an HDF5 file, a folder"):
            find_files(path)
    with pytest.raises(FileNotFoundError, match="a folder without"):
        find_files(tmp_path)
    write_file(tmp_path / "a.h5", [make_event(0)])
    with pytest.raises(FileNotFoundError, match=r"b\.h5"):
        find_files([tmp_path / "a.h5", tmp_path / "b.h5"])


def test_not_hdf5(tmp_path):
    path = tmp_path / "a.h5"
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"a\.h5: not an HDF5 file, found .*<html>40.*give a PILArNet-M"):
        PILArNetReader(path)


def test_truncated(tmp_path):
    path = write_file(tmp_path / "a.h5", [make_event(s, 500) for s in range(20)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"a\.h5.*truncated or damaged.*get it again"):
        PILArNetReader(path)


def test_missing_data_set(tmp_path):
    path = write_file(tmp_path / "a.h5", [make_event(0)])
    with h5py.File(path, "a") as f:
        del f["cluster"]
    with pytest.raises(
        ValueError, match=r"a\.h5: data set 'cluster' is missing, found \['cluster_extra', 'point'\]"
    ):
        PILArNetReader(path)


@pytest.mark.parametrize("companion", [False, True])
def test_points_alone_are_unlabelled_events(tmp_path, companion):
    """The same voxels and energies as with labels, and none of the labels."""
    events = [make_event(0), make_event(1, n_points=80), make_event(2, n_points=5)]
    labelled = PILArNetReader(write_file(tmp_path / "a.h5", events), min_points=20)
    path = write_file(tmp_path / "b.h5", events, companion=companion)
    with h5py.File(path, "a") as f:
        del f["cluster"], f["cluster_extra"]
    bare = PILArNetReader(path, min_points=20)
    assert len(bare) == 2 and bare.n_below_minimum == 1
    for with_labels, without in zip(labelled, bare, strict=True):
        np.testing.assert_array_equal(without.voxel, with_labels.voxel)
        np.testing.assert_array_equal(without.energy, with_labels.energy)
        assert without.motif is without.pid is without.particle is without.momentum is None


def test_data_sets_of_different_length(tmp_path):
    path = write_file(tmp_path / "a.h5", [make_event(0), make_event(1)])
    with h5py.File(path, "a") as f:
        del f["cluster_extra"]
        f.create_dataset("cluster_extra", (1,), dtype=h5py.vlen_dtype(np.float32))
    with pytest.raises(ValueError, match=r"a\.h5: data sets of different length, found .*'cluster_extra': 1"):
        PILArNetReader(path)


def test_rectangular_data_set(tmp_path):
    path = write_file(tmp_path / "a.h5", [make_event(0)])
    with h5py.File(path, "a") as f:
        del f["point"]
        f["point"] = np.zeros((1, 8), np.float32)
    with pytest.raises(
        ValueError, match="data set 'point' has type float32 and 2 dimensions, expected one array of"
    ):
        PILArNetReader(path)


def damage(tmp_path: Path, change) -> PILArNetReader:
    """A reader of four sound events and one, number 2, that ``change`` has seen."""
    events = [make_event(s) for s in range(5)]
    change(events[2])
    return PILArNetReader(write_file(tmp_path / "a.h5", events, version=3), min_points=0)


def set_point(row: int, column: int, value: float):
    return lambda e: e["points"].__setitem__((row, column), value)


def set_cluster(row: int, column: int, value: int):
    return lambda e: e["clusters"].__setitem__((row, column), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_point(7, 3, np.nan),
            r"'point' row 7, column 3 \(energy\): found nan, expected a finite value >= 0 MeV",
        ),
        (set_point(7, 3, np.inf), r"'point' row 7, column 3 \(energy\): found inf"),
        (set_point(7, 3, -0.5), r"'point' row 7, column 3 \(energy\): found -0.5, expected a finite value"),
        (
            set_point(9, 1, 768),
            r"'point' row 9, columns 0-2 \(voxel\): found .*768.*of 'pilarnet', 0 to \[767",
        ),
        (set_point(9, 2, -1), r"'point' row 9, columns 0-2 \(voxel\): found .*-1.*on the lattice"),
        (set_point(9, 0, 3.5), r"'point' row 9, columns 0-2 \(voxel\): found \[3.5.*whole lattice indices"),
        (set_point(9, 0, np.nan), r"'point' row 9, .*: found \[nan.*expected whole lattice indices"),
        (
            set_cluster(1, 4, 7),
            r"'cluster' row 1, column 4 \(motif\): found 7, expected a class from -1 to 4",
        ),
        (set_cluster(1, 5, 6), r"'cluster' row 1, column 5 \(PID\): found 6, expected a class from -1 to 5"),
        (set_cluster(1, 0, -3), r"'cluster' row 1: found \[-3.*size >= 0"),
        (
            lambda e: e.update(points=e["points"][:-1]),
            r"'point': found 59 rows, expected 60 rows, the sum of",
        ),
        (
            lambda e: e["extra"].__setitem__((2, 1), np.nan),
            r"'cluster_extra' row 2: found .*nan.*finite numbers",
        ),
        (lambda e: e.update(extra=e["extra"][:-1]), r"'cluster_extra': found 18 values, expected 5 or 6 col"),
    ],
)
def test_damaged_event(tmp_path, change, message):
    reader = damage(tmp_path, change)
    for sound in (0, 1, 3, 4):
        assert len(reader[sound]) == 60
    with pytest.raises(ValueError, match=rf"a\.h5#2: field {message}") as caught:
        reader[2]
    assert "get it again" in str(caught.value)


@pytest.mark.parametrize(("field", "cut", "message"), [
    ("point", 1, r"a\.h5#2: field 'point': found 479 values, expected rows of 8 columns"),
    ("cluster", 1, r"a\.h5#2: field 'cluster': found 23 values, expected rows of 6 columns"),
])  # fmt: skip
def test_incomplete_row(tmp_path, field, cut, message):
    path = write_file(tmp_path / "a.h5", [make_event(s) for s in range(5)])
    with h5py.File(path, "a") as f:
        f[field][2] = f[field][2][:-cut]
    reader = PILArNetReader(path, min_points=0)
    assert len(reader[3]) == 60
    with pytest.raises(ValueError, match=message):
        reader[2]


def test_wrong_column_count_everywhere(tmp_path):
    path = write_file(tmp_path / "a.h5", [make_event(s) for s in range(3)])
    with h5py.File(path, "a") as f:
        for i in range(3):
            f["cluster"][i] = np.delete(f["cluster"][i].reshape(-1, 6), 1, axis=1)[:, :4].reshape(-1)
    reader = PILArNetReader(path, min_points=0)
    with pytest.raises(
        ValueError, match=r"a\.h5#0: field 'cluster': found 16 values, expected rows of 6 columns"
    ):
        reader[0]


def test_companion_of_another_file(tmp_path):
    path = write_file(tmp_path / "a.h5", [make_event(0, 40), make_event(1, 40)])
    np.save(tmp_path / "a_points.npy", [40, 40, 40])
    with pytest.raises(
        ValueError, match=r"a_points\.npy: found shape \(3,\), expected \(2,\).*remove or rebuild it"
    ):
        PILArNetReader(path)
    np.save(tmp_path / "a_points.npy", [40, 41])
    reader = PILArNetReader(path, min_points=0)
    assert len(reader[0]) == 40
    with pytest.raises(ValueError, match=r"a\.h5#1: .*40 rows, but the index says 41.*a_points\.npy"):
        reader[1]
    (tmp_path / "a_points.npy").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"a_points\.npy: not a NumPy array of points per event"):
        PILArNetReader(path)


def test_companion_of_another_unlabelled_file(tmp_path):
    """The selection would be that of the other file's events."""
    path = write_file(tmp_path / "a.h5", [make_event(0, 40), make_event(1, 40)])
    with h5py.File(path, "a") as f:
        del f["cluster"], f["cluster_extra"]
    np.save(tmp_path / "a_points.npy", [40, 41])
    reader = PILArNetReader(path, min_points=0)
    assert len(reader[0]) == len(reader[-2]) == 40
    for last in (1, -1):
        with pytest.raises(ValueError, match=r"a\.h5#1: .*40 rows, but the index says 41.*a_points\.npy"):
            reader[last]


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(pilarnet, "MAX_OPEN_FILES", 2)
    reader = PILArNetReader(
        [write_file(tmp_path / f"{k}.h5", [make_event(k, 20 + k)]) for k in range(5)], min_points=0
    )
    for _ in range(2):
        assert [len(reader[i]) for i in (0, 4, 1, 3, 2)] == [20, 24, 21, 23, 22]
        assert len(reader._open_files) == 2
    reader.close()
    assert len(reader[0]) == 20


def test_files_say_whose_events_they_are(tmp_path):
    import shutil

    import h5py

    source = Path(__file__).resolve().parents[1] / "data" / "pilarnet_m_event.h5"
    plain, other = tmp_path / "a.h5", tmp_path / "b.h5"
    for copy in (plain, other):
        shutil.copy(source, copy)
    assert PILArNetReader(plain, min_points=0)[0].detector == "pilarnet"
    with h5py.File(other, "a") as file:
        file.attrs["detector"] = "pixel_lartpc"
    assert PILArNetReader(other, min_points=0).detector == "pixel_lartpc"
    assert PILArNetReader(other, min_points=0, detector="pilarnet")[0].detector == "pilarnet"
    with pytest.raises(ValueError, match=r"pixel_lartpc.*pilarnet"):
        PILArNetReader([plain, other], min_points=0)
