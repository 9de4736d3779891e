from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nufm.data.event import Event
from nufm.data.pilarnet import PILArNetReader


@pytest.fixture(scope="session")
def genuine_file() -> Path:
    return Path(__file__).parents[1] / "data" / "pilarnet_m_event.h5"


@pytest.fixture(scope="session")
def genuine(genuine_file: Path) -> Event:
    """The genuine PILArNet-M test event, 1390 voxels."""
    return PILArNetReader(genuine_file, min_points=0)[0]


@pytest.fixture
def empty(genuine: Event) -> Event:
    return genuine.select(np.zeros(0, dtype=np.int64))


@pytest.fixture
def single(genuine: Event) -> Event:
    return genuine.select(np.array([7]))
