"""Progress: lines in a file, a bar on a terminal, and the remaining time."""

from __future__ import annotations

import io
import itertools

import pytest

from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.steps import IdleStep, MeasureStep, Step, Steps, estimate_s, steps
from joulewatch_harness.runner.progress import RunProgress, duration
from support.clock import FakeClock

PLAN = make_plan({"batch_sizes": [1, 2], "preset": "quick", "rounds": 3}, "x")
IDLE = IdleStep(loaded=False, duration_s=PLAN.idle_s)


def record(steps_of_run: Steps, step: Step, pace: float = 1.0, joules: float = 1.0) -> None:
    """Record a step as the runner does."""
    if isinstance(step, MeasureStep):
        steps_of_run.rounds.record(step, joules=joules, seconds=1.0, spent_s=pace * estimate_s(PLAN, step))


def test_without_a_terminal_there_is_one_line_per_step() -> None:
    stream, clock = io.StringIO(), FakeClock()
    sequence = steps(PLAN)
    with RunProgress(PLAN, sequence, stream=stream, bar=False, clock=clock) as progress:
        for step in sequence:
            progress.begin(step, "begins")
            progress.tick()
            clock.advance(estimate_s(PLAN, step))
            record(sequence, step)
            progress.done(step, "done")
        progress.note("exporter a:1 does not answer")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 1 + 1 + 2 * 2 * 3 + 1 + 1
    assert lines[0] == "[ 11%] done (17 s left)"
    assert lines[-2] == "[100%] done (0 s left)"
    assert lines[-1] == "note: exporter a:1 does not answer"


def test_the_remaining_time_follows_from_the_duration_of_past_steps() -> None:
    sequence = steps(PLAN)
    progress = RunProgress(PLAN, sequence, stream=io.StringIO(), bar=False, clock=FakeClock())
    assert progress.left_s() == progress.total_s
    done = list(itertools.islice(sequence, 3 + 8))
    for step in done:
        record(sequence, step, pace=2.0)
        progress.done(step, "")
    rest_s = sum(estimate_s(PLAN, step) for step in done[-4:])
    idle_s = estimate_s(PLAN, sequence.after[-1])
    assert idle_s + 1.5 * rest_s < progress.left_s() < idle_s + 2 * rest_s


def test_the_remaining_time_follows_from_the_scatter_of_the_rounds() -> None:
    """Five rounds per cell are expected at first; a scatter of 6 % needs 12 for ±5 %."""
    plan = make_plan({"batch_sizes": [1], "preset": "quick", "max_run_s": 600}, "x")
    sequence = steps(plan)
    progress = RunProgress(plan, sequence, stream=io.StringIO(), bar=False, clock=FakeClock())
    joules = itertools.cycle([0.945, 0.945, 1.055, 1.055])
    for step in itertools.islice(sequence, 3 + 2 * 5):
        record(sequence, step, joules=next(joules))
        progress.done(step, "")
    left_s = progress.left_s() - estimate_s(plan, sequence.after[-1])
    window_s = estimate_s(plan, MeasureStep(configuration="", batch_size=1, repeat=5, window_s=0.5))
    assert left_s == pytest.approx(2 * 7 * window_s)


def test_the_bar_is_drawn_between_steps_and_rarely_during_a_step() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with RunProgress(PLAN, steps(PLAN), stream=stream, bar=True, clock=clock) as progress:
        progress.begin(IDLE, "idle")
        drawn = len(stream.getvalue())
        progress.tick()
        assert len(stream.getvalue()) == drawn
        clock.advance(6)
        progress.tick()
        progress.done(IDLE, "idle done")
        progress.note("something [odd]")
    assert "something [odd]" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (310, "5 min 10 s"), (11100, "3 h 05 min")]
)
def test_durations_are_formatted_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("bar", [False, True])
def test_a_terminal_that_is_gone_does_not_end_the_run(bar: bool) -> None:
    sequence = steps(PLAN)
    with RunProgress(PLAN, sequence, stream=Gone(), bar=bar, clock=FakeClock()) as progress:
        step = next(iter(sequence))
        progress.begin(step, "x")
        progress.note("y")
        progress.done(step, "x")
