"""How the scores of a classifier of pixel maps fall when its events get worse than those that it was trained on.

    resolution    pixels of 2, 4, 8 times the edge: on as many pixels as before, which share the energy of a block or
                  all show it (a picture made larger), and, for networks that take any size, as the smaller image.
                  arXiv 2509.08461, Table 2: twice the edge; how 256 pixels come to a network of 512 it does not say
    noise         Gaussian noise on every pixel, then zero suppression
    dead_pixels   a share of the pixels, or of whole columns, reads nothing
    missing_view  one view, or both, was not read out
    gain          all energies wrong by one factor, or every pixel by its own

Every level is made of the same events with the same random numbers, whatever the model, so that levels and models are
compared event by event; errors of changes are those of pairs (bootstrap over events). All corruptions act on events as
they were read; coarser pixels on what the network's own transforms made of them, just before brightness.

Shape legend: n events, K classes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nufm.checkpoint import Pretrained
from nufm.data.image_corruptions import DeadPixels, Gain, PixelGain, PixelNoise, WithoutView
from nufm.data.image_transforms import Brightness, Coarse, Rebin
from nufm.data.images import ImageEvent
from nufm.data.transforms import Transform, compose
from nufm.evaluation.class_scores import change, classified_label, kept_temperature_of, scores_of, true_classes
from nufm.evaluation.event_scores import check_events, plain
from nufm.evaluation.scores import batches
from nufm.evaluation.tables import percent, table, temperature_text

NOMINAL = "as they are"
SUPPRESSION = (3.0, 5.0)  # of the noise, in σ: one pixel in 740, and next to none, is noise alone
# σ of the noise. A minimum-ionising particle leaves 1 MeV in a pixel of 5 mm of argon; with the default brightness the
# grey values are as bright as the energies.
NOISE = {"MeV": (0.05, 0.1, 0.2, 0.5, 1.0), "grey": (3, 6, 12, 26, 45)}


@dataclass(frozen=True)
class Level:
    """One kind and strength of harm.

    Attributes:
        series: which kind, where a study has several; the levels of a series make a line.
        value: strength, in the unit of the study's axis.
        words: for tables.
        readout: transforms of events as they were read.
        image: transforms just before brightness.
        may_refuse: a network may say that it cannot take such events; the level is then left out, with its words.
    """

    series: str
    value: float
    words: str
    readout: tuple[Transform, ...] = ()
    image: tuple[Transform, ...] = ()
    may_refuse: bool = False


@dataclass(frozen=True)
class RobustnessStudy:
    """What a study does.

    Attributes:
        axis: what the value of a level is, with its unit.
        series: kind of harm -> value -> level.
        values: the values that are looked at where nobody says otherwise.
        nominal: the value of events as they are.
    """

    axis: str
    series: dict[str, Callable[[float], Level]]
    values: tuple[float, ...]
    nominal: float = 0.0


def _coarser(how: str, make: Callable[[int], Transform], may_refuse: bool) -> Callable[[float], Level]:
    def level(f: float) -> Level:
        if f < 1 or f != int(f):
            raise ValueError(f"resolution: level {f:g} is no number of pixels that make one; expected 1, 2, 4, ...")
        return Level(how, f, f"{int(f)} × the edge, {how}", image=(make(int(f)),), may_refuse=may_refuse)

    return level


def _noise(suppression: float, unit: str) -> Callable[[float], Level]:
    how = f"above {suppression:g} σ"

    def level(sigma: float) -> Level:
        return Level(how, sigma, f"{sigma:g} {unit}, {how}", (PixelNoise(sigma, suppression * sigma),))

    return level


def _gain(change: float) -> Level:
    return Level("all pixels alike", change, f"all × {1 + change:g}", (Gain(1 + change),))


def _pixel_gain(change: float) -> Level:
    return Level("each pixel its own", abs(change), f"each pixel, σ = {abs(change):g}", (PixelGain(abs(change)),))


def _missing(number: float) -> Level:
    missing = {1: ("xz",), 2: ("yz",), 3: ("xz", "yz")}.get(number)
    if missing is None:
        raise ValueError(f"missing_view: level {number:g} is unknown, expected 1 (xz), 2 (yz) or 3 (both)")
    words = f"without {' and '.join(view.upper() for view in missing)}"
    return Level(words, number, words, tuple(WithoutView(view) for view in missing))


def study_named(name: str, suppression: Sequence[float] = SUPPRESSION, unit: str = "MeV") -> RobustnessStudy:
    """The study of that name.

    Args:
        name: see the head of this file.
        suppression: of the noise study: pixels with at most so many σ read nothing; a series for each number.
        unit: of the energies of the events: MeV, or grey.

    Raises:
        ValueError: there is none.
    """
    said = {"grey": "grey values"}.get(unit, unit)
    dead = {
        of: lambda share, of=of: Level(of, share, f"{100 * share:g} % of the {of}", (DeadPixels(share, of),))
        for of in ("pixels", "columns")
    }
    coarser = {
        "energy shared": _coarser("energy shared", Coarse, False),
        "picture made larger": _coarser("picture made larger", lambda f: Coarse(f, share=False), False),
        "smaller image": _coarser("smaller image", Rebin, True),
    }
    studies = {
        "resolution": RobustnessStudy("edge of a pixel, of that of the training", coarser, (2, 4, 8), 1),
        "noise": RobustnessStudy(
            f"σ of the noise ({said})", {f"above {k:g} σ": _noise(k, said) for k in suppression}, NOISE[unit]
        ),
        "dead_pixels": RobustnessStudy("share that reads nothing", dead, (0.02, 0.05, 0.1, 0.2, 0.5)),
        "missing_view": RobustnessStudy("", {"view": _missing}, (1, 2, 3)),
        "gain": RobustnessStudy(
            "error of the gain",
            {"all pixels alike": _gain, "each pixel its own": _pixel_gain},
            (-0.5, -0.2, -0.1, 0.1, 0.2, 0.5),
        ),
    }
    if name not in studies:
        raise ValueError(f"unknown study '{name}', expected one of {', '.join(studies)}")
    return studies[name]


def levels_of(study: RobustnessStudy, values: Sequence[float] | None = None) -> list[Level]:
    """The levels of a study, events as they are first, no level twice.

    Raises:
        ValueError: a value that cannot be meant.
    """
    found = {(NOMINAL, study.nominal): Level(NOMINAL, study.nominal, NOMINAL)}
    for make, value in itertools.product(study.series.values(), study.values if values is None else values):
        if value != study.nominal:
            level = make(value)
            found.setdefault((level.series, level.value), level)
    return list(found.values())


# ---------------------------------------------------------------------- running it


def sweep(
    pretrained: Pretrained,
    events: Sequence[ImageEvent],
    levels: Sequence[Level],
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores of a model at every level.

    Args:
        pretrained: a classifier of pixel maps.
        events: a reader or a list, with truth.
        levels: the first is the one that the others are compared with.
        batch_size: events at a time; no number depends on it.
        seed: with its place among the events, fixes what is drawn for an event.
        progress: show a bar on the terminal.

    Returns:
        ``label``, ``classes``, ``events`` with a known class, ``support`` (K,) of each class,
        ``temperature`` (label -> T of the export), ``levels``: one dict for
        each level with its ``series``, ``value``, ``words``, ``pixels`` and ``energy`` (mean over the events, both
        views, as they came out of the corruption) and the scores of :func:`scores_of` with ``accuracy_change`` and
        ``macro_auc_change`` against the first level and ``…_error``; a level that the network refused has ``refused``
        in place of scores. ``probability``: of each level (n, K), and ``target`` (n,), as arrays.

    Raises:
        ValueError: no events, no truth, or a model that does not classify pixel maps.
    """
    check_events(pretrained, events)
    label = classified_label(pretrained)
    found: list[list[np.ndarray]] = [[] for _ in levels]
    size: list[list[tuple[int, float]]] = [[] for _ in levels]
    refused: dict[int, str] = {}
    truth, number = [], 0
    for some in batches(events, batch_size, progress):
        seeds = [int(np.random.default_rng([seed, number + i]).integers(2**63)) for i in range(len(some))]
        some = [event.replace(seed=s) for event, s in zip(some, seeds, strict=True)]
        number += len(some)
        truth.append(true_classes(some, label))
        for i, level in enumerate(levels):
            if i in refused:
                continue
            worse = [compose(level.readout, event, np.random.default_rng(event.seed)) for event in some]
            try:
                said = with_image_transforms(pretrained, level.image).predict(worse, batch_size, progress=False)
            except ValueError as error:
                if not level.may_refuse:
                    raise
                refused[i] = str(error)
                continue
            found[i] += [p.probability[label] for p in said]
            size[i] += [(e.n_pixels, float(sum(v.energy.sum() for v in e.views.values()))) for e in worse]
    target = np.concatenate(truth)
    known = target >= 0
    if not known.any():
        raise ValueError(
            f"{events[0].name}: none of the {len(target)} events has a known '{label}'; use events with truth, such as "
            "simulated ones"
        )
    probability = [None if i in refused else np.stack(rows) for i, rows in enumerate(found)]
    rows = []
    for i, level in enumerate(levels):
        row: dict[str, Any] = {"series": level.series, "value": level.value, "words": level.words}
        if probability[i] is None:
            rows.append(row | {"refused": refused[i]})
            continue
        row["pixels"], row["energy"] = np.mean(size[i], axis=0).tolist()
        row |= scores_of(probability[i][known], target[known])
        if i:
            row |= change(probability[0][known], probability[i][known], target[known])
        rows.append(row)
    classes = list(pretrained.classes[label])
    return {
        "label": label,
        "classes": classes,
        "events": int(known.sum()),
        "temperature": kept_temperature_of(pretrained),
        "support": np.bincount(target[known], minlength=len(classes)).tolist(),
        "levels": plain(rows),
        "probability": probability,
        "target": target,
    }


