"""Render the dashboards with Grafana's components in headless Chromium, on a real Prometheus with a recorded run.

The components come from npm (650 MB, installed once into the user's cache). The licence of @grafana/prometheus is the
AGPL: use it in tests only. ``KEEP_SCREENSHOTS=FOLDER`` keeps the pictures for review.
"""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support import dashboards
from support.loopback import LoopbackServer, QuietHandler
from support.npm import installed
from support.recorded_run import SCRAPE_S, RecordedRun
from support.require import require_program

pytest_plugins = ["support.recorded_run_fixture", "support.simulated_fleet_fixture"]
# The first run installs the components.
pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(600)]

HERE: Final = Path(__file__).resolve().parent
VIEWS: Final = [
    pytest.param((name, width, theme), id=f"{name}-{width}-{theme}")
    for name in dashboards.NAMES
    for width, theme in ((1600, "dark"), (1600, "light"), (800, "dark"), (800, "light"))
]
CELL: Final = 38
"""Height of a grid unit in px, as in page.tsx."""
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
INDEX: Final = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css">
<body style="margin:0"><div id="root"></div><script src="page.js"></script></body>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A dashboard as the browser rendered it."""

    name: str
    png: Path
    width: int
    height: int
    dom: str

    @property
    def problems(self) -> list[str]:
        return [html.unescape(text) for text in re.findall(r'data-problem="([^"]*)"', self.dom)]

    def body_data(self, name: str) -> str:
        """Return the attribute ``data-name`` of the body."""
        match = re.search(rf'<body[^>]*data-{name}="([^"]*)"', self.dom)
        assert match is not None, self.dom[:2000]
        return match[1]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the bundled page."""
    node = require_program("node", "nodejs")
    require_program("chromium-headless-shell", "chromium-headless-shell")
    modules = installed(HERE / "package.json", "renderer") / "node_modules"
    grafana_prometheus = modules / "@grafana" / "prometheus" / "dist" / "esm"
    folder = tmp_path_factory.mktemp("site")
    bundle = subprocess.run(
        [
            node,
            str(modules / "esbuild" / "bin" / "esbuild"),
            str(HERE / "page.tsx"),
            "--bundle",
            "--format=iife",
            "--jsx=automatic",
            "--log-level=error",
            f"--outfile={folder / 'page.js'}",
            "--loader:.svg=text",
            "--loader:.ttf=dataurl",
            f"--alias:react-custom-scrollbars-2={HERE / 'shim.js'}",
            f"--alias:grafana-prometheus-annotations={grafana_prometheus / 'annotations.mjs'}",
            f"--alias:grafana-prometheus-results={grafana_prometheus / 'result_transformer.mjs'}",
            '--define:process.env.NODE_ENV="production"',
        ],
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert bundle.returncode == 0, bundle.stderr
    (folder / "index.html").write_text(INDEX, encoding="utf-8")
    return folder


class FileHandler(QuietHandler, http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder."""


@pytest.fixture(scope="session")
def site_url(site: Path) -> Iterator[str]:
    with LoopbackServer(functools.partial(FileHandler, directory=str(site))) as server:
        yield f"{server.url}/index.html"


def page_height(board: dict[str, Any]) -> int:
    """Return the height in px with all rows open."""
    positions = [panel["gridPos"] for panel in (*board["panels"], *dashboards.panels(board))]
    return 48 + CELL * max(position["y"] + position["h"] for position in positions)


@pytest.fixture(scope="session", params=VIEWS)
def rendered(
    request: pytest.FixtureRequest,
    site: Path,
    site_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Rendering:
    """Render one dashboard over the time range of its data, at one width and in one theme."""
    name, width, theme = request.param
    source = request.getfixturevalue("recorded_run" if name in dashboards.RECORDED else "simulated_fleet")
    board = dashboards.load(name)
    view = {
        "dashboard": board,
        "prometheus": source.url,
        "from": source.start_s,
        "to": source.end_s,
        "scrape_s": SCRAPE_S if name in dashboards.RECORDED else 60,
        "width": width,
        "theme": theme,
        "values": dashboards.CHOSEN.get(board["title"], {}),
    }
    (site / "view.json").write_text(json.dumps(view), encoding="utf-8")
    height = page_height(board)
    folder = tmp_path_factory.mktemp(name)
    picture = folder / f"{name}-{width}-{theme}.png"
    browser = [
        require_program("chromium-headless-shell", "chromium-headless-shell"),
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{height}",
    ]
    # With --dump-dom, Chromium also writes the picture.
    dom = subprocess.run(
        [*browser, f"--screenshot={picture}", "--dump-dom", site_url], check=True, capture_output=True, timeout=120
    )
    if screenshots := os.environ.get("KEEP_SCREENSHOTS"):
        Path(screenshots).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, screenshots)
    return Rendering(name=name, png=picture, width=width, height=height, dom=dom.stdout.decode())


def test_every_panel_is_rendered_with_data_and_without_error(rendered: Rendering) -> None:
    assert rendered.body_data("ready") == "1", rendered.problems
    assert rendered.problems == []
    panels = list(dashboards.panels(dashboards.load(rendered.name)))
    for panel in panels:
        assert html.escape(panel["title"], quote=False) in rendered.dom, panel["title"]
    charts = [panel for panel in panels if panel["type"] in {"timeseries", "trend"}]
    assert rendered.dom.count("<canvas") >= len(charts)


def test_no_text_is_cut_and_no_legend_overlaps(rendered: Rendering) -> None:
    cut: list[str] = json.loads(html.unescape(rendered.body_data("cut")))
    assert [text for text in cut if not may_be_cut(text)] == []


def may_be_cut(text: str) -> bool:
    """Return whether the reader can scroll to, or point at, what does not fit."""
    panel, what = text.split(": ")[:2]
    return (
        what in LONG_COLUMNS
        or (panel in SCROLLED_LEGENDS and text.endswith("is below the panel"))
        or (panel in WIDE_TABLES and what == "the table is wider than the panel")
    )


def test_the_picture_is_not_blank(rendered: Rendering) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, which matplotlib installs
        image = pytest.importorskip("PIL.Image", reason="pip install pillow").open(rendered.png)
    with image:
        assert image.size == (rendered.width, rendered.height)
        colours = image.convert("RGB").getcolors(maxcolors=rendered.width * rendered.height)
    assert len(colours) > 500
    assert max(count for count, _ in colours) < 0.95 * rendered.width * rendered.height


def test_the_windows_of_the_run_are_regions(rendered: Rendering, recorded_run: RecordedRun) -> None:
    expected = recorded_run.windows + recorded_run.idle_windows if rendered.name == "experiment" else 0
    assert int(rendered.body_data("regions")) == expected


def test_grafana_knows_every_unit(rendered: Rendering) -> None:
    """Grafana shows the id of an unknown unit as text after the value."""
    text = re.sub(r"<[^>]+>", " ", rendered.dom)
    assert not re.search(r"\d\s*(watt|joule|kwatth|percentunit|suffix|dateTimeAsIso)", text)
