"""Released Panda weights: files of the documented layout become the right model, and nothing else is let in."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nufm.checkpoint import from_pretrained, load_panda_pth
from nufm.data.event import PointBatch
from nufm.data.pilarnet import PILArNetReader
from nufm.data.transforms import compose, event_transforms
from nufm.models.ptv3 import PointTransformerV3, upcast

ARGUMENTS = {"depths": (1, 2), "channels": (16, 32), "heads": (1, 2), "window": 64, "layer_scale": 1.0}
GENUINE = Path(__file__).parents[1] / "data" / "pilarnet_m_event.h5"


@pytest.fixture(scope="module")
def event():
    return PILArNetReader(GENUINE, min_points=0)[0]


def encoder(seed: int = 0, **changes: object) -> PointTransformerV3:
    torch.manual_seed(seed)
    return PointTransformerV3(**(ARGUMENTS | changes)).eval()


def packed(event) -> PointBatch:
    return PointBatch.from_events([compose(event_transforms(), event, np.random.default_rng(0))], 0.001)


@torch.no_grad()
def features(model: torch.nn.Module, event) -> torch.Tensor:
    return upcast(model(packed(event)))


def panda_state(prefix: str = "", **changes: object) -> dict[str, torch.Tensor]:
    return {prefix + k: v for k, v in encoder(**changes).state_dict().items()}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "student.backbone.", "module.student.backbone."]
)
@pytest.mark.parametrize("stored", [None, "flat", "nested"])
def test_panda_files(prefix, stored, tmp_path, event) -> None:
    config = {
        "enc_depths": (1, 2),
        "enc_channels": [16, 32],
        "enc_num_head": (1, 2),
        "enc_patch_size": (64, 64),
        "order": ["hilbert", "hilbert-trans", "z", "z-trans"],
        "stride": (2,),
        "enc_mode": True,
        "mask_token": False,
        "mlp_ratio": 4,
    }
    content: dict = {"state_dict": panda_state(prefix)}
    if stored:
        content["config"] = (
            config if stored == "flat" else {"type": "x", "backbone": {"type": "PT-v3m2", **config}}
        )
    torch.save(content, tmp_path / "panda.pth")
    model = load_panda_pth(tmp_path / "panda.pth")
    # 64 points is not a default: without a config the published windows of 256 are taken
    assert torch.equal(features(model, event), features(encoder(window=64 if stored else 256), event))
    assert model.arguments["window"] == (64 if stored else 256)


def test_panda_file_as_a_checkpoint(tmp_path, event) -> None:
    torch.save(panda_state(window=256), tmp_path / "panda.pth")
    loaded = from_pretrained(tmp_path / "panda.pth")
    assert loaded.transforms == tuple(event_transforms())
    np.testing.assert_array_equal(loaded.features(event), features(encoder(window=256), event).numpy())


def test_panda_mirror_without_mask_token_and_with_heads(tmp_path, event, caplog) -> None:
    state = panda_state("backbone.", mask_token=False, window=256)
    extra = {"backbone.dec.dec0.up.proj.0.weight": torch.ones(2), "seg_head.weight": torch.ones(5, 64)}
    tensors = {name: tensor.contiguous() for name, tensor in {**state, **extra}.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"backbone": {"enc_num_head": [1, 2]}}))
    with caplog.at_level("INFO", logger="nufm"):
        model = load_panda_pth(tmp_path)
    assert "2 tensors not used" in caplog.text and "seg_head.weight" in caplog.text
    assert torch.equal(features(model, event), features(encoder(mask_token=False, window=256), event))


def test_panda_student_and_teacher(tmp_path) -> None:
    state = panda_state("module.student.backbone.") | {
        k: v + 1 for k, v in panda_state("module.teacher.backbone.").items()
    }
    torch.save({"state_dict": state}, tmp_path / "p.pth")
    student, teacher = (load_panda_pth(tmp_path / "p.pth", branch) for branch in ("student", "teacher"))
    for a, b in zip(student.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(a + 1, b)


def test_panda_missing_and_damaged_tensors(tmp_path) -> None:
    path = tmp_path / "p.pth"

    def refused(message: str, state: dict, config: dict | None = None) -> None:
        torch.save({"state_dict": state, "config": config or {}}, path)
        with pytest.raises(ValueError, match=message):
            load_panda_pth(path)

    lacking = panda_state()
    lacking.pop("enc.enc1.block0.attn.qkv.weight")
    lacking.pop("enc.enc0.block0.norm2.0.bias")
    refused(r"missing: enc\.enc0\.block0\.norm2\.0\.bias, enc\.enc1\.block0\.attn\.qkv\.weight", lacking)
    refused("wrong shape", panda_state() | {"enc.enc0.block0.cpe.0.weight": torch.zeros(16, 3, 3, 3, 1)})
    refused("NaN", panda_state() | {"embedding.mask_token": torch.full((1, 16), torch.nan)})
    refused("expected one encoder", {"fc.weight": torch.zeros(2)})
    refused("expected one encoder", {})
    refused(
        r"config says channels = \[16, 48\], the tensors \[16, 32\]",
        panda_state(),
        {"enc_channels": [16, 48]},
    )
    refused("enable_rpe = True", panda_state(), {"enable_rpe": True})
    refused("enc_patch_size", panda_state(), {"enc_patch_size": (64, 128)})
    refused("stride", panda_state(), {"stride": (2, 4)})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"p\.pth"):
        load_panda_pth(path)
    with pytest.raises(FileNotFoundError):
        load_panda_pth(tmp_path / "none.pth")


class Payload:
    def __reduce__(self):
        return (open, (os.environ["NUFM_TEST_TOUCH"], "w"))


@pytest.mark.parametrize("how", ["zip", "legacy", "bare pickle"])
def test_pickled_code_does_not_run(how, tmp_path, monkeypatch) -> None:
    touched = tmp_path / "touched"
    monkeypatch.setenv("NUFM_TEST_TOUCH", str(touched))
    content = {"state_dict": panda_state(), "config": Payload()}
    path = tmp_path / "evil.pth"
    if how == "bare pickle":
        path.write_bytes(pickle.dumps({"config": Payload()}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    for load in (load_panda_pth, from_pretrained):
        with pytest.raises(ValueError, match="refused"):
            load(path)
    assert not touched.exists()
    # The trap works: an unguarded load springs it.
    if how == "bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert touched.exists()


def test_published_sizes_on_the_meta_device() -> None:
    """The default encoder has the names and the number of the released one (90 758 832 with mask token)."""
    with torch.device("meta"):
        model = PointTransformerV3()
    assert sum(p.numel() for p in model.parameters()) == 90_758_832 and len(model.state_dict()) == 441
