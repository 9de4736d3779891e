"""Distillation: the loss against its formula, what a teacher may say, and a student that learns without labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning import Trainer
from toy_maps import toy_events

from nufm.data.image_datamodule import ImageDataModule
from nufm.data.image_hdf5 import write_maps
from nufm.data.image_transforms import Brightness
from nufm.data.images import ImageBatch
from nufm.methods.distillation import Distillation, SoftTargets, softened
from nufm.models.se_resnet import SiameseSEResNet


def student(**options) -> Distillation:
    torch.manual_seed(0)
    network = SiameseSEResNet(channels=(8, 16), blocks=(1, 1), reduction=4)
    return Distillation(network, **{"teacher": "run", "schedule": "constant", "learning_rate": 3e-3, **options})


def targets(events, share: float = 0.8) -> SoftTargets:
    """A teacher that is right, as sure as ``share``."""
    p = np.full((len(events), 3), (1 - share) / 2, np.float32)
    p[range(len(events)), [int(e.truth["interaction"]) for e in events]] = share
    return SoftTargets(tuple(e.name for e in events), p)


def batch_of(events) -> ImageBatch:
    rng = np.random.default_rng(0)
    return ImageBatch.from_events([Brightness()(e, rng) for e in events])


@pytest.mark.parametrize("temperature", (0.5, 1.0, 4.0))
def test_softened_loss_is_the_published_one(temperature):
    """T² Σ q log(q/s), q and s the softmax of teacher's and student's logits over T, in loops."""
    torch.manual_seed(0)
    z, v = torch.randn(4, 3, dtype=torch.float64), 3 * torch.randn(4, 3, dtype=torch.float64)
    wanted = 0.0
    for b in range(4):
        q, s = (
            [math.exp(x / temperature) / sum(math.exp(y / temperature) for y in row) for x in row]
            for row in (v[b].tolist(), z[b].tolist())
        )
        wanted += temperature**2 * sum(a * math.log(a / c) for a, c in zip(q, s, strict=True)) / 4
    assert float(softened(z, v.softmax(1), temperature)) == pytest.approx(wanted, rel=1e-9)


def test_gradient_at_high_temperature():
    """For large T the gradient tends to (z - v)/K with logits of mean 0 (arXiv 1503.02531, eq. 4), per event."""
    torch.manual_seed(0)
    z, v = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    z, v = (x - x.mean() for x in (z, v))
    z.requires_grad_()
    softened(z, v.softmax(1), 1000.0).backward()
    torch.testing.assert_close(z.grad, (z - v).detach() / 3, rtol=5e-3, atol=1e-4)


def test_agreement_is_no_loss_and_certainty_no_nan():
    z = torch.tensor([[2.0, -1.0, 0.5]])
    assert float(softened(z, z.softmax(1), 2.0)) == pytest.approx(0, abs=1e-6)
    sure = torch.tensor([[1.0, 0.0, 0.0]])
    assert torch.isfinite(softened(z, sure, 1.0)) and torch.isfinite(softened(z, sure, 0.5))


@pytest.mark.parametrize("share", (0.0, 0.3, 1.0))
def test_both_terms_are_shared_out(share):
    """Against cross-entropy and softened loss, the second over all events, the first over those with a label."""
    events = toy_events(4)
    model = student(soft_share=share).eval()  # batch norms as they are
    model.log = model.log_dict = lambda *_, **__: None
    model.set_targets(targets(events[::-1]))  # in another order than the batch
    events[1] = events[1].replace(truth={"interaction": np.int64(-1)})
    batch = batch_of(events)
    z = model.network(batch)["interaction"]
    known = torch.tensor([0, 2, 3])
    hard = -z.log_softmax(1)[known, [0, 2, 0]].mean()
    p = torch.from_numpy(targets(toy_events(4)).probability)
    wanted = (1 - share) * hard + share * softened(z, p, 2.0)
    torch.testing.assert_close(model.training_step(batch, 0), wanted)


def test_a_student_learns_from_answers_alone(tmp_path):
    """No training event has a label: what the student knows, it knows from the teacher."""
    events = toy_events(120)
    unlabelled = [e.replace(truth={"interaction": np.int64(-1)}) for e in events[:90]]
    write_maps(tmp_path / "train" / "maps.h5", unlabelled)
    write_maps(tmp_path / "val" / "maps.h5", events[90:])
    data = ImageDataModule(str(tmp_path), size=32, batch_size=15)
    model, asked = student(soft_share=1.0, schedule="one_cycle", warmup=0.2, learning_rate=1e-2), []

    def teacher(module: ImageDataModule) -> SoftTargets:
        asked.append(module)
        names = tuple(e.name for e in module.reader("train"))
        return SoftTargets(names, targets(events[:90]).probability)

    model.ask = teacher
    run = Trainer(
        max_steps=60, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, check_val_every_n_epoch=None, val_check_interval=60, num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(model, datamodule=data)
    assert set(asked) == {data}
    assert run.callback_metrics["val/accuracy"] > 0.9 and run.callback_metrics["train/agreement"] > 0.9
    assert not any("answers" in name for name in model.state_dict())


def test_files_with_and_without_labels(tmp_path):
    """Batches of labelled, of unlabelled and of both kinds of events; the loss of each by hand."""
    events = toy_events(12)
    write_maps(tmp_path / "train" / "a.h5", events[:6])
    write_maps(tmp_path / "train" / "b.h5", [e.replace(truth={}) for e in events[6:]])
    data = ImageDataModule(str(tmp_path), size=32, batch_size=4)
    model = student(soft_share=0.25).eval()
    model.log = model.log_dict = lambda *_, **__: None
    said = targets(events)
    model.set_targets(SoftTargets(tuple(e.name for e in data.reader("train")), said.probability))
    dataset = data.eval_dataset("train")
    for rows in ([0, 1, 2], [7, 8], [0, 7, 4, 9]):
        batch = ImageBatch.from_events([dataset[i] for i in rows])
        labels = torch.tensor([i % 3 for i in rows if i < 6], dtype=torch.int64)
        z = model.network(batch)["interaction"]
        p = -z.log_softmax(1)[torch.tensor([i < 6 for i in rows])]
        hard = p[range(len(labels)), labels].mean() if len(labels) else 0.0
        wanted = 0.75 * hard + 0.25 * softened(z, torch.from_numpy(said.probability)[rows], 2.0)
        torch.testing.assert_close(model.training_step(batch, 0), wanted)
    model.check_labels(ImageBatch.from_events([dataset[7]]))  # what has labels in other files may be learnt from
    alone = ImageBatch.from_events([events[7].replace(truth={})])
    with pytest.raises(ValueError, match="needs the truth 'interaction'"):
        model.check_labels(alone)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (lambda p: p[:, :2], r"answers of shape \(3, 2\), expected \(3, 3\): probabilities of νµ CC, νe CC, NC"),
        (lambda p: p * np.nan, "teacher run: says .*nan.* of toy.h5#0, expected probabilities"),
        (lambda p: p * 2, "expected probabilities that sum to 1"),
        (lambda p: p - 0.5, "expected probabilities"),
    ),
)
def test_answers_that_cannot_be_meant(change, message):
    said = targets(toy_events(3))
    with pytest.raises(ValueError, match=message):
        student().set_targets(SoftTargets(said.names, change(said.probability)))


def test_events_that_the_teacher_does_not_know():
    model = student()
    model.set_targets(targets(toy_events(3)))
    with pytest.raises(ValueError, match=r"toy\.h5#3: the teacher was not asked"):
        model.answers(batch_of(toy_events(4)))
    said = targets(toy_events(2))
    with pytest.raises(ValueError, match="two training events have the same name"):
        model.set_targets(SoftTargets(("a", "a"), said.probability))
    with pytest.raises(ValueError, match="nobody asks the teacher"):
        student().prepare_data()


@pytest.mark.parametrize("options", ({"temperature": 0.0}, {"soft_share": 1.5}, {"soft_share": -0.1}))
def test_refused(options):
    with pytest.raises(ValueError, match="expected a positive number and 0 … 1"):
        student(**options)
