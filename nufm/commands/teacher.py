"""What a teacher says of training events, asked once and kept in the cache.

A file ``teachers/<key>.npz`` holds the names of the events and the probabilities; the key is a digest of the teacher's
export (which names the digest of its weights) and of the files of the events.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from nufm.checkpoint import Pretrained, from_pretrained
from nufm.checkpoint.files import find_export
from nufm.data.cache import cache_folder
from nufm.data.image_datamodule import ImageDataModule
from nufm.methods.distillation import SoftTargets
from nufm.models.image_network import LABEL

log = logging.getLogger(__name__)


class Teacher:
    """A trained network on pixel maps that answers for all training events of a data module.

    When it has answered, its weights are let go: a student needs the memory of a large teacher.

    Args:
        source: run folder or export.
        device: where it runs.
        batch_size: events at a time; an image-text model holds hundreds of megabytes for each.

    Raises:
        ValueError: it is no classifier of interactions in pixel maps.
        FileNotFoundError: there is none.
    """

    def __init__(self, source: str | Path, device: torch.device | str = "cpu", batch_size: int = 8) -> None:
        self.source, self.device, self.batch_size = str(source), device, batch_size
        self._said: dict[Path, SoftTargets] = {}
        self._loaded: Pretrained | None = from_pretrained(source, map_location=device)
        found = self._loaded
        if found.inputs != "images" or LABEL not in found.classes:
            classes = ", ".join(found.classes) or "no classes"
            raise ValueError(
                f"teacher {source}: a {type(found.model).__name__} that takes {found.inputs} and predicts {classes}, "
                f"expected one that takes pixel maps and predicts '{LABEL}': a run of scripts/finetune.py with a "
                "configuration such as configs/tiny/pixelmap_vit.yaml"
            )
        self.export = hashlib.sha256(find_export(source).read_bytes()).hexdigest()

    def __call__(self, data: ImageDataModule) -> SoftTargets:
        """Its answers about the training events, as they are in their files; its own transforms are applied."""
        kept = self.place(data)
        if kept not in self._said:
            self._said[kept] = _read(kept) or self._ask(data, kept)
        self._loaded = None
        return self._said[kept]

    def _ask(self, data: ImageDataModule, kept: Path) -> SoftTargets:
        reader = data.reader("train")
        pretrained = self._loaded or from_pretrained(self.source, map_location=self.device)
        print(f"asking the teacher {self.source} about {len(reader):,} events")
        said = pretrained.predict(reader, batch_size=self.batch_size)
        probability = np.stack([p.probability[LABEL] for p in said]).astype(np.float32)
        targets = SoftTargets(tuple(p.name for p in said), probability)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_name(f".{kept.stem}.{os.getpid()}.npz")
            np.savez(temporary, names=np.array(targets.names), probability=probability)
            os.replace(temporary, kept)
        except OSError as error:
            log.warning("%s: answers cannot be kept (%s); set NUFM_CACHE to a writable folder", kept, error)
        return targets

    def place(self, data: ImageDataModule) -> Path:
        """Where the answers are kept."""
        reader = data.reader("train")
        stats = [(str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns) for p in reader.files]
        # The last: raise it when what is asked changes.
        chosen = (data.max_events, data.subset_seed, len(reader), data.size, data.centre)
        key = json.dumps([self.export, stats, chosen, 1])
        return cache_folder() / "teachers" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"


def _read(kept: Path) -> SoftTargets | None:
    """Answers as they were kept; None if they are not there, or damaged."""
    if not kept.is_file():
        return None
    try:
        with np.load(kept, allow_pickle=False) as content:
            return SoftTargets(tuple(content["names"].tolist()), content["probability"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s: answers cannot be read (%s), asking the teacher again", kept, error)
        return None
