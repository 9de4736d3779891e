"""An encoder of one detector as the beginning of an encoder of another one.

Modules of the old detector become windows of patches of the new one. What is reused (talk of F. Cufino, NPML 2026):
blocks within modules, latent blocks, norms, and the summary (CLS) tokens; positions, vectors of modules and of sources,
the other sub-detectors, and heads are left behind. The talk begins the patch embedding anew; the public code
(saulam/faserDL) loads it where the shapes agree, which they do for patches of 12 × 12 × 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from nufm.models.stream_encoder import StreamEncoder

Reuse = Literal["talk", "code"]
CORE = ("calorimeter.cls_token.", "calorimeter.blocks.", "token_norm.", "looks.", "blocks.", "norm.")
EMBEDDING = "calorimeter.embedding."


@dataclass(frozen=True)
class Transferred:
    """What a transfer did; names are those of the tensors of the new encoder, or, ``left``, of the old one.

    Attributes:
        reused: name -> how many numbers were copied.
        fresh: name -> how many keep their random start.
        left: name -> how many numbers of the old encoder were not used.
        parameters: in all of the new encoder.
    """

    reused: dict[str, int]
    fresh: dict[str, int]
    left: dict[str, int]

    @property
    def n_reused(self) -> int:
        return sum(self.reused.values())

    def __str__(self) -> str:
        total = self.n_reused + sum(self.fresh.values())
        return (
            f"reused {self.n_reused:,} of {total:,} parameters ({_parts(self.reused)}); begun anew: "
            f"{_parts(self.fresh) or 'none'}; left behind: {_parts(self.left) or 'none'}"
        )


def transfer(encoder: StreamEncoder, pretrained: StreamEncoder, reuse: Reuse = "talk") -> Transferred:
    """Copy what two encoders share from ``pretrained`` into ``encoder``.

    Args:
        encoder: of the new detector; changed.
        pretrained: of the old one.
        reuse: ``talk``: the patch embedding begins anew; ``code``: it is copied too.

    Raises:
        ValueError: the two differ where they must not: width, heads, depths, summaries; for ``code`` also patches.
    """
    sizes = _sizes(pretrained, encoder)
    if EMBEDDING in reused_parts(reuse):
        a, b = pretrained.calorimeter, encoder.calorimeter
        sizes += [("patches", a.patch, b.patch), ("stage of the patch embedding", a.embedding.stage, b.embedding.stage)]
    wrong = [f"{name}: {a} there, {b} here" for name, a, b in sizes if a != b]
    if wrong:
        raise ValueError(
            f"the pretrained encoder does not fit: {'; '.join(wrong)}; give the new encoder the sizes of the old"
        )
    theirs, mine = dict(pretrained.named_parameters()), dict(encoder.named_parameters())
    names = [name for name in mine if name.startswith(reused_parts(reuse))]
    with torch.no_grad():
        for name in names:
            mine[name].copy_(theirs[name])
    return Transferred(
        reused={n: mine[n].numel() for n in names},
        fresh={n: p.numel() for n, p in mine.items() if n not in names},
        left={n: p.numel() for n, p in theirs.items() if n not in names},
    )


def reused_parts(reuse: Reuse) -> tuple[str, ...]:
    """How names of what is copied begin.

    Raises:
        ValueError: an unknown choice.
    """
    if reuse not in ("talk", "code"):
        raise ValueError(f"reuse is '{reuse}', expected 'talk' or 'code'")
    return (*CORE, EMBEDDING) if reuse == "code" else CORE


def _sizes(old: StreamEncoder, new: StreamEncoder) -> list[tuple[str, object, object]]:
    """Sizes that have to agree: name, there, here."""
    a, b = old.calorimeter, new.calorimeter
    found: list[tuple[str, object, object]] = [
        ("channels", old.channels, new.channels),
        ("blocks of the calorimeter", len(a.blocks), len(b.blocks)),
        ("latent blocks", len(old.looks), len(new.looks)),
        ("summary tokens", a.n_cls, b.n_cls),
        ("heads of the latent blocks", old.blocks[0].heads, new.blocks[0].heads),
        ("hidden channels", old.blocks[0].mlp.fc1.out_features, new.blocks[0].mlp.fc1.out_features),
    ]
    if a.blocks and b.blocks:
        found.append(("heads", a.blocks[0].heads, b.blocks[0].heads))
    return found


def _parts(names: dict[str, int]) -> str:
    """Numbers summed over the parts of the encoder: ``blocks 7,097,856, looks …``."""
    sums: dict[str, int] = {}
    for name, n in names.items():
        part = ".".join(name.split(".")[: 2 if name.startswith("calorimeter.") else 1])
        sums[part] = sums.get(part, 0) + n
    return ", ".join(f"{part} {n:,}" for part, n in sums.items())
