"""A child process: what it says is checked before it is believed, and whatever it does costs one batch size at most."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from jsonschema import Draft202012Validator

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError, describe
from joulewatch_harness.network import Phases
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.runner.latency import phase_times
from joulewatch_harness.runner.runner import reason_code
from joulewatch_harness.runtimes.process import network as runtime
from joulewatch_harness.runtimes.process import options as process_options
from joulewatch_harness.runtimes.process.child import LARGEST_STDERR_BYTES, Child, Stderr, request
from joulewatch_harness.runtimes.process.network import OutOfMemoryError, ProcessNetwork
from support.process_protocol import CHILD, SCHEMA, TOP, errors_in, gone, validate_transcript


class Open(Protocol):
    def __call__(self, fault: str = "", batch: int = 0, **options: str) -> ProcessNetwork: ...


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Make a network of the faulty child, not yet loaded; all are closed in the end."""
    made: list[ProcessNetwork] = []

    def make(fault: str = "", batch: int = 0, **options: str) -> ProcessNetwork:
        command = f"{sys.executable} -S {CHILD} {fault} {batch}"
        network = runtime.open_network("vgg10", "native", {"command": command, "cwd": str(tmp_path), **options})
        made.append(network)
        return network

    yield make
    for network in made:
        network.close()


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert errors_in({"id": 1, "op": "run", "batches": 0, "phases": True, "batch_ends": True}, "request")
    assert errors_in({"id": 1, "ok": True, "protocol": 2}, "answer_describe")
    assert errors_in({"id": 1, "ok": False}, "error")


def test_the_session_in_the_specification_is_valid() -> None:
    text = (TOP / "harness" / "PROTOCOL.md").read_text()
    session = re.findall(r"```text\n(.*?)```", text, re.DOTALL)[-1]
    # The document breaks long messages; a continuation line is indented.
    ops = validate_transcript(re.sub(r"\n +", "", session))
    assert ops == ["describe", "load", "describe", "ping", "check", "prepare", "run", "prepare", "close"]


def test_the_specification_names_every_option_and_limit() -> None:
    text = (TOP / "harness" / "PROTOCOL.md").read_text()
    for name in {*runtime.Options.keys(), "env.NAME"} - {"env", "any_precision"}:
        assert f"`{name}`" in text, name
    for name, limit_s in process_options._LIMITS.items():
        assert f"`{name}` {limit_s:g}" in text


def test_the_example_plan_is_a_plan() -> None:
    plan = make_plan(yaml.safe_load((TOP / "harness" / "examples" / "process.yaml").read_text()), "example")
    assert {item.runtime for item in plan.configurations} == {"process"}
    assert all("command" in item.options for item in plan.configurations)


