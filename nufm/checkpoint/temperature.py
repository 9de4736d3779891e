"""The temperature of a calibrated classifier of events: kept in its export, applied to what it predicts.

It stands in ``config.json`` as ``extra.temperature``: label -> T. Probabilities softmax(z / T) take the place of
softmax(z); no decision changes. Fitted by ``scripts/study.py calibration``; Guo et al., arXiv 1706.04599.

Shape legend: B events, K classes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nufm.checkpoint.files import CONFIG, find_export

KEY = "temperature"


def tempered(probability: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(z / T) from softmax(z): float64 (..., K), the 1/T-th powers, normalised.

    Raises:
        ValueError: T is not a positive number.
    """
    if not (isinstance(temperature, (int, float)) and temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature!r}, expected a positive number")
    log_p = np.log(np.maximum(np.asarray(probability, dtype=np.float64), np.finfo(np.float32).tiny)) / temperature
    p = np.exp(log_p - log_p.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def kept_temperature(extra: Mapping[str, Any], labels: Iterable[str]) -> dict[str, float]:
    """Label -> T of those labels that have one in ``extra``.

    Raises:
        ValueError: what stands there is no temperature.
    """
    kept = extra.get(KEY, {})
    if not isinstance(kept, Mapping):
        raise ValueError(f"{CONFIG}: extra.{KEY} is {kept!r:.100}, expected label -> positive number")
    return {label: kept[label] for label in labels if label in kept}


def calibrated(probability: Mapping[str, np.ndarray], extra: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Probabilities float32 (B, K) of every label, those with a temperature in ``extra`` with it.

    Raises:
        ValueError: what stands there is no temperature.
    """
    kept = kept_temperature(extra, probability)
    return {
        label: tempered(p, kept[label]).astype(np.float32) if label in kept else p for label, p in probability.items()
    }


def keep_temperature(checkpoint: str | Path, label: str, temperature: float) -> Path:
    """Write a temperature into an export; its weights stay as they are.

    Args:
        checkpoint: run folder or export.
        label: whose probabilities it is for.
        temperature: T.

    Returns:
        The file that was written.

    Raises:
        ValueError: the checkpoint is no export of nufm, or T is not a positive number.
        FileNotFoundError: there is none.
    """
    tempered(np.ones(1), temperature)
    path = find_export(checkpoint)
    if path.name != CONFIG:
        raise ValueError(
            f"{path}: weights in another format than nufm's, which have no place for a temperature; export them first "
            "(python scripts/export.py)"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    extra = config.setdefault("extra", {})
    extra[KEY] = {**extra.get(KEY, {}), label: float(temperature)}
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(config, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path
