"""A loss or gradient that is not finite stops the run before it reaches the weights, and keeps the
evidence.
"""

from __future__ import annotations

import pytest
import torch
from run_support import callback, weights, write_config, write_data

from nufm.commands.pretrain import pretrain


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("nan") / "data")


@pytest.mark.parametrize(("what", "message"), [("loss", "the loss is nan"), ("gradient", "the gradient of ")])
def test_stops_with_step_events_and_batch(data, tmp_path, capsys, what, message):
    config = write_config(
        tmp_path / "mini.yaml",
        data,
        trainer__callbacks=callback("PoisonAt", step=3, what=what),
        trainer__max_steps=6,
        data__init_args__batch_size=3,
    )
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        pretrain(["--config", str(config), "--run", str(run)])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "step 3 (epoch 0, batch 3)" in said and message in said

    saved = torch.load(run / "nan_step3_rank0.pt", weights_only=True)
    assert str(run / "nan_step3_rank0.pt") in said
    assert (saved["step"], saved["epoch"], saved["batch_idx"], saved["rank"]) == (3, 0, 3, 0)
    assert len(saved["events"]) == 3 and all("events.h5#" in name for name in saved["events"])
    assert all(name in said for name in saved["events"])
    # The batch is whole: 3 events of 2 global and 2 local views, with everything a model needs.
    views = saved["batch"]
    assert len(views["globals_"]["offsets"]) == 3 * 2 + 1 and len(views["locals_"]["offsets"]) == 3 * 2 + 1
    assert views["globals_"]["feat"].shape == (views["globals_"]["offsets"][-1], 4)
    assert torch.isfinite(views["globals_"]["feat"]).all()

    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert all(torch.isfinite(v).all() for v in weights(run / "checkpoints/last.ckpt").values())
