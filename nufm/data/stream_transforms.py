"""Transforms of events with several streams: standardisation, which travels with the weights, and augmentations.

A stream of hits or a matrix is known by its name, a column of a track by ``stream.column``, e.g. ``muon.px``.
Augmentations act on charges in MeV and momenta in GeV/c, hence before :class:`StandardizeStreams`; the data module puts
them there. Their default values are those of the public code saulam/faserDL at the time of the paper; none moves an
event as a whole, since the sub-detectors have different pitches.

Shape legend: N hits of a stream, T tracks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nufm.data.detector import load_stream_detector
from nufm.data.streams import StreamEvent
from nufm.data.transforms import Transform

log = logging.getLogger(__name__)

NORMAL = 1.482602218505602  # standard deviation of a Gaussian over its median absolute deviation
RAW = ("charge",)  # columns of tracks that stay as they are
LOGARITHMIC = ("chi2",)  # columns of tracks whose logarithm is taken


# ---------------------------------------------------------------------- standardisation


@dataclass(frozen=True)
class StandardizeStreams(Transform):
    """z = (u - median) / spread, with u = log(1 + q/scale) where ``logarithm``, else u = q/scale, of every value q.

    Below zero, where noise may go, the logarithm continues as an odd function. A common factor of all q changes
    nothing, since the scale takes it up.

    Args:
        names: what each entry of the other arguments is for: a stream of hits, a matrix, or ``stream.column`` of
            tracks. Columns of tracks that are not named stay as they are.
        logarithm: see above.
        scale: > 0, MeV for charges, GeV/c for momenta.
        median: of u.
        spread: of u, > 0.

    Raises:
        ValueError: arguments of different length, or a scale or spread that is not positive.
    """

    names: tuple[str, ...]
    logarithm: tuple[bool, ...]
    scale: tuple[float, ...]
    median: tuple[float, ...]
    spread: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in ("names", "logarithm", "scale", "median", "spread"):
            object.__setattr__(self, field, tuple(getattr(self, field)))  # lists, as YAML and JSON have them
            if len(getattr(self, field)) != len(self.names):
                raise ValueError(
                    f"{field} has {len(getattr(self, field))} entries, expected {len(self.names)} as in names"
                )
        for field in ("scale", "spread"):
            for name, value in zip(self.names, getattr(self, field), strict=True):
                if not value > 0:
                    raise ValueError(f"{field} of '{name}' is {value}, expected a positive number")

    def forward(self, name: str, values: np.ndarray) -> np.ndarray:
        """float32, z of the values (any shape) of a stream or column."""
        logarithm, scale, median, spread = self._of(name)
        u = np.asarray(values, dtype=np.float64) / scale
        u = np.sign(u) * np.log1p(np.abs(u)) if logarithm else u
        return ((u - median) / spread).astype(np.float32)

    def inverse(self, name: str, z: np.ndarray) -> np.ndarray:
        """float64, the values that have the standardised values ``z``: MeV or GeV/c."""
        logarithm, scale, median, spread = self._of(name)
        u = np.asarray(z, dtype=np.float64) * spread + median
        return (np.sign(u) * np.expm1(np.abs(u)) if logarithm else u) * scale

    def zero(self, name: str) -> float:
        """z of zero: what an empty voxel of a stream has."""
        return float(self.forward(name, np.zeros(())))

    def _of(self, name: str) -> tuple[bool, float, float, float]:
        if name not in self.names:
            raise ValueError(
                f"StandardizeStreams has no numbers for '{name}', only for {', '.join(self.names)}; fit it to "
                "events of this detector (fit_standardize), or leave the data module's transforms null"
            )
        i = self.names.index(name)
        return self.logarithm[i], self.scale[i], self.median[i], self.spread[i]

    def __call__(self, event: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        tracks = {}
        for stream, rows in event.tracks.items():
            rows = rows.astype(np.float32)
            for column, feature in enumerate(load_stream_detector(event.detector).tracks[stream].features):
                if f"{stream}.{feature}" in self.names:
                    rows[:, column] = self.forward(f"{stream}.{feature}", rows[:, column])
            tracks[stream] = rows
        return event.replace(
            voxels={s: h.replace(charge=self.forward(s, h.charge)) for s, h in event.voxels.items()},
            matrices={s: self.forward(s, v) for s, v in event.matrices.items()},
            tracks=tracks,
        )


def fit_standardize(events: Iterable[StreamEvent]) -> StandardizeStreams:
    """The robust numbers of events of one detector.

    scale = MADN(q), median and spread = median and MADN of u; MADN(x) = 1.4826·median|x - median x| (public code
    saulam/faserDL, ``dataset/metadata_stats.py``). Charges and χ² with logarithm, momenta without; the charge of a
    track stays as it is. Where more than half of the values are equal, as the empty cells of a matrix can be, the
    MADN is 0, which divides nothing; the values that are not zero are used then.

    Args:
        events: raw, of one detector.

    Raises:
        ValueError: no events, or events of different detectors.
    """
    values: dict[str, list[np.ndarray]] = {}
    detector = None
    for event in events:
        if detector not in (None, event.detector):
            raise ValueError(f"{event.name}: an event of the detector '{event.detector}' among those of '{detector}'")
        if detector is None:
            detector = event.detector
            geometry = load_stream_detector(detector)
            columns = {f"{s}.{c}": (s, i) for s, t in geometry.tracks.items() for i, c in enumerate(t.features)}
            columns = {name: place for name, place in columns.items() if name.split(".")[1] not in RAW}
            values = {name: [] for name in (*geometry.voxels, *geometry.matrices, *columns)}
        for stream, hits in event.voxels.items():
            values[stream].append(hits.charge)
        for stream, matrix in event.matrices.items():
            values[stream].append(matrix.ravel())
        for name, (stream, column) in columns.items():
            if stream in event.tracks:
                values[name].append(event.tracks[stream][:, column])
    if detector is None:
        raise ValueError("there are no events to take the numbers of StandardizeStreams from")
    numbers = {}
    for name, parts in values.items():
        logarithm = "." not in name or name.split(".")[1] in LOGARITHMIC
        numbers[name] = (logarithm, *_robust(name, np.concatenate([*parts, np.zeros(0)]), logarithm))
    return StandardizeStreams(tuple(numbers), *(tuple(column) for column in zip(*numbers.values(), strict=True)))


def _robust(name: str, values: np.ndarray, logarithm: bool) -> tuple[float, float, float]:
    """Scale, median and spread of a stream's values."""
    values = values.astype(np.float64)
    if len(values) and _madn(values) == 0:
        values = values[values != 0]
    scale = _madn(values) if len(values) else 0.0
    if scale == 0:
        log.warning("'%s' has %d values, too few that differ to standardise it: it stays as it is", name, len(values))
        return 1.0, 0.0, 1.0
    u = values / scale
    u = np.sign(u) * np.log1p(np.abs(u)) if logarithm else u
    return scale, float(np.median(u)), _madn(u)


