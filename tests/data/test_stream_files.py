"""Files of events with several streams: what is written is what is read, in both layouts; what is wrong is refused."""

from __future__ import annotations

import pickle

import h5py
import numpy as np
import pytest
from stream_records import make_record, npz_fields, without, write

from nufm.data.stream_files import StreamReader, event_from_record
from nufm.data.stream_npz import TRACK_COLUMNS, npz_record, write_npz
from nufm.data.streams import CHARM_NAMES, FLAVOUR_NAMES, StreamBatch, StreamEvent

COLUMNS = ("charge", "px", "py", "pz", "chi2")


def check_event(event: StreamEvent, record: dict, shares: float = 0.0) -> None:
    """The event is the one of the record; tracks that fail the selection aside."""
    for stream in ("cal3d", "ahcal"):
        if f"hits/{stream}/index" not in record:
            assert stream not in event.voxels
            continue
        hits = event.voxels[stream]
        for name in ("index", "module", "charge", "ghost"):
            if f"hits/{stream}/{name}" in record:
                assert np.array_equal(getattr(hits, name), record[f"hits/{stream}/{name}"]), (stream, name)
            elif name == "ghost":
                assert hits.ghost is None
        for name in ("hierarchy", "category"):
            if f"hits/{stream}/{name}" in record:
                assert np.abs(getattr(hits, name) - record[f"hits/{stream}/{name}"]).max(initial=0) <= shares
    assert ("ecal" in event.matrices) is ("matrices/ecal" in record)
    if "matrices/ecal" in record:
        assert np.array_equal(event.matrices["ecal"], record["matrices/ecal"])
    assert ("muon" in event.tracks) is ("tracks/muon/features" in record)
    if "tracks/muon/features" in record:
        rows = record["tracks/muon/features"]
        kept = [r for r in rows if r[TRACK_COLUMNS.index("n_points")] >= 3 and r[TRACK_COLUMNS.index("chi2")] > 0]
        wanted = np.array([[r[TRACK_COLUMNS.index(c)] for c in COLUMNS] for r in kept]).reshape(-1, 5)
        assert np.array_equal(event.tracks["muon"], wanted)
    for name, value in event.truth.items():
        assert np.array_equal(value, record[f"truth/{name}"])
    assert {f"truth/{n}" for n in event.truth} == {p for p in record if p.startswith("truth/")}


# ---- HDF5


def test_events_are_read_as_they_were_written(tmp_path):
    records = [
        make_record(0),
        make_record(1, hits=0, ahcal=0, tracks=0),
        without(make_record(2), "cal3d"),
        without(without(make_record(3), "muon"), "ecal"),
        make_record(4, hits=1, ahcal=1, tracks=1),
    ]
    records[0]["tracks/muon/features"][0, 1] = 2  # too few points
    records[4]["tracks/muon/features"][0, 6] = 0  # no χ²
    path = write(tmp_path / "a.h5", records)
    reader = StreamReader(path)
    assert (reader.detector, len(reader), reader.n_total, reader.files) == ("fasercal", 5, 5, [path])
    for i, record in enumerate(records):
        check_event(reader[i], record)
        assert reader[i].name == reader.name(i) == f"{path}#{i}"
    assert [len(reader[i].tracks["muon"]) for i in (0, 1, 4)] == [1, 0, 0]
    assert (reader[-1].voxels["cal3d"].index == records[4]["hits/cal3d/index"]).all()
    with pytest.raises(IndexError):
        reader[5]
    batch = StreamBatch.from_events(list(reader))
    assert batch.voxels["cal3d"].offsets.diff().tolist() == [30, 0, 0, 30, 1]
    assert batch.tracks["muon"].present.tolist() == [True, True, True, False, True]
    assert batch.truth["flavour"].tolist() == [0, 1, 2, 3, 4]


