"""What classifying an event with an image-text model costs: labels scored in one pass, against writing the answer.

    python benchmarks/vlm_inference.py                             # a tiny Mllama; four minutes on a CPU
    python benchmarks/vlm_inference.py --architecture llama-11b    # as large as Llama-3.2-11B-Vision, for a GPU

Timed, from an event's two maps in memory: pictures and text through the processor, then either the scores of the three
labels (``nufm.models.label_scoring``), or the whole answer, label and explanation
(``nufm.models.constrained_generation``). Both choose the same label; that is checked for every event.

Weights are random, in 4 bit, with adapters of rank 8 as in QLoRA, and no token ends an explanation, so that all have
the length that is asked for. A tokenizer made from the prompts stands in for the gated one; it cuts them into about as
many tokens. Published beside: arXiv 2509.08461, Table 1, trained weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import (
    Machine,
    about_machine,
    affordable,
    default_device,
    interleaved,
    peak_bytes,
    result_name,
    settled,
    state,
    table,
)
from record import RESULTS, provenance, save
from torch import Tensor, nn

from nufm.checkpoint.sizes import weight_bytes
from nufm.commands.tiny_vlm import GATE, make_processor, make_tokenizer
from nufm.data.image_datamodule import ImageDataModule
from nufm.data.image_transforms import Brightness, Rebin
from nufm.data.images import ImageBatch, ImageEvent
from nufm.data.prompts import END_OF_LABEL, load_prompt
from nufm.data.transforms import compose
from nufm.machine import keep_freed_memory
from nufm.models.constrained_generation import Answer, answer
from nufm.models.label_scoring import LabelTokens, append_tokens, score_labels
from nufm.models.vlm import TARGETS, add_adapters
from nufm.models.vlm_base import ARCHITECTURES
from nufm.models.vlm_inputs import PromptComposer

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())["pixelmaps"]["models"]["VLM"]
SEED, TARGET = 0, 10.0  # times faster than the answer
# Name -> file of the configuration, edge of a picture, tiles, factor of Rebin, prompt.
SIZES = {
    "tiny": ("tiny_mllama.json", 128, 1, 4, "physics"),
    "llama-11b": ("Llama-3.2-11B-Vision-Instruct.json", 560, 4, 1, "physics"),
}


# ---------------------------------------------------------------------- a model of random weights


def random_model(
    architecture: str, device: torch.device, quantization: str, vocabulary: int | None = None
) -> nn.Module:
    """Mllama with random weights and adapters of rank 8, in bfloat16 on a GPU, float32 on a CPU.

    Weights are drawn and packed into 4 bit layer by layer on the device, so that the whole is never there in 16 bit.

    Args:
        architecture: of ``SIZES``.
        device: where it will run.
        quantization: ``nf4`` or ``none``.
        vocabulary: tokens of the tokenizer; None: those of the configuration.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    values = json.loads((ARCHITECTURES / SIZES[architecture][0]).read_text(encoding="utf-8"))
    if vocabulary is not None:
        values["text_config"]["vocab_size"] = vocabulary
    values["vision_config"]["image_size"] = SIZES[architecture][1]
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForImageTextToText.from_config(config)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(SEED)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and quantization == "nf4" and name.rsplit(".", 1)[-1] != "lm_head":
            _replace(model, name, packed(module, dtype, device, generator))
            continue
        for own, parameter in list(module._parameters.items()):
            if parameter is not None:
                value = _drawn(own, parameter, dtype, device, generator)
                module._parameters[own] = nn.Parameter(value, requires_grad=False)
    model = model.to(device).eval()
    add_adapters(model, 8, 16.0, 0.05, TARGETS)
    return model.to(device).requires_grad_(False)


def _drawn(name: str, like: Tensor, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Tensor:
    """Matrices keep the size of what passes through them; norms are 1, biases 0, and gates open as after a training."""
    value = torch.empty(like.shape, dtype=dtype, device=device)
    if "gate" in name:
        return value.fill_(GATE)
    if value.dim() < 2:
        return value.fill_(0.0 if name == "bias" else 1.0)
    return value.normal_(0.0, value[0].numel() ** -0.5, generator=generator)


def packed(linear: nn.Linear, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> nn.Module:
    """A linear layer of random weights in NF4 with double quantisation."""
    import bitsandbytes as bnb

    bias = linear.bias is not None
    layer = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias, dtype, compress_statistics=True, quant_type="nf4", device="meta"
    )
    weight = _drawn("weight", linear.weight, dtype, device, generator)
    layer.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
    )
    if bias:
        layer.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=dtype, device=device), requires_grad=False)
    return layer.to(device)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


