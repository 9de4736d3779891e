"""Single particles out of larger events, each in a crop of its own: what an encoder is transferred to.

    superfgd        p, π±, µ±, e± of some hundred MeV in a volume of scintillator cubes: simulated by nufm, or the
                    public sample of S. Alonso-Monsalve et al. (Commun. Phys. 6, 119 (2023); Zenodo 7347563)
    pilarnet_crop   photon, electron, muon, pion, proton: the particles of PILArNet-M events, simulated or public

A particle becomes a *record*, the paths of a stream file (:mod:`nufm.data.stream_files`), so that one reader and one
data module serve all of them. Every record has 31 hand-crafted numbers (``COLUMNS``) in ``extra``, which a network may
use or not: the public code (saulam/faserDL) adds them to what the encoder finds, and their share of its scores is not
known.

Crops, classes and numbers follow the talk of F. Cufino (NPML 2026) and that code; where they differ is said.

Shape legend: N hits of a particle, P particles of an event.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

from nufm.data.detector import load_detector, load_stream_detector
from nufm.data.event import PID_NAMES, Event
from nufm.data.streams import Hits, StreamEvent

STREAM = "voxels"
VOLUME = "superfgd_volume"
# Names of the classes of ``truth["particle"]`` by detector, in the order of the published tables.
PARTICLE_NAMES = {"superfgd": ("proton", "pion", "muon", "electron"), "pilarnet_crop": PID_NAMES[:5]}
MIN_VOXELS = 5  # of a particle of PILArNet, as in the public code

# The hand-crafted numbers. Positions and sizes are shares of the crop (superfgd) or of the whole volume
# (pilarnet_crop), charges those of the detector.
CLUSTER_COLUMNS = (
    *("centroid_x", "centroid_y", "centroid_z", "box_x", "box_y", "box_z"),
    *("log_hits", "log_charge", "log_mean_charge", "log_std_charge", "log_density", "at_edge"),
    *("log_pca_1", "log_pca_2", "log_pca_3", "start_x", "start_y", "start_z"),
    *("direction_x", "direction_y", "direction_z", "length", "linearity", "planarity", "charge_asymmetry"),
)
COLUMNS = {
    "superfgd": (*CLUSTER_COLUMNS, *(f"wall_{side}_{axis}" for axis in "xyz" for side in ("low", "high"))),
    "pilarnet_crop": (
        *(name if name != "at_edge" else "scale" for name in CLUSTER_COLUMNS),
        *("charge_share", "hit_share", "charge_rank", "hit_rank", "nearest_particle", "event_centroid"),
    ),
}
# What the public code gives its single-particle task on PILArNet: 16 numbers, none of which says where the particle is
# or where it goes.
SHAPE_COLUMNS = tuple(
    i for i, name in enumerate(CLUSTER_COLUMNS) if not name.startswith(("centroid", "start", "direction"))
)


@dataclass(frozen=True)
class Crop:
    """A particle in its crop.

    Attributes:
        index: int32 (N, 3) in the crop, each voxel once.
        charge: float32 (N,).
        origin: int64 (3,) of the crop in the volume; meaningless where ``scale`` is below 1.
        scale: 1, or what the particle was shrunk by.
    """

    index: np.ndarray
    charge: np.ndarray
    origin: np.ndarray
    scale: float = 1.0


def cut_out(index: np.ndarray, charge: np.ndarray, size: Sequence[int], volume: Sequence[int]) -> Crop:
    """The hits in a crop of ``size`` (3,) centred on their bounding box, moved so that it stays inside ``volume`` (3,);
    hits beyond it are left out. No hits: the middle of the volume."""
    room = np.asarray(volume) - size
    if len(index) == 0:
        return Crop(index.astype(np.int32), charge.astype(np.float32), room // 2)
    middle = (index.min(0) + index.max(0)) / 2
    origin = np.clip(np.floor(middle - (np.asarray(size) - 1) / 2), 0, room).astype(np.int64)
    local = index - origin
    inside = ((local >= 0) & (local < size)).all(1)
    return Crop(*_merged(local[inside], charge[inside], size), origin)


def fit_in(index: np.ndarray, charge: np.ndarray, size: Sequence[int]) -> Crop:
    """All hits (at least one) in a crop of ``size`` (3,) centred on their bounding box; a particle that is larger is
    shrunk about its middle, the same along all axes, and charges that meet in a voxel are added."""
    half = (np.asarray(size) - 1) / 2
    offset = index - (index.min(0) + index.max(0)) / 2
    reach = np.abs(offset).max(0)
    scale = float(min(1.0, np.min(half / np.maximum(reach, 1e-6))))
    # Half a voxel up, not to the even neighbour: voxels of an unshrunk particle must not meet.
    local = np.clip(np.floor(offset * scale + half + 0.5), 0, np.asarray(size) - 1).astype(np.int64)
    return Crop(*_merged(local, charge, size), index[0] - local[0], scale)


def _merged(index: np.ndarray, charge: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Each voxel once, in the order of their numbers."""
    cells, row = np.unique(np.ravel_multi_index(index.T, tuple(size)), return_inverse=True)
    total = np.bincount(row.reshape(-1), weights=charge, minlength=len(cells))
    return np.stack(np.unravel_index(cells, tuple(size)), axis=1).astype(np.int32), total.astype(np.float32)


