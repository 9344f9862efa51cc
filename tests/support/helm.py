"""The Helm chart, rendered by Helm in a child process: its library would leave threads in the process of the tests."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any, Final

import pytest
import yaml

from support.paths import ROOT

FOLDER: Final = ROOT / "deploy" / "kubernetes"
CHART: Final = FOLDER / "chart"
PROGRAM: Final = """
import json, sys
import helm_python
chart, call, values, name = json.loads(sys.argv[1])
if call == "lint":
    result = helm_python.lint(chart, values, strict=True)
else:
    result = helm_python.Chart.load(chart).render(values, name=name, namespace="joulewatch")
json.dump(result, sys.stdout)
"""
FULL: Final[dict[str, Any]] = {
    "image": {"tag": "1.2.3", "pullSecrets": [{"name": "regcred"}]},
    "config": {"exporter": {"max_requests": 4}},
    "nvidia": {"enabled": True},
    "nodeSelector": {"nvidia.com/gpu.present": "true"},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["b"]}]}]
            }
        }
    },
    "prometheusOperator": {"enabled": True, "labels": {"release": "kube-prometheus-stack"}, "scrapeInterval": "1s"},
}
"""Values that use every branch of the templates."""


def require_helm() -> None:
    if find_spec("helm_python") is None:
        text = "helm-python-sdk is not installed: pip install --group manifests"
        if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


def helm(call: str, values: dict[str, Any] | None = None, name: str = "joulewatch") -> Any:
    """Return what Helm answers; a failure is an ``AssertionError`` with its message."""
    require_helm()
    arguments = json.dumps([str(CHART), call, values or {}, name])
    outcome = subprocess.run([sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout)


@functools.cache
def _objects(values: str, name: str) -> str:
    texts = helm("render", json.loads(values), name)
    documents = [
        document
        for path, text in texts.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
    return json.dumps(documents)


def objects(values: dict[str, Any] | None = None, name: str = "joulewatch") -> list[dict[str, Any]]:
    """Return the rendered objects."""
    rendered: list[dict[str, Any]] = json.loads(_objects(json.dumps(values or {}), name))
    return rendered


def one(kind: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the only object of a kind."""
    (found,) = (document for document in objects(values) if document["kind"] == kind)
    return found
