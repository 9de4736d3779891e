"""What simulated FASERCal events look like, class by class, beside the numbers known of the published data.

    python benchmarks/fasercal_fidelity.py                  # half a minute on one CPU core
    python benchmarks/fasercal_fidelity.py --events 2000 --seed 1

Known are, of 1500 events of a later version of the published data: pixels that fire in XZ and YZ, patches of 12 × 5
pixels of these views that hold any (of 320), and modules that hold any (public code saulam/faserDL,
faser2d_flash/docs/data_inspection.json). Voxels, patches and ghosts per event are not published.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from record import RESULTS, provenance, save

from nufm.data.streams import FLAVOUR_NAMES
from nufm.simulation.fasercal.dataset import FASERCalSpec, simulate, simulation_version
from nufm.simulation.fasercal.truth import Simulated, flavour_of

PUBLISHED = {
    "pixels in XZ and YZ": {"median": 3909, "mean": 4884, "95 %": 12_655},
    "view patches (of 320)": {"median": 161, "95 %": 296},
    "modules (of 10)": {"median": 7, "mean": 6.9},
}
LAYERS, WIDTH = 20, 48


def numbers(event: Simulated) -> dict[str, float]:
    """What is counted in one event; pixels are those with any energy, before the read-out."""
    cell = event.deposits[0]
    layer = cell % LAYERS + LAYERS * (cell // (WIDTH * WIDTH * LAYERS))
    views = (cell // (LAYERS * WIDTH) % WIDTH, cell // LAYERS % WIDTH)  # x, y
    return {
        "pixels in XZ and YZ": sum(len(np.unique(layer * WIDTH + v)) for v in views),
        "view patches (of 320)": sum(len(np.unique(layer // 5 * 4 + v // 12)) for v in views),
        "modules (of 10)": len(np.unique(layer // LAYERS)),
        "hits of 3DCal": len(event.hits),
        "patches of 12×12×10 (of 320)": len(np.unique(event.hits // (1, 12, 12, 10), axis=0)),
        "ghosts, share of hits": float((event.ghost == 1).mean()),
        "voxels found, share of true ones": float((event.ghost == 0).sum() / len(np.unique(cell))),
        "hits of AHCAL": len(event.ahcal[0]),
        "ECAL, MeV": float(event.ecal.sum()),
        "muon tracks": len(event.tracks),
    }


def written(value: float) -> str:
    """Three digits at least, no powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(report: dict) -> str:
    names = [*FLAVOUR_NAMES, "all", "published"]
    lines = [
        f"# FASERCal events simulated by nufm ({report['events']} events, seed {report['seed']})",
        "",
        "Medians by class; in the last two columns median (mean; 95th percentile) of all classes, equally mixed, and "
        "of the published data, whose mix and version differ. Pixels and modules are counted before the read-out.",
        "",
        "| per event | " + " | ".join(names) + " |",
        "|" + "---|" * (len(names) + 1),
    ]
    for quantity, row in report["quantities"].items():
        cells = [written(row["by_class"][name]) for name in FLAVOUR_NAMES]
        cells.append(f"{written(row['median'])} ({written(row['mean'])}; {written(row['95 %'])})")
        known = PUBLISHED.get(quantity, {})
        mean, high = (written(known[key]) if key in known else "–" for key in ("mean", "95 %"))
        cells.append(f"{written(known['median'])} ({mean}; {high})" if known else "not published")
        lines.append(f"| {quantity} | " + " | ".join(cells) + " |")
    lines += ["", f"{report['events_per_s']:.0f} events per second of one core ({report['hardware']}), once compiled."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    spec = FASERCalSpec()
    simulate(spec, args.seed, 2, 0)  # compiles
    start = time.process_time()
    events = []
    for i in range(args.events):
        event = simulate(spec, args.seed, 0, i)
        events.append((flavour_of(event.interaction), event))
    rate = args.events / (time.process_time() - start)
    flavour = np.array([number for number, _ in events])
    counted = [numbers(event) for _, event in events]
    quantities = {}
    for name in counted[0]:
        values = np.array([c[name] for c in counted])
        quantities[name] = {
            "median": float(np.median(values)),
            "mean": float(values.mean()),
            "95 %": float(np.quantile(values, 0.95)),
            "by_class": {
                label: float(np.median(values[flavour == k]) if (flavour == k).any() else np.nan)
                for k, label in enumerate(FLAVOUR_NAMES)
            },
        }
    quantities["muon tracks"]["by_class"] = {  # a median of tracks would be 0 or 1
        label: float(np.mean([c["muon tracks"] for c, k in zip(counted, flavour, strict=True) if k == number] or [0.0]))
        for number, label in enumerate(FLAVOUR_NAMES)
    }
    quantities["muon tracks (means)"] = quantities.pop("muon tracks")
    report = {
        **provenance(),
        "data": "simulated by nufm",
        "simulation_version": simulation_version(),
        "spec": spec.to_json(),
        "events": args.events,
        "seed": args.seed,
        "events_per_s": rate,
        "quantities": quantities,
    }
    text = markdown(report)
    save(args.out, "fasercal_fidelity", report, text)
    print(text)


if __name__ == "__main__":
    main()
