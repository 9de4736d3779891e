"""From queries to instances: against a slow reference that goes event by event and point by point, and by hand."""

import numpy as np
import pytest
import torch

from nufm.models.instances import InstanceRules, find_instances, nms_decay

STUFF = 2


def reference(class_logits, mask_logits, rules, stuff_class):
    """One event, in NumPy: panda.md's rules one after the other. (Q, C+1), (n, Q) -> label, confidence, instance."""
    n_queries, n_classes = class_logits.shape[0], class_logits.shape[1] - 1
    mask = 1 / (1 + np.exp(-mask_logits))
    queries = []
    for q in range(n_queries):
        p = np.exp(class_logits[q] - class_logits[q].max())
        p /= p.sum()
        c = int(p.argmax())
        points = {i for i in range(len(mask)) if mask[i, q] > rules.mask_threshold}
        if c in (n_classes, stuff_class) or p[c] < rules.score_threshold or len(points) < rules.min_points:
            continue
        score = p[c] * np.mean([mask[i, q] for i in points])
        queries.append([score, q, c, points])
    queries.sort(key=lambda x: (-x[0], x[1]))
    iou = [[len(a[3] & b[3]) / len(a[3] | b[3]) if a[2] == b[2] else 0.0 for b in queries] for a in queries]
    largest = [max(iou[i][j] for i in range(j)) if j else 0.0 for j in range(len(queries))]
    scores = []
    for j, (score, _, c, _) in enumerate(queries):
        factors = [
            np.exp(-rules.nms_sigma * iou[i][j] ** 2) / np.exp(-rules.nms_sigma * largest[i] ** 2)
            for i in range(j)
            if queries[i][2] == c
        ]
        scores.append(score * min([1.0, *factors]))
    label, confidence, instance = (np.full(len(mask), v) for v in (-1, 0.0, -1))
    survivors = [(s, q) for s, q in zip(scores, queries, strict=True) if s >= rules.score_threshold]
    found = 0
    for score, (_, _, c, points) in sorted(survivors, key=lambda x: (-x[0], x[1][1])):
        free = [i for i in points if instance[i] < 0]
        if len(free) < rules.min_points:
            continue
        label[free], confidence[free], instance[free] = c, score, found
        found += 1
    return label, confidence, instance


