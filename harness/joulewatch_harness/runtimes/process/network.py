"""Any process that implements the JSON lines of harness/PROTOCOL.md on stdin and stdout.

The child loops over the batches of a call, so the pipe adds no cost per batch, and about 0.5 ms for each call of 50 to
100 ms, mostly to wake up; the cost is measured and reported. The child's times are on CLOCK_MONOTONIC, the clock of all
processes of a machine, and are checked before they are used. If a child dies or hangs, its batch size fails; the next
batch size gets a new child.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shlex
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError, WrongOutputsError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import RESERVED_PHASES, Phases
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.runtimes.process.child import Answer, Child
from joulewatch_harness.runtimes.process.options import DEFAULT_TOLERANCE, Options

logger = logging.getLogger(__name__)

PROTOCOL: Final = 1
PINGS: Final = 32
MOST_BATCH_ENDS: Final = 500
"""Calls of more batches have no batch ends: to write and read 1000 numbers takes about 0.3 ms."""
MOST_PHASES: Final = 64
CLOCK_SLACK_NS: Final = 10_000
"""The clocks of two processor sockets may differ by this much."""

_OWN_KEYS: Final = frozenset({"runtime", "runtime_version", "precision", "provider", "device", "model_sha256"})


class OutOfMemoryError(NetworkError, MemoryError):
    """The child has no memory for this batch size: the runner notes ``out_of_memory`` and continues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The description of a child after it has loaded the network."""

    runtime: str
    runtime_version: str
    precision: str
    provider: str
    device: str
    model_sha256: str
    threads: int | None
    offers: frozenset[str]
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAnswer:
    """The checked answer of a child to one call of ``run``."""

    t0_ns: int
    t1_ns: int
    phases: Mapping[str, tuple[int, int]]
    """phase -> count, total ns"""
    batch_ends_ns: array[int]
    """Monotonic, one for each batch; empty if the child sent none."""


def open_network(network: str, precision: str, options: Mapping[str, str]) -> ProcessNetwork:
    """Return the network; the entry point of the runtime. ``network`` is a label that is passed to the child.

    Raises:
        ConfigError: a bad option, or the program does not exist.
    """
    return ProcessNetwork(network, precision, Options.parse(options))


class ProcessNetwork:
    """A child process (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, network: str, precision: str, options: Options) -> None:
        self._network = network
        self._precision = precision
        self._options = options
        self._child: Child | None = None
        self._described: Description | None = None
        self._batch = 0
        self._ping_ns = 0
        self._overheads_ns: list[int] = []
        self.last_loop_ns = 0
        """t1 - t0 of the last call of ``run``."""

    def describe(self) -> Mapping[str, Any]:
        """Return what the child has loaded, and the cost of the pipe."""
        description: dict[str, Any] = {"runtime": "process"}
        child = self._described
        if child is None:
            return description
        description |= child.details
        description |= {
            "runtime_version": f"{child.runtime} {child.runtime_version}".strip(),
            "precision": child.precision,
            "provider": child.provider,
            "device": child.device,
            "model_sha256": child.model_sha256,
            "command": self._options.command,
            "protocol": PROTOCOL,
            "pipe_us": f"{self._ping_ns * 1e-3:.1f}",
        }
        if child.threads is not None:
            description["threads"] = child.threads
        if self._overheads_ns:
            description["call_overhead_us"] = f"{median(self._overheads_ns) * 1e-3:.1f}"
        return description

    def load(self) -> None:
        """Start a child, let it load the network, and read back its description.

        Raises:
            ConfigError: the child refuses the configuration.
            NetworkError: the child cannot be started, or its answers are not valid; the text contains the reason.
        """
        self.close()
        options = self._options
        name = f"process {self._network}: the child ({shlex.join(options.words[1:])})"
        child = Child.start(
            name,
            options.words,
            cwd=options.cwd,
            environment={**os.environ, **options.env},
            stderr=options.stderr,
            transcript=options.transcript,
        )
        self._child = child
        try:
            hello = self._ask("describe", {"protocol": PROTOCOL}, "start_limit_s").message
            if hello.get("protocol") != PROTOCOL or isinstance(hello.get("protocol"), bool):
                raise child.failed(
                    f"has protocol {hello.get('protocol')!r}, this joulewatch {PROTOCOL} (see harness/PROTOCOL.md)"
                )
            threads: dict[str, str | int | bool] = {} if options.threads is None else {"threads": options.threads}
            self._ask("load", {"network": self._network, "precision": self._precision, **threads}, "load_limit_s")
            answer = self._ask("describe", {"protocol": PROTOCOL}, "start_limit_s")
            try:
                described = _description(answer.message)
            except ValueError as error:
                raise child.failed(f"sent an invalid answer to describe: {error}") from None
            self._compare(described)
            self._described = described
            # Any answer is good, also that the operation is unknown.
            round_trips = [child.ask("ping", {}, **self._limit("start_limit_s")) for _ in range(PINGS)]
            self._ping_ns = int(median(item.received_ns - item.sent_ns for item in round_trips))
        except BaseException:
            self._child = None
            child.end()
            raise

    def prepare(self, batch: int) -> None:
        """Let the child make one batch; if it has died, start another one.

        Raises:
            UnsupportedBatchError: the child cannot run this size.
            OutOfMemoryError: the child has no memory for it.
            NetworkError: the child failed.
        """
        child = self._child
        if child is None or not child.usable():
            if self._described is None:
                raise NetworkError(f"process {self._network}: prepare before load")
            self.load()
            logger.warning(
                "process %s: the child had ended (%s); another one has been started",
                self._network,
                child.last_words if child is not None else "the last one could not be started",
            )
        self._batch = batch
        self._ask("prepare", {"batch": batch}, "prepare_limit_s", f"prepare (batch size {batch})")

    def run(self, batches: int, phases: Phases) -> None:
        """Let the child run ``batches`` batches, and record its times.

        If the child measures no phases, the time from t0 to t1 is ``execute``; the pipe is ``other``.

        Raises:
            NetworkError: the child failed, or its times are impossible.
        """
        fields = {
            "batches": batches,
            "phases": self._options.phases,
            "batch_ends": batches <= MOST_BATCH_ENDS,
        }
        what = f"run (batch size {self._batch})"
        answer = self._ask("run", fields, "run_limit_s", what)
        try:
            times = _run_answer(answer, batches)
        except ValueError as error:
            text = f"process {self._network}: the child sent an invalid answer to {what}: {error}"
            raise NetworkError(text) from None
        self.last_loop_ns = times.t1_ns - times.t0_ns
        self._overheads_ns.append(answer.received_ns - answer.sent_ns - self.last_loop_ns)
        if len(self._overheads_ns) > 2 * PINGS:
            del self._overheads_ns[:PINGS]
        # Latencies are those of the child: messages belong to the call, not to its batches.
        phases.call_ns = (times.t0_ns, times.t1_ns)
        phases.batch_ends_ns.extend(times.batch_ends_ns)
        if not self._options.phases:
            return
        for phase, (count, total_ns) in (times.phases or {"execute": (batches, self.last_loop_ns)}).items():
            span = phases.spans.setdefault(phase, [0, 0])
            span[0] += count
            span[1] += total_ns

    def check(self) -> bool:
        """Compare the values that the child computes with its reference, and with that of the plan.

        Raises:
            ConfigError: the plan requires a check or a value that the child does not offer.
            WrongOutputsError: a value is wrong, or all are zero.
        """
        options, described = self._options, self._described
        offered = described is not None and "check" in described.offers
        if options.check is False:
            return True
        if not offered:
            if options.check or options.reference:
                raise ConfigError(f"process {self._network}: a check is required, but the child offers none")
            return True
        answer = self._ask("check", {}, "run_limit_s")
        try:
            _compare_values(answer.message, options.reference, options.tolerance)
        except ValueError as error:
            raise WrongOutputsError(f"process {self._network}: the child computes wrong results: {error}") from None
        return True

    def close(self) -> None:
        """Ask the child to end; kill what remains of its process group after ``close_limit_s``."""
        child, self._child = self._child, None
        if child is None or child.ended:
            return
        grace_s = 0.0
        if child.usable():
            with contextlib.suppress(NetworkError, OSError):
                child.ask("close", {}, **self._limit("close_limit_s"))
                grace_s = self._options.limit_s("close_limit_s")
        child.end(grace_s)

    def _limit(self, name: str) -> dict[str, Any]:
        return {"limit_s": self._options.limit_s(name), "limit_option": name}

    def _ask(self, op: str, fields: Mapping[str, str | int | bool], limit: str, what: str = "") -> Answer:
        """Send a request, and raise the exception of an error answer."""
        if self._child is None:
            raise NetworkError(f"process {self._network}: {op} before load")
        answer = self._child.ask(op, fields, what=what, **self._limit(limit))
        if answer.message["ok"]:
            return answer
        error = answer.message.get("error")
        reason: Mapping[str, Any] = error if isinstance(error, dict) else {}
        code = str(reason.get("code", ""))
        text = (
            f"process {self._network}: {what or op}: {str(reason.get('text', '')) or code or 'failed without a reason'}"
        )
        if code == "unsupported_batch":
            raise UnsupportedBatchError(text)
        if code == "out_of_memory":
            raise OutOfMemoryError(text)
        if code == "bad_configuration":
            raise ConfigError(text)
        raise NetworkError(text)

    def _compare(self, described: Description) -> None:
        """Compare a description with the options and with that of an earlier child.

        Raises:
            ConfigError: the child does not use the requested number of threads.
            NetworkError: the precision is not an actual one, or another child has another description.
        """
        options, before = self._options, self._described
        if options.threads is not None and described.threads != options.threads:
            has = "does not report its number" if described.threads is None else f"has {described.threads}"
            threads = count_of(options.threads, "thread was", "threads were")
            raise ConfigError(f"process {self._network}: {threads} requested, but the child {has}")
        if described.precision == NATIVE:
            raise NetworkError(
                f"process {self._network}: the child reports the precision {NATIVE!r}: it must report the actual one"
            )
        if before is None:
            return
        for key in ("precision", "provider", "device", "threads", "model_sha256"):
            old, new = getattr(before, key), getattr(described, key)
            if old != new:
                raise NetworkError(
                    f"process {self._network}: the child was started again, and its {key} is {new!r}, not {old!r} as "
                    "before"
                )