def _madn(values: np.ndarray) -> float:
    return float(NORMAL * np.median(np.abs(values - np.median(values))))


# ---------------------------------------------------------------------- augmentations


@dataclass(frozen=True)
class ShiftHits(Transform):
    """With probability ``p`` on each of ``axes``, all hits of a stream move by one voxel, either way, and the vertex
    with them; hits that leave the lattice are lost. Other streams stay, since their pitches differ.

    Args:
        stream: whose hits move.
        axes: numbers of the axes.
        p: probability of each axis.
        at_least: an event that would keep fewer hits stays.
    """

    stream: str = "cal3d"
    axes: tuple[int, ...] = (0, 1)
    p: float = 0.5
    at_least: int = 5

    def __call__(self, event: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        hits = event.voxels.get(self.stream)
        shift = np.zeros(3, dtype=np.int32)
        for axis in self.axes:
            shift[axis] = rng.choice((-1, 1)) if rng.random() < self.p else 0
        if hits is None or not shift.any():
            return event
        geometry = load_stream_detector(event.detector).voxels[self.stream]
        index = hits.index + shift
        inside = ((index >= 0) & (index < np.array(geometry.lattice))).all(1)
        if inside.sum() < self.at_least:
            return event
        truth = dict(event.truth)
        if "vertex" in truth:
            truth["vertex"] = (truth["vertex"] + shift * np.array(geometry.pitch_mm)).astype(np.float32)
        moved = hits.replace(index=index).select(inside)
        return event.replace(voxels={**event.voxels, self.stream: moved}, truth=truth)


@dataclass(frozen=True)
class HitNoise(Transform):
    """Noise of a stream of hits: each charge × a log-normal gain of mean 1, plus N(0, floor² + root²·q), not below 0;
    then a share of the hits, uniform in 0..drop, is lost.

    Args:
        stream: whose hits.
        gain: σ of the logarithm.
        floor: MeV.
        root: √MeV.
        drop: largest share that is lost.
        at_least: fewer hits than this are not left.
    """

    stream: str = "cal3d"
    gain: float = 0.12
    floor: float = 0.06
    root: float = 0.18
    drop: float = 0.05
    at_least: int = 5

    def __call__(self, event: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        hits = event.voxels.get(self.stream)
        if hits is None or len(hits) == 0:
            return event
        hits = hits.replace(charge=_noisy(hits.charge, self.gain, self.floor, self.root, rng))
        kept = rng.random(len(hits)) >= rng.uniform(0, self.drop)
        if kept.sum() >= self.at_least and not kept.all():
            hits = hits.select(kept)
        return event.replace(voxels={**event.voxels, self.stream: hits})


@dataclass(frozen=True)
class MatrixNoise(Transform):
    """Noise of a matrix: as for hits, and a share of the cells, uniform in 0..dead, reads 0.

    Args:
        stream: the matrix.
        gain: σ of the logarithm.
        floor: MeV.
        root: √MeV.
        dead: largest share of dead cells.
    """

    stream: str = "ecal"
    gain: float = 0.1
    floor: float = 0.02
    root: float = 0.10
    dead: float = 0.1

    def __call__(self, event: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        if self.stream not in event.matrices:
            return event
        values = _noisy(event.matrices[self.stream], self.gain, self.floor, self.root, rng)
        values[rng.random(values.shape) < rng.uniform(0, self.dead)] = 0
        return event.replace(matrices={**event.matrices, self.stream: values})


@dataclass(frozen=True)
class TrackNoise(Transform):
    """Tracks in any order, each lost with probability ``drop``; momenta × (1 + N(0, momentum²)), the same for the three
    components; χ² × a log-normal factor.

    Args:
        stream: whose tracks.
        drop: probability.
        momentum: relative σ.
        chi2: σ of the logarithm.
    """

    stream: str = "muon"
    drop: float = 0.1
    momentum: float = 0.02
    chi2: float = 0.1

    def __call__(self, event: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        rows = event.tracks.get(self.stream)
        if rows is None or len(rows) == 0:
            return event
        features = load_stream_detector(event.detector).tracks[self.stream].features
        rows = rng.permutation(rows, axis=0)
        rows = rows[rng.random(len(rows)) >= self.drop]
        factors = {"momentum": 1 + self.momentum * rng.standard_normal(len(rows))}
        factors["chi2"] = np.exp(self.chi2 * rng.standard_normal(len(rows)))
        for column, feature in enumerate(features):
            kind = "momentum" if feature in ("px", "py", "pz") else feature
            rows[:, column] *= factors.get(kind, 1.0)
        return event.replace(tracks={**event.tracks, self.stream: rows})


@dataclass(frozen=True)
class CommonGain(Transform):
    """All charges of hits and matrices × the same log-normal factor of mean 1; ``sigma`` is that of its logarithm."""

    sigma: float = 0.1

    def __call__(self, event: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        factor = np.float32(np.exp(self.sigma * rng.standard_normal() - self.sigma**2 / 2))
        return event.replace(
            voxels={s: h.replace(charge=h.charge * factor) for s, h in event.voxels.items()},
            matrices={s: v * factor for s, v in event.matrices.items()},
        )


def _noisy(charge: np.ndarray, gain: float, floor: float, root: float, rng: np.random.Generator) -> np.ndarray:
    """float32, charges with gain and noise, not below 0."""
    charge = charge * np.exp(gain * rng.standard_normal(charge.shape) - gain**2 / 2)
    sigma = np.sqrt(floor**2 + root**2 * np.maximum(charge, 0))
    return np.maximum(charge + sigma * rng.standard_normal(charge.shape), 0).astype(np.float32)


def fasercal_augmentation() -> list[Transform]:
    """The augmentations of FASERCal pretraining at the time of the paper."""
    return [
        ShiftHits(),
        CommonGain(),
        HitNoise(),
        HitNoise("ahcal", floor=0.03, root=0.12, at_least=2),
        MatrixNoise(),
        TrackNoise(),
    ]
