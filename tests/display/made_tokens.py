"""Events with tokens made by hand, for the tests of their pictures."""

from __future__ import annotations

import numpy as np

from nufm.data.event import Event
from nufm.data.tokens import EventTokens


def tokens_of(event: Event, centre: np.ndarray, radius: float, max_points: int = 32) -> EventTokens:
    """Balls around ``centre``, filled with their nearest points, by brute force."""
    centre = np.asarray(centre, dtype=np.float64).reshape(-1, 3)
    distance = np.linalg.norm(event.voxel[None] - centre[:, None], axis=2)  # (T, N)
    members = [np.argsort(d, kind="stable")[: min(max_points, int((d <= radius).sum()))] for d in distance]
    return EventTokens(
        event=event,
        centre=centre,
        radius=radius,
        members=np.concatenate([np.zeros(0, dtype=np.int64), *members]),
        starts=np.cumsum([0, *map(len, members)]),
        in_ball=(distance <= radius).any(0),
        max_points=max_points,
    )


def track(n: int = 60) -> Event:
    """A straight track along x of rising energy, with a lone voxel far from it."""
    voxel = np.stack([300 + np.arange(n), np.full(n, 400), np.full(n, 350)], axis=1)
    voxel[-1] = (320, 430, 380)
    energy = np.geomspace(0.2, 8, n).astype(np.float32)
    return Event(voxel.astype(np.int32), energy, name="made.h5#0")
