"""PyTorch on the CPU with small modules and files; what needs a GPU is tested at the border of PyTorch's API."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from joulewatch_harness import networks  # noqa: E402
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError  # noqa: E402
from joulewatch_harness.network import Phases  # noqa: E402
from joulewatch_harness.records import Configuration  # noqa: E402
from joulewatch_harness.runtimes import as_loaded, find_object, open_network  # noqa: E402
from joulewatch_harness.runtimes.shared.signature import Input  # noqa: E402
from joulewatch_harness.runtimes.shared.timeline import Timeline  # noqa: E402
from joulewatch_harness.runtimes.torch import network as runtime  # noqa: E402
from joulewatch_harness.runtimes.torch.importing import module_of  # noqa: E402
from joulewatch_harness.runtimes.torch.network import TorchNetwork  # noqa: E402
from joulewatch_harness.runtimes.torch.options import Options  # noqa: E402
from support.onnx_models import dequantised, matmul, save  # noqa: E402

MODULES = """
import torch


class Small(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.linear = torch.nn.Linear(4, width)

    def forward(self, x):
        return {"logits": self.linear(x)}


def image():
    return torch.nn.Conv2d(3, 2, 3)


def text():
    return torch.nn.Embedding(5, 2)


class Narrow(torch.nn.Module):
    def forward(self, x):
        return x * 2


READY = Small()
NUMBER = 7


def broken():
    raise ValueError("no weights")


def number():
    return 7


def diverges():
    class Diverges(torch.nn.Module):
        def forward(self, x):
            return x / 0.0
    return Diverges()
"""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Settings of the process are put back for whatever test comes next."""
    yield
    torch.set_num_threads(runtime.DEFAULT_THREADS)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = True


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULES)
    return path


def opened(network: str | Path, precision: str = "native", **options: str) -> TorchNetwork:
    return runtime.open_network(str(network), precision, options)


def vgg10(precision: str, **options: str) -> TorchNetwork:
    return opened("radioml-vgg10", precision, filters="32", **options)


def small(code: Path, precision: str = "fp32", name: str = "Small", **options: str) -> TorchNetwork:
    options.setdefault("signature", "x:float32[batch,4]")
    return opened("mine", precision, module=f"{code}:{name}", **options)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_built_in_network_is_cast_to_the_precision(precision: str) -> None:
    network = vgg10(precision, threads="1")
    network.load()
    described = network.describe()
    assert (described["precision"], described["device"], described["mode"]) == (precision, "cpu", "eager")
    assert torch.get_num_threads() == described["threads"] == 1
    assert network.check()
    assert network._outputs.dtype == runtime.DTYPE_OF[precision]
    network.close()


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("mlp", {"width": "128", "depth": "2"}),
        ("mobilenet-like", {"size": "32", "width": "25"}),
        ("resnet-like", {"size": "32", "width": "16"}),
        ("transformer-encoder", {"sequence": "16", "width": "64", "depth": "1", "heads": "2"}),
    ],
)
def test_every_built_in_network_is_turned_into_pytorch(network: str, options: dict[str, str]) -> None:
    entry = networks.BUILTIN.get(network)
    if entry is None:
        pytest.skip(f"there is no {network}")
    try:
        found = opened(network, "fp32", **{key: value for key, value in options.items() if key in entry.options})
    except ConfigError:
        found = opened(network, "fp32")  # it comes in other sizes
    found.load()
    assert found.check()
    found.close()


def test_norms_and_biases_are_folded(tmp_path: Path) -> None:
    """VGG10 without BatchNorms, a MatMul with its bias in one call."""
    network = vgg10("fp32")
    network.load()
    called = [node.target for node in network._module.graph.nodes if node.op == "call_function"]
    assert torch.nn.functional.batch_norm not in called
    network.close()
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["b", "xw"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 4])},
        {"y": (TensorProto.FLOAT, ["batch", 3])},
        {"w": np.ones((4, 3), np.float32), "b": np.array([1, 2, 3], np.float32)},
    )
    module = module_of(path, None)
    assert [node.target for node in module.graph.nodes if node.op == "call_function"] == [torch.nn.functional.linear]
    assert module(torch.ones(1, 4)).tolist() == [[5.0, 6.0, 7.0]]


