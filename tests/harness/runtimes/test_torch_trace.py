"""PyTorch's profiler: outermost operators with names and work; kernels of a GPU from events made here."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from joulewatch_harness.errors import NetworkError  # noqa: E402
from joulewatch_harness.runtimes.shared import tracing  # noqa: E402
from joulewatch_harness.runtimes.torch import network as runtime  # noqa: E402
from joulewatch_harness.runtimes.torch import tracing as torch_trace  # noqa: E402
from joulewatch_harness.runtimes.torch.network import TorchNetwork  # noqa: E402
from joulewatch_harness.runtimes.torch.tracing import BATCH, Profiler, batches_of, macs_of  # noqa: E402
from joulewatch_harness.traces import Trace, read_trace  # noqa: E402

MODULES = """
import torch


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3, padding=1), torch.nn.ReLU())
        self.memory = torch.nn.LSTM(8, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x):
        x, _ = self.memory(self.stem(x).transpose(1, 2))
        x = self.head(x.mean(1))
        return x @ x.T @ x


def leaf():
    return torch.nn.Linear(4, 2)
"""
X = "x:float32[batch,4,16]"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traces of a few batches; PyTorch's threads are put back."""
    monkeypatch.setattr(tracing, "AIM_S", 0.01)
    monkeypatch.setattr(tracing, "PAUSE_S", 0.0)
    yield
    torch.set_num_threads(runtime.DEFAULT_THREADS)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULES)
    return path


def prepared(network: str | Path, precision: str, batch: int, **options: str) -> TorchNetwork:
    found = runtime.open_network(str(network), precision, {"threads": "1", **options})
    found.load()
    found.prepare(batch)
    return found


def traced(network: str | Path, precision: str, batch: int, tmp_path: Path, **options: str) -> Trace:
    found = prepared(network, precision, batch, **options)
    try:
        found.trace(tmp_path / "trace.json")
    finally:
        found.close()
    return read_trace(tmp_path / "trace.json")


@pytest.mark.parametrize(
    ("network", "precision", "options", "names"),
    [
        ("radioml-vgg10", "fp32", {"filters": "32"}, {"conv1", "conv7", "conv3.pool", "fc3"}),
        ("mobilenet-like", "bf16", {"size": "32", "width": "35"}, {"stem", "block2.expand", "classifier"}),
        ("transformer-encoder", "fp32", {"sequence": "8", "width": "128", "depth": "1"}, {"layer1.up", "layer1.mix"}),
    ],
)
def test_operators_have_the_names_of_the_model(
    network: str, precision: str, options: dict[str, str], names: set[str], tmp_path: Path
) -> None:
    trace = traced(network, precision, 2, tmp_path, **options)
    assert trace.batches >= tracing.FEWEST_BATCHES
    assert names <= {item.name for item in trace.operators}
    assert sum(item.macs or 0 for item in trace.operators) == trace.macs
    assert all(item.macs is not None for item in trace.operators)
    # Nothing is counted twice: nested calls lie inside their operator.
    assert sum(item.time_ns for item in trace.operators) <= trace.time_ns
    assert trace.plain_time_ns


def test_an_exported_program_has_its_own_names(tmp_path: Path) -> None:
    trace = traced("radioml-vgg10", "fp32", 2, tmp_path, filters="32", mode="export")
    assert {"conv1d", "conv1d_6", "linear_2"} <= {item.name for item in trace.operators}
    assert sum(item.macs or 0 for item in trace.operators) == trace.macs


def test_layers_of_a_module_have_their_names(code: Path, tmp_path: Path) -> None:
    trace = traced("mine", "fp32", 3, tmp_path, module=f"{code}:Layers", signature=X)
    found = {item.name: item for item in trace.operators}
    assert (found["stem.0"].op, found["stem.0"].macs) == ("Conv1d", 3 * 8 * 16 * 4 * 3)
    assert (found["stem.1"].op, found["stem.1"].macs) == ("ReLU", 0)
    assert (found["memory"].op, found["memory"].macs) == ("LSTM", None), "what it multiplies is not seen"
    assert found["head"].macs == 3 * 8 * 2
    # Outside of the layers: the same function twice in a batch is two operators.
    assert (found["matmul 1"].macs, found["matmul 2"].macs) == (3 * 2 * 3, 3 * 3 * 2)
    assert trace.macs is None


