"""Truth beside prediction: what a model got right and wrong, as pictures and as one interactive page.

Shape legend: N points (voxels), I true and J predicted instances of an event.

Colours mean the same on both sides. In semantic tasks they are those of the classes. In panoptic tasks each true
instance has a colour, and the predicted instance that shares most points with it has it too; what was predicted
beyond that, "extra", has a colour of its own, so a particle cut in two shows as two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nufm.data.event import MOTIF_NAMES, PID_NAMES, Event
from nufm.data.prediction import EventPrediction
from nufm.data.tasks import Task, task_named
from nufm.display.colours import (
    GREY,
    INSTANCE_COLOURS,
    MOTIF_COLOURS,
    PID_COLOURS,
    UNKNOWN,
    Panel,
    class_panel,
    coloured_classes,
    energy_panel,
)
from nufm.display.event import (
    INK,
    Sheet,
    draw_2d,
    draw_3d,
    draw_legend,
    draw_nothing,
    save,
    thinnest,
)
from nufm.display.geometry import geometry, headline, short_name
from nufm.display.interactive import html_figure

# Mistakes stand out of grey and of each other, also without colour vision: they differ in lightness.
RIGHT, WRONG, WRONG_CLASS, MISSED, INVENTED = "#cfcfcf", "#e4002b", "#ff9500", "#101010", "#8b3dff"
SURE = ("#7fc8a9", "#56b4e9", "#e69f00", "#d00000")  # confidence, from high to low


class Shown(NamedTuple):
    """An event to show, its prediction, and what to say about it, such as "best: macro-F1 0.99"."""

    event: Event
    prediction: EventPrediction
    caption: str = ""


def draw_prediction(
    event: Event,
    prediction: EventPrediction,
    path: str | Path,
    task: Task | str,
    caption: str = "",
    simulated: bool | None = None,
    title: str | None = None,
) -> Path:
    """Draw truth, prediction and mistakes of an event side by side, in 3D and in the projection that hides least.

    Args:
        event: as read, with the truth of the task; without it only the prediction is drawn.
        prediction: of the same points in the same order.
        path: PNG to write.
        task: or its name.
        caption: added to the second line of the heading; how many points are right by default.
        simulated: add "simulated by nufm" to the heading; None asks the event's file.
        title: first line of the heading, the event's name by default.

    Raises:
        ValueError: the prediction is not of these points, or of other classes.
    """
    panels = prediction_panels(event, prediction, task)
    caption = caption or _share_right(panels)
    line = headline(event, simulated) + (f"   ·   {caption}" if caption else "")
    sheet = Sheet([len(panels)] * 2, title or short_name(event), line, panels, cell=5.4)
    if len(event) == 0:
        return save(draw_nothing(sheet), path)
    space = geometry(event)
    for column, panel in enumerate(panels):
        draw_3d(sheet.axes(0, column, projection="3d"), panel, space)
        ax = sheet.axes(1, column)
        draw_2d(ax, panel, event, space, thinnest(event, space))
        draw_legend(ax, panel)
        if panel.note:
            ax.set_title(panel.note, fontsize=10, color=INK, loc="left")
    return save(sheet.figure, path)


def prediction_sheet(
    items: Sequence[Shown], path: str | Path, task: Task | str, title: str = "", simulated: bool | None = None
) -> Path:
    """Draw several events, one a row: truth, prediction and mistakes in the projection that hides least.

    Args:
        items: events with their predictions and captions.
        path: PNG to write.
        task: or its name.
        title: heading.
        simulated: add "simulated by nufm"; None asks the file of the first event.

    Raises:
        ValueError: as :func:`draw_prediction`, or no events.
    """
    if not items:
        raise ValueError("prediction_sheet: no events to draw; pass at least one")
    items, task = [Shown(*item) for item in items], _task(task)
    rows = [prediction_panels(item.event, item.prediction, task) for item in items]
    said = headline(items[0].event, simulated).split("   ·   ")
    line = "   ·   ".join([f"task '{task.name}'", said[0], *said[3:]])
    width = max(len(panels) for panels in rows)
    entries = _common_legend(rows, task)
    # One row of the legend for every four entries, as Sheet counts two a line.
    room = [Panel("", np.zeros((0, 3)), names=("",) * (2 * (1 + -(-len(entries) // 4))))]
    sheet = Sheet([width] * len(rows), title or "truth and prediction", line, room, cell=4.6, named_rows=True)
    for row, (item, panels) in enumerate(zip(items, rows, strict=True)):
        words = (short_name(item.event), f"{len(item.event):,} voxels", item.caption or _share_right(panels))
        for column, panel in enumerate(panels):
            ax = sheet.axes(row, column)
            if column == 0:
                ax.text(
                    0, 1.125, "   ·   ".join(w for w in words if w), transform=ax.transAxes, fontsize=12, color=INK,
                    fontweight="bold",
                )  # fmt: skip
            ax.set_title(panel.title, fontsize=12, color=INK)
            if len(item.event):
                space = geometry(item.event)
                draw_2d(ax, panel, item.event, space, thinnest(item.event, space))
            else:
                ax.text(0.5, 0.5, "no voxels", ha="center", va="center", transform=ax.transAxes, color="#777777")
                ax.set(xticks=(), yticks=())
    if entries:
        _figure_legend(sheet, entries)
    return save(sheet.figure, path)


def prediction_page(
    items: Sequence[Shown], path: str | Path, task: Task | str, title: str = "", simulated: bool | None = None
) -> Path:
    """Write one HTML page of several events that can be turned and asked: a button for each event, and in each a
    button for truth, prediction, mistakes, confidence and energy.

    The page needs no network: plotly's code (about 5 MB) is in it once. Only the event shown is drawn, so that a
    page of many events opens as fast as one of a single event.

    Args:
        items: events with their predictions; captions become the buttons' second line.
        path: HTML file to write.
        task: or its name.
        title: of the page.
        simulated: add "simulated by nufm"; None asks each event's file.

    Raises:
        ValueError: as :func:`draw_prediction`, or no events.
    """
    from plotly.offline import get_plotlyjs

    if not items:
        raise ValueError("prediction_page: no events to show; pass at least one")
    items, task = [Shown(*item) for item in items], _task(task)
    figures, buttons = [], []
    for number, item in enumerate(items):
        panels = prediction_panels(item.event, item.prediction, task)
        caption = item.caption or _share_right(panels)
        panels += _class_panels(item.event, item.prediction, task)
        panels += [confidence_panel(item.prediction), energy_panel(item.event)]
        hover = _hover(item.prediction, task)
        figure = html_figure(item.event, panels=panels, simulated=simulated, hover=hover)
        figures.append(_shared_text(json.loads(figure.to_json())))
        name = f"{escape(short_name(item.event))}<small>{escape(caption)}</small>"
        buttons.append(f'<button data-event="{number}">{name}</button>')
    # "</" would end the script element; JSON reads the escape as the same character.
    data = json.dumps(figures, separators=(",", ":")).replace("</", "<\\/")
    heading = escape(title or f"truth and prediction, task '{task.name}'")
    parts = {"HEADING": heading, "BUTTONS": "\n".join(buttons), "PLOTLY": get_plotlyjs(), "EVENTS": data}
    page = "".join(parts.get(piece, piece) for piece in _PAGE.split("@@"))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>@@HEADING@@</title><style>
body { margin: 0; height: 100vh; display: flex; flex-direction: column; color: #222222;
       font-family: Helvetica, Arial, sans-serif; background: white }
header { padding: 10px 14px 4px } h1 { font-size: 18px; margin: 0 0 8px }
button { font: inherit; font-size: 13px; text-align: left; margin: 0 6px 6px 0; padding: 5px 9px; cursor: pointer;
         border: 1px solid #bbbbbb; border-radius: 4px; background: #f4f4f4 }
button[aria-pressed="true"] { background: #0072b2; border-color: #0072b2; color: white }
small { display: block; opacity: 0.8 } #view { flex: 1; min-height: 0 }
</style></head><body><header><h1>@@HEADING@@</h1><nav>
@@BUTTONS@@
</nav></header><div id="view"></div>
<script>@@PLOTLY@@</script>
<script id="events" type="application/json">@@EVENTS@@</script>
<script>
const figures = JSON.parse(document.getElementById("events").textContent);
const buttons = document.querySelectorAll("button[data-event]");
const options = {displaylogo: false, responsive: true, scrollZoom: true};
function show(number) {
  const figure = figures[number];
  for (const trace of figure.data)  // a text that several colourings show is stored once
    if (trace.rows) { trace.text = trace.rows.map(row => figure.text[row]); delete trace.rows; }
  buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === number));
  Plotly.newPlot("view", figure.data, figure.layout, options);
}
buttons.forEach((button, i) => button.addEventListener("click", () => show(i)));
show(0);
</script></body></html>
"""


