"""Tokens of one event, and what a model says of hidden ones, in voxels and MeV: what displays draw.

Shape legend: N points of the event, T tokens, M hidden tokens, P slots (points in tokens), K slots of a full token.
Positions are voxel indices, not necessarily whole: a whole one is the centre of its voxel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nufm.data.event import Event
from nufm.data.transforms import (
    Compose,
    CoordTransform,
    EnergyJitter,
    LogEnergy,
    NormalizeCoord,
    RawEnergy,
    Transform,
)


@dataclass(frozen=True, eq=False)
class EventTokens:
    """The tokens of an event.

    Attributes:
        event: whose rows ``members`` are.
        centre: float (T, 3).
        radius: of a token, in voxels.
        members: int (P,) row of the event in each slot, token by token.
        starts: int (T+1,) from 0 to P: slots of each token.
        in_ball: bool (N,) points that lie in a ball around a ``centre``, or in a slot: where the centre of a token is
            the mean of its points, its ball was filled around one of them, and a point of it may lie outside of the
            ball around the mean. A point of a ball that is fuller than a token may be in no slot.
        max_points: slots of a full token.
        left_out: tokens beyond the largest number.

    Raises:
        ValueError: fields that do not fit together.
    """

    event: Event
    centre: np.ndarray
    radius: float
    members: np.ndarray
    starts: np.ndarray
    in_ball: np.ndarray
    max_points: int
    left_out: int = 0

    def __post_init__(self) -> None:
        n, t, name = len(self.event), len(self.starts) - 1, self.event.name
        if self.centre.shape != (t, 3) or t < 0:
            raise ValueError(f"{name}: 'centre' has shape {self.centre.shape}, expected {(t, 3)} for {t} tokens")
        if self.in_ball.shape != (n,):
            raise ValueError(f"{name}: 'in_ball' has shape {self.in_ball.shape}, expected {(n,)}: one per voxel")
        if self.starts[0] != 0 or self.starts[-1] != len(self.members) or (np.diff(self.starts) < 0).any():
            raise ValueError(f"{name}: 'starts' must rise from 0 to P = {len(self.members)}")
        if len(self.members) and not 0 <= self.members.min() <= self.members.max() < n:
            raise ValueError(f"{name}: 'members' names rows outside 0 … {n - 1}")

    def __len__(self) -> int:
        return len(self.centre)

    @property
    def counts(self) -> np.ndarray:
        """int (T,) slots of each token."""
        return np.diff(self.starts)

    @property
    def token(self) -> np.ndarray:
        """int (P,) token of each slot."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def times(self) -> np.ndarray:
        """int (N,) in how many tokens each point is."""
        return np.bincount(self.members, minlength=len(self.event))

    def within(self, chosen: np.ndarray) -> np.ndarray:
        """bool (N,) points in the slots of the tokens where ``chosen`` (bool (T,)) is true."""
        found = np.zeros(len(self.event), dtype=bool)
        found[self.members[chosen[self.token]]] = True
        return found


@dataclass(frozen=True, eq=False)
class EventReconstruction:
    """What a masked model says of the tokens that were hidden from it.

    Attributes:
        tokens: all tokens of the event.
        hidden: bool (T,), the ones that were hidden, M of them.
        position: float (M, K, 3) predicted points; as many of token i count as it has slots.
        energy: float (M, K) MeV, of the predicted points; None where only positions are predicted. May be below 0.
        infilled: float (P of the hidden tokens,) MeV predicted at their true points, slot by slot; None without energy
            infilling. May be below 0.

    Raises:
        ValueError: fields that do not fit together.
    """

    tokens: EventTokens
    hidden: np.ndarray
    position: np.ndarray
    energy: np.ndarray | None = None
    infilled: np.ndarray | None = None

    def __post_init__(self) -> None:
        name, t = self.tokens.event.name, len(self.tokens)
        if self.hidden.shape != (t,):
            raise ValueError(f"{name}: 'hidden' has shape {self.hidden.shape}, expected {(t,)}")
        m, k = int(self.hidden.sum()), self.position.shape[1]
        shapes = {"position": (m, k, 3), "energy": (m, k), "infilled": (int(self.counts.sum()),)}
        for field, shape in shapes.items():
            value = getattr(self, field)
            if value is None:
                continue
            if value.shape != shape:
                raise ValueError(f"{name}: '{field}' has shape {value.shape}, expected {shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"{name}: '{field}' is not finite; has the training diverged?")
        if m and k < self.counts.max():
            raise ValueError(f"{name}: a token has more points than the {k} that are predicted")

    @property
    def counts(self) -> np.ndarray:
        """int (M,) slots of each hidden token."""
        return self.tokens.counts[self.hidden]

    @property
    def rows(self) -> np.ndarray:
        """int (P,) rows of the event in the slots of the hidden tokens."""
        return self.tokens.members[self.hidden[self.tokens.token]]

    @property
    def valid(self) -> np.ndarray:
        """bool (M, K) predicted points that count."""
        return np.arange(self.position.shape[1]) < self.counts[:, None]


def voxel_index(coord: np.ndarray, transforms: Sequence[Transform]) -> np.ndarray:
    """float64 (..., 3) position on the lattice of coordinates that ``transforms`` made.

    Raises:
        ValueError: as :func:`coordinates_from`.
    """
    return coordinates_from(transforms).inverse(coord)


def voxel_energy(feat: np.ndarray, transforms: Sequence[Transform]) -> np.ndarray:
    """float64, the energy in MeV of values that ``transforms`` made of energies.

    Raises:
        ValueError: there is neither LogEnergy nor RawEnergy among them, or a later one changes the values.
    """
    return _last(transforms, (LogEnergy, RawEnergy), EnergyJitter, "features into MeV").inverse(feat)


def coordinates_from(transforms: Sequence[Transform]) -> NormalizeCoord:
    """The transform that coordinates follow from the lattice by.

    Raises:
        ValueError: there is no NormalizeCoord among them, or a later one moves points.
    """
    return _last(transforms, (NormalizeCoord,), CoordTransform, "coordinates into voxels")


def _last(transforms: Sequence[Transform], kinds: tuple[type, ...], others: type, what: str) -> Transform:
    """The last of ``kinds``, which undoes what it made if none of ``others`` follows: their chance is not known."""
    flat = list(_flat(transforms))
    names = [type(t).__name__ for t in flat]
    at = max((i for i, t in enumerate(flat) if isinstance(t, kinds)), default=None)
    expected = " or ".join(k.__name__ for k in kinds)
    if at is None:
        raise ValueError(
            f"cannot turn {what}: expected {expected} among the transforms, found {', '.join(names) or 'none'}"
        )
    after = [name for name, t in zip(names[at + 1 :], flat[at + 1 :], strict=True) if isinstance(t, others)]
    if after:
        raise ValueError(
            f"cannot turn {what}: found {', '.join(after)} after {names[at]} among the transforms, expected nothing "
            f"that changes what {names[at]} made; give it as 'augment', which the events of a display or probe do not "
            "go through"
        )
    return flat[at]


def _flat(transforms: Sequence[Transform]) -> Iterator[Transform]:
    """One by one, those in a Compose too."""
    for transform in transforms:
        if isinstance(transform, Compose):
            yield from _flat(transform.transforms)
        else:
            yield transform
