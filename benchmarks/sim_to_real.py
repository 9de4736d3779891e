"""From simulation to reality: a model trained on simulated events only, scored on the genuine PILArNet-M event.

    python scripts/finetune.py … && python benchmarks/sim_to_real.py RUN

The genuine event (tests/data/pilarnet_m_event.h5) is never trained on. Target: macro-F1 of at least 0.85 over the motif
classes that it holds. Beside it the score of the same model on simulated test events, over the same classes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import yaml
from record import RESULTS, provenance, save

from nufm.checkpoint import Pretrained, from_pretrained
from nufm.data.datamodule import PointDataModule
from nufm.data.event import MOTIF_NAMES
from nufm.data.pilarnet import PILArNetReader
from nufm.evaluation import evaluate, write_evaluation
from nufm.evaluation.tables import percent, table

GENUINE = Path(__file__).resolve().parents[1] / "tests" / "data" / "pilarnet_m_event.h5"
TARGET = 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of scripts/finetune.py, task motif")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = from_pretrained(options.run)
    config = yaml.safe_load((options.run / "config.yaml").read_text())
    only_simulated(config, options.run)
    genuine = PILArNetReader(GENUINE, model.energy_threshold, min_points=0)
    with tempfile.TemporaryDirectory() as folder:
        real = write_evaluation(model, genuine, folder)
        options.out.mkdir(parents=True, exist_ok=True)
        for ours, theirs in (("best_1.png", "event"), ("confusion.png", "confusion")):
            shutil.copy(Path(folder) / ours, options.out / f"sim_to_real_{theirs}.png")
    for kept in real["examples"].values():
        for event in kept:
            event["name"] = Path(event["name"]).name  # not where this machine keeps the file
    simulated = on_simulated(model, config)
    present = [c for c, n in enumerate(real["points"]["support"]) if n]
    report = {
        **provenance(),
        "seed": config["seed_everything"],
        "data": "genuine PILArNet-M event (scores); simulated by nufm (training)",
        "model": {"class": type(model.model).__name__, **{k: v for k, v in model.extra.items() if k != "pretrained"}},
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "training": {
            k: config["data"]["init_args"][k] for k in ("n_train", "max_events", "batch_size", "simulation_seed")
        },
        "git": json.loads((options.run / "git.json").read_text())["commit"],
        "target": TARGET,
        "genuine": real,
        "simulated_test_events": simulated,
    }
    text = markdown(real, simulated, present, report)
    save(options.out, "sim_to_real", report, text)
    print(text)


def only_simulated(config: dict, run: Path) -> None:
    """Raises SystemExit unless a run, and the pretraining it started from, saw simulated events alone."""
    data = config["data"]["init_args"]
    if data["root"] != "simulated" or data["splits"]:
        raise SystemExit(f"{run}: data.root is '{data['root']}', expected a run on 'simulated' events")
    if config.get("pretrained"):
        before = Path(config["pretrained"])
        if not (before / "config.yaml").is_file():
            raise SystemExit(f"{before}: no config.yaml: what its encoder was pretrained on cannot be told")
        only_simulated(yaml.safe_load((before / "config.yaml").read_text()), before)


def on_simulated(model: Pretrained, config: dict) -> dict:
    """Scores on the simulated test events that the run kept."""
    names = ("root", "n_train", "n_val", "n_test", "simulation_seed", "min_points", "max_eval_events")
    data = PointDataModule(**{name: config["data"]["init_args"][name] for name in names})
    return evaluate(model, data.reader("test"))


def markdown(real: dict, simulated: dict, present: list[int], report: dict) -> str:
    rows = []
    for c, name in enumerate(MOTIF_NAMES):
        scores = (percent(real["points"][s][c]) if c in present else "–" for s in ("precision", "recall", "f1"))
        voxels = f"{real['points']['support'][c]:,}" if c in present else "–"
        rows.append([name, voxels, *scores, percent(simulated["points"]["f1"][c])])
    macro = real["points"]["macro_f1_present"]
    f1 = simulated["points"]["f1"]
    same = sum(f1[c] for c in present) / len(present)
    rows.append(["**macro, classes present**", "", "", "", f"**{percent(macro)}**", percent(same)])
    state = "met" if macro >= TARGET else "not met"
    model = report["model"]
    return (
        table(["class", "voxels", "precision", "recall", "F1, genuine event", "F1, simulated test events"], rows)
        + f"\nScores × 100. Target: macro-F1 ≥ {100 * TARGET:.0f} over the classes present: {state}. {model['class']} "
        f"({report['parameters']:,} parameters, regime {model['regime']}), trained for {model['steps']} steps of "
        f"{report['training']['batch_size']} simulated events, seed {report['seed']}; {simulated['events']} simulated "
        "test events.\n"
    )


if __name__ == "__main__":
    main()
