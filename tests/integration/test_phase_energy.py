"""The power of the phases of FINN's driver, from a counter that follows them, against the powers that were set."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.analysis.results.phase_energies import MODEL_DOUBT
from joulewatch_harness.clients.exporter import ExporterClient
from joulewatch_harness.network import Phases, TimedPhases
from joulewatch_harness.records import PhasePowers
from joulewatch_harness.runner.bracket import Bracket
from joulewatch_harness.runner.edges import EdgeReader
from joulewatch_harness.runner.latency import phase_times
from joulewatch_harness.runner.phase_power import INTERVALS_PER_PHASE, LARGEST_ERROR_S, CounterTrace, phase_powers
from joulewatch_harness.runtimes.finn import network as finn
from support.finn.builds import fake_pynq, generated_build
from support.rapl_shim import PowerTrack, ShimMachine, build_shim
from support.rapl_tree import pmu, topology
from support.servers import ExporterServer
from support.sysfs import XEON, FakeSysfs

pytestmark = pytest.mark.integration

WATTS = {"pack": 120.0, "copy_in": 150.0, "execute": 80.0, "copy_out": 140.0, "unpack": 200.0}
OTHER_WATTS = 100.0
WINDOW_S = 2.0
REFRESH_NS = 1_000_000
LIMIT_S = 15.0


class FollowedPhases:
    """Sets the power of the counter when a phase begins and ends."""

    def __init__(self, phases: Phases, track: PowerTrack) -> None:
        self._phases = phases
        self._track = track
        self.batch = phases.batch

    def __call__(self, name: str) -> FollowedPhases:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start_ns = self._track.change(WATTS[self._name])

    def __exit__(self, *_: object) -> None:
        end_ns = self._track.change(OTHER_WATTS)
        self._phases.add(self._name, self._start_ns, end_ns)


@pytest.fixture
def track(tmp_path: Path) -> PowerTrack:
    track = PowerTrack(tmp_path / "track")
    track.set(OTHER_WATTS, time.monotonic_ns())
    return track


@pytest.fixture
def reader(tmp_path: Path, track: PowerTrack) -> Iterator[EdgeReader]:
    sysfs = pmu(topology(FakeSysfs(tmp_path / "node").cpuinfo(**XEON), (0, 0, 0), (0, 0, 1)), "energy-pkg")
    machine = ShimMachine(sysfs=sysfs, library=build_shim(tmp_path)).event("energy-pkg", 0, 0.0).follow(track)
    machine.refresh(REFRESH_NS)
    flags = (*machine.flags, "--no-collector.estimate", f"--web.edge-socket={tmp_path / 'edge.sock'}")
    exporter = ExporterServer(tmp_path / "exporter", *flags, environment=machine.environment)
    exporter.start()
    try:
        with EdgeReader([ExporterClient(exporter.url)]) as reader:
            reader.fetch()
            yield reader
    finally:
        exporter.stop()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Any]:
    with fake_pynq():
        network: Any = finn.open_network(str(generated_build(tmp_path / "deploy")), "native", {})
        network.load()
        yield network
        network.close()


def measure(network: Any, batch: int, track: PowerTrack, reader: EdgeReader) -> tuple[PhasePowers, dict[str, float]]:
    """Return the fitted powers, and the time per batch of each phase; again if a busy machine hides the refreshes.

    Raises:
        TooUncertainError: Each time, the refreshes whose times are certain enough were too few for a fit.
    """
    network.prepare(batch)
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        trace, powers, per_batch_s = measure_once(network, track, reader)
        if powers:
            return powers[0], per_batch_s
        certain = sum(point.error_s <= LARGEST_ERROR_S for points in trace.steps().values() for point in points)
        # Some of these are outside of the window, or much less certain than most, and not used for the fit.
        assert certain <= 1.25 * INTERVALS_PER_PHASE * (len(WATTS) + 1), "refreshes enough, and no fit"
    raise TooUncertainError


class TooUncertainError(Exception):
    """The machine was too busy to see when the counter was refreshed."""


def measure_once(
    network: Any, track: PowerTrack, reader: EdgeReader
) -> tuple[CounterTrace, tuple[PhasePowers, ...], dict[str, float]]:
    phases = TimedPhases()
    followed: Any = FollowedPhases(phases, track)
    batches = 0
    trace = CounterTrace(reader)
    with trace, Bracket(time) as bracket:
        while time.monotonic_ns() < bracket.start_ns + WINDOW_S * 1e9:
            network.run(1, followed)
            batches += 1
    times = phase_times(phases, bracket.duration_ns, batches)
    powers = phase_powers(
        trace.steps(), phases, times, start_ns=bracket.start_ns, end_ns=bracket.end_ns, start_s=bracket.start_s
    )
    return trace, powers, {name: spent.total_s / batches for name, spent in times.items()}


@pytest.mark.parametrize("batch", [16, 4096], ids=["phases below a refresh", "phases of many refreshes"])
def test_the_powers_of_the_phases_are_those_that_were_set(
    batch: int, network: Any, track: PowerTrack, reader: EdgeReader
) -> None:
    try:
        powers, per_batch_s = measure(network, batch, track, reader)
    except TooUncertainError:
        assert batch == 16  # long phases, whose processes compete less for the processor, must have powers
        return
    whole_s = sum(per_batch_s.values())
    resolved = 0
    for name, watts in {**WATTS, "other": OTHER_WATTS}.items():
        if name not in powers.watts:
            continue
        standard = powers.standard_watts[name]
        assert abs(powers.watts[name] - watts) <= 4 * math.hypot(standard, MODEL_DOUBT * watts), name
        resolved += standard < 0.1 * watts and per_batch_s[name] > 0.02 * whole_s
    assert resolved >= 2
