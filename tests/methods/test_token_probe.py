"""Token probes against brute force, scikit-learn by hand, and features that hold the answer."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import precision_recall_fscore_support
from sklearn.svm import LinearSVC

from nufm.data.datamodule import PointDataModule
from nufm.data.event import Event, PointBatch
from nufm.data.transforms import CenterShift, Compose, LogEnergy, NormalizeCoord
from nufm.methods.linear_probe import EventChoice, raw_features
from nufm.methods.token_probe import (
    logistic_probe,
    pair_features,
    raw_token_features,
    share_probe,
    svm_probe,
    token_features,
    token_tables,
    whitened,
)
from nufm.methods.token_truth import (
    TokenTruth,
    collect_tokens,
    creation_points,
    dominant_particle,
    token_classes,
    token_pairs,
)
from nufm.models.ptv3 import PointTransformerV3
from nufm.models.token_encoder import TokenEncoder
from nufm.models.tokens import VOXEL, Tokenizer

FIT, SCORE = EventChoice("train", 12), EventChoice("test", 6)


def write_events(path: Path, n_events: int, seed: int, vertices: bool = True) -> None:
    """Files with a low-energy cloud, a track with a delta ray on it, a shower and a Michel electron in each event."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        names = ("point", "cluster", "cluster_extra") if vertices else ("point", "cluster")
        data = {name: file.create_dataset(name, (n_events,), h5py.vlen_dtype(np.float32)) for name in names}
        for i in range(n_events):
            start = rng.integers(100, 500, 3)
            track = start + np.arange(60)[:, None] * rng.choice([-1, 1], 3)
            michel = track[-1] + np.cumsum(rng.integers(0, 2, (12, 3)) * rng.choice([-1, 1], 3), axis=0)
            delta = track[30] + np.arange(1, 6)[:, None] * [0, 0, 2]
            shower = rng.integers(100, 500, 3) + np.rint(rng.normal(scale=6, size=(60, 3)))
            low = rng.integers(50, 550, (20, 3))
            clouds = [(low, -1, 4, -1, 0.3), (track, 0, 1, 2, 1.0), (michel, 1, 2, 1, 0.8)]
            clouds += [(delta, 2, 3, 1, 3.0), (shower, 3, 0, 0, 0.5)]
            point, cluster, extra = [], [], []
            for voxel, particle, motif, pid, energy in clouds:
                rows = np.zeros((len(voxel), 8), np.float32)
                rows[:, :3] = np.clip(voxel, 0, 767)
                rows[:, 3] = energy * rng.uniform(0.8, 1.2, len(voxel))
                point.append(rows)
                cluster.append([len(voxel), particle, particle, min(particle, 0), motif, pid])
                extra.append([0, 0.1, *((rows[0, :3] + 0.5 - 384) * 3)] if particle >= 0 else [-1] * 5)
            data["point"][i] = np.concatenate(point).ravel()
            data["cluster"][i] = np.array(cluster, np.float32).ravel()
            if vertices:
                data["cluster_extra"][i] = np.array(extra, np.float32).ravel()


