"""Networks with a task on disk, and what they predict from a raw file: row by row, whatever the transforms drop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from encoders import GENUINE

import nufm
from nufm.checkpoint import (
    Pretrained,
    from_pretrained,
    load_predictions,
    save_predictions,
    save_pretrained,
    untrained_twin,
)
from nufm.data.event import MOTIF_NAMES, PID_NAMES, Event, PointBatch
from nufm.data.pilarnet import PILArNetReader
from nufm.data.transforms import GridSample, LogEnergy, NormalizeCoord, WithoutLED, event_transforms
from nufm.models.detector import Detector
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.segmenter import Decoder, Segmenter
from nufm.models.token_encoder import TokenEncoder
from nufm.models.token_segmenter import TokenSegmenter
from nufm.models.tokens import Tokenizer
from nufm.models.uresnet import UResNet

KINDS = ("segmenter", "probe", "uresnet", "particle", "interaction")


def network(kind: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    if kind == "uresnet":
        return UResNet(columns=("log_energy",), filters=4, depth=3, repetitions=1).eval()
    encoder = PointTransformerV3(
        depths=(1, 1), channels=(16, 32), heads=(1, 2), window=64, layer_scale=1.0, mask_token=False
    )
    if kind == "particle":
        return Detector(encoder, n_queries=6, width=32, heads=2, depth=2, momentum=True).eval()
    if kind == "interaction":
        return Detector(
            encoder, n_queries=3, n_classes=2, stuff_class=0, width=32, heads=2, two_layer_projections=False
        ).eval()
    decoder = Decoder((16, 32), (1,), (16,), (1,), layer_scale=1.0) if kind == "segmenter" else None
    return Segmenter(encoder, decoder, 5).eval()


def task_of(kind: str) -> str:
    return kind if kind in ("particle", "interaction") else "motif"


def exported(folder: Path, kind: str = "segmenter", **changes: object) -> Path:
    settings = {"transforms": event_transforms(), "grid_size": 0.001, "task": task_of(kind)} | changes
    return save_pretrained(folder / "export", network(kind), **settings)


def event_of(voxel: np.ndarray, name: str = "hand-made") -> Event:
    voxel = np.asarray(voxel, dtype=np.int32).reshape(-1, 3)
    return Event(voxel=voxel, energy=np.ones(len(voxel), np.float32), name=name)


@pytest.fixture(scope="module")
def genuine() -> Event:
    return PILArNetReader(GENUINE, min_points=0)[0]


# ---- exports of networks with a task ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, tmp_path, genuine) -> None:
    loaded = from_pretrained(exported(tmp_path, kind, selection={"energy_threshold": 0.2}))
    batch = loaded.batch([genuine])
    with torch.no_grad():
        expected, found = network(kind).predict(batch), loaded.model.predict(batch)
    for field in dataclasses.fields(expected):
        a, b = getattr(expected, field.name), getattr(found, field.name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a.nan_to_num(), b.nan_to_num())
    assert loaded.task == task_of(kind) and loaded.energy_threshold == 0.2
    assert not loaded.model.training and type(loaded.model) is type(network(kind))
    own, twin = network(kind, 3), untrained_twin(loaded.model, 3)
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), twin.state_dict().values(), strict=True))


def test_classes_and_description(tmp_path) -> None:
    folder = exported(tmp_path, "interaction")
    config = json.loads((folder / "config.json").read_text())
    assert config["format_version"] == 2 and config["task"] == "interaction"
    inner = config["model"]["init_args"]["encoder"]
    assert inner["class_path"] == "nufm.models.ptv3.PointTransformerV3" and inner["init_args"]["channels"] == [16, 32]
    loaded = from_pretrained(folder)
    assert loaded.class_names == ("background", "interaction")
    assert loaded.encoder is loaded.model.encoder
    assert loaded.features(event_of([[1, 2, 3], [1, 2, 4]])).shape == (2, 48)


def test_memory_order_of_convolutions_survives(tmp_path) -> None:
    """Kernels read the taps one after the other: a loaded model must not be slower than the one that was saved."""
    ours, loaded = network("segmenter"), from_pretrained(exported(tmp_path)).model
    for (name, a), b in zip(ours.named_parameters(), loaded.parameters(), strict=True):
        assert a.stride() == b.stride(), name


def test_version_1_is_still_read(tmp_path, genuine) -> None:
    """As nufm wrote it before networks with a task could be exported."""
    folder = save_pretrained(tmp_path, network("probe").encoder, transforms=event_transforms(), grid_size=0.001)
    expected = from_pretrained(folder).features(genuine)
    config = json.loads((folder / "config.json").read_text())
    config["encoder"] = config.pop("model")
    config.update(format="nufm-encoder", format_version=1)
    for name in ("task", "selection"):
        config.pop(name)
    (folder / "config.json").write_text(json.dumps(config))
    loaded = from_pretrained(folder)
    np.testing.assert_array_equal(loaded.features(genuine), expected)
    assert loaded.task is None and loaded.energy_threshold == 0.13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(task="pid"), "5 classes, the task 'pid' 6"),
        (lambda c: c.update(task="tracks"), "field 'task' is 'tracks'"),
        (lambda c: c.pop("task"), "field 'task' is None|'task'"),
        (lambda c: c["classes"].update(motif=["a", "b"]), "5 classes, the task 'motif' 2"),
        (lambda c: c["classes"].update(motif=5), "field 'classes'"),
        (lambda c: c.update(selection={"energy_threshold": -1}), "field 'selection'"),
        (lambda c: c.update(selection={"min_points": 3}), "field 'selection'"),
        (lambda c: c["model"]["init_args"].update(n_classes=6), r"wrong shape: head"),
        (lambda c: c["model"]["init_args"]["encoder"].update(class_path="os.system"), "not allowed"),
        (lambda c: c["model"]["init_args"]["encoder"]["init_args"].update(window={"a": 1}), "argument 'window'"),
        (lambda c: c["model"]["init_args"].update(encoder=7), "cannot be built"),
        (lambda c: c["model"]["init_args"].update(encoder=[{"class_path": "os.system", "init_args": {}}]), "'encoder'"),
        (
            lambda c: c["model"]["init_args"].update(
                encoder={"class_path": "nufm.models.uresnet.UResNet", "init_args": {}}
            ),
            "cannot be built",
        ),
        (lambda c: c["transforms"][0].update(init_args={"centre": c["model"]}), "argument 'centre'"),
    ],
)
def test_bad_configs_are_refused(change, message, tmp_path) -> None:
    folder = exported(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)


def test_models_without_end_are_refused(tmp_path) -> None:
    folder = exported(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    model = config["model"]
    for _ in range(50):
        model = {"class_path": model["class_path"], "init_args": {"encoder": model}}
    config["model"] = model
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="deep"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("segmenter", lambda a: a["encoder"]["init_args"].update(depths=[10**7, 1]), "depths.* 10000002 blocks"),
        ("segmenter", lambda a: a["decoder"]["init_args"].update(depths=[10**12]), "1000000000002 blocks"),
        ("particle", lambda a: a.update(depth=10**9), "1000000002 blocks"),
        ("uresnet", lambda a: a.update(repetitions=10**7), "30000000 blocks"),
        ("uresnet", lambda a: a.update(depth=50, repetitions=50), "2500 blocks, expected at most one for each of the"),
    ],
)
def test_models_of_any_size_are_refused(kind, change, message, tmp_path) -> None:
    """Before they are built, which would take days: without memory is not without time."""
    folder = exported(tmp_path, kind)
    config = json.loads((folder / "config.json").read_text())
    change(config["model"]["init_args"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        from_pretrained(folder)


def test_a_task_that_does_not_fit_is_not_read(tmp_path) -> None:
    for kind, task, message in (
        ("particle", "pid", "'pid' is semantic, Detector is panoptic"),
        ("particle", "particle", "stuff_class of the model is 0, expected 5"),
        ("interaction", "interaction", "stuff_class of the model is 1, expected 0"),
    ):
        folder = exported(tmp_path / f"{kind} {task}", kind)
        config = json.loads((folder / "config.json").read_text())
        config["task"] = task
        if task == kind:
            config["model"]["init_args"]["stuff_class"] = 0 if kind == "particle" else 1
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
            from_pretrained(folder)


def test_a_task_that_does_not_fit_is_not_written(tmp_path) -> None:
    settings = {"transforms": event_transforms(), "grid_size": 0.001}
    for model, task, message in (
        (network("segmenter"), "pid", "5 classes, the task 'pid' 6"),
        (network("segmenter"), "tracks", "unknown task"),
        (network("segmenter").encoder, "motif", "predicts no classes"),
        (Segmenter(network("segmenter").encoder, None, 6), "particle", "'particle' is panoptic, Segmenter is semantic"),
        (network("particle"), "pid", "'pid' is semantic, Detector is panoptic; expected one of particle, interaction"),
        (Detector(network("probe").encoder, 6, stuff_class=0, width=32, heads=2), "particle",
         r"stuff_class of the model is 0, expected 5 \(none\)"),
    ):
        with pytest.raises(ValueError, match=message):
            save_pretrained(tmp_path / "e", model, task=task, **settings)
    for selection in ({"min_points": 3}, {"energy_threshold": "low"}, {"energy_threshold": -0.1}):
        with pytest.raises(ValueError, match="field 'selection'"):
            save_pretrained(tmp_path / "e", network("segmenter"), selection=selection, **settings)
    assert not (tmp_path / "e").exists()


# ---- prediction ---------------------------------------------------------------------------------------------


def test_predicting_from_a_raw_file_is_one_call(tmp_path, genuine) -> None:
    predictions = nufm.from_pretrained(exported(tmp_path)).predict(GENUINE)
    assert len(predictions) == 1
    found = predictions[0]
    batch = from_pretrained(tmp_path / "export").batch([genuine])
    with torch.no_grad():
        probability = network("segmenter")(batch).softmax(1).numpy()
    np.testing.assert_array_equal(found.voxel, genuine.voxel)
    np.testing.assert_allclose(found.probability, probability, atol=1e-6)
    np.testing.assert_array_equal(found.label, probability.argmax(1))
    assert found.classes == MOTIF_NAMES and found.name == genuine.name
    assert len(set(found.label.tolist())) > 1  # random weights, but more than one class


def test_the_file_is_read_with_the_exports_own_selection(tmp_path) -> None:
    for threshold in (0.0, 0.13, 1.0):
        folder = exported(tmp_path / str(threshold), selection={"energy_threshold": threshold})
        found = from_pretrained(folder).predict(GENUINE)[0]
        with h5py.File(GENUINE) as file:
            energy = file["point"][0].reshape(-1, 8)[:, 3]
        assert len(found) == int((energy > threshold).sum()) and found.energy.min() > threshold


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_tiny_events(kind, tmp_path, genuine) -> None:
    """One result per event, in order, whatever else is in the batch."""
    loaded = from_pretrained(exported(tmp_path, kind))
    events = [
        event_of(np.zeros((0, 3)), "empty"),
        event_of([[5, 6, 7]], "one voxel"),
        genuine.select(np.arange(300)),
        event_of(np.zeros((0, 3)), "empty again"),
        event_of([[1, 1, 1], [700, 2, 3]], "two"),
    ]
    together = loaded.predict(events, batch_size=5, progress=False)
    assert [len(p) for p in together] == [0, 1, 300, 0, 2]
    assert [p.name for p in together] == [e.name for e in events]
    for event, found in zip(events, together, strict=True):
        alone = loaded.predict([event])[0]
        np.testing.assert_array_equal(found.label, alone.label)
        np.testing.assert_allclose(found.confidence, alone.confidence, atol=1e-5)
        assert (found.instance is None) == (kind not in ("particle", "interaction"))
        if found.instance is not None:
            np.testing.assert_array_equal(found.instance, alone.instance)
    assert loaded.predict([]) == []
    assert [len(p) for p in loaded.predict(events[:1])] == [0]


def test_dropped_voxels_take_the_nearest_kept_ones_prediction(tmp_path, genuine) -> None:
    transforms = [NormalizeCoord(), LogEnergy(), GridSample(0.01)]
    loaded = from_pretrained(exported(tmp_path, transforms=transforms, grid_size=0.01))
    found = loaded.predict([genuine])[0]
    numbered = genuine.replace(particle=np.arange(len(genuine)))
    for transform in transforms:
        numbered = transform(numbered, np.random.default_rng(genuine.seed))
    kept = numbered.particle
    assert len(kept) < 0.7 * len(genuine)
    with torch.no_grad():
        probability = network("segmenter")(PointBatch.from_events([numbered], 0.01)).softmax(1).numpy()
    np.testing.assert_allclose(found.probability[kept], probability, atol=1e-6)
    distance = np.linalg.norm(genuine.voxel[:, None] - genuine.voxel[kept][None], axis=-1)  # brute force
    for row in np.setdiff1d(np.arange(len(genuine)), kept):
        nearest = np.flatnonzero(distance[row] == distance[row].min())
        assert any(np.array_equal(found.probability[row], found.probability[kept[n]]) for n in nearest)


def test_the_truth_of_the_event_is_not_needed_nor_read(tmp_path, genuine) -> None:
    bare = Event(voxel=genuine.voxel, energy=genuine.energy, name=genuine.name)
    loaded = from_pretrained(exported(tmp_path, "particle"))
    a, b = loaded.predict([bare])[0], loaded.predict([genuine])[0]
    for field in ("label", "instance", "confidence", "momentum"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_modes_come_back_after_predicting(tmp_path, genuine) -> None:
    loaded = from_pretrained(exported(tmp_path))
    loaded.model.train()
    loaded.model.encoder.eval()  # as in training with a frozen encoder
    before = [m.training for m in loaded.model.modules()]
    loaded.predict([genuine.select(np.arange(50))])
    assert [m.training for m in loaded.model.modules()] == before and any(before) and not all(before)
    assert all(p.grad is None for p in loaded.model.parameters())


def test_an_encoder_alone_predicts_nothing(tmp_path, genuine) -> None:
    folder = save_pretrained(tmp_path, network("probe").encoder, transforms=event_transforms(), grid_size=0.001)
    loaded = from_pretrained(folder)
    with pytest.raises(ValueError, match=r"holds an encoder.*fine-tune it first"):
        loaded.predict([genuine])
    with pytest.raises(ValueError, match="holds an encoder"):
        loaded.predict_each([genuine])  # at the call, not at the first event
    with pytest.raises(ValueError, match="holds an encoder"):
        _ = loaded.class_names


def test_bad_sources(tmp_path, genuine) -> None:
    loaded = from_pretrained(exported(tmp_path))
    with pytest.raises(FileNotFoundError, match="not there"):
        loaded.predict(tmp_path / "none.h5")
    with pytest.raises(ValueError, match="batch_size is 0"):
        loaded.predict([genuine], batch_size=0)
    uresnet = from_pretrained(exported(tmp_path / "u", "uresnet"))
    with pytest.raises(ValueError, match="UResNet has no features"):
        uresnet.features(genuine)


# ---- files of predictions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["segmenter", "particle"])
def test_predictions_survive_a_file(kind, tmp_path, genuine) -> None:
    loaded = from_pretrained(exported(tmp_path, kind))
    events = [event_of(np.zeros((0, 3)), "empty"), genuine, event_of([[1, 2, 3]], "one")]
    path = save_predictions(loaded.predict_each(events, batch_size=1), tmp_path / "out" / "p.h5", loaded.source)
    assert [p.name for p in path.parent.iterdir()] == ["p.h5"]
    expected, found = loaded.predict(events, batch_size=1), load_predictions(path)
    assert len(found) == 3
    for a, b in zip(expected, found, strict=True):
        assert (a.name, a.classes) == (b.name, b.classes)
        for field in ("voxel", "energy", "label", "confidence", "probability", "instance", "momentum"):
            x, y = getattr(a, field), getattr(b, field)
            assert (x is None) == (y is None), field
            if x is not None:
                np.testing.assert_array_equal(x, y)
    with h5py.File(path) as file:  # as someone without nufm reads it
        assert file.attrs["format"] == "nufm-predictions" and file["energy"].attrs["unit"] == "MeV"
        assert tuple(file.attrs["classes"]) == (PID_NAMES if kind == "particle" else MOTIF_NAMES)
        begin, end = file["offsets"][1:3]
        np.testing.assert_array_equal(file["voxel"][begin:end], genuine.voxel)
        assert ("momentum" in file) == (kind == "particle")


def test_bad_files_of_predictions(tmp_path, genuine) -> None:
    one = from_pretrained(exported(tmp_path / "a")).predict([genuine.select(np.arange(5))])
    two = from_pretrained(exported(tmp_path / "b", "particle")).predict([genuine.select(np.arange(5))])
    path = tmp_path / "p.h5"
    with pytest.raises(ValueError, match="no predictions"):
        save_predictions([], path)
    with pytest.raises(ValueError, match="its own file"):
        save_predictions([*one, *two], path)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]
    with pytest.raises(ValueError, match="attribute 'format'"):
        load_predictions(GENUINE)
    path.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        load_predictions(path)
    with pytest.raises(FileNotFoundError):
        load_predictions(tmp_path / "none.h5")


def test_an_event_of_which_nothing_is_kept_is_unknown_and_stands_in_its_place():
    """A transform may drop a whole event, as WithoutLED one of low-energy deposits alone."""
    encoder = TokenEncoder(Tokenizer(), channels=16, depth=1, heads=2, feature_blocks=(0,))
    transforms = (NormalizeCoord(), LogEnergy(0.13), WithoutLED())
    model = Pretrained(TokenSegmenter(encoder, n_classes=4), transforms, 0.0015035, task="motif4")
    voxel = np.arange(30, dtype=np.int32).reshape(10, 3)
    energy = np.ones(10, np.float32)
    events = [Event(voxel, energy, motif=np.full(10, motif)) for motif in (1, 4, 0)]
    found = model.predict(events, progress=False)
    assert [len(f.label) for f in found] == [10, 10, 10]
    assert set(found[1].label) == {-1} and set(found[1].confidence) == {0.0}
    for i in (0, 2):
        assert (found[i].label >= 0).all() and (found[i].confidence > 0).all()


def test_weights_that_see_batch_mates_get_one_event_at_a_time():
    """Else what is predicted for an event would depend on ``batch_size``."""
    rng = np.random.default_rng(0)
    events = [
        Event(rng.integers(0, 60, (n, 3)).astype(np.int32), rng.exponential(1, n).astype(np.float32), name=str(n))
        for n in (80, 200, 40)
    ]
    torch.manual_seed(0)
    encoder = TokenEncoder(Tokenizer(), channels=16, depth=2, heads=2, feature_blocks=(1,), norm="batch_global")
    transforms = (NormalizeCoord(), LogEnergy(0.13))
    model = Pretrained(TokenSegmenter(encoder, n_classes=4), transforms, 0.0015035, task="motif4")
    together = model.predict(events, batch_size=8, progress=False)
    alone = model.predict(events, batch_size=1, progress=False)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.probability, b.probability)
