"""Exports: what comes back is what went in, and nothing else is let in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from encoders import GENUINE, encoder
from safetensors.torch import load_file, save_file

from nufm.checkpoint import from_pretrained, save_pretrained, untrained_twin
from nufm.data.event import MOTIF_NAMES, PointBatch
from nufm.data.pilarnet import PILArNetReader
from nufm.data.transforms import Compose, GridSample, LogEnergy, NormalizeCoord, RandomFlip, event_transforms
from nufm.models.ptv3 import upcast


@pytest.fixture(scope="module")
def event():
    return PILArNetReader(GENUINE, min_points=0)[0]


@pytest.fixture
def export(tmp_path) -> Path:
    return save_pretrained(
        tmp_path / "run" / "export",
        encoder(),
        transforms=event_transforms(),
        grid_size=0.001,
        classes={"motif": MOTIF_NAMES},
        units={"energy": "MeV", "length": "mm"},
        extra={"data": "simulated", "scores": {"macro_f1": 0.5}, "step": 3},
    )


def features(model: torch.nn.Module, event, transforms=None, grid_size: float = 0.001) -> torch.Tensor:
    for transform in transforms or event_transforms():
        event = transform(event, np.random.default_rng(0))
    with torch.no_grad():
        return upcast(model(PointBatch.from_events([event], grid_size)))


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


# ---- round trip -------------------------------------------------------------------------------------------


def test_round_trip_is_exact(export, event) -> None:
    loaded = from_pretrained(export)
    assert torch.equal(features(loaded.encoder, event), features(encoder(), event))
    assert loaded.transforms == tuple(event_transforms()) and loaded.grid_size == 0.001
    assert loaded.classes == {"motif": list(MOTIF_NAMES)} and loaded.units["energy"] == "MeV"
    assert loaded.extra == {"data": "simulated", "scores": {"macro_f1": 0.5}, "step": 3}
    assert not loaded.encoder.training and all(p.requires_grad for p in loaded.encoder.parameters())
    assert loaded.encoder.arguments == encoder().arguments
    assert sorted(p.name for p in export.iterdir()) == ["config.json", "model.safetensors"]


def test_a_second_export_equals_the_first(export, tmp_path) -> None:
    loaded = from_pretrained(export)
    again = save_pretrained(
        tmp_path / "again",
        loaded.encoder,
        transforms=loaded.transforms,
        grid_size=loaded.grid_size,
        classes=loaded.classes,
        units=loaded.units,
        extra=loaded.extra,
    )
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (export / name).read_bytes()


def test_features_of_an_event(export, event) -> None:
    """The rows that the encoder gives, in the order of the event, whatever the transforms drop or reorder."""
    loaded = from_pretrained(export)
    expected = features(encoder(), event).numpy()
    np.testing.assert_array_equal(loaded.features(event), expected)
    shuffled = np.random.default_rng(0).permutation(len(event))
    np.testing.assert_allclose(loaded.features(event.select(shuffled)), expected[shuffled], atol=1e-5)
    # Every voxel a second time: the transforms keep one of each pair, both get its features.
    twice = loaded.features(event.select(np.repeat(np.arange(len(event)), 2)))
    np.testing.assert_array_equal(twice[::2], twice[1::2])
    assert np.isfinite(twice).all() and twice.shape == (2 * len(event), 48)
    assert loaded.features(event.select(np.zeros(0, dtype=int))).shape == (0, 48)


def test_coarse_lattice_gives_dropped_voxels_their_neighbours_features(tmp_path, event) -> None:
    transforms = [NormalizeCoord(), LogEnergy(), GridSample(0.01)]
    folder = save_pretrained(tmp_path / "e", encoder(), transforms=transforms, grid_size=0.01)
    found = from_pretrained(folder).features(event)
    kept = len(np.unique(found, axis=0))
    assert found.shape == (len(event), 48) and kept < 0.7 * len(event)


def test_untrained_twin(export, event) -> None:
    loaded = from_pretrained(export)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    twin = loaded.untrained(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(features(twin.encoder, event), features(encoder(1), event))


def test_untrained_twin_does_not_reseed_other_generators(monkeypatch) -> None:
    """torch.manual_seed would seed every GPU, now or as soon as CUDA starts, and nothing would put it back."""
    reseeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    original = encoder(1)
    reseeded.clear()
    twin = untrained_twin(original, 1)
    assert reseeded == [] and not twin.training
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), original.parameters(), strict=True))


def test_loading_leaves_the_random_state_alone(export) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    from_pretrained(export)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_transforms_keep_their_arguments(tmp_path) -> None:
    transforms = [Compose((NormalizeCoord(10.0, 2.0), LogEnergy(0.13))), RandomFlip(axes=("y",), p=0.25)]
    folder = save_pretrained(tmp_path / "e", encoder(), transforms=transforms, grid_size=0.002)
    expected = (NormalizeCoord(10.0, 2.0), LogEnergy(0.13), RandomFlip(("y",), 0.25))
    assert from_pretrained(folder).transforms == expected


def test_half_precision_stays(tmp_path) -> None:
    folder = save_pretrained(
        tmp_path / "e", encoder().bfloat16(), transforms=event_transforms(), grid_size=0.001
    )
    loaded = from_pretrained(folder).encoder
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_what_may_name_an_export(export, monkeypatch) -> None:
    run = export.parent
    for source in (export, run, str(run), export / "config.json", export / "model.safetensors"):
        assert from_pretrained(source).grid_size == 0.001
    asked = []

    def download(name, **options):
        asked.append((name, options))
        return str(export)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(export.parent.parent)
    for source in ("hf://owner/name", "owner/name", "owner/name@v1"):
        assert from_pretrained(source).grid_size == 0.001
    assert [name for name, _ in asked] == ["owner/name"] * 3
    assert asked[2][1]["revision"] == "v1"
    assert asked[0][1]["allow_patterns"] == ["*.safetensors", "config.json"]  # never pickles or code


def test_replacing_an_export_leaves_no_mixture(export, monkeypatch) -> None:
    """Killed between the weights and the config, the folder is no export rather than a wrong one."""
    real = os.replace

    def stop(source, target):
        if Path(target).name == "config.json":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(export, encoder(1), transforms=[], grid_size=0.5)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="neither an export"):
        from_pretrained(export)


# ---- what is refused --------------------------------------------------------------------------------------


class Touch(torch.nn.Module):
    """An encoder from outside nufm.models."""

    arguments: dict = {}  # noqa: RUF012


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.nn.Linear",
        "nufm.cli.RunCLI",
        "nufm.models.ptv3.nn.Module",  # through a module that is merely imported
        "nufm.models.ptv3.PointBatch",  # not a model
        "nufm.models.ptv3.Tensor",
        "nufm.models.ptv3.upcast",
        "nufm.models..ptv3.PointTransformerV3",
        "nufm.models.ptv3.PointTransformerV3\n",
        "nufm.modelsX.Evil",
        "nufm.models.nowhere.Encoder",
        "nufm.models.ptv3.Nothing",
        "",
        None,
        ["nufm.models.ptv3.PointTransformerV3"],
    ],
)
def test_other_classes_are_refused(path, export) -> None:
    edit(export, lambda c: c["model"].update(class_path=path))
    with pytest.raises(ValueError, match=r"not allowed|there is no class"):
        from_pretrained(export)


@pytest.mark.parametrize(
    "path", ["os.system", "nufm.models.ptv3.PointTransformerV3", "nufm.data.transforms.Event"]
)
def test_other_transforms_are_refused(path, export) -> None:
    edit(export, lambda c: c["transforms"].append({"class_path": path, "init_args": {}}))
    with pytest.raises(ValueError, match="not allowed"):
        from_pretrained(export)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "field 'format' is 'other'"),
        (lambda c: c.update(format_version=3), "field 'format_version' is 3"),
        (lambda c: c.pop("transforms"), "field 'transforms' is None"),
        (lambda c: c.update(grid_size=-1.0), "grid_size"),
        (lambda c: c.update(grid_size="0.1"), "grid_size"),
        (lambda c: c.update(model=[]), "field 'model'"),
        (lambda c: c["model"].update(more=1), "not of the form"),
        (lambda c: c["model"].update(init_args=[1]), "expected names and values"),
        (lambda c: c["model"]["init_args"].update(window={"class_path": "os.system"}), "argument 'window'"),
        (
            lambda c: c["model"]["init_args"].update(window={"class_path": "os.system", "init_args": {}}),
            "'os.system' is not allowed",
        ),
        (lambda c: c["model"]["init_args"].update(depths=[[1], 2]), "argument 'depths'"),
        (lambda c: c["model"]["init_args"].update(surprise=1), "no argument 'surprise'"),
        (lambda c: c["model"]["init_args"].update(depths="ab"), "cannot be built"),
        (lambda c: c["model"]["init_args"].update(heads=[3, 2]), "multiples of heads"),
        (lambda c: c["model"]["init_args"].update(heads=[0, 2]), "multiples of heads"),
        (lambda c: c["model"]["init_args"].update(window=0), "window must be a number of points, at least 1, found 0"),
        (lambda c: c["model"]["init_args"].update(window=1.5), "window must be .* found 1.5"),
        (lambda c: c["model"]["init_args"].update(depths=[10**7, 1]), "10000001 blocks"),
        (lambda c: c["model"]["init_args"].update(depths=[1, 3]), r"missing: enc\.enc1\.block2"),
        (lambda c: c["model"]["init_args"].update(depths=[1, 1]), r"unexpected: enc\.enc1\.block1"),
        (
            lambda c: c["model"]["init_args"].update(in_channels=5),
            r"wrong shape: embedding.*\(16, 4\) instead",
        ),
        (
            lambda c: c["model"]["init_args"].update(channels=[16, 2**16]),
            "wrong shape",
        ),  # no memory is taken
        (lambda c: c["weights"].update(sha256="0" * 64), "SHA-256"),
        (lambda c: c["transforms"][0]["init_args"].update(centre=[{}]), "argument 'centre'"),
    ],
)
def test_bad_configs_are_refused(change, message, export) -> None:
    edit(export, change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(export)


def test_bad_weights_are_refused(export) -> None:
    path = export / "model.safetensors"
    content = path.read_bytes()
    for cut in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="cannot be read as safetensors"):
            from_pretrained(export)
    torch.save(encoder().state_dict(), path)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        from_pretrained(export)
    other = bytearray(content)
    other[-1] ^= 1
    path.write_bytes(other)
    with pytest.raises(ValueError, match="SHA-256"):
        from_pretrained(export)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        from_pretrained(export)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_no_weights_are_refused(dtype, export) -> None:
    """Also if the config knows their checksum."""
    path = export / "model.safetensors"
    save_file({k: torch.ones_like(v).to(dtype) for k, v in load_file(path).items()}, path)
    edit(export, lambda c: c["weights"].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(ValueError, match=rf"model\.safetensors: tensor '.*' is {str(dtype)[6:]}, expected float32 or"):
        from_pretrained(export)


def test_bad_json_is_refused(export) -> None:
    path = export / "config.json"
    for text in (path.read_text()[:50], "[]", "\x00", "3", "[" * 10**5):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            from_pretrained(export)


def test_bad_places_are_refused(tmp_path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"last\.ckpt: refused|last\.ckpt: cannot be read"):
        from_pretrained(tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"neither an export.*found last\.ckpt"):
        from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        from_pretrained(tmp_path / "a" / "b" / "c")


def test_without_a_network(monkeypatch, tmp_path) -> None:
    def offline(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder 'runs/tiny' here, and .*no network"):
        from_pretrained("runs/tiny")


def test_what_could_not_be_read_back_is_not_written(tmp_path) -> None:
    good = {"transforms": event_transforms(), "grid_size": 0.001}
    with pytest.raises(ValueError, match=r"expected a class in nufm\.models"):
        save_pretrained(tmp_path, Touch(), **good)
    with pytest.raises(ValueError, match="arguments"):
        save_pretrained(tmp_path, torch.nn.Linear(2, 2), **good)
    with pytest.raises(ValueError, match="no argument 'widths'"):
        save_pretrained(tmp_path, encoder(), arguments={"widths": 3}, **good)
    with pytest.raises(ValueError, match="JSON"):
        save_pretrained(tmp_path, encoder(), extra={"path": object()}, **good)
    broken = encoder()
    broken.embedding.mask_token.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinity: embedding\.mask_token"):
        save_pretrained(tmp_path, broken, **good)
    assert not list(tmp_path.iterdir())


def test_weights_are_plain_safetensors(export, tmp_path) -> None:
    """Others can read an export without nufm."""
    assert load_file(export / "model.safetensors").keys() == encoder().state_dict().keys()
    shutil.copytree(export, tmp_path / "moved")
    assert from_pretrained(tmp_path / "moved").grid_size == 0.001
