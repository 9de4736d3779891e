"""``scripts/finetune.py``: train on labels, from a pretrained encoder or from scratch; export, score.

Points (:class:`nufm.data.datamodule.PointDataModule`), events with several streams
(:class:`nufm.data.stream_datamodule.StreamDataModule`) and pixel maps
(:class:`nufm.data.image_datamodule.ImageDataModule`) go the same way; they differ in what an export says of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.markdown import Markdown

from nufm.checkpoint import check_compatible, from_pretrained, save_pretrained
from nufm.checkpoint.kinds import inputs_of
from nufm.checkpoint.maps import KEY as MAPS
from nufm.cli import REPOSITORY, RunCLI, run
from nufm.commands.inputs import check_labels, data_module, take_transforms
from nufm.commands.teacher import Teacher
from nufm.data.datamodule import PointDataModule
from nufm.data.event import PointBatch
from nufm.data.image_datamodule import ImageDataModule
from nufm.data.images import ImageBatch
from nufm.data.stream_datamodule import StreamDataModule
from nufm.data.streams import StreamBatch
from nufm.methods.distillation import Distillation
from nufm.methods.finetuning import FineTuning
from nufm.running.folder import git_state

USAGE = "python scripts/finetune.py [--config FILE] [--pretrained RUN_OR_EXPORT] [--KEY VALUE ...]"

DESCRIPTION = """\
Train a network on labelled events: semantic segmentation, particles or interactions; flavour, charm, momenta and vertex
of events of several sub-detectors; interactions in pixel maps; from a pretrained encoder (regimes lin, dec, full) or
from random weights (scratch).
Writes scores, tables and pictures into a run folder.

  python scripts/finetune.py --pretrained runs/tiny-panda/TIME
      a small run on simulated events, from the encoder of a run of scripts/pretrain.py
  python scripts/finetune.py --pretrained RUN --model.regime lin
      a linear layer on frozen features
  python scripts/finetune.py --model.regime scratch
      the same network from random weights
  python scripts/finetune.py --pretrained RUN --model.task pid --model.network.n_classes 6
      photon, electron, muon, pion, proton, none in place of the five motif classes
  python scripts/finetune.py --config configs/tiny/uresnet.yaml
      the sparse UResNet
  python scripts/finetune.py --config configs/tiny/panoptic.yaml --pretrained RUN
      particles: instances with a class each
  python scripts/finetune.py --config configs/tiny/fasercal_multitask.yaml --pretrained RUN
      neutrino interactions in FASERCal: flavour, charm, momenta and vertex at once
  python scripts/finetune.py --config configs/tiny/pixelmap_cnn.yaml
      νµ CC, νe CC or NC from two projections; also pixelmap_vit.yaml, pixelmap_sparse.yaml
  python scripts/finetune.py --config configs/tiny/pixelmap_distillation.yaml --model.teacher RUN
      a small network learns from the answers of a large one, and from labels
  python scripts/finetune.py --pretrained RUN --data.max_events 20
      with the labels of 20 events
  python scripts/finetune.py --ckpt_path last
      continue the newest run of this configuration"""

BATCHES = {"streams": StreamBatch, "images": ImageBatch}
PEEK = 8  # events of a split whose labels are looked at before the training begins


@dataclass(frozen=True)
class EvaluationOptions:
    """What a run ends with.

    Attributes:
        enabled: score the exported model on the test events (at most ``data.max_eval_events``) and write scores.json,
            report.md and pictures into ``evaluation/test/``.
    """

    enabled: bool = True


class FinetuneCLI(RunCLI):
    """The command line of a training on labels."""

    usage, description = USAGE, DESCRIPTION
    default_config = REPOSITORY / "configs" / "tiny" / "semantic.yaml"

    def add_options(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--pretrained",
            type=str | None,
            default=None,
            help="Encoder to start from: run folder of scripts/pretrain.py, export folder, hf://owner/name, or "
            "released weights (Panda .pth, PoLAr-MAE or Point-MAE .ckpt). For the regimes lin, dec and full.",
        )
        parser.add_class_arguments(EvaluationOptions, "evaluation")

    def splits(self) -> dict[str, str]:
        needed = {"train": ""}
        if self.config.evaluation.enabled:
            needed["test"] = (
                "the model is scored on test events; name them with --data.splits, or train without scores: "
                "--evaluation.enabled false"
            )
        return needed

    def check(self) -> None:
        if not isinstance(self.model, FineTuning):
            raise ValueError(
                f"model.class_path is {type(self.model).__name__}, which does not learn from labels; expected "
                "nufm.methods.segmentation.Segmentation, nufm.methods.panoptic.Panoptic, "
                "nufm.methods.multitask.Multitask or nufm.methods.image_classification.ImageClassification"
            )
        fitting = data_module(inputs_of(self.model.network))
        if not isinstance(self.datamodule, fitting):
            raise ValueError(
                f"{type(self.model).__name__} cannot learn from the events of a {type(self.datamodule).__name__}: "
                f"expected data.class_path {fitting.__module__}.{fitting.__name__}"
            )
        super().check()
        if getattr(self.datamodule, "views", None) is not None:
            raise ValueError("data.views cuts events into pieces, for pretraining; leave it out")
        self._start_from_pretrained()
        self._check_labels()
        if isinstance(self.model, Distillation):
            self._find_teacher()

    def _find_teacher(self) -> None:
        if self.model.teacher is None:
            raise ValueError(
                "a student needs a teacher: name it with --model.teacher RUN, a run of scripts/finetune.py with a "
                "configuration such as configs/tiny/pixelmap_vit.yaml or pixelmap_vlm.yaml"
            )
        self.model.ask = Teacher(self.model.teacher, self.trainer.strategy.root_device)

    def _check_labels(self) -> None:
        """Every file has the labels of the task; the first events of every split hold values that it knows."""
        data, task = self.datamodule, self.model.task
        if data.root == "simulated" or data.root.startswith("hf://"):
            return  # simulated events have all labels; what is to be downloaded is checked batch by batch
        for split in ("train", "val", "test"):
            if not data.has_split(split) or (split == "test" and not self.config.evaluation.enabled):
                continue
            if not isinstance(data, PointDataModule):
                reader, pack = data.reader(split), BATCHES[inputs_of(self.model.network)]
                self.model.check_labels(pack.from_events([reader[i] for i in range(min(PEEK, len(reader)))]))
                continue
            needed = [label for label in (task.label, task.instance) if label is not None]
            check_labels(data.reader(split), needed, "use such files, or another task (--model.task)")
            dataset = data.eval_dataset(split)
            for event in itertools.islice((dataset[i] for i in range(len(dataset))), PEEK):
                batch = PointBatch.from_events([event], data.grid_size)
                self.model.check_labels(batch)

    def _start_from_pretrained(self) -> None:
        source, regime = self.config.pretrained, self.model.regime
        if source is None:
            if self.model.needs_encoder and self.resume_from is None:
                raise ValueError(
                    f"regime '{regime}' starts from a pretrained encoder: name it with --pretrained RUN (a run of "
                    "scripts/pretrain.py), or train from random weights with --model.regime scratch"
                )
            return
        if self.resume_from is not None:
            return  # all weights come from the checkpoint
        pretrained = from_pretrained(source)
        if pretrained.task is not None:
            print(f"note: the encoder of {source} was trained on labels (task '{pretrained.task}'), not without them")
        if self.model.needs_encoder and not self.model.transfers:
            data = self.datamodule
            if isinstance(data, StreamDataModule) and self.config.data.init_args.transforms is None:
                take_transforms(self, pretrained)
            lattice = (data.transforms, getattr(data, "grid_size", None), getattr(data, "energy_threshold", None))
            check_compatible(pretrained, self.model.network.encoder, *lattice)
        self.model.load_encoder(pretrained.encoder)


def finetune(args: Sequence[str] | None = None) -> None:
    """Run ``scripts/finetune.py`` with these flags; ends the process with a message and status 2 for a bad setting."""
    run(FinetuneCLI, args, finish)


def finish(cli: RunCLI, console: Console) -> None:
    """Export the best weights, by the score of the validation events, and score them on the test events."""
    model, data = cli.model, cli.datamodule
    best, steps = cli.run_dir / "checkpoints" / "best.ckpt", cli.trainer.global_step
    if best.is_file():
        content = torch.load(best, map_location="cpu", weights_only=True)
        # not strict where a checkpoint holds only what was trained
        model.load_state_dict(content["state_dict"], strict=model.strict_loading)
        steps = content["global_step"]
        console.print(f"best validation score at step {steps}: exported", markup=False)
    of_points = {}
    if isinstance(data, PointDataModule):
        of_points = {"grid_size": data.grid_size, "selection": {"energy_threshold": data.energy_threshold}}
    folder = save_pretrained(
        cli.run_dir / "export",
        model.network,
        **of_points,
        transforms=data.transforms,
        task=model.task.name,
        units={"energy": "MeV", "momentum": "GeV/c", "vertex": "mm"},
        extra={
            "method": cli.config.model.class_path,
            "regime": model.regime,
            "pretrained": None if cli.config.pretrained is None else "/".join(Path(cli.config.pretrained).parts[-2:]),
            **({"teacher": "/".join(Path(model.teacher).parts[-2:])} if isinstance(model, Distillation) else {}),
            "steps": steps,
            "data": "simulated by nufm" if data.root == "simulated" else data.root,
            **({MAPS: data.described()} if isinstance(data, ImageDataModule) else {}),
            "commit": git_state(REPOSITORY)[0]["commit"],
        },
    )
    print(f"\nModel: {folder}")
    if cli.config.evaluation.enabled:
        score(cli)


def score(cli: RunCLI) -> None:
    """Score the export, as anyone would load it, on the test events; say what to try next."""
    from nufm.evaluation import write_evaluation  # brings the plotting libraries
    from nufm.evaluation.tables import summary

    pretrained = from_pretrained(cli.run_dir, map_location=cli.trainer.strategy.root_device)
    out = cli.run_dir / "evaluation" / "test"
    reader, data = cli.datamodule.reader("test"), cli.datamodule
    found = write_evaluation(pretrained, reader, out, batch_size=data.batch_size, provenance={"split": "test"})
    Console().print(Markdown(summary(found)))
    shown = f" Event displays: {out / 'events.html'}." if (out / "events.html").is_file() else ""
    print(f"\nTables: {out / 'report.md'}.{shown}\n\nNext, try")
    for command, what in (
        (f"python scripts/evaluate.py --checkpoint {cli.run_dir} --split val", "score it on other events"),
        (f"python -c \"import nufm; nufm.from_pretrained('{cli.run_dir}').predict('events.h5')\"", "use it on a file"),
    ):
        print(f"  {command}\n      {what}")
