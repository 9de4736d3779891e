"""A fine-tuning of an image-text model that was stopped and resumed ends with the very weights of one that never
stopped (CPU, bit for bit), although its checkpoints hold the adapters alone and dropout draws random numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from toy_language_models import folder
from toy_maps import toy_events

from nufm.commands.finetune import finetune
from nufm.data.image_hdf5 import write_maps


def written_config(place: Path) -> Path:
    events = toy_events(24)
    for split, some in (("train", events[:16]), ("val", events[16:20]), ("test", events[20:])):
        write_maps(place / "data" / split / "maps.h5", some)
    network = {"base": folder("mllama"), "quantization": "nf4", "prompt": "brief", "rank": 2, "dropout": 0.3}
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "nufm.methods.vlm_finetuning.VLMFineTuning",
            "init_args": {
                "network": {"class_path": "nufm.models.vlm.VisionLanguageClassifier", "init_args": network},
                "learning_rate": 5e-3,
                "warmup": 0.0,  # a share of the steps, which --trainer.max_steps changes
                "checkpoint_activations": True,
            },
        },
        "data": {
            "class_path": "nufm.data.image_datamodule.ImageDataModule",
            "init_args": {"root": str(place / "data"), "size": 32, "batch_size": 2},
        },
        "trainer": {
            "max_steps": 4,
            "accelerator": "cpu",
            "logger": False,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 0.3,
        },
        "checkpoint": {"every_n_steps": 1, "monitor": "val/accuracy"},
        "evaluation": {"enabled": False},
        "threads": 1,
    }
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_two_steps_and_two_more_are_four(tmp_path):
    flags = ["--config", str(written_config(tmp_path))]
    whole, two = tmp_path / "whole", tmp_path / "two"
    finetune([*flags, "--run", str(whole)])
    finetune([*flags, "--run", str(two), "--trainer.max_steps", "2"])
    halfway = last(two)["state_dict"]
    finetune([*flags, "--run", str(two), "--ckpt_path", "last", "--trainer.max_steps", "4"])
    wanted, found = last(whole), last(two)
    assert wanted["global_step"] == found["global_step"] == 4
    assert wanted["state_dict"].keys() == found["state_dict"].keys() == halfway.keys()
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in found["state_dict"].items())
    different = [k for k, value in wanted["state_dict"].items() if not torch.equal(value, found["state_dict"][k])]
    assert not different, f"{len(different)} of {len(halfway)} tensors differ: {different[:5]}"
    assert any(not torch.equal(halfway[name], value) for name, value in found["state_dict"].items())
    moments = [list(each["optimizer_states"][0]["state"].values()) for each in (wanted, found)]
    assert len(moments[0]) == len(halfway)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(*moments, strict=True) for key in ("exp_avg", "exp_avg_sq"))


def test_dropout_is_on(tmp_path):
    """Else the test above would see nothing of random numbers: without it, the same step leads elsewhere."""
    flags = ["--config", str(written_config(tmp_path)), "--trainer.max_steps", "1"]
    finetune([*flags, "--run", str(tmp_path / "dropped")])
    finetune([*flags, "--run", str(tmp_path / "kept"), "--model.network.dropout", "0.0"])
    one, other = (last(tmp_path / name)["state_dict"] for name in ("dropped", "kept"))
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
