"""HDF5 files of pixel maps made elsewhere: dense arrays. ``nufm.data.image_files`` describes what they may hold.

Shape legend: n events of the file, V views, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from nufm.data.image_hdf5 import open_hdf5, truth_columns, unreadable
from nufm.data.images import VIEWS, ImageEvent, View, class_numbers

IMAGES, LABELS = "images", ("labels", "label")


def is_array_file(file: h5py.File) -> bool:
    """Whether an open file holds dense maps."""
    return any(name in file for name in (IMAGES, *VIEWS))


class ArrayFile:
    """One HDF5 file of dense arrays, read event by event.

    Args:
        path: the file.
        labels: label as in the file -> name of its class; None: the file's labels are names or numbers of ours.
        unit: of the values, if the file does not say; None: grey values for bytes, else the file must say.
        pitch: mm per pixel, if the file does not say; None = unknown.

    Attributes:
        n_events, shape, pitch, unit: of all its events.
        producer: who made them.
        truth: name -> array (n_events, ...).

    Raises:
        ValueError: the arrays, their views, unit or labels are not what they should be.
    """

    def __init__(
        self,
        path: str | Path,
        labels: Mapping[str, str] | None = None,
        unit: str | None = None,
        pitch: float | None = None,
    ) -> None:
        self.path = Path(path)
        self._file = open_hdf5(self.path)
        try:
            self._inspect(labels, unit, pitch)
        except BaseException:
            self.close()
            raise

    def _inspect(self, labels: Mapping[str, str] | None, unit: str | None, pitch: float | None) -> None:
        self._data = self._arrays()
        shapes = {name: data.shape for name, data in self._data.items()}
        sizes = {(shape[0], *shape[-2:]) for shape in shapes.values()}
        if len(sizes) > 1:
            raise ValueError(f"{self.path}: the views differ, found {shapes}, expected the same events, one size")
        self.n_events, *size = next(iter(sizes))
        self.shape = (int(size[0]), int(size[1]))
        kinds = {data.dtype for data in self._data.values()}
        if any(kind.kind not in "iufb" for kind in kinds):
            raise ValueError(f"{self.path}: the images are {', '.join(map(str, kinds))}, expected numbers")
        whole = all(kind == np.uint8 for kind in kinds)
        self.unit = self._said("unit", unit, "grey" if whole else None)
        if self.unit not in ("MeV", "grey"):
            found = "no unit" if self.unit is None else f"unit = '{self.unit}'"
            raise ValueError(
                f"{self.path}: images of {', '.join(map(str, kinds))} with {found}, expected the attribute unit = "
                "'MeV', or 'grey' for values 0 … 255; add it to the file, or say it with unit (--data.unit)"
            )
        self.pitch = float(self._said("pitch", pitch, 0.0))
        self.producer = str(self._said("producer", None, ""))
        self._top = str(self._said("row_0", None, "lowest"))
        if self._top not in ("lowest", "highest"):
            raise ValueError(
                f"{self.path}: attribute row_0 is '{self._top}', expected 'lowest' (row 0 has the lowest transverse "
                "coordinate) or 'highest' (it has the highest, as in a picture)"
            )
        self.truth = self._truths(labels)

    def _arrays(self) -> dict[str, h5py.Dataset]:
        """View -> (n, H, W) or (n, V, H, W) data set that it is in."""
        file = self._file
        said = self._views_said()
        if IMAGES in file:
            data = file[IMAGES]
            views = said or list(VIEWS)
            if views not in ([*VIEWS], *([view] for view in VIEWS)):
                raise ValueError(
                    f"{self.path}: the views of '{IMAGES}' are {', '.join(views)}, expected {', '.join(VIEWS)} in this "
                    "order; change the order of its axis 1 and of the attribute 'views'"
                )
            if not isinstance(data, h5py.Dataset) or data.ndim != 4 or data.shape[1] != len(views):
                raise ValueError(
                    f"{self.path}: '{IMAGES}' is {getattr(data, 'shape', 'a group')}, expected (events, {len(views)} "
                    f"views, rows, columns) with the views {', '.join(views)}{self._hint(data)}"
                )
            return dict.fromkeys(views, data)
        expected = said or list(VIEWS)
        found = [view for view in VIEWS if view in file]
        if sorted(expected) != sorted(found):
            raise ValueError(
                f"{self.path}: the views {', '.join(found)} are there, expected {', '.join(expected)}; if a view was "
                f"never read out, say so with an attribute views = {found}"
            )
        for view in found:
            if not isinstance(file[view], h5py.Dataset) or file[view].ndim != 3:
                raise ValueError(
                    f"{self.path}: '{view}' is {getattr(file[view], 'shape', 'a group')}, expected (events, rows, "
                    f"columns){self._hint(file[view])}"
                )
        return {view: file[view] for view in found}

    def _views_said(self) -> list[str]:
        """The attribute ``views`` of the images or of the file."""
        for holder in (self._file.get(IMAGES), self._file):
            if holder is not None and "views" in holder.attrs:
                said = np.atleast_1d(holder.attrs["views"])
                return [v.decode() if isinstance(v, bytes) else str(v) for v in said.tolist()]
        return []

    @staticmethod
    def _hint(data: h5py.Dataset) -> str:
        """What may have gone wrong with the axes."""
        shape = getattr(data, "shape", ())
        if len(shape) > 3 and shape[-1] in (3, 4):
            return "; colour images are no charge, make them grey"
        if len(shape) == 4 and shape[-1] in (1, 2):
            return "; the last axis seems to be the views, move it to the second place"
        return ""

    def _said(self, what: str, otherwise: object, default: object) -> object:
        """An attribute of the file, or what the user says."""
        if what not in self._file.attrs:
            return default if otherwise is None else otherwise
        said = self._file.attrs[what]
        said = said.decode() if isinstance(said, bytes) else said
        if otherwise is not None and said != otherwise:
            raise ValueError(f"{self.path}: its {what} is {said}, but {otherwise} was asked for; leave that out")
        return said

    def _truths(self, labels: Mapping[str, str] | None) -> dict[str, np.ndarray]:
        truth = truth_columns(self._file, self.n_events, self.path)
        found = [name for name in LABELS if name in self._file]
        if len(found) + ("interaction" in truth) > 1:
            raise ValueError(f"{self.path}: labels are given twice, found {', '.join(found)} and truth; keep one")
        for name in found:
            data = self._file[name]
            if not isinstance(data, h5py.Dataset) or data.shape != (self.n_events,):
                raise ValueError(
                    f"{self.path}: '{name}' has shape {getattr(data, 'shape', 'of a group')}, expected "
                    f"({self.n_events},), a label for each event"
                )
            truth["interaction"] = class_numbers(data[:].tolist(), labels, f"{self.path}: '{name}'")
        return truth

    def event(self, row: int, name: str) -> ImageEvent:
        """Event ``row`` of 0..n-1, with a name for messages.

        Raises:
            ValueError: it cannot be read, or is not what it should be.
        """
        views = {}
        for number, (view, data) in enumerate(self._data.items()):
            try:
                image = data[row] if data.ndim == 3 else data[row, number]
            except (OSError, RuntimeError) as error:
                raise unreadable(name, f"view '{view}'", error) from error
            if self.unit == "grey":
                check_grey(image, f"{name}: view '{view}'")
            views[view] = View.of_image(image if self._top == "lowest" else image[::-1])
        truth = {n: values[row] for n, values in self.truth.items()}
        return ImageEvent(views, self.shape, self.pitch, self.unit, truth, name)

    def close(self) -> None:
        self._file.close()


def check_grey(image: np.ndarray, where: str) -> None:
    """Refuses values that are no grey values 0 … 255; NaN is left to the event's own checks."""
    if image.dtype == np.uint8 or image.size == 0:
        return
    low, high = np.nanmin(image), np.nanmax(image)
    if low < 0 or high > 255:
        raise ValueError(f"{where}: values from {low} to {high}, expected grey values 0 … 255; are these MeV?")
    if image.dtype.kind == "f" and 0 < high <= 1 and (image != np.rint(image)).any():
        raise ValueError(f"{where}: values from {low} to {high}, expected grey values 0 … 255; multiply them by 255")
