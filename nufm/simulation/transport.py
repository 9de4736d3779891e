"""Transport of primary particles through a uniform medium: the entry point of the simulation engine.

Units: MeV, mm, ns, tesla. Shape legend: P primaries, S energy-depositing steps, T tracks (primaries first).

Energy book of an event: ``kinetic_in + released == deposited + escaped``. ``released`` is rest energy set
    free
minus rest energy created: + (parent - charged daughters) in decays, + m of an absorbed pi-, K-, mu- or pion
    in
flight, + 2 m_e per annihilation, - 2 m_e per conversion, - m of every pion made, - 8.5 MeV per nucleon set
free from a nucleus (6 MeV after muon capture; + for one swallowed), + Q of neutron capture. ``escaped`` is
the kinetic energy of what leaves the box or never enters it, and neutrinos. Nucleons count with one mass;
the rest mass of particles that leave or stop is not counted.

The approximations of each part are listed at the head of its module. Common to all: the medium is uniform
and fills the box, outside is vacuum without field; there is no time cut; tracks are straight within a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from nufm.simulation.charged import decay, heavy
from nufm.simulation.compiled import compiled
from nufm.simulation.electromagnetic import electron, photon
from nufm.simulation.hadronic import absorb_at_rest, cascade, muon_capture
from nufm.simulation.medium import Medium
from nufm.simulation.neutrons import neutron
from nufm.simulation.particles import (
    ELECTRON,
    GAMMA,
    KAON_LIFETIME,
    KAON_MINUS,
    KAON_PLUS,
    LIGHT_SPEED,
    MASS,
    MUON_LIFETIME,
    MUON_MINUS,
    MUON_PLUS,
    NEUTRON,
    PDG,
    PION_LIFETIME,
    PION_MINUS,
    PION_PLUS,
    PION_ZERO,
    POSITRON,
    Process,
    codes_of,
)
from nufm.simulation.rng import exponential, seed_state, uniform
from nufm.simulation.stopping import T_MAX, Settings, build_tables
from nufm.simulation.tracks import (
    BOX_HIGH,
    BOX_LOW,
    CODE,
    DECAYED,
    DEPOSITED,
    ESCAPED,
    FIELD,
    GONE,
    INTERACTED,
    LAST,
    N_STACK,
    N_STATE,
    N_STEPS,
    N_TRACKS,
    OVERFLOW,
    RELEASED,
    STACK,
    STOPPED,
    Store,
)

__all__ = ["Primaries", "Process", "Settings", "Transported", "transport"]

_PRIMARY = int(Process.PRIMARY)


@dataclass(frozen=True)
class Primaries:
    """The particles an event starts with.

    Attributes:
        pdg: int32 (P,) 22, +-11, +-13, +-211, 111, +-321, 2212, 2112.
        kinetic: float64 (P,) kinetic energy in MeV (a photon's energy), 0 for a particle at rest.
        position: float64 (P, 3) mm. Outside the box the particle flies straight to it, or escapes.
        direction: float64 (P, 3) unit vectors.
        time: float64 (P,) ns.

    Raises:
        ValueError: lengths that differ, NaN or infinite values, energies < 0 or above 100 GeV, a direction
            that is not a unit vector.
    """

    pdg: np.ndarray
    kinetic: np.ndarray
    position: np.ndarray
    direction: np.ndarray
    time: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.pdg)
        for field, shape in (("kinetic", (n,)), ("position", (n, 3)), ("direction", (n, 3)), ("time", (n,))):
            value = np.asarray(getattr(self, field), dtype=np.float64)
            if value.size == 0 and n == 0:
                value = value.reshape(shape)
            if value.shape != shape:
                raise ValueError(f"primaries: field '{field}' has shape {value.shape}, expected {shape}")
            if not np.isfinite(value).all():
                row = int(np.argwhere(~np.isfinite(value))[0][0])
                raise ValueError(f"primary {row}: field '{field}' is {value[row]}, expected finite numbers")
            object.__setattr__(self, field, value)
        object.__setattr__(self, "pdg", np.asarray(self.pdg, dtype=np.int32))
        bad = (self.kinetic < 0) | (self.kinetic > T_MAX)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"primary {row}: kinetic energy {self.kinetic[row]} MeV, expected 0 to {T_MAX:.0f} MeV; "
                "energies are kinetic and in MeV"
            )
        length = np.linalg.norm(self.direction, axis=1)
        bad = np.abs(length - 1) > 1e-5
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"primary {row}: direction of length {length[row]:.6g}, expected a unit vector; divide by it"
            )


@dataclass(frozen=True)
class Transported:
    """What an event left in the medium.

    Attributes:
        step_track: int32 (S,) row of the depositing track.
        step_start, step_end: float32 (S, 3) mm; equal for energy left on the spot.
        step_energy: float32 (S,) MeV, spread evenly between start and end.
        step_time: float32 (S,) ns at the start.
        track_pdg: int32 (T,).
        track_parent: int32 (T,) row of the parent, -1 for primaries.
        track_process: int8 (T,) :class:`Process` that made it.
        track_kinetic: float64 (T,) MeV at creation.
        track_momentum: float64 (T,) MeV/c at creation.
        track_position: float64 (T, 3) mm, where it was created.
        track_direction: float64 (T, 3) unit vector at creation.
        track_time: float64 (T,) ns at creation.
        kinetic_in, released, deposited, escaped: MeV, the energy book (see the head of this file).
    """

    step_track: np.ndarray
    step_start: np.ndarray
    step_end: np.ndarray
    step_energy: np.ndarray
    step_time: np.ndarray
    track_pdg: np.ndarray
    track_parent: np.ndarray
    track_process: np.ndarray
    track_kinetic: np.ndarray
    track_momentum: np.ndarray
    track_position: np.ndarray
    track_direction: np.ndarray
    track_time: np.ndarray
    kinetic_in: float
    released: float
    deposited: float
    escaped: float


@partial(compiled, entry=True)
def _follow_all(s, t, n_primaries):
    """Work off the stack. Primaries 0..n-1 stand in the track arrays already; marked ones (process < 0) stay
    out."""
    for i in range(n_primaries - 1, -1, -1):  # the first primary on top
        if s.track_i[i, 2] >= 0:
            s.track_i[s.count[N_STACK], STACK] = i
            s.count[N_STACK] += 1
        else:
            s.track_i[i, 2] = _PRIMARY
    while s.count[N_STACK] > 0 and s.count[OVERFLOW] == 0:
        s.count[N_STACK] -= 1
        idx = s.track_i[s.count[N_STACK], STACK]
        code = s.track_i[idx, 0]
        end = GONE
        if code == GAMMA:
            photon(s, t, idx)
        elif code == ELECTRON or code == POSITRON:
            electron(s, t, idx)
        elif code == NEUTRON:
            end = neutron(s, t, idx)
        elif code == PION_ZERO:
            end = DECAYED
            for k in range(8):
                s.state[LAST + k] = s.track_f[idx, k]
        else:
            end = heavy(s, t, idx)
        if end != GONE:
            _finish(s, t, idx, code, end)


@compiled
def _finish(s, t, idx, code, end):
    """What a particle turns into: decays in flight or at rest, cascades, captures; stopped protons do
    nothing."""
    kinetic, x, y, z = s.state[LAST], s.state[LAST + 1], s.state[LAST + 2], s.state[LAST + 3]
    ux, uy, uz, time = s.state[LAST + 4], s.state[LAST + 5], s.state[LAST + 6], s.state[LAST + 7]
    if end == STOPPED:
        if code == MUON_MINUS:
            time += t.muon_lifetime * exponential(s.rng)
            if uniform(s.rng) > t.muon_lifetime / MUON_LIFETIME:
                muon_capture(s, t, idx, x, y, z, time)
                return
        elif code == PION_MINUS or code == KAON_MINUS:
            absorb_at_rest(s, t, idx, code, x, y, z, time)
            return
        elif code == MUON_PLUS:
            time += MUON_LIFETIME * exponential(s.rng)
        elif code == PION_PLUS:
            time += PION_LIFETIME * exponential(s.rng)
        elif code == KAON_PLUS:
            time += KAON_LIFETIME * exponential(s.rng)
        else:
            return
    if end == INTERACTED:
        cascade(s, t, idx, code, kinetic, x, y, z, ux, uy, uz, time)
    else:
        decay(s, idx, code, kinetic, x, y, z, ux, uy, uz, time)


def _first_capacity(primaries: Primaries) -> int:
    """Tracks to make room for at first; a usual event makes one or two per MeV."""
    return 2048 + len(primaries.pdg) + min(int(primaries.kinetic.sum() * 4), 200_000)


def _enter_box(position: np.ndarray, direction: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Distance (P,) mm along the line to the box, 0 inside, inf if it misses."""
    distance = np.zeros(len(position))
    for i, (point, way) in enumerate(zip(position, direction, strict=True)):
        if ((point >= box[0]) & (point <= box[1])).all():
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            slabs = np.sort((box - point) / way, axis=0)
        still = way == 0
        slabs[:, still] = [[-np.inf], [np.inf]]
        outside = still & ((point < box[0]) | (point > box[1]))
        near, far = slabs[0].max(), slabs[1].min()
        distance[i] = np.inf if outside.any() or near > far or near < 0 else near
    return distance


def transport(
    primaries: Primaries,
    medium: Medium,
    box: tuple[np.ndarray, np.ndarray],
    seed: int,
    field: np.ndarray | tuple[float, float, float] = (0.0, 0.0, 0.0),
    settings: Settings | None = None,
) -> Transported:
    """Follow the primaries and everything they make.

    Args:
        primaries: P >= 0 particles.
        medium: fills the box.
        box: low and high corner, (3,) each, mm.
        seed: integer >= 0. The result depends on the arguments only: not on process, thread, order or
            earlier calls.
        field: uniform magnetic field (3,), tesla.
        settings: cuts and steps.

    Returns:
        Steps and tracks; see :class:`Transported`.

    Raises:
        ValueError: an unknown particle, an empty box, a field or seed that is no number.
    """
    settings = settings or Settings()
    codes = codes_of(primaries.pdg)
    corners = np.array([np.asarray(box[0], dtype=np.float64), np.asarray(box[1], dtype=np.float64)])
    if corners.shape != (2, 3) or not (corners[1] > corners[0]).all():
        raise ValueError(f"box: found corners {corners.tolist()}, expected low < high in x, y, z (mm)")
    tesla = np.array(field, dtype=np.float64)
    if tesla.shape != (3,) or not np.isfinite(tesla).all():
        raise ValueError(f"field: found {field}, expected three finite numbers in tesla")
    if seed < 0:
        raise ValueError(f"seed: found {seed}, expected an integer >= 0")
    tables = build_tables(medium, settings)
    n = len(codes)
    way = _enter_box(primaries.position, primaries.direction, corners)
    reaches = np.isfinite(way)
    speed = np.ones(n)
    moving = MASS[codes] > 0
    gamma = 1 + primaries.kinetic[moving] / MASS[codes][moving]
    speed[moving] = np.sqrt(1 - 1 / gamma**2)
    reaches &= (way == 0) | (speed > 0)
    way = np.where(reaches, way, 0.0)
    capacity = _first_capacity(primaries)
    while True:
        store = Store(
            rng=seed_state(seed),
            track_f=np.empty((capacity, 8)),
            track_i=np.empty((capacity, 4), dtype=np.int64),
            step_f=np.empty((4 * capacity, 8), dtype=np.float32),
            step_i=np.empty(4 * capacity, dtype=np.int32),
            count=np.array([n, 0, 0, 0], dtype=np.int64),
            state=np.zeros(N_STATE),
            nucleons=np.zeros((128, 5)),
        )
        store.state[BOX_LOW : BOX_LOW + 3], store.state[BOX_HIGH : BOX_HIGH + 3] = corners
        store.state[FIELD : FIELD + 3] = tesla
        store.track_f[:n, 0] = primaries.kinetic
        # entering primaries start on the surface, clipped so that rounding does not leave them outside
        start = primaries.position + way[:, None] * primaries.direction
        store.track_f[:n, 1:4] = np.where(
            reaches[:, None], np.clip(start, corners[0], corners[1]), primaries.position
        )
        store.track_f[:n, 4:7] = primaries.direction
        store.track_f[:n, 7] = primaries.time + way / np.where(speed > 0, speed * LIGHT_SPEED, 1.0)
        store.track_i[:n, 0] = codes
        store.track_i[:n, 1] = -1
        store.track_i[:n, 2] = np.where(reaches, _PRIMARY, -1)
        store.state[ESCAPED] = primaries.kinetic[~reaches].sum()
        _follow_all(store, tables, n)
        if store.count[OVERFLOW] == 0:
            break
        capacity *= 2
    return _collect(store, float(primaries.kinetic.sum()))


def _collect(store: Store, kinetic_in: float) -> Transported:
    tracks, steps = int(store.count[N_TRACKS]), int(store.count[N_STEPS])
    codes = store.track_i[:tracks, CODE]
    kinetic = store.track_f[:tracks, 0].copy()
    step_f = store.step_f[:steps]
    return Transported(
        step_track=store.step_i[:steps].copy(),
        step_start=step_f[:, 0:3].copy(),
        step_end=step_f[:, 3:6].copy(),
        step_energy=step_f[:, 6].copy(),
        step_time=step_f[:, 7].copy(),
        track_pdg=PDG[codes],
        track_parent=store.track_i[:tracks, 1].astype(np.int32),
        track_process=store.track_i[:tracks, 2].astype(np.int8),
        track_kinetic=kinetic,
        track_momentum=np.sqrt(kinetic * (kinetic + 2 * MASS[codes])),
        track_position=store.track_f[:tracks, 1:4].copy(),
        track_direction=store.track_f[:tracks, 4:7].copy(),
        track_time=store.track_f[:tracks, 7].copy(),
        kinetic_in=kinetic_in,
        released=float(store.state[RELEASED]),
        deposited=float(store.state[DEPOSITED]),
        escaped=float(store.state[ESCAPED]),
    )
