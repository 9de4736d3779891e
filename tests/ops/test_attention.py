"""Window packing against the published example, attention against softmax algebra window by window."""

import itertools

import pytest
import torch

from nufm.ops import dispatch
from nufm.ops.attention import Windows, window_layout, windowed_attention
from nufm.ops.serialize import event_index

EVENTS = {
    "one short": [5],
    "exactly one": [16],
    "ragged": [40, 3, 0, 16, 17, 1, 33, 100],
    "full windows only": [16, 40, 64],
    "equal and short": [7, 7, 7],
    "empty": [0, 0],
    "no events": [],
}

# Queries and keys of each window.
CROSS = {
    "latents on events": ([4, 4, 4, 4], [70, 1, 33, 9]),
    "missing streams": ([3, 5, 2, 0, 40], [6, 0, 9, 4, 0]),
    "queries that are rare": ([0, 1, 0, 2], [5, 5, 0, 300]),
    "no keys at all": ([3, 2], [0, 0]),
    "no windows": ([], []),
    "lengths in falling order": ([9, 5, 5, 1], [3, 3, 2, 2]),
}


def offsets_of(counts):
    return torch.tensor([0, *itertools.accumulate(counts)])


def test_published_packing_example():
    layout = window_layout(offsets_of([6, 3, 4, 10]), 4)
    gather = "0 1 2 3 4 5 2 3 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 19 20"
    assert layout.gather.tolist() == [int(i) for i in gather.split()]
    assert layout.key_boundaries.tolist() == [0, 4, 8, 11, 15, 19, 23, 27]
    assert layout.query_boundaries.tolist() == [0, 4, 6, 9, 13, 17, 21, 23]


@pytest.mark.parametrize("counts", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("window", [1, 4, 16, 256])
def test_packing_against_loop(counts, window):
    gather, keys, queries, offsets = [], [0], [0], offsets_of(counts)
    for lo, hi in itertools.pairwise(offsets.tolist()):
        previous = []
        for start in range(lo, hi, window):
            rows = list(range(start, min(start + window, hi)))
            queries.append(queries[-1] + len(rows))
            if previous:  # fill up with the last points of the window before
                rows += previous[len(rows) :]
            gather += rows
            keys.append(len(gather))
            previous = rows
    layout = window_layout(offsets, window)
    assert layout.gather.tolist() == gather
    assert layout.key_boundaries.tolist() == keys
    assert layout.query_boundaries.tolist() == queries


def loop_attention(q, k, v, windows, scale, bias=None):
    """Dense softmax in each window, from the definition."""
    out, pair = torch.zeros(len(q), q.shape[1], v.shape[2], dtype=q.dtype), 0
    ends = zip(
        itertools.pairwise(windows.query_boundaries.tolist()),
        itertools.pairwise(windows.key_boundaries.tolist()),
        strict=True,
    )
    for (q_lo, q_hi), (k_lo, k_hi) in ends:
        rows, keys = torch.arange(q_lo, q_hi), torch.arange(k_lo, k_hi)
        rows = rows if windows.query_rows is None else windows.query_rows[rows]
        keys = keys if windows.key_rows is None else windows.key_rows[keys]
        logits = scale * torch.einsum("ihd,jhd->hij", q[rows], k[keys])
        if bias is not None:
            n = len(rows) * len(keys)
            logits = logits + bias[:, pair : pair + n].unflatten(1, (len(rows), len(keys)))
            pair += n
        if len(rows) and len(keys):
            weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
            out = out.index_copy(0, rows, torch.einsum("hij,jhd->ihd", weights, v[keys]))
    return out


def compare(windows, heads=2, width=8, value_width=8, with_bias=False):
    """Result and gradients against the loop, in float64."""
    torch.manual_seed(0)
    widths = (windows.n_queries, width), (windows.n_keys, width), (windows.n_keys, value_width)
    inputs = [torch.randn(n, heads, d, dtype=torch.float64, requires_grad=True) for n, d in widths]
    if with_bias:
        inputs.append(torch.randn(heads, windows.cuts.n_pairs, dtype=torch.float64, requires_grad=True))
    bias = inputs[3] if with_bias else None
    out = windowed_attention(*inputs[:3], windows, 0.3, bias)
    expected = loop_attention(*inputs[:3], windows, 0.3, bias)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, cotangent)
    expected = expected + sum(x[:0].sum() for x in inputs)  # in the graph even where nothing attends
    for a, b in zip(found, torch.autograd.grad(expected, inputs, cotangent), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("counts", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("window", [16, 256])
def test_layouts_against_loop(counts, window, with_bias):
    """Windows filled up with borrowed keys, points in another order than the curve's."""
    windows = Windows.of_layout(window_layout(offsets_of(counts), window))
    compare(windows, with_bias=with_bias)
    compare(windows.of_points(torch.randperm(sum(counts))), heads=3, with_bias=with_bias)


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("queries, keys", CROSS.values(), ids=CROSS)
def test_cross_attention_against_loop(queries, keys, with_bias):
    queries, keys = offsets_of(queries), offsets_of(keys)
    n_queries, n_keys = int(queries[-1]), int(keys[-1])
    compare(Windows.of_boundaries(queries, keys), value_width=5, with_bias=with_bias)
    # Keys that stand in several windows or in none, queries in another order.
    few = max(1, n_keys // 2)
    rows = torch.randint(0, few, (n_keys,))
    compare(Windows(queries, keys, torch.randperm(n_queries), rows, n_queries, few + 3), with_bias=with_bias)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_bias_that_all_heads_share(learnt):
    """Expanded from one head, without a copy: the same result and gradients as a bias of its own for each."""
    queries, keys = (offsets_of(c) for c in ([3, 3, 3], [40, 0, 7]))
    windows = Windows.of_boundaries(queries, keys)
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, 4, 8, dtype=torch.float64, requires_grad=True) for n in (9, 47, 47))
    one = torch.randn(1, windows.cuts.n_pairs, dtype=torch.float64, requires_grad=learnt)
    results = []
    for bias in (one.expand(4, -1), one.expand(4, -1).contiguous()):
        out = windowed_attention(q, k, v, windows, 0.3, bias)
        inputs = (q, k, v, one) if learnt else (q, k, v)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))


