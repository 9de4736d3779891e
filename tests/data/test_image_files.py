"""HDF5 files of pixel maps: what is written is read back; arrays made elsewhere; what is refused, and how."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from image_events import image_event, random_volume, write_volume

from nufm.data.image_files import ImageReader, image_kind
from nufm.data.image_hdf5 import write_maps
from nufm.data.images import TRUTH, VIEWS, ImageEvent, View


def same(one: ImageEvent, other: ImageEvent) -> None:
    assert set(one.views) == set(other.views)
    assert (one.shape, one.pitch, one.unit) == (other.shape, other.pitch, other.unit)
    for view in VIEWS:
        assert (one.image(view) == other.image(view)).all()
    assert set(one.truth) == set(other.truth)
    assert all(np.array_equal(one.truth[name], other.truth[name]) for name in one.truth)


# ---------------------------------------------------------------------- sparse


def test_what_is_written_is_read(tmp_path):
    """Empty views, missing views and events with neither, over several writings at once."""
    events = [image_event(s, n=s % 7) for s in range(600)]
    events[3], events[5] = events[3].without("xz"), events[5].without("yz")
    events[599] = events[599].without("xz").without("yz")
    assert write_maps(tmp_path / "sub" / "a.h5", events, {"producer": "by hand"}) == 600
    reader = ImageReader(tmp_path / "sub" / "a.h5")
    assert (len(reader), reader.n_total, reader.producer, reader.unit) == (600, 600, "by hand", "MeV")
    for i in (0, 3, 5, 255, 256, 257, 599):
        same(reader[i], events[i])
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.h5"]
    truths = reader.truths()
    assert all((truths[n] == np.stack([e.truth[n] for e in events])).all() for n in TRUTH)


def test_truth_of_some_events_is_unknown_in_the_others(tmp_path):
    write_maps(tmp_path / "a.h5", [image_event(1), image_event(2).replace(truth={})])
    truth = ImageReader(tmp_path / "a.h5")[1].truth
    assert truth["interaction"] == -1 and np.isnan(truth["lepton"]).all() and set(truth) == set(TRUTH)
    write_maps(tmp_path / "b.h5", [image_event(2).replace(truth={})])
    assert ImageReader(tmp_path / "b.h5")[0].truth == {}
    # together, as unknown as within one file
    assert ImageReader([tmp_path / "a.h5", tmp_path / "b.h5"]).truths()["interaction"].tolist()[1:] == [-1, -1]


def test_subsets_are_nested_and_in_order(tmp_path):
    for name, first in (("b", 10), ("a", 0)):
        write_maps(tmp_path / f"{name}.h5", [image_event(first + i, n=1) for i in range(10)])
    everything = [e.truth["neutrino_energy"] for e in ImageReader(tmp_path)]
    assert everything == [image_event(i, n=1).truth["neutrino_energy"] for i in range(20)]
    few, more = (ImageReader(tmp_path, max_events=n, subset_seed=3) for n in (4, 12))
    names = [[r.name(i) for i in range(len(r))] for r in (few, more)]
    assert len(names[0]) == 4 and set(names[0]) < set(names[1]) and names[1] == sorted(names[1])
    assert few[2].name == names[0][2] and few.truths()["neutrino_energy"][2] == few[2].truth["neutrino_energy"]
    assert len(ImageReader(tmp_path, max_events=3)) == 3 and ImageReader(tmp_path, max_events=99).n_total == 20
    with pytest.raises(IndexError):
        few[4]
    same(few[-1], few[3])


def test_readers_are_handed_to_other_processes(tmp_path):
    write_maps(tmp_path / "a.h5", [image_event(1), image_event(2)])
    reader = ImageReader(tmp_path / "a.h5")
    _ = reader[0]
    same(pickle.loads(pickle.dumps(reader))[1], image_event(2))
    reader.close()
    same(reader[1], image_event(2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.attrs.__delitem__("shape"), "expected also shape"),
        (lambda f: f.__delitem__("views/xz/pixel"), "'views/xz/pixel' is missing, found"),
        (lambda f: f.move("views/xz", "views/uz"), "unknown view 'uz', expected xz, yz"),
        (lambda f: _put(f, "views/xz/offsets", np.array([0, 5, 3])), "'views/xz/offsets' are 3 numbers from"),
        (lambda f: _put(f, "views/xz/offsets", np.array([0, 40])), "are 2 numbers from .* expected 3 that rise"),
        (lambda f: _put(f, "views/xz/present", np.ones(3)), r"'views/xz/present' has shape \(3,\), expected \(2,\)"),
        (lambda f: _put(f, "truth/interaction", np.array([0, 5])), "row 1: class 5, expected 0 … 2"),
        (lambda f: _put(f, "truth", np.array([0, 1])), "'truth' is a data set, expected a group"),
        (lambda f: f.attrs.__setitem__("shape", (16, 16, 2)), "shape = .*expected numbers, of the shape two"),
        (lambda f: f.attrs.__setitem__("n_events", "two"), "n_events = two, .*expected numbers"),
        (lambda f: f.attrs.__setitem__("shape", (16, 10**9)), "shape is 16 × 1000000000, expected 1 … 16384 pixels"),
        (lambda f: _put(f, "views/yz/pixel", np.full((40, 2), 0.5)), r"'views/yz/pixel' is float64 .*expected whole"),
        (lambda f: _put(f, "views/yz/pixel", np.zeros((40, 3), int)), r"\(40, 3\), expected whole numbers \(rows, 2\)"),
        (lambda f: _put(f, "views/yz/energy", np.full(40, b"x")), r"'views/yz/energy' is .* expected numbers \(rows\)"),
    ],
)
def test_damaged_sparse_files(tmp_path, change, words):
    path = tmp_path / "a.h5"
    write_maps(path, [image_event(1), image_event(2)])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=words) as error:
        ImageReader(path)
    assert str(path) in str(error.value)


def _put(file: h5py.File, name: str, values: np.ndarray) -> None:
    if name in file:
        del file[name]
    file[name] = values


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [("energy", np.nan, "is nan, expected a finite number"), ("pixel", (16, 0), "outside the map of 16 × 16")],
)
def test_damaged_events_are_named(tmp_path, place, value, words):
    path = tmp_path / "a.h5"
    write_maps(path, [image_event(1), image_event(2)])
    with h5py.File(path, "r+") as file:
        file[f"views/yz/{place}"][25] = value
    reader = ImageReader(path)
    same(reader[0], image_event(1))
    with pytest.raises(ValueError, match=rf"a.h5#1: view 'yz'.*{words}"):
        reader[1]


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no HDF5 at all")
    with pytest.raises(ValueError, match=r"a\.h5: not an HDF5 file; give"):
        ImageReader(tmp_path / "a.h5")
    write_maps(tmp_path / "whole.h5", [image_event(s, n=200) for s in range(50)])
    (tmp_path / "a.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"a\.h5: cannot be opened, it is truncated or damaged"):
        ImageReader(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs.update({"layout": 1, "detector": "superfgd"})  # a file of several sub-detectors
        file["hits"] = np.zeros(3)
    with pytest.raises(ValueError, match="found hits and the attributes detector, layout, expected the attribute"):
        ImageReader(tmp_path / "a.h5")
    with pytest.raises(FileNotFoundError, match="nothing is not there"):
        ImageReader(tmp_path / "nothing")


def test_files_of_different_kind_are_not_mixed(tmp_path):
    write_maps(tmp_path / "a.h5", [image_event(1)])
    for changed, word in (
        (image_event(1, size=20), "shape is (20, 20), expected (16, 16)"),
        (image_event(1, unit="grey"), "unit is grey, expected MeV"),
        (image_event(1).replace(pitch=3.0), "pitch is 3.0, expected 5.0"),
    ):
        write_maps(tmp_path / "b.h5", [changed], overwrite=True)
        with pytest.raises(ValueError) as error:
            ImageReader(tmp_path)
        assert f"b.h5: {word} as in" in str(error.value)
    with pytest.raises(ValueError, match=r"a\.h5: maps of 16 × 16 pixels, expected 512 × 512; .*--data\.size 16"):
        ImageReader(tmp_path / "a.h5", size=512)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="there are no events to write"):
        write_maps(tmp_path / "a.h5", [])
    with pytest.raises(ValueError, match=r"e2: pitch is 3\.0, expected 5\.0 as in e1"):
        write_maps(tmp_path / "a.h5", [image_event(1, name="e1"), image_event(1, name="e2").replace(pitch=3.0)])
    with pytest.raises(ValueError, match=r"ends in \.h5"):
        write_maps(tmp_path / "a.npz", [image_event(1)])
    assert list(tmp_path.iterdir()) == []
    write_maps(tmp_path / "a.h5", [image_event(1)])
    with pytest.raises(FileExistsError, match="is there already"):
        write_maps(tmp_path / "a.h5", [image_event(1)])


# ---------------------------------------------------------------------- dense


def dense(path: Path, attributes: dict | None = None, **data: object) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update({"unit": "MeV", "pitch": 5.0} if attributes is None else attributes)
        for name, values in data.items():
            file[name] = values
    return path


IMAGES = np.stack([[image_event(s).image(v) for v in VIEWS] for s in range(4)])  # (4, 2, 16, 16)


def test_dense_images(tmp_path):
    one = ImageReader(dense(tmp_path / "a.h5", images=IMAGES, labels=[2, 0, 1, -1]))
    names = ["NC", "numu CC", "νe CC", ""]
    other = ImageReader(dense(tmp_path / "b.h5", xz=IMAGES[:, 0], yz=IMAGES[:, 1], label=names))
    for i in range(4):
        expected = image_event(i).replace(truth={"interaction": np.int64([2, 0, 1, -1][i])})
        same(one[i], expected)
        same(other[i], expected)
    assert one.truths()["interaction"].tolist() == [2, 0, 1, -1] and one.producer == ""


def test_dense_images_of_bytes_are_grey(tmp_path):
    grey = (IMAGES * 12).astype(np.uint8)
    reader = ImageReader(dense(tmp_path / "a.h5", {}, images=grey))
    assert (reader.unit, reader.pitch) == ("grey", 0) and (reader[1].image("yz") == grey[1, 1]).all()
    assert ImageReader(tmp_path / "a.h5", pitch=3.0)[0].pitch == 3 and reader[0].truth == {}


def test_row_0_may_be_the_highest(tmp_path):
    said = {"unit": "MeV", "row_0": "highest"}
    reader = ImageReader(dense(tmp_path / "a.h5", said, images=IMAGES[:, :, ::-1]))
    assert (reader[2].image("xz") == image_event(2).image("xz")).all()


def test_a_view_that_was_never_read_out(tmp_path):
    said = {"unit": "MeV", "views": ["yz"]}
    for data in ({"yz": IMAGES[:, 1]}, {"images": IMAGES[:, 1:]}):
        event = ImageReader(dense(tmp_path / "a.h5", said, **data))[0]
        assert set(event.views) == {"yz"} and (event.image("yz") == IMAGES[0, 1]).all()


def test_zeros_are_an_empty_view(tmp_path):
    event = ImageReader(dense(tmp_path / "a.h5", images=IMAGES * [[[1]], [[0]]]))[0]
    assert set(event.views) == {"xz", "yz"} and len(event.views["yz"]) == 0


def test_truth_beside_dense_images(tmp_path):
    path = dense(tmp_path / "a.h5", images=IMAGES, labels=np.arange(4) % 3)
    with h5py.File(path, "r+") as file:
        file["truth/neutrino_energy"] = np.arange(4.0)
    assert ImageReader(path)[2].truth == {"neutrino_energy": 2, "interaction": 2}


def test_labels_with_other_names(tmp_path):
    path = dense(tmp_path / "a.h5", images=IMAGES, labels=["sig", "bkg", "mu", "bkg"])
    with pytest.raises(ValueError, match=r"a\.h5: 'labels', row 0: label 'sig' is not a class; known classes: 0 = ν"):
        ImageReader(path)
    mapping = {"sig": "nue CC", "bkg": "NC", "mu": "numu CC"}
    assert ImageReader(path, labels=mapping).truths()["interaction"].tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize(
    ("attributes", "data", "words"),
    [
        (None, {"images": IMAGES.transpose(0, 2, 3, 1)}, r"\(4, 16, 16, 2\), expected .*the last axis seems"),
        (None, {"images": IMAGES[:, 0]}, r"\(4, 16, 16\), expected \(events, 2 views, rows, columns\)"),
        (None, {"images": IMAGES[:, :1]}, r"\(4, 1, 16, 16\), expected \(events, 2 views"),
        (None, {"images": IMAGES[:, [0, 1, 1]]}, r"\(4, 3, 16, 16\), expected"),
        (None, {"images": np.zeros((4, 2, 8, 8, 3))}, r"\(4, 2, 8, 8, 3\), expected .*colour images are no charge"),
        (None, {"xz": np.zeros((4, 8, 8, 3)), "yz": np.zeros((4, 8, 8, 3))}, "'xz' is .*colour images are no charge"),
        (None, {"xz": IMAGES[:, 0]}, r"the views xz are there, expected xz, yz; if a view was never .*\['xz'\]"),
        (None, {"xz": IMAGES[:, 0], "yz": IMAGES[:3, 1]}, "the views differ, found"),
        (None, {"xz": IMAGES[:, 0], "yz": IMAGES[:, 1, :8]}, "the views differ, found"),
        ({"unit": "MeV", "views": ["yz", "xz"]}, {"images": IMAGES}, "views of 'images' are yz, xz, expected xz, yz"),
        ({"unit": "MeV", "views": ["u", "v"]}, {"images": IMAGES}, "views of 'images' are u, v, expected xz, yz"),
        ({"unit": "MeV", "views": ["xz"]}, {"xz": IMAGES[:, 0], "yz": IMAGES[:, 1]}, "xz, yz are there, expected xz;"),
        ({}, {"images": IMAGES}, "float32 with no unit, expected the attribute unit = 'MeV', or 'grey'"),
        ({"unit": "keV"}, {"images": IMAGES}, "with unit = 'keV', expected"),
        ({"unit": "MeV", "row_0": "top"}, {"images": IMAGES}, "row_0 is 'top', expected 'lowest'"),
        ({"unit": "MeV"}, {"images": IMAGES.astype(complex)}, "images are complex128, expected numbers"),
        (None, {"images": IMAGES, "labels": np.eye(4)[:, :3]}, r"'labels' has shape \(4, 3\), expected \(4,\)"),
        (None, {"images": IMAGES, "labels": [0, 1]}, r"'labels' has shape \(2,\), expected \(4,\)"),
        (None, {"images": IMAGES, "labels": [0, 1, 2, 3]}, "row 3: label '3' is not a class"),
        (None, {"images": IMAGES, "labels": [0, 1, 2, 0], "label": [0, 1, 2, 0]}, "labels are given twice"),
    ],
)
def test_dense_files_that_are_refused(tmp_path, attributes, data, words):
    path = dense(tmp_path / "a.h5", attributes, **data)
    with pytest.raises(ValueError, match=words) as error:
        ImageReader(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("unit", "change", "words"),
    [
        ("MeV", lambda i: i.__setitem__((1, 1, 3, 4), np.nan), r"view 'yz': energy of pixel \[3, 4\] is nan"),
        ("MeV", lambda i: i.__setitem__((1, 0, 3, 4), np.inf), r"view 'xz': energy of pixel \[3, 4\] is inf"),
        ("grey", lambda i: i.__setitem__((1, 0, 3, 4), 300), "view 'xz': values from 0.0 to 300.0, expected grey"),
        ("grey", lambda i: i.__setitem__((1, 0, 3, 4), -2), "view 'xz': values from -2.0 to"),
        ("grey", lambda i: np.divide(i, 25, out=i), "view 'xz': values .* expected grey values 0 … 255; multiply"),
    ],
)
def test_dense_events_that_are_refused(tmp_path, unit, change, words):
    images = IMAGES.copy()
    change(images)
    path = dense(tmp_path / "a.h5", {"unit": unit}, images=images)
    with pytest.raises(ValueError, match=rf"a\.h5#[01]: {words}"):
        list(ImageReader(path))


def test_what_the_file_says_is_not_overruled(tmp_path):
    path = dense(tmp_path / "a.h5", images=IMAGES)
    assert ImageReader(path, unit="MeV", pitch=5.0).pitch == 5
    with pytest.raises(ValueError, match="its unit is MeV, but grey was asked for"):
        ImageReader(path, unit="grey")
    with pytest.raises(ValueError, match=r"its pitch is 5\.0, but 3\.0 was asked for"):
        ImageReader(path, pitch=3.0)
    with pytest.raises(ValueError, match=r"pitch is -1\.0, expected a positive number of mm"):
        ImageReader(path, pitch=-1.0)


def test_exchanged_rows_and_columns_are_noticed(tmp_path, caplog):
    """Both views see the same charge along z; where rows show the same, they were taken for columns."""
    rng = np.random.default_rng(0)
    images = np.zeros((5, 2, 16, 16))
    for event in images:
        for z, charge in enumerate(rng.exponential(1.0, 16)):
            event[0, rng.integers(16), z] = event[1, rng.integers(16), z] = charge
    ImageReader(dense(tmp_path / "a.h5", images=images))
    assert "exchanged" not in caplog.text
    ImageReader(dense(tmp_path / "b.h5", images=images.transpose(0, 1, 3, 2)))
    assert "b.h5: the rows of the two views go together (correlation 1.00)" in caplog.text
    caplog.clear()
    for nothing in (images * 0, images[:, :, :1, :1], images * [[[1]], [[0]]]):
        ImageReader(dense(tmp_path / "c.h5", images=nothing))
    assert "exchanged" not in caplog.text


def test_kinds_of_files(tmp_path):
    write_maps(tmp_path / "sparse.h5", [image_event(1)])
    dense(tmp_path / "dense.h5", images=IMAGES)
    write_volume(tmp_path / "volume.h5", [random_volume(np.random.default_rng(0))])
    assert [image_kind(tmp_path / f"{k}.h5") for k in ("sparse", "dense", "volume")] == ["sparse", "dense", "volume"]
    assert View.of_image(IMAGES[0, 0]).pixel.dtype == np.int32