def test_a_child_is_described_and_measured(opened: Open, tmp_path: Path) -> None:
    network = opened(transcript=str(tmp_path / "transcript.jsonl"), threads="3")
    assert network.describe() == {"runtime": "process"}
    network.load()
    description = network.describe()
    assert description["runtime_version"] == "fake 2.1"
    assert (description["precision"], description["provider"], description["device"], description["threads"]) == (
        "int8",
        "Simulator",
        "u280",
        3,
    )
    assert (description["clock_mhz"], description["tuned"], description["protocol"]) == ("250", "no", 1)
    assert float(description["pipe_us"]) > 0
    assert "call_overhead_us" not in description
    assert network.check()
    network.prepare(8)
    phases = Phases()
    before_ns = time.monotonic_ns()
    network.run(5, phases)
    network.run(5, phases)
    after_ns = time.monotonic_ns()
    assert phases.spans["execute"][0] == phases.spans["copy_in"][0] == 10
    assert 0 < sum(ns for _, ns in phases.spans.values()) < after_ns - before_ns
    assert len(phases.batch_ends_ns) == 10
    assert before_ns < phases.batch_ends_ns[0] < phases.batch_ends_ns[-1] < after_ns
    assert phases.call_ns is not None
    t0_ns, t1_ns = phases.call_ns
    assert phases.batch_ends_ns[4] < t0_ns < phases.batch_ends_ns[5], "of the last call, on the child's clock"
    assert t1_ns - t0_ns == network.last_loop_ns
    assert float(network.describe()["call_overhead_us"]) > 0
    network.close()
    network.close()
    ops = validate_transcript((tmp_path / "transcript.jsonl").read_text())
    assert ops == ["describe", "load", "describe"] + ["ping"] * runtime.PINGS + [
        "check",
        "prepare",
        "run",
        "run",
        "close",
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"batches": 12345, "phases": True, "batch_ends": False},
        {"network": 'a "b" \\ /ü\n\x00😀', "precision": "native", "threads": 1},
    ],
)
def test_a_request_is_the_json_that_json_would_write(fields: dict[str, str | int | bool]) -> None:
    line = request(7, "run", fields)
    assert line == json.dumps({"id": 7, "op": "run", **fields}, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(("line", "good"), [(r'  {"id":1,"ok":true} \t\r\n', True), (r'{"id":1,"ok":true}{}\n', False)])
def test_a_line_is_one_message_with_blanks_around_it(line: str, good: bool) -> None:
    words = ("/bin/sh", "sh", "-c", f"read request; printf '{line}'; read request")
    child = Child.start("the child", words, cwd=None, environment={}, stderr=None, transcript=None)
    try:
        if good:
            assert child.ask("ping", {}, limit_s=60.0, limit_option="").message == {"id": 1, "ok": True}
        else:
            with pytest.raises(NetworkError, match="wrote an invalid message in answer to ping"):
                child.ask("ping", {}, limit_s=60.0, limit_option="")
    finally:
        child.end()


def test_it_can_be_loaded_again_after_close(opened: Open) -> None:
    """The harness loads once to look, lets go for the idle window, and loads again."""
    network = opened("environment")
    network.load()
    first = network.describe()["pid"]
    network.close()
    assert gone(int(first))
    network.load()
    assert network.describe()["pid"] != first
    network.prepare(1)
    network.run(1, Phases())


def test_folder_and_environment(opened: Open, tmp_path: Path) -> None:
    options = {"env.JOULEWATCH_TEST": "a b=c"}
    network = opened("environment", **options)
    network.load()
    description = network.describe()
    assert (description["value"], description["cwd"]) == ("a b=c", tmp_path.name)


def test_a_program_is_found_in_its_folder(tmp_path: Path) -> None:
    script = tmp_path / "child"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {CHILD} "$@"\n')
    with pytest.raises(ConfigError, match=r"is not executable: chmod \+x .*child"):
        runtime.open_network("n", "native", {"command": "./child", "cwd": str(tmp_path)})
    script.chmod(0o755)
    network = runtime.open_network("n", "native", {"command": "./child 'no_phases' 0", "cwd": str(tmp_path)})
    network.load()
    network.close()


def test_a_child_without_phases_has_execute_and_the_rest_is_other(opened: Open) -> None:
    network = opened("no_phases")
    network.load()
    network.prepare(1)
    phases = Phases()
    start_ns = time.monotonic_ns()
    network.run(4, phases)
    duration_ns = time.monotonic_ns() - start_ns
    assert list(phases.spans) == ["execute"]
    assert phases.spans["execute"][0] == 4
    assert not phases.batch_ends_ns
    times = phase_times(phases, duration_ns, 4)
    assert 0 < times["other"].total_s < duration_ns * 1e-9


def test_phases_can_be_disabled_to_measure_their_cost(opened: Open, tmp_path: Path) -> None:
    network = opened(phases="false", transcript=str(tmp_path / "t"))
    network.load()
    network.prepare(1)
    phases = Phases()
    network.run(2, phases)
    assert phases.spans == {}
    assert len(phases.batch_ends_ns) == 2
    assert '"phases":false' in (tmp_path / "t").read_text()


def test_calls_of_very_many_batches_are_not_stamped(
    opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runtime, "MOST_BATCH_ENDS", 3)
    network = opened(transcript=str(tmp_path / "t"))
    network.load()
    network.prepare(1)
    phases = Phases()
    network.run(3, phases)
    assert len(phases.batch_ends_ns) == 3
    network.run(4, phases)
    assert len(phases.batch_ends_ns) == 3
    assert '"batch_ends":false' in (tmp_path / "t").read_text()


@pytest.mark.parametrize("fault", ["status_one", "slow_start", "talkative"])
def test_harmless_behaviour_is_accepted(opened: Open, fault: str) -> None:
    network = opened(fault)
    network.load()
    assert network.check()
    network.prepare(1)
    network.run(1, Phases())
    network.close()


# Faults at the start


@pytest.mark.parametrize(
    ("fault", "options", "text"),
    [
        ("crash_at_start", {}, r"ended before it answered describe \(exit status 7\); .*no such device: u280"),
        ("never_starts", {"start_limit_s": "0.2"}, r"did not answer describe within 0\.2 s \(option start_limit_s\)"),
        ("slow_load", {"load_limit_s": "0.2"}, r"did not answer load within 0\.2 s \(option load_limit_s\)"),
        ("slow_load", {"time_limit_s": "2"}, r"did not answer load within 2 s"),
        ("version", {}, r"has protocol 2, this joulewatch 1 \(see harness/PROTOCOL\.md\)"),
        ("no_precision", {}, r'sent an invalid answer to describe: "precision" must be a text, got None'),
        ("native", {}, "reports the precision 'native': it must report the actual one"),
        ("bad_details", {}, r'"details" must be an object'),
        ("bad_offers", {}, r'"offers" must be a list'),
    ],
)
def test_a_child_that_fails_to_start_is_an_error(
    opened: Open, fault: str, options: Mapping[str, str], text: str
) -> None:
    network = opened(fault, **options)
    with pytest.raises(NetworkError, match=text) as caught:
        network.load()
    assert "process vgg10" in str(caught.value)
    network.close()


def test_a_file_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "child"
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o755)
    network = runtime.open_network("n", "native", {"command": str(program)})
    with pytest.raises(NetworkError, match=r"exit status 127\).*child cannot be executed: Exec format error"):
        network.load()


