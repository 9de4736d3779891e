"""``scripts/pretrain.py``: pretrain an encoder, export it, probe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from torch import nn

from nufm.checkpoint import save_pretrained
from nufm.cli import REPOSITORY, RunCLI, run
from nufm.commands.inputs import check_labels
from nufm.data.event import MOTIF_NAMES, PID_NAMES
from nufm.methods.linear_probe import OnlineProbe, ProbeSettings
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.token_encoder import TokenEncoder
from nufm.running.folder import git_state

DEFAULT_CONFIG = REPOSITORY / "configs" / "tiny" / "panda.yaml"

# Encoder -> segmentation that starts from it, and the paper's pretraining.
CONFIGS = {
    PointTransformerV3: ("configs/tiny/semantic.yaml", "configs/pretrain/panda.yaml"),
    TokenEncoder: ("configs/tiny/polarmae_semantic.yaml", "configs/pretrain/polarmae.yaml"),
}

USAGE = "python scripts/pretrain.py [--config FILE] [--KEY VALUE ...]"

DESCRIPTION = """\
Pretrain an encoder on unlabelled events, probe it, and write tables and pictures into a run folder.

  python scripts/pretrain.py
      a small run on simulated events, on this machine
  python scripts/pretrain.py --config configs/pretrain/panda.yaml --data.root /data/pilarnet_m
      another configuration with a field changed: every field below can be a flag; flags follow the file
  python scripts/pretrain.py --ckpt_path last
      continue the newest run of this configuration
  python scripts/pretrain.py --config configs/pretrain/panda.yaml --print_config
      show the resolved run, and do nothing
  python scripts/pretrain.py --trainer.logger WandbLogger --trainer.logger.offline true
      log to Weights & Biases too (or TensorBoardLogger); metrics.csv is always written"""


@dataclass(frozen=True)
class ReportOptions:
    """What a run ends with.

    Attributes:
        enabled: probe the encoder and write report.json, report.md and pictures.
        n_events: training events that the probe is fitted on, and as many test events to score it.
        probe: how the probe is fitted.
    """

    enabled: bool = True
    n_events: int = 100
    probe: ProbeSettings = field(default_factory=ProbeSettings)


class PretrainCLI(RunCLI):
    """The command line of a pretraining."""

    usage, description, default_config = USAGE, DESCRIPTION, DEFAULT_CONFIG

    def add_options(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(ReportOptions, "report")

    def splits(self) -> dict[str, str]:
        needed = {"train": ""}
        if self.config.report.enabled:
            needed["test"] = (
                "the report is scored on test events; name them with --data.splits, or train without a report: "
                "--report.enabled false"
            )
        if any(isinstance(callback, OnlineProbe) for callback in self.trainer.callbacks):
            needed["val"] = (
                "OnlineProbe is scored on val events; name them with --data.splits, or leave it out of "
                "trainer.callbacks"
            )
        return needed

    def check(self) -> None:
        super().check()
        data = self.datamodule
        if data.root == "simulated" or data.root.startswith("hf://"):
            return
        for split, remedy in self.splits().items():
            if split != "train":
                try:
                    check_labels(data.reader(split), ["motif"], remedy)
                except ValueError as error:
                    raise ValueError(f"{split} events: {error}\n{remedy}") from None


def pretrain(args: Sequence[str] | None = None) -> None:
    """Run ``scripts/pretrain.py`` with these flags; ends the process with a message and status 2 for a bad setting."""
    run(PretrainCLI, args, finish)


def finish(cli: RunCLI, console: Console) -> None:
    export(cli)
    if cli.config.report.enabled:
        try:
            report(cli)
        except ValueError as error:  # no labels or no test split; the training is done all the same
            console.print(f"no report: {error}", markup=False)


def export(cli: RunCLI) -> None:
    """The trained encoder with its preprocessing, as ``export/`` in the run folder."""
    data = cli.datamodule
    save_pretrained(
        cli.run_dir / "export",
        cli.model.encoder,
        transforms=data.transforms,
        grid_size=data.grid_size,
        classes={"motif": MOTIF_NAMES, "pid": PID_NAMES},
        units={"energy": "MeV", "momentum": "GeV/c", "vertex": "mm"},
        selection={"energy_threshold": data.energy_threshold},
        extra={
            "method": cli.config.model.class_path,
            "steps": cli.trainer.global_step,
            "data": "simulated by nufm" if data.root == "simulated" else data.root,
            "commit": git_state(REPOSITORY)[0]["commit"],
        },
    )


def report(cli: RunCLI) -> None:
    """Probe, tables and pictures of a finished run, and what to try next."""
    from nufm.report import print_table, write_report  # brings the plotting libraries

    options = cli.config_init.report
    cli.model.to(cli.trainer.strategy.root_device)  # Lightning leaves a trained model on the CPU
    found = write_report(cli.model, cli.datamodule, cli.run_dir, options.n_events, options.probe)
    print_table(found, Console())
    run = cli.run_dir
    pictures = ", ".join(sorted(p.name for p in (run / "pictures").glob("*.png")))
    print(f"\nTable: {run / 'report.md'}. Pictures in {run / 'pictures'}: {pictures}.\n\nNext, try")
    for command, what in next_steps(cli.model.encoder, run, a_test_file(cli)):
        print(f"  {command}\n      {what}")


def next_steps(encoder: nn.Module, run: Path, events: Path) -> list[tuple[str, str]]:
    """Commands to try after a pretraining, each with what it does; only configurations that are for this encoder, and
    that are there.

    Args:
        encoder: what was pretrained.
        run: the run folder.
        events: a file of test events.
    """
    segmentation, paper = CONFIGS.get(type(encoder), (None, None))
    steps = [
        (f"python scripts/display.py {events} --event 1 --checkpoint {run}", "draw an event as this encoder sees it")
    ]
    if hasattr(encoder, "tokenizer"):
        steps[0] = (f"{steps[0][0]} --tokens", "draw an event as this encoder sees it, and its tokens")
    if segmentation is not None:
        command = f"python scripts/finetune.py --config {segmentation} --pretrained {run}"
        steps.append((command, "segmentation, learnt from labels with this encoder"))
    steps.append(
        (f"python scripts/pretrain.py --config {run / 'config.yaml'} --seed_everything 1", "the run again, changed")
    )
    if paper is not None and (REPOSITORY / paper).is_file():
        steps.append((f"python scripts/pretrain.py --config {paper} --data.root DIR", "the paper's run (GPUs)"))
    return steps


def a_test_file(cli: RunCLI) -> Path:
    """A file of test events, to draw from."""
    path = cli.datamodule.split_path("test")
    return next(iter(sorted(path.glob("**/*.h5"))), path) if path.is_dir() else path
