"""What all traces share: turns of plain and traced batches, operators added up, the work of a model's file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper

from joulewatch_harness.networks.graphs import read_model
from joulewatch_harness.runtimes.shared import tracing
from joulewatch_harness.runtimes.shared.tracing import Tally, Work, batches_for, in_turns, name_nodes, timed
from joulewatch_harness.traces import Operator
from support.onnx_models import dynamic, matmul, save


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tracing, "PAUSE_S", 0.0)
    yield


def test_plain_and_traced_batches_take_turns() -> None:
    """A machine that becomes slower affects both; the warm-up is not counted."""
    ran: list[tuple[str, int]] = []
    slow = itertools.count(1)

    def block(name: str) -> tracing.Block:
        def run(batches: int) -> int:
            ran.append((name, batches))
            return batches * 200_000_000 * next(slow)

        return run

    turns = in_turns(block("plain"), block("traced"), begin=lambda: ran.append(("begin", 0)), events_per_batch=10)
    assert ran[:7] == [("plain", 1)] * 3 + [("traced", 1)] * 3 + [("begin", 0)]
    assert [name for name, _ in ran[7:]] == ["plain", "traced"] * tracing.BLOCKS
    sizes = [size for name, size in ran[7:] if name == "plain"]
    assert sizes == [size for name, size in ran[7:] if name == "traced"]
    assert turns.batches == sum(sizes) == tracing.FEWEST_BATCHES
    numbers = range(7, 7 + 2 * tracing.BLOCKS)
    assert turns.plain_ns == sum(size * 200_000_000 * at for size, at in zip(sizes, numbers[::2], strict=True))
    assert turns.traced_ns == sum(size * 200_000_000 * at for size, at in zip(sizes, numbers[1::2], strict=True))


def test_long_batches_and_many_events_bound_the_number_of_batches() -> None:
    assert batches_for(0.01, 1) == 100
    assert batches_for(10.0, 1) == tracing.FEWEST_BATCHES
    assert batches_for(1e-9, 1) == 10_000
    assert batches_for(0.001, 120) == 100
    assert batches_for(0.001, 10**6) == tracing.FEWEST_BATCHES


def test_a_block_is_timed_by_the_host() -> None:
    ran: list[int] = []
    assert timed(ran.append)(7) > 0
    assert ran == [7]


def test_operators_are_added_up_in_the_order_in_which_they_ran() -> None:
    tally = Tally()
    tally.add("warm", "Conv", 1_000)
    tally.clear()
    for _ in range(2):
        tally.add("conv", "Conv", 30)
        tally.add("pool", "MaxPool", 5)
    assert tally.operators({"conv": 8, "pool": None}) == (
        Operator(name="conv", op="Conv", time_ns=60, calls=2, macs=8),
        Operator(name="pool", op="MaxPool", time_ns=10, calls=2, macs=None),
    )


def test_work_is_that_of_a_batch(tmp_path: Path) -> None:
    work = Work.of(read_model(matmul(tmp_path / "m.onnx")), 8)
    assert (list(work.macs.values()), work.total) == ([8 * 12], 8 * 12)


def test_without_the_sizes_of_dimensions_there_is_no_work(tmp_path: Path) -> None:
    assert Work.of(read_model(dynamic(tmp_path / "d.onnx")), 8) == Work()


def test_nodes_get_names_of_their_own_in_a_copy(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="twice"), helper.make_node("Relu", ["a"], ["b"], name="twice")]
    nodes += [helper.make_node("Relu", ["b"], ["c"], name="twice_1"), helper.make_node("Relu", ["c"], ["y"])]
    shape = (TensorProto.FLOAT, ["b", 4])
    path = save(tmp_path / "m.onnx", nodes, {"x": shape}, {"y": shape}, {})
    before = path.read_bytes()
    named = read_model(name_nodes(path, tmp_path))
    assert [node.name for node in named.graph.node] == ["twice_0", "twice_1_", "twice_1", "Relu_3"]
    assert path.read_bytes() == before
    (tmp_path / "other").mkdir()
    assert name_nodes(tmp_path / "named.onnx", tmp_path / "other") == tmp_path / "named.onnx"