def random_events(counts, n_queries, n_classes, seed):
    """Queries that repeat one another, overlap, or cover nothing."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for n in counts:
        owner = torch.randint(0, 4, (n, 1), generator=generator)
        wanted = torch.randint(0, 4, (n_queries,), generator=generator)
        z = torch.where(owner == wanted, 2.5, -2.5) + 1.5 * torch.randn(n, n_queries, generator=generator)
        masks.append(z)
    classes = 3 * torch.randn(len(counts), n_queries, n_classes + 1, generator=generator)
    return classes, torch.cat(masks), torch.tensor([0, *counts]).cumsum(0)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rules", [InstanceRules(), InstanceRules(0.3, 0.2, 1), InstanceRules(0.5, 0.1, 5, 0.5)])
def test_against_the_slow_reference(seed, rules):
    counts = [40, 0, 1, 3, 200, 25]
    classes, masks, offsets = random_events(counts, n_queries=9, n_classes=4, seed=seed)
    found = find_instances(classes, masks, offsets, STUFF, rules)
    for b in range(len(counts)):
        rows = slice(offsets[b], offsets[b + 1])
        label, confidence, instance = reference(classes[b].double().numpy(), masks[rows].double().numpy(), rules, STUFF)
        assert found.label[rows].tolist() == label.tolist()
        assert found.instance[rows].tolist() == instance.tolist()
        assert np.allclose(found.confidence[rows], confidence, atol=1e-5)


def test_the_random_events_exercise_the_rules():
    """What the reference is compared on: overlaps, several instances per event, queries lost to NMS, free points."""
    found, dropped, uncovered = 0, 0, 0
    for seed in range(12):
        classes, masks, offsets = random_events([40, 200, 25], 9, 4, seed)
        result = find_instances(classes, masks, offsets, STUFF, InstanceRules())
        loose = find_instances(classes, masks, offsets, STUFF, InstanceRules(nms_sigma=0.0))
        found += len(set(zip(np.repeat(range(3), [40, 200, 25]), result.instance.tolist(), strict=True)))
        dropped += int((loose.confidence > result.confidence + 1e-6).sum())
        uncovered += int((result.instance < 0).sum())
    assert found > 40 and dropped > 50 and uncovered > 50


def logits_of(*rows):
    """Class logits of one event from (class, probability) of each query; 3 classes and no object."""
    table = torch.full((len(rows), 4), 0.0)
    for q, (c, p) in enumerate(rows):
        table[q] = (1 - p) / 3
        table[q, c] = p
    return table.log()[None]


def masks_of(*queries, n):
    z = torch.full((n, len(queries)), -20.0)
    for q, points in enumerate(queries):
        z[list(points), q] = 20.0
    return z


def run(classes, masks, rules=InstanceRules()):  # noqa: B008
    return find_instances(classes, masks, torch.tensor([0, len(masks)]), STUFF, rules)


def test_two_particles_by_hand():
    """The better query takes the shared points, and the other what is left; ids go by score."""
    found = run(logits_of((0, 0.7), (1, 0.9)), masks_of(range(6), range(4, 10), n=12))
    assert found.instance.tolist() == [1] * 4 + [0] * 6 + [-1, -1]
    assert found.label.tolist() == [0] * 4 + [1] * 6 + [-1, -1]
    assert found.query.tolist() == [0] * 4 + [1] * 6 + [-1, -1]
    assert torch.allclose(found.confidence, torch.tensor([0.7] * 4 + [0.9] * 6 + [0.0, 0.0]))


def test_a_repeated_mask_is_decayed_within_its_class_only():
    """The same mask twice: IoU 1, decay exp(-2) = 0.135, below every threshold. In another class it stays."""
    masks = masks_of(range(8), range(8), range(8), n=8)
    score = torch.tensor([[0.9, 0.8, 0.85]])
    decay = nms_decay(
        score, torch.tensor([[0, 0, 1]]), torch.ones(1, 3, dtype=torch.bool), torch.full((1, 3, 3), 8.0), 2.0
    )
    assert torch.allclose(decay, torch.tensor([[1.0, float(np.exp(-2)), 1.0]]))
    assert run(logits_of((0, 0.9), (0, 0.8), (1, 0.85)), masks).instance.tolist() == [0] * 8


def test_a_mask_that_repeats_a_repetition_is_compensated():
    """A chain of three masks, by hand: how far the second repeats the first makes up for how it decays the third."""
    a, b, c = set(range(10)), set(range(5, 15)), set(range(9, 19))
    overlap = torch.tensor([[[float(len(x & y)) for y in (a, b, c)] for x in (a, b, c)]])
    iou_ab, iou_ac, iou_bc = 5 / 15, 1 / 19, 6 / 14
    decay = nms_decay(
        torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool),
        overlap, 2.0,
    )  # fmt: skip
    expected = [1.0, np.exp(-2 * iou_ab**2), min(np.exp(-2 * iou_ac**2), np.exp(-2 * (iou_bc**2 - iou_ab**2)))]
    assert np.allclose(decay[0], expected)


@pytest.mark.parametrize(
    "classes",
    [logits_of((3, 0.9)), logits_of((STUFF, 0.9)), logits_of((0, 0.45))],
    ids=["no object", "stuff", "low score"],
)
def test_queries_that_are_dropped(classes):
    found = run(classes, masks_of(range(5), n=5))
    assert (found.instance < 0).all() and (found.label < 0).all() and (found.confidence == 0).all()


def test_instances_need_their_points():
    assert run(logits_of((0, 0.9)), masks_of([1], n=3)).instance.tolist() == [-1] * 3
    assert run(logits_of((0, 0.9)), masks_of([1], n=3), InstanceRules(min_points=1)).instance.tolist() == [-1, 0, -1]
    # One point is all that the better mask leaves: it belongs to nothing, and the third query is number 1.
    found = run(logits_of((0, 0.9), (1, 0.8), (1, 0.7)), masks_of(range(6), range(1, 7), range(7, 9), n=9))
    assert found.instance.tolist() == [0] * 6 + [-1, 1, 1]


def test_no_thing_at_all():
    found = find_instances(
        torch.randn(3, 5, 4), torch.zeros(0, 5), torch.zeros(4, dtype=torch.int64), 0, InstanceRules()
    )
    assert all(len(x) == 0 for x in (found.label, found.confidence, found.instance, found.query))
    assert found.label.dtype == found.instance.dtype == torch.int64
