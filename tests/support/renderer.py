"""Renders dashboards with Grafana's components in headless Chromium, on a real Prometheus.

The components come from npm (650 MB, installed once into the user's cache). The licence of @grafana/prometheus is the
AGPL: use it in tests only.
"""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from support.loopback import LoopbackServer, QuietHandler
from support.paths import ROOT

BROWSER: Final = "chromium-headless-shell"
MANIFEST: Final = ROOT / "tests" / "browser" / "package.json"
_CELL: Final = 38
"""Height of a grid unit in px, as in page.tsx."""
_INDEX: Final = """<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="page.css">
<body style="margin:0"><div id="root"></div><script src="page.js"></script></body>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What to render: a dashboard, its data, and the size and colours of the page."""

    board: Mapping[str, Any]
    prometheus: str
    start_s: float
    end_s: float
    scrape_s: float
    width: int = 1600
    theme: str = "dark"
    values: Mapping[str, str] | None = None
    """Values of variables; the others have those of a dashboard that was just opened."""

    @property
    def height(self) -> int:
        """Height in px with all rows open."""
        panels = [part for panel in self.board["panels"] for part in (panel, *(panel.get("panels") or ()))]
        return 48 + _CELL * max(int(panel["gridPos"]["y"] + panel["gridPos"]["h"]) for panel in panels)

    def document(self) -> dict[str, Any]:
        """Return the view as page.tsx reads it."""
        return {
            "dashboard": self.board,
            "prometheus": self.prometheus,
            "from": self.start_s,
            "to": self.end_s,
            "scrape_s": self.scrape_s,
            "width": self.width,
            "theme": self.theme,
            "values": self.values or {},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """A dashboard as the browser rendered it."""

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


def bundle(modules: Path, folder: Path, node: str = "node") -> None:
    """Write the page and its scripts into a folder.

    Args:
        modules: The folder node_modules with Grafana's components.
        folder: The folder of the page.
        node: The program Node.js.

    Raises:
        RuntimeError: esbuild failed.
    """
    source = MANIFEST.parent
    prometheus = modules / "@grafana" / "prometheus" / "dist" / "esm"
    done = subprocess.run(
        [
            node,
            str(modules / "esbuild" / "bin" / "esbuild"),
            str(source / "page.tsx"),
            "--bundle",
            "--format=iife",
            "--jsx=automatic",
            "--log-level=error",
            f"--outfile={folder / 'page.js'}",
            "--loader:.svg=text",
            "--loader:.ttf=dataurl",
            f"--alias:react-custom-scrollbars-2={source / 'shim.js'}",
            f"--alias:grafana-prometheus-annotations={prometheus / 'annotations.mjs'}",
            f"--alias:grafana-prometheus-results={prometheus / 'result_transformer.mjs'}",
            '--define:process.env.NODE_ENV="production"',
        ],
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    (folder / "index.html").write_text(_INDEX, encoding="utf-8")


class _FileHandler(QuietHandler, http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder."""


def serve(folder: Path) -> AbstractContextManager[LoopbackServer]:
    """Serve the folder of the page."""
    return LoopbackServer(functools.partial(_FileHandler, directory=str(folder)))


def render(view: View, site: Path, url: str, png: Path, browser: str = BROWSER) -> Rendering:
    """Render a dashboard.

    Args:
        view: What to render.
        site: The folder that ``bundle`` wrote.
        url: Where it is served.
        png: The picture to write.
        browser: The browser.
    """
    (site / "view.json").write_text(json.dumps(view.document()), encoding="utf-8")
    command = [
        browser,
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=20000",
        f"--user-data-dir={site / 'profile'}",
        f"--window-size={view.width},{view.height}",
    ]
    # With --dump-dom, Chromium also writes the picture.
    done = subprocess.run(
        [*command, f"--screenshot={png}", "--dump-dom", f"{url}/index.html"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return Rendering(png=png, width=view.width, height=view.height, dom=done.stdout.decode())
