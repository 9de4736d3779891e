"""3D files and pixel maps made by hand, for tests of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from nufm.data.images import ImageEvent, View


def write_volume(
    path: Path,
    events: Sequence[tuple[np.ndarray, np.ndarray]],
    truth: dict[str, np.ndarray] | None = None,
    detector: str | None = None,
    particles: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None,
) -> Path:
    """A file in the PILArNet-M layout, written with h5py alone.

    Args:
        path: of the file.
        events: voxels (N, 3) and energies (N,) of each.
        truth: name -> (n, ...).
        detector: the file's attribute; None = there is none.
        particles: of each event the sizes (M,), particle ids (M,) and vertices (M, 3) mm of its clusters, -1 for
            deposits of no particle; None = a file without labels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if detector is not None:
            file.attrs["detector"] = detector
        fields = {"point": np.float32}
        if particles is not None:
            fields |= {"cluster": np.int64, "cluster_extra": np.float32}
        for field, kind in fields.items():
            file.create_dataset(field, (len(events),), dtype=h5py.vlen_dtype(kind))
        for i, (voxel, energy) in enumerate(events):
            rest = np.zeros((len(voxel), 4))
            file["point"][i] = np.column_stack([voxel, energy, rest]).astype(np.float32).ravel()
            if particles is not None:
                sizes, ids, vertices = map(np.asarray, particles[i])
                rows = np.column_stack([sizes, np.arange(len(sizes)), ids, ids, np.where(ids < 0, 4, 1), ids % 5])
                file["cluster"][i] = rows.astype(np.int64).ravel()
                extra = np.column_stack([np.full(len(sizes), 105.7), np.ones(len(sizes)), vertices])
                extra[ids < 0] = -1
                file["cluster_extra"][i] = extra.astype(np.float32).ravel()
        for name, values in (truth or {}).items():
            file[f"truth/{name}"] = values
    return path


def random_volume(rng: np.random.Generator, n: int = 200, lattice: Sequence[int] = (768, 768, 768)) -> tuple:
    """n different voxels and their energies."""
    cells = rng.choice(np.prod(np.array(lattice, dtype=np.int64)), n, replace=False)
    voxel = np.stack(np.unravel_index(cells, tuple(lattice)), axis=1)
    return voxel, rng.uniform(0.05, 5.0, n).astype(np.float32)


def image_event(seed: int, size: int = 16, n: int = 20, unit: str = "MeV", name: str = "event") -> ImageEvent:
    """A map of n pixels in each view, with all truth; grey values are whole."""
    rng = np.random.default_rng(seed)
    views = {}
    for view in ("xz", "yz"):
        cells = rng.choice(size * size, n, replace=False)
        energy = rng.uniform(0.05, 20.0, n) if unit == "MeV" else rng.integers(1, 256, n)
        views[view] = View(np.stack(np.divmod(cells, size), axis=1).astype(np.int32), energy.astype(np.float32))
    truth = {
        "interaction": np.int64(rng.integers(3)),
        "mode": np.int64(rng.integers(3)),
        "neutrino_energy": np.float32(rng.uniform(0, 10)),
        "inelasticity": np.float32(rng.uniform(0, 1)),
        "lepton": rng.normal(size=3).astype(np.float32),
        "vertex": rng.uniform(-500, 500, 3).astype(np.float32),
    }
    return ImageEvent(views, (size, size), 5.0, unit, truth, name)
