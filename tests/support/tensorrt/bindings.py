"""A double of TensorRT's Python bindings, 10 and 11: it checks how they are called and returns what a test has set.

It computes nothing: outputs come from ``machine.compute``, layers from ``machine.layers``, failures from
``machine.answer``. These rules are from the docstrings of the real bindings: TF32 is on by default; the first launch
after a change of shapes cannot be captured; a base class needs its ``__init__``; a builder that cannot be created is a
``TypeError``; the inspector shows no more than the verbosity of the build allows. Stricter than TensorRT: a launch
without a shape or an address raises ``Misuse``.
"""

from __future__ import annotations

import enum
import functools
import inspect
import json
import sys

import numpy as np
import onnx

from support.tensorrt import api

machine = sys.modules["cuda.bindings.runtime"]
__version__ = machine.version
API = api.read(f"tensorrt-{__version__.partition('.')[0]}")
ENUMS = {
    name: enum.Enum(name, members, type=type(name, (), {"__int__": lambda self: self.value}))
    for name, members in API.items()
    if members and all(isinstance(value, int) for value in members.values())
}
globals().update(ENUMS)
_DTYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8"}
_NUMPY = {"FLOAT": "f4", "HALF": "f2", "BF16": "u2", "INT8": "i1", "INT32": "i4", "INT64": "i8", "BOOL": "?"}
_PLAIN = (bool, int, str, bytes, tuple, enum.Enum)


class ILogger:
    Severity = ENUMS["Severity"]

    def __init__(self):
        self._is_made = True


class IProfiler(ILogger):
    pass


class _Object:
    """An object of TensorRT: its properties and methods are the recorded ones, and the machine counts it."""

    def __init__(self, kind, /, **state):
        vars(self).update(state, _kind=kind, _machine=machine)
        machine.objects[kind] += 1

    def __del__(self):
        self._machine.objects[self._kind] -= 1
        if self._kind == "IExecutionContext" and self._machine.is_busy():
            self._machine.misuse("a context is destroyed while the device is busy")

    def __setattr__(self, name, value):
        api.check(name, value, API[self._kind])
        _note(name, value)
        vars(self)[name] = value

    def __getattr__(self, name):
        if name not in API[self._kind]:
            raise AttributeError(f"the real {self._kind} has no {name}")
        return functools.partial(_call, name, _METHODS[f"{self._kind}.{name}"], self)


def _note(name, *values):
    """Note a call without keeping objects alive."""
    kept = (value if isinstance(value, _PLAIN) else type(value).__name__ for value in values)
    machine.calls.append((name, *kept))


def _call(name, method, self, *args, **keywords):
    inspect.signature(method).bind(self, *args, **keywords)
    _note(name, *args, *keywords.values())
    value, messages, after = machine.answers.pop(name, (None, {}, None))
    if after:
        machine.answers[name] = (value, messages, after - 1)
    return method(self, *args, **keywords) if after != 0 else _answer(value, messages)


def _answer(value, messages):
    for severity, text in messages.items():
        machine.logger.log(ILogger.Severity[severity], text)
    if isinstance(value, type):
        raise value(*messages.values())
    return value


def _class(kind):
    def start(*args):
        if not args[-1]._is_made:
            raise TypeError("__init__() must be called when overriding __init__")
        machine.logger = args[-1]
        if kind in machine.answers:
            _answer(*machine.answers.pop(kind)[:2])
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return _Object(kind, _args=args, num_errors=len(machine.parser_errors))

    start.__name__ = kind
    return start


Builder, Runtime, OnnxParser = _class("Builder"), _class("Runtime"), _class("OnnxParser")


def _parse(self, model):
    vars(self._args[0])["_model"] = machine.model = model
    return not machine.parser_errors


