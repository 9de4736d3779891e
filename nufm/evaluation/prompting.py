"""What the wording of the question and examples in it are worth to an image-text model.

    few_shot          the frozen base, without adapters, is shown one labelled training event of each class before the
                      question (arXiv 2509.08461, §5: accuracy 0.3678, every event called νe CC)
    prompt_ablation   the trained model is asked in other words than in training, such as without the definitions of
                      the classes (the paper: 0.86 in place of 0.87)

Classes are scored as ever, without generation (``nufm.models.label_scoring``). All rows of a study are the same events.

Shape legend: n events, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from nufm.checkpoint import Pretrained
from nufm.checkpoint.temperature import calibrated
from nufm.data.images import ImageEvent
from nufm.data.prompts import END_OF_LABEL, load_prompt, prompt_names
from nufm.evaluation.class_scores import (
    change,
    classified_label,
    kept_temperature_of,
    scores_of,
    true_classes,
    without_temperature,
)
from nufm.evaluation.event_scores import check_events, plain
from nufm.evaluation.scores import batches
from nufm.evaluation.tables import percent, table, temperature_text
from nufm.models.label_scoring import LabelTokens
from nufm.models.vlm import VisionLanguageClassifier
from nufm.models.vlm_inputs import Example, PromptComposer

SHUFFLE = 1000  # training events that are looked through for one of each class


def vlm_of(pretrained: Pretrained) -> VisionLanguageClassifier:
    """The image-text model of an export.

    Raises:
        ValueError: it is another kind of network.
    """
    if not isinstance(pretrained.model, VisionLanguageClassifier):
        raise ValueError(
            f"{pretrained.source}: a {type(pretrained.model).__name__} is asked nothing, so words and examples are "
            "nothing to it; give the run of an image-text model (configs/tiny/pixelmap_vlm.yaml)"
        )
    return pretrained.model


@contextmanager
def asked(model: VisionLanguageClassifier, prompt: str) -> Iterator[VisionLanguageClassifier]:
    """The model with another template (see ``nufm.data.prompts``) for as long as the context lasts.

    Raises:
        FileNotFoundError, ValueError: no such template, or labels that the tokenizer cannot tell apart.
    """
    own = prompt == model.arguments["prompt"]  # its words are those of its training, whatever their file says now
    template = model.prompt if own else load_prompt(prompt)
    labels = LabelTokens.of(model.tokenizer, template.labels, template.answer, END_OF_LABEL)
    if model.rule == "first_token":
        labels.check_first_tokens()
    before = model.composer, model.labels
    model.composer, model.labels = PromptComposer(model.composer.processor, template), labels
    try:
        yield model
    finally:
        model.composer, model.labels = before


@torch.inference_mode()
def class_probabilities(
    pretrained: Pretrained,
    events: Sequence[ImageEvent],
    batch_size: int,
    examples: Sequence[Example] = (),
    progress: bool = True,
) -> np.ndarray:
    """Float (n, K) of an image-text model that is shown some examples first, with the temperature of its export."""
    model = vlm_of(pretrained).eval()
    rows = [
        model.scores(pretrained.batch(some).to(model.device), examples).probability.double().cpu().numpy()
        for some in batches(events, batch_size, progress)
    ]
    found = np.concatenate(rows)
    return calibrated({classified_label(pretrained): found}, pretrained.extra)[classified_label(pretrained)]


def draw_examples(
    pretrained: Pretrained, events: Sequence[ImageEvent], rng: np.random.Generator
) -> list[tuple[ImageEvent, Example]]:
    """A labelled event of every class, in random order, with the answer that training teaches, but no explanation.

    Raises:
        ValueError: a class that no event has.
    """
    model, label = vlm_of(pretrained), classified_label(pretrained)
    classes = pretrained.classes[label]
    found: dict[int, ImageEvent] = {}
    for i in rng.permutation(len(events))[:SHUFFLE]:
        event = events[int(i)]
        number = int(event.truth.get(label, -1))
        if number >= 0:
            found.setdefault(number, event)
        if len(found) == len(classes):
            break
    if missing := [name for k, name in enumerate(classes) if k not in found]:
        raise ValueError(
            f"{len(events)} events to take examples from have no {', '.join(missing)} among the {SHUFFLE} looked at; "
            "expected one of each class: use training events with labels of all classes"
        )
    shown = []
    for number in rng.permutation(sorted(found)).tolist():
        batch = pretrained.batch([found[number]])
        example = Example(batch.image[0], batch.present[0].tolist(), model.composer.answer_text(number))
        shown.append((found[number], example))
    return shown


def few_shot(
    pretrained: Pretrained,
    training: Sequence[ImageEvent],
    events: Sequence[ImageEvent],
    *,
    batch_size: int = 8,
    draws: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """The frozen base with one example of each class, and without, beside the trained model.

    Args:
        pretrained: an image-text model with adapters.
        training: events that examples are drawn from.
        events: to score.
        batch_size: events at a time.
        draws: sets of examples.
        seed: of the draws.
        progress: show a bar on the terminal.

    Returns:
        ``study``, ``label``, ``classes``, ``events`` with a known class, ``support`` (K,), ``temperature`` (label -> T
        of the export, which rows of the frozen base do not have), ``rows``: one dict for each with ``words`` and the
        numbers of ``nufm.evaluation.class_scores.scores_of``, those after the first with changes
        against it; rows of examples have their ``examples`` (names of events).

    Raises:
        ValueError: a model without words; no events, or none of a class.
    """
    model = vlm_of(pretrained)

    def frozen(examples: Sequence[Example]) -> np.ndarray:
        with model.frozen_base():
            # A temperature was fitted for the trained model: it says nothing of the base.
            return class_probabilities(without_temperature(pretrained), events, batch_size, examples, progress)

    cases: list[tuple[dict[str, Any], Callable[[], np.ndarray]]] = [
        ({"words": "trained"}, lambda: class_probabilities(pretrained, events, batch_size, (), progress)),
        ({"words": "frozen base"}, lambda: frozen(())),
    ]
    for i in range(draws):
        drawn = draw_examples(pretrained, training, np.random.default_rng([seed, i]))
        names = [event.name for event, _ in drawn]
        shots = [example for _, example in drawn]
        words = f"frozen base, one example of each class, draw {i + 1}"
        cases.append(({"words": words, "examples": names}, lambda shots=shots: frozen(shots)))
    return {"study": "few_shot"} | _scored(pretrained, events, cases)


def prompt_ablation(
    pretrained: Pretrained,
    events: Sequence[ImageEvent],
    prompts: Sequence[str] | None = None,
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> dict[str, Any]:
    """The trained model asked with other templates than that of its training.

    Args:
        pretrained: an image-text model.
        events: to score.
        prompts: templates, by name or path; None: all that nufm has. Its own comes first in any case.
        batch_size: events at a time.
        progress: show a bar on the terminal.

    Returns:
        As :func:`few_shot`; a row has ``prompt``, its name, and ``tokens``: how long the question about the first event
        is.

    Raises:
        FileNotFoundError, ValueError: what :func:`asked` and :func:`few_shot` refuse; a template that the first-token
            rule, if the model has it, cannot decide with.
    """
    model = vlm_of(pretrained)
    check_events(pretrained, events)
    first = pretrained.batch([events[0]])
    cases = []
    for prompt in dict.fromkeys([str(model.arguments["prompt"]), *(prompt_names() if prompts is None else prompts)]):
        with asked(model, prompt):
            name, tokens = model.composer.prompt.name, int(model.prepare(first)["input_ids"].shape[1])

        def score(prompt: str = prompt) -> np.ndarray:
            with asked(model, prompt):
                return class_probabilities(pretrained, events, batch_size, (), progress)

        words = name if cases else f"{name}, as in training"
        cases.append(({"words": words, "prompt": name, "tokens": tokens}, score))
    return {"study": "prompt"} | _scored(pretrained, events, cases)


def _scored(
    pretrained: Pretrained,
    events: Sequence[ImageEvent],
    cases: Sequence[tuple[Mapping[str, Any], Callable[[], np.ndarray]]],
) -> dict[str, Any]:
    """Scores of the same events for each case, with changes against the first."""
    check_events(pretrained, events)
    label = classified_label(pretrained)
    classes = list(pretrained.classes[label])
    target = true_classes(events, label)
    known = target >= 0
    if not known.any():
        raise ValueError(
            f"{events[0].name}: none of the {len(target)} events has a known '{label}'; use labelled events"
        )
    rows, before = [], None
    for head, score in cases:
        probability = score()[known]
        row = dict(head) | scores_of(probability, target[known])
        if before is None:
            before = probability
        else:
            row |= change(before, probability, target[known])
        rows.append(row)
    support = np.bincount(target[known], minlength=len(classes)).tolist()
    shown = {"label": label, "classes": classes, "events": int(known.sum()), "support": support, "rows": rows}
    shown["temperature"] = kept_temperature_of(pretrained)
    return plain(shown)


def markdown(found: Mapping[str, Any]) -> str:
    """The table of a study."""

    def moved(row: Mapping[str, Any], name: str) -> str:
        words, by, error = percent(row[name]), row.get(f"{name}_change"), row.get(f"{name}_change_error")
        if by is not None and error is not None:
            words += f" ({100 * by:+.1f} ± {100 * error:.1f})"
        return words

    rows = [
        [
            row["words"],
            *(moved(row, name) for name in ("accuracy", "macro_auc")),
            *(percent(row[name]) for name in ("macro_precision", "macro_recall", "expected_error")),
            *([str(row["tokens"])] if "tokens" in row else []),
            " / ".join(f"{n:,}" for n in row["predicted"]),
        ]
        for row in found["rows"]
    ]
    tokens = ["tokens"] if any("tokens" in row for row in found["rows"]) else []
    head = ["", "accuracy", "macro AUC", "precision", "recall", "ECE", *tokens, f"said {' / '.join(found['classes'])}"]
    support = ", ".join(f"{n:,} {c}" for c, n in zip(found["classes"], found["support"], strict=True))
    origin = ", simulated by nufm" if found.get("simulated") else ""
    largest = percent(max(found["support"]) / found["events"])
    text = (
        "In per cent; in brackets the change against the first row and its standard error (same events; bootstrap). "
        f"{found['events']:,} events{origin}: {support}; always the largest class: {largest}. Precision and recall are "
        "means over the classes, ECE is the expected calibration error. "
    )
    if found["study"] == "few_shot":
        text += (
            "Published (arXiv 2509.08461, §5): accuracy 36.8 with one example of each class, every event said to be "
            "νe CC."
        )
    else:
        text += (
            "Published (arXiv 2509.08461, §5), without the definitions of the classes: accuracy 86, macro AUC 96, in "
            "place of 87 and 96 with them. Tokens: the question, pictures included where they are tokens of it."
        )
    if said := temperature_text(found.get("temperature") or {}):
        text += f" {said}" + " The frozen base is scored without it." * (found["study"] == "few_shot")
    return f"{table(head, rows)}\n{text}\n"
