"""PoLAr-MAE's published forward pass a second time: dense, padded and slow, from its description (arXiv 2502.02558) and
the public code's habits (DeepLearnPhysics/PoLAr-MAE at 2fd3b80), which released weights need. Imports nothing of nufm.

Shape legend: B events, N points, T tokens of the longest event, K slots of a token, C channels, H heads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FACTOR = 1 / (384 * 3**0.5)
RADIUS, OVERLAP, SLOTS, CAP = 5 * FACTOR, 0.72, 32, 256
WIDTHS = {"vit_tiny": (192, 6), "vit_small": (384, 6)}  # C, H
State = dict[str, Tensor]


# ---------------------------------------------------------------------- files


def shapes(kind: str, arch: str = "vit_small", depth: int = 12, decoder: int = 4) -> dict[str, tuple[int, ...]]:
    """Tensors of a released file. ``kind``: PoLAr-MAE, Point-MAE or segmenter."""
    c = WIDTHS[arch][0]
    found: dict[str, tuple[int, ...]] = {}

    def norm(name: str, n: int) -> None:
        found.update({f"{name}.{part}": (n,) for part in ("weight", "bias", "running_mean", "running_var")})

    def pointnet(name: str, columns: int) -> None:
        for stage, (a, b, out) in {"first_conv": (columns, 128, 256), "second_conv": (512, 512, c)}.items():
            found[f"{name}.{stage}.0.weight"] = (b, a, 1)
            norm(f"{name}.{stage}.1", b)
            found.update({f"{name}.{stage}.3.weight": (out, b, 1), f"{name}.{stage}.3.bias": (out,)})

    def linear(name: str, a: int, b: int) -> None:
        found.update({f"{name}.weight": (b, a), f"{name}.bias": (b,)})

    def blocks(name: str, n: int) -> None:
        for i in range(n):
            for part in ("norm1", "norm2"):
                found.update({f"{name}.blocks.{i}.{part}.{p}": (1, 1, c) for p in ("gamma", "beta")})
            for part, a, b in (("attn.qkv", 1, 3), ("attn.proj", 1, 1), ("mlp.fc1", 1, 4), ("mlp.fc2", 4, 1)):
                linear(f"{name}.blocks.{i}.{part}", a * c, b * c)

    pointnet("encoder.tokenizer.embedding", 4)
    linear("encoder.pos_embed.pos_enc.0", 3, 128)
    linear("encoder.pos_embed.pos_enc.2", 128, c)
    blocks("encoder.transformer", depth)
    if kind == "segmenter":
        for i, a in enumerate((c + 3, c)):
            found[f"upsampler.mlp_convs.{i}.weight"] = (c, a, 1)
            norm(f"upsampler.mlp_bns.{i}", c)
        for i, (a, b) in enumerate(((3 * c, 512), (512, 256)), start=1):
            found[f"seg_head.conv{i}.weight"] = (b, a, 1)
            norm(f"seg_head.bn{i}", b)
        return found | {"seg_head.conv3.weight": (4, 256, 1), "seg_head.conv3.bias": (4,), "loss_func.weight": (4,)}
    blocks("decoder.transformer", decoder)
    found |= {"decoder.transformer.norm.gamma": (1, 1, c), "decoder.transformer.norm.beta": (1, 1, c)}
    found |= {"mask_token": (c,), "increase_dim.weight": (4 * SLOTS, c, 1), "increase_dim.bias": (4 * SLOTS,)}
    if kind == "PoLAr-MAE":
        pointnet("equivariant_patch_encoder", 3)
        linear("equivariant_patch_encoder.position_encoder.time_embed.1", 256, 256)
        found |= {"energy_decoder.weight": (SLOTS, 2 * c, 1), "energy_decoder.bias": (SLOTS,)}
    return found


def state(kind: str, seed: int = 0, **sizes: Any) -> State:
    """Weights that a training might have left: no norm is the identity, no bias is zero."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(kind, **sizes).items():
        x = torch.randn(shape, generator=generator)
        scale = name.endswith("gamma") or (".weight" in name and len(shape) == 1)
        if name.endswith("running_var"):
            x = 0.3 + 0.3 * x.square()
        elif scale:
            x = 1 + 0.2 * x
        else:
            x = x * (0.2 if len(shape) == 1 or name.endswith("beta") else shape[1] ** -0.5)
        found[name] = x
    return found


