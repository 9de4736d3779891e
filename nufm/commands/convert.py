"""``scripts/convert.py``: events of several sub-detectors from npz files to HDF5, and back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nufm.data.particle_files import convert_particles
from nufm.data.stream_convert import to_hdf5, to_npz
from nufm.data.stream_files import HDF5, StreamReader

EXAMPLES = """examples:
  python scripts/convert.py events_v7_npz --out train/fasercal.h5      # a folder of npz files, one per event
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
    parser.add_argument("--out", type=Path, required=True, help="file to write (.h5), or folder for npz files")
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
    args = parser.parse_args(arguments)
    if args.particles is not None:
        _particles(parser, args)
        return
    convert = to_hdf5 if args.out.suffix in HDF5 else to_npz
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(StreamReader(args.events)))
            count = convert(args.events, args.out, tuple(args.origin), lambda: progress.advance(task))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    print(f"{count} events in {args.out}")


def _particles(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Single particles of other files."""
    if len(args.events) > 1:
        parser.error(f"--particles takes one file, folder or glob, found {len(args.events)}")
    try:
        convert_particles(args.particles, args.events[0], args.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    print(f"{len(StreamReader(args.out))} particles in {args.out}")
