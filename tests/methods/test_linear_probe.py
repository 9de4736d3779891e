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
    EventChoice,
    OnlineProbe,
    ProbeSettings,
    choose_events,
    chosen_batches,
    collect,
    encoder_features,
    fit_probe,
    moments,
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
    grid = torch.from_numpy(np.concatenate([g - g.min(0) if len(g) else g for g in grid]))
    n = sum(counts)
    feat = torch.from_numpy(rng.normal(size=(n, 4)).astype(np.float32))
    coord = grid.float() * 0.1
    motif = torch.from_numpy(rng.integers(-1, 5, n))
    return PointBatch(
        coord=coord, grid=grid, feat=torch.cat([coord, feat[:, 3:]], 1), labels={"motif": motif},
        offsets=offsets_from_counts(torch.tensor(counts)), seeds=torch.arange(len(counts)), grid_size=0.1,
        names=tuple(f"file.h5#{seed}-{i}" for i in range(len(counts))),
    )  # fmt: skip


def test_collect_keeps_every_point_with_its_labels():
    batches = [make_batch([50, 30], seed=1), make_batch([40], seed=2)]
    feat, labels = collect(lambda b: b.feat, batches, ["motif"], "cpu")
    np.testing.assert_array_equal(feat.numpy(), np.concatenate([b.feat.numpy() for b in batches]))
    np.testing.assert_array_equal(labels["motif"].numpy(), np.concatenate([b.labels["motif"].numpy() for b in batches]))
    assert feat.dtype == torch.float32 and bool((labels["motif"] == -1).any())


def test_points_without_a_label_do_not_count():
    """Fitted and scored with them marked -1, whatever their features, or without them: the same."""
    (train, label), (test, truth) = (tuple(torch.from_numpy(a) for a in blobs(900, s)) for s in (8, 9))
    expected = fit_probe(train, label, 3, QUICK, seed=3)
    scores = score_probe(expected, test, truth)
    # Unlabelled points at the end leave the order in which the others are drawn alone.
    far, none = torch.full((200, 4), 1e4), torch.full((200,), -1)
    found = fit_probe(torch.cat([train, far]), torch.cat([label, none]), 3, QUICK, seed=3)
    torch.testing.assert_close(found.linear.weight, expected.linear.weight)
    torch.testing.assert_close(found.std, expected.std)
    again = score_probe(found, torch.cat([far, test]), torch.cat([none, truth]))
    assert torch.equal(again["confusion"], scores["confusion"])


def test_collect_names_the_missing_label():
    with pytest.raises(ValueError, match=r"file\.h5#0-0.*'pid'.*motif"):
        collect(raw_features, [make_batch([20])], ["motif", "pid"], "cpu")


def test_collect_refuses_features_that_are_not_numbers():
    with pytest.raises(ValueError, match=r"file\.h5#0-0.*NaN"):
        collect(lambda b: b.feat / 0 * 0, [make_batch([20])], ["motif"], "cpu")


def test_no_events_to_collect_is_an_error():
    with pytest.raises(ValueError, match="no events"):
        collect(raw_features, [], ["motif"], "cpu")