def test_nothing_in_any_stream(tmp_path):
    bare = {"truth/flavour": np.int64(5), "truth/vertex": np.zeros(3, np.float32)}
    reader = StreamReader(write(tmp_path / "a.h5", [make_record(0), bare | {"truth/charm": np.int64(-1)}]))
    event = reader[1]
    assert not event.voxels and not event.matrices and not event.tracks and event.n_hits == 0
    assert StreamBatch.from_events([event]).voxels["cal3d"].offsets.tolist() == [0, 0]


def test_tracks_of_the_detectors_own_columns(tmp_path):
    record = make_record(0)
    record["tracks/muon/features"] = np.array([[1, 2, 3, 4, -1]], np.float32)  # no selection: χ² is below 0
    assert np.array_equal(StreamReader(write(tmp_path / "a.h5", [record]))[0].tracks["muon"], [[1, 2, 3, 4, -1]])


def test_fields_that_a_file_lacks(tmp_path):
    record = make_record(0)
    for name in ("ghost", "hierarchy", "category"):
        del record[f"hits/cal3d/{name}"]
    event = StreamReader(write(tmp_path / "a.h5", [without(record, "ecal")]))[0]
    hits = event.voxels["cal3d"]
    assert hits.ghost is hits.hierarchy is hits.category is None and "ecal" not in event.matrices
    assert (event.voxels["ahcal"].module == 0).all()


def test_half_precision_shares(tmp_path):
    record = make_record(0)
    half = {p: v.astype(np.float16) if p.endswith(("hierarchy", "category")) else v for p, v in record.items()}
    event = StreamReader(write(tmp_path / "a.h5", [half]))[0]
    check_event(event, record, shares=1e-3)
    assert event.voxels["cal3d"].category.dtype == np.float32


@pytest.mark.parametrize("n", [3, 1100])  # ghosts are counted in blocks of 1024 events
def test_minimum_of_hits_that_are_not_ghosts(tmp_path, n):
    records = [make_record(i, hits=i % 9, ahcal=0, tracks=0) for i in range(n)]
    records[1] = without(records[1], "cal3d")
    reader = StreamReader(write(tmp_path / "a.h5", records), min_voxels=3)
    wanted = [i for i, r in enumerate(records) if i != 1 and (r["hits/cal3d/ghost"] != 1).sum() >= 3]
    assert [int(reader.name(i).split("#")[1]) for i in range(len(reader))] == wanted
    assert reader.n_below_minimum == n - len(wanted)
    plain = [{p: v for p, v in r.items() if not p.endswith("ghost")} for r in records]
    found = StreamReader(write(tmp_path / "b.h5", plain), min_voxels=3)
    assert len(found) == sum(i != 1 and i % 9 >= 3 for i in range(n))


def test_subsets_are_nested_and_files_sorted(tmp_path):
    for k in (1, 0):
        write(tmp_path / f"part{k}.h5", [make_record(10 * k + i) for i in range(10)])
    numbers = lambda **a: [int(r["identity/event"]) for r in map(StreamReader(tmp_path, **a).record, range(a.get(  # noqa: E731
        "max_events", 20)))]  # fmt: skip
    assert numbers() == list(range(20))
    assert numbers(max_events=13) == list(range(13))
    drawn, more = numbers(max_events=6, subset_seed=1), numbers(max_events=12, subset_seed=1)
    assert set(drawn) < set(more) and drawn == sorted(drawn) != list(range(6))
    assert numbers(max_events=6, subset_seed=2) != drawn
    with pytest.raises(ValueError, match="max_events is 0"):
        StreamReader(tmp_path, max_events=0)


def test_groups_of_several_files_stay_apart(tmp_path):
    write(tmp_path / "a.h5", [make_record(i, group=g) for i, g in enumerate((0, 0, 4))])
    write(tmp_path / "b.h5", [make_record(i, group=g) for i, g in enumerate((0, 4))])
    assert StreamReader(tmp_path).group.tolist() == [0, 0, 1, 2, 3]
    write(tmp_path / "c.h5", [make_record(0)])
    assert StreamReader(tmp_path).group is None


