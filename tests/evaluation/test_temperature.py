"""Fitted temperatures against scipy's search and events whose temperature is known; calibration before and after."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torch import nn

from nufm.checkpoint import Pretrained
from nufm.data.image_transforms import Brightness
from nufm.data.images import INTERACTION_NAMES, ImageBatch, ImageEvent, View
from nufm.data.prediction import StreamPrediction
from nufm.evaluation.temperature import (
    LEAST,
    MOST,
    calibration_study,
    event_logits,
    fit_temperature,
    markdown,
)


def sampled(n: int, sharpened: float, seed: int = 0, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and classes drawn with the probabilities of logits / ``sharpened``."""
    draw = np.random.default_rng(seed)
    z = draw.normal(0, 1.5, (n, classes))
    target = [draw.choice(classes, p=row) for row in softmax(z, axis=1)]
    return torch.from_numpy(z * sharpened).float(), torch.tensor(target)


@pytest.mark.parametrize("sharpened", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_it_is_the_minimum_that_scipy_finds(sharpened, classes):
    z, target = sampled(300, sharpened, classes=classes)

    def nll(log_t: float) -> float:
        return -log_softmax(z.double().numpy() / np.exp(log_t), axis=1)[np.arange(300), target].mean()

    best = minimize_scalar(nll, bounds=(-4.6, 4.6), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(z, target)
    assert found.temperature == pytest.approx(np.exp(best.x), rel=1e-4)
    assert found.nll == pytest.approx(best.fun, abs=1e-9) and found.nll_before == pytest.approx(nll(0.0), abs=1e-9)
    assert found.nll <= found.nll_before and not found.bounded and found.events == 300


def test_it_finds_how_much_too_sure_the_logits_are():
    assert fit_temperature(*sampled(40000, 2.5)).temperature == pytest.approx(2.5, rel=0.03)


def test_log_probabilities_do_as_well_and_unknown_events_do_not_count():
    z, target = sampled(200, 3.0)
    one = fit_temperature(z, target)
    assert fit_temperature(z.log_softmax(1), target).temperature == pytest.approx(one.temperature, rel=1e-4)
    more = torch.cat([z, torch.full((5, 3), 9.0)]), torch.cat([target, torch.full((5,), -1)])
    assert fit_temperature(*more) == one


def test_events_that_do_not_fix_it_end_at_the_bounds_and_say_so():
    z, target = sampled(50, 1.0)
    sure = fit_temperature(z, z.argmax(1))  # all right: the sharper the better
    assert sure.temperature == pytest.approx(LEAST, rel=0.02) and sure.bounded
    wrong = fit_temperature(z, z.argmin(1))  # all wrong: the flatter the better
    assert wrong.temperature == pytest.approx(MOST, rel=0.02) and wrong.bounded
    flat = fit_temperature(torch.zeros(10, 3), target[:10])  # no temperature changes anything
    assert flat.temperature == 1.0 and flat.nll == pytest.approx(np.log(3))


def test_huge_logits_do_not_overflow():
    z, target = sampled(200, 1.0)
    assert fit_temperature(z * 1e4, target).temperature == pytest.approx(MOST, rel=0.02)
    assert np.isfinite(fit_temperature(z * 30 + 1e4, target).nll)


def test_one_event():
    assert np.isfinite(fit_temperature(torch.tensor([[0.2, 0.1, 0.0]]), torch.tensor([1])).temperature)


def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="none of the 2 events has a known class"):
        fit_temperature(torch.zeros(2, 3), torch.tensor([-1, -1]))
    with pytest.raises(ValueError, match=r"expected \(n, K\)"):
        fit_temperature(torch.zeros(2, 3), torch.tensor([0]))
    with pytest.raises(ValueError, match="1 logits are not finite"):
        fit_temperature(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))


# ---------------------------------------------------------------------- the study


