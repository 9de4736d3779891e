"""Electrons, positrons and photons (compiled).

Collision loss below the cut is continuous with straggling; Moller, Bhabha and bremsstrahlung above it are
single events with the tabulated rates. Photons are absorbed, scattered by exact Klein-Nishina kinematics, or
converted. Not modelled: coherent scattering, fluorescence, annihilation in flight, photonuclear reactions,
the LPM effect.
"""

from __future__ import annotations

import math

import numpy as np

from nufm.simulation.compiled import compiled
from nufm.simulation.particles import ELECTRON, ELECTRON_MASS, GAMMA, LIGHT_SPEED, POSITRON, Process
from nufm.simulation.rng import exponential, gauss, poisson, uniform
from nufm.simulation.stopping import (
    ATTENUATION,
    COMPTON_SHARE,
    ELECTRON_LOSS,
    ELECTRON_RANGE,
    HARD_RATE,
    PHOTO_SHARE,
    PHOTON_RATE,
)
from nufm.simulation.tracks import (
    ESCAPED,
    RELEASED,
    add_step,
    add_track,
    bend,
    distance_out,
    field_strength,
    grid_position,
    highland,
    isotropic,
    look,
    rotate,
    scatter,
    shift,
)

IONISATION, BREMSSTRAHLUNG = np.int64(Process.IONISATION), np.int64(Process.BREMSSTRAHLUNG)
CONVERSION, COMPTON = np.int64(Process.CONVERSION), np.int64(Process.COMPTON)
PHOTOELECTRIC, ANNIHILATION = np.int64(Process.PHOTOELECTRIC), np.int64(Process.ANNIHILATION)
ME = ELECTRON_MASS


@compiled
def straggled_loss(s, t, mean, xi, low, high):
    """Energy lost in a step to collisions below ``high`` MeV, of which ``mean`` is the average.

    Collisions with more than ``low`` (or with so much that about eight are expected) are drawn one by one
    from the 1/T^2 spectrum, the many smaller ones together as a Gaussian of variance xi * low: the
    Landau-Vavilov distribution follows from its own definition (L. Landau, J. Phys. USSR 8 (1944) 201).
    ``xi`` = 2 pi r_e^2 m c^2 n_e s / beta^2.
    """
    low = max(low, xi / 8.0)
    if low >= high:
        sigma = math.sqrt(xi * high)
        single = 0.0
    else:
        sigma = math.sqrt(xi * low)
        single = xi * math.log(high / low)
    soft = mean - single
    if soft <= 0.0:  # the step is too slow for the 1/T^2 picture: keep the mean
        return mean
    # a symmetric interval about the mean keeps the mean; never negative
    loss = soft + sigma * gauss(s.rng)
    if sigma > 0.5 * soft:
        loss = 2.0 * soft * uniform(s.rng)
    elif loss < 0.0 or loss > 2.0 * soft:
        loss = soft
    if single > 0.0:
        for _ in range(poisson(s.rng, xi * (1.0 / low - 1.0 / high))):
            loss += 1.0 / (1.0 / low - uniform(s.rng) * (1.0 / low - 1.0 / high))
    return loss


@compiled
def annihilate(s, idx, x, y, z, time):
    """A positron at rest: two photons back to back."""
    ux, uy, uz = isotropic(s)
    s.state[RELEASED] += 2.0 * ME
    add_track(s, GAMMA, idx, ANNIHILATION, ME, x, y, z, ux, uy, uz, time)
    add_track(s, GAMMA, idx, ANNIHILATION, ME, x, y, z, -ux, -uy, -uz, time)


@compiled
def sample_moller(s, kinetic, cut):
    """Energy of the slower electron after e- e- scattering (ICRU 37 cross section, rejection from
    1/eps^2)."""
    gamma = kinetic / ME + 1.0
    x = cut / kinetic
    c = (2.0 * gamma - 1.0) / (gamma * gamma)
    a = (gamma - 1.0) * (gamma - 1.0) / (gamma * gamma)
    top = 1.0 - 0.5 * c + 0.25 * (a + 1.0 / 0.25 * (1.0 - 0.5 * c))  # at eps = 1/2, where it is largest
    while True:
        eps = x * 0.5 / (0.5 - (0.5 - x) * uniform(s.rng))
        r = 1.0 - eps
        g = 1.0 - c * eps + eps * eps * (a + (1.0 - c * r) / (r * r))
        if uniform(s.rng) * max(top, 1.0) < g:
            return eps * kinetic


