"""Events as an image-text model of transformers reads them: two pictures, a question, the beginning of the answer.

Every family has a processor of its own, which knows how pictures are cut, where their tokens stand in the text and
which masks go with them; it is used as it comes with the base. What is ours is which pictures and which text it gets:

* A view becomes an 8-bit grey picture in RGB, 0 … 255 for transformed charges 0 … 1, with the transverse coordinate
  upwards: row 0 of a map is the lowest, row 0 of a picture the highest.
* Both pictures come first, then the question, without a word between the pictures: the text tokens of Mllama see the
  last block of consecutive pictures before them only, so that "XZ: <image> YZ: <image> …" would hide the XZ view.
* A missing view is a black picture, and the question says that it is missing.
* A base with a chat template gets system and user messages; templates that take no system message beside pictures (that
  of Llama 3.2 Vision) get its text at the head of the user's. A base without one gets the texts as they are.
* The date in the chat template of Llama 3 is fixed: the same event must mean the same tomorrow.

Shape legend: B events, L tokens, I pictures of an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nufm.data.images import VIEWS, ImageBatch
from nufm.data.prompts import Prompt
from nufm.models.label_scoring import append_tokens

DATE = "26 Jul 2024"  # the one that the template of Llama 3 itself falls back to
IGNORED = -100  # of the labels of tokens that are not learnt


@dataclass(frozen=True)
class Example:
    """An event that is shown with its answer before the question (few-shot in context).

    Attributes:
        image: float32 (V, H, W) in [0, 1].
        present: V of bool.
        answer: the whole answer.
    """

    image: Tensor
    present: Sequence[bool]
    answer: str


def pictures(image: Tensor, present: Sequence[bool]) -> list[Any]:
    """The views (V, H, W), with values in [0, 1], of an event as pictures (PIL, RGB), the transverse axis upwards."""
    from PIL import Image  # comes with timm

    there = torch.as_tensor(list(present), dtype=image.dtype, device=image.device)[:, None, None]
    grey = (image * there).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()[:, ::-1]
    return [Image.fromarray(np.ascontiguousarray(np.repeat(view[..., None], 3, axis=2))) for view in grey]


class PromptComposer:
    """Text and pictures of a batch, through the processor of the base.

    Args:
        processor: of the base, with a tokenizer in it.
        prompt: what is asked.

    Raises:
        ValueError: a processor that takes no pictures.
    """

    def __init__(self, processor: Any, prompt: Prompt) -> None:
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise ValueError(
                f"the base's processor is a {type(processor).__name__}, which takes no pictures; expected one with an "
                "image processor and a tokenizer, as image-text models have"
            )
        self.processor, self.prompt = processor, prompt
        self.tokenizer = processor.tokenizer
        # All questions of a batch end in the same column: answers are appended there, and generation goes on from it.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._system_refused = False

    # ---- texts

    def text(self, present: Sequence[bool], examples: Sequence[Example] = ()) -> str:
        """What stands before the answer, with the base's own marks for pictures."""
        turns: list[tuple[str, str]] = []
        for example in examples:
            turns += [("user", self.prompt.question(example.present)), ("assistant", example.answer)]
        turns.append(("user", self.prompt.question(present)))
        return self._templated(turns) if self.has_template else self._plain(turns)

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def _templated(self, turns: Sequence[tuple[str, str]]) -> str:
        from jinja2 import TemplateError

        if self.prompt.system and not self._system_refused:
            try:
                return self._filled([("system", self.prompt.system), *turns])
            except TemplateError:
                self._system_refused = True
        if self.prompt.system:
            (role, first), *rest = turns
            turns = [(role, f"{self.prompt.system}\n\n{first}"), *rest]
        return self._filled(turns)

    def _filled(self, turns: Sequence[tuple[str, str]]) -> str:
        messages = [
            {
                "role": role,
                "content": [{"type": "image"}] * (len(VIEWS) * (role == "user")) + [{"type": "text", "text": text}],
            }
            for role, text in turns
        ]
        dated = {"date_string": DATE} if "date_string" in str(self.processor.chat_template) else {}
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **dated)

    def _plain(self, turns: Sequence[tuple[str, str]]) -> str:
        mark = str(self.processor.image_token) * len(VIEWS)
        lines = [f"{mark}{text}" if role == "user" else text for role, text in turns]
        return "\n".join([*([self.prompt.system] if self.prompt.system else []), *lines, ""])

    # ---- tokens

    def tokens(self, text: str) -> list[int]:
        """Token ids of a piece of an answer, without marks of beginning or end."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def prefix_tokens(self) -> list[int]:
        """How every answer begins."""
        return self.tokens(self.prompt.answer)

    def label_tokens(self) -> list[list[int]]:
        """How it goes on, for every class: the label and the full stop."""
        return [self.tokens(self.prompt.continuation(k)[0]) for k in range(len(self.prompt.labels))]

    def answer_tokens(self, label: int, explanation: str = "") -> list[int]:
        """A whole answer with the token that ends it. Its pieces are cut into tokens one by one, so that training and
        scoring see the same ones."""
        said, why = self.prompt.continuation(label, explanation)
        return [*self.prefix_tokens(), *self.tokens(said), *self.tokens(why), self.tokenizer.eos_token_id]

    def answer_text(self, label: int, explanation: str = "") -> str:
        return self.prompt.answer + "".join(self.prompt.continuation(label, explanation))

    # ---- batches

    def inputs(self, batch: ImageBatch, examples: Sequence[Example] = ()) -> dict[str, Tensor]:
        """What the model takes, up to where the answer begins: ``input_ids`` (B, L), padded on the left,
        ``pixel_values`` and whatever else its family needs."""
        shown = [picture for example in examples for picture in pictures(example.image, example.present)]
        present = batch.present.tolist()
        encoded = self.processor(
            text=[self.text(there, examples) for there in present],
            images=[[*shown, *pictures(image, there)] for image, there in zip(batch.image, present, strict=True)],
            padding=True,
            add_special_tokens=not self.has_template,  # a template writes them itself
            return_tensors="pt",
        )
        return {k: v for k, v in encoded.items() if isinstance(v, Tensor)}


def appended(inputs: Mapping[str, Tensor], rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Inputs with tokens of the answer behind them.

    Args:
        inputs: of B events.
        rows: token ids for each event; shorter ones are padded on the right.
        pad: id of the padding.

    Returns:
        The inputs, and ``labels`` int64 (B, L): the appended ids, ``IGNORED`` elsewhere.
    """
    device, (n, length) = inputs["input_ids"].device, inputs["input_ids"].shape
    longest = max(map(len, rows))
    ids = torch.full((n, longest), pad, dtype=torch.int64)
    known = torch.zeros((n, longest), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        known[i, : len(row)] = 1
    ids, known = ids.to(device), known.to(device)
    found = append_tokens({name: value for name, value in inputs.items() if name != "labels"}, ids)
    if "attention_mask" in found:
        found["attention_mask"][:, length:] = known
    before = inputs.get("labels", torch.full((n, length), IGNORED, device=device))
    found["labels"] = torch.cat([before, ids.masked_fill(known == 0, IGNORED)], 1)
    return found
