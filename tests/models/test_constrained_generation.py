"""Answers with an explanation: the class is the one of label scoring, the text is what transformers would write."""

from __future__ import annotations

import itertools

import pytest
import torch
from toy_language_models import base, inputs_of, label_tokens, text_model

from nufm.models.constrained_generation import answer, end_tokens, free_text
from nufm.models.label_scoring import Context, LabelTokens, append_tokens, score_labels

FAMILIES = ("mllama", "idefics3")


def prompts(n: int = 3) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 90, (n, 6), generator=torch.Generator().manual_seed(2))}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_the_class_is_that_of_label_scoring(family, beams):
    model, composer = base(family, "brief")
    labels, inputs = label_tokens(composer), inputs_of(composer, model, (False, True, False, False))
    scores = score_labels(model, inputs, labels)
    answers = answer(model, inputs, labels, composer.tokenizer, max_new_tokens=8, beams=beams)
    for i, given in enumerate(answers):
        assert given.label == int(scores.label[i])
        torch.testing.assert_close(given.probability, scores.probability[i].float())
        torch.testing.assert_close(given.log_probability, scores.log_probability[i].float())
        said = f"{composer.prompt.answer} {composer.prompt.labels[given.label]}."
        assert given.text.startswith(said)
        assert given.text == f"{said} {given.explanation}".strip() or given.text == f"{said}{given.explanation}"
        assert given.n_tokens <= len(labels.prefix) + len(labels.tokens[given.label]) + 8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_the_explanation_is_what_transformers_writes(family, beams):
    """Of one length and without an end, for which both compare texts by the log-probability of all tokens."""
    model, composer = base(family, "brief")
    labels, tokenizer = label_tokens(composer), composer.tokenizer
    for number in range(3):
        inputs = inputs_of(composer, model, (False,), first=number)
        (given,) = answer(model, inputs, labels, tokenizer, max_new_tokens=7, beams=beams, ends=())
        so_far = append_tokens(inputs, (*labels.prefix, *labels.tokens[given.label]))
        written = model.generate(
            **so_far,
            max_new_tokens=7,
            min_new_tokens=7,
            num_beams=beams,
            do_sample=False,
            suppress_tokens=sorted(tokenizer.all_special_ids),
            renormalize_logits=True,
            length_penalty=0.0,
        )[0, so_far["input_ids"].shape[1] :]
        assert given.explanation == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_a_beam_search_over_the_labels_finds_the_same_label():
    """That of transformers, with only labels allowed (the published way), and as many beams as there are labels."""
    model, ids = text_model(), prompts(5)
    labels = LabelTokens(("a", "b", "c"), (5, 6), ((7, 8, 9), (7, 10, 11), (12, 13, 9)))
    scores = score_labels(model, ids, labels)
    begin = ids["input_ids"].shape[1] + len(labels.prefix)

    def allowed(_row: int, so_far: torch.Tensor) -> list[int]:
        said = tuple(so_far[begin:].tolist())
        return [tokens[len(said)] for tokens in labels.tokens if tokens[: len(said)] == said and len(said) < 3] or [2]

    found = model.generate(
        **append_tokens(ids, labels.prefix),
        attention_mask=torch.ones(5, begin, dtype=torch.int64),
        max_new_tokens=3,
        num_beams=3,
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed,
    )[:, begin : begin + 3]
    assert [labels.tokens[i] for i in scores.label.tolist()] == [tuple(row) for row in found.tolist()]
    assert len(set(scores.label.tolist())) > 1  # the events do not all agree


def test_an_end_ends_and_keeps_its_place():
    """Against all texts of up to four tokens of a vocabulary of five, one of which ends a text: with as many beams as
    there are prefixes the search is exhaustive."""
    model = text_model()
    known = (10, 11, 12, 13, 14)
    barred = [t for t in range(100) if t not in known]
    ids = prompts(3)
    found = free_text(Context.read(model, ids), 4, (14,), barred, beams=5**3)
    for row in range(3):
        best, best_text = -torch.inf, None
        for text in itertools.product(known, repeat=4):
            end = text.index(14) if 14 in text else 4
            if any(t != 14 for t in text[end:]):
                continue  # one spelling of every ended text
            said = torch.tensor([[*ids["input_ids"][row].tolist(), *text]])
            logits = model(input_ids=said).logits[0, 5:-1]
            log_p = logits[:, list(known)].log_softmax(-1)
            total = sum(float(log_p[i, known.index(t)]) for i, t in enumerate(text[: end + 1]))
            if total > best:
                best, best_text = total, list(text[:end])
        assert found[row] == best_text


def test_events_end_at_their_own_time():
    model, ids = text_model(), prompts(4)
    free = free_text(Context.read(model, ids), 6, ())
    assert all(len(text) == 6 for text in free)
    stop = free[0][2]
    first = free[0].index(stop)
    together = free_text(Context.read(model, ids), 6, (stop,))
    assert together[0] == free[0][:first]
    for row in range(4):
        alone = free_text(Context.read(model, {"input_ids": ids["input_ids"][row : row + 1]}), 6, (stop,))
        assert alone[0] == together[row] and stop not in together[row]


def test_special_tokens_are_not_written_and_nothing_is_an_answer():
    model, composer = base("mllama", "brief")
    labels, inputs = label_tokens(composer), inputs_of(composer, model, (False, False))
    (given, _) = answer(model, inputs, labels, composer.tokenizer, max_new_tokens=0)
    assert given.explanation == "" and given.text.endswith(f"{composer.prompt.labels[given.label]}.")
    ends = end_tokens(model, composer.tokenizer)
    assert composer.tokenizer.eos_token_id in ends
    specials = set(composer.tokenizer.all_special_ids)
    context = Context.read(model, inputs)
    for text in free_text(context, 20, (), sorted(specials), beams=2):
        assert len(text) == 20 and not specials & set(text)


def test_bad_options_are_refused():
    model, composer = base("mllama", "brief")
    labels, inputs = label_tokens(composer), inputs_of(composer, model, (False,))
    with pytest.raises(ValueError, match="beams is 0 and max_new_tokens 5, expected at least 1 and 0"):
        answer(model, inputs, labels, composer.tokenizer, max_new_tokens=5, beams=0)
    with pytest.raises(ValueError, match="rule is 'best'"):
        answer(model, inputs, labels, composer.tokenizer, rule="best")
