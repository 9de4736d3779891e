"""Tokens and reconstructions in voxels and MeV: against the lattice itself and a second derivation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from run_support import write_data

from nufm.data.datamodule import PointDataModule
from nufm.data.event import Event, PointBatch
from nufm.data.pilarnet import PILArNetReader
from nufm.data.tokens import voxel_energy, voxel_index
from nufm.data.transforms import (
    CenterShift,
    Compose,
    EnergyJitter,
    GridSample,
    LogEnergy,
    NormalizeCoord,
    RandomFlip,
    RawEnergy,
    compose,
)
from nufm.methods.event_tokens import event_reconstruction, event_tokens, tokens_named
from nufm.methods.linear_probe import ProbeSettings
from nufm.methods.masked_points import MaskedPoints
from nufm.models.token_encoder import TokenEncoder
from nufm.models.tokens import VOXEL, Tokenizer
from nufm.report import write_report

TRANSFORMS = (NormalizeCoord(383.5), LogEnergy(epsilon=0.13))
GENUINE = Path(__file__).parents[1] / "data" / "pilarnet_m_event.h5"


@pytest.fixture(scope="module")
def genuine() -> Event:
    return PILArNetReader(GENUINE, min_points=0)[0].replace(seed=7)


def model(**changes: object) -> MaskedPoints:
    torch.manual_seed(0)
    encoder = TokenEncoder(
        Tokenizer(max_points=12), channels=24, depth=2, heads=2, drop_path=0.3, attention_dropout=0.1,
        feature_blocks=(1,),
    )  # fmt: skip
    return MaskedPoints(encoder, **{"decoder_depth": 1} | changes)


def test_tokens_are_where_the_voxels_are(genuine) -> None:
    tokens = event_tokens(Tokenizer(max_points=12), genuine, TRANSFORMS, VOXEL)
    assert tokens.radius == pytest.approx(5, rel=2e-4) and tokens.max_points == 12 and tokens.left_out == 0
    whole = np.rint(tokens.centre).astype(int)
    np.testing.assert_allclose(tokens.centre, whole, atol=1e-3)  # seeds are points
    assert {tuple(v) for v in whole} <= {tuple(v) for v in genuine.voxel}
    distance = np.linalg.norm(genuine.voxel[tokens.members] - whole[tokens.token], axis=1)
    assert distance.max() < 5.001 and tokens.counts.max() == 12
    nearest = np.linalg.norm(genuine.voxel[:, None] - whole[None], axis=2).min(1)
    clear = nearest != 5  # at 5 voxels exactly, rounding of the coordinates decides
    np.testing.assert_array_equal(tokens.in_ball[clear], nearest[clear] < 5)
    assert 0.8 < tokens.in_ball.mean() < 1


def test_rows_are_those_of_the_event_as_it_was_read(genuine) -> None:
    """A transform that drops and a file in another order change rows, not places."""
    coarse = (*TRANSFORMS, GridSample(3 * VOXEL))
    tokens = event_tokens(Tokenizer(max_points=12), genuine, coarse, 3 * VOXEL)
    assert len(tokens.event) == len(genuine) and len(np.unique(tokens.members)) < 0.8 * len(genuine)
    distance = np.linalg.norm(genuine.voxel[tokens.members] - tokens.centre[tokens.token], axis=1)
    assert distance.max() < 5.001
    assert not tokens.in_ball[tokens.times == 0].all()  # what was dropped is in no ball
    order = np.random.default_rng(0).permutation(len(genuine))
    turned = event_tokens(Tokenizer(max_points=12), genuine.select(order), TRANSFORMS, VOXEL)
    straight = event_tokens(Tokenizer(max_points=12), genuine, TRANSFORMS, VOXEL)
    np.testing.assert_array_equal(order[turned.members], straight.members)


def test_centres_that_are_means(genuine) -> None:
    tokens = event_tokens(Tokenizer.preset("25"), genuine, TRANSFORMS, VOXEL)
    for t in range(len(tokens)):
        rows = tokens.members[tokens.starts[t] : tokens.starts[t + 1]]
        np.testing.assert_allclose(tokens.centre[t], genuine.voxel[rows].mean(0), atol=1e-2)


def test_a_point_of_a_token_is_in_a_ball_wherever_its_centre_went() -> None:
    """Many voxels on one side: the mean is 3 voxels from the seed, the voxel on the other side 8 from it."""
    voxel = np.array([[300, 300, 300], [295, 300, 300], *([305, y, 300] for y in range(297, 304))])
    event = Event(voxel.astype(np.int32), np.ones(len(voxel), np.float32))
    tokenizer = Tokenizer(radius=6.0 * VOXEL, centre="mean")
    tokens = event_tokens(tokenizer, event, TRANSFORMS, VOXEL)
    far = np.linalg.norm(voxel[tokens.members] - tokens.centre[tokens.token], axis=1) > 6.1
    assert far.any(), "there is such a point"
    assert tokens.in_ball[tokens.members].all() and (tokens.in_ball | (tokens.times == 0)).all()


def test_reconstruction_in_voxels_and_mev(genuine) -> None:
    """Against the model's own output, turned back by hand: E = 10^[(y + 1)/2·(log10(20 + ε) - log10 ε)]·ε - ε."""
    method = model()
    method.train()
    method.encoder.embedding.eval()
    found = event_reconstruction(method, genuine, TRANSFORMS, VOXEL)
    assert method.training and not method.encoder.embedding.training  # each module's own mode again
    method.eval()
    batch = PointBatch.from_events([compose(TRANSFORMS, genuine, np.random.default_rng(0))], VOXEL)
    with torch.no_grad():
        raw = method.reconstruct(batch)
    np.testing.assert_array_equal(found.hidden, raw.masked.numpy())
    np.testing.assert_array_equal(found.rows, raw.hidden.members.numpy())
    coord = raw.hidden.centre[:, None] + 5 / 665.10751 * raw.points[:, :, :3]
    np.testing.assert_allclose(found.position, coord.double().numpy() * 665.10751 + 383.5, atol=1e-3)

    def mev(y: torch.Tensor) -> np.ndarray:
        return 0.13 * (20.13 / 0.13) ** ((y.double().numpy() + 1) / 2) - 0.13

    np.testing.assert_allclose(found.energy, mev(raw.points[:, :, 3]), rtol=1e-5)
    np.testing.assert_allclose(found.infilled, mev(raw.energy[:, 0]), rtol=1e-5)
    # what was fed in comes back as the energy of the voxels
    np.testing.assert_allclose(mev(raw.hidden.points[:, 3]), genuine.energy[found.rows], rtol=1e-4, atol=1e-5)
    again = event_reconstruction(method, genuine.replace(seed=8), TRANSFORMS, VOXEL)
    assert again.hidden.sum() == found.hidden.sum() and (again.hidden != found.hidden).any()