class Spoken(nn.Module):
    """Says the logits that are written into the first pixels of XZ, as brightness."""

    kind, inputs, n_classes = "event", "images", {"interaction": 3}

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(30.0))

    def forward(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        return {"interaction": self.scale * batch.image[:, 0, 0, :3]}

    def predict(self, batch: ImageBatch) -> StreamPrediction:
        return StreamPrediction({"interaction": self(batch)["interaction"].softmax(1)}, {})


PRETRAINED = Pretrained(
    Spoken().eval(), (Brightness("linear", full=1.0),), task="pixelmaps",
    classes={"interaction": list(INTERACTION_NAMES)}, source="by hand",
)  # fmt: skip
COLUMNS = np.array([[0, 0], [0, 1], [0, 2]], dtype=np.int32)


def spoken(n: int, sharpened: float, seed: int = 0) -> list[ImageEvent]:
    z, target = sampled(n, sharpened, seed)
    z = z - z.min(1, keepdim=True).values  # a softmax does not mind
    assert float(z.max()) < 30
    return [
        ImageEvent(
            {"xz": View(COLUMNS, (row / 30).numpy()), "yz": View(COLUMNS[:0], np.zeros(0, dtype=np.float32))},
            (4, 4),
            truth={"interaction": np.array(int(kind))},
            name=f"spoken.h5#{i}",
        )
        for i, (row, kind) in enumerate(zip(z, target, strict=True))
    ]


def test_logits_come_event_by_event():
    some = spoken(7, 1.0)
    logits, target = event_logits(PRETRAINED, some, batch_size=3, progress=False)
    z, truth = sampled(7, 1.0)
    np.testing.assert_allclose(logits - logits.mean(1, keepdim=True), z - z.mean(1, keepdim=True), atol=1e-4)
    assert torch.equal(target, truth)


def test_a_model_that_is_too_sure_is_calibrated_on_other_events():
    found = calibration_study(PRETRAINED, spoken(800, 3.0), spoken(800, 3.0, seed=1), progress=False)
    before, after = found["before"], found["after"]
    assert found["fit"]["temperature"] == pytest.approx(3.0, rel=0.15)
    assert before["mean_confidence"] > before["accuracy"] + 0.1
    assert after["expected_error"] < before["expected_error"] / 2
    assert after["nll"] < before["nll"] and found["nll_change"] < -3 * found["nll_change_error"]
    assert after["accuracy"] == before["accuracy"]
    assert found["nll_change"] == pytest.approx(after["nll"] - before["nll"], abs=1e-4)
    assert 0 < before["expected_error_error"] < 0.05
    text = markdown({**found, "simulated": True})
    assert "simulated by nufm" in text and "T = " in text and "800 validation events" in text


def test_temperatures_that_nothing_fixes_are_said_to_be():
    right = [e.replace(truth={"interaction": np.array(int(e.views["xz"].energy.argmax()))}) for e in spoken(20, 1.0)]
    found = calibration_study(PRETRAINED, right, spoken(20, 1.0), progress=False)
    assert "do not fix it" in markdown(found)


def test_events_without_truth_are_refused():
    bare = [e.replace(truth={}) for e in spoken(3, 1.0)]
    with pytest.raises(ValueError, match="interaction"):
        calibration_study(PRETRAINED, bare, spoken(3, 1.0), progress=False)
    unknown = [e.replace(truth={"interaction": np.array(-1)}) for e in spoken(3, 1.0)]
    with pytest.raises(ValueError, match="none of the 3 events has a known class"):
        calibration_study(PRETRAINED, spoken(3, 1.0), unknown, progress=False)
    with pytest.raises(ValueError, match="predicts nothing"):
        calibration_study(dataclasses.replace(PRETRAINED, task=None), spoken(3, 1.0), spoken(3, 1.0), progress=False)


def test_a_temperature_that_is_kept_already_is_in_neither_row():
    """Fitted again it is the same, and the first row is still the logits as they are."""
    kept = dataclasses.replace(PRETRAINED, extra={"temperature": {"interaction": 3.0}})
    first, again = (
        calibration_study(made, spoken(60, 3.0), spoken(60, 3.0, seed=1), progress=False) for made in (PRETRAINED, kept)
    )
    for side in ("fit", "before", "after"):
        assert again[side] == first[side]
    assert again["temperature"] == {"interaction": 3.0} and first["temperature"] == {}
    assert "The export had T = 3.000 for interaction before" in markdown(again)
    assert "| T = 1 |" in markdown(first) and "export had" not in markdown(first)
