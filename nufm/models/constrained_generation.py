"""The whole answer of a language model: the forced beginning, one of the labels, and free text behind it.

The published way is a beam search in which only labels may follow the prefix (arXiv 2509.08461, §2). A search over the
tree of K labels with K beams or more visits every label, and its best path is the label of largest log-probability: the
one of ``nufm.models.label_scoring``. One that goes on into the free text may still change its mind, when an unlikely
label has a likely explanation; with fewer beams it may lose the best label at its first token. So the label is chosen
first, by the same scores on the same pass as classification, and then explained: **the class with an explanation is
the class without one**.

Shape legend: B events, K labels, V tokens of the vocabulary, R = B × beams rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nufm.models.label_scoring import Context, LabelScores, LabelTokens, Rule, read_prompt, score_continuations


@dataclass(frozen=True)
class Answer:
    """Of one event.

    Attributes:
        label: number of the label.
        log_probability: float32 (K,) of the labels, see :class:`nufm.models.label_scoring.LabelScores`.
        probability: float32 (K,) of the labels.
        text: the whole answer.
        explanation: what follows the label.
        n_tokens: tokens of the whole answer.
    """

    label: int
    log_probability: Tensor
    probability: Tensor
    text: str
    explanation: str
    n_tokens: int

    def __str__(self) -> str:
        return self.text


def end_tokens(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer: those of the model's generation settings and of the tokenizer."""
    settings = getattr(model, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    ends = {*(found if isinstance(found, list | tuple) else [found]), tokenizer.eos_token_id}
    return tuple(sorted(token for token in ends if token is not None))


@torch.inference_mode()
def answer(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    labels: LabelTokens,
    tokenizer: Any,
    max_new_tokens: int = 100,
    beams: int = 1,
    rule: Rule = "whole_label",
    ends: Collection[int] | None = None,
) -> list[Answer]:
    """Classify B events and let the model say why.

    Args:
        model: causal, with or without images; in ``eval`` mode.
        inputs: of the prompt, up to where the answer begins; B events, padded on the left.
        labels: see :class:`nufm.models.label_scoring.LabelTokens`.
        tokenizer: of the model.
        max_new_tokens: of the explanation.
        beams: of the search for the explanation; 1: the most probable token each time. The paper does not say how many.
        rule: by which the label is chosen.
        ends: tokens that end the answer; None: :func:`end_tokens`; none of them: all ``max_new_tokens`` are written.

    Raises:
        ValueError: fewer than one beam or a negative number of tokens; what :func:`score_labels` refuses.
    """
    if beams < 1 or max_new_tokens < 0:
        raise ValueError(f"beams is {beams} and max_new_tokens {max_new_tokens}, expected at least 1 and 0")
    ends = frozenset(end_tokens(model, tokenizer) if ends is None else ends)
    # Free text is text: a token that stands for a picture would have no picture.
    barred = sorted(set(tokenizer.all_special_ids) - ends)
    context = read_prompt(model, inputs, labels)
    scores = score_continuations(context, labels, rule)
    chosen = scores.label.tolist()
    written: dict[int, list[int]] = {}
    # Events with the same label go on together: their answers have the same length so far.
    for number in sorted(set(chosen)):
        events = [i for i, label in enumerate(chosen) if label == number]
        rows = torch.tensor(events, device=context.logits.device)
        part = context.rows(rows)
        part.advance(torch.tensor(labels.tokens[number], device=rows.device).expand(len(events), -1))
        texts = free_text(part, max_new_tokens, ends, barred, beams)
        written.update(zip(events, texts, strict=True))
    return [_answer(i, chosen[i], scores, labels, written[i], tokenizer) for i in range(len(chosen))]


def _answer(
    row: int, number: int, scores: LabelScores, labels: LabelTokens, written: list[int], tokenizer: Any
) -> Answer:
    tokens = [*labels.prefix, *labels.tokens[number], *written]
    return Answer(
        label=number,
        log_probability=scores.log_probability[row].float().cpu(),
        probability=scores.probability[row].float().cpu(),
        text=tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        explanation=tokenizer.decode(written, skip_special_tokens=True).strip(),
        n_tokens=len(tokens),
    )


def free_text(
    context: Context, max_new_tokens: int, ends: Collection[int], barred: Collection[int] = (), beams: int = 1
) -> list[list[int]]:
    """The most probable texts behind a context that a beam search finds.

    A text that has ended keeps its place among the beams with the log-probability it has. Texts of different length are
    compared by the log-probability of all their tokens.

    Args:
        context: of B events; it is read on.
        max_new_tokens: of a text.
        ends: tokens that end a text.
        barred: tokens that are not written.
        beams: texts that are followed.

    Returns:
        B texts as tokens, without the token that ended them.
    """
    n_events, device = len(context.logits), context.logits.device
    n_tokens = context.logits.shape[1]
    last = torch.tensor(sorted(ends), device=device, dtype=torch.int64)
    never = torch.tensor([t for t in barred if t < n_tokens], device=device, dtype=torch.int64)
    if beams > 1:
        context = context.rows(torch.arange(n_events, device=device).repeat_interleave(beams))
    # All beams of an event are the same at first: one of them counts.
    total = torch.full((n_events, beams), -torch.inf, device=device)
    total[:, 0] = 0.0
    texts = torch.zeros((n_events * beams, 0), dtype=torch.int64, device=device)
    ended = torch.zeros(n_events * beams, dtype=torch.bool, device=device)
    filler = int(last[0]) if len(last) else 0
    for step in range(max_new_tokens):
        log_p = context.logits.float().index_fill(1, never, -torch.inf).log_softmax(-1)
        # Behind its end a text has one continuation, at no cost.
        log_p[ended] = -torch.inf
        log_p[ended, filler] = 0.0
        together = (total[:, :, None] + log_p.view(n_events, beams, n_tokens)).flatten(1)
        total, best = together.topk(beams, dim=1)
        beam, token = best // n_tokens, best % n_tokens
        row = (beam + beams * torch.arange(n_events, device=device)[:, None]).flatten()
        texts = torch.cat([texts[row], token.view(-1, 1)], 1)
        ended = ended[row] | torch.isin(texts[:, -1], last)
        if step + 1 == max_new_tokens or bool(ended.all()):
            break
        if beams > 1:
            context = context.rows(row)
        context.advance(texts[:, -1:])
    first = texts.view(n_events, beams, -1)[:, 0].tolist()
    return [_before_end(text, ends) for text in first]


def _before_end(text: list[int], ends: Collection[int]) -> list[int]:
    return text[: next((i for i, token in enumerate(text) if token in ends), len(text))]
