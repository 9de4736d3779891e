"""A resumed Lightning run sees exactly the batches that were left, wherever its checkpoint was written."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from pilarnet_files import make_event, write_file

from nufm.data.datamodule import PointDataModule
from nufm.data.views import MultiView, ViewBatch

EVENTS, BATCH, EPOCHS = 22, 4, 3  # 5 batches an epoch, 2 events left over
N_BATCHES = EVENTS // BATCH


class Recorder(LightningModule):
    """Notes what it is trained on: epoch, batch index, events, a number that augmentation changes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple] = []

    def training_step(self, batch: ViewBatch, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch, ViewBatch)
        value = batch.globals_.feat.sum() + batch.locals_.coord.sum()
        self.seen.append((self.current_epoch, batch_idx, batch.names, float(value)))
        return self.weight * value

    def validation_step(self, batch, batch_idx: int) -> None:
        assert batch.labels

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Stop(Exception):
    pass


class SaveAndStop(Callback):
    """Writes a checkpoint at a named place, and dies some batches later, as a killed process would."""

    def __init__(self, path, place: str, epoch: int, batch: int, die_after: int) -> None:
        self.path, self.place, self.epoch, self.batch = path, place, epoch, batch
        self.countdown, self.saved = die_after, False

    def save(self, trainer, place: str, batch: int | None = None) -> None:
        if place == self.place and trainer.current_epoch == self.epoch and batch in (None, self.batch):
            if not self.saved and not trainer.sanity_checking:
                trainer.save_checkpoint(self.path)
                self.saved = True

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.saved:
            if self.countdown == 0:
                raise Stop
            self.countdown -= 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.save(trainer, "batch", batch_idx)

    def on_validation_end(self, trainer, pl_module) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.save(trainer, "epoch")

    def on_train_end(self, trainer, pl_module) -> None:
        raise Stop


def run(root, num_workers, callbacks=(), ckpt_path=None, **options) -> list[tuple]:
    model = Recorder()
    data = PointDataModule(
        str(root), min_points=0, batch_size=BATCH, seed=3, num_workers=num_workers, views=MultiView(n_local=2)
    )
    options = {"max_epochs": EPOCHS, "limit_val_batches": 0} | options
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **options,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*not resumable.*")
            trainer.fit(model, data, ckpt_path=ckpt_path)
    except Stop:
        pass
    return model.seen


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    for split, n in (("train", EVENTS), ("val", 5)):
        write_file(folder / split / "a.h5", [make_event(i, 30 + i) for i in range(n)], companion=True)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(root):
    seen = run(root, 0)
    assert [(e, b) for e, b, _, _ in seen] == [(e, b) for e in range(EPOCHS) for b in range(N_BATCHES)]
    return seen


VALIDATE = {"limit_val_batches": 1.0}


@pytest.mark.parametrize(
    ("place", "epoch", "batch", "options", "num_workers"),
    [
        ("batch", 0, 0, {}, 0),
        ("batch", 1, 3, {}, 0),
        ("batch", 1, 3, {}, 2),
        ("batch", 0, N_BATCHES - 1, {}, 0),
        ("batch", 1, N_BATCHES - 1, {}, 0),
        ("epoch", 0, None, {}, 0),
        ("epoch", 1, None, {}, 0),
        ("epoch", 1, None, {}, 2),
        ("batch", 1, 1, VALIDATE, 0),
        ("validation", 0, None, VALIDATE, 0),
        ("validation", 1, None, VALIDATE, 0),
        ("validation", 1, None, VALIDATE | {"val_check_interval": 2}, 0),
        ("validation", 1, None, VALIDATE | {"val_check_interval": 2}, 2),
        ("epoch", 1, None, VALIDATE, 0),
    ],
)
def test_resume(root, uninterrupted, tmp_path, place, epoch, batch, options, num_workers):
    path = tmp_path / "a.ckpt"
    before = run(root, num_workers, [SaveAndStop(path, place, epoch, batch, die_after=1)], **options)
    assert path.is_file() and before == uninterrupted[: len(before)]
    after = run(root, num_workers, ckpt_path=path, **options)
    assert after, "nothing was left to do: the interruption came too late to test anything"
    assert after == uninterrupted[-len(after) :]
    if batch is not None:
        assert after[0][:2] == ((epoch, batch + 1) if batch < N_BATCHES - 1 else (epoch + 1, 0))
    elif "val_check_interval" in options:
        assert after[0][:2] == (epoch, 2)
    else:
        assert after[0][:2] == (epoch + 1, 0)


def test_resume_twice_and_with_other_workers(root, uninterrupted, tmp_path):
    first, second = tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    run(root, 2, [SaveAndStop(first, "batch", 1, 0, die_after=0)])
    middle = run(root, 0, [SaveAndStop(second, "batch", 1, 2, die_after=0)], ckpt_path=first)
    assert middle == uninterrupted[N_BATCHES + 1 : N_BATCHES + 3]
    assert run(root, 2, ckpt_path=second) == uninterrupted[N_BATCHES + 3 :]


def test_resume_with_limited_batches(root, tmp_path):
    options = {"limit_train_batches": 3}
    whole = run(root, 0, **options)
    assert [(e, b) for e, b, _, _ in whole] == [(e, b) for e in range(EPOCHS) for b in range(3)]
    for batch, left in ((1, 4), (2, 3)):
        path = tmp_path / f"{batch}.ckpt"
        run(root, 0, [SaveAndStop(path, "batch", 1, batch, die_after=0)], **options)
        assert run(root, 0, ckpt_path=path, **options) == whole[-left:]


def test_resume_by_steps(root, uninterrupted, tmp_path):
    """max_steps instead of max_epochs, as in runs counted in event samples."""
    options = {"max_epochs": -1, "max_steps": EPOCHS * N_BATCHES}
    path = tmp_path / "a.ckpt"
    run(root, 0, [SaveAndStop(path, "batch", 1, 3, die_after=1)], **options)
    assert run(root, 0, ckpt_path=path, **options) == uninterrupted[N_BATCHES + 4 :]


def test_failed_batch_is_done_again(root, uninterrupted, tmp_path):
    """A checkpoint written because a batch failed: that batch was fetched, but not trained on."""
    path = tmp_path / "a.ckpt"

    class FailInBatch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if (trainer.current_epoch, batch_idx) == (1, 2):
                raise Stop

        def on_exception(self, trainer, pl_module, exception) -> None:
            trainer.save_checkpoint(path)

    run(root, 0, [FailInBatch()])
    assert run(root, 0, ckpt_path=path) == uninterrupted[N_BATCHES + 2 :]


def test_another_order_is_refused(root, tmp_path):
    path = tmp_path / "a.ckpt"
    run(root, 0, [SaveAndStop(path, "batch", 0, 2, die_after=0)])
    data = PointDataModule(str(root), min_points=0, batch_size=2, seed=3, views=MultiView(n_local=2))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, max_epochs=2)  # fmt: skip
    with pytest.raises(ValueError, match=r"cannot resume: .*batch_size was 4, is 2"):
        trainer.fit(Recorder(), data, ckpt_path=path)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trainer_moves_the_batch(root, precision):
    seen = run(root, 0, precision=precision, max_epochs=1)
    assert len(seen) == N_BATCHES


def test_overfit_batches_is_refused(root):
    with pytest.raises(ValueError, match=r"overfit_batches is not supported: use max_events"):
        run(root, 0, overfit_batches=2)
