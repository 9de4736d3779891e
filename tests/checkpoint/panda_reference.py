"""The public Panda package (DeepLearnPhysics/Panda) as an oracle, on a CPU, with weights that anyone can make again.

Its convolutions come from spconv, which on a CPU is exact in one thread only and refuses evaluation mode, so that they
are left in training mode (they have none). Shuffling of the curves, which the published evaluation keeps on, is
switched off.

Run as a script where ``panda`` and ``spconv`` are installed, it writes ``panda_reference.npz``:

    OMP_NUM_THREADS=1 NUFM_BACKEND=torch python tests/checkpoint/panda_reference.py
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nufm.data.event import PointBatch
from nufm.data.pilarnet import PILArNetReader
from nufm.data.transforms import compose, event_transforms

HERE = Path(__file__).parent
GENUINE = HERE.parent / "data" / "pilarnet_m_event.h5"
FIXTURE = HERE / "panda_reference.npz"
ORDER = ["hilbert", "hilbert-trans", "z", "z-trans"]
EVERY = 7  # rows kept in the fixture

COMMON = {"in_channels": 4, "order": ORDER, "mlp_ratio": 4, "layer_scale": 1.0, "enable_flash": False}
SMALL = {
    **COMMON,
    "stride": [2, 2],
    "enc_depths": [2, 2, 3],
    "enc_channels": [16, 32, 48],
    "enc_num_head": [1, 2, 3],
    "enc_patch_size": [64, 64, 64],
}
SMALL_DECODER = {"dec_depths": [2, 1], "dec_channels": [32, 32], "dec_num_head": [2, 2], "dec_patch_size": [64, 64]}
PAPER = {
    **COMMON,
    "stride": [2, 2, 2, 2],
    "enc_depths": [3, 3, 3, 9, 3],
    "enc_channels": [48, 96, 192, 384, 512],
    "enc_num_head": [3, 6, 12, 24, 32],
    "enc_patch_size": [256] * 5,
}
PAPER_DECODER = {
    "dec_depths": [2, 2, 2, 2],
    "dec_channels": [64, 96, 192, 384],
    "dec_num_head": [4, 6, 12, 24],
    "dec_patch_size": [256] * 4,
}


def configs(encoder: dict[str, Any], decoder: dict[str, Any], width: int) -> dict[str, dict[str, Any]]:
    """Constructor arguments of the four released networks."""
    detector = {
        **{"full_in_channels": sum(encoder["enc_channels"]), "hidden_channels": width, "num_heads": width // 16},
        **{"depth": 3, "qkv_bias": True, "backbone": {**encoder, "enc_mode": True, "traceable": True}},
    }
    return {
        "base": {**encoder, "enc_mode": True, "traceable": True, "mask_token": True},
        "semantic": {
            "num_classes": 5,
            "backbone_out_channels": decoder["dec_channels"][0],
            "backbone": {**encoder, **decoder, "enc_mode": False, "traceable": True},
        },
        "particle": {
            **detector, "num_queries": 32, "num_classes": 6, "mlp_point_proj": True, "stuff_classes": [5],
        },
        "interaction": {**detector, "num_queries": 12, "num_classes": 2, "stuff_classes": [0]},
    }  # fmt: skip


def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor that its name fixes, of a size that lets every part of the network matter."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = rng.standard_normal(shape).astype(np.float32)
    if len(shape) == 1:  # biases, norms, LayerScale
        x = 0.1 * x + (1 if name.endswith((".gamma", "norm.weight")) or _is_norm(name) else 0)
    elif len(shape) == 5:  # convolutions (out, 3, 3, 3, in): few neighbours are occupied
        x /= np.sqrt(3 * shape[-1])
    elif "query" not in name:
        x /= np.sqrt(shape[-1])
    return torch.from_numpy(x.astype(np.float32))


def _is_norm(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] == "weight" and (any("norm" in p for p in parts) or parts[-2] in ("1", "2"))


def state_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: weights(name, tuple(shape)) for name, shape in shapes.items()}


def genuine_batch(n_points: int | None = None) -> PointBatch:
    """The genuine event, or its first voxels, after the published transforms."""
    event = PILArNetReader(GENUINE, min_points=0)[0]
    event = event if n_points is None else event.select(np.arange(n_points))
    event = compose(event_transforms(), event, np.random.default_rng(0))
    return PointBatch.from_events([event], 0.001)


def reference_model(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """One of the public networks, with the weights above."""
    from panda.model_base import PointTransformerV3
    from panda.model_panoptic import Detector
    from panda.model_segment import Segmenter

    classes = {"base": PointTransformerV3, "semantic": Segmenter, "particle": Detector, "interaction": Detector}
    config = json.loads(json.dumps(config))  # the constructors write to it
    model = classes[kind](**config)
    model.load_state_dict(state_of({k: tuple(v.shape) for k, v in model.state_dict().items()}))
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "SubMConv3d":
            module.train()
        if hasattr(module, "shuffle_orders"):
            module.shuffle_orders = False
    return model


@torch.no_grad()
def reference_outputs(kind: str, model: torch.nn.Module, batch: PointBatch) -> dict[str, np.ndarray]:
    """What the network says of a batch of one event: ``features`` (N, C); ``logits`` (N, K); or ``masks`` (Q, N),
    ``classes`` (Q, K+1), ``stuff`` (N,) and ``semantic`` (N, K).
    """
    torch.set_num_threads(1)
    data = {"coord": batch.coord, "grid_coord": batch.grid, "feat": batch.feat, "offset": batch.offsets[1:]}
    found = model(data)
    if kind == "base":
        return {"features": found.feat.numpy()}
    if kind == "semantic":
        return {"logits": found["seg_logits"].numpy()}
    return {
        "masks": found["pred_masks"][0].numpy(),
        "classes": found["pred_logits"][0].numpy(),
        "stuff": found["stuff_probs"].numpy(),
        "semantic": found["seg_logits"].numpy(),
    }


def main() -> None:
    batch, arrays = genuine_batch(), {}
    for kind, config in configs(SMALL, SMALL_DECODER, 32).items():
        model = reference_model(kind, config)
        shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
        arrays[f"{kind}.shapes"] = np.frombuffer(json.dumps(shapes).encode(), dtype=np.uint8)
        for name, values in reference_outputs(kind, model, batch).items():
            values = values[:, ::EVERY] if name == "masks" else values if name == "classes" else values[::EVERY]
            arrays[f"{kind}.{name}"] = values
    np.savez_compressed(FIXTURE, **arrays)
    print(FIXTURE, FIXTURE.stat().st_size, {k: v.shape for k, v in arrays.items()})


if __name__ == "__main__":
    main()
