"""OpenVINO: any ``.onnx`` file, OpenVINO's own ``.xml``, and the built-in networks.

On a CPU with bfloat16, OpenVINO by default computes a float32 file in bfloat16. This runtime sets the requested
precision, and reads the precision of the compiled layers back from the execution graph.

The model is compiled for each batch size with fixed shapes: OpenVINO then fuses more (the fully connected
layers of radioml-vgg10 become one kernel) and plans its memory once. That costs a compilation in each
``prepare``, outside the measured windows; ``shape=dynamic`` compiles once for all batch sizes instead.

On the CPU, inputs and outputs are in shared memory: nothing is copied, and ``execute`` is the only phase. On a device
with separate memory the copies are part of ``execute``.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino

from joulewatch_harness import networks
from joulewatch_harness.errors import ConfigError, NetworkError, UnsupportedBatchError
from joulewatch_harness.names import unknown
from joulewatch_harness.network import MarksOnly, Phases
from joulewatch_harness.networks.graphs import read_model
from joulewatch_harness.plan.plan import NATIVE
from joulewatch_harness.runtimes.openvino import tracing as openvino_trace
from joulewatch_harness.runtimes.openvino.graphs import uses_of
from joulewatch_harness.runtimes.openvino.options import DEFAULT_DEVICE, PERFORMANCE_HINTS, Options
from joulewatch_harness.runtimes.shared import tracing
from joulewatch_harness.runtimes.shared.inputs import Batches
from joulewatch_harness.runtimes.shared.model_files import find_source, fingerprint
from joulewatch_harness.runtimes.shared.options import ANY_PRECISION
from joulewatch_harness.runtimes.shared.outputs import check_outputs
from joulewatch_harness.runtimes.shared.signature import DTYPES, Input, broken, check_types, signature
from joulewatch_harness.runtimes.shared.uses import Use
from joulewatch_harness.traces import Trace, write_trace

logger = logging.getLogger(__name__)

SUFFIXES: Final = (".onnx", ".xml")
PRECISIONS: Final[Mapping[str, str]] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""Requested precision -> INFERENCE_PRECISION_HINT; in an INT8 model the hint applies to the float layers."""

_ACTUAL: Final[Mapping[str, str]] = {
    "f64": "fp64",
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "u8": "int8",
    "i8": "int8",
}


@functools.cache
def core() -> Any:
    """Return OpenVINO's core, which exists as long as the process.

    Its CPU plugin (2026.4, processors with AMX) sets another stack for signals and frees it with the core: the next
    signal, such as Ctrl-C, would end the process with a segmentation fault.
    """
    return openvino.Core()


def open_network(network: str, precision: str, options: Mapping[str, str]) -> OpenVinoNetwork:
    """Return the network; the entry point of the runtime.

    Raises:
        ConfigError: unknown network, option or precision; the file does not exist.
    """
    if precision not in (*PRECISIONS, NATIVE):
        raise ConfigError(f"openvino: {unknown('precision', precision, (*PRECISIONS, NATIVE))}")
    # OpenVINO converts the float32 file to the other float precisions.
    stored = "int8" if precision == "int8" else "fp32"
    source, rest = find_source("openvino", network, stored, options, Options.keys(), SUFFIXES)
    return OpenVinoNetwork(source, precision, Options.parse(rest))