@pytest.mark.parametrize(
    ("fault", "options", "text"),
    [
        ("", {"threads": "2"}, "2 threads were requested, but the child has 3"),
        ("no_threads", {"threads": "2"}, "2 threads were requested, but the child does not report its number"),
        ("bad_configuration", {}, "process vgg10: load: no int8 on this card"),
    ],
)
def test_a_child_that_differs_from_the_request_is_an_error(
    opened: Open, fault: str, options: Mapping[str, str], text: str
) -> None:
    network = opened(fault, **options)
    with pytest.raises(ConfigError, match=text):
        network.load()


# Faults in run


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            "crash",
            r"killed by SIGSEGV before it answered run \(batch size 512\); "
            r"it last wrote on stderr: allocating 3 GiB / \[31mfatal: device lost",
        ),
        (
            "oom_killed",
            r"killed by SIGKILL before it answered .* \(perhaps out of memory.*it wrote nothing on std",
        ),
        ("exit", r"ended before it answered run \(batch size 512\) \(exit status 3\); .*giving up"),
        ("exit_zero", r"ended before it answered run \(batch size 512\) \(exit status 0\)"),
        ("garbage", r"wrote an invalid message .*'INFO: loading model': stdout is for messages.* to stderr"),
        ("list", r"invalid message in answer to run \(batch size 512\): '\[1, 2\]'"),
        ("deep", r"invalid message .*'\[\[\[\[.*\.\.\.'"),
        ("bytes", r"invalid message"),
        ("long_line", r"a line of more than 4 MiB in answer to run .*'xxxx"),
        ("other_id", r"answered request \d+, but run \(batch size 512\) was request \d+"),
        ("no_ok", r'answered run \(batch size 512\) without "ok": true or false'),
    ],
)
def test_a_child_that_breaks_the_protocol_loses_only_that_batch_size(opened: Open, fault: str, text: str) -> None:
    network = opened(fault, 512)
    network.load()
    network.prepare(8)
    network.run(2, Phases())
    network.prepare(512)
    with pytest.raises(NetworkError, match=text):
        network.run(2, Phases())
    with pytest.raises(NetworkError, match=r"has ended and cannot run \(batch size 512\)"):
        network.run(2, Phases())
    network.prepare(16)
    phases = Phases()
    network.run(2, phases)
    assert phases.spans["execute"][0] == 2


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            "hang",
            r"did not answer run \(batch size 512\) within 0\.4 s \(option run_limit_s\) and was killed; .*waiting for",
        ),
        ("half_line", r"was killed \(it wrote '\{\"id\":' without a line's end\)"),
        ("close_stdout", r"closed its stdin or stdout instead of answering run \(batch size 512\)"),
    ],
)
def test_a_child_that_does_not_answer_is_killed_with_all_it_started(
    opened: Open, tmp_path: Path, fault: str, text: str
) -> None:
    network = opened(fault, 512, run_limit_s="0.4")
    network.load()
    network.prepare(512)
    with pytest.raises(NetworkError, match=text):
        network.run(2, Phases())
    if fault == "hang":
        assert gone(int((tmp_path / "grandchild").read_text()))
    network.prepare(8)


