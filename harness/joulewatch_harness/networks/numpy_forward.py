"""Compute the built-in networks in float32 with numpy: the reference for the outputs of all runtimes.

It supports only the operators that ``zoo`` uses, and it is simple rather than fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.generic]
Attributes = Mapping[str, Any]


def forward(model: Any, inputs: Mapping[str, Array], *, half: bool = False) -> NDArray[np.float32]:
    """Return the first output of an ``onnx.ModelProto``.

    Args:
        model: A float32 graph.
        inputs: Input name -> array.
        half: Round the weights to half precision first, as in a file in half precision.

    Raises:
        NotImplementedError: An operator is not in ``OPERATORS``.
    """
    from onnx import helper, numpy_helper

    values: dict[str, Any] = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    if half:
        values = {name: rounded(array) for name, array in values.items()}
    values |= inputs
    for node in model.graph.node:
        operator = OPERATORS.get(node.op_type)
        if operator is None:
            raise NotImplementedError(node.op_type)
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        values[node.output[0]] = operator([values[name] for name in node.input], attributes)
    return np.asarray(values[model.graph.output[0].name], dtype=np.float32)


def rounded(array: NDArray[Any]) -> NDArray[Any]:
    """Return a float32 array rounded to half precision; other types unchanged."""
    return array.astype(np.float16).astype(np.float32) if array.dtype == np.float32 else array


def _windows(x: Any, attributes: Attributes, fill: float) -> Any:
    """Return the windows of a convolution: [n, channels, rows, columns, kernel rows, kernel columns]."""
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    rows, columns = attributes.get("strides", (1, 1))
    axes: Any = (2, 3)  # The type hints of numpy 1.26 accept only a single axis.
    windows = sliding_window_view(padded, tuple(attributes["kernel_shape"]), axis=axes)
    return windows[:, :, ::rows, ::columns]


def _conv(args: list[Any], attributes: Attributes) -> Any:
    x, weight = args[0], args[1]
    groups = attributes.get("group", 1)
    windows = _windows(x, attributes, 0.0)
    n, _, rows, columns = windows.shape[:4]
    split = windows.reshape(n, groups, -1, *windows.shape[2:])
    kernels = weight.reshape(groups, -1, *weight.shape[1:])
    y = np.einsum("ngirckl,goikl->ngorc", split, kernels, optimize=True).reshape(n, len(weight), rows, columns)
    return y if len(args) < 3 else y + args[2][:, None, None]


def _gemm(args: list[Any], attributes: Attributes) -> Any:
    y = args[0] @ (args[1].T if attributes.get("transB", 0) else args[1])
    return y if len(args) < 3 else y + args[2]


def _batch_norm(args: list[Any], attributes: Attributes) -> Any:
    x, gamma, beta, mean, variance = args
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = gamma / np.sqrt(variance + np.float32(attributes["epsilon"]))
    return x * scale.reshape(shape) + (beta - mean * scale).reshape(shape)


def _layer_norm(args: list[Any], attributes: Attributes) -> Any:
    x, scale, bias = args
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(attributes["epsilon"]))
    return centred / deviation * scale + bias


def _softmax(args: list[Any], attributes: Attributes) -> Any:
    raised = np.exp(args[0] - args[0].max(axis=attributes["axis"], keepdims=True))
    return raised / raised.sum(axis=attributes["axis"], keepdims=True)


def _reshape(args: list[Any], _: Attributes) -> Any:
    sizes = [args[0].shape[axis] if size == 0 else int(size) for axis, size in enumerate(args[1])]
    return args[0].reshape(sizes)


OPERATORS: Final[Mapping[str, Callable[[list[Any], Attributes], Any]]] = {
    "Add": lambda args, _: args[0] + args[1],
    "BatchNormalization": _batch_norm,
    "Clip": lambda args, _: np.clip(args[0], args[1], args[2]),
    "Conv": _conv,
    "Flatten": lambda args, _: args[0].reshape(len(args[0]), -1),
    "Gather": lambda args, attributes: np.take(args[0], args[1], axis=attributes.get("axis", 0)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda args, _: args[0].mean(axis=(2, 3), keepdims=True),
    "LayerNormalization": _layer_norm,
    "MatMul": lambda args, _: args[0] @ args[1],
    "MaxPool": lambda args, attributes: _windows(args[0], attributes, -np.inf).max(axis=(4, 5)),
    "Mul": lambda args, _: args[0] * args[1],
    "ReduceMean": lambda args, a: args[0].mean(axis=tuple(a["axes"]), keepdims=bool(a["keepdims"])),
    "Relu": lambda args, _: np.maximum(args[0], 0),
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Transpose": lambda args, attributes: np.transpose(args[0], attributes["perm"]),
}
