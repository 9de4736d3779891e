"""What a model looks at: models whose answer is known, finite differences, scikit-learn and brute force."""

from __future__ import annotations

import json
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from nufm.checkpoint import Pretrained
from nufm.data.prediction import StreamPrediction
from nufm.data.stream_transforms import fit_standardize
from nufm.data.streams import CHARM_NAMES, FLAVOUR_NAMES, Hits, StreamBatch, StreamEvent
from nufm.evaluation.interpret import (
    ablation,
    aucs,
    latent_maps,
    main_label,
    near_vertex,
    neighbour_accuracy,
    saliency,
)
from nufm.evaluation.interpretation import chosen_examples, write_interpretation
from nufm.models.event_network import EventNetwork
from nufm.models.patches import PatchStack
from nufm.models.stream_encoder import MatrixToken, StreamEncoder, TrackToken
from nufm.ops.pool import segment_reduce

CLASSES = {"flavour": list(FLAVOUR_NAMES), "charm": list(CHARM_NAMES)}


def event(seed: int, flavour: int | None = None, hits: int = 40) -> StreamEvent:
    """Hits along a line from a vertex; class f has a mean charge of about 1 + f, and an ECAL of noise."""
    rng = np.random.default_rng(seed)
    flavour = seed % 6 if flavour is None else flavour
    columns = (rng.integers(2, 5, hits), rng.integers(10, 30, (hits, 2)), rng.integers(0, 20, hits))
    cell = np.unique(np.column_stack(columns), axis=0)
    charge = (1.0 + flavour + rng.normal(0, 0.4)) * rng.gamma(9.0, 1 / 9, len(cell))
    return StreamEvent(
        voxels={
            "cal3d": Hits(cell[:, 1:].astype(np.int32), cell[:, 0].astype(np.int32), charge.astype(np.float32)),
            "ahcal": Hits(np.array([[3, 4, 5]], np.int32), np.zeros(1, np.int32), np.ones(1, np.float32)),
        },
        matrices={"ecal": rng.gamma(1.0, 2.0, (5, 5)).astype(np.float32)},
        tracks={"muon": rng.normal(0, 1, (seed % 2, 5)).astype(np.float32)},
        truth={"flavour": np.int64(flavour), "vertex": np.array([-60.0, -60.0, -700.0], np.float32)},
        name=f"event {seed}",
        seed=seed,
    )


class MeanCharge(nn.Module):
    """Logit of class c: -(mean charge in 3DCal - (1 + c))², vertex always at the origin."""

    inputs = "streams"

    def __init__(self) -> None:
        super().__init__()
        self.n_classes = {"flavour": 6}
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, batch: StreamBatch) -> dict:
        hits = batch.voxels["cal3d"]
        mean = segment_reduce(hits.charge[:, None], hits.event, batch.n_events, "mean")
        return {"flavour": -((mean - 1 - torch.arange(6)) ** 2)}

    def predict(self, batch: StreamBatch) -> StreamPrediction:
        return StreamPrediction(
            {"flavour": self(batch)["flavour"].softmax(1)}, {"vertex": torch.zeros(batch.n_events, 3)}
        )


@pytest.fixture(scope="module")
def known() -> Pretrained:
    return Pretrained(MeanCharge(), (), None, "fasercal", CLASSES, source="known")


@pytest.fixture(scope="module")
def network() -> Pretrained:
    """Weights of a network that nobody trained, but whose heads say something."""
    torch.manual_seed(0)
    encoder = StreamEncoder(
        PatchStack("cal3d", [48, 48, 20], [12, 12, 10], modules=10, channels=24, depth=1, heads=2),
        PatchStack("ahcal", [18, 18, 40], [6, 6, 5], channels=24, depth=1, heads=2, group_code="source"),
        MatrixToken("ecal", 25, 24),
        TrackToken("muon", 5, 24, heads=2),
        latent_depth=1,
        heads=2,
    )
    model = EventNetwork(encoder, momentum_scaling=[1.0, 0.0, 1.0] * 4, vertex_scaling=[0.0] * 3 + [500.0] * 3)
    for head in model.heads.values():
        nn.init.normal_(head[2].weight, std=0.3)
    standard = fit_standardize([event(i) for i in range(12)])
    return Pretrained(model.eval(), (standard,), None, "fasercal", CLASSES, source="random")


