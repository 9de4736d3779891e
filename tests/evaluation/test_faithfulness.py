"""Covering what an explanation cites, on a network that looks at one region and says so, or says otherwise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon
from torch import nn

from nufm.checkpoint import Pretrained
from nufm.data.explanations import REGIONS, Region, region_signal
from nufm.data.image_transforms import Brightness, Rebin
from nufm.data.images import INTERACTION_NAMES, VIEWS, ImageBatch, ImageEvent, View
from nufm.data.prediction import StreamPrediction
from nufm.evaluation.faithfulness import (
    brightest,
    charge,
    compared,
    covered,
    draw,
    faithfulness,
    markdown,
    of_regions,
    random_patch,
    strongest,
)

SIZE = 32
LOOKS_AT, ELSEWHERE = Region("xz", "upper", "downstream"), Region("yz", "lower", "upstream")


class Looker(nn.Module):
    """νµ CC if there is charge in one region, else NC."""

    kind, inputs, n_classes = "event", "images", {"interaction": 3}

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        plane, rows, columns = LOOKS_AT.slices(batch.image.shape[2:])
        seen = batch.image[:, plane, rows, columns].sum((1, 2)) * self.scale
        zero = torch.zeros_like(seen)
        return {"interaction": torch.stack([seen, zero, zero + 0.5], 1)}

    def predict(self, batch: ImageBatch) -> StreamPrediction:
        return StreamPrediction({"interaction": self(batch)["interaction"].softmax(1)}, {})


class Talker(Looker):
    """Says where it looks, or something else."""

    def __init__(self, says: str) -> None:
        super().__init__()
        self.says = says

    def explain(self, batch: ImageBatch) -> list[str]:
        return [f"I classify the pixel maps as NC. See the {self.says}." for _ in batch.names]


def pretrained(model: nn.Module, *before) -> Pretrained:
    transforms = (*before, Brightness("linear", full=20.0))
    classes = {"interaction": list(INTERACTION_NAMES)}
    return Pretrained(model.eval(), transforms, task="pixelmaps", classes=classes, source="by hand")


def scattered(seed: int, n: int = 120, energy: float | None = None, missing: str | None = None) -> ImageEvent:
    """Pixels anywhere, of different energy."""
    rng = np.random.default_rng(seed)
    views = {}
    for name in VIEWS:
        if name != missing:
            flat = rng.choice(SIZE * SIZE, n, replace=False)
            pixel = np.stack(np.divmod(flat, SIZE), axis=1).astype(np.int32)
            value = rng.uniform(0.5, 2.0, n) if energy is None else np.full(n, energy)
            views[name] = View(pixel, value.astype(np.float32))
    return ImageEvent(views, (SIZE, SIZE), truth={"interaction": np.array(seed % 3)}, name=f"made.h5#{seed}")


def empty() -> ImageEvent:
    nothing = View(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))
    return ImageEvent({v: nothing for v in VIEWS}, (SIZE, SIZE), truth={"interaction": np.array(2)}, name="empty")


def test_a_covered_region_is_dark_and_the_rest_is_as_it_was():
    event = scattered(0)
    regions = [LOOKS_AT, ELSEWHERE]
    mask = of_regions(event, regions)
    before = region_signal(np.stack([event.image(v) for v in VIEWS]))
    hole = covered(event, mask)
    after = region_signal(np.stack([hole.image(v) for v in VIEWS]))
    for region in REGIONS:
        assert after[region] == pytest.approx(0.0 if region in regions else before[region])
    assert charge(event, mask) == pytest.approx(before[LOOKS_AT] + before[ELSEWHERE])
    assert set(covered(scattered(0, missing="yz"), of_regions(scattered(0, missing="yz"), regions)).views) == {"xz"}


@pytest.mark.parametrize("seed", range(6))
def test_a_patch_has_the_charge_of_the_region_and_lies_together_elsewhere(seed):
    event = scattered(seed)
    avoid = of_regions(event, [LOOKS_AT])
    patch = random_patch(event, avoid, np.random.default_rng(seed))
    assert not any((patch[v] & avoid[v]).any() for v in VIEWS)
    # as close as whole pixels get: half the largest pixel
    assert abs(charge(event, patch) - charge(event, avoid)) <= 1.0
    (view,) = [v for v in VIEWS if patch[v].any()]
    # a square around one of its pixels: whatever is left out of it, and free, is at least as far as all that is in
    pixel = event.views[view].pixel
    free = ~patch[view] & ~avoid[view]
    distances = np.abs(pixel[:, None] - pixel[patch[view]][None]).max(2)
    assert any(distances[patch[view], i].max() <= distances[free, i].min() for i in range(patch[view].sum()))


def test_a_patch_where_there_is_not_enough_charge_or_none():
    event = scattered(1, missing="yz")
    three = [r for r in REGIONS if r != LOOKS_AT]
    avoid = of_regions(event, three)
    patch = random_patch(event, avoid, np.random.default_rng(0))
    assert (patch["xz"] == ~avoid["xz"]).all()  # all that is left
    nothing = of_regions(event, [ELSEWHERE])  # its view is missing
    assert not random_patch(event, nothing, np.random.default_rng(0))["xz"].any()
    assert random_patch(empty(), of_regions(empty(), [LOOKS_AT]), np.random.default_rng(0))["xz"].shape == (0,)


def test_the_brightest_and_the_strongest_region():
    events = [scattered(i) for i in range(5)]
    for event, (region,) in zip(events, brightest(events), strict=True):
        signal = region_signal(np.stack([event.image(v) for v in VIEWS]))
        assert signal[region] == max(signal.values())
    found = strongest(pretrained(Looker()), [*events, empty()], 4)
    assert found == [[LOOKS_AT]] * 5 + [[]]
    assert brightest([empty()]) == [[]]


@pytest.mark.parametrize("says", [LOOKS_AT, ELSEWHERE])
def test_who_says_where_it_looks_is_told_from_who_does_not(says):
    """The network's probability is e^s / (1 + e^s + e^0.5) of the charge s in its region, over 20 MeV."""
    events = [scattered(i) for i in range(12)]
    found = faithfulness(pretrained(Talker(str(says))), events, batch_size=5, patches=3)
    assert found["events"] == 12 and found["silent"] == 0 and found["regions"][str(says)] == 12
    own = found["rows"]["cited"]["all"]
    e = np.exp([region_signal(np.stack([x.image(v) for v in VIEWS]))[LOOKS_AT] / 20 for x in events])
    rest = 1 + np.exp(0.5)
    fall = e / (e + rest) - 1 / (1 + rest) if says == LOOKS_AT else 0 * e
    assert own["fall"] == pytest.approx(fall.mean(), abs=1e-6)
    assert own["fall_error"] == pytest.approx(fall.std(ddof=1) / np.sqrt(12), abs=1e-6)
    assert own["patch_charge"] == pytest.approx(1.0, abs=0.05)
    if says == LOOKS_AT:
        assert own["patch_fall"] == pytest.approx(0.0, abs=1e-7)  # a patch never reaches into the region
        assert own["difference"] > 5 * own["difference_error"] and own["p_value"] < 1e-3
        assert own["flipped"] == pytest.approx(np.mean(e > np.exp(0.5))) and own["patch_flipped"] == 0
    else:
        assert own["patch_fall"] > 0 > own["difference"]
    rows = found["per_event"]["cited"]
    difference = [r["fall"] - r["patch_fall"] for r in rows]
    assert own["p_value"] == pytest.approx(wilcoxon(difference).pvalue)
    assert found["rows"]["strongest"]["all"]["fall"] == pytest.approx(
        (e / (e + rest) - 1 / (1 + rest)).mean(), abs=1e-6
    )
    assert sum(g["events"] for k, g in found["rows"]["cited"].items() if k != "all") == 12


