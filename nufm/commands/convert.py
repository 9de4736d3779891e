"""``scripts/convert.py``: events of several sub-detectors from npz files to HDF5, and back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nufm.data.datamodule import SPLITS
from nufm.data.particle_files import ENERGY_THRESHOLD, convert_particles
from nufm.data.stream_convert import to_hdf5, to_npz, to_splits
from nufm.data.stream_files import HDF5, StreamReader

EXAMPLES = """examples:
  python scripts/convert.py events_v7_npz --out train/fasercal.h5      # a folder of npz files, one per event
  python scripts/convert.py events_v7_npz --out dataset --splits train=0.85,val=0.05,test=0.1
  python scripts/convert.py train/fasercal.h5 --out as_npz             # back: a folder of npz files
  python scripts/convert.py pilarnet_m/train --particles pilarnet_particles --out train/particles.h5
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``scripts/convert.py`` with these flags, those of the process by default."""
    parser = argparse.ArgumentParser(
        description="Convert FASERCal events: npz files of the public code (one per event) into one HDF5 file of many "
        "events, which is read several times faster, or HDF5 files into npz files; or cut single particles out of "
        "public events. Every event is checked.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("events", nargs="+", help="stream files, folders of them, or globs")
    parser.add_argument(
        "--out", type=Path, required=True, help="file to write (.h5), or folder for npz files or --splits"
    )
    parser.add_argument(
        *("--origin",),
        **{"type": float, "nargs": 3, "default": (0.0, 0.0, 0.0), "metavar": ("X", "Y", "Z")},
        help="centre of 3DCal in the frame of the npz files' vertices, mm; default 0 0 0",
    )
    parser.add_argument(
        *("--particles",),
        choices=("superfgd", "pilarnet_particles"),
        help="cut single particles out: of the folder of the public SuperFGD sample, or of PILArNet-M files",
    )
    parser.add_argument(
        *("--energy-threshold",),
        **{"type": float, "metavar": "MEV"},
        help="with --particles pilarnet_particles: drop voxels with at most this energy before those of a particle are "
        f"counted; default {ENERGY_THRESHOLD}",
    )
    parser.add_argument(
        "--splits", type=_shares, help="share the events out at random into --out/<split>: train=0.85,val=0.05,test=0.1"
    )
    parser.add_argument("--seed", type=int, default=7, help="of that draw, default 7")
    args = parser.parse_args(arguments)
    if args.particles is not None:
        _particles(parser, args)
        return
    if args.energy_threshold is not None:
        parser.error("--energy-threshold is for --particles pilarnet_particles; events keep all their voxels")
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(StreamReader(args.events)))
            common = {"origin_mm": tuple(args.origin), "each": lambda: progress.advance(task)}
            if args.splits is not None:
                count = sum(to_splits(args.events, args.out, args.splits, args.seed, **common).values())
            else:
                convert = to_hdf5 if args.out.suffix in HDF5 else to_npz
                count = convert(args.events, args.out, **common)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    print(f"{count} events in {args.out}")


def _shares(text: str) -> dict[str, float]:
    """``train=0.85,val=0.05,test=0.1`` -> share by split."""
    shares = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            shares = {}
        if name.strip() not in SPLITS or not shares:
            raise argparse.ArgumentTypeError(f"found '{part}', expected e.g. train=0.85,val=0.05,test=0.1")
    return shares


def _particles(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Single particles of other files."""
    if len(args.events) > 1:
        parser.error(f"--particles takes one file, folder or glob, found {len(args.events)}")
    if args.splits is not None:
        parser.error("--particles does not share out: give one split after the other, or drop --splits")
    if args.particles != "pilarnet_particles" and args.energy_threshold is not None:
        parser.error(f"--energy-threshold is for --particles pilarnet_particles, not for '{args.particles}'")
    threshold = ENERGY_THRESHOLD if args.energy_threshold is None else args.energy_threshold
    try:
        convert_particles(args.particles, args.events[0], args.out, energy_threshold=threshold)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    print(f"{len(StreamReader(args.out))} particles in {args.out}")
