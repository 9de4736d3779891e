"""An event as two pixel maps, its projections onto the planes along the beam, and a batch of such events.

The beam goes along z. View ``xz`` has the drift coordinate x across the beam, view ``yz`` the height y; both share z.
A map is an array [row, column]: rows are the transverse coordinate, row 0 the lowest; columns are z, column 0 the
furthest upstream. An event keeps the pixels with charge only; a batch is dense.

A view that was not read out is missing: its name is not there. A view without charge is empty. Both are legal, and an
event may have nothing at all. In a batch both are maps of 0; ``present`` tells them apart.

Shape legend: N pixels with charge of a view, B events, V = 2 views, H rows, W columns.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

VIEWS = ("xz", "yz")
# Classes in the order of their numbers (arXiv 2509.08461, Table 1).
INTERACTION_NAMES = ("νµ CC", "νe CC", "NC")
MODE_NAMES = ("quasi-elastic", "resonant", "deep-inelastic")
CLASSES = {"interaction": INTERACTION_NAMES, "mode": MODE_NAMES}

# Truth of an event: name -> (shape, kind, unit). Class numbers are int64, -1 unknown; the rest float32, NaN unknown.
TRUTH: dict[str, tuple[tuple[int, ...], type, str]] = {
    "interaction": ((), np.int64, ""),
    "mode": ((), np.int64, ""),
    "neutrino_energy": ((), np.float32, "GeV"),
    "inelasticity": ((), np.float32, ""),
    "lepton": ((3,), np.float32, "GeV/c"),
    "vertex": ((3,), np.float32, "mm"),
}
Unit = Literal["MeV", "grey"]
UNKNOWN = -1


def unknown(name: str, n: int | None = None) -> np.ndarray:
    """What stands for a truth that is not known: an event's, or those of ``n`` events (n, ...)."""
    shape, kind, _ = TRUTH[name]
    return np.full(shape if n is None else (n, *shape), UNKNOWN if kind is np.int64 else np.nan, dtype=kind)


def class_numbers(
    labels: Sequence[object],
    mapping: Mapping[str, str] | None = None,
    where: str = "labels",
    names: tuple[str, ...] = INTERACTION_NAMES,
) -> np.ndarray:
    """int64 (n,), the classes that labels of any spelling name; -1 unknown.

    A label is a class's number, or its name: case, spaces, hyphens and underscores do not matter, and ν and µ may be
    written nu and mu (``numu CC``). An empty label, or -1, is unknown.

    Args:
        labels: texts, bytes or whole numbers.
        mapping: label -> one of ``names``, for labels that say it differently.
        where: the file and field, for messages.
        names: of the classes.

    Raises:
        ValueError: a label that names no class: says which, in which row, and the known ones.
    """
    known = {_spelling(name): number for number, name in enumerate(names)}
    known |= {str(number): number for number in range(UNKNOWN, len(names))} | {"": UNKNOWN}
    given = {str(label).strip(): str(name) for label, name in (mapping or {}).items()}
    told = f"known classes: {', '.join(f'{number} = {name}' for number, name in enumerate(names))}"
    for label, name in given.items():
        if _spelling(name) not in known:
            raise ValueError(f"{where}: label '{label}' stands for '{name}', expected a class; {told}")
    found = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        text = (label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)).strip()
        number = known.get(_spelling(given.get(text, text)))
        if number is None:
            raise ValueError(
                f"{where}, row {row}: label '{text}' is not a class; {told}; an empty label is unknown. Say what other "
                f"labels stand for, e.g. --data.labels '{{{text}: {names[-1]}}}'"
            )
        found[row] = number
    return found


def _spelling(name: str) -> str:
    """A name without what may be written in several ways: both µ of Unicode, ν, spaces; 1.0 is 1."""
    name = name.lower()
    for letters, plain in (("ν", "nu"), ("\u00b5", "mu"), ("\u03bc", "mu")):
        name = name.replace(letters, plain)
    name = re.sub(r"^(-?\d+)\.0+$", r"\1", name.strip())
    # the sign of a number is no hyphen
    return name if re.fullmatch(r"-?\d+", name) else re.sub(r"[\s_-]+", "", name)