def test_reader_travels_to_other_processes(tmp_path):
    reader = StreamReader(write(tmp_path / "a.h5", [make_record(i) for i in range(3)]))
    first = reader[1]
    again = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(again[1].voxels["cal3d"].charge, first.voxels["cal3d"].charge)
    reader.close()
    assert np.array_equal(reader[1].voxels["cal3d"].charge, first.voxels["cal3d"].charge)


def damaged(change):
    """A file whose contents ``change`` has altered."""

    def make(tmp_path):
        path = write(tmp_path / "bad.h5", [make_record(i) for i in range(3)])
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def replace(file, name, value):
    del file[name]
    file[name] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.__delitem__("layout"), "expected layout = 1 and detector"),
        (lambda f: f.attrs.__setitem__("layout", 2), "expected layout = 1"),
        (lambda f: f.attrs.__setitem__("detector", "nowhere"), "unknown detector 'nowhere'"),
        (lambda f: f.move("hits/cal3d", "hits/cal4d"), "stream 'cal4d' among the hits.* has cal3d, ahcal"),
        (lambda f: f.__delitem__("hits/cal3d/charge"), "'hits/cal3d/charge' is missing"),
        (lambda f: f.__delitem__("hits/cal3d/module"), "'hits/cal3d/module' is missing, the stream has 10 modules"),
        (lambda f: f.__delitem__("tracks/muon/offsets"), "'tracks/muon/offsets' is missing"),
        (lambda f: replace(f, "hits/ahcal/charge", np.zeros(3)), "expected a rise from 0 to the number of rows"),
        (lambda f: replace(f, "hits/ahcal/offsets", [0, 9, 5, 21]), "expected a rise from 0"),
        (lambda f: replace(f, "truth/charm", np.zeros(2, int)), "events per data set .*'truth/charm': 2"),
        (lambda f: [f.__delitem__(k) for k in list(f)], "events per data set are {}"),
    ],
)
def test_damaged_file(tmp_path, change, message):
    path = damaged(change)(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        StreamReader(path)
    assert "bad.h5" in str(caught.value) or "nowhere" in message


def test_not_a_file_of_events(tmp_path):
    with pytest.raises(FileNotFoundError, match="not there"):
        StreamReader(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("x")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        StreamReader(tmp_path / "text.h5")
    (tmp_path / "text.npz").write_text("x")
    with pytest.raises(ValueError, match="not an npz file of one event"):
        StreamReader(tmp_path / "text.npz")[0]
    whole = write(tmp_path / "whole.h5", [make_record(0, hits=3000)]).read_bytes()
    (tmp_path / "half.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        StreamReader(tmp_path / "half.h5")


# ---- bad events: event, stream, field, found, expected


def changed(path: str, change) -> dict:
    record = make_record(0)
    record[path] = change(np.array(record[path]))
    return record


def with_value(row, value):
    def change(array):
        array[row] = value
        return array

    return change


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (changed("matrices/ecal", lambda v: v[:4]), ("ecal", "values", "(4, 5)", "(5, 5)")),
        (changed("hits/cal3d/module", with_value(3, 10)), ("cal3d", "module", "hit 3", "10", "0 … 9")),
        (changed("hits/cal3d/module", with_value(3, -1)), ("cal3d", "module", "hit 3", "-1", "0 … 9")),
        (changed("hits/cal3d/index", with_value((5, 2), 20)), ("cal3d", "index", "hit 5", "20", "0 … 19")),
        (changed("hits/cal3d/charge", with_value(2, np.nan)), ("cal3d", "charge", "[2]", "nan", "finite MeV")),
        (changed("hits/ahcal/charge", with_value(2, np.inf)), ("ahcal", "charge", "[2]", "inf", "finite MeV")),
        (changed("matrices/ecal", with_value((1, 2), np.nan)), ("ecal", "values", "[1, 2]", "nan", "finite MeV")),
        (changed("tracks/muon/features", lambda v: v[:, :4]), ("muon", "tracks", "(2, 4)", "px, py, pz", "(T, 5)")),
        (changed("tracks/muon/features", with_value((0, 3), np.nan)), ("muon", "tracks", "nan", "finite")),
        (changed("tracks/muon/features", lambda v: np.tile(v, (6, 1))), ("muon", "12 tracks", "at most 10")),
        (changed("hits/cal3d/index", lambda v: v.astype(float)), ("cal3d", "index", "float64", "integers")),
        (changed("hits/cal3d/index", lambda v: v[:, :2]), ("cal3d", "index", "(30, 2)", "(30, 3)")),
        (changed("hits/cal3d/hierarchy", lambda v: v[:, :2]), ("cal3d", "hierarchy", "(30, 2)", "(30, 3)")),
        (changed("hits/cal3d/ghost", with_value(4, 3)), ("cal3d", "ghost", "hit 4", "3", "a flag 0, 1 or 2")),
        (changed("hits/cal3d/category", with_value((4, 1), 1.5)), ("cal3d", "category", "hit 4", "1.5", "from 0 to 1")),
        (changed("hits/cal3d/hierarchy", with_value((4, 1), np.nan)), ("cal3d", "hierarchy", "hit 4", "nan")),
        (changed("truth/flavour", lambda v: v + 6), ("flavour", "6", "0 … 5", "-1")),
        (changed("truth/charm", lambda v: v - 2), ("charm", "-2", "0 … 3", "-1")),
        (changed("truth/vertex", lambda v: v[:2]), ("truth", "vertex", "(2,)", "(3,)")),
    ],
)
def test_bad_event_is_refused_by_name(record, words):
    with pytest.raises(ValueError) as caught:
        event_from_record(record, "fasercal", "file#7")
    for word in ("file#7", *words):
        assert word in str(caught.value)


def test_bad_event_in_a_file_says_where(tmp_path):
    records = [make_record(0), changed("hits/cal3d/module", with_value(3, 10))]
    reader = StreamReader(write(tmp_path / "a.h5", records))
    assert reader[0].n_hits == 37
    with pytest.raises(ValueError, match=r"a\.h5#1: stream 'cal3d', field 'module' of hit 3"):
        reader[1]


def test_voxel_that_is_hit_twice(tmp_path):
    record = make_record(0)
    for name in ("index", "module"):
        record[f"hits/cal3d/{name}"][4] = record[f"hits/cal3d/{name}"][9]
    with pytest.raises(ValueError, match="hit twice"):
        StreamReader(write(tmp_path / "a.h5", [record]))[0]


# ---- npz


def save(path, **changes):
    fields = npz_fields(make_record(changes.pop("seed", 0))) | changes
    np.savez_compressed(path, **{k: v for k, v in fields.items() if v is not None})
    return path


def test_npz_is_the_same_event(tmp_path):
    for seed in range(12):  # all flavours with all kinds of charm
        path = save(tmp_path / f"run_7_event_{seed}.npz", seed=seed)
        check_event(StreamReader(path)[0], make_record(seed), shares=1e-6)
    folder = StreamReader(tmp_path)
    assert len(folder) == 12 and folder.detector == "fasercal" and folder.name(0).endswith("event_0.npz")


def test_soft_labels_are_energy_shares(tmp_path):
    """One hit from five deposits, added up by hand: y_c = Σ w of the class / Σ w (weights need not sum to 1)."""
    rows = np.zeros((6, 13))
    rows[:, 3] = [22, -11, 13, 2212, -15, 111]
    rows[:, 9] = [1, 1, 1, 0, 0, 0]  # its track is a particle of the generator
    rows[:, 10] = [0, 1, 0, 1, 0, 0]  # its parent is: this counts first
    hits = np.array([[1, 2, 3, 0, 5.0, 0], [2, 2, 3, 0, 1.0, 1], [3, 2, 3, 0, 1.0, 2]])
    weight = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.4, 7.0])
    path = save(
        tmp_path / "a.npz",
        reco_hits=hits,
        true_hits=rows,
        true_index=np.array([0, 1, 2, 3, 4, 5, 0]),
        link_weight=weight,
        indptr=np.array([0, 6, 7, 7]),
        tau_decay_mode=2,
    )
    hit = StreamReader(path)[0].voxels["cal3d"]
    assert np.allclose(hit.hierarchy, [[0.6 + 0.4, 0.1 + 0.3, 0.2 + 0.4], [0, 0, 0], [0, 0, 0]] / np.array(2.0))
    # γ, e and π⁰ are electromagnetic, µ and a τ that decays to one muonic, protons hadronic
    assert np.allclose(hit.category, [[0.1 + 0.2 + 0.4, 0.3 + 0.6, 0.4], [0, 0, 0], [0, 0, 0]] / np.array(2.0))
    path = save(tmp_path / "b.npz", reco_hits=hits, true_hits=rows, true_index=np.array([4]), link_weight=np.ones(1),
                indptr=np.array([0, 1, 1, 1]), tau_decay_mode=1)  # fmt: skip
    assert StreamReader(path)[0].voxels["cal3d"].category[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("fields", "flavour"),
    [
        ({"is_cc": True, "in_neutrino_pdg": -14}, "νµ CC"),
        ({"is_cc": True, "in_neutrino_pdg": 12}, "νe CC"),
        ({"is_cc": True, "in_neutrino_pdg": -16, "tau_decay_mode": 1}, "ντ CC → e"),
        ({"is_cc": True, "in_neutrino_pdg": 16, "tau_decay_mode": 2}, "ντ CC → µ"),
        *(({"is_cc": True, "in_neutrino_pdg": 16, "tau_decay_mode": m}, "ντ CC → had") for m in (3, 4, 5, 6)),
        ({"is_cc": False, "in_neutrino_pdg": 16, "tau_decay_mode": 2}, "NC"),
    ],
)
def test_flavour(tmp_path, fields, flavour):
    assert FLAVOUR_NAMES[int(npz_record(save(tmp_path / "a.npz", **fields))["truth/flavour"])] == flavour


