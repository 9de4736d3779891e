"""Labels on a shared cache: held to one full pass for each label, in float64."""

from __future__ import annotations

import pytest
import torch
from toy_language_models import base, inputs_of, label_tokens, naive_scores, qwen2_vl, text_model

from nufm.models.label_scoring import (
    PREFIX,
    Context,
    LabelTokens,
    append_tokens,
    read_prompt,
    score_continuations,
    score_labels,
)

FAMILIES = ("mllama", "idefics3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["brief", "symbols"])
def test_one_pass_says_what_a_pass_for_each_label_says(family, prompt):
    model, composer = base(family, prompt)
    labels, inputs = label_tokens(composer), inputs_of(composer, model, missing=(False, True, False))
    assert not bool(inputs["attention_mask"].bool().all())  # the event with a missing view has the longer question
    scores = score_labels(model, inputs, labels)
    assert scores.log_probability.shape == (3, 3)
    exact = 1e-9 if scores.log_probability.dtype == torch.float64 else 1e-5  # transformers < 4.50 gives float32 logits
    torch.testing.assert_close(scores.log_probability, naive_scores(model, inputs, labels), rtol=exact, atol=exact)
    torch.testing.assert_close(scores.probability.sum(1), torch.ones_like(scores.probability[:, 0]))
    assert float(scores.log_probability.std(0).min()) > 1e-6  # events differ: the pictures matter


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_mates_do_not_matter(family):
    model, composer = base(family, "brief")
    labels, inputs = label_tokens(composer), inputs_of(composer, model, missing=(False, True))
    together = score_labels(model, inputs, labels).log_probability
    for i, missing in enumerate((False, True)):
        alone = score_labels(model, inputs_of(composer, model, (missing,), first=i), labels).log_probability
        torch.testing.assert_close(alone[0], together[i], rtol=1e-7, atol=1e-7)


def keys_values(cache, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    if hasattr(cache, "layers"):
        return cache.layers[layer].keys, cache.layers[layer].values
    return cache.key_cache[layer], cache.value_cache[layer]  # transformers < 4.54


def test_the_pictures_are_seen_behind_the_prompt():
    """The continuation pass has no pictures; what it knows of them is in the cache of the cross-attention."""
    model, composer = base("mllama", "brief")
    labels, inputs = label_tokens(composer), inputs_of(composer, model, (False,))
    dark = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
    context, blind = read_prompt(model, inputs, labels), read_prompt(model, dark, labels)
    # the same text with the other's pictures: only the cross-attention layers hold another cache
    for i in model.config.get_text_config().cross_attention_layers:
        (keys, values), (other_keys, other_values) = keys_values(context._cache, i), keys_values(blind._cache, i)
        assert keys.shape[2] != keys_values(context._cache, 0)[0].shape[2]
        keys.copy_(other_keys)
        values.copy_(other_values)
    swapped = context.advance(torch.tensor([labels.tokens[0]]))
    kept = read_prompt(model, inputs, labels).advance(torch.tensor([labels.tokens[0]]))
    assert float((swapped - kept).abs().max()) > 1e-4


def test_a_model_of_text_alone_and_labels_of_one_token():
    model = text_model()
    inputs = {"input_ids": torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))}
    for tokens in (((7,), (8,), (9,)), ((7, 8, 9), (7, 10, 11, 12), (13,))):
        labels = LabelTokens(("a", "b", "c"), (5, 6), tokens)
        scores = score_labels(model, inputs, labels)
        torch.testing.assert_close(scores.log_probability, naive_scores(model, inputs, labels), rtol=1e-9, atol=1e-9)


def test_pictures_that_shift_the_positions_of_the_text():
    """Qwen2-VL: a picture of 4 × 8 patches is 8 tokens but 4 positions wide, so text behind it moves."""
    model, inputs = qwen2_vl()
    labels = LabelTokens(("a", "b", "c"), (5, 6), ((7, 8, 9), (7, 10, 11, 12), (13,)))
    expected = []
    for i in range(3):  # one by one: the model itself keeps shifts from call to call
        own = one_event(inputs, i)
        expected.append(naive_scores(model, own, labels)[0])
        alone = score_labels(model, own, labels).log_probability[0]
        torch.testing.assert_close(alone.double(), expected[-1].double(), rtol=1e-5, atol=1e-5)
    together = score_labels(model, inputs, labels).log_probability
    torch.testing.assert_close(together.double(), torch.stack(expected).double(), rtol=1e-5, atol=1e-5)
    context = read_prompt(model, inputs, labels).rows(torch.tensor([2, 0]))
    more = torch.tensor([[20, 21], [20, 21]])
    read = context.advance(more)
    for row, i in enumerate((2, 0)):
        _clear(model)
        whole = model(**append_tokens(one_event(inputs, i), (5, 6, 20, 21)), use_cache=False).logits[0, -2:]
        torch.testing.assert_close(read[row], whole, rtol=1e-5, atol=1e-5)
    padded = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    padded["attention_mask"][1, 0] = 0
    with pytest.raises(ValueError, match=r"event 1 of the batch is padded, to 24 tokens.*batch_size 1"):
        Context.read(model, padded)