def test_windows_longer_than_any_step():
    compare(Windows.of_boundaries(offsets_of([3, 2, 4]), offsets_of([1000, 1100, 5])))


def test_queries_without_keys_give_zero():
    windows = Windows.of_boundaries(offsets_of([2, 3]), offsets_of([0, 4]))
    q, k = torch.randn(5, 2, 8), torch.randn(4, 2, 8)
    out = windowed_attention(q, k, k, windows, 1.0)
    assert (out[:2] == 0).all() and (out[2:] != 0).all()


def test_events_do_not_see_each_other():
    """NaN in one event stays there, also where its neighbours are padded."""
    boundaries = offsets_of([5, 7, 4])
    q = torch.randn(16, 2, 8)
    q[5:12] = float("nan")
    out = windowed_attention(q, q, q, boundaries, 0.5)
    assert out[5:12].isnan().all() and not out[:5].isnan().any() and not out[12:].isnan().any()


def test_precomputed_windows_and_strided_input():
    boundaries = offsets_of(EVENTS["ragged"])
    qkv = torch.randn(int(boundaries[-1]), 3, 2, 16)
    q, k, v = qkv.unbind(1)  # strided views, as a model has them
    direct = windowed_attention(q.contiguous(), k.contiguous(), v.contiguous(), boundaries, 0.25)
    assert torch.equal(windowed_attention(q, k, v, Windows.of_boundaries(boundaries), 0.25), direct)


