"""Pictures of scores show the numbers they are given."""

from __future__ import annotations

import itertools

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from nufm.display import scores
from nufm.display.scores import confusion_matrix, per_class_bars, reliability_diagram, score_curves
from nufm.metrics import Calibration

CLASSES = ("shower", "track", "Michel", "delta", "LED")


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that were saved."""
    kept, save = [], scores.save
    monkeypatch.setattr(scores, "save", lambda figure, path: kept.append(figure) or save(figure, path))
    return kept


def words(thing) -> list[str]:
    return [t.get_text() for t in thing.findobj(Text) if t.get_text()]


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other, of those that are drawn (tick labels outside the axes are not)."""
    canvas, drawn, draw = FigureCanvasAgg(figure), [], Text.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", lambda self, renderer: drawn.append(self) or draw(self, renderer))
        canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in drawn if t.get_visible() and t.get_text().strip()]
    assert len(boxes) > 10
    return [
        (a, b)
        for (a, one), (b, two) in itertools.combinations(boxes, 2)
        if one.padded(-1).overlaps(two.padded(-1))
    ]


def test_confusion_matrix(figures, tmp_path) -> None:
    counts = np.array([[900, 100, 0, 0, 0], [0, 2_000_000, 3, 0, 0], [0, 1, 1, 0, 0], [0] * 5, [1, 0, 0, 0, 999]])
    path = confusion_matrix(counts, CLASSES, tmp_path / "new" / "a.png", "motif")
    assert matplotlib.image.imread(path).shape[1] > 800
    ax = figures[0].axes[0]
    cells = {(round(t.get_position()[0]), round(t.get_position()[1])): [] for t in ax.texts}
    for text in ax.texts:
        x, y = text.get_position()
        cells[round(x), round(y)].append(text.get_text())
    assert sorted(cells[0, 0]) == ["90.0 %", "900"] and sorted(cells[1, 0]) == ["10.0 %", "100"]
    assert sorted(cells[1, 1]) == ["100.0 %", "2.00 M"] and sorted(cells[2, 1]) == ["3", "<0.1 %"]
    assert cells[2, 0] == ["0"] and cells[3, 3] == ["–"]  # column, row: no true delta
    image = ax.images[0].get_array()
    np.testing.assert_allclose(image[2], [0, 0.5, 0.5, 0, 0])
    assert ax.get_xlabel() == "prediction" and ax.get_ylabel() == "truth (voxels)"
    assert not overlaps(figures[0])


def test_confusion_with_a_column_of_no_class(figures, tmp_path) -> None:
    confusion_matrix(np.eye(3, 4, dtype=int) * 5, ("a", "b", "none"), tmp_path / "a.png", noun="particles")
    assert [t.get_text() for t in figures[0].axes[0].get_xticklabels()] == ["a", "b", "none", "no class"]
    confusion_matrix(np.zeros((2, 2), dtype=int), ("a", "b"), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(3, 3\) or \(3, 4\)"):
        confusion_matrix(np.zeros((2, 2)), ("a", "b", "c"), tmp_path / "x.png")
    with pytest.raises(ValueError, match="negative"):
        confusion_matrix(np.full((2, 2), -1), ("a", "b"), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_reliability_diagram(figures, tmp_path) -> None:
    metric = Calibration(10)
    torch.manual_seed(0)
    confidence = torch.rand(3000) * 0.7 + 0.3
    metric.update(confidence, torch.rand(3000) < confidence**2)
    result = metric.compute()
    reliability_diagram(result, tmp_path / "a.png", "motif")
    upper, lower = figures[0].axes
    shown = next(line for line in upper.lines if len(line.get_xdata()) == 7)
    np.testing.assert_allclose(shown.get_xdata(), result["bin_confidence"][3:])
    np.testing.assert_allclose(shown.get_ydata(), result["bin_accuracy"][3:])
    assert [round(p.get_height()) for p in lower.patches] == result["bin_count"].tolist()
    assert f"expected error {float(result['expected_error']):.3f}" in " ".join(words(figures[0]))
    assert "Brier" not in " ".join(words(figures[0]))  # no probabilities were given
    assert not overlaps(figures[0])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reliability_of_nothing(figures, tmp_path) -> None:
    reliability_diagram(Calibration(4).compute(), tmp_path / "a.png")
    assert "no points" in words(figures[0])
    bad = Calibration(4).compute() | {"bin_count": torch.zeros(3)}
    with pytest.raises(ValueError, match="5 edges for 3 counts"):
        reliability_diagram(bad, tmp_path / "x.png")


def test_per_class_bars(figures, tmp_path) -> None:
    table = {"precision": [0.9, 0.8, np.nan, 0.5, 1.0], "F1": torch.tensor([0.5, 0.5, 0.0, 0.5, 1.0])}
    per_class_bars(table, CLASSES, tmp_path / "a.png")
    ax: Axes = figures[0].axes[0]
    heights = [p.get_height() for p in ax.patches]
    np.testing.assert_allclose(heights, [90, 80, 0, 50, 100, 80, 50, 50, 0, 50, 100, 50])
    assert "–" in words(ax)
    assert not overlaps(figures[0])
    with pytest.raises(ValueError, match=r"'F1' has shape \(2,\), expected \(5,\)"):
        per_class_bars({"F1": [0.1, 0.2]}, CLASSES, tmp_path / "x.png")


LINES = {
    "UResNet": {10: [0.4, 0.5, 0.6], 1000: [0.7, 0.7, 0.7], 100: [0.6]},
    "full": {10: [0.8], 1000: [0.9]},
}


def test_score_curves(figures, tmp_path) -> None:
    path = score_curves(LINES, tmp_path / "a.png", {"full": {100: 0.928, 1e6: 0.988}, "lin": {100: 0.922}})
    ax = figures[0].axes[0]
    drawn = {(line.get_color(), line.get_linestyle()): line for line in ax.lines}
    solid = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [line.get_xdata().tolist() for line in solid] == [[10, 100, 1000], [10, 1000]]
    np.testing.assert_allclose(solid[0].get_ydata(), [50, 60, 70])
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2 and len(drawn) == 4
    assert dashed[0].get_color() == solid[1].get_color()  # the same method
    np.testing.assert_allclose(dashed[0].get_ydata(), [92.8, 98.8])
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "macro-F1 (%)"
    legend = words(figures[0])
    assert {"UResNet", "full", "lin", "published"} <= set(legend)
    band = ax.collections[0].get_paths()[0].vertices  # standard deviation over three seeds: 10 per cent
    at_ten = band[np.isclose(band[:, 0], 10), 1]
    assert at_ten.min() == pytest.approx(40) and at_ten.max() == pytest.approx(60)
    assert not overlaps(figures[0])
    assert matplotlib.image.imread(path).shape[1] > 1000


def test_score_curves_of_nothing_and_bad_input(figures, tmp_path) -> None:
    score_curves({}, tmp_path / "a.png")
    assert "no scores" in words(figures[0])
    score_curves({"one": {5: [0.5]}}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="'m' has a budget of 0 events"):
        score_curves({"m": {0: [0.5]}}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="'m' has no score at 5 events"):
        score_curves({"m": {5: []}}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="published 'm' has a budget of -1"):
        score_curves({}, tmp_path / "x.png", {"m": {-1: 0.5}})
    assert not (tmp_path / "x.png").exists()
