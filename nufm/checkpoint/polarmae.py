"""Released PoLAr-MAE and Point-MAE weights as models of nufm (Young et al., arXiv 2502.02558).

The models follow the published habits that their weights need: a norm over the whole batch (so that an event's result
depends on its batch mates), empty slots of a token that take part in maxima, neighbours capped in the order of the
file. What differs from the published forward pass:

- No weight of attention is dropped in evaluation (the published pretraining code drops 5 % there too).
- Any number of tokens of an event, where the published code holds 512, until a batch needs more: then the limit rises
  to what that batch needs, once.
- Equal scores of centrality go by the order of the file; the published sort leaves their order open, and with it which
  points become centres.
- Distances are compared in double precision. Where points of the lattice lie exactly on the surface of a ball, or are
  equally far in farthest-point sampling or for the fifth nearest token, single precision decides in the published code,
  on a GPU otherwise than on a CPU; here it may fall otherwise again.
- A point of an event of fewer than five tokens takes those there are; the published code fills up with the first token
  as if it were at no distance.
- Balls of 25 voxels begin to choose their seeds at the first point, where the published code takes a random one.

Fine-tuning from them with configs/finetune/polarmae_*.yaml needs five settings of the encoder changed to theirs: norm
and padding, and the tokenizer's neighbour_cap, ball_cap and order.

tests/checkpoint/test_polarmae_weights.py holds the rest equal to a second derivation of the published forward pass. The
released files themselves were not at hand when this was written: it follows the public loader and classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nufm.checkpoint.polarmae_files import (
    VOXEL,
    Released,
    choice,
    component,
    given,
    nested,
    positive,
    read_released,
    refuse_others,
)
from nufm.checkpoint.pretrained import Pretrained
from nufm.checkpoint.weights import Model, built_empty, check_finite, check_fit, check_types
from nufm.data.tasks import task_named
from nufm.data.transforms import LogEnergy, NormalizeCoord, Transform, WithoutLED
from nufm.models.token_encoder import TokenEncoder
from nufm.models.token_segmenter import TokenSegmenter
from nufm.models.tokens import Tokenizer

log = logging.getLogger(__name__)

GRID_SIZE = 0.0015035  # a voxel, as in configs/finetune/polarmae_*.yaml; the models do not use it
WIDTHS = {"vit_tiny": (192, 6), "vit_small": (384, 6), "vit_base": (768, 12)}  # channels, heads
# polarmae/layers/tokenizer.py, by the radius in voxels.
TOKENIZERS: dict[float, dict[str, Any]] = {
    2.5: {"group_max_points": 16, "group_upscale_points": 64, "overlap_factor": 0.73, "use_fps_seed": False},
    5: {"group_max_points": 32, "group_upscale_points": 256, "overlap_factor": 0.72, "use_fps_seed": False},
    25: {
        **{"group_max_points": 128, "group_upscale_points": 2048, "overlap_factor": 0.72, "use_fps_seed": True},
        "normalize_group_centers": True,
    },
}
ENCODER_SETTINGS = {
    *("num_channels", "arch", "masking_ratio", "masking_type", "voxel_size", "tokenizer_kwargs", "transformer_kwargs"),
    "apply_relative_position_bias",
}
TRANSFORMER_SETTINGS = {
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_scale", "drop_rate", "attn_drop_rate"),
    *("drop_path_rate", "drop_path_uniform", "add_pos_at_every_layer", "postnorm", "use_flash_self_attn"),
    "prompt_tuning",
}
TOKENIZER_SETTINGS = {
    *("num_init_groups", "context_length", "group_max_points", "group_radius", "group_upscale_points"),
    *("overlap_factor", "reduction_method", "use_relative_features", "normalize_group_centers", "use_fps_seed"),
}
PUBLISHED_SELECTION = {"energy_threshold": 0.13, "emin": 0.01, "emax": 20.0, "remove_low_energy_scatters": True}
# Parameters of the published models (vit_small, 5 voxels).
PUBLISHED = {"PoLAr-MAE": 29_570_080, "Point-MAE": 28_985_856, "segmenter": 22_858_628, "encoder": 21_837_568}


class Pretraining(NamedTuple):
    """A whole pretraining model, for whoever may import the methods.

        >>> found = load_polarmae_pretraining("polarmae_pretrain.ckpt")
        >>> method = MaskedPoints(found.encoder, **found.arguments)
        >>> method.load_state_dict(found.tensors)

    Attributes:
        encoder: with its weights.
        arguments: of :class:`nufm.methods.masked_points.MaskedPoints`, besides the encoder.
        tensors: its whole state, the encoder's too.
    """

    encoder: TokenEncoder
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]


def load_polarmae(path: str | Path) -> Pretrained:
    """A released network with the published preprocessing; what it is, its tensors' names say, not the file's.

    Args:
        path: a Lightning ``.ckpt`` of DeepLearnPhysics/PoLAr-MAE: ``mae_pretrain``, ``polarmae_pretrain``,
            ``{mae,polarmae}_{peft,fft}_segsem``.

    Returns:
        The encoder of a pretraining, or a TokenSegmenter with its task (``motif4``), in evaluation mode. ``extra``
        names what of the file was left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: pickled code, tensors that are missing, unknown, or do not fit, or an architecture or preprocessing
            that is not that of PoLAr-MAE.
    """
    released = read_released(path)
    transforms, selection = _preprocessing(released)
    encoder = _encoder(released)
    task = None
    model: nn.Module = encoder
    left_out = list(released.left_out)
    if released.kind == "segmenter":
        model, task = _segmenter(released, encoder)
    else:
        families = {k.split(".")[0] for k in released.tensors if not k.startswith("encoder.")}
        left_out += [f"{name} ({sum(k.split('.')[0] == name for k in released.tensors)})" for name in sorted(families)]
    return Pretrained(
        model=model.eval(),
        transforms=transforms,
        grid_size=GRID_SIZE,
        task=task,
        classes={} if task is None else {task_named(task).label: list(task_named(task).classes)},
        units={"energy": "MeV"},
        selection=selection,
        extra={
            "imported": f"PoLAr-MAE-format weights ({released.kind})",
            "file": released.path.name,
            "steps": released.steps,
            "caution": "norms over the whole batch, as published: an event's result depends on its batch mates",
            "left_out": ", ".join(left_out),
        },
        source=str(path),
    )


def load_polarmae_pretraining(path: str | Path) -> Pretraining:
    """Encoder, decoder and heads of a released pretraining.

    Args:
        path: as for :func:`load_polarmae`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as :func:`load_polarmae`; also a file that holds no pretraining.
    """
    released = read_released(path)
    if released.kind not in ("PoLAr-MAE", "Point-MAE"):
        raise ValueError(
            f"{released.path}: expected a pretraining, with decoder and mask_token, found: {released.kind}"
        )
    encoder = _encoder(released)
    path = released.path
    stored = component(released, "decoder", "TransformerDecoder")
    width, heads = _width(stored, released)
    if (width, heads) != (encoder.channels, encoder.arguments["heads"]):
        raise ValueError(
            f"{path}: the decoder has {width} channels and {heads} heads, expected {encoder.channels} and "
            f"{encoder.arguments['heads']} as in the encoder"
        )
    _transformer(stored, released, final_norm=True)
    shown = "pos" if released.shape("point_head.weight", 2)[0] == 3 * encoder.tokenizer.max_points else "full"
    choice(released.settings or {}, "mae_prediction", shown, (shown,), path)
    masked = positive(component(released, "encoder", "TransformerEncoder"), "masking_ratio", 0.6, path)
    arguments = {
        "energy_infilling": released.kind == "PoLAr-MAE",
        "mask_ratio": float(masked),
        "decoder_depth": released.depth("decoder."),
        "targets": "all" if shown == "full" else "position",
    }
    tensors = dict(released.tensors)
    for name in released.tensors:  # our batch norms count their batches, the published ones do not
        if name.endswith("running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = torch.zeros((), dtype=torch.int64)
    check_finite(tensors, str(path))
    return Pretraining(encoder, arguments, tensors)


# ---- the networks ---------------------------------------------------------------------------------------------


def _encoder(released: Released) -> TokenEncoder:
    path = released.path
    stored = component(released, "encoder", "TransformerEncoder")
    refuse_others(stored, ENCODER_SETTINGS, "encoder.init_args", path)
    width, heads = _width(stored, released)
    in_channels = released.shape("encoder.embedding.first.0.weight", 2)[1]
    choice(stored, "num_channels", 4, (in_channels,), path)
    depth = released.depth("encoder.transformer.")
    final_norm = "encoder.transformer.norm.weight" in released.tensors
    thirds = sorted({max(0, depth * k // 3 - 1) for k in (1, 2, 3)})  # 3, 7, 11 of 12
    blocks = given(released.settings or {}, "seg_head_fetch_layers", thirds)
    if not isinstance(blocks, (list, tuple)) or not all(type(b) is int for b in blocks):
        raise ValueError(f"{path}: seg_head_fetch_layers is {blocks!r:.200}, expected numbers of blocks")
    arguments = {
        "tokenizer": _tokenizer(stored, released),
        "in_channels": in_channels,
        "channels": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": released.shape("encoder.transformer.blocks.0.mlp.fc1.weight", 2)[0] / width,
        **_transformer(stored, released, final_norm),
        "norm": "batch_global",
        "final_norm": final_norm,
        "padding": "as_published",
        "reach": "all",
        "feature_blocks": list(blocks),
    }
    _check_count(released)
    return _filled(built_empty(TokenEncoder, arguments, path), released.part("encoder."), path)


def _segmenter(released: Released, encoder: TokenEncoder) -> tuple[TokenSegmenter, str]:
    """Upsampling and head, with the context of the event and without a transformer decoder."""
    path, settings = released.path, released.settings
    if settings is not None:
        choice(settings, "condition_global_features", False, (True,), path)
        for name in ("use_pos_enc_for_upsampling", "apply_local_attention"):
            choice(settings, name, False, (False,), path)
        choice(settings, "seg_decoder", None, (None,), path)
    hidden = released.shape("head.0.weight", 2)[0]
    n_classes = released.shape("head.7.weight", 2)[0]
    task = next((t for t in ("motif4", "motif") if len(task_named(t).classes) == n_classes), None)
    if task is None:
        raise ValueError(f"{path}: the head has {n_classes} classes, expected 4 (motifs without LED) or 5 (motifs)")
    choice(settings or {}, "num_classes", n_classes, (n_classes,), path)
    dropout = positive(settings or {}, "seg_head_dropout", 0.5, path, zero=True)
    arguments = {"encoder": encoder, "n_classes": n_classes, "hidden": hidden, "dropout": dropout}
    model = built_empty(TokenSegmenter, arguments, path)
    return _filled(model, released.tensors, path), task


def _width(stored: Mapping[str, Any], released: Released) -> tuple[int, int]:
    """Channels and heads, which no tensor shows, of the named architecture."""
    width = released.shape("encoder.embedding.second.3.weight", 2)[0]
    by_width = next((name for name, (channels, _) in WIDTHS.items() if channels == width), None)
    arch = choice(stored, "arch", by_width if released.settings is None else "vit_small", tuple(WIDTHS), released.path)
    channels, heads = WIDTHS[arch]
    if channels != width:
        raise ValueError(f"{released.path}: arch is {arch}, which has {channels} channels; the tensors have {width}")
    kwargs = nested(stored, "transformer_kwargs", released.path)
    return channels, positive(kwargs, "num_heads", heads, released.path, whole=True)


def _transformer(stored: Mapping[str, Any], released: Released, final_norm: bool) -> dict[str, float]:
    """What the settings of a transformer say of the training; the rest is checked."""
    path = released.path
    found = nested(stored, "transformer_kwargs", path)
    refuse_others(found, TRANSFORMER_SETTINGS, "transformer_kwargs", path)
    choice(found, "add_pos_at_every_layer", False, (True,), path)
    choice(found, "postnorm", final_norm if released.settings is None else True, (final_norm,), path)
    for name, default in (("qkv_bias", True), ("qk_scale", None), ("drop_rate", 0.0), ("prompt_tuning", False)):
        choice(found, name, default, (default,), path)
    return {
        "attention_dropout": float(positive(found, "attn_drop_rate", 0.0, path, zero=True)),
        "drop_path": float(positive(found, "drop_path_rate", 0.0, path, zero=True)),
    }


def _tokenizer(stored: Mapping[str, Any], released: Released) -> Tokenizer:
    """As published, in the order of the file; the limit on the number of tokens is not taken over."""
    path = released.path
    choice(stored, "apply_relative_position_bias", False, (False, True), path)  # made, but handed to nobody
    voxels = choice(stored, "voxel_size", 5, (*TOKENIZERS, *map(float, TOKENIZERS)), path)
    named = nested(stored, "tokenizer_kwargs", path)
    refuse_others(named, TOKENIZER_SETTINGS, "tokenizer_kwargs", path)
    # Without an overlap every seed is a centre: the one setting to which null means something.
    named = {name: value for name, value in named.items() if value is not None or name == "overlap_factor"}
    found = {"group_radius": voxels * VOXEL, "num_init_groups": 256} | TOKENIZERS[voxels] | named
    choice(found, "use_relative_features", False, (False,), path)
    seeds = positive(found, "num_init_groups", 256, path, whole=True)
    overlap = found["overlap_factor"]
    from_seeds = overlap is None or choice(found, "use_fps_seed", True, (False, True), path)
    reduction = choice(found, "reduction_method", "fps", ("fps", "energy"), path)
    return built_empty(
        Tokenizer,
        {
            "radius": positive(found, "group_radius", 0, path),
            "max_points": positive(found, "group_max_points", 0, path, whole=True),
            "overlap": None if overlap is None else positive(found, "overlap_factor", 0, path),
            "seeds": seeds if from_seeds else None,
            "reduction": "farthest" if reduction == "fps" else "energy",
            "centre": "mean" if choice(found, "normalize_group_centers", False, (False, True), path) else "seed",
            "neighbour_cap": None if from_seeds else seeds,  # so many seeds are never too many
            "ball_cap": positive(found, "group_upscale_points", 0, path, whole=True),
            "order": "as_given",
        },
        path,
    )


def _preprocessing(released: Released) -> tuple[tuple[Transform, ...], dict[str, float]]:
    """Transforms and selection of the events."""
    path, settings, stored = released.path, released.settings or {}, released.selection or PUBLISHED_SELECTION
    names = given(settings, "val_transformations", ["center_and_scale"])
    # None: older runs did it where they read the events.
    if not isinstance(names, (list, tuple)) or list(names) not in ([], ["center_and_scale"]):
        raise ValueError(f"{path}: val_transformations is {names!r:.200}, expected center_and_scale alone")
    centre = given(settings, "transformation_center", 384.0)
    axes = centre.reshape(-1).tolist() if isinstance(centre, Tensor) else centre
    centres = {c if type(c) in (int, float) else None for c in (axes if isinstance(axes, (list, tuple)) else [axes])}
    factor = positive(settings, "transformation_scale_factor", VOXEL, path)
    if centres != {384.0} or abs(factor / VOXEL - 1) > 1e-6:
        raise ValueError(
            f"{path}: hyper_parameters have transformation_center {centre!r:.200} and transformation_scale_factor "
            f"{factor}, expected 384 and {VOXEL:.8g}"
        )
    threshold = float(positive(stored, "energy_threshold", 0.13, path, zero=True))
    # The published reader takes the threshold for epsilon, where there is one.
    epsilon = threshold or float(positive(stored, "emin", 1e-6, path))
    e_max = float(positive(stored, "emax", 20.0, path))
    without_led = choice(stored, "remove_low_energy_scatters", False, (False, True), path)
    prepared = (NormalizeCoord(), LogEnergy(epsilon=epsilon, e_max=e_max))
    return (*prepared, WithoutLED()) if without_led else prepared, {"energy_threshold": threshold}


def _check_count(released: Released) -> None:
    """Refuse a file of the published sizes whose parameters are not as many as the published ones."""
    shape = {name: tuple(t.shape) for name, t in released.tensors.items()}
    published = (
        shape["encoder.embedding.second.3.weight"][0] == 384
        and released.depth("encoder.transformer.") == 12
        and released.depth("decoder.") in (0, 4)
        and shape.get("point_head.weight", (128,))[0] == 128
        and shape.get("head.7.weight", (4,))[0] == 4
    )
    n = sum(t.numel() for name, t in released.tensors.items() if ".running_" not in name)
    if published and n != PUBLISHED[released.kind]:
        raise ValueError(
            f"{released.path}: found {n:,} parameters, expected {PUBLISHED[released.kind]:,} of the published "
            f"{released.kind}; is the file complete?"
        )


def _filled(model: Model, tensors: Mapping[str, Tensor], path: Path) -> Model:
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    check_fit({k: tuple(v.shape) for k, v in tensors.items()}, {k: tuple(v.shape) for k, v in wanted.items()}, path)
    check_types(tensors, wanted, path)
    check_finite(tensors, str(path))
    model = model.to_empty(device="cpu")
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):  # of our batch norms; the published ones do not count
            buffer.zero_()
    model.load_state_dict(tensors, strict=False)  # in the model's precision; checked above
    return model
