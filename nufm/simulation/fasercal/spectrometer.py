"""The muon spectrometer: charged particles through magnetised iron, measured between the slabs, and fitted.

In a field B along y, a momentum p bends in x–z with radius R: p = 0.3 B R (GeV, T, m) across the field. In the iron,
particles lose energy and scatter (PDG Review, Passage of particles through matter, eq. 34.16). The fit is linear in the
place, the slopes and q/p at the front, weighted with the covariance of measurement and scattering (a global form of the
Kalman fit), and knows the mean energy loss.

Shape legend: K planes that a particle has crossed.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaincc

from nufm.data.detector import TrackStream
from nufm.simulation.fasercal.material import mixture

RESOLUTION_MM = 0.1  # of a plane of scintillating fibres
LEAST_PLANES = 3
# The columns of the record; error_1 is the error of p in GeV/c, error_2 that of the slope dx/dz.
FEATURES = ("charge", "n_points", "px", "py", "pz", "p", "chi2", "ndof", "p_value", "error_1", "error_2")
MOST_MOMENTUM = 1e4  # GeV/c, where the curvature says nothing any more
PRECISION, MOST_STEPS = 1e-3, 20  # of the momentum that the fit is repeated with, relative


def measure(
    stream: TrackStream, place: np.ndarray, direction: np.ndarray, p: float, charge: int, rng: np.random.Generator
) -> np.ndarray:
    """A particle of momentum ``p`` (GeV/c) at ``place`` (3,) mm on the front, through the planes.

    Returns:
        float64 (K, 3) measured places, mm; those within the area of the planes, in one go.
    """
    planes = np.array(stream.planes_mm)
    medium = mixture(stream.material)
    field = stream.field_tesla[1]
    x, y, z = place
    u, v = direction[0] / direction[2], direction[1] / direction[2]
    points = []
    for k, plane in enumerate(planes):
        step = plane - z
        if step > 1e-3:  # the front is where it starts, but for rounding
            slant = math.sqrt(1 + u * u + v * v)
            p -= medium.minimum_loss * step * slant * 1e-3
            if p < 0.3:
                break
            # A positive charge along z in a field along y is pushed to −x. du/dz = −0.3 q B / p · slant³ at v ≈ 0.
            bend = -0.3 * charge * field / p * step * 1e-3 * slant
            angle = scattering_angle(p, step * slant, medium.radiation_length)
            along_x, along_y = rng.normal(0.0, angle, 2)
            shift = rng.normal(0.0, angle * step / math.sqrt(12.0), 2)  # PDG eq. 34.22
            x += step * (u + 0.5 * bend + 0.5 * along_x) + shift[0]
            y += step * (v + 0.5 * along_y) + shift[1]
            u, v, z = u + bend + along_x, v + along_y, plane
        if not (stream.low_mm[0] < x < stream.high_mm[0] and stream.low_mm[1] < y < stream.high_mm[1]):
            break
        points.append((x, y, planes[k]))
    points = np.array(points).reshape(-1, 3)
    points[:, :2] += rng.normal(0.0, RESOLUTION_MM, (len(points), 2))
    return points


def scattering_angle(p: float, length: float, radiation_length: float) -> float:
    """Projected rms angle of multiple scattering, rad, of a relativistic particle (Highland)."""
    thickness = length / radiation_length
    return 0.0136 / p * math.sqrt(thickness) * (1 + 0.038 * math.log(thickness))


def fit(stream: TrackStream, points: np.ndarray) -> np.ndarray | None:
    """float32 (11,) ``FEATURES`` of the track through measured places (K, 3) mm; None with fewer than three."""
    k = len(points)
    if k < LEAST_PLANES:
        return None
    medium, field = mixture(stream.material), stream.field_tesla[1]
    z = points[:, 2] - points[0, 2]
    step = np.diff(z)
    loss = medium.minimum_loss * z[1:] * 1e-3  # up to the end of each slab, along z
    p, share, before, slant = 1e3, 1.0, 0.0, 1.0
    weight = np.eye(k) / RESOLUTION_MM**2  # a place and a slope to start from; scattering needs p
    for attempt in range(MOST_STEPS):
        # The shape of the bend for q/p = 1 per GeV at the front, with the momentum falling in the iron.
        left = np.maximum(p - slant * loss, 0.3)
        slope = np.concatenate([[0.0], np.cumsum(-0.3 * field * step * 1e-3 * p / left)])
        bend = np.concatenate([[0.0], np.cumsum(step * 0.5 * (slope[1:] + slope[:-1]))])
        design_x, design_y = np.column_stack([np.ones(k), z, bend]), np.column_stack([np.ones(k), z])
        covariance_x = np.linalg.inv(design_x.T @ weight @ design_x)
        covariance_y = np.linalg.inv(design_y.T @ weight @ design_y)
        at_x = covariance_x @ design_x.T @ weight @ points[:, 0]
        at_y = covariance_y @ design_y.T @ weight @ points[:, 1]
        slant = math.sqrt(1 + at_x[1] ** 2 + at_y[1] ** 2)
        change = math.log(min(slant / max(abs(at_x[2]), 1.0 / MOST_MOMENTUM), MOST_MOMENTUM) / p)
        if attempt > 0 and abs(change) < PRECISION:
            break
        # Too low a momentum bends too much in the last slabs, and the next is too high: a change that turns back goes
        # half as far. Without, slow tracks swing.
        if attempt > 1 and change * before < 0:
            share *= 0.5
        before = change
        p *= math.exp(share * change)
        weight = np.linalg.inv(_covariance(z, step, p, loss, slant, medium.radiation_length))
    # A lower momentum also loses a larger share of it: what the places change by with q/p is more than the bend.
    slope += np.concatenate([[0.0], np.cumsum(-0.3 * field * step * 1e-3 * p * slant * loss / left**2)])
    bent = np.concatenate([[0.0], np.cumsum(step * 0.5 * (slope[1:] + slope[:-1]))])
    tangent = np.column_stack([np.ones(k), z, bent])
    covariance_x = np.linalg.inv(tangent.T @ weight @ tangent)
    curvature = at_x[2]
    charge = 1.0 if curvature > 0 else -1.0
    direction = np.array([at_x[1], at_y[1], 1.0])
    p = slant / max(abs(curvature), 1.0 / MOST_MOMENTUM)
    direction *= p / slant
    off_x, off_y = points[:, 0] - design_x @ at_x, points[:, 1] - design_y @ at_y
    chi2, ndof = off_x @ weight @ off_x + off_y @ weight @ off_y, 2 * k - 5
    error_p = math.sqrt(covariance_x[2, 2]) * p * p / slant
    p_value = gammaincc(0.5 * ndof, 0.5 * chi2)
    values = [charge, k, *direction, p, chi2, ndof, p_value, error_p, math.sqrt(covariance_x[1, 1])]
    return np.array(values, dtype=np.float32)


def _covariance(
    z: np.ndarray, step: np.ndarray, p: float, loss: np.ndarray, slant: float, radiation_length: float
) -> np.ndarray:
    """(K, K) mm² of the places in one projection: measurement, and scattering in the slabs before, crossed at an angle
    of cosine 1 / ``slant``; ``loss`` (K - 1,) GeV of momentum along z."""
    covariance = np.eye(len(z)) * RESOLUTION_MM**2
    for s, thickness in enumerate(step):
        angle = scattering_angle(max(p - slant * loss[s], 0.3), slant * thickness, radiation_length)
        arm = np.where(z > z[s], z - 0.5 * (z[s] + z[s + 1]), 0.0)
        after = (z > z[s]).astype(float)
        covariance += angle**2 * (np.outer(arm, arm) + np.outer(after, after) * thickness**2 / 12.0)
    return covariance


def tracks(
    stream: TrackStream, exits: np.ndarray, mass: np.ndarray, charge: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """float32 (T, 11): fitted tracks of the particles with a row in ``exits`` (P, 7), see ``showers``; the most points
    first, at most as many as the detector gives. ``mass`` (P,) MeV."""
    rows = []
    for e in np.flatnonzero(exits[:, 6] > 0):
        kinetic = exits[e, 6] * 1e-3
        p = math.sqrt(kinetic * (kinetic + 2e-3 * mass[e]))
        points = measure(stream, exits[e, :3], exits[e, 3:6], p, int(charge[e]), rng)
        found = fit(stream, points)
        if found is not None:
            rows.append(found)
    rows.sort(key=lambda row: (-row[1], -row[5]))
    return np.array(rows[: stream.max_tracks], dtype=np.float32).reshape(-1, len(FEATURES))
