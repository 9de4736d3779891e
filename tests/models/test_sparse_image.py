"""Pixel maps as points: which points, their pooling, order, batch mates, empty and missing views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_maps import toy_event, toy_events
from unusual_weights import unusual

from nufm.data.images import ImageBatch, ImageEvent, View
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.sparse_image import SparseImageNetwork, pixels_as_points

SMALL = {"depths": (1, 1), "channels": (8, 12), "heads": (2, 2), "window": 16, "drop_path": 0.0, "mask_token": False}


def network(**changes) -> SparseImageNetwork:
    torch.manual_seed(0)
    return unusual(SparseImageNetwork(PointTransformerV3(4, **SMALL), **changes)).eval()


def logits(model, *events) -> torch.Tensor:
    with torch.no_grad():
        return model(ImageBatch.from_events(events))["interaction"]


def test_points_are_the_pixels_with_charge():
    xz = View(np.array([[1, 3], [2, 0]], np.int32), np.array([0.5, 0.25], np.float32))
    yz = View(np.array([[7, 5]], np.int32), np.array([1.0], np.float32))
    first = ImageEvent({"xz": xz, "yz": yz}, (8, 8))
    second = ImageEvent({"yz": xz}, (8, 8))
    points = pixels_as_points(ImageBatch.from_events([first, second]))
    assert points.offsets.tolist() == [0, 2, 3, 3, 5]  # first xz, first yz, no second xz, second yz
    # (row + 1/2 - 4) / 4, (column + 1/2 - 4) / 4
    wanted = [[-0.625, -0.125, 0.5, -1], [-0.375, -0.875, 0.25, -1], [0.875, 0.375, 1, 1]]
    assert points.feat[:3].tolist() == wanted
    assert points.feat[3:, 3].tolist() == [1, 1]
    assert points.grid.tolist() == [[0, 3, 0], [1, 0, 0], [0, 0, 0], [0, 3, 0], [1, 0, 0]]
    assert points.coord[:, 2].abs().max() == 0


def test_wide_maps_keep_the_shape_of_tracks():
    """A pixel is as wide as it is high, whatever the shape of the map."""
    view = View(np.array([[0, 0], [1, 1]], np.int32), np.ones(2, np.float32))
    points = pixels_as_points(ImageBatch.from_events([ImageEvent({"xz": view}, (4, 16))]))
    step = points.coord[1] - points.coord[0]
    assert step[:2].tolist() == [1 / 8, 1 / 8]


def test_pooling_is_mean_and_maximum_of_each_view():
    """Against the encoder on one view at a time."""
    model, event = network(), toy_event(1)
    parts = []
    for view in ("xz", "yz"):
        batch = ImageBatch.from_events([event.without({"xz": "yz", "yz": "xz"}[view])])
        feat = model.points(pixels_as_points(batch))[-1].feat
        parts += [feat.mean(0), feat.amax(0)]
    found = model.event_features(ImageBatch.from_events([event]))[0]
    torch.testing.assert_close(found, torch.cat(parts), rtol=1e-4, atol=1e-5)


def test_batch_mates_empty_and_missing_views():
    model = network()
    pixel = View(np.array([[3, 4]], np.int32), np.ones(1, np.float32))
    one, none = ImageEvent({"xz": pixel}, (32, 32)), ImageEvent({}, (32, 32))
    events = [*toy_events(3), toy_event(0, 5, missing="xz"), one, none]
    together = logits(model, *events)
    assert torch.isfinite(together).all()
    for i, event in enumerate(events):
        torch.testing.assert_close(together[i], logits(model, event)[0], rtol=1e-4, atol=1e-5)
    assert not model.event_features(ImageBatch.from_events(events[-1:])).any()
    with torch.no_grad():
        alone = model.event_features(ImageBatch.from_events(events[-2:-1]))[0]
    width = len(alone) // 2
    assert alone[:width].any() and not alone[width:].any()


def test_a_batch_without_any_charge_has_gradients():
    model = network().train()
    loss = logits_with_gradient(model, ImageEvent({}, (8, 8)), ImageEvent({}, (8, 8))).square().sum()
    loss.backward()
    assert model.head[-1].bias.grad.abs().sum() > 0


def logits_with_gradient(model, *events):
    return model(ImageBatch.from_events(events))["interaction"]


def test_gradients_reach_all_weights():
    model = network().train()
    logits_with_gradient(model, *toy_events(4)).square().sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


def test_arguments_build_the_same_network():
    model = network(dropout=0.1)
    twin = SparseImageNetwork(**{**model.arguments, "encoder": PointTransformerV3(**model.points.arguments)})
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits(twin.eval(), toy_event(2)), logits(model, toy_event(2)))


@pytest.mark.parametrize("changes, found", (({"in_channels": 5}, "in_channels is 5"), ({"mask_token": True}, "True")))
def test_other_encoders_are_refused(changes, found):
    with pytest.raises(ValueError, match=rf"{found}.*expected 4 \(transverse, z, energy, view\)"):
        SparseImageNetwork(PointTransformerV3(**{"in_channels": 4, **SMALL, **changes}))
