"""Does a classifier use the place that its explanation names? The open question of arXiv 2509.08461, §5: its
explanations are not validated.

The region that an answer cites (``nufm.data.explanations``) is covered up, that is, its pixels lose their charge, and
the event is classified again: how far does the probability of the class that was predicted fall? Any hole does some
harm, so the same is done with a patch that holds equal charge elsewhere in the same event, and the two are compared
event by event. An explanation that tells what the class was read from falls further than its patch; one that says what
classes usually look like does not.

A patch: a pixel with charge outside the cited region is drawn at random, in a view that has enough charge outside, and
the pixels nearest to it (in rows and columns, the larger of the two; not those of the cited region) are taken until
their charge is as close as it gets to that of the region. If no view has enough, all charge outside is the patch.
Several patches are drawn for an event and their falls averaged.

For comparison the same is asked of regions that nobody cites: the one with most charge, and the one whose covering
costs most, found by covering all eight one by one (an upper bound, and a biased one: it is chosen by the number that is
then reported). These need no model that talks.

Shape legend: n events, N pixels with charge of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nufm.checkpoint import Pretrained
from nufm.data.explanations import REGIONS, Region, cited_regions
from nufm.data.images import VIEWS, ImageEvent, View
from nufm.display.faithfulness import CoveredEvent, draw_faithfulness
from nufm.display.geometry import short_name
from nufm.evaluation.class_scores import class_probabilities, classified_label, kept_temperature_of
from nufm.evaluation.event_scores import check_events, plain
from nufm.evaluation.scores import batches
from nufm.evaluation.tables import percent, table, temperature_text

Mask = Mapping[str, np.ndarray]  # view -> bool (N,) of its pixels
WORDS = {
    "cited": "cited by the model",
    "brightest": "with most charge",
    "strongest": "whose covering costs most",
}


# ---------------------------------------------------------------------- covering


def of_regions(event: ImageEvent, regions: Sequence[Region]) -> dict[str, np.ndarray]:
    """Which pixels of an event lie in any of the regions: view -> bool (N,)."""
    found = {}
    for name, view in event.views.items():
        inside = np.zeros(len(view), dtype=bool)
        for region in regions:
            if region.view == name:
                _, rows, columns = region.slices(event.shape)
                row, column = view.pixel.T
                inside |= (rows.start <= row) & (row < rows.stop) & (columns.start <= column) & (column < columns.stop)
        found[name] = inside
    return found


def charge(event: ImageEvent, mask: Mask) -> float:
    """Sum of the energies of some pixels."""
    return sum(float(event.views[name].energy[inside].sum(dtype=np.float64)) for name, inside in mask.items())


def covered(event: ImageEvent, mask: Mask) -> ImageEvent:
    """The event without these pixels; views stay, empty if need be."""
    views = {name: View(v.pixel[~mask[name]], v.energy[~mask[name]]) for name, v in event.views.items()}
    return event.replace(views=views)


def random_patch(event: ImageEvent, avoid: Mask, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A patch outside ``avoid`` with the charge of ``avoid``, see the head of this file: view -> bool (N,)."""
    wanted = charge(event, avoid)
    outside = {name: ~inside for name, inside in avoid.items()}
    nothing = {name: np.zeros_like(inside) for name, inside in avoid.items()}
    if wanted <= 0:
        return nothing
    enough = [n for n in VIEWS if n in outside and charge(event, {n: outside[n]}) >= wanted]
    if not enough:
        return outside
    name = enough[rng.integers(len(enough))]
    pixel, energy = event.views[name].pixel, event.views[name].energy
    free = np.flatnonzero(outside[name])
    centre = pixel[free[rng.integers(len(free))]]
    distance = np.abs(pixel[free] - centre).max(1)
    order = free[np.lexsort((rng.random(len(free)), distance))]  # of equally near ones, any
    total = np.cumsum(energy[order], dtype=np.float64)
    count = 1 + int(np.abs(total - wanted).argmin())
    mask = dict(nothing)
    mask[name] = np.isin(np.arange(len(pixel)), order[:count])
    return mask


# ---------------------------------------------------------------------- who cites what


def brightest(events: Sequence[ImageEvent]) -> list[list[Region]]:
    """Of every event, the region with most charge; none of an event without."""
    found = []
    for event in events:
        held = {region: charge(event, of_regions(event, [region])) for region in REGIONS}
        best = max(held, key=lambda region: held[region])
        found.append([best] if held[best] > 0 else [])
    return found


def strongest(pretrained: Pretrained, events: Sequence[ImageEvent], batch_size: int) -> list[list[Region]]:
    """Of every event, the region whose covering costs the predicted class most of its probability; none of an event
    without charge."""
    before = class_probabilities(pretrained, events, batch_size)
    chosen, row = before.argmax(1), np.arange(len(events))
    after = [
        class_probabilities(pretrained, [covered(e, of_regions(e, [region])) for e in events], batch_size)[row, chosen]
        for region in REGIONS
    ]
    best = np.argmin(after, axis=0)
    return [[REGIONS[best[i]]] if event.n_pixels else [] for i, event in enumerate(events)]