def test_two_lines_for_one_request_are_found(opened: Open) -> None:
    network = opened("two_lines", 512)
    network.load()
    network.prepare(512)
    network.run(1, Phases())
    with pytest.raises(
        NetworkError, match=r"wrote more than one line in answer.*'\{\"more\":1\}'|answered request None"
    ):
        network.run(1, Phases())


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("fewer", r'"batches" is 3, but 4 were requested'),
        ("wall_clock", r"t1_ns is \d+\.\d+ s after the answer came: times must be CLOCK_MONOTONIC"),
        ("early", r"t0_ns is 0\.9\d+ s before the request was sent|t0_ns is 1\.0\d+ s before the request was sent"),
        ("backwards", r"t1_ns is \d+ ns before t0_ns"),
        ("seconds", r'"t0_ns" must be an integer >= 0, got \d'),
        ("no_times", r'"t0_ns" must be an integer >= 0, got None'),
        ("overlap", r"the sum of the phases is \d+ ns, more than the \d+ ns.* must not overlap"),
        ("bad_phase", r"phase 'Copy In': must be a name of a-z"),
        ("negative_phase", r'"ns" must be an integer >= 0, got -1'),
        ("listed_phases", r'"phases" must be an object'),
        ("falling_ends", r'"batch_ends_ns" must rise'),
        ("late_ends", r'"batch_ends_ns" must rise'),
        ("few_ends", r"must have 4 numbers, one per batch, got 3 numbers"),
        ("float_ends", r'"batch_ends_ns" must contain integers'),
    ],
)
def test_impossible_times_are_refused(opened: Open, fault: str, text: str) -> None:
    network = opened(fault)
    network.load()
    network.prepare(8)
    phases = Phases()
    with pytest.raises(NetworkError, match=text) as caught:
        network.run(4, phases)
    assert "process vgg10: the child sent an invalid answer to run (batch size 8)" in str(caught.value)
    assert phases.spans == {}
    assert not phases.batch_ends_ns


