"""The layer view: shares add up, energies are marked as estimates, operators are matched with the model."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from joulewatch_harness.analysis.reports import layers_figure, layers_report  # noqa: E402
from joulewatch_harness.analysis.reports.layers_report import group_small  # noqa: E402
from joulewatch_harness.analysis.results.layers import Basis, LayerView, basis_of, layer_view  # noqa: E402
from joulewatch_harness.analysis.results.summary import analyze_run  # noqa: E402
from joulewatch_harness.cli import main  # noqa: E402
from joulewatch_harness.commands import layers as command  # noqa: E402
from joulewatch_harness.errors import ConfigError, CoverageError, NetworkError, RecordError  # noqa: E402
from joulewatch_harness.records import encode  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime import network as runtime  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime import tracing as onnxruntime_trace  # noqa: E402
from joulewatch_harness.runtimes.shared import tracing  # noqa: E402
from joulewatch_harness.storage.journal import Journal  # noqa: E402
from joulewatch_harness.traces import Operator, Trace, read_trace, write_trace  # noqa: E402
from support import golden  # noqa: E402
from support.onnx_models import matmul  # noqa: E402
from support.paths import ROOT  # noqa: E402
from support.synthetic import RUN, TWO_SOCKETS, World, make_world, write_recording  # noqa: E402

GOLDEN = ROOT / "tests" / "harness" / "golden"
ABOUT = {"network": "tiny", "runtime": "onnxruntime", "runtime_version": "1.2.3", "precision": "fp32"}
BASIS = Basis(
    run="20260921T141320Z-0a1b2c",
    configuration="tiny/onnxruntime/fp32",
    windows=(3, 5, 8),
    seconds_per_inference=1e-4,
    joules_per_inference=2e-3,
    expanded_joules=5e-5,
    methods=("counter",),
)
TINY_TRACE = Trace(
    runtime="onnxruntime",
    source="profile of ONNX Runtime 1.2.3",
    batch_size=8,
    batches=10,
    time_ns=8_000_000,
    operators=(
        Operator(name="conv", op="FusedConv", time_ns=5_600_000, calls=10, macs=1536),
        Operator(name="pool", op="MaxPool", time_ns=1_600_000, calls=10, macs=0),
        Operator(name="a", op="Reshape", time_ns=24_000, calls=10, macs=0),
        Operator(name="b", op="Reshape", time_ns=16_000, calls=10, macs=0),
        Operator(name="dense", op="Gemm", time_ns=400_000, calls=10, macs=640),
    ),
    plain_time_ns=7_600_000,
    macs=2176,
)


def tiny_view(basis: Basis | None = BASIS, **values: Any) -> LayerView:
    return layer_view(TINY_TRACE if not values else Trace(**{**_fields(TINY_TRACE), **values}), ABOUT, basis)


def _fields(trace: Trace) -> dict[str, Any]:
    return {name: getattr(trace, name) for name in Trace.__dataclass_fields__}


# The layer view


def test_a_trace_survives_writing_and_reading(tmp_path: Path) -> None:
    write_trace(TINY_TRACE, tmp_path / "t.json")
    assert read_trace(tmp_path / "t.json") == TINY_TRACE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must be a mapping"),
        ('{"schema": 99}', "newer joulewatch .schema 99"),
        ('{"runtime": "x"}', "missing field 'source'"),
        (json.dumps({**encode(TINY_TRACE), "operators": []}), "is empty"),
        (json.dumps({**encode(TINY_TRACE), "batches": "ten"}), "batches: must be an integer, got 'ten'"),
    ],
)
def test_a_broken_trace_is_an_error_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        read_trace(tmp_path / "t.json")
    with pytest.raises(RecordError, match=r"none\.json"):
        read_trace(tmp_path / "none.json")
    with pytest.raises(RecordError, match="No such file"):
        write_trace(TINY_TRACE, tmp_path / "none" / "t.json")


def test_shares_and_energies_add_up_to_the_measured_inference() -> None:
    view = tiny_view()
    rows = (*view.rows, view.between)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert sum(row.joules or 0 for row in rows) == pytest.approx(BASIS.joules_per_inference)
    assert sum(row.seconds for row in rows) == pytest.approx(8_000_000e-9 / 80)
    assert [row.share for row in view.rows] == pytest.approx([0.7, 0.2, 0.003, 0.002, 0.05])
    assert view.between.share == pytest.approx(0.045)
    assert BASIS.mean_power_watts == pytest.approx(20)
    assert view.rows[0].joules == pytest.approx(0.7 * 20 * 1e-4)
    assert (view.macs, view.rows[0].macs, view.rows[4].macs) == (272, 192, 80)
    assert view.rows[0].macs_share == pytest.approx(192 / 272)
    assert view.notes == ()


def test_small_operators_are_combined() -> None:
    rows = group_small(tiny_view(), 0.01)
    assert [row.name for row in rows] == ["conv", "pool", "dense", "other (2 operators)"]
    assert rows[-1].share == pytest.approx(0.005)
    assert rows[-1].macs == 0
    assert [row.name for row in group_small(tiny_view(), 0.0)] == ["conv", "pool", "a", "b", "dense"]
    # A single small operator keeps its name.
    assert [row.name for row in group_small(tiny_view(), 0.0025)] == ["conv", "pool", "a", "b", "dense"]
    assert [row.name for row in group_small(tiny_view(), 0.0, most=2)] == ["conv", "pool", "other (3 operators)"]
    assert len(group_small(tiny_view(), 1.0)) == 1


def test_json_of_a_tiny_trace(update_golden: bool) -> None:
    golden.check(layers_report.render_json(tiny_view()), GOLDEN / "layers_tiny.json", update=update_golden)


def test_table_of_a_tiny_trace(update_golden: bool) -> None:
    golden.check(layers_report.render_table(tiny_view()), GOLDEN / "layers_tiny.txt", update=update_golden)


def test_every_energy_is_marked_as_an_estimate() -> None:
    """In all formats; and twice if the measured windows are estimates as well."""
    view = tiny_view()
    assert "is an ESTIMATE" in layers_report.render_table(view)
    assert "est. energy" in layers_report.render_table(view, width=100)
    assert json.loads(layers_report.render_json(view))["energy_is_estimated"] is True
    rows = list(csv.DictReader(io.StringIO(layers_report.render_csv(view))))
    assert float(rows[0]["estimated_joules_per_inference"]) == pytest.approx(1.4e-3)
    assert len(rows) == 6
    modelled = tiny_view(
        Basis(
            run="r",
            configuration="c",
            windows=(1,),
            seconds_per_inference=1e-4,
            joules_per_inference=2e-3,
            expanded_joules=0.0,
            methods=("estimated",),
        )
    )
    assert "ESTIMATED from a power model" in layers_report.render_table(modelled)


def test_without_energy_there_is_no_energy_column() -> None:
    text = layers_report.render_table(tiny_view(None))
    assert "energy: none" in text
    assert "est." not in text
    assert (
        json.loads(layers_report.render_json(tiny_view(None)))["operators"][0]["estimated_joules_per_inference"] is None
    )


def test_names_of_any_length_fit_a_terminal() -> None:
    """Kernels of TVM have names of 60 letters and more."""
    kernel = "fused_nn_conv2d_add_nn_relu_nn_max_pool2d_reshape_nn_dense_add_kernel_1"
    operators = (Operator(name=kernel, op="Convolution brgconv_avx512_f32", time_ns=10**6, calls=10, macs=10**9),)
    lines = layers_report.render_table(tiny_view(operators=operators, macs=None)).splitlines()
    assert max(map(len, lines)) <= 80
    # Numbers are whole, and dropped columns are named.
    assert any("125,000,000" in line for line in lines)
    assert any(line.startswith("Omitted to fit 80 columns: ") for line in lines)


def test_notes_state_doubts_about_the_shares() -> None:
    assert "took 100% longer than untraced" in tiny_view(plain_time_ns=4_000_000).notes[0]
    assert "Operators cover only 38% of the time" in tiny_view(time_ns=20_000_000, plain_time_ns=None).notes[0]
    side_by_side = tiny_view(time_ns=5_000_000, plain_time_ns=None, overlapping=True)
    assert "in parallel" in side_by_side.notes[0]
    assert side_by_side.between.seconds == 0
    assert sum(row.share for row in side_by_side.rows) == pytest.approx(1)
    assert "have 2,176 of the 3,000 MACs of the graph" in tiny_view(macs=3000).notes[0]
    slow = Basis(
        run="r",
        configuration="c",
        windows=(1,),
        seconds_per_inference=2e-4,
        joules_per_inference=2e-3,
        expanded_joules=0.0,
        methods=("counter",),
    )
    assert "An inference took 200.0 µs in the measured windows, but 100.0 µs in the trace" in tiny_view(slow).notes[0]


def test_unknown_macs_are_not_shown_as_none() -> None:
    view = tiny_view(
        operators=(
            Operator(name="x", op="Secret", time_ns=100, calls=1, macs=None),
            Operator(name="y", op="Gemm", time_ns=100, calls=1, macs=8),
        ),
        macs=None,
    )
    assert view.macs is None
    assert " ?  " in layers_report.render_table(view)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_chart_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"f.{suffix}"
    layers_figure.write_figure(tiny_view(), path)
    assert path.stat().st_size > 5000
    if suffix == "svg":
        text = path.read_text(encoding="utf-8")
        for words in ("ESTIMATED energy per inference", "is an ESTIMATE", "conv", "between operators", "70.0%"):
            assert words in text
    layers_figure.write_figure(tiny_view(None), path)


def test_labels_of_long_names_leave_room_for_the_bars(tmp_path: Path) -> None:
    operators = tuple(
        Operator(name=name, op="Convolution brgconv_avx512_f32", time_ns=10**6, calls=1, macs=8)
        for name in ("conv1", "long" * 8, "x" * 60)
    )
    layers_figure.write_figure(tiny_view(operators=operators), tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text(encoding="utf-8")
    assert "conv1  Convolution brgconv_avx512_f32<" in text
    assert f"{'long' * 8}  Convolution<" in text
    assert f"{'x' * 43}…  Convolution<" in text


def test_a_chart_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        layers_figure.write_figure(tiny_view(), tmp_path / "f.gif")
    with pytest.raises(ConfigError, match="does not exist"):
        layers_figure.write_figure(tiny_view(), tmp_path / "none" / "f.png")


# ONNX Runtime's profile


def event(name: str, op: str, ts: int, dur: int, shape: tuple[int, ...] = (2, 3)) -> dict[str, Any]:
    args = {"op_name": op, "node_index": "7", "output_type_shape": [{"float": list(shape)}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def session(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def profile_of(tmp_path: Path, events: list[dict[str, Any]]) -> onnxruntime_trace.Profile:
    tmp_path.joinpath("p.json").write_text(json.dumps(events))
    source = save(tmp_path / "m.onnx")
    result, _ = onnxruntime_trace.read_profile(tmp_path / "p.json", tmp_path / "none.onnx", source, 2, warmup=1)
    return result


def save(path: Path, *, named: bool = True, symbol: str = "") -> Path:
    """Two dense layers with a ReLU; ``symbol`` names a second axis of the input."""
    rng = np.random.default_rng(0)
    shape = ["b", symbol, 16] if symbol else ["b", 16]
    weights = {"w": rng.random((16, 32), np.float32), "v": rng.random((32, 8), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first" if named else ""),
        helper.make_node("Relu", ["a"], ["r"], name="relu" if named else ""),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="second" if named else ""),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def test_warm_up_and_operators_inside_loops_are_not_counted(tmp_path: Path) -> None:
    actual = profile_of(
        tmp_path,
        [
            event("a", "Gemm", 0, 900), event("a", "Gemm", 1010, 40), event("loop", "Loop", 1060, 100),
            event("inside", "Add", 1070, 20), event("inside", "Add", 1100, 20), event("a", "Gemm", 2010, 60),
            event("", "Relu", 2080, 10),
            session(0, 950), session(1000, 200), session(2000, 120),
            {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 3, "args": {}},
        ],
    )  # fmt: skip
    assert (actual.batches, actual.time_ns) == (2, 320_000)
    assert [(item.name, item.time_ns, item.calls) for item in actual.operators] == [
        ("a", 100_000, 2),
        ("loop", 100_000, 1),
        ("Relu_7", 10_000, 1),
    ]


@pytest.mark.parametrize("events", [[], [session(0, 10)], [{"cat": "Node", "name": "a_kernel_time"}], [1]])
def test_a_profile_without_runs_is_an_error(tmp_path: Path, events: list[Any]) -> None:
    with pytest.raises(NetworkError, match=r"profile p\.json"):
        profile_of(tmp_path, events)


def traced(network: str, precision: str, batch: int, tmp_path: Path, **options: str) -> Trace:
    result = runtime.open_network(network, precision, {"threads": "1", **options})
    result.load()
    try:
        result.prepare(batch)
        result.trace(tmp_path / "trace.json")
    finally:
        result.close()
    return read_trace(tmp_path / "trace.json")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace a few batches."""
    monkeypatch.setattr(tracing, "AIM_S", 0.01)
    monkeypatch.setattr(tracing, "PAUSE_S", 0.0)


