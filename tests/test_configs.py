"""Every run in configs/ says what it is, parses, and can be built; the paper's has the published size."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from nufm.commands.finetune import FinetuneCLI
from nufm.commands.inputs import parse
from nufm.commands.pretrain import DEFAULT_CONFIG, PretrainCLI
from nufm.commands.probe import parser as probe_parser
from nufm.data.transforms import EnergyJitter, view_augmentation
from nufm.methods.linear_probe import EventChoice

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p for p in (REPOSITORY / "configs").rglob("*.yaml") if p.parent.name != "data")
PROBES = [p for p in CONFIGS if "python scripts/probe.py" in p.read_text()]
RUNS = [p for p in CONFIGS if p not in PROBES]  # of a Trainer
PAPER = REPOSITORY / "configs" / "pretrain" / "panda.yaml"
CLI = {"scripts/pretrain.py": PretrainCLI, "scripts/finetune.py": FinetuneCLI}
FIELDS = ("command", "hardware", "time", "score")


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY / "configs"))



def header(path: Path) -> dict[str, str]:
    """The ``# field: text`` lines at the top of a configuration; a field's text may go on, indented."""
    fields: dict[str, str] = {}
    last = None
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        found = re.match(r"# (\w+): +(\S.*)", line)
        if found and found.group(1) in FIELDS:
            last = found.group(1)
            fields[last] = found.group(2).strip()
        elif last and line.startswith("#   "):
            fields[last] += " " + line[1:].strip()
    return fields


def test_there_are_runs():
    assert {"tiny/panda.yaml", "pretrain/panda.yaml"} <= {name_of(p) for p in RUNS}
    assert {"tiny/probe.yaml", "probe/panda.yaml"} <= {name_of(p) for p in PROBES}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_header_says_command_hardware_time_and_score(path):
    assert path.read_text().startswith("# "), "the first line says what the run is"
    fields = header(path)
    assert set(fields) == set(FIELDS), f"{path}: header has {sorted(fields)}"
    assert re.search(r"CPU|GPU|A100|H100|H200", fields["hardware"])
    assert re.search(r"\d+ ?(s|min|h|days?)\b", fields["time"]), "a time with its unit"
    assert re.search(r"\d|README", fields["score"])
    assert len(path.read_text().splitlines()) <= 100


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_command_of_the_header_is_this_run(path):
    python, script, *flags = shlex.split(header(path)["command"])
    assert python == "python" and (REPOSITORY / script).is_file()
    if "--config" in flags:
        assert REPOSITORY / flags[flags.index("--config") + 1] == path
        flags[flags.index("--config") + 1] = str(path)
    else:
        assert path == CLI[script].default_config
    if script in CLI:
        CLI[script](flags, build=False)
    if script == "scripts/probe.py":
        assert "--checkpoint" in flags
        parse(probe_parser, flags, "")


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_run_can_be_built(path):
    """Model (without memory, on the meta device) and data module; the files of the data need not be there."""
    script = shlex.split(header(path)["command"])[1]
    if script not in CLI:
        pytest.skip(f"{script} trains nothing")
    cli = CLI[script](["--config", str(path)], build=False)
    with torch.device("meta"):
        built = cli.parser.instantiate_classes(cli.config)
    assert sum(p.numel() for p in built.model.parameters()) > 0
    assert built.data.batch_size % _devices(cli.config.trainer.devices) == 0


def _devices(devices: object) -> int:
    return devices if isinstance(devices, int) else 1


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_names_are_import_paths_without_code(path):
    """YAML only names classes of nufm, Lightning or torch; it interpolates nothing."""
    text = path.read_text()
    assert "${" not in text and "!!" not in text

    def class_paths(value: object) -> list[str]:
        if isinstance(value, dict):
            own = [value["class_path"]] if "class_path" in value else []
            return own + [c for v in value.values() for c in class_paths(v)]
        return [c for v in value for c in class_paths(v)] if isinstance(value, list) else []

    found = class_paths(yaml.safe_load(text))
    assert bool(found) is (path in RUNS) and all(c.split(".")[0] in ("nufm", "lightning", "torch") for c in found)


