"""Each rule of the labels on an event made for it. Motifs: 0 shower, 1 track, 2 Michel, 3 delta, 4 LED."""

import numpy as np
import pytest
from hand_made import Sketch, labels, line, motifs

from nufm.data.event import MOTIF_NAMES
from nufm.simulation.transport import Process
from nufm.simulation.truth import CLASS_NAMES, LabelRules

SHOWER, TRACK, MICHEL, DELTA, LED = range(5)


def muon(sketch, n=20, y=10):
    track = sketch.track(13, momentum=400.0, at=(5.5, y + 0.5, 10.5))
    sketch.fill(track, line((5, y, 10), n))
    return track


def test_class_names_are_those_of_the_data():
    assert CLASS_NAMES == MOTIF_NAMES


def test_muon_alone():
    sketch = Sketch()
    muon(sketch)
    truth = sketch.truth()
    assert truth.cluster.tolist() == [[0, -1, -1, -1, LED, -1], [20, 0, 0, 0, TRACK, 2]]
    assert truth.cluster_extra[0].tolist() == [-1] * 5
    assert truth.cluster_extra[1] == pytest.approx(
        [105.658, 0.4, *sketch.millimetres((5.5, 10.5, 10.5))], rel=1e-5
    )
    assert truth.point[:, 3] == pytest.approx(1.0) and (truth.point[:, 3] == truth.point[:, 4]).all()


@pytest.mark.parametrize("pdg, pid", [(13, 2), (-13, 2), (211, 3), (-211, 3), (2212, 4), (321, 5)])
def test_particle_classes(pdg, pid):
    sketch = Sketch()
    sketch.fill(sketch.track(pdg), line((5, 5, 5), 15))
    assert sketch.truth().cluster[1, 4:].tolist() == [TRACK, pid]


def test_primary_electron_is_one_shower_with_what_touches_it():
    sketch = Sketch()
    electron = sketch.track(11, momentum=300.0)
    photon = sketch.track(22, electron, Process.BREMSSTRAHLUNG)
    pair = [sketch.track(s, photon, Process.CONVERSION) for s in (11, -11)]
    knocked = sketch.track(11, pair[0], Process.IONISATION)
    sketch.fill(electron, line((5, 5, 5), 8))
    sketch.fill(pair[0], line((13, 6, 5), 6))  # touches the electron's last voxel by an edge
    sketch.fill(pair[1], line((13, 6, 6), 6))
    sketch.fill(knocked, line((19, 5, 5), 2))
    truth = sketch.truth()
    assert truth.cluster[:, [0, 2, 4, 5]].tolist() == [[0, -1, LED, -1], [22, 0, SHOWER, 1]]
    assert truth.cluster_extra[1, 1] == pytest.approx(0.3)


def test_fragments_far_away_belong_to_the_group_of_the_primary_photon():
    sketch = Sketch()
    photon = sketch.track(22, momentum=200.0, at=(3, 3, 3))
    pair = sketch.track(11, photon, Process.CONVERSION)
    hard = sketch.track(22, pair, Process.BREMSSTRAHLUNG)
    compton = sketch.track(11, hard, Process.COMPTON)
    small = sketch.track(11, hard, Process.CONVERSION)
    tiny = sketch.track(11, hard, Process.COMPTON)
    sketch.fill(pair, line((5, 5, 5), 12))
    sketch.fill(compton, line((5, 30, 5), 10))  # ten voxels: a fragment of the shower
    sketch.fill(small, line((5, 40, 5), 9))  # nine: a low-energy deposit, conversion or not
    sketch.fill(tiny, line((5, 50, 5), 2))
    truth = sketch.truth()
    assert truth.cluster.tolist() == [
        [11, -1, -1, -1, LED, -1],
        [12, 0, 0, 0, SHOWER, 0],
        [10, 1, 0, 0, SHOWER, 0],
    ]
    assert truth.cluster_extra[2, 2:] == pytest.approx(sketch.millimetres((3, 3, 3)))


