"""The command line of ``scripts/export.py``: a trained or released model as a folder that others can use."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from nufm.checkpoint import Pretrained, from_pretrained, model_card, save_pretrained
from nufm.checkpoint.describe import MODELS, TRANSFORMS, build, check_size
from nufm.checkpoint.export import predicted_classes
from nufm.checkpoint.kinds import inputs_of
from nufm.checkpoint.sizes import parameter_count
from nufm.checkpoint.weights import check_finite, check_fit, check_types, read_pickled
from nufm.commands.inputs import main, run_folder
from nufm.data.stream_datamodule import StreamDataModule
from nufm.data.transforms import event_transforms
from nufm.models.segmenter import Segmenter
from nufm.running.checkpointing import newest_checkpoint, verify
from nufm.running.folder import write_atomic

# Arguments of StreamDataModule that say which events the numbers of its transforms come from.
FOUND_BY = (
    *("root", "sample", "splits", "min_voxels", "n_train", "n_val", "n_test", "simulation_seed", "simulation_workers"),
)

DESCRIPTION = """\
Write a model with everything needed to use it into one folder: model.safetensors, config.json (architecture, task,
classes, units, preprocessing) and README.md, a model card.

  python scripts/export.py --checkpoint runs/tiny-semantic/TIME --out my_model --licence MIT
      a finished run
  python scripts/export.py --checkpoint runs/tiny-panda/TIME/checkpoints/last.ckpt --out encoder
      a run that is still going, or that was stopped
  python scripts/export.py --checkpoint panda_semantic.pth --out panda_semantic
      released Panda weights, which this turns into safetensors; PoLAr-MAE's .ckpt likewise