def _shared_text(figure: dict) -> dict:
    """The figure with every distinct hover text once: ``text`` of the figure, ``rows`` in the traces."""
    number: dict[str, int] = {}
    for trace in figure["data"]:
        trace["rows"] = [number.setdefault(text, len(number)) for text in trace.pop("text")]
    return {"data": figure["data"], "layout": figure["layout"], "text": list(number)}


def prediction_panels(event: Event, prediction: EventPrediction, task: Task | str) -> list[Panel]:
    """Truth, prediction and mistakes; only the prediction, if the event does not carry the truth.

    Raises:
        ValueError: the prediction is not of these points, or of other classes.
    """
    task = _task(task)
    _check(event, prediction, task)
    truth = _truth(event, task)
    if task.instance is None:
        panels = [] if truth is None else [_semantic("truth", truth[0], task)]
        panels.append(_semantic("prediction", prediction.label, task))
        return panels if truth is None else [*panels, _semantic_mistakes(truth[0], prediction.label, task)]
    if prediction.instance is None:
        raise ValueError(
            f"{event.name}: the task '{task.name}' has instances, the prediction has none; it comes from a model "
            "of a semantic task"
        )
    if truth is None:
        return [_instances("prediction", prediction.instance, prediction.label, task, None)]
    partner = partners(truth[1], prediction.instance)
    return [
        _instances("truth", truth[1], truth[0], task, None),
        _instances("prediction", prediction.instance, prediction.label, task, partner, truth[1]),
        _panoptic_mistakes(truth, prediction, partner, task),
    ]


