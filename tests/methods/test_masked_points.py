"""Point-MAE and PoLAr-MAE: masks and losses against second derivations, and that they learn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from run_support import weights, write_config, write_data
from token_events import batch_of, walk
from torch import Tensor
from torch.nn.functional import mse_loss

from nufm.commands.pretrain import pretrain
from nufm.data.event import offsets_from_counts
from nufm.methods.masked_points import MaskedPoints, chamfer, mask_tokens
from nufm.methods.schedules import warmup_cosine
from nufm.models.token_encoder import TokenEncoder
from nufm.models.tokens import Tokenizer


def small(**changes: object) -> MaskedPoints:
    torch.manual_seed(0)
    encoder = TokenEncoder(
        Tokenizer(radius=5.0, max_points=12), channels=24, depth=2, heads=2, drop_path=0, attention_dropout=0,
        feature_blocks=(1,),
    )  # fmt: skip
    return MaskedPoints(encoder, **{"decoder_depth": 1} | changes)


# ---------------------------------------------------------------------- Chamfer distance


@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize("slots", [12, 32])
@pytest.mark.parametrize("sizes", [[1], [12], [3, 12, 1, 7]])
def test_chamfer_equals_its_definition(sizes: list[int], columns: int, slots: int) -> None:
    """L = mean over sets of (1/n) Σ_q min_p |q - p|² + (1/n) Σ_p min_q |q - p|², with the first n predictions."""
    generator = torch.Generator().manual_seed(sum(sizes))
    predicted = torch.randn(len(sizes), slots, columns, generator=generator, dtype=torch.float64, requires_grad=True)
    points = torch.randn(sum(sizes), columns, generator=generator, dtype=torch.float64)
    expected = []
    for p, q in zip(predicted, points.split(sizes), strict=True):
        square = (q[:, None] - p[None, : len(q)]).square().sum(2)
        expected.append(square.amin(1).mean() + square.amin(0).mean())
    expected = torch.stack(expected).mean()
    found = chamfer(predicted, points, offsets_from_counts(torch.tensor(sizes)))
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(x, predicted) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_chamfer_of_no_sets_is_zero_and_differentiable() -> None:
    predicted = torch.zeros(0, 12, 4, requires_grad=True)
    loss = chamfer(predicted, torch.zeros(0, 4), torch.zeros(1, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0 and predicted.grad is not None


def test_chamfer_of_the_points_themselves_in_any_order_is_zero() -> None:
    points = torch.randn(9, 4)
    predicted = torch.cat([points[torch.randperm(9)], torch.full((3, 4), 99.0)])[None]
    assert float(chamfer(predicted, points, torch.tensor([0, 9]))) == 0


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_share_of_hidden_tokens_is_exact_in_every_event(ratio: float) -> None:
    batch = batch_of([walk(1, 300), torch.zeros(1, 3), torch.zeros(0, 3), walk(2, 90)])
    tokens = small().encoder.tokens(batch)
    masked = mask_tokens(tokens, batch.seeds, ratio)
    for event, n in enumerate(tokens.offsets.diff().tolist()):
        assert int(masked[tokens.event == event].sum()) == int(ratio * n + 1e-9)


def test_masks_come_from_each_events_own_seed() -> None:
    coords = [walk(1, 300), walk(2, 200), walk(1, 300)]
    batch = batch_of(coords)
    tokens = small().encoder.tokens(batch)
    masked = mask_tokens(tokens, batch.seeds, 0.6)
    again = mask_tokens(tokens, batch.seeds, 0.6)
    assert torch.equal(masked, again)
    alone = batch.select([2])
    assert torch.equal(mask_tokens(small().encoder.tokens(alone), alone.seeds, 0.6), masked[tokens.event == 2])
    assert not torch.equal(masked[tokens.event == 0], masked[tokens.event == 2])  # same points, another seed


def test_all_tokens_are_hidden_equally_often() -> None:
    batch = batch_of([walk(3, 60)])
    tokens = small().encoder.tokens(batch)
    n, trials = len(tokens), 3000
    often = sum(mask_tokens(tokens, torch.tensor([seed]), 0.5).double() for seed in range(trials)) / trials
    share = int(0.5 * n) / n
    assert float((often - share).abs().max()) < 5 * (share * (1 - share) / trials) ** 0.5


# ---------------------------------------------------------------------- the model


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MaskedPoints(TokenEncoder()).parameters()) == 29_570_080
        point_mae = MaskedPoints(TokenEncoder(), energy_infilling=False)
        assert sum(p.numel() for p in point_mae.parameters()) == 28_985_856
        assert sum(p.numel() for p in point_mae.decoder.parameters()) == 7_098_624


def test_reconstruction_sees_visible_tokens_only_and_places_of_the_hidden() -> None:
    """Changing what is in hidden tokens must not change what is predicted for their points."""
    batch, model = batch_of([walk(4, 300), walk(5, 100)]), small().eval()
    found = model.reconstruct(batch)
    only_hidden = torch.ones(len(batch), dtype=torch.bool)
    only_hidden[found.tokens.select(~found.masked).members] = False
    assert 0 < int(only_hidden.sum()) < len(batch)
    feat = batch.feat.clone()
    feat[only_hidden, 3] += 5.0
    changed = model.reconstruct(batch.replace(feat=feat))
    assert torch.equal(found.masked, changed.masked)
    torch.testing.assert_close(found.points, changed.points)
    torch.testing.assert_close(found.energy, changed.energy)  # energies are not given, positions are
    assert found.points.shape == (int(found.masked.sum()), 12, 4)
    assert found.energy.shape == (len(found.hidden.members), 1)


def test_losses_equal_their_definitions() -> None:
    batch, model = batch_of([walk(6, 200)]), small().eval()
    found = model.reconstruct(batch)
    parts = model.losses(found)
    hidden, energies, distances = found.hidden, [], []
    for i, part in enumerate(hidden.points.split(hidden.counts.tolist())):
        square = torch.cdist(part.double(), found.points[i, : len(part)].double()).square()
        distances.append(square.amin(0).mean() + square.amin(1).mean())
        energies.append(found.energy[hidden.segments.index == i, 0] - part[:, 3])
    torch.testing.assert_close(parts["chamfer"].double(), torch.stack(distances).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts["energy"], torch.cat(energies).square().mean())
    assert "energy" not in small(energy_infilling=False).losses(found._replace(energy=None))


def test_energy_infilling_depends_on_the_order_it_is_told() -> None:
    batch, model = batch_of([walk(7, 200)]), small().eval()
    found = model.reconstruct(batch)
    hidden = found.hidden
    full = int(hidden.counts.argmax())
    a, b = int(hidden.starts[full]), int(hidden.starts[full + 1])
    points = hidden.points.clone()
    points[a:b] = points[a:b].flip(0)
    order = model.order_encoder(points[:, :3], hidden)
    assert not torch.allclose(order[full], model.order_encoder(hidden.points[:, :3], hidden)[full], atol=1e-6)


@pytest.mark.parametrize("infilling", [True, False])
@pytest.mark.parametrize("coords", [[torch.zeros(1, 3)], [torch.zeros(0, 3)], [torch.zeros(0, 3), walk(8, 80)]])
def test_events_with_nothing_to_hide(coords: list[Tensor], infilling: bool) -> None:
    """One token of 0.6 hidden, rounded down, is none: the loss is 0 and every weight has a gradient (DDP waits)."""
    model = small(energy_infilling=infilling).train()
    batch = batch_of(coords)
    found = model.reconstruct(batch)
    loss = sum(model.losses(found).values())
    loss.backward()
    assert bool(loss.isfinite())
    if len(batch) < 2:
        assert float(loss.detach()) == 0
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing


def test_position_only_targets_and_bad_settings() -> None:
    model = small(targets="position", energy_infilling=False)
    assert model.reconstruct(batch_of([walk(9, 100)])).points.shape[2] == 3
    with pytest.raises(ValueError, match=r"mask_ratio is 1\.0"):
        small(mask_ratio=1.0)


def test_learns_two_events_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = small(mask_ratio=0.5).train()
    batch = batch_of([walk(10, 120), walk(11, 120)])
    tokens = model.encoder.tokens(batch)
    monkeypatch.setattr(model.encoder, "tokens", lambda batch: tokens)  # always the same: not made at each step
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(250):
        found = model.reconstruct(batch)
        parts = model.losses(found)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
        history.append({k: float(v.detach()) for k, v in parts.items()})
    hidden = found.hidden
    blind = mse_loss(hidden.points[:, 3], hidden.points[:, 3].mean().expand(len(hidden.members)))
    assert history[-1]["energy"] < 0.2 * float(blind)
    assert history[-1]["chamfer"] < 0.4 * history[0]["chamfer"]


def test_schedule() -> None:
    """Published: 8.6e-6 -> 1e-4 in 12,500 steps, cosine back to 8.6e-6 at 500,000."""
    steps = 500_000

    def rate(step: int) -> float:
        return 1e-4 * warmup_cosine(step / steps, 12_500 / steps, 0.086)

    assert rate(0) == pytest.approx(8.6e-6)
    assert rate(6_250) == pytest.approx((8.6e-6 + 1e-4) / 2)
    assert rate(12_500) == pytest.approx(1e-4)
    assert rate(12_500 + 243_750) == pytest.approx((8.6e-6 + 1e-4) / 2)
    assert rate(steps) == pytest.approx(8.6e-6)


def test_weight_decay_spares_what_it_should() -> None:
    for decay, spared in (("weights", True), ("all", False)):
        model = small(decay=decay)
        names = {p: n for n, p in model.named_parameters()}
        groups = {names[p]: g["weight_decay"] for g in model.parameter_groups() for p in g["params"]}
        assert groups.keys() == set(names.values())
        assert groups["point_head.weight"] == 0.05
        assert (groups["mask_token"] == 0) == (groups["encoder.embedding.first.1.weight"] == 0) == spared


def test_a_batch_with_nothing_to_hide_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a radius in voxels where coordinates are normalised: every event would be one token."""
    model = small()
    monkeypatch.setattr(MaskedPoints, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(MaskedPoints, "log", lambda *_, **__: None)
    monkeypatch.setattr(MaskedPoints, "trainer", SimpleNamespace(log_every_n_steps=7, global_step=0))
    monkeypatch.setattr(MaskedPoints, "global_step", 0)
    with pytest.warns(UserWarning, match=r"nothing to learn from, 1 tokens of 2 points.*radius 5"):
        model.training_step(batch_of([torch.zeros(2, 3)]), 0)


# ---------------------------------------------------------------------- a run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of a minute model, written as the self-distillation's with another model in it."""
    path = write_config(tmp_path / "mini.yaml", write_data(tmp_path / "data"))
    content = yaml.safe_load(path.read_text())
    content["model"] = {
        "class_path": "nufm.methods.masked_points.MaskedPoints",
        "init_args": {
            "encoder": {
                "class_path": "nufm.models.token_encoder.TokenEncoder",
                "init_args": {"channels": 16, "depth": 2, "heads": 2, "feature_blocks": [0, 1]},
            },
            "decoder_depth": 1,
        },
    }
    content["data"]["init_args"].pop("views")
    content["trainer"]["max_steps"] = 8
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_resumed_run_equals_an_uninterrupted_one(config: Path) -> None:
    """24 events in batches of 4 are 6 steps: step 3 is in mid-epoch. Drop path and dropout draw random numbers."""
    run = config.parent / "whole"
    pretrain(["--config", str(config), "--run", str(run), "--checkpoint.keep_every", "1"])
    again = config.parent / "again"
    checkpoint = run / "checkpoints" / "step-0000003.ckpt"
    pretrain(["--config", str(config), "--run", str(again), "--ckpt_path", str(checkpoint)])
    a, b = (weights(folder / "checkpoints" / "last.ckpt") for folder in (run, again))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert any("running_mean" in name for name in a)
