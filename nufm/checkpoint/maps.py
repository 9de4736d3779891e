"""The pixel maps that a model was trained on, beside those that it is asked about.

An export says in ``extra["maps"]`` how the maps of its training were (:meth:`ImageDataModule.described`); older ones do
not say.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nufm.data.image_files import ImageReader  # brings Pillow

log = logging.getLogger(__name__)

KEY = "maps"
CUT_OUT = ("size", "centre")  # how maps are cut out of 3D events


def maps_of(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What an export's ``extra`` says of the maps of its training; empty if it does not."""
    said = extra.get(KEY)
    return dict(said) if isinstance(said, Mapping) else {}


def open_maps(path: str | Path, extra: Mapping[str, Any]) -> ImageReader:
    """A file, folder or glob of pixel maps; of 3D events the maps are cut out as in training.

    Raises:
        ValueError, FileNotFoundError: see :class:`nufm.data.image_files.ImageReader`.
    """
    from nufm.data.image_files import ImageReader, find_images, image_kind

    files, said = find_images(path), maps_of(extra)
    volumes = all(image_kind(file) == "volume" for file in files)
    return ImageReader(path, **{key: said[key] for key in CUT_OUT if volumes and said.get(key) is not None})


def warn_of_other_maps(events: object, extra: Mapping[str, Any], model: str) -> None:
    """Warns of a reader whose maps have another size, pitch or unit than those of the training: a network answers all
    the same, and what it says may be worth nothing.

    Args:
        events: a reader; anything else is left alone. A pitch of 0 is not known, and is not compared.
        extra: of the export.
        model: its name, for the message.
    """
    said = maps_of(extra)
    if not said or not all(hasattr(events, name) for name in ("shape", "pitch", "unit", "files")):
        return
    shape, trained = tuple(events.shape), tuple(said.get("shape") or events.shape)
    differs = [f"{_size(shape)} pixels in place of {_size(trained)}"] * (shape != trained)
    pitch, usual = float(events.pitch), float(said.get("pitch") or 0)
    if pitch and usual and abs(pitch - usual) > 1e-6 * usual:
        differs.append(f"a pitch of {pitch:g} mm in place of {usual:g} mm")
    if events.unit != said.get("unit", events.unit):
        differs.append(f"values in {events.unit} in place of {said['unit']}")
    if differs:
        log.warning(
            "%s: %s was trained on other maps: here they have %s. Its answers may be worth nothing; use maps as in "
            "training",
            *(events.files[0], model or "the model", ", ".join(differs)),
        )


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