def test_paper_run_has_the_published_size():
    """Encoder 90,758,832 parameters with its mask token, student 103,882,928 (arXiv 2512.01324, released
    model).
    """
    cli = PretrainCLI(["--config", str(PAPER)], build=False)
    with torch.device("meta"):
        model = cli.parser.instantiate_classes(cli.config).model
    assert sum(p.numel() for p in model.student.backbone.parameters()) == 90_758_832
    assert sum(p.numel() for p in model.student.parameters()) == 103_882_928
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_published_probe_is_the_published_one():
    """1000 and the next 1000 test events, AdamW 1e-3, 65,536 points a batch, 5 epochs (DeepLearnPhysics/Panda)."""
    path = REPOSITORY / "configs" / "probe" / "panda.yaml"
    made, config = parse(probe_parser, ["--config", str(path), "--checkpoint", "x"], "")
    options = made.instantiate(config)
    assert options.fit == options.score == EventChoice("test", 1000)
    assert (options.probe.epochs, options.probe.batch_size, options.probe.learning_rate) == (5, 65536, 1e-3)
    assert (options.probe.schedule, options.probe.standardise) == ("constant", False)
    assert set(options.tasks) == {"motif", "pid"} and len(options.seeds) >= 3
    assert (options.data.min_points, options.data.energy_threshold) == (1024, 0.13)


# Panda as published: arXiv 2512.01324, and the released training configuration "smallmask"
# (DeepLearnPhysics/pimm). Typed here a second time, by name as in this code, so that a typing error in the file,
# or a default that moves, shows.
PUBLISHED = {
    "model.class_path": "nufm.methods.self_distillation.SelfDistillation",
    "model.init_args.encoder.class_path": "nufm.models.ptv3.PointTransformerV3",
    "model.init_args.encoder.init_args": {
        "in_channels": 4,  # x, y, z, log-energy
        "depths": (3, 3, 3, 9, 3),
        "channels": (48, 96, 192, 384, 512),
        "heads": (3, 6, 12, 24, 32),
        "window": 256,
        "curves": ("hilbert", "hilbert-trans", "z", "z-trans"),
        "mlp_ratio": 4.0,
        "drop_path": 0.3,
        "layer_scale": 1e-5,
        "mask_token": True,
    },
    "model.init_args": {
        "head_hidden": 4096,
        "head_bottleneck": 256,
        "prototypes": 4096,
        "upcast_levels": 2,
        "student_temperature": 0.1,
        "teacher_temperature": (0.04, 0.07),
        "targets": "sinkhorn",
        "sinkhorn_iterations": 3,
        "teacher_momentum": (0.994, 1.0),
        "loss_weights": (2 / 8, 2 / 8, 4 / 8),
        "mask_size": (0.01, 0.075),
        "mask_ratio": (0.5, 0.9),
        "mask_scope": "batch",
        "mask_jitter": (0.0005, 0.001),
        "match_distance": 0.002,
        "warmup": 0.05,
        "learning_rate": 2.6e-3,
        "layer_decay": 0.9,
        "weight_decay": (0.04, 0.20),
        "cycle_momentum": True,
    },
    "data.class_path": "nufm.data.datamodule.PointDataModule",
    "data.init_args": {
        "energy_threshold": 0.13,  # MeV
        "min_points": 1024,
        "max_events": 1_000_000,
        "subset_seed": None,  # the first events
        "grid_size": 0.001,
        "batch_size": 48,
    },
    "trainer": {
        "max_steps": 208_330,
        "devices": 4,
        "precision": "bf16-mixed",
        "gradient_clip_val": 3.0,
        "accumulate_grad_batches": 1,
    },
    "": {"seed_everything": 0},
}
VIEWS = {
    "n_global": 2,
    "n_local": 6,
    "global_scale": (0.4, 1.0),
    "local_scale": (0.1, 0.4),
    "max_points": 30_000,
}
TRANSFORMS = [
    ("NormalizeCoord", {"centre": 384.0, "scale": 665.10751}),  # 768 √3 / 2 voxels
    ("LogEnergy", {"epsilon": 0.01, "e_max": 20.0}),
    ("GridSample", {"size": 0.001}),
]
AUGMENTATION = [
    ("CenterShift", {}),
    ("RandomRotate", {"axis": "z", "p": 0.8, "max_angle": math.pi}),
    ("RandomRotate", {"axis": "x", "p": 0.8, "max_angle": math.pi}),
    ("RandomRotate", {"axis": "y", "p": 0.8, "max_angle": math.pi}),
    ("RandomFlip", {"axes": "xyz", "p": 0.5}),
    ("CoordJitter", {"sigma": 0.00025, "clip": 0.001}),
]
SHARED = [("EnergyJitter", {"sigma": 0.05, "clip": 0.05, "p": 0.8})]


