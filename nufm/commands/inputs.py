"""What the commands on a trained model share: its events, its device, how a command line is parsed and a bad one told.

A run folder is enough: the data settings of its config.yaml are the defaults, so that a run is probed and evaluated on
the very files that it kept for that.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace
from rich.console import Console

from nufm.checkpoint import Pretrained, from_pretrained
from nufm.checkpoint.describe import describe_transform
from nufm.checkpoint.files import CONFIG, find_export
from nufm.checkpoint.kinds import WORDS, Inputs, inputs_named
from nufm.checkpoint.maps import maps_of
from nufm.data.datamodule import EventDataModule, PointDataModule
from nufm.data.pilarnet import NO_LABELS, PILArNetReader
from nufm.data.stream_datamodule import StreamDataModule
from nufm.data.transforms import Transform
from nufm.machine import available_cores, keep_freed_memory
from nufm.running.folder import environment, git_state
from nufm.running.messages import shorter

if TYPE_CHECKING:
    from nufm.cli import RunCLI

REPOSITORY = Path(__file__).resolve().parents[2]

# Arguments of data modules that say how they train, and those that come with the weights.
TRAINING = {"augment", "lattice", "views", "batch_size", "max_events", "subset_seed", "max_eval_events"}
OF_THIS_MACHINE = {"num_workers"}  # of a run, not of its events
OF_THE_WEIGHTS = {"transforms", "grid_size", "energy_threshold"}


def command_parser(usage: str, settings: type, data: type[EventDataModule] = PointDataModule) -> ArgumentParser:
    """Parser with ``--config``, the fields of the dataclass ``settings``, and arguments of ``data`` as ``--data.…``.
    """
    # An abbreviated flag is a misspelt one, as in the command line of runs.
    parser = ArgumentParser(usage=usage, description="", allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; flags go on top of it.")
    parser.add_class_arguments(settings)
    skipped = (TRAINING | OF_THE_WEIGHTS) & set(inspect.signature(data).parameters)
    parser.add_class_arguments(data, "data", skip=skipped, instantiate=False)
    come_with = "It comes with the weights: leave it out, or give the same."
    parser.add_argument("--data.transforms", type=list[Transform] | None, default=None, help=come_with)
    if data is PointDataModule:
        parser.add_argument("--data.grid_size", type=float | None, default=None, help=come_with)
        parser.add_argument(
            "--data.energy_threshold",
            type=float | None,
            default=None,
            help="Points with at most this energy in MeV are dropped; null = as the weights' own events were.",
        )
    parser.add_argument(
        "--data.batch_size",
        type=int,
        default=16,
        help="Events in a batch. No score depends on it, but for probes of weights with a norm over the batch "
        "(released PoLAr-MAE).",
    )
    return parser


def parse(
    make: Callable[[], ArgumentParser], args: Sequence[str], description: str
) -> tuple[ArgumentParser, Namespace]:
    """Settings: those of the run that ``--checkpoint`` names, then ``--config``, then flags.

    Raises:
        ValueError: a key or value that cannot be meant, in a line or two.
    """
    parser = make()
    if {"--help", "-h"} & set(args):
        usage, _, rest = parser.format_help().partition("\n\n")
        print(f"{usage}\n\n{description}\n\n{rest.strip()}")
        raise SystemExit(0)
    known = [a.dest for a in parser._actions]
    try:
        # --print_config would print and stop here, before the run's settings are known.
        first = parser.parse_args([arg for arg in args if not arg.startswith("--print_config")])
        parser.set_defaults({f"data.{k}": v for k, v in run_data(first.checkpoint).items()})
        return parser, parser.parse_args(list(args))
    except ArgumentError as error:
        raise ValueError(shorter(str(error.message or error), known)) from error


@dataclass(frozen=True)
class Opened:
    """What a command on a trained model begins with.

    Attributes:
        options: the command's own settings.
        pretrained: what ``--checkpoint`` names, on the chosen device.
        data: the events, prepared as the weights expect them.
        config: all settings as YAML.
    """

    options: Any
    pretrained: Pretrained
    data: EventDataModule
    config: str


def opened(
    make: Callable[[], ArgumentParser],
    args: Sequence[str],
    description: str,
    check: Callable[[Any], None] = lambda options: None,
) -> Opened:
    """Parse, check the command's own settings, load the checkpoint and find its events.

    Raises:
        ValueError, OSError: a setting, checkpoint or path that cannot be used.
    """
    parser, config = parse(make, args, description)
    options = parser.instantiate(config)
    check(options)
    device = choose_device(options.device, options.threads)
    pretrained = from_pretrained(options.checkpoint, map_location=device, base=getattr(options, "base", None))
    return Opened(options, pretrained, open_data(options.data, pretrained), parser.dump(config, skip_unset=False))


def data_module_of(args: Sequence[str]) -> type[EventDataModule]:
    """The data module whose events the checkpoint in ``args`` takes; the one of points where that cannot be told."""
    given = [value for i, arg in enumerate(args) for value in _value_of("--checkpoint", arg, args[i + 1 : i + 2])]
    for i, arg in enumerate(args):
        for path in _value_of("--config", arg, args[i + 1 : i + 2]):
            try:
                given.insert(0, (yaml.safe_load(Path(path).read_text()) or {})["checkpoint"])
            except (OSError, yaml.YAMLError, KeyError, TypeError):
                continue  # the parser says what is wrong with it
    try:
        place = find_export(given[-1])
        named = inputs_named(json.loads(place.read_text(encoding="utf-8"))) if place.name == CONFIG else "points"
    except (OSError, ValueError, IndexError, AttributeError, TypeError):
        named = "points"  # whoever opens it says what is wrong with it
    return data_module(named)


def data_module(inputs: Inputs | str) -> type[EventDataModule]:
    """The data module of a kind of events; the one of points for a kind that there is not."""
    if inputs == "images":
        from nufm.data.image_datamodule import ImageDataModule  # brings Pillow

        return ImageDataModule
    return StreamDataModule if inputs == "streams" else PointDataModule


def _value_of(flag: str, arg: str, after: Sequence[str]) -> list[str]:
    name, equals, value = arg.partition("=")
    return [] if name != flag else [value] if equals else list(after)


def main(run: Callable[[Sequence[str]], object], args: Sequence[str] | None) -> None:
    """Run a command; a bad input ends the process with a message and status 2."""
    try:
        run(sys.argv[1:] if args is None else args)
    except (ValueError, OSError) as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        raise SystemExit(2) from None


# ---------------------------------------------------------------------------------------- the events


def run_folder(checkpoint: str | Path) -> Path | None:
    """The run folder that a checkpoint is, or that its export is in; None for others."""
    path = Path(checkpoint).expanduser()
    for folder in (path, path.parent) if path.name == "export" else (path,):
        if (folder / "config.yaml").is_file() and (folder / "environment.json").is_file():
            return folder
    return None


def run_data(checkpoint: str | Path) -> dict[str, Any]:
    """Where the events of a run are and how they were selected. Of an export that is not in a run, how its training cut
    out pixel maps, if it says that; else empty.

    Raises:
        ValueError: the run's config.yaml is not YAML.
    """
    folder = run_folder(checkpoint)
    if folder is None:
        return _exported_maps(checkpoint)
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{folder / 'config.yaml'}: not valid YAML ({error})") from error
    settings = ((config or {}).get("data") or {}).get("init_args") or {}
    left_out = TRAINING | OF_THIS_MACHINE | OF_THE_WEIGHTS - {"energy_threshold"}
    return {k: v for k, v in settings.items() if k not in left_out}


def _exported_maps(checkpoint: str | Path) -> dict[str, Any]:
    try:
        config = json.loads((Path(checkpoint).expanduser() / CONFIG).read_text(encoding="utf-8"))
        said = maps_of(config["extra"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # not an export; whoever opens it says what is wrong with it
    return {key: said[key] for key in ("size", "centre", "detector") if key in said}


def open_data(settings: Namespace | dict, pretrained: Pretrained) -> EventDataModule:
    """The events, prepared as the weights expect them.

    Raises:
        ValueError: other transforms or another lattice were given than those of the weights; what differs is said. Or
            settings of points for weights of events with several streams.
    """
    chosen = settings.as_dict() if isinstance(settings, Namespace) else dict(settings)
    if pretrained.inputs != "points" and "min_points" in chosen:
        raise ValueError(
            f"{pretrained.source}: holds a {type(pretrained.model).__name__}, which takes "
            f"{WORDS[pretrained.inputs][0]}; this command is for points."
            + " Its probes are in the report of its pretraining" * pretrained.of_streams
        )
    given, grid_size = chosen.pop("transforms", None), chosen.pop("grid_size", None)
    differs = []
    if given is not None:
        ours, theirs = [repr(t) for t in pretrained.transforms], [repr(t) for t in given]
        differs = [f"transforms: given {', '.join(theirs)}; of the weights {', '.join(ours)}"] * (ours != theirs)
    if grid_size is not None and grid_size != pretrained.grid_size:
        differs.append(f"grid_size: given {grid_size}, of the weights {pretrained.grid_size}")
    if differs:
        raise ValueError(
            f"{pretrained.source}: the events would be prepared otherwise than in training. {'; '.join(differs)}. "
            "Leave data.transforms and data.grid_size out: they come with the weights"
        )
    if pretrained.inputs != "points":
        return data_module(pretrained.inputs)(**chosen, transforms=list(pretrained.transforms))
    if chosen.get("energy_threshold") is None:
        chosen["energy_threshold"] = pretrained.energy_threshold
    return PointDataModule(**chosen, transforms=list(pretrained.transforms), grid_size=pretrained.grid_size)


def take_transforms(cli: RunCLI, pretrained: Pretrained) -> None:
    """Prepare the events of a run as those of the weights it starts from were, and not by numbers of its own events;
    the run's record says so, since a resumed run does not open those weights again."""
    cli.datamodule.transforms = list(pretrained.transforms)
    described = [describe_transform(t) for t in pretrained.transforms]
    cli.config.data.init_args.transforms = [
        Namespace(class_path=d["class_path"], init_args=Namespace(d["init_args"])) for d in described
    ]
    cli.resolved = cli.parser.dump(cli.config, skip_none=False)


