"""Panoptic training: targets, matching and losses against independent derivations, and two events learnt by heart."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, Trainer

from nufm.commands.finetune import FinetuneCLI
from nufm.data.event import PointBatch, offsets_from_counts
from nufm.methods.finetuning import rates
from nufm.methods.panoptic import Overlaps, Panoptic, class_loss, match, stuff_loss, true_instances
from nufm.models.detector import Detections, Detector, QueryPrediction
from nufm.models.ptv3 import Block, PointTransformerV3

REPOSITORY = Path(__file__).resolve().parents[2]
ENCODER = dict(depths=(1, 1), channels=(16, 32), heads=(1, 2), window=64, drop_path=0.0, mask_token=False)
STUFF, CLASSES, QUERIES = 5, 6, 7


def make_network(**changes):
    torch.manual_seed(0)
    encoder = PointTransformerV3(**(ENCODER | {"layer_scale": 1.0}))
    return Detector(encoder, **(dict(n_queries=QUERIES, width=32, heads=2, depth=2) | changes))


def tracks(n_tracks, n_points, seed, name):
    """An event of straight tracks in random directions, with single LED voxels around; coordinates as normalised."""
    rng = np.random.default_rng(seed)
    cells, particle, pid, momentum = [], [], [], []
    for i in range(n_tracks):
        direction = rng.normal(size=3)
        line = rng.uniform(-60, 60, 3) + np.arange(n_points)[:, None] * direction / np.abs(direction).max()
        cells.append(np.rint(line))
        particle += [i] * n_points
        pid += [i % STUFF] * n_points
        momentum += [0.1 * (i + 1)] * n_points
    low = n_points // 2
    cells.append(np.rint(rng.uniform(-80, 80, (low, 3))))
    particle, pid, momentum = particle + [-1] * low, pid + [STUFF] * low, momentum + [-1.0] * low
    cells, first = np.unique(np.concatenate(cells), axis=0, return_index=True)
    coord = torch.tensor(cells * 0.0015, dtype=torch.float32)
    energy = torch.tensor(np.where(np.array(particle)[first] < 0, -0.8, 0.2)).float()[:, None]
    return PointBatch(
        coord,
        torch.tensor(cells - cells.min(0)).long(),
        torch.cat([coord, energy], 1),
        torch.tensor([0, len(coord)]),
        labels={
            "particle": torch.tensor(particle)[first],
            "pid": torch.tensor(pid)[first],
            "interaction": torch.tensor([0 if p >= 0 else -1 for p in particle])[first],
            "momentum": torch.tensor(momentum, dtype=torch.float32)[first],
        },
        names=(name,),
    )


def packed(*events):
    return PointBatch(
        *(torch.cat([getattr(e, f) for e in events]) for f in ("coord", "grid", "feat")),
        offsets_from_counts(torch.tensor([len(e) for e in events])),
        labels={k: torch.cat([e.labels[k] for e in events]) for k in events[0].labels},
        names=tuple(e.names[0] for e in events),
    )


def empty(event):
    return event.select([0]).replace(
        **{f: getattr(event, f)[:0] for f in ("coord", "grid", "feat")},
        labels={k: v[:0] for k, v in event.labels.items()},
        offsets=torch.tensor([0, 0]),
        names=("empty",),
    )


def make_case(seed=0, momentum=True):
    """A made-up result of a detector, beside its batch: events with 3, 0 (only LED), 9 > Q, 1 and no instance or point.

    In float64, with a part of the points filtered out, of every instance of the first event some.
    """
    batch = packed(
        tracks(3, 30, 1, "three"), tracks(0, 12, 2, "led"), tracks(9, 8, 3, "nine"), tracks(1, 20, 4, "one"),
        empty(tracks(1, 4, 0, "x")),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    stuff = torch.randn(len(batch), generator=generator, dtype=torch.float64) - 1
    is_thing = stuff < 0
    things = is_thing.nonzero().flatten()
    thing_offsets = torch.tensor([int(is_thing[:o].sum()) for o in batch.offsets])

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    b = batch.n_events
    blocks = tuple(
        QueryPrediction(
            normal(b, QUERIES, CLASSES + 1), normal(len(things), QUERIES), normal(b, QUERIES) if momentum else None
        )
        for _ in range(2)
    )
    return batch, Detections(blocks, stuff.requires_grad_(), things, batch.offsets, thing_offsets)


def plain_losses(batch, found):
    """The loss as panda.md §4.2 writes it, event by event, in NumPy, with masks of 0 and 1 and all permutations tried.

    Filtered points have mask probability 0 and add nothing to the focal loss.
    """
    total = dict.fromkeys(("focal", "dice", "class", "deep_focal", "deep_dice", "deep_class", "momentum"), 0.0)
    particle, pid, p_true = (batch.labels[k].numpy() for k in ("particle", "pid", "momentum"))
    momentum_errors = []
    for i, block in enumerate(found.blocks):
        last = i == len(found.blocks) - 1
        for b in range(batch.n_events):
            rows = np.arange(int(batch.offsets[b]), int(batch.offsets[b + 1]))
            valid = rows[particle[rows] >= 0]
            place = {int(r): k for k, r in enumerate(found.things)}
            ids = sorted(set(particle[valid]))
            truth = np.array([[particle[r] == k for k in ids] for r in valid], dtype=float).reshape(
                len(valid), len(ids)
            )
            label = [np.bincount(pid[valid][particle[valid] == k]).argmax() for k in ids]
            z = np.full((len(valid), QUERIES), -np.inf)
            for j, r in enumerate(valid):
                if r in place:
                    z[j] = block.mask_logits.detach().numpy()[place[r]]
            p = 1 / (1 + np.exp(-z))
            focal, dice = np.zeros((len(ids), QUERIES)), np.zeros((len(ids), QUERIES))
            for k, q in itertools.product(range(len(ids)), range(QUERIES)):
                t, kept = truth[:, k], np.isfinite(z[:, q])
                terms = np.zeros(len(valid))
                pq, tq = p[kept, q], t[kept]
                right = np.where(tq == 1, pq, 1 - pq)
                terms[kept] = np.where(tq == 1, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)
                focal[k, q] = terms.mean()
                dice[k, q] = 1 - (2 * (p[:, q] * t).sum() + 1) / (p[:, q].sum() + t.sum() + 1)
            logits = block.class_logits.detach().numpy()[b]
            over_all = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            over_real = logits[:, :-1] - np.log(np.exp(logits[:, :-1]).sum(1, keepdims=True))
            cost = focal + dice - over_real[:, label].T
            pairs = brute_force(cost)
            share = {"focal": 2 * np.sum([focal[k, q] for k, q in pairs]) / max(1, len(pairs)),
                     "dice": 5 * np.sum([dice[k, q] for k, q in pairs]) / max(1, len(pairs))}  # fmt: skip
            others = set(range(QUERIES)) - {q for _, q in pairs}
            matched_ce = np.mean([-over_all[q, label[k]] for k, q in pairs]) if pairs else 0.0
            others_ce = np.mean([-over_all[q, -1] for q in others]) if others else 0.0
            share["class"] = 0.5 * (2 * matched_ce + 0.5 * others_ce)
            for name, value in share.items():
                total[name if last else f"deep_{name}"] += value / batch.n_events
            if last:
                for k, q in pairs:
                    true = p_true[valid][particle[valid] == ids[k]].mean()
                    x = abs(float(block.momentum[b, q].detach()) - math.log(true))
                    momentum_errors.append(0.5 * x * x if x < 1 else x - 0.5)
    total["momentum"] = np.mean(momentum_errors)
    stuff = 1 / (1 + np.exp(-found.stuff_logits.detach().numpy()))
    total["stuff"] = -np.log(np.where(pid == STUFF, stuff, 1 - stuff)).mean()
    return total


def brute_force(cost):
    """Pairs (instance, query) of least total cost; as many as there are of the fewer."""
    n, m = cost.shape
    if n == 0:
        return []
    if n <= m:
        orders = np.array(list(itertools.permutations(range(m), n)))
        best = orders[cost[np.arange(n), orders].sum(1).argmin()]
        return list(enumerate(best.tolist()))
    return [(k, q) for q, k in brute_force(cost.T)]


@pytest.fixture
def method():
    return Panoptic(make_network(momentum=True), "particle", regime="scratch")


@pytest.mark.parametrize("seed", range(3))
def test_losses_against_plain_loops(method, seed):
    batch, found = make_case(seed)
    parts = method.losses(found, batch)
    expected = plain_losses(batch, found)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-5), name


def test_gradient_of_the_loss(method):
    """Against finite differences, with the assignment as it is."""
    batch, found = make_case()
    inputs = [x for b in found.blocks for x in (b.class_logits, b.mask_logits, b.momentum)] + [found.stuff_logits]
    total = sum(method.losses(found, batch).values())
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    assert grads[2] is None, "the momentum is learnt from the last block"
    generator = torch.Generator().manual_seed(5)
    for i, (x, g) in enumerate(zip(inputs, grads, strict=True)):
        if g is None:
            continue
        step = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        values = []
        for sign in (1e-5, -1e-5):
            changed = [y + sign * step if j == i else y for j, y in enumerate(inputs)]
            moved = Detections(
                (QueryPrediction(*changed[:3]), QueryPrediction(*changed[3:6])), changed[6], found.things,
                found.offsets, found.thing_offsets,
            )  # fmt: skip
            values.append(sum(method.losses(moved, batch).values()))
        assert float((values[0] - values[1]) / 2e-5) == pytest.approx(float((g * step).sum()), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 3), (6, 6)])
def test_matching_against_all_permutations(shape):
    generator = torch.Generator().manual_seed(sum(shape))
    event = torch.tensor([0] * shape[0] + [2] * 2)
    costs = [torch.rand(len(event), shape[1], generator=generator) for _ in range(3)]
    for cost, query in zip(costs, match(costs, event), strict=True):
        for e in (0, 2):
            own = (event == e).nonzero().flatten()
            chosen = [(k, int(query[r])) for k, r in enumerate(own) if query[r] >= 0]
            best = brute_force(cost[own].numpy())
            assert len(chosen) == len({q for _, q in chosen}) == min(len(own), shape[1])
            assert sum(cost[own[k], q] for k, q in chosen) == pytest.approx(sum(cost[own[k], q] for k, q in best))


def test_matching_of_nothing_and_of_nan():
    assert match([torch.zeros(0, 4)], torch.zeros(0, dtype=torch.int64))[0].shape == (0,)
    query = match([torch.full((3, 4), torch.nan)], torch.tensor([0, 0, 1]))[0]
    assert (query >= 0).all() and query[0] != query[1]


# ---- truth ----


def instances_of(classes, instances, offsets, **more):
    return true_instances(torch.tensor(classes), torch.tensor(instances), torch.tensor(offsets), 6, STUFF, **more)


def test_the_class_of_an_instance_is_the_mode_of_its_points():
    """First points of another class, unknown ones, a tie (the smaller class), ids with gaps, two events."""
    truth = instances_of(
        [2, 1, 1, -1, -1, -1, 3, 0, 0, 3, 5, 4],
        [7, 7, 7, 7, 7, 7, 7, 0, 0, 0, -1, 3],
        [0, 7, 12],
    )
    assert truth.label.tolist() == [1, 0, 4]
    assert truth.event.tolist() == [0, 1, 1]
    assert truth.size.tolist() == [7, 3, 1]
    assert truth.member.tolist() == [0] * 7 + [1] * 3 + [-1, 2]
    assert instances_of([4, 3], [0, 0], [0, 2]).label.tolist() == [3]


def test_instances_of_the_stuff_class_are_no_objects():
    truth = instances_of([5, 5, 1, 2], [0, 0, 1, 1], [0, 4])
    assert truth.label.tolist() == [1] and truth.member.tolist() == [-1, -1, 0, 0] and truth.size.tolist() == [2]


def test_momentum_of_an_instance():
    truth = instances_of([1, 1, 2, 3, 3], [0, 0, 1, 2, 2], [0, 5], momentum=torch.tensor([0.5, 0.5, -1.0, -1.0, 2.0]))
    assert truth.momentum.tolist() == pytest.approx([0.5, math.nan, 2.0], nan_ok=True)


def test_no_instances():
    for n in (0, 3):
        truth = instances_of([5] * n, [-1] * n, [0, n]) if n else true_instances(
            *(torch.zeros(0, dtype=torch.int64) for _ in range(2)), torch.tensor([0, 0]), 6, STUFF
        )  # fmt: skip
        assert len(truth.event) == len(truth.label) == 0 and (truth.member == -1).all()


def test_an_instance_without_class_is_refused():
    with pytest.raises(ValueError, match=r"b\.h5#4: instance 8 has no class"):
        instances_of([1, 1, -1, -1], [0, 0, 8, 8], [0, 2, 4], names=("a.h5#0", "b.h5#4"))
    with pytest.raises(ValueError, match="class 6"):
        instances_of([6], [0], [0, 1])


# ---- single terms, by hand ----


def test_dice_and_focal_of_perfect_masks():
    """Two instances of 4 and 2 points; query 0 is the first, query 1 the second, query 2 nothing."""
    batch = packed(tracks(1, 6, 0, "a"))
    batch = batch.select([0]).replace(
        **{f: getattr(batch, f)[:6] for f in ("coord", "grid", "feat")}, labels={}, offsets=torch.tensor([0, 6])
    )
    truth = instances_of([1] * 4 + [2] * 2, [0] * 4 + [1] * 2, [0, 6])
    z = torch.full((6, 3), -30.0)
    z[:4, 0], z[4:, 1] = 30.0, 30.0
    found = Detections((), torch.zeros(6), torch.arange(6), batch.offsets, batch.offsets)
    focal, dice = Overlaps(found, truth, 1).losses(z)
    assert torch.allclose(dice, torch.tensor([[0, 1 - 1 / 7, 1 - 1 / 5], [1 - 1 / 7, 0, 1 - 1 / 3]]), atol=1e-6)
    # A wrong point costs α·30 or (1 - α)·30; query 2 misses the instance, the wrong one misses it and adds the other.
    expected = torch.tensor(
        [[0, (4 * 0.25 + 2 * 0.75) * 5, 4 * 0.25 * 5], [(2 * 0.25 + 4 * 0.75) * 5, 0, 2 * 0.25 * 5]]
    )
    assert torch.allclose(focal, expected, atol=1e-4)


def test_events_without_instance_teach_no_object():
    logits = torch.zeros(1, 4, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = class_loss(logits, none, none, none)
    assert float(loss) == pytest.approx(0.25 * math.log(3))
    loss.backward()
    assert (logits.grad[..., 2] < 0).all() and (logits.grad[..., :2] > 0).all()


def test_class_loss_when_every_query_is_matched():
    logits = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    loss = class_loss(logits, torch.tensor([0, 0]), torch.tensor([1, 0]), torch.tensor([2, 0]))
    expected = -(logits[0, 1].log_softmax(0)[2] + logits[0, 0].log_softmax(0)[0]) / 2
    assert float(loss) == pytest.approx(float(expected))


def test_stuff_loss_leaves_out_unknown_points():
    logits = torch.tensor([2.0, -1.0, 50.0])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert float(stuff_loss(logits, torch.tensor([STUFF, 1, -1]), STUFF)) == pytest.approx(expected)
    assert float(stuff_loss(logits[:0], torch.zeros(0, dtype=torch.int64), STUFF)) == 0


# ---- invariances ----


def test_names_of_instances_do_not_matter(method):
    batch, found = make_case()
    swapped = torch.where(batch.labels["particle"] >= 0, 20 - 2 * batch.labels["particle"], -1)
    other = batch.replace(labels=batch.labels | {"particle": swapped})
    a, b = method.losses(found, batch), method.losses(found, other)
    assert all(float(a[k]) == pytest.approx(float(b[k]), rel=1e-6) for k in a)


def test_a_batch_costs_the_mean_of_its_events():
    """All terms but stuff and momentum, which are means over points and particles."""
    method = Panoptic(make_network(), "particle", regime="scratch").eval()
    batch = packed(tracks(3, 30, 1, "a"), tracks(0, 12, 2, "led"), tracks(5, 20, 3, "b"))
    with torch.no_grad():
        together = method.losses(method.network(batch), batch)
        alone = [method.losses(method.network(e), e) for e in batch.split()]
    for name in together.keys() - {"stuff", "momentum"}:
        assert float(together[name]) == pytest.approx(np.mean([float(a[name]) for a in alone]), rel=1e-4), name


def test_points_of_no_instance_do_not_enter_the_masks(method):
    batch, found = make_case()
    before = method.losses(found, batch)
    row = torch.isin(found.things, (batch.labels["particle"] < 0).nonzero().flatten())
    assert row.any()
    blocks = tuple(
        QueryPrediction(b.class_logits, torch.where(row[:, None], 9.0, b.mask_logits), b.momentum) for b in found.blocks
    )
    after = method.losses(
        Detections(blocks, found.stuff_logits, found.things, found.offsets, found.thing_offsets), batch
    )
    assert all(torch.equal(before[k], after[k]) for k in before)


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(regime="lin"), "use 'dec'"),
        (dict(task="interaction"), "n_classes is 6"),
        (dict(task="motif"), "semantic"),
        (dict(network=make_network(stuff_class=0)), "stuff_class is 0"),
    ],
)
def test_refused_combinations(options, message):
    with pytest.raises(ValueError, match=message):
        Panoptic(**(dict(network=make_network(), task="particle", regime="scratch") | options))


def test_labels_that_are_not_there(method):
    batch, found = make_case()
    for label in ("pid", "particle", "momentum"):
        poorer = batch.replace(labels={k: v for k, v in batch.labels.items() if k != label})
        for refuse in (lambda b: method.losses(found, b), method.check_labels):
            with pytest.raises(ValueError, match=label):
                refuse(poorer)
    method.check_labels(batch)
    with pytest.raises(ValueError, match="three: instance 0 has no class"):
        method.check_labels(batch.replace(labels=batch.labels | {"pid": torch.full_like(batch.labels["pid"], -1)}))


# ---- the published runs ----


@pytest.mark.parametrize(
    ("name", "parameters", "head", "warmup"),
    [("particle", 95_164_040, 4_405_256, 0.025), ("interaction", 95_021_188, 4_262_404, 0.05)],
)
def test_published_runs(name, parameters, head, warmup):
    """Sizes, and AdamW 2e-4 with blocks of the head at 0.97^(2-b) of it and encoder blocks at 0.97^(20-j+3)."""
    path = REPOSITORY / "configs" / "finetune" / f"panda_{name}.yaml"
    cli = FinetuneCLI(["--config", str(path)], build=False)
    with torch.device("meta"):
        method = cli.parser.instantiate_classes(cli.config).model
    assert sum(p.numel() for p in method.network.parameters()) == parameters
    assert sum(p.numel() for p in method.network.decoder.parameters()) == head
    found = rates(method.network, method.encoder_rate, method.layer_decay, method.layer_rates)
    for b, block in enumerate(method.network.decoder.blocks):
        assert [found[p] for p in block.parameters()] == pytest.approx(
            [0.97 ** (2 - b)] * len(list(block.parameters()))
        )
    blocks = [m for m in method.network.encoder.modules() if isinstance(m, Block)]
    peaks = [method.peak * found[block.attn.qkv.weight] for block in blocks]
    assert peaks == pytest.approx([2e-4 * 0.97 ** (20 - j + 3) for j in range(21)])
    assert peaks[0] == pytest.approx(9.9e-5, rel=5e-3) and peaks[-1] == pytest.approx(1.8e-4, rel=2e-2)
    in_blocks = {p for m in (*blocks, *method.network.decoder.blocks) for p in m.parameters()}
    assert {rate for p, rate in found.items() if p not in in_blocks} == {1.0}
    assert (method.weight_decay, method.warmup, method.cycle_momentum) == (0.01, warmup, True)
    trainer, data = cli.config.trainer, cli.config.data.init_args
    assert (trainer.max_steps, trainer.gradient_clip_val, data.batch_size) == (416_660, 1.0, 48)


# ---- training ----


class TwoEvents(LightningDataModule):
    """The same batch again and again."""

    def __init__(self, batch, steps):
        super().__init__()
        self.batch, self.steps = batch, steps

    def train_dataloader(self):
        return torch.utils.data.DataLoader([self.batch] * self.steps, batch_size=None)

    def val_dataloader(self):
        return torch.utils.data.DataLoader([self.batch], batch_size=None)

    def transfer_batch_to_device(self, batch, device, index):
        return batch.to(device)


def fit(method, batch, steps, tmp_path):
    trainer = Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0, default_root_dir=tmp_path, num_sanity_val_steps=0,
        check_val_every_n_epoch=1,
    )  # fmt: skip
    trainer.fit(method, datamodule=TwoEvents(batch, steps))
    return {k: float(v) for k, v in trainer.callback_metrics.items()}


def test_two_events_are_learnt_by_heart(tmp_path):
    batch = packed(tracks(3, 40, 1, "a"), tracks(2, 40, 8, "b"))
    torch.manual_seed(0)
    method = Panoptic(
        make_network(momentum=True), "particle", regime="scratch", learning_rate=4e-3, weight_decay=0.0, warmup=0.1
    )
    found = fit(method, batch, 90, tmp_path)
    assert found["val/pq"] > 0.9 and found["val/f1"] > 0.9 and found["val/ari"] > 0.9, found
    prediction = method.network.eval().predict(batch)
    assert (prediction.label == batch.labels["pid"]).float().mean() > 0.95
    taken = prediction.instance >= 0
    ratio = prediction.momentum[taken] / batch.labels["momentum"][taken].clamp(min=0.01)
    assert (ratio.log().abs() < 0.3).float().mean() > 0.8


def test_interactions_and_a_frozen_encoder(tmp_path):
    """One step of the other detector: the encoder stays, the head moves."""
    network = make_network(n_queries=4, n_classes=2, stuff_class=0, two_layer_projections=False)
    method = Panoptic(network, "interaction", regime="dec", learning_rate=1e-3)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = fit(method, packed(tracks(2, 20, 1, "a"), tracks(0, 10, 1, "led")), 2, tmp_path)
    changed = {k.split(".")[0] for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"decoder"}
    assert math.isfinite(found["val/loss"]) and math.isfinite(found["train/loss"])
