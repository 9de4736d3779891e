"""Folders of PNG pictures with a CSV table; ``nufm.data.image_files`` describes them.

Shape legend: n events of the table, H rows, W columns.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from nufm.data.cache import new_folder
from nufm.data.image_transforms import GREY_LEVELS, Brightness
from nufm.data.images import CLASSES, INTERACTION_NAMES, TRUTH, VIEWS, ImageEvent, View, class_numbers

log = logging.getLogger(__name__)

TABLE = "events.csv"
COLUMNS = ("name", *VIEWS, "label")
IHDR_DEPTH, IHDR_TYPE = 24, 25  # bytes of a PNG file (PNG specification, 5.2 and 11.2.1)
COLOUR_TYPES = {0: "grey", 2: "colour", 3: "palette", 4: "grey with alpha", 6: "colour with alpha"}


class PngTable:
    """The events of one CSV table, whose pictures are read one by one.

    Args:
        path: the table.
        labels: label as in the table -> name of its class; None: the labels are names or numbers of ours.
        pitch: mm per pixel; None: what the first picture says, else unknown.

    Attributes:
        n_events, shape, pitch, unit: of all its events; the shape is that of the first picture.
        producer: who made them.
        truth: name -> array (n_events, ...).

    Raises:
        ValueError: the table, its labels or its files are not what they should be.
    """

    unit = "grey"

    def __init__(self, path: str | Path, labels: Mapping[str, str] | None = None, pitch: float | None = None) -> None:
        self.path = Path(path)
        rows, lines = _table(self.path)
        self.n_events = len(rows)
        self._files = [self._pictures(row, line) for row, line in zip(rows, lines, strict=True)]
        self.truth = _truths(rows, labels, self.path)
        self.shape, said = self._first()
        self.producer = said.get("Source", "")
        self.pitch = float(said.get("pitch_mm", 0.0)) if pitch is None else pitch

    def _pictures(self, row: Mapping[str, str], line: int) -> dict[str, Path]:
        """View -> picture of one event."""
        found = {}
        for view in VIEWS:
            if not row[view].strip():
                continue
            where = f"{self.path}, line {line}, column '{view}'"
            path = self.path.parent / row[view].strip()
            if not path.is_file():
                raise ValueError(f"{where}: there is no file {path}; leave the cell empty if the view was not read out")
            named = set(re.split(r"[^a-z0-9]+", row[view].lower())) & set(VIEWS)
            if named and view not in named:
                raise ValueError(
                    f"{where}: found {row[view]}, expected a picture of view {view}; are the views out of order? If "
                    "the name only looks like another view's, rename the file"
                )
            found[view] = path
        if len(set(found.values())) < len(found):
            raise ValueError(f"{self.path}, line {line}: {row[VIEWS[0]]} is given for both views, expected two files")
        return found

    def _first(self) -> tuple[tuple[int, int], dict[str, str]]:
        """Shape of the first picture, and what it says of itself."""
        for pictures in self._files:
            for path in pictures.values():
                with _opened(path, str(path)) as picture:
                    return (picture.height, picture.width), {k: str(v) for k, v in picture.text.items()}
        raise ValueError(f"{self.path}: no event has a picture, expected at least one, since it tells the size")

    def event(self, row: int, name: str) -> ImageEvent:
        """Event ``row`` of 0..n-1, with a name for messages.

        Raises:
            ValueError: a picture cannot be read, has colour, or another size than the first one.
        """
        views = {v: View.of_image(read_png(path, self.shape, name)) for v, path in self._files[row].items()}
        truth = {n: values[row] for n, values in self.truth.items()}
        return ImageEvent(views, self.shape, self.pitch, self.unit, truth, name)

    def close(self) -> None:
        """Nothing stays open."""


# ---------------------------------------------------------------------- pictures


def read_png(path: Path, shape: tuple[int, int] | None = None, name: str = "") -> np.ndarray:
    """uint8 (H, W) grey values; the picture's lowest line is row 0.

    Args:
        path: an 8-bit picture that is grey, or whose colours are: R = G = B.
        shape: that it must have; None = any.
        name: of the event, for messages.

    Raises:
        ValueError: it is not.
    """
    where = f"{name}: {path}" if name else str(path)
    with _opened(path, where) as picture:
        found = (picture.height, picture.width)
        if shape is not None and found != tuple(shape):
            raise ValueError(
                f"{where}: {found[0]} × {found[1]} pixels, expected {shape[0]} × {shape[1]} as in the first picture; "
                "cut or scale the pictures to one size"
            )
        try:
            picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{where}: cannot be read, it is truncated or damaged ({error}); get it again") from error
        grey = picture.mode == "1" or picture.mode == "L"
        pixels = np.asarray(picture.convert("L" if grey else "RGBA"))
    if not grey:
        colours, alpha = pixels[..., :3], pixels[..., 3]
        if (alpha != GREY_LEVELS).any():
            raise ValueError(f"{where}: pixels are transparent, expected opaque ones; save it without an alpha channel")
        if (colours != colours[..., :1]).any():
            row, column = np.argwhere((colours != colours[..., :1]).any(axis=-1))[0]
            raise ValueError(
                f"{where}: colour, pixel [{row}, {column}] from the top left is {colours[row, column].tolist()}, "
                "expected grey values (R = G = B); colours are no charge, save the maps in grey"
            )
        pixels = colours[..., 0]
    return np.ascontiguousarray(pixels[::-1])


def _opened(path: Path, where: str) -> Image.Image:
    """The picture, of which the head is read."""
    try:
        with path.open("rb") as file:
            head = file.read(IHDR_TYPE + 1)
        picture = Image.open(path, formats=["PNG"])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: not a PNG picture that can be read ({error}); save it as 8-bit grey PNG") from error
    if head[IHDR_DEPTH] > 8:
        picture.close()
        raise ValueError(
            f"{where}: {head[IHDR_DEPTH]} bits ({COLOUR_TYPES.get(head[IHDR_TYPE], 'unknown')}), expected 8-bit grey: "
            "networks see 256 levels; divide by 257 and save as 8 bits, or give energies as HDF5"
        )
    return picture


# ---------------------------------------------------------------------- the table


def _table(path: Path) -> tuple[list[dict[str, str]], list[int]]:
    """Rows of a table and the lines they end on."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [c.strip() for c in reader.fieldnames or ()]
            reader.fieldnames = columns
            missing = [c for c in COLUMNS[:3] if c not in columns]
            if missing or len(set(columns)) < len(columns):
                raise ValueError(
                    f"{path}: found the columns {', '.join(columns) or 'none'}, expected {', '.join(COLUMNS)}, each "
                    f"once, with commas; {'missing: ' + ', '.join(missing) if missing else 'rename the double one'}"
                )
            rows, lines = [], []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}: found another number of cells than the {len(columns)} columns"
                    )
                rows.append(row)
                lines.append(reader.line_num)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV table in UTF-8 ({error})") from error
    if not rows:
        raise ValueError(f"{path}: the table has no events, expected a line for each")
    return rows, lines