def test_two_small_pieces_of_one_cascade_that_touch_count_together():
    sketch = Sketch()
    photon = sketch.track(22)
    one, two = (sketch.track(11, photon, Process.COMPTON) for _ in range(2))
    sketch.fill(one, line((5, 5, 5), 6))
    sketch.fill(two, line((11, 6, 6), 6))
    assert sketch.truth().cluster[:, [0, 4]].tolist() == [[0, LED], [12, SHOWER]]
    other = sketch.track(22)  # another cascade: not counted together
    apart = sketch.track(11, other, Process.COMPTON)
    sketch.steps = [s for s in sketch.steps if s[0] != two]
    sketch.fill(apart, line((11, 6, 6), 6))
    assert sketch.truth(interaction=[0, 1]).cluster[:, [0, 4]].tolist() == [[12, LED]]


def test_michel_by_process_and_parent():
    sketch = Sketch()
    pion = sketch.track(211)
    stopped = sketch.track(-13, pion, Process.DECAY)
    electron = sketch.track(-11, stopped, Process.DECAY, momentum=40.0)
    sketch.fill(pion, line((5, 10, 10), 20))
    sketch.fill(stopped, [(24, 10, 10)])  # the muon of a stopped pion: a stub in the pion's last voxel
    sketch.fill(electron, line((24, 10, 10), 8, (0, 1, 0)))
    truth = sketch.truth()
    assert truth.cluster[:, [0, 4, 5]].tolist() == [[0, LED, -1], [20, TRACK, 3], [7, MICHEL, 1]]
    assert labels(truth)[(24, 10, 10)][0] == TRACK  # the shared voxel
    assert truth.cluster_extra[2, 1] == pytest.approx(0.04)


def test_electron_of_a_pion_decay_is_a_shower():
    sketch = Sketch()
    pion = sketch.track(211)
    electron = sketch.track(-11, pion, Process.DECAY)
    sketch.fill(pion, line((5, 10, 10), 20))
    sketch.fill(electron, line((25, 10, 10), 8, (0, 1, 0)))
    assert sketch.truth().cluster[:, [0, 4]].tolist() == [[0, LED], [20, TRACK], [8, SHOWER]]


@pytest.mark.parametrize("own, motif", [(4, TRACK), (5, DELTA), (9, DELTA)])
def test_delta_needs_voxels_of_its_own(own, motif):
    sketch = Sketch()
    delta = sketch.track(11, muon(sketch), Process.IONISATION)
    further = sketch.track(11, delta, Process.IONISATION)  # part of the delta, and counted with it
    sketch.fill(delta, line((10, 10, 10), own, (0, 1, 0)))  # its first voxel lies on the track
    sketch.fill(further, [(10, 10 + own, 10)])
    truth = sketch.truth(delta_size=5)
    voxels = line((10, 11, 10), own, (0, 1, 0))
    assert motifs(truth, voxels) == {motif}
    assert labels(truth)[(10, 10, 10)][0] == TRACK
    if motif == TRACK:
        assert len(truth.cluster) == 2 and truth.cluster[1, 0] == 20 + own
    else:
        assert truth.cluster[2, [0, 5]].tolist() == [own, 1] and truth.cluster[2, 2] != truth.cluster[1, 2]


def test_photon_of_a_track_leads_its_own_group():
    sketch = Sketch()
    photon = sketch.track(22, muon(sketch), Process.BREMSSTRAHLUNG, momentum=60.0)
    sketch.fill(sketch.track(11, photon, Process.CONVERSION), line((30, 30, 30), 12))
    truth = sketch.truth()
    assert truth.cluster[:, [0, 4, 5]].tolist() == [[0, LED, -1], [20, TRACK, 2], [12, SHOWER, 0]]
    assert truth.cluster[2, 3] == 0  # the interaction of its ancestor
    assert truth.cluster_extra[2, 1] == pytest.approx(0.06)


