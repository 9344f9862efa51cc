"""Everything a run writes: to the journal first, then to the recording, the delivery and the progress display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, Unpack

from joulewatch_harness.clocktime import Clock, is_step
from joulewatch_harness.plan.steps import Step
from joulewatch_harness.records import (
    Configuration,
    Edge,
    Line,
    Note,
    RunEnd,
    RunStatus,
    Setup,
    Window,
    WindowKind,
)
from joulewatch_harness.runner.bracket import Bracket, WindowContents


class LineWriter(Protocol):
    """The journal."""

    def append(self, line: Line) -> None: ...


class LineSink(Protocol):
    """The recording of local mode; it gets each line after the journal."""

    def add_line(self, line: Line) -> None: ...


class Delivering(Protocol):
    """Delivers the run's annotations in the background; never blocks, never raises."""

    def configuration(self, configuration: Configuration) -> None: ...

    def window_opened(self, kind: WindowKind, configuration: str, batch_size: int, at_s: float) -> None: ...

    def window(self, window: Window) -> None: ...

    def end(self, end: RunEnd) -> None: ...


class Reporter(Protocol):
    """Shows the progress of the run."""

    def begin(self, step: Step, text: str) -> None: ...

    def tick(self) -> None: ...

    def done(self, step: Step, text: str) -> None: ...

    def note(self, text: str) -> None: ...


class RunLog:
    """Writes the lines of one run and numbers its windows.

    Args:
        run: The run's id.
        journal: Gets every line first; nothing is delivered that it does not have.
        recording: The second copy of the lines, in local mode.
        delivery: Gets configurations, windows and the end.
        reporter: Shows the notes.
        clock: The harness's clocks.
    """

    def __init__(
        self,
        run: str,
        *,
        journal: LineWriter,
        recording: LineSink | None,
        delivery: Delivering,
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        self._run = run
        self._journal = journal
        self._recording = recording
        self._delivery = delivery
        self._reporter = reporter
        self._clock = clock
        self._next_index = 0
        self._lost_exporters: set[str] = set()

    def configuration(self, loaded: Configuration) -> None:
        """Write a configuration as it was loaded."""
        self._write(loaded)
        self._delivery.configuration(loaded)

    def setup(self, setup: Setup) -> None:
        """Write a setup that was too short for a window."""
        self._write(setup)

    def window_opened(self, kind: WindowKind, configuration: str = "", batch_size: int = 0) -> None:
        """Announce a window; call it before the bracket is opened."""
        self._delivery.window_opened(kind, configuration, batch_size, self._now_s())

    def window(self, bracket: Bracket, kind: WindowKind, **contents: Unpack[WindowContents]) -> Window:
        """Write the window of a closed bracket, and notes about the clock and the exporters."""
        window = bracket.window(run=self._run, index=self._next_index, kind=kind, **contents)
        self.add(window)
        return window

    def windows(self, bracket: Bracket, kind: WindowKind, contents: Sequence[WindowContents]) -> list[Window]:
        """Write one window for each configuration that was measured in one bracket."""
        first = bracket.window(run=self._run, index=self._next_index, kind=kind)
        windows = []
        for content in contents:
            inferences = content["batches"] * content["batch_size"]
            windows.append(replace(first, index=self._next_index, inferences=inferences, **content))
            self.add(windows[-1])
        return windows

    def add(self, window: Window) -> None:
        """Write a window, and notes about the clock and the exporters."""
        self._next_index = window.index + 1
        self._write(window)
        self._delivery.window(window)
        if is_step(window.clock_step_s, window.duration_s, 2 * window.clock_error_s):
            self.note(
                "clock_stepped",
                f"the wall clock was set by {window.clock_step_s:+.3f} s during window {window.index}: it is excluded",
            )
        for edge in (window.start_edge, window.end_edge):
            if edge is not None:
                self._note_exporters(edge)

    def note(self, reason: str, text: str, configuration: str = "", batch_size: int = 0, *, show: bool = True) -> None:
        """Write a note and show it."""
        note = Note(at_s=self._now_s(), reason=reason, text=text, configuration=configuration, batch_size=batch_size)
        self._write(note)
        if show:
            self._reporter.note(text)

    def end(self, status: RunStatus, text: str) -> RunEnd:
        """Write the last line."""
        end = RunEnd(ended_at_s=self._now_s(), status=status, text=text)
        self._write(end)
        self._delivery.end(end)
        return end

    def _note_exporters(self, edge: Edge) -> None:
        """Write one note when an exporter stops answering and one when it answers again."""
        for exporter, problem in edge.missing.items():
            if exporter not in self._lost_exporters:
                self._lost_exporters.add(exporter)
                self.note("exporter_lost", f"exporter {exporter} does not answer: {problem}")
        for exporter in sorted(self._lost_exporters - set(edge.missing)):
            self._lost_exporters.discard(exporter)
            self.note("exporter_back", f"exporter {exporter} answers again")

    def _write(self, line: Line) -> None:
        self._journal.append(line)
        if self._recording is not None:
            self._recording.add_line(line)

    def _now_s(self) -> float:
        return self._clock.time_ns() * 1e-9
