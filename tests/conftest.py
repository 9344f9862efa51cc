"""Options, fixtures and the order of all tests."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings

# How fast an example runs depends on what else the machine does.
settings.register_profile("joulewatch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("joulewatch")

SLOWEST_FIRST: Final = (
    "integration/test_faults.py",
    "integration/test_extras.py",
    "integration/test_compare.py",
    "browser/test_render.py",
    "integration/test_dashboards.py",
    "integration/test_chain.py",
)
"""Files whose tests wait for the clock: started first, they wait while the other workers go through all the rest."""

SHARED_RUN: Final = ("tests/browser/test_render.py", "tests/integration/test_dashboards.py")
"""Files that show one recorded run in one Prometheus."""
SHARED_SETUP: Final = tuple(
    f"tests/integration/test_{name}.py"
    for name in ("delivery", "extras", "finn_child", "perf_backend", "process_children", "same_network", "servers")
)
"""Files whose tests share servers, compiled programs or environments."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files from what the code gives now"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder for links to /dev/zero: code that reads such a file without a limit raises MemoryError."""
    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute the tests to the workers of pytest-xdist by ``worker_group``."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return worker_group(nodeid)

    return Scheduling(config, log)


def worker_group(nodeid: str) -> str:
    """Return one name for all tests that share what is expensive to set up: they run on one worker.

    The tests of one file form a group; each integration test that starts its own servers is a group by itself.
    """
    path = nodeid.partition("::")[0]
    if path in SHARED_RUN:
        return SHARED_RUN[0]
    return nodeid if path.startswith("tests/integration/") and path not in SHARED_SETUP else path


def _rank(item: pytest.Item) -> int:
    """Slow files first, then everything that waits for real servers, then the unit tests."""
    file = f"{item.path.parent.name}/{item.path.name}"
    if file in SLOWEST_FIRST:
        return SLOWEST_FIRST.index(file)
    is_slow = any(name in item.keywords for name in ("integration", "browser", "qemu"))
    return len(SLOWEST_FIRST) + (0 if is_slow else 1)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Remove the handlers that a command set up in the process of the test: their stderr is that of this test only."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in root.handlers[:]:
        # Those of pytest are of subclasses.
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.setLevel(level)
