"""The names are a contract: valid, unique, and listed in the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from joulewatch_exporter import catalog
from joulewatch_exporter.catalog import METRICS, Metric
from support import golden
from support.metric_table import with_listing

README = Path(__file__).parents[2] / "exporter" / "README.md"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_follows_the_conventions(metric: Metric) -> None:
    """Prometheus' conventions: prefix, unit in the name, _total on counters and nowhere else, a help text."""
    assert re.fullmatch(r"joulewatch_[a-z][a-z0-9_]*[a-z0-9]", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
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


def test_the_readme_shows_the_catalog(update_golden: bool) -> None:
    """``pytest --update-golden`` rewrites the table."""
    golden.check(with_listing(README.read_text(encoding="utf-8")), README, update=update_golden)
