"""Volumetric tokens: an event as overlapping balls of points (PoLAr-MAE, Young et al., arXiv 2502.02558).

Seeds (all points, or farthest points) are thinned by centrality-based suppression; what is left are the centres of
balls that overlap little. The points of a ball, at most ``max_points`` of them, seen from its centre in units of its
radius, are a token.

Shape legend: N points, B events, T tokens, P slots (points in tokens; a point may be in several tokens or in none), C
columns: x, y, z and the batch's further features.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nufm.data.event import PointBatch, offsets_from_counts
from nufm.ops.points import ball_lists, ball_query
from nufm.ops.pool import Segments, segment_reduce
from nufm.ops.sampling import centrality_nms, farthest_points
from nufm.ops.serialize import event_index

VOXEL = 1 / 665.10751  # edge of a PILArNet voxel in the units of NormalizeCoord
# A hair is taken off the published radii, which are whole voxels: lattice points at exactly a radius would be in or out
# by how their coordinates were rounded, and a token would depend on where in the detector it lies.
HAIR = 1 - 1e-4


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch, packed.

    Attributes:
        centre: float (T, 3) in the coordinates of the batch.
        offsets: int64 (B+1,) from 0 to T: tokens of each event, the most central ones first.
        members: int64 (P,) row of the batch in each slot, token by token.
        starts: int64 (T+1,) from 0 to P: slots of each token. No token is empty.
        points: float (P, C): position from the centre over the radius, then the features of the point.
        left_out: int64 (B,) tokens beyond ``max_tokens``.
    """

    centre: Tensor
    offsets: Tensor
    members: Tensor
    starts: Tensor
    points: Tensor
    left_out: Tensor

    def __len__(self) -> int:
        return len(self.centre)

    @property
    def counts(self) -> Tensor:
        """int64 (T,) slots of each token."""
        return self.starts.diff()

    @cached_property
    def event(self) -> Tensor:
        """int64 (T,) event of each token."""
        return event_index(self.offsets, len(self))

    @cached_property
    def segments(self) -> Segments:
        """Token of each slot."""
        return _consecutive(self.starts, len(self.members))

    @cached_property
    def slot(self) -> Tensor:
        """int64 (P,) number of each slot within its token."""
        return torch.arange(len(self.members), device=self.starts.device) - self.starts[self.segments.index]

    def select(self, chosen: Tensor) -> Tokens:
        """The tokens where ``chosen`` (bool (T,)) is true, in order."""
        slots = chosen[self.segments.index]
        counts = torch.zeros_like(self.left_out).index_add_(0, self.event, chosen.to(torch.int64))
        return replace(
            self,
            centre=self.centre[chosen],
            offsets=offsets_from_counts(counts),
            members=self.members[slots],
            starts=offsets_from_counts(self.counts[chosen]),
            points=self.points[slots],
        )


