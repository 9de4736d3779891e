"""Transfer of an encoder to another detector, and the classifier of particles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stream_events import encoder as fasercal_encoder

from nufm.data.particles import SHAPE_COLUMNS
from nufm.data.streams import Hits, StreamBatch, StreamEvent
from nufm.models.particle_network import SHAPE, ParticleNetwork
from nufm.models.patches import PatchStack
from nufm.models.stream_encoder import MatrixToken, StreamEncoder, TrackToken
from nufm.models.transfer import transfer

CROPS = {"superfgd": ((120, 120, 120), (2, 2, 2)), "pilarnet_crop": ((168, 168, 180), (2, 2, 3))}


def encoder(detector: str = "superfgd", channels: int = 48, depth: int = 2, heads: int = 4, stage=None, **changes):
    lattice, window = CROPS[detector]
    settings = {"positions": "sincos", "group_code": "sincos", **changes}
    stack = PatchStack(
        "voxels", lattice, (12, 12, 10), window=window, channels=channels, depth=depth, heads=heads, stage=stage,
        **settings,
    )  # fmt: skip
    return StreamEncoder(stack, latent_depth=depth, heads=heads)


def particle(seed: int, n: int = 60, detector: str = "superfgd") -> StreamEvent:
    rng = np.random.default_rng(seed)
    lattice = CROPS[detector][0]
    index = np.unique(rng.integers(40, 70, (n, 3)), axis=0).astype(np.int32)
    hits = Hits(index, np.zeros(len(index), np.int32), rng.exponential(1, len(index)).astype(np.float32))
    assert (index < lattice).all()
    return StreamEvent(
        voxels={"voxels": hits},
        truth={"particle": np.array(seed % 4)},
        extra=rng.normal(size=31).astype(np.float32),
        detector=detector,
        name=f"particle {seed}",
        seed=seed,
    )


def batch(*events: StreamEvent, groups: list[int] | None = None) -> StreamBatch:
    return StreamBatch.from_events(events, groups)


# ---------------------------------------------------------------------- windows


@pytest.mark.parametrize(("detector", "windows", "patches", "latents"), [
    ("superfgd", 150, 1200, 300), ("pilarnet_crop", 294, 3528, 588),
])  # fmt: skip
def test_windows_and_summaries_of_the_talk(detector, windows, patches, latents):
    """Every patch of the crop with a hit: as many tokens and summaries as the talk's table has at most."""
    network = encoder(detector, channels=12, depth=1, heads=2)
    stack = network.calorimeter
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in stack.grid], indexing="ij"), -1).reshape(-1, 3)
    index = (grid * (12, 12, 10)).astype(np.int32)
    hits = Hits(index, np.zeros(len(index), np.int32), np.ones(len(index), np.float32))
    full = batch(StreamEvent(voxels={"voxels": hits}, detector=detector))
    found = stack.patches(full)
    assert stack.n_groups == windows and len(found) == patches
    assert int(stack.summaries_of(found).sum()) == latents
    assert network(full).feat.shape == (latents, 12)


def test_a_summary_for_half_a_window():
    """t = positions / 2: up to 4 patches of a window of 8 one summary, from 5 on two; of 12: 6 and 7."""
    for detector, half in (("superfgd", 4), ("pilarnet_crop", 6)):
        stack = encoder(detector, channels=12, depth=1, heads=2).calorimeter
        for n in range(1, 2 * half + 1):
            cells = np.stack(np.unravel_index(np.arange(n), stack.window), 1) * (12, 12, 10)
            hits = Hits(cells.astype(np.int32), np.zeros(n, np.int32), np.ones(n, np.float32))
            found = stack.patches(batch(StreamEvent(voxels={"voxels": hits}, detector=detector)))
            assert stack.summaries_of(found).tolist() == [1 if n <= half else 2]


# ---------------------------------------------------------------------- what is reused


