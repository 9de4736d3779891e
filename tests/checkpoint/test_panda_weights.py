"""Released Panda weights: files of the documented layout become the right model, and nothing else is let in."""

from __future__ import annotations

import json
import os
import pickle
import re

import encoders
import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nufm.checkpoint import from_pretrained, load_panda_pth, save_pretrained
from nufm.data.event import PointBatch
from nufm.data.pilarnet import PILArNetReader
from nufm.data.transforms import compose, event_transforms
from nufm.models.detector import Detector
from nufm.models.ptv3 import PointTransformerV3, upcast
from nufm.models.segmenter import Decoder, Segmenter


@pytest.fixture(scope="module")
def event():
    return PILArNetReader(encoders.GENUINE, min_points=0)[0]


def encoder(seed: int = 0, **changes: object) -> PointTransformerV3:
    return encoders.encoder(seed, **({"depth_bits": "event"} | changes))  # as imports are


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
    for field, value in (
        ("stride", 2), ("enc_num_head", [0, 2]), ("enc_num_head", 2), ("enc_num_head", ["1", 2]), ("enc_num_head", []),
        ("enc_patch_size", 0), ("enc_patch_size", [0, 0]), ("enc_patch_size", 64.5), ("enc_patch_size", [[64], [64]]),
        ("enc_depths", 3), ("order", 3), ("order", [1]), ("drop_path", "0.3"), ("mlp_ratio", 0), ("in_channels", None),
    ):  # fmt: skip
        found = re.escape(repr(value))
        refused(rf"p\.pth: config has {field} = {found}, expected ", panda_state(), {field: value})
    refused("cannot be built from", panda_state(), {"enc_num_head": [1, 2, 4]})
    stem = "embedding.stem.linear.weight"
    for shape in ((16,), (), (16, 0)):
        refused(rf"p\.pth: tensor '{stem}' has shape .*expected 2 lengths", panda_state() | {stem: torch.zeros(shape)})
    refused(r"norm1\.0\.weight' has shape \(\)", panda_state() | {"enc.enc0.block0.norm1.0.weight": torch.zeros(())})
    whole = {k: torch.ones_like(v, dtype=torch.int64) for k, v in panda_state().items()}
    refused("p.pth: tensor '.*' is int64, expected float32 or", whole)
    refused("is sparse", panda_state() | {stem: panda_state()[stem].to_sparse()})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"p\.pth"):
        load_panda_pth(path)
    with pytest.raises(FileNotFoundError):
        load_panda_pth(tmp_path / "none.pth")