class Tokenizer(nn.Module):
    """Makes tokens of a batch; has no weights, and no gradient passes.

    The defaults are balls of 5 voxels. ``preset`` has the three published sizes.

    Args:
        radius: of a token, in the units of the coordinates.
        max_points: slots of a token; of a fuller ball farthest points are taken (or the most energetic ones).
        overlap: factor f: centres are at least 2 f radii apart. None: every seed is a centre.
        seeds: seed with so many farthest points of each event; None = all points.
        max_tokens: largest number of tokens of an event; None = any number.
        beyond: what happens where there are more: ``error``, or ``truncate`` to the most central ones, with a warning
            that counts them.
        reduction: which points of a fuller ball are kept: ``farthest`` or ``energy``.
        centre: ``seed``, or ``mean`` of the points in the slots: the ball was filled around the seed, so that a point
            may then lie farther than a radius from the centre.
        neighbour_cap, ball_cap: look at no more than the first so many points, in the order that ``order`` says, when
            seeds are thinned and when balls are filled, as published. None = all.
        order: ``coordinates``: ties, and where farthest points begin, are settled by the coordinates, so that a token
            does not depend on the order of the points in the file (but for points in one place); ``as_given``: by that
            order, as published.

    Raises:
        ValueError: a size that is not positive, or an unknown choice.
    """

    def __init__(
        self,
        radius: float = 5 * HAIR * VOXEL,
        max_points: int = 32,
        overlap: float | None = 0.72,
        seeds: int | None = None,
        max_tokens: int | None = None,
        beyond: Literal["error", "truncate"] = "error",
        reduction: Literal["farthest", "energy"] = "farthest",
        centre: Literal["seed", "mean"] = "seed",
        neighbour_cap: int | None = None,
        ball_cap: int | None = None,
        order: Literal["coordinates", "as_given"] = "coordinates",
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "radius": radius,
            "max_points": max_points,
            "overlap": overlap,
            "seeds": seeds,
            "max_tokens": max_tokens,
            "beyond": beyond,
            "reduction": reduction,
            "centre": centre,
            "neighbour_cap": neighbour_cap,
            "ball_cap": ball_cap,
            "order": order,
        }
        for name in ("radius", "max_points", "overlap", "seeds", "max_tokens", "neighbour_cap", "ball_cap"):
            value = self.arguments[name]
            if value is not None and not value > 0:
                raise ValueError(f"tokenizer: {name} is {value}, expected a positive number")
        for name, choices in (
            ("beyond", ("error", "truncate")),
            ("reduction", ("farthest", "energy")),
            ("centre", ("seed", "mean")),
            ("order", ("coordinates", "as_given")),
        ):
            if self.arguments[name] not in choices:
                raise ValueError(f"tokenizer: {name} is '{self.arguments[name]}', expected {' or '.join(choices)}")
        self.radius, self.max_points, self.overlap, self.seeds = radius, max_points, overlap, seeds
        self.max_tokens, self.beyond, self.reduction, self.centre = max_tokens, beyond, reduction, centre
        self.neighbour_cap, self.ball_cap, self.order = neighbour_cap, ball_cap, order
        self.n_left_out, self._said = 0, 0  # tokens beyond max_tokens so far, and at the last warning

    @classmethod
    def preset(cls, voxels: str | float, **changes: Any) -> Tokenizer:
        """Balls of 2.5, 5 or 25 voxels of PILArNet-M, with the published sizes and any number of tokens.

        Source: DeepLearnPhysics/PoLAr-MAE, polarmae/layers/tokenizer.py. Its limits of 1024, 512 and 128 tokens are
        the user's choice here (``max_tokens``), its caps on neighbours are left out.
        """
        sizes: dict[str, dict[str, Any]] = {
            "2.5": {"radius": 2.5 * HAIR * VOXEL, "max_points": 16, "overlap": 0.73},
            "5": {"radius": 5 * HAIR * VOXEL, "max_points": 32, "overlap": 0.72},
            "25": {"radius": 25 * HAIR * VOXEL, "max_points": 128, "overlap": 0.72, "seeds": 256, "centre": "mean"},
        }
        voxels = voxels if isinstance(voxels, str) else f"{voxels:g}"
        if voxels not in sizes:
            raise ValueError(f"there is no tokenizer preset '{voxels}', expected one of {', '.join(sizes)}")
        return cls(**sizes[voxels] | changes)

    @torch.no_grad()
    def forward(self, batch: PointBatch) -> Tokens:
        """Tokens of a batch; an event without points has none.

        Raises:
            ValueError: an event has more than ``max_tokens`` tokens and ``beyond`` is ``error``; a coordinate that is
                not finite; ``reduction`` is ``energy`` and the batch has no features but coordinates.
        """
        offsets, coord = batch.offsets, batch.coord.float()
        order = _by_coordinates(coord, batch.event_index) if self.order == "coordinates" else None
        if order is not None:
            coord = coord[order]
        centres, token_offsets = self._centres(coord, offsets)
        centres, token_offsets, left_out = self._limited(centres, token_offsets, batch)
        centre = coord[centres]
        members, starts = self._balls(centre, token_offsets, coord, offsets)
        feat = batch.feat[:, 3:] if order is None else batch.feat[order, 3:]
        members, starts = self._reduced(members, starts, coord, feat)
        token = _consecutive(starts, len(members))
        if self.centre == "mean":
            centre = segment_reduce(coord[members], token, token.n, "mean")
        local = (coord[members] - centre[token.index]) / self.radius
        points = torch.cat([local, feat[members].float()], dim=1)
        members = members if order is None else order[members]
        return Tokens(centre, token_offsets, members, starts, points, left_out)

    def coverage(self, batch: PointBatch) -> Tensor:
        """float64 (B,) share of each event's points that lie in a ball, or in a token (whose centre may have moved to
        the mean); NaN without points. Below 1 for an overlap over 0.5: a point between two centres may be farther than
        a radius from both."""
        coord, offsets = batch.coord.float(), batch.offsets
        tokens = self(batch)
        index, _ = ball_lists(tokens.centre, tokens.offsets, coord, offsets, self.radius)
        inside = torch.zeros(len(coord), dtype=torch.float64, device=coord.device)
        inside[index] = inside[tokens.members] = 1
        found = inside.new_zeros(batch.n_events).index_add_(0, batch.event_index, inside)
        return found / batch.counts

    def _centres(self, coord: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the centres and their offsets."""
        if self.seeds is None:
            seeds, seed_offsets = torch.arange(len(coord), device=coord.device), offsets
        else:
            seeds, seed_offsets = farthest_points(coord, offsets, self.seeds)
        if self.overlap is None:
            return seeds, seed_offsets
        kept, kept_offsets = centrality_nms(coord[seeds], seed_offsets, self.radius, self.overlap, self.neighbour_cap)
        return seeds[kept], kept_offsets

    def _limited(self, centres: Tensor, offsets: Tensor, batch: PointBatch) -> tuple[Tensor, Tensor, Tensor]:
        """The first ``max_tokens`` centres of each event, their offsets, and how many are left out."""
        counts = offsets.diff()
        if self.max_tokens is None or not bool((counts > self.max_tokens).any()):
            return centres, offsets, torch.zeros_like(counts)
        left_out = (counts - self.max_tokens).clamp(min=0)
        worst = int(left_out.argmax())
        name = batch.names[worst] if batch.names else f"event {worst} of the batch"
        if self.beyond == "error":
            raise ValueError(
                f"{name}: found {int(counts[worst])} tokens, expected at most max_tokens = {self.max_tokens}; raise "
                "max_tokens (null = any number), or drop the least central ones with beyond: truncate. Far too many "
                "tokens mean that the radius is not in the units of the coordinates"
            )
        self.n_left_out += int(left_out.sum())
        if self.n_left_out >= 2 * self._said:  # every doubling: said, but not at every step
            self._said = self.n_left_out
            warnings.warn(
                f"{name}: {int(left_out[worst])} of its {int(counts[worst])} tokens are left out (max_tokens = "
                f"{self.max_tokens}); {self.n_left_out} tokens so far",
                stacklevel=2,
            )
        place = torch.arange(len(centres), device=centres.device) - offsets[event_index(offsets, len(centres))]
        return centres[place < self.max_tokens], offsets_from_counts(counts - left_out), left_out

    def _balls(self, centre: Tensor, centre_offsets: Tensor, coord: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the points in each ball, ball by ball, and where each ball begins. A centre is in its own ball."""
        if self.ball_cap is None:
            return ball_lists(centre, centre_offsets, coord, offsets, self.radius)
        index, _ = ball_query(centre, centre_offsets, coord, offsets, self.radius, self.ball_cap)
        return index[index >= 0], offsets_from_counts((index >= 0).sum(1))

    def _reduced(self, members: Tensor, starts: Tensor, coord: Tensor, feat: Tensor) -> tuple[Tensor, Tensor]:
        """At most ``max_points`` points of each ball, in the order of farthest-point sampling or of falling energy."""
        if self.reduction == "farthest":
            kept, kept_starts = farthest_points(coord[members], starts, self.max_points)
            return members[kept], kept_starts
        if feat.shape[1] == 0:
            raise ValueError("reduction 'energy' needs a feature column after x, y, z, found none; use 'farthest'")
        token = event_index(starts, len(members))
        by_energy = torch.argsort(feat[members, 0], descending=True, stable=True)
        order = by_energy[torch.argsort(token[by_energy], stable=True)]
        kept = torch.arange(len(members), device=members.device) - starts[token] < self.max_points
        return members[order[kept]], offsets_from_counts(starts.diff().clamp(max=self.max_points))


def _consecutive(starts: Tensor, n: int) -> Segments:
    """Groups of consecutive rows, n in all."""
    index = event_index(starts, n)
    return Segments.ordered(index, len(starts) - 1, torch.arange(n, device=index.device))


def _by_coordinates(coord: Tensor, event: Tensor) -> Tensor:
    """int64 (N,) rows sorted by (event, x, y, z)."""
    order = torch.argsort(coord[:, 2], stable=True)
    for key in (coord[:, 1], coord[:, 0], event):
        order = order[torch.argsort(key[order], stable=True)]
    return order
