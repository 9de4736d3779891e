"""Pictures of tokens: what is coloured how, against brute force and events with a known answer."""

from __future__ import annotations

import time

import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest
from made_tokens import tokens_of, track

from nufm.data.event import Event
from nufm.display.geometry import geometry
from nufm.display.tokens import (
    COLOURS,
    MISSED,
    NOT_KEPT,
    busiest,
    coverage_text,
    draw_tokens,
    histogram,
    nearest_token,
    token_colours,
    token_hover,
    token_panel,
    token_text,
)


def picture_of(path) -> np.ndarray:
    """uint8 (height, width, 3)."""
    return (matplotlib.image.imread(path)[..., :3] * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def pixels(picture: np.ndarray, colour: str) -> int:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((picture == np.array(rgb, dtype=np.uint8)).all(-1).sum())


def three_tokens():
    """Two overlapping balls and one apart, of radius 5 and at most 6 points; most of the track is in none."""
    return tokens_of(track(), [[310, 400, 350], [317, 400, 350], [340, 400, 350]], radius=5.0, max_points=6)


def test_each_point_belongs_to_the_nearest_of_its_tokens(genuine) -> None:
    rng = np.random.default_rng(0)
    centre = genuine.voxel[rng.choice(len(genuine), 80, replace=False)]
    tokens = tokens_of(genuine, centre, radius=7.0, max_points=20)
    owner = nearest_token(tokens)
    for row in range(len(genuine)):
        of = [t for t in range(len(tokens)) if row in tokens.members[tokens.starts[t] : tokens.starts[t + 1]]]
        distance = [np.linalg.norm(genuine.voxel[row] - tokens.centre[t]) for t in of]
        assert owner[row] == (of[int(np.argmin(distance))] if of else -1)
        assert tokens.times[row] == len(of)


def test_neighbours_differ_in_colour(genuine) -> None:
    centres = [genuine.voxel[0]]
    for voxel in genuine.voxel:  # apart by 7.2, as centres of balls of 5 are
        if np.linalg.norm(np.array(centres) - voxel, axis=1).min() > 7.2:
            centres.append(voxel)
    tokens = tokens_of(genuine, np.array(centres), radius=5.0)
    colour = token_colours(tokens)
    distance = np.linalg.norm(tokens.centre[:, None] - tokens.centre[None], axis=2)
    same = (colour[:, None] == colour[None]) & ~np.eye(len(tokens), dtype=bool)
    assert len(np.unique(colour)) == len(COLOURS) and len(tokens) > 100
    assert distance[same].min() > 10  # those whose balls overlap differ, in the core of the shower too
    np.testing.assert_array_equal(colour, token_colours(tokens))


def test_more_neighbours_than_colours() -> None:
    """Twelve tokens in one place: every colour is used, and the ninth takes that of the farthest."""
    event = track()
    tokens = tokens_of(event, np.array([[300 + i, 400, 350] for i in range(12)]), radius=5.0)
    colour = token_colours(tokens)
    assert sorted(colour[:8]) == list(range(8)) and colour[8] == colour[0] and colour[9] == colour[1]


def test_colours_of_points() -> None:
    tokens = three_tokens()
    hexes = np.array(["#" + "".join(f"{round(255 * v):02x}" for v in rgb) for rgb in token_panel(tokens).rgb])
    colours = [COLOURS[c] for c in token_colours(tokens)]
    assert len(set(colours)) == 3
    x = tokens.event.voxel[:, 0]
    # six points of the first ball are the nearest ones: 310 ± 2, and of those at 3 the lower row
    assert set(hexes[(x >= 307) & (x <= 312)]) == {colours[0]}
    assert set(hexes[(x >= 305) & (x < 307)]) == {NOT_KEPT}
    assert hexes[-1] == MISSED and set(hexes[x < 305]) == {MISSED}
    hover = token_hover(tokens)
    assert hover[10] == "<br>token 0 of 6 points"
    assert hover[5] == "<br>in a ball, but not in its token" and hover[-1] == "<br>in no token"


def test_a_point_of_two_tokens_is_said_to_be() -> None:
    tokens = tokens_of(track(), [[310, 400, 350], [313, 400, 350]], radius=2.0)
    assert token_hover(tokens)[11] == "<br>token 0 of 5 points, and in 1 more"


def test_what_the_title_says() -> None:
    tokens = three_tokens()
    assert token_text(tokens, geometry(tokens.event)) == "3 tokens of radius 5 voxels (1.5 cm)"
    # 305 … 322 and 335 … 345 are 18 + 11 = 29 of 60 voxels; 18 of them are kept
    found = coverage_text(tokens)
    assert found == "48.3 % of voxels in a ball (31 in none), 18.3 % in a ball but not among its 6 points"


def test_busiest_box_against_brute_force(genuine) -> None:
    position, half = geometry(genuine).position, np.array([4.0, 5.0, 6.1])
    centre = position[::37]
    low, high = busiest(position, centre, half)
    np.testing.assert_allclose(high - low, 2 * half)
    best = max(int((np.abs(position - c) <= half).all(1).sum()) for c in centre)
    assert int(((position >= low) & (position <= high)).all(1).sum()) == best
    low, high = busiest(position, np.zeros((0, 3)), half)  # no tokens: around a point
    assert int(((position >= low) & (position <= high)).all(1).sum()) >= best


@pytest.mark.parametrize("max_points", [1, 6, 32, 96, 100, 127])
def test_every_token_is_in_the_histogram(max_points) -> None:
    voxel = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) + 300
    event = Event(np.concatenate([voxel, voxel[:3] + 9]).astype(np.int32), np.ones(128, np.float32))
    full = tokens_of(event, np.repeat(event.voxel[:1], 3, axis=0), radius=100.0, max_points=max_points)
    assert (full.counts == max_points).all()
    _, ax = matplotlib.pyplot.subplots()
    histogram(ax, full)
    assert sum(bar.get_height() for bar in ax.patches) == 3
    assert ax.patches[-1].get_height() == 3, "in the last bin"
    matplotlib.pyplot.close()


