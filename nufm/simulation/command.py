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
"""


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
        description="Simulate detector events and write them in the PILArNet-M layout. The same seed gives "
        "the same file whatever the number of workers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="file to write (.h5), or folder with --splits"
    )
    parser.add_argument("--events", type=int, help="number of events of the file")
    parser.add_argument("--splits", type=_splits, help="events of each split: train=N,val=M,test=K")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--workers", type=int, help="processes; default: one per core")
    parser.add_argument("--medium", choices=sorted(MEDIA), default="liquid-argon")
    parser.add_argument(
        "--field", type=float, nargs=3, default=(0.0, 0.0, 0.0), metavar=("BX", "BY", "BZ"), help="tesla"
    )
    parser.add_argument("--voxels", type=int, nargs=3, default=(768, 768, 768), metavar=("NX", "NY", "NZ"))
    parser.add_argument("--pitch", type=float, default=3.0, help="edge of a voxel in mm, default 3")
    parser.add_argument(
        "--min-points", type=int, default=1024, help="events with fewer voxels are drawn again, default 1024"
    )
    return parser


def simulate(argv: Sequence[str] | None = None) -> None:
    """Parse the command line (None: that of the process), simulate, say where the events are."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.events is None) == (args.splits is None):
        parser.error(
            "give either --events N and --out FILE.h5, or --splits train=N,val=M,test=K and --out FOLDER"
        )
    scintillator = args.medium == "plastic-scintillator"
    progress = SimulationProgress(args.events if args.splits is None else sum(args.splits.values()))
    try:
        spec = dataclasses.replace(
            SimulationSpec(),
            medium=MEDIA[args.medium],
            lattice=Lattice(tuple(args.voxels), args.pitch),
            magnetic_field=tuple(args.field),
            # the charge columns of a scintillator mean nothing more than energy / W
            recombination=Recombination(b=0.0) if scintillator else Recombination(),
            min_points=args.min_points,
        )
        progress.start(f"simulating into {args.out}")
        if args.splits is None:
            simulate_file(args.out, args.events, args.seed, args.workers, spec, progress=progress)
        else:
            simulate_splits(args.out, args.splits, args.seed, args.workers, spec, progress)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    finally:
        progress.stop()
    print(f"{progress.done} events simulated by nufm in {args.out} ({progress.rate:.0f} events/s)")
