"""``joulewatch runtimes``: all runtimes, and the options of one, also if its package is missing."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys

import pytest

from joulewatch_harness.cli import main
from joulewatch_harness.plan.runtimes import RUNTIMES


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No runtime's package can be found or imported."""
    packages = {runtime.package for runtime in RUNTIMES.values()} - {""}
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else found(name))
    for package in (*packages, "onnx", "grpc", "pynq", "cuda", "tvm_ffi"):
        monkeypatch.setitem(sys.modules, package, None)
    for runtime in RUNTIMES.values():
        monkeypatch.delitem(sys.modules, runtime.options_module, raising=False)


def lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["runtimes", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_each_runtime_has_one_row_with_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    shown = lines(capsys)
    assert [line.split()[0] for line in shown if line.split()[:1] and line.split()[0] in RUNTIMES] == list(RUNTIMES)
    row = next(line for line in shown if line.startswith("onnxruntime "))
    assert importlib.import_module("onnxruntime").__version__ in row
    assert "part of joulewatch" in next(line for line in shown if line.startswith("process "))
    assert all(len(line) <= 80 for line in shown)
    assert "To install onnxruntime" not in "\n".join(shown)


@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_runtime_shows_the_command_that_installs_it(capsys: pytest.CaptureFixture[str]) -> None:
    shown = lines(capsys)
    assert next(line for line in shown if line.startswith("torch ")).split()[1] == "no"
    assert "To install torch: .venv/bin/pip install -e '.[torch]'" in shown
    assert "To install process" not in "\n".join(shown)


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("name", RUNTIMES)
def test_options_are_listed_although_the_package_is_missing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (document,) = json.loads("\n".join(lines(capsys, name, "--format", "json")))
    options = importlib.import_module(RUNTIMES[name].options_module).Options
    assert set(document["options"]) == set(options.keys())
    assert all(option["meaning"] and option["values"] for option in document["options"].values()), document
    assert (document["installed"] is None) == bool(RUNTIMES[name].package)
    text = lines(capsys, name)
    assert all(len(line) <= 80 for line in text)
    assert all(any(line.startswith(option) for line in text) for option in document["options"])


def test_an_option_is_listed_with_its_default_values_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    (document,) = json.loads("\n".join(lines(capsys, "onnxruntime", "--format", "json")))
    assert document["options"]["threads"] == {
        "default": None,
        "values": "an integer >= 1",
        "meaning": "Threads within an operator. Default: one per physical core.",
    }
    assert document["options"]["spinning"]["default"] == "true"
    assert document["options"]["spinning"]["values"] == "true or false"
    assert document["options"]["optimization"]["values"] == "disabled, basic, extended or all"
    assert document["options"]["inputs"]["values"] == "a path"
    assert document["experimental"] == "not run on devices other than CPUs"
    shown = lines(capsys, "finn", "--format", "csv")
    assert shown[0] == "option,default,values,meaning"
    assert 'inputs,,"a path, or several separated by commas",' in "\n".join(shown)
    (document,) = json.loads("\n".join(lines(capsys, "openai", "--format", "json")))
    assert document["options"]["timeout_s"]["values"] == "a number > 0 and <= 86400 (seconds)"
    assert document["options"]["timeout_s"]["default"] == "60"


def test_json_and_csv_list_all_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    documents = json.loads("\n".join(lines(capsys, "--format", "json")))
    assert [document["name"] for document in documents] == list(RUNTIMES)
    assert lines(capsys, "--format", "csv")[0] == "runtime,installed,summary"


def test_an_unknown_runtime_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["runtimes", "openvinno"])
    assert "did you mean openvino?" in capsys.readouterr().err