# ---------------------------------------------------------------------- hand-crafted numbers


def cluster_numbers(index: np.ndarray, charge: np.ndarray, size: Sequence[int], last: float) -> np.ndarray:
    """float32 (25,), ``CLUSTER_COLUMNS``: where the hits are, how many, how much, and their principal axes.

    The axis points from the end with less charge to the one with more: a stopping particle ends where it loses most.
    (The public code does so for SuperFGD; for PILArNet it sorts by z, which no rotation leaves alone.)

    Args:
        index: (N, 3) in a box of ``size`` voxels.
        charge: (N,).
        size: (3,) that positions are shares of.
        last: the number in the place of ``at_edge``.
    """
    if len(index) == 0:
        return np.zeros(len(CLUSTER_COLUMNS), np.float32)
    where, size = index.astype(np.float64), np.asarray(size, np.float64)
    charge = charge.astype(np.float64)
    unit = np.maximum(size - 1, 1)
    box = np.ptp(where, axis=0) + 1
    middle = where.mean(0)
    spread, start, direction = np.zeros(3), middle, np.zeros(3)
    length = linearity = planarity = asymmetry = 0.0
    if len(where) > 1:
        offset = where - middle
        values, axes = np.linalg.eigh(offset.T @ offset / (len(where) - 1))
        spread = np.sqrt(np.maximum(values[::-1], 0.0))
        along = offset @ axes[:, -1]
        half = along - (along.max() + along.min()) / 2
        # A hit in the middle counts for neither end, else the sign of the axis, which is arbitrary, would matter.
        more = (np.sign(half) * charge)[np.abs(half) > 1e-6].sum()
        ends = where[[np.argmin(along), np.argmax(along)]]
        if more < 0:
            ends, more = ends[::-1], -more
        way = ends[1] - ends[0]
        length = np.linalg.norm(way) / np.linalg.norm(unit)
        direction, start = way / max(np.linalg.norm(way), 1e-6), ends[0]
        linearity, planarity = (np.log1p(spread[i] / max(spread[i + 1], 1e-6)) for i in (0, 1))
        asymmetry = more / max(charge.sum(), 1e-6)
    amounts = (len(where), charge.sum(), charge.mean(), charge.std(), len(where) / box.prod())
    numbers = [*middle / unit, *box / size, *np.log1p(amounts), last, *np.log1p(spread), *start / unit, *direction]
    return np.array([*numbers, length, linearity, planarity, asymmetry], np.float32)


def edge_share(index: np.ndarray, size: Sequence[int]) -> float:
    """Share of the hits (N, 3) in the outermost voxels of a box of ``size`` voxels, 0 without hits."""
    return float(((index == 0) | (index == np.asarray(size) - 1)).any(1).mean()) if len(index) else 0.0