def test_a_module_without_parts_is_one_operator(code: Path, tmp_path: Path) -> None:
    trace = traced("mine", "fp32", 3, tmp_path, module=f"{code}:leaf", signature="x:float32[batch,4]")
    assert [(item.name, item.op, item.macs) for item in trace.operators] == [("Linear", "Linear", 3 * 4 * 2)]


def test_torchscript_operators_are_functions(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.trace(module, torch.ones(1, 4)).save(path)
    trace = traced(path, "native", 5, tmp_path, signature="x:float32[batch,4]")
    assert [(item.name, item.macs) for item in trace.operators] == [
        ("linear 1", 5 * 4 * 8),
        ("relu", 0),
        ("linear 2", 5 * 8 * 2),
    ]


def test_ranges_are_gone_after_tracing(code: Path, tmp_path: Path) -> None:
    """Nothing of the trace is left in what is measured."""
    network = prepared("mine", "fp32", 3, module=f"{code}:Layers", signature=X)
    call, wanted = network._call, network._outputs.clone()
    network.trace(tmp_path / "t.json")
    assert network._call is call
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network._module.modules())
    assert torch.equal(network._outputs, wanted)
    network.close()
    network = prepared("radioml-vgg10", "fp32", 1, filters="32")
    before = len(network._module.graph.nodes)
    network.trace(tmp_path / "t.json")
    assert len(network._module.graph.nodes) == before
    network.close()


def test_a_compiled_module_is_compiled_again_so_that_kernels_have_names(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def compiling(module: Any, **words: Any) -> Any:
        asked.append(words)
        return lambda *inputs: module(*inputs)

    monkeypatch.setattr(torch, "compile", compiling)
    options = {"mode": "compile", "compile_mode": "reduce-overhead"}
    trace = traced("mine", "fp32", 2, tmp_path, module=f"{code}:leaf", signature="x:float32[batch,4]", **options)
    assert asked[0] == {"dynamic": False, "mode": "reduce-overhead"}
    assert asked[1] == {
        "dynamic": False,
        "options": {"cpp.enable_kernel_profile": True, "triton.cudagraphs": False},
    }
    assert [(item.name, item.op) for item in trace.operators] == [("linear", "aten::linear")]


# Work from shapes


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.conv1d(torch.ones(2, 4, 17), torch.ones(6, 2, 3), stride=2, padding=1, dilation=2, groups=2),
        lambda: torch.conv2d(torch.ones(2, 3, 9, 8), torch.ones(5, 3, 3, 2), stride=(2, 1), padding=(1, 0)),
        lambda: torch.conv3d(torch.ones(1, 2, 4, 4, 4), torch.ones(3, 2, 2, 2, 2)),
        lambda: torch.conv_transpose2d(torch.ones(2, 3, 4, 4), torch.ones(3, 5, 2, 2), stride=2),
        lambda: torch.nn.functional.linear(torch.ones(2, 3, 4), torch.ones(5, 4), torch.ones(5)),
        lambda: torch.ones(3, 4) @ torch.ones(4, 5),
        lambda: torch.ones(2, 3, 4) @ torch.ones(2, 4, 5),
        lambda: torch.baddbmm(torch.ones(1), torch.ones(2, 3, 4), torch.ones(2, 4, 5)),
        lambda: torch.einsum("bij,bkj->bik", torch.ones(2, 3, 4), torch.ones(2, 5, 4)),
        lambda: torch.nn.functional.scaled_dot_product_attention(
            torch.ones(2, 3, 5, 4), torch.ones(2, 3, 7, 4), torch.ones(2, 3, 7, 8)
        ),
    ],
)
def test_work_agrees_with_pytorch_own_counter(call: Callable[[], Any]) -> None:
    """PyTorch counts a multiply-accumulate as two."""
    profiler = Profiler(call=call, wait=lambda: None)
    with torch.inference_mode():
        profiler.count_work()
        with FlopCounterMode(display=False) as counter:
            call()
    assert sum(item or 0 for item in profiler.macs.values()) * 2 == counter.get_total_flops() > 0