@pytest.mark.parametrize(
    ("products", "charm"),
    [
        ((), "charm → had"),
        ((211, -321, 12), "charm → had"),
        ((-11, 12, 311), "charm → e"),
        ((13, -14), "charm → µ"),
        ((11, -13), "charm → µ"),  # a muon counts before an electron
    ],
)
def test_charm(tmp_path, products, charm):
    for codes in (np.array(products, dtype=np.int32), np.array([(p,) for p in products], dtype=[("pdg", np.int32)])):
        record = npz_record(save(tmp_path / "a.npz", is_charmed=True, charm_decay=codes))
        assert CHARM_NAMES[int(record["truth/charm"])] == charm
        record = npz_record(save(tmp_path / "a.npz", is_charmed=False, charm_decay=codes))
        assert CHARM_NAMES[int(record["truth/charm"])] == "no charm"


def test_lepton_is_what_the_jet_lacks(tmp_path):
    visible, jet = np.array([1.0, 2, 30]), np.array([0.5, -1, 10])
    fields = {"vis_sp_momentum": visible, "jet_momentum": jet}
    charged = npz_record(save(tmp_path / "a.npz", seed=0, **fields))
    assert np.array_equal(charged["truth/lepton"], [0.5, 3, 20])
    neutral = npz_record(save(tmp_path / "a.npz", seed=5, **fields))
    assert np.array_equal(neutral["truth/lepton"], [0, 0, 0])


