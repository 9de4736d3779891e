"""Pictures of the scores of whole events show the numbers they are given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Text
from sklearn.metrics import roc_auc_score, roc_curve

from nufm.display import event_scores
from nufm.display.event_scores import reconstructed, roc_curves, roc_points

NAMES = ("νµ CC", "νe CC", "NC")


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that were saved."""
    kept, save = [], event_scores.save
    monkeypatch.setattr(event_scores, "save", lambda figure, path: kept.append(figure) or save(figure, path))
    return kept


def words(thing) -> str:
    return " | ".join(t.get_text() for t in thing.findobj(Text) if t.get_text())


@pytest.mark.parametrize("digits", [6, 1])
def test_points_of_the_curve_are_those_of_scikit_learn(digits):
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.3
    score = np.round(rng.normal(size=300) + positive, digits)
    x, y = roc_points(score, positive)
    expected = roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(x, expected[0])
    np.testing.assert_allclose(y, expected[1])
    area = ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()
    assert area == pytest.approx(roc_auc_score(positive, score))


def test_roc_curves(figures, tmp_path):
    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 100)
    score = rng.dirichlet(np.ones(3), 100) + np.eye(3)[target]
    path = roc_curves(score, target, NAMES, [0.91, 0.89, None], tmp_path / "roc.png", "flavour")
    said = words(figures[0])
    assert path.is_file() and "νµ CC  91.0" in said and "νe CC  89.0" in said and "NC" not in said
    lines = figures[0].axes[0].lines
    assert len(lines) == 3, "chance and two classes"
    np.testing.assert_allclose(lines[1].get_xydata().T, roc_points(score[:, 0], target == 0))


@pytest.mark.parametrize("n", [0, 1, 50])
def test_reconstructed(figures, tmp_path, n):
    """A dot for each event with positive values, in the colour of its group; few events and none can be drawn."""
    rng = np.random.default_rng(2)
    true = rng.exponential(100, n)
    found, group = true * rng.normal(1, 0.1, n), rng.integers(0, 3, n)
    true[: n // 2] = 0
    panels = {"jet": (found, true), "lepton": (true, true)}
    reconstructed(panels, tmp_path / "a.png", "GeV/c", "events", {"jet": "σ_MAD 0.1"}, group=group, names=NAMES)
    dots = [c.get_offsets() for c in figures[0].axes[0].collections]
    kept = np.flatnonzero(true > 0)
    assert len(dots) == 3 and sum(map(len, dots)) == len(kept)
    for c, own in enumerate(dots):
        rows = kept[group[kept] == c]
        np.testing.assert_allclose(np.asarray(own), np.column_stack([true[rows], found[rows]]))
    said = words(figures[0])
    assert "σ_MAD 0.1" in said and "lepton" in said and "true (GeV/c)" in said and "NC" in said


def test_a_wild_prediction_does_not_hide_the_others(figures, tmp_path):
    true = np.linspace(-100, 100, 2000)
    found = true.copy()
    found[7] = 1e9
    reconstructed({"x": (found, true)}, tmp_path / "a.png", "mm", logarithmic=False)
    assert max(map(abs, figures[0].axes[0].get_xlim())) < 200


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="expected"):
        roc_curves(np.zeros((4, 2)), np.zeros(4, int), NAMES, [None] * 3, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"'jet' has \(3,\) predictions for \(4,\) truths"):
        reconstructed({"jet": (np.zeros(3), np.zeros(4))}, tmp_path / "a.png")
