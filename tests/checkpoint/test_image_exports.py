"""Exports of networks on pixel maps: what they say of themselves, and predictions from files, folders and lists."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toy_maps import toy_event, toy_events

from nufm.checkpoint import Pretrained, from_pretrained, model_card, save_pretrained
from nufm.checkpoint.kinds import inputs_named, inputs_of
from nufm.data.event import Event
from nufm.data.image_files import ImageReader
from nufm.data.image_hdf5 import write_maps
from nufm.data.image_png import write_png_folder
from nufm.data.image_transforms import Brightness, Rebin
from nufm.data.images import INTERACTION_NAMES, ImageEvent, View
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.se_resnet import SiameseSEResNet
from nufm.models.sparse_image import SparseImageNetwork

TRANSFORMS = (Rebin(2), Brightness())


def network() -> SiameseSEResNet:
    torch.manual_seed(0)
    model = SiameseSEResNet(channels=(4, 8), blocks=(1, 1))
    nn.init.normal_(next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)).weight)
    return model.eval()


@pytest.fixture
def export(tmp_path) -> Path:
    return save_pretrained(tmp_path / "export", network(), transforms=TRANSFORMS, task="pixelmaps")


def probabilities(found) -> np.ndarray:
    return np.stack([p.probability["interaction"] for p in found])


def test_round_trip(export):
    """The same probabilities as the network in the hand, by softmax of its logits."""
    config = json.loads((export / "config.json").read_text())
    assert config["inputs"] == "images" and config["grid_size"] is None and config["selection"] == {}
    assert config["classes"] == {"interaction": list(INTERACTION_NAMES)}
    loaded, events = from_pretrained(export), toy_events(7)
    assert loaded.inputs == "images" and not loaded.of_streams
    rng = np.random.default_rng(0)
    images = np.stack([Brightness()(Rebin(2)(e, rng), rng).image(v) for e in events for v in ("xz", "yz")])
    batch = loaded.batch(events)
    np.testing.assert_array_equal(batch.image.numpy(), images.reshape(7, 2, 16, 16))
    with torch.no_grad():
        expected = network()(batch)["interaction"].softmax(1).numpy()
    found = loaded.predict(events, batch_size=3)
    np.testing.assert_allclose(probabilities(found), expected, atol=1e-6)
    assert [p.label("interaction") for p in found] == [INTERACTION_NAMES[i] for i in expected.argmax(1)]
    assert len(set(expected.argmax(1))) > 1 or np.ptp(expected, axis=0).max() > 1e-3, "the events must differ"


def test_files_and_folders_are_read(export, tmp_path):
    loaded, events = from_pretrained(export), [*toy_events(4), toy_event(0, 9, missing="yz")]
    expected = probabilities(loaded.predict(events))
    write_maps(tmp_path / "maps.h5", events)
    from_file = loaded.predict(tmp_path / "maps.h5", batch_size=2)
    np.testing.assert_allclose(probabilities(from_file), expected, atol=1e-6)
    assert [p.name for p in from_file] == [f"{tmp_path / 'maps.h5'}#{i}" for i in range(5)]
    write_png_folder(tmp_path / "png", events)
    from_pictures = probabilities(loaded.predict(tmp_path / "png"))
    # Grey values are whole numbers out of 255, and sums of them are not those of energies: near, and no more.
    assert from_pictures.shape == (5, 3) and np.isfinite(from_pictures).all()
    np.testing.assert_allclose(from_pictures.sum(1), 1, atol=1e-5)


def test_maps_unlike_those_of_the_training_are_told(tmp_path, caplog):
    """Size, pitch and unit of files, and of readers; once for a file, and not where an export does not say."""
    said = {"maps": {"shape": [32, 32], "pitch": 5.0, "unit": "MeV", "size": 32, "centre": "vertex"}}
    place = save_pretrained(tmp_path / "e", network(), transforms=TRANSFORMS, task="pixelmaps", extra=said)
    loaded = from_pretrained(place)
    like, unlike = toy_events(3), [e.replace(pitch=2.5, unit="grey") for e in toy_events(3, size=64)]
    unknown = [e.replace(pitch=0.0) for e in like]
    for name, events in (("like", like), ("unlike", unlike), ("unknown", unknown)):
        write_maps(tmp_path / f"{name}.h5", events)

    def told(source) -> list[str]:
        caplog.clear()
        loaded.predict(source, batch_size=1)
        return [r.message for r in caplog.records if "trained on other maps" in r.message]

    assert told(tmp_path / "like.h5") == told(tmp_path / "unknown.h5") == told(like) == []
    (text,) = told(tmp_path / "unlike.h5")
    assert f"{tmp_path / 'unlike.h5'}: {loaded.source} was trained on other maps" in text
    for words in ("64 × 64 pixels in place of 32 × 32", "2.5 mm in place of 5 mm", "values in grey in place of MeV"):
        assert words in text
    assert told(ImageReader(tmp_path / "unlike.h5")) == [text]
    loaded = dataclasses.replace(loaded, extra={})
    assert told(tmp_path / "unlike.h5") == []


def test_edges(export):
    """An event without charge, without views, of one pixel; batch mates do not matter."""
    empty = View(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))
    one = View(np.array([[3, 4]], np.int32), np.ones(1, np.float32))
    odd = [
        ImageEvent({"xz": empty, "yz": empty}, (32, 32), name="empty"),
        ImageEvent({}, (32, 32), name="nothing was read out"),
        ImageEvent({"xz": one}, (32, 32), name="one pixel"),
    ]
    loaded = from_pretrained(export)
    together = probabilities(loaded.predict([*odd, *toy_events(3)]))
    alone = np.concatenate([probabilities(loaded.predict([event])) for event in odd])
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together[:3], alone, atol=1e-6)
    assert loaded.predict([]) == []


def test_other_events_and_features_are_refused(export):
    loaded = from_pretrained(export)
    points = Event(np.zeros((1, 3), np.int32), np.ones(1, np.float32), name="points")
    with pytest.raises(ValueError, match=r"takes pixel maps, found a Event; read them with nufm.data.image_files"):
        loaded.predict([points])
    features = from_pretrained(export).features(toy_event(0))
    assert features.ndim == 1 and np.isfinite(features).all()

    class Mute(nn.Module):
        inputs = "images"

    with pytest.raises(ValueError, match="a Mute has no features of events"):
        Pretrained(Mute(), ()).features(toy_event(0))


def test_what_does_not_fit_is_refused(export, tmp_path):
    with pytest.raises(ValueError, match=r"'grid_size' is 0.001 for SiameseSEResNet, a model of pixel maps"):
        save_pretrained(tmp_path / "bad", network(), transforms=[], grid_size=0.001, task="pixelmaps")
    with pytest.raises(ValueError, match="the model has 2 classes, the task 'pixelmaps' 3"):
        other = SiameseSEResNet(2, channels=(4, 8), blocks=(1, 1))
        save_pretrained(tmp_path / "bad", other, transforms=[], task="pixelmaps")
    config = json.loads((export / "config.json").read_text())
    for said, words in (
        ("streams", "'inputs' is 'streams', but a SiameseSEResNet takes images"),
        ("sounds", "'inputs' is 'sounds', expected one of points, streams, images"),
        (["images"], "expected one of points, streams, images"),
    ):
        (export / "config.json").write_text(json.dumps(config | {"inputs": said}))
        with pytest.raises(ValueError, match=words):
            from_pretrained(export)


def test_a_network_with_an_encoder_of_points_takes_maps():
    """What the network says comes before what the encoder in it would take."""
    sizes = {"depths": (1, 1), "channels": (8, 16), "heads": (1, 2), "window": 16, "mask_token": False}
    encoder = PointTransformerV3(in_channels=4, **sizes)
    sparse = SparseImageNetwork(encoder)
    assert inputs_of(encoder) == "points" and inputs_of(sparse) == "images"
    features = Pretrained(sparse, TRANSFORMS).features(toy_event(0))
    assert features.ndim == 1 and features.std() > 0

    class Wrong(nn.Module):
        inputs = "sounds"

    with pytest.raises(ValueError, match=r"Wrong.inputs is 'sounds', expected one of points, streams, images"):
        inputs_of(Wrong())


def test_exports_from_before_there_were_maps():
    assert inputs_named({"grid_size": None}) == "streams" and inputs_named({"grid_size": 0.001}) == "points"
    assert inputs_named({"grid_size": None, "inputs": "images"}) == "images"


def test_card_tells_how_it_is_used(export, tmp_path):
    """The commands of the card run."""
    loaded = from_pretrained(export)
    card = model_card(loaded, "my model")
    assert "- image-classification" in card and "Rebin(factor=2)" in card and "interaction (predicted)" in card
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(export))
    write_maps(tmp_path / "events.h5", toy_events(2))
    said: list[tuple] = []
    exec(code.replace("events.h5", str(tmp_path / "events.h5")), {"print": lambda *a: said.append(a)})
    assert [name for name, _, _ in said] == [f"{tmp_path / 'events.h5'}#{i}" for i in range(2)]


def test_an_encoder_alone_predicts_nothing(tmp_path):
    alone = Pretrained(network(), TRANSFORMS)
    with pytest.raises(ValueError, match="predicts no classes: fine-tune it first"):
        alone.predict(toy_events(1))
