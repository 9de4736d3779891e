"""Exports of image-text models: adapters alone, on the base that they were trained on and on no other."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from toy_language_models import folder, image_event

import nufm
from nufm.checkpoint import save_pretrained
from nufm.checkpoint.adapters import on_base
from nufm.commands.tiny_vlm import make_tiny_vlm
from nufm.data.image_transforms import Brightness
from nufm.data.prompts import FOLDER
from nufm.evaluation.prompting import asked
from nufm.models.vlm import VisionLanguageClassifier

EVENTS = [image_event(0), image_event(1, missing=True), image_event(2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base of our own, which tests may move."""
    return shutil.copytree(folder("mllama"), tmp_path_factory.mktemp("bases") / "mine")


@pytest.fixture(scope="module")
def export(base, tmp_path_factory):
    torch.manual_seed(0)
    model = VisionLanguageClassifier(str(base), quantization="nf4", prompt="brief", rank=2).eval()
    with torch.no_grad():
        for _, parameter in model.adapter_parameters():
            parameter.normal_(0, 0.2)
    place = tmp_path_factory.mktemp("run") / "export"
    save_pretrained(place, model, transforms=[Brightness()], task="pixelmaps", units={"energy": "MeV"})
    return model, place


def probabilities(pretrained) -> np.ndarray:
    return np.stack([p.probability["interaction"] for p in pretrained.predict(EVENTS, progress=False)])


def test_an_export_is_the_adapters_the_prompt_the_classes_and_the_name_of_the_base(export, base):
    model, place = export
    with safe_open(place / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        n = sum(file.get_tensor(name).numel() for name in names)
    assert names == {name for name, _ in model.adapter_parameters()}
    assert n == sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = json.loads((place / "config.json").read_text())
    arguments = config["model"]["init_args"]
    assert arguments["base"] == str(base) and arguments["prompt"] == "brief" and arguments["rank"] == 2
    assert arguments["base_id"].startswith("mine:mllama:")
    assert config["classes"] == {"interaction": ["νµ CC", "νe CC", "NC"]}
    assert config["inputs"] == "images"
    assert [t["class_path"] for t in config["transforms"]] == ["nufm.data.image_transforms.Brightness"]


def test_a_loaded_export_says_the_same(export):
    model, place = export
    loaded = nufm.from_pretrained(place)
    assert [type(t) for t in loaded.transforms] == [Brightness]
    with torch.no_grad():
        wanted = model.predict(loaded.batch(EVENTS)).probability["interaction"].numpy()
    np.testing.assert_allclose(probabilities(loaded), wanted, rtol=1e-4)
    explained = [str(a) for a in loaded.model.explain(loaded.batch(EVENTS), max_new_tokens=8)]
    assert explained == [str(a) for a in model.explain(loaded.batch(EVENTS), max_new_tokens=8)]
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.adapter_parameters()}


def test_words_of_the_prompt_are_those_of_the_training_whatever_their_file_says_now(base, tmp_path):
    """The classes would even change places: their labels are lines of the file."""
    template = tmp_path / "mine.txt"
    text = (FOLDER / "brief.txt").read_text()
    template.write_text(text)
    torch.manual_seed(0)
    model = VisionLanguageClassifier(str(base), quantization="none", prompt=str(template), rank=2).eval()
    with torch.no_grad():
        for _, parameter in model.adapter_parameters():
            parameter.normal_(0, 0.2)
    place = save_pretrained(tmp_path / "export", model, transforms=[Brightness()], task="pixelmaps")
    wanted = probabilities(nufm.from_pretrained(place))
    kept = json.loads((place / "config.json").read_text())["model"]["init_args"]
    assert kept["prompt"] == str(template) and kept["prompt_text"] == text
    swapped = text.replace("muon neutrino CC\nelectron neutrino CC", "electron neutrino CC\nmuon neutrino CC")
    assert swapped != text
    template.write_text(swapped)
    loaded = nufm.from_pretrained(place)
    np.testing.assert_array_equal(probabilities(loaded), wanted)
    with asked(loaded.model, str(template)):  # its own words are no others
        np.testing.assert_array_equal(probabilities(loaded), wanted)
    again = nufm.from_pretrained(save_pretrained(tmp_path / "again", loaded.model, transforms=[Brightness()]))
    assert again.model.prompt == model.prompt and again.model.prompt.name == "mine"
    template.unlink()
    np.testing.assert_array_equal(probabilities(nufm.from_pretrained(place)), wanted)