def _description(message: Mapping[str, Any]) -> Description:
    """Return the description in a message.

    Raises:
        ValueError: a field is missing or not valid.
    """

    def text(key: str, *, required: bool = False) -> str:
        value = message.get(key)
        if value is None and not required:
            return ""
        if not isinstance(value, str) or not (value or not required):
            raise ValueError(f'"{key}" must be a text, got {value!r}')
        return value

    threads = message.get("threads")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f'"threads" must be an integer >= 1, got {threads!r}')
    offers = message.get("offers", [])
    if not isinstance(offers, list) or not all(isinstance(item, str) for item in offers):
        raise ValueError(f'"offers" must be a list of texts, got {offers!r}')
    details = message.get("details", {})
    if not isinstance(details, dict) or any(isinstance(value, (dict, list)) for value in details.values()):
        raise ValueError('"details" must be an object of texts, numbers and booleans')
    return Description(
        runtime=text("runtime", required=True),
        runtime_version=text("runtime_version"),
        precision=text("precision", required=True),
        provider=text("provider"),
        device=text("device"),
        model_sha256=text("model_sha256"),
        threads=threads,
        offers=frozenset(offers),
        details={str(key): str(value) for key, value in details.items() if key not in _OWN_KEYS},
    )


def _run_answer(answer: Answer, batches: int) -> RunAnswer:
    """Return the answer to ``run``.

    Raises:
        ValueError: it is not valid, or impossible.
    """
    message = answer.message
    if message.get("batches") != batches:
        raise ValueError(f'"batches" is {message.get("batches")!r}, but {batches} were requested')
    t0_ns, t1_ns = (_nanoseconds(message, key) for key in ("t0_ns", "t1_ns"))
    if t1_ns < t0_ns:
        raise ValueError(f"t1_ns is {t0_ns - t1_ns} ns before t0_ns")
    early_ns, late_ns = answer.sent_ns - t0_ns, t1_ns - answer.received_ns
    if early_ns > CLOCK_SLACK_NS or late_ns > CLOCK_SLACK_NS:
        which = (
            f"t0_ns is {early_ns * 1e-9:.6f} s before the request was sent"
            if early_ns > CLOCK_SLACK_NS
            else f"t1_ns is {late_ns * 1e-9:.6f} s after the answer came"
        )
        raise ValueError(f"{which}: times must be CLOCK_MONOTONIC of this machine, in nanoseconds")
    return RunAnswer(
        t0_ns=t0_ns,
        t1_ns=t1_ns,
        phases=_phases(message.get("phases", {}), t1_ns - t0_ns),
        batch_ends_ns=_batch_ends(message.get("batch_ends_ns", []), batches, t0_ns, t1_ns),
    )


