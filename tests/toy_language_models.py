"""Tiny language models with random weights, with and without pictures, for tests."""

from __future__ import annotations

import functools
import tempfile

import numpy as np
import torch
import transformers

from nufm.commands.tiny_vlm import make_tiny_vlm
from nufm.data.images import ImageBatch, ImageEvent, View
from nufm.data.prompts import load_prompt
from nufm.models.label_scoring import LabelTokens, append_tokens
from nufm.models.vlm_base import load_base
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


def qwen2_vl() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A tiny Qwen2-VL in float64, whose text positions depend on the pictures, and a prompt with two pictures for each
    of three events.
    """
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.3,
        "max_position_embeddings": 512,
    }
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    marks = {"image_token_id": 99, "vision_start_token_id": 98, "vision_end_token_id": 97, "video_token_id": 96}
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    if int(transformers.__version__.split(".")[0]) >= 5:
        config = Qwen2VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **marks)
    else:
        rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
        config = Qwen2VLConfig(**text, rope_scaling=rope, vision_config=vision, **marks)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Qwen2VLForConditionalGeneration(config).double().eval().requires_grad_(False)
        # 4 × 4 patches of a picture are 4 tokens; the third event has pictures of 4 × 8 and fewer words: other shifts
        square, wide = [98, *[99] * 4, 97], [98, *[99] * 8, 97]
        words = torch.randint(14, 90, (3, 12)).tolist()
        ids = [[*words[i][:4], *square, *square, *words[i][4:12]] for i in (0, 1)]
        ids.append([*words[2][:4], *wide, *square, *words[2][4:8]])
        ids = torch.tensor(ids)
        grids = torch.tensor([[1, 4, 4]] * 4 + [[1, 4, 8], [1, 4, 4]])
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(int(grids.prod(1).sum()), 3 * 2 * 14 * 14).double(),
            "image_grid_thw": grids,
        }
    if int(transformers.__version__.split(".")[0]) >= 5:
        inputs["mm_token_type_ids"] = (ids == 99).long()
    return model, inputs


def naive_scores(model: torch.nn.Module, inputs: dict[str, torch.Tensor], labels: LabelTokens) -> torch.Tensor:
    """(B, K) log-probabilities by a pass over prompt, prefix and label for each label, without a cache."""
    columns = []
    for tokens in labels.tokens:
        for part in (model, getattr(model, "model", None)):
            if hasattr(part, "rope_deltas"):
                part.rope_deltas = None  # Qwen2-VL would take those of the last call
        whole = append_tokens(inputs, (*labels.prefix, *tokens))
        log_p = model(**whole, use_cache=False).logits.log_softmax(-1)[:, -len(tokens) - 1 : -1]
        columns.append(sum(log_p[:, i, token] for i, token in enumerate(tokens)))
    return torch.stack(columns, 1)