@compiled
def sample_bhabha(s, kinetic, cut):
    """Energy of the electron after e+ e- scattering (Bhabha cross section, rejection from 1/eps^2)."""
    gamma = kinetic / ME + 1.0
    beta2 = 1.0 - 1.0 / (gamma * gamma)
    y = 1.0 / (gamma + 1.0)
    q = 1.0 - 2.0 * y
    b1 = 2.0 - y * y
    b2 = q * (3.0 + y * y)
    b4 = q * q * q
    b3 = b4 + q * q
    x = cut / kinetic
    while True:
        eps = x / (1.0 - (1.0 - x) * uniform(s.rng))
        g = 1.0 + beta2 * eps * (-b1 + eps * (b2 + eps * (-b3 + eps * b4)))
        if uniform(s.rng) < g:  # g falls from 1
            return eps * kinetic


@compiled
def screening_pair(delta):
    """Butcher-Messel Phi1, Phi2."""
    if delta <= 1.0:
        return 20.867 - delta * (3.242 - 0.625 * delta), 20.209 - delta * (1.930 + 0.086 * delta)
    far = 21.12 - 4.184 * math.log(delta + 0.952)
    return far, far


@compiled
def sample_bremsstrahlung(s, z, kinetic, cut):
    """Photon energy above ``cut`` (Koch-Motz 3BS, rejection from 1/k)."""
    energy = kinetic + ME
    offset = math.log(z) / 3.0
    full = 20.867 / 4.0 - offset
    scale = 136.0 * ME * z ** (-1.0 / 3.0)
    while True:
        k = cut * (kinetic / cut) ** uniform(s.rng)
        y = k / energy
        phi1, phi2 = screening_pair(scale * y / (energy - k))
        a1 = max(phi1 / 4.0 - offset, 0.0) / full
        a2 = max(phi2 / 4.0 - offset, 0.0) / full
        g = (1.0 + (1.0 - y) * (1.0 - y)) * a1 - 2.0 / 3.0 * (1.0 - y) * a2
        if uniform(s.rng) * 1.4 < g:
            return k


@compiled
def radiation_cosine(s, energy):
    """Polar angle of a radiated photon or of a pair's member: theta ~ m/E times two exponentials (Tsai
    1974)."""
    u = exponential(s.rng) + exponential(s.rng)
    u *= 1.6 if uniform(s.rng) < 0.25 else 0.53
    theta = min(u * ME / energy, math.pi)
    return math.cos(theta)


