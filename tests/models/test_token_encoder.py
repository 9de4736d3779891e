"""The token encoder against dense second derivations, and what must hold for any event."""

from __future__ import annotations

import pytest
import torch
from token_events import batch_of, walk
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm
from unusual_weights import unusual

from nufm.checkpoint.describe import rebuilt
from nufm.models.token_encoder import MiniPointNet, TokenEncoder, TokenTransformer, distance_bias, standardised
from nufm.models.tokens import Tokenizer
from nufm.ops.attention import Windows

SMALL = {"channels": 24, "depth": 3, "heads": 2, "feature_blocks": (0, 2)}


def small(**changes: object) -> TokenEncoder:
    torch.manual_seed(0)
    return unusual(TokenEncoder(Tokenizer(radius=5.0, max_points=12), **SMALL | changes)).eval()


def dense_pointnet(net: MiniPointNet, points: Tensor, slots: int, code: bool = False) -> Tensor:
    """One token (n, C) slot by slot, empty slots zeroed before the affine part of each norm, as published."""
    n = len(points)
    padded = torch.cat([points, points[:1].expand(slots - n, -1)])
    is_point = (torch.arange(slots) < n)[:, None]

    def norm(x: Tensor, layer: nn.BatchNorm1d) -> Tensor:
        x = (x - layer.running_mean) / (layer.running_var + 1e-5).sqrt()
        return torch.where(is_point, x, torch.zeros_like(x)) * layer.weight + layer.bias

    x = net.first[3](norm(padded @ net.first[0].weight.T, net.first[1]).relu())
    if code:
        angle = torch.arange(slots)[:, None] * torch.exp(torch.arange(128) * (-9.210340371976184 / 127))
        x = x + net.slot_code(torch.cat([angle.sin(), angle.cos()], 1)).relu()
    kept = slice(None) if net.padding == "as_published" else slice(n)
    whole = x[kept].amax(0, keepdim=True).expand(slots, -1)
    x = net.second[3](norm(torch.cat([whole, x], 1) @ net.second[0].weight.T, net.second[1]).relu())
    return x[kept].amax(0)


@pytest.mark.parametrize("padding", ["left_out", "as_published"])
@pytest.mark.parametrize("code", [False, True])
def test_mini_pointnet_equals_the_dense_form(padding: str, code: bool) -> None:
    torch.manual_seed(2)
    tokens = Tokenizer(radius=5.0, max_points=12)(batch_of([walk(1, 200), walk(2, 60)]))
    assert {1 <= n < 12 for n in tokens.counts.tolist()} == {True, False}  # full tokens and others
    net = unusual(MiniPointNet(4, 24, 12, slot_code=code, padding=padding)).eval()
    found = net(tokens.points, tokens)
    parts = tokens.points.split(tokens.counts.tolist())
    expected = torch.stack([dense_pointnet(net, part, 12, code) for part in parts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_two_paddings_differ_only_where_slots_are_empty() -> None:
    tokens = Tokenizer(radius=5.0, max_points=12)(batch_of([walk(1, 200)]))
    torch.manual_seed(0)
    net = unusual(MiniPointNet(4, 24, 12)).eval()
    clean = net(tokens.points, tokens)
    net.padding = "as_published"
    leaky = net(tokens.points, tokens)
    same = (clean == leaky).all(1)
    assert torch.equal(same | (tokens.counts < 12), torch.ones_like(same))
    assert not bool(same[tokens.counts < 12].all())


def test_slot_codes_make_the_order_of_points_matter() -> None:
    tokens = Tokenizer(radius=5.0, max_points=12)(batch_of([walk(3, 100)]))
    turned = tokens.points.clone()
    for start, stop in zip(tokens.starts[:-1].tolist(), tokens.starts[1:].tolist(), strict=True):
        turned[start:stop] = turned[start:stop].flip(0)
    for code in (False, True):
        torch.manual_seed(0)
        net = unusual(MiniPointNet(4, 24, 12, slot_code=code)).eval()
        a, b = net(tokens.points, tokens), net(turned, tokens)
        assert torch.allclose(a, b, atol=1e-5) != code


def dense_transformer(net: TokenTransformer, x: Tensor, position: Tensor, norm: str) -> list[Tensor]:
    """All tokens of one event against all, with the softmax written out."""

    def scaled(x: Tensor, layer: nn.Module) -> Tensor:
        if norm == "token":
            return layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-5)
        return (x - x.mean()) / x.std(correction=0) * layer.weight + layer.bias

    out = []
    for block in net.blocks:
        x = x + position
        qkv, heads = block.attn.qkv(scaled(x, block.norm1)), block.attn.heads
        q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in qkv.chunk(3, 1))
        weight = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + block.attn.proj((weight @ v).transpose(0, 1).flatten(1))
        x = x + block.mlp.fc2(gelu(block.mlp.fc1(scaled(x, block.norm2))))
        out.append(x)
    return [*out, scaled(x, net.norm) if net.norm.__class__ is not nn.Identity else x]


