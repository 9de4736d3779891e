"""How a model of events with several streams comes to its answers, as ``scripts/evaluate.py`` tells it:
interpretation.json and pictures beside the scores, and a section for report.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nufm.checkpoint import Pretrained
from nufm.data.streams import StreamEvent
from nufm.display.stream_geometry import gev, title_of
from nufm.display.stream_panels import Explanation, StreamPanel, saliency_panel
from nufm.evaluation.interpret import (
    EVERYTHING,
    NEIGHBOURS,
    ablation,
    event_features,
    latent_maps,
    main_label,
    near_vertex,
    neighbour_accuracy,
    saliency,
)
from nufm.evaluation.tables import table

SALIENT_EVENTS = 64  # at most, for the shares of saliency near the vertex
# The talk and the abstract name these without numbers (F. Cufino, NPML 2026; arXiv 2604.07037).
PUBLISHED = {
    "ablation": "each sub-detector contributes in a physically plausible, channel-dependent way",
    "saliency": "concentrates at the interaction region and the main downstream shower, not spread over all voxels",
    "latents": "UMAP: cleaner with MAE+Rel than from scratch, hard flavours better separated",
}


def write_interpretation(
    pretrained: Pretrained,
    events: Sequence[StreamEvent],
    folder: str | Path,
    *,
    batch_size: int = 32,
    max_events: int = 2000,
    examples: int = 3,
    simulated: bool | None = None,
) -> tuple[dict[str, Any], str]:
    """Ablation, saliency and latents of a model, as numbers, pictures and words.

    Args:
        pretrained: a model that predicts classes of events with several streams.
        events: a reader or a list, with truth.
        folder: gets interpretation.json, ablation.png, saliency.png and latents.png; made if it is not there.
        batch_size: events at a time; no number depends on it.
        max_events: the first ones, where there are more.
        examples: events whose saliency is drawn, of different classes where there are.
        simulated: add "simulated by nufm" to the pictures; None asks the events' file.

    Returns:
        What interpretation.json holds, and a section of Markdown with the pictures.

    Raises:
        ValueError: no events, no truth of the label, or a model without classes of events.
    """
    # Drawing needs matplotlib, which takes a second to import.
    from nufm.display.geometry import is_simulated
    from nufm.display.interpretation import draw_ablation, draw_latents

    folder, label = Path(folder), main_label(pretrained)
    n = min(len(events), max_events)
    some = [events[i] for i in range(n)]
    found: dict[str, Any] = {"ablation": ablation(pretrained, some, batch_size)}
    simulated = is_simulated(some[0]) if simulated is None else simulated
    classes, target = found["ablation"]["classes"], np.array([int(e.truth[label]) for e in some])
    folder.mkdir(parents=True, exist_ok=True)
    note = "   (simulated by nufm)" if simulated else ""
    if len(found["ablation"]["rows"]) > 1:
        draw_ablation(found["ablation"], folder / "ablation.png", f"{label} without each sub-detector{note}")

    found["saliency"] = _saliency(pretrained, some, target, label, folder / "saliency.png", examples, batch_size, note)

    features = event_features(pretrained, some, batch_size)
    accuracy = neighbour_accuracy(features, target)
    share = np.bincount(target[target >= 0], minlength=len(classes)).max(initial=0) / max((target >= 0).sum(), 1)
    found["latents"] = {
        "events": n,
        "neighbours": NEIGHBOURS,
        "neighbour_accuracy": float(accuracy) if np.isfinite(accuracy) else None,
        "largest_class": float(share),
    }
    words = f"{n:,} events"
    if np.isfinite(accuracy):
        words += (
            f"   ·   class of most of the {NEIGHBOURS} nearest events, in all {features.shape[1]} dimensions: right "
            f"for {100 * accuracy:.0f} % (largest class: {100 * share:.0f} %)"
        )
    title = f"{label} in latent space{note}"
    draw_latents(latent_maps(features), target, classes, folder / "latents.png", title, words)
    found["simulated"] = bool(simulated)
    found["published"] = PUBLISHED
    (folder / "interpretation.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found, markdown(found)


def _saliency(
    pretrained: Pretrained,
    events: Sequence[StreamEvent],
    target: np.ndarray,
    label: str,
    path: Path,
    examples: int,
    batch_size: int,
    note: str,
) -> dict[str, Any]:
    """Draws examples; returns how much saliency is near the vertex."""
    from nufm.display.interpretation import Explained, draw_saliency

    few = events[:SALIENT_EVENTS]
    values = [s for i in range(0, len(few), batch_size) for s in saliency(pretrained, few[i : i + batch_size])]
    said = pretrained.predict(list(few), batch_size, progress=False)
    shown = []
    for i in chosen_examples([p.probability[label] for p in said], target[: len(few)], examples):
        sure = float(said[i].probability[label].max())
        truth = pretrained.classes[label][target[i]] if target[i] >= 0 else "unknown"
        caption = f"true {truth}, predicted {values[i].target} ({100 * sure:.0f} %)"
        shown.append(Explained(few[i], values[i].target, values[i].voxels, caption, said[i].value.get("vertex")))
    if shown:
        draw_saliency(shown, path, f"charge × gradient of the logit of the predicted {label}{note}")
    else:
        path.unlink(missing_ok=True)  # of an earlier evaluation
    stream = next(iter(few[0].voxels), None)
    near = near_vertex(few, values, stream) if stream else {"events": 0}
    return {"target": f"predicted {label}", "stream": stream, "examples": len(shown), **near}


def explained(pretrained: Pretrained, event: StreamEvent) -> Explanation:
    """What a model says of an event, for displays: its likeliest classes, momenta and vertex, and the saliency of the
    hits for the first label.

    Raises:
        ValueError: a model without classes of events.
    """
    label = main_label(pretrained)
    said, salient = pretrained.predict([event], progress=False)[0], saliency(pretrained, [event])[0]
    parts = [f"{said.label(name)} ({100 * float(p.max()):.0f} %)" for name, p in said.probability.items()]
    for name, words in (("lepton", "p(lepton)"), ("jet", "p(jet)"), ("missing_pt", "missing pT")):
        if name in said.value:
            parts.append(f"{words} {gev(float(np.linalg.norm(said.value[name])))} GeV/c")
    vertex = said.value.get("vertex")
    if vertex is not None:
        parts.append("vertex ({:.1f}, {:.1f}, {:.1f}) cm".format(*(vertex / 10)))
    panels = {stream: saliency_panel(values, salient.target) for stream, values in salient.voxels.items()}
    title = f"saliency for {label} {salient.target}: orange for, blue against"
    return Explanation(("predicted: " + "   ·   ".join(parts),), (StreamPanel(title, panels),), vertex)


def chosen_examples(probability: Sequence[np.ndarray], target: np.ndarray, examples: int) -> list[int]:
    """Events to show: the surest right one of each class, the classes in the order of how sure; then the surest of the
    others.

    Args:
        probability: (K,) of each event.
        target: (n,) true classes, -1 unknown.
        examples: how many at most.
    """
    sure = np.array([p.max() for p in probability])
    right = np.array([int(p.argmax()) for p in probability]) == target
    best = {}
    for i in np.argsort(-sure, kind="stable"):
        if right[i]:
            best.setdefault(int(target[i]), int(i))
    order = [*best.values(), *(int(i) for i in np.argsort(-sure, kind="stable") if int(i) not in best.values())]
    return order[:examples]


# ---------------------------------------------------------------------- in words


def markdown(found: Mapping[str, Any]) -> str:
    """The section of the report."""
    part, rows = found["ablation"], []
    vertex = any("vertex_median" in r for r in part["rows"].values())
    for name, row in part["rows"].items():
        without = name
        if name != EVERYTHING:
            without = f"without {title_of(name)} (in {100 * part['filled'][name]:.0f} % of events)"
        cells = [without, _change(row, "macro", "macro_change"), *map(_shown, row["auc"])]
        rows.append(cells + ([_change(row, "vertex_median", "vertex_change", 0)] if vertex else []))
    head = ["", "macro AUC", *part["classes"], *(["vertex, median (mm)"] if vertex else [])]
    origin = ", simulated by nufm" if found["simulated"] else ""
    text = f"### Without each sub-detector\n\n{table(head, rows)}\n" if len(rows) > 1 else ""
    text += "" if len(rows) == 1 else (
        f"AUC of {part['label']}, each class against the rest, over {part['events']:,} events{origin}; in brackets the "
        "change and its standard error (paired bootstrap). A stream is left out as if it had not been read out, which "
        "the model was not trained on: this says what it leans on. "
        f"Published, without numbers: {PUBLISHED['ablation']}.\n\n![ablation](ablation.png)\n\n"
    )
    near = found["saliency"]
    text += f"### Saliency\n\nCharge × gradient of the logit of the {near['target']}, hit by hit. "
    if near["events"]:
        shares = [
            f"{d:.0f} mm: {100 * s:.0f} % of |saliency|, {100 * c:.0f} % of the charge, {100 * h:.0f} % of the hits"
            for d, s, c, h in zip(near["within_mm"], near["saliency"], near["charge"], near["hits"], strict=True)
        ]
        text += f"Within these distances of the true vertex, mean over {near['events']} events: {'; '.join(shares)}. "
    text += f"Published, without numbers: {PUBLISHED['saliency']}.\n\n"
    if near["examples"]:
        text += "![saliency](saliency.png)\n\n"
    latents = found["latents"]
    text += "### Latent space\n\n"
    if latents["neighbour_accuracy"] is not None:
        text += (
            f"Most of the {latents['neighbours']} nearest events are of the same class for "
            f"{100 * latents['neighbour_accuracy']:.1f} % of {latents['events']:,} events (largest class: "
            f"{100 * latents['largest_class']:.1f} %). "
        )
    return text + f"Published, without numbers: {PUBLISHED['latents']}.\n\n![latent space](latents.png)\n"


def _shown(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _change(row: Mapping[str, Any], name: str, change: str, digits: int = 3) -> str:
    words, error = _shown(row.get(name), digits), row.get(f"{change}_error")
    if row.get(change) and error is not None:
        words += f" ({row[change]:+.{digits}f} ± {error:.{digits}f})"
    return words
