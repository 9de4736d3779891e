"""Muons, charged pions and kaons, protons (compiled): slowing down, decay, what happens when they stop.

Decays: mu -> e nu nu with the V-A spectrum x^2 (3 - 2x) (radiative corrections left out), pi -> mu nu,
K -> mu nu (three quarters) or pi pi0 (all other modes of the kaon are lumped into these), pi0 -> gamma gamma.
"""

from __future__ import annotations

import math

import numpy as np

from nufm.simulation.compiled import compiled
from nufm.simulation.electromagnetic import straggled_loss
from nufm.simulation.particles import (
    ELECTRON,
    ELECTRON_MASS,
    GAMMA,
    KAON_LIFETIME,
    KAON_MASS,
    KAON_MINUS,
    LIGHT_SPEED,
    MUON_LIFETIME,
    MUON_MASS,
    MUON_MINUS,
    MUON_PLUS,
    PION_LIFETIME,
    PION_MASS,
    PION_MINUS,
    PION_PLUS,
    PION_ZERO,
    PION_ZERO_MASS,
    POSITRON,
    PROTON,
    PROTON_MASS,
    Process,
)
from nufm.simulation.rng import exponential, poisson, uniform
from nufm.simulation.stopping import ELASTIC_RATE, HEAVY_LOSS, HEAVY_RANGE, INELASTIC_RATE
from nufm.simulation.tracks import (
    DECAYED,
    ESCAPED,
    GONE,
    INTERACTED,
    N_TRACKS,
    RELEASED,
    STOPPED,
    add_step,
    add_track,
    bend,
    distance_out,
    field_strength,
    grid_position,
    highland,
    isotropic,
    leave,
    look,
    rotate,
    scatter,
    shift,
)

IONISATION, DECAY = np.int64(Process.IONISATION), np.int64(Process.DECAY)
ME = ELECTRON_MASS
MICHEL_END = (MUON_MASS**2 + ME**2) / (2 * MUON_MASS)  # 52.83 MeV total energy
PI_MUON_KINETIC = (PION_MASS**2 + MUON_MASS**2) / (2 * PION_MASS) - MUON_MASS  # 4.12 MeV
K_MUON_KINETIC = (KAON_MASS**2 + MUON_MASS**2) / (2 * KAON_MASS) - MUON_MASS
K_PION_KINETIC = (KAON_MASS**2 + PION_MASS**2 - PION_ZERO_MASS**2) / (2 * KAON_MASS) - PION_MASS


@compiled
def emit(s, code, idx, mass, own, parent_mass, kinetic, px, py, pz, vx, vy, vz, x, y, z, time):
    """Add a decay product with kinetic energy ``own`` along (vx, vy, vz) in the rest frame of its parent.

    The parent has ``kinetic`` energy along (px, py, pz). Returns the product's kinetic energy in the
    laboratory.
    """
    if kinetic > 0.0:
        gamma = kinetic / parent_mass + 1.0
        beta = math.sqrt(1.0 - 1.0 / (gamma * gamma))
        energy = own + mass
        p = math.sqrt(own * (own + 2.0 * mass))
        along = p * (vx * px + vy * py + vz * pz)
        add = (gamma - 1.0) * along + gamma * beta * energy
        qx = p * vx + add * px
        qy = p * vy + add * py
        qz = p * vz + add * pz
        q = math.sqrt(qx * qx + qy * qy + qz * qz)
        own = max(gamma * (energy + beta * along) - mass, 0.0)
        if q > 0.0:
            vx = qx / q
            vy = qy / q
            vz = qz / q
    add_track(s, code, idx, DECAY, own, x, y, z, vx, vy, vz, time)
    return own


