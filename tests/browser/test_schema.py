"""Check the dashboards against the types of Grafana's classic dashboard schema, of Grafana 10.4 and 13."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from support import dashboards
from support.npm import installed
from support.require import require_program

# The first run installs the types and the compiler.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

VERSIONS: Final = ("10", "13")
ANNOTATION_OF_PROMETHEUS: Final = ("expr", "step", "titleFormat", "textFormat", "tagKeys", "useValueForTime")
"""Fields of the data source, which the schema leaves open; it has no index signature for them."""
VARIABLE: Final = ("definition", "allowCustomValue")
"""Grafana writes ``definition`` itself, without having it in its schema; 10.4 ignores ``allowCustomValue``."""
OPTIONS: Final = {
    "strict": True,
    "noEmit": True,
    "skipLibCheck": True,
    "module": "esnext",
    "moduleResolution": "bundler",
    "target": "es2022",
    "types": [],
}
PROGRAM: Final = """import type {{ Dashboard }} from "schema-{version}";
// JSON has texts where the types have enumerations.
type Json<T> = T extends string ? `${{T}}` : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Json<U>[] : T extends object ? {{ [K in keyof T]: Json<T[K]> }} : T;
export const dashboard: Json<Dashboard> = {board};
"""


def in_schema(board: dict[str, Any]) -> dict[str, Any]:
    """Return the dashboard without the fields that Grafana's schema does not have."""
    copy: dict[str, Any] = json.loads(json.dumps(board))
    for annotation in copy.get("annotations", {}).get("list", ()):
        for name in ANNOTATION_OF_PROMETHEUS:
            annotation.pop(name, None)
    for variable in copy["templating"]["list"]:
        for name in VARIABLE:
            variable.pop(name, None)
    return copy


def type_errors(folder: Path, boards: dict[str, dict[str, Any]]) -> str:
    """Return what the compiler reports for ``boards`` in all versions of the schema."""
    node = require_program("node", "nodejs")
    modules = installed(Path(__file__).resolve().parent / "schema" / "package.json", "schema") / "node_modules"
    (folder / "node_modules").symlink_to(modules)
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS}), encoding="utf-8")
    for name, board in boards.items():
        for version in VERSIONS:
            text = PROGRAM.format(version=version, board=json.dumps(board))
            (folder / f"{name}-{version}.ts").write_text(text, encoding="utf-8")
    outcome = subprocess.run(
        [node, str(modules / "typescript" / "bin" / "tsc"), "-p", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return outcome.stdout + outcome.stderr


def test_every_dashboard_has_the_types_of_the_schema(tmp_path: Path) -> None:
    boards = {name: in_schema(dashboards.load(name)) for name in dashboards.NAMES}
    assert type_errors(tmp_path, boards) == ""


def test_a_wrong_type_an_unknown_field_and_a_wrong_value_are_reported(tmp_path: Path) -> None:
    board = in_schema(dashboards.load("node"))
    wrong = {
        "type": {**board, "editable": "no"},
        "field": {**board, "colour": "red"},
        "value": {**board, "links": [{**board["links"][0], "type": "button"}]},
    }
    errors = type_errors(tmp_path, wrong)
    for name in wrong:
        for version in VERSIONS:
            assert f"{name}-{version}.ts" in errors
