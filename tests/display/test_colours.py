"""Colourings: principal components against scikit-learn, classes, legends."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.decomposition import PCA

from nufm.data.event import MOTIF_NAMES, PID_NAMES
from nufm.display.colours import (
    INSTANCE_COLOURS,
    MOTIF_COLOURS,
    PID_COLOURS,
    PCAColours,
    class_panel,
    energy_panel,
    event_panels,
    particle_panel,
    pca_colours,
    rgb_panel,
)


def features(n: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, width)) * np.linspace(5, 1, width) + rng.normal(size=width)).astype(
        np.float32
    )


@pytest.mark.parametrize(("n", "width"), [(500, 20), (30, 200), (4, 3)])
def test_components_are_those_of_scikit_learn(n: int, width: int) -> None:
    feat = features(n, width)
    ours = PCAColours.fit(feat).components(feat)
    theirs = PCA(3, svd_solver="full").fit_transform(feat.astype(np.float64))
    theirs *= np.sign((ours * theirs).sum(0))  # scikit-learn has its own rule for signs
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max())


def test_signs_do_not_depend_on_the_solver() -> None:
    """The largest entry of each direction is positive, and a shift of the features changes nothing."""
    feat = features(300, 10)
    fitted = PCAColours.fit(feat)
    assert (fitted.axes[np.abs(fitted.axes).argmax(0), range(3)] > 0).all()
    np.testing.assert_allclose(pca_colours(feat + 3), pca_colours(feat), atol=1e-5)
    assert (pca_colours(feat) == pca_colours(feat.copy())).all()
    order = np.random.default_rng(1).permutation(len(feat))
    np.testing.assert_allclose(pca_colours(feat[order]), pca_colours(feat)[order], atol=1e-9)


def test_range_ignores_outliers() -> None:
    feat = features(1000, 6)
    rgb = pca_colours(feat)
    feat[:3] *= 1e4
    stretched = PCAColours.fit(feat, (0, 100))(feat)[3:]
    assert rgb.min() == 0 and rgb.max() == 1 and rgb.std() > 0.2
    assert stretched.std(0).max() < 0.01 < 0.2 < PCAColours.fit(feat)(feat)[3:].std(0).min()


def test_fitted_to_one_event_applied_to_another() -> None:
    a, b = features(200, 8), features(50, 8, seed=1)
    both = pca_colours(np.concatenate([a, b]), fit_to=a)
    np.testing.assert_allclose(pca_colours(b, fit_to=a), both[200:])
    assert np.abs(pca_colours(b, fit_to=a) - pca_colours(b)).max() > 0.05
    with pytest.raises(ValueError, match=r"7 columns.*8"):
        pca_colours(features(5, 7), fit_to=a)


def test_many_points_are_fitted_on_some_of_them() -> None:
    feat = features(20000, 5)
    whole, some = PCAColours.fit(feat, most=10**6), PCAColours.fit(feat)
    np.testing.assert_allclose((whole.axes * some.axes).sum(0), 1, atol=0.01)
    assert not np.array_equal(whole.axes, some.axes)


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 50])
def test_few_points_and_columns(n: int, width: int) -> None:
    rgb = pca_colours(features(n, width))
    assert rgb.shape == (n, 3) and ((rgb >= 0) & (rgb <= 1)).all()


def test_constant_features_are_grey() -> None:
    assert (pca_colours(np.full((50, 8), 1e6 + 0.1, dtype=np.float32)) == 0.5).all()
    flat = np.zeros((50, 4))
    flat[:, 1] = np.arange(50)  # one direction varies
    rgb = pca_colours(flat)
    assert np.ptp(rgb[:, 0]) == 1 and (rgb[:, 1:] == 0.5).all()


@pytest.mark.parametrize(
    ("feat", "message"),
    [
        (np.zeros(3), r"\(3,\)"),
        (np.zeros((3, 0)), r"\(3, 0\)"),
        (np.array([[0.0], [np.nan]]), "point 1 are not"),
    ],
)
def test_bad_features_are_refused(feat: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pca_colours(feat)


def test_class_colours_can_be_told_apart() -> None:
    """Also without red- or green-sensitive cones (Viénot, Brettel, Mollon 1999, on linear RGB)."""
    kinds = {
        "protan": [[0.1124, 0.8876, 0.0], [0.1124, 0.8876, 0.0], [0.004, -0.004, 1.0]],
        "deutan": [[0.2928, 0.7072, 0.0], [0.2928, 0.7072, 0.0], [-0.0223, 0.0223, 1.0]],
        "normal": np.eye(3),
    }
    for colours, least in ((MOTIF_COLOURS, 0.2), (PID_COLOURS, 0.2), (INSTANCE_COLOURS[:6], 0.14)):
        rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours]) ** 2.2
        for kind, matrix in kinds.items():
            seen = (rgb @ np.array(matrix).T).clip(0, 1) ** (1 / 2.2)
            apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(len(seen), dtype=bool)]
            assert apart.min() > least, (kind, colours)
    assert len(MOTIF_COLOURS) == len(MOTIF_NAMES) and len(PID_COLOURS) == len(PID_NAMES)


def test_panels_of_the_genuine_event(genuine) -> None:
    energy, motif, pid, particle = event_panels(genuine)
    assert [p.title for p in (motif, pid, particle)] == [
        "motif (truth)",
        "particle type (truth)",
        "particle (truth)",
    ]
    assert energy.limits[0] >= 0.13 and 1 < energy.limits[1] < genuine.energy.max()
    counts = dict(re.match(r"(\w+)  (\d+)", name).groups() for name in motif.names)
    expected = {MOTIF_NAMES[c]: str((genuine.motif == c).sum()) for c in np.unique(genuine.motif)}
    assert counts == expected
    track = next(i for i, name in enumerate(motif.names) if name.startswith("track"))
    assert ((motif.code == track) == (genuine.motif == 1)).all()
    assert np.allclose(motif.rgb[genuine.motif == 1], [0xE6 / 255, 0x9F / 255, 0])
    largest = np.bincount(genuine.particle[genuine.particle >= 0]).argmax()
    kind = PID_NAMES[genuine.pid[genuine.particle == largest][0]]
    assert particle.names[0].startswith(f"{kind} #{largest} ")
    assert particle.names[-1].startswith("in no particle  113")


def test_brighter_means_less_energy(genuine) -> None:
    panel = energy_panel(genuine)
    order = np.argsort(genuine.energy)
    luminance = panel.rgb @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance[order]) <= 1e-3).all()
    assert luminance.max() < 0.85  # seen on white


def test_absent_truth_has_no_panel(genuine) -> None:
    bare = genuine.replace(motif=None, pid=None, particle=None)
    assert [p.title for p in event_panels(bare)] == ["energy"]
    v1 = particle_panel(genuine.replace(pid=None))
    assert v1.names[0].startswith("#")


def test_many_particles(genuine) -> None:
    many = genuine.replace(particle=np.arange(len(genuine)) // 20)
    panel = particle_panel(many)
    assert len(panel.names) == 11 and panel.names[-1].startswith("60 more  1,190")
    assert (panel.code == 10).sum() == 1190


def test_unlabelled_points(genuine) -> None:
    panel = class_panel("motif", np.full(len(genuine), -1), MOTIF_NAMES, MOTIF_COLOURS)
    assert panel.names == ("unlabelled  1,390 (all)",)
    with pytest.raises(ValueError, match=r"point 3 has class 5, expected -1\.\.4"):
        class_panel("motif", np.array([0, 0, -1, 5]), MOTIF_NAMES, MOTIF_COLOURS)


def test_colours_must_fit_the_event(genuine) -> None:
    for rgb, message in (
        (np.zeros((3, 3)), r"expected \(1390, 3\)"),
        (np.full((1390, 3), 1.1), r"in \[0, 1\]"),
        (np.full((1390, 3), np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            rgb_panel(genuine, "features", rgb)