def test_picture(tmp_path) -> None:
    tokens = three_tokens()
    picture = picture_of(draw_tokens(tokens, tmp_path / "new" / "tokens.png"))
    assert picture.shape[0] > 1500 and picture.shape[1] > 2000
    for colour in token_colours(tokens):
        assert pixels(picture, COLOURS[colour]) > 1000
    grey = [pixels(picture, colour) for colour in (MISSED, NOT_KEPT)]
    assert matplotlib.pyplot.get_fignums() == []
    whole = tokens_of(track(), track().voxel, radius=5.0)  # every point is a centre: nothing is grey
    picture = picture_of(draw_tokens(whole, tmp_path / "whole.png"))
    for colour, before in zip((MISSED, NOT_KEPT), grey, strict=True):
        assert pixels(picture, colour) < before - 1000  # what is left are edges of letters


def test_empty_single_and_without_tokens(empty, single, tmp_path) -> None:
    for name, event, centre in (
        ("empty", empty, np.zeros((0, 3))),
        ("single", single, single.voxel),
        ("none", track(), np.zeros((0, 3))),
    ):
        path = draw_tokens(tokens_of(event, centre, radius=5.0), tmp_path / f"{name}.png")
        assert path.stat().st_size > 10_000
    assert coverage_text(tokens_of(empty, np.zeros((0, 3)), 5.0)) == "0.0 % of voxels in a ball (0 in none)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centre": np.zeros((2, 3))}, r"'centre' has shape \(2, 3\), expected \(3, 3\) for 3 tokens"),
        ({"in_ball": np.zeros(5, dtype=bool)}, r"'in_ball' has shape \(5,\), expected \(60,\)"),
        ({"starts": np.array([0, 6, 5, 18])}, "'starts' must rise from 0 to P = 18"),
        ({"members": np.full(18, 60)}, r"'members' names rows outside 0 … 59"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(change, message) -> None:
    tokens = three_tokens()
    fields = {name: getattr(tokens, name) for name in tokens.__dataclass_fields__}
    with pytest.raises(ValueError, match=f"made.h5#0: {message}"):
        type(tokens)(**fields | change)


def test_a_large_event_is_quick(tmp_path) -> None:
    rng = np.random.default_rng(0)
    voxel = np.unique(rng.integers(0, 60, (15000, 3)).astype(np.int32), axis=0)
    event = Event(voxel + 300, rng.uniform(0.2, 3, len(voxel)).astype(np.float32))
    tokens = tokens_of(event, event.voxel[::50], radius=2.5)
    start = time.process_time()
    draw_tokens(tokens, tmp_path / "large.png")
    assert time.process_time() - start < 20
