"""Events that tests of tokens share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nufm.data.event import PointBatch, offsets_from_counts


def batch_of(coords: list[Tensor], energy: list[Tensor] | None = None) -> PointBatch:
    """Events with these coordinates (voxels) and log energies."""
    coord = torch.cat(coords).float()
    feat = torch.cat(energy) if energy is not None else torch.linspace(-1, 1, len(coord))
    return PointBatch(
        coord=coord,
        grid=torch.zeros(len(coord), 3, dtype=torch.int64),
        feat=torch.cat([coord, feat[:, None].float()], 1),
        offsets=offsets_from_counts(torch.tensor([len(c) for c in coords])),
        columns=("x", "y", "z", "log_energy"),
        seeds=torch.arange(len(coords)),
        names=tuple(f"made#{i}" for i in range(len(coords))),
    )


def walk(seed: int, n: int) -> Tensor:
    """A crooked track on the lattice, without duplicates, in random order."""
    rng = np.random.default_rng(seed)
    voxels = np.unique(rng.integers(-1, 2, (4 * n, 3)).cumsum(0), axis=0)
    return torch.from_numpy(rng.permutation(voxels)[:n].astype(np.float32))
