"""Panels of scores against labelled events show what they are given."""

from __future__ import annotations

import pytest

from nufm.display import budgets
from nufm.display.budgets import budget_curves


def test_lines_are_means_and_dots_are_seeds(tmp_path, monkeypatch):
    kept, save = [], budgets.save
    monkeypatch.setattr(budgets, "save", lambda figure, path: kept.append(figure) or save(figure, path))
    lines = {"Scratch": {100: [0.6, 0.7], 1000: [0.8]}, "MAE": {100: [0.9], 1000: [0.95]}}
    path = budget_curves({"AUC": (lines, True), "vertex": (lines, False)}, tmp_path / "a.png", "in small")
    assert path.read_bytes()[:4] == b"\x89PNG"
    (figure,) = kept
    left, right = figure.axes
    assert left.get_title().endswith("↑ better") and right.get_title().endswith("↓ better")
    drawn = {line.get_label(): line.get_ydata().tolist() for line in left.lines}
    assert drawn["Scratch"] == pytest.approx([0.65, 0.8]) and drawn["MAE"] == pytest.approx([0.9, 0.95])
    assert sum(len(c.get_offsets()) for c in left.collections) == 5


@pytest.mark.parametrize("points", [{0: [0.5]}, {100: []}])
def test_no_score_or_no_events_is_refused(tmp_path, points):
    with pytest.raises(ValueError, match="'MAE' has"):
        budget_curves({"AUC": ({"MAE": points}, True)}, tmp_path / "a.png")


def test_nothing_to_draw(tmp_path):
    assert budget_curves({}, tmp_path / "a.png").is_file()