@compiled
def decay(s, idx, code, kinetic, x, y, z, ux, uy, uz, time):
    """Decay at rest or in flight; the neutrinos' energy escapes, the lost rest mass is booked as released."""
    vx, vy, vz = isotropic(s)
    if code == PION_ZERO:
        half = 0.5 * PION_ZERO_MASS
        lab = emit(s, GAMMA, idx, 0.0, half, PION_ZERO_MASS, kinetic, ux, uy, uz, vx, vy, vz, x, y, z, time)
        row = s.count[N_TRACKS]
        emit(s, GAMMA, idx, 0.0, half, PION_ZERO_MASS, kinetic, ux, uy, uz, -vx, -vy, -vz, x, y, z, time)
        if row < s.track_f.shape[0]:
            s.track_f[row, 0] = kinetic + PION_ZERO_MASS - lab  # closes the balance to the last bit
        s.state[RELEASED] += PION_ZERO_MASS
    elif code == MUON_MINUS or code == MUON_PLUS:
        while True:  # x^2 (3 - 2x), largest at x = 1
            share = uniform(s.rng)
            if uniform(s.rng) < share * share * (3.0 - 2.0 * share) and share * MICHEL_END > ME:
                break
        own = share * MICHEL_END - ME
        child = ELECTRON if code == MUON_MINUS else POSITRON
        lab = emit(s, child, idx, ME, own, MUON_MASS, kinetic, ux, uy, uz, vx, vy, vz, x, y, z, time)
        s.state[RELEASED] += MUON_MASS - ME
        s.state[ESCAPED] += kinetic + (MUON_MASS - ME) - lab
    elif code == PION_MINUS or code == PION_PLUS:
        child = MUON_MINUS if code == PION_MINUS else MUON_PLUS
        lab = emit(
            s,
            child,
            idx,
            MUON_MASS,
            PI_MUON_KINETIC,
            PION_MASS,
            kinetic,
            ux,
            uy,
            uz,
            vx,
            vy,
            vz,
            x,
            y,
            z,
            time,
        )
        s.state[RELEASED] += PION_MASS - MUON_MASS
        s.state[ESCAPED] += kinetic + (PION_MASS - MUON_MASS) - lab
    elif uniform(s.rng) < 0.75:
        child = MUON_MINUS if code == KAON_MINUS else MUON_PLUS
        lab = emit(
            s,
            child,
            idx,
            MUON_MASS,
            K_MUON_KINETIC,
            KAON_MASS,
            kinetic,
            ux,
            uy,
            uz,
            vx,
            vy,
            vz,
            x,
            y,
            z,
            time,
        )
        s.state[RELEASED] += KAON_MASS - MUON_MASS
        s.state[ESCAPED] += kinetic + (KAON_MASS - MUON_MASS) - lab
    else:
        child = PION_MINUS if code == KAON_MINUS else PION_PLUS
        free = KAON_MASS - PION_MASS - PION_ZERO_MASS
        other = free - K_PION_KINETIC
        lab = emit(
            s,
            child,
            idx,
            PION_MASS,
            K_PION_KINETIC,
            KAON_MASS,
            kinetic,
            ux,
            uy,
            uz,
            vx,
            vy,
            vz,
            x,
            y,
            z,
            time,
        )
        row = s.count[N_TRACKS]
        emit(
            s,
            PION_ZERO,
            idx,
            PION_ZERO_MASS,
            other,
            KAON_MASS,
            kinetic,
            ux,
            uy,
            uz,
            -vx,
            -vy,
            -vz,
            x,
            y,
            z,
            time,
        )
        if row < s.track_f.shape[0]:
            s.track_f[row, 0] = max(kinetic + free - lab, 0.0)  # closes the balance to the last bit
        s.state[RELEASED] += free


