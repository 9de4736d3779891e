"""Which file a name stands for: an export, a run, released weights, or a model on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LIGHTNING = ".ckpt"  # how files of released PoLAr-MAE weights end
RELEASED = (".pth", ".pt", ".safetensors", LIGHTNING)  # how files of released weights end
HUB = "hf://"
MARK = "nufm_version"  # in the metadata of our own files of weights


def find_export(source: str | Path) -> Path:
    """The ``config.json`` of an export, or else the file or folder of released weights.

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: a file that is neither.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _folder(path)
    name = str(source)
    if hub_name(source) is not None:
        place = _download(name.removeprefix(HUB), explicit=name.startswith(HUB))
        if not place.is_dir():
            return _file(place)
        if not any(place.glob("*.safetensors")):
            raise FileNotFoundError(
                f"the model '{name}' of the Hugging Face Hub holds no .safetensors file; name a file of it, e.g. "
                f"{HUB}{name.removeprefix(HUB)}/panda_base.pth"
            )
        return _folder(place)
    raise FileNotFoundError(
        f"{path}: no such file or folder; expected an export folder, a run folder or hf://owner/name"
    )


def hub_name(source: str | Path) -> str | None:
    """owner/name on the Hugging Face Hub, if that is what ``source`` stands for."""
    name = str(source)
    if Path(source).expanduser().exists():
        return None
    if not name.startswith(HUB) and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        return None
    return "/".join(name.removeprefix(HUB).partition("@")[0].split("/")[:2])


def _file(path: Path) -> Path:
    if path.name == CONFIG or (path.name == WEIGHTS and _is_ours(path.parent / CONFIG)):
        return _folder(path.parent)
    if path.suffix == ".safetensors" and is_our_weights(path):
        raise FileNotFoundError(f"{path.parent / CONFIG}: no such file; an export holds {WEIGHTS} and {CONFIG}")
    if path.suffix in RELEASED:
        return path
    raise ValueError(
        f"{path}: not an export; give the export folder, the run folder, or released weights "
        f"({', '.join('*' + s for s in RELEASED)})"
    )


def _folder(path: Path) -> Path:
    for folder in (path, path / "export"):
        if (folder / CONFIG).is_file() and _is_ours(folder / CONFIG):
            return folder / CONFIG
    if any(not is_our_weights(file) for file in path.glob("*.safetensors")):
        return path  # a mirror of released weights
    found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{path}: neither an export ({WEIGHTS}, {CONFIG}) nor a run with an export/ in it, found "
        f"{found}; a run writes its export when it ends, and python scripts/export.py makes one before that"
    )


def _is_ours(config: Path) -> bool:
    """Whether a ``config.json`` is of our format; one that cannot be read is left to the reader, which says why."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return True
    return not isinstance(content, dict) or "format" in content


def is_our_weights(path: Path) -> bool:
    """Whether a safetensors file was written by nufm: without its config it says too little to be used."""
    try:
        with safe_open(path, framework="pt") as file:
            return MARK in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # its reader says what is wrong


def _download(name: str, explicit: bool) -> Path:
    """A model on the Hugging Face Hub: the folder of its weights and config, or the one file named; nothing else."""
    from huggingface_hub import hf_hub_download, snapshot_download  # imported here: slow to import, rarely needed

    name, _, revision = name.partition("@")
    owner_and_name, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    try:
        if file:
            return Path(hf_hub_download(owner_and_name, file, revision=revision or None))
        return Path(
            snapshot_download(name, revision=revision or None, allow_patterns=["*.safetensors", CONFIG])
        )
    except Exception as error:  # "no network" and "no such model" are errors of several libraries
        here = "" if explicit else f"there is no folder '{name}' here, and "
        raise FileNotFoundError(
            f"{here}the model '{name}' could not be downloaded from the Hugging Face Hub: {error}"
        ) from error