def _at(config: object, path: str) -> object:
    for key in path.split(".") if path else ():
        config = config[key]
    return config


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _listed(transforms: list) -> list[tuple[str, dict]]:
    found = [(type(t).__name__, vars(t)) for t in transforms]
    # Axes may be a word or a list of letters.
    return [(n, {k: "".join(v) if k == "axes" else v for k, v in f.items()}) for n, f in found]


def test_paper_run_is_the_published_one():
    cli = PretrainCLI(["--config", str(PAPER)], build=False)
    for path, expected in PUBLISHED.items():
        found = _at(cli.config, path)
        if isinstance(expected, str):
            assert found == expected, path
            continue
        for name, value in expected.items():
            where = f"{path}.{name} is {found[name]!r}"
            if isinstance(value, float) or (isinstance(value, tuple) and isinstance(value[0], float)):
                assert _plain(found[name]) == pytest.approx(value, rel=1e-12), where
            else:
                assert _plain(found[name]) == value, where


def test_paper_run_cuts_and_augments_as_published():
    cli = PretrainCLI(["--config", str(PAPER)], build=False)
    with torch.device("meta"):
        data = cli.parser.instantiate_classes(cli.config).data
    views = data.views
    assert {name: _plain(getattr(views, name)) for name in VIEWS} == VIEWS
    assert _listed(data.transforms) == TRANSFORMS
    assert not data.augment
    # None stands for the published lists.
    for chosen in (views.global_augment, views.local_augment):
        assert _listed(view_augmentation() if chosen is None else chosen) == AUGMENTATION
    assert _listed([EnergyJitter()] if views.shared is None else views.shared) == SHARED


def test_short_flags_reach_the_configuration():
    flags = """--data.root /data/x --trainer.max_steps 10 --model.encoder.drop_path=0.1
        --model.mask_ratio [0.1,0.2] --data.views.n_local 3"""
    config = PretrainCLI(["--config", str(PAPER), *flags.split()], build=False).config
    assert config.data.init_args.root == "/data/x"
    assert config.trainer.max_steps == 10
    assert config.model.init_args.encoder.init_args.drop_path == 0.1
    assert tuple(config.model.init_args.mask_ratio) == (0.1, 0.2)
    views = config.data.init_args.views
    assert views.get("init_args", views).n_local == 3
    assert config.model.init_args.prototypes == 4096, "what no flag names stays as the file has it"


def test_no_configuration_leaks_into_another(tmp_path):
    """The default configuration is used alone or not at all: a file given by the user is not laid over it."""
    given = yaml.safe_load(PAPER.read_text())
    changed = yaml.safe_load(DEFAULT_CONFIG.read_text())["model"]["init_args"]["prototypes"]
    del given["model"]["init_args"]["prototypes"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(given))
    found = PretrainCLI(["--config", str(path)], build=False).config.model.init_args.prototypes
    assert found == 4096 != changed, "a field left out has the method's own default"
