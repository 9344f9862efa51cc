"""The pytest plugin: a limit passes only if it was checked, and other tests do not notice the plugin."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib

import pytest

from joulewatch_harness.metering.exporters import ENVIRONMENT
from support.counting_exporter import CountingExporter
from support.paths import ROOT
from support.servers import free_port

pytest_plugins = ["pytester"]
for module in (
    "numpy.ma",
    "numpy.random",
    "joulewatch_harness.analysis.results.gate",
    "joulewatch_harness.metering.energies",
    "joulewatch_harness.metering.meter",
    "joulewatch_harness.metering.runs",
    "joulewatch_harness.analysis.sources.opening",
    "joulewatch_harness.storage.recording",
):
    # pytester forgets what a test imports, and numpy cannot be imported twice.
    importlib.import_module(module)

LIMIT = """
import time, pytest
calls = []

@pytest.fixture
def pause():
    return 0.1

@pytest.mark.joules({})
def test_pause(pause):
    calls.append(1)
    time.sleep(pause)

def test_calls():
    assert len(calls) == {}
"""
"""At 100 W, the test needs 10 J."""


@pytest.fixture
def inner(pytester: pytest.Pytester, exporter: CountingExporter, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Pytest in this process with the plugin only, whether or not the plugin is installed here."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p joulewatch.pytest_plugin -p no:cacheprovider --strict-markers")
    monkeypatch.setenv(ENVIRONMENT, exporter.url)
    return pytester


@pytest.mark.parametrize(
    ("arguments", "calls", "outcome", "text"),
    [
        ("max=1000", 6, "passed", ""),
        ("max=1000, rounds=2", 3, "passed", ""),
        ("max=0.01, rounds=3", 4, "failed", "*joules: FAILED: energy per inference: *, above 0.01 J"),
        ("max=0.001, inferences=1000, rounds=3", 4, "failed", "*, above 0.001 J"),
        ("max=10, inferences=1000, rounds=2", 3, "passed", ""),
    ],
)
def test_a_limit(inner: pytest.Pytester, arguments: str, calls: int, outcome: str, text: str) -> None:
    inner.makepyfile(LIMIT.format(arguments, calls))
    result = inner.runpytest_inprocess()
    result.assert_outcomes(passed=1 + (outcome == "passed"), failed=int(outcome == "failed"))
    if text:
        result.stdout.fnmatch_lines([text])
    assert not (inner.path / "runs").exists()


def test_the_fixture_measures_a_part(inner: pytest.Pytester) -> None:
    inner.makepyfile("""
        import time, pytest

        def test_value(joules):
            with joules(inferences=4) as window:
                time.sleep(0.1)
            assert window.joules_per_inference == window.joules / 4

        @pytest.mark.joules(max=1000)
        class TestClass:
            def test_rounds(self, joules):
                for _ in range(3):
                    with joules():
                        time.sleep(0.05)

            def test_one_window_is_undecided(self, joules):
                with joules():
                    time.sleep(0.05)

            def test_no_window(self, joules):
                pass
    """)
    result = inner.runpytest_inprocess()
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*UNDECIDED: energy per inference: *, limit 1000 J: fewer than two rounds*"])
    result.stdout.fnmatch_lines(["*joules: the test has the fixture joules and measured nothing with it"])


def test_an_energy_that_is_not_measured_has_a_warning(inner: pytest.Pytester, exporter: CountingExporter) -> None:
    inner.makepyfile(LIMIT.format("max=1000, rounds=2", 3))
    exporter.counters[0].method = "estimated"
    result = inner.runpytest_inprocess("-Wdefault")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*joules: !!! Energies ESTIMATED from a power model, not measured !!!"])


def test_a_failing_test_fails_as_without_the_marker(inner: pytest.Pytester) -> None:
    inner.makepyfile("""
        import pytest

        @pytest.mark.joules(max=1)
        def test_it():
            assert 1 == 2
    """)
    result = inner.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*assert 1 == 2"])


def test_a_limit_that_cannot_be_checked_does_not_pass(
    inner: pytest.Pytester, exporter: CountingExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner.makepyfile(LIMIT.format("max=1000, rounds=2", 3))
    exporter.counters[0].refresh_s = 60.0
    result = inner.runpytest_inprocess()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*joules: no number, so the limit of 1000 J is not checked: *"])
    exporter.counters.clear()
    result = inner.runpytest_inprocess("-k", "pause")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*joules: * measures no energy*"])
    monkeypatch.setenv(ENVIRONMENT, f"http://127.0.0.1:{free_port()}")
    result = inner.runpytest_inprocess("-k", "pause")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["joules: *is joulewatch-exporter running there*"])
    result.stdout.no_fnmatch_line("*another exception*")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "write @pytest.mark.joules(max=JOULES, inferences=1, rounds=5)"),
        ("5", "write @pytest.mark.joules(max=JOULES"),
        ("max=5, round=3", "write @pytest.mark.joules(max=JOULES"),
        ("max=0", "max of the marker joules is 0; must be joules > 0"),
        ("max='1 J'", "max of the marker joules is '1 J'"),
        ("max=1, rounds=1", "rounds of the marker joules is 1; must be a whole number >= 2"),
        ("max=1, inferences=0.5", "inferences of the marker joules is 0.5"),
    ],
)
def test_wrong_arguments(inner: pytest.Pytester, arguments: str, text: str) -> None:
    inner.makepyfile(LIMIT.format(arguments, 0))
    result = inner.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert text in result.stderr.str()


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ("async def test_it(): pass", "not for asynchronous tests"),
        ("class TestIt(__import__('unittest').TestCase):\n    def test_it(self): pass", "not for unittest"),
    ],
    ids=["async", "unittest"],
)
def test_tests_that_the_marker_would_not_check(inner: pytest.Pytester, test: str, text: str) -> None:
    inner.makepyfile(f"import pytest\npytestmark = pytest.mark.joules(max=1)\n{test}")
    result = inner.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert text in result.stderr.str()


def test_more_tests_than_a_meter_has_names(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joulewatch_harness.metering.meter.MOST_NAMES", 2)
    inner.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(5))
        def test_it(joules, number):
            with joules():
                pass
    """)
    inner.runpytest_inprocess().assert_outcomes(passed=5)


def test_without_use_nothing_is_imported_or_opened(inner: pytest.Pytester, exporter: CountingExporter) -> None:
    inner.makepyfile("""
        import sys

        def test_it():
            assert not {"joulewatch_harness.metering", "numpy", "requests"} & set(sys.modules)
    """)
    command = [sys.executable, "-m", "pytest", "-q"]
    result = subprocess.run(command, cwd=inner.path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert exporter.requests == 0


def test_the_plugin_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"joulewatch": "joulewatch.pytest_plugin"}
