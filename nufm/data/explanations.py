"""Places of a pixel map by name, sentences that say what is to be seen there, and what a text says of places.

A map has four quarters: its lower and upper half (transverse coordinate) and its upstream and downstream half (z). Maps
are centred on the interaction, so a particle's direction says which quarter it enters. "The upper downstream quarter
of the XZ view" is a :class:`Region`; answers name one, so that what they point at can be covered up and the question
asked again (``nufm.evaluation.faithfulness``).

Sentences that a model is taught (:func:`teaching_sentence`) are written from the truth and from the maps as the model
sees them. They are an aid to reading a classification, not a reconstruction: a model learns to repeat what the truth
makes likely.

Shape legend: B events, V = 2 views, H rows, W columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from nufm.data.images import INTERACTION_NAMES, VIEWS, ImageBatch

ROWS = ("lower", "upper")
COLUMNS = ("upstream", "downstream")
MUON_CC, ELECTRON_CC, NEUTRAL_CURRENT = range(len(INTERACTION_NAMES))


@dataclass(frozen=True)
class Region:
    """A quarter of one view. Of an odd number of rows or columns, the middle one is upper or downstream.

    Attributes:
        view: one of ``nufm.data.images.VIEWS``.
        row: one of ``ROWS``.
        column: one of ``COLUMNS``.
    """

    view: str
    row: Literal["lower", "upper"]
    column: Literal["upstream", "downstream"]

    def __str__(self) -> str:
        return f"{self.row} {self.column} quarter of the {self.view.upper()} view"

    def slices(self, shape: tuple[int, int]) -> tuple[int, slice, slice]:
        """Index into (V, H, W) maps of ``shape`` (H, W)."""
        rows = (slice(0, shape[0] // 2), slice(shape[0] // 2, shape[0]))
        columns = (slice(0, shape[1] // 2), slice(shape[1] // 2, shape[1]))
        return VIEWS.index(self.view), rows[ROWS.index(self.row)], columns[COLUMNS.index(self.column)]


REGIONS = tuple(Region(v, r, c) for v in VIEWS for r in ROWS for c in COLUMNS)


def region_signal(image: np.ndarray) -> dict[Region, float]:
    """Sum of the pixels of every region.

    Args:
        image: (V, H, W).
    """
    shape = image.shape[1:]
    return {region: float(image[region.slices(shape)].sum(dtype=np.float64)) for region in REGIONS}


def region_entered(momentum: np.ndarray, view: str) -> Region:
    """The quarter of a view that a particle enters from the middle of the map.

    Args:
        momentum: (3,) x, y, z.
        view: one of ``VIEWS``.
    """
    transverse = momentum[VIEWS.index(view)]
    return Region(view, ROWS[int(transverse >= 0)], COLUMNS[int(momentum[2] >= 0)])


def teaching_sentence(
    interaction: int, image: np.ndarray, present: np.ndarray | None = None, lepton: np.ndarray | None = None
) -> str:
    """What is to be seen of an interaction of this class, and in which region: one sentence, one region.

    Charged currents: the region that the lepton enters, in the view that shows more of its transverse momentum, if
    there is any signal. Neutral currents, or a lepton that is not known: the region with most signal.

    Args:
        interaction: class number of ``nufm.data.images.INTERACTION_NAMES``.
        image: (V, H, W) maps as the model sees them.
        present: bool (V,) whether a view was read out; None: both.
        lepton: (3,) momentum of the charged lepton; None, or not finite, if it is not known.

    Raises:
        ValueError: an unknown class, or maps of another shape.
    """
    if not 0 <= interaction < len(INTERACTION_NAMES):
        names = ", ".join(f"{i}: {name}" for i, name in enumerate(INTERACTION_NAMES))
        raise ValueError(f"interaction is {interaction}, expected one of {names}")
    if image.ndim != 3 or len(image) != len(VIEWS):
        raise ValueError(f"maps have shape {image.shape}, expected ({len(VIEWS)}, H, W)")
    seen = np.ones(len(VIEWS), dtype=bool) if present is None else np.asarray(present, dtype=bool)
    signal = {region: s for region, s in region_signal(image).items() if seen[VIEWS.index(region.view)]}
    if not any(s > 0 for s in signal.values()):
        return "There is no signal in any view."
    brightest = max(signal, key=lambda region: signal[region])
    entered = None
    if interaction != NEUTRAL_CURRENT and lepton is not None and np.isfinite(lepton).all():
        views = sorted((v for v in VIEWS if seen[VIEWS.index(v)]), key=lambda v: -abs(lepton[VIEWS.index(v)]))
        entered = next((r for r in (region_entered(lepton, v) for v in views) if signal[r] > 0), None)
    region = entered or brightest
    total = sum(s for other, s in signal.items() if other.view == region.view)
    share = f"which holds about {round(10 * signal[region] / total) * 10} % of the signal of its view"
    if interaction == NEUTRAL_CURRENT:
        return f"No muon or electron leaves the vertex: the hadrons are brightest in the {region}, {share}."
    what = "thin track of a muon" if interaction == MUON_CC else "shower of an electron"
    if entered is None:
        return f"The {what} cannot be told from the hadrons, which are brightest in the {region}, {share}."
    return f"The {what} leaves the vertex into the {region}, {share}."


def teaching_sentences(batch: ImageBatch) -> list[str]:
    """:func:`teaching_sentence` of every event of a batch, from its truth.

    Raises:
        ValueError: an event without ``interaction``.
    """
    interaction = batch.truth.get("interaction")
    if interaction is None or bool((interaction < 0).any()):
        where = 0 if interaction is None else int((interaction < 0).nonzero()[0])
        raise ValueError(
            f"{batch.names[where]}: truth 'interaction' is not known, expected a class of "
            f"{', '.join(INTERACTION_NAMES)}: a sentence is taught from events with labels"
        )
    lepton = batch.truth.get("lepton")
    return [
        teaching_sentence(
            int(interaction[i]),
            _array(batch.image[i]),
            _array(batch.present[i]),
            None if lepton is None else _array(lepton[i]),
        )
        for i in range(len(batch))
    ]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


_ROW = {"lower": "lower", "bottom": "lower", "upper": "upper", "top": "upper"}
_COLUMN = {"upstream": "upstream", "downstream": "downstream"}
_BETWEEN = r"[\s,\-–]*(?:and\s+)?"
_PLACE = re.compile(
    rf"\b(?:(?P<row>{'|'.join(_ROW)}){_BETWEEN}(?P<column>{'|'.join(_COLUMN)})"
    rf"|(?P<column2>{'|'.join(_COLUMN)}){_BETWEEN}(?P<row2>{'|'.join(_ROW)}))\b"
)
_VIEW = re.compile(r"\b(?P<view>[xy]\s?[-–/]?\s?z)\b|\b(?P<both>both|two)\s+views\b|\b(?P<each>each|either)\s+view\b")


def cited_regions(text: str) -> list[Region]:
    """The regions that a text names, in its order, each once.

    A region is named by its two halves, in any order, and its view: behind them before another region is named, or else
    in front of them, within the sentence. Case, hyphens and line breaks do not matter, "top" and "bottom" will do, and
    "both views" names two regions. A place without a view, a half, or a view as a whole name none. What the text says
    of the region ("no track in the ...") is not read.
    """
    found: dict[Region, None] = {}
    for sentence in re.split(r"[.;!?]+(?=\s|$)", text.lower()):
        places = list(_PLACE.finditer(sentence))
        for i, place in enumerate(places):
            row = _ROW[place["row"] or place["row2"]]
            column = _COLUMN[place["column"] or place["column2"]]
            until = places[i + 1].start() if i + 1 < len(places) else len(sentence)
            view = _VIEW.search(sentence, place.end(), until)
            if view is None:
                before = list(_VIEW.finditer(sentence, 0, place.start()))
                view = before[-1] if before else None
            # "the lower and ... of the XZ view": the view may stand behind several places
            view = view or _VIEW.search(sentence, place.end())
            if view is None:
                continue
            names = (f"{view['view'][0]}z",) if view["view"] else VIEWS
            for name in names:
                found.setdefault(Region(name, row, column))
    return list(found)
