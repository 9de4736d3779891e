"""Masked and relational pretraining on streams: masks, what may be seen, whose truth is read, and that it learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from stream_events import encoder, event, one_batch

from nufm.data.stream_reconstruction import standardized_by, zero_charges
from nufm.data.stream_transforms import ShiftHits, StandardizeStreams
from nufm.data.streams import StreamBatch, StreamEvent
from nufm.data.transforms import Compose
from nufm.methods.masked_calorimeter import MaskedCalorimeter, keep_patches


def small(**changes: object) -> MaskedCalorimeter:
    made = encoder(depths=(1, 1, 1))
    return MaskedCalorimeter(made, **{"decoder": {"channels": 24, "heads": 2, "depth": 1}} | changes)


def labelled(seed: int, n: int = 400) -> StreamEvent:
    """An event whose hits have truth; a fifth of them are ghosts."""
    made, rng = event(seed, n), np.random.default_rng(seed)
    hits = made.voxels["cal3d"]
    ghost = (rng.random(n) < 0.2).astype(np.int8)
    shares = rng.dirichlet(np.ones(3), (2, n)).astype(np.float32) * (ghost != 1)[None, :, None]
    hits = hits.replace(ghost=ghost, hierarchy=shares[0], category=shares[1])
    return made.replace(voxels={**made.voxels, "cal3d": hits})


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("ratio", [0.25, 0.6, 0.75])
def test_share_of_visible_patches_is_right_on_average(ratio: float):
    """E[kept] = v (1 - r) where neither bound acts; of v ≥ 2 at least one is kept and one hidden."""
    stack = encoder(depths=(1, 1, 1)).calorimeter
    patches = stack.patches(one_batch(*(event(i, 60) for i in range(40))))
    index, _, _ = patches.occupied
    count = torch.bincount(index)
    kept = torch.stack(
        [torch.bincount(index, keep_patches(patches, stack, torch.arange(40) + 1000 * s, ratio, 0)) for s in range(60)]
    )
    inside = (count * (1 - ratio) >= 1) & (count * ratio >= 1)
    assert inside.sum() > 50
    expected = count[inside] * (1 - ratio)
    error = (expected.frac() * (1 - expected.frac()) / 60).sqrt()
    pull = (kept.double().mean(0)[inside] - expected) / error.clamp(min=1e-9)
    assert float(pull.mean().abs()) < 5 / len(pull) ** 0.5 + 1e-6 and float(pull.abs().max()) < 5
    assert bool((kept[:, count >= 2] >= 1).all()) and bool((kept < count)[:, count >= 2].all())


def test_a_lone_patch_stays_and_of_two_one_is_hidden():
    stack = encoder(depths=(1, 1, 1)).calorimeter
    made = event(0, 2)
    hits = made.voxels["cal3d"]
    at = np.array([[0, 0, 0], [30, 30, 15]], np.int32)
    for module, expected in (([2, 5], [True, True]), ([2, 2], None)):
        hits = hits.replace(index=at, module=np.array(module, np.int32))
        patches = stack.patches(one_batch(made.replace(voxels={"cal3d": hits})))
        for seed in range(20):
            keep = keep_patches(patches, stack, torch.tensor([seed]), 0.9, 0)
            assert keep.tolist() == expected if expected else int(keep.sum()) == 1


def test_masks_come_from_each_events_own_seed():
    model, events = small(), [event(1), event(2, 100), event(3)]
    together = model.hide(one_batch(*events))
    turned = model.hide(one_batch(*events[::-1]))
    alone = model.hide(one_batch(events[1]))
    for stream, patches in together.patches.items():
        mine = together.keep[stream][patches.event == 1]
        assert torch.equal(mine, alone.keep[stream])
        assert torch.equal(mine, turned.keep[stream][turned.patches[stream].event == 1])
    assert bool(together.keep_matrix[1] == alone.keep_matrix[0])
    again = model.hide(one_batch(*[e.replace(seed=e.seed + 100) for e in events]))
    assert not torch.equal(together.keep["cal3d"], again.keep["cal3d"])
    other = model.hide(one_batch(*events), relational=True)  # pass B has draws of its own
    assert int(other.keep["cal3d"].sum()) > 2 * int(together.keep["cal3d"].sum())


def test_matrix_and_tracks_are_hidden_half_as_often():
    model = small()
    batch = one_batch(*(StreamEvent(name=str(i), seed=i) for i in range(2000)))
    for relational, share in ((False, 0.375), (True, 0.125)):
        found = model.hide(batch, relational)
        for keep in (found.keep_matrix, found.keep_tracks):
            assert float((~keep).double().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5)


# ---------------------------------------------------------------------- what may be seen


def test_what_is_hidden_does_not_reach_the_latents():
    """Other charges, and other voxels of the same hidden patches, another hidden matrix and tracks: same latents."""
    model, made = small().eval(), labelled(4)
    batch = one_batch(made)
    before = model.hide(batch)
    changed, rng = dict(made.voxels), np.random.default_rng(9)
    for stack in model.encoder.stacks:
        patches, keep = before.patches[stack.stream], before.keep[stack.stream]
        rows = patches.hit_rows[~keep[patches.hit_patch]].numpy()
        hits = made.voxels[stack.stream]
        charge, index = hits.charge.copy(), hits.index.copy()
        charge[rows] = rng.exponential(5.0, len(rows))
        corner = index[rows] // stack.patch * stack.patch  # a patch's first voxel, one for each patch
        only = np.unique(np.column_stack([hits.module[rows], corner]), axis=0, return_index=True)[1]
        index[rows[only]] = corner[only]
        flat = np.column_stack([hits.module, index])
        kept = np.sort(np.unique(flat, axis=0, return_index=True)[1])
        changed[stack.stream] = hits.replace(charge=charge, index=index).select(kept)
    assert not np.array_equal(changed["cal3d"].charge, made.voxels["cal3d"].charge)
    after = model.hide(one_batch(made.replace(voxels=changed)))
    assert torch.equal(before.keep["cal3d"], after.keep["cal3d"])
    torch.testing.assert_close(after.latents.feat, before.latents.feat, atol=1e-6, rtol=1e-5)
    for seed in range(40):  # until both tokens are hidden
        some = made.replace(seed=seed)
        masked = model.hide(one_batch(some))
        if not bool(masked.keep_matrix[0]) and not bool(masked.keep_tracks[0]):
            break
    other = some.replace(matrices={"ecal": np.full((5, 5), 9.0, np.float32)}, tracks={"muon": np.zeros((1, 5), "f4")})
    assert torch.equal(model.hide(one_batch(other)).latents.feat, masked.latents.feat)
    patches, keep = masked.patches["cal3d"], masked.keep["cal3d"]  # and what is visible does reach them
    charge = some.voxels["cal3d"].charge.copy()
    charge[int(patches.hit_rows[keep[patches.hit_patch]][0])] += 1.0
    other = some.replace(voxels={**some.voxels, "cal3d": some.voxels["cal3d"].replace(charge=charge)})
    apart = (model.hide(one_batch(other)).latents.feat - masked.latents.feat).abs()
    assert float(apart.max()) > 1e-3


def test_targets_are_the_hidden_patches_hits():
    model, batch = small(), one_batch(labelled(4), labelled(5))
    model.zero = {"cal3d": -3.0}
    masked = model.hide(batch)
    target = model.voxels(batch, masked, 0).target
    patches, keep = masked.patches["cal3d"], masked.keep["cal3d"]
    hidden = batch.voxels["cal3d"].charge[patches.hit_rows[~keep[patches.hit_patch]]]
    assert torch.equal(target.charge[target.filled].sort()[0], hidden.sort()[0])
    assert target.charge[~target.filled].unique().tolist() == [-3.0]


def test_ghosts_are_empty_voxels_if_asked_and_no_truth_is_read_if_not():
    batch = one_batch(labelled(4), labelled(5))
    n = {}
    for ghosts in ("as_input", "not_reconstructed"):
        model = small(ghosts=ghosts)
        target = model.voxels(batch, model.hide(batch), 0).target
        n[ghosts] = int(target.filled.sum())
    assert 0.7 * n["as_input"] < n["not_reconstructed"] < 0.9 * n["as_input"]
    plain = one_batch(event(4), event(5))  # data of a detector
    small(ghosts="as_input").losses(plain, False)
    with pytest.raises(ValueError, match=r"event 4.*'ghost'.*--model.ghosts as_input"):
        small(ghosts="not_reconstructed").losses(plain, False)
    with pytest.raises(ValueError, match=r"event 4.*'ghost'.*--model.relational 0"):
        small(relational=1.0).losses(plain, True)


# ---------------------------------------------------------------------- losses


def test_relational_terms_look_at_visible_hits_and_at_some_of_each_patch():
    model, batch = small(relational=1.0), one_batch(labelled(4), labelled(5))
    masked = model.hide(batch, relational=True)
    shown = masked.patches["cal3d"].select(masked.keep["cal3d"])
    real = batch.voxels["cal3d"].labels["ghost"][shown.hit_rows] != 1
    real[shown.hit_patch == 0] = False  # a patch of ghosts alone
    given = (shown, model.encoder.calorimeter, batch.seeds, real)
    chosen = model._supervised(*given)
    assert bool(real[chosen].all())
    assert set(shown.hit_patch[chosen].tolist()) == set(shown.hit_patch[real].tolist())
    assert 0.4 < len(chosen) / int(real.sum()) < 0.75
    assert torch.equal(model.eval()._supervised(*given), real.nonzero()[:, 0])


def test_the_ghost_loss_is_of_all_visible_hits_whatever_share_is_supervised():
    """As in the public code: the share is of hierarchy and category, among hits that are no ghosts."""
    batch, found = one_batch(labelled(4), labelled(5)), {}
    for share in (1.0, 0.5, 0.01):
        model = small(relational=1.0, supervised_share=share)
        with torch.no_grad():
            found[share] = model.relational_losses(batch, model.hide(batch, relational=True))
    for share in (0.5, 0.01):
        assert float(found[share]["ghost"]) == pytest.approx(float(found[1.0]["ghost"]), rel=1e-6)
        assert abs(float(found[share]["category"]) - float(found[1.0]["category"])) > 1e-4


@pytest.mark.parametrize("single_tokens", ["hidden", "all"])
def test_whose_matrix_and_tracks_are_asked_for(single_tokens: str, monkeypatch):
    """Those that are there; with 'hidden', those that the encoder did not see alone. Others have no say in the loss."""
    model, events = small(single_tokens=single_tokens), [event(i, 40) for i in range(12)]
    events[3], events[7] = events[3].replace(matrices={}), events[7].replace(tracks={})
    batch = one_batch(*events)
    masked = model.hide(batch)
    asked = {}
    for name in ("matrix", "tracks"):
        decode = getattr(model.decoder, name)

        def watched(memory, of, name=name, decode=decode):
            asked[name] = of.tolist()
            return decode(memory, of)

        monkeypatch.setattr(model.decoder, name, watched, raising=False)
    model.reconstruction_losses(batch, masked, {})
    for name, keep, there in (
        ("matrix", masked.keep_matrix, batch.matrices["ecal"].present),
        ("tracks", masked.keep_tracks, batch.tracks["muon"].present),
    ):
        assert 0 < int((there & keep).sum()) < int(there.sum())
        wanted = there if single_tokens == "all" else there & ~keep
        assert asked[name] == wanted.nonzero()[:, 0].tolist()


def test_everything_that_is_trained_gets_a_gradient():
    batch = one_batch(*(labelled(i) for i in range(12)))
    for relational in (0.0, 1.0):
        model = small(relational=relational)
        model.total(model.losses(batch, relational > 0)[0]).backward()
        without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
        assert not without
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert len(frozen) == (6 if relational == 0 else 0)  # weights and biases of the relational heads


@pytest.mark.parametrize("relational", [False, True])
def test_events_with_little_in_them(relational: bool):
    """Nothing at all, one hit, streams that were not read out: finite losses, also alone."""
    model = small(relational=1.0)
    full, one = labelled(4), labelled(5)
    one = one.replace(voxels={"cal3d": one.voxels["cal3d"].select(np.arange(1))}, tracks={}, matrices={})
    events = [StreamEvent(name="nothing", seed=3), one, full.without("cal3d"), full.without("ahcal"), full]
    for some in ([e] for e in events):
        terms, _, _ = model.losses(one_batch(*some), relational)
        total = model.total(terms)
        assert bool(torch.isfinite(total)), some[0].name
        total.backward()
    terms, _, _ = model.losses(one_batch(*events), relational)
    assert all(bool(torch.isfinite(t)) for t in terms.values())


def test_reconstruction_does_not_depend_on_the_order_of_events():
    model, events = small(), [labelled(4), labelled(5, 150), labelled(6)]
    model.zero = {"cal3d": -1.0, "ahcal": -1.0}
    both = (model.losses(one_batch(*some), True)[0] for some in (events, events[::-1]))
    found = [{name: float(term.detach()) for name, term in terms.items()} for terms in both]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_empty_voxels_have_the_charge_that_the_transforms_give_to_none():
    made = StandardizeStreams(("cal3d", "ahcal"), (True, True), (0.5, 0.2), (1.0, 2.0), (0.5, 4.0))
    found = zero_charges([made], ["cal3d", "ahcal"])
    assert found == pytest.approx({"cal3d": (0 - 1.0) / 0.5, "ahcal": -0.5})
    assert zero_charges([], ["cal3d"]) == zero_charges([ShiftHits()], ["cal3d"]) == {"cal3d": 0.0}
    for hidden in (Compose((ShiftHits(), made)), Compose((Compose((made,)), ShiftHits()))):
        assert zero_charges([hidden], ["cal3d", "ahcal"]) == found and standardized_by([hidden]) is made
    with pytest.raises(ValueError, match="expected one StandardizeStreams, found StandardizeStreams, Standardize"):
        zero_charges([made, Compose((made,))], ["cal3d"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"relational": -0.1}, "relational is -0.1"),
        ({"ghosts": "no"}, "ghosts is 'no'"),
        ({"single_tokens": "some"}, "single_tokens is 'some', expected 'hidden' or 'all'"),
    ],
)
def test_settings_out_of_range(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        small(**changes)


# ---------------------------------------------------------------------- learning


def lines(seed: int) -> StreamEvent:
    """Two straight tracks of equal charge through the first modules, in the same direction in every event."""
    rng = np.random.default_rng(seed)
    z = np.arange(60)
    rows = []
    for _ in range(2):
        x, y = rng.uniform(8, 40, 2)
        rows.append(np.column_stack([z // 20, np.full(60, x).astype(int), np.full(60, y).astype(int), z % 20]))
    cells = np.unique(np.concatenate(rows), axis=0)
    made = event(seed)
    hits = dataclasses.replace(
        made.voxels["cal3d"], index=cells[:, 1:].astype(np.int32), module=cells[:, 0].astype(np.int32),
        charge=np.ones(len(cells), np.float32),
    )  # fmt: skip
    return made.replace(voxels={"cal3d": hits})


def test_it_learns_where_tracks_go_on():
    """Tracks along the beam: what is hidden follows from what is not."""
    torch.manual_seed(0)
    model = small(mask_ratio=0.5, decoder={"channels": 48, "heads": 4, "depth": 1})
    model.zero = {"cal3d": -1.0}
    optimizer = torch.optim.AdamW(model.parameter_groups(), lr=3e-3)
    events = [lines(i) for i in range(16)]
    aucs = []
    for step in range(90):
        batch = StreamBatch.from_events([e.replace(seed=100 * step + i) for i, e in enumerate(events)])
        terms, masked, said = model.losses(batch, False)
        optimizer.zero_grad()
        model.total(terms).backward()
        optimizer.step()
        if step in (0, 89):
            aucs.append(float(model._diagnostics(batch, masked, said)["train/occupancy_auc_cal3d"]))
    assert aucs[0] < 0.6 and aucs[1] > 0.85


def test_the_draw_of_pass_b_has_its_share_and_no_state():
    first = small(relational=0.5)
    found = [first.has_pass_b(step) for step in range(200)]
    again = small(relational=0.5)
    assert found == [again.has_pass_b(step) for step in range(200)] and 70 < sum(found) < 130
    again.seed = 1  # another run has other steps
    other = [again.has_pass_b(step) for step in range(200)]
    assert 70 < sum(other) < 130 and 70 < sum(a != b for a, b in zip(found, other, strict=True)) < 130
    assert not any(small().has_pass_b(step) for step in range(20))
    assert all(small(relational=1.0).has_pass_b(step) for step in range(20))
