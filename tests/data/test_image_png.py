"""PNG pictures with a table: read and written, orientation, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from image_events import image_event
from PIL import Image

from nufm.data.image_files import ImageReader, image_kind
from nufm.data.image_hdf5 import write_maps
from nufm.data.image_png import read_png, write_png_folder
from nufm.data.image_transforms import Brightness
from nufm.data.images import VIEWS


def png(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    """A picture of the pixels, the first line at the top."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def table(folder: Path, *lines: str, header: str = "name,xz,yz,label") -> Path:
    """A table; the pictures a_xz.png, a_yz.png, b_xz.png, b_yz.png are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("a_xz", "a_yz", "b_xz", "b_yz")):
        png(folder / f"{name}.png", np.random.default_rng(number).integers(0, 256, (6, 8), dtype=np.uint8))
    (folder / "events.csv").write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return folder


# ---------------------------------------------------------------------- reading


def test_the_lowest_line_of_a_picture_is_row_0(tmp_path):
    """A track from the lower left to the upper right of the picture rises with z."""
    pixels = np.zeros((4, 4), np.uint8)
    pixels[[3, 2, 1, 0], [0, 1, 2, 3]] = [10, 20, 30, 40]  # line 0 is the top one
    folder = table(tmp_path)
    png(folder / "a_xz.png", pixels), png(folder / "a_yz.png", pixels)
    (folder / "events.csv").write_text("name,xz,yz\na,a_xz.png,a_yz.png\n")
    event = ImageReader(folder)[0]
    assert event.views["xz"].pixel.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert event.views["xz"].energy.tolist() == [10, 20, 30, 40]
    assert (event.unit, event.pitch, event.shape, event.truth) == ("grey", 0, (4, 4), {})


def test_a_table(tmp_path):
    folder = table(tmp_path, "a,a_xz.png,a_yz.png,numu CC", "b,b_xz.png,,NC", "c,,,", 'd, b_xz.png ,"b_yz.png",1')
    for path in (folder, folder / "events.csv", str(folder / "*.csv")):
        reader = ImageReader(path)
        assert len(reader) == 4 and reader.shape == (6, 8)
        assert [sorted(e.views) for e in reader] == [["xz", "yz"], ["xz"], [], ["xz", "yz"]]
        assert reader.truths()["interaction"].tolist() == [0, 2, -1, 1]
    expected = np.random.default_rng(3).integers(0, 256, (6, 8), dtype=np.uint8)
    assert (reader[3].image("yz") == expected[::-1]).all()
    assert reader.name(2) == f"{folder / 'events.csv'}#2" and image_kind(folder / "events.csv") == "png"
    assert ImageReader(folder, pitch=5.0)[0].pitch == 5


def test_tables_as_others_write_them(tmp_path):
    """A byte order mark, other columns in another order, Windows' ends of lines, truth, numbers as text of floats."""
    folder = table(tmp_path)
    text = "yz,weight,label,name,xz,neutrino_energy,mode,lepton_x,lepton_y,lepton_z\r\n"
    text += "a_yz.png,0.5,2.0,a,a_xz.png,3.5,1,0.1,-0.2,1\r\nb_yz.png,,,b,b_xz.png,,,,,\r\n"
    (folder / "events.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    first, second = ImageReader(folder)
    assert first.truth["interaction"] == 2 and first.truth["mode"] == 1 and first.truth["neutrino_energy"] == 3.5
    assert first.truth["lepton"].tolist() == pytest.approx([0.1, -0.2, 1]) and first.truth["lepton"].dtype == np.float32
    assert second.truth["interaction"] == -1 and second.truth["mode"] == -1
    assert math.isnan(second.truth["neutrino_energy"]) and np.isnan(second.truth["lepton"]).all()
    assert first.truth["mode"].dtype == np.int64


def test_grey_in_any_dress(tmp_path):
    """Grey, with an opaque alpha channel, as R = G = B, with a palette of greys, black and white."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)
    for mode in (None, "RGB", "RGBA", "LA", "P"):
        path = png(tmp_path / f"{mode}.png", pixels, mode)
        assert (read_png(path) == pixels[::-1]).all(), mode
    white = (pixels > 127).astype(np.uint8) * 255
    assert (read_png(png(tmp_path / "1.png", white, "1")) == white[::-1]).all()


def test_refused_pictures(tmp_path):
    grey = np.full((6, 8), 100, np.uint8)
    colour = np.stack([grey] * 3, axis=-1)
    colour[2, 3] = 1, 2, 3
    cases = {
        r"colour, pixel \[2, 3\] from the top left is \[1, 2, 3\], expected grey values \(R = G = B\)": colour,
        r"16 bits \(grey\), expected 8-bit grey: .*divide by 257": grey.astype(np.uint16) * 257,
        "pixels are transparent, expected opaque": np.stack([grey, grey, grey, grey], axis=-1),
        "6 × 9 pixels, expected 6 × 8 as in the first picture; cut or scale": np.zeros((6, 9), np.uint8),
        "8 × 6 pixels, expected 6 × 8": np.zeros((8, 6), np.uint8),
    }
    folder = table(tmp_path, "a,a_xz.png,a_yz.png,0", "b,b_xz.png,b_yz.png,0")
    for words, pixels in cases.items():
        png(folder / "b_yz.png", pixels)
        with pytest.raises(ValueError, match=rf"events\.csv#1: .*b_yz\.png: {words}"):
            list(ImageReader(folder))


def test_damaged_pictures(tmp_path):
    folder = table(tmp_path, "a,a_xz.png,a_yz.png,0", "b,b_xz.png,b_yz.png,0")
    rng = np.random.default_rng(0)
    whole = png(folder / "b_xz.png", rng.integers(0, 256, (6, 8), dtype=np.uint8)).read_bytes()
    reader = ImageReader(folder)
    (folder / "b_xz.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"#1: .*b_xz\.png: cannot be read, it is truncated or damaged"):
        reader[1]
    for content in (b"", b"GIF89a and more", whole[:20]):
        (folder / "b_xz.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"#1: .*b_xz\.png: not a PNG picture that can be read"):
            reader[1]
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(folder / "b_xz.png", format="BMP")  # a name is no proof
    with pytest.raises(ValueError, match="not a PNG picture"):
        reader[1]


@pytest.mark.parametrize(
    ("header", "line", "words"),
    [
        ("name,xz,label", "a,a_xz.png,0", "found the columns name, xz, label, expected name, xz, yz, .*missing: yz"),
        ("xz,yz", "a_xz.png,a_yz.png", "missing: name"),
        ("name;xz;yz;label", "a;a_xz.png;a_yz.png;0", "with commas; missing: name, xz, yz"),
        ("name,xz,yz,xz", "a,a_xz.png,a_yz.png,a_xz.png", "each once, with commas; rename the double one"),
        ("name,xz,yz,label", "a,a_xz.png,a_yz.png", "line 2: found another number of cells than the 4 columns"),
        ("name,xz,yz,label", "a,a_xz.png,a_yz.png,0,7", "line 2: found another number of cells"),
        ("name,xz,yz,label", "a,a_yz.png,a_xz.png,0", "line 2, column 'xz': found a_yz.png, .* out of order"),
        ("name,xz,yz,label", "a,a_xz.png,b_xz.png,0", "line 2, column 'yz': found b_xz.png, expected .* view yz"),
        ("name,xz,yz,label", "a,c_xz.png,a_yz.png,0", "line 2, column 'xz': there is no file .*c_xz.png; leave"),
        ("name,xz,yz,label", "a,a_xz.png,a_yz.png,tau", "column 'label', row 0: label 'tau' is not a class"),
        ("name,xz,yz,mode", "a,a_xz.png,a_yz.png,7", "column 'mode', row 0: label '7' is not a class; .* resonant"),
        ("name,xz,yz,neutrino_energy", "a,a_xz.png,a_yz.png,much", "neutrino_energy: could not .*expected numbers"),
        ("name,xz,yz,label", "", "the table has no events"),
        ("name,xz,yz,label", "a,,,0", "no event has a picture, expected at least one"),
        ("", "", "found the columns none"),
    ],
)
def test_refused_tables(tmp_path, header, line, words):
    folder = table(tmp_path, line, header=header)
    with pytest.raises(ValueError, match=words) as error:
        ImageReader(folder)
    assert str(folder / "events.csv") in str(error.value)


def test_one_picture_for_both_views(tmp_path):
    folder = table(tmp_path, "a,plain.png,plain.png,0")
    png(folder / "plain.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(ValueError, match=r"line 2: plain\.png is given for both views, expected two files"):
        ImageReader(folder)


def test_pictures_without_a_table(tmp_path):
    folder = table(tmp_path, "a,a_xz.png,a_yz.png,0")
    with pytest.raises(ValueError, match=r"a_xz\.png: pictures without a table, expected .* name, xz, yz, label"):
        ImageReader(folder / "a_xz.png")
    (folder / "events.csv").unlink()
    with pytest.raises(ValueError, match="pictures without a table"):
        ImageReader(folder)


def test_a_table_that_is_none(tmp_path):
    folder = table(tmp_path)
    (folder / "events.csv").write_bytes(b"name,xz,yz\n\xff\xfe,a_xz.png,a_yz.png\n")
    with pytest.raises(ValueError, match=r"not a CSV table in UTF-8"):
        ImageReader(folder)
    (folder / "events.csv").write_text('name,xz,yz\na,"a_xz.png,a_yz.png\n')
    with pytest.raises(ValueError, match=r"not a CSV table in UTF-8 \(unexpected end of data\)"):
        ImageReader(folder)


def test_tables_beside_hdf5(tmp_path):
    folder = table(tmp_path, "a,a_xz.png,a_yz.png,0")
    write_maps(folder / "maps.h5", [image_event(1)])
    with pytest.raises(ValueError, match=r"HDF5 files beside tables, found events\.csv, maps\.h5"):
        ImageReader(folder)
    assert len(ImageReader(folder / "events.csv")) == 1


# ---------------------------------------------------------------------- writing


def test_what_is_written_is_read(tmp_path):
    """Grey values and truth stay; views that are missing stay missing."""
    events = [image_event(s, unit="grey", name=f"/far/away/a.h5#{s}") for s in range(4)]
    events[1], events[2] = events[1].without("xz"), events[2].replace(truth={})
    assert write_png_folder(tmp_path / "out", events, producer="by hand") == 4
    reader = ImageReader(tmp_path / "out")
    assert (reader.producer, reader.pitch, reader.unit) == ("by hand", 5.0, "grey")
    for written, read in zip(events, reader, strict=True):
        assert set(read.views) == set(written.views)
        assert all((read.image(v) == written.image(v)).all() for v in VIEWS)
        for name, value in written.truth.items():
            assert read.truth[name] == pytest.approx(value, rel=1e-6), name
    assert reader[2].truth["interaction"] == -1 and np.isnan(reader[2].truth["vertex"]).all()
    assert "far" not in (tmp_path / "out" / "events.csv").read_text()
    assert (tmp_path / "out" / "events.csv").stat().st_mode & 0o044


def test_energies_become_256_greys(tmp_path):
    event, brightness = image_event(3, n=100), Brightness(full=20.0)
    write_png_folder(tmp_path / "out", [event], brightness)
    read = ImageReader(tmp_path / "out")[0]
    for view in VIEWS:
        expected = 255 * np.log1p(event.image(view)) / math.log(21)
        assert np.abs(read.image(view) - np.minimum(expected, 255)).max() <= 0.5 + 1e-4
    # and what a network sees of either is the same within half a grey value
    rng = np.random.default_rng(0)
    seen = [brightness(e, rng).image("xz") for e in (event, read)]
    assert np.abs(seen[0] - seen[1]).max() <= 0.5 / 255 + 1e-6


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="there are no events to write"):
        write_png_folder(tmp_path / "out", [])
    assert list(tmp_path.iterdir()) == []
    write_png_folder(tmp_path / "out", [image_event(1)])
    with pytest.raises(FileExistsError, match="is there already and not empty"):
        write_png_folder(tmp_path / "out", [image_event(1)])