def test_radiation_of_a_michel_belongs_to_its_group():
    sketch = Sketch()
    michel = sketch.track(11, muon(sketch), Process.DECAY)
    photon = sketch.track(22, michel, Process.BREMSSTRAHLUNG)
    near, far = (sketch.track(11, photon, Process.COMPTON) for _ in range(2))
    sketch.fill(michel, line((25, 10, 10), 8))
    sketch.fill(near, line((33, 11, 10), 2))
    sketch.fill(far, line((5, 40, 40), 11))
    truth = sketch.truth()
    assert truth.cluster[:, [0, 4]].tolist() == [[0, LED], [20, TRACK], [10, MICHEL], [11, SHOWER]]
    assert truth.cluster[2, 2] == truth.cluster[3, 2]


@pytest.mark.parametrize("n, motif", [(10, LED), (11, TRACK)])
def test_neutron_recoils(n, motif):
    sketch = Sketch()
    neutron = sketch.track(2112)
    sketch.fill(sketch.track(2212, neutron, Process.NEUTRON), line((5, 5, 5), n))
    assert motifs(sketch.truth(), line((5, 5, 5), n)) == {motif}


def test_stubs_of_inelastic_interactions():
    sketch = Sketch()
    parent = muon(sketch)
    stub = sketch.track(2212, parent, Process.HADRON_INELASTIC)
    proton = sketch.track(2212, parent, Process.HADRON_INELASTIC)
    photon = sketch.track(22, -1)
    orphan = sketch.track(2212, photon, Process.HADRON_INELASTIC)
    sketch.fill(stub, line((25, 11, 10), 2))
    sketch.fill(proton, line((25, 9, 10), 3))
    sketch.fill(orphan, line((50, 50, 50), 2))
    truth = sketch.truth(interaction=[0, 1])
    assert truth.cluster[:, [0, 4, 5]].tolist() == [[2, LED, -1], [22, TRACK, 2], [3, TRACK, 4]]


def test_touching_low_energy_is_absorbed_shower_first():
    """One Compton blip beside a track and a shower, one beside a track alone, one beside nothing."""
    sketch = Sketch()
    muon(sketch)
    electron = sketch.track(11)
    gamma = sketch.track(22)
    blips = [sketch.track(11, gamma, Process.COMPTON) for _ in range(3)]
    sketch.fill(electron, line((5, 13, 10), 20))
    sketch.fill(blips[0], [(8, 11, 10), (8, 12, 10)])
    sketch.fill(blips[1], [(20, 9, 9)])
    sketch.fill(blips[2], [(40, 40, 40)])
    truth = sketch.truth(interaction=[0, 1, 2])
    assert motifs(truth, [(8, 11, 10), (8, 12, 10)]) == {SHOWER}
    assert motifs(truth, [(20, 9, 9)]) == {TRACK}
    assert motifs(truth, [(40, 40, 40)]) == {LED}


@pytest.mark.parametrize("order", [(MICHEL, DELTA, TRACK), (DELTA, TRACK)])
def test_the_rest_of_the_absorption_order(order):
    sketch = Sketch()
    track = muon(sketch)
    if DELTA in order:
        delta = sketch.track(11, track, Process.IONISATION)
        sketch.fill(delta, line((12, 11, 10), 5, (0, 1, 0)))
    if MICHEL in order:
        michel = sketch.track(11, track, Process.DECAY)
        sketch.fill(michel, line((10, 12, 10), 5, (0, 1, 0)))
    blip = sketch.track(11, sketch.track(22), Process.COMPTON)
    sketch.fill(blip, [(11, 11, 10)])  # touches all of them
    assert motifs(sketch.truth(interaction=[0, 1]), [(11, 11, 10)]) == {order[0]}