def _columns(name: str) -> list[str]:
    """Columns of a truth in a table."""
    return [f"{name}_{axis}" for axis in "xyz"] if TRUTH[name][0] == (3,) else [name]


def _truths(rows: list[dict[str, str]], labels: Mapping[str, str] | None, path: Path) -> dict[str, np.ndarray]:
    """Truth of the events: labels, and numbers in columns named like ``TRUTH``."""
    truth = {}
    if "label" in rows[0]:
        truth["interaction"] = class_numbers([row["label"] for row in rows], labels, f"{path}: column 'label'")
    for name, (shape, kind, _) in TRUTH.items():
        columns = _columns(name)
        if name == "interaction" or not set(columns) <= set(rows[0]):
            continue
        try:
            values = np.array([[float(row[c] or "nan") for c in columns] for row in rows]).reshape(-1, *shape)
        except ValueError as error:
            raise ValueError(f"{path}: {', '.join(columns)}: {error}, expected numbers or empty cells") from error
        if name in CLASSES:
            texts = ["" if math.isnan(v) else f"{v:g}" for v in values.tolist()]
            truth[name] = class_numbers(texts, None, f"{path}: column '{name}'", CLASSES[name])
        else:
            truth[name] = values.astype(kind)
    return truth


# ---------------------------------------------------------------------- writing


def write_png_folder(
    folder: str | Path,
    events: Iterable[ImageEvent],
    brightness: Brightness | None = None,
    producer: str = "",
) -> int:
    """Write events as 8-bit grey pictures and a table; the folder appears when it is complete, or not at all.

    Energies become one of 256 grey values, so that small ones may be lost; grey values stay as they are.

    Args:
        folder: not there, or empty.
        events: at least one.
        brightness: MeV -> grey; None = the default.
        producer: who made the events.

    Returns:
        The number of events.

    Raises:
        ValueError: no events.
        FileExistsError: the folder is there and not empty.
    """
    brightness = Brightness() if brightness is None else brightness
    rows: list[dict[str, object]] = []
    with new_folder(folder) as temporary:
        (temporary / "maps").mkdir()
        for number, event in enumerate(events):
            said = PngImagePlugin.PngInfo()
            said.add_text("Source", producer)
            said.add_text("pitch_mm", f"{event.pitch:g}")
            # the file, not where it lies: pictures are handed on
            row: dict[str, object] = {"name": Path(event.name).name, "xz": "", "yz": "", "label": ""}
            for view in event.views:
                row[view] = f"maps/{number:06d}_{view}.png"
                grey = np.rint(brightness.values(event.image(view), event.unit) * GREY_LEVELS).astype(np.uint8)
                Image.fromarray(np.ascontiguousarray(grey[::-1])).save(temporary / str(row[view]), pnginfo=said)
            rows.append(row | _written(event))
        if not rows:
            raise ValueError(f"{folder}: there are no events to write")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with (temporary / TABLE).open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, restval="")
            table.writeheader()
            table.writerows(rows)
    return len(rows)


def _written(event: ImageEvent) -> dict[str, object]:
    """Truth of an event as cells of the table; unknown ones stay empty."""
    cells: dict[str, object] = {}
    for name, value in event.truth.items():
        if name == "interaction":
            cells["label"] = INTERACTION_NAMES[int(value)] if int(value) >= 0 else ""
        elif name in CLASSES:
            cells[name] = int(value) if int(value) >= 0 else ""
        else:
            numbers = np.atleast_1d(value).tolist()
            cells |= {
                c: "" if math.isnan(v) else f"{v:.9g}" for c, v in zip(_columns(name), numbers, strict=True)
            }
    return cells