@dataclass(frozen=True)
class View:
    """Pixels with charge of one view.

    Attributes:
        pixel: int32 (N, 2) row and column, each pixel once.
        energy: float32 (N,) MeV, or grey values 0 … 255 of images that do not say more; whatever the transforms made of
            it after them.
    """

    pixel: np.ndarray
    energy: np.ndarray

    def __len__(self) -> int:
        return len(self.pixel)

    @classmethod
    def of_image(cls, image: np.ndarray) -> View:
        """The pixels of an array (H, W) that are not 0."""
        rows, columns = np.nonzero(image)
        pixel = np.stack([rows, columns], axis=1).astype(np.int32)
        return cls(pixel, image[rows, columns].astype(np.float32))


@dataclass(frozen=True)
class ImageEvent:
    """One event as pixel maps.

    Attributes:
        views: name -> its pixels; see ``VIEWS``.
        shape: H, W of every view.
        pitch: edge of a pixel in mm; 0 if it is not known.
        unit: of the energies.
        truth: some of ``TRUTH``, as NumPy arrays.
        name: where the event comes from, used in messages.
        seed: seed of the event's own random stream.

    Raises:
        ValueError: an unknown view, pixels outside the map or given twice, another dtype or shape, an energy that is
            not finite, an unknown truth or class.
    """

    views: Mapping[str, View]
    shape: tuple[int, int]
    pitch: float = 5.0
    unit: Unit = "MeV"
    truth: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = "event"
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"{self.name}: shape is {tuple(self.shape)}, expected rows and columns (H, W), each >= 1")
        if self.unit not in ("MeV", "grey"):
            raise ValueError(f"{self.name}: unit is '{self.unit}', expected 'MeV' or 'grey'")
        if not (np.isfinite(self.pitch) and self.pitch >= 0):
            raise ValueError(f"{self.name}: pitch is {self.pitch}, expected mm per pixel, or 0 if it is not known")
        if strange := set(self.views) - set(VIEWS):
            raise ValueError(f"{self.name}: unknown view '{min(strange)}', expected some of {', '.join(VIEWS)}")
        for name, view in self.views.items():
            _check_view(view, tuple(self.shape), f"{self.name}: view '{name}'")
        for name, value in self.truth.items():
            if name not in TRUTH:
                raise ValueError(f"{self.name}: unknown truth '{name}', expected some of {', '.join(TRUTH)}")
            if np.shape(value) != TRUTH[name][0]:
                raise ValueError(f"{self.name}: truth '{name}' has shape {np.shape(value)}, expected {TRUTH[name][0]}")
            if name in CLASSES and not -1 <= int(value) < len(CLASSES[name]):
                raise ValueError(
                    f"{self.name}: truth '{name}' is {int(value)}, expected a class 0 … {len(CLASSES[name]) - 1} "
                    f"({', '.join(CLASSES[name])}), or -1 if it is not known"
                )

    @property
    def n_pixels(self) -> int:
        """Pixels with charge in all views."""
        return sum(map(len, self.views.values()))

    def replace(self, **changes: object) -> ImageEvent:
        return dataclasses.replace(self, **changes)

    def without(self, view: str) -> ImageEvent:
        """The event as if ``view`` had not been read out."""
        return self.replace(views={k: v for k, v in self.views.items() if k != view})

    def image(self, view: str) -> np.ndarray:
        """float32 (H, W) of one view; 0 where it has no charge or is missing."""
        dense = np.zeros(self.shape, dtype=np.float32)
        if view in self.views:
            pixel = self.views[view].pixel
            dense[pixel[:, 0], pixel[:, 1]] = self.views[view].energy
        return dense


