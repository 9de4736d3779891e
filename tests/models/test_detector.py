"""The set-prediction detector: published counts and keys, a second derivation of its forward pass, its invariances."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear, relu

from nufm.data.event import PointBatch, offsets_from_counts
from nufm.models.detector import Detector
from nufm.models.ptv3 import PointTransformerV3, upcast

ENCODER = dict(depths=(1, 1), channels=(16, 32), heads=(1, 2), window=64, layer_scale=1.0, mask_token=False)
SMALL = dict(n_queries=5, n_classes=4, stuff_class=3, width=24, heads=3, depth=3)


def make_batch(counts, seed=0):
    """Random walks on the lattice, each from its own seed."""
    cells = []
    for b, n in enumerate(counts):
        generator = torch.Generator().manual_seed(seed + 1000 * b + n)
        walk = torch.randint(-1, 2, (6 * n + 8, 3), generator=generator).cumsum(0)
        found = torch.unique(walk, dim=0)
        cells.append(found[torch.randperm(len(found), generator=generator)[:n]])
    grid = torch.cat([c - c.amin(0) if len(c) else c for c in cells])
    coord = torch.cat(cells) * 0.01
    feat = torch.cat([coord, torch.sin(1000 * coord.sum(1, keepdim=True))], 1)
    return PointBatch(coord, grid, feat, offsets_from_counts(torch.tensor(counts)))


def make_detector(stuff_bias=0.0, **changes):
    """Weights large enough that every branch matters; the stuff head lets about half of the points through."""
    torch.manual_seed(0)
    model = Detector(PointTransformerV3(**ENCODER), **(SMALL | changes))
    for name, p in model.named_parameters():
        if "query" in name:
            continue
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=(p[0].numel() / (9 if "cpe.0" in name else 1)) ** -0.5)
        else:
            torch.nn.init.normal_(p, mean=1.0 if "gamma" in name or "norm" in name else 0.0, std=0.2)
    with torch.no_grad():
        head = model.decoder.stuff_head[2]
        head.bias.fill_(0.0)
        # Between the two middle points: with one of them on the threshold, rounding would decide its kind.
        middle = model.eval()(make_batch([60])).stuff_logits.sort().values[29:31].mean()
        head.bias -= middle - stuff_bias
    return model


def make_busy_detector(**changes):
    """Queries that differ in class and mask, and are sure of themselves."""
    model = make_detector(**(dict(score_threshold=0.05, mask_threshold=0.99, n_queries=12) | changes)).eval()
    with torch.no_grad():
        model.decoder.query_feat.weight *= 4
        model.decoder.cls_pred.fc2.weight *= 8
        model.decoder.cls_pred.fc2.bias[:] = torch.tensor([0.0, 0.0, 0.0, -3.0, -3.0])
    return model


def count(module):
    return sum(p.numel() for p in module.parameters())


# ---- published numbers ----


def test_parameter_counts_of_panda():
    with torch.device("meta"):
        particle = Detector(PointTransformerV3(mask_token=False))
        interaction = Detector(PointTransformerV3(mask_token=False), 12, 2, stuff_class=0, two_layer_projections=False)
    assert count(particle) == 95_164_040 and count(particle.decoder) == 4_405_256
    assert count(interaction) == 95_021_188 and count(interaction.decoder) == 4_262_404


def linear_keys(name, out, width):
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


@pytest.mark.parametrize(("queries", "classes", "two"), [(32, 6, True), (12, 2, False)])
def test_state_dict_keys_of_panda(queries, classes, two):
    """Keys and shapes of the released detectors under ``decoder.``, typed from the description of the files."""
    with torch.device("meta"):
        model = Detector(PointTransformerV3(mask_token=False), queries, classes, 0, two_layer_projections=two)
    expected = {"query_feat.weight": (queries, 256), "query_embed.weight": (queries, 256)}
    expected |= linear_keys("pos_emb.0", 256, 3) | linear_keys("pos_emb.2", 256, 256)
    for b in range(3):
        for name in ("norm1", "norm2", "norm3", "norm_kv"):
            expected |= {f"blocks.{b}.{name}.{kind}": (256,) for kind in ("weight", "bias")}
        for name in (
            "self_attn.q",
            "self_attn.proj",
            *(f"cross_attn.{x}" for x in ("q_proj", "k_proj", "v_proj", "proj")),
        ):
            expected |= linear_keys(f"blocks.{b}.{name}", 256, 256)
        expected |= linear_keys(f"blocks.{b}.self_attn.kv", 512, 256)
        expected |= linear_keys(f"blocks.{b}.mlp.fc1", 1024, 256) | linear_keys(f"blocks.{b}.mlp.fc2", 256, 1024)
        expected |= linear_keys(f"blocks.{b}.mask_mlp.fc1", 256, 256)
        expected |= linear_keys(f"blocks.{b}.mask_mlp.fc2", 256, 256)
    expected |= {"final_norm.weight": (256,), "final_norm.bias": (256,)}
    expected |= linear_keys("stuff_head.0", 256, 1232) | linear_keys("stuff_head.2", 1, 256)
    if two:
        expected |= linear_keys("cls_pred.fc1", 256, 256) | linear_keys("cls_pred.fc2", classes + 1, 256)
        expected |= linear_keys("full_point_proj.fc1", 256, 1232) | linear_keys("full_point_proj.fc2", 256, 256)
    else:
        expected |= linear_keys("cls_pred", classes + 1, 256) | linear_keys("full_point_proj", 256, 1232)
    found = {k: tuple(v.shape) for k, v in model.decoder.state_dict().items()}
    assert found == expected
    # 440 tensors of the encoder without mask token.
    assert len(model.state_dict()) == (550 if two else 546)


# ---- a second derivation ----


def plain_forward(model, feat, coord, positions, mask_from):
    """One event, head by head and with explicit softmax: class logits, mask logits, momentum of every block."""
    p = {k: v for k, v in model.decoder.state_dict().items()}

    def lin(name, x):
        return linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(name, x):
        return layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    def two(name, x):
        return lin(f"{name}.fc2", gelu(lin(f"{name}.fc1", x))) if f"{name}.fc1.weight" in p else lin(name, x)

    def attention(q, k, v, bias):
        heads, width = 3, q.shape[1] // 3
        out = []
        for h in range(heads):
            s = slice(h * width, (h + 1) * width)
            out.append((q[:, s] @ k[:, s].T / width**0.5 + bias).softmax(1) @ v[:, s])
        return torch.cat(out, 1)

    stuff = lin("stuff_head.2", relu(lin("stuff_head.0", feat)))[:, 0]
    things = [i for i in range(len(feat)) if stuff[i].sigmoid() < 0.5]
    points = two("full_point_proj", feat[things])
    k_pos = lin("pos_emb.2", gelu(lin("pos_emb.0", coord[things])))
    q, q_pos = p["query_feat.weight"], p["query_embed.weight"]
    results = []
    for b in range(3):
        kv = norm(f"blocks.{b}.norm_kv", points)
        z = two(f"blocks.{b}.mask_mlp", q) @ kv.T
        if things:
            x = norm(f"blocks.{b}.norm1", q) + q_pos
            name = f"blocks.{b}.cross_attn"
            x = attention(
                lin(f"{name}.q_proj", x),
                lin(f"{name}.k_proj", kv + k_pos),
                lin(f"{name}.v_proj", kv),
                torch.log(torch.sigmoid(z) + 1e-6),
            )
            q = q + lin(f"{name}.proj", x)
        else:
            q = q + p[f"blocks.{b}.cross_attn.proj.bias"]
        x, name, width = norm(f"blocks.{b}.norm2", q), f"blocks.{b}.self_attn", q.shape[1]
        kx = x + q_pos if positions == "queries_and_keys" else x
        k = linear(kx, p[f"{name}.kv.weight"][:width], p[f"{name}.kv.bias"][:width])
        v = linear(x, p[f"{name}.kv.weight"][width:], p[f"{name}.kv.bias"][width:])
        q = q + lin(f"{name}.proj", attention(lin(f"{name}.q", x + q_pos), k, v, 0.0))
        q = q + two(f"blocks.{b}.mlp", norm(f"blocks.{b}.norm3", q))
        if b == 2 and mask_from == "last":
            z = two(f"blocks.{b}.mask_mlp", q) @ kv.T
        x = norm("final_norm", q)
        results.append((two("cls_pred", x), z.T, two("momentum_pred", x)[:, 0]))
    return stuff, things, results


@pytest.mark.parametrize("two", [True, False])
@pytest.mark.parametrize("positions", ["queries_and_keys", "queries"])
@pytest.mark.parametrize("mask_from", ["last", "before_last_update"])
@torch.no_grad()
def test_forward_against_plain_loops(two, positions, mask_from):
    model = make_detector(two_layer_projections=two, positions=positions, mask_from=mask_from, momentum=True).double()
    batch = make_batch([60, 1, 0, 37])
    batch = batch.replace(coord=batch.coord.double(), feat=batch.feat.double())
    found = model(batch)
    features = upcast(model.encoder(batch))
    assert 20 < len(found.things) < 80, "some points of each kind"
    for b in range(batch.n_events):
        rows = slice(batch.offsets[b], batch.offsets[b + 1])
        stuff, things, blocks = plain_forward(model, features[rows], batch.coord[rows], positions, mask_from)
        own = slice(found.thing_offsets[b], found.thing_offsets[b + 1])
        assert torch.allclose(found.stuff_logits[rows], stuff.float(), atol=1e-5)
        assert (found.things[own] - batch.offsets[b]).tolist() == things
        for (classes, masks, momentum), block in zip(blocks, found.blocks, strict=True):
            assert torch.allclose(block.class_logits[b], classes.float(), atol=1e-4)
            assert torch.allclose(block.mask_logits[own], masks.float(), atol=1e-4)
            assert torch.allclose(block.momentum[b], momentum.float(), atol=1e-4)


def test_the_options_matter():
    """So that the test above cannot pass with an option that does nothing."""
    batch = make_batch([60, 37])
    with torch.no_grad():
        base = make_detector()(batch).blocks[-1]
        keys = make_detector(positions="queries")(batch).blocks[-1]
        early = make_detector(mask_from="before_last_update")(batch).blocks[-1]
    assert not torch.allclose(base.class_logits, keys.class_logits, atol=1e-3)
    assert torch.equal(base.class_logits, early.class_logits)
    assert not torch.allclose(base.mask_logits, early.mask_logits, atol=1e-3)


# ---- invariances and edges ----


def same(a, b, atol=2e-5):
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if x is None or y is None:
            assert x is y
        elif x.is_floating_point():
            assert torch.allclose(x, y, atol=atol, equal_nan=True), field.name
        else:
            assert torch.equal(x, y), field.name


def test_an_event_does_not_depend_on_its_batch_mates():
    model = make_busy_detector(momentum=True)
    together = make_batch([90, 0, 1, 300, 20])
    prediction = model.predict(together)
    for b, alone in enumerate(together.split()):
        rows = slice(together.offsets[b], together.offsets[b + 1])
        cut = {f.name: getattr(prediction, f.name) for f in dataclasses.fields(prediction)}
        same(type(prediction)(**{k: v[rows] for k, v in cut.items()}), model.predict(alone))
    assert prediction.instance.max() >= 1, "an empty prediction would pass too"


@pytest.mark.parametrize("counts", [[0], [1], [0, 0, 1], [2, 50]])
@pytest.mark.parametrize("stuff_bias", [-50.0, 0.0, 50.0], ids=["all things", "some", "no thing"])
def test_small_and_empty_events(counts, stuff_bias):
    model = make_detector(stuff_bias, momentum=True).train()
    batch = make_batch(counts)
    found = model(batch)
    n_things = {-50.0: len(batch), 50.0: 0}.get(stuff_bias, len(found.things))
    assert len(found.things) == n_things == int(found.thing_offsets[-1])
    for block in found.blocks:
        assert block.class_logits.shape == (len(counts), 5, 5) and block.class_logits.isfinite().all()
        assert block.mask_logits.shape == (n_things, 5) and block.mask_logits.isfinite().all()
    total = sum(b.class_logits.sum() + b.mask_logits.sum() + b.momentum.sum() for b in found.blocks)
    (total + found.stuff_logits.sum()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), f"{name}: other ranks wait for this gradient"
    prediction = model.eval().predict(batch)
    for field in ("label", "confidence", "probability", "instance", "momentum"):
        assert len(getattr(prediction, field)) == len(batch)


def test_every_parameter_receives_a_gradient():
    model = make_detector(momentum=True).train()
    found = model(make_batch([80, 60]))
    sum(
        [found.stuff_logits.square().sum()]
        + [x.square().sum() for b in found.blocks for x in (b.class_logits, b.mask_logits, b.momentum)]
    ).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_bias_of_the_attention_has_no_gradient():
    """Class logits do not reach the masks' parameters."""
    model = make_detector().train()
    sum(b.class_logits.square().sum() for b in model(make_batch([80])).blocks).backward()
    for name, p in model.named_parameters():
        if "mask_mlp" in name or "stuff_head" in name:
            assert p.grad is None or not p.grad.any(), name


