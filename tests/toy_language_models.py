"""Tiny language models with random weights, with and without pictures, for tests."""

from __future__ import annotations

import functools
import tempfile

import numpy as np
import torch

from nufm.commands.tiny_vlm import make_tiny_vlm
from nufm.data.images import ImageBatch, ImageEvent, View
from nufm.data.prompts import load_prompt
from nufm.models.label_scoring import LabelTokens, append_tokens
from nufm.models.vlm import load_base
from nufm.models.vlm_inputs import PromptComposer

SIZE = 32


@functools.lru_cache
def folder(family: str) -> str:
    """Of a tiny base; removed at the end of the tests."""
    kept = tempfile.TemporaryDirectory()
    folders.append(kept)
    return str(make_tiny_vlm(f"{kept.name}/{family}", family, image_size=SIZE))


folders: list[tempfile.TemporaryDirectory] = []


@functools.lru_cache
def base(family: str, prompt: str) -> tuple[torch.nn.Module, PromptComposer]:
    """A tiny image-text model in float64 and what makes its inputs."""
    model, processor = load_base(folder(family), "none", "float32")
    return model.double().eval().requires_grad_(False), PromptComposer(processor, load_prompt(prompt))


def image_event(number: int, missing: bool = False, interaction: int = 0) -> ImageEvent:
    """Some pixels on a line, different ones for each number."""
    rng = np.random.default_rng(number)
    image = np.zeros((SIZE, SIZE), dtype=np.float32)
    rows = np.linspace(SIZE // 2, rng.uniform(0, SIZE - 1), SIZE // 2).astype(int)
    image[rows, np.arange(SIZE // 2, SIZE)] = rng.uniform(0.3, 1.0, SIZE // 2)
    view = View.of_image(image)
    views = {"xz": view} if missing else {"xz": view, "yz": View.of_image(image[::-1])}
    truth = {
        "interaction": np.int64(interaction),
        "lepton": np.array([rows[-1] - SIZE / 2, SIZE / 2 - rows[-1], SIZE / 2], dtype=np.float32),
    }
    return ImageEvent(views, (SIZE, SIZE), truth=truth, name=f"toy {number}", seed=number)


def inputs_of(
    composer: PromptComposer, model: torch.nn.Module, missing: tuple[bool, ...], first: int = 0
) -> dict[str, torch.Tensor]:
    """The question about as many events, some with a missing view, whose question is longer."""
    batch = ImageBatch.from_events([image_event(first + i, absent) for i, absent in enumerate(missing)])
    return {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in composer.inputs(batch).items()}


def label_tokens(composer: PromptComposer) -> LabelTokens:
    tokens = tuple(tuple(label) for label in composer.label_tokens())
    return LabelTokens(tuple(composer.prompt.labels), tuple(composer.prefix_tokens()), tokens)


def text_model() -> torch.nn.Module:
    """A tiny Llama in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,  # with the usual 0.02 all tokens would be about as likely
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return LlamaForCausalLM(config).double().eval().requires_grad_(False)


def naive_scores(model: torch.nn.Module, inputs: dict[str, torch.Tensor], labels: LabelTokens) -> torch.Tensor:
    """(B, K) log-probabilities by a pass over prompt, prefix and label for each label, without a cache."""
    columns = []
    for tokens in labels.tokens:
        whole = append_tokens(inputs, (*labels.prefix, *tokens))
        log_p = model(**whole, use_cache=False).logits.log_softmax(-1)[:, -len(tokens) - 1 : -1]
        columns.append(sum(log_p[:, i, token] for i, token in enumerate(tokens)))
    return torch.stack(columns, 1)