def _config(self):
    default = ENUMS["ProfilingVerbosity"].LAYER_NAMES_ONLY
    limits = {ENUMS["MemoryPoolType"].WORKSPACE: 1 << 30}
    state = {"_flags": {ENUMS["BuilderFlag"].TF32}, "_profiles": [], "_limits": limits, "_times": []}
    return _Object("IBuilderConfig", profiling_verbosity=default, **state)


def _limit(self, pool, pool_size):
    # A limit above the device's memory is ignored.
    self._limits[pool] = min(pool_size, self._limits[pool])


def _build(self, network, config):
    graph = network._model.graph
    weights = {item.name for item in graph.initializer}
    inputs = {item.name: _tensor(item) for item in graph.input if item.name not in weights}
    profiles = [profile._shapes for profile in config._profiles]
    for times in config._times[-1:]:
        vars(times)["_data"] += b" and those of another build"
    plan = {"inputs": inputs, "outputs": {item.name: _tensor(item) for item in graph.output}, "profiles": profiles}
    is_detailed = config.profiling_verbosity.name == "DETAILED"
    plan["layers"] = machine.layers if is_detailed else [layer["Name"] for layer in machine.layers]
    return memoryview(json.dumps(plan).encode())


def _tensor(item):
    kind = item.type.tensor_type
    return _DTYPES[kind.elem_type], [size.dim_param or size.dim_value for size in kind.shape.dim]


def _load(self, serialized_engine):
    plan = json.loads(bytes(serialized_engine))
    counts = {"num_io_tensors": len(plan["inputs"] | plan["outputs"]), "num_layers": len(plan["layers"])}
    counts |= {"num_optimization_profiles": max(1, len(plan["profiles"])), "device_memory_size_v2": 4096}
    return _Object("ICudaEngine", _plan=plan, _tensors=plan["inputs"] | plan["outputs"], **counts)


def _shape(tensor, sizes):
    """Shape of a tensor; -1 where the size of a symbol is not known."""
    return tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in tensor[1])


def _profile_shape(self, name, profile_index):
    profiles = self._plan["profiles"]
    return profiles[profile_index][name] if profiles else [_shape(self._tensors[name], {})] * 3


def _context(self):
    state = {"_tensors": self._tensors, "_inputs": self._plan["inputs"], "_outputs": self._plan["outputs"]}
    state |= {"_shapes": {}, "_sizes": {}, "_addresses": {}, "_launched": []}
    return _Object(
        "IExecutionContext", active_optimization_profile=0, enqueue_emits_profile=True, profiler=None, **state
    )


def _set_profile(self, profile_index, stream_handle):
    vars(self)["active_optimization_profile"] = profile_index
    self._shapes.clear()
    return True


def _set_input_shape(self, name, shape):
    self._launched.clear()
    self._shapes[name] = shape
    self._sizes.update(zip(self._tensors[name][1], shape, strict=True))
    return True


def _set_address(self, name, memory):
    machine.memory(memory, 1)
    self._addresses[name] = memory
    return True


def _execute(self, stream_handle):
    on = machine.get("stream", stream_handle)
    if set(self._shapes) != set(self._inputs) or set(self._addresses) != set(self._tensors):
        raise machine.misuse("a launch without all shapes and addresses")
    if self.profiler is not None and (self.enqueue_emits_profile or not self.profiler._is_made):
        raise machine.misuse("a launch that waits for the times of its layers, or a profiler without __init__")
    if on.captured is not None and not self._launched:
        return False
    self._launched.append(stream_handle)
    # Without the context: the device must not keep it alive.
    act = functools.partial(_compute, self._inputs, self._outputs, dict(self._shapes), dict(self._addresses))
    machine.put(stream_handle, sum(machine.layer_ms.values()), act)
    return True


def _compute(inputs, outputs, shapes, addresses):
    arrays = {}
    for name, (dtype, _) in inputs.items():
        size = int(np.prod(shapes[name])) * np.dtype(_NUMPY[dtype]).itemsize
        arrays[name] = machine.memory(addresses[name], size).view(_NUMPY[dtype]).reshape(shapes[name])
    for (name, (dtype, _)), array in zip(outputs.items(), machine.compute(arrays), strict=True):
        data = np.ascontiguousarray(array, _NUMPY[dtype]).view(np.uint8).ravel()
        machine.memory(addresses[name], data.size)[:] = data


