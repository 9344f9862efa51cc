"""The offset of a log's clock, from the load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from joulewatch_harness.analysis.sources.log_clock import Span, load_offset
from joulewatch_harness.analysis.sources.power_log import LogFormat, PowerLog, power_log
from joulewatch_harness.errors import ConfigError

T0 = 1_795_860_000.0
LENGTHS = (4.0, 3.0, 5.0, 4.5, 3.5, 6.0)
PATH = Path("wall.csv")


def load(lengths: tuple[float, ...] = LENGTHS, gap_s: float = 2.5) -> list[Span]:
    """Spans of load, each followed by a pause."""
    spans, at_s = [], T0 + 20.0
    for length_s in lengths:
        spans.append((at_s, at_s + length_s))
        at_s += length_s + gap_s
    return spans


def log_of(
    spans: list[Span],
    *,
    offset_s: float,
    spacing_s: float = 0.1,
    noise: float = 0.0,
    energy: bool = False,
    seed: int = 1,
    before_s: float = 20.0,
    after_s: float = 30.0,
) -> PowerLog:
    """A meter that reads 50 W, and 90 W during the load; its clock is behind by the offset."""
    rng = np.random.default_rng(seed)
    first_s, last_s = spans[0][0] - before_s, spans[-1][1] + after_s
    times_s = np.arange(first_s, last_s, spacing_s) + rng.uniform(0, spacing_s / 2)
    busy = np.any([(start_s <= times_s) & (times_s < end_s) for start_s, end_s in spans], axis=0)
    watts = np.where(busy, 90.0, 50.0) + noise * rng.standard_normal(times_s.size)
    if energy:
        fine_s = np.arange(first_s - 1, last_s + 1, 1e-3)
        inside = np.any([(start_s <= fine_s) & (fine_s < end_s) for start_s, end_s in spans], axis=0)
        joules = np.cumsum(np.where(inside, 90.0, 50.0)) * 1e-3
        return power_log(PATH, times_s - offset_s, np.interp(times_s, fine_s, joules), LogFormat(energy="e"), step=1e-6)
    return power_log(PATH, times_s - offset_s, watts, LogFormat(power="p"), step=0.1)


@pytest.mark.parametrize("energy", [False, True])
@pytest.mark.parametrize("offset_s", [-3600.0, 0.0, 1.234, 12.5])
def test_the_offset_is_that_of_the_load(offset_s: float, energy: bool) -> None:
    spans = load()
    found = load_offset(PATH, log_of(spans, offset_s=offset_s, energy=energy), spans)
    assert found.seconds == pytest.approx(offset_s, abs=found.half_width_s)
    assert found.half_width_s < 0.12
    assert (found.edges, found.explained) == (12, pytest.approx(1.0, abs=0.05))


def test_the_interval_holds_with_noise() -> None:
    """At least 38 of 40 noisy logs are within the stated interval, which stays useful."""
    spans = load()
    cases = [load_offset(PATH, log_of(spans, offset_s=7.0, noise=15.0, seed=seed), spans) for seed in range(40)]
    assert sum(abs(case.seconds - 7.0) <= case.half_width_s for case in cases) >= 38
    assert float(np.median([case.half_width_s for case in cases])) < 0.5


def test_one_window_within_a_longer_log() -> None:
    """MLPerf Power has one window; its start and its end are enough."""
    spans = [(T0 + 30.0, T0 + 90.0)]
    found = load_offset(PATH, log_of(spans, offset_s=-2.0, spacing_s=1.0, before_s=9.0, after_s=4.0), spans)
    assert found.seconds == pytest.approx(-2.0, abs=found.half_width_s)
    assert found.edges == 2


@pytest.mark.parametrize(
    ("log", "spans", "message"),
    [
        (log_of([(T0, T0 + 3.0)], offset_s=0.0, before_s=5.0, after_s=5.0), load(), "is shorter than the load"),
        (log_of([(T0, T0 + 0.001)], offset_s=0.0, noise=9.0, after_s=99.0), load(), "does not follow the windows"),
        (
            log_of(load((4.0,) * 12), offset_s=0.0, noise=10.0),
            load((4.0,) * 10),
            "agree about as well at offsets of",
        ),
        (
            log_of(load((0.4,) * 3, gap_s=1.0), offset_s=0.0, spacing_s=0.25),
            load((0.4,) * 3, gap_s=1.0),
            "the windows are too short for a log with 0.25 s between rows",
        ),
    ],
)
def test_no_offset_is_better_than_a_wrong_one(log: PowerLog, spans: list[Span], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_offset(PATH, log, spans)
