"""Progress of a run: one line with step, loss, events per second and time to go; plain lines where there is
no terminal.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class RunProgress(ProgressBar):
    """Shows and logs the progress of the whole training, not of one epoch.

    ``events_per_s`` (all ranks together, waiting included) is logged with the other numbers.

    Args:
        every_s: seconds between two lines where the output is not a terminal.
        console: where to write; None for the standard error output.
    """

    def __init__(self, every_s: float = 10.0, console: Console | None = None) -> None:
        super().__init__()
        self.every_s = every_s
        self.console = console or Console(file=sys.stderr)
        self._enabled = True
        self._bar: Progress | None = None
        self._task: Any = None
        self._rate = self._first_rate = 0.0
        self._note = ""

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        self.console.print(*args, soft_wrap=True, markup=False, highlight=False)

    # ------------------------------------------------------------------ the training

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._total = int(total) if total != float("inf") else None
        self._begin_step = trainer.global_step
        self._begin_time = self._shown_at = self._counted_at = time.perf_counter()
        self._events = 0
        if not self._enabled or not trainer.is_global_zero:
            return
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
                expand=True,
            )
            self._task = self._bar.add_task("", total=self._total, completed=trainer.global_step, numbers="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._events += int(getattr(batch, "n_events", 0)) * trainer.world_size
        now = time.perf_counter()
        if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.global_step > self._begin_step:
            self._rate = self._events / max(now - self._counted_at, 1e-9)
            self._events, self._counted_at = 0, now
            module.log("events_per_s", self._rate, rank_zero_only=True, batch_size=1)
        elif self._rate == 0.0:
            self._first_rate = self._events / max(now - self._counted_at, 1e-9)
        if not self._enabled or not trainer.is_global_zero:
            return
        if self._bar is not None:
            if now - self._shown_at > 0.1 or trainer.global_step == self._total:
                self._bar.update(
                    self._task, completed=trainer.global_step, numbers=self._numbers(trainer, now)
                )
                self._shown_at = now
        elif now - self._shown_at >= self.every_s or trainer.global_step == self._total:
            self._shown_at = now
            of = f"/{self._total}" if self._total else ""
            print(
                f"step {trainer.global_step}{of}  {self._numbers(trainer, now)}",
                file=self.console.file,
                flush=True,
            )

    def _numbers(self, trainer: Trainer, now: float) -> str:
        parts = [
            f"{name.split('/')[-1]} {_short(value)}" for name, value in trainer.progress_bar_metrics.items()
        ]
        parts.append(f"{_short(self._rate or self._first_rate)} events/s")
        done, elapsed = trainer.global_step - self._begin_step, now - self._begin_time
        parts.append(f"{_clock(elapsed)} elapsed")
        if self._total and done:
            parts.append(f"{_clock(elapsed / done * (self._total - trainer.global_step))} to go")
        if self._note:
            parts.append(self._note)
        return "  ".join(parts)

    # ------------------------------------------------------------------ what interrupts it

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._set_note(trainer, "validating…")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._set_note(trainer, "")

    def _set_note(self, trainer: Trainer, note: str) -> None:
        self._note = note
        if self._bar is not None:
            self._bar.update(self._task, numbers=self._numbers(trainer, time.perf_counter()))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _short(value: Any) -> str:
    """Three to four figures: 0.0123, 4.321, 87.6, 1234."""
    number = float(value)
    digits = 0 if abs(number) >= 1000 else 1 if abs(number) >= 10 else 3
    return f"{number:.{digits}f}" if number == 0 or abs(number) >= 0.01 else f"{number:.2e}"


def _clock(seconds: float) -> str:
    seconds = int(seconds)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