def _nanoseconds(message: Mapping[str, Any], key: str) -> int:
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f'"{key}" must be an integer >= 0, got {value!r:.80}')
    return value


def _phases(given: Any, duration_ns: int) -> dict[str, tuple[int, int]]:
    if not isinstance(given, dict) or len(given) > MOST_PHASES:
        raise ValueError(f'"phases" must be an object of at most {MOST_PHASES} phases')
    phases: dict[str, tuple[int, int]] = {}
    for name, span in given.items():
        if not isinstance(span, dict) or not (name in RESERVED_PHASES or re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name)):
            raise ValueError(f'phase {name!r:.80}: must be a name of a-z, 0-9 and _ with {{"count": N, "ns": N}}')
        phases[name] = (_nanoseconds(span, "count"), _nanoseconds(span, "ns"))
    total_ns, count = sum(ns for _, ns in phases.values()), sum(count for count, _ in phases.values())
    # A child that rounds up to whole nanoseconds is at most 1 ns too high for each span.
    if total_ns > duration_ns + count:
        raise ValueError(
            f"the sum of the phases is {total_ns} ns, more than the {duration_ns} ns from t0_ns to t1_ns: "
            "phases of one call must not overlap"
        )
    return phases


def _batch_ends(given: Any, batches: int, t0_ns: int, t1_ns: int) -> array[int]:
    """Return the ends on the monotonic clock; in the message they are relative to t0, to be short."""
    if given == []:
        return array("q")
    if not isinstance(given, list) or len(given) != batches:
        got = count_of(len(given), "number") if isinstance(given, list) else repr(given)[:80]
        raise ValueError(f'"batch_ends_ns" must have {count_of(batches, "number")}, one per batch, got {got}')
    if set(map(type, given)) != {int}:
        raise ValueError('"batch_ends_ns" must contain integers')
    if given[0] < 0 or given[-1] > t1_ns - t0_ns or given != sorted(given):
        raise ValueError('"batch_ends_ns" must rise from 0 (at t0_ns) to at most t1_ns - t0_ns')
    return array("q", [t0_ns + end_ns for end_ns in given])