# ---------------------------------------------------------------------- ablation


def test_only_what_the_model_reads_matters(known) -> None:
    events = [event(i) for i in range(60)]
    found = ablation(known, events, batch_size=7)
    rows = found["rows"]
    assert list(rows) == ["everything", "cal3d", "ecal", "ahcal", "muon"]  # along the beam
    assert rows["everything"]["macro"] > 0.8
    assert rows["cal3d"]["macro"] == pytest.approx(0.5) and rows["cal3d"]["macro_change"] < -0.3
    for stream in ("ecal", "ahcal", "muon"):
        assert rows[stream]["auc"] == rows["everything"]["auc"]
        assert rows[stream]["macro_change"] == 0 and rows[stream]["macro_change_error"] == 0
    assert rows["cal3d"]["macro_change_error"] > 0
    distance = np.linalg.norm([-60, -60, -700])
    assert rows["everything"]["vertex_median"] == pytest.approx(distance, rel=1e-5)
    assert found["filled"] == {"cal3d": 1.0, "ecal": 1.0, "ahcal": 1.0, "muon": 0.5}
    assert found["support"] == [10] * 6 and found["events"] == 60


def test_numbers_do_not_depend_on_the_batch(network) -> None:
    events = [event(i) for i in range(18)]
    one, other = ablation(network, events, batch_size=1), ablation(network, events, batch_size=18)
    for row in one["rows"]:
        np.testing.assert_allclose(one["rows"][row]["auc"], other["rows"][row]["auc"], atol=0.02)
        assert one["rows"][row]["vertex_median"] == pytest.approx(other["rows"][row]["vertex_median"], rel=1e-3)


def test_area_under_the_curve() -> None:
    rng = np.random.default_rng(0)
    score, target = rng.random((200, 4)).astype(np.float32), rng.integers(-1, 3, 200)
    found = aucs(score, target)
    for c in range(3):
        keep = target >= 0
        assert found[c] == pytest.approx(roc_auc_score(target[keep] == c, score[keep, c]))
    assert np.isnan(found[3])  # a class without events


def test_one_event_of_an_unknown_class(known) -> None:
    found = ablation(known, [event(0).replace(truth={"flavour": np.int64(-1)})])
    row = found["rows"]["everything"]
    assert row["macro"] is None and row["auc"] == [None] * 6 and "vertex_median" not in row
    json.dumps(found, allow_nan=False)


def test_refused(known) -> None:
    with pytest.raises(ValueError, match="no events to score"):
        ablation(known, [])
    with pytest.raises(ValueError, match="event 3: no truth 'flavour', found vertex"):
        ablation(known, [event(3).replace(truth={"vertex": np.zeros(3, np.float32)})])
    encoder = Pretrained(nn.Linear(1, 1), (), None, source="an encoder")
    with pytest.raises(ValueError, match=r"an encoder .* predicts no classes .* fine-tune it first"):
        main_label(encoder)


# ---------------------------------------------------------------------- saliency


def test_saliency_of_a_known_model(known) -> None:
    """∂/∂q of -(mean - 1 - c)² is -2 (mean - 1 - c) / N."""
    events = [event(1), event(4, hits=9)]
    for target in ([0, 3], 2):
        for i, (e, found) in enumerate(zip(events, saliency(known, events, target), strict=True)):
            c = target if isinstance(target, int) else target[i]
            charge = e.voxels["cal3d"].charge.astype(float)
            expected = -2 * (charge.mean() - 1 - c) / len(charge) * charge
            np.testing.assert_allclose(found.voxels["cal3d"], expected, rtol=1e-4)
            np.testing.assert_array_equal(found.voxels["ahcal"], [0.0])  # not read
            assert found.target == FLAVOUR_NAMES[c]
    nearest = [FLAVOUR_NAMES[int(np.clip(np.rint(e.voxels["cal3d"].charge.mean() - 1), 0, 5))] for e in events]
    assert [s.target for s in saliency(known, events)] == nearest  # the predicted ones