def _check_view(view: View, shape: tuple[int, int], where: str) -> None:
    pixel, energy = view.pixel, view.energy
    if pixel.ndim != 2 or pixel.shape[1] != 2 or not np.issubdtype(pixel.dtype, np.integer):
        raise ValueError(f"{where}: pixels are {pixel.dtype} {pixel.shape}, expected integers (N, 2): row, column")
    if energy.shape != (len(pixel),) or energy.dtype != np.float32:
        raise ValueError(f"{where}: energy is {energy.dtype} {energy.shape}, expected float32 ({len(pixel)},)")
    if not np.isfinite(energy).all():
        row = int(np.flatnonzero(~np.isfinite(energy))[0])
        raise ValueError(f"{where}: energy of pixel {pixel[row].tolist()} is {energy[row]}, expected a finite number")
    if len(pixel) == 0:
        return
    outside = ((pixel < 0) | (pixel >= shape)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"{where}: pixel {pixel[row].tolist()} is outside the map of {shape[0]} × {shape[1]} pixels")
    flat = np.sort(pixel[:, 0].astype(np.int64) * shape[1] + pixel[:, 1])
    if twice := flat[1:][np.diff(flat) == 0].tolist():
        place = list(divmod(twice[0], shape[1]))
        raise ValueError(f"{where}: pixel {place} is given twice; add the energies up")


@dataclass(frozen=True)
class ImageBatch:
    """B events as dense pixel maps.

    Attributes:
        image: float32 (B, V, H, W), views in the order of ``VIEWS``; 0 where a view is missing.
        present: bool (B, V) whether the view was read out.
        truth: name -> tensor (B, ...), those that any of the events has (see ``TRUTH``); -1 or NaN of the others.
        seeds: int64 (B,) seed of each event's own random stream.
        names: B event names, for messages.
        pitch: edge of a pixel in mm; 0 if it is not known.
        unit: of the energies before the transforms.
    """

    image: Tensor
    present: Tensor
    truth: dict[str, Tensor]
    seeds: Tensor
    names: tuple[str, ...]
    pitch: float = 5.0
    unit: Unit = "MeV"

    @property
    def n_events(self) -> int:
        return len(self.names)

    def __len__(self) -> int:
        """Events."""
        return self.n_events

    @property
    def device(self) -> torch.device:
        return self.image.device

    def replace(self, **changes: object) -> ImageBatch:
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ImageBatch:
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change) -> ImageBatch:
        return self.replace(
            image=change(self.image),
            present=change(self.present),
            truth={k: change(v) for k, v in self.truth.items()},
            seeds=change(self.seeds),
        )

    @classmethod
    def from_events(cls, events: Sequence[ImageEvent]) -> ImageBatch:
        """Pack transformed events of one size of map. What the batch says of an event is what the event says, whoever
        else is in it.

        Args:
            events: at least one.

        Raises:
            ValueError: no events, or maps of different size, pitch or unit.
        """
        if not events:
            raise ValueError("cannot pack an empty list of events; an event without charge is legal, a batch is not")
        first = events[0]
        for event in events:
            for what in ("shape", "pitch", "unit"):
                if getattr(event, what) != getattr(first, what):
                    raise ValueError(
                        f"{event.name}: {what} is {getattr(event, what)} in a batch with {getattr(first, what)} "
                        f"({first.name}); use events of one kind in a batch"
                    )
        named = [name for name in TRUTH if any(name in e.truth for e in events)]
        image = torch.zeros(len(events), len(VIEWS), *first.shape, dtype=torch.float32)
        dense = image.numpy()  # the same memory: a batch of large maps is written once
        for row, event in enumerate(events):
            for column, view in enumerate(VIEWS):
                if view in event.views:
                    pixel = event.views[view].pixel
                    dense[row, column, pixel[:, 0], pixel[:, 1]] = event.views[view].energy
        return cls(
            image=image,
            present=torch.tensor([[view in e.views for view in VIEWS] for e in events]),
            truth={
                name: torch.from_numpy(
                    np.stack([np.asarray(e.truth.get(name, unknown(name)), dtype=TRUTH[name][1]) for e in events])
                )
                for name in named
            },
            seeds=torch.tensor([e.seed for e in events], dtype=torch.int64),
            names=tuple(e.name for e in events),
            pitch=first.pitch,
            unit=first.unit,
        )
