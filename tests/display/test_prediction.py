"""Truth beside prediction: right colours, right mistakes, a page that holds every event."""

from __future__ import annotations

import json
import re

import matplotlib.image
import numpy as np
import pytest

from nufm.data.event import PID_NAMES, Event
from nufm.data.prediction import EventPrediction
from nufm.data.tasks import TASKS
from nufm.display.colours import INSTANCE_COLOURS
from nufm.display.interactive import html_figure
from nufm.display.prediction import (
    INVENTED,
    MISSED,
    RIGHT,
    WRONG,
    WRONG_CLASS,
    Shown,
    class_colours,
    confidence_panel,
    draw_prediction,
    partners,
    prediction_page,
    prediction_panels,
    prediction_sheet,
)


def predicted(event: Event, label, task: str, instance=None, **more) -> EventPrediction:
    n = len(event)
    confidence = np.full(n, 0.95, dtype=np.float32)
    instance = None if instance is None else np.asarray(instance)
    classes = TASKS[task].classes
    label = np.asarray(label)
    return EventPrediction(event.name, classes, event.voxel, event.energy, label, confidence, None, instance, **more)


def hexes(rgb: np.ndarray) -> np.ndarray:
    return np.array([f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.rint(np.asarray(rgb) * 255).astype(int)])


def line_of(n: int) -> Event:
    """n voxels in a row."""
    voxel = np.stack([100 + np.arange(n), np.full(n, 300), np.full(n, 400)], axis=1).astype(np.int32)
    return Event(voxel, np.ones(n, dtype=np.float32), name="line")


def pixels(path, colour: str) -> int:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    picture = np.rint(matplotlib.image.imread(path)[..., :3] * 255)
    return int((np.abs(picture - rgb).max(-1) <= 2).sum())


def test_semantic_panels(genuine) -> None:
    label = genuine.motif.copy()
    label[:50] = (label[:50] + 1) % 5
    truth = genuine.motif.copy()
    truth[100:110] = -1
    panels = prediction_panels(genuine.replace(motif=truth), predicted(genuine, label, "motif"), "motif")
    assert [p.title for p in panels] == ["truth", "prediction", "mistakes"]
    colours = np.array(class_colours("motif"))
    np.testing.assert_array_equal(hexes(panels[1].rgb), colours[label])
    np.testing.assert_array_equal(hexes(panels[2].rgb) == WRONG, label != np.where(truth < 0, label, truth))
    assert panels[2].names[0].startswith("right  1,330 ")
    assert panels[2].colours[panels[2].behind[0]] == RIGHT and len(panels[2].behind) == 2
    called = genuine.motif[:50]
    most = np.bincount(called).argmax()
    first = f"{TASKS['motif'].classes[most]} called {TASKS['motif'].classes[(most + 1) % 5]} {(called == most).sum()}"
    assert panels[2].note.startswith(first)


def test_without_truth_only_the_prediction(genuine, tmp_path) -> None:
    bare = genuine.replace(motif=None, pid=None, particle=None, interaction=None)
    prediction = predicted(genuine, genuine.motif, "motif")
    assert [p.title for p in prediction_panels(bare, prediction, "motif")] == ["prediction"]
    assert draw_prediction(bare, prediction, tmp_path / "a.png", "motif").is_file()
    prediction = predicted(genuine, genuine.pid, "particle", genuine.particle)
    assert [p.title for p in prediction_panels(bare, prediction, "particle")] == ["prediction"]


def test_partners_share_most_points_one_to_one() -> None:
    true = np.array([0] * 6 + [1] * 4 + [-1] * 2)
    #          0 is cut into 5 (4 points) and 3 (2); 3 also has three points of 1, 9 has one
    pred = np.array([5] * 4 + [3] * 2 + [3] * 3 + [9] + [9, -1])
    assert partners(true, pred) == {5: 0, 3: 1}
    assert partners(true, np.full(12, -1)) == {}


