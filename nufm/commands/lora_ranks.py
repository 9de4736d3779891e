"""How large adapters have to be: the run of an image-text model again with other ranks (``study.py lora_rank``).

arXiv 2509.08461 uses rank 8 and alpha 16 and asks what 4 and 16 would do. Here alpha goes with the rank, alpha / rank
stays what it was in the run: adapters of all ranks are scaled alike. Everything else is the run's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nufm.checkpoint import Pretrained, from_pretrained
from nufm.commands.inputs import run_folder
from nufm.data.images import ImageEvent
from nufm.evaluation.class_scores import (
    change,
    class_probabilities,
    classified_label,
    scores_of,
    true_classes,
    without_temperature,
)
from nufm.evaluation.event_scores import check_events, plain
from nufm.evaluation.tables import percent, table

RANKS = (4, 8, 16)
FINETUNE = "from nufm.commands.finetune import finetune; finetune()"


def lora_ranks(
    checkpoint: str,
    events: Sequence[ImageEvent],
    folder: Path,
    *,
    ranks: Sequence[int] = RANKS,
    seeds: Sequence[int] = (0,),
    batch_size: int = 16,
    threads: int | None = None,
    device: Any = "cpu",
) -> dict[str, Any]:
    """Train what is not there, and score all of it on the same events.

    Args:
        checkpoint: run folder of an image-text model, whose settings are taken.
        events: a reader or a list, with truth.
        folder: of the runs, ``rank-R-seed-S``; finished ones are kept. The run itself is that of its rank and seed, if
            its events came in the order of that seed, too.
        ranks: of the adapters.
        seeds: of the trainings: initial adapters and order of the events.
        batch_size: events at a time, for the scores.
        threads: CPU threads of each training.
        device: where the models are scored.

    Returns:
        ``label``, ``classes``, ``events``, ``support``, ``alpha_over_rank``, ``runs_in``, and ``rows``: of each rank
        ``rank``, ``alpha``, ``trainable`` (parameters of the adapters) and ``runs``: of each seed the scores of
        :func:`nufm.evaluation.robustness.scores_of`, with changes against the smallest rank of the same seed.

    Raises:
        ValueError: no run of a model with adapters, a rank below 1, or a training that failed, with the end of its log.
    """
    settings = run_settings(checkpoint)
    if not ranks or min(ranks) < 1:
        raise ValueError(f"lora_rank: ranks are {list(ranks)}, expected whole numbers of at least 1")
    network = settings["model"]["init_args"]["network"]["init_args"]
    ratio = network["alpha"] / network["rank"]
    ranks = sorted(set(ranks))
    own = own_training(settings)
    made = {
        (rank, seed): run_folder(checkpoint) if (rank, seed) == own else folder / f"rank-{rank}-seed-{seed}"
        for seed in seeds
        for rank in ranks
    }
    for (rank, seed), run in made.items():
        if (rank, seed) != own:
            _train(checkpoint, run, rank, ratio * rank, seed, threads)
    rows: list[dict[str, Any]] = [{"rank": r, "alpha": ratio * r, "runs": []} for r in ranks]
    classes: list[str] = []
    target = np.zeros(0, dtype=int)
    for seed in seeds:
        first = None
        for row in rows:
            model = from_pretrained(made[row["rank"], seed], map_location=device)
            check_events(model, events)
            label = classified_label(model)
            classes = list(model.classes[label])
            probability, target = predictions(model, events, batch_size)
            scores = {"seed": seed, **scores_of(probability, target)}
            if first is None:
                first = probability
            else:
                scores |= change(first, probability, target)
            row["runs"].append(scores)
            row["trainable"] = sum(p.numel() for _, p in model.model.adapter_parameters())
    return plain(
        {
            "label": label,
            "classes": classes,
            "events": len(target),
            "support": np.bincount(target, minlength=len(classes)).tolist(),
            "alpha_over_rank": ratio,
            "runs_in": str(folder),
            "rows": rows,
        }
    )


def predictions(pretrained: Pretrained, events: Sequence[ImageEvent], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, K) and classes (n,) of the events whose class is known; without the temperature that the run's
    own export may keep, since runs of other ranks have none."""
    target = true_classes(events, classified_label(pretrained))
    found = class_probabilities(without_temperature(pretrained), events, batch_size, progress=True)
    return found[target >= 0], target[target >= 0]


