"""Random sparse events for the tests of the ops."""

import itertools

import pytest
import torch


@pytest.fixture
def random_events():
    return _random_events


def _random_events(counts, extent, seed=0, unique=True):
    """Grid (N, 3) and offsets of events with ``counts`` points in a cube of ``extent`` cells."""
    generator = torch.Generator().manual_seed(seed)
    grids = []
    for n in counts:
        if unique:
            cells = torch.randperm(extent**3, generator=generator)[:n]
        else:
            cells = torch.randint(0, extent**3, (n,), generator=generator)
        grids.append(torch.stack([cells // extent**2, cells // extent % extent, cells % extent], 1))
    offsets = torch.tensor([0, *itertools.accumulate(counts)])
    return torch.cat(grids) if grids else torch.zeros(0, 3, dtype=torch.int64), offsets
