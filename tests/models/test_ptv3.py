"""The Point Transformer V3 encoder: published counts, a second derivation of its blocks, its invariances."""

import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from nufm.data.event import PointBatch, offsets_from_counts
from nufm.models.ptv3 import PointTransformerV3, pool_mean, upcast
from nufm.ops.neighbors import neighbor_map
from nufm.ops.serialize import serialize

SMALL = dict(depths=(2, 1, 3), channels=(16, 32, 48), heads=(1, 2, 3), window=32, layer_scale=1.0)


def make_batch(counts, seed=0, dtype=torch.float32):
    """Events of tracks-like random walks; each event is drawn from its own seed."""
    coords = []
    for b, n in enumerate(counts):
        generator = torch.Generator().manual_seed(seed + 1000 * b + n)
        walk = torch.randint(-1, 2, (4 * n + 8, 3), generator=generator).cumsum(0)
        cells = torch.unique(walk, dim=0)
        cells = cells[torch.randperm(len(cells), generator=generator)[:n]]
        assert len(cells) == n
        coords.append(cells.to(dtype) * 0.01)
    return batch_of(coords)


def batch_of(coords):
    grids = [torch.round(c / 0.01).long() for c in coords]
    grid = torch.cat([g - g.amin(0) if len(g) else g for g in grids])
    coord = torch.cat(coords)
    charge = torch.cat([torch.sin(1000 * c.sum(1, keepdim=True)) for c in coords])
    return PointBatch(
        coord,
        grid,
        torch.cat([coord, charge], 1),
        offsets_from_counts(torch.tensor([len(c) for c in coords])),
    )


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return randomised(PointTransformerV3(**SMALL)).eval()


def randomised(model):
    """Weights large enough that every branch matters."""
    for name, p in model.named_parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=1 / math.sqrt(p[0].numel() / (9 if "cpe.0" in name else 1)))
        else:
            torch.nn.init.normal_(p, mean=1.0 if "gamma" in name or "norm" in name else 0.0, std=0.2)
    return model


# ---- published numbers (Panda) ----


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_panda():
    with torch.device("meta"):
        model = PointTransformerV3()
        assert count(PointTransformerV3(mask_token=False)) == 90_758_784
        assert count(PointTransformerV3(in_channels=1)) == 90_758_688
    assert count(model) == 90_758_832
    stages = [count(stage) for stage in model.enc.values()]
    assert stages == [279_216, 1_116_288, 4_453_632, 53_224_704, 31_684_608]
    for stage, c in zip(model.enc.values(), model.channels, strict=True):
        assert count(stage["block0"]) == 40 * c**2 + 19 * c


def test_state_dict_keys_of_panda():
    with torch.device("meta"):
        state = {k: tuple(v.shape) for k, v in PointTransformerV3().state_dict().items()}
    assert len(state) == 441
    expected = {"embedding.mask_token": (1, 48), "embedding.stem.linear.weight": (48, 4)}
    expected |= {f"embedding.stem.{k}": (48,) for k in ("linear.bias", "norm.weight", "norm.bias")}
    channels, depths = (48, 96, 192, 384, 512), (3, 3, 3, 9, 3)
    for s, (c, depth) in enumerate(zip(channels, depths, strict=True)):
        if s:
            expected[f"enc.enc{s}.down.proj.weight"] = (c, channels[s - 1])
            expected |= {f"enc.enc{s}.down.{k}": (c,) for k in ("proj.bias", "norm.0.weight", "norm.0.bias")}
        for i in range(depth):
            block = f"enc.enc{s}.block{i}."
            shapes = {
                "cpe.0": (c, 3, 3, 3, c),
                "cpe.1": (c, c),
                "cpe.2": (c,),
                "norm1.0": (c,),
                "norm2.0": (c,),
            }
            shapes |= {
                "attn.qkv": (3 * c, c),
                "attn.proj": (c, c),
                "mlp.0.fc1": (4 * c, c),
                "mlp.0.fc2": (c, 4 * c),
            }
            for key, shape in shapes.items():
                expected |= {f"{block}{key}.weight": shape, f"{block}{key}.bias": shape[:1]}
            expected |= {block + "ls1.0.gamma": (c,), block + "ls2.0.gamma": (c,)}
    assert state == expected


