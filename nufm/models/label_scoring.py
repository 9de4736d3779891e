"""Which of a few labels does a language model hold for the answer: no text is generated.

With the beginning of the answer forced, a label's log-probability is a sum over its tokens, and all of them follow from
one pass over the prompt: the labels continue it on the same keys and values, the images' included.

Two rules make probabilities of classes from log-probabilities:

* ``whole_label``, the default: log p(label and its end | prompt, prefix), softmax over the labels. This is the model's
  own distribution, given that the answer is one of the labels. A mean per token, which would not depend on a label's
  length, is no probability any more; the end that every label carries (".") is what makes lengths comparable: no label
  is the beginning of another, so that they exclude each other.
* ``first_token``, as published (arXiv 2509.08461, §2): log p of the first token alone, times T = 5, softmax over the
  labels. Labels that begin with the same token cannot be told apart by it: refused.

Shape legend: B events, T tokens of the prompt, K labels, M tokens of a continuation, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Rule = Literal["whole_label", "first_token"]
PREFIX = "I classify the pixel maps as"  # arXiv 2509.08461, §2
SHARPENING = 5.0  # T of the published rule: it multiplies log-probabilities


@dataclass(frozen=True)
class LabelTokens:
    """The forced beginning of the answer and the labels that may follow, as tokens.

    Attributes:
        labels: K texts.
        prefix: tokens of the beginning.
        tokens: of each label, its end included.

    Raises:
        ValueError: fewer than two labels; labels that are the same to the tokenizer (unknown characters, say), or of
            which one begins another.
    """

    labels: tuple[str, ...]
    prefix: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        labels, tokens = self.labels, self.tokens
        if len(labels) < 2 or len(tokens) != len(labels) or not all(tokens):
            raise ValueError(f"labels {list(labels)} are tokens {list(tokens)}, expected some for each of two or more")
        for i, first in enumerate(tokens):
            for j, other in enumerate(tokens):
                if i != j and other[: len(first)] == first:
                    how = "the same as" if first == other else "the beginning of"
                    raise ValueError(
                        f"label '{labels[i]}' is {list(first)} to the tokenizer, {how} label '{labels[j]}' "
                        f"({list(other)}): they cannot be told apart; write the labels in characters that the "
                        "tokenizer knows (such as 'nu_e CC', 'nu_mu CC')"
                    )

    @classmethod
    def of(cls, tokenizer: Any, labels: Sequence[str], prefix: str = PREFIX, end: str = ".") -> LabelTokens:
        """Tokens of "prefix label end", each piece by itself, as answers are written in training.

        Args:
            tokenizer: of transformers.
            labels: K texts.
            prefix: text that every answer begins with.
            end: of a label, what tells "a" from the beginning of "a b".
        """

        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

        return cls(tuple(labels), encode(prefix), tuple(encode(f" {label}{end}") for label in labels))

    def __len__(self) -> int:
        """Labels."""
        return len(self.labels)

    def check_first_tokens(self) -> None:
        """Whether the first token says which label it is.

        Raises:
            ValueError: it does not; names the labels.
        """
        seen: dict[int, str] = {}
        for label, (first, *_) in zip(self.labels, self.tokens, strict=True):
            if first in seen:
                raise ValueError(
                    f"labels '{seen[first]}' and '{label}' both begin with token {first}, so the rule 'first_token' "
                    "cannot tell them apart; use the rule 'whole_label', or labels whose first tokens differ"
                )
            seen[first] = label


@dataclass(frozen=True)
class LabelScores:
    """What the model holds for the answer.

    Attributes:
        log_probability: (B, K) of the whole label, or of its first token, as the rule says; natural logarithm.
        probability: (B, K) over the labels.
    """

    log_probability: Tensor
    probability: Tensor

    @property
    def label(self) -> Tensor:
        """int64 (B,) the most probable."""
        return self.log_probability.argmax(1)


def append_tokens(inputs: Mapping[str, Tensor], tokens: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """Prepared inputs with text behind them.

    Args:
        inputs: ``input_ids`` (B, T) and what belongs to them.
        tokens: M, the same for all events, or (B, M).
    """
    ids = inputs["input_ids"]
    more = torch.as_tensor(tokens, dtype=ids.dtype, device=ids.device)
    more = more.expand(len(ids), -1) if more.dim() == 1 else more
    longer = {**inputs, "input_ids": torch.cat([ids, more], 1)}
    for name, value in inputs.items():
        if name == "attention_mask":
            longer[name] = torch.cat([value, torch.ones_like(more, dtype=value.dtype)], 1)
        elif name == "cross_attention_mask":  # (B, T, images, tiles): text sees the images that the text before it sees
            longer[name] = torch.cat([value, value[:, -1:].expand(-1, more.shape[1], -1, -1)], 1)
        elif name.endswith("token_type_ids"):  # 0: text
            longer[name] = torch.cat([value, torch.zeros_like(more, dtype=value.dtype)], 1)
    return longer


class Context:
    """A text that the model has read, its keys and values kept.

    Attributes:
        logits: (B, V) of the next token.
    """

    def __init__(
        self,
        model: nn.Module,
        cache: Any,
        logits: Tensor,
        mask: Tensor,
        cross_mask: Tensor | None,
        position: Tensor | None,
    ) -> None:
        self.model, self.logits = model, logits
        self._cache, self._mask, self._cross_mask, self._position = cache, mask, cross_mask, position

    @classmethod
    def read(cls, model: nn.Module, inputs: Mapping[str, Tensor]) -> Context:
        """One pass over a prompt.

        Shorter prompts of a batch are padded on the left. Positions are then counted from the padding on, which does
        not matter where they enter by their differences (rotary embeddings), as in the image-text models of today.

        Raises:
            ValueError: padding on the right, or any padding where pictures shift the positions of the text behind them.
        """
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        if not bool(mask[:, -1].all()):
            row = int((mask[:, -1] == 0).nonzero()[0])
            raise ValueError(
                f"the prompt of event {row} of the batch is padded on the right ({int(mask[row].sum())} of "
                f"{mask.shape[1]} tokens), so that the answer would follow the padding; pad on the left "
                "(tokenizer.padding_side = 'left')"
            )
        shifted = _with_shifted_positions(model)
        if shifted is not None:
            if not bool(mask.all()):
                row = int((mask == 0).any(1).nonzero()[0])
                raise ValueError(
                    f"the prompt of event {row} of the batch is padded, to {mask.shape[1]} tokens, which a "
                    f"{type(shifted).__name__} counts as positions or not, by its version; give it prompts of one "
                    "length: one event at a time (batch_size 1)"
                )
            shifted.rope_deltas = None  # those of an earlier prompt would be taken for this one's
        output = model(**inputs, use_cache=True, **_only_last(model))
        cross = inputs.get("cross_attention_mask")
        last = None if cross is None else cross[:, -1:]
        next_position = None if shifted is None else mask.shape[1] + shifted.rope_deltas
        return cls(model, output.past_key_values, output.logits[:, -1], mask, last, next_position)

    def rows(self, index: Tensor) -> Context:
        """The context of some events, as often as they are named; this one stays as it is.

        Args:
            index: int64 (B',) of the events.
        """
        index = index.to(self.logits.device)
        cross = None if self._cross_mask is None else self._cross_mask[index]
        position = None if self._position is None else self._position[index]
        cache = _with_rows(self._cache, index)
        return Context(self.model, cache, self.logits[index], self._mask[index], cross, position)

    def advance(self, tokens: Tensor) -> Tensor:
        """Read on.

        Args:
            tokens: int64 (B, M).

        Returns:
            logits (B, M, V) behind each token.
        """
        self._mask = torch.cat([self._mask, torch.ones_like(tokens, dtype=self._mask.dtype)], 1)
        more = {}
        if self._cross_mask is not None:  # text sees the images that the text before it sees
            more["cross_attention_mask"] = self._cross_mask.expand(-1, tokens.shape[1], -1, -1)
        if self._position is not None:
            run = self._position + torch.arange(tokens.shape[1], device=tokens.device)
            more["position_ids"] = run.expand(3, -1, -1)  # text moves along time, height and width alike
            self._position = self._position + tokens.shape[1]
        output = self.model(
            input_ids=tokens, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **more
        )
        self._cache, self.logits = output.past_key_values, output.logits[:, -1]
        return output.logits


def _only_last(model: nn.Module) -> dict[str, int]:
    """The argument that spares all logits but the last token's: (T, 128256) would be the largest tensor."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(inner.forward).parameters
    return next(({name: 1} for name in ("logits_to_keep", "num_logits_to_keep") if name in known), {})


def _with_shifted_positions(model: nn.Module) -> Any:
    """The part of a model that keeps by how much pictures shift the positions of the text behind them (Qwen2-VL and
    others with positions in time, height and width); None: there is none.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return next((part for part in (inner, getattr(inner, "model", None)) if hasattr(part, "rope_deltas")), None)


def _with_rows(cache: Any, index: Tensor) -> Any:
    """A cache with these rows of another, which stays as it is.

    Cross-attention layers hold the images, not the text: they are of another length, and may be empty.
    """

    def chosen(value: Tensor | None) -> Tensor | None:
        if value is None or value.dim() < 4 or value.numel() == 0:
            return value
        # One event needs no copies: those of the images' keys would be the largest tensors of the pass.
        return value.expand(len(index), -1, -1, -1) if len(value) == 1 else value[index]

    new = copy.copy(cache)
    if hasattr(cache, "layers"):
        new.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in new.layers:
            layer.keys, layer.values = chosen(layer.keys), chosen(layer.values)
    else:  # transformers < 4.54
        new.key_cache = [chosen(k) for k in cache.key_cache]
        new.value_cache = [chosen(v) for v in cache.value_cache]
    return new


def score_labels(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    labels: LabelTokens,
    rule: Rule = "whole_label",
    sharpening: float | None = None,
) -> LabelScores:
    """Score all labels behind the forced prefix.

    Args:
        model: causal, with or without images (transformers; peft around it or not).
        inputs: of the prompt, up to where the answer begins; B events, padded on the left.
        labels: see :class:`LabelTokens`.
        rule: see the module.
        sharpening: factor of the log-probabilities in front of the softmax; None: 1 for ``whole_label``, the published
            5 for ``first_token``. It changes no decision.

    Raises:
        ValueError: an unknown rule; ``first_token`` with labels whose first tokens coincide; padding on the right.
    """
    if rule == "first_token":
        labels.check_first_tokens()
    context = read_prompt(model, inputs, labels)
    return score_continuations(context, labels, rule, sharpening)


def read_prompt(model: nn.Module, inputs: Mapping[str, Tensor], labels: LabelTokens) -> Context:
    """One pass over the prompt and the forced prefix."""
    return Context.read(model, append_tokens(inputs, labels.prefix))


def score_continuations(
    context: Context, labels: LabelTokens, rule: Rule = "whole_label", sharpening: float | None = None
) -> LabelScores:
    """As :func:`score_labels`, behind a context that was read; the context stays as it is."""
    if rule not in ("whole_label", "first_token"):
        raise ValueError(f"rule is '{rule}', expected 'whole_label' or 'first_token'")
    first = torch.tensor([tokens[0] for tokens in labels.tokens], device=context.logits.device)
    log_p = _log_softmax(context.logits)[:, first]
    if rule == "first_token":
        labels.check_first_tokens()
    elif max(map(len, labels.tokens)) > 1:
        log_p = log_p + _rest(context, labels)
    factor = (SHARPENING if rule == "first_token" else 1.0) if sharpening is None else sharpening
    return LabelScores(log_p, (factor * log_p).softmax(1))


def _rest(context: Context, labels: LabelTokens) -> Tensor:
    """(B, K) log-probability of all tokens of a label but the first: one pass, labels side by side in the batch."""
    n_events, device = len(context.logits), context.logits.device
    length = max(map(len, labels.tokens))
    # What fills up the shorter labels is behind them, so nothing that counts sees it.
    padded = torch.tensor([[*t, *[t[-1]] * (length - len(t))] for t in labels.tokens], device=device)
    counts = torch.tensor([len(t) for t in labels.tokens], device=device)
    side_by_side = context.rows(torch.arange(n_events, device=device).repeat_interleave(len(labels)))
    logits = side_by_side.advance(padded[:, :-1].repeat(n_events, 1))
    target = padded[:, 1:].repeat(n_events, 1)
    log_p = _log_softmax(logits).gather(2, target[..., None])[..., 0].view(n_events, len(labels), length - 1)
    inside = torch.arange(1, length, device=device) < counts[:, None]
    return torch.where(inside, log_p, 0.0).sum(2)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least: bf16 has 8 bits, and log-probabilities of labels are compared."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
