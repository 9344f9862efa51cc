"""The table of runtimes agrees with pyproject.toml, the modules and the README, and marks experimental runtimes."""

from __future__ import annotations

import importlib.util
import tomllib

import pytest

from joulewatch_harness.plan.runtimes import RUNTIMES
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import as_loaded
from support.paths import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
README = (ROOT / "harness" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNTIMES)
def test_each_runtime_has_a_module_an_extra_and_a_line_in_the_readme(name: str) -> None:
    assert importlib.util.find_spec(RUNTIMES[name].module) is not None
    assert RUNTIMES[name].extra in EXTRAS
    assert f"| `{name}` |" in README


@pytest.mark.parametrize(
    ("runtime", "device", "text"),
    [
        ("tensorrt", "cuda:0", "TensorRT support has not been run on a GPU"),
        ("torch", "cuda:0", "PyTorch has not been run on cuda:0"),
        ("openvino", "NPU", "OpenVINO has not been run on NPU"),
        ("torch", "cpu", None),
        ("onnxruntime", "CPU", None),
        ("kserve", "", None),
    ],
)
def test_a_result_states_what_is_experimental(runtime: str, device: str, text: str | None) -> None:
    """The text is stored with the configuration, so that the table and JSON show it."""
    configuration = Configuration(name="x", network="x", runtime=runtime, precision="native")
    loaded = as_loaded(configuration, {"runtime": runtime, "precision": "fp32", "device": device})
    assert loaded.details.get("experimental") == text
