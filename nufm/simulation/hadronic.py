"""Nuclear interactions (compiled): an intranuclear cascade in miniature, captures at rest.

The cascade follows quasi-free two-body collisions with exact kinematics in a Fermi gas (p_F = 250 MeV/c).
Nucleons move in a well of depth V = E_F + S: they gain V on entry and pay it on the way out, and collisions
that leave a nucleon below E_F are forbidden (Pauli). Trapped nucleons and holes excite the nucleus, which
evaporates nucleons and ends with a few gammas. Geometry is reduced to one probability that a particle
collides again on its way out, from its mean free path in nuclear matter and the nuclear radius. Included: NN
and pi N scattering and charge exchange (isospin weights of the Delta), one pion made through a Delta, pion
absorption on a nucleon pair. Left out: light fragments as tracks (they deposit on the spot), momentum
balance of the residual nucleus, strangeness exchange in flight, nuclear structure.

Energy: what leaves and what is deposited on the spot = kinetic energy in, plus the rest energy of absorbed
pions, minus that of created pions, minus S per nucleon set free (8.5 MeV; 6 MeV after muon capture, whose
products are rich in neutrons). All terms but the first are booked as released.
"""

from __future__ import annotations

import math

import numpy as np

from nufm.simulation.compiled import compiled
from nufm.simulation.particles import (
    GAMMA,
    KAON_MASS,
    KAON_MINUS,
    KAON_PLUS,
    MUON_MASS,
    NEUTRON,
    PION_MASS,
    PION_MINUS,
    PION_PLUS,
    PION_ZERO,
    PION_ZERO_MASS,
    PROTON,
    Process,
)
from nufm.simulation.rng import exponential, uniform
from nufm.simulation.tracks import (
    ESCAPED,
    RELEASED,
    add_step,
    add_track,
    isotropic,
    rotate,
)

CAPTURE, INELASTIC = np.int64(Process.CAPTURE), np.int64(Process.HADRON_INELASTIC)
ANY, BOUND = np.int64(2), np.int64(3)  # columns of Tables.element: share of all, of all but hydrogen
NOTHING, ONCE = np.int64(0), np.int64(1)
NUCLEON_MASS = 938.919
SEPARATION = 8.5  # MeV per nucleon set free
CAPTURE_SEPARATION = 6.0  # the same after muon capture
FERMI_MOMENTUM = 250.0
FERMI_ENERGY = math.sqrt(NUCLEON_MASS**2 + FERMI_MOMENTUM**2) - NUCLEON_MASS
WELL = FERMI_ENERGY + SEPARATION
DELTA_MASS, DELTA_WIDTH = 1232.0, 117.0


@compiled
def mass_of(code):
    """MeV; both nucleons at their mean mass, so that charge exchange keeps the balance simple."""
    if code == PROTON or code == NEUTRON:
        return NUCLEON_MASS
    if code == PION_ZERO:
        return PION_ZERO_MASS
    if code == KAON_MINUS or code == KAON_PLUS:
        return KAON_MASS
    return PION_MASS


@compiled
def pick_nucleus(s, t, column):
    """Row of the element hit."""
    u = uniform(s.rng)
    n = t.element.shape[0]
    for i in range(n):
        if u < t.element[i, column]:
            return i
    return n - 1


@compiled
def push(s, n, code, px, py, pz, again):
    """Put a particle on the cascade's own stack; momentum in MeV/c, ``again``: 1 if it may collide."""
    if n < s.nucleons.shape[0]:
        row = s.nucleons[n]
        row[0] = code
        row[1] = px
        row[2] = py
        row[3] = pz
        row[4] = again
        return n + 1
    return n