def _compare_values(message: Mapping[str, Any], references: Mapping[str, float], tolerance: float) -> None:
    """Check the values of a check.

    Raises:
        ValueError: a value is wrong or missing.
        ConfigError: the plan has a reference for a value that the child does not have.
    """
    values = message.get("values")
    if not isinstance(values, dict) or not values:
        raise ValueError('its check has no "values"')
    for name in references:
        if name not in values:
            raise ConfigError(f"process: option reference: {unknown('value', name, map(str, values))}")
    computed: dict[str, float] = {}
    for name, item in values.items():
        entry: Mapping[str, Any] = item if isinstance(item, dict) else {}
        value = _number(entry.get("value"))
        if value is None:
            raise ValueError(f"value {name!r} of its check is {entry.get('value')!r:.80}, not a finite number")
        computed[name] = value
        own = entry.get("reference")
        own_tolerance = _number(entry.get("tolerance", DEFAULT_TOLERANCE))
        pairs = [(_number(own), own_tolerance, "its own reference")] if own is not None else []
        if name in references:
            pairs.append((references[name], tolerance, "the plan's reference"))
        for expected, allowed, whose in pairs:
            if expected is None or allowed is None or allowed < 0.0:
                raise ValueError(f"value {name!r} of its check has no valid reference and tolerance")
            if abs(value - expected) > allowed * abs(expected):
                raise ValueError(
                    f"{name} is {value:.9g}, but {whose} is {expected:.9g} (relative tolerance {allowed:g})"
                )
    if not any(computed.values()):
        raise ValueError(f"all values of its check are zero ({', '.join(computed)}): that does not prove a computation")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
