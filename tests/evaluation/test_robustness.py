"""Sweeps over worse events, on a network whose answers are known by arithmetic; scores against scikit-learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, precision_score, recall_score, roc_auc_score
from torch import nn

from nufm.checkpoint import Pretrained
from nufm.data.image_transforms import Brightness, Rebin
from nufm.data.images import INTERACTION_NAMES, ImageBatch, ImageEvent, View
from nufm.data.prediction import StreamPrediction
from nufm.evaluation.class_scores import (
    change,
    class_probabilities,
    macro_aucs,
    scores_of,
    true_classes,
    without_temperature,
)
from nufm.evaluation.robustness import (
    NOMINAL,
    levels_of,
    markdown,
    study_named,
    sweep,
    with_image_transforms,
)

SIZE = 32
CLASSES = {"interaction": list(INTERACTION_NAMES)}


class Brighter(nn.Module):
    """νµ CC if XZ is the brighter view, νe CC if YZ is, NC if there is next to nothing."""

    kind, inputs, n_classes = "event", "images", {"interaction": 3}

    def __init__(self, only: int | None = None) -> None:
        super().__init__()
        self.scale, self.only = nn.Parameter(torch.tensor(1.0)), only

    def forward(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        if self.only is not None and batch.image.shape[-1] != self.only:
            raise ValueError(f"images of {batch.image.shape[-1]} pixels, expected {self.only}")
        total = batch.image.sum((2, 3)) * self.scale
        return {"interaction": torch.cat([total, torch.full_like(total[:, :1], 0.05)], 1)}

    def predict(self, batch: ImageBatch) -> StreamPrediction:
        return StreamPrediction({"interaction": self(batch)["interaction"].softmax(1)}, {})


def pretrained(model: nn.Module | None = None, *before) -> Pretrained:
    transforms = (*before, Brightness("linear", full=100.0))
    model = (model or Brighter()).eval()
    return Pretrained(model, transforms, task="pixelmaps", classes=CLASSES, source="by hand")


def events(n: int = 30, faint: float = 1.0) -> list[ImageEvent]:
    """Class 0 has 40 pixels of 2 MeV in XZ and of 1 MeV in YZ, class 1 the other way round, class 2 nothing."""
    made = []
    for i in range(n):
        kind, views = i % 3, {}
        for number, name in enumerate(("xz", "yz")):
            flat = np.random.default_rng([i, number]).choice(SIZE * SIZE, 40, replace=False)
            pixel = np.stack(np.divmod(flat, SIZE), axis=1).astype(np.int32)
            energy = np.full(40, faint * (2.0 if kind == number else 1.0), dtype=np.float32)
            views[name] = View(pixel, energy) if kind < 2 else View(pixel[:0], energy[:0])
        made.append(ImageEvent(views, (SIZE, SIZE), truth={"interaction": np.array(kind)}, name=f"made.h5#{i}"))
    return made


def rows(found: dict, series: str) -> dict[float, dict]:
    return {row["value"]: row for row in found["levels"] if row["series"] == series}


def run(name: str, model: Pretrained | None = None, some: list | None = None, values=None, **more) -> dict:
    levels = levels_of(study_named(name), values)
    return sweep(model or pretrained(), events() if some is None else some, levels, progress=False, **more)


# ---------------------------------------------------------------------- scores


def test_scores_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    target = draw.integers(0, 3, 200)
    p = draw.dirichlet((1, 1, 1), 200)
    found, chosen = scores_of(p, target), p.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(target, chosen))
    assert found["macro_precision"] == pytest.approx(precision_score(target, chosen, average="macro"))
    assert found["macro_recall"] == pytest.approx(recall_score(target, chosen, average="macro"))
    assert found["macro_auc"] == pytest.approx(roc_auc_score(target, p, multi_class="ovr"), abs=1e-6)
    assert found["nll"] == pytest.approx(log_loss(target, p, labels=[0, 1, 2]), abs=1e-4)
    assert found["predicted"] == np.bincount(chosen, minlength=3).tolist()


def test_areas_of_resamples_are_those_of_scikit_learn_with_ties():
    draw = np.random.default_rng(1)
    target = draw.integers(0, 3, 60)
    p = np.round(draw.dirichlet((1, 1, 1), 60), 1)  # many equal scores
    times = draw.multinomial(60, np.full(60, 1 / 60), 5)
    for found, count in zip(macro_aucs(p, target, times), times, strict=True):
        rows = np.repeat(np.arange(60), count)
        areas = [roc_auc_score(target[rows] == c, p[rows, c]) for c in range(3)]
        assert found == pytest.approx(np.mean(areas))
    assert np.isnan(macro_aucs(p[:4], np.zeros(4, dtype=int), np.ones((1, 4)))).all()


def test_a_class_without_events_has_no_auc():
    found = scores_of(np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], dtype=np.float32), np.array([0, 1]))
    assert found["auc"] == [1.0, 1.0, None] and found["macro_auc"] == 1.0 and found["accuracy"] == 1.0
    one = scores_of(np.array([[0.6, 0.3, 0.1]], dtype=np.float32), np.array([2]))
    assert one["macro_auc"] is None and one["accuracy"] == 0.0


def test_the_error_of_a_change_is_that_of_the_pairs():
    """Of n events d lose and none gains: the error of -d/n is √(d/n (1 - d/n) / n), whatever the accuracy."""
    n, d = 400, 60
    target = np.zeros(n, dtype=int)
    before = np.tile(np.float32([0.8, 0.1, 0.1]), (n, 1))
    after = before.copy()
    after[:d] = np.float32([0.1, 0.8, 0.1])
    found = change(before, after, target)
    assert found["accuracy_change"] == pytest.approx(-d / n)
    assert found["accuracy_change_error"] == pytest.approx(np.sqrt(0.15 * 0.85 / n), rel=0.15)
    same = change(before, before, target)
    assert same["accuracy_change"] == 0.0 and same["accuracy_change_error"] == 0.0
    assert same["macro_auc_change"] is None  # one class alone has no AUC


# ---------------------------------------------------------------------- sweeps


def test_events_as_they_are_come_first_and_are_right():
    found = run("missing_view")
    first = found["levels"][0]
    assert first["words"] == NOMINAL and first["accuracy"] == 1.0 and first["macro_auc"] == 1.0
    assert first["pixels"] == pytest.approx(80 * 2 / 3) and first["energy"] == pytest.approx(120 * 2 / 3)
    assert found["support"] == [10, 10, 10] and found["events"] == 30


def test_without_a_view_its_class_is_taken_for_the_other():
    """Without XZ, νµ CC has the 40 MeV of YZ, which make it νe CC; the other two stay right."""
    found = run("missing_view")
    without = {row["words"]: row for row in found["levels"]}
    row = without["without XZ"]
    assert row["accuracy"] == pytest.approx(2 / 3) and row["predicted"] == [0, 20, 10]
    assert row["accuracy_change"] == pytest.approx(-1 / 3)
    both = without["without XZ and YZ"]
    assert both["predicted"] == [0, 0, 30] and both["macro_auc"] == 0.5  # all are the same to it
    assert both["pixels"] == 0


def test_a_gain_of_a_hundredth_leaves_nothing_to_see():
    found = run("gain", values=[-0.99, 1.0])
    alike = rows(found, "all pixels alike")
    assert alike[-0.99]["predicted"] == [0, 0, 30]
    assert alike[1.0]["accuracy"] == 1.0
    assert alike[1.0]["energy"] == pytest.approx(2 * found["levels"][0]["energy"], rel=1e-5)
    assert set(rows(found, "each pixel its own")) == {0.99, 1.0}


def test_dead_pixels_take_their_share_of_the_charge():
    found = run("dead_pixels", values=[0.5, 1.0])
    full = found["levels"][0]["pixels"]
    for of in ("pixels", "columns"):
        assert rows(found, of)[0.5]["pixels"] == pytest.approx(full / 2, rel=0.15)
        assert rows(found, of)[1.0]["accuracy"] == pytest.approx(1 / 3)


def test_noise_fills_the_map():
    whole = run("noise", values=[0.1, 100.0])
    found = rows(whole, "above 3 σ")
    share = 0.00135 * 2 * SIZE * SIZE  # Φ(-3) of all pixels of both views
    assert found[0.1]["pixels"] == pytest.approx(80 * 2 / 3 + share, rel=0.2)
    assert found[100.0]["accuracy"] < 0.7
    quiet = rows(whole, "above 5 σ")[0.1]
    assert quiet["pixels"] == pytest.approx(80 * 2 / 3, abs=1) and quiet["accuracy"] == 1.0


def test_coarser_pixels_keep_the_sum_and_a_smaller_image_is_refused_by_who_has_one_size():
    found = run("resolution", pretrained(Brighter(only=SIZE)))
    assert all(row["accuracy"] == 1.0 for row in rows(found, "energy shared").values())
    refused = rows(found, "smaller image")
    assert set(refused) == {2.0, 4.0, 8.0} and all("expected 32" in row["refused"] for row in refused.values())
    assert "the network refuses such images" in markdown(found)
    taken = rows(run("resolution"), "smaller image")
    assert all(row["accuracy"] == 1.0 for row in taken.values())  # sums of energies stay below white


def test_a_refusal_elsewhere_is_an_error():
    with pytest.raises(ValueError, match="expected 7"):
        run("noise", pretrained(Brighter(only=7)))


def test_coarser_pixels_act_on_what_the_network_sees():
    """Behind Rebin(4), blocks of 2 are 8 pixels of the file, and energies are still in MeV."""
    model = with_image_transforms(pretrained(None, Rebin(4)), (Rebin(2),))
    assert model.transforms[:2] == (Rebin(4), Rebin(2)) and isinstance(model.transforms[2], Brightness)
    batch = model.batch(events(3))
    assert batch.image.shape == (3, 2, 4, 4) and batch.pitch == 40.0
    assert float(batch.image[0, 0].sum()) == pytest.approx(80 / 100, rel=1e-5)


@pytest.mark.parametrize("name", ["noise", "dead_pixels", "gain"])
def test_the_draw_hangs_on_the_seed_and_not_on_model_or_batches(name):
    one = run(name, values=[0.3], batch_size=4)
    other = run(name, pretrained(Brighter(only=SIZE)), values=[0.3], batch_size=7)
    assert [r["pixels"] for r in one["levels"]] == [r["pixels"] for r in other["levels"]]
    assert [r["energy"] for r in one["levels"]] == [r["energy"] for r in other["levels"]]
    for a, b in zip(one["probability"], other["probability"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    third = run(name, values=[0.3], seed=1)
    assert one["levels"][0] == third["levels"][0]
    assert [r["energy"] for r in one["levels"][1:]] != [r["energy"] for r in third["levels"][1:]] or name == "gain"


def test_events_draw_their_own_whatever_seed_they_came_with():
    alike = [events(1)[0]] * 6  # the same event six times, of the same seed
    found = run("dead_pixels", some=alike, values=[0.5])
    assert len({round(float(p[0]), 6) for p in found["probability"][1]}) > 1


def test_unknown_classes_do_not_count():
    some = events(9)
    some[4] = some[4].replace(truth={"interaction": np.array(-1)})
    found = run("missing_view", some=some)
    assert found["events"] == 8 and found["support"] == [3, 2, 3] and found["levels"][0]["accuracy"] == 1.0


def test_one_event_is_enough():
    found = run("gain", some=events(1), values=[0.1])
    assert found["levels"][0]["accuracy"] == 1.0 and found["levels"][1]["macro_auc"] is None
    assert "100.0" in markdown(found)


def test_the_table_has_every_level_and_says_simulated():
    found = {**run("dead_pixels"), "simulated": True}
    text = markdown(found)
    assert text.count("\n| ") == 2 * len(found["levels"]) + 3 and "simulated by nufm" in text  # and the head
    assert "2 % of the columns" in text and "(+0.0 ± 0.0)" in text


def test_levels_have_the_temperature_of_the_export_and_the_table_says_so():
    kept = dataclasses.replace(pretrained(), extra={"temperature": {"interaction": 2.0}, "steps": 3})
    hot, cold = run("missing_view", kept), run("missing_view")
    for one, other in zip(hot["probability"], cold["probability"], strict=True):
        root = np.sqrt(other.astype(np.float64))
        np.testing.assert_allclose(one, root / root.sum(1, keepdims=True), rtol=1e-5)
    assert "keeps (interaction: T = 2.000)" in markdown(hot) and "calibrated with" not in markdown(cold)
    bare = without_temperature(kept)
    assert bare.extra == {"steps": 3} and kept.extra["temperature"], "the first is left alone"
    np.testing.assert_array_equal(class_probabilities(bare, events(), 7), cold["probability"][0])
    assert true_classes([*events(4), events(1)[0].replace(truth={})], "interaction").tolist() == [0, 1, 2, 0, -1]


# ---------------------------------------------------------------------- refusals


def test_what_cannot_be_meant():
    with pytest.raises(ValueError, match="unknown study 'rain', expected one of resolution, noise"):
        study_named("rain")
    with pytest.raises(ValueError, match=r"level 1\.5 is no number of pixels"):
        levels_of(study_named("resolution"), [1.5])
    with pytest.raises(ValueError, match="level 4 is unknown"):
        levels_of(study_named("missing_view"), [4])
    with pytest.raises(ValueError, match="share is 2"):
        levels_of(study_named("dead_pixels"), [2])


def test_no_level_stands_twice():
    levels = levels_of(study_named("gain"), [-0.2, 0.2, 0.2, 0.0])
    assert [(level.series, level.value) for level in levels] == [
        (NOMINAL, 0.0), ("all pixels alike", -0.2), ("all pixels alike", 0.2), ("each pixel its own", 0.2)
    ]  # fmt: skip


def test_no_events_no_truth_and_other_models():
    with pytest.raises(ValueError, match="no events"):
        run("noise", some=[])
    bare = [e.replace(truth={}) for e in events(3)]
    with pytest.raises(ValueError, match="interaction"):
        run("noise", some=bare)
    unknown = [e.replace(truth={"interaction": np.array(-1)}) for e in events(3)]
    with pytest.raises(ValueError, match="none of the 3 events has a known 'interaction'"):
        run("noise", some=unknown)
    encoder = dataclasses.replace(pretrained(), task=None)
    with pytest.raises(ValueError, match="predicts nothing"):
        run("noise", encoder)