@pytest.mark.parametrize("norm", ["token", "batch_global"])
@pytest.mark.parametrize("final_norm", [False, True])
def test_transformer_equals_the_dense_form(norm: str, final_norm: bool) -> None:
    torch.manual_seed(3)
    net = unusual(TokenTransformer(24, 3, 2, norm=norm, final_norm=final_norm)).eval()
    x, position = torch.randn(2, 17, 24).unbind(0)
    found = net(x, position, torch.randn(17, 3), torch.tensor([0, 17]), keep=(0, 1, 2))
    for a, b in zip(found, dense_transformer(net, x, position, norm), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reach", ["all", "near"])
def test_an_event_does_not_depend_on_its_batch_mates_unless_the_published_norm_is_asked_for(reach: str) -> None:
    coords = [walk(4, 200), walk(5, 50), torch.zeros(0, 3), walk(6, 120)]
    encoder = small(reach=reach)
    together = encoder.point_features(batch_of(coords)).split([len(c) for c in coords])
    published = small(norm="batch_global")
    mixed = published.point_features(batch_of(coords)).split([len(c) for c in coords])
    for event, points in enumerate(coords):
        alone = batch_of([points])
        alone = alone.replace(feat=batch_of(coords).select([event]).feat)
        torch.testing.assert_close(together[event], encoder.point_features(alone), rtol=1e-4, atol=1e-5)
        if len(points):
            assert not torch.allclose(mixed[event], published.point_features(alone), atol=1e-3)


def test_evaluation_is_deterministic_and_training_drops() -> None:
    batch, encoder = batch_of([walk(7, 200)]), small(drop_path=0.5, attention_dropout=0.3)
    assert torch.equal(encoder.point_features(batch), encoder.point_features(batch))
    for block in encoder.transformer.blocks:  # each source of chance alone
        block.drop_path = 0.0
    encoder.train()
    encoder.embedding.eval()
    assert not torch.equal(encoder(batch).feat, encoder(batch).feat)


def test_attention_dropout_keeps_the_mean() -> None:
    """Over many draws, to five standard errors: a wrong scale of the weights that are left would show."""
    torch.manual_seed(0)
    attention = small(attention_dropout=0.4).transformer.blocks[0].attn
    x, windows = torch.randn(9, 24), Windows.of_boundaries(torch.tensor([0, 2, 2, 9]))
    with torch.no_grad():
        plain = attention.eval()(x, windows, None)
        attention.train()
        drawn = torch.stack([attention(x, windows, None) for _ in range(1500)]).double()
    error = drawn.std(0) / len(drawn) ** 0.5
    assert float(((drawn.mean(0) - plain).abs() / error).max()) < 5
    bias = attention.proj.bias.detach()
    # What the test could not see if the errors were too large: the result without the scale 1 / 0.6.
    assert float(((0.6 * (plain - bias) + bias - plain).abs() / error).max()) > 20


def test_features_of_points_are_the_weighted_mean_of_the_five_nearest_tokens() -> None:
    points = walk(8, 300)
    batch, encoder = batch_of([points, points[:1].repeat(2, 1)]), small()
    encoded = encoder(batch)
    feat = torch.stack([layer_norm(x, x.shape[-1:]) for x in encoded.blocks]).mean(0)
    found = encoder.point_features(batch)
    own = encoded.tokens.event == 0
    square = torch.cdist(points.double(), encoded.tokens.centre[own].double()).square()
    for row in range(0, 300, 37):
        nearest = square[row].argsort()[:5]
        weight = 1 / (square[row, nearest] + torch.finfo(torch.float32).eps)
        expected = (feat[own][nearest] * (weight / weight.sum())[:, None].float()).sum(0)
        if square[row].sort().values[4:6].diff() > 0:  # no tie about who is fifth
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
    # The second event has one token: its points are told that token.
    assert int((encoded.tokens.event == 1).sum()) == 1
    torch.testing.assert_close(found[300:], feat[encoded.tokens.event == 1].expand(2, -1))


def test_encoding_only_visible_tokens_equals_masking_the_others_in_attention() -> None:
    """What is saved is time, not accuracy: the published full-length form with -1e9 for hidden keys."""
    torch.manual_seed(1)
    encoder, batch = small(), batch_of([walk(9, 300)])
    tokens = encoder.tokens(batch)
    visible = torch.rand(len(tokens)) < 0.4
    found = encoder.encode(tokens.select(visible)).feat
    x, position = encoder.embedding(tokens.points, tokens), encoder.position(tokens.centre)
    hidden_keys = torch.zeros(len(tokens)).masked_fill_(~visible, -1e9)
    for block in encoder.transformer.blocks:
        x = x + position
        q, k, v = (t.unflatten(1, (2, -1)).transpose(0, 1) for t in block.attn.qkv(block.norm1(x)).chunk(3, 1))
        weight = (q @ k.transpose(1, 2) * block.attn.scale + hidden_keys).softmax(-1)
        x = x + block.attn.proj((weight @ v).transpose(0, 1).flatten(1))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(found, x[visible], rtol=1e-4, atol=1e-4)


def test_near_reach_takes_distance_off_the_scores() -> None:
    """2 · 4^-h per radius for head h, nothing for the last; against all pairs written out."""
    place = torch.randn(11, 3)
    bias = distance_bias(place, torch.tensor([0, 4, 4, 11]), 3)
    expected = []
    for event in (place[:4], place[4:]):
        distance = torch.cdist(event, event)
        expected.append(torch.stack([-2.0 * distance, -0.5 * distance, 0 * distance]).flatten(1))
    torch.testing.assert_close(bias, torch.cat(expected, 1), atol=1e-5, rtol=1e-5)
    assert distance_bias(place[:0], torch.tensor([0, 0]), 3).shape == (3, 0)


def test_a_far_token_counts_less_where_reach_is_near() -> None:
    """Moving energy about at the far end of an event must change what is said of its other end less."""
    line = torch.stack([torch.arange(0.0, 400, 2), torch.zeros(200), torch.zeros(200)], 1)
    batch = batch_of([line])
    feat = batch.feat.clone()
    feat[150:, 3] += 2.0
    change = {}
    for reach in ("all", "near"):
        encoder = small(reach=reach)
        for block in encoder.transformer.blocks:  # only the head that looks nearest
            block.attn.proj.weight.data[:, 12:] = 0
        a, b = (encoder.point_features(x)[:50] for x in (batch, batch.replace(feat=feat)))
        change[reach] = float((a - b).abs().max())
    assert change["near"] < 1e-3 * change["all"]


@pytest.mark.parametrize("reach", ["all", "near"])
def test_every_parameter_gets_a_gradient(reach: str) -> None:
    encoder = small(reach=reach).train()
    encoder.point_features(batch_of([walk(10, 200)])).square().sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    # The bias of keys shifts all scores of a query alike; it is part of qkv.bias, which has a gradient.
    assert without == []


@pytest.mark.parametrize("coords", [[torch.zeros(0, 3)], [torch.ones(1, 3)], [torch.zeros(0, 3), walk(11, 30)]])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reach", ["all", "near"])
def test_empty_events_and_lone_points(coords: list[Tensor], training: bool, reach: str) -> None:
    encoder = small(attention_dropout=0.1, reach=reach).train(training)
    found = encoder.point_features(batch_of(coords))
    assert found.shape == (sum(map(len, coords)), 24)
    assert bool(found.isfinite().all())
    found.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters() if p.grad is not None)


