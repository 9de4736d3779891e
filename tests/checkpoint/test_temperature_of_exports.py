"""A temperature that is kept in an export: what it does to probabilities, and to nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.checkpoint.temperature import calibrated, keep_temperature, tempered
from nufm.data.image_transforms import Brightness
from nufm.data.images import ImageEvent, View
from nufm.models.se_resnet import SiameseSEResNet


def test_tempered_probabilities_are_the_softmax_of_the_divided_logits():
    z = np.random.default_rng(0).normal(0, 3, (20, 4))
    np.testing.assert_allclose(tempered(softmax(z, axis=1), 2.5), softmax(z / 2.5, axis=1), rtol=1e-9)
    np.testing.assert_allclose(tempered(softmax(z, axis=1), 1.0), softmax(z, axis=1), rtol=1e-12)
    sure = tempered(np.array([1.0, 0.0]), 3.0)
    assert sure.sum() == pytest.approx(1.0) and np.isfinite(sure).all()


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), "1", None])
def test_what_is_no_temperature(wrong):
    with pytest.raises(ValueError, match="expected a positive number"):
        tempered(np.array([0.5, 0.5]), wrong)


def test_labels_without_one_stay_as_they_are():
    p = {"interaction": np.float32([[0.8, 0.2]]), "mode": np.float32([[0.6, 0.4]])}
    found = calibrated(p, {"temperature": {"interaction": 2.0}})
    np.testing.assert_allclose(found["interaction"], [[2 / 3, 1 / 3]], rtol=1e-6)  # √0.8 : √0.2
    assert found["mode"] is p["mode"] and found["interaction"].dtype == np.float32
    assert calibrated(p, {})["interaction"] is p["interaction"]
    with pytest.raises(ValueError, match=r"extra\.temperature is 3"):
        calibrated(p, {"temperature": 3})


def event(number: int) -> ImageEvent:
    image = np.random.default_rng(number).random((32, 32)).astype(np.float32)
    return ImageEvent({"xz": View.of_image(image), "yz": View.of_image(image[::-1])}, (32, 32), name=f"made {number}")


@pytest.fixture
def export(tmp_path):
    torch.manual_seed(0)
    model = SiameseSEResNet(channels=(8, 16), blocks=(1, 1)).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)  # far from equal probabilities
    return save_pretrained(tmp_path / "export", model, transforms=[Brightness()], task="pixelmaps", extra={"steps": 3})


def test_an_export_keeps_it_and_predicts_with_it(export):
    events, weights = [event(0), event(1)], load_file(export / "model.safetensors")
    before = [p.probability["interaction"] for p in from_pretrained(export).predict(events)]
    written = keep_temperature(export, "interaction", 4.0)
    assert written == export / "config.json" and json.loads(written.read_text())["extra"]["steps"] == 3
    loaded = from_pretrained(export)
    after = [p.probability["interaction"] for p in loaded.predict(events)]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, softmax(np.log(one.astype(np.float64)) / 4.0), rtol=1e-4)
        assert one.argmax() == other.argmax() and other.max() < one.max()
    assert loaded.extra["temperature"] == {"interaction": 4.0}
    assert all(torch.equal(v, weights[k]) for k, v in load_file(export / "model.safetensors").items())
    # The network's own answer is not touched: a temperature that is fitted again is not one on top of the other.
    keep_temperature(export, "interaction", 1.0)
    again = [p.probability["interaction"] for p in from_pretrained(export).predict(events)]
    np.testing.assert_allclose(again, before, rtol=1e-5)


def test_no_export_and_no_temperature(export, tmp_path):
    with pytest.raises(FileNotFoundError):
        keep_temperature(tmp_path / "none", "interaction", 2.0)
    with pytest.raises(ValueError, match="expected a positive number"):
        keep_temperature(export, "interaction", -2.0)
    assert "temperature" not in json.loads((export / "config.json").read_text())["extra"]