def test_evaluation_is_deterministic():
    model, batch = make_detector().eval(), make_batch([80, 30])
    with torch.no_grad():
        same(model.predict(batch), model.predict(batch), atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.gpu
def test_cpu_and_gpu_agree():
    model, batch = make_detector(momentum=True, score_threshold=0.05).eval(), make_batch([200, 0, 1, 900])
    with torch.no_grad():
        cpu, gpu = model(batch), model.cuda()(batch.to("cuda"))
    assert torch.equal(cpu.things, gpu.things.cpu())
    for a, b in zip(cpu.blocks, gpu.blocks, strict=True):
        assert torch.allclose(a.class_logits, b.class_logits.cpu(), atol=1e-3)
        assert torch.allclose(a.mask_logits, b.mask_logits.cpu(), atol=1e-3)


def test_autocast():
    """bfloat16 inside, float32 out: near the full-precision result where the same points are things."""
    model, batch = make_detector(-50.0).eval(), make_batch([80, 30])
    with torch.no_grad():
        full = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(batch)
    for a, b in zip(full.blocks, half.blocks, strict=True):
        assert b.class_logits.dtype == b.mask_logits.dtype == torch.float32
        assert torch.allclose(a.class_logits, b.class_logits, atol=0.05 * a.class_logits.abs().max())
        assert torch.allclose(a.mask_logits, b.mask_logits, atol=0.05 * a.mask_logits.abs().max())
    assert half.stuff_logits.dtype == torch.float32


# ---- prediction ----


def test_prediction_of_stuff_and_of_things():
    model = make_busy_detector(momentum=True)
    batch = make_batch([90, 60])
    with torch.no_grad():
        found = model(batch)
        # Leave some things free, but not all, if these random weights have a threshold that does.
        for threshold in (0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 0.99999):
            model.rules = dataclasses.replace(model.rules, mask_threshold=threshold)
            taken = model.interpret(found).instance[found.things] >= 0
            if taken.any() and not taken.all():
                break
        prediction = model.interpret(found)
    stuff = found.stuff_logits.sigmoid() >= 0.5
    assert stuff.any() and not stuff.all()
    assert (prediction.label[stuff] == 3).all() and (prediction.instance[stuff] == -1).all()
    assert torch.equal(prediction.confidence[stuff], found.stuff_logits.sigmoid()[stuff])
    taken, free = (prediction.instance >= 0), (prediction.instance < 0) & ~stuff
    assert taken.any()  # whether some things stay free is a matter of the random weights; test_instances has both
    assert (prediction.label[taken] >= 0).all() and (prediction.label[taken] != 3).all()
    assert (prediction.label[free] == -1).all() and (prediction.confidence[free] == 0).all()
    assert prediction.momentum[~taken].isnan().all() and (prediction.momentum[taken] > 0).all()
    event = batch.event_index
    for b in range(2):
        ids = prediction.instance[(event == b) & taken].unique()
        assert ids.tolist() == list(range(len(ids)))
        for i in ids:
            rows = (event == b) & (prediction.instance == i)
            assert len(prediction.label[rows].unique()) == 1, "one class for an instance"
            assert len(prediction.momentum[rows].unique()) == 1
    assert make_detector().eval().predict(batch).momentum is None


@torch.no_grad()
def test_class_probability_against_a_loop():
    model, batch = make_detector(), make_batch([40, 0, 30])
    found = model(batch)
    probability = model.class_probability(found).numpy()
    assert np.allclose(probability.sum(1), 1, atol=1e-5)
    p_stuff = 1 / (1 + np.exp(-found.stuff_logits.double().numpy()))
    classes, masks = found.blocks[-1].class_logits.double().numpy()[..., :-1], found.blocks[-1].mask_logits.numpy()
    for row, (event, p) in enumerate(zip(batch.event_index.tolist(), p_stuff, strict=True)):
        at = (found.things == row).nonzero().flatten()
        z = masks[at[0]] if len(at) else np.full(5, -1e4)
        joint = np.log(np.exp(classes[event] + z[:, None] - z.max()).sum(0))
        expected = np.exp(joint) / np.exp(joint).sum() * (1 - p) + p * (np.arange(4) == 3)
        assert np.allclose(probability[row], expected, atol=1e-5)


def test_arguments_build_the_same_detector():
    model = make_detector(momentum=True, positions="queries", mask_from="before_last_update", depth=2)
    again = Detector(**model.arguments)
    assert again.encoder is model.encoder and again.arguments == model.arguments
    plain = (int, float, str, bool, type(None))
    assert all(isinstance(v, plain) for k, v in model.arguments.items() if k != "encoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(n_queries=0), "n_queries"),
        (dict(stuff_class=4), "stuff_class must be one of the 4"),
        (dict(width=25), "multiple of heads"),
        (dict(positions="keys"), "positions"),
        (dict(mask_from="first"), "mask_from"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        Detector(PointTransformerV3(**ENCODER), **(SMALL | changes))


def test_head_layers_hold_what_leads_to_the_queries():
    model = make_detector()
    layers = model.head_layers()
    assert [layer[-1] for layer in layers] == list(model.decoder.blocks)
    listed = {id(p) for layer in layers for m in layer for p in m.parameters()}
    rest = {n.split(".")[1] for n, p in model.named_parameters() if "decoder." in n and id(p) not in listed}
    assert rest == {"stuff_head", "final_norm", "cls_pred"}