def test_saliency_sums_to_what_a_common_factor_does(network) -> None:
    """Σ q ∂L/∂q over the hits of a stream is dL/da of L(a q) at a = 1, here by central differences in float64."""
    model = network.model.double()
    events = [event(i) for i in range(3)]
    batch = network.batch(events)
    batch = batch.replace(
        voxels={s: h.replace(charge=h.charge.double()) for s, h in batch.voxels.items()},
        matrices={s: type(m)(m.values.double(), m.present) for s, m in batch.matrices.items()},
        tracks={s: type(t)(t.feat.double(), t.offsets, t.present) for s, t in batch.tracks.items()},
    )

    def logits(stream: str, factor: float) -> np.ndarray:
        hits = batch.voxels[stream]
        scaled = batch.replace(voxels={**batch.voxels, stream: hits.replace(charge=factor * hits.charge)})
        with torch.no_grad():
            return model(scaled)["flavour"].numpy()

    slopes = {s: (logits(s, 1.0001) - logits(s, 0.9999)) / 2e-4 for s in ("cal3d", "ahcal")}
    model.float()
    chosen = [5, 0, 2]
    for i, found in enumerate(saliency(network, events, chosen)):
        for stream, slope in slopes.items():
            assert found.voxels[stream].sum() == pytest.approx(slope[i, chosen[i]], rel=2e-2, abs=2e-3)


def test_saliency_of_batch_mates_and_of_nothing(network) -> None:
    nothing = StreamEvent(name="nothing")
    alone = saliency(network, [event(1)], 2)[0]
    among = saliency(network, [nothing, event(1), event(2)], 2)
    np.testing.assert_allclose(among[1].voxels["cal3d"], alone.voxels["cal3d"], atol=1e-4)
    assert len(among[0].voxels["cal3d"]) == 0
    assert saliency(network, [nothing])[0].voxels == {} and saliency(network, []) == []
    assert all(p.grad is None for p in network.model.parameters())


def test_bad_targets_and_lost_hits(known) -> None:
    with pytest.raises(ValueError, match=r"target is 6, expected classes 0\.\.5"):
        saliency(known, [event(0)], 6)

    def half(e: StreamEvent, rng: np.random.Generator) -> StreamEvent:
        return e.replace(voxels={"cal3d": e.voxels["cal3d"].select(np.arange(3))})

    losing = Pretrained(known.model, (half,), None, "fasercal", CLASSES)
    with pytest.raises(ValueError, match=r"the transforms leave 3 of .* hits of 'cal3d'"):
        saliency(losing, [event(0)])


def test_near_the_vertex(known) -> None:
    hits = Hits(np.array([[24, 24, 0], [24, 24, 5], [24, 24, 19]], np.int32), np.zeros(3, np.int32),
                np.array([1.0, 2.0, 7.0], np.float32))  # fmt: skip
    vertex = np.array([5.0, 5.0, -1194.5 + 5.5], np.float32)  # the middle of the first voxel; others 55 and 209 mm on
    one = event(0).replace(voxels={"cal3d": hits}, truth={"vertex": vertex})
    found = saliency(known, [one, StreamEvent(name="nothing")], 0)
    found[0].voxels["cal3d"][:] = [-3.0, 1.0, 0.0]
    near = near_vertex([one, StreamEvent(name="nothing")], found, "cal3d")
    assert near["events"] == 1 and near["within_mm"] == [50.0, 100.0, 200.0]
    np.testing.assert_allclose(near["saliency"], [0.75, 1.0, 1.0])
    np.testing.assert_allclose(near["charge"], [0.1, 0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(near["hits"], [1 / 3, 2 / 3, 2 / 3])
    assert near_vertex([], [], "cal3d")["saliency"] == [None] * 3


# ---------------------------------------------------------------------- latents


def test_latent_maps() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 1, (30, 8)), rng.normal(6, 1, (30, 8))])
    target = np.repeat([0, 1], 30)
    maps = latent_maps(features)
    names = list(maps)
    assert names[0].startswith("PCA (") and names[1] in ("t-SNE", "UMAP")
    for place in maps.values():
        assert place.shape == (60, 2) and np.isfinite(place).all()
        middle = [place[target == c].mean(0) for c in (0, 1)]
        spread = max(place[target == c].std() for c in (0, 1))
        assert np.linalg.norm(middle[0] - middle[1]) > spread
    np.testing.assert_array_equal(latent_maps(features)[names[1]], maps[names[1]])
    for n in (1, 3):
        assert latent_maps(features[:n])["PCA"].shape == (n, 2)
    assert list(latent_maps(np.ones((10, 3)))) == ["PCA"]  # all alike
    some = latent_maps(np.repeat(features[:8], 3, axis=0))  # some alike
    assert all(np.isfinite(place).all() for place in some.values())


