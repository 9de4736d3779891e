"""The benchmark of image-text models: its random 4-bit model is what it says, all ways choose the same labels."""

# ruff: noqa: E402

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_language_models import image_event

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))  # as when it is run as a script

import vlm_inference as benchmark

CPU = torch.device("cpu")


def test_the_large_architecture_is_the_published_one():
    """Llama-3.2-11B-Vision has 10.67 billion parameters (its model card: 10.6B)."""
    assert benchmark.parameters("llama-11b") == pytest.approx(10.65e9, rel=5e-3)
    assert benchmark.PUBLISHED["ms"] == 3412 and benchmark.PUBLISHED["memory_gb"] == 12.91


def test_weights_are_packed_in_four_bits():
    import bitsandbytes as bnb

    plain, packed = (benchmark.random_model("tiny", CPU, kind) for kind in ("none", "nf4"))
    linears = {n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and "lora" not in n}
    fours = {n: m for n, m in packed.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert set(fours) == {n for n in linears if not n.endswith("lm_head")} and len(fours) > 30
    saved = 0
    for name, layer in fours.items():
        n = plain.get_submodule(name).weight.numel()
        assert layer.weight.numel() * layer.weight.element_size() == n / 2
        assert layer.weight.quant_state.nested
        saved += 4 * n - n / 2
    # what is left of the difference: one byte for 64 weights, and a little for the second quantisation
    left = benchmark.weight_bytes(packed) - (benchmark.weight_bytes(plain) - saved)
    n = sum(plain.get_submodule(name).weight.numel() for name in fours)
    assert n / 64 < left < n / 64 + 2500 * len(fours)
    assert not any(p.is_meta for p in packed.parameters()) and not any(b.is_meta for b in packed.buffers())
    assert sum("lora_A" in n for n, _ in packed.named_parameters()) > 20


def test_all_ways_choose_the_same_labels_and_the_report_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "events", lambda n, factor: [large(i) for i in range(n)])
    flags = ["--events", "2", "--new_tokens", "5", "--seconds", "1", "--out", str(tmp_path)]
    report = benchmark.main(flags)
    rows = {row["way"]: row for row in report["rows"]}
    for way in ("labels", "labels, together", "pass for each label", "answer", "answer, beams"):
        assert rows[way]["same_label"] == 2, way
    # Which way is faster is for the benchmark to say: two events on a busy machine may tell anything.
    for row in rows.values():
        assert 0 < row["low"] <= row["ms_per_event"] <= row["high"] and row["peak_bytes"] >= 0, row["way"]
        assert row["times_faster"] == pytest.approx(rows["answer"]["ms_per_event"] / row["ms_per_event"])
    name = "vlm_inference" if torch.cuda.is_available() else "vlm_inference_cpu"
    kept = json.loads((tmp_path / f"{name}.json").read_text())
    assert kept["rows"] == report["rows"] and sum(kept["said"]) == 2
    text = (tmp_path / f"{name}.md").read_text()
    assert "3,412" in text and "12.91" in text and "simulated by nufm" in text and "label, then 5 tokens" in text


def large(number: int):
    """A toy event on 128 × 128 pixels."""
    event = image_event(number)
    return event.replace(shape=(128, 128))


def test_the_way_of_the_large_architecture_in_small(monkeypatch, tmp_path):
    """Its configuration with fewer and narrower layers: maps of 128 pixels on tiles of 140 in place of 512 on 560,
    room for four tiles, more tokens than the tokenizer has.
    """
    values = json.loads((benchmark.ARCHITECTURES / benchmark.SIZES["llama-11b"][0]).read_text())
    values["text_config"] |= {
        **{"hidden_size": 64, "num_hidden_layers": 4, "cross_attention_layers": [1, 3], "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 4096},
        **{"pad_token_id": 4, "bos_token_id": 0, "eos_token_id": 1},
    }
    values["vision_config"] |= {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2},
        **{"intermediate_size": 32, "intermediate_layers_indices": [0], "vision_output_dim": 64},
    }
    values["image_token_index"] = 4096
    (tmp_path / benchmark.SIZES["llama-11b"][0]).write_text(json.dumps(values))
    monkeypatch.setattr(benchmark, "ARCHITECTURES", tmp_path)
    file, _, *rest = benchmark.SIZES["llama-11b"]
    monkeypatch.setitem(benchmark.SIZES, "llama-11b", (file, 140, *rest))
    monkeypatch.setattr(benchmark, "events", lambda n, factor: [large(i) for i in range(n)])
    subject = benchmark.Subject("llama-11b", CPU, "nf4", 1)
    (batch,) = subject.batches
    inputs = subject.inputs(batch)
    assert inputs["pixel_values"].shape == (1, 2, 4, 3, 140, 140)  # events, pictures, tiles, colours
    assert inputs["aspect_ratio_mask"].sum() == 2  # one tile of each picture is filled
    (said,) = subject.write(batch, 4)
    assert [said.label] == subject.score(batch) == subject.pass_for_each_label(batch)
