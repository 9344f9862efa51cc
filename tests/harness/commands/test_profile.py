"""``joulewatch profile``: flags over the file, and bad input that costs nothing and leaves nothing behind."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from joulewatch_harness import cli
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.clocktime import to_ms
from joulewatch_harness.commands import profile
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.plan.plan import Plan
from joulewatch_harness.records import ExporterRecord
from joulewatch_harness.runner import network_checks, preflight
from support.loopback import page_server
from support.servers import free_port
from support.synthetic import TWO_SOCKETS, make_world

MINE = """
class Mine:
    def __init__(self, answer="yes"): self.answer = answer
    def describe(self): return {"precision": "fp32", "runtime": "numpy"}
    def load(self): pass
    def prepare(self, batch): pass
    def run(self, batches, phases): pass
    def close(self): pass
    def check(self): return self.answer == "yes"
"""


def plan_of(*words: str) -> Plan:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    return profile.plan_from(parser.parse_args(words))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network that does nothing."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_anything_it_is_the_main_job() -> None:
    plan = plan_of()
    assert [item.precision for item in plan.configurations] == ["fp32", "int8"]
    assert {item.network for item in plan.configurations} == {"radioml-vgg10"}
    assert plan.output == "runs"


def test_flags_beat_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("preset: quick\nrounds: 4\nseed: 7\nbatch_sizes: [2]\nnetworks: []\n".replace("networks: []\n", ""))
    plan = plan_of(str(path), "--rounds", "5", "--batch-sizes", "1..4", "--window", "3", "--output", "elsewhere")
    assert (plan.rounds, plan.seed, plan.preset, plan.window_s) == (5, 7, "quick", 3.0)
    assert plan.batch_sizes == (1, 2, 4)
    assert plan.output == "elsewhere"


def test_models_precisions_options_and_threads_make_configurations() -> None:
    plan = plan_of("--model", "nets/a.onnx", "--network", "m.py:M", "--option", "seed=2", "--threads", "1")
    assert [(item.target, item.runtime, item.precision) for item in plan.configurations] == [
        ("m.py:M", "python", "native"),
        ("nets/a.onnx", "onnxruntime", "native"),
    ]
    assert all(item.options == {"seed": "2", "threads": "1"} for item in plan.configurations)
    assert [item.precision for item in plan_of("--precision", "int8, fp32").configurations] == ["int8", "fp32"]
    assert [item.options for item in plan_of("--option", "filters=32").configurations] == [{"filters": "32"}] * 2


def test_exporters_and_their_flags() -> None:
    plan = plan_of("--exporter", "http://a:1", "--exporter", "http://b:2", "--exporter.flags", "--path.sysfs='a b' -x")
    assert [item.url for item in plan.exporters] == ["http://a:1", "http://b:2"]
    assert plan.exporter_flags == ("--path.sysfs=a b", "-x")


def test_an_exporter_under_two_names_or_addresses_is_an_error() -> None:
    def exporter(name: str, nodename: str = "n1", started_at_s: float | None = 5.25) -> ExporterRecord:
        return ExporterRecord(name=name, url=f"http://{name}", nodename=nodename, started_at_s=started_at_s)

    preflight.check_distinct([exporter("a:1"), exporter("b:1", "n2"), exporter("c:1", started_at_s=5.5)])
    preflight.check_distinct([exporter("a:1", started_at_s=None), exporter("b:1", started_at_s=None)])
    with pytest.raises(ConfigError, match="two exporters are named 'a:1'"):
        preflight.check_distinct([exporter("a:1"), dataclasses.replace(exporter("a:1", "n2"), url="http://b:1")])
    with pytest.raises(ConfigError, match="exporter http://a:1 is given twice"):
        preflight.check_distinct([exporter("a:1"), exporter("a:1")])
    with pytest.raises(ConfigError, match=r"http://a:1 and http://b:1 are one exporter \(nodename n1\): give it once"):
        preflight.check_distinct([exporter("a:1"), exporter("c:1", "n2"), exporter("b:1")])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--batch-sizes", "0"], "batch_sizes: a batch size must be an integer from 1 to 16777216, got '0'"),
        (["--batch-sizes", "many"], "got 'many'"),
        (["--runtime", "onxruntime"], "did you mean onnxruntime"),
        (["--network", "radioml-vgg"], "did you mean radioml-vgg10"),
        (["--model", "none.onnx"], "no model file none.onnx"),
        (["--model", "mine.py.onnx"], "model file mine.py.onnx"),
        (["--network", "mine.py:Other"], "mine.py has no 'Other'"),
        (
            ["--network", "mine.py:Mine", "--precision", "int8"],
            "the precision int8 was requested, but the network computes in fp32",
        ),
        (["--network", "mine.py:Mine", "--option", "anser=no"], "did you mean answer"),
        (["--option", "threads"], "must be KEY=VALUE"),
        (["--preset", "fast"], "preset: unknown value 'fast'"),
        (["--rounds", "1"], "rounds: must be an integer >= 3, got 1"),
        (["--window", "0.01"], "window_s: must be a number >= 0.02 (seconds), got 0.01"),
        (["--rounds", "x"], "argument --rounds"),
        (["plan.yaml"], "plan.yaml: cannot be read: No such file"),
        (["bad.yaml"], "bad.yaml: unknown key 'batchsizes'; did you mean batch_sizes"),
        (["--pushgateway", "http://127.0.0.1:1"], "--pushgateway needs --prometheus"),
        (["--grafana", "http://g:3000"], "--grafana needs --prometheus"),
        (["my.onnx"], "my.onnx: is not a plan; a model file is named with --model my.onnx"),
        (["--prometheus", "localhost:9090"], "is not a valid URL"),
        (["--figure", "figure.txt"], ".png, .svg, .pdf"),
        (["--cpus", "4096"], "cpus: 4096 cannot be used"),
        (["--cpus", "0", "--no-isolate"], "cpus requires isolate: true"),
        (["--scenario", "servr"], "unknown scenario 'servr'; did you mean server"),
        (["--scenario", "server"], "server_rate_per_s is missing"),
        (["--scenario", "server", "--server-rate", "nan"], "must be a number, got 'nan'"),
        (["--server-rate", "5"], "--server-rate needs --scenario server"),
        (["--phases", "none"], "phases: unknown value 'none'"),
        (["--isolate", "--network", "mine.py:Other"], "mine.py has no 'Other'"),
        (["--isolate", "--model", "none.onnx"], "no model file none.onnx"),
        (
            ["--isolate", "--network", "mine.py:Mine", "--precision", "int8"],
            "the precision int8 was requested, but the network computes in fp32",
        ),
        (["--figure", "nowhere/figure.png"], "the directory nowhere does not exist"),
    ],
)
def test_bad_input_ends_with_code_2_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    pytest.importorskip("onnxruntime")
    (folder / "mine.py.onnx").write_bytes(b"no model")
    (folder / "bad.yaml").write_text("batchsizes: 3\n")
    try:
        code = cli.main(["profile", *words])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    output = capsys.readouterr()
    assert text in output.err
    assert output.out == ""
    assert code == 2
    assert not (folder / "runs").exists() or not list((folder / "runs").iterdir())


def run_mine(*words: str) -> int:
    return cli.main(["profile", "--network", "mine.py:Mine", *words])


def test_a_network_whose_own_check_fails_is_not_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_mine("--option", "answer=no") == 1
    assert "its check reports wrong outputs" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_an_output_folder_that_cannot_be_made_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_mine("--output", "mine.py/runs") == 2
    assert "output folder mine.py/runs" in capsys.readouterr().err


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Answers every request with the text in ``request.param``."""
    with page_server(request.param) as started:
        yield started.url


