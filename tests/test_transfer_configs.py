"""The transfer runs: their sizes are those of their headers and of the sheet, and the tiny ones fit the encoder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from nufm.commands.finetune import FinetuneCLI
from nufm.data.detector import load_stream_detector
from nufm.data.particle_files import DETECTORS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAMES = ("superfgd", "pilarnet_single", "pilarnet_multi")
# Peak rate = base rate · batch / 256 (public code): 1e-3 · 1024, 1e-2 · 64.
PUBLISHED = {
    "superfgd": {"rate": 1e-3 * 1024 / 256, "batch": 1024, "windows": 150, "reach": (6, 6, 6), "context": 0},
    "pilarnet_single": {"rate": 1e-3 * 1024 / 256, "batch": 1024, "windows": 294, "reach": (6, 6, 5), "context": 0},
    "pilarnet_multi": {"rate": 1e-2 * 64 / 256, "batch": 64, "windows": 294, "reach": (6, 6, 5), "context": 2},
}


def built(path: Path):
    cli = FinetuneCLI(["--config", str(path)], build=False)
    with torch.device("meta"):
        return cli.parser.instantiate_classes(cli.config)


@pytest.mark.parametrize("name", NAMES)
def test_paper_runs(name):
    path = CONFIGS / "finetune" / f"{name}.yaml"
    run, published = built(path), PUBLISHED[name]
    network = run.model.network
    text = re.sub(r"\n# ", " ", path.read_text())
    said = {int(n.replace(",", "")) for n in re.findall(r"\d\d,\d{3},\d{3}", text)}
    assert said == {sum(p.numel() for p in network.parameters()), 21_298_944, 22_961_472}
    assert sum(p.numel() for p in network.encoder.parameters()) == 22_961_472
    assert run.model.peak == pytest.approx(published["rate"]) and run.data.batch_size == published["batch"]
    assert network.encoder.calorimeter.n_groups == published["windows"]
    assert len(network.context) == published["context"] and run.data.together is bool(published["context"])
    assert network.extra == "none", "what is learnt is learnt from the voxels"
    assert tuple(run.data.augment[1].reach) == published["reach"]
    assert (run.model.layer_decay, run.model.label_smoothing, run.model.weight_decay) == (0.75, 0.02, 0.05)
    assert (run.model.warmup, run.trainer.max_epochs) == (pytest.approx(10 / 30, abs=1e-3), 30)


@pytest.mark.parametrize("name", NAMES)
def test_tiny_runs_fit_the_tiny_encoder(name):
    """Sizes of configs/tiny/fasercal_mae.yaml, which --pretrained names a run of."""
    from nufm.commands.pretrain import PretrainCLI
    from nufm.models.transfer import transfer

    cli = PretrainCLI(["--config", str(CONFIGS / "tiny" / "fasercal_mae.yaml")], build=False)
    with torch.device("meta"):
        old = cli.parser.instantiate_classes(cli.config).model.encoder
        run = built(CONFIGS / "tiny" / f"{name}.yaml")
        for reuse in ("talk", "code"):
            transfer(run.model.network.encoder, old, reuse)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ("finetune", "tiny"))
def test_networks_see_the_crop_of_their_events(folder, name):
    config = yaml.safe_load((CONFIGS / folder / f"{name}.yaml").read_text())
    stack = config["model"]["init_args"]["network"]["init_args"]["encoder"]["init_args"]["calorimeter"]["init_args"]
    data = config["data"]["init_args"]
    crop = load_stream_detector(DETECTORS[data["sample"]]).voxels["voxels"]
    assert tuple(stack["lattice"]) == crop.lattice and stack["patch"] == [12, 12, 10]
    assert config["model"]["init_args"]["task"] == data["sample"]
