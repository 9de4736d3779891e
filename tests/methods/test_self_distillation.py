"""Self-distillation against second derivations of its parts, and on the edges: one event, a view without a match."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer

from nufm.data.event import Event, PointBatch, offsets_from_counts
from nufm.data.transforms import NormalizeCoord
from nufm.data.views import ViewBatch
from nufm.methods.schedules import one_cycle
from nufm.methods.self_distillation import (
    SelfDistillation,
    _roll_views,
    mask_points,
    parameter_groups,
    sinkhorn,
    view_mean,
)
from nufm.models.ptv3 import PointTransformerV3
from nufm.ops.serialize import quantize

GRID = 0.05
REPOSITORY = Path(__file__).parents[2]


def make_batch(counts: list[int], seed: int = 0, extent: float = 1.0) -> PointBatch:
    rng = np.random.default_rng(seed)
    n = sum(counts)
    coord = torch.from_numpy(rng.uniform(-extent, extent, (n, 3)).astype(np.float32))
    offsets = offsets_from_counts(torch.tensor(counts))
    feat = torch.cat([coord, torch.from_numpy(rng.normal(size=(n, 1)).astype(np.float32))], 1)
    return PointBatch(
        coord=coord, grid=quantize(coord, offsets, GRID), feat=feat, offsets=offsets, origin=coord.clone(),
        seeds=torch.from_numpy(rng.integers(0, 2**62, len(counts))), grid_size=GRID,
        names=tuple(f"event{i}" for i in range(len(counts))),
    )  # fmt: skip


def make_views(n_events: int, n_points: int = 60, seed: int = 0) -> ViewBatch:
    """Global views share an event's points; the local ones are its first third."""
    events = [make_batch([n_points], seed=seed + i) for i in range(n_events)]

    def pack(parts: list[PointBatch]) -> PointBatch:
        offsets = offsets_from_counts(torch.tensor([len(p) for p in parts]))
        return PointBatch(
            coord=torch.cat([p.coord for p in parts]), grid=torch.cat([p.grid for p in parts]),
            feat=torch.cat([p.feat for p in parts]), origin=torch.cat([p.origin for p in parts]), offsets=offsets,
            seeds=torch.arange(len(parts)) + 1000 * seed + 7, grid_size=GRID, names=("",) * len(parts),
        )  # fmt: skip

    def head(p: PointBatch, n: int) -> PointBatch:
        return p.replace(
            coord=p.coord[:n], grid=p.grid[:n], feat=p.feat[:n], origin=p.origin[:n], offsets=torch.tensor([0, n])
        )

    globals_ = pack([e for event in events for e in (event, event)])
    locals_ = pack([head(e, n_points // 3) for e in events for _ in range(3)])
    return ViewBatch(globals_=globals_, locals_=locals_, n_global=2, n_local=3)


def small_method(**changes: object) -> SelfDistillation:
    torch.manual_seed(0)
    encoder = PointTransformerV3(depths=(1, 1, 1), channels=(16, 32, 48), heads=(1, 2, 3), drop_path=0.0)
    options = {
        "head_hidden": 32, "head_bottleneck": 16, "prototypes": 24, "upcast_levels": 1, "mask_size": (0.1, 0.2),
        "match_distance": 0.1,
    } | changes  # fmt: skip
    return SelfDistillation(encoder, **options)


def attach_trainer(method: SelfDistillation, steps: int = 10) -> SelfDistillation:
    """A trainer that only answers how long the training is; logging goes nowhere."""
    method.trainer = Trainer(max_steps=steps, logger=False, enable_checkpointing=False, accelerator="cpu")
    method.log = lambda *a, **k: None
    method.log_dict = lambda *a, **k: None
    type(method).total_steps = property(lambda self: steps)
    return method


@pytest.fixture(autouse=True)
def restore_total_steps():
    original = SelfDistillation.total_steps
    yield
    SelfDistillation.total_steps = original


# ---------------------------------------------------------------------- Sinkhorn


@pytest.mark.parametrize("n, k", [(1, 5), (7, 3), (64, 16)])
def test_sinkhorn_is_the_published_alternation(n: int, k: int) -> None:
    """Independent: the published order of operations (prototypes first) in NumPy float64, prototype by prototype."""
    s = torch.randn(n, k).clamp(-1, 1)
    q = np.exp(s.double().numpy() / 0.05).T
    q /= q.sum()
    for _ in range(3):
        for row in q:
            row /= row.sum() * k
        for j in range(n):
            q[:, j] /= q[:, j].sum() * n
    torch.testing.assert_close(sinkhorn(s, 0.05, 3).double(), torch.from_numpy(q.T * n), rtol=1e-4, atol=1e-7)


def test_sinkhorn_converges_to_the_balanced_scaling() -> None:
    """Sinkhorn's theorem: the limit is diag(u) exp(S/τ) diag(v) with unit rows and equal columns."""
    s = torch.randn(40, 8).clamp(-1, 1)
    q = sinkhorn(s, 0.3, 200)
    torch.testing.assert_close(q.sum(1), torch.ones(40))
    torch.testing.assert_close(q.sum(0), torch.full((8,), 40 / 8), rtol=1e-4, atol=1e-4)
    potential = q.double().log() - s.double() / 0.3
    rank_one = potential - potential[:1] - potential[:, :1] + potential[:1, :1]
    assert rank_one.abs().max() < 1e-4


def test_sinkhorn_of_nothing_is_empty() -> None:
    assert sinkhorn(torch.zeros(0, 6), 0.05, 3).shape == (0, 6)


def test_sinkhorn_of_one_point_is_uniform() -> None:
    """One sample that must use all prototypes equally."""
    torch.testing.assert_close(sinkhorn(torch.randn(1, 6), 0.05, 3), torch.full((1, 6), 1 / 6))


# ---------------------------------------------------------------------- loss


@pytest.mark.parametrize("targets", ["sinkhorn", "centering", "sharpening"])
def test_loss_against_a_loop(targets: str) -> None:
    """Cross-entropy = entropy of the target + Kullback-Leibler divergence, point by point, view by view."""
    method = attach_trainer(small_method(targets=targets))
    student, teacher = torch.randn(9, 24).clamp(-1, 1), torch.randn(6, 24).clamp(-1, 1)
    match = torch.tensor([0, -1, 3, 3, -1, -1, 5, 1, 2])
    offsets = torch.tensor([0, 4, 6, 9])  # the second view has points but no match
    center = torch.randn(24) * 0.1
    before = center.clone()
    loss, entropy, use = method.distill(student, teacher, match, offsets, center, 0.07)

    rows = [i for i in range(9) if match[i] >= 0]
    chosen = teacher[match[rows]]
    if targets == "sinkhorn":
        target = sinkhorn(chosen, 0.07, 3)
    elif targets == "centering":
        target = torch.exp((chosen - before) / 0.07)
        target = target / target.sum(1, keepdim=True)
        torch.testing.assert_close(center, 0.9 * before + 0.1 * chosen.mean(0))
    else:
        target = torch.exp(chosen / 0.07)
        target = target / target.sum(1, keepdim=True)
    view_ce: dict[int, list[float]] = {}
    view_h: dict[int, list[float]] = {}
    for i, t in zip(rows, target.double(), strict=True):
        z = student[i].double() / 0.1
        log_p = z - math.log(sum(math.exp(v) for v in z.tolist()))
        h = -sum(p * math.log(p) for p in t.tolist() if p > 0)
        kl = sum(p * (math.log(p) - q) for p, q in zip(t.tolist(), log_p.tolist(), strict=True) if p > 0)
        view = sum(i >= o for o in (4, 6))
        view_ce.setdefault(view, []).append(h + kl)
        view_h.setdefault(view, []).append(h)
    assert float(loss) == pytest.approx(np.mean([np.mean(v) for v in view_ce.values()]), rel=1e-4)
    assert float(entropy) == pytest.approx(np.mean([np.mean(v) for v in view_h.values()]), rel=1e-4)
    assert float(use) == pytest.approx(len(set(target.argmax(1).tolist())) / 24)


def test_no_match_at_all_gives_zero_and_a_gradient() -> None:
    method = attach_trainer(small_method())
    student = torch.randn(4, 24, requires_grad=True)
    loss, _, _ = method.distill(
        student, torch.randn(3, 24), torch.full((4,), -1), torch.tensor([0, 4]), torch.zeros(24), 0.05
    )
    loss.backward()
    assert float(loss) == 0 and student.grad is not None and not student.grad.any()


def test_view_mean_weighs_views_not_points() -> None:
    value = torch.tensor([1.0, 1.0, 1.0, 4.0])
    assert float(view_mean(value, torch.tensor([0, 0, 0, 2]), 3)) == pytest.approx(2.5)


def test_roll_exchanges_the_two_views_of_each_event() -> None:
    rows, offsets = _roll_views(torch.tensor([0, 2, 5, 5, 9]), 2)
    assert rows.tolist() == [2, 3, 4, 0, 1, 5, 6, 7, 8]
    assert offsets.tolist() == [0, 3, 5, 9, 9]


# ---------------------------------------------------------------------- masks


def test_mask_hides_whole_cells_and_the_right_share_of_each_view() -> None:
    batch = make_batch([200, 1, 0, 350])
    masked, mask = mask_points(batch, 0.5, 0.6, "view", (0.0005, 0.001))
    for v in range(4):
        rows = slice(int(batch.offsets[v]), int(batch.offsets[v + 1]))
        if rows.start == rows.stop:
            continue
        hidden: dict[tuple, set] = {}
        coord = batch.coord[rows].numpy()
        cells = np.floor((coord - coord.min(0)) / np.float32(0.5)).astype(int)
        for c, m in zip(map(tuple, cells), mask[rows].tolist(), strict=True):
            hidden.setdefault(c, set()).add(m)
        assert all(len(s) == 1 for s in hidden.values()), "a cell is half hidden"
        assert sum(True in s for s in hidden.values()) == int(0.6 * len(hidden))
    assert torch.equal(masked.coord[~mask], batch.coord[~mask])


def test_mask_does_not_depend_on_batch_mates() -> None:
    batch = make_batch([200, 50, 350])
    together, mask = mask_points(batch, 0.3, 0.5, "view", (0.0005, 0.001))
    alone, mask_alone = mask_points(batch.select([2]), 0.3, 0.5, "view", (0.0005, 0.001))
    assert torch.equal(mask[250:], mask_alone) and torch.equal(together.coord[250:], alone.coord)


def test_mask_over_the_batch_draws_the_share_once() -> None:
    batch = make_batch([200, 50, 350])
    _, mask = mask_points(batch, 0.3, 0.5, "batch", (0.0005, 0.001))
    low = torch.stack([part.coord.amin(0) for part in batch.split()])[batch.event_index]
    cells = torch.cat([batch.event_index[:, None], ((batch.coord - low) / 0.3).floor().long()], 1)
    occupied = torch.unique(cells, dim=0)
    assert len(torch.unique(cells[mask], dim=0)) == int(0.5 * len(occupied))


def test_mask_jitter_is_normal_and_clipped_from_above_only() -> None:
    batch = make_batch([40000])
    masked, mask = mask_points(batch, 0.1, 0.9, "view", (0.0005, 0.001))
    moved = (masked.coord - batch.coord)[mask].double().flatten()
    assert moved.max() <= 0.00101 and moved.min() < -0.0015
    assert float((moved < 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(moved[moved < 0].square().mean().sqrt()) == pytest.approx(0.0005, rel=0.02)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_mask_of_nothing_and_of_everything(ratio: float) -> None:
    _, mask = mask_points(make_batch([30, 0]), 0.2, ratio, "view", (0.0, 0.001))
    assert bool((mask == bool(ratio)).all())


# ---------------------------------------------------------------------- the step as a whole


@pytest.mark.parametrize("n_events", [1, 3])
def test_step_gives_every_student_parameter_a_gradient_and_the_teacher_none(n_events: int) -> None:
    method = attach_trainer(small_method())
    loss = method.training_step(make_views(n_events), 0)
    loss.backward()
    assert torch.isfinite(loss)
    missing = [n for n, p in method.student.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing and all(p.grad is None for p in method.teacher.parameters())


def test_losses_of_a_step_are_those_of_separate_passes() -> None:
    """The three losses from their definitions, with brute-force matching, one view at a time."""
    method = attach_trainer(small_method(loss_weights=(1.0, 10.0, 100.0), targets="sharpening"))
    method.eval()  # orders are not shuffled
    views = make_views(2)
    masked, mask = mask_points(views.globals_, 0.1, 0.5, "view", method.hparams.mask_jitter)
    total = float(method.training_step(views, 0).detach())

    def view_features(branch, batch, m=None):
        out = []
        for v in range(batch.n_events):
            rows = slice(int(batch.offsets[v]), int(batch.offsets[v + 1]))
            feat, origin, _ = branch(batch.select([v]), None if m is None else m[rows])
            out.append((feat, origin))
        return out

    def term(student, teacher, head):
        similarity = getattr(method.student, head)(student[0])
        log_p = (similarity / 0.1).log_softmax(1)
        target = (getattr(method.teacher, head)(teacher[0]) / 0.04).softmax(1)
        losses = []
        for i, o in enumerate(student[1]):
            distance = (teacher[1] - o).norm(dim=1)
            j = int(distance.argmin())
            if distance[j] < 0.1:
                losses.append(-(target[j] * log_p[i]).sum())
        return torch.stack(losses).mean()

    with torch.no_grad():
        t = view_features(method.teacher, views.globals_)
        s = view_features(method.student, masked, mask)
        loc = view_features(method.student, views.locals_)
        same = torch.stack([term(s[v], t[v], "mask_head") for v in range(4)]).mean()
        other = torch.stack([term(s[v], t[v ^ 1], "mask_head") for v in range(4)]).mean()
        local = torch.stack([term(loc[v], t[2 * (v // 3)], "unmask_head") for v in range(6)]).mean()
    assert total == pytest.approx(float(same + 10 * other + 100 * local), rel=1e-4)


def test_teacher_follows_the_student() -> None:
    method = attach_trainer(small_method(teacher_momentum=(0.9, 0.9)))
    start = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1.0)
    method.update_teacher()
    for before, after in zip(start, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.1)


# ---------------------------------------------------------------------- schedules


@pytest.mark.parametrize("steps", [1, 2, 10, 20, 1000])
def test_learning_rate_cycle_against_torch(steps: int) -> None:
    """torch's OneCycleLR, whose phases end one step early; it divides by zero where the warm-up is one step."""
    rates = [one_cycle(k / steps, 0.05)[0] for k in range(steps)]
    assert rates[0] == pytest.approx(0.1) and all(0 < r <= 1 for r in rates)
    if steps == 1000:
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([parameter], lr=1.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, steps, pct_start=0.05, div_factor=10, final_div_factor=1000
        )
        for k in range(steps):
            group = optimizer.param_groups[0]
            assert rates[k] == pytest.approx(group["lr"], abs=0.02)
            assert one_cycle(k / steps, 0.05)[1] == pytest.approx(group["betas"][0], abs=0.003)
            optimizer.step()
            if k < steps - 1:
                schedule.step()
    assert one_cycle(1.0, 0.05) == pytest.approx((1e-4, 0.95))
    assert one_cycle(0.05, 0.05) == pytest.approx((1.0, 0.85))


@pytest.mark.parametrize("cycle, beta", [(True, 0.85), (False, 0.9)])
def test_groups_follow_the_schedules(cycle: bool, beta: float) -> None:
    method = attach_trainer(small_method(cycle_momentum=cycle), steps=100)
    optimizer = method.configure_optimizers()
    method.optimizers = lambda: optimizer
    decay = {}
    for t in (0.0, 0.05, 0.5, 1.0):
        method.progress = lambda t=t: t
        method.on_train_batch_start(None, 0)
        decay[t] = {g["weight_decay"] for g in optimizer.param_groups}
        if t == 0.05:
            assert all(g["lr"] == pytest.approx(g["peak"]) for g in optimizer.param_groups)
            assert all(g["betas"] == (pytest.approx(beta), 0.999) for g in optimizer.param_groups)
    for t, expected in ((0.0, 0.04), (0.5, 0.12), (1.0, 0.2)):
        assert sorted(decay[t]) == pytest.approx([0.0, expected])


def test_too_few_views_are_refused() -> None:
    views = make_views(1)
    with pytest.raises(ValueError, match="2 global and 0 local"):
        attach_trainer(small_method()).training_step(
            ViewBatch(views.globals_, views.globals_.select([]), n_global=2, n_local=0), 0
        )


# ---------------------------------------------------------------------- paper size


@pytest.fixture(scope="module")
def paper_method() -> SelfDistillation:
    run = yaml.safe_load((REPOSITORY / "configs" / "pretrain" / "panda.yaml").read_text())["model"]["init_args"]
    with torch.device("meta"):
        encoder = PointTransformerV3(**run.pop("encoder")["init_args"])
        return SelfDistillation(encoder, **run)


def test_paper_size_counts(paper_method: SelfDistillation) -> None:
    """Released weights: 90.8 M encoder; training log of the authors: 104 M student."""
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert count(paper_method.student.backbone) == 90_758_832
    assert count(paper_method.student.mask_head) == count(paper_method.student.unmask_head) == 6_562_048
    assert count(paper_method.student) == 103_882_928


def test_learning_rate_falls_by_block_and_vectors_do_not_decay(paper_method: SelfDistillation) -> None:
    groups = parameter_groups(paper_method.student, 2.6e-3, 0.9)
    of = {id(p): g for g in groups for p in g["params"]}
    lr = {n: of[id(p)]["peak"] for n, p in paper_method.student.named_parameters() if p.requires_grad}
    assert lr["backbone.enc.enc0.block0.attn.qkv.weight"] == pytest.approx(3.16e-4, rel=2e-3)
    assert lr["backbone.enc.enc3.block0.attn.qkv.weight"] == pytest.approx(2.6e-3 * 0.9**11)
    assert lr["backbone.enc.enc4.block2.attn.qkv.weight"] == pytest.approx(2.6e-3)
    assert lr["backbone.embedding.stem.linear.weight"] == lr["mask_head.mlp.0.weight"] == 2.6e-3
    for name, p in paper_method.student.named_parameters():
        if p.requires_grad:
            spared = p.ndim == 1 or any(w in name for w in ("bias", "norm", "gamma", "token"))
            assert of[id(p)]["decays"] is not spared, name
    trained = sum(p.numel() for p in paper_method.student.parameters() if p.requires_grad)
    assert sum(p.numel() for g in groups for p in g["params"]) == trained


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="mask_token"):
        SelfDistillation(PointTransformerV3(depths=(1,), channels=(16,), heads=(1,), mask_token=False), upcast_levels=0)
    with pytest.raises(ValueError, match="upcast_levels is 3"):
        small_method(upcast_levels=3)


def test_consecutive_voxels_are_consecutive_cells_of_the_tiny_run() -> None:
    """Its lattice is that of the voxels; a cell edge that drifts through them would cut events in two."""
    data = yaml.safe_load((REPOSITORY / "configs" / "tiny" / "panda.yaml").read_text())["data"]["init_args"]
    normalise = NormalizeCoord(**data["transforms"][0]["init_args"])
    voxel = np.arange(768, dtype=np.int32)[:, None].repeat(3, 1)
    event = normalise(Event(voxel=voxel, energy=np.ones(768, np.float32)), np.random.default_rng(0))
    cell = quantize(torch.from_numpy(event.coord), torch.tensor([0, 768]), data["grid_size"])
    assert torch.equal(cell, torch.arange(768)[:, None].expand(-1, 3))