@pytest.mark.parametrize(
    ("network", "precision", "options", "names"),
    [
        ("radioml-vgg10", "fp32", {"filters": "32"}, ["conv1", "conv7", "fc1", "fc3"]),
        ("radioml-vgg10", "int8", {"filters": "32"}, ["conv1", "conv7", "fc1", "fc3"]),
        # Blocked layouts pad channels and rename operators; the MACs stay those of the model.
        ("mobilenet-like", "fp32", {"size": "32", "width": "35"}, ["stem", "block2.expand", "head", "classifier"]),
        ("resnet-like", "int8", {"size": "32", "width": "16"}, ["stem", "stage4.2.conv2", "classifier"]),
        ("transformer-encoder", "fp32", {"sequence": "8", "width": "128", "depth": "1"}, ["layer1.up"]),
    ],
)
def test_operators_are_matched_with_the_model(
    network: str, precision: str, options: Mapping[str, str], names: list[str], tmp_path: Path
) -> None:
    """Fused, renamed and packed operators have the model's names, and their MACs add up to the graph's."""
    trace = traced(network, precision, 2, tmp_path, **options)
    assert trace.batches >= 10
    assert trace.macs is not None
    assert sum(item.macs or 0 for item in trace.operators) == trace.macs
    assert set(names) <= {item.name for item in trace.operators}
    assert sum(item.time_ns for item in trace.operators) <= trace.time_ns
    assert all(item.calls == trace.batches for item in trace.operators)


