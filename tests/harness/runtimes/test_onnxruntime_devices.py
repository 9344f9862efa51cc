"""ONNX Runtime's providers for GPUs at the border of its API: where memory lies, what fell back, what computes in TF32.

Sessions are real ones on the CPU that say they were made by another provider; none of it ran on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from joulewatch_harness.errors import ConfigError, NetworkError  # noqa: E402
from joulewatch_harness.network import Phases  # noqa: E402
from joulewatch_harness.records import Configuration  # noqa: E402
from joulewatch_harness.runtimes import as_loaded  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime import network as runtime  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime import options  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime.network import OnnxRuntimeNetwork  # noqa: E402
from joulewatch_harness.runtimes.onnxruntime.options import CUDA, DEFAULT_PROVIDER, TENSORRT  # noqa: E402
from support.onnx_models import dequantised, matmul  # noqa: E402


@dataclass
class FakeNode:
    op_type: str


@dataclass
class FakePart:
    """Operators that one provider took."""

    ep_name: str
    ops: Sequence[str]

    def get_nodes(self) -> list[FakeNode]:
        return [FakeNode(op) for op in self.ops]


@dataclass
class FakeGpu:
    """What was asked of the providers, and what they answer."""

    providers: list[Any] = field(default_factory=list)
    bound: list[tuple[str, str, int]] = field(default_factory=list)
    uploaded: list[tuple[str, int]] = field(default_factory=list)
    waits: int = 0
    parts: Sequence[FakePart] | None = None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    found = FakeGpu()
    real_session, real_value = onnxruntime.InferenceSession, onnxruntime.OrtValue

    class Binding:
        def __init__(self, real: Any) -> None:
            self.real = real

        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            self.real.bind_ortvalue_input(name, value)

        def bind_output(self, name: str, device: str, number: int) -> None:
            found.bound.append((name, device, number))
            self.real.bind_output(name, "cpu", 0)

        def copy_outputs_to_cpu(self) -> Any:
            return self.real.copy_outputs_to_cpu()

        def synchronize_outputs(self) -> None:
            found.waits += 1

    class Session:
        def __init__(self, path: str, settings: Any, providers: list[Any]) -> None:
            found.providers.append(providers)
            self._real = real_session(path, settings, providers=[DEFAULT_PROVIDER])
            self._names = [item if isinstance(item, str) else item[0] for item in providers]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def get_providers(self) -> list[str]:
            return [*self._names, DEFAULT_PROVIDER]

        def run_with_iobinding(self, binding: Binding) -> None:
            self._real.run_with_iobinding(binding.real)

        def io_binding(self) -> Binding:
            return Binding(self._real.io_binding())

        def get_provider_graph_assignment_info(self) -> Sequence[FakePart]:
            return [FakePart(self._names[0], ["MatMul"])] if found.parts is None else found.parts

    class Value:
        @staticmethod
        def ortvalue_from_numpy(array: Any, device: str, number: int) -> Any:
            found.uploaded.append((device, number))
            return real_value.ortvalue_from_numpy(array)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, DEFAULT_PROVIDER])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    monkeypatch.delenv(runtime.TF32_SWITCH, raising=False)
    return found


def opened(path: Path, precision: str = "native", **given: str) -> OnnxRuntimeNetwork:
    return runtime.open_network(str(path), precision, {"provider": CUDA, **given})


def loaded(path: Path, precision: str = "native", **given: str) -> OnnxRuntimeNetwork:
    network = opened(path, precision, **given)
    network.load()
    return network


def test_inputs_and_outputs_stay_on_the_device(gpu: FakeGpu, tmp_path: Path) -> None:
    """Nothing is copied in a batch, and a call of run() ends with the device."""
    network = loaded(matmul(tmp_path / "m.onnx"), device_id="1")
    network.prepare(4)
    assert (gpu.uploaded, gpu.bound) == ([("cuda", 1)], [("y", "cuda", 1)])
    phases = Phases()
    network.run(3, phases)
    assert {name: count for name, (count, _) in phases.spans.items()} == {"execute": 3}
    assert (len(phases.batch_ends_ns), gpu.waits) == (3, 1)
    description = network.describe()
    assert (description["device"], description["provider"], description["copies"]) == ("cuda:1", CUDA, "excluded")
    assert network.check()
    network.close()


def test_requested_copies_are_phases(gpu: FakeGpu, tmp_path: Path) -> None:
    network = loaded(matmul(tmp_path / "m.onnx"), copies="true")
    network.prepare(4)
    phases = Phases()
    network.run(3, phases)
    assert {name: count for name, (count, _) in phases.spans.items()} == {"copy_in": 3, "execute": 3, "copy_out": 3}
    assert len(phases.batch_ends_ns) == 3
    assert network.describe()["copies"] == "included"
    network.close()


def test_copies_move_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ONNX Runtime's own values and bindings, on the one device there is."""
    for module in (runtime, options):
        monkeypatch.setattr(module, "DEVICE_OF", {DEFAULT_PROVIDER: "cpu"})
    network = loaded(matmul(tmp_path / "m.onnx"), provider=DEFAULT_PROVIDER, copies="true")
    network.prepare(2)
    ((value, _),) = network._uploads
    array = np.ones((2, 4), np.float32)
    network._uploads = [(value, array)]
    assert not np.array_equal(value.numpy(), array)
    network.run(1, Phases())
    assert np.array_equal(value.numpy(), array)
    assert network._binding.copy_outputs_to_cpu()[0].tolist() == [[4.0] * 3] * 2
    network.close()