@compiled
def heavy(s, t, idx):
    """Follow a muon, charged pion, kaon or proton until it stops, decays, interacts or leaves.

    Returns how it ended (``GONE``, ``STOPPED``, ``DECAYED``, ``INTERACTED``), with its last state in
    ``s.state``. The caller acts on it: were the decays and cascades called from here, Numba would compile
    them into this loop as well.
    """
    code = s.track_i[idx, 0]
    sign = 1.0
    if code == MUON_MINUS or code == PION_MINUS or code == KAON_MINUS:
        sign = -1.0
    hadron = 0
    lifetime = 0.0
    if code == MUON_MINUS or code == MUON_PLUS:
        row = 0
        mass = MUON_MASS
        lifetime = MUON_LIFETIME
        hadron = -1
    elif code == PION_MINUS or code == PION_PLUS:
        row = 1
        mass = PION_MASS
        lifetime = PION_LIFETIME
    elif code == PROTON:
        row = 3
        mass = PROTON_MASS
        hadron = 2
    else:
        row = 2
        mass = KAON_MASS
        lifetime = KAON_LIFETIME
        hadron = 1
    ratio = ME / mass
    kinetic = s.track_f[idx, 0]
    x = s.track_f[idx, 1]
    y = s.track_f[idx, 2]
    z = s.track_f[idx, 3]
    ux = s.track_f[idx, 4]
    uy = s.track_f[idx, 5]
    uz = s.track_f[idx, 6]
    time = s.track_f[idx, 7]
    path = 0.0
    spread = 0.0
    field = field_strength(s)
    while True:
        i = 0
        w = 0.0
        reach = 0.0
        if kinetic > 0.0:
            i, w = grid_position(t, kinetic)
            reach = look(t, HEAVY_RANGE + row, i, w)
        if reach < t.step_min:
            end = 0.5 * reach  # half of the rest of the way, as its deposit's centre
            end = min(end, distance_out(s, x, y, z, ux, uy, uz))
            add_step(s, idx, x, y, z, x + ux * end, y + uy * end, z + uz * end, kinetic, time)
            return leave(s, STOPPED, 0.0, x + ux * end, y + uy * end, z + uz * end, ux, uy, uz, time)
        loss_rate = look(t, HEAVY_LOSS + row, i, w)
        gamma = kinetic / mass + 1.0
        bg2 = (kinetic / mass) * (gamma + 1.0)
        beta2 = bg2 / (gamma * gamma)
        beta = math.sqrt(beta2)
        momentum = mass * math.sqrt(bg2)
        step = min(t.step_max, max(t.heavy_fraction * reach, t.step_min))
        if field > 0.0:
            step = min(step, 0.1 * momentum / (0.3 * field))
            ux, uy, uz = bend(s, ux, uy, uz, sign, momentum, 0.5 * step)
        out = distance_out(s, x, y, z, ux, uy, uz)
        leaves = out <= step
        if leaves:
            step = out
        middle = max(kinetic - 0.5 * loss_rate * step, 0.5 * kinetic)
        i, w = shift(t, kinetic, middle, i, w)
        mean = (look(t, HEAVY_LOSS + row, i, w)) * step
        largest = 2.0 * ME * bg2 / (1.0 + 2.0 * gamma * ratio + ratio * ratio)
        xi = t.xi * step / beta2
        loss = straggled_loss(s, t, mean, xi, t.collision_cut, min(largest, t.delta_cut))
        loss = min(loss, kinetic)
        nx = x + ux * step
        ny = y + uy * step
        nz = z + uz * step
        add_step(s, idx, x, y, z, nx, ny, nz, loss, time)
        kinetic -= loss
        if largest > t.delta_cut:
            a = 1.0 / t.delta_cut
            b = 1.0 / largest
            for _ in range(poisson(s.rng, xi * (a - b))):
                knocked = 1.0 / (a - uniform(s.rng) * (a - b))
                if uniform(s.rng) < 1.0 - beta2 * knocked / largest and knocked < kinetic:
                    q = math.sqrt(knocked * (knocked + 2.0 * ME))
                    cosine = min(1.0, knocked * (gamma * mass + ME) / (momentum * q))
                    vx, vy, vz = rotate(ux, uy, uz, cosine, 2.0 * math.pi * uniform(s.rng))
                    f = step * uniform(s.rng)
                    at = time + f / (beta * LIGHT_SPEED)
                    add_track(
                        s,
                        ELECTRON,
                        idx,
                        IONISATION,
                        knocked,
                        x + ux * f,
                        y + uy * f,
                        z + uz * f,
                        vx,
                        vy,
                        vz,
                        at,
                    )
                    kinetic -= knocked
        x = nx
        y = ny
        z = nz
        time += step / (beta * LIGHT_SPEED)
        if leaves:
            s.state[ESCAPED] += kinetic
            return GONE
        if field > 0.0:
            ux, uy, uz = bend(s, ux, uy, uz, sign, momentum, 0.5 * step)
        pv = middle * (middle + 2.0 * mass) / (middle + mass)
        path += step / t.radiation_length
        grown = highland(path)
        ux, uy, uz = scatter(s, ux, uy, uz, max(grown - spread, 0.0) * (13.6 / pv) ** 2)
        spread = grown
        if kinetic <= 0.0:
            continue
        if lifetime > 0.0 and uniform(s.rng) * lifetime < step * mass / (momentum * LIGHT_SPEED):
            return leave(s, DECAYED, kinetic, x, y, z, ux, uy, uz, time)
        if hadron >= 0:
            inelastic = (look(t, INELASTIC_RATE + hadron, i, w)) * step
            elastic = (look(t, ELASTIC_RATE + hadron, i, w)) * step
            draw = uniform(s.rng)
            if draw < inelastic:
                return leave(s, INTERACTED, kinetic, x, y, z, ux, uy, uz, time)
            if draw < inelastic + elastic:
                # diffraction off a nucleus, dN/dq2 = exp(-b q2), b = 14.5 A^0.66 / GeV^2
                a = t.element[t.element.shape[0] - 1, 1]
                momentum = math.sqrt(kinetic * (kinetic + 2.0 * mass))
                q2 = exponential(s.rng) * 1e6 / (14.5 * a**0.66)
                down = q2 / (2.0 * momentum * momentum)
                if down < 2.0:
                    recoil = min(q2 / (2.0 * 931.494 * a), kinetic)
                    add_step(s, idx, x, y, z, x, y, z, recoil, time)
                    kinetic -= recoil
                    ux, uy, uz = rotate(ux, uy, uz, 1.0 - down, 2.0 * math.pi * uniform(s.rng))
