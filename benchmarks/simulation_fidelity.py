"""Sets simulated events beside the genuine PILArNet-M event and the published class shares: table and
picture.

    python benchmarks/simulation_fidelity.py                       # a minute or two on two CPU cores
    python benchmarks/simulation_fidelity.py --genuine EVENT.h5 --events 1000

One genuine event is one draw: for each of its numbers the table gives the median and the central 90 % of
simulated events that hold enough of the class, and the share of them that lie below the genuine value
("rank"; 0.05 to 0.95 is inside the central 90 %). The genuine event is published above 0.13 MeV only, so both
are compared above 0.13 MeV. Class shares are published for all points of the training set, without an energy
cut.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from record import provenance
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from nufm.data.event import MOTIF_NAMES, Event
from nufm.data.pilarnet import PILArNetReader
from nufm.machine import available_cores
from nufm.simulation.dataset import SimulationSpec, simulate_event, simulate_file, simulation_version
from nufm.simulation.progress import SimulationProgress

HERE = Path(__file__).parent
GENUINE = HERE.parent / "tests" / "data" / "pilarnet_m_event.h5"
CUT = 0.13  # MeV, the published energy cut
PITCH = 0.3  # cm
# S. Young et al., arXiv 2502.02558 and the public fine-tuning configuration: class counts of the training
# set; events before and after the selection of at least 1024 points.
PUBLISHED_POINTS = (1_926_651_899, 2_038_240_940, 34_083_197, 92_015_482, 1_145_363_125)
PUBLISHED_EVENTS, PUBLISHED_SELECTED = 1_199_200, 1_045_215
SHOWER, TRACK, LED = 0, 1, 4
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAST = 50  # voxels of a class that an event needs to be compared


def neighbours(voxel: np.ndarray) -> np.ndarray:
    """Occupied voxels among the 26 around each voxel."""
    if len(voxel) == 0:
        return np.zeros(0, dtype=int)
    tree = cKDTree(voxel)
    return np.asarray(tree.query_ball_point(voxel, 1.8, return_length=True)) - 1


def pieces(voxel: np.ndarray) -> np.ndarray:
    """Number of the 26-connected piece each voxel belongs to."""
    if len(voxel) == 0:
        return np.zeros(0, dtype=int)
    near = cKDTree(voxel).sparse_distance_matrix(cKDTree(voxel), 1.8)
    return connected_components(near, directed=False)[1]


def straight_tracks(event: Event, pids: tuple[int, ...], least: int = 15) -> list[dict[str, float]]:
    """Length, voxels per cm, MeV per cm and filled share of the crossed voxels of nearly straight tracks.

    A line of direction d and length L crosses L (|dx| + |dy| + |dz|) / pitch voxels: the share of them that
    hold more than the cut does not depend on the direction.
    """
    found = []
    for particle in np.unique(event.particle[(event.motif == TRACK) & np.isin(event.pid, pids)]):
        mine = (event.particle == particle) & (event.motif == TRACK)
        voxel = event.voxel[mine].astype(float)
        if len(voxel) < least or particle < 0:
            continue
        centred = voxel - voxel.mean(0)
        _, spread, axes = np.linalg.svd(centred, full_matrices=False)
        along = centred @ axes[0]
        length = along.max() - along.min()
        if spread[1] > 0.05 * spread[0] + 0.4 * np.sqrt(len(voxel)):
            continue
        found.append(
            {
                "voxels_per_cm": len(voxel) / (length * PITCH),
                "mev_per_cm": float(event.energy[mine].sum()) / (length * PITCH),
                "filled": len(voxel) / (length * np.abs(axes[0]).sum()),
            }
        )
    return found


def measure(event: Event) -> dict[str, float]:
    """Numbers of one event above the cut; NaN where the event holds too little."""
    numbers: dict[str, float] = {"voxels": len(event)}
    count = neighbours(event.voxel)
    for kind in (SHOWER, TRACK, LED):
        mine = event.motif == kind
        name = MOTIF_NAMES[kind]
        enough = mine.sum() >= LEAST
        for q in QUANTILES:
            numbers[f"{name} energy q{int(100 * q):02d} (MeV)"] = (
                float(np.quantile(event.energy[mine], q)) if enough else np.nan
            )
        numbers[f"{name} neighbours, mean"] = float(count[mine].mean()) if enough else np.nan
        numbers[f"{name} neighbours, none (%)"] = 100 * float((count[mine] == 0).mean()) if enough else np.nan
    low = event.motif == LED
    piece = pieces(event.voxel[low])
    enough = low.sum() >= LEAST
    size = np.bincount(piece) if len(piece) else np.zeros(1)
    energy = np.bincount(piece, event.energy[low]) if len(piece) else np.zeros(1)
    numbers["LED pieces of one voxel (%)"] = 100 * float((size == 1).mean()) if enough else np.nan
    numbers["LED largest piece (voxels)"] = float(size.max()) if enough else np.nan
    numbers["LED energy per piece, mean (MeV)"] = float(energy.mean()) if enough else np.nan
    shower_energy = float(event.energy[event.motif == SHOWER].sum())
    numbers["LED voxels per 100 MeV of shower"] = (
        100 * float(low.sum()) / shower_energy if shower_energy > 200 else np.nan
    )
    shower = event.motif == SHOWER
    numbers["shower voxels per MeV"] = float(shower.sum()) / shower_energy if shower_energy > 200 else np.nan
    # Showers differ most in how concentrated they are; where the energy nearby is alike, so should the voxels be.
    ball = cKDTree(event.voxel[shower]).query_ball_point(event.voxel[shower], 8) if shower.any() else []
    nearby = np.array([event.energy[shower][i].sum() for i in ball])
    for low_edge, high_edge in ((20, 40), (40, 60), (60, 80)):
        like = (nearby >= low_edge) & (nearby < high_edge)
        where = f"shower, {low_edge} to {high_edge} MeV within 2.4 cm"
        enough = like.sum() >= LEAST
        numbers[f"{where}: neighbours, mean"] = float(count[shower][like].mean()) if enough else np.nan
        numbers[f"{where}: energy, mean (MeV)"] = float(event.energy[shower][like].mean()) if enough else np.nan
    for label, pids in (("muon and pion", (2, 3)), ("proton", (4,))):
        tracks = straight_tracks(event, pids)
        for key, title in (
            ("voxels_per_cm", "voxels per cm"),
            ("filled", "filled share of crossed voxels"),
            ("mev_per_cm", "MeV per cm"),
        ):
            values = [t[key] for t in tracks]
            numbers[f"{label} track, {title}"] = float(np.mean(values)) if values else np.nan
    return numbers


def compare(genuine: Event, simulated: list[Event]) -> list[dict[str, float | str]]:
    """One row per number: genuine value, simulated median and central 90 %, rank of the genuine value."""
    truth = measure(genuine)
    rows = [measure(event) for event in simulated]
    table = []
    for name, value in truth.items():
        values = np.array([row[name] for row in rows])
        values = values[np.isfinite(values)]
        if not np.isfinite(value) or len(values) < 10:
            continue
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        rank = float(((values < value).mean() + (values <= value).mean()) / 2)
        row = {"what": name, "genuine": value, "median": middle, "low": low, "high": high, "rank": rank}
        table.append(row | {"events": len(values)})
    return table


def shares(events: list[Event]) -> np.ndarray:
    """Percent of points of each class, all events together."""
    counts = np.sum([np.bincount(e.motif, minlength=5)[:5] for e in events], axis=0)
    return 100 * counts / max(counts.sum(), 1)


def above(event: Event) -> Event:
    return event.select(event.energy > CUT)


def summary(events: list[Event]) -> dict[str, object]:
    """Class shares and sizes of simulated events beside the published ones."""
    selected = [e for e in events if len(e) >= 1024]
    sizes = np.array([len(e) for e in selected])
    total = sum(PUBLISHED_POINTS)
    return {
        "class_shares_percent": {
            "published, all points": dict(
                zip(MOTIF_NAMES, (100 * np.array(PUBLISHED_POINTS) / total).tolist(), strict=True)
            ),
            "simulated, all points": dict(zip(MOTIF_NAMES, shares(selected).tolist(), strict=True)),
            "simulated, above 0.13 MeV": dict(
                zip(MOTIF_NAMES, shares([above(e) for e in selected]).tolist(), strict=True)
            ),
        },
        "points_per_event": {
            "published mean over all events": total / PUBLISHED_EVENTS,
            "published mean over events with 1024 points": total / PUBLISHED_SELECTED,
            "simulated mean over events with 1024 points": float(sizes.mean()),
            "simulated mean over all events": float(np.mean([len(e) for e in events])),
            "simulated mean above 0.13 MeV": float(np.mean([len(above(e)) for e in selected])),
            "simulated 1, 50, 99 %": np.quantile(sizes, (0.01, 0.5, 0.99)).tolist(),
            "simulated largest": int(sizes.max()),
        },
        "events_with_1024_points_percent": {
            "published": 100 * PUBLISHED_SELECTED / PUBLISHED_EVENTS,
            "simulated": 100 * len(selected) / len(events),
        },
    }


def markdown(report: dict) -> str:
    """The report as tables."""
    lines = [
        "# Simulated by nufm, beside PILArNet-M",
        "",
        f"{report['events']} events, seed {report['seed']}, simulation {report['simulation_version']}, commit "
        f"{report['commit'][:10]}, {report['hardware']}. {report['events_per_s_per_core']:.0f} events/s per core once "
        f"compiled (process time); {report['events_per_s']:.0f} events/s with {report['workers']} workers, their start "
        "included. Made by `python benchmarks/simulation_fidelity.py`.",
        "",
        "## Class shares (%)",
        "",
        "| | " + " | ".join(MOTIF_NAMES) + " |",
        "|---|" + "---:|" * len(MOTIF_NAMES),
    ]
    for name, values in report["summary"]["class_shares_percent"].items():
        lines.append(f"| {name} | " + " | ".join(f"{values[c]:.2f}" for c in MOTIF_NAMES) + " |")
    genuine = report["genuine_shares_percent"]
    lines.append("| genuine event, above 0.13 MeV | " + " | ".join(f"{genuine[c]:.2f}" for c in MOTIF_NAMES) + " |")
    lines += ["", "## Points per event", "", "| | |", "|---|---:|"]
    for name, value in report["summary"]["points_per_event"].items():
        text = ", ".join(f"{v:.0f}" for v in value) if isinstance(value, list) else f"{value:.0f}"
        lines.append(f"| {name} | {text} |")
    for name, value in report["summary"]["events_with_1024_points_percent"].items():
        lines.append(f"| events with at least 1024 points, {name} (%) | {value:.1f} |")
    lines += [
        "",
        "## Against the genuine event, above 0.13 MeV",
        "",
        "Rank: share of simulated events below the genuine value; outside 0.05 to 0.95 in bold.",
        "",
        "| | genuine | simulated median | 5 to 95 % | rank | events |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["table"]:
        rank = f"{row['rank']:.2f}"
        if not 0.05 <= row["rank"] <= 0.95:
            rank = f"**{rank}**"
        lines.append(
            f"| {row['what']} | {row['genuine']:.3g} | {row['median']:.3g} "
            f"| {row['low']:.3g} to {row['high']:.3g} | {rank} | {row['events']} |"
        )
    return "\n".join(lines) + "\n"


def picture(genuine: Event, simulated: list[Event], path: Path) -> None:
    """Energy and neighbour spectra by class, shares, sizes, and one event of each kind."""
    figure, axes = plt.subplots(3, 3, figsize=(15, 14), constrained_layout=True)
    cut = [above(e) for e in simulated if len(e) >= 1024]
    count = [neighbours(e.voxel) for e in cut[:100]]
    count_genuine = neighbours(genuine.voxel)
    edges = np.geomspace(CUT, 20, 36)
    for column, kind in enumerate((SHOWER, TRACK, LED)):
        name = MOTIF_NAMES[kind]
        energy = np.concatenate([e.energy[e.motif == kind] for e in cut])
        ax = axes[0, column]
        ax.hist(energy, edges, density=True, histtype="step", color="C0", label="simulated by nufm")
        ax.hist(genuine.energy[genuine.motif == kind], edges, density=True, histtype="step", color="C1",
                label="genuine event")  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="energy of a voxel (MeV)", title=f"{name}, above {CUT} MeV")
        ax.legend()
        ax = axes[1, column]
        bins = np.arange(-0.5, 27)
        mine = np.concatenate([c[e.motif == kind] for c, e in zip(count, cut, strict=False)])
        ax.hist(mine, bins, density=True, histtype="step", color="C0")
        ax.hist(count_genuine[genuine.motif == kind], bins, density=True, histtype="step", color="C1")
        ax.set(xlabel="occupied among 26 neighbours", title=name)
    ax = axes[2, 0]
    total = sum(PUBLISHED_POINTS)
    x = np.arange(5)
    ax.bar(x - 0.2, 100 * np.array(PUBLISHED_POINTS) / total, 0.4, color="C2", label="PILArNet-M, published")
    ax.bar(x + 0.2, shares([e for e in simulated if len(e) >= 1024]), 0.4, color="C0", label="simulated by nufm")
    ax.set(xticks=x, xticklabels=MOTIF_NAMES, ylabel="% of all points", yscale="log")
    ax.legend()
    like = min(cut, key=lambda e: abs(len(e) - len(genuine)))
    for ax, event, title in ((axes[2, 1], genuine, "genuine event"), (axes[2, 2], like, "simulated by nufm")):
        for kind, colour in enumerate(("C0", "0.4", "C3", "C2", "C1")):
            mine = event.motif == kind
            ax.scatter(event.voxel[mine, 0], event.voxel[mine, 1], s=0.8, color=colour, label=MOTIF_NAMES[kind])
        ax.set(title=f"{title}, {len(event)} voxels", xlabel="x (voxel)", ylabel="y (voxel)", aspect="equal",
               xlim=(0, 768), ylim=(0, 768))  # fmt: skip
    axes[2, 1].legend(markerscale=6, fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def events_per_second_per_core(n: int = 200) -> float:
    """Events like PILArNet's (at least 1024 points) that one core simulates in a second, once compiled."""
    spec = SimulationSpec()
    for index in range(5):
        simulate_event(spec, 1, 0, index)
    begin = time.process_time()
    for index in range(5, 5 + n):
        simulate_event(spec, 1, 0, index)
    return n / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genuine", type=Path, default=GENUINE)
    parser.add_argument("--events", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulated.h5"
        progress = SimulationProgress(args.events)
        progress.start("simulating")
        begin = time.perf_counter()
        simulate_file(path, args.events, args.seed, args.workers, SimulationSpec(min_points=0), progress=progress)
        progress.stop()
        seconds = time.perf_counter() - begin
        simulated = list(PILArNetReader(path, energy_threshold=-1.0, min_points=0))
    genuine = PILArNetReader(args.genuine, energy_threshold=CUT, min_points=0)[0]
    report = {
        "data": "simulated by nufm",
        "events": args.events,
        "seed": args.seed,
        **provenance(),
        "simulation_version": simulation_version(),
        "events_per_s": args.events / seconds,
        "workers": args.workers or available_cores(),
        "events_per_s_per_core": events_per_second_per_core(),
        "summary": summary(simulated),
        "genuine_shares_percent": dict(zip(MOTIF_NAMES, shares([genuine]).tolist(), strict=True)),
        "table": compare(genuine, [above(e) for e in simulated if len(e) >= 1024]),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "simulation_fidelity.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "simulation_fidelity.md").write_text(markdown(report))
    picture(genuine, simulated, args.out / "simulation_fidelity.png")
    print(markdown(report))


if __name__ == "__main__":
    main()
