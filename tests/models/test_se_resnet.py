"""The Siamese SE-ResNet: published size, equations written out, sizes of maps, missing views."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toy_maps import toy_event, toy_events
from unusual_weights import unusual

from nufm.data.images import ImageBatch
from nufm.models.se_resnet import Block, SiameseSEResNet, SqueezeExcite

SMALL = {"channels": (4, 8), "blocks": (1, 2), "reduction": 2}


def network(**changes) -> SiameseSEResNet:
    torch.manual_seed(0)
    return unusual(SiameseSEResNet(**SMALL | changes)).eval()


def logits(model, *events) -> torch.Tensor:
    with torch.no_grad():
        return model(ImageBatch.from_events(events))["interaction"]


def test_published_size():
    """About 21.7 M (arXiv 2509.08461, Table 1)."""
    with torch.device("meta"):
        model = SiameseSEResNet()
    assert abs(sum(p.numel() for p in model.parameters()) - 21.7e6) < 0.05e6


def test_size_by_hand():
    """Convolutions k² Ci Co, batch norms 2 C, squeeze and excitation 2 C C/r + C/r + C, linear C K + K, block by block
    of ResNet-34."""

    def block(a: int, b: int, first: bool) -> int:
        skip = a * b if first and a != b else 0
        return 9 * a * b + 9 * b * b + 2 * a + 2 * b + skip + 2 * b * (b // 16) + b // 16 + b

    branch = 49 * 64 + 3 * block(64, 64, True)
    trunk = sum(
        block(a, c, True) + (n - 1) * block(c, c, False) for a, c, n in ((128, 128, 4), (128, 256, 6), (256, 512, 3))
    )
    trunk += 128 * 128  # the first stage behind the branches has a stride, hence a 1×1 convolution
    with torch.device("meta"):
        found = sum(p.numel() for p in SiameseSEResNet().parameters())
    assert found == 2 * branch + trunk + 2 * 512 + 512 * 3 + 3


def test_squeeze_and_excitation_is_the_published_formula():
    """x · σ(W₂ δ(W₁ mean(x))) (arXiv 1709.01507, eq. 2-4), a loop over events and channels."""
    torch.manual_seed(0)
    layer, x = unusual(SqueezeExcite(6, 2)), torch.randn(3, 6, 4, 5)
    found = layer(x)
    for b in range(3):
        z = torch.tensor([float(x[b, c].mean()) for c in range(6)])
        s = layer.excite.weight @ (layer.squeeze.weight @ z + layer.squeeze.bias).clamp(min=0) + layer.excite.bias
        for c in range(6):
            torch.testing.assert_close(found[b, c], x[b, c] / (1 + torch.exp(-s[c])))


def test_block_is_preactivated():
    """A block whose convolutions are 0 is the identity: nothing acts on the sum (arXiv 1603.05027, fig. 4e)."""
    block = Block(4, 4, 1, 2).eval()
    for conv in (block.conv1, block.conv2):
        torch.nn.init.zeros_(conv.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_forward_written_out():
    """A network of one block before and one after the branches join, from its tensors alone."""
    model = network(channels=(4, 6), blocks=(1, 1)).double()
    events = toy_events(3)
    batch = ImageBatch.from_events(events)
    batch = batch.replace(image=batch.image.double())
    w = dict(model.state_dict())

    def norm(x, name):
        return F.batch_norm(x, *(w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    def block(x, name, stride):
        y = norm(x, f"{name}.norm1").relu()
        skip = F.conv2d(y, w[f"{name}.skip.weight"], stride=stride) if f"{name}.skip.weight" in w else x
        y = norm(F.conv2d(y, w[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.norm2").relu()
        y = F.conv2d(y, w[f"{name}.conv2.weight"], padding=1)
        z = F.linear(y.mean((2, 3)), w[f"{name}.attention.squeeze.weight"], w[f"{name}.attention.squeeze.bias"]).relu()
        z = F.linear(z, w[f"{name}.attention.excite.weight"], w[f"{name}.attention.excite.bias"]).sigmoid()
        return skip + y * z[:, :, None, None]

    sides = []
    for view in range(2):
        x = F.conv2d(batch.image[:, view : view + 1], w[f"branches.{view}.0.weight"], stride=2, padding=3)
        sides.append(block(F.max_pool2d(x, 3, 2, 1), f"branches.{view}.2", 1))
    x = norm(block(torch.cat(sides, 1), "trunk.0", 2), "norm").relu().mean((2, 3))
    wanted = F.linear(x, w["head.weight"], w["head.bias"])
    torch.testing.assert_close(model(batch)["interaction"], wanted.float())


@pytest.mark.parametrize("size", (1, 7, 32, 50))
def test_any_size_of_map(size):
    assert logits(network(), toy_event(1, size=size)).shape == (1, 3)


def test_batch_mates_and_missing_views():
    model, events = network(), [*toy_events(3), toy_event(0, 5, missing="xz"), toy_event(1, missing="yz")]
    events.append(events[0].replace(views={}))
    together = logits(model, *events)
    for i, event in enumerate(events):
        torch.testing.assert_close(together[i], logits(model, event)[0], rtol=1e-4, atol=1e-5)
    full = toy_event(0, 5)
    assert not torch.allclose(logits(model, full), logits(model, full.without("xz")))
    empty = full.replace(views={**full.views, "xz": type(full.views["xz"]).of_image(full.image("xz") * 0)})
    torch.testing.assert_close(logits(model, full.without("xz")), logits(model, empty))


def test_what_stands_in_a_missing_view_is_not_seen():
    model, batch = network(), ImageBatch.from_events([toy_event(0)])
    lost = batch.replace(present=torch.tensor([[False, True]]))
    torch.testing.assert_close(model(lost)["interaction"], logits(model, toy_event(0).without("xz")))


def test_views_are_not_exchangeable_unless_branches_are_shared():
    event = toy_event(1)
    turned = event.replace(views={"xz": event.views["yz"], "yz": event.views["xz"]})
    for shared in (False, True):
        model = network(shared=shared)
        assert len(model.branches) == 1 + (not shared)
        assert not torch.allclose(logits(model, event), logits(model, turned))  # the trunk tells them apart
        same = [logits(model, event.without(v)) for v in ("xz", "yz")]
        assert not torch.allclose(*same)


def test_prediction_and_gradients():
    model, batch = network(reduction=1).train(), ImageBatch.from_events(toy_events(6))
    found = model(batch)["interaction"]
    torch.testing.assert_close(model.eval().predict(batch).probability["interaction"].sum(1), torch.ones(6))
    found.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_arguments_build_the_same_network():
    model = network(shared=True)
    twin = SiameseSEResNet(**model.arguments)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits(twin.eval(), toy_event(2)), logits(model, toy_event(2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"blocks": (1,)}, "one number of channels and of blocks"),
        ({"blocks": (1, 0)}, "at least 1"),
        ({"joined_after": 2}, r"joined_after is 2, expected 1 … 1"),
        ({"joined_after": 0}, "joined_after is 0"),
        ({"n_classes": 1}, "n_classes is 1"),
    ),
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SiameseSEResNet(**SMALL | changes)


def test_one_view_is_refused():
    batch = ImageBatch.from_events([toy_event(0)])
    with pytest.raises(ValueError, match=r"toy.h5#0 …: image has shape \(1, 1, 32, 32\), expected \(B, 2, H, W\)"):
        network()(batch.replace(image=batch.image[:, :1], present=batch.present[:, :1]))
