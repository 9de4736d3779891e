"""ViT on pixel maps: published size, timm's own model, weights of timm, sizes of maps, missing views."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from toy_maps import toy_event, toy_events
from unusual_weights import unusual

from nufm.data.images import ImageBatch
from nufm.models.image_vit import ImageViT, padded

SMALL = {"size": (32, 32), "patch": 8, "channels": 24, "depth": 2, "heads": 2}


def network(**changes) -> ImageViT:
    torch.manual_seed(0)
    return unusual(ImageViT(**SMALL | changes)).eval()


def logits(model, *events) -> torch.Tensor:
    with torch.no_grad():
        return model(ImageBatch.from_events(events))["interaction"]


def parameters(**arguments) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ImageViT(**arguments).parameters())


def test_published_size():
    """632 M (arXiv 2509.08461, Table 1): as timm counts its ViT-H/14 of 37² patches, two channels, three classes."""
    with torch.device("meta"):
        theirs = timm.create_model("vit_huge_patch14_224", img_size=518, in_chans=2, num_classes=3)
    count = sum(p.numel() for p in theirs.parameters())
    assert parameters() == count == 631_942_403
    assert round(count / 1e6) == 632


@pytest.mark.parametrize("name, channels, heads", (("base", 768, 12), ("small", 384, 6), ("tiny", 192, 3)))
def test_other_sizes_are_timms(name, channels, heads):
    with torch.device("meta"):
        theirs = timm.create_model(f"vit_{name}_patch16_224", img_size=512, in_chans=2, num_classes=3)
    ours = parameters(patch=16, channels=channels, depth=12, heads=heads)
    assert ours == sum(p.numel() for p in theirs.parameters())


def test_a_map_is_padded_and_not_cropped():
    """512 to 518 = 37 · 14: three pixels on each side; all charge stays."""
    image = torch.rand(1, 2, 512, 512)
    found = padded(image, 14)
    assert found.shape == (1, 2, 518, 518) and torch.equal(found[:, :, 3:515, 3:515], image)
    torch.testing.assert_close(found.sum(), image.sum())
    assert padded(torch.ones(1, 2, 32, 28), 8).shape == (1, 2, 32, 32)
    odd = padded(torch.ones(1, 2, 5, 8), 8)[0, 0, :, 0]
    assert odd.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert padded(image, 16) is not None and padded(image, 16).shape == image.shape


def test_equals_timms_model():
    """Same weights, the padded image through timm's own forward pass."""
    model = network(patch=7)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=35, patch_size=7, in_chans=2, num_classes=3, embed_dim=24, depth=2, num_heads=2
    ).eval()
    own = {f"head.{k}": v for k, v in model.head.state_dict().items()}
    theirs.load_state_dict(model.vit.state_dict() | own)
    batch = ImageBatch.from_events(toy_events(3))
    wanted = theirs(torch.nn.functional.pad(batch.image, (1, 2, 1, 2)))
    torch.testing.assert_close(model(batch)["interaction"], wanted)


def save_timm(path, channels=3, side=4, **changes):
    """Weights of a small timm ViT for colour images, and the model."""
    torch.manual_seed(2)
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, **changes}
    theirs = unusual(
        timm.models.vision_transformer.VisionTransformer(
            img_size=8 * side, patch_size=8, in_chans=channels, num_classes=7, **sizes
        )
    ).eval()
    save_file(theirs.state_dict(), path)
    return theirs


def test_weights_of_timm_say_of_a_grey_image_what_they_said(tmp_path):
    """A grey image in [0, 1], R = G = B scaled to [-1, 1], against two equal maps."""
    theirs = save_timm(tmp_path / "vit.safetensors")
    model = ImageViT(**SMALL, weights=str(tmp_path / "vit.safetensors")).eval()
    assert "weights" not in model.arguments
    grey = torch.rand(2, 1, 32, 32)
    batch = ImageBatch.from_events(toy_events(2)).replace(image=grey.expand(-1, 2, -1, -1))
    wanted = theirs.forward_features(2 * grey.expand(-1, 3, -1, -1) - 1)[:, 0]
    torch.testing.assert_close(model.event_features(batch), wanted, rtol=1e-4, atol=1e-5)


def test_positions_of_timm_are_interpolated(tmp_path):
    """7 × 7 positions, as of 224 / 32, on 4 × 4 patches; constant ones stay constant, and a slope stays one."""
    path = tmp_path / "vit.safetensors"
    theirs = save_timm(path, side=7)
    state = theirs.state_dict()
    slope = torch.linspace(0, 1, 7)[None, :].expand(7, 7).reshape(1, 49, 1)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], slope.expand(1, 49, 24)], dim=1).contiguous()
    save_file(state, path)
    model = ImageViT(**SMALL, weights=str(path))
    assert torch.equal(model.vit.pos_embed[:, 0], state["pos_embed"][:, 0])  # of the class token
    found = model.vit.pos_embed[0, 1:, 0].reshape(4, 4)
    torch.testing.assert_close(found, found[:1].expand(4, 4))
    assert (found[0].diff() > 0.2).all()


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_timm(path, depth=3)
    with pytest.raises(ValueError, match=r"patch 8, channels 24 and depth 2; 12 tensors differ: blocks\.2"):
        ImageViT(**SMALL, weights=str(path))
    save_timm(path, embed_dim=48)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.proj\.bias \(48,\) instead of \(24,\)"):
        ImageViT(**SMALL, weights=str(path))
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a timm VisionTransformer"):
        ImageViT(**SMALL, weights=str(path))
    (tmp_path / "vit.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected a \.safetensors file"):
        ImageViT(**SMALL, weights=str(tmp_path / "vit.pth"))
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"bad\.safetensors: not a safetensors file"):
        ImageViT(**SMALL, weights=str(tmp_path / "bad.safetensors"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        ImageViT(**SMALL, weights=str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("size", (1, 16, 40))
def test_other_sizes_of_maps_are_legal(size):
    assert logits(network(), toy_event(1, size=size)).shape == (1, 3)


def test_batch_mates_and_missing_views():
    model, events = network(), [*toy_events(3), toy_event(0, 5, missing="xz"), toy_event(1, missing="yz")]
    events.append(events[0].replace(views={}))
    together = logits(model, *events)
    for i, event in enumerate(events):
        torch.testing.assert_close(together[i], logits(model, event)[0], rtol=1e-4, atol=1e-5)
    full = toy_event(0, 5)
    assert not torch.allclose(logits(model, full), logits(model, full.without("xz")))
    lost = ImageBatch.from_events([full]).replace(present=torch.tensor([[False, True]]))
    torch.testing.assert_close(model(lost)["interaction"], logits(model, full.without("xz")))


@pytest.mark.parametrize("recompute", (False, True))
def test_gradients_reach_all_weights(recompute):
    model = network(recompute=recompute).train()
    model(ImageBatch.from_events(toy_events(4)))["interaction"].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_recomputing_changes_nothing():
    grads = []
    for recompute in (False, True):
        model = network(recompute=recompute).train()
        model(ImageBatch.from_events(toy_events(4)))["interaction"].square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads)


def test_arguments_build_the_same_network():
    model = network(drop_path=0.1)
    twin = ImageViT(**model.arguments)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits(twin.eval(), toy_event(2)), logits(model, toy_event(2)))


@pytest.mark.parametrize(
    "changes", ({"heads": 5}, {"patch": 0}, {"size": (32,)}, {"size": (0, 32)}, {"depth": 0}, {"n_classes": 1})
)
def test_refused(changes):
    with pytest.raises(ValueError, match=r"expected (H and W|at least 2)"):
        ImageViT(**SMALL | changes)