def test_panoptic_panels_by_hand() -> None:
    """A muon of 4, a proton of 3, a shower of 3 voxels, 2 of background. The muon is cut in two, the proton called
    pion, the shower left out but for one voxel that the second half of the muon took, one background voxel taken."""
    event = line_of(12).replace(
        particle=np.array([0] * 4 + [1] * 3 + [2] * 3 + [-1] * 2), pid=np.array([2] * 4 + [4] * 3 + [0] * 3 + [5] * 2)
    )
    instance = np.array([7, 7, 7, 1, 3, 3, 3, -1, -1, 1, 3, -1])
    label = np.array([2, 2, 2, 2, 3, 3, 3, 5, 5, 2, 3, 5])
    truth, found, mistakes = prediction_panels(event, predicted(event, label, "particle", instance), "particle")
    blue, orange, green = INSTANCE_COLOURS[:3]  # of the truth, by size
    assert hexes(truth.rgb)[:10].tolist() == [blue] * 4 + [orange] * 3 + [green] * 3
    shown = hexes(found.rgb)
    assert shown[:3].tolist() == [blue] * 3 and shown[[4, 5, 6, 10]].tolist() == [orange] * 4
    # Instance 1 shares one point with the muon, whose partner is 7, and one with the shower.
    assert shown[[3, 9]].tolist() == [green] * 2
    marks = [RIGHT] * 3 + [WRONG] + [WRONG_CLASS] * 3 + [MISSED] * 2 + [WRONG_CLASS] + [INVENTED, RIGHT]
    assert hexes(mistakes.rgb).tolist() == marks
    assert mistakes.note == "3 true, 3 predicted, 2 of another class"
    assert truth.names[0] == "muon #0  4 (33 %)" and "pion #3" in found.names[0]


def test_extra_instances_have_their_own_colour() -> None:
    n = 14 * 4 + 4
    true = np.r_[np.repeat(np.arange(14), 4), np.full(4, -1)]
    event = line_of(n).replace(particle=true, pid=np.where(true >= 0, 2, 5))
    instance = np.where(true == 0, np.where(np.arange(n) < 3, 0, 14), true)
    _, found, _ = prediction_panels(event, predicted(event, event.pid, "particle", instance), "particle")
    # 14 particles wrap 12 colours: the first two are worn twice, so the extra takes another.
    colours = hexes(found.rgb)
    assert colours[3] not in (INSTANCE_COLOURS[0], INSTANCE_COLOURS[1]) and colours[0] == INSTANCE_COLOURS[0]
    assert (colours[56:] == "#d8d8d8").all()


def test_pictures(genuine, tmp_path) -> None:
    label = genuine.motif.copy()
    track = label == 1
    label[track & (np.arange(len(label)) % 3 == 0)] = 3
    path = draw_prediction(genuine, predicted(genuine, label, "motif"), tmp_path / "new" / "a.png", "motif")
    picture = matplotlib.image.imread(path)
    assert picture.shape[1] > 2000 and 0.02 < (picture[..., :3] < 0.99).any(-1).mean() < 0.5
    thirds = np.array_split(np.rint(picture[..., :3] * 255).astype(int), 3, axis=1)
    red = [int((t == [0xE4, 0x00, 0x2B]).all(-1).sum()) for t in thirds]
    assert red[0] == red[1] == 0 and red[2] > 1000
    delta = [int((t == [0x88, 0x22, 0x55]).all(-1).sum()) for t in thirds]
    assert delta[1] > 2 * delta[0] and delta[2] == 0
    particle = predicted(genuine, genuine.pid, "particle", np.where(genuine.particle == 0, -1, genuine.particle))
    path = draw_prediction(genuine, particle, tmp_path / "b.png", "particle")
    assert pixels(path, MISSED) > 1000 and pixels(path, WRONG) == 0
    interaction = predicted(genuine, (genuine.interaction >= 0) * 1, "interaction", genuine.interaction)
    path = draw_prediction(genuine, interaction, tmp_path / "c.png", "interaction", caption="perfect")
    assert pixels(path, WRONG) == pixels(path, INVENTED) == 0
    assert pixels(path, MISSED) < 500  # edges of letters
    assert pixels(path, INSTANCE_COLOURS[0]) > 2000


def test_empty_and_single(empty, single, tmp_path) -> None:
    for event in (empty, single):
        nothing = np.full(len(event), -1)
        semantic, found = predicted(event, nothing, "pid"), predicted(event, nothing, "particle", nothing)
        for task, prediction in (("pid", semantic), ("particle", found)):
            assert draw_prediction(event, prediction, tmp_path / f"{task}.png", task).is_file()
            assert prediction_page([Shown(event, prediction)], tmp_path / "page.html", task).is_file()
    items = [Shown(e, predicted(e, np.full(len(e), -1), "pid")) for e in (empty, single)]
    assert prediction_sheet(items, tmp_path / "sheet.png", "pid").is_file()


