"""Released PoLAr-MAE weights: files of the documented layout become the right models, which compute what the published
code computes (``polarmae_reference.py``), and nothing else is let in.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import polarmae_reference as reference
import pytest
import torch

from nufm.checkpoint import from_pretrained, load_polarmae, load_polarmae_pretraining, model_card, save_pretrained
from nufm.data.event import PointBatch
from nufm.data.pilarnet import PILArNetReader
from nufm.data.transforms import LogEnergy, NormalizeCoord, WithoutLED
from nufm.methods.masked_points import MaskedPoints
from nufm.models.token_encoder import TokenEncoder
from nufm.models.token_segmenter import TokenSegmenter
from nufm.models.tokens import Tokens

TINY = {"arch": "vit_tiny", "depth": 2}
HEADS = 6
COUNTS = {"PoLAr-MAE": 29_570_080, "Point-MAE": 28_985_856, "segmenter": 22_858_628}
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def event():
    return PILArNetReader(encoders.GENUINE, min_points=0)[0]


@pytest.fixture(scope="module")
def batch(event, tmp_path_factory) -> PointBatch:
    """The genuine event and a piece of it, as the imported models take them."""
    path = written(tmp_path_factory.mktemp("tiny"), reference.checkpoint("Point-MAE", **TINY))
    prepared = load_polarmae(path).batch([event, event.select(np.arange(len(event)) % 1000 < 300)])
    assert prepared.counts.min() > 100
    return prepared


def written(folder: Path, content: Any, name: str = "weights.ckpt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def events_of(batch: PointBatch) -> list[np.ndarray]:
    return [one.feat.numpy() for one in batch.split()]


def in_order_of(dense: reference.Dense, tokens: Tokens) -> torch.Tensor:
    """int64 (T,): for each of our tokens its place among the valid dense ones, found by its centre."""
    valid = dense.valid
    b = valid.nonzero()[:, 0]
    places = {(int(e), *c): i for i, (e, c) in enumerate(zip(b, dense.centre[valid].tolist(), strict=True))}
    assert len(places) == len(tokens)
    ours = zip(tokens.event.tolist(), tokens.centre.double().tolist(), strict=True)
    return torch.tensor([places[(e, *c)] for e, c in ours])


def double(weights: reference.State) -> reference.State:
    return {k: v.double() for k, v in weights.items()}


# ---------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("precision", [np.float64, np.float32])
def test_the_same_tokens(precision, batch, tmp_path) -> None:
    """Centres, points and their order; also with the single precision of the public code, on this event."""
    encoder = load_polarmae(written(tmp_path, reference.checkpoint("Point-MAE", **TINY))).model
    tokens = encoder.tokens(batch)
    dense = reference.tokenize(events_of(batch), precision)
    place = in_order_of(dense, tokens)
    members = dense.members[dense.valid.numpy()][place.numpy()]
    first = batch.offsets[tokens.event].tolist()
    for t, row in enumerate(members):
        ours = tokens.members[tokens.starts[t] : tokens.starts[t + 1]] - first[t]
        assert ours.tolist() == row[row >= 0].tolist()
    counts = tokens.counts
    assert (counts == 32).any() and (counts < 32).any()  # both full tokens and others
    points = dense.groups[dense.valid][place][torch.from_numpy(members) >= 0]
    torch.testing.assert_close(tokens.points.double(), points, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_same_token_features(batch, tmp_path) -> None:
    content = reference.checkpoint("PoLAr-MAE", **TINY)
    encoder = from_pretrained(written(tmp_path, content)).model
    encoded = encoder(batch)
    dense = reference.tokenize(events_of(batch))
    expected = reference.encode(double(content["state_dict"]), dense, HEADS)
    place = in_order_of(dense, encoded.tokens)
    found = [*encoded.blocks, encoded.feat]
    for ours, theirs in zip(found, [*expected, expected[-1]], strict=True):
        theirs = theirs[dense.valid][place]
        assert theirs.std() > 0.5  # not the equality of zeros
        torch.testing.assert_close(ours.double(), theirs, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["PoLAr-MAE", "Point-MAE"])
def test_the_same_losses(kind, batch, tmp_path) -> None:
    content = reference.checkpoint(kind, **TINY)
    found = load_polarmae_pretraining(written(tmp_path, content))
    assert found.arguments == {
        "energy_infilling": kind == "PoLAr-MAE", "mask_ratio": 0.6, "decoder_depth": 4, "targets": "all"
    }  # fmt: skip
    method = MaskedPoints(found.encoder, **found.arguments)
    method.load_state_dict(found.tensors)
    method.eval()
    said = method.reconstruct(batch.replace(seeds=torch.tensor([3, 4])))
    losses = {name: float(loss) for name, loss in method.losses(said).items()}
    dense = reference.tokenize(events_of(batch))
    hidden = torch.zeros_like(dense.valid)
    rows = torch.zeros(int(dense.valid.sum()), dtype=torch.bool)
    rows[in_order_of(dense, said.tokens)] = said.masked
    hidden[dense.valid] = rows
    assert 0.5 < hidden.sum() / dense.valid.sum() <= 0.6
    expected = reference.losses(double(content["state_dict"]), dense, HEADS, hidden)
    assert losses.keys() == expected.keys() and min(expected.values()) > 0.05
    assert losses == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_the_same_logits(batch, tmp_path) -> None:
    content = reference.checkpoint("segmenter", **TINY)
    loaded = from_pretrained(written(tmp_path, content))
    assert loaded.task == "motif4" and loaded.class_names == ("shower", "track", "Michel", "delta")
    events = events_of(batch)
    dense = reference.tokenize(events)
    expected = torch.cat(reference.logits(double(content["state_dict"]), dense, events, HEADS, [0, 1]))
    found = loaded.model(batch).double()
    assert expected.std(0).min() > 0.05
    # Where the fifth and the sixth token are equally far, either may count.
    tied = []
    for points, centre, valid in zip(events, dense.centre, dense.valid, strict=True):
        distance = torch.cdist(torch.from_numpy(points[:, :3]).double(), centre[valid]).sort(1).values
        tied.append(distance[:, 5] - distance[:, 4] < 1e-6)
    clear = ~torch.cat(tied)
    assert clear.double().mean() > 0.95
    torch.testing.assert_close(found[clear], expected[clear], **TOLERANCE)


@torch.no_grad()
def test_every_tensor_counts(event, tmp_path) -> None:
    """The comparisons see a change of any tensor; of like blocks one is taken."""
    piece = event.select(np.arange(len(event)) % 1000 < 120)
    path = written(tmp_path, reference.checkpoint("segmenter", **TINY))
    segmenter = load_polarmae(path)
    one = segmenter.batch([piece])
    found = load_polarmae_pretraining(written(tmp_path, reference.checkpoint("PoLAr-MAE", **TINY)))
    method = MaskedPoints(found.encoder, **found.arguments).eval()
    method.load_state_dict(found.tensors)
    seeded = one.replace(seeds=torch.tensor([5]))
    cases = [
        (segmenter.model, lambda: segmenter.model(one)),
        (method, lambda: torch.stack(list(method.losses(method.reconstruct(seeded)).values()))),
    ]
    for model, result in cases:
        before, blind = result(), []
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or re.search(r"blocks\.[1-9]", name):
                continue
            kept = tensor.clone()
            tensor.mul_(1.5).add_(0.1)
            if torch.allclose(result(), before, rtol=1e-6, atol=1e-7):
                blind.append(name)
            tensor.copy_(kept)
        assert blind == []


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", [*COUNTS, "encoder"])
@pytest.mark.parametrize("described", [True, False])
def test_published_sizes(kind, described, tmp_path) -> None:
    """Full size; the tensors are zeros without memory of their own."""
    layout = reference.shapes("PoLAr-MAE" if kind == "encoder" else kind)
    if kind == "encoder":
        layout = {k: v for k, v in layout.items() if k.startswith("encoder.")}
    else:
        parameters = {k: np.prod(v) for k, v in layout.items() if "running" not in k and not k.startswith("loss")}
        assert sum(parameters.values()) == COUNTS[kind]
    content = {"state_dict": {k: torch.zeros(()).expand(v) for k, v in layout.items()}}
    if described:
        content["hyper_parameters"] = reference.settings(kind)
    path = written(tmp_path, content)
    assert path.stat().st_size < 10**6
    loaded = load_polarmae(path)
    segmenter = kind == "segmenter"
    assert type(loaded.model) is (TokenSegmenter if segmenter else TokenEncoder)
    count = sum(p.numel() for p in loaded.model.parameters())
    assert count == (COUNTS["segmenter"] if segmenter else 21_837_568)
    assert sum(p.numel() for p in loaded.encoder.parameters()) == 21_837_568
    made = loaded.encoder.arguments
    assert (made["channels"], made["depth"], made["heads"], made["feature_blocks"]) == (384, 12, 6, [3, 7, 11])
    assert (made["norm"], made["padding"], made["final_norm"]) == ("batch_global", "as_published", False)
    assert (made["drop_path"], made["attention_dropout"]) == (0.25, 0.05) and not loaded.model.training
    tokenizer = made["tokenizer"].arguments
    assert tokenizer["radius"] == pytest.approx(5 / 665.10751, rel=1e-7)
    assert {k: v for k, v in tokenizer.items() if k != "radius"} == {
        **{"max_points": 32, "overlap": 0.72, "seeds": None, "max_tokens": None, "beyond": "error"},
        **{"reduction": "farthest", "centre": "seed", "neighbour_cap": 256, "ball_cap": 256, "order": "as_given"},
    }


def test_a_file_with_parts_missing(tmp_path) -> None:
    """Also parts that an encoder does not need: the sum of the parameters tells."""
    for kind, dropped in (("PoLAr-MAE", "decoder.transformer.norm.beta"), ("segmenter", "seg_head.bn2.bias")):
        layout = reference.shapes(kind)
        del layout[dropped]
        path = written(tmp_path, {"state_dict": {k: torch.zeros(()).expand(v) for k, v in layout.items()}})
        with pytest.raises(ValueError, match=rf"found [\d,]+ parameters, expected {COUNTS[kind]:,}"):
            load_polarmae(path)


def test_preprocessing_and_provenance(tmp_path) -> None:
    content = reference.checkpoint("segmenter", **TINY)
    loaded = load_polarmae(written(tmp_path, content))
    assert loaded.transforms == (NormalizeCoord(384.0, 665.10751), LogEnergy(0.13, 20.0), WithoutLED())
    assert loaded.energy_threshold == 0.13 and loaded.classes == {"motif": ["shower", "track", "Michel", "delta"]}
    assert loaded.extra["steps"] == 500_000 and loaded.extra["file"] == "weights.ckpt"
    assert "loss_func.weight" in loaded.extra["left_out"] and "optimizer_states" in loaded.extra["left_out"]
    assert "licence" not in loaded.extra  # a file does not say where it comes from
    pretraining = load_polarmae(written(tmp_path, reference.checkpoint("PoLAr-MAE", **TINY)))
    assert "decoder (50), energy_head (2), mask_token (1)" in pretraining.extra["left_out"]
    assert pretraining.task is None

    bare = load_polarmae(written(tmp_path, {"state_dict": content["state_dict"]}))  # the published configuration
    assert bare.transforms == loaded.transforms and bare.extra["steps"] is None
    read = content["datamodule_hyper_parameters"]["dataset_kwargs"]
    read.update(energy_threshold=0.0, remove_low_energy_scatters=False)
    other = load_polarmae(written(tmp_path, content))
    assert other.transforms == (NormalizeCoord(), LogEnergy(0.01, 20.0)) and other.energy_threshold == 0
    del read["emin"], read["energy_threshold"]  # the public reader's own defaults
    assert load_polarmae(written(tmp_path, content)).transforms == (NormalizeCoord(), LogEnergy(0.13, 20.0))


def test_energies_as_the_public_reader_makes_them(event, tmp_path) -> None:
    """Formula of the facts: y(0.13) = -0.7251, y(1) = -0.1423, y(20) = 1 for a threshold of 0.13 MeV."""
    loaded = load_polarmae(written(tmp_path, reference.checkpoint("Point-MAE", **TINY)))
    kept = event.select(event.motif != 4)
    one = loaded.batch([event])
    assert len(one) == len(kept) < len(event)
    energy = kept.energy.astype(np.float64)
    low, high = np.log10(0.13), np.log10(20.13)
    np.testing.assert_allclose(one.feat[:, 3], 2 * (np.log10(energy + 0.13) - low) / (high - low) - 1, atol=1e-6)
    np.testing.assert_allclose(one.coord, (kept.voxel - 384) / (384 * np.sqrt(3)), atol=1e-7)
    with pytest.raises(ValueError, match=r"WithoutLED.*'motif' is missing"):
        loaded.batch([event.replace(motif=None)])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["PoLAr-MAE", "segmenter"])
def test_exports_of_imports(kind, event, batch, tmp_path) -> None:
    loaded = from_pretrained(written(tmp_path, reference.checkpoint(kind, **TINY)))
    folder = save_pretrained(
        tmp_path / "export",
        loaded.model,
        transforms=loaded.transforms,
        grid_size=loaded.grid_size,
        task=loaded.task,
        selection=loaded.selection,
        extra=loaded.extra,
    )
    again = from_pretrained(folder)
    assert (again.transforms, again.task, again.extra) == (loaded.transforms, loaded.task, loaded.extra)
    assert again.encoder.tokenizer.arguments == loaded.encoder.tokenizer.arguments
    if kind == "segmenter":
        assert torch.equal(again.model(batch), loaded.model(batch))
        predicted, before = again.predict([event])[0], loaded.predict([event])[0]
        np.testing.assert_array_equal(predicted.probability, before.probability)
        assert predicted.probability.shape == (len(event), 4)  # LED has the answer of its nearest neighbour
    else:
        np.testing.assert_array_equal(again.features(event), loaded.features(event))
        assert again.features(event).shape == (len(event), 192)
    card = model_card(again, "PoLAr-MAE")
    assert "WithoutLED()" in card and "LogEnergy(epsilon=0.13" in card and "batch_global" in card
    assert f"PoLAr-MAE-format weights ({kind})" in card and "Weights: not stated" in card
    assert "an event's result depends on its batch mates" in card


def test_other_architectures(tmp_path) -> None:
    """What the settings name is taken over, where it can be."""
    content = reference.checkpoint("Point-MAE", **TINY)
    made = content["hyper_parameters"]["encoder"]["init_args"]
    made["voxel_size"] = 25.0
    made["tokenizer_kwargs"] = {"group_max_points": 32, "overlap_factor": 0.73}
    tokenizer = load_polarmae(written(tmp_path, content)).model.tokenizer.arguments
    assert tokenizer["radius"] == pytest.approx(25 / 665.10751, rel=1e-7)
    assert (tokenizer["seeds"], tokenizer["neighbour_cap"], tokenizer["ball_cap"]) == (256, None, 2048)
    assert (tokenizer["centre"], tokenizer["overlap"], tokenizer["max_points"]) == ("mean", 0.73, 32)
    made["voxel_size"] = 5
    made["tokenizer_kwargs"] = {"num_init_groups": 2048, "use_fps_seed": True, "reduction_method": "energy"}
    tokenizer = load_polarmae(written(tmp_path, content)).model.tokenizer.arguments
    assert (tokenizer["seeds"], tokenizer["neighbour_cap"], tokenizer["reduction"]) == (2048, None, "energy")


# ---------------------------------------------------------------------- refusals


def changed(content: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    *path, last = where.split("/")
    inner = content
    for key in path:
        inner = inner[key]
    inner[last] = value
    return content


ENCODER = "hyper_parameters/encoder/init_args"


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("state_dict/encoder.class_token", torch.zeros(3), r"1 tensors of an unknown purpose: encoder\.class_token"),
        ("state_dict/seg_decoder.transformer.blocks.0.norm1.beta", torch.zeros(3), "unknown purpose: seg_decoder"),
        ("state_dict/seg_head.conv2.weight", torch.zeros(256, 500, 1), r"wrong shape: head\.4\.weight \(256, 500\)"),
        ("state_dict/seg_head.conv3.bias", torch.tensor([0, 1, float("nan"), 0]), r"NaN or infinity: head\.7\.bias"),
        ("state_dict/seg_head.conv3.bias", torch.zeros(4, dtype=torch.int64), "'head.7.bias' is int64, expected"),
        ("state_dict/seg_head.conv3.bias", "words", r"unknown purpose: seg_head\.conv3\.bias"),
        ("state_dict/seg_head.conv3.weight", torch.zeros(7, 256, 1), "head has 7 classes, expected 4"),
        ("state_dict", [], "no field 'state_dict'"),
        ("hyper_parameters", 3, "'hyper_parameters' is a int, expected names and values"),
        ("hyper_parameters/encoder", None, "have encoder = None, expected a TransformerEncoder"),
        ("hyper_parameters/encoder/class_path", "os.system", "expected a TransformerEncoder"),
        (f"{ENCODER}/num_channels", 3, "have num_channels = 3, only 4 can be imported"),
        (f"{ENCODER}/arch", "vit_small", "arch is vit_small, which has 384 channels; the tensors have 192"),
        (f"{ENCODER}/voxel_size", 7, "have voxel_size = 7, only 2.5 or 5"),
        (f"{ENCODER}/masks", 7, "encoder.init_args has masks, expected some of"),
        (f"{ENCODER}/tokenizer_kwargs/group_radius", "wide", "group_radius = 'wide', expected a positive number"),
        (f"{ENCODER}/tokenizer_kwargs/group_max_points", 0, "group_max_points = 0, expected a positive whole number"),
        (f"{ENCODER}/tokenizer_kwargs/use_relative_features", True, "use_relative_features = True, only False"),
        (f"{ENCODER}/tokenizer_kwargs/rescale", False, "tokenizer_kwargs has rescale, expected some of"),
        (f"{ENCODER}/transformer_kwargs/add_pos_at_every_layer", False, "add_pos_at_every_layer = False, only True"),
        (f"{ENCODER}/transformer_kwargs/postnorm", True, "postnorm = True, only False"),
        (f"{ENCODER}/transformer_kwargs/num_heads", 7, "TokenEncoder cannot be built.*multiple of heads"),
        (f"{ENCODER}/transformer_kwargs", {}, "add_pos_at_every_layer = False, only True"),
        ("hyper_parameters/condition_global_features", False, "condition_global_features = False, only True"),
        ("hyper_parameters/seg_head_fetch_layers", [0, 5], "TokenEncoder cannot be built.*feature_blocks"),
        ("hyper_parameters/seg_head_fetch_layers", "all", "seg_head_fetch_layers is 'all', expected numbers of blocks"),
        ("hyper_parameters/num_classes", 5, "num_classes = 5, only 4"),
        ("hyper_parameters/val_transformations", ["unit_sphere"], "expected center_and_scale alone"),
        ("hyper_parameters/transformation_center", [0, 0, 0], "transformation_center .* expected 384"),
        ("hyper_parameters/transformation_scale_factor", 0.5, "scale_factor 0.5, expected 384 and"),
        ("hyper_parameters/transformation_center", "middle", "transformation_center 'middle' .*, expected 384"),
        ("hyper_parameters/transformation_center", ["a", None], "transformation_center .* expected 384"),
        ("hyper_parameters/transformation_center", {"x": 1}, "transformation_center .* expected 384"),
        ("hyper_parameters/transformation_center", torch.zeros(0), "transformation_center .* expected 384"),
        ("hyper_parameters/transformation_scale_factor", "small", "factor = 'small', expected a positive number"),
        ("hyper_parameters/val_transformations", 3, "val_transformations is 3, expected center_and_scale alone"),
        ("hyper_parameters/val_transformations", [{}, 1], "val_transformations is .* center_and_scale alone"),
        ("hyper_parameters/seg_head_fetch_layers", 3, "seg_head_fetch_layers is 3, expected numbers of blocks"),
        ("hyper_parameters/num_classes", [4], r"num_classes = \[4\], only 4"),
        ("hyper_parameters/seg_head_dropout", "half", "seg_head_dropout = 'half', expected 0 or a positive number"),
        (f"{ENCODER}/transformer_kwargs", [1], "'transformer_kwargs' is a list, expected names and values"),
        (f"{ENCODER}/transformer_kwargs/num_heads", "6", "num_heads = '6', expected a positive whole number"),
        (f"{ENCODER}/tokenizer_kwargs", "5", "'tokenizer_kwargs' is a str, expected names and values"),
        (f"{ENCODER}/tokenizer_kwargs/overlap_factor", [0.7], "overlap_factor = .*, expected a positive number"),
        (f"{ENCODER}/voxel_size", "5", "have voxel_size = '5', only 2.5 or 5"),
        ("datamodule_hyper_parameters/dataset_kwargs", 3, "'dataset_kwargs' is a int, expected names and values"),
        ("datamodule_hyper_parameters/dataset_kwargs/energy_threshold", "0.13", "energy_threshold = '0.13', expected"),
        ("datamodule_hyper_parameters/dataset_kwargs/emax", -1.0, "emax = -1.0, expected a positive number"),
    ],
)  # fmt: skip
def test_refusals(where, value, message, tmp_path) -> None:
    content = changed(reference.checkpoint("segmenter", **TINY), where, value)
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as refused:
        from_pretrained(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "where",
    [
        *(f"hyper_parameters/{name}" for name in ("seg_head_fetch_layers", "num_classes", "seg_head_dropout")),
        *(f"hyper_parameters/transformation_{name}" for name in ("center", "scale_factor")),
        *("hyper_parameters/val_transformations", "hyper_parameters/seg_decoder", f"{ENCODER}/num_channels"),
        *(f"{ENCODER}/{name}" for name in ("voxel_size", "tokenizer_kwargs", "tokenizer_kwargs/group_radius")),
        *(f"{ENCODER}/tokenizer_kwargs/{name}" for name in ("group_max_points", "reduction_method", "use_fps_seed")),
        *(f"{ENCODER}/transformer_kwargs/{name}" for name in ("num_heads", "attn_drop_rate", "qkv_bias")),
        *(f"datamodule_hyper_parameters/dataset_kwargs/{name}" for name in ("energy_threshold", "emin", "emax")),
        *("hyper_parameters", "datamodule_hyper_parameters", "datamodule_hyper_parameters/dataset_kwargs"),
    ],
)
def test_null_is_absent(where, tmp_path) -> None:
    content = reference.checkpoint("segmenter", **TINY)
    absent = copy.deepcopy(content)
    *path, last = where.split("/")
    inner = absent
    for key in path:
        inner = inner[key]
    inner.pop(last, None)
    found, expected = (load_polarmae(written(tmp_path, each)) for each in (changed(content, where, None), absent))
    assert str(found.model) == str(expected.model)
    both = [each.model.encoder for each in (found, expected)]
    assert both[0].tokenizer.arguments == both[1].tokenizer.arguments
    ours, theirs = ({k: v for k, v in e.arguments.items() if k != "tokenizer"} for e in both)
    assert ours == theirs
    assert (found.transforms, found.selection, found.task) == (expected.transforms, expected.selection, expected.task)


def test_an_overlap_of_null_means_something(tmp_path) -> None:
    content = changed(reference.checkpoint("segmenter", **TINY), f"{ENCODER}/tokenizer_kwargs/overlap_factor", None)
    assert load_polarmae(written(tmp_path, content)).model.encoder.tokenizer.overlap is None, "every seed is a centre"


def test_missing_tensors_are_named(tmp_path) -> None:
    content = reference.checkpoint("segmenter", **TINY)
    del content["state_dict"]["encoder.transformer.blocks.1.norm2.beta"]
    with pytest.raises(ValueError, match=r"missing: transformer\.blocks\.1\.norm2\.bias"):
        load_polarmae(written(tmp_path, content))
    del content["state_dict"]["encoder.tokenizer.embedding.first_conv.0.weight"]
    with pytest.raises(ValueError, match=r"not released weights.*found encoder\.pos_embed"):
        load_polarmae(written(tmp_path, content))
    with pytest.raises(ValueError, match="no tensors"):
        load_polarmae(written(tmp_path, {"state_dict": {}}))


class Rogue:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_damaged_and_dangerous_files(tmp_path) -> None:
    content = reference.checkpoint("Point-MAE", **TINY)
    target = tmp_path / "made"
    path = written(tmp_path, content | {"callbacks": {"rogue": Rogue(str(target))}})
    with pytest.raises(ValueError, match=r"refused, it holds pickled objects.*'state_dict' alone"):
        from_pretrained(path)
    assert not target.exists()
    path = written(tmp_path, content)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="truncated or damaged"):
        from_pretrained(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="truncated or damaged"):
        from_pretrained(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_pretrained(tmp_path / "absent.ckpt")


def test_a_pretraining_that_is_none(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"expected a pretraining.*found: segmenter"):
        load_polarmae_pretraining(written(tmp_path, reference.checkpoint("segmenter", **TINY)))
    content = reference.checkpoint("PoLAr-MAE", **TINY)
    where = "hyper_parameters/decoder/init_args/transformer_kwargs/num_heads"
    with pytest.raises(ValueError, match="decoder has 192 channels and 3 heads, expected 192 and 6"):
        load_polarmae_pretraining(written(tmp_path, changed(content, where, 3)))
    bad = changed(content, "state_dict/mask_token", torch.full((192,), float("inf")))
    with pytest.raises(ValueError, match="NaN or infinity: mask_token"):
        load_polarmae_pretraining(written(tmp_path, bad))
