"""One simulated event: hits, labels and truth, as arrays of a stream file or as the published record of one event.

Labels of a voxel are shares of the true energy in it (facts of the public code saulam/faserDL):
- hierarchy: *primary*, the ionisation of a particle that comes from the interaction itself; *secondary*, of a particle
  whose parent is one of the generator's (decay products of τ and charm, first products of an interaction or of an
  electron); *background*, all later generations.
- category: electromagnetic, muonic, hadronic; a τ follows its decay (e, µ, else hadronic).
A voxel without true deposit is a ghost (1); one whose deposits are all below ``LINKED_MEV`` is unmatched (2).

Shape legend: N hits, D deposits, P particles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nufm.data.detector import VoxelStream, load_stream_detector
from nufm.simulation.fasercal.decays import MASS, charge_of
from nufm.simulation.fasercal.deposits import BACKGROUND, EM, HADRONIC, MUONIC, PRIMARY, SECONDARY, Deposits, clear
from nufm.simulation.fasercal.generator import Interaction
from nufm.simulation.fasercal.geometry import CAL3D, World
from nufm.simulation.fasercal.readout import Readout, reconstruct
from nufm.simulation.fasercal.showers import (
    CHARGED,
    ELECTRON,
    INVISIBLE,
    MUON,
    NEUTRAL,
    PHOTON,
    SHORT,
    deposit_particles,
)
from nufm.simulation.fasercal.spectrometer import tracks
from nufm.simulation.rng import seed_state

LINKED_MEV = 1e-3
_KINDS = {11: ELECTRON, 22: PHOTON, 13: MUON, 12: INVISIBLE, 14: INVISIBLE, 16: INVISIBLE, 130: NEUTRAL, 2112: NEUTRAL}
PARTICLE = np.dtype(
    [("pdg", "i4"), ("mother", "i4"), ("momentum", "f8", 3), ("energy", "f8"), ("start", "f8", 3), ("end", "f8", 3)]
)


@dataclass(frozen=True)
class Simulated:
    """One event.

    Attributes:
        interaction: what happened.
        hits: int32 (N, 4) module, x, y, z.
        charge: float32 (N,) MeV.
        ghost: int8 (N,).
        deposits: cell int32, particle int32, label int8, energy float32 (D,) each, sorted by cell; all ≥ LINKED_MEV.
        first, last: int64 (N,) the deposits first:last lie in the voxel of the hit.
        ecal: float32 (5, 5) MeV.
        ahcal: int32 (A, 3) cells, and float32 (A,) MeV.
        tracks: float32 (T, 11).
    """

    interaction: Interaction
    hits: np.ndarray
    charge: np.ndarray
    ghost: np.ndarray
    deposits: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    first: np.ndarray
    last: np.ndarray
    ecal: np.ndarray
    ahcal: tuple[np.ndarray, np.ndarray]
    tracks: np.ndarray


def detect(
    interaction: Interaction,
    world: World,
    work: Deposits,
    detector: str,
    rules: Readout,
    rng: np.random.Generator,
) -> Simulated:
    """The interaction as the detector sees it; ``work`` is overwritten."""
    particles = interaction.particles
    n = len(particles.pdg)
    pdg, mother = np.array(particles.pdg), np.array(particles.mother)
    mass = np.array([MASS[abs(p)] for p in particles.pdg]) * 1e3
    charge = np.array([charge_of(p) for p in particles.pdg])
    own = {11: EM, 22: EM, 13: MUONIC, 15: {1: EM, 2: MUONIC}.get(interaction.tau_mode, HADRONIC)}
    category = np.array([own.get(abs(p), HADRONIC) for p in particles.pdg])
    kind = np.array([_KINDS.get(abs(p), CHARGED) for p in particles.pdg])
    decayed = np.array(particles.decayed)
    kind[decayed] = np.where(charge[decayed] != 0, SHORT, INVISIBLE)
    generations = generation(mother, pdg)
    momentum = np.stack(particles.momentum)[:, :3] * 1e3
    exits = np.zeros((n, 7))
    clear(work)
    state = seed_state(int(rng.integers(2**62)))
    start, end = np.stack(particles.start), np.stack(particles.end)
    deposit_particles(world, work, state, kind, category, mass, momentum, start, end, generations, exits)
    if work.count[1]:
        raise RuntimeError(f"an event of {interaction.energy:.0f} GeV made more deposits than its work space holds")

    count = int(work.count[0])
    lattice = tuple(int(c) for c in world.cells[CAL3D])
    modules = int((world.kind == CAL3D).sum())
    hits, amplitude = reconstruct(work.cell[:count], work.energy[:count], modules, lattice, rules)
    cell = ((hits[:, 0] * lattice[0] + hits[:, 1]) * lattice[1] + hits[:, 2]) * lattice[2] + hits[:, 3]
    touched = np.zeros(modules * int(np.prod(lattice)), dtype=bool)
    touched[work.cell[:count]] = True
    rows = np.flatnonzero(work.energy[:count] >= LINKED_MEV)
    rows = rows[np.argsort(work.cell[rows], kind="stable")]
    deposits = tuple(a[rows] for a in (work.cell, work.particle, work.label, work.energy))
    first, last = np.searchsorted(deposits[0], cell, "left"), np.searchsorted(deposits[0], cell, "right")
    ghost = np.where(~touched[cell], 1, np.where(last == first, 2, 0)).astype(np.int8)

    ahcal = work.ahcal
    lit = np.argwhere(ahcal > rules.ahcal_threshold).astype(np.int32)
    stream = load_stream_detector(detector).tracks["muon"]
    return Simulated(
        interaction,
        hits,
        amplitude.astype(np.float32),
        ghost,
        deposits,
        first,
        last,
        work.ecal[:, :, 0].astype(np.float32),
        (lit, ahcal[tuple(lit.T)].astype(np.float32)),
        tracks(stream, exits, mass, charge, rng),
    )


def generation(mother: np.ndarray, pdg: np.ndarray) -> np.ndarray:
    """int64 (P,) 0 for a particle of the interaction itself, 1 for a product of its decay; a π⁰ lives too short to
    count."""
    return np.where((mother < 0) | (pdg[mother] == 111), 0, 1)


def momenta(interaction: Interaction) -> dict[str, np.ndarray]:
    """``visible``, ``jet``, ``lepton``, ``tau``: float64 (3,) GeV/c, sums over stable particles that are no neutrinos.

    A τ counts as its visible products; the jet is all but the primary lepton in charged currents, all in neutral ones.
    """
    particles = interaction.particles
    total = {name: np.zeros(3) for name in ("visible", "lepton", "tau")}
    for i, pdg in enumerate(particles.pdg):
        if particles.decayed[i] or abs(pdg) in (12, 14, 16):
            continue
        total["visible"] += particles.momentum[i][:3]
        if interaction.is_cc and origin(particles.mother, i) == interaction.lepton:
            total["lepton"] += particles.momentum[i][:3]
    if interaction.tau_mode:
        total["tau"] = total["lepton"]
    return {**total, "jet": total["visible"] - total["lepton"]}


def origin(mother: list[int], row: int) -> int:
    """The particle from the interaction itself that ``row`` goes back to."""
    while mother[row] >= 0:
        row = mother[row]
    return row


def flavour_of(interaction: Interaction) -> int:
    """Class number of ``nufm.data.streams.FLAVOUR_NAMES``."""
    if not interaction.is_cc:
        return 5
    return {14: 0, 12: 1}.get(abs(interaction.neutrino), {1: 2, 2: 3}.get(interaction.tau_mode, 4))


def soft_labels(event: Simulated) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, 3) shares of hierarchy and of category; rows of 0 where nothing is linked."""
    n = len(event.hits)
    links = event.last - event.first
    hit = np.repeat(np.arange(n), links)
    row = np.arange(len(hit)) - np.repeat(np.cumsum(links) - links, links) + np.repeat(event.first, links)
    label, energy = event.deposits[2][row].astype(np.int64), event.deposits[3][row].astype(np.float64)
    result = []
    for number in (label // 3, label % 3):
        shares = np.bincount(hit * 3 + number, weights=energy, minlength=3 * n).reshape(n, 3)
        result.append((shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)).astype(np.float32))
    return result[0], result[1]


