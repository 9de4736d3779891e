"""Pictures of reconstructions, and the numbers in them, against brute force."""

from __future__ import annotations

import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest
from made_tokens import tokens_of, track
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr

from nufm.data.tokens import EventReconstruction, EventTokens
from nufm.display import reconstruction
from nufm.display.reconstruction import (
    draw_reconstruction,
    hidden_text,
    log_correlation,
    nearest_energies,
    token_distance,
)

SLOTS = 12


def made(
    tokens: EventTokens, hidden: np.ndarray, error: float = 0.0, energies: bool = True, infilling: bool = True
) -> EventReconstruction:
    """The truth, in another order, moved by ``error`` voxels at random; what does not count lies far away."""
    rng = np.random.default_rng(1)
    event, hidden = tokens.event, np.asarray(hidden, dtype=bool)
    position = np.full((int(hidden.sum()), SLOTS, 3), -1e4)
    energy = np.full(position.shape[:2], 1e4)
    for place, token in enumerate(np.flatnonzero(hidden)):
        rows = rng.permutation(tokens.members[tokens.starts[token] : tokens.starts[token + 1]])
        position[place, : len(rows)] = event.voxel[rows] + error * rng.normal(size=(len(rows), 3))
        energy[place, : len(rows)] = event.energy[rows]
    rows = tokens.members[hidden[tokens.token]]
    return EventReconstruction(
        tokens, hidden, position, energy if energies else None, event.energy[rows] if infilling else None
    )


@pytest.fixture
def tokens(genuine) -> EventTokens:
    """Balls of 5 around voxels of the genuine event."""
    return tokens_of(genuine, genuine.voxel[::7], radius=5.0, max_points=SLOTS)


@pytest.fixture
def hidden(tokens) -> np.ndarray:
    return np.random.default_rng(2).random(len(tokens)) < 0.6


def test_distance_against_brute_force(tokens, hidden) -> None:
    found = made(tokens, hidden, error=1.5)
    distance = token_distance(found)
    for place, token in enumerate(np.flatnonzero(hidden)):
        rows = tokens.members[tokens.starts[token] : tokens.starts[token + 1]]
        between = cdist(tokens.event.voxel[rows], found.position[place, : len(rows)])
        expected = (between.min(0).mean() + between.min(1).mean()) / 2
        assert distance[place] == pytest.approx(expected) if len(rows) > 2 else np.isnan(distance[place])
    assert np.isnan(distance).any() and np.isfinite(distance).sum() > 10


def test_the_truth_is_at_distance_zero_and_what_is_said_of_others_is_not(tokens, hidden) -> None:
    found = made(tokens, hidden)
    judged = found.counts > 2
    np.testing.assert_allclose(token_distance(found)[judged], 0, atol=1e-9)
    assert np.median(token_distance(found, shift=3)[judged]) > 0.5
    everything = token_distance(found, shift=len(judged))  # once around
    np.testing.assert_allclose(everything, token_distance(found))


def test_the_same_said_of_all_is_as_good_for_each_as_for_another(tokens, hidden) -> None:
    """What a model that looks at nothing gives."""
    found = made(tokens, hidden)
    local = np.random.default_rng(0).normal(size=(SLOTS, 3))
    same = EventReconstruction(tokens, hidden, tokens.centre[hidden][:, None] + local)
    np.testing.assert_allclose(token_distance(same, shift=7), token_distance(same))
    assert (token_distance(same) > token_distance(found))[found.counts > 2].all()


def test_nearest_energies_against_brute_force(tokens, hidden) -> None:
    found = made(tokens, hidden, error=0.8)
    true, predicted = nearest_energies(found)
    slot = 0
    for place, token in enumerate(np.flatnonzero(hidden)):
        rows = tokens.members[tokens.starts[token] : tokens.starts[token + 1]]
        between = cdist(tokens.event.voxel[rows], found.position[place, : len(rows)])
        for row, nearest in zip(rows, between.argmin(1), strict=True):
            assert true[slot] == np.float64(tokens.event.energy[row])
            assert predicted[slot] == found.energy[place, nearest]
            slot += 1
    assert slot == len(true) == len(predicted)


def test_correlation_of_logarithms() -> None:
    rng = np.random.default_rng(0)
    true = rng.lognormal(size=200)
    predicted = true * rng.lognormal(sigma=0.5, size=200)
    assert log_correlation(true, predicted) == pytest.approx(pearsonr(np.log(true), np.log(predicted))[0])
    predicted[:3] = [-0.1, 0.0, 1e-9]  # below what an energy can be
    assert -1 < log_correlation(true, predicted) < 1
    assert np.isnan(log_correlation(true, np.full(200, 0.5))) and np.isnan(log_correlation(true[:1], true[:1]))


def test_what_the_heading_says() -> None:
    tokens = tokens_of(track(), [[310, 400, 350], [317, 400, 350], [340, 400, 350]], radius=5.0, max_points=SLOTS)
    # 312 … 315 are in the first two, of which the second is visible
    text = hidden_text(made(tokens, [True, False, True]))
    assert text == "2 of 3 tokens hidden, 22 voxels in them, of which 4 are in a visible token too"
    assert hidden_text(made(tokens, [False] * 3)) == "0 of 3 tokens hidden, 0 voxels in them"


