"""Particles from labels: losses, learning rates, what a pretrained encoder gives, and a small training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from stream_events import encoder as fasercal_encoder

from nufm.data.stream_datamodule import StreamDataModule
from nufm.data.streams import Hits, StreamBatch, StreamEvent
from nufm.methods.particle_classification import ParticleClassification
from nufm.models.particle_network import ParticleNetwork
from nufm.models.patches import PatchStack
from nufm.models.stream_encoder import StreamEncoder
from nufm.models.transfer import transfer
from nufm.simulation.fasercal.dataset import write_events


def method(regime: str = "scratch", context: int = 0, **options) -> ParticleClassification:
    torch.manual_seed(0)
    stack = PatchStack(
        "voxels", (120, 120, 120), (12, 12, 10), window=(2, 2, 2), channels=48, depth=2, heads=4, positions="sincos",
        group_code="sincos",
    )  # fmt: skip
    network = ParticleNetwork(StreamEncoder(stack, latent_depth=2, heads=4), 4, context=context, heads=4)
    return ParticleClassification(network, regime=regime, **options)


def event(seed: int, particle: int) -> StreamEvent:
    """A class is a place: 0 to 3 along x, which the network can tell."""
    rng = np.random.default_rng(seed)
    low = np.array([30 * particle, 50, 50])
    index = np.unique(rng.integers(low, low + 20, (30, 3)), axis=0).astype(np.int32)
    hits = Hits(index, np.zeros(len(index), np.int32), np.ones(len(index), np.float32))
    return StreamEvent(voxels={"voxels": hits}, truth={"particle": np.array(particle)}, detector="superfgd")


def test_loss_is_smoothed_cross_entropy():
    """Targets (1 - ε) one-hot + ε/K: -Σ t log p, written out."""
    logits, target = torch.randn(6, 4), torch.tensor([0, 3, -1, 1, 2, -1])
    found = method(label_smoothing=0.1).loss(logits, target)
    known = target >= 0
    wanted = 0.9 * F.one_hot(target[known], 4) + 0.1 / 4
    assert float(found) == pytest.approx(float(-(wanted * logits[known].log_softmax(1)).sum(1).mean()), rel=1e-6)


def test_no_known_class_is_a_zero_with_a_gradient():
    logits = torch.randn(2, 4, requires_grad=True)
    loss = method().loss(logits, torch.tensor([-1, -1]))
    loss.backward()
    assert float(loss) == 0 and not logits.grad.any()


@pytest.mark.parametrize("reuse", ("talk", "code"))
def test_a_pretrained_encoder_is_where_training_starts(reuse, capsys):
    model, old = method("full", reuse=reuse), fasercal_encoder(48, (2, 1, 2), 4)
    with torch.no_grad():
        for p in old.parameters():
            p.normal_()
    model.load_encoder(old)
    assert torch.equal(model.network.encoder.blocks[1].query.weight, old.blocks[1].query.weight)
    same = torch.equal(model.network.encoder.calorimeter.embedding.weight, old.calorimeter.embedding.weight)
    assert same is (reuse == "code")
    assert f"transfer as in the {reuse}: reused {model.transferred.n_reused:,} of" in capsys.readouterr().out
    twin = method("full").network.encoder
    assert model.transferred.n_reused == transfer(twin, old, reuse).n_reused


@pytest.mark.parametrize("reuse", ("talk", "code"))
def test_what_begins_anew_is_what_was_not_copied(reuse):
    model = method("full", reuse=reuse)
    model.load_encoder(fasercal_encoder(48, (2, 1, 2), 4))
    anew = {n.removeprefix("encoder.") for n, _ in model.network.named_parameters() if model.begins_anew(n)}
    assert anew == set(model.transferred.fresh)
    assert not any(method("scratch").begins_anew(n) for n, _ in model.network.named_parameters())


def test_other_encoders_are_refused():
    with pytest.raises(ValueError, match="Linear, expected a StreamEncoder"):
        method("full").load_encoder(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="regime 'scratch' starts from random weights"):
        method("scratch").load_encoder(fasercal_encoder(48, (2, 1, 2), 4))
    with pytest.raises(ValueError, match="channels: 96 there, 48 here"):
        method("full").load_encoder(fasercal_encoder(96, (2, 1, 2), 4))
    with pytest.raises(ValueError, match="'talk' or 'code'"):
        method("full", reuse="nothing")


def test_the_task_must_have_as_many_classes():
    with pytest.raises(ValueError, match="pilarnet_particles"):
        method(task="pilarnet_particles")


def test_labels_are_needed():
    batch = StreamBatch.from_events([event(0, 0).replace(truth={})])
    with pytest.raises(ValueError, match="needs the truth 'particle'"):
        method().check_labels(batch)


def test_particles_that_should_see_each_other_need_groups():
    with pytest.raises(ValueError, match=r"context is 1 blocks .* set data\.together true"):
        method(context=1).training_step(StreamBatch.from_events([event(0, 0), event(1, 1)]), 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("particles")
    for split, n in (("train", 48), ("val", 16)):
        events = [event(i, i % 4) for i in range(n)]
        records = (
            {
                "hits/voxels/index": e.voxels["voxels"].index,
                "hits/voxels/charge": e.voxels["voxels"].charge,
                "truth/particle": e.truth["particle"],
                "group": i // 3,
            }
            for i, e in enumerate(events)
        )
        write_events(folder / split / "particles.h5", records, {"detector": "superfgd"})
    return folder


def fitted(model: ParticleClassification, data: Path, together: bool, steps: int) -> Trainer:
    torch.manual_seed(1)
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, check_val_every_n_epoch=None, val_check_interval=steps, num_sanity_val_steps=0,
    )  # fmt: skip
    batch = 4 if together else 12
    trainer.fit(model, datamodule=StreamDataModule(str(data), batch_size=batch, together=together, transforms=[]))
    return trainer


@pytest.mark.parametrize("together", (False, True))
def test_a_small_training_learns_what_can_be_learnt(data, together):
    """Every class has a place of its own: held-out particles are right after a few steps."""
    model = method(context=int(together), learning_rate=3e-3, schedule="warmup_cosine", warmup=0.2)
    trainer = fitted(model, data, together, 60)
    scores = {k: float(v) for k, v in trainer.callback_metrics.items()}
    recalls = [scores[f"val/recall_{name}"] for name in ("proton", "pion", "muon", "electron")]
    assert scores["val/accuracy"] == pytest.approx(np.mean(recalls)), "four particles of each class"
    assert scores["val/accuracy"] > 0.9 and scores["val/loss"] < 0.7 and scores["train/gradient_norm"] > 0


def test_validation_is_of_the_particles_that_have_a_class(tmp_path):
    """Batches of 4: one without a class, one with one, one with four. The loss is the mean of these five."""
    particles = [-1, -1, -1, -1, 2, -1, -1, -1, 0, 1, 2, 3]
    events = [event(i, abs(p)).replace(truth={"particle": np.array(p)}) for i, p in enumerate(particles)]
    records = [
        {
            "hits/voxels/index": e.voxels["voxels"].index,
            "hits/voxels/charge": e.voxels["voxels"].charge,
            "truth/particle": e.truth["particle"],
            "group": i,
        }
        for i, e in enumerate(events)
    ]
    write_events(tmp_path / "val" / "particles.h5", records, {"detector": "superfgd"})
    model = method().eval()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    found = trainer.validate(model, datamodule=StreamDataModule(str(tmp_path), batch_size=4, transforms=[]))[0]
    batch = StreamBatch.from_events([e for e in events if e.truth["particle"] >= 0])
    with torch.no_grad():
        probability = model.network.predict(batch).probability["particle"]
    wanted = -probability[range(5), [2, 0, 1, 2, 3]].log().mean()
    assert found["val/loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_rates_of_a_transfer(data):
    """What begins anew has the full rate, the last copied block less by a factor per layer behind it."""
    model = method("full", learning_rate=1.0, layer_decay=0.5)
    model.load_encoder(fasercal_encoder(48, (2, 1, 2), 4))
    trainer = fitted(model, data, False, 1)
    peak = {}
    names = {p: n for n, p in model.network.named_parameters()}
    for group in trainer.optimizers[0].param_groups:
        peak |= {names[p]: group["peak"] for p in group["params"]}
    assert peak["head.2.weight"] == 1.0 and peak["encoder.calorimeter.embedding.weight"] == 1.0
    # Layers: vectors, two blocks of the stack, four latent parts, the last norm; one behind the encoder.
    assert peak["encoder.norm.weight"] == 0.5 and peak["encoder.blocks.1.proj.weight"] == 0.25
    assert peak["encoder.calorimeter.blocks.0.proj.weight"] == 0.5**7
    assert peak["encoder.calorimeter.cls_token.weight"] == 0.5**8