def module(folder: Path, **settings: object) -> PointDataModule:
    settings = {"batch_size": 4, "transforms": [NormalizeCoord(), LogEnergy(0.13)]} | settings
    return PointDataModule(root=str(folder), min_points=1, grid_size=VOXEL, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    for split, n in (("train", 12), ("test", 6)):
        write_events(folder / split / "events.h5", n, n)
    return folder


@pytest.fixture(scope="module")
def data(folder) -> PointDataModule:
    return module(folder)


@pytest.fixture(scope="module")
def batch(data) -> PointBatch:
    return next(iter(data.probe_dataloader("test", 3)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.preset("5", max_points=16)


def small_encoder(tokenizer: Tokenizer) -> TokenEncoder:
    torch.manual_seed(0)
    return TokenEncoder(tokenizer, channels=24, depth=2, heads=2, drop_path=0.0, feature_blocks=(0, 1))


def small_ptv3() -> PointTransformerV3:
    torch.manual_seed(0)
    return PointTransformerV3(depths=(1, 1), channels=(16, 32), heads=(1, 2), window=32, layer_scale=1.0)


def members_of(tokens, i: int) -> np.ndarray:
    return tokens.members[tokens.starts[i] : tokens.starts[i + 1]].numpy()


# ---------------------------------------------------------------------------------------- features


def test_features_of_a_token_encoder_are_those_of_its_last_block(batch, tokenizer):
    encoder = small_encoder(tokenizer).train()
    encoder.transformer.blocks[0].attn.dropout = 0.5
    found = token_features(encoder, Tokenizer(**tokenizer.arguments))(batch, tokenizer(batch))
    assert encoder.training, "left as it was"
    with torch.no_grad():
        torch.testing.assert_close(found, encoder.eval()(batch).feat)


def test_tokens_are_the_same_up_to_digits_and_their_largest_number(batch):
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "tiny" / "polarmae.yaml").read_text())
    written = config["model"]["init_args"]["encoder"]["init_args"]["tokenizer"]["init_args"]
    preset = Tokenizer.preset("5")
    assert written["radius"] != preset.radius, "a rounded radius"
    encoder = small_encoder(Tokenizer(**written, max_tokens=4096, beyond="truncate")).eval()
    tokens = preset(batch)
    with torch.no_grad():
        assert torch.equal(token_features(encoder, preset)(batch, tokens), encoder.encode(tokens).feat)
    for other in ({"radius": 0.0076}, {"max_points": 31}, {"overlap": None}, {"ball_cap": 256}, {"centre": "mean"}):
        encoder = small_encoder(Tokenizer(**written | other)).eval()
        with torch.no_grad():
            found, own = token_features(encoder, preset)(batch, tokens), encoder.encode(tokens).feat
        assert (found - own).abs().max() > 1e-3, f"averaged over the points: {other}"


@pytest.mark.parametrize("kind", ["points", "other tokens"])
def test_another_encoder_is_averaged_over_the_points_of_a_token(batch, tokenizer, kind):
    encoder = small_ptv3() if kind == "points" else small_encoder(Tokenizer.preset("2.5"))
    tokens = tokenizer(batch)
    with torch.no_grad():
        found = token_features(encoder, tokenizer)(batch, tokens)
        of_points = encoder.eval().point_features(batch)
    for i in range(len(tokens)):
        torch.testing.assert_close(found[i], of_points[members_of(tokens, i)].mean(0), rtol=1e-4, atol=1e-5)


def test_raw_features_of_tokens(batch, tokenizer):
    tokens = tokenizer(batch)
    found, raw = raw_token_features(batch, tokens).numpy(), raw_features(batch).double().numpy()
    for i in range(len(tokens)):
        own = raw[members_of(tokens, i)]
        expected = [*own.mean(0), *own.std(0), np.log(len(own))]
        np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------- truth


def test_classes_and_particles_of_tokens_by_brute_force(batch, tokenizer):
    rng = np.random.default_rng(0)
    tokens = tokenizer(batch)
    motif = torch.from_numpy(rng.choice([-1, 0, 1, 2, 3, 4], len(batch), p=[0.3, 0.2, 0.2, 0.02, 0.08, 0.2]))
    particle = torch.from_numpy(rng.integers(-1, 3, len(batch)))
    present, share = token_classes(motif, tokens)
    dominant = dominant_particle(particle, tokens)
    for i in range(len(tokens)):
        own, ids = motif[members_of(tokens, i)].numpy(), particle[members_of(tokens, i)].numpy()
        assert present[i].tolist() == [c in own for c in range(4)]
        known = own[own >= 0]
        np.testing.assert_allclose(share[i], [(known == c).sum() / max(len(known), 1) for c in range(5)])
        counts = {p: (ids == p).sum() for p in sorted(set(ids.tolist()))}
        assert dominant[i] == max(counts, key=lambda p: counts[p])  # the first of equals


def test_a_token_of_ignored_points_alone(batch, tokenizer):
    tokens = tokenizer(batch)
    nothing = torch.full((len(batch),), -1)
    present, share = token_classes(nothing, tokens)
    assert not present.any() and not share.any()
    assert (dominant_particle(nothing, tokens) == -1).all()
    assert not token_classes(torch.full_like(nothing, 4), tokens)[0].any(), "low-energy deposits are no target"


def test_a_vertex_at_the_centre_of_a_voxel_has_its_coordinates(data):
    event = data.eval_dataset("test")[0]
    normalize = NormalizeCoord(centre=383.5, scale=100.0)
    found = creation_points(event, normalize)
    first = [np.flatnonzero(event.particle == p)[0] for p in range(4)]  # where write_events creates them
    expected = np.unique(normalize(event, None).coord[first], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_vertices_are_said_to_be_none(data):
    event = data.eval_dataset("test")[0]
    assert creation_points(event.replace(vertex=None), NormalizeCoord()) is None
    assert creation_points(event.replace(vertex=np.zeros_like(event.vertex)), NormalizeCoord()) is None, "never filled"
    low = event.select(event.particle < 0)
    assert creation_points(low, NormalizeCoord()).shape == (0, 3), "no particles, no vertices"


def test_tokens_with_a_vertex_by_brute_force(data, tokenizer):
    _, truth = collect_tokens({}, tokenizer, data, "test", [0, 1, 2, 3, 4], 10**6)
    row = 0
    for number in range(5):
        event = data.eval_dataset("test")[number]
        tokens = tokenizer(PointBatch.from_events([event], VOXEL))
        places = (event.vertex[event.particle >= 0] / 3 + 384 - 0.5 - 384) * VOXEL  # one row for each point
        for centre in tokens.centre.numpy():
            assert truth.event[row] == number
            assert truth.vertex[row] == bool((np.linalg.norm(places - centre, axis=1) <= tokenizer.radius).any())
            row += 1
    assert row == len(truth) and truth.n_events == 5 and truth.n_vertices == 20
    assert 0.02 < truth.vertex.mean() < 0.5


def test_the_first_tokens_whatever_the_batches(data, folder, tokenizer):
    rows = {"raw": [raw_token_features]}
    feat, truth = collect_tokens(rows, tokenizer, data, "train", list(range(12)), 100)
    whole, everything = collect_tokens(rows, tokenizer, module(folder, batch_size=5), "train", list(range(12)), 10**6)
    assert len(truth) == 100 == len(feat["raw"][0]) < len(everything) and truth.n_events < 12
    np.testing.assert_allclose(feat["raw"][0], whole["raw"][0][:100], rtol=1e-5)
    for name in ("event", "present", "share", "particle", "vertex"):
        np.testing.assert_array_equal(getattr(truth, name), getattr(everything, name)[:100])
    first_two = int((everything.event < 2).sum())  # a set that ends with an event
    for n in (1, 100, first_two, first_two + 1):
        for batch_size in (1, 5, 12):
            _, cut = collect_tokens({}, tokenizer, module(folder, batch_size=batch_size), "train", range(12), n)
            assert cut.n_events == everything.event[n - 1] + 1
            assert cut.n_vertices == 4 * cut.n_events, "four particles in an event"
    assert everything.n_events == 12 and everything.n_vertices == 48


def pairs_truth(seed: int = 0, n_events: int = 3, particles: int = 4) -> TokenTruth:
    rng = np.random.default_rng(seed)
    event = np.repeat(np.arange(n_events), 60)
    n = len(event)
    centre = rng.uniform(0, 9, (n, 3))
    none = np.zeros((n, 5))
    return TokenTruth(event, centre, none[:, :4] > 0, none, rng.integers(-1, particles, n), None, n_events)


def test_pairs_are_balanced_and_true():
    truth = pairs_truth()
    pairs, same, apart = token_pairs(truth)
    a, b = pairs.T
    assert len(pairs) == 2 * same.sum() > 300 and (a != b).all()
    assert (truth.event[a] == truth.event[b]).all() and (truth.particle[pairs] >= 0).all()
    np.testing.assert_array_equal(same, truth.particle[a] == truth.particle[b])
    np.testing.assert_allclose(apart, np.sqrt(((truth.centre[a] - truth.centre[b]) ** 2).sum(1)))
    for kind in (same, ~same):
        assert abs((apart[kind] < 5).mean() - 0.5) < 0.02
    assert len(np.unique(np.sort(pairs, axis=1), axis=0)) == len(pairs), "none twice"
    again = token_pairs(truth)
    np.testing.assert_array_equal(again[0], pairs)


@pytest.mark.parametrize("particles", [0, 1])
def test_events_of_one_particle_or_none_give_no_pairs(particles):
    truth = pairs_truth(particles=particles)
    if particles == 1:
        truth.particle[:] = 0
    pairs, same, apart = token_pairs(truth)
    assert pairs.shape == (0, 2) and same.shape == apart.shape == (0,)


def test_pair_features_do_not_depend_on_the_order():
    feat = np.random.default_rng(0).normal(size=(10, 3))
    pairs = np.array([[0, 1], [4, 2]])
    found = pair_features(feat, pairs)
    np.testing.assert_array_equal(found, pair_features(feat, pairs[:, ::-1]))
    np.testing.assert_allclose(found[1], [*np.abs(feat[4] - feat[2]), *(feat[4] * feat[2])])


# ---------------------------------------------------------------------------------------- probes


def told(truth: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Features (T, 150) of which a few hold the truth (T, K), of different scales, with noise."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(5).normal(size=(truth.shape[1], 150)) * np.geomspace(0.05, 5, 150)
    return truth @ mix + noise * rng.normal(size=(len(truth), 150))


def test_svm_by_hand():
    """PCA from the covariance's eigenvectors, then one LinearSVC for each class."""
    rng = np.random.default_rng(1)
    fit_y, y = rng.random((600, 4)) < [0.5, 0.4, 0.1, 0.05], rng.random((300, 4)) < [0.5, 0.4, 0.1, 0.05]
    fit, score = told(fit_y, 1.0, 2), told(y, 1.0, 3)
    found = svm_probe(fit, fit_y, score)
    mean = fit.mean(0)
    basis = np.linalg.eigh(np.cov(fit.T))[1][:, ::-1][:, :128]
    for c in range(4):
        svm = LinearSVC(C=0.005, class_weight="balanced", random_state=0, dual=False, tol=1e-6)
        svm.fit((fit - mean) @ basis, fit_y[:, c])
        assert (svm.predict((score - mean) @ basis) == found[:, c]).mean() > 0.99
    assert (found == y).mean() > 0.8, "the features say it"


def test_svm_of_fewer_tokens_than_components_and_an_absent_class():
    rng = np.random.default_rng(1)
    fit, present = rng.normal(size=(20, 40)), np.zeros((20, 4), dtype=bool)
    present[:, 0], present[::2, 1] = True, True  # one class in all, one in half, two in none
    found = svm_probe(fit, present, rng.normal(size=(7, 40)))
    assert found.shape == (7, 4) and found[:, 0].all() and not found[:, 2:].any()


def test_shares_are_fitted_with_soft_targets():
    """Against the same loss minimised in torch: cross-entropy with the shares, and scikit-learn's ½|w|² at C = 1."""
    rng = np.random.default_rng(0)
    feat = rng.normal(size=(200, 6))
    share = rng.dirichlet(np.ones(3) * 0.5, 200)
    share[share < 0.05] = 0
    share = np.concatenate([share / share.sum(1, keepdims=True), np.zeros((200, 1))], axis=1)  # the last: in none
    found = share_probe(feat, share, feat)
    x, target = torch.from_numpy(feat), torch.from_numpy(share[:, :3])
    weight, bias = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    free = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(free, max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = -(target * torch.log_softmax(x @ weight.T + bias, 1)).sum() + weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    expected = torch.softmax(x @ weight.T + bias, 1).detach().numpy()
    np.testing.assert_allclose(found[:, :3], expected, atol=2e-3)
    assert not found[:, 3].any()


def test_one_class_alone_is_certain():
    classes, found = logistic_probe(np.zeros((3, 2)), np.array([2, 2, 2]), np.zeros((4, 2)))
    assert classes.tolist() == [2] and (found == 1).all() and found.shape == (4, 1)


def test_whitening_takes_scale_and_redundance_away():
    rng = np.random.default_rng(0)
    fit, score = rng.normal(size=(2, 400, 10)) * np.geomspace(1e-3, 1e3, 10) + 7
    fit, score = (np.concatenate([x, x[:, :1], np.ones((400, 1))], axis=1) for x in (fit, score))  # redundant, constant
    white, other = whitened(fit, score)
    assert white.shape == other.shape == (400, 10)
    np.testing.assert_allclose(np.cov(white.T), np.eye(10), atol=1e-6)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-6)
    again = whitened(fit * 50 - 3, score * 50 - 3)[1]
    np.testing.assert_allclose(np.abs(again), np.abs(other), rtol=1e-4, atol=1e-6)
    wide = rng.normal(size=(300, 200))
    assert whitened(wide, wide[:5])[1].shape == (5, 128)


# ---------------------------------------------------------------------------------------- tables


def answer(batch: PointBatch, tokens) -> torch.Tensor:
    """Features that hold classes and particle of a token."""
    particle = torch.nn.functional.one_hot(torch.from_numpy(dominant_particle(batch.labels["particle"], tokens)) + 1, 5)
    present, share = token_classes(batch.labels["motif"], tokens)
    return torch.cat([torch.from_numpy(present), torch.from_numpy(share), particle], dim=1).float() * 20


def noise(batch: PointBatch, tokens) -> torch.Tensor:
    return torch.randn(len(tokens), 6, generator=torch.Generator().manual_seed(len(tokens)))


@pytest.fixture(scope="module")
def tables(data, tokenizer) -> dict:
    encoders = [token_features(small_encoder(tokenizer), tokenizer), token_features(small_ptv3(), tokenizer)]
    rows = {"answer": [answer], "noise": [noise], "encoders": encoders}
    return token_tables(rows, tokenizer, data, FIT, SCORE)


def test_features_that_hold_the_answer_win(tables):
    mean = {probe: {row: found["mean"] for row, found in table["scores"].items()} for probe, table in tables.items()}
    assert mean["svm"]["answer"]["macro_f1"] > 0.98 > 0.7 > mean["svm"]["noise"]["macro_f1"]
    assert mean["svm"]["answer"]["macro_f1_whitened"] > 0.95
    assert mean["classes"]["answer"]["macro_f1"] > 0.95 > 0.4 > mean["classes"]["noise"]["macro_f1"]
    assert mean["classes"]["answer"]["error"] < 0.05 < 0.2 < mean["classes"]["noise"]["error"]
    assert mean["pairs"]["answer"]["auc"] > 0.99 and abs(mean["pairs"]["noise"]["auc"] - 0.5) < 0.08
    assert mean["pairs"]["answer"]["auc_near"] > 0.75 > abs(mean["pairs"]["noise"]["auc_near"])
    base = tables["vertex"]["baseline"]["average_precision"]
    assert 0.02 < base < 0.5 and mean["vertex"]["noise"]["average_precision"] < base + 0.12
    assert base < mean["vertex"]["answer"]["average_precision"] < 1, "a Michel electron begins where it is"


def test_tables_are_json_with_all_rows(tables):
    json.dumps(tables, allow_nan=False)
    assert list(tables) == ["svm", "classes", "pairs", "vertex"]
    for table in tables.values():
        assert list(table["scores"]) == ["answer", "noise", "encoders"] and table["notes"] == []
        assert table["tokens"] == tables["svm"]["tokens"] and table["events"] == {"train": 12, "test": 6}
        assert table["tokenizer"]["max_points"] == 16
        for row, found in table["scores"].items():
            first = next(iter(table["metrics"]))
            values = [seed[first] for seed in found["per_seed"]]
            assert len(values) == (2 if row == "encoders" else 1)
            assert found["mean"][first] == pytest.approx(np.mean(values))
            assert found["std"][first] == (pytest.approx(np.std(values, ddof=1)) if len(values) > 1 else None)
            assert set(found["per_seed"][0]) == set(table["metrics"])


def test_f1_and_errors_by_hand(data, tokenizer, tables):
    rows = {"noise": [noise]}
    fitted, known = collect_tokens(rows, tokenizer, data, "train", range(12), 10**6)
    held_out, truth = collect_tokens(rows, tokenizer, data, "test", range(6), 10**6)
    fit, feat = fitted["noise"][0], held_out["noise"][0]
    expected = precision_recall_fscore_support(truth.present, svm_probe(fit, known.present, feat))[2]
    found, names = tables["svm"]["scores"]["noise"]["per_seed"][0], ("shower", "track", "Michel", "delta")
    np.testing.assert_allclose([found[name] for name in names], expected, atol=1e-9)
    assert found["macro_f1"] == pytest.approx(expected.mean())
    assert tables["svm"]["counts"] == dict(zip(names, truth.present.sum(0), strict=True))
    mean = known.share.mean(0)  # every token has labelled points here
    assert tables["classes"]["baseline"]["error"] == pytest.approx(np.abs(truth.share - mean).mean())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_a_collapsed_encoder_is_scored_like_chance(data, tokenizer, noise):
    def collapsed(batch: PointBatch, tokens) -> torch.Tensor:
        drawn = torch.randn(len(tokens), 6, generator=torch.Generator().manual_seed(len(tokens)))
        return torch.tensor([0.0, 1.0, -0.3, 0.1, 7.0, 1e3]) * (1 + noise * drawn)  # a table for it, and for the others

    rows = {"collapsed": [collapsed], "answer": [answer]}
    tables = token_tables(rows, tokenizer, data, FIT, SCORE)
    json.dumps(tables, allow_nan=False)
    mean = {probe: table["scores"]["collapsed"]["mean"] for probe, table in tables.items()}
    base = {probe: table["baseline"] for probe, table in tables.items()}
    if noise == 0:
        assert mean["pairs"] == {"auc": 0.5, "auc_near": 0.5}
        assert mean["vertex"] == pytest.approx({name: base["vertex"][name] for name in mean["vertex"]})
    assert mean["svm"]["macro_f1_whitened"] < 0.6 and abs(mean["pairs"]["auc"] - 0.5) < 0.1
    assert mean["classes"]["error"] == pytest.approx(base["classes"]["error"], rel=0.1)
    assert tables["svm"]["scores"]["answer"]["mean"]["macro_f1"] > 0.98


def test_files_without_vertices_say_so(tmp_path, tokenizer):
    for split, n in (("train", 4), ("test", 2)):
        write_events(tmp_path / split / "events.h5", n, n, vertices=False)
    choices = EventChoice("train"), EventChoice("test")
    rows = {"answer": [answer]}
    table = token_tables(rows, tokenizer, module(tmp_path), *choices, probes=["vertex"])["vertex"]
    assert table["scores"] == {} and "where particles were created" in table["notes"][0]


def test_moved_points_leave_vertices_out(folder, tokenizer):
    moving = module(folder, transforms=[NormalizeCoord(), LogEnergy(0.13), CenterShift()])
    table = token_tables({"answer": [answer]}, tokenizer, moving, FIT, SCORE, probes=["vertex"])["vertex"]
    assert table["scores"] == {} and "transforms move points" in table["notes"][0]


def test_vertices_need_the_lattice_whatever_holds_the_transforms(folder, tokenizer):
    straight, nested, hidden = (
        module(folder, transforms=transforms)
        for transforms in (
            [NormalizeCoord(), LogEnergy(0.13)],
            [Compose((NormalizeCoord(), LogEnergy(0.13)))],
            [NormalizeCoord(), LogEnergy(0.13), Compose((CenterShift(),))],
        )
    )
    truth = [collect_tokens({}, tokenizer, each, "test", [0, 1], 10**6)[1] for each in (straight, nested, hidden)]
    np.testing.assert_array_equal(truth[0].vertex, truth[1].vertex)
    assert truth[0].vertex.any() and truth[2].vertex is None, "moved points within"


def test_one_event_each(data, tokenizer):
    one = EventChoice("train", 1), EventChoice("test", 1)
    tables = token_tables({"answer": [answer]}, tokenizer, data, *one, max_tokens=30)
    json.dumps(tables, allow_nan=False)
    assert tables["svm"]["tokens"] == {"train": 30, "test": 30}


def test_nan_features_are_refused(data, tokenizer):
    def broken(batch: PointBatch, tokens) -> torch.Tensor:
        return torch.full((len(tokens), 2), float("nan"))

    with pytest.raises(ValueError, match=r"events.h5#0 …: features of 'mine' are NaN"):
        token_tables({"mine": [broken]}, tokenizer, data, FIT, SCORE)


def test_an_event_in_both_sets_is_refused(data, tokenizer):
    with pytest.raises(ValueError, match="none is left to score"):
        token_tables({"answer": [answer]}, tokenizer, data, EventChoice("train"), EventChoice("train"))


def test_unlabelled_and_empty_events(tmp_path, tokenizer):
    write_events(tmp_path / "train" / "events.h5", 2, 0)
    with h5py.File(tmp_path / "train" / "events.h5", "r+") as file:
        file["point"][0] = file["point"][1] = np.zeros(0, np.float32)
        for i in range(2):
            clusters = file["cluster"][i].reshape(-1, 6)
            clusters[:, 0] = 0
            file["cluster"][i] = clusters.ravel()
    empty = PointDataModule(root=str(tmp_path), min_points=0, transforms=[NormalizeCoord(), LogEnergy()])
    with pytest.raises(ValueError, match="the 2 events of 'train' have no tokens"):
        collect_tokens({}, tokenizer, empty, "train", [0, 1], 100)
    empty.reader("train").close()
    with h5py.File(tmp_path / "train" / "events.h5", "r+") as file:
        del file["cluster"], file["cluster_extra"]
    unlabelled = PointDataModule(root=str(tmp_path), min_points=0, transforms=[NormalizeCoord(), LogEnergy()])
    with pytest.raises(ValueError, match="no 'motif' labels to probe"):
        collect_tokens({}, tokenizer, unlabelled, "train", [0, 1], 100)


def test_an_event_without_points_among_others(data, tokenizer):
    events = [data.eval_dataset("test")[i] for i in range(2)]
    events.insert(1, events[0].select(np.zeros(0, np.int64)))
    batch = PointBatch.from_events(events, VOXEL)
    tokens = tokenizer(batch)
    assert (tokens.event != 1).all()
    for features in (raw_token_features, token_features(small_ptv3(), tokenizer)):
        with torch.no_grad():
            assert features(batch, tokens).shape[0] == len(tokens)
    assert isinstance(creation_points(events[1], NormalizeCoord()), np.ndarray)


def test_a_vertex_in_the_only_voxel():
    event = Event(
        voxel=np.array([[10, 20, 30]], np.int32), energy=np.array([1.0], np.float32), motif=np.array([1]),
        particle=np.array([0]), vertex=np.array([[-1120.5, -1090.5, -1060.5]], np.float32),
    )  # fmt: skip
    place = creation_points(event, NormalizeCoord())
    np.testing.assert_allclose(place, NormalizeCoord()(event, None).coord, atol=1e-6)
