"""The public package: its names, its import, and its own meter in each process."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import joulewatch
from joulewatch_harness.storage.journal import list_runs
from support.counting_exporter import CountingExporter
from support.paths import ROOT

LIMIT_S = 0.06


def python(program: str, folder: Path, *words: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program, *words]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_all_names_exist_and_have_documentation() -> None:
    assert joulewatch.__all__ == sorted(joulewatch.__all__)
    assert dir(joulewatch) == joulewatch.__all__
    for name in joulewatch.__all__:
        value = getattr(joulewatch, name)
        if name != "__version__":
            assert inspect.getdoc(value), name
            assert inspect.isclass(value) or inspect.isfunction(value), name
    assert joulewatch.__doc__
    with pytest.raises(AttributeError, match="no attribute 'measur'"):
        _ = joulewatch.measur  # type: ignore[attr-defined]
    for name in joulewatch.__all__:
        module = importlib.import_module(
            getattr(joulewatch, name).__module__ if name != "__version__" else "joulewatch"
        )
        assert hasattr(module, name)


def test_public_methods_have_documentation() -> None:
    for value in (joulewatch.Meter, joulewatch.Measurement, joulewatch.Energy, joulewatch.Run, joulewatch.Result):
        for name, member in inspect.getmembers(value):
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert inspect.getdoc(member), f"{value.__name__}.{name}"


def test_the_package_is_typed() -> None:
    assert (ROOT / "harness/joulewatch/py.typed").is_file()


def test_the_import_is_fast_and_light(tmp_path: Path) -> None:
    heavy = "[name for name in ('numpy', 'matplotlib', 'requests', 'rich', 'asyncio', 'ssl') if name in sys.modules]"
    assert python(f"import sys, joulewatch; print({heavy})", tmp_path) == "[]\n"
    # Processor time, which does not depend on what else runs.
    program = "import time; start = time.process_time(); import joulewatch; print(time.process_time() - start)"
    assert min(float(python(program, tmp_path)) for _ in range(5)) < LIMIT_S


def test_a_meter_opens_without_numpy(tmp_path: Path) -> None:
    program = (
        "import sys, joulewatch\n"
        "with joulewatch.Meter(sys.argv[1]) as meter, meter.measure('a') as window: pass\n"
        "print('numpy' in sys.modules, 'matplotlib' in sys.modules)"
    )
    with CountingExporter() as exporter:
        assert python(program, tmp_path, exporter.url) == "False False\n"


FORK = """
import joulewatch, json, os, sys, time
def busy():
    end = time.perf_counter() + 0.01
    while time.perf_counter() < end: pass
meter = joulewatch.Meter(sys.argv[1], output="own")
meter.open()
with joulewatch.measure("parent") as outer:
    read, write = os.pipe()
    with meter.measure("across") as across:
        child = os.fork()
        if child == 0:
            texts = []
            try:
                meter.begin("child")
            except joulewatch.ConfigError as error:
                texts.append(str(error))
            across.end()
            try:
                across.joules
            except joulewatch.ConfigError as error:
                texts.append(str(error))
            with joulewatch.measure("child") as window:
                busy()
            texts.append(window.seconds > 0)
            os.write(write, json.dumps(texts).encode())
            sys.exit(0)   # runs what is registered for the end of the program
        os.waitpid(child, 0)
        busy()
assert across.seconds < outer.seconds
meter.close()
print(os.read(read, 10000).decode())
"""


def test_a_forked_process_has_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes nothing into the parent's runs, and cannot close them."""
    with CountingExporter() as exporter:
        monkeypatch.setenv("JOULEWATCH_EXPORTER", exporter.url)
        refused, lost, measured = json.loads(python(FORK, tmp_path, exporter.url))
    assert "a forked process" in refused
    assert "was forked inside the window" in lost
    assert measured
    runs = {run.windows[0].configuration: run for run in list_runs(tmp_path / "runs").values()}
    assert {name: len(run.windows) for name, run in runs.items()} == {"parent": 1, "child": 1}
    assert all(run.end is not None and run.end.status == "complete" for run in runs.values())
    (own,) = list_runs(tmp_path / "own").values()
    assert [window.configuration for window in own.windows] == ["across"]


def test_a_program_that_ends_inside_a_window(tmp_path: Path) -> None:
    program = "import sys, joulewatch\njoulewatch.Meter(sys.argv[1]).begin('a')\nsys.exit(0)"
    with CountingExporter() as exporter:
        python(program, tmp_path, exporter.url)
    (run,) = list_runs(tmp_path / "runs").values()
    assert run.windows == ()
    assert run.end is not None
    assert [note.text for note in run.notes] == ["window 'a' was still open at the end of the run"]


def test_load_by_id_and_by_folder(tmp_path: Path) -> None:
    with CountingExporter() as exporter, joulewatch.Meter(exporter.url, output=tmp_path) as meter:
        for name in ("a", "b"):
            with meter.measure(name, inferences=4):
                end_s = time.perf_counter() + 0.01
                while time.perf_counter() < end_s:
                    pass
    run = joulewatch.load(meter.folder)
    assert joulewatch.load(meter.run[:-2], output=tmp_path).id == run.id == meter.run
    assert [result.name for result in run] == ["a", "b"]
    assert len(run) == 2
    assert run["a", 1].name == "a"
    with pytest.raises(KeyError, match="unknown configuration 'c'"):
        _ = run["c"]
    with pytest.raises(KeyError, match="batch sizes 1"):
        _ = run["a", 8]
    assert json.loads(run.to_json())["run"]["id"] == run.id
    assert "EMULATED" not in str(run)
    with pytest.raises(joulewatch.QueryError, match=r'unknown run .*; use prometheus="URL" if it is stored there'):
        joulewatch.load("2020", output=tmp_path)


def test_results_as_a_data_frame(tmp_path: Path) -> None:
    with CountingExporter() as exporter, joulewatch.Meter(exporter.url, output=tmp_path) as meter:
        for _ in range(3):
            meter.begin("a", inferences=4).end()
    frame = meter.results().to_pandas()
    assert list(frame["configuration"]) == ["a"]
    assert frame.loc[0, "inferences"] == 12
    assert frame.loc[0, "joules"] == pytest.approx(meter.results()["a"].joules_per_inference)
    assert frame.loc[0, "cpu_joules"] == frame.loc[0, "joules"]


def test_without_pandas_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with CountingExporter() as exporter, joulewatch.Meter(exporter.url, output=tmp_path) as meter:
        meter.begin("a").end()
    with pytest.raises(joulewatch.ConfigError, match=r"joulewatch\[pandas\]"):
        meter.results().to_pandas()


def test_profile_checks_its_keys(tmp_path: Path) -> None:
    with pytest.raises(joulewatch.ConfigError, match="did you mean rounds"):
        joulewatch.profile(round=3)
    plan = tmp_path / "plan.yaml"
    plan.write_text("preset: qick\n")
    with pytest.raises(joulewatch.ConfigError, match="did you mean quick"):
        joulewatch.profile(plan)
