"""Image-text models on pixel maps: what they see and read, which weights are trained, what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from toy_language_models import folder, image_event

from nufm.commands.tiny_vlm import make_tiny_vlm
from nufm.data.images import ImageBatch, ImageEvent, View
from nufm.data.prompts import load_prompt
from nufm.models.vlm import VisionLanguageClassifier
from nufm.models.vlm_base import ARCHITECTURES, first_identity, identity, own_device
from nufm.models.vlm_inputs import IGNORED, Example, appended, pictures

FAMILIES = ("mllama", "idefics3")


def network(family: str, **options) -> VisionLanguageClassifier:
    options = {"quantization": "none", "prompt": "brief", **options}
    return VisionLanguageClassifier(folder(family), **options).eval()


def batch_of(*events: ImageEvent) -> ImageBatch:
    return ImageBatch.from_events(list(events))


def logits(model: VisionLanguageClassifier, *events: ImageEvent) -> torch.Tensor:
    with torch.no_grad():
        return model(batch_of(*events))["interaction"]


# ---- size


def test_published_number_of_trained_parameters():
    """29,491,200 (arXiv 2509.08461, section 2): rank × (inputs + outputs) of every projection with one of seven names,
    in 40 layers of text (8 of them cross-attention; grouped keys and values of 8 × 128) and 40 of vision."""
    with torch.device("meta"):
        model = VisionLanguageClassifier("meta-llama/Llama-3.2-11B-Vision-Instruct")
    text = (4096 + 4096) * 2 + (4096 + 1024) * 2 + 3 * (4096 + 14336)
    vision = 4 * (1280 + 1280)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 29_491_200 == 8 * 40 * (text + vision)
    assert all(p.is_meta for p in model.parameters())
    total = sum(p.numel() for p in model.parameters()) - trained
    assert 10.6e9 < total < 10.7e9  # "11B"


@pytest.mark.parametrize("rank", (4, 16))
def test_trained_parameters_are_proportional_to_the_rank(rank):
    counts = [sum(p.numel() for p in network("mllama", rank=r).parameters() if p.requires_grad) for r in (rank, 8)]
    assert counts[0] * 8 == counts[1] * rank


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_bases_have_the_layers_of_the_real_one(family):
    """The same class of model, adapters on the same names in text and vision."""
    model = network(family)
    names = {name.split(".lora_A")[0] for name, _ in model.adapter_parameters() if "lora_A" in name}
    kinds = {name.rsplit(".", 1)[1] for name in names}
    assert kinds >= {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj"}
    assert any("vision" in name for name in names) and any("vision" not in name for name in names)
    for config in (json.loads((ARCHITECTURES / f"tiny_{family}.json").read_text()),):
        assert config["model_type"] == model.model.config.model_type == family


# ---- what goes in


def test_a_view_becomes_a_grey_picture_with_the_transverse_axis_upwards():
    image = np.zeros((4, 6), dtype=np.float32)
    image[0, 1], image[3, 5], image[2, 2] = 1.0, 0.5, 0.2  # lowest row; highest row
    xz, yz = pictures(torch.tensor(np.stack([image, image])), [True, False])
    seen = np.asarray(xz)
    assert seen.shape == (4, 6, 3) and seen.dtype == np.uint8
    assert (seen[..., 0] == seen[..., 1]).all() and (seen[..., 0] == seen[..., 2]).all()
    assert seen[3, 1, 0] == 255 and seen[0, 5, 0] == 128 and seen[1, 2, 0] == 51
    assert (seen[..., 0] > 0).sum() == 3
    assert not np.asarray(yz).any(), "a view that was not read out is black, whatever the batch holds there"


def test_values_out_of_range_are_clipped():
    seen = np.asarray(pictures(torch.tensor([[[-1.0, 7.0]]] * 2), [True, True])[0])
    assert seen[0, :, 0].tolist() == [0, 255]


def test_pictures_stand_together_and_every_word_of_the_answer_sees_both():
    """Mllama lets text see the last block of consecutive pictures: a word between them would hide the first."""
    model = network("mllama")
    inputs = model.prepare(batch_of(image_event(0), image_event(1, missing=True)))
    image_token = model.model.config.image_token_index
    for ids in inputs["input_ids"].tolist():
        first = ids.index(image_token)
        assert ids[first + 1] == image_token and ids.count(image_token) == 2
    longer = appended(inputs, [[5, 6, 7], [8]], pad=0)
    assert longer["cross_attention_mask"].shape[1] == longer["input_ids"].shape[1]
    assert bool((longer["cross_attention_mask"][:, -4:] == 1).all())


def test_a_missing_view_is_told():
    model = network("mllama")
    texts = model.tokenizer.batch_decode(model.prepare(batch_of(image_event(0), image_event(1, True)))["input_ids"])
    assert "The YZ view is missing." in texts[1] and "missing" not in texts[0]


def test_answers_stand_behind_the_questions_and_nothing_else_is_learnt():
    model = network("mllama")
    answers = [model.composer.answer_tokens(0, "It is long."), model.composer.answer_tokens(2)]
    inputs = model.prepare_answers(batch_of(image_event(0), image_event(1, True)), answers)
    for labels, ids, answer, kept in zip(
        inputs["labels"], inputs["input_ids"], answers, inputs["attention_mask"], strict=True
    ):
        learnt = labels[labels != IGNORED].tolist()
        assert learnt == answer == ids[labels != IGNORED].tolist()
        assert int(kept[labels != IGNORED].sum()) == len(answer)
        assert learnt[-1] == model.tokenizer.eos_token_id
    said = model.tokenizer.decode(answers[0], skip_special_tokens=True)
    assert said == "I classify the pixel maps as muon neutrino CC. It is long."
    assert inputs["attention_mask"][1, -1] == 0, "the shorter answer is padded on the right"


def test_template_begins_once_and_its_date_stands_still():
    """Templates write the mark of the beginning themselves; a tokenizer must not write it again."""
    model = network("mllama")
    processor = model.composer.processor
    ids = model.prepare(batch_of(image_event(0)))["input_ids"][0].tolist()
    assert ids.count(model.tokenizer.bos_token_id) == 1
    processor.chat_template = "Today: {{ date_string }}. " + processor.chat_template
    assert model.composer.text([True, True]).startswith("Today: 26 Jul 2024. ")


def test_a_template_that_takes_no_system_message_gets_its_text_in_the_question():
    """As that of Llama 3.2 Vision, which raises where there are pictures."""
    model = network("mllama", prompt="physics")
    with_system = model.composer.text([True, True])
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    model.composer.processor.chat_template = refusing + model.composer.processor.chat_template
    text = model.composer.text([True, True])
    prompt = load_prompt("physics")
    assert prompt.system in text and prompt.user in text and text.count(prompt.system) == 1
    assert "<|start_header_id|>system" in with_system and "<|start_header_id|>system" not in text
    assert text.index("<|image|><|image|>") < text.index(prompt.system)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_without_a_template_gets_the_texts_as_they_are(family):
    model = network(family)
    model.composer.processor.chat_template = None
    prompt = load_prompt("brief")
    text = model.composer.text([True, True])
    mark = "<|image|>" if family == "mllama" else "<image>"
    assert text == f"{prompt.system}\n{mark}{mark}{prompt.user}\n"
    assert bool(torch.isfinite(logits(model, image_event(0))).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_come_before_the_question_with_their_answers(family):
    model = network(family)
    shown = batch_of(image_event(7))
    example = Example(shown.image[0], [True, True], model.composer.answer_text(1))
    inputs = model.prepare(batch_of(image_event(0), image_event(1)), [example])
    assert inputs["pixel_values"].shape[:2] == (2, 4)
    text = model.tokenizer.decode(inputs["input_ids"][0])
    assert text.index("as electron neutrino CC.") < text.rindex(load_prompt("brief").user)
    assert text.count(load_prompt("brief").user) == 2
    with torch.no_grad():
        scores = model.scores(batch_of(image_event(0), image_event(1)), [example])
    assert bool(torch.isfinite(scores.log_probability).all())


# ---- what comes out


@pytest.mark.parametrize("family", FAMILIES)
def test_both_pictures_matter(family):
    model = network(family)
    event, other = image_event(0), image_event(1)
    base = logits(model, event)
    for view in ("xz", "yz"):
        changed = event.replace(views={**event.views, view: other.views[view]})
        assert float((logits(model, changed) - base).abs().max()) > 1e-4, view


def test_with_gates_shut_as_usual_pictures_would_not_matter():
    """What the tiny base avoids: transformers draws Mllama's gates as 0."""
    model = network("mllama")
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "cross_attn" in name and name.endswith("gate"):
                parameter.zero_()
    assert torch.equal(logits(model, image_event(0)), logits(model, image_event(1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_mates_do_not_matter(family):
    """An event with a missing view has a longer question, so that the others are padded."""
    model = network(family)
    events = [image_event(0), image_event(1, missing=True), image_event(2), ImageEvent({}, (32, 32))]
    together = logits(model, *events)
    alone = torch.cat([logits(model, event) for event in events])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_and_missing_are_legal_and_not_the_same(family):
    model = network(family)
    nothing = View(np.zeros((0, 2), np.int32), np.zeros(0, np.float32))
    empty = ImageEvent({"xz": nothing, "yz": nothing}, (32, 32))
    missing = ImageEvent({}, (32, 32))
    found = logits(model, empty, missing)
    assert bool(torch.isfinite(found).all())
    assert float((found[0] - found[1]).abs().max()) > 1e-4, "the question says that the views are missing"


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_those_of_whole_labels(family):
    """Against a full pass for each label, without a cache."""
    model = network(family)
    batch = batch_of(image_event(0), image_event(1, missing=True))
    with torch.no_grad():
        found = model.predict(batch).probability["interaction"]
        columns = []
        for label in range(3):
            said = [*model.composer.prefix_tokens(), *model.composer.label_tokens()[label]]
            inputs = model.prepare_answers(batch, [said, said])
            labels = inputs.pop("labels")
            log_p = model.model(**inputs).logits[:, :-1].log_softmax(-1)
            n = len(model.composer.label_tokens()[label])
            columns.append(log_p[:, -n:].gather(2, labels[:, -n:, None]).sum((1, 2)))
    torch.testing.assert_close(found, torch.stack(columns, 1).softmax(1), rtol=1e-3, atol=1e-5)


def test_first_token_rule_is_five_times_the_log_probability():
    whole, first = network("mllama"), network("mllama", rule="first_token")
    batch = batch_of(image_event(0))
    with torch.no_grad():
        log_p = first.scores(batch).log_probability
        torch.testing.assert_close(first(batch)["interaction"], (5 * log_p).log_softmax(1))
    assert not torch.equal(log_p, whole.scores(batch).log_probability)


def test_labels_with_the_same_first_token_are_refused_by_that_rule_alone():
    """νµ CC and νe CC begin with the same bytes."""
    assert logits(network("mllama", prompt="symbols"), image_event(0)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"'νµ CC' and 'νe CC' both begin with token .*whole_label"):
        network("mllama", prompt="symbols", rule="first_token")


def test_there_are_no_features_and_that_is_said():
    with pytest.raises(ValueError, match=r"VisionLanguageClassifier has no features of events to show.*predict\(\)"):
        network("mllama").event_features(batch_of(image_event(0)))


def test_explanation_begins_with_the_predicted_class():
    model = network("mllama")
    batch = batch_of(image_event(0), image_event(1, missing=True))
    answers = model.explain(batch, max_new_tokens=5)
    chosen = logits(model, image_event(0), image_event(1, missing=True)).argmax(1).tolist()
    for said, label in zip(answers, chosen, strict=True):
        assert str(said).startswith(f"I classify the pixel maps as {load_prompt('brief').labels[label]}.")


# ---- weights


@pytest.mark.parametrize("family", FAMILIES)
def test_four_bit_weights_are_close_to_those_they_came_from(family):
    """NF4 with double quantisation keeps the adapters, their gradients and, roughly, what is said."""
    import bitsandbytes as bnb

    exact, four = network(family), network(family, quantization="nf4")
    layers = [m for m in four.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) > 10
    for layer in layers:
        assert layer.weight.dtype == torch.uint8 and layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested, "double quantisation"
    # 16 levels over ± the largest of 64 weights: the mean error of a normal weight is about 8 % of its deviation.
    name, layer = next((n, m) for n, m in four.model.named_modules() if isinstance(m, bnb.nn.Linear4bit))
    weights = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    original = exact.model.get_submodule(name).weight
    error = (weights - original).abs().mean() / original.std()
    assert 0.03 < float(error) < 0.12
    assert four.arguments["base_id"] == exact.arguments["base_id"]
    four.train()
    four.model(**four.prepare(batch_of(image_event(0)))).logits.square().mean().backward()
    graded = {n for n, p in four.named_parameters() if p.grad is not None}
    assert graded and all("lora_" in n for n in graded)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", ("none", "nf4"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_adapters_are_float32_whatever_the_base_is(family, quantization, dtype):
    model = network(family, quantization=quantization, dtype=dtype, dropout=0.0).train()
    assert {p.dtype for _, p in model.adapter_parameters()} == {torch.float32}
    base = {p.dtype for n, p in model.named_parameters() if "lora_" not in n}
    assert base == {getattr(torch, dtype)} | ({torch.uint8} if quantization == "nf4" else set())
    batch = batch_of(image_event(0), image_event(1, missing=True))
    inputs = model.prepare(batch)
    assert inputs["pixel_values"].dtype == getattr(torch, dtype)
    model.model(**inputs).logits.float().square().mean().backward()
    gradients = [p.grad for n, p in model.adapter_parameters() if "lora_B" in n]
    assert all(g.dtype == torch.float32 and bool(torch.isfinite(g).all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)
    # one step of the published rate on a weight of size 1 is seen: in bfloat16 it would round away
    weight = next(p for n, p in model.adapter_parameters() if "lora_B" in n)
    with torch.no_grad():
        weight.fill_(1.0)
        weight -= 2e-4
    torch.testing.assert_close(weight, torch.full_like(weight, 0.9998), rtol=0, atol=1e-6)
    found = model.eval().predict(batch).probability["interaction"]
    assert found.dtype == torch.float32 and bool(torch.isfinite(found).all())


def test_checkpoints_hold_the_adapters_alone_and_load_strictly():
    model = network("mllama", quantization="nf4")
    state = model.state_dict()
    assert state.keys() == {name for name, _ in model.adapter_parameters()}
    assert sum(v.numel() for v in state.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    other = network("mllama", quantization="nf4")
    with torch.no_grad():
        for _, parameter in model.adapter_parameters():
            parameter.normal_(0, 0.1)
    holder = torch.nn.ModuleDict({"network": other})
    holder.load_state_dict({f"network.{k}": v for k, v in model.state_dict().items()})
    assert torch.equal(logits(other, image_event(0)), logits(model, image_event(0)))
    lacking = dict(list(model.state_dict().items())[1:])
    with pytest.raises(RuntimeError, match=r"Missing key.*lora_A"):
        other.load_state_dict(lacking)


def test_the_base_is_never_trained():
    model = network("mllama")
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, _ in model.adapter_parameters()}


def test_without_its_adapters_a_model_is_its_base():
    model = network("mllama")
    fresh = logits(network("mllama", rank=0), image_event(0))
    torch.testing.assert_close(logits(model, image_event(0)), fresh)  # adapters begin at 0
    with torch.no_grad():
        for _, parameter in model.adapter_parameters():
            parameter.normal_(0, 0.3)
    assert not torch.allclose(logits(model, image_event(0)), fresh)
    with model.frozen_base():
        torch.testing.assert_close(logits(model, image_event(0)), fresh)
    assert not torch.allclose(logits(model, image_event(0)), fresh)
    assert all(p.requires_grad for _, p in model.adapter_parameters())


def test_adapters_do_not_depend_on_when_the_base_was_read():
    """Built anew under the same seed, they are the same."""
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(network("mllama").state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


# ---- the base


def test_a_tiny_base_is_its_seed(tmp_path):
    same, other = (make_tiny_vlm(tmp_path / str(seed), "mllama", seed, 32) for seed in (0, 1))
    models = [VisionLanguageClassifier(str(f), quantization="none", prompt="brief") for f in (same, other)]
    found = [identity("x", model.model) for model in (network("mllama"), *models)]
    assert found[0] == found[1] != found[2]
    assert (same / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    with open(same / "tokenizer.json") as a, open(other / "tokenizer.json") as b:
        assert json.load(a)["model"] == json.load(b)["model"]
    names = {path.name for path in same.iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".py", ".pkl")) for name in names)


def test_another_base_is_refused_with_both_names(tmp_path):
    other = make_tiny_vlm(tmp_path / "other", "mllama", 1, 32)
    wanted = network("mllama").arguments["base_id"]
    with pytest.raises(ValueError, match=r"another base: found other:mllama:\w+, expected mllama:mllama:\w+"):
        VisionLanguageClassifier(str(other), prompt="brief", base_id=wanted)
    renamed = wanted.replace("mllama:", "moved:", 1)
    assert network("mllama", base_id=renamed).arguments["base_id"] == wanted, "a base may be moved"


def redrawn(tmp_path, family, part):
    """The base with all values of the tensors of a part drawn anew."""
    from transformers import AutoModelForImageTextToText

    place = shutil.copytree(folder(family), tmp_path / f"other {family} {part}")
    changed = AutoModelForImageTextToText.from_pretrained(place)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if part in name and "embed_tokens" not in name:
                parameter.normal_()
    changed.save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ("vision", "lm_head", "layers.0.input_layernorm"))
def test_a_base_with_the_same_words_and_other_eyes_is_another(tmp_path, family, part):
    """All rows of the input embedding are the same."""
    four, other = network(family, quantization="nf4").arguments["base_id"], redrawn(tmp_path, family, part)
    for quantization in ("none", "nf4"):
        with pytest.raises(ValueError, match=r"trained on another base: found other"):
            VisionLanguageClassifier(other, quantization, prompt="brief", base_id=four)


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_is_that_of_the_values(tmp_path, family):
    """Not of their precision, their place, the files they come in, or the adapters."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder(family))
    wanted = identity("x", model)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert identity("x", AutoModelForImageTextToText.from_pretrained(tmp_path)) == wanted
    assert identity("x", model.to(torch.bfloat16)) == wanted
    found = [network(family, quantization=q, dtype=d) for q in ("none", "nf4") for d in ("float32", "bfloat16")]
    assert {identity("x", each.model) for each in found} == {wanted}
    assert {each.arguments["base_id"].partition(":")[2] for each in found} == {wanted.partition(":")[2]}


def test_identities_of_older_exports_are_understood(tmp_path):
    """Digests of widths and of 16 rows of the input embedding alone, here made from the files."""
    config = json.loads((Path(folder("mllama")) / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    widths = [text["hidden_size"], text["num_hidden_layers"], text["vocab_size"], vision["hidden_size"]]
    with safe_open(Path(folder("mllama")) / "model.safetensors", framework="pt") as file:
        rows = next(file.get_tensor(name) for name in file.keys() if "embed_tokens" in name)
    rows = torch.cat([rows[:8], rows[-8:]]).bfloat16().view(torch.int16).numpy()
    digest = hashlib.sha256(json.dumps(["mllama", *widths]).encode() + rows.tobytes()).hexdigest()[:16]
    model, old = network("mllama"), f"mine:mllama:{digest}"
    assert first_identity("mine", model.model) == old
    assert network("mllama", base_id=old).arguments["base_id"] == model.arguments["base_id"] != old
    other = make_tiny_vlm(tmp_path / "other", "mllama", 1, 32)
    with pytest.raises(ValueError, match=rf"found other:mllama:[0-9a-f]{{16}}, expected {old}"):
        VisionLanguageClassifier(str(other), prompt="brief", base_id=old)


@pytest.mark.parametrize(
    ("environment", "seen", "wanted"),
    [
        ({}, 4, "cuda:0"),
        ({"LOCAL_RANK": "2"}, 4, "cuda:2"),
        ({"SLURM_LOCALID": "3"}, 4, "cuda:3"),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 4, "cuda:1"),
        ({"SLURM_LOCALID": "3"}, 1, "cuda:0"),  # --gpus-per-task=1: a process sees its own alone
        ({"LOCAL_RANK": "2"}, 0, "cpu"),
    ],
)
def test_every_process_reads_the_base_onto_its_own_gpu(monkeypatch, environment, seen, wanted):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert str(own_device()) == wanted


def test_a_base_that_sees_nothing_is_refused(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a llama model takes no pictures; expected an image-text model"):
        VisionLanguageClassifier(str(tmp_path))


def test_a_base_that_is_not_there_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder.*make_tiny_vlm.py --out"):
        VisionLanguageClassifier(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"no such folder"):
        VisionLanguageClassifier("runs/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no configuration of a transformers model"):
        VisionLanguageClassifier(str(tmp_path / "empty"))


def test_pickled_weights_are_refused(tmp_path):
    place = make_tiny_vlm(tmp_path / "base", "mllama", 0, 32)
    (place / "model.safetensors").rename(place / "kept")
    torch.save({}, place / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded as an image-text model"):
        VisionLanguageClassifier(str(place), quantization="none")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization": "int8"}, "quantization is 'int8', expected one of nf4, none"),
        ({"rule": "last"}, "rule is 'last'"),
        ({"dtype": "half"}, "dtype is 'half'"),
        ({"rank": -1}, "rank is -1"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"targets": ["nothing"]}, "no layer named nothing; expected some of .*q_proj"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        network("mllama", **options)


@pytest.mark.parametrize(("family", "size"), [("gpt", 32), ("mllama", 20)])
def test_tiny_bases_that_cannot_be_made_are_refused(tmp_path, family, size):
    with pytest.raises(ValueError, match="expected"):
        make_tiny_vlm(tmp_path, family, 0, size)