def operators() -> dict[str, tuple[list[Any], dict[str, np.ndarray]]]:
    """Name -> nodes from x [batch, 4, 6] to y, and constants."""
    node = helper.make_node

    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    rng = np.random.default_rng(0)
    kernel, norm = rng.standard_normal((2, 4, 3)).astype(np.float32), rng.uniform(0.5, 1.5, (4, 4)).astype(np.float32)
    return {
        "conv": (
            [node("Conv", ["x", "w"], ["y"], pads=[2, 0], strides=[2], dilations=[2])],
            {"w": kernel},
        ),
        "batch_norm": (
            [node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])],
            dict(zip("gbmv", norm, strict=True)),
        ),
        "max_pool": ([node("MaxPool", ["x"], ["y"], kernel_shape=[3], strides=[2], pads=[0, 1], ceil_mode=1)], {}),
        "average_pool": (
            [node("AveragePool", ["x"], ["y"], kernel_shape=[3], pads=[1, 1], count_include_pad=0)],
            {},
        ),
        "global_pool": ([node("GlobalAveragePool", ["x"], ["y"])], {}),
        "softmax": ([node("Softmax", ["x"], ["y"], axis=1)], {}),
        "log_softmax": ([node("LogSoftmax", ["x"], ["y"])], {}),
        "layer_norm": ([node("LayerNormalization", ["x", "s"], ["y"], epsilon=1e-3)], {"s": norm[0].repeat(2)[:6]}),
        "clip": ([node("Clip", ["x", "", "high"], ["y"])], {"high": np.array(0.5, np.float32)}),
        "hard": ([node("HardSigmoid", ["x"], ["a"], alpha=0.3), node("HardSwish", ["a"], ["y"])], {}),
        "leaky": ([node("LeakyRelu", ["x"], ["a"], alpha=0.2), node("Elu", ["a"], ["y"], alpha=0.5)], {}),
        "arithmetic": (
            [node("Div", ["x", "two"], ["a"]), node("Pow", ["a", "two"], ["b"]), node("Sub", ["b", "x"], ["y"])],
            {"two": np.array(2, np.float32)},
        ),
        "functions": (
            [
                node("Erf", ["x"], ["a"]),
                node("Exp", ["a"], ["b"]),
                node("Sqrt", ["b"], ["c"]),
                node("Neg", ["c"], ["y"]),
            ],
            {},
        ),
        "shapes": (
            [
                node("Unsqueeze", ["x", "axes"], ["a"]),
                node("Transpose", ["a"], ["b"], perm=[0, 3, 2, 1]),
                node("Squeeze", ["b", "last"], ["c"]),
                node("Reshape", ["c", "shape"], ["d"]),
                node("Flatten", ["d"], ["y"], axis=2),
            ],
            {"axes": ints(1), "last": ints(-1), "shape": ints(0, 2, -1)},
        ),
        "parts": (
            [
                node("Split", ["x", "sizes"], ["a", "b"], axis=1),
                node("Slice", ["a", "zero", "two", "minus"], ["c"]),
                node("Slice", ["b", "zero", "two", "minus"], ["d"]),
                node("Concat", ["d", "c"], ["y"], axis=1),
            ],
            {"sizes": ints(1, 3), "zero": ints(0), "two": ints(2), "minus": ints(-1)},
        ),
        "gather": (
            [node("Gather", ["x", "picks"], ["a"], axis=2), node("Gather", ["a", "one"], ["y"], axis=1)],
            {"picks": ints(3, 0, 3), "one": np.array(1, np.int64)},
        ),
        "mean": ([node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=0)], {}),
        "cast": (
            [node("Cast", ["x"], ["a"], to=TensorProto.INT32), node("Cast", ["a"], ["y"], to=TensorProto.FLOAT)],
            {},
        ),
        "matmul": ([node("MatMul", ["x", "w"], ["y"])], {"w": rng.standard_normal((2, 6, 2)).astype(np.float32)}),
        "gemm": (
            [node("Flatten", ["x"], ["a"]), node("Gemm", ["a", "w", "c"], ["y"], alpha=0.5, beta=2.0)],
            {"w": rng.standard_normal((24, 3)).astype(np.float32), "c": np.ones((1, 3), np.float32)},
        ),
    }


