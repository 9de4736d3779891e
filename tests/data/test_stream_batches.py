"""Events of several sub-detectors and their batches: packing against the events, what is missing, what is checked."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from stream_records import make_record, voxels, without

from nufm.data.detector import load_stream_detector
from nufm.data.stream_files import event_from_record
from nufm.data.streams import HIT_TRUTH, Hits, StreamBatch, StreamEvent


def event(seed: int = 0, missing: tuple[str, ...] = (), **sizes: int) -> StreamEvent:
    record = make_record(seed, **sizes)
    for stream in missing:
        record = without(record, stream)
    return event_from_record(record, "fasercal", f"event {seed}").replace(seed=seed)


def rows(batch: StreamBatch, stream: str, b: int) -> slice:
    return slice(*batch.voxels[stream].offsets[b : b + 2].tolist())


def test_batch_is_its_events():
    events = [event(0), event(1, ("ecal",)), event(2, hits=0, tracks=0), event(3, ("cal3d", "muon")), StreamEvent()]
    batch = StreamBatch.from_events(events)
    assert len(batch) == batch.n_events == 5 and batch.names == tuple(e.name for e in events)
    assert batch.seeds.tolist() == [0, 1, 2, 3, 0]
    for b, e in enumerate(events):
        for stream in ("cal3d", "ahcal"):
            got, part = batch.voxels[stream], rows(batch, stream, b)
            hits = e.voxels.get(stream)
            assert part.stop - part.start == (0 if hits is None else len(hits))
            if hits is not None:
                assert np.array_equal(got.index[part], hits.index) and np.array_equal(got.charge[part], hits.charge)
                assert np.array_equal(got.module[part], hits.module) and (got.event[part] == b).all()
                for name, label in got.labels.items():
                    assert np.array_equal(label[part], getattr(hits, name))
        assert bool(batch.matrices["ecal"].present[b]) is ("ecal" in e.matrices)
        assert np.array_equal(batch.matrices["ecal"].values[b], e.matrices.get("ecal", np.zeros((5, 5))).ravel())
        low, high = batch.tracks["muon"].offsets[b : b + 2].tolist()
        assert np.array_equal(batch.tracks["muon"].feat[low:high], e.tracks.get("muon", np.zeros((0, 5))))
        assert bool(batch.tracks["muon"].present[b]) is ("muon" in e.tracks)
    assert set(batch.voxels["cal3d"].labels) == set(HIT_TRUTH) and not batch.voxels["ahcal"].labels
    assert not batch.truth  # the last event has none
    assert set(StreamBatch.from_events(events[:4]).truth) == set(events[0].truth)


def test_labels_that_one_event_lacks():
    """A label is there if all events that have the stream have it; events without the stream do not count."""
    bare = event(1)
    bare = bare.replace(voxels={**bare.voxels, "cal3d": bare.voxels["cal3d"].replace(category=None)})
    batch = StreamBatch.from_events([event(0), bare, event(2, ("cal3d",))])
    assert set(batch.voxels["cal3d"].labels) == {"ghost", "hierarchy"}


@pytest.mark.parametrize("stream", ["cal3d", "ahcal", "ecal", "muon"])
def test_a_stream_taken_out_of_a_batch_is_one_that_no_event_had(stream):
    events = [event(seed) for seed in range(3)]
    one, other = (
        StreamBatch.from_events(events).without(stream),
        StreamBatch.from_events([e.without(stream) for e in events]),
    )
    for name in one.voxels:
        for field in ("index", "module", "charge", "offsets"):
            assert torch.equal(getattr(one.voxels[name], field), getattr(other.voxels[name], field))
    assert torch.equal(one.matrices["ecal"].values, other.matrices["ecal"].values)
    assert torch.equal(one.matrices["ecal"].present, other.matrices["ecal"].present)
    assert torch.equal(one.tracks["muon"].feat, other.tracks["muon"].feat)
    assert torch.equal(one.tracks["muon"].present, other.tracks["muon"].present)
    with pytest.raises(ValueError, match="no stream 'tracker', the batch has cal3d, ahcal, ecal, muon"):
        one.without("tracker")


def test_what_cannot_be_packed():
    with pytest.raises(ValueError, match="empty list of events"):
        StreamBatch.from_events([])
    with pytest.raises(ValueError, match="'superfgd' in a batch of 'fasercal'"):
        StreamBatch.from_events([StreamEvent(), StreamEvent(detector="superfgd")])


def test_extra_and_groups():
    events = [StreamEvent(extra=np.full(3, i, np.float32)) for i in range(4)]
    batch = StreamBatch.from_events(events, groups=[1, 3])
    assert batch.extra.tolist() == [[i] * 3 for i in range(4)] and batch.groups.tolist() == [0, 1, 4]
    moved = batch.to("cpu")
    assert torch.equal(moved.extra, batch.extra) and torch.equal(moved.groups, batch.groups)
    assert StreamBatch.from_events([*events, StreamEvent()]).extra is None


def test_positions():
    """Voxel centres from the centre of 3DCal: module m begins 241 mm further on, and the stack is symmetric."""
    cal = load_stream_detector("fasercal").voxels["cal3d"]
    ends = cal.position(np.array([[0, 0, 0], [47, 47, 19]]), np.array([0, 9]))
    assert np.allclose(ends[0], -ends[1]) and np.allclose(ends[1], [235, 235, 1194.5 - 5.5])
    assert np.allclose(np.diff(cal.position(np.zeros((10, 3), int), np.arange(10))[:, 2]), 241)


# ---- voxels are checked once


def test_hits_that_were_checked_stay_so():
    checked = event(0).voxels["cal3d"]
    assert checked._placed_in == ("fasercal", "cal3d")
    for same in (checked.replace(charge=checked.charge * 2), checked.select(checked.charge > 1), pickle.loads(
            pickle.dumps(checked))):  # fmt: skip
        assert same._placed_in == ("fasercal", "cal3d")
    fresh = (checked.replace(index=checked.index), checked.select(np.array([0, 0])), checked.select(np.arange(30)))
    assert all(getattr(hits, "_placed_in", None) is None for hits in fresh)


def test_changed_voxels_are_checked_again():
    hits = event(0).voxels["cal3d"]
    index = hits.index.copy()
    index[3, 0] = 48
    with pytest.raises(ValueError, match=r"field 'index' of hit 3 is \[48"):
        StreamEvent({"cal3d": hits.replace(index=index)})
    with pytest.raises(ValueError, match="hit twice"):
        StreamEvent({"cal3d": hits.select(np.array([5, 5]))})
    with pytest.raises(ValueError, match=r"field 'charge' at \[2\] is nan"):
        charge = hits.charge.copy()
        charge[2] = np.nan
        StreamEvent({"cal3d": hits.replace(charge=charge)})
    with pytest.raises(ValueError, match=r"field 'charge' has shape \(29,\), expected \(30,\)"):
        StreamEvent({"cal3d": hits.replace(charge=hits.charge[:-1])})
    small = Hits(*voxels(np.random.default_rng(0), 4, "cal3d"), np.ones(4, np.float32))
    small = small.replace(module=np.array([0, 1, 2, 0], np.int32))
    StreamEvent({"cal3d": small})
    with pytest.raises(ValueError, match="stream 'ahcal', field 'module' of hit 1"):  # checked for another stream
        StreamEvent({"ahcal": small})


def test_selection_is_that_of_numpy():
    hits, rng = event(0).voxels["cal3d"], np.random.default_rng(0)
    for chosen in (rng.random(30) < 0.4, rng.integers(0, 30, 7), np.zeros(30, bool), np.arange(0)):
        taken = hits.select(chosen)
        for name in ("index", "module", "charge", *HIT_TRUTH):
            assert np.array_equal(getattr(taken, name), getattr(hits, name)[chosen])
    assert Hits(hits.index, hits.module, hits.charge).select(np.arange(3)).ghost is None