def published(stage=(4, 4, 2)) -> StreamEncoder:
    return StreamEncoder(
        PatchStack("cal3d", (48, 48, 20), (12, 12, 10), modules=10, stage=stage),
        PatchStack("ahcal", (18, 18, 40), (6, 6, 5), group_code="source"),
        MatrixToken("ecal"),
        TrackToken("muon"),
    )


@pytest.mark.parametrize("detector", CROPS)
def test_counts_of_the_published_size(detector):
    """12 blocks of 384 channels (self 1.774 M, cross 1.775 M), their norms and two CLS: 21.30 M; with the embedding in
    two stages, 32 · 96 + 2 · 96 + 45 · 96 · 384 + 384 = 1.66 M, it is 22.96 M."""
    with torch.device("meta"):
        old, new = published(), encoder(detector, 384, 4, 12, (4, 4, 2))
        talk, code = (transfer(new, old, reuse) for reuse in ("talk", "code"))
    c = 384
    block = 4 * (c * c + c) + 8 * c * c + 5 * c + 4 * c  # q, k, v, projection; MLP; two norms
    assert talk.n_reused == 8 * block + 4 * (block + 2 * c) + 2 * 2 * c + 2 * c
    assert code.n_reused - talk.n_reused == 32 * 96 + 2 * 96 + 45 * 96 * 384 + 384
    assert round(talk.n_reused / 1e6, 2) == 21.30 and round(code.n_reused / 1e6, 2) == 22.96
    assert not code.fresh and all(name.startswith("calorimeter.embedding") for name in talk.fresh)
    assert {name.split(".")[0] for name in code.left} == {"tail", "matrix", "tracks", "calorimeter"}
    total = sum(p.numel() for p in old.parameters())
    assert code.n_reused + sum(code.left.values()) == total
    assert "22,961,472 of 22,961,472" in str(code)


@pytest.mark.parametrize("reuse", ("talk", "code"))
def test_values_are_copied_and_the_rest_left_alone(reuse):
    old, new = fasercal_encoder(48, (2, 1, 2), 4), encoder()
    with torch.no_grad():
        for p in old.parameters():
            p.normal_()
    before = {n: p.clone() for n, p in new.named_parameters()}
    given = dict(old.named_parameters())
    found = transfer(new, old, reuse)
    for name, p in new.named_parameters():
        assert torch.equal(p, given[name] if name in found.reused else before[name]), name
        assert (name in found.reused) != (name in found.fresh)
    assert ("calorimeter.embedding.weight" in found.reused) == (reuse == "code")
    assert "calorimeter.blocks.1.mlp.fc2.bias" in found.reused and "looks.0.context_norm.weight" in found.reused


def test_learned_positions_begin_anew():
    old = fasercal_encoder(48, (2, 1, 2), 4)
    found = transfer(encoder(positions="learned", group_code="learned"), old, "code")
    assert set(found.fresh) == {"calorimeter.place_token.weight", "calorimeter.group_token.weight"}


def test_a_block_works_as_it_did():
    """The output of the transferred blocks on the same rows is that of the old ones."""
    from nufm.ops.attention import Windows

    old, new = fasercal_encoder(48, (2, 1, 2), 4).eval(), encoder().eval()
    transfer(new, old)
    rows, windows = torch.randn(9, 48), Windows.of_boundaries(torch.tensor([0, 4, 9]))
    assert torch.equal(old.blocks[1](rows, windows), new.blocks[1](rows, windows))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": 96}, "channels: 48 there, 96 here"),
        ({"depth": 1}, "latent blocks: 2 there, 1 here"),
        ({"heads": 2}, "heads: 4 there, 2 here"),
        ({"cls_tokens": 1}, "summary tokens: 2 there, 1 here"),
    ],
)
def test_other_sizes_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        transfer(encoder(**change), fasercal_encoder(48, (2, 1, 2), 4))