@pytest.mark.parametrize("name", sorted(operators()))
def test_operators_compute_what_onnx_runtime_computes(tmp_path: Path, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    nodes, weights = operators()[name]
    path = tmp_path / "m.onnx"
    inputs = {"x": (TensorProto.FLOAT, ["batch", 4, 6])}
    save(path, nodes, inputs, {"y": (TensorProto.FLOAT, None)}, weights)  # type: ignore[dict-item]
    x = np.random.default_rng(1).standard_normal((2, 4, 6)).astype(np.float32)
    (wanted,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    found = module_of(path, None)(torch.from_numpy(x)).numpy()
    assert found.shape == wanted.shape
    assert np.allclose(found, wanted, atol=1e-5)


def test_operators_without_a_counterpart_are_named(tmp_path: Path) -> None:
    path = dequantised(tmp_path / "q.onnx", "Conv", (3, 2, 3), ["batch", 2, 8], ["batch", 3, 6])
    with pytest.raises(ConfigError, match=r"q\.onnx: the operator DequantizeLinear.*onnxruntime or openvino"):
        opened(path).load()
    far = save(
        tmp_path / "f.onnx",
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 4]), "s": (TensorProto.INT64, [2])},
        {"y": (TensorProto.FLOAT, ["a", "b"])},
        {},
    )
    with pytest.raises(ConfigError, match=r"the operator Reshape \(y\).*its input 'shape' is computed at run time"):
        opened(far).load()


