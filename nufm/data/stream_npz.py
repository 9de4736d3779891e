"""The npz layout of FASERCal events, one file per event, and records of the HDF5 layout: both directions.

The layout is the one that the public code saulam/faserDL writes (``dataset/read_root_v7.py``, December 2025). Read are

    reco_hits (N, 6)       x, y, z, module, charge, ghost flag (0 real, 1 ghost, 2 unmatched; -1 unknown). z counts
    within
                           the module, or through the whole stack (20 · module + z), as the public files do
    true_hits (T, 13), indptr (N+1,), true_index (E,), link_weight (E,)
                           the deposits that each hit is linked to, from which the soft labels come
    ecal_hits (5, 5), ahcal_hits (M, 4): x, y, z, energy; muspec_info (11, tracks), columns as ``TRACK_COLUMNS``
    is_cc, in_neutrino_pdg, in_neutrino_energy, tau_decay_mode, is_charmed, charm_decay, vis_sp_momentum, jet_momentum,
    primary_vertex, run_number, event_id

and nothing else: ``po``, ``tau_decay`` and the rest are left unread. A field that is absent is a stream that was not
read out, or a truth that is not known. Files are loaded without pickle, which could run code: a field that is a Python
object is refused if its content is needed. Tar shards of such files have to be unpacked.

Shape legend: N hits of 3DCal, M of AHCAL, T true deposits, E links of hits to deposits.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nufm.data.detector import load_stream_detector
from nufm.data.stream_hdf5 import Record
from nufm.data.streams import CATEGORY_NAMES, CHARM_NAMES, FLAVOUR_NAMES

NPZ_DETECTOR = "fasercal"
TRACK_COLUMNS = ("charge", "n_points", "px", "py", "pz", "p", "chi2", "ndof", "p_value", "error_1", "error_2")
DEPOSIT_COLUMNS = 13  # track, parent, primary, pdg, x, y, z, module, energy, is primary, secondary, of τ, of charm
PDG, PRIMARY, SECONDARY = 3, 9, 10
ELECTROMAGNETIC = (11, 22, 111, 221, 331)  # |PDG| of e±, γ, π⁰, η, η′
MUON, TAU = 13, 15
TAU_TO_E, TAU_TO_MU, TAU_OTHER = 1, 2, 6  # decay modes; 3 one-prong, 4 ρ, 5 three-prong


class _Fields:
    """The fields of one file, read when asked for and checked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._arrays = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not an npz file of one event ({error}); get it again") from error
        if not isinstance(self._arrays, Mapping):
            raise ValueError(f"{path}: a single array, expected an npz file with the fields of one event")

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __enter__(self) -> _Fields:
        return self

    def __exit__(self, *_: object) -> None:
        self._arrays.close()

    def array(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except KeyError:
            raise ValueError(f"{self.path}: field '{name}' is missing, found {', '.join(self._arrays)}") from None
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self.path}: field '{name}' cannot be read ({error}); Python objects are refused, since reading them "
                "could run code: write the file again with plain numbers"
            ) from error

    def table(self, name: str, columns: int) -> np.ndarray:
        """A field of ``columns`` columns; without rows, any shape without elements will do."""
        rows = self.array(name)
        if rows.size == 0:
            return np.zeros((0, columns), dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != columns or not np.issubdtype(rows.dtype, np.number):
            raise ValueError(
                f"{self.path}: field '{name}' has shape {rows.shape} of {rows.dtype}, expected numbers (rows, "
                f"{columns})"
            )
        return rows

    def number(self, name: str) -> float:
        value = self.array(name)
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise ValueError(
                f"{self.path}: field '{name}' has shape {value.shape} of {value.dtype}, expected one number"
            )
        return value.item()

    def whole(self, name: str, values: np.ndarray) -> np.ndarray:
        """``values`` of field ``name`` as int64."""
        bad = values != np.rint(values)  # NaN is unequal to itself
        if bad.any():
            row = int(np.argmax(bad.reshape(len(values), -1).any(1)))
            raise ValueError(
                f"{self.path}: field '{name}', row {row}: found {values[row].tolist()}, expected whole numbers"
            )
        return values.astype(np.int64)


def npz_record(path: str | Path, origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Record:
    """The event of one npz file as a record of the HDF5 layout.

    Args:
        path: the file.
        origin_mm: where the centre of 3DCal is in the frame of ``primary_vertex``.

    Raises:
        ValueError: a field is not what it should be.
    """
    with _Fields(Path(path)) as fields:
        record = _streams(fields)
        if not record:
            raise ValueError(
                f"{path}: none of the fields reco_hits, ecal_hits, ahcal_hits and muspec_info is there; is it a "
                "FASERCal event?"
            )
        record.update(_truth(fields, origin_mm))
        for name, field in (("run", "run_number"), ("event", "event_id")):
            if field in fields:
                record[f"identity/{name}"] = np.int64(fields.number(field))
        return record


def npz_producer(path: str | Path) -> str:
    """Who made the event of an npz file, where the file says so."""
    with _Fields(Path(path)) as fields:
        return str(fields.array("producer")) if "producer" in fields else ""


def _streams(fields: _Fields) -> Record:
    record: Record = {}
    if "reco_hits" in fields:
        hits = fields.table("reco_hits", 6)
        whole = fields.whole("reco_hits", hits[:, [0, 1, 2, 3, 5]])
        index, module, flag = whole[:, :3], whole[:, 3], whole[:, 4]
        depth = load_stream_detector(NPZ_DETECTOR).voxels["cal3d"].lattice[2]
        if (index[:, 2] >= depth).any():  # z counts through the stack
            wrong = index[:, 2] // depth != module
            if wrong.any():
                row = int(np.argmax(wrong))
                raise ValueError(
                    f"{fields.path}: field 'reco_hits', row {row}: z = {index[row, 2]} counted through the stack is in "
                    f"module {index[row, 2] // depth}, found module {module[row]}"
                )
            index[:, 2] -= depth * module
        known = len(flag) == 0 or (flag >= 0).all()
        record |= {
            "hits/cal3d/index": index.astype(np.int32),
            "hits/cal3d/module": module.astype(np.int32),
            "hits/cal3d/charge": hits[:, 4].astype(np.float32),
        }
        if known:
            record["hits/cal3d/ghost"] = flag.astype(np.int8)
            record |= {f"hits/cal3d/{k}": v for k, v in _soft_labels(fields, flag == 1).items()}
    if "ahcal_hits" in fields:
        hits = fields.table("ahcal_hits", 4)
        record["hits/ahcal/index"] = fields.whole("ahcal_hits", hits[:, :3]).astype(np.int32)
        record["hits/ahcal/charge"] = hits[:, 3].astype(np.float32)
    if "ecal_hits" in fields:
        record["matrices/ecal"] = fields.array("ecal_hits").astype(np.float32)
    if "muspec_info" in fields:
        rows = fields.array("muspec_info")
        if rows.size == 0:
            rows = np.zeros((len(TRACK_COLUMNS), 0), dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(TRACK_COLUMNS):
            raise ValueError(
                f"{fields.path}: stream 'muon', field 'muspec_info' has shape {rows.shape}, expected "
                f"({len(TRACK_COLUMNS)}, tracks) with the rows {', '.join(TRACK_COLUMNS)}"
            )
        record["tracks/muon/features"] = np.ascontiguousarray(rows.T, dtype=np.float32)
    return record


def _soft_labels(fields: _Fields, ghost: np.ndarray) -> Record:
    """``hierarchy`` and ``category`` float32 (N, 3): the shares of a hit's energy from deposits of each class.

    y_c = Σ_{j of class c} w_j / Σ_j w_j over the deposits j that the hit is linked to with weight w_j; ghosts and hits
    without links have rows of 0. As the public code does, a deposit is secondary if its track's parent is a particle of
    the generator, whatever else it is; primary if its track is one itself; else background.
    """
    if "hierarchy" in fields and "category" in fields:  # written by nufm
        return {name: fields.table(name, 3).astype(np.float32) for name in ("hierarchy", "category")}
    if not all(name in fields for name in ("indptr", "true_index", "link_weight", "true_hits")):
        return {}
    n = len(ghost)
    start = fields.array("indptr").astype(np.int64)
    link, weight = fields.array("true_index").astype(np.int64), fields.array("link_weight").astype(np.float64)
    # without links the deposits are not asked for: the public code writes None for an event that has none
    deposits = fields.table("true_hits", DEPOSIT_COLUMNS) if len(link) else np.zeros((0, DEPOSIT_COLUMNS))
    if start.shape != (n + 1,) or start[0] != 0 or (np.diff(start) < 0).any() or start[-1] != len(link):
        raise ValueError(
            f"{fields.path}: field 'indptr' has shape {start.shape} and ends at {start[-1:].tolist()}, expected "
            f"({n + 1},), one more than reco_hits, rising to the {len(link)} links of true_index"
        )
    if weight.shape != link.shape or (len(link) and not (0 <= link.min() and link.max() < len(deposits))):
        raise ValueError(
            f"{fields.path}: fields 'true_index' {link.shape} and 'link_weight' {weight.shape} do not fit the "
            f"{len(deposits)} rows of true_hits"
        )
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError(
            f"{fields.path}: field 'link_weight' has values below 0 or not finite, expected energy fractions"
        )
    hierarchy = np.where(deposits[:, SECONDARY] > 0, 2, np.where(deposits[:, PRIMARY] > 0, 1, 0))
    mode = int(fields.number("tau_decay_mode")) if "tau_decay_mode" in fields else TAU_OTHER
    hit = np.repeat(np.arange(n), np.diff(start))
    weight = np.where(ghost[hit], 0.0, weight)
    labels = {}
    for name, classes in (("hierarchy", hierarchy), ("category", _categories(deposits[:, PDG], mode))):
        shares = np.zeros(3 * n)
        np.add.at(shares, hit * 3 + classes[link], weight)
        shares = shares.reshape(n, 3)
        total = shares.sum(1, keepdims=True)
        labels[name] = np.divide(shares, total, out=np.zeros_like(shares), where=total > 0).astype(np.float32)
    return labels


def _categories(pdg: np.ndarray, tau_decay_mode: int) -> np.ndarray:
    """int64, class of ``CATEGORY_NAMES`` of deposits by particles ``pdg``; a τ is what it decays to."""
    kind = np.abs(pdg)
    em, muonic, hadronic = range(len(CATEGORY_NAMES))
    of_tau = {TAU_TO_E: em, TAU_TO_MU: muonic}.get(tau_decay_mode, hadronic)
    return np.select([np.isin(kind, ELECTROMAGNETIC), kind == MUON, kind == TAU], [em, muonic, of_tau], hadronic)


def _truth(fields: _Fields, origin_mm: tuple[float, float, float]) -> Record:
    record: Record = {}
    charged = bool(fields.number("is_cc")) if "is_cc" in fields else None
    if charged is not None and (not charged or "in_neutrino_pdg" in fields):
        record["truth/flavour"] = np.int64(_flavour(fields, charged))
    if "is_charmed" in fields:
        charmed = bool(fields.number("is_charmed"))
        if not charmed or "charm_decay" in fields:
            products = fields.array("charm_decay") if charmed else np.zeros(0, dtype=np.int64)
            products = products["pdg"] if products.dtype.names and "pdg" in products.dtype.names else products
            if products.dtype.kind not in "iuf":
                raise ValueError(
                    f"{fields.path}: field 'charm_decay' is of {products.dtype}, expected PDG codes, or records with "
                    "'pdg'"
                )
            record["truth/charm"] = np.int64(_charm(charmed, products))
    for name, field in (("visible", "vis_sp_momentum"), ("jet", "jet_momentum")):
        if field in fields:
            record[f"truth/{name}"] = fields.array(field).astype(np.float32)
    if charged is not None and "truth/visible" in record and "truth/jet" in record:
        # the lepton is what the jet lacks: for ντ the visible products of the τ; NC has none
        record["truth/lepton"] = (record["truth/visible"] - record["truth/jet"]) * np.float32(charged)
    if "primary_vertex" in fields:
        record["truth/vertex"] = (fields.array("primary_vertex") - np.asarray(origin_mm)).astype(np.float32)
    if "in_neutrino_energy" in fields:
        record["truth/neutrino_energy"] = np.float32(fields.number("in_neutrino_energy"))
    return record


def _flavour(fields: _Fields, charged: bool) -> int:
    """Class of ``FLAVOUR_NAMES``; scattering on electrons counts as NC, as in the public code."""
    if not charged:
        return FLAVOUR_NAMES.index("NC")
    pdg = abs(int(fields.number("in_neutrino_pdg")))
    if pdg == 16:
        mode = int(fields.number("tau_decay_mode"))
        if mode not in range(1, TAU_OTHER + 1):
            raise ValueError(
                f"{fields.path}: field 'tau_decay_mode' of a ντ CC event is {mode}, expected 1 to {TAU_OTHER}"
            )
        return FLAVOUR_NAMES.index({TAU_TO_E: "ντ CC → e", TAU_TO_MU: "ντ CC → µ"}.get(mode, "ντ CC → had"))
    if pdg not in (12, 14):
        raise ValueError(f"{fields.path}: field 'in_neutrino_pdg' is {pdg}, expected ±12, ±14 or ±16")
    return FLAVOUR_NAMES.index("νe CC" if pdg == 12 else "νµ CC")


def _charm(charmed: bool, products: np.ndarray) -> int:
    """Class of ``CHARM_NAMES`` from the PDG codes of the decay products; a muon counts before an electron."""
    if not charmed:
        return CHARM_NAMES.index("no charm")
    kinds = set(np.abs(products.astype(np.int64)).reshape(-1).tolist())
    return CHARM_NAMES.index("charm → µ" if 13 in kinds else "charm → e" if 11 in kinds else "charm → had")


# ---------------------------------------------------------------------- the other way


def write_npz(
    path: str | Path,
    record: Record,
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    producer: str = "",
) -> None:
    """Write a record as an npz file that :func:`npz_record` reads back as the same record.

    A record knows classes, not particles. Where the layout has particles, the file gets such that make the class: 0
    for the neutrino of NC, the signs of neutrinos, decay mode 6 (other) for hadronic τ decays, and for a charm decay
    the lepton or a π⁺. The deposits behind the soft labels are not there; the labels are, as ``hierarchy`` and
    ``category`` (N, 3). ``truth/particle``, ``extra`` and ``group`` have no place in the layout and are left out.
    """
    fields: dict[str, object] = {}
    if "hits/cal3d/index" in record:
        index = record["hits/cal3d/index"]
        flag = record.get("hits/cal3d/ghost", np.full(len(index), -1))
        columns = (index, record["hits/cal3d/module"], record["hits/cal3d/charge"], flag)
        fields["reco_hits"] = np.column_stack(columns).astype(np.float32)
        fields |= {k: record[f"hits/cal3d/{k}"] for k in ("hierarchy", "category") if f"hits/cal3d/{k}" in record}
        fields["ghost_mask"] = flag == 1
    if "hits/ahcal/index" in record:
        columns = (record["hits/ahcal/index"], record["hits/ahcal/charge"])
        fields["ahcal_hits"] = np.column_stack(columns).astype(np.float32)
    if "matrices/ecal" in record:
        fields["ecal_hits"] = record["matrices/ecal"]
    if "tracks/muon/features" in record:
        fields["muspec_info"] = record["tracks/muon/features"].T
    flavour, charm = (int(record.get(f"truth/{name}", -1)) for name in ("flavour", "charm"))
    if flavour >= 0:
        name = FLAVOUR_NAMES[flavour]
        pdg = {"νe CC": 12, "νµ CC": 14, "NC": 0}.get(name, 16)
        modes = {"ντ CC → e": TAU_TO_E, "ντ CC → µ": TAU_TO_MU, "ντ CC → had": TAU_OTHER}
        fields |= {
            "is_cc": name != "NC",
            "is_tau": pdg == 16,
            "in_neutrino_pdg": pdg,
            "tau_decay_mode": modes.get(name, 0),
        }
    if charm >= 0:
        products = {"no charm": [], "charm → e": [-11], "charm → µ": [-13], "charm → had": [211]}[CHARM_NAMES[charm]]
        fields |= {"is_charmed": bool(products), "charm_decay": np.array(products, dtype=np.int32)}
    for field, name in (
        ("vis_sp_momentum", "truth/visible"),
        ("jet_momentum", "truth/jet"),
        ("in_neutrino_energy", "truth/neutrino_energy"),
        ("run_number", "identity/run"),
        ("event_id", "identity/event"),
    ):
        if name in record:
            fields[field] = record[name]
    if "truth/vertex" in record:
        fields["primary_vertex"] = record["truth/vertex"] + np.asarray(origin_mm)
    if producer:
        fields["producer"] = producer
    np.savez_compressed(path, **fields)
