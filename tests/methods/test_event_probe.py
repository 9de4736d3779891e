"""Probes of whole events: features that say everything, nothing, or only a part; what a summary holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stream_events import encoder, event, one_batch

from nufm.data.detector import load_stream_detector
from nufm.data.streams import StreamEvent
from nufm.methods.event_probe import encoded, event_summary, mean_vertex_error, probe, truth_of


def sample(n: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"flavour": np.arange(n) % 6, "vertex": rng.normal(0, 100, (n, 3))}


def told(truth: dict[str, np.ndarray], noise: float, seed: int = 0) -> np.ndarray:
    """Features that hold the truth, turned into each other, on very different scales."""
    rng = np.random.default_rng(seed)
    plain = np.concatenate([np.eye(6)[truth["flavour"]], truth["vertex"] / 100], axis=1)
    plain = plain + noise * rng.standard_normal(plain.shape)
    return plain @ np.random.default_rng(7).normal(size=(9, 9)) * np.logspace(-3, 3, 9)


def test_features_that_hold_the_truth_give_it():
    fit, score = sample(400, 0), sample(200, 1)
    found = probe(told(fit, 0.02), fit, told(score, 0.02, 1), score, seed=0)
    assert found["macro_auc"] > 0.999 and found["vertex_mean"] < 25  # of 160
    assert found["vertex_median"] <= found["vertex_mean"] * 1.5 and len(found["auc"]) == 6


def test_features_of_noise_give_chance():
    fit, score = sample(600, 0), sample(600, 1)
    rng = np.random.default_rng(2)
    found = probe(rng.normal(size=(600, 20)), fit, rng.normal(size=(600, 20)), score, seed=0)
    assert abs(found["macro_auc"] - 0.5) < 0.04
    nothing = mean_vertex_error(fit["vertex"], score["vertex"])
    assert nothing == pytest.approx(found["vertex_mean"], rel=0.05)
    assert nothing == pytest.approx(100 * np.sqrt(8 / np.pi), rel=0.05)  # mean length of a Gaussian vector in 3D


def test_classes_and_vertices_that_are_not_there():
    fit, score = sample(120, 0), sample(60, 1)
    score["flavour"][score["flavour"] == 3] = -1  # unknown in the events that are scored
    fit["flavour"][fit["flavour"] == 5] = 0  # not in those that are fitted
    fit["vertex"][:3] = np.nan
    found = probe(told(sample(120, 0), 0.1), fit, told(sample(60, 1), 0.1, 1), score, seed=0)
    assert [a is None for a in found["auc"]] == [False, False, False, True, False, True]
    assert np.isfinite(found["vertex_mean"])
    fit["flavour"][:] = 2
    fit["vertex"][:] = np.nan
    found = probe(told(sample(120, 0), 0.1), fit, told(sample(60, 1), 0.1, 1), score, seed=0)
    assert found["macro_auc"] is None and found["vertex_mean"] is None and found["auc"] == [None] * 6


def test_a_seed_draws_which_events_are_fitted_to():
    fit, score = sample(200, 0), sample(100, 1)
    features = told(fit, 1.0), told(score, 1.0, 1)
    a, b, c = (probe(features[0], fit, features[1], score, seed) for seed in (0, 0, 1))
    assert a == b and a["macro_auc"] != c["macro_auc"]


def test_summary_of_an_event_says_where_the_charge_is():
    made = event(3)
    found = event_summary(made)
    stream, hits = load_stream_detector("fasercal").voxels["cal3d"], made.voxels["cal3d"]
    place = stream.position(hits.index, hits.module)
    centre = np.average(place, axis=0, weights=hits.charge)
    np.testing.assert_allclose(found[4:7], centre, rtol=1e-6)
    np.testing.assert_allclose(found[7:10] ** 2, np.average((place - centre) ** 2, axis=0, weights=hits.charge))
    assert found[0] == pytest.approx(np.log1p(400))
    modules = np.expm1(found[16:26])
    assert modules.sum() == pytest.approx(hits.charge.sum(), rel=1e-5) and (modules[4:] == 0).all()
    n = 16 + 10 + 16 + 1 + 26 + 11
    assert found.shape == (n,) and found[-11] == 2  # tracks
    np.testing.assert_array_equal(event_summary(StreamEvent(name="nothing")), np.zeros(n))


def test_truth_is_asked_for_by_name():
    made = event(3)
    with pytest.raises(ValueError, match=r"event 3: no truth 'flavour'.*--report.enabled false"):
        truth_of([made])
    told = made.replace(truth={"flavour": np.int64(2), "vertex": np.array([1, 2, 3], np.float32)})
    assert truth_of([told, told])["vertex"].tolist() == [[1, 2, 3]] * 2


def test_features_that_are_not_finite_are_refused():
    model = encoder(depths=(1, 1, 1))
    batches = [one_batch(event(1), StreamEvent(name="nothing")), one_batch(event(2))]
    found = encoded(model.event_features, batches, "cpu")
    assert found.shape == (3, 48) and (found[1] == 0).all() and np.isfinite(found).all()
    torch.nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match=r"event 1.*NaN or infinite"):
        encoded(model.event_features, batches, "cpu")
