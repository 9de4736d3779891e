"""Choice of backends, on invented ops and backends and on the real table."""

import os
import subprocess
import sys
import threading
import types

import pytest
import torch

from nufm.ops import dispatch
from nufm.ops.dispatch import BackendError, Implementation, choose, parse, preference, refusal, run, use_backend
from nufm.ops.kernel_map import submanifold_map
from nufm.ops.pool import segment_reduce, take
from nufm.ops.sparse_conv import sparse_conv


@pytest.fixture
def invented(monkeypatch):
    """Ops ``double`` (fast before slow) and ``plain`` (torch only); ``fast`` takes even numbers, ``slow`` all,
    ``absent`` is not installed and ``nowhere`` cannot run on this machine.
    """
    modules = {
        "fast": backend(lambda x: ("fast", x), lambda x: "odd" if x % 2 else None),
        "slow": backend(lambda x: ("slow", x), lambda x: None),
        "nowhere": backend(lambda x: ("nowhere", x), lambda x: None, "no GPU"),
    }
    found = {f"nufm.ops.backends.{name}": module for name, module in modules.items()}

    def import_module(name):
        if name not in found:
            raise ImportError(f"No module named '{name.rpartition('.')[2]}'")
        return found[name]

    monkeypatch.setattr(dispatch, "import_module", import_module)
    installs = {**dict.fromkeys(modules, "comes with torch"), "absent": "pip install absent"}
    monkeypatch.setattr(dispatch, "BACKENDS", installs)
    monkeypatch.setattr(dispatch, "PREFERENCE", {"double": ("absent", "nowhere", "fast", "slow"), "plain": ()})
    monkeypatch.setattr(dispatch, "_used", {})
    monkeypatch.delenv("NUFM_BACKEND", raising=False)
    clear()
    yield found
    clear()


def backend(function, refuses, unavailable=None):
    return types.SimpleNamespace(
        IMPLEMENTATIONS={"double": Implementation(function, refuses, "even numbers")}, unavailable=lambda: unavailable
    )


def clear():
    for cached in (dispatch.load, dispatch._unavailable, dispatch._environment):
        cached.cache_clear()


def double(x):
    return "reference", x


def test_auto_takes_the_first_that_applies(invented):
    assert preference() == ("auto",)
    assert run("double", double, 2) == ("fast", 2)
    assert run("double", double, 3) == ("slow", 3)
    assert run("plain", double, 2) == ("reference", 2)
    del invented["nufm.ops.backends.slow"]
    clear()
    assert run("double", double, 3) == ("reference", 3)


def test_a_list_is_taken_in_its_own_order(invented):
    with use_backend("slow", "fast"):
        assert choose("double", 2) == "slow"
    with use_backend("fast,slow"):
        assert choose("double", 2) == "fast" and choose("double", 3) == "slow"
    with use_backend("torch", "fast"):
        assert choose("double", 2) == "torch"
    with use_backend("fast", "torch"):
        assert choose("double", 3) == "torch"


def test_ops_that_no_backend_of_the_list_implements_run_on_the_reference(invented):
    with use_backend("fast"):
        assert run("plain", double, 1) == ("reference", 1)


def test_what_was_forced_and_does_not_apply_is_an_error_that_says_why(invented):
    with use_backend("absent", "nowhere", "fast"), pytest.raises(BackendError) as caught:
        run("double", double, 3)
    text = str(caught.value)
    assert text.startswith("double was asked of absent,nowhere,fast (NUFM_BACKEND or use_backend)")
    assert "absent: not installed (No module named 'absent'); pip install absent" in text
    assert "nowhere: no GPU" in text and "fast: odd" in text and "Append ',torch'" in text


