"""Predictions of a model that looks at all particles of an event do not depend on how many are predicted at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nufm.checkpoint import from_pretrained, save_pretrained
from nufm.checkpoint.pretrained import _whole_groups
from nufm.data.stream_files import StreamReader
from nufm.data.streams import StreamBatch
from nufm.models.particle_network import ParticleNetwork
from nufm.models.patches import PatchStack
from nufm.models.stream_encoder import StreamEncoder
from nufm.simulation.fasercal.dataset import write_events

GROUPS = [0, 0, 0, 1, 2, 2, 2, 2, 2, 3]


@pytest.fixture
def particles(tmp_path) -> StreamReader:
    rng = np.random.default_rng(0)
    records = [
        {
            "hits/voxels/index": np.unique(rng.integers(40, 70, (25, 3)), axis=0)[:20].astype(np.int16),
            "hits/voxels/charge": rng.exponential(1, 20).astype(np.float32),
            "truth/particle": i % 4,
            "group": group,
        }
        for i, group in enumerate(GROUPS)
    ]
    return StreamReader(write_events(tmp_path / "particles.h5", records, {"detector": "superfgd"}))


def exported(tmp_path, context: int):
    torch.manual_seed(0)
    stack = PatchStack("voxels", (120, 120, 120), (12, 12, 10), window=(2, 2, 2), channels=12, depth=1, heads=2)
    network = ParticleNetwork(StreamEncoder(stack, latent_depth=1, heads=2), 4, context=context, heads=2)
    torch.nn.init.normal_(network.head[-1].weight)
    return from_pretrained(save_pretrained(tmp_path / f"export{context}", network, transforms=[], task="superfgd"))


@pytest.mark.parametrize("size", (1, 2, 4, 100))
def test_particles_of_an_event_stay_together(tmp_path, particles, size):
    model = exported(tmp_path, 1)
    found = np.stack([p.probability["particle"] for p in model.predict(particles, batch_size=size, progress=False)])
    with torch.no_grad():
        batch = StreamBatch.from_events(list(particles), [3, 1, 5, 1])
        expected = model.model.predict(batch).probability["particle"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = np.stack([p.probability["particle"] for p in model.predict(list(particles), progress=False)])
    same = np.isclose(alone, expected, atol=1e-5).all(1)
    assert same.tolist() == [GROUPS.count(g) == 1 for g in GROUPS], "a list of events says nothing of groups"


def test_groups_do_not_matter_to_a_model_that_does_not_see_them(tmp_path, particles):
    model = exported(tmp_path, 0)
    a, b = model.predict(particles, batch_size=3, progress=False), model.predict(list(particles), progress=False)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one.probability["particle"], other.probability["particle"], atol=1e-6)


def test_batches_of_whole_groups():
    assert _whole_groups(5, 2, None) == [[1, 1], [1, 1], [1]]
    assert _whole_groups(10, 4, np.array(GROUPS)) == [[3, 1], [5], [1]]
    assert _whole_groups(0, 4, None) == [] and _whole_groups(0, 4, np.zeros(0, int)) == []