def test_shared_voxels_take_the_first_label_and_all_the_energy():
    sketch = Sketch()
    track = muon(sketch)
    shower, michel = sketch.track(11), sketch.track(11, track, Process.DECAY)
    delta = sketch.track(11, track, Process.IONISATION)
    low = sketch.track(11, sketch.track(22, -1), Process.COMPTON)
    far = (40, 40, 40)
    sketch.fill(shower, [far, *line((41, 40, 40), 12)], 5.0)
    sketch.fill(delta, [far, *line((40, 41, 40), 6, (0, 1, 0))], 5.0)
    sketch.fill(low, [far], 5.0)
    found = labels(sketch.truth(interaction=[0, 1, 2]))
    assert found[far][0] == SHOWER
    sketch.fill(michel, [far, *line((40, 40, 41), 6, (0, 0, 1))], 0.5)
    assert labels(sketch.truth(interaction=[0, 1, 2]))[far][0] == MICHEL
    sketch.fill(track, [far], 0.1)
    truth = sketch.truth(interaction=[0, 1, 2])
    assert labels(truth)[far][0] == TRACK
    energy = {tuple(p[:3].astype(int)): p[3] for p in truth.point}
    assert energy[far] == pytest.approx(15.6)
    # between two tracks, the one with more energy
    two = Sketch()
    a, b = two.track(13), two.track(2212)
    two.fill(a, line((5, 5, 5), 9), 1.0)
    two.fill(b, line((9, 5, 5), 9, (0, 1, 0)), 3.0)
    crossing = labels(two.truth(interaction=[0, 1]))
    assert crossing[(9, 5, 5)] == crossing[(9, 7, 5)] != crossing[(7, 5, 5)]


def test_interactions_and_ids():
    sketch = Sketch()
    muon(sketch, y=10)
    muon(sketch, y=20)
    sketch.fill(sketch.track(2212), line((5, 30, 30), 5))
    truth = sketch.truth(interaction=[1, 0, 1])
    assert truth.cluster[1:, 3].tolist() == [0, 1, 1]  # by interaction
    assert truth.cluster[1:, 1].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="2 interaction ids for 3 primaries"):
        sketch.truth(interaction=[0, 1])


def test_threshold_and_energy_sum():
    sketch = Sketch()
    track = sketch.track(13)
    sketch.fill(track, line((5, 5, 5), 5), 1.0)
    sketch.fill(track, line((10, 5, 5), 3), 0.004)
    sketch.step(track, (-2, 3.5, 3.5), (2, 3.5, 3.5), 2.0)
    truth = sketch.truth()
    assert (
        len(truth) == 7
        and truth.below_threshold == pytest.approx(0.012)
        and truth.outside == pytest.approx(1.0)
    )
    total = truth.point[:, 3].sum(dtype=float) + truth.below_threshold + truth.outside
    assert total == pytest.approx(7.012, rel=1e-6)
    assert len(sketch.truth(threshold=0.0)) == 10


def test_no_tracks_and_one_voxel():
    nothing = Sketch().truth()
    assert nothing.point.shape == (0, 8) and nothing.cluster.tolist() == [[0, -1, -1, -1, LED, -1]]
    assert nothing.cluster_extra.shape == (1, 5)
    quiet = Sketch()
    quiet.track(13)
    assert len(quiet.truth()) == 0
    single = Sketch()
    single.fill(single.track(2212), [(1, 2, 3)])
    assert single.truth().point[0, :4].tolist() == [1, 2, 3, 1.0]


def test_order_of_steps_does_not_matter():
    """Labels and energies do not depend on the order in which the transport writes its steps."""
    rng = np.random.default_rng(3)
    sketch = Sketch()
    track = muon(sketch)
    shower = sketch.track(11)
    delta = sketch.track(11, track, Process.IONISATION)
    for t, n in ((shower, 200), (delta, 40)):
        centre = rng.uniform(20, 40, 3)
        sketch.fill(t, np.floor(centre + rng.normal(size=(n, 3)) * 2).astype(int), 0.3)
    first = sketch.truth(interaction=[0, 1])
    sketch.steps = [sketch.steps[i] for i in rng.permutation(len(sketch.steps))]
    second = sketch.truth(interaction=[0, 1])
    assert (first.cluster == second.cluster).all() and np.allclose(first.point, second.point, rtol=1e-5)


@pytest.mark.parametrize("field", ["delta_size", "compton_size", "nucleus_size", "scatter_size", "threshold"])
def test_negative_rules_are_refused(field):
    with pytest.raises(ValueError, match=field):
        LabelRules(**{field: -1})