def test_umap_where_it_is_installed(monkeypatch) -> None:
    class Stands:
        def __init__(self, **arguments) -> None:
            assert arguments["n_neighbors"] == 9 and arguments["random_state"] == 0

        def fit_transform(self, rows: np.ndarray) -> np.ndarray:
            return rows[:, :2]

    monkeypatch.setitem(sys.modules, "umap", type(sys)("umap"))
    sys.modules["umap"].UMAP = Stands
    maps = latent_maps(np.random.default_rng(0).normal(size=(10, 4)))
    assert list(maps)[1] == "UMAP"


def test_neighbour_accuracy_by_brute_force() -> None:
    rng = np.random.default_rng(3)
    features, target = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    features[:, 0] += 1.5 * target
    scaled = (features - features.mean(0)) / features.std(0)
    distance = np.linalg.norm(scaled[:, None] - scaled[None], axis=2) + 1e9 * np.eye(40)
    votes = [np.bincount(target[row[:5]], minlength=3).argmax() for row in np.argsort(distance, axis=1)]
    assert neighbour_accuracy(features, target, 5) == pytest.approx((np.array(votes) == target).mean())
    assert np.isnan(neighbour_accuracy(features[:5], target[:5], 5))
    assert np.isnan(neighbour_accuracy(features, np.zeros(40, int)))


# ---------------------------------------------------------------------- the folder


def test_examples_of_different_classes() -> None:
    probability = [np.eye(3)[c] * p + (1 - p) / 3 for c, p in ((0, 0.9), (0, 0.8), (1, 0.5), (2, 0.95), (1, 0.7))]
    target = np.array([0, 0, 1, 1, 1])  # the fourth is wrong
    assert chosen_examples(probability, target, 2) == [0, 4]
    assert chosen_examples(probability, target, 5) == [0, 4, 3, 1, 2]
    assert chosen_examples(probability, np.full(5, -1), 1) == [3] and chosen_examples([], np.zeros(0, int), 3) == []


def test_folder(network, tmp_path) -> None:
    none = StreamEvent(truth={"flavour": np.int64(0), "vertex": np.full(3, np.nan)}, name="none")
    events = [*(event(i) for i in range(24)), none]
    found, text = write_interpretation(network, events, tmp_path / "out", batch_size=9, examples=2, simulated=True)
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files == {"interpretation.json", "ablation.png", "saliency.png", "latents.png"}
    assert json.loads((tmp_path / "out" / "interpretation.json").read_text()) == found
    for name in files - {"interpretation.json"}:
        picture = matplotlib.image.imread(tmp_path / "out" / name)
        assert 0.005 < (picture[..., :3] < 0.99).any(-1).mean() < 0.6
        assert f"]({name})" in text
    assert found["simulated"] and "25 events, simulated by nufm" in text
    for words in ("without 3DCal (in 96 % of events)", "physically plausible", "Charge × gradient"):
        assert words in text
    assert found["saliency"]["events"] == 24