def confidence_panel(prediction: EventPrediction) -> Panel:
    """Confidence in four steps."""
    # In the type of the confidence: 0.99 as float32 is less than 0.99.
    steps = np.array([0.5, 0.9, 0.99], dtype=prediction.confidence.dtype)
    code = np.searchsorted(steps, prediction.confidence, side="right")
    names = ("0.99 and more", "0.9 to 0.99", "0.5 to 0.9", "below 0.5")
    return class_panel("confidence", 3 - code, names, SURE)


def partners(true: np.ndarray, pred: np.ndarray) -> dict[int, int]:
    """Predicted instance -> the true one whose colour it has: pairs by falling number of shared points, each
    instance once.

    Args:
        true, pred: int (N,) instance ids of an event, -1 none.
    """
    both = (true >= 0) & (pred >= 0)
    pairs, shared = np.unique(np.stack([true[both], pred[both]], axis=1), axis=0, return_counts=True)
    found: dict[int, int] = {}
    for row in np.argsort(-shared, kind="stable"):
        i, j = (int(x) for x in pairs[row])
        if j not in found and i not in found.values():
            found[j] = i
    return found


def _task(task: Task | str) -> Task:
    return task_named(task) if isinstance(task, str) else task


def _check(event: Event, prediction: EventPrediction, task: Task) -> None:
    if len(event) != len(prediction) or not np.array_equal(event.voxel, prediction.voxel):
        raise ValueError(
            f"{event.name}: the event has {len(event)} voxels, the prediction is of {len(prediction)}"
            f"{'' if len(event) != len(prediction) else ' others'} ({prediction.name}); both must be the same points "
            "in the same order: read the event with the energy threshold of the model"
        )
    if tuple(prediction.classes) != tuple(task.classes):
        raise ValueError(
            f"{event.name}: the prediction has the classes {prediction.classes}, the task '{task.name}' has "
            f"{task.classes}"
        )


