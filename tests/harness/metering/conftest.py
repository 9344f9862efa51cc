"""An exporter and meters for the tests of the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_harness.metering.exporters import ENVIRONMENT
from joulewatch_harness.metering.meter import Meter
from support.counting_exporter import CountingExporter


@pytest.fixture
def exporter() -> Iterator[CountingExporter]:
    with CountingExporter() as server:
        yield server


@pytest.fixture
def meter(exporter: CountingExporter, tmp_path: Path) -> Iterator[Meter]:
    """An open meter that reads ``exporter``; its runs are in ``tmp_path/runs``."""
    with Meter(exporter.url, output=tmp_path / "runs") as meter:
        yield meter


@pytest.fixture(autouse=True)
def no_exporter_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
