"""Multi-task fine-tuning: losses written out event by event, scales against SciPy, rates of the sheet, a fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import median_abs_deviation
from stream_events import encoder, event

from nufm.data.streams import StreamBatch, StreamEvent
from nufm.methods.finetuning import rates
from nufm.methods.multitask import Multitask, classification, fit_scales, lepton_loss, momentum_loss
from nufm.models.event_network import EventNetwork

SCALING = torch.tensor([[30.0, 0.8, 0.9], [200.0, 1.1, 0.7]])
COMPONENT = torch.tensor([10.0, 12.0, 300.0])


def labelled(seed: int, **changes) -> StreamEvent:
    """A hand-made event with random truth that its charge knows nothing of."""
    rng = np.random.default_rng(1000 + seed)
    visible = rng.normal([0, 0, 500], [20, 20, 150])
    lepton = visible * rng.uniform(0.1, 0.9) + rng.normal([0, 0, 0], [5, 5, 0])
    truth = {
        "flavour": np.int64(seed % 6), "charm": np.int64(seed % 4), "visible": visible, "lepton": lepton,
        "jet": visible - lepton, "vertex": rng.normal(0, 1, 3) * [100, 100, 600],
    }  # fmt: skip
    truth = {k: v.astype(np.float32) if v.shape else v for k, v in truth.items()}
    return event(seed, 120).replace(truth=truth | changes)


def method(heads: str = "mean", tasks=("flavour", "charm", "visible", "jet", "vertex"), **options) -> Multitask:
    torch.manual_seed(0)
    made = Multitask(EventNetwork(encoder(), heads, tasks), **({"regime": "scratch"} | options))
    truths = [labelled(i).truth for i in range(40)]
    made.set_scales(fit_scales({k: np.stack([t[k] for t in truths]) for k in ("visible", "jet", "lepton", "vertex")}))
    return made


def batch(*events: StreamEvent) -> StreamBatch:
    return StreamBatch.from_events(events)


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


# ---------------------------------------------------------------------------------------- losses


def test_cross_entropy_with_smoothing_by_hand():
    """-(1 - 0.02) log p_true - 0.02/K Σ log p; unknown classes do not count."""
    logits, target = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.0], [9.0, 9.0, -9.0]]), torch.tensor([0, 2, -1])
    expected = []
    for row, c in zip(logits.tolist(), [0, 2], strict=False):
        log_p = [x - math.log(sum(map(math.exp, row))) for x in row]
        expected.append(-0.98 * log_p[c] - 0.02 / 3 * sum(log_p))
    assert float(classification(logits, target)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_momentum_loss_by_hand():
    """H(z_T, z_z) + 0.5 g (1 - cos Δφ) + 0.15 H(p/MADN), of one event, number by number."""
    found, momentum, truth = [0.4, 1.0, 1.0, -0.3], [15.0, -8.0, 700.0], [6.0, 8.0, 900.0]
    z_t = (math.log1p(10 / 30) - 0.8) / 0.9
    z_z = (math.log1p(900 / 200) - 1.1) / 0.7
    cos = (0.6 + 0.8) / math.sqrt(2 + 1e-4)
    gate = 10 / (10 + 2.5)
    parts = np.mean([huber((a - b) / m) for a, b, m in zip(momentum, truth, COMPONENT.tolist(), strict=True)])
    expected = (huber(0.4 - z_t) + huber(-0.3 - z_z)) / 2 + 0.5 * gate * (1 - cos) + 0.15 * parts
    loss = momentum_loss(
        torch.tensor([found]), torch.tensor([momentum]), torch.tensor([truth]), SCALING, COMPONENT, torch.tensor(2.5)
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_lepton_loss_by_hand():
    """An event with a lepton, pulled to it; one without, pulled weakly to nothing."""
    found, truth = [[1.0, 20.0, 400.0], [3.0, -4.0, 50.0]], [[5.0, 2.0, 900.0], [0.0, 0.0, 0.0]]
    size = math.sqrt(25 + 4 + 810000)
    share = size / (size + 7.0)
    scaled = [[a / m for a, m in zip(row, COMPONENT.tolist(), strict=True)] for row in found]
    to_truth = np.mean([huber(a - b / m) for a, b, m in zip(scaled[0], truth[0], COMPONENT.tolist(), strict=True)])
    to_zero = [np.mean([huber(a) for a in row]) for row in scaled]
    expected = (0.5 * share * to_truth + 0.05 * (1 - share) * to_zero[0] + 0.05 * to_zero[1]) / 2
    loss = lepton_loss(torch.tensor(found), torch.tensor(truth), COMPONENT, torch.tensor(7.0))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_perfect_answers_cost_nothing():
    """But for the smoothing of the classes, and the pull of a lepton towards nothing."""
    made = method(tasks=("visible", "jet", "vertex"))
    truth = batch(labelled(0), labelled(1)).truth
    found = {}
    for i, name in enumerate(("visible", "jet")):
        scaling, p = made.network.momentum_scaling[i], truth[name]
        p_t = p[:, :2].norm(dim=1)
        z_t = ((p_t / scaling[0, 0]).log1p() - scaling[0, 1]) / scaling[0, 2]
        z_z = ((p[:, 2].clamp(min=0) / scaling[1, 0]).log1p() - scaling[1, 1]) / scaling[1, 2]
        found[name] = torch.stack([z_t, 30 * p[:, 0] / p_t, 30 * p[:, 1] / p_t, z_z], dim=1)
    mean, spread = made.network.vertex_scaling
    found["vertex"] = (truth["vertex"] - mean) / spread
    losses = made.losses(found, truth)
    assert set(losses) == {"visible", "jet", "lepton", "vertex"}
    size = truth["lepton"].norm(dim=1)
    to_zero = [np.mean([huber(x) for x in row]) for row in (truth["lepton"] / made.component[2]).tolist()]
    share = size / (size + made.gate[2])
    pull = np.mean([0.05 * (1 - g) * h for g, h in zip(share.tolist(), to_zero, strict=True)])
    assert float(losses.pop("lepton")) == pytest.approx(pull, rel=1e-3)
    assert all(float(loss) < 1e-6 for loss in losses.values()), losses


def test_unknown_truth_does_not_count():
    made, nan = method(), np.full(3, np.nan, np.float32)
    unknown = {"flavour": np.int64(-1), "charm": np.int64(-1), **dict.fromkeys(("visible", "jet", "lepton"), nan)}
    events = [labelled(0), labelled(1, **unknown, vertex=nan)]
    made.eval()
    alone, both = (made.losses(made.network(b), b.truth) for b in (batch(events[0]), batch(*events)))
    for name in alone:
        torch.testing.assert_close(alone[name], both[name], rtol=1e-4, atol=1e-6, msg=name)
    none = made.losses(made.network(batch(events[1])), batch(events[1]).truth)
    assert all(float(v) == 0 and v.requires_grad for v in none.values())


def test_balance_begins_at_one_and_stays_within_its_bounds():
    """Σ w L - ½ ln w with w in [0.3, 5] (sheet 5.3)."""
    made = method()
    weights = made.balance.weights()
    assert set(weights) == {"flavour", "charm", "visible", "jet", "lepton", "vertex"}
    assert all(float(w) == pytest.approx(1.0, abs=1e-6) for w in weights.values())
    losses = {name: torch.tensor(0.5 + i) for i, name in enumerate(weights)}
    assert float(made.balance(losses)) == pytest.approx(sum(map(float, losses.values())), rel=1e-6)
    for u, bound in ((-50.0, 0.3), (50.0, 5.0)):
        with torch.no_grad():
            made.balance.u.fill_(u)
        assert all(float(w) == pytest.approx(bound) for w in made.balance.weights().values())


# ---------------------------------------------------------------------------------------- scales


def test_scales_against_scipy():
    rng = np.random.default_rng(0)
    truth = {k: rng.normal([0, 0, 600], [20, 25, 100], (501, 3)) for k in ("visible", "jet", "lepton")}
    truth["lepton"][::4] = 0  # neutral current
    truth["visible"][7] = np.nan
    truth["vertex"] = rng.uniform(-1, 1, (501, 3)) * [240, 240, 1000]
    scales = fit_scales(truth)
    p = np.delete(truth["visible"], 7, axis=0)
    np.testing.assert_allclose(scales.component[0], median_abs_deviation(p, scale="normal"), rtol=1e-4)
    p_t = np.hypot(*p[:, :2].T)
    k = median_abs_deviation(p_t, scale="normal")
    u = np.log(1 + p_t / k)
    np.testing.assert_allclose(
        scales.momentum[0, 0], [k, np.median(u), median_abs_deviation(u, scale="normal")], rtol=1e-4
    )
    charged = truth["lepton"][np.abs(truth["lepton"]).sum(1) > 0]
    assert len(charged) == 375
    np.testing.assert_allclose(scales.component[2], median_abs_deviation(charged, scale="normal"), rtol=1e-4)
    assert scales.gate[0] == pytest.approx(np.quantile(p_t[p_t > 0.3], 0.05))
    assert scales.gate[2] == pytest.approx(np.quantile(np.linalg.norm(charged, axis=1), 0.05))
    np.testing.assert_allclose(scales.vertex, [truth["vertex"].mean(0), truth["vertex"].std(0)])


def test_gates_of_transverse_momenta_are_above_the_fermi_motion():
    """Half of the events have the nucleon's motion alone, which must not become the scale of p_T; a lepton may be
    that soft."""
    sizes = np.concatenate([np.full(50, 0.25), np.linspace(1.0, 2.0, 50)])
    momenta = np.column_stack([sizes, np.zeros(100), np.zeros(100)])
    gate = fit_scales(dict.fromkeys(("visible", "jet", "lepton"), momenta)).gate
    assert gate[:2] == pytest.approx(np.quantile(sizes[50:], 0.05)) and gate[2] == pytest.approx(0.25)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_scales_of_hardly_any_events_can_be_used(n):
    same = np.tile([0.0, 0.0, 50.0], (n, 1))
    scales = fit_scales(dict.fromkeys(("visible", "jet", "lepton", "vertex"), same))
    made = method()
    made.set_scales(scales)
    assert all(np.isfinite(v).all() for v in (scales.momentum, scales.vertex, scales.component, scales.gate))
    losses = made.losses(made.network(batch(labelled(0))), batch(labelled(0)).truth)
    assert all(v.isfinite() for v in losses.values())


def test_a_network_with_scales_keeps_them():
    made = method()
    given = EventNetwork(encoder(), **{k: v for k, v in made.network.arguments.items() if k.endswith("scaling")})
    other = Multitask(given, regime="scratch")
    other.set_scales(fit_scales({"visible": np.ones((3, 3)), "vertex": np.ones((3, 3))}))
    assert given.arguments["momentum_scaling"] == made.network.arguments["momentum_scaling"]


# ---------------------------------------------------------------------------------------- training


def test_rates_fall_by_layer_as_in_the_sheet():
    """0.75^(L - id): id 0 embeddings and learned vectors, i + 1 blocks side by side, latent blocks behind them, heads
    L = max(D₁, D₂) + 2 D₃ + 2."""
    network = EventNetwork(encoder(depths=(3, 2, 2)))
    found, last = rates(network, 1.0, 0.75, "by_depth"), 3 + 2 * 2 + 2
    inside = network.encoder
    for number, module in (
        (0, inside.calorimeter.embedding), (0, inside.tail.embedding), (0, inside.matrix),
        (0, inside.calorimeter.place_token), (0, inside.calorimeter.cls_token),
        (1, inside.calorimeter.blocks[0]), (1, inside.tail.blocks[0]), (3, inside.calorimeter.blocks[2]),
        (4, inside.looks[0]), (5, inside.blocks[0]), (7, inside.blocks[1]), (last, network.heads),
    ):  # fmt: skip
        for parameter in module.parameters():
            assert found[parameter] == pytest.approx(0.75 ** (last - number)), type(module).__name__
    assert all(value == 1 for value in rates(network, 1.0, 1.0, "by_depth").values())


def test_a_step_towards_each_task_lowers_its_loss():
    made = method()
    events = batch(*(labelled(i) for i in range(8)))
    parameters = [p for p in made.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    made.eval()
    history = []
    for _ in range(60):
        parts = made.losses(made.network(events), events.truth)
        history.append({k: float(v) for k, v in parts.items()})
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
    for name, first in history[0].items():
        assert history[-1][name] < 0.6 * first, name


def test_empty_events_are_trained_on():
    made = method("query").train()
    nothing = StreamEvent(truth=labelled(3).truth, name="nothing")
    parts = made.losses(made.network(batch(nothing)), batch(nothing).truth)
    sum(parts.values()).backward()
    assert all(p.grad.isfinite().all() for p in made.network.parameters() if p.grad is not None)


def test_truth_that_is_missing_or_beyond_the_classes_is_refused():
    made = method()
    with pytest.raises(ValueError, match=r"event 0: the task 'fasercal' needs the truth 'flavour', found \[\]; use"):
        made.check_labels(batch(event(0)))
    without = {k: v for k, v in labelled(0).truth.items() if k != "vertex"}
    with pytest.raises(ValueError, match=r"needs the truth 'vertex' \(mm\), found"):
        made.check_labels(batch(event(0).replace(truth=without)))
    method(tasks=("flavour", "jet")).check_labels(batch(event(0).replace(truth=without)))
    two = batch(labelled(0), labelled(1))
    with pytest.raises(ValueError, match="event 1: truth 'charm' holds class 4, the task 'fasercal' has 4: no charm"):
        made.check_labels(two.replace(truth={**two.truth, "charm": torch.tensor([0, 4])}))


def test_refusals():
    network = EventNetwork(encoder())
    with pytest.raises(ValueError, match="the task 'motif' is semantic, Multitask learns event ones"):
        Multitask(network, "motif")
    with pytest.raises(ValueError, match="unknown task 'flavor'"):
        Multitask(network, "flavor")
