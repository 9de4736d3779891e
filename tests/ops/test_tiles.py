"""Products event by event, against a loop over events."""

import pytest
import torch

from nufm.ops.tiles import Tiles


@pytest.mark.parametrize("counts", [[5, 0, 13, 4, 1], [0, 0], [4], [9, 200]])
@pytest.mark.parametrize("size", [1, 4, 128])
def test_products_and_sums_against_a_loop(counts, size):
    generator = torch.Generator().manual_seed(sum(counts))
    offsets = torch.tensor([0, *counts]).cumsum(0)
    n, b, q, c = sum(counts), len(counts), 3, 6
    x, z = (torch.randn(n, w, generator=generator, dtype=torch.float64, requires_grad=True) for w in (c, 2))
    y = torch.randn(b, q, c, generator=generator, dtype=torch.float64, requires_grad=True)
    tiles = Tiles.of_offsets(offsets, size)
    products, sums = tiles.products(x, y), tiles.sums(x, z)
    events = [slice(offsets[i], offsets[i + 1]) for i in range(b)]
    assert torch.allclose(products, torch.cat([x[e] @ y[i].T for i, e in enumerate(events)]))
    assert torch.allclose(sums, torch.stack([x[e].T @ z[e] for e in events]))
    grads = torch.autograd.grad(products.square().sum() + sums.square().sum(), (x, y, z))
    plain = sum((x[e] @ y[i].T).square().sum() + (x[e].T @ z[e]).square().sum() for i, e in enumerate(events))
    for found, expected in zip(grads, torch.autograd.grad(plain, (x, y, z)), strict=True):
        assert torch.allclose(found, expected)


def test_tiles_are_padded_per_event_only():
    tiles = Tiles.of_offsets(torch.tensor([0, 1000, 1000, 1001]), 128)
    assert tiles.event.index.tolist() == [0] * 8 + [2]
    assert len(tiles.slots.index) == 9 * 128
    with pytest.raises(ValueError, match=">= 1"):
        Tiles.of_offsets(torch.tensor([0, 3]), 0)