def event_arrays(event: Simulated) -> dict[str, np.ndarray]:
    """The event as a record of a stream file: path of a data set -> array (see ``nufm/data/stream_files.py``)."""
    hierarchy, category = soft_labels(event)
    vectors = momenta(event.interaction)
    return {
        "hits/cal3d/index": event.hits[:, 1:].astype(np.uint8),
        "hits/cal3d/module": event.hits[:, 0].astype(np.uint8),
        "hits/cal3d/charge": event.charge,
        "hits/cal3d/ghost": event.ghost,
        "hits/cal3d/hierarchy": hierarchy.astype(np.float16),
        "hits/cal3d/category": category.astype(np.float16),
        "hits/ahcal/index": event.ahcal[0].astype(np.uint8),
        "hits/ahcal/charge": event.ahcal[1],
        "matrices/ecal": event.ecal,
        "tracks/muon/features": event.tracks,
        "truth/flavour": np.int64(flavour_of(event.interaction)),
        "truth/charm": np.int64(event.interaction.charm),
        "truth/visible": vectors["visible"].astype(np.float32),
        "truth/jet": vectors["jet"].astype(np.float32),
        "truth/lepton": vectors["lepton"].astype(np.float32),
        "truth/vertex": event.interaction.vertex.astype(np.float32),
        "truth/neutrino_energy": np.float32(event.interaction.energy),
    }


