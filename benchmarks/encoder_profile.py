"""Where the time of Panda's encoder goes on a CPU: 90.8 million parameters, the genuine event, float32.

    python benchmarks/encoder_profile.py           # results/encoder_profile.*, a minute

Forward, training pass and a large matrix product take turns, because machines change their pace from second to second;
the floor is the time that the model's FLOPs would take at the rate of that product. The parts are self times of
PyTorch's profiler in further forwards; profiling costs each of the thousands of small calls about a microsecond.
"""

from __future__ import annotations

import os

# As scripts/pretrain.py: before torch loads OpenMP, whose threads else spin for those that another process holds up.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from flops import counting
from measure import interleaved, short, table
from record import provenance, write_result
from samples import SEED, genuine, panda_batch
from torch.profiler import ProfilerActivity, profile

from nufm.machine import keep_freed_memory
from nufm.models.ptv3 import PointTransformerV3

CPU = torch.device("cpu")
SIDE = 2048  # of the matrices whose product is the yardstick
ROUNDS, PROFILED = 40, 5
# Names of PyTorch's operators -> part of the table; what is not listed is "small calls".
PARTS = {
    "linear layers and centre taps": ("aten::addmm", "aten::mm"),
    "products of the other 26 taps": ("aten::bmm",),
    "softmax attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "gathers and sums over neighbours": ("aten::index_select", "aten::_embedding_bag_forward_only", "aten::cat"),
    "norms and GELU": ("aten::native_layer_norm", "aten::gelu"),
}


def main() -> None:
    keep_freed_memory()
    torch.manual_seed(SEED)
    model = PointTransformerV3(layer_scale=1.0, mask_token=False)
    batch = panda_batch([genuine()])
    a, b = torch.randn(2, SIDE, SIDE)

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(batch)

    def training() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        sum(stage.feat.square().mean() for stage in model(batch)).backward()

    with counting(model) as count:
        forward()
    calls = {"forward": forward, "forward + backward": training, "product": lambda: torch.mm(a, b)}
    times = interleaved(calls, CPU, ROUNDS, warmup=2)
    rate = 2 * SIDE**3 / times["product"].seconds
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(PROFILED):
            forward()
    spent = {event.key: event.self_cpu_time_total / 1e3 / PROFILED for event in recorded.key_averages()}
    total = sum(spent.values())
    parts = {part: sum(spent.get(name, 0.0) for name in names) for part, names in PARTS.items()}
    parts["small calls: maps, windows, views, additions"] = total - sum(parts.values())

    floor = count.flops / rate * 1e3
    one, both = times["forward"], times["forward + backward"]
    rows = [
        ["forward", f"{short(one.ms)} ({short(one.low)}–{short(one.high)})"],
        ["floor: its FLOPs at the rate of a large product", short(floor)],
        ["forward + backward", f"{short(both.ms)}, {both.ms / one.ms:.2f} × forward"],
        *([f"profiled: {part}", f"{short(ms)} ({ms / total:.0%})"] for part, ms in parts.items()),
    ]
    made = provenance()
    flops = ", ".join(f"{part} {value / 1e9:.1f}" for part, value in count.parts.items())
    text = [
        *table(("Panda's encoder, genuine event", "ms"), rows),
        "",
        f"{made['hardware']}, {made['threads']} threads; {rate / 1e9:.0f} GFLOP/s (median) in products of {SIDE} × "
        f"{SIDE} matrices between the passes; {count.flops / 1e9:.1f} GFLOP ({flops}); median and quartiles of "
        f"{ROUNDS} rounds, seed {SEED}, commit {made['commit'][:7]}.",
    ]
    result = {
        "data": "genuine PILArNet-M event",
        "seed": SEED,
        "matrix_flop_per_s": rate,
        "flops": count.parts,
        "ms": {name: timing.ms for name, timing in times.items()},
        "ms_quartiles": {name: [timing.low, timing.high] for name, timing in times.items()},
        "floor_ms": floor,
        "profiled_ms": parts,
    }
    write_result("encoder_profile", result, "\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
