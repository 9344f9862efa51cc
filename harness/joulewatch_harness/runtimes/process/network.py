"""Any process that speaks JSON lines on stdin and stdout: harness/PROTOCOL.md specifies them.

The child runs the batches of a call in a loop of its own, so the pipe costs nothing per batch, and for each call
of 50 to 100 ms some 0.5 ms, most of it waking up; it is measured and told. Its times are on CLOCK_MONOTONIC, one
clock for all processes of a machine, and are checked before they are believed. A child that dies or
hangs loses the batch size it was at; the next one gets a new child.
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

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import RESERVED_PHASES, Phases
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.runtimes.process.child import Answer, Child
from joulewatch_harness.runtimes.process.options import DEFAULT_TOLERANCE, Options

logger = logging.getLogger(__name__)

PROTOCOL: Final = 1
PINGS: Final = 32
MOST_BATCH_ENDS: Final = 500
"""Calls of more batches are not stamped batch by batch: writing and reading 1000 numbers takes some 0.3 ms."""
MOST_PHASES: Final = 64
CLOCK_SLACK_NS: Final = 10_000
"""The clocks of two processor sockets may differ by this much."""
SCHEMA_NAME: Final = "process.schema.json"

_OWN_KEYS: Final = frozenset({"runtime", "runtime_version", "precision", "provider", "device", "model_sha256"})


class OutOfMemoryError(NetworkError, MemoryError):
    """The child has no memory for this batch size: the runner notes ``out_of_memory``, and the sweep goes on."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a child says of itself once it has loaded."""

    runtime: str
    runtime_version: str
    precision: str
    provider: str
    device: str
    model_sha256: str
    threads: int | None
    offers: frozenset[str]
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RunAnswer:
    """What a child says of one call of ``run``, checked."""

    t0_ns: int
    t1_ns: int
    phases: Mapping[str, tuple[int, int]]
    """phase -> count, total ns"""
    batch_ends_ns: array[int]
    """Monotonic, one for each batch; empty where the child gave none."""


def open_network(network: str, precision: str, options: Mapping[str, str]) -> ProcessNetwork:
    """The entry point of the runtime; ``network`` is a label, passed to the child.

    Raises:
        ConfigError: a bad option; no such program.
    """
    return ProcessNetwork(network, precision, Options.parse(options))


