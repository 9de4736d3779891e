"""What the command line says: help for the chosen configuration, and errors that name the key and near
matches.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

KEY = re.compile(r"[Pp]arser key \"([^\"]+)\":\s*(.*)")
CLASS = re.compile(r"Problem with given class_path '([^']+)'")
NOISE = (
    "Does not validate against any of",
    "Subtypes:",
    "Errors:",
    "Given value",
    "- Expected a <class 'NoneType'>",
)


def shorter(message: str, known: Iterable[str]) -> str:
    """jsonargparse's report of a bad setting in one or two lines: where, what, and what it may have been
    meant to be.

    Args:
        message: jsonargparse's text, which walks through all types that a setting could have had.
        known: flags that exist, dotted and without dashes.
    """
    keys: list[str] = []
    found: list[str] = []
    class_path = None
    for line in message.splitlines():
        line = line.strip().removeprefix("- ")
        if key := KEY.match(line):
            keys.append(key.group(1))
            line = key.group(2)
        if named := CLASS.search(line):
            class_path = named.group(1)
            continue
        if line and not line.startswith(NOISE) and not f"- {line}".startswith(NOISE):
            found.append(line)
    where = ".".join(keys)
    what = "; ".join(dict.fromkeys(found)) or message
    names = list(known)
    wrong = None
    if option := re.search(r"[Oo]ption '([^']+)' is not accepted|does not accept option '([^']+)'", what):
        wrong = option.group(1) or option.group(2)
        group = re.search(r"Group '([^']+)'", what)
        where = where or (group.group(1) if group else "")
        if class_path and where:
            names = _arguments_of(class_path)
            what = what.replace("is not accepted", f"is not an argument of {class_path}")
        elif group:
            names = [n.split(".", 1)[1] for n in names if n.startswith(group.group(1) + ".")]
    elif flags := re.search(r"unrecognized arguments: (.*)", what):
        wrong = next(f for f in flags.group(1).split() if f.startswith("-")).split("=")[0].lstrip("-")
    text = f"{where}: {what}" if where else what
    if wrong is not None:
        near = difflib.get_close_matches(wrong, names, n=3, cutoff=0.6)
        if near:
            text += f"\n  did you mean {' or '.join(repr(n) for n in near)}?"
        elif class_path and names:
            text += f"\n  it has: {', '.join(names)}"
    return text


def _arguments_of(class_path: str) -> list[str]:
    return [
        p
        for p in inspect.signature(import_path(class_path)).parameters
        if p not in ("self", "args", "kwargs")
    ]


def import_path(class_path: str) -> Any:
    """The class with this import path."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def run_help(parser: ArgumentParser, description: str, configs: list[Path]) -> str:
    """Help of a run: its own options, the arguments of the configuration's classes, the Trainer's options."""
    settings: dict[str, Any] = {}
    for config in configs:
        settings = _merge(settings, yaml.safe_load(config.read_text()) or {})
    # The parser knows model and data only as "any class": the sections of the classes take their place.
    usage, *sections = re.split(r"\n\n(?=\S)", parser.format_help().rstrip())
    trainer = [s for s in sections if "\n  --trainer.max_steps " in s]
    general = [s for s in sections if s not in trainer and not re.search(r"\n  --(model|data) ", s)]
    classes = []
    for key in ("model", "data"):
        if isinstance(settings.get(key), dict) and "class_path" in settings[key]:
            classes += _class_help(settings[key], key)
    defaults = f"The defaults below are those of {', '.join(str(c) for c in configs)}."
    trainer = [
        s.replace("Customize every aspect of training via flags:", "Lightning's Trainer:") for s in trainer
    ]
    return "\n\n".join([usage, description, *general, defaults, *classes, *trainer]) + "\n"


def _class_help(setting: dict[str, Any], key: str) -> list[str]:
    """Arguments of a class with the configuration's values as defaults, then those of the classes it is
    given.
    """
    cls = import_path(setting["class_path"])
    values = setting.get("init_args") or {}
    nested = {k: v for k, v in values.items() if isinstance(v, dict) and "class_path" in v}
    shown = ArgumentParser(usage="%(prog)s", add_help=False)
    added = shown.add_class_arguments(cls, key, skip=set(nested), fail_untyped=False)
    shown.set_defaults({f"{key}.{k}": v for k, v in values.items() if f"{key}.{k}" in added})
    text = shown.format_help().split("\n", 1)[1].strip()
    parts = [f"{key} = {setting['class_path']}\n{text}"]
    for name, value in nested.items():
        parts += _class_help(value, f"{key}.{name}")
    return parts


def _merge(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        merged[key] = (
            _merge(merged[key], value)
            if isinstance(value, dict) and isinstance(merged.get(key), dict)
            else value
        )
    return merged
