"""The arrays an event is written to, and the geometry that every kind of particle shares (compiled).

A track is a row of ``track_f`` (kinetic energy MeV, x, y, z mm, direction, time ns: the state at creation)
and of ``track_i`` (species code, parent row, process). Creating one also puts it on the stack of tracks
still to be followed. The arrays have a fixed length; when one is full the event is marked and run again with
longer arrays, which gives the same event because it starts from the same seed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from nufm.simulation.compiled import compiled
from nufm.simulation.rng import uniform

N_TRACKS, N_STEPS, N_STACK, OVERFLOW = 0, 1, 2, 3  # entries of Store.count
CODE, PARENT, PROCESS, STACK = 0, 1, 2, 3  # columns of Store.track_i
# entries of Store.state: the energy book, the box (mm), the field (tesla), a particle's state where its
# flight ended
RELEASED, DEPOSITED, ESCAPED = 0, 1, 2
BOX_LOW, BOX_HIGH, FIELD, LAST = 3, 6, 9, 12
N_STATE = 20
GONE, STOPPED, DECAYED, INTERACTED = (np.int64(end) for end in range(4))  # how a particle's flight ended


class Store(NamedTuple):
    """Everything one event changes while it runs."""

    rng: np.ndarray  # uint64 (4,)
    track_f: np.ndarray  # float64 (T, 8) kinetic, x, y, z, ux, uy, uz, time
    track_i: np.ndarray  # int64 (T, 4) code, parent, process; the last column is the stack of rows to follow
    step_f: np.ndarray  # float32 (S, 8) start, end, energy, time
    step_i: np.ndarray  # int32 (S,) track
    count: np.ndarray  # int64 (4,)
    state: np.ndarray  # float64 (N_STATE,)
    nucleons: np.ndarray  # float64 (128, 5) the nuclear cascade's stack: code, momentum, may collide


@compiled
def add_track(s, code, parent, process, kinetic, x, y, z, ux, uy, uz, time):
    """Append a track and stack it; returns its row (-1 when the arrays are full)."""
    n = s.count[N_TRACKS]
    if n >= s.track_f.shape[0]:
        s.count[OVERFLOW] = 1
        return -1
    row = s.track_f[n]
    row[0] = kinetic
    row[1] = x
    row[2] = y
    row[3] = z
    row[4] = ux
    row[5] = uy
    row[6] = uz
    row[7] = time
    s.track_i[n, CODE] = code
    s.track_i[n, PARENT] = parent
    s.track_i[n, PROCESS] = process
    s.track_i[s.count[N_STACK], STACK] = n
    s.count[N_TRACKS] = n + 1
    s.count[N_STACK] += 1
    return n


@compiled
def add_step(s, track, x0, y0, z0, x1, y1, z1, energy, time):
    """Deposit ``energy`` evenly between two points (the same point: on the spot)."""
    if energy <= 0.0:
        return
    n = s.count[N_STEPS]
    if n >= s.step_i.shape[0]:
        s.count[OVERFLOW] = 1
        return
    row = s.step_f[n]
    row[0] = x0
    row[1] = y0
    row[2] = z0
    row[3] = x1
    row[4] = y1
    row[5] = z1
    row[6] = energy
    row[7] = time
    s.step_i[n] = track
    s.count[N_STEPS] = n + 1
    s.state[DEPOSITED] += energy


@compiled
def leave(s, end, kinetic, x, y, z, ux, uy, uz, time):
    """Note the last state of a particle; returns ``end``."""
    s.state[LAST + 0] = kinetic
    s.state[LAST + 1] = x
    s.state[LAST + 2] = y
    s.state[LAST + 3] = z
    s.state[LAST + 4] = ux
    s.state[LAST + 5] = uy
    s.state[LAST + 6] = uz
    s.state[LAST + 7] = time
    return end


@compiled
def rotate(ux, uy, uz, cosine, phi):
    """The unit vector at polar angle acos(cosine) and azimuth phi about (ux, uy, uz)."""
    sine = math.sqrt(max(0.0, 1.0 - cosine * cosine))
    a = sine * math.cos(phi)
    b = sine * math.sin(phi)
    perp = math.sqrt(ux * ux + uy * uy)
    if perp > 1e-9:
        vx = ux * cosine + (a * ux * uz - b * uy) / perp
        vy = uy * cosine + (a * uy * uz + b * ux) / perp
        vz = uz * cosine - a * perp
    else:
        vx = a
        vy = b
        vz = cosine if uz > 0 else -cosine
    norm = 1.0 / math.sqrt(vx * vx + vy * vy + vz * vz)  # keeps the vector unit over thousands of rotations
    return vx * norm, vy * norm, vz * norm


@compiled
def isotropic(s):
    """A random direction."""
    cosine = 2.0 * uniform(s.rng) - 1.0
    phi = 2.0 * math.pi * uniform(s.rng)
    sine = math.sqrt(max(0.0, 1.0 - cosine * cosine))
    return sine * math.cos(phi), sine * math.sin(phi), cosine


@compiled
def distance_out(s, x, y, z, ux, uy, uz):
    """Distance from a point inside the box to its surface, mm (0 when already outside and leaving)."""
    best = 1e30
    if ux > 0:
        best = min(best, (s.state[BOX_HIGH + 0] - x) / ux)
    elif ux < 0:
        best = min(best, (s.state[BOX_LOW + 0] - x) / ux)
    if uy > 0:
        best = min(best, (s.state[BOX_HIGH + 1] - y) / uy)
    elif uy < 0:
        best = min(best, (s.state[BOX_LOW + 1] - y) / uy)
    if uz > 0:
        best = min(best, (s.state[BOX_HIGH + 2] - z) / uz)
    elif uz < 0:
        best = min(best, (s.state[BOX_LOW + 2] - z) / uz)
    return max(best, 0.0)


@compiled
def bend(s, ux, uy, uz, charge, momentum, length):
    """Direction after ``length`` mm in the magnetic field; momentum in MeV/c. p = 0.2998 B R (GeV/c, T,
    m)."""
    bx, by, bz = s.state[FIELD], s.state[FIELD + 1], s.state[FIELD + 2]
    strength = math.sqrt(bx * bx + by * by + bz * bz)
    angle = -charge * 0.299792458 * strength * length / momentum
    bx /= strength
    by /= strength
    bz /= strength
    c = math.cos(angle)
    si = math.sin(angle)
    along = (bx * ux + by * uy + bz * uz) * (1.0 - c)
    vx = ux * c + (by * uz - bz * uy) * si + bx * along
    vy = uy * c + (bz * ux - bx * uz) * si + by * along
    vz = uz * c + (bx * uy - by * ux) * si + bz * along
    return vx, vy, vz


@compiled
def grid_position(t, kinetic):
    """Lower grid index and weight of the upper one, for interpolation linear in ln T."""
    f = (math.log(kinetic) - t.log_min) * t.inverse_step
    i = int(f)
    if f < 0.0:
        return 0, 0.0
    if i >= t.grid.shape[1] - 1:
        return t.grid.shape[1] - 2, 1.0
    return i, f - i


@compiled
def shift(t, kinetic, lower, i, w):
    """Grid position of ``lower``, an energy not much below ``kinetic`` whose position is (i, w): saves a
    logarithm."""
    d = (kinetic - lower) / kinetic
    f = i + w - d * (1.0 + d * (0.5 + d * (1.0 / 3.0 + 0.25 * d))) * t.inverse_step
    i = max(int(f), 0)
    return i, max(f - i, 0.0)


@compiled
def look(t, row, i, w):
    """Table row at a grid position."""
    return t.grid[row, i] * (1.0 - w) + t.grid[row, i + 1] * w


@compiled
def field_strength(s):
    """Upper bound of |B| in tesla; 0 means no field."""
    return abs(s.state[FIELD]) + abs(s.state[FIELD + 1]) + abs(s.state[FIELD + 2])


@compiled
def highland(path):
    """(theta_0 beta c p / 13.6 MeV)^2 after ``path`` radiation lengths.

    Highland's formula (V. L. Highland, Nucl. Instrum. Methods 129 (1975) 497; G. R. Lynch, O. I. Dahl, ibid.
    B58 (1991) 6) is not additive over steps. A step takes its growth along the whole path, which makes the
    sum over any steps right.
    """
    path = max(path, 1e-7)
    a = 1.0 + 0.038 * math.log(path)
    return path * a * a


@compiled
def scatter(s, ux, uy, uz, variance):
    """Direction after multiple scattering with ``variance`` = theta_0^2 per plane."""
    down = variance * -math.log(
        uniform(s.rng)
    )  # 1 - cos: theta^2/2 is exponential for a Gaussian in two planes
    cosine = 1.0 - down if down < 2.0 else 2.0 * uniform(s.rng) - 1.0
    return rotate(ux, uy, uz, cosine, 2.0 * math.pi * uniform(s.rng))
