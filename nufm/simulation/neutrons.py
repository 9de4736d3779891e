"""Neutrons (compiled): the main source of small deposits far from any track.

Above 20 MeV they interact as protons do (elastic diffraction, cascades). Below: elastic recoils, deposited
on the spot (a recoil proton in hydrogenous media is a track), inelastic scattering with the excitation
energy in gammas, and capture with the medium's gamma cascade. The last slow wandering is one Gaussian jump.
Recoil energy is deposited unquenched, as all deposits are energies, not charge.
"""

from __future__ import annotations

import math

import numpy as np

from nufm.simulation.compiled import compiled
from nufm.simulation.hadronic import ANY, BOUND, gammas, pick_nucleus
from nufm.simulation.particles import LIGHT_SPEED, NEUTRON_MASS, PROTON, Process
from nufm.simulation.rng import exponential, gauss, uniform
from nufm.simulation.stopping import (
    ELASTIC_RATE,
    HYDROGEN_SHARE,
    INELASTIC_RATE,
    NEUTRON_RATE,
    SCATTER_SHARE,
)
from nufm.simulation.tracks import (
    BOX_HIGH,
    BOX_LOW,
    ESCAPED,
    GONE,
    INTERACTED,
    RELEASED,
    add_step,
    add_track,
    distance_out,
    grid_position,
    leave,
    look,
    rotate,
)

BY_NEUTRON = np.int64(Process.NEUTRON)
CASCADE_LIMIT = 20.0  # MeV: neutrons below are followed by tabulated cross sections


@compiled
def neutron(s, t, idx):
    """Follow a neutron: elastic recoils, inelastic scattering with gammas, capture. Returns how it ended, as
    `heavy`."""
    kinetic = s.track_f[idx, 0]
    x = s.track_f[idx, 1]
    y = s.track_f[idx, 2]
    z = s.track_f[idx, 3]
    ux = s.track_f[idx, 4]
    uy = s.track_f[idx, 5]
    uz = s.track_f[idx, 6]
    time = s.track_f[idx, 7]
    m = NEUTRON_MASS
    while True:
        if kinetic < t.neutron_stop:
            # slows down and wanders on: captured some way off, or outside
            x += t.capture_spread * gauss(s.rng)
            y += t.capture_spread * gauss(s.rng)
            z += t.capture_spread * gauss(s.rng)
            time += t.capture_time * exponential(s.rng)
            inside = True
            if (
                x < s.state[BOX_LOW + 0]
                or x > s.state[BOX_HIGH + 0]
                or y < s.state[BOX_LOW + 1]
                or y > s.state[BOX_HIGH + 1]
            ):
                inside = False
            if z < s.state[BOX_LOW + 2] or z > s.state[BOX_HIGH + 2]:
                inside = False
            if not inside:
                s.state[ESCAPED] += kinetic
                return GONE
            s.state[RELEASED] += t.capture_energy
            add_step(s, idx, x, y, z, x, y, z, kinetic, time)
            gammas(s, idx, BY_NEUTRON, t.capture_energy, x, y, z, time)
            return GONE
        i, w = grid_position(t, kinetic)
        fast = kinetic >= CASCADE_LIMIT
        if fast:
            inelastic = look(t, INELASTIC_RATE + 2, i, w)
            rate = inelastic + look(t, ELASTIC_RATE + 2, i, w)
        else:
            inelastic = 0.0
            rate = look(t, NEUTRON_RATE, i, w)
        path = exponential(s.rng) / rate
        if path >= distance_out(s, x, y, z, ux, uy, uz):
            s.state[ESCAPED] += kinetic
            return GONE
        x += ux * path
        y += uy * path
        z += uz * path
        momentum = math.sqrt(kinetic * (kinetic + 2.0 * m))
        time += path * (kinetic + m) / (momentum * LIGHT_SPEED)
        choice = uniform(s.rng)
        if fast:
            if choice * rate < inelastic:
                return leave(s, INTERACTED, kinetic, x, y, z, ux, uy, uz, time)
            a = t.element[pick_nucleus(s, t, ANY), 1]
            q2 = exponential(s.rng) * 1e6 / (14.5 * a**0.66)
            down = q2 / (2.0 * momentum * momentum)
            if down < 2.0:
                recoil = min(q2 / (2.0 * 931.494 * a), kinetic)
                add_step(s, idx, x, y, z, x, y, z, recoil, time)
                kinetic -= recoil
                ux, uy, uz = rotate(ux, uy, uz, 1.0 - down, 2.0 * math.pi * uniform(s.rng))
            continue
        if choice < look(t, HYDROGEN_SHARE, i, w):
            # equal masses: the recoil proton takes any share, at right angles
            share = uniform(s.rng)
            phi = 2.0 * math.pi * uniform(s.rng)
            vx, vy, vz = rotate(ux, uy, uz, math.sqrt(share), phi)
            add_track(s, PROTON, idx, BY_NEUTRON, share * kinetic, x, y, z, vx, vy, vz, time)
            ux, uy, uz = rotate(ux, uy, uz, math.sqrt(1.0 - share), phi + math.pi)
            kinetic -= share * kinetic
            continue
        row = pick_nucleus(s, t, BOUND)
        a = t.element[row, 1]
        if choice >= look(t, SCATTER_SHARE, i, w):
            level = t.element[row, 4]
            room = kinetic - level
            if room > 0.0:
                excited = level + min(room, 8.0) * uniform(s.rng) ** 2
                gammas(s, idx, BY_NEUTRON, excited, x, y, z, time)
                kinetic -= excited
        # scattering off the nucleus, isotropic at low energy and forward above some MeV
        lean = min(0.3 * kinetic, 4.0)
        if lean > 0.01:
            top = math.exp(lean)
            cosine = math.log(1.0 / top + uniform(s.rng) * (top - 1.0 / top)) / lean
        else:
            cosine = 2.0 * uniform(s.rng) - 1.0
        recoil = kinetic * 2.0 * a / ((a + 1.0) * (a + 1.0)) * (1.0 - cosine)
        add_step(s, idx, x, y, z, x, y, z, recoil, time)
        kinetic -= recoil
        laboratory = (1.0 + a * cosine) / math.sqrt(1.0 + a * a + 2.0 * a * cosine)
        ux, uy, uz = rotate(ux, uy, uz, laboratory, 2.0 * math.pi * uniform(s.rng))