@torch.inference_mode()
def texts_of(pretrained: Pretrained, events: Sequence[ImageEvent], batch_size: int) -> list[str]:
    """What the model says of every event.

    Raises:
        ValueError: it does not talk.
    """
    if not hasattr(pretrained.model, "explain"):
        raise ValueError(
            f"{pretrained.source}: a {type(pretrained.model).__name__} does not explain itself; give the run of an "
            "image-text model (configs/tiny/pixelmap_vlm.yaml)"
        )
    device = next(pretrained.model.parameters()).device
    pretrained.model.eval()
    return [
        str(text)
        for some in batches(events, batch_size, False)
        for text in pretrained.model.explain(pretrained.batch(some).to(device))
    ]


# ---------------------------------------------------------------------- the study


def faithfulness(
    pretrained: Pretrained,
    events: Sequence[ImageEvent],
    *,
    batch_size: int = 16,
    patches: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Cover what is cited, and patches of equal charge.

    Args:
        pretrained: a classifier of pixel maps; the rows of what it cites are there only if it has ``explain``.
        events: a reader or a list.
        batch_size: events at a time.
        patches: for each event.
        seed: of the patches, with the event's place among the events.
        progress: show a bar on the terminal.

    Returns:
        ``events``, ``classes``, ``patches``; ``temperature``: label -> T of the export;
        ``silent``: events whose answer cites no region; ``regions``: how often
        each is cited; ``rows``: source -> group (``all`` and the predicted classes) -> the numbers of :func:`compared`;
        ``per_event``: source -> one dict for each event with ``name``, ``predicted``, ``probability``, ``regions``,
        ``text``, ``share`` of the event's charge that is covered, ``fall``, ``patch_fall``, ``patch_charge`` (of the
        region's), ``flipped``, ``patch_flipped``.

    Raises:
        ValueError: no events, or a model that does not classify pixel maps.
    """
    check_events(pretrained, events)
    label = classified_label(pretrained)
    classes = list(pretrained.classes[label])
    talks = hasattr(pretrained.model, "explain")
    per_event: dict[str, list[dict[str, Any]]] = {name: [] for name in WORDS if talks or name != "cited"}
    start = 0
    for some in batches(events, batch_size, progress):
        texts = texts_of(pretrained, some, batch_size) if talks else []
        sources = {
            "cited": [cited_regions(text) for text in texts],
            "brightest": brightest(some),
            "strongest": strongest(pretrained, some, batch_size),
        }
        before = class_probabilities(pretrained, some, batch_size)
        for name, rows in per_event.items():
            streams = [np.random.default_rng([seed, start + i]) for i in range(len(some))]
            found = _cover(pretrained, some, sources[name], before, patches, streams, batch_size)
            for i, row in enumerate(found):
                row["predicted"] = classes[row["predicted"]]
                rows.append(row | ({"text": texts[i]} if name == "cited" else {}))
        start += len(some)
    cited = [region for row in per_event.get("cited", ()) for region in row["regions"]]
    return plain(
        {
            "events": start,
            "classes": classes,
            "patches": patches,
            "temperature": kept_temperature_of(pretrained),
            "silent": sum(not row["regions"] for row in per_event["cited"]) if talks else None,
            "regions": {str(region): cited.count(str(region)) for region in REGIONS},
            "rows": {name: _grouped(rows, classes) for name, rows in per_event.items()},
            "per_event": per_event,
        }
    )


def _cover(
    pretrained: Pretrained,
    events: Sequence[ImageEvent],
    regions: Sequence[Sequence[Region]],
    before: np.ndarray,
    patches: int,
    streams: Sequence[np.random.Generator],
    batch_size: int,
) -> list[dict[str, Any]]:
    masks = [of_regions(event, own) for event, own in zip(events, regions, strict=True)]
    spots = [
        [random_patch(e, m, rng) for _ in range(patches)] for e, m, rng in zip(events, masks, streams, strict=True)
    ]
    n, chosen = len(events), before.argmax(1)
    holes = [covered(e, m) for e, m in zip(events, masks, strict=True)]
    for k in range(patches):
        holes += [covered(e, own[k]) for e, own in zip(events, spots, strict=True)]
    after = class_probabilities(pretrained, holes, batch_size).reshape(1 + patches, n, -1)
    rows = []
    for i, event in enumerate(events):
        p, held = before[i, chosen[i]], charge(event, masks[i])
        total = charge(event, {name: np.ones(len(v), dtype=bool) for name, v in event.views.items()})
        falls = p - after[:, i, chosen[i]]
        flips = after[:, i].argmax(1) != chosen[i]
        rows.append(
            {
                "name": event.name,
                "predicted": int(chosen[i]),
                "probability": float(p),
                "regions": [str(region) for region in regions[i]],
                "share": held / total if total > 0 else 0.0,
                "fall": float(falls[0]),
                "patch_fall": float(falls[1:].mean()),
                "patch_charge": float(np.mean([charge(event, m) for m in spots[i]]) / held) if held > 0 else None,
                "flipped": bool(flips[0]),
                "patch_flipped": float(flips[1:].mean()),
            }
        )
    return rows


def _grouped(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Numbers of all events in which a region is cited, and of those of each predicted class."""
    spoken = [row for row in rows if row["regions"]]
    groups = {"all": spoken} | {name: [row for row in spoken if row["predicted"] == name] for name in classes}
    return {name: compared(own) for name, own in groups.items()}


def compared(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Falls of some events, and of their patches.

    Returns:
        ``events``; means: ``probability``, ``share``, ``fall``, ``patch_fall``, ``flipped``, ``patch_flipped``,
        ``patch_charge``; ``difference`` of the falls (region minus patches), and ``…_error``: standard errors of the
        means of ``fall``, ``patch_fall`` and ``difference``; ``p_value``: of the Wilcoxon signed-rank test of the
        differences, two-sided, events without a difference left out. None where there are too few events.
    """
    from scipy.stats import wilcoxon

    names = ("probability", "share", "fall", "patch_fall", "flipped", "patch_flipped")
    values = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
    values["difference"] = values["fall"] - values["patch_fall"]
    n = len(rows)
    found: dict[str, Any] = {"events": n}
    found |= {name: float(value.mean()) if n else None for name, value in values.items()}
    matched = [row["patch_charge"] for row in rows if row["patch_charge"] is not None]
    found["patch_charge"] = float(np.mean(matched)) if matched else None
    for name in ("fall", "patch_fall", "difference"):
        found[f"{name}_error"] = float(values[name].std(ddof=1) / np.sqrt(n)) if n > 1 else None
    moved = values["difference"][values["difference"] != 0]
    found["p_value"] = float(wilcoxon(moved).pvalue) if len(moved) > 1 else None
    return found


def draw(
    found: Mapping[str, Any], events: Sequence[ImageEvent], path: str | Path, title: str = "", seed: int = 0
) -> Path:
    """The picture of :func:`faithfulness`, with the event whose cited region differs most from its patches.

    Args:
        found: of these events.
        events: a reader or a list.
        path: PNG to write.
        title: heading.
        seed: that of the study: its first patch of the event is shown.

    Raises:
        ValueError: no region was cited in any event.
    """
    source, rows = next(iter(found["per_event"].items()))  # what the model cites, if it talks
    spoken = [i for i, row in enumerate(rows) if row["regions"]]
    shown = None
    if spoken:
        number = max(spoken, key=lambda i: rows[i]["fall"] - rows[i]["patch_fall"])
        row, event = rows[number], events[number]
        regions = [region for region in REGIONS if str(region) in row["regions"]]
        patch = random_patch(event, of_regions(event, regions), np.random.default_rng([seed, number]))
        said = row.get("text") or f"The {row['regions'][0]}, {WORDS[source]}."
        numbers = (
            f"{short_name(event)}, predicted {row['predicted']} with {percent(row['probability'])} %. Covered, the "
            f"region (orange) costs {100 * row['fall']:.1f} %, patches of equal charge (blue: one of them) "
            f"{100 * row['patch_fall']:.1f} %."
        )
        shown = CoveredEvent(event, regions, patch, (f"“{said}”", numbers))
    bars = {WORDS[name]: groups["all"] for name, groups in found["rows"].items()}
    return draw_faithfulness(bars, path, title, shown)


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of :func:`faithfulness`, with what stands in them."""
    falls, rest = [], []
    for source, groups in found["rows"].items():
        said = [name for name, own in groups.items() if own["events"]]
        for group in said if len(said) > 2 else said[:1]:  # one class alone would say what all say
            own = groups[group]
            name = f"**{WORDS[source]}**" if group == "all" else f"predicted {group}"
            p_value = "" if own["p_value"] is None else f"{own['p_value']:.2g}"
            moved = (_with_error(own, what) for what in ("fall", "patch_fall", "difference"))
            falls.append([name, f"{own['events']:,}", *moved, p_value])
            shares = ("share", "probability", "flipped", "patch_flipped")
            rest.append([name, *(percent(own[what]) for what in shares)])
    simulated = ", simulated by nufm" if found.get("simulated") else ""
    text = (
        f"In per cent, {found['events']:,} events{simulated}. Fall: by how much the probability of the predicted class "
        f"falls when the region is covered; patches: {found['patches']} random ones of equal charge elsewhere in the "
        "same event, averaged. Errors are standard errors of means; the p-value is that of a Wilcoxon signed-rank test "
        "of the differences. Charge: share of the event's that is covered. Another class: how often the decision "
        "changes.\n"
    )
    if said := temperature_text(found.get("temperature") or {}):
        text += f"\n{said}\n"
    if found["silent"] is not None:
        counts = ", ".join(f"{n:,} {region}" for region, n in found["regions"].items() if n)
        text += f"\n{found['silent']:,} answers cite no region. Cited: {counts or 'none'}.\n"
    tables = (
        table(["region", "events", "fall", "patches", "difference", "p-value"], falls),
        table(["", "charge", "probability before", "another class", "by patches"], rest),
    )
    return "\n".join(tables) + "\n" + text


def _with_error(own: Mapping[str, Any], name: str) -> str:
    error = own[f"{name}_error"]
    return f"{100 * own[name]:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")