class OpenVinoNetwork:
    """A model file compiled by OpenVINO (the protocol of ``joulewatch_harness.network``)."""

    def __init__(self, source: networks.ModelSource, precision: str, options: Options) -> None:
        self._source = source
        self._requested = precision
        self._options = options
        self._core: Any = None
        self._model: Any = None
        self._compiled: Any = None
        self._compiled_batch = 0
        self._request: Any = None
        self._queue: Any = None
        self._batch = 0
        """The prepared batch size; 0: none."""
        self._kept: list[Any] = []
        """Arrays that OpenVINO reads without owning them."""
        self._precision = ""
        self._integer_ops = ""
        self._sha256 = ""
        self._batches = Batches(source=source)
        self._checked: Mapping[str, str] = {}
        """Details from the last check of the outputs."""

    def describe(self) -> Mapping[str, Any]:
        """Return the actual device, precision and threads; before ``load``, only what is known of the file."""
        description: dict[str, Any] = {
            "runtime": "openvino",
            "runtime_version": openvino.__version__.partition("-")[0],
            "model_file": self._source.path.name,
            "shape": self._options.shape,
            **self._source.details,
            **self._checked,
        }
        if self._compiled is not None:
            description |= {
                "device": self._device(),
                "device_name": self._property("FULL_DEVICE_NAME", self._core.get_property, self._options.device),
                "precision": self._precision,
                "integer_ops": self._integer_ops,
                "precision_hint": self._hint(),
                "threads": self._property("INFERENCE_NUM_THREADS"),
                "streams": self._property("NUM_STREAMS"),
                "requests": self._in_flight(),
                "optimal_requests": self._property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"),
                "performance_hint": self._property("PERFORMANCE_HINT"),
                "pinned_threads": self._property("ENABLE_CPU_PINNING"),
                "dynamic_quantization_group": self._property("DYNAMIC_QUANTIZATION_GROUP_SIZE"),
                "model_sha256": self._sha256,
                **self._batches.describe(),
            }
        return description

    def load(self) -> None:
        """Read the model, compile it for a small batch, and read back the device, precision and threads.

        Raises:
            ConfigError: the file is missing or broken, the device is unknown, the type or size of an input is not
                supported, or the device does not compute in the precision of the file and no other was requested.
            NetworkError: the device, the threads or the streams are not the requested ones.
        """
        path, options = self._source.path, self._options
        self._core = core()
        self._check_device()
        self._sha256 = fingerprint(path)
        # First, because OpenVINO tries all other formats on a file that is not ONNX and writes errors to stderr.
        inputs = signature(path) if path.suffix == ".onnx" else ()
        try:
            self._model = self._core.read_model(path)
            inputs = inputs or tuple(map(_input, self._model.inputs))
        except Exception as error:
            raise broken(path, error) from error
        check_types(inputs, f"model file {path}")
        # Of an .onnx file, the ONNX graph shows the use of the inputs; OpenVINO's own files have no ONNX graph.
        find_uses = self._uses if path.suffix != ".onnx" else None
        self._batches = options.batches(path.name, inputs, self._source, find_uses)
        self._compile(self._batches.fixed_size or 1)
        self._precision, self._integer_ops = actual_precision(self._compiled.get_runtime_model())
        self._check_settings()

    def prepare(self, batch: int) -> None:
        """Compile for the batch (unless ``shape=dynamic``), and bind the inputs.

        Raises:
            UnsupportedBatchError: the model's batch axis is fixed to another size, or cannot be changed.
            NetworkError: the model computes in another precision at this batch size.
        """
        self._batches.check_size(batch)
        arrays = self._batches.arrays(batch)
        if self._options.shape == "static" and batch != self._compiled_batch:
            self._release()
            try:
                self._compile(batch)
            except ConfigError as error:
                raise UnsupportedBatchError(str(error)) from error
            precision, self._integer_ops = actual_precision(self._compiled.get_runtime_model())
            self._options.check_same_precision(self._source.path.name, batch, precision, self._precision)
        tensors = {name: openvino.Tensor(array, shared_memory=True) for name, array in arrays.items()}
        self._kept = [arrays, tensors]
        self._batch = batch
        requests = self._in_flight()
        if requests > 1:
            self._queue = openvino.AsyncInferQueue(self._compiled, requests)
            self._request = self._queue[0]
            bound = list(self._queue)
        else:
            self._request = self._compiled.create_infer_request()
            bound = [self._request]
        for request in bound:
            for name, tensor in tensors.items():
                request.set_tensor(name, tensor)

    def run(self, batches: int, phases: Phases) -> None:
        """Run the bound batch ``batches`` times; ``execute`` is the only phase.

        Several batches in flight overlap: one span covers the call, and no batch has a separate end.
        """
        if self._queue is not None:
            start = self._queue.start_async
            with phases("execute"):
                for _ in range(batches):
                    start()
                self._queue.wait_all()
            return
        # Outputs stay in the memory of the request; by default each call copies them.
        phases.repeat(batches, functools.partial(self._request.infer, share_outputs=True))

    def check(self, batch: int | None = None) -> bool:
        """Run a batch, a small one by default, and check its outputs; it stays prepared.

        Raises:
            WrongOutputsError: the outputs are wrong, see ``check_outputs``.
        """
        batch = batch or self._batches.size_for_check()
        self.prepare(batch)
        self.run(1, Phases())
        outputs = {_port_name(port): np.array(self._request.get_tensor(port).data) for port in self._compiled.outputs}
        self._checked = check_outputs(self._source, self._batches.arrays(batch), outputs, self._precision)
        return True

    def trace(self, path: Path) -> None:
        """Write the time of each layer of the prepared batch, from OpenVINO's counters in a separate compiled model.

        Raises:
            NetworkError: no batch is prepared, or the counters do not work with the device or the streams.
        """
        options, name = self._options, self._source.path.name
        if not self._batch or self._request is None:
            raise NetworkError(f"{name}: trace() comes after load() and prepare()")
        if options.device != DEFAULT_DEVICE:
            raise NetworkError(f"openvino: only the device {DEFAULT_DEVICE} can be traced, not {options.device}")
        if self._queue is not None or self._property("NUM_STREAMS") != "1":
            raise NetworkError(
                "openvino: with parallel batches the counters do not contain the times of single layers: "
                "remove streams, requests and performance_hint"
            )
        with tempfile.TemporaryDirectory(prefix="joulewatch-") as scratch:
            is_onnx = self._source.path.suffix == ".onnx"
            file = tracing.name_nodes(self._source.path, Path(scratch)) if is_onnx else self._source.path
            compiled = self._compiled_for(self._batch, self._core.read_model(file), {"PERF_COUNT": "YES"})
            request = compiled.create_infer_request()
            for key, tensor in self._kept[1].items():
                request.set_tensor(key, tensor)
            counters = openvino_trace.Counters(lambda: request.profiling_info)

            def traced(batches: int) -> None:
                for _ in range(batches):
                    request.infer(share_outputs=True)
                counters.inferences += batches

            turns = tracing.in_turns(
                tracing.timed(lambda batches: self.run(batches, MarksOnly())),
                tracing.timed(traced),
                begin=counters.note,
            )
            counters.note()
            model = read_model(file) if is_onnx else None
        work = tracing.Work() if model is None else tracing.Work.of(model, self._batch, self._batches.sizes())
        write_trace(
            Trace(
                runtime="openvino",
                source=f"counters of OpenVINO {openvino.__version__.partition('-')[0]}, in whole microseconds",
                batch_size=self._batch,
                batches=turns.batches,
                time_ns=turns.traced_ns,
                operators=openvino_trace.operators(
                    counters.layers(), turns.batches, compiled.get_runtime_model(), model, work
                ),
                plain_time_ns=turns.plain_ns,
                macs=work.total,
            ),
            path,
        )

    def close(self) -> None:
        """Release everything."""
        self._release()
        self._model = self._core = None

    def _uses(self, _: Batches) -> Mapping[str, Use]:
        names = {str(port.get_node().get_friendly_name()): _port_name(port) for port in self._model.inputs}
        return uses_of(self._model, names)

    # Compiling

    def _release(self) -> None:
        self._request = self._queue = self._compiled = None
        self._kept = []
        self._compiled_batch = self._batch = 0

    def _compile(self, batch: int) -> None:
        """Compile for this batch size.

        Raises:
            ConfigError: OpenVINO cannot compile it; the text contains the reason.
        """
        self._compiled = self._compiled_for(batch, self._model.clone(), {})
        self._compiled_batch = batch

    def _compiled_for(self, batch: int, model: Any, config: dict[str, Any]) -> Any:
        """Reshape a model, and return it compiled with the options and with further settings."""
        options, name = self._options, self._source.path.name
        shapes: dict[str, list[int]] = {}
        for item in self._batches.inputs:
            sizes = list(self._batches.shape(item, batch))
            for axis in self._batches.axes[item.name] if options.shape == "dynamic" else ():
                sizes[axis] = -1 if not isinstance(item.shape[axis], int) else sizes[axis]
            shapes[item.name] = sizes
        if options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = options.threads
        if options.streams is not None:
            config["NUM_STREAMS"] = options.streams
        else:
            config["PERFORMANCE_HINT"] = (options.performance_hint or PERFORMANCE_HINTS[0]).upper()
        if options.precision_hint == "asked":
            config["INFERENCE_PRECISION_HINT"] = PRECISIONS.get(self._requested, "") or self._hint_of_file()
            if self._requested != "int8" and options.device == DEFAULT_DEVICE:
                # By default activations are quantised before weights that are stored in few bits: integer
                # arithmetic in a float model.
                config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        try:
            model.reshape(shapes)
            return self._core.compile_model(model, options.device, config)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{name}: OpenVINO cannot compile it for batch {batch}: {reason}") from error

    def _hint_of_file(self) -> str:
        """Return the hint that keeps the precision of the file."""
        return {"fp16": "f16", "bf16": "bf16"}.get(_stored(self._model), "f32")

    def _in_flight(self) -> int:
        """Return the number of batches in flight."""
        options = self._options
        if options.requests is not None:
            return options.requests
        if options.streams is not None or options.performance_hint == "throughput":
            return int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        return 1

    # Reading back

    def _check_device(self) -> None:
        device, available = self._options.device, self._core.available_devices
        if not any(item == device or item.startswith(f"{device}.") for item in available):
            raise ConfigError(
                f"openvino: {unknown('device', device, available)}; a device is found if its driver is installed"
            )

    def _check_settings(self) -> None:
        """Compare the requested settings with those of the compiled model: OpenVINO lowers numbers silently."""
        options, name = self._options, self._source.path.name
        actual = self._device()
        if not (actual == options.device or actual.startswith(f"{options.device}.")):
            raise NetworkError(f"{name}: device {options.device} was requested, but OpenVINO runs it on {actual}")
        for option, number, key in (
            ("threads", options.threads, "INFERENCE_NUM_THREADS"),
            ("streams", options.streams, "NUM_STREAMS"),
        ):
            used = self._property(key)
            if number is not None and used != str(number):
                raise NetworkError(
                    f"{name}: {number} {option} were requested, but OpenVINO uses {used}: set {option}={used}"
                )
        stored = _stored(self._model)
        if self._requested == NATIVE and stored not in ("int8", self._precision) and not options.any_precision:
            raise ConfigError(
                f"{name}: the file is {stored}, but OpenVINO computes it in {self._precision} on {actual}: request a "
                f"precision, or set {ANY_PRECISION}=true to accept that"
            )

    def _device(self) -> str:
        return ",".join(self._compiled.get_property("EXECUTION_DEVICES"))

    def _hint(self) -> str:
        value = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        return str(getattr(value, "get_type_name", lambda: value)())

    def _property(self, key: str, read: Any = None, *where: str) -> str:
        """Return a property as text; empty if the device does not have it."""
        try:
            value = (read or self._compiled.get_property)(*where, key)
        except RuntimeError:
            return ""
        return str(value).rpartition(".")[2].lower() if key == "PERFORMANCE_HINT" else str(value)