def test_padding_is_bounded():
    """Slots stay within 1/8 (32 for short windows) of the places, whatever the mixture of lengths."""
    lengths = torch.randint(1, 3000, (200,), generator=torch.Generator().manual_seed(0))
    cuts = Windows.of_boundaries(offsets_of([2] * 200), offsets_of(lengths.tolist())).cuts
    slots = sum(len(b.members) * b.keys for b in cuts.buckets.parts)
    assert slots <= int((lengths * 9 / 8 + 32).sum())
    masks = sum(b.mask.numel() for b in cuts.buckets.parts if b.mask is not None)
    assert masks <= slots and len(cuts.buckets.parts) <= 8 * 7


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("counts", [[5, 0, 1], [8, 8], [11, 3]])
def test_gradcheck(counts, with_bias):
    windows = Windows.of_layout(window_layout(offsets_of(counts), 4)).of_points(torch.randperm(sum(counts)))
    inputs = [torch.randn(sum(counts), 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    if with_bias:
        inputs.append(torch.randn(2, windows.cuts.n_pairs, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(lambda q, k, v, *b: windowed_attention(q, k, v, windows, 0.5, *b), inputs)


def test_every_window_is_counted_and_found():
    """Boundaries, places and pairs agree with each other on a layout of many events."""
    offsets = offsets_of(EVENTS["ragged"])
    windows = Windows.of_layout(window_layout(offsets, 16))
    lengths = windows.cuts.lengths
    assert windows.cuts.pair_offsets[-1] == windows.cuts.n_pairs == int((lengths[0] * lengths[1]).sum())
    event = event_index(offsets, int(offsets[-1]))
    first = windows.query_boundaries[:-1]
    assert torch.equal(event[windows.key_rows[windows.key_boundaries[:-1]]], event[first])


def test_refusals():
    boundaries = torch.tensor([0, 4, 6])
    q = torch.randn(6, 2, 8)
    with pytest.raises(ValueError, match="hold 6 queries and 6 keys, found 5 and 5"):
        windowed_attention(q[:5], q[:5], q[:5], boundaries, 1.0)
    with pytest.raises(ValueError, match="one floating dtype"):
        windowed_attention(q, q.double(), q, boundaries, 1.0)
    with pytest.raises(ValueError, match=r"\(Nq, H, D\)"):
        windowed_attention(q, q[:, :1], q, boundaries, 1.0)
    with pytest.raises(ValueError, match=r"\(H, S\) = \(2, 20\)"):
        windowed_attention(q, q, q, boundaries, 1.0, torch.zeros(2, 36))
    with pytest.raises(ValueError, match="or float32"):
        windowed_attention(q, q, q, boundaries, 1.0, torch.zeros(2, 20, dtype=torch.float64))
    with pytest.raises(ValueError, match="a window without keys needs an entry too"):
        Windows.of_boundaries(boundaries, torch.tensor([0, 6]))
    with pytest.raises(ValueError, match="must be int64"):
        Windows.of_boundaries(boundaries.int())
    with pytest.raises(ValueError, match="6 places of queries and 6 of keys, expected 6 and 7"):
        Windows(boundaries, boundaries, None, torch.zeros(7, dtype=torch.int64), 6, 6)
    with pytest.raises(ValueError, match="stand in one place"):
        Windows(boundaries, boundaries, torch.arange(5), None, 6, 6)
    with pytest.raises(ValueError, match="window must be >= 1"):
        window_layout(torch.tensor([0, 3]), 0)
    with pytest.raises(ValueError, match="int64"):
        window_layout(torch.tensor([0, 3], dtype=torch.int32), 4)


def test_reference_can_be_forced():
    q = torch.randn(6, 2, 8)
    with dispatch.use_backend("torch"):
        windowed_attention(q, q, q, torch.tensor([0, 4, 6]), 1.0)
    assert "torch" in dispatch.used()["windowed_attention"]


def test_autocast_does_not_change_the_attention():
    """As the convolution: the caller's dtype is the result's, whether autocast knows the backend or not."""
    q = torch.randn(10, 2, 8, requires_grad=True)
    boundaries = torch.tensor([0, 4, 10])
    plain = windowed_attention(q, q, q, boundaries, 0.3)
    (wanted,) = torch.autograd.grad(plain.sum(), q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = windowed_attention(q, q, q, boundaries, 0.3)
        (found,) = torch.autograd.grad(out.sum(), q)
    assert out.dtype == torch.float32 and torch.equal(out, plain) and torch.equal(found, wanted)