def with_image_transforms(pretrained: Pretrained, transforms: Sequence[Transform]) -> Pretrained:
    """The model with more transforms, just before brightness: energies are still in MeV, pixels are the network's."""
    if not transforms:
        return pretrained
    own = list(pretrained.transforms)
    place = next((i for i, t in enumerate(own) if isinstance(t, Brightness)), len(own))
    return dataclasses.replace(pretrained, transforms=(*own[:place], *transforms, *own[place:]))


# ---------------------------------------------------------------------- in words


def markdown(found: dict[str, Any]) -> str:
    """The table of a sweep, and what it says of its events."""
    rows, more, notes = [], [], []
    for row in found["levels"]:
        if "refused" in row:
            notes.append(f"{row['words'].capitalize()}: the network refuses such images ({row['refused']}).")
            continue
        name = row["words"]
        moved = [_moved(row, score) for score in ("accuracy", "macro_auc")]
        rows.append([name, *moved, percent(row["expected_error"]), f"{row['pixels']:,.0f}"])
        means = (row["macro_precision"], row["macro_recall"])
        more.append([name, *map(percent, (*means, *row["auc"])), ", ".join(f"{n:,}" for n in row["predicted"])])
    first = found["levels"][0]
    support = ", ".join(f"{n:,} {c}" for c, n in zip(found["classes"], found["support"], strict=True))
    origin = ", simulated by nufm" if found.get("simulated") else ""
    notes.insert(
        0,
        f"In per cent; in brackets the change against events as they are and its standard error (the same events; "
        f"bootstrap). {found['events']:,} events{origin}: {support}; the accuracy of the first row has a standard "
        f"error of {percent(first['accuracy_error'])}. ECE: expected calibration error. Pixels: mean number with "
        "charge in both views, as read. Precision and recall: means over the classes. Last column: events given to "
        "each class.",
    )
    notes.append(temperature_text(found.get("temperature") or {}))
    parts = (
        table(["", "accuracy", "macro AUC", "ECE", "pixels"], rows),
        table(["", "precision", "recall", *(f"AUC {c}" for c in found["classes"]), "said"], more),
    )
    return "\n".join(parts) + "\n" + "\n\n".join(filter(None, notes)) + "\n"


def _moved(row: dict[str, Any], name: str) -> str:
    words, by, error = percent(row[name]), row.get(f"{name}_change"), row.get(f"{name}_change_error")
    if by is not None and error is not None:
        words += f" ({100 * by:+.1f} ± {100 * error:.1f})"
    return words
