"""The linear probe against scikit-learn and brute-force counts; the online probe on real event files."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from nufm.data.datamodule import PointDataModule
from nufm.data.event import PointBatch, offsets_from_counts
from nufm.data.transforms import LogEnergy, NormalizeCoord
from nufm.methods import linear_probe
from nufm.methods.linear_probe import (
    OnlineProbe,
    ProbeSettings,
    collect,
    encoder_features,
    fit_probe,
    raw_features,
    score_probe,
)
from nufm.models.ptv3 import PointTransformerV3

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run_support import write_events

# Small data needs more passes and larger steps than the published million points to converge.
CONVERGED = ProbeSettings(epochs=40, batch_size=500, learning_rate=3e-2, weight_decay=0.0)
QUICK = ProbeSettings(epochs=2, batch_size=256, learning_rate=1e-2)


def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three Gaussian blobs that overlap (a tenth to a fifth of the points is misclassified), in four columns."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    centres = np.array([[0, 0, 0, 0], [2, 0.5, 0, 0], [0, 2, -1, 0]])
    return (centres[label] + rng.normal(size=(n, 4))).astype(np.float32), label


def predictions(train: np.ndarray, label: np.ndarray, test: np.ndarray, seed: int = 0) -> np.ndarray:
    probe = fit_probe(torch.from_numpy(train), torch.from_numpy(label), 3, CONVERGED, seed)
    with torch.no_grad():
        return probe(torch.from_numpy(test)).argmax(1).numpy()


# ---------------------------------------------------------------------------------------- fit and score


def test_probe_is_multinomial_logistic_regression():
    (train, label), (test, truth) = blobs(6000, 0), blobs(3000, 1)
    expected = LogisticRegression(C=1e6, max_iter=500).fit(train, label).predict(test)
    f1 = f1_score(truth, expected, average="macro")
    assert 0.6 < f1 < 0.95, "the comparison needs blobs that overlap"

    probe = fit_probe(torch.from_numpy(train), torch.from_numpy(label), 3, CONVERGED, seed=0)
    with torch.no_grad():
        found = probe(torch.from_numpy(test)).argmax(1).numpy()
    assert (found == expected).mean() > 0.98
    scores = score_probe(probe, torch.from_numpy(test), torch.from_numpy(truth))
    assert float(scores["macro_f1"]) == pytest.approx(f1, abs=0.01)
    # The score itself, of the very same predictions, is scikit-learn's.
    np.testing.assert_allclose(scores["f1"].numpy(), f1_score(truth, found, average=None), atol=1e-6)


def test_units_of_the_features_do_not_matter():
    """Columns in other units and from another zero, train and test alike, change no prediction."""
    (train, label), (test, _) = blobs(4000, 2), blobs(2000, 3)
    scale, shift = np.float32([1e-3, 50.0, 1.0, 1e4]), np.float32([5.0, -300.0, 0.0, 7e4])
    same = predictions(train, label, test)
    other = predictions(train * scale + shift, label, test * scale + shift)
    assert (same == other).mean() > 0.999  # float32 rounds a shifted column


def test_training_points_set_the_standardisation():
    train, label = blobs(1000, 4)
    probe = fit_probe(torch.from_numpy(train), torch.from_numpy(label), 3, QUICK, seed=0)
    np.testing.assert_allclose(probe.mean.numpy(), train.mean(0), atol=1e-5)
    np.testing.assert_allclose(probe.std.numpy(), train.std(0), rtol=1e-5)


def test_seed_fixes_the_probe_and_nothing_else_does():
    feat, label = (torch.from_numpy(a) for a in blobs(1000, 5))
    torch.manual_seed(1)
    first = fit_probe(feat, label, 3, QUICK, seed=7)
    torch.manual_seed(2)
    again = fit_probe(feat, label, 3, QUICK, seed=7)
    other = fit_probe(feat, label, 3, QUICK, seed=8)
    assert torch.equal(first.linear.weight, again.linear.weight)
    assert torch.equal(first.linear.bias, again.linear.bias)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_fitting_leaves_the_global_random_state_alone():
    """Otherwise a training that is probed differs from one that is not."""
    feat, label = (torch.from_numpy(a) for a in blobs(100, 5))
    state = torch.get_rng_state()
    fit_probe(feat, label, 3, QUICK, seed=7)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_constant_feature_is_harmless(value):
    (train, label), (test, truth) = blobs(3000, 6), blobs(1500, 7)
    without = (predictions(train, label, test) == truth).mean()
    widened = [np.concatenate([x, np.full((len(x), 1), value, np.float32)], 1) for x in (train, test)]
    assert (predictions(widened[0], label, widened[1]) == truth).mean() == pytest.approx(without, abs=0.01)


def test_nothing_to_fit_to_is_an_error():
    with pytest.raises(ValueError, match="no labelled points"):
        fit_probe(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 3, QUICK, seed=0)


# ---------------------------------------------------------------------------------------- features


def make_batch(counts: list[int], seed: int = 0, cells: int = 8) -> PointBatch:
    """Points in distinct cells of a small cube, some of them labelled -1."""
    rng = np.random.default_rng(seed)
    grid = [np.array(np.unravel_index(rng.choice(cells**3, n, replace=False), (cells,) * 3)).T for n in counts]
    grid = torch.from_numpy(np.concatenate([g - g.min(0) for g in grid]))
    n = sum(counts)
    feat = torch.from_numpy(rng.normal(size=(n, 4)).astype(np.float32))
    coord = grid.float() * 0.1
    motif = torch.from_numpy(rng.integers(-1, 5, n))
    return PointBatch(
        coord=coord, grid=grid, feat=torch.cat([coord, feat[:, 3:]], 1), labels={"motif": motif},
        offsets=offsets_from_counts(torch.tensor(counts)), seeds=torch.arange(len(counts)), grid_size=0.1,
        names=tuple(f"file.h5#{seed}-{i}" for i in range(len(counts))),
    )  # fmt: skip


def test_collect_leaves_unlabelled_points_out():
    batches = [make_batch([50, 30], seed=1), make_batch([40], seed=2)]
    feat, label = collect(lambda b: b.feat, batches, "motif", "cpu")
    all_feat = np.concatenate([b.feat.numpy() for b in batches])
    all_label = np.concatenate([b.labels["motif"].numpy() for b in batches])
    kept = [i for i in range(120) if all_label[i] != -1]
    assert 0 < len(kept) < 120
    np.testing.assert_array_equal(feat.numpy(), all_feat[kept])
    np.testing.assert_array_equal(label.numpy(), all_label[kept])


def test_collect_names_the_missing_label():
    with pytest.raises(ValueError, match=r"file\.h5#0-0.*'pid'.*motif"):
        collect(raw_features, [make_batch([20])], "pid", "cpu")


def test_raw_features_count_the_occupied_cells_around():
    batch = make_batch([120, 60], seed=3)
    found = raw_features(batch)
    assert found.shape == (180, 3)
    for start, end in ((0, 120), (120, 180)):
        cells = [tuple(c) for c in batch.grid[start:end].tolist()]
        occupied = set(cells)
        for i, (x, y, z) in enumerate(cells):
            counts = []
            for reach in (1, 2):
                around = range(-reach, reach + 1)
                counts.append(
                    sum((x + a, y + b, z + c) in occupied for a in around for b in around for c in around) - 1
                )
            assert found[start + i, 1:].tolist() == counts, f"point {start + i}"
    assert torch.equal(found[:, 0], batch.feat[:, 3]), "the energy as the model sees it"


def small_encoder(**changes: object) -> PointTransformerV3:
    torch.manual_seed(0)
    options = {"depths": (1, 1), "channels": (16, 32), "heads": (1, 2), "window": 32, "drop_path": 0.5} | changes
    return PointTransformerV3(**options)


@pytest.mark.parametrize("training", [True, False])
def test_encoder_features_are_those_of_evaluation(training):
    encoder, batch = small_encoder(layer_scale=1.0).train(training), make_batch([70, 40])
    features = encoder_features(encoder)
    with torch.no_grad():
        found, again = features(batch), features(batch)
    assert encoder.training is training and all(m.training is training for m in encoder.modules())
    assert found.shape == (110, 16 + 32) and found.dtype == torch.float32
    assert torch.equal(found, again), "drop path or the order of the curves was drawn"
    with torch.no_grad():
        finest, coarse = encoder.eval()(batch)
    assert torch.equal(found, torch.cat([finest.feat, coarse.feat[coarse.inverse]], 1))


def test_train_mode_returns_after_an_error():
    encoder = small_encoder().train()
    with pytest.raises(AttributeError):
        encoder_features(encoder)(None)
    assert encoder.training


# ---------------------------------------------------------------------------------------- online probe


class Run:
    """An online probe beside a training that only counts its steps; the data module and its files are real."""

    def __init__(self, folder: Path, n_val: int, probe: OnlineProbe, batch_size: int = 4) -> None:
        for split, n in (("train", 4), ("val", n_val)):
            write_events(folder / split / "events.h5", n, seed=n)
        data = PointDataModule(
            root=str(folder), batch_size=batch_size, min_points=16, grid_size=0.002,
            transforms=[NormalizeCoord(), LogEnergy()],
        )  # fmt: skip
        self.logged: list[tuple[int, str, float]] = []
        self.probe = probe
        self.trainer = SimpleNamespace(global_step=0, datamodule=data, is_global_zero=True, world_size=1)
        self.module = SimpleNamespace(encoder=small_encoder(), device=torch.device("cpu"), log=self._log)

    def _log(self, name: str, value: object, **_: object) -> None:
        self.logged.append((self.trainer.global_step, name, float(value)))

    def steps(self, first: int, last: int) -> None:
        self.probe.setup(self.trainer, self.module, "fit")
        for step in range(first, last + 1):
            self.trainer.global_step = step
            self.probe.on_train_batch_end(self.trainer, self.module, None, None, step - 1)


def test_online_probe_logs_every_n_steps(tmp_path):
    run = Run(tmp_path, 4, OnlineProbe(every_n_steps=3, n_events=2, settings=QUICK))
    run.steps(1, 7)
    assert [(step, name) for step, name, _ in run.logged] == [(3, "probe/macro_f1"), (6, "probe/macro_f1")]
    assert all(0.0 <= value <= 1.0 for *_, value in run.logged)
    assert run.logged[0][2] == run.logged[1][2], "the encoder did not change, nor may its score"


def test_online_probe_is_silent_between_optimiser_steps(tmp_path):
    """With gradient accumulation several batches end at one step: one score."""
    run = Run(tmp_path, 4, OnlineProbe(every_n_steps=1, n_events=2, settings=QUICK))
    run.steps(1, 1)
    run.probe.on_train_batch_end(run.trainer, run.module, None, None, 1)
    assert len(run.logged) == 1


@pytest.mark.parametrize(("n_val", "n_events", "batch_size"), [(6, 3, 16), (6, 3, 2), (7, 50, 3), (2, 1, 4)])
def test_online_probe_fits_and_scores_on_different_events(tmp_path, monkeypatch, n_val, n_events, batch_size):
    halves: list[list[str]] = []

    def spy(features, batches, label, device):
        batches = list(batches)
        halves.append([name for batch in batches for name in batch.names])
        assert label == "motif"
        return collect(features, batches, label, device)

    monkeypatch.setattr(linear_probe, "collect", spy)
    run = Run(tmp_path, n_val, OnlineProbe(1, n_events, QUICK), batch_size)
    run.steps(1, 1)
    train, test = halves
    assert train and test and not set(train) & set(test)
    assert len(set(train + test)) == len(train + test) == min(n_val, 2 * n_events)
    assert all("val" in Path(name.split("#")[0]).parts for name in train + test), train + test


def test_online_probe_leaves_the_method_as_it_was(tmp_path):
    run = Run(tmp_path, 4, OnlineProbe(1, 2, QUICK))
    run.module.encoder.train()
    before = {k: v.clone() for k, v in run.module.encoder.state_dict().items()}
    run.steps(1, 1)
    assert run.module.encoder.training
    assert all(torch.equal(before[k], v) for k, v in run.module.encoder.state_dict().items())
    assert all(p.grad is None for p in run.module.encoder.parameters())


def test_online_probe_needs_two_events(tmp_path):
    """One event cannot be both: fitted on and scored on."""
    run = Run(tmp_path, 1, OnlineProbe(every_n_steps=1, n_events=4, settings=QUICK))
    with pytest.raises(ValueError, match="val"):
        run.steps(1, 1)
