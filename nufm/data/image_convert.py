"""Pixel maps from one kind of file into another: see ``nufm/data/image_files.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from nufm.data.cache import new_folder
from nufm.data.image_files import ImageReader
from nufm.data.image_hdf5 import HDF5, write_maps
from nufm.data.image_png import write_png_folder
from nufm.data.image_transforms import Brightness
from nufm.data.images import ImageEvent


def convert_maps(
    reader: ImageReader,
    out: str | Path,
    brightness: Brightness | None = None,
    each: Callable[[], None] | None = None,
) -> int:
    """Write all events of a reader into one HDF5 file, or a folder with PNG files and a table; they appear when they
    are complete, or not at all. Every event is checked.

    Args:
        reader: of files of any kind.
        out: an HDF5 file (.h5 or .hdf5) that is not there, or a folder that is not there or empty.
        brightness: of pictures, MeV -> grey; None = the default.
        each: called after each event.

    Returns:
        The number of events.

    Raises:
        ValueError: an event is not what it should be, or there are none.
        FileExistsError: ``out`` is there.
    """
    out, events = Path(out).expanduser(), _events(reader, range(len(reader)), each)
    if out.suffix in HDF5:
        return write_maps(out, events, {"producer": reader.producer})
    return write_png_folder(out, events, brightness, reader.producer)


def split_maps(
    reader: ImageReader,
    folder: str | Path,
    shares: Mapping[str, float],
    seed: int = 7,
    each: Callable[[], None] | None = None,
) -> dict[str, int]:
    """Share the events out at random: ``folder/<split>/maps.h5``. The folder appears when it is complete, or not at
    all.

    Args:
        reader: of files of any kind.
        folder: not there, or empty.
        shares: split -> its share of the events; they sum to 1.
        seed: of the draw.
        each: called after each event.

    Returns:
        split -> number of its events.

    Raises:
        ValueError: shares that do not sum to 1 or leave a split empty, or a bad event.
        FileExistsError: the folder is there and not empty.
    """
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"the shares are {dict(shares)}, expected positive numbers that sum to 1")
    drawn = np.random.default_rng(seed).permutation(len(reader))
    ends = np.rint(np.cumsum(list(shares.values())) * len(drawn)).astype(int)
    parts = {s: np.sort(p) for s, p in zip(shares, np.split(drawn, ends[:-1]), strict=True)}
    if empty := [split for split, rows in parts.items() if len(rows) == 0]:
        raise ValueError(f"{len(reader)} events leave none for {', '.join(empty)}; give it a larger share")
    with new_folder(folder) as temporary:
        for split, rows in parts.items():
            write_maps(temporary / split / "maps.h5", _events(reader, rows, each), {"producer": reader.producer})
    return {split: len(rows) for split, rows in parts.items()}


def _events(reader: ImageReader, rows: Sequence[int], each: Callable[[], None] | None) -> Iterator[ImageEvent]:
    for row in rows:
        yield reader[row]
        if each is not None:
            each()