@compiled
def split(s, n, m, ex, px, py, pz, code1, mass1, code2, mass2, forward):
    """Two-body break-up of a system (energy ex, momentum) into two particles pushed on the stack.

    ``forward`` > 0 favours directions along the momentum in the rest frame as exp(forward * cos).
    ``m`` is the invariant mass. Returns the new stack height.
    """
    e1 = (m * m + mass1 * mass1 - mass2 * mass2) / (2.0 * m)
    p = math.sqrt(max(e1 * e1 - mass1 * mass1, 0.0))
    total = math.sqrt(px * px + py * py + pz * pz)
    if forward > 0.01 and total > 1e-6:
        top = math.exp(forward)
        cosine = math.log(1.0 / top + uniform(s.rng) * (top - 1.0 / top)) / forward
        vx, vy, vz = rotate(px / total, py / total, pz / total, cosine, 2.0 * math.pi * uniform(s.rng))
    else:
        vx, vy, vz = isotropic(s)
    gamma = ex / m
    bx = px / ex
    by = py / ex
    bz = pz / ex
    along = p * (bx * vx + by * vy + bz * vz)
    f = gamma * gamma / (gamma + 1.0) * along
    e2 = m - e1
    n = push(
        s,
        n,
        code1,
        p * vx + bx * (f + gamma * e1),
        p * vy + by * (f + gamma * e1),
        p * vz + bz * (f + gamma * e1),
        1.0,
    )
    return push(
        s,
        n,
        code2,
        -p * vx + bx * (gamma * e2 - f),
        -p * vy + by * (gamma * e2 - f),
        -p * vz + bz * (gamma * e2 - f),
        1.0,
    )


@compiled
def charge_of(code):
    """Electric charge of a hadron code."""
    if code == PROTON or code == PION_PLUS or code == KAON_PLUS:
        return 1
    if code == PION_MINUS or code == KAON_MINUS:
        return -1
    return 0


@compiled
def pion_of(charge):
    """Pion code of a charge."""
    if charge > 0:
        return PION_PLUS
    if charge < 0:
        return PION_MINUS
    return PION_ZERO


@compiled
def blocked(s, start, end):
    """Pauli: whether any nucleon among the particles start..end-1 of the stack would lie in the Fermi sea."""
    for i in range(start, end):
        if s.nucleons[i, 0] >= PROTON:
            p2 = s.nucleons[i, 1] ** 2 + s.nucleons[i, 2] ** 2 + s.nucleons[i, 3] ** 2
            if p2 < FERMI_MOMENTUM**2:
                return True
    return False


@compiled
def fermi(s, bound):
    """A nucleon's momentum in the Fermi sphere (0 for a free proton)."""
    if not bound:
        return 0.0, 0.0, 0.0
    p = FERMI_MOMENTUM * uniform(s.rng) ** (1.0 / 3.0)
    vx, vy, vz = isotropic(s)
    return p * vx, p * vy, p * vz


