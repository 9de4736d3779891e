"""Sizes of models: packed weights are counted as what they were, and weighed as what they are."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn
from toy_language_models import folder

from nufm.checkpoint import Pretrained, from_pretrained, model_card, save_pretrained
from nufm.checkpoint.sizes import parameter_count, weight_bytes
from nufm.data.image_transforms import Brightness
from nufm.evaluation.cost import cost_per_event
from nufm.models.vlm import VisionLanguageClassifier

ROWS, COLUMNS = 256, 512


@pytest.mark.parametrize("nested", [False, True])
def test_a_packed_layer_by_hand(nested):
    """Half a byte for a weight; a maximum of every 64, float32, or a byte each and a float32 for 256 of those; tables
    of 16 and of 256 values."""
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(COLUMNS, ROWS, bias=True, quant_type="nf4", compress_statistics=nested).to("cpu")
    layer = layer.to(torch.device("cpu"))
    layer(torch.zeros(1, COLUMNS))
    assert layer.weight.numel() == ROWS * COLUMNS / 2, "packed"
    assert parameter_count(layer) == ROWS * COLUMNS + ROWS
    assert parameter_count(layer.weight) == ROWS * COLUMNS
    blocks = ROWS * COLUMNS // 64
    maxima = blocks + 4 * (-(-blocks // 256)) + 4 * 256 + 4 if nested else 4 * blocks
    bias = layer.bias.numel() * layer.bias.element_size()
    assert weight_bytes(layer) == ROWS * COLUMNS // 2 + bias + maxima + 4 * 16


def test_what_is_shared_counts_once():
    one = nn.Linear(4, 4, bias=False)
    tied = nn.Sequential(one, nn.Linear(4, 4, bias=False))
    tied[1].weight = one.weight
    tied.register_buffer("view", one.weight.detach().view(-1))
    assert parameter_count(tied) == 16 and weight_bytes(tied) == 64
    tied.register_buffer("short", torch.zeros(3, dtype=torch.float16))
    assert weight_bytes(tied) == 64 + 6
    with torch.device("meta"):
        assert weight_bytes(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))) == 4 * (20 + 8 + 8) + 8


def test_an_image_text_model_has_as_many_parameters_in_four_bits(tmp_path):
    """In the export, its card and the cost of an event, too; one that is read again from its adapters the same."""
    torch.manual_seed(0)
    plain, packed = (
        VisionLanguageClassifier(folder("mllama"), quantization=kind, prompt="brief", rank=2).eval()
        for kind in ("none", "nf4")
    )
    wanted = sum(p.numel() for p in plain.parameters())
    assert sum(p.numel() for p in packed.parameters()) < 0.8 * wanted, "packed weights are bytes of two"
    assert parameter_count(plain) == parameter_count(packed) == wanted
    assert weight_bytes(packed) < weight_bytes(plain)
    place = save_pretrained(tmp_path / "export", packed, transforms=[Brightness()], task="pixelmaps")
    assert json.loads((place / "config.json").read_text())["weights"]["parameters"] == wanted
    loaded = from_pretrained(place)
    card = model_card(loaded, "tiny")
    parts = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|$", card.split("## Architecture")[1].split("Constructor")[0], re.M)
    assert f"{wanted:,} parameters" in card and sum(int(n.replace(",", "")) for _, n in parts) == wanted


def test_the_cost_of_an_event_counts_the_same(monkeypatch):
    from toy_language_models import image_event

    monkeypatch.setattr("nufm.evaluation.cost.MOST", 5)
    model = VisionLanguageClassifier(folder("mllama"), quantization="nf4", prompt="brief", rank=2).eval()
    found = cost_per_event(Pretrained(model, (Brightness(),), task="pixelmaps",
                                      classes={"interaction": ["νµ CC", "νe CC", "NC"]}), [image_event(0)])  # fmt: skip
    assert found["parameters"] == parameter_count(model) > sum(p.numel() for p in model.parameters())
    assert found["weights_gb"] == pytest.approx(weight_bytes(model) / 1e9)
