"""A double of NVIDIA's TensorRT bindings, 10 and 11, that computes with ONNX Runtime on the CPU.

Names and parameters are those of the bindings 10.13.3.9 and 11.4.0.106 (``api.json``, recorded from the real wheels).
How the calls behave is known from:

- the docstrings of these bindings: what answers with None or False and tells the reason to the logger; strongly typed
  networks always in 11, by a flag in 10; TF32 on by default; shapes of a profile; ``enqueue_emits_profile`` and
  ``report_to_profiler``; what the engine inspector tells at which verbosity; a timing cache of another GPU is refused;
  a base class whose ``__init__`` must be called;
- these bindings over libraries that give nothing: a builder that cannot be made is a ``TypeError``;
- NVIDIA's pages "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x" (``I/O Tensors``, types apart from
  formats), "Removed Python APIs and Replacements" (11 has no flags of precisions), "Working with Quantized Types"
  (signed, around zero), and the parser's own words for the latter (quoted at onnx/tensorflow-onnx 1713);
- reports of users at NVIDIA/TensorRT: engines of another version or GPU (2176 and 564), no memory for a context (3017)
  and for a build (4258).

Stricter than TensorRT, which answers with False: an address or shape that was never set is ``Misuse`` here.
Not known and made up: the names of layers and of most kernels, sizes of activations, all times.
"""

from __future__ import annotations

import enum
import json
import weakref
from dataclasses import dataclass, field

import numpy as np
from cuda import gpu
from cuda.gpu import Operation

__version__ = gpu.machine.tensorrt_version
_MAJOR = int(__version__.partition(".")[0])
_MAGIC = b"double of a TensorRT engine\n"


@dataclass
class Behaviour:
    """What a test sets; ``machine.tensorrt``."""

    cannot_start: str = ""
    """What a builder and a runtime say of themselves, which then cannot be made."""
    layer_ms: dict[str, float] = field(default_factory=dict)
    """Time of a layer whose name begins so; 0.01 of the others."""
    computes_in: dict[str, str] = field(default_factory=dict)
    """Layer whose name begins so -> ``Float``, ``Half``: the builder took another type than the file's."""
    kernels_in: dict[str, str] = field(default_factory=dict)
    """The same for the name of its kernel: ``tf32f32``."""
    tells_kernels: bool = True
    tells_metadata: bool = True
    uses_tf32: bool = True
    """Where it is allowed."""
    unknown_ops: tuple[str, ...] = ()
    build_error: str = ""
    build_no_memory_from: int | None = None
    """Batch size from which a build fails for want of memory."""
    context_no_memory_from: int | None = None
    launch_error: str = ""
    cannot_capture: bool = False
    depends_on_data: bool = False
    """Sizes of outputs are not known before the device has computed them."""
    shape_on_host: bool = False
    reports_no_profile: bool = False
    ignores_tf32_flag: bool = False
    workspace_limit: int = 1 << 30
    changes_outputs: float = 0.0
    """Added to every output."""
    verbosity_of_files: str = "DETAILED"
    loads: int = 0
    builds: list[dict[str, object]] = field(default_factory=list)
    times_taken: list[bytes] = field(default_factory=list)
    """What timing caches were begun with."""


behaviour = Behaviour()
gpu.machine.tensorrt = behaviour


class _Enum(enum.Enum):
    def __int__(self) -> int:
        return int(self.value)


def _members(name: str, *names: str) -> type[enum.Enum]:
    return _Enum(name, {member: number for number, member in enumerate(names)}, module=__name__)


_OF_TEN = ("FP16", "BF16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS", "FP8", "INT4", "FP4")
BuilderFlag = _members("BuilderFlag", *(_OF_TEN if _MAJOR < 11 else ()), "DEBUG", "REFIT", "TF32")
NetworkDefinitionCreationFlag = _members(
    "NetworkDefinitionCreationFlag", *(("EXPLICIT_BATCH",) if _MAJOR < 11 else ()), "STRONGLY_TYPED"
)
MemoryPoolType = _members("MemoryPoolType", "WORKSPACE")
ProfilingVerbosity = _members("ProfilingVerbosity", "LAYER_NAMES_ONLY", "DETAILED", "NONE")
LayerInformationFormat = _members("LayerInformationFormat", "ONELINE", "JSON")
TensorIOMode = _members("TensorIOMode", "NONE", "INPUT", "OUTPUT")
TensorLocation = _members("TensorLocation", "DEVICE", "HOST")
DataType = _members(
    "DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4"
)  # fmt: skip