@compiled
def collide(s, n, code, px, py, pz, z, a):
    """One collision inside nucleus (z, a) of the particle just taken from height n; returns the new height.

    Returns n itself when the collision is impossible (Pauli, too little energy).
    """
    bound = a > 1.5
    m1 = mass_of(code)
    e1 = math.sqrt(px * px + py * py + pz * pz + m1 * m1)
    kinetic = e1 - m1
    pion = code == PION_MINUS or code == PION_PLUS or code == PION_ZERO
    fx, fy, fz = fermi(s, bound)
    if pion and bound and uniform(s.rng) < 0.06 + 0.4 * math.exp(-kinetic / 150.0):
        # absorption on a pair: both nucleons share the pion's total energy
        q = charge_of(code)
        if q == 0:
            c1 = PROTON
            c2 = NEUTRON
        elif uniform(s.rng) < 0.85:  # the pair is np, leaving two alike
            c1 = PROTON if q > 0 else NEUTRON
            c2 = c1
        else:
            c1 = PROTON
            c2 = NEUTRON
        gx, gy, gz = fermi(s, bound)
        energy = e1 + math.sqrt(NUCLEON_MASS**2 + fx * fx + fy * fy + fz * fz)
        energy += math.sqrt(NUCLEON_MASS**2 + gx * gx + gy * gy + gz * gz)
        tx = px + fx + gx
        ty = py + fy + gy
        tz = pz + fz + gz
        m = math.sqrt(max(energy * energy - tx * tx - ty * ty - tz * tz, 0.0))
        if m > 2.0 * NUCLEON_MASS + 1.0:
            top = split(s, n, m, energy, tx, ty, tz, c1, NUCLEON_MASS, c2, NUCLEON_MASS, 0.0)
            if not blocked(s, n, top):
                return top
        return n
    # the partner: protons and neutrons in proportion, weighted 3:1 for pi+ p and pi- n through the Delta
    share = z / a
    if pion and code != PION_ZERO:
        up = 3.0 if code == PION_PLUS else 1.0
        share = share * up / (share * up + (1.0 - share) * (4.0 - up))
    partner = PROTON if (uniform(s.rng) < share or not bound) else NEUTRON
    e2 = math.sqrt(NUCLEON_MASS**2 + fx * fx + fy * fy + fz * fz)
    energy = e1 + e2
    tx = px + fx
    ty = py + fy
    tz = pz + fz
    m = math.sqrt(energy * energy - tx * tx - ty * ty - tz * tz)
    threshold = m1 + NUCLEON_MASS + PION_MASS + 1.0
    charge = charge_of(code) + charge_of(partner)
    kaon = code == KAON_MINUS or code == KAON_PLUS
    made = 0.48 * (1.0 - math.exp(-(m - threshold) / 120.0)) if m > threshold + 5.0 else 0.0
    if not kaon and uniform(s.rng) < made:
        # one pion more: N N -> N Delta or pi N -> pi Delta, Delta -> N pi
        # charges first: any split that keeps the sum, the first particle a pion or a nucleon as before
        while True:
            if pion:
                first = pion_of(int(3.0 * uniform(s.rng)) - 1)
            else:
                first = PROTON if uniform(s.rng) < 0.5 else NEUTRON
            nucleon = int(2.0 * uniform(s.rng))
            second = charge - charge_of(first) - nucleon
            if second >= -1 and second <= 1:
                break
        mo = mass_of(first)
        room = m - mo - 0.5
        delta = 0.0
        tries = 0
        while delta < NUCLEON_MASS + PION_MASS + 0.5 or delta > room:
            delta = DELTA_MASS + 0.5 * DELTA_WIDTH * math.tan(math.pi * (uniform(s.rng) - 0.5))
            tries += 1
            if tries > 50:
                delta = (
                    NUCLEON_MASS + PION_MASS + 0.5 + (room - NUCLEON_MASS - PION_MASS - 0.5) * uniform(s.rng)
                )
        split(s, n, m, energy, tx, ty, tz, first, mo, PROTON, delta, 1.0)
        dx = s.nucleons[n + 1, 1]
        dy = s.nucleons[n + 1, 2]
        dz = s.nucleons[n + 1, 3]
        own = PION_ZERO_MASS if second == 0 else PION_MASS
        ed = math.sqrt(dx * dx + dy * dy + dz * dz + delta * delta)
        top = split(
            s,
            n + 1,
            delta,
            ed,
            dx,
            dy,
            dz,
            PROTON if nucleon == 1 else NEUTRON,
            NUCLEON_MASS,
            pion_of(second),
            own,
            0.0,
        )
        if bound and blocked(s, n, top):
            return n
        return top
    out1 = code
    out2 = partner
    forward = 0.0
    if pion:
        # charge exchange through the Delta: two thirds of pi+ n, pi- p and one third of pi0 N
        exchange = (code == PION_PLUS and partner == NEUTRON) or (code == PION_MINUS and partner == PROTON)
        u = uniform(s.rng)
        if exchange and u < 0.6667:
            out1 = PION_ZERO
            out2 = PROTON if partner == NEUTRON else NEUTRON
        elif code == PION_ZERO and u < 0.3333:
            out1 = PION_PLUS if partner == PROTON else PION_MINUS
            out2 = NEUTRON if partner == PROTON else PROTON
    elif not kaon:
        forward = min(kinetic / 200.0, 8.0)  # diffraction of N N above some hundred MeV
        if code != partner and uniform(s.rng) < 0.5:
            out1 = partner
            out2 = code
    mo = mass_of(out1)
    if m <= mo + NUCLEON_MASS + 0.1:
        return n
    top = split(s, n, m, energy, tx, ty, tz, out1, mo, out2, NUCLEON_MASS, forward)
    if bound and blocked(s, n, top):
        return n
    return top