def test_z_counted_in_the_module_or_through_the_stack(tmp_path):
    record = make_record(0)
    within = npz_fields(record)["reco_hits"].copy()
    within[:, 2] = record["hits/cal3d/index"][:, 2]
    for hits in (within, npz_fields(record)["reco_hits"]):
        event = StreamReader(save(tmp_path / "a.npz", reco_hits=hits))[0]
        assert np.array_equal(event.voxels["cal3d"].index, record["hits/cal3d/index"])
    wrong = npz_fields(record)["reco_hits"].copy()
    wrong[0, 3] = (wrong[0, 3] + 1) % 10
    with pytest.raises(ValueError, match=r"field 'reco_hits', row 0: z = \d+ .* found module"):
        StreamReader(save(tmp_path / "b.npz", reco_hits=wrong))[0]


def test_origin_of_vertices(tmp_path):
    path = save(tmp_path / "a.npz", primary_vertex=np.array([174.0, 109.0, -66.0]))
    event = StreamReader(path, origin_mm=(170.0, 100.0, -60.0))[0]
    assert np.allclose(event.truth["vertex"], [4, 9, -6])


def test_absent_fields_are_missing_streams_and_unknown_truth(tmp_path):
    path = save(tmp_path / "a.npz", ecal_hits=None, muspec_info=None, is_cc=None, charm_decay=None, true_hits=None)
    event = StreamReader(path)[0]
    assert set(event.voxels) == {"cal3d", "ahcal"} and not event.matrices and not event.tracks
    assert event.voxels["cal3d"].hierarchy is None and event.voxels["cal3d"].ghost is not None
    assert "flavour" not in event.truth and "lepton" not in event.truth and "vertex" in event.truth
    assert "charm" in event.truth  # no charm in event 0: no decay is needed


