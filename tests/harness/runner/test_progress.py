"""Progress: lines in a file, a bar on a terminal, and the remaining time."""

from __future__ import annotations

import io

import pytest

from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.plan.steps import estimate_s, steps
from joulewatch_harness.runner.progress import RunProgress, duration
from support.clock import FakeClock

PLAN = make_plan({"batch_sizes": [1, 2], "preset": "quick"}, "x")
STEPS = steps(PLAN)


def test_without_a_terminal_there_is_one_line_per_step() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with RunProgress(PLAN, STEPS, stream=stream, bar=False, clock=clock) as progress:
        for step in STEPS:
            progress.begin(step, "begins")
            progress.tick()
            clock.advance(estimate_s(PLAN, step))
            progress.done(step, "done")
        progress.note("exporter a:1 does not answer")
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(STEPS) + 1
    assert lines[0].startswith("[ 1/16] done (")
    assert lines[-2] == "[16/16] done (0 s left)"
    assert lines[-1] == "note: exporter a:1 does not answer"


def test_the_remaining_time_follows_from_the_duration_of_past_steps() -> None:
    clock = FakeClock()
    progress = RunProgress(PLAN, STEPS, stream=io.StringIO(), bar=False, clock=clock)
    assert progress.left_s() == progress.total_s
    for step in STEPS[:4]:
        progress.begin(step, "")
        clock.advance(2 * estimate_s(PLAN, step))
        progress.done(step, "")
    rest_s = sum(estimate_s(PLAN, step) for step in STEPS[4:])
    assert 1.5 * rest_s < progress.left_s() < 2 * rest_s


def test_the_bar_is_drawn_between_steps_and_rarely_during_a_step() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with RunProgress(PLAN, STEPS, stream=stream, bar=True, clock=clock) as progress:
        progress.begin(STEPS[0], "idle")
        drawn = len(stream.getvalue())
        progress.tick()
        assert len(stream.getvalue()) == drawn
        clock.advance(6)
        progress.tick()
        progress.done(STEPS[0], "idle done")
        progress.note("something [odd]")
    assert "something [odd]" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (310, "5 min 10 s"), (11100, "3 h 05 min")]
)
def test_durations_are_formatted_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