def actual_precision(execution_graph: Any) -> tuple[str, str]:
    """Return the precision that a compiled model computes in, from its layers.

    Args:
        execution_graph: ``CompiledModel.get_runtime_model()``.

    Returns:
        The precision of most weights in computation (``int8``, ``fp32``, ``fp16``, ``bf16``), and how many of the
        matrix products and convolutions compute in integers (``10 of 10``).
    """
    sizes: dict[str, int] = {}
    others: dict[str, int] = {}
    integer = total = 0
    for layer in execution_graph.get_ordered_ops():
        info = layer.get_rt_info()
        kind = _text(info, "layerType").replace("_", "").lower()
        actual = _ACTUAL.get(_text(info, "runtimePrecision"))
        if actual is None or kind in ("const", "input", "output", "parameter", "result", "constant"):
            continue
        matrices = [matrix for matrix in map(_matrix, layer.input_values()) if matrix is not None]
        if kind in openvino_trace.WEIGHTED:
            computed = [(max((size for size, _ in matrices), default=1), _computed(layer, actual))]
        elif kind == "subgraph" and matrices:
            # Matrix products fused into one kernel, which may quantise its input: the kernel's type is that of the
            # input, so the type of the weights decides whether a product is in integers.
            computed = [(size, "int8" if stored == "int8" else actual) for size, stored in matrices]
        else:
            # The reported type is that of the narrowest input, which may be a condition.
            given = _ACTUAL.get(layer.get_output_element_type(0).get_type_name(), actual)
            others[given] = others.get(given, 0) + 1
            continue
        total += len(computed)
        for size, name in computed:
            integer += name == "int8"
            sizes[name] = sizes.get(name, 0) + size
    # Without products, bytes are mostly booleans.
    counted = sizes or {name: count for name, count in others.items() if name != "int8"} or others
    return max(counted, key=lambda name: counted[name], default="fp32"), f"{integer} of {total}"