@pytest.mark.parametrize(
    ("fault", "kind", "reason", "text"),
    [
        ("refuses", UnsupportedBatchError, "unsupported_batch", r"prepare \(batch size 512\): at most 256"),
        ("no_memory", OutOfMemoryError, "out_of_memory", r"prepare \(batch size 512\): 3 GiB wanted"),
        ("fails", NetworkError, "network_error", "the card says no"),
        ("unknown_code", NetworkError, "network_error", "whatever"),
        ("bad_configuration", ConfigError, "bad_configuration", "no int8"),
    ],
)
def test_error_answers_have_their_meaning_and_leave_the_child_alive(
    opened: Open, fault: str, kind: type[Exception], reason: str, text: str
) -> None:
    network = opened(fault, 512)
    if fault == "bad_configuration":
        with pytest.raises(kind, match=text):
            network.load()
        return
    network.load()
    child = network._child
    with pytest.raises(kind, match=text) as caught:
        network.prepare(512)
    assert reason_code(caught.value) == reason
    assert describe(caught.value) == str(caught.value)
    network.prepare(8)
    network.run(1, Phases())
    assert network._child is child


def test_a_restarted_child_must_have_the_same_description(opened: Open) -> None:
    network = opened("changes")
    network.load()
    network.prepare(8)
    with pytest.raises(NetworkError, match="exit status 0"):
        network.run(1, Phases())
    with pytest.raises(NetworkError, match="started again, and its device is 'u250', not 'u280' as before"):
        network.prepare(8)