def wall_numbers(origin: np.ndarray, size: Sequence[int], volume: Sequence[int]) -> np.ndarray:
    """float32 (6,): how far the crop could move to the low and high wall along x, y and z, as shares of both."""
    room = np.asarray(volume) - size
    shares = np.stack([origin, room - origin], axis=1) / np.maximum(room, 1)[:, None]
    return shares.reshape(-1).astype(np.float32)


def event_numbers(centroid: np.ndarray, hits: np.ndarray, charge: np.ndarray) -> np.ndarray:
    """float32 (P, 6): each particle's shares of charge and hits of its event, its ranks in them (0 most, 1 least), the
    distance to the nearest other particle and to the mean of all, as shares of the diagonal (1 nearest: none).

    Args:
        centroid: (P, 3) as shares of the volume.
        hits, charge: (P,) of the particles.
    """
    diagonal, n = np.sqrt(3.0), len(hits)
    apart = np.linalg.norm(centroid[:, None] - centroid[None], axis=2) + np.diag(np.full(n, np.inf))
    nearest = apart.min(1) / diagonal if n > 1 else np.full(n, 1 / diagonal)
    return np.stack(
        [
            *(charge / max(charge.sum(), 1e-6), hits / max(hits.sum(), 1), _rank(charge), _rank(hits), nearest),
            np.linalg.norm(centroid - centroid.mean(0), axis=1) / diagonal,
        ],
        axis=1,
    ).astype(np.float32)


def _rank(values: np.ndarray) -> np.ndarray:
    rank = np.empty(len(values))
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return rank / max(len(values) - 1, 1)


# ---------------------------------------------------------------------- events -> records


def scintillator_record(event: StreamEvent) -> dict[str, object]:
    """One particle of the volume of cubes, in its crop, with its numbers."""
    size = load_stream_detector("superfgd").voxels[STREAM].lattice
    volume = load_stream_detector(VOLUME).voxels[STREAM].lattice
    hits = event.voxels[STREAM]
    crop = cut_out(hits.index, hits.charge, size, volume)
    numbers = cluster_numbers(crop.index, crop.charge, size, edge_share(crop.index, size))
    return {
        **_hits(crop),
        "truth/particle": int(event.truth["particle"]),
        "extra": np.concatenate([numbers, wall_numbers(crop.origin, size, volume)]),
    }


def pilarnet_records(event: Event, group: int, min_voxels: int = MIN_VOXELS) -> list[dict[str, object]]:
    """The particles of a PILArNet-M event that are of the five classes and have ``min_voxels`` voxels or more.

    Args:
        event: with particle ids and PID.
        group: number of the event; its particles belong together.
        min_voxels: of a particle.

    Raises:
        ValueError: the event has no such labels.
    """
    if event.particle is None or event.pid is None:
        raise ValueError(
            f"{event.name}: particles need the labels 'particle' and 'pid', this event has not both; use PILArNet-M v2 "
            "or v3 (v1 has no PID, files with 'point' alone no labels)"
        )
    size = load_stream_detector("pilarnet_crop").voxels[STREAM].lattice
    volume = load_detector("pilarnet").lattice
    found = []
    for particle in np.unique(event.particle[event.particle >= 0]):
        rows = event.particle == particle
        if rows.sum() < min_voxels:
            continue
        pid = int(np.bincount(event.pid[rows][event.pid[rows] >= 0], minlength=1).argmax())
        if pid < len(PARTICLE_NAMES["pilarnet_crop"]):
            crop = fit_in(event.voxel[rows], event.energy[rows], size)
            numbers = cluster_numbers(event.voxel[rows], event.energy[rows], volume, crop.scale)
            found.append((crop, pid, numbers, int(rows.sum()), float(event.energy[rows].sum())))
    if not found:
        return []
    crops, pids, numbers, hits, charge = zip(*found, strict=True)
    numbers = np.stack(numbers)
    context = event_numbers(numbers[:, :3], np.array(hits), np.array(charge))
    return [
        {**_hits(crop), "truth/particle": pid, "extra": np.concatenate([own, of_event]), "group": group}
        for crop, pid, own, of_event in zip(crops, pids, numbers, context, strict=True)
    ]


