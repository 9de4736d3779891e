"""The model card of an export: what it is, what it expects, how it is used, in Markdown for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from nufm.checkpoint.describe import describe_model
from nufm.checkpoint.files import CONFIG, WEIGHTS
from nufm.checkpoint.kinds import WORDS
from nufm.checkpoint.pretrained import Pretrained
from nufm.checkpoint.sizes import parameter_count
from nufm.data.tasks import task_named

TAGS = {"points": ("lartpc", "point-cloud"), "streams": ("calorimeter",), "images": ("lartpc", "image-classification")}
NO_LICENCE = "not stated: ask who trained it before you pass it on"


def model_card(pretrained: Pretrained, title: str, licence: str | None = None, scores: str = "") -> str:
    """README.md of an export.

    Args:
        pretrained: what is exported.
        title: name of the model.
        licence: of the weights, e.g. MIT; None says that it is not stated.
        scores: Markdown about what the model scored, and on what; empty if it was not scored.

    Returns:
        The text; its head is what the Hugging Face Hub reads.
    """
    model, task = pretrained.model, pretrained.task
    parameters = parameter_count(model)
    head = ["---", f"license: {(licence or 'unknown').lower()}", "library_name: nufm", "tags:"]
    head += [f"- {tag}" for tag in ("neutrino", *TAGS[pretrained.inputs], *([task] if task else []))]
    parts = ["\n".join([*head, "---"]), f"# {title}", _purpose(pretrained, parameters)]
    parts += ["## Architecture", _table({"part": "parameters"}, _parts(model))]
    described = json.dumps(describe_model(model), indent=1)
    described = re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), described)  # lists of numbers in one line
    parts += [f"Constructor arguments, as in `{CONFIG}`:", f"```json\n{described}\n```"]
    if pretrained.classes:
        rows = {
            f"{label}{' (predicted)' if task and label in task_named(task).labels else ''}": ", ".join(
                f"{i} {name}" for i, name in enumerate(names)
            )
            for label, names in pretrained.classes.items()
        }
        parts += ["## Classes", _table({"label": "classes"}, rows)]
    steps = [f"{i + 1}. `{transform!r}`" for i, transform in enumerate(pretrained.transforms)]
    before = "Before packing:" if pretrained.inputs != "points" else (
        f"Voxels with more than {pretrained.energy_threshold} MeV are kept. Then, before packing on a lattice of "
        f"{pretrained.grid_size} (units of the transformed coordinates):"
    )
    parts += ["## Preprocessing", before + "\n\n" + "\n".join(steps)]
    if pretrained.units:
        parts += ["## Units", _table({"quantity": "unit"}, pretrained.units)]
    training = {k: v for k, v in _flat(pretrained.extra).items() if v is not None and k != "licence"}
    parts += ["## Training", _table({"what": "value"}, training) if training else "Not recorded."]
    parts += ["## Scores", _sunk(scores).strip() or "Not scored before the export."]
    parts += ["## Use", f"```python\n{_usage(pretrained)}\n```"]
    parts += [
        f"`{WEIGHTS}` holds arrays only and `{CONFIG}` names classes of nufm only: loading runs no code from here.",
        "## Licence",
        f"Weights: {licence or NO_LICENCE}.",
    ]
    return "\n\n".join(parts) + "\n"


def _purpose(pretrained: Pretrained, parameters: int) -> str:
    name = type(pretrained.model).__name__
    if pretrained.task is None:
        of = {"points": "every voxel of an event", "streams": "an event with several streams", "images": "pixel maps"}[
            pretrained.inputs
        ]
        return f"An encoder ({name}, {parameters:,} parameters): features for {of}."
    task = task_named(pretrained.task)
    what = {
        "semantic": "a class for every voxel",
        "panoptic": "instances, and a class for each of them",
        "event": "what an event is: " + ", ".join((*task.labels, *getattr(task, "quantities", ()))),
    }[task.kind]
    return f"{name}, {parameters:,} parameters. Task `{task.name}`: {what}."


def _parts(model: nn.Module) -> dict[str, str]:
    counts = {name: parameter_count(child) for name, child in model.named_children()}
    counts |= {name: parameter_count(p) for name, p in model.named_parameters(recurse=False)}
    return {f"`{name}`": f"{count:,}" for name, count in counts.items() if count}


def _usage(pretrained: Pretrained) -> str:
    lines = ["import nufm", "", 'model = nufm.from_pretrained("FOLDER")']
    if pretrained.inputs != "points":
        if pretrained.task is None:
            module, _, reader = WORDS[pretrained.inputs][1].rpartition(".")
            lines = ["import nufm", f"from {module} import {reader}", "", *lines[2:]]
            return "\n".join([*lines, f'model.features({reader}("events.h5")[0])'])
        lines.append('for event in model.predict("events.h5"):  # probability and value: one entry per quantity')
        return "\n".join([*lines, "    print(event.name, event.probability, event.value)"])
    if pretrained.task is None:
        lines = ["import nufm", "from nufm.data.pilarnet import PILArNetReader", "", *lines[2:]]
        return "\n".join([*lines, 'event = PILArNetReader("events.h5", min_points=0)[0]', "model.features(event)"])
    fields = "label, confidence, probability" + (
        "" if task_named(pretrained.task).kind == "semantic" else ", instance"
    )
    lines.append(f'for event in model.predict("events.h5"):  # {fields}: one row per voxel')
    return "\n".join([*lines, "    print(event.name, event.label)"])


def _table(head: Mapping[str, str], rows: Mapping[str, Any]) -> str:
    ((left, right),) = head.items()
    return "\n".join([f"| {left} | {right} |", "|---|---|", *(f"| {_cell(k)} | {_cell(v)} |" for k, v in rows.items())])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _sunk(markdown: str) -> str:
    """Headings two levels down; pictures and links to files that do not come along left out."""
    lines = [line for line in markdown.splitlines() if not re.match(r"\s*!\[", line)]
    return "\n".join(re.sub(r"^(#+)", r"##\1", line) for line in lines)
