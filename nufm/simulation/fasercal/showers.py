"""From particles to energy in cells: tracks, electromagnetic and hadronic showers through all slabs.

Energy is seen where there is scintillator: a deposit is the visible energy, in MeV. A shower is a set of spots, each of
about what a minimum-ionising particle leaves in one layer, so that their number makes the sampling fluctuations
(11 %/√E for electrons in the voxel calorimeter). A hadronic shower is a set of π⁰ showers and of short track segments.

Every deposit in the voxel calorimeter knows the particle it goes back to and how: hierarchy (0 background, 1 primary,
2 secondary) and category (0 electromagnetic, 1 muonic, 2 hadronic), see ``truth.py``. In a shower, the number of
generations between the incoming particle and a deposit is Poisson-distributed with the depth as mean, in X0 (EM) or λ.
"""

from __future__ import annotations

import math

import numpy as np

from nufm.simulation.fasercal.compiled import compiled, entry
from nufm.simulation.fasercal.deposits import BACKGROUND, EM, HADRONIC, PRIMARY, SECONDARY, add, add_anywhere
from nufm.simulation.fasercal.geometry import CAL3D, SPECTROMETER, crossings
from nufm.simulation.fasercal.profiles import (
    RADIUS_MOST,
    electromagnetic_fraction,
    electromagnetic_radii,
    electromagnetic_shape,
    gamma_cdf,
    hadronic_shape,
    nuclear_share,
    radius,
)
from nufm.simulation.rng import exponential, gauss, poisson, uniform

INVISIBLE, ELECTRON, PHOTON, MUON, CHARGED, NEUTRAL, SHORT = range(7)  # kinds of particles
SEGMENT_MM = 60.0  # mean length of the track segments in a hadronic shower


@compiled
def _number(state, mean):
    """Poisson count of any mean (normal above 30)."""
    if mean > 30.0:
        return max(int(mean + math.sqrt(mean) * gauss(state) + 0.5), 0)
    return poisson(state, mean)


@compiled
def _frame(direction):
    """Two unit vectors across a direction."""
    x, y, z = direction
    if abs(z) < 0.9:
        norm = math.sqrt(x * x + y * y)
        a = (-y / norm, x / norm, 0.0)
    else:
        norm = math.sqrt(y * y + z * z)
        a = (0.0, z / norm, -y / norm)
    b = (y * a[2] - z * a[1], z * a[0] - x * a[2], x * a[1] - y * a[0])
    return a, b


@compiled
def _tilted(state, direction, angle):
    """A direction at an angle (rad) to another, at a random azimuth."""
    a, b = _frame(direction)
    phi = 2.0 * math.pi * uniform(state)
    c, s = math.cos(angle), math.sin(angle)
    u, v = s * math.cos(phi), s * math.sin(phi)
    return (
        c * direction[0] + u * a[0] + v * b[0],
        c * direction[1] + u * a[1] + v * b[1],
        c * direction[2] + u * a[2] + v * b[2],
    )


@compiled
def _most_probable(medium, length, slowness):
    """Most probable visible loss in ``length`` mm and its width ξ, MeV (PDG Review, Passage of particles through
    matter, eq. 34.12 in the limit of large βγ); ``slowness`` scales both for slow particles."""
    xi = medium.straggling * length
    return xi * slowness * (medium.straggling_log + math.log(max(xi, 1e-9)) + 0.2), xi * slowness


