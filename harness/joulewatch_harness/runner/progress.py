"""The progress of a run on stderr: a bar with the remaining time on a terminal, otherwise one line per step.

The bar is drawn between steps, and during long steps at most every five seconds: drawing takes about a millisecond of
the processor that is being measured.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, Final, Self, TextIO

from joulewatch_harness.clocktime import Clock
from joulewatch_harness.plan.plan import Plan
from joulewatch_harness.plan.steps import MeasureStep, Step, Steps, estimate_s

REDRAW_S: Final = 5.0


class RunProgress:
    """Shows the runner's steps; the ``Reporter`` of ``run_log``."""

    def __init__(
        self,
        plan: Plan,
        steps: Steps,
        *,
        stream: TextIO | None = None,
        bar: bool | None = None,
        clock: Clock = time,
    ) -> None:
        """Estimate the duration; nothing is written before the first step.

        Args:
            plan: The plan.
            steps: Its steps.
            stream: Output; by default stderr.
            bar: Whether to draw a bar; by default if the stream is a terminal.
            clock: For tests.
        """
        self._plan = plan
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._rounds = steps.rounds
        # Idle windows, loading and phase passes.
        self._other_s = sum(estimate_s(plan, step) for step in (*steps.before, *steps.after))
        self.total_s: Final = self.left_s()
        self._started_s = self._step_started_s = self._now_s()
        self._drawn_s = float("-inf")
        self._bar: Any = None
        self._task: Any = None
        if bar if bar is not None else self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[step]}"),
                console=Console(file=self._stream),
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task("", total=self.total_s, step="", left="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def begin(self, step: Step, text: str) -> None:
        """Show that a step begins."""
        self._step_started_s = self._now_s()
        self._draw(text)

    def tick(self) -> None:
        """Redraw the bar if it is old."""
        if self._bar is not None and self._now_s() - self._drawn_s >= REDRAW_S:
            self._draw(None)

    def done(self, step: Step, text: str) -> None:
        """Show that a step is done or was skipped."""
        self._step_started_s = self._now_s()
        if not isinstance(step, MeasureStep):
            self._other_s -= estimate_s(self._plan, step)
        if self._bar is None:
            elapsed_s, left_s = self._step_started_s - self._started_s, self.left_s()
            share = elapsed_s / (elapsed_s + left_s) if left_s > 0.0 else 1.0
            self._print(f"[{100 * share:3.0f}%] {text} ({duration(left_s)} left)")
        else:
            self._draw(text)

    def note(self, text: str) -> None:
        """Show a note."""
        if self._bar is None:
            self._print(f"note: {text}")
        else:
            with contextlib.suppress(OSError):
                self._bar.console.print(f"note: {text}", markup=False, highlight=False)

    def _print(self, line: str) -> None:
        # A terminal that is gone, or a full disk behind stderr, must not end the run.
        with contextlib.suppress(OSError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def left_s(self) -> float:
        """Return the remaining time: that of the rounds depends on the results and on how long the past ones took."""
        return max(0.0, self._other_s) + self._rounds.left_s()

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() * 1e-9

    def _draw(self, text: str | None) -> None:
        if self._bar is None:
            return
        self._drawn_s = self._now_s()
        elapsed_s = self._drawn_s - self._started_s
        left_s = max(0.0, self.left_s() - (self._drawn_s - self._step_started_s))
        self._bar.update(
            self._task,
            completed=elapsed_s,
            total=elapsed_s + left_s,
            left=f"{duration(left_s)} left",
            **({} if text is None else {"step": text}),
        )
        with contextlib.suppress(OSError):
            self._bar.refresh()


def duration(seconds: float) -> str:
    """Format a duration: ``42 s``, ``5 min 10 s``, ``3 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
