"""Imported weights compute what the public Panda code computes, on the genuine event.

``panda_reference.npz`` holds what the public code (DeepLearnPhysics/Panda 6c39485, spconv 2.3.8 on a CPU) said of the
event, with small networks and weights that their names fix; see ``panda_reference.py``.
"""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import panda_reference as reference
import pytest
import torch

from nufm.checkpoint import Pretrained, load_panda
from nufm.data.event import PointBatch
from nufm.models.ptv3 import upcast

TOLERANCE = 1e-4
KINDS = ("base", "semantic", "particle", "interaction")
CONFIGS = reference.configs(reference.SMALL, reference.SMALL_DECODER, 32)


@pytest.fixture(scope="module")
def batch() -> PointBatch:
    return reference.genuine_batch()


@pytest.fixture(scope="module")
def said() -> dict[str, np.ndarray]:
    with np.load(reference.FIXTURE, allow_pickle=False) as file:
        return dict(file)


def imported(kind: str, shapes: dict, folder, faithful: bool = True) -> Pretrained:
    """The network from a file as the public loader writes it."""
    path = folder / "weights.pth"  # the name says nothing
    torch.save({"config": CONFIGS[kind], "state_dict": reference.state_of(shapes)}, path)
    return load_panda(path, faithful=faithful)


@torch.no_grad()
def outputs(kind: str, model: torch.nn.Module, batch: PointBatch) -> dict[str, np.ndarray]:
    """As ``panda_reference.reference_outputs``, from our network."""
    if kind == "base":
        return {"features": upcast(model(batch)).numpy()}
    if kind == "semantic":
        return {"logits": model(batch).numpy()}
    found = model(batch)
    last = found.blocks[-1]
    masks = torch.full((last.mask_logits.shape[1], len(batch)), -1e4)  # published for points taken for stuff
    masks[:, found.things] = last.mask_logits.T
    return {
        "masks": masks.numpy(),
        "classes": last.class_logits[0].numpy(),
        "stuff": found.stuff_logits.sigmoid().numpy(),
    }


def thinned(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows that the fixture holds."""
    step = reference.EVERY
    return {k: v if k == "classes" else v[:, ::step] if k == "masks" else v[::step] for k, v in found.items()}


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_published_forward_pass(kind, faithful, said, batch, tmp_path) -> None:
    """Of one event, both settings give it; they differ in what a batch mate changes."""
    loaded = imported(kind, json.loads(said[f"{kind}.shapes"].tobytes()), tmp_path, faithful)
    found = thinned(outputs(kind, loaded.model, batch))
    for name, values in found.items():
        expected = said[f"{kind}.{name}"]
        assert np.abs(expected).max() > 0.1  # not the equality of zeros
        np.testing.assert_allclose(values, expected, atol=TOLERANCE, rtol=1e-5, err_msg=f"{kind} {name}")
    assert loaded.task == {"base": None, "semantic": "motif"}.get(kind, kind)
    if kind in ("particle", "interaction"):
        things = said[f"{kind}.stuff"] < 0.5
        assert 0.05 < things.mean() < 0.95  # both kinds of points are there


@pytest.mark.parametrize(
    ("kind", "parts"), [("semantic", (".dec0.", "head")), ("particle", ("enc2.block1.", ".blocks.1."))]
)
def test_weights_matter(kind, parts, said, tmp_path) -> None:
    """The comparison sees a change of any tensor of these parts."""
    shapes = json.loads(said[f"{kind}.shapes"].tobytes())
    model = imported(kind, shapes, tmp_path).model
    batch = reference.genuine_batch(200)
    before = outputs(kind, model, batch)
    blind = []
    for name, parameter in model.named_parameters():
        if any(part in name for part in parts):
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.mul_(1.3).add_(0.05)
            after = outputs(kind, model, batch)
            if all(np.allclose(before[k], after[k], atol=TOLERANCE) for k in before):
                blind.append(name)
            with torch.no_grad():
                parameter.copy_(kept)
    assert len(blind) < 4
    # A constant added to every key changes no softmax: the biases of keys are rightly invisible, and nothing else is.
    assert all(name.endswith("k_proj.bias") for name in blind), blind


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_public_code(kind, said, batch, tmp_path) -> None:
    for package in ("panda", "spconv"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the public Panda code needs {package}, which is not installed")
    model = reference.reference_model(kind, CONFIGS[kind])
    expected = reference.reference_outputs(kind, model, batch)
    for name, values in thinned(expected).items():
        np.testing.assert_allclose(values, said[f"{kind}.{name}"], atol=TOLERANCE, err_msg="the fixture is out of date")
    ours = imported(kind, {k: tuple(v.shape) for k, v in model.state_dict().items()}, tmp_path)
    for name, values in outputs(kind, ours.model, batch).items():
        np.testing.assert_allclose(values, expected[name], atol=TOLERANCE, rtol=1e-5, err_msg=f"{kind} {name}")
