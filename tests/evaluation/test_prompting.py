"""Examples in the prompt and other words, on a tiny image-text model with random weights and random adapters."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch import nn
from toy_language_models import folder, image_event

from nufm.checkpoint import Pretrained
from nufm.data.images import INTERACTION_NAMES, ImageEvent
from nufm.evaluation.prompting import (
    asked,
    class_probabilities,
    draw_examples,
    few_shot,
    markdown,
    prompt_ablation,
    vlm_of,
)
from nufm.models.vlm import VisionLanguageClassifier

CLASSES = {"interaction": list(INTERACTION_NAMES)}


@functools.lru_cache
def pretrained(rank: int = 2) -> Pretrained:
    model = VisionLanguageClassifier(folder("mllama"), "none", rank=rank, prompt="brief", dtype="float32").eval()
    generator = torch.Generator().manual_seed(3)
    for _, parameter in model.adapter_parameters():  # as if they had learnt something
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Pretrained(model, (), task="pixelmaps", classes=CLASSES, source="by hand")


def events(n: int = 9, first: int = 0) -> list[ImageEvent]:
    return [image_event(first + i, missing=i == 4, interaction=i % 3) for i in range(n)]


def test_without_examples_it_is_what_predict_says():
    made = pretrained()
    expected = [p.probability["interaction"] for p in made.predict(events(), progress=False)]
    for batch_size in (2, 9):
        found = class_probabilities(made, events(), batch_size, progress=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_frozen_base_is_the_model_without_adapters():
    made, bare = pretrained(), pretrained(0)
    with made.model.frozen_base():
        frozen = class_probabilities(made, events(), 4, progress=False)
    np.testing.assert_allclose(frozen, class_probabilities(bare, events(), 4, progress=False), atol=1e-5)
    assert np.abs(frozen - class_probabilities(made, events(), 4, progress=False)).max() > 1e-3


def test_examples_are_one_of_each_class_with_the_answer_that_is_taught():
    made = pretrained()
    training = events(30, first=100)
    drawn = draw_examples(made, training, np.random.default_rng(1))
    assert sorted(int(event.truth["interaction"]) for event, _ in drawn) == [0, 1, 2]
    prompt = made.model.composer.prompt
    for event, example in drawn:
        assert example.answer == f"{prompt.answer} {prompt.labels[int(event.truth['interaction'])]}."
        torch.testing.assert_close(example.image, made.batch([event]).image[0])
    again = draw_examples(made, training, np.random.default_rng(1))
    assert [e.name for e, _ in again] == [e.name for e, _ in drawn]
    others = {tuple(e.name for e, _ in draw_examples(made, training, np.random.default_rng(s))) for s in range(8)}
    assert len(others) > 4
    with pytest.raises(ValueError, match=r"have no NC .*expected one of each class"):
        draw_examples(made, [e for e in training if int(e.truth["interaction"]) < 2], np.random.default_rng(0))


def test_few_shot():
    made = pretrained()
    found = few_shot(made, events(12, first=50), events(), draws=2, seed=4, progress=False)
    assert [row["words"].split(",")[0] for row in found["rows"]] == ["trained", *["frozen base"] * 3]
    assert found["events"] == 9 and found["support"] == [3, 3, 3]
    assert all(sum(row["predicted"]) == 9 for row in found["rows"])
    trained, zero, first, second = found["rows"]
    assert "accuracy_change" not in trained and zero["accuracy_change"] == zero["accuracy"] - trained["accuracy"]
    assert len({zero["nll"], first["nll"], second["nll"]}) == 3  # the examples are read
    assert set(first["examples"]) <= {e.name for e in events(12, first=50)} and len(first["examples"]) == 3
    again = few_shot(made, events(12, first=50), events(), batch_size=3, draws=2, seed=4, progress=False)
    assert again["rows"][2]["nll"] == pytest.approx(first["nll"], rel=1e-4)
    text = markdown(found | {"simulated": True})
    assert "36.8" in text and "draw 2" in text and "9 events, simulated by nufm: 3 νµ CC" in text


def test_prompt_ablation_and_the_model_is_left_as_it_was():
    made = pretrained()
    composer, labels = made.model.composer, made.model.labels
    found = prompt_ablation(made, events(), ["brief", "bare", "physics"], progress=False)
    assert [row["words"] for row in found["rows"]] == ["brief, as in training", "bare", "physics"]
    own, bare, physics = found["rows"]
    assert own["tokens"] < bare["tokens"] < physics["tokens"]
    assert len({own["nll"], bare["nll"], physics["nll"]}) == 3
    assert made.model.composer is composer and made.model.labels is labels
    scores = class_probabilities(made, events(), 9, progress=False)
    truth = np.arange(9) % 3
    assert own["accuracy"] == pytest.approx((scores.argmax(1) == truth).mean())
    assert "as in training" in markdown(found) and "tokens" in markdown(found)
    with pytest.raises(FileNotFoundError, match="prompt 'poetry'"):
        prompt_ablation(made, events(), ["poetry"], progress=False)
    with pytest.raises(RuntimeError, match="stop"), asked(made.model, "bare"):
        assert made.model.composer.prompt.name == "bare"
        raise RuntimeError("stop")
    assert made.model.composer is composer and made.model.labels is labels


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match=r"cnn: a Identity is asked nothing.*image-text model"):
        vlm_of(Pretrained(nn.Identity(), (), source="cnn"))
    unlabelled = [event.replace(truth={"interaction": np.int64(-1)}) for event in events(2)]
    with pytest.raises(ValueError, match="none of the 2 events has a known 'interaction'"):
        prompt_ablation(pretrained(), unlabelled, ["bare"], progress=False)


def test_a_kept_temperature_is_that_of_the_trained_model_and_is_said():
    """The trained rows are what predict() says; the frozen base, which nobody calibrated, stays as it is."""
    plain = pretrained()
    kept = dataclasses.replace(plain, extra={"temperature": {"interaction": 2.5}})
    expected = [p.probability["interaction"] for p in kept.predict(events(), progress=False)]
    np.testing.assert_allclose(class_probabilities(kept, events(), 4, progress=False), expected, atol=1e-5)
    settings = {"draws": 1, "seed": 4, "progress": False}
    before, after = (few_shot(made, events(12, first=50), events(), **settings) for made in (plain, kept))
    truth = np.arange(9) % 3
    assert after["rows"][0]["nll"] == pytest.approx(-np.log(np.stack(expected)[np.arange(9), truth]).mean(), rel=1e-3)
    assert after["rows"][0]["nll"] != pytest.approx(before["rows"][0]["nll"], rel=1e-3)
    for one, other in zip(before["rows"][1:], after["rows"][1:], strict=True):
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-6)
    assert "interaction: T = 2.500). The frozen base is scored without it." in markdown(after)
    assert "calibrated with" not in markdown(before)