def check_labels(reader: PILArNetReader, labels: Sequence[str], remedy: str) -> None:
    """Check that the files have the labels: those with ``point`` alone have none, those of v1 no PID.

    Raises:
        ValueError: names the first file that lacks one of ``labels``.
    """
    columns = list(zip(reader.files, reader.cluster_columns, strict=True))
    unlabelled = [file for file, n in columns if n == NO_LABELS]
    without_pid = [file for file, n in columns if NO_LABELS < n < 6]
    if labels and unlabelled:
        raise ValueError(
            f"{_and_more(unlabelled)}: no labels, found no data set 'cluster', expected one to compare with; use "
            "files that have it"
        )
    if "pid" in labels and without_pid:
        raise ValueError(
            f"{_and_more(without_pid)}: no 'pid' labels, found clusters of 5 columns (PILArNet-M v1), expected 6 "
            f"(v2 or v3); {remedy}"
        )


def _and_more(files: Sequence[Path]) -> str:
    return f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else str(files[0])


# ---------------------------------------------------------------------------------------- the machine


def choose_device(name: str, threads: int | None) -> torch.device:
    """``auto`` is a GPU if there is one. On a CPU, sets the threads as runs do.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{name}' cannot be used here: {error}; try --device cpu") from error
    if device.type == "cpu":
        keep_freed_memory()
    if threads is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or available_cores())
    return device


def provenance(
    pretrained: Pretrained, data: EventDataModule, readers: Mapping[str, Any]
) -> dict[str, Any]:
    """Weights, files, commit and machine, for the JSON of a result.

    Args:
        pretrained: what is measured.
        data: where its events are.
        readers: split or name -> its events.
    """
    here = environment()
    selection: dict[str, Any] = {}
    if pretrained.inputs == "streams":
        selection = {"min_voxels": data.min_voxels}
    elif pretrained.inputs == "points":
        selection = {
            "energy_threshold": data.energy_threshold,
            "energy_threshold_of_the_weights": pretrained.energy_threshold,
            "min_points": data.min_points,
            "below_min_points": {name: reader.n_below_minimum for name, reader in readers.items()},
        }
    return {
        "checkpoint": pretrained.source,
        "trained": pretrained.extra,
        "data": {
            "root": data.root,
            "files": {name: [str(f) for f in reader.files] for name, reader in readers.items()},
            **selection,
        },
        "commit": git_state(REPOSITORY)[0]["commit"],
        "environment": {k: here[k] for k in ("started", "command", "processor", "cpu_cores", "gpus", "packages")},
    }


def default_folder(checkpoint: str, what: str) -> Path:
    """``what`` in the run folder, or runs/<what>/<name of the checkpoint>."""
    folder = run_folder(checkpoint)
    return folder / what if folder else Path("runs") / what / re.sub(r"[^\w.-]+", "-", Path(checkpoint).name)