Use it with: nufm.from_pretrained("my_model").predict("events.h5")"""


def export(args: Sequence[str] | None = None) -> None:
    """Run ``scripts/export.py`` with these flags; a bad input ends the process with a message and status 2."""
    main(_export, args)


def _export(args: Sequence[str]) -> None:
    options = _parser().parse_args(list(args))
    out, source = Path(options.out), Path(options.checkpoint).expanduser()
    pretrained = load(options.checkpoint, options.branch)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, expected a folder to write into")
    folder = save_pretrained(
        out,
        pretrained.model,
        transforms=pretrained.transforms,
        grid_size=pretrained.grid_size,
        task=pretrained.task,
        classes=pretrained.classes,
        units=pretrained.units,
        selection=pretrained.selection,
        extra=pretrained.extra,
    )
    licence = options.licence or pretrained.extra.get("licence")
    title = options.name or folder.resolve().name
    write_atomic(folder / "README.md", model_card(pretrained, title, licence, scores_of(source)))
    from_pretrained(folder)  # what was written can be read
    parameters = parameter_count(pretrained.model)
    what = "encoder" if pretrained.task is None else f"task '{pretrained.task}'"
    print(f"{folder}: {type(pretrained.model).__name__}, {parameters:,} parameters, {what}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="export.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="run folder, a .ckpt in its checkpoints/, export folder, hf://owner/name, or released weights of Panda "
        "or PoLAr-MAE",
    )
    parser.add_argument("--out", required=True, help="folder to write; an export in it is replaced")
    parser.add_argument("--name", help="title of the model card; default: the folder's name")
    parser.add_argument("--licence", help="licence of the weights for the model card, e.g. MIT")
    parser.add_argument(
        "--branch",
        choices=("teacher", "student"),
        default="teacher",
        help="which encoder of a pretraining's .ckpt (default: teacher, as in its export)",
    )
    return parser


def load(checkpoint: str | Path, branch: Literal["teacher", "student"] = "teacher") -> Pretrained:
    """Whatever :func:`nufm.checkpoint.from_pretrained` loads; also a run without an export, from its newest checkpoint,
    and a ``.ckpt`` in a run.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: a checkpoint that is incomplete, not of a run, or of another kind than the runs of nufm.
    """
    path = Path(checkpoint).expanduser()
    if path.suffix == ".ckpt":
        run = run_folder(path.parent.parent)
        if run is None:
            return from_pretrained(checkpoint)  # released PoLAr-MAE weights, or refused
        verify(path)
        return from_run(run, path, branch)
    run = run_folder(path)
    if run is not None and path.name != "export" and (
        branch == "student" or not (run / "export" / "config.json").is_file()
    ):
        newest = newest_checkpoint(run)
        if newest is None:
            raise FileNotFoundError(f"{run}: neither an export/ nor a complete checkpoint in checkpoints/")
        return from_run(run, newest[0], branch)
    return from_pretrained(checkpoint)


def from_run(run: Path, checkpoint: Path, branch: Literal["teacher", "student"] = "teacher") -> Pretrained:
    """The model of a run from its resolved configuration and one of its checkpoints; runs no code from either.

    Args:
        run: the run folder.
        checkpoint: a ``.ckpt`` of it.
        branch: which encoder of a pretraining.

    Raises:
        ValueError: the configuration or the checkpoint is not of a run of nufm, or they do not fit.
    """
    where = run / "config.yaml"
    try:
        config = yaml.safe_load(where.read_text(encoding="utf-8"))
        method, data = config["model"]["init_args"], config["data"]["init_args"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: not the configuration of a run ({type(error).__name__}: {error})") from error
    part = "network" if "network" in method else "encoder"
    if part not in method:
        raise ValueError(f"{where}: model.init_args names neither a network nor an encoder, found {sorted(method)}")
    content = read_pickled(checkpoint, "only checkpoints that nufm wrote can be exported")
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{checkpoint}: has no 'state_dict'; is it a checkpoint of a run?")
    prefix = "network." if part == "network" else f"{branch}.backbone."
    if not any(name.startswith(prefix) for name in state) and part == "encoder":
        prefix = "encoder."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    described = _description(method[part])
    check_size(described, len(tensors), where)
    with torch.random.fork_rng(devices=[]):
        model = build(described, MODELS, where)
        # In this regime the method leaves the decoder out: the configuration names it all the same.
        if method.get("regime") == "lin" and isinstance(model, Segmenter) and model.decoder is not None:
            model = model.without_decoder()
    check_fit(
        {k: tuple(v.shape) for k, v in tensors.items()},
        {k: tuple(v.shape) for k, v in model.state_dict().items()},
        checkpoint,
    )
    check_types(tensors, model.state_dict(), checkpoint)
    check_finite(tensors, str(checkpoint))
    model.load_state_dict(tensors)
    inputs = inputs_of(model)
    given = data.get("transforms")
    if given is not None:
        transforms = [build(_description(entry), TRANSFORMS, where) for entry in given]
    elif inputs == "images":
        from nufm.data.image_datamodule import ImageDataModule  # brings Pillow

        transforms = ImageDataModule().transforms
    elif inputs == "streams":
        transforms = StreamDataModule(**{k: data[k] for k in FOUND_BY if k in data}).transforms
    else:
        transforms = event_transforms(data["grid_size"])
    task = method.get("task") if part == "network" else None
    root = data.get("root")
    git = run / "git.json"
    return Pretrained(
        model=model.eval(),
        transforms=tuple(transforms),
        grid_size=float(data["grid_size"]) if inputs == "points" else None,
        task=task,
        classes={} if task is None else predicted_classes(model, task),
        units={"energy": "MeV", "momentum": "GeV/c", "vertex": "mm"},
        selection={"energy_threshold": data["energy_threshold"]} if inputs == "points" else {},
        extra={
            "method": config["model"]["class_path"],
            **({"regime": method.get("regime")} if part == "network" else {"branch": branch}),
            "steps": content.get("global_step"),
            "checkpoint": checkpoint.name,
            "data": "simulated by nufm" if root == "simulated" else root,
            "commit": json.loads(git.read_text()).get("commit") if git.is_file() else None,
        },
        source=str(checkpoint),
    )


def _description(entry: object) -> Any:
    """An entry of a configuration as ``nufm.checkpoint.describe`` takes it: YAML leaves empty ``init_args`` out."""
    if not isinstance(entry, dict) or "class_path" not in entry:
        return entry
    arguments = entry.get("init_args") or {}
    return {**entry, "init_args": {k: _description(v) for k, v in arguments.items()}}


def scores_of(source: Path) -> str:
    """Markdown of what a run scored: its report, and those of evaluations in its folder; empty if there are none."""
    run = run_folder(source.parent.parent if source.suffix == ".ckpt" else source) if source.exists() else None
    if run is None:
        return ""
    reports = [run / "report.md", *sorted(run.glob("*/report.md")), *sorted(run.glob("evaluation/*/report.md"))]
    return "\n\n".join(path.read_text(encoding="utf-8").strip() for path in reports if path.is_file())
