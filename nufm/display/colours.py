"""Colours of displays: what is coloured, by what, with which legend.

Shape legend: N points (voxels), C feature columns.

Class colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with any common colour
vision can tell apart; electromagnetic classes are blue, minimum-ionising ones orange, heavily ionising ones
vermilion, and what belongs to nothing is pale grey. Two of that set are left out: its yellow is not seen on
white, and its purple looks grey without green-sensitive cones; Paul Tol's wine takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nufm.data.event import MOTIF_NAMES, PID_NAMES, Event

GREY = "#b4b4b4"
MOTIF_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#882255", GREY)  # shower, track, Michel, delta, LED
PID_COLOURS = ("#56b4e9", "#0072b2", "#e69f00", "#009e73", "#d55e00", GREY)  # photon, e, mu, pi, p, none
# Instances: the same hues and Paul Tol's "muted" ones between them; a 13th particle starts again.
INSTANCE_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"),
    *("#332288", "#999933", "#882255", "#44aa99", "#6b4c2a", "#aa4499"),
)
UNKNOWN = "#d8d8d8"


@dataclass(frozen=True)
class Panel:
    """One way to colour the points of an event.

    Attributes:
        title: what the colours mean.
        rgb: float (N, 3) in [0, 1].
        values: float (N,) of a continuous quantity, with ``limits`` of its logarithmic colour bar and its
            ``label``.
        code: int (N,) row of ``names``/``colours`` each point belongs to, if the colours are classes.
        names: legend of the classes, with counts.
        colours: hex colour of each class.
        behind: rows of ``names`` that are drawn small and behind the others, such as "right" beside mistakes.
        note: a line under the title.
        share: (N,) in [0, 1], between the first two of ``colours``: in projections of dense events a cell has the mean
            over the points on its line of sight, since one in front of the other would say nothing; None: the points.
        front: (N,) what is larger is drawn in front of what is smaller; None: by ``values`` or by class.
    """

    title: str
    rgb: np.ndarray
    values: np.ndarray | None = None
    limits: tuple[float, float] = (0.1, 10.0)
    label: str = ""
    code: np.ndarray | None = None
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    behind: tuple[int, ...] = ()
    note: str = ""
    share: np.ndarray | None = None
    front: np.ndarray | None = None


def event_panels(event: Event, colours: Mapping[str, np.ndarray] | None = None) -> list[Panel]:
    """Energy, whatever truth the event carries, and the (N, 3) colours given, by title."""
    panels = [energy_panel(event)]
    if event.motif is not None:
        panels.append(class_panel("motif (truth)", event.motif, MOTIF_NAMES, MOTIF_COLOURS))
    if event.pid is not None:
        panels.append(class_panel("particle type (truth)", event.pid, PID_NAMES, PID_COLOURS))
    if event.particle is not None:
        panels.append(particle_panel(event))
    return panels + [rgb_panel(event, title, rgb) for title, rgb in (colours or {}).items()]


def energy_colours() -> object:
    """Matplotlib colour map of energies: pale but visible on white at the low end, dark at the high end."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["inferno_r"](np.linspace(0.12, 1.0, 256)), name="energy")


def energy_panel(event: Event) -> Panel:
    """Energy of each voxel in MeV, on a logarithmic scale that single extreme voxels do not stretch."""
    return energies_panel(event.energy, energy_limits(event.energy))


def energies_panel(energy: np.ndarray, limits: tuple[float, float]) -> Panel:
    """Energies (N,) in MeV on a logarithmic scale between ``limits``."""
    energy = np.asarray(energy, dtype=np.float64)
    return Panel("energy", energy_rgb(energy, limits), values=energy, limits=limits, label="energy of a voxel (MeV)")


def energy_limits(energy: np.ndarray) -> tuple[float, float]:
    """Ends of the colour bar of energies (N,) in MeV: single extreme voxels do not stretch it."""
    energy = np.asarray(energy, dtype=np.float64)
    positive = energy[energy > 0]
    low, high = np.percentile(positive, [0.5, 99.5]) if len(positive) else (0.1, 10.0)
    if high < 1.2 * low:  # one voxel, or all alike: a colour bar still needs a width
        low, high = low / 1.5, high * 1.5
    return float(low), float(high)


