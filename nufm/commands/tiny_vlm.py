"""``scripts/make_tiny_vlm.py``: a tiny image-text model with random weights, of the class of the real one.

It has what a base has (configuration, safetensors, tokenizer, chat template, image processor), so that training, 4-bit
loading, saving and decoding run end to end without a download and without a GPU. It knows nothing.

Its tokenizer is byte-level BPE, trained on the prompts and answers of nufm: frequent words are one token, anything else
is spelt.

The gates of Mllama's cross-attention begin at 0 and are opened by its training. With random weights they would stay
shut: pictures would have no effect at all, and adapters, which leave gates alone, could not open them. Here they stand
at ``GATE``, and so do those of the global layers of the vision tower, which are drawn close to 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from nufm.data.explanations import teaching_sentence
from nufm.data.images import INTERACTION_NAMES, VIEWS
from nufm.data.prompts import load_prompt, prompt_names
from nufm.models.vlm_base import ARCHITECTURES

Family = Literal["mllama", "idefics3"]
GATE = 1.0  # tanh(1) = 0.76
DEVIATION = 0.1  # of embeddings; other weights have that which keeps the size of features
# Of logits. The last layer gets no adapters, so that with 1 no answer could ever be more than 70 % sure.
SPREAD = 2.0
IMAGE = {"mllama": "<|image|>", "idefics3": "<image>"}
# As in Llama 3.
BEGIN, END, HEAD, HEAD_END, PAD = (
    *("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|finetune_right_pad_id|>"),
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def make_tiny_vlm(folder: str | Path, family: Family = "mllama", seed: int = 0, image_size: int = 128) -> Path:
    """Write a tiny base.

    Args:
        folder: made if it is not there.
        family: ``mllama``, as Llama 3.2 Vision, or ``idefics3``, as SmolVLM: picture tokens stand among the text's.
        seed: of the weights.
        image_size: edge of a picture in pixels, a multiple of 32; others are resized to it.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown family, or a size that cannot be cut into patches.
    """
    if family not in IMAGE:
        raise ValueError(f"family is '{family}', expected one of {', '.join(IMAGE)}")
    if image_size < 32 or image_size % 32:
        raise ValueError(f"image_size is {image_size}, expected a multiple of 32 (patches of 16, merged in pairs)")
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder = Path(folder)
    tokenizer = make_tokenizer(family)
    values = json.loads((ARCHITECTURES / f"tiny_{family}.json").read_text(encoding="utf-8"))
    values["vision_config"]["image_size"] = image_size
    image_token = tokenizer.convert_tokens_to_ids(IMAGE[family])
    # The picture token of Mllama is the first id behind those that it can say.
    values["text_config"]["vocab_size"] = len(tokenizer) - (family == "mllama")
    values["image_token_index" if family == "mllama" else "image_token_id"] = image_token
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (("bos", BEGIN), ("eos", END), ("pad", PAD))
    }
    values["text_config"] |= ids
    values["pad_token_id"] = ids["pad_token_id"]
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
        draw_weights(model)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder, safe_serialization=True)
    make_processor(family, tokenizer, image_size).save_pretrained(folder)
    return folder


@torch.no_grad()
def draw_weights(model: torch.nn.Module) -> None:
    """Random weights under which pictures matter, see the head of this file; norms stay 1, biases 0."""
    for name, parameter in model.named_parameters():
        if "gate" in name.rsplit(".", 1)[-1]:
            parameter.fill_(GATE if "positional" not in name else 0.0)
        elif name.startswith("lm_head"):
            parameter.normal_(0.0, SPREAD * parameter.shape[1] ** -0.5)
        elif parameter.dim() > 1:
            embedding = "embed" in name and "patch" not in name
            parameter.normal_(0.0, DEVIATION if embedding else parameter[0].numel() ** -0.5)


def make_tokenizer(family: Family) -> Any:
    """Byte-level BPE on the prompts and answers of nufm, with the special tokens of the family."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    extra = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"] if family == "idefics3" else []
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[BEGIN, END, HEAD, HEAD_END, PAD, *extra],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([IMAGE[family]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[HEAD, HEAD_END, *extra, IMAGE[family]],
        model_input_names=["input_ids", "attention_mask"],  # 4.48 would add the kinds of tokens, which Idefics3 refuses
    )


def corpus() -> list[str]:
    """Everything that prompts and answers say, twice, so that words that stand there once become tokens too; without
    the Greek letters of ``symbols``, which are pieces to large tokenizers."""
    texts = ["system", "user", "assistant"]
    for prompt in map(load_prompt, prompt_names()):
        if not all(label.isascii() for label in prompt.labels):
            continue
        texts += [prompt.system, prompt.user, *(prompt.missing.format(view=view.upper()) for view in VIEWS)]
        texts += [prompt.answer + prompt.continuation(k)[0] for k in range(len(prompt.labels))]
    return 2 * [*texts, *teaching_texts()]


def teaching_texts() -> list[str]:
    """Sentences that answers go on with, of events with one bright pixel."""
    texts = []
    for row in (0, 3):
        for column in (0, 3):
            for view in range(len(VIEWS)):
                image = np.zeros((len(VIEWS), 4, 4), dtype=np.float32)
                image[view, row, column] = 1.0
                direction = np.array([row - 1.5, row - 1.5, column - 1.5])
                texts += [teaching_sentence(k, image, None, direction) for k in range(len(INTERACTION_NAMES))]
    return texts


def make_processor(family: Family, tokenizer: Any, image_size: int) -> Any:
    """The processor of the family for one tile of a size of picture, with a chat template like that of Llama 3."""
    template = TEMPLATE.replace("IMAGE", IMAGE[family])
    if family == "mllama":
        from transformers import MllamaImageProcessor, MllamaProcessor

        size = {"height": image_size, "width": image_size}
        processor = MllamaProcessor(MllamaImageProcessor(size=size, max_image_tiles=1), tokenizer)
        processor.chat_template = template  # transformers 4.48 takes it this way only
        return processor
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    images = Idefics3ImageProcessor(
        do_image_splitting=False, size={"longest_edge": image_size}, max_image_size={"longest_edge": image_size}
    )
    # One token for 2 × 2 patches of 16 × 16 pixels.
    return Idefics3Processor(images, tokenizer, image_seq_len=(image_size // 32) ** 2, chat_template=template)


def main(args: Sequence[str] | None = None) -> None:
    """Run ``scripts/make_tiny_vlm.py`` with these flags; ends the process with status 2 for a bad one."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[1], usage="python scripts/make_tiny_vlm.py --out FOLDER [--KEY VALUE ...]"
    )
    parser.add_argument("--out", required=True, help="folder of the base")
    parser.add_argument("--family", choices=tuple(IMAGE), default="mllama", help="class of model (default: mllama)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    parser.add_argument("--image_size", type=int, default=128, help="edge of a picture in pixels (default: 128)")
    options = parser.parse_args(args)
    console = Console(stderr=True, soft_wrap=True)
    try:
        folder = make_tiny_vlm(options.out, options.family, options.seed, options.image_size)
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        raise SystemExit(2) from None
    print(f"{folder}: a tiny {options.family} with random weights, seed {options.seed}")
    print(f"\nNext: python scripts/finetune.py --config configs/tiny/pixelmap_vlm.yaml --model.network.base {folder}")
