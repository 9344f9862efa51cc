"""Networks in processes of their own: the same protocol, and what happens when such a process misbehaves."""

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
from joulewatch_harness.runner.isolate import IsolatedNetwork, merge, overhead_s, raised
from joulewatch_harness.runner.pinning import check_cpus, strays, thread_environment
from joulewatch_harness.runner.worker import phases_state

ODD = '''
import os, signal, sys, threading, time
from joulewatch_harness.errors import NetworkError, UnsupportedBatchError

class Odd:
    """Does what the batch size says."""
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
        if batch == 3: raise UnsupportedBatchError("three is no batch")
        if batch == 5: raise MemoryError("no room")
        if batch == 7: raise ValueError("odd")
        if batch == 11: raise ModuleNotFoundError("No module named 'torch'", name="torch")
    def run(self, batches, phases):
        if self.batch == 13:
            print("the last words", file=sys.stderr, flush=True)
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


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Callable[..., IsolatedNetwork]]:
    (tmp_path / "odd.py").write_text(ODD, encoding="utf-8")
    made: list[IsolatedNetwork] = []

    def make(*, options: dict[str, str] | None = None, **more: Any) -> IsolatedNetwork:
        configuration = Configuration("odd", f"{tmp_path / 'odd.py'}:Odd", "python", "native", options=options or {})
        made.append(IsolatedNetwork(configuration, **more))
        return made[-1]

    yield make
    for item in made:
        item.end()


def gone(pid: int) -> bool:
    """Whether no process has that number, not even a zombie."""
    deadline_s = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def test_it_is_a_network_and_passes_on_what_the_other_one_tells(
    network: Callable[..., IsolatedNetwork], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # as at a user's
    it = network()
    assert isinstance(it, Network)
    it.load()
    described = it.describe()
    assert described["pid"] == it.pid != os.getpid()
    assert (described["precision"], described["odd"], described["isolated"]) == ("fp32", "[1, 2]", "true")
    assert it.check() is True
    it.prepare(1)
    phases = Phases()
    for _ in range(2):
        it.run(5, phases)
    assert phases.spans["execute"][0] == len(phases.batch_ends_ns) == 10
    assert phases.spans["execute"][1] >= 10 * 1_000_000
    assert phases.counts == {"output_tokens": 30}
    assert phases.call_ns is not None and phases.call_ns[0] <= phases.batch_ends_ns[5] <= phases.call_ns[1]
    marks = MarksOnly()
    it.run(4, marks)
    assert (marks.spans, len(marks.batch_ends_ns), marks.counts) == ({}, 4, {"output_tokens": 12})
    said = capfd.readouterr()
    assert said.out == ""
    assert "loading" in said.err and "this would spoil the result" in said.err


def test_its_process_outlives_close_and_ends_with_end(network: Callable[..., IsolatedNetwork]) -> None:
    it = network()
    it.load()
    first = it.pid
    it.close()
    it.close()
    it.load()
    assert first is not None and it.pid == first
    it.end()
    it.end()
    assert it.pid is None and gone(first)
    it.close()
    assert it.pid is None


@pytest.mark.parametrize(
    ("batch", "kind", "text"),
    [
        (3, UnsupportedBatchError, "three is no batch"),
        (5, MemoryError, "no room"),
        (11, ModuleNotFoundError, "No module named 'torch'"),
    ],
)
def test_errors_come_back_as_what_they_were(
    network: Callable[..., IsolatedNetwork], batch: int, kind: type[Exception], text: str
) -> None:
    it = network()
    it.load()
    with pytest.raises(kind, match=text):
        it.prepare(batch)
    it.prepare(1)
    it.run(1, Phases())


def test_errors_of_other_kinds_keep_their_name(network: Callable[..., IsolatedNetwork]) -> None:
    it = network()
    it.load()
    with pytest.raises(Exception, match="odd") as caught:
        it.prepare(7)
    assert type(caught.value).__name__ == "ValueError"
    module = raised("ModuleNotFoundError", "x", "torch")
    assert isinstance(module, ModuleNotFoundError) and module.name == "torch"


def test_a_bad_network_is_a_configuration_error_and_leaves_no_process(network: Callable[..., IsolatedNetwork]) -> None:
    it = network(options={"anser": "no"})
    with pytest.raises(ConfigError, match="did you mean 'answer'"):
        it.open()
    assert it.pid is None
    assert network(options={"answer": "no"}).check() is False


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (13, r"odd: its process was ended by SIGSEGV \(signal 11\) in run; it said: the last words"),
        (17, "odd: its process ended with exit code 5 in run"),
        (23, r"was ended by SIGKILL \(signal 9\), as the kernel does when memory runs out"),
    ],
)
def test_a_crash_is_named_and_the_next_batch_size_has_a_new_process(
    network: Callable[..., IsolatedNetwork], batch: int, text: str
) -> None:
    it = network()
    it.load()
    driver = driver_of(it, Scenario("single_stream"))
    it.prepare(batch)
    first = it.pid
    assert first is not None
    with pytest.raises(NetworkError, match=text):
        driver.run(1, Phases())
    assert it.pid is None and gone(first)
    it.prepare(2)
    phases = Phases()
    driver.run(3, phases)
    assert len(phases.latencies_ns) == 3, "the new process goes by the same rules"
    assert it.pid not in (None, first)


def test_a_hang_ends_with_the_time_limit(network: Callable[..., IsolatedNetwork]) -> None:
    it = network(time_limit_s=1.5)
    it.load()
    it.prepare(19)
    first = it.pid
    assert first is not None
    with pytest.raises(NetworkError, match=r"run did not return within 1\.5 s .*time_limit_s"):
        it.run(1, Phases())
    assert gone(first)
    it.prepare(1)


def test_a_process_killed_between_calls_is_told(network: Callable[..., IsolatedNetwork]) -> None:
    it = network()
    it.load()
    assert it.pid is not None
    os.kill(it.pid, signal.SIGTERM)
    with pytest.raises(NetworkError, match="SIGTERM"):
        it.prepare(1)
    it.prepare(1)
    it.run(1, Phases())


def test_ctrl_c_in_a_call_leaves_no_process_behind(network: Callable[..., IsolatedNetwork]) -> None:
    it = network()
    it.load()
    it.prepare(19)
    pid = it.pid
    assert pid is not None
    before = signal.signal(signal.SIGALRM, lambda *_: signal.default_int_handler(2, None))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            it.run(1, Phases())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert gone(pid)


def test_it_uses_no_processor_while_it_waits_and_a_call_costs_little(network: Callable[..., IsolatedNetwork]) -> None:
    it = network()
    it.load()
    it.prepare(1)
    overhead = min(overhead_s(it, 50) for _ in range(5))
    # About 40 µs on an idle machine; a machine full of other work must pass this too.
    assert overhead < 0.002
    before = it.cpu_time_s()
    time.sleep(0.3)
    after = it.cpu_time_s()
    assert before is not None and after is not None and after - before <= 0.01


def test_it_stays_on_its_processors_with_as_many_threads(network: Callable[..., IsolatedNetwork]) -> None:
    cpu = min(os.sched_getaffinity(0))
    it = network(cpus=(cpu,))
    it.load()
    assert (it.describe()["cpus"], it.describe()["omp"]) == (str(cpu), os.environ.get("OMP_NUM_THREADS", "1"))


def test_threads_that_a_runtime_put_elsewhere_are_an_error(tmp_path: Path) -> None:
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
    it = IsolatedNetwork(
        Configuration("stray", f"{tmp_path / 'stray.py'}:Stray", "python", "native"), cpus=(allowed[0],)
    )
    try:
        with pytest.raises(ConfigError, match=rf"put 1 of its threads on processors {allowed[1]}: .*threads=1"):
            it.load()
    finally:
        it.end()


def test_what_calls_tell_adds_up() -> None:
    one, two, both = Phases(), Phases(), Phases()
    one.add("execute", 0, 10)
    two.add("execute", 10, 30)
    two.add("copy_in", 30, 31)
    one.count("output_tokens", 2)
    two.count("output_tokens", 3)
    two.batch()
    for item in (one, two):
        merge(both, phases_state(item))
    assert both.spans == {"execute": [2, 30], "copy_in": [1, 1]}
    assert both.counts == {"output_tokens": 5}
    assert both.batch_ends_ns == two.batch_ends_ns


# Processors


@pytest.mark.parametrize(
    ("text", "cpus"), [("", ()), ("0-3", (0, 1, 2, 3)), ("8, 0-1", (0, 1, 8)), ("5-5,5", (5,)), (" 2 - 3 ", (2, 3))]
)
def test_processors_are_written_as_the_kernel_writes_them(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpus(text, "x") == cpus
    assert parse_cpus(cpus_text(cpus), "x") == cpus


@pytest.mark.parametrize("text", ["a", "3-1", "0-", "-1", "0;1", "0-9999999", ","])
def test_bad_processors_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="plan p: cpus: "):
        parse_cpus(text, "plan p: cpus")


def test_processors_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match="plan p: cpus: 4096 cannot be used here; this process may use"):
        check_cpus((min(os.sched_getaffinity(0)), 4096), "plan p")


def test_threads_are_as_many_as_processors_unless_a_person_said_otherwise() -> None:
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
