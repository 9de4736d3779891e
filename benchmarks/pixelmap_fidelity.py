"""Simulated interactions in the pixel detector beside what is published and what formulas say: tables and picture.

    python benchmarks/pixelmap_fidelity.py                   # one to two minutes on one CPU core
    python benchmarks/pixelmap_fidelity.py --events 3000 --seed 1

Published are the detector, the share of charged currents and the flat spectrum (arXiv 2509.08461, §2); sizes of events
are not. Cross-sections: J. A. Formaggio, G. P. Zeller, Rev. Mod. Phys. 84 (2012) 1307, figs. 9 and 10, read off by eye
with the spread of the measurements.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from record import RESULTS, provenance, save
from scipy import stats

from nufm.data.detector import load_detector
from nufm.data.event import Event
from nufm.data.images import INTERACTION_NAMES, MODE_NAMES
from nufm.data.pixelmaps import project
from nufm.simulation.fasercal.decays import MASS
from nufm.simulation.medium import LIQUID_ARGON
from nufm.simulation.pixelmaps.dataset import simulation_version
from nufm.simulation.pixelmaps.event import LATTICE, PixelEvent, PixelSpec, primaries_of, read_out, simulate_event
from nufm.simulation.pixelmaps.generator import DEEP_INELASTIC, NUCLEON, Interaction, cross_sections, generate
from nufm.simulation.transport import transport

MAP = 512  # pixels per edge of a map, centred on the vertex
# σ/E per nucleon of all νµ charged currents in 1e-38 cm²/GeV, and the quasi-elastic share of it: low, high.
MEASURED = {1.0: ((0.85, 1.1), (0.45, 0.7)), 3.0: ((0.65, 0.85), (0.18, 0.35)), 10.0: ((0.63, 0.73), (0.06, 0.12))}


def numbers(event: PixelEvent) -> dict[str, float]:
    """What is counted in one event."""
    point, detector = event.truth.point, load_detector("pixel_lartpc")
    found = Event(point[:, :3].astype(np.int32), point[:, 3].astype(np.float32), detector=detector.name)
    maps = project(found, MAP, event.vertex / detector.pitch_mm + detector.centre_voxel)
    seen = {name: float(view.energy.sum(dtype=float)) for name, view in maps.views.items()}
    total, below = float(point[:, 3].sum(dtype=float)), event.truth.below_threshold
    return {
        "voxels": len(point),
        "pixels of XZ": len(maps.views["xz"]),
        "pixels of YZ": len(maps.views["yz"]),
        "visible energy, MeV": total,
        "visible energy / neutrino energy": total / 1000 / event.interaction.energy,
        "charge inside the maps, share": sum(seen.values()) / (2 * total) if total else 1.0,  # mean of the views
        "charge below the threshold, share": below / (total + below) if total + below else 0.0,
        "inelasticity": event.interaction.inelasticity,
    }


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(a[3] * b[3] - a[:3] @ b[:3])


def at_rest(i: Interaction) -> tuple[float, float]:
    """Energy of the neutrino, and y, in the rest frame of the nucleon."""
    beam = np.array([0.0, 0.0, i.energy, i.energy])
    return dot(beam, i.target) / MASS[i.nucleon], dot(beam - i.momentum[0], i.target) / dot(beam, i.target)


def density_of_y(y: np.ndarray, energy: float) -> np.ndarray:
    """1 + (1 − y)²/5, times the share of x with W > 1.6 GeV and an angle for the lepton; not normalised."""
    highest = 1 - (1.6**2 - NUCLEON**2) / (2 * NUCLEON * energy * y)
    highest = np.minimum(highest, 4 * energy**2 * (1 - y) / (2 * NUCLEON * energy * y))
    room = 0.75 * stats.beta(1.5, 4.0).cdf(highest) + 0.25 * stats.beta(1.0, 8.0).cdf(highest)
    return (1 + 0.2 * (1 - y) ** 2) * room


def kinematics(seed: int, n: int = 3000) -> tuple[list[Interaction], np.ndarray, np.ndarray, np.ndarray, float]:
    """Charged currents of νe, uniform in energy; y of the deep-inelastic ones, grid and expected density of it, and the
    p-value of their difference (each y through the integral of the density at its neutrino's energy)."""
    rng = np.random.default_rng(seed)
    drawn = [generate(rng.uniform(0.2, 10.0), 12, True, rng) for _ in range(n)]
    grid = np.linspace(1e-3, 1.0, 400)
    expected, found, uniform = np.zeros_like(grid), [], []
    for i in drawn:
        if i.mode == DEEP_INELASTIC:
            energy, y = at_rest(i)
            density = density_of_y(grid, energy)
            cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
            expected += density / (cumulative[-1] * (grid[1] - grid[0]))
            found.append(y)
            uniform.append(np.interp(y, grid, cumulative) / cumulative[-1])
    return drawn, np.array(found), grid, expected / len(found), float(stats.kstest(uniform, "uniform").pvalue)


def speed(spec: PixelSpec, seed: int, n: int = 100) -> dict[str, float]:
    """Events per second of one core (CPU time, compiled), and where the milliseconds of an event go."""
    begin = time.process_time()
    for index in range(n):
        simulate_event(spec, seed, 2, index)
    total = time.process_time() - begin
    rng = np.random.default_rng(seed)
    parts = {"final state": 0.0, "transport": 0.0, "cells, labels, smearing": 0.0}
    for k in range(n):
        t0 = time.process_time()
        interaction = generate(rng.uniform(*spec.energy), (12, 14)[k % 2], k % 4 > 0, rng)
        primaries = primaries_of(interaction, rng.uniform(-LATTICE.high, LATTICE.high))
        t1 = time.process_time()
        deposited = transport(primaries, LIQUID_ARGON, (-LATTICE.high, LATTICE.high), k, settings=spec.settings)
        t2 = time.process_time()
        read_out(deposited, spec)
        t3 = time.process_time()
        for name, taken in zip(parts, (t1 - t0, t2 - t1, t3 - t2), strict=True):
            parts[name] += 1000 * taken / n
    return {"events_per_s": n / total, "ms": parts}


def cell(values: np.ndarray) -> str:
    written = ["{:,.0f}" if abs(values).max() >= 100 else "{:.3g}"] * 2
    return f"{written[0].format(values.mean())} ({written[1].format(np.median(values))})"


def markdown(report: dict, classes: dict[str, dict[str, np.ndarray]]) -> str:
    lines = [
        f"# Neutrino interactions in the pixel detector, simulated by nufm ({report['events']} events, seed "
        f"{report['seed']})",
        "",
        f"Charged currents: {report['cc_share']:.1%} (published: 74 %). Neutrino energies uniform from 0.2 to 10 GeV "
        "(published: up to 10 GeV). Mean (median) per event; maps of 512 × 512 pixels of 5 mm, centred on the vertex, "
        "voxels above 0.1 MeV. Sizes of events are not published.",
        "",
        "| per event | " + " | ".join(classes) + " |",
        "|" + "---|" * (len(classes) + 1),
    ]
    for name in next(iter(classes.values())):
        lines.append(f"| {name} | " + " | ".join(cell(c[name]) for c in classes.values()) + " |")
    for k, mode in enumerate(MODE_NAMES):
        lines.append(f"| {mode}, share | " + " | ".join(f"{s[k]:.2f}" for s in report["modes"].values()) + " |")
    redrawn = " | ".join(f"{share:.1%}" for share in report["redrawn"].values())
    lines.append(f"| drawn again (under 10 voxels) | {redrawn} |")
    lines += [
        "",
        "| νµ CC at | σ/E here | measured | quasi-elastic here | measured | resonant (Δ) | deep-inelastic |",
        "|" + "---|" * 7,
    ]
    for row in report["cross_sections"]:
        share, total, elastic = row["shares"], row["measured_total"], row["measured_elastic"]
        lines.append(
            f"| {row['energy']:.0f} GeV | {row['total']:.2f} | {total[0]} to {total[1]} | {share[0]:.2f} "
            f"| {elastic[0]} to {elastic[1]} | {share[1]:.2f} | {share[2]:.2f} |"
        )
    pace = report["speed"]
    lines += [
        "",
        "σ/E per nucleon in 1e-38 cm²/GeV; measured: read off Rev. Mod. Phys. 84 (2012) 1307, with its spread.",
        "",
        f"y of deep-inelastic events against its formula: p = {report['y_p_value']:.2f} (Kolmogorov-Smirnov). "
        f"{pace['events_per_s']:.0f} events per second of one core ({report['hardware']}): "
        + ", ".join(f"{name} {ms:.0f} ms" for name, ms in pace["ms"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def picture(events: list[PixelEvent], classes: dict[str, dict[str, np.ndarray]], seen: tuple, path: Path) -> None:
    """Spectra, shares, y and sizes, and an event of each class in both views."""
    figure, axes = plt.subplots(4, 3, figsize=(15, 19), constrained_layout=True)
    figure.suptitle("Neutrino interactions in the pixel detector, simulated by nufm", fontsize=15)
    drawn, y, grid, expected, p_value = seen
    label = np.array([e.label for e in events])
    energy = np.array([e.interaction.energy for e in events])
    ax = axes[0, 0]
    ax.hist([energy[label == k] for k in range(3)], 20, range=(0, 10), stacked=True, label=INTERACTION_NAMES)
    ax.set(xlabel="neutrino energy (GeV)", ylabel="events", title="Flat spectrum, 74 % charged currents")
    ax.legend()
    ax = axes[0, 1]
    fine, edges = np.geomspace(0.25, 10, 60), np.array([0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 10])
    sigma = np.array([cross_sections(e, MASS[11]) for e in fine])
    cc_energy, modes = np.array([i.energy for i in drawn]), np.array([i.mode for i in drawn])
    n_all = np.histogram(cc_energy, edges)[0]
    for mode, name in enumerate(MODE_NAMES):
        n = np.histogram(cc_energy[modes == mode], edges)[0]
        ax.plot(fine, sigma[:, mode] / sigma.sum(1), color=f"C{mode}", label=name)
        share = n / np.maximum(n_all, 1)
        error = np.sqrt(share * (1 - share) / np.maximum(n_all, 1))
        ax.errorbar((edges[1:] + edges[:-1]) / 2, share, error, fmt="o", ms=4, color=f"C{mode}")
    ax.set(
        xscale="log", xlabel="neutrino energy (GeV)", ylabel="share", title="νe CC: cross-sections, and events drawn"
    )
    ax.legend()
    ax = axes[0, 2]
    ax.hist(y, 25, range=(0, 1), density=True, histtype="step", label=f"{len(y)} deep-inelastic events")
    ax.plot(grid, expected, label=f"formula (p = {p_value:.2f})")
    ax.set(xlabel="y in the rest frame of the nucleon", ylabel="density", title="Inelasticity")
    ax.legend()
    bins = {"pixels of XZ": np.geomspace(10, 10_000, 30), "visible energy / neutrino energy": np.linspace(0, 1.2, 30)}
    for ax, (name, edge) in zip(axes[1], bins.items(), strict=False):
        for k, (title, values) in enumerate(classes.items()):
            ax.hist(values[name], edge, density=False, histtype="step", color=f"C{k}", label=title)
        ax.set(xlabel=name, ylabel="events", xscale="log" if edge[-1] > 100 else "linear")
        ax.legend()
    axes[1, 0].set_title("Pixels with charge")
    axes[1, 1].set_title("What is seen of the energy")
    ax = axes[1, 2]
    for k, title in enumerate(classes):
        chosen = [e.interaction.q2 for e in events if e.label == k]
        ax.hist(chosen, np.linspace(0, 6, 40), histtype="step", color=f"C{k}", label=title)
    ax.set(xlabel="Q² (GeV²)", ylabel="events", yscale="log", title="Momentum transfer")
    ax.legend()
    for k, title in enumerate(INTERACTION_NAMES):
        mine = [e for e in events if e.label == k]
        chosen = min(mine, key=lambda e: abs(e.interaction.energy - 5) + 10 * abs(e.interaction.inelasticity - 0.4))
        for row, (axis, view) in enumerate(((0, "XZ"), (1, "YZ"))):
            voxel, charge = chosen.truth.point[:, [axis, 2]], chosen.truth.point[:, 3]
            place, row_of = np.unique(voxel, axis=0, return_inverse=True)
            charge = np.bincount(row_of.reshape(-1), charge)
            place = (place + 0.5) * LATTICE.pitch - LATTICE.high[[axis, 2]] - chosen.vertex[[axis, 2]]
            order = np.argsort(charge)
            ax = axes[2 + row, k]
            points = ax.scatter(
                *(place[order, ::-1].T / 10), c=charge[order], s=1.2, marker="s", linewidths=0, norm=LogNorm(0.1, 20)
            )
            ax.set(title=f"{title}, {chosen.interaction.energy:.1f} GeV: {view}", xlabel="z (cm)")
            ax.set(ylabel=f"{view[0].lower()} (cm)", xlim=(-30, 128), ylim=(-79, 79), facecolor="0.08")
            ax.plot(0, 0, "+", color="w", ms=8)
    figure.colorbar(points, ax=axes[2:, 2], label="MeV per pixel", shrink=0.5)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    spec = PixelSpec()
    simulate_event(spec, args.seed, 2, 0)  # compiles
    raw = [simulate_event(dataclasses.replace(spec, min_points=0), args.seed, 0, i) for i in range(args.events)]
    small = np.array([len(e) < spec.min_points for e in raw])
    events = [simulate_event(spec, args.seed, 0, i) if small[i] else e for i, e in enumerate(raw)]
    label = np.array([e.label for e in events])
    counted = [numbers(e) for e in events]
    classes = {
        name: {q: np.array([c[q] for c, k in zip(counted, label, strict=True) if k == number]) for q in counted[0]}
        for number, name in enumerate(INTERACTION_NAMES)
    }
    modes = np.array([e.interaction.mode for e in events])
    seen = kinematics(args.seed)
    table = []
    for energy, (total, elastic) in MEASURED.items():
        sigma = cross_sections(energy)
        shares = (sigma / sigma.sum()).tolist()
        table.append({"energy": energy, "total": sigma.sum() / energy, "shares": shares, "measured_total": total,
                      "measured_elastic": elastic})  # fmt: skip
    report = {
        **provenance(),
        "data": "simulated by nufm",
        "simulation_version": simulation_version(),
        "spec": spec.to_json(),
        "events": args.events,
        "seed": args.seed,
        "cc_share": float((label != 2).mean()),
        "modes": {n: (np.bincount(modes[label == k], minlength=3) / (label == k).sum()).tolist()
                  for k, n in enumerate(INTERACTION_NAMES)},
        "redrawn": {name: float(small[label == k].mean()) for k, name in enumerate(INTERACTION_NAMES)},
        "quantities": {
            name: {q: {"mean": float(v.mean()), "median": float(np.median(v)), "95 %": float(np.quantile(v, 0.95))}
                   for q, v in values.items()}
            for name, values in classes.items()
        },
        "cross_sections": table,
        "y_p_value": seen[-1],
        "speed": speed(spec, args.seed),
    }  # fmt: skip
    text = markdown(report, classes)
    save(args.out, "pixelmap_fidelity", report, text)
    picture(events, classes, seen, args.out / "pixelmap_fidelity.png")
    print(text)


if __name__ == "__main__":
    main()
