"""The fixture ``recorded_run``, once per session: ``pytest_plugins = ["support.recorded_run_fixture"]``.

It has its own module, because pytest must import a plugin before any test does.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.recorded_run import RecordedRun, recorded_run_in
from support.require import require_program


@pytest.fixture(scope="session")
def recorded_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedRun]:
    """A real run in a real Prometheus."""
    program = require_program("prometheus", "prometheus")
    require_program("gcc", "gcc")  # builds the emulated NVML
    for module in ("pyghmi", "pynvml", "requests"):
        pytest.importorskip(module, reason="pip install 'joulewatch[all]'")
    with recorded_run_in(tmp_path_factory.mktemp("recorded_run"), program) as run:
        yield run