class ProcessNetwork:
    """A child process (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, network: str, precision: str, options: Options) -> None:
        self._network = network
        self._precision = precision
        self._options = options
        self._child: Child | None = None
        self._told: Description | None = None
        self._batch = 0
        self._ping_ns = 0
        self._overheads_ns: list[int] = []
        self.last_loop_ns = 0
        """The child's own t1 - t0 of the last call of ``run``."""

    def describe(self) -> Mapping[str, Any]:
        """What the child says it loaded, and what the pipe costs."""
        described: dict[str, Any] = {"runtime": "process"}
        told = self._told
        if told is None:
            return described
        described |= told.details
        described |= {
            "runtime_version": f"{told.runtime} {told.runtime_version}".strip(),
            "precision": told.precision,
            "provider": told.provider,
            "device": told.device,
            "model_sha256": told.model_sha256,
            "command": self._options.command,
            "protocol": PROTOCOL,
            "pipe_us": f"{self._ping_ns * 1e-3:.1f}",
        }
        if told.threads is not None:
            described["threads"] = told.threads
        if self._overheads_ns:
            described["call_overhead_us"] = f"{median(self._overheads_ns) * 1e-3:.1f}"
        return described

    def load(self) -> None:
        """Start a child, let it load, and read back what it loaded.

        Raises:
            ConfigError: the child speaks another version, or refuses what was asked for.
            NetworkError: it cannot be started or does not answer as it should; the text says what it said.
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
                    f"speaks protocol {hello.get('protocol')!r}, this joulewatch {PROTOCOL} (see harness/PROTOCOL.md)"
                )
            threads: dict[str, str | int | bool] = {} if options.threads is None else {"threads": options.threads}
            self._ask("load", {"network": self._network, "precision": self._precision, **threads}, "load_limit_s")
            answer = self._ask("describe", {"protocol": PROTOCOL}, "start_limit_s")
            try:
                told = _description(answer.message)
            except ValueError as error:
                raise child.failed(f"answered describe wrongly: {error}") from None
            self._compare(told)
            self._told = told
            # Any answer will do, also that of a child that does not know the operation.
            round_trips = [child.ask("ping", {}, **self._limit("start_limit_s")) for _ in range(PINGS)]
            self._ping_ns = int(median(item.received_ns - item.sent_ns for item in round_trips))
        except BaseException:
            self._child = None
            child.end()
            raise

    def prepare(self, batch: int) -> None:
        """Let the child make one batch; one that has died is started anew.

        Raises:
            UnsupportedBatchError: the child cannot run this size.
            OutOfMemoryError: it has no memory for it.
            NetworkError: it failed.
        """
        child = self._child
        if child is None or not child.usable():
            if self._told is None:
                raise NetworkError(f"process {self._network}: prepare before load")
            self.load()
            logger.warning(
                "process %s: the child was gone (%s); another one has been started",
                self._network,
                child.last_words if child is not None else "the last one could not be started",
            )
        self._batch = batch
        self._ask("prepare", {"batch": batch}, "prepare_limit_s", f"prepare (batch size {batch})")

    def run(self, batches: int, phases: Phases) -> None:
        """Let the child run ``batches`` batches, and take over its times.

        A child that times no phases has all the time between its t0 and t1 called ``execute``; the pipe is ``other``.

        Raises:
            NetworkError: it failed, or its times cannot be true.
        """
        wanted = {
            "batches": batches,
            "phases": self._options.phases,
            "batch_ends": batches <= MOST_BATCH_ENDS,
        }
        what = f"run (batch size {self._batch})"
        answer = self._ask("run", wanted, "run_limit_s", what)
        try:
            told = _run_answer(answer, batches)
        except ValueError as error:
            raise NetworkError(f"process {self._network}: the child answered {what} wrongly: {error}") from None
        self.last_loop_ns = told.t1_ns - told.t0_ns
        self._overheads_ns.append(answer.received_ns - answer.sent_ns - self.last_loop_ns)
        if len(self._overheads_ns) > 2 * PINGS:
            del self._overheads_ns[:PINGS]
        # Latencies are the child's own: the way to it and back belongs to the call, not to its batches.
        phases.call_ns = (told.t0_ns, told.t1_ns)
        phases.batch_ends_ns.extend(told.batch_ends_ns)
        if not self._options.phases:
            return
        for phase, (count, total_ns) in (told.phases or {"execute": (batches, told.t1_ns - told.t0_ns)}).items():
            span = phases.spans.setdefault(phase, [0, 0])
            span[0] += count
            span[1] += total_ns

    def check(self) -> bool:
        """Compare the values that the child computes with its own reference, and with the plan's.

        Raises:
            ConfigError: the plan wants a check, or a value, that the child does not offer.
            NetworkError: a value is wrong, or all are zero.
        """
        options, told = self._options, self._told
        offered = told is not None and "check" in told.offers
        if options.check is False:
            return True
        if not offered:
            if options.check or options.reference:
                raise ConfigError(f"process {self._network}: a check is asked for, but the child offers none")
            return True
        answer = self._ask("check", {}, "run_limit_s")
        try:
            _compare_values(answer.message, options.reference, options.tolerance)
        except ValueError as error:
            raise NetworkError(f"process {self._network}: the child computes wrongly: {error}") from None
        return True

    def close(self) -> None:
        """Let the child end; what is left of its process group after ``close_limit_s`` is killed."""
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
        """Ask, and turn an error answer into the exception that it means."""
        if self._child is None:
            raise NetworkError(f"process {self._network}: {op} before load")
        answer = self._child.ask(op, fields, what=what, **self._limit(limit))
        if answer.message["ok"]:
            return answer
        error = answer.message.get("error")
        told: Mapping[str, Any] = error if isinstance(error, dict) else {}
        code = str(told.get("code", ""))
        text = (
            f"process {self._network}: {what or op}: {str(told.get('text', '')) or code or 'failed without a reason'}"
        )
        if code == "unsupported_batch":
            raise UnsupportedBatchError(text)
        if code == "out_of_memory":
            raise OutOfMemoryError(text)
        if code == "bad_configuration":
            raise ConfigError(text)
        raise NetworkError(text)

    def _compare(self, told: Description) -> None:
        """Whether what was loaded is what was asked for; the precision is compared by ``as_loaded``."""
        asked, before = self._options, self._told
        if asked.threads is not None and told.threads != asked.threads:
            has = "does not say how many it has" if told.threads is None else f"has {told.threads}"
            raise ConfigError(f"process {self._network}: {asked.threads} threads were asked for, but the child {has}")
        if told.precision == NATIVE:
            raise NetworkError(
                f"process {self._network}: the child calls its precision {NATIVE!r}: it must tell the actual one"
            )
        if before is None:
            return
        for key in ("precision", "provider", "device", "threads", "model_sha256"):
            old, new = getattr(before, key), getattr(told, key)
            if old != new:
                raise NetworkError(
                    f"process {self._network}: the child that was started anew has {key} {new!r}, not {old!r} as before"
                )


def _description(message: Mapping[str, Any]) -> Description:
    """Raises ValueError."""

    def text(key: str, *, needed: bool = False) -> str:
        value = message.get(key)
        if value is None and not needed:
            return ""
        if not isinstance(value, str) or not (value or not needed):
            raise ValueError(f'"{key}" is a text, not {value!r}')
        return value

    threads = message.get("threads")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f'"threads" is a whole number from 1, not {threads!r}')
    offers = message.get("offers", [])
    if not isinstance(offers, list) or not all(isinstance(item, str) for item in offers):
        raise ValueError(f'"offers" is a list of texts, not {offers!r}')
    details = message.get("details", {})
    if not isinstance(details, dict) or any(isinstance(value, (dict, list)) for value in details.values()):
        raise ValueError('"details" is an object of texts, numbers and booleans')
    return Description(
        runtime=text("runtime", needed=True),
        runtime_version=text("runtime_version"),
        precision=text("precision", needed=True),
        provider=text("provider"),
        device=text("device"),
        model_sha256=text("model_sha256"),
        threads=threads,
        offers=frozenset(offers),
        details={str(key): str(value) for key, value in details.items() if key not in _OWN_KEYS},
    )


def _run_answer(answer: Answer, batches: int) -> RunAnswer:
    """What the child said, if it can be true; raises ValueError."""
    message = answer.message
    if message.get("batches") != batches:
        raise ValueError(f'"batches" is {message.get("batches")!r}, but {batches} were to be run')
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
        raise ValueError(f"{which}: times are CLOCK_MONOTONIC of this machine, in nanoseconds")
    return RunAnswer(
        t0_ns,
        t1_ns,
        _phases(message.get("phases", {}), t1_ns - t0_ns),
        _batch_ends(message.get("batch_ends_ns", []), batches, t0_ns, t1_ns),
    )


def _nanoseconds(message: Mapping[str, Any], key: str) -> int:
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f'"{key}" is a whole number of nanoseconds, not {value!r:.80}')
    return value


def _phases(told: Any, duration_ns: int) -> dict[str, tuple[int, int]]:
    if not isinstance(told, dict) or len(told) > MOST_PHASES:
        raise ValueError(f'"phases" is an object of at most {MOST_PHASES} phases')
    found: dict[str, tuple[int, int]] = {}
    for name, span in told.items():
        if not isinstance(span, dict) or not (name in RESERVED_PHASES or re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name)):
            raise ValueError(f'phase {name!r:.80}: a name of a-z, 0-9 and _ with {{"count": N, "ns": N}} is wanted')
        found[name] = (_nanoseconds(span, "count"), _nanoseconds(span, "ns"))
    total_ns, count = sum(ns for _, ns in found.values()), sum(count for count, _ in found.values())
    # A child that rounds up to whole nanoseconds is off by one at most for each span.
    if total_ns > duration_ns + count:
        raise ValueError(
            f"its phases add up to {total_ns} ns, more than the {duration_ns} ns from t0_ns to t1_ns: "
            "phases of one call do not overlap"
        )
    return found


def _batch_ends(told: Any, batches: int, t0_ns: int, t1_ns: int) -> array[int]:
    """The ends on the monotonic clock; they are told from t0 on, to be short."""
    if told == []:
        return array("q")
    if not isinstance(told, list) or len(told) != batches:
        many = f"{len(told)} numbers" if isinstance(told, list) else repr(told)[:80]
        raise ValueError(f'"batch_ends_ns" is one number for each of {batches} batches, not {many}')
    if set(map(type, told)) != {int}:
        raise ValueError('"batch_ends_ns" holds whole nanoseconds')
    if told[0] < 0 or told[-1] > t1_ns - t0_ns or told != sorted(told):
        raise ValueError('"batch_ends_ns" must rise from 0 (at t0_ns) to at most t1_ns - t0_ns')
    return array("q", [t0_ns + end_ns for end_ns in told])


def _compare_values(message: Mapping[str, Any], references: Mapping[str, float], tolerance: float) -> None:
    """Raises ValueError for a value that is wrong, ConfigError for one that the child does not have."""
    values = message.get("values")
    if not isinstance(values, dict) or not values:
        raise ValueError('its check gave no "values"')
    for name in references:
        if name not in values:
            raise ConfigError(f"process: option reference: {unknown('value', name, map(str, values))}")
    computed: dict[str, float] = {}
    for name, item in values.items():
        told: Mapping[str, Any] = item if isinstance(item, dict) else {}
        value = _number(told.get("value"))
        if value is None:
            raise ValueError(f"value {name!r} of its check is {told.get('value')!r:.80}, no finite number")
        computed[name] = value
        own = told.get("reference")
        own_tolerance = _number(told.get("tolerance", DEFAULT_TOLERANCE))
        pairs = [(_number(own), own_tolerance, "its own reference")] if own is not None else []
        if name in references:
            pairs.append((references[name], tolerance, "the plan's reference"))
        for wanted, allowed, whose in pairs:
            if wanted is None or allowed is None or allowed < 0.0:
                raise ValueError(f"value {name!r} of its check has no usable reference and tolerance")
            if abs(value - wanted) > allowed * abs(wanted):
                raise ValueError(f"{name} is {value:.9g}, {whose} {wanted:.9g} (within {allowed:g} of it)")
    if not any(computed.values()):
        raise ValueError(f"every value of its check is zero ({', '.join(computed)}): that proves no computation")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
