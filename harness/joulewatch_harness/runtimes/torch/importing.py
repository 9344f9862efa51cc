"""Convert an .onnx file to a PyTorch module, for the operators of the built-in networks and of common exported ones.

The result is a ``torch.fx.GraphModule`` with one PyTorch call for each operator, which can be run eagerly, compiled or
exported. Operators that a PyTorch network would not have for inference are folded into the layer before: a BatchNorm
after a convolution or a Gemm, and the Add of a bias after a MatMul.
"""

from __future__ import annotations

import math
import operator
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from joulewatch_exporter.text import count_of
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.signature import broken
from joulewatch_harness.runtimes.torch.tracing import ORIGIN

_FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_FLOAT_DTYPES: Final[Mapping[int, torch.dtype]] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
}
_INTEGER_DTYPES: Final[Mapping[int, torch.dtype]] = {
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}
_POOLS: Final[Mapping[str, Mapping[int, Any]]] = {
    "MaxPool": {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d},
    "AveragePool": {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d},
}
_CONVOLUTIONS: Final[Mapping[int, Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_SIMPLE: Final[Mapping[str, Callable[..., Any]]] = {
    "Abs": torch.abs,
    "Add": operator.add,
    "Cos": torch.cos,
    "Div": operator.truediv,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "HardSwish": F.hardswish,
    "Log": torch.log,
    "Mul": operator.mul,
    "Neg": torch.neg,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Sqrt": torch.sqrt,
    "Sub": operator.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
}


def module_of(path: Path, dtype: torch.dtype | None) -> torch.fx.GraphModule:
    """Read an .onnx file into a module in evaluation mode, without gradients.

    Args:
        path: The file.
        dtype: Type of all floating-point weights; None: as stored.

    Raises:
        ConfigError: the file is not a valid ONNX model, or has an unsupported operator; the text names it.
    """
    try:
        model = onnx.load(os.fspath(path))
    except Exception as error:
        raise broken(path, error) from error
    try:
        return _Reader(path.name, model.graph, dtype).read()
    except ConfigError:
        raise
    except Exception as error:
        raise broken(path, error) from error


class _Reader:
    """Converts the nodes of one graph in order."""

    def __init__(self, name: str, graph: Any, dtype: torch.dtype | None) -> None:
        self._name = name
        self._graph = graph
        self._dtype = dtype
        self._root = torch.nn.Module()
        self._fx = torch.fx.Graph()
        self._constants: dict[str, NDArray[Any]] = {
            item.name: numpy_helper.to_array(item) for item in graph.initializer
        }
        self._values: dict[str, Any] = {}
        self._held: dict[str, Any] = {}
        self._nodes: list[Any] = list(graph.node)
        self._uses = Counter(name for node in self._nodes for name in node.input)
        self._uses.update(item.name for item in graph.output)
        self._users = {name: number for number, node in enumerate(self._nodes) for name in node.input}

    def read(self) -> torch.fx.GraphModule:
        for item in self._graph.input:
            if item.name not in self._constants:
                self._values[item.name] = self._fx.placeholder(_identifier(item.name))
        folded: set[int] = set()
        known = 0
        for number, node in enumerate(self._nodes):
            if number in folded:
                continue
            follower = self._follower(node)
            if follower is not None:
                folded.add(self._users[node.output[0]])
            self._node(node, follower)
            made = list(self._fx.nodes)
            for item in made[known:]:
                item.meta[ORIGIN] = node.name or f"{node.op_type}_{number}"
            known = len(made)
        outputs = tuple(self._value(item.name) for item in self._graph.output)
        self._fx.output(outputs[0] if len(outputs) == 1 else outputs)
        module = torch.fx.GraphModule(self._root, self._fx, "OnnxModule")
        module.eval()
        return module

    # Values

    def _value(self, name: str) -> Any:
        """Return a value as an argument of a call; a constant becomes a buffer of the module."""
        if name in self._values:
            return self._values[name]
        if name not in self._constants:
            raise ConfigError(f"model file {self._name}: the value {name!r} is not the output of a node before its use")
        return self._buffer(name, self._constants[name])

    def _operand(self, name: str) -> Any:
        """Return a value as an argument; a scalar stays a number, which needs no kernel argument and no rounding."""
        array = self._constants.get(name)
        return array.item() if array is not None and array.ndim == 0 else self._value(name)

    def _buffer(self, name: str, array: NDArray[Any], *, parameter: bool = False) -> Any:
        key = _identifier(name)
        if key not in self._held:
            tensor = torch.from_numpy(np.array(array, order="C"))
            if tensor.is_floating_point() and self._dtype is not None:
                tensor = tensor.to(self._dtype)
            if parameter:
                self._root.register_parameter(key, torch.nn.Parameter(tensor, requires_grad=False))
            else:
                self._root.register_buffer(key, tensor)
            self._held[key] = self._fx.get_attr(key)
        return self._held[key]

    def _integers(self, node: Any, position: int, attribute: str) -> list[int] | None:
        """Return axes, shapes or the like: an attribute in old operator sets, a constant input in new ones."""
        for item in node.attribute:
            if item.name == attribute:
                return [int(value) for value in helper.get_attribute_value(item)]
        if len(node.input) <= position or not node.input[position]:
            return None
        array = self._constants.get(node.input[position])
        if array is None:
            raise self._unknown(node, f"its input {attribute!r} is computed at run time")
        return [int(value) for value in np.ravel(array)]

    def _unknown(self, node: Any, why: str = "") -> ConfigError:
        kind = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        return ConfigError(
            f"model file {self._name}: the operator {kind} ({node.name or node.output[0]}) cannot be converted to "
            f"PyTorch{': ' + why if why else ''}; give the network as PyTorch code (option module=FILE.py:function) or "
            "as a .pt2 file, or run it with onnxruntime or openvino"
        )

    def _follower(self, node: Any) -> Any:
        """Return the node that can be folded into this one: its only reader, with constant other inputs."""
        output = node.output[0]
        if self._uses[output] != 1 or output not in self._users:
            return None
        user = self._nodes[self._users[output]]
        others = [name for name in user.input if name != output]
        if not all(name in self._constants for name in (*node.input[1:], *others) if name):
            return None
        if node.op_type in ("Conv", "Gemm") and user.op_type == "BatchNormalization" and user.input[0] == output:
            return user
        if node.op_type == "MatMul" and user.op_type == "Add" and len(others) == 1:
            weight, bias = self._constants[node.input[1]], self._constants[others[0]]
            return user if weight.ndim == 2 and bias.shape == weight.shape[1:] else None
        return None

    # Operators

    def _node(self, node: Any, follower: Any) -> None:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        kind = node.op_type
        if node.domain not in ("", "ai.onnx"):
            raise self._unknown(node)
        if kind == "Constant":
            value = next(iter(attributes.values()))
            is_tensor = isinstance(value, TensorProto)
            self._constants[node.output[0]] = numpy_helper.to_array(value) if is_tensor else np.array(value)
            return
        if any(self._uses[name] for name in node.output[1:]) and kind != "Split":
            raise self._unknown(node, "its further outputs are used")
        method = getattr(self, f"_{kind.lower()}", None)
        if kind in ("Conv", "Gemm", "MatMul"):
            made = self._layer(node, attributes, follower)
        elif kind in _SIMPLE:
            made = self._call(_SIMPLE[kind], *(self._operand(name) for name in node.input))
        elif kind in _POOLS:
            made = self._pool(node, attributes)
        elif method is not None:
            made = method(node, attributes)
        else:
            raise self._unknown(node)
        if kind != "Split":
            self._values[(follower or node).output[0]] = made

    def _call(self, function: Any, *arguments: Any, **keywords: Any) -> Any:
        if not any(isinstance(item, torch.fx.Node) for item in arguments):
            arguments = tuple(torch.tensor(item) if isinstance(item, float) else item for item in arguments)
        return self._fx.call_function(function, arguments, keywords)

    def _layer(self, node: Any, attributes: Mapping[str, Any], follower: Any) -> Any:
        """Convert Conv, Gemm or MatMul, with the next operators folded into its weights."""
        kind = node.op_type
        x = self._value(node.input[0])
        weight = self._constants.get(node.input[1])
        if weight is None:
            if kind == "MatMul":
                return self._call(torch.matmul, x, self._value(node.input[1]))
            raise self._unknown(node, "its weights are computed at run time")
        bias: NDArray[Any] | None = None
        if len(node.input) > 2 and node.input[2]:
            if node.input[2] not in self._constants:
                raise self._unknown(node, "its bias is computed at run time")
            bias = self._constants[node.input[2]]
        if kind == "Gemm":
            weight = weight if attributes.get("transB", 0) else weight.T
            weight = weight * weight.dtype.type(attributes.get("alpha", 1.0))
            if bias is not None:
                if bias.ndim > 1 and any(size != 1 for size in bias.shape[:-1]):
                    raise self._unknown(node, "its bias is a matrix")
                bias = np.broadcast_to(bias.reshape(-1), len(weight)) * bias.dtype.type(attributes.get("beta", 1.0))
            if attributes.get("transA", 0):
                x = self._call(torch.t, x)
        elif kind == "MatMul":
            if weight.ndim != 2:
                return self._call(torch.matmul, x, self._value(node.input[1]))
            weight = weight.T
        if follower is not None and follower.op_type == "Add":
            bias = self._constants[next(name for name in follower.input if name != node.output[0])]
        elif follower is not None:
            gamma, beta, mean, variance = (self._constants[name] for name in follower.input[1:5])
            epsilon = next((item.f for item in follower.attribute if item.name == "epsilon"), 1e-5)
            scale = gamma / np.sqrt(variance + variance.dtype.type(epsilon))
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            bias = beta - mean * scale if bias is None else beta + (bias - mean) * scale
        name = node.output[0]
        held = self._buffer(f"{name}.weight", weight, parameter=True)
        held_bias = None if bias is None else self._buffer(f"{name}.bias", bias, parameter=True)
        if kind != "Conv":
            return self._call(F.linear, x, held, held_bias)
        function = _CONVOLUTIONS.get(weight.ndim - 2)
        if function is None:
            raise self._unknown(node, f"it has {count_of(weight.ndim - 2, 'spatial axis', 'spatial axes')}")
        x, padding = self._padding(node, attributes, x, weight.ndim - 2, 0.0)
        stride = list(attributes.get("strides", [1] * (weight.ndim - 2)))
        dilation = list(attributes.get("dilations", [1] * (weight.ndim - 2)))
        return self._call(function, x, held, held_bias, stride, padding, dilation, int(attributes.get("group", 1)))

    def _padding(
        self, node: Any, attributes: Mapping[str, Any], x: Any, axes: int, fill: float
    ) -> tuple[Any, list[int]]:
        """Return the padding of the operator, after a separate Pad if the two ends differ."""
        if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise self._unknown(node, f"auto_pad is {attributes['auto_pad'].decode()}")
        pads = [int(size) for size in attributes.get("pads", [0] * (2 * axes))]
        before, after = pads[:axes], pads[axes:]
        if before == after:
            return x, before
        # PyTorch counts from the last axis.
        both = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
        return self._call(F.pad, x, both, "constant", fill), [0] * axes

    def _pool(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        kernel = list(attributes["kernel_shape"])
        axes = len(kernel)
        is_max = node.op_type == "MaxPool"
        x, padding = self._padding(node, attributes, self._value(node.input[0]), axes, -math.inf if is_max else 0.0)
        padded = list(attributes.get("pads", ()))
        if not is_max and padded[:axes] != padded[axes:] and not attributes.get("count_include_pad", 0):
            raise self._unknown(node, "its mean excludes padding with unequal ends")
        stride, ceil = list(attributes.get("strides", [1] * axes)), bool(attributes.get("ceil_mode", 0))
        function = _POOLS[node.op_type][axes]
        if is_max:
            dilation = list(attributes.get("dilations", [1] * axes))
            return self._call(function, x, kernel, stride, padding, dilation, ceil)
        return self._call(function, x, kernel, stride, padding, ceil, bool(attributes.get("count_include_pad", 0)))

    def _globalaveragepool(self, node: Any, _: Mapping[str, Any]) -> Any:
        return self._call(_mean_over_space, self._value(node.input[0]))

    def _batchnormalization(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        x, gamma, beta, mean, variance = (self._value(name) for name in node.input)
        epsilon = float(attributes.get("epsilon", 1e-5))
        return self._call(F.batch_norm, x, mean, variance, gamma, beta, False, 0.0, epsilon)

    def _layernormalization(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        scale = self._constants.get(node.input[1])
        if scale is None:
            raise self._unknown(node, "its scale is computed at run time")
        arguments = [self._value(name) for name in node.input]
        bias = arguments[2] if len(arguments) > 2 else None
        shape, epsilon = list(scale.shape), float(attributes.get("epsilon", 1e-5))
        return self._call(F.layer_norm, arguments[0], shape, arguments[1], bias, epsilon)

    def _identity(self, node: Any, _: Mapping[str, Any]) -> Any:
        return self._value(node.input[0])

    _dropout = _identity

    def _leakyrelu(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        return self._call(F.leaky_relu, self._value(node.input[0]), float(attributes.get("alpha", 0.01)))

    def _elu(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        return self._call(F.elu, self._value(node.input[0]), float(attributes.get("alpha", 1.0)))

    def _hardsigmoid(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        slope, offset = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
        return self._call(_hard_sigmoid, self._value(node.input[0]), slope, offset)

    def _gelu(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        approximate = bytes(attributes.get("approximate", b"none")).decode()
        return self._call(F.gelu, self._value(node.input[0]), approximate=approximate)

    def _softmax(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        return self._call(torch.softmax, self._value(node.input[0]), int(attributes.get("axis", -1)))

    def _logsoftmax(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        return self._call(torch.log_softmax, self._value(node.input[0]), int(attributes.get("axis", -1)))

    def _clip(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        limits: list[float | None] = [attributes.get("min"), attributes.get("max")]
        for position, name in enumerate(node.input[1:3]):
            if name and name not in self._constants:
                raise self._unknown(node, "its limits are computed at run time")
            if name:
                limits[position] = self._constants[name].item()
        return self._call(torch.clamp, self._value(node.input[0]), *limits)

    def _cast(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        kind = int(attributes["to"])
        dtype = _INTEGER_DTYPES.get(kind) or (self._dtype if kind in _FLOATS else None) or _FLOAT_DTYPES.get(kind)
        if dtype is None:
            raise self._unknown(node, "its type is not supported")
        return self._fx.call_method("to", (self._value(node.input[0]), dtype))

    def _flatten(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        return self._call(_flat, self._value(node.input[0]), int(attributes.get("axis", 1)))

    def _reshape(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        shape = self._integers(node, 1, "shape")
        if attributes.get("allowzero", 0):
            raise self._unknown(node, "allowzero is set")
        return self._call(_reshaped, self._value(node.input[0]), shape)

    def _transpose(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        x = self._value(node.input[0])
        if "perm" not in attributes:
            return self._call(_reversed_axes, x)
        return self._call(torch.permute, x, [int(axis) for axis in attributes["perm"]])

    def _concat(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        parts = [self._value(name) for name in node.input]
        return self._fx.call_function(torch.cat, (parts, int(attributes["axis"])))

    def _squeeze(self, node: Any, _: Mapping[str, Any]) -> Any:
        axes = self._integers(node, 1, "axes")
        x = self._value(node.input[0])
        return self._call(torch.squeeze, x) if axes is None else self._call(torch.squeeze, x, tuple(axes))

    def _unsqueeze(self, node: Any, _: Mapping[str, Any]) -> Any:
        return self._call(_unsqueezed, self._value(node.input[0]), self._integers(node, 1, "axes"))

    def _reducemean(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        axes = self._integers(node, 1, "axes")
        keep = bool(attributes.get("keepdims", 1))
        if axes is None:
            raise self._unknown(node, "it names no axes")
        return self._call(torch.mean, self._value(node.input[0]), axes, keep)

    def _gather(self, node: Any, attributes: Mapping[str, Any]) -> Any:
        axis = int(attributes.get("axis", 0))
        indices = self._constants.get(node.input[1])
        if indices is not None and indices.ndim == 0:
            return self._call(torch.select, self._value(node.input[0]), axis, int(indices))
        if axis == 0 and node.input[0] in self._constants and self._constants[node.input[0]].ndim == 2:
            table = self._buffer(node.input[0], self._constants[node.input[0]], parameter=True)
            return self._call(F.embedding, self._value(node.input[1]), table)
        return self._call(_gathered, self._value(node.input[0]), axis, self._value(node.input[1]))

    def _slice(self, node: Any, _: Mapping[str, Any]) -> Any:
        starts, ends = self._integers(node, 1, "starts"), self._integers(node, 2, "ends")
        axes, steps = self._integers(node, 3, "axes"), self._integers(node, 4, "steps")
        if starts is None or ends is None or any(step != 1 for step in steps or ()):
            raise self._unknown(node, "its steps are not 1")
        return self._call(_sliced, self._value(node.input[0]), starts, ends, axes or list(range(len(starts))))

    def _split(self, node: Any, attributes: Mapping[str, Any]) -> None:
        axis = int(attributes.get("axis", 0))
        sizes = self._integers(node, 1, "split")
        x = self._value(node.input[0])
        if sizes is None:
            parts = self._call(torch.chunk, x, len(node.output), axis)
        else:
            parts = self._call(torch.split, x, sizes, axis)
        for number, name in enumerate(node.output):
            self._values[name] = self._call(operator.getitem, parts, number)


def _identifier(name: str) -> str:
    text = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return text if text[:1].isalpha() else f"v_{text}"


def _mean_over_space(x: torch.Tensor) -> torch.Tensor:
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def _hard_sigmoid(x: torch.Tensor, slope: float, offset: float) -> torch.Tensor:
    return torch.clamp(x * slope + offset, 0.0, 1.0)


def _flat(x: torch.Tensor, axis: int) -> torch.Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    return torch.flatten(x, 1) if axis == 1 else x.reshape(math.prod(x.shape[:axis]), -1)


def _reshaped(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def _reversed_axes(x: torch.Tensor) -> torch.Tensor:
    return x.permute(*range(x.dim() - 1, -1, -1))


def _unsqueezed(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _gathered(x: torch.Tensor, axis: int, indices: torch.Tensor) -> torch.Tensor:
    axis = axis % x.dim()
    picked = torch.index_select(x, axis, indices.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _sliced(x: torch.Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]) -> torch.Tensor:
    places = [slice(None)] * x.dim()
    for start, end, axis in zip(starts, ends, axes, strict=True):
        places[axis] = slice(start, end)
    return x[tuple(places)]
