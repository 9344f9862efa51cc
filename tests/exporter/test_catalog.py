"""The names are a contract: valid, unique, and listed in the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from joulewatch_exporter import catalog
from joulewatch_exporter.catalog import METRICS, Metric, frozen_after_s, resolution_joules, resolution_watts
from support import golden
from support.metric_table import with_listing

ROOT = Path(__file__).parents[2]
LISTINGS = {"exporter/README.md": ("exporter",), "harness/METRICS.md": ("harness", "analysis")}
"""Document -> publishers of the metrics that it lists."""


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_follows_the_conventions(metric: Metric) -> None:
    """Prometheus' conventions: prefix, unit in the name, a help text."""
    assert re.fullmatch(r"joulewatch_[a-z][a-z0-9_]*[a-z0-9]", metric.name)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels)
    assert len(set(metric.labels)) == len(metric.labels)
    assert metric.help.endswith(".")
    if metric.unit in ("joules", "watts", "seconds"):
        assert f"_{metric.unit}" in metric.name


def test_names_are_unique() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)


def test_scopes_are_names_and_not_labels() -> None:
    """So that sum() over one metric is always correct."""
    for metrics in (catalog.ENERGY_BY_SCOPE, catalog.POWER_BY_SCOPE):
        assert set(metrics) == {"node", "device", "part"}
        assert all("scope" not in metric.labels for metric in metrics.values())


def test_the_catalog_needs_nothing_but_the_standard_library() -> None:
    """The harness imports it inside users' environments."""
    code = (
        "import sys; before = set(sys.modules); import joulewatch_exporter.catalog; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - {'joulewatch_exporter'}; "
        "sys.exit(str(new - sys.stdlib_module_names) if new - sys.stdlib_module_names else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", LISTINGS)
def test_a_document_shows_the_catalog(name: str, update_golden: bool) -> None:
    """``pytest --update-golden`` rewrites the list."""
    path = ROOT / name
    golden.check(with_listing(path.read_text(encoding="utf-8"), LISTINGS[name]), path, update=update_golden)


def test_every_metric_is_in_a_document() -> None:
    assert {metric.publisher for metric in METRICS} == {name for names in LISTINGS.values() for name in names}


@pytest.mark.parametrize(
    ("text", "joules"),
    [
        ("2 J", 2.0), ("2J", 2.0), (" 2.5 mJ ", 2.5e-3), ("15.3 uJ", 15.3e-6), ("15.3 µJ", 15.3e-6), ("4 nJ", 4e-9),
        ("1e-3 J", 1e-3), ("1E+2 mJ", 0.1), ("", 0.0), ("J", 0.0), ("1 kJ", 0.0), ("1 uW", 0.0), ("1.2.3 J", 0.0),
        ("x 1 J", 0.0), ("1 J x", 0.0),
    ],
)  # fmt: skip
def test_a_resolution_is_an_energy_or_nothing(text: str, joules: float) -> None:
    assert resolution_joules(text) == pytest.approx(joules, rel=1e-12, abs=0)
    assert resolution_watts(text.translate(str.maketrans("JW", "WJ"))) == pytest.approx(joules, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("refresh_s", "step_joules", "after_s"),
    [
        (0.001, 15.3e-6, 0.02),
        (5.0, 0.0, 100.0),
        (None, 0.0, 100.0),
        (7.2, 3600.0, 720.0),  # measured at 500 W; an idle server of 40 W makes a step every 90 s
        (0.1, 1.0, 2.0),
    ],
)
def test_a_value_may_stay_the_same_for_20_refreshes_and_for_one_step_at_5_w(
    refresh_s: float | None, step_joules: float, after_s: float
) -> None:
    assert frozen_after_s(refresh_s, step_joules) == pytest.approx(after_s)


def test_the_refresh_of_rapl_is_known_before_it_is_measured() -> None:
    assert frozen_after_s(None, 15.3e-6, "rapl") == pytest.approx(0.02)
    assert frozen_after_s(5.0, 0.0, "rapl") == 100.0