@compiled
def track(world, deposits, state, place, direction, start, stop, kinetic, mass, first, particle, label, showers):
    """A charged particle along a straight line between the path lengths ``start`` and ``stop`` (mm).

    Mean loss ∝ β^(−5/3), visible loss most probable value and Moyal fluctuations in each cell. With ``showers``
    (muons), radiation too: photons of share v of the energy, dN/dv ∝ 1/v.

    Returns:
        (kinetic energy at the end, path length there, 1 if it went on to ``stop``).
    """
    slab, enter, leave = np.empty(16, np.int64), np.empty(16), np.empty(16)
    n = crossings(world, place, direction, slab, enter, leave)
    for c in range(n):
        i = slab[c]
        kind = world.kind[i]
        medium, pitch = world.medium[kind], world.pitch[kind]
        s, end = max(enter[c], start), min(leave[c], stop)
        if kind == SPECTROMETER:
            continue
        while s < end - 1e-9:
            gamma = 1.0 + kinetic / mass
            beta = math.sqrt(max(1.0 - 1.0 / (gamma * gamma), 1e-4))
            slowness = beta ** (-5.0 / 3.0)
            step = end - s
            for axis in range(3):
                if direction[axis] != 0.0:
                    relative = (place[axis] + s * direction[axis] - world.low[i, axis]) / pitch[axis]
                    cell = math.floor(relative + (1e-9 if direction[axis] > 0 else -1e-9))
                    border = cell + 1.0 if direction[axis] > 0 else cell
                    step = min(step, max((border - relative) * pitch[axis] / direction[axis], 1e-6))
            loss = medium.minimum_loss * slowness * step
            share = 1.0
            if loss > kinetic:
                share = kinetic / loss
            middle = s + 0.5 * step * share
            most_probable, width = _most_probable(medium, step * share, slowness)
            normal = gauss(state)
            visible = most_probable - width * math.log(normal * normal)
            if visible > 0.0:
                x, y = place[0] + middle * direction[0], place[1] + middle * direction[1]
                z = place[2] + middle * direction[2]
                add(world, deposits, i, x, y, z, min(visible, kinetic), first, particle, label)
            if share < 1.0:
                return 0.0, s + step * share, 0
            kinetic -= loss
            if showers:
                # ∫ v dN = radiative · step; v from 10⁻³: below, it is part of the straggling
                chance = medium.radiative * step * math.log(1e3)
                if uniform(state) < chance:
                    v = math.exp(-math.log(1e3) * uniform(state))
                    origin = (place[0] + s * direction[0], place[1] + s * direction[1], place[2] + s * direction[2])
                    energy = v * kinetic
                    if energy > 50.0:
                        electromagnetic(world, deposits, state, origin, direction, energy, False, first, particle, 0, 1)
                    kinetic -= energy
            s += step
    return kinetic, stop, 1


@compiled
def electromagnetic(world, deposits, state, place, direction, energy, electron, first, particle, own, generations):
    """The shower of an electron or (``electron`` false) photon of ``energy`` MeV.

    Args:
        own: hierarchy of an electron's own ionisation.
        generations: between the particle of the generator and what begins this shower; -1 for an electron of the
            generator, whose own ionisation is of generation -1.
    """
    slab, enter, leave = np.empty(16, np.int64), np.empty(16), np.empty(16)
    n = crossings(world, place, direction, slab, enter, leave)
    reference = world.medium[CAL3D]
    for c in range(n):  # the matter it starts in shapes the shower
        if leave[c] > 0.0:
            reference = world.medium[world.kind[slab[c]]]
            break
    # A photon makes a pair whose shares v, 1 − v of the energy shorten its shower: Σ v ln v is −1/2 on average.
    effective = energy if electron else energy * math.exp(-0.5)
    peak, shape, mean_shape = electromagnetic_shape(state, effective, reference.critical_energy, reference.z)
    rate = (shape - 1.0) / peak
    gev = energy * 1e-3
    a, b = _frame(direction)
    t = 0.0 if electron else -9.0 / 7.0 * exponential(state)  # depth; a photon starts with the length to conversion
    done, budget = 0.0, energy  # no more can be seen than there is
    for c in range(n):
        i = slab[c]
        kind = world.kind[i]
        if kind == SPECTROMETER:
            break
        medium = world.medium[kind]
        s = max(enter[c], 0.0)
        spot = medium.minimum_loss * medium.mip_visible * medium.layer
        while s < leave[c] - 1e-9:
            step = min(0.5 * medium.radiation_length, leave[c] - s)
            if t < 0.0:
                step = min(step, -t * medium.radiation_length)
                t = min(t + step / medium.radiation_length, 0.0)
                s += step
                if t > -1e-9:
                    t = 0.0
                continue
            before = done
            done = gamma_cdf(shape, rate * (t + step / medium.radiation_length))
            visible = energy * (done - before) * medium.electron_visible
            middle = t + 0.5 * step / medium.radiation_length
            tau = middle / peak * (shape - 1.0) / shape * mean_shape / (mean_shape - 1.0)
            core, tail, share = electromagnetic_radii(tau, gev, medium.z)
            none, one = math.exp(-middle), (1.0 + middle) * math.exp(-middle)  # chance of 0, of at most 1
            for _ in range(_number(state, visible / spot)):
                scale = core if uniform(state) < share else tail
                r = radius(uniform(state), scale, RADIUS_MOST) * medium.moliere_radius
                phi = 2.0 * math.pi * uniform(state)
                u, v = r * math.cos(phi), r * math.sin(phi)
                w = s + step * uniform(state)
                seen = min(spot * exponential(state), budget)
                budget -= seen
                draw = uniform(state)
                generation = generations + (0 if draw < none else (1 if draw < one else 2))
                hierarchy = own if generation < 0 else (SECONDARY if generation == 0 else BACKGROUND)
                add(
                    world,
                    deposits,
                    i,
                    place[0] + w * direction[0] + u * a[0] + v * b[0],
                    place[1] + w * direction[1] + u * a[1] + v * b[1],
                    place[2] + w * direction[2] + u * a[2] + v * b[2],
                    seen,
                    first,
                    particle,
                    hierarchy * 3 + EM,
                )
            t += step / medium.radiation_length
            s += step
        if done > 0.9999:
            return