# ---------------------------------------------------------------------- what is timed


class Subject:
    """A model, what it is asked, and events.

    Attributes:
        model: from :func:`random_model`.
        labels: of the prompt.
        batches: one event each.
    """

    def __init__(self, architecture: str, device: torch.device, quantization: str, n_events: int) -> None:
        _, edge, tiles, factor, prompt = SIZES[architecture]
        tokenizer = make_tokenizer("mllama")
        vocabulary = len(tokenizer) - 1 if architecture == "tiny" else None  # the token of a picture is never written
        self.model = random_model(architecture, device, quantization, vocabulary)
        processor = make_processor("mllama", tokenizer, edge)
        processor.image_processor.max_image_tiles = tiles
        self.composer = PromptComposer(processor, load_prompt(prompt))
        self.tokenizer, self.device = tokenizer, device
        self.labels = LabelTokens.of(tokenizer, self.composer.prompt.labels, self.composer.prompt.answer, END_OF_LABEL)
        made = events(n_events, factor)
        self.batches = [ImageBatch.from_events([event]) for event in made]
        self.together = ImageBatch.from_events(made)

    def inputs(self, batch: ImageBatch) -> dict[str, Tensor]:
        found = self.composer.inputs(batch)
        dtype = self.model.dtype
        return {k: v.to(self.device, dtype if v.is_floating_point() else None) for k, v in found.items()}

    @torch.inference_mode()
    def score(self, batch: ImageBatch, rule: str = "whole_label") -> list[int]:
        return score_labels(self.model, self.inputs(batch), self.labels, rule).label.tolist()

    @torch.inference_mode()
    def pass_for_each_label(self, batch: ImageBatch) -> list[int]:
        """Nothing is shared: the whole prompt is read once for every label."""
        inputs, columns = self.inputs(batch), []
        for tokens in self.labels.tokens:
            whole = append_tokens(inputs, (*self.labels.prefix, *tokens))
            logits = self.model(**whole, use_cache=False, logits_to_keep=len(tokens) + 1).logits[:, :-1]
            wanted = torch.tensor(tokens, device=self.device).expand(len(logits), -1)
            columns.append(logits.float().log_softmax(-1).gather(2, wanted[..., None])[..., 0].sum(1))
        return torch.stack(columns, 1).argmax(1).tolist()

    def write(self, batch: ImageBatch, new_tokens: int, beams: int = 1) -> list[Answer]:
        return answer(self.model, self.inputs(batch), self.labels, self.tokenizer, new_tokens, beams, ends=())


def events(n: int, factor: int) -> list[ImageEvent]:
    """Simulated pixel maps as a network sees them."""
    data = ImageDataModule(n_train=1, n_val=1, n_test=n, simulation_workers=1)
    data.prepare_data()
    read = data.open("test", n, None)
    transforms = [Rebin(factor), Brightness()]
    return [compose(transforms, read[i], np.random.default_rng([SEED, i])) for i in range(n)]


def measure(subject: Subject, new_tokens: int, beams: int, seconds: float) -> dict:
    """Milliseconds and memory of every way, events taking turns, and whether all ways choose the same labels."""
    turn = [0]

    def taking_turns(call: Callable[[ImageBatch], Sequence[Any]]) -> Callable[[], object]:
        def one() -> object:
            turn[0] += 1
            return call(subject.batches[turn[0] % len(subject.batches)])

        return one

    n = len(subject.batches)
    ways: dict[str, Callable[[ImageBatch], Sequence[Any]]] = {
        "labels": subject.score,
        "first token": lambda batch: subject.score(batch, "first_token"),
        "pass for each label": subject.pass_for_each_label,
        "answer": lambda batch: subject.write(batch, new_tokens),
        "answer, beams": lambda batch: subject.write(batch, new_tokens, beams),
        "inputs": lambda batch: list(subject.inputs(batch)),
    }
    calls = {name: taking_turns(way) for name, way in ways.items()}
    calls["labels, together"] = lambda: subject.score(subject.together)
    repeats = affordable([settled(call, subject.device) for call in calls.values()], seconds, 40)
    times = interleaved(calls, subject.device, repeats)
    chosen = {
        name: [int(_label(ways[name](batch)[0])) for batch in subject.batches] for name in ways if name != "inputs"
    }
    chosen["labels, together"] = subject.score(subject.together)
    rows = []
    for name, took in times.items():
        share = n if name == "labels, together" else 1
        same = None if name == "inputs" else sum(a == b for a, b in zip(chosen[name], chosen["labels"], strict=True))
        rows.append(
            {
                "way": name,
                "ms_per_event": took.ms / share,
                "low": took.low / share,
                "high": took.high / share,
                "repeats": took.repeats,
                "peak_bytes": peak_bytes(calls[name], subject.device),
                "times_faster": times["answer"].ms / (took.ms / share),
                "same_label": same,
            }
        )
    return {"rows": rows, "events": n, "said": [chosen["labels"].count(k) for k in range(len(subject.labels))]}


