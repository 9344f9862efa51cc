"""Isolated networks: the same protocol, and the errors of a process that crashes, hangs or is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.network import MarksOnly, Network, Phases
from joulewatch_harness.plan.cpus import cpus_text, parse_cpus
from joulewatch_harness.plan.scenario import Scenario
from joulewatch_harness.records import Configuration
from joulewatch_harness.runner.drivers import driver_of
from joulewatch_harness.runner.isolate import IsolatedNetwork, add_recorded, decode_error
from joulewatch_harness.runner.pinning import check_cpus, strays, thread_environment
from joulewatch_harness.runner.worker import recorded_state

ODD = '''
import os, signal, sys, threading, time
from joulewatch_harness.errors import NetworkError, UnsupportedBatchError

class Odd:
    """Behaves as its batch size demands."""
    def __init__(self, answer="yes"):
        self.answer, self.stop = answer, threading.Event()
    def describe(self):
        return {"precision": "fp32", "pid": os.getpid(), "omp": os.environ.get("OMP_NUM_THREADS", ""), "odd": [1, 2]}
    def load(self):
        print("this would spoil the result")
        print("loading", file=sys.stderr)
    def check(self):
        return self.answer == "yes"
    def prepare(self, batch):
        self.batch = batch
        if batch == 3: raise UnsupportedBatchError("three is not a valid batch size")
        if batch == 5: raise MemoryError("no room")
        if batch == 7: raise ValueError("odd")
        if batch == 11: raise ModuleNotFoundError("No module named 'torch'", name="torch")
    def run(self, batches, phases):
        if self.batch == 13:
            print("the last output", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.batch == 17: os._exit(5)
        if self.batch == 19: time.sleep(600)
        if self.batch == 23: os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(batches):
            with phases("execute"):
                time.sleep(0.001)
            phases.batch()
        phases.count("output_tokens", 3 * batches)
    def close(self): self.closed = True
'''


def custom(name: str, network: str, options: dict[str, str]) -> Configuration:
    return Configuration(name=name, network=network, runtime="python", precision="native", options=options)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Callable[..., IsolatedNetwork]]:
    (tmp_path / "odd.py").write_text(ODD, encoding="utf-8")
    networks: list[IsolatedNetwork] = []

    def make(*, options: dict[str, str] | None = None, **more: Any) -> IsolatedNetwork:
        configuration = custom("odd", f"{tmp_path / 'odd.py'}:Odd", options or {})
        networks.append(IsolatedNetwork(configuration, **more))
        return networks[-1]

    yield make
    for isolated in networks:
        isolated.end()


def has_ended(pid: int) -> bool:
    """Return whether no process has that id, not even a zombie."""
    deadline_s = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def test_an_isolated_network_passes_on_everything_that_the_network_records(
    network: Callable[..., IsolatedNetwork], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # as on a user's machine
    isolated = network()
    assert isinstance(isolated, Network)
    isolated.load()
    described = isolated.describe()
    assert described["pid"] == isolated.pid != os.getpid()
    assert (described["precision"], described["odd"], described["isolated"]) == ("fp32", "[1, 2]", "true")
    assert isolated.check(1) is True
    isolated.prepare(1)
    phases = Phases()
    for _ in range(2):
        isolated.run(5, phases)
    assert phases.spans["execute"][0] == len(phases.batch_ends_ns) == 10
    assert phases.spans["execute"][1] >= 10 * 1_000_000
    assert phases.counts == {"output_tokens": 30}
    assert phases.call_ns is not None and phases.call_ns[0] <= phases.batch_ends_ns[5] <= phases.call_ns[1]
    marks = MarksOnly()
    isolated.run(4, marks)
    assert (marks.spans, len(marks.batch_ends_ns), marks.counts) == ({}, 4, {"output_tokens": 12})
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "loading" in captured.err and "this would spoil the result" in captured.err


def test_the_process_survives_close_and_ends_with_end(network: Callable[..., IsolatedNetwork]) -> None:
    isolated = network()
    isolated.load()
    first = isolated.pid
    isolated.close()
    isolated.close()
    isolated.load()
    assert first is not None and isolated.pid == first
    isolated.end()
    isolated.end()
    assert isolated.pid is None and has_ended(first)
    isolated.close()
    assert isolated.pid is None


@pytest.mark.parametrize(
    ("batch", "kind", "text"),
    [
        (3, UnsupportedBatchError, "three is not a valid batch size"),
        (5, MemoryError, "no room"),
        (11, ModuleNotFoundError, "No module named 'torch'"),
    ],
)
def test_errors_keep_their_class(
    network: Callable[..., IsolatedNetwork], batch: int, kind: type[Exception], text: str
) -> None:
    isolated = network()
    isolated.load()
    with pytest.raises(kind, match=text):
        isolated.prepare(batch)
    isolated.prepare(1)
    isolated.run(1, Phases())


def test_errors_of_unknown_classes_keep_their_name(network: Callable[..., IsolatedNetwork]) -> None:
    isolated = network()
    isolated.load()
    with pytest.raises(Exception, match="odd") as caught:
        isolated.prepare(7)
    assert type(caught.value).__name__ == "ValueError"
    module = decode_error("ModuleNotFoundError", "x", "torch")
    assert isinstance(module, ModuleNotFoundError) and module.name == "torch"


def test_a_network_that_cannot_be_opened_is_a_configuration_error_and_leaves_no_process(
    network: Callable[..., IsolatedNetwork],
) -> None:
    isolated = network(options={"anser": "no"})
    with pytest.raises(ConfigError, match="did you mean answer"):
        isolated.open()
    assert isolated.pid is None
    assert network(options={"answer": "no"}).check(1) is False


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (13, r"odd: its process was ended by SIGSEGV \(signal 11\) during run; its last output: the last output"),
        (17, "odd: its process ended with exit code 5 during run"),
        (23, r"was ended by SIGKILL \(signal 9\), as the kernel does when memory is exhausted, during run"),
    ],
)
def test_a_crash_is_named_and_the_next_batch_size_has_a_new_process(
    network: Callable[..., IsolatedNetwork], batch: int, text: str
) -> None:
    isolated = network()
    isolated.load()
    driver = driver_of(isolated, Scenario("single_stream"))
    isolated.prepare(batch)
    first = isolated.pid
    assert first is not None
    with pytest.raises(NetworkError, match=text):
        driver.run(1, Phases())
    assert isolated.pid is None and has_ended(first)
    isolated.prepare(2)
    phases = Phases()
    driver.run(3, phases)
    assert len(phases.latencies_ns) == 3, "the new process has the same scenario"
    assert isolated.pid not in (None, first)


def test_a_call_that_hangs_ends_at_the_time_limit(network: Callable[..., IsolatedNetwork]) -> None:
    isolated = network(time_limit_s=1.5)
    isolated.load()
    isolated.prepare(19)
    first = isolated.pid
    assert first is not None
    with pytest.raises(NetworkError, match=r"run did not return within 1\.5 s .*time_limit_s"):
        isolated.run(1, Phases())
    assert has_ended(first)
    isolated.prepare(1)


def test_a_process_killed_between_calls_is_reported(network: Callable[..., IsolatedNetwork]) -> None:
    isolated = network()
    isolated.load()
    assert isolated.pid is not None
    os.kill(isolated.pid, signal.SIGTERM)
    with pytest.raises(NetworkError, match="SIGTERM"):
        isolated.prepare(1)
    isolated.prepare(1)
    isolated.run(1, Phases())


def test_ctrl_c_during_a_call_leaves_no_process(network: Callable[..., IsolatedNetwork]) -> None:
    isolated = network()
    isolated.load()
    isolated.prepare(19)
    pid = isolated.pid
    assert pid is not None
    before = signal.signal(signal.SIGALRM, lambda *_: signal.default_int_handler(2, None))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            isolated.run(1, Phases())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert has_ended(pid)


def overhead_s(network: IsolatedNetwork, calls: int = 50) -> float:
    """Return the mean duration of a call that runs no batch."""
    start_s = time.perf_counter()
    for _ in range(calls):
        network.run(0, Phases())
    return (time.perf_counter() - start_s) / calls


def test_a_waiting_process_uses_no_processor_time_and_a_call_costs_little(
    network: Callable[..., IsolatedNetwork],
) -> None:
    isolated = network()
    isolated.load()
    isolated.prepare(1)
    overhead = min(overhead_s(isolated) for _ in range(5))
    # About 40 µs on an idle machine; the limit also holds on a busy machine.
    assert overhead < 0.002
    before = isolated.cpu_time_s()
    time.sleep(0.3)
    after = isolated.cpu_time_s()
    assert before is not None and after is not None and after - before <= 0.01


def test_a_process_keeps_to_its_processors_and_has_one_thread_for_each(network: Callable[..., IsolatedNetwork]) -> None:
    cpu = min(os.sched_getaffinity(0))
    isolated = network(cpus=(cpu,))
    isolated.load()
    assert (isolated.describe()["cpus"], isolated.describe()["omp"]) == (
        str(cpu),
        os.environ.get("OMP_NUM_THREADS", "1"),
    )


def test_threads_of_a_runtime_on_other_processors_are_an_error(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one processor only")
    (tmp_path / "stray.py").write_text(
        "import os, threading, time\n"
        "class Stray:\n"
        "    def describe(self): return {}\n"
        "    def load(self):\n"
        "        self.stop = threading.Event()\n"
        "        def work():\n"
        f"            os.sched_setaffinity(0, [{allowed[1]}]); ready.set(); self.stop.wait()\n"
        "        ready = threading.Event()\n"
        "        threading.Thread(target=work, daemon=True).start(); ready.wait()\n"
        "    def prepare(self, batch): pass\n"
        "    def run(self, batches, phases): pass\n"
        "    def close(self): self.stop.set()\n",
        encoding="utf-8",
    )
    isolated = IsolatedNetwork(custom("stray", f"{tmp_path / 'stray.py'}:Stray", {}), cpus=(allowed[0],))
    try:
        with pytest.raises(ConfigError, match=rf"runs 1 of its threads on processors {allowed[1]}: .*threads=1"):
            isolated.load()
    finally:
        isolated.end()


def test_the_records_of_several_calls_add_up() -> None:
    one, two, both = Phases(), Phases(), Phases()
    one.add("execute", 0, 10)
    two.add("execute", 10, 30)
    two.add("copy_in", 30, 31)
    one.count("output_tokens", 2)
    two.count("output_tokens", 3)
    two.batch()
    for phases in (one, two):
        add_recorded(both, recorded_state(phases))
    assert both.spans == {"execute": [2, 30], "copy_in": [1, 1]}
    assert both.counts == {"output_tokens": 5}
    assert both.batch_ends_ns == two.batch_ends_ns


# Processors


@pytest.mark.parametrize(
    ("text", "cpus"), [("", ()), ("0-3", (0, 1, 2, 3)), ("8, 0-1", (0, 1, 8)), ("5-5,5", (5,)), (" 2 - 3 ", (2, 3))]
)
def test_processor_lists_have_the_format_of_the_kernel(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text, "x") == cpus
    assert parse_cpus(cpus_text(cpus), "x") == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "0-", "-1", "0;1", "0-9999999", ","])
def test_an_invalid_processor_list_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="plan p: cpus: "):
        parse_cpus(text, "plan p: cpus")


def test_processors_that_do_not_exist_are_an_error() -> None:
    with pytest.raises(ConfigError, match="plan p: cpus: 4096 cannot be used; this process may use"):
        check_cpus((min(os.sched_getaffinity(0)), 4096), "plan p")


def test_there_are_as_many_threads_as_processors_unless_the_user_set_a_number() -> None:
    assert (
        thread_environment((0, 1), {"A": "b", "OMP_NUM_THREADS": "9"}).items()
        >= {
            "A": "b",
            "OMP_NUM_THREADS": "9",
            "MKL_NUM_THREADS": "2",
        }.items()
    )
    assert thread_environment((), {"A": "b"}) == {"A": "b"}
    assert strays(tuple(os.sched_getaffinity(0))) == {} == strays(())