@compiled
def hadronic(world, deposits, state, place, direction, energy, baryon, first, particle):
    """The shower that a hadron of ``energy`` MeV makes where it interacts: π⁰ showers and a hadronic rest."""
    gev = energy * 1e-3
    share = electromagnetic_fraction(state, gev, baryon)
    remaining = share * energy
    depth = 0.0
    slab, enter, leave = np.empty(16, np.int64), np.empty(16), np.empty(16)
    n = crossings(world, place, direction, slab, enter, leave)
    while remaining > 50.0:  # π⁰ of the first and of later interactions
        part = remaining * max(uniform(state), 0.3) if remaining > 500.0 else remaining
        remaining -= part
        s = _path_of_depth(world, n, slab, enter, leave, depth)
        if s < 0.0:
            break
        origin = (place[0] + s * direction[0], place[1] + s * direction[1], place[2] + s * direction[2])
        tilted = _tilted(state, direction, min(abs(gauss(state)) * 350.0 / part, 1.0))
        electromagnetic(world, deposits, state, origin, tilted, part, False, first, particle, 0, 1)
        depth += 0.4 * exponential(state) if uniform(state) < 0.6 else 0.0
    shape, rate = hadronic_shape(gev)
    rest = (1.0 - share) * energy
    budget = rest  # no more can be seen than there is
    rest *= nuclear_share(state, rest * 1e-3)
    a, b = _frame(direction)
    t = done = 0.0
    for c in range(n):
        i = slab[c]
        kind = world.kind[i]
        if kind == SPECTROMETER:
            break
        medium = world.medium[kind]
        mip = medium.minimum_loss * medium.mip_visible
        mean = mip * SEGMENT_MM
        pace = 10.0 if kind == CAL3D else 20.0  # about one cell after the other
        s = max(enter[c], 0.0)
        while s < leave[c] - 1e-9:
            step = min(0.08 * medium.interaction_length, leave[c] - s)
            before = done
            done = gamma_cdf(shape, rate * (t + step / medium.interaction_length))
            visible = rest * (done - before) * medium.hadron_visible
            wide = medium.interaction_length * (0.03 + 0.12 * min(t, 1.5))
            for _ in range(_number(state, visible / mean)):
                r = radius(uniform(state), wide, medium.interaction_length)
                phi = 2.0 * math.pi * uniform(state)
                u, v = r * math.cos(phi), r * math.sin(phi)
                w = s + step * uniform(state)
                origin = (
                    place[0] + w * direction[0] + u * a[0] + v * b[0],
                    place[1] + w * direction[1] + u * a[1] + v * b[1],
                    place[2] + w * direction[2] + u * a[2] + v * b[2],
                )
                heading = _tilted(state, direction, min(0.5 * abs(gauss(state)) * (0.4 + t), 2.5))
                hierarchy = SECONDARY if uniform(state) < math.exp(-t) else BACKGROUND
                left = min(mean * exponential(state), budget)
                budget -= left
                x, y, z = origin
                label = hierarchy * 3 + HADRONIC
                while left > 0.0:
                    part = min(left, mip * pace * (0.5 + uniform(state)))
                    if world.low[i, 2] <= z < world.high[i, 2]:
                        add(world, deposits, i, x, y, z, part, first, particle, label)
                    else:
                        add_anywhere(world, deposits, x, y, z, part, first, particle, label)
                    left -= part
                    x, y, z = x + pace * heading[0], y + pace * heading[1], z + pace * heading[2]
            t += step / medium.interaction_length
            s += step