def test_point_mae_and_positions_alone(genuine) -> None:
    found = model(energy_infilling=False).examples(genuine, TRANSFORMS, VOXEL)
    assert list(found) == ["tokens", "reconstruction"] and found["tokens"] is found["reconstruction"].tokens
    assert found["reconstruction"].infilled is None and found["reconstruction"].energy is not None
    alone = event_reconstruction(model(energy_infilling=False, targets="position"), genuine, TRANSFORMS, VOXEL)
    assert alone.energy is None and alone.position.shape == (alone.hidden.sum(), 12, 3)


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single(genuine, n) -> None:
    found = event_reconstruction(model(), genuine.select(np.arange(n)), TRANSFORMS, VOXEL)
    assert len(found.tokens) == n and not found.hidden.any() and found.position.shape == (0, 12, 3)
    assert found.energy.shape == (0, 12) and len(found.infilled) == 0


def test_energies_as_they_are(genuine) -> None:
    found = event_reconstruction(model(), genuine, (NormalizeCoord(), RawEnergy()), VOXEL)
    assert np.isfinite(found.energy).all()


def test_what_cannot_be_turned_back_is_refused(genuine) -> None:
    moved = genuine.replace(coord=genuine.voxel.astype(np.float32) * VOXEL)
    with pytest.raises(ValueError, match=r"coordinates into voxels: expected NormalizeCoord .*, found LogEnergy"):
        event_tokens(Tokenizer(), moved, (LogEnergy(),), VOXEL)
    given = genuine.replace(feat=np.ones((len(genuine), 1), np.float32), columns=("charge",))
    with pytest.raises(ValueError, match=r"features into MeV: expected LogEnergy or RawEnergy .*, found Norm"):
        event_reconstruction(model(), given, (NormalizeCoord(),), VOXEL)


