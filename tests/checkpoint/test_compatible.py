"""What may be continued from an export, and what is refused with which words."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nufm.checkpoint import Pretrained, check_compatible
from nufm.data.transforms import Compose, GridSample, LogEnergy, NormalizeCoord, event_transforms
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.token_encoder import TokenEncoder
from nufm.models.tokens import HAIR, VOXEL, Tokenizer

SMALL = {"channels": 16, "depth": 1, "heads": 1, "feature_blocks": (0,)}
ARGUMENTS = {"depths": (1, 2), "channels": (16, 32), "heads": (1, 2), "window": 64}


def encoder(**changes: object) -> PointTransformerV3:
    return PointTransformerV3(**(ARGUMENTS | changes))


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return Pretrained(encoder(), tuple(event_transforms()), 0.001, source="runs/one/export")


def test_the_same_fits(pretrained) -> None:
    check_compatible(pretrained, encoder(), event_transforms(), 0.001)
    check_compatible(pretrained, encoder(depths=[1, 2]), [Compose(tuple(event_transforms()))], 0.001)


def test_what_matters_in_training_only_may_differ(pretrained) -> None:
    other = encoder(drop_path=0.0, layer_scale=1.0, mask_token=False, shuffle_orders="never")
    check_compatible(pretrained, other, event_transforms(), 0.001)


def test_tokenizers_are_compared_by_their_settings() -> None:
    """They are modules, of which each is itself alone; attention dropout belongs to the training."""
    tokens = Pretrained(TokenEncoder(Tokenizer(), attention_dropout=0.05, **SMALL), (), 0.001, source="runs/two")
    check_compatible(tokens, TokenEncoder(Tokenizer(), attention_dropout=0.0, **SMALL), (), 0.001)
    with pytest.raises(ValueError, match="tokenizer max_points: found 32 in the checkpoint, expected 16") as why:
        check_compatible(tokens, TokenEncoder(Tokenizer(max_points=16), **SMALL), (), 0.001)
    assert str(why.value).count("found") == 1
    for radius, fits in ((5 * HAIR * VOXEL, True), (0.0075168, True), (0.00752, False)):  # digits, not sizes
        encoder = TokenEncoder(Tokenizer(radius=radius), **SMALL)
        if fits:
            check_compatible(tokens, encoder, (), 0.001)
        else:
            with pytest.raises(ValueError, match="tokenizer radius"):
                check_compatible(tokens, encoder, (), 0.001)
    with pytest.raises(ValueError, match="encoder norm: found token in the checkpoint, expected batch_global"):
        check_compatible(tokens, TokenEncoder(norm="batch_global", **SMALL), (), 0.001)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 1}, r"encoder in_channels: found 4 in the checkpoint, expected 1"),
        ({"depths": (1, 1)}, r"encoder depths: found \[1, 2\] in the checkpoint, expected \[1, 1\]"),
        ({"channels": (16, 64)}, "encoder channels"),
        ({"heads": (2, 2)}, "encoder heads"),
        ({"window": 256}, "encoder window: found 64 in the checkpoint, expected 256"),
        ({"curves": ("z",)}, "encoder curves"),
        ({"mlp_ratio": 2.0}, "encoder mlp_ratio"),
        ({"depth_bits": None}, "encoder depth_bits"),
        ({"window_rule": "shrink_to_smallest"}, "encoder window_rule"),
    ],
)
def test_another_architecture_is_refused(changes, message, pretrained) -> None:
    with pytest.raises(ValueError, match=message):
        check_compatible(pretrained, encoder(**changes), event_transforms(), 0.001)


def test_every_difference_is_listed(pretrained) -> None:
    transforms = [NormalizeCoord(), LogEnergy(epsilon=0.13), GridSample(0.002), NormalizeCoord()]
    with pytest.raises(ValueError) as caught:
        check_compatible(pretrained, encoder(window=128, in_channels=5), transforms, 0.002)
    said = str(caught.value)
    assert said.startswith("runs/one/export does not fit this run")
    for part in ("in_channels", "window", "grid_size: found 0.001", "transform 2: found LogEnergy(epsilon=0.01",
                 "transform 3", "transform 4: found nothing"):  # fmt: skip
        assert part in said
    assert "depths" not in said and "transform 1" not in said


def test_events_read_with_another_cut_are_refused(pretrained) -> None:
    stated = dataclasses.replace(pretrained, selection={"energy_threshold": 0.13})
    check_compatible(stated, encoder(), event_transforms(), 0.001, 0.13)
    check_compatible(stated, encoder(), event_transforms(), 0.001)
    check_compatible(pretrained, encoder(), event_transforms(), 0.001, 0.4)  # it does not say
    with pytest.raises(ValueError, match=r"energy_threshold in MeV: found 0\.13 in the checkpoint, expected 0\.4 as"):
        check_compatible(stated, encoder(), event_transforms(), 0.001, 0.4)


def test_another_class_is_refused(pretrained) -> None:
    with pytest.raises(ValueError, match="encoder class: found PointTransformerV3 in the checkpoint, expected Linear"):
        check_compatible(pretrained, torch.nn.Linear(2, 2), event_transforms(), 0.001)