_ONNX_TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8", 17: "FP8"}
_NUMPY = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "INT32": "i4", "INT64": "i8", "BOOL": "?", "UINT8": "u1"}
_TOLD = {"FLOAT": "Float", "HALF": "Half", "BF16": "BFloat16", "INT8": "Int8", "INT32": "Int32", "INT64": "Int64"}
_OPERANDS = {"Float": "f32f32", "Half": "f16f16", "BFloat16": "bf16bf16", "Int8": "i8i8"}


class _Counted:
    """Known to the machine for as long as it lives."""

    def __new__(cls, *args, **keywords):
        made = super().__new__(cls)
        gpu.machine.live[cls._counted()] += 1
        made._machine = gpu.machine
        return made

    @classmethod
    def _counted(cls) -> str:
        return next(base.__name__ for base in cls.__mro__ if base.__module__ == __name__)

    def __del__(self) -> None:
        self._machine.live[self._counted()] -= 1


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self._made = True

    def log(self, severity, msg):
        raise gpu.machine.misuse("a logger must have a method log")


class IProfiler:
    def __init__(self) -> None:
        self._made = True

    def report_layer_time(self, layer_name, ms):
        raise gpu.machine.misuse("a profiler must have a method report_layer_time")


def _checked(given, kind):
    """The bindings refuse an object whose base class was never made."""
    if not isinstance(given, kind) or not getattr(given, "_made", False):
        raise TypeError(f"{kind.__name__}.__init__() must be called when overriding __init__")
    return given


class _Speaks(_Counted):
    _logger: ILogger

    def _error(self, text: str) -> None:
        self._logger.log(ILogger.Severity.ERROR, text)

    def _warn(self, text: str) -> None:
        self._logger.log(ILogger.Severity.WARNING, text)

    def _no_memory(self, size: int) -> None:
        self._error("[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)")
        self._warn(
            f"Requested amount of GPU memory ({size} bytes) could not be allocated. There may not be enough free "
            "memory for allocation to succeed."
        )


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self):
        return IHostMemory(self._data)


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input, min, opt, max):
        if not len(min) == len(opt) == len(max) or any(
            not 0 <= low <= best <= high for low, best, high in zip(min, opt, max, strict=True)
        ):
            raise ValueError(f"{input}: shapes {min} {opt} {max} do not rise")
        self._shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig(_Counted):
    def __init__(self) -> None:
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.builder_optimization_level = 3
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self._workspace = behaviour.workspace_limit
        self._times: ITimingCache | None = None

    def set_flag(self, flag):
        if not behaviour.ignores_tf32_flag:
            self._flags.add(BuilderFlag(flag))

    def clear_flag(self, flag):
        if not behaviour.ignores_tf32_flag:
            self._flags.discard(BuilderFlag(flag))

    def get_flag(self, flag):
        return flag in self._flags

    def set_memory_pool_limit(self, pool, pool_size):
        MemoryPoolType(pool)
        # Larger than there can be: it does nothing.
        if pool_size <= behaviour.workspace_limit:
            self._workspace = pool_size

    def get_memory_pool_limit(self, pool):
        return self._workspace

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        behaviour.times_taken.append(bytes(serialized_timing_cache))
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache._data and not cache._data.startswith(_times_of_here()) and not ignore_mismatch:
            return False
        self._times = cache
        return True

    def get_timing_cache(self):
        return self._times


def _times_of_here() -> bytes:
    return f"times {__version__} {gpu.machine.devices[gpu.machine.current].name}".encode()


class INetworkDefinition(_Counted):
    def __init__(self, flags: int) -> None:
        self._typed = _MAJOR >= 11 or bool(flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._model: bytes = b""

    def get_flag(self, flag):
        return self._typed


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self):
        return self._text


