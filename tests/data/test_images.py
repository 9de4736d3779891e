"""What an event of pixel maps may be, its batch, and the names of its classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_events import image_event

from nufm.data.images import INTERACTION_NAMES, TRUTH, VIEWS, ImageBatch, ImageEvent, View, class_numbers


def view(*rows: tuple[int, int, float]) -> View:
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return View(table[:, :2].astype(np.int32), table[:, 2].astype(np.float32))


def test_an_image_is_where_its_pixels_are():
    event = ImageEvent({"xz": view((0, 1, 2.5), (3, 0, 1.0))}, (4, 2))
    assert event.image("xz").tolist() == [[0, 2.5], [0, 0], [0, 0], [1, 0]]
    assert not event.image("yz").any() and event.image("yz").shape == (4, 2)
    back = View.of_image(event.image("xz"))
    assert back.pixel.tolist() == [[0, 1], [3, 0]] and back.energy.tolist() == [2.5, 1] and len(back) == 2
    assert (event.n_pixels, event.without("xz").n_pixels) == (2, 0)
    assert set(event.without("xz").views) == set() and set(event.views) == {"xz"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": {"xy": view()}}, "unknown view 'xy', expected some of xz, yz"),
        ({"views": {"xz": view((0, 16, 1.0))}}, r"view 'xz': pixel \[0, 16\] is outside the map of 16 × 16"),
        ({"views": {"yz": view((-1, 0, 1.0))}}, r"view 'yz': pixel \[-1, 0\] is outside"),
        ({"views": {"xz": view((1, 2, 1.0), (3, 3, 1.0), (1, 2, 4.0))}}, r"pixel \[1, 2\] is given twice"),
        ({"views": {"xz": view((1, 2, np.nan))}}, r"energy of pixel \[1, 2\] is nan, expected a finite number"),
        ({"views": {"xz": view((1, 2, np.inf))}}, "is inf"),
        ({"views": {"xz": View(np.zeros((1, 3), np.int32), np.ones(1, np.float32))}}, r"\(1, 3\), expected integers"),
        ({"views": {"xz": View(np.zeros((1, 2)), np.ones(1, np.float32))}}, "pixels are float64"),
        ({"views": {"xz": View(np.zeros((1, 2), np.int32), np.ones(1))}}, "energy is float64"),
        ({"views": {"xz": View(np.zeros((1, 2), np.int32), np.ones(2, np.float32))}}, r"expected float32 \(1,\)"),
        ({"shape": (16,)}, "expected rows and columns"),
        ({"shape": (0, 16)}, "expected rows and columns"),
        ({"unit": "keV"}, "unit is 'keV', expected 'MeV' or 'grey'"),
        ({"pitch": -1.0}, "pitch is -1.0"),
        ({"truth": {"flavour": 1}}, "unknown truth 'flavour', expected some of interaction"),
        ({"truth": {"lepton": np.zeros(2)}}, r"truth 'lepton' has shape \(2,\), expected \(3,\)"),
        ({"truth": {"interaction": np.int64(3)}}, "truth 'interaction' is 3, expected a class 0 … 2"),
    ],
)
def test_events_that_are_refused(changes, words):
    with pytest.raises(ValueError, match=f"a.h5#1: .*{words}|a.h5#1: {words}"):
        image_event(1, name="a.h5#1").replace(**changes)


def test_a_batch_has_what_its_events_have():
    events = [image_event(1), image_event(2).without("xz"), image_event(3, n=0)]
    batch = ImageBatch.from_events([e.replace(seed=s, name=f"e{s}") for s, e in enumerate(events)])
    assert batch.image.dtype == torch.float32 and batch.image.shape == (3, 2, 16, 16) and len(batch) == 3
    for row, event in enumerate(events):
        for column, name in enumerate(VIEWS):
            assert (batch.image[row, column].numpy() == event.image(name)).all()
    assert batch.present.tolist() == [[True, True], [False, True], [True, True]]
    assert batch.truth["interaction"].dtype == torch.int64 and batch.truth["lepton"].shape == (3, 3)
    assert batch.seeds.tolist() == [0, 1, 2] and batch.names == ("e0", "e1", "e2")
    moved = batch.to("cpu", non_blocking=True)
    assert (moved.image == batch.image).all() and moved.device.type == "cpu"


def test_what_is_said_of_an_event_does_not_depend_on_its_batch():
    """Alone, or with events that know less: unknown is -1 or NaN, and what nobody knows is not there."""
    full, poor = image_event(1), image_event(2).replace(truth={"mode": np.int64(1)})
    nothing = image_event(3).replace(truth={})
    alone = {name: value[0] for name, value in ImageBatch.from_events([full]).truth.items()}
    for mates in ([poor], [nothing], [poor, nothing]):
        for batch, row in ((ImageBatch.from_events([full, *mates]), 0), (ImageBatch.from_events([*mates, full]), -1)):
            assert {name: value.dtype for name, value in batch.truth.items()} == {
                name: torch.int64 if kind is np.int64 else torch.float32 for name, (_, kind, _) in TRUTH.items()
            }
            assert all(torch.equal(batch.truth[name][row], alone[name]) for name in TRUTH)
    batch = ImageBatch.from_events([full, poor, nothing])
    assert batch.truth["interaction"].tolist()[1:] == [-1, -1] and batch.truth["mode"].tolist()[1:] == [1, -1]
    assert batch.truth["lepton"].shape == (3, 3) and batch.truth["lepton"][1:].isnan().all()
    assert batch.truth["neutrino_energy"][1:].isnan().all()
    assert set(ImageBatch.from_events([poor, nothing]).truth) == {"mode"}
    assert ImageBatch.from_events([nothing]).truth == {}


@pytest.mark.parametrize("changes", [{"shape": (20, 20)}, {"pitch": 10.0}, {"unit": "grey"}])
def test_events_of_different_kind_are_not_packed(changes):
    with pytest.raises(ValueError, match=f"b.h5#2: {next(iter(changes))} is .* in a batch with .*a.h5#1"):
        ImageBatch.from_events([image_event(1, name="a.h5#1"), image_event(2, name="b.h5#2").replace(**changes)])
    with pytest.raises(ValueError, match="empty list"):
        ImageBatch.from_events([])


# ---------------------------------------------------------------------- names of classes


def test_classes_in_any_spelling():
    micro, greek = "\u00b5", "\u03bc"
    spelt = {
        0: [f"ν{micro} CC", f"ν{greek} CC", f"ν_{greek} CC", "numu CC", "NuMu_CC", "nu_mu-cc", "0", 0, b"numu CC", 0.0],
        1: ["νe CC", "nue CC", "nu_e_CC", "NUECC", " 1 ", 1, "1.0"],
        2: ["NC", "nc", " NC ", 2, np.int64(2), "2"],
        -1: ["", "  ", "-1", -1],
    }
    for number, labels in spelt.items():
        assert class_numbers(labels).tolist() == [number] * len(labels)
    assert class_numbers(list(INTERACTION_NAMES)).tolist() == [0, 1, 2]
    assert class_numbers([]).dtype == np.int64


def test_labels_that_say_it_differently():
    mapping = {"signal": "νe CC", "0": "NC", "14": "numu CC"}
    assert class_numbers(["signal", 0, 14, "nc", "1"], mapping).tolist() == [1, 2, 0, 2, 1]


@pytest.mark.parametrize("label", ["nutau CC", "3", "-2", 1.5, "nan", "CC", "anti numu CC"])
def test_unknown_labels(label):
    with pytest.raises(ValueError) as error:
        class_numbers(["NC", label], None, "a.csv: column 'label'")
    said = str(error.value)
    assert f"a.csv: column 'label', row 1: label '{label}' is not a class" in said
    assert all(name in said for name in INTERACTION_NAMES) and "--data.labels" in said


def test_a_mapping_to_no_class():
    with pytest.raises(ValueError, match="label 'a' stands for 'tau', expected a class; known classes: 0 = ν"):
        class_numbers(["NC"], {"a": "tau"})