@compiled
def evaporate(s, idx, process, excitation, separation, a, x, y, z, time):
    """Cool a nucleus: nucleons above the separation energy, then gammas. Returns the nucleons set free."""
    freed = 0
    recoil = 0.1 * excitation if a > 1.5 else excitation  # fragments and recoil, on the spot
    rest = excitation - recoil
    while rest > separation + 1.0 and freed < 12 and freed < a - 2.0:
        temperature = math.sqrt(rest / (a / 8.0))
        code = NEUTRON
        barrier = 0.0
        if uniform(s.rng) < 0.3:
            code = PROTON
            barrier = 0.6 * 1.44 * (a / 2.0) / (1.3 * (a ** (1.0 / 3.0) + 1.0))
        kinetic = barrier - temperature * math.log(uniform(s.rng) * uniform(s.rng))
        if kinetic > rest - separation:
            if rest - separation < barrier + 0.5:
                break
            kinetic = barrier + (rest - separation - barrier) * uniform(s.rng)
        ux, uy, uz = isotropic(s)
        add_track(s, code, idx, process, kinetic, x, y, z, ux, uy, uz, time)
        rest -= kinetic + separation
        freed += 1
    gammas(s, idx, process, rest, x, y, z, time)
    add_step(s, idx, x, y, z, x, y, z, recoil, time)
    s.state[RELEASED] -= separation * freed
    return freed


@compiled
def gammas(s, idx, process, energy, x, y, z, time):
    """Give ``energy`` to a cascade of gammas of some MeV; crumbs are deposited."""
    for _ in range(12):
        if energy < 0.3:
            break
        one = energy if energy < 1.0 else min(energy, 0.4 + 0.5 * energy * uniform(s.rng))
        if energy - one < 0.3:
            one = energy
        ux, uy, uz = isotropic(s)
        add_track(s, GAMMA, idx, process, one, x, y, z, ux, uy, uz, time)
        energy -= one
    add_step(s, idx, x, y, z, x, y, z, energy, time)


@compiled
def run_cascade(s, idx, process, n, z_nucleus, a, energy, nucleons_in, forced, x, y, z, time):
    """Work off the cascade's stack of height ``n``, emit what leaves, cool the rest.

    ``energy``: kinetic energy, plus the rest energy of pions, that entered; ``nucleons_in``: nucleons that
        entered;
    ``forced``: 1 if the first particle collides in any case.
    """
    radius = 1.2 * a ** (1.0 / 3.0)
    out = 0.0
    freed = -nucleons_in
    collisions = 0
    while n > 0:
        n -= 1
        code = int(s.nucleons[n, 0])
        px = s.nucleons[n, 1]
        py = s.nucleons[n, 2]
        pz = s.nucleons[n, 3]
        again = s.nucleons[n, 4] > 0.5
        m = mass_of(code)
        p2 = px * px + py * py + pz * pz
        kinetic = p2 / (math.sqrt(p2 + m * m) + m)
        nucleon = code == PROTON or code == NEUTRON
        off_peak = ((kinetic - 180.0) / 180.0) ** 2  # pions are stopped best at the Delta resonance
        free_path = 5.0 if nucleon else 2.5 + 6.0 * off_peak / (1.0 + off_peak)  # fm
        hits = forced == 1 or (
            again and collisions < 20 and uniform(s.rng) < 1.0 - math.exp(-0.75 * radius / free_path)
        )
        if a < 1.5 and forced == 0:
            hits = False
        if hits:
            tries = 12 if forced == 1 else 1
            first = forced == 1
            forced = NOTHING
            top = n
            while top == n and tries > 0:
                top = collide(s, n, code, px, py, pz, z_nucleus, a)
                tries -= 1
            collisions += 1
            if top > n:
                n = top
                continue
            if first and nucleon and a > 1.5:
                continue  # nowhere to go: swallowed, all its energy is heat
        if a > 1.5 and nucleon:
            kinetic -= WELL
            if kinetic <= (6.0 if code == PROTON else 1.0):
                continue  # trapped (protons also behind the Coulomb barrier): its energy heats the nucleus
        if kinetic <= 0.0:
            continue
        p = math.sqrt(p2)
        add_track(s, code, idx, process, kinetic, x, y, z, px / p, py / p, pz / p, time)
        out += kinetic
        if nucleon:
            freed += 1
            energy -= SEPARATION if a > 1.5 else 0.0
        else:
            energy -= m
            s.state[RELEASED] -= m
    if a > 1.5:
        energy += SEPARATION * nucleons_in
        s.state[RELEASED] -= SEPARATION * freed
    heat = energy - out
    if heat < 0.0:  # rounding only: the well depth is never less than what a nucleon costs
        s.state[RELEASED] -= heat
        heat = 0.0
    evaporate(s, idx, process, heat, SEPARATION, a, x, y, z, time)


