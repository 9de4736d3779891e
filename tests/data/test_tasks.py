"""Tasks: which labels they need, what they make of them, what they refuse."""

from __future__ import annotations

import pytest
import torch

from nufm.data.event import PID_NAMES
from nufm.data.tasks import TASKS, task_named

LABELS = {
    "motif": torch.tensor([0, 1, -1, 4]),
    "pid": torch.tensor([0, 5, 2, 5]),
    "particle": torch.tensor([0, 0, 1, -1]),
    "interaction": torch.tensor([0, 2, -1, -1]),
}


def test_targets_of_every_task():
    expected = {
        "motif": ([0, 1, -1, 4], None),
        "pid": ([0, 5, 2, 5], None),
        "particle": ([0, 5, 2, 5], [0, 0, 1, -1]),
        "interaction": ([1, 1, 0, 0], [0, 2, -1, -1]),
        "motif4": ([0, 1, -1, -1], None),
    }
    assert expected.keys() == TASKS.keys()
    for name, (classes, instances) in expected.items():
        found = TASKS[name].targets(LABELS)
        assert found[0].tolist() == classes
        assert (found[1] is None) == (instances is None) and (instances is None or found[1].tolist() == instances)


def test_stuff_is_what_no_instance_has():
    assert TASKS["particle"].classes == PID_NAMES and PID_NAMES[TASKS["particle"].stuff] == "none"
    assert TASKS["interaction"].classes[TASKS["interaction"].stuff] == "background"


def test_refusals():
    with pytest.raises(ValueError, match=r"a\.h5#3: the task 'pid' needs the label 'pid', found \['motif'\]"):
        TASKS["pid"].targets({"motif": LABELS["motif"]}, ("a.h5#3",))
    with pytest.raises(ValueError, match=r"found \['motif'\]; files of PILArNet-M v1 have no PID: use v2 or v3"):
        TASKS["particle"].targets({"motif": LABELS["motif"]})
    for task in ("motif", "pid", "particle", "interaction"):
        with pytest.raises(ValueError, match=r"found \[\]; these events are unlabelled.*'point' alone"):
            TASKS[task].targets({})
    with pytest.raises(ValueError, match=r"needs the label 'particle', found \['pid'\]; give the events that label"):
        TASKS["particle"].targets({"pid": LABELS["pid"]})
    with pytest.raises(ValueError, match="a: label 'motif' holds class 7, the task 'motif' has 5: shower, track"):
        TASKS["motif"].targets({"motif": torch.tensor([7])}, ("a",))
    with pytest.raises(ValueError, match="unknown task 'motive', expected one of motif, pid, particle, interaction"):
        task_named("motive")


def test_what_a_task_ignores_is_no_class_of_it():
    """The first four motifs: low-energy deposits are neither learnt nor scored, and other values still refused."""
    task, labels = TASKS["motif4"], {"motif": torch.tensor([4, 3, 2, 1, 0, -1])}
    assert task.classes == ("shower", "track", "Michel", "delta")
    assert task.targets(labels)[0].tolist() == [-1, 3, 2, 1, 0, -1]
    assert labels["motif"].tolist() == [4, 3, 2, 1, 0, -1], "the truth itself stays"
    with pytest.raises(ValueError, match="holds class 5, the task 'motif4' has 4"):
        task.targets({"motif": torch.tensor([5])})


def test_no_points():
    classes, instances = TASKS["particle"].targets({"pid": torch.zeros(0).long(), "particle": torch.zeros(0).long()})
    assert len(classes) == len(instances) == 0


def test_targets_of_events():
    """Classes and quantities; some of them where a network learns some; what is not there or no class is named."""
    task = task_named("fasercal")
    assert task.n_classes == {"flavour": 6, "charm": 4} and task.kind == "event"
    truth = {"flavour": torch.tensor([5, -1]), "charm": torch.tensor([0, 3]), "vertex": torch.zeros(2, 3)}
    truth |= {name: torch.full((2, 3), torch.nan) for name in ("visible", "jet", "lepton")}
    assert set(task.targets(truth)) == set(truth)
    del truth["jet"]
    assert set(task.targets(truth, wanted=("flavour", "vertex"))) == {"flavour", "vertex"}
    with pytest.raises(ValueError, match=r"a …: the task 'fasercal' needs the truth 'jet' \(GeV/c\), found \['charm'"):
        task.targets(truth, ("a", "b"))
    with pytest.raises(ValueError, match="b: truth 'charm' holds class 4, the task 'fasercal' has 4: no charm, charm"):
        task.targets({**truth, "charm": torch.tensor([0, 4])}, ("a", "b"), ("charm",))


def test_networks_that_fit_a_task():
    assert TASKS["motif"].fits(5) and not TASKS["motif"].fits(4) and not TASKS["motif"].fits({"motif": 5})
    task = task_named("fasercal")
    assert task.fits({"flavour": 6}) and task.fits({}) and task.fits({"flavour": 6, "charm": 4})
    assert not task.fits({"flavour": 5}) and not task.fits({"motif": 5}) and not task.fits(6)