def test_a_child_that_died_between_calls_is_started_again_with_a_warning(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    network = opened("environment")
    network.load()
    os.kill(int(network.describe()["pid"]), signal.SIGKILL)
    assert gone(int(network.describe()["pid"]))
    with caplog.at_level(logging.WARNING):
        network.prepare(8)
    assert "the child had ended (it wrote nothing on stderr); another one has been started" in caplog.text
    network.run(1, Phases())


# The check


@pytest.mark.parametrize(
    ("fault", "options", "text"),
    [
        ("zeros", {}, r"all values of its check are zero \(first, second\): that does not prove a computation"),
        ("zero_reference", {}, "all values of its check are zero"),
        ("wrong_value", {}, r"first is 0, but its own reference is 1\.5 \(relative tolerance 0\.001\)"),
        ("", {"reference": "second=-2.1"}, r"second is -2, but the plan's reference is -2\.1"),
        ("", {"reference": "second=-2.001", "tolerance": "1e-4"}, r"relative tolerance 0\.0001"),
        ("no_number", {}, "value 'first' of its check is nan, not a finite number"),
        ("bad_reference", {}, "no valid reference"),
        ("no_values", {}, 'has no "values"'),
    ],
)
def test_a_child_that_computes_wrongly_is_found(
    opened: Open, fault: str, options: Mapping[str, str], text: str
) -> None:
    network = opened(fault, **options)
    network.load()
    with pytest.raises(NetworkError, match=text):
        network.check()


def test_a_check_can_be_required_disabled_or_given_values(opened: Open) -> None:
    def checks(fault: str, **options: str) -> bool:
        network = opened(fault, **options)
        network.load()
        return network.check()

    assert checks("no_check")
    assert checks("zeros", check="false")
    assert checks("", check="true", reference="first=1.5,second=-2.0001")
    with pytest.raises(ConfigError, match="a check is required, but the child offers none"):
        checks("no_check", check="true")
    with pytest.raises(ConfigError, match="the child offers none"):
        checks("no_check", reference="first=1.5")
    with pytest.raises(ConfigError, match=r"unknown value 'frist'; did you mean first\?"):
        checks("", reference="frist=1.5")


# Its end


def test_a_child_that_does_not_close_is_killed(opened: Open) -> None:
    network = opened("never_closes", close_limit_s="0.2")
    network.load()
    child = network._child
    assert child is not None
    network.close()
    assert gone(child.pid)


def test_the_child_dies_with_joulewatch() -> None:
    """Also when it is killed and can clean up nothing."""
    code = (
        "import sys, time\n"
        "from joulewatch_harness.runtimes.process.network import open_network\n"
        "network = open_network('n', 'native', {'command': sys.argv[1]})\n"
        "network.load()\n"
        "print(network._child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(
            [sys.executable, "-c", code, f"{sys.executable} -S {CHILD}"], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert Path(f"/proc/{pid}").exists()
            parent.send_signal(number)
        assert gone(pid)


def test_the_answer_to_an_interrupted_request_is_not_used(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C calls away from a running request; its late answer belongs to nobody."""
    network = opened("environment")
    network.load()
    child = network._child
    assert child is not None
    with monkeypatch.context() as patch:
        patch.setattr(child, "_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            network.prepare(1)
    with pytest.raises(NetworkError, match="has not answered an earlier request"):
        network.run(1, Phases())
    network.prepare(2)
    assert network._child is not child
    assert gone(child.pid)
    network.run(1, Phases())


def interrupted(*_: object) -> bytes:
    raise KeyboardInterrupt


# Its stderr


def test_stderr_is_kept_in_a_file_of_the_users_and_named(opened: Open, tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("from an earlier run\n")
    network = opened("exit", stderr=str(log))
    network.load()
    network.prepare(1)
    with pytest.raises(NetworkError, match=r"it last wrote on stderr \(complete: .*child\.log\): giving up$"):
        network.run(1, Phases())
    assert log.read_text() == "from an earlier run\ngiving up\n"


def test_a_talkative_child_does_not_fill_the_disk() -> None:
    stderr = Stderr(None)
    for number in range(40_000):
        os.write(stderr.fileno(), f"{number:>40}\n".encode())
    assert os.fstat(stderr.fileno()).st_size > LARGEST_STDERR_BYTES
    stderr.trim()
    assert os.fstat(stderr.fileno()).st_size < LARGEST_STDERR_BYTES // 8
    os.write(stderr.fileno(), b"the end\n")
    assert stderr.last_words() == "it last wrote on stderr: 39996 / 39997 / 39998 / 39999 / the end"
    stderr.close()


# Options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "option command: is required"),
        ({"command": "  "}, "option command: is required"),
        ({"command": "'unclosed"}, "No closing quotation"),
        (
            {"command": "no-such-program-here -x"},
            "no program 'no-such-program-here' on PATH; for one in the current folder, write ./",
        ),
        ({"command": "./no/child"}, "no program no/child"),
        ({"command": "true", "cwd": "/no/folder"}, "option cwd: no folder /no/folder"),
        ({"command": "true", "comand": "x"}, r"unknown option 'comand'; did you mean command\?"),
        ({"command": "true", "env.A-B": "x"}, r"option env: variables of the environment are given as env\.NAME=VALUE"),
        ({"command": "true", "threads": "0"}, "option threads: must be an integer >= 1, got '0'"),
        ({"command": "true", "run_limit_s": "0"}, "option run_limit_s: must be a number > 0 .seconds., got '0'"),
        ({"command": "true", "time_limit_s": "nan"}, "option time_limit_s: must be a number > 0 .seconds., got 'nan'"),
        ({"command": "true", "tolerance": "x"}, "option tolerance: must be a number > 0, got 'x'"),
        ({"command": "true", "reference": "sum"}, "option reference: must be NAME=VALUE,..., got 'sum'"),
        ({"command": "true", "check": "maybe"}, "option check: must be true or false, got 'maybe'"),
    ],
)
def test_bad_options_are_named(options: Mapping[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        runtime.open_network("n", "native", options)


@pytest.mark.parametrize("option", ["stderr", "transcript"])
def test_a_file_that_cannot_be_written_is_named(opened: Open, option: str) -> None:
    options: dict[str, Any] = {option: "/no/folder/file"}
    network = opened(**options)
    with pytest.raises(ConfigError, match=f"option {option}: /no/folder/file: No such file"):
        network.load()


def test_methods_before_load_are_errors(opened: Open) -> None:
    network = opened()
    calls: list[Callable[[], Any]] = [lambda: network.prepare(1), lambda: network.run(1, Phases())]
    for call in calls:
        with pytest.raises(NetworkError, match="before load"):
            call()
