"""Fine-tuning an image-text model: what is learnt, by how much, and what a checkpoint holds."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from toy_language_models import folder, image_event

from nufm.data.explanations import teaching_sentences
from nufm.data.images import ImageBatch
from nufm.methods.vlm_finetuning import VLMFineTuning
from nufm.models.vlm import VisionLanguageClassifier

FAMILIES = ("mllama", "idefics3")


def method(family: str = "mllama", quantization: str = "none", seed: int = 0, **options) -> VLMFineTuning:
    torch.manual_seed(seed)
    network = VisionLanguageClassifier(folder(family), quantization=quantization, prompt="brief", dropout=0.0)
    return VLMFineTuning(network, **options)


def shaken(found: VLMFineTuning) -> VLMFineTuning:
    """With adapters that do something: they begin at 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in found.network.adapter_parameters():
            parameter.normal_(0, 0.05)
    return found


def batch_of(*classes: int, missing: int | None = None) -> ImageBatch:
    return ImageBatch.from_events([image_event(i, i == missing, max(k, 0)) for i, k in enumerate(classes)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("explanations", [False, True])
def test_loss_is_the_mean_of_minus_log_p_of_the_answers_tokens(family, explanations):
    """Event by event, from the log-probabilities of one whole sequence each, without padding."""
    found = shaken(method(family, explanations=explanations))
    batch = batch_of(0, 2, 1, missing=1)
    loss, label_loss = found.answer_loss(batch, batch.truth["interaction"])
    network, sentences = found.network, teaching_sentences(batch)
    terms, of_labels = [], []
    for i, label in enumerate((0, 2, 1)):
        alone = ImageBatch.from_events([image_event(i, i == 1, label)])
        answer = network.composer.answer_tokens(label, sentences[i] if explanations else "")
        ids = network.prepare_answers(alone, [answer])
        ids.pop("labels")
        log_p = network.model(**ids).logits[0].log_softmax(-1)
        n, length = len(answer), ids["input_ids"].shape[1]
        each = [-log_p[length - n + j - 1, token] for j, token in enumerate(answer)]
        terms += each
        begin = len(network.composer.prefix_tokens())
        of_labels.append(sum(each[begin : begin + len(network.composer.label_tokens()[label])]))
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(label_loss, torch.stack(of_labels).mean().detach(), rtol=1e-4, atol=1e-5)


def test_the_loss_of_labels_is_what_classification_sees():
    """Training and scoring cut answers into the same tokens: − log p of the true labels."""
    found = shaken(method(explanations=True)).eval()
    batch = batch_of(0, 1, 2)
    with torch.no_grad():
        _, label_loss = found.answer_loss(batch, batch.truth["interaction"])
        log_p = found.network.scores(batch).log_probability
    torch.testing.assert_close(label_loss, -log_p.diagonal().mean(), rtol=1e-4, atol=1e-4)


def test_events_without_a_class_do_not_count():
    found = shaken(method(explanations=True))
    batch = batch_of(0, 1)
    with_unknown, _ = found.answer_loss(batch, torch.tensor([0, -1]))
    alone, _ = found.answer_loss(ImageBatch.from_events([image_event(0)]), torch.tensor([0]))
    torch.testing.assert_close(with_unknown, alone, rtol=1e-4, atol=1e-5)
    nothing, label_loss = found.answer_loss(batch, torch.tensor([-1, -1]))
    nothing.backward()  # connected to the weights
    assert float(nothing) == 0 and float(label_loss) == 0


def test_the_answer_has_label_explanation_and_end():
    found = method(explanations=True)
    batch = batch_of(1)
    (tokens,) = found.answers(batch, batch.truth["interaction"])
    text = found.network.tokenizer.decode(tokens)
    (why,) = teaching_sentences(batch)
    end = found.network.tokenizer.eos_token
    assert text == f"I classify the pixel maps as electron neutrino CC. {why}{end}"
    found.explanations = False
    (tokens,) = found.answers(batch, batch.truth["interaction"])
    assert found.network.tokenizer.decode(tokens) == f"I classify the pixel maps as electron neutrino CC.{end}"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_it_learns_six_events_and_leaves_the_base_alone(quantization):
    found = method(quantization=quantization, explanations=False, warmup=0.0)
    batch = batch_of(0, 1, 2, 0, 1, 2)
    frozen = {n: p.detach().clone() for n, p in found.network.named_parameters() if not p.requires_grad}
    optimizer = found.configure_optimizers()
    found.train()
    for step in range(80):  # in 60 the last of the six may still be wrong
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 10)
        loss, _ = found.answer_loss(batch, batch.truth["interaction"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(found.network.parameters(), 0.3)
        optimizer.step()
    found.eval()
    with torch.no_grad():
        probability = found.network.predict(batch).probability["interaction"]
    assert probability.argmax(1).tolist() == [0, 1, 2, 0, 1, 2]
    assert all(torch.equal(p, frozen[n]) for n, p in found.network.named_parameters() if n in frozen)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_give_the_same_gradients(family):
    gradients = []
    for recompute in (False, True):
        found = shaken(method(family, checkpoint_activations=recompute)).train()
        batch = batch_of(0, 1, missing=1)
        found.answer_loss(batch, batch.truth["interaction"])[0].backward()
        gradients.append({n: p.grad for n, p in found.network.adapter_parameters()})
        assert all(g is not None for g in gradients[-1].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_training_begins_in_training_mode():
    """A Trainer changes no modes, and blocks recompute nothing in evaluation mode."""
    found = method(checkpoint_activations=True)
    assert all(module.training for module in found.modules())


def test_accumulated_batches_give_the_gradient_of_both():
    """Two batches of equal numbers of tokens, each halved, as a Trainer does, against one batch of all."""
    found = shaken(method(explanations=False))
    halves = [batch_of(0, 0), ImageBatch.from_events([image_event(i) for i in (2, 3)])]
    for half in halves:
        (found.answer_loss(half, half.truth["interaction"])[0] / 2).backward()
    summed = {n: p.grad.clone() for n, p in found.network.adapter_parameters()}
    found.zero_grad()
    whole = batch_of(0, 0, 0, 0)
    found.answer_loss(whole, whole.truth["interaction"])[0].backward()
    for name, parameter in found.network.adapter_parameters():
        torch.testing.assert_close(summed[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_checkpoints_hold_the_adapters_alone():
    found = shaken(method(quantization="nf4"))
    state = found.state_dict()
    assert state.keys() == {f"network.{name}" for name, _ in found.network.adapter_parameters()}
    other = method(quantization="nf4", seed=9)
    other.load_state_dict(state)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_optimiser_and_rates_are_the_published_ones(monkeypatch):
    """Fused AdamW of the adapters at 2e-4, risen to over 3 % of the steps, then constant."""
    found = method()
    found._trainer = SimpleNamespace(estimated_stepping_batches=1000)
    optimizer = found.configure_optimizers()
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
    assert group["lr"] == group["peak"] == 2e-4 and group["weight_decay"] == 0
    assert {id(p) for p in group["params"]} == {id(p) for _, p in found.network.adapter_parameters()}
    shares = []
    for step in (0, 14, 29, 30, 999):
        monkeypatch.setattr(type(found), "global_step", step)
        shares.append(found.rate_and_momentum()[0])
    assert shares == pytest.approx([1 / 30, 15 / 30, 1, 1, 1])
    found.warmup = 0.0
    assert found.rate_and_momentum()[0] == 1.0


def test_a_warm_up_needs_the_length_of_the_training():
    """trainer.max_epochs -1 and no max_steps: the share of infinitely many steps."""
    found = method()
    found._trainer = SimpleNamespace(estimated_stepping_batches=math.inf)
    with pytest.raises(ValueError, match=r"needs the length of the training: set trainer.max_steps or max_epochs"):
        found.configure_optimizers()
    found.warmup = 0.0
    found.configure_optimizers()
    assert found.rate_and_momentum()[0] == 1.0


def test_what_cannot_be_trained_is_refused():
    network = VisionLanguageClassifier(folder("mllama"), quantization="none", prompt="brief", rank=0)
    with pytest.raises(ValueError, match=r"rank is 0: there are no adapters to train"):
        VLMFineTuning(network)
    found = method()
    assert not found.needs_encoder
    with pytest.raises(ValueError, match=r"starts from its base: name that with --model.network.base"):
        found.load_encoder(torch.nn.Linear(1, 1))


def test_untrained_loss_is_that_of_a_guess():
    """Random logits: − log p of a token lies about the logarithm of the size of the vocabulary."""
    found = method(explanations=True)
    batch = batch_of(0, 1, 2)
    loss, _ = found.answer_loss(batch, batch.truth["interaction"])
    assert math.log(len(found.network.tokenizer)) - 2 < float(loss) < math.log(len(found.network.tokenizer)) + 6
