"""The encoder of several sub-detectors against a dense, padded second derivation, and its invariances."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stream_events import encoder, event, one_batch
from torch import Tensor, nn

from nufm.checkpoint.describe import MODELS, build, describe_model
from nufm.data.streams import StreamEvent
from nufm.models.patches import PatchStack
from nufm.models.stream_blocks import Block
from nufm.models.stream_encoder import MatrixToken, StreamEncoder, TrackToken


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def published(depths: tuple[int, int, int], **changes) -> StreamEncoder:
    with torch.device("meta"):
        return encoder(384, depths, 12, **{"positions": "sincos", "stage": [4, 4, 2]} | changes)


def test_parameters_are_those_of_the_public_code():
    """31.92 M (base) and 31.93 M (tiny), 1.774 M and 1.775 M for a block; transferable core 22.96 M."""
    base = published((4, 4, 4))
    assert count(base) == 31_923_648 and count(published((2, 2, 6))) == 31_925_184
    assert count(base.blocks[0]) == 1_774_464 and count(base.looks[0]) == 1_775_232
    core = sum(map(count, (base.calorimeter.blocks, base.looks, base.blocks, base.calorimeter.embedding)))
    assert core == 22_959_168
    learned = published((4, 4, 4), positions="learned")
    assert count(learned) - count(base) == (32 + 72) * 384
    one_step = published((4, 4, 4), stage=None)
    assert count(base) - count(one_step) == 32 * 96 + 2 * 96 + (45 * 96 - 1440) * 384


# ---------------------------------------------------------------------- dense second derivation


def dense_attention(block: Block, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """(n, H·D) rows x (n, C) look at seen (m, C) where mask (n, m) allows; rows that may look nowhere get 0."""
    heads, (q, kv) = block.heads, (block.query(x), block.key_value(seen))
    k, v = kv.chunk(2, dim=1)
    q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
    score = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5)
    weight = score.masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num(0.0)
    return (weight @ v).transpose(0, 1).flatten(1)


def dense_block(block: Block, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
    norm = lambda module, t: F.layer_norm(t, t.shape[-1:], module.weight, module.bias, 1e-6)  # noqa: E731
    mine = norm(block.norm1, x)
    seen = mine if context is None else norm(block.context_norm, context)
    x = x + block.proj(dense_attention(block, mine, seen, mask))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(norm(block.norm2, x))))


def dense_event(model: StreamEncoder, made: StreamEvent) -> Tensor:
    """Latents of one event, every patch of every module in its place, masks for what is not there."""
    dtype = model.norm.weight.dtype
    tokens, latents, real = [], [], []
    for stack in model.stacks:
        hits = made.voxels[stack.stream]
        lattice = torch.zeros(stack.modules, 1, *stack.lattice, dtype=dtype)
        there = torch.zeros_like(lattice)
        place = (hits.module, 0, *hits.index.T)
        lattice[place], there[place] = torch.from_numpy(hits.charge).to(dtype), 1
        kernel = stack.embedding.weight.T.reshape(-1, 1, *stack.patch)
        x = F.conv3d(lattice, kernel, stack.embedding.bias, stride=stack.patch).flatten(2).transpose(1, 2)
        occupied = F.max_pool3d(there, stack.patch).flatten(1) > 0
        for m in range(stack.modules):
            rows = x[m] + stack.place_token.weight
            source = stack.group_code == "source"
            code = stack.group_token.weight[0 if source else m]
            rows = rows + code if source else rows
            v, size = int(occupied[m].sum()), stack.group_size
            active = torch.arange(2) < min(2, -(-v // (size // 2)))
            rows = torch.cat([stack.cls_token.weight, rows])
            alive = torch.cat([active, occupied[m]])
            for block in stack.blocks:
                rows = dense_block(block, rows, alive.expand(len(rows), -1))
            tokens.append(rows[2:] if source else rows[2:] + code)
            latents.append(rows[:2] + code)
            real.append((occupied[m], active))
    tail = made.tracks["muon"]
    t = model.tracks
    number = t.count(torch.tensor([[float(len(tail))]], dtype=dtype))
    if len(tail):
        rows = t.track(torch.from_numpy(tail).to(dtype))
        number = dense_block(t.block, number, torch.ones(1, len(tail), dtype=torch.bool), rows)
    muon = number + t.presence_token.weight[int(len(tail) > 0)] + t.source_token.weight
    ecal = model.matrix.linear(torch.from_numpy(made.matrices["ecal"]).to(dtype).view(1, -1))
    context = torch.cat([*tokens, ecal + model.matrix.source_token.weight, muon])
    seen = torch.cat([*[r[0] for r in real], torch.ones(2, dtype=torch.bool)])
    x, alive = torch.cat(latents), torch.cat([r[1] for r in real])
    context = F.layer_norm(context, context.shape[-1:], model.token_norm.weight, model.token_norm.bias, 1e-6)
    for look, block in zip(model.looks, model.blocks, strict=True):
        x = dense_block(look, x, seen.expand(len(x), -1), context)
        x = dense_block(block, x, alive.expand(len(x), -1))
    return F.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias, 1e-6)[alive]


@pytest.mark.parametrize("tracks", [0, 3])
def test_packed_form_is_the_dense_one(tracks):
    model = encoder().double()
    for parameter in model.parameters():  # norms and biases too
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    events = [event(0, 300, tracks), event(1, 900, tracks)]
    found = model(one_batch(*events))
    for b, made in enumerate(events):
        mine = found.feat[found.offsets[b] : found.offsets[b + 1]]
        torch.testing.assert_close(mine, dense_event(model, made), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------- invariances and edges


def test_batch_mates_and_order_do_not_matter():
    model = encoder().eval()
    one, rng = event(0), np.random.default_rng(0)
    turned = one.replace(
        voxels={s: h.select(rng.permutation(len(h))) for s, h in one.voxels.items()},
        tracks={"muon": one.tracks["muon"][::-1].copy()},
    )
    alone = model.event_features(one_batch(one))
    mixed = model.event_features(one_batch(event(5), StreamEvent(), turned, event(7, 50)))
    torch.testing.assert_close(mixed[2:3], alone, rtol=0, atol=2e-5)
    assert (mixed[1] == 0).all(), "an event with nothing has features of 0"


@pytest.mark.parametrize("stream", ["cal3d", "ahcal", "ecal", "muon"])
def test_a_missing_stream_leaves_nothing_behind(stream):
    """Dropped from the event, dropped from the batch, or built without: the same latents."""
    model = encoder().eval()
    whole = event(0)
    dropped = model(one_batch(whole.without(stream), event(1)))
    emptied = model(one_batch(whole, event(1)).without(stream))
    first = slice(0, int(dropped.offsets[1]))
    torch.testing.assert_close(dropped.feat[first], emptied.feat[: int(emptied.offsets[1])], rtol=0, atol=1e-5)
    assert not torch.allclose(
        model.event_features(one_batch(whole)), model.event_features(one_batch(whole.without(stream)))
    )
    if stream != "cal3d":
        name = {"ahcal": "tail", "ecal": "matrix", "muon": "tracks"}[stream]
        smaller = StreamEncoder(**model.arguments | {name: None}).eval()
        smaller.load_state_dict(
            {k: v for k, v in model.state_dict().items() if not k.startswith(f"{name}.")}, strict=True
        )
        torch.testing.assert_close(smaller(one_batch(whole)).feat, dropped.feat[first], rtol=0, atol=1e-5)


@pytest.mark.parametrize("gate", ["visible", "as_published"])
def test_hidden_patches_do_not_leak(gate):
    """What is in hidden patches changes nothing; that they are there changes the summaries only as published."""
    model = encoder()
    model.gate = gate
    batch = one_batch(event(0, 900))
    patches = model.patches(batch)
    g = torch.Generator().manual_seed(0)
    keep = {s: torch.rand(len(p), generator=g) < 0.4 for s, p in patches.items()}
    hide = torch.zeros(1, dtype=torch.bool)
    args = (patches, keep, hide, hide)
    seen = model.encode(batch, *args)
    voxels = {}
    for stream, hits in batch.voxels.items():
        hidden = patches[stream].hit_rows[~keep[stream][patches[stream].hit_patch]]
        voxels[stream] = hits.replace(charge=hits.charge.index_fill(0, hidden, float("nan")))
    nans = {"ecal": dataclasses.replace(batch.matrices["ecal"], values=batch.matrices["ecal"].values * float("nan"))}
    tracks = {"muon": dataclasses.replace(batch.tracks["muon"], feat=batch.tracks["muon"].feat * float("nan"))}
    spoilt = model.encode(batch.replace(voxels=voxels, matrices=nans, tracks=tracks), *args)
    assert (seen.feat == spoilt.feat).all()
    full = model.encode(batch, patches)
    assert len(seen.feat) <= len(full.feat)
    if gate == "as_published":
        assert len(seen.feat) == len(full.feat), "the summaries are those of all patches"


def test_one_event_of_one_stream():
    model = encoder().eval()
    only = event(0)
    for stream in ("ahcal", "ecal", "muon"):
        only = only.without(stream)
    assert model.event_features(one_batch(only)).isfinite().all()
    nothing_but = event(0).without("cal3d").without("ahcal")
    assert (model.event_features(one_batch(nothing_but)) == 0).all(), "no calorimeter, no latents"


def test_every_parameter_learns_and_training_is_finite():
    model = encoder(drop_path=0.3).train()
    batch = one_batch(*[event(s, 300, s % 3) for s in range(6)])
    model.event_features(batch).pow(3).sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


def test_a_batch_without_hits_has_a_gradient_of_zero_everywhere():
    """Not none: several processes wait for each other's gradients."""
    model = encoder().train()
    batch = one_batch(StreamEvent())
    model.event_features(batch).sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_drop_path_rises_with_depth():
    model = encoder(depths=(2, 1, 2), drop_path=0.5)
    assert [b.drop_path for b in model.calorimeter.blocks] == pytest.approx([0.0, 0.1])
    assert [b.drop_path for b in model.blocks] == pytest.approx([0.3, 0.5])
    assert [b.drop_path for b in model.looks] == pytest.approx([0.0, 0.2])
    assert model.tracks.block.drop_path == pytest.approx(0.05)


