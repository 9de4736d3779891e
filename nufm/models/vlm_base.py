"""The base of an image-text model: where it is read from, onto what, and which one it is."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

ARCHITECTURES = Path(__file__).parent / "architectures"  # configurations of bases that may not be at hand
SAMPLES = 64  # values of a tensor that an identity looks at
SECOND = "v2_"  # begins digests that look at more than the input embedding


def builds_empty() -> bool:
    """Whether what is built now is on the meta device; torch.get_default_device says so from torch 2.7 on only."""
    return torch.empty(0).is_meta


def empty_base(base: str) -> nn.Module:
    """The base without memory, on the meta device.

    Its configuration is read from the folder, else from ``architectures/``, where those of gated and of made bases lie,
    else from the Hub.
    """
    from transformers import AutoModelForImageTextToText

    config = base_configuration(base)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def base_configuration(base: str) -> Any:
    """The configuration (transformers) of a base.

    Raises:
        FileNotFoundError: there is no such base.
        ValueError: it takes no pictures.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    path, kept = Path(base).expanduser(), ARCHITECTURES / f"{Path(base).name}.json"
    if not path.is_dir() and kept.is_file() and builds_empty():
        values = json.loads(kept.read_text(encoding="utf-8"))
        return AutoConfig.for_model(values.pop("model_type"), **values)
    if not path.is_dir() and (path.is_absolute() or str(base).count("/") != 1 or str(base).startswith(("runs/", "."))):
        raise FileNotFoundError(
            f"{base}: no such folder; expected a base in the layout of transformers (config.json, *.safetensors, "
            "tokenizer, processor), or owner/name of the Hugging Face Hub. A tiny one to try: python "
            f"scripts/make_tiny_vlm.py --out {base}"
        )
    try:
        config = AutoConfig.from_pretrained(str(path) if path.is_dir() else base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{base}: no configuration of a transformers model: {error}\nGive the folder of a download (Llama 3.2 "
            "Vision is gated: accept its licence on the Hub and log in with `hf auth login`), or make a tiny base: "
            "python scripts/make_tiny_vlm.py --out FOLDER"
        ) from error
    if config.model_type not in KNOWN or not hasattr(config, "vision_config"):
        raise ValueError(
            f"{base}: a {config.model_type} model takes no pictures; expected an image-text model, such as mllama "
            "(meta-llama/Llama-3.2-11B-Vision-Instruct), idefics3, smolvlm, llava or qwen2_vl"
        )
    return config


def own_device() -> torch.device:
    """The GPU of this process, by its number among those of the machine, or the CPU.

    The number is the one that Lightning goes by: torchrun and Lightning's own launcher give it as LOCAL_RANK, Slurm as
    SLURM_LOCALID. Where a process sees one GPU alone, that is its own, whatever its number.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    return torch.device("cuda", number % torch.cuda.device_count())


def load_base(base: str, quantization: str, dtype: str) -> tuple[nn.Module, Any]:
    """The base and its processor, on the GPU of this process if there is one. Only safetensors are read, and no code
    that comes with them is run.

    Raises:
        FileNotFoundError: there is no such base.
        ValueError: it takes no pictures, or cannot be loaded.
    """
    import transformers
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base_configuration(base)  # refuses what is no image-text model
    place = str(Path(base).expanduser()) if Path(base).expanduser().is_dir() else base
    cuda = torch.cuda.is_available()
    wanted = getattr(torch, dtype) if dtype != "auto" else torch.bfloat16 if cuda else torch.float32
    options: dict[str, Any] = {
        "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": wanted,
        "use_safetensors": True,
        "trust_remote_code": False,
        # 4-bit weights are packed where they will be used: half of the memory, and no second packing
        "device_map": {"": str(own_device())},
    }
    if quantization == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=wanted,
        )
    bars = transformers.utils.logging.is_progress_bar_enabled()
    if Path(place).is_dir():  # a bar is for downloads
        transformers.utils.logging.disable_progress_bar()
    try:
        model = AutoModelForImageTextToText.from_pretrained(place, **options)
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{base}: cannot be loaded as an image-text model: {error}") from error
    except (ImportError, AttributeError, RuntimeError) as error:
        if quantization == "none":
            raise
        # Some pairs of versions do not fit on a CPU: transformers 4.48 changes a list that bitsandbytes 0.50 has fixed.
        raise ValueError(
            f"{base}: cannot be loaded in 4 bit by transformers {transformers.__version__} on this machine: {error}; "
            "install transformers 5 and bitsandbytes 0.49 or newer, or set quantization to none"
        ) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    return model.eval(), processor


def identity(base: str, model: nn.Module) -> str:
    """``name:model type:digest`` of a base.

    The digest is of its widths and depths, of the first and last eight rows of its input embedding, and of values of
    all tensors that are no weights of linear layers (norms, patch and position embeddings, gates) and of the output
    layer, in bfloat16: they stay as they are when the base is quantised, moved, renamed, or saved again in other pieces
    or under other names.
    """
    digest = _digest_of_embedding(model)
    # By value, not by name: names of tensors, and their order, differ between versions of transformers.
    for sample in sorted(_samples(model)):
        digest.update(sample)
    return f"{_named(base, model)}:{SECOND}{digest.hexdigest()[:16]}"


def first_identity(base: str, model: nn.Module) -> str:
    """As exports said it before the rest of the base was looked at."""
    return f"{_named(base, model)}:{_digest_of_embedding(model).hexdigest()[:16]}"


def _named(base: str, model: nn.Module) -> str:
    return f"{Path(base).name}:{model.config.model_type}"


def _digest_of_embedding(model: nn.Module) -> Any:
    config = model.config
    rows = model.get_input_embeddings().weight.detach()
    text = config.get_text_config()
    widths = [text.hidden_size, text.num_hidden_layers, text.vocab_size, config.vision_config.hidden_size]
    sample = _bytes(torch.cat([rows[:8], rows[-8:]]))
    return hashlib.sha256(json.dumps([config.model_type, *map(int, widths)]).encode() + sample)


def _samples(model: nn.Module) -> list[bytes]:
    """Up to ``SAMPLES`` values of each tensor that no quantisation touches, evenly over the tensor."""
    found = {}
    for module in model.modules():
        if not isinstance(module, nn.Linear):  # 4-bit layers and adapters are linear layers too
            found |= {id(p): p for p in module.parameters(recurse=False)}
    if (output := model.get_output_embeddings()) is not None and output.weight.is_floating_point():
        found[id(output.weight)] = output.weight
    flat = (p.detach().flatten() for p in found.values() if p.is_floating_point())
    return [_bytes(values[:: max(1, -(-len(values) // SAMPLES))]) for values in flat]


def _bytes(values: torch.Tensor) -> bytes:
    return values.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def checked_identity(base: str, model: nn.Module, wanted: str | None) -> str:
    """The identity of a base.

    Args:
        base: its folder or name.
        model: the base.
        wanted: ``identity`` or ``first_identity`` of the one that is asked for; None: any.

    Raises:
        ValueError: it is not the one wanted.
    """
    found = identity(base, model)
    if wanted is None:
        return found
    comparable = found if wanted.rpartition(":")[2].startswith(SECOND) else first_identity(base, model)
    if wanted.partition(":")[2] != comparable.partition(":")[2]:
        raise ValueError(
            f"{base}: the adapters were trained on another base: found {comparable}, expected {wanted} (name, kind, "
            f"digest); give the folder of {wanted.partition(':')[0]}"
        )
    return found
