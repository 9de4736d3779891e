"""What a masked calorimeter model says of single events: places, units and scores by a second derivation; pictures."""

from __future__ import annotations

import dataclasses

import matplotlib.image
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from stream_events import encoder, event

from nufm.data.stream_reconstruction import HiddenVoxels, StreamReconstruction, StreamRelations, standardized_by
from nufm.data.stream_transforms import HitNoise, fit_standardize
from nufm.data.streams import StreamBatch, StreamEvent
from nufm.data.transforms import Compose
from nufm.display.stream_reconstruction import (
    draw_reconstructed,
    draw_relations,
    hidden_line,
    hit_voxels,
    occupancy_curve,
)
from nufm.methods.event_reconstruction import reconstruction, relations
from nufm.methods.masked_calorimeter import MaskedCalorimeter


def labelled(seed: int, n: int = 300) -> StreamEvent:
    """An event of MeV whose hits have truth; a fifth of them are ghosts."""
    made, rng = event(seed, n), np.random.default_rng(seed)
    hits = made.voxels["cal3d"]
    ghost = (rng.random(n) < 0.2).astype(np.int8)
    shares = rng.dirichlet(np.ones(3), (2, n)).astype(np.float32) * (ghost != 1)[None, :, None]
    hits = hits.replace(
        ghost=ghost, hierarchy=shares[0], category=shares[1], charge=rng.gamma(2.0, 3.0, n).astype(np.float32)
    )
    return made.replace(voxels={**made.voxels, "cal3d": hits}, seed=seed)


@pytest.fixture(scope="module")
def events() -> list[StreamEvent]:
    return [labelled(i) for i in range(12)]


@pytest.fixture(scope="module")
def standard(events):
    return fit_standardize(events)


@pytest.fixture(scope="module", params=["as_input", "not_reconstructed"])
def model(request) -> MaskedCalorimeter:
    torch.manual_seed(0)
    made = MaskedCalorimeter(
        encoder(depths=(1, 1, 1)), ghosts=request.param, decoder={"channels": 24, "heads": 2, "depth": 1}
    )
    return made.train()


def test_what_is_hidden_is_what_the_losses_see(model, events, standard) -> None:
    """The same mask and the same logits as in training, at every voxel that the losses look at."""
    for made in events[:3]:
        found = reconstruction(model, made, [standard])
        batch = StreamBatch.from_events([standard(made, np.random.default_rng(0))])
        model.eval()
        with torch.no_grad():
            masked = model.hide(batch)
            for i, stack in enumerate(model.encoder.stacks):
                said, hidden = model.voxels(batch, masked, i), found.voxels[stack.stream]
                row = said.target.patch * stack.patch_size + said.target.slot
                np.testing.assert_allclose(
                    torch.logit(torch.tensor(hidden.occupancy)[row], 1e-7), said.occupancy, atol=2e-3
                )
                charge = standard.inverse(stack.stream, said.charge.numpy())
                np.testing.assert_allclose(hidden.charge[row], charge, rtol=1e-4, atol=1e-4)
                hit, true = hit_voxels(found, stack.stream)
                np.testing.assert_array_equal(hit[row], said.target.filled)
                filled = said.target.filled.numpy()
                back = standard.inverse(stack.stream, said.target.charge.numpy()[filled])
                np.testing.assert_allclose(true[row][filled], back, rtol=1e-3, atol=1e-3)
        model.train()
        hidden, ghost = ~found.voxels["cal3d"].shown, made.voxels["cal3d"].ghost == 1
        left_out = 0 if model.hparams.ghosts == "as_input" else (hidden & ghost).sum()
        assert hit_voxels(found, "cal3d")[0].sum() == hidden.sum() - left_out
        assert not hidden.all()


def test_mode_is_left_alone_and_the_seed_decides(model, events, standard) -> None:
    one, same = (reconstruction(model, events[0], [standard]) for _ in range(2))
    assert model.training and model.encoder.training
    np.testing.assert_array_equal(one.voxels["cal3d"].occupancy, same.voxels["cal3d"].occupancy)
    other = reconstruction(model, events[0].replace(seed=77), [standard])
    assert not np.array_equal(one.voxels["cal3d"].shown, other.voxels["cal3d"].shown)


def test_matrix_and_tracks_are_said_where_they_were_hidden(model, events, standard) -> None:
    found = [reconstruction(model, e, [standard]) for e in events]
    assert 0 < sum(bool(f.matrices) for f in found) < 12 and 0 < sum(bool(f.tracks) for f in found) < 12
    for f in found:
        for values in f.matrices.values():
            assert values.shape == (5, 5) and np.isfinite(values).all()
        for sure, mean in f.tracks.values():
            assert 0 <= sure <= 1 and mean.shape == (4,)
        line = hidden_line(f)
        assert ("ECAL hidden" in line) == bool(f.matrices) and ("muon spectrometer visible" in line) != bool(f.tracks)


