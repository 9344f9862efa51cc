"""FINN+ designs with a frame generator: the accelerator without driver and DMA.

A generator on the chip sends frames to the accelerator as fast as it accepts them, and counters contain latency and
interval in clock cycles. The host starts it and sleeps. This mode measures the accelerator (and the idle host); the
difference to the DMA mode is the cost of driver and copies.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import JoulewatchError, NetworkError
from joulewatch_harness.network import Phases
from joulewatch_harness.runtimes.finn.card import Card

TRIAL_S: Final = 0.25
"""Time before the counters are used."""
LATE_NS: Final = 1_000_000
"""If a call of ``run`` begins later than this after the previous one, counting restarts: the accelerator keeps running
between windows, and those frames belong to no window."""
STALL: Final = 0.9
"""Least share of the expected frames in a call of ``run``, if the design counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """One reading of a design's instrumentation."""

    overflow: bool
    underflow: bool
    latency_cycles: int
    interval_cycles: float
    """Between two frames; the mean if the design has it, otherwise the last."""
    run_cycles: int | None
    run_frames: int | None
    """Since the start; None: the design has no such counters."""

    @classmethod
    def read(cls, overlay: Any) -> Counters:
        """Read the counters of the overlay.

        Raises:
            NetworkError: their number is not a known one.
        """
        counters = overlay.observe_instrumentation(debug_print=False)
        overflow, underflow = bool(counters[0]), bool(counters[1])
        if len(counters) == 7:
            return cls(
                overflow=overflow,
                underflow=underflow,
                latency_cycles=int(counters[5]),
                interval_cycles=float(counters[6]),
                run_cycles=None,
                run_frames=None,
            )
        if len(counters) == 11:
            return cls(
                overflow=overflow,
                underflow=underflow,
                latency_cycles=int(counters[7] or counters[5]),
                interval_cycles=float(counters[8] or counters[6]),
                run_cycles=int(counters[9]),
                run_frames=int(counters[10]),
            )
        raise NetworkError(
            f"finn: the instrumentation of this overlay has {count_of(len(counters), 'counter')}; 7 and 11 are "
            "supported (FINN+ to 1.6)"
        )

    def frames_since(self, before: Counters) -> int | None:
        """Return the frames between two readings; None if the design does not count them. The register has 32 bits."""
        if self.run_frames is None or before.run_frames is None:
            return None
        return (self.run_frames - before.run_frames) % (1 << 32)


class InstrumentationNetwork:
    """An accelerator that runs by itself (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._batch = 0
        self._interval_ns = 0.0
        self._due_ns = 0.0
        self._facts: dict[str, Any] = {}

    def describe(self) -> Mapping[str, Any]:
        """Return the design, and its latency, interval and throughput as counted on the chip."""
        return {**self._card.describe(), "mode": "instrumentation", **(self._facts if self._card.is_open else {})}

    def load(self) -> None:
        """Load the design, run it for a moment and read its counters.

        Raises:
            ConfigError: the driver is not valid, or the device is missing.
            NetworkError: the device refuses the design, the accelerator does not run, or its clock is unknown.
        """
        self._card.open()
        try:
            self._start()
        except JoulewatchError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise self._card.refused(error, "the instrumentation does not work") from error

    def prepare(self, batch: int) -> None:
        """Make sure that the accelerator runs; a batch is that number of frames.

        Raises:
            NetworkError: it does not run.
        """
        reloaded = self._card.claim()
        get_mode = getattr(self._card.overlay, "get_current_mode", None)
        if reloaded or (callable(get_mode) and get_mode() != "instr"):
            self._start()
        self._batch = batch
        self._due_ns = 0.0

    def run(self, batches: int, phases: Phases) -> None:
        """Sleep while the accelerator processes ``batches`` times ``batch`` frames.

        The end is computed from the first call, so that the delays of sleeps do not add up.

        Raises:
            NetworkError: the accelerator stalled, or lost frames.
        """
        frames = batches * self._batch
        start_ns = time.monotonic_ns()
        if not 0 <= start_ns - self._due_ns <= LATE_NS:
            self._due_ns = float(start_ns)
        before = Counters.read(self._card.overlay)
        self._due_ns += frames * self._interval_ns
        left_s = (self._due_ns - time.monotonic_ns()) * 1e-9
        if left_s > 0.0:
            time.sleep(left_s)
        after = Counters.read(self._card.overlay)
        end_ns = time.monotonic_ns()
        phases.add("execute", start_ns, end_ns)
        self._check_counters(after)
        taken, expected = after.frames_since(before), max(left_s, 0.0) * 1e9 / self._interval_ns
        if taken is not None and taken < STALL * expected - 1:
            of = count_of(round(expected), "frame")
            raise NetworkError(f"{self._card.name}: the accelerator has stalled: it processed {taken} of {of}")

    def close(self) -> None:
        """Stop the accelerator and close the card."""
        if self._card.is_open:
            stop = getattr(self._card.overlay, "stop_accelerator", None)
            reset = getattr(self._card.overlay, "reset_accelerator", None)
            try:
                if callable(stop):
                    stop()
                elif callable(reset):
                    reset()
            except Exception:  # the card is closed in any case
                pass
        self._card.close()

    def _start(self) -> None:
        overlay, clock_mhz = self._card.overlay, self._card.clock_mhz
        if clock_mhz is None:
            raise NetworkError(f"{self._card.name}: the clock cannot be read, so cycles cannot be converted to times")
        set_mode = getattr(overlay, "set_current_mode", None)
        if callable(set_mode):
            set_mode("instr")
        overlay.start_accelerator()
        time.sleep(0.5 * TRIAL_S)
        before = Counters.read(overlay)
        time.sleep(0.5 * TRIAL_S)
        counters = Counters.read(overlay)
        self._check_counters(counters)
        interval_cycles, frames = counters.interval_cycles, counters.frames_since(before)
        if frames and counters.run_cycles is not None and before.run_cycles is not None:
            # With a full pipeline: the counters since the start include the time to fill it.
            interval_cycles = (counters.run_cycles - before.run_cycles) / frames
        self._interval_ns = interval_cycles * 1e3 / clock_mhz
        self._facts = {
            "latency_cycles": str(counters.latency_cycles),
            "interval_cycles": f"{interval_cycles:.6g}",
            "accelerator_latency_us": f"{counters.latency_cycles / clock_mhz:.4g}",
            "accelerator_fps": f"{1e9 / self._interval_ns:.6g}",
            "frames_counted_on_chip": str(counters.run_frames is not None).lower(),
        }

    def _check_counters(self, counters: Counters) -> None:
        if counters.overflow or counters.underflow:
            which = "overflow" if counters.overflow else "underflow"
            raise NetworkError(f"{self._card.name}: the instrumentation reports an {which}: frames are incomplete")
        if counters.interval_cycles <= 0:
            raise NetworkError(f"{self._card.name}: the accelerator has not completed a frame: it does not run")
