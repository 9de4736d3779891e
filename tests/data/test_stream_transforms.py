"""Transforms of events with several streams: the robust logarithm against its formula, noise against its moments."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.stats import median_abs_deviation
from stream_records import make_record, without

from nufm.checkpoint.describe import TRANSFORMS, build, describe_transform
from nufm.data.stream_files import event_from_record
from nufm.data.stream_transforms import (
    CommonGain,
    HitNoise,
    MatrixNoise,
    ShiftHits,
    StandardizeStreams,
    TrackNoise,
    fasercal_augmentation,
    fit_standardize,
)
from nufm.data.streams import Hits, StreamEvent

NAMES = ("cal3d", "ahcal", "ecal", "muon.px", "muon.py", "muon.pz", "muon.chi2")


def event(seed: int = 0, **sizes: int) -> StreamEvent:
    return event_from_record(make_record(seed, **sizes), "fasercal", f"event {seed}")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def line(charge: np.ndarray) -> StreamEvent:
    """An event whose 3DCal hits have these charges, on a diagonal away from the walls."""
    place = np.arange(len(charge))
    index = np.stack([1 + place % 46, 1 + place // 46 % 46, place // 46**2 % 20], 1).astype(np.int32)
    return StreamEvent({"cal3d": Hits(index, np.zeros(len(charge), np.int32), charge.astype(np.float32))})


def same(a: StreamEvent, b: StreamEvent) -> bool:
    hits = all(
        np.array_equal(getattr(a.voxels[s], f), getattr(b.voxels[s], f)) for s in a.voxels for f in ("index", "charge")
    )
    rest = all(np.array_equal(a.matrices[s], b.matrices[s]) for s in a.matrices)
    return hits and rest and all(np.array_equal(a.tracks[s], b.tracks[s]) for s in a.tracks)


# ---- standardisation


def test_formula():
    """k = MADN(q), u = log(1 + q/k), z = (u - median u) / MADN(u), written once more with SciPy."""
    events = [event(seed, hits=200, ahcal=90, tracks=5) for seed in range(8)]
    fitted = fit_standardize(events)
    assert fitted.names == NAMES and fitted.logarithm == (True, True, True, False, False, False, True)

    def expected(values: np.ndarray, logarithm: bool) -> np.ndarray:
        values = values.astype(np.float64)
        scale = median_abs_deviation(values, scale="normal")
        u = np.log1p(values / scale) if logarithm else values / scale
        return (u - np.median(u)) / median_abs_deviation(u, scale="normal")

    ready = [fitted(e, rng()) for e in events]
    for before, after in (
        *[([e.voxels[s].charge for e in events], [e.voxels[s].charge for e in ready]) for s in ("cal3d", "ahcal")],
        ([e.matrices["ecal"].ravel() for e in events], [e.matrices["ecal"].ravel() for e in ready]),
    ):
        z = np.concatenate(after)
        assert np.allclose(z, expected(np.concatenate(before), True), atol=1e-4) and z.dtype == np.float32
        assert np.median(z) == pytest.approx(0, abs=1e-3)
    raw, z = (np.concatenate([e.tracks["muon"] for e in side]) for side in (events, ready))
    assert np.array_equal(raw[:, 0], z[:, 0])  # the charge of a track
    for column in (1, 2, 3):
        assert np.allclose(z[:, column], expected(raw[:, column], False), atol=1e-4)


def test_a_common_factor_changes_nothing():
    """The public code multiplies charges by 10 first, which the scale takes up."""
    events = [event(seed, hits=300) for seed in range(4)]
    tenfold = [e.replace(voxels={s: h.replace(charge=h.charge * 10) for s, h in e.voxels.items()}) for e in events]
    a, b = fit_standardize(events), fit_standardize(tenfold)
    for one, ten in zip(events, tenfold, strict=True):
        assert np.allclose(a(one, rng()).voxels["cal3d"].charge, b(ten, rng()).voxels["cal3d"].charge, atol=1e-4)


def test_inverse_zero_and_values_below_it():
    fitted = fit_standardize([event(seed, hits=200) for seed in range(3)])
    for name in NAMES:
        values = np.array([-3.0, -0.01, 0.0, 1e-3, 1.0, 1e3, 1e6])
        z = fitted.forward(name, values)
        assert np.allclose(fitted.inverse(name, z), values, rtol=1e-4, atol=1e-5)
        assert (np.diff(z) > 0).all()
        assert fitted.zero(name) == pytest.approx(z[2])
    i = NAMES.index("cal3d")
    assert fitted.zero("cal3d") == pytest.approx(-fitted.median[i] / fitted.spread[i])


def test_mostly_empty_matrix_and_streams_without_values(caplog):
    """MADN is 0 where more than half of the cells are 0; the others make the numbers then."""
    events = []
    for seed in range(4):
        values = np.zeros((5, 5), np.float32)
        values[2, 1:4] = [3 + seed, 50 * (seed + 1), 1]
        events.append(StreamEvent(matrices={"ecal": values}))
    with caplog.at_level(logging.WARNING, logger="nufm"):
        fitted = fit_standardize(events)
    full = np.concatenate([e.matrices["ecal"][2, 1:4] for e in events])
    i = NAMES.index("ecal")
    assert fitted.scale[i] == pytest.approx(median_abs_deviation(full, scale="normal"), rel=1e-6)
    assert "'cal3d' has 0 values" in caplog.text
    assert np.array_equal(fitted.forward("cal3d", np.array([0.0])), [0.0])
    alike = fit_standardize([StreamEvent(matrices={"ecal": np.full((5, 5), 7, np.float32)})])
    assert np.isfinite(alike.forward("ecal", np.array([0.0, 7.0, 1e5]))).all()


def test_what_it_refuses():
    with pytest.raises(ValueError, match="there are no events"):
        fit_standardize([])
    with pytest.raises(ValueError, match="'superfgd' among those of 'fasercal'"):
        fit_standardize([StreamEvent(), StreamEvent(detector="superfgd")])
    with pytest.raises(ValueError, match="scale of 'cal3d' is 0"):
        StandardizeStreams(("cal3d",), (True,), (0,), (0,), (1,))
    with pytest.raises(ValueError, match="median has 2 entries, expected 1"):
        StandardizeStreams(("cal3d",), (True,), (1,), (0, 1), (1,))
    few = StandardizeStreams(("cal3d",), (True,), (1,), (0,), (1,))
    with pytest.raises(ValueError, match="no numbers for 'ahcal', only for cal3d; fit it"):
        few(event(), rng())


def test_empty_missing_and_untouched():
    fitted = fit_standardize([event(seed) for seed in range(3)])
    assert fitted(StreamEvent(), rng()).n_hits == 0
    empty = event(hits=0, ahcal=0, tracks=0)
    ready = fitted(empty, rng())
    assert len(ready.voxels["cal3d"]) == 0 and ready.tracks["muon"].shape == (0, 5)
    raw = event()
    kept = event()
    fitted(raw, rng())
    assert same(raw, kept)  # what came in is as it was


@pytest.mark.parametrize(
    "transform", [*fasercal_augmentation(), fit_standardize([event()])], ids=lambda t: str(type(t))
)
def test_description_builds_the_same_transform(transform):
    described = describe_transform(transform)
    assert build(described, TRANSFORMS, "test") == transform
    with pytest.raises(ValueError, match="not allowed"):
        build(described | {"class_path": "nufm.data.stream_transforms.Transform"}, TRANSFORMS, "test")


# ---- augmentations


@pytest.mark.parametrize("transform", fasercal_augmentation(), ids=lambda t: type(t).__name__)
def test_augmentations_depend_on_their_random_numbers_alone(transform):
    raw, kept = event(hits=300), event(hits=300)
    first, again = transform(raw, rng(1)), transform(raw, rng(1))
    assert same(first, again) and same(raw, kept)
    assert any(not same(first, transform(raw, rng(seed))) for seed in range(2, 6))
    bare = StreamEvent()
    assert transform(bare, rng()).n_hits == 0
    empty = event(hits=0, ahcal=0, tracks=0)
    assert transform(empty, rng()).n_hits == 0
    for stream in ("cal3d", "ahcal", "ecal", "muon"):
        lacks = transform(event_from_record(without(make_record(), stream), "fasercal", "x"), rng())
        assert stream not in {**lacks.voxels, **lacks.matrices, **lacks.tracks}


def test_noise_has_its_moments():
    """Of n hits of q MeV: mean q, variance q²(exp σ² - 1) + floor² + root²·q (log-normal of mean 1, plus noise)."""
    n, gain, floor, root = 40_000, 0.12, 0.06, 0.18
    for q in (2.0, 40.0):
        charge = HitNoise("cal3d", gain, floor, root, drop=0)(line(np.full(n, q)), rng()).voxels["cal3d"].charge
        variance = q**2 * (np.exp(gain**2) - 1) + floor**2 + root**2 * q
        assert charge.mean() == pytest.approx(q, abs=4 * np.sqrt(variance / n))
        assert charge.var() == pytest.approx(variance, rel=0.05)
    faint = HitNoise("cal3d", gain, floor, root, drop=0)(line(np.full(n, 1e-3)), rng()).voxels["cal3d"].charge
    assert faint.min() == 0 and 0.3 < (faint == 0).mean() < 0.6


def test_matrix_noise_has_its_moments():
    values = np.concatenate([
        MatrixNoise(gain=0.1, floor=0.02, root=0.1, dead=0)(
            StreamEvent(matrices={"ecal": np.full((5, 5), 9, np.float32)}), rng(seed)
        ).matrices["ecal"].ravel() for seed in range(800)
    ])  # fmt: skip
    variance = 81 * (np.exp(0.01) - 1) + 0.02**2 + 0.01 * 9
    assert values.mean() == pytest.approx(9, abs=4 * np.sqrt(variance / values.size))
    assert values.var() == pytest.approx(variance, rel=0.06)
    dead = [
        (MatrixNoise(dead=0.4)(StreamEvent(matrices={"ecal": np.full((5, 5), 9, np.float32)}), rng(s)).matrices["ecal"]
         == 0).mean() for s in range(800)
    ]  # fmt: skip
    assert np.mean(dead) == pytest.approx(0.2, abs=0.02)  # uniform in 0..0.4


def test_lost_hits_take_their_labels_along():
    raw = event(hits=2000)
    shares = []
    for seed in range(40):
        left = HitNoise(gain=0, floor=0, root=0, drop=0.4)(raw, rng(seed)).voxels["cal3d"]
        shares.append(1 - len(left) / 2000)
        rows = [int(np.flatnonzero(raw.voxels["cal3d"].charge == q)[0]) for q in left.charge[:50]]
        assert np.array_equal(left.hierarchy[:50], raw.voxels["cal3d"].hierarchy[rows])
        assert np.array_equal(left.index[:50], raw.voxels["cal3d"].index[rows])
    assert np.mean(shares) == pytest.approx(0.2, abs=0.06) and max(shares) < 0.43
    few = HitNoise(drop=0.99, at_least=5)
    assert all(len(few(event(hits=4), rng(s)).voxels["cal3d"]) == 4 for s in range(20))


def test_shift_moves_hits_and_vertex_together():
    raw = line(np.ones(100)).replace(truth={"vertex": np.array([5.0, 6, 7], np.float32)})
    found = set()
    for seed in range(80):
        moved = ShiftHits()(raw, rng(seed))
        step = moved.voxels["cal3d"].index - raw.voxels["cal3d"].index
        assert (step == step[0]).all() and step[0, 2] == 0 and abs(step).max() <= 1
        assert np.allclose(moved.truth["vertex"] - raw.truth["vertex"], step[0] * [10, 10, 11])
        found.add(tuple(step[0, :2].tolist()))
    assert len(found) == 9
    draw = rng()
    still = sum(same(ShiftHits()(raw, draw), raw) for _ in range(400))
    assert still / 400 == pytest.approx(0.25, abs=0.08)  # neither axis


def test_hits_that_leave_the_lattice_are_lost():
    raw = event(hits=1000)
    index = raw.voxels["cal3d"].index
    for seed in range(20):
        moved = ShiftHits(axes=(0,), p=1.0)(raw, rng(seed)).voxels["cal3d"]
        up = np.array_equal(np.unique(moved.index[:, 0]), np.arange(1, 48))
        assert len(moved) == (index[:, 0] < 47).sum() if up else (index[:, 0] > 0).sum()
        assert ((moved.index >= 0) & (moved.index < [48, 48, 20])).all()
    wall = line(np.ones(6))
    wall = wall.replace(voxels={"cal3d": wall.voxels["cal3d"].replace(index=np.array([[0, y, 0] for y in range(6)]))})
    kept = {len(ShiftHits(axes=(0,), p=1.0)(wall, rng(s)).voxels["cal3d"]) for s in range(20)}
    assert kept == {6}  # fewer than 5 would be left one way: the event stays


def test_common_gain_is_common():
    raw = event(hits=200)
    factors = []
    for seed in range(400):
        out = CommonGain(0.1)(raw, rng(seed))
        ratio = np.concatenate([
            *(out.voxels[s].charge / raw.voxels[s].charge for s in ("cal3d", "ahcal")),
            (out.matrices["ecal"] / raw.matrices["ecal"]).ravel(),
        ])  # fmt: skip
        assert np.ptp(ratio) < 1e-5 and same(out.replace(voxels={}, matrices={}), raw.replace(voxels={}, matrices={}))
        factors.append(ratio[0])
    assert np.mean(factors) == pytest.approx(1, abs=0.02) and np.std(np.log(factors)) == pytest.approx(0.1, rel=0.12)


def test_tracks_are_shuffled_smeared_and_lost():
    raw = event(tracks=10)
    plain = [TrackNoise(drop=0, momentum=0, chi2=0)(raw, rng(s)).tracks["muon"] for s in range(20)]
    assert all(np.array_equal(np.sort(p, 0), np.sort(raw.tracks["muon"], 0)) for p in plain)
    assert len({p.tobytes() for p in plain}) > 10
    kept = [len(TrackNoise(drop=0.3)(raw, rng(s)).tracks["muon"]) for s in range(200)]
    assert np.mean(kept) == pytest.approx(7, abs=0.35)
    momentum, chi2 = [], []
    for seed in range(200):
        one = event(tracks=1)
        row, old = TrackNoise(drop=0)(one, rng(seed)).tracks["muon"][0], one.tracks["muon"][0]
        ratio = row[1:4] / old[1:4]
        assert np.ptp(ratio) < 1e-5 and row[0] == old[0]  # the direction and the sign stay
        momentum.append(ratio[0])
        chi2.append(np.log(row[4] / old[4]))
    assert np.std(momentum) == pytest.approx(0.02, rel=0.2) and np.std(chi2) == pytest.approx(0.1, rel=0.2)