def test_exports_that_do_not_keep_their_words_read_the_file(export, tmp_path):
    copied = shutil.copytree(export[1], tmp_path / "export")
    config = json.loads((copied / "config.json").read_text())
    del config["model"]["init_args"]["prompt_text"]
    (copied / "config.json").write_text(json.dumps(config))
    wanted = probabilities(nufm.from_pretrained(export[1]))
    np.testing.assert_array_equal(probabilities(nufm.from_pretrained(copied)), wanted)


def test_without_its_adapters_it_would_say_something_else(export):
    place = export[1]
    loaded = nufm.from_pretrained(place)
    said = np.log(probabilities(loaded))
    with loaded.model.frozen_base():
        base_says = np.log(probabilities(loaded))
    assert np.abs(said - base_says).max() > 0.1
    np.testing.assert_allclose(np.log(probabilities(loaded.untrained())), base_says, atol=1e-3)  # they begin at 0


def test_features_are_refused_in_words(export):
    with pytest.raises(ValueError, match=r"has no features of events to show.*use predict\(\)"):
        nufm.from_pretrained(export[1]).features(EVENTS[0])


def test_loading_draws_no_random_numbers(export):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    nufm.from_pretrained(export[1])
    assert torch.equal(torch.rand(3), wanted)


def test_another_base_is_refused_with_both_names(export, tmp_path):
    other = make_tiny_vlm(tmp_path / "stranger", "mllama", 1, 32)
    with pytest.raises(ValueError, match=r"another base: found stranger:mllama:\w+, expected mine:mllama:\w+"):
        nufm.from_pretrained(export[1], base=other)
    smaller = make_tiny_vlm(tmp_path / "idefics", "idefics3", 0, 32)
    with pytest.raises(ValueError, match="do not fit the model"):
        nufm.from_pretrained(export[1], base=smaller)


def test_a_base_that_was_moved_is_found_where_it_is_said_to_be(export, tmp_path):
    model, place = export
    wanted = probabilities(nufm.from_pretrained(place))
    copied = shutil.copytree(place, tmp_path / "export")
    config = json.loads((copied / "config.json").read_text())
    config["model"]["init_args"]["base"] = str(tmp_path / "gone")
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, FileNotFoundError), match=r"gone: no such folder"):
        nufm.from_pretrained(copied)
    moved = nufm.from_pretrained(copied, base=model.arguments["base"])
    np.testing.assert_allclose(probabilities(moved), wanted, rtol=1e-5)


def test_a_relative_base_is_looked_for_above_the_export(export, base, tmp_path, monkeypatch):
    """runs/tiny_mllama of a run in runs/…, loaded from elsewhere."""
    copied = shutil.copytree(export[1], tmp_path / "runs" / "one" / "export")
    shutil.copytree(base, tmp_path / "runs" / "mine")
    config = json.loads((copied / "config.json").read_text())
    config["model"]["init_args"]["base"] = "runs/mine"
    (copied / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path / "runs" / "one")
    loaded = nufm.from_pretrained(copied)
    assert loaded.model.arguments["base"] == str(tmp_path / "runs" / "mine")


def test_what_has_no_base_takes_none(tmp_path):
    model = {"class_path": "nufm.models.se_resnet.SiameseSEResNet", "init_args": {}}
    assert on_base({"model": model}, None, "x") == {"model": model}
    with pytest.raises(ValueError, match=r"config.json: holds nufm.*SiameseSEResNet, which has no base"):
        on_base({"model": model}, "there", "config.json")


@pytest.mark.parametrize("field", ["base", "base_id"])
def test_adapters_that_do_not_say_their_base_are_refused(export, tmp_path, field):
    copied = shutil.copytree(export[1], tmp_path / "export")
    config = json.loads((copied / "config.json").read_text())
    config["model"]["init_args"][field] = None
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config.json: argument '{field}' is None, expected a name"):
        nufm.from_pretrained(copied)


def test_an_export_cannot_ask_for_code(export, tmp_path):
    copied = shutil.copytree(export[1], tmp_path / "export")
    config = json.loads((copied / "config.json").read_text())
    config["model"]["init_args"]["trust_remote_code"] = True
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no argument 'trust_remote_code'"):
        nufm.from_pretrained(copied)