def _label(found: Any) -> int:
    return found.label if isinstance(found, Answer) else found


# ---------------------------------------------------------------------- the report


def main(arguments: Sequence[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--quantization", choices=("nf4", "none"), default="nf4")
    parser.add_argument("--events", type=int, default=8)
    parser.add_argument("--new_tokens", type=int, default=100, help="of the explanation")
    parser.add_argument("--beams", type=int, default=3, help="of the beam search (not published)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = default_device()
    keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    machine = Machine.measure(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    subject = Subject(options.architecture, device, options.quantization, options.events)
    found = measure(subject, options.new_tokens, options.beams, options.seconds)
    report = {
        **provenance(),
        "seed": SEED,
        "data": "simulated by nufm",
        "machine": machine.as_dict(),
        "architecture": options.architecture,
        "quantization": options.quantization,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "parameters": parameters(options.architecture),
        "weight_bytes": weight_bytes(subject.model),
        "prompt_tokens": int(subject.inputs(subject.batches[0])["input_ids"].shape[1]) + len(subject.labels.prefix),
        "new_tokens": options.new_tokens,
        "beams": options.beams,
        **found,
        "published": PUBLISHED,
    }
    text = markdown(report)
    print(text)
    name = "vlm_inference" + ("" if options.architecture == "tiny" else f"_{options.architecture.replace('-', '_')}")
    save(options.out, result_name(name, device), report, text)
    return report


def parameters(architecture: str) -> int:
    """Of the base, counted on the meta device."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    values = json.loads((ARCHITECTURES / SIZES[architecture][0]).read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    return sum(p.numel() for p in model.parameters())


def words_of(way: str, report: dict) -> str:
    new, beams = report["new_tokens"], report["beams"]
    return {
        "labels": "labels scored on one cache (default)",
        "first token": "first token of each label (published rule)",
        "labels, together": f"labels scored, {report['events']} events at a time",
        "pass for each label": "a whole pass for each label",
        "answer": f"label, then {new} tokens of explanation",
        "answer, beams": f"the same, {beams} beams",
        "inputs": "of it: pictures and text through the processor",
    }[way]


def markdown(report: dict) -> str:
    head = ["", "ms per event", "faster than the answer", "memory (GB)", "same label"]
    rows = []
    for row in report["rows"]:
        same = "" if row["same_label"] is None else f"{row['same_label']} of {report['events']}"
        rows.append(
            [
                words_of(row["way"], report),
                f"{row['ms_per_event']:,.1f} ({row['low']:,.1f}–{row['high']:,.1f})",
                "" if row["way"] == "inputs" else f"{row['times_faster']:.1f} ×",
                f"{(row['peak_bytes'] + report['weight_bytes']) / 1e9:.3g}",
                same,
            ]
        )
    theirs = report["published"]
    rows.append(["published: constrained beam search, A6000", f"{theirs['ms']:,}", "", f"{theirs['memory_gb']}", ""])
    best = {row["way"]: row for row in report["rows"]}["labels"]
    reached = state(best["times_faster"], TARGET, at_most=False)
    size = report["parameters"]
    large = f"{size / 1e9:.2f} G" if size >= 1e8 else f"{size / 1e6:.2f} M"
    return (
        "\n".join(table(head, rows))
        + f"\n\nMllama with {large} parameters ({report['architecture']}), random weights, {report['quantization']}, "
        f"arithmetic in {report['dtype']}, adapters of rank 8; {report['prompt_tokens']} tokens of prompt and two "
        "pictures. One event at a time, from its maps in memory, median and quartiles; memory: weights and torch's "
        f"largest allocations during a call. Target: classification at least {TARGET:.0f} times faster than the "
        f"answer, same labels: {reached} ({best['times_faster']:.1f} ×). The first-token rule is another rule and may "
        "choose other labels, as it does of random weights. Events simulated by nufm. The published time is of another "
        f"machine and of trained weights. {about_machine(report)}\n"
    )


if __name__ == "__main__":
    main()