@pytest.mark.parametrize(
    ("precision", "options", "expected"),
    [
        ("fp32", {}, "fp32"),
        ("native", {}, "fp32"),
        ("tf32", {}, "tf32"),
        ("fp32", {"tf32": "true", "any_precision": "true"}, "tf32"),
    ],
)
def test_tf32_is_off_unless_requested(
    gpu: FakeGpu, tmp_path: Path, precision: str, options: dict[str, str], expected: str
) -> None:
    """The provider's own default is on, in silence."""
    network = loaded(matmul(tmp_path / "m.onnx"), precision, **options)
    ((name, settings),) = gpu.providers[-1]
    assert (name, settings["use_tf32"], settings["device_id"]) == (CUDA, "1" if expected == "tf32" else "0", "0")
    assert (network.describe()["precision"], network.describe()["tf32"]) == (expected, str(expected == "tf32").lower())
    network.close()


def test_tf32_in_place_of_fp32_is_an_error(gpu: FakeGpu, tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx")
    network = loaded(path, "fp32", tf32="true")
    with pytest.raises(ConfigError, match="the precision fp32 was requested, but the network computes in tf32"):
        as_loaded(
            Configuration(name="n", network=str(path), runtime="onnxruntime", precision="fp32"), network.describe()
        )
    network.close()


def test_half_precision_has_no_tf32(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "actual_precision", lambda _graph: ("fp16", "0 of 1"))
    network = loaded(matmul(tmp_path / "m.onnx"), "fp16", tf32="true")
    assert network.describe()["precision"] == "fp16"
    network.close()


def test_tensorrt_computes_in_tf32_unless_the_environment_forbids_it(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = matmul(tmp_path / "m.onnx")
    for precision in ("fp32", "native"):
        with pytest.raises(ConfigError, match=r"TensorRT computes float32 in TF32 unless .*NVIDIA_TF32_OVERRIDE=0"):
            loaded(path, precision, provider=TENSORRT)
    network = loaded(path, "tf32", provider=TENSORRT)
    assert network.describe()["precision"] == "tf32"
    network.close()
    network = loaded(path, "fp32", provider=TENSORRT, any_precision="true")
    assert network.describe()["precision"] == "tf32"
    network.close()
    monkeypatch.setenv(runtime.TF32_SWITCH, "0")
    network = loaded(path, "fp32", provider=TENSORRT)
    assert (network.describe()["precision"], network.describe()["tf32"]) == ("fp32", "false")
    network.close()
    network = loaded(path, "tf32", provider=TENSORRT)
    assert network.describe()["precision"] == "fp32", "what the environment forbids is not reported"
    network.close()


def test_operators_that_tensorrt_does_not_run_stay_on_the_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    network = loaded(matmul(tmp_path / "m.onnx", dtype=np.float16), "fp16", provider=TENSORRT, device_id="2")
    assert gpu.providers[-1] == [
        (TENSORRT, {"device_id": "2", "trt_fp16_enable": "1"}),
        (CUDA, {"device_id": "2", "use_tf32": "0"}),
    ]
    network.close()


def test_the_precision_of_quantised_operators_in_tensorrt_is_unknown(gpu: FakeGpu, tmp_path: Path) -> None:
    path = dequantised(tmp_path / "q.onnx", "MatMul", (4, 3), ["b", 4], ["b", 3])
    network = loaded(path, "int8", provider=TENSORRT, optimization="disabled")
    assert (network.describe()["precision"], network.describe()["integer_ops"]) == ("", "")
    network.close()


def test_single_operators_that_fell_back_are_an_error_unless_allowed(gpu: FakeGpu, tmp_path: Path) -> None:
    """A session that says TensorrtExecutionProvider may compute most of the network elsewhere."""
    path = matmul(tmp_path / "m.onnx")
    gpu.parts = [
        FakePart(TENSORRT, ["Conv"] * 4),
        FakePart(CUDA, ["Conv", "Relu"]),
        FakePart(DEFAULT_PROVIDER, ["Gather", "Gather", "Shape"]),
    ]
    options = {"provider": TENSORRT, "any_precision": "true"}
    with pytest.raises(
        NetworkError,
        match=r"TensorrtExecutionProvider does not run all operators "
        r"\(5 of 9: CUDA Conv 1, Relu 1; CPU Gather 2, Shape 1\)"
        r", including Conv: set any_provider=true",
    ):
        loaded(path, **options)
    network = loaded(path, any_provider="true", **options)
    assert network.describe()["nodes_elsewhere"] == "5 of 9: CUDA Conv 1, Relu 1; CPU Gather 2, Shape 1"
    network.close()


def test_shape_operators_on_the_cpu_are_reported(gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.parts = [FakePart(CUDA, ["Conv"] * 4), FakePart(DEFAULT_PROVIDER, ["Shape"])]
    network = loaded(matmul(tmp_path / "m.onnx"))
    assert network.describe()["nodes_elsewhere"] == "1 of 5: CPU Shape 1"
    network.close()


def test_a_version_without_assignments_is_reported(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info", None)
    network = loaded(matmul(tmp_path / "m.onnx"))
    assert network.describe()["nodes_elsewhere"].startswith("not reported by ONNX Runtime")
    network.close()


def test_onnx_runtime_reports_the_provider_of_each_operator(tmp_path: Path) -> None:
    """Of the real API, with the one provider there is: asked for another, all of it runs elsewhere."""
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell")
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(matmul(tmp_path / "m.onnx"), settings, providers=[DEFAULT_PROVIDER])
    parts = session.get_provider_graph_assignment_info()
    assigned = [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]
    assert runtime.elsewhere(assigned, DEFAULT_PROVIDER) == "0 of 1"
    assert runtime.elsewhere(assigned, CUDA) == "1 of 1: CPU MatMul 1"


@pytest.mark.parametrize("option", [{"copies": "true"}, {"device_id": "0"}, {"tf32": "false"}])
def test_options_of_gpus_need_one(tmp_path: Path, option: dict[str, str]) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=rf"option {name}: is for GPUs, but the provider is CPU.*provider=CUDA"):
        runtime.open_network(str(matmul(tmp_path / "m.onnx")), "native", option)


def test_tf32_on_a_cpu_is_not_reported(tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx")
    network = runtime.open_network(str(path), "tf32", {})
    network.load()
    with pytest.raises(ConfigError, match="the precision tf32 was requested, but the network computes in fp32"):
        as_loaded(
            Configuration(name="n", network=str(path), runtime="onnxruntime", precision="tf32"), network.describe()
        )
    network.close()


def test_the_profile_of_a_gpu_is_not_taken_for_its_times(gpu: FakeGpu, tmp_path: Path) -> None:
    network = loaded(matmul(tmp_path / "m.onnx"))
    network.prepare(2)
    with pytest.raises(NetworkError, match="the time to launch operators"):
        network.trace(tmp_path / "t.json")
    network.close()
