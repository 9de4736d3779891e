"""Decoder of streams: published size, bases against scipy's cosine transform, and what a query may depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.fft import dct
from stream_events import encoder, event, one_batch

from nufm.data.streams import StreamEvent
from nufm.models.stream_decoder import StreamDecoder, VoxelBases, cosine_modes
from nufm.models.stream_encoder import Latents


def small(**changes: object) -> tuple:
    made = encoder()
    return made, StreamDecoder(made, **{"channels": 36, "heads": 2, "depth": 2} | changes).eval()


def test_parameters_are_those_of_the_public_code():
    """2.33 M: linear 384 → 256, two cross-attention blocks, 2,400 and 96 coefficients, bases, heads."""
    with torch.device("meta"):
        decoder = StreamDecoder(encoder(384, (1, 1, 1), 12))
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(decoder) == 2_332_935
    assert count(decoder.blocks) == 2 * 790_272
    assert decoder.patches["cal3d"].voxels.coefficients.out_features == 8 * 2 * 150
    assert decoder.patches["ahcal"].voxels.coefficients.out_features == 4 * 2 * 12
    numbers = {name: sum(h.out_features for h in part.heads.values()) for name, part in decoder.patches.items()}
    assert numbers == {"cal3d": 1 + 1 + 1 + 3 + 3, "ahcal": 2}
    assert (decoder.matrix_head.out_features, decoder.track_head.out_features) == (25, 5)


@pytest.mark.parametrize(("n", "k", "rank"), [(12, 5, 2), (10, 6, 2), (5, 3, 2), (1, 1, 3)])
def test_bases_start_as_cosines(n: int, k: int, rank: int):
    transform = dct(np.eye(n), norm="ortho", axis=0)  # rows: modes
    found = cosine_modes(n, k, rank)
    for r in range(rank):
        modes = [(r * k + i) % n for i in range(k)]
        np.testing.assert_allclose(found[r].T, transform[modes], atol=1e-6)
    with pytest.raises(ValueError, match="modes along an edge"):
        cosine_modes(4, 5, 1)


def test_voxels_are_the_sum_of_products_of_the_bases():
    torch.manual_seed(0)
    bases = VoxelBases(6, (4, 3, 5), (2, 3, 2), hidden=3, rank=2)
    for basis in bases.bases:
        basis.data.normal_()
    x = torch.randn(2, 6)
    c = bases.coefficients(x).view(2, 3, 2, 2, 3, 2).movedim(1, -1).detach().numpy()
    bx, by, bz = (b.detach().numpy() for b in bases.bases)
    expected = np.zeros((2, 4, 3, 5, 3))
    for r, i, j, k in np.ndindex(2, 2, 3, 2):
        product = bx[r, :, i][:, None, None] * by[r, :, j][None, :, None] * bz[r, :, k][None, None]
        expected += c[:, r, i, j, k][:, None, None, None, :] * product[None, ..., None]
    np.testing.assert_allclose(bases.dense(x).detach().mT, expected.reshape(2, 60, 3), atol=1e-5)
    patch, slot = torch.tensor([0, 1, 1]), torch.tensor([59, 0, 17])
    rows = torch.from_numpy(expected.reshape(2, 60, 3)[patch, slot]).float()
    torch.testing.assert_close(bases(x, patch, slot), torch.nn.functional.layer_norm(rows, (3,)), atol=1e-4, rtol=1e-4)


def test_overlap_counts_what_is_not_orthonormal():
    bases = VoxelBases(6, (12, 12, 10), (5, 5, 4))
    assert float(bases.overlap().detach()) < 1e-9  # modes 0-4 and 5-9, 0-3 and 4-7
    bases.bases[0].data[0, :, 1] *= 2  # its square is 4: off by 3
    assert float(bases.overlap().detach()) == pytest.approx(9, rel=1e-5)
    again = VoxelBases(6, (12, 12, 10), (5, 5, 4))
    again.bases[2].data[1] = again.bases[2].data[0]  # four functions of one rank are those of the other
    assert float(again.overlap().detach()) == pytest.approx(0.1 * 4, rel=1e-5)


def test_a_patch_does_not_depend_on_which_others_are_asked_for():
    made, decoder = small()
    batch = one_batch(event(1), event(2, 300))
    patches, latents = made.patches(batch), made(batch)
    memory = decoder.memory(latents)
    every = decoder.decode_patches(memory, "cal3d", patches["cal3d"])
    some = torch.arange(len(every)) % 3 == 1
    torch.testing.assert_close(
        decoder.decode_patches(memory, "cal3d", patches["cal3d"].select(some)), every[some], atol=1e-5, rtol=1e-4
    )


def test_an_event_does_not_depend_on_its_batch_mates():
    made, decoder = small()
    events = [event(1), event(2, 300), event(3, 50)]
    batch = one_batch(*events)
    memory, patches = decoder.memory(made(batch)), made.patches(batch)["ahcal"]
    together = decoder.decode_patches(memory, "ahcal", patches)
    matrix = decoder.matrix(memory, torch.tensor([0, 2]))
    alone = one_batch(events[2])
    memory = decoder.memory(made(alone))
    found = decoder.decode_patches(memory, "ahcal", made.patches(alone)["ahcal"])
    torch.testing.assert_close(found, together[patches.event == 2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decoder.matrix(memory, torch.tensor([0])), matrix[1:], atol=1e-5, rtol=1e-4)


def test_what_is_said_depends_on_place_module_and_stream():
    made, decoder = small()
    memory = decoder.memory(made(one_batch(event(1))))
    patches = made.patches(one_batch(event(1)))["cal3d"]
    queries = decoder.patches["cal3d"].queries(patches)
    assert len(torch.unique(queries.detach(), dim=0)) == len(patches)  # (module, cell) are all different
    logit, mean = decoder.tracks(memory, torch.tensor([0]))
    assert logit.shape == (1,) and mean.shape == (1, 4)
    assert decoder.matrix(memory, torch.tensor([0])).shape == (1, 25)


def test_without_latents_and_without_queries():
    """An event with nothing in a calorimeter can still be asked for its matrix; nothing to ask for is legal."""
    made, decoder = small()
    empty = StreamEvent(name="nothing")
    latents = made(one_batch(empty, event(1)))
    assert latents.offsets.tolist()[:2] == [0, 0]
    memory = decoder.memory(latents)
    found = decoder.matrix(memory, torch.tensor([0, 1]))
    assert bool(torch.isfinite(found).all()) and not torch.equal(found[0], found[1])
    nobody = torch.zeros(0, dtype=torch.int64)
    assert decoder.matrix(memory, nobody).shape == (0, 25) and decoder.tracks(memory, nobody)[1].shape == (0, 4)
    patches = made.patches(one_batch(empty))["cal3d"]
    none = decoder.decode_patches(decoder.memory(Latents(latents.feat[:0], torch.zeros(2).long())), "cal3d", patches)
    said = decoder.patches["cal3d"](none, nobody, nobody, ("occupancy", "category"))
    assert said["occupancy"].shape == (0,) and said["category"].shape == (0, 3)


def test_streams_that_the_encoder_lacks_are_not_decoded():
    full = encoder()
    alone = type(full)(**full.arguments | {"tail": None, "matrix": None, "tracks": None})
    decoder = StreamDecoder(alone, channels=36, heads=2)
    assert list(decoder.patches) == ["cal3d"] and decoder.matrix_head is None and decoder.track_head is None
    assert dataclasses.is_dataclass(alone.patches(one_batch(event(1)))["cal3d"])