def test_another_patch_embedding_is_refused_where_it_is_wanted():
    old = fasercal_encoder(48, (2, 1, 2), 4)
    with pytest.raises(ValueError, match="stage of the patch embedding"):
        transfer(encoder(stage=(4, 4, 2)), old, "code")
    transfer(encoder(stage=(4, 4, 2)), old, "talk")
    with pytest.raises(ValueError, match="'talk' or 'code'"):
        transfer(encoder(), old, "all")


# ---------------------------------------------------------------------- the classifier


def network(detector: str = "superfgd", **options) -> ParticleNetwork:
    torch.manual_seed(0)
    made = ParticleNetwork(encoder(detector), 4, heads=4, **options)
    with torch.no_grad():  # the published start of the last layer is nearly 0
        made.head[-1].weight.normal_(std=0.5)
    return made.eval()


def logits(model: ParticleNetwork, *events: StreamEvent, groups: list[int] | None = None) -> torch.Tensor:
    return model(batch(*events, groups=groups))["particle"]


def test_the_shape_is_the_published_selection():
    assert SHAPE == SHAPE_COLUMNS


@pytest.mark.parametrize("extra", ("none", "shape", "all"))
def test_probabilities_do_not_depend_on_batch_mates(extra):
    model = network(extra=extra)
    events = [particle(s) for s in range(4)]
    together = model.predict(batch(*events)).probability["particle"]
    assert together.shape == (4, 4) and torch.allclose(together.sum(1), torch.ones(4))
    for i, one in enumerate(events):
        assert torch.allclose(model.predict(batch(one)).probability["particle"], together[i : i + 1], atol=1e-5)


def test_particles_of_an_event_see_each_other_and_no_others():
    model = network(context=2)
    events = [particle(s) for s in range(5)]
    whole = logits(model, *events, groups=[2, 3])
    assert torch.allclose(logits(model, *events[:2], groups=[2]), whole[:2], atol=1e-5)
    assert torch.allclose(logits(model, *events[2:], groups=[3]), whole[2:], atol=1e-5)
    alone = logits(model, *events[:2], groups=[1, 1])
    assert not torch.allclose(alone, whole[:2], atol=1e-3)
    assert torch.equal(logits(model, *events[:2]), alone), "without groups each stands alone"
    assert model.sees_groups and not network().sees_groups


def test_numbers_are_used_as_told():
    event = particle(1)
    other = event.replace(extra=event.extra + np.eye(31, dtype=np.float32)[0] * 9)  # where it is
    for extra, changes in (("none", False), ("shape", False), ("all", True)):
        model = network(extra=extra)
        a, b = logits(model, event), logits(model, other)
        assert torch.allclose(a, b, atol=1e-4) is not changes, extra


def test_a_particle_without_hits_has_a_prediction():
    nothing = Hits(np.zeros((0, 3), np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    for event in (particle(0).replace(voxels={"voxels": nothing}), particle(0).replace(voxels={})):
        model = network(context=1)
        found = model.predict(batch(event, groups=[1])).probability["particle"]
        assert torch.isfinite(found).all() and float(found.sum()) == pytest.approx(1)


def test_every_parameter_learns():
    model = network(extra="all", context=2).train()
    events = [particle(s) for s in range(4)]
    torch.nn.functional.cross_entropy(logits(model, *events, groups=[2, 2]), torch.arange(4)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not without
    inside = {p for layer in (*model.encoder.layers(), *model.head_layers()) for m in layer for p in m.parameters()}
    assert inside == set(model.parameters()), "every parameter has a layer"


@pytest.mark.parametrize(
    ("options", "event", "said"),
    [
        ({"extra": "all"}, {"extra": None}, "found none"),
        ({"extra": "shape"}, {"extra": np.zeros(16, np.float32)}, "found 16"),
    ],
)
def test_missing_input_is_refused(options, event, said):
    with pytest.raises(ValueError, match=f"particle 1 .*{said}"):
        network(**options)(batch(particle(1).replace(**event)))


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="extra is 'some'"):
        network(extra="some")
    with pytest.raises(ValueError, match="n_classes is 1"):
        ParticleNetwork(encoder(), 1)