def settings(kind: str, arch: str = "vit_small", depth: int | None = None) -> dict[str, Any]:
    """``hyper_parameters`` as the public command line stores them."""
    transformer = {
        **{"postnorm": False, "add_pos_at_every_layer": True, "drop_rate": 0.0, "attn_drop_rate": 0.05},
        **{"drop_path_rate": 0.25, "use_flash_self_attn": kind != "segmenter"},
    }
    common = {"arch": arch, "transformer_kwargs": transformer | ({} if depth is None else {"depth": depth})}
    encoder = {
        **{"num_channels": 4, "voxel_size": 5, "masking_ratio": 0.6, "masking_type": "rand"},
        **{"tokenizer_kwargs": {"group_radius": RADIUS}, "apply_relative_position_bias": False},
    }
    found: dict[str, Any] = {
        "encoder": {"class_path": "polarmae.layers.encoder.TransformerEncoder", "init_args": encoder | common},
        "learning_rate": 1e-4,
        "val_transformations": ["center_and_scale"],
        "transformation_center": [384, 384, 384],
        "transformation_scale_factor": FACTOR,
        "_instantiator": "pytorch_lightning.cli.instantiate_module",
    }
    if kind == "segmenter":
        blocks = [3, 7, 11] if depth is None else list(range(depth))
        return found | {
            **{"num_classes": 4, "seg_decoder": None, "condition_global_features": True, "seg_head_dim": 512},
            **{"seg_head_fetch_layers": blocks, "seg_head_dropout": 0.5, "loss_func": "focal", "encoder_freeze": True},
        }
    decoder = {"arch": arch, "transformer_kwargs": transformer | {"postnorm": True, "depth": 4}}
    found["decoder"] = {"class_path": "polarmae.layers.decoder.TransformerDecoder", "init_args": decoder}
    return found | ({"mae_prediction": "full"} if kind == "PoLAr-MAE" else {})


def checkpoint(kind: str, arch: str = "vit_small", depth: int | None = None, seed: int = 0) -> dict[str, Any]:
    """A Lightning dictionary as released."""
    dataset = {"energy_threshold": 0.13, "remove_low_energy_scatters": True, "emin": 0.01, "emax": 20.0, "maxlen": -1}
    weights = state(kind, seed, arch=arch, depth=depth or 12)
    return {
        "epoch": 61,
        "global_step": 500_000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": weights,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": settings(kind, arch, depth),
        "datamodule_hyper_parameters": {"data_path": "/x/train/*.h5", "batch_size": 32, "dataset_kwargs": dataset},
    }


# ---------------------------------------------------------------------- tokens


class Dense(NamedTuple):
    """Tokens, padded: ``groups`` (B, T, K, 4), ``centre`` (B, T, 3), ``members`` (B, T, K) points or -1."""

    groups: Tensor
    centre: Tensor
    members: np.ndarray

    @property
    def slots(self) -> Tensor:
        """bool (B, T, K): true slots."""
        return torch.from_numpy(self.members >= 0)

    @property
    def valid(self) -> Tensor:
        """bool (B, T): true tokens."""
        return self.slots.any(2)


def tokenize(events: list[np.ndarray], precision: type = np.float64) -> Dense:
    """Balls of 5 voxels of events (N, 4); ``precision`` of the distances: the public code has float32."""
    found = [_tokens(points, precision) for points in events]
    longest = max((len(centres) for centres, _ in found), default=0)
    members = np.full((len(events), longest, SLOTS), -1)
    centre, groups = np.zeros((len(events), longest, 3)), np.zeros((len(events), longest, SLOTS, 4))
    for b, (centres, lists) in enumerate(found):
        for t, (c, rows) in enumerate(zip(centres, lists, strict=True)):
            members[b, t, : len(rows)] = rows
            centre[b, t] = events[b][c, :3]
            filled = np.concatenate([rows, np.full(SLOTS - len(rows), rows[0])])  # empty slots repeat the first
            group = events[b][filled].astype(np.float64)
            group[:, :3] = (group[:, :3] - centre[b, t]) / RADIUS
            groups[b, t] = group
    return Dense(torch.from_numpy(groups), torch.from_numpy(centre), members)


