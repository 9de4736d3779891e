"""An image-text model that classifies pixel maps: a frozen base in 4 bit with low-rank adapters (QLoRA).

As in arXiv 2509.08461, section 3: Llama 3.2 Vision (the Mllama classes of transformers), NF4 with double quantisation,
adapters of rank 8 on the seven projections wherever these names stand, in the text stack and in the vision tower.
29,491,200 trainable parameters with Llama-3.2-11B-Vision. Any other image-text model of transformers goes the same way.
QLoRA: T. Dettmers et al., arXiv 2305.14314; LoRA: E. J. Hu et al., arXiv 2106.09685.

A class is scored without generation: with the beginning of the answer forced, the logit of a class is the
log-probability of its whole label. The rule of the paper takes the first token of each label alone, times T = 5.

Shape legend: B events, K classes, L tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nufm.data.images import INTERACTION_NAMES, ImageBatch
from nufm.data.prompts import END_OF_LABEL, load_prompt
from nufm.models.constrained_generation import Answer, answer
from nufm.models.image_network import LABEL, ImageNetwork
from nufm.models.label_scoring import SHARPENING, LabelScores, LabelTokens, Rule, score_labels
from nufm.models.vlm_base import builds_empty, checked_identity, empty_base, load_base
from nufm.models.vlm_inputs import Example, PromptComposer, appended

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER = (".lora_A.", ".lora_B.")  # in the names of what is trained


class VisionLanguageClassifier(ImageNetwork):
    """Classes of events by an image-text model.

    Args:
        base: folder of the base in the layout of transformers, or its name on the Hugging Face Hub.
        quantization: ``nf4``: weights of the base in 4 bit (NormalFloat, double quantisation); ``none``: as they are.
        rank: of the adapters; 0: none, the frozen base alone.
        alpha: of the adapters, whose sum with the weights is scaled by alpha / rank.
        dropout: in front of the adapters.
        targets: names of the layers that get adapters.
        prompt: template of ``nufm.data.prompts``, or path of one.
        rule: how classes are scored: ``whole_label`` or ``first_token``, see the head of this file.
        dtype: of the base's weights and arithmetic; ``auto``: bfloat16 on a GPU, float32 on a CPU, which is slow with
            the former.
        base_id: base that the adapters were trained on, see ``arguments``; None: any.
        prompt_text: what the template says, as exports keep it; None: what the file of ``prompt`` says now.

    Attributes:
        model: the base with the adapters in it.
        composer: text and pictures of a batch.
        labels: tokens of the labels and of what stands before them.

    Raises:
        FileNotFoundError: there is no such base.
        ValueError: it takes no pictures, is another than ``base_id`` says, has none of the ``targets``, its tokenizer
            cannot tell the labels apart (by the rule that is asked for), or an argument that cannot be meant.

    On the meta device no weights are read: the model has its shapes, and no tokenizer.

    The base is read onto the GPU of this process, if there is one, since 4-bit weights are packed where they are used;
    whatever moves the model afterwards leaves ``dtype`` as it was chosen there. To stay on the CPU of a machine with a
    GPU, hide that from the process (``CUDA_VISIBLE_DEVICES=``) and set ``trainer.accelerator`` to ``cpu``.
    """

    def __init__(
        self,
        base: str,
        quantization: Literal["nf4", "none"] = "nf4",
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.05,
        targets: Sequence[str] = TARGETS,
        prompt: str = "physics",
        rule: Rule = "whole_label",
        dtype: Literal["auto", "bfloat16", "float32"] = "auto",
        base_id: str | None = None,
        prompt_text: str | None = None,
    ) -> None:
        super().__init__(len(INTERACTION_NAMES))
        _check_choice("quantization", quantization, ("nf4", "none"))
        _check_choice("rule", rule, ("whole_label", "first_token"))
        _check_choice("dtype", dtype, ("auto", "bfloat16", "float32"))
        if rank < 0 or not 0 <= dropout < 1 or alpha <= 0:
            raise ValueError(
                f"rank is {rank}, alpha {alpha} and dropout {dropout}; expected rank >= 0, alpha > 0, dropout in [0, 1)"
            )
        self.rule, self.prompt = rule, load_prompt(prompt, prompt_text)
        if builds_empty():
            self.model, self.composer = empty_base(base), None
        else:
            self.model, processor = load_base(base, quantization, dtype)
            self.composer = PromptComposer(processor, self.prompt)
            base_id = checked_identity(base, self.model, base_id)
            self.labels = LabelTokens.of(processor.tokenizer, self.prompt.labels, self.prompt.answer, END_OF_LABEL)
            if rule == "first_token":
                self.labels.check_first_tokens()
        self.model.requires_grad_(False)
        if rank:
            add_adapters(self.model, rank, alpha, dropout, targets)
        self.arguments: dict[str, Any] = {
            "base": str(base),
            "quantization": quantization,
            "rank": rank,
            "alpha": alpha,
            "dropout": dropout,
            "targets": list(targets),
            "prompt": prompt,
            "rule": rule,
            "dtype": dtype,
            "base_id": base_id,
            "prompt_text": self.prompt.text,
        }
        self.register_state_dict_post_hook(_keep_adapters)
        self.register_load_state_dict_post_hook(_forget_base)

    # ---- what is trained

    def requires_grad_(self, requires_grad: bool = True) -> VisionLanguageClassifier:
        """Train the adapters, or nothing; the base is never trained."""
        for _, parameter in self.adapter_parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and values of what is trained and saved."""
        return ((name, p) for name, p in self.named_parameters() if is_adapter(name))

    @contextmanager
    def frozen_base(self) -> Iterator[None]:
        """The base as it was before the adapters, for as long as the context lasts."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        needed = [p for _, p in self.adapter_parameters() if p.requires_grad]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for parameter in needed:  # enable_adapters switches gradients too
                parameter.requires_grad_(True)

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of blocks for the backward pass, and compute the rest again: less memory, more time."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    # ---- what goes in

    @property
    def tokenizer(self) -> Any:
        return self.composer.tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prepare(self, batch: ImageBatch, examples: Sequence[Example] = ()) -> dict[str, Tensor]:
        """Inputs of ``model`` for a batch up to where the answer begins, padded on the left.

        Args:
            batch: images in [0, 1].
            examples: events shown with their answers before each.
        """
        return self._placed(self.composer.inputs(batch, examples))

    def prepare_answers(self, batch: ImageBatch, answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Inputs with whole answers (token ids of each event) behind the question; ``labels`` (B, L) has their ids, and
        -100 for what is not learnt."""
        inputs = appended(self.composer.inputs(batch), answers, self.tokenizer.pad_token_id)
        return self._placed(inputs)

    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        # Of the base: its adapters are float32 in any case, and weights in 4 bit are no floats.
        dtype = next(p.dtype for n, p in self.named_parameters() if p.is_floating_point() and not is_adapter(n))
        device = self.device
        return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}

    # ---- what comes out

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """``interaction``: float32 logits (B, K), log-probabilities of the classes by the rule."""
        factor = SHARPENING if self.rule == "first_token" else 1.0
        return {LABEL: (factor * self.scores(batch).log_probability).log_softmax(1)}

    def event_features(self, batch: ImageBatch) -> Tensor:
        """There are none: classes are read off words, not told from a vector.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"a {type(self).__name__} has no features of events to show: its classes are read off the words of its "
            "answer; use predict() or model.explain()"
        )

    def scores(self, batch: ImageBatch, examples: Sequence[Example] = ()) -> LabelScores:
        """What the model holds for the answer, by ``rule``; see ``nufm.models.label_scoring``."""
        return score_labels(self.model, self.prepare(batch, examples), self.labels, self.rule)

    def explain(self, batch: ImageBatch, max_new_tokens: int = 100, beams: int = 1) -> list[Answer]:
        """The whole answer for every event: the class of :meth:`predict`, then what the model says of it."""
        inputs = self.prepare(batch)
        return answer(self.model, inputs, self.labels, self.tokenizer, max_new_tokens, beams, self.rule)

    def last_logits(self, inputs: dict[str, Tensor], n: int) -> Tensor:
        """Logits (B, n, vocabulary) of the last ``n`` tokens, without a cache."""
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            return self.model(**inputs, use_cache=False, logits_to_keep=n).logits
        return self.model(**inputs, use_cache=False).logits[:, -n:]


def is_adapter(name: str) -> bool:
    """Whether a parameter, by its name, belongs to the adapters."""
    return any(part in name for part in ADAPTER)


def _keep_adapters(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """A checkpoint holds the adapters alone: the base has its own files."""
    for name in [n for n in state if n.startswith(prefix) and not is_adapter(n)]:
        del state[name]


def _forget_base(module: nn.Module, incompatible: Any) -> None:
    """Weights of the base are not missing in a checkpoint, whatever the network stands in."""
    base = {n for part in (module.named_parameters(), module.named_buffers()) for n, _ in part if not is_adapter(n)}

    def of_base(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[i:]) in base for i in range(len(parts)))

    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not of_base(name)]


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")


# ---- adapters


def add_adapters(model: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
    """Low-rank adapters on the layers of these names, in place; nothing else is left trainable.

    They are float32 whatever the base is: a step of 2e-4 of a weight would be lost in the 8 bits of bfloat16, and so
    would the mean square that Adam keeps.

    Raises:
        ValueError: no layer has such a name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    found = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
    if not found & set(targets):
        raise ValueError(
            f"{type(model).__name__} has no layer named {', '.join(targets)}; expected some of "
            f"{', '.join(sorted(n for n in found if 'proj' in n or 'fc' in n))}: set targets"
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), bias="none"
    )
    on_meta = next(model.parameters()).is_meta
    inject_adapter_in_model(config, model, low_cpu_mem_usage=on_meta)
    for name, parameter in model.named_parameters():
        if is_adapter(name):  # peft makes them as the base is, and casts only in get_peft_model
            parameter.data = parameter.data.float()