def _truth(event: Event, task: Task) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Class and instance of each point; None, if the event does not carry them."""
    needed = {name: getattr(event, name) for name in (task.label, task.instance) if name is not None}
    if any(value is None for value in needed.values()):
        return None
    # A copy: an event may hold arrays that cannot be written to, which torch warns of.
    label, instance = task.targets(
        {name: torch.from_numpy(np.array(value, dtype=np.int64)) for name, value in needed.items()}, (event.name,)
    )
    return label.numpy(), None if instance is None else instance.numpy()


def class_colours(task: Task | str) -> tuple[str, ...]:
    """Colour of each class of a task."""
    task = _task(task)
    known = {MOTIF_NAMES: MOTIF_COLOURS, PID_NAMES: PID_COLOURS}
    if task.classes in known:
        return known[task.classes]
    things = iter(INSTANCE_COLOURS * (1 + len(task.classes) // len(INSTANCE_COLOURS)))
    return tuple(GREY if c == task.stuff else next(things) for c in range(len(task.classes)))


def _semantic(title: str, label: np.ndarray, task: Task) -> Panel:
    return class_panel(title, label, task.classes, class_colours(task))


def _class_panels(event: Event, prediction: EventPrediction, task: Task) -> list[Panel]:
    """Classes of both sides, where the other panels show instances."""
    if task.instance is None:
        return []
    truth = _truth(event, task)
    panels = [] if truth is None else [_semantic("class (truth)", truth[0], task)]
    return [*panels, _semantic("class (predicted)", prediction.label, task)]


def _modes(instance: np.ndarray, label: np.ndarray, n_classes: int) -> dict[int, int]:
    """Class of each instance: the mode over its points, -1 if none has a class."""
    kinds = {}
    for i in np.unique(instance[instance >= 0]):
        votes = label[(instance == i) & (label >= 0)]
        kinds[int(i)] = int(np.bincount(votes, minlength=n_classes).argmax()) if len(votes) else -1
    return kinds


def _by_size(instance: np.ndarray) -> np.ndarray:
    """Ids, largest instance first."""
    ids, counts = np.unique(instance[instance >= 0], return_counts=True)
    return ids[np.argsort(-counts, kind="stable")]


def _instances(
    title: str,
    instance: np.ndarray,
    label: np.ndarray,
    task: Task,
    partner: dict[int, int] | None,
    true: np.ndarray | None = None,
) -> Panel:
    """Instances by colour; with ``partner``, in the colours of the true instances they belong to."""
    kinds, ids = _modes(instance, label, len(task.classes)), _by_size(instance).tolist()
    if partner is None:
        colour_of = _instance_colours(instance)
    else:
        colours = _instance_colours(true)
        colour_of = {j: colours[i] for j, i in partner.items()}
        # What has no partner takes the colours that the fewest points of the truth have.
        used = dict.fromkeys(INSTANCE_COLOURS, 0)
        for i, count in zip(*np.unique(true[true >= 0], return_counts=True), strict=True):
            used[colours[int(i)]] += int(count)
        for j in ids:
            if j not in colour_of:
                colour_of[j] = min(used, key=used.__getitem__)
                used[colour_of[j]] += int((instance == j).sum())
    names = tuple(
        (task.classes[kinds[i]] if kinds[i] >= 0 else "no class")
        + f" #{i}"
        + (" (extra)" if partner is not None and i not in partner else "")
        for i in ids
    )
    row = np.full(int(instance.max(initial=-1)) + 2, -1)  # the extra last entry is what instance -1 looks up
    row[ids] = np.arange(len(ids))
    colours = tuple(colour_of[i] for i in ids)
    return coloured_classes(title, row[instance], names, colours, unknown=f"in no {task.name}", most=9)


def _instance_colours(instance: np.ndarray) -> dict[int, str]:
    """Colour of each true instance: the largest get the first, a 13th starts again."""
    return {int(i): INSTANCE_COLOURS[rank % len(INSTANCE_COLOURS)] for rank, i in enumerate(_by_size(instance))}


def _mistakes(code: np.ndarray, kinds: Sequence[tuple[str, str]], note: str) -> Panel:
    names, colours = zip(*kinds, strict=True)
    panel = coloured_classes("mistakes", code, names, colours, unknown="truth unknown")
    # Rows of the legend are the kinds that occur: find those that stay behind.
    behind = tuple(row for row, colour in enumerate(panel.colours) if colour in (RIGHT, UNKNOWN))
    return Panel(
        panel.title, panel.rgb, code=panel.code, names=panel.names, colours=panel.colours, behind=behind, note=note
    )


def _semantic_mistakes(true: np.ndarray, pred: np.ndarray, task: Task) -> Panel:
    code = np.where(true < 0, -1, (true != pred).astype(int))
    wrong = code == 1
    pairs, counts = np.unique(np.stack([true[wrong], pred[wrong]], axis=1), axis=0, return_counts=True)
    largest = np.argsort(-counts, kind="stable")[:2]
    called = [
        f"{task.classes[pairs[k, 0]]} called {task.classes[pairs[k, 1]] if pairs[k, 1] >= 0 else 'nothing'} "
        f"{counts[k]:,}"
        for k in largest
    ]
    return _mistakes(code, (("right", RIGHT), ("wrong class", WRONG)), ", ".join(called))


def _panoptic_mistakes(
    truth: tuple[np.ndarray, np.ndarray], prediction: EventPrediction, partner: dict[int, int], task: Task
) -> Panel:
    label, true = truth
    pred, n_classes = prediction.instance, len(task.classes)
    kind_true, kind_pred = _modes(true, label, n_classes), _modes(pred, prediction.label, n_classes)
    ids = int(pred.max(initial=-1)) + 1
    of = np.array([partner.get(j, -1) for j in range(ids)] + [-1])
    good = [j in partner and kind_pred[j] == kind_true[partner[j]] for j in range(ids)]
    same_class = np.array([*good, False])
    thing, found = true >= 0, pred >= 0
    code = np.zeros(len(true), dtype=int)
    code[thing & found & (of[pred] != true)] = 1
    code[thing & found & (of[pred] == true) & ~same_class[pred]] = 2
    code[thing & ~found] = 3
    code[~thing & found] = 4
    code[~thing & (label < 0)] = -1
    pairs = sum(kind_pred[j] != kind_true[i] for j, i in partner.items())
    note = f"{len(kind_true)} true, {len(kind_pred)} predicted"
    note += f", {pairs} of another class" if pairs else ""
    kinds = (
        ("right", RIGHT),
        (f"wrong {task.name}", WRONG),
        ("wrong class", WRONG_CLASS),
        ("left out", MISSED),
        ("belongs to none", INVENTED),
    )
    return _mistakes(code, kinds, note)


def _share_right(panels: Sequence[Panel]) -> str:
    if len(panels) < 3 or panels[-1].code is None or len(panels[-1].code) == 0:
        return ""
    rows = {colour: row for row, colour in enumerate(panels[-1].colours)}
    code = panels[-1].code
    judged = code != rows.get(UNKNOWN, -1)
    if not judged.any():
        return ""
    return f"{100 * float((code[judged] == rows.get(RIGHT, -1)).mean()):.1f} % of voxels right"


def _common_legend(rows: Sequence[Sequence[Panel]], task: Task) -> list[tuple[str, str]]:
    """Entries that mean the same in every event: classes of a semantic task, and kinds of mistakes."""
    entries: dict[str, str] = {}
    if task.instance is None:
        entries.update(zip(task.classes, class_colours(task), strict=True))
    for panels in rows:
        if len(panels) == 3:
            for name, colour in zip(panels[-1].names, panels[-1].colours, strict=True):
                kind = name.split("  ")[0]  # without the count
                entries.setdefault(f"mistakes: {kind}" if colour == RIGHT else kind, colour)
    return list(entries.items())


def _figure_legend(sheet: Sheet, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    style = {"linestyle": "none", "marker": "s", "markersize": 9, "markeredgecolor": "#888888", "markeredgewidth": 0.4}
    marks = [Line2D([], [], markerfacecolor=colour, label=name, **style) for name, colour in entries]
    sheet.figure.legend(
        handles=marks, loc="lower center", ncols=min(len(marks), 8), fontsize=11, frameon=False, handletextpad=0.1,
        bbox_to_anchor=(0.5, 0.08 / sheet.figure.get_figheight()),
    )  # fmt: skip


def _hover(prediction: EventPrediction, task: Task) -> list[str]:
    """What the model says about each point."""
    names = [*(escape(name) for name in task.classes), "nothing"]
    lines = [
        f"<br>predicted: {names[label]} ({confidence:.2f})"
        for label, confidence in zip(prediction.label.tolist(), prediction.confidence.tolist(), strict=True)
    ]
    if prediction.instance is not None:
        extra = [f", #{i}" if i >= 0 else "" for i in prediction.instance.tolist()]
        lines = [a + b for a, b in zip(lines, extra, strict=True)]
    if prediction.momentum is not None:
        extra = [f"<br>momentum {p:.3g} GeV/c" if p == p else "" for p in prediction.momentum.tolist()]
        lines = [a + b for a, b in zip(lines, extra, strict=True)]
    return lines
