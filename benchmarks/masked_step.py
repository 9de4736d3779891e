"""What it saves to encode only the visible tokens: a step of PoLAr-MAE, against the published full-length form.

    python benchmarks/masked_step.py            # paper size, 32 events per step
    python benchmarks/masked_step.py --quick    # a small encoder, 8 events; written only with --out

The published code embeds and encodes all tokens of a batch, padded to the longest event, and hides the masked ones by
adding -1e9 to their attention. Here both forms run with the same weights, tokens, masks and losses, forward, backward
and optimiser, taking turns. The full-length form is given what is not in question: our tokenizer, our PointNet without
padded slots, one mask for all heads and layers (published: a copy for each head). Attention dropout is off in both: a
CPU has no fused kernel for it. Before they are timed, the predictions of the two are compared. Events are simulated by
nufm. Tokenizing is timed by itself as well. Memory: the largest sum of torch's allocations during a step.
"""

from __future__ import annotations

import os

# As scripts/pretrain.py: before torch loads OpenMP, whose threads else spin for those that another process holds up.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import (
    Machine,
    about_machine,
    affordable,
    default_device,
    interleaved,
    peak_bytes,
    result_name,
    settled,
    short,
    state,
    table,
)  # fmt: skip
from record import RESULTS, provenance, save
from samples import SEED, simulated
from torch import Tensor

from nufm.data.event import PointBatch
from nufm.data.transforms import LogEnergy, NormalizeCoord, compose
from nufm.machine import keep_freed_memory
from nufm.methods.masked_points import MaskedPoints, Reconstruction, mask_tokens
from nufm.models.token_encoder import TokenEncoder, TokenTransformer
from nufm.models.tokens import Tokenizer
from nufm.ops.dispatch import used

ENERGY_CUT = 0.13  # MeV
SIZES = {
    "paper": {"attention_dropout": 0.0},
    "small": {"channels": 128, "depth": 6, "heads": 4, "attention_dropout": 0.0, "feature_blocks": (5,)},
}


def make_batch(n_events: int) -> PointBatch:
    """The first simulated events as PoLAr-MAE takes them; low-energy deposits stay."""
    rng = np.random.default_rng(SEED)  # for the transforms' signature: they draw nothing
    transforms = [NormalizeCoord(), LogEnergy(0.13)]
    return PointBatch.from_events([compose(transforms, e, rng) for e in simulated(n_events, ENERGY_CUT)], 0.0015035)


def full_length(model: MaskedPoints, batch: PointBatch) -> Reconstruction:
    """:meth:`MaskedPoints.reconstruct` as published: all tokens of padded events, hidden ones masked in attention."""
    encoder = model.encoder
    tokens = encoder.tokens(batch)
    masked = mask_tokens(tokens, batch.seeds, model.hparams.mask_ratio)
    counts = tokens.offsets.diff()
    is_token = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (B, L)
    place = is_token.flatten().nonzero()[:, 0]

    def padded(x: Tensor) -> Tensor:
        return x.new_zeros(is_token.numel(), *x.shape[1:]).index_copy(0, place, x).unflatten(0, is_token.shape)

    visible = padded(~masked) & is_token
    position = padded(encoder.positions(tokens))
    x = _blocks(encoder.transformer, padded(encoder.embedding(tokens.points, tokens)), position, visible)
    x = torch.where(visible[..., None], x, model.mask_token.to(x.dtype))
    x = _blocks(model.decoder, x, position, is_token).flatten(0, 1)[place][masked]
    hidden = tokens.select(masked)
    points = model.point_head(x).unflatten(1, (-1, model.columns))
    order = model.order_encoder(hidden.points[:, :3], hidden)
    energy = model.energy_head(torch.cat([order, x], dim=1)).unflatten(1, (-1, model.features))
    energy = energy[hidden.segments.index, hidden.slot]
    return Reconstruction(tokens, masked, hidden, points, energy, x[:0])  # no loss reads the visible tokens


def _blocks(net: TokenTransformer, x: Tensor, position: Tensor, seen: Tensor) -> Tensor:
    """A transformer on padded tokens (B, L, C) that attend to those where ``seen`` (B, L)."""
    both = seen[:, None, :, None] & seen[:, None, None, :]
    mask = torch.zeros(both.shape, dtype=x.dtype, device=x.device).masked_fill_(~both, -1e9)
    for block in net.blocks:
        x = x + position
        q, k, v = (
            t.unflatten(2, (block.attn.heads, -1)).transpose(1, 2)
            for t in block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=block.attn.scale)
        x = x + _dropped(block.attn.proj(out.transpose(1, 2).flatten(2)), block)
        x = x + _dropped(block.mlp(block.norm2(x)), block)
    return net.norm(x)


def _dropped(branch: Tensor, block: torch.nn.Module) -> Tensor:
    if not block.training or block.drop_path == 0:
        return branch
    keep = 1 - block.drop_path
    return branch * (torch.rand(*branch.shape[:2], 1, device=branch.device) < keep).to(branch.dtype).div_(keep)