def test_drop_rates_and_initial_values():
    torch.manual_seed(0)
    model = PointTransformerV3(depths=(3, 3, 3, 9, 3), channels=(32, 32, 32, 32, 32), heads=(2,) * 5)
    blocks = [b for stage in model.enc.values() for k, b in stage.items() if k != "down"]
    torch.testing.assert_close(
        [b.drop_path for b in blocks], [0.015 * i for i in range(21)], atol=1e-6, rtol=0
    )
    for b in blocks:
        assert (b.ls1[0].gamma == 1e-5).all() and (b.ls2[0].gamma == 1e-5).all()
        assert (b.attn.qkv.bias == 0).all() and (b.cpe[0].bias == 0).all() and b.norm1[0].eps == 1e-5
    weights = torch.cat(
        [b.cpe[0].weight.flatten() for b in blocks] + [b.attn.qkv.weight.flatten() for b in blocks]
    )
    assert abs(float(weights.detach().std()) - 0.02) < 1e-3
    assert model.embedding.mask_token.std() < 0.05 and (model.embedding.mask_token != 0).any()


# ---- the whole forward pass, written a second time point by point ----


def plain_block(p, x, grid, offsets, curve, depth, heads, window):
    """One block from its parameters ``p`` in loops over points and windows, for a single event."""
    n, c = x.shape
    neighbors = neighbor_map(grid, offsets)
    conv = p["cpe.0.bias"].repeat(n, 1)
    for i in range(n):
        for tap, j in enumerate(neighbors[i].tolist()):
            if j >= 0:
                conv[i] += p["cpe.0.weight"].flatten(1, 3)[:, tap] @ x[j]
    x = x + layer_norm(
        linear(conv, p["cpe.1.weight"], p["cpe.1.bias"]), (c,), p["cpe.2.weight"], p["cpe.2.bias"]
    )

    h = layer_norm(x, (c,), p["norm1.0.weight"], p["norm1.0.bias"])
    q, k, v = linear(h, p["attn.qkv.weight"], p["attn.qkv.bias"]).chunk(3, dim=1)
    order = serialize(grid, offsets, [curve], depth)[0][0].tolist()
    out = torch.zeros_like(q)
    for start in range(0, n, window):
        queries = order[start : start + window]
        members = order[max(0, n - window) :] if start + window > n else queries
        for head in range(heads):
            d = slice(head * c // heads, (head + 1) * c // heads)
            weights = torch.softmax(q[queries, d] @ k[members, d].t() / math.sqrt(c / heads), dim=1)
            out[queries, d] = weights @ v[members, d]
    x = x + p["ls1.0.gamma"] * linear(out, p["attn.proj.weight"], p["attn.proj.bias"])
    h = layer_norm(x, (c,), p["norm2.0.weight"], p["norm2.0.bias"])
    h = linear(
        gelu(linear(h, p["mlp.0.fc1.weight"], p["mlp.0.fc1.bias"])),
        p["mlp.0.fc2.weight"],
        p["mlp.0.fc2.bias"],
    )
    return x + p["ls2.0.gamma"] * h


def sub(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def test_forward_against_plain_loops(encoder):
    """Windows with a short tail, a masked point, and a coarse stage smaller than a window."""
    encoder = encoder.double()
    batch = make_batch([75], dtype=torch.float64)
    mask = torch.zeros(75, dtype=torch.bool)
    mask[::7] = True
    stages = encoder(batch, mask)

    state = encoder.state_dict()
    e = sub(state, "embedding.")
    x = linear(batch.feat, e["stem.linear.weight"], e["stem.linear.bias"])
    x = gelu(layer_norm(x, x.shape[1:], e["stem.norm.weight"], e["stem.norm.bias"]))
    x[mask] = e["mask_token"][0]
    grid, offsets, coord = batch.grid, batch.offsets, batch.coord
    for s, depth in enumerate(SMALL["depths"]):
        p = sub(state, f"enc.enc{s}.")
        if s:
            x = linear(x, p["down.proj.weight"], p["down.proj.bias"])
            cells = {}
            for i, cell in enumerate((grid // 2).tolist()):
                cells.setdefault(tuple(cell), []).append(i)
            members = [cells[cell] for cell in sorted(cells)]
            x = torch.stack([x[rows].amax(0) for rows in members])
            x = gelu(layer_norm(x, x.shape[1:], p["down.norm.0.weight"], p["down.norm.0.bias"]))
            coord = torch.stack([coord[rows].mean(0) for rows in members])
            grid, offsets = torch.tensor(sorted(cells)), torch.tensor([0, len(cells)])
        for i in range(depth):
            curve = ("hilbert", "hilbert-trans", "z", "z-trans")[i % 4]
            block, heads = sub(p, f"block{i}."), SMALL["heads"][s]
            x = plain_block(block, x, grid, offsets, curve, 16 - s, heads, SMALL["window"])
        torch.testing.assert_close(stages[s].feat, x)
        torch.testing.assert_close(stages[s].coord, coord)
        assert torch.equal(stages[s].grid, grid) and torch.equal(stages[s].offsets, offsets)


# ---- invariances ----


@pytest.mark.parametrize("mates", [[300], [1, 0, 5], [33, 32, 31], [0]])
def test_features_do_not_depend_on_batch_mates(encoder, mates):
    counts = [*mates[:1], 120, *mates[1:], 50]
    batch = make_batch(counts)
    together = encoder(batch)
    for event in (1, len(counts) - 1):
        for stage, alone in zip(together, encoder(batch.select([event])), strict=True):
            rows = slice(stage.offsets[event], stage.offsets[event + 1])
            torch.testing.assert_close(stage.feat[rows], alone.feat, atol=1e-5, rtol=1e-5)
            assert torch.equal(stage.grid[rows], alone.grid)


def test_published_habits_do_depend_on_batch_mates():
    """The named options reproduce what the invariance test above must be able to see."""
    batch = make_batch([120, 300])
    for option in (dict(window_rule="shrink_to_smallest"), dict(depth_bits=None)):
        torch.manual_seed(0)
        model = randomised(PointTransformerV3(**SMALL, **option)).eval()
        if option.get("depth_bits", 1) is None:  # a mate with a wider lattice
            wide = batch.grid.clone()
            wide[120] = 500
            batch = batch.replace(grid=wide)
        else:
            batch = make_batch([120, 9])
        alone = model(batch.select([0]))[0].feat
        assert (model(batch)[0].feat[:120] - alone).abs().max() > 1e-2


def test_depth_of_the_event_is_the_published_one_without_its_mates():
    """A batch with ``depth_bits="event"`` gives each event what the published depth gives it alone."""
    torch.manual_seed(0)
    own = randomised(PointTransformerV3(**SMALL, depth_bits="event")).eval()
    published = PointTransformerV3(**SMALL, depth_bits=None).eval()
    published.load_state_dict(own.state_dict())
    batch = make_batch([120, 9, 0, 300])
    together = own(batch)
    for b, one in enumerate(batch.split()):
        for stage, alone in zip(together, published(one), strict=True):
            rows = slice(int(stage.offsets[b]), int(stage.offsets[b + 1]))
            torch.testing.assert_close(stage.feat[rows], alone.feat, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="a number, 'event' or None, found 'batch'"):
        PointTransformerV3(**SMALL, depth_bits="batch")


def test_shrunken_windows_of_a_uniform_batch_are_the_fixed_ones():
    torch.manual_seed(0)
    fixed = randomised(PointTransformerV3(**SMALL)).eval()
    shrunk = PointTransformerV3(**SMALL, window_rule="shrink_to_smallest").eval()
    shrunk.load_state_dict(fixed.state_dict())
    batch = make_batch([75])
    torch.testing.assert_close(shrunk(batch)[-1].feat, fixed(batch)[-1].feat)


def test_order_of_points_does_not_matter(encoder):
    batch = make_batch([90, 40])
    generator = torch.Generator().manual_seed(5)
    shuffle = torch.cat(
        [torch.randperm(90, generator=generator), 90 + torch.randperm(40, generator=generator)]
    )
    moved = batch.replace(coord=batch.coord[shuffle], grid=batch.grid[shuffle], feat=batch.feat[shuffle])
    first, second = encoder(batch), encoder(moved)
    torch.testing.assert_close(second[0].feat, first[0].feat[shuffle], atol=1e-5, rtol=1e-5)
    for a, b in zip(first[1:], second[1:], strict=True):  # pooled cells are sorted: no permutation is left
        torch.testing.assert_close(b.feat, a.feat, atol=1e-5, rtol=1e-5)


def test_translation_by_lattice_steps(encoder):
    """Cells count from the event's own minimum: a shifted event with the same feature columns is the same
    event.
    """
    batch = make_batch([80])
    coord = batch.coord + torch.tensor([0.07, -0.4, 1.0])
    moved = batch_of([coord]).replace(feat=batch.feat)
    assert torch.equal(moved.grid, batch.grid)
    for a, b in zip(encoder(batch), encoder(moved), strict=True):
        assert torch.equal(a.feat, b.feat)
    torch.testing.assert_close(
        encoder(moved)[2].coord, encoder(batch)[2].coord + torch.tensor([0.07, -0.4, 1.0])
    )


def test_evaluation_is_deterministic_and_training_is_not(encoder):
    batch = make_batch([100])
    assert torch.equal(encoder(batch)[-1].feat, encoder(batch)[-1].feat)
    encoder.train()
    assert not torch.equal(encoder(batch)[-1].feat, encoder(batch)[-1].feat)
    for stage in encoder.enc.values():
        for key, block in stage.items():
            if key != "down":
                block.drop_path = 0.0
    shuffled = [encoder(batch)[-1].feat for _ in range(4)]
    assert any(not torch.equal(shuffled[0], other) for other in shuffled[1:])
    encoder.shuffle_orders = "never"
    assert torch.equal(encoder(batch)[-1].feat, encoder(batch)[-1].feat)
    encoder.eval().shuffle_orders = "always"
    shuffled = [encoder(batch)[-1].feat for _ in range(4)]
    assert any(not torch.equal(shuffled[0], other) for other in shuffled[1:])


def test_same_seed_same_training_pass(encoder):
    batch = make_batch([100])
    encoder.train()
    passes = []
    for _ in range(2):
        torch.manual_seed(3)
        passes.append(encoder(batch)[-1].feat)
    assert torch.equal(*passes)


def test_drop_path_drops_points_and_keeps_the_mean(encoder):
    block = encoder.enc["enc0"]["block0"].train()
    block.drop_path = 0.3
    torch.manual_seed(0)
    out = block.drop(torch.ones(20_000, 2))
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    assert torch.equal(out[:, 0], out[:, 1])  # a point loses its whole branch
    assert abs(float(out.mean()) - 1) < 0.02


# ---- legal oddities ----


@pytest.mark.parametrize("counts", [[1], [1, 1], [5, 0, 7], [0], [0, 0], []], ids=str)
def test_small_and_empty_events(counts):
    encoder = PointTransformerV3(**SMALL)
    batch = (
        make_batch(counts)
        if counts
        else make_batch([1]).replace(
            coord=torch.zeros(0, 3),
            grid=torch.zeros(0, 3, dtype=torch.int64),
            feat=torch.zeros(0, 4),
            offsets=torch.zeros(1, dtype=torch.int64),
        )
    )
    stages = encoder(batch, torch.ones(len(batch), dtype=torch.bool))
    for stage, c in zip(stages, SMALL["channels"], strict=True):
        assert stage.feat.shape == (len(stage.grid), c) and len(stage.offsets) == len(counts) + 1
        assert int(stage.offsets[-1]) == len(stage.feat) and torch.isfinite(stage.feat).all()
        assert [bool(n) for n in stage.offsets.diff().tolist()] == [bool(n) for n in counts]
    upcast(stages).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_points_that_share_a_cell(encoder):
    batch = make_batch([60])
    double = batch.select([0, 0]).replace(offsets=torch.tensor([0, 120]))  # every cell twice
    stages = encoder(double)
    assert len(stages[0].feat) == 120
    assert torch.equal(stages[1].grid, encoder(batch)[1].grid)
    assert torch.isfinite(stages[-1].feat).all()


def test_every_parameter_receives_a_gradient(encoder):
    batch = make_batch([100, 40])
    mask = torch.zeros(140, dtype=torch.bool)
    mask[:50] = True
    features = upcast(encoder.train()(batch, mask))
    (features * torch.randn_like(features)).sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None and (p.grad != 0).any(), name


def test_masked_points_show_nothing_of_their_features(encoder):
    batch = make_batch([60])
    mask = torch.zeros(60, dtype=torch.bool)
    mask[10:40] = True
    other = batch.feat.clone()
    other[mask] += 100
    masked = encoder(batch, mask)
    assert torch.equal(masked[-1].feat, encoder(batch.replace(feat=other), mask)[-1].feat)
    assert not torch.equal(masked[-1].feat, encoder(batch)[-1].feat)


def test_autocast(encoder):
    """bfloat16 products, but the residual stream, the position encoding and the norms stay in float32."""
    batch = make_batch([100, 40])
    seen = {}
    block = encoder.enc["enc1"]["block0"]
    for name in ("cpe.0", "norm1.0", "attn.qkv", "mlp.0.fc1"):
        block.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: o.dtype})
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stages = encoder(batch)
        upcast(stages).sum().backward()
    half, full = torch.bfloat16, torch.float32
    assert seen == {"cpe.0": full, "norm1.0": full, "attn.qkv": half, "mlp.0.fc1": half}
    for stage, exact in zip(stages, encoder(batch), strict=True):
        assert stage.feat.dtype == full
        error = (stage.feat - exact.feat).norm() / exact.feat.norm()
        assert 0 < error < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cpu_and_gpu_agree(encoder):
    batch = make_batch([300, 0, 1, 90])
    mask = torch.rand(len(batch)) < 0.3
    results = []
    for device in ("cpu", "cuda"):
        encoder = encoder.to(device).double()
        encoder.zero_grad()
        moved = batch.replace(feat=batch.feat.double(), coord=batch.coord.double()).to(device)
        features = upcast(encoder(moved, mask.to(device)))
        features.square().mean().backward()
        results.append([features, *(p.grad for p in encoder.parameters())])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu.cpu(), atol=1e-8, rtol=1e-6)


# ---- up-casting and pooled quantities ----


def test_upcast_against_loop(encoder):
    stages = encoder(make_batch([90, 0, 30]))
    for levels, top in ((0, 2), (1, 1), (2, 0), (None, 0)):
        wide = upcast(stages, levels)
        assert wide.shape == (len(stages[top].feat), sum(SMALL["channels"][top:]))
        for i in range(0, len(wide), 11):
            parts, row = [], i
            for s in range(top, 3):
                row = row if s == top else int(stages[s].inverse[row])
                parts.append(stages[s].feat[row])
            assert torch.equal(wide[i], torch.cat(parts))


def test_pool_mean_is_a_mean_of_means(encoder):
    batch = make_batch([90, 30])
    stages = encoder(batch)
    x = torch.randn(120, 2)
    assert torch.equal(pool_mean(x, stages, 0), x)
    mean = x
    for level in (1, 2):
        inverse = stages[level].inverse
        mean = torch.stack([mean[inverse == m].mean(0) for m in range(len(stages[level].grid))])
        torch.testing.assert_close(pool_mean(x, stages, level), mean)
    torch.testing.assert_close(pool_mean(batch.coord, stages, 2), stages[2].coord)


def test_refusals(encoder):
    batch = make_batch([20])
    with pytest.raises(ValueError, match="4 feature columns, the batch has"):
        encoder(batch.replace(feat=batch.feat[:, :3]))
    with pytest.raises(ValueError, match=r"'mask' must be bool \(20,\)"):
        encoder(batch, torch.zeros(19, dtype=torch.bool))
    with pytest.raises(ValueError, match="without a mask token"):
        PointTransformerV3(**SMALL, mask_token=False)(batch, torch.zeros(20, dtype=torch.bool))
    with pytest.raises(ValueError, match="ends at 65535"):
        encoder(batch.replace(grid=batch.grid + 2**16))
    with pytest.raises(ValueError, match="multiples of heads"):
        PointTransformerV3(channels=(48, 96, 192, 384, 511))
    with pytest.raises(ValueError, match="one entry per stage"):
        PointTransformerV3(depths=(1, 1))
    with pytest.raises(ValueError, match="curves must be among"):
        PointTransformerV3(curves=("peano",))
    with pytest.raises(ValueError, match=r"levels must be 0\.\.2"):
        upcast(encoder(batch), 3)
    with pytest.raises(ValueError, match=r"level must be 0\.\.2"):
        pool_mean(batch.coord, encoder(batch), 3)
