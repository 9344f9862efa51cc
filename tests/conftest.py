"""Options, fixtures and the order of all tests."""

from __future__ import annotations

from typing import Final

import pytest

SLOWEST_FIRST: Final = (
    "integration/test_faults.py",
    "integration/test_compare.py",
    "browser/test_render.py",
    "integration/test_dashboards.py",
    "integration/test_chain.py",
)
"""Files whose tests wait for the clock: started first, they wait while the other workers go through all the rest."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the golden files from what the code gives now"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests, and say which ones share a worker (``--dist=loadgroup``)."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_worker_group(item)))
    items.sort(key=_rank)


def _worker_group(item: pytest.Item) -> str:
    """Return one name for all tests that share what is expensive to set up.

    Tests of one file share a worker, except tests with real servers of their own: each of these stands alone.
    """
    fixtures = item._fixtureinfo.name2fixturedefs
    if "recorded_run" in fixtures:
        return "recorded_run"
    is_shared = any(definition.scope == "module" for definitions in fixtures.values() for definition in definitions)
    return str(item.path) if is_shared or "integration" not in item.keywords else item.nodeid


def _rank(item: pytest.Item) -> int:
    """Slow files first, then everything that waits for real servers, then the unit tests."""
    file = f"{item.path.parent.name}/{item.path.name}"
    if file in SLOWEST_FIRST:
        return SLOWEST_FIRST.index(file)
    is_slow = any(name in item.keywords for name in ("integration", "browser", "qemu"))
    return len(SLOWEST_FIRST) + (0 if is_slow else 1)