def test_sheet(genuine, tmp_path) -> None:
    wrong = predicted(genuine, (genuine.motif + 1) % 5, "motif")
    good = predicted(genuine, genuine.motif, "motif")
    heights = []
    for items in ([Shown(genuine, good, "best")], [Shown(genuine, good, "best"), Shown(genuine, wrong, "worst")]):
        path = prediction_sheet(items, tmp_path / "sheet.png", "motif", "best and worst")
        heights.append(matplotlib.image.imread(path).shape[0])
        assert (pixels(path, WRONG) > 2000) == (len(items) == 2)
    assert heights[1] > 1.4 * heights[0]
    with pytest.raises(ValueError, match="no events"):
        prediction_sheet([], tmp_path / "x.png", "motif")


def test_page(genuine, single, tmp_path) -> None:
    momentum = np.where(np.arange(len(genuine)) < 5, 0.25, np.nan).astype(np.float32)
    first = predicted(genuine, genuine.pid, "particle", genuine.particle, momentum=momentum)
    second = predicted(single, single.pid, "particle", single.particle)
    items = [Shown(genuine, first, "best: F1 <1>"), Shown(single, second, "worst")]
    path = prediction_page(items, tmp_path / "new" / "page.html", "particle", "a & b")
    page = path.read_text(encoding="utf-8")
    # Offline, plotly once, captions as text.
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert page.count("plotly.js v") == 1 and len(page) < 8_000_000
    assert "<small>best: F1 &lt;1&gt;</small>" in page and "<title>a &amp; b</title>" in page
    assert re.findall(r'data-event="(\d+)"', page) == ["0", "1"]
    start = page.index('type="application/json">') + len('type="application/json">')
    figures = json.loads(page[start : page.index("</script>", start)])
    titles = ["truth", "prediction", "mistakes", "class (truth)", "class (predicted)", "confidence", "energy"]
    assert [b["label"] for b in figures[0]["layout"]["updatemenus"][0]["buttons"]] == titles
    for figure, event in zip(figures, (genuine, single), strict=True):
        for button in figure["layout"]["updatemenus"][0]["buttons"]:
            shown = [t for t, visible in zip(figure["data"], button["args"][0]["visible"], strict=True) if visible]
            assert sum(len(t["rows"]) for t in shown) == len(event)  # every voxel in every colouring
    # The texts, stored once, come back as the figure had them.
    text = figures[0]["text"]
    assert len(set(text)) == len(text) <= len(genuine)
    energy = [text[row] for row in figures[0]["data"][-1]["rows"]]
    plain = html_figure(genuine).data[0].text
    kind = PID_NAMES[genuine.pid[0]]
    number = f", #{genuine.particle[0]}" if genuine.particle[0] >= 0 else ""
    assert energy[0] == f"{plain[0]}<br>predicted: {kind} (0.95){number}<br>momentum 0.25 GeV/c"
    assert energy[5] == plain[5] + f"<br>predicted: {PID_NAMES[genuine.pid[5]]} (0.95)" + (
        f", #{genuine.particle[5]}" if genuine.particle[5] >= 0 else ""
    )
    with pytest.raises(ValueError, match="no events"):
        prediction_page([], path, "motif")


def test_confidence(genuine) -> None:
    prediction = predicted(genuine.select(np.arange(6)), np.zeros(6, dtype=int), "motif")
    confidence = np.array([1.0, 0.99, 0.95, 0.5, 0.49, 0.0], dtype=np.float32)
    panel = confidence_panel(EventPrediction(**{**vars(prediction), "confidence": confidence}))
    assert [n.split("  ")[0] for n in panel.names] == ["0.99 and more", "0.9 to 0.99", "0.5 to 0.9", "below 0.5"]
    assert panel.code.tolist() == [0, 0, 1, 2, 3, 3]


def test_what_does_not_fit_is_refused(genuine, tmp_path) -> None:
    good = predicted(genuine, genuine.motif, "motif")
    shorter = genuine.select(np.arange(100))
    with pytest.raises(ValueError, match="100 voxels, the prediction is of 1390"):
        draw_prediction(shorter, good, tmp_path / "a.png", "motif")
    moved = genuine.replace(voxel=genuine.voxel + 1)
    with pytest.raises(ValueError, match="the prediction is of 1390 others"):
        draw_prediction(moved, good, tmp_path / "a.png", "motif")
    with pytest.raises(ValueError, match="prediction has the classes"):
        draw_prediction(genuine, good, tmp_path / "a.png", "pid")
    with pytest.raises(ValueError, match="the prediction has none"):
        draw_prediction(genuine, predicted(genuine, genuine.pid, "particle"), tmp_path / "a.png", "particle")
    with pytest.raises(ValueError, match="unknown task 'colour'"):
        draw_prediction(genuine, good, tmp_path / "a.png", "colour")
    assert not list(tmp_path.iterdir())
