"""Pixel maps as sparse points: Point Transformer V3 on the pixels with charge of each view.

Each view is a point cloud of its own in the plane of its map; both pass the same encoder, a feature column tells it
which view it sees. Empty pixels, more than 99 % of a map, cost nothing.

Shape legend: B events, V = 2 views, N pixels with charge of all views, C channels of the coarsest stage, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nufm.data.event import PointBatch, offsets_from_counts
from nufm.data.images import VIEWS, ImageBatch
from nufm.models.image_network import ImageNetwork, checked_image
from nufm.models.layers import LayerNorm
from nufm.models.ptv3 import PointTransformerV3
from nufm.ops.pool import Segments, segment_reduce

COLUMNS = ("transverse", "z", "energy", "view")


class SparseImageNetwork(ImageNetwork):
    """Logits of an event from the pixels with charge of its two views.

    Features of a view are the mean and the maximum over the points of the coarsest stage, those of an event the two
    views' side by side. A view without charge has features 0.

    Args:
        encoder: with four input columns (``COLUMNS``) and no mask token.
        n_classes: K.
        dropout: in front of the last layer.

    Raises:
        ValueError: an encoder with other inputs.
    """

    def __init__(self, encoder: PointTransformerV3, n_classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__(n_classes)
        found = encoder.arguments["in_channels"]
        if found != len(COLUMNS) or encoder.arguments["mask_token"]:
            raise ValueError(
                f"encoder.in_channels is {found} and mask_token {encoder.arguments['mask_token']}, expected "
                f"{len(COLUMNS)} ({', '.join(COLUMNS)}) and no mask token"
            )
        self.arguments = {"encoder": encoder, "n_classes": n_classes, "dropout": dropout}
        self.points = encoder
        width = 2 * len(VIEWS) * encoder.channels[-1]
        self.head = nn.Sequential(LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, n_classes))
        nn.init.trunc_normal_(self.head[-1].weight, std=0.02)
        nn.init.zeros_(self.head[-1].bias)

    def event_features(self, batch: ImageBatch) -> Tensor:
        """(B, 4C) mean and maximum of the first view, mean and maximum of the second."""
        points = pixels_as_points(batch)
        coarsest = self.points(points)[-1]
        n = points.n_events
        clouds = torch.arange(n, device=batch.device)
        index = clouds.repeat_interleave(coarsest.offsets.diff(), output_size=len(coarsest.feat))
        segments = Segments(index, n)
        pooled = [segment_reduce(coarsest.feat.float(), segments, n, how) for how in ("mean", "max")]
        return torch.cat(pooled, dim=1).reshape(batch.n_events, -1)


def pixels_as_points(batch: ImageBatch) -> PointBatch:
    """The pixels that are not 0 of B events as B·V point clouds, event by event, view by view.

    Lattice cells are pixels (row, column, 0) counted from the lowest and furthest upstream of the view; coordinates are
    the distances from the centre over half the map's width, in [-1, 1]. Features are those of ``COLUMNS``: the two
    coordinates, the energy after the transforms, and -1 or 1 for the views.
    """
    image = checked_image(batch)
    height, width = image.shape[-2:]
    flat = image.flatten(0, 1)  # (B·V, H, W)
    cloud, row, column = flat.nonzero(as_tuple=True)
    half = max(height, width) / 2
    coord = torch.stack([(row + 0.5 - height / 2) / half, (column + 0.5 - width / 2) / half], dim=1).float()
    view = (cloud % len(VIEWS)).float() * 2 - 1
    cell = torch.stack([row, column, torch.zeros_like(row)], dim=1)
    least = cell.new_zeros(len(flat), 3).scatter_reduce_(
        0, cloud[:, None].expand_as(cell), cell, "amin", include_self=False
    )
    feat = torch.cat([coord, flat[cloud, row, column].float()[:, None], view[:, None]], dim=1)
    return PointBatch(
        coord=torch.cat([coord, coord.new_zeros(len(coord), 1)], dim=1),
        grid=cell - least[cloud],
        feat=feat,
        offsets=offsets_from_counts(torch.bincount(cloud, minlength=len(flat))),
        columns=COLUMNS,
    )