def test_empty_fields(tmp_path):
    """As the public code writes them: without tracks an empty array, without deposits None."""
    empty = np.array([], dtype=np.float32)
    none = np.zeros(0, dtype=np.int32)
    path = save(
        *(tmp_path / "a.npz",),
        **{"muspec_info": empty.T, "ahcal_hits": np.zeros((0, 4)), "true_index": none, "link_weight": empty},
        **{"indptr": np.zeros(31, dtype=np.int32), "true_hits": np.array(None)},
    )
    event = StreamReader(path)[0]
    assert len(event.tracks["muon"]) == len(event.voxels["ahcal"]) == 0
    assert (event.voxels["cal3d"].category == 0).all()


@pytest.mark.parametrize("field", ["reco_hits", "charm_decay", "true_hits", "is_cc", "muspec_info"])
def test_python_objects_are_refused(tmp_path, field):
    path = save(tmp_path / "a.npz", seed=1, **{field: np.array([{"x": 1}], dtype=object)})
    with pytest.raises(ValueError, match=f"a.npz: field '{field}' cannot be read .*Python objects are refused"):
        StreamReader(path)[0]


def test_python_objects_that_nobody_asks_for_stay_unread(tmp_path):
    event = StreamReader(save(tmp_path / "a.npz", po=np.array([{"x": 1}], dtype=object)))[0]
    check_event(event, make_record(0), shares=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"reco_hits": np.zeros((3, 5))}, ("reco_hits", "(3, 5)", "(rows, 6)")),
        ({"ahcal_hits": np.ones((3, 3))}, ("ahcal_hits", "(3, 3)", "(rows, 4)")),
        ({"ahcal_hits": np.full((1, 4), 0.5)}, ("ahcal_hits", "row 0", "0.5", "whole numbers")),
        ({"muspec_info": np.ones((10, 2))}, ("muon", "muspec_info", "(10, 2)", "(11, tracks)", "n_points")),
        ({"ecal_hits": np.ones((4, 5))}, ("ecal", "(4, 5)", "(5, 5)")),
        ({"indptr": np.zeros(7, int)}, ("indptr", "(7,)", "(31,)")),
        ({"link_weight": np.ones(1)}, ("link_weight", "(1,)", "true_hits")),
        ({"in_neutrino_pdg": 22}, ("in_neutrino_pdg", "22", "±12")),
        ({"in_neutrino_pdg": 16, "tau_decay_mode": 0}, ("tau_decay_mode", "0", "1 to 6")),
        ({"is_cc": np.ones(2)}, ("is_cc", "(2,)", "one number")),
        ({"vis_sp_momentum": np.ones(2), "jet_momentum": np.ones(2)}, ("visible", "(2,)", "(3,)")),
    ],
)
def test_bad_npz(tmp_path, fields, words):
    path = save(tmp_path / "bad.npz", **fields)
    with pytest.raises(ValueError) as caught:
        StreamReader(path)[0]
    for word in ("bad.npz", *words):
        assert word in str(caught.value)