def test_panels(tokens, hidden) -> None:
    """Which points are in which panel, and where."""
    event, space = tokens.event, reconstruction.geometry(tokens.event)
    found, scale = made(tokens, hidden), reconstruction.energy_panel(event)
    panels = reconstruction._panels(found, space, scale)
    assert list(panels) == ["visible to the model", "predicted points", "truth", "energy infilled at true points"]

    def rows(layer) -> set[tuple]:
        return {tuple(p) for p in np.rint((layer.position - 0.15) / 0.3 + 384).astype(int)}

    def members(chosen: np.ndarray) -> set[tuple]:
        return {tuple(v) for v in event.voxel[tokens.members[chosen[tokens.token]]]}

    assert rows(panels["visible to the model"][0]) == members(~hidden)
    # the prediction is the truth here, and what does not count is not drawn
    for name in ("predicted points", "energy infilled at true points"):
        assert rows(panels[name][0]) == members(~hidden) and rows(panels[name][1]) == members(hidden)
    assert rows(panels["truth"][0]) == {tuple(v) for v in event.voxel}
    assert rows(panels["truth"][1]) == members(hidden)
    # the same energies have the same colours in all panels
    order = np.argsort(event.energy[found.rows], kind="stable")
    infilled = panels["energy infilled at true points"][1]
    np.testing.assert_allclose(infilled.rgb, scale.rgb[found.rows][order])
    # Point-MAE has no infilling, and perhaps no energies at all
    assert len(reconstruction._panels(made(tokens, hidden, infilling=False), space, scale)) == 3
    bare = reconstruction._panels(made(tokens, hidden, energies=False, infilling=False), space, scale)
    assert bare["predicted points"][1].rgb == reconstruction.MODEL


def test_picture(tokens, hidden, tmp_path) -> None:
    path = draw_reconstruction(made(tokens, hidden, error=1.0), tmp_path / "new" / "reconstruction.png")
    full = matplotlib.image.imread(path)
    assert full.shape[0] > 1800 and full.shape[1] > 2500
    assert 0.02 < (full[..., :3] < 0.99).any(-1).mean() < 0.4
    assert matplotlib.pyplot.get_fignums() == []
    bare = made(tokens, hidden, energies=False, infilling=False)
    three = matplotlib.image.imread(draw_reconstruction(bare, tmp_path / "bare.png"))
    assert three.shape[1] < 0.85 * full.shape[1]  # a column less


def test_nothing_hidden_empty_and_single(empty, single, tmp_path) -> None:
    """A lone token stays visible, an event without points has none."""
    cases = {
        "empty": tokens_of(empty, np.zeros((0, 3)), 5.0, SLOTS),
        "single": tokens_of(single, single.voxel, 5.0, SLOTS),
        "visible": tokens_of(track(), track().voxel[::9], 5.0, SLOTS),
        "none": tokens_of(track(), np.zeros((0, 3)), 5.0, SLOTS),
    }
    for name, tokens in cases.items():
        found = made(tokens, np.zeros(len(tokens), dtype=bool))
        assert len(token_distance(found)) == 0 and all(len(e) == 0 for e in nearest_energies(found))
        assert draw_reconstruction(found, tmp_path / f"{name}.png").stat().st_size > 10_000


def test_only_small_tokens_and_energies_below_zero(tmp_path) -> None:
    event = track()
    tokens = tokens_of(event, event.voxel[[5, 20, 59]], radius=0.5, max_points=SLOTS)
    found = made(tokens, [True, True, True])
    found = EventReconstruction(tokens, found.hidden, found.position, found.energy - 20, found.infilled - 20)
    assert np.isnan(token_distance(found)).all()
    draw_reconstruction(found, tmp_path / "small.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": np.ones(2, dtype=bool)}, r"'hidden' has shape \(2,\), expected \(3,\)"),
        ({"position": np.zeros((3, SLOTS, 3))}, r"'position' has shape \(3, 12, 3\), expected \(2, 12, 3\)"),
        ({"position": np.zeros((2, 4, 3)), "energy": None}, "more points than the 4 that are predicted"),
        ({"energy": np.zeros((2, 5))}, r"'energy' has shape \(2, 5\), expected \(2, 12\)"),
        ({"infilled": np.zeros(7)}, r"'infilled' has shape \(7,\), expected \(22,\)"),
        ({"infilled": np.full(22, np.nan)}, "'infilled' is not finite; has the training diverged"),
    ],
)
def test_what_does_not_fit_is_refused(change, message) -> None:
    tokens = tokens_of(track(), [[310, 400, 350], [317, 400, 350], [340, 400, 350]], radius=5.0, max_points=SLOTS)
    found = made(tokens, [True, False, True])
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    with pytest.raises(ValueError, match=f"made.h5#0: .*{message}"):
        EventReconstruction(**fields | change)
