"""The fixture ``simulated_fleet``, once per session: ``pytest_plugins = ["support.simulated_fleet_fixture"]``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.require import require_program
from support.simulated_fleet import Fleet, simulated_fleet_in


@pytest.fixture(scope="session")
def simulated_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The recorded series of 1,000 servers in a real Prometheus."""
    programs = [require_program(name, "prometheus") for name in ("prometheus", "promtool")]
    with simulated_fleet_in(tmp_path_factory.mktemp("fleet"), *programs) as fleet:
        yield fleet