def test_wrong_columns_and_settings_are_refused() -> None:
    encoder, batch = small(), batch_of([walk(12, 20)])
    with pytest.raises(ValueError, match="expects 4 feature columns, the batch has"):
        encoder(batch.replace(feat=batch.feat[:, :3], columns=("x", "y", "z")))
    with pytest.raises(ValueError, match="multiple of heads, found 24 channels and 5 heads"):
        small(heads=5)
    with pytest.raises(ValueError, match="norm must be 'token' or 'batch_global'"):
        small(norm="batch")
    with pytest.raises(ValueError, match="feature_blocks are"):
        small(feature_blocks=(0, 3))
    with pytest.raises(ValueError, match="reach must be 'all' or 'near', found 'nearby'"):
        small(reach="nearby")
    with pytest.raises(ValueError, match="padding must be 'left_out' or 'as_published'"):
        small(padding="as publised")
    with pytest.raises(ValueError, match="needs at least 2 heads"):
        small(reach="near", heads=1)


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder = TokenEncoder()
    assert sum(p.numel() for p in encoder.parameters()) == 21_837_568
    assert sum(p.numel() for p in encoder.transformer.parameters()) == 21_293_568
    assert sum(p.numel() for p in encoder.embedding.parameters()) == 493_952
    assert sum(p.numel() for p in encoder.position.parameters()) == 50_048
    assert len(encoder.layers()) == 13
    assert {p for layer in encoder.layers() for m in layer for p in m.parameters()} == set(encoder.parameters())


def test_all_weights_are_in_a_layer_also_with_a_final_norm() -> None:
    encoder = small(final_norm=True)
    assert {p for layer in encoder.layers() for m in layer for p in m.parameters()} == set(encoder.parameters())
    assert encoder.layers()[-1][-1] is encoder.transformer.blocks[-1]  # the block comes last


def test_places_keep_full_precision_under_autocast() -> None:
    """bfloat16 would move the embedding of a place by half of what a neighbouring token is away."""
    encoder, batch = small(), batch_of([walk(14, 100)])
    tokens = encoder.tokens(batch)
    plain = encoder.positions(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.positions(tokens), plain)
        assert not torch.equal(encoder.position(tokens.centre), plain)


def test_it_can_be_built_again_from_its_arguments() -> None:
    encoder = small(padding="as_published", norm="batch_global")
    twin = rebuilt(encoder)
    twin.load_state_dict(encoder.state_dict())
    batch = batch_of([walk(13, 100)])
    assert torch.equal(twin.eval().point_features(batch), encoder.point_features(batch))
    assert standardised(torch.zeros(0, 3), "batch_global").shape == (0, 3)