def _tokens(points: np.ndarray, precision: type) -> tuple[list[int], list[list[int]]]:
    """Centres, in the order of the file, and the points of each in the order of farthest-point sampling."""
    x = points[:, :3].astype(precision)
    difference = x[:, None] - x[None]
    square = difference[..., 0] ** 2 + difference[..., 1] ** 2 + difference[..., 2] ** 2
    reach = precision(2 * RADIUS * OVERLAP)
    lists = [np.flatnonzero(row)[:CAP] for row in square < reach * reach]
    left = np.ones(len(x), dtype=bool)
    for i in sorted(range(len(x)), key=lambda i: -len(lists[i])):  # stable
        if left[i]:
            left[lists[i]] = False
            left[i] = True
    centres = np.flatnonzero(left).tolist()
    r = precision(RADIUS)
    balls = [np.flatnonzero(square[c] < r * r)[:CAP] for c in centres]
    return centres, [_farthest(ball, square) for ball in balls]


def _farthest(ball: np.ndarray, square: np.ndarray) -> list[int]:
    distance = square[np.ix_(ball, ball)]
    taken, nearest = [0], distance[0].copy()
    while len(taken) < min(SLOTS, len(ball)):
        nearest[taken] = -1
        taken.append(int(nearest.argmax()))  # the first wins a tie
        nearest = np.minimum(nearest, distance[taken[-1]])
    return ball[taken].tolist()


# ---------------------------------------------------------------------- layers


def pointnet(w: State, name: str, x: Tensor, slots: Tensor, ordered: bool = False) -> Tensor:
    """(M, K, columns) with slots bool (M, K) -> (M, C). Empty slots hold the norms' biases, which count in maxima."""

    def masked(name: str, x: Tensor) -> Tensor:
        x = (x - w[f"{name}.running_mean"]) / (w[f"{name}.running_var"] + 1e-5).sqrt() * slots[..., None]
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def stage(name: str, x: Tensor) -> Tensor:
        x = masked(f"{name}.1", x @ w[f"{name}.0.weight"][..., 0].T).relu()
        return x @ w[f"{name}.3.weight"][..., 0].T + w[f"{name}.3.bias"]

    x = stage(f"{name}.first_conv", x)
    if ordered:
        angle = torch.arange(SLOTS)[:, None] * 10000.0 ** (-torch.arange(128, dtype=x.dtype) / 127)
        wave = torch.cat([angle.sin(), angle.cos()], 1)
        linear = f"{name}.position_encoder.time_embed.1"
        x = x + (wave @ w[f"{linear}.weight"].T + w[f"{linear}.bias"]).relu()
    x = torch.cat([x.amax(1, keepdim=True).expand_as(x), x], 2)
    return stage(f"{name}.second_conv", x).amax(1)


def standard(x: Tensor, valid: Tensor) -> Tensor:
    """Mean 0 and spread 1 over all valid tokens and channels of the whole batch (B, T, C)."""
    inside = x[valid]
    return (x - inside.mean()) / (inside.var(unbiased=False) + 1e-13).sqrt()


def transformer(w: State, name: str, x: Tensor, position: Tensor, valid: Tensor, heads: int) -> list[Tensor]:
    """(B, T, C) -> what leaves each block."""
    mask = torch.where(valid[:, None, :, None] & valid[:, None, None], 0.0, -1e9)
    depth = len({k.split(".")[3] for k in w if k.startswith(f"{name}.blocks.")})
    outputs = []
    for block in (f"{name}.blocks.{i}" for i in range(depth)):
        x = x + position
        y = standard(x, valid) * w[f"{block}.norm1.gamma"] + w[f"{block}.norm1.beta"]
        qkv = F.linear(y, w[f"{block}.attn.qkv.weight"], w[f"{block}.attn.qkv.bias"])
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, 2))
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + mask).softmax(3)
        y = (weights @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, w[f"{block}.attn.proj.weight"], w[f"{block}.attn.proj.bias"])
        y = standard(x, valid) * w[f"{block}.norm2.gamma"] + w[f"{block}.norm2.beta"]
        y = F.gelu(F.linear(y, w[f"{block}.mlp.fc1.weight"], w[f"{block}.mlp.fc1.bias"]))
        x = x + F.linear(y, w[f"{block}.mlp.fc2.weight"], w[f"{block}.mlp.fc2.bias"]) * valid[..., None]
        outputs.append(x)
    return outputs