@compiled
def electron(s, t, idx):
    """Follow an electron or positron to its end."""
    code = s.track_i[idx, 0]
    sign = -1.0
    row = 0
    if code == POSITRON:
        sign = 1.0
        row = 1
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
        if kinetic > t.electron_stop:
            i, w = grid_position(t, kinetic)
            reach = look(t, ELECTRON_RANGE + row, i, w)
        if reach < t.step_min:
            add_step(s, idx, x, y, z, x, y, z, kinetic, time)
            if code == POSITRON:
                annihilate(s, idx, x, y, z, time)
            return
        loss_rate = look(t, ELECTRON_LOSS + row, i, w)
        hard = look(t, HARD_RATE + row, i, w)
        radiate = look(t, PHOTON_RATE + row, i, w)
        gamma = kinetic / ME + 1.0
        momentum = ME * math.sqrt(gamma * gamma - 1.0)
        beta = momentum / (kinetic + ME)
        step = min(t.step_max, max(t.electron_fraction * reach, t.step_min))
        event = exponential(s.rng) / (hard + radiate + 1e-30)
        interacts = event <= step
        if interacts:
            step = event
        if field > 0.0:
            step_bend = 0.1 * momentum / (0.3 * field)
            if step > step_bend:
                step = step_bend
                interacts = False
            ux, uy, uz = bend(s, ux, uy, uz, sign, momentum, 0.5 * step)
        out = distance_out(s, x, y, z, ux, uy, uz)
        leaves = out <= step
        if leaves:
            step = out
            interacts = False
        middle = max(kinetic - 0.5 * loss_rate * step, 0.5 * kinetic)
        i, w = shift(t, kinetic, middle, i, w)
        mean = (look(t, ELECTRON_LOSS + row, i, w)) * step
        high = min(t.delta_cut, kinetic if code == POSITRON else 0.5 * kinetic)
        loss = min(straggled_loss(s, t, mean, t.xi * step / (beta * beta), t.collision_cut, high), kinetic)
        nx = x + ux * step
        ny = y + uy * step
        nz = z + uz * step
        add_step(s, idx, x, y, z, nx, ny, nz, loss, time)
        x = nx
        y = ny
        z = nz
        time += step / (beta * LIGHT_SPEED)
        kinetic -= loss
        if leaves:
            s.state[ESCAPED] += kinetic
            return
        if kinetic <= 0.0:
            continue
        if field > 0.0:
            ux, uy, uz = bend(s, ux, uy, uz, sign, momentum, 0.5 * step)
        pv = middle * (middle + 2.0 * ME) / (middle + ME)
        path += step / t.radiation_length
        grown = highland(path)
        ux, uy, uz = scatter(s, ux, uy, uz, max(grown - spread, 0.0) * (13.6 / pv) ** 2)
        spread = grown
        if not interacts:
            continue
        momentum = math.sqrt(kinetic * (kinetic + 2.0 * ME))
        if uniform(s.rng) * (hard + radiate) < radiate:
            if kinetic <= t.bremsstrahlung_cut:
                continue
            k = sample_bremsstrahlung(s, t.z_effective, kinetic, t.bremsstrahlung_cut)
            vx, vy, vz = rotate(ux, uy, uz, radiation_cosine(s, kinetic + ME), 2.0 * math.pi * uniform(s.rng))
            add_track(s, GAMMA, idx, BREMSSTRAHLUNG, k, x, y, z, vx, vy, vz, time)
            kinetic -= k
        else:
            if code == POSITRON:
                if kinetic <= t.delta_cut:
                    continue
                knocked = sample_bhabha(s, kinetic, t.delta_cut)
            else:
                if kinetic <= 2.0 * t.delta_cut:
                    continue
                knocked = sample_moller(s, kinetic, t.delta_cut)
            # two-body kinematics on an electron at rest
            p2 = math.sqrt(knocked * (knocked + 2.0 * ME))
            cosine = min(1.0, knocked * (kinetic + 2.0 * ME) / (momentum * p2))
            phi = 2.0 * math.pi * uniform(s.rng)
            vx, vy, vz = rotate(ux, uy, uz, cosine, phi)
            add_track(s, ELECTRON, idx, IONISATION, knocked, x, y, z, vx, vy, vz, time)
            rest = kinetic - knocked
            p1 = math.sqrt(rest * (rest + 2.0 * ME))
            if p1 > 1e-6:
                ax = momentum * ux - p2 * vx
                ay = momentum * uy - p2 * vy
                az = momentum * uz - p2 * vz
                norm = math.sqrt(ax * ax + ay * ay + az * az)
                if norm > 1e-9:
                    ux = ax / norm
                    uy = ay / norm
                    uz = az / norm
            kinetic = rest


@compiled
def photon(s, t, idx):
    """Follow a photon to its absorption, conversion or escape."""
    energy = s.track_f[idx, 0]
    x = s.track_f[idx, 1]
    y = s.track_f[idx, 2]
    z = s.track_f[idx, 3]
    ux = s.track_f[idx, 4]
    uy = s.track_f[idx, 5]
    uz = s.track_f[idx, 6]
    time = s.track_f[idx, 7]
    while True:
        if energy < t.photon_stop:
            add_step(s, idx, x, y, z, x, y, z, energy, time)
            return
        i, w = grid_position(t, energy)
        attenuation = look(t, ATTENUATION, i, w)
        path = exponential(s.rng) / attenuation
        if path >= distance_out(s, x, y, z, ux, uy, uz):
            s.state[ESCAPED] += energy
            return
        x += ux * path
        y += uy * path
        z += uz * path
        time += path / LIGHT_SPEED
        choice = uniform(s.rng)
        if choice < look(t, PHOTO_SHARE, i, w):
            bound = t.binding if energy > t.binding + 1e-6 else 0.0
            add_step(s, idx, x, y, z, x, y, z, bound, time)
            free = energy - bound
            # most photoelectrons leave sideways at low energy and forward when relativistic
            beta = math.sqrt(free * (free + 2.0 * ME)) / (free + ME)
            u = 2.0 * uniform(s.rng) - 1.0
            cosine = (u + beta) / (1.0 + u * beta)
            vx, vy, vz = rotate(ux, uy, uz, cosine, 2.0 * math.pi * uniform(s.rng))
            add_track(s, ELECTRON, idx, PHOTOELECTRIC, free, x, y, z, vx, vy, vz, time)
            return
        if choice < look(t, COMPTON_SHARE, i, w):
            energy, ux, uy, uz = compton_scatter(s, idx, energy, x, y, z, ux, uy, uz, time)
            continue
        pair(s, t, idx, energy, x, y, z, ux, uy, uz, time)
        return