def test_features_on_disk_are_those_in_memory_in_float16(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    batches = [make_batch([50, 30], seed=1), make_batch([0], seed=3), make_batch([40], seed=2)]
    memory, labels = collect(lambda b: b.feat, batches, ["motif"], "cpu")
    disk, again = collect(lambda b: b.feat, batches, ["motif"], "cpu", storage="disk")
    assert disk.dtype == torch.float16 and torch.equal(disk, memory.half())
    assert torch.equal(labels["motif"], again["motif"])
    assert not list(tmp_path.iterdir()), "the file has no name that could stay behind"


def test_disk_is_as_good_as_memory(monkeypatch):
    """Rounding to float16 moves a few predictions at most; shifts of many spreads are the hard case."""
    (train, label), (test, truth) = blobs(6000, 0), blobs(3000, 1)
    shift = np.float32([0, 30, -10, 5])
    f1 = {}
    for storage in ("memory", "disk"):
        sets = []
        for feat, target in ((train + shift, label), (test + shift, truth)):
            batch = make_batch([len(feat)], cells=20).replace(labels={"motif": torch.from_numpy(target)})
            sets.append(collect(lambda b, f=feat: torch.from_numpy(f), [batch], ["motif"], "cpu", storage))
        probe = fit_probe(sets[0][0], sets[0][1]["motif"], 3, CONVERGED, seed=0)
        f1[storage] = float(score_probe(probe, sets[1][0], sets[1][1]["motif"])["macro_f1"])
    assert f1["disk"] == pytest.approx(f1["memory"], abs=0.003)


def test_too_large_for_float16_is_an_error():
    with pytest.raises(ValueError, match=r"7e\+04.*65504.*memory"):
        collect(lambda b: torch.full((len(b), 2), 7e4), [make_batch([20])], ["motif"], "cpu", storage="disk")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_moments_are_numpys(chunk):
    rng = np.random.default_rng(0)
    feat = (rng.normal(size=(300, 3)) * [1e-3, 1.0, 1e3] + [1.0, 0.0, 1e5]).astype(np.float32)
    rows = rng.choice(300, 200, replace=False)
    mean, std = moments(torch.from_numpy(feat), torch.from_numpy(rows), chunk)
    np.testing.assert_allclose(mean.numpy(), feat[rows].astype(np.float64).mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(std.numpy(), feat[rows].astype(np.float64).std(0), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("standardise", [True, False])
def test_fit_is_the_written_out_recipe(schedule, standardise):
    """The same steps by hand: AdamW with decoupled decay (Loshchilov and Hutter, 1711.05101), cosine to 0."""
    feat, label = (torch.from_numpy(a) for a in blobs(100, 5))
    rate, decay, steps = 0.05, 0.1, 6
    settings = ProbeSettings(3, 50, rate, decay, schedule, standardise)
    seen = []
    found = fit_probe(feat, label, 3, settings, 11, after_epoch=lambda p: seen.append(p.linear.weight.detach().clone()))
    generator = torch.Generator().manual_seed(11)
    x = (feat - feat.mean(0)) / feat.std(0, correction=0) if standardise else feat
    weight = (torch.rand(3, 4, generator=generator) * 2 - 1) / 2
    parameters = [weight, torch.zeros(3)]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    t = 0
    for _ in range(3):
        order = torch.randperm(100, generator=generator)
        for rows in (order[:50], order[50:]):
            lr = rate * (1 + np.cos(np.pi * t / steps)) / 2 if schedule == "cosine" else rate
            t += 1
            logit = x[rows] @ parameters[0].T + parameters[1]
            excess = (logit.softmax(1) - torch.eye(3)[label[rows]]) / 50
            for p, m, v, grad in zip(parameters, first, second, (excess.T @ x[rows], excess.sum(0)), strict=True):
                m.mul_(0.9).add_(grad, alpha=0.1)
                v.mul_(0.999).add_(grad.square(), alpha=0.001)
                p.mul_(1 - lr * decay).sub_(lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
    torch.testing.assert_close(found.linear.weight.detach(), parameters[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.linear.bias.detach(), parameters[1], rtol=1e-3, atol=1e-4)
    assert len(seen) == 3 and torch.equal(seen[-1], found.linear.weight) and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_settings_that_cannot_be_meant(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        ProbeSettings(**changes)


# ---------------------------------------------------------------------------------------- which events


def data_of(folder: Path, **counts: int) -> PointDataModule:
    for split, n in counts.items():
        write_events(folder / split / "events.h5", n, seed=n)
    return open_events(folder)


def open_events(folder: Path, **options: object) -> PointDataModule:
    transforms = [NormalizeCoord(), LogEnergy()]
    return PointDataModule(root=str(folder), min_points=16, grid_size=0.002, transforms=transforms, **options)


def test_events_of_one_split_come_one_after_the_other(tmp_path):
    data = data_of(tmp_path, test=7)
    chosen = choose_events(data, EventChoice("test", 3), EventChoice("test", 2))
    assert chosen == ([0, 1, 2], [3, 4])
    assert choose_events(data, EventChoice("test", 3), EventChoice("test", None)) == ([0, 1, 2], [3, 4, 5, 6])
    assert choose_events(data, EventChoice("test", 5), EventChoice("test", 1000)) == ([0, 1, 2, 3, 4], [5, 6])


def test_shuffled_events_are_disjoint_and_fixed_by_the_seed(tmp_path):
    data = data_of(tmp_path, test=30)
    both = [choose_events(data, EventChoice("test", 12), EventChoice("test", 12), shuffle) for shuffle in (0, 0, 1)]
    assert both[0] == both[1] != both[2]
    for fit, score in both:
        assert len(fit) == len(score) == 12 and not set(fit) & set(score)
        assert set(fit + score) <= set(range(30)) and fit != sorted(fit)


def test_events_of_two_splits(tmp_path):
    data = data_of(tmp_path, train=4, test=3)
    assert choose_events(data, EventChoice("train", 3), EventChoice("test", None)) == ([0, 1, 2], [0, 1, 2])


def test_nothing_left_to_score_is_an_error(tmp_path):
    data = data_of(tmp_path, test=4)
    for events in (4, 9, None):
        with pytest.raises(ValueError, match=r"all 4 events of split 'test'.*none is left"):
            choose_events(data, EventChoice("test", events), EventChoice("test", 1))


@pytest.mark.parametrize("way", ["same file", "symbolic link", "dots"])
def test_an_event_in_both_splits_is_refused(tmp_path, way):
    """Under whatever name the file is reached."""
    path = write_events(tmp_path / "a" / "events.h5", 5)
    other = path
    if way == "symbolic link":
        other = tmp_path / "b" / "other.h5"
        other.parent.mkdir()
        other.symlink_to(path)
    elif way == "dots":
        other = tmp_path / "a" / ".." / "a" / "events.h5"
    data = open_events(tmp_path, splits={"train": str(path), "test": str(other)})
    with pytest.raises(ValueError, match=r"3 events would be both.*#0.*'train' and 'test'"):
        choose_events(data, EventChoice("train", 3), EventChoice("test", 4))


def test_same_rows_of_different_files_are_different_events(tmp_path):
    data = data_of(tmp_path, train=3, test=3)
    assert choose_events(data, EventChoice("train", 3), EventChoice("test", 3)) == ([0, 1, 2], [0, 1, 2])


def test_chosen_batches_hold_the_chosen_events(tmp_path):
    data = data_of(tmp_path, test=5)
    for size in (1, 2, 10):
        batches = list(chosen_batches(data, "test", [4, 0, 3], size))
        names = [name.rpartition("#")[2] for batch in batches for name in batch.names]
        assert names == ["4", "0", "3"] and max(b.n_events for b in batches) <= size
    whole = next(iter(data.probe_dataloader("test", 5, 5)))
    found = next(iter(chosen_batches(data, "test", [2], 1)))
    assert torch.equal(found.feat, whole.select([2]).feat)
    assert torch.equal(found.labels["pid"], whole.select([2]).labels["pid"])


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

    def spy(features, batches, labels, device):
        batches = list(batches)
        halves.append([name for batch in batches for name in batch.names])
        assert labels == ["motif"]
        return collect(features, batches, labels, device)

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
