"""Both dashboards drawn by Grafana's own components in a headless Chromium, on a Prometheus with a real run in it.

The components come from npm (650 MB, installed once into the user's cache); @grafana/prometheus is under the
AGPL, so it stays in tests. ``KEEP_SCREENSHOTS=FOLDER`` keeps the pictures: look at them.
"""

from __future__ import annotations

import functools
import hashlib
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support import dashboards
from support.recorded_run import SCRAPE_S, RecordedRun
from support.require import require_program

pytest_plugins = ["support.recorded_run_fixture"]
# The first run downloads the components.
pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(600)]

HERE: Final = Path(__file__).resolve().parent
WIDTH: Final = 1600
CELL: Final = 38
"""Height of a grid unit in page.tsx."""
INDEX: Final = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css">
<body style="margin:0"><div id="root"></div><script src="page.js"></script></body>
"""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the browser made of a dashboard."""

    png: Path
    height: int
    dom: str

    @property
    def problems(self) -> list[str]:
        return [html.unescape(text) for text in re.findall(r'data-problem="([^"]*)"', self.dom)]

    def body(self, name: str) -> str:
        match = re.search(rf'<body[^>]*data-{name}="([^"]*)"', self.dom)
        assert match is not None, self.dom[:2000]
        return match[1]


def installed_components() -> Path:
    """Folder with node_modules for package.json, filled on first use."""
    npm = require_program("npm", "npm")
    manifest = (HERE / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joulewatch"
    folder = cache / f"renderer-{hashlib.sha256(manifest).hexdigest()[:12]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = cache / f"unfinished-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name in ("package.json", ".npmrc"):
            shutil.copy(HERE / name, unfinished)
        done = subprocess.run(
            [npm, "install", "--ignore-scripts", "--legacy-peer-deps"],
            cwd=unfinished,
            capture_output=True,
            text=True,
            timeout=500,
        )
        if done.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            text = f"npm cannot install Grafana's components: {done.stderr[-500:]}"
            if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
                pytest.fail(text, pytrace=False)
            pytest.skip(text)
        unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the page, bundled."""
    node = require_program("node", "nodejs")
    require_program("chromium-headless-shell", "chromium-headless-shell")
    modules = installed_components() / "node_modules"
    parts = modules / "@grafana" / "prometheus" / "dist" / "esm"
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
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
            f"--alias:grafana-prometheus-annotations={parts / 'annotations.mjs'}",
            f"--alias:grafana-prometheus-results={parts / 'result_transformer.mjs'}",
            '--define:process.env.NODE_ENV="production"',
        ],
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (folder / "index.html").write_text(INDEX, encoding="utf-8")
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def site_url(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session", params=dashboards.NAMES)
def drawn(
    request: pytest.FixtureRequest,
    site: Path,
    site_url: str,
    recorded_run: RecordedRun,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Drawn]:
    """One dashboard over the time of the run: its picture and its DOM."""
    name: str = request.param
    board = dashboards.load(name)
    view = {
        "dashboard": board,
        "prometheus": recorded_run.url,
        "from": recorded_run.start_s,
        "to": recorded_run.end_s,
        "scrape_s": SCRAPE_S,
        "width": WIDTH,
    }
    (site / "view.json").write_text(json.dumps(view), encoding="utf-8")
    places = [panel["gridPos"] for panel in board["panels"]]
    height = 48 + CELL * max(place["y"] + place["h"] for place in places)
    folder = tmp_path_factory.mktemp(name)
    picture = folder / f"{name}.png"
    browser = [
        require_program("chromium-headless-shell", "chromium-headless-shell"),
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=20000",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={WIDTH},{height}",
    ]
    subprocess.run([*browser, f"--screenshot={picture}", site_url], check=True, capture_output=True, timeout=120)
    dom = subprocess.run([*browser, "--dump-dom", site_url], check=True, capture_output=True, timeout=120)
    if keep := os.environ.get("KEEP_SCREENSHOTS"):
        Path(keep).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, keep)
    return name, Drawn(picture, height, dom.stdout.decode())


def test_every_panel_is_drawn_with_data_and_without_error(drawn: tuple[str, Drawn]) -> None:
    name, result = drawn
    assert result.body("ready") == "1", result.problems
    assert result.problems == []
    for panel in dashboards.panels(dashboards.load(name)):
        assert html.escape(panel["title"], quote=False) in result.dom, panel["title"]
    graphs = [panel for panel in dashboards.panels(dashboards.load(name)) if panel["type"] != "table"]
    assert result.dom.count("<canvas") >= len([panel for panel in graphs if panel["type"] != "stat"])


def test_the_picture_is_not_blank(drawn: tuple[str, Drawn]) -> None:
    _, result = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, which is here by way of matplotlib
        image = pytest.importorskip("PIL.Image", reason="pip install pillow").open(result.png)
    with image:
        assert image.size == (WIDTH, result.height)
        colours = image.convert("RGB").getcolors(maxcolors=WIDTH * result.height)
    assert len(colours) > 500
    assert max(count for count, _ in colours) < 0.95 * WIDTH * result.height


def test_the_windows_of_the_run_are_regions(drawn: tuple[str, Drawn], recorded_run: RecordedRun) -> None:
    name, result = drawn
    wanted = recorded_run.windows + recorded_run.idle_windows if name == "experiment" else 0
    assert int(result.body("regions")) == wanted


def test_tables_say_that_the_machine_is_emulated(drawn: tuple[str, Drawn]) -> None:
    assert "emulated" in drawn[1].dom


def test_units_are_grafanas(drawn: tuple[str, Drawn]) -> None:
    """A unit Grafana does not know is shown behind the figure as it is written."""
    text = re.sub(r"<[^>]+>", " ", drawn[1].dom)
    assert re.search(r"\d\s*W\b", text)
    assert not re.search(r"\d\s*(watt|joule|kwatth|percentunit|ops\b(?!/s))", text)