def _hits(crop: Crop) -> dict[str, object]:
    return {f"hits/{STREAM}/index": crop.index, f"hits/{STREAM}/charge": crop.charge}


# ---------------------------------------------------------------------- the public sample of scintillator cubes


def scintillator_files(folder: str | Path) -> list[tuple[Path, int]]:
    """Files ``<folder>/<class>/event*.pt`` of the public sample, sorted, with their class.

    Raises:
        FileNotFoundError: a class has no folder, or no files.
    """
    found = []
    for number, name in enumerate(PARTICLE_NAMES["superfgd"]):
        files = sorted((Path(folder).expanduser() / name).glob("event*.pt"))
        if not files:
            raise FileNotFoundError(
                f"{Path(folder) / name}: no files event*.pt; expected a folder of the public sample (Zenodo 7347563), "
                f"training or testing, with the folders {', '.join(PARTICLE_NAMES['superfgd'])}"
            )
        found += [(path, number) for path in files]
    return found


def read_scintillator(path: Path, particle: int) -> StreamEvent:
    """One event of the public sample: ``reco_hits`` (N, 4 or more): x, y, z in mm from the centre, photoelectrons.

    The files are pickles. They are read with ``weights_only``, which runs no code: tensors and NumPy arrays of plain
    numbers pass, all else is refused. Hits outside the volume are refused too (the public code moves them to its wall).

    Raises:
        ValueError: the file is not of that kind, or its hits are not what they should be.
    """
    geometry = load_stream_detector(VOLUME).voxels[STREAM]
    hits = _load_array(path, "reco_hits")
    if hits.ndim != 2 or hits.shape[1] < 4:
        raise ValueError(f"{path}: field 'reco_hits' has shape {hits.shape}, expected (N, 4): x, y, z (mm), charge")
    if not np.isfinite(hits[:, :4]).all():
        row = int(np.argmin(np.isfinite(hits[:, :4]).all(1)))
        raise ValueError(f"{path}: field 'reco_hits' row {row} is {hits[row, :4].tolist()}, expected finite numbers")
    index = np.floor((hits[:, :3] - np.array(geometry.low_mm)) / geometry.pitch_mm).astype(np.int64)
    outside = ((index < 0) | (index >= geometry.lattice)).any(1)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"{path}: field 'reco_hits' row {row} is at {hits[row, :3].tolist()} mm, expected "
            f"{geometry.low_mm[0]:.0f} to {-geometry.low_mm[0]:.0f} mm along each axis"
        )
    index, charge = _merged(index, hits[:, 3], geometry.lattice)
    return StreamEvent(
        voxels={STREAM: Hits(index, np.zeros(len(index), np.int32), charge)},
        truth={"particle": np.array(particle)},
        detector=VOLUME,
        name=str(path),
    )


def _load_array(path: Path, name: str) -> np.ndarray:
    """float64 array ``name`` of a dictionary that torch.save wrote, without running any of its code."""
    plain = [np.ndarray, np.dtype, *(type(np.dtype(t)) for t in ("f4", "f8", "i4", "i8", "?"))]
    rebuild = np._core.multiarray._reconstruct if hasattr(np, "_core") else np.core.multiarray._reconstruct
    try:
        # Files of NumPy 1 name the function by its old place.
        with torch.serialization.safe_globals([*plain, rebuild, (rebuild, "numpy.core.multiarray._reconstruct")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path}: holds objects that only running its code could make ({str(error)[:200]}); expected a dictionary "
            "with tensors or arrays of numbers"
        ) from error
    except (RuntimeError, EOFError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a file of plain tensors and arrays ({str(error)[:200]})") from error
    if not isinstance(content, Mapping) or name not in content:
        found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path}: field '{name}' is missing, found {found}")
    return np.asarray(content[name], dtype=np.float64)


def public_records(folder: str | Path) -> Iterator[dict[str, object]]:
    """Records of all particles of the public sample, class by class."""
    for path, particle in scintillator_files(folder):
        yield scintillator_record(read_scintillator(path, particle))