def test_numbers_do_not_depend_on_the_batches_and_regions_follow_the_transforms():
    events = [scattered(i) for i in range(5)]
    model = Talker(str(LOOKS_AT))
    one, many = (faithfulness(pretrained(model), events, batch_size=n, patches=2) for n in (1, 5))
    assert one["rows"]["cited"]["all"] == pytest.approx(many["rows"]["cited"]["all"])
    coarse = faithfulness(pretrained(model, Rebin(4)), events, patches=2)
    assert coarse["rows"]["cited"]["all"]["patch_fall"] == pytest.approx(0.0, abs=1e-6)
    assert coarse["rows"]["cited"]["all"]["fall"] == pytest.approx(one["rows"]["cited"]["all"]["fall"], abs=1e-5)


def test_silence_darkness_and_a_single_event():
    silent = faithfulness(pretrained(Talker("left side")), [scattered(0), empty()])
    assert silent["silent"] == 2 and silent["rows"]["cited"]["all"]["events"] == 0
    assert "2 answers cite no region. Cited: none." in markdown(silent)
    dark = faithfulness(pretrained(Talker(str(LOOKS_AT))), [empty()])["rows"]["cited"]["all"]
    assert dark["events"] == 1 and dark["fall"] == dark["patch_fall"] == 0 and dark["patch_charge"] is None
    assert dark["fall_error"] is None and dark["p_value"] is None
    assert compared([])["fall"] is None
    mute = faithfulness(pretrained(Looker()), [scattered(0)])
    assert "cited" not in mute["rows"] and mute["silent"] is None and "with most charge" in markdown(mute)


def test_table_and_picture(tmp_path):
    events = [scattered(i) for i in range(8)]
    found = faithfulness(pretrained(Talker(str(LOOKS_AT))), events) | {"simulated": True}
    text = markdown(found)
    assert "**cited by the model**" in text and "simulated by nufm" in text
    assert "predicted" not in text.split("Fall:")[0].replace(
        "predicted class", ""
    )  # all are νµ CC: one row says it all
    found["rows"]["cited"]["NC"] = found["rows"]["cited"]["all"]
    assert "predicted νµ CC" in markdown(found) and "predicted νe CC" not in markdown(found)
    assert "calibrated with" not in text
    hot = dataclasses.replace(pretrained(Talker(str(LOOKS_AT))), extra={"temperature": {"interaction": 2.0}})
    assert "keeps (interaction: T = 2.000)" in markdown(faithfulness(hot, events))
    assert "0 answers cite no region. Cited: 8 upper downstream quarter of the XZ view." in text
    path = draw(found, events, tmp_path / "faithfulness.png", "Faithfulness")
    assert path.stat().st_size > 20_000
    silent = faithfulness(pretrained(Talker("nowhere")), [empty()])
    with pytest.raises(ValueError, match="no region was cited"):
        draw(silent, [empty()], tmp_path / "none.png")
