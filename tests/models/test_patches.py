"""Patches against brute force and dense convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stream_events import event, hits, one_batch
from torch import nn

from nufm.data.streams import Hits, StreamEvent
from nufm.models.patches import PatchEmbedding, PatchStack, ravel, unravel
from nufm.models.stream_blocks import gathered, sincos3d

CAL = ([48, 48, 20], [12, 12, 10], 10)


def stack(**changes) -> PatchStack:
    torch.manual_seed(0)
    return PatchStack("cal3d", *CAL, **{"channels": 24, "depth": 2, "heads": 4} | changes)


def test_numbers_of_patches_and_windows():
    """Talk of F. Cufino: 320 + 72 tokens; 150 and 294 windows of the transfer detectors."""
    cal = stack()
    tail = PatchStack("ahcal", [18, 18, 40], [6, 6, 5], channels=24, depth=0, heads=4)
    assert cal.n_groups * cal.group_size == 320 and cal.group_size == 32 and tail.group_size == 72
    small = {"channels": 24, "depth": 0, "heads": 4, "group_code": "sincos"}
    superfgd = PatchStack("voxels", [120] * 3, [12, 12, 10], window=[2, 2, 2], **small)
    pilarnet = PatchStack("voxels", [168, 168, 180], [12, 12, 10], window=[2, 2, 3], **small)
    assert (superfgd.n_groups, superfgd.n_groups * superfgd.n_cls) == (150, 300)
    assert (pilarnet.n_groups, pilarnet.n_groups * pilarnet.n_cls) == (294, 588)


def test_every_hit_is_in_its_patch():
    """Module, patch, place and slot of every hit, one by one."""
    batch = one_batch(event(0, 200), StreamEvent(name="nothing"), event(1, 300))
    cal = PatchStack("cal3d", *CAL, window=[2, 4, 1], channels=24, depth=0, heads=4)
    found, made = cal.patches(batch), batch.voxels["cal3d"]
    assert sorted(found.hit_rows.tolist()) == list(range(len(made)))
    seen = set()
    for row, patch, slot in zip(found.hit_rows, found.hit_patch, found.slot, strict=True):
        index, module, owner = made.index[row], int(made.module[row]), int(made.event[row])
        cell = [int(i) // e for i, e in zip(index, CAL[1], strict=True)]
        inside = [int(i) % e for i, e in zip(index, CAL[1], strict=True)]
        assert found.cell[patch].tolist() == cell and found.module[patch] == module and found.event[patch] == owner
        assert int(slot) == np.ravel_multi_index(inside, CAL[1])
        window, place = [c // w for c, w in zip(cell, (2, 4, 1), strict=True)], np.array(cell) % (2, 4, 1)
        assert found.group[patch] == module * 4 + np.ravel_multi_index(window, (2, 1, 2))
        assert found.place[patch] == np.ravel_multi_index(place, (2, 4, 1))
        seen.add((owner, module, *cell))
    assert len(seen) == len(found) and found.offsets.tolist()[2] == found.offsets.tolist()[1]
    key = (found.event * cal.n_groups + found.group) * cal.group_size + found.place
    assert (key.diff() > 0).all()


def test_select_keeps_the_hits_of_the_patches():
    cal, batch = stack(), one_batch(event(0), event(1))
    found = cal.patches(batch)
    keep = torch.rand(len(found), generator=torch.Generator().manual_seed(0)) < 0.3
    part = found.select(keep)
    assert len(part) == int(keep.sum()) and part.offsets[-1] == len(part)
    for patch in range(len(part)):
        old = int(keep.nonzero()[patch])
        assert part.hit_rows[part.hit_patch == patch].tolist() == found.hit_rows[found.hit_patch == old].tolist()
    assert len(found.select(torch.zeros_like(keep))) == 0


def dense(made: Hits) -> torch.Tensor:
    lattice = torch.zeros(10, 1, 48, 48, 20, dtype=torch.float64)
    lattice[made.module, 0, made.index[:, 0], made.index[:, 1], made.index[:, 2]] = torch.from_numpy(
        made.charge
    ).double()
    return lattice


def test_one_step_embedding_is_a_strided_convolution():
    made = hits(np.random.default_rng(0), 500, 10, (48, 48, 20))
    batch = one_batch(StreamEvent(voxels={"cal3d": made}))
    cal = stack().double()
    nn.init.normal_(cal.embedding.bias)
    found = cal.patches(batch)
    mine = cal.embedding(batch.voxels["cal3d"].charge[found.hit_rows], found)
    kernel = cal.embedding.weight.T.reshape(24, 1, 12, 12, 10)
    expected = nn.functional.conv3d(dense(made), kernel, cal.embedding.bias, stride=(12, 12, 10))
    at = expected[found.module, :, found.cell[:, 0], found.cell[:, 1], found.cell[:, 2]]
    torch.testing.assert_close(mine, at)


def test_two_step_embedding_is_two_convolutions_with_a_norm_where_there_are_hits():
    made = hits(np.random.default_rng(1), 900, 10, (48, 48, 20), 2)
    batch = one_batch(StreamEvent(voxels={"cal3d": made}))
    cal = stack(stage=[4, 4, 2]).double()
    part = cal.embedding
    nn.init.normal_(part.bias)
    nn.init.normal_(part.norm.bias)
    found = cal.patches(batch)
    mine = part(batch.voxels["cal3d"].charge[found.hit_rows], found)
    lattice = dense(made)
    fine = nn.functional.conv3d(lattice, part.fine.T.reshape(96, 1, 4, 4, 2), stride=(4, 4, 2))
    active = nn.functional.max_pool3d((lattice != 0).double(), (4, 4, 2))
    fine = nn.functional.gelu(part.norm(fine.movedim(1, -1))).movedim(-1, 1) * active
    kernel = part.coarse.permute(2, 1, 0).reshape(24, 96, 3, 3, 5)
    expected = nn.functional.conv3d(fine, kernel, part.bias, stride=(3, 3, 5))
    at = expected[found.module, :, found.cell[:, 0], found.cell[:, 1], found.cell[:, 2]]
    torch.testing.assert_close(mine, at)


def test_modules_do_not_see_each_other():
    """More hits in module 3 leave tokens and summaries of the others as they were."""
    cal = stack().eval()
    a = hits(np.random.default_rng(0), 300, 10, (48, 48, 20), 3)
    extra = np.array([[5, 5, 5], [40, 40, 15], [1, 30, 2]], np.int32)
    b = Hits(
        np.concatenate([a.index, extra]),
        np.concatenate([a.module, np.full(3, 3, np.int32)]),
        np.concatenate([a.charge, np.full(3, 9.0, np.float32)]),
    )
    results = []
    for made in (a, b):
        batch = one_batch(StreamEvent(voxels={"cal3d": made}))
        results.append(cal(batch.voxels["cal3d"].charge, cal.patches(batch)))
    n, s = len(results[0].tokens), len(results[0].summaries)
    assert len(results[1].tokens) > n and len(results[1].summaries) > s
    torch.testing.assert_close(results[1].tokens[:n], results[0].tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(results[1].summaries[:s], results[0].summaries, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("occupied", "summaries"), [(1, 1), (16, 1), (17, 2), (32, 2)])
def test_a_fuller_module_has_more_summaries(occupied, summaries):
    """ceil(v / t), t = 16 patches of 32 for two CLS (public code)."""
    cell = unravel(torch.arange(occupied), (4, 4, 2)).numpy()
    made = Hits((cell * [12, 12, 10]).astype(np.int32), np.zeros(occupied, np.int32), np.ones(occupied, np.float32))
    cal = stack()
    assert cal.summaries_of(cal.patches(one_batch(StreamEvent(voxels={"cal3d": made})))).tolist() == [summaries]


def test_no_hit_and_one_hit():
    cal = stack()
    batch = one_batch(StreamEvent())
    found = cal(batch.voxels["cal3d"].charge, cal.patches(batch))
    assert found.tokens.shape == (0, 24) and found.summaries.shape == (0, 24)
    one = Hits(np.array([[47, 47, 19]], np.int32), np.array([9], np.int32), np.array([1.0], np.float32))
    batch = one_batch(StreamEvent(voxels={"cal3d": one}))
    found = cal(batch.voxels["cal3d"].charge, cal.patches(batch))
    assert found.tokens.shape == (1, 24) and found.summaries.shape == (1, 24) and found.tokens.isfinite().all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not divide the lattice"):
        PatchStack("cal3d", [48, 48, 20], [13, 12, 10])
    with pytest.raises(ValueError, match="does not divide the"):
        PatchStack("cal3d", [48, 48, 20], [12, 12, 10], window=[3, 2, 2])
    with pytest.raises(ValueError, match="divide the patch"):
        PatchEmbedding([12, 12, 10], 8, [5, 4, 2])
    with pytest.raises(ValueError, match="cls_tokens"):
        stack(cls_tokens=33)
    with pytest.raises(ValueError, match="positions is 'sine'"):
        stack(positions="sine")
    small = PatchStack("cal3d", [24, 24, 20], [12, 12, 10], 10, channels=24, depth=0, heads=4)
    with pytest.raises(ValueError, match=r"event 0: stream 'cal3d', hit .* 10 modules of \[24, 24, 20\]"):
        small.patches(one_batch(event(0)))
    other = PatchStack("ecal3d", [24, 24, 20], [12, 12, 10], channels=24, depth=0, heads=4)
    with pytest.raises(ValueError, match="reads the stream 'ecal3d', events of 'fasercal' have cal3d, ahcal"):
        other.patches(one_batch(event(0)))


def test_codes_of_places():
    """Each third of the channels depends on one axis alone; wavelengths from 2π on."""
    code = sincos3d((3, 4, 5), 24).view(3, 4, 5, 24)
    assert (code[:, :1, :1, :8] == code[..., :8]).all() and (code[:1, :, :1, 8:16] == code[..., 8:16]).all()
    torch.testing.assert_close(code[2, 0, 0, 0], torch.tensor(2.0).sin())
    torch.testing.assert_close(code[0, 0, 4, 16 + 4 + 1], torch.tensor(4 * 10000**-0.25).cos())
    assert len(code.flatten(0, 2).unique(dim=0)) == 60
    with pytest.raises(ValueError, match="multiple of 6"):
        sincos3d((2, 2, 2), 32)


def test_numbers_of_cells_and_back():
    number = torch.arange(4 * 5 * 6)
    assert (ravel(unravel(number, (4, 5, 6)), (4, 5, 6)) == number).all()


def test_gathering_keeps_kinds_and_rows_in_order():
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]])
    rows, offsets, place = gathered([first, second], [torch.tensor([2, 0]), torch.tensor([0, 2, 2])], 4)
    assert rows[:, 0].tolist() == [2, 3, 1, 4, 5] and offsets.tolist() == [0, 2, 2, 5, 5]
    assert (rows[place] == torch.cat([first, second])).all()