def _report(self):
    if machine.is_busy():
        raise machine.misuse("the times of layers are asked for before the batch has ended")
    for name, ms in machine.layer_ms.items():
        self.profiler.report_layer_time(name, ms)
    return True


_METHODS = {
    "Builder.create_network": lambda self, flags=0: _Object("Network"),
    "Builder.create_builder_config": _config,
    "Builder.create_optimization_profile": lambda self: _Object("IOptimizationProfile", _shapes={}),
    "Builder.build_serialized_network": _build,
    "OnnxParser.parse_from_file": lambda self, model: _parse(self, onnx.load(model)),
    "OnnxParser.parse": lambda self, model, path=None: _parse(self, onnx.load_from_string(model)),
    "OnnxParser.get_error": lambda self, index: _Object("ParserError", _text=machine.parser_errors[index]),
    "ParserError.desc": lambda self: self._text,
    "IOptimizationProfile.set_shape": lambda self, input, min, opt, max: self._shapes.update({input: [min, opt, max]}),
    "IBuilderConfig.set_flag": lambda self, flag: self._flags.add(flag),
    "IBuilderConfig.clear_flag": lambda self, flag: self._flags.discard(flag),
    "IBuilderConfig.get_flag": lambda self, flag: flag in self._flags,
    "IBuilderConfig.set_memory_pool_limit": _limit,
    "IBuilderConfig.get_memory_pool_limit": lambda self, pool: self._limits[pool],
    "IBuilderConfig.add_optimization_profile": lambda self, profile: self._profiles.append(profile) or 0,
    "IBuilderConfig.create_timing_cache": lambda self, serialized_timing_cache: _Object(
        "ITimingCache", _data=serialized_timing_cache
    ),
    "IBuilderConfig.set_timing_cache": lambda self, cache, ignore_mismatch: self._times.append(cache) or True,
    "IBuilderConfig.get_timing_cache": lambda self: self._times[-1] if self._times else None,
    "ITimingCache.serialize": lambda self: memoryview(self._data),
    "Runtime.deserialize_cuda_engine": _load,
    "ICudaEngine.get_tensor_name": lambda self, index: list(self._tensors)[index],
    "ICudaEngine.get_tensor_mode": lambda self, name: ENUMS["TensorIOMode"](2 - (name in self._plan["inputs"])),
    "ICudaEngine.get_tensor_dtype": lambda self, name: ENUMS["DataType"][self._tensors[name][0]],
    "ICudaEngine.get_tensor_location": lambda self, name: ENUMS["TensorLocation"].DEVICE,
    "ICudaEngine.get_tensor_shape": lambda self, name: _shape(self._tensors[name], {}),
    "ICudaEngine.get_tensor_profile_shape": _profile_shape,
    "ICudaEngine.create_engine_inspector": lambda self: _Object("EngineInspector", _layers=self._plan["layers"]),
    "ICudaEngine.create_execution_context": _context,
    "EngineInspector.get_engine_information": lambda self, format: json.dumps({"Layers": self._layers}),
    "IExecutionContext.set_optimization_profile_async": _set_profile,
    "IExecutionContext.set_input_shape": _set_input_shape,
    "IExecutionContext.infer_shapes": lambda self: sorted(set(self._inputs) - set(self._shapes)),
    "IExecutionContext.get_tensor_shape": lambda self, name: _shape(self._tensors[name], self._sizes),
    "IExecutionContext.set_tensor_address": _set_address,
    "IExecutionContext.execute_async_v3": _execute,
    "IExecutionContext.report_to_profiler": _report,
}
for _name, _plain in _METHODS.items():
    api.check(_name.partition(".")[2], _plain, API[_name.partition(".")[0]])
