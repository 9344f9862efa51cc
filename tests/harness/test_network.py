"""Runtimes by name, custom networks, and the example of the README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import MarksOnly, Network, Phases
from joulewatch_harness.records import Configuration
from joulewatch_harness.runtimes import as_loaded, custom_network, open_network

README = Path(__file__).parents[2] / "harness" / "README.md"

FIVE = """
class Five:
    def __init__(self, precision="none", **options): self.got = {"precision": precision, **options}
    def describe(self): return self.got
    def load(self): pass
    def prepare(self, batch): pass
    def run(self, batches, phases): pass
    def close(self): pass
"""


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def configuration(network: str, **keys: Any) -> Configuration:
    return Configuration(**{"name": "n", "network": network, "runtime": "python", "precision": "native", **keys})


def test_the_example_of_the_readme_is_a_network_in_about_twenty_lines(tmp_path: Path) -> None:
    match = re.search(r"```python\n(# mine\.py\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    assert len([line for line in match[1].splitlines() if line.strip()]) <= 24
    network = open_network(configuration(f"{write(tmp_path, match[1])}:Mine", options={"width": "16"}))
    assert isinstance(network, Network)
    network.load()
    network.prepare(4)
    phases = Phases()
    network.run(3, phases)
    assert len(phases.batch_ends_ns) == 3
    assert as_loaded(configuration("x"), network.describe()).runtime == "numpy"
    network.close()
    network.close()


@pytest.mark.parametrize("kind", [Phases, MarksOnly])
def test_repeat_records_the_same_as_a_phase_around_each_launch(
    kind: type[Phases], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1_000, 2_000))
    monkeypatch.setattr("joulewatch_harness.network.time.monotonic_ns", lambda: next(clock))
    seen: list[int] = []

    def launch() -> int:
        for _ in range(10):
            next(clock)
        seen.append(len(seen))
        return seen[-1]

    repeated = kind()
    assert repeated.repeat(3, launch) == 2
    by_hand = kind()
    for _ in range(3):
        with by_hand("execute"):
            launch()
        by_hand.batch()
    assert repeated.spans == by_hand.spans == ({"execute": [3, 33]} if kind is Phases else {})
    assert len(repeated.batch_ends_ns) == len(by_hand.batch_ends_ns) == 3
    assert kind().repeat(0, launch) is None


def test_a_network_may_be_a_class_a_function_or_an_object(tmp_path: Path) -> None:
    path = write(tmp_path, f"{FIVE}\ndef make(precision): return Five(precision)\nready = Five('its own')\n")
    assert custom_network(f"{path}:Five", "int8", {"a": "1"}).describe() == {"precision": "int8", "a": "1"}
    assert custom_network(f"{path}:make", "int8", {}).describe() == {"precision": "int8"}
    assert custom_network(f"{path}:ready", "int8", {}).describe() == {"precision": "its own"}


def test_a_module_in_the_working_directory_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FIVE, "own_network_of_a_test.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert custom_network("own_network_of_a_test:Five", "fp32", {}).describe()["precision"] == "fp32"


def test_a_file_with_the_name_of_a_package_does_not_replace_the_package(tmp_path: Path) -> None:
    import json

    custom_network(f"{write(tmp_path, FIVE, 'json.py')}:Five", "fp32", {})
    import json as again

    assert again is json
    assert hasattr(again, "dumps")


@pytest.mark.parametrize("missing", ["describe", "load", "prepare", "run", "close"])
def test_the_error_names_a_missing_method(tmp_path: Path, missing: str) -> None:
    path = write(tmp_path, FIVE.replace(f"def {missing}", "def other"))
    with pytest.raises(ConfigError, match=f"mine.py:Five has no method '{missing}'"):
        custom_network(f"{path}:Five", "native", {})


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (FIVE, "Six", "has no 'Six'"),
        ("1 +", "Five", "cannot be imported: SyntaxError"),
        ("raise RuntimeError('boom')", "Five", "RuntimeError: boom"),
        ("def make(): raise ValueError('no card')", "make", "cannot be created: ValueError: no card"),
        ("def make(width=1): pass", "make", "unknown option 'widht'; did you mean width"),
        (f"{FIVE}\nready = Five()", "ready", "does not accept the option 'widht'"),
    ],
)
def test_the_error_says_why_a_network_cannot_be_used(tmp_path: Path, text: str, name: str, message: str) -> None:
    options = {"widht": "1"} if "option" in message else {}
    with pytest.raises(ConfigError, match=message):
        custom_network(f"{write(tmp_path, text)}:{name}", "native", options)


def test_the_error_names_a_missing_file_or_module(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file .*none\.py"):
        custom_network(f"{tmp_path / 'none.py'}:Five", "native", {})
    with pytest.raises(ConfigError, match="no module 'not_a_module_at_all'"):
        custom_network("not_a_module_at_all:Five", "native", {})


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import package_that_is_missing", "ModuleNotFoundError: No module named 'package_that_is_missing' ({}:1)"),
        ("import json\njson.loads('{')", "JSONDecodeError: "),
        ("\n\nx = 1 / 0", "ZeroDivisionError: division by zero ({}:3)"),
        ("def f(:", "SyntaxError: invalid syntax ({}:1)"),
    ],
)
def test_an_error_in_a_users_file_shows_file_line_and_exception(tmp_path: Path, code: str, text: str) -> None:
    """The last line of the user's own code, also where the error comes from a library that it calls."""
    file = write(tmp_path, code)
    with pytest.raises(ConfigError) as caught:
        custom_network(f"{file}:Five", "native", {})
    assert text.format(file) in str(caught.value)
    assert f"({file}:" in str(caught.value)


def test_the_error_of_an_unknown_runtime_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown runtime 'onxruntime'; did you mean onnxruntime"):
        open_network(configuration("radioml-vgg10", runtime="onxruntime"))


def test_a_custom_network_cannot_have_another_runtime() -> None:
    with pytest.raises(ConfigError, match="is a custom network: remove the runtime"):
        open_network(configuration("mine.py:Five", runtime="onnxruntime"))


def test_as_loaded_keeps_the_requested_values_and_adds_the_actual_ones() -> None:
    requested = configuration("a.onnx", runtime="onnxruntime", precision="fp32")
    reported = {
        "precision": "fp32",
        "provider": "P",
        "device": "cpu",
        "threads": 2,
        "long": "x" * 501,
        "model_sha256": None,
    }
    loaded = as_loaded(requested, reported)
    assert (loaded.precision, loaded.actual_precision, loaded.provider, loaded.device) == ("fp32", "fp32", "P", "cpu")
    assert loaded.details == {"threads": "2"}
    assert as_loaded(configuration("a.onnx"), {"precision": "bf16"}).precision == "bf16"
    assert as_loaded(configuration("a.onnx"), {}).precision == "native"


def test_a_precision_that_the_network_does_not_report_is_not_checked() -> None:
    assert as_loaded(configuration("m:N", precision="int5"), {}).actual_precision == ""


def test_names_without_a_near_one_are_listed() -> None:
    assert unknown("key", "zzz", ["b", "a"]) == "unknown key 'zzz' (known: a, b)"