def test_relations(model, events, standard) -> None:
    found = relations(model, events[0], [standard])
    n = len(events[0].voxels["cal3d"])
    assert found.shown.shape == (n,) and 0.5 < found.shown.mean() < 1
    for name in ("hierarchy", "category"):
        np.testing.assert_allclose(getattr(found, name)[found.shown].sum(1), 1, rtol=1e-5)
        assert np.isnan(getattr(found, name)[~found.shown]).all()
    assert ((found.ghost[found.shown] >= 0) & (found.ghost[found.shown] <= 1)).all()
    masked = model.eval().hide(StreamBatch.from_events([standard(events[0], np.random.default_rng(0))]), True)
    model.train()
    patches = masked.patches["cal3d"].select(masked.keep["cal3d"])
    np.testing.assert_array_equal(np.flatnonzero(found.shown), np.sort(patches.hit_rows))


def test_occupancy_curve_is_that_of_scikit_learn(model, events, standard) -> None:
    found = reconstruction(model, events[1], [standard])
    hit, _ = hit_voxels(found, "cal3d")
    wrong, right, auc = occupancy_curve(found, "cal3d")
    assert auc == pytest.approx(roc_auc_score(hit, found.voxels["cal3d"].occupancy))
    area = (np.diff(wrong) * (right[1:] + right[:-1]) / 2).sum()
    assert auc == pytest.approx(area)
    assert len(found.voxels["cal3d"].likeliest()) == hit.sum()


def test_nothing_to_hide(model, standard, tmp_path) -> None:
    bare = StreamEvent(name="nothing")
    found = reconstruction(model, bare, [standard])
    assert found.voxels == {} and found.matrices == {} and found.tracks == {}
    assert draw_reconstructed(found, tmp_path / "none.png").stat().st_size > 10_000
    said = relations(model, bare, [standard])
    assert len(said.shown) == 0
    assert draw_relations(said, tmp_path / "none_rel.png").stat().st_size > 5_000
    lone = labelled(0, 1)
    lone = lone.replace(voxels={"cal3d": lone.voxels["cal3d"]})  # one hit is one patch, which stays
    found = reconstruction(model, lone, [standard])
    assert found.voxels["cal3d"].shown.all() and len(found.voxels["cal3d"].occupancy) == 0
    assert np.isnan(occupancy_curve(found, "cal3d")[2])
    draw_reconstructed(found, tmp_path / "lone.png")


def test_transforms_that_cannot_be_undone(model, events, standard) -> None:
    assert standardized_by([Compose((standard,))]) is standard
    with pytest.raises(ValueError, match="expected one StandardizeStreams, found none"):
        reconstruction(model, events[0], [])
    with pytest.raises(ValueError, match="drop or move hits of 'cal3d'"):
        reconstruction(model, events[0], [HitNoise("cal3d", drop=0.5), standard])


def test_fields_that_do_not_fit(events) -> None:
    n, k = len(events[0].voxels["cal3d"]), 4
    numbers = (np.zeros((k, 3), int), np.zeros(k, int), np.zeros(k), np.ones(k))
    good = HiddenVoxels(np.ones(n, bool), np.zeros(n, bool), *numbers)
    assert len(good.likeliest()) == 0
    with pytest.raises(ValueError, match="'charge' has shape"):
        dataclasses.replace(good, charge=np.ones(3))
    with pytest.raises(ValueError, match="'occupancy' is not finite"):
        dataclasses.replace(good, occupancy=np.array([0, 1, np.nan, 0]))
    with pytest.raises(ValueError, match="'ghost' has shape"):
        StreamRelations(events[0], "cal3d", np.ones(n, bool), np.ones(2), np.ones((n, 3)), np.ones((n, 3)))


def perfect(made: StreamEvent) -> StreamReconstruction:
    """Half of the hits are hidden, and found with their charge; as many empty voxels are not."""
    hits = made.voxels["cal3d"]
    shown = np.arange(len(hits)) % 2 == 0
    empty = (hits.index[~shown] + [1, 0, 0]) % 48
    taken = {tuple(r) for r in np.column_stack([hits.module, hits.index])}
    keep = np.array([(m, *e) not in taken for m, e in zip(hits.module[~shown], empty, strict=True)])
    index = np.concatenate([hits.index[~shown], empty[keep]])
    module = np.concatenate([hits.module[~shown], hits.module[~shown][keep]])
    occupancy = np.concatenate([np.full((~shown).sum(), 0.9), np.full(keep.sum(), 0.1)])
    charge = np.concatenate([hits.charge[~shown], np.ones(keep.sum())])
    return StreamReconstruction(made, {"cal3d": HiddenVoxels(shown, ~shown, index, module, occupancy, charge)})


def test_pictures_of_what_is_right(events, tmp_path) -> None:
    """Where everything is found, prediction and truth are the same picture."""
    found = perfect(events[0])
    assert occupancy_curve(found, "cal3d")[2] == 1.0
    path = draw_reconstructed(found, tmp_path / "right.png", simulated=True)
    picture = matplotlib.image.imread(path)[..., :3]
    assert picture.shape[1] == 2400 and 0.02 < (picture < 0.99).any(-1).mean() < 0.5
    hits = events[0].voxels["cal3d"]
    said = StreamRelations(
        events[0], "cal3d", np.ones(len(hits), bool), (hits.ghost == 1) * 0.98 + 0.01, hits.hierarchy, hits.category
    )
    path = draw_relations(said, tmp_path / "relations.png")
    picture = matplotlib.image.imread(path)[..., :3]
    rows = np.flatnonzero((np.abs(picture - np.array([0x00, 0x72, 0xB2]) / 255).max(-1) < 0.02).any(1))
    assert len(rows) > 100  # electromagnetic hits and real ones
