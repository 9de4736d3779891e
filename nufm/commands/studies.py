"""What each name of ``scripts/study.py`` does: numbers, table and picture of a study of a classifier of pixel maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nufm.checkpoint.temperature import keep_temperature
from nufm.commands.lora_ranks import lora_ranks
from nufm.commands.lora_ranks import markdown as ranks_table
from nufm.data.images import ImageEvent
from nufm.display.studies import Bars, Curves, reliability_pair, study_bars, study_curves
from nufm.evaluation import faithfulness, prompting, robustness, temperature
from nufm.evaluation.robustness import NOMINAL

if TYPE_CHECKING:
    from nufm.commands.inputs import Opened

ROBUST = {
    "resolution": "Coarser pixels",
    "noise": "Noise on every pixel",
    "dead_pixels": "Dead pixels and columns",
    "missing_view": "A view missing",
    "gain": "Gain errors",
}
SCORES = {"accuracy": "accuracy", "macro_auc": "macro AUC", "expected_error": "expected calibration error"}


@dataclass(frozen=True)
class Done:
    """A study that was made.

    Attributes:
        found: for the JSON.
        title: in words.
        markdown: table and text of what the JSON holds.
        draw: (what the JSON holds, path, heading) -> picture.
    """

    found: dict[str, Any]
    title: str
    markdown: Callable[[dict[str, Any]], str]
    draw: Callable[[dict[str, Any], Path, str], object]


def study_of(name: str, began: Opened, events: Sequence[ImageEvent], out: Path) -> Done:
    """Make a study.

    Args:
        name: of the study.
        began: settings, model and data.
        events: to score.
        out: folder of what a study keeps beside its results.

    Raises:
        ValueError: the model or the events are not what the study needs.
    """
    if name in ROBUST:
        return _robustness(name, began, events)
    made = {
        "calibration": _calibration,
        "few_shot": _few_shot,
        "prompt": _prompt,
        "lora_rank": _lora_rank,
        "faithfulness": _faithfulness,
    }
    return made[name](began, events, out)


# ---------------------------------------------------------------------- worse events


def _robustness(name: str, began: Opened, events: Sequence[ImageEvent]) -> Done:
    options = began.options
    made = robustness.study_named(name, options.suppression, events[0].unit)
    levels = robustness.levels_of(made, options.levels)
    found = robustness.sweep(began.pretrained, events, levels, batch_size=began.data.batch_size, seed=options.seed)
    found = {k: v for k, v in found.items() if k not in ("probability", "target")}
    found["axis"] = made.axis
    draw = functools.partial(_draw_cases, "levels") if name == "missing_view" else functools.partial(_draw_curves, name)
    return Done(found, ROBUST[name], robustness.markdown, draw)


def _draw_curves(name: str, found: dict[str, Any], path: Path, title: str) -> None:
    rows = [row for row in found["levels"] if "refused" not in row]
    series = list(dict.fromkeys(row["series"] for row in rows[1:])) or [NOMINAL]
    panels = []
    for score, words in SCORES.items():
        lines = {
            s: [(r["value"], r[score], r.get(f"{score}_error")) for r in rows if r["series"] in (s, NOMINAL)]
            for s in series
        }
        panels.append(Curves(words, found["axis"], lines, _largest(found, score), name == "resolution"))
    study_curves(panels, path, title)


def _draw_cases(part: str, found: dict[str, Any], path: Path, title: str) -> None:
    rows = [row for row in found[part] if "refused" not in row]
    panels = [
        Bars(words, [r[s] for r in rows], [r.get(f"{s}_error") for r in rows], _largest(found, s))
        for s, words in SCORES.items()
    ]
    study_bars([row["words"] for row in rows], panels, path, title)


def _largest(found: dict[str, Any], score: str) -> float | None:
    """The score of whoever always says the largest class."""
    return {"accuracy": max(found["support"]) / found["events"], "macro_auc": 0.5}.get(score)


# ---------------------------------------------------------------------- calibration


def _calibration(began: Opened, events: Sequence[ImageEvent], out: Path) -> Done:
    options, data = began.options, began.data
    if options.events is None and options.split == options.fit_split:
        raise ValueError(
            f"calibration: the temperature would be judged on the events that it was fitted on (split "
            f"'{options.split}'); give another --split or --fit_split"
        )
    fitted_on = data.open(options.fit_split, None, None)
    found = temperature.calibration_study(began.pretrained, fitted_on, events, batch_size=data.batch_size)
    if options.keep:
        found["kept_in"] = str(keep_temperature(options.checkpoint, found["label"], found["fit"]["temperature"]))

    def draw(found: dict[str, Any], path: Path, title: str) -> None:
        sides = {"T = 1": found["before"], f"T = {found['fit']['temperature']:.2f}": found["after"]}
        reliability_pair(sides, path, title)

    return Done(found, "Calibration with a temperature", temperature.markdown, draw)


# ---------------------------------------------------------------------- image-text models


def _few_shot(began: Opened, events: Sequence[ImageEvent], out: Path) -> Done:
    options, data = began.options, began.data
    prompting.vlm_of(began.pretrained)  # refuses other networks before the training events are made
    training = data.open("train", None, None)
    settings = {"batch_size": data.batch_size, "draws": options.draws, "seed": options.seed}
    found = prompting.few_shot(began.pretrained, training, events, **settings)
    return Done(found, "Examples in the question", prompting.markdown, functools.partial(_draw_cases, "rows"))


def _prompt(began: Opened, events: Sequence[ImageEvent], out: Path) -> Done:
    settings = {"batch_size": began.data.batch_size}
    found = prompting.prompt_ablation(began.pretrained, events, began.options.prompts, **settings)
    return Done(found, "Words of the question", prompting.markdown, functools.partial(_draw_cases, "rows"))


def _lora_rank(began: Opened, events: Sequence[ImageEvent], out: Path) -> Done:
    options = began.options
    found = lora_ranks(
        options.checkpoint,
        events,
        out / "lora_rank",
        ranks=options.ranks,
        seeds=options.seeds,
        batch_size=began.data.batch_size,
        threads=options.threads,
        device=next(began.pretrained.model.parameters()).device,
    )

    def draw(found: dict[str, Any], path: Path, title: str) -> None:
        panels = []
        for score, words in SCORES.items():
            lines = {
                f"seed {r['seed']}": [
                    (row["rank"], row["runs"][i][score], row["runs"][i].get(f"{score}_error")) for row in found["rows"]
                ]
                for i, r in enumerate(found["rows"][0]["runs"])
            }
            panels.append(Curves(words, "rank", lines, _largest(found, score), doubling=True))
        study_curves(panels, path, title)

    return Done(found, "Rank of the adapters", ranks_table, draw)


def _faithfulness(began: Opened, events: Sequence[ImageEvent], out: Path) -> Done:
    options = began.options
    settings = {"batch_size": began.data.batch_size, "patches": options.patches, "seed": options.seed}
    found = faithfulness.faithfulness(began.pretrained, events, **settings)

    def draw(found: dict[str, Any], path: Path, title: str) -> None:
        faithfulness.draw(found, events, path, title, options.seed)

    return Done(found, "Faithfulness of explanations", faithfulness.markdown, draw)
