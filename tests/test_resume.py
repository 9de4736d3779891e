"""A run that was stopped and resumed ends with the very weights of one that never stopped (CPU, bit for
bit).
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from run_support import callback, start, wait_for, weights, write_config, write_data

from nufm.commands.pretrain import pretrain
from nufm.running.checkpointing import (
    AtomicCheckpointIO,
    IncompleteCheckpoint,
    newest_checkpoint,
    plain,
    record_path,
    verify,
)

# 24 events in batches of 4: an epoch has 6 steps. Drop path, shuffled orders and masks all draw random
# numbers.
STEPS = 14
EPOCH = 6


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    """Folder of a run that never stopped and kept a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("resume")
    config = write_config(folder / "mini.yaml", write_data(folder / "data"), trainer__max_steps=STEPS)
    run = folder / "runs" / "mini" / "whole"
    pretrain(["--config", str(config), "--run", str(run), "--checkpoint.keep_every", "1"])
    return folder


def assert_same(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"{len(different)} of {len(left)} tensors differ: {different[:5]}"


@pytest.mark.slow
def test_sigkill_in_mid_epoch_changes_nothing(uninterrupted):
    arguments = ["--config", str(uninterrupted / "mini.yaml"), "--runs_dir", str(uninterrupted / "killed")]
    process = start([*arguments, "--checkpoint.every_n_steps", "2"], uninterrupted)
    runs = uninterrupted / "killed" / "mini"

    def step() -> int:
        found = [newest_checkpoint(run) for run in runs.glob("*")]
        return max((c[1]["step"] for c in found if c), default=0)

    wait_for(lambda: step() >= EPOCH + 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (run,) = runs.iterdir()
    stopped = newest_checkpoint(run)[1]["step"]
    assert stopped < STEPS and stopped % EPOCH, (
        f"stopped at step {stopped}: not in mid-epoch, the test shows nothing"
    )

    pretrain([*arguments, "--ckpt_path", "last"])
    assert [p.name for p in runs.iterdir()] == [run.name], "the resumed run must continue in its folder"
    assert_same(uninterrupted / "runs/mini/whole/checkpoints/last.ckpt", run / "checkpoints/last.ckpt")
    steps = [int(line.split(",")[0]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    # Lightning logs a step after its checkpoint is saved: the kill may come in between, and lose that row.
    assert steps in (list(range(STEPS)), [s for s in range(STEPS) if s != stopped - 1]), "each step once"


@pytest.mark.parametrize("step", [EPOCH - 1, EPOCH, EPOCH + 1])
def test_resuming_around_the_end_of_an_epoch(uninterrupted, step):
    whole = uninterrupted / "runs" / "mini" / "whole" / "checkpoints"
    run = uninterrupted / "again" / str(step)
    checkpoint = str(whole / f"step-{step:07d}.ckpt")
    pretrain(["--config", str(uninterrupted / "mini.yaml"), "--run", str(run), "--ckpt_path", checkpoint])
    assert_same(whole / "last.ckpt", run / "checkpoints" / "last.ckpt")


def test_numbers_of_a_step_do_not_depend_on_those_before():
    from nufm.running.guards import seed_everything_for

    seed_everything_for(3, 1, 5, 0)
    first = torch.rand(3), np.random.random(3)  # noqa: NPY002
    torch.rand(100)
    seed_everything_for(3, 1, 5, 0)
    assert torch.equal(first[0], torch.rand(3)) and (first[1] == np.random.random(3)).all()  # noqa: NPY002
    for other in ((4, 1, 5, 0), (3, 2, 5, 0), (3, 1, 6, 0), (3, 1, 5, 1), (3, 5, 1, 0)):
        seed_everything_for(*other)
        assert not torch.equal(first[0], torch.rand(3)), f"{other} draws what (3, 1, 5, 0) draws"


def test_best_checkpoint_is_the_best_of_all_starts(tmp_path):
    scores = [0.1, 0.6, 0.3, 0.5, 0.4, 0.7]
    config = write_config(
        tmp_path / "mini.yaml",
        write_data(tmp_path / "data"),
        trainer__max_steps=6,
        trainer__callbacks=callback("LogScore", scores=scores),
    )
    run = tmp_path / "run"
    flags = ["--config", str(config), "--run", str(run), "--checkpoint.keep_every", "1"]
    pretrain([*flags, "--checkpoint.monitor", "probe/macro_f1"])
    checkpoints = run / "checkpoints"
    assert verify(checkpoints / "best.ckpt")["step"] == 6
    # From step 4 on with the last score bad: the best one so far, of step 2, is not replaced.
    (checkpoints / "best.ckpt").write_bytes(b"not touched")
    scores[5] = 0.2
    write_config(
        config,
        tmp_path / "data",
        trainer__max_steps=6,
        trainer__callbacks=callback("LogScore", scores=scores),
    )
    pretrain([*flags, "--ckpt_path", str(checkpoints / "step-0000004.ckpt")])
    assert (checkpoints / "best.ckpt").read_bytes() == b"not touched"


# ---------------------------------------------------------------------- checkpoint files


def saved(folder: Path, step: int, name: str = "last.ckpt") -> Path:
    path = folder / "checkpoints" / name
    AtomicCheckpointIO().save_checkpoint({"global_step": step, "epoch": 0, "x": torch.arange(1000)}, path)
    return path


def test_cut_and_changed_checkpoints_are_refused(tmp_path):
    path = saved(tmp_path, 7)
    assert verify(path)["step"] == 7
    whole = path.read_bytes()
    other = saved(tmp_path, 5, "best.ckpt")
    for damaged in (whole[:-100], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b""):
        path.write_bytes(damaged)
        with pytest.raises(IncompleteCheckpoint, match=r"last\.ckpt.*found.*expected.*best\.ckpt"):
            AtomicCheckpointIO().load_checkpoint(path)
    assert newest_checkpoint(tmp_path)[0] == other, "the complete one must be found in its place"
    path.write_bytes(whole)
    record_path(path).unlink()
    with pytest.raises(IncompleteCheckpoint, match=r"no last\.ckpt\.json"):
        verify(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        verify(tmp_path / "none.ckpt")


def test_death_at_any_point_of_a_save_leaves_a_complete_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    real, calls = os.replace, []
    for dies_at, left in ((0, 1), (1, 1), (2, 2)):  # the record, the file, not at all

        def replace(source, target, dies_at=dies_at):
            if len(calls) == dies_at:
                raise KeyboardInterrupt
            calls.append(target)
            real(source, target)

        calls.clear()
        monkeypatch.setattr(os, "replace", replace)
        try:
            path = saved(tmp_path, 2)
        except KeyboardInterrupt:
            path = tmp_path / "checkpoints" / "last.ckpt"
        monkeypatch.setattr(os, "replace", real)
        assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == left
        assert verify(path)["step"] == left


def test_saving_refuses_what_would_need_pickle(tmp_path):
    class Strange:
        pass

    with pytest.raises(TypeError, match=r"checkpoint\.a\[1\]\.b holds a .*Strange"):
        plain({"a": [1, {"b": Strange()}]})
    content = {"path": Path("x"), "number": np.float64(2.5), "array": np.arange(3), "shape": torch.Size([2])}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "a.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert loaded["path"] == "x" and loaded["number"] == 2.5 and loaded["array"].tolist() == [0, 1, 2]


def test_loading_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    path = tmp_path / "evil.ckpt"
    torch.save({"x": Evil()}, path)
    good = saved(tmp_path, 1)
    record = json.loads(record_path(good).read_text())
    import hashlib

    record["records"][0] |= {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    record_path(path).write_text(json.dumps(record))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "harm").exists()
