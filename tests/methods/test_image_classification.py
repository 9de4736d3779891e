"""Interactions from pixel maps: losses, optimisers, scores, early stopping, and a small training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score
from toy_maps import toy_event, toy_events

from nufm.data.image_datamodule import ImageDataModule
from nufm.data.image_hdf5 import write_maps
from nufm.data.images import INTERACTION_NAMES, ImageBatch
from nufm.methods.image_classification import ImageClassification
from nufm.models.se_resnet import SiameseSEResNet
from nufm.running.checkpointing import plain


def method(**options) -> ImageClassification:
    torch.manual_seed(0)
    network = SiameseSEResNet(channels=(8, 16), blocks=(1, 1), reduction=4)
    return ImageClassification(network, **{"schedule": "constant", "learning_rate": 3e-3, **options})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    events = toy_events(120)
    write_maps(folder / "train" / "maps.h5", events[:90])
    # Of the validation events two have no label.
    held = [e.replace(truth={"interaction": np.int64(-1)}) if i in (3, 4) else e for i, e in enumerate(events[90:])]
    write_maps(folder / "val" / "maps.h5", held)
    return folder


def module(data: Path, batch_size: int = 15) -> ImageDataModule:
    return ImageDataModule(str(data), size=32, batch_size=batch_size)


def trainer(**options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", **{"enable_checkpointing": False, **quiet, **options})


def test_loss_is_cross_entropy():
    """-log of the softmax of the true class, mean over the events that have one."""
    logits, target = torch.randn(5, 3), torch.tensor([0, 2, -1, 1, -1])
    p = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    wanted = -(p[0, 0].log() + p[1, 2].log() + p[3, 1].log()) / 3
    assert float(method().loss(logits, target)) == pytest.approx(float(wanted), rel=1e-6)


def test_no_known_class_is_a_zero_with_a_gradient():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = method().loss(logits, torch.tensor([-1, -1]))
    loss.backward()
    assert float(loss) == 0 and not logits.grad.any()


def test_scores_are_those_of_scikit_learn(data):
    """Batches of 7, the last of two events; events without a label do not count."""
    model = method()
    found = trainer().validate(model, datamodule=module(data, 7), verbose=False)[0]
    events = [e for i, e in enumerate(toy_events(120)[90:]) if i not in (3, 4)]
    dataset = module(data).eval_dataset("val")
    ready = ImageBatch.from_events([dataset[i] for i in range(30) if i not in (3, 4)])
    with torch.no_grad():
        p = model.network.eval().predict(ready).probability["interaction"].double()
    truth = np.array([int(e.truth["interaction"]) for e in events])
    assert found["val/accuracy"] == pytest.approx(accuracy_score(truth, p.argmax(1)))
    assert found["val/loss"] == pytest.approx(float(F.nll_loss(p.log(), torch.from_numpy(truth))), rel=1e-4)
    aucs = [roc_auc_score(truth == k, p[:, k]) for k in range(3)]
    assert found["val/auc"] == pytest.approx(np.mean(aucs), abs=1e-6)
    recalls = recall_score(truth, p.argmax(1), average=None)
    for name, auc, recall in zip(INTERACTION_NAMES, aucs, recalls, strict=True):
        assert found[f"val/auc_{name}"] == pytest.approx(auc, abs=1e-6)
        assert found[f"val/recall_{name}"] == pytest.approx(recall)


@pytest.mark.parametrize("optimizer", ("adam", "adamw"))
def test_first_step_of_the_optimisers(optimizer, data):
    """Adam: the step is η (g + λw) / (|g + λw| + ε), the decay part of the gradient; AdamW: η g / (|g| + ε) and -ηλw
    beside it (Loshchilov, Hutter, arXiv 1711.05101). Moments of the first step, corrected, are the gradient itself."""
    rate, decay = 1e-3, 10.0
    model = method(optimizer=optimizer, learning_rate=rate, weight_decay=decay, decay="all")
    before = {n: p.detach().clone().double() for n, p in model.network.named_parameters()}
    kept = {}
    model.on_before_optimizer_step = lambda _: kept.update(
        {n: p.grad.clone().double() for n, p in model.network.named_parameters()}
    )
    trainer(max_steps=1, limit_val_batches=0).fit(model, datamodule=module(data))
    for name, p in model.network.named_parameters():
        g, w = kept[name], before[name]
        if optimizer == "adam":
            wanted = w - rate * (g + decay * w) / ((g + decay * w).abs() + 1e-8)
        else:
            wanted = w * (1 - rate * decay) - rate * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach().double(), wanted, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("decay, number", (("all", 1), ("weights", 2)))
def test_who_is_spared_weight_decay(decay, number, data):
    model = method(optimizer="adam", decay=decay)
    run = trainer(max_steps=1, limit_val_batches=0)
    run.fit(model, datamodule=module(data))
    groups = run.optimizers[0].param_groups
    assert type(run.optimizers[0]) is torch.optim.Adam and len(groups) == number
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.network.parameters())
    assert {g["weight_decay"] for g in groups} == ({0.04} if decay == "all" else {0.04, 0.0})


def test_a_small_training_learns_what_can_be_learnt(data):
    """Lines, cones and blobs: held-out events are right after a few steps."""
    model = method(schedule="one_cycle", warmup=0.2, learning_rate=1e-2)
    run = trainer(max_steps=60, check_val_every_n_epoch=None, val_check_interval=60)
    run.fit(model, datamodule=module(data))
    found = {k: float(v) for k, v in run.callback_metrics.items()}
    assert found["val/accuracy"] > 0.9 and found["val/auc"] > 0.97 and found["train/gradient_norm"] > 0


def test_training_stops_when_validation_gets_no_better(data, tmp_path):
    """With rate 0 nothing changes: two checks without improvement end it. The callback's state can be saved as all of a
    checkpoint is, without pickle."""
    stop = EarlyStopping("val/loss", patience=2)
    # Batch norms would go on learning the statistics: their momentum is 0 too.
    model = method(learning_rate=0.0, weight_decay=0.0)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.0
    run = trainer(max_epochs=20, callbacks=[stop])
    run.fit(model, datamodule=module(data))
    assert run.current_epoch == 3 and stop.stopped_epoch == 2
    path = tmp_path / "state.ckpt"
    torch.save(plain({"callbacks": {stop.state_key: stop.state_dict()}}), path)
    state = torch.load(path, weights_only=True)["callbacks"][stop.state_key]
    again = EarlyStopping("val/loss", patience=2)
    again.load_state_dict(state)
    assert again.wait_count == 2 and float(again.best_score) == pytest.approx(float(run.callback_metrics["val/loss"]))


def test_refused():
    with pytest.raises(ValueError, match="optimizer is 'sgd', expected 'adamw' or 'adam'"):
        method(optimizer="sgd")
    with pytest.raises(ValueError, match="regime 'full' needs an encoder"):
        method(regime="full")
    with pytest.raises(ValueError, match="unknown task 'pixels'"):
        method(task="pixels")
    with pytest.raises(ValueError, match="the task 'fasercal'"):
        method(task="fasercal")
    batch = ImageBatch.from_events([toy_event(0).replace(truth={})])
    with pytest.raises(ValueError, match=r"toy\.h5#0: the task 'pixelmaps' needs the truth 'interaction'"):
        method().check_labels(batch)
