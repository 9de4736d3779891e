"""3D events projected onto two views, against sums of dense arrays, and files of them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from image_events import random_volume, write_volume

from nufm.data import detector, event, image_hdf5, images, pilarnet, pixelmaps
from nufm.data.detector import load_detector
from nufm.data.event import Event
from nufm.data.image_files import ImageReader
from nufm.data.pilarnet import PILArNetReader
from nufm.data.pixelmaps import VolumeFile, centre_of, ensure_maps, pixel_pitch, project

MODULES = (detector, event, image_hdf5, images, pilarnet)  # that maps in the cache come from
GENUINE = Path(__file__).parent / "pilarnet_m_event.h5"
LATTICE = load_detector("pixel_lartpc").lattice


def event_of(voxel: object, energy: object, detector: str = "pixel_lartpc", **labels: np.ndarray) -> Event:
    return Event(np.array(voxel, np.int32).reshape(-1, 3), np.array(energy, np.float32), detector=detector, **labels)


# ---------------------------------------------------------------------- one event


@pytest.mark.parametrize("size", [1, 9, 32, 64])
@pytest.mark.parametrize("centre", [(10.3, 20.0, 30.99), (0.0, 0.0, 0.0), (19.5, 39.5, 59.5), (-5.0, 50.0, 10.0)])
def test_maps_are_sums_of_the_dense_volume(size, centre):
    """Against the sums over y and x of the whole volume, padded so that every window lies inside."""
    voxel, energy = random_volume(np.random.default_rng(size), 3000, (20, 40, 60))
    maps = project(event_of(voxel, energy), size, np.array(centre))
    volume = np.zeros((20, 40, 60))
    volume[tuple(voxel.T)] = energy
    pad = 80
    first = np.floor(centre).astype(int) - size // 2 + pad
    for axis, view, other in ((0, "xz", 1), (1, "yz", 0)):
        flat = np.pad(volume.sum(other), pad)
        expected = flat[first[axis] : first[axis] + size, first[2] : first[2] + size]
        assert maps.image(view) == pytest.approx(expected, rel=1e-6)
    assert (maps.shape, maps.pitch, maps.unit) == ((size, size), 5.0, "MeV")


def test_the_whole_charge_is_in_both_views_if_the_maps_are_large_enough():
    voxel, energy = random_volume(np.random.default_rng(1), 5000, (400, 400, 400))
    maps = project(event_of(voxel, energy), 512, np.array([200, 200, 200]))
    for view in maps.views.values():
        assert view.energy.sum() == pytest.approx(energy.sum(dtype=np.float64), rel=1e-6)


def test_a_track_by_hand():
    """From the vertex at (-100, 50, 0) mm, along (0, 1, 2) voxels a step: straight along z in XZ, slope 1/2 in YZ."""
    start = np.array([180, 210, 700])  # of -100, 50, 0 mm, with voxels of 5 mm and the centre at voxel 200, 200, 700
    voxel = start + np.arange(5)[:, None] * [0, 1, 2]
    event = event_of(voxel, np.ones(5))
    maps = project(event, 16, centre_of(event, np.array([-100.0, 50.0, 0.0])))
    assert maps.views["xz"].pixel.tolist() == [[8, 8], [8, 10], [8, 12], [8, 14]]  # the fifth is at column 16
    assert maps.views["yz"].pixel.tolist() == [[8, 8], [9, 10], [10, 12], [11, 14]]


def test_the_vertex_is_in_the_middle_pixel():
    """A voxel that holds the vertex, wherever in it the vertex lies, becomes pixel (size//2, size//2)."""
    rng = np.random.default_rng(2)
    for size in (15, 16):
        for _ in range(50):
            vertex = rng.uniform([-1000, -1000, -3500], [1000, 1000, 3500])
            voxel = np.floor(vertex / 5).astype(int) + np.array([200, 200, 700])
            event = event_of(voxel, [1.0])
            maps = project(event, size, centre_of(event, vertex))
            assert all(v.pixel.tolist() == [[size // 2, size // 2]] for v in maps.views.values())


def test_the_vertex_of_most_charge():
    """Without the true vertex: where the particles with most charge come from, not the longest or the first."""
    voxel = [[10, 10, 10], [11, 10, 10], [12, 10, 10], [300, 300, 900], [5, 5, 5]]
    vertex = np.array([[-950.0, -950, -3450]] * 3 + [[502.4, 501, 1002]] + [[-1, -1, -1]], np.float32)
    labels = {"particle": np.array([0, 0, 1, 2, -1]), "vertex": vertex}
    heavy = event_of(voxel, [1, 1, 1, 5, 50], **labels)  # 50 MeV of no particle do not count
    assert np.floor(centre_of(heavy)).tolist() == [300, 300, 900]
    light = event_of(voxel, [1, 1, 1, 2, 50], **labels)
    assert np.floor(centre_of(light)).tolist() == [10, 10, 10]
    assert np.floor(centre_of(light, np.array([0.0, 0, 0]))).tolist() == [200, 200, 700]  # the truth goes first
    assert np.floor(centre_of(light, np.full(3, np.nan))).tolist() == [10, 10, 10]


def test_the_mean_position_of_the_charge():
    event = event_of([[0, 0, 0], [4, 8, 100]], [3.0, 1.0])
    assert centre_of(event).tolist() == [1.5, 2.5, 25.5]  # voxel k reaches from k to k + 1
    assert centre_of(event, np.zeros(3), "charge").tolist() == [1.5, 2.5, 25.5]
    nothing = event_of(np.zeros((0, 3)), [])
    assert centre_of(nothing).tolist() == [200, 200, 700]
    assert centre_of(event_of([[0, 0, 0]], [0.0])).tolist() == [200, 200, 700]
    assert project(nothing, 8).n_pixels == 0 and set(project(nothing, 8).views) == {"xz", "yz"}


def test_charge_beside_the_window_in_one_view_is_kept_in_the_other():
    """The window of a view does not cut along the axis that is summed over."""
    maps = project(event_of([[200, 300, 700]], [2.0]), 16, np.array([200.0, 200, 700]))
    assert maps.views["xz"].energy.tolist() == [2] and len(maps.views["yz"]) == 0


def test_refused_centres_and_detectors():
    with pytest.raises(ValueError, match=r"centre of the maps is .*nan"):
        project(event_of([[1, 2, 3]], [1.0]), 8, np.array([1, np.nan, 3]))
    assert pixel_pitch("pilarnet") == 3.0
    with pytest.raises(ValueError, match="unknown detector 'fasercal2'"):
        pixel_pitch("fasercal2")


def test_detectors_without_cubic_voxels(monkeypatch):
    flat = load_detector("pilarnet").__class__(
        "flat", (10, 10, 10), (1.0, 5.0, 5.0), (5.0, 5.0, 5.0), ("x", "y", "z"), {}
    )
    monkeypatch.setattr(pixelmaps, "load_detector", lambda name: flat)
    with pytest.raises(ValueError, match=r"detector 'flat' has voxels of 1\.0 × 5\.0 × 5\.0 mm, expected cubes"):
        project(event_of([[1, 2, 3]], [1.0], "flat"), 8)


# ---------------------------------------------------------------------- files


def volume(path: Path, n: int = 4, detector: str | None = "pixel_lartpc", seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    events = [random_volume(rng, 300 * (i > 0), LATTICE) for i in range(n)]  # the first is empty
    truth = {
        "interaction": np.arange(n) % 3,
        "vertex": rng.uniform(-900, 900, (n, 3)).astype(np.float32),
        "neutrino_energy": rng.uniform(0, 10, n),
        "of_no_interest": np.zeros(n),
    }
    return write_volume(path, events, truth, detector)


def test_a_file_of_3d_events(tmp_path):
    path = volume(tmp_path / "a.h5")
    reader = ImageReader(path, size=64)
    assert (len(reader), reader.shape, reader.pitch, reader.unit) == (4, (64, 64), 5.0, "MeV")
    points = PILArNetReader(path, energy_threshold=0.0, min_points=0, detector="pixel_lartpc")
    with h5py.File(path) as file:
        truth = {name: file[f"truth/{name}"][:] for name in ("interaction", "vertex", "neutrino_energy")}
    for i, maps in enumerate(reader):
        expected = project(points[i], 64, truth["vertex"][i] / 5 + [200, 200, 700])
        assert all((maps.image(v) == expected.image(v)).all() for v in ("xz", "yz"))
        assert maps.name == f"{path}#{i}" and set(maps.truth) == set(truth)
        assert maps.truth["interaction"] == i % 3 and maps.truth["neutrino_energy"].dtype == np.float32
    assert reader[0].n_pixels == 0
    assert (reader.truths()["vertex"] == truth["vertex"]).all()


def test_maps_from_the_cache_are_those_of_the_files(tmp_path):
    volume(tmp_path / "in" / "a.h5", 3)
    volume(tmp_path / "in" / "b.h5", 2, seed=1)
    folder = ensure_maps(tmp_path / "in", size=128)
    direct, cached = ImageReader(tmp_path / "in", size=128), ImageReader(folder)
    assert len(cached) == 5 and cached.shape == (128, 128) and [p.name for p in cached.files] == [
        "maps_00000.h5",
        "maps_00001.h5",
    ]
    for one, other in zip(direct, cached, strict=True):
        for view in ("xz", "yz"):
            assert (one.image(view) == other.image(view)).all()
        assert all((one.truth[n] == other.truth[n]).all() for n in one.truth) and set(one.truth) == set(other.truth)
        assert one.name == other.name and one.name.startswith(str(tmp_path / "in"))


def test_the_cache_follows_files_and_arguments(tmp_path):
    path = volume(tmp_path / "a.h5", 2)
    folder = ensure_maps(path, size=32)
    made = (folder / "maps_00000.h5").stat().st_mtime_ns
    assert ensure_maps(path, size=32) == folder and (folder / "maps_00000.h5").stat().st_mtime_ns == made
    others = {folder, ensure_maps(path, size=16), ensure_maps(path, size=32, centre="charge")}
    others.add(ensure_maps(path, size=32, energy_threshold=1.0))
    assert len(others) == 4
    volume(path, 3)
    changed = ensure_maps(path, size=32)
    assert changed not in others and len(ImageReader(changed)) == 3


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_the_cache_follows_the_code(tmp_path, monkeypatch, module):
    """Of the reader, the maps and the file: maps of other code are made anew."""
    path = volume(tmp_path / "a.h5", 1)
    folder = ensure_maps(path, size=8)
    changed = tmp_path / "changed.py"
    changed.write_text(Path(module.__file__).read_text() + "# a word more")
    monkeypatch.setattr(module, "__file__", str(changed))
    assert ensure_maps(path, size=8) != folder


def test_an_energy_threshold(tmp_path):
    path = write_volume(tmp_path / "a.h5", [(np.array([[1, 1, 1], [2, 2, 2]]), np.array([0.5, 2.0]))])
    assert VolumeFile(path, 64, energy_threshold=0.5).event(0, "a").views["xz"].energy.tolist() == [2]
    assert VolumeFile(path, 64).event(0, "a").views["xz"].energy.tolist() == [0.5, 2]


def test_the_genuine_event_of_pilarnet():
    """One event of PILArNet-M, in whose file all vertices are 0: the maps are about the charge, and hold most of it."""
    maps = ImageReader(GENUINE)[0]
    points = PILArNetReader(GENUINE, energy_threshold=0.0, min_points=0)[0]
    assert maps.shape == (512, 512) and maps.pitch == 3.0 and maps.truth == {}
    total = points.energy.sum(dtype=np.float64)
    for view in ("xz", "yz"):
        assert 0.95 * total < maps.views[view].energy.sum(dtype=np.float64) <= total * (1 + 1e-6)


def test_vertices_that_no_charge_is_near_are_not_believed():
    def at(distance: float) -> np.ndarray:
        """One voxel of 5 mm, ``distance`` mm from the creation point of its particle, which is the origin."""
        voxel = np.array([[200, 200, 700 + round(distance / 5)]])
        return centre_of(event_of(voxel, [1.0], particle=np.array([0]), vertex=np.zeros((1, 3), np.float32)))

    assert at(200).tolist() == [200, 200, 700]
    assert at(205).tolist() == [200.5, 200.5, 741.5]


def test_labels_name_the_vertex(tmp_path):
    vertices = np.array([[-1, -1, -1], [-500, 100, 0], [300, 300, 300]])
    sizes, ids = np.array([1, 2, 3]), np.array([-1, 7, 9])
    voxel = np.array([[5, 5, 5], [217, 417, 384], [218, 417, 384], [484, 484, 484], [485, 484, 484], [486, 484, 484]])
    path = write_volume(
        tmp_path / "a.h5", [(voxel, np.array([90.0, 9, 9, 1, 1, 1]))], None, None, [(sizes, ids, vertices)]
    )
    maps = VolumeFile(path, 16).event(0, "a")  # voxels of 3 mm, the centre at 384: -500 mm is in voxel 217
    assert maps.views["xz"].pixel.tolist() == [[8, 8], [9, 8]] and maps.views["yz"].pixel.tolist() == [[8, 8]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.__delitem__("point"), "found truth and the attributes detector, expected the attribute layout"),
        (lambda f: f.attrs.__setitem__("detector", "moon"), "unknown detector 'moon'"),
        (lambda f: _put(f, "truth/vertex", np.zeros((4, 2))), r"vertex' is float64 \(4, 2\), expected .* \(4, 3\)"),
        (lambda f: _put(f, "truth/interaction", np.array([0, 1, 7, 2])), "interaction', row 2: class 7, expected 0"),
        (lambda f: _put(f, "truth/mode", np.array([0, 0.5, 1, 2])), "row 1: class 0.5"),
        (lambda f: _put(f, "truth/mode", np.zeros(3)), r"float64 \(3,\), expected numbers \(4,\)"),
        (lambda f: _put(f, "truth/lepton", np.full((4, 3), b"x")), "expected numbers"),
    ],
)
def test_damaged_files(tmp_path, change, words):
    path = volume(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=words) as error:
        ImageReader(path)
    assert str(path) in str(error.value)


def _put(file: h5py.File, name: str, values: np.ndarray) -> None:
    if name in file:
        del file[name]
    file[name] = values


def test_refused_arguments(tmp_path):
    path = volume(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="events of the detector 'pixel_lartpc', expected 'pilarnet'; leave"):
        ImageReader(path, detector="pilarnet")
    with pytest.raises(ValueError, match="centre is 'middle', expected 'vertex' or 'charge'"):
        ImageReader(path, centre="middle")
    with pytest.raises(ValueError, match="size is 0"):
        VolumeFile(path, 0)
    far = write_volume(tmp_path / "b.h5", [(np.array([[0, 0, 1399]]), np.ones(1))])
    assert ImageReader(far, detector="pixel_lartpc")[0].n_pixels == 2
    with pytest.raises(ValueError, match=r"b.h5#0: .*expected indices on the lattice of 'pilarnet'"):
        ImageReader(far)[0]


def test_nan_is_refused_with_its_place(tmp_path):
    path = write_volume(tmp_path / "a.h5", [(np.array([[1, 2, 3], [4, 5, 6]]), np.array([1.0, np.nan]))])
    with pytest.raises(ValueError, match=r"a.h5#0: field 'point' row 1, column 3 \(energy\): found nan"):
        ImageReader(path)[0]
