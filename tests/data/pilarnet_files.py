"""PILArNet-M files written by hand with h5py, from the published description of the layout.

An event is a dict: ``points`` (list of rows of 8), ``clusters`` (rows of 6), ``extra`` (rows of 6).
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def make_event(seed: int, n_points: int = 60, n_particles: int = 3) -> dict:
    """An event of n_points points in 1 + n_particles clusters, low-energy deposits first, with odd ids."""
    rng = np.random.default_rng([seed, n_points])
    cuts = (
        np.sort(rng.choice(np.arange(1, n_points), n_particles, replace=False))
        if n_points > n_particles
        else []
    )
    sizes = np.diff([0, *cuts, n_points])
    clusters = [[sizes[0], 0, -1, -1, 4, -1]]
    extra = [[-1, -1, -1, -1, -1, -1]]
    for k, size in enumerate(sizes[1:]):
        clusters.append([size, k + 1, 10 + 7 * k, 3 + k // 2, k % 4, (k + 1) % 6])
        extra.append([105.7, 0.25 + k, 10.5 * k, -20.0, 30.0, 1])
    voxel = rng.choice(40**3, n_points, replace=False)
    voxel = np.stack([voxel // 1600, voxel // 40 % 40, voxel % 40], axis=1) + rng.integers(0, 700, 3)
    energy = rng.uniform(0.14, 5.0, n_points)
    rest = rng.uniform(0, 1, (n_points, 3))
    points = np.column_stack([voxel, energy, energy, rest])
    return {"points": points, "clusters": np.array(clusters), "extra": np.array(extra)}


def write_file(path: Path, events: list[dict], version: int = 2, companion: bool = False) -> Path:
    """Writes v1 (5 cluster columns, no extra), v2 (6, 5 extra) or v3 (6, 6 extra)."""
    rows = {
        "point": ([e["points"] for e in events], np.float32),
        "cluster": ([e["clusters"][:, : 5 if version == 1 else 6] for e in events], np.int64),
    }
    if version > 1:
        rows["cluster_extra"] = ([e["extra"][:, : 5 if version == 2 else 6] for e in events], np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        for name, (tables, dtype) in rows.items():
            data = f.create_dataset(name, (len(tables),), dtype=h5py.vlen_dtype(dtype))
            for i, table in enumerate(tables):
                data[i] = np.asarray(table, dtype=dtype).reshape(-1)
    if companion:
        np.save(path.with_name(f"{path.stem}_points.npy"), np.array([len(e["points"]) for e in events]))
    return path
