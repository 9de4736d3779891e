"""Hand-made events of several streams, and small networks for them."""

from __future__ import annotations

import numpy as np
import torch

from nufm.data.streams import Hits, StreamBatch, StreamEvent
from nufm.models.patches import PatchStack
from nufm.models.stream_encoder import MatrixToken, StreamEncoder, TrackToken


def hits(
    rng: np.random.Generator, n: int, modules: int, lattice: tuple[int, int, int], used: int | None = None
) -> Hits:
    """n hits at different voxels of the first ``used`` modules."""
    shape = (modules if used is None else used, *lattice)
    module, *index = np.unravel_index(rng.choice(np.prod(shape), n, replace=False), shape)
    return Hits(
        np.stack(index, 1).astype(np.int32), module.astype(np.int32), rng.exponential(1.0, n).astype(np.float32)
    )


def event(seed: int, n: int = 400, tracks: int = 2) -> StreamEvent:
    rng = np.random.default_rng(seed)
    return StreamEvent(
        voxels={"cal3d": hits(rng, n, 10, (48, 48, 20), 4), "ahcal": hits(rng, n // 4, 1, (18, 18, 40))},
        matrices={"ecal": rng.random((5, 5)).astype(np.float32)},
        tracks={"muon": rng.normal(size=(tracks, 5)).astype(np.float32)},
        name=f"event {seed}",
        seed=seed,
    )


def one_batch(*events: StreamEvent) -> StreamBatch:
    return StreamBatch.from_events(events)


def encoder(
    channels: int = 48, depths: tuple[int, int, int] = (2, 1, 2), heads: int = 4, drop_path: float = 0.0, **changes
) -> StreamEncoder:
    """The published arrangement, of any size; ``changes`` are of both stacks."""
    torch.manual_seed(0)
    stage = changes.pop("stage", None)
    return StreamEncoder(
        PatchStack("cal3d", [48, 48, 20], [12, 12, 10], 10, None, channels, depths[0], heads, stage=stage, **changes),
        PatchStack(
            "ahcal", [18, 18, 40], [6, 6, 5], 1, None, channels, depths[1], heads, group_code="source", **changes
        ),
        MatrixToken("ecal", 25, channels),
        TrackToken("muon", 5, channels, heads),
        depths[2],
        heads,
        drop_path=drop_path,
    )