def run_settings(checkpoint: str) -> dict[str, Any]:
    """The settings of a run of an image-text model.

    Raises:
        ValueError: it is no run, or the network has no adapters.
    """
    run = run_folder(checkpoint)
    if run is None:
        raise ValueError(
            f"{checkpoint}: lora_rank repeats a run with other ranks and needs its folder with config.yaml; found none"
        )
    settings = yaml.safe_load((run / "config.yaml").read_text())
    network = (settings.get("model", {}).get("init_args") or {}).get("network") or {}
    if not {"rank", "alpha"} <= set(network.get("init_args") or {}):
        raise ValueError(
            f"{run}: trains a {network.get('class_path', 'network')}, which has no adapters; expected a run of an "
            "image-text model (configs/tiny/pixelmap_vlm.yaml)"
        )
    return settings


def own_training(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rank and seed that a run's own settings stand for; None if it has one seed for the adapters and another for the
    order of its events, which no training here has."""
    seed = settings.get("seed_everything")
    of_events = (settings.get("data", {}).get("init_args") or {}).get("seed", 0)
    rank = settings["model"]["init_args"]["network"]["init_args"]["rank"]
    return None if isinstance(seed, bool) or seed is None or seed != of_events else (rank, seed)


def _train(checkpoint: str, folder: Path, rank: int, alpha: float, seed: int, threads: int | None) -> None:
    """One training in a process of its own, unless it is there."""
    if (folder / "export").is_dir() and any((folder / "export").iterdir()):
        return
    config = run_folder(checkpoint) / "config.yaml"
    flags = ["--config", str(config.resolve()), "--run", str(folder.resolve()), "--evaluation.enabled", "false"]
    flags += ["--model.network.rank", str(rank), "--model.network.alpha", str(alpha)]
    flags += ["--seed_everything", str(seed), "--data.seed", str(seed)]
    flags += ["--threads", str(threads)] if threads else []
    if any((folder / "checkpoints").glob("*.ckpt")):
        flags += ["--ckpt_path", "last"]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    print(f"rank {rank}, seed {seed}: training, see {log}", flush=True)
    with open(log, "a") as out:
        command = [sys.executable, "-c", FINETUNE, *flags]
        status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ)).returncode
    if status:
        raise ValueError(f"the training with rank {rank} failed, see {log}:\n{log.read_text()[-1500:]}")


def markdown(found: dict[str, Any]) -> str:
    """The table of a study of ranks."""
    rows = []
    for row in found["rows"]:
        runs = row["runs"]
        rows.append(
            [
                f"{row['rank']}, alpha {row['alpha']:g}", f"{row['trainable']:,}",
                *(_spread([r[s] for r in runs]) for s in ("accuracy", "macro_auc", "expected_error")),
                _moved(runs),
            ]
        )  # fmt: skip
    head = ["rank", "trainable", "accuracy", "macro AUC", "ECE", "accuracy against the smallest"]
    seeds = [r["seed"] for r in found["rows"][0]["runs"]]
    origin = ", simulated by nufm" if found.get("simulated") else ""
    support = ", ".join(f"{n:,} {c}" for c, n in zip(found["classes"], found["support"], strict=True))
    text = (
        f"In per cent, over {found['events']:,} events{origin}: {support}. Trainings with seed "
        f"{', '.join(map(str, seeds))}{'; mean ± standard deviation over the seeds' if len(seeds) > 1 else ''}. Last "
        "column: of each seed, with the standard error from the events (pairs; bootstrap), which does not hold how a "
        "training differs from the next. alpha / rank as in the run. Published: rank 8 alone.\n"
    )
    return f"{table(head, rows)}\n{text}"


def _spread(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    around = f" ± {percent(float(np.std(known, ddof=1)))}" if len(known) > 1 else ""
    return f"{percent(float(np.mean(known)))}{around}"


def _moved(runs: Sequence[dict[str, Any]]) -> str:
    moved = [
        f"{100 * r['accuracy_change']:+.1f} ± {100 * r['accuracy_change_error']:.1f}"
        for r in runs
        if r.get("accuracy_change") is not None
    ]
    return "; ".join(moved) or "–"