def test_layers_hold_every_parameter_once():
    model = encoder()
    listed = [p for layer in model.layers() for module in layer for p in module.parameters()]
    assert len(listed) == len({*listed}) == len(list(model.parameters()))
    assert len(published((4, 4, 4)).layers()) == 14, "heads are layer 14 of the public code at base size"


def test_it_can_be_described_and_built_again():
    model = encoder(stage=[4, 4, 2])
    again = build(describe_model(model), MODELS, "test")
    again.load_state_dict(model.state_dict())
    batch = one_batch(event(0))
    assert (again.eval()(batch).feat == model.eval()(batch).feat).all()


def test_what_does_not_fit_is_refused():
    cal = PatchStack("cal3d", [48, 48, 20], [12, 12, 10], 10, channels=24, depth=1, heads=4)
    with pytest.raises(ValueError, match="matrix has 48 channels, the calorimeter 24"):
        StreamEncoder(cal, matrix=MatrixToken("ecal", 25, 48), heads=4)
    with pytest.raises(ValueError, match="multiple of heads"):
        StreamEncoder(cal, heads=5)
    model = StreamEncoder(cal, tracks=TrackToken("muon", 6, 24, 4), heads=4)
    with pytest.raises(ValueError, match=r"event 0.*tracks of 5 features, the network was built for 6"):
        model(one_batch(event(0)))
    with pytest.raises(ValueError, match="reads the stream 'hcal'"):
        StreamEncoder(cal, matrix=MatrixToken("hcal", 25, 24), heads=4)(one_batch(event(0)))


def test_bfloat16_is_near_float32():
    model = encoder().eval()
    batch = one_batch(event(0), event(1))
    exact = model.event_features(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.event_features(batch)
    assert F.cosine_similarity(exact, rough.float()).min() > 0.999