def test_an_exporter_that_does_not_answer_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert run_mine("--exporter", url) == 2
    assert f"exporter {url}" in capsys.readouterr().err
    assert list((folder / "runs").iterdir()) == []


@pytest.mark.parametrize("server", ["<html>hello</html>"], indirect=True)
def test_html_is_neither_an_exporter_nor_a_prometheus(
    folder: Path, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    assert run_mine("--exporter", server) == 2
    assert "is not a joulewatch exporter" in capsys.readouterr().err
    assert run_mine("--prometheus", server) == 2
    assert server in capsys.readouterr().err
    assert list((folder / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "server",
    ['joulewatch_exporter_info{version="1",pythonversion="3",nodename="n",emulated="0"} 1\n'],
    indirect=True,
)
def test_an_exporter_without_a_sensor_is_an_error_with_a_fix(
    folder: Path, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    assert run_mine("--exporter", server) == 2
    assert "measures no energy: run 'joulewatch-exporter check'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "server",
    [
        'joulewatch_exporter_info{version="1",pythonversion="3",nodename="n",emulated="0"} 1\n'
        'joulewatch_sensor_state{collector="hwmon",device="gpu0",state="asleep"} 1\n'
    ],
    indirect=True,
)
def test_an_exporter_whose_devices_are_all_asleep_is_an_error_with_a_fix(
    folder: Path, capsys: pytest.CaptureFixture[str], server: str
) -> None:
    assert run_mine("--exporter", server) == 2
    assert "measures no energy now: hwmon gpu0 asleep (runtime suspend). Keep" in capsys.readouterr().err


def test_native_precisions_are_named_by_what_was_loaded(folder: Path) -> None:
    plan, networks, _ = network_checks.check_networks(plan_of("--network", "mine.py:Mine"), contextlib.ExitStack())
    assert plan.configurations[0].name == "Mine/numpy/fp32"
    assert networks[0][0] == plan.configurations[0]


def test_a_run_folder_without_a_journal_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), preflight.run_folder(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "exporter.log").write_text("one log line")
        raise ConfigError("later")
    assert list((tmp_path / "runs").iterdir()) == []
    with preflight.run_folder(tmp_path / "runs" / "b"):
        (tmp_path / "runs" / "b" / "journal.jsonl").write_text("{}")
    assert (tmp_path / "runs" / "b").exists()


@pytest.mark.parametrize(
    ("keys", "words", "message"),
    [
        ("rounds: 4", ["--rounds", "1"], "command line: rounds: must be an integer >= 3, got 1"),
        ("rounds: 4", ["--max-uncertainty", "abc"], "command line: max_relative_uncertainty: must be a share such as"),
        ("rounds: 1", [], r"plan .*plan\.yaml: rounds: must be an integer >= 3, got 1"),
        ("seed: x", ["--rounds", "5"], r"plan .*plan\.yaml: seed: must be an integer"),
    ],
)
def test_an_error_in_a_flag_does_not_name_the_file(tmp_path: Path, keys: str, words: list[str], message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(keys)
    with pytest.raises(ConfigError, match=f"^{message}"):
        plan_of(str(path), *words)


def test_results_that_cannot_be_published_are_reported_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_world(TWO_SOCKETS).record
    assert record is not None
    options = PrometheusOptions(f"http://127.0.0.1:{free_port()}")
    profile._publish(analyze_run(record, None), options, "joulewatch analyze runs/1 --prometheus URL")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("the results are not on the dashboards: ")
    assert lines[-1] == "Try again with: joulewatch analyze runs/1 --prometheus URL --publish"


def test_a_link_without_grafana_is_a_path() -> None:
    record = make_world(TWO_SOCKETS).record
    assert record is not None and record.end is not None
    started_ms, ended_ms = to_ms(record.header.started_at_s), to_ms(record.end.ended_at_s)
    assert profile.dashboard_link(record, "") == (
        f"/d/joulewatch-experiment?var-run={record.header.run}&from={started_ms}&to={ended_ms + 60_000}"
    )