def one_event(inputs: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
    """Of a Qwen2-VL batch with two pictures for each event."""
    patches = inputs["image_grid_thw"].prod(1)
    begin, end = int(patches[: 2 * i].sum()), int(patches[: 2 * i + 2].sum())
    rows = {k: v[i : i + 1] for k, v in inputs.items() if len(v) == len(inputs["input_ids"])}
    return rows | {
        "pixel_values": inputs["pixel_values"][begin:end],
        "image_grid_thw": inputs["image_grid_thw"][2 * i : 2 * i + 2],
    }


def _clear(model: torch.nn.Module) -> None:
    part = model if hasattr(model, "rope_deltas") else model.model
    part.rope_deltas = None


def test_scoring_leaves_the_context_as_it_is():
    model = text_model()
    inputs = {"input_ids": torch.randint(3, 90, (3, 7), generator=torch.Generator().manual_seed(1))}
    labels = LabelTokens(("a", "b"), (5,), ((7, 8, 9), (7, 10)))
    context = read_prompt(model, inputs, labels)
    first = score_continuations(context, labels)
    again = score_continuations(context, labels)
    torch.testing.assert_close(first.log_probability, again.log_probability, rtol=0, atol=0)
    # and it can be read on as if nothing had been scored
    more = torch.tensor([[20, 21]] * 3)
    expected = model(input_ids=append_tokens(inputs, (5, 20, 21))["input_ids"]).logits[:, -2:]
    torch.testing.assert_close(context.advance(more), expected, rtol=1e-9, atol=1e-9)


def test_rows_of_a_context():
    model = text_model()
    ids = torch.randint(3, 90, (3, 7), generator=torch.Generator().manual_seed(1))
    context = Context.read(model, {"input_ids": ids})
    some = context.rows(torch.tensor([2, 0, 2]))
    expected = model(input_ids=torch.cat([ids[[2, 0, 2]], torch.tensor([[4], [5], [6]])], 1)).logits[:, -1:]
    torch.testing.assert_close(some.advance(torch.tensor([[4], [5], [6]])), expected, rtol=1e-9, atol=1e-9)


def test_adapters_around_a_model_make_no_difference_to_the_way_it_is_called():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(text_model(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model = model.double().eval()
    inputs = {"input_ids": torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))}
    labels = LabelTokens(("a", "b"), (5,), ((7, 8, 9), (7, 10)))
    scores = score_labels(model, inputs, labels)
    torch.testing.assert_close(scores.log_probability, naive_scores(model, inputs, labels), rtol=1e-9, atol=1e-9)


def test_the_published_rule():
    """softmax_k(5 log p(first token of k)): arXiv 2509.08461, §2."""
    model = text_model()
    inputs = {"input_ids": torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))}
    labels = LabelTokens(("a", "b", "c"), (5,), ((7, 8), (9, 8), (11, 8)))
    p = model(**append_tokens(inputs, (5,))).logits[:, -1].softmax(-1)[:, [7, 9, 11]]
    scores = score_labels(model, inputs, labels, "first_token")
    torch.testing.assert_close(scores.probability, p**5 / (p**5).sum(1, keepdim=True), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scores.log_probability, p.log(), rtol=1e-9, atol=1e-12)
    flat = score_labels(model, inputs, labels, "first_token", sharpening=1.0)
    torch.testing.assert_close(flat.probability, p / p.sum(1, keepdim=True), rtol=1e-9, atol=1e-12)
    assert flat.label.tolist() == scores.label.tolist()


def test_the_published_rule_is_refused_where_it_cannot_decide():
    model, composer = base("mllama", "brief")
    inputs = inputs_of(composer, model, (False,))
    alike = LabelTokens.of(composer.tokenizer, ("muon neutrino CC", "electron neutrino CC", "muon neutrino NC"))
    with pytest.raises(
        ValueError, match=r"'muon neutrino CC' and 'muon neutrino NC' both begin with token \d+.*whole_"
    ):
        score_labels(model, inputs, alike, "first_token")
    assert float(score_labels(model, inputs, alike).probability.diff(dim=1).abs().min()) > 0
    labels = label_tokens(composer)  # these differ in their first word
    score_labels(model, inputs, labels, "first_token")
    with pytest.raises(ValueError, match="rule is 'best', expected 'whole_label' or 'first_token'"):
        score_labels(model, inputs, labels, "best")


def test_labels_that_a_tokenizer_cannot_tell_apart_are_refused():
    class Unknowing:
        """Knows ASCII words; anything else is token 0."""

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            words = text.replace(".", " .").split()
            return {"input_ids": [1 + hash(w) % 10**6 if w.isascii() else 0 for w in words]}

    with pytest.raises(ValueError, match=r"label 'νµ CC' is .*, the same as label 'νe CC'.*nu_e CC"):
        LabelTokens.of(Unknowing(), ("νµ CC", "νe CC", "NC"))
    labels = LabelTokens.of(Unknowing(), ("nu_mu CC", "nu_e CC", "NC"))
    assert len(labels) == 3 and len(labels.prefix) == len(PREFIX.split())
    # what the end of a label is for
    LabelTokens.of(Unknowing(), ("NC", "NC with a pion"))
    with pytest.raises(ValueError, match=r"label 'NC' is .*, the beginning of label 'NC with a pion'"):
        LabelTokens.of(Unknowing(), ("NC", "NC with a pion"), end="")
    for labels, tokens in ((("a",), ((1,),)), (("a", "b"), ((1,), ())), (("a", "b"), ((1,),))):
        with pytest.raises(ValueError, match="expected some for each of two or more"):
            LabelTokens(labels, (5,), tokens)


def test_padding_on_the_right_is_refused():
    ids = torch.full((2, 4), 7)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with pytest.raises(ValueError, match=r"event 1 of the batch is padded on the right \(2 of 4 tokens\).*on the left"):
        Context.read(text_model(), {"input_ids": ids, "attention_mask": mask})


def test_half_precision_is_scored_in_float32():
    model = text_model().to(torch.bfloat16)
    inputs = {"input_ids": torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(1))}
    scores = score_labels(model, inputs, LabelTokens(("a", "b"), (5,), ((7, 8, 9), (7, 10))))
    assert scores.log_probability.dtype == torch.float32 and bool(scores.log_probability.isfinite().all())
