"""The report in headless Chromium: axe-core finds no violation, the console is clean, the keyboard reaches everything.

axe-core comes from npm, once into the user's cache. Its licence is the MPL: use it in tests only.
``KEEP_SCREENSHOTS=FOLDER`` keeps pictures and the PDF for review.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from joulewatch_harness.analysis.reports.html_parts import ReportedRun
from joulewatch_harness.analysis.reports.html_report import render_html
from joulewatch_harness.commands import report
from support.reports import poisoned, reported
from support.require import require_program

pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(300)]

HERE: Final = Path(__file__).resolve().parent / "axe"
POLICY: Final = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
CHECK: Final = """
<script>{axe}</script>
<script>
addEventListener("load", async () => {{
  for (const details of document.querySelectorAll("details")) details.open = true;
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const reachable = [...document.querySelectorAll("a[href], summary, [tabindex]")].filter(e => e.checkVisibility());
  const unreachable = reachable.filter(e => (e.focus(), document.activeElement !== e)).map(e => e.outerHTML);
  const scrolling = [...document.querySelectorAll("*")].filter(
    e => e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX) && e.tabIndex < 0
  ).map(e => e.outerHTML.slice(0, 100));
  const found = await axe.run(document, {{resultTypes: ["violations"]}});
  const violations = found.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200)).slice(0, 3)]);
  const checks = found.passes.map(p => p.id);
  document.body.dataset.found = JSON.stringify({{wide, unreachable, scrolling, violations, checks,
    reachable: reachable.length, dark: matchMedia("(prefers-color-scheme: dark)").matches}});
}});
</script>
"""


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core; the first call installs it."""
    npm = require_program("npm", "npm")
    manifest = (HERE / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joulewatch"
    folder = cache / f"axe-{hashlib.sha256(manifest).hexdigest()[:12]}"
    if not folder.exists():
        unfinished = cache / f"unfinished-axe-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        (unfinished / "package.json").write_bytes(manifest)
        command = [npm, "install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
        install = subprocess.run(command, cwd=unfinished, capture_output=True, text=True, timeout=200)
        if install.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = f"npm cannot install axe-core: {install.stderr[-500:]}"
            if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        unfinished.rename(folder)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs() -> dict[str, list[ReportedRun]]:
    first = reported()
    other = reported(run="20260922T141320Z-1b2c3d", configurations=("net/tensorrt/int8",), cpu="EPYC 7742")
    return {
        "one": [first],
        "several": [first, other],
        "hostile": [ReportedRun(poisoned(first.result), poisoned(first.lines))],
    }


def browse(page: Path, *flags: str, width: int = 1400) -> tuple[str, list[str]]:
    """Return the document of a page after its scripts, and the lines of the console."""
    command = [
        require_program("chromium-headless-shell", "chromium-headless-shell"),
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=60000",
        f"--user-data-dir={page.parent / 'profile'}",
        f"--window-size={width},1000",
        *flags,
        page.as_uri(),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def checked(text: str, axe: str, folder: Path, *flags: str, width: int = 1400) -> dict[str, Any]:
    """Return what the script in ``CHECK`` finds on a page; the policy must go, because it forbids scripts."""
    page = folder / "page.html"
    with_script = POLICY.sub("", text).replace("</body>", CHECK.format(axe=axe))
    page.write_text(with_script, encoding="utf-8")
    document, console = browse(page, "--dump-dom", *flags, width=width)
    assert console == []
    match = re.search(r'data-found="([^"]*)"', document)
    assert match is not None, document[-500:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


@pytest.mark.parametrize("name", ["one", "several", "hostile"])
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (500, False), (500, True)])
def test_axe_finds_no_violation_and_the_keyboard_reaches_everything(
    runs: dict[str, list[ReportedRun]], axe: str, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found = checked(render_html(runs[name]), axe, tmp_path, *flags, width=width)
    assert found["dark"] == dark
    assert found["violations"] == []
    assert {"color-contrast", "heading-order", "svg-img-alt"} <= set(found["checks"])
    # Tables scroll on a phone only.
    assert width > 500 or "scrollable-region-focusable" in found["checks"]
    assert found["unreachable"] == [] and found["scrolling"] == [] and found["reachable"] > 15
    assert found["wide"] <= 0, "the page scrolls to the side"


def test_axe_finds_what_is_wrong(runs: dict[str, list[ReportedRun]], axe: str, tmp_path: Path) -> None:
    """Without the tables' tab stops and the titles of the figures it complains: the check above is not empty."""
    text = render_html(runs["one"]).replace(' tabindex="0"', "").replace(' aria-labelledby="chart-energy-t"', "")
    found = checked(text.replace("color: var(--soft)", "color: #ccc"), axe, tmp_path, width=500)
    assert {"color-contrast", "scrollable-region-focusable"} <= {name for name, _ in found["violations"]}
    assert found["scrolling"] != []


def test_the_console_is_clean(runs: dict[str, list[ReportedRun]], tmp_path: Path) -> None:
    """With its policy: a style, script or request that it forbids would be reported here."""
    page = tmp_path / "page.html"
    for several in runs.values():
        page.write_text(render_html(several), encoding="utf-8")
        document, console = browse(page, "--dump-dom")
        assert console == [] and "How to cite" in document
    page.write_text(render_html(runs["one"]).replace("</body>", "<script>1</script></body>"), encoding="utf-8")
    assert "Content Security Policy" in "".join(browse(page, "--dump-dom")[1])


def test_pictures_and_pdf(runs: dict[str, list[ReportedRun]], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_html(runs["several"]), encoding="utf-8")
    # Chromium's windows are at least 500 pixels wide; a frame is not.
    phone = tmp_path / "phone.html"
    frame = '<body style="margin:0"><iframe src="page.html" style="width:400px;height:3000px;border:0"></iframe>'
    phone.write_text(frame, encoding="utf-8")
    dark = "--blink-settings=preferredColorScheme=0"
    for name, source, flags in (
        ("1400", page, ["--window-size=1400,3000"]),
        ("1400-dark", page, ["--window-size=1400,3000", dark]),
        ("400", phone, ["--window-size=500,3000"]),
    ):
        picture = tmp_path / f"report-{name}.png"
        browse(source, "--hide-scrollbars", f"--screenshot={picture}", *flags)
        assert picture.stat().st_size > 30_000
    browser = require_program("chromium-headless-shell", "chromium-headless-shell")
    pdf = report._pdf(browser, render_html(runs["several"], expanded=True))
    assert pdf.startswith(b"%PDF") and len(pdf) > 30_000
    (tmp_path / "report.pdf").write_bytes(pdf)
    if screenshots := os.environ.get("KEEP_SCREENSHOTS"):
        Path(screenshots).mkdir(parents=True, exist_ok=True)
        for file in (*tmp_path.glob("report-*.png"), tmp_path / "report.pdf"):
            shutil.copy(file, screenshots)