def test_bad_module_of_an_npz(tmp_path):
    hits = npz_fields(make_record(0))["reco_hits"]
    hits[:, 2] %= 20
    hits[4, 3] = 10
    with pytest.raises(ValueError, match=r"stream 'cal3d', field 'module' of hit 4 is \[10\], expected 0 … 9"):
        StreamReader(save(tmp_path / "a.npz", reco_hits=hits))[0]
    hits[4, 3], hits[6, 4] = 0, np.nan
    with pytest.raises(ValueError, match=r"b\.npz: stream 'cal3d', field 'charge' at \[6\] is nan"):
        StreamReader(save(tmp_path / "b.npz", reco_hits=hits))[0]


def test_no_stream_at_all(tmp_path):
    np.savez(tmp_path / "a.npz", is_cc=True)
    with pytest.raises(ValueError, match="none of the fields reco_hits"):
        StreamReader(tmp_path / "a.npz")[0]


def test_records_survive_the_npz_layout(tmp_path):
    for seed in range(12):
        record = make_record(seed)
        path = tmp_path / f"{seed}.npz"
        write_npz(path, record, origin_mm=(1.0, 2.0, 3.0))
        again = npz_record(path, origin_mm=(1.0, 2.0, 3.0))
        assert again.keys() == record.keys()
        for name, value in record.items():
            assert np.allclose(again[name], value, atol=2e-5), name
    labels = ("ghost", "hierarchy", "category")
    plain = {p: v for p, v in without(make_record(0), "muon").items() if not p.endswith(labels)}
    write_npz(tmp_path / "plain.npz", plain)
    assert npz_record(tmp_path / "plain.npz").keys() == plain.keys()


def test_detectors_do_not_mix(tmp_path):
    write(tmp_path / "a.h5", [make_record(0)])
    write(tmp_path / "b.h5", [{"extra": np.zeros(3, np.float32)}], detector="superfgd")
    with pytest.raises(ValueError, match=r"'fasercal' in .*a\.h5, 'superfgd' in .*b\.h5"):
        StreamReader(tmp_path)


def test_truths_without_hits(tmp_path):
    write(tmp_path / "a.h5", [make_record(i) for i in range(4)])
    write(tmp_path / "b.h5", [{p: v for p, v in make_record(i).items() if p != "truth/charm"} for i in (4, 5)])
    save(tmp_path / "c.npz", seed=3, in_neutrino_energy=None)
    reader = StreamReader(tmp_path)
    truths = reader.truths()
    assert set(truths) == {"flavour", "charm", "vertex", "visible", "jet", "lepton", "neutrino_energy"}
    for i, event in enumerate(reader):
        for name, values in truths.items():
            wanted = event.truth.get(name, -1 if name == "charm" else np.nan)
            assert np.array_equal(values[i], wanted, equal_nan=True), (i, name)
    assert truths["charm"].tolist() == [0, 1, 2, 3, -1, -1, 3]
    some = StreamReader(tmp_path, max_events=3, subset_seed=3)
    assert some.truths()["flavour"].tolist() == [int(e.truth["flavour"]) for e in some]
