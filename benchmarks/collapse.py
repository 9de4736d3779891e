"""Repeats DINO's collapse study (Caron et al., arXiv 2104.14294, Fig. 7) in small, on events simulated by nufm.

Without centering (sharpening only) the targets become one prototype: teacher entropy falls to 0. Without sharpening
(centering only; targets as soft as the student) they become uniform: entropy rises to ln K. In both cases the
Kullback-Leibler divergence falls to 0: nothing is left to learn. Together they balance; so does Sinkhorn-Knopp.

    python benchmarks/collapse.py            # a few minutes on two CPU cores
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from record import REPOSITORY, RESULTS, write_result
from rich.console import Console

from nufm.cli import fit
from nufm.commands.pretrain import PretrainCLI

CONFIG = REPOSITORY / "configs" / "tiny" / "panda.yaml"
VARIANTS = {
    "sharpening only": ("sharpening", 0.03),
    "centering only": ("centering", 0.1),
    "centering + sharpening": ("centering", 0.03),
    "Sinkhorn-Knopp": ("sinkhorn", 0.03),
}
CURVES = ("mask_teacher_entropy", "mask_kl")


def curves(folder: str, name: str, targets: str, temperature: float, steps: int) -> dict[str, list[float]]:
    """Entropy and divergence of the mask loss over the steps of one short run, in nats."""
    cli = PretrainCLI(
        [
            f"--config={CONFIG}",
            f"--run={folder}/{name.replace(' ', '_')}",
            f"--trainer.max_steps={steps}",
            "--trainer.log_every_n_steps=5",
            "--data.batch_size=4",
            "--data.views.max_points=512",
            f"--model.targets={targets}",
            f"--model.teacher_temperature=[{temperature}, {temperature}]",
        ]
    )
    fit(cli, Console(stderr=True))
    with open(cli.run_dir / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/mask_kl")]
    return {"step": [int(r["step"]) for r in rows]} | {c: [float(r[f"train/{c}"]) for r in rows] for c in CURVES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=75)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        found = {name: curves(folder, name, *variant, steps) for name, variant in VARIANTS.items()}
    uniform = math.log(PretrainCLI([f"--config={CONFIG}"], build=False).config.model.init_args.prototypes)

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    titles = ("teacher entropy (nats)", "Kullback-Leibler divergence (nats)")
    for ax, curve, title in zip(axes, CURVES, titles, strict=True):
        for name, values in found.items():
            ax.plot(values["step"], values[curve], label=name)
        ax.set(xlabel="step", title=title, ylim=(-0.1, None))
        ax.grid(alpha=0.3)
    axes[0].axhline(uniform, color="grey", ls=":", lw=1)
    axes[0].annotate("ln K: uniform", (0, uniform), va="bottom", color="grey")
    axes[1].legend(frameon=False)
    figure.suptitle("Collapse study, mask loss (events simulated by nufm)")
    figure.savefig(RESULTS / "collapse.png", dpi=130)

    lines = ["| targets | teacher entropy, last | KL divergence, last |", "|---|---:|---:|"]
    lines += [f"| {name} | {v[CURVES[0]][-1]:.3f} | {v[CURVES[1]][-1]:.3f} |" for name, v in found.items()]
    lines.append(f"\nNats, after {steps} steps of the mask loss; uniform targets have ln K = {uniform:.3f}.\n")
    result = {"seed": 0, "data": "simulated by nufm", "variants": found, "uniform_entropy": uniform}
    write_result("collapse", result, "\n".join(lines))


if __name__ == "__main__":
    main()