def test_names_and_shapes_that_ask_for_the_moon(tmp_path) -> None:
    """What a stranger's file claims costs neither time nor memory."""
    path = tmp_path / "p.pth"
    state = panda_state()
    many = state | {"enc.enc0.block99999999.norm1.0.weight": torch.zeros(16)}
    wide = state | {"enc.enc1.block0.norm1.0.weight": torch.zeros(2**20)}  # its queries, keys, values: 12 TiB
    for content, message in ((many, "ask for 100000002 blocks"), (wide, "wrong shape")):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_panda_pth(path)
    torch.save(state | {"enc.enc9999999.block0.x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"missing: enc\.enc2\.block0"):
        load_panda_pth(path)


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


# ---- the four networks --------------------------------------------------------------------------------------

KINDS = ("base", "semantic", "particle", "interaction")
TASKS = {"base": None, "semantic": "motif", "particle": "particle", "interaction": "interaction"}


def block_keys(prefix: str, c: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a block of c channels, as the public code names them."""
    return {
        **{f"{prefix}cpe.0.weight": (c, 3, 3, 3, c), f"{prefix}cpe.0.bias": (c,)},
        **{f"{prefix}cpe.1.weight": (c, c), f"{prefix}cpe.1.bias": (c,)},
        **{f"{prefix}{n}.{w}": (c,) for n in ("cpe.2", "norm1.0", "norm2.0") for w in ("weight", "bias")},
        **{f"{prefix}ls1.0.gamma": (c,), f"{prefix}ls2.0.gamma": (c,)},
        **{f"{prefix}attn.qkv.weight": (3 * c, c), f"{prefix}attn.qkv.bias": (3 * c,)},
        **{f"{prefix}attn.proj.weight": (c, c), f"{prefix}attn.proj.bias": (c,)},
        **{f"{prefix}mlp.0.fc1.weight": (4 * c, c), f"{prefix}mlp.0.fc1.bias": (4 * c,)},
        **{f"{prefix}mlp.0.fc2.weight": (c, 4 * c), f"{prefix}mlp.0.fc2.bias": (c,)},
    }


def linear(name: str, n_out: int, n_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm(name: str, c: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def documented(
    kind: str,
    channels: tuple[int, ...] = (48, 96, 192, 384, 512),
    depths: tuple[int, ...] = (3, 3, 3, 9, 3),
    dec_channels: tuple[int, ...] = (64, 96, 192, 384),
    width: int = 256,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released file, written down from the description of its key families."""
    root = "" if kind == "base" else "backbone."
    keys: dict[str, tuple[int, ...]] = {}
    if kind == "base":
        keys["embedding.mask_token"] = (1, channels[0])
    keys |= linear(f"{root}embedding.stem.linear", channels[0], 4) | norm(f"{root}embedding.stem.norm", channels[0])
    for s, (c, depth) in enumerate(zip(channels, depths, strict=True)):
        stage = f"{root}enc.enc{s}."
        if s:
            keys |= linear(f"{stage}down.proj", c, channels[s - 1]) | norm(f"{stage}down.norm.0", c)
        for i in range(depth):
            keys |= block_keys(f"{stage}block{i}.", c)
    if kind == "semantic":
        below = (*dec_channels, channels[-1])
        for s, c in enumerate(dec_channels):
            up = f"{root}dec.dec{s}.up."
            keys |= linear(f"{up}proj.0", c, below[s + 1]) | norm(f"{up}proj.1", c)
            keys |= linear(f"{up}proj_skip.0", c, channels[s]) | norm(f"{up}proj_skip.1", c)
            for i in range(2):
                keys |= block_keys(f"{root}dec.dec{s}.block{i}.", c)
        keys |= linear("seg_head", 5, dec_channels[0])
    if kind in ("particle", "interaction"):
        queries, classes, full = (32, 6, sum(channels)) if kind == "particle" else (12, 2, sum(channels))
        keys |= {f"decoder.{n}.weight": (queries, width) for n in ("query_feat", "query_embed")}
        keys |= linear("decoder.pos_emb.0", width, 3) | linear("decoder.pos_emb.2", width, width)
        for b in range(3):
            block = f"decoder.blocks.{b}."
            for n in ("norm1", "norm2", "norm3", "norm_kv"):
                keys |= norm(block + n, width)
            keys |= linear(f"{block}self_attn.kv", 2 * width, width)
            for n in ("self_attn.q", "self_attn.proj", "mask_mlp.fc1", "mask_mlp.fc2"):
                keys |= linear(block + n, width, width)
            for n in ("q_proj", "k_proj", "v_proj", "proj"):
                keys |= linear(f"{block}cross_attn.{n}", width, width)
            keys |= linear(f"{block}mlp.fc1", 4 * width, width) | linear(f"{block}mlp.fc2", width, 4 * width)
        keys |= norm("decoder.final_norm", width)
        keys |= linear("decoder.stuff_head.0", width, full) | linear("decoder.stuff_head.2", 1, width)
        if kind == "particle":
            keys |= linear("decoder.cls_pred.fc1", width, width) | linear("decoder.cls_pred.fc2", classes + 1, width)
            keys |= linear("decoder.full_point_proj.fc1", width, full)
            keys |= linear("decoder.full_point_proj.fc2", width, width)
        else:
            keys |= linear("decoder.cls_pred", classes + 1, width) | linear("decoder.full_point_proj", width, full)
    return keys


def released(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A small network under the published names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = documented(kind, (16, 32), (2, 2), (16,), 32)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def ours_of(kind: str, name: str) -> str:
    """Our name of a published tensor."""
    if kind == "semantic":
        name = name.replace("backbone.dec.", "decoder.dec.").replace("seg_head.", "head.")
    return name.replace("backbone.", "encoder.")


@pytest.mark.parametrize(
    ("kind", "n_tensors", "n_parameters"),
    [
        ("base", 441, 90_758_832),
        ("semantic", 634, 107_093_573),
        ("particle", 550, 95_164_040),
        ("interaction", 546, 95_021_188),
    ],
)
def test_published_sizes(kind, n_tensors, n_parameters) -> None:
    """Our networks of paper size have the published tensors: each name and shape once, none besides."""
    shapes = documented(kind)
    assert len(shapes) == n_tensors and sum(int(np.prod(s)) for s in shapes.values()) == n_parameters
    with torch.device("meta"):
        inner = PointTransformerV3(mask_token=kind == "base", depth_bits="event")
        model = {
            "base": lambda: inner,
            "semantic": lambda: Segmenter(inner, Decoder(), 5),
            "particle": lambda: Detector(inner),
            "interaction": lambda: Detector(
                inner, n_queries=12, n_classes=2, stuff_class=0, two_layer_projections=False
            ),
        }[kind]()
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    mapped = {ours_of(kind, name): shape for name, shape in shapes.items()}
    assert len(mapped) == len(shapes) and mapped == ours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["pth", "module.", "bare", "mirror"])
def test_keys_decide_what_a_file_is(kind, layout, tmp_path, event) -> None:
    state = released(kind)
    path = tmp_path / "panda_something.pth"
    if layout == "mirror":
        path = tmp_path / "mirror"
        path.mkdir()
        label = f"_by_label.{kind}."
        renamed = {
            k.replace("cls_pred.", f"cls_pred{label}").replace("stuff_head.", f"stuff_head{label}"): v
            for k, v in state.items()
        }
        assert (renamed.keys() != state.keys()) == (kind in ("particle", "interaction"))
        if kind in ("particle", "interaction"):
            renamed |= {f"decoder.blocks.{b}.anneal_progress": torch.tensor(1.0) for b in range(3)}
        save_file(renamed, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({"backbone": {"enc_num_head": [1, 2]}}))
    elif layout == "bare":
        torch.save(state, path)
    else:
        prefix = layout if layout == "module." else ""
        torch.save({"state_dict": {prefix + k: v for k, v in state.items()}, "epoch": 3}, path)
    loaded = from_pretrained(path)
    assert loaded.task == TASKS[kind] and loaded.energy_threshold == 0.13
    assert loaded.transforms == tuple(event_transforms()) and loaded.grid_size == 0.001
    found = loaded.model.state_dict()
    assert found.keys() == {ours_of(kind, k) for k in state}
    assert all(torch.equal(found[ours_of(kind, k)], v) for k, v in state.items())
    if kind == "base":
        with pytest.raises(ValueError, match="holds an encoder"):
            loaded.predict([event])
    else:
        predicted = loaded.predict([event])[0]
        assert len(predicted) == len(event) and predicted.classes == loaded.class_names
    # What was imported can be exported, and comes back.
    folder = save_pretrained(
        tmp_path / "again", loaded.model, transforms=loaded.transforms, grid_size=0.001, task=loaded.task
    )
    again = from_pretrained(folder).model.state_dict()
    assert all(torch.equal(again[k], v) for k, v in found.items())


def test_detectors_are_as_published(tmp_path) -> None:
    config = {"num_heads": 4, "conf_threshold": 0.3, "min_points": 5, "stuff_classes": [5], "num_queries": 32}
    torch.save({"state_dict": released("particle"), "config": config}, tmp_path / "p.pth")
    arguments = from_pretrained(tmp_path / "p.pth").model.arguments
    wanted = {"positions": "queries", "mask_from": "before_last_update", "heads": 4, "score_threshold": 0.3}
    wanted |= {"min_points": 5, "stuff_class": 5, "n_queries": 32, "depth": 3, "two_layer_projections": True}
    assert wanted.items() <= arguments.items()
    torch.save({"state_dict": released("interaction")}, tmp_path / "i.pth")
    arguments = from_pretrained(tmp_path / "i.pth").model.arguments
    wanted = {"stuff_class": 0, "n_queries": 12, "n_classes": 2, "two_layer_projections": False, "heads": 2}
    assert (wanted | {"score_threshold": 0.5, "min_points": 2}).items() <= arguments.items()


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("semantic", "seg_head.bias"),
        ("semantic", "backbone.dec.dec0.up.proj_skip.1.weight"),
        ("semantic", "backbone.dec.dec0.block1.ls2.0.gamma"),
        ("particle", "decoder.final_norm.weight"),
        ("particle", "decoder.blocks.1.mask_mlp.fc2.bias"),
        ("particle", "decoder.cls_pred.fc2.bias"),
        ("interaction", "decoder.stuff_head.2.weight"),
        ("interaction", "backbone.enc.enc1.down.proj.weight"),
    ],
)
def test_a_missing_tensor_is_an_error(kind, lacking, tmp_path) -> None:
    state = released(kind)
    state.pop(lacking)
    torch.save({"state_dict": state}, tmp_path / "p.pth")
    with pytest.raises(ValueError, match=r"missing|found seg_head\.weight"):
        from_pretrained(tmp_path / "p.pth")


def test_networks_that_are_not_pandas_are_refused(tmp_path) -> None:
    path = tmp_path / "p.pth"

    def refused(message: str, state: dict, config: dict | None = None) -> None:
        torch.save({"state_dict": state, "config": config or {}}, path)
        with pytest.raises(ValueError, match=message):
            from_pretrained(path)

    semantic, particle = released("semantic"), released("particle")
    other = semantic | {"seg_head.weight": torch.zeros(9, 16), "seg_head.bias": torch.zeros(9)}
    refused("head has 9 classes", other)
    refused("num_classes = 6, the tensors 5", semantic, {"num_classes": 6})
    refused("dec_patch_size", semantic, {"backbone": {"enc_patch_size": [64, 64], "dec_patch_size": [32]}})
    refused("decoder channels", semantic, {"backbone": {"dec_channels": [64]}})
    deep = {"seg_head.0.weight": torch.zeros(8, 16), "seg_head.3.weight": torch.zeros(5, 8)}
    refused("linear head", {k: v for k, v in semantic.items() if "seg_head" not in k} | deep)
    refused("only 'learned' can be imported", particle, {"query_type": "superpoint"})
    refused("only True can be imported", particle, {"use_stuff_head": False})
    refused("num_queries = 30", particle, {"num_queries": 30})
    for stuff in ([0, 5], [0], 0, 5, "none"):
        refused(r"p\.pth: config has stuff_classes = .*expected \[5\]", particle, {"stuff_classes": stuff})
    refused(r"expected \[0\]", released("interaction"), {"stuff_classes": [1]})
    broken = particle | {"decoder.query_feat.weight": torch.full((32, 32), torch.inf)}
    refused("NaN or infinity", broken)
    both = particle | {f"decoder.cls_pred_by_label.{k}.weight": torch.zeros(1) for k in ("particle", "interaction")}
    refused("heads for interaction and particle", both)
    swapped = {k.replace("cls_pred.", "cls_pred_by_label.interaction."): v for k, v in particle.items()}
    refused("6 classes for interaction", swapped)


def test_names_on_the_hub(monkeypatch, tmp_path) -> None:
    """The mirrors by name, and one file of the repository that holds all four."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    save_file(released("semantic"), mirror / "model.safetensors")
    torch.save({"state_dict": released("interaction")}, tmp_path / "panda_interaction.pth")
    asked = []

    def snapshot(name, **options):
        asked.append((name, options["revision"]))
        return str(mirror)

    def one_file(name, file, **options):
        asked.append((name, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
    monkeypatch.chdir(tmp_path)
    loaded = from_pretrained("DeepLearnPhysics/Panda-Semantic")
    assert loaded.task == "motif" and loaded.extra["hub"] == "DeepLearnPhysics/Panda-Semantic"
    assert loaded.extra["licence"] == "MIT" and loaded.extra["imported"] == "released Panda weights"
    assert from_pretrained("hf://DeepLearnPhysics/Panda-Semantic@c1cdee02").task == "motif"
    loaded = from_pretrained("hf://DeepLearnPhysics/Panda/panda_interaction.pth")
    assert loaded.task == "interaction" and loaded.extra["licence"] == "MIT"
    asked_before = list(asked)
    (mirror / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file; name a file"):
        from_pretrained("hf://DeepLearnPhysics/Panda")
    assert asked_before == [
        ("DeepLearnPhysics/Panda-Semantic", None),
        ("DeepLearnPhysics/Panda-Semantic", "c1cdee02"),
        ("DeepLearnPhysics/Panda", "panda_interaction.pth"),
    ]


def test_no_licence_is_claimed_for_weights_of_others(monkeypatch, tmp_path) -> None:
    """Names of tensors do not say whose they are: a private checkpoint of the public training code has Panda's too."""
    mirror = tmp_path / "DeepLearnPhysics" / "Panda-Base"  # a folder here is not the Hub
    mirror.mkdir(parents=True)
    save_file(released("base"), mirror / "model.safetensors")
    torch.save({"state_dict": panda_state("module.student.backbone.")}, tmp_path / "private.pth")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(mirror))
    monkeypatch.chdir(tmp_path)
    for source in ("DeepLearnPhysics/Panda-Base", "private.pth", "hf://someone/Panda-Base",
                   "hf://someone/DeepLearnPhysics", "hf://DeepLearnPhysics/Pandas"):  # fmt: skip
        extra = from_pretrained(source).extra
        assert "licence" not in extra and extra["imported"] == "Panda-format weights", source
    assert from_pretrained("hf://DeepLearnPhysics/Panda-Base@v1").extra["licence"] == "MIT"


def test_the_config_beside_a_named_file_counts(tmp_path) -> None:
    save_file(released("base"), tmp_path / "weights.safetensors")
    assert from_pretrained(tmp_path / "weights.safetensors").model.arguments["heads"] == [1, 2]
    (tmp_path / "config.json").write_text(json.dumps({"enc_num_head": [2, 4], "enc_patch_size": 64}))
    for source in (tmp_path / "weights.safetensors", tmp_path):
        arguments = from_pretrained(source).model.arguments
        assert arguments["heads"] == [2, 4] and arguments["window"] == 64
    save_file(released("base"), tmp_path / "more.safetensors")
    with pytest.raises(FileNotFoundError, match="found 2; name one of them"):
        from_pretrained(tmp_path)


def test_random_state_is_left_alone(tmp_path) -> None:
    torch.save(released("particle"), tmp_path / "p.pth")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    from_pretrained(tmp_path / "p.pth")
    assert torch.equal(torch.random.get_rng_state(), before)