def compare(size: str, n_events: int, device: torch.device, budget: float) -> dict:
    """Both forms on one batch."""
    torch.manual_seed(SEED)
    model = MaskedPoints(TokenEncoder(Tokenizer(), **SIZES[size])).to(device)
    batch = make_batch(n_events).to(device)
    forms = {"visible": MaskedPoints.reconstruct, "full": full_length}

    model.eval()
    with torch.no_grad():  # with the running values in its norms the two forms are the same function
        ours, theirs = (form(model, batch) for form in forms.values())
        difference = max(float((getattr(ours, x) - getattr(theirs, x)).abs().max()) for x in ("points", "energy"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step(name: str) -> None:
        loss = sum(model.losses(forms[name](model, batch)).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    calls = {name: (lambda name=name: step(name)) for name in forms}
    calls["tokenize"] = lambda: model.encoder.tokens(batch)
    expected = [settled(call, device) for call in calls.values()]
    times = interleaved(calls, device, affordable(expected, budget, 20))
    tokens = model.encoder.tokens(batch)
    counts = tokens.offsets.diff()
    return {
        "size": size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "events": n_events,
        "points": len(batch),
        "tokens": len(tokens),
        "longest": int(counts.max()),
        "visible": int((~mask_tokens(tokens, batch.seeds, model.hparams.mask_ratio)).sum()),
        "largest_difference": difference,
        "largest_value": float(ours.points.abs().max()),
        "seconds": {name: t.seconds for name, t in times.items()},
        "quartiles": {name: [t.low / 1e3, t.high / 1e3] for name, t in times.items()},
        "repeats": times["full"].repeats,
        "gigabytes": {name: peak_bytes(calls[name], device) / 1e9 for name in forms},
        "backends": {op: list(names) for op, names in used().items()},
    }


def share(row: dict) -> float:
    """Time to tokenize over that of a step."""
    return row["seconds"]["tokenize"] / row["seconds"]["visible"]


def markdown(report: dict) -> str:
    """The report as tables."""
    lines = [
        "# A step of PoLAr-MAE: visible tokens only, against the published full-length form",
        "",
        f"{about_machine(report)} Events simulated by nufm, float32. Made by `python benchmarks/masked_step.py`.",
        "",
    ]
    paper = next((r for r in report["rows"] if r["size"] == "paper"), None)
    found = paper and {
        "time of a step, visible only over full length": (paper["seconds"]["visible"] / paper["seconds"]["full"], 1.0),
        "memory, likewise": (paper["gigabytes"]["visible"] / paper["gigabytes"]["full"], 1.0),
        "tokenizing over a step": (share(paper), 0.1),
    }
    targets = [[what, f"< {limit:g}", f"{x:.3f}", state(x, limit)] for what, (x, limit) in (found or {}).items()]
    if targets:
        lines += [*table(("paper size", "target", "found", "state"), targets), ""]
    head = ["", *(f"{r['size']} size, {r['events']} events" for r in report["rows"])]
    rows = []

    def add(name: str, text) -> None:
        rows.append([name, *(text(r) for r in report["rows"])])

    add("parameters", lambda r: f"{r['parameters'] / 1e6:.1f} M")
    add("tokens; visible; of the longest event", lambda r: f"{r['tokens']:,}; {r['visible']:,}; {r['longest']:,}")
    def ratio(r: dict, of: str) -> str:
        return f"**{r[of]['full'] / r[of]['visible']:.2f}**"

    add("s per step, visible tokens only", lambda r: short(r["seconds"]["visible"]))
    add("s per step, full length", lambda r: short(r["seconds"]["full"]))
    add("**time, full length over visible only**", lambda r: ratio(r, "seconds"))
    add("peak GB, visible tokens only", lambda r: short(r["gigabytes"]["visible"]))
    add("peak GB, full length", lambda r: short(r["gigabytes"]["full"]))
    add("**memory, full length over visible only**", lambda r: ratio(r, "gigabytes"))
    add("s to tokenize", lambda r: short(r["seconds"]["tokenize"]))
    add("of a step", lambda r: f"{share(r):.1%}")
    add("rounds", lambda r: str(r["repeats"]))
    add(
        "largest difference of a prediction (largest value)",
        lambda r: f"{r['largest_difference']:.1e} ({r['largest_value']:.2f})",
    )
    lines += table(head, rows)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small encoder, 8 events, a few steps")
    parser.add_argument("--events", type=int, default=32, help="per step, at paper size")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds for the timed steps of a size")
    parser.add_argument("--device", type=torch.device, default=default_device())
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results unless --quick")
    args = parser.parse_args()
    device: torch.device = args.device
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    machine = Machine.measure(device, torch.float32)
    size, n_events = ("small", 8) if args.quick else ("paper", args.events)
    rows = [compare(size, n_events, device, 5.0 if args.quick else args.budget)]
    report = {
        **provenance(), "data": "simulated by nufm", "seed": SEED, "machine": machine.as_dict(), "rows": rows,
    }  # fmt: skip
    text = markdown(report)
    print(text)
    out = args.out or (None if args.quick else RESULTS)
    if out is not None:
        save(out, result_name("masked_step", device), report, text)


if __name__ == "__main__":
    main()
