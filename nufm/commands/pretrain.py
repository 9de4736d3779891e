"""``scripts/pretrain.py``: pretrain an encoder, export it, probe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from torch import nn

from nufm.checkpoint import check_compatible, from_pretrained, save_pretrained
from nufm.cli import REPOSITORY, RunCLI, run
from nufm.commands.inputs import check_labels, run_folder, take_transforms
from nufm.data.event import MOTIF_NAMES, PID_NAMES
from nufm.data.streams import HIT_TRUTH
from nufm.methods.event_probe import truth_of
from nufm.methods.linear_probe import OnlineProbe, ProbeSettings
from nufm.methods.masked_calorimeter import MaskedCalorimeter
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.stream_encoder import StreamEncoder
from nufm.models.token_encoder import TokenEncoder
from nufm.running.checkpointing import newest_checkpoint
from nufm.running.folder import git_state

DEFAULT_CONFIG = REPOSITORY / "configs" / "tiny" / "panda.yaml"

# Encoder -> training on labels that starts from it, and the paper's pretraining.
CONFIGS = {
    PointTransformerV3: ("configs/tiny/semantic.yaml", "configs/pretrain/panda.yaml"),
    TokenEncoder: ("configs/tiny/polarmae_semantic.yaml", "configs/pretrain/polarmae.yaml"),
    StreamEncoder: ("configs/tiny/fasercal_multitask.yaml", "configs/pretrain/fasercal_mae.yaml"),
}
RELATIONAL = "configs/tiny/fasercal_relational.yaml"  # the second phase of a pretraining on several sub-detectors

USAGE = "python scripts/pretrain.py [--config FILE] [--pretrained RUN] [--KEY VALUE ...]"

DESCRIPTION = """\
Pretrain an encoder on unlabelled events, probe it, and write tables and pictures into a run folder.

  python scripts/pretrain.py
      a small run on simulated events, on this machine
  python scripts/pretrain.py --config configs/pretrain/panda.yaml --data.root /data/pilarnet_m
      another configuration with a field changed: every field below can be a flag; flags follow the file
  python scripts/pretrain.py --config configs/tiny/fasercal_relational.yaml --pretrained runs/tiny-fasercal_mae/TIME
      a second phase, from the encoder and the decoder of a first one
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
        probe: how the probe of points is fitted; probes of whole events have nothing to set.
    """

    enabled: bool = True
    n_events: int = 100
    probe: ProbeSettings = field(default_factory=ProbeSettings)


class PretrainCLI(RunCLI):
    """The command line of a pretraining."""

    usage, description, default_config = USAGE, DESCRIPTION, DEFAULT_CONFIG

    def add_options(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(ReportOptions, "report")
        parser.add_argument(
            "--pretrained",
            type=str | None,
            default=None,
            help="Run of scripts/pretrain.py whose weights are the beginning of this one: encoder, decoder and weights "
            "of the loss terms; of an export folder the encoder alone. For nufm.methods.masked_calorimeter.",
        )

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
        if self.config.pretrained is not None and self.resume_from is None:  # a resumed run has all weights
            start_from(self.config.pretrained, self)
        data = self.datamodule
        if data.root == "simulated" or data.root.startswith("hf://"):
            return
        if isinstance(self.model, MaskedCalorimeter):
            self.check_truth()
        for split, remedy in self.splits().items():
            if split != "train":
                try:
                    if isinstance(self.model, MaskedCalorimeter):
                        truth_of([data.reader(split)[0]])
                    else:
                        check_labels(data.reader(split), ["motif"], remedy)
                except ValueError as error:
                    raise ValueError(f"{split} events: {error}\n{remedy}") from None

    def check_truth(self) -> None:
        """Refuse training events without the truth of hits that the method learns from."""
        event, stream = self.datamodule.reader("train")[0], self.model.encoder.calorimeter.stream
        hits = event.voxels.get(stream)
        if hits is not None and len(hits):
            found = [label for label in HIT_TRUTH if getattr(hits, label) is not None]
            self.model.check_truth(found, f"train events: {event.name}", self.model.hparams.relational > 0)


def pretrain(args: Sequence[str] | None = None) -> None:
    """Run ``scripts/pretrain.py`` with these flags; ends the process with a message and status 2 for a bad setting."""
    run(PretrainCLI, args, finish)


def start_from(source: str, cli: RunCLI) -> None:
    """The weights of a first phase, as the beginning of a second.

    Encoder and decoder of a run, and what its loss terms weighed; the optimiser begins anew. Of an export, which is an
    encoder alone, that. Events are prepared as they were in the first phase, unless the run says how.

    Raises:
        ValueError: they do not fit this run, or this run takes none.
        FileNotFoundError: there is nothing there.
    """
    model = cli.model
    if not isinstance(model, MaskedCalorimeter):
        raise ValueError(
            f"--pretrained: {type(model).__name__} starts from random weights; a second phase is one of "
            "nufm.methods.masked_calorimeter.MaskedCalorimeter. To go on with an interrupted run: --ckpt_path last"
        )
    pretrained = from_pretrained(source)
    if cli.config.data.init_args.transforms is None:
        take_transforms(cli, pretrained)
    check_compatible(pretrained, model.encoder, cli.datamodule.transforms, pretrained.grid_size)
    folder = run_folder(source)
    found = None if folder is None else newest_checkpoint(folder)
    if found is None:
        model.encoder.load_state_dict(pretrained.encoder.state_dict())
        print(f"note: {source} is an encoder alone; the decoder starts from random weights")
        return
    weights = torch.load(found[0], map_location="cpu", weights_only=True)["state_dict"]
    mine = model.state_dict()
    wrong = [k for k in sorted(mine.keys() | weights.keys()) if k not in mine or k not in weights]
    wrong += [k for k in sorted(mine.keys() & weights.keys()) if mine[k].shape != weights[k].shape]
    if wrong:
        raise ValueError(
            f"{found[0]}: '{wrong[0]}' and {len(wrong) - 1} more do not fit this run's {type(model).__name__}; make "
            "model.decoder that of the first run, or start from its export, which holds the encoder alone"
        )
    model.load_state_dict(weights)


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
    of_points = {}
    if not isinstance(cli.model.encoder, StreamEncoder):
        of_points = {
            "grid_size": data.grid_size,
            "classes": {"motif": MOTIF_NAMES, "pid": PID_NAMES},
            "selection": {"energy_threshold": data.energy_threshold},
        }
    save_pretrained(
        cli.run_dir / "export",
        cli.model.encoder,
        **of_points,
        transforms=data.transforms,
        units={"energy": "MeV", "momentum": "GeV/c", "vertex": "mm"},
        extra={
            "method": cli.config.model.class_path,
            "steps": cli.trainer.global_step,
            "data": "simulated by nufm" if data.root == "simulated" else data.root,
            "commit": git_state(REPOSITORY)[0]["commit"],
        },
    )


def report(cli: RunCLI) -> None:
    """Probe, tables and pictures of a finished run, and what to try next."""
    options = cli.config_init.report
    cli.model.to(cli.trainer.strategy.root_device)  # Lightning leaves a trained model on the CPU
    if isinstance(cli.model.encoder, StreamEncoder):
        from nufm.event_report import print_table, write_event_report

        found = write_event_report(cli.model, cli.datamodule, cli.run_dir, options.n_events)
    else:
        from nufm.report import print_table, write_report  # brings the plotting libraries

        found = write_report(cli.model, cli.datamodule, cli.run_dir, options.n_events, options.probe)
    print_table(found, Console())
    run = cli.run_dir
    pictures = ", ".join(sorted(p.name for p in (run / "pictures").glob("*.png")))
    print(f"\nTable: {run / 'report.md'}. Pictures in {run / 'pictures'}: {pictures}.\n\nNext, try")
    second = isinstance(cli.model, MaskedCalorimeter) and cli.model.hparams.relational == 0
    for command, what in next_steps(cli.model.encoder, run, a_test_file(cli), second):
        print(f"  {command}\n      {what}")


def next_steps(encoder: nn.Module, run: Path, events: Path, second_phase: bool = False) -> list[tuple[str, str]]:
    """Commands to try after a pretraining, each with what it does; only configurations that are for this encoder, and
    that are there.

    Args:
        encoder: what was pretrained.
        run: the run folder.
        events: a file of test events.
        second_phase: whether a relational pretraining could go on from here.
    """
    labelled, paper = CONFIGS.get(type(encoder), (None, None))
    if isinstance(encoder, StreamEncoder):
        steps = [(f"python scripts/display.py {events} --event 1", "draw an event")]
        learnt = "flavour, charm, momenta and vertex"
    else:
        learnt = "segmentation"
        what = "draw an event as this encoder sees it"
        steps = [(f"python scripts/display.py {events} --event 1 --checkpoint {run}", what)]
    if hasattr(encoder, "tokenizer"):
        steps[0] = (f"{steps[0][0]} --tokens", "draw an event as this encoder sees it, and its tokens")
    if second_phase:
        command = f"python scripts/pretrain.py --config {RELATIONAL} --pretrained {run}"
        steps.append((command, "the second phase: ghosts, hierarchy and particle category, from the truth"))
    if labelled is not None:
        command = f"python scripts/finetune.py --config {labelled} --pretrained {run}"
        steps.append((command, f"{learnt}, learnt from labels with this encoder"))
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
