"""What a teacher says of training events, asked once and kept in the cache.

A file ``teachers/<key>.npz`` holds the probabilities, in the order of the reader; events are named as the present
reader names them, however the path was written when the teacher was asked. The key is a digest of the teacher's export
(which names the digest of its weights), of the arguments that its model was built with (the words of a question among
them), and of what is asked about: the files, which of their events, and how their values are read.
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
from nufm.checkpoint.describe import describe_model
from nufm.checkpoint.files import find_export
from nufm.data.cache import cache_folder
from nufm.data.image_datamodule import ImageDataModule
from nufm.data.image_files import ImageReader
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
        self._said: dict[Path, np.ndarray] = {}
        self._loaded: Pretrained | None = from_pretrained(source, map_location=device)
        found = self._loaded
        if found.inputs != "images" or LABEL not in found.classes:
            classes = ", ".join(found.classes) or "no classes"
            raise ValueError(
                f"teacher {source}: a {type(found.model).__name__} that takes {found.inputs} and predicts {classes}, "
                f"expected one that takes pixel maps and predicts '{LABEL}': a run of scripts/finetune.py with a "
                "configuration such as configs/tiny/pixelmap_vit.yaml"
            )
        built = json.dumps(describe_model(found.model), sort_keys=True)
        self.export = hashlib.sha256(find_export(source).read_bytes() + built.encode()).hexdigest()

    def __call__(self, data: ImageDataModule) -> SoftTargets:
        """Its answers about the training events, as they are in their files; its own transforms are applied."""
        kept, reader = self.place(data), data.reader("train")
        if kept not in self._said:
            found = _read(kept, len(reader))
            self._said[kept] = self._ask(reader, kept) if found is None else found
        self._loaded = None
        return SoftTargets(tuple(reader.name(i) for i in range(len(reader))), self._said[kept])

    def _ask(self, reader: ImageReader, kept: Path) -> np.ndarray:
        pretrained = self._loaded or from_pretrained(self.source, map_location=self.device)
        print(f"asking the teacher {self.source} about {len(reader):,} events")
        said = pretrained.predict(reader, batch_size=self.batch_size)
        probability = np.stack([p.probability[LABEL] for p in said]).astype(np.float32)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_name(f".{kept.stem}.{os.getpid()}.npz")
            np.savez(temporary, probability=probability)
            os.replace(temporary, kept)
        except OSError as error:
            log.warning("%s: answers cannot be kept (%s); set NUFM_CACHE to a writable folder", kept, error)
        return probability

    def place(self, data: ImageDataModule) -> Path:
        """Where the answers are kept."""
        reader = data.reader("train")
        stats = [(str(p.resolve()), (s := p.stat()).st_size, s.st_mtime_ns) for p in reader.files]
        chosen = (data.max_events, data.subset_seed, len(reader))
        values = (reader.shape, reader.pitch, reader.unit, data.centre, data.detector)
        # The last: raise it when what is asked, or kept, changes.
        key = json.dumps([self.export, stats, chosen, values, 2])
        return cache_folder() / "teachers" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"


def _read(kept: Path, n_events: int) -> np.ndarray | None:
    """Answers (n, K) as they were kept; None if they are not there, or damaged."""
    if not kept.is_file():
        return None
    try:
        with np.load(kept, allow_pickle=False) as content:
            probability = content["probability"]
        if probability.ndim != 2 or len(probability) != n_events:
            raise ValueError(f"found {probability.shape}, expected {n_events} rows")
        return probability
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s: answers cannot be read (%s), asking the teacher again", kept, error)
        return None