def test_work_that_shapes_do_not_tell_is_not_known() -> None:
    assert macs_of(FakeEvent("aten::relu")) == 0
    assert macs_of(FakeEvent("aten::convert_element_type")) == 0
    assert macs_of(FakeEvent("mkldnn::_linear_pointwise")) is None
    assert macs_of(FakeEvent("aten::lstm", cpu_children=[FakeEvent("aten::empty")])) is None
    assert macs_of(FakeEvent("aten::mm", input_shapes=[[2, 3]])) is None
    assert macs_of(FakeEvent("triton_tem_fused_mm_0")) is None
    assert macs_of(FakeEvent("triton_poi_fused_convolution_relu_0")) == 0
    assert torch_trace.added(3, None) is None


# Events


@dataclass
class FakeSpan:
    start: float
    took_us: float = 7.0

    def elapsed_us(self) -> float:
        return self.took_us


@dataclass
class FakeEvent:
    name: str
    start: float = 0.0
    device_time_total: float = 0.0
    cpu_children: list[FakeEvent] = field(default_factory=list)
    device_type: Any = DeviceType.CPU
    input_shapes: list[list[int]] = field(default_factory=list)
    concrete_inputs: list[Any] = field(default_factory=list)

    @property
    def time_range(self) -> FakeSpan:
        return FakeSpan(self.start)


def compiled_batch() -> FakeEvent:
    """As ``torch.compile`` leaves it on a GPU; children out of order."""
    inside = [
        FakeEvent("triton_poi_fused_relu_0", 5.0, 2.0),
        FakeEvent("aten::convolution", 4.0, 30.0, [FakeEvent("aten::cudnn_convolution", 4.1, 30.0)]),
        FakeEvent("aten::convolution", 6.0, 20.0),
        FakeEvent("graph_3_cpp_fused_add_1", 7.0),
    ]
    region = FakeEvent(
        "Torch-Compiled Region: 0/0", 2.0, 52.0, [FakeEvent("## Call CompiledFxGraph f ##", 3.0, 52.0, inside)]
    )
    return FakeEvent(BATCH, 0.0, 52.0, [region, FakeEvent("TorchDynamo Cache Lookup", 1.0)])


def test_operators_of_compiled_code_are_found_below_its_wrappers() -> None:
    (batch,) = batches_of([compiled_batch(), FakeEvent(BATCH, device_type=DeviceType.CUDA)])
    assert [(name, op) for name, op, _ in batch] == [
        ("convolution 1", "aten::convolution"),
        ("triton_poi_fused_relu_0", "kernel"),
        ("convolution 2", "aten::convolution"),
        ("cpp_fused_add_1", "kernel"),
    ]


def test_on_a_gpu_an_operator_takes_as_long_as_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    events = [compiled_batch(), compiled_batch()]
    profiler = Profiler(call=lambda: None, wait=lambda: waits.append("wait"), on_gpu=True)
    asked: list[Any] = []

    class Profile(contextlib.nullcontext[Any]):
        def __init__(self, **words: Any) -> None:
            super().__init__(self)
            asked.append(words["activities"])

        def events(self) -> list[FakeEvent]:
            return events

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    assert profiler.block(2) > 0
    assert waits == ["wait", "wait"]
    assert asked == [[ProfilerActivity.CPU, ProfilerActivity.CUDA]]
    found = {item.name: (item.time_ns, item.calls) for item in profiler.operators(tracing.Work())}
    assert found["convolution 1"] == (60_000, 2)
    assert found["triton_poi_fused_relu_0"] == (4_000, 2)
    assert found["convolution 2"] == (40_000, 2)


def test_a_profile_without_operators_is_an_error() -> None:
    for events in ([], [FakeEvent(BATCH)]):
        with pytest.raises(NetworkError, match="recorded no operators"):
            batches_of(events)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
@pytest.mark.parametrize("options", [{}, {"cuda_graph": "true"}, {"mode": "compile"}])
def test_on_a_gpu(options: dict[str, str], tmp_path: Path) -> None:
    trace = traced("radioml-vgg10", "fp32", 8, tmp_path, device="cuda:0", **options)
    assert trace.macs == sum(item.macs or 0 for item in trace.operators)
    assert 0 < sum(item.time_ns for item in trace.operators) <= trace.time_ns
    assert bool(trace.notes) == ("cuda_graph" in options)
