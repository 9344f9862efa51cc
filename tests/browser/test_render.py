"""Render the dashboards with Grafana's components in headless Chromium, on a real Prometheus with a recorded run.

``KEEP_SCREENSHOTS=FOLDER`` keeps the pictures for review.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support import dashboards, renderer
from support.npm import installed
from support.recorded_run import SCRAPE_S, RecordedRun
from support.require import require_program

pytest_plugins = ["support.recorded_run_fixture", "support.simulated_fleet_fixture"]
# The first run installs the components.
pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(600)]

VIEWS: Final = [
    pytest.param((name, width, theme), id=f"{name}-{width}-{theme}")
    for name in dashboards.NAMES
    for width, theme in ((1600, "dark"), (1600, "light"), (800, "dark"), (800, "light"))
]
LONG_COLUMNS: Final = {"Hardware", "Exporters", "Model", "Model SHA-256", "Network", "Source"}
"""Columns of tables whose texts may be longer than any column; the pointer shows them."""
SCROLLED_LEGENDS: Final = {
    "Failed reads",
    "Share of time not measured",
    "Age of values",
    "Refresh period of sensors",
    "Power of parts",
}
"""Panels with a line for each device of all machines, whose legends scroll."""
WIDE_TABLES: Final = {"Configurations of the run", "All sensor series and how they are measured"}
"""Tables with so many columns that they scroll."""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the bundled page."""
    node = require_program("node", "nodejs")
    require_program(renderer.BROWSER, renderer.BROWSER)
    modules = installed(renderer.MANIFEST, "renderer") / "node_modules"
    folder = tmp_path_factory.mktemp("site")
    renderer.bundle(modules, folder, node)
    return folder


@pytest.fixture(scope="session")
def site_url(site: Path) -> Iterator[str]:
    with renderer.serve(site) as server:
        yield server.url


@dataclass(frozen=True, slots=True)
class Rendered:
    """A dashboard by its name, and how the browser rendered it."""

    name: str
    page: renderer.Rendering


@pytest.fixture(scope="session", params=VIEWS)
def rendered(
    request: pytest.FixtureRequest,
    site: Path,
    site_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Rendered:
    """Render one dashboard over the time range of its data, at one width and in one theme."""
    name, width, theme = request.param
    source = request.getfixturevalue("recorded_run" if name in dashboards.RECORDED else "simulated_fleet")
    board = dashboards.load(name)
    view = renderer.View(
        board=board,
        prometheus=source.url,
        start_s=source.start_s,
        end_s=source.end_s,
        scrape_s=SCRAPE_S if name in dashboards.RECORDED else 60,
        width=width,
        theme=theme,
        values=dashboards.CHOSEN.get(board["title"], {}),
    )
    picture = tmp_path_factory.mktemp(name) / f"{name}-{width}-{theme}.png"
    page = renderer.render(view, site, site_url, picture)
    if screenshots := os.environ.get("KEEP_SCREENSHOTS"):
        Path(screenshots).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, screenshots)
    return Rendered(name, page)


def test_every_panel_is_rendered_with_data_and_without_error(rendered: Rendered) -> None:
    assert rendered.page.body_data("ready") == "1", rendered.page.problems
    assert rendered.page.problems == []
    panels = list(dashboards.panels(dashboards.load(rendered.name)))
    for panel in panels:
        assert html.escape(panel["title"], quote=False) in rendered.page.dom, panel["title"]
    charts = [panel for panel in panels if panel["type"] in {"timeseries", "trend"}]
    assert rendered.page.dom.count("<canvas") >= len(charts)


def test_no_text_is_cut_and_no_legend_overlaps(rendered: Rendered) -> None:
    cut: list[str] = json.loads(html.unescape(rendered.page.body_data("cut")))
    assert [text for text in cut if not may_be_cut(text)] == []


def may_be_cut(text: str) -> bool:
    """Return whether the reader can scroll to, or point at, what does not fit."""
    panel, what = text.split(": ")[:2]
    return (
        what in LONG_COLUMNS
        or (panel in SCROLLED_LEGENDS and text.endswith("is below the panel"))
        or (panel in WIDE_TABLES and what == "the table is wider than the panel")
    )


def test_the_picture_is_not_blank(rendered: Rendered) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, which matplotlib installs
        image = pytest.importorskip("PIL.Image", reason="pip install pillow").open(rendered.page.png)
    with image:
        assert image.size == (rendered.page.width, rendered.page.height)
        colours = image.convert("RGB").getcolors(maxcolors=rendered.page.width * rendered.page.height)
    assert len(colours) > 500
    assert max(count for count, _ in colours) < 0.95 * rendered.page.width * rendered.page.height


def test_the_windows_of_the_run_are_regions(rendered: Rendered, recorded_run: RecordedRun) -> None:
    expected = recorded_run.windows + recorded_run.idle_windows if rendered.name == "experiment" else 0
    assert int(rendered.page.body_data("regions")) == expected


def test_grafana_knows_every_unit(rendered: Rendered) -> None:
    """Grafana shows the id of an unknown unit as text after the value."""
    text = re.sub(r"<[^>]+>", " ", rendered.page.dom)
    assert not re.search(r"\d\s*(watt|joule|kwatth|percentunit|suffix|dateTimeAsIso)", text)
