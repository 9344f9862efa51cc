"""Check the objects of the Prometheus Operator against the schemas of its CRDs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from support.helm import FOLDER, FULL, one
from support.npm import installed
from support.require import require_program

# The first run installs the schemas.
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

PROGRAM: Final = """
import * as kinds from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { readFileSync } from "node:fs";
const report = (object) => {
  try { new kinds[object.kind](object).validate(); return ""; } catch (error) { return error.message; }
};
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(report)));
"""


def errors(folder: Path, objects: list[dict[str, Any]]) -> list[str]:
    """Return for each object what its schema reports, or an empty text."""
    node = require_program("node", "nodejs")
    modules = installed(Path(__file__).resolve().parent / "operator" / "package.json", "operator") / "node_modules"
    (folder / "node_modules").symlink_to(modules)
    (folder / "check.mjs").write_text(PROGRAM, encoding="utf-8")
    outcome = subprocess.run(
        [node, str(folder / "check.mjs")], input=json.dumps(objects), capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stderr
    result: list[str] = json.loads(outcome.stdout)
    return result


def test_the_operator_accepts_the_objects_and_the_schemas_reject_wrong_ones(tmp_path: Path) -> None:
    manifest = (FOLDER / "manifests" / "prometheus-operator.yaml").read_text("utf-8")
    right = [one("ServiceMonitor", FULL), one("PrometheusRule", FULL), *yaml.safe_load_all(manifest)]
    monitor, rule = json.loads(json.dumps(right[:2]))
    monitor["spec"]["endpoints"][0]["interval"] = "1 second"
    del rule["spec"]["groups"][0]["rules"][0]["expr"]
    found = errors(tmp_path, [*right, monitor, rule])
    assert found[:4] == ["", "", "", ""]
    assert "/spec/endpoints/0/interval" in found[4]
    assert "expr" in found[5]
