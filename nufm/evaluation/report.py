"""The folder that an evaluation leaves: scores.json, events.csv, report.md, pictures, and a page of event displays."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nufm.checkpoint import Pretrained
from nufm.checkpoint.temperature import kept_temperature
from nufm.data.event import Event
from nufm.data.images import ImageEvent
from nufm.data.prediction import LEAST_TRANSVERSE
from nufm.data.streams import StreamEvent
from nufm.evaluation.event_scores import EventEvaluation, WholeEvent, check_events
from nufm.evaluation.image_scores import add_cost, draw_image_scores
from nufm.evaluation.scores import Evaluation, Example, batches, check, evaluate
from nufm.evaluation.tables import HEADS, percent, rounded, sections, table, temperature_text, title


def write_evaluation(
    pretrained: Pretrained,
    events: Sequence[Event] | Sequence[StreamEvent] | Sequence[ImageEvent],
    folder: str | Path,
    *,
    batch_size: int = 8,
    examples: int = 3,
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
    interpret: bool = False,
    cost: bool = False,
) -> dict[str, Any]:
    """Score a model on labelled events, and write everything that shows how it did.

    Args:
        pretrained: a model with a task, of points, of events with several streams or of pixel maps.
        events: a reader, or a list of events as they were read, with labels.
        folder: made if it is not there; results in it are replaced.
        batch_size: events at a time; no score depends on it.
        examples: how many of the best and of the worst events to draw; of events with several streams, of how many to
            draw the hits that move the answer, if ``interpret``; of pixel maps, how many of those that are wrong beside
            one of each class that is right.
        progress: show a bar on the terminal.
        provenance: added to the scores: checkpoint, files, commit, machine.
        interpret: of models of events with several streams: also say what they look at
            (``nufm.evaluation.interpretation``).
        cost: of models of pixel maps: also measure time and memory of one event (``nufm.evaluation.cost``).

    Returns:
        What scores.json holds: :func:`nufm.evaluation.evaluate` with ``simulated``, ``examples`` and the provenance;
        of whole events :meth:`nufm.evaluation.event_scores.EventEvaluation.result`.

    Raises:
        ValueError: the model cannot be scored on these events, see :func:`nufm.evaluation.evaluate`.
    """
    # Drawing needs matplotlib and plotly, which take a second to import.
    from nufm.display.geometry import is_simulated

    folder = Path(folder)
    if pretrained.inputs != "points":
        of_maps = (examples, cost) if pretrained.inputs == "images" else None
        found, parts = _write_events(pretrained, events, folder, batch_size, progress, provenance, of_maps)
        if interpret and pretrained.inputs == "streams":
            from nufm.evaluation.interpretation import write_interpretation  # brings t-SNE

            drawn = {"batch_size": batch_size, "examples": examples, "simulated": found["simulated"]}
            parts.append(write_interpretation(pretrained, events, folder, **drawn)[1])
        (folder / "report.md").write_text("\n".join(parts))
        return found
    collected = Evaluation(check(pretrained, events), examples)
    found = evaluate(pretrained, events, batch_size=batch_size, progress=progress, collected=collected)
    found["simulated"] = is_simulated(events[0])
    found["examples"] = {kind: [e.scores for e in kept] for kind, kept in examples_of(collected).items()}
    found |= dict(provenance or {})
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("best*.png", "worst*.png", "instances.png", "classes.png", "events.html"):
        for stale in folder.glob(kind):  # this time there may be fewer
            stale.unlink()
    _write_numbers(found, collected.per_event, folder)
    pictures = _draw(found, collected, folder)
    (folder / "report.md").write_text(_markdown(found, pictures, pretrained.source))
    return found


def _write_events(
    pretrained: Pretrained,
    events: Sequence[WholeEvent],
    folder: Path,
    batch_size: int,
    progress: bool,
    provenance: Mapping[str, Any] | None,
    of_maps: tuple[int, bool] | None,
) -> tuple[dict[str, Any], list[str]]:
    """:func:`write_evaluation` of a model of whole events: the scores, and the parts of report.md. ``of_maps``: how
    many wrong events to draw, and whether to measure what an event costs; None if the events are no pixel maps."""
    from nufm.display.geometry import is_simulated

    task = check_events(pretrained, events)
    collected = EventEvaluation(task, {label: pretrained.classes[label] for label in pretrained.model.n_classes})
    predicted = pretrained.predict_each(events, batch_size, progress)  # keeps together what belongs together
    for batch in batches(events, batch_size, False):
        collected.add(batch, list(itertools.islice(predicted, len(batch))))
    found = {**collected.result(), "inputs": pretrained.inputs, "simulated": is_simulated(events[0])}
    found |= dict(provenance or {})
    folder.mkdir(parents=True, exist_ok=True)
    examples, cost = of_maps or (0, False)
    _write_numbers(found, collected.per_event, folder)
    if cost:  # asks other processes and large allocations, which may fail: the scores are kept by then
        add_cost(pretrained, events, found)
        _write_numbers(found, collected.per_event, folder)
    pictures = _draw_events(found, collected, folder)
    if of_maps is not None:
        for stale in ("examples.png", "events.html"):
            (folder / stale).unlink(missing_ok=True)
        for head, names in draw_image_scores(pretrained, events, found, collected, folder, examples).items():
            pictures[head] = [*pictures.get(head, ()), *names]
    said = temperature_text(kept_temperature(pretrained.extra, found["labels"]))
    parts = [f"# {title(found)}\n"]
    parts.append(f"Model: {pretrained.source}. Scores of classes in per cent. {said}".rstrip() + "\n")
    for head, text in sections(found):
        parts.append(f"## {head}\n\n{text}")
        parts += [f"![{head}]({name})\n" for name in pictures.pop(head, ())]
    for head, names in pictures.items():
        parts.append(f"## {head}\n")
        parts += [f"![{head}]({name})\n" for name in names]
    more = " [events.html](events.html): the example events, to zoom." if (folder / "events.html").is_file() else ""
    parts.append(f"All events: events.csv.{more}\n")
    return found, parts


def _draw_events(found: Mapping[str, Any], collected: EventEvaluation, folder: Path) -> dict[str, list[str]]:
    """Pictures of the scores of whole events; names of the files written, by the section they belong to."""
    from nufm.display.event_scores import reconstructed, roc_curves
    from nufm.display.scores import confusion_matrix

    written: dict[str, list[str]] = {}
    for label, scores in found["labels"].items():
        heading, names = f"{label}: {title(found)}", [f"roc_{label}.png"]
        if found["inputs"] != "images":  # of which efficiency and purity are drawn
            names.insert(0, f"confusion_{label}.png")
            confusion_matrix(scores["confusion"], scores["classes"], folder / names[0], heading, "events")
        rows = [collected.scores[label]["auc"].samples(which).numpy() for which in ("score", "target")]
        roc_curves(*rows, scores["classes"], scores["auc"], folder / names[-1], heading)
        written[label.capitalize()] = names
    flavours = found["labels"].get("flavour", {}).get("classes", ())
    if found["quantities"]:
        values = {name: collected.values(name) for name in found["quantities"]}
        group = next(iter(values.values()))[2].numpy()
        sizes = {
            HEADS[name]: tuple((v.norm(dim=1) if v.dim() > 1 else v).numpy() for v in pair[:2])
            for name, pair in values.items()
        }
        above = {"missing_pt": f" above {LEAST_TRANSVERSE} GeV/c"}
        notes = {
            HEADS[name]: f"σ_MAD {rounded(rows['all']['sigma_mad'], 3)}{above.get(name, '')}"
            for name, rows in found["quantities"].items()
        }
        reconstructed(sizes, folder / "momenta.png", "GeV/c", title(found), notes, group=group, names=flavours)
        written[HEADS[list(found["quantities"])[-1]]] = ["momenta.png"]
    if "vertex" in found:
        reco, true, group = (v.numpy() for v in collected.values("vertex"))
        axes = {axis: (reco[:, i], true[:, i]) for i, axis in enumerate("xyz")}
        notes = {a: f"IQR of the residual {rounded(v['iqr'], 0)} mm" for a, v in found["vertex"]["all"]["axes"].items()}
        heading = f"vertex, {title(found)}"
        colours = {"group": group, "names": flavours}
        reconstructed(axes, folder / "vertex.png", "mm", heading, notes, logarithmic=False, **colours)
        written["Vertex"] = ["vertex.png"]
    return written


def _write_numbers(found: Mapping[str, Any], per_event: Sequence[Mapping[str, Any]], folder: Path) -> None:
    (folder / "scores.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    columns = dict.fromkeys(column for row in per_event for column in row)
    with open(folder / "events.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(per_event)


def _draw(found: Mapping[str, Any], collected: Evaluation, folder: Path) -> dict[str, list[str]]:
    """Pictures of the scores and of events; names of the files written, by the section they belong to."""
    from nufm.display.prediction import Shown, draw_prediction, prediction_page, prediction_sheet
    from nufm.display.scores import confusion_matrix, per_class_bars, reliability_diagram

    task, simulated = collected.task, found["simulated"]
    classes, points = found["classes"], found["points"]
    # The column of voxels without a class only where there are any.
    columns = len(classes) + bool(points["unclassified"])
    matrix = [row[:columns] for row in points["confusion"]]
    confusion_matrix(matrix, classes, folder / "confusion.png", title(found))
    calibration = {name: value for name, value in found["calibration"].items() if value is not None}
    reliability_diagram(calibration, folder / "reliability.png", title(found))
    written = {"Voxels": ["confusion.png"], "Calibration": ["reliability.png"]}
    if task.kind == "semantic":
        bars = {words: points[name] for name, words in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))}
        per_class_bars(bars, classes, folder / "classes.png", title(found), "scores of voxels by class")
        written["Voxels"].append("classes.png")
    if "panoptic" in found:
        matrix, things = found["panoptic"]["confusion"], [c for c in range(len(classes)) if c != task.stuff]
        if len(things) > 1:
            matrix = [[matrix[row][column] for column in things] for row in things]
            names = [classes[c] for c in things]
            confusion_matrix(matrix, names, folder / "instances.png", title(found), "matched instances")
            written["Instances"] = ["instances.png"]
    word = "macro-F1" if task.kind == "semantic" else "best Dice"
    shown: dict[str, list[Shown]] = {}
    for kind, kept in examples_of(collected).items():
        shown[kind] = [
            Shown(e.event, e.prediction, f"{kind}: {word} {percent(e.scores['score'])} %") for e in kept
        ]
        for number, item in enumerate(shown[kind], 1):
            draw_prediction(
                item.event, item.prediction, folder / f"{kind}_{number}.png", task, item.caption, simulated
            )
        if shown[kind]:
            heading = f"{kind} events by {word}"
            prediction_sheet(shown[kind], folder / f"{kind}.png", task, heading, simulated)
            written.setdefault("Events", []).append(f"{kind}.png")
    if items := [item for items in shown.values() for item in items]:
        prediction_page(items, folder / "events.html", task, title(found), simulated)
    return written


def examples_of(collected: Evaluation) -> dict[str, list[Example]]:
    """The best events, and the worst of those that are not among the best: no event twice."""
    chosen = {id(example.event) for example in collected.best}
    return {"best": collected.best, "worst": [e for e in collected.worst if id(e.event) not in chosen]}


def _markdown(found: Mapping[str, Any], pictures: Mapping[str, Sequence[str]], source: str) -> str:
    parts = [f"# {title(found)}\n", f"Model: {source}. Scores in per cent.\n"]
    for head, text in sections(found):
        parts.append(f"## {head}\n\n{text}")
        parts += [f"![{head}]({name})\n" for name in pictures.get(head, ())]
    score = found["event_score"]
    parts.append(f"## Events\n\nRanked by {score['what']}: mean {percent(score['mean'])} %.\n")
    rows = [
        [f"{kind} {number}", e["name"], f"{e['voxels']:,}", percent(e["score"])]
        for kind, kept in found["examples"].items()
        for number, e in enumerate(kept, 1)
    ]
    if rows:
        parts.append(table(["", "event", "voxels", "score"], rows))
        parts += [f"![{name}]({name})\n" for name in pictures["Events"]]
        parts.append("[events.html](events.html): the same events, to turn and zoom. All events: events.csv.\n")
    return "\n".join(parts)
