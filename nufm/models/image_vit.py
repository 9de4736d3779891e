"""Vision Transformer on pixel maps: timm's, with the two views as the two channels of one image.

Dosovitskiy et al., arXiv 2010.11929; the baseline ViT-H/14 of arXiv 2509.08461, §3: class token, linear layer.

The paper does not say how two maps of 512 × 512 pixels enter a network for one image of 14 × 14 patches. Here they are
its channels: both views share z, the columns, so that a token sees the same slice of the beam axis in both. Maps are
padded with 0 on all sides to the next multiple of the patch, 512 to 518 = 37 · 14, and nothing is cropped: 1369 patches
and 631,942,403 parameters with three classes.

    size                  patch  channels  depth  heads   parameters (512 × 512 pixels, three classes)
    ViT-H/14, published      14      1280     32     16   631,942,403
    ViT-B/16                 16       768     12     12    86,240,259
    ViT-S/16                 16        384     12      6    21,886,467
    ViT-Ti/16                16       192     12      3

Shape legend: B events, V = 2 views, H rows, W columns, P pixels of a patch's edge, N patches, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nufm.data.images import VIEWS, ImageBatch
from nufm.models.image_network import ImageNetwork, checked_image


class ImageViT(ImageNetwork):
    """Logits of an event from its two views. The defaults are ViT-H/14.

    Maps of another size than ``size`` are legal: positions are interpolated (bicubic) to their patches.

    Args:
        n_classes: K.
        size: H, W of the maps it is built for.
        patch: P.
        channels: C.
        depth: blocks.
        heads: of the attention.
        drop_path: probability of dropping a branch in the last block, rising linearly from 0 in the first.
        recompute: keep no activations inside blocks for the backward pass, but compute them again.
        weights: safetensors file of a timm VisionTransformer of these sizes, for images of any channels and size; see
            :meth:`load_timm`. Its classes are left out.

    Raises:
        ValueError: a size that cannot be meant, or weights that do not fit.
        FileNotFoundError: no such file of weights.
    """

    def __init__(
        self,
        n_classes: int = 3,
        size: Sequence[int] = (512, 512),
        patch: int = 14,
        channels: int = 1280,
        depth: int = 32,
        heads: int = 16,
        drop_path: float = 0.0,
        recompute: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__(n_classes)
        if len(size) != 2 or min(*size, patch, channels, depth, heads) < 1 or channels % heads:
            raise ValueError(
                f"size {list(size)}, patch {patch}, channels {channels}, depth {depth}, heads {heads}: expected H and "
                "W, all at least 1, and channels a multiple of heads"
            )
        # Without the weights' path: an export has its own weights, and may be read where that file is not.
        self.arguments = {
            "n_classes": n_classes,
            "size": list(size),
            "patch": patch,
            "channels": channels,
            "depth": depth,
            "heads": heads,
            "drop_path": drop_path,
            "recompute": recompute,
        }
        self.patch = patch
        self.vit = VisionTransformer(
            img_size=tuple(patch * math.ceil(s / patch) for s in size),
            patch_size=patch,
            in_chans=len(VIEWS),
            num_classes=0,
            embed_dim=channels,
            depth=depth,
            num_heads=heads,
            drop_path_rate=drop_path,
            dynamic_img_size=True,
        )
        self.vit.set_grad_checkpointing(recompute)
        self.head = nn.Linear(channels, n_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if weights is not None:
            self.load_timm(weights)

    def event_features(self, batch: ImageBatch) -> Tensor:
        """(B, C) class token."""
        return self.vit.forward_features(padded(checked_image(batch), self.patch))[:, 0]

    def load_timm(self, path: str | Path) -> None:
        """Start from weights of a timm VisionTransformer with the same patch, channels, depth and heads.

        Positions are interpolated to the patches of ``size``. Such weights look at colour images x scaled to
        (x - 1/2)/(1/2); the patch embedding is changed so that it says of two equal maps in [0, 1] what it said of that
        map as a grey image: colours are summed, shared out among the views, and the scaling is folded in.

        Args:
            path: safetensors file, such as ``model.safetensors`` of timm/vit_huge_patch14_224.orig_in21k.

        Raises:
            ValueError: not a safetensors file, or tensors that do not fit.
            FileNotFoundError: no such file.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected safetensors of a timm VisionTransformer")
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected a .safetensors file; other formats may run code when they are read")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file, or damaged ({error}); get it again") from error
        given = {k: v.float() for k, v in tensors.items() if not k.startswith("head.")}
        own = self.vit.state_dict()
        if "pos_embed" in given:
            side = math.isqrt(given["pos_embed"].shape[1] - 1)
            if side * side == given["pos_embed"].shape[1] - 1:
                given["pos_embed"] = resample_abs_pos_embed(
                    given["pos_embed"], list(self.vit.patch_embed.grid_size), [side, side], num_prefix_tokens=1
                )
        kernel, bias = given.get("patch_embed.proj.weight"), given.get("patch_embed.proj.bias")
        if kernel is not None and bias is not None and kernel.dim() == 4:
            # w · (2x - 1) + b = 2w · x + (b - Σw)
            given["patch_embed.proj.bias"] = bias - kernel.sum((1, 2, 3))
            grey = 2 * kernel.sum(1, keepdim=True) / len(VIEWS)
            given["patch_embed.proj.weight"] = grey.expand(-1, len(VIEWS), -1, -1).contiguous()
        wrong = [k for k in sorted(own.keys() ^ given.keys())] + [
            f"{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}"
            for k in sorted(own.keys() & given.keys())
            if own[k].shape != given[k].shape
        ]
        if wrong:
            raise ValueError(
                f"{path}: not a timm VisionTransformer with patch {self.patch}, channels {self.vit.embed_dim} and "
                f"depth {len(self.vit.blocks)}; {len(wrong)} tensors differ: {', '.join(wrong[:6])}"
            )
        self.vit.load_state_dict(given)


def padded(image: Tensor, patch: int) -> Tensor:
    """(B, V, H, W) with 0 around it, equally on both sides (one more behind if that does not go), so that H and W are
    multiples of ``patch``."""
    missing = [-s % patch for s in image.shape[-2:]]
    top, left = missing[0] // 2, missing[1] // 2
    return nn.functional.pad(image, (left, missing[1] - left, top, missing[0] - top))
