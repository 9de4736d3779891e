"""The command line of a run: the one LightningCLI set-up that the scripts share.

A run is a YAML file and flags on top of it. Everything is checked before anything is built; then the run folder is made
and the training runs. Settings are typed arguments of classes that the YAML names by import path; there is no
interpolation and no code in it. What is particular to a command stands in its file in ``nufm/commands``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
import torch.distributed as dist
from jsonargparse import ArgumentError
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console

from nufm.ops.dispatch import BackendError, preference
from nufm.running.checkpointing import AtomicCheckpointIO, RunCheckpoints, newest_run, verify
from nufm.running.folder import RUN_DIR_VARIABLE, MetricsCSV, config_name, new_run_folder, write_record
from nufm.running.guards import Interrupted, NonFiniteStep, SaveOnSignal, SayBackends, StepSeed, StopAtNaN
from nufm.running.messages import run_help, shorter
from nufm.running.progress import RunProgress
from nufm.running.start import choose_run, default_precision, set_matmul_precision, set_threads

REPOSITORY = Path(__file__).resolve().parents[1]
# Messages of Lightning that say nothing about this run.
QUIET = (
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*does not have many workers.*",
    ".*you have no `validation_step`.*|.*but have no `validation_step`.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*`srun` command is available.*",
    ".*is smaller than the logging interval.*",
)


class RunCLI(LightningCLI):
    """Parses a run and builds it; ``args`` are flags as typed, ``build=False`` stops after parsing.

    Each command of ``scripts/`` that trains is a subclass, which names itself, its default configuration and its own
    options.

    Attributes:
        usage, description: what ``--help`` begins with.
        default_config: used where no ``--config`` is given.
        run_dir: the run folder (not yet made).
        asked: what ``--run`` must say to name it again.
        resume_from: checkpoint to continue from, or None.
        resolved: the run as YAML, every setting named.
    """

    usage: ClassVar[str]
    description: ClassVar[str]
    default_config: ClassVar[Path]

    def __init__(self, args: Sequence[str], build: bool = True) -> None:
        self.build = build
        for message in QUIET:
            warnings.filterwarnings("ignore", message=message)
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.given = list(args)
        self.configs = [Path(p) for p in _values_of(self.given, ("--config", "-c"))]
        if not self.configs:
            self.configs = [self.default_config]
            self.given = ["--config", str(self.default_config), *self.given]
        self.given = with_settings_of_the_run(self.given, self.configs)
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "logger": False,  # ours is added below; --trainer.logger adds others
                "max_epochs": -1,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data module shares the events out itself
            },
            # An abbreviated flag is a misspelt one: --trainer.max_step must not pass as max_steps.
            parser_kwargs={
                "allow_abbrev": False,
                "exit_on_error": False,
                "usage": self.usage,
                "description": "",  # run_help prints it; argparse would make one paragraph of it
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=self.given,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="Checkpoint to continue from, or 'last': the newest complete one of this configuration's "
            "newest run (or of --run). The run continues in its folder.",
        )
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Name of the run below <runs_dir>/<config name>/, or a path with a slash; default: date and "
            "time, or slurm-<job id>.",
        )
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="CPU threads of torch per process; default: OMP_NUM_THREADS, else all cores it may use.",
        )
        parser.add_lightning_class_args(RunCheckpoints, "checkpoint")
        self.add_options(parser)

    def add_options(self, parser: LightningArgumentParser) -> None:
        """Options of the command itself."""

    def splits(self) -> dict[str, str]:
        """Splits that the run needs -> what to do where one is not there."""
        return {"train": ""}

    def check(self) -> None:
        """Refuse what can be known to fail, before anything is written.

        Raises:
            ValueError: a split has no files, or not the right ones.
        """
        check_data(self.datamodule, self.splits())

    # ------------------------------------------------------------------ parsing

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            if "--help" in args or "-h" in args:
                print(run_help(parser, self.description, self.configs))
                raise SystemExit(0)
            self.config = parser.parse_args(_with_save_dir(args))
            for key in ("model", "data"):
                if not self.config.get(key):
                    raise ValueError(f"{key}: not set; the configuration must name its class_path")
            if self.config["seed_everything"] is True or self.config["seed_everything"] is False:
                raise ValueError("seed_everything: expected a number >= 0, so that the run can be repeated")
        except ArgumentError as error:
            known = [a.dest for a in parser._actions]
            raise ValueError(shorter(str(error.message or error), known)) from error

    def _set_seed(self) -> None:
        if self.build:
            super()._set_seed()

    # ------------------------------------------------------------------ building

    def before_instantiate_classes(self) -> None:
        preference()  # a misspelt NUFM_BACKEND stops here
        runs = Path(self.config.runs_dir) / config_name(self.configs[0])
        self.run_dir, self.resume_from = choose_run(runs, self.config.run, self.config.ckpt_path)
        if not self.build:
            return
        trainer = self.config.trainer
        set_threads(self.config.threads, trainer)
        set_matmul_precision(trainer.accelerator)
        if trainer.precision is None:
            trainer.precision = default_precision(trainer.accelerator)
        self.asked = self.config.run or self.run_dir.name
        # What is saved says what the run is, not where: it can be started again as it stands.
        self.config.run = self.config.ckpt_path = None
        self.resolved = self.parser.dump(self.config, skip_none=False)
        trainer.default_root_dir = str(self.run_dir)
        for logger in _as_list(trainer.logger):
            arguments = getattr(logger, "init_args", None)
            if arguments is not None and arguments.get("save_dir") in (None, "."):
                arguments["save_dir"] = str(self.run_dir)

    def instantiate_classes(self) -> None:
        if not self.build:
            return
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not str(error).startswith("Does not validate"):
                raise
            # What a class said of its arguments, out of jsonargparse's list of the types that it tried.
            raise ValueError(shorter(str(error), [a.dest for a in self.parser._actions])) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init.trainer
        checkpoints: RunCheckpoints = self.config_init.checkpoint
        loggers = [
            MetricsCSV(self.run_dir),
            *[logger for logger in _as_list(settings.logger) if logger is not True],
        ]
        plugins = [*_as_list(settings.plugins), AtomicCheckpointIO()]
        if SLURMEnvironment.detect():
            # Its requeue saves from inside the signal handler: SaveOnSignal does it between two steps.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        callbacks = [
            StepSeed(int(self.config.seed_everything)),
            StopAtNaN(),
            SayBackends(),
            RunProgress(),
            *_as_list(settings.callbacks),
            SaveOnSignal(checkpoints),
        ]
        return super().instantiate_trainer(logger=loggers, plugins=plugins, callbacks=callbacks)


def run(cli_class: type[RunCLI], args: Sequence[str] | None, finish: Callable[[RunCLI, Console], None]) -> None:
    """A training command from its flags to its end.

    A bad setting ends the process with a message and status 2.

    Args:
        cli_class: which command.
        args: flags as typed; those of the process by default.
        finish: what the first process does with the trained model.
    """
    console = Console(stderr=True, soft_wrap=True)
    try:
        cli = cli_class(sys.argv[1:] if args is None else args)
        cli.check()
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        raise SystemExit(2) from None
    fit(cli, console)
    first = cli.trainer.is_global_zero
    if dist.is_available() and dist.is_initialized():
        # The first process ends the run alone: nothing in it may wait for the others.
        dist.barrier()
        dist.destroy_process_group()
    if first:
        try:
            finish(cli, console)
        except (ValueError, OSError) as error:
            end_with(error, "the training is done, its end is not", cli, console)


def check_data(data: LightningDataModule, splits: Mapping[str, str]) -> None:
    """Open the events that a run needs, the labelled ones of its end included.

    Events that are still to be simulated or downloaded are left to the run.

    Args:
        data: where they are.
        splits: name -> what to do where its files are not there.

    Raises:
        ValueError: a split has no files, or not the right ones.
    """
    if not hasattr(data, "reader") or data.root == "simulated" or data.root.startswith("hf://"):
        return
    for split, remedy in splits.items():
        try:
            data.reader(split)
        except (ValueError, OSError) as error:
            raise ValueError(f"{split} events: {error}" + (f"\n{remedy}" if remedy else "")) from error


def fit(cli: RunCLI, console: Console) -> None:
    """Train as parsed, in the run folder."""
    trainer, run_dir = cli.trainer, cli.run_dir
    if trainer.is_global_zero:
        write_record(run_dir, cli.resolved, REPOSITORY)
        device = trainer.strategy.root_device
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )
        console.print(
            f"run folder {run_dir}\n{name}, {trainer.precision}, {trainer.world_size} process(es)",
            markup=False,
        )
    if cli.resume_from is not None:
        step = verify(cli.resume_from)["step"]
        if trainer.is_global_zero:
            trainer.loggers[0].rewind(step)
            console.print(f"continuing from {cli.resume_from}, step {step}", markup=False)
    os.environ[RUN_DIR_VARIABLE] = str(run_dir)
    again = f"--run {cli.asked} --ckpt_path last"
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.resume_from)
    except Interrupted as stop:
        ending = "the job is requeued" if stop.requeued else f"continue with the same command and {again}"
        if trainer.is_global_zero:
            console.print(f"{stop}; {ending}", markup=False)
        raise SystemExit(0 if stop.requeued or stop.signum != signal.SIGTERM else 128 + stop.signum) from None
    except (NonFiniteStep, BackendError) as error:
        console.print(f"stopped: {error}", style="bold red", markup=False, highlight=False)
        raise SystemExit(1) from None
    except ValueError as error:
        end_with(error, "stopped", cli, console)
    finally:
        os.environ.pop(RUN_DIR_VARIABLE, None)


def end_with(error: ValueError | OSError, what: str, cli: RunCLI, console: Console) -> NoReturn:
    """End the process with what an error of nufm says; raises the error itself if it is not one of nufm's."""
    said = user_fault(error)
    if said is None:
        raise error
    message = f"{what}: {said}\nrun folder {cli.run_dir}"
    console.print(message, style="bold red", markup=False, highlight=False)
    raise SystemExit(1) from None