def embedded(w: State, tokens: Dense) -> tuple[Tensor, Tensor]:
    """Tokens and their positions, (B, T, C) each; 0 where there is no token."""
    valid = tokens.valid
    rows = pointnet(w, "encoder.tokenizer.embedding", tokens.groups[valid], tokens.slots[valid])
    x = rows.new_zeros(*valid.shape, rows.shape[1])
    x[valid] = rows
    names = [f"encoder.pos_embed.pos_enc.{i}" for i in (0, 2)]
    hidden = F.gelu(F.linear(tokens.centre, w[f"{names[0]}.weight"], w[f"{names[0]}.bias"]))
    return x, F.linear(hidden, w[f"{names[1]}.weight"], w[f"{names[1]}.bias"])


# ---------------------------------------------------------------------- forward passes


def encode(w: State, tokens: Dense, heads: int, visible: Tensor | None = None) -> list[Tensor]:
    """(B, T, C) of each block, all tokens visible unless ``visible`` (B, T) says otherwise."""
    x, position = embedded(w, tokens)
    return transformer(w, "encoder.transformer", x, position, tokens.valid if visible is None else visible, heads)


def losses(w: State, tokens: Dense, heads: int, masked: Tensor) -> dict[str, float]:
    """Chamfer distance and, with an energy decoder, its mean squared error, where ``masked`` (B, T) is hidden."""
    visible = tokens.valid & ~masked
    x = encode(w, tokens, heads, visible)[-1]
    x = torch.where(visible[..., None], x, w["mask_token"]) * tokens.valid[..., None]
    position = embedded(w, tokens)[1]
    x = transformer(w, "decoder.transformer", x, position, tokens.valid, heads)[-1]
    norm = "decoder.transformer.norm"
    x = (standard(x, tokens.valid) * w[f"{norm}.gamma"] + w[f"{norm}.beta"])[masked]
    said = (x @ w["increase_dim.weight"][..., 0].T + w["increase_dim.bias"]).view(len(x), SLOTS, 4)
    groups, slots = tokens.groups[masked], tokens.slots[masked]
    chamfer = 0.0
    for p, q, n in zip(said, groups, slots.sum(1).tolist(), strict=True):
        square = (p[:n, None] - q[None, :n]).square().sum(2)
        chamfer += float(square.amin(0).mean() + square.amin(1).mean()) / len(x)
    found = {"chamfer": chamfer}
    if "energy_decoder.weight" in w:
        order = pointnet(w, "equivariant_patch_encoder", groups[..., :3], slots, ordered=True)
        energy = torch.cat([order, x], 1) @ w["energy_decoder.weight"][..., 0].T + w["energy_decoder.bias"]
        found["energy"] = float((energy - groups[..., 3])[slots].square().mean())
    return found


def logits(w: State, tokens: Dense, events: list[np.ndarray], heads: int, blocks: list[int]) -> list[Tensor]:
    """(N, 4) of each event."""
    outputs = encode(w, tokens, heads)
    feat = torch.stack([standard(outputs[i], tokens.valid) for i in blocks]).mean(0)
    found = []
    for points, f, centre, valid in zip(events, feat, tokens.centre, tokens.valid, strict=True):
        x, f = torch.from_numpy(points[:, :3].astype(np.float64)), f[valid]
        square, index = (x[:, None] - centre[valid]).square().sum(2).sort(dim=1, stable=True)
        weight = 1 / (square[:, :5] + float(np.finfo(np.float32).eps))
        near = (f[index[:, :5]] * (weight / weight.sum(1, keepdim=True))[..., None]).sum(1)
        y = torch.cat([x, near], 1)
        for i in (0, 1):
            y = _layer(w, y, f"upsampler.mlp_convs.{i}", f"upsampler.mlp_bns.{i}")
        y = torch.cat([y, f.amax(0).expand_as(y), f.mean(0).expand_as(y)], 1)
        for i in (1, 2):
            y = _layer(w, y, f"seg_head.conv{i}", f"seg_head.bn{i}")
        found.append(y @ w["seg_head.conv3.weight"][..., 0].T + w["seg_head.conv3.bias"])
    return found


def _layer(w: State, x: Tensor, conv: str, norm: str) -> Tensor:
    x = x @ w[f"{conv}.weight"][..., 0].T
    x = (x - w[f"{norm}.running_mean"]) / (w[f"{norm}.running_var"] + 1e-5).sqrt()
    return (x * w[f"{norm}.weight"] + w[f"{norm}.bias"]).relu()
