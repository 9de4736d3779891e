"""``scripts/convert.py``: events of several sub-detectors from npz files to HDF5, and back; pixel maps from and to
HDF5 and PNG."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nufm.data.datamodule import SPLITS
from nufm.data.image_convert import convert_maps, split_maps
from nufm.data.image_files import ImageReader
from nufm.data.particle_files import ENERGY_THRESHOLD, convert_particles
from nufm.data.stream_convert import to_hdf5, to_npz, to_splits
from nufm.data.stream_files import HDF5, StreamReader

EXAMPLES = """examples:
  python scripts/convert.py events_v7_npz --out train/fasercal.h5      # a folder of npz files, one per event
  python scripts/convert.py events_v7_npz --out dataset --splits train=0.85,val=0.05,test=0.1
  python scripts/convert.py train/fasercal.h5 --out as_npz             # back: a folder of npz files
  python scripts/convert.py pilarnet_m/train --particles pilarnet_particles --out train/particles.h5
  python scripts/convert.py pilarnet_m/train --pixelmaps --out maps.h5         # 3D events onto XZ and YZ
  python scripts/convert.py pictures --pixelmaps --out dataset --splits train=0.85,val=0.05,test=0.1
  python scripts/convert.py maps.h5 --pixelmaps --out pictures                 # a folder with PNG files and a table
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``scripts/convert.py`` with these flags, those of the process by default."""
    parser = argparse.ArgumentParser(
        description="Convert FASERCal events: npz files of the public code (one per event) into one HDF5 file of many "
        "events, which is read several times faster, or HDF5 files into npz files; or cut single particles out of "
        "public events; or convert pixel maps (3D events, HDF5, PNG with a table; see nufm/data/image_files.py). Every "
        "event is checked.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("events", nargs="+", help="files of events, folders of them, or globs")
    parser.add_argument(
        "--out", type=Path, required=True, help="file to write (.h5), or folder for npz or PNG files or --splits"
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
    maps = parser.add_argument_group("pixel maps")
    maps.add_argument("--pixelmaps", action="store_true", help="the events are, or become, maps of two views")
    maps.add_argument("--size", type=int, help="pixels per edge; default: those of the maps, 512 for 3D events")
    maps.add_argument(
        *("--centre",),
        **{"choices": ("vertex", "charge"), "default": "vertex"},
        help="what maps of 3D events are centred on, default vertex",
    )
    maps.add_argument("--detector", help="of 3D events whose file does not say, default pilarnet")
    maps.add_argument(
        *("--labels",),
        **{"type": _labels, "metavar": "LABEL=CLASS,..."},
        help="what labels of other names stand for, e.g. 'ccnumu=νµ CC,other=NC'",
    )
    maps.add_argument("--unit", choices=("MeV", "grey"), help="of the values of HDF5 files that do not say")
    maps.add_argument("--pitch", type=float, metavar="MM", help="mm per pixel, where the files do not say")
    args = parser.parse_args(arguments)
    if args.pixelmaps:
        _pixelmaps(parser, args)
        return
    for name in ("size", "detector", "labels", "unit", "pitch"):
        if getattr(args, name) is not None:
            parser.error(f"--{name} is for pixel maps: add --pixelmaps")
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


def _pixelmaps(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Pixel maps of any kind of file."""
    if args.particles is not None or args.energy_threshold is not None:
        parser.error("--pixelmaps has no particles: drop --particles and --energy-threshold")
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        said = {"labels": args.labels, "unit": args.unit, "pitch": args.pitch}
        reader = ImageReader(args.events, size=args.size, centre=args.centre, detector=args.detector, **said)
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(reader))
            each = functools.partial(progress.advance, task)
            if args.splits is not None:
                count = sum(split_maps(reader, args.out, args.splits, args.seed, each).values())
            else:
                count = convert_maps(reader, args.out, each=each)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was written")
    size, unit = f"{reader.shape[0]} × {reader.shape[1]} pixels", f"{reader.pitch:g} mm" if reader.pitch else "no pitch"
    print(f"{count} events of {size} ({unit}, {reader.unit}) in {args.out}")


def _labels(text: str) -> dict[str, str]:
    """``ccnumu=νµ CC,other=NC`` -> class by label."""
    labels = {}
    for part in text.split(","):
        label, equals, name = part.partition("=")
        if not equals or not label.strip() or not name.strip():
            raise argparse.ArgumentTypeError(f"found '{part}', expected e.g. 'ccnumu=νµ CC,other=NC'")
        labels[label.strip()] = name.strip()
    return labels


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
