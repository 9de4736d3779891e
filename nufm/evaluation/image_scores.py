"""What an evaluation of pixel maps shows beyond the scores of whole events: efficiency and purity, background
rejection, reliability, what an event costs, and example events with what the model says of them.

Shape legend: B events, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nufm.checkpoint import Pretrained
from nufm.data.images import ImageEvent
from nufm.data.prediction import StreamEventPrediction
from nufm.display.images import Said
from nufm.evaluation.cost import cost_per_event
from nufm.evaluation.event_scores import EventEvaluation, plain
from nufm.evaluation.tables import title

TIMED = 8  # events that take turns when a model is timed: they have different numbers of pixels


def add_cost(pretrained: Pretrained, events: Sequence[ImageEvent], found: dict[str, Any]) -> None:
    """Put what one event costs into the scores, as ``cost``."""
    found["cost"] = plain(cost_per_event(pretrained, [events[i] for i in range(min(TIMED, len(events)))]))


def draw_image_scores(
    pretrained: Pretrained,
    events: Sequence[ImageEvent],
    found: Mapping[str, Any],
    collected: EventEvaluation,
    folder: Path,
    examples: int,
) -> dict[str, list[str]]:
    """Pictures of the scores of pixel maps and of events; names of the files written, by the section they belong to."""
    from nufm.display.image_scores import efficiency_purity, rejection_curves
    from nufm.display.scores import reliability_diagram

    written: dict[str, list[str]] = {}
    for label, scores in found["labels"].items():
        heading, classes = f"{label}: {title(found)}", scores["classes"]
        names = [f"{what}_{label}.png" for what in ("efficiency_purity", "rejection", "reliability")]
        efficiency_purity(scores["confusion"], classes, folder / names[0], heading)
        kept = [collected.scores[label]["auc"].samples(which).numpy() for which in ("score", "target")]
        rejection_curves(*kept, classes, folder / names[1], heading)
        calibration = {name: value for name, value in scores["calibration"].items() if value is not None}
        if "expected_error" in calibration:  # there are events of known class
            reliability_diagram(calibration, folder / names[2], heading, "events")
        else:
            names.pop()
        written[label.capitalize()] = names
    if examples:
        drawn = draw_example_events(pretrained, events, found, collected.per_event, folder, examples)
        written["Example events"] = drawn
    return written


def draw_example_events(
    pretrained: Pretrained,
    events: Sequence[ImageEvent],
    found: Mapping[str, Any],
    per_event: Sequence[Mapping[str, Any]],
    folder: Path,
    examples: int,
) -> list[str]:
    """Draw the surest right events and the surest wrong ones (examples.png, events.html); names of the pictures."""
    from nufm.display.image_interactive import write_image_page
    from nufm.display.images import draw_examples

    label = next(iter(found["labels"]))
    chosen = example_rows(per_event, label, found["labels"][label]["classes"], examples)
    if not chosen:
        return []
    shown = [events[row] for row, _ in chosen]
    words = said_of(pretrained, shown, label)
    heads = [head for _, head in chosen]
    draw_examples(shown, words, folder / "examples.png", f"example events, {found['task']}", title(found), heads)
    write_image_page(shown, [w.lines for w in words], folder / "events.html", title(found), found["simulated"])
    return ["examples.png"]


def example_rows(
    per_event: Sequence[Mapping[str, Any]], label: str, classes: Sequence[str], count: int
) -> list[tuple[int, str]]:
    """Which events to look at, and why: of each class the one that is right with the largest probability, then the
    ``count`` that are wrong with the largest probability; no event twice.

    Args:
        per_event: rows of :class:`nufm.evaluation.event_scores.EventEvaluation`.
    """
    known = [row for row in range(len(per_event)) if per_event[row][label] is not None]
    surest = sorted(known, key=lambda row: -per_event[row][f"{label}_found_p"])
    right = [row for row in surest if per_event[row][label] == per_event[row][f"{label}_found"]]
    best = [next((row for row in right if per_event[row][label] == name), None) for name in classes]
    wrong = [row for row in surest if per_event[row][label] != per_event[row][f"{label}_found"]][:count]
    return [(row, "right, the surest of its class") for row in best if row is not None] + [
        (row, f"wrong, number {i} in sureness") for i, row in enumerate(wrong, 1)
    ]


def said_of(pretrained: Pretrained, events: Sequence[ImageEvent], label: str) -> list[Said]:
    """The probabilities of a label in words, and, of a model that explains itself, its explanation."""
    predictions = pretrained.predict(list(events), batch_size=1, progress=False)
    explanations = explained(pretrained, events)
    found = []
    for event, prediction, text in zip(events, predictions, explanations, strict=True):
        true, names = int(event.truth.get(label, -1)), prediction.classes[label]
        right = None if true < 0 else prediction.label(label) == names[true]
        found.append(Said((probabilities_text(prediction, label), *([f"“{text}”"] if text else [])), right))
    return found


def explained(pretrained: Pretrained, events: Sequence[ImageEvent]) -> list[str]:
    """What the model says in words of each event; empty strings of a model that does not talk."""
    if not hasattr(pretrained.model, "explain"):
        return [""] * len(events)
    device = next(pretrained.model.parameters()).device
    # One event at a time: what is generated must not depend on how long other explanations are.
    return [str(pretrained.model.explain(pretrained.batch([event]).to(device))[0]) for event in events]


def probabilities_text(prediction: StreamEventPrediction, label: str) -> str:
    """``prediction: νe CC 93 %, NC 5 %, νµ CC 2 %``: the likeliest first."""
    pairs = sorted(zip(prediction.probability[label], prediction.classes[label], strict=True), reverse=True)
    return "prediction: " + ", ".join(f"{name} {100 * float(p):.0f} %" for p, name in pairs)