def energy_rgb(energy: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Colours (N, 3) of energies (N,) in MeV on a logarithmic scale between ``limits``."""
    low, high = limits
    if len(energy) == 0:
        return np.zeros((0, 3))
    fraction = np.log(np.clip(np.asarray(energy, dtype=np.float64), low, high) / low) / np.log(high / low)
    return energy_colours()(fraction)[:, :3]


def class_panel(title: str, label: np.ndarray, names: tuple[str, ...], colours: tuple[str, ...]) -> Panel:
    """Classes 0..K-1 with their names and the number and share of their points; -1 is "unlabelled".

    Raises:
        ValueError: a label is outside -1..K-1.
    """
    label = np.asarray(label)
    outside = (label < -1) | (label >= len(names))
    if outside.any():
        raise ValueError(
            f"{title}: point {int(np.argmax(outside))} has class {label[outside][0]}, expected "
            f"-1..{len(names) - 1}"
        )
    return coloured_classes(title, label, names, colours)


def particle_panel(event: Event, most: int = 10) -> Panel:
    """Particle instances, largest first, with their type where known; the legend names ``most``."""
    particle = np.asarray(event.particle)
    ids, counts = np.unique(particle[particle >= 0], return_counts=True)
    ids = ids[np.argsort(-counts, kind="stable")]
    rank = np.full(int(ids.max(initial=-1)) + 2, -1)  # the extra last entry is what particle -1 looks up
    rank[ids] = np.arange(len(ids))
    names = []
    for particle_id in ids:
        kind = ""
        if event.pid is not None:
            pid = event.pid[particle == particle_id]
            # A particle with unlabelled voxels has the type of the others.
            pid = pid[pid >= 0]
            kind = f"{PID_NAMES[np.bincount(pid).argmax()]} " if len(pid) else ""
        names.append(f"{kind}#{particle_id}")
    colours = tuple(INSTANCE_COLOURS[i % len(INSTANCE_COLOURS)] for i in range(len(ids)))
    return coloured_classes(
        "particle (truth)", rank[particle], tuple(names), colours, unknown="in no particle", most=most
    )


def rgb_panel(event: Event, title: str, rgb: np.ndarray, note: str = "") -> Panel:
    """Colours (N, 3) computed elsewhere, such as principal components of features.

    Raises:
        ValueError: not one finite colour in [0, 1] per point.
    """
    rgb = np.asarray(rgb, dtype=np.float64)
    if rgb.shape != (len(event), 3):
        raise ValueError(
            f"{event.name}: colours '{title}' have shape {rgb.shape}, expected {(len(event), 3)}: one row "
            "per voxel of "
            "the event as drawn (transforms may drop voxels)"
        )
    if rgb.size and not (np.isfinite(rgb).all() and rgb.min() >= 0 and rgb.max() <= 1):
        raise ValueError(f"{event.name}: colours '{title}' must be finite and in [0, 1]")
    return Panel(title, rgb, note=note)


def coloured_classes(
    title: str,
    code: np.ndarray,
    names: tuple[str, ...],
    colours: tuple[str, ...],
    unknown: str = "unlabelled",
    most: int | None = None,
) -> Panel:
    """Rows of the legend: the classes that occur, the rest in one line, and the points without a class."""
    counts = np.bincount(code[code >= 0], minlength=len(names))
    present = np.flatnonzero(counts)
    named = present if most is None else present[:most]
    total = max(len(code), 1)

    def line(name: str, count: int) -> str:
        return (
            f"{name}  {count:,} ({100 * count / total:.2g} %)"
            if count < total
            else f"{name}  {count:,} (all)"
        )

    table = np.array([rgb_of(c) for c in colours] + [rgb_of(UNKNOWN)]).reshape(-1, 3)
    rgb = table[code]  # -1 takes the last row
    legend = [(line(names[c], counts[c]), colours[c]) for c in named]
    row = np.full(len(names) + 1, len(legend))
    row[named] = np.arange(len(named))
    if len(named) < len(present):
        legend.append(
            (line(f"{len(present) - len(named)} more", int(counts.sum() - counts[named].sum())), "#ffffff")
        )
    row[-1] = len(legend)
    if (code < 0).any():
        legend.append((line(unknown, int((code < 0).sum())), UNKNOWN))
    return Panel(
        title, rgb, code=row[code], names=tuple(n for n, _ in legend), colours=tuple(c for _, c in legend)
    )


def rgb_of(colour: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of ``#rrggbb``."""
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


@dataclass(frozen=True)
class PCAColours:
    """First three principal components of features as red, green and blue.

    Attributes:
        mean: (C,) of the features it was fitted to.
        axes: (C, 3) unit directions; zero where the features do not vary.
        low, high: (3,) component values that become 0 and 1.
    """

    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(
        cls, feat: np.ndarray, percentiles: tuple[float, float] = (2.0, 98.0), most: int = 4096
    ) -> PCAColours:
        """Fit to features (N, C), N >= 0.

        An eigenvector's sign is arbitrary: here its largest entry is positive, so that the same features give
        the same colours on every machine. The colour range spans ``percentiles`` of each component, since a
        few outlying points would otherwise leave all others the same grey. Of more than ``most`` points, that
        many at even spacing are used: three directions need no more, and thirty thousand take half a minute.

        Raises:
            ValueError: not two-dimensional, or a feature that is NaN or infinite.
        """
        feat = _features(feat)
        if len(feat) > most:
            feat = feat[np.linspace(0, len(feat) - 1, most).round().astype(int)]
        n, width = feat.shape
        axes = np.zeros((width, 3))
        mean = feat.mean(0) if n else np.zeros(width)
        centred = feat - mean
        # The smaller of the two Gram matrices has the same non-zero spectrum.
        gram = centred @ centred.T if n < width else centred.T @ centred
        if gram.size:
            variance, vectors = np.linalg.eigh(gram)
            variance, vectors = variance[::-1][:3], vectors[:, ::-1][:, :3]
            # Below rounding of the sums a direction is noise, and so would be its colours.
            kept = variance > 1e-12 * max(float(np.square(feat).sum()), np.finfo(np.float64).tiny)
            found = (centred.T @ vectors if n < width else vectors)[:, kept]
            found = found / np.linalg.norm(found, axis=0)
            largest = np.abs(found).argmax(0)
            axes[:, : found.shape[1]] = found * np.sign(found[largest, np.arange(found.shape[1])])
        components = centred @ axes
        low, high = np.percentile(components, percentiles, axis=0) if n else np.zeros((2, 3))
        return cls(mean, axes, low, high)

    def components(self, feat: np.ndarray) -> np.ndarray:
        """Principal components (N, 3) of features (N, C)."""
        feat = _features(feat)
        if feat.shape[1] != len(self.mean):
            raise ValueError(
                f"features have {feat.shape[1]} columns, the components were fitted to {len(self.mean)}"
            )
        return (feat - self.mean) @ self.axes

    def __call__(self, feat: np.ndarray) -> np.ndarray:
        """Colours (N, 3) in [0, 1]; 0.5 in a component that does not vary."""
        width = self.high - self.low
        flat = width <= 0
        scaled = (self.components(feat) - self.low) / np.where(flat, 1.0, width)
        return np.where(flat, 0.5, scaled.clip(0.0, 1.0))


def pca_colours(feat: np.ndarray, fit_to: np.ndarray | None = None) -> np.ndarray:
    """Colours (N, 3) in [0, 1] from the first three principal components of features (N, C).

    Args:
        feat: features of the points to colour.
        fit_to: features (M, C) that fix the components and their range, to colour several events alike;
            ``feat`` itself if not given.
    """
    return PCAColours.fit(feat if fit_to is None else fit_to)(feat)


def _features(feat: np.ndarray) -> np.ndarray:
    feat = np.asarray(feat, dtype=np.float64)
    if feat.ndim != 2 or feat.shape[1] == 0:
        raise ValueError(f"features have shape {feat.shape}, expected (N, C) with C >= 1")
    if not np.isfinite(feat).all():
        raise ValueError(f"features of point {int(np.argmin(np.isfinite(feat).all(1)))} are not finite")
    return feat