@compiled
def compton_scatter(s, idx, energy, x, y, z, ux, uy, uz, time):
    """Klein-Nishina scattering on a free electron at rest (composition and rejection, as in EGS)."""
    k = energy / ME
    low = 1.0 / (1.0 + 2.0 * k)
    a1 = -math.log(low)
    a2 = 0.5 * (1.0 - low * low)
    while True:
        if uniform(s.rng) * (a1 + a2) < a1:
            eps = math.exp(-a1 * uniform(s.rng))
        else:
            eps = math.sqrt(low * low + (1.0 - low * low) * uniform(s.rng))
        down = (1.0 - eps) / (k * eps)  # 1 - cos theta
        sine2 = down * (2.0 - down)
        if uniform(s.rng) < 1.0 - eps * sine2 / (1.0 + eps * eps):
            break
    scattered = eps * energy
    vx, vy, vz = rotate(ux, uy, uz, 1.0 - down, 2.0 * math.pi * uniform(s.rng))
    px = energy * ux - scattered * vx
    py = energy * uy - scattered * vy
    pz = energy * uz - scattered * vz
    norm = math.sqrt(px * px + py * py + pz * pz)
    recoil = energy - scattered
    if norm > 1e-12 and recoil > 0.0:
        add_track(s, ELECTRON, idx, COMPTON, recoil, x, y, z, px / norm, py / norm, pz / norm, time)
    return scattered, vx, vy, vz


@compiled
def pair(s, t, idx, energy, x, y, z, ux, uy, uz, time):
    """Electron-positron pair, Bethe-Heitler energy sharing with screening."""
    free = energy - 2.0 * ME
    if free <= 0.0:
        add_step(s, idx, x, y, z, x, y, z, energy, time)
        return
    low = ME / energy
    if energy < 2.0:
        eps = low + (1.0 - 2.0 * low) * uniform(s.rng)
    else:
        offset = 4.0 * math.log(t.z_effective) / 3.0
        scale = 136.0 * t.z_effective ** (-1.0 / 3.0) * low
        top = max(screening_pair(4.0 * scale)[0] - offset, 1.0)
        tries = 0
        while True:
            eps = low + (1.0 - 2.0 * low) * uniform(s.rng)
            phi1, phi2 = screening_pair(scale / (eps * (1.0 - eps)))
            g = (eps * eps + (1.0 - eps) * (1.0 - eps)) * max(phi1 - offset, 0.0)
            g += 2.0 / 3.0 * eps * (1.0 - eps) * max(phi2 - offset, 0.0)
            tries += 1
            if uniform(s.rng) * top < g or tries > 200:
                break
    s.state[RELEASED] -= 2.0 * ME
    plus = max(eps * energy - ME, 0.0)
    minus = free - plus
    if minus < 0.0:
        minus = 0.0
        plus = free
    phi = 2.0 * math.pi * uniform(s.rng)
    vx, vy, vz = rotate(ux, uy, uz, radiation_cosine(s, minus + ME), phi)
    add_track(s, ELECTRON, idx, CONVERSION, minus, x, y, z, vx, vy, vz, time)
    vx, vy, vz = rotate(ux, uy, uz, radiation_cosine(s, plus + ME), phi + math.pi)
    add_track(s, POSITRON, idx, CONVERSION, plus, x, y, z, vx, vy, vz, time)
