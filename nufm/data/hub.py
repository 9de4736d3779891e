"""Data sets on the Hugging Face Hub, as roots of the form ``hf://owner/name`` or ``hf://owner/name@revision``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PREFIX = "hf://"


def download(root: str, splits: Sequence[str] = ("train", "val", "test"), local_only: bool = False) -> Path:
    """Local folder of a data set on the Hub, with its split folders downloaded (progress bar, resumable,
    cached).

    PILArNet-M is 168 GB (train 151, val 9.3, test 7.0): name the splits that are needed. Not tested against
    the Hub
    itself: the tests replace the client, since they run without a network.

    Args:
        root: ``hf://owner/name``, optionally with ``@revision``.
        splits: folders to fetch.
        local_only: use what is there already and do not touch the network (processes other than the first).

    Raises:
        ValueError: ``root`` is not of that form.
    """
    from huggingface_hub import snapshot_download  # imported here: it is slow to import and rarely needed

    name, _, revision = root.removeprefix(PREFIX).partition("@")
    if not root.startswith(PREFIX) or name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(
            f"'{root}' is not a data set on the Hub; expected hf://owner/name or hf://owner/name@revision"
        )
    patterns = [f"{split}/{file}" for split in splits for file in ("*.h5", "*.npy")]
    return Path(
        snapshot_download(
            name,
            repo_type="dataset",
            revision=revision or None,
            allow_patterns=patterns,
            local_files_only=local_only,
        )
    )
