"""Predictions as an HDF5 file, for work outside nufm.

    attributes    format "nufm-predictions", version 1, classes (names, in order), source
    offsets       int64 (B+1,)   event b holds the rows offsets[b]:offsets[b+1]
    name          (B,)           where each event comes from, file.h5#index
    voxel         int32 (N, 3)   lattice index
    energy        float32 (N,)   MeV
    label         int64 (N,)     class, -1 none
    confidence    float32 (N,)   0 to 1
    probability   float32 (N, C) of every class; if the model gives it
    instance      int64 (N,)     0..n-1 within the event, -1 none; of panoptic models
    momentum      float32 (N,)   GeV/c of the voxel's instance, NaN none; of models that say

Every data set has an attribute ``unit``, empty where there is none.

Shape legend: N voxels of all events, B events, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from nufm.data.prediction import EventPrediction

FORMAT, VERSION = "nufm-predictions", 1
UNITS = {"energy": "MeV", "momentum": "GeV/c"}
COLUMNS = {
    "voxel": np.int32,
    "energy": np.float32,
    "label": np.int64,
    "confidence": np.float32,
    "probability": np.float32,
    "instance": np.int64,
    "momentum": np.float32,
}
OPTIONAL = ("probability", "instance", "momentum")
CHUNK = 2**14  # rows: small enough that HDF5 keeps the chunk being filled in its cache of 1 MiB


def save_predictions(predictions: Iterable[EventPrediction], path: str | Path, source: str = "") -> Path:
    """Write predictions, event by event, so that an iterator such as ``predict_each`` needs no memory for all.

    Args:
        predictions: of one model.
        path: file to write; one that is there is replaced, and only by a whole one.
        source: what made them, e.g. the name of the export.

    Returns:
        The path.

    Raises:
        ValueError: no predictions, or predictions of different models.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(partial, "w") as file:
            _write(file, predictions, source)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write(file: h5py.File, predictions: Iterable[EventPrediction], source: str) -> None:
    first: EventPrediction | None = None
    offsets, names, present = [0], [], []
    for prediction in predictions:
        if first is None:
            first, present = prediction, [c for c in COLUMNS if getattr(prediction, c) is not None]
            for column in present:
                shape = np.shape(getattr(prediction, column))[1:]
                data = file.create_dataset(
                    column, (0, *shape), COLUMNS[column], maxshape=(None, *shape), chunks=(CHUNK, *shape),
                    compression="gzip", compression_opts=1, shuffle=True,
                )  # fmt: skip
                data.attrs["unit"] = UNITS.get(column, "")
        own = [c for c in COLUMNS if getattr(prediction, c) is not None]
        if prediction.classes != first.classes or own != present:
            raise ValueError(
                f"{prediction.name}: has classes {prediction.classes} and fields {own}, expected {first.classes} and "
                f"{present} as in {first.name}; write the predictions of each model to its own file"
            )
        offsets.append(offsets[-1] + len(prediction))
        names.append(prediction.name)
        for column in present:
            file[column].resize(offsets[-1], axis=0)
            file[column][offsets[-2] :] = getattr(prediction, column)
    if first is None:
        raise ValueError(f"{file.filename}: there are no predictions to write")
    file.create_dataset("offsets", data=np.array(offsets, dtype=np.int64)).attrs["unit"] = ""
    file.create_dataset("name", data=names, dtype=h5py.string_dtype()).attrs["unit"] = ""
    file.attrs.update({"format": FORMAT, "version": VERSION, "source": source, "classes": list(first.classes)})


def load_predictions(path: str | Path) -> list[EventPrediction]:
    """Read what :func:`save_predictions` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not such a file, or lacks a data set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
                raise ValueError(
                    f"{path}: attribute 'format' is {file.attrs.get('format')!r} {file.attrs.get('version')}, expected "
                    f"'{FORMAT}' {VERSION}"
                )
            if missing := [c for c in ("offsets", "name", *COLUMNS) if c not in OPTIONAL and c not in file]:
                raise ValueError(f"{path}: data sets {missing} are missing, found {sorted(file)}")
            classes = tuple(str(c) for c in file.attrs["classes"])
            columns = {c: file[c][:] for c in COLUMNS if c in file}
            offsets, names = file["offsets"][:], file["name"].asstr()[:]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as HDF5, it is truncated or another format ({error})") from error
    return [
        EventPrediction(name=name, classes=classes, **{c: v[begin:end] for c, v in columns.items()})
        for name, begin, end in zip(names, offsets[:-1], offsets[1:], strict=True)
    ]
