"""Exports of image-text models: the adapters alone, and the base that they are read onto.

Such an export is one like any other (see ``nufm.checkpoint.export``): ``model.safetensors`` holds the adapters, and
``config.json`` the prompt (the text of the template, so that its file may change), the classes, the transforms and,
among the arguments of the model, the base: where it was (``base``) and which it was (``base_id``: its name, its kind,
and a digest of its widths and of samples of its weights, see ``nufm.models.vlm_base``).

The base is looked for where it was; if it is somewhere else now, that is said when the export is loaded. Another base
than the one the adapters were trained on is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nufm.checkpoint.describe import is_description

NETWORK = "nufm.models.vlm.VisionLanguageClassifier"


def holds_adapters(config: Mapping[str, Any]) -> bool:
    """Whether the ``config.json`` of an export is of an image-text model, whose base has files of its own."""
    model = config.get("model")
    return is_description(model) and model["class_path"] == NETWORK


def on_base(config: Mapping[str, Any], base: str | Path | None, where: object) -> dict[str, Any]:
    """The configuration of an export with its base where it is now.

    Args:
        config: the content of ``config.json``.
        base: folder of the base, or its name on the Hub; None: where the export says. A relative path is one from
            where the process runs, as in the training, or else from the folders above the export.
        where: the file, for messages.

    Raises:
        ValueError: a base is given, but the export has a model without one; or the export does not say which it was.
        FileNotFoundError: a folder that is not there.
    """
    if not holds_adapters(config):
        if base is not None:
            kind = config["model"]["class_path"] if is_description(config.get("model")) else "no model"
            raise ValueError(f"{where}: holds {kind}, which has no base; load it without 'base'")
        return dict(config)
    changed = copy.deepcopy(dict(config))
    arguments = changed["model"]["init_args"]
    for needed in ("base", "base_id"):
        if not isinstance(arguments.get(needed), str):
            raise ValueError(
                f"{where}: argument '{needed}' is {arguments.get(needed)!r}, expected a name: adapters mean nothing "
                "without the base that they were trained on"
            )
    if base is not None:
        arguments["base"] = str(base)
        return changed
    given = Path(arguments["base"]).expanduser()
    if given.is_dir() or given.is_absolute():
        return changed
    beside = (folder / given for folder in Path(str(where)).resolve().parents)
    found = next((place for place in beside if (place / "config.json").is_file()), None)
    if found is not None:
        arguments["base"] = str(found)
    return changed
