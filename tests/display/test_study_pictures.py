"""Pictures of studies: what is drawn where, as matplotlib holds it before it is saved."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from nufm.display import studies
from nufm.display.studies import Bars, Curves, reliability_pair, study_bars, study_curves


@pytest.fixture
def figures(monkeypatch):
    """Figures that were saved, as they were drawn."""
    kept, save = [], studies.save

    def keep(figure, path):
        kept.append(figure)
        return save(figure, path)

    monkeypatch.setattr(studies, "save", keep)
    return kept


def test_lines_are_the_points_in_per_cent_in_order_of_their_values(figures, tmp_path):
    lines = {"CNN": [(0.2, 0.5, 0.05), (0.0, 0.8, None), (0.4, None, None)], "VLM": [(0.0, 0.4, None)]}
    path = study_curves(
        [Curves("accuracy", "σ (MeV)", lines, 0.36), Curves("AUC", "σ (MeV)", {"VLM": lines["VLM"]})],
        tmp_path / "deep" / "curves.png",
        "title",
    )
    assert imread(path).std() > 0.01
    first, second = figures[0].axes
    cnn, vlm = (container.lines[0] for container in first.containers)
    np.testing.assert_allclose(cnn.get_xydata(), [[0.0, 80.0], [0.2, 50.0]])  # the undefined score is left out
    assert vlm.get_color() == second.containers[0].lines[0].get_color() != cnn.get_color()
    assert 36.0 in [line.get_ydata()[0] for line in first.lines] and len(second.lines) < len(first.lines)
    assert [t.get_text() for t in figures[0].legends[0].get_texts()] == ["CNN", "VLM", "always the largest class"]
    assert first.get_xscale() == "linear"


def test_doubling_values_are_ticks_of_a_logarithmic_axis(figures, tmp_path):
    points = [(1, 0.8, None), (2, 0.6, None), (8, 0.4, None)]
    study_curves([Curves("accuracy", "edge", {"a": points}, doubling=True)], tmp_path / "c.png")
    assert list(figures[0].axes[0].get_xticks()) == [1, 2, 8] and figures[0].axes[0].get_xscale() == "log"


def test_many_panels_stand_in_rows(figures, tmp_path):
    panels = [Curves(f"panel {i}", "x", {"a": [(0, 0.5, None), (1, 0.4, 0.1)]}) for i in range(6)]
    study_curves(panels, tmp_path / "c.png", columns=4)
    corners = [ax.get_position().p0 for ax in figures[0].axes]
    assert len({round(y, 6) for _, y in corners}) == 2 and len({round(x, 6) for x, _ in corners}) == 4
    assert all(0 <= ax.get_position().y0 and ax.get_position().y1 <= 1 for ax in figures[0].axes)


def test_bars_are_as_long_as_scores_and_errors_only_where_there_are_some(figures, tmp_path):
    panels = [Bars("accuracy", [0.7, 0.4, None], [0.02, None, None], 0.36), Bars("AUC", [0.8, 0.5, 0.5])]
    assert imread(study_bars(["as it is", "worse", "none"], panels, tmp_path / "b.png")).std() > 0.01
    accuracy, auc = figures[0].axes
    np.testing.assert_allclose([bar.get_width() for bar in accuracy.patches], [70, 40, 0])
    np.testing.assert_allclose([bar.get_width() for bar in auc.patches], [80, 50, 50])
    assert "–" in [t.get_text() for t in accuracy.texts] and "40.0" in [t.get_text() for t in accuracy.texts]
    whiskers = accuracy.containers[1].lines[2][0].get_segments()
    assert len(whiskers) == 1
    np.testing.assert_allclose(whiskers[0][:, 0], [68, 72])


def test_reliability_before_and_after(figures, tmp_path):
    edges = np.linspace(0, 1, 4).tolist()
    before = {"bin_edges": edges, "bin_count": [0, 5, 10], "bin_confidence": [None, 0.5, 0.9]}
    before |= {"bin_accuracy": [None, 0.4, 0.6], "expected_error": 0.25}
    after = {**before, "bin_count": [3, 12, 0], "bin_confidence": [0.3, 0.5, None], "bin_accuracy": [0.3, 0.5, None]}
    after["expected_error"] = 0.0
    path = reliability_pair({"as it is": before, "T = 2": after}, tmp_path / "r.png", "title")
    assert imread(path).std() > 0.01
    upper = figures[0].axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in upper.patches], [0.4, 0.6])  # no bar of an empty bin
    assert upper.get_title() == "as it is: ECE 25.0 %"
    lower = [figures[0].axes[1], figures[0].axes[3]]
    assert lower[0].get_ylim() == lower[1].get_ylim() and lower[0].get_ylim()[1] > 12


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="no lines to draw"):
        study_curves([Curves("accuracy", "x", {})], tmp_path / "c.png")
    with pytest.raises(ValueError, match="0 cases"):
        study_bars([], [Bars("accuracy", [])], tmp_path / "b.png")
    with pytest.raises(ValueError, match="'accuracy' has 1 scores and 0 errors for 2 cases"):
        study_bars(["a", "b"], [Bars("accuracy", [0.5])], tmp_path / "b.png")