def _computed(layer: Any, narrowest: str) -> str:
    """Return the precision of a layer, whose reported type is that of its narrowest input, perhaps only stored so."""
    values = layer.input_values()
    given = _ACTUAL.get(values[0].get_element_type().get_type_name()) if values else None
    if narrowest != "int8" or given in ("int8", None):
        return narrowest
    kernel = _text(layer.get_rt_info(), "primitiveType").rpartition("_")[2].lower()
    return _ACTUAL.get(kernel, given) if kernel != "i8" else given


def _text(info: Any, key: str) -> str:
    try:
        return str(info[key].astype(str))
    except (KeyError, RuntimeError):
        return ""


def _matrix(value: Any) -> tuple[int, str] | None:
    """Return size and stored type of a constant with two or more axes; None for other values, such as a bias."""
    node = value.get_node()
    kind = node.get_type_name() if node.get_type_name() == "Constant" else _text(node.get_rt_info(), "layerType")
    shape = value.get_partial_shape()
    if kind.lower() not in ("const", "constant") or not shape.is_static:
        return None
    sizes = [int(size) for size in shape.to_shape()]
    if sum(size > 1 for size in sizes) < 2:
        return None
    return int(np.prod(sizes)), _ACTUAL.get(value.get_element_type().get_type_name(), "")


def _stored(model: Any) -> str:
    """Return the type in which most weights of the file are stored."""
    sizes: dict[str, int] = {}
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant":
            actual = _ACTUAL.get(operation.get_element_type().get_type_name())
            if actual is not None:
                sizes[actual] = sizes.get(actual, 0) + int(np.prod(list(operation.get_output_shape(0))))
    return max(sizes, key=lambda name: sizes[name], default="fp32")


def _input(port: Any) -> Input:
    shape = tuple(None if size.is_dynamic else int(size.get_length()) for size in port.get_partial_shape())
    kind = port.get_element_type()
    try:
        dtype = np.dtype(kind.to_dtype()).name
    except (RuntimeError, KeyError, TypeError):
        dtype = kind.get_type_name()
    return Input(_port_name(port), dtype if dtype in DTYPES else kind.get_type_name(), shape)


def _port_name(port: Any) -> str:
    return str(port.get_any_name()) if port.get_names() else str(port.get_node().get_friendly_name())
