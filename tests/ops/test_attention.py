"""Window packing against the published example, attention against softmax algebra window by window."""

import itertools

import pytest
import torch

from nufm.ops.attention import Windows, window_layout, windowed_attention

EVENTS = {
    "one short": [5],
    "exactly one": [16],
    "ragged": [40, 3, 0, 16, 17, 1, 33, 100],
    "full windows only": [16, 40, 64],
    "equal and short": [7, 7, 7],
    "empty": [0, 0],
    "no events": [],
}


def offsets_of(counts):
    return torch.tensor([0, *itertools.accumulate(counts)])


def test_published_packing_example():
    layout = window_layout(offsets_of([6, 3, 4, 10]), 4)
    gather = "0 1 2 3 4 5 2 3 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 19 20"
    assert layout.gather.tolist() == [int(i) for i in gather.split()]
    assert layout.boundaries.tolist() == [0, 4, 8, 11, 15, 19, 23, 27]
    assert layout.gather[layout.scatter].tolist() == list(range(23))


@pytest.mark.parametrize("counts", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("window", [1, 4, 16, 256])
def test_packing_against_loop(counts, window):
    gather, boundaries, offsets = [], [0], offsets_of(counts)
    for lo, hi in itertools.pairwise(offsets.tolist()):
        previous = []
        for start in range(lo, hi, window):
            rows = list(range(start, min(start + window, hi)))
            if previous:  # fill up with the last points of the window before
                rows += previous[len(rows) :]
            gather += rows
            boundaries.append(len(gather))
            previous = rows
    layout = window_layout(offsets, window)
    assert layout.gather.tolist() == gather
    assert layout.boundaries.tolist() == boundaries
    first = [gather.index(i) for i in range(int(offsets[-1]))]
    assert layout.scatter.tolist() == first


def loop_attention(q, k, v, boundaries, scale):
    out = []
    for lo, hi in itertools.pairwise(boundaries.tolist()):
        logits = scale * torch.einsum("ihd,jhd->hij", q[lo:hi], k[lo:hi])
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        out.append(torch.einsum("hij,jhd->ihd", weights, v[lo:hi]))
    return torch.cat(out) if out else q


@pytest.mark.parametrize("counts", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("window", [16, 256])
def test_attention_against_loop(counts, window):
    boundaries = window_layout(offsets_of(counts), window).boundaries
    n = int(boundaries[-1])
    q, k, v = (torch.randn(n, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    out = windowed_attention(q, k, v, boundaries, window, 0.3)
    expected = loop_attention(q, k, v, boundaries, 0.3)
    torch.testing.assert_close(out, expected)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), cotangent)
    if n:
        wanted = torch.autograd.grad(expected, (q, k, v), cotangent)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("counts", EVENTS.values(), ids=EVENTS)
def test_results_that_are_read_do_not_change_when_the_others_are_left_out(counts):
    layout = window_layout(offsets_of(counts), 16)
    n = len(layout.gather)
    points = [torch.randn(int(sum(counts)), 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    cotangent = torch.randn(int(sum(counts)), 2, 8, dtype=torch.float64)
    found = []
    for windows in (layout.boundaries, Windows.from_layout(layout, 16)):
        q, k, v = (x[layout.gather] for x in points)
        out = windowed_attention(q, k, v, windows, 16, 0.3)
        assert out.shape == (n, 2, 8)
        out = out[layout.scatter]
        found.append([out, *torch.autograd.grad(out, points, cotangent)])
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole)


def test_precomputed_windows_and_strided_input():
    boundaries = window_layout(offsets_of(EVENTS["ragged"]), 16).boundaries
    qkv = torch.randn(int(boundaries[-1]), 3, 2, 16)
    q, k, v = qkv.unbind(1)  # strided views, as a model has them
    direct = windowed_attention(q.contiguous(), k.contiguous(), v.contiguous(), boundaries, 16, 0.25)
    assert torch.equal(windowed_attention(q, k, v, Windows.from_boundaries(boundaries, 16), 16, 0.25), direct)


@pytest.mark.parametrize("counts", [[5, 0, 1], [8, 8], [11, 3]])
def test_gradcheck(counts):
    boundaries = window_layout(offsets_of(counts), 4).boundaries
    qkv = [torch.randn(int(boundaries[-1]), 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: windowed_attention(q, k, v, boundaries, 4, 0.5), qkv)


def test_refusals():
    boundaries = torch.tensor([0, 4, 6])
    q = torch.randn(6, 2, 8)
    with pytest.raises(ValueError, match="hold 6 rows, q has 5"):
        windowed_attention(q[:5], q[:5], q[:5], boundaries, 4, 1.0)
    with pytest.raises(ValueError, match="4 points, more than 3"):
        windowed_attention(q, q, q, boundaries, 3, 1.0)
    with pytest.raises(ValueError, match="one floating dtype"):
        windowed_attention(q, q.double(), q, boundaries, 4, 1.0)
    with pytest.raises(ValueError, match=r"\(Np, H, D\)"):
        windowed_attention(q, q[:, :1], q, boundaries, 4, 1.0)
    with pytest.raises(ValueError, match="window must be >= 1"):
        window_layout(torch.tensor([0, 3]), 0)
    with pytest.raises(ValueError, match="int64"):
        window_layout(torch.tensor([0, 3], dtype=torch.int32), 4)
