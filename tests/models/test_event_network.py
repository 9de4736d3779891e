"""Heads on the latents of an event: published counts, momenta by hand, empty events, batch mates, exports."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stream_events import encoder, event, one_batch
from torch import nn
from unusual_weights import unusual

from nufm.checkpoint.describe import MODELS, build, describe_model, rebuilt
from nufm.data.streams import Hits, StreamEvent
from nufm.models.event_network import WIDTHS, EventNetwork, direction, scaled_log

SCALING = [30.0, 0.8, 0.9, 200.0, 1.1, 0.7, 25.0, 0.7, 1.0, 150.0, 0.9, 0.8]
VERTEX = [10.0, -20.0, 30.0, 140.0, 130.0, 600.0]


def network(heads: str = "mean", **changes) -> EventNetwork:
    made = unusual(EventNetwork(encoder(), heads, momentum_scaling=SCALING, vertex_scaling=VERTEX, **changes))
    made.set_scaling(SCALING, VERTEX)  # the unusual ones would not be those written here
    return made.eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def empty() -> StreamEvent:
    none = Hits(np.zeros((0, 3), np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return StreamEvent(voxels={"cal3d": none}, tracks={"muon": np.zeros((0, 5), np.float32)}, name="empty")


def test_published_counts():
    """31.94 M with the encoder; a norm and a linear layer for each of 6 + 4 + 4 + 4 + 3 numbers, on 384 channels."""
    with torch.device("meta"):
        whole = EventNetwork(encoder(384, (4, 4, 4), 12, positions="sincos", stage=[4, 4, 2]))
    assert count(whole.heads) == 5 * 2 * 384 + (384 + 1) * (6 + 4 + 4 + 4 + 3) == 11_925
    assert round(count(whole) / 1e6, 2) == 31.94


def test_heads_start_almost_at_nothing():
    """Truncated normal weights of width 2e-5: all classes alike, and momenta at the median of the scales."""
    made = EventNetwork(encoder(), momentum_scaling=SCALING, vertex_scaling=VERTEX).eval()
    weights = torch.cat([head[2].weight.detach().flatten() for head in made.heads.values()])
    assert float(weights.std()) == pytest.approx(2e-5, rel=0.15)
    with torch.no_grad():
        found = made.predict(one_batch(event(0)))
    torch.testing.assert_close(found.probability["flavour"], torch.full((1, 6), 1 / 6), atol=1e-4, rtol=0)
    assert float(found.value["visible"][0, 2]) == pytest.approx(200 * math.expm1(1.1), rel=1e-3)
    torch.testing.assert_close(found.value["vertex"], torch.tensor([VERTEX[:3]]), atol=0.2, rtol=0)


def test_momentum_by_hand():
    """p_T = 30 (e^{0.8 + 0.9·0.5} - 1) along (3, 4)/5, p_z = 200 (e^{1.1 - 0.7} - 1); the jet has scales of its own."""
    made = network()
    numbers = torch.tensor([[0.5, 3.0, 4.0, -1.0]])
    p_t, p_z = 30 * math.expm1(1.25), 200 * math.expm1(0.4)
    torch.testing.assert_close(
        made.momentum(numbers, "visible"), torch.tensor([[0.6 * p_t, 0.8 * p_t, p_z]]), rtol=1e-5, atol=1e-4
    )
    p_t, p_z = 25 * math.expm1(0.7 + 0.5), 150 * math.expm1(0.9 - 0.8)
    torch.testing.assert_close(
        made.momentum(numbers, "jet"), torch.tensor([[0.6 * p_t, 0.8 * p_t, p_z]]), rtol=1e-5, atol=1e-4
    )


def test_scaled_log_is_the_inverse_of_the_momentum():
    made, truth = network(), torch.tensor([[3.0, -4.0, 250.0], [0.3, 0.1, 2000.0], [-60.0, 20.0, 10.0]])
    p_t = truth[:, :2].norm(dim=1)
    scaling = made.momentum_scaling[0]
    numbers = torch.stack(
        [scaled_log(p_t, scaling[0]), truth[:, 0] / p_t, truth[:, 1] / p_t, scaled_log(truth[:, 2], scaling[1])], dim=1
    )
    torch.testing.assert_close(made.momentum(numbers, "visible"), truth, rtol=2e-4, atol=1e-3)


def test_wild_numbers_give_finite_momenta():
    """An exponent without a bound would overflow, and a momentum below 0 has no transverse size."""
    made, wild = network(), torch.tensor([[1e4, 0.0, 0.0, 1e4], [-1e4, 1.0, 0.0, -1e4], [0.0, 1e-30, 0.0, 0.0]])
    found = made.momentum(wild, "visible")
    assert found.isfinite().all() and found[1].abs().max() == 0 and (found[:, 2] >= 0).all()


def test_gradient_of_the_direction_is_bounded():
    vector = torch.zeros(1, 2, requires_grad=True)
    direction(vector)[0, 0].backward()
    assert float(vector.grad.abs().max()) == pytest.approx(100)
    assert float(direction(torch.tensor([[3.0, -4.0]])).norm()) == pytest.approx(1, abs=1e-5)


def test_what_is_derived():
    """The lepton is visible minus jet; the missing p_T is the transverse part of what is visible."""
    found = network().predict(one_batch(event(0), event(1)))
    visible, jet = found.value["visible"], found.value["jet"]
    torch.testing.assert_close(found.value["lepton"], visible - jet)
    torch.testing.assert_close(found.value["missing_pt"], (visible[:, 0] ** 2 + visible[:, 1] ** 2).sqrt())
    for label in ("flavour", "charm"):
        torch.testing.assert_close(found.probability[label].sum(1), torch.ones(2))


@pytest.mark.parametrize("heads", ["mean", "query"])
def test_an_event_does_not_depend_on_its_batch_mates(heads):
    made, events = network(heads), [event(0), empty(), event(1, 40, 0), event(2).without("ahcal")]
    together = made(one_batch(*events))
    for i, alone in enumerate(events):
        for task, rows in made(one_batch(alone)).items():
            torch.testing.assert_close(rows[0], together[task][i], rtol=1e-4, atol=1e-5, msg=f"{task} of {alone.name}")


@pytest.mark.parametrize("heads", ["mean", "query"])
def test_an_event_with_nothing_has_a_defined_prediction(heads):
    """Features of 0 make the head's answer: its norm's shift through the linear layer."""
    made = network(heads)
    for nothing in (empty(), StreamEvent(name="not read out")):
        found = made(one_batch(nothing))
        for task, rows in found.items():
            norm, _, linear = made.heads[task]
            torch.testing.assert_close(rows[0], linear(norm.bias))
        assert all(v.isfinite().all() for v in made.predict(one_batch(nothing)).value.values())


def test_queries_against_a_second_derivation():
    """Mean + γ · block(query; latents), one event and one task after the other, attention written out."""
    made, events = network("query"), [event(3), event(4, 60)]
    latents = made.encoder(one_batch(*events))
    found, block = made(one_batch(*events)), made.queries.block
    for i in range(2):
        seen = latents.feat[latents.offsets[i] : latents.offsets[i + 1]]
        for number, task in enumerate(made.tasks):
            x = made.queries.query_token.weight[number][None]
            q = block.query(block.norm1(x)).view(block.heads, 1, -1)
            k, v = block.key_value(block.context_norm(seen)).view(len(seen), 2, block.heads, -1).permute(1, 2, 0, 3)
            weight = (q @ k.transpose(1, 2) * block.scale).softmax(-1)
            y = x + block.proj((weight @ v).transpose(0, 1).flatten(1))
            y = y + block.mlp(block.norm2(y))
            feature = seen.mean(0) + made.queries.gamma[number] * y[0]
            torch.testing.assert_close(found[task][i], made.heads[task](feature), rtol=1e-4, atol=1e-5)


def test_queries_start_as_the_mean():
    torch.manual_seed(0)
    made = EventNetwork(encoder(), "query").eval()
    assert float(made.queries.gamma.detach().unique()) == pytest.approx(1e-4)
    batch = one_batch(event(0))
    latents = made.encoder(batch)
    shift = made.queries(latents.feat, latents.offsets)
    assert float(shift.abs().max()) < 1e-2 < float(latents.feat.mean(0).abs().max())


@pytest.mark.parametrize("heads", ["mean", "query"])
def test_every_parameter_gets_a_gradient(heads):
    made = network(heads).train()
    found = made(one_batch(event(0), event(1)))
    sum((rows * torch.randn_like(rows)).sum() for rows in found.values()).backward()
    without = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Places that no patch of these events is in.
    assert [n for n in without if "group_token" not in n and "place_token" not in n] == []


@pytest.mark.parametrize("heads", ["mean", "query"])
def test_built_again_from_its_arguments(heads):
    """Scales are arguments, so that they travel with the weights, and with a twin that is not trained."""
    made = network(heads, tasks=["visible", "flavour", "vertex"])
    assert made.tasks == ("flavour", "visible", "vertex") and made.n_classes == {"flavour": 6}
    twin = build(describe_model(made), MODELS, "test")
    twin.load_state_dict(made.state_dict())
    for a, b in zip(made(one_batch(event(0))).values(), twin.eval()(one_batch(event(0))).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert twin.arguments == made.arguments | {"encoder": twin.encoder} and twin.scaled
    assert rebuilt(made).vertex_scaling.flatten().tolist() == VERTEX
    found = made.predict(one_batch(event(0)))
    assert set(found.value) == {"visible", "missing_pt", "vertex"} and set(found.probability) == {"flavour"}


def test_refusals():
    small = encoder()
    with pytest.raises(ValueError, match="heads is 'max'"):
        EventNetwork(small, "max")
    for tasks in ([], ["flavour", "flavour"], ["energy"]):
        with pytest.raises(ValueError, match=f"expected some of {', '.join(WIDTHS)}"):
            EventNetwork(small, tasks=tasks)
    with pytest.raises(ValueError, match="momentum_scaling has 11 numbers and vertex_scaling 6, expected 12"):
        EventNetwork(small, momentum_scaling=SCALING[1:], vertex_scaling=VERTEX)
    with pytest.raises(ValueError, match="above 0"):
        EventNetwork(small, momentum_scaling=[-1.0, *SCALING[1:]], vertex_scaling=VERTEX)
    with pytest.raises(ValueError, match="finite"):
        EventNetwork(small, momentum_scaling=SCALING, vertex_scaling=[math.nan, *VERTEX[1:]])
