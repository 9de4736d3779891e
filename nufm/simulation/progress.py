"""Progress of a simulation: events, events per second, time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class SimulationProgress:
    """Counts events and shows how it goes.

    Args:
        total: events to come.
        every_s: seconds between two lines where the output is not a terminal.
        console: where to write; None for the standard error output.
    """

    def __init__(self, total: int, every_s: float = 10.0, console: Console | None = None) -> None:
        self.total, self.every_s = total, every_s
        self.console = console or Console(file=sys.stderr)
        self.done = 0
        self._what = "simulating"
        self._bar: Progress | None = None

    def start(self, headline: str) -> None:
        """Prints the headline; the clock starts."""
        # Said beforehand, because nothing moves meanwhile.
        note = "(on a machine's first use, the transport is compiled: about half a minute)"
        self.console.print(f"{headline} {note}", highlight=False, soft_wrap=True)
        self._began = self._shown_at = time.perf_counter()
        self._first_at: float | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[rate]:.0f} events/s"),
                TimeRemainingColumn(),
                console=self.console,
                expand=True,
            )
            self._task = self._bar.add_task(self._what, total=self.total, rate=0.0)
            self._bar.start()

    def describe(self, what: str) -> None:
        """What is being done now."""
        self._what = what
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    @property
    def rate(self) -> float:
        """Events per second since the first event: compilation and start are not counted."""
        if self._first_at is None or self.done < 2:
            return 0.0
        return (self.done - 1) / max(time.perf_counter() - self._first_at, 1e-9)

    def advance(self) -> None:
        """One more event is written."""
        self.done += 1
        now = time.perf_counter()
        if self._first_at is None:
            self._first_at = now
        if now - self._shown_at < (0.1 if self._bar is not None else self.every_s) and self.done < self.total:
            return
        self._shown_at = now
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self.rate)
        else:
            left = (self.total - self.done) / self.rate if self.rate else 0.0
            numbers = f"{self.done}/{self.total} events, {self.rate:.0f} events/s, {left:.0f} s to go"
            print(f"{self._what}: {numbers}", file=self.console.file, flush=True)

    def stop(self) -> None:
        """Ends the display."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