class OnnxParser(_Speaks):
    def __init__(self, network, logger) -> None:
        self._network = network
        self._logger = _checked(logger, ILogger)
        self._errors: list[str] = []

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return ParserError(self._errors[index])

    def parse_from_file(self, model):
        import onnx

        try:
            return self._take(onnx.load(model))
        except Exception:
            return self._refuse("Failed to parse ONNX model from file")

    def parse(self, model, path=None):
        import onnx

        return self._take(onnx.load_from_string(bytes(model)))

    def _refuse(self, text: str) -> bool:
        self._errors.append(text)
        self._error(text)
        return False

    def _take(self, model) -> bool:
        from onnx import numpy_helper

        constants = {item.name: item for item in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in behaviour.unknown_ops:
                return self._refuse(f"In node 0 with name: {node.name} and operator: {node.op_type}: UNSUPPORTED_NODE")
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                zero = constants.get(node.input[2]) if len(node.input) > 2 else None
                values = None if zero is None else numpy_helper.to_array(zero)
                if values is None or values.dtype != np.int8:
                    return self._refuse(f"{node.name}: Assertion failed: only signed types are quantised")
                if values.any():
                    return self._refuse(
                        f"{node.name}: Assertion failed: shiftIsAllZeros(zeroPoint): TRT only supports symmetric "
                        "quantization - zeroPt must be all zeros"
                    )
        self._network._model = model.SerializeToString()
        return True


def _started(logger) -> ILogger:
    """As pybind11 has it where the library gives nothing."""
    found = _checked(logger, ILogger)
    if behaviour.cannot_start:
        found.log(ILogger.Severity.ERROR, behaviour.cannot_start)
        raise TypeError("pybind11::init(): factory function returned nullptr")
    return found


class Builder(_Speaks):
    def __init__(self, logger) -> None:
        self._logger = _started(logger)

    def create_network(self, flags=0):
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        import onnx

        if not network._model:
            raise gpu.machine.misuse("an engine is built of a network without a model")
        model = onnx.load_from_string(network._model)
        profiles = [profile._shapes for profile in config._profiles]
        weights = {item.name for item in model.graph.initializer}
        inputs = {item.name: _sizes(item) for item in model.graph.input if item.name not in weights}
        for name, sizes in inputs.items():
            if -1 not in sizes:
                continue
            if not profiles:
                self._error(
                    "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has dynamic or shape "
                    "inputs, but no optimization profile has been defined.)"
                )
                return None
            for shapes in profiles:
                if name not in shapes or any(
                    fixed not in (-1, size) for shape in shapes[name] for fixed, size in zip(sizes, shape, strict=True)
                ):
                    self._error(f"IBuilder::buildSerializedNetwork: Error Code 4: {name}: the profile does not fit")
                    return None
        largest = max((shape[2][0] for shapes in profiles for shape in shapes.values() if shape[2]), default=1)
        if behaviour.build_no_memory_from is not None and largest >= behaviour.build_no_memory_from:
            self._no_memory(largest << 20)
            self._error(
                "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation "
                "for node {ForeignNode[a...b]}.)"
            )
            return None
        if behaviour.build_error:
            self._error(behaviour.build_error)
            return None
        tf32 = BuilderFlag.TF32 in config._flags
        behaviour.builds.append(
            {
                "strongly_typed": network._typed,
                "tf32": tf32,
                "profiles": profiles,
                "level": config.builder_optimization_level,
                "workspace": config._workspace,
                "flags": {flag.name for flag in config._flags},
            }
        )
        if config._times is not None:
            config._times._data = _times_of_here() + b" +" * len(behaviour.builds)
        told = {
            "version": __version__,
            "capability": list(gpu.machine.devices[gpu.machine.current].capability),
            "profiles": profiles,
            "verbosity": config.profiling_verbosity.name,
            "layers": _layers(model, tf32),
        }
        return IHostMemory(_MAGIC + json.dumps(told).encode() + b"\n" + network._model)


class Runtime(_Speaks):
    def __init__(self, logger) -> None:
        self._logger = _started(logger)

    def deserialize_cuda_engine(self, serialized_engine):
        data = bytes(serialized_engine)
        behaviour.loads += 1
        if not data.startswith(_MAGIC):
            self._error(
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
                "stdMagicTagRead == kSTDMAGICTAG failed.Magic tag does not match)"
            )
            return None
        head, _, model = data.removeprefix(_MAGIC).partition(b"\n")
        told = json.loads(head)
        if told["version"] != __version__:
            self._error(
                "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not "
                f"compatible with this version of TensorRT, expecting library version {__version__} got "
                f"{told['version']}, please rebuild. In checkEngineVersionCompatible)"
            )
            return None
        here = gpu.machine.devices[gpu.machine.current].capability
        if tuple(told["capability"]) != here:
            was = ".".join(map(str, told["capability"]))
            self._error(
                "IRuntime::deserializeCudaEngine: Error Code 6: The engine plan file is generated on an incompatible "
                f"device, expecting compute {here[0]}.{here[1]} got compute {was}, please rebuild."
            )
            return None
        size = len(model)
        machine = gpu.machine
        if machine.used_bytes() + size > machine.devices[machine.current].memory_bytes:
            self._no_memory(size)
            return None
        return ICudaEngine(self._logger, told, model)


class ICudaEngine(_Speaks):
    def __init__(self, logger, told, model) -> None:
        import onnx

        self._logger = logger
        self._told = told
        self._model = model
        self._session = None
        self._size = len(model)
        self._machine.reserved_bytes += self._size
        graph = onnx.load_from_string(model).graph
        weights = {item.name for item in graph.initializer}
        self._inputs = {item.name: item for item in graph.input if item.name not in weights}
        self._outputs = {item.name: item for item in graph.output}

    def __del__(self) -> None:
        self._machine.reserved_bytes -= self._size
        super().__del__()

    @property
    def num_io_tensors(self):
        return len(self._inputs) + len(self._outputs)

    @property
    def num_layers(self):
        return len(self._told["layers"])

    @property
    def num_optimization_profiles(self):
        return max(1, len(self._told["profiles"]))

    @property
    def device_memory_size_v2(self):
        return self._activations()

    if _MAJOR < 11:

        @property
        def device_memory_size(self):
            return self._activations()

    def _activations(self) -> int:
        return 4096 * self._largest_batch()

    def _largest_batch(self) -> int:
        sizes = [shape[2][0] for shapes in self._told["profiles"] for shape in shapes.values() if shape[2]]
        return max(sizes, default=1)

    def _tensor(self, name):
        found = self._inputs.get(name) or self._outputs.get(name)
        if found is None:
            raise gpu.machine.misuse(f"the engine has no tensor {name!r}")
        return found

    def get_tensor_name(self, index):
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name):
        self._tensor(name)
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType[_ONNX_TYPES[self._tensor(name).type.tensor_type.elem_type]]

    def get_tensor_location(self, name):
        return TensorLocation.HOST if behaviour.shape_on_host and name in self._inputs else TensorLocation.DEVICE

    def get_tensor_shape(self, name):
        return tuple(_sizes(self._tensor(name)))

    def get_tensor_profile_shape(self, name, profile_index):
        shapes = self._told["profiles"]
        if not shapes:
            return [tuple(_sizes(self._tensor(name)))] * 3
        return [tuple(shape) for shape in shapes[profile_index][name]]

    def create_engine_inspector(self):
        return EngineInspector(self)

    def create_execution_context(self):
        size, largest = self._activations(), self._largest_batch()
        machine = self._machine
        limit = behaviour.context_no_memory_from
        if (limit is not None and largest >= limit) or (
            machine.used_bytes() + size > machine.devices[machine.current].memory_bytes
        ):
            self._no_memory(size)
            self._error(
                "[executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory (no further information)"
            )
            return None
        return IExecutionContext(self, size)

    def _run(self, arrays):
        import onnxruntime

        if self._session is None:
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = 1
            settings.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(self._model, settings, providers=["CPUExecutionProvider"])
        return self._session.run(list(self._outputs), arrays)