@pytest.mark.parametrize("names", ["cuda", "auto,torch", "torch,auto", "fast;slow"])
def test_unknown_names(invented, names, monkeypatch):
    with pytest.raises(ValueError, match=f"NUFM_BACKEND={names}: expected auto, or a list of torch, fast, slow"):
        parse(names)
    with pytest.raises(ValueError, match="found '"), use_backend(*names.split(",")):
        pass
    monkeypatch.setenv("NUFM_BACKEND", names)
    with pytest.raises(ValueError, match="NUFM_BACKEND"):
        run("double", double, 2)


def test_spaces_and_nothing_in_the_variable(invented, monkeypatch):
    assert parse(" fast , torch,") == ("fast", "torch")
    assert parse("") == parse(" ") == ("auto",)
    monkeypatch.setenv("NUFM_BACKEND", " slow ")
    assert run("double", double, 2) == ("slow", 2)
    monkeypatch.setenv("NUFM_BACKEND", "torch")  # read at every call, not once
    assert run("double", double, 2) == ("reference", 2)


def test_contexts_nest_and_end(invented, monkeypatch):
    monkeypatch.setenv("NUFM_BACKEND", "slow")
    with use_backend("torch"):
        with use_backend("fast"):
            assert choose("double", 2) == "fast"
            with use_backend("auto"):
                assert preference() == ("auto",)
        assert choose("double", 2) == "torch"
        with pytest.raises(RuntimeError), use_backend("fast"):
            raise RuntimeError
        assert choose("double", 2) == "torch"
    assert choose("double", 2) == "slow"


def test_another_thread_does_not_see_the_context(invented):
    seen = []
    with use_backend("slow"):
        thread = threading.Thread(target=lambda: seen.append(preference()))
        thread.start()
        thread.join()
    assert seen == [("auto",)]


@pytest.mark.parametrize("error", [RuntimeError, OSError, AttributeError])
def test_only_a_missing_package_is_silent(invented, monkeypatch, error):
    """A package that is there but broken must say so, not quietly cost a factor of ten."""

    def broken(name):
        raise error("undefined symbol")

    monkeypatch.setattr(dispatch, "import_module", broken)
    clear()
    with pytest.raises(error, match="undefined symbol"):
        run("double", double, 2)


def test_what_ran_is_remembered_for_the_log(invented):
    assert dispatch.used() == {} and dispatch.used_line() == "ops (NUFM_BACKEND=auto): none has run"
    run("double", double, 2)
    run("plain", double, 2)
    assert dispatch.used_line() == "ops (NUFM_BACKEND=auto): fast: double; torch: plain"
    run("double", double, 3)
    assert dispatch.used() == {"double": ("fast", "slow"), "plain": ("torch",)}
    with use_backend("slow", "torch"):
        assert dispatch.used_line() == "ops (NUFM_BACKEND=slow,torch): fast+slow: double; torch: plain"


def test_a_failed_call_is_not_counted_as_run(invented):
    with use_backend("absent"), pytest.raises(BackendError):
        run("double", double, 2)
    assert dispatch.used() == {}


def test_the_table_gives_every_backend_and_the_reason(invented):
    assert dispatch.table() == [
        ("double", "absent", "not installed (No module named 'absent'); pip install absent"),
        ("double", "nowhere", "no GPU"),
        ("double", "fast", "active for even numbers"),
        ("double", "slow", "active for even numbers"),
        ("double", "torch", "active for all else"),
        ("plain", "torch", "active for anything"),
    ]


# The real table.


def test_every_backend_module_implements_what_the_table_says():
    for name in dispatch.BACKENDS:
        module = dispatch.load(name)
        if isinstance(module, str):
            assert module.startswith("not installed (") and dispatch.BACKENDS[name] in module
            continue
        expected = {op for op, names in dispatch.PREFERENCE.items() if name in names}
        assert set(module.IMPLEMENTATIONS) == expected
        assert module.unavailable() is None or isinstance(module.unavailable(), str)
        assert all(i.conditions for i in module.IMPLEMENTATIONS.values())


