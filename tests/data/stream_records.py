"""FASERCal events made by hand, as records, and a writer of the HDF5 layout that owes nothing to the package's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from nufm.data.detector import load_stream_detector


def voxels(rng: np.random.Generator, n: int, stream: str, detector: str = "fasercal") -> tuple[np.ndarray, np.ndarray]:
    """int32 (n, 3) index and (n,) module of n different voxels."""
    geometry = load_stream_detector(detector).voxels[stream]
    shape = (geometry.modules, *geometry.lattice)
    flat = rng.choice(int(np.prod(shape)), n, replace=False)
    module, *index = np.unravel_index(flat, shape)
    return np.stack(index, 1).astype(np.int32), module.astype(np.int32)


def make_record(seed: int = 0, hits: int = 30, ahcal: int = 7, tracks: int = 2, group: int | None = None) -> dict:
    """One event with all streams and truth; every number differs from event to event."""
    rng = np.random.default_rng(seed)
    index, module = voxels(rng, hits, "cal3d")
    ghost = rng.integers(0, 3, hits).astype(np.int8)
    shares = rng.dirichlet(np.ones(3), (2, hits)).astype(np.float32) * (ghost != 1)[None, :, None]
    fit = rng.normal(size=(tracks, 11)).astype(np.float32)
    fit[:, 1], fit[:, 6] = 5, 2.5  # points, χ²
    record = {
        "hits/cal3d/index": index,
        "hits/cal3d/module": module,
        "hits/cal3d/charge": rng.lognormal(0, 1, hits).astype(np.float32),
        "hits/cal3d/ghost": ghost,
        "hits/cal3d/hierarchy": shares[0],
        "hits/cal3d/category": shares[1],
        "hits/ahcal/index": voxels(rng, ahcal, "ahcal")[0],
        "hits/ahcal/charge": rng.lognormal(1, 1, ahcal).astype(np.float32),
        "matrices/ecal": rng.lognormal(2, 1, (5, 5)).astype(np.float32),
        "tracks/muon/features": fit,
        "truth/flavour": np.int64(seed % 6),
        "truth/charm": np.int64(seed % 4),
        "truth/vertex": rng.normal(0, 100, 3).astype(np.float32),
        "truth/visible": rng.normal(0, 10, 3).astype(np.float32),
        "truth/jet": rng.normal(0, 10, 3).astype(np.float32),
        "truth/neutrino_energy": np.float32(100 + seed),
        "identity/run": np.int64(7),
        "identity/event": np.int64(seed),
    }
    jet, visible = record["truth/jet"], record["truth/visible"]
    record["truth/lepton"] = visible - jet if seed % 6 != 5 else np.zeros(3, np.float32)
    return record if group is None else record | {"group": np.int64(group)}


def without(record: dict, stream: str) -> dict:
    return {path: value for path, value in record.items() if f"/{stream}" not in path}


def write(path: Path, records: Sequence[dict], detector: str = "fasercal") -> Path:
    """Write records as the layout says; a stream that a record lacks is missing in its event."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = dict.fromkeys(p for record in records for p in record)
    with h5py.File(path, "w") as file:
        file.attrs["layout"], file.attrs["detector"], file.attrs["producer"] = 1, detector, "a test"
        for p in paths:
            kind, *rest = p.split("/")
            there = [p in record for record in records]
            example = np.asarray(next(record[p] for record in records if p in record))
            if kind in ("hits", "tracks"):
                rows = [
                    np.asarray(r[p]) if p in r else np.zeros((0, *example.shape[1:]), example.dtype) for r in records
                ]
                file[p] = np.concatenate(rows)
                offsets = f"{kind}/{rest[0]}/offsets"
                if offsets not in file:
                    file[offsets] = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
            else:
                file[p] = np.stack([np.asarray(r[p]) if p in r else np.zeros_like(example) for r in records])
            if kind in ("hits", "tracks", "matrices") and not all(there):
                if f"present/{rest[0]}" not in file:
                    file[f"present/{rest[0]}"] = np.array(there)
    return path


def npz_fields(record: dict) -> dict:
    """The event in the npz layout, with the deposits that make its soft labels: for every hit that is not a ghost and
    has labels, one deposit of each pair of classes, with the product of the shares as its weight."""
    index, module = record["hits/cal3d/index"], record["hits/cal3d/module"]
    n = len(index)
    deposits, link, weight, start = [], [], [], [0]
    pdg = (22, -13, 211)  # electromagnetic, muonic, hadronic
    flags = ((0, 0), (1, 0), (0, 1))  # background, primary, secondary
    for hit in range(n):
        for h in range(3):
            for c in range(3):
                share = float(record["hits/cal3d/hierarchy"][hit, h]) * float(record["hits/cal3d/category"][hit, c])
                if share > 0:
                    row = [0.0] * 13
                    row[3], (row[9], row[10]) = pdg[c], flags[h]
                    link.append(len(deposits))
                    deposits.append(row)
                    weight.append(share)
        start.append(len(link))
    flavour = int(record["truth/flavour"])
    stacked = index + np.array([0, 0, 20]) * module[:, None]
    columns = [stacked, module, record["hits/cal3d/charge"], record["hits/cal3d/ghost"]]
    return {
        "reco_hits": np.column_stack(columns).astype(np.float32),
        "true_hits": np.array(deposits, dtype=np.float32).reshape(-1, 13),
        "indptr": np.array(start, dtype=np.int32),
        "true_index": np.array(link, dtype=np.int32),
        "link_weight": np.array(weight, dtype=np.float32),
        "ahcal_hits": np.column_stack([record["hits/ahcal/index"], record["hits/ahcal/charge"]]).astype(np.float64),
        "ecal_hits": record["matrices/ecal"].astype(np.float64),
        "muspec_info": record["tracks/muon/features"].T,
        "is_cc": flavour != 5,
        "is_tau": flavour in (2, 3, 4),
        "is_charmed": int(record["truth/charm"]) > 0,
        "charm_decay": np.array([(1, 2, 3, p) for p in ((), (-11, 12), (13, -14), (211, 111))[record["truth/charm"]]],
                                dtype=[(f, np.int32) for f in ("g4_id", "track_id", "parent_id", "pdg")]),
        "in_neutrino_pdg": (14, -12, 16, -16, 16, 14)[flavour],
        "in_neutrino_energy": float(record["truth/neutrino_energy"]),
        "tau_decay_mode": (0, 0, 1, 2, 4, 0)[flavour],
        "vis_sp_momentum": record["truth/visible"].astype(np.float64),
        "jet_momentum": record["truth/jet"].astype(np.float64),
        "primary_vertex": record["truth/vertex"].astype(np.float64),
        "run_number": 7,
        "event_id": int(record["identity/event"]),
        "po": np.zeros(3, dtype=[("pdg", np.int32)]),
    }  # fmt: skip