def event_record(event: Simulated, run: int, number: int, detector: str = "fasercal") -> dict[str, np.ndarray]:
    """The event with the fields of the public per-event files (saulam/faserDL, format v7), for numpy.savez.

    Lists of particles (``po``, ``tau_decay``, ``charm_decay``) have the plain columns ``PARTICLE``, so that no field
    needs pickle. ``true_hits`` has the columns track, parent, primary, pdg, x, y, z, module, E (MeV), is_primary,
    is_secondary, is_tau_decay, is_charm_decay. Tracks 1 … P are the generator's particles (row + 1, parent 0: none);
    what they make in showers has higher numbers, one per kind of deposit. ``seg_labels``: shares of ghost, primary,
    secondary, background. Positions in mm from the centre of the voxel calorimeter.
    """
    interaction, particles = event.interaction, event.interaction.particles
    vectors = momenta(interaction)
    po = _table(particles, range(len(particles.pdg)))
    tau = [i for i, m in enumerate(particles.mother) if interaction.tau_mode and m == interaction.lepton]
    charm = [i for i, m in enumerate(particles.mother) if interaction.charm_row >= 0 and m == interaction.charm_row]
    lepton = particles.momentum[interaction.lepton]
    flight, kink = 0.0, 0.0
    if interaction.tau_mode:
        flight = float(np.linalg.norm(particles.end[interaction.lepton] - interaction.vertex))
        seen = vectors["tau"]
        cosine = seen @ lepton[:3] / max(np.linalg.norm(seen) * np.linalg.norm(lepton[:3]), 1e-12)
        kink = float(np.arccos(np.clip(cosine, -1, 1)))
    links = event.last - event.first
    indptr = np.concatenate([[0], np.cumsum(links)])
    index = np.arange(indptr[-1]) - np.repeat(indptr[:-1], links) + np.repeat(event.first, links)
    energy = event.deposits[3][index].astype(np.float64)
    per_hit = np.bincount(np.repeat(np.arange(len(links)), links), weights=energy, minlength=len(links))
    hierarchy, _ = soft_labels(event)
    visible = vectors["visible"]
    ahcal_index, ahcal_energy = event.ahcal
    return {
        "run_number": np.int64(run),
        "event_id": np.int64(number),
        "is_cc": np.bool_(interaction.is_cc),
        "is_es": np.bool_(False),
        "is_tau": np.bool_(interaction.tau_mode > 0),
        "is_charmed": np.bool_(interaction.charm > 0),
        "in_neutrino_pdg": np.int64(interaction.neutrino),
        "in_neutrino_momentum": np.array([0.0, 0.0, interaction.energy]),
        "in_neutrino_energy": np.float64(interaction.energy),
        "out_lepton_pdg": np.int64(particles.pdg[interaction.lepton]),
        "out_lepton_momentum": lepton[:3],
        "out_lepton_energy": np.float64(lepton[3]),
        "vis_sp_momentum": visible,
        "jet_momentum": vectors["jet"],
        "tau_vis_momentum": vectors["tau"],
        "sp_momentum": np.sum([particles.momentum[i][:3] for i, m in enumerate(particles.mother) if m < 0], axis=0),
        "e_vis": np.float64(np.linalg.norm(visible)),
        "pt_miss": np.float64(np.hypot(visible[0], visible[1])),
        "primary_vertex": interaction.vertex,
        "tau_decay_mode": np.int64(interaction.tau_mode),
        "tau_decay_length": np.float64(flight),
        "tau_kink": np.float64(kink),
        "po": po,
        "tau_decay": po[tau],
        "charm_decay": po[charm],
        "reco_hits": np.column_stack([event.hits[:, 1:], event.hits[:, 0], event.charge, event.ghost]).astype(float),
        "true_hits": _true_hits(event, load_stream_detector(detector).voxels["cal3d"]),
        "indptr": indptr,
        "true_index": index,
        "link_weight": energy / np.repeat(np.maximum(per_hit, 1e-12), links),
        "ghost_mask": event.ghost == 1,
        "seg_labels": np.column_stack([event.ghost == 1, hierarchy[:, [1, 2, 0]]]).astype(np.float32),
        "ecal_hits": event.ecal,
        "ahcal_hits": np.column_stack([ahcal_index, ahcal_energy]).astype(np.float64),
        "muspec_info": event.tracks.T.astype(np.float64),
    }