def test_every_name_in_the_table_is_a_backend():
    assert {name for names in dispatch.PREFERENCE.values() for name in names} <= set(dispatch.BACKENDS)


def test_nothing_but_the_reference_runs_by_itself_on_cpu_tensors(monkeypatch):
    """The interpreter that tests use must not slip into a run: it is slower by orders of magnitude."""
    monkeypatch.delenv("NUFM_BACKEND", raising=False)
    x, index = torch.ones(3, 2), torch.tensor([0, 1, 1])
    monkeypatch.setattr(dispatch, "_used", {})
    for reduce in ("sum", "max"):
        segment_reduce(x, index, 2, reduce)
    assert dispatch.used() == {"segment_sum": ("torch",), "segment_max": ("torch",)}
    triton = dispatch.load("triton")
    if not isinstance(triton, str):
        assert "GPU" in refusal("triton", "segment_sum", x, types.SimpleNamespace(index=index), False)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "take"])
def test_backward_outside_of_the_context_uses_its_backend(reduce, monkeypatch):
    """Also in a thread of its own, as autograd has for every GPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    index = torch.tensor([0, 1, 1], device=device)
    x = torch.ones(3, 2, device=device, requires_grad=True)
    with use_backend("triton"):
        if reduce == "take":
            out = take(x, index)
        else:
            out = segment_reduce(x, index, 2, reduce)
    asked = []
    monkeypatch.setattr(dispatch, "_used", {})
    original = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda op, *args: asked.append(preference()) or original(op, *args))

    def backward():
        (first,) = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
        first.pow(2).sum().backward()  # the backward of a backward, of which every reduction is a sum

    assert preference() == ("auto",)
    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert x.grad is not None
    assert asked and set(asked) == {("triton",)}
    assert dispatch.used() == {"segment_sum": ("triton",)}


def test_a_convolution_forced_to_the_reference_sums_by_it_in_its_backward(random_events, monkeypatch):
    """In another thread, as autograd's of a GPU, where nothing is forced."""
    grid, offsets = random_events([30], extent=4)
    feat, weight = torch.randn(30, 6, requires_grad=True), torch.randn(5, 3, 3, 3, 6, requires_grad=True)
    with use_backend("torch"):
        out = sparse_conv(feat, submanifold_map(grid, offsets), weight)
    asked = []
    original = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda op, *args: asked.append(preference()) or original(op, *args))

    def backward():
        first = torch.autograd.grad(out.pow(2).sum(), (feat, weight), create_graph=True)
        sum(x.pow(2).sum() for x in first).backward()

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert feat.grad is not None and asked and set(asked) == {("torch",)}


def python(*arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "NUFM_BACKEND"} | variables
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_prints_every_op_and_backend():
    result = python("-m", "nufm.ops", NUFM_BACKEND="triton,torch")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    op, found = None, []
    for line in lines[: lines.index("")]:
        words = line.split()
        op = op if line.startswith(" ") else words.pop(0)
        found.append((op, words[0]))
        assert len(words) > 1  # a state or a reason
    expected = [(op, name) for op, names in dispatch.PREFERENCE.items() for name in (*names, "torch")]
    assert found == expected
    assert lines[-1].startswith("NUFM_BACKEND=triton,torch; torch ")


def test_the_variable_forces_and_ops_import_no_compiled_package():
    script = (
        "import sys, torch\n"
        "from nufm.ops import attention, pool, serialize, sparse_conv, dispatch\n"
        "assert not {'triton', 'spconv', 'flash_attn', 'torch_scatter'} & set(sys.modules)\n"
        "pool.segment_reduce(torch.ones(2, 1), torch.tensor([0, 0]), 1, 'sum')\n"
        "print(dispatch.used_line())\n"
    )
    result = python("-c", script, NUFM_BACKEND="torch")
    assert result.stdout.strip() == "ops (NUFM_BACKEND=torch): torch: segment_sum", result.stderr