def user_fault(error: ValueError | OSError) -> str | None:
    """What ``error`` says if it was raised in nufm, where a ValueError is meant for users; None if it was elsewhere.

    A loader process sends its traceback as the message of the error.
    """
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    said = str(error)
    if said.startswith("Caught ValueError in DataLoader worker"):
        raised_in = said.rpartition('File "')[2].partition('"')[0]
        said = said.rpartition("\nValueError: ")[2].strip()
    return said if (REPOSITORY / "nufm") in Path(raised_in).resolve().parents else None


def with_settings_of_the_run(args: list[str], configs: list[Path]) -> list[str]:
    """``--ckpt_path last`` continues a run as it was: its own config.yaml comes after the configuration, before flags.
    """
    if _values_of(args, ("--ckpt_path",))[-1:] != ["last"]:
        return args
    runs = Path((_values_of(args, ("--runs_dir",)) or ["runs"])[-1]) / config_name(configs[0])
    name = _values_of(args, ("--run",))
    folder = new_run_folder(runs, name[-1]) if name else newest_run(runs)
    if folder is None or not (folder / "config.yaml").is_file():
        return args
    after = max(i for i, arg in enumerate(args) if arg in ("--config", "-c") or arg.startswith("--config=")) + 1
    after += args[after - 1] in ("--config", "-c")
    return [*args[:after], "--config", str(folder / "config.yaml"), *args[after:]]


def _values_of(args: Sequence[str], names: tuple[str, ...]) -> list[str]:
    values = []
    for i, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in names:
            values += [value] if equals else args[i + 1 : i + 2]
    return values


def _with_save_dir(args: Sequence[str]) -> list[str]:
    """``--trainer.logger TensorBoardLogger`` alone is enough: it writes into the run folder."""
    args = list(args)
    asked = _values_of(args, ("--trainer.logger",))
    given = any(a.startswith("--trainer.logger.save_dir") for a in args)
    return (
        [*args, "--trainer.logger.save_dir=."]
        if asked and asked[0].endswith("Logger") and not given
        else args
    )


def _as_list(value: Any) -> list:
    if value is None or value is False:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
