"""The command line of the simulation (scripts/simulate.py)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from nufm.simulation.dataset import STREAMS, SimulationSpec, simulate_file, simulate_splits
from nufm.simulation.medium import LIQUID_ARGON, PLASTIC_SCINTILLATOR
from nufm.simulation.progress import SimulationProgress
from nufm.simulation.voxels import Lattice, Recombination

MEDIA = {"liquid-argon": LIQUID_ARGON, "plastic-scintillator": PLASTIC_SCINTILLATOR}

EXAMPLES = """examples:
  python scripts/simulate.py --events 1000 --out events.h5 --seed 1
  python scripts/simulate.py --out dataset --splits train=2000,val=200,test=400
  python scripts/simulate.py --events 100 --out ch.h5 --medium plastic-scintillator --field 0 0.5 0
  python scripts/simulate.py --detector fasercal --events 100 --out fasercal.h5
  python scripts/simulate.py --detector pixel_lartpc --events 100 --out pixels.h5
"""
# Options that mean something for one kind of event only, with their defaults.
POINTS = {
    "medium": "liquid-argon",
    "field": (0.0, 0.0, 0.0),
    "voxels": (768, 768, 768),
    "pitch": 3.0,
    "min_points": 1024,
}
MIXES = {"fasercal": ("balanced", "natural"), "pixel_lartpc": ("published", "balanced")}  # the default first


def _splits(text: str) -> dict[str, int]:
    """``train=2000,val=200`` -> numbers of events by split."""
    numbers = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name.strip() not in STREAMS or not number.strip().isdigit():
            raise argparse.ArgumentTypeError(f"found '{part}', expected e.g. train=2000,val=200,test=400")
        numbers[name.strip()] = int(number)
    return numbers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Simulate detector events and write them: particles in a box of one medium in the PILArNet-M "
        "layout, neutrino interactions in the sub-detectors of FASERCal as a stream file, or those in a "
        "modular liquid-argon detector with 5 mm pixels. The same seed gives the same events whatever the number of "
        "workers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write (.h5), or folder with --splits")
    parser.add_argument("--events", type=int, help="number of events of the file")
    parser.add_argument("--splits", type=_splits, help="events of each split: train=N,val=M,test=K")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    parser.add_argument(
        "--detector", choices=("pilarnet", *MIXES), default="pilarnet", help="what to simulate, default pilarnet"
    )
    points = parser.add_argument_group("with --detector pilarnet")
    points.add_argument("--medium", choices=sorted(MEDIA), help="default liquid-argon")
    points.add_argument("--field", type=float, nargs=3, metavar=("BX", "BY", "BZ"), help="tesla, default none")
    points.add_argument("--voxels", type=int, nargs=3, metavar=("NX", "NY", "NZ"), help="default 768 on each axis")
    points.add_argument("--pitch", type=float, help="edge of a voxel in mm, default 3")
    points.add_argument("--min-points", type=int, help="events with fewer voxels are drawn again, default 1024")
    parser.add_argument_group("with --detector fasercal or pixel_lartpc").add_argument(
        "--mix",
        choices=sorted({mix for mixes in MIXES.values() for mix in mixes}),
        help="fasercal: all classes equally often (balanced, default), or as expected on the beam axis (natural); "
        "pixel_lartpc: 74 %% charged currents (published, default), or balanced",
    )
    return parser


def simulate(argv: Sequence[str] | None = None) -> None:
    """Parse the command line (None: that of the process), simulate, say where the events are."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.events is None) == (args.splits is None):
        parser.error("give either --events N and --out FILE.h5, or --splits train=N,val=M,test=K and --out FOLDER")
    own = {"mix": MIXES[args.detector][0]} if args.detector in MIXES else POINTS
    for name in {"mix": None, **POINTS}.keys() - own.keys():
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} means nothing with --detector {args.detector}; leave it out")
    if args.mix is not None and args.mix not in MIXES[args.detector]:
        parser.error(f"--mix {args.mix} is none of --detector {args.detector}: {', '.join(MIXES[args.detector])}")
    options = {name: default if getattr(args, name) is None else getattr(args, name) for name, default in own.items()}
    progress = SimulationProgress(args.events if args.splits is None else sum(args.splits.values()))
    try:
        write_file, write_splits, spec = _KINDS[args.detector](**options)
        progress.start(f"simulating into {args.out}")
        if args.splits is None:
            write_file(args.out, args.events, args.seed, args.workers, spec, progress=progress)
        else:
            write_splits(args.out, args.splits, args.seed, args.workers, spec, progress)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    finally:
        progress.stop()
    print(f"{progress.done} events simulated by nufm in {args.out} ({progress.rate:.0f} events/s)")


def _points(medium: str, field: Sequence[float], voxels: Sequence[int], pitch: float, min_points: int) -> tuple:
    """What writes a file, what writes splits, and their specification, for particles in a box."""
    spec = dataclasses.replace(
        SimulationSpec(),
        medium=MEDIA[medium],
        lattice=Lattice(tuple(voxels), pitch),
        magnetic_field=tuple(field),
        # the charge columns of a scintillator mean nothing more than energy / W
        recombination=Recombination(b=0.0) if medium == "plastic-scintillator" else Recombination(),
        min_points=min_points,
    )
    return simulate_file, simulate_splits, spec


def _streams(mix: str) -> tuple:
    """The same for FASERCal."""
    from nufm.simulation.fasercal import dataset  # imported here: most runs need one kind of event only

    spec = dataset.FASERCalSpec()
    return (
        dataset.simulate_file,
        dataset.simulate_splits,
        dataclasses.replace(spec, beam=dataclasses.replace(spec.beam, mix=mix)),
    )


def _pixels(mix: str) -> tuple:
    """The same for the pixel detector."""
    from nufm.simulation.pixelmaps import dataset

    return dataset.simulate_file, dataset.simulate_splits, dataset.PixelSpec(mix=mix)


_KINDS = {"pilarnet": _points, "fasercal": _streams, "pixel_lartpc": _pixels}