@compiled
def cascade(s, t, idx, code, kinetic, x, y, z, ux, uy, uz, time):
    """Inelastic interaction of a hadron in flight; it ends here and its products start here."""
    row = pick_nucleus(s, t, ANY)
    m = mass_of(code)
    nucleon = code == PROTON or code == NEUTRON
    inside = kinetic
    if nucleon and t.element[row, 1] > 1.5:
        inside += WELL
    p = math.sqrt(inside * (inside + 2.0 * m))
    n = push(s, NOTHING, code, p * ux, p * uy, p * uz, 1.0)
    nucleons_in = ONCE if nucleon else NOTHING
    energy = kinetic
    if nucleons_in == 0:
        energy += m
        s.state[RELEASED] += m
    run_cascade(
        s, idx, INELASTIC, n, t.element[row, 0], t.element[row, 1], energy, nucleons_in, ONCE, x, y, z, time
    )


@compiled
def absorb_at_rest(s, t, idx, code, x, y, z, time):
    """A stopped pi- or K- disappears in a nucleus; its rest energy feeds a star.

    pi-: absorbed on a nucleon pair. K-: one hyperon pion and the pion of the hyperon's decay leave with
    about 215 MeV less one separation energy between them and a nucleon; strangeness is not followed further.
    """
    row = pick_nucleus(s, t, BOUND)
    z_nucleus = t.element[row, 0]
    a = t.element[row, 1]
    n = NOTHING
    if code == PION_MINUS:
        s.state[RELEASED] += PION_MASS
        c1 = NEUTRON
        c2 = NEUTRON if uniform(s.rng) < 0.8 else PROTON
        n = NOTHING
        while n == NOTHING:
            fx, fy, fz = fermi(s, True)
            gx, gy, gz = fermi(s, True)
            e = PION_MASS + math.sqrt(NUCLEON_MASS**2 + fx * fx + fy * fy + fz * fz)
            e += math.sqrt(NUCLEON_MASS**2 + gx * gx + gy * gy + gz * gz)
            fx += gx
            fy += gy
            fz += gz
            m = math.sqrt(e * e - fx * fx - fy * fy - fz * fz)
            n = split(s, NOTHING, m, e, fx, fy, fz, c1, NUCLEON_MASS, c2, NUCLEON_MASS, 0.0)
            if blocked(s, NOTHING, n):
                n = NOTHING
        run_cascade(s, idx, CAPTURE, n, z_nucleus, a, PION_MASS, NOTHING, NOTHING, x, y, z, time)
        return
    s.state[RELEASED] += KAON_MASS
    free = KAON_MASS - 2.0 * PION_MASS - SEPARATION
    first = free * (0.35 + 0.3 * uniform(s.rng))
    second = (free - first) * uniform(s.rng)
    for k in range(2):
        own = first if k == 0 else second
        pion = pion_of(int(3.0 * uniform(s.rng)) - 1)
        own += PION_MASS - mass_of(pion)
        p = math.sqrt(own * (own + 2.0 * mass_of(pion)))
        vx, vy, vz = isotropic(s)
        n = push(s, n, pion, p * vx, p * vy, p * vz, 0.0)
    own = free - first - second + WELL
    p = math.sqrt(own * (own + 2.0 * NUCLEON_MASS))
    vx, vy, vz = isotropic(s)
    n = push(s, n, PROTON if uniform(s.rng) < 0.5 else NEUTRON, p * vx, p * vy, p * vz, 0.0)
    run_cascade(s, idx, CAPTURE, n, z_nucleus, a, KAON_MASS, NOTHING, NOTHING, x, y, z, time)


@compiled
def muon_capture(s, t, idx, x, y, z, time):
    """mu- p -> n nu in a nucleus: the neutrino takes most, the nucleus is left with some 5 to 60 MeV.

    Excitation spectrum: 5 MeV plus two exponentials of 7 MeV each (mean about 19 MeV), which frees about
    one neutron as observed (D. F. Measday, Phys. Rep. 354 (2001) 243, sect. 5).
    """
    row = pick_nucleus(s, t, BOUND)
    excitation = min(5.0 + 7.0 * (exponential(s.rng) + exponential(s.rng)), 95.0)
    s.state[RELEASED] += MUON_MASS
    s.state[ESCAPED] += MUON_MASS - excitation
    evaporate(s, idx, CAPTURE, excitation, CAPTURE_SEPARATION, t.element[row, 1], x, y, z, time)