def test_nodes_without_names_get_distinct_names(tmp_path: Path) -> None:
    """Also if some have the same name; the model file does not change."""
    path = save(tmp_path / "m.onnx", named=False)
    before = path.read_bytes()
    trace = traced(str(path), "native", 4, tmp_path, optimization="disabled")
    assert {item.name: item.macs for item in trace.operators} == {
        "MatMul_0": 4 * 16 * 32,
        "Relu_1": 0,
        "MatMul_2": 4 * 32 * 8,
    }
    assert path.read_bytes() == before


def test_symbolic_dimensions_are_those_of_the_run(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", symbol="sequence")
    trace = traced(str(path), "native", 2, tmp_path, dims="sequence=5")
    assert trace.macs == 2 * 5 * (16 * 32 + 32 * 8)
    assert sum(item.macs or 0 for item in trace.operators) == trace.macs
    np.savez(tmp_path / "x.npz", x=np.ones((2, 7, 16), np.float32))
    network = runtime.open_network(str(path), "native", {"inputs": str(tmp_path / "x.npz")})
    network.load()
    assert network.describe()["macs_per_inference"] == str(7 * (16 * 32 + 32 * 8))
    network.close()


def test_the_cost_is_part_of_the_description(tmp_path: Path) -> None:
    network = runtime.open_network(str(save(tmp_path / "m.onnx")), "native", {})
    assert "macs_per_inference" not in network.describe()
    network.load()
    actual = network.describe()
    assert (actual["macs_per_inference"], actual["parameters"]) == ("768", "768")
    assert (actual["weight_bytes"], actual["activation_bytes"]) == ("3072", str(4 * (16 + 32 + 32 + 8)))
    network.close()


def test_a_network_that_cannot_be_traced_is_an_error_with_the_reason(tmp_path: Path) -> None:
    network = runtime.open_network(str(save(tmp_path / "m.onnx")), "native", {})
    with pytest.raises(NetworkError, match="after load"):
        network.trace(tmp_path / "t.json")
    network.load()
    with pytest.raises(NetworkError, match="after load"):
        network.trace(tmp_path / "t.json")
    network.prepare(2)

    class Elsewhere:
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    network._session = Elsewhere()
    with pytest.raises(NetworkError, match="the time to launch operators"):
        network.trace(tmp_path / "t.json")
    network.close()


# The command

OWN = """
from joulewatch_harness.traces import Operator, Trace, write_trace  # noqa: E402
class Blind:
    def describe(self): return {"precision": "fp32", "runtime": "numpy"}
    def load(self): pass
    def prepare(self, batch): self.batch = batch
    def run(self, batches, phases): pass
    def close(self): pass
class Seeing(Blind):
    def trace(self, path):
        dot = Operator(name="a", op="Dot", time_ns=90, calls=1, macs=8)
        trace = Trace(
            runtime="numpy", source="its own clock", batch_size=self.batch, batches=1, time_ns=100, operators=(dot,)
        )
        write_trace(trace, path)
class Wrong(Seeing):
    def prepare(self, batch): self.batch = batch + 1
class Broken(Blind):
    def trace(self, path): raise ValueError("no clock")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def world() -> World:
    names = ("radioml-vgg10/onnxruntime/fp32", "radioml-vgg10/onnxruntime/int8")
    return make_world(TWO_SOCKETS, configurations=names, batch_sizes=(1, 8), rounds=3)


@pytest.fixture
def runs(world: World, folder: Path) -> Path:
    """A run of known energy in the output directory."""
    assert world.record is not None
    with Journal.create(folder / "runs", world.record.header) as journal:
        for line in (*world.record.configurations, *world.record.windows, world.record.end):
            assert line is not None
            journal.append(line)
    write_recording(world, folder / "runs" / RUN / "recording.sqlite")
    return folder / "runs"


def test_times_and_macs_of_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["layers", "--model", str(save(folder / "m.onnx")), "--no-energy", "--batch-size", "4", "--format", "json"]
    assert main([*words, "--figure", str(folder / "f.png"), "--trace", str(folder / "t.json")]) == 0
    actual = json.loads(capsys.readouterr().out)
    assert actual["batch_size"] == 4
    assert actual["basis"] is None
    assert actual["macs_per_inference"] == 768
    assert actual["precision"] == "fp32"
    assert (folder / "f.png").stat().st_size > 5000
    assert read_trace(folder / "t.json").batch_size == 4
    assert not (folder / "runs").exists()


def test_energy_comes_from_the_given_run(runs: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "--run", RUN, "--precision", "int8", "--batch-size", "8", "--format", "json"]) == 0
    captured = capsys.readouterr()
    actual = json.loads(captured.out)
    assert world.record is not None
    (group,) = [
        item
        for item in analyze_run(world.record, None).groups
        if item.configuration.precision == "int8" and item.batch_size == 8
    ]
    assert group.total.gross is not None
    assert actual["network"] == "radioml-vgg10"
    assert actual["basis"]["run"] == RUN
    assert actual["basis"]["windows"] == list(group.windows)
    assert actual["basis"]["joules_per_inference"] == pytest.approx(group.total.gross.value, rel=1e-3)
    rows = [*actual["operators"], actual["between_operators"]]
    total = sum(row["estimated_joules_per_inference"] for row in rows)
    assert total == pytest.approx(actual["basis"]["joules_per_inference"])
    assert "is an ESTIMATE" in captured.err


@pytest.mark.parametrize(
    "words", [[], ["--model", "nets/m.onnx"], ["m"], ["--model", "moved/m.onnx"]], ids=lambda words: " ".join(words)
)
@pytest.mark.parametrize("version", ["now", "0.1.0"])
def test_a_model_file_of_a_run_is_found_by_its_name_or_path(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], version: str
) -> None:
    """Version 0.1.0 wrote the path as the name of the network."""
    for place in ("nets", "moved"):
        (folder / place).mkdir()
        save(folder / place / "m.onnx")
    world = make_world(TWO_SOCKETS, configurations=("m/onnxruntime/fp32",), batch_sizes=(8,), rounds=3)
    assert world.record is not None
    (loaded,) = world.record.configurations
    names = {"network": "nets/m.onnx"} if version == "0.1.0" else {"path": "nets/m.onnx"}
    with Journal.create(folder / "runs", world.record.header) as journal:
        for line in (dataclasses.replace(loaded, **names), *world.record.windows):
            journal.append(line)
    write_recording(world, folder / "runs" / RUN / "recording.sqlite")
    assert main(["layers", "--run", RUN, *words, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["network"] == "m"


def test_a_fixed_batch_axis_replaces_the_default_batch_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matmul(folder / "fixed.onnx", batch=4)
    words = ["layers", "--model", "fixed.onnx", "--no-energy", "--format", "json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["batch_size"] == 4
    assert main([*words, "--batch-size", "8"]) == 1
    assert "has a fixed batch axis of 4, not 8" in capsys.readouterr().err


def test_differences_from_the_run_are_noted(world: World) -> None:
    assert world.record is not None
    result = analyze_run(world.record, None)
    then = result.groups[0].configuration
    object.__setattr__(then, "model_sha256", "a" * 64)
    object.__setattr__(then, "runtime_version", "1.0")
    try:
        notes = command.differences(result, then, {"model_sha256": "b" * 64, "runtime_version": "1.1"})
    finally:
        object.__setattr__(then, "model_sha256", "")
        object.__setattr__(then, "runtime_version", "")
    assert any("different model files: run aaaa" in note for note in notes)
    assert any("different versions of the runtime: run 1.0, trace 1.1" in note for note in notes)


def child(folder: Path, text: str) -> tuple[str, ...]:
    (folder / "child.py").write_text(text)
    return (sys.executable, str(folder / "child.py"))


def test_without_a_run_a_short_run_is_made_in_another_process(
    runs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json.dumps({"run": {"id": RUN}})
    text = f"import sys; open('words', 'w').write(' '.join(sys.argv[1:])); print({answer!r})"
    monkeypatch.setattr(command, "PROFILE", child(folder, text))
    assert (
        main(["layers", "--batch-size", "8", "--option", "filters=32", "--threads", "1", "--exporter", "http://a:1"])
        == 0
    )
    captured = capsys.readouterr()
    words = (folder / "words").read_text()
    assert words.startswith("--network radioml-vgg10 --precision fp32 --batch-sizes 8 --preset quick")
    assert words.endswith("--option filters=32 --option threads=1 --exporter http://a:1")
    assert f"energy: run {RUN}, 3 windows" in captured.out
    assert "!!! Energy per operator is an ESTIMATE" in captured.out


def test_a_short_run_that_fails_leaves_the_times(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["layers", str(save(folder / "m.onnx"))]
    monkeypatch.setattr(command, "PROFILE", child(folder, "import sys; sys.exit(2)"))
    assert main(words) == 0
    assert "note: No energy: the short run ended with exit code 2" in capsys.readouterr().out
    monkeypatch.setattr(command, "PROFILE", child(folder, "print('{}')"))
    assert main(words) == 0
    assert "note: No energy: the short run printed no result" in capsys.readouterr().out


def test_a_custom_network_can_be_traced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "own.py:Seeing", "--no-energy", "--batch-size", "2"]) == 0
    out = capsys.readouterr().out
    assert "Seeing, numpy, fp32, batch size 2" in out
    assert "its own clock" in out


Words = Callable[[Path], list[str]]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["own.py:Blind"], "does not report times of operators.*use --runtime onnxruntime, openvino, torch, tvm,"),
        *(
            ([*words, "--runtime", name], f"layers does not support the runtime {name}, .*: use --runtime onnxruntime")
            for name in ("finn", "kserve", "openai", "process")
            for words in ([], ["m.onnx"])
        ),
        (["own.py:Wrong", "--no-energy"], "its trace has batch size 2, not 1"),
        (["own.py:Broken", "--no-energy"], "could not be traced: ValueError: no clock"),
        (["radioml-vgg", "--no-energy"], "did you mean radioml-vgg10"),
        (["mlp", "--precision", "int7"], "unknown precision 'int7'"),
        (["mlp", "--model", "m.onnx"], "both name a network"),
        (["--model", "none.onnx"], "no model file none.onnx"),
        (["mlp", "--batch-size", "1,2"], "must be a single batch size"),
        (["mlp", "--batch-size", "0"], "a batch size must be an integer"),
        (["mlp", "--option", "width"], "must be KEY=VALUE"),
        (["mlp", "--runtime", "onnxruntim"], "did you mean onnxruntime"),
        (["mlp", "--figure", "f.gif"], "must end in .png"),
        (["mlp", "--trace", "none/t.json"], "the directory none does not exist"),
        (["--run", "x", "--no-energy"], "give one of them"),
        (["mlp", "--configuration", "x"], "needs --run"),
        (["mlp", "--prometheus", "http://p:9090"], "needs --run"),
        (["--run", "nothing"], "nothing"),
        (["--run", RUN], "several configurations match.*fp32, radioml-vgg10/onnxruntime/int8"),
        (["--run", RUN, "--precision", "int8"], "at batch sizes 1, 8: choose one"),
        (["--run", RUN, "--precision", "fp16"], "no configuration matches"),
        (["--run", RUN, "--precision", "int8", "--batch-size", "3"], "no configuration matches"),
        (["mlp", "--run", RUN], "no configuration matches; choose one with --configuration: radioml-vgg10"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_without_a_traceback(
    runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main(["layers", *words]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert re.search(text, " ".join(captured.err.split())), captured.err


def test_a_run_without_energy_is_an_error(world: World) -> None:
    assert world.record is not None
    result = analyze_run(world.record, None)
    with pytest.raises(CoverageError, match="no measured window of nothing"):
        basis_of(result, "nothing", 8)
    object.__setattr__(result.groups[0].total, "gross", None)
    group = result.groups[0]
    with pytest.raises(CoverageError, match="has no energy"):
        basis_of(result, group.configuration.name, group.batch_size)