class EngineInspector:
    def __init__(self, engine) -> None:
        self._engine = engine

    def get_engine_information(self, format):
        if format is not LayerInformationFormat.JSON:
            raise gpu.machine.misuse("the double tells JSON only")
        engine = self._engine
        verbosity = engine._told["verbosity"]
        layers = engine._told["layers"] if verbosity != "NONE" else []
        if verbosity == "LAYER_NAMES_ONLY":
            layers = [layer["Name"] for layer in layers]
        told = {"Layers": layers}
        if _MAJOR < 11:
            told["Bindings"] = [*engine._inputs, *engine._outputs]
        else:
            told["I/O Tensors"] = [
                {
                    "Name": name,
                    "IOMode": "Input" if name in engine._inputs else "Output",
                    "DataType": _TOLD.get(engine.get_tensor_dtype(name).name, "Unknown"),
                    "Dimensions": _sizes(engine._tensor(name)),
                    "Location": "Device",
                    "IsShapeInferenceIO": False,
                }
                for name in (*engine._inputs, *engine._outputs)
            ]
        return json.dumps(told)


class IExecutionContext(_Speaks):
    def __init__(self, engine, size) -> None:
        self._logger = engine._logger
        self._engine = engine
        self._size = size
        self._machine.reserved_bytes += size
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {
            name: tuple(_sizes(item)) for name, item in engine._inputs.items() if -1 not in _sizes(item)
        }
        self._addresses: dict[str, int] = {}
        self._settled = False
        self._profiler = None
        self._unreported = False
        self._queued = [0]
        self.enqueue_emits_profile = True
        self.nvtx_verbosity = ProfilingVerbosity[engine._told["verbosity"]]
        self._finalise = weakref.finalize(self, _gone, self._machine, self._queued)

    def __del__(self) -> None:
        self._machine.reserved_bytes -= self._size
        super().__del__()

    @property
    def profiler(self):
        return self._profiler

    @profiler.setter
    def profiler(self, profiler):
        self._profiler = _checked(profiler, IProfiler)

    @property
    def active_optimization_profile(self):
        return self._profile

    def set_optimization_profile_async(self, profile_index, stream_handle):
        self._machine.stream(stream_handle)
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            self._error(f"IExecutionContext: there is no profile {profile_index}")
            return False
        self._profile = profile_index
        # All dynamic shapes must be set again.
        self._shapes = {
            name: tuple(_sizes(item)) for name, item in self._engine._inputs.items() if -1 not in _sizes(item)
        }
        return True

    def set_input_shape(self, name, shape):
        sizes = _sizes(self._engine._inputs[name])
        allowed = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(sizes) or any(
            not low <= size <= high for low, size, high in zip(allowed[0], shape, allowed[2], strict=True)
        ):
            self._error(
                f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed: {name}: "
                f"{list(shape)} is out of the range of profile {self._profile})"
            )
            return False
        self._shapes[name] = tuple(shape)
        self._settled = False
        return True

    def infer_shapes(self):
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name):
        if name in self._engine._inputs:
            return self._shapes.get(name, tuple(_sizes(self._engine._inputs[name])))
        if self.infer_shapes() or behaviour.depends_on_data:
            return tuple(_sizes(self._engine._outputs[name]))
        return self._output_shape(name)

    def _output_shape(self, name):
        """By computing once with zeros: shape inference that is always right."""
        given = self._engine._run(
            {
                item: np.zeros(shape, _NUMPY[self._engine.get_tensor_dtype(item).name])
                for item, shape in self._shapes.items()
            }
        )
        return tuple(given[list(self._engine._outputs).index(name)].shape)

    def set_tensor_address(self, name, memory):
        self._engine._tensor(name)
        self._machine.memory(memory, 1, f"the address of {name}")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        machine = self._machine
        stream = machine.stream(stream_handle)
        if self.infer_shapes():
            raise machine.misuse(f"a launch without the shapes of {self.infer_shapes()}")
        for name in (*self._engine._inputs, *self._engine._outputs):
            if name not in self._addresses:
                raise machine.misuse(f"a launch without the address of {name}")
        if behaviour.launch_error:
            self._error(behaviour.launch_error)
            return False
        if stream.capture is not None:
            if behaviour.cannot_capture or not self._settled:
                self._error(
                    "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (operation not permitted when stream is "
                    "capturing)"
                )
                stream.spoilt = True
                return False
        elif self._profiler is None:
            self._settled = True
        else:
            self._unreported = True
        machine.enqueue(stream, Operation("execute", self._operation(), self._ms(), self._dropped()))
        if stream.capture is None:
            self._queued[0] += 1
        if self._profiler is not None and self.enqueue_emits_profile and stream.capture is None:
            machine.drain(stream)
            self.report_to_profiler()
        return True

    def _dropped(self):
        queued = self._queued

        def drop() -> None:
            queued[0] = max(0, queued[0] - 1)

        return drop

    def _ms(self) -> float:
        return sum(_layer_ms(layer["Name"]) for layer in self._engine._told["layers"])

    def _operation(self):
        """What the device does later; it holds the context no longer than its owner does."""
        found, machine, queued = weakref.ref(self), self._machine, self._queued
        shapes, addresses = dict(self._shapes), dict(self._addresses)

        def act() -> None:
            context = found()
            if context is None:
                raise machine.misuse("a batch is executed whose context was destroyed")
            queued[0] = max(0, queued[0] - 1)
            context._compute(shapes, addresses)

        return act

    def _compute(self, shapes, addresses) -> None:
        machine, engine = self._machine, self._engine
        arrays = {}
        for name, shape in shapes.items():
            kind = np.dtype(_NUMPY[engine.get_tensor_dtype(name).name])
            size = int(np.prod(shape)) * kind.itemsize
            arrays[name] = machine.memory(addresses[name], size, f"input {name}").view(kind).reshape(shape).copy()
        for (name, _), given in zip(engine._outputs.items(), engine._run(arrays), strict=True):
            given = np.ascontiguousarray(given + np.asarray(behaviour.changes_outputs, given.dtype))
            machine.memory(addresses[name], given.nbytes, f"output {name}")[:] = given.view(np.uint8).ravel()

    def report_to_profiler(self):
        if self._profiler is None or not self._unreported or behaviour.reports_no_profile:
            return False
        if self._queued[0]:
            raise self._machine.misuse("layer times are asked for before the batch has ended")
        self._unreported = False
        for layer in self._engine._told["layers"]:
            self._profiler.report_layer_time(layer["Name"], _layer_ms(layer["Name"]))
        return True