def _table(particles, rows) -> np.ndarray:
    table = np.zeros(len(rows), dtype=PARTICLE)
    for at, i in enumerate(rows):
        table[at] = (
            particles.pdg[i],
            particles.mother[i],
            particles.momentum[i][:3],
            particles.momentum[i][3],
            particles.start[i],
            particles.end[i],
        )
    return table


def _true_hits(event: Simulated, stream: VoxelStream) -> np.ndarray:
    """float64 (D, 13), see ``event_record``."""
    interaction, particles = event.interaction, event.interaction.particles
    n = len(particles.pdg)
    cell, particle, label, energy = event.deposits
    hierarchy, category = label.astype(np.int64) // 3, label.astype(np.int64) % 3
    mother, pdg = np.array(particles.mother), np.array(particles.pdg)
    root = np.array([origin(particles.mother, i) for i in range(n)])
    product = generation(mother, pdg)[particle] > 0
    itself = (hierarchy == PRIMARY) | ((hierarchy == SECONDARY) & product)
    made = n + 1 + 9 * particle.astype(np.int64)
    track = np.where(itself, particle + 1, made + label)
    parent = np.where(itself, mother[particle] + 1, particle + 1)
    parent = np.where(hierarchy == BACKGROUND, made + SECONDARY * 3 + category, parent)
    species = np.where(itself & (category != EM), pdg[particle], np.array([11, 13, 211])[category])
    module, x, y, z = np.unravel_index(cell, (stream.modules, *stream.lattice))
    of_decay = mother[particle] >= 0
    of_tau = of_decay & (root[particle] == interaction.lepton)  # the root of a decay is the lepton if that is a τ
    of_charm = of_decay & (root[particle] == interaction.charm_row)
    columns = [track, parent, root[particle] + 1, species, x, y, z, module, energy]
    columns += [hierarchy == PRIMARY, hierarchy == SECONDARY, of_tau, of_charm]
    return np.column_stack(columns).astype(np.float64)
