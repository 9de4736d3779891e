"""How fast trained models label events: seconds and memory per event, from events in memory to labels per voxel.

    python benchmarks/inference.py       # semantic and particle models of Panda, paper size; two minutes on a CPU

Timed is ``Pretrained.predict``: transforms, packing, network, post-processing, and the copy back, for events of
PILArNet size (simulated by nufm). Weights are random, but for a few biases of the detector: an untrained one would find
nothing, and post-processing would be free. Its stuff head lets all points through and every query is sure to be a muon,
so that all of them go through the matrix NMS and the assignment: the dearest case. Published beside it: one A100,
trained weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import argparse
from pathlib import Path

import torch
import yaml
from measure import (
    Machine,
    about_machine,
    affordable,
    default_device,
    interleaved,
    peak_bytes,
    result_name,
    settled,
    table,
)
from record import RESULTS, provenance, save
from samples import ENERGY_CUT, PANDA_CELL, SEED, genuine, simulated

from nufm.checkpoint import Pretrained
from nufm.data.event import PID_NAMES
from nufm.data.transforms import event_transforms
from nufm.machine import keep_freed_memory
from nufm.models.detector import Detector
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.segmenter import Decoder, Segmenter

PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())["panda"]["inference"]
MODELS = {"semantic": "motif", "panoptic": "particle"}


def model(kind: str) -> torch.nn.Module:
    """Paper size, random weights."""
    torch.manual_seed(SEED)
    encoder = PointTransformerV3(mask_token=False)
    if kind == "semantic":
        return Segmenter(encoder, Decoder()).eval()
    return busy(Detector(encoder)).eval()


def busy(detector: Detector) -> Detector:
    """Every point goes on to the queries, and every query to the post-processing."""
    with torch.no_grad():
        detector.decoder.stuff_head[2].bias.fill_(-20.0)
        detector.decoder.cls_pred.fc2.bias[PID_NAMES.index("muon")] = 20.0
    return detector


def measure(kind: str, batch_size: int, device: torch.device, seconds: float) -> dict:
    """Time and memory of predicting a batch of simulated events, and the genuine one alone."""
    network = model(kind).to(device)
    loaded = Pretrained(network, tuple(event_transforms(PANDA_CELL)), PANDA_CELL, MODELS[kind])
    events = simulated(4 * batch_size, ENERGY_CUT)
    events = sorted(events, key=len)[2::4]  # of all sizes, as they come
    calls = {
        "batch": lambda: loaded.predict(events, batch_size, progress=False),
        "genuine": lambda: loaded.predict([genuine(ENERGY_CUT)], progress=False),
    }
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with autocast:
        repeats = affordable([settled(call, device) for call in calls.values()], seconds, 30)
        times = interleaved(calls, device, repeats)
        peak = peak_bytes(calls["batch"], device)
    if kind == "panoptic":
        found = [int(p.instance.max()) + 1 for p in loaded.predict(events, batch_size, progress=False)]
        assert min(found) > 0, "nothing went through the post-processing"
    return {
        "model": kind,
        "parameters": sum(p.numel() for p in network.parameters()),
        "events": len(events),
        "voxels": sum(len(e) for e in events),
        "ms_per_event": times["batch"].ms / len(events),
        "low": times["batch"].low / len(events),
        "high": times["batch"].high / len(events),
        "genuine_ms": times["genuine"].ms,
        "repeats": times["batch"].repeats,
        "peak_bytes": peak,
        "weight_bytes": sum(p.numel() * p.element_size() for p in network.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=30.0, help="for each model and batch size")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = default_device()
    keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    machine = Machine.measure(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    rows = [measure(kind, size, device, options.seconds) for kind in MODELS for size in options.batches]
    report = {
        **provenance(),
        "seed": SEED,
        "data": "simulated by nufm",
        "machine": machine.as_dict(),
        "precision": "bf16 autocast" if device.type == "cuda" else "float32",
        "rows": rows,
        "published": PUBLISHED,
    }
    text = markdown(report)
    print(text)
    save(options.out, result_name("inference", device), report, text)


def markdown(report: dict) -> str:
    head = ["model", "events at a time", "voxels", "ms per event", "events/s", "peak memory", "published, one A100"]
    rows = []
    for row in report["rows"]:
        theirs = PUBLISHED[row["model"]]
        gigabytes = (row["peak_bytes"] + row["weight_bytes"]) / 1e9
        rows.append(
            [
                f"{row['model']}, {row['parameters'] / 1e6:.1f} M",
                str(row["events"]),
                f"{row['voxels']:,}",
                f"{row['ms_per_event']:,.0f} ({row['low']:,.0f}–{row['high']:,.0f})",
                f"{1e3 / row['ms_per_event']:.2f}",
                f"{gigabytes:.2f} GB",
                f"{theirs['events_per_s']} events/s, {theirs['gigabytes']} GB",
            ]
        )
    by_model = {row["model"]: row["genuine_ms"] for row in report["rows"]}
    alone = ", ".join(f"{name} {ms:,.0f} ms" for name, ms in by_model.items())
    return (
        "\n".join(table(head, rows))
        + f"\n\nFrom events in memory to labels (panoptic: with matrix NMS), random weights, {report['precision']}; "
        f"median and quartiles; memory: weights and torch's largest allocations. The genuine event alone: {alone}. "
        f"Simulated by nufm. {about_machine(report)}\n"
    )


if __name__ == "__main__":
    main()