def test_transforms_in_a_compose_are_found(genuine) -> None:
    nested = (Compose((CenterShift(), Compose(TRANSFORMS))),)  # what was moved before NormalizeCoord does not matter
    # made where the shift has coordinates to act on
    event = genuine.replace(coord=np.zeros((len(genuine), 3), np.float32))
    found, expected = (event_tokens(Tokenizer(), event, each, VOXEL) for each in (nested, TRANSFORMS))
    np.testing.assert_array_equal(found.centre, expected.centre)
    assert voxel_energy(LogEnergy(0.13)(genuine, None).feat, nested)[:, 0] == pytest.approx(genuine.energy, rel=1e-4)


def test_what_was_changed_since_is_refused(genuine) -> None:
    for moving in ((*TRANSFORMS, CenterShift()), (Compose((*TRANSFORMS, RandomFlip())),)):
        name = "RandomFlip" if len(moving) == 1 else "CenterShift"
        with pytest.raises(ValueError, match=f"into voxels: found {name} after NormalizeCoord .*expected nothing"):
            event_tokens(Tokenizer(), genuine, moving, VOXEL)
    with pytest.raises(ValueError, match=r"into MeV: found EnergyJitter after LogEnergy .*expected nothing .*augment"):
        event_reconstruction(model(), genuine, (*TRANSFORMS, EnergyJitter()), VOXEL)
    assert voxel_index(np.zeros(3), (*TRANSFORMS, EnergyJitter(), GridSample())).tolist() == [383.5] * 3


def test_tokens_by_name(genuine) -> None:
    for size, radius, max_points in (("2.5", 2.5, 16), ("5", 5, 32), ("25", 25, 128)):
        tokens = tokens_named(genuine, size, None)
        assert tokens.radius == pytest.approx(radius, rel=2e-4) and tokens.max_points == max_points
    own = SimpleNamespace(
        encoder=TokenEncoder(Tokenizer(radius=3 * VOXEL), channels=24, depth=1, heads=2, feature_blocks=(0,)),
        transforms=TRANSFORMS, grid_size=VOXEL, source="RUN",
    )  # fmt: skip
    assert tokens_named(genuine, None, own).radius == pytest.approx(3)
    own.encoder = torch.nn.Linear(4, 8)
    with pytest.raises(ValueError, match="RUN: a Linear has no tokens of its own; name a size"):
        tokens_named(genuine, None, own)


@pytest.mark.parametrize("moved", [False, True])
def test_a_report_has_the_pictures(tmp_path, capsys, moved) -> None:
    transforms = [*TRANSFORMS, *([CenterShift()] if moved else [])]
    data = PointDataModule(
        str(write_data(tmp_path / "data")), transforms=transforms, grid_size=VOXEL, batch_size=4, min_points=16
    )
    settings = ProbeSettings(epochs=1, batch_size=512)
    write_report(model(), data, tmp_path / "run", n_events=2, settings=settings)
    pictures = {path.stem for path in (tmp_path / "run" / "pictures").glob("*.png")}
    assert pictures == {"event", "features", "probe"} | (set() if moved else {"reconstruction", "tokens"})
    assert ("left out: cannot turn coordinates" in " ".join(capsys.readouterr().err.split())) is moved
    assert (tmp_path / "run" / "report.json").exists()
