"""Released Panda weights as models of nufm (Young & Terao, arXiv 2512.01324; DeepLearnPhysics/Panda).

Sizes are read off the tensors; a stored ``config`` supplies what tensors do not show and must agree with the rest.
The names of an encoder's tensors are the published ones; those of the other networks differ in front:

    published           here
    backbone.enc.…      encoder.enc.…
    backbone.dec.…      decoder.dec.…
    seg_head.…          head.…
    decoder.…           decoder.…          (the set decoder of a detector)

What differs from the published forward pass: in evaluation the curves keep their order, where the published code
shuffles them at random; windows always hold 256 points, as with the flash-attention that trained the weights, where
the published code without it shrinks them to the smallest event of the batch; and the depth of the curves follows each
event, where the published one follows the largest event of the batch, which turns the Hilbert curves of the others.
For one event at a time, with the published curves in order, and windows that hold 256 points or the whole event,
features, logits and masks equal those of the published code (tests/checkpoint/test_panda_reference.py); for a batch
they do with ``faithful=True``, which takes the depth of the batch.

The released files themselves were not at hand when this was written: it follows the public loader and classes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from nufm.checkpoint.panda_files import STEM, Released, read_released, shape_of
from nufm.checkpoint.pretrained import ENERGY_THRESHOLD, Pretrained
from nufm.checkpoint.weights import Model, built_empty, check_finite, check_fit, check_types, some
from nufm.data.tasks import task_named
from nufm.data.transforms import event_transforms
from nufm.models.detector import Detector
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.segmenter import Decoder, Segmenter

log = logging.getLogger(__name__)

GRID_SIZE = 0.001
PANDA_ON_HUB = r"DeepLearnPhysics/Panda(-\w+)?"
# Argument of the published constructor -> ours.
ENCODER_ARGUMENTS = {
    "in_channels": "in_channels",
    "enc_depths": "depths",
    "enc_channels": "channels",
    "enc_num_head": "heads",
    "enc_patch_size": "window",
    "order": "curves",
    "mlp_ratio": "mlp_ratio",
    "drop_path": "drop_path",
    "mask_token": "mask_token",
}
DECODER_ARGUMENTS = {
    "dec_depths": "depths",
    "dec_channels": "channels",
    "dec_num_head": "heads",
    "dec_patch_size": "window",
    "mlp_ratio": "mlp_ratio",
    "drop_path": "drop_path",
}
# Published arguments that change the function of the network, and the only value that ours computes.
FIXED = {
    "qkv_bias": True,
    "pre_norm": True,
    "enable_rpe": False,
    "full_attention": False,
    "cpe_first_layer_only": False,
    "cpe_shared_weight": False,
    "embedding_act_layer": True,
    "qk_scale": None,
}
FIXED_DETECTOR = {
    **{"qkv_bias": True, "pre_norm": True, "qk_scale": None, "layer_scale": None, "pos_emb": True},
    **{"query_type": "learned", "use_stuff_head": True, "supervise_attn_mask": True},
    **{"nms_kernel": "gaussian", "nms_sigma": 2.0, "nms_pre": -1, "nms_max": -1, "fill_uncovered": False},
}
# Published thresholds of the post-processing -> ours.
RULES = {
    "stuff_threshold": "stuff_threshold",
    "mask_threshold": "mask_threshold",
    "conf_threshold": "score_threshold",
    "min_points": "min_points",
}


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


COUNTS, SHARE = (_is_count, True, "a list of whole numbers, at least 1"), (_is_share, False, "a number from 0 to 1")
# Our name of a stored argument -> what its value, or each value of a list, must be; whether it is a list (None: either
# will do); both in words.
STORED = {
    "in_channels": (_is_count, False, "a whole number, at least 1"),
    **{"depths": COUNTS, "channels": COUNTS, "heads": COUNTS},
    "window": (_is_count, None, "a whole number, at least 1, or a list of it"),
    "curves": (lambda value: isinstance(value, str), None, "names of curves"),
    "mlp_ratio": (lambda value: type(value) in (int, float) and 0 < value < float("inf"), False, "a positive number"),
    "drop_path": SHARE,
    "mask_token": (lambda value: type(value) is bool, False, "true or false"),
    **{"stuff_threshold": SHARE, "mask_threshold": SHARE, "score_threshold": SHARE},
    "min_points": (lambda value: type(value) is int and value >= 0, False, "a whole number, at least 0"),
    "heads of queries": (_is_count, False, "a whole number, at least 1"),
}


def load_panda(
    path: str | Path,
    branch: Literal["student", "teacher"] = "student",
    faithful: bool = False,
    hub: str | None = None,
) -> Pretrained:
    """A released network with the published preprocessing; what it is, its tensors' names say, not the file's.

    Args:
        path: as for :func:`load_panda_pth`.
        branch: which encoder, where a pretraining checkpoint holds both.
        faithful: serialise to the depth that the batch needs, as published: an event's result then depends on the
            extent of the others in its batch.
        hub: owner/name on the Hugging Face Hub that the file was downloaded from. Only if it is one of Panda's do the
            weights count as released, under MIT; a file alone does not say where it comes from.

    Returns:
        An encoder, a Segmenter (task ``motif``) or a Detector (task ``particle`` or ``interaction``, by its classes),
        in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: pickled code, missing tensors (listed), or an architecture that is not Panda's.
    """
    released = read_released(path, branch)
    extra: dict[str, Any] = {"imported": "Panda-format weights", "file": released.path.name}
    if hub is not None and re.fullmatch(PANDA_ON_HUB, hub):
        extra |= {"imported": "released Panda weights", "hub": hub, "licence": "MIT"}
    task = None
    if released.kind == "encoder":
        model: nn.Module = _encoder(released, faithful)
    elif released.kind == "segmenter":
        model, task = _segmenter(released, faithful)
    else:
        model, task = _detector(released, faithful)
    classes = {} if task is None else {task_named(task).label: list(task_named(task).classes)}
    return Pretrained(
        model=model.eval(),
        transforms=tuple(event_transforms(GRID_SIZE)),
        grid_size=GRID_SIZE,
        task=task,
        classes=classes,
        units={"energy": "MeV"},
        selection={"energy_threshold": ENERGY_THRESHOLD},
        extra=extra,
        source=str(path),
    )


def load_panda_pth(
    path: str | Path, branch: Literal["student", "teacher"] = "student", faithful: bool = False
) -> PointTransformerV3:
    """Encoder of released Panda weights, or of the public training code's checkpoints; a head is left out.

    Args:
        path: ``.pth`` (a dict with ``state_dict`` and perhaps ``config``, or a bare state dict),
            ``.safetensors``, or a folder with one ``.safetensors`` file and perhaps ``config.json``.
        branch: which encoder, where a pretraining checkpoint holds both. Published downstream runs take
            the student.
        faithful: as for :func:`load_panda`.

    Returns:
        The encoder in evaluation mode; deterministic, where published evaluation
        shuffles the curves at random.

    Raises:
        FileNotFoundError: no such file.
        ValueError: pickled code, missing tensors (listed), or an architecture that is not Panda's.
    """
    released = read_released(path, branch)
    heads = [*released.head, *(k for k in released.encoder if k.startswith("dec."))]
    return _encoder(released, faithful, heads)


# ---- the networks ---------------------------------------------------------------------------------------------


def _encoder(released: Released, faithful: bool, left_out: list[str] | None = None) -> PointTransformerV3:
    encoder, tensors = _empty_encoder(released, faithful)
    return _filled(encoder, tensors, released, left_out or [])


def _empty_encoder(released: Released, faithful: bool) -> tuple[PointTransformerV3, dict[str, Tensor]]:
    """An encoder of the right shape, and the tensors it is to be filled with."""
    tensors = {k: v for k, v in released.encoder.items() if not k.startswith("dec.")}
    arguments = _encoder_arguments(tensors, released.encoder_config, released.path)
    arguments["depth_bits"] = None if faithful else "event"
    return built_empty(PointTransformerV3, arguments, released.path), tensors


def _segmenter(released: Released, faithful: bool) -> tuple[Segmenter, str]:
    """Panda-Semantic: encoder, decoder (or none: a linear layer on the features of all stages), linear head."""
    path = released.path
    if set(released.head) != {"seg_head.weight", "seg_head.bias"}:
        raise ValueError(
            f"{path}: expected a linear head, seg_head.weight and seg_head.bias, found {some(sorted(released.head))}"
        )
    encoder, encoder_tensors = _empty_encoder(released, faithful)
    decoder_tensors = {k: v for k, v in released.encoder.items() if k.startswith("dec.")}
    decoder = None
    if decoder_tensors:
        arguments = _decoder_arguments(decoder_tensors, released.encoder_config, path)
        decoder = built_empty(Decoder, {"encoder_channels": list(encoder.channels), **arguments}, path)
    n_classes, _ = shape_of(released.head, "seg_head.weight", 2, path)
    _agree("num_classes", released.config.get("num_classes", n_classes), n_classes, path)
    model = built_empty(Segmenter, {"encoder": encoder, "decoder": decoder, "n_classes": n_classes}, path)
    tensors = {f"encoder.{k}": v for k, v in encoder_tensors.items()}
    tensors |= {f"decoder.{k}": v for k, v in decoder_tensors.items()}
    tensors |= {k.replace("seg_head.", "head."): v for k, v in released.head.items()}
    task = next((t for t in ("motif", "pid") if len(task_named(t).classes) == n_classes), None)
    if task is None:
        raise ValueError(f"{path}: the head has {n_classes} classes; expected 5 (motif) or 6 (PID)")
    return _filled(model, tensors, released, []), task


def _detector(released: Released, faithful: bool) -> tuple[Detector, str]:
    """Panda-Particle or Panda-Interaction, with the published rules of who attends where."""
    path, head, config = released.path, released.head, released.config
    _check_fixed(config, FIXED_DETECTOR, path)
    encoder, encoder_tensors = _empty_encoder(released, faithful)
    two_layers = "decoder.cls_pred.fc2.weight" in head
    n_queries, width = shape_of(head, "decoder.query_feat.weight", 2, path)
    n_classes = shape_of(head, f"decoder.cls_pred.{'fc2.' if two_layers else ''}bias", 1, path)[0] - 1
    mlp_ratio = shape_of(head, "decoder.blocks.0.mlp.fc1.bias", 1, path)[0] / width
    task = next((t for t in ("particle", "interaction") if len(task_named(t).classes) == n_classes), None)
    if task is None or (released.label is not None and released.label != task):
        raise ValueError(
            f"{path}: the detector has {n_classes} classes for {released.label or 'an unnamed task'}; "
            "expected 6 (particle) or 2 (interaction)"
        )
    shown = {"num_queries": n_queries, "num_classes": n_classes, "hidden_channels": width, "mlp_ratio": mlp_ratio}
    shown |= {"mlp_point_proj": two_layers, "full_in_channels": sum(encoder.channels)}
    for name, value in shown.items():
        _agree(name, config.get(name, value), value, path)
    stuff = config.get("stuff_classes")
    if stuff not in (None, [], [task_named(task).stuff], (task_named(task).stuff,)):
        raise ValueError(
            f"{path}: config has stuff_classes = {stuff!r:.200}, expected [{task_named(task).stuff}], the stuff of the "
            f"task '{task}'"
        )
    arguments = {
        "encoder": encoder,
        "n_queries": n_queries,
        "n_classes": n_classes,
        "stuff_class": task_named(task).stuff,
        "width": width,
        "heads": _stored(config, {"num_heads": "heads of queries"}, path).get("heads of queries", width // 16),
        "depth": len({k.split(".")[2] for k in head if k.startswith("decoder.blocks.")}),
        "mlp_ratio": mlp_ratio,
        "two_layer_projections": two_layers,
        # As in the published code of the time of the paper; later versions changed both.
        "positions": "queries",
        "mask_from": "before_last_update",
        **_stored(config, RULES, path),
    }
    model = built_empty(Detector, arguments, path)
    return _filled(model, {f"encoder.{k}": v for k, v in encoder_tensors.items()} | head, released, []), task


def _filled(model: Model, tensors: Mapping[str, Tensor], released: Released, unused: list[str]) -> Model:
    """The model with these tensors: a missing one is an error, a surplus one is logged."""
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    unused = sorted({*unused, *released.left_out, *(tensors.keys() - wanted.keys())})
    tensors = {k: v for k, v in tensors.items() if k in wanted}
    check_fit({k: tuple(v.shape) for k, v in tensors.items()}, wanted, released.path)
    check_types(tensors, model.state_dict(), released.path)
    check_finite(tensors, str(released.path))
    if unused:
        log.info("%s: %d tensors not used: %s", released.path, len(unused), some(unused))
    model = model.to_empty(device="cpu")
    model.load_state_dict(tensors)  # in the model's precision
    return model.eval()


# ---- constructor arguments from tensors and config ------------------------------------------------------------


def _encoder_arguments(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Constructor arguments from the tensors, completed by the stored ones."""
    _check_fixed(config, FIXED, path)
    strides = config.get("stride", ())
    if not isinstance(strides, (list, tuple)) or any(s != 2 for s in strides):
        raise ValueError(f"{path}: config has stride = {strides!r:.200}, expected a list of 2s")
    shown = {
        "in_channels": shape_of(tensors, STEM, 2, path)[1],
        **_stages(tensors, "enc", path),
        "mask_token": "embedding.mask_token" in tensors,
    }
    stored = _stored(config, ENCODER_ARGUMENTS, path)
    # A mask token is needed in pretraining only: files with and without one go with either setting.
    stored.pop("mask_token", None)
    for name, value in shown.items():
        _agree(name, stored.get(name, value), value, path)
    # Published: 16 channels per head, windows of 256 points.
    return {"heads": [c // 16 for c in shown["channels"]], "window": 256} | stored | shown


def _decoder_arguments(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    shown = _stages(tensors, "dec", path)
    stored = _stored(config, DECODER_ARGUMENTS, path)
    window = _stored(config, ENCODER_ARGUMENTS, path).get("window", 256)
    if stored.pop("window", window) != window:  # the decoder's blocks use the windows of the encoder's stages
        raise ValueError(
            f"{path}: config has dec_patch_size = {config['dec_patch_size']}, expected {window} as in the encoder"
        )
    for name, value in shown.items():
        _agree(f"decoder {name}", stored.get(name, value), value, path)
    return {"heads": [c // 16 for c in shown["channels"]]} | stored | shown


def _stages(tensors: Mapping[str, Tensor], part: Literal["enc", "dec"], path: Path) -> dict[str, Any]:
    """Depths, channels and MLP ratio of the encoder's or decoder's stages."""
    blocks: dict[int, int] = {}
    for key in tensors:
        if match := re.match(rf"{part}\.{part}(\d+)\.block(\d+)\.", key):
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
    if sum(blocks.values()) > len(tensors):  # names are numbers that anyone can write
        raise ValueError(
            f"{path}: the names of its tensors ask for {sum(blocks.values())} blocks in '{part}', expected at most one "
            f"for each of the {len(tensors)} tensors"
        )
    stages = range(max(blocks, default=0) + 1)
    channels = [shape_of(tensors, f"{part}.{part}{s}.block0.norm1.0.weight", 1, path)[0] for s in stages]
    mlp_ratio = shape_of(tensors, f"{part}.{part}0.block0.mlp.0.fc1.bias", 1, path)[0] / channels[0]
    return {"depths": [blocks.get(s, 0) for s in stages], "channels": channels, "mlp_ratio": mlp_ratio}


def _stored(config: Mapping[str, Any], names: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Arguments of the public constructor under our names."""
    for theirs, ours in names.items():
        if theirs in config:
            _check_stored(theirs, config[theirs], *STORED[ours], path)
    stored = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    if isinstance(stored.get("window"), (list, tuple)):
        if len(set(stored["window"])) != 1:
            theirs = next(k for k, v in names.items() if v == "window")
            raise ValueError(
                f"{path}: config has {theirs} = {stored['window']}, expected the same at every stage"
            )
        stored["window"] = stored["window"][0]
    if isinstance(stored.get("curves"), str):
        stored["curves"] = [stored["curves"]]
    return stored


def _check_stored(
    name: str, value: Any, allowed: Callable[[Any], bool], listed: bool | None, expected: str, path: Path
) -> None:
    """Refuse a value of the config that is not of its kind."""
    is_list = isinstance(value, (list, tuple))
    fits = all(map(allowed, value)) if is_list and listed is not False else allowed(value) and listed is not True
    if not fits or (is_list and not value):
        raise ValueError(f"{path}: config has {name} = {value!r:.200}, expected {expected}")


def _check_fixed(config: Mapping[str, Any], fixed: Mapping[str, Any], path: Path) -> None:
    for name, value in fixed.items():
        if name in config and config[name] != value:
            raise ValueError(f"{path}: config has {name} = {config[name]!r}, only {value!r} can be imported")


def _agree(name: str, stored: Any, shown: Any, path: Path) -> None:
    stored = list(stored) if isinstance(stored, (list, tuple)) else stored
    if stored != shown:
        raise ValueError(f"{path}: config says {name} = {stored}, the tensors {shown}")
