"""The pytest plugin: ``@pytest.mark.joules(max=...)`` and the fixture ``joules``.

Every run of pytest imports this module, so it imports and opens nothing before the first test that uses it.
"""

from __future__ import annotations

import inspect
import math
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from joulewatch_harness.metering.meter import Meter
    from joulewatch_harness.metering.window import Measurement

MARKER: Final = "joules"
DEFAULT_ROUNDS: Final = 5
LONGEST_NODE_ID: Final = 180
"""A window's name has at most 200 characters."""


class Joules:
    """The fixture ``joules``: call it to measure a part of a test."""

    def __init__(self, meter: Meter, name: str) -> None:
        self.meter = meter
        self.name = name
        self.windows = 0
        """Number of windows that were asked for."""

    def __call__(self, inferences: int = 1, *, sync: str = "") -> Measurement:
        """Return a window; use it as a context manager. Arguments are those of ``joulewatch.measure``."""
        self.windows += 1
        return self.meter.measure(self.name, inferences, sync=sync)


@dataclass(frozen=True, slots=True)
class _Limit:
    """The arguments of the marker."""

    max: float
    inferences: int
    rounds: int


class _Meters:
    """The open meter of a test session; it has a limited number of names, one for each test."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._meter: Meter | None = None
        self._names: set[str] = set()

    def joules(self, node_id: str) -> Joules:
        from joulewatch_harness.metering.meter import MOST_NAMES, Meter

        if self._meter is not None and len(self._names) >= MOST_NAMES:
            self.close()
        if self._meter is None:
            self._meter = Meter(output=self._output).open()
            self._names = set()
        # A test that is executed again is not a repeat of the first.
        name = node_id = node_id[-LONGEST_NODE_ID:]
        count = 1
        while name in self._names:
            count += 1
            name = f"{node_id} #{count}"
        self._names.add(name)
        return Joules(self._meter, name)

    def close(self) -> None:
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.close()


@pytest.fixture(scope="session")
def _joulewatch_meters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Meters]:
    meters = _Meters(tmp_path_factory.mktemp("joulewatch"))
    yield meters
    meters.close()


@pytest.fixture
def joules(request: pytest.FixtureRequest, _joulewatch_meters: _Meters) -> Joules:
    """Measure energy: ``with joules(inferences=8) as window: ...``, then ``window.joules_per_inference``."""
    from joulewatch_harness.errors import JoulewatchError

    try:
        return _joulewatch_meters.joules(request.node.nodeid)
    except JoulewatchError as error:
        text = f"joules: {error}"
    # Outside the except, so that pytest does not show the causes as well.
    pytest.fail(text, pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "joules(max, inferences=1, rounds=5): fail unless the energy per inference is certainly at most max joules; "
        "the test is executed once as a warm-up and then in measured rounds (joulewatch)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check the markers, and give their tests the fixture."""
    for item in items:
        if item.get_closest_marker(MARKER) is None:
            continue
        _limit_of(item)
        if not isinstance(item, pytest.Function) or (item.cls and issubclass(item.cls, unittest.TestCase)):
            raise pytest.UsageError(f"{item.nodeid}: the marker joules is for test functions, not for unittest")
        if inspect.iscoroutinefunction(item.obj):
            raise pytest.UsageError(
                f"{item.nodeid}: the marker joules is not for asynchronous tests; use the fixture joules and assert"
            )
        if MARKER not in item.fixturenames:
            item.fixturenames.append(MARKER)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Execute a test with a limit, and check the limit; other tests are left to pytest."""
    if pyfuncitem.get_closest_marker(MARKER) is None:
        return None
    from joulewatch_harness.errors import JoulewatchError

    limit = _limit_of(pyfuncitem)
    measure = pyfuncitem.funcargs[MARKER]
    if not isinstance(measure, Joules):
        raise pytest.UsageError(f"{pyfuncitem.nodeid}: another fixture joules replaces that of the marker")
    function = pyfuncitem.obj
    names = inspect.signature(function).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}
    try:
        # The warm-up. If the test opens the windows itself, this is the only call.
        function(**arguments)
        if MARKER not in names:
            for _ in range(limit.rounds):
                with measure(limit.inferences):
                    function(**arguments)
        text = _verdict(measure, limit, pyfuncitem)
    except JoulewatchError as error:
        text = f"joules: {error}"
    if text:
        pytest.fail(text, pytrace=False)
    return True


def _verdict(measure: Joules, limit: _Limit, item: pytest.Item) -> str:
    """Return why the test fails; empty if the energy is certainly within the limit."""
    from joulewatch_harness.analysis.results.gate import check_estimate, sentence
    from joulewatch_harness.analysis.results.numbers import warning_line

    if not measure.windows:
        return "joules: the test has the fixture joules and measured nothing with it"
    result = measure.meter.results()[measure.name]
    if result.energy.gross is None:
        return f"joules: no number, so the limit of {limit.max:g} J is not checked: {result.missing}"
    warning = warning_line(result.energy.methods)
    if warning:
        item.warn(pytest.PytestWarning(f"joules: {warning}"))
    check = check_estimate("energy per inference", result.energy.gross, limit.max, "J")
    return "" if check.outcome == "passed" else f"joules: {sentence(check)}"


def _limit_of(item: pytest.Item) -> _Limit:
    """Return the checked arguments of the marker."""
    marker = item.get_closest_marker(MARKER)
    assert marker is not None
    given: dict[str, Any] = {"inferences": 1, "rounds": DEFAULT_ROUNDS, **marker.kwargs}
    if marker.args or given.keys() != {"max", "inferences", "rounds"}:
        raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.joules(max=JOULES, inferences=1, rounds=5)")
    for key, least in (("inferences", 1), ("rounds", 2)):
        if isinstance(given[key], bool) or not isinstance(given[key], int) or given[key] < least:
            raise pytest.UsageError(
                f"{item.nodeid}: {key} of the marker joules is {given[key]!r}; must be a whole number >= {least}"
            )
    largest = given["max"]
    if isinstance(largest, bool) or not isinstance(largest, int | float) or not 0 < largest < math.inf:
        raise pytest.UsageError(f"{item.nodeid}: max of the marker joules is {largest!r}; must be joules > 0")
    return _Limit(float(largest), given["inferences"], given["rounds"])