def _gone(machine, queued) -> None:
    if queued[0]:
        machine.misuses.append("a context is destroyed while its batch is under way")


def _sizes(item) -> list[int]:
    return [size.dim_value if size.HasField("dim_value") else -1 for size in item.type.tensor_type.shape.dim]


def _layer_ms(name: str) -> float:
    return next((ms for start, ms in behaviour.layer_ms.items() if name.startswith(start)), 0.01)


def _layers(model, tf32: bool) -> list[dict[str, object]]:
    """A layer for each operator; norms and activations go with the product before them, quantisation into it."""
    import onnx
    from onnx import numpy_helper

    known = onnx.shape_inference.infer_shapes(model).graph
    values = {item.name: item for item in (*known.input, *known.value_info, *known.output)}
    constants = {item.name: item for item in known.initializer}
    makers = {name: node for node in known.node for name in node.output}
    users: dict[str, list[object]] = {}
    for node in known.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def kind(name: str) -> str:
        if name in constants:
            return _TOLD.get(_ONNX_TYPES.get(constants[name].data_type, ""), "Unknown")
        item = values.get(name)
        return "Unknown" if item is None else _TOLD.get(_ONNX_TYPES[item.type.tensor_type.elem_type], "Unknown")

    def tensor(name: str, told: str) -> dict[str, object]:
        item = values.get(name)
        found: dict[str, object] = {"Name": name, "Dimensions": [] if item is None else _sizes(item)}
        if _MAJOR < 11:
            names = {"Float": "FP32", "Half": "FP16", "Int8": "Int8", "BFloat16": "BF16"}
            return found | {"Format/Datatype": f"Row major linear {names.get(told, told)} format"}
        return found | {"Format": "Row major linear format (kLINEAR)", "DataType": told}

    found: list[dict[str, object]] = []
    taken: set[str] = set()
    for node in known.node:
        if node.name in taken or node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
            continue
        names, last = [node.name], node
        product = node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        told = kind(node.input[0]) if node.input else kind(node.output[0])
        layer: dict[str, object] = {"LayerType": node.op_type}
        if product:
            while len(users.get(last.output[0], [])) == 1:
                after = users[last.output[0]][0]
                if after.op_type not in ("BatchNormalization", "Relu"):
                    break
                names.append(after.name)
                last = after
            sources = [makers.get(name) for name in node.input[:2]]
            if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
                told = "Int8"
            weights = constants.get(sources[1].input[0] if sources[1] is not None else node.input[1])
            layer["LayerType"] = "CaskConvolution" if node.op_type.startswith("Conv") else "gemm"
            if weights is not None:
                layer["Weights"] = {"Type": told, "Count": int(numpy_helper.to_array(weights).size)}
        taken.update(names)
        name = " + ".join(names)
        told = next((word for start, word in behaviour.computes_in.items() if name.startswith(start)), told)
        layer |= {
            "Name": name,
            "Inputs": [tensor(node.input[0], told)] if node.input else [],
            "Outputs": [tensor(last.output[0], told)],
        }
        if product and behaviour.tells_kernels:
            operands = "tf32f32" if told == "Float" and tf32 and behaviour.uses_tf32 else _OPERANDS.get(told, "")
            operands = next((word for start, word in behaviour.kernels_in.items() if name.startswith(start)), operands)
            layer["TacticName"] = f"sm90_xmma_fprop_implicit_gemm_{operands}_f32_nhwckrsc_nhwc_tilesize64x64x32"
        if behaviour.tells_metadata:
            layer["Metadata"] = "\x1e".join(f"[ONNX Layer: {item}]" for item in names)
        found.append(layer)
    return found