def test_a_file_of_half_precision_stays_so(tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx", dtype=np.float16)
    network = opened(path)
    network.load()
    assert network.describe()["precision"] == "fp16"
    assert network.check()
    network.close()


def test_another_precision_than_requested_is_an_error(tmp_path: Path) -> None:
    """A file that was compiled before has the precision it has."""
    path = exported(tmp_path / "m.pt2")
    asked = Configuration(name="n", network=str(path), runtime="torch", precision="bf16")
    network = open_network(asked)
    network.load()
    with pytest.raises(ConfigError, match="n: the precision bf16 was requested, but the network computes in fp32"):
        as_loaded(asked, network.describe())
    network.close()


def test_tf32_is_off_unless_requested_and_needs_a_gpu(code: Path) -> None:
    """PyTorch's own default is on, for convolutions."""
    torch.backends.cudnn.allow_tf32 = True
    network = small(code)
    network.load()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    network.close()
    for precision, options in (("tf32", {}), ("native", {"tf32": "true"})):
        with pytest.raises(ConfigError, match="cpu does not compute in TF32"):
            small(code, precision, **options).load()
    allowed = small(code, "tf32", any_precision="true")
    allowed.load()
    assert allowed.describe()["precision"] == "fp32"
    allowed.close()


def test_tf32_is_reported_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_has_tf32", lambda device: device.type == "cuda")
    module, gpu = torch.nn.Linear(2, 2), torch.device("cuda", 0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    assert runtime.actual_precision(module, gpu) == "fp32"
    torch.backends.cudnn.allow_tf32 = True
    assert runtime.actual_precision(module, gpu) == "tf32"
    assert runtime.actual_precision(module, torch.device("cpu")) == "fp32"
    assert runtime.actual_precision(module.to(torch.bfloat16), gpu) == "bf16"


def test_threads_are_set_before_each_window(code: Path) -> None:
    """They belong to the process: another network may have set others."""
    one, all_of_them = small(code, threads="1"), small(code)
    for network in (one, all_of_them):
        network.load()
    one.prepare(2)
    assert torch.get_num_threads() == 1
    all_of_them.prepare(2)
    assert torch.get_num_threads() == runtime.DEFAULT_THREADS
    one.close()
    all_of_them.close()


# Modules and files of one's own


@pytest.mark.parametrize("name", ["Small", "READY"])
@pytest.mark.parametrize("precision", ["native", "fp32", "bf16"])
def test_a_custom_module_runs(code: Path, name: str, precision: str) -> None:
    network = small(code, precision, name)
    network.load()
    description = network.describe()
    assert description["precision"] == ("fp32" if precision == "native" else precision)
    assert description["module"].endswith(f"mine.py:{name}")
    assert network.check()
    network.prepare(3)
    network.run(2, Phases())
    assert network._outputs["logits"].shape == (3, 3)
    network.close()


def test_a_module_without_weights_computes_in_the_type_of_its_inputs(code: Path) -> None:
    network = small(code, "bf16", "Narrow")
    network.load()
    assert network.describe()["precision"] == "bf16"
    network.prepare(2)
    assert network._outputs.dtype == torch.bfloat16
    network.close()


def test_whole_numbers_stay_whole(code: Path) -> None:
    network = small(code, "bf16", "text", signature="ids:int64[batch, seq]", dims="seq=6")
    network.load()
    network.prepare(2)
    assert network._outputs.shape == (2, 6, 2)
    network.close()


def test_channels_last(code: Path) -> None:
    network = small(code, "fp32", "image", signature="x:float32[batch,3,8,8]", channels_last="true")
    network.load()
    network.prepare(2)
    assert network._inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert network._outputs.is_contiguous(memory_format=torch.channels_last)
    network.run(1, Phases())
    network.close()
    with pytest.raises(ConfigError, match="channels_last is for inputs with four axes"):
        small(code, channels_last="true").load()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Missing", "has no 'Missing'"),
        ("broken", "cannot be created: ValueError: no weights"),
        ("number", r"returned int, not a torch\.nn\.Module"),
        ("NUMBER", r"is neither a torch\.nn\.Module nor a function"),
    ],
)
def test_code_that_returns_no_module_is_named(code: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        small(code, name=name).load()


def test_missing_code_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no file none\.py"):
        opened("mine", module="none.py:make", signature="x:float32[b]").load()


def test_outputs_that_are_not_finite_are_a_warning(code: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = small(code, name="diverges")
    network.load()
    assert network.check()
    assert "mine.py:diverges: outputs are not finite: number 0: NaN or infinite" in caplog.text
    assert "--option inputs=FILE.npz" in network.describe()["not_finite_outputs"]
    network.close()


def test_a_wrong_rank_is_an_error_of_that_batch(code: Path) -> None:
    network = small(code, signature="x:float32[batch,5]")
    network.load()
    with pytest.raises(NetworkError, match=r"mine\.py:Small: batch 2 cannot be run: RuntimeError: .*mat1 and mat2"):
        network.prepare(2)
    network.close()


def test_running_out_of_memory_is_a_memory_error(code: Path) -> None:
    network = small(code)
    network.load()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    network._module.forward = full
    with pytest.raises(MemoryError, match=r"batch 4 cannot be run: CUDA out of memory\. Tried to allocate"):
        network.prepare(4)
    network.close()


def exported(path: Path, *, dynamic_batch: bool = True, dtype: Any = None) -> Path:
    module = torch.nn.Linear(4, 3).eval().to(dtype)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    program = torch.export.export(module, (torch.ones(2, 4, dtype=dtype),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def test_an_exported_program_contains_its_inputs(tmp_path: Path) -> None:
    network = opened(exported(tmp_path / "m.pt2"))
    network.load()
    description = network.describe()
    assert (description["mode"], description["precision"]) == ("export", "fp32")
    assert network.check()
    network.prepare(5)
    assert network._outputs.shape == (5, 3)
    network.close()
    fixed = opened(exported(tmp_path / "fixed.pt2", dynamic_batch=False))
    fixed.load()
    assert fixed.describe()["inputs"].endswith(":float32[2,4]")
    assert fixed.check()
    with pytest.raises(UnsupportedBatchError, match=r"fixed\.pt2 has a fixed batch axis of 2, not 3"):
        fixed.prepare(3)
    fixed.close()
    narrow = opened(exported(tmp_path / "bf16.pt2", dtype=torch.bfloat16), "bf16")
    narrow.load()
    assert narrow.describe()["precision"] == "bf16"
    assert narrow.check()
    narrow.close()


def test_a_torchscript_file_needs_a_signature(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(torch.nn.Linear(4, 3).eval(), torch.ones(2, 4)), path)
    with pytest.raises(ConfigError, match=r"m\.pt: PyTorch does not report the inputs.*signature"):
        opened(path).load()
    network = opened(path, signature="x:float32[batch,4]")
    network.load()
    assert network.describe()["mode"] == "torchscript"
    assert network.check()
    network.close()
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 4), np.float32))
    network = opened(path, inputs=str(tmp_path / "in.npz"))
    network.load()
    network.prepare(3)
    assert network._outputs.shape == (3, 3)
    network.close()


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_missing_and_broken_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken.{suffix}"
    with pytest.raises(ConfigError, match=rf"no model file .*broken\.{suffix}"):
        opened(path)
    path.write_bytes(b"this is no model")
    with pytest.raises(ConfigError, match=rf"model file .*broken\.{suffix} cannot be loaded"):
        opened(path, signature="x:float32[4]").load()


def test_a_signature_where_there_is_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains its inputs"):
        opened(matmul(tmp_path / "m.onnx"), signature="x:float32[4]").load()


def test_a_missing_file_of_inputs_is_named(code: Path) -> None:
    with pytest.raises(ConfigError, match=r"no input file none\.npz"):
        small(code, signature="", inputs="none.npz").load()


# Modes


def test_export_mode_gives_the_same(code: Path) -> None:
    network = small(code, name="READY", mode="export")
    network.load()
    network.prepare(3)
    wanted = network._module(*network._inputs)["logits"]
    network.run(1, Phases())
    assert torch.allclose(network._outputs["logits"], wanted, atol=1e-6)
    assert network.check()
    network.close()


def test_compiling_goes_on_for_many_batch_sizes(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default PyTorch gives up after eight of them, and runs the rest uncompiled without an error."""
    compiled: list[int] = []

    def backend(graph: Any, examples: Any) -> Callable[..., Any]:
        compiled.append(len(examples))
        return graph.forward  # type: ignore[no-any-return]

    plain = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, *, dynamic, mode: plain(module, dynamic=False, backend=backend)
    )
    network = small(code, mode="compile")
    network.load()
    assert network.describe()["compile_mode"] == "default"
    for batch in range(2, 14):
        network.prepare(batch)
    assert len(compiled) == 12
    network.prepare(3)
    phases = Phases()
    network.run(2, phases)
    assert len(compiled) == 12
    assert phases.spans["execute"][0] == 2
    network.close()
    torch.compiler.reset()


def test_a_missing_compiler_is_an_error_with_a_fix(code: Path) -> None:
    class InvalidCxxCompiler(RuntimeError):
        pass

    network = small(code)
    network.load()

    def compiling(*_: Any) -> None:
        raise InvalidCxxCompiler("no working C++ compiler")

    network._compiled = compiling
    with pytest.raises(ConfigError, match=r"mode=compile needs a C\+\+ compiler: apt-get install g\+\+"):
        network.prepare(2)
    network.close()


# Devices


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "cpu:0", "tpu", ""])
def test_an_unknown_device_is_named(code: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown device '{text}'"):
        small(code, device=text).load()


def test_a_missing_gpu_is_an_error_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    with pytest.raises(ConfigError, match=r"this build of PyTorch \(.*\) is for CPUs only: install one with CUDA"):
        runtime.find_device("cuda:0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"finds no GPU: nvidia-smi must list one, with a driver for CUDA 13\.0"):
        runtime.find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(runtime.find_device("cuda:1")) == "cuda:1"
    with pytest.raises(ConfigError, match="the device cuda:2 does not exist: the last one is cuda:1"):
        runtime.find_device("cuda:2")


@dataclass(eq=False)
class FakeEvent:
    """A moment on a device whose time is a counter."""

    device: FakeDevice
    at_ms: float = -1.0
    read: bool = False

    def record(self) -> None:
        self.at_ms = self.device.now_ms

    def synchronize(self) -> None:
        self.read = True

    def elapsed_time(self, later: FakeEvent) -> float:
        assert later.read, "read before the device was there"
        return later.at_ms - self.at_ms


@dataclass
class FakeDevice:
    now_ms: float = 0.0
    made: int = 0

    def event(self) -> FakeEvent:
        self.made += 1
        return FakeEvent(self)


def on_a_fake_gpu(network: TorchNetwork, device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared on the CPU, run as on a GPU: the module takes 3 ms of the device's time, each copy 1 ms."""
    network.prepare(2)
    network._timeline = Timeline(device.event)
    network._device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    module = network._call

    def call(*inputs: Any) -> Any:
        device.now_ms += 3.0
        return module(*inputs)

    class Copied:
        def copy_(self, _other: Any, non_blocking: bool) -> None:
            assert non_blocking, "a copy that waits stops the host in every batch"
            device.now_ms += 1.0

    network._call = call
    network._pinned = [(Copied(), None)]
    network._received = [Copied()]


@pytest.mark.parametrize("copies", [False, True])
def test_phases_of_a_gpu_come_from_events(code: Path, monkeypatch: pytest.MonkeyPatch, copies: bool) -> None:
    device, network = FakeDevice(), small(code)
    network.load()
    on_a_fake_gpu(network, device, monkeypatch)
    object.__setattr__(network._options, "copies", copies)
    phases = Phases()
    network.run(4, phases)
    network.run(2, phases)
    wanted = {"execute": [6, 18_000_000]}
    if copies:
        wanted |= {"copy_in": [6, 6_000_000], "copy_out": [6, 6_000_000]}
    assert phases.spans == wanted
    assert len(phases.batch_ends_ns) == 6
    first = np.diff(np.array(phases.batch_ends_ns[:4]))
    assert first.tolist() == [5_000_000 if copies else 3_000_000] * 3
    assert device.made == (13 if copies else 5), "events are used again"
    network.close()


def test_without_events_a_call_is_one_span(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small(code)
    network.load()
    on_a_fake_gpu(network, FakeDevice(), monkeypatch)
    network._timeline = None
    phases = Phases()
    network.run(5, phases)
    assert phases.spans["execute"][0] == 1
    assert not phases.batch_ends_ns
    network.close()


def test_a_captured_graph_is_replayed(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small(code)
    network.load()
    on_a_fake_gpu(network, FakeDevice(), monkeypatch)

    class Graph:
        replays = 0

        def replay(self) -> None:
            self.replays += 1

    network._graph = graph = Graph()
    network.run(5, Phases())
    assert graph.replays == 5
    network.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("options", [{}, {"copies": "true"}, {"cuda_graph": "true", "copies": "true"}])
def test_on_a_gpu(precision: str, options: dict[str, str]) -> None:
    network = vgg10(precision, device="cuda:0", **options)
    network.load()
    assert network.describe()["precision"] == precision
    assert network.check()
    network.prepare(4)
    phases = Phases()
    network.run(3, phases)
    names = {"copy_in", "execute", "copy_out"} if "copies" in options else {"execute"}
    assert set(phases.spans) == names
    assert len(phases.batch_ends_ns) == 3
    network.close()


# Options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "jit"}, "option mode: unknown value 'jit'"),
        ({"compile_mode": "fast"}, "option compile_mode: unknown value 'fast'"),
        ({"compile_mode": "default"}, "option compile_mode: requires mode=compile"),
        ({"copies": "true"}, "option copies: requires a GPU, but the device is cpu"),
        ({"cuda_graph": "true"}, "option cuda_graph: requires a GPU"),
        ({"tf32": "maybe"}, "option tf32: must be true or false"),
        ({"signature": "x"}, "option signature: must be NAME:TYPE"),
        ({"signature": "x:float[4]"}, "unknown type 'float'; did you mean float"),
        ({"module": "make"}, "option module: must be module:object"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict[str, str], text: str) -> None:
    path = matmul(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=text):
        opened(path, **options)


def test_names_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown precision 'int8'.*for INT8 use onnxruntime, openvino or tvm"):
        vgg10("int8")
    with pytest.raises(ConfigError, match="is a file, and the option module names another network"):
        opened(matmul(tmp_path / "m.onnx"), module="mine.py:make")
    with pytest.raises(ConfigError, match="mode=compile is for modules"):
        opened(exported(tmp_path / "m.pt2"), mode="compile")


def test_a_signature_is_read() -> None:
    found = Options.parse({"signature": " x:float32[batch, 3, 8]  ids.a:int64[?,seq] s:float32[] "}).signature
    assert found == (
        Input("x", "float32", ("batch", 3, 8)),
        Input("ids.a", "int64", (None, "seq")),
        Input("s", "float32", ()),
    )


TOKENS = """
import torch

class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.kinds = torch.nn.Embedding(700, 4), torch.nn.Embedding(3, 4)

    def forward(self, ids, kinds, n):
        return self.words(ids.int().view(ids.shape)) + self.kinds(kinds) * n.unsqueeze(-1)
"""


@pytest.mark.parametrize("kind", ["module", "script", "export"])
def test_ranges_of_indices_are_observed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.py").write_text(TOKENS)
    spec = f"{tmp_path / 'tokens.py'}:Tokens"
    signature = "ids:int64[batch,seq] kinds:int64[batch,seq] n:int64[batch,seq]"
    if kind == "module":
        network = opened("tokens", module=spec, signature=signature, dims="seq=5")
    elif kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(find_object(spec)()), tmp_path / "m.pt")
        network = opened(tmp_path / "m.pt", signature=signature, dims="seq=5")
    else:
        given = tuple(torch.ones(2, 5, dtype=torch.int64) for _ in range(3))
        torch.export.save(torch.export.export(find_object(spec)(), given), tmp_path / "m.pt2")
        network = opened(tmp_path / "m.pt2")
    network.load()
    described = network.describe()
    assert described["input_values"] == "ids 0..699, kinds 0..2, n 0 or 1"
    assert described["made_up_inputs"].startswith("n: 0 or 1")
    assert network.check()
    network.close()


def test_arrays_whose_first_axes_differ_need_the_batch_axis(code: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 4), np.float32), y=np.zeros((26, 2), np.float32))
    options = {"signature": "", "inputs": str(tmp_path / "in.npz")}
    with pytest.raises(ConfigError, match=r"different sizes \(x 2, y 26\): .* batch_axis=x:AXIS,y:AXIS"):
        small(code, **options).load()
    network = small(code, **options, batch_axis="x:0,y:1")
    network.load()
    assert {name: array.shape for name, array in network._batches.arrays(6).items()} == {"x": (6, 4), "y": (26, 6)}
    network.close()