@compiled
def _path_of_depth(world, n, slab, enter, leave, depth):
    """Path length (mm) at which a depth in λ is reached; -1 if it is beyond the last calorimeter."""
    for c in range(n):
        kind = world.kind[slab[c]]
        length = world.medium[kind].interaction_length
        if kind == SPECTROMETER:
            return -1.0
        thickness = (leave[c] - max(enter[c], 0.0)) / length
        if depth <= thickness:
            return max(enter[c], 0.0) + depth * length
        depth -= thickness
    return -1.0


@entry
def deposit_particles(world, deposits, state, kind, category, mass, momentum, start, end, generations, exits):
    """All particles of an event.

    Args:
        kind, category: int64 (P,); the category of a particle's own ionisation.
        mass: float64 (P,) MeV.
        momentum: float64 (P, 3) MeV.
        start, end: float64 (P, 3) mm; ``end`` matters for SHORT ones.
        generations: int64 (P,) 0 for a particle that comes from the interaction itself, 1 for the decay product of one.
        exits: float64 (P, 7) filled with place, direction, kinetic energy (MeV) at the spectrometer's front, 0 if it
            does not get there.
    """
    slab, enter, leave = np.empty(16, np.int64), np.empty(16), np.empty(16)
    front = world.low[len(world.kind) - 1, 2]
    for p in range(len(kind)):
        if kind[p] == INVISIBLE:
            continue
        first = deposits.count[0]
        size = math.sqrt(momentum[p, 0] ** 2 + momentum[p, 1] ** 2 + momentum[p, 2] ** 2)
        kinetic = math.sqrt(size * size + mass[p] ** 2) - mass[p]
        if size < 1e-3:
            continue
        place = (start[p, 0], start[p, 1], start[p, 2])
        direction = (momentum[p, 0] / size, momentum[p, 1] / size, momentum[p, 2] / size)
        own = PRIMARY if generations[p] == 0 else SECONDARY
        if kind[p] == ELECTRON or kind[p] == PHOTON:
            is_electron = kind[p] == ELECTRON
            begin = -1 if is_electron else 0
            electromagnetic(world, deposits, state, place, direction, kinetic, is_electron, first, p, own, begin)
            continue
        if kind[p] == SHORT:
            length = math.sqrt(
                (end[p, 0] - place[0]) ** 2 + (end[p, 1] - place[1]) ** 2 + (end[p, 2] - place[2]) ** 2
            )
            label = own * 3 + category[p]
            track(world, deposits, state, place, direction, 0.0, length, kinetic, mass[p], first, p, label, False)
            continue
        n = crossings(world, place, direction, slab, enter, leave)
        to_front = (front - place[2]) / direction[2] if direction[2] > 0.01 else 1e9
        stop, interacts = to_front, False
        if kind[p] != MUON:
            at = _path_of_depth(world, n, slab, enter, leave, exponential(state))
            if at >= 0.0:
                stop, interacts = at, True
        alive = 1
        if kind[p] != NEUTRAL:
            label, muon = own * 3 + category[p], kind[p] == MUON
            kinetic, stop, alive = track(
                world, deposits, state, place, direction, 0.0, stop, kinetic, mass[p], first, p, label, muon
            )
        if alive == 0:
            continue
        if interacts:
            if kinetic > 30.0:
                origin = (
                    place[0] + stop * direction[0],
                    place[1] + stop * direction[1],
                    place[2] + stop * direction[2],
                )
                hadronic(world, deposits, state, origin, direction, kinetic, mass[p] > 900.0, first, p)
        elif kind[p] != NEUTRAL and stop < 1e8:
            for axis in range(3):
                exits[p, axis] = place[axis] + stop * direction[axis]
                exits[p, 3 + axis] = direction[axis]
            exits[p, 6] = kinetic
