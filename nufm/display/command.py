"""The command line of ``scripts/display.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from nufm.data.event import Event
from nufm.data.image_files import ImageReader
from nufm.data.images import VIEWS, ImageEvent
from nufm.data.pilarnet import PILArNetReader
from nufm.data.stream_files import StreamReader
from nufm.data.streams import StreamEvent
from nufm.data.tokens import EventTokens
from nufm.display.colours import pca_colours
from nufm.display.event import compare_panels, draw_event
from nufm.display.geometry import SIMULATED
from nufm.display.image_interactive import write_image_html
from nufm.display.images import draw_image_event
from nufm.display.interactive import write_html
from nufm.display.stream_interactive import write_stream_html
from nufm.display.stream_panels import Explanation
from nufm.display.streams import draw_stream_event
from nufm.display.tokens import draw_tokens, token_hover, token_panel

OWN = "own"  # tokens as the checkpoint makes them
THRESHOLD, MIN_POINTS = 0.13, 0  # MeV, and voxels, of files in the PILArNet-M layout


class Encoder(Protocol):
    """What a loaded checkpoint offers: see ``nufm.checkpoint.Pretrained``."""

    inputs: str

    def features(self, event: Event) -> np.ndarray: ...

    def untrained(self) -> Encoder: ...


class Tokenize(Protocol):
    """Makes the tokens of an event: of a published size, or (None) those of a loaded checkpoint."""

    def __call__(self, event: Event, size: str | None, encoder: Encoder | None) -> EventTokens: ...


class Explain(Protocol):
    """What a loaded checkpoint says of an event of several sub-detectors, or of pixel maps."""

    def __call__(self, event: StreamEvent | ImageEvent, encoder: Encoder) -> Explanation: ...


def display(
    load: Callable[[str], Encoder], tokenize: Tokenize, explain: Explain, arguments: Sequence[str] | None = None
) -> int:
    """Draw one event of a file, with the features of an encoder if one is given, and its tokens if asked for.

    Args:
        load: opens what ``--checkpoint`` names.
        tokenize: makes what ``--tokens`` names.
        explain: says what a checkpoint sees in an event of several sub-detectors or of pixel maps.
        arguments: command line, of the process by default.

    Returns:
        Exit code: 0, or 2 after a message if the input cannot be used.
    """
    options = _parser().parse_args(arguments)
    try:
        for path in _display(load, tokenize, explain, options):
            print(path)
    except (OSError, ValueError, IndexError) as error:
        print(f"display: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="display.py",
        description="Draw an event: a PNG and an HTML file that opens in any browser, without a network. "
        "Shows energy, the truth the file holds, the principal components of an encoder's features, and the tokens "
        "of masked point modelling.",
    )
    parser.add_argument(
        "file",
        help="HDF5 file in the PILArNet-M layout; events of several sub-detectors: HDF5, npz, or a folder of npz; "
        "pixel maps: HDF5, or a folder of PNG with a CSV table. A --checkpoint of pixel maps also takes 3D events",
    )
    parser.add_argument("--event", type=int, default=0, help="which event of the file (default 0)")
    parser.add_argument(
        "--checkpoint",
        help="run folder, export folder, hf://owner/name, or released weights (Panda .pth, PoLAr-MAE or "
        "Point-MAE .ckpt)",
    )
    parser.add_argument(
        "--tokens",
        nargs="?",
        const=OWN,
        choices=("2.5", "5", "25", OWN),
        help="draw the volumetric tokens too: balls of 2.5, 5 or 25 voxels as published for PoLAr-MAE; without a size, "
        "or 'own', those of the checkpoint",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="folder for the pictures (default: this one)"
    )
    parser.add_argument(
        "--energy-threshold",
        type=float,
        metavar="MEV",
        help="drop voxels up to this (default 0.13 MeV; PILArNet-M layout only)",
    )
    parser.add_argument(
        "--min-points",
        type=int,
        metavar="N",
        help="count only events of N points or more (default 0; PILArNet-M layout only)",
    )
    return parser


def _display(
    load: Callable[[str], Encoder], tokenize: Tokenize, explain: Explain, options: argparse.Namespace
) -> list[Path]:
    if holds_images(options.file):
        return _display_images(load, explain, options)
    if holds_streams(options.file):
        return _display_streams(load, explain, options)
    if options.tokens == OWN and options.checkpoint is None:
        raise ValueError("--tokens without a size draws those of a checkpoint: add --checkpoint, or name a size, 5 say")
    encoder = None if options.checkpoint is None else load(options.checkpoint)
    if encoder is not None and encoder.inputs == "images":
        return _display_images(lambda source: encoder, explain, options)
    threshold = THRESHOLD if options.energy_threshold is None else options.energy_threshold
    least = MIN_POINTS if options.min_points is None else options.min_points
    reader = PILArNetReader(options.file, threshold, least)
    if not 0 <= options.event < len(reader):
        raise IndexError(
            f"{options.file}: there is no event {options.event}; the file holds {len(reader)} events of "
            f"{least} points or more, counted from 0"
        )
    event = reader[options.event]
    stem = options.out / f"{Path(options.file).stem}_{options.event}"
    tokens = None  # made before anything is drawn: what cannot be had must not leave half of the pictures
    if options.tokens is not None:
        tokens = tokenize(event, None if options.tokens == OWN else options.tokens, encoder)
    colours, paths = {}, []
    if encoder is not None:
        both = {"untrained": encoder.untrained(), "pretrained": encoder}
        colours = {name: pca_colours(e.features(event)) for name, e in both.items()}
        paths.append(compare_panels(event, colours, stem.with_name(stem.name + "_features.png")))
    # In the overview the untrained features would only take room.
    overview = {"pretrained features": colours["pretrained"]} if colours else {}
    paths.insert(0, draw_event(event, stem.with_name(stem.name + ".png"), overview))
    views, hover = {f"{name} features": rgb for name, rgb in colours.items()}, None
    if tokens is not None:
        paths.append(draw_tokens(tokens, stem.with_name(stem.name + "_tokens.png")))
        views["tokens"], hover = token_panel(tokens).rgb, token_hover(tokens)
    return [*paths, write_html(event, stem.with_name(stem.name + ".html"), views, hover=hover)]


# ---------------------------------------------------------------------- several sub-detectors


def holds_streams(path: str | Path) -> bool:
    """Whether a file has events of several sub-detectors: npz, a folder of such files, or HDF5 that says so."""
    path = Path(path)
    if path.is_dir():
        path = next(iter(sorted(p for p in path.iterdir() if p.suffix in (".npz", ".h5", ".hdf5"))), path)
    if path.suffix == ".npz":
        return True
    if not path.is_file():
        return False
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return {"layout", "detector"} <= set(file.attrs)
    except OSError:  # not HDF5: the reader says so
        return False


def _display_streams(load: Callable[[str], Encoder], explain: Explain, options: argparse.Namespace) -> list[Path]:
    _only_points(options, "events of several sub-detectors")
    reader = StreamReader(options.file)
    if not 0 <= options.event < len(reader):
        raise IndexError(
            f"{options.file}: there is no event {options.event}; it holds {len(reader)} events, counted from 0"
        )
    event = reader[options.event]
    stem = options.out / f"{Path(options.file).stem}_{options.event}"
    said = None if options.checkpoint is None else explain(event, load(options.checkpoint))
    picture = draw_stream_event(event, stem.with_name(stem.name + ".png"), said=said)
    return [picture, write_stream_html(event, stem.with_name(stem.name + ".html"), said=said)]


def _only_points(options: argparse.Namespace, what: str) -> None:
    """Refuse flags that mean nothing for events of another kind."""
    for name in ("tokens", "energy_threshold", "min_points"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{options.file} holds {what}: --{name.replace('_', '-')} is for those in the PILArNet-M layout; leave "
                "it out"
            )


# ---------------------------------------------------------------------- pixel maps


def holds_images(path: str | Path) -> bool:
    """Whether a file has pixel maps: a CSV table of pictures, a folder with one, or HDF5 that has views."""
    path = Path(path)
    if path.is_dir():
        if any(path.glob("*.csv")):
            return True
        path = next(iter(sorted(p for p in path.iterdir() if p.suffix in (".h5", ".hdf5"))), path)
    if path.suffix == ".csv":
        return True
    if not path.is_file() or path.suffix == ".npz":
        return False
    import h5py

    try:
        with h5py.File(path, "r") as file:
            named = str(file.attrs.get("layout", "")).startswith("pixelmaps")
            return named or any(name in file for name in ("images", *VIEWS))
    except OSError:  # not HDF5: the reader says so
        return False


def _display_images(load: Callable[[str], Encoder], explain: Explain, options: argparse.Namespace) -> list[Path]:
    _only_points(options, "pixel maps")
    reader = ImageReader(options.file)
    if not 0 <= options.event < len(reader):
        raise IndexError(
            f"{options.file}: there is no event {options.event}; it holds {len(reader)} events, counted from 0"
        )
    event = reader[options.event]
    stem = options.out / f"{Path(options.file).stem}_{options.event}"
    said = () if options.checkpoint is None else explain(event, load(options.checkpoint)).lines
    simulated = SIMULATED in reader.producer
    picture = draw_image_event(event, stem.with_name(stem.name + ".png"), simulated, said=said)
    return [picture, write_image_html(event, stem.with_name(stem.name + ".html"), simulated, said=said)]
